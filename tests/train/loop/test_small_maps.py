from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fer_train.loop.small_maps import LARGEST_MAP, use_matrix_products
from fer_train.networks.registry import create_network


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _gradients(network: nn.Module, images: Tensor, wanted: Tensor) -> tuple[Tensor, list[Tensor]]:
    images = images.clone().requires_grad_()
    result = network(images)
    (result * wanted).sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return result.detach(), [gradient for gradient in [images.grad, *gradients] if gradient is not None]


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (1, 1, 0), (5, 1, 2)])
def test_a_small_map_is_convolved_as_pytorch_convolves_it(
    size: int, kernel: int, stride: int, padding: int, memory_format: torch.memory_format
) -> None:
    convolution = nn.Conv2d(8, 4, kernel, stride, padding, bias=False).double().to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(3, 8, size, size, dtype=torch.float64).contiguous(memory_format=memory_format)
    rows = (size + 2 * padding - kernel) // stride + 1
    wanted = torch.randn(3, 4, rows, rows, dtype=torch.float64)
    expected = _gradients(copy.deepcopy(convolution), images, wanted)
    use_matrix_products(convolution)
    result, gradients = _gradients(convolution, images, wanted)
    torch.testing.assert_close(result, expected[0])
    assert len(gradients) == len(expected[1]) == 2
    for gradient, other in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "changed"),
    [(1, 3, 1, True), (2, 3, 1, True), (3, 3, 2, True), (3, 1, 2, True), (3, 3, 1, False), (5, 3, 2, False)],
)
def test_in_bfloat16_the_smallest_results_go_that_way(size: int, kernel: int, stride: int, changed: bool) -> None:
    exact = nn.Conv2d(64, 32, kernel, stride, kernel // 2, bias=False).bfloat16().double()  # weights of bfloat16
    images = torch.randn(8, 64, size, size).bfloat16()
    wanted = torch.randn_like(exact(images.double())).bfloat16().double()
    expected = _gradients(exact, images.double(), wanted)
    convolution = copy.deepcopy(exact).float()
    convolution.zero_grad()
    use_matrix_products(convolution, bf16=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, gradients = _gradients(convolution, images.float(), wanted.float())
        assert ("SmallMaps" in _first_function(convolution(images))) is changed
    assert result.dtype == torch.bfloat16
    for actual, reference in zip([result, *gradients], [expected[0], *expected[1]], strict=True):
        # Each value is the sum of at most four products (the taps in the middle) that are rounded to 8 bits.
        difference = (actual.double() - reference).norm() / reference.norm()
        assert difference < 4 * 2**-9
    # Evaluation is in float32, and PyTorch's.
    assert "Convolution" in _first_function(convolution(images.float()))


def _first_function(result: Tensor) -> str:
    return type(result.grad_fn).__name__


def test_the_resnet_learns_the_same_from_a_batch() -> None:
    plain = create_network("v1").double().eval()  # eval: without dropout's draws
    changed = copy.deepcopy(plain)
    use_matrix_products(changed)
    images, wanted = torch.rand(2, 3, 48, 48, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    expected, result = _gradients(plain, images, wanted), _gradients(changed, images, wanted)
    torch.testing.assert_close(result[0], expected[0])
    for gradient, other in zip(result[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize(("size", "changed"), [(LARGEST_MAP, True), (LARGEST_MAP + 1, False)])
def test_only_maps_up_to_the_limit_go_that_way(size: int, changed: bool) -> None:
    convolution = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    use_matrix_products(convolution)
    assert ("SmallMaps" in type(convolution(torch.rand(1, 2, size, size)).grad_fn).__name__) is changed


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 4, (3, 1), padding=(1, 0), bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 1, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1),
    ],
)
def test_another_kind_of_convolution_stays_pytorchs(other: nn.Conv2d) -> None:
    use_matrix_products(other)
    assert type(other) is nn.Conv2d


def test_the_state_dict_stays_as_it_is_and_loads_into_a_plain_network() -> None:
    network = create_network("v1").double().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    use_matrix_products(network)
    state = network.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    plain = create_network("v1").double().eval()
    plain.load_state_dict(state)
    faces = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # Sums of at most 4608 products of float64, added in another order.
        torch.testing.assert_close(network(faces), plain(faces), rtol=1e-9, atol=1e-9)
