"""A model as a thing to use: what goes in, what comes out, and the folder it is saved in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orthoproxy.data import evaluation_transform, read_image
from orthoproxy.embedder import Embedder
from orthoproxy.errors import InputError
from orthoproxy.models import Encoder

VIT = "test_vit"  # timm's own model for tests: quick to load


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(VIT, embedding_dim=8, image_size=32)


@pytest.fixture
def embedder(encoder: Encoder) -> Embedder:
    return Embedder(encoder, resize=36, classes=["ä", "b", "c"], proxies=torch.randn(3, 8))


@pytest.fixture
def paths(image_folder: Path) -> list[Path]:
    return sorted(image_folder.rglob("*.png"))


def test_files_pictures_and_pixels_give_the_same_embeddings(embedder: Embedder, paths: list[Path]) -> None:
    files = embedder.embed(paths)
    assert files.shape == (12, 8) and files.dtype == np.float32
    assert np.linalg.norm(files, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    pixels = torch.stack([evaluation_transform(32, 36)(read_image(path)) for path in paths])
    for given in ([str(path) for path in paths], [Image.open(path) for path in paths], pixels):
        np.testing.assert_array_equal(embedder.embed(given), files)
    np.testing.assert_allclose(embedder.embed(pixels / 255), files, atol=1e-5)
    assert np.ptp(files, axis=0).max() > 1e-3  # the pictures do differ


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 0), (5, 2)])
def test_batches_and_workers_change_nothing_but_rounding(
    batch_size: int, workers: int, embedder: Embedder, paths: list[Path]
) -> None:
    np.testing.assert_allclose(embedder.embed(paths, batch_size, workers), embedder.embed(paths), atol=1e-5)


@pytest.mark.parametrize("given", [[], torch.empty(0, 3, 32, 32)], ids=["list", "tensor"])
def test_no_images_give_no_rows(given: list | torch.Tensor, embedder: Embedder) -> None:
    assert embedder.embed(given).shape == (0, 8)


def test_pictures_of_any_mode(embedder: Embedder) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8))
    grey = image.convert("L")
    together = embedder.embed([grey, grey.convert("RGB"), grey.convert("RGBA"), image])
    np.testing.assert_array_equal(together[0], together[1])
    np.testing.assert_array_equal(together[0], together[2])
    assert not np.array_equal(together[0], together[3])


def test_progress_is_shown_when_named(embedder: Embedder, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr("orthoproxy.progress.Progress.say", lambda progress, line: said.append(line))
    monkeypatch.setattr("orthoproxy.progress.time.monotonic", iter(range(0, 10_000, 11)).__next__)
    embedder.embed(paths, batch_size=5)
    assert said == []
    embedder.embed(paths, batch_size=5, what="files")
    assert len(said) == 3 and said[0].startswith(f"files 5/{len(paths)}") and said[0].endswith("images/s")


def test_an_unreadable_file_is_named(embedder: Embedder, paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"cannot read the image .*broken\.png"):
            embedder.embed([*paths, broken], workers=workers)


@pytest.mark.parametrize("given", ["run", "run/model", "elsewhere"])
def test_a_saved_model_embeds_bit_for_bit_the_same(
    given: str, embedder: Embedder, paths: list[Path], tmp_path: Path
) -> None:
    embedder.save(tmp_path / ("elsewhere" if given == "elsewhere" else "run/model"), card="# A model\n")
    loaded = Embedder.load(tmp_path / given)
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert torch.equal(loaded.proxies, embedder.proxies)
    assert loaded.classes == ["ä", "b", "c"]
    assert loaded.resize == 36 and loaded.encoder.image_size == 32
    saved, given_back = embedder.encoder.state_dict(), loaded.encoder.state_dict()
    assert list(saved) == list(given_back)
    assert all(torch.equal(saved[name], given_back[name]) for name in saved)
    assert not loaded.encoder.training


def test_a_model_without_projection_proxies_or_classes(paths: list[Path], tmp_path: Path) -> None:
    embedder = Embedder(Encoder("deit_tiny_distilled_patch16_224", image_size=48))
    embedder.save(tmp_path / "model")
    loaded = Embedder.load(tmp_path)
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert loaded.proxies is None and loaded.classes == [] and loaded.resize is None
    assert isinstance(loaded.encoder.projection, torch.nn.Identity)
    assert not (tmp_path / "model" / "proxies.safetensors").exists()


def test_saving_over_a_model_leaves_nothing_of_the_old_one(
    embedder: Embedder, tmp_path: Path, encoder: Encoder
) -> None:
    embedder.save(tmp_path)
    Embedder(encoder).save(tmp_path)
    loaded = Embedder.load(tmp_path)
    assert loaded.classes == []
    assert loaded.proxies is None


def test_the_folder_is_what_the_documentation_says(embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "model", card="# Größe\n")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json", "model.safetensors", "proxies.safetensors", "classes.json", "README.md",
    }  # fmt: skip
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "# Größe\n"
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {
        "format_version": 1, "encoder": VIT, "embedding_dim": 8, "image_size": 32, "resize": 36,
    }  # fmt: skip


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_format_version_is_refused_by_name(version: object, embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format_version": version}))
    with pytest.raises(InputError, match=rf"config\.json: format_version {version!r} is unknown.*reads version 1"):
        Embedder.load(tmp_path)


def test_a_folder_without_model_says_what_was_looked_for(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=rf"no model in {folder}: neither config\.json nor model/config\.json"):
            Embedder.load(folder)


@pytest.mark.parametrize("file", ["config.json", "classes.json", "model.safetensors", "proxies.safetensors"])
def test_a_broken_file_is_named(file: str, embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:5])
    with pytest.raises(InputError, match=file):
        Embedder.load(tmp_path)


@pytest.mark.parametrize("change", [{"embedding_dim": 16}, {"encoder": "test_vit2"}, {"image_size": 64}])
def test_weights_that_do_not_go_with_the_description_are_refused(
    change: dict, embedder: Embedder, tmp_path: Path
) -> None:
    embedder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match="model"):
        Embedder.load(tmp_path)


@pytest.mark.parametrize("given", ["run", "run/model"])
def test_the_untrained_encoder_beside_a_runs_model_is_found(given: str, embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "run" / "model")
    assert Embedder.load(tmp_path / given).baseline_folder is None
    embedder.save(tmp_path / "run" / "untrained")
    assert Embedder.load(tmp_path / given).baseline_folder == tmp_path / "run" / "untrained"
    assert Embedder.load(tmp_path / "run" / "untrained").baseline_folder is None  # it is not its own baseline


@pytest.mark.parametrize(("inside", "given"), [(".", "run"), ("run", "."), ("run", "model"), ("run/model", ".")])
def test_the_untrained_encoder_is_found_from_any_working_folder(
    inside: str, given: str, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder.save(tmp_path / "run" / "model")
    embedder.save(tmp_path / "run" / "untrained")
    monkeypatch.chdir(tmp_path / inside)
    baseline = Embedder.load(given).baseline_folder
    assert baseline is not None and baseline.resolve() == tmp_path / "run" / "untrained"
