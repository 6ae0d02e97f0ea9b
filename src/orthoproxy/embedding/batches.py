"""Batches of pixels of images given as paths, in memory, or as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.data import EvaluationImages, loading
from orthoproxy.data.transforms import Transform

Images = Sequence[str | Path | Image.Image] | Tensor


def iterate_image_batches(
    images: Images,
    transform: Transform,
    batch_size: int,
    workers: int,
    progress: str | None = None,
    pin_memory: bool = False,
) -> Iterator[Tensor]:
    """Yield batches of transformed images, b x 3 x H x W; tensors of pixels or features are only split."""
    if isinstance(images, Tensor):
        is_float = images.is_floating_point()
        if not (images.ndim == 4 and (is_float or images.dtype == torch.uint8)) and not (images.ndim == 2 and is_float):
            problem = f"a tensor of {images.dtype} and shape {tuple(images.shape)}"
            expected = "B x 3 x H x W pixels, uint8 or floating point, or N x F features"
            raise InputError(problem, field="images", expected=expected)
        batches = images.split(batch_size) if len(images) else []
    elif isinstance(images, Sequence) and not isinstance(images, str):
        dataset, options = EvaluationImages(images, transform), loading.loader_options(workers)
        batches = loading.iterate_batches(DataLoader(dataset, batch_size, pin_memory=pin_memory, **options))
    else:
        raise InputError(type(images).__name__, field="images", expected="a list of paths or PIL images, or a tensor")
    with Progress(progress or "embed", len(images), shown=progress is not None) as bar:
        for batch in batches:
            yield batch
            bar.advance(len(batch), unit="images")
