"""`orthoproxy train`."""

from __future__ import annotations

import sys
from typing import Any

from orthoproxy.cli.options import Parser, config_overrides
from orthoproxy.core.errors import os_errors_as_input_errors


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    parser.usage = "%(prog)s [IMAGES] [--config RECIPE ...] --out RUN [--resume] [options]"
    parser.add_images()
    add("--out", required=True, metavar="RUN", help="The run folder to write.")
    add("--resume", action="store_true", help="Continue from the last checkpoint, if there is one.")
    text = "A YAML recipe; later ones and options override it."
    add("--config", action="append", default=[], metavar="RECIPE", help=text)
    add("--print-config", action="store_true", help="Print the resulting configuration and exit.")
    parser.add_json()
    parser.add_config_options()


def run(options: Any) -> int:
    from orthoproxy.cli.evaluate import print_run
    from orthoproxy.core.distributed import is_main
    from orthoproxy.runs.dataset import require_outside
    from orthoproxy.runs.recipes import read_config
    from orthoproxy.runs.train import train
    from orthoproxy.training.signals import Interrupted

    config = read_config(*options.config, overrides=config_overrides(options))
    if options.print_config:
        from orthoproxy.core.safe_parsing import dump_yaml

        print(dump_yaml(config.to_dict()), end="")
        return 0
    require_outside(config.data, out=options.out, json=options.json)
    try:
        with os_errors_as_input_errors(options.out, "continue with --resume"):
            run_folder = train(config, options.out, options.resume)
            if is_main():
                options.write_json(run_folder.scores)
                print_run(run_folder)
    except Interrupted as stop:
        if is_main():
            print(f"orthoproxy: {stop}. Hint: continue with --resume", file=sys.stderr)
        return stop.code
    return 0
