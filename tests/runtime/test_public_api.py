"""What `from fer_runtime import ...` offers, and that importing it changes nothing of the host process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from tests.runtime.tiny_models import band_face, write_band_model

import fer_runtime
from fer_runtime import (
    EXPRESSIONS,
    FerError,
    FrameResult,
    ImageError,
    ImageResult,
    Recognizer,
    Tracker,
    available_models,
    find_images,
    recognize_files,
    recognize_video,
)
from fer_runtime.model.find import MODEL_NAMES


def test_every_public_name_is_there() -> None:
    assert [name for name in fer_runtime.__all__ if not hasattr(fer_runtime, name)] == []
    assert sorted(dir(fer_runtime)) == sorted(fer_runtime.__all__)
    assert issubclass(ImageError, FerError)
    assert {model.name for model in available_models()} >= set(MODEL_NAMES)


def test_a_folder_is_recognized_by_public_names_alone(tmp_path: Path) -> None:
    model = write_band_model(tmp_path / "bands.onnx")
    (tmp_path / "deep").mkdir()
    cv2.imwrite(str(tmp_path / "0.png"), band_face(0))
    cv2.imwrite(str(tmp_path / "deep" / "3.png"), band_face(3))
    assert list(find_images(tmp_path)) == [str(tmp_path / "0.png")]
    assert list(find_images([tmp_path / "deep", str(tmp_path / "*.png")])) == [
        str(tmp_path / "deep" / "3.png"),
        str(tmp_path / "0.png"),
    ]
    with Recognizer(model) as recognizer:
        results = list(recognize_files(recognizer, find_images(tmp_path, recursive=True)))
    assert all(isinstance(result, ImageResult) for result in results)
    assert [result.faces[0].expression for result in results] == [EXPRESSIONS[0], EXPRESSIONS[3]]


def test_a_video_is_recognized_by_public_names_alone(tmp_path: Path) -> None:
    path = tmp_path / "still.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(cv2.cvtColor(cv2.resize(band_face(2), (64, 48)), cv2.COLOR_GRAY2BGR))
    writer.release()
    with Recognizer(write_band_model(tmp_path / "bands.onnx"), detector="whole") as recognizer:
        frames = list(recognize_video(recognizer, path))
    assert len(frames) == 3
    assert all(isinstance(frame, FrameResult) for frame in frames)


def test_paths_of_any_kind_have_rows_that_json_can_hold(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), band_face(0))
    with Recognizer(write_band_model(tmp_path / "bands.onnx")) as recognizer:
        (row,) = recognize_files(recognizer, tmp_path.glob("*.png"))
        assert json.loads(json.dumps(row.to_dict()))["path"] == str(tmp_path / "0.png")
        for mistake in (band_face(0), b"content of a file", None, 3):
            with pytest.raises(TypeError, match=rf"none of {type(mistake).__name__}; .*recognizer\.predict"):
                next(recognize_files(recognizer, [mistake]))  # type: ignore[list-item]


def test_what_is_no_video_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with Recognizer(write_band_model(tmp_path / "bands.onnx")) as recognizer:
        for number in (-1, 100, 1 << 40):  # OpenCV ends the process, opens another camera, or fails
            with pytest.raises(ValueError, match=f"from 0 to 99, not {number}"):
                next(recognize_video(recognizer, number))
        with (tmp_path / "bands.onnx").open("rb") as file:
            for mistake in ([band_face(0)], None, file):
                with pytest.raises(TypeError, match=rf"not {type(mistake).__name__}; .*Tracker"):
                    next(recognize_video(recognizer, mistake))  # type: ignore[arg-type]
        tracker = Tracker(recognizer)
        for frame, seconds, fact in (
            (band_face(0) / 255, 0.0, "must be uint8"),
            (None, 0.0, "is None"),
            (band_face(0), float("nan"), "seconds must rise"),
        ):
            with pytest.raises(ValueError, match=fact):
                tracker.update(frame, seconds)  # type: ignore[arg-type]
        assert tracker.update(band_face(0), 0.0).frame == 0  # none of them has changed the tracker


_IMPORT_EVERYTHING = """
import json, logging, os, signal, sys, threading, warnings
import cv2, numpy
log_level = getattr(cv2, "getLogLevel", None) or cv2.utils.logging.getLogLevel  # older and newer OpenCV
def state():
    return [cv2.getNumThreads(), log_level(), logging.root.level, len(logging.root.handlers),
            signal.getsignal(signal.SIGINT) is signal.default_int_handler, str(numpy.geterr()), len(warnings.filters),
            threading.active_count(), sys.getrecursionlimit()]
environment, before = dict(os.environ), state()
import fer_runtime
for name in fer_runtime.__all__:
    getattr(fer_runtime, name)
changed = {name for name in os.environ if os.environ[name] != environment.get(name)}
print(json.dumps([before == state(), sorted(changed)]))
"""


def test_importing_the_library_changes_nothing_but_telemetry() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "OPENCV_"))}
    run = subprocess.run([sys.executable, "-c", _IMPORT_EVERYTHING], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [True, ["ORT_DISABLE_TELEMETRY"]]
