"""Every loss on offer can be built, called and trained; every other name or argument is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import distances, miners
from pytorch_metric_learning import losses as peers

from orthoproxy.core.errors import InputError
from orthoproxy.losses import (
    Objective,
    ProxyAnchorLoss,
    ShardedProxyAnchorLoss,
    SoftOrthogonality,
    loss_names,
    make_loss,
    make_miner,
)
from orthoproxy.losses.objective import CLASS_VECTORS
from orthoproxy.losses.registry import REFUSED

pytestmark = [
    # LargeMarginSoftmaxLoss and SphereFaceLoss call SciPy with tensors, which NumPy 2 warns of
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
    # HistogramLoss indexes with a list
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]

REQUIRED = {"RankedListLoss": {"margin": 0.4, "Tn": 1}, "HistogramLoss": {"n_bins": 10}}
C, D = 4, 8
MINERS = [name for name in dir(miners) if name.endswith("Miner") and name not in REFUSED]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(16, D, generator=generator))
    return x.requires_grad_(), torch.arange(16) % C


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_on_offer_trains(name: str) -> None:
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


def test_all_that_the_library_has_is_either_offered_or_refused_with_a_reason() -> None:
    theirs = {name for name, value in vars(peers).items() if isinstance(value, type)}
    assert theirs <= set(loss_names()) | set(REFUSED)
    assert loss_names()[0] == "proxy_anchor"
    assert len(loss_names()) == len(set(loss_names())) >= 30


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(vars(peers))))
def test_a_refused_loss_says_why(name: str) -> None:
    with pytest.raises(InputError, match=f"loss.name: {name} cannot be used: it .+; there are proxy_anchor, A"):
        make_loss(name, C, D)


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(vars(miners))))
def test_a_refused_miner_says_why(name: str) -> None:
    with pytest.raises(InputError, match=f"loss.miner.name: {name} cannot be used: it .+"):
        make_miner(name)


def test_an_unknown_loss_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        InputError, match=r"loss\.name.*'ArcFaceLos'.*did you mean ArcFaceLoss.*proxy_anchor, .*, Triplet"
    ):
        make_loss("ArcFaceLos", C, D)
    with pytest.raises(InputError, match="did you mean proxy_anchor"):
        make_loss("proxyanchor", C, D)
    with pytest.raises(InputError, match=r"loss\.miner\.name.*'HardMiner'.*BatchHardMiner"):
        make_miner("HardMiner")


@pytest.mark.parametrize("name", ["__doc__", "nn", "", "losses.ArcFaceLoss", "BaseMiner"])
def test_nothing_but_a_loss_can_be_named(name: str) -> None:
    with pytest.raises(InputError, match=r"^loss\.name"):
        make_loss(name, C, D)


def test_a_loss_that_cannot_be_divided_says_which_can() -> None:
    with pytest.raises(
        InputError, match=r"^loss\.shard_proxies: ArcFaceLoss cannot.* only proxy_anchor can; set it to f"
    ):
        make_loss("ArcFaceLoss", C, D, sharded=True)
    assert isinstance(make_loss("proxy_anchor", C, D, sharded=True), ShardedProxyAnchorLoss)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("proxy_anchor", {"margn": 0.1}, "proxy_anchor has no 'margn'.*did you mean margin.*margin, scale"),
        ("ArcFaceLoss", {"sub_centers": 2}, "ArcFaceLoss has no 'sub_centers'; it takes .*margin, scale"),
        ("proxy_anchor", {"num_classes": 5}, "num_classes of proxy_anchor follows from the data"),
        ("ArcFaceLoss", {"embedding_size": 5}, "embedding_size of ArcFaceLoss follows from the data"),
        ("P2SGradLoss", {"descriptors_dim": 5}, "descriptors_dim of P2SGradLoss follows from the data"),
        ("TripletMarginLoss", {"reducer": 1}, "reducer of TripletMarginLoss takes .*it takes distance, margin, .*swap"),
        ("NPairsLoss", {"self": 1}, "NPairsLoss has no 'self'; it takes distance$"),
        ("NPairsLoss", {"kwargs": 1}, "NPairsLoss has no 'kwargs'"),
        ("RankedListLoss", {}, "RankedListLoss refuses.*missing.*margin.*Tn"),
        ("RankedListLoss", {"margin": 1, "Tn": 1, "imbalance": 2}, "RankedListLoss refuses.*between 0 and 1"),
        ("ArcFaceLoss", {"margin": "wide"}, "ArcFaceLoss refuses"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_by_name(name: str, args: dict, message: str) -> None:
    with pytest.raises(InputError, match=r"^loss\.args: (?s:.*)" + message):
        make_loss(name, C, D, args)


@pytest.mark.parametrize(
    ("name", "distance", "message"),
    [
        ("TripletMarginLoss", "LpDistance", r"\.distance: must be a name and settings, .*not 'LpDistance'"),
        ("TripletMarginLoss", {"power": 2}, r"\.distance: must be a name and settings"),
        ("TripletMarginLoss", {"name": "L2"}, r"\.distance\.name: unknown 'L2'.*LpDistance"),
        (
            "TripletMarginLoss",
            {"name": "BatchedDistance"},
            r"\.distance\.name: BatchedDistance cannot be used: it wraps",
        ),
        ("TripletMarginLoss", {"name": "LpDistance", "pow": 2}, r"\.distance: LpDistance has no 'pow'.*mean power"),
        ("ArcFaceLoss", {"name": "LpDistance"}, r": ArcFaceLoss refuses .*"),
    ],
)
def test_a_distance_that_cannot_be_used_is_refused_by_name(name: str, distance: object, message: str) -> None:
    with pytest.raises(InputError, match=r"^loss\.args" + message):
        make_loss(name, C, D, {"distance": distance})
    if name != "ArcFaceLoss":
        with pytest.raises(InputError, match=r"^loss\.miner\.args" + message):
            make_miner("TripletMarginMiner", {"distance": distance})


def test_a_distance_is_named_with_its_settings() -> None:
    x, labels = batch()
    squared = {"name": "LpDistance", "power": 2}
    loss = make_loss("TripletMarginLoss", C, D, {"margin": 0.2, "distance": squared})
    expected = peers.TripletMarginLoss(margin=0.2, distance=distances.LpDistance(power=2))
    assert loss(x, labels) == expected(x, labels) != peers.TripletMarginLoss(margin=0.2)(x, labels)
    assert make_miner("TripletMarginMiner", {"distance": squared}).distance.power == 2
    assert squared == {"name": "LpDistance", "power": 2}  # the recipe's own mapping stays as it is


def test_arguments_reach_the_loss() -> None:
    ours = make_loss("proxy_anchor", 3, 7, {"scale": 16, "margin": 0.2})
    assert isinstance(ours, ProxyAnchorLoss)
    assert (ours.scale, ours.margin, ours.proxies.shape) == (16, 0.2, (3, 7))
    theirs = make_loss("SubCenterArcFaceLoss", 3, 7, {"sub_centers": 2, "scale": 10})
    assert (theirs.sub_centers, theirs.scale, theirs.W.shape) == (2, 10, (7, 6))
    assert make_miner("MultiSimilarityMiner", {"epsilon": 0.3}).epsilon == 0.3
    with pytest.raises(InputError, match=r"loss\.miner\.args: MultiSimilarityMiner has no 'epsilo'.*epsilon"):
        make_miner("MultiSimilarityMiner", {"epsilo": 0.3})


@pytest.mark.parametrize("name", MINERS)
def test_every_miner_on_offer_works_with_a_triplet_loss(name: str) -> None:
    objective = Objective(make_loss("TripletMarginLoss", C, D), C, SoftOrthogonality(), miner=make_miner(name))
    x, labels = batch()
    objective(x, labels)["loss"].backward()
    assert x.grad.isfinite().all()


def test_a_miner_chooses_what_the_loss_sees() -> None:
    x, labels = batch()
    loss, miner = peers.MultiSimilarityLoss(), miners.MultiSimilarityMiner(0.02)
    objective = Objective(
        make_loss("MultiSimilarityLoss", C, D),
        C,
        SoftOrthogonality(),
        miner=make_miner("MultiSimilarityMiner", {"epsilon": 0.02}),
    )
    assert objective(x, labels)["loss"] == loss(x, labels, miner(x, labels))
    assert loss(x, labels, miner(x, labels)) != loss(x, labels)


def test_without_the_library_the_own_loss_works_and_others_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pytorch_metric_learning", "pytorch_metric_learning.losses", "pytorch_metric_learning.miners"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    assert loss_names() == ["proxy_anchor"]
    assert isinstance(make_loss("proxy_anchor", C, D), ProxyAnchorLoss)
    with pytest.raises(InputError, match=r"pip install 'orthoproxy\[compare\]'"):
        make_loss("ArcFaceLoss", C, D)
