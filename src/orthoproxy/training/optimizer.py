"""AdamW with parameter groups, and learning rate schedules."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from orthoproxy.models import Encoder


def make_optimizer(
    encoder: Encoder,
    objective: nn.Module,
    backbone_lr: float,
    projection_lr: float,
    proxy_lr: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """Return a fused AdamW with the groups ``backbone``, ``projection`` and ``proxies``.

    Biases, normalization layers, what timm lists as ``no_weight_decay`` (position embeddings, class tokens) and the
    parameters of the objective are not decayed. Groups carry their ``name`` and ``peak_lr``.

    Examples
    --------
    >>> from orthoproxy.losses import ProxyAnchorLoss
    >>> encoder = Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32)
    >>> optimizer = make_optimizer(encoder, ProxyAnchorLoss(3, 16), 1e-4, 1e-4, 1e-2, weight_decay=0.01)
    >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
    [('backbone', 0.01), ('backbone', 0.0), ('projection', 0.01), ('projection', 0.0), ('proxies', 0.0)]
    """
    excluded = encoder.no_weight_decay()
    parts = (
        ("backbone", encoder.backbone, backbone_lr, weight_decay, excluded),
        ("projection", encoder.projection, projection_lr, weight_decay, set()),
        ("proxies", objective, proxy_lr, 0.0, set()),
    )
    groups = []
    for name, module, lr, decay, without_decay in parts:
        trained = [(key, p) for key, p in module.named_parameters() if p.requires_grad]
        decayed = [p for key, p in trained if decay and p.ndim > 1 and key not in without_decay]
        others = [p for key, p in trained if not (decay and p.ndim > 1 and key not in without_decay)]
        groups += [
            {"name": name, "params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": rate}
            for parameters, rate in ((decayed, decay), (others, 0.0))
            if parameters
        ]
    return torch.optim.AdamW(groups, fused=True)  # fused: no copies, and steps can be skipped on the device


def lr_factor(
    step: int,
    total_steps: int,
    warmup_steps: int,
    schedule: Literal["cosine", "step", "constant"],
    decay_every: int = 1,
    decay_factor: float = 0.5,
) -> float:
    """Return the factor of the peak learning rates at a step: linear warm-up, then the schedule."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return decay_factor ** (step // decay_every) if schedule == "step" else 1.0
