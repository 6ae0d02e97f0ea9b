"""The command line as others script against it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from orthoproxy.cli.main import VERBS, main

RECIPE = """
data: {workers: 0, resize: 32, test_fraction: 0.5, validation_fraction: 0.0}
encoder: {name: deit_tiny_patch16_224, weights: none, embedding_dim: 8, image_size: 32}
training: {epochs: 1, batch_size: 4, precision: 32-true}
evaluation: {recall_at: [1, 2], draws: 20}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A recipe, train.csv and unseen.csv with their images."""
    root = tmp_path_factory.mktemp("cli")
    (root / "recipe.yaml").write_text(RECIPE)
    for name, colours in {"train": ["red", "green", "blue", "gold"], "unseen": ["pink", "navy"]}.items():
        rows = ["path,label"]
        for colour in colours:
            for shade in range(3):
                path = f"{name}-{colour}-{shade}.png"
                Image.new("RGB", (32 + 4 * shade, 32), colour).save(root / path)
                rows.append(f"{path},{colour}")
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def run(folder) -> Path:
    out = folder / "runs" / "x"
    assert main(["train", *train_arguments(folder), "--out", str(out)]) == 0
    return out


def train_arguments(folder: Path) -> list[str]:
    return ["--config", str(folder / "recipe.yaml"), "--data.name", "csv", "--data.path", str(folder / "train.csv")]


def test_train_ends_with_the_table_and_the_report(folder, run, capsys):
    assert main(["train", *train_arguments(folder), "--out", str(run), "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "6 queries of 2 classes" in printed
    for name in ("model", "baseline", "difference", "recall@1", "map@r"):
        assert name in printed
    assert printed.rstrip().endswith(f"report: {run / 'report.html'}")


def test_evaluate_writes_the_schema(folder, run, tmp_path):
    out = tmp_path / "scores.json"
    unseen = str(folder / "unseen.csv")
    assert main(["evaluate", str(run), "--data.name", "csv", "--data.path", unseen, "--json", str(out)]) == 0
    scores = json.loads(out.read_text())
    assert set(scores) >= {
        "model",
        "baseline",
        "difference",
        "queries",
        "classes",
        "queries_without_positive",
        "seconds",
    }
    assert (scores["queries"], scores["classes"], scores["queries_without_positive"]) == (6, 2, 0)
    for name in ("model", "baseline", "difference"):
        assert set(scores[name]) == {"recall@1", "recall@2", "map@r", "r_precision", "mrr"}
        for value in scores[name].values():
            assert set(value) == {"value", "low", "high"}
    assert 0 <= scores["model"]["recall@1"]["value"] <= 1


def test_evaluate_alone_judges_the_runs_own_test_classes(run, tmp_path):
    out = tmp_path / "scores.json"
    assert main(["evaluate", str(run), "--json", str(out)]) == 0
    scores, kept = json.loads(out.read_text()), json.loads((run / "evaluation.json").read_text())
    assert {name: scores[name] for name in ("model", "baseline")} == {
        name: kept[name] for name in ("model", "baseline")
    }


def test_evaluate_asks_for_images_where_the_run_kept_none_apart(folder, tmp_path, capsys):
    arguments = [*train_arguments(folder), "--data.test_fraction", "0", "--training.epochs", "1"]
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "the run kept no test classes apart; say which images to judge on, for example --data.name folder" in error


def test_evaluate_takes_a_folder_as_source_and_a_model_folder(folder, run, image_folder, tmp_path):
    out = tmp_path / "scores.json"
    arguments = ["--data.name", "folder", "--data.root", str(image_folder), "--evaluation.nmi", "true"]
    assert main(["evaluate", str(run / "model"), *arguments, "--json", str(out)]) == 0
    scores = json.loads(out.read_text())
    assert scores["queries"] == 12
    assert "nmi" in scores["model"] and scores["baseline"] is not None


@pytest.fixture
def damaged(folder, tmp_path) -> Path:
    """unseen.csv with an image that cannot be read and one that is not there."""
    shutil.copy(folder / "unseen.csv", tmp_path)
    for path in folder.glob("unseen-*.png"):
        shutil.copy(path, tmp_path)
    (tmp_path / "unseen-pink-0.png").write_bytes(b"")
    (tmp_path / "unseen-navy-2.png").unlink()
    return tmp_path / "unseen.csv"


def test_evaluate_leaves_out_unreadable_images_when_told_to(run, damaged, capsys):
    out = damaged.with_name("scores.json")
    arguments = ["evaluate", str(run), "--data.name", "csv", "--data.path", str(damaged), "--json", str(out)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(r"unseen-pink-0\.png", error) and "Traceback" not in error
    assert error.endswith(", or set data.on_error to skip\n") and not out.exists()
    assert main([*arguments, "--data.on_error", "skip"]) == 0
    assert "note: unreadable images left out: 2, for example " in capsys.readouterr().out
    scores = json.loads(out.read_text())
    assert scores["queries"] == 4
    assert [(Path(x["path"]).name, x["label"]) for x in scores["unreadable"]] == [
        ("unseen-pink-0.png", "pink"),
        ("unseen-navy-2.png", "navy"),
    ]


def test_evaluate_leaves_out_what_the_run_left_out(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "own", ignore=shutil.ignore_patterns("runs"))
    folder, run, out = tmp_path / "own", tmp_path / "run", tmp_path / "scores.json"
    for path in folder.glob("train-*-0.png"):
        path.write_bytes(b"")
    arguments = [*train_arguments(folder), "--data.on_error", "skip"]
    assert main(["train", *arguments, "--out", str(run)]) == 0
    assert "note: 4 unreadable images were left out; skipped.csv lists them." in capsys.readouterr().out
    assert main(["evaluate", str(run), "--json", str(out)]) == 0
    scores, kept = json.loads(out.read_text()), json.loads((run / "evaluation.json").read_text())
    assert scores["model"] == kept["model"] and len(scores["unreadable"]) == 2
    assert main(["evaluate", str(run), "--data.on_error", "raise"]) == 2
    shutil.move(folder, tmp_path / "moved")
    moved = ["--data.path", str(tmp_path / "moved" / "train.csv"), "--json", str(out)]
    assert main(["evaluate", str(run), *moved]) == 0
    assert json.loads(out.read_text())["model"] == kept["model"]


def test_report_is_written_anew(run, capsys):
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 10_000
    assert "recall@1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ""),
        (["trian"], "unknown verb 'trian'; there are train, evaluate, report"),
        (["train", "--out", "x", "--training.epoch", "3"], "did you mean training.epochs?"),
        (["train", "--out", "x", "--training.epochs", "three"], "training.epochs"),
        (["train", "--out", "x", "--evaluation.recall_at", "1,10"], "Expected a list such as '[1, 10]'"),
        (["train", "--out", "x", "--loss.orthogonality.scaling", "max"], "Expected one of 'sum', 'mean', 'excess'"),
        (["train", "--out", "x", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--training.epochs", "3"], "arguments are required: --out"),
        (["train", "--out", "x", "--training.epochs", "0"], "training.epochs: must be 1 or more, not 0"),
        (["train", "--out", "x", "--data.name", "csv"], "data.path: missing"),
        (["train", "--out", "x", "--data.name", "csv", "--data.path", "nowhere.csv"], "/nowhere.csv"),
        (["train", "--out", "x", "--data.name", "folder", "--data.root", "nowhere"], "/nowhere"),
        (["evaluate", "nowhere"], "no model in nowhere"),
        (["evaluate", "x", "--data.on_error", "stop"], "\"data.on_error\": Expected one of 'raise', 'skip'. Got value"),
        (["evaluate", "x", "--data.name", "folders"], "\"data.name\": Expected one of 'icons', 'folder'"),
        (["index", "x", "--data.name", "folders"], "\"data.name\": Expected one of 'icons', 'folder'"),
        (["report", "nowhere"], "no run in nowhere"),
    ],
)
def test_bad_input_is_named_in_a_line_or_two_and_exits_with_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error and len(error.strip().splitlines()) <= 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--loss.name", "ProxyAnchor"], "did you mean ProxyAnchorLoss?"),
        (["--loss.args.margni", "0.2"], "did you mean margin?"),
        (["--loss.name", "CrossBatchMemory"], "CrossBatchMemory cannot be used: it wraps another loss"),
        (["--loss.miner.name", "Miner"], "loss.miner.name: unknown 'Miner'"),
        (["--encoder.name", "diet_small_patch16_224"], "deit_small_patch16_224"),
        (["--encoder.weights", "nowhere.pth"], "/nowhere.pth"),
        (["--training.accelerator", "cuda"], "training.accelerator: there is no cuda device here; use auto or cpu"),
        (["--loss.name", "TripletMarginLoss", "--loss.orthogonality.weight", "1"], "keeps no vector a class"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(folder, tmp_path, capsys, overrides, message):
    arguments = [*train_arguments(folder), *overrides, "--out", str(tmp_path / "run")]
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("key", ["data", "encoder", "loss", "training", "loss.orthogonality", "training.rates"])
def test_a_recipe_cannot_name_code(folder, tmp_path, key, capsys):
    marker = tmp_path / "ran"
    value = f"{{class_path: os.system, init_args: {{command: 'touch {marker}'}}}}"
    outer, _, inner = key.partition(".")
    (tmp_path / "recipe.yaml").write_text(f"{outer}: {{{inner}: {value}}}" if inner else f"{outer}: {value}")
    assert main(["train", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert not marker.exists()


def test_help_lists_verbs_and_options(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in ("train", "evaluate", "report"))
    with pytest.raises(SystemExit) as done:
        main(["train", "--help"])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert "--loss.orthogonality.weight" in printed and "lambda" in printed


def test_ctrl_c_exits_with_130_and_the_run_goes_on(folder, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", *train_arguments(folder), "--out", str(out), "--training.epochs", "60", "--resume"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "orthoproxy", *arguments], stderr=log, env=os.environ)
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").is_file() or not (out / "metrics.jsonl").stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "go on with --resume" in (tmp_path / "log").read_text()
    assert (out / "checkpoints" / "last.ckpt").is_file() and not (out / "report.html").exists()
    assert main(arguments) == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and (out / "report.html").is_file()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["evaluate", "RUN"], ["data", "describe", "--data.name", "csv", "--data.path", "CSV"], ["--help"]]
)
def test_output_that_nobody_reads_ends_without_a_traceback(folder, run, arguments, unbuffered):
    read, write = os.pipe()
    os.close(read)
    places = {"RUN": str(run), "CSV": str(folder / "train.csv")}
    done = subprocess.run(
        [sys.executable, "-m", "orthoproxy", *(places.get(x, x) for x in arguments)],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_another_pipe_that_breaks_is_a_fault(monkeypatch, capsys):
    def broken(arguments):
        raise BrokenPipeError

    monkeypatch.setitem(VERBS, "report", broken)
    with pytest.raises(BrokenPipeError):
        main(["report", "runs/x"])


def test_what_works_in_one_process_refuses_to_be_started_by_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "runs/nowhere"]) == 2
    assert capsys.readouterr().err == "orthoproxy: evaluate: works in one process; start it without torchrun\n"
