"""Proxy Anchor, Soft Orthogonality, and the objective that puts them together."""

from orthoproxy.losses.objective import Objective
from orthoproxy.losses.proxy_anchor import ProxyAnchorLoss, proxy_anchor_loss
from orthoproxy.losses.registry import loss_names, make_loss, make_miner
from orthoproxy.losses.sharded import ShardedProxyAnchorLoss, ShardedSoftOrthogonality
from orthoproxy.losses.soft_orthogonality import SoftOrthogonality, soft_orthogonality

__all__ = [
    "Objective",
    "ProxyAnchorLoss",
    "ShardedProxyAnchorLoss",
    "ShardedSoftOrthogonality",
    "SoftOrthogonality",
    "loss_names",
    "make_loss",
    "make_miner",
    "proxy_anchor_loss",
    "soft_orthogonality",
]
