"""What the tests of the site and of the npm package share."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from tests.conftest import CHECKOUT

MODELS = CHECKOUT / "models"
SAMPLES = CHECKOUT / "runtime" / "fer_runtime" / "samples"


def camera_frame() -> Any:
    frame = np.full((480, 640, 3), 128, np.uint8)
    picture = cv2.imread(str(SAMPLES / "eileen_collins.jpg"))
    assert picture is not None
    # The head, enlarged: what the page's frame shows without a detector is a face then.
    frame[:, 80:560] = cv2.resize(picture[40:210, 140:310], (480, 480))
    return frame
