"""Evaluate a trained run on its test images: scores, model card and report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from orthoproxy.core.distributed import is_main, raise_together
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.data.audit.scan import drop_rows, find_unreadable
from orthoproxy.data.table import class_numbers, evaluation_images, select_split
from orthoproxy.embedding.embedder import Embedder, write_threshold
from orthoproxy.evaluation import Evaluation, NoMatchCalibration, Scoring, calibrate_no_match, score
from orthoproxy.evaluation.known_classes import add_vote
from orthoproxy.reports.results import RunResults
from orthoproxy.reports.text import FEW_CLASSES
from orthoproxy.runs.config import Config
from orthoproxy.runs.dataset import read_splits
from orthoproxy.runs.device import evaluation_precision, make_scoring
from orthoproxy.runs.experiment import make_inputs
from orthoproxy.runs.model_card import license_of, model_card, no_match_words
from orthoproxy.runs.run_folder import RunFolder

FALSE_MATCH_RATE = 0.01  # of queries without a match in the gallery, unless an export chose another


def evaluate_run(run: RunFolder, device: str | torch.device = "cpu", table: pd.DataFrame | None = None) -> RunResults:
    """Embed the test images of a run with its model and with the baseline, and score both; all processes call it."""
    start, config = time.monotonic(), run.config
    table = load_table(run) if table is None else table
    test, validation = (evaluation_images(table, split) for split in ("test", "validation"))
    model = run.load_model(device, with_proxies=is_main())
    baseline = Embedder.load(run.baseline, device)
    inputs = make_inputs(config, baseline, table)
    precision = evaluation_precision(device, config.training.precision)

    def embed(embedder: Embedder, name: str, *tables: pd.DataFrame) -> list[Any]:
        paths = pd.Index(pd.concat(tables)["path"].unique())  # for known classes, the tables share training images
        embeddings = embedder.embed_distributed(
            inputs(paths.tolist()), workers=config.data.workers, progress=f"embed images, {name}", precision=precision
        )
        return [embeddings[paths.get_indexer_for(pd.Index(x["path"]))] for x in tables]

    known_classes = "train" in set(test["split"])
    model_embeddings, for_threshold = embed(model, "model", test, validation)
    baseline_embeddings, *more = embed(baseline, "baseline", test, *([validation] if known_classes else []))
    scoring = make_scoring(config.evaluation, device)
    evaluation = score(model_embeddings, baseline_embeddings, test, scoring, start) if len(test) else None
    no_match, *others = (calibrate_no_match(x, validation, scoring) for x in (for_threshold, *more))
    if evaluation and known_classes:
        rate = model.false_match_rate or FALSE_MATCH_RATE
        thresholds = [x and x.threshold(rate) for x in (no_match, *others)]
        both = model_embeddings, baseline_embeddings
        evaluation = add_vote(evaluation, both, test, thresholds, scoring)
        evaluation = replace(evaluation, unseen=_score_unseen(both, table, scoring))
    return RunResults(
        name=run.folder.name,
        evaluation=evaluation,
        table=test,
        embeddings=model_embeddings,
        baseline_embeddings=baseline_embeddings,
        log=run.records(),
        proxies=None if model.proxies is None else model.proxies.cpu().numpy(),
        classes=model.classes,
        config=(run.folder / "config.yaml").read_text(encoding="utf-8"),
        machine=config.environment,
        notes=_notes(config, len(class_numbers(select_split(table, "validation"))[1]), run.unreadable, evaluation),
        matching=no_match,
    )


def _score_unseen(embeddings: Sequence[Any], table: pd.DataFrame, scoring: Scoring) -> Evaluation | None:
    """Score the test images of other than training classes, the first rows of the embeddings, among themselves."""
    test = select_split(table, "test")
    unseen = (~test["label"].isin(select_split(table, "train")["label"])).to_numpy()
    model, baseline = (x[: len(test)][unseen] for x in embeddings)
    with suppress(InputError):  # none, or a single image of each
        return score(model, baseline, test[unseen].reset_index(drop=True), scoring)


def write_report(run: RunFolder, results: RunResults) -> None:
    """Write evaluation.json, the model card and report.html; other processes wait until they are written."""
    from orthoproxy.reports.report import render_report  # matplotlib takes a second to import

    with raise_together():
        if not is_main():
            return
        if results.evaluation is not None:
            labels = {"selected_on": run.config.checkpoint_selection.split, "notes": results.notes}
            scores = json.dumps({**results.evaluation.to_dict(), **labels}, indent=2)
            atomic_write(run.folder / "evaluation.json", scores + "\n")
        folder = run.folder / "model"
        model = Embedder.load(folder, with_proxies=False)  # license and rate stay as an export chose them
        rate, license = model.false_match_rate or FALSE_MATCH_RATE, license_of(model.card)
        write_card(run.config, folder, results.evaluation, results.matching, rate, license)
        atomic_write(run.report, render_report(results))


def write_card(
    config: Config,
    folder: Path,
    evaluation: Evaluation | None,
    matching: NoMatchCalibration | None,
    false_match_rate: float,
    license: str,
) -> None:
    """Write the no-match threshold and the card of a model folder."""
    write_threshold(folder, matching and matching.threshold(false_match_rate), false_match_rate)
    words = no_match_words(matching, false_match_rate) if matching else ""
    atomic_write(folder / "README.md", model_card(config, evaluation, license, words))


def load_table(run: RunFolder) -> pd.DataFrame:
    """Return the images of a run with their splits, without those it left out, in every process."""
    table = read_splits(run.current_config)
    unreadable = run.unreadable
    if unreadable is not None and run.overrides:  # it lists the paths of before
        unreadable = find_unreadable(table, run.config.data.workers)
    return table if unreadable is None else drop_rows(table, unreadable)


def _notes(
    config: Config, validation_classes: int, unreadable: pd.DataFrame | None, evaluation: Evaluation | None
) -> list[str]:
    """What a reader of the scores must know."""
    notes = []
    if config.encoder.freeze:
        notes.append("Frozen backbone: only projection and proxies were trained, on features of unaugmented images.")
    if config.data.boxes:
        notes.append("Images were cut to their bounding boxes: not comparable with results on whole images.")
    if unreadable is not None and len(unreadable):
        notes.append(f"Unreadable images left out: {len(unreadable)} (see unreadable_images.csv).")
    if config.checkpoint_selection.split == "test":
        notes.append("The checkpoint was selected on the test images themselves, so these scores are too high.")
    elif config.checkpoint_selection.split == "none" or validation_classes == 0:
        notes.append("The last checkpoint was kept; no validation scores selected one.")
    elif validation_classes < FEW_CLASSES:
        notes.append(f"Only {validation_classes} classes selected the checkpoint: the selection is unreliable.")
    difference = evaluation.difference if evaluation else None
    worse = [metric for metric, change in (difference or {}).items() if change.high < 0]
    if worse:
        notes.append(f"Training made retrieval worse than the untrained encoder in {', '.join(worse)}.")
    return notes
