"""Publish a judged file: add verdict and certificate, replay it from the disk, then rename it."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

import onnx

from fer_export.gate.golden import CALIBRATION_FACES, SEED
from fer_export.gate.parity import run_shuffled
from fer_export.gate.report import ExportedModel
from fer_export.gate.subject import Subject
from fer_export.graph import serialize
from fer_export.int8.gptq import PAIR_LIMIT, WEIGHT_LIMIT
from fer_runtime.errors import ParityError
from fer_runtime.files import replaced_atomically
from fer_runtime.model.certificate import LOOSEST, Certificate
from fer_runtime.model.find import Precision
from fer_runtime.model.integers import integer_checksums
from fer_runtime.model.metadata import METADATA_KEY, parse_metadata
from fer_runtime.model.onnx_file import content_digest
from fer_runtime.model.parity import Tolerance
from fer_runtime.model.self_test import run_self_test
from fer_runtime.model.session import open_session, runtime_version
from fer_runtime.system import instruction_sets

# How far a replay of the golden faces may lie from the file's own answers at export. Float32 is added in another order
# on another machine: up to 1e-5 was measured. Integers came out equal on AVX2, AVX-512 VNNI, AMX and emulated ARM
# cores, so an int8 file may not differ either; the narrow limits let a single wrong weight show.
REPLAY_TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(logits=1e-4, probabilities=1e-4, margin=1e-3),
    "fp16": LOOSEST["fp16"],
    "int8": Tolerance(logits=1e-4, probabilities=1e-4, margin=1e-3),
}


# What made an int8 file, for its metadata.
QUANTIZERS = {
    "": "fer-edge",
    "fer-edge": "fer-edge",
    "onnxruntime": f"onnxruntime {runtime_version()} quantize_static",
}


def publish(subject: Subject, judged: ExportedModel, model: onnx.ModelProto, content: bytes) -> ExportedModel:
    """Write the file with verdict and certificate, replay it from the disk, then rename it.

    Args:
        content: the bytes that were judged, of the same model without verdict and certificate.

    Raises:
        ParityError: what would be written is not what was judged, or does not pass its own self-test.
    """
    sealed = _sealed(subject, judged, model)
    if difference := _difference(content, sealed):
        raise ParityError(
            f"{judged.path} is not published: {difference} of the file to write differs from what was judged"
        )
    with replaced_atomically(judged.path) as partial:
        partial.write_bytes(sealed)
        replayed = run_self_test(partial)
        if not replayed.passed:
            raise ParityError(
                f"{judged.path} is not published: what was written does not pass its own self-test: "
                + "; ".join(str(check) for check in replayed.checks if not check.passed)
            )
    return dataclasses.replace(judged, is_published=True, model_bytes=len(sealed))


def _difference(judged: bytes, sealed: bytes) -> str:
    """What differs between two files beside verdict and certificate; "" if nothing does."""
    models = [onnx.load_model_from_string(content) for content in (judged, sealed)]
    entries = [parse_metadata(_only_entry(model), source="the file") for model in models]
    for model in models:
        del model.metadata_props[:]
    if models[0].SerializeToString(deterministic=True) != models[1].SerializeToString(deterministic=True):
        return "the graph"
    plain = [dataclasses.asdict(dataclasses.replace(metadata, verdict={}, certificate={})) for metadata in entries]
    return ", ".join(name for name in plain[0] if plain[0][name] != plain[1][name])


def _only_entry(model: onnx.ModelProto) -> str | None:
    entries = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    return entries[0] if len(entries) == len(model.metadata_props) == 1 else None


def _sealed(subject: Subject, judged: ExportedModel, model: onnx.ModelProto) -> bytes:
    golden = subject.coverage.golden
    metadata = subject.metadata(judged.precision, model, judged.calibration, judged.point)
    content = serialize(model, metadata)
    session = open_session(content, source="the exported model").session
    own = run_shuffled(session, golden, batch=subject.batch or len(golden))
    certificate = Certificate(
        faces=golden,
        network_logits=subject.original.logits(golden),
        model_logits=own.logits,
        model_unfamiliarity=own.unfamiliarity,
        tolerance=REPLAY_TOLERANCES[judged.precision],
        coverage=subject.coverage.to_dict(),
        integers=integer_checksums(content, _integers(model), golden, batch=subject.batch)
        if judged.precision == "int8" and judged.quantizer != "onnxruntime"
        else {},
        labels=subject.original.labels,
        measured={} if judged.parity.comparison is None else judged.parity.comparison.to_dict(),
        made_with={
            "reference": subject.original.program,
            "onnxruntime": runtime_version(),
            "provider": "CPU",
            "machine": platform.machine(),
            "cpu_flags": " ".join(instruction_sets()),
        },
    )
    metadata = dataclasses.replace(metadata, verdict=_verdict(subject, judged), certificate=certificate.to_dict())
    digest = content_digest(serialize(model, metadata))
    return serialize(model, dataclasses.replace(metadata, certificate={**metadata.certificate, "digest": digest}))


def _integers(model: onnx.ModelProto) -> list[str]:
    """The uint8 tensors that the layers write, which our quantizer makes equal on every machine."""
    return [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def _verdict(subject: Subject, judged: ExportedModel) -> dict[str, Any]:
    """The gate's results without times, so that equal exports give equal bytes. Only a refusal for speed names them."""
    verdict: dict[str, Any] = {
        "passed": judged.outcome == "passed",
        "outcome": judged.outcome,
        "failures": [f"{check.name}: {check.detail}" for check in judged.parity.failures]
        + ([f"not proven: {judged.not_proven}"] if judged.not_proven else []),
        "unproven": list(judged.parity.unproven),
        "checks": [check.name for check in judged.parity.checks],
        "faces": judged.parity.faces,
        "real_faces": judged.parity.real_faces,
        "labelled_faces": 0,
    }
    if judged.quality is not None and subject.validation is not None:
        verdict |= {
            "labelled_faces": judged.quality.faces,
            "labelled_faces_fingerprint": subject.validation.fingerprint,
            "labels": subject.labels_from,
            "accuracy": round(judged.quality.accuracy, 6),
            "accuracy_interval": [round(value, 6) for value in judged.quality.accuracy_interval],
            "macro_f1": round(judged.quality.macro_f1, 6),
            "worst_recall": round(judged.quality.worst_recall, 6),
            "agreement_with_fp32": None if judged.agreement is None else round(judged.agreement, 6),
        }
    if judged.precision == "int8":
        verdict["budget_points"] = dataclasses.asdict(subject.budget)
        verdict["quantization"] = {
            "by": QUANTIZERS[judged.quantizer],
            "activations": "uint8",
            "weights": f"int8 per channel, up to {WEIGHT_LIMIT}, neighbours together up to {PAIR_LIMIT}"
            if judged.quantizer != "onnxruntime"
            else "int8 per channel, 7 bits",
            "calibration_faces": CALIBRATION_FACES,
            "seed": SEED,
        }
    return verdict
