"""What messages quote of other libraries' errors."""

from __future__ import annotations

import pytest

from fer_runtime.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad shape"), "bad shape"),
        (RuntimeError("\n  [ONNXRuntimeError] no such node\nat graph.cc:12\n"), "[ONNXRuntimeError] no such node"),
        (KeyError(), "KeyError"),
        (RuntimeError(" \n"), "RuntimeError"),
    ],
)
def test_the_first_line_of_an_error_is_its_text_or_else_its_class(error: Exception, line: str) -> None:
    assert first_line(error) == line
