"""Find the faces of an image with the chosen detector; "auto" chooses by the image's size."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

import cv2

from fer_runtime.detectors import Detection, Detector, SearchesAgain, create_detector, find_detector
from fer_runtime.errors import NO_MEMORY
from fer_runtime.faces import is_face_crop
from fer_runtime.files import sha256_of
from fer_runtime.images import Uint8Array, is_no_memory


class FaceSearch:
    """Finds the faces of images. Several threads may use it at once.

    Args:
        detector: "auto" (face crops are taken whole; larger images are searched, with YuNet if its file is available,
            else with Haar), or "haar", "yunet" or "whole" for every image.
        yunet: YuNet's file; None takes the one that `fer-infer --fetch-yunet` left in the cache folder.
        min_face: smallest side of a face in pixels; Haar finds none under a 64th of the image's long side.

    Raises:
        ModelFileError: YuNet is asked for, and its file is missing or damaged.
        ValueError: no detector has that name.
    """

    def __init__(self, detector: str = "auto", *, yunet: Path | str | None = None, min_face: int = 24) -> None:
        self.detector = detector
        self.yunet = None if yunet is None else Path(yunet).absolute()  # the process may change its working folder
        self.min_face = min_face
        # Decided once: a file that arrives in the cache folder later must not split a run's rows.
        self.detector_used = find_detector(detector, yunet=self.yunet)
        self._detectors = threading.local()
        self._shared_detector: Detector | None = None
        # Fails here for an unknown name or a file that is no YuNet, not in the middle of a folder.
        if detector != "auto" or yunet is not None:
            self._detector()

    def yunet_sha256(self) -> str | None:
        """The hash of YuNet's file, hexadecimal; None where it is not used."""
        if self.detector_used != "yunet":
            return None
        from fer_runtime.detectors.yunet_file import cached_yunet

        return sha256_of(self.yunet or cached_yunet())

    def detect(self, image: Uint8Array, *, is_frame: bool = False) -> tuple[Detection, ...]:
        """The faces of `image`, uint8 (height, width, 3) in BGR or (height, width), from left to right.

        Args:
            is_frame: the image is a frame of a video. A frame without a face is not searched again for smaller
                faces: there are many such frames, and the next one comes soon.

        Raises:
            MemoryError: there is not enough memory.
        """
        try:
            return self._found(image, is_frame=is_frame)
        except cv2.error as error:
            if is_no_memory(error):
                raise MemoryError(f"the image {NO_MEMORY}") from error
            raise

    def _found(self, image: Uint8Array, *, is_frame: bool) -> tuple[Detection, ...]:
        if self.detector == "auto" and (whole := _whole_crop(*image.shape[:2])) is not None:
            return whole
        detector = self._detector()
        found = detector.detect(image)
        if found or is_frame or not isinstance(detector, SearchesAgain):
            return found
        return detector.search_again(image)

    def _detector(self) -> Detector:
        # OpenCV's cascades keep state between calls, so each thread has its own; YuNet's session is for all threads.
        detector: Detector | None = self._shared_detector or getattr(self._detectors, "value", None)
        if detector is None:
            detector = create_detector(self.detector_used, min_face=self.min_face, yunet=self.yunet)
            if getattr(detector, "is_thread_safe", False):
                self._shared_detector = detector
            else:
                self._detectors.value = detector
        return detector


@lru_cache
def _whole_crop(height: int, width: int) -> tuple[Detection, ...] | None:
    """The whole image as a face, where an image of this size is taken for one."""
    # Crops of a folder have one size, or few: their detection is made once.
    return (Detection(box=(0, 0, width, height)),) if is_face_crop(width, height) else None
