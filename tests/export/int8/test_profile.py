"""The profile names what really runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fer_export.int8.profile import main, profile_model
from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import find_model


def test_the_shipped_int8_file_runs_integers_only() -> None:
    nodes = profile_model(find_model("v0", precision="int8"), runs=5)
    kinds = [node.op_type for node in nodes]
    assert kinds.count("QLinearConv") == 3
    assert kinds.count("QGemm") == 2
    assert not {"Conv", "Gemm", "Cast", "QuantizeLinear", "Transpose"} & set(kinds)
    assert sum(node.share for node in nodes) == pytest.approx(1)


def test_the_command_prints_a_line_per_node() -> None:
    done = CliRunner().invoke(main, [str(find_model("v0", precision="fp32")), "--runs", "2", "--batch", "3"])
    assert done.exit_code == 0, done.output
    assert "Conv" in done.output
    assert "batch of 3" in done.output


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.onnx"):
        profile_model(tmp_path / "none.onnx")
