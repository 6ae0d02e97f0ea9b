"""A training view depends on its row and seed alone, whoever makes it and whatever was drawn before."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from orthoproxy.data import (
    BatchSampler,
    EvaluationImages,
    TrainingImages,
    evaluation_transform,
    folder_table,
    read_image,
    training_transform,
)


@pytest.fixture
def images(image_folder: Path) -> TrainingImages:
    paths = folder_table(image_folder).path.tolist()
    return TrainingImages(paths, [number // 4 for number in range(12)], training_transform(32, jitter=0.3))


def test_a_view_depends_on_row_and_seed_alone(images: TrainingImages) -> None:
    pixels, label = images[5, 123]
    assert (pixels.shape, pixels.dtype, label) == ((3, 32, 32), torch.uint8, 1)
    torch.manual_seed(99)
    assert images[0, 7] is not None
    assert torch.equal(images[5, 123][0], pixels)
    assert not torch.equal(images[5, 124][0], pixels)
    assert not torch.equal(images[6, 123][0], pixels)
    assert torch.equal(images[5, 2**63 - 1][0], images[5, 2**63 - 1][0])


def test_random_states_are_left_as_they_were(images: TrainingImages) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    images[3, 42]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_workers_make_the_same_views(images: TrainingImages) -> None:
    sampler = BatchSampler(images.labels, batch_size=4, images_per_class=2, seed=5)
    epochs = []
    for workers in (0, 2):
        torch.manual_seed(workers)
        sampler.set_position(1)
        epochs.append(list(DataLoader(images, batch_sampler=sampler, num_workers=workers)))
    assert len(epochs[0]) == 3
    for (pixels, labels), (other_pixels, other_labels) in zip(*epochs, strict=True):
        assert torch.equal(pixels, other_pixels)
        assert labels.tolist() == other_labels.tolist()
        assert len(set(labels.tolist())) == 2


def test_evaluation_images_are_the_fixed_view_in_the_order_given(images: TrainingImages) -> None:
    paths = images.images[::-1]
    fixed = EvaluationImages(paths, evaluation_transform(32))
    assert len(fixed) == 12 == len(images)
    for row, path in enumerate(paths):
        assert torch.equal(fixed[row], evaluation_transform(32)(read_image(path)))


def test_another_augmentation_gets_images_as_torchvision_has_them(images: TrainingImages) -> None:
    center = evaluation_transform(32)
    assert torch.equal(
        TrainingImages(images.images, images.labels, center)[4, 1][0], center(read_image(images.images[4]))
    )
