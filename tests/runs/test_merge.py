"""Several runs as one model: the mean of their cosines, principal components, the mean of weights, and misfits."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import json_of
from errors import input_error
from small_runs import make_config

from orthoproxy import Embedder, RunFolder, train
from orthoproxy.data.table import select_split
from orthoproxy.embedding.onnx_embedder import OnnxEmbedder
from orthoproxy.models import Encoder
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.export import export_run
from orthoproxy.runs.merge import average_weights, project_embeddings

CNN = {"encoder.name": "test_efficientnet", "encoder.embedding_dim": 6, "encoder.init_from": "none"}


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `first` and `second` from the same weights, `cnn` with another backbone, and a model `merged`."""
    folder = tmp_path_factory.mktemp("runs")
    start = folder / "start.pth"
    torch.save(Encoder("test_vit", 8, 32).backbone.state_dict(), start)
    for name, more in (("first", {}), ("second", {"training.seed": 1}), ("cnn", CNN)):
        config = make_config(photos, {"encoder.init_from": str(start), "training.epochs": 1, **more})
        train(config, folder / name, evaluate=False)
    json_of(["merge", folder / "first", folder / "cnn", "--dim", 14, "--out", folder / "merged", "--workers", 0])
    return folder


def images(runs: Path, split: str) -> list[str]:
    return select_split(split_table(RunFolder(runs / "first").config), split)["path"].tolist()


def change(place: Path, **attributes: object) -> None:
    model = Embedder.load(place)
    for name, value in attributes.items():
        setattr(model, name, value)
    model.save(place / "model")


def test_without_loss_of_dimensions_the_cosine_is_the_mean_of_the_cosines(runs: Path) -> None:
    paths = images(runs, "test")
    first, cnn, merged = (Embedder.load(runs / x).embed(paths).astype(float) for x in ("first", "cnn", "merged"))
    assert merged.shape == (20, 14)
    np.testing.assert_allclose(merged @ merged.T, (first @ first.T + cnn @ cnn.T) / 2, atol=1e-6)


def test_fewer_dimensions_are_principal_components_whatever_the_order(runs: Path) -> None:
    training, paths = images(runs, "train"), images(runs, "test")
    models = [Embedder.load(runs / name) for name in ("first", "cnn")]
    of_training, of_test = (np.concatenate([x.embed(y) for x in models], axis=1) for y in (training, paths))
    projected = of_test @ np.linalg.svd(of_training.astype(np.float64))[2][:5].T
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    for order in (models, models[::-1]):
        merged = project_embeddings(order, training, dim=5).embed(paths)
        np.testing.assert_allclose(merged @ merged.T, projected @ projected.T, atol=1e-5)


def test_a_merged_model_is_evaluated_and_exported_like_a_run(runs: Path, tmp_path: Path) -> None:
    model, paths = Embedder.load(runs / "merged" / "model"), images(runs, "test")
    scores = json_of(["evaluate", runs / "merged", "--workers", 0])
    assert scores["queries"] == 20 and scores["training_classes"] == 0
    assert scores["model"] == RunFolder(runs / "merged").scores["model"]
    export_run(runs / "merged", tmp_path / "merged.onnx")
    onnx = OnnxEmbedder(tmp_path / "merged.onnx")
    assert onnx.identity == model.identity == Embedder.load(tmp_path).identity
    np.testing.assert_allclose(onnx.embed(paths), model.embed(paths), atol=1e-5)
    with torch.no_grad():
        model.encoder.backbone[1].projection.bias[0] += 1
    assert onnx.identity != model.identity


def test_weights_and_proxies_are_averaged(runs: Path) -> None:
    models = [Embedder.load(runs / name) for name in ("first", "second")]
    average, states = average_weights(models), [x.encoder.state_dict() for x in models]
    for name, x in average.encoder.state_dict().items():
        torch.testing.assert_close(x.double(), (states[0][name].double() + states[1][name].double()) / 2)
    torch.testing.assert_close(average.proxies, (models[0].proxies + models[1].proxies) / 2)
    assert average.identity not in {x.identity for x in models}


def test_a_soup_that_is_better_than_its_runs_is_kept(runs: Path, tmp_path: Path) -> None:
    places = []
    for offset in (0, 1e12, -1e12):  # which leaves no other digits
        places.append(shutil.copytree(runs / "first", tmp_path / f"{offset:g}"))
        model = Embedder.load(places[-1])
        model.encoder.projection.bias.data.fill_(offset)
        model.save(places[-1] / "model")
    results = json_of(["merge", *places[1:], "--soup", "--out", tmp_path / "soup", "--workers", 0])
    *of_runs, of_soup = results["validation"].values()
    assert of_runs == [0, 0] and of_soup > 0.5
    assert Embedder.load(tmp_path / "soup").identity == Embedder.load(places[0]).identity


@pytest.mark.parametrize("start", ["pca", "random"])
def test_runs_of_two_seeds_start_equal_if_data_driven(start: str, runs: Path, photos: Path) -> None:
    untrained = {f"optimizer.lr.{part}": 1e-30 for part in ("backbone", "projection", "proxies")}
    more = {"encoder.init_from": str(runs / "start.pth"), "training.epochs": 1, **untrained}
    weights = []
    for seed in (0, 1):
        config = make_config(photos, {**more, "initialization.projection": start, "training.seed": seed})
        run = train(config, runs / f"{start}{seed}", evaluate=False)
        weights.append(run.load_model().encoder.projection.weight)
    assert torch.allclose(*weights, atol=1e-6) == (start == "pca")


def rewrite(run: Path, before: str, after: str) -> None:
    text = (run / "config.yaml").read_text()
    assert before in text
    (run / "config.yaml").write_text(text.replace(before, after))


@pytest.mark.parametrize(("field", "differ"), [
    ("classes", lambda run, _: change(run, classes=list("abcd"))),
    ("data.resize", lambda run, _: change(run, resize=40)), ("dim", lambda *_: None),  # too many
    ("data", lambda run, _: rewrite(run, "data: 50 images", "data: 49 images")),
    ("encoder.image_size", lambda run, _: change(run, encoder=Encoder("test_vit", 8, 48), resize=48)),
    ("others", lambda run, runs: shutil.copytree(runs / "merged", run, dirs_exist_ok=True)),
    ("encoder", lambda run, _: change(run, encoder=Encoder("test_vit", 6, 32))),
    ("baseline", lambda run, _: Embedder(Encoder("test_vit", None, 32)).save(run / "baseline")),
    ("initialization", lambda run, _: rewrite(run, "whitening: 1.0", "whitening: 0.5")),
    ("soup", lambda run, _: rewrite(run, "validation_fraction: 0.34", "validation_fraction: 0.0")),
    ("soup", lambda *_: None),  # the same weights, so the soup is not better
])  # fmt: skip
def test_runs_that_do_not_fit_are_errors(field: str, differ: Callable, runs: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(runs / "first", tmp_path / "copied"))
    differ(copied, runs)
    how = ["--soup"] if field in ("encoder", "baseline", "initialization", "soup") else ["--dim", 17]
    assert input_error(["merge", copied, runs / "first", *how, "--out", tmp_path / "out"]).field == field
    assert [path.name for path in tmp_path.iterdir()] == ["copied"]


def test_the_output_replaces_nothing(runs: Path) -> None:
    error = input_error(["merge", runs / "first", runs / "second", "--dim", 8, "--out", runs / "cnn"])
    assert error.field == "out" and Embedder.load(runs / "cnn").embedding_dim == 6
