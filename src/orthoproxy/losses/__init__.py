"""Proxy Anchor, Soft Orthogonality and other regularizers, and the objective that combines them."""

from orthoproxy.losses.objective import Objective
from orthoproxy.losses.proxy_anchor import ProxyAnchorLoss, proxy_anchor_loss
from orthoproxy.losses.registry import loss_names, make_loss, make_miner
from orthoproxy.losses.regularizers import make_regularizer
from orthoproxy.losses.soft_orthogonality import SoftOrthogonality, soft_orthogonality

__all__ = [
    "Objective",
    "ProxyAnchorLoss",
    "SoftOrthogonality",
    "loss_names",
    "make_loss",
    "make_miner",
    "make_regularizer",
    "proxy_anchor_loss",
    "soft_orthogonality",
]
