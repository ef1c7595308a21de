"""What the tests of the site and of the npm package share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tests.conftest import CHECKOUT

from fer_export.site.server import create_server

MODELS = CHECKOUT / "models"
SAMPLES = CHECKOUT / "runtime" / "fer_runtime" / "samples"
# Pages sent with these may share memory between threads.
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


@contextmanager
def served(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    with create_server(folder, port=0, headers=headers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join(60)


def camera_frame() -> Any:
    frame = np.full((480, 640, 3), 128, np.uint8)
    picture = cv2.imread(str(SAMPLES / "eileen_collins.jpg"))
    assert picture is not None
    # The head, enlarged: what the page's frame shows without a detector is a face then.
    frame[:, 80:560] = cv2.resize(picture[40:210, 140:310], (480, 480))
    return frame
