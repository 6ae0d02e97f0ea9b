"""The first answer of `orthoproxy search` in a fresh process, and how much of it is the import of libraries.

python benchmarks/cold.py    # after `make demo`
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from measure import arguments, paired_seconds, report

from orthoproxy.catalog.catalog import Catalog
from orthoproxy.runs.export import export_run

HELP = ("", "train", "data verify")  # that of the most options, and of a subcommand


def main() -> None:
    options = arguments(__doc__ or "", run="runs/icons", runs=5)
    with Catalog.open(f"{options.run}/catalog") as catalog:
        rows = next(iter(catalog.iterate_rows(["path"])))
        image = Path(catalog.root) / rows["path"].iloc[0]
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        export_run(options.run, onnx)
        orthoproxy = [sys.executable, "-m", "orthoproxy"]
        search = [*orthoproxy, "search", f"{options.run}/catalog", str(image)]
        commands = {
            **{f"orthoproxy {name} --help".replace("  ", " "): [*orthoproxy, *name.split(), "--help"] for name in HELP},
            **{f"import {name}": [sys.executable, "-c", f"import {name}"] for name in ("torch", "timm", "lancedb")},
            "orthoproxy search, model in ONNX": [*search, "--model", str(onnx)],
            "orthoproxy search, model of the run": [*search, "--model", options.run],
        }
        works = {
            what: partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
            for what, command in commands.items()
        }
        seconds = paired_seconds(works, options.runs)
    results: list[dict[str, Any]] = [{"what": what, "seconds": median(times)} for what, times in seconds.items()]
    report("cold", "Start-up time", ["what", "seconds"], results)


if __name__ == "__main__":
    main()
