"""Rows as Parquet: the fields of the JSON lines, under the same names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fer_runtime.extras import needs_extra

if TYPE_CHECKING:
    import pyarrow


def parquet_schema(labels: Sequence[str]) -> pyarrow.Schema:
    """The columns for a model with these labels; `uncertain` is null unless --min-confidence was given."""
    with needs_extra("ray"):
        import pyarrow as pa
    face = pa.struct(
        [
            ("box", pa.list_(pa.int32())),
            ("detector_score", pa.float64()),
            ("landmarks", pa.list_(pa.list_(pa.float64()))),
            ("expression", pa.string()),
            ("confidence", pa.float64()),
            ("probabilities", pa.struct([(name, pa.float64()) for name in labels])),
            ("uncertain", pa.bool_()),
            ("reasons", pa.list_(pa.string())),
            ("not_checked", pa.list_(pa.string())),
        ]
    )
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("error", pa.string()),
            pa.field("faces", pa.list_(face), nullable=False),
        ]
    )


def to_parquet(lines: str, labels: Sequence[str]) -> bytes:
    """A Parquet file of JSON lines, one row a line.

    Numbers are those of the lines, six decimals. Parquet's text is UTF-8, so that a byte of a path that is
    none becomes the six characters `\\udcXX`.
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows = [_row(line) for line in lines.splitlines()]
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows, schema=parquet_schema(labels)), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _row(line: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line)
    row["path"] = row["path"].encode("utf-8", "backslashreplace").decode()
    return row
