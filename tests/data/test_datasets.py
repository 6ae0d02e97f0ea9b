"""A training view depends on its row and seed alone, whoever makes it and whatever was drawn before."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from orthoproxy.data import (
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


def random_states() -> list[object]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]


def test_a_view_depends_on_row_and_seed_alone_and_leaves_random_states(images: TrainingImages) -> None:
    pixels, label = images[5, 123]
    assert (pixels.shape, pixels.dtype, label) == ((3, 32, 32), torch.uint8, 1)
    torch.manual_seed(99)
    before = random_states()
    assert torch.equal(images[5, 123][0], pixels)
    assert not torch.equal(images[5, 124][0], pixels)
    assert not torch.equal(images[6, 123][0], pixels)
    assert torch.equal(images[5, 2**63 - 1][0], images[5, 2**63 - 1][0])
    assert random_states() == before


def test_a_fixed_view_is_that_of_the_image_read_as_it_is(images: TrainingImages) -> None:
    paths, transform = list(images.files)[::-1], evaluation_transform(32)
    fixed, training = EvaluationImages(paths, transform), TrainingImages(paths, images.labels, transform)
    assert len(fixed) == len(training) == 12
    for row, path in enumerate(paths):
        expected = transform(read_image(path))
        assert np.array_equal(fixed[row], expected) and np.array_equal(training[row, 1][0], expected)
