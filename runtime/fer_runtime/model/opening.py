"""Open a model file that may come from anybody: read it, check it, and only then give it to ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fer_runtime.model.metadata import ModelMetadata
from fer_runtime.model.onnx_file import OnnxFile, read_model_bytes, read_onnx
from fer_runtime.model.session import open_session
from fer_runtime.model.structure import check_contract, check_operators, check_work, fixed_batch
from fer_runtime.system import MAX_THREADS

if TYPE_CHECKING:
    from fer_runtime.model.session import InferenceSession


class LoadedModel(NamedTuple):
    """A session for a model of fer-export, and the metadata of its file."""

    session: InferenceSession
    provider: str  # the execution provider that it uses, such as "CPU"
    metadata: ModelMetadata
    file: OnnxFile
    content: bytes
    batch: int | None  # fixed number of faces of every run; None for any number


class CheckedModel(NamedTuple):
    """A model file that passed the checks for files from strangers, and was not opened."""

    metadata: ModelMetadata
    file: OnnxFile
    content: bytes


def read_model(path: Path, *, content: bytes | None = None, any_operator: bool = False) -> CheckedModel:
    """Read and check a model file that may come from anybody, for a program that opens it by itself.

    Args:
        path: the file.
        content: its bytes, where they were read already.
        any_operator: skip the checks of operators and work, for a file that you trust.

    Raises:
        ModelFileError: the file is missing, damaged, or refused by a check.
    """
    source = str(path)
    content = read_model_bytes(path) if content is None else content
    file = read_onnx(content, source=source)
    metadata = file.own_metadata(source=source)
    check_contract(file, metadata, source=source)
    if not any_operator:
        check_operators(file, source=source)
        check_work(file, source=source)
    return CheckedModel(metadata=metadata, file=file, content=content)


def open_model(
    path: Path,
    *,
    content: bytes | None = None,
    threads: int = 1,
    provider: str = "CPU",
    strict: bool = False,
    any_operator: bool = False,
) -> LoadedModel:
    """Open a model file that may come from anybody with the provider of that name.

    Before a session is opened, the file's sizes, operators, work per face, inputs, outputs and metadata are checked.

    Args:
        path: the file.
        content: its bytes, where they were read already.
        threads, provider, strict: as for `open_session`.
        any_operator: skip the checks of operators and work, for a file that you trust.

    Raises:
        ModelFileError: the file is missing, damaged, or refused by a check.
        ProviderError: as for `open_session`.
        ValueError: there are more than `MAX_THREADS` threads.
    """
    if threads > MAX_THREADS:
        raise ValueError(f"threads must be at most {MAX_THREADS}, not {threads}")
    checked = read_model(path, content=content, any_operator=any_operator)
    opened = open_session(checked.content, threads=threads, provider=provider, strict=strict, source=str(path))
    return LoadedModel(
        session=opened.session,
        provider=opened.provider,
        metadata=checked.metadata,
        file=checked.file,
        content=checked.content,
        batch=fixed_batch(checked.file),
    )
