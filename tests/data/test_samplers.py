"""Batches: each image in turn, classes balanced, a pure function of seed, epoch and batch number."""

from collections import Counter
from cProfile import Profile

import numpy as np
import pytest
from errors import error_of
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.data import BatchSampler

Batches = list[list[tuple[int, int]]]
SEEDS = st.integers(0, 2**31)
LABELS = [0] * 7 + [1] * 2 + [2] * 5 + [3] * 1 + [4] * 9 + [5] * 6


def epoch_of(sampler: BatchSampler, epoch: int = 0, batch: int = 0) -> Batches:
    sampler.set_position(epoch, batch)
    return list(sampler)


def rows_of(batches: Batches) -> list[int]:
    return [row for batch in batches for row, _ in batch]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31))
def test_shuffled_batches_hold_each_image_once_an_epoch(count: int, batch_size: int, seed: int) -> None:
    batches = epoch_of(BatchSampler([row % 3 for row in range(count)], batch_size, seed=seed))
    whole = count // batch_size
    assert [len(batch) for batch in batches] == ([batch_size] * whole if whole else [count])
    assert max(Counter(rows_of(batches)).values()) == 1
    if count % batch_size == 0:
        assert sorted(rows_of(batches)) == list(range(count))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=15), st.integers(1, 5), st.integers(1, 6), SEEDS)
def test_balanced_batches_hold_m_images_of_each_class_in_turn(sizes, images_per_class, classes_a_batch, seed):
    labels = np.repeat(np.arange(len(sizes)) * 10, sizes)  # class numbers need not be contiguous
    sampler = BatchSampler(labels.tolist(), images_per_class * classes_a_batch, images_per_class, seed)
    batches, turns = epoch_of(sampler), np.zeros(len(sizes), dtype=int)
    assert len(batches) == len(sampler) == max(1, len(labels) // (images_per_class * classes_a_batch))
    for batch in batches:
        counts = Counter(labels[rows_of([batch])].tolist())
        assert len(counts) == min(classes_a_batch, len(sizes))  # distinct, and fewer where there are no more
        assert set(counts.values()) == {images_per_class}
        for c in counts:  # an image comes twice only where the class has too few
            repeats = Counter(row for row, _ in batch if labels[row] == c)
            assert max(repeats.values()) == -(-images_per_class // sizes[c // 10])
            turns[c // 10] += 1
        assert np.ptp(turns) <= 1  # no class is more than one turn ahead of another
    drawn = np.bincount(rows_of(batches), minlength=len(labels))
    assert all(np.ptp(drawn[labels == 10 * c]) <= 1 for c in range(len(sizes)))  # and no image of a class


@pytest.mark.parametrize("images_per_class", [None, 2])
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), start=st.integers(0, 8))
def test_starting_from_a_batch_gives_the_tail_of_the_epoch(images_per_class, seed, epoch, start) -> None:
    whole = epoch_of(BatchSampler(LABELS, 4, images_per_class, seed), epoch)
    assert epoch_of(BatchSampler(LABELS, 4, images_per_class, seed), epoch, start) == whole[start:]
    used = BatchSampler(LABELS, 4, images_per_class, seed)
    next(iter(used))  # what was drawn before does not matter
    assert epoch_of(used, epoch) == whole
    others = [whole, epoch_of(used, epoch + 1), epoch_of(BatchSampler(LABELS, 4, images_per_class, seed + 1), epoch)]
    assert len({str(rows_of(batches)) for batches in others}) == 3
    seeds = [seed for batches in others for batch in batches for _, seed in batch]  # of augmentations
    assert len(set(seeds)) == len(seeds)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 6), SEEDS)
def test_batches_by_category(sizes: list[int], classes_a_batch: int, seed: int) -> None:
    """One category a batch, small ones share; as many batches as without, and no class far ahead of another."""
    category = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.arange(12 * len(category)) % len(category)
    arguments = labels, 2 * classes_a_batch, 2, seed
    sampler = BatchSampler(*arguments, categories=[f"kind {number}" for number in category[labels]])
    batches = epoch_of(sampler, epoch=3)
    turns = np.zeros(len(category), dtype=int)
    small = [number for number, size in enumerate(sizes) if size < classes_a_batch]
    if sum(sizes[number] for number in small) < classes_a_batch:  # these and the smallest of the others
        small = np.argsort(sizes, kind="stable")[: len(small) + bool(small)].tolist()
    for batch in batches:
        classes = labels[rows_of([batch])[::2]]
        assert set(Counter(labels[rows_of([batch])].tolist()).values()) == {2}
        assert len(set(category[classes])) == 1 or set(category[classes]) <= set(small)
        turns[classes] += 1
    assert [len(batch) for batch in batches] == [len(batch) for batch in BatchSampler(*arguments)]
    assert np.ptp(turns) <= 2 and turns.sum() == len(batches) * min(classes_a_batch, len(category))
    assert epoch_of(sampler, epoch=3, batch=2) == batches[2:]
    parts = [BatchSampler(*arguments, rank, 3, category[labels]) for rank in range(3)]
    for rank in range(3):
        parts[rank].set_position(3)
    if 2 * len(category) >= 3 and classes_a_batch >= 2:  # each process has an image
        assert [[row for part in batch for row in part] for batch in zip(*parts, strict=True)] == batches


def test_images_per_class_must_divide_the_batch_size() -> None:
    for batch_size, images_per_class in ((8, 3), (2, 4)):
        assert error_of(BatchSampler, LABELS, batch_size, images_per_class).field == "images_per_class"
    assert error_of(BatchSampler, LABELS, 4, categories=LABELS).field == "images_per_class"


@pytest.mark.parametrize("images_per_class", [None, 2])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_parts_of_processes_make_up_the_batches_of_one(images_per_class: int | None, count: int) -> None:
    labels = [row % 5 for row in range(33)]
    whole = list(BatchSampler(labels, 10, images_per_class, seed=3))
    samplers = [BatchSampler(labels, 10, images_per_class, 3, rank, world_size=count) for rank in range(count)]
    sizes = samplers[0].sizes
    for batch, *parts in zip(whole, *samplers, strict=True):
        assert [draw for part in parts for draw in part] == batch
        assert [len(part) for part in parts] == sizes and max(sizes) - min(sizes) < 2


def test_a_process_without_a_part_takes_an_image_that_does_not_count() -> None:
    labels = [0, 1, 2]
    ((first, second, third),) = BatchSampler(labels, 10)
    samplers = [BatchSampler(labels, 10, rank=process, world_size=5) for process in range(5)]
    assert samplers[0].sizes == [0, 1, 0, 1, 1]
    assert [batch for sampler in samplers for batch in sampler] == [[first], [first], [first], [second], [third]]
    balanced = BatchSampler(labels, 8, images_per_class=2, rank=1, world_size=4)
    assert balanced.sizes == [1, 2, 1, 2] and len(next(iter(balanced))) == 2  # three classes for four places


def test_the_work_of_an_epoch_does_not_grow_with_the_classes() -> None:
    """As many calls of functions for 2,000 classes as for 1,000."""
    calls = []
    for num_classes in (1000, 2000):
        sampler = BatchSampler(np.arange(4000) % num_classes, batch_size=64, images_per_class=2)
        (profile := Profile()).runcall(next, iter(sampler))
        calls.append(sum(entry.callcount for entry in profile.getstats()))
    assert calls[0] == pytest.approx(calls[1], abs=20)
