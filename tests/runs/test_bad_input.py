"""Invalid input of a training run: the error names field and path, the exit code is 2, and nothing is lost."""

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from errors import error_of, input_error
from small_runs import contents, make_config, training
from synthetic_study import write_study

from orthoproxy.cli.main import main
from orthoproxy.data import folder_table
from orthoproxy.runs.dataset import check_images, user_cache
from orthoproxy.runs.train import train


@pytest.fixture
def arguments(recipe: Path, photos: Path) -> Callable[..., list[str]]:
    return lambda out, *more: training(recipe, photos, out, "--data.workers", 0, *more)


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_no_folder_for_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nobody")  # read-only
    assert "XDG_CACHE_HOME" in str(error_of(user_cache).hint)
    if os.getuid() == 0:
        monkeypatch.delenv("HOME")
        os.setreuid(12345, -1)  # a user whom the system does not know
        try:
            assert "XDG_CACHE_HOME" in str(error_of(user_cache).hint)
        finally:
            os.setreuid(0, -1)


def test_an_unreadable_test_image_costs_no_training(recipe, own_photos, photos, whole, tmp_path) -> None:
    (broken := own_photos / "class 1" / "1.png").write_bytes(b"")  # a test class by the hash of the name
    words = training(recipe, own_photos, out := tmp_path / "run")
    error = input_error(words)
    assert Path(str(error.path)) == broken and error.hint is not None
    shutil.copy(photos / "class 1" / "1.png", broken)
    trained = contents(out / "checkpoints")
    assert main([*words, "--resume"]) == 0
    assert trained in ({}, contents(out / "checkpoints")) and weights(out) == weights(whole)


@pytest.mark.parametrize(("more", "field"), [
    (["--resume", "--training.epochs", 4], "training.epochs"), (["--resume", "--loss.args.margin", 0.2], "loss.args"),
    ([], "out"),
])  # fmt: skip
def test_another_configuration_leaves_a_run_alone(more, field, arguments, whole, tmp_path) -> None:
    out = tmp_path / "unwhole"  # it has its checkpoints, but no model yet
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("model", "report.html", "evaluation.json"))
    before = contents(out)
    error = input_error(arguments(out, *more))
    assert (error.field, error.path) == (field, out)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["checkpoints/mine.ckpt", "metrics.jsonl", "model/mine.pt", "report.html"])
def test_files_of_others_are_not_overwritten(name: str, arguments: Callable, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("of many days")
    assert input_error(arguments(out)).field == "out"
    assert contents(out) == {name: b"of many days"}


@pytest.mark.slow
def test_damaged_scores_are_written_again_by_report(arguments: Callable, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    os.truncate(out / "evaluation.json", 100)
    assert input_error(arguments(out, "--resume")).path == out / "evaluation.json"
    assert main(["report", str(out)]) == 0 and main(arguments(out, "--resume")) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu(arguments: Callable, whole: Path, tmp_path: Path) -> None:
    assert input_error(arguments(tmp_path / "run", "--device", "cuda")).field == "training.device"
    assert not (tmp_path / "run").exists()
    assert input_error(["evaluate", str(whole), "--device", "cuda"]).field == "device"


@pytest.mark.parametrize(("field", "options"), [
    ("data.root", "--data.root nowhere"), ("encoder.name", "--encoder.name test_vti"),
    ("encoder.init_from", "--encoder.init_from run:nowhere"), ("loss.name", "--loss.name ProxyAnchor"),
    ("loss.args.margni", "--loss.args.margni 0.2"), ("loss.miner.name", "--loss.miner.name Miner"),
    ("loss.proxy_regularizer.name", "--loss.shard_proxies true --loss.proxy_regularizer.name koleo"),
    ("sampler.by_category", "--sampler.by_category true --sampler.images_per_class 2"),  # there are no categories
    ("data.test_fraction", "--data.test_fraction 0.9"),  # one class to train on
    ("data.test_fraction", "--data.test_classes '[class 1]'"),  # one class to evaluate
])  # fmt: skip
def test_what_does_not_fit_the_images_or_does_not_exist(field: str, options: str, arguments: Callable, tmp_path):
    assert input_error(arguments(tmp_path / "run", *shlex.split(options))).field == field
    assert not (tmp_path / "run").exists()


def test_a_run_among_its_images_is_an_error_before_any_work(own_photos: Path, monkeypatch) -> None:
    monkeypatch.chdir(own_photos)
    assert error_of(train, make_config(Path()), "runs/first").field == "out"
    assert not (own_photos / "runs").exists()


@pytest.mark.parametrize(("command", "field"), [
    ("train --config RECIPE --data.root IMAGES --out IMAGES", "out"),
    ("train IMAGES --out FOLDER/x --json IMAGES/x", "json"),
    ("embed RUN IMAGES --out IMAGES/x", "out"), ("index IMAGES/x IMAGES --model RUN", "catalog"),
    ("diagnose RUN --data.root IMAGES --out IMAGES/x", "out"),
    ("export RUN --data.root IMAGES --out IMAGES/x.onnx", "out"),
    ("evaluate RUN IMAGES --json IMAGES/x/y.json", "json"), ("report RUN --data.root FOLDER", "run"),
    ("index FOLDER/x IMAGES --model RUN --json IMAGES/x/y.json", "json"),
    ("merge RUN RUN --soup --data.root IMAGES --out IMAGES/x", "out"),
    ("study STUDY --data.root IMAGES --out IMAGES/x", "out"),
    ("data describe IMAGES --json IMAGES/x", "json"), ("embed RUN IMAGES --out FOLDER/x --json IMAGES/x", "json"),
])  # fmt: skip
def test_no_command_writes_among_the_images(command: str, field: str, whole: Path, own_photos: Path, recipe) -> None:
    names = {"RUN": whole, "IMAGES": own_photos, "FOLDER": whole.parent if field == "run" else own_photos.parent}
    names |= {"RECIPE": recipe, "STUDY": write_study(own_photos.parent, base=str(recipe))}
    before = contents(whole)
    words = [next((word.replace(k, str(v)) for k, v in names.items() if k in word), word) for word in command.split()]
    assert input_error(words).field == field
    assert len(list(own_photos.iterdir())) == 10 and contents(whole) == before


def test_what_makes_scores_wrong_is_noted_in_a_line_each(own_photos: Path, capsys) -> None:
    (own_photos / "class 0").rename(own_photos / "gu\u0308ll")
    (own_photos / "class 1").rename(own_photos / "g\u00fcll")
    for number in range(1, 5):
        (own_photos / "class 9" / f"{number}.png").unlink()
    (own_photos / "class 4").rename(own_photos / "wren")
    (own_photos / "class 5").rename(own_photos / "wren ")
    shutil.copy(own_photos / "class 2" / "0.png", own_photos / "g\u00fcll" / "0.png")
    table = folder_table(own_photos)
    table["split"] = ["test" if label in ("class 2", "class 3") else "train" for label in table["label"]]
    table["group"] = table["path"]
    config = make_config(own_photos, {"checkpoint_selection.split": "none", "data.test_fraction": 0})
    check_images(table, None, config)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(lines) == 4 and "'class 9'" in lines[0]
    assert "2 classes" in lines[1] and "'gu\\u0308ll'" in lines[1] and "'g\\xfcll'" in lines[1]
