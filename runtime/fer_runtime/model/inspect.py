"""Describe a model file as text or JSON, without the onnx package."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_runtime.errors import ModelFileError
from fer_runtime.model.certificate import parse_certificate
from fer_runtime.model.metadata import METADATA_KEY, ModelMetadata, parse_metadata
from fer_runtime.model.onnx_file import OnnxFile, bytes_per_value, content_digest, read_onnx_file
from fer_runtime.model.shapes import MULTIPLYING, count_macs
from fer_runtime.text import printable

_COLOR_NAMES = {"gray": "grayscale", "rgb": "RGB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The contents of a model file and its metadata."""

    path: Path
    model_bytes: int
    arithmetic: str  # as the graph shows it: "fp32", "int8" or "fp16"
    opset: int
    producer: str
    operators: dict[str, int]  # how often each occurs
    parameters: int  # values in the weights and biases of Conv, Gemm and MatMul
    weight_bytes: int  # what they take in the file
    macs: int | None  # multiplications with addition per face; None where a shape is not known
    metadata: ModelMetadata | None  # None for a file that is not ours
    is_unchanged: bool | None  # the certificate's digest fits; None without a certificate

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON values; the golden faces' pixels are left out."""
        facts: dict[str, Any] = {
            "path": str(self.path),
            "model_bytes": self.model_bytes,
            "arithmetic": self.arithmetic,
            "opset": self.opset,
            "producer": self.producer,
            "operators": self.operators,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "macs": self.macs,
            "is_unchanged": self.is_unchanged,
            "metadata": None,
        }
        if self.metadata is not None:
            fields = {name: getattr(self.metadata, name) for name in ModelMetadata.__dataclass_fields__}
            fields["labels"] = list(self.metadata.labels)
            fields["certificate"] = {
                key: value.get("shape") if key == "faces" and isinstance(value, dict) else value
                for key, value in self.metadata.certificate.items()
            }
            facts["metadata"] = fields
        return facts

    def to_text(self) -> str:
        """The facts for a terminal."""
        lines = [
            f"{self.path}  {self.model_bytes / 1e6:.2f} MB, {self.arithmetic}, opset {self.opset}, by {self.producer}",
            "  operators     " + ", ".join(f"{count} {name}" for name, count in self.operators.items()),
            f"  parameters    {self.parameters:,} in {self.weight_bytes / 1e6:.2f} MB",
            "  work          " + ("unknown" if self.macs is None else f"{self.macs / 1e6:.1f} M MACs per face"),
        ]
        metadata = self.metadata
        if metadata is None:
            lines.append("  metadata      none: labels and input are unknown, not a file of fer-export")
            return "\n".join(map(printable, lines))
        lines += [
            f"  model         {metadata.name} {metadata.precision}: "
            f"faces uint8 (batch, {', '.join(map(str, metadata.face_shape))}), {_COLOR_NAMES[metadata.color]} 0-255",
            f"  labels        {', '.join(metadata.labels)}",
            f"  temperature   {metadata.temperature:.4f}" + _calibration(metadata),
            f"  checkpoint    SHA-256 {metadata.checkpoint_sha256[:16] or 'unknown'}",
        ]
        if isinstance(adopted := metadata.training.get("adopted"), dict):
            lines.append(f"  adopted       a file of {adopted.get('producer') or 'an unknown program'}")
        elif metadata.training:
            accuracy = metadata.training.get("accuracy")
            measured = f", validation accuracy {accuracy:.1%}" if isinstance(accuracy, float) else ""
            lines.append(f"  training      recipe {metadata.training.get('recipe', 'unknown')}{measured}")
        if metadata.verdict:
            lines.append(f"  verdict       {_verdict(metadata.verdict)}")
        if metadata.certificate:
            lines.append(f"  certificate   {self._certificate(metadata)}")
        lines.append("  versions      " + ", ".join(f"{key} {value}" for key, value in metadata.versions.items()))
        return "\n".join(map(printable, lines))

    def _certificate(self, metadata: ModelMetadata) -> str:
        try:
            certificate = parse_certificate(metadata, source=str(self.path))
        except ModelFileError:
            return "DAMAGED, cannot be replayed; export the model again with fer-export"
        worst = certificate.measured.get("max_logit_difference")
        return (
            f"{len(certificate.faces)} golden faces, "
            + (
                f"max |Δlogit| from {certificate.made_with.get('reference', 'PyTorch')} {worst:.1e}, "
                if isinstance(worst, float)
                else ""
            )
            + ("unchanged since export" if self.is_unchanged else "CHANGED since export")
            + "; replay: fer-infer --self-test"
        )


def _verdict(verdict: dict[str, Any]) -> str:
    failures = verdict.get("failures")
    reasons = "; ".join(map(str, failures)) if isinstance(failures, list) else ""
    if verdict.get("outcome") == "not proven" and reasons.startswith("not proven: "):  # nothing failed
        return reasons
    passed = "passed its gate" if verdict.get("passed") is True else "DID NOT PASS its gate"
    return f"{passed}: {reasons}" if reasons else passed


def _calibration(metadata: ModelMetadata) -> str:
    fitted = metadata.calibration
    if not fitted.get("faces"):
        return ", not calibrated: no labelled faces at export"
    text = f", fitted on {fitted['faces']} faces"
    before, after = fitted.get("ece_before"), fitted.get("ece_after")
    if isinstance(before, float) and isinstance(after, float):
        text = f", calibration error {before:.1%} -> {after:.1%} on {fitted['faces']} faces"
    if metadata.uncertain_below is not None:
        text += f"; uncertain below {metadata.uncertain_below:.3f}"
    return text


def inspect_model(path: Path) -> ModelFacts:
    """Describe the model file at `path`.

    Raises:
        ModelFileError: the file is missing, truncated or no ONNX model, or its metadata is damaged.
    """
    file, content = read_onnx_file(path, advice="give the path of an .onnx file")
    text = file.metadata.get(METADATA_KEY)
    metadata = None if text is None else parse_metadata(text, source=str(path))
    weights = _weights(file)
    digest = metadata.certificate.get("digest") if metadata is not None else None
    return ModelFacts(
        path=path,
        model_bytes=len(content),
        arithmetic=_arithmetic(file),
        opset=file.opsets.get("", file.opsets.get("ai.onnx", 0)),
        producer=file.producer or "unknown",
        operators=dict(Counter(node.op_type for node in file.nodes).most_common()),
        parameters=sum(file.tensors[name].size for name in weights),
        weight_bytes=sum(file.tensors[name].size * bytes_per_value(file.tensors[name].dtype) for name in weights),
        macs=count_macs(file),
        metadata=metadata,
        is_unchanged=None if not digest else content_digest(content) == digest,
    )


def _weights(file: OnnxFile) -> tuple[str, ...]:
    """Names of the constants that Conv, Gemm and MatMul multiply with and add, also behind a conversion."""
    converting = [node for node in file.nodes if node.op_type in ("DequantizeLinear", "Cast")]
    behind = {node.outputs[0]: node.inputs[0] for node in converting if node.inputs and node.outputs}
    found: dict[str, None] = {}
    for node in file.nodes:
        if node.op_type in MULTIPLYING:
            for name in node.inputs[1:]:
                name = behind.get(name, name)
                if name in file.tensors:
                    found[name] = None
    return tuple(found)


def _arithmetic(file: OnnxFile) -> str:
    kinds = {file.tensors[name].dtype for name in _weights(file)}
    if kinds & {"int8", "uint8"}:
        return "int8"
    return "fp16" if "float16" in kinds else "fp32"
