"""The load of `fer-bench serve`: what it counts, not how fast it is."""

from __future__ import annotations

import pytest

from fer_bench.serving import measure_serving, serving_table
from fer_runtime.model.find import find_model


def test_every_service_answers_every_load() -> None:
    pytest.importorskip("starlette", reason="needs the extra serve: pip install 'fer-edge[serve]'")
    results = measure_serving(find_model("v0"), clients=(3,), faces=(2,), seconds=0.3, rounds=2)
    assert {one.service for one in results} == {"bare model", "plain", "fer-serve"}
    for one in results:
        assert one.errors == 0
        assert one.requests >= 2 * one.clients  # each client has an answer in each round
        assert 0 < one.p50_ms <= one.p99_ms
        assert one.faces_per_second == pytest.approx(one.requests_per_second * one.faces, rel=0.5)
    assert len(serving_table(results).splitlines()) == 4
