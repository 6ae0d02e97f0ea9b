"""Diagnose trained runs: embed their images, run all checks, write the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.data import rank_by_hash, select_split
from orthoproxy.diagnosis import DiagnosisInput, EmbeddedSplit, diagnose, render_diagnosis, summary_lines
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.reports import FEW_CLASSES
from orthoproxy.runs import build as builders
from orthoproxy.runs.evaluate import images_of
from orthoproxy.runs.run_folder import Run

FORMAT_VERSION = 2


@dataclass
class EmbeddingCache:
    """Embeds images once per model: several runs often share the untrained encoder."""

    workers: int = 0
    device: str | torch.device = "cpu"
    known: dict[tuple[str, tuple[str, ...]], np.ndarray] = field(default_factory=dict)

    def embed(self, model: Embedder, table: pd.DataFrame, progress: str) -> np.ndarray:
        paths = table["path"].tolist()
        key = (model.identity, tuple(paths))
        if key not in self.known:
            self.known[key] = model.embed(paths, workers=self.workers, progress=progress)
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
    """Write ``diagnosis.html`` about some runs into `out`, and yield a summary line by line.

    `on` selects the unseen classes: by default the validation classes, so that changes made because of a diagnosis can
    still be evaluated on the test classes; the test classes if there are fewer than `FEW_CLASSES`.
    `root` and `path` say where the images, or their CSV file, are now.
    """
    cache = EmbeddingCache(workers, device)
    runs = [Run(folder) for folder in folders]
    for run in runs:  # fail before the work begins
        _ = run.config
    diagnoses = []
    for run, name in zip(runs, _display_names(runs), strict=True):
        diagnoses.append(diagnose(load_diagnosis_input(run, cache, on, most_images, root, path, name)))
        yield from summary_lines(diagnoses[-1])
    out.mkdir(parents=True, exist_ok=True)
    page = out / "diagnosis.html"
    atomic_write(page, render_diagnosis(diagnoses))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        data = {"format_version": FORMAT_VERSION, "runs": [diagnosis.to_dict() for diagnosis in diagnoses]}
        atomic_write(json_file, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    yield f"page: {page}"


def load_diagnosis_input(
    run: Run,
    cache: EmbeddingCache,
    on: str | None = None,
    most_images: int = 20_000,
    root: str | None = None,
    path: str | None = None,
    name: str | None = None,
) -> DiagnosisInput:
    """Embed a run's training images and unseen classes with its model and with the untrained encoder."""
    table = images_of(run, root, path)
    model = Embedder.load(run.folder, cache.device)
    baseline = Embedder.load(run.folder / "baseline", cache.device)
    if on is None:
        on = "validation" if select_split(table, "validation")["label"].nunique() >= FEW_CLASSES else "test"
    unseen = select_split(table, on)
    if on == "validation" and unseen.empty:
        raise InputError("no validation classes", field="on", path=run.folder, hint="choose test")
    training = _select_classes(select_split(table, "train"), most_images)
    unknown = set(training["label"]) - set(model.classes)
    if unknown:
        problem = f"{len(unknown)} training classes are unknown to the model, for example {min(unknown)!r}"
        raise InputError(problem, field="root", path=run.folder, expected="the images that the run was trained on")

    def embed(split: pd.DataFrame, what: str) -> EmbeddedSplit:
        embeddings = cache.embed(model, split, f"embed, {what}, trained")
        return EmbeddedSplit(split, embeddings, cache.embed(baseline, split, f"embed, {what}, untrained"))

    return DiagnosisInput(
        name=name or run.folder.resolve().name,
        training=embed(training, "training images"),
        unseen=embed(unseen, "unseen classes") if len(unseen) else None,
        unseen_split=on,
        proxies=None if model.proxies is None else model.proxies.cpu().numpy(),
        classes=model.classes,
        exclude_group=builders.make_scoring(run.config.evaluation).excludes_group(table),
    )


def _select_classes(table: pd.DataFrame, max_images: int) -> pd.DataFrame:
    """Keep whole classes, in the order of their hashes, up to `max_images` images."""
    if len(table) <= max_images:
        return table
    sizes = table["label"].value_counts()
    ranked = rank_by_hash(table["label"], salt="diagnosis")
    kept = [label for label, total in zip(ranked, sizes[ranked].cumsum(), strict=True) if total <= max_images]
    return table[table["label"].isin(kept or ranked[:1])].reset_index(drop=True)


def _display_names(runs: Sequence[Run]) -> list[str]:
    """Use the names of the folders, or their paths if two names are equal."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
