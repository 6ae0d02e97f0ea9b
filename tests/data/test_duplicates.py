"""Groups of images that are there more than once, against comparing all with all."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.data.audit.duplicates import exact_duplicates, hash_components, near_duplicates, relation


def groups_by_brute_force(hashes: list[int], distance: int) -> set[frozenset[int]]:
    """Compare all with all, and join until nothing changes."""
    groups = [{number} for number in range(len(hashes))]
    for one in range(len(hashes)):
        for other in range(one):
            if (hashes[one] ^ hashes[other]).bit_count() <= distance:
                joined = groups[one] | groups[other]
                for member in joined:
                    groups[member] = joined
    return {frozenset(group) for group in groups}


@st.composite
def related_hashes(draw: st.DrawFn) -> list[int]:
    """Numbers of 64 bits, some of them a few bits away from others."""
    hashes = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
    for _ in range(draw(st.integers(0, 25))):
        flipped = draw(st.sets(st.integers(0, 63), max_size=7))
        hashes.append(draw(st.sampled_from(hashes)) ^ sum(1 << bit for bit in flipped))
    return hashes


@given(related_hashes(), st.integers(0, 6))
def test_groups_are_those_of_comparing_all_with_all(hashes: list[int], distance: int) -> None:
    numbers = hash_components(np.array(hashes, dtype=np.uint64), distance)
    found = {frozenset(np.flatnonzero(numbers == number).tolist()) for number in set(numbers.tolist())}
    assert found == groups_by_brute_force(hashes, distance)


@pytest.mark.parametrize(
    "hashes",
    [
        np.zeros(20_000, dtype=np.uint64),
        np.arange(2_000, dtype=np.uint64) << np.uint64(40),
        np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64),
    ],
    ids=["flat", "similar", "different"],
)
def test_memory_is_not_that_of_all_pairs(hashes: np.ndarray) -> None:
    tracemalloc.start()
    assert len(hash_components(hashes)) == len(hashes)
    assert tracemalloc.get_traced_memory()[1] < 10e6  # all pairs would be 0.5 GB and more
    tracemalloc.stop()


def test_files_of_the_same_bytes_are_grouped_unless_unreadable() -> None:
    assert exact_duplicates(pd.Series(["5a", "", "77", "5a", "", "5a"])) == [[0, 3, 5]]
    assert exact_duplicates(pd.Series([], dtype=str)) == []


def test_what_looks_alike_only_because_it_is_the_same_file_is_no_near_duplicate() -> None:
    content = pd.Series(["5a", "5a", "77", "", "b1", "b1", "c3"])
    appearance = pd.Series([7, 7, 2**50 - 1, 2**50 - 1, 0xFF00000000, 0xFF00000000, 0xFF00000001], dtype="uint64")
    assert near_duplicates(content, appearance) == [[4, 5, 6]]


def test_the_farthest_relation_counts() -> None:
    rows = pd.DataFrame({"label": ["a", "a", "b", "c"], "split": ["train", "train", "train", "test"]})
    assert relation(rows[:2]) == "within a class"
    assert relation(rows[:3]) == "across classes"
    assert relation(rows) == "across splits"
