"""How often a study's interval of a difference holds the truth, in a simulation where the truth is known.

    python benchmarks/intervals.py

Seeds and 40 classes are drawn anew each time; a class has 3 to 14 queries. The paired difference of a seed and a class
is the truth, plus a part of the seed, one of the class and one of both, each normal. How much of a class's deviation
(0.05) the seeds have decides how far a few of them can mislead.
"""

from __future__ import annotations

import argparse

import numpy as np
from measure import report
from rich.progress import track

from orthoproxy.studies.statistics import mean_score

CLASSES, DEVIATION, TRUTH = 40, 0.05, 0.03
SEEDS = (3, 5, 8, 16)
SHARES = (0.0, 0.2, 0.5, 1.0)  # the deviation of seeds, in that of classes
COLUMN = "{share:g} of the classes'"


def covered(seeds: int, share: float, runs: int) -> float:
    """The share of 95 % intervals that hold the truth."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(runs):
        queries = generator.integers(3, 15, size=CLASSES)
        of_seeds = generator.normal(0, share * DEVIATION, (seeds, 1))
        of_both = generator.normal(0, DEVIATION, (seeds, CLASSES))
        paired = TRUTH + of_seeds + generator.normal(0, DEVIATION, CLASSES) + of_both
        found = mean_score(paired, queries, draws=1000, seed=int(generator.integers(2**31)))
        held += found.low <= TRUTH <= found.high
    return held / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="Differences simulated for each number.")
    options = parser.parse_args()
    rows = []
    for seeds in track(SEEDS, "simulate"):
        found = {COLUMN.format(share=share): f"{100 * covered(seeds, share, options.runs):.1f}" for share in SHARES}
        rows.append({"seeds": seeds, **found})
    report(
        "intervals",
        "How often a 95 % interval of a difference holds the truth, in percent; seeds deviate by",
        list(rows[0]),
        rows,
        f"{options.runs:,} simulated differences each: a number is certain to about one point.",
    )


if __name__ == "__main__":
    main()
