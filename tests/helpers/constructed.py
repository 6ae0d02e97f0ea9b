"""Models made up so that it is known what limits them: embeddings around class centres, without images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from orthoproxy.data import make_table
from orthoproxy.diagnosis import Embedded, Subject

CLASSES, IMAGES, LATENT = 40, 8, 16


def centres(seed: int, classes: int = CLASSES, latent: int = LATENT) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((classes, latent))


def around(points: np.ndarray, labels: np.ndarray, dim: int, noise: float, seed: int) -> np.ndarray:
    """Images near their class's point, seen in `dim` dimensions, unit length."""
    generator = np.random.default_rng(seed)
    latent = points[labels] + noise * generator.standard_normal((len(labels), points.shape[1]))
    view = np.random.default_rng(99).standard_normal((points.shape[1], dim))
    x = latent @ view
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def side(what: str, points: np.ndarray, trained: float, untrained: float, seed: int, dim: int = 64) -> Embedded:
    """Images of some classes, with so much noise in either model's embeddings."""
    labels = np.repeat(np.arange(len(points)), IMAGES)
    paths = [f"{what}/{number}.png" for number in range(len(labels))]
    table = make_table(paths, [f"{what} {label:03}" for label in labels])
    return Embedded(table, around(points, labels, dim, trained, seed), around(points, labels, 96, untrained, seed + 1))


def healthy(dim: int = 64, latent: int = LATENT, noise: float = 0.3) -> Subject:
    """A model that nothing limits: classes lie apart, unseen ones as far as those trained on."""
    seen, unseen = centres(1, latent=latent), centres(2, latent=latent)
    training = side("seen", seen, noise, 0.5, 10, dim)
    return Subject(
        name="healthy",
        training=training,
        unseen=side("new", unseen, noise, 0.5, 20, dim),
        unseen_are="test",
        proxies=around(seen, np.arange(len(seen)), dim, 0.0, 0),
        classes=training.names,
    )


def relabelled(images: Embedded, labels: np.ndarray) -> Embedded:
    names = np.array(images.names)
    return replace(images, table=images.table.assign(label=names[labels]))
