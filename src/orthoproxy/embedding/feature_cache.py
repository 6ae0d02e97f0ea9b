"""Pooled features of images, computed once and kept: all that a frozen backbone has to say about them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from orthoproxy.core.distributed import all_gather_rows, any_process, is_main, local_slice, raise_together, split_sizes
from orthoproxy.core.errors import os_errors_as_input_errors
from orthoproxy.core.files import atomic_write
from orthoproxy.core.safe_parsing import open_npy
from orthoproxy.data.cache import file_key
from orthoproxy.embedding.embedder import Embedder

FORMAT = 1  # of the files
BATCH = 128  # images that go through the backbone at once


def frozen_views(
    model: Embedder, paths: Sequence[str], folder: Path, workers: int = 0
) -> Callable[[Sequence[str]], Float[Tensor, "N F"]]:
    """Compute the pooled features of images, or find them where they were kept, and hand them out by path.

    The images are seen in the evaluation view, without augmentation.

    Parameters
    ----------
    model
        Whose backbone, as it is, makes the features.
    paths
        All images that will be asked for.
    folder
        Where features are kept; see `pooled_features`.
    workers
        Processes that read images.

    Returns
    -------
    Callable
        From paths to one row of features an image, which `Embedder.embed` takes instead of images.

    Raises
    ------
    InputError
        As from `pooled_features`.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy.models import Encoder
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    >>> model = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=8, image_size=32))
    >>> views = frozen_views(model, [f"{folder}/a.png"], folder / "features")
    >>> features = views([f"{folder}/a.png"] * 2)
    >>> features.shape, model.embed(features).shape
    (torch.Size([2, 192]), (2, 8))
    """
    features = pooled_features(model, paths, folder, workers)
    row = {path: number for number, path in enumerate(paths)}
    return lambda some: features[[row[path] for path in some]]


def pooled_features(model: Embedder, paths: Sequence[str], folder: Path, workers: int = 0) -> Float[Tensor, "N F"]:
    """Compute the pooled features of images, before projection and normalisation, or read them where they were kept.

    Every process of a job must call it; each then computes a part of what is missing.

    Parameters
    ----------
    model
        Whose backbone, as it is, makes the features, from its view of an image.
    paths
        Image files.
    folder
        Where features are kept, a file for each model and list of images; 4 bytes a number. They are computed anew
        where the model, the view, or a file's path, size or time of change is another. To remove files is safe.
    workers
        Processes that read images.

    Returns
    -------
    Tensor
        One float32 row an image.

    Raises
    ------
    InputError
        If an image cannot be read, or the folder cannot be written to.

    Examples
    --------
    See `frozen_views`.
    """
    with raise_together():
        path = folder / f"v{FORMAT}-{model.identity}-{_digest(paths)}.npy"
        kept = _read(path, len(paths), model.encoder.feature_dim)
    missing = any_process(kept is None)
    if kept is not None and not missing:
        return kept
    sizes = split_sizes(len(paths), unit=BATCH)
    with raise_together():
        own = _compute(model, paths[local_slice(sizes)], workers)
    features = all_gather_rows(own, sizes)
    with raise_together(), os_errors_as_input_errors(folder, "run it again"):
        if is_main():
            _write(features.numpy(), path)
    return features


def _digest(paths: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        digest.update(file_key(path))
    return digest.hexdigest()


def _read(path: Path, rows: int, width: int) -> Float[Tensor, "N F"] | None:
    """Read a file of features; one that is damaged is as good as none."""
    try:
        features = open_npy(path)
    except (OSError, ValueError):
        return None
    sound = features.shape == (rows, width) and features.dtype == np.float32
    return torch.from_numpy(np.array(features)) if sound else None


def _compute(model: Embedder, paths: Sequence[str], workers: int) -> Float[Tensor, "N F"]:
    with torch.random.fork_rng(devices=[]):  # the loader draws, and a run must not depend on what was kept
        blocks = model.iterate_features(paths, BATCH, workers, progress="features")
        return torch.cat([torch.empty(0, model.encoder.feature_dim), *(block.cpu() for _, block in blocks)])


def _write(features: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: np.save(file, features))
