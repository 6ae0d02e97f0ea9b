"""Training throughput: compared with a bare loop, bfloat16 with float32, two processes with one.

python benchmarks/training.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from loading import photograph
from measure import arguments, in_fresh_process, report, times_faster
from torch import nn

import orthoproxy
from orthoproxy import Config
from orthoproxy.runs.experiment import make_encoder, make_objective
from orthoproxy.runs.recipes import read_config, write_config
from orthoproxy.training import make_optimizer

WARM_UP = 2  # steps that are not counted
CLASSES = 8
Precision = Literal["32-true", "bf16-mixed"]
Row = dict[str, Any]


class EnoughError(Exception):
    """Ends a training that has been timed."""


class BareLoop:
    """The loop that anyone would write, on random numbers that lie in memory."""

    def __init__(self, config: Config) -> None:
        encoder = make_encoder(config.encoder).train()
        self.objective = make_objective(config.loss, CLASSES, encoder.embedding_dim)
        self.optimizer = make_optimizer(encoder, self.objective, 1e-4, 1e-4, 1e-2, 1e-4)
        self.network = nn.Sequential(encoder.backbone, encoder.projection)
        self.half = config.training.precision == "bf16-mixed"
        batch = config.sampler.batch_size
        self.x = torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
        self.labels = torch.arange(batch) % CLASSES

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            embeddings = self.network(self.x)
        self.objective(embeddings, self.labels)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def in_turns(recipe: str, out: str, blocks: int) -> dict[str, float]:
    """Train, and after each record that is logged let the bare loop take as many steps."""
    config = read_config(recipe)
    loop, steps = BareLoop(config), config.training.log_every_n_steps
    seconds: dict[str, list[float]] = {"train": [], "bare": []}
    left = 0.0

    def log(*_: object) -> None:
        nonlocal left
        start = time.perf_counter()
        for _ in range(steps):
            loop.step()
        end = time.perf_counter()
        seconds["train"].append(start - left)
        seconds["bare"].append(end - start)
        left = end
        if len(seconds["bare"]) > blocks:
            raise EnoughError

    with mock.patch("orthoproxy.training.loop._log", log), contextlib.suppress(EnoughError):
        orthoproxy.train(config, out)
    counted = {name: values[1:] for name, values in seconds.items()}  # the first block warms up
    images = steps * config.sampler.batch_size
    speeds = {name: images / statistics.median(values) for name, values in counted.items()}
    return {**speeds, "ratio": times_faster(counted, "train", "bare")}


class Trainings:
    """Runs of `orthoproxy train` on photographs made for it."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder, self.count = folder, 0
        originals = [folder / f"{number}.jpg" for number in range(24)]
        for number, path in enumerate(originals):
            photograph(number).save(path, quality=90)
        for number in range(images):
            home = folder / "images" / f"class{number % CLASSES}"
            home.mkdir(parents=True, exist_ok=True)
            shutil.copy(originals[number % len(originals)], home / f"{number:05}.jpg")

    def prepare(self, backbone: str, batch: int, precision: Precision, log_every: int, workers: int) -> tuple[str, str]:
        """Write a recipe; return its file and a folder for the run."""
        self.count += 1
        out = self.folder / f"run{self.count}"
        config = Config().with_overrides(
            {
                "data": {
                    "name": "folder",
                    "root": str(self.folder / "images"),
                    "test_fraction": 0,
                    "workers": workers,
                },
                "sampler.batch_size": batch,
                "encoder": {"name": backbone, "init_from": "none"},
                "initialization": {"projection": "random", "proxies": "random"},
                "loss.proxy_regularizer.weight": 0.3,
                "training": {"precision": precision, "device": "cpu", "log_every_n_steps": log_every},
                "checkpoint_selection.split": "none",
            }
        )
        write_config(config, out.with_suffix(".yaml"))
        return str(out.with_suffix(".yaml")), str(out)

    def start(self, backbone: str, batch: int, precision: Precision, processes: int) -> tuple[subprocess.Popen, Path]:
        """Start a run in processes of one thread each, which read images themselves."""
        recipe, out = self.prepare(backbone, batch * processes, precision, log_every=1, workers=0)
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        program = [*(launcher if processes > 1 else ()), "orthoproxy", "train", "--config", recipe, "--out", out]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        with Path(f"{out}.log").open("w") as said:
            return subprocess.Popen([sys.executable, "-m", *program], env=environ, stdout=said, stderr=said), Path(out)

    def speed(self, started: tuple[subprocess.Popen, Path], steps: int) -> float:
        """Wait until a run has taken its steps, end it, and return its images a second."""
        process, out = started
        metrics = out / "metrics.jsonl"
        try:
            while True:
                lines = metrics.read_text().splitlines() if metrics.exists() else []
                if len(lines) >= steps:
                    break
                if process.poll() is not None:
                    raise RuntimeError(Path(f"{out}.log").read_text()[-2000:])
                time.sleep(0.2)
        finally:
            process.terminate()
            process.wait()
        return statistics.median(json.loads(line)["images_per_second"] for line in lines[WARM_UP:steps])


def beside_the_bare_loop(trainings: Trainings, precision: Precision, batch: int, blocks: int) -> Row:
    recipe, out = trainings.prepare("deit_small_patch16_224", batch, precision, log_every=4, workers=1)
    found = in_fresh_process(__file__, recipe, out, blocks)
    return {
        "what": f"DeiT-S, B = {batch}, {precision}, compared with a bare loop",
        "images/s": found["train"],
        "reference images/s": found["bare"],
        "ratio": found["ratio"],
    }


def beside_single_precision(half: Row, single: Row) -> Row:
    speed, beside = (float(row["images/s"]) for row in (half, single))
    what = "DeiT-S, bf16-mixed compared with 32-true"
    return {"what": what, "images/s": speed, "reference images/s": beside, "ratio": speed / beside}


def weak_scaling(trainings: Trainings, batch: int, steps: int, runs: int) -> list[Row]:
    """One process, two of a job, and two that know nothing of each other, which is all that the machine can give."""
    backbone, precision = "deit_tiny_patch16_224", "bf16-mixed"
    speeds: list[tuple[float, float, float]] = []
    for _ in range(runs):
        one = trainings.speed(trainings.start(backbone, batch, precision, processes=1), steps)
        two = trainings.speed(trainings.start(backbone, batch, precision, processes=2), steps)
        strangers = [trainings.start(backbone, batch, precision, processes=1) for _ in range(2)]
        speeds.append((one, two, sum(trainings.speed(stranger, steps) for stranger in strangers)))
    one, two, strangers = map(statistics.median, zip(*speeds, strict=True))
    name = f"DeiT-Ti, B = {batch} per process, bf16-mixed, one thread each"
    return [
        {
            "what": f"{name}: 2 processes, compared with 2 x 1 process",
            "images/s": two,
            "reference images/s": 2 * one,
            "ratio": statistics.median(b / (2 * a) for a, b, _ in speeds),
        },
        {
            "what": f"{name}: 2 processes, compared with 2 independent ones",
            "images/s": two,
            "reference images/s": strangers,
            "ratio": statistics.median(b / c for _, b, c in speeds),
        },
    ]


def main() -> None:
    options = arguments(__doc__ or "", blocks=10, steps=12, runs=2, batch=16)
    if options.case:
        recipe, out, blocks = options.case
        print(json.dumps(in_turns(recipe, out, int(blocks))))
        return
    with tempfile.TemporaryDirectory() as folder:
        trainings = Trainings(Path(folder), 64 * options.batch)
        single = beside_the_bare_loop(trainings, "32-true", options.batch, options.blocks // 3)
        half = beside_the_bare_loop(trainings, "bf16-mixed", options.batch, options.blocks)
        rows = [single, half, beside_single_precision(half, single)]
        rows += weak_scaling(trainings, 2 * options.batch, options.steps, options.runs)
    report(
        "training",
        "Training, 224 x 224",
        list(rows[0]),
        rows,
        "Beside the bare loop, the loader reads and augments in a process of its own on the same two cores. Two\n"
        "processes that do not talk are all that the machine gives: what they lack of 2 x one is not spent on\n"
        "talking.",
    )


if __name__ == "__main__":
    main()
