"""Collectives, errors that reach all processes, and the rendezvous."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from many import in_processes

from orthoproxy.core.distributed import (
    RemoteProcessError,
    agree_on_start,
    all_gather_rows,
    all_reduce_sum,
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
    assert in_processes(2, fail_from, 2, "input") == [None, None]


@pytest.mark.parametrize(("name", "expected"), [("memory", MemoryError), ("odd", RuntimeError)])
def test_other_errors_keep_their_type_where_pickle_can(name: str, expected: type[Exception]) -> None:
    remote, _ = in_processes(2, fail_from, 1, name)
    assert isinstance(remote, RemoteProcessError) and type(remote.error) is expected
    assert str(ERRORS[name]) in str(remote.error)


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
