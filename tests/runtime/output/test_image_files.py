"""Annotated copies and contact sheets: nothing is overwritten, and what is drawn is where it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from fer_runtime.batch.sources import random_images
from fer_runtime.errors import ImageError, OutputError
from fer_runtime.expressions import EXPRESSIONS
from fer_runtime.output import image_files
from fer_runtime.output.annotate import draw_faces, write_image
from fer_runtime.output.colors import label_colors
from fer_runtime.output.contact_sheet import ContactSheet
from fer_runtime.output.image_files import AnnotatedCopies, SheetOfFaces
from fer_runtime.results import Face, ImageResult


def _face(box: tuple[int, int, int, int], expression: str = "happy") -> Face:
    shares = dict.fromkeys(EXPRESSIONS, 0.05) | {expression: 0.7}
    return Face(box=box, expression=expression, confidence=0.7, probabilities=shares)


@pytest.mark.parametrize("side", [48, 200, 720, 3000])
def test_the_box_is_drawn_on_the_face_at_every_size(side: int) -> None:
    image = np.full((side, side, 3), 255, np.uint8)
    box = (side // 4, side // 2, side // 4, side // 4)
    drawn = draw_faces(image, [_face(box)])
    factor = drawn.shape[0] // side
    assert drawn.shape[0] >= 320
    x, y, width, height = (value * factor for value in box)
    edge = drawn[y + height // 2, x]
    assert np.abs(edge.astype(int) - label_colors(EXPRESSIONS)["happy"]).max() < 40
    # The face itself stays to be seen, and so does the picture that was given.
    assert (drawn[y + height // 2, x + width // 2] == 255).all()
    assert (image == 255).all()


def test_panels_cover_no_face() -> None:
    image = np.full((600, 900, 3), 255, np.uint8)
    boxes = [(40, 120, 120, 120), (220, 120, 120, 120), (400, 120, 120, 120), (40, 400, 60, 60)]
    drawn = draw_faces(image, [_face(box) for box in boxes])
    for x, y, width, height in boxes:
        inside = drawn[y + height // 3 : y + height - 8, x + 8 : x + width - 8]
        assert (inside == 255).all()


@pytest.mark.parametrize("seed", range(6))
def test_titles_reasons_and_bars_cover_nobodys_eyes(seed: int) -> None:
    random = np.random.default_rng(seed)
    image = np.full((480, 640, 3), 255, np.uint8)
    sides = random.integers(50, 160, 7).tolist()
    boxes = [(int(random.integers(0, 640 - side)), int(random.integers(0, 480 - side)), side, side) for side in sides]
    faces = [
        replace(_face(box), reasons=("turned", "low_confidence", "blurred")[: index % 4], uncertain=True)
        for index, box in enumerate(boxes)
    ]
    drawn = draw_faces(image, faces)
    outlines = np.zeros((480, 640), np.uint8)
    for x, y, width, height in boxes:
        cv2.rectangle(outlines, (x, y), (x + width, y + height), 255, 6)
    for x, y, width, height in boxes:
        eyes = (slice(y, y + height // 2), slice(x, x + width))
        assert (drawn[eyes][outlines[eyes] == 0] == 255).all()


def test_both_faces_of_a_couple_have_bars() -> None:
    image = np.full((300, 420, 3), 255, np.uint8)
    faces = [_face((20, 60, 180, 180)), _face((190, 70, 200, 200), "sad")]
    drawn = draw_faces(image, faces)
    # Each bar or strip has its label's colour beside or in its own box: no other line of that length has it.
    for face in faces:
        x, y, width, height = face.box
        color = np.array(label_colors(EXPRESSIONS)[face.expression])
        inside = (np.abs(drawn[y + 4 : y + height - 2, x + 4 : x + width - 4].astype(int) - color).max(2) < 20).sum()
        # 70 % of a strip as long as the box, at least three pixels high.
        assert inside > 0.6 * width * 3


def test_bars_are_drawn_in_the_free_part_of_the_picture_with_a_line_to_their_face() -> None:
    image = np.full((500, 900, 3), 255, np.uint8)
    boxes = [(20 + 150 * index, 20, 150, 150) for index in range(3)]
    drawn = draw_faces(image, [_face(box) for box in boxes])
    # Three panels of seven bars each, whose empty part is gray.
    gray = (drawn == (70, 66, 62)).all(2).astype(np.uint8)
    count, _, statistics, _ = cv2.connectedComponentsWithStats(gray)
    assert sum(int(row[cv2.CC_STAT_AREA]) > 30 for row in statistics[1:count]) == 21


def test_a_face_shows_its_reasons() -> None:
    image = np.full((480, 640, 3), 255, np.uint8)
    face = _face((240, 200, 120, 120))
    plain, told = draw_faces(image, [face]), draw_faces(image, [replace(face, reasons=("turned",))])
    changed = np.argwhere((plain != told).any(2))
    assert len(changed)
    # Above the box, where the title is.
    assert changed[:, 0].max() <= 200


def test_a_face_that_fills_the_picture_has_its_bars_in_a_corner() -> None:
    image = np.full((48, 48), 255, np.uint8)
    plain = draw_faces(image, [Face(box=(0, 0, 48, 48), expression="happy", confidence=0.7, probabilities={"": 0})])
    drawn = draw_faces(image, [_face((0, 0, 48, 48))])
    side = drawn.shape[0]
    # Dark where the panel is, in the upper right quarter; the middle of the face stays to be seen.
    assert (drawn[20 : side // 4, side // 2 + 20 : side - 20] < 120).mean() > 0.3
    assert (drawn[side // 2, side // 4 : 3 * side // 4] == 255).all()
    assert plain.shape == drawn.shape


@pytest.mark.parametrize("place", ["draw_faces", "encode_image"])
def test_a_copy_for_which_opencv_has_no_memory_is_the_matter_of_one_row(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_memory = cv2.error("Insufficient memory")
    no_memory.code = cv2.Error.StsNoMem
    if place == "draw_faces":
        monkeypatch.setattr(image_files, place, Mock(side_effect=no_memory))
    else:
        monkeypatch.setattr(cv2, "imencode", Mock(side_effect=no_memory))
    row = ImageResult(path="a.png", width=60, height=60, error=None, faces=())
    written = AnnotatedCopies(tmp_path / "out", ["a.png"]).add(np.zeros((60, 60), np.uint8), row)
    assert str(written.error).endswith("it needs more memory than there is")


def test_a_thin_strip_is_not_enlarged_beyond_memory() -> None:
    assert max(draw_faces(np.zeros((10, 16000), np.uint8), []).shape) == 16000


@pytest.mark.parametrize(
    ("box", "edge"),
    [
        # A point of the box's edge, x and y, that lies within the image.
        ((-40, -40, 100, 100), (60, 30)),
        ((500, 400, 200, 200), (500, 440)),
        ((0, 0, 640, 480), (639, 240)),
    ],
)
def test_a_face_beyond_the_border_shows_the_part_within(box: tuple[int, int, int, int], edge: tuple[int, int]) -> None:
    image = np.zeros((480, 640), np.uint8)
    drawn = draw_faces(image, [_face(box)])
    assert drawn.shape == (480, 640, 3)
    assert not image.any()
    x, y = edge
    assert drawn[y, max(0, x - 3) : x + 4].any()
    # Far from the box, nothing is drawn.
    far = drawn[300:, :200] if box[0] < 0 else drawn[:200, :200]
    assert far.any() == (box == (0, 0, 640, 480))


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "c/deep/1.jpg", "c/2.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    copies = AnnotatedCopies(tmp_path / "out", [str(tmp_path / "c")])
    image = np.zeros((100, 100, 3), np.uint8)
    for name in ("a/1.jpg", "b/1.jpg", "c/deep/1.jpg", "c/2.gif"):
        result = ImageResult(path=str(tmp_path / name), width=100, height=100, error=None, faces=())
        copies.add(image, result)
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg"))
    assert written == ["1-2.jpg", "1.jpg", "2.gif.jpg", "deep/1.jpg"]


def test_a_folder_of_any_size_is_copied_without_remembering_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    # In the order of a run: the copy of the GIF must leave the name to the picture that bears it.
    for name in ("1.gif", "1.gif.jpg", "2.jpg", "3.png"):
        (folder / name).touch()
    copies = AnnotatedCopies(tmp_path / "out", [str(folder)])
    image = np.zeros((100, 100, 3), np.uint8)
    for name in ("1.gif", "1.gif.jpg", "2.jpg", "3.png"):
        copies.add(image, ImageResult(path=str(folder / name), width=100, height=100, error=None, faces=()))
    # And a sample beside the folder, whose name the folder has too.
    copies.add(image, ImageResult(path=str(tmp_path / "2.jpg"), width=100, height=100, error=None, faces=()))
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["1.gif-2.jpg", "1.gif.jpg", "2-2.jpg", "2.jpg", "3.png"]
    assert copies._written == {"1.gif-2.jpg", "2-2.jpg"}


def test_a_suffix_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    for name in ("page.html", "page", "page.\udcff"):
        with pytest.raises(OutputError, match=r"\.jpg or \.png"):
            write_image(tmp_path / name, np.zeros((9, 9), np.uint8))
        # Before the run whose faces it is for.
        with pytest.raises(OutputError, match=r"\.jpg or \.png"):
            SheetOfFaces(tmp_path / name, ContactSheet(EXPRESSIONS))


def test_the_sheet_groups_faces_and_marks_what_is_wrong() -> None:
    sheet = ContactSheet(EXPRESSIONS)
    gray = np.full((60, 40), 128, np.uint8)
    for _ in range(50):
        sheet.add(gray, _face((0, 0, 40, 60)), true="happy")
    only_right = sheet.draw()
    sheet.add(gray, _face((0, 0, 40, 60), "sad"), true="happy")
    page = sheet.draw()
    # Fifty faces are three rows of twelve; one more group adds a header and a row.
    assert page.shape[0] - only_right.shape[0] == 40 + 96 + 48

    def red(image: np.ndarray) -> int:
        return int(((image[:, :, 2] > 180) & (image[:, :, 1] < 90) & (image[:, :, 0] < 90)).sum())

    assert red(only_right) == 0
    assert red(page) > 20


def test_a_page_that_continues_reads_images_within_the_pixel_limit_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode_image(content: bytes, *, max_pixels: int) -> np.ndarray:
        if max_pixels < 200_000_000:  # such an image takes a second
            raise ImageError("has more pixels than the limit")
        return np.zeros((60, 40), np.uint8)

    monkeypatch.setattr(image_files, "decode_image", decode_image)
    row = ImageResult(path="a.png", width=20_000, height=10_000, error=None, faces=(_face((0, 0, 40, 60)),))
    again = SheetOfFaces(tmp_path / "again.png", ContactSheet(EXPRESSIONS), max_pixels=200_000_000)
    again.replay([row.to_dict()], lambda path: b"")
    first = SheetOfFaces(tmp_path / "first.png", ContactSheet(EXPRESSIONS))
    first.add(np.zeros((60, 40), np.uint8), row)
    assert np.array_equal(again.sheet.draw(), first.sheet.draw())


def test_random_images_are_different_and_repeatable(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / EXPRESSIONS[number % 7]
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), np.zeros((4, 4), np.uint8))
    chosen = random_images([str(tmp_path)], 10, seed=1)
    assert len(set(chosen)) == 10
    assert chosen == random_images([str(tmp_path)], 10, seed=1)
    assert chosen != random_images([str(tmp_path)], 10, seed=2)
    assert len(random_images([str(tmp_path)], 100)) == 40
    # Of several folders together, not of each.
    assert len(random_images([str(tmp_path / name) for name in EXPRESSIONS], 10)) == 10


def test_a_page_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*sheet\.png"):
        SheetOfFaces(tmp_path / "file" / "sheet.png", ContactSheet(EXPRESSIONS))
    SheetOfFaces(tmp_path / "sheet.png", ContactSheet(EXPRESSIONS))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
