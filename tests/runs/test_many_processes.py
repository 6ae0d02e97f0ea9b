"""Whole runs in several processes: the results of one, one writer, errors that end all, and restarts after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import in_processes
from orthoproxy.runs.build import split_table
from PIL import Image

import orthoproxy
from orthoproxy.core.distributed import RemoteProcessError
from orthoproxy.core.errors import InputError
from orthoproxy.data import select_split
from orthoproxy.runs import config as c
from orthoproxy.runs.recipes import write_config
from orthoproxy.runs.run_folder import Run


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Ten classes of five images, of a colour of the class's own."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(10):
        (root / f"class {number}").mkdir()
        colour = generator.integers(60, 256, size=3)
        for copy in range(5):
            pixels = colour + generator.integers(0, 80, size=(32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"class {number}" / f"{copy}.png")
    return root


# of what the weights have moved: in single precision AdamW moves those that have hardly a gradient by its rounding
ALIKE = 0.05


def make_config(photos: Path, sharded: bool = False, epochs: int = 2) -> c.Config:
    return c.Config(
        data=c.Data(name="folder", root=str(photos), test_fraction=0.4, validation_fraction=0.34, workers=0, resize=32),
        encoder=c.Encoder(name="test_vit", weights="none", embedding_dim=8, image_size=32),
        loss=c.Loss(orthogonality=c.Orthogonality(weight=0.1), shard_proxies=sharded),
        training=c.Training(epochs=epochs, batch_size=6, log_every=1, precision="32-true", warmup_epochs=0),
        evaluation=c.Evaluation(recall_at=(1, 2), draws=50),
    )


def train(config: c.Config, folder: Path, resume: bool = False) -> dict[str, Any]:
    """Train; return what this process sees of it, or the error that it meets."""
    try:
        run = orthoproxy.train(config, folder, resume)
    except InputError as error:
        return {"error": type(error), "message": str(error)}
    start = orthoproxy.load(run.folder / "baseline").encoder.backbone.state_dict()
    moved = {name: x - start[name] for name, x in run.model.encoder.backbone.state_dict().items()}
    return {"scores": run.scores, "proxies": run.model.proxies, "moved": moved}


@pytest.fixture(scope="module")
def one(photos, tmp_path_factory) -> dict[str, Any]:
    return in_processes(1, train, make_config(photos), tmp_path_factory.mktemp("one") / "run")[0]


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """By norm, relative to the second."""
    squares = sum(float((ours[name] - x).square().sum()) for name, x in theirs.items())
    return (squares / sum(float(x.square().sum()) for x in theirs.values())) ** 0.5


def scores(of: dict[str, Any], name: str = "model") -> dict[str, float]:
    return {metric: estimate["value"] for metric, estimate in of["scores"][name].items()}


@pytest.mark.parametrize(("count", "sharded"), [(2, False), (2, True), (3, True)])
def test_a_run_is_that_of_one_process_and_one_process_writes_it(photos, tmp_path, one, count, sharded, capfd) -> None:
    several = in_processes(count, train, make_config(photos, sharded), tmp_path / "run")
    for seen in several:
        assert seen["scores"] == several[0]["scores"]
        assert scores(seen, "baseline") == scores(one, "baseline")
        assert scores(seen) == pytest.approx(scores(one), abs=0.05)  # a near tie may fall the other way
        assert distance(seen["moved"], one["moved"]) < ALIKE
        torch.testing.assert_close(seen["proxies"], one["proxies"], rtol=1e-3, atol=1e-3)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert capfd.readouterr().err.count("epoch 2/2") == 1
    assert Run(tmp_path / "run").config.environment["processes"] == str(count)
    files = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if "step" not in path.name}
    assert files == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    parts = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("last-step-*"))
    assert parts == [f"last-step-{x}.proxies-{n}-of-{count}.ckpt" for x in (3, 6) for n in range(count) if sharded]


def die_at(step: int) -> None:
    log = Run.log

    def log_and_die(run: Run, record: dict[str, Any]) -> None:
        log(run, record)
        if record["step"] == step:
            raise InputError("as if killed")

    Run.log = log_and_die


def train_and_die(config: c.Config, folder: Path, step: int) -> None:
    die_at(step)
    try:
        orthoproxy.train(config, folder)
    except (InputError, RuntimeError):  # the main process's error; the others lose it
        os._exit(0)


@pytest.fixture(scope="module")
def one_to_the_last(photos, tmp_path_factory) -> dict[str, Any]:
    config = make_config(photos)
    config.training.select_on = "none"
    return in_processes(1, train, config, tmp_path_factory.mktemp("one") / "run")[0]


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
def test_a_sharded_run_goes_on_with_another_number_of_processes(
    photos, tmp_path, one_to_the_last, before, after
) -> None:
    config = make_config(photos, sharded=True)
    config.training.select_on = "none"
    with pytest.raises(FileNotFoundError):  # nothing is returned
        in_processes(before, train_and_die, config, tmp_path / "run", 8)
    resumed = in_processes(after, train, config, tmp_path / "run", True)
    for seen in resumed:
        assert distance(seen["moved"], one_to_the_last["moved"]) < ALIKE
        torch.testing.assert_close(seen["proxies"], one_to_the_last["proxies"], rtol=1e-3, atol=1e-3)
    parts = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("last-step-*"))
    assert parts[:after] == [f"last-step-10.proxies-{n}-of-{after}.ckpt" for n in range(after)]
    assert {part.partition(".")[0] for part in parts[after:]} == {"last-step-5"}  # of previous.ckpt


def damage(photos: Path, folder: Path) -> Path:
    """A copy of the photos with one broken file, of the class that sorts last among those trained on."""
    shutil.copytree(photos, folder)
    config = make_config(folder)
    broken = Path(select_split(split_table(config), "train")["path"].iloc[-1])
    broken.write_bytes(b"not an image")
    return broken


def test_bad_input_in_one_process_ends_all(photos, tmp_path) -> None:
    broken = damage(photos, tmp_path / "photos")
    config = make_config(tmp_path / "photos")
    ended = in_processes(2, train, config, tmp_path / "run")
    assert {seen["error"] for seen in ended} == {InputError, RemoteProcessError}
    for seen in ended:
        assert str(broken) in seen["message"]
    config = make_config(photos)
    config.encoder.embedding_dim = 4096  # all meet this one
    ended = in_processes(2, train, config, tmp_path / "run")
    assert [seen["error"] for seen in ended] == [InputError, RemoteProcessError]


def test_unreadable_images_are_looked_for_by_all_and_left_out(photos, tmp_path) -> None:
    broken = damage(photos, tmp_path / "photos")
    config = make_config(tmp_path / "photos", epochs=1)
    config.data.on_error = "skip"
    in_processes(2, train, config, tmp_path / "run")
    listed = Run(tmp_path / "run").unreadable
    assert listed is not None and listed["path"].tolist() == [str(broken)]


def test_a_loss_that_cannot_be_divided_is_refused_with_the_remedy(photos, tmp_path) -> None:
    config = make_config(photos, sharded=True)
    config.loss.name = "NormalizedSoftmaxLoss"
    with pytest.raises(InputError, match=r"loss\.shard_proxies: Normal.* cannot be divided .* set it to false"):
        orthoproxy.train(config, tmp_path / "run")
    config.loss.orthogonality.form = "classes"
    with pytest.raises(InputError, match=r"loss\.orthogonality\.form: classes .* use auto or dims"):
        orthoproxy.train(config, tmp_path / "run")


class Job:
    """`orthoproxy train` under torchrun, in two processes."""

    def __init__(self, recipe: Path, out: Path, *options: str) -> None:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        verb = ["-m", "orthoproxy", "train", "--config", str(recipe), "--out", str(out), "--resume"]
        self.metrics = out / "metrics.jsonl"
        self.job = subprocess.Popen(
            [*program, *options, *verb],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def wait_for_step(self, step: int) -> None:
        for _ in range(2400):
            text = self.metrics.read_text() if self.metrics.is_file() else ""
            if any(json.loads(line)["step"] >= step for line in text.splitlines(keepends=True) if line.endswith("\n")):
                return
            assert self.job.poll() is None, self.job.communicate()[0]
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached")

    def workers(self) -> list[int]:
        """The processes that train, in the order of their numbers."""
        children = Path(f"/proc/{self.job.pid}/task/{self.job.pid}/children").read_text().split()
        ranks = {}
        for child in map(int, children):
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks |= {int(v.removeprefix(b"RANK=")): child for v in variables if v.startswith(b"RANK=")}
        return [ranks[rank] for rank in sorted(ranks)]

    def end(self) -> tuple[int, str]:
        output = self.job.communicate(timeout=500)[0]
        return self.job.returncode, output


@pytest.fixture
def recipe(photos, tmp_path) -> Path:
    config = make_config(photos, sharded=True, epochs=60)
    config.training.select_on = "none"
    write_config(config, tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml"


linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")


@pytest.mark.slow
@linux_only
def test_a_killed_process_ends_the_job_and_torchrun_starts_it_again_from_the_last_checkpoint(recipe, tmp_path) -> None:
    job = Job(recipe, tmp_path / "run")
    job.wait_for_step(7)
    os.kill(job.workers()[1], signal.SIGKILL)
    code, output = job.end()
    assert code == 1
    # the other process says that it cannot reach this one, unless torchrun ends it before
    assert re.search(r"Signal 9 \(SIGKILL\)", output)
    assert not Run(tmp_path / "run").finished
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["position"]["step"]
    assert saved >= 5

    job = Job(recipe, tmp_path / "run", "--max-restarts", "1")
    job.wait_for_step(saved + 20)
    os.kill(job.workers()[0], signal.SIGKILL)
    code, output = job.end()
    assert code == 0, output
    run = Run(tmp_path / "run")
    steps = run.records()["step"].tolist()
    assert run.finished and steps == sorted(steps) and steps[-1] == 300 and len(set(steps)) == len(steps)


@pytest.mark.slow
@linux_only
def test_ctrl_c_stops_all_after_the_same_step_and_saves(recipe, tmp_path) -> None:
    job = Job(recipe, tmp_path / "run")
    job.wait_for_step(7)
    job.job.send_signal(signal.SIGINT)
    _, output = job.end()
    stopped = re.search(r"stopped after (step|epoch) (\d+); the run is saved; go on with --resume", output)
    assert stopped is not None, output
    position = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["position"]
    assert position[stopped[1]] == int(stopped[2])
    assert "stopping after this step" in output and output.count("the run is saved") == 1
