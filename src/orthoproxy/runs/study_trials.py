"""Trials of a study: their configuration, training and evaluation."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from orthoproxy.core.device import choose_device
from orthoproxy.core.errors import DivergedError, InputError
from orthoproxy.data.table import evaluation_images, select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.feature_cache import pooled_features
from orthoproxy.evaluation.per_class import class_scores
from orthoproxy.reports.geometry import compare_proxies, effective_rank, orthogonality_distance, welch_floor
from orthoproxy.runs.config import AugmentationConfig, Config
from orthoproxy.runs.dataset import require_outside, split_table, user_cache
from orthoproxy.runs.device import choose_precision, evaluation_precision, make_scoring
from orthoproxy.runs.evaluate import load_table
from orthoproxy.runs.experiment import make_inputs, make_sampler
from orthoproxy.runs.recipes import read_config
from orthoproxy.runs.run_folder import WITHOUT_EFFECT, RunFolder
from orthoproxy.runs.train import train
from orthoproxy.studies.plan import Study, Trial
from orthoproxy.studies.results import METRICS, Split, SplitScores, TrialResult, write_trial

DIGITS = 6
# options that may differ between the machines that share a study
IMAGES = ("data.root", "data.csv", "data.allow_paths_outside_root")
MACHINE_OPTIONS = {*IMAGES, "training.device", "training.loggers", *WITHOUT_EFFECT}


@dataclass(frozen=True)
class StudyPaths:
    """Where a study keeps its files: `folder` for runs and unfinished results, `parquet` for finished results."""

    folder: Path
    parquet: Path

    def run(self, trial: Trial) -> RunFolder:
        """Return the run folder of a trial."""
        return RunFolder(self.folder / "runs" / trial.name)

    def result_file(self, trial: Trial) -> Path:
        """Return the result file of a trial."""
        return self.folder / "trials" / f"{trial.name}.json"


def configure_trial(study: Study, trial: Trial) -> Config:
    """Merge base recipe, the method's recipe and the options; raise InputError if the study cannot use the result."""
    method = study.methods[trial.method]
    recipes = [study.base] if method.recipe is None else [study.base, method.recipe]
    try:
        config = read_config(*recipes, overrides={"checkpoint_selection.split": "validation", **study.options(trial)})
    except InputError as error:
        raise replace(error, path=error.path or study.path) from error
    if config.checkpoint_selection.split != "validation":
        problem = f"{config.checkpoint_selection.split!r} in a study, which selects on validation classes"
        raise InputError(problem, field="checkpoint_selection.split", path=study.path, hint="remove it")
    if 1 not in config.evaluation.recall_at:
        raise InputError("Recall@1 is missing", field="evaluation.recall_at", path=study.path, hint="add 1")
    return config


def check_splits(study: Study, outputs: StudyPaths | None = None) -> None:
    """Raise InputError unless all trials have the same test images, and those of a method the same for validation."""
    splits: dict[str, dict[str, list[str]]] = {}
    first: dict[tuple[str, str], tuple[Trial, list[str]]] = {}
    for trial in study.planned_trials:
        config = configure_trial(study, trial)
        if outputs:
            require_outside(config.data, out=outputs.folder, study=outputs.parquet)
        key = repr(config.data.model_copy(update={"augmentation": AugmentationConfig()}))
        if key not in splits:
            table = split_table(config)
            splits[key] = {split: select_split(table, split)["path"].tolist() for split in ("validation", "test")}
        for split, paths in splits[key].items():
            if not paths:
                field = f"data.{split}_fraction"
                raise InputError(f"{trial.name} has no {split} classes", field=field, path=study.path)
            other, other_paths = first.setdefault((split, "" if split == "test" else trial.method), (trial, paths))
            if paths != other_paths:
                problem = f"{other.name} and {trial.name} have different {split} images"
                raise InputError(problem, path=study.path, hint="give both the same data options")


def recorded_options(config: Config) -> dict[str, Any]:
    """Return all options by dotted key, without what may differ between machines."""
    return {name: value for name, value in config.flatten().items() if name not in MACHINE_OPTIONS}


def check_options(study: Study, trial: Trial, result: TrialResult) -> None:
    """Raise InputError if a result was made with other options than the study has now."""
    defaults = Config().flatten()
    for name, value in recorded_options(configure_trial(study, trial)).items():
        recorded = result.options.get(name, defaults[name])  # an option that was added later had its default
        if recorded != value:
            problem = f"the result of {trial.name} was made with {recorded!r}, and the study has {value!r}"
            hint = "delete the result and the run folder, or rename the study"
            raise InputError(problem, field=name, path=study.path, hint=hint)


def train_trial(study: Study, trial: Trial, paths: StudyPaths, keep_run: bool = False) -> TrialResult:
    """Train a trial, or resume it, and write its result without test scores, or with ``failed`` if it diverged."""
    start, config, run = time.monotonic(), configure_trial(study, trial), paths.run(trial)
    outcome: dict[str, Any]
    try:
        with _trial_environment(config, run):
            train(config, run.folder, resume=True, evaluate=False)
            outcome = _measure(run)
    except DivergedError as error:
        outcome = {"failed": str(error)}
    result = TrialResult(
        study=study.name,
        trial=trial.name,
        method=trial.method,
        setting=trial.setting,
        seed=trial.seed,
        options=recorded_options(config),
        # of this process, or of all if it was resumed
        elapsed=round(max(time.monotonic() - start, outcome.get("seconds", 0)), 1),
        **_date_and_environment(run),
        **outcome,
    )
    write_trial(result, paths.result_file(trial))
    if not keep_run:
        _remove_if_frozen(config, run)
    return result


def evaluate_trial(study: Study, trial: Trial, paths: StudyPaths, result: TrialResult | None = None) -> TrialResult:
    """Evaluate a trial on the test classes, after training if need be, and add the scores unless it failed."""
    config, run = configure_trial(study, trial), paths.run(trial)
    result = result or train_trial(study, trial, paths, keep_run=True)
    if not result.failed:
        with _trial_environment(config, run):
            if not run.has_model:  # it was removed since the trial was trained, or is on another machine
                try:
                    train(config, run.folder, resume=True, evaluate=False)
                except DivergedError as error:
                    raise DivergedError(f"{result.trial}, trained again for the test classes: {error}") from error
                result = result.model_copy(update={"retrained": _date_and_environment(run)})
                write_trial(result, paths.result_file(trial))  # so that it is known if the evaluation is interrupted
            result = result.model_copy(update={"test": _score_split(run, load_table(run), "test")})
        write_trial(result, paths.result_file(trial))
    _remove_if_frozen(config, run)
    return result


def _remove_if_frozen(config: Config, run: RunFolder) -> None:
    """Remove the run folder of a frozen encoder: it takes megabytes, and training again takes seconds."""
    if config.encoder.freeze:
        shutil.rmtree(run.folder)


def _date_and_environment(run: RunFolder) -> dict[str, Any]:
    config = run.config
    environment = {**config.environment, "precision": choose_precision(config.training)}
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "environment": environment}


def _measure(run: RunFolder) -> dict[str, Any]:
    """Collect scores and costs of a trained run."""
    records, table = run.records(), load_table(run)
    training = select_split(table, "train")
    sampler = make_sampler(run.config, pd.factorize(training["label"])[0], training["category"])
    images = len(sampler) * sum(sampler.sizes)  # of an epoch; an incomplete last batch is dropped
    return {
        "validation": _score_split(run, table, "validation"),
        "curve": _curve(records, images),
        "geometry": _geometry(run),
        "seconds": round(float(records["seconds"].max()), 1),
        "images": images * int(records["epoch"].max()),
    }


def _score_split(run: RunFolder, table: pd.DataFrame, split: Split) -> SplitScores:
    """Score the trained model and the untrained encoder on each class of a split."""
    config, device = run.config, choose_device(run.config.training.device)
    baseline = Embedder.load(run.baseline, device)
    images = evaluation_images(table, split)
    paths, workers = images["path"].tolist(), config.data.workers
    model = run.load_model(device, with_proxies=False)
    precision = evaluation_precision(device, config.training.precision)
    embeddings = (
        model.embed(make_inputs(config, baseline, table)(paths), workers=workers, precision=precision),
        baseline.embed(pooled_features(baseline, paths, user_cache() / "features", workers)),  # once for all trials
    )
    scores, baseline_scores = (class_scores(x, images, make_scoring(config.evaluation, device)) for x in embeddings)
    return SplitScores(
        classes=scores.index.tolist(),
        queries=scores["queries"].tolist(),
        trained={name: scores[name].round(DIGITS).tolist() for name in METRICS},
        untrained={name: baseline_scores[name].round(DIGITS).tolist() for name in METRICS},
    )


def _curve(records: pd.DataFrame, images_per_epoch: int) -> list[dict[Any, Any]]:
    """Return the validation scores over epochs, seconds of training and images."""
    scores = {f"validation/{name}": name for name in METRICS}
    seconds = records["seconds"].ffill().fillna(0).round(1)
    records = records.assign(seconds=seconds, images=records["epoch"] * images_per_epoch)
    points = records[["epoch", "seconds", "images", *scores]].dropna().rename(columns=scores)
    return points.round(DIGITS).to_dict("records")


def _geometry(run: RunFolder) -> dict[str, Any] | None:
    """Measure the arrangement of the proxies; None for a loss without them."""
    model = run.load_model()
    if model.proxies is None:
        return None
    proxies = model.proxies.float().cpu().numpy()
    pairs, _ = compare_proxies(proxies, model.classes, k=1)
    return {
        "classes": len(proxies),
        "dim": proxies.shape[1],
        "effective_rank": round(effective_rank(proxies), DIGITS),
        "largest_cosine": round(pairs[0].cosine, DIGITS) if pairs else None,
        "squares": round(orthogonality_distance(proxies), DIGITS),
        "floor": round(welch_floor(*proxies.shape), DIGITS),
    }


@contextlib.contextmanager
def _trial_environment(config: Config, run: RunFolder) -> Iterator[None]:
    """Log to a file in the run folder; a frozen encoder gets one thread: it gains little from more."""
    threads = torch.get_num_threads()
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        torch.set_num_threads(1 if config.encoder.freeze else threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
