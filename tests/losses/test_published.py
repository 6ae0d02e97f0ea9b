"""The published losses in recipes/losses: each builds, learns, takes a regulariser where it can, and is the formula."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orthoproxy.core.errors import InputError
from orthoproxy.losses import Objective
from orthoproxy.losses.objective import CLASS_VECTORS
from orthoproxy.runs.build import make_objective
from orthoproxy.runs.config import Config, flat
from orthoproxy.runs.recipes import read_config

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in (RECIPES / "losses").glob("*.yaml"))
ON_PAIRS = {"contrastive", "multi-similarity", "supcon", "triplet-semihard"}
C, D = 8, 6


def configuration(name: str, *options: str) -> Config:
    loss = ["--config", str(RECIPES / "losses" / f"{name}.yaml")]
    return read_config(RECIPES / "icons.yaml", [*loss, "--loss.orthogonality.weight", "0", *options])


def objective(name: str, *options: str) -> Objective:
    torch.manual_seed(0)
    return make_objective(configuration(name, *options), C, D)


def unit_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(x), torch.arange(24) % C


def toy() -> tuple[Tensor, Tensor]:
    """Eight classes that differ in few of many directions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(C).repeat(12)
    centres = torch.randn(C, 24, generator=generator) * (torch.arange(24) < 6)
    return centres[labels] + torch.randn(len(labels), 24, generator=generator), labels


def accuracy(embeddings: Tensor, labels: Tensor) -> float:
    """Share of images whose nearest other image is of their class."""
    x = nn.functional.normalize(embeddings.detach())
    return float((labels[(x @ x.T).fill_diagonal_(-2).argmax(dim=1)] == labels).float().mean())


def train(made: Objective, steps: int = 80) -> tuple[list[float], list[float]]:
    images, labels = toy()
    torch.manual_seed(0)
    encoder = nn.Linear(24, D)
    groups = [{"params": encoder.parameters(), "lr": 1e-2}]
    if list(made.parameters()):
        groups.append({"params": made.parameters(), "lr": 5e-2})
    optimizer = torch.optim.AdamW(groups)
    losses, accuracies = [], []
    for step in range(steps):
        embeddings = encoder(images)
        parts = made(embeddings, labels)
        if step in (0, steps - 1):
            losses.append(float(parts["loss"].detach()))
            accuracies.append(accuracy(embeddings, labels))
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
    return losses, accuracies


def test_they_are_the_baselines_and_change_the_loss_and_for_pairs_the_images_of_a_class() -> None:
    assert len(NAMES) == 10
    base = flat(read_config(RECIPES / "icons.yaml", ["--loss.orthogonality.weight", "0"]))
    for name in NAMES:
        changed = {key for key, value in flat(configuration(name)).items() if value != base[key]}
        pairs = {"training.per_class"} if name in ON_PAIRS else set()
        assert changed <= {"loss.name", "loss.args", "loss.miner.name", "loss.miner.args"} | pairs, name
        header = (RECIPES / "losses" / f"{name}.yaml").read_text().splitlines()[0]
        assert re.match(r"# [\w +-]+: \w+ .*20\d\d|# Triplet .*: Schroff et al. 2015|# Contrastive: .*2006", header), (
            name
        )


@pytest.mark.parametrize("name", NAMES)
def test_each_learns_to_tell_classes_apart(name: str) -> None:
    made = objective(name)
    losses, accuracies = train(made)
    assert np.isfinite(losses).all()
    if made.miner is None:  # what a miner leaves over is as hard in the end
        assert losses[1] < 0.8 * losses[0]
    assert accuracies[1] > accuracies[0] + 0.2


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ON_PAIRS])
@pytest.mark.parametrize("kind", ["soft", "koleo"])
def test_a_regulariser_goes_with_each_that_keeps_class_vectors(name: str, kind: str) -> None:
    alone, beside = (
        objective(name),
        objective(name, "--loss.orthogonality.weight", "1", "--loss.orthogonality.kind", kind),
    )
    train(alone)
    losses, accuracies = train(beside)
    assert losses[1] < losses[0] and accuracies[1] > accuracies[0] + 0.2
    spread = beside.orthogonality
    assert float(spread(beside.class_vectors().detach())) < float(spread(alone.class_vectors().detach()))


@pytest.mark.parametrize("name", sorted(ON_PAIRS))
def test_a_regulariser_beside_a_loss_on_pairs_is_refused(name: str) -> None:
    assert type(objective(name).loss).__name__ not in CLASS_VECTORS
    with pytest.raises(InputError, match=r"loss\.orthogonality\.weight: .*keeps no vector a class"):
        objective(name, "--loss.orthogonality.weight", "1")


@pytest.mark.parametrize("name", sorted(ON_PAIRS))
def test_a_loss_on_pairs_gets_several_images_of_a_class(name: str) -> None:
    config = read_config(RECIPES / "sop.yaml", ["--config", str(RECIPES / "losses" / f"{name}.yaml")])
    assert config.training.per_class == 4


def test_proxynca_is_the_softmax_over_all_proxies_at_temperature_one_ninth() -> None:
    made, (x, labels) = objective("proxynca-pp").double(), unit_batch()
    proxies = nn.functional.normalize(made.class_vectors().detach())
    logits = -9 * torch.cdist(x, proxies) ** 2
    torch.testing.assert_close(made(x, labels)["loss"], nn.functional.cross_entropy(logits, labels))


def test_arcface_adds_half_a_radian_and_cosface_takes_0_35() -> None:
    x, labels = unit_batch()
    for name, changed in {"arcface": lambda s: torch.cos(torch.acos(s) + 0.5), "cosface": lambda s: s - 0.35}.items():
        made = objective(name).double()
        cosines = x @ nn.functional.normalize(made.class_vectors().detach()).T
        own = nn.functional.one_hot(labels, C).bool()
        assert (torch.acos(cosines[own]) < torch.pi - 0.5).all()  # beyond, ArcFace is continued in another way
        logits = 64 * torch.where(own, changed(cosines), cosines)
        expected = nn.functional.cross_entropy(logits, labels)
        torch.testing.assert_close(made(x, labels)["loss"], expected, rtol=2e-3, atol=0)  # 28.6 degrees: 0.4992


def test_normalised_softmax_has_temperature_0_05() -> None:
    made, (x, labels) = objective("normalized-softmax").double(), unit_batch()
    cosines = x @ nn.functional.normalize(made.class_vectors().detach()).T
    torch.testing.assert_close(made(x, labels)["loss"], nn.functional.cross_entropy(cosines / 0.05, labels))


def test_soft_triple_is_a_softmax_over_soft_maxima_of_ten_centres() -> None:
    made, (x, labels) = objective("soft-triple").double(), unit_batch()
    centres = nn.functional.normalize(made.loss.fc.detach().T).reshape(C, 10, D)
    cosines = torch.einsum("bd,ckd->bck", x, centres)
    similarity = (torch.softmax(cosines / 0.1, dim=2) * cosines).sum(dim=2)
    logits = 20 * (similarity - 0.01 * nn.functional.one_hot(labels, C))
    torch.testing.assert_close(made(x, labels)["loss"], nn.functional.cross_entropy(logits, labels))


def test_the_triplet_loss_is_facenets_over_semi_hard_triplets() -> None:
    x, labels = unit_batch()
    squares = (x[:, None] - x[None]).square().sum(dim=2)
    terms = [
        float(squares[a, p] - squares[a, n] + 0.2)
        for a in range(24)
        for p in range(24)
        for n in range(24)
        if p != a and labels[p] == labels[a] != labels[n] and squares[a, p] < squares[a, n] < squares[a, p] + 0.2
    ]
    assert len(terms) > 20
    assert float(objective("triplet-semihard")(x, labels)["loss"]) == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_contrastive_loss_is_on_cosines() -> None:
    x, labels = unit_batch()
    cosines, same = x @ x.T, labels[:, None] == labels
    positive = 1 - cosines[same & ~torch.eye(24, dtype=torch.bool)]
    negative = (cosines[~same] - 0.5).clamp(min=0)
    expected = positive.mean() + negative[negative > 0].mean()
    torch.testing.assert_close(objective("contrastive")(x, labels)["loss"], expected)


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
    torch.testing.assert_close(objective("multi-similarity")(x, labels)["loss"], torch.stack(terms).mean())


def test_supcon_has_temperature_0_1() -> None:
    x, labels = unit_batch()
    others = ~torch.eye(24, dtype=torch.bool)
    same = (labels[:, None] == labels) & others
    logits = x @ x.T / 0.1
    log_probability = logits - logits.masked_fill(~others, -torch.inf).logsumexp(dim=1, keepdim=True)
    expected = -((log_probability * same).sum(dim=1) / same.sum(dim=1)).mean()
    torch.testing.assert_close(objective("supcon")(x, labels)["loss"], expected)
