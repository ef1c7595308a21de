"""What several tests share: the real pictures, where they are."""

from __future__ import annotations

import os
import shutil
import signal
import tarfile
import tempfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

# A script in the background ignores SIGINT, and so would the processes that tests start to interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Root of the FER2013 pictures: $FER_EDGE_DATA, `data/` of the checkout, or an archive beside it."""
    candidates = [CHECKOUT / "data"]
    if given := os.environ.get("FER_EDGE_DATA"):
        candidates = [Path(given)]
        if not _is_dataset(candidates[0]):
            # Skipping would hide that the pictures somebody pointed at were never read.
            pytest.fail(f"FER_EDGE_DATA={given} has no images/train and images/validation")
    for root in candidates:
        if _is_dataset(root):
            return root
    archive = CHECKOUT.parent / "shared" / "data" / "fer2013.tar.gz"
    if not archive.is_file():
        pytest.skip("needs the FER2013 pictures: set FER_EDGE_DATA to the dataset's root")
    return _unpacked(archive, CHECKOUT / "data")


def _is_dataset(root: Path) -> bool:
    return (root / "images" / "validation").is_dir() and (root / "images" / "train").is_dir()


def _unpacked(archive: Path, root: Path) -> Path:
    # Renamed when whole, so that a stopped run leaves no half dataset that the next one would take.
    root.mkdir(exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
    try:
        with tarfile.open(archive) as content:
            if hasattr(tarfile, "data_filter"):  # the first patch releases of 3.10 and 3.11 lack it
                content.extractall(partial, filter="data")
            else:
                content.extractall(partial)
        (partial / "images").rename(root / "images")
    finally:
        shutil.rmtree(partial)
    return root
