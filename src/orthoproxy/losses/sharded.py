"""Proxies divided among processes: each holds about C / W of them, with their optimizer state.

Given all embeddings X of the batch, process r computes a_r(X, P_r) from its proxies P_r; Proxy Anchor is
L = a_1 + ... + a_W. Soft Orthogonality depends on ``P^T P``, the sum of all ``P_r^T P_r``.

Gradients: dL/dP_r = da_r/dP_r is complete in process r. dL/dX is the sum of all da_r/dX, formed by the backward pass of
`all_gather_rows`. DDP averages the encoder's gradients over processes although they are parts of a sum, so each process
scales its da_r/dX by W. (Without sharding each process computes all of L, and the sum has that factor already.)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from orthoproxy.core.distributed import all_reduce_sum, local_slice, process_count, split_sizes
from orthoproxy.losses.full_precision import at_least_float32
from orthoproxy.losses.proxy_anchor import check_settings, proxy_anchor_part
from orthoproxy.losses.soft_orthogonality import Scaling, distance_of_gram, gram_of_dims, scale_divisor

BLOCK = 2**16  # proxies drawn at a time: a multiple of 16, which gives the numbers of a single draw


class ShardedProxyAnchorLoss(nn.Module):
    """`ProxyAnchorLoss` with its proxies divided among processes; every process returns the whole loss.

    `num_classes` counts all processes' classes. With the same seed in each process, the proxies are initialized as in
    `ProxyAnchorLoss`.

    Examples
    --------
    >>> loss = ShardedProxyAnchorLoss(num_classes=3, embedding_dim=8)
    >>> loss.classes, tuple(loss.proxies.shape)  # of the one process
    (range(0, 3), (3, 8))
    """

    def __init__(self, num_classes: int, embedding_dim: int, scale: float = 32.0, margin: float = 0.1) -> None:
        super().__init__()
        check_settings(num_classes, scale)
        self.num_classes, self.scale, self.margin = num_classes, scale, margin
        self.sizes = split_sizes(num_classes)
        self.classes = range(num_classes)[local_slice(self.sizes)]
        self.proxies = nn.Parameter(_own_rows_of_kaiming_normal(num_classes, embedding_dim, self.classes))

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Integer[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return the loss of a batch gathered from all processes; labels are of all C classes."""
        # the same values, with W times the gradient
        x = embeddings + (process_count() - 1) * (embeddings - embeddings.detach())
        first = self.classes.start
        part = proxy_anchor_part(x, labels, self.proxies, first, self.num_classes, self.scale, self.margin)
        return all_reduce_sum(part)


class ShardedSoftOrthogonality(nn.Module):
    """`SoftOrthogonality` of proxies divided among processes, which exchange only the D x D matrix.

    `num_classes` counts all processes' classes.

    Examples
    --------
    >>> ShardedSoftOrthogonality(num_classes=6, scaling="excess")(torch.eye(2).repeat(3, 1))
    tensor(0.)
    """

    def __init__(self, num_classes: int, normalize: bool = True, scaling: Scaling = "sum") -> None:
        super().__init__()
        scale_divisor(scaling, 2)  # checks the scaling
        self.num_classes, self.normalize = num_classes, normalize
        self.scaling: Scaling = scaling

    @at_least_float32
    def forward(self, proxies: Float[Tensor, "c D"]) -> Float[Tensor, ""]:
        """Return the term for all proxies, given this process's."""
        if self.num_classes == 1:
            return (proxies * 0).sum()
        gram = all_reduce_sum(gram_of_dims(proxies, self.normalize))
        return distance_of_gram(gram, self.num_classes, proxies.shape[1], self.normalize, self.scaling)


def _own_rows_of_kaiming_normal(num_classes: int, dim: int, own: range) -> Float[Tensor, "c D"]:
    """Draw all rows, some at a time, and keep this process's: initialization does not depend on their number."""
    kept = torch.empty(len(own), dim)
    starts = range(0, max(1, num_classes - BLOCK + 1), BLOCK)  # the last block takes what is left over as well
    for start in starts:
        end = num_classes if start == starts[-1] else start + BLOCK
        rows = torch.empty(end - start, dim).normal_(0, math.sqrt(2) / math.sqrt(num_classes))
        first, last = max(start, own.start), min(end, own.stop)
        if first < last:
            kept[first - own.start : last - own.start] = rows[first - start : last - start]
    return kept
