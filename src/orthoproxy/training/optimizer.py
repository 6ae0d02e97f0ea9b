"""AdamW with rates of their own for backbone, projection and proxies, and how the rates change over time."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from orthoproxy.models import Encoder


def make_optimizer(
    encoder: Encoder,
    objective: nn.Module,
    backbone_rate: float,
    projection_rate: float,
    proxy_rate: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """Put every parameter into AdamW, in named groups.

    Parameters
    ----------
    encoder
        Gives the groups ``backbone`` and ``projection``. Biases and normalisation layers do not decay.
    objective
        Its parameters, the proxies, are the group ``proxies``; they do not decay.
    backbone_rate, projection_rate, proxy_rate
        Highest learning rates.
    weight_decay
        AdamW's.

    Returns
    -------
    torch.optim.AdamW
        Groups carry a ``name`` and their ``highest_rate``; a group without parameters is left out.

    Examples
    --------
    >>> from orthoproxy.losses import ProxyAnchorLoss
    >>> encoder = Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32)
    >>> optimizer = make_optimizer(encoder, ProxyAnchorLoss(3, 16), 1e-4, 1e-4, 1e-2, weight_decay=0.01)
    >>> [(group["name"], group["lr"]) for group in optimizer.param_groups]
    [('backbone', 0.0001), ('backbone', 0.0001), ('projection', 0.0001), ('projection', 0.0001), ('proxies', 0.01)]
    """
    parts = (
        ("backbone", encoder.backbone, backbone_rate, weight_decay),
        ("projection", encoder.projection, projection_rate, weight_decay),
        ("proxies", objective, proxy_rate, 0.0),
    )
    groups = []
    for name, module, rate, decay in parts:
        parameters = [p for p in module.parameters() if p.requires_grad]
        decaying = [p for p in parameters if decay and p.ndim > 1]
        resting = [p for p in parameters if not (decay and p.ndim > 1)]
        groups += [
            {"name": name, "params": chosen, "lr": rate, "highest_rate": rate, "weight_decay": d}
            for chosen, d in ((decaying, decay), (resting, 0.0))
            if chosen
        ]
    return torch.optim.AdamW(groups, fused=True)  # one pass over parameters and moments, no copies of them


def rate_factor(
    step: int,
    total_steps: int,
    warmup_steps: int,
    schedule: Literal["cosine", "step", "constant"],
    step_every: int = 1,
    step_factor: float = 0.5,
) -> float:
    """Return what the highest rates are multiplied with at a step.

    Parameters
    ----------
    step
        From 0.
    total_steps
        Of the whole run.
    warmup_steps
        Rates rise linearly over the first so many steps.
    schedule
        After that: ``cosine`` falls to 0 at the end, ``step`` falls by `step_factor` every `step_every` steps counted
        from the start, ``constant`` stays.
    step_every, step_factor
        See `schedule`.

    Returns
    -------
    float
        From 0 to 1.

    Examples
    --------
    >>> [round(rate_factor(step, 8, 2, "cosine"), 2) for step in range(8)]
    [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return step_factor ** (step // step_every) if schedule == "step" else 1.0
