"""YuNet (Wu et al., 2023, MIT) through ONNX Runtime: faces with five landmarks, in a few milliseconds.

The decoding is that of OpenCV's FaceDetectorYN (modules/objdetect/src/face_detect.cpp), in numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.detectors import Detection, DetectorOptions, square_crop
from fer_runtime.detectors.yunet_file import ADVICE, cached_yunet, given_yunet
from fer_runtime.errors import ModelFileError
from fer_runtime.images import Uint8Array
from fer_runtime.model.onnx_file import read_model_bytes, read_onnx
from fer_runtime.model.session import open_session
from fer_runtime.model.structure import OPERATORS, check_operators

FloatArray = npt.NDArray[np.float32]

_LONG_SIDE = 640  # pixels that the image is shrunk to; all of 64 faces in 63 portraits, no false box
_SCORE = 0.7
_OVERLAP = 0.3  # intersection over union above which two boxes are one face
_STRIDES = (8, 16, 32)
_CANDIDATES = 5000
# How FER2013's crop lies around YuNet's box, the median over its training images (docs/detection.md):
# side of the crop, and how far its centre lies below the box's, in units of the box's longer side.
_CROP = (1.0, 0.02)


class YuNetDetector:
    """Faces by a YuNet model file of the OpenCV Zoo."""

    name = "yunet"
    is_thread_safe = True  # ONNX Runtime's sessions may run in several threads at once

    def __init__(self, path: Path, *, min_face: int = 24, threads: int = 1) -> None:
        """Load the file.

        Args:
            path: face_detection_yunet_2023mar.onnx or a later one.
            min_face: smallest side of a face in pixels.
            threads: of ONNX Runtime.

        Raises:
            ModelFileError: the file is missing or no YuNet.
        """
        content = read_model_bytes(path, advice=ADVICE)
        file = read_onnx(content, source=str(path), advice=ADVICE)
        # YuNet enlarges feature maps, which no classifier does.
        check_operators(file, source=str(path), allowed=OPERATORS | {"Resize"}, advice=ADVICE)
        self._session = open_session(content, threads=threads, source=str(path)).session
        (self._input, *_), outputs = self._session.get_inputs(), {output.name for output in self._session.get_outputs()}
        wanted = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in _STRIDES]
        if not set(wanted) <= outputs:
            raise ModelFileError(
                f"{path} is not a YuNet face detector: it has the outputs {', '.join(sorted(outputs))}; {ADVICE}"
            )
        self._outputs = wanted
        height, width = self._input.shape[2:]
        # The file of 2023 takes 640 x 640 only, later ones any multiple of 32.
        self._fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self._min_face = min_face

    def detect(self, image: Uint8Array) -> tuple[Detection, ...]:
        """Faces in `image`, from left to right; the boxes are crops as FER2013 has them."""
        faces, scores, landmarks = self.find(image)
        found = []
        for (x, y, width, height), score, points in zip(faces, scores, landmarks, strict=True):
            if max(width, height) < self._min_face:
                continue
            found.append(
                Detection(
                    box=square_crop((x, y, width, height), _CROP),
                    score=float(score),
                    landmarks=tuple((float(px), float(py)) for px, py in points),
                )
            )
        return tuple(sorted(found, key=lambda face: face.box))

    def find(self, image: Uint8Array) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The detector's own answer, best face first.

        Returns:
            Boxes (faces, 4) as x, y, width, height in pixels of `image`, scores (faces,), landmarks (faces, 5, 2).
        """
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)  # type: ignore[assignment]
        height, width = image.shape[:2]
        limit = min(self._fixed) if self._fixed else _LONG_SIDE
        shrink = min(1.0, limit / max(height, width))
        if shrink < 1:
            size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        rows, columns = self._fixed or tuple(-(-side // 32) * 32 for side in image.shape[:2])
        padded = np.zeros((1, 3, rows, columns), np.float32)
        padded[0, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        answers = dict(zip(self._outputs, self._session.run(self._outputs, {self._input.name: padded}), strict=True))
        parts = [_decode(answers, stride, columns) for stride in _STRIDES]
        boxes, scores, landmarks = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        best = np.argsort(-scores, kind="stable")[:_CANDIDATES]
        kept = best[_suppress(boxes[best])]
        return boxes[kept] / shrink, scores[kept], landmarks[kept] / shrink


def _decode(answers: dict[str, Any], stride: int, columns: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Boxes, scores and landmarks above the threshold, of the cells of one stride."""
    is_face, is_object = (np.clip(answers[f"{kind}_{stride}"][0, :, 0], 0, 1) for kind in ("cls", "obj"))
    scores = np.sqrt(is_face * is_object)
    (chosen,) = np.nonzero(scores >= _SCORE)
    row, column = np.divmod(chosen, columns // stride)
    cell = np.stack([column, row], 1).astype(np.float32)
    raw = answers[f"bbox_{stride}"][0, chosen]
    center, size = (cell + raw[:, :2]) * stride, np.exp(raw[:, 2:]) * stride
    points = (answers[f"kps_{stride}"][0, chosen].reshape(-1, 5, 2) + cell[:, None]) * stride
    return np.concatenate([center - size / 2, size], 1), scores[chosen], points


def _suppress(boxes: FloatArray) -> list[int]:
    """Indices that stay after non-maximum suppression; `boxes` come best first."""
    left, top = boxes[:, 0], boxes[:, 1]
    right, bottom = left + boxes[:, 2], top + boxes[:, 3]
    area = boxes[:, 2] * boxes[:, 3]
    kept: list[int] = []
    open_ = np.arange(len(boxes))
    while len(open_):
        best, rest = open_[0], open_[1:]
        kept.append(int(best))
        width = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest])
        height = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        open_ = rest[shared / (area[best] + area[rest] - shared) <= _OVERLAP]
    return kept


def create(options: DetectorOptions) -> YuNetDetector:
    """The detector for the registry."""
    path = cached_yunet() if options.yunet is None else given_yunet(options.yunet)
    return YuNetDetector(path, min_face=options.min_face)
