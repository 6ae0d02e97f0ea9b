"""Detection of label errors: precision and recall with 5 % of a run's training labels changed at random.

    python benchmarks/label_errors.py --run runs/icons
    python benchmarks/label_errors.py --run runs/icons --planted runs/icons-planted

The labels are changed with five seeds. Each method leaves the image itself out: class means, or nearest neighbors.
`listed` is the number that `orthoproxy diagnose` would list. With --planted, a run is also trained on the changed
labels of the first seed, and its own encoder is evaluated.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from measure import arguments, report

from orthoproxy import Embedder, RunFolder, train
from orthoproxy.data.table import select_split
from orthoproxy.diagnosis.label_errors import (
    CORRUPTED,
    LeaveOneOut,
    corrupt_labels,
    find_suspects,
    leave_one_out,
    whiten,
)
from orthoproxy.evaluation.retrieval import unit_rows
from orthoproxy.runs.evaluate import load_table

SEEDS = range(5)
NEIGHBORS = 5


def main() -> None:
    options = arguments(__doc__ or "", run="runs/icons", planted="")
    run = RunFolder(options.run)
    table = load_table(run)
    images = select_split(table, "train")
    labels = pd.factorize(images["label"], sort=True)[0]
    features = Embedder.load(run.folder / "baseline").embed(
        images["path"].tolist(), workers=1, progress="embed, untrained"
    )
    ways = {
        "class means, pooled features": unit_rows(features),
        **{f"class means, whitened {w:g}": whiten(features, w) for w in (0.25, 0.5, 0.75, 1.0)},
    }
    rows = [
        row(way, [evaluated(labels, seed, lambda changed, x=x: leave_one_out(x, changed)) for seed in SEEDS])
        for way, x in ways.items()
    ]
    half = ways["class means, whitened 0.5"]
    rows.append(
        row(
            f"{NEIGHBORS} neighbors, whitened 0.5",
            [evaluated(labels, s, lambda y: by_neighbors(half, y)) for s in SEEDS],
        )
    )
    if options.planted:
        rows += by_a_run_that_saw_them(run, table, labels, Path(options.planted))
    notes = f"{len(images):,} images of {labels.max() + 1} classes; {CORRUPTED:.0%} of the labels changed; five seeds"
    columns = ["model", "average precision", "listed", "precision", "recall"]
    report(f"label_errors-{run.folder.resolve().name}", "Wrong labels found", columns, rows, notes)


def evaluated(labels: np.ndarray, seed: int, find: Callable[[np.ndarray], LeaveOneOut]) -> dict[str, float]:
    """Change labels, find suspects, and compare them with the changed ones."""
    changed, planted = corrupt_labels(labels, CORRUPTED, seed)
    seen: LeaveOneOut = find(changed)
    return compared(seen, find_suspects(seen).rows, planted)


def compared(seen: LeaveOneOut, listed: np.ndarray, planted: np.ndarray) -> dict[str, float]:
    wrong = np.isin(np.argsort(seen.margin, kind="stable"), planted)  # NaN last
    precision = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    hits = len(np.intersect1d(listed, planted))
    return {
        "average precision": float(precision[wrong].mean()),
        "listed": float(len(listed)),
        "precision": hits / max(1, len(listed)),
        "recall": hits / len(planted),
    }


def row(name: str, results: list[dict[str, float]]) -> dict[str, object]:
    return {"model": name, **{key: statistics.mean(result[key] for result in results) for key in results[0]}}


def by_neighbors(x: np.ndarray, labels: np.ndarray) -> LeaveOneOut:
    """Vote by the similarity of the nearest images, the image itself left out."""
    cosines = x @ x.T
    np.fill_diagonal(cosines, -1)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBORS]
    votes = np.zeros((len(x), labels.max() + 1))
    each = np.arange(len(x))
    for place in nearest.T:
        votes[each, labels[place]] += np.exp(cosines[each, place] / 0.05)
    votes /= votes.sum(axis=1, keepdims=True)
    own = votes[each, labels]
    votes[each, labels] = -1
    ahead = (votes > own[:, None]).sum(axis=1) + (votes >= own[:, None]).sum(axis=1)
    return LeaveOneOut(own - votes.max(axis=1), ahead / (2 * labels.max()), votes.argmax(axis=1))


def by_a_run_that_saw_them(
    run: RunFolder, table: pd.DataFrame, labels: np.ndarray, folder: Path
) -> list[dict[str, object]]:
    """Train on changed labels and evaluate that encoder: leave-one-out class means, and its own proxies."""
    changed, planted = corrupt_labels(labels, CORRUPTED, seed=0)
    training = (table["split"] == "train").to_numpy()
    names = np.array(sorted(set(table["label"][training])))
    wrong = table.copy()
    wrong.loc[training, "label"] = names[changed]
    folder.mkdir(parents=True, exist_ok=True)
    wrong.to_csv(folder.with_suffix(".csv"), index=False)
    overrides = {
        "data.name": "csv",
        "data.root": None,
        "data.csv": str(folder.with_suffix(".csv")),
        "data.test_classes": None,
        "data.allow_paths_outside_root": True,
    }
    model = train(run.config.with_overrides(overrides), folder, resume=True).load_model()
    x = unit_rows(model.embed(table["path"][training].tolist(), workers=1, progress="embed, trained"))
    seen = leave_one_out(x, changed)
    results = [row("class means, encoder trained on them", [compared(seen, find_suspects(seen).rows, planted)])]
    if model.proxies is not None:
        cosines, each = x @ unit_rows(model.proxies.numpy()).T, np.arange(len(x))
        own = cosines[each, changed]
        cosines[each, changed] = -1
        ahead = (cosines > own[:, None]).mean(axis=1)
        seen = LeaveOneOut(own - cosines.max(axis=1), ahead, cosines.argmax(axis=1))
        results.append(row("its proxies, also trained on them", [compared(seen, find_suspects(seen).rows, planted)]))
    return results


if __name__ == "__main__":
    main()
