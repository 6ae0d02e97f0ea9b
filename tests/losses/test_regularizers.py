"""The regulariser by name: each reaches the loss, and options that it does not have are refused."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch

from orthoproxy.core.errors import InputError
from orthoproxy.losses import (
    ShardedSoftOrthogonality,
    SoftOrthogonality,
    coding_rate_deficit,
    koleo,
    make_regulariser,
    mutual_coherence,
    off_diagonal,
    soft_orthogonality,
    spectral_isometry,
)
from orthoproxy.losses.regularizers import Kind
from orthoproxy.runs import config as c
from orthoproxy.runs.build import make_objective

FUNCTIONS = {
    "soft": lambda p: soft_orthogonality(p, scaling="excess"),
    "off_diagonal": lambda p: off_diagonal(p, "excess"),
    "spectral": spectral_isometry,
    "coherence": mutual_coherence,
    "coding_rate": coding_rate_deficit,
    "koleo": koleo,
}


def test_a_recipe_can_name_what_there_is() -> None:
    assert get_type_hints(c.Orthogonality)["kind"] == Kind
    assert set(get_args(Kind)) == set(FUNCTIONS)


@pytest.mark.parametrize("name", ["proxy_anchor", "NormalizedSoftmaxLoss"])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_each_kind_reaches_the_loss_with_its_weight(kind, name: str) -> None:
    options = c.Orthogonality(kind=kind, weight=0.25, normalize=kind != "off_diagonal")
    objective = make_objective(c.Config(loss=c.Loss(name=name, orthogonality=options)), 9, 5)
    generator = torch.Generator().manual_seed(0)
    objective.set_class_vectors(torch.randn(9, 5, generator=generator) + 0.5)
    parts = objective(torch.randn(6, 5, generator=generator), torch.tensor([0, 0, 1, 2, 8, 8]))
    expected = FUNCTIONS[kind](objective.class_vectors().detach())
    torch.testing.assert_close(parts["orthogonality"].detach(), expected)
    torch.testing.assert_close(parts["loss"], parts["metric_loss"] + 0.25 * parts["orthogonality"])
    (parameter,) = objective.parameters()
    (gradient,) = torch.autograd.grad(parts["orthogonality"], parameter)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "off_diagonal"}, "normalize: of unit vectors, off_diagonal is soft itself; set it to false"),
        ({"kind": "coherence", "normalize": False}, "normalize: coherence is of unit vectors; set it to true"),
        ({"kind": "coding_rate", "normalize": False}, "normalize: coding_rate is of unit vectors; set it to true"),
        ({"kind": "koleo", "normalize": False}, "normalize: koleo is of unit vectors; set it to true"),
        ({"kind": "spectral", "scaling": "sum"}, "scaling: spectral has one scale only; leave it out"),
        ({"kind": "koleo", "form": "dims"}, "form: koleo is computed in one way only; leave it out"),
        (
            {"kind": "spectral", "sharded_classes": 9},
            "kind: spectral needs all .*s; use soft, or set loss.shard.* to false$",
        ),
    ],
)
def test_options_that_a_kind_does_not_have_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=rf"^loss\.orthogonality\.{message}"):
        make_regulariser(**options)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        InputError, match=r"^loss\.orthogonality\.kind: unknown 'gram'; one of soft, off_diagonal.*koleo$"
    ):
        make_regulariser("gram")


def test_options_reach_the_functions() -> None:
    assert isinstance(make_regulariser(), SoftOrthogonality)
    p = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(make_regulariser("off_diagonal", False, "mean")(p), off_diagonal(p, "mean"))
    assert torch.equal(make_regulariser("spectral", False)(p), spectral_isometry(p, False))
    assert torch.equal(make_regulariser("soft", False, "sum", "classes")(p), soft_orthogonality(p, False, "classes"))
    sharded = make_regulariser("soft", False, "mean", sharded_classes=9)
    assert isinstance(sharded, ShardedSoftOrthogonality)
    torch.testing.assert_close(sharded(p), soft_orthogonality(p, False, scaling="mean"))
