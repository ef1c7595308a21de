"""The reasons against an answer, from images that are made so."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

import fer_runtime
from fer_runtime import Recognizer
from fer_runtime.detectors import Detection
from fer_runtime.output.rows import JsonLines
from fer_runtime.quality import BLURRED_BELOW, DARK_BELOW, Limits, brightness, find_doubts, sharpness, turn
from fer_runtime.results import Face

SAMPLES = Path(fer_runtime.__file__).parent / "samples"
SCHEMA = Path(fer_runtime.__file__).parent / "schema" / "image.schema.json"


def _landmarks(degrees: float) -> tuple[tuple[float, float], ...]:
    """A head with its eyes 60 mm apart and the nose's tip 30 mm before them, turned to its left, seen from far away."""
    angle = math.radians(degrees)

    def seen(right: float, up: float, forward: float) -> tuple[float, float]:
        return 200 + right * math.cos(angle) + forward * math.sin(angle), 200 - up

    points = [(-30.0, 0.0, 0.0), (30.0, 0.0, 0.0), (0.0, -35.0, 30.0), (-25.0, -65.0, 5.0), (25.0, -65.0, 5.0)]
    return tuple(seen(*point) for point in points)


def _crop(image: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA), np.uint8)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    gray = cv2.imread(str(SAMPLES / "grace_hopper.jpg"), cv2.IMREAD_GRAYSCALE)
    assert gray is not None
    return np.asarray(gray[125:338, 162:375], np.uint8)


def test_a_turned_head_is_told_from_its_landmarks() -> None:
    for degrees in (0, 10, -20):
        found = turn(_landmarks(degrees))
        assert found is not None
        assert found == pytest.approx(0.5 * abs(math.tan(math.radians(degrees))), abs=1e-6)
    seen = find_doubts(
        [Detection(box=(0, 0, 99, 99), landmarks=_landmarks(angle)) for angle in (0, 20, 40, -50)],
        np.full((4, 48, 48), 128, np.uint8),
        [0.9] * 4,
        None,
        Limits(),
    )
    assert ["turned" in doubt.reasons for doubt in seen] == [False, False, True, True]
    assert all("turned" not in doubt.not_checked for doubt in seen)


def test_a_rolled_head_is_not_turned() -> None:
    angle = math.radians(35)
    turned = [
        (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))
        for x, y in _landmarks(10)
    ]
    assert turn(turned) == pytest.approx(turn(_landmarks(10)))


def test_what_cannot_be_looked_for_is_named() -> None:
    (doubts,) = find_doubts([Detection(box=(0, 0, 99, 99))], np.full((1, 48, 48), 128, np.uint8), [0.2], None, Limits())
    assert doubts.reasons == ()
    assert doubts.not_checked == ("low_confidence", "turned", "unfamiliar")


def test_blurred_and_dark_faces_are_told_and_sharp_ones_not(portrait: np.ndarray) -> None:
    sharp = _crop(portrait)
    blurred = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 1.5), np.uint8)
    dark = (sharp * 0.1).astype(np.uint8)
    doubts = find_doubts(
        [Detection(box=(0, 0, 99, 99))] * 3, np.stack([sharp, blurred, dark]), [0.9] * 3, None, Limits(confidence=0.5)
    )
    assert [doubt.reasons for doubt in doubts] == [(), ("blurred",), ("dark",)]


def test_sharpness_does_not_change_with_the_light_nor_with_the_size(portrait: np.ndarray) -> None:
    sharp = _crop(portrait)
    half = np.clip(sharp * 0.5 + 40, 0, 255).astype(np.uint8)
    assert sharpness(half[None])[0] == pytest.approx(sharpness(sharp[None])[0], rel=0.05)  # rounding to whole grays
    large = np.asarray(cv2.resize(portrait, (192, 192), interpolation=cv2.INTER_AREA), np.uint8)
    color = np.stack([large] * 3, axis=-1)
    assert sharpness(color[None])[0] == pytest.approx(sharpness(sharp[None])[0], rel=0.05)
    assert brightness(color[None])[0] == pytest.approx(sharp.mean(), abs=1)


def test_the_models_own_limits_decide(portrait: np.ndarray) -> None:
    faces = np.stack([_crop(portrait)] * 4)
    scores = np.array([0.5, 1.5, math.nan, 1.0], np.float32)
    doubts = find_doubts(
        [Detection(box=(0, 0, 28 if index == 3 else 29, 99)) for index in range(4)],
        faces,
        [0.5, 0.4, 0.9, 0.9],
        scores,
        Limits(confidence=0.5, unfamiliarity=1.0),
    )
    assert [doubt.reasons for doubt in doubts] == [
        (),
        ("low_confidence", "unfamiliar"),
        ("unfamiliar",),
        ("small",),
    ]


def test_rows_hold_against_the_schema_and_come_back(tmp_path: Path) -> None:
    with Recognizer("v0", detector="haar", min_confidence="auto") as recognizer:
        result = recognizer.predict(SAMPLES / "group.jpg")
    assert result.faces
    points = tuple((x, y) for x, y in _landmarks(40))
    whole = fer_runtime.ImageResult(
        path="a",
        width=9,
        height=9,
        error=None,
        faces=(
            *result.faces,
            Face(
                box=(1, 2, 3, 4),
                expression="sad",
                confidence=0.5,
                probabilities=result.faces[0].probabilities,
                detector_score=0.75,
                landmarks=points,
                reasons=("turned",),
                not_checked=("unfamiliar",),
            ),
        ),
    )
    row = json.loads(JsonLines().row(whole))
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install jsonschema")
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(row)
    again = [Face.from_dict(face) for face in row["faces"]]
    assert again[-1].reasons == ("turned",)
    assert again[-1].landmarks == tuple((round(x, 2), round(y, 2)) for x, y in points)
    assert [face.box for face in again] == [face.box for face in whole.faces]


def test_auto_takes_every_reason_for_uncertain_and_a_number_only_the_confidence(portrait: np.ndarray) -> None:
    dark = (portrait * 0.1).astype(np.uint8)
    with Recognizer("v0", detector="whole", min_confidence="auto") as recognizer:
        (face,) = recognizer.predict(dark).faces
        assert "dark" in face.reasons
        assert face.uncertain is True
    with Recognizer("v0", detector="whole", min_confidence=0.0) as recognizer:
        (face,) = recognizer.predict(dark).faces
        assert face.reasons == ("dark", "unfamiliar")
        assert face.uncertain is False
        assert recognizer.judged(face, 1.0).reasons == ("low_confidence", "dark", "unfamiliar")


def _by_hand(plane: np.ndarray) -> tuple[float, float]:
    """Mean and sharpness in float64, value by value of the definition."""
    values = plane.astype(np.float64)
    middle = values[1:-1, 1:-1]
    edges = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * middle
    contrast = values.std()
    return values.mean(), 1.0 if contrast < 1 else edges.std() / contrast


def _planes() -> np.ndarray:
    """Planes of all contrasts, some sharp in one part alone; even, black, white, and as rough as can be."""
    random = np.random.default_rng(5)
    rows, columns = np.mgrid[0:48, 0:48]
    planes = [random.integers(0, 256, (48, 48)), np.zeros((48, 48)), np.full((48, 48), 255), rows * 5, 255 - columns]
    planes += [(rows + columns) % 2 * 255, (rows + columns) % 2 + 33, rows // 24 * 255, np.full((48, 48), 34)]
    for sigma in np.linspace(0.3, 6, 200):
        blurred = cv2.GaussianBlur(random.normal(128, 60, (48, 48)), (0, 0), float(sigma))
        planes.append(blurred)
        planes.append(np.where((rows < 16) == (sigma % 0.2 < 0.1), random.normal(128, 3 * sigma, (48, 48)), blurred))
    planes.append(columns // 6)  # blurred, with hardly any contrast
    for sigma in np.linspace(6, 9, 60):  # nearly all edges in the middle, and few of them
        ramp = rows * 5.0
        ramp[18:30] += random.normal(0, sigma, (12, 48))
        planes.append(ramp)
    return np.asarray(np.clip(np.rint(np.stack(planes)), 0, 255), np.uint8)


def test_measures_and_reasons_are_those_of_float64() -> None:
    planes = _planes()
    expected = np.array([_by_hand(plane) for plane in planes])
    np.testing.assert_allclose(brightness(planes), expected[:, 0], rtol=1e-6)  # float32
    np.testing.assert_allclose(sharpness(planes), expected[:, 1], rtol=1e-6)
    blurred, dark = expected[:, 1] < BLURRED_BELOW, expected[:, 0] < DARK_BELOW
    assert 40 < blurred.sum() < len(planes) - 40
    detection = Detection(box=(0, 0, 48, 48))
    for batch in (1, 7, 32, len(planes)):
        reasons = []
        for start in range(0, len(planes), batch):
            some = planes[start : start + batch]
            found = find_doubts([detection] * len(some), some, [1.0] * len(some), None, Limits())
            reasons += [doubt.reasons for doubt in found]
        assert ["blurred" in given for given in reasons] == blurred.tolist()
        assert ["dark" in given for given in reasons] == dark.tolist()
