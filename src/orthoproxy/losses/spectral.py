"""Keep class vectors apart through their spectrum: spectral restricted isometry, and the coding rate."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from orthoproxy.losses.full_precision import at_least_float32, unit_rows
from orthoproxy.losses.soft_orthogonality import gram_of_dims


@at_least_float32
def spectral_isometry(proxies: Float[Tensor, "C D"], normalize: bool = True, iterations: int = 10) -> Float[Tensor, ""]:
    r"""Measure the worst direction instead of the sum over all: ``||G / t - I||_2``, the largest singular value.

    G is ``P^T P`` where C > D, else ``P P^T``. The published term has t = 1. With unit rows and C > D that would have
    the floor C / D - 1, and of the eigenvalues only the largest would count; here t is C / D then, what an evenly
    spread set has as its D eigenvalues, so that directions with too little count as well as those with too much.
    Soft Orthogonality is the same with the Frobenius norm.

    Found by power iteration from a fixed start, without a gradient; the gradient is that of ``u^T (G / t - I) v`` for
    the singular vectors found. Costs C min(C, D)^2 multiplications; no C x C matrix where C > D.

    Parameters
    ----------
    proxies
        P, one row a class.
    normalize
        Scale the rows to unit length first. A row of zeros stays zero, with gradient 0.
    iterations
        Times that G / t - I is applied twice. Few give a value below the largest, of a mix of the worst directions; the
        authors take one from a random start.

    Returns
    -------
    Tensor
        A scalar, 0 or more, float32 or float64; 0 for orthogonal rows, for a tight frame, and for a single proxy.

    References
    ----------
    Bansal et al., "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", NeurIPS 2018, arXiv
    1810.09102: SRIP.

    Examples
    --------
    >>> spectral_isometry(torch.eye(2).repeat(3, 1))  # six proxies in two dimensions, evenly spread
    tensor(0.)
    >>> round(float(spectral_isometry(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))), 4)  # two proxies of cosine 0.6
    0.6
    """
    num_classes, dim = proxies.shape
    if num_classes == 1:
        return (proxies * 0).sum()
    gram = small_gram(proxies, normalize)
    even = max(1.0, num_classes / dim) if normalize else 1.0
    deviation = gram / even - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    with torch.no_grad():
        start = torch.randn(len(gram), generator=torch.Generator().manual_seed(0))
        vector = torch.nn.functional.normalize(start.to(deviation), dim=0)
        for _ in range(iterations):
            # twice, so that eigenvalues of both signs and of the same size do no harm
            vector = torch.nn.functional.normalize(deviation @ (deviation @ vector), dim=0)
    return torch.linalg.vector_norm(deviation @ vector)


@at_least_float32
def coding_rate_deficit(proxies: Float[Tensor, "C D"], distortion: float = 0.5) -> Float[Tensor, ""]:
    r"""Measure how much smaller a volume the proxies span than they could, by their coding rate.

    The coding rate of unit rows is ``R(P) = 1/2 log det(I + D / (C eps^2) P^T P)``, the nats it takes to tell a row up
    to an error of eps. It is largest when the r = min(C, D) eigenvalues of ``P^T P`` that can differ from 0 are all
    C / r: ``R_max = r/2 log(1 + D / (r eps^2))``. Returned is ``(R_max - R) / r``.

    Each eigenvalue counts by its logarithm: a direction that hardly any proxy uses weighs more than in Soft
    Orthogonality, a crowded one less. Costs C min(C, D)^2 multiplications; no C x C matrix where C > D.

    Parameters
    ----------
    proxies
        P, one row a class; scaled to unit length here, since R grows with the length of rows without end. A row of
        zeros stays zero, with gradient 0.
    distortion
        eps^2, above 0; 0.5 in the source's experiments.

    Returns
    -------
    Tensor
        A scalar, 0 or more, float32 or float64; 0 for orthogonal rows, for a tight frame, and for a single proxy.

    Raises
    ------
    ValueError
        If the distortion is not above 0.

    References
    ----------
    Yu et al., "Learning Diverse and Discriminative Representations via the Principle of Maximal Coding Rate Reduction",
    NeurIPS 2020, arXiv 2006.08558: the expansion term.

    Examples
    --------
    >>> coding_rate_deficit(torch.eye(3))
    tensor(0.)
    >>> round(float(coding_rate_deficit(torch.ones(3, 3))), 4)  # all in one direction
    0.225
    """
    if distortion <= 0:
        raise ValueError(f"distortion: must be above 0, not {distortion}")
    num_classes, dim = proxies.shape
    if num_classes == 1:
        return (proxies * 0).sum()
    gram = small_gram(proxies, normalize=True)
    rank = len(gram)
    volume = torch.eye(rank, dtype=gram.dtype, device=gram.device) + dim / (num_classes * distortion) * gram
    half_log_det = torch.linalg.cholesky(volume).diagonal().log().sum()
    most = rank / 2 * math.log1p(dim / (rank * distortion))
    deficit = (most - half_log_det) / rank
    return deficit + torch.where(deficit < 0, -deficit, 0.0).detach()  # what rounding pushed below zero


def small_gram(proxies: Float[Tensor, "C D"], normalize: bool) -> Float[Tensor, "r r"]:
    """Compute ``P^T P`` or ``P P^T``, whichever is smaller; their eigenvalues other than 0 are the same.

    Parameters
    ----------
    proxies
        One row a class.
    normalize
        Scale the rows to unit length first.

    Examples
    --------
    >>> small_gram(torch.ones(5, 1), normalize=True)
    tensor([[5.]])
    """
    if len(proxies) > proxies.shape[1]:
        return gram_of_dims(proxies, normalize)
    rows = unit_rows(proxies) if normalize else proxies
    return rows @ rows.T
