"""Write docs/reliability.md: benchmarks/reliability.md with what tests of faults wrote down, and what soak.py found.

    python benchmarks/reliability.py .cache/records.jsonl

`make reliability` runs the tests that write records, and then this. Without the file of records, the page is made again
from benchmarks/results/reliability.json.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from string import Template
from typing import Any

from measure import RESULTS, markdown, record_of

WORDS = Path(__file__).with_suffix(".md")
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
SECTIONS = {"repeatable": "repeatable", "faults": "faults", "nothing let in": "let_in"}


def counted(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How often each thing was tried, and all that was lost."""
    outcomes: dict[tuple[str, str], list[str]] = defaultdict(list)
    times: Counter[tuple[str, str]] = Counter()
    for record in records:
        outcomes[record["section"], record["tried"]].append(record["lost"] or "something")
        times[record["section"], record["tried"]] += record.get("times", 1)
    return [
        {
            "section": section,
            "tried": tried,
            "times": times[section, tried],
            "lost": "; ".join(sorted({what for what in lost if what != "nothing"})) or "nothing",
        }
        for (section, tried), lost in outcomes.items()
    ]


def place(record: dict[str, Any]) -> str:
    machine = record["environment"]
    return (
        f"{record['date']}, {machine['processor']}, {machine['cores']} cores, {machine['memory']}, "
        f"PyTorch {machine['torch']}"
    )


def load_of(soak: dict[str, Any]) -> str:
    """The section of the soak."""
    table, notes = markdown(soak["columns"], soak["rows"]), soak["notes"].replace("\n", " ")
    return f"## {soak['title']}\n\n{table}\n\n{notes}\n\n{place(soak)}: `{soak['command']}`.\n"


def page(tests: dict[str, Any], soak: dict[str, Any] | None) -> str:
    tables = {
        name: markdown(["tried", "times", "lost"], [row for row in tests["rows"] if row["section"] == section])
        for section, name in SECTIONS.items()
    }
    return Template(WORDS.read_text(encoding="utf-8")).substitute(
        tables,
        tests=place(tests),
        times=sum(row["times"] for row in tests["rows"]),
        load="" if soak is None else load_of(soak),
    )


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    result = RESULTS / "reliability.json"
    if len(sys.argv) > 1:
        lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
        record = record_of("reliability", "Reliability", counted([json.loads(line) for line in lines]))
        result.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    soak = RESULTS / "soak.json"
    words = page(read(result), read(soak) if soak.is_file() else None)
    PAGE.write_text(words, encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
