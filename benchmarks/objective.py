"""Proxy Anchor and Soft Orthogonality compared with the C x C form and pytorch-metric-learning: seconds and memory.

python benchmarks/objective.py
"""

from __future__ import annotations

import json
import statistics

import torch
from measure import arguments, in_fresh_process, memory_of, paired_seconds, report, times_faster
from pytorch_metric_learning.losses import ProxyAnchorLoss as TheirProxyAnchorLoss
from torch import Tensor, nn
from torch.nn import functional as F

from orthoproxy.losses import proxy_anchor_loss, soft_orthogonality

B = 180


class Candidate:
    """Losses by name, joined by +, of embeddings and proxies that are there, with room for their gradients."""

    def __init__(self, losses: str, classes: int, dim: int) -> None:
        torch.manual_seed(0)
        self.x = F.normalize(torch.randn(B, dim), dim=1).requires_grad_()
        self.labels = torch.randint(classes, (B,))
        self.theirs = TheirProxyAnchorLoss(1, dim)
        self.proxies = self.theirs.proxies = nn.Parameter(torch.randn(classes, dim))
        self.theirs.num_classes = classes
        self.x.grad, self.proxies.grad = torch.zeros_like(self.x), torch.zeros_like(self.proxies)
        self.losses = [getattr(self, f"_{name}") for name in losses.split("+")]

    def __call__(self) -> None:
        torch.stack([loss() for loss in self.losses]).sum().backward()

    def _anchor(self) -> Tensor:
        return proxy_anchor_loss(self.x, self.labels, self.proxies)

    def _peer(self) -> Tensor:
        return self.theirs(self.x, self.labels)

    def _so(self) -> Tensor:
        return soft_orthogonality(self.proxies)

    def _classes(self) -> Tensor:
        unit = F.normalize(self.proxies, dim=1)
        return (unit @ unit.T - torch.eye(len(unit))).square().sum()

    def _products(self) -> Tensor:
        return (self.x @ self.proxies.T).sum()  # sum's gradient is a matrix, so that the way back takes two products


CASES = [  # what, C, D, candidate, reference
    ("Soft Orthogonality", 11_318, 384, "so", "classes"),
    ("Soft Orthogonality", 384, 384, "so", "classes"),
    ("Soft Orthogonality", 100, 384, "so", "classes"),
    ("Proxy Anchor + SO", 11_318, 384, "anchor+so", "peer+classes"),
    ("Proxy Anchor", 100_000, 128, "anchor", "peer"),
    ("Proxy Anchor", 100_000, 128, "anchor", "products"),
]
TITLES = {
    "classes": "C x C form",
    "peer": "pytorch-metric-learning",
    "peer+classes": "pytorch-metric-learning + C x C form",
    "products": "three matrix products only",
}


def main() -> None:
    options = arguments(__doc__ or "", runs=7)
    if options.case:
        losses, classes, dim = options.case
        print(json.dumps(memory_of(Candidate(losses, int(classes), int(dim)))))
        return
    rows = []
    for what, classes, dim, ours, peer in CASES:
        runs = options.runs if classes > 1000 else 50 * options.runs  # below a millisecond, few say nothing
        seconds = paired_seconds({name: Candidate(name, classes, dim) for name in (ours, peer)}, runs)
        memory = {name: in_fresh_process(__file__, name, classes, dim)["extra_mib"] for name in (ours, peer)}
        rows.append(
            {
                "what": what,
                "C": f"{classes:,}",
                "D": dim,
                "reference": TITLES[peer],
                "orthoproxy ms": 1e3 * statistics.median(seconds[ours]),
                "reference ms": 1e3 * statistics.median(seconds[peer]),
                "speedup": times_faster(seconds, ours, peer),
                "orthoproxy MiB": memory[ours],
                "reference MiB": memory[peer],
            }
        )
    report(
        "objective",
        f"Loss, forward and backward, B = {B}",
        list(rows[0]),
        rows,
        "MiB: the most that a fresh process holds beyond inputs, proxies and their gradients. The three matrix\n"
        "products are those that any exact Proxy Anchor needs: similarities, and the gradients of both sides.",
    )


if __name__ == "__main__":
    main()
