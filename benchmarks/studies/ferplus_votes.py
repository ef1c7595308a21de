"""Write the FER+ votes that ship with fer_train, and test them on altered copies of FER2013.

python -m studies.ferplus_votes --data data --votes ferplus.csv.gz

The votes file has a row per image: its path, then votes for the seven expressions, contempt, unknown and not_a_face.
"""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import click
import cv2
import numpy as np

from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.files import replaced_atomically
from fer_train.data.ferplus import (
    BITS,
    OTHERS,
    VOTES_FILE,
    FerPlusVotes,
    Float32Array,
    Uint8Array,
    fingerprints,
    low_frequencies,
)
from fer_train.data.folders import load_faces

_ENCODINGS = ((".jpg", 95), (".jpg", 75), (".jpg", 50), (".png", None))


def write_votes(faces: Uint8Array, votes: Float32Array) -> None:
    """Write VOTES_FILE: one entry for equal images."""
    unique, places = np.unique(faces.reshape(len(faces), -1), axis=0, return_index=True)
    thresholds = np.median(low_frequencies(faces, BITS), axis=0)
    bits = fingerprints(unique.reshape(-1, *faces.shape[1:]), thresholds)
    order = np.lexsort(bits.T)
    with replaced_atomically(VOTES_FILE) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            fingerprints=bits[order],
            thresholds=thresholds,
            votes=(votes[places][order] * 2).round().astype(np.uint8),
        )


def encoded(face: Uint8Array, suffix: str, quality: int | None) -> Uint8Array:
    """The face after a round through an image file."""
    options = [] if quality is None else [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, content = cv2.imencode(suffix, face, options)
    return cv2.imdecode(content, cv2.IMREAD_GRAYSCALE).astype(np.uint8)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--votes", type=click.Path(path_type=Path), help="Write the shipped file from this one first.")
def main(data: Path, votes: Path | None) -> None:
    """Build and test the fingerprints."""
    splits = {split: load_faces(data, split) for split in ("train", "validation")}
    faces = np.concatenate([split.faces for split in splits.values()])
    paths = [f"{name}/{path}" for name, split in splits.items() for path in split.paths]
    if votes is not None:
        text = gzip.decompress(votes.read_bytes()).decode()
        rows = {row["picture"]: row for row in csv.DictReader(io.StringIO(text))}
        voted = np.array([path in rows for path in paths])
        table = np.array(
            [[float(rows[path][name]) for name in (*EXPRESSIONS, *OTHERS)] for path in paths if path in rows],
            np.float32,
        )
        write_votes(faces[voted], table)
    click.echo(f"{VOTES_FILE.name}: {VOTES_FILE.stat().st_size:,} bytes")
    source = FerPlusVotes(EXPRESSIONS)
    exact = source.find(faces)
    click.echo(f"{len(source._fingerprints):,} entries; {(exact >= 0).sum():,} of {len(faces):,} images found")
    for suffix, quality in _ENCODINGS:
        copies = np.stack([encoded(face, suffix, quality) for face in faces])
        found = source.find(copies)
        known = exact >= 0
        lost, other = (known & (found < 0)).sum(), known & (found >= 0) & (found != exact)
        wrong = (source._votes[found] != source._votes[exact]).any(1) & other
        click.echo(
            f"{suffix} {quality or ''}: lost {lost} of {known.sum():,}, another entry {other.sum()}, with other votes "
            f"{wrong.sum()}, found though unknown {((found >= 0) & ~known).sum()}"
        )


if __name__ == "__main__":
    main()
