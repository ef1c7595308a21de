"""A linear probe: the last layer alone, fitted to the features of a network that stays as it is.

It tells what the features are worth without fine-tuning, and it is the better start for one: a random last layer would
distort the features before it has learned anything (Kumar et al., arXiv 2202.10054).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from torch import Tensor, nn

from fer_runtime.errors import CheckpointError
from fer_train.networks.registry import predict_logits

# Strengths of the penalty that are tried, in units of the mean loss of a face on standardised features.
_PENALTIES = (1e-3, 1e-2, 1e-1)
_HELD_OUT = 0.2  # of the faces, to choose the penalty by
_STEPS = 100  # of L-BFGS, at most; the loss is convex


def fit_last_layer(network: nn.Module, faces: Tensor, targets: Tensor, weights: Tensor, *, seed: int) -> None:
    """Fit the network's last layer to its features of the faces, in place.

    Args:
        network: its last layer is a torch.nn.Linear.
        faces: uint8, on the network's device.
        targets: float32 (faces, classes), what each face should be answered with.
        weights: float32 (classes,), of the classes in the loss.
        seed: of the choice of faces that decide the penalty.

    Raises:
        CheckpointError: the network does not end so.
    """
    _, last = last_linear(network, faces, needed_by="a linear probe", setting="last_layer=kept")
    features, targets, weights = _features(network, last, faces), targets.cpu(), weights.cpu()
    mean, spread = features.mean(0), features.std(0, unbiased=False).clamp_min(1e-6)
    features = (features - mean) / spread
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(features)))
    count = max(1, round(_HELD_OUT * len(order)))
    held_out, rest = order[:count], order[count:]
    losses = []
    for penalty in _PENALTIES:
        weight, bias = _fitted(features[rest], targets[rest], weights, penalty)
        logits = features[held_out] @ weight.T + bias
        losses.append(float(F.cross_entropy(logits, targets[held_out])))
    weight, bias = _fitted(features, targets, weights, _PENALTIES[int(np.argmin(losses))])
    with torch.no_grad():
        # On the features as they are.
        last.weight.copy_(weight / spread)
        last.bias.copy_(bias - (weight / spread) @ mean)


def last_linear(network: nn.Module, faces: Tensor, *, needed_by: str, setting: str) -> tuple[str, nn.Linear]:
    """The name and the module of the layer that gives a network's logits.

    Args:
        faces: uint8, on the network's device; the first is shown to the network.
        needed_by: what needs the layer, for the error.
        setting: of --set that does without.

    Raises:
        CheckpointError: it is no torch.nn.Linear with a bias.
    """
    answers: dict[str, Tensor] = {}
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    handles = [
        module.register_forward_hook(lambda _module, _inputs, answer, name=name: answers.update({name: answer}))
        for name, module in linear.items()
    ]
    try:
        logits = predict_logits(network, faces[:1])
    finally:
        for handle in handles:
            handle.remove()
    for name, answer in answers.items():
        if linear[name].bias is not None and torch.equal(answer.float().cpu(), logits):
            return name, linear[name]
    raise CheckpointError(
        f"{needed_by} needs a network that ends with a torch.nn.Linear with a bias; add --set {setting}"
    )


def _features(network: nn.Module, last: nn.Linear, faces: Tensor) -> Tensor:
    """The inputs of the last layer, float32 (faces, features), on CPU."""
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().float().cpu()))
    try:
        predict_logits(network, faces)
    finally:
        handle.remove()
    return torch.cat(seen)


def _fitted(features: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the multinomial logistic regression with an L2 penalty."""
    weight = torch.zeros(targets.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")
    scale = (targets @ weights).sum()

    def loss() -> Any:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, targets, weight=weights, reduction="sum") / scale
        value = value + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
