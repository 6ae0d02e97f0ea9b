"""train, evaluate, report and compare; exit codes and signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from command_line import Files, input_error, interrupted_at, json_of, make_files, train_arguments

from orthoproxy.cli import train
from orthoproxy.cli.main import main
from orthoproxy.runs.experiment import make_sampler
from orthoproxy.runs.recipes import read_config, write_config
from orthoproxy.runs.run_folder import RunFolder

METRICS = {"recall@1", "recall@2", "map@r", "r_precision", "mrr"}


def scores_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation.json").read_text())


def test_train_prints_scores_and_report(files: Files, run: Path, capsys) -> None:
    assert main(train_arguments(files, run, "--resume", "--json", "-")) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == scores_of(run)
    assert printed.err.rstrip().endswith(f"report: {run / 'report.html'}")


def test_categories_reach_batches_scores_and_the_printed_result(files: Files, tmp_path: Path, capsys) -> None:
    table = pd.read_csv(files.training)
    kinds = table["label"].isin(["red", "gold"]).map({True: "warm", False: "cold"})
    table.assign(category=kinds).to_csv(tmp_path / "kinds.csv", index=False)
    more = ["--data.root", files.folder, "--sampler.images_per_class", 2, "--sampler.by_category", "true"]
    arguments = train_arguments(files._replace(training=tmp_path / "kinds.csv"), tmp_path / "run", *more)
    assert main(arguments) == 0
    by_category = scores_of(tmp_path / "run")["by_category"]
    assert sum(scores["queries"] for scores in by_category.values()) == 6 and set(by_category) <= {"warm", "cold"}
    assert all(set(scores["model"]) == METRICS | {"category_recall@1"} for scores in by_category.values())
    printed = capsys.readouterr().out
    assert all(f"{name} ({scores['classes']})" in printed for name, scores in by_category.items())
    labels = pd.factorize(table["label"])[0]
    batches = list(make_sampler(read_config(tmp_path / "run" / "config.yaml"), labels, kinds))
    assert [len({kinds[row] for row, _ in batch}) for batch in batches] == [1, 1, 1]


def test_options_override_recipes_and_later_recipes_earlier_ones(files: Files, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.yaml").write_text("training: {epochs: 4, seed: 7}\nloss: {args: {margin: 0.2}}")
    (tmp_path / "b.yaml").write_text("training: {epochs: 5}\nsampler: {batch_size: 6}\nloss: {args: {scale: 8}}")
    more = ["--training.epochs", 3, "--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml", "--print-config"]
    more += ["--encoder.embedding_dim", "null", "--loss.args.eps", "1e-4"]
    assert main(train_arguments(files, tmp_path / "run", *more)) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = read_config(tmp_path / "printed.yaml")
    assert (config.training.epochs, config.training.seed, config.sampler.batch_size) == (3, 7, 6)
    assert (config.encoder.name, config.encoder.embedding_dim) == ("test_vit", None)
    assert config.loss.args == {"scale": 8, "eps": 1e-4}  # arguments of one loss are not those of another
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [
    "evaluate {run}", "diagnose {run} --out {out}", "embed {run} {files.unseen} --out {out}", "compare {run} {run}",
    "data describe {files.unseen}", "data verify {files.unseen}", "search {catalog} {image}", "report {run}",
    "train {files.training} --config {files.recipe} --out {run} --resume", "merge {run} {run} --dim 4 --out {out}",
])  # fmt: skip
def test_results_are_written_before_they_are_printed(command: str, files: Files, run: Path, tmp_path: Path) -> None:
    copy, catalog, results = shutil.copytree(run, tmp_path / "run"), tmp_path / "catalog", tmp_path / "results.json"
    if "catalog" in command:
        json_of(["index", catalog, files.unseen, "--model", run])
    image = files.folder / "unseen-pink-0.png"
    words = command.format(run=copy, files=files, out=tmp_path / "out", catalog=catalog, image=image).split()
    with suppress(OSError), Path("/dev/full").open("w", buffering=1) as full, redirect_stdout(full):
        main([*words, "--json", str(results)])
    assert json.loads(results.read_text())


@pytest.mark.parametrize("command", ["evaluate", "diagnose"])
def test_places_that_cannot_be_written_are_found_before_the_work(command: str, run: Path, tmp_path: Path) -> None:
    error = input_error([command, run, "--data.root", tmp_path / "nowhere", "--json", tmp_path])
    assert (error.field, error.path) == ("json", str(tmp_path))


def test_evaluate_other_images(files: Files, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")  # other images are not looked for in the folder of the run's
    write_config(read_config(copy / "config.yaml").with_overrides({"data.root": "nowhere"}), copy / "config.yaml")
    scores = json_of(["evaluate", copy, files.unseen])
    assert (scores["queries"], scores["classes"], scores["queries_without_positive"]) == (6, 2, 0)
    assert (scores["training_classes"], scores["unreadable"]) == (0, [])
    for name in ("model", "baseline", "difference"):
        assert set(scores[name]) == METRICS
        assert all(set(estimate) == {"value", "low", "high"} for estimate in scores[name].values())


def test_evaluate_reports_levers_of_search_time_beside_the_plain_scores(files: Files, run: Path, capsys) -> None:
    plain = json_of(["evaluate", run, files.unseen])
    scores = json_of(["evaluate", run, files.unseen, "--augment", "--expand", 1, "--rerank"])
    assert scores["model"] == plain["model"] and "search_time" not in plain
    assert list(scores["search_time"]) == ["augment", "expand 1", "rerank"]
    assert all(x["baseline"] == plain["model"] for x in scores["search_time"].values())
    printed = capsys.readouterr().out
    assert all(f"with --{lever}" in printed for lever in scores["search_time"])
    assert input_error(["evaluate", run, files.unseen, "--expand", "-1"]).field == "--expand"
    assert input_error(["evaluate", run, "--rerank", "--evaluation.block_memory_mb", 1e-4]).field == "block_memory_mb"


@pytest.fixture(scope="module")
def without_test_classes(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("all") / "run"
    assert main(train_arguments(files, out, "--data.test_fraction", 0)) == 0
    return out


def test_evaluate_names_what_is_missing(run: Path, without_test_classes: Path, tmp_path: Path) -> None:
    assert RunFolder(without_test_classes).scores is None and RunFolder(without_test_classes).has_report
    assert input_error(["evaluate", without_test_classes]).path == without_test_classes
    shutil.copytree(run / "model", tmp_path / "model")
    assert input_error(["evaluate", tmp_path / "model"]).field == "images"


def test_evaluate_skips_unreadable_images_if_told_to(run: Path, tmp_path: Path) -> None:
    files = make_files(tmp_path)
    broken, missing = tmp_path / "unseen-pink-0.png", tmp_path / "unseen-navy-2.png"
    broken.write_bytes(b"")
    missing.unlink()
    arguments = ["evaluate", run, files.unseen, "--workers", 0]
    assert Path(str(input_error(arguments).path)) == broken
    scores = json_of([*arguments, "--data.on_unreadable_image", "skip"])
    assert scores["queries"] == 4
    assert [Path(image["path"]) for image in scores["unreadable"]] == [broken, missing]


def test_evaluate_and_report_leave_out_what_the_run_left_out_and_find_moved_images(tmp_path: Path) -> None:
    files, run = make_files(tmp_path), tmp_path / "run"
    for path in tmp_path.glob("train-*-0.png"):
        path.write_bytes(b"")
    assert main(train_arguments(files, run, "--data.on_unreadable_image", "skip")) == 0
    scores = scores_of(run)
    assert scores["queries"] == 4
    (tmp_path / "moved").mkdir()
    for path in [files.training, *tmp_path.glob("train-*.png")]:
        shutil.move(path, tmp_path / "moved")
    moved = ["--data.csv", tmp_path / "moved" / "train.csv"]
    assert json_of(["evaluate", run, *moved])["model"] == scores["model"]
    (run / "report.html").unlink()
    assert input_error(["report", run]).field == "data.csv"
    assert json_of(["report", run, *moved])["model"] == scores_of(run)["model"] == scores["model"]
    assert (run / "report.html").stat().st_size > 10_000


def test_compare_a_run_with_its_repetition(run: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    comparison = json_of(["compare", run, tmp_path / "again"])
    assert comparison["verdict"] == "equal"
    assert not any(comparison[name] for name in ("configuration", "data", "weights", "scores"))


def test_compare_runs_that_differ(files: Files, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    more = ["--training.seed", 1, "--optimizer.lr.projection", 0.01, "--data.workers", 1]
    assert main(train_arguments(files, other, *more)) == 0
    code = main(["compare", str(run), str(other), "--json", str(tmp_path / "x.json")])
    comparison = json.loads((tmp_path / "x.json").read_text())
    assert comparison["configuration"] == {"training.seed": [0, 1], "optimizer.lr.projection": [1e-4, 0.01]}
    tensors, change = comparison["weights"]["model/model.safetensors"]
    assert tensors > 1 and change > 0
    first, second = (scores_of(path)["model"]["recall@1"]["value"] for path in (run, other))
    assert comparison["scores"]["recall@1"]["value"] == pytest.approx(second - first)
    outside = any(not x["low"] <= 0 <= x["high"] for x in comparison["scores"].values())
    assert (code, comparison["verdict"]) == ((1, "different") if outside else (0, "within interval"))


def test_compare_has_no_scores_on_classes_that_the_second_run_was_trained_on(run: Path, without_test_classes) -> None:
    comparison = json_of(["compare", run, without_test_classes], code=1)
    assert comparison["scores"] is None and "2 test classes" in comparison["note"]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], int]:
    """Train, which fails; return the exit code."""

    def fail(error: Exception) -> int:
        monkeypatch.setattr(train, "run", Mock(side_effect=error))
        return main(["train", "--out", "x"])

    return fail


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


def test_errors_of_a_backend_keep_text_and_traceback(fail, monkeypatch, capsys) -> None:
    error = RuntimeError("NCCL error: unhandled system error")
    with pytest.raises(RuntimeError, match="NCCL"):
        fail(error)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert fail(error) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and str(error) in printed
    assert printed.splitlines()[-1].startswith("orthoproxy: rank 1")


def test_commands_for_one_process_reject_torchrun(monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["diagnose", "x"]) == 2
    assert "torchrun" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_closed_stdout_ends_quietly(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "orthoproxy", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_another_broken_pipe_is_an_error(fail) -> None:
    with pytest.raises(BrokenPipeError):
        fail(BrokenPipeError())
