"""The settings of a service: models, limits and address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_runtime.model.find import DEFAULT_MODELS_DIR, Precision

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Models, limits and the address of a service."""

    models: tuple[str, ...] = ()  # names or files; none: the best that is there
    precision: Precision | None = None
    models_dir: Path = Path(DEFAULT_MODELS_DIR)
    watch: Path | None = None  # folder whose models are served as they come
    detector: str = "auto"
    yunet: Path | None = None
    min_face: int = 24  # pixels
    min_confidence: float | Literal["auto"] | None = None
    live: int | str | None = None  # camera or address of a stream that /live shows
    live_name: str = "camera"  # on that page
    provider: str = "CPU"
    threads: int = 1  # of ONNX Runtime, for one batch
    workers: int = 1  # images decoded, and batches computed, at a time
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    token: str | None = None
    max_body: int = 32 << 20  # bytes of a request
    max_pixels: int = 50_000_000  # of an image
    max_requests: int = 256  # in progress; further ones get 503
    timeout: float = 30.0  # seconds of a request
    batch_size: int = 32  # faces
    batch_wait: float = 0.002  # seconds that a batch waits for requests that are on their way

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine reach the service."""
        return self.host in LOOPBACK or self.host.startswith("127.")
