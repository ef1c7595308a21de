"""Count the images without a face that a model is sure about, on images that `fer-export` does not fit on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.detectors import Detector
from fer_runtime.errors import ImageError
from fer_runtime.faces import prepare_face
from fer_runtime.images import Uint8Array, read_image
from fer_runtime.metrics import auroc, wilson_interval
from fer_runtime.model.find import named_file
from fer_runtime.recognizer import Recognizer

FloatArray = npt.NDArray[np.float32]
_Random = np.random.Generator
_Box = tuple[int, int, int, int]  # x, y, width, height in pixels

_SIDE = 96  # pixels that synthetic images are drawn in
_SMALLEST_CUT = 40  # pixels, of a photograph
_TRIES = 60  # for a place without a face


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one model on one kind of images."""

    model: str
    precision: str
    kind: str
    images: int
    auroc: float | None  # against real faces; None without them
    sure_before: float  # share with a confidence that is not low
    sure: float  # of those, without the images that are unfamiliar
    sure_low: float  # 95 % interval of `sure`
    sure_high: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _noise(random: _Random) -> npt.NDArray[Any]:
    return random.integers(0, 256, (48, 48))


def _cells(random: _Random) -> npt.NDArray[Any]:
    """Voronoi cells in a few grays: stones, tiles, leaves from above."""
    count = int(random.integers(5, 60))
    places, tones = random.uniform(0, _SIDE, (count, 2)), random.uniform(0, 255, count)
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE]
    nearest = np.hypot(rows[..., None] - places[:, 0], columns[..., None] - places[:, 1]).argmin(-1)
    plane: npt.NDArray[Any] = tones[nearest] + random.normal(0, random.uniform(0, 12), (_SIDE, _SIDE))
    return plane


def _curves(random: _Random) -> npt.NDArray[Any]:
    """A drawing of one long line."""
    image = np.full((_SIDE, _SIDE), random.uniform(150, 255), np.uint8)
    t = np.linspace(0, 2 * np.pi, 300)
    first, second, third = random.integers(1, 9, 3)
    x = 48 + 26 * np.cos(first * t) + 18 * np.cos(second * t + random.uniform(0, 6))
    y = 48 + 26 * np.sin(first * t) + 18 * np.sin(third * t + random.uniform(0, 6))
    line = np.stack([x, y], 1).astype(np.int32)
    cv2.polylines(image, [line], False, float(random.uniform(0, 110)), int(random.integers(1, 4)), cv2.LINE_AA)
    return image


def _chart(random: _Random) -> npt.NDArray[Any]:
    """A screenshot of a bar chart with axes and numbers."""
    image = np.full((_SIDE, _SIDE), 255 if random.integers(2) else 30, np.uint8)
    ink = float(255 - int(image[0, 0]))
    bars = int(random.integers(3, 10))
    for number in range(bars):
        left, height = 14 + number * 78 // bars, int(random.integers(4, 70))
        tone = float(random.uniform(60, 200))
        cv2.rectangle(image, (left, 84 - height), (left + 60 // bars, 84), tone, -1)
        cv2.putText(image, str(height), (left, 94), cv2.FONT_HERSHEY_PLAIN, 0.5, ink, 1, cv2.LINE_AA)
    cv2.line(image, (12, 6), (12, 84), ink, 1)
    cv2.line(image, (12, 84), (94, 84), ink, 1)
    return image


MADE: dict[str, Callable[[_Random], npt.NDArray[Any]]] = {
    "noise": _noise,
    "cells": _cells,
    "curves": _curves,
    "charts": _chart,
}


def made_images(kind: str, count: int, *, seed: int = 0) -> Uint8Array:
    """`count` images of a kind of MADE, uint8 (count, 48, 48)."""
    random = np.random.Generator(np.random.PCG64([2026, seed, list(MADE).index(kind)]))
    planes = []
    for _ in range(count):
        plane = np.clip(np.rint(MADE[kind](random)), 0, 255).astype(np.uint8)
        planes.append(np.asarray(cv2.resize(plane, (48, 48), interpolation=cv2.INTER_AREA), np.uint8))
    return np.stack(planes)


def cut_backgrounds(photos: Iterable[Path], detector: Detector, count: int, *, seed: int = 0) -> list[Uint8Array]:
    """Squares cut out of photographs where no face is, in equal numbers from each.

    Args:
        photos: files; unreadable ones are left out, images of up to 64 pixels are taken whole.
        detector: tells where faces are; a cut touches none of them.
        count: cuts, at most.
    """
    random = np.random.Generator(np.random.PCG64([2026, seed]))
    paths = sorted(photos)
    each = max(1, -(-count // max(1, len(paths))))
    # Many photographs: some of them.
    chosen = [paths[int(place)] for place in random.permutation(len(paths))[:count]]
    cuts: list[Uint8Array] = []
    for path in chosen:
        try:
            image = read_image(str(path))
        except ImageError:
            continue
        height, width = image.shape[:2]
        if min(height, width) <= 64:
            cuts.append(image)
            continue
        faces = [detection.box for detection in detector.detect(image)]
        for _ in range(each):
            box = _free_box(random, width, height, faces)
            if box is not None:
                x, y, side, _ = box
                cuts.append(image[y : y + side, x : x + side])
    return cuts[:count]


def _free_box(random: _Random, width: int, height: int, faces: list[_Box]) -> _Box | None:
    largest = min(width, height) // 2
    for _ in range(_TRIES):
        side = int(random.integers(min(_SMALLEST_CUT, largest - 1), largest))
        x, y = int(random.integers(0, width - side + 1)), int(random.integers(0, height - side + 1))
        if not any(
            x < left + across and left < x + side and y < top + down and top < y + side
            for left, top, across, down in faces
        ):
            return x, y, side, side
    return None


def measure(
    recognizer: Recognizer, kinds: dict[str, list[Uint8Array]], real: Uint8Array | None
) -> tuple[list[Result], float | None]:
    """Measure a model on images without a face.

    Args:
        recognizer: with a model whose file has a confidence threshold.
        kinds: images by their kind, of any size.
        real: crops of real faces, uint8 (faces, 48, 48).

    Returns:
        A result for each kind, and the share of `real` that is unfamiliar.
    """
    metadata = recognizer.metadata
    limit = metadata.unfamiliar_above
    least = metadata.uncertain_below if metadata.uncertain_below is not None else 0.0

    def answers(images: Iterable[Uint8Array]) -> tuple[FloatArray, FloatArray | None]:
        faces = np.stack([prepare_face(image, size=recognizer.size, color=recognizer.color) for image in images])
        found = recognizer.answer(faces)
        return found.probabilities.max(1), found.unfamiliarity

    _, of_real = (None, None) if real is None else answers(real)
    results = []
    for kind, images in kinds.items():
        confidences, strange = answers(images)
        sure = confidences >= least
        known = sure.copy()
        if strange is not None and limit is not None:
            known &= strange <= limit
        low, high = wilson_interval(int(known.sum()), len(known))
        results.append(
            Result(
                model=named_file(recognizer.path).name,
                precision=metadata.precision,
                kind=kind,
                images=len(images),
                auroc=None if strange is None or of_real is None else auroc(of_real, strange),
                sure_before=float(sure.mean()),
                sure=float(known.mean()),
                sure_low=low,
                sure_high=high,
            )
        )
    lost = None if of_real is None or limit is None else float((~(of_real <= limit)).mean())
    return results, lost


def format_results(results: list[Result]) -> str:
    """The table that `fer-bench unfamiliar` prints."""
    lines = [f"{'model':12} {'images':14} {'count':>6} {'AUROC':>7} {'sure before':>12} {'sure now':>9}  95 % interval"]
    for result in results:
        auroc = "" if result.auroc is None else f"{result.auroc:.4f}"
        lines.append(
            f"{result.model + ' ' + result.precision:12} {result.kind:14} {result.images:6} {auroc:>7} "
            f"{result.sure_before:12.1%} {result.sure:9.1%}  {result.sure_low:.1%} to {result.sure_high:.1%}"
        )
    return "\n".join(lines)
