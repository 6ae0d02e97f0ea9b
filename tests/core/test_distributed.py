"""Several processes train as one: the same loss, gradients, weights and scores; and what happens when one fails."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from many import in_processes
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from orthoproxy.core.distributed import (
    RemoteProcessError,
    agree_on_start,
    all_gather_rows,
    all_reduce_sum,
    any_process,
    broadcast_,
    broadcast_object,
    broadcast_rows,
    gather_to_main,
    is_connection_loss,
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
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_one_process(count: int, sharded: bool) -> None:
    encoder = small()
    one = Case(encoder, dtype=torch.float32).run()
    for case in in_processes(count, Case(encoder, dtype=torch.float32, sharded=sharded).run)[:1]:
        assert case["losses"][0] == pytest.approx(one["losses"][0], rel=1e-5)
        assert distance(case["gradients"], one["gradients"]) < 1e-5


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize(
    ("count", "images", "batch_size"),
    [
        pytest.param(4, 40, 10, id="unequal parts"),
        pytest.param(2, 40, 10, id="halves", marks=pytest.mark.slow),
        pytest.param(4, 3, 10, id="fewer images than processes", marks=pytest.mark.slow),
    ],
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
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_twice_in_as_many_processes_comes_to_the_same_bits(count: int, sharded: bool) -> None:
    case = Case(small(), sharded=sharded, dtype=torch.float32, plan=Plan(epochs=2, log_every=1))
    one, again = (in_processes(count, case.run) for _ in range(2))
    assert one[0]["losses"] == again[0]["losses"]
    for first, second in zip(one, again, strict=True):
        assert all(torch.equal(x, second["weights"][name]) for name, x in first["weights"].items() if x is not None)


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
def test_collectives(count: int) -> None:
    for seen in in_processes(count, exchange):
        assert seen == {
            "sizes": split_sizes(10, count),
            "gathered": list(range(10)),
            "sum": sum(range(count)),
            "any": [True, False],
            "object": 0,
            "broadcast rows": list(range(10)),
            "broadcast": 0.0,
        }


def exchange() -> dict[str, Any]:
    rank, sizes = process_index(), split_sizes(10)
    own = torch.arange(10)[local_slice(sizes)]
    copied = torch.full((2, 2), float(rank))
    broadcast_([copied])
    return {
        "sizes": sizes,
        "gathered": all_gather_rows(own, sizes).tolist(),
        "sum": int(all_reduce_sum(torch.tensor(rank))),
        "any": [any_process(rank == 0), any_process(False)],
        "object": broadcast_object(rank),
        "broadcast rows": [int(x) for _, rows in broadcast_rows(own, sizes, block=2) for x in rows],
        "broadcast": float(copied.mean()),
    }


def gathered_gradient() -> Tensor:
    sizes = [2, 0, 1]
    own = torch.ones(sizes[process_index()], 2, requires_grad=True)
    rows = all_gather_rows(own, sizes)
    (rows * torch.arange(6.0).view(3, 2) * (process_index() + 1)).sum().backward()
    assert own.grad is not None
    return own.grad


def test_gradients_of_gathered_rows_are_summed_over_the_processes() -> None:
    grads = in_processes(3, gathered_gradient)
    assert [len(grad) for grad in grads] == [2, 0, 1]
    assert torch.equal(torch.cat(grads), torch.arange(6.0).view(3, 2) * (1 + 2 + 3))


# ---- errors


class OddError(Exception):
    """Cannot be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


ERRORS = {
    "input": InputError("no such file", field="root", path="a.png", expected="an image", hint="look"),
    "memory": MemoryError("cannot allocate 8 GB"),
    "odd": OddError("no", "thing"),
}


def fail_from(rank: int, name: str) -> BaseException | None:
    try:
        with raise_together():
            if process_index() >= rank:
                raise ERRORS[name]
    except Exception as error:
        return None if isinstance(error, OddError) else error
    return None


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_is_raised_in_all_with_its_data(rank: int) -> None:
    errors = in_processes(2, fail_from, rank, "input")
    own, remote = errors[rank], errors[1 - rank]
    assert isinstance(own, InputError) and isinstance(remote, RemoteProcessError) and remote.rank == rank
    for error in (own, remote.error):
        assert isinstance(error, InputError) and str(error) == str(ERRORS["input"])
        assert (error.field, error.path, error.hint) == ("root", "a.png", "look")


@pytest.mark.parametrize(("name", "expected"), [("memory", MemoryError), ("odd", RuntimeError)])
def test_other_errors_keep_their_type_where_pickle_can(name: str, expected: type[Exception]) -> None:
    remote, _ = in_processes(2, fail_from, 1, name)
    assert isinstance(remote, RemoteProcessError) and type(remote.error) is expected
    assert str(ERRORS[name]) in str(remote.error)


def test_no_error_none_raised() -> None:
    assert in_processes(2, fail_from, 2, "input") == [None, None]


def is_loss(errors: list[Exception]) -> list[bool]:
    return [is_connection_loss(error) for error in errors]


def test_only_broken_connections_count_as_a_lost_process() -> None:
    lost: list[Exception] = [
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.1.1]:4711"),
        RuntimeError("Read error [127.0.1.1]:4711: Connection reset by peer"),
        RuntimeError("writev [127.0.1.1]:4711: Broken pipe"),
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3384, remote process exited, ncclRemoteError: ..."),
    ]
    own: list[Exception] = [
        RuntimeError("NCCL Error 1: unhandled cuda error: out of memory"),
        RuntimeError("Detected mismatch between collectives on ranks. gloo"),
        RuntimeError("could not open /data/Socket-Wrenches/1.jpg"),
        dist.DistBackendError("NCCL error: invalid usage (two ranks on one GPU: Duplicate GPU detected)"),
        OSError("Connection reset by peer"),  # of a download
    ]
    assert in_processes(2, is_loss, [*lost, *own])[0] == [True] * len(lost) + [False] * len(own)
    assert is_loss(lost) == [False] * len(lost)  # there is no other process


# ---- rendezvous


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_process_is_named_after_a_while(rank: int) -> None:
    with pytest.raises(InputError, match="process 1 of 2" if rank == 0 else "process 0 of 2"):
        agree_on_start(dist.HashStore(), rank, 2, timedelta(seconds=0.1))


def test_processes_agree_on_a_start_beside_what_a_dead_one_left() -> None:
    store, patience = dist.HashStore(), timedelta(minutes=5)
    store.set("request/1", "of a dead process")
    store.set("taken/of an earlier start/2", "")
    with ThreadPoolExecutor(3) as pool:
        names = list(pool.map(lambda rank: agree_on_start(store, rank, 3, patience), range(3)))
    assert len(set(names)) == 1
