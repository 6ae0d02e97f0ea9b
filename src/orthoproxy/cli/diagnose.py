"""`orthoproxy diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthoproxy.cli.options import Parser, at_least, config_overrides
from orthoproxy.core.errors import InputError, os_errors_as_input_errors


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="Run folders; several are shown side by side.")
    add("--out", metavar="FOLDER", help="Folder for diagnosis.html (default: the run; required for several runs).")
    text = "Unseen classes to analyze (default: validation, or test if there are fewer than ten of those)."
    add("--split", choices=("validation", "test"), help=text)
    add("--max-images", type=at_least(1), default=20_000, metavar="N", help="Training images to use (default: 20000).")
    parser.add_json()
    parser.add_device()
    parser.add_workers()
    parser.add_moved_images()


def run(options: Any) -> None:
    from orthoproxy.core.device import choose_device
    from orthoproxy.diagnosis.diagnose import summary_lines
    from orthoproxy.runs.dataset import require_outside
    from orthoproxy.runs.diagnose import FORMAT_VERSION, PAGE, diagnose_runs
    from orthoproxy.runs.run_folder import RunFolder

    if len(options.runs) > 1 and not options.out:
        raise InputError("missing", field="out", expected="a folder for the page, as there are several runs")
    out = Path(options.out or options.runs[0])
    runs = [RunFolder(run, config_overrides(options)) for run in options.runs]
    for run in runs:
        require_outside(run.current_config.data, out=out, json=options.json)
    with os_errors_as_input_errors(out, "run the command again"):
        device = choose_device(options.device)
        diagnoses = diagnose_runs(runs, out, options.split, options.max_images, options.workers, device)
    options.write_json({"format_version": FORMAT_VERSION, "runs": [diagnosis.to_dict() for diagnosis in diagnoses]})
    for diagnosis in diagnoses:
        print(*summary_lines(diagnosis), sep="\n")
    print(f"page: {out / PAGE}")
