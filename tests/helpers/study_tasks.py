"""What a study does with a trial, without training; child processes import it from here."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from synthetic_study import WEIGHT, make_result

from orthoproxy.runs.study_trials import StudyPaths, configure_trial, recorded_options
from orthoproxy.studies.plan import Study, Trial
from orthoproxy.studies.results import SplitScores, TrialResult, write_trial
from orthoproxy.training.signals import Interrupted, stop_on_signal


def make_scores(trial: Trial) -> SplitScores:
    """The middle weight is best."""
    score = {0.1: 0.5, 1: 0.6}.get(trial.setting.get(WEIGHT, 0), 0.4) + 0.01 * trial.seed
    values = {"recall@1": [score] * 2, "map@r": [score / 2] * 2}
    return SplitScores(classes=["a", "b"], queries=[3, 1], trained=values, untrained=values)


def train(study: Study, trial: Trial, paths: StudyPaths) -> TrialResult:
    """Write a result at once, as training does in the end."""
    options = recorded_options(configure_trial(study, trial))
    result = make_result(study, trial, evaluated=False, validation=make_scores(trial), options=options)
    write_trial(result, paths.trial(trial))
    return result


def evaluate(study: Study, trial: Trial, paths: StudyPaths, result: TrialResult) -> TrialResult:
    result = result.model_copy(update={"test": make_scores(trial)})
    write_trial(result, paths.trial(trial))
    return result


def wait_for(condition: Callable[[], Any]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def die(study: Study, trial: Trial, paths: StudyPaths) -> TrialResult:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def train_until_stopped(study: Study, trial: Trial, paths: StudyPaths) -> TrialResult:
    """The first trial finishes at once; the second trains until it is stopped, and saves its state."""
    if trial.seed == 0:
        return train(study, trial, paths)
    paths.folder.mkdir(parents=True, exist_ok=True)
    with stop_on_signal() as stop:
        (paths.folder / "begun").touch()
        wait_for(lambda: stop.requested)
    (paths.folder / "saved").touch()
    raise Interrupted(3, stop.signal)


def write_until_stopped(study: Study, trial: Trial, paths: StudyPaths) -> TrialResult:
    """A trial that is not training, but writes a file."""
    paths.folder.mkdir(parents=True, exist_ok=True)
    unfinished = paths.folder / f"{trial.name}.tmp"
    unfinished.touch()
    (paths.folder / "begun").touch()
    try:
        wait_for(lambda: False)
    finally:
        unfinished.unlink()
    raise AssertionError
