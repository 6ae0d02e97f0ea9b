"""Proxy Anchor, Soft Orthogonality and other regularizers, and the objective that combines them."""

from orthoproxy.losses.objective import Objective
from orthoproxy.losses.proxy_anchor import ProxyAnchorLoss, proxy_anchor_loss
from orthoproxy.losses.registry import loss_names, make_loss, make_miner
from orthoproxy.losses.regularizers import (
    Regularizer,
    coding_rate_deficit,
    koleo,
    make_regularizer,
    mutual_coherence,
    off_diagonal,
    spectral_isometry,
)
from orthoproxy.losses.sharded import ShardedProxyAnchorLoss, ShardedSoftOrthogonality
from orthoproxy.losses.soft_orthogonality import SoftOrthogonality, soft_orthogonality

__all__ = [
    "Objective",
    "ProxyAnchorLoss",
    "Regularizer",
    "ShardedProxyAnchorLoss",
    "ShardedSoftOrthogonality",
    "SoftOrthogonality",
    "coding_rate_deficit",
    "koleo",
    "loss_names",
    "make_loss",
    "make_miner",
    "make_regularizer",
    "mutual_coherence",
    "off_diagonal",
    "proxy_anchor_loss",
    "soft_orthogonality",
    "spectral_isometry",
]
