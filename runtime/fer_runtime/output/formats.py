"""The registry of output formats: the kinds of run that write each, and the class that makes its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fer_runtime.registry import Registry, load

if TYPE_CHECKING:
    from fer_runtime.output.rows import RowFormat
    from fer_runtime.output.sink import Frame


class OutputFormat(NamedTuple):
    """A format of rows, and which kinds of run write it."""

    name: str  # as --format takes it
    help: str  # for --help
    suffixes: tuple[str, ...] = ()  # of --output files, lower case, such as ".csv"
    images: str | None = None  # "module:class" of the RowFormat that writes rows of images
    takes_labels: bool = False  # the class is made with the labels of the model, in their order
    is_for_videos: bool = False
    is_for_cluster: bool = False
    is_resumable: bool = False  # a run over images can be continued from its rows, one JSON object per line
    frame: str | None = None  # "module:class" of the Frame around the rows of a whole output
    rows_of: str | None = None  # the format that has the same rows without the frame

    def create(self, labels: Sequence[str]) -> RowFormat:
        """A writer for the rows of one run over images.

        Args:
            labels: of the model, in the order of its probabilities.
        """
        assert self.images is not None, f"{self.name} writes no rows of images"
        writer: RowFormat = load(self.images)(labels) if self.takes_labels else load(self.images)()
        return writer

    def create_frame(self) -> Frame | None:
        """Make the text around the rows of one run, such as the brackets of a JSON array; None if there is none."""
        frame: Frame | None = None if self.frame is None else load(self.frame)()
        return frame


OUTPUT_FORMATS = Registry[OutputFormat](
    "output format",
    OutputFormat(
        name="table",
        help="one line per face, for people",
        images="fer_runtime.output.rows:Table",
        takes_labels=True,
        is_for_videos=True,
    ),
    OutputFormat(
        name="jsonl",
        help="one JSON object per line",
        suffixes=(".jsonl", ".ndjson"),
        images="fer_runtime.output.rows:JsonLines",
        is_for_videos=True,
        is_for_cluster=True,
        is_resumable=True,
    ),
    OutputFormat(
        name="json",
        help="one JSON array",
        suffixes=(".json",),
        images="fer_runtime.output.rows:JsonLines",
        is_for_videos=True,
        frame="fer_runtime.output.rows:JsonArray",
        rows_of="jsonl",
    ),
    OutputFormat(
        name="csv",
        help="one line per face",
        suffixes=(".csv",),
        images="fer_runtime.output.rows:Csv",
        takes_labels=True,
        is_for_videos=True,
    ),
    OutputFormat(name="srt", help="subtitles with each face's expression", suffixes=(".srt",), is_for_videos=True),
    OutputFormat(name="parquet", help="a folder of Parquet files", suffixes=(".parquet",), is_for_cluster=True),
)
