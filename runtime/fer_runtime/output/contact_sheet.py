"""A page of faces grouped by expression: what a run found, at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from fer_runtime.images import Uint8Array
from fer_runtime.output.colors import drawn_label, label_colors
from fer_runtime.output.thumbnail import square_thumbnail
from fer_runtime.results import Face

_COLUMNS = 12
_ROWS_PER_EXPRESSION = 3
_FACE = 96  # pixels
_CAPTION = 48
_GAP = 8
_HEADER = 40
_TALLEST = 60_000  # pixels of a page: a JPEG holds 65,500
_INK, _PAPER, _WRONG = (40, 36, 32), 250, (40, 40, 210)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(slots=True)
class ContactSheet:
    """Collects faces and draws them; holds at most three rows of images per expression.

    Args:
        labels: groups, in the order of the page.
    """

    labels: Sequence[str]
    _groups: dict[str, list[tuple[Uint8Array, str, bool]]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def has_room(self, face: Face) -> bool:
        """Whether the face would be shown, and not only counted."""
        return len(self._groups.get(face.expression, ())) < _COLUMNS * _ROWS_PER_EXPRESSION

    def add(self, image: Uint8Array | None, face: Face, *, true: str | None = None) -> None:
        """Add one face of an image.

        Args:
            image: uint8 (height, width, 3) or (height, width); None where it cannot be shown.
            true: the label that the face really has, where it is known.
        """
        self._counts[face.expression] = self._counts.get(face.expression, 0) + 1
        group = self._groups.setdefault(face.expression, [])
        if image is None or not self.has_room(face):
            return
        x, y, width, height = face.box
        patch = image[max(0, y) : y + height, max(0, x) : x + width]
        if 0 in patch.shape:
            return
        # Rounded as rows are, so that a run that continues shows the same.
        caption = f"{round(face.confidence, 6):.0%}{'?' if face.uncertain else ''}"
        if true is not None:
            caption += f"\nlabel {drawn_label(true, self.labels)}"
        if face.reasons:
            more = f" +{len(face.reasons) - 1}" if len(face.reasons) > 1 else ""
            caption += f"\n{face.reasons[0].replace('_', ' ')}{more}"
        is_wrong = true is not None and true != face.expression
        group.append((square_thumbnail(patch, _FACE, paper=_PAPER), caption, is_wrong))

    def draw(self) -> Uint8Array:
        """The page, uint8 (height, width, 3) in BGR."""
        rows: dict[str, int] = {}
        height, note = _GAP, ""
        for name in (name for name in self.labels if name in self._groups):
            count = -(-len(self._groups[name]) // _COLUMNS)
            if height + 2 * _HEADER + count * (_FACE + _CAPTION) > _TALLEST:
                note, height = f"{len(self._groups) - len(rows)} more labels are not shown", height + _HEADER
                break
            rows[name] = count
            height += _HEADER + count * (_FACE + _CAPTION)
        # A few faces make a narrow page, though a title fits on it in any case.
        columns = min(_COLUMNS, max((4, *map(len, self._groups.values()))))
        page = np.full((max(height, _HEADER), columns * (_FACE + _GAP) + _GAP, 3), _PAPER, np.uint8)
        top, colors = _GAP, label_colors(tuple(self.labels))
        for name in rows:
            count, shown = self._counts[name], self._groups[name]
            title = f"{drawn_label(name, self.labels)}: {count} face{'s' if count != 1 else ''}" + (
                f", {len(shown)} shown" if len(shown) < count else ""
            )
            cv2.rectangle(page, (_GAP, top + 6), (_GAP + 14, top + 26), colors[name], -1)
            cv2.putText(page, title, (_GAP + 24, top + 23), _FONT, 0.6, _INK, 1, cv2.LINE_AA)
            top += _HEADER
            for number, (thumbnail, caption, is_wrong) in enumerate(shown):
                x = _GAP + number % _COLUMNS * (_FACE + _GAP)
                y = top + number // _COLUMNS * (_FACE + _CAPTION)
                page[y : y + _FACE, x : x + _FACE] = thumbnail
                color = _WRONG if is_wrong else _INK
                for line, text in enumerate(caption.split("\n")):
                    cv2.putText(page, text, (x, y + _FACE + 13 + 14 * line), _FONT, 0.38, color, 1, cv2.LINE_AA)
            top += rows[name] * (_FACE + _CAPTION)
        cv2.putText(page, note, (_GAP, top + 23), _FONT, 0.6, _INK, 1, cv2.LINE_AA)
        return page
