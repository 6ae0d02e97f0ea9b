"""Several processes train as one: the same loss, gradients, weights and scores; and what happens when one fails."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from many import in_processes
from records import record
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from orthoproxy.core.distributed import (
    all_gather_rows,
    all_reduce_sum,
    any_process,
    broadcast_,
    broadcast_object,
    broadcast_rows,
    gather_to_main,
    local_slice,
    process_count,
    process_index,
    raise_together,
    split_sizes,
)
from orthoproxy.core.errors import InputError
from orthoproxy.data import BatchSampler
from orthoproxy.losses import (
    Objective,
    ProxyAnchorLoss,
    ShardedProxyAnchorLoss,
    ShardedSoftOrthogonality,
    SoftOrthogonality,
)
from orthoproxy.models import Encoder
from orthoproxy.runs.train import _warn_about_batchnorm as warn_about_batchnorm
from orthoproxy.training import Checkpoints, Plan, fit, make_optimizer

CLASSES, DIM = 7, 8  # that neither 2 nor 4 divides


class Pixels(Dataset):
    """Random pictures; the view of one depends on the seed drawn for it."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels
        self.images = torch.randint(256, (len(labels), 3, 32, 32), generator=torch.Generator().manual_seed(0))

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, int]:
        row, seed = draw
        return (self.images[row] // (1 + seed % 3)).to(torch.uint8), self.labels[row]


class Case:
    """A small training that can be run in any number of processes."""

    def __init__(
        self,
        encoder: Encoder,
        images: int = 40,
        batch_size: int = 10,
        sharded: bool = False,
        dtype: torch.dtype = torch.float64,
        plan: Plan | None = None,
        loss: nn.Module | None = None,
        classes: int = CLASSES,
        dim: int = DIM,
    ) -> None:
        self.encoder, self.images, self.batch_size, self.sharded = encoder, images, batch_size, sharded
        self.dtype, self.plan, self.loss = dtype, plan or Plan(epochs=1, log_every=1), loss
        self.classes, self.dim = classes, dim

    def run(self, folder: Path | None = None) -> dict[str, Any]:
        """Train; return losses, the gradients of the first step and the weights at the end."""
        encoder = copy.deepcopy(self.encoder)
        objective = self.objective().to(self.dtype)
        count = process_count()
        fabric = Fabric(
            accelerator="cpu",
            devices=count,
            strategy="ddp" if count > 1 else "auto",
            precision="32-true",  # touches no tensor; 64-true would round embeddings to single precision
        )
        fabric.launch()
        encoder.to(self.dtype)
        optimizer = make_optimizer(encoder, objective, 1e-4, 1e-4, 1e-2, 1e-4)
        gradients: list[dict[str, Tensor]] = []
        optimizer.register_step_pre_hook(lambda *_: gradients.append(self.whole(encoder, objective, gradient=True)))
        labels = [row % CLASSES for row in range(self.images)]
        sampler = BatchSampler(labels, self.batch_size, rank=process_index(), world_size=count)
        loader = DataLoader(Pixels(labels), batch_sampler=sampler, generator=torch.Generator())
        checkpoints = Checkpoints(folder, encoder, objective, optimizer) if folder else _Nowhere()
        records: list[dict[str, Any]] = []
        fit(fabric, encoder, objective, optimizer, loader, sampler, self.plan, checkpoints, records.append)
        return {
            "losses": [record["loss"] for record in records],
            "gradients": gradients[0],
            "weights": self.whole(encoder, objective, gradient=False),
        }

    def objective(self) -> Objective:
        torch.manual_seed(1)
        if self.sharded:
            return Objective(
                ShardedProxyAnchorLoss(self.classes, self.dim),
                self.classes,
                ShardedSoftOrthogonality(self.classes, scaling="excess"),
                weight=0.3,
            )
        loss = copy.deepcopy(self.loss) or ProxyAnchorLoss(self.classes, self.dim)
        weight = 0.3 if self.loss is None else 0.0
        return Objective(loss, self.classes, SoftOrthogonality(scaling="excess"), weight)

    @staticmethod
    def whole(encoder: Encoder, objective: Objective, gradient: bool) -> dict[str, Tensor]:
        """All weights or gradients, those of the processes' proxies put together."""

        def of(parameter: nn.Parameter) -> Tensor:
            if not gradient:
                return parameter.detach().clone()
            return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()

        found = {name: of(parameter) for name, parameter in encoder.named_parameters()}
        vectors = of(next(objective.parameters()))
        if objective.sharded is not None:
            vectors = gather_to_main(vectors, objective.sharded.sizes)
        return {**found, "proxies": vectors}


class _Nowhere(Checkpoints):
    def __init__(self) -> None:
        pass

    def save(self, *_: Any) -> None:
        pass


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """By norm, relative, over all tensors together."""
    squares = sum((ours[name] - x).double().square().sum() for name, x in theirs.items())
    return math.sqrt(squares / sum(x.double().square().sum() for x in theirs.values()))


def small(name: str = "test_vit", **options: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(name, embedding_dim=DIM, image_size=32, **options)


TWENTY = Plan(epochs=5, log_every=1)  # of four batches each


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("count", [2, 4])
def test_loss_and_gradients_are_those_of_one_process(count: int, sharded: bool) -> None:
    encoder = small()
    one = Case(encoder, dtype=torch.float32).run()
    for case in in_processes(count, Case(encoder, dtype=torch.float32, sharded=sharded).run)[:1]:
        assert case["losses"][0] == pytest.approx(one["losses"][0], rel=1e-5)
        assert distance(case["gradients"], one["gradients"]) < 1e-5


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize(
    ("count", "images", "batch_size"),
    [(2, 40, 10), (4, 40, 10), (4, 3, 10)],
    ids=["halves", "unequal parts", "fewer images than processes"],
)
def test_weights_after_twenty_steps_are_those_of_one_process(
    count: int, images: int, batch_size: int, sharded: bool
) -> None:
    plan = TWENTY if images == 40 else Plan(epochs=20, log_every=1)
    encoder = small()
    one = Case(encoder, images, batch_size, plan=plan).run()
    several = in_processes(count, Case(encoder, images, batch_size, sharded, plan=plan).run)
    assert several[0]["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert len(one["losses"]) == 20
    assert distance(several[0]["weights"], one["weights"]) < 1e-8
    for other in several[1:]:
        assert not other["losses"]  # only the main process logs
        assert all(torch.equal(x, several[0]["weights"][name]) for name, x in other["weights"].items() if x is not None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("deit_tiny_patch16_224", {}, marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_lite0", {"freeze_batchnorm": True}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("count", [2, 4])
def test_weights_of_the_usual_encoders_after_twenty_steps(count: int, name: str, options: dict[str, Any]) -> None:
    encoder = small(name, **options)
    one = Case(encoder, plan=TWENTY).run()
    for sharded in (False, True):
        several = in_processes(count, Case(encoder, sharded=sharded, plan=TWENTY).run)
        assert distance(several[0]["weights"], one["weights"]) < 1e-8


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("count", [2, 4])
def test_twice_in_as_many_processes_comes_to_the_same_bits(count: int, sharded: bool) -> None:
    case = Case(small(), sharded=sharded, dtype=torch.float32, plan=Plan(epochs=2, log_every=1))
    one, again = (in_processes(count, case.run) for _ in range(2))
    lost = "nothing" if one[0]["losses"] == again[0]["losses"] else "losses"
    for ours, theirs in zip(one, again, strict=True):
        if not all(torch.equal(x, theirs["weights"][name]) for name, x in ours["weights"].items() if x is not None):
            lost = "weights"
    record("repeatable", f"the same training twice in {count} processes", lost)
    assert lost == "nothing"


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_freezing_accumulating_and_clipping_are_those_of_one_process(sharded: bool) -> None:
    plan = Plan(epochs=2, accumulate=2, freeze_steps=2, clip_norm=0.5, clip_value=0.1, log_every=1)
    encoder = small()
    one = Case(encoder, plan=plan).run()
    several = in_processes(2, Case(encoder, sharded=sharded, plan=plan).run)
    assert distance(several[0]["weights"], one["weights"]) < 1e-9
    assert several[0]["losses"] == pytest.approx(one["losses"], rel=1e-9)
    frozen = Plan(epochs=1, freeze_steps=10)  # and no projection: nothing is left for DDP
    without = small()
    without.projection, without.embedding_dim = nn.Identity(), without.feature_dim
    case = Case(without, plan=frozen, dim=without.feature_dim, sharded=sharded)
    expected, found = case.run(), in_processes(2, case.run)[0]
    assert distance(found["weights"], expected["weights"]) < 1e-9


class Noisy(nn.Module):
    """A loss that draws random numbers, as some miners do: processes would part ways if gradients were not averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(CLASSES, DIM))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        drawn = torch.rand(len(labels), dtype=embeddings.dtype)
        return -(drawn * (embeddings * self.proxies[labels]).sum(dim=1)).mean()


def noisy(encoder: Encoder) -> dict[str, Tensor]:
    case = Case(encoder, plan=Plan(epochs=1), loss=Noisy())
    made = case.objective
    case.objective = lambda: (made(), torch.manual_seed(process_index()))[0]
    return case.run()["weights"]


def test_random_draws_of_a_loss_do_not_part_the_processes() -> None:
    ours, theirs = in_processes(2, noisy, small())
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


def part_of_the_state(case: Case, folder: Path) -> dict[str, int]:
    case.run(folder)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    return {name: size for name, size in files.items() if f"proxies-{process_index()}" in name}


def test_proxies_and_their_optimiser_state_shrink_with_the_number_of_processes(tmp_path: Path) -> None:
    sizes = {}
    for count in (1, 4):
        (tmp_path / str(count)).mkdir()
        case = Case(small(), dtype=torch.float32, sharded=True, classes=4000, plan=Plan(epochs=1))
        files = in_processes(count, part_of_the_state, case, tmp_path / str(count))
        sizes[count] = [sum(seen.values()) for seen in files]
    numbers = 4000 * DIM * 4 * 3  # bytes of proxies and two moments
    assert sizes[1][0] == pytest.approx(numbers, rel=0.03)
    assert sizes[4] == pytest.approx([numbers / 4] * 4, rel=0.1)


def warned(encoder: Encoder) -> None:
    warn_about_batchnorm(encoder)


def test_live_batch_norm_gets_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    frozen, live = small("test_resnet", freeze_batchnorm=True), small("test_resnet")
    in_processes(1, warned, live)
    in_processes(2, warned, frozen)
    assert "batch-norm" not in capfd.readouterr().err
    in_processes(2, warned, live)
    assert capfd.readouterr().err.count("encoder.freeze_batchnorm true avoids it") == 1


def test_live_batch_norm_leaves_the_same_encoder_in_all_processes() -> None:
    case = Case(small("test_resnet"), dtype=torch.float32)
    ours, theirs = in_processes(2, case.run)
    assert all(torch.equal(x, theirs["weights"][name]) for name, x in ours["weights"].items())


@pytest.mark.parametrize("count", [1, 3])
def test_what_processes_exchange(count: int) -> None:
    for seen in in_processes(count, exchange):
        assert seen == {
            "shares": split_sizes(10, count),
            "gathered": list(range(10)),
            "sum": sum(range(count)),
            "any": [True, False],
            "broadcast_object": 0,
            "in_order": list(range(10)),
            "copied": 0.0,
        }


def exchange() -> dict[str, Any]:
    rank, sizes = process_index(), split_sizes(10)
    own = torch.arange(10)[local_slice(sizes)]
    copied = torch.full((2, 2), float(rank))
    broadcast_([copied])
    return {
        "shares": sizes,
        "gathered": all_gather_rows(own, sizes).tolist(),
        "sum": int(all_reduce_sum(torch.tensor(rank))),
        "any": [any_process(rank == 0), any_process(False)],
        "broadcast_object": broadcast_object(rank),
        "in_order": [int(x) for _, rows in broadcast_rows(own, sizes, block=2) for x in rows],
        "copied": float(copied.mean()),
    }


def fail_in(process: int) -> tuple[str, str]:
    try:
        with raise_together():
            if process_index() >= process:
                raise InputError("no such file")
    except InputError as error:
        return type(error).__name__, str(error)
    return "", ""


def test_an_error_in_one_process_is_raised_in_all() -> None:
    ours, theirs = in_processes(2, fail_in, 1)
    assert theirs == ("InputError", "no such file")
    assert ours == ("RemoteProcessError", "process 1 of 2: no such file")
    ours, theirs = in_processes(2, fail_in, 0)
    assert ours == ("InputError", "no such file") and theirs[0] == "RemoteProcessError"
    assert in_processes(2, fail_in, 2) == [("", "")] * 2
