"""A training step of the proxies with up to a million classes: seconds, and memory of the whole process.

python benchmarks/million.py
"""

from __future__ import annotations

import json
import statistics
import time

import torch
from measure import arguments, in_fresh_process, memory_of, report
from torch.nn import functional as F

from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality

B, D = 180, 128
STEPS = 7  # the first one, in which AdamW makes its moments, is not timed


def take_steps(classes: int) -> list[float]:
    torch.manual_seed(0)
    objective = Objective(ProxyAnchorLoss(classes, D), classes, SoftOrthogonality(scaling="excess"), weight=0.3)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, weight_decay=0, fused=True)
    x = F.normalize(torch.randn(B, D), dim=1).requires_grad_()
    labels = torch.randint(classes, (B,))
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        objective(x, labels)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main() -> None:
    options = arguments(__doc__ or "")
    if options.case:
        seconds: list[float] = []
        memory = memory_of(lambda: seconds.extend(take_steps(int(options.case[0]))))
        print(json.dumps({**memory, "seconds": statistics.median(seconds)}))
        return
    rows = []
    for classes in (100_000, 200_000, 500_000, 1_000_000):
        measured = in_fresh_process(__file__, classes)
        rows.append(
            {
                "C": f"{classes:,}",
                "seconds per step": measured["seconds"],
                "microseconds per class": 1e6 * measured["seconds"] / classes,
                "peak GiB": measured["peak_mib"] / 1024,
                "parameters GiB": 4 * 4 * classes * D / 2**30,
            }
        )
    report(
        "million",
        f"Training step of the proxies, B = {B}, D = {D}",
        list(rows[0]),
        rows,
        "process: peak memory of the whole process; of that, proxies, their gradient and AdamW's two moments.",
    )


if __name__ == "__main__":
    main()
