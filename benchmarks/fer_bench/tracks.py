"""Count how often faces keep their track numbers: simulated people walk past a camera, at several frame rates."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

FRAME_RATES = (2, 5, 10, 15, 30)  # per second
_WIDTH, _HEIGHT = 1280, 720  # pixels of the image
_TREMBLING = 0.03  # of the face's width, standard deviation of a detector's box
_MISSED = 0.05  # share of the faces that the detector does not find
_SECONDS_HIDDEN = 1.0
_Box = tuple[int, int, int, int]  # x, y, width, height in pixels


class FollowsBoxes(Protocol):
    """A tracker as this benchmark uses it."""

    def update(self, time: float, boxes: Sequence[_Box]) -> list[int]:
        """Numbers of the faces of one frame."""
        ...


@dataclass(frozen=True, slots=True)
class Person:
    """A face that crosses the image on a straight line at a constant pace."""

    start: float  # seconds
    x: float  # pixels, of the centre at `start`
    y: float
    speed: float  # pixels per second, to the right
    side: float  # pixels
    hidden: tuple[float, float] = (0.0, 0.0)  # seconds, from and to

    def center(self, time: float) -> tuple[float, float]:
        """Where the face is."""
        return self.x + self.speed * (time - self.start), self.y

    def is_seen(self, time: float) -> bool:
        """Whether the face is inside the image and not hidden by itself."""
        x, _ = self.center(time)
        inside = self.side / 2 <= x <= _WIDTH - self.side / 2
        return time >= self.start and inside and not self.hidden[0] <= time < self.hidden[1]


def walk_by(random_: random.Random) -> list[Person]:
    """One person crosses the image at 1 to 8 face widths a second."""
    return [_walker(random_, side=random_.uniform(50, 140))]


def hidden(random_: random.Random) -> list[Person]:
    """A walk-by, hidden for one second in the middle."""
    side = random_.uniform(50, 140)
    person = _walker(random_, side=side, fastest=min(3.0, _WIDTH / side / 4))
    middle = person.start + _WIDTH / 2 / abs(person.speed)
    return [
        Person(
            person.start,
            person.x,
            person.y,
            person.speed,
            person.side,
            (middle - _SECONDS_HIDDEN / 2, middle + _SECONDS_HIDDEN / 2),
        )
    ]


def crossing(random_: random.Random) -> list[Person]:
    """Two people walk towards each other; the nearer one hides the other for a moment."""
    near, far = random_.uniform(90, 140), random_.uniform(60, 90)
    y = random_.uniform(200, 500)
    first = _walker(random_, side=near, fastest=3.0, y=y, to_right=True)
    second = _walker(random_, side=far, fastest=3.0, y=y + random_.uniform(-0.4, 0.4) * far, to_right=False)
    return [first, second]


def passing(random_: random.Random) -> list[Person]:
    """One person stands, another one walks by in front."""
    near, far = random_.uniform(90, 140), random_.uniform(60, 90)
    y = random_.uniform(200, 500)
    walker = _walker(random_, side=near, fastest=3.0, y=y)
    stander = Person(0.0, random_.uniform(300, 980), y + random_.uniform(-0.5, 0.5) * far, 0.0, far)
    return [walker, stander]


SCENES: dict[str, Callable[[random.Random], list[Person]]] = {
    "one walks by": walk_by,
    "hidden for 1 s": hidden,
    "two cross": crossing,
    "one passes another": passing,
}


def keeps_ids(tracker: FollowsBoxes, people: Sequence[Person], rate: float, random_: random.Random) -> bool:
    """Whether each of the people has one number of their own from the first frame to the last.

    Args:
        tracker: a fresh one.
        people: the nearest first; a nearer one hides those behind.
        rate: frames per second.
    """
    numbers: list[set[int]] = [set() for _ in people]
    end = max(person.start + (_WIDTH / abs(person.speed) if person.speed else 0.0) for person in people)
    phase = random_.random() / rate
    for frame in range(int(end * rate) + 1):
        time = frame / rate + phase
        seen: list[int] = []
        boxes: list[_Box] = []
        for index, person in enumerate(people):
            if not person.is_seen(time) or random_.random() < _MISSED:
                continue
            if any(_hides(people[near], person, time) for near in range(index) if people[near].is_seen(time)):
                continue
            seen.append(index)
            boxes.append(_box(person, time, random_))
        order = list(range(len(boxes)))
        random_.shuffle(order)  # a detector gives faces in any order
        found = tracker.update(time, [boxes[place] for place in order])
        for place, number in zip(order, found, strict=True):
            numbers[seen[place]].add(number)
    everyone = [number for given in numbers for number in given]
    return all(len(given) == 1 for given in numbers) and len(everyone) == len(set(everyone))


def count_kept(create: Callable[[], FollowsBoxes], scene: str, rate: float, *, runs: int = 20) -> int:
    """In how many of `runs` simulations of a scene everybody keeps their number."""
    kept = 0
    for seed in range(runs):
        random_ = random.Random(f"{scene} {seed}")
        kept += keeps_ids(create(), SCENES[scene](random_), rate, random_)
    return kept


def track_table(create: Callable[[], FollowsBoxes], *, runs: int = 20) -> str:
    """The table of all scenes and frame rates, as Markdown."""
    lines = ["| scene | " + " | ".join(f"{rate} fps" for rate in FRAME_RATES) + " |"]
    lines.append("|---|" + "---:|" * len(FRAME_RATES))
    for scene in SCENES:
        kept = (f"{count_kept(create, scene, rate, runs=runs)} of {runs}" for rate in FRAME_RATES)
        lines.append(f"| {scene} | {' | '.join(kept)} |")
    return "\n".join(lines)


def _walker(
    random_: random.Random,
    *,
    side: float,
    fastest: float = 8.0,
    y: float | None = None,
    to_right: bool | None = None,
) -> Person:
    speed = random_.uniform(1.0, fastest) * side
    # Slow enough to be seen more than once at two frames a second.
    speed = min(speed, _WIDTH / 3)
    to_right = random_.random() < 0.5 if to_right is None else to_right
    return Person(
        start=0.0,
        x=side / 2 if to_right else _WIDTH - side / 2,
        y=random_.uniform(150, 550) if y is None else y,
        speed=speed if to_right else -speed,
        side=side,
    )


def _hides(near: Person, far: Person, time: float) -> bool:
    """Whether more than half of the farther face's width is behind the nearer one."""
    shared = (near.side + far.side) / 2 - abs(near.center(time)[0] - far.center(time)[0])
    return shared > far.side / 2


def _box(person: Person, time: float, random_: random.Random) -> _Box:
    x, y = person.center(time)
    side = person.side * (1 + random_.gauss(0, _TREMBLING))
    x += random_.gauss(0, _TREMBLING) * person.side
    y += random_.gauss(0, _TREMBLING) * person.side
    return round(x - side / 2), round(y - side / 2), round(side), round(side)
