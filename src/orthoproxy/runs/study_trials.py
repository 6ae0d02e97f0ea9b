"""A cell of a study: its run, and the result that stays of it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from orthoproxy.core.errors import InputError
from orthoproxy.data import select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import class_scores
from orthoproxy.reports.geometry import closest_pairs, effective_rank, orthogonality_distance, welch_floor
from orthoproxy.runs import build as builders
from orthoproxy.runs.config import Config
from orthoproxy.runs.evaluate import images_of, views_of
from orthoproxy.runs.fabric import choose_accelerator, choose_precision
from orthoproxy.runs.run_folder import Run
from orthoproxy.runs.study_configs import changed_options, config_of_cell, images_an_epoch
from orthoproxy.runs.train import train
from orthoproxy.studies import results
from orthoproxy.studies.plan import METRICS, Cell, Study
from orthoproxy.studies.results import write_result
from orthoproxy.training import Diverged

DIGITS = 6


@dataclass(frozen=True)
class Place:
    """Where the runs and the results of a study lie.

    Parameters
    ----------
    runs
        A run folder a cell.
    results
        The page; in its ``cells`` a file a cell.

    Examples
    --------
    >>> Place(Path("runs/so"), Path("docs/studies/so")).file(Cell("on", {}, 3)).as_posix()
    'docs/studies/so/cells/on_seed3.json'
    """

    runs: Path
    results: Path

    def run(self, cell: Cell) -> Run:
        """Return a cell's run, which need not be there."""
        return Run(self.runs / cell.name)

    def file(self, cell: Cell) -> Path:
        """Return where a cell's result is written."""
        return self.results / "cells" / f"{cell.name}.json"


def train_cell(study: Study, cell: Cell, place: Place) -> dict[str, Any]:
    """Train a cell, or go on with it, and write its result; the test classes are not judged.

    What the training prints goes to ``log.txt`` in the run folder. With a frozen encoder the folder is then removed, as
    it takes megabytes and is made again in seconds.

    Parameters
    ----------
    study, cell
        Of the study's file.
    place
        Where to.

    Returns
    -------
    dict
        The result. Training that diverged is one too: ``failed`` says how, and there are no scores.

    Raises
    ------
    InputError
        As from `jobs.train`, but that it diverged.
    Interrupted
        After Ctrl-C, with the run saved.

    Examples
    --------
    Run by ``orthoproxy study``, see docs/guide/studies.md.
    """
    start, config, run = time.monotonic(), config_of_cell(study, cell), place.run(cell)
    result = _about(study, cell, config)
    try:
        with _quietly(run), _threads(config):
            train(config, run.folder, resume=True, judged=False)
            result |= _scores_and_costs(run)
    except Diverged as error:
        result |= _failed(error)
    result |= {"elapsed": round(time.monotonic() - start, 1), **_when_and_where(run)}
    write_result(result, place.file(cell))
    if config.encoder.freeze:
        shutil.rmtree(run.folder)
    return result


def judge_cell(study: Study, cell: Cell, place: Place) -> dict[str, Any]:
    """Judge a cell on the test classes, and add that to its result; it is trained again where its run is gone.

    Parameters
    ----------
    study, cell, place
        As in `train_cell`; the result must be there.

    Returns
    -------
    dict
        The result. What chose the setting stays as it was; ``trained_again`` says when and where another training with
        the same configuration was done, if the scores on the test classes are of one.

    Raises
    ------
    InputError
        As from `train_cell`, or if a second training diverged.

    Examples
    --------
    Run by ``orthoproxy study``, see docs/guide/studies.md.
    """
    config, run = config_of_cell(study, cell), place.run(cell)
    result = read_result(study, cell, place)
    if result is None:
        raise InputError(f"{place.file(cell)}: is not there; the cell must be trained first")
    again = not run.trained
    with _quietly(run), _threads(config):
        try:
            train(config, run.folder, resume=True, judged=False)
        except Diverged as error:
            raise InputError(
                f"{place.file(cell)}: trained a second time to be judged, since its run folder is gone, the cell "
                f"diverged: {error}; remove the file to have it trained anew"
            ) from error
        result |= {"test": _class_scores(run, images_of(run), "test")}
        result["trained_again"] = _when_and_where(run) if again else None
    write_result(result, place.file(cell))
    if config.encoder.freeze:
        shutil.rmtree(run.folder)
    return result


def read_result(study: Study, cell: Cell, place: Place) -> dict[str, Any] | None:
    """Read a cell's result.

    Parameters
    ----------
    study, cell, place
        As in `train_cell`.

    Returns
    -------
    dict or None
        None where there is none.

    Raises
    ------
    InputError
        As from `orthoproxy.studies.results.read_result`.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> study = Study("so", {"on": Method()}, "on")
    >>> read_result(study, Cell("on", {}, 0), Place(Path("runs/so"), Path("nowhere"))) is None
    True
    """
    path = place.file(cell)
    if not path.is_file():
        return None
    return results.read_result(path, cell, changed_options(config_of_cell(study, cell)))


def _about(study: Study, cell: Cell, config: Config) -> dict[str, Any]:
    return {
        "format_version": results.FORMAT_VERSION,
        "study": study.name,
        "cell": cell.name,
        "method": cell.method,
        "setting": cell.setting,
        "seed": cell.seed,
        "options": changed_options(config),
    }


def _when_and_where(run: Run) -> dict[str, Any]:
    config = run.config
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    return {"date": today, "environment": {**config.environment, "precision": choose_precision(config.training)}}


def _failed(error: Exception) -> dict[str, Any]:
    nothing = {"validation": None, "test": None, "curve": [], "geometry": None, "seconds": None, "images": None}
    return {"failed": str(error), **nothing}


def _scores_and_costs(run: Run) -> dict[str, Any]:
    records, table = run.records(), images_of(run)
    images = images_an_epoch(run.config, select_split(table, "train"))
    return {
        "validation": _class_scores(run, table, "validation"),
        "test": None,
        "curve": _curve(records, images),
        "geometry": _geometry(run),
        "seconds": round(float(records["seconds"].max()), 1),
        "images": images * int(records["epoch"].max()),
    }


def _class_scores(run: Run, table: pd.DataFrame, split: str) -> dict[str, Any]:
    """Score the model and the untrained encoder on the classes of a split."""
    config, device = run.config, choose_accelerator(run.config.training.accelerator)
    model = Embedder.load(run.folder, device, with_proxies=False)
    untrained = Embedder.load(run.folder / "baseline", device)
    judged, views = select_split(table, split), views_of(config, untrained, table)
    if not len(judged):
        raise InputError(f"data: there are no {split} classes, which a study needs; see data.{split}_fraction")
    scoring, workers = builders.make_scoring(config.evaluation), config.data.workers
    scores = [class_scores(x.embed(views(judged), workers=workers), judged, scoring) for x in (model, untrained)]
    values = [{name: _rounded(x.values[name]) for name in METRICS} for x in scores]
    return {
        "classes": scores[0].classes,
        "queries": scores[0].queries.tolist(),
        "trained": values[0],
        "untrained": values[1],
    }


def _curve(records: pd.DataFrame, images_an_epoch: int) -> list[dict[str, Any]]:
    """Follow the scores on validation classes over epochs, seconds of training and images."""
    seconds, curve = 0.0, []
    for record in records.to_dict("records"):
        if pd.notna(record.get("seconds")):
            seconds = record["seconds"]
        if pd.notna(record.get(f"validation/{METRICS[0]}")):
            epoch = int(record["epoch"])
            scores = {name: round(record[f"validation/{name}"], DIGITS) for name in METRICS}
            curve.append({"epoch": epoch, "seconds": round(seconds, 1), "images": epoch * images_an_epoch, **scores})
    return curve


def _geometry(run: Run) -> dict[str, Any] | None:
    """Measure how the proxies lie; None for a loss without."""
    model = run.model
    if model.proxies is None:
        return None
    proxies = model.proxies.float().cpu().numpy()
    pairs = closest_pairs(proxies, model.classes, k=1)
    return {
        "classes": len(proxies),
        "dim": proxies.shape[1],
        "effective_rank": round(effective_rank(proxies), DIGITS),
        "largest_cosine": round(pairs[0].cosine, DIGITS) if pairs else None,
        "squares": round(orthogonality_distance(proxies), DIGITS),
        "floor": round(welch_floor(*proxies.shape), DIGITS),
    }


def _rounded(values: Any) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]


@contextlib.contextmanager
def _threads(config: Config) -> Iterator[None]:
    """Give a frozen cell one thread: more gain it little, and where cells share cores they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if config.encoder.freeze else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quietly(run: Run) -> Iterator[None]:
    """Let what the training says go to a file, so that a study's own lines can be read."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        yield
