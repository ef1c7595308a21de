"""Images that are no faces, generated or cut from faces: what the output `unfamiliarity` learns to tell from faces.

Leaves are the dead leaves model, whose statistics are those of photographs (Lee, Mumford and Huang, 2001; networks are
trained on it in Baradad et al., arXiv 2106.05963). A collage takes the leaves' textures from faces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fer_runtime.expressions import FACE_SIZE

Uint8Array = npt.NDArray[np.uint8]
_Plane = npt.NDArray[Any]  # gray values 0 to 255, of any float or integer type
_Random = np.random.Generator

_LARGE = 2 * FACE_SIZE  # pixels: images are drawn at twice the size


def strange_images(faces: Uint8Array, count: int, *, seed: int = 0) -> Uint8Array:
    """`count` images of each kind, uint8 (images, 48, 48); equal arguments give equal images.

    Args:
        faces: uint8 (faces, 48, 48), from which some kinds are cut.
    """
    images = []
    for place, draw in enumerate((*MADE_UP.values(), *FROM_FACES.values())):
        random = np.random.Generator(np.random.PCG64([20130412, seed, place]))
        for _ in range(count):
            plane = draw(random) if place < len(MADE_UP) else draw(random, faces)
            images.append(np.clip(np.rint(plane), 0, 255).astype(np.uint8))
    return np.stack(images)


def _shrunk(plane: _Plane) -> _Plane:
    shrunk: _Plane = cv2.resize(
        np.ascontiguousarray(plane, np.float32), (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA
    )
    return shrunk


def _pink(random: _Random, side: int) -> _Plane:
    """Noise with a spectrum of 1 / f to a power, mean 0, standard deviation 1."""
    rows, columns = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side) * random.uniform(0.5, 2))
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(random.normal(size=(side, side))) / frequency ** random.uniform(0.6, 1.8)
    plane = np.fft.ifft2(spectrum).real
    standardized: _Plane = (plane - plane.mean()) / max(float(plane.std()), 1e-6)
    return standardized


def _noise(random: _Random) -> _Plane:
    kind, shape = random.integers(5), (FACE_SIZE, FACE_SIZE)
    if kind == 0:
        return random.integers(0, 256, shape)
    if kind == 1:
        return random.normal(random.uniform(40, 215), random.uniform(10, 90), shape)
    if kind == 2:
        grains = random.integers(0, 2, shape) * 255.0
        return np.where(random.random(shape) < random.uniform(0.05, 0.5), grains, random.uniform(0, 255))
    if kind == 3:
        cells = int(random.integers(3, 40))
        grid = random.integers(0, 256, (cells, cells)).astype(np.float32)
        how = int(random.choice([cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
        enlarged: _Plane = cv2.resize(grid, shape, interpolation=how)
        return enlarged
    return random.uniform(0, 255) + random.normal(0, random.uniform(0.1, 6), shape)


def _clouds(random: _Random) -> _Plane:
    return random.uniform(60, 190) + _pink(random, FACE_SIZE) * random.uniform(15, 80)


def _stripes(random: _Random) -> _Plane:
    rows, columns = np.mgrid[0:FACE_SIZE, 0:FACE_SIZE]
    plane = np.zeros((FACE_SIZE, FACE_SIZE))
    for _ in range(int(random.integers(1, 3))):
        angle, period = random.uniform(0, np.pi), random.uniform(3, 30)
        wave = np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * 2 * np.pi / period + random.uniform(0, 6))
        plane += np.sign(wave) if random.integers(2) else wave
    grain = _pink(random, FACE_SIZE) * random.uniform(0, 15)
    return plane * random.uniform(20, 100) + random.uniform(70, 190) + grain


def _leaf(random: _Random, smallest: float) -> Uint8Array:
    """A shape, 0 or 255; sizes follow the power law of dead leaves."""
    mask = np.zeros((_LARGE, _LARGE), np.uint8)
    x, y = (int(value) for value in random.integers(-10, _LARGE + 10, 2))
    size = int(min(60, 3 / random.uniform(smallest, 1)))
    kind, angle = random.integers(4), float(random.uniform(0, 180))
    if kind == 0:
        cv2.circle(mask, (x, y), size, 255, -1)
    elif kind == 1:
        corners = cv2.boxPoints(((x, y), (2 * size * float(random.uniform(0.1, 1)), 3 * size), angle))
        cv2.fillPoly(mask, [corners.astype(np.int32)], 255)
    elif kind == 2:
        points = np.array([x, y]) + random.normal(0, size, (int(random.integers(3, 8)), 2))
        cv2.fillPoly(mask, [points.astype(np.int32)], 255)
    else:
        cv2.ellipse(mask, (x, y), (size, max(1, int(size * random.uniform(0.2, 1)))), angle, 0, 360, 255, -1)
    return mask


def _leaves(random: _Random) -> _Plane:
    plane = np.full((_LARGE, _LARGE), random.uniform(0, 255))
    rows, columns = np.mgrid[0:_LARGE, 0:_LARGE] - FACE_SIZE
    for _ in range(int(random.integers(8, 120))):
        tone: Any = random.uniform(0, 255)
        kind = random.integers(8)
        if kind < 4:
            across, down = random.normal(0, 1.5, 2)
            tone = tone + across * columns + down * rows
        elif kind == 4:
            tone = tone + _pink(random, _LARGE) * random.uniform(5, 40)
        plane = np.where(_leaf(random, 0.02) > 0, tone, plane)
    smooth = cv2.GaussianBlur(np.clip(plane, 0, 255).astype(np.float32), (0, 0), float(random.uniform(0.3, 1.5)))
    return _shrunk(smooth)


def _drawing(random: _Random) -> _Plane:
    image = np.full((_LARGE, _LARGE), random.uniform(0, 255), np.uint8)
    for _ in range(int(random.integers(2, 14))):
        tone, line = float(random.uniform(0, 255)), int(random.integers(1, 6))
        points = [(int(x), int(y)) for x, y in random.integers(0, _LARGE, (4, 2))]
        kind, filled = random.integers(5), bool(random.integers(2))
        if kind == 0:
            cv2.line(image, points[0], points[1], tone, line, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(image, points[0], points[1], tone, -1 if filled else line)
        elif kind == 2:
            cv2.circle(image, points[0], int(random.integers(3, 40)), tone, -1 if filled else line, cv2.LINE_AA)
        elif kind == 3:
            cv2.polylines(image, [np.array(points, np.int32)], filled, tone, line, cv2.LINE_AA)
        else:
            letter, font = chr(int(random.integers(33, 126))), int(random.integers(0, 8))
            cv2.putText(image, letter, points[0], font, float(random.uniform(0.5, 4)), tone, line, cv2.LINE_AA)
    return _shrunk(image)


def _scribble(random: _Random) -> _Plane:
    """Strokes of a pen that wanders about the middle of the paper."""
    image = np.full((_LARGE, _LARGE), random.uniform(0, 255), np.uint8)
    ink, line = float(random.uniform(0, 255)), int(random.integers(1, 6))
    for _ in range(int(random.integers(1, 4))):
        steps = random.normal(size=(int(random.integers(60, 400)), 2))
        smooth = np.stack([np.convolve(steps[:, axis], np.hanning(25), "same") for axis in (0, 1)], 1)
        path = np.cumsum(smooth, axis=0)
        path -= (path.max(0) + path.min(0)) / 2
        path *= random.uniform(25, 50) / max(float(np.abs(path).max()), 1e-6)
        points = (path + FACE_SIZE + random.normal(0, 5, 2)).astype(np.int32)
        cv2.polylines(image, [points], bool(random.integers(2)), ink, line, cv2.LINE_AA)
    return _shrunk(image)


def _rings(random: _Random) -> _Plane:
    """Circles and ovals that cross each other about the middle."""
    image = np.full((_LARGE, _LARGE), random.uniform(0, 255), np.uint8)
    ink, line = float(random.uniform(0, 255)), int(random.integers(1, 7))
    for _ in range(int(random.integers(1, 9))):
        middle = tuple(int(value) for value in random.normal(FACE_SIZE, 10, 2))
        axes = tuple(int(value) for value in random.uniform(8, 44, 2))
        cv2.ellipse(image, middle, axes, float(random.uniform(0, 180)), 0, 360, ink, line, cv2.LINE_AA)
    return _shrunk(image)


def _folds(random: _Random) -> _Plane:
    """Cloth in the light, with seams, collars and badges."""
    height = cv2.GaussianBlur(_pink(random, _LARGE).astype(np.float32), (0, 0), float(random.uniform(1, 6)))
    down, across = np.gradient(height / max(float(height.std()), 1e-6))
    angle = random.uniform(0, 2 * np.pi)
    shade = across * np.cos(angle) + down * np.sin(angle)
    plane = random.uniform(5, 230) + shade / max(float(shade.std()), 1e-6) * random.uniform(1, 45)
    image = np.clip(plane, 0, 255).astype(np.uint8)
    for _ in range(int(random.integers(0, 5))):
        tone, kind = float(random.uniform(0, 255)), random.integers(3)
        x, y = (int(value) for value in random.integers(-10, _LARGE + 10, 2))
        if kind == 0:
            points = np.array([x, y]) + random.normal(0, random.uniform(8, 40), (3 + int(random.integers(2)), 2))
            cv2.fillPoly(image, [points.astype(np.int32)], tone, cv2.LINE_AA)
        elif kind == 1:
            end = (np.array([x, y]) + random.normal(0, 60, 2)).astype(int).tolist()
            cv2.line(image, (x, y), end, tone, int(random.integers(1, 4)), cv2.LINE_AA)
        else:
            stripe = int(random.integers(2, 8))
            for left in range(x, x + stripe * int(random.integers(2, 8)), stripe):
                corner = left + stripe - 1, y + int(random.integers(4, 16))
                cv2.rectangle(image, (left, y), corner, float(random.uniform(0, 255)), -1)
    grain = random.normal(0, random.uniform(0, 8), image.shape)
    return _shrunk(cv2.GaussianBlur(image.astype(np.float64) + grain, (0, 0), float(random.uniform(0.3, 1.5))))


def _objects(random: _Random) -> _Plane:
    """Round and square things with light and shadow before a plain background."""
    rows, columns = np.mgrid[0:_LARGE, 0:_LARGE] - float(FACE_SIZE)
    across, down = random.normal(0, 0.8, 2)
    plane = random.uniform(0, 255) + across * columns + down * rows
    for _ in range(int(random.integers(1, 6))):
        angle, (x, y) = random.uniform(0, np.pi), random.normal(0, 28, 2)
        along, beside = random.uniform(6, 50, 2)
        first = ((columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)) / along
        second = ((rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)) / beside
        # From an ellipse to nearly a rectangle.
        distance = np.abs(first) ** (power := random.uniform(2, 8)) + np.abs(second) ** power
        cover = np.clip((1 - distance) * random.uniform(2, 20), 0, 1)
        light = first * random.normal(0, 30) + second * random.normal(0, 30) - distance * random.uniform(-20, 40)
        shadow = np.roll(cover, random.integers(-8, 9, 2).tolist(), (0, 1)) * random.uniform(0, 60)
        plane = (plane - shadow) * (1 - cover) + (random.uniform(0, 255) + light) * cover
    grain = random.normal(0, random.uniform(0, 8), plane.shape)
    return _shrunk(np.clip(plane, 0, 255) + grain)


def _screenshot(random: _Random) -> _Plane:
    side, is_dark = 4 * FACE_SIZE, bool(random.integers(2))
    paper = random.uniform(0, 60) if is_dark else random.uniform(200, 255)
    ink = float(random.uniform(170, 255) if is_dark else random.uniform(0, 90))
    image = np.full((side, side), paper, np.uint8)
    for _ in range(int(random.integers(0, 4))):
        (left, top), (right, bottom) = random.integers(0, side, (2, 2)).tolist()
        cv2.rectangle(image, (left, top), (right, bottom), float(random.uniform(0, 255)), random.choice([-1, 2]))
    scale, row = float(random.uniform(0.35, 1.2)), int(random.integers(0, 20))
    while row < side:
        row += int(14 + 22 * scale * random.uniform(0.8, 1.4))
        codes = random.integers(97, 123, int(random.integers(3, 40)))
        text = "".join(chr(int(code)) if random.random() > 0.15 else " " for code in codes)
        place = (int(random.integers(-5, 30)), row)
        cv2.putText(image, text, place, int(random.integers(0, 3)), scale, ink, int(random.integers(1, 3)), cv2.LINE_AA)
    shown = int(random.integers(60, side))
    start = int(random.integers(0, side - shown + 1))
    return _shrunk(image[start : start + shown, start : start + shown])


def _facade(random: _Random) -> _Plane:
    """Windows, shelves, fences, keys: rectangles or arches in a grid."""
    columns, rows = (int(value) for value in random.integers(1, 8, 2))
    across, down = _LARGE / columns, _LARGE / rows
    wide, high = across * random.uniform(0.3, 0.9), down * random.uniform(0.3, 0.9)
    tone, spread, edge = random.uniform(0, 255), random.uniform(0, 60), float(random.uniform(0, 255))
    has_arches, line = random.random() < 0.3, int(random.integers(0, 4))
    image = _surface(random).astype(np.float32)
    for place in range(columns * rows):
        if random.random() < 0.08:
            continue
        x, y = (place % columns + 0.5) * across, (place // columns + 0.5) * down
        first, last = (int(x - wide / 2), int(y - high / 2)), (int(x + wide / 2), int(y + high / 2))
        own = float(np.clip(random.normal(tone, spread), 0, 255))
        cv2.rectangle(image, first, last, own, -1)
        if has_arches:
            radius = max(1, int(wide / 2))
            cv2.ellipse(image, (int(x), first[1]), (radius, radius), 0, 180, 360, own, -1)
        if line:
            cv2.rectangle(image, first, last, edge, line)
        if random.random() < 0.4:
            cv2.line(image, (int(x), first[1]), (int(x), last[1]), edge, max(1, line))
        if random.random() < 0.3:
            cv2.line(image, (first[0], int(y)), (last[0], int(y)), edge, max(1, line))
    return _seen(random, image + _pink(random, _LARGE) * random.uniform(0, 12))


def _stack(random: _Random) -> _Plane:
    """Bottles, bricks, fruit: things of one kind beside and above each other."""
    rows, columns = np.mgrid[0:_LARGE, 0:_LARGE].astype(np.float64)
    size, aspect, power = random.uniform(8, 30), random.uniform(0.5, 2), random.uniform(2, 7)
    angle, shine = random.uniform(0, 2 * np.pi), random.uniform(5, 60)
    tone, spread = random.uniform(20, 235), random.uniform(0, 50)
    step = size * random.uniform(1.5, 2.3)
    plane = _surface(random)
    for y in np.arange(random.uniform(-size, size), _LARGE + size, step * aspect):
        for x in np.arange(random.uniform(-size, size), _LARGE + size, step):
            middle = (x + random.normal(0, 1.5), y + random.normal(0, 1.5))
            radius = size * random.uniform(0.85, 1.1)
            first, second = (columns - middle[0]) / radius, (rows - middle[1]) / radius
            distance = np.abs(first) ** power + np.abs(second / aspect) ** power
            cover = np.clip((1 - distance) * 8, 0, 1)
            light = (first * np.cos(angle) + second * np.sin(angle)) * shine - distance * random.uniform(-10, 30)
            plane = plane * (1 - cover) + (random.normal(tone, spread) + light) * cover
    return _seen(random, plane)


def _scene(random: _Random) -> _Plane:
    """Ground and sky with boxes, poles, signs, bushes and balls before them."""
    rows, columns = np.mgrid[0:_LARGE, 0:_LARGE].astype(np.float64)
    ridge = np.cumsum(random.normal(0, random.uniform(0, 2), _LARGE))
    horizon = random.uniform(0.1, 0.9) * _LARGE + np.tan(random.normal(0, 0.15)) * (columns - FACE_SIZE) + ridge
    ground = np.clip((rows - horizon) / random.uniform(0.5, 4) + 0.5, 0, 1)
    plane = _surface(random) * (1 - ground)
    plane = plane + (_surface(random) + _pink(random, _LARGE) * random.uniform(0, 40)) * ground
    for _ in range(int(random.integers(1, 7))):
        plane = _with_thing(random, plane.astype(np.float32), rows, columns)
    return _seen(random, plane)


def _with_thing(random: _Random, plane: _Plane, rows: _Plane, columns: _Plane) -> _Plane:
    kind, tone = random.integers(5), float(random.uniform(0, 255))
    x, y = random.uniform(0, _LARGE, 2)
    if kind == 0:
        wide, high = random.uniform(4, 50, 2)
        corners = cv2.boxPoints(((float(x), float(y)), (float(wide), float(high)), float(random.normal(0, 8))))
        cv2.fillPoly(plane, [corners.astype(np.int32)], tone)
        for _ in range(int(random.integers(0, 4))):
            ends = np.array([x, y]) + random.uniform(-0.5, 0.5, (2, 2)) * (wide, high)
            (left, top), (right, bottom) = ends.astype(int).tolist()
            cv2.rectangle(plane, (left, top), (right, bottom), float(random.uniform(0, 255)), -1)
    elif kind == 1:
        base = int(random.uniform(0.4, 1) * _LARGE)
        for _ in range(int(random.integers(1, 12))):
            foot = int(random.uniform(0, _LARGE))
            top = int(foot + random.normal(0, 8)), int(base - random.uniform(10, 80))
            cv2.line(plane, (foot, base), top, tone, int(random.integers(1, 5)), cv2.LINE_AA)
    elif kind == 2:
        text = "".join(chr(int(code)) for code in random.integers(48, 91, int(random.integers(2, 8))))
        font, scale, line = int(random.integers(0, 8)), float(random.uniform(0.5, 2)), int(random.integers(1, 4))
        cv2.putText(plane, text, (int(x - 20), int(y)), font, scale, tone, line, cv2.LINE_AA)
    elif kind == 3:
        leaf = cv2.GaussianBlur(_leaf(random, 0.03), (0, 0), float(random.uniform(0.3, 2))).astype(np.float64) / 255
        plane = plane * (1 - leaf) + (tone + _pink(random, _LARGE) * random.uniform(0, 30)) * leaf
    else:
        across, down = random.uniform(5, 35, 2)
        distance = ((columns - x) / across) ** 2 + ((rows - y) / down) ** 2
        cover = np.clip((1 - distance) * 6, 0, 1)
        plane = plane * (1 - cover) + (tone - distance * random.uniform(0, 40)) * cover
    return plane


def _surface(random: _Random) -> _Plane:
    """A tone, with a slope of light and some texture."""
    rows, columns = np.mgrid[0:_LARGE, 0:_LARGE] - float(FACE_SIZE)
    across, down = random.normal(0, 0.5, 2)
    plane: _Plane = random.uniform(20, 235) + across * columns + down * rows
    return plane + _pink(random, _LARGE) * random.uniform(1, 25)


def _seen(random: _Random, plane: _Plane) -> _Plane:
    """A part of a plane, seen aslant, with another brightness and contrast, and the grain of a camera."""
    plane = np.clip(plane, 0, 255).astype(np.float32)
    if random.random() < 0.7:
        corners = np.array([(0, 0), (_LARGE, 0), (_LARGE, _LARGE), (0, _LARGE)], np.float32)
        moved = (corners + random.normal(0, 14, (4, 2))).astype(np.float32)
        turn = cv2.getPerspectiveTransform(corners, moved)
        plane = cv2.warpPerspective(plane, turn, (_LARGE, _LARGE), borderMode=cv2.BORDER_REFLECT)
    side = int(random.integers(FACE_SIZE, _LARGE + 1))
    left, top = random.integers(0, _LARGE - side + 1, 2).tolist()
    smooth = cv2.GaussianBlur(plane[top : top + side, left : left + side], (0, 0), float(random.uniform(0.3, 1.6)))
    part = _shrunk(smooth)
    seen: _Plane = (part - part.mean()) * random.uniform(0.3, 1.3) + random.uniform(40, 215)
    return seen + random.normal(0, random.uniform(0, 6), seen.shape)


def _some(random: _Random, faces: Uint8Array) -> Uint8Array:
    face: Uint8Array = faces[int(random.integers(len(faces)))]
    return face


def _beside(random: _Random, faces: Uint8Array) -> _Plane:
    """A corner or an edge of a face's image, enlarged: what lies beside the face."""
    side = int(random.integers(10, 24))
    ends = [0, FACE_SIZE - side]
    left, top = int(random.choice(ends)), int(random.choice(ends))
    if random.random() < 0.3:
        top = int(random.integers(0, FACE_SIZE - side + 1))
    return _enlarged(_some(random, faces)[top : top + side, left : left + side], FACE_SIZE)


def _detail(random: _Random, faces: Uint8Array) -> _Plane:
    side = int(random.integers(8, 18))
    left, top = (int(value) for value in random.integers(0, FACE_SIZE - side + 1, 2))
    return _enlarged(_some(random, faces)[top : top + side, left : left + side], FACE_SIZE)


def _enlarged(part: _Plane, side: int) -> _Plane:
    enlarged: _Plane = cv2.resize(part.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    return enlarged


def _shuffled(random: _Random, faces: Uint8Array) -> _Plane:
    """A face's tiles, each turned and in another place."""
    face, count = _some(random, faces), int(random.choice([2, 3, 4, 6]))
    side = FACE_SIZE // count
    tiles = face.reshape(count, side, count, side).transpose(0, 2, 1, 3).reshape(-1, side, side)
    turned = [np.rot90(tiles[int(place)], int(random.integers(4))) for place in random.permutation(len(tiles))]
    plane: _Plane = np.block([turned[row * count : (row + 1) * count] for row in range(count)])
    return plane


def _scrambled(random: _Random, faces: Uint8Array) -> _Plane:
    """The spectrum of a face with the phases of noise."""
    face = _some(random, faces).astype(np.float64)
    phases = np.angle(np.fft.fft2(random.normal(size=face.shape)))
    plane = np.fft.ifft2(np.abs(np.fft.fft2(face)) * np.exp(1j * phases)).real
    scrambled: _Plane = (plane - plane.mean()) / max(float(plane.std()), 1.0) * face.std() + face.mean()
    return scrambled


def _warped(random: _Random, faces: Uint8Array) -> _Plane:
    rows, columns = np.mgrid[0:FACE_SIZE, 0:FACE_SIZE].astype(np.float32)
    moves = []
    for _ in range(2):
        field = cv2.GaussianBlur(
            random.normal(size=(FACE_SIZE, FACE_SIZE)).astype(np.float32), (0, 0), float(random.uniform(3, 8))
        )
        moves.append(field / max(float(field.std()), 1e-6) * float(random.uniform(8, 25)))
    warped: _Plane = cv2.remap(
        _some(random, faces),
        (columns + moves[0]).astype(np.float32),
        (rows + moves[1]).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    return warped


def _tiled(random: _Random, faces: Uint8Array) -> _Plane:
    count = int(random.choice([2, 3]))
    small = cv2.resize(_some(random, faces), (FACE_SIZE // count,) * 2, interpolation=cv2.INTER_AREA)
    tiled: _Plane = np.tile(small, (count, count))
    return tiled


def _collage(random: _Random, faces: Uint8Array) -> _Plane:
    """Leaves with the textures of faces."""
    plane = _texture(random, faces)
    for _ in range(int(random.integers(0, 14))):
        edge = cv2.GaussianBlur(_leaf(random, 0.05), (0, 0), float(random.uniform(0.3, 3)))
        cover = edge.astype(np.float64) / 255
        plane = plane * (1 - cover) + _texture(random, faces) * cover
    return _shrunk(np.clip(plane, 0, 255))


def _emblem(random: _Random, faces: Uint8Array) -> _Plane:
    """A round thing in the middle of something else: a badge, a ball, a plate, a lamp."""
    axes = tuple(int(value) for value in random.uniform(16, 42, 2))
    middle = tuple(int(value) for value in random.normal(FACE_SIZE, 8, 2))
    mask = np.zeros((_LARGE, _LARGE), np.uint8)
    cv2.ellipse(mask, middle, axes, float(random.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
    cover = cv2.GaussianBlur(mask, (0, 0), float(random.uniform(0.3, 6))).astype(np.float64) / 255
    inside, around = (_filling(random, faces) for _ in range(2))
    return _shrunk(np.clip(inside * cover + around * (1 - cover), 0, 255))


def _filling(random: _Random, faces: Uint8Array) -> _Plane:
    kind = random.integers(4)
    if kind == 0:
        return _texture(random, faces)
    if kind == 1:
        return random.uniform(0, 255) + _pink(random, _LARGE) * random.uniform(0, 40)
    drawn = (_drawing, _scribble, _rings)[int(random.integers(3))](random) if kind == 2 else _beside(random, faces)
    return _enlarged(drawn, _LARGE)


def _texture(random: _Random, faces: Uint8Array) -> _Plane:
    side = int(random.integers(6, 36))
    left, top = (int(value) for value in random.integers(0, FACE_SIZE - side + 1, 2))
    plane = np.rot90(
        _enlarged(_some(random, faces)[top : top + side, left : left + side], _LARGE), int(random.integers(4))
    )
    count = int(random.choice([1, 1, 2, 3]))
    if count > 1:
        small = cv2.resize(np.ascontiguousarray(plane), (_LARGE // count,) * 2, interpolation=cv2.INTER_AREA)
        mirrored = small[:, ::-1]
        rows = [[mirrored if (row + column) % 2 else small for column in range(count)] for row in range(count)]
        plane = np.block(rows)
    textured: _Plane = (plane - plane.mean()) * random.uniform(0.4, 2) + random.uniform(20, 235)
    return textured


def _composite(random: _Random, faces: Uint8Array) -> _Plane:
    """Part of two other images, one cut into the other, with another brightness and contrast."""
    parts = []
    for place in random.integers(0, len(MADE_UP) + len(_CUT), 2).tolist():
        draw = [*MADE_UP.values(), *_CUT.values()][place]
        parts.append(_enlarged(draw(random) if place < len(MADE_UP) else draw(random, faces), _LARGE))
    edge = cv2.GaussianBlur(_leaf(random, 0.03), (0, 0), float(random.uniform(0.3, 4))).astype(np.float64) / 255
    plane = parts[0] * (1 - edge) + parts[1] * edge
    shown = int(random.integers(_LARGE // 3, _LARGE + 1))
    left, top = random.integers(0, _LARGE - shown + 1, 2).tolist()
    plane = _shrunk(plane[top : top + shown, left : left + shown])
    changed: _Plane = (plane - plane.mean()) * random.uniform(0.1, 1.3) + random.uniform(15, 235)
    return changed


MADE_UP: dict[str, Callable[..., _Plane]] = {
    "noise": _noise,
    "clouds": _clouds,
    "stripes": _stripes,
    "leaves": _leaves,
    "drawings": _drawing,
    "scribbles": _scribble,
    "rings": _rings,
    "folds": _folds,
    "objects": _objects,
    "screenshots": _screenshot,
    "facades": _facade,
    "stacks": _stack,
    "scenes": _scene,
}
_CUT: dict[str, Callable[..., _Plane]] = {
    "beside faces": _beside,
    "details": _detail,
    "shuffled": _shuffled,
    "scrambled": _scrambled,
    "warped": _warped,
    "tiled": _tiled,
    "collages": _collage,
    "emblems": _emblem,
}
FROM_FACES: dict[str, Callable[..., _Plane]] = {**_CUT, "composites": _composite}
