"""Groups of images that are there more than once, against comparing all with all, and images that cannot be read."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from errors import error_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from orthoproxy.core.environment import file_versions
from orthoproxy.data import make_table
from orthoproxy.data.audit import duplicates
from orthoproxy.data.audit.duplicates import duplicates_across_splits, hash_components
from orthoproxy.data.audit.scan import drop_rows, find_unreadable


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


def test_the_same_bytes_in_several_splits_are_found(tmp_path: Path, monkeypatch) -> None:
    """Beside files of the same size, and with the same bytes in the middle; those of other sizes are not read."""
    one, end, middle = (b"a" * 9000, b"a" * 8999 + b"b", b"a" * 4500 + b"b" * 4500)
    files = [one, end, middle, one, end, b"short", one, middle, b"", b"", b"of its own"]
    splits = ["train", "train", "train", "test", "train", "test", "validation", "test", "train", "test", "test"]
    paths = [str(tmp_path / f"{number}.png") for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        Path(path).write_bytes(content)
    sizes, read, hash_file = file_versions(paths)[:, 0], set(), duplicates._hash_file
    monkeypatch.setattr(duplicates, "_hash_file", lambda path, size: read.add(path) or hash_file(path, size))
    assert sorted(duplicates_across_splits(paths, splits, sizes)) == [[0, 3, 6], [2, 7]]
    assert read == {*paths[:5], *paths[6:8]}
    assert duplicates_across_splits(paths, ["train"] * len(paths), sizes) == []
    assert duplicates_across_splits([*paths[:2], "gone", *paths[3:]], splits, sizes) == [[0, 3, 6]]


def test_a_split_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    good, missing = str(tmp_path / "good.png"), str(tmp_path / "missing.png")
    Image.new("L", (30, 50)).save(good)
    for table in (
        make_table([good, missing], ["a", "b"], split=["train", "test"]),
        make_table([missing], ["a"], "test"),
    ):
        assert error_of(drop_rows, table, find_unreadable(table)).path == missing
