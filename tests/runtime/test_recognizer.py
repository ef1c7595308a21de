"""The Python interface: a model in, typed faces out."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime import EXPRESSIONS, Recognizer, Tracker
from fer_runtime.batch.sources import sample_images
from fer_runtime.errors import ImageError, ModelFileError
from fer_runtime.faces import prepare_face
from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.system import MAX_THREADS


@pytest.fixture(scope="module")
def band_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_band_model(tmp_path_factory.mktemp("models") / "bands.onnx")


def test_each_expression_gets_its_own_label(band_model: Path) -> None:
    with Recognizer(band_model) as recognizer:
        for index, name in enumerate(EXPRESSIONS):
            (face,) = recognizer.predict(band_face(index)).faces
            assert face.expression == name
            assert face.confidence == max(face.probabilities.values())
            assert list(face.probabilities) == list(EXPRESSIONS)
            assert sum(face.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_probabilities_are_those_of_a_plain_session(band_model: Path) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (150, 48, 48), np.uint8)
    plain = onnxruntime.InferenceSession(str(band_model), providers=["CPUExecutionProvider"])
    expected = plain.run(["probabilities"], {"faces": faces})[0]
    with Recognizer(band_model) as recognizer:
        # Batches are cut differently, so float32 sums of 2304 products (epsilon 6e-8) may differ by 1e-5 of a logit
        # of size 1, and probabilities by a quarter of that.
        assert np.allclose(recognizer.classify(faces), expected, atol=1e-5)
        assert recognizer.classify(faces[:0]).shape == (0, 7)


def test_a_model_that_answers_nan_names_no_expression(tmp_path: Path) -> None:
    path = write_band_model(tmp_path / "bands.onnx")
    model = onnx.load(path)
    (weights,) = model.graph.initializer
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * np.float32(1e38), "weights"))
    onnx.save(model, path)
    with Recognizer(path) as recognizer:
        assert len(recognizer.predict(np.zeros((48, 48), np.uint8)).faces) == 1
        # Its logits are infinite for light, and softmax is NaN then.
        with pytest.raises(
            ModelFileError, match=r"bands\.onnx gives a face probabilities that are not numbers \(NaN\)"
        ):
            recognizer.predict(band_face(3))


def test_the_shipped_photographs_have_their_faces() -> None:
    with Recognizer("v0") as recognizer:
        found = {Path(path).name: recognizer.predict(path).faces for path in sample_images()}
    assert {name: len(faces) for name, faces in found.items()} == {
        "eileen_collins.jpg": 1,
        "grace_hopper.jpg": 1,
        "group.jpg": 5,
    }
    # Eyes and mouth lie inside: looked up in the photograph by hand.
    x, y, width, height = found["eileen_collins.jpg"][0].box
    assert x < 205 < 245 < x + width
    assert y < 95 < 145 < y + height
    assert found["eileen_collins.jpg"][0].expression == "happy"


def test_a_large_picture_without_a_face_has_none(band_model: Path) -> None:
    with Recognizer(band_model) as recognizer:
        result = recognizer.predict(np.full((300, 400, 3), 127, np.uint8))
    assert (result.faces, result.width, result.height, result.error) == ((), 400, 300, None)


def test_small_pictures_are_faces_and_large_ones_are_searched(band_model: Path) -> None:
    with Recognizer(band_model) as recognizer:
        assert recognizer.predict(band_face(2, side=64)).faces[0].box == (0, 0, 64, 64)
        assert recognizer.predict(band_face(2, side=65)).faces == ()
    with Recognizer(band_model, detector="whole") as recognizer:
        assert recognizer.predict(band_face(2, side=300)).faces[0].expression == EXPRESSIONS[2]


def test_wrong_arrays_are_a_callers_mistake(band_model: Path) -> None:
    with Recognizer(band_model) as recognizer:
        with pytest.raises(ValueError, match=r"float64 \(48, 48\)"):
            recognizer.predict(np.zeros((48, 48)))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"\(2, 32, 32\)"):
            recognizer.classify(np.zeros((2, 32, 32), np.uint8))
        with pytest.raises(ImageError, match=r"missing\.jpg cannot be opened"):
            recognizer.predict("missing.jpg")


def test_more_threads_than_any_machine_has_cpus_are_refused(band_model: Path) -> None:
    """ONNX Runtime would start a million threads, one after the other."""
    for threads in (MAX_THREADS + 1, 10**6):
        with pytest.raises(ValueError, match=f"threads must be at most 1024, not {threads}"):
            Recognizer(band_model, threads=threads)
    with Recognizer(band_model, threads=384) as recognizer:  # CPUs of a server with two processors
        assert recognizer.predict(band_face(3)).faces


@pytest.mark.parametrize("detector", ["haar", "whole"])
def test_an_array_is_held_to_the_limit_of_files(band_model: Path, detector: str) -> None:
    """OpenCV ends the process on an image of 40,000,000,000 pixels, which takes no memory as a broadcast array."""
    large = np.broadcast_to(np.uint8(0), (200_000, 200_000))
    with Recognizer(band_model, detector=detector) as recognizer:
        for reads in (recognizer.predict, recognizer.recognize, lambda image: Tracker(recognizer).update(image, 0)):
            with pytest.raises(ImageError, match=r"200000 x 200000 pixels, .*; raise it with max_pixels=40000000000"):
                reads(large)
    with Recognizer(band_model, detector=detector, max_pixels=100) as recognizer:
        assert recognizer.predict(np.zeros((10, 10, 3), np.uint8)).width == 10
        with pytest.raises(ImageError, match=r"^the image has 101 x 1 pixels, more than the limit of 100;"):
            recognizer.predict(np.zeros((1, 101, 3), np.uint8))


def test_an_array_whose_rows_are_one_pixel_in_memory_is_read_as_any_other(band_model: Path) -> None:
    """OpenCV took the million bytes behind it for its pixels."""
    pixel = np.full((1, 1), 200, np.uint8)
    shared = np.lib.stride_tricks.as_strided(pixel, (1_000_000, 1), (0, 0))
    with Recognizer(band_model, detector="whole") as recognizer:
        assert recognizer.predict(shared) == recognizer.predict(np.full((1_000_000, 1), 200, np.uint8))


def test_paths_bytes_and_files_give_the_same_faces(band_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    cv2.imwrite(str(path), band_face(3))
    content = path.read_bytes()
    with Recognizer(band_model) as recognizer:
        expected = recognizer.predict(band_face(3)).faces
        for source in (path, str(path), content, bytearray(content), memoryview(content), io.BytesIO(content)):
            assert recognizer.predict(source).faces == expected
        with path.open("rb") as file:
            result = recognizer.predict(file)
        assert (result.path, result.faces) == (str(path), expected)
        reader, writer = os.pipe()
        with open(reader, "rb", buffering=0) as pipe, open(writer, "wb") as end:
            end.write(content)
            end.close()
            assert recognizer.predict(pipe).faces == expected


def test_wrong_types_are_a_short_error_with_the_next_step(band_model: Path, tmp_path: Path) -> None:
    content: Any = b"no image" * 100_000
    (tmp_path / "text.txt").write_text("words")
    with Recognizer(band_model) as recognizer:
        cases: tuple[tuple[Any, type[Exception], str], ...] = (
            (content, ImageError, r"^the image cannot be decoded: damaged, or not an image$"),
            (b"", ImageError, "^the image is empty"),
            (str(content), ImageError, "File name too long|cannot be opened"),
            (3, TypeError, r"a path, bytes, .* not builtins\.int"),
            (PIL.Image.new("RGB", (9, 9)), TypeError, r"PIL image becomes an array with np\.asarray"),
            ([[1, 2]], TypeError, r"not builtins\.list"),
        )
        for source, kind, words in cases:
            with pytest.raises(kind, match=words) as caught:
                recognizer.predict(source)
            assert len(str(caught.value)) < 500
        cv2.imwrite(str(tmp_path / "face.jpg"), band_face(3))  # which is no UTF-8
        for name in ("text.txt", "face.jpg"):
            with (
                (tmp_path / name).open(encoding="utf-8") as file,
                pytest.raises(TypeError, match=r"open\(path, 'rb'\)"),
            ):
                recognizer.predict(file)  # type: ignore[arg-type]


def test_pickled_and_copied_recognizers_give_the_same_rows(
    band_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(band_model.parent)
    with Recognizer(band_model.name, detector="whole", min_confidence=0.5, max_pixels=10_000) as recognizer:
        expected = recognizer.predict(band_face(3))
        monkeypatch.chdir(tmp_path)  # as a worker process may run elsewhere
        copies = [pickle.loads(pickle.dumps(recognizer)), copy.deepcopy(recognizer), copy.copy(recognizer)]
    for made in copies:
        with made:
            assert made.settings() == recognizer.settings()
            assert made.predict(band_face(3)) == expected
    with pytest.raises(ValueError, match="has been closed"):
        pickle.dumps(recognizer)


def test_a_recognizer_can_be_sent_to_another_process(band_model: Path) -> None:
    with Recognizer(band_model) as recognizer:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            assert pool.submit(recognizer.predict, band_face(3)).result(60) == recognizer.predict(band_face(3))


def test_a_banner_is_not_taken_for_a_face(band_model: Path) -> None:
    with Recognizer(band_model, detector="auto") as recognizer:
        for shape, faces in (((60, 728), 0), ((728, 60), 0), ((64, 64), 1), ((48, 64), 1), ((80, 48), 1)):
            assert len(recognizer.predict(np.full(shape, 127, np.uint8)).faces) == faces, shape


def test_missing_data_of_opencv_is_not_called_a_missing_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("this OpenCV has no cascades")
    monkeypatch.setattr("cv2.data.haarcascades", "/nowhere/")
    with pytest.raises(ModelFileError, match=r"/nowhere/haar.*\.xml is missing; .* PyInstaller .*--collect-data cv2"):
        Recognizer("v0", detector="haar")


def test_a_picture_that_opencv_could_not_read_is_called_so(band_model: Path) -> None:
    with Recognizer(band_model) as recognizer:
        missing: Any = None
        for method in (recognizer.predict, recognizer.recognize):
            with pytest.raises(ValueError, match=r"cv2\.imread gives None"):
                method(missing)


@pytest.mark.parametrize(
    "options",
    [
        *({"min_confidence": given} for given in (80, -0.1, np.float32(7), float("nan"), "0.5", "AUTO")),
        *({"threads": 0}, {"min_face": 0}, {"min_face": 10**20}),
    ],
    ids=str,
)
def test_options_out_of_range_are_a_callers_mistake(band_model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Recognizer(band_model, **options)


def test_another_file_of_yunet_is_another_setting(band_model: Path, tmp_path: Path) -> None:
    recognizer = Recognizer(band_model)
    recognizer._search.detector_used = "yunet"  # as where its file is in the cache folder
    settings = []
    for content in (b"one", b"two", b"one"):
        recognizer._search.yunet = tmp_path / "yunet.onnx"
        recognizer._search.yunet.write_bytes(content)
        settings.append(recognizer.settings())
    assert settings[0] == settings[2] != settings[1]


def test_threads_share_a_recognizer(band_model: Path) -> None:
    faces = [band_face(index % 7) for index in range(200)]
    with Recognizer(band_model) as recognizer, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda face: recognizer.predict(face).faces[0].expression, faces))
    assert answers == [EXPRESSIONS[index % 7] for index in range(200)]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("", "has no 'fer' metadata"),
        ("{}", "cannot be read"),
        ("no json", "cannot be read"),
        (json.dumps({"schema": 99}), "newer fer-edge"),
    ],
)
def test_a_model_without_our_metadata_is_refused(tmp_path: Path, metadata: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        Recognizer(write_band_model(tmp_path / "m.onnx", metadata=metadata))


def test_a_closed_recognizer_says_so(band_model: Path) -> None:
    with Recognizer(band_model) as recognizer:
        pass
    with pytest.raises(ValueError, match="has been closed"):
        recognizer.classify(np.zeros((1, 48, 48), np.uint8))


def test_metadata_that_is_no_utf8_is_refused(tmp_path: Path, band_model: Path) -> None:
    content = band_model.read_bytes()
    assert content.count(b'"temperature"') == 1
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content.replace(b'"temperature"', b'"temp\xebrature"'))
    with pytest.raises(ModelFileError, match="cannot be read as an ONNX model"):
        Recognizer(broken)


def test_fewer_labels_than_probabilities_are_refused(tmp_path: Path) -> None:
    metadata = ModelMetadata(name="v0", labels=EXPRESSIONS[:6], precision="fp32", opset=18)
    with pytest.raises(ModelFileError, match=r"logits float32 \[7\].*not .*float32 \(batch, 6\)"):
        Recognizer(write_band_model(tmp_path / "six.onnx", metadata=metadata.to_json()))


def test_files_that_are_no_model_are_refused(tmp_path: Path, band_model: Path) -> None:
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(band_model.read_bytes()[:2000])
    for path, message in (
        (tmp_path / "missing.onnx", "no model at"),
        (truncated, "cannot be read as an ONNX model"),
        (write_band_model(tmp_path / "large.onnx", input_shape=64), r"not faces uint8 \(batch, 48, 48\)"),
    ):
        with pytest.raises(ModelFileError, match=message):
            Recognizer(path)
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ModelFileError, match="cannot be read as an ONNX model"):
        Recognizer(tmp_path / "text.onnx")


def test_labels_come_from_the_file_and_not_from_its_name(tmp_path: Path) -> None:
    turned = ModelMetadata(name="v1", labels=EXPRESSIONS[::-1], precision="int8", opset=18)
    with Recognizer(write_band_model(tmp_path / "model_0.onnx", metadata=turned)) as recognizer:
        assert recognizer.predict(band_face(0)).faces[0].expression == EXPRESSIONS[6]


def test_a_box_beyond_the_border_repeats_it() -> None:
    image = np.tile(np.arange(100, dtype=np.uint8), (100, 1))
    face = prepare_face(image, (-24, 0, 48, 48))
    assert (face[:, :24] == 0).all()
    assert face[0, 24:].tolist() == list(range(24))
    with pytest.raises(ValueError, match="outside"):
        prepare_face(image, (200, 0, 48, 48))


def test_shrinking_averages() -> None:
    checkered = np.indices((96, 96)).sum(0) % 2 * 200
    assert (prepare_face(checkered.astype(np.uint8)) == 100).all()
