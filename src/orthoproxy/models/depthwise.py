"""Depthwise convolutions of small maps: their weights' gradient, many times faster on processors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that is trained faster where its kernel is larger than the map.

    PyTorch's library for processors has no fast kernel for the gradient of the weights there. In an
    EfficientNet at 64 pixels, with maps of 4 x 4 and 2 x 2 in most of its layers, that gradient takes more than a third
    of the time of a step; as a sum over the kernel's places it takes next to none. Everything else is left to PyTorch:
    larger maps, other devices, mixed precision, and whatever needs no gradient.

    Examples
    --------
    >>> layer = DepthwiseConv2d(8, 8, kernel_size=5, padding=2, groups=8)
    >>> layer(torch.rand(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        """Convolve."""
        if not self._is_slow(input):
            return super().forward(input)
        output = _SmallMap.apply(input, self.weight, self.padding)
        return output if self.bias is None else output + self.bias[:, None, None]

    def _is_slow(self, input: Tensor) -> bool:
        return (
            min(input.shape[2:]) < max(self.kernel_size)
            and input.device.type == "cpu"
            and input.dtype == self.weight.dtype
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


def with_fast_depthwise(network: nn.Module) -> None:
    """Put a `DepthwiseConv2d` of the same weights and names in place of each layer that it can stand for.

    Parameters
    ----------
    network
        Changed in place: depthwise layers that step by one pixel, without dilation, and pad with zeros.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    >>> with_fast_depthwise(network)
    >>> [type(layer).__name__ for layer in network]
    ['Conv2d', 'DepthwiseConv2d']
    """
    for module in network.modules():
        for name, layer in module.named_children():
            if type(layer) is nn.Conv2d and _fits(layer):
                new = DepthwiseConv2d(
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel_size,  # pyright: ignore[reportArgumentType] - a pair, as nn.Conv2d keeps it
                    padding=layer.padding,  # pyright: ignore[reportArgumentType]
                    groups=layer.groups,
                    bias=layer.bias is not None,
                    device="meta",
                )
                new.weight, new.bias = layer.weight, layer.bias
                setattr(module, name, new.train(layer.training))


def _fits(layer: nn.Conv2d) -> bool:
    plain = layer.stride == (1, 1) and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return plain and isinstance(layer.padding, tuple) and layer.in_channels == layer.out_channels == layer.groups > 1


class _SmallMap(torch.autograd.Function):
    """Convolves as PyTorch does; only the gradient of the weights is computed here."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.padding = padding
        return F.conv2d(input, weight, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,), (input, weight) = gradients, ctx.saved_tensors
        of_input = None
        if ctx.needs_input_grad[0]:
            of_input = conv2d_input(list(input.shape), weight, gradient, padding=ctx.padding, groups=len(weight))
        of_weight = _weight_gradient(input, gradient, weight, ctx.padding) if ctx.needs_input_grad[1] else None
        return of_input, of_weight, None


def _weight_gradient(
    input: Float[Tensor, "B C H W"],
    gradient: Float[Tensor, "B C H2 W2"],
    weight: Float[Tensor, "C 1 R S"],
    padding: tuple[int, int],
) -> Float[Tensor, "C 1 R S"]:
    """Sum, for each place (r, s) of the kernel, gradient[i, j] * input[i + r - padding, j + s - padding]."""
    x, g = input.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)  # (B, H, W, C), as they lie in memory
    places = []
    for r in range(weight.shape[2]):
        of_g, of_x = _overlap(r - padding[0], x.shape[1], g.shape[1])
        x_rows, g_rows = x[:, of_x], g[:, of_g]
        for s in range(weight.shape[3]):
            of_g, of_x = _overlap(s - padding[1], x.shape[2], g.shape[2])
            places.append((g_rows[:, :, of_g] * x_rows[:, :, of_x]).sum((0, 1, 2)))  # zeros where nothing overlaps
    return torch.stack(places, dim=1).reshape(weight.shape)


def _overlap(offset: int, inputs: int, outputs: int) -> tuple[slice, slice]:
    """Find the outputs whose input, that many places further, lies in the map; and these inputs."""
    first, end = max(0, -offset), max(0, min(outputs, inputs - offset))
    return slice(first, max(first, end)), slice(first + offset, max(first, end) + offset)
