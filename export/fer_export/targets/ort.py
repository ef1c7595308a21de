"""ONNX Runtime's own format, and the list of operators that a minimal build needs for it."""

from __future__ import annotations

from pathlib import Path

import onnx

from fer_export.targets import Converted, Source
from fer_runtime.errors import ModelFileError
from fer_runtime.model.find import Precision
from fer_runtime.model.session import runtime_version, save_optimized
from fer_runtime.text import counted


def convert(source: Source, precision: Precision, path: Path) -> Converted:
    """Write `path` and `NAME.ort.operators.config` beside it.

    Raises:
        ModelFileError: the source has a fixed batch.
    """
    if batch := onnx.load_model_from_string(source.content).graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise ModelFileError(
            f"{source.path} takes {counted(batch, 'face')}, no more and no fewer, and .ort files are replayed with any "
            "number; give the file that was exported without --batch"
        )
    path.write_bytes(save_optimized(source.content, ort_format=True))
    graph = onnx.load_model_from_string(save_optimized(source.content, ort_format=False))
    path.with_name(f"{path.name}.operators.config").write_text(required_operators(graph))
    return Converted(
        preprocessing="none: the input takes uint8 faces",
        versions={"onnxruntime": runtime_version()},
    )


def required_operators(model: onnx.ModelProto) -> str:
    """Operators by domain and opset, as `build.sh --include_ops_by_config` of ONNX Runtime reads them."""
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    by_domain: dict[str, set[str]] = {}
    for node in model.graph.node:
        by_domain.setdefault(node.domain or "ai.onnx", set()).add(node.op_type)
    lines = [f"{domain};{opsets[domain]};{','.join(sorted(names))}" for domain, names in sorted(by_domain.items())]
    return "# ONNX Runtime: build.sh --minimal_build --include_ops_by_config THIS_FILE\n" + "\n".join(lines) + "\n"
