"""Times of models in turns, and the verdict on speed. No test here depends on how fast this machine is."""

from __future__ import annotations

import dataclasses

import onnx
import pytest
from tests.export.conftest import narrow_metadata

from fer_export.gate import timing
from fer_export.gate.golden import textures
from fer_export.gate.timing import Timing, measure_in_turns, speed_check
from fer_export.graph import serialize


def _timing(undisturbed_ms: float, p50_ms: float) -> Timing:
    return Timing(batch=1, undisturbed_ms=undisturbed_ms, p50_ms=p50_ms, runs=1000)


def test_speed_is_judged_without_the_interruptions() -> None:
    """Medians of a machine whose cores were taken away from the second model more often."""
    check = speed_check(_timing(0.14, 0.31), _timing(0.18, 0.22))
    assert check.passed
    assert "fastest tenth 0.140 ms, fp32 0.180 ms" in check.detail


def test_the_factor_is_printed_as_what_nine_turns_in_ten_reach() -> None:
    own = dataclasses.replace(_timing(1.0, 1.0), turns_ms=(1.0,) * 10)
    # One turn in which fp32 was disturbed gives 14.9 times; one in which the other was gives 1.
    reference = dataclasses.replace(_timing(2.0, 2.0), turns_ms=(2.0,) * 8 + (14.9, 1.0))
    detail = speed_check(own, reference).detail
    # The tenth percentile of 1, 2 eight times and 14.9 lies nine tenths of the way from 1 to 2.
    assert detail.startswith("at least 1.90 times as fast as fp32 at batch 1 (median of 10 turns 2.00")


@pytest.mark.parametrize("own", [0.18, 0.19])
def test_as_fast_as_fp32_is_not_faster(own: float) -> None:
    assert not speed_check(_timing(own, own), _timing(0.18, 0.18)).passed


def test_a_run_that_was_interrupted_does_not_count() -> None:
    assert timing._fastest_tenth([1.0, 1.2, *[50.0] * 18]) == pytest.approx(1.1)
    assert timing._fastest_tenth([3.0]) == 3.0


def test_a_close_call_is_measured_longer(narrow_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    models = dict.fromkeys(("fp32", "int8"), serialize(narrow_graph, narrow_metadata()))
    for is_close, repeats in ((True, timing._MOST_REPEATS), (False, 1)):
        monkeypatch.setattr(timing, "_is_close_call", lambda milliseconds, answer=is_close: answer)
        measured = measure_in_turns(models, textures(2), batch=2, rounds=2)
        # Of a turn's 1 to 50 runs, as many as fit its slice.
        assert all(result.runs % (2 * repeats) == 0 for result in measured.values())
        assert all(0 < result.undisturbed_ms <= result.p50_ms for result in measured.values())
    assert not timing._is_close_call([1.0])
