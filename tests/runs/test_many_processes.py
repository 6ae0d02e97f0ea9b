"""Whole runs in several processes: the results of one, one writer, errors that end all, and restarts after a kill."""

import json
import os
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from fault_injection import kill_at
from many import children, distance, in_processes, torchrun
from small_runs import make_config, saved_step

import orthoproxy
from orthoproxy.core.distributed import RemoteProcessError, is_main
from orthoproxy.core.errors import InputError
from orthoproxy.data.table import select_split
from orthoproxy.runs.config import Config
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.recipes import write_config
from orthoproxy.runs.run_folder import RunFolder

# of what the weights have moved: in single precision AdamW moves those that have hardly a gradient by its rounding
ALIKE = 0.05


def config_for(photos: Path, sharded: bool = False, epochs: int = 2) -> Config:
    loss = {"proxy_regularizer": {"weight": 0.1}, "shard_proxies": sharded}
    rates = {"optimizer.warmup_epochs": 0, "training.epochs": epochs}
    return make_config(photos, {"sampler.batch_size": 6, "loss": loss, **rates})


def train(config: Config, folder: Path, resume: bool = False) -> dict[str, Any]:
    """Train; return what this process sees of the run, or the error that it gets."""
    try:
        run = orthoproxy.train(config, folder, resume)
    except (InputError, RemoteProcessError) as error:
        return {"error": error}
    start = orthoproxy.load(run.baseline).encoder.backbone.state_dict()
    model = run.load_model()
    moved = {name: x - start[name] for name, x in model.encoder.backbone.state_dict().items()}
    return {"scores": run.scores, "proxies": model.proxies, "moved": moved}


@pytest.fixture(scope="module")
def one(photos, tmp_path_factory) -> dict[str, Any]:
    return in_processes(1, train, config_for(photos), tmp_path_factory.mktemp("one") / "run")[0]


def scores(of: dict[str, Any], name: str = "model") -> dict[str, float]:
    return {metric: estimate["value"] for metric, estimate in of["scores"][name].items()}


@pytest.mark.parametrize(("count", "sharded"), [(2, False), (2, True), pytest.param(3, True, marks=pytest.mark.slow)])
def test_a_run_is_that_of_one_process_and_one_process_writes_it(photos, tmp_path, one, count, sharded, capfd) -> None:
    several = in_processes(count, train, config_for(photos, sharded), tmp_path / "run")
    for seen in several:
        assert seen["scores"] == several[0]["scores"]
        assert scores(seen, "baseline") == scores(one, "baseline")
        assert scores(seen) == pytest.approx(scores(one), abs=0.05)  # a near tie may fall the other way
        assert distance(seen["moved"], one["moved"]) < ALIKE
        torch.testing.assert_close(seen["proxies"], one["proxies"], rtol=1e-3, atol=1e-3)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert capfd.readouterr().err.count("epoch 2/2") == 1
    assert RunFolder(tmp_path / "run").config.environment["processes"] == str(count)
    parts = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("last-step-*"))
    assert parts == [f"last-step-{x}.proxies-{n}-of-{count}.ckpt" for x in (3, 6) for n in range(count) if sharded]


def train_and_die(config: Config, folder: Path) -> None:
    if is_main():
        kill_at("step:8")
    with suppress(RuntimeError):  # the main process is gone
        orthoproxy.train(config, folder)


KEEP_LAST = {"checkpoint_selection.split": "none"}


@pytest.fixture(scope="module")
def one_to_the_last(photos, tmp_path_factory) -> dict[str, Any]:
    config = config_for(photos).with_overrides(KEEP_LAST)
    return in_processes(1, train, config, tmp_path_factory.mktemp("one") / "run")[0]


@pytest.mark.parametrize(("before", "after"), [(2, 3), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_a_sharded_run_goes_on_with_another_number_of_processes(photos, tmp_path, one_to_the_last, before, after):
    config = config_for(photos, sharded=True).with_overrides(KEEP_LAST)
    in_processes(before, train_and_die, config, tmp_path / "run", killed=(0,))
    resumed = in_processes(after, train, config, tmp_path / "run", True)
    for seen in resumed:
        assert distance(seen["moved"], one_to_the_last["moved"]) < ALIKE
        torch.testing.assert_close(seen["proxies"], one_to_the_last["proxies"], rtol=1e-3, atol=1e-3)
    parts = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("last-step-*"))
    assert parts[:after] == [f"last-step-10.proxies-{n}-of-{after}.ckpt" for n in range(after)]
    assert {part.partition(".")[0] for part in parts[after:]} == {"last-step-5"}  # of previous.ckpt


def damage(photos: Path, split: str = "train") -> Path:
    """Break an image of the class that sorts last in a split."""
    broken = Path(select_split(split_table(config_for(photos)), split)["path"].iloc[-1])
    broken.write_bytes(b"not an image")
    return broken


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_image_that_one_process_cannot_read_ends_all_with_the_run_saved(own_photos, tmp_path, split) -> None:
    broken = damage(own_photos, split)
    errors = [seen["error"] for seen in in_processes(2, train, config_for(own_photos), tmp_path / "run")]
    assert sorted(isinstance(error, InputError) for error in errors) == [False, True]
    assert all(str(broken) in str(error) for error in errors)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file() == (split == "validation")


def test_unreadable_images_are_found_by_all_processes_and_left_out(own_photos, tmp_path) -> None:
    broken = damage(own_photos)
    config = config_for(own_photos, epochs=1).with_overrides({"data.on_unreadable_image": "skip"})
    in_processes(2, train, config, tmp_path / "run")
    listed = RunFolder(tmp_path / "run").unreadable
    assert listed is not None and listed["path"].tolist() == [str(broken)]


def count_stats(config: Config, folder: Path) -> set[int]:
    """Train; return how often this process looked at each file, other than to read it, which is by Path."""
    images = split_table(config)["path"].tolist()
    with patch.object(os, "stat", wraps=os.stat) as stat:
        orthoproxy.train(config, folder)
    asked = [call.args[0] for call in stat.call_args_list]
    return {asked.count(path) for path in images}


def test_the_main_process_looks_at_the_files_before_and_after_training_and_others_never(photos, tmp_path) -> None:
    assert in_processes(2, count_stats, config_for(photos, epochs=1), tmp_path / "run") == [{2}, {0}]


def test_a_finished_run_is_returned_by_all_processes(photos, tmp_path, monkeypatch) -> None:
    """No process returns before all have met, whatever it sees of the folder."""
    first = in_processes(1, train, config_for(photos, epochs=1), tmp_path / "run")[0]
    again = in_processes(2, train, config_for(photos, epochs=1), tmp_path / "run", True)
    assert [seen["scores"] for seen in again] == [first["scores"]] * 2
    monkeypatch.chdir(tmp_path)
    assert in_processes(2, resume_unseen, config_for(photos, epochs=1), Path("run")) == [True, False]


def resume_unseen(config: Config, folder: Path) -> bool:
    """Resume a run whose files only the main process sees yet, as on a network file system."""
    if not is_main():
        os.chdir(tempfile.mkdtemp())
    return orthoproxy.train(config, folder, resume=True).has_model


class Job:
    """`orthoproxy train` under torchrun, in two processes."""

    def __init__(self, recipe: Path, out: Path, *options: str) -> None:
        command = ["-m", "orthoproxy", "train", "--config", recipe, "--out", out, "--resume"]
        self.run, self.process = RunFolder(out), torchrun(2, *options, *command)

    def wait_for_step(self, step: int) -> None:
        for _ in range(8000):  # 400 s, as a busy machine takes minutes to start PyTorch twice
            if max(self.run.records().get("step", [0])) >= step:
                return
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached")

    def kill(self, rank: int) -> None:
        for child in children(self.process.pid):
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                os.kill(child, signal.SIGKILL)

    def end(self) -> tuple[int, str]:
        output = self.process.communicate(timeout=500)[0]
        return self.process.returncode, output


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_ctrl_c_saves_a_job_and_torchrun_restarts_one_that_lost_a_process(photos, tmp_path) -> None:
    config = config_for(photos, sharded=True, epochs=60).with_overrides(KEEP_LAST)
    write_config(config, recipe := tmp_path / "recipe.yaml")
    job = Job(recipe, tmp_path / "run")
    job.wait_for_step(7)
    job.process.send_signal(signal.SIGINT)
    _, output = job.end()
    saved = saved_step(tmp_path / "run")  # all stop after the same step
    assert output.count(f"stopped after step {saved}; the run is saved") == 1, output

    job = Job(recipe, tmp_path / "run", "--max-restarts", "1")
    job.wait_for_step(saved + 20)
    job.kill(rank=0)
    code, output = job.end()
    assert code == 0 and job.run.has_report, output
    steps = job.run.records()["step"].tolist()
    assert steps == sorted(set(steps)) and steps[-1] == 300
