"""Exact comparison of queries with a gallery, block by block, so that memory is bounded and never Q x N."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BYTES_A_PAIR = 64  # similarity, masks and sorted copies that one query-gallery pair needs at the same time


@dataclass(frozen=True)
class Retrieval:
    """Embeddings, and who is searched for among whom.

    Parameters
    ----------
    embeddings
        One row an image, any length; compared by cosine.
    labels
        Class number of each row.
    queries, gallery
        Row numbers; a row may be in both, and is never its own neighbour.
    groups
        Group number of each row, -1 for none: neighbours of the query's own group are left out. None to keep them.

    Raises
    ------
    ValueError
        If an embedding is not finite.

    Examples
    --------
    >>> everyone = np.arange(3)
    >>> retrieval = Retrieval(np.eye(3, dtype=np.float32), np.array([0, 0, 1]), everyone, everyone)
    >>> [len(block.rows) for block in comparisons(retrieval)]
    [3]
    """

    embeddings: Float[np.ndarray, "N D"]
    labels: Int[np.ndarray, " N"]
    queries: Int[np.ndarray, " Q"]
    gallery: Int[np.ndarray, " G"]
    groups: Int[np.ndarray, " N"] | None = None

    def __post_init__(self) -> None:
        finite = np.isfinite(self.embeddings).all(axis=1)
        if not finite.all():
            raise ValueError(f"embeddings: row {int(finite.argmin())} is not finite ({(~finite).sum()} such rows)")


@dataclass(frozen=True)
class Comparison:
    """A block of queries against the whole gallery.

    `similarity` is their cosine in float64. `positive` marks the gallery's images of the query's class, `negative`
    those of others; the query itself and what its group rules out are neither.
    """

    rows: Int[np.ndarray, " b"]
    similarity: Float[Tensor, "b G"]
    positive: Bool[Tensor, "b G"]
    negative: Bool[Tensor, "b G"]


def comparisons(retrieval: Retrieval, memory_mb: float = 512) -> Iterator[Comparison]:
    """Compare the queries with the gallery, in blocks.

    Identical embeddings are compared once, so that exact duplicates get bit-equal similarities whatever the block size.

    Parameters
    ----------
    retrieval
        What to compare.
    memory_mb
        Bound on the memory of a block in MiB; a block has at least one query.

    Yields
    ------
    Comparison
        Blocks of queries, in order.

    Examples
    --------
    >>> everyone = np.arange(2)
    >>> block = next(comparisons(Retrieval(np.eye(2), np.array([0, 0]), everyone, everyone)))
    >>> block.positive  # an image is not its own neighbour
    tensor([[False,  True],
            [ True, False]])
    """
    distinct, copy_of = _distinct_rows(retrieval.embeddings)
    units = unit_rows(distinct)
    candidates, place = np.unique(copy_of[retrieval.gallery], return_inverse=True)
    gallery_units, place = units[torch.from_numpy(candidates)], torch.from_numpy(place)
    labels = torch.from_numpy(retrieval.labels)
    gallery = torch.from_numpy(retrieval.gallery)
    size = max(1, int(memory_mb * 2**20 / (BYTES_A_PAIR * max(1, len(gallery)))))
    for start in range(0, len(retrieval.queries), size):
        rows = retrieval.queries[start : start + size]
        similarity = (units[torch.from_numpy(copy_of[rows])] @ gallery_units.T)[:, place]
        same = labels[rows][:, None] == labels[gallery]
        allowed = torch.from_numpy(rows)[:, None] != gallery
        if retrieval.groups is not None:
            groups = torch.from_numpy(retrieval.groups)
            own = groups[rows][:, None]
            allowed &= (own != groups[gallery]) | (own < 0)
        yield Comparison(rows, similarity, same & allowed, ~same & allowed)


def unit_rows(x: Float[np.ndarray, "N D"]) -> Float[Tensor, "N D"]:
    """Scale each row to length 1, in float64; a row of zeros stays zero.

    Parameters
    ----------
    x
        Finite, of any length.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]], dtype=torch.float64)
    """
    rows = torch.from_numpy(np.ascontiguousarray(x)).double()
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.where(length > 0, 1.0)


def _distinct_rows(x: Float[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, "U D"], Int[np.ndarray, " N"]]:
    """Return the rows that differ from each other in some bit, and which of them each row is."""
    x = np.ascontiguousarray(x + 0.0)  # -0.0 and 0.0 are one number
    as_bytes = x.view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).ravel()
    _, first, copy_of = np.unique(as_bytes, return_index=True, return_inverse=True)
    return x[first], copy_of.ravel()
