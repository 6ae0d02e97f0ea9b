"""The fast gradient of depthwise convolutions against PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from orthoproxy.models import Encoder
from orthoproxy.models import depthwise as module
from orthoproxy.models.depthwise import DepthwiseConv2d, with_fast_depthwise


def both(channels: int, kernel: tuple[int, int], padding: tuple[int, int], bias: bool) -> tuple[nn.Conv2d, nn.Conv2d]:
    plain = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=bias).double()
    fast = DepthwiseConv2d(channels, channels, kernel, padding=padding, groups=channels, bias=bias).double()
    fast.load_state_dict(plain.state_dict())
    return plain, fast


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
)
def test_it_is_the_convolution(height, width, kernel, padding, bias) -> None:
    if height + 2 * padding[0] < kernel[0] or width + 2 * padding[1] < kernel[1]:
        return  # no output
    torch.manual_seed(0)
    plain, fast = both(4, kernel, padding, bias)
    x = torch.randn(3, 4, height, width, dtype=torch.float64)
    results = []
    for layer in (plain, fast):
        own = x.clone().requires_grad_()
        y = layer(own)
        (y * torch.arange(y.numel()).reshape(y.shape)).sum().backward()
        results.append([y, own.grad, *(parameter.grad for parameter in layer.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)


def test_gradients_of_both_orders() -> None:
    torch.manual_seed(0)
    layer = both(2, (5, 3), (2, 1), bias=True)[1]
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def convolve(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    inputs = (x, layer.weight, layer.bias)
    assert gradcheck(convolve, inputs)
    assert gradgradcheck(convolve, inputs)


def calls_of(layer: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = []
    gradient = module._weight_gradient
    monkeypatch.setattr(module, "_weight_gradient", lambda *given: calls.append(1) or gradient(*given))
    y = layer(x)
    if y.requires_grad:
        y.sum().backward()
    monkeypatch.undo()
    return len(calls)


def test_it_serves_small_maps_that_need_a_gradient(monkeypatch) -> None:
    layer = DepthwiseConv2d(4, 4, 5, padding=2, groups=4)
    small, large = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 5, 5)
    assert calls_of(layer, small, monkeypatch) == 1
    assert calls_of(layer, large, monkeypatch) == 0
    with torch.no_grad():
        assert calls_of(layer, small, monkeypatch) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert calls_of(layer, small, monkeypatch) == 0
    layer.weight.requires_grad_(False)
    assert calls_of(layer, small.requires_grad_(), monkeypatch) == 0


def test_layers_keep_names_weights_and_mode() -> None:
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    plain = copy.deepcopy(network)
    with_fast_depthwise(network)
    fast = [layer for layer in network.modules() if isinstance(layer, DepthwiseConv2d)]
    assert len(fast) == 12  # of 16 blocks, those that do not step by two pixels
    assert not any(layer.training for layer in fast)
    before, after = plain.state_dict(), network.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain(x), network(x))


def test_the_encoder_has_them() -> None:
    encoder = Encoder("tf_efficientnet_lite0", embedding_dim=8, image_size=64)
    assert any(isinstance(layer, DepthwiseConv2d) for layer in encoder.modules())


def test_what_it_cannot_stand_for_is_left() -> None:
    layers = [
        nn.Conv2d(4, 4, 3, padding=1),  # not depthwise
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
    ]
    network = nn.Sequential(*layers)
    with_fast_depthwise(network)
    assert list(network) == layers
