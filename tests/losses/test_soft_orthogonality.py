"""Soft Orthogonality: its two forms, three scalings, floors, invariances and gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orthoproxy.core.errors import InputError
from orthoproxy.losses import SoftOrthogonality, off_diagonal, soft_orthogonality
from orthoproxy.losses.soft_orthogonality import not_below_zero

FORMS = ["classes", "dims", None]
SCALINGS = ["sum", "mean", "excess"]
SHAPES = [(2, 5), (5, 5), (9, 4), (40, 3), (3, 40), (6, 1)]


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


@given(proxies(), st.booleans(), st.sampled_from(FORMS), st.sampled_from(SCALINGS))
def test_value_is_the_definition_in_each_form(p: np.ndarray, normalize: bool, form: str, scaling: str) -> None:
    value = float(soft_orthogonality(torch.from_numpy(p), normalize, scaling, _form=form))
    expected = definition(p, normalize, scaling)
    largest = len(p) ** 2 if normalize else float((p**2).sum()) ** 2  # ||P||^4
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-10 * max(1.0, largest) / len(p))


@given(proxies(), st.booleans(), st.sampled_from(SCALINGS))
def test_both_forms_have_the_same_value_and_gradient(p: np.ndarray, normalize: bool, scaling: str) -> None:
    results = []
    for form in ("classes", "dims"):
        tensor = torch.from_numpy(p).requires_grad_()
        value = soft_orthogonality(tensor, normalize, scaling, _form=form)
        (gradient,) = torch.autograd.grad(value, tensor)
        results.append((value.item(), gradient))
    (value, gradient), (other_value, other_gradient) = results
    rows = p / np.linalg.norm(p, axis=1, keepdims=True) if normalize else p
    size = np.linalg.norm(rows)
    shortest = np.linalg.norm(p, axis=1).min() if normalize else 1.0  # the gradient goes with 1 / length
    assert abs(value - other_value) <= 1e-10 * max(value, size**4)
    assert float((gradient - other_gradient).norm()) <= 1e-10 * max(float(gradient.norm()), size**3 / shortest)


@given(proxies(), st.booleans(), st.sampled_from(FORMS), st.sampled_from(SCALINGS), st.booleans())
def test_never_negative(p: np.ndarray, normalize: bool, form: str, scaling: str, single: bool) -> None:
    tensor = torch.from_numpy(p).to(torch.float32 if single else torch.float64)
    assert soft_orthogonality(tensor, normalize, scaling, _form=form) >= 0


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", [(2, 5), (3, 3), (7, 3), (1, 4)])
def test_gradient(normalize: bool, form: str, scaling: str, shape: tuple[int, int]) -> None:
    p = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: soft_orthogonality(p, normalize, scaling, _form=form), p)


def test_the_gradient_is_not_lost_where_rounding_reaches_below_zero() -> None:
    lifted = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        p = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q[:40] + 1e-5 * torch.randn(
            40, 64, generator=generator
        )
        p.requires_grad_()
        exact = p.detach().double().requires_grad_()
        value = soft_orthogonality(p, _form="dims")
        value.backward()
        soft_orthogonality(exact, _form="classes").backward()
        assert float((p.grad - exact.grad).norm()) < 0.1 * float(exact.grad.norm())
        lifted += value.item() == 0
    assert lifted  # else this test has not met the case


def signs(p: Tensor) -> Tensor:
    return p * torch.tensor([(-1.0) ** i for i in range(len(p))], dtype=p.dtype)[:, None]


def lengths(p: Tensor) -> Tensor:
    return p * torch.linspace(0.1, 30, len(p), dtype=p.dtype)[:, None]


def rotation(p: Tensor) -> Tensor:
    dim = p.shape[1]
    return p @ torch.linalg.qr(torch.randn(dim, dim, dtype=p.dtype, generator=torch.Generator().manual_seed(9))).Q


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("change", "normalize"),
    [
        (rotation, True),
        (rotation, False),
        (signs, True),
        (signs, False),
        (lambda p: p.flip(0), True),
        (lambda p: p.flip(0), False),
        (lengths, True),
    ],
    ids=["rotation", "rotation-raw", "signs", "signs-raw", "order", "order-raw", "lengths"],
)
def test_what_leaves_angles_alone_leaves_the_value_alone(
    change: Callable[[Tensor], Tensor], normalize: bool, shape: tuple[int, int], scaling: str
) -> None:
    p = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value = soft_orthogonality(p, normalize, scaling=scaling)
    torch.testing.assert_close(soft_orthogonality(change(p), normalize, scaling=scaling), value, rtol=1e-10, atol=1e-10)


def test_unnormalized_lengths_count() -> None:
    p = torch.eye(3) * 2
    assert float(soft_orthogonality(p, normalize=False)) == 27  # (4 - 1)^2, three times
    assert float(soft_orthogonality(p, normalize=True)) == 0


def tight_frame(count: int, dim: int) -> Tensor:
    """Unit rows with P^T P = (C / D) I: cosines and sines of D / 2 frequencies at C angles."""
    angles = 2 * np.pi / count * np.outer(np.arange(count), np.arange(1, dim // 2 + 1))
    return torch.from_numpy(np.hstack([np.cos(angles), np.sin(angles)]) * (2 / dim) ** 0.5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("count", "dim"), [(7, 2), (11, 6), (100, 64)])
def test_an_evenly_spread_set_has_no_excess_and_the_welch_bound_as_sum(count: int, dim: int, form: str) -> None:
    p = tight_frame(count, dim)
    assert float(soft_orthogonality(p, _form=form, scaling="excess")) == pytest.approx(0, abs=1e-12)
    assert float(soft_orthogonality(p, _form=form)) == pytest.approx(count**2 / dim - count, rel=1e-10)
    off = p.clone()
    off[0] = p[1]
    assert float(soft_orthogonality(off, _form=form, scaling="excess")) > 1e-2 / count


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("count", "dim"), [(9, 4), (4, 9)])
def test_unnormalized_floor_is_reached_by_orthonormal_columns_or_rows(count: int, dim: int, form: str) -> None:
    wide = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    p = wide if count > dim else wide.T
    assert float(soft_orthogonality(p, False, _form=form)) == pytest.approx(max(0, count - dim), abs=1e-12)
    assert float(soft_orthogonality(p, False, "excess", _form=form)) == pytest.approx(0, abs=1e-12)


def test_excess_keeps_its_digits_in_float32_where_the_floor_is_large() -> None:
    count, dim = 20_000, 16
    p = tight_frame(count, dim) + 1e-4 * torch.randn(count, dim, generator=torch.Generator().manual_seed(0)).double()
    exact = float(soft_orthogonality(p, scaling="excess"))
    assert float(soft_orthogonality(p.float(), scaling="excess")) == pytest.approx(exact, rel=1e-2, abs=1e-9)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_single_proxy_costs_nothing(normalize: bool, form: str, scaling: str) -> None:
    p = torch.full((1, 5), 3.0, requires_grad=True)
    value = soft_orthogonality(p, normalize, scaling, _form=form)
    value.backward()
    assert value.item() == 0
    assert torch.equal(p.grad, torch.zeros(1, 5))


@pytest.mark.parametrize("form", ["classes", "dims"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_finite_for_long_repeated_and_zero_rows(
    shape: tuple[int, int], dtype: torch.dtype, normalize: bool, scaling: str, form: str
) -> None:
    p = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).mul(1e4).to(dtype)
    p[1], p[2], p[3] = p[0], -p[0], 0
    p.requires_grad_()
    value = soft_orthogonality(p, normalize, scaling, _form=form)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite() and value > 0
    if not normalize and dtype == torch.float16:
        return  # the gradient's own size, about length^3, is beyond what float16 can hold
    value.backward()
    assert p.grad.isfinite().all()
    assert torch.equal(p.grad[3], torch.zeros_like(p.grad[3]))


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_computed_in_float32_under_autocast_too(form: str) -> None:
    p = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = soft_orthogonality(p.float(), _form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = soft_orthogonality(p, _form=form)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("penalty", [soft_orthogonality, off_diagonal])
def test_an_unknown_scaling_is_rejected(penalty: Callable[..., torch.Tensor], count: int) -> None:
    with pytest.raises(InputError) as caught:
        penalty(torch.eye(count), scaling="total")
    assert caught.value.field == "scaling"


def test_the_module_passes_its_settings_on() -> None:
    p = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    module = SoftOrthogonality(normalize=False, scaling="mean")
    assert torch.equal(module(p), soft_orthogonality(p, False, "mean"))
    assert "normalize=False, scaling='mean'" in repr(module)


@given(proxies(), st.sampled_from(SCALINGS), st.sampled_from([1e-5, 16.0]))
def test_off_diagonal_is_the_sum_over_different_pairs(p: np.ndarray, scaling: str, memory: float) -> None:
    count = len(p)
    total = sum(float(p[i] @ p[j]) ** 2 for i in range(count) for j in range(count) if i != j)
    expected = total / {"sum": 1, "mean": max(1, count * (count - 1)), "excess": count}[scaling]
    largest = float((p**2).sum()) ** 2
    assert float(off_diagonal(torch.from_numpy(p), scaling, memory)) == pytest.approx(expected, abs=1e-10 * largest)


@given(proxies(), st.sampled_from(["sum", "mean"]))
def test_off_diagonal_differs_from_soft_orthogonality_by_the_lengths(p: np.ndarray, scaling: str) -> None:
    tensor = torch.from_numpy(p)
    if len(p) == 1:
        return
    lengths = float((tensor.square().sum(dim=1) - 1).square().sum())
    lengths /= 1 if scaling == "sum" else len(p) * (len(p) - 1)
    whole = float(soft_orthogonality(tensor, False, scaling=scaling))
    assert whole == pytest.approx(float(off_diagonal(tensor, scaling)) + lengths, rel=1e-9, abs=1e-6)
    units = torch.nn.functional.normalize(tensor)
    assert float(off_diagonal(units, scaling)) == pytest.approx(
        float(soft_orthogonality(tensor, scaling=scaling)), rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_off_diagonal(shape: tuple[int, int]) -> None:
    p = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.autograd.gradcheck(off_diagonal, p.requires_grad_())


def test_off_diagonal_of_a_single_proxy_costs_nothing() -> None:
    p = torch.full((1, 5), 3.0, requires_grad=True)
    off_diagonal(p).backward()
    assert torch.equal(p.grad, torch.zeros(1, 5))


@pytest.mark.parametrize("value", [-1e-7, 0.0, 2.0])
def test_what_rounding_put_below_zero_is_zero_and_keeps_its_gradient(value: float) -> None:
    x = torch.tensor(value, requires_grad=True)
    raised = not_below_zero(x)
    raised.backward()
    assert raised.item() == max(0.0, value) and x.grad == 1
