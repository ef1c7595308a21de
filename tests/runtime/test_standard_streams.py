"""stdout as commands use it, on disks that are full and in encodings that lack letters."""

from __future__ import annotations

import io

import pytest

from fer_runtime.standard_streams import Results


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "|Δ| naïve"),
        ("cp1252", "|\\u0394| naïve"),  # Windows, where stdout is a file
        ("latin-1", "|\\u0394| naïve"),
        ("ascii", "|Δ| naïve"),  # a bare container, whose terminal shows UTF-8
    ],
)
def test_letters_that_an_encoding_lacks_are_escapes(encoding: str, expected: str) -> None:
    written = io.BytesIO()
    results = Results(io.TextIOWrapper(written, encoding))
    results.write("|Δ| naïve")
    results.flush()
    assert written.getvalue().decode("utf-8" if encoding == "ascii" else encoding) == expected
