"""Spectral restricted isometry and the coding rate, against eigenvalues in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orthoproxy.core.errors import InputError
from orthoproxy.losses import coding_rate_deficit, spectral_isometry
from orthoproxy.losses.regularizers import _smaller_gram

SHAPES = [(3, 3), (5, 8), (9, 4), (40, 6), (2, 30)]


def proxies(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(p: Tensor) -> np.ndarray:
    rows = p.detach().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def evenly_spread(count: int, dim: int) -> Tensor:
    """Orthonormal rows, or a tight frame of unit rows: copies of a random orthonormal basis."""
    basis = torch.linalg.qr(proxies((dim, dim), 7)).Q
    return basis.repeat(math.ceil(count / dim), 1)[:count]


@pytest.mark.parametrize("shape", SHAPES)
def test_isometry_is_the_largest_eigenvalue_off_the_even_spread(shape: tuple[int, int]) -> None:
    p, (count, dim) = proxies(shape), shape
    rows = unit(p)
    gram = rows.T @ rows / (count / dim) if count > dim else rows @ rows.T
    expected = np.abs(np.linalg.eigvalsh(gram) - 1).max()
    assert float(spectral_isometry(p, iterations=2000)) == pytest.approx(expected, rel=1e-6)
    assert 0.85 * expected < float(spectral_isometry(p)) <= expected * (1 + 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_unnormalized_isometry_is_the_published_norm(shape: tuple[int, int]) -> None:
    p = 0.4 * proxies(shape)
    rows, (count, dim) = p.numpy(), shape
    gram = rows.T @ rows if count > dim else rows @ rows.T  # the authors' code takes P^T P
    expected = np.linalg.norm(gram - np.eye(len(gram)), 2)
    assert float(spectral_isometry(p, normalize=False, iterations=2000)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("distortion", [0.1, 0.5, 2.0])
def test_coding_rate_deficit_is_what_the_log_determinant_lacks(shape: tuple[int, int], distortion: float) -> None:
    p, (count, dim) = proxies(shape), shape
    rows = unit(p)

    def rate(rows: np.ndarray) -> float:  # equation of Yu et al. for C unit rows, in the D x D form whatever C is
        return np.linalg.slogdet(np.eye(dim) + dim / (count * distortion) * rows.T @ rows)[1] / 2

    rank = min(count, dim)
    most = np.diag(np.repeat([math.sqrt(count / rank), 0], [rank, dim - rank]))  # singular values of an even spread
    expected = (rate(most) - rate(rows)) / rank
    assert float(coding_rate_deficit(p, distortion)) == pytest.approx(expected, rel=1e-9)
    if distortion == 0.5:  # as published
        assert coding_rate_deficit(p) == coding_rate_deficit(p, distortion)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gram_matrix_is_the_smaller_one_and_has_the_same_spectrum(shape: tuple[int, int]) -> None:
    p = proxies(shape)
    gram = _smaller_gram(p, normalize=False)
    assert len(gram) == min(shape)
    singular = torch.linalg.svdvals(p)
    torch.testing.assert_close(torch.linalg.eigvalsh(gram).flip(0), singular.square())


@pytest.mark.parametrize("measure", [spectral_isometry, coding_rate_deficit])
@pytest.mark.parametrize(("count", "dim"), [(4, 9), (6, 6), (12, 4), (300, 20)])
def test_an_even_spread_costs_nothing_and_any_other_more(measure, count: int, dim: int) -> None:
    p = evenly_spread(count, dim)
    assert float(measure(p)) == pytest.approx(0, abs=1e-12)
    assert 0 <= float(measure(p.float())) < 1e-5
    p[0] = p[1]
    assert float(measure(p)) > 1e-3 / count


@pytest.mark.parametrize("measure", [spectral_isometry, coding_rate_deficit])
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 999))
def test_angles_alone_count(measure, shape: tuple[int, int], seed: int) -> None:
    p = proxies(shape, seed)
    value = measure(p)
    rotation = torch.linalg.qr(proxies((shape[1], shape[1]), seed)).Q
    lengths = torch.linspace(0.1, 30, len(p), dtype=p.dtype)[:, None]
    if measure is spectral_isometry:  # not invariant before it has converged
        value, measure = measure(p, iterations=300), lambda p: spectral_isometry(p, iterations=300)
    for changed in (p @ rotation, lengths * p, -p):
        torch.testing.assert_close(measure(changed), value, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 3), (5, 8), (9, 4)])
def test_gradients(shape: tuple[int, int]) -> None:
    p = proxies(shape).requires_grad_()
    torch.autograd.gradcheck(coding_rate_deficit, p)
    torch.autograd.gradcheck(lambda p: spectral_isometry(p, iterations=200), p)
    torch.autograd.gradcheck(lambda p: spectral_isometry(0.4 * p, normalize=False, iterations=200), p)


@pytest.mark.parametrize("normalize", [True, False])
def test_eigenvalues_of_both_signs_and_of_the_same_size_do_no_harm(normalize: bool) -> None:
    p = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # eigenvalues of P P^T - I: 0.6 and -0.6
    assert float(spectral_isometry(p, normalize)) == pytest.approx(0.6, rel=1e-6)


@pytest.mark.parametrize("measure", [spectral_isometry, coding_rate_deficit])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_finite_for_repeated_and_zero_rows_and_in_half_precision(measure, dtype, shape: tuple[int, int]) -> None:
    p = proxies(shape).to(dtype)
    p[1], p[2], p[3] = p[0], -p[0], 0
    expected = measure(p.double())
    p.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = measure(p)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert p.grad.isfinite().all() and p.grad.abs().max() > 0
    assert torch.equal(p.grad[3], torch.zeros_like(p.grad[3]))


@pytest.mark.parametrize("measure", [spectral_isometry, coding_rate_deficit])
@pytest.mark.parametrize("p", [torch.full((1, 5), 3.0), torch.zeros(4, 5), torch.eye(5)], ids=["one", "zeros", "eye"])
def test_gradients_are_zero_where_there_is_nothing_to_do(measure, p: Tensor) -> None:
    p = p.clone().requires_grad_()
    measure(p).backward()
    assert p.grad.isfinite().all() and p.grad.abs().max() < 1e-5


def test_a_distortion_of_zero_is_refused_by_name() -> None:
    with pytest.raises(InputError):
        coding_rate_deficit(torch.eye(3), 0.0)


@pytest.mark.parametrize("measure", [spectral_isometry, coding_rate_deficit])
def test_descent_reaches_an_even_spread(measure) -> None:
    p = (proxies((12, 4)) + 2).float().requires_grad_()  # crowded: all near one direction
    before = float(measure(p.detach()))
    optimizer = torch.optim.Adam([p], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        measure(p).backward()
        optimizer.step()
    assert float(measure(p.detach())) < 0.05 * before
    rows = unit(p)
    assert np.abs(np.linalg.eigvalsh(rows.T @ rows) / 3 - 1).max() < 0.2
