"""Synthetic models with a known limitation: embeddings around class centers, without images."""

from dataclasses import replace

import numpy as np

from orthoproxy.data import make_table
from orthoproxy.diagnosis import DiagnosisInput, EmbeddedSplit

CLASSES, IMAGES, LATENT, DIM = 40, 8, 16, 64


def centers(seed: int, classes: int = CLASSES, latent: int = LATENT) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((classes, latent))


def around(points: np.ndarray, labels: np.ndarray, dim: int, noise: float, seed: int) -> np.ndarray:
    """Unit vectors near their class's point, projected to `dim` dimensions."""
    generator = np.random.default_rng(seed)
    latent = points[labels] + noise * generator.standard_normal((len(labels), points.shape[1]))
    view = np.random.default_rng(99).standard_normal((points.shape[1], dim))
    x = latent @ view
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def split(name: str, points: np.ndarray, noise: float, baseline_noise: float, seed: int) -> EmbeddedSplit:
    """Images of some classes, with the given noise in the model's and in the untrained encoder's embeddings."""
    labels = np.repeat(np.arange(len(points)), IMAGES)
    paths = [f"{name}/{number}.png" for number in range(len(labels))]
    table = make_table(paths, [f"{name} {label:03}" for label in labels])
    embeddings = around(points, labels, DIM, noise, seed)
    return EmbeddedSplit(table, embeddings, around(points, labels, 96, baseline_noise, seed + 1))


def healthy(latent: int = LATENT, noise: float = 0.3) -> DiagnosisInput:
    """A model without limitation: classes are separate, unseen ones as much as those trained on."""
    seen, unseen = centers(1, latent=latent), centers(2, latent=latent)
    training = split("seen", seen, noise, 0.5, 10)
    proxies = around(seen, np.arange(len(seen)), DIM, 0.0, 0)
    new = split("new", unseen, noise, 0.5, 20)
    return DiagnosisInput("healthy", training, new, "test", proxies, training.names)


def relabel(images: EmbeddedSplit, labels: np.ndarray) -> EmbeddedSplit:
    names = np.array(images.names)
    return replace(images, table=images.table.assign(label=names[labels]))
