"""Runs with a frozen backbone: features computed once, then the ordinary loop and run folder."""

import pytest
import torch
from small_runs import difference, make_config

import orthoproxy
from orthoproxy.data.table import select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models.weights import read_tensors
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.run_folder import RunFolder


def weights(run: RunFolder, folder: str = "model") -> dict[str, torch.Tensor]:
    return read_tensors(run.folder / folder / "model.safetensors", "")


def test_only_projection_and_proxies_are_trained_on_features_computed_once(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loss = {"name": "SoftTripleLoss", "args": {"centers_per_class": 2}}  # draws random numbers after the features
    changes = {"encoder.freeze": True, "encoder.drop_path": 0.5, "loss": loss, "loss.proxy_regularizer.weight": 0.1}
    config = make_config(photos, changes)
    run = orthoproxy.train(config, tmp_path / "run")
    trained, baseline = weights(run), weights(run, "baseline")
    assert all(torch.equal(trained[name], x) for name, x in baseline.items())
    for path in run.checkpoints.iterdir():
        assert set(torch.load(path, weights_only=True)["encoder"]) == {"weight", "bias"}
    assert run.load_model().proxies.shape == (4, 8) and run.records()["regularizer"].notna().any()
    # scores are those of the saved model on the images
    table = select_split(split_table(config), "test")
    again = orthoproxy.evaluate(run.load_model(), table, scoring=make_scoring(config.evaluation))
    for name, estimate in again.model.items():
        assert run.scores["model"][name]["value"] == pytest.approx(estimate.value, abs=1e-6)
    assert any("rozen" in note for note in run.scores["notes"])

    monkeypatch.setattr(Embedder, "iterate_features", None)  # features come from the cache
    assert not difference(orthoproxy.train(config, tmp_path / "second").folder, run.folder)
    rates = {"optimizer.lr": {"projection": 0, "proxies": 0}}
    still = orthoproxy.train(config.with_overrides(rates), tmp_path / "still")
    assert not torch.equal(weights(still)["projection.weight"], trained["projection.weight"])
    assert run.records()["loss"].mean() < still.records()["loss"].mean()
