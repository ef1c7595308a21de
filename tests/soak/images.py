"""Damaged images, read in a process of limited memory: `python -m tests.soak.images --images 100000`.

Whatever the bytes are, `decode_image` gives an image or an ImageError, and the process goes on.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from tests.soak.mutators import MUTATORS

from fer_runtime.command import prepare_process
from fer_runtime.errors import ImageError
from fer_runtime.images import decode_image

_GIGABYTE = 1 << 30
_BATCH = 2000


def try_image(content: bytes) -> str:
    """What became of it: read, refused, or the decoder's end."""
    try:
        image = decode_image(content)
    except ImageError as error:
        reason = str(error)
        if "decoder" in reason:
            return reason.rpartition(": ")[2]
        return "took too long" if "too long" in reason else "refused"
    assert image.dtype == np.uint8
    assert image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    assert 0 not in image.shape
    return "read"


def _try_kept(content: bytes, folder: Path) -> str:
    """As `try_image`; what crashes a decoder stays in `folder`."""
    result = try_image(content)
    if result not in ("read", "refused"):
        (folder / f"{hash(content) & 0xFFFFFFFFFFFF:012x}").write_bytes(content)
    return result


@click.command()
@click.option("--images", default=100_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--memory", default=_GIGABYTE, show_default=True, help="Address space of this process in bytes.")
@click.option("--threads", default=2, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), default=Path("build/soak"), show_default=True)
def main(images: int, seed: int, memory: int, threads: int, keep: Path) -> None:
    """Read damaged images of every format in turn; print the counts as JSON."""
    prepare_process()
    keep.mkdir(parents=True, exist_ok=True)
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    chooser = random.Random(seed)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in MUTATORS}
    started = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, images, _BATCH):
            names = [list(MUTATORS)[number % len(MUTATORS)] for number in range(first, min(first + _BATCH, images))]
            contents = [MUTATORS[name](chooser) for name in names]
            for name, result in zip(names, pool.map(lambda content: _try_kept(content, keep), contents), strict=True):
                counts[name][result] += 1
            click.echo(f"{first + len(names)} images, {time.monotonic() - started:.0f} s", err=True)
    peak = {
        "this process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "largest child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }
    click.echo(json.dumps({"counts": counts, "peak_kib": peak, "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
