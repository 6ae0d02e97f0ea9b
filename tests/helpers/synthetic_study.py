"""A study without training: results as its trials would leave them, with known gains.

And tasks in the place of training, which child processes import from here.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from orthoproxy.runs.study_trials import StudyPaths, configure_trial, recorded_options
from orthoproxy.studies.plan import Method, Study, Trial
from orthoproxy.studies.results import SplitScores, TrialResult, write_trial
from orthoproxy.training.signals import Interrupted, stop_on_signal

ROOT = Path(__file__).parents[2]
WEIGHT, SCALING = "loss.proxy_regularizer.weight", "loss.proxy_regularizer.scaling"
WEIGHTS = [0.03, 0.1, 0.3, 1, 3]


GIVEN = {
    "title": "Does it help?", "base": "base.yaml", "seeds": [0, 1, 2], "tuning_seeds": [0, 1], "metric": "recall@1",
    "baseline": "off", "compare": ["on"],
    "methods": {"off": {"set": {WEIGHT: 0}}, "on": {"choose": {WEIGHT: [0.1, 1, 9]}}},
}  # fmt: skip


def write_study(folder: Path, **changes: Any) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(GIVEN | changes))
    return path


def make_study(seeds: int = 8, **changes: Any) -> Study:
    """Proxy Anchor alone, and with Soft Orthogonality in two forms, each with a weight to choose."""
    methods = {
        "proxy-anchor": Method(set={WEIGHT: 0}),
        "so-excess": Method(set={SCALING: "excess"}, choose={WEIGHT: WEIGHTS}),
        "so-sum": Method(set={SCALING: "sum"}, choose={WEIGHT: [1e-4, 1e-3, 1e-2]}),
    }
    given = {"title": "Does it help?", "base": ROOT / "recipes/icons.yaml", "path": Path("studies/made-up.yaml")}
    given |= {"seeds": seeds, "tuning_seeds": [0, 1], "methods": methods}
    return Study(**{**given, "baseline": "proxy-anchor", "compare": ["so-excess", "so-sum"], **changes})


def gain(method: str, setting: dict[str, Any]) -> float:
    """What a setting adds to the score: best at 0.3 for `excess`, only harm for `sum`."""
    weight = setting.get(WEIGHT, 0)
    if method == "so-excess":
        return 0.06 - 0.03 * abs(np.log10(weight / 0.3))
    return -2 * weight if method == "so-sum" else 0.0


def make_scores(seed: int, added: float, classes: int, salt: str) -> SplitScores:
    """Scores of classes whose difficulty does not depend on the seed; nor does the untrained encoder."""
    of_classes = np.random.default_rng(len(salt))
    of_seed = np.random.default_rng([seed, len(salt), int(1e6 * abs(added))])
    difficulty = of_classes.beta(5, 3, classes)
    noise = of_seed.normal(0, 0.01) + of_seed.normal(0, 0.04, classes)

    def both(values: np.ndarray) -> dict[str, list[float]]:
        return {"recall@1": values.round(6).tolist(), "map@r": (values / 2).round(6).tolist()}

    return SplitScores(
        classes=[f"{salt} {number:03}" for number in range(classes)],
        queries=of_classes.integers(3, 15, classes).tolist(),
        trained=both(np.clip(difficulty + added + noise, 0, 1)),
        untrained=both(np.clip(difficulty - 0.2, 0, 1)),
    )


def make_result(study: Study, trial: Trial, evaluated: bool, **changes: Any) -> TrialResult:
    added = gain(trial.method, trial.setting)
    point = {"epoch": 1, "seconds": 15.5, "images": 2944, "recall@1": 0.5, "map@r": 0.25}
    given = {"study": study.name, "trial": trial.name, "method": trial.method, "setting": trial.setting}
    given |= {"seed": trial.seed, "options": study.options(trial), "curve": [point], "images": 23552}
    given |= {"validation": make_scores(trial.seed, added, 30, "validation")}
    given |= {"test": make_scores(trial.seed, added, 60, "test") if evaluated else None}
    geometry = dict.fromkeys(("classes", "dim", "effective_rank", "largest_cosine", "squares", "floor"), 0.5)
    given |= {"geometry": geometry, "seconds": 130.2 + trial.seed, "elapsed": 140.2 + trial.seed}
    given |= {"date": "2026-11-24", "environment": {"torch": "2.14.1", "precision": "32-true"}}
    return TrialResult(**{**given, **changes})


def make_failure(study: Study, trial: Trial) -> TrialResult:
    nothing = dict.fromkeys(("validation", "geometry", "seconds", "images"))
    return make_result(study, trial, evaluated=False, failed="the loss is nan", curve=[], **nothing)


def best_setting(study: Study, method: str) -> dict[str, Any]:
    return max(study.methods[method].settings, key=lambda setting: gain(method, setting))


def finished_results(study: Study) -> list[TrialResult]:
    finals = {t.name for name in study.methods for t in study.final_trials(name, best_setting(study, name))}
    trials = [trial for trial in study.planned_trials if trial.name not in finals]
    trials += [study.possible_trials[name] for name in sorted(finals)]
    return [make_result(study, trial, trial.name in finals) for trial in trials]


# ---- in the place of training


def scores_by_weight(trial: Trial) -> SplitScores:
    """The middle weight is best."""
    score = {0.1: 0.5, 1: 0.6}.get(trial.setting.get(WEIGHT, 0), 0.4) + 0.01 * trial.seed
    values = {"recall@1": [score] * 2, "map@r": [score / 2] * 2}
    return SplitScores(classes=["a", "b"], queries=[3, 1], trained=values, untrained=values)


def train(study: Study, trial: Trial, paths: StudyPaths) -> TrialResult:
    """Write a result at once, as training does in the end."""
    options = recorded_options(configure_trial(study, trial))
    result = make_result(study, trial, evaluated=False, validation=scores_by_weight(trial), options=options)
    write_trial(result, paths.result_file(trial))
    return result


def evaluate(study: Study, trial: Trial, paths: StudyPaths, result: TrialResult) -> TrialResult:
    result = result.model_copy(update={"test": scores_by_weight(trial)})
    write_trial(result, paths.result_file(trial))
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
