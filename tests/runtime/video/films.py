"""Videos for tests, made with OpenCV alone: any container, any frame times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import fer_runtime
from fer_runtime.images import Uint8Array, read_image

RATE = 20  # frames per second
SIZE = (160, 120)  # pixels


def write_film(path: Path, codec: str = "mp4v", *, frames: int | Iterable[Uint8Array] = 60, rate: float = RATE) -> Path:
    """A video of gray frames that grow brighter, or of the given ones."""
    writer: cv2.VideoWriter | None = None
    images = frames if not isinstance(frames, int) else map(gray_frame, range(frames))
    for image in images:
        if writer is None:
            size = (image.shape[1], image.shape[0])
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate, size)
            assert writer.isOpened(), f"this OpenCV writes no {codec} to {path.suffix}"
        writer.write(image)
    assert writer is not None
    writer.release()
    return path


def gray_frame(number: int) -> Uint8Array:
    """Noise on gray, so that every frame takes some bytes."""
    noise: Uint8Array = np.random.default_rng(number).integers(0, 40, (SIZE[1], SIZE[0], 3), np.uint8)
    noise += np.uint8(number % 200)
    return noise


def with_times(source: Path, path: Path, times: Sequence[int], *, rate: float = RATE) -> Path:
    """The frames of `source`, undecoded, in a file of their own with other times.

    Args:
        times: of each frame, in units of 1 / `rate` seconds.
    """
    capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    codec = int(capture.get(cv2.CAP_PROP_FOURCC))
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, rate, size, [cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1])
    _, header = capture.retrieve(None, int(capture.get(cv2.CAP_PROP_CODEC_EXTRADATA_INDEX)))
    head: Any = np.empty((1, 0), np.uint8) if header is None else header.reshape(1, -1)
    for time in times:
        _, packet = capture.read()
        writer.set(cv2.VIDEOWRITER_PROP_PTS, time)
        writer.write(np.concatenate([head, packet.reshape(1, -1)], 1))
        head = np.empty((1, 0), np.uint8)
    writer.release()
    capture.release()
    return path


def portraits(side: int = 150) -> list[Uint8Array]:
    """Two faces of the package's samples: a smile and a calm one."""
    faces: list[Uint8Array] = []
    for name, (x, y, width, height) in (("eileen", (120, 30, 210, 210)), ("grace", (110, 60, 300, 300))):
        (sample,) = (Path(fer_runtime.__file__).parent / "samples").glob(f"{name}*.jpg")
        faces.append(cv2.resize(read_image(sample)[y : y + height, x : x + width], (side, side)))  # type: ignore[arg-type]
    return faces


def scene(faces: Iterable[tuple[Uint8Array, int, int]], *, size: tuple[int, int] = (640, 360)) -> Uint8Array:
    """A frame with faces at x, y (of their upper left corners); parts outside are left out."""
    image = np.full((size[1], size[0], 3), (200, 205, 210), np.uint8)
    for face, x, y in faces:
        left, right = max(0, x), min(size[0], x + face.shape[1])
        if left < right:
            image[y : y + face.shape[0], left:right] = face[:, left - x : right - x]
    return image
