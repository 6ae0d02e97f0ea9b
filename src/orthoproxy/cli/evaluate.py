"""What `orthoproxy evaluate` does: judge a run or a model on the run's own test classes, or on other images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from orthoproxy.core.errors import InputError, os_errors_as_input_errors
from orthoproxy.core.files import atomic_write
from orthoproxy.data import drop_rows, find_unreadable, select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Estimate, evaluate
from orthoproxy.runs import build as builders
from orthoproxy.runs.config import Config, Data, Evaluation, Training, with_absolute_paths
from orthoproxy.runs.fabric import choose_accelerator
from orthoproxy.runs.recipes import OUTSIDE, parse
from orthoproxy.runs.run_folder import Run
from orthoproxy.runs.train import suggesting_to_skip


def run_evaluate(arguments: list[str]) -> None:
    """Judge a model on the run's own test classes, or on other images."""
    model = parse(_parser(Config()), arguments).model
    run = Run.of(model)
    options = parse(_parser(run.config if run else Config()), arguments)
    embedder = Embedder.load(model, choose_accelerator(options.accelerator, "--accelerator"))
    if options.json:
        with os_errors_as_input_errors(options.json, "run it again"):
            Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    table, unreadable = _judged_images(run, options.data)
    scoring = builders.make_scoring(options.evaluation)
    with suggesting_to_skip():
        evaluation = evaluate(embedder, table, scoring=scoring, workers=options.data.workers, progress=True)
    seen = len(set(table["label"]) & set(embedder.classes))
    scores = {**evaluation.to_dict(), "seen_classes": seen, "unreadable": unreadable.to_dict("records")}
    print_scores(scores)
    if len(unreadable):
        first = f"for example {unreadable['path'][0]}: {unreadable['reason'][0]}"
        print(f"note: unreadable images left out: {len(unreadable)}, {first}")
    if seen:
        print(
            f"note: {seen} classes have the name of a class that the model was trained on; if they are the same ones,"
        )
        print("note: these scores say little about unseen classes")
    if options.json:
        with os_errors_as_input_errors(options.json, "run it again"):
            atomic_write(Path(options.json), json.dumps(scores, indent=2) + "\n")


def print_scores(scores: dict[str, Any]) -> None:
    """Print a table of scores in percent, intervals beside them."""
    columns = [name for name in ("model", "baseline", "difference") if scores[name]]
    groups = ", own group left out" if scores["exclude_same_group"] else ""
    table = Table(title=f"{scores['queries']} queries of {scores['classes']} classes{groups}", title_justify="left")
    table.add_column("percent [interval]")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for metric in scores["model"]:
        table.add_row(metric, *(str(Estimate(**scores[name][metric])) for name in columns))
    if plain := scores.get("with_same_group"):
        first = next(iter(plain["model"]))
        table.add_row(f"{first}, own group kept", *(str(Estimate(**plain[name][first])) for name in columns))
    Console().print(table)
    if scores["queries_without_positive"]:
        print(
            f"{scores['queries_without_positive']} queries have no other image of their class to find and are left out"
        )


def _parser(defaults: Config) -> ArgumentParser:
    """Make the parser; the scoring is the judged run's own where no option says otherwise."""
    parser = ArgumentParser(
        prog="orthoproxy evaluate",
        description="Judge a run or a model folder on images, beside the untrained encoder.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="A run folder, a model folder, or a name on the hub.")
    parser.add_argument("--json", help="Also write the scores to this file.")
    parser.add_argument("--data.name", type=get_type_hints(Data)["name"], help="Another source of images.")
    parser.add_argument("--data.root", type=str | None, help="Its folder; alone, where the run's own images are now.")
    parser.add_argument("--data.path", type=str | None, help="Its CSV file; alone, where the run's own is now.")
    parser.add_argument("--data.outside_root", type=bool, default=False, help=OUTSIDE)
    parser.add_argument("--data.workers", type=int, default=defaults.data.workers, help="Processes that read images.")
    parser.add_argument(
        "--data.on_error",
        type=get_type_hints(Data)["on_error"],
        help="An image that cannot be read: raise ends, skip leaves it out (default: as the run did; else raise).",
    )
    parser.add_argument("--accelerator", type=get_type_hints(Training)["accelerator"], default="auto")
    parser.add_class_arguments(Evaluation, "evaluation")
    parser.set_defaults({f"evaluation.{name}": value for name, value in vars(defaults.evaluation).items()})
    return parser


def _judged_images(run: Run | None, source: Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images to judge on, and those left out because they cannot be read.

    They are of the run's own test classes; of another source, of its test classes or, where it has no splits, all.
    """
    own = run.config.data if run else None
    if own is None and source.name is None:
        raise InputError("data.name: missing; say which images to judge on, for example --data.name folder")
    if own is not None and source.name is None:  # the run's own images, perhaps moved
        data = replace(
            own,
            root=source.root or own.root,
            path=source.path or own.path,
            outside_root=source.outside_root or own.outside_root,
        )
    else:
        data = Data(source.name, source.root, source.path, source.outside_root)
    data = with_absolute_paths(Config(data=data).check()).data
    if run is not None and own is not None:
        same = (data.name, data.root, data.path) == (own.name, own.root, own.path)
        if same or source.name is None:
            moved = replace(own, root=data.root, path=data.path, outside_root=data.outside_root)
            table = select_split(builders.split_table(replace(run.config, data=moved)), "test")
            if table.empty:
                raise InputError(
                    f"{run.folder}: the run kept no test classes apart; say which images to judge on, for example "
                    "--data.name folder --data.root DIR"
                )
            return _readable(table, source.on_error or own.on_error, source.workers, run.unreadable if same else None)
    table = builders.read_table(data)
    table = select_split(table, "test") if (table["split"] == "test").any() else table
    return _readable(table, source.on_error or "raise", source.workers)


def _readable(
    table: pd.DataFrame, on_error: str, workers: int, known: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide images into those that can be read and the others, which are not looked for if they are to raise."""
    if on_error == "raise":
        return table, pd.DataFrame(columns=["path", "split", "label", "reason"])
    if known is None:
        unreadable = find_unreadable(table, workers)
    else:
        unreadable = known[known["path"].isin(table["path"])].reset_index(drop=True)
    return drop_rows(table, unreadable), unreadable
