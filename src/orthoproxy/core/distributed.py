"""Collectives for jobs started by torchrun; with a single process each of them is the identity.

All processes must call the functions that communicate, in the same order. W is the number of processes.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pickle
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from orthoproxy.core.errors import InputError
from orthoproxy.core.processes import is_main, process_count, process_index

T = TypeVar("T")

RENDEZVOUS_TIMEOUT = timedelta(minutes=15)  # for all processes to start and import their libraries
COLLECTIVE_TIMEOUT = timedelta(days=1)  # one process may read or write alone for hours; a dead one is noticed at once


class RemoteProcessError(RuntimeError):
    """Another process of the job failed, and this one stops because of it; `error` is what was raised there."""

    def __init__(self, rank: int, error: Exception) -> None:
        super().__init__(f"process {rank} failed: {type(error).__name__}: {error}")
        self.rank, self.error = rank, error

    def __reduce__(self) -> tuple[type[RemoteProcessError], tuple[int, Exception]]:
        return type(self), (self.rank, self.error)


def init_process_group(device: torch.device) -> None:
    """Connect to the other processes that torchrun started, if any; raises InputError if one is missing at the end."""
    if not dist.is_available() or dist.is_initialized() or not dist.is_torchelastic_launched():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size == 1:
        return
    store, *_ = next(rendezvous("env://", rank, world_size, timeout=RENDEZVOUS_TIMEOUT))
    store = PrefixStore(agree_on_start(store, rank, world_size, RENDEZVOUS_TIMEOUT), store)
    on_gpu = device.type == "cuda"
    backend, bound = ("nccl", device) if on_gpu else ("gloo", None)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, device_id=bound)
    if on_gpu:
        atexit.register(dist.destroy_process_group)


def agree_on_start(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Return a name for this start of the job, which rank 0 makes up and hands to each process that asks."""
    # Torchrun keeps its store when it restarts processes, with the addresses of the dead ones in it; whoever finds
    # those waits forever (github.com/pytorch/pytorch/issues/135712). Each machine has a restart count of its own.
    name, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if rank:
        store.set(f"request/{rank}", name)
        answer = f"answer/{name}"
        while not store.check([answer]):
            _wait_until(deadline, timeout, world_size, "process 0")
        given = store.get(answer).decode()
        store.set(f"taken/{given}/{rank}", "")
        return given
    answered: set[bytes] = set()
    missing = set(range(1, world_size))
    while missing:
        for other in missing:
            if store.check([f"request/{other}"]) and (request := store.get(f"request/{other}")) not in answered:
                store.set(f"answer/{request.decode()}", name)
                answered.add(request)
        missing = {other for other in missing if not store.check([f"taken/{name}/{other}"])}
        if missing:
            _wait_until(deadline, timeout, world_size, f"process {min(missing)}")
    return name


def _wait_until(deadline: float, timeout: timedelta, world_size: int, absent: str) -> None:
    if time.monotonic() > deadline:
        raise InputError(
            f"{absent} of {world_size} did not start within {timeout.total_seconds():.0f} seconds",
            field="torchrun",
            hint="look at the output of that process, and start as many processes as --nnodes and --nproc-per-node say",
        )
    time.sleep(0.02)


def is_first_of_machine() -> bool:
    """Whether this is the process that fills the caches of its machine."""
    return process_count() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def split_sizes(total: int, parts: int | None = None, unit: int = 1) -> list[int]:
    """Divide `total` items among `parts` processes (default W) as evenly as whole units allow; some may get none.

    >>> split_sizes(10, parts=4), split_sizes(10, parts=4, unit=4)
    ([2, 3, 2, 3], [0, 4, 4, 2])
    """
    parts, units = parts or process_count(), -(-total // unit)
    ends = [min(total, unit * (units * part // parts)) for part in range(parts + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def local_slice(sizes: Sequence[int]) -> slice:
    """Return the slice of this process's items among all, given how many each process has."""
    start = sum(sizes[: process_index()])
    return slice(start, start + sizes[process_index()])


def all_gather_rows(x: Shaped[Tensor, "b ..."], sizes: Sequence[int]) -> Shaped[Tensor, "B ..."]:
    """Concatenate the rows of all processes, `sizes` of them each; the gradients of all processes are summed."""
    if process_count() == 1:
        return x
    return cast(Tensor, _AllGatherRows.apply(x, tuple(sizes)))


class _AllGatherRows(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather is deprecated, and its successors are private. The backward pass is an
    # all-reduce of which each process keeps its part: every backend has it for any numbers of rows.

    @staticmethod
    def forward(ctx: Any, x: Shaped[Tensor, "b ..."], sizes: tuple[int, ...]) -> Shaped[Tensor, "B ..."]:
        ctx.sizes = sizes
        padded = x.new_zeros(max(sizes), *x.shape[1:])  # all must send the same number
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=_group_for(x))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=_group_for(total))
        return total.split(ctx.sizes)[process_index()], None


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor over the processes; each addend gets the gradient of the sum."""
    return x if process_count() == 1 else cast(Tensor, _AllReduceSum.apply(x))


class _AllReduceSum(torch.autograd.Function):
    """All processes go on from the same sum, so the local gradient is that of the sum already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=_group_for(x))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def broadcast_rows(
    x: Shaped[Tensor, "b ..."], sizes: Sequence[int], block: int = 8192
) -> Iterator[tuple[int, Shaped[Tensor, "n ..."]]]:
    """Yield the rows of all processes in blocks, with the index of each block's first row, so that none holds all."""
    first = 0
    for source, size in enumerate(sizes):
        for start in range(0, size, block):
            rows = min(block, size - start)
            local = source == process_index()
            part = x[start : start + rows].contiguous() if local else x.new_empty(rows, *x.shape[1:])
            if process_count() > 1:
                dist.broadcast(part, source, group=_group_for(part))
            yield first, part
            first += rows


def gather_to_main(x: Shaped[Tensor, "b ..."], sizes: Sequence[int]) -> Shaped[Tensor, "B ..."] | None:
    """Concatenate the rows of all processes in the CPU memory of the main process; None in the others."""
    rows = torch.empty(sum(sizes), *x.shape[1:], dtype=x.dtype) if is_main() else None
    for first, part in broadcast_rows(x, sizes):
        if rows is not None:
            rows[first : first + len(part)] = part
    return rows


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if process_count() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:  # other processes may have one
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad, group=_group_for(parameter))
        parameter.grad.div_(process_count())


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, such as a module's parameters, with those of the main process."""
    if process_count() == 1:
        return
    for x in tensors:
        sent = x.detach().contiguous()
        dist.broadcast(sent, 0, group=_group_for(x))
        x.copy_(sent)


def broadcast_object(value: T) -> T:
    """Return the main process's value, which must be small and picklable."""
    return gather_objects(value if is_main() else None)[0]  # pyright: ignore[reportReturnType]


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, by rank, which must be small and picklable."""
    if process_count() == 1:
        return [value]
    values: list[Any] = [None] * process_count()
    dist.all_gather_object(values, value, group=_cpu_group(dist.group.WORLD))
    return values


def any_process(condition: bool) -> bool:
    """Whether the condition holds in any process."""
    if process_count() == 1:
        return condition
    flag = torch.tensor(int(condition))
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=_cpu_group(dist.group.WORLD))
    return bool(flag)


@contextmanager
def raise_together() -> Iterator[None]:
    """Wait for all processes at the end; an error of one is raised in all, in others as a `RemoteProcessError`."""
    if process_count() == 1:
        yield
        return
    error = None
    try:
        yield  # no collective may be called here
    except Exception as caught:
        error = caught
    errors = gather_objects(error and _picklable(error))
    rank, first = next(((rank, found) for rank, found in enumerate(errors) if found is not None), (0, None))
    if error is not None and rank == process_index():
        raise error
    if first is not None:
        raise RemoteProcessError(rank, first) from error


def _picklable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else its type and text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own
    except Exception:  # an exception's constructor may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _group_for(x: Tensor) -> dist.ProcessGroup | None:
    """The group that carries a tensor: NCCL takes GPU tensors only."""
    return _cpu_group(dist.group.WORLD) if x.device.type == "cpu" else None


@lru_cache(maxsize=1)
def _cpu_group(world: Any) -> dist.ProcessGroup:
    """A group on the CPU, for messages that no GPU should wait for."""
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT))
