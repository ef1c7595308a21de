"""FER+'s votes: fingerprints against OpenCV's cosine transform, and the images of FER2013 found in an altered copy."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.train.images import write_images

from fer_runtime.errors import DataError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.images import decode_image, to_gray
from fer_train.data.ferplus import BITS, FerPlusVotes, fingerprints, low_frequencies
from fer_train.data.folders import LabelledFaces, load_faces
from fer_train.data.votes import open_votes, usable


def test_low_frequencies_are_those_of_opencvs_transform() -> None:
    faces = np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)
    found = low_frequencies(faces, 5)
    for face, values in zip(faces, found, strict=True):
        transformed = cv2.dct(face.astype(np.float32))
        # OpenCV's transform is orthonormal: sqrt(2 / 48) per axis, sqrt(1 / 48) along an axis of frequency 0.
        two, one = np.sqrt(2 / 48), np.sqrt(1 / 48)
        order = [(0, 1, one * two), (1, 0, one * two), (1, 1, two * two), (0, 2, one * two), (2, 0, one * two)]
        expected = [transformed[row, column] / scale for row, column, scale in order]
        # float32 sums of 2,304 products of up to 255: relative errors of 1e-7 each.
        assert values == pytest.approx(expected, rel=1e-3, abs=1.0)


def test_a_fingerprint_survives_jpeg() -> None:
    smooth = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (48, 48), np.uint8), (9, 9), 3)
    face = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    encoded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
    copy = to_gray(decode_image(encoded))
    first, second = fingerprints(np.stack([face, copy]), np.zeros(BITS, np.float32))
    assert int(np.unpackbits(first ^ second).sum()) <= 5


def test_other_images_and_other_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_EDGE_CACHE", str(tmp_path / "cache"))
    faces = load_faces(write_images(tmp_path / "data"), "train")
    with pytest.raises(DataError, match=r"votes for 0 of these 84 train images: they are not FER2013's"):
        faces.with_votes(FerPlusVotes(EXPRESSIONS), "train")
    with pytest.raises(DataError, match="not for calm, glad"):
        open_votes("ferplus", ("calm", "glad"))


def test_fer2013s_images_are_found_in_a_renamed_re_split_and_re_encoded_copy(real_data: Path) -> None:
    splits = [load_faces(real_data, split) for split in ("train", "validation")]
    images = np.concatenate([split.faces for split in splits])[::40]
    votes = FerPlusVotes(EXPRESSIONS)
    original = votes.of([""] * len(images), images, split="train")
    assert usable(original).mean() > 0.98
    encoded = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes() for image in images]
    copies = np.stack([to_gray(decode_image(content)) for content in encoded])[::-1]
    whole = LabelledFaces(
        faces=copies,
        labels=np.zeros(len(copies), np.int64),
        classes=EXPRESSIONS,
        paths=tuple(f"{index}.jpg" for index in range(len(copies))),
        file_sha256=("0" * 64,) * len(copies),
        fingerprint="0",
    )
    found = whole.with_votes(votes, "validation").votes
    assert found is not None
    # A few photos are in FER2013 twice with different votes; a re-encoded copy can get those of the other.
    assert (found == original[::-1]).all(1).mean() > 0.99
    assert (found.any(1) == original[::-1].any(1)).mean() > 0.998
