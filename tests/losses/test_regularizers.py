"""Regularizers by name: each reaches the loss, and settings that one does not have are rejected."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from orthoproxy.core.errors import InputError
from orthoproxy.losses import (
    Objective,
    ShardedSoftOrthogonality,
    SoftOrthogonality,
    coding_rate_deficit,
    koleo,
    make_loss,
    make_regularizer,
    mutual_coherence,
    off_diagonal,
    soft_orthogonality,
    spectral_isometry,
)
from orthoproxy.losses.regularizers import Name

FUNCTIONS = {
    "soft_orthogonality": lambda p: soft_orthogonality(p, scaling="excess"),
    "off_diagonal": lambda p: off_diagonal(p, "excess"),
    "spectral": spectral_isometry,
    "coherence": mutual_coherence,
    "coding_rate": coding_rate_deficit,
    "koleo": koleo,
}


@pytest.mark.parametrize("loss", ["proxy_anchor", "NormalizedSoftmaxLoss"])
@pytest.mark.parametrize("name", get_args(Name))
def test_each_reaches_the_loss_with_its_weight(name: str, loss: str) -> None:
    torch.manual_seed(0)
    regularizer = make_regularizer(name, normalize=name != "off_diagonal")
    objective = Objective(make_loss(loss, 9, 5), 9, regularizer, weight=0.25)
    objective.set_class_vectors(torch.randn(9, 5) + 0.5)
    parts = objective(torch.randn(6, 5), torch.tensor([0, 0, 1, 2, 8, 8]))
    torch.testing.assert_close(parts["orthogonality"].detach(), FUNCTIONS[name](objective.class_vectors().detach()))
    torch.testing.assert_close(parts["loss"], parts["metric_loss"] + 0.25 * parts["orthogonality"])
    (parameter,) = objective.parameters()
    (gradient,) = torch.autograd.grad(parts["orthogonality"], parameter)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": "off_diagonal"}, "normalize"),
        ({"name": "coherence", "normalize": False}, "normalize"),
        ({"name": "coding_rate", "normalize": False}, "normalize"),
        ({"name": "koleo", "normalize": False}, "normalize"),
        ({"name": "spectral", "scaling": "sum"}, "scaling"),
        ({"name": "spectral", "sharded_classes": 9}, "name"),
        ({"name": "gram"}, "name"),
        ({"scaling": "total"}, "scaling"),
        ({"scaling": "total", "sharded_classes": 9}, "scaling"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_one_does_not_have_are_rejected_by_name(options: dict, field: str) -> None:
    with pytest.raises(InputError) as caught:
        make_regularizer(**options)
    assert caught.value.field == field


def test_settings_reach_the_functions() -> None:
    assert isinstance(make_regularizer(), SoftOrthogonality)
    p = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(make_regularizer("off_diagonal", False, "mean")(p), off_diagonal(p, "mean"))
    assert torch.equal(make_regularizer("spectral", False)(p), spectral_isometry(p, False))
    assert torch.equal(make_regularizer("soft_orthogonality", False, "sum")(p), soft_orthogonality(p, False))
    sharded = make_regularizer("soft_orthogonality", False, "mean", sharded_classes=9)
    assert isinstance(sharded, ShardedSoftOrthogonality)
    torch.testing.assert_close(sharded(p), soft_orthogonality(p, False, scaling="mean"))
