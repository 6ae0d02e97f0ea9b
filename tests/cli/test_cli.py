"""train, evaluate, report, compare and diagnose; exit codes and signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from command_line import interrupted_at, json_of
from errors import input_error
from small_runs import training

from orthoproxy.cli import train
from orthoproxy.cli.main import main
from orthoproxy.data import folder_table
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.runs.experiment import make_sampler
from orthoproxy.runs.recipes import read_config, write_config
from orthoproxy.runs.run_folder import RunFolder

METRICS = {"recall@1", "recall@2", "map@r", "r_precision", "mrr"}


def test_categories_reach_batches_and_scores(recipe: Path, photos: Path, tmp_path: Path) -> None:
    table = folder_table(photos)[["path", "label"]]
    kinds = table["label"].isin([f"class {number}" for number in range(5)]).map({True: "warm", False: "cold"})
    table.assign(category=kinds).to_csv(tmp_path / "kinds.csv", index=False)
    more = ["--sampler.images_per_class", 2, "--sampler.by_category", "true", "--training.epochs", 1]
    more += ["--data.name", "csv", "--data.csv", tmp_path / "kinds.csv"]
    assert main(training(recipe, photos, tmp_path / "run", *more)) == 0
    by_category = RunFolder(tmp_path / "run").scores["by_category"]
    assert sum(scores["queries"] for scores in by_category.values()) == 20 and set(by_category) <= {"warm", "cold"}
    assert all(set(scores["model"]) == METRICS | {"category_recall@1"} for scores in by_category.values())
    labels = pd.factorize(table["label"])[0]
    batches = list(make_sampler(read_config(tmp_path / "run" / "config.yaml"), labels, kinds))
    assert [len({kinds[row] for row, _ in batch}) for batch in batches] == [1] * 12


def test_options_override_recipes_and_later_recipes_earlier_ones(recipe: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.yaml").write_text("training: {epochs: 4, seed: 7}\nloss: {args: {margin: 0.2}}")
    (tmp_path / "b.yaml").write_text("training: {epochs: 5}\nsampler: {batch_size: 6}\nloss: {args: {scale: 8}}")
    more = ["--training.epochs", 3, "--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml", "--print-config"]
    more += ["--encoder.embedding_dim", "null", "--loss.args.eps", "1e-4"]
    assert main(training(recipe, tmp_path, tmp_path / "run", *more)) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = read_config(tmp_path / "printed.yaml")
    assert (config.training.epochs, config.training.seed, config.sampler.batch_size) == (3, 7, 6)
    assert (config.encoder.name, config.encoder.embedding_dim) == ("test_vit", None)
    assert config.loss.args == {"scale": 8, "eps": 1e-4}  # arguments of one loss are not those of another
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [
    "evaluate {run}", "diagnose {run} --out {out}", "embed {run} {images} --out {out}", "compare {run} {run}",
    "data describe {images}", "data verify {images}", "search {out} {images}/red/0.png", "report {run}",
    "train {photos} --config {recipe} --out {run} --resume", "merge {run} {run} --dim 4 --out {out}",
])  # fmt: skip
def test_results_are_written_before_they_are_printed(command: str, recipe, photos, whole, image_folder, tmp_path):
    copy, out, results = shutil.copytree(whole, tmp_path / "run"), tmp_path / "out", tmp_path / "results.json"
    if "search" in command:
        json_of(["index", out, image_folder, "--model", whole])
    words = command.format(run=copy, images=image_folder, out=out, photos=photos, recipe=recipe).split()
    with suppress(OSError), Path("/dev/full").open("w", buffering=1) as full, redirect_stdout(full):
        main([*words, "--json", str(results)])
    assert json.loads(results.read_text())


def test_evaluate_other_images_and_skip_unreadable_ones(image_folder: Path, whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")  # other images are not looked for in the folder of the run's
    write_config(read_config(copy / "config.yaml").with_overrides({"data.root": "nowhere"}), copy / "config.yaml")
    images = shutil.copytree(image_folder, tmp_path / "images")
    arguments = ["evaluate", copy, images / "list.csv", "--workers", 0]
    scores = json_of(arguments)
    assert (scores["queries"], scores["classes"], scores["queries_without_positive"]) == (12, 3, 0)
    assert (scores["training_classes"], scores["unreadable"]) == (0, [])
    for name in ("model", "baseline", "difference"):
        assert set(scores[name]) == METRICS
        assert all(set(estimate) == {"value", "low", "high"} for estimate in scores[name].values())
    broken, missing = images / "blue" / "0.png", images / "red" / "2.png"
    broken.write_bytes(b"")
    missing.unlink()
    assert Path(str(input_error(arguments).path)) == broken
    scores = json_of([*arguments, "--data.on_unreadable_image", "skip"])
    assert scores["queries"] == 10
    assert [Path(image["path"]) for image in scores["unreadable"]] == [broken, missing]


def test_evaluate_reports_levers_of_search_time_beside_the_plain_scores(image_folder: Path, whole: Path) -> None:
    plain = json_of(["evaluate", whole, image_folder])
    scores = json_of(["evaluate", whole, image_folder, "--augment", "--expand", 1, "--rerank"])
    assert scores["model"] == plain["model"] and "search_time" not in plain
    assert list(scores["search_time"]) == ["augment", "expand 1", "rerank"]
    assert all(x["baseline"] == plain["model"] for x in scores["search_time"].values())
    assert input_error(["evaluate", whole, image_folder, "--expand", "-1"]).field == "--expand"
    assert input_error(["evaluate", whole, "--rerank", "--evaluation.block_memory_mb", 1e-4]).field == "block_memory_mb"


def test_a_run_without_test_classes_has_no_scores(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    more = ["--data.test_fraction", 0, "--data.validation_fraction", 0, "--training.epochs", 1]
    run = tmp_path / "run"
    assert main(training(recipe, photos, run, *more)) == 0
    assert RunFolder(run).scores is None and RunFolder(run).has_report
    assert input_error(["evaluate", run]).path == run
    comparison = json_of(["compare", whole, run], code=1)  # which was trained on the classes of the other's test
    assert comparison["scores"] is None and "4 test classes" in comparison["note"]
    shutil.copytree(whole / "model", tmp_path / "model")
    assert input_error(["evaluate", tmp_path / "model"]).field == "images"


def test_evaluate_and_report_leave_out_what_the_run_left_out_and_find_moved_images(recipe, own_photos, tmp_path):
    run = tmp_path / "run"
    for path in own_photos.glob("*/0.png"):
        path.write_bytes(b"")
    more = ["--data.on_unreadable_image", "skip", "--training.epochs", 1]
    assert main(training(recipe, own_photos, run, *more)) == 0
    scores = RunFolder(run).scores
    assert scores["queries"] == 16
    moved = ["--data.root", own_photos.rename(tmp_path / "moved")]
    assert json_of(["evaluate", run, *moved])["model"] == scores["model"]
    (run / "report.html").unlink()
    assert input_error(["report", run]).field == "data.root"
    assert json_of(["report", run, *moved])["model"] == RunFolder(run).scores["model"] == scores["model"]
    assert (run / "report.html").stat().st_size > 10_000


def test_compare_runs(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    comparison = json_of(["compare", whole, shutil.copytree(whole, tmp_path / "copy")])
    assert comparison["verdict"] == "equal"
    assert not any(comparison[name] for name in ("configuration", "data", "weights", "scores"))
    other = tmp_path / "other"
    more = ["--training.seed", 1, "--optimizer.lr.projection", 0.01, "--data.workers", 0]
    assert main(training(recipe, photos, other, *more)) == 0
    code = main(["compare", str(whole), str(other), "--json", str(tmp_path / "x.json")])
    comparison = json.loads((tmp_path / "x.json").read_text())
    assert comparison["configuration"] == {"training.seed": [0, 1], "optimizer.lr.projection": [1e-4, 0.01]}
    tensors, change = comparison["weights"]["model/model.safetensors"]
    assert tensors > 1 and change > 0
    first, second = (RunFolder(path).scores["model"]["recall@1"]["value"] for path in (whole, other))
    assert comparison["scores"]["recall@1"]["value"] == pytest.approx(second - first)
    outside = any(not x["low"] <= 0 <= x["high"] for x in comparison["scores"].values())
    assert (code, comparison["verdict"]) == ((1, "different") if outside else (0, "within interval"))


def test_runs_are_scored_in_the_precision_of_evaluation(whole: Path, tmp_path: Path, monkeypatch) -> None:
    used, embed = [], Embedder.embed

    def record(*arguments: Any, precision: str = "32-true", **options: Any) -> np.ndarray:
        used.append(precision)
        return embed(*arguments, precision=precision, **options)

    other = shutil.copytree(whole, tmp_path / "other")
    model = Embedder.load(other)
    model.encoder.projection.weight.data += 0.1
    model.save(other / "model")
    monkeypatch.setattr(Embedder, "embed", record)
    for module in ("device", "compare"):  # as on a GPU
        monkeypatch.setattr(f"orthoproxy.runs.{module}.evaluation_precision", lambda *_: "bf16-mixed")
    json_of(["evaluate", whole])
    json_of(["compare", whole, other])
    assert used == ["bf16-mixed"] * 4


def test_diagnose_takes_a_run_or_several_and_a_split(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")  # ten classes, four of them for testing, two for validation
    (result,) = json_of(["diagnose", run, "--workers", 0])["runs"]
    assert (run / "diagnosis.html").is_file() and len(result["checks"]) == 4
    assert result["unseen"] == {"split": "test", "classes": 4}  # too few validation classes
    arguments = ["diagnose", run, run, "--workers", 0, "--max-images", 7]
    assert input_error(arguments).field == "out"
    results = json_of([*arguments, "--out", tmp_path / "both", "--split", "validation"])["runs"]
    assert (tmp_path / "both" / "diagnosis.html").is_file()
    assert [result["unseen"] for result in results] == [{"split": "validation", "classes": 2}] * 2


def test_diagnose_names_missing_runs_and_other_images(whole: Path, photos: Path, tmp_path: Path) -> None:
    assert Path(str(input_error(["diagnose", "runs/nowhere"]).path)) == Path("runs/nowhere")
    assert input_error(["diagnose", whole, "--data.root", "nowhere"]).field == "data.root"
    for number in range(10):  # of which some are training classes
        name = f"class {number}" if number < 5 else f"other {number}"
        shutil.copytree(photos / f"class {number}", tmp_path / "images" / name)
    assert input_error(["diagnose", whole, "--data.root", tmp_path / "images"]).field == "data.root"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number: int, code: int, monkeypatch, capsys) -> None:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it

    def interrupt(options: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(train, "run", interrupt)
    assert main(["train", "--out", "x"]) == code
    assert capsys.readouterr().err == "orthoproxy: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("module", ["orthoproxy.cli.main", "orthoproxy.core.errors", "PIL", "lancedb"])
def test_ctrl_c_while_libraries_are_imported_is_one_line(module: str) -> None:
    assert interrupted_at(module, ["search", "catalog", "image.png"]) == (130, "", "orthoproxy: interrupted\n")


def test_other_errors_keep_text_and_traceback(monkeypatch, capsys) -> None:
    for error in (BrokenPipeError(), RuntimeError("NCCL error: unhandled system error")):  # not of standard output
        monkeypatch.setattr(train, "run", Mock(side_effect=error))
        with pytest.raises(type(error)):
            main(["train", "--out", "x"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(type(error)):  # another launcher's processes do not know each other
        main(["train", "--out", "x"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert main(["train", "--out", "x"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and str(error) in printed
    assert printed.splitlines()[-1].startswith("orthoproxy: rank 1")
    assert main(["diagnose", "x"]) == 2 and "torchrun" in capsys.readouterr().err  # a command for one process


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_closed_stdout_ends_quietly(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "orthoproxy", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
