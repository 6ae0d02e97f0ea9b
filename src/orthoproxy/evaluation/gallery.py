"""A gallery to compare queries with in single precision, and what single precision leaves open in double."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthoproxy.evaluation.neighbours import Retrieval, unit_rows

BYTES_A_PAIR = 12  # that one query-gallery pair needs: its similarity, and room for what is chosen from it
PAIRS_AT_ONCE = 2**10  # that are compared in float64: their vectors stay in the cache
GROUP = 32  # neighbouring columns of which the largest is looked at first


class Gallery:
    """The gallery of a retrieval, ready to be compared with blocks of queries.

    Parameters
    ----------
    retrieval
        What to compare.
    memory_mb
        Bound on the memory of a block in MiB; a block has at least one query.
    device
        Where similarities are computed in float32: a CUDA device, or else the processor, since others lack float64.

    Attributes
    ----------
    block
        Queries that fit the memory.
    error
        What a similarity in float32 can be off.

    Examples
    --------
    >>> everyone = np.arange(2)
    >>> gallery = Gallery(Retrieval(np.eye(2), np.array([0, 1]), everyone, everyone))
    >>> gallery.compare(np.array([0]))  # not with itself
    tensor([[-inf, 0.]])
    """

    def __init__(self, retrieval: Retrieval, memory_mb: float = 512, device: str = "cpu") -> None:
        self.retrieval, self.device = retrieval, device if torch.device(device).type == "cuda" else "cpu"
        self.columns = torch.from_numpy(retrieval.gallery)
        self.block = max(1, int(memory_mb * 2**20 / (BYTES_A_PAIR * max(1, len(self.columns)))))
        self.units = unit_rows(retrieval.embeddings).float().to(self.device)  # N D
        everyone = np.array_equal(retrieval.gallery, np.arange(len(self.units)))
        self.candidates = self.units if everyone else self.units[self.columns.to(self.device)]
        # new memory for each block would cost time
        self.room = torch.empty(min(self.block, len(retrieval.queries)), len(self.columns), device=self.device)
        self.by_group = None if retrieval.groups is None else Members(retrieval.groups[retrieval.gallery])
        self.place = torch.full((len(self.units),), -1)  # of a row in the gallery
        self.place[self.columns] = torch.arange(len(self.columns))
        # of D products and sums, and of rounding both vectors; PyTorch may have been told to round them further
        self.error = (self.units.shape[1] + 8) * torch.finfo(torch.float32).eps / 2
        if torch.get_float32_matmul_precision() != "highest":
            self.error += torch.finfo(torch.bfloat16).eps

    def compare(self, rows: Int[np.ndarray, " b"]) -> Float[Tensor, "b G"]:
        """Return the similarities of queries with the gallery; -inf with themselves and members of their group.

        Parameters
        ----------
        rows
            At most `block`. What is returned is overwritten by the next call.
        """
        similarity = self.room[: len(rows)]
        torch.mm(self.units[torch.from_numpy(rows).to(self.device)], self.candidates.T, out=similarity)
        query, column = self._not_to_be_found(rows)
        similarity[query.to(self.device), column.to(self.device)] = -torch.inf
        return similarity

    def _not_to_be_found(self, rows: Int[np.ndarray, " b"]) -> tuple[Tensor, Tensor]:
        own = self.place[torch.from_numpy(rows)]
        query = torch.arange(len(rows))[own >= 0]
        if self.by_group is None or self.retrieval.groups is None:
            return query, own[own >= 0]
        group = self.retrieval.groups[rows]
        of_group, column = self.by_group.pairs(np.where(group < 0, np.iinfo(group.dtype).min, group))
        return torch.cat([query, of_group]), torch.cat([own[own >= 0], column])

    def exact(
        self, rows: Int[np.ndarray, " b"], query: Int[Tensor, " n"], column: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Compute similarities in float64, each from its two vectors alone, so that equal vectors have equal ones.

        Parameters
        ----------
        rows
            As in `compare`.
        query, column
            Pairs: places among the rows, and among the gallery.
        """
        ours, theirs = rows[query.cpu().numpy()], self.retrieval.gallery[column.cpu().numpy()]
        x, parts = self.retrieval.embeddings, [torch.empty(0, dtype=torch.float64, device="cpu")]
        for start in range(0, len(ours), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            parts.append((unit_rows(x[ours[part]]) * unit_rows(x[theirs[part]])).sum(dim=1))
        return torch.cat(parts).to(self.device)


class Members:
    """Which columns have a key: a class or a group.

    Parameters
    ----------
    keys
        Of the columns.

    Examples
    --------
    >>> Members(np.array([7, 5, 7])).pairs(np.array([5, 6, 7]))
    (tensor([0, 2, 2]), tensor([1, 0, 2]))
    """

    def __init__(self, keys: Int[np.ndarray, " G"]) -> None:
        self.columns = np.argsort(keys, kind="stable")
        self.keys = keys[self.columns]

    def pairs(self, keys: Int[np.ndarray, " b"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Pair the position of each key asked for with every column that has it.

        Parameters
        ----------
        keys
            Asked for.
        """
        first = np.searchsorted(self.keys, keys)
        size = torch.from_numpy(np.searchsorted(self.keys, keys, side="right") - first)
        query = torch.repeat_interleave(torch.arange(len(keys)), size)
        return query, torch.from_numpy(self.columns)[torch.from_numpy(first)[query] + count_up(size)]


def count_up(sizes: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Return 0, 1, ... up to each size, one after the other.

    Parameters
    ----------
    sizes
        0 or more.

    Examples
    --------
    >>> count_up(torch.tensor([2, 0, 3]))
    tensor([0, 1, 0, 1, 2])
    """
    ends = sizes.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.arange(total, device=sizes.device) - torch.repeat_interleave(ends - sizes, sizes)


def largest(x: Float[Tensor, "b G"], k: int) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Find the k largest of each row, largest first: they lie in the k groups of columns whose maxima are the largest.

    Parameters
    ----------
    x
        Similarities.
    k
        At most G.

    Returns
    -------
    values, columns
        As of `torch.topk`, which takes several times as long.

    Examples
    --------
    >>> largest(torch.tensor([[0.2, 0.9, 0.5]]), k=2)
    (tensor([[0.9000, 0.5000]]), tensor([[1, 2]]))
    """
    groups = x.shape[1] // GROUP
    if groups < 4 * k:
        values, columns = x.topk(k, dim=1)
        return values, columns
    chosen = x[:, : groups * GROUP].unflatten(1, (groups, GROUP)).amax(dim=2).topk(k, dim=1).indices
    columns = (chosen[:, :, None] * GROUP + torch.arange(GROUP, device=x.device)).flatten(1)
    rest = torch.arange(groups * GROUP, x.shape[1], device=x.device).expand(len(x), -1)
    columns = torch.cat([columns, rest], dim=1)
    values, places = x.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, places)
