"""A minimal loop over images, the baseline for `fer-infer`: `python -m benchmarks.studies.bare_loop MODEL < list`.

One thread decodes, the main thread runs the model in batches. It does not search for faces, check files or write rows,
so its time is that of reading, decoding and the model alone. The folder study compares fer-infer with it.
"""

from __future__ import annotations

import os
import queue
import sys
import threading

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as in fer_runtime: telemetry would cost the loop time

import cv2
import numpy as np
import onnxruntime

_BATCH = 64


def main() -> None:
    """Read paths of 48 x 48 images from standard input and print the number of images per class."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) != 2:
        sys.exit("give one model file: python -m benchmarks.studies.bare_loop MODEL < list")
    paths = sys.stdin.read().splitlines()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    cv2.setNumThreads(1)
    decoded: queue.Queue[np.ndarray | None] = queue.Queue(4)

    failed: list[Exception] = []

    def decode() -> None:
        try:
            for first in range(0, len(paths), _BATCH):
                faces = [cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in paths[first : first + _BATCH]]
                decoded.put(np.stack(faces))  # type: ignore[arg-type] # a file that is not a crop ends the loop
        except Exception as error:
            failed.append(error)
        decoded.put(None)  # the other thread waits for it in any case

    threading.Thread(target=decode, daemon=True).start()
    counts = np.zeros(7, np.int64)
    while (batch := decoded.get()) is not None:
        (probabilities,) = session.run(["probabilities"], {"faces": batch})
        counts += np.bincount(np.asarray(probabilities).argmax(1), minlength=7)
    if failed:
        sys.exit(f"{failed[0]}; the bare loop takes images of 48 x 48 only")
    print(*counts)


if __name__ == "__main__":
    main()
