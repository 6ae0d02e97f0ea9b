"""Pooled features of a frozen backbone, computed once and kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from errors import error_of
from many import in_processes
from PIL import Image
from safetensors.torch import load_file, save_file

from orthoproxy.core.distributed import RemoteProcessError, is_main
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.feature_cache import pooled_features
from orthoproxy.models import Encoder


@pytest.fixture
def picture(tmp_path) -> str:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_features_are_those_of_the_backbone(picture, tiny_encoder, tmp_path):
    model = Embedder(tiny_encoder, resize=32)
    features = pooled_features(model, [picture], tmp_path / "features")
    pixels = torch.from_numpy(model.transform(Image.open(picture))[None])
    with torch.inference_mode():
        torch.testing.assert_close(features, tiny_encoder.features(pixels))
    np.testing.assert_allclose(model.embed(features), model.embed([picture]), atol=1e-6)
    [path] = (tmp_path / "features").iterdir()
    save_file({"features": torch.zeros(2, 3)}, path)  # another shape
    torch.testing.assert_close(pooled_features(model, [picture], tmp_path / "features"), features)
    torch.testing.assert_close(load_file(path)["features"], features)


def test_another_file_transform_or_model_computes_new_features(picture, tiny_encoder, tmp_path, monkeypatch):
    folder = tmp_path / "features"

    def compute(encoder=tiny_encoder, resize=32):
        return pooled_features(Embedder(encoder, resize=resize), [picture], folder)

    first = compute()
    Image.new("RGB", (32, 32), "blue").save(picture, compress_level=0)
    assert not torch.equal(compute(), first)  # the file
    assert len(list(folder.iterdir())) == 2
    Image.effect_noise((80, 80), 90).convert("RGB").save(picture)
    last = compute()
    assert not torch.equal(last, compute(resize=64))  # the transform
    torch.manual_seed(7)
    assert not torch.equal(compute(Encoder("deit_tiny_patch16_224", 8, 32)), last)  # the weights
    monkeypatch.setattr(Embedder, "iterate_features", None)
    assert torch.equal(compute(), last)  # read from the cache


def test_a_missing_image_and_a_cache_that_cannot_be_written_to_are_named(picture, tiny_encoder, tmp_path):
    error = error_of(pooled_features, Embedder(tiny_encoder), [f"{tmp_path}/none.png"], tmp_path / "features")
    assert str(error.path) == f"{tmp_path}/none.png"
    (tmp_path / "file").write_text("a file")
    error = error_of(pooled_features, Embedder(tiny_encoder), [picture], tmp_path / "file")
    assert Path(str(error.path)).is_relative_to(tmp_path)


def error_in_process(model: Embedder, picture: str, folder: Path) -> type[Exception] | None:
    """Read the cache, which another process finds empty, in the main process."""
    try:
        pooled_features(model, [picture], folder if is_main() else folder / "empty")
    except (OSError, RemoteProcessError) as error:
        return type(error)


def test_an_error_of_the_disk_is_raised_by_all_and_not_called_missing(picture, tiny_encoder, tmp_path, monkeypatch):
    model, folder = Embedder(tiny_encoder, resize=32), tmp_path / "features"
    pooled_features(model, [picture], folder)
    monkeypatch.setattr(Embedder, "iterate_features", None)  # nothing is computed again
    [path] = folder.iterdir()
    path.unlink()
    path.symlink_to("/proc/self/mem")  # opens, but cannot be mapped into memory
    assert in_processes(2, error_in_process, model, picture, folder) == [OSError, RemoteProcessError]
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(OSError, match=str(path)):
        pooled_features(model, [picture], folder)
