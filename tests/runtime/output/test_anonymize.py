"""Copies whose faces nobody finds: searched by both detectors, in images and in a video."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.commands import run_python_text

import fer_runtime
from fer_runtime.detectors import Detector
from fer_runtime.detectors.haar import HaarDetector
from fer_runtime.detectors.yunet import YuNetDetector
from fer_runtime.output.anonymize import BLOCKS, METHODS, CoveredFaces, cover_faces
from fer_runtime.results import Face
from fer_runtime.video.results import FrameResult, TrackedFace

SAMPLES = Path(fer_runtime.__file__).parent / "samples"


@pytest.fixture(scope="module")
def detectors() -> list[Detector]:
    """Haar, and YuNet where its file is there: FER_EDGE_YUNET names it."""
    found: list[Detector] = [HaarDetector()]
    if file := os.environ.get("FER_EDGE_YUNET"):
        found.append(YuNetDetector(Path(file)))
    return found


@pytest.fixture(scope="module")
def group() -> np.ndarray:
    image = cv2.imread(str(SAMPLES / "group.jpg"))
    assert image is not None
    return np.asarray(image, np.uint8)


def _faces_in(image: np.ndarray, detectors: list[Detector]) -> int:
    return sum(len(detector.detect(image)) for detector in detectors)


@pytest.mark.parametrize("method", METHODS)
def test_no_detector_finds_a_face_in_a_covered_image(method: str, group: np.ndarray, detectors: list[Detector]) -> None:
    boxes = [detection.box for detection in detectors[0].detect(group)]
    assert len(boxes) == 5
    covered = cover_faces(group, boxes, method)
    assert _faces_in(group, detectors) >= 5
    assert _faces_in(covered, detectors) == 0
    assert _faces_in(cv2.cvtColor(covered, cv2.COLOR_BGR2GRAY), detectors) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_covered_face_keeps_no_more_than_its_few_values(method: str) -> None:
    # Two faces whose means agree block by block leave the same copy: what differs between them cannot be restored.
    random = np.random.default_rng(0)
    size = 16 * BLOCKS
    first = random.integers(0, 256, (size, size)).astype(np.uint8)
    blocks = first.reshape(BLOCKS, 16, BLOCKS, 16).transpose(0, 2, 1, 3).reshape(BLOCKS, BLOCKS, -1)
    turned = blocks[:, :, random.permutation(256)].reshape(BLOCKS, BLOCKS, 16, 16).transpose(0, 2, 1, 3)
    second = np.ascontiguousarray(turned.reshape(size, size))
    assert not np.array_equal(first, second)
    whole = [(0, 0, size, size)]
    assert np.array_equal(cover_faces(first, whole, method), cover_faces(second, whole, method))


def test_only_the_faces_are_covered(group: np.ndarray) -> None:
    covered = cover_faces(group, [(100, 100, 40, 40), (-30, -30, 40, 40), (5000, 0, 9, 9)], "solid")
    changed = np.argwhere((covered != group).any(-1))
    inside = ((changed >= 90) & (changed < 150)).all(1) | (changed < 20).all(1)
    assert inside.all()
    assert len(changed) > 0


def _frame(time: float, boxes: dict[int, tuple[int, int, int, int]], *, is_cut: bool = False) -> FrameResult:
    faces = tuple(
        TrackedFace(track=track, face=Face(box=box, expression="sad", confidence=1.0, probabilities={"sad": 1.0}))
        for track, box in boxes.items()
    )
    return FrameResult(path="", frame=0, time=time, faces=faces, is_cut=is_cut)


def test_a_hidden_face_stays_covered_for_a_second_and_not_beyond_a_cut() -> None:
    covered = CoveredFaces()
    box = (100, 100, 40, 40)
    assert covered.update(_frame(0.0, {1: box})) == [box]
    (place,) = covered.update(_frame(0.9, {}))
    x, y, width, height = place
    # It may have moved: the place contains the old one with room around it.
    assert x < 100
    assert y < 100
    assert x + width > 140
    assert y + height > 140
    assert covered.update(_frame(1.01, {})) == []
    covered.update(_frame(2.0, {2: box}))
    assert covered.update(_frame(2.1, {}, is_cut=True)) == []


def _run(*arguments: object, input: bytes = b"") -> subprocess.CompletedProcess[str]:
    command = ("-m", "fer_runtime", "--model", "v0", "--detector", "haar", *arguments)
    return run_python_text(*command, input=input, timeout=120)


def test_copies_of_a_folder_have_no_faces_and_no_exif(tmp_path: Path, detectors: list[Detector]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    content = (SAMPLES / "grace_hopper.jpg").read_bytes()
    # A marker of EXIF with a place and a name, as cameras write it: APP1 behind the start of the image.
    secret = b"Exif\0\0" + b"N 48.2 E 16.4, Mrs Example"
    marked = content[:2] + b"\xff\xe1" + (len(secret) + 2).to_bytes(2, "big") + secret + content[2:]
    (folder / "portrait.jpg").write_bytes(marked)
    (folder / "empty.png").write_bytes(cv2.imencode(".png", np.full((200, 200, 3), 90, np.uint8))[1].tobytes())
    run = _run(folder, "--annotate", tmp_path / "safe", "--anonymize", "blur", "--output", tmp_path / "rows.jsonl")
    assert run.returncode == 0, run.stderr
    assert "no EXIF" in run.stderr
    assert "no face was found in 1 image" in run.stderr
    copy = (tmp_path / "safe" / "portrait.jpg").read_bytes()
    assert b"Mrs Example" not in copy
    image = cv2.imread(str(tmp_path / "safe" / "portrait.jpg"))
    assert image is not None
    assert _faces_in(np.asarray(image, np.uint8), detectors) == 0


def _moving_portrait() -> list[np.ndarray]:
    """Frames of a portrait that moves to the right, uint8 (300, 256, 3) in BGR."""
    portrait = cv2.imread(str(SAMPLES / "grace_hopper.jpg"))
    assert portrait is not None
    small = cv2.resize(portrait, (256, 300), interpolation=cv2.INTER_AREA)
    return [np.roll(small, 4 * number, axis=1) for number in range(8)]


def _faces_by_frame(film: Path, detectors: list[Detector]) -> list[int]:
    capture = cv2.VideoCapture(str(film))
    faces: list[int] = []
    while True:
        read, frame = capture.read()
        if not read:
            return faces
        faces.append(_faces_in(np.asarray(frame, np.uint8), detectors))


def test_every_frame_of_an_anonymized_video_is_without_faces(tmp_path: Path, detectors: list[Detector]) -> None:
    film = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"mp4v"), 10, (256, 300))
    for frame in _moving_portrait():
        writer.write(frame)
    writer.release()
    run = _run(film, "--annotate", tmp_path / "safe", "--anonymize", "pixelate")
    assert run.returncode == 0, run.stderr
    assert "no sound" in run.stderr
    assert _faces_by_frame(tmp_path / "safe" / "film.annotated.mp4", detectors) == [0] * 8


def test_every_frame_of_an_anonymized_piped_video_is_without_faces(tmp_path: Path, detectors: list[Detector]) -> None:
    pytest.importorskip("av", reason="PyAV is missing: pip install 'fer-edge[stream]'")
    content = b"".join(frame.tobytes() for frame in _moving_portrait())
    piped = ("-", "--input-format", "raw:bgr24:256x300@10", "--name", "door")
    run = _run(*piped, "--annotate", tmp_path / "safe", "--anonymize", "pixelate", input=content)
    assert run.returncode == 0, run.stderr
    assert "no sound" in run.stderr
    faces = _faces_by_frame(tmp_path / "safe" / "door.annotated.mp4", detectors)
    assert len(faces) >= 8
    assert set(faces) == {0}


def test_anonymize_needs_a_folder_for_the_copies() -> None:
    run = _run("--samples", "--anonymize", "solid")
    assert run.returncode == 2
    assert "only with --annotate DIR" in run.stderr
