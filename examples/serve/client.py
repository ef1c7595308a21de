"""Ask a running fer-serve for the faces in images, with the standard library alone.

python3 client.py photo.jpg other.png
FER_SERVE_TOKEN=... python3 client.py --url https://fer.example photo.jpg
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def recognize(url: str, image: bytes, token: str | None = None) -> Any:
    """The row of one image: its faces, or the reason why there are none."""
    headers = {"Content-Type": "application/octet-stream"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{url}/v1/images", image, headers)
    for _ in range(5):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["images"][0]
        except urllib.error.HTTPError as error:
            if error.code == 422:  # no image
                return json.load(error)["images"][0]
            if error.code != 503:
                raise SystemExit(f"{error.code}: {json.load(error)['error']}") from error
            time.sleep(float(error.headers.get("Retry-After", 1)))  # the service is full
    raise SystemExit("the service stays full")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("images", nargs="+", type=Path)
    arguments = parser.parse_args()
    failed = False
    for path in arguments.images:
        row = recognize(arguments.url, path.read_bytes(), os.environ.get("FER_SERVE_TOKEN"))
        failed |= row["error"] is not None
        print(f"{path.name}: {row['error'] or ('' if row['faces'] else 'no face')}")
        for face in row["faces"]:
            print(f"  {face['expression']} {face['confidence']:.0%} at {face['box']}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
