"""Each regularizer against its definition over all pairs or eigenvalues in float64 NumPy, and by name."""

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from errors import error_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orthoproxy.losses import make_regularizer, soft_orthogonality
from orthoproxy.losses.regularizers import (
    Name,
    coding_rate_deficit,
    koleo,
    mutual_coherence,
    off_diagonal,
    spectral_isometry,
)

Measure = Callable[..., Tensor]
SHAPES = [(2, 3), (3, 3), (5, 8), (9, 4), (40, 6), (2, 30)]
ONE_ROW = 1e-5  # MiB: a row at a time
ANGLES = [mutual_coherence, koleo, coding_rate_deficit, partial(spectral_isometry, iterations=300)]
FUNCTIONS = {
    "soft_orthogonality": partial(soft_orthogonality, scaling="excess"),
    "off_diagonal": partial(off_diagonal, scaling="excess"),
    "spectral": spectral_isometry,
    "coherence": mutual_coherence,
    "coding_rate": coding_rate_deficit,
    "koleo": koleo,
}
ALL = list(FUNCTIONS.values())


def proxies(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(p: Tensor) -> np.ndarray:
    rows = p.detach().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def even_spread(count: int, dim: int) -> Tensor:
    """Orthonormal rows, or a tight frame of unit rows: copies of a random orthonormal basis."""
    return torch.linalg.qr(proxies((dim, dim), 7)).Q.repeat(math.ceil(count / dim), 1)[:count]


@pytest.mark.parametrize("memory", [ONE_ROW, 16.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_over_pairs_are_the_definitions(shape: tuple[int, int], memory: float) -> None:
    p, others = proxies(shape), ~np.eye(len(proxies(shape)), dtype=bool)
    cosines, products = np.abs(unit(p) @ unit(p).T), (p @ p.T).numpy()
    distances = np.linalg.norm(unit(p)[:, None] - unit(p)[None], axis=2)
    nearest = np.where(others, distances, np.inf).min(axis=1)
    assert float(mutual_coherence(p, memory)) == pytest.approx(cosines[others].max(), rel=1e-12)
    assert float(koleo(p, memory_mb=memory)) == pytest.approx(-np.log(nearest).mean(), rel=1e-6, abs=1e-7)
    for scaling, divisor in {"sum": 1, "mean": others.sum(), "excess": len(p)}.items():
        expected = (products[others] ** 2).sum() / divisor
        assert float(off_diagonal(p, scaling, memory)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_spectral_isometry_is_the_largest_eigenvalue_off_the_even_spread(shape: tuple, normalize: bool) -> None:
    p, (count, dim) = 0.4 * proxies(shape), shape
    rows = unit(p) if normalize else p.numpy()
    gram = rows.T @ rows if count > dim else rows @ rows.T  # the authors' code takes P^T P
    even = max(1.0, count / dim) if normalize else 1.0
    expected = np.linalg.norm(gram / even - np.eye(len(gram)), 2)
    assert float(spectral_isometry(p, normalize, iterations=2000)) == pytest.approx(expected, rel=1e-6)
    assert 0.85 * expected < float(spectral_isometry(p, normalize)) <= expected * (1 + 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("distortion", [0.1, 0.5])
def test_coding_rate_deficit_is_what_the_log_determinant_lacks(shape: tuple[int, int], distortion: float) -> None:
    p, (count, dim) = proxies(shape), shape

    def rate(rows: np.ndarray) -> float:  # equation of Yu et al. for C unit rows, in the D x D form whatever C is
        return np.linalg.slogdet(np.eye(dim) + dim / (count * distortion) * rows.T @ rows)[1] / 2

    rank = min(count, dim)
    most = np.diag(np.repeat([math.sqrt(count / rank), 0], [rank, dim - rank]))  # singular values of an even spread
    expected = (rate(most) - rate(unit(p))) / rank
    assert float(coding_rate_deficit(p, distortion)) == pytest.approx(expected, rel=1e-9)
    assert 0 <= float(coding_rate_deficit(even_spread(20 * dim, dim).float(), distortion)) < 1e-5


@pytest.mark.parametrize("measure", ANGLES)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 999))
def test_angles_alone_count(measure: Measure, shape: tuple[int, int], seed: int) -> None:
    p = proxies(shape, seed)
    rotation = torch.linalg.qr(proxies((shape[1], shape[1]), seed)).Q
    lengths = torch.linspace(0.1, 30, len(p), dtype=p.dtype)[:, None]
    tolerance = 1e-2 if isinstance(measure, partial) else 1e-9  # power iterations converge slowly
    for changed in (p @ rotation, lengths * p, -p):
        torch.testing.assert_close(measure(changed), measure(p), rtol=tolerance, atol=1e-9)


@pytest.mark.parametrize(
    "measure", [*ANGLES, partial(spectral_isometry, normalize=False, iterations=200), off_diagonal]
)
@pytest.mark.parametrize("shape", [(3, 3), (5, 8), (9, 4)])
def test_gradients(measure: Measure, shape: tuple[int, int]) -> None:
    torch.autograd.gradcheck(measure, (0.4 * proxies(shape)).requires_grad_())


@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_finite_for_repeated_and_zero_rows_and_in_half_precision(measure: Measure, dtype, shape: tuple) -> None:
    p = proxies(shape).to(dtype)
    p[1], p[2], p[3] = p[0], -p[0], 0
    expected = measure(p.double())
    p.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = measure(p)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert p.grad.isfinite().all() and p.grad.abs().max() < 1e3
    assert p.grad.any() or measure is mutual_coherence  # two rows are equal, so it is at its maximum
    assert torch.equal(p.grad[3], torch.zeros_like(p.grad[3]))


def test_koleo_of_nearly_equal_proxies_has_a_bounded_gradient() -> None:
    p = torch.eye(4)
    p[1] = p[0] + torch.tensor([0, 1e-7, 0, 0])
    p.requires_grad_()
    koleo(p, min_distance=1e-4).backward()
    assert 0 < p.grad.abs().max() < 1 / 1e-4


@pytest.mark.parametrize("measure", ALL)
def test_a_single_proxy_costs_nothing(measure: Measure) -> None:
    p = torch.full((1, 5), 3.0, requires_grad=True)
    value = measure(p)
    value.backward()
    assert value.item() == 0 and torch.equal(p.grad, torch.zeros(1, 5))


@pytest.mark.parametrize(("options", "field"), [
    ({"name": "off_diagonal"}, "normalize"), ({"name": "coherence", "normalize": False}, "normalize"),
    ({"name": "spectral", "scaling": "sum"}, "scaling"), ({"name": "gram"}, "name"), ({"scaling": "total"}, "scaling"),
])  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_options_that_one_does_not_have_are_an_error(options: dict, field: str) -> None:
    assert error_of(make_regularizer, **options).field == field


def test_each_name_and_its_options_reach_the_function() -> None:
    p = proxies((9, 4))
    for name in get_args(Name):
        assert torch.equal(make_regularizer(name, normalize=name != "off_diagonal")(p), FUNCTIONS[name](p))
    assert torch.equal(make_regularizer("off_diagonal", False, "mean")(p), off_diagonal(p, "mean"))
    assert torch.equal(make_regularizer("spectral", False)(p), spectral_isometry(p, False))
    assert torch.equal(make_regularizer("soft_orthogonality", False, "sum")(p), soft_orthogonality(p, False))
    assert error_of(coding_rate_deficit, p, distortion=0.0).field == "distortion"
