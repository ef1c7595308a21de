"""Dynamic batching: faces of all requests are classified together."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt

from fer_runtime.images import Uint8Array
from fer_runtime.server.errors import RequestError

_LATEST_SHARE = 0.2  # of a batch in the mean of the batches' times
FloatArray = npt.NDArray[np.float32]
Outputs = dict[str, FloatArray]  # of the model's graph, by name; the first axis is that of the faces


@dataclass(slots=True)
class _Waiting:
    faces: Uint8Array
    answer: asyncio.Future[Outputs]
    since: float


class Batcher:
    """Collects faces until a batch is full, nothing else is on its way, or the wait is over.

    Everything but `run` happens in the event loop.

    Args:
        run: computes a batch; called in `executor`.
        executor: threads for `run`.
        slots: batches computed at a time.
        size: faces in a batch.
        wait: seconds that the first faces of a batch wait for others.
        coming: requests that may bring faces soon; with 0 a batch does not wait.
        longest: seconds of computing that may wait; faces that would wait longer are refused.
        on_batch: told about each batch: faces, seconds of waiting (of its first faces), seconds of computing.
    """

    def __init__(
        self,
        run: Callable[[Uint8Array], Outputs],
        *,
        executor: Executor,
        slots: int,
        size: int,
        wait: float,
        coming: Callable[[], int],
        longest: float,
        on_batch: Callable[[int, float, float], None],
    ) -> None:
        self._run = run
        self._executor = executor
        self._slots = slots
        self._size = size
        self._wait = wait
        self._coming = coming
        self._longest = longest
        self._batch_seconds = 0.0  # of computing, the latest batches counting most
        self._on_batch = on_batch
        self._queue: deque[_Waiting] = deque()
        self._faces = 0  # in the queue
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Pieces in the queue."""
        return len(self._queue)

    def admit(self, faces: int) -> None:
        """Refuse so many more faces where they would wait too long.

        A slow or busy machine says so at once, before its clients have waited in vain for the time limit.

        Raises:
            RequestError: with the seconds that the queue takes.
        """
        batches = math.ceil((self._faces + faces) / self._size)
        seconds = batches * self._batch_seconds / self._slots
        if self._queue and seconds > self._longest:
            text = f"the queue takes {seconds:.1f} s, more than {self._longest:g} s; try again, or send fewer faces"
            raise RequestError(503, "queue", text, retry=math.ceil(seconds - self._longest))

    async def classify(self, faces: Uint8Array) -> Outputs:
        """The graph's outputs for `faces`, uint8 (faces, ...).

        Raises:
            ModelFileError: the model does not run.
            RequestError: the queue is too long.
        """
        self.admit(len(faces))
        pieces = [self._append(faces[start : start + self._size]) for start in range(0, len(faces), self._size)]
        self._consider()
        # Cancelled with the request: pieces without a reader are not computed.
        answers = await asyncio.gather(*pieces)
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def submit(self, faces: Uint8Array) -> asyncio.Future[Outputs]:
        """The same for up to a batch of faces, for callers without a task; a cancelled answer is not computed."""
        answer = self._append(faces)
        self._consider()
        return answer

    def _append(self, faces: Uint8Array) -> asyncio.Future[Outputs]:
        piece = _Waiting(faces, asyncio.get_running_loop().create_future(), perf_counter())
        self._queue.append(piece)
        self._faces += len(faces)
        return piece.answer

    def _consider(self) -> None:
        """Start the batches that need not wait any longer."""
        while self._queue and self._running < self._slots:
            left = self._queue[0].since + self._wait - perf_counter()
            if self._faces < self._size and left > 0 and self._coming() > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(left, self._on_time)
                return
            batch = self._take()
            if batch:
                self._start(batch)

    def _on_time(self) -> None:
        self._timer = None
        self._consider()

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        faces = 0
        while self._queue and faces + len(self._queue[0].faces) <= self._size:
            piece = self._queue.popleft()
            self._faces -= len(piece.faces)
            if not piece.answer.done():
                batch.append(piece)
                faces += len(piece.faces)
        return batch

    def _start(self, batch: list[_Waiting]) -> None:
        """Give a batch to a thread, without a task and a future of its own: they cost as much as a tenth of a face."""
        self._running += 1
        loop, started = asyncio.get_running_loop(), perf_counter()
        try:
            faces = batch[0].faces if len(batch) == 1 else np.concatenate([piece.faces for piece in batch])
            self._executor.submit(self._compute, batch, faces, started, loop)
        except Exception as error:
            loop.call_soon(self._end, batch, started, error)

    def _compute(
        self, batch: list[_Waiting], faces: Uint8Array, started: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        """In a thread."""
        outcome: Outputs | BaseException
        try:
            outcome = self._run(faces)
        except BaseException as error:
            outcome = error
        # A service that has waited long enough for its end has closed the loop.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._end, batch, started, outcome)

    def _end(self, batch: list[_Waiting], started: float, outcome: Outputs | BaseException) -> None:
        computed = perf_counter() - started
        try:
            start = 0
            for piece in batch:
                end = start + len(piece.faces)
                if piece.answer.done():
                    pass
                elif isinstance(outcome, Exception):
                    piece.answer.set_exception(outcome)
                elif not isinstance(outcome, BaseException):
                    piece.answer.set_result({name: values[start:end] for name, values in outcome.items()})
                start = end
        finally:
            # Whatever happened, nobody waits for an answer that does not come.
            for piece in batch:
                piece.answer.cancel()
            self._running -= 1
            self._consider()
        if not isinstance(outcome, BaseException):
            share = _LATEST_SHARE if self._batch_seconds else 1.0
            self._batch_seconds += share * (computed - self._batch_seconds)
            self._on_batch(sum(len(piece.faces) for piece in batch), started - batch[0].since, computed)
