"""Photographs with two labels, smiling and serious, made of the package's sample photographs, to try your-own.md with.

    python -m benchmarks.studies.own_photos photos --count 45

Each photograph is a part of a sample around one face, mirrored or not, turned, enlarged or shrunk, lit differently and
blurred a little, in front of another sample's blurred background. The samples show few people, so a model of these
photographs knows these people and nothing else: the figures show that the commands work, not what they are worth.
"""

from __future__ import annotations

from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt

import fer_runtime
from fer_runtime.images import Uint8Array, read_image

SAMPLES = Path(fer_runtime.__file__).parent / "samples"
# Boxes of the faces in the samples: x, y, side.
FACES = {
    "smiling": (("eileen_collins.jpg", 173, 63, 104), ("group.jpg", 128, 102, 134)),
    "serious": (("grace_hopper.jpg", 147, 100, 239), ("group.jpg", 430, 102, 157), ("group.jpg", 666, 257, 103)),
}


def make_photo(image: Uint8Array, box: tuple[int, int, int], behind: Uint8Array, seed: list[int]) -> Uint8Array:
    """One photograph of the face at x, y of so many pixels, in BGR."""
    random = np.random.default_rng(seed)
    x, y, side = box
    face = random.uniform(80, 200)  # pixels in the photograph
    width, height = (int(face * random.uniform(2.2, 3.5)) for _ in range(2))
    turn: npt.NDArray[np.float64] = np.array(
        cv2.getRotationMatrix2D((x + side / 2, y + side / 2), random.uniform(-15, 15), face / side)
    )
    turn[0, 2] += width * random.uniform(0.4, 0.6) - x - side / 2
    turn[1, 2] += height * random.uniform(0.4, 0.6) - y - side / 2
    photo = cv2.GaussianBlur(cv2.resize(behind, (width, height), interpolation=cv2.INTER_AREA), (0, 0), 6)
    photo = cv2.warpAffine(image, turn, (width, height), photo, borderMode=cv2.BORDER_TRANSPARENT)
    if random.random() < 0.5:
        photo = photo[:, ::-1]
    light = np.linspace(random.uniform(0.7, 1.2), random.uniform(0.7, 1.2), width)[:, None]
    lit = 255 * (photo / 255.0) ** random.uniform(0.7, 1.4) * light
    noisy = np.clip(lit + random.normal(0, random.uniform(0, 6), photo.shape), 0, 255).astype(np.uint8)
    blurred: Uint8Array = np.asarray(cv2.GaussianBlur(noisy, (0, 0), random.uniform(0.3, 1.2)), np.uint8)
    return blurred


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", default=45, show_default=True, help="Photographs of each label.")
def main(folder: Path, count: int) -> None:
    """Write photographs to FOLDER/smiling and FOLDER/serious."""
    images = {path.name: read_image(path) for path in sorted(SAMPLES.glob("*.jpg"))}
    for place, (label, faces) in enumerate(FACES.items()):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            name, x, y, side = faces[number % len(faces)]
            others = [image for other, image in images.items() if other != name]
            photo = make_photo(images[name], (x, y, side), others[number % len(others)], [place, number])
            cv2.imwrite(str(folder / label / f"{number:03}.jpg"), photo)
    click.echo(f"{folder}: {count} photographs of each of {', '.join(FACES)}")


if __name__ == "__main__":
    main()
