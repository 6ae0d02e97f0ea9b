"""Which images make a batch: seeded, and able to start again from any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from orthoproxy.core.distributed import split_sizes

SampleSeed = tuple[int, int]  # row of the table, seed of its augmentation


class BatchSampler(Sampler[list[SampleSeed]]):
    """Batches of (row, augmentation seed), a pure function of seed, epoch and batch number.

    Two kinds: shuffled, every image once an epoch; or `images_per_class` images of each of ``batch_size / images_per_class`` classes,
    where an epoch is as many batches as there would be shuffled ones, classes and the images of a class come round in
    turn, a class with fewer images repeats them, and with fewer classes than places a batch is smaller.

    With several processes each takes its part of every batch, so that the images and views of a batch do not depend on
    how many there are. Where a batch has fewer images than there are processes, one without a part takes the first
    image, since a network cannot be applied to nothing; `sizes` says that it is not to count.

    Parameters
    ----------
    labels
        Class number of each row.
    batch_size
        B, of all processes together. The last, smaller batch of an epoch is left out, unless it would be the only one.
    images_per_class
        M, the images of a class in a batch; None for shuffled batches.
    seed
        With the same seed, the same batches.
    process, of
        Which process takes the batches, from 0, and of how many.

    Raises
    ------
    ValueError
        If `images_per_class` does not divide `batch_size`.

    Examples
    --------
    >>> sampler = BatchSampler([0, 0, 0, 1, 1, 2], batch_size=4, images_per_class=2, seed=0)
    >>> batch = next(iter(sampler))
    >>> sorted(sampler.labels[row].item() for row, _ in batch)  # two images of each of two classes
    [0, 0, 1, 1]
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        images_per_class: int | None = None,
        seed: int = 0,
        process: int = 0,
        of: int = 1,
    ) -> None:
        self.labels = np.asarray(labels)
        self.batch_size = batch_size
        self.images_per_class, self.seed = images_per_class, seed
        self.process, self.of = process, of
        self.epoch, self.batch = 0, 0  # where the next iteration starts
        if images_per_class and batch_size % images_per_class:
            raise ValueError(f"images_per_class {images_per_class} does not divide batch_size {batch_size}")

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return max(1, len(self.labels) // self.batch_size)

    @property
    def sizes(self) -> list[int]:
        """How many images of a batch each process has; all batches are alike."""
        rows = len(self.labels)
        if self.images_per_class:
            rows = self.images_per_class * len(np.unique(self.labels))
        return split_sizes(min(self.batch_size, rows), self.of)

    def __iter__(self) -> Iterator[list[SampleSeed]]:
        """Yield the batches of epoch `self.epoch`, from number `self.batch` on."""
        generator = np.random.default_rng((self.seed, self.epoch))
        batches = self._balanced(generator) if self.images_per_class else self._shuffled(generator)
        start, end = sum(self.sizes[: self.process]), sum(self.sizes[: self.process + 1])
        for number, rows in enumerate(batches):
            seeds = generator.integers(2**63, size=len(rows))
            if number >= self.batch:
                draws = list(zip(rows.tolist(), seeds.tolist(), strict=True))
                yield draws[start:end] or draws[:1]

    def _shuffled(self, generator: np.random.Generator) -> Iterator[np.ndarray]:
        order = generator.permutation(len(self.labels))
        for number in range(len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]

    def _balanced(self, generator: np.random.Generator) -> Iterator[np.ndarray]:
        assert self.images_per_class is not None
        members = [generator.permutation(np.flatnonzero(self.labels == c)) for c in np.unique(self.labels)]
        classes_a_batch = min(self.batch_size // self.images_per_class, len(members))
        turns = np.zeros(len(members), dtype=int)  # how often each class has come round
        for _ in range(len(self)):
            chosen = np.lexsort((generator.random(len(members)), turns))[:classes_a_batch]
            takes = turns[chosen, None] * self.images_per_class + np.arange(self.images_per_class)
            turns[chosen] += 1
            yield np.concatenate([members[c].take(take, mode="wrap") for c, take in zip(chosen, takes, strict=True)])

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Start the next iteration at a batch of an epoch.

        Parameters
        ----------
        epoch, batch
            Counted from 0.
        """
        self.epoch, self.batch = epoch, batch
