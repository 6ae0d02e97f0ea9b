"""Collectives, errors that reach all processes, and the rendezvous."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from many import in_processes

from orthoproxy.core.distributed import (
    RemoteProcessError,
    agree_on_start,
    any_process,
    broadcast_,
    broadcast_object,
    broadcast_rows,
    local_slice,
    process_index,
    raise_together,
    split_sizes,
)
from orthoproxy.core.errors import InputError


@pytest.mark.parametrize("count", [1, 3])
def test_all_processes_see_what_one_of_them_has(count: int) -> None:
    assert in_processes(count, exchange) == [(True, False, 0, 0.0, list(range(10)))] * count


def exchange() -> tuple[object, ...]:
    rank, sizes = process_index(), split_sizes(10)
    copied = torch.full((2, 2), float(rank))
    broadcast_([copied])
    own = torch.arange(10)[local_slice(sizes)]
    rows = [int(x) for _, rows in broadcast_rows(own, sizes, block=2) for x in rows]
    return any_process(rank == 0), any_process(False), broadcast_object(rank), float(copied.mean()), rows


class OddError(Exception):
    """Cannot be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def fail_in(rank: int, error: Exception) -> BaseException | None:
    try:
        with raise_together():
            if process_index() == rank:
                raise error
    except Exception as caught:
        return None if isinstance(caught, OddError) else caught
    return None


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_is_raised_in_all_with_its_data(rank: int) -> None:
    given = InputError("no such file", field="root", path="a.png", expected="an image", hint="look")
    errors = in_processes(2, fail_in, rank, given)
    own, remote = errors[rank], errors[1 - rank]
    assert isinstance(own, InputError) and isinstance(remote, RemoteProcessError) and remote.rank == rank
    for error in (own, remote.error):
        assert isinstance(error, InputError) and str(error) == str(given)
        assert (error.field, error.path, error.hint) == ("root", "a.png", "look")


@pytest.mark.parametrize(("error", "expected"), [
    (MemoryError("cannot allocate 8 GB"), MemoryError), (OddError("no", "thing"), RuntimeError),
])  # fmt: skip
def test_other_errors_keep_their_type_where_pickle_can(error: Exception, expected: type[Exception]) -> None:
    remote, _ = in_processes(2, fail_in, 1, error)
    assert isinstance(remote, RemoteProcessError) and type(remote.error) is expected
    assert str(error) in str(remote.error)


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
