"""Class vectors that are not learned: the corners of a simplex, each as far from every other."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from orthoproxy.core.errors import InputError


def simplex(num_classes: int, dim: int) -> Float[Tensor, "C D"]:
    """Give C unit vectors of which any two have cosine -1 / (C - 1), the least that all pairs can have together.

    Parameters
    ----------
    num_classes
        C, from 2 to D + 1.
    dim
        D.

    Returns
    -------
    Tensor
        One a row, float64. They sum to zero.

    Raises
    ------
    InputError
        For a C that does not fit.

    References
    ----------
    Fixed as class weights: Pernici et al., "Regular Polytope Networks", 2021, arXiv 2103.15632. It is where class means
    end up when a classifier is trained for long: Papyan, Han and Donoho, "Prevalence of Neural Collapse", PNAS 2020,
    arXiv 2008.08186.

    Examples
    --------
    >>> corners = simplex(3, 2)
    >>> (corners @ corners.T).round(decimals=3)
    tensor([[ 1.0000, -0.5000, -0.5000],
            [-0.5000,  1.0000, -0.5000],
            [-0.5000, -0.5000,  1.0000]], dtype=torch.float64)
    """
    if not 2 <= num_classes <= dim + 1:
        raise InputError(
            f"initialisation.proxies: simplex has room for 2 to {dim + 1} classes in {dim} dimensions, not for "
            f"{num_classes}; raise encoder.embedding_dim, or choose class_means"
        )
    # the columns of Helmert's matrix are orthonormal and orthogonal to (1, ..., 1): coordinates of e_i - mean
    steps = torch.arange(1, num_classes, dtype=torch.float64)
    rows = torch.arange(num_classes)[:, None]
    helmert = torch.where(rows < steps, 1.0, torch.where(rows == steps, -steps, 0.0)) / (steps * (steps + 1)).sqrt()
    corners = helmert * (num_classes / (num_classes - 1)) ** 0.5
    return torch.cat([corners, corners.new_zeros(num_classes, dim - num_classes + 1)], dim=1)


def simplex_near(vectors: Float[Tensor, "C D"]) -> Float[Tensor, "C D"]:
    """Turn the simplex as near to given vectors as a rotation or reflection brings it.

    Among all orthogonal R, ``||S R - V||_F`` is least for ``R = U W^T`` with ``S^T V = U diag(s) W^T`` (Schönemann,
    1966). All corners are alike, so that without it a class would get a direction unrelated to its images.

    Parameters
    ----------
    vectors
        V, for example class means.

    Returns
    -------
    Tensor
        One corner a row, of the type of `vectors`.

    Raises
    ------
    InputError
        As `simplex`.

    Examples
    --------
    >>> simplex_near(torch.tensor([[2.0, 0.1], [-2.0, 0.1]]))[:, 0]
    tensor([ 1., -1.])
    """
    corners = simplex(*vectors.shape)
    left, _, right = torch.linalg.svd(corners.T @ vectors.detach().double().cpu())
    return (corners @ left @ right).to(vectors)
