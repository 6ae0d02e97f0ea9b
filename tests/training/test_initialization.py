"""Data-driven initialization."""

import numpy as np
import pytest
import torch
from recorded import Recorded
from sklearn.decomposition import TruncatedSVD
from torch.nn import functional as F

from orthoproxy.training import class_means, pca_projection, second_moment
from orthoproxy.training.initialization import class_sums


def make_features(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(60, 10, generator=generator, dtype=torch.float64) * torch.logspace(0, 2, 10)


def test_without_whitening_the_outputs_are_the_truncated_svd():
    x = make_features()
    outputs = (x @ pca_projection(second_moment(x), dim=3, whitening=0).T).numpy()
    expected = TruncatedSVD(3, algorithm="arpack").fit_transform(x.numpy())
    np.testing.assert_allclose(np.abs(outputs), np.abs(expected), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("images", [60, 5])
def test_whitening_equalizes_energies_but_does_not_amplify_weak_directions(images, whitening):
    x = make_features()[:images]
    projected = (x @ pca_projection(second_moment(x), 10, whitening).T).square().sum(dim=0)
    energies = torch.linalg.eigvalsh(x.T @ x).flip(0)
    divisors = energies.clamp_min(energies.mean() / 2)  # directions that the images hardly use
    assert energies[1] == divisors[1] and energies[-1] < divisors[-1]
    expected = energies / divisors**whitening
    torch.testing.assert_close(projected / projected[0], expected / expected[0], rtol=1e-6, atol=1e-9)


def test_the_second_moment_needs_no_memory_that_grows_with_the_images():
    largest = []
    for images in (20_000, 40_000):
        features = torch.randn(images, 16)
        with Recorded() as used:
            moment = second_moment(features)
        largest.append(used.largest)
        torch.testing.assert_close(moment, features.double().T @ features.double())
    assert largest[0] == largest[1] < features.numel() * 4


def test_class_means_have_unit_length_and_the_direction_of_the_class():
    embeddings = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.arange(30) % 3
    means = class_means(embeddings, labels.to(torch.uint8), 3)
    for c in range(3):
        mean = embeddings[labels == c].mean(dim=0)
        torch.testing.assert_close(means[c], mean / mean.norm())
    sums = class_sums(embeddings, labels - 1, 2)  # as a shard of the classes 1 and 2
    torch.testing.assert_close(F.normalize(sums, dim=1), means[1:])
