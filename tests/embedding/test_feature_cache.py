"""Runs whose backbone stands still: features computed once, then the ordinary loop and the ordinary folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import orthoproxy
from orthoproxy.core.errors import InputError
from orthoproxy.data import select_split
from orthoproxy.embedding import feature_cache as features
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder, read_tensors
from orthoproxy.runs import config as c
from orthoproxy.runs.build import split_table
from orthoproxy.runs.run_folder import Run


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Ten classes of five images: a shade of grey of the class's own, and noise."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(10):
        folder = root / f"class {number}"
        folder.mkdir()
        colour = 128 + generator.integers(-12, 13, size=3)
        for copy in range(5):
            pixels = colour + generator.integers(-60, 60, size=(40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{copy}.png")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "orthoproxy" / "features"


@pytest.fixture
def config(photos) -> c.Config:
    return c.Config(
        data=c.Data(name="folder", root=str(photos), test_fraction=0.4, validation_fraction=0.34, workers=0, resize=32),
        encoder=c.Encoder(
            name="deit_tiny_patch16_224", weights="none", embedding_dim=8, image_size=32, freeze=True, drop_path=0.5
        ),
        loss=c.Loss(orthogonality=c.Orthogonality(weight=0.1)),
        training=c.Training(epochs=3, batch_size=6, log_every=1, precision="32-true"),
        evaluation=c.Evaluation(recall_at=(1, 2), draws=50),
    )


def weights(run: Run, folder: str = "model") -> dict[str, torch.Tensor]:
    return read_tensors(run.folder / folder / "model.safetensors", "")


def no_computing(*args):
    raise AssertionError("features were computed again")


def test_the_projection_is_trained_and_the_backbone_is_not(config, tmp_path):
    run = orthoproxy.train(config, tmp_path / "run")
    trained, untrained = weights(run), weights(run, "baseline")
    assert all(torch.equal(trained[name], tensor) for name, tensor in untrained.items())
    state = {path.stem: torch.load(path, weights_only=True)["encoder"] for path in run.checkpoints.iterdir()}
    assert {name: set(tensors) for name, tensors in state.items()} == {
        "best": {"weight", "bias"},
        "last": {"weight", "bias"},
        "previous": {"weight", "bias"},
    }
    start = orthoproxy.train(_without_rates(config), tmp_path / "start")
    assert not torch.equal(weights(start)["projection.weight"], trained["projection.weight"])
    assert not torch.equal(start.model.proxies, run.model.proxies)
    assert run.records()["loss"].mean() < start.records()["loss"].mean()


def _without_rates(config: c.Config) -> c.Config:
    rates = c.Rates(projection=0.0, proxies=0.0)
    return replace(config, training=replace(config.training, rates=rates))


def test_scores_are_those_of_the_model_on_the_images(config, tmp_path):
    run = orthoproxy.train(config, tmp_path / "run")
    scoring = orthoproxy.runs.build.make_scoring(config.evaluation)
    again = orthoproxy.evaluate(run.model, select_split(split_table(config), "test"), scoring=scoring)
    for who in ("trained", "untrained"):
        for name, estimate in getattr(again, who).items():
            assert run.scores[who][name]["value"] == pytest.approx(estimate.value, abs=1e-6)


def test_whoever_reads_the_scores_is_told(config, tmp_path):
    run = orthoproxy.train(config, tmp_path / "run")
    assert run.scores["notes"][0].startswith("Frozen encoder: ")
    assert "Frozen encoder" in run.report.read_text()
    assert "frozen, as it came from" in run.model.card


def test_features_are_computed_once_and_a_run_does_not_depend_on_when(config, cache, tmp_path, monkeypatch):
    config.loss = c.Loss(name="SoftTripleLoss", args={"centers_per_class": 2})  # draws after the features were made
    first = orthoproxy.train(config, tmp_path / "first")
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(features, "_compute", no_computing)
    second = orthoproxy.train(config, tmp_path / "second")
    assert all(torch.equal(tensor, weights(first)[name]) for name, tensor in weights(second).items())
    config.training.batch_size = 4
    other = orthoproxy.train(config, tmp_path / "other")
    assert not torch.equal(weights(other)["projection.weight"], weights(first)["projection.weight"])


def test_a_killed_run_goes_on_to_the_same_model(config, tmp_path, monkeypatch):
    whole, killed = orthoproxy.train(config, tmp_path / "whole"), Run(tmp_path / "killed")
    log = Run.log

    def log_and_die(run, record):
        log(run, record)
        if record["step"] == 5:
            raise MemoryError("as if killed")

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(Run, "log", log_and_die)
        orthoproxy.train(config, killed.folder)
    orthoproxy.train(config, killed.folder, resume=True)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(killed).items())
    assert killed.scores | {"seconds": 0} == whole.scores | {"seconds": 0}


@pytest.fixture
def picture(tmp_path) -> str:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_features_are_the_backbones(picture, tiny_encoder, tmp_path):
    model = Embedder(tiny_encoder, resize=32)
    views = features.frozen_views(model, [picture], tmp_path / "features")
    pixels = model.transform(Image.open(picture))[None]
    with torch.inference_mode():
        torch.testing.assert_close(views([picture, picture]), tiny_encoder.features(pixels).repeat(2, 1))
    np.testing.assert_allclose(model.embed(views([picture])), model.embed([picture]), atol=1e-6)


def test_what_changes_the_features_makes_new_ones(picture, tiny_encoder, tmp_path, monkeypatch):
    folder = tmp_path / "features"

    def compute(encoder=tiny_encoder, resize=32):
        return features.pooled_features(Embedder(encoder, resize=resize), [picture], folder)

    first = compute()
    Image.new("RGB", (32, 32), "blue").save(picture, compress_level=0)
    assert not torch.equal(compute(), first)  # the file
    second = compute()
    assert len(list(folder.iterdir())) == 2
    Image.effect_noise((80, 80), 90).convert("RGB").save(picture)
    assert not torch.equal(compute(), compute(resize=64))  # the view
    torch.manual_seed(7)
    assert not torch.equal(compute(Encoder("deit_tiny_patch16_224", 8, 32)), compute())  # the weights
    monkeypatch.setattr(features, "_compute", no_computing)
    assert not torch.equal(compute(), second)
    with pytest.raises(InputError, match=r"\.png: "):
        features.pooled_features(Embedder(tiny_encoder), [f"{tmp_path}/none.png"], folder)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY cut short", None])
def test_a_damaged_file_is_replaced(picture, tiny_encoder, tmp_path, damage):
    model, folder = Embedder(tiny_encoder), tmp_path / "features"
    first = features.pooled_features(model, [picture], folder)
    [path] = folder.iterdir()
    if damage is None:
        np.save(path, np.zeros((2, 3), np.float32))
    else:
        path.write_bytes(damage)
    torch.testing.assert_close(features.pooled_features(model, [picture], folder), first)
    np.testing.assert_array_equal(np.load(path), first)


def test_a_cache_that_cannot_be_written_to_is_named(picture, tiny_encoder, tmp_path):
    (tmp_path / "features").write_text("a file")
    with pytest.raises(InputError, match=r"features: .*; give another path"):
        features.pooled_features(Embedder(tiny_encoder), [picture], tmp_path / "features")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": None}, "encoder.embedding_dim: null leaves out the projection"),
        ({"freeze_epochs": 1.0}, "encoder.freeze_epochs: 1, but encoder.freeze"),
    ],
)
def test_what_leaves_nothing_to_train_is_refused(config, options, message):
    with pytest.raises(InputError, match=message):
        replace(config, encoder=replace(config.encoder, **options)).check()
