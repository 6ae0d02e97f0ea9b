"""`orthoproxy merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthoproxy.cli.options import Parser, at_least, config_overrides
from orthoproxy.core.errors import os_errors_as_input_errors


def add_options(parser: Parser) -> None:
    parser.add_argument("first", metavar="RUN", help="A run folder.")
    parser.add_argument("others", nargs="+", metavar="RUN", help="Runs with the same images and splits.")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--dim", type=at_least(1), metavar="D", help="Concatenate embeddings; project to D dimensions.")
    text = "Average the weights; an error unless it beats each run on the validation classes."
    how.add_argument("--soup", action="store_true", help=text)
    parser.add_argument("--out", required=True, metavar="MODEL", help="Folder to write, in the form of a run.")
    parser.add_json()
    parser.add_device()
    parser.add_workers()
    parser.add_moved_images()


def run(options: Any) -> None:
    from orthoproxy.cli.evaluate import print_run
    from orthoproxy.core.device import choose_device
    from orthoproxy.runs.dataset import require_outside
    from orthoproxy.runs.merge import merge_runs
    from orthoproxy.runs.run_folder import RunFolder

    out, device = Path(options.out), choose_device(options.device)
    runs = [RunFolder(place, config_overrides(options)) for place in (options.first, *options.others)]
    require_outside(runs[0].current_config.data, out=out, json=options.json)
    with os_errors_as_input_errors(out, "run the command again"):
        results = merge_runs(runs, out, options.dim, device, options.workers)
    options.write_json({**results, "scores": RunFolder(out).scores})
    print(results["merged"])
    if scores := results["validation"]:
        print("MAP@R on validation images:", ", ".join(f"{name} {100 * x:.2f}" for name, x in scores.items()))
    print_run(RunFolder(out))
