"""Where crops lie around boxes, worked by hand; the detectors' constants against real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fer_runtime.detectors import Detection, haar, square_crop
from fer_runtime.images import Uint8Array, read_image
from studies.crop import detector_box, enlarge, find_boxes, measure_placement


class _Fixed:
    """A detector that always sees a box of 160 x 120 pixels at (100, 110)."""

    name = "fixed"

    def detect(self, image: Uint8Array) -> tuple[Detection, ...]:
        return (Detection(box=square_crop((100, 110, 160, 120), (1.2, 0.05))),)


def test_an_enlarged_face_lies_in_the_middle_of_its_repeated_border() -> None:
    face = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    image = enlarge(face)
    assert image.shape == (384, 384)
    assert (image[0, :96] == image[96, 96]).all()
    # Bicubic weights of a pixel's own block average to nearly the pixel on a smooth image; here a plain one.
    assert (enlarge(np.full((48, 48), 77, np.uint8)) == 77).all()


def test_placement_worked_by_hand() -> None:
    boxes = find_boxes(_Fixed(), (1.2, 0.05), np.zeros((3, 48, 48), np.uint8))
    # The longer side is 160, the centre (180, 170), whatever the runtime's own crop around it.
    assert boxes[2] == pytest.approx((180, 170, 160), abs=1)
    placed = measure_placement(list(boxes.values()))
    # The image is 192 pixels at the centre (192, 192): 192 / 160, and (192 - 170) / 160.
    assert placed.faces == 3
    assert placed.side == pytest.approx((1.2, 1.2, 1.2), abs=0.01)
    assert placed.below == pytest.approx((0.1375, 0.1375, 0.1375), abs=0.01)


def test_a_boxs_crop_can_be_undone() -> None:
    detection = Detection(box=square_crop((40, 50, 200, 260), (1.1, -0.1)))
    assert detector_box(detection, (1.1, -0.1)) == pytest.approx((140, 180, 260), abs=1)


def test_no_box_is_a_callers_mistake() -> None:
    with pytest.raises(ValueError, match="no boxes"):
        measure_placement([])


def test_haars_crop_is_that_of_real_training_images(real_data: Path) -> None:
    paths = sorted((real_data / "images" / "validation").glob("*/*.jpg"))[::36]
    faces = np.stack([read_image(path) if read_image(path).ndim == 2 else read_image(path)[..., 0] for path in paths])
    boxes = find_boxes(haar.HaarDetector(min_face=1), haar._CROP, faces)
    placed = measure_placement(list(boxes.values()))
    # About eighty faces: a median is known to about 0.02.
    assert placed.side[1] == pytest.approx(haar._CROP[0], abs=0.05)
    assert placed.below[1] == pytest.approx(haar._CROP[1], abs=0.03)
