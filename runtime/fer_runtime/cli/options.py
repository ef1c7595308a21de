"""The kinds of run of `fer-infer`, each with the options that it uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from fer_runtime.command import RunOptions
from fer_runtime.model.find import Precision
from fer_runtime.output.formats import OutputFormat

if TYPE_CHECKING:
    from pathlib import Path


class ModelOptions(RunOptions):
    """Which model, and how ONNX Runtime runs it."""

    model: str | None  # a name or a file; None takes the best that is there
    precision: Precision | None
    models_dir: Path
    provider: str
    allow: str | None  # an arithmetic besides fp32, with --provider auto
    strict: bool
    threads: int
    any_operator: bool


class RecognizerOptions(ModelOptions, ABC):
    """How faces are found and classified, and where the rows go."""

    detector: str
    yunet: Path | None
    fetch_yunet: bool
    min_face: int  # pixels
    min_confidence: float | Literal["auto"] | None
    format_name: str | None  # None: by the suffix of `output`, else table on a terminal and jsonl elsewhere
    output: str | None  # None: standard output
    engine: str
    quiet: bool

    @staticmethod
    @abstractmethod
    def writes(output_format: OutputFormat) -> bool:
        """Whether this kind of run writes rows in that format."""


class ImagesRun(RecognizerOptions):
    """Images and folders of images, on this machine."""

    title: ClassVar[str] = "a run over images"

    paths: tuple[str, ...]
    null_separated: bool
    samples: bool
    recursive: bool
    max_pixels: int
    random_count: int | None
    annotate: Path | None
    anonymize: str | None
    contact_sheet: Path | None
    resume: bool

    @property
    def reads_subfolders(self) -> bool:
        """Whether images of the folders' folders may be read, as --random does, too."""
        return self.recursive or self.random_count is not None

    @staticmethod
    def writes(output_format: OutputFormat) -> bool:
        return output_format.images is not None


class WatchRun(RecognizerOptions):
    """A folder whose new files become rows."""

    title: ClassVar[str] = "--watch"

    watch: Path
    recursive: bool
    max_pixels: int

    @staticmethod
    def writes(output_format: OutputFormat) -> bool:
        return output_format.images is not None and output_format.frame is None


class VideosRun(RecognizerOptions):
    """Videos and cameras."""

    title: ClassVar[str] = "a run over videos or cameras"

    paths: tuple[str, ...]
    camera: int | None
    every: int
    start: float  # seconds
    duration: float | None  # seconds
    segments: bool
    annotate: Path | None
    anonymize: str | None

    @staticmethod
    def writes(output_format: OutputFormat) -> bool:
        return output_format.is_for_videos


class StreamsRun(VideosRun):
    """Network streams."""

    title: ClassVar[str] = "a run over streams"

    stream_names: tuple[str, ...]  # in rows, one for each stream; empty: scheme, host and port
    reconnect: float  # seconds


class PipedRun(VideosRun):
    """A video on standard input."""

    title: ClassVar[str] = "--input-format"

    stream_names: tuple[str, ...]
    input_format: str
    live: bool


class ClusterRun(RecognizerOptions):
    """Images on the machines of a Ray cluster."""

    title: ClassVar[str] = "--engine ray"

    paths: tuple[str, ...]
    null_separated: bool
    samples: bool
    recursive: bool
    max_pixels: int
    resume: bool
    ray_address: str | None
    workers: int | None
    part_size: int | None  # images

    @staticmethod
    def writes(output_format: OutputFormat) -> bool:
        return output_format.is_for_cluster


class SelfTestRun(ModelOptions):
    """Compare the model on this machine with PyTorch's answers inside its file."""

    title: ClassVar[str] = "--self-test"

    self_test: bool
    trust: Path | None  # a public key


class DevicesRun(RunOptions):
    """List the execution providers."""

    title: ClassVar[str] = "--devices"

    devices: bool


class ListModelsRun(RunOptions):
    """List the models that `--model` finds by name."""

    title: ClassVar[str] = "--list-models"

    list_models: bool
    models_dir: Path


class FetchRun(RunOptions):
    """Download YuNet and do nothing else."""

    title: ClassVar[str] = "--fetch-yunet without images"

    fetch_yunet: bool


RUNS = (
    ImagesRun,
    WatchRun,
    VideosRun,
    StreamsRun,
    PipedRun,
    ClusterRun,
    SelfTestRun,
    DevicesRun,
    ListModelsRun,
    FetchRun,
)
