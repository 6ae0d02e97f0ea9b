"""Runs with a frozen backbone: features computed once, then the ordinary loop and run folder."""

from pathlib import Path

import pytest
import torch
from small_runs import make_config

import orthoproxy
from orthoproxy.data.table import select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models.weights import read_tensors
from orthoproxy.runs.config import Config
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.run_folder import RunFolder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "orthoproxy" / "features"


@pytest.fixture
def config(photos) -> Config:
    changes = {"encoder.freeze": True, "encoder.drop_path": 0.5, "loss.proxy_regularizer.weight": 0.1}
    return make_config(photos, changes)


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


@pytest.mark.slow
def test_features_are_computed_once_and_a_run_does_not_depend_on_when(config, cache, tmp_path, monkeypatch):
    loss = {"name": "SoftTripleLoss", "args": {"centers_per_class": 2}}  # draws random numbers after the features
    config = config.with_overrides({"loss": loss})
    first = orthoproxy.train(config, tmp_path / "first")
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(Embedder, "iterate_features", None)
    second = orthoproxy.train(config, tmp_path / "second")
    assert all(torch.equal(x, weights(first)[name]) for name, x in weights(second).items())
