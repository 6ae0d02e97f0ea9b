"""`orthoproxy report`."""

from __future__ import annotations

from typing import Any

from orthoproxy.cli.options import Parser, config_overrides
from orthoproxy.core.errors import os_errors_as_input_errors


def add_options(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="A run folder.")
    parser.add_json()
    parser.add_device()
    parser.add_moved_images()


def run(options: Any) -> None:
    from orthoproxy.cli.evaluate import print_run
    from orthoproxy.core.device import choose_device
    from orthoproxy.core.folder_lock import folder_lock
    from orthoproxy.runs.dataset import require_outside
    from orthoproxy.runs.evaluate import evaluate_run, write_report
    from orthoproxy.runs.run_folder import RunFolder

    run_folder = RunFolder(options.run, config_overrides(options))
    require_outside(run_folder.current_config.data, run=run_folder.folder, json=options.json)
    device = choose_device(options.device)
    with os_errors_as_input_errors(run_folder.folder, "run the command again"), folder_lock(run_folder.folder):
        write_report(run_folder, evaluate_run(run_folder, device))
    options.write_json(run_folder.scores)
    print_run(run_folder)
