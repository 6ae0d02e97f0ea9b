"""A study made up without training: results as its cells would leave them, with gains that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from orthoproxy.studies.plan import Cell, Method, Study

ROOT = Path(__file__).parents[2]
WEIGHT = "loss.orthogonality.weight"
WEIGHTS = [0.03, 0.1, 0.3, 1, 3]
ENVIRONMENT = {"revision": "0123abc", "processor": "AMD EPYC", "cores": "2", "torch": "2.14.1"}


def a_study(seeds: int = 8, **changes: Any) -> Study:
    """Proxy Anchor alone, and with Soft Orthogonality in two forms, each with a weight to choose."""
    study = Study(
        name="made-up",
        title="Does Soft Orthogonality help on icons?",
        question="Does Soft Orthogonality raise Recall@1 on unseen classes, and how strong should it be?",
        base=ROOT / "recipes/icons.yaml",
        path=Path("studies/made-up.yaml"),
        set={"data.validation_fraction": 0.2},
        seeds=list(range(seeds)),
        tuning_seeds=[0, 1],
        metric="recall@1",
        baseline="proxy-anchor",
        compare=["so-excess", "so-sum"],
        methods={
            "proxy-anchor": Method(set={WEIGHT: 0}),
            "so-excess": Method(set={"loss.orthogonality.scaling": "excess"}, choose={WEIGHT: WEIGHTS}),
            "so-sum": Method(set={"loss.orthogonality.scaling": "sum"}, choose={WEIGHT: [1e-4, 1e-3, 1e-2]}),
        },
    )
    return replace(study, **changes)


def gain_of(method: str, setting: dict[str, Any]) -> float:
    """What a setting adds to the score: best at 0.3 with `excess`, nothing but harm with `sum`."""
    weight = setting.get(WEIGHT, 0)
    if method == "so-excess":
        return 0.06 - 0.03 * abs(np.log10(weight / 0.3))
    return -2 * weight if method == "so-sum" else 0.0


def scores(seed: int, gain: float, classes: int, salt: str) -> dict[str, Any]:
    """Scores of each class; how hard a class is does not depend on the seed, nor does the untrained encoder."""
    of_classes = np.random.default_rng(len(salt))
    of_seed = np.random.default_rng([seed, len(salt), int(1e6 * abs(gain))])
    hard = of_classes.beta(5, 3, classes)
    queries = of_classes.integers(3, 15, classes)
    untrained = np.clip(hard - 0.2, 0, 1)
    trained = np.clip(hard + gain + of_seed.normal(0, 0.01) + of_seed.normal(0, 0.04, classes), 0, 1)

    def both(values: np.ndarray) -> dict[str, list[float]]:
        return {"recall@1": values.round(6).tolist(), "map@r": (values / 2).round(6).tolist()}

    return {
        "classes": [f"{salt} {number:03}" for number in range(classes)],
        "queries": queries.tolist(),
        "trained": both(trained),
        "untrained": both(untrained),
    }


def a_cell(study: Study, method: str, setting: dict[str, Any], seed: int, judged: bool) -> dict[str, Any]:
    """The result of one training."""
    gain = gain_of(method, setting)
    final = scores(seed, gain, 30, "validation")
    reached = np.average(final["trained"]["recall@1"], weights=final["queries"])
    start = np.average(final["untrained"]["recall@1"], weights=final["queries"])
    weight = setting.get(WEIGHT, 0.01)
    curve = [
        {
            "epoch": epoch,
            "seconds": 15.5 * epoch + seed / 10,
            "images": 2944 * epoch,
            "recall@1": round(float(reached + (start - reached) * np.exp(-epoch * (1 + gain))), 6),
            "map@r": round(float(reached / 2 + (start - reached) / 2 * np.exp(-epoch)), 6),
        }
        for epoch in range(1, 9)
    ]
    return {
        "format_version": 1,
        "study": study.name,
        "cell": Cell(method, setting, seed).name,
        "method": method,
        "setting": setting,
        "seed": seed,
        "options": {**study.options(Cell(method, setting, seed)), "training.seed": seed},
        "validation": final,
        "test": scores(seed, gain, 60, "test") if judged else None,
        "curve": curve,
        "geometry": {
            "classes": 300,
            "dim": 128,
            "effective_rank": 60 + 20 * float(np.log10(1 + 100 * weight)),
            "largest_cosine": 0.95 - 0.1 * float(np.log10(1 + 100 * weight)),
            "squares": 403.1 + 300 / (1 + 100 * weight),
            "floor": 403.125,
        },
        "seconds": 130.2 + seed,
        "images": 23552,
        "elapsed": 140.2 + seed,
        "date": "2026-11-24",
        "environment": ENVIRONMENT,
    }


def its_cells(study: Study) -> list[dict[str, Any]]:
    """All cells of a study that has run to its end: the best setting on all seeds, judged; others on two seeds."""
    cells = []
    for method in study.methods:
        settings = study.methods[method].settings
        best = max(settings, key=lambda setting: gain_of(method, setting))
        for setting in settings:
            seeds = study.seeds if setting == best else study.tuning_seeds
            cells += [a_cell(study, method, setting, seed, judged=setting == best) for seed in seeds]
    return cells
