"""Write docs/performance.md from benchmarks/results/*.json.

python benchmarks/page.py
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from measure import RESULTS, markdown

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
ORDER = (
    *(
        "objective",
        "million",
        "retrieval",
        "retrieval-60502",
        "training",
        "depthwise",
        "precision",
        "loading",
        "processes",
    ),
    *("export", "catalog", "catalog-1000000", "serve"),
)
INTRODUCTION = """# Performance

How fast and how small, beside the peers, measured on two cores. `make bench` repeats what takes minutes, `make
bench-full` the rest but for the catalog of a million, which is `python benchmarks/catalog.py --images 1000000`; all
print these tables and write `benchmarks/results/*.json`, from which `python benchmarks/page.py` makes this page. The
candidates of a table take turns in one run, and ratios are medians over the turns: on another machine the times will
differ, the ratios less so. Memory is the peak of a fresh process each.
"""


def page() -> str:
    records = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ORDER]
    return "\n".join([INTRODUCTION, *map(section, records)])


def section(record: dict[str, Any]) -> str:
    """A benchmark's own description, its table, and where and when it was measured."""
    script = Path(__file__).with_name(f"{record['name'].split('-')[0]}.py")
    _, _, number = record["name"].partition("-")
    _, command, *description = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").split("\n\n")
    command = command.strip().split("  ")[0]
    if number:
        command = re.sub("(?<=--images )[0-9]+", number, command)
    machine = record["environment"]
    where = (
        f"{record['date']}, {machine['processor']}, {machine['cores']} cores, {machine['memory']}, "
        f"PyTorch {machine['torch']}: `{command}`"
    )
    parts = [
        f"## {record['title']}",
        *description,
        markdown(record["columns"], record["rows"]),
        record["notes"].replace("\n", " "),
        where,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
