"""Exported files give the original's results, and an export that does not is rejected."""

import copy
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from errors import error_of, input_error
from small_runs import make_config

import orthoproxy
from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import make_table
from orthoproxy.data.table import select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.onnx_embedder import OnnxEmbedder
from orthoproxy.evaluation import Estimate, Evaluation
from orthoproxy.export import export_onnx, onnx_export
from orthoproxy.export.onnx_export import Exported, _check, write_onnx
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.export import export_run
from orthoproxy.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, of a convolutional network."""
    root = tmp_path_factory.mktemp("export")
    orthoproxy.train(make_config(photos, {"encoder.name": "test_efficientnet"}), root / "run")
    return root


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "run", tmp_path / "run"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "exports" / "model.onnx"


def header(card: Path) -> dict[str, Any]:
    return yaml.safe_load(card.read_text().split("---\n")[1])


def write_wrongly(change: Callable[[torch.Tensor], Any]) -> Callable[[Embedder, Path], None]:
    """An exporter that changes the projection's weights."""

    def write(model: Embedder, path: Path) -> None:
        wrong = copy.deepcopy(model)
        with torch.no_grad():
            change(wrong.encoder.projection.weight)
        write_onnx(wrong, path)

    return write


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    return export_run(folder / "run", folder / "exports" / "a.onnx", license="cc-by-4.0", false_match_rate=0.2)


def test_float32_gives_the_same_results(exported: Exported, folder: Path, photos: Path) -> None:
    ours, original = OnnxEmbedder(exported.path), Embedder.load(folder / "run")
    beside = Embedder.load(exported.path.parent)
    paths = sorted(photos.glob("*/*.png"))
    assert sorted(path.name for path in exported.path.parent.iterdir()) == ["a.onnx", "model"]
    np.testing.assert_allclose(ours.embed(paths), original.embed(paths), atol=1e-4)
    np.testing.assert_array_equal(beside.embed(paths), original.embed(paths))
    assert ours.identity == beside.identity == original.identity
    assert exported.scores is not None and exported.scores.difference is not None
    assert exported.scores.difference["recall@1"] == Estimate(0, 0, 0)
    scores = RunFolder(folder / "run").scores
    assert scores is not None and exported.scores.model["recall@1"] == Estimate(**scores["model"]["recall@1"])
    assert 0 < exported.difference < 1e-5


def test_the_model_card_has_scores_and_license_and_there_is_a_threshold(exported: Exported, folder: Path) -> None:
    card = exported.path.parent / "model" / "README.md"
    scores, fields = RunFolder(folder / "run").scores, header(card)
    assert scores is not None and fields["license"] == "cc-by-4.0" and fields["library_name"] == "orthoproxy"
    values = {x["type"]: x["value"] for x in fields["model-index"][0]["results"][0]["metrics"]}
    assert values == {name: round(x["value"], 4) for name, x in scores["model"].items()}
    assert all(str(Estimate(**x)) in card.read_text() for x in scores["model"].values())
    # a threshold from classes that were not trained on is stored in the file and the folder
    model = Embedder.load(exported.path.parent)
    assert model.threshold is not None and model.false_match_rate == 0.2
    assert OnnxEmbedder(exported.path).threshold == pytest.approx(model.threshold, abs=1e-6)
    table = select_split(split_table(RunFolder(folder / "run").config), "validation")
    embeddings, labels = model.embed(table["path"].tolist()), table["label"].to_numpy()
    best = np.where(labels[:, None] == labels, -1.0, embeddings @ embeddings.T).max(axis=1)
    assert 0 < (best >= model.threshold).mean() <= 0.2
    assert not set(labels) & set(model.classes)


@pytest.mark.slow
def test_no_threshold_without_enough_validation_queries(run: Path, out: Path) -> None:
    exported = export_run(run, out)  # a rate of 0.01 takes 100 queries
    assert exported.matching is not None and exported.metadata.threshold is None
    assert OnnxEmbedder(out).threshold is None and Embedder.load(out.parent).threshold is None
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("validation_fraction: 0.34", "validation_fraction: 0.0"))
    exported = export_run(run, out, false_match_rate=0.2)
    assert exported.matching is None and OnnxEmbedder(out).threshold is None


@pytest.mark.slow
def test_int8_is_another_model_near_the_original(run: Path, out: Path, photos: Path) -> None:
    int8 = out.with_name("int8.onnx")
    export_run(run, out, false_match_rate=0.2)
    export_run(run, int8, false_match_rate=0.2, int8=True)
    float32, quantized = OnnxEmbedder(out), OnnxEmbedder(int8)
    assert quantized.metadata.precision == "int8"
    assert quantized.metadata.source == float32.identity != quantized.identity
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(int8).graph.node}
    paths = sorted(photos.glob("*/*.png"))
    original, exported = Embedder.load(run).embed(paths), quantized.embed(paths)
    assert np.abs(original - exported).max() > 1e-4
    assert (original * exported).sum(axis=1).mean() > 0.95
    np.testing.assert_allclose(np.linalg.norm(exported, axis=1), 1, atol=1e-5)
    assert sorted(path.name for path in out.parent.iterdir()) == ["int8.onnx", "model", "model.onnx"]


@pytest.mark.slow
def test_int8_that_loses_recall_is_rejected(run: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "write_onnx", write_wrongly(torch.Tensor.zero_))  # the same embedding for all
    assert error_of(export_run, run, out, int8=True).field == "int8"
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(("low", "passes"), [(-0.0099, True), (-0.0101, False), (float("nan"), False)])
def test_int8_is_checked_by_the_upper_bound_of_its_loss(low: float, passes: bool) -> None:
    recall, change = {"recall@1": Estimate(0.5, 0.4, 0.6)}, {"recall@1": Estimate(0.0, low, 0.001)}
    scores = Evaluation(recall, recall, change, queries=9, classes=3, queries_without_positive=0, seconds=0.0)
    with nullcontext() if passes else pytest.raises(InputError):
        _check(True, 1.0, scores)


@pytest.mark.slow
def test_float32_that_differs_is_rejected_and_the_old_file_stays(run: Path, out: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_export, "write_onnx", write_wrongly(lambda weight: weight[:4].mul_(1.01)))
    out.parent.mkdir()
    out.write_text("an earlier export")
    assert error_of(export_run, run, out).expected == "at most 0.0001"
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"] and out.read_text() == "an earlier export"


@pytest.mark.slow
def test_an_export_into_the_run_updates_its_card_and_threshold(run: Path) -> None:
    weights = (run / "model" / "model.safetensors").read_bytes()
    export_run(run, run / "model.onnx", license="mit", false_match_rate=0.2)
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["false_match_rate"] == 0.2 and header(run / "model" / "README.md")["license"] == "mit"
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    assert main(["report", str(run)]) == 0
    assert json.loads((run / "model" / "config.json").read_text()) == config
    export_run(run, run / "again.onnx", false_match_rate=0.2)
    assert header(run / "model" / "README.md")["license"] == "mit"


@pytest.mark.slow
def test_another_model_is_never_overwritten(run: Path, out: Path, tmp_path: Path) -> None:
    for place in (run / "model", run):  # twice the same model
        assert isinstance(export_run(place, out), Exported)
    other = Embedder.load(run)
    with torch.no_grad():
        other.encoder.projection.bias.add_(1)
    other.save(tmp_path / "other" / "model")
    (tmp_path / "files" / "model").mkdir(parents=True)
    (tmp_path / "files" / "model" / "notes.txt").write_text("mine")
    for place in ("other", "files"):
        assert error_of(export_run, run, tmp_path / place / "model.onnx").path == tmp_path / place / "model"
        assert not (tmp_path / place / "model.onnx").exists()
    assert (tmp_path / "files" / "model" / "notes.txt").read_text() == "mine"


def test_invalid_arguments(run: Path, out: Path, tmp_path: Path) -> None:
    assert error_of(export_run, run / "baseline", out).path == run / "baseline"  # not the trained model
    assert error_of(export_run, run, out, false_match_rate=1.0).field == "false_match_rate" and not out.exists()
    assert input_error(["export", run, "--out", out, "--false-match-rate", 0]).field == "false_match_rate"
    Embedder.load(run).save(tmp_path / "alone")
    assert error_of(export_run, tmp_path / "alone", out).path == tmp_path / "alone"
    model, table = Embedder.load(run), make_table(["x"], ["x"])
    rate = error_of(export_onnx, model, out, table, table, false_match_rate=2)  # before an image is read
    assert rate.field == "false_match_rate"
    for test, int8, field in ((table[:0], False, "test"), (table, True, "training")):
        assert error_of(export_onnx, model, out, test, table[:0], int8=int8).field == field
