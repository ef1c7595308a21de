"""Temperature scaling and a reject threshold, fitted on labelled faces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_export.gate.accuracy import QUANTILE
from fer_runtime.metrics import expected_calibration_error, wilson_interval
from fer_runtime.model.parity import Check, FloatArray, Outputs, softmax

TARGET_PRECISION = 0.8  # of the answers that are not `uncertain`
_REFITTED = 0.01  # temperature as a factor, and coverage, that a second fit may differ by
_FEWEST_FACES = 100  # a threshold that keeps fewer answers than this is chance
_ERROR = 0.02  # of calibration, that a quantized file may add
_DRAWS = 1000  # of exchanges, for what chance adds

Int64Array = npt.NDArray[np.int64]
Answers = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fitted values and their quality."""

    temperature: float  # probabilities = softmax(logits / temperature)
    uncertain_below: float | None  # confidence; None where no threshold reaches the target
    faces: int  # labelled faces it was fitted on; 0: nothing was fitted
    ece_before: float | None = None  # expected calibration error, 15 bins, temperature 1
    ece_after: float | None = None  # each half with the temperature of the other half
    # Of the faces at or above the threshold, each half judged with the other half's temperature and threshold.
    precision: float | None = None  # fraction right
    coverage: float | None = None  # fraction of the faces
    precision_interval: tuple[float, float] | None = None  # 95 % confidence
    labels: str = "class folders"  # what counts as right
    # Confidence, with the other half's temperature, and correctness of each face's answer. Of a fit alone, in no file.
    answers: Answers | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures as the metadata holds them."""
        if not self.faces:
            return {"faces": 0, "note": f"no labelled faces at export: temperature {self.temperature:g}, no threshold"}
        return {
            "method": "temperature scaling (Guo et al., arXiv 1706.04599)",
            "faces": self.faces,
            "ece_before": self.ece_before,
            "ece_after": self.ece_after,
            "target_precision": TARGET_PRECISION,
            "precision": self.precision,
            "precision_interval": None if self.precision_interval is None else list(self.precision_interval),
            "coverage": self.coverage,
            "labels": self.labels,
        }


NOT_CALIBRATED = Calibration(temperature=1.0, uncertain_below=None, faces=0)


def calibrate(logits: FloatArray, truth: Int64Array | FloatArray, *, labels_from: str = "class folders") -> Calibration:
    """Fit temperature and threshold on a model's logits (faces, classes).

    The figures are cross-fitted: each half of the faces is measured with what the other half fitted.

    Args:
        truth: labels, int64 (faces,), or the raters' shares for each class, float32 (faces, classes). With shares, an
            answer is as right as the share of the raters who name it, and probabilities come to mean such shares.
    """
    shares = _shares(truth, logits.shape[1])
    temperature = fit_temperature(logits, shares)
    correct = shares[np.arange(len(shares)), logits.argmax(1)]
    uncertain_below, _, _ = reject_threshold(softmax(logits, temperature=temperature).max(1), correct)
    # Faces lie sorted by class, so halves are every second face.
    halves = (np.arange(len(shares)) % 2 == 0, np.arange(len(shares)) % 2 == 1)
    confidences = np.empty(len(shares), np.float64)
    kept = np.zeros(len(shares), bool)
    for fitted, measured in (halves, halves[::-1]):
        own = fit_temperature(logits[fitted], shares[fitted])
        confidences[measured] = softmax(logits[measured], temperature=own).max(1)
        threshold, _, _ = reject_threshold(softmax(logits[fitted], temperature=own).max(1), correct[fitted])
        kept[measured] = confidences[measured] >= (np.inf if threshold is None else threshold)
    right, count = round(float(correct[kept].sum())), int(kept.sum())
    known = uncertain_below is not None and count > 0
    low, high = wilson_interval(right, count)
    return Calibration(
        temperature=temperature,
        uncertain_below=uncertain_below,
        faces=len(truth),
        ece_before=round(expected_calibration_error(softmax(logits).max(1), correct), 6),
        ece_after=round(expected_calibration_error(confidences, correct), 6),
        precision=round(right / count, 6) if known else None,
        coverage=round(count / len(truth), 6) if known else None,
        precision_interval=(round(low, 6), round(high, 6)) if known else None,
        labels=labels_from,
        answers=(confidences, correct),
    )


def fitted_check(
    outputs: Outputs, truth: FloatArray, *, temperature: float, uncertain_below: float | None, faces: int
) -> Check:
    """Check that a file's temperature and threshold are those that its own answers give.

    Args:
        outputs: of the file, for the labelled faces.
        truth: shares of the raters, (faces, classes).
        temperature, uncertain_below: what the file's metadata says.
        faces: that its metadata says they were fitted on.
    """
    own = fit_temperature(outputs.logits, truth)
    correct = truth[np.arange(len(truth)), outputs.logits.argmax(1)]
    confidences = outputs.probabilities.max(1)
    threshold, _, _ = reject_threshold(confidences, correct)
    kept, wanted = (
        float((confidences >= (np.inf if limit is None else limit)).mean()) for limit in (uncertain_below, threshold)
    )
    faults = []
    # A float file's were fitted on the network's logits, some roundings away. Written as "not <=" so that NaN counts.
    if not abs(temperature / own - 1) <= _REFITTED:
        faults.append(f"the file's temperature is {temperature:.4f}")
    if not abs(kept - wanted) <= _REFITTED or (uncertain_below is None) != (threshold is None):
        faults.append(f"the file's threshold keeps {kept:.1%} of the faces")
    if faces != len(truth):
        faults.append(f"the file says {faces} faces")
    return Check(
        name="fitted",
        passed=not faults,
        detail=(f"{'; '.join(faults)}: " if faults else "")
        + f"fitted again on the file's own answers: temperature {own:.4f}, "
        + ("no threshold" if threshold is None else f"uncertain below {threshold:g}, which keeps {wanted:.1%}"),
    )


def calibration_check(own: Calibration, reference: Calibration) -> Check:
    """Check that a file's probabilities and threshold are as good as fp32's, on the file's own outputs.

    Allowed are 2 points of calibration error, or what chance alone adds on these faces where that is more; 5 points of
    coverage; and a precision whose interval holds the target. Between fp32 and int8 of v0, v1, v2 and v3 they differ by
    under 0.6 and 1.5 points.
    """
    faults = []
    allowed = _ERROR
    if own.ece_after is not None and reference.ece_after is not None:
        added = own.ece_after - reference.ece_after
        if not added <= allowed and own.answers is not None and reference.answers is not None:
            allowed = max(allowed, added_by_chance(own.answers, reference.answers))
        if not added <= allowed:
            faults.append("calibration error")
    if own.coverage is not None and reference.coverage is not None and not own.coverage >= reference.coverage - 0.05:
        faults.append("coverage")
    if own.coverage is None and reference.coverage is not None:
        faults.append("no threshold")
    if own.precision_interval is not None and not own.precision_interval[1] >= TARGET_PRECISION:
        faults.append("precision")
    if not 0.9 <= own.temperature / reference.temperature <= 1.1:
        faults.append("temperature")
    return Check(
        name="calibration",
        passed=not faults,
        detail=(f"{', '.join(faults)}: " if faults else "")
        + f"temperature {own.temperature:.4f}, fp32 {reference.temperature:.4f}; "
        + describe_calibration(own)
        + f"; fp32: {describe_calibration(reference)}"
        + (f"; allowed {allowed:+.1%}, which chance adds on {own.faces} faces" if allowed > _ERROR else ""),
    )


def added_by_chance(own: Answers, reference: Answers) -> float:
    """The 99 % quantile of what a file adds to the calibration error of an equally good one on the same faces.

    A permutation test of pairs: if neither file's probabilities are better, each face could as well have its answers
    from the two files exchanged, so all exchanges are equally likely. On few faces the error varies by points: a face
    whose confidence moves into the next bin changes the means of both.
    """
    random = np.random.default_rng(0)
    added = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        exchanged = random.random(len(own[0])) < 0.5
        after, before = (
            expected_calibration_error(np.where(mask, own[0], reference[0]), np.where(mask, own[1], reference[1]))
            for mask in (~exchanged, exchanged)
        )
        added[draw] = after - before
    return float(np.quantile(added, QUANTILE))


def describe_calibration(fitted: Calibration) -> str:
    """Calibration error, coverage and precision in words."""
    text = f"calibration error {fitted.ece_after or 0:.1%}"
    if fitted.precision is None or fitted.precision_interval is None or fitted.coverage is None:
        is_few = fitted.faces < _FEWEST_FACES
        return text + (
            ", too few faces for a threshold" if is_few else f", no threshold reaches {TARGET_PRECISION:.0%}"
        )
    low, high = fitted.precision_interval
    return f"{text}, keeps {fitted.coverage:.0%} of the faces, {fitted.precision:.1%} right ({low:.1%} to {high:.1%})"


def _shares(truth: Int64Array | FloatArray, classes: int) -> npt.NDArray[np.float64]:
    """Labels as shares of 0 and 1, float64 (faces, classes); shares as they are."""
    shares: npt.NDArray[np.float64] = np.eye(classes)[truth] if truth.ndim == 1 else truth.astype(np.float64)
    return shares


def fit_temperature(logits: FloatArray, truth: Int64Array | npt.NDArray[np.floating]) -> float:
    """The temperature with the smallest cross-entropy to labels or shares, to four digits, between 0.05 and 20.

    Of n answers that are all right the likeliest temperature is 0, with which every answer is certain. By the rule of
    succession the next answer is right with probability (n + 1) / (n + 2), so the labels get that share and the other
    classes the rest, as in Platt (Probabilistic outputs for support vector machines, 1999).
    """
    scores = logits.astype(np.float64)
    shares = _shares(truth, scores.shape[1])
    wrong = 1 / (len(shares) + 2)
    shares = shares * (1 - wrong) + (1 - shares) * wrong / (shares.shape[1] - 1)

    def loss(log_temperature: float) -> float:
        scaled = scores / np.exp(log_temperature)
        scaled -= scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - (shares * scaled).sum(1)).mean())

    # The loss has one minimum in 1 / temperature (it is convex there), so golden-section search finds it.
    low, high = float(np.log(0.05)), float(np.log(20.0))
    ratio = (np.sqrt(5.0) - 1) / 2
    while high - low > 1e-5:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(f"{np.exp((low + high) / 2):.4g}")


def reject_threshold(
    confidences: npt.NDArray[np.floating],
    correct: npt.NDArray[np.floating] | npt.NDArray[np.bool_],
    *,
    precision: float = TARGET_PRECISION,
) -> tuple[float | None, float | None, float | None]:
    """The lowest confidence from which on `precision` of the answers are right (or of the raters, on average, agree).

    Returns:
        (threshold to three digits, precision reached, fraction of faces kept), or three None where no
        threshold that keeps a hundred faces reaches the precision.
    """
    # On the grid of the digits that are stored, so that the figures belong to the number that is used.
    for threshold in np.arange(1, 1001) / 1000:
        kept = confidences >= threshold
        if kept.sum() < _FEWEST_FACES:
            break
        reached = float(correct[kept].mean())
        if reached >= precision:
            return float(threshold), round(reached, 6), round(float(kept.mean()), 6)
    return None, None, None
