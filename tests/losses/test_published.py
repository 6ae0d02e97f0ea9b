"""The published losses in recipes/losses: each builds, takes a step, and is its formula."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from orthoproxy.losses import Objective, make_loss, make_miner, make_regularizer
from orthoproxy.losses.objective import CLASS_VECTORS

RECIPES = Path(__file__).parents[2] / "recipes" / "losses"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
ON_PAIRS = {"contrastive", "multi-similarity", "supcon", "triplet-semihard"}
C, D = 8, 6


def build(name: str, weight: float = 0.0, regularizer: str = "soft_orthogonality") -> Objective:
    torch.manual_seed(0)
    options = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["loss"]
    miner = options.get("miner") or {}
    return Objective(
        make_loss(options["name"], C, D, options.get("args")),
        C,
        make_regularizer(regularizer),
        weight,
        make_miner(miner["name"], miner.get("args")) if miner.get("name") else None,
    )


def unit_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(x), torch.arange(24) % C


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("regularizer", ["soft_orthogonality", "koleo"])
def test_a_step_lowers_each_and_the_regularizer_beside_it(name: str, regularizer: str) -> None:
    x, labels = unit_batch()
    with_vectors = name not in ON_PAIRS
    objective = build(name, weight=0.1 if with_vectors else 0.0, regularizer=regularizer).double()
    parameters = [x.requires_grad_(), *objective.parameters()]
    before = objective(x, labels)["loss"]
    gradients = torch.autograd.grad(before, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 1e-5 * gradient / gradient.norm()
    assert all(gradient.isfinite().all() and gradient.norm() > 0 for gradient in gradients)
    if objective.miner is None:  # what a miner selects may change
        assert objective(x, labels)["loss"] < before
    assert (type(objective.loss).__name__ in CLASS_VECTORS) == with_vectors


def test_proxynca_is_the_softmax_over_all_proxies_at_temperature_one_ninth() -> None:
    made, (x, labels) = build("proxynca-pp").double(), unit_batch()
    proxies = nn.functional.normalize(made.class_vectors().detach())
    logits = -9 * torch.cdist(x, proxies) ** 2
    torch.testing.assert_close(made(x, labels)["loss"], nn.functional.cross_entropy(logits, labels))


def test_arcface_adds_half_a_radian_and_cosface_takes_0_35() -> None:
    x, labels = unit_batch()
    for name, changed in {"arcface": lambda s: torch.cos(torch.acos(s) + 0.5), "cosface": lambda s: s - 0.35}.items():
        made = build(name).double()
        cosines = x @ nn.functional.normalize(made.class_vectors().detach()).T
        own = nn.functional.one_hot(labels, C).bool()
        assert (torch.acos(cosines[own]) < torch.pi - 0.5).all()  # beyond, ArcFace is continued in another way
        logits = 64 * torch.where(own, changed(cosines), cosines)
        expected = nn.functional.cross_entropy(logits, labels)
        torch.testing.assert_close(made(x, labels)["loss"], expected, rtol=2e-3, atol=0)  # 28.6 degrees: 0.4992


def test_normalized_softmax_has_temperature_0_05() -> None:
    made, (x, labels) = build("normalized-softmax").double(), unit_batch()
    cosines = x @ nn.functional.normalize(made.class_vectors().detach()).T
    torch.testing.assert_close(made(x, labels)["loss"], nn.functional.cross_entropy(cosines / 0.05, labels))


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
