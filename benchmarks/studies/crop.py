"""Where FER2013's crops lie around the boxes of the face detectors: `python -m benchmarks.studies.crop`.

The two figures of each detector's `_CROP` come from the first table. The second table shows the accuracy with other
crops, the third the time of a photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import thread_time
from typing import Any

import click
import cv2
import numpy as np

from fer_bench.accuracy import LabelledImages, read_labelled_images
from fer_bench.console import FILE, FOLDER
from fer_bench.raters import labelled_by_raters
from fer_runtime.batch.sources import sample_images
from fer_runtime.command import FerCommand
from fer_runtime.detectors import Detection, Detector, create_detector, find_detector, square_crop
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.faces import prepare_face
from fer_runtime.images import Uint8Array, read_image
from fer_runtime.recognizer import Recognizer

ENLARGED = 4  # a face of 48 pixels becomes one of 192
BORDER = FACE_SIZE * ENLARGED // 2  # pixels around the enlarged image
SIDES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)  # of the crop, in units of the fitted one


@dataclass(frozen=True, slots=True, kw_only=True)
class CropPlacement:
    """Where the images' own squares are relative to a detector's boxes, as quartiles."""

    faces: int  # in which the detector found a face
    side: tuple[float, float, float]  # of the square, in units of the box's longer side
    below: tuple[float, float, float]  # distance of its centre below that of the box, in the same unit


def enlarge(face: Uint8Array) -> Uint8Array:
    """A crop that a detector can search, uint8 (384, 384): four times as large, with its border repeated."""
    side = FACE_SIZE * ENLARGED
    large: Any = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
    padded: Any = cv2.copyMakeBorder(large, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE)
    image: Uint8Array = padded
    return image


def detector_box(detection: Detection, crop: tuple[float, float]) -> tuple[float, float, float]:
    """Centre x, centre y and longer side of the detected box: `square_crop` undone, within a pixel of rounding."""
    x, y, width, height = detection.box
    longer = width / crop[0]
    return x + width / 2, y + height / 2 - crop[1] * longer, longer


def measure_placement(boxes: Sequence[tuple[float, float, float]]) -> CropPlacement:
    """Quartiles over boxes (centre x, centre y, longer side) in pixels of an `enlarge`d image.

    Raises:
        ValueError: there are none.
    """
    if not boxes:
        raise ValueError("no boxes to measure; the detector found no face")
    found = np.array(boxes)
    middle = BORDER + FACE_SIZE * ENLARGED / 2
    quartiles = [25, 50, 75]
    side = np.percentile(FACE_SIZE * ENLARGED / found[:, 2], quartiles)
    below = np.percentile((middle - found[:, 1]) / found[:, 2], quartiles)
    return CropPlacement(
        faces=len(found),
        side=(float(side[0]), float(side[1]), float(side[2])),
        below=(float(below[0]), float(below[1]), float(below[2])),
    )


def find_boxes(
    detector: Detector, crop: tuple[float, float], faces: Uint8Array
) -> dict[int, tuple[float, float, float]]:
    """The largest box that the detector finds in each face, by the index of the face."""
    found = {}
    for index, face in enumerate(faces):
        detections = detector.detect(enlarge(face))
        if detections:
            found[index] = detector_box(max(detections, key=lambda detection: detection.box[2]), crop)
    return found


def measure_sides(
    recognizer: Recognizer,
    images: LabelledImages,
    boxes: dict[int, tuple[float, float, float]],
    crop: tuple[float, float],
) -> list[float]:
    """Accuracy on the faces of `boxes`, cropped at each of SIDES times the fitted side."""
    accuracies = []
    indices = np.array(list(boxes))
    for factor in SIDES:
        crops = []
        for index, (x, y, longer) in boxes.items():
            square = (x - longer / 2, y - longer / 2, longer, longer)
            crops.append(prepare_face(enlarge(images.faces[index]), square_crop(square, (factor * crop[0], crop[1]))))
        right = recognizer.classify(np.stack(crops)).argmax(1) == images.labels[indices]
        accuracies.append(float(right.mean()))
    return accuracies


def photograph_ms(detector: Detector, *, runs: int = 30) -> tuple[float, int]:
    """Median CPU milliseconds of one search of a 1920 x 1080 photograph by this thread, and the faces in it."""
    path = next(path for path in sample_images() if "group" in path)
    enlarged: Any = cv2.resize(read_image(path), (1920, 1080), interpolation=cv2.INTER_CUBIC)
    faces = len(detector.detect(enlarged))
    times = []
    for _ in range(runs):
        started = thread_time()
        detector.detect(enlarged)
        times.append(thread_time() - started)
    return 1000 * float(np.median(times)), faces


@click.command(cls=FerCommand)
@click.option("--data", type=FOLDER, required=True, help="Folder of class folders with 48 x 48 faces, such as FER2013.")
@click.option("--yunet", type=FILE, help="YuNet's file, if not in the cache.")
@click.option("--model", default="v0", show_default=True, help="Model to measure.")
@click.option("--step", type=click.IntRange(min=1), default=4, show_default=True, help="Use every STEP-th image.")
@click.option("--votes", metavar="FILE|ferplus", help="Take the raters' strict majorities as labels.")
def main(data: Path, yunet: Path | None, model: str, step: int, votes: str | None) -> None:
    """Measure where labelled crops are relative to the detectors' boxes, and the accuracy with other crops."""
    from fer_runtime.detectors import haar
    from fer_runtime.detectors import yunet as yunet_module

    read = read_labelled_images(data)
    if votes is not None:
        read = labelled_by_raters(read, votes)
    images = replace(read, paths=read.paths[::step], faces=read.faces[::step], labels=read.labels[::step])
    # One thread, because thread_time does not include other threads of OpenCV.
    cv2.setNumThreads(1)
    used = {"haar": haar._CROP}
    if find_detector("auto", yunet=yunet) == "yunet":
        used["yunet"] = yunet_module._CROP
    else:
        click.echo("no YuNet: fetch it with fer-infer --fetch-yunet, or give --yunet FILE", err=True)
    with Recognizer(model) as recognizer:
        for name, crop in used.items():
            detector = create_detector(name, min_face=1, yunet=yunet)
            boxes = find_boxes(detector, crop, images.faces)
            placed = measure_placement(list(boxes.values()))
            click.echo(f"{name}: found {placed.faces} of {len(images.faces)}; the runtime's crop is {crop}")
            for title, (low, middle, high) in (("side", placed.side), ("below", placed.below)):
                click.echo(f"  {title:6} {middle:5.2f} [{low:.2f}, {high:.2f}]")
            accuracies = measure_sides(recognizer, images, boxes, crop)
            click.echo("  crop, times the runtime's  " + "".join(f"{side:>7g}" for side in SIDES))
            click.echo("  accuracy, %                " + "".join(f"{100 * accuracy:>7.1f}" for accuracy in accuracies))
            own = recognizer.classify(images.faces[list(boxes)]).argmax(1) == images.labels[list(boxes)]
            click.echo(f"  the images' own squares  {100 * own.mean():>7.1f}")
            milliseconds, faces = photograph_ms(detector)
            click.echo(f"  1920 x 1080 photograph     {milliseconds:>7.1f} ms, {faces} faces")


if __name__ == "__main__":
    main()
