"""Data-driven initialization."""

import numpy as np
import pytest
import torch
from errors import error_of
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
def test_whitening_sets_the_ratio_of_energies(whitening):
    x = make_features() @ torch.diag(torch.logspace(0, -1.9, 10, dtype=torch.float64))  # no direction is weak
    energies = (x @ pca_projection(second_moment(x), 10, whitening).T).square().sum(dim=0)
    singular = torch.linalg.svdvals(x)
    assert singular[-1] ** 2 > 0.5 * (singular**2).mean()
    expected = singular ** (2 - 2 * whitening)
    torch.testing.assert_close(energies / energies[0], expected / expected[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("images", [10, 60, 64, 66, 120, 2000])
def test_unused_directions_are_not_amplified(images):
    """Unseen classes are found about as well as with the features themselves, however few images there are."""
    generator = torch.Generator().manual_seed(0)

    def draw(classes, copies):
        centers = torch.randn(classes, 128, generator=generator) * torch.logspace(0.7, -0.7, 128)
        noise = torch.randn(classes * copies, 128, generator=generator)
        return F.normalize(centers.repeat_interleave(copies, 0) + noise, dim=1)

    def recall_at_1(x, copies=4):
        similarity = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
        nearest = similarity.fill_diagonal_(-2).argmax(dim=1)
        return (nearest // copies == torch.arange(len(x)) // copies).float().mean().item()

    seen, unseen = draw(images // 2, 2), draw(100, 4)
    weight = pca_projection(second_moment(seen), dim=64, whitening=1.0).float()
    assert weight.isfinite().all()
    assert recall_at_1(unseen @ weight.T) > 0.8 * recall_at_1(unseen)


def test_more_dimensions_than_features_are_an_error():
    assert error_of(pca_projection, second_moment(make_features()), dim=11).field == "embedding_dim"


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
