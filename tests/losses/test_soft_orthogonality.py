"""Soft Orthogonality: its two forms, three scalings, floors, invariances and gradients."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orthoproxy.losses import SoftOrthogonality, soft_orthogonality

Penalty = Callable[..., Tensor]
SCALINGS = ["sum", "mean", "excess"]


def through_dims(p: Tensor, normalize: bool = True, scaling: str = "sum") -> Tensor:
    """The form that sharded proxies need: through the D x D matrix, also where C < D."""
    return SoftOrthogonality(normalize, scaling)(p, num_classes=len(p))


both_forms = pytest.mark.parametrize("penalty", [soft_orthogonality, through_dims])
all_scalings = pytest.mark.parametrize("scaling", SCALINGS)


def definition(p: np.ndarray, normalize: bool, scaling: str) -> float:
    """From the formulas of the documentation, always through the C x C matrix of pairs."""
    count, dim = p.shape
    if count == 1:
        return 0.0
    if normalize:
        p = p / np.linalg.norm(p, axis=1, keepdims=True)
    total = sum((float(p[i] @ p[j]) - (i == j)) ** 2 for i in range(count) for j in range(count))
    if scaling == "mean":
        return total / (count * (count - 1))
    if scaling == "excess" and normalize and count >= dim:
        return float(((p.T @ p - count / dim * np.eye(dim)) ** 2).sum()) / count
    if scaling == "excess" and not normalize:
        return (total - max(0, count - dim)) / count
    return total / (count if scaling == "excess" else 1)


@st.composite
def proxies(draw: st.DrawFn) -> np.ndarray:
    """Random, orthonormal, almost orthonormal, repeated or evenly spread rows of length about 1."""
    count, dim = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["random", "orthonormal", "almost", "repeated", "axes"]))
    rows = generator.standard_normal((count, dim))
    basis = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
    if kind in ("orthonormal", "almost"):
        rows = np.resize(basis, (count, dim))
    if kind == "almost":
        rows = rows + 10.0 ** draw(st.integers(-9, -3)) * generator.standard_normal((count, dim))
    if kind == "repeated":
        rows[:] = rows[0]
    if kind == "axes":
        rows = np.resize(np.eye(dim), (count, dim))
    return rows


@both_forms
@given(p=proxies(), normalize=st.booleans(), scaling=st.sampled_from(SCALINGS))
def test_value_is_the_definition_and_never_negative(penalty: Penalty, p: np.ndarray, normalize: bool, scaling) -> None:
    value = float(penalty(torch.from_numpy(p), normalize, scaling))
    expected = definition(p, normalize, scaling)
    largest = len(p) ** 2 if normalize else float((p**2).sum()) ** 2  # ||P||^4
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-10 * max(1.0, largest) / len(p))
    assert value >= 0 and penalty(torch.from_numpy(p).float(), normalize, scaling) >= 0


@pytest.mark.parametrize("penalty", [partial(soft_orthogonality, memory_mb=1e-5), through_dims])
@all_scalings
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (3, 3), (7, 3), (1, 4)])
def test_gradient(penalty: Penalty, normalize: bool, scaling: str, shape: tuple[int, int]) -> None:
    p = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: penalty(p, normalize, scaling), p)


def test_the_gradient_is_not_lost_where_rounding_reaches_below_zero() -> None:
    lifted = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        p = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q[:40]
        p = (p + 1e-5 * torch.randn(40, 64, generator=generator)).requires_grad_()
        exact = p.detach().double().requires_grad_()
        value = through_dims(p)
        value.backward()
        soft_orthogonality(exact).backward()
        assert float((p.grad - exact.grad).norm()) < 0.1 * float(exact.grad.norm())
        lifted += value.item() == 0
    assert lifted  # else this test has not met the case


def tight_frame(count: int, dim: int) -> Tensor:
    """Unit rows with P^T P = (C / D) I: cosines and sines of D / 2 frequencies at C angles."""
    angles = 2 * np.pi / count * np.outer(np.arange(count), np.arange(1, dim // 2 + 1))
    return torch.from_numpy(np.hstack([np.cos(angles), np.sin(angles)]) * (2 / dim) ** 0.5)


def test_excess_keeps_its_digits_in_float32_where_the_floor_is_large() -> None:
    count, dim = 20_000, 16
    p = tight_frame(count, dim) + 1e-4 * torch.randn(count, dim, generator=torch.Generator().manual_seed(0)).double()
    exact = float(soft_orthogonality(p, scaling="excess"))
    assert float(soft_orthogonality(p.float(), scaling="excess")) == pytest.approx(exact, rel=1e-2, abs=1e-9)


@both_forms
@all_scalings
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_for_long_repeated_and_zero_rows(penalty: Penalty, dtype, normalize: bool, scaling: str) -> None:
    for shape in ((30, 8), (8, 30)):
        p = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).mul(1e4).to(dtype)
        p[1], p[2], p[3] = p[0], -p[0], 0
        p.requires_grad_()
        value = penalty(p, normalize, scaling)
        assert value.dtype == torch.float32 and value.isfinite() and value > 0
        if not normalize and dtype == torch.float16:
            continue  # the gradient's own size, about length^3, is beyond what float16 can hold
        value.backward()
        assert p.grad.isfinite().all()
        assert torch.equal(p.grad[3], torch.zeros_like(p.grad[3]))
