"""What `orthoproxy diagnose` does: embed the images of runs, look for what limits each, write the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from orthoproxy.runs import build as builders
from orthoproxy.data import select_split, rank_by_hash
from orthoproxy.diagnosis import Diagnosis, Embedded, Subject, diagnose, lines, render_diagnosis
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.runs.evaluate import images_of
from orthoproxy.reports import FEW_CLASSES
from orthoproxy.runs.run_folder import Run

FORMAT_VERSION = 1


@dataclass
class Embeddings:
    """Embeds images, and remembers what the same model gave for the same images: runs often share their start."""

    workers: int = 0
    device: str | torch.device = "cpu"
    known: dict[tuple[str, tuple[str, ...]], np.ndarray] = field(default_factory=dict)

    def of(self, model: Embedder, table: pd.DataFrame, what: str) -> np.ndarray:
        """Embed the images of a table, with a name for the progress shown."""
        paths = table["path"].tolist()
        key = (model.identity, tuple(paths))
        if key not in self.known:
            self.known[key] = model.embed(paths, workers=self.workers, progress=what)
        return self.known[key]


def diagnose_runs(
    folders: Sequence[str | Path],
    out: Path,
    on: Literal["test", "validation"] | None = None,
    most_images: int = 20_000,
    root: str | None = None,
    path: str | None = None,
    workers: int = 0,
    device: str | torch.device = "cpu",
    json_file: Path | None = None,
) -> Iterator[str]:
    """Look for what limits some runs, and write the page that tells of it.

    Parameters
    ----------
    folders
        Of the runs.
    out
        Where ``diagnosis.html`` is written.
    on
        The unseen classes to look at. None: a run's validation classes, since what is changed after a look at them can
        still be judged on the test classes; the test classes where it kept fewer than ten others apart.
    most_images
        Of the training images; with more, whole classes are left out.
    root, path
        Where the images, or their CSV file, are now, if they were moved.
    workers
        Processes that read images.
    device
        Where to embed.
    json_file
        Also write the numbers here.

    Yields
    ------
    str
        What was found, line by line.

    Raises
    ------
    InputError
        If there is no such run, or its images cannot be read.

    Examples
    --------
    >>> list(diagnose_runs(["runs/nowhere"], Path("runs/nowhere")))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no run in runs/nowhere: config.yaml is not there
    """
    embeddings = Embeddings(workers, device)
    runs = [Run(folder) for folder in folders]
    for run in runs:  # before the work begins
        _ = run.config
    diagnoses: list[Diagnosis] = []
    for run, name in zip(runs, _names(runs), strict=True):
        diagnoses.append(diagnose(subject_of(run, embeddings, on, most_images, root, path, name)))
        yield from lines(diagnoses[-1])
    out.mkdir(parents=True, exist_ok=True)
    page = out / "diagnosis.html"
    atomic_write(page, render_diagnosis(diagnoses))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        told = {"format_version": FORMAT_VERSION, "runs": [diagnosis.to_dict() for diagnosis in diagnoses]}
        atomic_write(json_file, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    yield f"page: {page}"


def subject_of(
    run: Run,
    embeddings: Embeddings,
    on: str | None = None,
    most_images: int = 20_000,
    root: str | None = None,
    path: str | None = None,
    name: str | None = None,
) -> Subject:
    """Embed a run's training images and images of its unseen classes, with its model and with the untrained encoder.

    Parameters
    ----------
    run
        With a model.
    embeddings
        Those made so far.
    on, most_images, root, path
        As in `diagnose_runs`.
    name
        What to call it; None for its folder's name.

    Returns
    -------
    Subject
        What `diagnosis.diagnose` takes.

    Raises
    ------
    InputError
        As from `diagnose_runs`.

    Examples
    --------
    >>> subject_of(Run("runs/nowhere"), Embeddings())
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no run in runs/nowhere: config.yaml is not there
    """
    table = images_of(run, root, path)
    model = Embedder.load(run.folder, embeddings.device)
    untrained = Embedder.load(run.folder / "baseline", embeddings.device)
    if on is None:
        on = "validation" if select_split(table, "validation")["label"].nunique() >= FEW_CLASSES else "test"
    unseen = select_split(table, on)
    if on == "validation" and unseen.empty:
        raise InputError(f"--on: {run.folder} kept no validation classes apart; give test")
    training = _whole_classes(select_split(table, "train"), most_images)
    _require_known(training, model, run)
    parts = [
        Embedded(
            part,
            embeddings.of(model, part, f"embed, {what}, trained"),
            embeddings.of(untrained, part, f"embed, {what}, untrained"),
        )
        for part, what in ((training, "training images"), (unseen, "unseen images"))
        if len(part)
    ]
    scoring = builders.make_scoring(run.config.evaluation)
    return Subject(
        name=name or run.folder.resolve().name,
        training=parts[0],
        unseen=parts[1] if len(parts) > 1 else None,
        unseen_are=on,
        proxies=None if model.proxies is None else model.proxies.cpu().numpy(),
        classes=model.classes,
        exclude_group=scoring.excludes_group(table),
    )


def _require_known(training: pd.DataFrame, model: Embedder, run: Run) -> None:
    """All training images have to be of classes that the run was trained on."""
    strange = set(training["label"]) - set(model.classes)
    if strange:
        raise InputError(
            f"{run.folder}: {min(strange)!r} was no training class of this run, and is one of its images now "
            f"({len(strange)} such); give the images that it was trained on, with --data.root or --data.path"
        )


def _whole_classes(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Keep classes, by hash of the name, until there are as many images as wanted."""
    if len(table) <= most:
        return table
    sizes = table["label"].value_counts()
    ranked = rank_by_hash(table["label"], salt="diagnosis")
    kept = [label for label, total in zip(ranked, sizes[ranked].cumsum(), strict=True) if total <= most]
    return table[table["label"].isin(kept or ranked[:1])].reset_index(drop=True)


def _names(runs: Sequence[Run]) -> list[str]:
    """Call runs by their folders' names, or by their paths where two have the same."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
