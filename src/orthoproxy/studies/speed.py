"""How fast the methods of a study learn: scores on the validation classes over seconds and images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from orthoproxy.studies.plan import Options, Result, Study, chosen_setting


@dataclass(frozen=True)
class Speed:
    """How long a method takes to `level_to_reach`: the median over all seeds, infinite where half of them never do.

    `fewer` is how many images fewer than the baseline, or what the method is compared with, needs with the same seed:
    the mean, and a 95 % interval by Student's t over seeds; None for the baseline itself, and where a seed never gets
    there or has no partner.
    """

    method: str
    seconds: float
    images: float
    reached: int
    seeds: int
    fewer: tuple[float, float, float] | None = None


def curves_of(study: Study, results: Sequence[Result], method: str) -> dict[int, list[dict[str, Any]]]:
    """Pick the curves of a method's chosen setting by their seeds.

    Parameters
    ----------
    study, results
        As in `rows_of`.
    method
        Its name.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> curves_of(Study("so", {"off": Method()}, "off"), [{"cell": "off_seed0", "curve": []}], "off")
    {}
    """
    setting = chosen_setting(study, results, method)
    if setting is None:
        return {}
    seeds = {cell.name: cell.seed for cell in study.judged_cells(method, setting)}
    known = [(seeds[result["cell"]], result.get("curve")) for result in results if result["cell"] in seeds]
    return {seed: curve for seed, curve in known if curve}


def level_to_reach(study: Study, results: Sequence[Result]) -> float | None:
    """Find the score that the baseline has after half its training: the mean over seeds, on validation classes.

    Parameters
    ----------
    study, results
        As in `rows_of`.

    Returns
    -------
    float or None
        As a fraction; None without curves of the baseline.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> curve = [{"epoch": n, "recall@1": n / 10, "seconds": n, "images": n} for n in (1, 2, 3, 4)]
    >>> level_to_reach(Study("so", {"off": Method()}, "off"), [{"cell": "off_seed0", "curve": curve}])
    0.2
    """
    curves = curves_of(study, results, study.baseline)
    halves = [curve[math.ceil(len(curve) / 2) - 1][study.metric] for curve in curves.values()]
    return float(np.mean(halves)) if halves else None


def speeds(study: Study, results: Sequence[Result]) -> list[Speed]:
    """Measure how long each method takes to `level_to_reach`, between two epochs by a straight line.

    Parameters
    ----------
    study, results
        As in `rows_of`.

    Returns
    -------
    list of Speed
        Of methods with curves; empty where there is no level.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> curve = [{"epoch": n, "recall@1": n / 10, "seconds": n, "images": 100 * n} for n in (1, 2, 3, 4)]
    >>> speeds(Study("so", {"off": Method()}, "off"), [{"cell": "off_seed0", "curve": curve}])
    [Speed(method='off', seconds=2.0, images=200.0, reached=1, seeds=1, fewer=None)]
    """
    level, found = level_to_reach(study, results), []
    if level is None:
        return []
    times = {method: _times(study, results, method, level) for method in study.methods}
    for method, by_seed in times.items():
        if by_seed:
            seconds, images = (float(statistics.median(column)) for column in zip(*by_seed.values(), strict=True))
            reached = sum(math.isfinite(images) for _, images in by_seed.values())
            against = study.methods[method].against or study.baseline
            fewer = None if method == study.baseline else _fewer(by_seed, times[against])
            found.append(Speed(method, seconds, images, reached, len(by_seed), fewer))
    return found


def _times(study: Study, results: Sequence[Result], method: str, level: float) -> dict[int, tuple[float, float]]:
    """Seconds and images to a level by seed; infinite where a curve never reaches it."""
    never = (math.inf, math.inf)
    curves = curves_of(study, results, method)
    return {seed: _time_to(level, curve, study.metric) or never for seed, curve in curves.items()}


def _fewer(
    ours: Mapping[int, tuple[float, float]], baseline: Mapping[int, tuple[float, float]]
) -> tuple[float, float, float] | None:
    """Compare images with the same seeds: the mean of what the baseline needs more, and Student's interval."""
    if len(ours) < 2 or not ours.keys() <= baseline.keys():
        return None
    saved = np.array([baseline[seed][1] - images for seed, (_, images) in ours.items()])
    if not np.isfinite(saved).all():
        return None
    half = stats.t.ppf(0.975, len(saved) - 1) * saved.std(ddof=1) / math.sqrt(len(saved))
    return float(saved.mean()), float(saved.mean() - half), float(saved.mean() + half)


def _time_to(level: float, curve: Sequence[Options], metric: str) -> tuple[float, float] | None:
    """Return seconds and images at which a curve first reaches a level; the first epoch's, if it starts above."""
    before = None
    for point in curve:
        if point[metric] >= level:
            if before is None:
                return point["seconds"], point["images"]
            share = (level - before[metric]) / (point[metric] - before[metric])
            seconds, images = (before[key] + share * (point[key] - before[key]) for key in ("seconds", "images"))
            return seconds, images
        before = point
    return None
