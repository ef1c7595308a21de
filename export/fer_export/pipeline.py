"""From a checkpoint to published model files: what `fer-export` does."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch

from fer_export.faces import synthetic_faces, textures
from fer_export.graph import DEFAULT_OPSET, export_graph, serialize
from fer_export.parity import ParityReport, check_parity
from fer_runtime import __version__
from fer_runtime.comparison import Uint8Array
from fer_runtime.errors import ParityError
from fer_runtime.files import replaced_atomically, sha256_of, write_atomically
from fer_runtime.metadata import ModelMetadata
from fer_runtime.models import DEFAULT_MODELS_DIR, Precision, checkpoint_path, model_path, parity_path
from fer_train.checkpoints import load_checkpoint
from fer_train.data import LabelledFaces, load_faces

PARITY_FACES = 256  # real faces that the gate compares; more find no other fault
SEED = 0  # of every random choice of faces


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """One published file."""

    path: Path
    precision: Precision
    model_bytes: int
    parity: ParityReport


def export_model(
    name: str,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    checkpoint: Path | None = None,
    data: Path | None = None,
    opset: int = DEFAULT_OPSET,
    models_dir: Path = DEFAULT_MODELS_DIR,
) -> tuple[ExportedModel, ...]:
    """Export a network and publish each file that passes its gate.

    Args:
        name: "v0" or "v1".
        precisions: which files to write.
        checkpoint: trained weights; the model's own in `models_dir` by default.
        data: the dataset's root; without it made-up faces are compared.
        opset: ONNX opset version.
        models_dir: where files are read and written.

    Raises:
        CheckpointError: the weights are missing, damaged or of another network.
        DataError: the pictures are missing or unreadable.
        ParityError: a file failed its gate; it is not published.
        OutputError: a file cannot be written.
    """
    source = checkpoint or checkpoint_path(models_dir, name)
    trained = load_checkpoint(source, name=name)
    validation = load_faces(data, "validation") if data is not None else None
    faces, real = parity_faces(validation)
    model = export_graph(trained, opset=opset)
    metadata = ModelMetadata(
        name=name,
        expressions=trained.expressions,
        precision="fp32",
        opset=opset,
        checkpoint_sha256=sha256_of(source),
        training=trained.training,
        versions=tool_versions(),
    )
    path = model_path(models_dir, name)
    with replaced_atomically(path) as partial:
        partial.write_bytes(serialize(model, metadata))
        # What is checked is what was written, read back from the disk.
        content = partial.read_bytes()
        report = check_parity(content, trained, faces, real_faces=real, opset=opset)
        write_atomically(
            parity_path(models_dir, name), json.dumps({"model": name, "fp32": report.to_dict()}, indent=1) + "\n"
        )
        if not report.passed:
            raise ParityError(
                f"{path} is not published: "
                + "; ".join(f"{check.name}: {check.detail}" for check in report.failures)
                + f"; the report is {parity_path(models_dir, name)}"
            )
    return (ExportedModel(path=path, precision="fp32", model_bytes=len(content), parity=report),)


def parity_faces(validation: LabelledFaces | None) -> tuple[Uint8Array, int]:
    """Faces for the gate, uint8 (faces, 48, 48), and how many of them are real."""
    if validation is None:
        return np.concatenate([synthetic_faces(), textures(PARITY_FACES)]), 0
    chosen = np.random.default_rng(SEED).permutation(len(validation))[:PARITY_FACES]
    real = validation.faces[np.sort(chosen)]
    made_up = [synthetic_faces()] if len(real) >= PARITY_FACES else [synthetic_faces(), textures(PARITY_FACES)]
    return np.concatenate([real, *made_up]), len(real)


def tool_versions() -> dict[str, Any]:
    """Versions of what shapes the file."""
    return {
        "fer-edge": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
