"""Diagnose trained runs: embed their images, run all checks, write the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.data.table import class_numbers, rank_by_hash, select_split
from orthoproxy.diagnosis import Diagnosis, DiagnosisInput, EmbeddedSplit, diagnose
from orthoproxy.diagnosis.diagnose import render_diagnosis
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.reports.text import FEW_CLASSES
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.evaluate import load_table
from orthoproxy.runs.run_folder import RunFolder

FORMAT_VERSION = 2  # of the JSON
PAGE = "diagnosis.html"
Embed = Callable[[Embedder, pd.DataFrame, str], np.ndarray]  # of a model, images, and what to show beside the progress


def diagnose_runs(
    runs: Sequence[RunFolder], out: Path, split: str | None, max_images: int, workers: int, device: str
) -> list[Diagnosis]:
    """Diagnose some runs on at most `max_images` training images each, and write `PAGE` into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    known: dict[tuple[str, ...], np.ndarray] = {}

    def embed(model: Embedder, images: pd.DataFrame, progress: str) -> np.ndarray:
        """Embed images once per model: several runs often share the untrained encoder."""
        paths = images["path"].tolist()
        key = (model.identity, *paths)
        if key not in known:
            known[key] = model.embed(paths, workers=workers, progress=progress)
        return known[key]

    diagnoses = [
        diagnose(load_diagnosis_input(run, embed, split, max_images, device, name))
        for run, name in zip(runs, _display_names(runs), strict=True)
    ]
    atomic_write(out / PAGE, render_diagnosis(diagnoses))
    return diagnoses


def load_diagnosis_input(
    run: RunFolder, embed: Embed, split: str | None, max_images: int, device: str, name: str
) -> DiagnosisInput:
    """Embed a run's training images and unseen classes with its model and with the untrained encoder."""
    table = load_table(run)
    seen = select_split(table, "train")["label"]
    table = table[(table["split"] == "train") | ~table["label"].isin(seen)]  # known classes are not unseen
    model = run.load_model(device)
    baseline = Embedder.load(run.baseline, device)
    if split is None:  # validation classes leave the test classes for what a diagnosis suggests
        classes = class_numbers(select_split(table, "validation"))[1]
        split = "validation" if len(classes) >= FEW_CLASSES else "test"
    unseen = select_split(table, split)
    unseen_classes = class_numbers(unseen)[1]
    if split == "validation" and not unseen_classes:
        raise InputError("no validation classes", field="split", path=run.folder, hint="choose test")
    training = _select_classes(select_split(table, "train"), max_images)
    unknown = set(training["label"]) - set(model.classes)
    if unknown:
        problem = f"{len(unknown)} training classes are unknown to the model, for example {min(unknown)!r}"
        raise InputError(problem, field="data.root", path=run.folder, expected="the images that the run was trained on")

    def embed_split(images: pd.DataFrame, what: str) -> EmbeddedSplit:
        embeddings = embed(model, images, f"embed, {what}, model")
        return EmbeddedSplit(images, embeddings, embed(baseline, images, f"embed, {what}, baseline"))

    return DiagnosisInput(
        name=name,
        training=embed_split(training, "training images"),
        unseen=embed_split(unseen, "unseen classes") if unseen_classes else None,
        unseen_split=split,
        proxies=None if model.proxies is None else model.proxies.cpu().numpy(),
        classes=model.classes,
        exclude=make_scoring(run.config.evaluation).rule(table),
    )


def _select_classes(table: pd.DataFrame, max_images: int) -> pd.DataFrame:
    """Keep whole classes, in the order of their hashes, up to `max_images` images."""
    if len(table) <= max_images:
        return table
    sizes = table["label"].value_counts()
    ranked = rank_by_hash(table["label"], salt="diagnosis")
    kept = [label for label, total in zip(ranked, sizes[ranked].cumsum(), strict=True) if total <= max_images]
    return table[table["label"].isin(kept or ranked[:1])].reset_index(drop=True)


def _display_names(runs: Sequence[RunFolder]) -> list[str]:
    """Use the names of the folders, or their paths if two names are equal."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
