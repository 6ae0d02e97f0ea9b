"""Trials of a study: real training, and their scores, costs and geometry against their definitions."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from brute_force import query_metrics
from errors import error_of
from small_runs import STEPS_PER_EPOCH, make_config
from synthetic_study import WEIGHT, make_result, write_study

from orthoproxy.cli.main import main
from orthoproxy.core.errors import DivergedError
from orthoproxy.data.table import select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Retrieval
from orthoproxy.reports.geometry import effective_rank, pair_cosines
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.recipes import write_config
from orthoproxy.runs.study_trials import StudyPaths, check_splits, configure_trial, evaluate_trial, train_trial
from orthoproxy.studies.plan import Study, Trial, read_study
from orthoproxy.studies.results import METRICS, SplitScores, TrialResult, read_results, read_trial

LIVE, FROZEN = Trial("alone", {}, 0), Trial("frozen", {}, 0)
GIVEN = {
    "set": {"data.workers": 0, "training.epochs": 2}, "seeds": 2, "tuning_seeds": [0], "baseline": "alone",
    "compare": ["so"], "methods": {
        "alone": {},
        "so": {"choose": {WEIGHT: [0.1, 1]}},
        "frozen": {"set": {"encoder.freeze": True}},
        "diverging": {"set": {"optimizer.lr.projection": 1e38, "training.max_nonfinite_steps": 0}},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_config(make_config(photos), folder / "base.yaml")
    return folder


def make_study(folder: Path, **changes: object) -> Study:
    return read_study(write_study(folder, **(GIVEN | changes)))


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return make_study(folder)


@pytest.fixture(scope="module")
def paths(folder: Path) -> StudyPaths:
    return StudyPaths(folder / "out", folder / "results" / "s.parquet")


@pytest.fixture(scope="module")
def trained(study: Study, paths: StudyPaths) -> TrialResult:
    return train_trial(study, LIVE, paths)


def assert_scores(scores: SplitScores, study: Study, paths: StudyPaths, split: str) -> None:
    """Compare the scores of trained model and untrained encoder with their definitions, class by class."""
    images = select_split(split_table(configure_trial(study, LIVE)), split)
    (numbers, classes), rows, run = pd.factorize(images["label"], sort=True), np.arange(len(images)), paths.run(LIVE)
    assert scores.classes == classes.tolist() and scores.queries == [5] * len(classes)
    for model, found in ((run.load_model(), scores.trained), (Embedder.load(run.baseline), scores.untrained)):
        retrieval = Retrieval(model.embed(images["path"].tolist(), workers=0), numbers, rows, rows)
        expected = pd.DataFrame([query_metrics(retrieval, row, [1]) for row in rows]).groupby(numbers).mean()
        for metric in METRICS:
            assert found[metric] == pytest.approx(expected[metric].tolist(), abs=2e-6)


def test_a_trial_has_validation_scores_costs_and_geometry_but_no_test_scores(study, paths, trained):
    assert read_trial(paths.result_file(LIVE)) == trained
    assert trained.test is None
    assert_scores(trained.validation, study, paths, "validation")
    assert trained.images == 2 * STEPS_PER_EPOCH * 4
    assert [(point["epoch"], point["images"]) for point in trained.curve] == [(1, 20), (2, 40)]
    assert 0 < trained.curve[0]["seconds"] <= trained.curve[1]["seconds"] <= trained.elapsed
    best = max(point["map@r"] for point in trained.curve)
    assert trained.score("validation", "map@r") == pytest.approx(best, abs=1e-5)
    assert trained.environment["precision"] == "32-true"
    # its geometry is that of the proxies
    proxies = paths.run(LIVE).load_model().proxies.double().numpy()
    count, dim = proxies.shape
    cosines = pair_cosines(proxies)
    expected = {"classes": count, "dim": dim, "effective_rank": effective_rank(proxies), "largest_cosine": max(cosines)}
    expected |= {"squares": 2 * np.square(cosines).sum(), "floor": max(0, count * (count - dim) / dim)}
    assert trained.geometry == pytest.approx(expected, abs=1e-4)


def test_test_scores_are_added_from_the_run_folder(study, paths, trained):
    result = evaluate_trial(study, LIVE, paths, trained)
    assert read_trial(paths.result_file(LIVE)) == result
    assert_scores(result.test, study, paths, "test")
    assert result == trained.model_copy(update={"test": result.test})  # retrained is still None


def test_an_unfinished_trial_continues_from_its_checkpoint(study, folder, paths, trained):
    out = StudyPaths(folder / "unfinished", folder / "unfinished.parquet")
    shutil.copytree(paths.run(LIVE).folder, out.run(LIVE).folder, ignore=shutil.ignore_patterns("model"))
    last = out.run(LIVE).checkpoints / "last.ckpt"
    saved = last.stat().st_mtime_ns
    continued = train_trial(study, LIVE, out)
    assert (continued.validation, continued.geometry) == (trained.validation, trained.geometry)
    assert last.stat().st_mtime_ns == saved


def test_a_frozen_trial_leaves_no_run_folder_and_is_trained_again_for_the_test_classes(study, folder, paths):
    out = StudyPaths(folder / "at-once", folder / "at-once.parquet")
    at_once = evaluate_trial(study, FROZEN, out)  # trained and evaluated without a result before
    trained = train_trial(study, FROZEN, paths)
    assert not out.run(FROZEN).folder.exists() and not paths.run(FROZEN).folder.exists()
    result = evaluate_trial(study, FROZEN, paths, trained)
    assert not paths.run(FROZEN).folder.exists()
    assert len(result.test.classes) == 4
    assert (at_once.test, at_once.validation, at_once.retrained) == (result.test, trained.validation, None)
    assert result.retrained == {"date": result.retrained["date"], "environment": trained.environment}
    assert result.validation == trained.validation


def test_a_diverged_trial_is_a_result(study, paths):
    trial = Trial("diverging", {}, 1)
    result = train_trial(study, trial, paths)
    assert (result.trial, result.validation) == (trial.name, None)
    assert "step" in result.failed
    assert read_trial(paths.result_file(trial)) == result
    shutil.rmtree(paths.run(trial).folder)
    assert evaluate_trial(study, trial, paths).failed == result.failed
    shutil.rmtree(paths.run(trial).folder)
    with pytest.raises(DivergedError, match=trial.name):  # and where it is to be trained again, an error
        evaluate_trial(study, trial, paths, make_result(study, trial, evaluated=False))


@pytest.mark.parametrize(("options", "field"), [
    ({"data.test_fraction": 0.2}, None), ({"data.validation_fraction": 0}, "data.validation_fraction"),
    ({"checkpoint_selection.split": "none"}, "checkpoint_selection.split"),
    ({"evaluation.recall_at": [2]}, "evaluation.recall_at"),
    ({"loss.proxy_regularizer.wait": 1}, "loss.proxy_regularizer.wait"),
])  # fmt: skip
def test_a_study_whose_trials_cannot_be_compared_is_rejected(folder, options, field):
    study = make_study(folder, methods={"alone": {}, "so": {"set": options}})
    error = error_of(check_splits, study)
    assert (error.field, error.path) == (field, study.path)


@pytest.mark.slow
def test_the_command_runs_a_study_in_processes_and_then_has_nothing_to_do(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    make_study(folder, methods={name: GIVEN["methods"][name] for name in ("alone", "so", "diverging")})
    assert main(["study", "s.yaml", "--processes", "2", "--out", "whole"]) == 0
    results = {result.trial: result for result in read_results(folder / "results" / "s.parquet")}
    assert len(results) == 2 + 3 + 2
    assert sum(result.test is not None for result in results.values()) == 4
    assert {name for name, result in results.items() if result.failed} == {"diverging_seed0", "diverging_seed1"}
    assert "diverging_seed1" in (folder / "whole" / "table.md").read_text()
    trained = (folder / "results" / "s.parquet").read_bytes()
    assert main(["study", "s.yaml", "--out", "elsewhere"]) == 0
    assert not (folder / "elsewhere" / "runs").exists()
    assert (folder / "results" / "s.parquet").read_bytes() == trained
