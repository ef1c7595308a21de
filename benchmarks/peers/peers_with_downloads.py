"""Packages that download their weights on first use, each as its README shows it.

Faces are whole 48 x 48 crops. All functions return probabilities in the order of EXPRESSIONS. Models with an eighth
class, contempt, lose that class, and the other seven are scaled to a sum of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np

EXPRESSIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
_SYNONYMS = {"anger": "angry", "happiness": "happy", "sadness": "sad"}


def load_rmn(source: Path, *, model: str, threads: int, batch: int) -> Any:
    """rmn: Residual Masking Network."""
    network: Any = import_module("rmn").RMN(face_detector=False)

    def classify(face: Any) -> Mapping[str, float]:
        _, _, shares = network.detect_emotion_for_single_face_image(face)
        return {name: share for by_label in shares for name, share in by_label.items()}

    return _one_by_one(classify)


def load_hsemotion_onnx(source: Path, *, model: str, threads: int, batch: int) -> Any:
    """hsemotion-onnx: EfficientNet-B0 trained on AffectNet."""
    recognizer: Any = import_module("hsemotion_onnx.facial_emotions").HSEmotionRecognizer(
        model_name="enet_b0_8_best_vgaf"
    )

    def classify(face: Any) -> Mapping[str, float]:
        _, scores = recognizer.predict_emotions(cv2.cvtColor(face, cv2.COLOR_GRAY2RGB), logits=False)
        return {recognizer.idx_to_class[index]: float(score) for index, score in enumerate(scores)}

    return _one_by_one(classify)


def load_emotiefflib(source: Path, *, model: str, threads: int, batch: int) -> Any:
    """emotiefflib with its ONNX engine: the successor of hsemotion."""
    recognizer: Any = import_module("emotiefflib.facial_analysis").EmotiEffLibRecognizer(
        engine="onnx", model_name="enet_b0_8_best_vgaf"
    )

    def classify(face: Any) -> Mapping[str, float]:
        _, scores = recognizer.predict_emotions(cv2.cvtColor(face, cv2.COLOR_GRAY2RGB), logits=False)
        return {recognizer.idx_to_emotion_class[index]: float(score) for index, score in enumerate(scores[0])}

    return _one_by_one(classify)


def load_deepface(source: Path, *, model: str, threads: int, batch: int) -> Any:
    """deepface: its emotion model, without face detection."""
    analyze: Any = import_module("deepface").DeepFace.analyze

    def classify(face: Any) -> Mapping[str, float]:
        image = cv2.cvtColor(face, cv2.COLOR_GRAY2BGR)
        (found,) = analyze(img_path=image, actions=("emotion",), detector_backend="skip", silent=True)
        return dict(found["emotion"])

    return _one_by_one(classify)


def load_online_emotion_detection(source: Path, *, model: str, threads: int, batch: int) -> Any:
    """online-emotion-detection: hsemotion's weights behind a streaming interface."""
    recognizer: Any = import_module("online_emotion").EmotionRecognizer("hsemotion", device="cpu")
    names = recognizer._classes  # the result has labels of the best class only

    def classify(face: Any) -> Mapping[str, float]:
        (found,) = recognizer(cv2.cvtColor(face, cv2.COLOR_GRAY2BGR)).emotions
        return dict(zip(names, map(float, found.probs), strict=True))

    return _one_by_one(classify)


def _one_by_one(classify: Callable[[Any], Mapping[str, float]]) -> Any:
    def run(faces: Any) -> Any:
        return np.stack([to_expressions(classify(face)) for face in faces])

    return run


def to_expressions(shares: Mapping[str, float]) -> Any:
    """Shares by a package's names as probabilities in the order of EXPRESSIONS."""
    by_name = {_SYNONYMS.get(name.lower(), name.lower()): share for name, share in shares.items()}
    found = np.array([by_name[name] for name in EXPRESSIONS], np.float64)
    return found / found.sum()
