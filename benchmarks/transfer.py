"""What one weight of Soft Orthogonality does to the proxies of few classes and of many, from the cells of the studies.

    python benchmarks/transfer.py

Of each form and weight: what is left of Soft Orthogonality above its floor, for a class, `(SO - floor) / C`, mean over
the tuning seeds, all on icons with a frozen encoder and 128 numbers. A weight that is to be the same for any number of
classes should leave about the same.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from measure import report

CELLS = Path(__file__).parent.parent / "docs" / "studies"
STUDIES = ("frozen-icons-c75", "frozen-icons-c190", "frozen-icons")
FORMS = {"proxy-anchor": "none", "so-excess": "excess", "so-sum": "sum"}
SEEDS = (0, 1, 2)  # those that tried all weights


def main() -> None:
    found: dict[tuple[str, float], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for study in STUDIES:
        for path in sorted((CELLS / study / "cells").glob("*.json")):
            cell = json.loads(path.read_text(encoding="utf-8"))
            if cell["method"] in FORMS and cell["seed"] in SEEDS:
                geometry, weight = cell["geometry"], cell["setting"].get("loss.orthogonality.weight", 0)
                left = (geometry["squares"] - geometry["floor"]) / geometry["classes"]
                found[FORMS[cell["method"]], weight][geometry["classes"]].append(left)
    counts = sorted({classes for of_setting in found.values() for classes in of_setting})
    rows: list[dict[str, Any]] = []
    for (form, weight), of_setting in sorted(found.items(), key=lambda item: (item[0][0] != "none", item[0])):
        left = {f"C = {classes}": f"{statistics.mean(of_setting[classes]):.3g}" for classes in counts}
        rows.append({"scaling": form, "lambda": weight, **left})
    report(
        "transfer",
        "What is left of Soft Orthogonality above its floor, for a class",
        list(rows[0]),
        rows,
        "Read from docs/studies/*/cells, which have their own dates.",
    )


if __name__ == "__main__":
    main()
