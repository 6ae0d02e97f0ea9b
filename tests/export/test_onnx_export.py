"""orthoproxy export: what it writes, how it checks itself, and when it says no."""

from __future__ import annotations

import colorsys
import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from orthoproxy.runs.build import split_table
from PIL import Image

from orthoproxy import Run
from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import make_table, select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.onnx_embedder import OnnxEmbedder, read_metadata
from orthoproxy.evaluation import Estimate, Evaluation
from orthoproxy.export import export_onnx
from orthoproxy.export.onnx_export import _check, write_onnx

RECIPE = """
data: {workers: 0, resize: 32, test_fraction: 0.4, validation_fraction: 0.4}
encoder: {name: test_efficientnet, weights: none, embedding_dim: 8, image_size: 32}
training: {epochs: 1, batch_size: 8, precision: 32-true}
evaluation: {recall_at: [1, 2], draws: 50}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty classes of four images, each in shades of a colour of its own; and a run of them."""
    root = tmp_path_factory.mktemp("export")
    generator = np.random.default_rng(0)
    for number in range(20):
        (root / "images" / f"class{number}").mkdir(parents=True)
        colour = [round(255 * part) for part in colorsys.hsv_to_rgb(number / 20, 1 - number % 2 / 2, 1)]
        for image in range(4):
            pixels = np.array(colour) + generator.integers(-8, 9, (36, 40, 3))
            path = root / "images" / f"class{number}" / f"{image}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    (root / "recipe.yaml").write_text(RECIPE)
    source = ["--data.name", "folder", "--data.root", str(root / "images")]
    assert main(["train", "--config", str(root / "recipe.yaml"), *source, "--out", str(root / "run")]) == 0
    return root


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run for each test."""
    return Path(shutil.copytree(folder / "run", tmp_path / "run"))


@pytest.fixture
def paths(folder: Path) -> list[Path]:
    return sorted((folder / "images").rglob("*.png"))


def export(run: Path, out: Path, *options: str) -> int:
    return main(["export", str(run), "--out", str(out), "--data.workers", "0", *options])


def header(card: Path) -> dict:
    return yaml.safe_load(card.read_text().split("---\n")[1])


@pytest.fixture
def worse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[torch.Tensor], None]], None]:
    """Make the exporter do something to the projection's weights first, which is a mistake."""

    def make(mistake: Callable[[torch.Tensor], None]) -> None:
        def write_wrongly(model: Embedder, path: Path) -> None:
            wrong = copy.deepcopy(model)
            with torch.no_grad():
                mistake(wrong.encoder.projection.weight)
            write_onnx(wrong, path)

        monkeypatch.setattr("orthoproxy.export.onnx_export.write_onnx", write_wrongly)

    return make


def test_float32_gives_the_same_results(
    run: Path, tmp_path: Path, paths: list[Path], capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "made" / "model.onnx"
    assert export(run, out, "--license", "mit", "--false-match-rate", "0.2") == 0
    printed, original = capsys.readouterr().out, Embedder.load(run)
    assert sorted(path.name for path in out.parent.iterdir()) == ["model", "model.onnx"]
    np.testing.assert_allclose(OnnxEmbedder(out).embed(paths), original.embed(paths), atol=1e-4)
    np.testing.assert_array_equal(Embedder.load(out.parent).embed(paths), original.embed(paths))
    assert OnnxEmbedder(out).identity == Embedder.load(out.parent).identity == original.identity
    recall = Run(run).scores["model"]["recall@1"]
    shown = str(Estimate(**recall))
    assert f"Recall@1 {shown}, original {shown}, difference 0.0 [0.0, 0.0]" in printed
    difference = float(re.search(r"differ by up to (\S+)", printed)[1])
    assert 0 < difference < 1e-5


def test_the_card_names_data_recipe_scores_licence_and_files(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "model.onnx"
    assert export(run, out, "--license", "cc-by-4.0", "--false-match-rate", "0.2") == 0
    card = out.parent / "model" / "README.md"
    scores, text, said = Run(run).scores["model"], card.read_text(), header(card)
    assert said["license"] == "cc-by-4.0" and said["library_name"] == "orthoproxy"
    assert said["pipeline_tag"] == "image-feature-extraction" and said["metrics"] == list(scores)
    values = {x["type"]: x["value"] for x in said["model-index"][0]["results"][0]["metrics"]}
    assert values == {name: round(x["value"], 4) for name, x in scores.items()}
    for estimate in scores.values():
        assert str(Estimate(**estimate)) in text
    for expected in ("Trained on: folder with proxy_anchor", "1 epochs of batches of 8", "Licence: cc-by-4.0"):
        assert expected in text
    assert "| `model.onnx` | float32 | Recall@1 " in text and "No match: below a similarity of " in text


def test_the_threshold_goes_into_file_and_folder(run: Path, tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "made" / "model.onnx"
    assert export(run, out, "--false-match-rate", "0.1") == 0
    ours, model = OnnxEmbedder(out), Embedder.load(out.parent)
    assert ours.threshold == pytest.approx(model.threshold, abs=1e-6) and model.false_match_rate == 0.1
    table = select_split(split_table(Run(run).config), "validation")
    embeddings, labels = model.embed(table["path"].tolist()), table["label"].to_numpy()
    similarity = embeddings @ embeddings.T
    best = np.where(labels[:, None] == labels, -1.0, similarity).max(axis=1)
    assert 0 < (best >= model.threshold).mean() <= 0.1
    assert not (set(labels) & set(model.classes))  # classes that were not trained on


def test_too_few_validation_queries_give_no_threshold(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "made" / "model.onnx"
    assert export(run, out) == 0
    assert "note: no threshold: a false-match rate of 0.01 takes 100 queries" in capsys.readouterr().out
    assert OnnxEmbedder(out).threshold is None and Embedder.load(out.parent).threshold is None


def test_without_validation_classes_there_is_no_threshold(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("validation_fraction: 0.4", "validation_fraction: 0.0"))
    out = tmp_path / "made" / "model.onnx"
    assert export(run, out, "--false-match-rate", "0.2") == 0
    assert "note: no threshold: the run kept no validation classes apart" in capsys.readouterr().out
    assert OnnxEmbedder(out).threshold is None


def test_int8_is_another_model_a_quarter_of_the_size(run: Path, tmp_path: Path, paths: list[Path]) -> None:
    out = tmp_path / "made"
    assert export(run, out / "model.onnx", "--false-match-rate", "0.2") == 0
    assert export(run, out / "int8.onnx", "--false-match-rate", "0.2", "--int8") == 0
    single, ours = read_metadata(out / "model.onnx"), OnnxEmbedder(out / "int8.onnx")
    assert ours.metadata.precision == "int8" and ours.metadata.source == single.identity != ours.identity
    kinds = {node.op_type for node in onnx.load(out / "int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    original, exported = Embedder.load(run).embed(paths), ours.embed(paths)
    assert np.abs(original - exported).max() > 1e-4  # it is rounded
    assert (original * exported).sum(axis=1).mean() > 0.95  # and not too far off
    assert np.linalg.norm(exported, axis=1) == pytest.approx(np.ones(len(paths)), abs=1e-5)
    assert sorted(path.name for path in out.iterdir()) == ["int8.onnx", "model", "model.onnx"]
    text = (out / "model" / "README.md").read_text()
    assert "| `model.onnx` | float32 |" in text and "| `int8.onnx` | int8 |" in text


def test_int8_that_loses_too_much_is_refused_and_leaves_nothing(
    run: Path, tmp_path: Path, worse: Callable, capsys: pytest.CaptureFixture
) -> None:
    worse(lambda weight: weight.zero_())  # all images get the same embedding
    assert export(run, tmp_path / "made" / "model.onnx", "--int8") == 2
    assert "int8: Recall@1 changes by -100.0" in capsys.readouterr().err
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize(("low", "passes"), [(-0.0099, True), (-0.0101, False), (float("nan"), False)])
def test_int8_is_judged_by_the_upper_bound_of_its_loss(low: float, passes: bool) -> None:
    change = {"recall@1": Estimate(0.0, low, 0.001)}
    some = {"recall@1": Estimate(0.5, 0.4, 0.6)}
    scores = Evaluation(some, some, change, queries=9, classes=3, queries_without_positive=0, seconds=0.0)
    if passes:
        _check(True, 1.0, scores)
    else:
        with pytest.raises(InputError) as error:
            _check(True, 1.0, scores)
        assert error.value.field == "int8"


def test_float32_that_differs_is_refused_and_what_was_there_stays(
    run: Path, tmp_path: Path, worse: Callable, capsys: pytest.CaptureFixture
) -> None:
    worse(lambda weight: weight[:4].mul_(1.01))
    out = tmp_path / "made" / "model.onnx"
    out.parent.mkdir()
    out.write_text("an earlier export")
    assert export(run, out) == 2
    assert re.search(r"differ from the original's by up to 0\.00\d+", capsys.readouterr().err)
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"] and out.read_text() == "an earlier export"


def test_beside_the_runs_own_model_its_card_and_threshold_are_brought_up_to_date(run: Path) -> None:
    weights = (run / "model" / "model.safetensors").read_bytes()
    assert export(run, run / "model.onnx", "--license", "mit", "--false-match-rate", "0.2") == 0
    kept = json.loads((run / "model" / "config.json").read_text())
    assert kept["false_match_rate"] == 0.2 and header(run / "model" / "README.md")["license"] == "mit"
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    assert main(["report", str(run)]) == 0  # which keeps what was chosen
    assert json.loads((run / "model" / "config.json").read_text()) == kept
    assert header(run / "model" / "README.md")["license"] == "mit"
    assert export(run, run / "again.onnx", "--false-match-rate", "0.2") == 0
    assert header(run / "model" / "README.md")["license"] == "mit"


def test_a_model_folder_of_a_run_will_do_and_another_model_is_never_overwritten(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "made" / "model.onnx"
    assert export(run / "model", out) == 0
    assert export(run, out) == 0  # the same model again
    other = Embedder.load(run)
    with torch.no_grad():
        other.encoder.projection.bias.add_(1)
    other.save(tmp_path / "other" / "model")
    (tmp_path / "things" / "model").mkdir(parents=True)
    (tmp_path / "things" / "model" / "notes.txt").write_text("mine")
    for place in ("other", "things"):
        assert export(run, tmp_path / place / "model.onnx") == 2
        assert "is there and holds something else; give a file in another folder" in capsys.readouterr().err
        assert not (tmp_path / place / "model.onnx").exists()
    assert (tmp_path / "things" / "model" / "notes.txt").read_text() == "mine"


def test_images_that_were_moved(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(folder / "images", tmp_path / "moved")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(folder / "images"), "/nowhere"))
    out = tmp_path / "made" / "model.onnx"
    assert export(run, out) == 2
    assert "/nowhere" in capsys.readouterr().err
    assert export(run, out, "--data.root", str(tmp_path / "moved")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "model.pt"], "--out: model.pt; give a file that ends in .onnx"),
        (["--out", "model.onnx", "--false-match-rate", "1"], "--false-match-rate: must be above 0 and below 1, not 1"),
        (["--out", "model.onnx", "--false-match-rate", "some"], "false_match_rate"),
        ([], "arguments are required: --out"),
    ],
)
def test_what_cannot_be_is_named(
    options: list[str], message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()


def test_what_is_no_run_has_no_images_to_check_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Embedder.load(run).save(tmp_path / "alone")
    assert export(tmp_path / "alone", tmp_path / "model.onnx") == 2
    assert "alone is no run folder; its test images check what is exported" in capsys.readouterr().err


def test_no_images_to_check_on(run: Path, tmp_path: Path) -> None:
    model, nothing = Embedder.load(run), make_table(["x"], ["x"]).iloc[:0]
    with pytest.raises(InputError) as error:
        export_onnx(model, tmp_path / "model.onnx", nothing, nothing)
    assert error.value.field == "test"
    with pytest.raises(InputError) as error:
        export_onnx(model, tmp_path / "model.onnx", make_table(["x"], ["x"]), nothing, int8=True)
    assert error.value.field == "training"


def test_an_evaluation_comes_back_from_json(run: Path) -> None:
    scores = json.loads((run / "evaluation.json").read_text())
    evaluation = Evaluation.from_dict(scores)
    assert evaluation.to_dict() == {name: scores[name] for name in evaluation.to_dict()}
    plain = replace(evaluation, with_same_group=replace(evaluation, baseline=None, difference=None))
    assert Evaluation.from_dict(plain.to_dict()) == plain
