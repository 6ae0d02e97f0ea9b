"""What one weight of Soft Orthogonality does to the proxies of few and of many classes, from the results of studies.

    python benchmarks/transfer.py

Of each form and weight: what is left of Soft Orthogonality above its floor, for a class, `(SO - floor) / C`, and which
share that is of what Proxy Anchor alone leaves; with D = 128, mean over the seeds that tried all weights. On icons
with a frozen encoder for three numbers of classes, and on car photographs; with the whole network on both.
A weight that is to be the same for any number of classes should leave about the same. Icons and cars differ in more
than that number: cars have batches of 48, so their eight epochs are 376 steps, and those of icons 176.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from measure import report

from orthoproxy.studies import read_results
from orthoproxy.studies.results import TrialResult

RESULTS = Path(__file__).parent.parent / "studies" / "results"
STUDIES = {  # the column of each
    "frozen-icons-c75": "frozen, icons",
    "frozen-icons-c190": "frozen, icons",
    "frozen-icons": "frozen, icons",
    "frozen-cars98": "frozen, cars",
    "cars98": "whole, cars",
    "icons": "whole, icons",
}
FORMS = {"proxy-anchor": "none", "so-excess": "excess", "so-sum": "sum"}


def main() -> None:
    columns: dict[str, dict[tuple[str, float], float]] = {}
    for study, where in STUDIES.items():
        results = read_results(RESULTS / f"{study}.parquet")
        trials = [trial for trial in results if trial.method in FORMS and not trial.failed]
        shared = set.intersection(*seeds_by_setting(trials).values())
        (classes,) = {trial.geometry["classes"] for trial in trials}
        left = defaultdict(list)
        for trial in trials:
            if trial.seed in shared:
                geometry = trial.geometry
                left[form_and_weight(trial)].append((geometry["squares"] - geometry["floor"]) / geometry["classes"])
        title = f"{where}, C = {classes}, {len(shared)} seed{'s' if len(shared) > 1 else ''}"
        columns[title] = {setting: statistics.mean(several) for setting, several in left.items()}
    settings = {setting for column in columns.values() for setting in column}
    rows: list[dict[str, Any]] = []
    for form, weight in sorted(settings, key=lambda setting: (setting[0] != "none", setting)):
        shown = {name: format_share(column.get((form, weight)), column["none", 0]) for name, column in columns.items()}
        rows.append({"scaling": form, "lambda": weight, **shown})
    report(
        "transfer",
        "What is left of Soft Orthogonality above its floor, for a class",
        list(rows[0]),
        rows,
        "Read from studies/results, which have their own dates.",
    )


def form_and_weight(trial: TrialResult) -> tuple[str, float]:
    return FORMS[trial.method], trial.setting.get("loss.proxy_regularizer.weight", 0)


def seeds_by_setting(trials: list[TrialResult]) -> dict[tuple[str, float], set[int]]:
    seeds = defaultdict(set)
    for trial in trials:
        seeds[form_and_weight(trial)].add(trial.seed)
    return seeds


def format_share(left: float | None, alone: float) -> str:
    if left is None:
        return ""
    share = 100 * left / alone
    return f"{left:.3g} ({share:.0f} %)" if share >= 10 else f"{left:.3g} ({share:.2g} %)"


if __name__ == "__main__":
    main()
