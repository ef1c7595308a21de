"""Images without a face, for `fer-bench unfamiliar`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fer_bench.unfamiliar import cut_backgrounds


def test_backgrounds_come_from_the_photos_that_can_be_read(tmp_path: Path) -> None:
    good, small, damaged = (tmp_path / name for name in ("good.png", "small.png", "damaged.png"))
    cv2.imwrite(str(good), np.full((200, 300, 3), 90, np.uint8))
    cv2.imwrite(str(small), np.full((60, 60, 3), 90, np.uint8))
    damaged.write_bytes(good.read_bytes()[:60])

    class NoFaces:
        def detect(self, image: object) -> list[object]:
            return []

    cuts = cut_backgrounds([damaged, good, small], NoFaces(), 6)  # type: ignore[arg-type]
    assert len(cuts) == 3
    assert sum(cut.shape == (60, 60, 3) for cut in cuts) == 1
