"""The data-driven start: the projection from principal components, the proxies from class means.

A random projection first throws away what the backbone knows; started from the data, retrieval rises at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from orthoproxy.core.errors import InputError


@torch.no_grad()
def principal_weight(features: Float[Tensor, "N F"], dim: int, whitening: float = 1.0) -> Float[Tensor, "D F"]:
    """Make a projection onto the first principal directions of features.

    With eigenvalues e and eigenvectors v of the features' second moments ``features^T features``, row j is
    ``v_j / sqrt(e_j)^whitening``, all rows scaled alike to length 1 on average. Eigenvalues below half the mean of all
    F are raised to it: directions that the data hardly use, as when there are fewer images than dimensions, are noise,
    and to blow them up would drown the rest. The features are not centred, so that their length does not matter.

    Parameters
    ----------
    features
        Pooled features of training images, unit length.
    dim
        D, at most F.
    whitening
        0 keeps the directions' energies, 1 makes them equal.

    Returns
    -------
    Tensor
        Weight of a linear layer from F to D.

    Raises
    ------
    InputError
        If `dim` is above F.

    Examples
    --------
    >>> features = torch.randn(50, 3) * torch.tensor([1.0, 20.0, 25.0])
    >>> weight = principal_weight(features, dim=2)
    >>> energies = (features @ weight.T).square().sum(dim=0)
    >>> bool(abs(energies[0] / energies[1] - 1) < 1e-3)
    True
    """
    width = features.shape[1]
    if dim > width:
        raise InputError(
            f"encoder.embedding_dim: {dim} is more than the backbone's {width} features, so there are not as many "
            "principal directions; lower it or set initialisation.projection to random"
        )
    energies, directions = torch.linalg.eigh(features.double().T @ features.double())  # ascending
    directions = directions.flip(1)[:, :dim].T  # D F
    spread = energies.flip(0)[:dim].clamp_min(energies.sum() / (2 * width)).sqrt()
    weight = directions / spread[:, None] ** whitening
    return (weight / weight.norm(dim=1).mean()).to(features.dtype)


def class_means(embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"], num_classes: int) -> Float[Tensor, "C D"]:
    """Average the embeddings of each class and scale the means to unit length.

    Parameters
    ----------
    embeddings
        Unit length.
    labels
        Class of each, 0 to C - 1.
    num_classes
        C.

    Returns
    -------
    Tensor
        One row a class; zero for a class without an embedding.

    Examples
    --------
    >>> class_means(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]), num_classes=2)
    tensor([[0.0000, 0.0000],
            [0.7071, 0.7071]])
    """
    sums = torch.zeros(num_classes, embeddings.shape[1], dtype=embeddings.dtype)
    return F.normalize(sums.index_add(0, labels, embeddings), dim=1)
