"""Recall@1 and MAP@R on unseen classes against CPU time, beside other libraries.

    python benchmarks/race.py tune      # learning rates of all, on validation classes
    python benchmarks/race.py run       # three seeds on the test classes; continues where it stopped
    python benchmarks/race.py report    # the table, and docs/images/race.png

All start from the same DeiT-Ti weights and train on the same images at the same size in bfloat16, in one process with
two threads, which reads the images too. CPU time counts everything but evaluation, also our initialization; it is
inflated where other processes compete for the cores. The other libraries train at a constant learning rate, as their
documentation shows, and are evaluated whenever they pass a mark. Our learning rate falls to zero at the end, so we
train anew for each mark, with as many epochs as fit, at most those of the recipe. All models are evaluated alike.

open-metric-learning needs NumPy 1 and so an environment of its own, named by --oml:

    python -m venv .venv-oml && .venv-oml/bin/pip install open-metric-learning timm pytorch-metric-learning
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from measure import RESULTS, markdown, record_of

from orthoproxy.data.table import select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Estimate, Scoring
from orthoproxy.evaluation.per_class import class_scores
from orthoproxy.models import Encoder
from orthoproxy.runs.config import Config
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.recipes import read_config, write_config
from orthoproxy.runs.train import train
from orthoproxy.studies.results import METRICS
from orthoproxy.studies.statistics import mean_score

ROOT = Path(__file__).parents[1]
FILE = RESULTS / "race.json"
SETS = ("cub100",)
MARKS = (2.0, 5.0, 10.0, 20.0)  # minutes of CPU time
TUNING_MARK = 5.0
SEEDS = (0, 1, 2)
RATES = (1e-5, 3e-5, 1e-4, 3e-4)  # of the backbone
OURS = {
    "orthoproxy": {},
    "orthoproxy, random initialization": {"initialization.projection": "random", "initialization.proxies": "random"},
}
PEERS = {
    "pytorch-metric-learning, Multi-Similarity": "pml-multi-similarity",
    "pytorch-metric-learning, Proxy Anchor": "pml-proxy-anchor",
    "open-metric-learning, triplet": "oml-triplet",
    "Proxy Anchor, authors' settings": "proxy-anchor-authors",
}
START = 1 / 3  # cost of our initialization in epochs: a forward pass without the backward pass

Row = dict[str, Any]


def configure(name: str, seed: int, lr: float, tuning: bool) -> Config:
    """The recipe of a dataset, with the classes held out that tuning needs."""
    return read_config(
        ROOT / "recipes" / f"{name}.yaml",
        overrides={
            "optimizer.lr.backbone": lr,
            "optimizer.lr.projection": lr,
            "data.workers": 0,
            "data.validation_fraction": 0.2 if tuning else 0.0,
            "checkpoint_selection.split": "validation" if tuning else "none",
            "training.validate_every_n_epochs": 1000,  # only after the last
            "training.precision": "bf16-mixed",
            "training.seed": seed,
        },
    )


def train_ours(config: Config, epochs: int, folder: Path) -> tuple[Encoder, float]:
    """Train in a fresh process; return the encoder and the minutes of CPU time."""
    recipe = config.with_overrides({"training.epochs": epochs})
    write_config(recipe, folder / "recipe.yaml")
    command = [sys.executable, __file__, "train", str(folder / "recipe.yaml"), str(folder / "run")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Embedder.load(folder / "run").encoder, float(done.stdout.splitlines()[-1])


def our_models(config: Config, marks: Sequence[float]) -> Iterator[tuple[float, Encoder, float]]:
    """Yield mark, encoder and CPU minutes, with as many epochs as fit each mark, at most those of the recipe."""
    per_epoch = None
    for mark in sorted(marks):
        epochs = 1 if per_epoch is None else min(config.training.epochs, max(1, int(mark / per_epoch - START)))
        with tempfile.TemporaryDirectory() as folder:
            encoder, minutes = train_ours(config, epochs, Path(folder))
        per_epoch = minutes / (epochs + START)
        yield mark, encoder, minutes


def peer_models(
    peer: str, config: Config, training: pd.DataFrame, lr: float, marks: Sequence[float], python: str
) -> Iterator[tuple[float, Encoder, float]]:
    """Yield mark, encoder and CPU minutes of one training of another library."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training[["path", "label"]].to_csv(folder / "train.csv", index=False)
        options = {
            "train": folder / "train.csv",
            "weights": config.encoder.init_from,
            "size": config.encoder.image_size,
            "lr": lr,
            "seed": config.training.seed,
            "out": folder / "models",
        }
        command = [python, str(Path(__file__).with_name("race_peers.py")), peer]
        command += [f"--{name}={value}" for name, value in options.items()]
        subprocess.run([*command, "--minutes", *map(str, marks)], stdout=subprocess.DEVNULL, check=True)
        for mark in sorted(marks):
            tensors = torch.load(folder / "models" / f"{mark:g}.pt", weights_only=True)
            dim = len(tensors["projection.weight"]) if "projection.weight" in tensors else None
            encoder = Encoder(config.encoder.name, dim, config.encoder.image_size)
            encoder.load_state_dict(tensors)
            minutes = json.loads((folder / "models" / f"{mark:g}.json").read_text())["minutes"]
            yield mark, encoder, minutes


def evaluate(encoder: Encoder, config: Config, images: pd.DataFrame) -> Row:
    """Score the classes of a split: names, numbers of queries, and means of the metrics."""
    embeddings = Embedder(encoder, config.data.resize).embed(images["path"].tolist())
    scores = class_scores(embeddings, images, Scoring(recall_at=(1,)))
    values = {name: scores[name].round(6).tolist() for name in METRICS}
    return {"queries": scores["queries"].tolist(), **values}


def models(
    contestant: str, name: str, seed: int, lr: float, marks: Sequence[float], tuning: bool, oml: str
) -> Iterator[Row]:
    """Train a contestant and yield a row for each mark."""
    config = configure(name, seed, lr, tuning).with_absolute_paths()
    table = split_table(config)
    if contestant in OURS:
        found = our_models(config.with_overrides(OURS[contestant]), marks)
    else:
        peer = PEERS[contestant]
        python = oml if peer.startswith("oml") else sys.executable
        found = peer_models(peer, config, select_split(table, "train"), lr, marks, python)
    images = select_split(table, "validation" if tuning else "test")
    for mark, encoder, minutes in found:
        row = {
            "contestant": contestant,
            "set": name,
            "seed": seed,
            "lr": lr,
            "mark": mark,
            "minutes": round(minutes, 2),
        }
        yield {**row, **evaluate(encoder, config, images)}


def mean(rows: Sequence[Row], metric: str) -> Estimate:
    """The mean over seeds with its interval over seeds and classes."""
    return mean_score(np.array([row[metric] for row in rows]), np.array(rows[0]["queries"]))


def chosen_lr(tuning: Sequence[Row], contestant: str, name: str) -> float:
    """The learning rate with the best MAP@R on validation classes."""
    rows = [row for row in tuning if (row["contestant"], row["set"]) == (contestant, name)]
    return max(rows, key=lambda row: mean([row], "map@r").value)["lr"]


def work(options: argparse.Namespace, record: dict[str, list[Row]]) -> None:
    """Train what is missing, and save after each training."""
    tuning = options.action == "tune"
    for name, contestant, seed in itertools.product(SETS, [*OURS, *PEERS], (0,) if tuning else SEEDS):
        lrs = RATES if tuning else [chosen_lr(record["tuning"], contestant, name)]
        part, marks = ("tuning", [TUNING_MARK]) if tuning else ("runs", MARKS)
        for lr in lrs:
            known = [(row["contestant"], row["set"], row["seed"], row["lr"]) for row in record[part]]
            if (contestant, name, seed, lr) in known:
                continue
            rows = list(models(contestant, name, seed, lr, marks, tuning, options.oml))
            record[part] += rows
            content = record_of("race", __doc__.splitlines()[0], []) | record
            FILE.write_text(json.dumps(content) + "\n", encoding="utf-8")
            scores = (f"{row['minutes']} min: {mean([row], 'map@r')}" for row in rows)
            print(contestant, name, seed, lr, *scores, flush=True)


def report(record: dict[str, list[Row]]) -> None:
    """Print the table, and draw Recall@1 against CPU minutes."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, len(SETS), squeeze=False)[0]
    rows = []
    for name, axis in zip(SETS, axes, strict=True):
        for contestant in [*OURS, *PEERS]:
            found = [row for row in record["runs"] if (row["contestant"], row["set"]) == (contestant, name)]
            points = []
            for mark in MARKS:
                of_mark = [row for row in found if row["mark"] == mark]
                minutes = float(np.mean([row["minutes"] for row in of_mark]))
                scores = {metric: mean(of_mark, metric) for metric in METRICS}
                points.append((minutes, 100 * scores["recall@1"].value))
                rows.append(
                    {"": contestant, "images": name, "CPU minutes": minutes, "seeds": len(of_mark)}
                    | {"Recall@1": str(scores["recall@1"]), "MAP@R": str(scores["map@r"])}
                )
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=contestant)
        axis.set(title=name, xscale="log", xlabel="minutes of CPU time", ylabel="Recall@1, %")
        axis.set_xticks(MARKS, [f"{mark:g}" for mark in MARKS])
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
    figure.savefig(ROOT / "docs" / "images" / "race.png", dpi=150)
    print(markdown(list(rows[0]), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("tune", "run", "report", "train"))
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--oml", default=".venv-oml/bin/python", help="Python with open-metric-learning")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.action == "train":
        start = time.process_time()
        train(read_config(options.paths[0]), options.paths[1], evaluate=False)
        print((time.process_time() - start) / 60)
        return
    record = json.loads(FILE.read_text()) if FILE.is_file() else {"tuning": [], "runs": []}
    record = {part: record[part] for part in ("tuning", "runs")}
    report(record) if options.action == "report" else work(options, record)


if __name__ == "__main__":
    main()
