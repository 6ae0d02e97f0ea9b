"""AdamW with parameter groups, and learning rate schedules."""

from __future__ import annotations

import math
from typing import Literal

import torch
from timm.optim import (
    param_groups_layer_decay,  # pyright: ignore[reportPrivateImportUsage]
    param_groups_weight_decay,  # pyright: ignore[reportPrivateImportUsage]
)
from torch import nn

from orthoproxy.models import Encoder


def make_optimizer(
    encoder: Encoder,
    objective: nn.Module,
    backbone_lr: float,
    projection_lr: float,
    proxy_lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """Return a fused AdamW with the groups ``backbone``, ``projection`` and ``proxies``.

    Biases, normalization layers, what timm lists as ``no_weight_decay`` (position embeddings, class tokens) and the
    parameters of the objective are not decayed. With `layer_decay` below 1, the learning rate of each backbone layer is
    that of the next one times `layer_decay`. Groups carry their ``name`` and ``peak_lr``.

    Examples
    --------
    >>> from orthoproxy.losses import ProxyAnchorLoss
    >>> encoder = Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32)
    >>> optimizer = make_optimizer(encoder, ProxyAnchorLoss(3, 16), 1e-4, 1e-4, 1e-2, weight_decay=0.01)
    >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
    [('backbone', 0.0), ('backbone', 0.01), ('projection', 0.0), ('projection', 0.01), ('proxies', 0.0)]
    """
    excluded = getattr(encoder.backbone, "no_weight_decay", set)()  # not all backbones have the method
    if layer_decay < 1:
        of_backbone = param_groups_layer_decay(encoder.backbone, weight_decay, excluded, layer_decay=layer_decay)
    else:
        of_backbone = param_groups_weight_decay(encoder.backbone, weight_decay, no_weight_decay_list=excluded)
    parts = (
        ("backbone", of_backbone, backbone_lr),
        ("projection", param_groups_weight_decay(encoder.projection, weight_decay), projection_lr),
        ("proxies", param_groups_weight_decay(objective, 0.0), proxy_lr),
    )
    groups = []
    for name, of_part, peak_lr in parts:
        for group in of_part:
            lr = peak_lr * group.get("lr_scale", 1.0)
            own = {"params": group["params"], "weight_decay": group["weight_decay"]}
            groups.append({"name": name, "lr": lr, "peak_lr": lr, **own})
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
