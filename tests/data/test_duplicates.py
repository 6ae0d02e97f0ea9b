"""Groups of images that are there more than once, against comparing all with all."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.data.audit.duplicates import hash_components


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


@pytest.mark.parametrize("hashes", [
    np.zeros(20_000, dtype=np.uint64), np.arange(2_000, dtype=np.uint64) << np.uint64(40),
    np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64),
], ids=["flat", "similar", "different"])  # fmt: skip
def test_memory_is_not_that_of_all_pairs(hashes: np.ndarray) -> None:
    tracemalloc.start()
    assert len(hash_components(hashes)) == len(hashes)
    assert tracemalloc.get_traced_memory()[1] < 10e6  # all pairs would be 0.5 GB and more
    tracemalloc.stop()
