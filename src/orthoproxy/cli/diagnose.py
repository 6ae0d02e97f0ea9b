"""The command line's verb `diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from orthoproxy.core.errors import InputError, os_errors_as_input_errors
from orthoproxy.runs.diagnose import diagnose_runs
from orthoproxy.runs.fabric import choose_accelerator
from orthoproxy.runs.recipes import parse


def diagnose_parser() -> ArgumentParser:
    """Make the parser of ``orthoproxy diagnose``.

    Returns
    -------
    jsonargparse.ArgumentParser
        Raises instead of exiting.

    Examples
    --------
    >>> options = parse(diagnose_parser(), ["runs/a", "runs/b", "--on", "validation"])
    >>> options.run, options.on, options.most_images
    (['runs/a', 'runs/b'], 'validation', 20000)
    """
    parser = ArgumentParser(
        prog="orthoproxy diagnose",
        description="Say what limits a trained model, with the evidence and what to try.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("run", nargs="+", help="Run folders; several are compared side by side.")
    parser.add_argument("--out", help="Folder for diagnosis.html (default: the run's own; needed for several runs).")
    parser.add_argument("--json", help="Also write the numbers, and all suspicious images, to this file.")
    parser.add_argument(
        "--on",
        type=Literal["test", "validation"] | None,
        help="Which unseen classes to look at (default: validation, or test if those are fewer than ten).",
    )
    parser.add_argument("--most-images", type=int, default=20_000, help="Of the training images, in whole classes.")
    parser.add_argument("--data.root", type=str | None, help="Where the run's images are now, if they were moved.")
    parser.add_argument("--data.path", type=str | None, help="Where the run's CSV file is now, if it was moved.")
    parser.add_argument("--workers", type=int, default=1, help="Processes that read images.")
    parser.add_argument("--accelerator", type=Literal["auto", "cpu", "cuda", "mps"], default="auto")
    return parser


def run_diagnose(arguments: list[str]) -> None:
    """Say what limits a model, and write a page about it."""
    options = parse(diagnose_parser(), arguments)
    if len(options.run) > 1 and not options.out:
        raise InputError("--out: missing; say in which folder the page that compares the runs goes")
    if options.most_images < 1:
        raise InputError(f"--most-images: must be 1 or more, not {options.most_images}")
    out = Path(options.out or options.run[0])
    with os_errors_as_input_errors(out, "run it again"):
        for line in diagnose_runs(
            options.run,
            out,
            options.on,
            options.most_images,
            options.data.root,
            options.data.path,
            options.workers,
            choose_accelerator(options.accelerator, "--accelerator"),
            Path(options.json) if options.json else None,
        ):
            print(line)
