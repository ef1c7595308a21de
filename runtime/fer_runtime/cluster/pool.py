"""A pool of Ray actors: each shard gets its result, whatever happens to actors and machines.

Shards wait in a queue, and an actor has at most two of them. Where an actor is lost, its shards return to the front of
the queue and a new actor takes its place; while that one waits for free CPUs, the others go on.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from fer_runtime.errors import ClusterError, first_line

_SHARDS_EACH = 2  # one in work and one that is there when it ends
# Results before their turn are in the driver's memory, a few hundred bytes an image.
_AHEAD = 128  # shards
_MOST_LOSSES = 5  # of actors with the same shard: something in it ends the process, and would end every other one
_PATIENCE_SECONDS = 600  # an autoscaler replaces a machine within minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A task for an actor."""

    number: int
    paths: str | None  # JSON; None where the output folder lists them


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """An actor's result."""

    number: int
    summary: str  # JSON
    rows: str  # JSON Lines; empty where the actor has written them


@dataclass(slots=True, eq=False)
class _Member:
    """An actor and the shards that it was given, the one in work first."""

    actor: Any
    is_ready: bool = False
    shards: deque[Shard] = field(default_factory=deque)


def results_of(
    shards: Iterable[Shard],
    start_actor: Callable[[], Any],
    *,
    workers: int,
    in_order: bool,
    has_cpus: Callable[[], bool] = lambda: True,
) -> Iterator[ShardResult]:
    """The result of each shard, once.

    Args:
        shards: taken when actors have room for them; in order, at most 128 (or 4 per actor) before the next result.
        start_actor: starts an actor of Ray whose method `recognize` takes a `Shard` and returns a `ShardResult`.
        workers: actors at most. Those that the cluster has no CPUs for wait.
        in_order: whether results have the order of the shards, or come as they are finished.
        has_cpus: whether a machine of the cluster could run an actor; asked when nothing has happened for ten minutes.

    Raises:
        ClusterError: a shard was lost with five actors, actors end while they start, or no machine is left for one.
        ray.exceptions.RayError: an actor raised an exception.
    """
    pool = _Pool(iter(shards), start_actor, workers)
    ahead = max(_AHEAD, 2 * _SHARDS_EACH * workers) if in_order else sys.maxsize
    early: dict[int, ShardResult] = {}
    order: deque[int] = deque()  # numbers of shards whose results have not been given, in their order
    try:
        while True:
            for shard in pool.take(ahead - len(order)):
                order.append(shard.number)
            if not order:
                return
            result = pool.next_result(has_cpus)
            if not in_order:
                order.remove(result.number)
                yield result
                continue
            early[result.number] = result
            while order and order[0] in early:
                yield early.pop(order.popleft())
    finally:
        pool.end()


class _Pool:
    """Actors, the shards that wait for them, and the calls that are not answered."""

    def __init__(self, shards: Iterator[Shard], start_actor: Callable[[], Any], workers: int) -> None:
        self._shards = shards
        self._start_actor = start_actor
        self._workers = workers
        self._queue: deque[Shard] = deque()
        self._members: list[_Member] = []
        self._calls: dict[Any, tuple[_Member, Shard | None]] = {}  # by Ray's reference; no shard: is the actor ready?
        self._losses: Counter[int] = Counter()  # actors lost, by each shard that they had
        self._lost_starts = 0  # since an actor was last ready

    def take(self, most: int) -> list[Shard]:
        """Take as many shards as the pool has use for soon."""
        wanted = min(most, _SHARDS_EACH * self._workers - len(self._queue))
        taken = list(islice(self._shards, max(0, wanted)))
        self._queue.extend(taken)
        return taken

    def next_result(self, has_cpus: Callable[[], bool]) -> ShardResult:
        """Wait for the next result, and replace actors that are lost meanwhile."""
        import ray

        while True:
            self._hand_out()
            answered, _ = ray.wait(list(self._calls), timeout=_PATIENCE_SECONDS)
            if not answered:
                if not any(member.is_ready for member in self._members) and not has_cpus():
                    raise ClusterError(
                        "the Ray cluster has lost all machines that could run an actor; shards that are written stay "
                        "for --resume"
                    )
                continue
            reference = answered[0]
            member, shard = self._calls.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                if error.actor_init_failed:
                    raise
                self._lose(member, error)
            except ray.exceptions.ObjectLostError as error:
                self._lose(member, error)  # the answer was on a machine that is lost
            else:
                if shard is None:
                    member.is_ready = True
                    self._lost_starts = 0
                    continue
                member.shards.remove(shard)
                assert isinstance(result, ShardResult)
                return result

    def end(self) -> None:
        """End all actors, so that their CPUs are free at once."""
        import ray

        for member in self._members:
            with suppress(Exception):  # the cluster may be gone
                ray.kill(member.actor)
        self._members.clear()
        self._calls.clear()

    def _hand_out(self) -> None:
        """Start the actors that there is work for, and give shards to those that are ready."""
        work = len(self._queue) + sum(len(member.shards) for member in self._members)
        while len(self._members) < min(self._workers, work):
            member = _Member(self._start_actor())
            self._members.append(member)
            self._calls[member.actor.__ray_ready__.remote()] = (member, None)
        for given in range(_SHARDS_EACH):
            for member in self._members:
                if not (self._queue and member.is_ready and len(member.shards) == given):
                    continue
                shard = self._queue[0]
                # One that was lost before is alone with an actor, and so is not blamed for another's losses.
                if any(self._losses[known.number] for known in (shard, *member.shards)) and given:
                    continue
                self._queue.popleft()
                member.shards.append(shard)
                self._calls[member.actor.recognize.remote(shard)] = (member, shard)

    def _lose(self, member: _Member, error: Exception) -> None:
        """Give up an actor, and let others do its shards."""
        import ray

        with suppress(Exception):  # it is gone, or out of reach and may still work
            ray.kill(member.actor)
        self._members.remove(member)
        self._calls = {reference: call for reference, call in self._calls.items() if call[0] is not member}
        self._queue.extendleft(reversed(member.shards))
        self._losses.update(shard.number for shard in member.shards)
        if not member.is_ready:
            self._lost_starts += 1
            if self._lost_starts == _MOST_LOSSES * self._workers:
                raise ClusterError(f"actors end while they start: {first_line(error)}")
        for shard in member.shards:
            if self._losses[shard.number] == _MOST_LOSSES:
                raise ClusterError(
                    f"shard {shard.number} was lost with {_MOST_LOSSES} actors, the last time because: "
                    f"{first_line(error)}; shards that are written stay for --resume"
                )
