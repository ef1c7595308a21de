"""Differences between two runs of a model, in the same figures at export and in the self-test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fer_runtime.model.batches import fill_batch

if TYPE_CHECKING:
    from fer_runtime.model.session import InferenceSession

FloatArray = npt.NDArray[np.float32]
Uint8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The outputs of a model."""

    logits: FloatArray  # (faces, classes)
    probabilities: FloatArray  # (faces, classes)
    unfamiliarity: FloatArray | None = None  # (faces,); None where the file has no such output


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The largest differences that count as equal."""

    logits: float = 1e-3  # |Δlogit| <= logits * (1 + |logit|)
    probabilities: float = 1e-3  # |Δp|
    margin: float = 1e-3  # top-1 may change where the two best logits lie closer than this


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Worst differences between expected and actual outputs; NaN where an output is not finite."""

    faces: int
    max_logit_difference: float
    max_relative_difference: float  # of |Δlogit| / (1 + |logit|)
    max_probability_difference: float
    top1_flips: int  # faces whose best expression changed
    top1_flips_beyond_margin: int  # of those, the ones whose margin was not a tie
    not_finite: int  # values that are NaN or infinite

    def to_dict(self) -> dict[str, Any]:
        """The figures as reports hold them; NaN, which JSON lacks, as None."""
        return {key: None if value != value else value for key, value in asdict(self).items()}

    def failures(self, tolerance: Tolerance) -> tuple[str, ...]:
        """Which of "finite", "logits", "probabilities" and "top-1" do not hold."""
        failed = []
        if self.not_finite:
            failed.append("finite")
        # Written as "not <=" so that a NaN difference fails too.
        if not self.max_relative_difference <= tolerance.logits:
            failed.append("logits")
        if not self.max_probability_difference <= tolerance.probabilities:
            failed.append("probabilities")
        if self.top1_flips_beyond_margin:
            failed.append("top-1")
        return tuple(failed)


def compare_outputs(expected: Outputs, actual: Outputs, *, margin: float = 1e-3) -> Comparison:
    """Compare two runs over the same faces.

    Args:
        expected: the reference, such as PyTorch's.
        actual: what is judged.
        margin: distance of the two best expected logits under which a changed top-1 is a tie.

    Raises:
        ValueError: the shapes differ.
    """
    if expected.logits.shape != actual.logits.shape or expected.probabilities.shape != actual.probabilities.shape:
        raise ValueError(f"expected logits have shape {expected.logits.shape}, actual ones {actual.logits.shape}")
    # In double precision, so that the difference of two floats is not rounded again.
    logits = np.abs(expected.logits.astype(np.float64) - actual.logits)
    probabilities = np.abs(expected.probabilities.astype(np.float64) - actual.probabilities)
    flipped = expected.logits.argmax(1) != actual.logits.argmax(1)
    best_two = np.sort(expected.logits, axis=1)[:, -2:]
    return Comparison(
        faces=len(logits),
        max_logit_difference=float(logits.max(initial=0)),
        max_relative_difference=float((logits / (1 + np.abs(expected.logits))).max(initial=0)),
        max_probability_difference=float(probabilities.max(initial=0)),
        top1_flips=int(flipped.sum()),
        top1_flips_beyond_margin=int((flipped & (best_two[:, 1] - best_two[:, 0] > margin)).sum()),
        not_finite=int((~np.isfinite(actual.logits)).sum() + (~np.isfinite(actual.probabilities)).sum())
        + (0 if actual.unfamiliarity is None else int((~np.isfinite(actual.unfamiliarity)).sum())),
    )


def worst_of(comparisons: Sequence[Comparison]) -> Comparison:
    """The largest of each figure over several runs on the same faces."""
    return Comparison(
        faces=comparisons[0].faces,
        # numpy's max keeps a NaN, Python's loses it.
        max_logit_difference=float(np.max([comparison.max_logit_difference for comparison in comparisons])),
        max_relative_difference=float(np.max([comparison.max_relative_difference for comparison in comparisons])),
        max_probability_difference=float(np.max([comparison.max_probability_difference for comparison in comparisons])),
        top1_flips=max(comparison.top1_flips for comparison in comparisons),
        top1_flips_beyond_margin=max(comparison.top1_flips_beyond_margin for comparison in comparisons),
        not_finite=max(comparison.not_finite for comparison in comparisons),
    )


def run_model(session: InferenceSession, faces: Uint8Array, *, batch: int = 64, pads: bool = False) -> Outputs:
    """The model's outputs for uint8 faces of its size and colour, computed in batches.

    Args:
        pads: fill the last batch up with its first face, for a model of a fixed batch size.
    """
    names = ["logits", "probabilities"]
    names += [output.name for output in session.get_outputs() if output.name == "unfamiliarity"]
    found: list[list[FloatArray]] = [[] for _ in names]
    for start in range(0, len(faces), batch):
        part = faces[start : start + batch]
        answers = session.run(names, {"faces": fill_batch(part, batch) if pads else part})
        for parts, answer in zip(found, answers, strict=True):
            parts.append(answer[: len(part)])
    logits, probabilities, *more = map(np.concatenate, found)
    return Outputs(logits=logits, probabilities=probabilities, unfamiliarity=more[0] if more else None)


def softmax(logits: FloatArray, *, temperature: float = 1.0) -> FloatArray:
    """softmax(logits / temperature) over the last axis, float32."""
    scaled = logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):  # infinite logits become NaN, which every check refuses
        powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    shares: FloatArray = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of a gate or a self-test, with its result."""

    name: str
    passed: bool
    detail: str  # what was found, with figures

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.name:<13} {self.detail}"


def comparison_checks(worst: Comparison, tolerance: Tolerance) -> list[Check]:
    """The four checks of numbers: "finite", "logits", "probabilities", "top-1"."""
    failed = worst.failures(tolerance)
    details = {
        "finite": f"{worst.not_finite} values are NaN or infinite",
        "logits": f"max |Δlogit| {worst.max_logit_difference:.1e}, "
        f"relative {worst.max_relative_difference:.1e} (allowed {tolerance.logits:g})",
        "probabilities": f"max |Δp| {worst.max_probability_difference:.1e} (allowed {tolerance.probabilities:g})",
        "top-1": f"{worst.top1_flips_beyond_margin} of {worst.faces} faces change their expression",
    }
    return [Check(name=name, passed=name not in failed, detail=detail) for name, detail in details.items()]
