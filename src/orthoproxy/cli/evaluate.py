"""`orthoproxy evaluate`, and the table of scores that other commands print too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthoproxy.cli.options import AUGMENT, MODEL, READING, Parser, at_least, config_overrides, print_table
from orthoproxy.core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from orthoproxy.runs.config import Config
    from orthoproxy.runs.run_folder import RunFolder


def add_options(parser: Parser) -> None:
    from orthoproxy.runs.config import EvaluationConfig

    parser.usage = "%(prog)s MODEL [IMAGES] [--json FILE] [options]"
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_images()
    text = f"Also score: {AUGMENT[0].lower()}{AUGMENT[1:]}"
    parser.add_argument("--augment", action="store_true", help=text)
    text = "Also score: add its N nearest neighbors to each query."
    parser.add_argument("--expand", type=at_least(0), default=0, metavar="N", help=text)
    text = "Also score: re-rank by k-reciprocal neighbors."
    parser.add_argument("--rerank", action="store_true", help=text)
    parser.add_json()
    parser.add_device()
    parser.add_workers(default=None)
    parser.add_config_options([*READING, "data.on_unreadable_image"], "images; without IMAGES, the run's test images")
    keys = [f"evaluation.{name}" for name in EvaluationConfig.model_fields]
    parser.add_config_options(keys, "evaluation protocol; by default that of the run")


def run(options: Any) -> None:
    from orthoproxy.core.device import choose_device
    from orthoproxy.data.audit.scan import drop_rows, find_unreadable
    from orthoproxy.embedding.embedder import Embedder
    from orthoproxy.evaluation import evaluate
    from orthoproxy.runs.config import Config
    from orthoproxy.runs.dataset import require_outside, warn_about_table
    from orthoproxy.runs.device import evaluation_precision, make_scoring
    from orthoproxy.runs.run_folder import RunFolder

    overrides = config_overrides(options)
    if options.images:  # not in the folder of the run's images
        of_run = {"data.root": None, "data.csv": None, "data.ignore": [], "data.boxes": False}
        overrides = {**of_run, "data.split_by": "class", "data.test_classes": None, **overrides}
    run_folder = RunFolder.find(options.model, overrides)
    config = (run_folder.config if run_folder else Config()).with_overrides(overrides)
    require_outside(config.data, json=options.json)
    workers = config.data.workers if options.workers is None else options.workers
    embedder = Embedder.load(options.model, choose_device(options.device))
    table = _read_images(None if options.images else run_folder, config, overrides)
    warn_about_table(table, config.data)
    unreadable = []
    if config.data.on_unreadable_image == "skip":
        found = find_unreadable(table, workers)
        table, unreadable = drop_rows(table, found), found.to_dict("records")
    scoring = replace(make_scoring(config.evaluation), expand=options.expand, rerank=options.rerank)
    precision = evaluation_precision(embedder.device, config.training.precision)
    evaluation = evaluate(embedder, table, None, scoring, workers, True, options.augment, precision)
    if {"train", "test"} <= set(table["split"]):  # training images as the gallery
        evaluation = replace(evaluation, known_classes=True)
    training_classes = len(set(table["label"]) & set(embedder.classes))
    scores = evaluation.to_dict() | {"training_classes": training_classes, "unreadable": unreadable}
    options.write_json(scores)
    print_scores(scores)
    if unreadable:
        print(f"note: {len(unreadable)} unreadable images left out, for example {unreadable[0]['path']}")
    if training_classes:
        print(f"note: {training_classes} classes have the name of a training class; scores on training classes are")
        print("note: no estimate for unseen classes")


def _read_images(run_folder: RunFolder | None, config: Config, overrides: dict[str, Any]) -> pd.DataFrame:
    """Return the run's test images, or the images given: their test split if they have one."""
    from orthoproxy.data.table import assign_split, evaluation_images, split_images
    from orthoproxy.runs.dataset import read_table
    from orthoproxy.runs.evaluate import load_table

    if run_folder is not None:
        table = evaluation_images(load_table(run_folder), "test")
        if table.empty:
            raise InputError("the run has no test images", path=run_folder.folder, hint="give IMAGES to evaluate on")
        return table
    if "data.name" not in overrides:
        raise InputError("missing", field="images", expected="the images to evaluate on, as MODEL is not a run")
    table = read_table(config.data)
    if evaluation_images(table, "test").empty:
        return table
    training = table["label"][table["split"] == "train"]
    shared = table["label"][table["split"] == "test"].isin(training).any()
    split = split_images(table, Path(), 0.0, 0.0) if shared else assign_split(table, test_fraction=0)
    return evaluation_images(split, "test")


def print_scores(scores: dict[str, Any], kind: str = "") -> None:
    """Print a table of scores in percent, with their intervals."""
    from orthoproxy.evaluation import Estimate

    columns = [name for name in ("model", "baseline", "difference") if scores[name]]
    words = {"none": "", "group": ", own group excluded", "own_class_in_group": ", own class in own group excluded"}
    excluded = words[scores["exclude"]]
    if (pairs := scores.get("duplicate_pairs")) is not None:
        excluded += f", {pairs} pairs of near copies excluded"
    kind = "Known classes: " if scores.get("known_classes") else kind
    title = f"{kind}{scores['queries']} queries of {scores['classes']} classes{excluded}"
    rows = [[metric, *(str(Estimate(**scores[name][metric])) for name in columns)] for metric in scores["model"]]
    if plain := scores.get("exclude_none"):
        metric = next(iter(plain["model"]))
        rows += [[f"{metric}, no group excluded", *(str(Estimate(**plain[name][metric])) for name in columns)]]
    print_table(["percent [interval]", *columns], rows, title, right=columns)
    for lever, x in (scores.get("search_time") or {}).items():
        parts, head = ("model", "baseline", "difference"), (f"with --{lever}", "without", "difference")
        rows = [[metric, *(str(Estimate(**x[name][metric])) for name in parts)] for metric in x["model"]]
        print_table(["percent [interval]", *head], rows, f"The model with --{lever}", right=head)
    if by_category := scores.get("by_category"):
        metric = next(iter(scores["model"]))
        rows = []
        for category, x in by_category.items():
            cells = [str(Estimate(**x[name][metric])) for name in columns]
            bare = [cell.partition(" ")[0] for cell in cells]  # a single class has no interval
            rows.append([f"{category} ({x['classes']})", *(bare if x["classes"] == 1 else cells)])
        print_table(["category (classes)", *columns], rows, f"{metric} by category", right=columns)
    if without := scores["queries_without_positive"]:
        print(f"note: {without} queries have no other image of their class in the gallery and are left out")
    if (vote := scores.get("vote")) and vote["false_known"]:
        known = Estimate(**vote["false_known"])
        print(f"note: similarity threshold {vote['threshold']:.3f}; false known {known} % with the own class removed")
    if unseen := scores.get("unseen"):
        print_scores(unseen, "Unseen classes: ")


def print_run(run_folder: RunFolder) -> None:
    """Print the scores of a run, what to know about them, and where the report is."""
    if scores := run_folder.scores:
        print_scores(scores)
        for note in scores["notes"]:
            print(f"note: {note}")
    print(f"report: {run_folder.report}")
