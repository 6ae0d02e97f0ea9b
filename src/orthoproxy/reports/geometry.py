"""Geometry of proxies and embeddings, in blocks of rows: memory is linear in the number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import entropy

from orthoproxy.evaluation import Retrieval, nearest_neighbors
from orthoproxy.evaluation.retrieval import unit_rows
from orthoproxy.losses.soft_orthogonality import gram_of_dims, soft_orthogonality

BLOCK_MB = 64  # memory of a block of cosines, in MiB
# At most this many cosines are computed between proxies. Up to 50,000 classes that is all of them; with more, a random
# sample of proxies is compared with all others, 2,500 of 1,000,000 for example.
MAX_COSINES = 50_000**2


class Pair(NamedTuple):
    """Two classes and the cosine of their proxies."""

    first: str
    second: str
    cosine: float


def spectrum(proxies: Float[np.ndarray, "C D"]) -> Float[np.ndarray, " M"]:
    """Compute the M = min(C, D) singular values of unit rows, largest first; evenly spread ones are all sqrt(C / M)."""
    gram = gram_of_dims(torch.from_numpy(proxies).double(), normalize=True)
    return np.sqrt(np.linalg.eigvalsh(gram.numpy())[::-1][: min(proxies.shape)].clip(min=0))


def effective_rank(proxies: Float[np.ndarray, "C D"]) -> float:
    """Compute ``exp(-sum p log p)`` with ``p = s^2 / sum s^2`` and s from `spectrum`: k for k equal singular values."""
    # after Roy and Vetterli, "The effective rank", EUSIPCO 2007, who use s instead of s^2, the squared length
    energy = spectrum(proxies) ** 2
    return float(np.exp(entropy(energy))) if energy.any() else 0.0


def welch_floor(num_classes: int, dim: int) -> float:
    """Return ``max(0, C^2 / D - C)``, the least ``||P P^T - I||_F^2`` of C unit rows in D dimensions (Welch, 1974)."""
    return max(0.0, num_classes**2 / dim - num_classes)


def orthogonality_distance(proxies: Float[np.ndarray, "C D"]) -> float:
    """Compute ``||P P^T - I||_F^2`` of the proxies, scaled to unit rows: the sum of all squared cosines of two."""
    return float(soft_orthogonality(torch.from_numpy(proxies).double()))


def compare_proxies(
    proxies: Float[np.ndarray, "C D"],
    classes: Sequence[str],
    k: int = 10,
    max_cosines: int = MAX_COSINES,
    block_mb: float = BLOCK_MB,
) -> tuple[list[Pair], Float[np.ndarray, " R"]]:
    """Compare proxies, or a random sample, with all others: the k closest pairs, and the largest cosine of each."""
    count = len(proxies)
    if count < 2:
        return [], np.empty(0)
    rows = np.arange(count)
    if count**2 > max_cosines:
        rows = np.sort(np.random.default_rng(0).choice(count, size=max_cosines // count, replace=False))
    retrieval = Retrieval(proxies, np.zeros(count, dtype=int), rows, np.arange(count))
    others, cosines = nearest_neighbors(retrieval, min(k, count - 1), block_mb)
    pairs = np.sort(np.stack([rows.repeat(others.shape[1]), others.ravel()], axis=1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)  # a pair may be found twice, once from either end
    cosine = cosines.ravel()[first]
    best = np.argsort(-cosine.round(9), kind="stable")[:k]
    closest = [
        Pair(classes[int(a)], classes[int(b)], round(float(x), 12))
        for (a, b), x in zip(pairs[best], cosine[best], strict=True)
    ]
    return closest, cosines[:, 0]


def nearest_rows(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "C D"], block_mb: float = BLOCK_MB
) -> Int[np.ndarray, " N"]:
    """Return for each row of `x` the row of `y` with the largest cosine."""
    both = np.concatenate([x, y])
    queries, gallery = np.arange(len(x)), np.arange(len(x), len(both))
    retrieval = Retrieval(both, np.zeros(len(both), dtype=int), queries, gallery)
    return nearest_neighbors(retrieval, 1, block_mb)[0][:, 0] - len(x)


def pair_cosines(proxies: Float[np.ndarray, "C D"], max_proxies: int = 1000, seed: int = 0) -> Float[np.ndarray, " P"]:
    """Return the cosines of all pairs of proxies, or of `max_proxies` random ones where there are more."""
    rows = np.random.default_rng(seed).permutation(len(proxies))[:max_proxies]
    units = unit_rows(proxies[rows])
    return (units @ units.T)[np.triu_indices(len(units), k=1)]
