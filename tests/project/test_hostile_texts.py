"""The hostile texts of `tests/runtime/test_text.py` at the exits of the other packages, the service and the site."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.report.test_measure import small_report
from tests.conftest import CHECKOUT
from tests.runtime.test_text import HOSTILE, _assert_one_harmless_line, _face, _Tags

from fer_bench.interoperability.command import Reading, table
from fer_bench.ledger.entries import Board, LatencyLine, SelfTestLine, compare, read_ledger, show
from fer_bench.report.data import parse_report
from fer_bench.report.page import render_page
from fer_runtime.output.formats import OUTPUT_FORMATS
from fer_runtime.results import ImageResult

TEXTS = pytest.mark.parametrize("text", HOSTILE, ids=ascii)
_BAR = re.compile(r"(?<!\\)(?:\\\\)*\|")  # that ends a cell

_WRITES_HTML = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\("


def _tags(page: str) -> set[tuple[str, tuple[str, ...]]]:
    tags = _Tags()
    tags.feed(page)
    return {(tag, tuple(names)) for tag, names in tags.found}


@pytest.fixture(scope="module")
def honest_page() -> str:
    return render_page(parse_report(_report("mine.onnx"), source="here"))


def _report(text: str) -> dict[str, Any]:
    content = small_report(warnings=[text], not_measured=[text], data=text, command=text)
    content["environment"] |= {"cpu": text, "versions": {"onnxruntime": text}}
    for row in content["accuracy"] + content["latency"] + content["robustness"]:
        if (row["model"], row["precision"]) == ("v1", "int8"):
            row["model"], row["precision"] = text, "file"
        if row.get("engine") == "torch":
            row["engine"] = text
    return content


# A page takes seconds. Elsewhere html_text alone makes the difference, here matplotlib does.
@pytest.mark.parametrize(
    "text", ["\x1b[2J\x1b[31mred", "a\u2028b\x85c", "\udcff.jpg", "<img src=x onerror=alert(1)>", "$\\frac{$"]
)
def test_the_report_page_and_its_plots(text: str, honest_page: str) -> None:
    page = render_page(parse_report(_report(text), source="here"))
    assert _tags(page) <= _tags(honest_page)
    for line in page.split("\n"):
        _assert_one_harmless_line(line)


def _board(text: str) -> Board:
    test = SelfTestLine(file=text, model=text, precision=text, passed=False, difference=None, failed=(text,))
    latency = LatencyLine(
        engine=text, model=text, precision=text, batch=1, threads=1, p50_ms=1.0, min_ms=1.0, images_per_second=1000.0,
        times_roofline=None, is_busy=False,
    )  # fmt: skip
    return Board(
        name=text,
        machine={"cpu": text, "cpu_flags": [text], "system": text, "date": text},
        peak_rates={},
        self_tests=(test,),
        latencies=(latency,),
        not_measured=(text,),
    )


@TEXTS
def test_tables_of_the_ledger(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(_board(text).to_json() + "\n", encoding="utf-8")
    boards = read_ledger(path)
    assert boards[0].name == text  # JSON keeps it exact
    for write, columns in ((show, {4, 9}), (compare, {6})):
        told, honest = write(boards), write([_board("x")])
        assert told.count("\n") == honest.count("\n")
        for line in told.split("\n"):
            _assert_one_harmless_line(line)
            if line.startswith("| "):
                assert len(_BAR.findall(line)) in columns


@TEXTS
def test_the_table_of_interoperability(text: str) -> None:
    readings = [
        Reading(reader=reader, file=text, error=error, difference=1e-6, flips=0)
        for reader, error in ((text, None), ("other", text))
    ]
    told = table(readings)
    assert told.count("\n") == 5  # two rows and their head, an empty line, a note
    for line in told.split("\n"):
        _assert_one_harmless_line(line)
        if line.startswith("| "):
            assert len(_BAR.findall(line)) == 3


@TEXTS
def test_plots_of_a_training(text: str, tmp_path: Path) -> None:
    from fer_train.plots import write_plots

    labels = [text, "happy"]
    results = {
        "model": text, "name": text, "recipe": text, "expressions": labels, "confusion": np.eye(2, dtype=int).tolist(),
        "test_acc": [0.5, 0.6], "train_acc": [0.5, 0.6], "test_loss": [1.0, 0.9], "train_loss": [1.0, 0.9],
        "best_epoch": 2, "accuracy": 0.6, "best_test_acc": 0.6, "macro_f1": 0.5, "parameters": 1,
        "per_class_recall": dict.fromkeys(labels, 0.5),
    }  # fmt: skip
    if "\udcff" in text:  # no label and no file name of a results file, which is UTF-8
        return
    assert all(path.stat().st_size for path in write_plots(results, tmp_path / "plots"))


@TEXTS
def test_rows_of_the_service_are_ascii(text: str) -> None:
    row = ImageResult(path=text, width=50, height=50, error=text, faces=(_face(text),))
    body = OUTPUT_FORMATS["jsonl"].create((text, "happy")).row(row)
    body.encode("ascii")  # also where a client writes it to a terminal
    assert json.loads(body)["error"] == text


@TEXTS
def test_the_log_of_the_service_has_one_line_an_event(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fer_runtime.server.logs import log

    log("model", file=text, reason=text)
    (line,) = capsys.readouterr().err.split("\n")[:-1]
    line.encode("ascii")
    _assert_one_harmless_line(line)
    assert json.loads(line)["file"] == text


def test_pages_put_texts_into_the_document_as_text() -> None:
    """What JavaScript gets from a model or the service never becomes HTML: one constant does."""
    written = []
    for folder in ("runtime/fer_runtime/server/web", "export/fer_export/site"):
        for path in sorted((CHECKOUT / folder).rglob("*.js")):
            if "node_modules" in path.parts:
                continue
            found = re.findall(
                r".*(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\().*", path.read_text()
            )
            written += [f"{path.name}: {line.strip()}" for line in found]
    assert written == ["fer-camera.js: root.innerHTML = SHADOW;"]
