"""What several tests share: the real pictures, where they are."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Root of the FER2013 pictures: $FER_EDGE_DATA, `data/` of the checkout, or an archive beside it."""
    candidates = [Path(os.environ["FER_EDGE_DATA"])] if "FER_EDGE_DATA" in os.environ else []
    for root in [*candidates, CHECKOUT / "data"]:
        if (root / "images" / "validation").is_dir() and (root / "images" / "train").is_dir():
            return root
    archive = CHECKOUT.parent / "shared" / "data" / "fer2013.tar.gz"
    if not archive.is_file():
        pytest.skip("needs the FER2013 pictures: set FER_EDGE_DATA to the dataset's root")
    with tarfile.open(archive) as content:
        content.extractall(CHECKOUT / "data")
    return CHECKOUT / "data"
