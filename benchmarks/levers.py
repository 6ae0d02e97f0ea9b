"""What averaged weights, augmentation, query expansion, re-ranking and a merged model are worth on test images.

python benchmarks/levers.py RUN... [--merged MODEL]

The runs are seeds of one configuration; MODEL is what `orthoproxy merge` made of them. Differences are to the model of
each run (for averaged weights: to the weights that are not averaged), with intervals over seeds and classes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import markdown

from orthoproxy.data.table import evaluation_images
from orthoproxy.embedding.augmentation import augmented
from orthoproxy.evaluation import Scoring
from orthoproxy.evaluation.evaluate import build_retrieval, score_queries
from orthoproxy.evaluation.reranking import expand_queries, rerank
from orthoproxy.runs.evaluate import load_table
from orthoproxy.runs.run_folder import RunFolder
from orthoproxy.studies.statistics import compare, mean_score

METRICS = ("recall@1", "map@r", "map")
SCORING = Scoring(map=True)
AVERAGED = "1.module."  # where a checkpoint has the averaged encoder; the one that is trained has "0."


def cpu_time(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), 1000 * (time.process_time() - start)


def class_scores(embeddings: np.ndarray, table: pd.DataFrame, lever: Any = None) -> pd.DataFrame:
    """Average the metrics over the queries of each class, and count these."""
    retrieval = build_retrieval(embeddings, table, SCORING.rule(table))
    frame = pd.DataFrame(score_queries(retrieval, table, SCORING, lever))
    by_class = frame.assign(queries=1).groupby(retrieval.labels[retrieval.queries])
    return by_class.mean().assign(queries=by_class["queries"].sum())


def without_average(run: RunFolder) -> Any:
    """Load the model of a run with its weights before averaging; None if they were not averaged."""
    file = run.checkpoints / "last.ckpt"
    weights = torch.load(file, weights_only=True)["encoder"] if file.is_file() else {}
    if not any(name.startswith(AVERAGED) for name in weights):
        return None
    model = run.load_model(with_proxies=False)
    model.encoder.load_state_dict({name[2:]: value for name, value in weights.items() if name.startswith("0.")})
    return model


def measure(run: RunFolder, merged: RunFolder | None) -> dict[str, tuple[pd.DataFrame, pd.DataFrame | None, float]]:
    """Return the scores with each lever, those without it, and what it costs in milliseconds per image or query."""
    table, model = evaluation_images(load_table(run), "test"), run.load_model(with_proxies=False)
    paths = table["path"].tolist()
    embeddings, embedding = cpu_time(partial(model.embed, paths))
    plain, ranking = cpu_time(partial(class_scores, embeddings, table))
    found: dict[str, tuple[pd.DataFrame, pd.DataFrame | None, float]] = {"none": (plain, None, embedding / len(paths))}
    if (before := without_average(run)) is not None:
        found["training.ema_decay"] = plain, class_scores(before.embed(paths), table), 0.0
    views, cost = cpu_time(partial(augmented(model).embed, paths))
    found["--augment"] = class_scores(views, table), plain, (cost - embedding) / len(paths)
    levers = {f"--expand {n}": partial(expand_queries, neighbors=n) for n in (1, 2, 5, 10)}
    for name, lever in {**levers, "--rerank": rerank}.items():
        scores, cost = cpu_time(partial(class_scores, embeddings, table, lever))
        found[name] = scores, plain, (cost - ranking) / len(paths)
    if merged is not None:
        embeddings, cost = cpu_time(partial(merged.load_model(with_proxies=False).embed, paths))
        found["merge"] = class_scores(embeddings, table), plain, (cost - embedding) / len(paths)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--merged", type=Path)
    options = parser.parse_args()
    merged = None if options.merged is None else RunFolder(options.merged)
    measured = [measure(RunFolder(run), merged) for run in options.runs]
    rows = []
    for lever in measured[0]:
        scores, plain, cost = zip(*(found[lever] for found in measured), strict=True)
        queries = scores[0]["queries"].to_numpy()
        row = {"lever": lever}
        for metric in METRICS:
            values = np.stack([frame[metric] for frame in scores])
            if lever == "none":
                row[metric] = str(mean_score(values, queries))
            else:
                row[metric] = str(compare(values, np.stack([frame[metric] for frame in plain]), queries).estimate)
        rows.append({**row, "ms": f"{np.mean(cost):.1f}"})
    print(f"{len(measured)} runs, {queries.sum()} queries of {len(queries)} classes")
    print(markdown(list(rows[0]), rows))


if __name__ == "__main__":
    main()
