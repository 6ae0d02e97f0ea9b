"""The published losses in recipes/losses: each builds, takes a step, and is its formula."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from orthoproxy.losses import Objective
from orthoproxy.runs.experiment import make_objective
from orthoproxy.runs.recipes import read_config

RECIPES = Path(__file__).parents[2] / "recipes" / "losses"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
C, D = 8, 6


def build(name: str) -> Objective:
    torch.manual_seed(0)
    return make_objective(read_config(RECIPES / f"{name}.yaml").loss, C, D)


def unit_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(x), torch.arange(24) % C


@pytest.mark.parametrize("name", NAMES)
def test_a_step_lowers_each(name: str) -> None:
    x, labels = unit_batch()
    objective = build(name).double()
    parameters = [x.requires_grad_(), *objective.parameters()]
    before = objective(x, labels)["loss"]
    gradients = torch.autograd.grad(before, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 1e-5 * gradient / gradient.norm()
    assert all(gradient.isfinite().all() and gradient.norm() > 0 for gradient in gradients)
    if objective.miner is None:  # what a miner selects may change
        assert objective(x, labels)["loss"] < before


def test_proxynca_is_the_softmax_over_all_proxies_at_temperature_one_ninth() -> None:
    made, (x, labels) = build("proxynca-pp").double(), unit_batch()
    proxies = nn.functional.normalize(made.class_vectors().detach())
    logits = -9 * torch.cdist(x, proxies) ** 2
    torch.testing.assert_close(made(x, labels)["loss"], nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize(("name", "scale", "changed", "tolerance"), [
    ("arcface", 64, lambda s: torch.cos(torch.acos(s) + 0.5), 2e-3),  # half a radian; 28.6 degrees are 0.4992
    ("cosface", 64, lambda s: s - 0.35, 2e-3), ("normalized-softmax", 1 / 0.05, lambda s: s, 1e-7),
])  # fmt: skip
def test_softmax_losses_have_their_margin_and_scale(name: str, scale: float, changed, tolerance: float) -> None:
    made, (x, labels) = build(name).double(), unit_batch()
    cosines = x @ nn.functional.normalize(made.class_vectors().detach()).T
    own = nn.functional.one_hot(labels, C).bool()
    assert (torch.acos(cosines[own]) < torch.pi - 0.5).all()  # beyond, ArcFace is continued in another way
    expected = nn.functional.cross_entropy(scale * torch.where(own, changed(cosines), cosines), labels)
    torch.testing.assert_close(made(x, labels)["loss"], expected, rtol=tolerance, atol=0)


def test_multi_similarity_is_the_authors_on_the_pairs_that_they_mine() -> None:
    x, labels = unit_batch()
    cosines, terms, kept = x @ x.T, [], 0
    for i in range(24):
        same = labels == labels[i]
        positive, negative = cosines[i][same & (torch.arange(24) != i)], cosines[i][~same]
        hard = positive[positive < negative.max() + 0.1], negative[negative > positive.min() - 0.1]
        kept += len(hard[0]) + len(hard[1])
        pull = torch.log(1 + torch.exp(-2 * (hard[0] - 0.5)).sum()) / 2
        push = torch.log(1 + torch.exp(50 * (hard[1] - 0.5)).sum()) / 50
        terms.append(pull + push)
    assert 24 * 2 < kept < 24 * 23  # some are mined out
    torch.testing.assert_close(build("multi-similarity")(x, labels)["loss"], torch.stack(terms).mean())
