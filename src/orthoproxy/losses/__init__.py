"""Proxy Anchor, Soft Orthogonality and its rivals, and the objective that puts them together."""

from orthoproxy.losses.nearest import koleo, mutual_coherence
from orthoproxy.losses.objective import Objective
from orthoproxy.losses.proxy_anchor import ProxyAnchorLoss, proxy_anchor_loss
from orthoproxy.losses.registry import loss_names, make_loss, make_miner
from orthoproxy.losses.regularizers import Regulariser, make_regulariser
from orthoproxy.losses.sharded import ShardedProxyAnchorLoss, ShardedSoftOrthogonality
from orthoproxy.losses.simplex import simplex, simplex_near
from orthoproxy.losses.soft_orthogonality import SoftOrthogonality, off_diagonal, soft_orthogonality
from orthoproxy.losses.spectral import coding_rate_deficit, spectral_isometry

__all__ = [
    "Objective",
    "ProxyAnchorLoss",
    "Regulariser",
    "ShardedProxyAnchorLoss",
    "ShardedSoftOrthogonality",
    "SoftOrthogonality",
    "coding_rate_deficit",
    "koleo",
    "loss_names",
    "make_loss",
    "make_miner",
    "make_regulariser",
    "mutual_coherence",
    "off_diagonal",
    "proxy_anchor_loss",
    "simplex",
    "simplex_near",
    "soft_orthogonality",
    "spectral_isometry",
]
