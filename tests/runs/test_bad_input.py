"""Invalid input of a training run: the error names field and path, the exit code is 2, and nothing is lost."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import input_error
from PIL import Image

from orthoproxy.cli.main import main
from orthoproxy.runs.run_folder import RunFolder

RECIPE = """
data: {name: folder, test_fraction: 0.4, validation_fraction: 0.34, workers: 0, resize: 32}
encoder: {name: test_vit, init_from: none, embedding_dim: 8, image_size: 32}
sampler: {batch_size: 6, images_per_class: 2}
training: {epochs: 2, log_every_n_steps: 1, precision: 32-true}
evaluation: {recall_at: [1, 2], bootstrap_samples: 20}
"""
TRAINING, TEST = "class 5", "class 1"  # by the hash of the name


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of three images, and recipe.yaml; nobody writes into the folder."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(10):
        (root / "images" / f"class {number}").mkdir(parents=True)
        color = generator.integers(60, 256, size=3)
        for copy in range(3):
            pixels = color + generator.integers(-40, 40, size=(36, 40, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / "images" / f"class {number}" / f"{copy}.png")
    (root / "recipe.yaml").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test changes."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(arguments(photos, out)) == 0
    return out


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A copy that has its checkpoints, but no model yet."""
    out = tmp_path / "unfinished"
    return Path(shutil.copytree(finished, out, ignore=shutil.ignore_patterns("model", "report.html", "*.json")))


def arguments(photos: Path, out: Path, *more: object, root: Path | None = None) -> list[str]:
    words = ["train", "--config", photos / "recipe.yaml", "--data.root", root or photos / "images", "--out", out, *more]
    return [str(word) for word in words]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def csv_file(images: Path, *lines: str, encoding: str = "utf-8") -> list[object]:
    (images.parent / "list.csv").write_text("\n".join(lines), encoding=encoding)
    return ["--data.name", "csv", "--data.csv", images.parent / "list.csv"]


def empty_class(images: Path) -> list[object]:
    (images / "gull").mkdir()
    return []


SOURCES: dict[str, tuple[str, Callable[[Path], list[object]]]] = {
    "no folder": ("data.root", lambda images: ["--data.root", images / "nowhere"]),
    "a file as folder": ("data.root", lambda images: ["--data.root", images / TEST / "1.png"]),
    "an empty class": ("data.root", empty_class),
    "no CSV file": ("data.csv", lambda images: ["--data.name", "csv", "--data.csv", images / "nowhere.csv"]),
    "no column label": ("data.csv", lambda images: csv_file(images, "path,class", "a.png,gull")),
    "not UTF-8": ("data.csv", lambda images: csv_file(images, "path,label", "a.png,Möwe", encoding="latin-1")),
    "outside the root": ("data.csv", lambda images: csv_file(images, "path,label", f"../1.png,{TEST}")),
}


@pytest.mark.parametrize("name", SOURCES)
def test_images_that_cannot_be_listed(name: str, photos: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(photos / "images", tmp_path / "images"))
    field, spoil = SOURCES[name]
    assert input_error(arguments(photos, tmp_path / "run", *spoil(images), root=images)).field == field
    assert not (tmp_path / "run").exists()


def test_a_class_with_one_image_is_noted(photos: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(photos / "images", tmp_path / "images")
    for label in (TRAINING, TEST):
        for number in (1, 2):
            (tmp_path / "images" / label / f"{number}.png").unlink()
    assert main(arguments(photos, tmp_path / "run", root=tmp_path / "images")) == 0
    scores = RunFolder(tmp_path / "run").scores
    assert scores is not None
    assert [scores[name] for name in ("queries", "classes", "queries_without_positive")] == [9, 3, 1]
    error = capsys.readouterr().err
    assert TRAINING in error or TEST in error


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><title>404</title></html>")


def decompression_bomb(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path, compress_level=1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("spoil", [cut, web_page, decompression_bomb], ids=lambda spoil: spoil.__name__)
def test_an_unreadable_training_image(spoil, workers: int, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "images", tmp_path / "images")
    spoil(broken := tmp_path / "images" / TRAINING / "1.png")
    error = input_error(arguments(photos, tmp_path / "run", "--workers", workers, root=tmp_path / "images"))
    assert Path(str(error.path)) == broken and error.hint is not None


def test_an_unreadable_test_image_costs_no_training(photos: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "images", tmp_path / "images")
    (broken := tmp_path / "images" / TEST / "1.png").write_bytes(b"")
    out = tmp_path / "run"
    assert Path(str(input_error(arguments(photos, out, root=tmp_path / "images")).path)) == broken
    shutil.copy(photos / "images" / TEST / "1.png", broken)
    trained = files(out / "checkpoints")
    assert main(arguments(photos, out, "--resume", root=tmp_path / "images")) == 0
    assert trained in ({}, files(out / "checkpoints")) and weights(out) == weights(finished)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("training: {epoch: 3}", "training.epoch"),
        ("trainning: {epochs: 3}", "trainning"),
        ("loss: {proxy_regularizer: {wieght: 0.3}}", "loss.proxy_regularizer.wieght"),
        ("training: {epochs: 0}", "training.epochs"),
        ("training: {epochs: 3", None),
        ("training:\n\tepochs: 3", None),
        ("- 1", None),
        ("training: {epochs: 3}\ntraining: {seed: 3}", None),
    ],
)
def test_a_recipe_with_a_mistake(text: str, field: str | None, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    error = input_error(["train", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")])
    assert (error.field, error.path) == (field, tmp_path / "recipe.yaml")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (["--resume", "--training.epochs", 3], "training.epochs"),
        (["--resume", "--loss.args.margin", 0.2], "loss.args"),
        ([], "out"),
    ],
)
def test_another_configuration_leaves_a_run_alone(more: list, field: str, photos: Path, unfinished: Path) -> None:
    before = files(unfinished)
    error = input_error(arguments(photos, unfinished, *more))
    assert (error.field, error.path) == (field, unfinished)
    assert files(unfinished) == before


@pytest.mark.parametrize("name", ["checkpoints/mine.ckpt", "metrics.jsonl", "model/mine.pt", "report.html"])
def test_files_of_others_are_not_overwritten(name: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("of many days")
    assert input_error(arguments(photos, tmp_path)).field == "out"
    assert files(tmp_path) == {name: b"of many days"}


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_place_of_the_run_folder(below: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "notes.txt" in str(input_error(arguments(photos, tmp_path / "notes.txt" / below)).path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_damaged_scores_are_written_again_by_report(photos: Path, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    cut(out / "evaluation.json")
    assert input_error(arguments(photos, out, "--resume")).path == out / "evaluation.json"
    assert main(["report", str(out)]) == 0 and main(arguments(photos, out, "--resume")) == 0


def test_a_file_size_limit_costs_nothing(photos: Path, finished: Path, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        error = input_error(arguments(photos, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert Path(str(error.path)).is_relative_to(tmp_path / "run")
    assert main(arguments(photos, tmp_path / "run", "--resume")) == 0
    assert weights(tmp_path / "run") == weights(finished)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu(photos: Path, finished: Path, tmp_path: Path) -> None:
    assert input_error(arguments(photos, tmp_path / "run", "--device", "cuda")).field == "training.device"
    assert not (tmp_path / "run").exists()
    assert input_error(["evaluate", str(finished), "--device", "cuda"]).field == "device"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder.name", "test_vti"),
        ("encoder.init_from", "FOLDER/other.safetensors"),
        ("encoder.init_from", "FOLDER/page.pth"),
        ("encoder.init_from", "FOLDER/nowhere.pth"),
        ("encoder.init_from", "run:FOLDER/nowhere"),
        ("encoder.embedding_dim", 0),
        ("loss.name", "ProxyAnchor"),
        ("loss.args.margni", 0.2),
        ("loss.miner.name", "Miner"),
    ],
)
def test_encoders_and_losses_that_do_not_exist(key: str, value: object, photos: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file({"stem.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    web_page(tmp_path / "page.pth")
    error = input_error(arguments(photos, tmp_path / "run", f"--{key}", str(value).replace("FOLDER", str(tmp_path))))
    assert error.field is not None and key.startswith(error.field)
    assert not (tmp_path / "run").exists()
