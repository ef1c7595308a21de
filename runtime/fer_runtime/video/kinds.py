"""Which files are videos: told by their first bytes, not by their names."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fer_runtime.images import IMAGE_SUFFIXES
from fer_runtime.video.signatures import HEAD_BYTES, looks_like_a_video

# Names that say "video" where the content cannot: a file that is missing, unreadable, empty or damaged.
VIDEO_SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".avi", ".mkv", ".webm", ".wmv", ".asf", ".flv", ".f4v"),
        *(".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".ogv", ".ogm", ".h264", ".264", ".h265"),
        *(".265", ".hevc", ".ivf", ".y4m", ".mxf", ".nut", ".dv", ".rm", ".rmvb", ".divx", ".mjpeg", ".mjpg"),
    )
)
# TypeScript has these suffixes, too: such a file is a video only if its content is.
AMBIGUOUS_SUFFIXES = frozenset((".ts", ".mts"))


def is_video(path: Path | str) -> bool:
    """Whether the file at `path` is a video by its content, or by its name where the content says nothing.

    A file that is named as an image is taken for one and not opened here.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return False
    head = read_head(path)
    if head is not None and looks_like_a_video(head):
        return True
    if head is not None and suffix in AMBIGUOUS_SUFFIXES:
        return False
    return suffix in VIDEO_SUFFIXES and not os.path.isdir(path)


def is_video_in_folder(path: str) -> bool:
    """Whether a file that a run over a folder leaves out is a video, without opening files of other suffixes."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix and suffix not in AMBIGUOUS_SUFFIXES:
        return suffix in VIDEO_SUFFIXES
    head = read_head(path)
    return head is not None and looks_like_a_video(head)


def read_head(path: Path | str) -> bytes | None:
    """The first bytes of a regular file; None if it cannot be read."""
    try:
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError):
        return None
    try:
        return os.read(descriptor, HEAD_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(descriptor)
