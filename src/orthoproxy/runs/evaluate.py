"""A trained run judged on its unseen classes: scores, model card and report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch

from orthoproxy.runs import build as builders
from orthoproxy.runs.build import split_table
from orthoproxy.runs.model_card import license_of, model_card, no_match_words
from orthoproxy.runs.config import Config, with_absolute_paths
from orthoproxy.data import drop_rows, select_split
from orthoproxy.embedding.embedder import Embedder, Images, write_threshold
from orthoproxy.evaluation import Evaluation, calibrate_no_match, score
from orthoproxy.core.files import atomic_write
from orthoproxy.core.distributed import raise_together, is_first_of_machine, is_main
from orthoproxy.reports import RunResults, render_report
from orthoproxy.reports import FEW_CLASSES
from orthoproxy.runs.run_folder import Run

FROZEN = (
    "Frozen encoder: the projection and the proxies alone were trained, on features of the images as evaluation sees "
    "them, without augmentation."
)
FALSE_MATCH_RATE = 0.01  # of queries whose class is not there, unless an export chose another


def judge(run: Run, device: str | torch.device = "cpu") -> None:
    """Score a trained run on its test classes, and write evaluation.json, the model card and the report.

    Parameters
    ----------
    run
        With a model.
    device
        Where to compute.

    Raises
    ------
    InputError
        If the run has no model yet, or its images cannot be read.

    Examples
    --------
    >>> judge(Run("runs/nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no run in runs/nowhere: config.yaml is not there
    """
    results = results_of(run, device)
    with raise_together():  # the others wait, and can read the scores afterwards
        if is_main():
            _write_results(run, results)


def _write_results(run: Run, results: RunResults) -> None:
    config = run.config
    if results.evaluation is not None:
        labels = {"chosen_on": config.training.select_on, "notes": results.notes}
        scores = json.dumps({**results.evaluation.to_dict(), **labels}, indent=2)
        atomic_write(run.folder / "evaluation.json", scores + "\n")
    _write_card(run, results)
    atomic_write(run.report, render_report(results))


def _write_card(run: Run, results: RunResults) -> None:
    """Write the model card and the threshold; the licence and the false-match rate stay as an export chose them."""
    folder = run.folder / "model"
    model = Embedder.load(folder, with_proxies=False)
    rate = model.false_match_rate or FALSE_MATCH_RATE
    threshold = results.matching and results.matching.threshold(rate)
    words = no_match_words(results.matching, rate) if results.matching else ""
    write_threshold(folder, threshold, rate)
    card = model_card(run.config, results.evaluation, license_of(model.card), words)
    atomic_write(folder / "README.md", card)


def results_of(run: Run, device: str | torch.device = "cpu") -> RunResults:
    """Embed a run's test images with its model and with the untrained encoder, and score both.

    Parameters
    ----------
    run, device
        As in `judge`.

    Returns
    -------
    RunResults
        All that the report shows; of several processes, the main one has the proxies.

    Raises
    ------
    InputError
        As from `judge`.

    Examples
    --------
    >>> results_of(Run("runs/nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no run in runs/nowhere: config.yaml is not there
    """
    start, config = time.monotonic(), run.config
    model = Embedder.load(run.folder, device, with_proxies=is_main())
    untrained = Embedder.load(run.folder / "baseline", device)
    table, unreadable = split_together(config), run.unreadable
    if unreadable is not None:
        table = drop_rows(table, unreadable)
    judged, validation, workers = select_split(table, "test"), select_split(table, "validation"), config.data.workers
    views = views_of(config, untrained, table)
    ours = model.embed_distributed(views(judged), workers=workers, progress="embed, trained")
    theirs = untrained.embed_distributed(views(judged), workers=workers, progress="embed, untrained")
    scoring = replace(builders.make_scoring(config.evaluation), device=str(device), shared=True)
    evaluation = score(ours, theirs, judged, scoring, start) if len(judged) else None
    matching = None
    if len(validation):
        embeddings = model.embed_distributed(views(validation), workers=workers, progress="embed, validation")
        matching = calibrate_no_match(embeddings, validation, scoring)
    return RunResults(
        name=run.folder.name,
        evaluation=evaluation,
        table=judged,
        embeddings=ours,
        baseline_embeddings=theirs,
        log=run.records(),
        proxies=None if model.proxies is None else model.proxies.cpu().numpy(),
        classes=model.classes,
        config=(run.folder / "config.yaml").read_text(encoding="utf-8"),
        machine=config.environment,
        notes=_notes(
            config,
            held_out=len(set(validation["label"])),
            unreadable=0 if unreadable is None else len(unreadable),
            evaluation=evaluation,
        ),
        matching=matching,
    )


def views_of(config: Config, untrained: Embedder, table: pd.DataFrame) -> Callable[[pd.DataFrame], Images]:
    """Say what is embedded to judge a run: the files, or the features that its frozen backbone made of them.

    Parameters
    ----------
    config
        Of the run.
    untrained
        Its untrained encoder.
    table
        All images that will be asked for.

    Returns
    -------
    Callable
        From some rows of the table to what `Embedder.embed` takes.

    Raises
    ------
    InputError
        As from `FrozenFeatures.compute`.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.models import Encoder
    >>> table = make_table(["a.png", "b.png"], ["a", "b"])
    >>> views_of(Config(), Embedder(Encoder("deit_tiny_patch16_224", image_size=32)), table)(table[1:])
    ['b.png']
    """
    if not config.encoder.freeze:
        return lambda some: some["path"].tolist()
    views = builders.fixed_views(config, untrained, table["path"].tolist())
    return lambda some: views(some["path"].tolist())


def images_of(run: Run, root: str | None = None, path: str | None = None) -> pd.DataFrame:
    """Return a run's images with their splits, without those that it left out.

    Parameters
    ----------
    run
        Trained.
    root, path
        Where its images, or their CSV file, are now; None for where they were.

    Raises
    ------
    InputError
        If there is no run, or its images are gone.

    Examples
    --------
    >>> images_of(Run("runs/nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no run in runs/nowhere: config.yaml is not there
    """
    data = replace(run.config.data, root=root or run.config.data.root, path=path or run.config.data.path)
    table = split_table(with_absolute_paths(replace(run.config, data=data)))
    unreadable = run.unreadable
    return table if unreadable is None else drop_rows(table, unreadable)


def split_together(config: Config) -> pd.DataFrame:
    """Read a run's table of images in every process of a job.

    One of a machine comes first, as icons are rendered on the way.

    Parameters
    ----------
    config
        As in `builders.split_table`.

    Returns
    -------
    pandas.DataFrame
        The same in every process.

    Raises
    ------
    InputError
        As from `builders.split_table`, in all processes.

    Examples
    --------
    >>> from orthoproxy.runs.config import Data
    >>> split_together(Config(Data(name="folder", root="nowhere")))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.root: no folder nowhere; give one that has a sub-folder of images a class
    """
    table = None
    with raise_together():
        if is_first_of_machine():
            table = split_table(config)
    with raise_together():
        return split_table(config) if table is None else table


def _notes(config: Config, held_out: int, unreadable: int, evaluation: Evaluation | None) -> list[str]:
    """Say what a reader of the scores must know, from the numbers of validation classes and of images left out."""
    notes = [FROZEN] if config.encoder.freeze else []
    if unreadable:
        images = "1 unreadable image was" if unreadable == 1 else f"{unreadable} unreadable images were"
        notes.append(f"{images} left out; skipped.csv lists {'it' if unreadable == 1 else 'them'}.")
    if config.training.select_on == "test":
        notes.append("The checkpoint was chosen on the test classes themselves, so these scores are too high.")
    elif config.training.select_on == "none" or held_out == 0:
        notes.append("The last checkpoint was kept; none was chosen on held-out classes.")
    elif held_out < FEW_CLASSES:
        notes.append(f"Only {held_out} classes chose the checkpoint: the choice is unreliable.")
    difference = evaluation.difference if evaluation else None
    worse = [metric for metric, change in (difference or {}).items() if change.high < 0]
    if worse:
        notes.append(f"Training made retrieval worse than the untrained encoder's in {', '.join(worse)}.")
    return notes
