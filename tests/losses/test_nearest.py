"""Mutual coherence and KoLeo, against all pairs in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orthoproxy.losses import koleo, mutual_coherence

SHAPES = [(2, 3), (5, 8), (9, 4), (40, 6)]
A_ROW_AT_A_TIME = 1e-5  # MiB


def proxies(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(p: Tensor) -> np.ndarray:
    rows = p.detach().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("memory", [A_ROW_AT_A_TIME, 1e-3, 16.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_coherence_is_the_largest_absolute_cosine(shape: tuple[int, int], memory: float) -> None:
    p = proxies(shape)
    cosines = np.abs(unit(p) @ unit(p).T)
    np.fill_diagonal(cosines, 0)
    assert float(mutual_coherence(p, memory)) == pytest.approx(cosines.max(), rel=1e-12)


@pytest.mark.parametrize("memory", [A_ROW_AT_A_TIME, 1e-3, 16.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_koleo_is_the_mean_log_distance_to_the_nearest(shape: tuple[int, int], memory: float) -> None:
    p = proxies(shape)
    distances = np.linalg.norm(unit(p)[:, None] - unit(p)[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    expected = -np.log(distances.min(axis=1)).mean()
    assert float(koleo(p, memory_mb=memory)) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("measure", [mutual_coherence, koleo])
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 999))
def test_angles_alone_count(measure, shape: tuple[int, int], seed: int) -> None:
    p = proxies(shape, seed)
    rotation = torch.linalg.qr(proxies((shape[1], shape[1]), seed)).Q
    lengths = torch.linspace(0.1, 30, len(p), dtype=p.dtype)[:, None]
    for changed in (p @ rotation, lengths * p, -p, p.flip(0)):
        torch.testing.assert_close(measure(changed), measure(p), rtol=1e-9, atol=1e-9)


def test_opposite_proxies_are_coherent_but_far_apart() -> None:
    p = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(mutual_coherence(p)) == 1
    assert float(koleo(p)) == pytest.approx(-np.log(2), rel=1e-6)


@pytest.mark.parametrize("count", [3, 4, 6])
def test_coherence_of_the_simplex_is_its_welch_bound(count: int) -> None:
    dim = count - 1
    bound = ((count - dim) / (dim * (count - 1))) ** 0.5
    assert float(mutual_coherence(torch.eye(count, dtype=torch.float64) - 1 / count)) == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize("measure", [mutual_coherence, koleo])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(measure, shape: tuple[int, int]) -> None:
    torch.autograd.gradcheck(measure, proxies(shape).requires_grad_())


def test_only_the_closest_pair_gets_a_gradient_of_coherence() -> None:
    p = proxies((20, 6))
    p[17] = -p[4] + 0.01 * p[3]
    p.requires_grad_()
    mutual_coherence(p, A_ROW_AT_A_TIME).backward()
    assert p.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [4, 17]


@pytest.mark.parametrize("measure", [mutual_coherence, koleo])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_for_repeated_and_zero_rows_and_in_half_precision(measure, dtype: torch.dtype) -> None:
    p = proxies((30, 8)).to(dtype)
    p[1], p[2], p[3] = p[0], -p[0], 0
    expected = measure(p.double())
    p.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = measure(p)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert p.grad.isfinite().all() and p.grad.abs().max() < 1e3
    assert torch.equal(p.grad[3], torch.zeros_like(p.grad[3]))


def test_koleo_of_nearly_equal_proxies_has_a_bounded_gradient() -> None:
    p = torch.eye(4)
    p[1] = p[0] + torch.tensor([0, 1e-7, 0, 0])
    p.requires_grad_()
    koleo(p, min_distance=1e-4).backward()
    assert 0 < p.grad.abs().max() < 1 / 1e-4


@pytest.mark.parametrize("measure", [mutual_coherence, koleo])
def test_a_single_proxy_costs_nothing(measure) -> None:
    p = torch.full((1, 5), 3.0, requires_grad=True)
    value = measure(p)
    value.backward()
    assert value.item() == 0 and torch.equal(p.grad, torch.zeros(1, 5))


@pytest.mark.parametrize(("measure", "enough"), [(mutual_coherence, 0.75), (koleo, -0.05)])
def test_descent_spreads_crowded_proxies(measure, enough: float) -> None:
    p = (proxies((12, 4)) + 2).float().requires_grad_()
    assert float(measure(p.detach())) > enough + 0.15
    optimizer = torch.optim.Adam([p], lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        measure(p).backward()
        optimizer.step()
    assert float(measure(p.detach())) < enough
