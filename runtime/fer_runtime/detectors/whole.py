"""The whole image as one face, for folders of crops."""

from __future__ import annotations

from fer_runtime.detectors import Detection, DetectorOptions
from fer_runtime.images import Uint8Array


class WholeDetector:
    """Takes every image as one face."""

    name = "whole"

    def detect(self, image: Uint8Array) -> tuple[Detection, ...]:
        """One face: the image."""
        height, width = image.shape[:2]
        return (Detection(box=(0, 0, width, height)),)


def create(options: DetectorOptions) -> WholeDetector:
    """The detector for the registry."""
    return WholeDetector()
