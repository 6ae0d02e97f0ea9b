"""Seeded batches of images that can be resumed at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, Integer
from torch.utils.data import Sampler

from orthoproxy.core.distributed import split_sizes
from orthoproxy.core.errors import InputError
from orthoproxy.data.table import integer_labels

SampleSeed = tuple[int, int]  # row of the table, seed of its augmentation


class BatchSampler(Sampler[list[SampleSeed]]):
    """Batches of (row, augmentation seed), a pure function of seed, epoch and batch number.

    Batches are either shuffled, with every image once an epoch; or balanced, with `images_per_class` images of each of
    ``batch_size / images_per_class`` classes. An epoch has the same number of batches in both cases. Balanced batches
    take classes, and the images of a class, in turn; a class with too few images repeats them, and with too few classes
    batches are smaller.

    With `categories`, the classes of a balanced batch are of one category, again in turn; a category has batches in
    proportion to its classes. Categories with fewer classes than a batch share batches, where classes of a category
    stay together; if all of them are too few for a batch, the smallest of the other categories joins them.

    With several processes, each takes its slice of every batch, so images and views of a batch do not depend on the
    number of processes. A process whose slice is empty takes the first image, since a network needs at least one;
    `sizes` tells that it does not count.

    Parameters
    ----------
    labels
        Class number of each row, of any integer type.
    batch_size
        B, summed over processes. The last, smaller batch of an epoch is dropped, unless it is the only one.
    images_per_class
        Images of a class in a batch; None for shuffled batches.
    seed
        The same seed gives the same batches.
    rank, world_size
        Index of this process, from 0, and number of processes.
    categories
        Category of each row, the same for all rows of a class; None to draw from all classes.

    Raises
    ------
    InputError
        If labels are no integers, or `images_per_class` does not divide `batch_size` or is None with categories.

    Examples
    --------
    >>> sampler = BatchSampler([0, 0, 0, 1, 1, 2], batch_size=4, images_per_class=2, seed=0)
    >>> batch = next(iter(sampler))
    >>> sorted(sampler.labels[row].item() for row, _ in batch)  # two images of each of two classes
    [0, 0, 2, 2]
    """

    def __init__(
        self,
        labels: Sequence[int] | Integer[np.ndarray, " N"],
        batch_size: int,
        images_per_class: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        categories: Sequence[object] | np.ndarray | None = None,
    ) -> None:
        if categories is not None and not images_per_class:
            raise InputError("missing", field="images_per_class", expected="a number, as batches are by category")
        if images_per_class and batch_size % images_per_class:
            raise InputError(f"{images_per_class} does not divide batch_size {batch_size}", field="images_per_class")
        self.labels, self.batch_size = integer_labels(labels), batch_size
        self.images_per_class, self.seed = images_per_class, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.batch = 0, 0  # where the next iteration starts
        _, first, self._classes, self._class_sizes = np.unique(
            self.labels, return_index=True, return_inverse=True, return_counts=True
        )
        self._class_starts = np.cumsum(self._class_sizes) - self._class_sizes
        self._classes_per_batch = min(batch_size // (images_per_class or 1), len(first))
        of_class = np.zeros(len(first)) if categories is None else np.asarray(categories)[first]
        _, self._category = np.unique(of_class, return_inverse=True)
        self._pools = _pools(self._category, self._classes_per_batch)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return max(1, len(self.labels) // self.batch_size)

    @property
    def sizes(self) -> list[int]:
        """Number of images of a batch for each process; the same for all batches."""
        rows = self.images_per_class * len(self._class_sizes) if self.images_per_class else len(self.labels)
        return split_sizes(min(self.batch_size, rows), self.world_size)

    def __iter__(self) -> Iterator[list[SampleSeed]]:
        """Yield the batches of epoch `self.epoch`, from number `self.batch` on."""
        generator = np.random.default_rng((self.seed, self.epoch))
        batches = self._balanced(generator) if self.images_per_class else self._shuffled(generator)
        start, end = sum(self.sizes[: self.rank]), sum(self.sizes[: self.rank + 1])
        for number, rows in enumerate(batches):
            seeds = generator.integers(2**63, size=len(rows))
            if number >= self.batch:
                samples = list(zip(rows.tolist(), seeds.tolist(), strict=True))
                yield samples[start:end] or samples[:1]

    def _shuffled(self, generator: np.random.Generator) -> Iterator[Int[np.ndarray, " B"]]:
        order = generator.permutation(len(self.labels))
        for number in range(len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]

    def _balanced(self, generator: np.random.Generator) -> Iterator[Int[np.ndarray, " B"]]:
        assert self.images_per_class is not None
        classes_per_batch = self._classes_per_batch
        of_categories = np.random.default_rng((self.seed, self.epoch, 1))  # apart: without categories nothing changes
        members = np.lexsort((generator.random(len(self.labels)), self._classes))  # by class, shuffled within
        turns = np.zeros(len(self._class_sizes), dtype=int)
        queues = [np.empty(0, dtype=int) for _ in self._pools]
        shares = classes_per_batch / np.array([len(pool) for pool in self._pools])  # of a pool in a batch
        due = of_categories.random(len(shares)) * shares
        for _ in range(len(self)):
            number = int(due.argmin())
            due[number] += shares[number]
            pool, queue = self._pools[number], queues[number]
            if len(queue) < classes_per_batch:  # next round; no class may be in a batch twice, so those queued go last
                order = pool[generator.permutation(len(pool))]
                places = of_categories.permutation(self._category.max() + 1)
                order = order[np.argsort(places[self._category[order]], kind="stable")]  # by category
                queued = np.isin(order, queue)
                queue = np.concatenate([queue, order[~queued], order[queued]])
            chosen, queues[number] = queue[:classes_per_batch], queue[classes_per_batch:]
            places = turns[chosen, None] * self.images_per_class + np.arange(self.images_per_class)
            turns[chosen] += 1
            yield members[self._class_starts[chosen, None] + places % self._class_sizes[chosen, None]].reshape(-1)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Start the next iteration at this batch of this epoch, both counted from 0."""
        self.epoch, self.batch = epoch, batch


def _pools(category: Int[np.ndarray, " C"], classes_per_batch: int) -> list[Int[np.ndarray, " c"]]:
    """Return the classes of each category; categories too small for a batch are put together."""
    sizes = np.bincount(category)
    small = np.argsort(sizes, kind="stable")[: (sizes < classes_per_batch).sum()]
    if 0 < sizes[small].sum() < classes_per_batch:
        small = np.argsort(sizes, kind="stable")[: len(small) + 1]
    pool = np.arange(len(sizes))
    pool[small] = -1
    order = np.argsort(pool[category], kind="stable")
    return np.split(order, np.flatnonzero(np.diff(pool[category][order])) + 1)
