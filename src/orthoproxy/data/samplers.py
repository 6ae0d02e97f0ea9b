"""Seeded batches of images that can be resumed at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

from orthoproxy.core.distributed import split_sizes
from orthoproxy.core.errors import InputError

SampleSeed = tuple[int, int]  # row of the table, seed of its augmentation


class BatchSampler(Sampler[list[SampleSeed]]):
    """Batches of (row, augmentation seed), a pure function of seed, epoch and batch number.

    Batches are either shuffled, with every image once an epoch; or balanced, with `images_per_class` images of each of
    ``batch_size / images_per_class`` classes. An epoch has the same number of batches in both cases. Balanced batches
    take classes, and the images of a class, in turn; a class with too few images repeats them, and with too few classes
    batches are smaller.

    With several processes, each takes its slice of every batch, so images and views of a batch do not depend on the
    number of processes. A process whose slice is empty takes the first image, since a network needs at least one;
    `sizes` tells that it does not count.

    Parameters
    ----------
    labels
        Class number of each row.
    batch_size
        B, summed over processes. The last, smaller batch of an epoch is dropped, unless it is the only one.
    images_per_class
        Images of a class in a batch; None for shuffled batches.
    seed
        The same seed gives the same batches.
    rank, world_size
        Index of this process, from 0, and number of processes.

    Raises
    ------
    InputError
        If `images_per_class` does not divide `batch_size`.

    Examples
    --------
    >>> sampler = BatchSampler([0, 0, 0, 1, 1, 2], batch_size=4, images_per_class=2, seed=0)
    >>> batch = next(iter(sampler))
    >>> sorted(sampler.labels[row].item() for row, _ in batch)  # two images of each of two classes
    [0, 0, 2, 2]
    """

    def __init__(
        self,
        labels: Sequence[int] | Int[np.ndarray, " N"],
        batch_size: int,
        images_per_class: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if images_per_class and batch_size % images_per_class:
            raise InputError(f"{images_per_class} does not divide batch_size {batch_size}", field="images_per_class")
        self.labels, self.batch_size = np.asarray(labels), batch_size
        self.images_per_class, self.seed = images_per_class, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.batch = 0, 0  # where the next iteration starts
        _, self._classes, self._class_sizes = np.unique(self.labels, return_inverse=True, return_counts=True)
        self._class_starts = np.cumsum(self._class_sizes) - self._class_sizes

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
        num_classes = len(self._class_sizes)
        classes_per_batch = min(self.batch_size // self.images_per_class, num_classes)
        members = np.lexsort((generator.random(len(self.labels)), self._classes))  # by class, shuffled within
        turns, queue = np.zeros(num_classes, dtype=int), np.empty(0, dtype=int)
        for _ in range(len(self)):
            if len(queue) < classes_per_batch:  # next round; no class may be in a batch twice, so those queued go last
                order = generator.permutation(num_classes)
                queued = np.isin(order, queue)
                queue = np.concatenate([queue, order[~queued], order[queued]])
            chosen, queue = queue[:classes_per_batch], queue[classes_per_batch:]
            places = turns[chosen, None] * self.images_per_class + np.arange(self.images_per_class)
            turns[chosen] += 1
            yield members[self._class_starts[chosen, None] + places % self._class_sizes[chosen, None]].reshape(-1)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Start the next iteration at this batch of this epoch, both counted from 0."""
        self.epoch, self.batch = epoch, batch
