"""The ledger: a line is what was measured, a broken model has no speed, and another file is left alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from fer_bench.cli import main
from fer_bench.latency.roofline import PeakRates
from fer_bench.ledger.entries import Board, append_board, read_ledger
from fer_runtime.errors import OutputError
from fer_runtime.files import lock_file
from fer_runtime.system import available_cpus

MODELS = Path(__file__).parents[2] / "models"
_QUICK = ["--engine", "onnxruntime", "--rounds", "2", "--seconds", "0.02"]


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peak that is the same on every processor."""
    rates = PeakRates(fp32_macs_per_second=1e9, int8_macs_per_second=1e9)
    monkeypatch.setattr("fer_bench.latency.roofline.measure_peak_rates", lambda seconds: rates)
    monkeypatch.setattr("fer_bench.ledger.entries.measure_peak_rates", lambda: rates)


def test_a_board_is_one_line_and_boards_stand_side_by_side(tmp_path: Path) -> None:
    path, given = tmp_path / "ledger.jsonl", ["--model", "v0", "--precision", "fp32", "--models-dir", str(MODELS)]
    runner = CliRunner()
    for board in ("Pi 5", "Pi 4 | \x1b[31m"):
        done = runner.invoke(main, ["ledger", "add", "--ledger", str(path), "--board", board, *given, *_QUICK])
        assert done.exit_code == 0, done.output
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["name"], second["name"]) == ("Pi 5", "Pi 4 | \x1b[31m")
    (test,) = first["self_tests"]
    assert (test["file"], test["passed"], test["failed"]) == ("model_0.onnx", True, [])
    assert test["difference"] <= 1e-3  # a float certificate's tolerance
    (latency,) = first["latencies"]
    assert (latency["engine"], latency["model"], latency["precision"]) == ("onnxruntime", "v0", "fp32")
    assert latency["images_per_second"] == pytest.approx(1000 / latency["p50_ms"])
    # 6.0 million multiplications at 1e9 a second.
    assert latency["times_roofline"] == pytest.approx(latency["p50_ms"] / 6.0, rel=0.02)

    table = runner.invoke(main, ["ledger", "compare", "--ledger", str(path)]).output.splitlines()
    assert "Pi 5" in table[0]
    assert "\x1b" not in "".join(table)
    assert f"{latency['p50_ms']:.3f}" in table[2]
    shown = runner.invoke(main, ["ledger", "show", "--ledger", str(path), "pi 5"]).output
    assert "| model_0.onnx | passed |" in shown
    assert "Pi 4" not in shown
    missing = runner.invoke(main, ["ledger", "show", "--ledger", str(path), "Jetson"])
    assert missing.exit_code == 1
    assert "no board Jetson" in missing.output


def test_a_file_that_fails_its_self_test_is_noted_and_not_timed(tmp_path: Path) -> None:
    content = (MODELS / "model_0.int8.onnx").read_bytes()
    at = content.index(b'"model_logits": [[') + len(b'"model_logits": [[')
    end = content.index(b",", at)
    # Another first logit of the same length, so that the file stays whole.
    (tmp_path / "model_0.int8.onnx").write_bytes(content[:at] + b"9" * (end - at) + content[end:])
    path, right = tmp_path / "ledger.jsonl", str(MODELS / "model_0.int8.onnx")  # of the same name
    given = ["--model", str(tmp_path / "model_0.int8.onnx"), "--model", right, "--ledger", str(path)]
    done = CliRunner().invoke(main, ["ledger", "add", *given, *_QUICK])
    assert done.exit_code == 1
    (line,) = map(json.loads, path.read_text().splitlines())
    assert [latency["model"] for latency in line["latencies"]] == [right]
    assert [test["passed"] for test in line["self_tests"]] == [False, True]
    assert "logits" in line["self_tests"][0]["failed"]


@pytest.mark.parametrize("content", ["[]\n", "no JSON\n", '{"schema": 9}\n', '{"schema": 1, "name": "x"}\n'])
def test_another_file_is_no_ledger_and_stays_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(content)
    done = CliRunner().invoke(main, ["ledger", "add", "--ledger", str(path), "--models-dir", str(MODELS), *_QUICK])
    assert done.exit_code == 1
    assert "line 1 is not a ledger" in done.output
    assert path.read_text() == content


def test_a_ledger_that_is_missing_or_empty_is_answered_with_how_to_add_a_board(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    advice = "add a board with: fer-bench ledger add --ledger FILE"
    for path, fact in ((empty, f"{empty} has no board"), (tmp_path / "no", f"cannot read {tmp_path}/no: No such file")):
        for command in ("show", "compare"):
            done = CliRunner().invoke(main, ["ledger", command, "--ledger", str(path)])
            assert done.exit_code == 1
            assert done.stderr.startswith(f"Error: {fact}")
            assert done.stderr.endswith(f"; {advice}\n")


def _board(name: str) -> Board:
    return Board(name=name, machine={}, peak_rates={}, self_tests=(), latencies=(), not_measured=())


def test_lines_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    names = [f"board {number}" for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: append_board(path, _board(name)), names))
    assert sorted(board.name for board in read_ledger(path)) == sorted(names)


def test_a_ledger_that_another_process_keeps_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fer_bench.ledger.entries._LOCK_SECONDS", 0.05)
    path = tmp_path / "ledger.jsonl"
    board = _board("a board")
    with path.open("ab") as file:
        assert lock_file(file.fileno())
        with pytest.raises(OutputError, match=r"another process writes .*ledger\.jsonl"):
            append_board(path, board)
    path.write_bytes(board.to_json().encode())  # without a line end, as an editor may leave it
    append_board(path, board)
    assert len(read_ledger(path)) == 2


@pytest.mark.parametrize("value", [[], {}, "", False, 0, "1", -1.0])
def test_a_figure_that_is_no_positive_number_is_named(tmp_path: Path, value: object) -> None:
    latency = {"engine": "onnxruntime", "model": "v0", "precision": "int8", "batch": 1, "threads": 1, "p50_ms": 1.0}
    latency |= {"min_ms": 1.0, "images_per_second": 1000.0, "times_roofline": value, "is_busy": False}
    board = {"schema": 1, "name": "a board", "machine": {}, "peak_rates": {}, "self_tests": [], "not_measured": []}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(board | {"latencies": [latency]}) + "\n")
    done = CliRunner().invoke(main, ["ledger", "show", "--ledger", str(tmp_path / "ledger.jsonl")])
    assert done.exit_code == 1
    assert "a latency has numbers that are not positive" in done.output


@pytest.mark.parametrize("command", [("latency",), ("ledger", "add")])
def test_more_threads_than_cpus_are_refused(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, [*command, "--threads", "1", "--threads", "100000"])
    assert done.exit_code == 2
    assert (
        f"Invalid value for '--threads': at most {available_cpus()}, the CPUs that this process may use" in done.output
    )
