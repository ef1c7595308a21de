"""Convolutions of small feature maps as matrix products: what halves the ResNet18's training time on a CPU.

Its last stages see maps of 6 x 6, 3 x 3 and 2 x 2. For the smallest, the backward pass of oneDNN's AVX2 convolutions
reaches a fifth of the processor's arithmetic, and takes half of a training step; its AMX convolutions of bfloat16 reach
less. A product per output position, over the taps that fall inside the map, reaches most of it, and leaves out the
padding, which is 5 of 9 taps at 2 x 2. Same function, same parameters, same gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Above this many pixels a side oneDNN is as fast.
LARGEST_MAP = 6
# Of the result, in bfloat16, which is rounded after every product. Maps of 3 x 3 would gain as well (the ResNet18's 2,
# v3's 4 times), but the shipped v3 was
# trained without: its steps would no longer give its bytes.
LARGEST_BF16_RESULT = 2


def use_matrix_products(network: nn.Module, *, bf16: bool = False) -> None:
    """Let the network's plain convolutions compute small maps this way, in place; the state dict stays as it is.

    Args:
        bf16: whether the network is trained in bfloat16, by autocast; what is not, stays PyTorch's then.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = _Bf16Convolution if bf16 else _Convolution


def _is_plain(module: nn.Conv2d) -> bool:
    return (
        not isinstance(module.padding, str)
        and all(len(set(pair)) == 1 for pair in (module.kernel_size, module.stride, module.padding))
        and module.padding_mode == "zeros"
        and module.padding[0] < module.kernel_size[0]  # else a position would see padding only, and have no product
        and module.groups == 1
        and set(module.dilation) == {1}
        and module.bias is None
    )


class _Convolution(nn.Conv2d):
    def forward(self, maps: Tensor) -> Tensor:
        if max(maps.shape[2:]) > LARGEST_MAP or maps.dtype != self.weight.dtype:
            return super().forward(maps)
        result: Tensor = _SmallMaps.apply(  # type: ignore[no-untyped-call]
            maps, self.weight, self.stride[0], int(self.padding[0])
        )
        return result


class _Bf16Convolution(nn.Conv2d):
    def forward(self, maps: Tensor) -> Tensor:
        stride, padding = self.stride[0], int(self.padding[0])
        largest = (max(maps.shape[2:]) + 2 * padding - self.kernel_size[0]) // stride + 1
        if not 1 <= largest <= LARGEST_BF16_RESULT or not torch.is_autocast_enabled("cpu"):
            return super().forward(maps)
        result: Tensor = _SmallMaps.apply(  # type: ignore[no-untyped-call]
            maps.bfloat16(), self.weight.bfloat16(), stride, padding
        )
        return result


@dataclass(frozen=True, slots=True)
class _Product:
    """One output position and one row of the kernel: what lies side by side in channels-last memory."""

    row: int
    column: int
    inputs: slice  # of the flattened input map (height * width * channels)
    taps: slice  # of the flattened kernel (size * size * channels)


def _products(height: int, width: int, channels: int, size: int, stride: int, padding: int) -> list[_Product]:
    products = []
    for row in range((height + 2 * padding - size) // stride + 1):
        for column in range((width + 2 * padding - size) // stride + 1):
            left = column * stride - padding
            first, last = max(0, -left), min(size, width - left)
            for tap in range(size):
                above = row * stride - padding + tap
                if 0 <= above < height:
                    start = above * width + left
                    inputs = slice((start + first) * channels, (start + last) * channels)
                    taps = slice((tap * size + first) * channels, (tap * size + last) * channels)
                    products.append(_Product(row, column, inputs, taps))
    return products


class _SmallMaps(torch.autograd.Function):
    """(batch, channels, height, width), (out, channels, size, size) to (batch, out, rows, columns), of one dtype."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        batch, channels, height, width = maps.shape
        out, _, size, _ = weight.shape
        # Without a copy where both are channels last, as the trainer keeps them.
        inputs = maps.permute(0, 2, 3, 1).flatten(1)  # unlike reshape(batch, -1), of an empty batch, too
        kernel = weight.permute(0, 2, 3, 1).flatten(1)
        products = _products(height, width, channels, size, stride, padding)
        rows, columns = products[-1].row + 1, products[-1].column + 1
        result = inputs.new_zeros(batch, rows, columns, out)
        for product in products:
            result[:, product.row, product.column].addmm_(inputs[:, product.inputs], kernel[:, product.taps].t())
        ctx.save_for_backward(inputs, kernel)
        ctx.products = products
        ctx.shapes = (maps.shape, weight.shape)
        return result.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inputs, kernel = ctx.saved_tensors
        (batch, channels, height, width), (out, _, size, _) = ctx.shapes
        # Without this, MKL would be handed a copy of every slice.
        gradient = gradient.permute(0, 2, 3, 1).contiguous()
        of_inputs, of_kernel = torch.zeros_like(inputs), torch.zeros_like(kernel)
        for product in ctx.products:
            of_output = gradient[:, product.row, product.column]
            of_inputs[:, product.inputs].addmm_(of_output, kernel[:, product.taps])
            of_kernel[:, product.taps].addmm_(of_output.t(), inputs[:, product.inputs])
        return (
            of_inputs.view(batch, height, width, channels).permute(0, 3, 1, 2),
            of_kernel.view(out, size, size, channels).permute(0, 3, 1, 2),
            None,
            None,
        )
