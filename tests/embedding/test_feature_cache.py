"""Pooled features are computed once per model, transform and version of the images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from many import in_processes
from PIL import Image

from orthoproxy.core.distributed import process_index
from orthoproxy.core.errors import InputError
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.feature_cache import FrozenFeatures, pooled_features
from orthoproxy.models import Encoder


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "features"


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_features_are_the_backbones(image: str, tiny_encoder: Encoder, folder: Path) -> None:
    model = Embedder(tiny_encoder, resize=32)
    features = FrozenFeatures.compute(model, [image], folder)
    pixels = model.transform(Image.open(image))[None]
    with torch.inference_mode():
        torch.testing.assert_close(features([image, image]), tiny_encoder.features(pixels).repeat(2, 1))
    np.testing.assert_allclose(model.embed(features([image])), model.embed([image]), atol=1e-6)


def test_rows_are_looked_up_by_path() -> None:
    features = FrozenFeatures(torch.eye(3), pd.Index(["a", "b", "c"]))
    assert features(["c", "a", "c"]).argmax(dim=1).tolist() == [2, 0, 2]


def test_what_changes_the_features_makes_a_new_entry(image: str, tiny_encoder: Encoder, folder: Path) -> None:
    def compute(encoder: Encoder = tiny_encoder, resize: int = 32, precision: str = "32-true") -> torch.Tensor:
        return pooled_features(Embedder(encoder, resize=resize), [image], folder, precision=precision)

    first = compute()
    before = files(folder)
    assert torch.equal(compute(), first) and files(folder) == before  # read, not written again
    Image.effect_noise((80, 80), 90).convert("RGB").save(image)
    assert not torch.equal(compute(), first)  # the file
    assert not torch.equal(compute(), compute(resize=64))  # the transform
    assert not torch.equal(compute(), compute(precision="bf16-mixed"))
    torch.manual_seed(7)
    assert not torch.equal(compute(Encoder("deit_tiny_patch16_224", 8, 32)), compute())  # the weights
    assert len(files(folder)) == 5
    with pytest.raises(InputError) as error:
        pooled_features(Embedder(tiny_encoder), [f"{folder}/none.png"], folder)
    assert error.value.path == f"{folder}/none.png"


def test_the_random_state_does_not_depend_on_the_cache(image: str, tiny_encoder: Encoder, folder: Path) -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        pooled_features(Embedder(tiny_encoder), [image], folder)
        draws.append(torch.rand(1))
    assert torch.equal(*draws)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY cut short", None])
def test_a_damaged_file_is_replaced(image: str, tiny_encoder: Encoder, folder: Path, damage: bytes | None) -> None:
    model = Embedder(tiny_encoder)
    first = pooled_features(model, [image], folder)
    [path] = folder.iterdir()
    if damage is None:
        np.save(path, np.zeros((2, 3), np.float32))
    else:
        path.write_bytes(damage)
    torch.testing.assert_close(pooled_features(model, [image], folder), first)
    np.testing.assert_array_equal(np.load(path), first)


def test_a_folder_that_cannot_be_written_to(image: str, tiny_encoder: Encoder, folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(InputError):
        pooled_features(Embedder(tiny_encoder), [image], folder)


def count_stats(model: Embedder, paths: list[str], folder: Path) -> tuple[int, int, list[float]]:
    """Read cached features; return the rank, how many images this process looked up, and the features."""
    seen, stat = [], os.stat

    def counting(path: object, **options: object) -> os.stat_result:
        seen.append(path in paths)
        return stat(path, **options)  # pyright: ignore[reportArgumentType]

    os.stat = counting
    features = pooled_features(model, paths, folder)
    return process_index(), sum(seen), features.flatten().tolist()


def test_only_the_main_process_looks_up_the_files(image: str, tiny_encoder: Encoder, folder: Path) -> None:
    model = Embedder(tiny_encoder)
    expected = pooled_features(model, [image] * 3, folder).flatten().tolist()
    results = in_processes(2, count_stats, model, [image] * 3, folder)
    assert results == [(0, 3, expected), (1, 0, expected)]
