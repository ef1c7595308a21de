"""What the arguments of `fer-infer` ask for together, and which of them cannot be meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import click

_SUFFIX_FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".srt": "srt"}
_NAMED = 3  # paths in one message

_DOWNLOAD = "fer-infer opens no network; download it first, and give the file"
_SCHEME_ADVICE = {
    "http": _DOWNLOAD,
    "https": _DOWNLOAD,
    "ftp": _DOWNLOAD,
    "rtsp": "streams are not read; record one to a file first, or give --camera N",
    "rtmp": "streams are not read; record one to a file first, or give --camera N",
    "file": "give the path alone, without file://",
}


def format_by_suffix(format_name: str | None, output: str | None) -> str | None:
    """The format that `--format`, or else the suffix of `--output`, asks for; None where neither does.

    Raises:
        click.UsageError: they ask for two.
    """
    meant = _SUFFIX_FORMATS.get(os.path.splitext((output or "").rstrip("/"))[1].lower())
    if None not in (format_name, meant) and format_name != meant:
        raise click.UsageError(
            f"--output {output} is named for {meant}, and --format says {format_name}; give another name, or leave "
            "--format out"
        )
    return format_name or meant


def refuse_uris(paths: Sequence[str]) -> None:
    """Stop where an argument is `scheme://...`: this machine's engine reads files.

    Raises:
        click.UsageError: there is one, and this is what to do instead.
    """
    for path in paths:
        scheme, separator, _ = path.partition("://")
        if separator and scheme.isalnum() and not os.path.lexists(path):
            raise click.UsageError(
                f"{path}: " + _SCHEME_ADVICE.get(scheme.lower(), "object stores are read by --engine ray (extra `ray`)")
            )


def find_videos(paths: Sequence[str], camera: int | None) -> list[Path | int]:
    """The videos among the arguments, patterns expanded; all of the arguments are videos, or none is.

    Raises:
        click.UsageError: there are both.
    """
    from fer_runtime.batch.sources import VIDEO_SUFFIXES, expanded

    videos: list[Path | int] = []
    others = False
    for path in paths:
        for one in expanded(path, VIDEO_SUFFIXES):
            if os.path.splitext(one)[1].lower() in VIDEO_SUFFIXES and not os.path.isdir(one):
                videos.append(Path(one))
            else:
                others = True
    if not others:
        return videos if camera is None else [*videos, camera]
    if videos or camera is not None:
        named = [str(video) for video in videos[:_NAMED]] or [f"--camera {camera}"]
        more = f" and {len(videos) - _NAMED} more" if len(videos) > _NAMED else ""
        raise click.UsageError(
            f"{', '.join(named)}{more}: give videos and cameras in a run of their own, without pictures and folders"
        )
    return []


def refuse_overwriting(
    paths: Sequence[str],
    *,
    annotate: Path | None,
    output: Path | None,
    contact_sheet: Path | None,
    recursive: bool,
) -> None:
    """Stop before a copy, the rows or the sheet would take the place of somebody's picture."""
    from fer_runtime.batch.sources import expanded
    from fer_runtime.images import IMAGE_SUFFIXES

    for path in chain.from_iterable(map(expanded, paths)):
        is_folder = os.path.isdir(path)
        for option, file in (("--output", output), ("--contact-sheet", contact_sheet)):
            if file is None or not file.exists():
                continue
            is_among = is_folder and file.suffix.lower() in IMAGE_SUFFIXES and _holds(path, file, recursive=recursive)
            if is_among or _is_same(file, path):
                raise click.UsageError(f"{option} {file} would overwrite that very picture; give another name")
        folder = path if is_folder else os.path.dirname(path) or "."
        if (
            annotate is not None
            and path != "-"
            and _holds(folder, annotate / "copy", recursive=recursive and is_folder)
        ):
            raise click.UsageError(
                f"--annotate {annotate} is among the pictures of {path}, and copies would overwrite them; "
                "give a folder elsewhere"
            )


def _holds(folder: str, file: Path, *, recursive: bool) -> bool:
    parents = file.resolve().parents
    return any(_is_same(parent, folder) for parent in (parents if recursive else parents[:1]))


def _is_same(one: Path, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there, or has a name that none can have
        return False
