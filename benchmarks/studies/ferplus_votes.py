"""Write the FER+ votes that ship with fer_train, and test them on altered copies of FER2013.

python -m benchmarks.studies.ferplus_votes --data data --votes ferplus.csv.gz

The votes file has a row per image: its path, then votes for the seven expressions, contempt, unknown and not_a_face.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from pathlib import Path

import click
import cv2
import numpy as np

from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.files import replaced_atomically
from fer_runtime.images import decode_image
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
    unique, bits, votes = unique[order], bits[order], votes[places][order]
    _, group, sizes = np.unique(bits, axis=0, return_inverse=True, return_counts=True)
    crc32 = [zlib.crc32(face) if sizes[group[entry]] > 1 else 0 for entry, face in enumerate(unique)]
    with replaced_atomically(VOTES_FILE) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            fingerprints=bits,
            crc32=np.array(crc32, np.uint32),
            thresholds=thresholds,
            votes=(votes * 2).round().astype(np.uint8),
        )


def encoded(face: Uint8Array, suffix: str, quality: int | None) -> Uint8Array:
    """The face after a round through an image file."""
    options = [] if quality is None else [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, content = cv2.imencode(suffix, face, options)
    return decode_image(content.tobytes())


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
    image_of = {int(entry): index for index, entry in enumerate(exact)}
    click.echo(f"{len(image_of):,} different images; {(exact >= 0).sum():,} of {len(faces):,} images have votes")
    if votes is not None:
        given = np.column_stack([table[:, : len(EXPRESSIONS)], table[:, len(EXPRESSIONS) :].sum(1)])
        click.echo(f"as they are: {(source._votes[exact[voted]] != given).any(1).sum()} images with other votes")
    for suffix, quality in _ENCODINGS:
        copies = np.stack([encoded(face, suffix, quality) for face in faces])
        noise = np.sqrt(((copies.astype(float) - faces) ** 2).mean())
        found = source.find(copies)
        known = exact >= 0
        other = np.flatnonzero(known & (found >= 0) & (source._votes[found] != source._votes[exact]).any(1))
        apart = [
            np.sqrt(((faces[index].astype(float) - faces[image_of[int(found[index])]]) ** 2).mean()) for index in other
        ]
        click.echo(
            f"{suffix} {quality or ''} ({noise:.1f} gray levels RMS): lost {(known & (found < 0)).sum()} of "
            f"{known.sum():,}; votes of another copy of the photo {len(other)}, which differs by "
            f"{np.median(apart) if apart else 0:.1f}, at most {max(apart, default=0):.1f} gray levels RMS; found "
            f"without having votes {((found >= 0) & ~known).sum()}"
        )
    # Images that the votes do not know, such as those of another data set: every tenth entry is taken out.
    left_out = exact % 10 == 0
    source._fingerprints = np.delete(source._fingerprints, np.arange(0, len(source._fingerprints), 10), axis=0)
    source._exact = {}
    click.echo(
        f"of {left_out.sum():,} images whose entries were taken out, {(source.find(faces[left_out]) >= 0).sum()} "
        "found a neighbour"
    )


if __name__ == "__main__":
    main()
