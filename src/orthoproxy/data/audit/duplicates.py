"""Images that are there more than once, to the byte or to the eye."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, UInt64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Of 64 bits. Of 400 photographs, all stayed within it when scaled to half and saved as JPEG of quality 75; of 8 million
# pairs of photographs of cars, 19 were within it, and each was one picture twice
NEAR = 4


def exact_duplicates(content: pd.Series) -> list[list[int]]:
    """Group files of the same bytes.

    Parameters
    ----------
    content
        From `scan_images`; empty where an image cannot be read, which is then in no group.

    Returns
    -------
    list of list of int
        Positions, two or more a group.

    Examples
    --------
    >>> exact_duplicates(pd.Series(["5a", "77", "5a", "", ""]))
    [[0, 2]]
    """
    return _groups_of_several(content.to_numpy(), np.flatnonzero(content != ""))


def near_duplicates(content: pd.Series, appearance: pd.Series) -> list[list[int]]:
    """Group images that look alike, and are not all the same file.

    Parameters
    ----------
    content, appearance
        From `scan_images`.

    Returns
    -------
    list of list of int
        Positions, two or more a group.

    Examples
    --------
    >>> near_duplicates(pd.Series(["5a", "77", "b1"]), pd.Series([0b1011, 0b1000, 2**40 - 1], dtype="uint64"))
    [[0, 1]]
    """
    readable = np.flatnonzero(content != "")
    groups = np.zeros(len(content), dtype=np.int64)
    groups[readable] = near_groups(appearance.to_numpy()[readable])
    names = content.to_numpy()
    return [group for group in _groups_of_several(groups, readable) if len(set(names[group])) > 1]


def near_groups(hashes: UInt64[np.ndarray, " N"], distance: int = NEAR) -> Int[np.ndarray, " N"]:
    """Number the groups of hashes that hang together by steps of a few bits.

    Two hashes that differ in at most d bits are equal in one of d + 1 sets of bits, whatever the sets (there are more
    sets than differences). So hashes are sorted by the bits of one set after the other, and only those that are equal
    there are compared. Equal hashes count once, and memory grows with N alone.

    Parameters
    ----------
    hashes
        Unsigned numbers of 64 bits.
    distance
        Number of bits that may differ in a step.

    Returns
    -------
    numpy.ndarray
        A number for each hash; those of a group have the same.

    Examples
    --------
    >>> near_groups(np.array([0b0000, 0b1111, 0b0011, 2**40 - 1], dtype=np.uint64), distance=2).tolist()
    [0, 0, 0, 1]
    """
    distinct, position = np.unique(hashes, return_inverse=True)
    group = np.arange(len(distinct))
    for first in range(distance + 1):
        bits = np.uint64(sum(1 << bit for bit in range(first, 64, distance + 1)))
        order = np.argsort(distinct & bits)
        group = _join(distinct, order, (distinct & bits)[order], group, distance)
    return group[position]


def _join(
    distinct: UInt64[np.ndarray, " N"],
    order: Int[np.ndarray, " N"],
    keys: UInt64[np.ndarray, " N"],
    group: Int[np.ndarray, " N"],
    distance: int,
) -> Int[np.ndarray, " N"]:
    """Join the groups of hashes with an equal key, sorted by it, that differ in few bits."""
    left, step = np.arange(len(order)), 0
    while len(left):  # compare each with the one so many places on, as long as keys are equal
        step += 1
        left = left[left + step < len(order)]
        left = left[keys[left] == keys[left + step]]
        one, other = order[left], order[left + step]
        new = (group[one] != group[other]) & _within(distinct[one] ^ distinct[other], distance)
        if new.any():
            ends = group[one[new]], group[other[new]]
            graph = coo_array((np.ones(len(ends[0])), ends), shape=(len(group), len(group)))
            group = connected_components(graph, directed=False)[1][group]
    return group


def _within(bits: UInt64[np.ndarray, " N"], distance: int) -> Bool[np.ndarray, " N"]:
    for _ in range(distance):
        bits = bits & (bits - np.uint64(1))  # takes the lowest bit away
    return bits == 0


def _groups_of_several(names: np.ndarray, positions: Int[np.ndarray, " N"]) -> list[list[int]]:
    """Group positions by name, and keep the groups of two or more."""
    groups = pd.Series(positions).groupby(names[positions], sort=False)
    return [[int(position) for position in group] for _, group in groups if len(group) > 1]


def relation(rows: pd.DataFrame) -> str:
    """Say how far apart copies of an image are.

    Parameters
    ----------
    rows
        The rows of a table that show the same.

    Returns
    -------
    str
        ``across splits`` if there are several, else ``across classes`` if there are several, else ``within a class``.

    Examples
    --------
    >>> relation(pd.DataFrame({"label": ["cat", "dog"], "split": ["train", "train"]}))
    'across classes'
    """
    if rows["split"].nunique() > 1:
        return "across splits"
    return "across classes" if rows["label"].nunique() > 1 else "within a class"
