"""`orthoproxy compare`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from orthoproxy.cli.options import Parser, config_overrides


def add_options(parser: Parser) -> None:
    parser.add_argument("first", metavar="RUN", help="A run folder.")
    parser.add_argument("second", metavar="RUN", help="The run folder to compare it with.")
    parser.add_json()
    parser.add_device()
    parser.add_workers()
    parser.add_moved_images()


def run(options: Any) -> int:
    from orthoproxy.core.device import choose_device
    from orthoproxy.runs.compare import compare_runs
    from orthoproxy.runs.run_folder import RunFolder

    runs = RunFolder(options.first, config_overrides(options)), RunFolder(options.second)
    comparison = compare_runs(*runs, choose_device(options.device), options.workers)
    options.write_json(asdict(comparison))
    print(f"{options.second} compared with {options.first}: {comparison.verdict}")
    for section in ("configuration", "data", "environment"):
        for name, (first, second) in getattr(comparison, section).items():
            print(f"{section}: {name}: {first} -> {second}")
    for file, (count, change) in comparison.weights.items():
        print(f"weights: {file}: {count} tensors differ{'' if change is None else f', by at most {change:.3g}'}")
    for metric, difference in (comparison.scores or {}).items():
        print(f"difference of {metric}: {difference}")
    if comparison.note:
        print(f"note: {comparison.note}")
    return int(comparison.verdict == "different")
