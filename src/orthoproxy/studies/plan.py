"""The plan of a study: methods, settings and seeds, fixed before the first run."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from orthoproxy.core.errors import InputError
from orthoproxy.core.safe_parsing import read_yaml
from orthoproxy.studies.results import TrialResult, check_same_split, to_input_error
from orthoproxy.studies.statistics import SCORE_TOLERANCE

Options = dict[str, Any]  # dotted configuration keys and their values
SEED = "training.seed"


def _to_seeds(value: Any) -> Any:
    """Expand a number of seeds: 8 means 0 to 7."""
    return list(range(value)) if type(value) is int else value


def _check_distinct(values: list[Any]) -> list[Any]:
    if any(value in values[:i] for i, value in enumerate(values)):
        raise InputError("a value occurs twice")
    return values


def _without_seed(options: Options) -> Options:
    if SEED in options:
        raise InputError("set by seeds and tuning_seeds", field=SEED, hint="remove it")
    return options


Seeds = Annotated[list[NonNegativeInt], BeforeValidator(_to_seeds), AfterValidator(_check_distinct)]
Set = Annotated[Options, AfterValidator(_without_seed)]
Candidates = Annotated[list[Any], Field(min_length=1), AfterValidator(_check_distinct)]
MethodName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]{0,59}$")]


class Method(BaseModel):
    """A method of a study: options on top of the base recipe, some with several candidate values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    set: Set = {}  # options of all settings
    choose: Annotated[dict[str, Candidates], AfterValidator(_without_seed)] = {}  # each combination is one setting
    recipe: Path | None = None  # partial recipe after the base recipe and before all options
    against: str | None = None  # method to compare with; by default the baseline of the study

    @property
    def settings(self) -> list[Options]:
        """All settings in grid order; a single empty one if there is nothing to choose."""
        return [dict(zip(self.choose, values, strict=True)) for values in itertools.product(*self.choose.values())]


@dataclass(frozen=True)
class Trial:
    """One training run of a study: a setting of a method with a seed."""

    method: str
    setting: Options
    seed: int

    @property
    def name(self) -> str:
        """Name of the run folder and of the result file; settings that do not fit a file name are hashed."""
        words = "_".join(f"{key.rpartition('.')[2]}-{value}" for key, value in sorted(self.setting.items()))
        if not re.fullmatch(r"[\w.+-]{0,60}", words):
            text = json.dumps(self.setting, sort_keys=True)
            words = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return "_".join(part for part in (self.method, words, f"seed{self.seed}") if part)


class Study(BaseModel):
    """A comparison of methods.

    Each combination of hyperparameters is trained with each tuning seed. The one that is best on the validation classes
    is then trained with all seeds, as are methods without a choice. Only these runs are evaluated on the test classes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Annotated[str, Field(min_length=1)]
    question: str = ""
    base: Path  # recipe of all trials
    set: Set = {}  # options of all trials
    seeds: Annotated[Seeds, Field(min_length=1)]  # of the final runs; a number n means 0 to n - 1
    tuning_seeds: Seeds = []  # of the runs that choose a setting
    metric: Literal["recall@1", "map@r"] = "recall@1"  # chooses settings and is compared
    baseline: str  # method that others are compared with, unless `Method.against` names another
    compare: Annotated[list[str], AfterValidator(_check_distinct)] = []  # planned; p values are corrected together
    methods: dict[MethodName, Method]
    expected_seconds: PositiveFloat | None = None  # of a trial
    path: Path = Field(default=Path("study.yaml"), repr=False)

    @model_validator(mode="after")
    def _check(self) -> Study:
        known = f"one of {', '.join(self.methods)}"
        named = {"baseline": self.baseline, **{f"compare.{i}": name for i, name in enumerate(self.compare)}}
        named |= {f"methods.{name}.against": method.against for name, method in self.methods.items() if method.against}
        for field, name in named.items():
            if name not in self.methods:
                raise InputError(f"unknown method {name!r}", field=field, expected=known)
        if self.baseline in self.compare or self.methods[self.baseline].against:
            raise InputError("the baseline cannot be compared with a method", field="baseline")
        if any(name == method.against for name, method in self.methods.items()):
            raise InputError("a method cannot be compared with itself", field="methods")
        if not self.tuning_seeds and any(method.choose for method in self.methods.values()):
            raise InputError("missing, but a method has settings to choose from", field="tuning_seeds")
        _ = self.possible_trials
        return self

    @property
    def name(self) -> str:
        """File name without its extension."""
        return self.path.stem

    @property
    def planned_trials(self) -> list[Trial]:
        """All trials that are known beforehand: settings with tuning seeds; methods without a choice with all seeds."""
        return [
            Trial(name, setting, seed)
            for name, method in self.methods.items()
            for setting in method.settings
            for seed in (self.tuning_seeds if method.choose else self.seeds)
        ]

    @property
    def possible_trials(self) -> dict[str, Trial]:
        """All trials that may be run, whatever settings are chosen, by name."""
        finals = [t for name, m in self.methods.items() for s in m.settings for t in self.final_trials(name, s)]
        trials: dict[str, Trial] = {}
        for trial in [*self.planned_trials, *finals]:
            if trials.setdefault(trial.name, trial) != trial:
                raise InputError(f"two trials have the name {trial.name}", field="methods", hint="rename a method")
        return trials

    def final_trials(self, method: str, setting: Options) -> list[Trial]:
        """List the trials of a chosen setting, which are evaluated on the test classes."""
        return [Trial(method, setting, seed) for seed in self.seeds]

    def options(self, trial: Trial) -> Options:
        """Merge the options of a trial; later ones override earlier ones."""
        return {**self.set, **self.methods[trial.method].set, **trial.setting, SEED: trial.seed}


def read_study(path: str | Path) -> Study:
    """Read a study from its YAML file.

    Raises
    ------
    InputError
        If the file is missing or a key or value is invalid. Recipes and options are checked by ``orthoproxy study``.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "margins.yaml"
    >>> _ = path.write_text("{title: Margins, base: icons.yaml, seeds: 2, baseline: pa, methods: {pa: {}}}")
    >>> read_study(path).seeds
    [0, 1]
    """
    path = Path(path)
    given = {key: value for key, value in read_yaml(path, "study").items() if value is not None}
    try:
        study = Study.model_validate({**given, "path": path})
    except ValidationError as error:
        raise to_input_error(error, path) from error
    methods = {
        name: method.model_copy(update={"recipe": method.recipe and path.parent / method.recipe})
        for name, method in study.methods.items()
    }
    return study.model_copy(update={"base": path.parent / study.base, "methods": methods})


def tuning_results(
    study: Study, results: Sequence[TrialResult], method: str, setting: Options
) -> list[TrialResult | None]:
    """Return the result of a setting with each tuning seed, or None if it is missing."""
    seeds = study.tuning_seeds
    if not study.methods[method].choose:
        seeds = [seed for seed in study.seeds if seed in study.tuning_seeds] or study.seeds
    by_name = {result.trial: result for result in results}
    return [by_name.get(Trial(method, setting, seed).name) for seed in seeds]


def validation_scores(study: Study, results: Sequence[TrialResult], method: str, setting: Options) -> list[float]:
    """Return the score in percent for each tuning seed that has one."""
    found = tuning_results(study, results, method, setting)
    return [100 * result.score("validation", study.metric) for result in found if result and not result.failed]


def choose_setting(study: Study, results: Sequence[TrialResult], method: str) -> Options | None:
    """Return the first setting of the best mean validation score; None if a trial is missing or each setting failed."""
    settings = study.methods[method].settings
    if not study.methods[method].choose:
        return settings[0]
    tuned = [result for setting in settings for result in tuning_results(study, results, method, setting)]
    if None in tuned:
        return None
    check_same_split([result for result in tuned if result and not result.failed], "validation")
    best, best_score = None, -np.inf
    for setting in settings:
        scores = validation_scores(study, results, method, setting)
        if len(scores) == len(study.tuning_seeds) and np.mean(scores) > best_score + 100 * SCORE_TOLERANCE:
            best, best_score = setting, float(np.mean(scores))
    return best


def final_trials(study: Study, results: Sequence[TrialResult]) -> list[Trial]:
    """Return the trials of all settings chosen so far."""
    chosen = {name: choose_setting(study, results, name) for name in study.methods}
    return [t for name, s in chosen.items() if s is not None for t in study.final_trials(name, s)]


def final_results(study: Study, results: Sequence[TrialResult], method: str) -> list[TrialResult]:
    """Return the results of the chosen setting that were evaluated on the test classes, in the order of the seeds."""
    setting = choose_setting(study, results, method)
    if setting is None:
        return []
    evaluated = {result.trial: result for result in results if result.test}
    return [evaluated[t.name] for t in study.final_trials(method, setting) if t.name in evaluated]
