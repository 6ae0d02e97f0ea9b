"""A run made up without training: pictures of colored shapes, embeddings around class centers, a log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from orthoproxy.data import make_table
from orthoproxy.evaluation import Scoring, score
from orthoproxy.reports.results import RunResults

CLASSES, IMAGES, DIM = 8, 5, 6


def synthetic_run(folder: Path, groups: bool = False, **changes: Any) -> RunResults:
    """Eight classes of five images, judged, with twelve proxies; `changes` replace fields of the results."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), IMAGES)
    paths = [str(folder / f"{number}.png") for number in range(len(labels))]
    for path, label in zip(paths, labels, strict=True):
        Image.new("RGB", (40, 30), (30 * int(label), 90, 250 - 30 * int(label))).save(path)
    group = [f"camera {number % 2}" for number in range(len(labels))] if groups else ""
    table = make_table(paths, [f"shape {label}" for label in labels], split="test", group=group)
    trained, untrained = (_around_centers(generator, labels, noise) for noise in (0.5, 1.1))
    results = RunResults(
        name="first run",
        evaluation=score(trained, untrained, table, Scoring(bootstrap_samples=100)),
        table=table,
        embeddings=trained,
        baseline_embeddings=untrained,
        log=_log(),
        proxies=generator.standard_normal((12, DIM)).astype(np.float32),
        classes=[f"thing {number}" for number in range(12)],
        config="name: first run\nseed: 3\n",
        machine={"processor": "a made-up one", "python": "3.11"},
        notes=["Fewer than 10 validation classes"],
    )
    return replace(results, **changes)


def _around_centers(generator: np.random.Generator, labels: np.ndarray, noise: float) -> np.ndarray:
    centers = generator.standard_normal((CLASSES, DIM))
    points = centers[labels] + noise * generator.standard_normal((len(labels), DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def _log() -> pd.DataFrame:
    steps = [
        {
            "step": step,
            "epoch": step // 10,
            "loss": 9 / step,
            "metric_loss": 8 / step,
            "orthogonality": 1 / step,
            "lr/backbone": 1e-4,
            "lr/projection": 0.0,
            "lr/proxies": 1e-2,
            "images_per_second": 100.0,
            "seconds": 1.5 * step,
        }
        for step in range(1, 41)
    ]
    validation = [{"step": step, "validation/recall@1": 0.3 + step / 100, "validation/map@r": 0.2} for step in (10, 40)]
    return pd.DataFrame([*steps, *validation])
