"""A whole run on a few images: what it writes, how it resumes, what it rejects."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from errors import error_of
from small_runs import difference, make_config

import orthoproxy
from orthoproxy.data.table import select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models.weights import read_tensors
from orthoproxy.runs.config import Config, TrainingConfig
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.device import choose_precision, evaluation_precision, make_scoring
from orthoproxy.runs.evaluate import evaluate_run, write_report
from orthoproxy.runs.recipes import read_config, write_config
from orthoproxy.runs.run_folder import RunFolder

FROZEN_RATES = {"optimizer.lr": {"backbone": 0, "projection": 0, "proxies": 0}}
SKIP = {"data.on_unreadable_image": "skip"}


@pytest.fixture(scope="module")
def config(photos) -> Config:
    """Two epochs of three steps."""
    changes = {"sampler.batch_size": 6, "loss.proxy_regularizer.weight": 0.1, "training.epochs": 2}
    return make_config(photos, changes)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> RunFolder:
    return orthoproxy.train(config, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def short(config) -> Config:
    return config.with_overrides({"training.epochs": 1})


def weights(run: RunFolder, folder: str = "model") -> dict[str, torch.Tensor]:
    return read_tensors(run.folder / folder / "model.safetensors", "")


def times_of_change(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_run_folder_is_complete(finished, config):
    table, model = split_table(config), finished.load_model()
    classes = {split: set(select_split(table, split)["label"]) for split in ("train", "validation", "test")}
    assert {split: len(labels) for split, labels in classes.items()} == {"train": 4, "validation": 2, "test": 4}
    assert model.classes == sorted(classes["train"]) and model.proxies.shape == (4, 8)
    saved = read_config(finished.folder / "config.yaml")
    assert saved.flatten() == config.flatten()
    assert saved.environment["torch"] == torch.__version__.partition("+")[0]
    lines = [json.loads(line) for line in finished.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]
    score = f"{100 * finished.scores['model']['recall@1']['value']:.1f}"
    assert score in finished.report.read_text() and score in (finished.folder / "model" / "README.md").read_text()


def test_the_best_model_on_validation_is_scored_beside_the_baseline(finished, config):
    scores = finished.scores
    assert (scores["queries"], scores["classes"], scores["queries_without_positive"]) == (20, 4, 0)
    assert [*scores["model"]] == ["recall@1", "recall@2", "map@r", "r_precision", "mrr"]
    assert scores["selected_on"] == "validation" and len(scores["notes"]) == 1
    table = select_split(split_table(config), "test")
    alone = orthoproxy.evaluate(orthoproxy.load(finished.baseline), table, scoring=make_scoring(config.evaluation))
    assert alone.model["map@r"].value == scores["baseline"]["map@r"]["value"]
    trained, start = weights(finished), weights(finished, "baseline")
    assert not torch.equal(trained["backbone.cls_token"], start["backbone.cls_token"])
    # the model is the best on validation
    best = torch.load(finished.checkpoints / "best.ckpt", weights_only=True)
    assert best["state"]["best_score"] == finished.records()["validation/map@r"].dropna().max()
    assert torch.equal(best["encoder"]["projection.weight"], trained["projection.weight"])
    torch.testing.assert_close(best["objective"]["loss.proxies"], finished.load_model().proxies)


def test_evaluation_can_come_later_and_a_finished_run_is_returned_as_it_is(finished, config, tmp_path):
    run = orthoproxy.train(config, tmp_path / "run", evaluate=False)
    assert run.has_model and not run.has_report and run.scores is None
    before = times_of_change(run.folder)
    assert not orthoproxy.train(config, run.folder, resume=True, evaluate=False).has_report
    assert times_of_change(run.folder) == before
    assert not difference(orthoproxy.train(config, run.folder, resume=True).folder, finished.folder)
    before = times_of_change(run.folder)
    orthoproxy.train(config, run.folder, resume=True)
    assert times_of_change(run.folder) == before


def test_a_run_of_version_1_gets_one_clear_error(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "old")
    (tmp_path / "old" / "baseline").rename(tmp_path / "old" / "untrained")
    error = error_of(lambda: RunFolder(tmp_path / "old").config)
    assert error.path == tmp_path / "old" and error.hint


def test_selection_on_test_classes_is_labeled(short, tmp_path):
    run = orthoproxy.train(short.with_overrides({"checkpoint_selection.split": "test"}), tmp_path / "run")
    assert run.scores["selected_on"] == "test" and len(run.scores["notes"]) == 1
    assert run.scores["notes"][0] in run.report.read_text()


def test_a_loss_without_proxies_trains(short, tmp_path):
    loss = {"name": "MultiSimilarityLoss", "miner": {"name": "MultiSimilarityMiner"}}
    run = orthoproxy.train(short.with_overrides({"loss": loss, "sampler.images_per_class": 2}), tmp_path / "run")
    assert run.load_model().proxies is None and not (run.folder / "model" / "proxies.safetensors").exists()


def test_starting_from_a_run_keeps_its_projection_and_known_proxies(finished, short, tmp_path):
    overrides = {"encoder.init_from": f"run:{finished.folder}", "data.test_fraction": 0.2}
    overrides |= {"data.validation_fraction": 0, **FROZEN_RATES}
    run = orthoproxy.train(short.with_overrides(overrides), tmp_path / "run")
    before, after = finished.load_model(), run.load_model()
    known = dict(zip(before.classes, before.proxies, strict=True))
    assert set(known) < set(after.classes)
    for label, proxy in zip(after.classes, after.proxies, strict=True):
        if label in known:
            assert torch.equal(proxy, known[label])
        else:
            assert proxy.norm().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(weights(run)["projection.weight"], weights(finished)["projection.weight"])


def test_classes_of_an_earlier_run_are_not_evaluated_as_unseen(finished, config, tmp_path):
    overrides = {"encoder.init_from": f"run:{finished.folder}", "data.test_fraction": 0.8}
    assert error_of(orthoproxy.train, config.with_overrides(overrides), tmp_path / "run").field == "encoder.init_from"


def test_random_initialization(short, tmp_path):
    overrides = {"initialization": {"projection": "random", "proxies": "random"}, **FROZEN_RATES}
    run = orthoproxy.train(short.with_overrides(overrides), tmp_path / "run")
    weight = weights(run)["projection.weight"]
    limit = weight.shape[1] ** -0.5  # PyTorch's default for a linear layer
    assert 0.9 * limit < weight.abs().max() <= limit
    assert run.load_model().proxies.norm(dim=1).mean() > 1.5  # 2 is expected: Kaiming, fan-out of 4 classes, D = 8


def test_proxies_start_as_class_means_from_one_pass_over_the_images(short, tmp_path):
    overrides = {"data.validation_fraction": 0, "data.test_fraction": 0, **FROZEN_RATES}
    with patch.object(Embedder, "embed", autospec=True, side_effect=Embedder.embed) as embed:
        run = orthoproxy.train(short.with_overrides(overrides), tmp_path / "run", evaluate=False)
    table, model = split_table(run.config), run.load_model()
    inputs = [call.args[1] for call in embed.call_args_list]
    assert sorted(path for images in inputs if isinstance(images, list) for path in images) == sorted(table["path"])
    embeddings = torch.from_numpy(model.embed(table["path"].tolist()))
    for label, proxy in zip(model.classes, model.proxies, strict=True):
        mean = embeddings[torch.tensor((table["label"] == label).tolist())].mean(dim=0)
        torch.testing.assert_close(proxy, mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_trains_projection_and_proxies_on_features_computed_once(photos, tmp_path, monkeypatch):
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


def test_experiment_trackers_get_the_metrics(short, tmp_path):
    run = orthoproxy.train(short.with_overrides({"training.loggers": ["tensorboard"]}), tmp_path / "run")
    assert list((run.folder / "tensorboard").rglob("events.out.tfevents.*"))


@pytest.fixture
def damaged(config, own_photos) -> tuple[Config, dict[str, list[Path]]]:
    """A configuration of a copy of the photos to damage, and its files by split."""
    config = config.with_overrides({"data.root": str(own_photos), "training.epochs": 1, **SKIP})
    table = split_table(config)
    splits = ("train", "validation", "test")
    return config, {split: [Path(path) for path in select_split(table, split)["path"]] for split in splits}


def test_unreadable_images_are_left_out_of_every_split_and_listed_also_after_resuming(damaged, tmp_path):
    config, files = damaged
    gone = files["train"][0].parent  # a whole class, which gets no proxy
    splits = {**dict.fromkeys(gone.iterdir(), "train"), files["validation"][3]: "validation", files["test"][0]: "test"}
    content = {path: path.read_bytes() for path in splits}
    for length, path in enumerate(splits):
        path.write_bytes(content[path][: 100 * length])
    run = orthoproxy.train(config, tmp_path / "run")
    listed = pd.read_csv(run.folder / "unreadable_images.csv", index_col="path")
    assert list(listed) == ["split", "label", "reason"]
    assert listed["split"].to_dict() == {str(path): split for path, split in splits.items()}
    assert run.scores["queries"] == 19 and len(run.scores["notes"]) == 2
    assert len(run.load_model().classes) == 3 and gone.name not in run.load_model().classes
    for path in content:
        path.write_bytes(content[path])  # readable again, but the run continues as it began
    unfinished = shutil.ignore_patterns("model", "report.html", "evaluation.json")
    shutil.copytree(run.folder, tmp_path / "resumed", ignore=unfinished)
    assert not difference(orthoproxy.train(config, tmp_path / "resumed", resume=True).folder, run.folder)


def test_what_cannot_be_evaluated_is_found_before_training(damaged, tmp_path):
    config, files = damaged
    first: dict[Path, Path] = {}
    for path in files["test"]:
        if first.setdefault(path.parent, path) != path:
            path.write_bytes(b"not an image")
    error_of(orthoproxy.train, config, tmp_path / "run")  # no query has a positive
    files["train"][0].unlink()
    listed = tmp_path / "list.csv"
    pd.DataFrame({"path": [str(path) for path in files["train"]], "label": "a"}).to_csv(listed, index=False)
    overrides = {"data.name": "csv", "data.csv": str(listed), "data.test_fraction": 0}
    config = config.with_overrides(overrides | {"data.on_unreadable_image": "raise"})
    error = error_of(orthoproxy.train, config, tmp_path / "run")
    assert (error.field, error.path) == ("data.csv", str(files["train"][0]))
    assert not (tmp_path / "run").exists()


def test_a_failed_start_can_be_started_over(short, tmp_path):
    wide = short.with_overrides({"encoder.embedding_dim": 4096})
    assert error_of(orthoproxy.train, wide, tmp_path / "run").field == "encoder.embedding_dim"
    assert orthoproxy.train(short, tmp_path / "run").config.encoder.embedding_dim == 8


def test_a_run_started_with_relative_paths_is_evaluated_from_anywhere(finished, short, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = {"data.root": os.path.relpath(photos), "encoder.init_from": f"run:{os.path.relpath(finished.folder)}"}
    run = orthoproxy.train(short.with_overrides(relative), evaluate=False)
    assert run.folder.resolve() == tmp_path / "runs" / "folder"
    monkeypatch.chdir(photos)
    run = RunFolder(tmp_path / "runs" / "folder")
    assert run.config.data.root == str(photos)
    assert run.config.encoder.init_from == f"run:{finished.folder}"
    write_report(run, evaluate_run(run))
    assert run.has_report


def test_a_run_trained_on_a_gpu_is_evaluated_on_a_cpu(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    on_gpu = finished.config.with_overrides({"training.device": "cuda", "training.precision": "auto"})
    write_config(on_gpu, folder / "config.yaml")
    expected, found = (evaluate_run(run, "cpu").evaluation for run in (finished, RunFolder(folder)))
    assert expected is not None and found is not None and found.model == expected.model


def embedding():
    return patch.object(Embedder, "embed_distributed", autospec=True, side_effect=Embedder.embed_distributed)


def test_evaluation_embeds_in_the_precision_for_its_device(finished):
    with patch("orthoproxy.runs.evaluate.evaluation_precision", return_value="bf16-mixed") as chosen, embedding() as by:
        evaluate_run(finished, "cpu")
    chosen.assert_called_once_with("cpu", "32-true")
    assert [call.kwargs["precision"] for call in by.call_args_list] == ["bf16-mixed"] * 2  # model and baseline


def test_initialization_and_validation_are_computed_in_the_precision_of_training(short, tmp_path):
    weights = {}
    for precision in ("32-true", "bf16-mixed"):
        config = short.with_overrides({**FROZEN_RATES, "training.precision": precision})
        with embedding() as by:
            run = orthoproxy.train(config, tmp_path / precision, evaluate=False)
        assert [call.kwargs["precision"] for call in by.call_args_list] == [precision]  # of the only validation
        weights[precision] = run.load_model().encoder.projection.weight.detach()
    difference = float((weights["bf16-mixed"] - weights["32-true"]).abs().max())
    assert 1e-5 < difference < 0.3  # the rounding of bfloat16 features, scaled up by the whitening


@pytest.mark.parametrize(("capabilities", "native"), [({"avx512_bf16": True}, True), ({"avx512_bf16": False}, False)])
def test_bfloat16_is_chosen_where_the_cpu_computes_it_natively(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    precision = choose_precision(TrainingConfig(device="cpu"))
    assert precision == ("bf16-mixed" if native else "32-true")
    assert evaluation_precision("cpu", precision) == "32-true"
    assert evaluation_precision("cuda", "bf16-mixed") == "bf16-mixed"
