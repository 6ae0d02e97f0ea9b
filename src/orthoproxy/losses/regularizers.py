"""Regularizers of class vectors by name: Soft Orthogonality and alternatives from the literature.

Each takes class vectors P of shape (C, D) and returns a scalar, 0 for a single one. None forms a C x C matrix where
C > D: those that compare all pairs do so some rows at a time, within `memory_mb` MiB, which changes results by rounding
only. All but `off_diagonal` scale rows to unit length by default; a row of zeros stays zero with gradient 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from orthoproxy.core.errors import InputError
from orthoproxy.losses.full_precision import at_least_float32, unit_rows
from orthoproxy.losses.soft_orthogonality import Scaling, SoftOrthogonality, not_below_zero, scale_divisor, smaller_gram

Name = Literal["soft_orthogonality", "off_diagonal", "spectral", "coherence", "coding_rate", "koleo"]


@at_least_float32
def off_diagonal(proxies: Float[Tensor, "C D"], scaling: Scaling = "sum", memory_mb: float = 16.0) -> Float[Tensor, ""]:
    r"""Penalize dot products of different proxies: ``sum over i != j of (p_i . p_j)^2``; lengths are free.

    ``excess`` divides by C, since the minimum is 0. Source: Brock et al., ICLR 2019, arXiv 1809.11096.

    >>> off_diagonal(torch.ones(3, 2))  # six ordered pairs of similarity 2
    tensor(24.)
    """
    divisor = scale_divisor(scaling, len(proxies))
    if len(proxies) == 1:
        return (proxies * 0).sum()
    gram = smaller_gram(proxies, False, memory_mb)
    if len(gram) == len(proxies):
        return (gram - gram.diagonal().diag()).square().sum() / divisor
    return not_below_zero(gram.square().sum() - proxies.square().sum(dim=1).square().sum()) / divisor


@at_least_float32
def spectral_isometry(proxies: Float[Tensor, "C D"], normalize: bool = True, iterations: int = 10) -> Float[Tensor, ""]:
    r"""Penalize the worst direction: the spectral norm ``||G / t - I||_2``, with G the smaller of P^T P and P P^T.

    t is 1 as published, but C / D for unit rows with C > D: the value of all D eigenvalues of an evenly spread set.
    Few power iterations give a lower bound. Source: Bansal et al., NeurIPS 2018, arXiv 1810.09102 (SRIP).

    >>> round(float(spectral_isometry(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))), 4)  # two proxies of cosine 0.6
    0.6
    """
    num_classes, dim = proxies.shape
    if num_classes == 1:
        return (proxies * 0).sum()
    gram = smaller_gram(proxies, normalize)
    even = max(1.0, num_classes / dim) if normalize else 1.0
    deviation = gram / even - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    with torch.no_grad():
        start = torch.randn(len(gram), generator=torch.Generator().manual_seed(0))
        vector = F.normalize(start.to(deviation), dim=0)
        for _ in range(iterations):  # twice each, so that eigenvalues of both signs and of the same size do no harm
            vector = F.normalize(deviation @ (deviation @ vector), dim=0)
    return torch.linalg.vector_norm(deviation @ vector)


@at_least_float32
def coding_rate_deficit(proxies: Float[Tensor, "C D"], distortion: float = 0.5) -> Float[Tensor, ""]:
    r"""Penalize a small spanned volume: ``(R_max - R) / r`` with the coding rate R of the unit rows.

    ``R = 1/2 log det(I + D / (C eps^2) P^T P)`` in nats, largest when all r = min(C, D) eigenvalues are equal:
    ``R_max = r/2 log(1 + D / (r eps^2))``. `distortion` is eps^2. Source: Yu et al., NeurIPS 2020, arXiv 2006.08558.

    >>> round(float(coding_rate_deficit(torch.ones(3, 3))), 4)  # all in one direction
    0.225
    """
    if distortion <= 0:
        raise InputError(f"{distortion}", field="distortion", expected="above 0")
    num_classes, dim = proxies.shape
    if num_classes == 1:
        return (proxies * 0).sum()
    gram = smaller_gram(proxies, normalize=True)
    rank = len(gram)
    volume = torch.eye(rank, dtype=gram.dtype, device=gram.device) + dim / (num_classes * distortion) * gram
    half_log_det = torch.linalg.cholesky(volume).diagonal().log().sum()
    return not_below_zero((rank / 2 * math.log1p(dim / (rank * distortion)) - half_log_det) / rank)


@at_least_float32
def mutual_coherence(proxies: Float[Tensor, "C D"], memory_mb: float = 16.0) -> Float[Tensor, ""]:
    r"""Penalize the closest pair alone: ``max over i != j of |cos(p_i, p_j)|``; only that pair gets a gradient.

    Source: Bansal et al., NeurIPS 2018, arXiv 1810.09102 (MC, there without scaling to unit length).

    >>> mutual_coherence(torch.tensor([[2.0, 0.0], [0.0, 2.0], [-0.6, 0.8]]))
    tensor(0.8000)
    """
    if len(proxies) == 1:
        return (proxies * 0).sum()
    with torch.no_grad():
        units = unit_rows(proxies)
        partner = _nearest(units, memory_mb, absolute=True)
        first = (units * units[partner]).sum(dim=1).abs().argmax()
        pair = torch.stack([first, partner[first]])
    one, other = unit_rows(proxies[pair])
    return (one * other).sum().abs()


@at_least_float32
def koleo(proxies: Float[Tensor, "C D"], min_distance: float = 1e-4, memory_mb: float = 16.0) -> Float[Tensor, ""]:
    r"""Penalize close nearest neighbors: ``-1/C sum over i of log min over j != i of ||u_i - u_j||``, u at unit length.

    Up to constants, minus the Kozachenko-Leonenko estimate of entropy; it can be negative. Distances d count as
    ``sqrt(d^2 + min_distance^2)``, so that equal proxies leave value and gradient finite. Source: Sablayrolles et al.,
    ICLR 2019, arXiv 1806.03198; used by DINOv2.

    >>> round(float(koleo(torch.eye(3))), 4)  # every distance is sqrt(2)
    -0.3466
    """
    if len(proxies) == 1:
        return (proxies * 0).sum()
    units = unit_rows(proxies)
    with torch.no_grad():
        partner = _nearest(units, memory_mb)
    squares = (units - units[partner]).square().sum(dim=1)
    return -0.5 * (squares + min_distance**2).log().mean()


class Regularizer(nn.Module):
    """A function of class vectors, one per row, as a module."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, proxies: Float[Tensor, "C D"]) -> Float[Tensor, ""]:
        return self.function(proxies)

    def extra_repr(self) -> str:
        return self.name


def make_regularizer(
    name: Name = "soft_orthogonality", normalize: bool = True, scaling: Scaling = "excess"
) -> nn.Module:
    """Build a regularizer by name: a module called with class vectors, one per row.

    Parameters
    ----------
    name
        ``soft_orthogonality``, ``off_diagonal``, ``spectral`` (`spectral_isometry`), ``coherence``
        (`mutual_coherence`), ``coding_rate`` (`coding_rate_deficit`) or ``koleo``.
    normalize
        Scale to unit length first. Both ways exist for ``soft_orthogonality`` and ``spectral``; ``off_diagonal`` is
        False only, the others True only.
    scaling
        As in `soft_orthogonality`, but ``excess`` by default; for ``soft_orthogonality`` and ``off_diagonal`` only.

    Raises
    ------
    InputError
        If the name is unknown or does not go with the other arguments.

    Examples
    --------
    >>> make_regularizer("koleo")
    Regularizer(koleo)
    """
    if name not in get_args(Name):
        raise InputError(f"unknown {name!r}", field="name", expected=f"one of {', '.join(get_args(Name))}")
    if name == "off_diagonal" and normalize:
        raise InputError("with unit vectors, off_diagonal is soft_orthogonality", field="normalize", expected="false")
    if name in ("coherence", "coding_rate", "koleo") and not normalize:
        raise InputError(f"{name} is defined on unit vectors", field="normalize", expected="true")
    if name not in ("soft_orthogonality", "off_diagonal") and scaling != "excess":
        raise InputError(f"{name} has a single scale", field="scaling", expected="excess, the default")
    if name == "soft_orthogonality":
        return SoftOrthogonality(normalize, scaling)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "off_diagonal": partial(off_diagonal, scaling=scaling),
        "spectral": partial(spectral_isometry, normalize=normalize),
        "coherence": mutual_coherence,
        "coding_rate": coding_rate_deficit,
        "koleo": koleo,
    }
    return Regularizer(name, functions[name])


def _nearest(units: Float[Tensor, "C D"], memory_mb: float, absolute: bool = False) -> Int[Tensor, " C"]:
    """Return, for each row, the other row with the largest cosine or absolute cosine."""
    size = max(1, int(memory_mb * 2**20 / (units.element_size() * len(units))))
    nearest = []
    for start in range(0, len(units), size):
        cosines = units[start : start + size] @ units.T  # c C
        cosines = cosines.abs_() if absolute else cosines
        cosines.diagonal(start).fill_(-torch.inf)
        nearest.append(cosines.argmax(dim=1))
    return torch.cat(nearest)
