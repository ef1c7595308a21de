"""Models of other labels, sizes and colours: everything that a run writes takes them from the file."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tests.runtime.tiny_models import band_face, write_band_model

from fer_runtime import Recognizer
from fer_runtime.cli.infer import main
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.faces import prepare_face
from fer_runtime.labels import check_labels, label_difference, parse_labels
from fer_runtime.model.metadata import ModelMetadata, parse_metadata
from fer_runtime.output.annotate import draw_faces
from fer_runtime.output.colors import drawn_label, label_colors
from fer_runtime.output.contact_sheet import ContactSheet
from fer_runtime.output.rows import QUALITY_COLUMNS, Csv, label_columns
from fer_runtime.results import Face, ImageResult

TWO = ("bored", "engaged")
# A comma, quotes, letters that no OpenCV font has, a column's name, a formula, a space, a percent sign.
ODD = ("a, b", 'says "hi"', "müde", "疲れ", "uncertain", "=1+1", "half asleep", "100%s")
THOUSAND = tuple(f"person {number}" for number in range(1000))


def _model(folder: Path, labels: tuple[str, ...], *, size: int = 48, color: str = "gray") -> Path:
    metadata = ModelMetadata(name="mine", labels=labels, precision="fp32", opset=18, size=size, color=color)
    return write_band_model(folder / "mine.onnx", metadata=metadata)


def _run(output: Path, *arguments: object) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments), "--quiet", "--output", str(output)])
    assert done.exit_code == 0, done.output
    return output.read_text(encoding="utf-8")


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize(("labels", "size"), [(TWO, 48), (ODD, 64), (ODD, 112), ((*EXPRESSIONS, "contempt"), 96)])
def test_rows_name_the_files_labels(labels: tuple[str, ...], size: int, color: str, tmp_path: Path) -> None:
    model = _model(tmp_path, labels, size=size, color=color)
    for number in range(len(labels)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), band_face(number, side=200, classes=len(labels)))
    run = (tmp_path, "--model", model, "--detector", "whole")
    rows = [json.loads(line) for line in _run(tmp_path / "rows.jsonl", *run).splitlines()]
    assert [row["faces"][0]["expression"] for row in rows] == list(labels)
    assert tuple(rows[0]["faces"][0]["probabilities"]) == labels
    read = list(csv.DictReader(io.StringIO(_run(tmp_path / "rows.csv", *run, "--min-confidence", 0.1))))
    assert [float(row["confidence"]) for row in read] == [round(row["faces"][0]["confidence"], 6) for row in rows]
    assert {row["uncertain"] for row in read} == {"false"}
    shares = [value for key, value in read[0].items() if key not in _COLUMNS]
    assert shares == [f"{share:.6f}" for share in rows[0]["faces"][0]["probabilities"].values()]


_COLUMNS = {
    "path",
    "width",
    "height",
    "error",
    "face",
    "x",
    "y",
    "box_width",
    "box_height",
    "expression",
    "confidence",
    "uncertain",
    *QUALITY_COLUMNS,
}


def test_a_label_with_the_name_of_a_column_has_a_column_of_its_own() -> None:
    header = next(csv.reader(io.StringIO(Csv(ODD).header())))
    assert len(set(header)) == len(header) == len(_COLUMNS) + len(ODD)
    assert "uncertain (probability)" in header
    assert "'=1+1" in header  # a spreadsheet runs no formula
    assert label_columns(["x", "x (probability)"], ["x"]) == ["x (probability)", "x (probability) (probability)"]


def test_a_model_in_colour_sees_red_green_and_blue(tmp_path: Path) -> None:
    """The band model of tests in RGB looks at red alone."""
    red = np.zeros((64, 64, 3), np.uint8)
    red[:32, :, 2] = 255  # BGR: the upper half is red
    red[32:, :, 0] = 255
    with Recognizer(_model(tmp_path, TWO, size=64, color="rgb"), detector="whole") as recognizer:
        assert (recognizer.labels, recognizer.size, recognizer.color) == (TWO, 64, "rgb")
        assert recognizer.predict(red).faces[0].expression == "bored"
        assert recognizer.predict(np.ascontiguousarray(red[::-1])).faces[0].expression == "engaged"
        assert recognizer.predict(band_face(1, side=64, classes=2)).faces[0].expression == "engaged"  # from gray
        with pytest.raises(ValueError, match=r"uint8 \(faces, 64, 64, 3\), not uint8 \(1, 64, 64\)"):
            recognizer.classify(np.zeros((1, 64, 64), np.uint8))


@pytest.mark.parametrize("roll", [0.0, 20.0])
def test_each_plane_of_a_face_in_colour_is_that_of_the_gray_face(roll: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    box = (-5, 20, 100, 100)
    face = prepare_face(image, box, roll=roll, size=64, color="rgb")
    assert face.shape == (64, 64, 3)
    for channel in range(3):
        plane = prepare_face(np.ascontiguousarray(image[:, :, 2 - channel]), box, roll=roll, size=64)
        # OpenCV rounds a plane and three of them differently by one at most.
        assert np.abs(face[:, :, channel].astype(int) - plane).max() <= 1


def test_a_file_of_schema_1_is_gray_and_48_pixels_wide() -> None:
    text = json.dumps({"schema": 1, "name": "v0", "expressions": list(TWO), "precision": "fp32", "opset": 18})
    metadata = parse_metadata(text, source="it")
    assert (metadata.labels, metadata.size, metadata.color, metadata.face_shape) == (TWO, 48, "gray", (48, 48))
    assert parse_metadata(metadata.to_json(), source="it") == metadata  # which is schema 2
    assert json.loads(metadata.to_json())["schema"] == 2


def test_every_label_has_a_colour_of_its_own_and_known_ones_keep_theirs() -> None:
    known = label_colors(EXPRESSIONS)
    eight = label_colors((*EXPRESSIONS, "contempt"))
    assert {label: eight[label] for label in EXPRESSIONS} == known
    for labels in (TWO, ODD, (*EXPRESSIONS, "contempt"), THOUSAND[:24]):
        colors = [np.array(color) for color in label_colors(labels).values()]
        nearest = min(np.abs(color - other).sum() for place, color in enumerate(colors) for other in colors[:place])
        assert nearest >= 30
    lightness = [0.114 * blue + 0.587 * green + 0.299 * red for blue, green, red in label_colors(THOUSAND).values()]
    assert min(lightness) > 80  # dark letters are read on all of them


def test_labels_are_drawn_in_letters_that_opencv_has() -> None:
    assert [drawn_label(label, ODD) for label in ODD[:4]] == ["a, b", 'says "hi"', "mude", "label 4"]


@pytest.mark.parametrize("labels", [TWO, ODD, THOUSAND], ids=("2", "8", "1000"))
def test_images_and_pages_hold_any_number_of_labels(labels: tuple[str, ...]) -> None:
    shares = np.linspace(1, 2, len(labels))
    probabilities = dict(zip(labels, (shares / shares.sum()).tolist(), strict=True))
    image = np.full((400, 700, 3), 128, np.uint8)
    sheet = ContactSheet(labels)
    for label in labels:
        face = Face(box=(100, 100, 150, 150), expression=label, confidence=0.5, probabilities=probabilities)
        sheet.add(image, face, true=labels[0])
    drawn = draw_faces(image, [face])
    assert not np.array_equal(drawn[:, 260:], image[:, 260:])  # bars beside the face
    page = sheet.draw()
    assert page.shape[0] < 65_500  # a JPEG holds no taller page
    assert cv2.imencode(".jpg", page)[0]
    row = ImageResult(path="a", width=1, height=1, error=None, faces=(face,))
    assert len(next(csv.reader(io.StringIO(Csv(labels).row(row))))) == len(_COLUMNS) + len(labels)


def test_videos_name_the_files_labels(tmp_path: Path) -> None:
    model = _model(tmp_path, ODD)
    film = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 64))
    for _ in range(6):
        film.write(cv2.cvtColor(band_face(3, side=64, classes=8), cv2.COLOR_GRAY2BGR))
    film.release()
    run = (tmp_path / "a.avi", "--model", model, "--detector", "whole")
    frames = list(csv.DictReader(io.StringIO(_run(tmp_path / "rows.csv", *run))))
    assert {row["expression"] for row in frames} == {"疲れ"}
    assert float(frames[0]["疲れ"]) == max(float(frames[0][name]) for name in ("a, b", "疲れ", "100%s"))
    assert "face 1: 疲れ" in _run(tmp_path / "rows.srt", *run)
    (segment,) = (json.loads(line) for line in _run(tmp_path / "rows.jsonl", *run, "--segments").splitlines())
    assert segment["expression"] == "疲れ"


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["one"], "2 to 1000"),
        ([str(number) for number in range(1001)], "2 to 1000"),
        ("ab", "2 to 1000"),
        (["a", 1], "must be a printable text"),
        (["a", ""], "must be a printable text"),
        (["a", " b"], "must be a printable text"),
        (["a", "b\nc"], "must be a printable text"),
        (["a", "b\u202e"], "must be a printable text"),
        (["a", "b" * 101], "must be a printable text"),
        (["a", "b", "a"], "'a' occurs twice"),
    ],
)
def test_labels_that_no_model_can_have_are_refused(labels: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_labels(labels)


def test_labels_are_read_from_an_option_and_compared_by_name() -> None:
    assert parse_labels('bored, "a, b",engaged') == ("bored", "a, b", "engaged")
    with pytest.raises(ValueError, match="2 to 1000"):
        parse_labels("bored")
    assert label_difference(TWO, TWO[::-1]) == ""
    assert label_difference(TWO, ("engaged", "asleep")) == "it lacks bored, and it also has asleep"
