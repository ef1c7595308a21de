"""Load a model file with any provider: the one of a name, or the fastest."""

from __future__ import annotations

from pathlib import Path

from fer_runtime.model.opening import LoadedModel, open_model, read_model
from fer_runtime.model.providers import AUTO


def load_model(
    path: Path,
    *,
    content: bytes | None = None,
    threads: int = 1,
    provider: str = "CPU",
    strict: bool = False,
    any_operator: bool = False,
) -> LoadedModel:
    """Load a model file that may come from anybody.

    Args:
        path, content, threads, strict, any_operator: as for `open_model`, whose checks the file must pass.
        provider: as for `open_model`. The provider "auto" is the fastest that passes the file's self-test; "auto:bf16"
            may also take one that computes in bf16.

    Raises:
        ModelFileError, ProviderError, ValueError: as for `open_model`.
    """
    kind, _, allowed = provider.partition(":")
    if kind.lower() == AUTO:
        from fer_runtime.model.auto import choose_provider

        content = read_model(path, content=content, any_operator=any_operator).content
        allow = allowed.lower().split(",")
        provider = choose_provider(
            path, content=content, threads=threads, any_operator=any_operator, allow=allow
        ).provider
    return open_model(
        path, content=content, threads=threads, provider=provider, strict=strict, any_operator=any_operator
    )
