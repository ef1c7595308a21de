"""When a batch starts, and which faces are not let in."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve: pip install 'fer-edge[serve]'")

from fer_runtime.server.batching import Batcher
from fer_runtime.server.errors import RequestError

FACES = np.random.default_rng(0).integers(0, 256, (400, 4, 4), np.uint8)


def _run(use: Callable[[Batcher], Any], *, seconds: float = 0.0, coming: int = 0, wait: float = 0.01) -> Any:
    """What `use` gives, of a batcher of four faces a batch that lets in up to four seconds of work."""

    def compute(faces: Any) -> dict[str, Any]:
        time.sleep(seconds)
        return {"sums": faces.sum(axis=(1, 2))}

    async def main() -> Any:
        with ThreadPoolExecutor(1) as threads:
            batcher = Batcher(
                compute,
                executor=threads,
                slots=1,
                size=4,
                wait=wait,
                coming=lambda: coming,
                longest=4.0,
                on_batch=lambda *values: None,
            )
            return await asyncio.wait_for(use(batcher), 300)

    return asyncio.run(main())


def test_a_request_that_nothing_follows_does_not_wait_for_others() -> None:
    async def use(batcher: Batcher) -> float:
        started = time.perf_counter()
        await batcher.classify(FACES[:1])
        return time.perf_counter() - started

    assert _run(use, coming=1, wait=8.0) >= 8
    assert _run(use, coming=0, wait=8.0) < 8


def test_faces_that_would_wait_too_long_are_refused_at_once() -> None:
    async def use(batcher: Batcher) -> list[RequestError | None]:
        answers: list[RequestError | None] = []

        def ask(faces: int) -> None:
            try:
                batcher.admit(faces)
            except RequestError as error:
                answers.append(error)
            else:
                answers.append(None)

        ask(400)  # it is not known yet how long a batch takes
        await batcher.classify(FACES[:4])
        running = batcher.submit(FACES[:4])
        ask(400)  # nothing waits
        waiting = [batcher.submit(FACES[:4]) for _ in range(3)]
        ask(4)
        ask(400)
        await asyncio.gather(running, *waiting)
        with pytest.raises(RequestError):
            await asyncio.gather(*(batcher.classify(FACES) for _ in range(3)))
        return answers

    unknown, alone, short, long = _run(use, seconds=0.2)
    # Four batches of 0.2 s, unless the machine stands still for seconds; and 103 of them.
    assert (unknown, alone, short) == (None, None, None)
    assert long is not None
    assert (long.status, long.reason) == (503, "queue")
    assert int(long.headers["Retry-After"]) >= math.floor(103 * 0.2 - 4)
