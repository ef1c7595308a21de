"""The training loop: from labelled faces to the weights of the best epoch, resumable after any kill."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fer_runtime.errors import CheckpointError, DataError, FerError, first_line
from fer_runtime.files import check_writable, write_atomically
from fer_runtime.registry import load
from fer_runtime.text import printable
from fer_runtime.untrusted_json import parse_json
from fer_train.checkpoints import pack_state, unpack_state
from fer_train.data.augment import Augmentation
from fer_train.data.augmentations import AUGMENTATIONS
from fer_train.data.folders import LabelledFaces, class_weights
from fer_train.data.mixup import mix
from fer_train.data.votes import Float32Array, VoteReport, distributions, measure_votes
from fer_train.loop.batch import Batch
from fer_train.loop.devices import trains_in_bf16
from fer_train.loop.distill import Teachers
from fer_train.loop.distributed import ALONE, World, from_writer, gathered, spread, summed
from fer_train.loop.ema import follow
from fer_train.loop.fused_blocks import fuse_blocks
from fer_train.loop.probe import fit_last_layer, last_linear
from fer_train.loop.small_maps import use_matrix_products
from fer_train.networks.registry import predict_logits
from fer_train.recipes import Recipe
from fer_train.results import History

# What two runs differ in, after "another"; other keys say it themselves.
_SAID = {"data": "set of images or votes", "starting weights": "file of weights", "teachers": "set of teachers"}
# Faces are augmented this many at a time: enough that a group of one AutoAugment policy fills its
# operations, few enough to stay near the cache.
_CHUNK = 4096


class DivergedError(FerError):
    """The loss is not a finite number."""


class Progress(Protocol):
    """Callbacks for the progress of a training; the command draws bars with them."""

    def batch(self, epoch: int, epochs: int, faces: int, of: int, loss: float, accuracy: float) -> None: ...

    def epoch(self, epoch: int, epochs: int, history: History) -> None: ...


class Silent:
    """Progress that shows nothing."""

    def batch(self, epoch: int, epochs: int, faces: int, of: int, loss: float, accuracy: float) -> None: ...

    def epoch(self, epoch: int, epochs: int, history: History) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Loss and probabilities on labelled faces; loss and accuracy are against the votes where there are any."""

    loss: float  # cross-entropy to the labels, or to the distribution of the votes
    accuracy: float  # fraction of the labels, or of the votes' strict majorities
    score: float  # chooses the epoch, higher is better: accuracy against labels, -cross-entropy against votes
    probabilities: Tensor  # float32 (faces, classes), on CPU
    votes: VoteReport | None = None


class Trainer:
    """One network, one recipe, one seed.

    Args:
        network: float32 (batch, 3, size, size) to logits (batch, classes); trained in place.
        train: faces to learn from.
        validation: faces that choose the best epoch.
        recipe: the settings.
        device: where the arithmetic happens.
        seed: of the order of the faces, the augmentation and the dropout.
        teachers: whose answers the distillation aims at; None without one.
        world: this process among those that train together.
        identity: what a resumed run must have in common with the killed one, and all processes with each other
            (model, recipe, seed, data).
        starts_trained: whether the network's first weights are worth keeping: they count as epoch 0.

    Raises:
        DataError: a class has no image or no votes, or a batch fewer faces than there are processes.
        CheckpointError: the network has no last biases for the recipe's logit adjustment.
    """

    def __init__(
        self,
        network: nn.Module,
        train: LabelledFaces,
        validation: LabelledFaces,
        recipe: Recipe,
        *,
        device: torch.device,
        seed: int,
        teachers: Teachers | None = None,
        world: World = ALONE,
        identity: dict[str, Any] | None = None,
        starts_trained: bool = False,
    ) -> None:
        _require_enough(train, recipe, world)
        self.recipe = recipe
        self.device = device
        self.seed = seed
        self.world = world
        self.history = History()
        self.best_state: dict[str, Tensor] = {}  # weights of the best epoch, on CPU, before the logit adjustment
        self._identity = identity or {}
        self._starts_trained = starts_trained
        self._autocast_bf16 = trains_in_bf16(network, device)
        # Convolutions run a third faster on channels-last images, on CPUs and GPUs alike.
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cpu":
            use_matrix_products(self.network, bf16=self._autocast_bf16)
            if world.size == 1 and not self._autocast_bf16:  # BatchNorm over several processes is another function
                fuse_blocks(self.network)
        self._spread = spread(self.network, world, device)
        self.average = (
            AveragedModel(self.network, multi_avg_fn=follow(recipe.ema_decay), use_buffers=True)
            if recipe.ema_decay
            else None
        )
        self.optimizer = _optimizer(self.network, recipe)
        # The whole data set lives on the device: FER2013 is 66 MB, and no epoch waits for a loader.
        self._faces = torch.from_numpy(train.faces).to(device)
        targets = learning_targets(train, recipe)
        self._targets = torch.from_numpy(targets).to(device, torch.float32)
        self._teachers = teachers
        self._validation_faces = torch.from_numpy(validation.faces).to(device)
        self._validation = validation
        if unnamed := [name for name, share in zip(train.classes, targets.sum(0), strict=True) if not share]:
            raise DataError(
                f"the votes teach no image to be {', '.join(unnamed)}; leave that class folder out, or let less count: "
                "--set least_votes=0, --set label_share=0.2"
            )
        weights = class_weights(targets.sum(0, dtype=np.float64).tolist(), power=recipe.balance)
        self._weights = torch.tensor(weights, dtype=torch.float32, device=device)
        whole = class_weights(targets.sum(0, dtype=np.float64).tolist(), power=1.0)
        self._shift = recipe.logit_adjustment * torch.tensor(whole, dtype=torch.float32).log()
        self._adjusted = ""  # name of the layer whose biases are shifted
        if recipe.logit_adjustment:  # now, not after the last epoch
            self._adjusted, _ = last_linear(
                self.network, self._faces, needed_by="logit_adjustment", setting="logit_adjustment=0"
            )
        self._generator = Generator().manual_seed(seed)
        self._batch_sizes = batch_sizes(len(train), recipe.batch_size)
        self._steps_per_epoch = len(self._batch_sizes)
        self._seed_dropout()

    def run(
        self,
        *,
        resume_path: Path | None = None,
        resume: bool = False,
        finish: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Train to the recipe's last epoch; `finished` then gives the weights of the best one.

        Args:
            resume_path: where each epoch leaves its state; None keeps nothing.
            resume: begin with the state at `resume_path` where there is one.
            finish: train no further than the state at `resume_path`, which must be there.

        Raises:
            CheckpointError: the state there is damaged or belongs to another run, or there is none to finish.
            DataError: another process has other data or settings.
            DivergedError: the loss is no finite number any more.
            OutputError: the state cannot be written.
        """
        progress = progress or Silent()
        self._require_agreement()
        if resume_path is not None and (resume or finish):
            # The writer alone has written it, perhaps on another machine.
            content = from_writer(lambda: _read_state(resume_path, required=finish), self.world)
            if content is not None:
                self._restore(content, resume_path)
        if finish:
            return
        if resume_path is not None:
            from_writer(lambda: check_writable(resume_path), self.world)  # now, not after an hour's epoch
        if self._starts_trained and not self.history.epochs:
            self._begin()
        for epoch in range(self.history.epochs + 1, self.recipe.epochs + 1):
            started = time.perf_counter()
            loss, accuracy = self._train_epoch(epoch, progress)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss of epoch {epoch} is {loss}: it has diverged; start again with a lower --lr "
                    f"than {self.recipe.lr:g}, or without the --set that caused it"
                )
            network = self.average.module if self.average is not None else self.network
            evaluation = self.evaluate(network)
            # The loss of training is that before the last step, which can break the weights, too.
            if not math.isfinite(evaluation.loss):
                raise DivergedError(
                    f"the validation loss of epoch {epoch} is {evaluation.loss}: the training has diverged; start "
                    f"again with a lower --lr than {self.recipe.lr:g}, or without the --set that caused it"
                )
            self.history.train_loss.append(loss)
            self.history.train_acc.append(accuracy)
            self.history.test_loss.append(evaluation.loss)
            self.history.test_acc.append(evaluation.accuracy)
            self.history.score.append(evaluation.score)
            if evaluation.votes is not None:
                self.history.mean_recall.append(evaluation.votes.mean_recall)
            self.history.seconds.append(time.perf_counter() - started)
            if self.history.best_epoch == epoch:
                self._keep(network)
            if not self.world.is_writer:
                continue
            if resume_path is not None:
                self._save(resume_path)
            progress.epoch(epoch, self.recipe.epochs, self.history)

    def _begin(self) -> None:
        """Count the first weights as epoch 0: those that were given, or a linear probe of them where that is better."""
        given = self.evaluate(self.network)
        start = given
        if self.recipe.last_layer == "probe":
            before = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
            fit_last_layer(self.network, self._faces, self._targets, self._weights, seed=self.seed)
            probe = self.evaluate(self.network)
            self.history.probe_acc = probe.accuracy
            if probe.score > given.score:
                start = probe
            else:
                self.network.load_state_dict(before)
        self.history.start_score, self.history.start_acc = start.score, start.accuracy
        if self.average is not None:
            self.average.module.load_state_dict(self.network.state_dict())
        self._keep(self.network)

    def _keep(self, network: nn.Module) -> None:
        self.best_state = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}

    def finished(self) -> tuple[dict[str, Tensor], Evaluation]:
        """The weights of the best epoch, on CPU, with the recipe's logit adjustment, and what they reach."""
        state = {key: value.clone() for key, value in self.best_state.items()}
        if self.recipe.logit_adjustment:
            state[f"{self._adjusted}.bias"] += self._shift
        self.network.load_state_dict(state)
        return state, self.evaluate(self.network)

    def evaluate(self, network: nn.Module) -> Evaluation:
        """Loss and probabilities on the validation faces, in eval mode and float32."""
        logits = predict_logits(network, self._validation_faces)
        probabilities = F.softmax(logits, 1)
        if self._validation.votes is not None:
            votes = measure_votes(probabilities.numpy(), self._validation.votes)
            return Evaluation(
                loss=votes.cross_entropy,
                accuracy=votes.majority_accuracy,
                score=-votes.cross_entropy,
                probabilities=probabilities,
                votes=votes,
            )
        labels = torch.from_numpy(self._validation.labels)
        right = float((logits.argmax(1) == labels).float().mean())
        return Evaluation(
            loss=float(F.cross_entropy(logits, labels)), accuracy=right, score=right, probabilities=probabilities
        )

    def _train_epoch(self, epoch: int, progress: Progress) -> tuple[float, float]:
        """Loss (mean per face) and accuracy on the augmented images."""
        self._spread.train()
        recipe, total = self.recipe, len(self._targets)
        step = (epoch - 1) * self._steps_per_epoch
        # Summed on the device: reading a value every step would make a GPU wait for Python.
        loss_sum = torch.zeros((), device=self.device)
        hits = torch.zeros((), device=self.device)
        seen = 0
        shown = time.perf_counter()
        size = recipe.small_size if epoch <= recipe.small_until * recipe.epochs else None
        mixed = bool(recipe.mixup or recipe.cutmix) and epoch <= recipe.mix_until * recipe.epochs
        again = None
        if recipe.repeat_images:
            again = (epoch - 1) % recipe.repeat_images
            self._generator.manual_seed(self.seed * recipe.repeat_images + again)
        for batch in self._batches(size, mixed=mixed, again=again):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step, self._steps_per_epoch * recipe.epochs)
            step += 1
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast_bf16):
                logits = self._spread(batch.images)
            logits = logits.float()
            loss = self._loss(logits, batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.network)
            with torch.no_grad():
                loss_sum += loss * (batch.faces / self.world.size)
                hits += self._hits(logits.argmax(1), batch)
            seen += batch.faces
            if self.world.is_writer and time.perf_counter() - shown > 0.25:
                shown = time.perf_counter()
                # This process's share stands for all of them until the epoch's end.
                own = seen / self.world.size
                progress.batch(epoch, recipe.epochs, seen, total, float(loss_sum) / own, float(hits) / own)
        return float(summed(loss_sum, self.world)) / seen, float(summed(hits, self.world)) / seen

    def _batches(self, size: int | None = None, *, mixed: bool = False, again: int | None = None) -> Iterator[Batch]:
        """This process's shares of all batches, in the order that the generator gives.

        Args:
            size: pixels, side of the images; None for that of the faces.
            mixed: whether the recipe's mixing is done.
            again: number of the order among those that come again, if they do.
        """
        number = 0
        augmentation = load(AUGMENTATIONS[self.recipe.augmentation].apply)
        batches_per_chunk = max(1, _CHUNK // self.recipe.batch_size)
        chunks = [
            self._batch_sizes[first : first + batches_per_chunk]
            for first in range(0, self._steps_per_epoch, batches_per_chunk)
        ]
        order = torch.randperm(len(self._targets), generator=self._generator).to(self.device)
        # Of a last batch with fewer faces than processes, some have none: they add zeros to the sums of all.
        share = slice(self.world.rank, None, self.world.size)
        for sizes, chunk in zip(chunks, torch.split(order, [sum(sizes) for sizes in chunks]), strict=True):
            augmented = augmented_planes(augmentation, self._faces[chunk], self._generator)
            if size is not None:
                augmented = F.interpolate(augmented, (size, size), mode="area")
            for images, indices in zip(torch.split(augmented, sizes), torch.split(chunk, sizes), strict=True):
                targets = self._targets[indices]
                partners = own = None
                if mixed:
                    # Before the batch is shared out, so that any number of processes mixes the same pairs.
                    result = mix(images, self._generator, mixup=self.recipe.mixup, cutmix=self.recipe.cutmix)
                    images, partners, own = result.images, indices[result.partners], result.share
                    targets = torch.lerp(self._targets[partners], targets, own[:, None])
                yield Batch(
                    images=images[share].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last),
                    targets=targets[share],
                    indices=indices[share],
                    faces=len(indices),
                    weight=(targets @ self._weights).sum(),
                    partners=None if partners is None else partners[share],
                    own=None if own is None else own[share],
                    key=None if again is None else (again, mixed, number),
                )
                number += 1

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of this process's share, so scaled that the processes' mean is the whole batch's loss."""
        recipe = self.recipe
        summed_up = F.cross_entropy(
            logits, batch.targets, weight=self._weights, label_smoothing=recipe.label_smoothing, reduction="sum"
        )
        loss = summed_up / batch.weight * self.world.size
        if self._teachers is None:
            return loss
        temperature = recipe.teacher_temperature
        taught = self._teachers.probabilities(batch, temperature)
        distilled = F.kl_div(F.log_softmax(logits / temperature, 1), taught, reduction="sum")
        distilled = distilled / batch.faces * self.world.size
        # The factor keeps the gradients' size when the temperature changes (Hinton et al., section 2).
        return (1 - recipe.teacher_weight) * loss + recipe.teacher_weight * temperature**2 * distilled

    def _hits(self, predictions: Tensor, batch: Batch) -> Tensor:
        """Sum over this share of what the targets give to the predicted class: 1 for a label that is right."""
        return batch.targets.gather(1, predictions[:, None]).sum()

    def _save(self, path: Path) -> None:
        state = {
            "identity": self._identity,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": asdict(self.history),
            "best_state_dict": self.best_state,
            "order_and_augmentation": self._generator.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        write_atomically(path, pack_state(state))

    def _seed_dropout(self) -> None:
        # Each process and each start draws other masks.
        torch.manual_seed(self.seed + self.world.rank + self.world.size * self.history.epochs)

    def _require_agreement(self) -> None:
        """Raise a DataError where a process would train something else: their gradients would be added all the same."""
        identities = gathered(self._identity, self.world)
        for rank, identity in enumerate(identities):
            if differing := sorted(key for key, value in identities[0].items() if identity.get(key) != value):
                raise DataError(
                    f"process {rank} has another {', '.join(differing)} than process 0; give every machine "
                    "the same options, images and files"
                )

    def _restore(self, content: bytes, path: Path) -> None:
        state = unpack_state(content, source=path)
        identity = state["identity"]
        differing = [_SAID.get(key, key) for key in sorted(self._identity) if identity.get(key) != self._identity[key]]
        if differing:
            raise CheckpointError(
                f"{path} is of a run with another {', '.join(differing)}{self._other_settings(identity)}; "
                "give the same options and data, or start over with --replace instead of --resume"
            )
        try:
            self._load(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{path} is not a state of this training ({first_line(error)}); delete it and start again without "
                "--resume"
            ) from error

    def _other_settings(self, identity: dict[str, Any]) -> str:
        """The settings of the recipe with which a saved run differs from this one, as `--set` takes them."""
        recipes = identity.get("recipe"), self._identity.get("recipe")
        if recipes[0] == recipes[1] or not all(isinstance(recipe, str) for recipe in recipes):
            return ""
        try:
            theirs, ours = (parse_json(str(recipe)) for recipe in recipes)
            settings = [f"{name}={theirs[name]}" for name in sorted(ours) if theirs[name] != ours[name]]
        except (ValueError, TypeError, KeyError):
            return ""
        return f" ({printable(', '.join(settings), limit=200)})"

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = History(**state["history"])
        best = {key: value.shape for key, value in state["best_state_dict"].items()}
        if best != {key: value.shape for key, value in self.network.state_dict().items()}:
            raise ValueError("the weights of its best epoch are of another network")
        self.best_state = state["best_state_dict"]
        self._generator.set_state(state["order_and_augmentation"])
        if not self.world.is_writer:
            # The state is the writer's: with it, every process would draw the same masks.
            self._seed_dropout()
            return
        torch.set_rng_state(state["dropout"])
        if state["dropout_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["dropout_cuda"], self.device)


def _read_state(path: Path, *, required: bool) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        if not required:
            return None
        raise CheckpointError(f"no stopped run at {path}; start one without --finish") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror}); make it readable, or start again") from error


def augmented_planes(augmentation: Augmentation, faces: Tensor, generator: Generator) -> Tensor:
    """Augmented faces, float32 (faces, 1, size, size), or (faces, 3, size, size) of faces in RGB.

    Augmentations change one plane. In RGB each plane gets the same change: it is drawn from the same numbers.
    """
    if faces.ndim == 3:
        return augmentation(faces, generator)[:, None]
    state = generator.get_state()
    planes = []
    for plane in faces.unbind(3):
        generator.set_state(state)
        planes.append(augmentation(plane.contiguous(), generator))
    return torch.stack(planes, 1)


def learning_targets(faces: LabelledFaces, recipe: Recipe) -> Float32Array:
    """The target of each face, float32 (faces, classes): its label, or the raters' votes."""
    labels = np.eye(len(faces.classes), dtype=np.float32)[faces.labels]
    if faces.votes is None:
        return labels
    votes = distributions(faces.votes, least_votes=recipe.least_votes)
    if recipe.vote_target == "majority":
        votes = np.eye(len(faces.classes), dtype=np.float32)[votes.argmax(1)]
    return recipe.label_share * labels + (1 - recipe.label_share) * votes


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of a step, counted from 0, of `steps` in total.

    "one-cycle" rises linearly over the warm-up and falls to zero along a half cosine.
    """
    if recipe.schedule == "constant":
        return recipe.lr
    rising = max(1, round(recipe.warmup * steps))
    if step < rising:
        return recipe.lr * (step + 1) / rising
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rising + 1) / max(1, steps - rising)))


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    # Biases and BatchNorm's scales are no weights: decaying them to zero only hurts.
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)


def batch_sizes(faces: int, batch_size: int) -> list[int]:
    """Faces of each batch of an epoch; a last one of a single face joins the batch before it.

    Where a network's maps shrink to a pixel, BatchNorm has no variance over one face.
    """
    whole, rest = divmod(faces, batch_size)
    sizes = [batch_size] * whole
    if rest == 1 and sizes:
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes


def _require_enough(train: LabelledFaces, recipe: Recipe, world: World) -> None:
    if absent := [name for name, count in train.counts.items() if not count]:
        raise DataError(f"no training image of {', '.join(absent)} is left; every class needs some")
    if (faces := min(len(train), recipe.batch_size)) < world.size:
        raise DataError(
            f"a batch of {faces} faces is too small for {world.size} processes; start fewer, or give "
            + ("more images" if len(train) < world.size else f"--batch-size {world.size} or more")
        )
