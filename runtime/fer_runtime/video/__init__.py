"""Videos and cameras: frames, tracks, segments and subtitles."""

from __future__ import annotations

LAST_CAMERA = 99  # OpenCV takes the hundreds of a camera's number for a backend
