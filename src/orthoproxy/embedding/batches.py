"""Batches of pixels of images given as paths, in memory, or as tensors; PyTorch is imported where it is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.data import EvaluationImages
from orthoproxy.data.transforms import ResizeAndCrop

if TYPE_CHECKING:
    from torch import Tensor

Images: TypeAlias = "Sequence[str | Path | Image.Image | np.ndarray] | np.ndarray | Tensor | str | Path | Image.Image"
OVERSHOOT = 0.2  # of bicubic interpolation at an edge, in floating point


class File(NamedTuple):
    """An image file; it is not decoded if its content is the known one."""

    path: str
    known_content: str | None = None


class EmbeddedFiles(NamedTuple):
    """Embeddings of the files that were decoded; of all files, a content hash or the reason for none."""

    embeddings: Float[np.ndarray, "n D"]
    contents: list[str]
    reasons: list[str]


def iterate_image_batches(
    images: Images,
    transform: ResizeAndCrop,
    batch_size: int,
    workers: int,
    progress: str | None = None,
    pin_memory: bool = False,
    feature_dim: int | None = None,
) -> Iterator[UInt8[np.ndarray, "b 3 H W"] | Tensor]:
    """Yield transformed images in batches, as tensors if workers load them; given tensors are checked and split."""
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(str(value), field=name, expected=f"at least {least}")
    given = as_batch(images)
    if isinstance(given, Sequence | np.ndarray):
        batches = _load_batches(EvaluationImages(given, transform), batch_size, workers, pin_memory)
    else:
        _require_tensor(given, transform.image_size, feature_dim)
        batches = map(_require_range, given.split(batch_size)) if len(given) else []
    with Progress(progress or "embed", len(given), shown=progress is not None) as bar:
        for batch in batches:
            yield batch
            bar.advance(len(batch), unit="images")


def as_batch(images: Any) -> Any:
    """Return a single image as a batch of one, and all else as it is."""
    if isinstance(images, str | Path | Image.Image):
        return [images]
    return images[None] if getattr(images, "ndim", None) == 3 else images


def _load_batches(dataset: Any, batch_size: int, workers: int, pin_memory: bool) -> Iterator[Any]:
    if not workers:
        for first in range(0, len(dataset), batch_size):
            items = [dataset[row] for row in range(first, min(first + batch_size, len(dataset)))]
            if unreadable := next((item for item in items if isinstance(item, InputError)), None):
                raise unreadable
            yield np.stack(items)
        return
    import torch
    from torch.utils.data import DataLoader

    from orthoproxy.data.loading import iterate_batches, loader_options

    options = loader_options(workers)
    generator = torch.Generator()  # else the loader draws from the caller's random state
    yield from iterate_batches(DataLoader(dataset, batch_size, pin_memory=pin_memory, generator=generator, **options))


def _require_tensor(images: Any, side: int, feature_dim: int | None) -> None:
    import torch

    if not isinstance(images, torch.Tensor):
        expected = "paths, PIL images, uint8 arrays, or a tensor"
        raise InputError(type(images).__name__, field="images", expected=expected)
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
