"""Data-driven initialization: projection from principal components, proxies from class means."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import functional as F

from orthoproxy.core.errors import InputError
from orthoproxy.losses.proxy_anchor import class_numbers

BLOCK = 8192  # rows converted to float64 at a time


@torch.no_grad()
def second_moment(features: Float[Tensor, "N F"]) -> Float[Tensor, "F F"]:
    """Return X^T X in float64, accumulated in blocks of rows.

    Examples
    --------
    >>> second_moment(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    tensor([[1., 2.],
            [2., 5.]], dtype=torch.float64)
    """
    width = features.shape[1]
    moment = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for block in features.split(BLOCK):
        rows = block.double()
        moment.addmm_(rows.T, rows)
    return moment


@torch.no_grad()
def pca_projection(moment: Float[Tensor, "F F"], dim: int, whitening: float = 1.0) -> Float[Tensor, "D F"]:
    """Return the weight of a projection onto the principal components of features X.

    With eigenvalues e and eigenvectors v of X^T X, row j is ``v_j / sqrt(e_j)^whitening``, scaled so that rows have
    mean length 1. Eigenvalues below half the mean of all F are raised to it: amplifying directions that the data
    hardly use would drown the others in noise. Features are not centered.

    Parameters
    ----------
    moment
        X^T X of unit-length pooled features of the training images, from `second_moment`.
    dim
        D, at most F.
    whitening
        0 keeps the energies of the directions, 1 equalizes them.

    Raises
    ------
    InputError
        If `dim` is larger than F.

    Examples
    --------
    >>> features = torch.randn(50, 3) * torch.tensor([1.0, 20.0, 25.0])
    >>> weight = pca_projection(second_moment(features), dim=2)
    >>> energies = (features.double() @ weight.T).square().sum(dim=0)
    >>> bool(abs(energies[0] / energies[1] - 1) < 1e-3)
    True
    """
    width = len(moment)
    if dim > width:
        raise InputError(
            str(dim),
            field="embedding_dim",
            expected=f"at most {width}, the feature dimension of the backbone",
            hint="lower it, or initialize the projection at random",
        )
    energies, directions = torch.linalg.eigh(moment)  # ascending
    directions = directions.flip(1)[:, :dim].T  # D F
    scale = energies.flip(0)[:dim].clamp_min(energies.sum() / (2 * width)).sqrt()
    weight = directions / scale[:, None] ** whitening
    return weight / weight.norm(dim=1).mean()


def class_means(
    embeddings: Float[Tensor, "N D"], labels: Integer[Tensor, " N"], num_classes: int
) -> Float[Tensor, "C D"]:
    """Return the mean embedding of each class, scaled to unit length; zero for a class without images.

    Examples
    --------
    >>> class_means(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]), num_classes=2)
    tensor([[0.0000, 0.0000],
            [0.7071, 0.7071]])
    """
    return F.normalize(class_sums(embeddings, class_numbers(labels), num_classes), dim=1)


def class_sums(embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"], num_classes: int) -> Float[Tensor, "C D"]:
    """Return the sum of the embeddings of each class; labels outside 0 to C - 1 are ignored."""
    known = (labels >= 0) & (labels < num_classes)
    sums = torch.zeros(num_classes, embeddings.shape[1], dtype=embeddings.dtype)
    return sums.index_add(0, labels[known], embeddings[known])
