"""Keep class vectors apart through the closest pairs: mutual coherence, and the KoLeo estimate of entropy."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthoproxy.losses.full_precision import at_least_float32, unit_rows


@at_least_float32
def mutual_coherence(proxies: Float[Tensor, "C D"], memory_mb: float = 16.0) -> Float[Tensor, ""]:
    r"""Measure the closest two proxies alone: ``max over i != j of |cos(p_i, p_j)|``.

    Only that pair gets a gradient, all others none. It cannot go below the Welch bound ``sqrt((C - D) / (D (C - 1)))``
    where C > D.

    Every proxy is compared with every other, a part of them at a time: C^2 D multiplications, but no C x C matrix. The
    way back costs nothing, since it goes through two proxies.

    Parameters
    ----------
    proxies
        P, one row a class. A row of zeros has cosine 0 with all, and gradient 0.
    memory_mb
        Bound on the memory of the cosines computed at a time, in MiB; changes no result.

    Returns
    -------
    Tensor
        A scalar from 0 to 1, float32 or float64; 0 for a single proxy.

    References
    ----------
    Bansal et al., "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", NeurIPS 2018, arXiv
    1810.09102: MC, there of the similarities without scaling to unit length.

    Examples
    --------
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
def koleo(proxies: Float[Tensor, "C D"], smallest: float = 1e-4, memory_mb: float = 16.0) -> Float[Tensor, ""]:
    r"""Measure how close each proxy is to its nearest: ``-1/C sum over i of log min over j != i of ||u_i - u_j||``.

    u are the proxies at unit length. Up to constants it is the estimate by Kozachenko and Leonenko of minus the entropy
    of the points, so that to minimise it spreads them over the sphere. Unlike Soft Orthogonality it tells opposite
    proxies, which are far apart, from equal ones. Its value can be negative: for orthogonal proxies it is -log(2) / 2.

    Every proxy is compared with every other, a part of them at a time: C^2 D multiplications, but no C x C matrix. The
    way back costs C D.

    Parameters
    ----------
    proxies
        P, one row a class.
    smallest
        Distances d count as ``sqrt(d^2 + smallest^2)``, so that two equal proxies leave value and gradient finite. Two
        that are exactly equal get no gradient from each other.
    memory_mb
        Bound on the memory of the cosines computed at a time, in MiB; changes no result.

    Returns
    -------
    Tensor
        A scalar, float32 or float64; 0 for a single proxy.

    References
    ----------
    Sablayrolles et al., "Spreading vectors for similarity search", ICLR 2019, arXiv 1806.03198; used by DINOv2.

    Examples
    --------
    >>> round(float(koleo(torch.eye(3))), 4)  # every distance is sqrt(2)
    -0.3466
    """
    if len(proxies) == 1:
        return (proxies * 0).sum()
    units = unit_rows(proxies)
    with torch.no_grad():
        partner = _nearest(units, memory_mb)
    squares = (units - units[partner]).square().sum(dim=1)
    return -0.5 * (squares + smallest**2).log().mean()


def _nearest(units: Float[Tensor, "C D"], memory_mb: float, absolute: bool = False) -> Int[Tensor, " C"]:
    """The other row with the largest cosine, or absolute cosine, to each row."""
    size = max(1, int(memory_mb * 2**20 / (units.element_size() * len(units))))
    nearest = []
    for start in range(0, len(units), size):
        cosines = units[start : start + size] @ units.T  # c C
        cosines = cosines.abs_() if absolute else cosines
        cosines.diagonal(start).fill_(-torch.inf)
        nearest.append(cosines.argmax(dim=1))
    return torch.cat(nearest)
