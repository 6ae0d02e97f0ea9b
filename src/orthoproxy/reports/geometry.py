"""How evenly proxies spread over the directions they have: spectrum, effective rank, Welch bound, closest pairs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from orthoproxy.losses import soft_orthogonality

ROWS_AT_ONCE = 1024  # of the C x C matrix of cosines, which is never whole in memory


class Pair(NamedTuple):
    """Two classes and the cosine of their proxies."""

    first: str
    second: str
    cosine: float


def unit_rows(x: Float[np.ndarray, "C D"]) -> Float[np.ndarray, "C D"]:
    """Scale each row to length 1, in float64; a row of zeros stays zero.

    Parameters
    ----------
    x
        Any real matrix.

    Returns
    -------
    numpy.ndarray
        The same directions.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def spectrum(proxies: Float[np.ndarray, "C D"]) -> Float[np.ndarray, " M"]:
    """Compute the singular values of the proxies, scaled to unit rows first.

    Their squares sum to C, one for each proxy. Proxies as orthogonal as possible have M = min(C, D) equal values,
    ``sqrt(C / M)``; proxies that crowd into few directions have a few large values and many small ones.

    Parameters
    ----------
    proxies
        One row a class.

    Returns
    -------
    numpy.ndarray
        M = min(C, D) values, largest first.

    Examples
    --------
    >>> spectrum(np.array([[2.0, 0.0], [0.0, 3.0]]))
    array([1., 1.])
    """
    return np.linalg.svd(unit_rows(proxies), compute_uv=False)


def effective_rank(proxies: Float[np.ndarray, "C D"]) -> float:
    """Count the directions that the proxies really use: ``exp(-sum p log p)`` with ``p = s^2 / sum s^2``.

    Here s are the singular values from `spectrum`. k equal values and zeros otherwise give exactly k.

    Parameters
    ----------
    proxies
        One row a class.

    Returns
    -------
    float
        From 1 to min(C, D); 0 if all proxies are zero.

    References
    ----------
    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007; they take s where this
    takes ``s^2``, the share of the proxies' squared length that lies in a direction.

    Examples
    --------
    >>> round(effective_rank(np.eye(5)), 6)
    5.0
    >>> round(effective_rank(np.ones((5, 3))), 6)  # five times the same direction
    1.0
    """
    energy = spectrum(proxies) ** 2
    share = energy[energy > 0] / max(energy.sum(), np.finfo(np.float64).tiny)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def welch_floor(num_classes: int, dim: int) -> float:
    """Give the least value of ``||P P^T - I||_F^2`` that C unit rows in D dimensions can reach: ``C^2 / D - C``, or 0.

    Up to D rows can be exactly orthogonal; more than D cannot, and the Welch bound says how close they come.

    Parameters
    ----------
    num_classes
        C, at least 1.
    dim
        D, at least 1.

    Returns
    -------
    float
        ``max(0, C^2 / D - C)``.

    References
    ----------
    Welch, "Lower bounds on the maximum cross correlation of signals", IEEE Transactions on Information Theory, 1974.

    Examples
    --------
    >>> welch_floor(100, 384), welch_floor(3, 2)
    (0.0, 1.5)
    """
    return max(0.0, num_classes**2 / dim - num_classes)


def orthogonality_distance(proxies: Float[np.ndarray, "C D"]) -> float:
    """Compute ``||P P^T - I||_F^2`` of the proxies, scaled to unit rows: the sum of all squared cosines between two.

    Parameters
    ----------
    proxies
        One row a class.

    Returns
    -------
    float
        At least `welch_floor`.

    Examples
    --------
    >>> orthogonality_distance(np.ones((3, 2)))  # three equal rows: six ordered pairs of cosine 1
    6.0
    """
    return round(float(soft_orthogonality(torch.from_numpy(proxies.astype(np.float64)))), 9)


def closest_pairs(proxies: Float[np.ndarray, "C D"], classes: Sequence[str], k: int = 10) -> list[Pair]:
    """List the classes whose proxies point the most alike: the largest cosines off the diagonal.

    Parameters
    ----------
    proxies
        One row a class.
    classes
        Their names.
    k
        Length of the list.

    Returns
    -------
    list of Pair
        At most k pairs, the largest cosine first; each pair once, in the order of the classes.

    Examples
    --------
    >>> closest_pairs(np.array([[1.0, 0.0], [0.0, 1.0], [4.0, 3.0]]), ["cat", "car", "dog"], k=1)
    [Pair(first='cat', second='dog', cosine=0.8)]
    """
    best: list[tuple[float, int, int]] = []
    for rows, columns, cosine in _pairs_by_block(proxies):
        top = np.argsort(-cosine, kind="stable")[:k] if len(cosine) <= k else np.argpartition(-cosine, k - 1)[:k]
        found = zip(cosine[top].tolist(), (-rows[top]).tolist(), (-columns[top]).tolist(), strict=True)
        best = heapq.nlargest(k, [*best, *found])
    return [Pair(classes[-first], classes[-second], round(cosine, 12)) for cosine, first, second in best]


def pair_cosines(proxies: Float[np.ndarray, "C D"], most: int = 500_000, seed: int = 0) -> Float[np.ndarray, " P"]:
    """Return the cosines between any two different proxies, or of a sample of them.

    Parameters
    ----------
    proxies
        One row a class.
    most
        Where there are more pairs than this, draw so many with replacement.
    seed
        Of the draw.

    Returns
    -------
    numpy.ndarray
        P = min(C (C - 1) / 2, most) values.

    Examples
    --------
    >>> pair_cosines(np.array([[1.0, 0.0], [0.0, 1.0], [4.0, 3.0]])).round(6)
    array([0. , 0.8, 0.6])
    """
    count = len(proxies)
    if count * (count - 1) // 2 <= most:
        return np.concatenate([np.empty(0), *(cosine for _, _, cosine in _pairs_by_block(proxies))])
    generator = np.random.default_rng(seed)
    first, step = generator.integers(count, size=most), generator.integers(1, count, size=most)
    return row_cosines(proxies, first, proxies, (first + step) % count)


def row_cosines(
    a: Float[np.ndarray, "N D"], of_a: Int[np.ndarray, " P"], b: Float[np.ndarray, "M D"], of_b: Int[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    """Compute the cosines of given pairs of rows, a block at a time.

    Parameters
    ----------
    a, b
        Vectors, one a row.
    of_a, of_b
        Row numbers of each pair.

    Returns
    -------
    numpy.ndarray
        Cosine of ``a[of_a[i]]`` and ``b[of_b[i]]``.

    Examples
    --------
    >>> row_cosines(np.eye(2), np.array([0, 0]), np.eye(2), np.array([0, 1]))
    array([1., 0.])
    """
    blocks = [slice(start, start + 8 * ROWS_AT_ONCE) for start in range(0, len(of_a), 8 * ROWS_AT_ONCE)]
    cosines = [np.einsum("pd,pd->p", unit_rows(a[of_a[block]]), unit_rows(b[of_b[block]])) for block in blocks]
    return np.concatenate([np.empty(0), *cosines])


def structured_order(proxies: Float[np.ndarray, "C D"]) -> Int[np.ndarray, " C"]:
    """Order classes so that alike proxies stand side by side, which makes groups of them visible.

    The order is that of the Fiedler vector: the second-smallest eigenvector of ``diag(W 1) - W``, where W holds the
    similarities ``1 + cosine``. It is the relaxed solution of putting similar things at near places on a line.

    Parameters
    ----------
    proxies
        One row a class.

    Returns
    -------
    numpy.ndarray
        A permutation of 0 to C - 1.

    References
    ----------
    Atkins, Boman and Hendrickson, "A spectral algorithm for seriation", SIAM Journal on Computing, 1998.

    Examples
    --------
    >>> structured_order(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])).tolist() in ([0, 2, 1], [1, 2, 0])
    True
    """
    if len(proxies) < 3:
        return np.arange(len(proxies))
    rows = unit_rows(proxies)
    similarity = 1 + rows @ rows.T
    _, vectors = np.linalg.eigh(np.diag(similarity.sum(axis=1)) - similarity)
    return np.argsort(vectors[:, 1], kind="stable")


def _pairs_by_block(
    proxies: Float[np.ndarray, "C D"],
) -> Iterator[tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"], Float[np.ndarray, " P"]]]:
    """Go through the pairs above the diagonal: their row numbers, column numbers and cosines."""
    units = unit_rows(proxies)
    for start in range(0, len(units), ROWS_AT_ONCE):
        cosine = units[start : start + ROWS_AT_ONCE] @ units[start:].T
        rows, columns = np.triu_indices(len(cosine), k=1, m=cosine.shape[1])
        yield start + rows, start + columns, cosine[rows, columns]
