"""The same hostile texts at every place that shows what a file says: nothing is obeyed, no line is forged."""

from __future__ import annotations

import csv
import html
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from tests.conftest import CHECKOUT
from tests.runtime.tiny_models import write_band_model

from fer_runtime.command import FerCommand, say
from fer_runtime.errors import FerError
from fer_runtime.model.inspect import inspect_model
from fer_runtime.output.annotate import draw_faces
from fer_runtime.output.contact_sheet import ContactSheet
from fer_runtime.output.formats import OUTPUT_FORMATS
from fer_runtime.output.rows import csv_line
from fer_runtime.results import Face, ImageResult
from fer_runtime.text import csv_text, html_text, markdown_text, printable
from fer_runtime.video.segments import Segment
from fer_runtime.video.subtitles import to_srt

HOSTILE = (
    "\x1b[2J\x1b[31mred",  # clears the screen
    "\x1b]0;owned\x07",  # names the window
    "\x9b31mred",  # the 8-bit form of ESC [
    "a\n  verdict       passed its gate",
    "a\r\x1b[Kok",
    "a\u2028b\x85c",
    "gpj.\u202egnp",  # shown as gnp.jpg reversed
    "\udcff.jpg",  # a byte that is not UTF-8
    "=HYPERLINK(0)",
    " +1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "-2+3",
    "\t=1",
    "<img src=x onerror=alert(1)>",
    "\"'><script>alert(1)</script>",
    "100% %s %(x)d {0} $x^2$",
    "$\\frac{$",  # a formula that matplotlib cannot read
    "a | b |\n| c",
    "a \\| b \\",
    "[x](javascript:alert(1)) `code` ![y](z)",
)


def _assert_one_harmless_line(text: str) -> None:
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text), ascii(text)
    assert not set(text) & set("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\ufeff")
    text.encode()  # a lone surrogate would stop here


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_printable_text_is_one_harmless_line(text: str) -> None:
    _assert_one_harmless_line(printable(text))
    assert printable("émotion 顔 می\u200cشود 😊.jpg") == "émotion 顔 می\u200cشود 😊.jpg"
    assert printable("\x1b[2J") == "\\x1b[2J"
    assert printable("abcdef", limit=4) == "abc…"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_csv_cell_is_no_formula(text: str) -> None:
    (cells,) = csv.reader(io.StringIO(csv_line([text, 1, None, -2.5])))
    assert cells[1:] == ["1", "", "-2.5"]
    assert cells[0].lstrip(" ")[0] not in "=+-@\t\r"
    assert csv_text("=1") == "'=1"
    assert csv_text("a=1.jpg") == "a=1.jpg"


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_html_shows_it_and_runs_nothing(text: str) -> None:
    tags = _Tags()
    tags.feed(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    assert tags.found == [("p", ["title"])]
    _assert_one_harmless_line(html_text(text))


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_markdown_cell_stays_one_cell(text: str) -> None:
    cell = markdown_text(text)
    _assert_one_harmless_line(cell)
    # GitHub's Markdown ends a cell at each bar without a backslash before it, and any other backslash escapes a mark.
    assert not re.search(r"(?<!\\)(\\\\)*[|\[`<]", cell)
    assert not re.search(r"(?<!\\)(\\\\)*\\$", cell)
    assert html.unescape(re.sub(r"\\([\\|\[`])", r"\1", cell)) == printable(text)


def _face(label: str) -> Face:
    return Face(
        box=(1, 2, 30, 40), expression=label, confidence=0.5, probabilities={label: 0.5, "happy": 0.5}, uncertain=None
    )


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_rows_of_every_format(text: str) -> None:
    for result in (
        ImageResult(path=text, width=50, height=50, error=None, faces=(_face(text),)),
        ImageResult(path=text, width=None, height=None, error=text, faces=()),
    ):
        line = OUTPUT_FORMATS["table"].create((text, "happy")).row(result)
        assert line.count("\n") == 1
        _assert_one_harmless_line(line[:-1])
        row = json.loads(OUTPUT_FORMATS["jsonl"].create((text, "happy")).row(result))  # JSON keeps the text exact
        assert row["path"] == text
        assert [face["expression"] for face in row["faces"]] == [face.expression for face in result.faces]
    (cells,) = csv.reader(io.StringIO(OUTPUT_FORMATS["csv"].create((text, "happy")).row(result)))
    assert cells[0] == cells[3] == csv_text(text)
    segment = Segment(path=text, track=1, start=0.0, end=1.0, expression=text, confidence=0.5)
    subtitle = to_srt(segment, 1)
    assert len(subtitle.splitlines()) == 4  # number, time, text, an empty line


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_drawn_labels_are_ordinary_text(text: str) -> None:
    image = np.full((400, 400, 3), 128, np.uint8)
    assert not np.array_equal(draw_faces(image, [_face(text)]), image)
    sheet = ContactSheet([text])
    sheet.add(image, _face(text), true=text)
    assert sheet.draw().shape[2] == 3


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_table_of_a_command_has_harmless_lines(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"name  ms\n{text}  1.0")
    for line in capsys.readouterr().out.split("\n"):
        _assert_one_harmless_line(line)


def test_every_command_prints_through_say_or_printable() -> None:
    """Only lines that the program itself writes over, with a carriage return, go to the terminal as they are."""
    for package in ("train/fer_train", "export/fer_export", "benchmarks/fer_bench"):
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            raw = [line for line in path.read_text().splitlines() if "click.echo(" in line and "\\r" not in line]
            assert all("printable(" in line for line in raw), (path, raw)


def _said_by_a_command(text: str, *, usage: bool) -> str:
    @click.command(cls=FerCommand)
    @click.argument("path")
    def command(path: str) -> None:
        raise click.UsageError(f"not {path}") if usage else FerError(f"cannot read {path}")

    result = CliRunner().invoke(command, [text], prog_name="fer-test")
    return next(line for line in result.output.splitlines() if line.startswith("Error: "))


@pytest.mark.parametrize("text", [text for text in HOSTILE if not text.startswith("-")], ids=ascii)
def test_an_error_is_one_harmless_line(text: str) -> None:
    assert _said_by_a_command(text, usage=False) == f"Error: cannot read {printable(text)}"
    assert _said_by_a_command(text, usage=True) == f"Error: not {printable(text)}"


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\udcff" not in text], ids=ascii)
def test_inspect_forges_no_line(text: str, tmp_path: Path) -> None:
    model = onnx.load(write_band_model(tmp_path / "a.onnx", metadata=""))
    honest = inspect_model(tmp_path / "a.onnx").to_text()
    model.producer_name = text
    model.graph.node.append(helper.make_node(text, ["logits"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info(text, TensorProto.FLOAT, ["batch", 7]))
    onnx.save(model, tmp_path / "b.onnx")
    told = inspect_model(tmp_path / "b.onnx").to_text()
    assert told.count("\n") == honest.count("\n")
    for line in told.split("\n"):
        _assert_one_harmless_line(line)
