"""The report: the verdict's rule by hand-made candidates, the page in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser
from tests.benchmarks.test_robustness import write_band_pictures
from tests.chromium import launched, visiting
from tests.runtime.tiny_models import write_band_model

from fer_bench.cli import main
from fer_bench.report.data import parse_report, read_report
from fer_bench.report.measure import reliability_bins
from fer_bench.report.page import NARROW, WIDE, render_page
from fer_bench.report.plots import LIGHT, draw_tradeoff, drawing, model_color
from fer_bench.report.verdict import Candidate, decide, pareto_front
from fer_bench.robustness import CONDITIONS
from fer_runtime.errors import DataError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.metrics import expected_calibration_error, wilson_interval
from fer_runtime.model.find import MODEL_NAMES


def candidate(label: str, accuracy: float, p50_ms: float, megabytes: float, *, half: float = 0.015) -> Candidate:
    model, _, precision = label.partition(" ")
    return Candidate(
        label=label,
        model=model,
        precision=precision,
        accuracy=accuracy,
        low=accuracy - half,
        high=accuracy + half,
        p50_ms=p50_ms,
        megabytes=megabytes,
    )


SMALL = candidate("v0 fp32", 0.620, 0.10, 1.28)
SMALL8 = candidate("v0 int8", 0.616, 0.11, 0.35)
LARGE = candidate("v1 fp32", 0.690, 7.0, 45.3)
LARGE8 = candidate("v1 int8", 0.686, 2.0, 11.5)


def test_the_front_drops_what_is_beaten_in_all_three() -> None:
    beaten = candidate("v1 fp16", 0.685, 7.5, 22.6)  # slower, larger and less accurate than v1 int8
    assert pareto_front([SMALL, SMALL8, LARGE, LARGE8, beaten]) == [SMALL, SMALL8, LARGE, LARGE8]
    twin = candidate("v0 twin", 0.620, 0.10, 1.28)
    assert pareto_front([SMALL, twin]) == [SMALL, twin]


def test_the_pick_is_the_fastest_of_those_as_good_as_the_best() -> None:
    verdict = decide([SMALL, SMALL8, LARGE, LARGE8])
    assert verdict.pick == LARGE8  # 68.6 % lies within 69.0 ± 1.5, and is 3.5 times as fast
    assert verdict.pick_reason == (
        "0.4 points below the most accurate (v1 fp32, 69.0%), which is not significant, and 3.5 times as fast."
    )
    assert verdict.lean == SMALL8  # the smallest of what is faster
    # 2.0 / 0.11 = 18, 11.5 / 0.35 = 33, 68.6 - 61.6 = 7.0
    assert verdict.lean_reason == "It is 18 times as fast and 33 times smaller, and loses 7.0 points of accuracy."
    assert verdict.headline == "Use v1 int8."
    assert "68.6%" in verdict.reason
    assert "2.00 ms" in verdict.reason


def test_a_model_below_the_bests_interval_is_not_picked_for_its_speed() -> None:
    assert decide([LARGE, candidate("v1 int8", 0.674, 2.0, 11.5)]).pick == LARGE


def test_faces_compared_one_by_one_say_more_than_intervals() -> None:
    pair = frozenset((LARGE.label, LARGE8.label))
    assert decide([SMALL, LARGE, LARGE8], {pair: 0.02}).pick == LARGE  # inside the interval, and worse all the same
    assert decide([SMALL, LARGE, LARGE8], {pair: 0.2}).pick == LARGE8
    below = candidate("v1 int8", 0.674, 2.0, 11.5)
    assert decide([LARGE, below], {pair: 0.2}).pick == below


def test_a_model_that_cannot_follow_a_camera_is_not_picked_while_another_can() -> None:
    slow = candidate("v1 fp32", 0.69, 40.0, 45.3)  # 25 faces a second
    assert decide([SMALL, slow]).pick == SMALL
    alone = decide([slow])
    assert alone.pick == slow
    assert alone.lean is None
    assert "No model reaches 30 faces per second" in alone.reason


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        decide([])


def test_reliability_bins_add_up_to_the_calibration_error() -> None:
    # Two faces at 0.9, one of them right; four at 0.5, three of them right.
    confidences = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.5])
    correct = np.array([True, False, True, True, True, False])
    bins = reliability_bins(confidences, correct)
    assert [(row["accuracy"], row["faces"]) for row in bins] == [(0.75, 4), (0.5, 2)]
    error = sum(row["faces"] * abs(row["confidence"] - row["accuracy"]) for row in bins) / 6
    assert error == pytest.approx((4 * 0.25 + 2 * 0.4) / 6)
    assert error == pytest.approx(expected_calibration_error(confidences, correct))


def test_every_model_has_a_colour_of_its_own_whatever_files_stand_beside_it() -> None:
    files = ["v0", "v0", "mine.onnx", "mine.onnx", "yours.onnx"]
    ours = [model_color(LIGHT, name, files) for name in MODEL_NAMES]
    assert len(set(ours)) == len(MODEL_NAMES)
    assert model_color(LIGHT, "mine.onnx", files) not in ours
    assert model_color(LIGHT, "mine.onnx", files) != model_color(LIGHT, "yours.onnx", files)


def made_up_report(**changes: Any) -> dict[str, Any]:
    """What `fer-bench report --json` writes, for four model files, with made-up figures."""
    random = np.random.default_rng(0)
    accuracy, latency, robustness = [], [], []
    for wanted in (SMALL, SMALL8, LARGE, LARGE8):
        confusion = np.full((7, 7), 10)
        np.fill_diagonal(confusion, round(60 * wanted.accuracy / (1 - wanted.accuracy)))
        share = float(np.trace(confusion) / confusion.sum())
        accuracy.append(
            {
                "model": wanted.model,
                "precision": wanted.precision,
                "images": int(confusion.sum()),
                "accuracy": wanted.accuracy,
                "accuracy_interval": [wanted.low, wanted.high],
                "macro_f1": wanted.accuracy - 0.03,
                "expected_calibration_error": 0.021,
                "confusion": confusion.tolist(),
                "per_class_recall": dict.fromkeys(EXPRESSIONS, share),
                "reliability": [{"confidence": x, "accuracy": x - 0.02, "faces": 50} for x in (0.4, 0.6, 0.9)],
            }
        )
        for engine, factor, batch in (("onnxruntime", 1.0, 1), ("onnxruntime", 20.0, 32), ("torch", 5.0, 1)):
            samples = np.sort(wanted.p50_ms * factor * (1 + random.gamma(1.5, 0.05, 200)))
            p50, p95, p99 = np.percentile(samples, [50, 95, 99])
            latency.append(
                {
                    "engine": engine,
                    "model": wanted.model,
                    "precision": wanted.precision,
                    "batch": batch,
                    "threads": 1,
                    "min_ms": samples[0],
                    "p50_ms": wanted.p50_ms * factor,
                    "p95_ms": max(p95, p50),
                    "p99_ms": p99,
                    "images_per_second": 1000 * batch / (wanted.p50_ms * factor),
                    "histogram_ms": samples.tolist(),
                    "times_roofline": 1.6,
                    "cold_start_cpu_ms": {"python_ms": 12.0, "load_ms": 80.0},
                    "peak_mb": 80.0,
                    "model_bytes": round(wanted.megabytes * 1e6),
                }
            )
        for condition in CONDITIONS:
            for rank, level in enumerate(condition.levels):
                right = round(1000 * wanted.accuracy * (1 - 0.08 * rank))
                low, high = wilson_interval(right, 1000)
                robustness.append(
                    {
                        "model": wanted.model,
                        "precision": wanted.precision,
                        "condition": condition.name,
                        "level": level,
                        "accuracy": right / 1000,
                        "low": low,
                        "high": high,
                        "faces": 1000,
                    }
                )
    return {
        "created": "2026-11-24T12:00:00+00:00",
        "command": "fer-bench report --data faces",
        "environment": {
            "cpu": "Some <Processor> & more",
            "cpus": 2,
            "versions": {"onnxruntime": "1.32.0"},
            "peak_rates": {"fp32_macs_per_second": 1.2e11, "int8_macs_per_second": 4.5e11},
        },
        "data": "images/validation",
        "accuracy": accuracy,
        "latency": latency,
        "robustness": robustness,
        "comparisons": [
            {
                "first": "v1 fp32",
                "second": "v1 int8",
                "only_first_right": 34,
                "only_second_right": 20,
                "changed": 71,
                "mcnemar_p": 0.0759,
            }
        ],
        "warnings": ["the machine was busy."],
        "not_measured": ["openvino (v0 fp32): not installed; pip install 'fer-edge[bench]'"],
    } | changes


def small_report(**changes: Any) -> dict[str, Any]:
    """One plot of each kind: drawing takes a quarter of a second each."""
    content = made_up_report(**changes)
    content["accuracy"] = [row for row in content["accuracy"] if row["model"] == "v1" and row["precision"] == "int8"]
    content["robustness"] = [row for row in content["robustness"] if row["condition"] == "noise"]
    return content


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(parse_report(made_up_report(), source="here"))


class _Structure(HTMLParser):
    """Open elements, ids, references and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img", "input", "hr"):
            self.open.append(tag)
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            self.references += re.findall(r"url\(#([^)]+)\)", value)
            if name in ("href", "xlink:href") and value.startswith("#"):
                self.references.append(value[1:])
            if name == "aria-labelledby":
                self.references += value.split()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole(page: str) -> None:
    structure = _Structure()
    structure.feed(page)
    assert structure.open == []
    assert len(structure.ids) == len(set(structure.ids))
    assert set(structure.references) <= set(structure.ids)
    # 4 matrices, 4 reliability diagrams, 8 conditions, and two plots for two widths each
    assert page.count('role="img"') == 4 + 4 + 8 + 4
    assert page.count("<title id=") == page.count("<desc id=") == 20
    for words in (
        "Use v1 int8.",
        "18 times as fast",
        "Some <Processor> & more",  # escaped in the page, whole in its text
        "fer-bench report --data faces",
        "pip install 'fer-edge[bench]'",
        "120 GMAC/s",
        "the machine was busy.",
        "0.076",
    ):
        assert words in structure.text


def test_the_page_names_no_address(page: str) -> None:
    without_namespaces = page.replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?:|//[a-z]|@import|<script|<img|<iframe", without_namespaces) == []


def test_a_files_name_is_text_and_nothing_else() -> None:
    name = "<script>alert(1)</script> & $\\frac{$.onnx"
    content = small_report(comparisons=[])
    for row in content["accuracy"] + content["latency"] + content["robustness"]:
        if (row["model"], row["precision"]) == ("v1", "int8"):
            row["model"], row["precision"] = name, "file"
    text = render_page(parse_report(content, source="here"))
    assert "<script" not in text
    structure = _Structure()
    structure.feed(text)
    assert structure.open == []
    # The title, the headline and a cell of each table at least, each as it was written.
    assert structure.text.count(name) >= 5


def test_an_engine_with_other_answers_is_marked() -> None:
    content = small_report()
    for row in content["latency"]:
        if row["engine"] == "torch":
            row["max_probability_difference"] = 0.046 if row["model"] == "v1" else 0.001
    text = render_page(parse_report(content, source="here"))
    assert text.count("different answers, up to 0.05") == 2
    assert text.count("<em>Different answers</em>") == 1


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize(
    "points",
    [
        [SMALL, SMALL8],
        [SMALL, SMALL8, LARGE, LARGE8],
        [candidate("v0 fp32", 0.6197, 0.211, 1.29), candidate("v0 int8", 0.6158, 0.165, 0.35)],
        [SMALL, SMALL8, candidate("v1 fp32", 0.70, 2.9, 44.8), candidate("v1 int8", 0.697, 1.4, 11.3)],
        [SMALL],
    ],
)
def test_no_label_covers_another_or_another_models_point(points: list[Candidate], width: int) -> None:
    with drawing() as theme:
        figure = draw_tradeoff(points, theme=theme, width=width)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        labels = [text for text in axes.texts if "MB" in text.get_text()]
        boxes = {label.get_text().split(" · ")[0].split("\n")[0]: label.get_window_extent() for label in labels}
        assert set(boxes) == {point.label for point in points}
        for point in points:
            box, others = boxes[point.label], [other for other in points if other != point]
            assert not any(box.overlaps(boxes[other.label]) for other in others)
            centres = [axes.transData.transform((other.p50_ms, other.accuracy)) for other in others]
            assert not any(box.contains(x, y) for x, y in centres)


def test_every_colour_of_a_plot_is_one_of_the_themes(page: str) -> None:
    plots = "".join(re.findall(r'<svg class="plot".*?</svg>', page, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", plots) == []
    assert "var(--first)" in plots


def test_the_same_figures_make_the_same_page() -> None:
    first, second = (render_page(parse_report(small_report(), source="here")) for _ in range(2))
    assert first == second


def test_a_report_without_robustness_or_latency_still_makes_a_page() -> None:
    text = render_page(parse_report(made_up_report(robustness=[], latency=[]), source="here"))
    assert "none is recommended" in text
    assert "<h2>Confusion</h2>" in text
    assert "<h2>Robustness</h2>" not in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "double quotes: line 1 column 2"), ("[]", "not a report"), ('{"created": "now"}', "KeyError")],
)
def test_a_file_that_is_no_report_is_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(DataError, match=reason) as raised:
        read_report(path)
    assert str(path) in str(raised.value)
    assert reason != "not a report" or f"--json {path}" not in str(raised.value)  # which would replace that file


def test_a_long_value_in_a_report_is_cut_in_the_message() -> None:
    content = made_up_report()
    content["latency"][0]["p50_ms"] = "x" * 5000
    with pytest.raises(DataError, match="could not convert string to float") as raised:
        parse_report(content, source="here")
    assert len(str(raised.value)) < 400


def test_a_count_beyond_any_number_of_images_is_no_report() -> None:
    content = made_up_report()
    content["accuracy"][0]["confusion"][0][0] = 1e300
    with pytest.raises(DataError, match="here is not a report of fer-bench"):
        parse_report(content, source="here")


def test_a_report_file_that_is_not_there_says_how_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fer-bench report --data DIR --json"):
        read_report(tmp_path / "none.json")


def test_the_command_measures_and_draws_the_same_page_again(tmp_path: Path) -> None:
    model, data = write_band_model(tmp_path / "bands.onnx"), write_band_pictures(tmp_path / "data")
    written, first, again = tmp_path / "r.json", tmp_path / "first.html", tmp_path / "again.html"
    measure = ["report", "--model", str(model), "--data", str(data), "--json", str(written), "--output", str(first)]
    result = CliRunner().invoke(main, [*measure, "--engine", "onnxruntime", "--rounds", "2", "--seconds", "0.02"])
    assert result.exit_code == 0, result.output
    assert "Use bands.onnx. Accuracy 100.0%" in result.stdout
    content = json.loads(written.read_text())
    assert [row["batch"] for row in content["latency"]] == [1, 32]
    assert content["accuracy"][0]["images"] == 14
    result = CliRunner().invoke(main, ["report", "--from", str(written), "--output", str(again)])
    assert result.exit_code == 0, result.output
    assert first.read_text() == again.read_text()


def _without(blocked: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """`fer-bench` in a process in which packages are not installed."""
    script = f"import sys; sys.modules.update(dict.fromkeys({blocked})); from fer_bench.cli import main; main()"
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)


def test_without_the_extra_the_report_names_it_before_measuring(tmp_path: Path) -> None:
    data = write_band_pictures(tmp_path / "data")
    done = _without(["matplotlib"], ["report", "--data", str(data)])
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: this needs matplotlib, which is not installed; install it with: {sys.executable} -m pip install "
        "'fer-edge[bench]'\n"
    )


def test_robustness_runs_on_the_base_install(tmp_path: Path) -> None:
    model, data = write_band_model(tmp_path / "bands.onnx"), write_band_pictures(tmp_path / "data")
    arguments = ["robustness", "--model", str(model), "--data", str(data), "--condition", "size"]
    done = _without(["matplotlib", "torch", "torchvision", "onnx", "onnxscript", "openvino"], arguments)
    assert done.returncode == 0, done.stderr
    assert "Face size" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--data", "d", "--from", "f"]])
def test_the_command_wants_pictures_or_a_file(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["report", *arguments])
    assert result.exit_code == 2
    assert "--from FILE" in result.output


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


# The element that reaches furthest to the right, beyond the window's edge.
_TOO_WIDE = """[...document.querySelectorAll('body *')].filter(element =>
    element.getBoundingClientRect().width && element.getBoundingClientRect().right > innerWidth + 1)
    .map(element => element.tagName)"""
_VISIBLE = "[...document.querySelectorAll('.plot')].filter(plot => plot.getBoundingClientRect().width > 0).length"
_PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, False), (1280, True)])
def test_a_browser_finds_no_error_and_asks_for_nothing(
    browser: Browser, page: str, tmp_path: Path, width: int, dark: bool
) -> None:
    file = tmp_path / "report.html"
    file.write_text(page)
    questions = {"too wide": _TOO_WIDE, "plots": _VISIBLE, "paper": _PAPER, "title": "document.title"}
    with visiting(browser, file.as_uri(), width=width, dark=dark) as visit:
        answers = {name: visit.evaluate(expression) for name, expression in questions.items()}
    assert visit.requests == []
    assert visit.complaints == []
    assert answers == {
        "too wide": [],
        "plots": 18,  # of the two plots that come in two widths, one each
        "paper": "rgb(22, 25, 29)" if dark else "rgb(255, 255, 255)",
        "title": "Use v1 int8. fer-edge benchmark",
    }


def test_the_browser_would_see_a_request_and_an_error(browser: Browser, page: str, tmp_path: Path) -> None:
    """The test above is worth what this one shows."""
    file = tmp_path / "report.html"
    policy = re.search(r"<meta http-equiv.*?>", page)
    assert policy
    leaky = '<img src="http://127.0.0.1:9/pixel.png">'
    file.write_text(page.replace(policy[0], "").replace("<main>", f"<main>{leaky}<script>none()</script>"))
    with visiting(browser, file.as_uri(), width=400) as visit:
        pass
    assert visit.requests == ["http://127.0.0.1:9/pixel.png"]
    assert any("none is not defined" in complaint for complaint in visit.complaints)
    # With the policy the same page asks for nothing, and says so in the console.
    file.write_text(page.replace("<main>", f"<main>{leaky}"))
    with visiting(browser, file.as_uri(), width=400) as guarded:
        pass
    assert any("Content Security Policy" in complaint for complaint in guarded.complaints)
