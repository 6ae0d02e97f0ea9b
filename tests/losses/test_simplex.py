"""Simplex proxies: equal angles, turned towards given vectors, and left alone by the optimiser."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orthoproxy.core.errors import InputError
from orthoproxy.losses import simplex, simplex_near, soft_orthogonality
from orthoproxy.runs import config as c
from orthoproxy.runs.build import make_objective

SIZES = [(2, 1), (2, 6), (3, 2), (5, 4), (5, 9), (129, 128)]


@pytest.mark.parametrize(("count", "dim"), SIZES)
def test_any_two_corners_have_the_same_least_cosine(count: int, dim: int) -> None:
    corners = simplex(count, dim)
    expected = torch.full((count, count), -1 / (count - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(corners @ corners.T, expected, rtol=0, atol=1e-12)
    assert corners.shape == (count, dim)


def test_a_full_simplex_is_a_tight_frame() -> None:
    assert float(soft_orthogonality(simplex(9, 8), scaling="excess")) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(("count", "dim"), [(1, 5), (7, 5), (130, 128)])
def test_what_does_not_fit_is_refused(count: int, dim: int) -> None:
    with pytest.raises(InputError, match=rf"initialisation\.proxies: simplex has room for 2 to {dim + 1} .*{count};"):
        simplex(count, dim)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().sum())


@given(st.sampled_from(SIZES[:-1]), st.integers(0, 999))
def test_turned_it_is_as_near_as_any_rotation_brings_it(size: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(size, dtype=torch.float64, generator=generator)
    near = simplex_near(vectors)
    torch.testing.assert_close(near @ near.T, simplex(*size) @ simplex(*size).T, rtol=0, atol=1e-12)
    for scale in (1e-3, 0.1, 3.0):  # small turns of it, and others altogether
        dim = size[1]
        turn = torch.eye(dim, dtype=torch.float64) + scale * torch.randn(
            dim, dim, dtype=torch.float64, generator=generator
        )
        assert distance(near, vectors) <= distance(near @ torch.linalg.qr(turn).Q, vectors) + 1e-9


def test_a_turned_simplex_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    turned = simplex(6, 9) @ torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64, generator=generator)).Q
    torch.testing.assert_close(simplex_near(2 * turned.float()), turned.float())


def configuration(name: str = "proxy_anchor", **args: int) -> c.Config:
    return c.Config(initialisation=c.Initialisation(proxies="simplex"), loss=c.Loss(name=name, args=args))


@pytest.mark.parametrize("name", ["proxy_anchor", "ArcFaceLoss"])
def test_the_objective_keeps_them_as_they_are(name: str) -> None:
    objective = make_objective(configuration(name), num_classes=4, embedding_dim=8)
    torch.testing.assert_close(objective.class_vectors(), simplex(4, 8).float())
    assert not [p for p in objective.parameters() if p.requires_grad]
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    parts = objective(x, torch.tensor([0, 0, 1, 2, 3, 3]))
    parts["loss"].backward()
    assert x.grad.abs().sum() > 0
    assert float(parts["orthogonality"]) == pytest.approx(12 / 9 / 4, rel=1e-5)  # 12 cosines of -1/3, a proxy
    vectors = simplex_near(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)))
    objective.set_class_vectors(vectors)
    assert torch.equal(objective.class_vectors(), vectors)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("TripletMarginLoss", {}, "TripletMarginLoss keeps no vector a class to be fixed; .*ProxyAnchorLoss"),
        (
            "SoftTripleLoss",
            {"centers_per_class": 2},
            "SoftTripleLoss keeps several .*vector; choose class_means",
        ),
    ],
)
def test_losses_that_cannot_have_them_are_refused(name: str, args: dict, message: str) -> None:
    with pytest.raises(InputError, match=rf"^initialisation\.proxies: {message}"):
        make_objective(configuration(name, **args), 4, 8)


def test_too_many_classes_are_refused_when_the_objective_is_built() -> None:
    with pytest.raises(InputError, match="room for 2 to 9 classes"):
        make_objective(configuration(), num_classes=10, embedding_dim=8)


@pytest.mark.parametrize(
    ("loss", "field"),
    [
        (c.Loss(orthogonality=c.Orthogonality(weight=0.1)), "loss.orthogonality.weight"),
        (c.Loss(shard_proxies=True), "loss.shard_proxies"),
    ],
)
def test_what_makes_no_sense_beside_them_is_refused(loss: c.Loss, field: str) -> None:
    with pytest.raises(InputError, match=rf"^{field}: initialisation.proxies simplex .*set it to"):
        c.Config(initialisation=c.Initialisation(proxies="simplex"), loss=loss).check()
    c.Config(loss=loss).check()
