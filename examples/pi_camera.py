"""Watch a Raspberry Pi's camera, and print when a face's expression changes.

sudo apt install python3-picamera2
python3 -m pip wheel . --no-deps --wheel-dir dist     # in a clone of fer-edge
python3 -m venv --system-site-packages env && env/bin/pip install dist/fer_edge-*.whl
env/bin/python pi_camera.py
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from fer_runtime import Recognizer, Tracker


def frames_of_picamera() -> Iterator[tuple[float, Any]]:
    """The time in seconds and the pixels, uint8 (height, width, 3) in BGR, of each frame."""
    from picamera2 import Picamera2

    camera = Picamera2()
    # In Picamera2's names, RGB888 is blue, green, red in memory, as OpenCV has it.
    camera.configure(camera.create_video_configuration(main={"size": (1280, 720), "format": "RGB888"}))
    camera.start()
    while True:
        yield time.monotonic(), camera.capture_array()


def changes(frames: Iterable[tuple[float, Any]], recognizer: Recognizer) -> Iterator[str]:
    """A line whenever a face appears or changes its expression."""
    tracker, shown = Tracker(recognizer), dict[int, str]()
    for seconds, frame in frames:
        for tracked in tracker.update(frame, seconds).faces:
            face = tracked.face
            if shown.get(tracked.track) != face.expression:
                shown[tracked.track] = face.expression
                if len(shown) > 1000:
                    del shown[min(shown)]  # a face that is long gone: numbers only rise
                yield f"face {tracked.track}: {face.expression} {face.confidence:.0%}"


if __name__ == "__main__":
    with Recognizer() as recognizer:
        for line in changes(frames_of_picamera(), recognizer):
            print(line, flush=True)
