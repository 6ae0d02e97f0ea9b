"""A run repeated from its folder, and two runs compared: equal, within interval, or different and in what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from orthoproxy.core.environment import DATA, MACHINE
from orthoproxy.core.errors import InputError
from orthoproxy.evaluation import Estimate
from orthoproxy.models import read_tensors
from orthoproxy.runs.config import flat
from orthoproxy.runs.run_folder import WITHOUT_EFFECT, Run
from orthoproxy.runs.train import train

Verdict = Literal["equal", "within interval", "different"]

# where things lie, which does not change what a run computes
PLACES = {"data.root", "data.path", "data.cache"}
TENSORS = ("baseline/model.safetensors", "model/model.safetensors", "model/proxies.safetensors")
COMPARED = ("model", "baseline", "difference")


@dataclass(frozen=True)
class Comparison:
    """What became of a run when it was repeated.

    Parameters
    ----------
    verdict
        ``equal``: weights and scores are the same to the last bit. ``within interval``: every score lies within the
        interval that the first run gives it. ``different``: one does not, or settings or images are others, or weights
        differ and there are no scores.
    differences
        From what differs (``settings``, ``data``, ``versions``, ``machine``, ``starting weights``, ``weights``,
        ``scores``) to a line each.

    Examples
    --------
    >>> Comparison("equal", {}).to_dict()
    {'verdict': 'equal', 'differences': {}}
    """

    verdict: Verdict
    differences: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as `reproduce --json` writes it."""
        return asdict(self)


def reproduce(run: Run, out: Path, root: str | None = None, path: str | None = None) -> Run:
    """Repeat a run with its own configuration.

    Parameters
    ----------
    run
        Trained.
    out
        The folder of the repetition; one that was begun there goes on.
    root, path
        Where the run's images, or their CSV file, are now; None for where they were.

    Returns
    -------
    Run
        The repetition, judged if the run is.

    Raises
    ------
    InputError
        If the run is not trained to its end, or `out` is its own folder; and as from `train`.

    Examples
    --------
    >>> reproduce(Run("runs/nowhere"), Path("runs/again"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no run in runs/nowhere: config.yaml is not there
    """
    config = run.config
    if not run.trained:
        raise InputError(f"{run.folder}: not trained to its end; go on with --resume, then repeat it")
    if out.resolve() == run.folder.resolve():
        raise InputError(f"--out: {out} is the run itself; give another folder")
    data = replace(config.data, root=root or config.data.root, path=path or config.data.path)
    return train(replace(config, data=data), out, resume=True, judged=run.finished)


def compare(first: Run, second: Run) -> Comparison:
    """Compare a run with its repetition.

    Parameters
    ----------
    first, second
        Both trained; the intervals are the first one's.

    Returns
    -------
    Comparison
        The verdict, and all that differs.

    Raises
    ------
    InputError
        If a file of one cannot be read.

    Examples
    --------
    >>> compare(Run("runs/nowhere"), Run("runs/again"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no run in runs/nowhere: config.yaml is not there
    """
    before, now = first.config.environment, second.config.environment
    named = sorted({*before, *now} - {DATA})
    tensors = {name: list(_tensor_lines(first, second, name)) for name in TENSORS}
    found = {
        "settings": list(_setting_lines(first, second)),
        "data": _changed({DATA: before.get(DATA, "not recorded")}, {DATA: now.get(DATA, "not recorded")}, [DATA]),
        "versions": _changed(before, now, [name for name in named if name not in MACHINE]),
        "machine": _changed(before, now, [name for name in named if name in MACHINE]),
        "starting weights": tensors[TENSORS[0]],
        "weights": [line for name in TENSORS[1:] for line in tensors[name]],
        "scores": list(_score_lines(first, second)),
    }
    found = {what: lines for what, lines in found.items() if lines}
    return Comparison(_verdict(first, second, found), found)


def _verdict(first: Run, second: Run, found: dict[str, list[str]]) -> Verdict:
    if "settings" in found or ("data" in found and DATA in first.config.environment):
        return "different"
    if "weights" not in found and "scores" not in found:
        return "equal"
    return "within interval" if _all_within(first.scores, second.scores) else "different"


def _setting_lines(first: Run, second: Run) -> Iterator[str]:
    before, now = flat(first.config), flat(second.config)
    for name in sorted(before.keys() - WITHOUT_EFFECT - PLACES):
        if before[name] != now[name]:
            yield f"{name}: {before[name]!r}, then {now[name]!r}"


def _changed(before: dict[str, str], now: dict[str, str], names: list[str]) -> list[str]:
    """Name what two environments do not share."""
    pairs = {name: (before.get(name, "none"), now.get(name, "none")) for name in names}
    return [f"{name}: {old}, then {new}" for name, (old, new) in pairs.items() if old != new]


def _tensor_lines(first: Run, second: Run, name: str) -> Iterator[str]:
    paths = [run.folder / name for run in (first, second)]
    there = [path.is_file() for path in paths]
    if not any(there):
        return
    if not all(there):
        yield f"{name}: {'gone' if there[0] else 'new'}"
        return
    before, now = (read_tensors(path, "run") for path in paths)
    if {key: x.shape for key, x in before.items()} != {key: x.shape for key, x in now.items()}:
        yield f"{name}: of other shapes"
        return
    apart = [key for key, x in before.items() if not torch.equal(x, now[key])]
    if apart:
        most = max((before[key].double() - now[key].double()).abs().max().item() for key in apart)
        yield f"{name}: {len(apart)} of {len(before)} tensors differ, by at most {most:.3g}"


def _score_lines(first: Run, second: Run) -> Iterator[str]:
    before, now = (without_seconds(run.scores) for run in (first, second))
    if before is None or now is None:
        if before is not now:
            yield "evaluation.json: " + ("new" if before is None else "gone")
        return
    for what, old, new in _pairs(before, now):
        if old != new:
            place = "within" if old.low <= new.value <= old.high else "outside"
            yield f"{what}: {old}, then {new}, {place} the interval"
    for name in sorted({*before, *now} - {*COMPARED}):
        if before.get(name) != now.get(name):
            yield f"{name} in evaluation.json differs"


def without_seconds(scores: Any) -> Any:
    """Leave out how long it took, of the plain scores inside as well.

    Examples
    --------
    >>> without_seconds({"queries": 3, "seconds": 0.2, "with_same_group": {"queries": 3, "seconds": 0.1}})
    {'queries': 3, 'with_same_group': {'queries': 3}}
    """
    if not isinstance(scores, dict):
        return scores
    return {name: without_seconds(value) for name, value in scores.items() if name != "seconds"}


def _pairs(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Estimate, Estimate]]:
    """Yield the name of each score of the first run, and what both say."""
    nothing = {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    for part in COMPARED:
        for metric, old in (before[part] or {}).items():
            yield f"{part} {metric}", Estimate(**old), Estimate(**(now[part] or {}).get(metric, nothing))


def _all_within(before: dict[str, Any] | None, now: dict[str, Any] | None) -> bool:
    if before is None or now is None:
        return False
    return all(old.low <= new.value <= old.high for _, old, new in _pairs(before, now))
