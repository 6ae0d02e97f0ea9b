"""Several processes that have found each other: as torchrun would start them, but quickly, or by torchrun itself."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def in_processes(count: int, function: Callable[..., Any], *args: Any, killed: tuple[int, ...] = ()) -> list[Any]:
    """Call a function in `count` processes with gloo; return what each returned, and fail if one failed.

    Those of `killed` are expected to end by SIGKILL, and their results are left out. The processes are forked, so that
    they need not import anything; each has one thread.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=_work, args=(Path(folder), n, count, function, args)) for n in range(count)]
        with warnings.catch_warnings(action="ignore"):  # newer Pythons warn of forking beside threads
            for process in processes:
                process.start()
        for process in processes:
            process.join()
        expected = [-signal.SIGKILL if process in killed else 0 for process in range(count)]
        assert [process.exitcode for process in processes] == expected
        alive = [process for process in range(count) if process not in killed]
        return [torch.load(Path(folder) / f"{process}.pt", weights_only=False) for process in alive]


def _work(folder: Path, process: int, count: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    values = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    values |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}  # they have met already
    os.environ |= {name: str(value) for name, value in values.items()}
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=process, world_size=count)
    torch.save(function(*args), folder / f"{process}.pt")


def torchrun(count: int, *words: object) -> subprocess.Popen[str]:
    """Start ``python -m orthoproxy`` in several processes, for real; options of torchrun come first."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen([*program, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def distance(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The norm of the difference over all tensors together, relative."""
    squares = sum(float((tensors[name] - x).double().square().sum()) for name, x in expected.items())
    return (squares / sum(float(x.double().square().sum()) for x in expected.values())) ** 0.5
