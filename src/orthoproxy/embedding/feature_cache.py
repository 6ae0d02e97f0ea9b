"""Cache of pooled backbone features, for training and evaluating with a frozen backbone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from orthoproxy.core.boxes import split_box
from orthoproxy.core.distributed import (
    all_gather_rows,
    any_process,
    broadcast_object,
    is_main,
    local_slice,
    raise_together,
    split_sizes,
)
from orthoproxy.core.errors import InputError, os_errors_as_input_errors
from orthoproxy.core.files import atomic_write
from orthoproxy.embedding.embedder import BATCH_SIZE, Embedder

FORMAT_VERSION = 2


def pooled_features(model: Embedder, paths: Sequence[str], folder: Path, workers: int = 0) -> Float[Tensor, "N F"]:
    """Return float32 pooled features of images, from the cache folder if possible; every process must call it."""
    with raise_together():
        key = _cache_key(model, paths) if is_main() else None
    path = folder / f"{broadcast_object(key)}.safetensors"
    with raise_together(), os_errors_as_input_errors(folder, "run it again"):
        features = _read(path, (len(paths), model.encoder.feature_dim))
    if not any_process(features is None):
        return cast(Tensor, features)
    sizes = split_sizes(len(paths), unit=BATCH_SIZE)
    with raise_together():
        blocks = model.iterate_features(paths[local_slice(sizes)], workers=workers, progress="features")
        own = torch.cat([torch.empty(0, model.encoder.feature_dim), *(block.cpu() for block in blocks)])
    features = all_gather_rows(own, sizes)
    with raise_together(), os_errors_as_input_errors(folder, "run it again"):
        if is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, safetensors.torch.save({"features": features}))
    return features


def _cache_key(model: Embedder, paths: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        try:
            stat = os.stat(split_box(path)[0])  # noqa: PTH116 -- many files; Path takes twice as long
        except OSError as error:
            raise InputError(f"cannot read the image: {error.strerror}", path=path) from error
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return f"v{FORMAT_VERSION}-{model.identity}-{digest.hexdigest()}"


def _read(path: Path, shape: tuple[int, int]) -> Float[Tensor, "N F"] | None:
    """Read a cache file; None if it is missing, damaged or of another shape."""
    try:
        with path.open("rb"):  # safetensors reports every failure to open a file as a missing one
            features = safetensors.torch.load_file(path).get("features")
    except (FileNotFoundError, SafetensorError):
        return None
    return features if features is not None and features.shape == shape and features.dtype == torch.float32 else None
