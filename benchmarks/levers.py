"""What averaged weights, augmentation, query expansion, re-ranking and a merged model are worth on test images.

python benchmarks/levers.py RUN... [--merged MODEL...]

The runs are seeds of one configuration; each MODEL is what `orthoproxy merge` made of them. The first row has the
scores of the runs, the others differences from them in points, with intervals over seeds and classes. Averaged weights
are compared with the same run without averaging; a merged model with the mean of the runs, with intervals over classes.
The CPU time is that of an embedding in the first row, and what the option adds to it or to a search in the others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from measure import markdown

from orthoproxy.data.table import evaluation_images
from orthoproxy.embedding.augmentation import augmented
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Scoring
from orthoproxy.evaluation.per_class import class_scores
from orthoproxy.evaluation.query_expansion import expand_queries
from orthoproxy.evaluation.reranking import rerank
from orthoproxy.runs.evaluate import load_table
from orthoproxy.runs.run_folder import RunFolder
from orthoproxy.studies.statistics import compare, mean_score

METRICS = ("recall@1", "map@r", "map")
SCORING = Scoring(map=True)


class Measured(NamedTuple):
    scores: pd.DataFrame
    without: pd.DataFrame | None  # the option
    milliseconds: float


def cpu_time(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), 1000 * (time.process_time() - start)


def not_averaged(run: RunFolder) -> Embedder | None:
    """Load the model of a run with the weights that were trained; None if the run did not average them."""
    if run.config.training.ema_decay is None:
        return None
    files = (run.checkpoints / f"{name}.ckpt" for name in ("best", "last"))
    file = next(file for file in files if file.is_file())
    weights = torch.load(file, map_location="cpu", weights_only=True)["encoder"]
    model = run.load_model(with_proxies=False)
    # a checkpoint has both encoders of such a run, the trained one first
    model.encoder.load_state_dict({name[2:]: value for name, value in weights.items() if name.startswith("0.")})
    return model


def measure_run(run: RunFolder, table: pd.DataFrame) -> dict[str, Measured]:
    model, paths = run.load_model(with_proxies=False), table["path"].tolist()
    embeddings, embedding = cpu_time(partial(model.embed, paths))
    plain, search = cpu_time(partial(class_scores, embeddings, table, SCORING))
    measured = {"none": Measured(plain, None, embedding / len(paths))}
    if (trained := not_averaged(run)) is not None:
        before = class_scores(trained.embed(paths), table, SCORING)
        measured["training.ema_decay"] = Measured(plain, before, 0)
    views, cost = cpu_time(partial(augmented(model).embed, paths))
    scores = class_scores(views, table, SCORING)
    measured["--augment"] = Measured(scores, plain, (cost - embedding) / len(paths))
    levers = {f"--expand {n}": partial(expand_queries, neighbors=n) for n in (1, 2, 5, 10)}
    for name, lever in {**levers, "--rerank": rerank}.items():
        scores, cost = cpu_time(partial(class_scores, embeddings, table, SCORING, lever))
        measured[name] = Measured(scores, plain, (cost - search) / len(paths))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--merged", nargs="+", type=Path, default=[])
    options = parser.parse_args()
    runs = [RunFolder(path) for path in options.runs]
    table = evaluation_images(load_table(runs[0]), "test")
    measured = [measure_run(run, table) for run in runs]
    plain = [found["none"].scores for found in measured]
    queries, rows = plain[0]["queries"].to_numpy(), []
    for name in measured[0]:
        found = [x[name] for x in measured]
        row = {"option": name}
        for metric in METRICS:
            values = np.stack([x.scores[metric] for x in found])
            if name == "none":
                row[metric] = str(mean_score(values, queries))
            else:
                without = np.stack([x.without[metric] for x in found if x.without is not None])
                row[metric] = str(compare(values, without, queries).estimate)
        rows.append({**row, "ms": f"{np.mean([x.milliseconds for x in found]):.1f}"})
    for merged in options.merged:
        model = RunFolder(merged).load_model(with_proxies=False)
        embeddings, cost = cpu_time(partial(model.embed, table["path"].tolist()))
        scores, row = class_scores(embeddings, table, SCORING), {"option": merged.name}
        for metric in METRICS:
            mean = np.mean([x[metric] for x in plain], axis=0, keepdims=True)
            row[metric] = str(compare(scores[[metric]].to_numpy().T, mean, queries).estimate)
        embedding = np.mean([x["none"].milliseconds for x in measured])
        rows.append({**row, "ms": f"{cost / len(table) - embedding:.1f}"})
    print(f"{len(runs)} runs, {queries.sum()} queries of {len(queries)} classes")
    print(markdown(list(rows[0]), rows))


if __name__ == "__main__":
    main()
