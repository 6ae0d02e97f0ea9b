"""Runs with a frozen backbone: features computed once, then the ordinary loop and run folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from killed_runs import kill_at
from PIL import Image

import orthoproxy
from orthoproxy.data import select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import read_tensors
from orthoproxy.runs.config import Config
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Ten classes of five images: a shade of gray per class, and noise."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(10):
        (root / f"class {number}").mkdir()
        color = 128 + generator.integers(-12, 13, size=3)
        for copy in range(5):
            pixels = color + generator.integers(-60, 60, size=(40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"class {number}" / f"{copy}.png")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "orthoproxy" / "features"


@pytest.fixture
def config(photos) -> Config:
    return Config().with_overrides(
        {
            "data": {"name": "folder", "root": str(photos), "test_fraction": 0.4, "validation_fraction": 0.34},
            "data.workers": 0,
            "data.resize": 32,
            "sampler.batch_size": 6,
            "encoder": {"name": "deit_tiny_patch16_224", "init_from": "none", "embedding_dim": 8, "image_size": 32},
            "encoder.freeze": True,
            "encoder.drop_path": 0.5,
            "loss.proxy_regularizer.weight": 0.1,
            "training": {"epochs": 3, "log_every_n_steps": 1, "precision": "32-true"},
            "evaluation": {"recall_at": [1, 2], "bootstrap_samples": 50},
        }
    )


def weights(run: RunFolder, folder: str = "model") -> dict[str, torch.Tensor]:
    return read_tensors(run.folder / folder / "model.safetensors", "")


def test_only_projection_and_proxies_are_trained_and_saved(config, tmp_path):
    run = orthoproxy.train(config, tmp_path / "run")
    trained, baseline = weights(run), weights(run, "baseline")
    assert all(torch.equal(trained[name], x) for name, x in baseline.items())
    for path in run.checkpoints.iterdir():
        assert set(torch.load(path, weights_only=True)["encoder"]) == {"weight", "bias"}
    still = config.with_overrides({"optimizer.lr": {"projection": 0, "proxies": 0}})
    start = orthoproxy.train(still, tmp_path / "start")
    assert not torch.equal(weights(start)["projection.weight"], trained["projection.weight"])
    assert run.records()["loss"].mean() < start.records()["loss"].mean()
    # scores are those of the saved model on the images
    table = select_split(split_table(config), "test")
    again = orthoproxy.evaluate(run.load_model(), table, scoring=make_scoring(config.evaluation))
    for name, estimate in again.model.items():
        assert run.scores["model"][name]["value"] == pytest.approx(estimate.value, abs=1e-6)
    assert any("rozen" in note for note in run.scores["notes"])


def test_features_are_computed_once_and_a_run_does_not_depend_on_when(config, cache, tmp_path, monkeypatch):
    loss = {"name": "SoftTripleLoss", "args": {"centers_per_class": 2}}  # draws random numbers after the features
    config = config.with_overrides({"loss": loss})
    first = orthoproxy.train(config, tmp_path / "first")
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(Embedder, "iterate_features", None)
    second = orthoproxy.train(config, tmp_path / "second")
    assert all(torch.equal(x, weights(first)[name]) for name, x in weights(second).items())
    other = orthoproxy.train(config.with_overrides({"sampler.batch_size": 4}), tmp_path / "other")
    assert not torch.equal(weights(other)["projection.weight"], weights(first)["projection.weight"])


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(config, tmp_path, monkeypatch):
    whole = orthoproxy.train(config, tmp_path / "whole")
    kill_at(monkeypatch, config, tmp_path / "killed", step=5)
    killed = orthoproxy.train(config, tmp_path / "killed", resume=True)
    assert all(torch.equal(x, weights(whole)[name]) for name, x in weights(killed).items())
    assert killed.scores | {"seconds": 0} == whole.scores | {"seconds": 0}
