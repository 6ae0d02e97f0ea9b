"""The command line's verb `reproduce`."""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import ArgumentParser

from orthoproxy.core.distributed import broadcast_object, is_main, raise_together
from orthoproxy.core.errors import os_errors_as_input_errors
from orthoproxy.core.files import atomic_write
from orthoproxy.runs.recipes import parse
from orthoproxy.runs.reproduce import Comparison, compare, reproduce
from orthoproxy.runs.run_folder import Run

WORDS = {
    "equal": "weights and scores are the same to the last bit",
    "within interval": "every score lies within the interval that the run gives it",
    "different": "see below in what",
}


def reproduce_parser() -> ArgumentParser:
    """Make the parser of ``orthoproxy reproduce``.

    Returns
    -------
    jsonargparse.ArgumentParser
        Raises instead of exiting.

    Examples
    --------
    >>> options = parse(reproduce_parser(), ["runs/icons", "--out", "runs/again"])
    >>> options.run, options.out, options.json
    ('runs/icons', 'runs/again', None)
    """
    parser = ArgumentParser(
        prog="orthoproxy reproduce",
        description="Repeat a run from its folder, and say whether weights and scores came out the same.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("run", help="A run folder.")
    parser.add_argument("--out", help="The run folder of the repetition (default: the run's name and -again).")
    parser.add_argument("--json", help="Also write the comparison to this file.")
    parser.add_argument("--data.root", type=str | None, help="Where the run's images are now, if they were moved.")
    parser.add_argument("--data.path", type=str | None, help="Where the run's CSV file is now, if it was moved.")
    return parser


def run_reproduce(arguments: list[str]) -> int:
    """Repeat a run and compare; return 0 if it came out equal or within interval, 1 if different."""
    options = parse(reproduce_parser(), arguments)
    run = Run(options.run)
    out = Path(options.out) if options.out else run.folder.resolve().with_name(f"{run.folder.resolve().name}-again")
    if options.json:
        with os_errors_as_input_errors(options.json, "run it again"):
            Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    with os_errors_as_input_errors(out, "run it again to go on"):
        again = reproduce(run, out, options.data.root, options.data.path)
    different = False
    with raise_together():
        if is_main():
            comparison = compare(run, again)
            different = comparison.verdict == "different"
            _tell(comparison, run, again)
            if options.json:
                with os_errors_as_input_errors(options.json, "run it again"):
                    atomic_write(Path(options.json), json.dumps(comparison.to_dict(), indent=2) + "\n")
    return int(broadcast_object(different))


def _tell(comparison: Comparison, run: Run, again: Run) -> None:
    print(f"{run.folder}, repeated in {again.folder}: {comparison.verdict}: {WORDS[comparison.verdict]}")
    for what, lines in comparison.differences.items():
        for line in lines:
            print(f"{what}: {line}")
