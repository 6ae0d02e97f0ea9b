"""The data-driven start."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD

from orthoproxy.core.errors import InputError
from orthoproxy.training import class_means, principal_weight


def features(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(60, 10, generator=generator, dtype=torch.float64) * torch.logspace(0, 2, 10)


def test_without_whitening_the_outputs_are_the_truncated_svd():
    x = features()
    ours = (x @ principal_weight(x, dim=3, whitening=0).T).numpy()
    theirs = TruncatedSVD(3, algorithm="arpack").fit_transform(x.numpy())
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_sets_how_energies_differ(whitening):
    x = features()
    x = x @ torch.diag(torch.logspace(0, -1.9, 10, dtype=x.dtype))  # none of the directions is weak
    energies = (x @ principal_weight(x, 10, whitening).T).square().sum(dim=0)
    singular = torch.linalg.svdvals(x)
    assert singular[-1] ** 2 > 0.5 * (singular**2).mean()
    expected = singular ** (2 - 2 * whitening)
    torch.testing.assert_close(energies / energies[0], expected / expected[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("images", [10, 60, 64, 66, 120, 2000])
def test_directions_that_the_data_do_not_use_are_not_blown_up(images):
    """Unseen classes are found about as well as with the features themselves, however few images there are."""
    generator = torch.Generator().manual_seed(0)

    def draw(classes, copies):
        centres = torch.randn(classes, 128, generator=generator) * torch.logspace(0.7, -0.7, 128)
        noise = torch.randn(classes * copies, 128, generator=generator)
        return torch.nn.functional.normalize(centres.repeat_interleave(copies, 0) + noise, dim=1)

    def recall_at_1(x, copies=4):
        similarity = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(x, dim=1).T
        nearest = similarity.fill_diagonal_(-2).argmax(dim=1)
        return (nearest // copies == torch.arange(len(x)) // copies).float().mean().item()

    seen, unseen = draw(images // 2, 2), draw(100, 4)
    weight = principal_weight(seen, dim=64, whitening=1.0)
    assert weight.isfinite().all()
    assert recall_at_1(unseen @ weight.T) > 0.8 * recall_at_1(unseen)


def test_more_dimensions_than_features_are_refused():
    with pytest.raises(InputError, match=r"encoder\.embedding_dim: 11 is more than the backbone's 10"):
        principal_weight(features(), dim=11)


def test_class_means_have_unit_length_and_point_to_the_class():
    embeddings = torch.nn.functional.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.arange(30) % 3
    means = class_means(embeddings, labels, 3)
    for c in range(3):
        mean = embeddings[labels == c].mean(dim=0)
        torch.testing.assert_close(means[c], mean / mean.norm())
