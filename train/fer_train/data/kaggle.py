"""The Kaggle dataset, downloaded on first use and kept in kagglehub's cache."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fer_runtime.errors import DataError, DownloadError, first_line
from fer_train.data.folders import split_folder

DATASET = "jonathanoheix/face-expression-recognition-dataset"
PAGE = f"https://www.kaggle.com/datasets/{DATASET}"


def download_dataset() -> Path:
    """Root of the dataset, with `images/train` and `images/validation`.

    kagglehub asks for the current version and answers from its cache when that version is there.

    Raises:
        DownloadError: it is not in the cache and cannot be fetched, or is another dataset.
    """
    import kagglehub
    import requests

    try:
        root = Path(kagglehub.dataset_download(DATASET))
    # What kagglehub lets through: requests' errors, its own (all OSError or ValueError), damaged archives.
    except (OSError, ValueError, zipfile.BadZipFile, requests.RequestException, EOFError) as error:
        raise DownloadError(
            f"cannot download {DATASET} from Kaggle ({first_line(error)}); get the archive from {PAGE}, "
            "unpack it to data/ and give: --data data"
        ) from error
    try:
        for split in ("train", "validation"):
            split_folder(root, split)
    except DataError as error:
        raise DownloadError(f"the download in {root} is not the dataset; delete that folder and try again") from error
    return root
