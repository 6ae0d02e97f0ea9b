"""The processes of a job that torchrun started: how many there are, which one this is, and what they tell each other.

Without torchrun there is one process; every function then works, and does nothing. W is their number. The functions
that exchange something must be called by all processes, in the same order.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from orthoproxy.core.errors import InputError

T = TypeVar("T")

# how long processes wait for one that reads or writes alone; one that has died is noticed at once
PATIENCE = timedelta(days=1)


class RemoteProcessError(InputError):
    """Another process of the job met an error, and says which; this one stops because of it."""


def init_process_group(device: torch.device) -> None:
    """Find the other processes that torchrun started, if it did.

    Parameters
    ----------
    device
        Where this process computes.

    Examples
    --------
    >>> init_process_group(torch.device("cpu"))
    """
    if not dist.is_available() or dist.is_initialized() or not dist.is_torchelastic_launched():
        return
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if count == 1:
        return
    store, *_ = next(rendezvous("env://", rank, count))
    store = PrefixStore(_name_of_start(store, rank, count), store)
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=count, device_id=device if on_gpu else None
    )
    if on_gpu:
        atexit.register(dist.destroy_process_group)


def _name_of_start(store: Store, rank: int, count: int) -> str:
    """Agree on a name for this start of the job.

    Torchrun keeps its store when it starts processes again, with the addresses of those that have died; who finds them
    there waits for ever (github.com/pytorch/pytorch/issues/135712). The number of restarts cannot tell starts apart,
    since each machine has a count of its own. So the first process makes a name up and gives it to every other one that
    greets it, until each has taken it.
    """
    name = uuid.uuid4().hex
    if rank:
        store.set(f"greeting/{rank}", name)
        given = store.get(f"name for/{name}").decode()
        store.set(f"taken/{given}/{rank}", "")
        return given
    answered, missing = set(), set(range(1, count))
    while missing:
        for other in missing:
            if store.check([f"greeting/{other}"]) and (greeting := store.get(f"greeting/{other}")) not in answered:
                store.set(f"name for/{greeting.decode()}", name)
                answered.add(greeting)
        missing = {other for other in missing if not store.check([f"taken/{name}/{other}"])}
        time.sleep(0.02)
    return name


def process_count() -> int:
    """Return W, the number of processes that have found each other.

    Examples
    --------
    >>> process_count(), process_index(), is_main()
    (1, 0, True)
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return process_index() == 0


def is_first_of_machine() -> bool:
    """Whether this is the process that fills the caches of its machine."""
    return process_count() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def split_sizes(total: int, parts: int | None = None, unit: int = 1) -> list[int]:
    """Divide things among processes, as evenly as whole units allow.

    Parameters
    ----------
    total
        Number of things.
    parts
        Number of processes; None for those of this job.
    unit
        Things that stay together, such as the images of a batch.

    Returns
    -------
    list of int
        How many each process gets: the first those that come first. Some get none if there are too few.

    Examples
    --------
    >>> split_sizes(10, parts=4)
    [2, 3, 2, 3]
    >>> split_sizes(10, parts=4, unit=4)
    [0, 4, 4, 2]
    """
    parts, units = parts or process_count(), -(-total // unit)
    ends = [min(total, unit * (units * part // parts)) for part in range(parts + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def local_slice(sizes: Sequence[int]) -> slice:
    """Return where this process's things lie among all.

    Parameters
    ----------
    sizes
        From `shares`.

    Examples
    --------
    >>> list("abc")[local_slice(split_sizes(3))]
    ['a', 'b', 'c']
    """
    start = sum(sizes[: process_index()])
    return slice(start, start + sizes[process_index()])


def all_gather_rows(x: Shaped[Tensor, "b ..."], sizes: Sequence[int]) -> Shaped[Tensor, "B ..."]:
    """Put the rows of all processes together, in the order of the processes; gradients find their way back.

    On the way back, the gradients that the processes have for the rows of one of them are summed there. This is done by
    an all-reduce of which each keeps its part: twice the traffic of a reduce-scatter, but of B x D numbers only, and
    every backend has it for any numbers of rows.

    Parameters
    ----------
    x
        This process's rows; none is fine.
    sizes
        How many rows each process has.

    Returns
    -------
    Tensor
        The same on every process.

    Examples
    --------
    >>> all_gather_rows(torch.eye(2), sizes=[2])
    tensor([[1., 0.],
            [0., 1.]])
    """
    if process_count() == 1:
        return x
    rows = _GatherRows.apply(x, tuple(sizes))
    assert isinstance(rows, Tensor)
    return rows


class _GatherRows(torch.autograd.Function):
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
    def backward(ctx: Any, *by_rows: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = by_rows[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=_group_for(total))
        return total.split(ctx.sizes)[process_index()], None


def all_reduce_sum(part: Tensor) -> Tensor:
    """Sum a tensor over the processes; each gets the sum, and its own part gets the sum's gradient.

    Parameters
    ----------
    part
        Of the same shape on every process.

    Examples
    --------
    >>> all_reduce_sum(torch.tensor(2.0))
    tensor(2.)
    """
    if process_count() == 1:
        return part
    total = _SumParts.apply(part)
    assert isinstance(total, Tensor)
    return total


class _SumParts(torch.autograd.Function):
    """Every process goes back from the same sum, so the gradient that it has is that of the sum already."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=_group_for(part))
        return total

    @staticmethod
    def backward(ctx: Any, *by_total: Tensor) -> Tensor:
        return by_total[0]


def broadcast_rows(
    x: Shaped[Tensor, "b ..."], sizes: Sequence[int], block: int = 8192
) -> Iterator[tuple[int, Shaped[Tensor, "n ..."]]]:
    """Show every process the rows of all, some at a time and in the order of the processes, so that none holds all.

    Parameters
    ----------
    x
        This process's rows.
    sizes
        How many rows each process has.
    block
        Rows at a time.

    Yields
    ------
    first
        The number of the block's first row among all.
    rows
        The block.

    Examples
    --------
    >>> [(first, len(rows)) for first, rows in broadcast_rows(torch.zeros(5, 2), [5], block=3)]
    [(0, 3), (3, 2)]
    """
    first = 0
    for source, size in enumerate(sizes):
        for start in range(0, size, block):
            rows = min(block, size - start)
            here = source == process_index()
            part = x[start : start + rows].contiguous() if here else x.new_empty(rows, *x.shape[1:])
            if process_count() > 1:
                dist.broadcast(part, source, group=_group_for(part))
            yield first, part
            first += rows


def gather_to_main(x: Shaped[Tensor, "b ..."], sizes: Sequence[int]) -> Shaped[Tensor, "B ..."] | None:
    """Put the rows of all processes together in the memory of the main one.

    Parameters
    ----------
    x
        This process's rows.
    sizes
        How many rows each process has.

    Returns
    -------
    Tensor or None
        On the processor; None in the other processes.

    Examples
    --------
    >>> gather_to_main(torch.ones(2, 1), [2]).shape
    torch.Size([2, 1])
    """
    rows = torch.empty(sum(sizes), *x.shape[1:], dtype=x.dtype) if is_main() else None
    for first, part in broadcast_rows(x, sizes):
        if rows is not None:
            rows[first : first + len(part)] = part
    return rows


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean of the gradients that the processes have.

    Parameters
    ----------
    parameters
        The same ones everywhere, in the same order.

    Examples
    --------
    >>> average_gradients([nn.Parameter(torch.ones(1))])
    """
    if process_count() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:  # the others may have one
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad, group=_group_for(parameter))
        parameter.grad.div_(process_count())


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main process.

    Parameters
    ----------
    tensors
        Of the same shapes everywhere, in the same order; for example a module's parameters or buffers.

    Examples
    --------
    >>> broadcast_(nn.Linear(2, 2).parameters())
    """
    if process_count() == 1:
        return
    for x in tensors:
        sent = x.detach().contiguous()
        dist.broadcast(sent, 0, group=_group_for(x))
        x.copy_(sent)


def broadcast_object(value: T) -> T:
    """Return the main process's value.

    Parameters
    ----------
    value
        Anything small that can be pickled; what the other processes give does not matter.

    Examples
    --------
    >>> broadcast_object("here")
    'here'
    """
    return gather_objects(value if is_main() else None)[0]  # pyright: ignore[reportReturnType]


def gather_objects(value: T) -> list[T]:
    """Return what each process gives.

    Parameters
    ----------
    value
        Anything small that can be pickled.

    Examples
    --------
    >>> gather_objects("here")
    ['here']
    """
    if process_count() == 1:
        return [value]
    values: list[Any] = [None] * process_count()
    dist.all_gather_object(values, value, group=_control_group(dist.group.WORLD))
    return values


def any_process(holds: bool) -> bool:
    """Whether something holds in any process.

    Parameters
    ----------
    holds
        Whether it does in this one.

    Examples
    --------
    >>> any_process(False)
    False
    """
    if process_count() == 1:
        return holds
    flag = torch.tensor(int(holds))
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=_control_group(dist.group.WORLD))
    return bool(flag)


@contextmanager
def raise_together() -> Iterator[None]:
    """Leave the block when all processes have come to its end; an error in one ends it in all.

    Inside, processes must not wait for each other. The process that met the error raises it, and if several did, the
    first of them.

    Raises
    ------
    RemoteProcessError
        In the other processes, with the message of that error.

    Examples
    --------
    >>> with raise_together():
    ...     raise InputError("no such file")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no such file
    """
    if process_count() == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as found:
        error = found
    said = gather_objects(None if error is None else str(error) or type(error).__name__)
    first = next((process for process, message in enumerate(said) if message is not None), None)
    if first == process_index() and error is not None:
        raise error
    if first is not None:
        raise RemoteProcessError(f"process {first} of {process_count()}: {said[first]}") from error


def is_connection_loss(error: BaseException) -> bool:
    """Whether an error says that another process of the job has gone.

    Parameters
    ----------
    error
        Raised by an exchange.

    Examples
    --------
    >>> is_connection_loss(RuntimeError("[pair.cc:534] Connection closed by peer [127.0.1.1]:4711"))
    False
    """
    if process_count() == 1:
        return False
    text = r"gloo|NCCL|Connection (closed|reset)|Broken pipe|Socket"
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(re.search(text, str(error))))


def _group_for(x: Tensor) -> dist.ProcessGroup | None:
    """The group that carries a tensor: NCCL's takes what lies on a GPU only."""
    return _control_group(dist.group.WORLD) if x.device.type == "cpu" else None


@lru_cache(maxsize=1)
def _control_group(world: Any) -> dist.ProcessGroup:
    """A group between processors, so that no GPU waits for a message, and nobody gives up while one works alone."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    return group
