"""Batches of pixels of images given as paths, in memory, or as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.data import EvaluationImages, loading
from orthoproxy.data.transforms import ResizeAndCrop

Images = Sequence[str | Path | Image.Image | np.ndarray] | np.ndarray | Tensor | str | Path | Image.Image
OVERSHOOT = 0.2  # of bicubic interpolation at an edge, in floating point


def iterate_image_batches(
    images: Images,
    transform: ResizeAndCrop,
    batch_size: int,
    workers: int,
    progress: str | None = None,
    pin_memory: bool = False,
    feature_dim: int | None = None,
) -> Iterator[Tensor]:
    """Yield batches of transformed images, b x 3 x H x W; tensors of pixels or features are checked and split."""
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(str(value), field=name, expected=f"at least {least}")
    images = as_batch(images)
    if isinstance(images, Tensor):
        _require_shape(images, transform.image_size, feature_dim)
        batches = map(_require_range, images.split(batch_size)) if len(images) else []
    elif isinstance(images, Sequence | np.ndarray):
        dataset, options = EvaluationImages(images, transform), loading.loader_options(workers)
        generator = torch.Generator()  # else the loader draws from the caller's random state
        loader = DataLoader(dataset, batch_size, pin_memory=pin_memory, generator=generator, **options)
        batches = loading.iterate_batches(loader)
    else:
        expected = "paths, PIL images, uint8 arrays, or a tensor"
        raise InputError(type(images).__name__, field="images", expected=expected)
    with Progress(progress or "embed", len(images), shown=progress is not None) as bar:
        for batch in batches:
            yield batch
            bar.advance(len(batch), unit="images")


def as_batch(images: Images) -> Sequence[str | Path | Image.Image | np.ndarray] | np.ndarray | Tensor:
    """Return a single image as a batch of one, and all else as it is."""
    if isinstance(images, str | Path | Image.Image):
        return [images]
    return images[None] if isinstance(images, Tensor | np.ndarray) and images.ndim == 3 else images


def _require_shape(images: Tensor, side: int, feature_dim: int | None) -> None:
    pixels = images.shape[1:] == (3, side, side) and (images.dtype == torch.uint8 or images.is_floating_point())
    if not pixels and not (images.shape[1:] == (feature_dim,) and images.is_floating_point()):
        problem = f"a tensor of {images.dtype} and shape {tuple(images.shape)}"
        expected = f"B x 3 x {side} x {side} pixels, uint8 or floating point"
        expected += f", or N x {feature_dim} features" if feature_dim else ""
        hint = "give paths, PIL images or uint8 arrays H x W x 3 to have them resized"
        raise InputError(problem, field="images", expected=expected, hint=hint)


def _require_range(batch: Tensor) -> Tensor:
    """Raise InputError for floating point values that no pixels or features have."""
    if batch.is_floating_point():
        lowest, highest = (-OVERSHOOT, 1 + OVERSHOOT) if batch.ndim == 4 else (-math.inf, math.inf)
        low, high = (bound.item() for bound in batch.aminmax())
        if not lowest < low <= high < highest:  # false for NaN too
            expected = "finite values, of pixels from 0 to 1; uint8 pixels are from 0 to 255"
            hint = "do not normalize pixels: the model does"
            raise InputError(f"values from {low:g} to {high:g}", field="images", expected=expected, hint=hint)
    return batch
