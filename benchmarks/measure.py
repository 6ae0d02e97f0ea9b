"""What the benchmarks share: paired timings, memory of fresh processes, a table and a JSON file."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orthoproxy.core.environment import environment

RESULTS = Path(__file__).parent / "results"
MIB = 2**20


def paired_seconds(candidates: dict[str, Callable[[], object]], runs: int = 5) -> dict[str, list[float]]:
    """Time candidates in turn, A B A B ..., after a warm-up round, so that all see the same load."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(runs + 1):
        for name, work in candidates.items():
            start = time.perf_counter()
            work()
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def times_faster(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    """The median, over the pairs, of how many times faster one is than the other."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def in_fresh_process(script: str, *case: object) -> dict[str, float]:
    """Run ``script --case CASE ...`` and return the numbers that it printed, for example those of `memory_of`."""
    command = [sys.executable, script, "--case", *map(str, case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(work: Callable[[], object]) -> dict[str, float]:
    """Measure this process on Linux: the most it held while it worked, in all and beyond what it held before."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    work()
    peak = _status("VmHWM")
    return {"peak_mib": peak, "extra_mib": peak - before}


def memory(pid: int) -> float:
    """MiB of a process and those that it started, libraries not counted and shared pages once; Linux."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        own = next(int(line.split()[1]) / 1024 for line in rollup if line.startswith("Pss_Anon:"))
    except (FileNotFoundError, ProcessLookupError, StopIteration):  # it has just ended
        return 0.0
    return own + sum(memory(child) for child in children(pid))


def children(pid: int) -> list[int]:
    """The processes that a process has started, from any of its threads; Linux."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, path.read_text().split())
    return found


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def arguments(description: str, **options: Any) -> argparse.Namespace:
    """Parse the options of a benchmark, and ``--case CASE ...`` for `in_fresh_process`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def report(name: str, title: str, columns: Sequence[str], rows: Sequence[dict[str, Any]], notes: str = "") -> None:
    """Print the rows as a table, and write them with date and machine to results/NAME.json."""
    table = Table(title=title, title_justify="left", caption=notes, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(cell(row.get(column)) for column in columns))
    Console().print(table)
    record = record_of(name, title, rows) | {"notes": notes, "columns": list(columns)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def record_of(name: str, title: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of a benchmark: its rows, and how, when and where they came about."""
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return {
        "name": name,
        "title": title,
        "command": shlex.join(command),
        "date": datetime.date.today().isoformat(),
        "environment": environment(),
        "rows": list(rows),
    }


def markdown(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """A table; words to the left, numbers to the right."""
    aligned = [":--" if isinstance(rows[0].get(column), str) else "--:" for column in columns]
    lines = [columns, aligned, *([cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
