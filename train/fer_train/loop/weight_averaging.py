"""One network out of several trainings of it: the mean of their weights, what `fer-train --average` does.

A "model soup" (Wortsman et al., arXiv 2203.05482): fine-tunings that began at the same weights lie in one basin, and
their mean is often better than each of them, at the cost of one. Networks with other first weights have no such mean.
Its BatchNorm statistics are measured anew, and its last biases can be balanced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import update_bn

from fer_runtime.errors import DataError
from fer_runtime.files import sha256_of
from fer_runtime.metrics import confusion_matrix
from fer_runtime.model.find import checkpoint_path, results_path
from fer_train.checkpoints import Checkpoint, load_for_training
from fer_train.networks.registry import create_network, predict_logits, to_network_input
from fer_train.pipeline import Trained, accuracy_of_unseen, data_summary, load_splits
from fer_train.recipes import BEST
from fer_train.results import Averaged, History, TrainingResults, read_results, tool_versions

# Faces per batch of the BatchNorm statistics: enough that a batch's variance is near that of all.
_BATCH = 256
# Of the search for balancing biases: after 100 the classes are named as often as they occur to a tenth of a per cent.
_BALANCING_STEPS = 200


def average_models(
    name: str,
    files: Sequence[Path],
    data: Path,
    *,
    balance: float = 0.0,
    drop: tuple[str, ...] = BEST.drop,
    device: torch.device | None = None,
    models_dir: Path = Path("models"),
    progress: Callable[[Averaged], None] | None = None,
) -> Trained:
    """Average checkpoints of the network `name`, score the mean on validation, and write it with its results.

    Args:
        files: checkpoints; one that is given twice weighs twice, and one alone has only its statistics renewed.
        balance: how far the last layer's biases go, 0 to 1, to where each class is named as often as it occurs.
        data: the dataset's root; its training pictures renew the BatchNorm statistics, which no mean of statistics is.
        drop: kinds of training pictures to leave out, as a recipe has them.
        device: where the arithmetic happens, the CPU by default.
        models_dir: where the files go.
        progress: told each checkpoint's own figures.

    Raises:
        CheckpointError: a file cannot be read or is of another network.
        DataError: the pictures are missing or unreadable.
    """
    started = time.perf_counter()
    device = device or torch.device("cpu")
    checkpoints = [load_for_training(path, name=name) for path in files]
    whole, train, validation = load_splits(data, drop)
    faces, labels = torch.from_numpy(validation.faces).to(device), torch.from_numpy(validation.labels)
    averaged = []
    for path, checkpoint in zip(files, checkpoints, strict=True):
        averaged.append(_part(path, checkpoint, faces, labels))
        if progress is not None:
            progress(averaged[-1])

    network = create_network(name)
    network.load_state_dict(mean_of([checkpoint.state_dict for checkpoint in checkpoints]))
    network.to(device)
    train_faces, train_labels = torch.from_numpy(train.faces).to(device), torch.from_numpy(train.labels)
    renew_statistics(network, train_faces)
    train_logits = predict_logits(network, train_faces)
    if balance:
        biases = balance * balancing_biases(train_logits, train_labels)
        _last_linear(network).bias.data += biases.to(device)
        train_logits += biases
    loss, predictions = _score(network, faces, labels)
    first = checkpoints[0].training
    results = TrainingResults(
        model=name,
        recipe=str(first.get("recipe", "best")),
        settings={
            "balance": balance,
            "drop": list(drop),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "processes": 1,
        },
        seed=int(first.get("seed", 0)),
        history=History(
            train_loss=[float(F.cross_entropy(train_logits, train_labels))],
            train_acc=[float((train_logits.argmax(1) == train_labels).float().mean())],
            test_loss=[loss],
            test_acc=[float((predictions == labels).float().mean())],
            score=[float((predictions == labels).float().mean())],
            seconds=[time.perf_counter() - started],
        ),
        expressions=train.classes,
        confusion=confusion_matrix(validation.labels, predictions.numpy(), classes=len(validation.classes)),
        accuracy_without_duplicates=accuracy_of_unseen(whole, validation, predictions.numpy()),
        data=data_summary(whole, train, validation),
        versions=tool_versions(),
        averaged=tuple(averaged),
    )
    trained = Trained(
        checkpoint=checkpoint_path(models_dir, name),
        results_file=results_path(models_dir, name),
        results=results,
        train=train,
        validation=validation,
    )
    trained.write(network.state_dict())
    return trained


def _part(path: Path, checkpoint: Checkpoint, faces: Tensor, labels: Tensor) -> Averaged:
    """One of the checkpoints and its own figures on the validation faces."""
    loss, predictions = _score(checkpoint.network().to(faces.device), faces, labels)
    losses, accuracies = _curves_of(results_path(path.parent, checkpoint.name), checkpoint.training)
    return Averaged(
        file=path.name,
        sha256=sha256_of(path),
        test_loss=loss,
        test_acc=float((predictions == labels).float().mean()),
        training=checkpoint.training,
        losses=losses,
        accuracies=accuracies,
    )


def _curves_of(path: Path, training: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Validation loss and accuracy after each epoch, or nothing where the file is not there or of other weights."""
    try:
        results = read_results(path)
    except DataError:
        return (), ()
    # The checkpoint carries the results' summary, which no other training shares.
    if not training or any(results.get(key) != value for key, value in training.items()):
        return (), ()
    if len(results["test_acc"]) < 2:  # of an average itself
        return (), ()
    return tuple(results["test_loss"]), tuple(results["test_acc"])


def mean_of(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every floating-point tensor of equal state dicts; counters are the first one's."""
    return {
        key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in states[0].items()
    }


def renew_statistics(network: nn.Module, faces: Tensor) -> None:
    """Set the BatchNorm statistics to those of `faces`, uint8 (faces, size, size), and of their mirror images."""
    # Faces lie class by class: batches of one class would miss how far the classes are apart.
    order = torch.randperm(len(faces), generator=Generator().manual_seed(0)).to(faces.device)

    def batches() -> Iterator[Tensor]:
        for flip in (False, True):
            for batch in (faces[indices] for indices in torch.split(order, _BATCH)):
                if len(batch) == _BATCH or len(faces) < _BATCH:  # a small rest would count as much as a whole batch
                    yield to_network_input(batch.flip(-1) if flip else batch)

    update_bn(batches(), network)
    network.eval()


def balancing_biases(logits: Tensor, labels: Tensor) -> Tensor:
    """What to add to each class's logit, float32 (classes,), so that it is named as often as it occurs.

    A network names the classes that it doubts too seldom, and the one that doubtful faces fall to too often: here fear
    and neutral. The marginals are matched as in distribution alignment (Berthelot et al., arXiv 1911.09785).

    Args:
        logits: float32 (faces, classes).
        labels: int64 (faces,).
    """
    classes = logits.shape[1]
    wanted = torch.bincount(labels, minlength=classes) / len(labels)
    biases = torch.zeros(classes)
    for _ in range(_BALANCING_STEPS):
        named = torch.bincount((logits + biases).argmax(1), minlength=classes) / len(labels)
        # The small share keeps a class that is never named, or never occurs, from an infinite step.
        biases += 0.3 * torch.log((wanted + 1e-4) / (named + 1e-4))
    return biases - biases.mean()


def _last_linear(network: nn.Module) -> nn.Linear:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def _score(network: nn.Module, faces: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Mean cross-entropy, and the predicted classes, int64 (faces,)."""
    logits = predict_logits(network, faces)
    return float(F.cross_entropy(logits, labels)), logits.argmax(1)
