"""Every available loss and miner can be built, called and trained; other names and arguments are errors."""

import pytest
import torch
from errors import error_of
from pytorch_metric_learning import distances, miners
from pytorch_metric_learning import losses as peers

from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality, loss_names, make_loss, make_miner
from orthoproxy.losses.objective import CLASS_VECTORS
from orthoproxy.losses.registry import UNSUPPORTED

pytestmark = [
    # LargeMarginSoftmaxLoss and SphereFaceLoss call SciPy with tensors, which NumPy 2 warns of
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
    # HistogramLoss indexes with a list
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]

REQUIRED = {"RankedListLoss": {"margin": 0.4, "Tn": 1}, "HistogramLoss": {"n_bins": 10}}
C, D = 4, 8
MINERS = [name for name in dir(miners) if name.endswith("Miner") and name not in UNSUPPORTED]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(16, D, generator=generator))
    return x.requires_grad_(), torch.arange(16) % C


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_trains(name: str) -> None:
    torch.manual_seed(0)
    loss = make_loss(name, C, D, REQUIRED.get(name))
    objective = Objective(loss, C, SoftOrthogonality(), weight=0.5 if type(loss).__name__ in CLASS_VECTORS else 0.0)
    x, labels = batch()
    parts = objective(x, labels)
    parts["loss"].backward()
    assert parts["metric_loss"].isfinite()
    assert parts["metric_loss"] != 0
    gradients = [x.grad, *(parameter.grad for parameter in objective.parameters())]
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", [*sorted(UNSUPPORTED & {*vars(peers), *vars(miners)}), "ArcFaceLos", "nn", ""])
def test_a_loss_or_miner_that_cannot_be_used_is_an_error(name: str) -> None:
    assert error_of(make_loss, name, C, D).field == error_of(make_miner, name).field == "name"


def test_only_own_losses_can_be_sharded() -> None:
    assert error_of(make_loss, "ArcFaceLoss", C, D, shard_proxies=True).field == "shard_proxies"
    assert make_loss("proxy_anchor", C, D, shard_proxies=True).sharded


@pytest.mark.parametrize(("name", "args", "field"), [
    ("proxy_anchor", {"margn": 0.1}, "args.margn"), ("proxy_anchor", {"scale": -1.0}, "args.scale"),
    ("ArcFaceLoss", {"embedding_size": 5}, "args.embedding_size"), ("proxy_anchor", {"sharded": True}, "args.sharded"),
    ("TripletMarginLoss", {"reducer": 1}, "args.reducer"), ("NPairsLoss", {"kwargs": 1}, "args.kwargs"),
    ("RankedListLoss", {}, "args"), ("RankedListLoss", {"margin": 1, "Tn": 1, "imbalance": 2}, "args"),
    ("ArcFaceLoss", {"margin": "wide"}, "args"), ("ArcFaceLoss", {"distance": {"name": "LpDistance"}}, "args"),
    ("TripletMarginLoss", {"distance": "LpDistance"}, "args.distance"),
    ("TripletMarginLoss", {"distance": {"power": 2}}, "args.distance"),
    ("TripletMarginLoss", {"distance": {"name": "L2"}}, "args.distance.name"),
    ("TripletMarginLoss", {"distance": {"name": "BatchedDistance"}}, "args.distance.name"),
    ("TripletMarginLoss", {"distance": {"name": "LpDistance", "pow": 2}}, "args.distance.pow"),
])  # fmt: skip
def test_an_argument_that_cannot_be_used_is_rejected_by_name(name: str, args: dict, field: str) -> None:
    assert error_of(make_loss, name, C, D, args).field == field


def test_a_distance_is_named_with_its_settings() -> None:
    x, labels = batch()
    squared = {"name": "LpDistance", "power": 2}
    loss = make_loss("TripletMarginLoss", C, D, {"margin": 0.2, "distance": squared})
    expected = peers.TripletMarginLoss(margin=0.2, distance=distances.LpDistance(power=2))
    assert loss(x, labels) == expected(x, labels) != peers.TripletMarginLoss(margin=0.2)(x, labels)
    assert make_miner("TripletMarginMiner", {"distance": squared}).distance.power == 2
    assert squared == {"name": "LpDistance", "power": 2}  # the recipe's own mapping stays as it is


@pytest.mark.parametrize("name", MINERS)
def test_every_miner_works_with_a_triplet_loss(name: str) -> None:
    objective = Objective(make_loss("TripletMarginLoss", C, D), C, SoftOrthogonality(), miner=make_miner(name))
    x, labels = batch()
    objective(x, labels)["loss"].backward()
    assert x.grad.isfinite().all()


def test_a_miner_chooses_what_the_loss_sees() -> None:
    x, labels = batch()
    loss, miner = peers.MultiSimilarityLoss(), miners.MultiSimilarityMiner(0.02)
    made = make_loss("MultiSimilarityLoss", C, D), make_miner("MultiSimilarityMiner", {"epsilon": 0.02})
    objective = Objective(made[0], C, SoftOrthogonality(), miner=made[1])
    assert objective(x, labels)["loss"] == loss(x, labels, miner(x, labels))
    assert loss(x, labels, miner(x, labels)) != loss(x, labels)


def test_without_the_library_the_own_loss_works_and_others_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pytorch_metric_learning", "pytorch_metric_learning.losses", "pytorch_metric_learning.miners"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    assert loss_names() == ["proxy_anchor"]
    assert isinstance(make_loss("proxy_anchor", C, D), ProxyAnchorLoss)
    assert error_of(make_loss, "ArcFaceLoss", C, D).hint == "pip install 'orthoproxy[compare]'"
