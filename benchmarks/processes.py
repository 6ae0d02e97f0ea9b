"""Memory and traffic of a step as classes and processes grow, compared with docs/guide/distributed.md.

python benchmarks/processes.py
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from measure import MIB, arguments, memory_of, report
from torch import Tensor

from orthoproxy.core.distributed import all_gather_rows, average_gradients, local_slice, split_sizes
from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality

B, D = 256, 128
STEPS = 3
LAYOUTS = ((1, False), (2, False), (2, True), (4, True))
CASES = [(classes, count, sharded) for classes in (50_000, 200_000) for count, sharded in LAYOUTS]


class Traffic:
    """Counts the bytes that a process sends, if the collectives are rings."""

    def __init__(self) -> None:
        self.bytes = 0.0

    def count(self, collective: Callable[..., Any], sent: Callable[..., Tensor], times: float) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            share = (dist.get_world_size() - 1) / dist.get_world_size()
            self.bytes += times * share * sent(*args).nbytes
            return collective(*args, **kwargs)

        return counted


def step(objective: Objective, optimizer: torch.optim.Optimizer, labels: Tensor) -> None:
    sizes = split_sizes(B)
    own = torch.randn(sizes[dist.get_rank()], D, requires_grad=True)
    objective(all_gather_rows(own, sizes), all_gather_rows(labels[local_slice(sizes)], sizes))["loss"].backward()
    if objective.sharded_loss is None:
        average_gradients(objective.parameters())
    optimizer.step()
    optimizer.zero_grad()


def train(classes: int, sharded: bool) -> None:
    loss = ProxyAnchorLoss(classes, D, sharded=sharded)
    so = SoftOrthogonality(scaling="excess")
    objective = Objective(loss, classes, so, weight=0.1)
    optimizer = torch.optim.AdamW(objective.parameters(), weight_decay=0)
    labels = torch.randint(classes, (B,), generator=torch.Generator().manual_seed(0))
    for _ in range(STEPS):
        step(objective, optimizer, labels)


def measure(classes: int, sharded: bool) -> dict[str, float]:
    """What one process measures."""
    dist.init_process_group("gloo")
    train(B, sharded)  # what imports and connections take is not counted
    traffic = Traffic()
    dist.all_reduce = traffic.count(dist.all_reduce, lambda x, *_: x, times=2)
    dist.all_gather = traffic.count(dist.all_gather, lambda parts, x, *_: x.repeat(len(parts), 1), times=1)
    memory = memory_of(lambda: train(classes, sharded))
    return {"mib": memory["extra_mib"], "traffic": traffic.bytes / STEPS / MIB}


def in_processes(count: int, *case: object) -> dict[str, float]:
    """Run a case in fresh processes; return what the hungriest measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--case", *map(str, case)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **meeting, "RANK": str(rank)})
        for rank in range(count)
    ]
    measured = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return max(measured, key=lambda found: found["mib"])


def expected(classes: int, count: int, sharded: bool) -> dict[str, float]:
    """The formulas: proxies, gradient and two moments; what goes through the collectives."""
    kept, there = -(-classes // count) if sharded else classes, (count - 1) / count
    proxies = 8 * D * D if sharded else 8 * classes * D
    return {"mib": 16 * kept * D / MIB, "traffic": there * (12 * B * D + 8 * B + proxies) / MIB}


def main() -> None:
    options = arguments(__doc__ or "")
    if options.case:
        classes, sharded = options.case
        print(json.dumps(measure(int(classes), sharded == "True")))
        return
    rows = []
    for classes, count, sharded in CASES:
        found, formula = in_processes(count, classes, sharded), expected(classes, count, sharded)
        rows.append(
            {
                "proxies": "sharded" if sharded else "replicated",
                "C": classes,
                "W": count,
                "proxies, gradient and moments, MiB": formula["mib"],
                "peak MiB": found["mib"],
                "predicted MiB sent per step": formula["traffic"],
                "MiB sent per step": found["traffic"],
            }
        )
    report(
        "processes",
        f"Loss and optimizer in W processes, B = {B}, D = {D}",
        list(rows[0]),
        rows,
        "peak MiB: of the hungriest process beyond what it held before, working memory included.",
    )


if __name__ == "__main__":
    main()
