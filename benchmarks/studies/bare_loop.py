"""The loop that one would write in place of `fer-infer`: `python -m studies.bare_loop MODEL < list`.

A thread decodes, the main one runs the model in batches. There is no face search, no check of a file, no row per
picture, no output: what is left is what reading, decoding and the model cost. The folder study holds fer-infer to it.
"""

from __future__ import annotations

import os
import queue
import sys
import threading

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as in fer_runtime: measured with it, the loop would pay for a database

import cv2
import numpy as np
import onnxruntime

_BATCH = 64


def main() -> None:
    """Read paths of 48 x 48 pictures from standard input, and print how many of each class there are."""
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
                decoded.put(np.stack(faces))  # type: ignore[arg-type] # a file that is no crop ends a bare loop
        except Exception as error:
            failed.append(error)
        decoded.put(None)  # the other thread waits for it, whatever happened

    threading.Thread(target=decode, daemon=True).start()
    counts = np.zeros(7, np.int64)
    while (batch := decoded.get()) is not None:
        (probabilities,) = session.run(["probabilities"], {"faces": batch})
        counts += np.bincount(np.asarray(probabilities).argmax(1), minlength=7)
    if failed:
        sys.exit(f"{failed[0]}; the bare loop takes pictures of 48 x 48 only")
    print(*counts)


if __name__ == "__main__":
    main()
