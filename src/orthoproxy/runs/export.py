"""What `orthoproxy export` does: a run's model as ONNX, and the model folder with its card beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from orthoproxy.runs import build as builders
from orthoproxy.runs.model_card import license_of, model_card, no_match_words
from orthoproxy.data import select_split, rank_by_hash
from orthoproxy.embedding.embedder import Embedder, write_threshold
from orthoproxy.core.errors import InputError
from orthoproxy.evaluation import Evaluation, NoMatchCalibration, calibrate_no_match
from orthoproxy.core.files import atomic_write, exclusive
from orthoproxy.runs.evaluate import FALSE_MATCH_RATE, images_of
from orthoproxy.runs.run_folder import Run
from orthoproxy.export.onnx_export import Exported, export_onnx, find_exports

CALIBRATION_IMAGES = 256


def export_run(
    folder: str | Path,
    out: Path,
    int8: bool = False,
    false_match_rate: float = FALSE_MATCH_RATE,
    license: str | None = None,
    root: str | None = None,
    path: str | None = None,
    workers: int = 0,
) -> Iterator[str]:
    """Write a run's model as ONNX, checked on the run's own images, and the model folder beside it.

    Parameters
    ----------
    folder
        Of the run, or its model folder.
    out
        The file.
    int8, false_match_rate
        As in `search.export_onnx`.
    license
        Of the model; None for what its card says.
    root, path
        Where the run's images are now, if they were moved.
    workers
        Processes that read images.

    Yields
    ------
    str
        What was written and how it was checked, line by line.

    Raises
    ------
    InputError
        If there is no such run, the model does not pass, or something else lies where it is to go.

    Examples
    --------
    >>> list(export_run("nowhere", Path("model.onnx")))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: export: nowhere is no run folder; its test images check what is exported
    """
    run = _run_of(folder)
    model = Embedder.load(run.folder)
    beside = out.parent / "model"
    _require_free(beside, model, run)
    table = images_of(run, root, path)
    validation, training = select_split(table, "validation"), select_split(table, "train")["path"].tolist()
    scoring, license = builders.make_scoring(run.config.evaluation), license or license_of(model.card)
    with exclusive(run.folder) if _is_own(beside, run) else nullcontext():
        exported = export_onnx(
            model,
            out,
            test=select_split(table, "test"),
            validation=validation,
            training=rank_by_hash(training, salt="calibration")[:CALIBRATION_IMAGES],
            int8=int8,
            false_match_rate=false_match_rate,
            license=license,
            scoring=scoring,
            workers=workers,
            progress=True,
        )
        matching = exported.matching
        if int8 and len(validation):  # the model folder is of the original, which has a threshold of its own
            matching = calibrate_no_match(model.embed(validation["path"].tolist(), workers=workers), validation, scoring)
        words = no_match_words(matching, false_match_rate) if matching else ""
        card = model_card(run.config, _scores_of(run), license, words, _table_of(beside.parent, model.identity))
        _put_beside(beside, model, run, card, matching, false_match_rate)
    yield from _told(exported, false_match_rate)
    yield f"{beside}: the model and its card"


def _run_of(folder: str | Path) -> Run:
    run = Run.of(folder)
    if run is None:
        raise InputError(f"export: {folder} is no run folder; its test images check what is exported")
    return run


def _put_beside(
    folder: Path, model: Embedder, run: Run, card: str, matching: NoMatchCalibration | None, false_match_rate: float
) -> None:
    """Write the model folder with its card and threshold; of the run's own, only these change."""
    threshold = matching.threshold(false_match_rate) if matching else None
    if _is_own(folder, run):
        write_threshold(folder, threshold, false_match_rate)
        atomic_write(folder / "README.md", card)
    else:
        model.threshold = threshold
        model.false_match_rate = None if threshold is None else false_match_rate
        model.save(folder, card)


def _is_own(folder: Path, run: Run) -> bool:
    return folder.resolve() == (run.folder / "model").resolve()


def _require_free(folder: Path, model: Embedder, run: Run) -> None:
    """Only the same model may lie where the model folder goes."""
    if _is_own(folder, run) or not folder.exists():
        return
    try:
        there = Embedder.load(folder, with_proxies=False).identity
    except InputError:
        there = None if any(folder.iterdir()) else model.identity
    if there != model.identity:
        raise InputError(f"--out: {folder} is there and holds something else; give a file in another folder")


def _scores_of(run: Run) -> Evaluation | None:
    return Evaluation.from_dict(run.scores) if run.scores else None


def _table_of(folder: Path, identity: str) -> str:
    """List the files in a folder that were exported from a model."""
    rows = [f"| `{path.name}` | {about.precision} | {about.checked} |" for path, about in find_exports(folder, identity)]
    return "\n".join(["## Exported files", "", "| file | precision | check |", "|---|---|---|", *rows])


def _told(exported: Exported, false_match_rate: float) -> Iterator[str]:
    about = exported.metadata
    yield f"{exported.path}: {about.precision}, {exported.path.stat().st_size / 1e6:.1f} MB, model {about.identity}"
    yield f"checked: {about.checked}"
    matching = exported.matching
    if matching is None:
        yield "note: no threshold: the run kept no validation classes apart that could tell a match from none"
    elif about.threshold is None:
        yield (
            f"note: no threshold: a false-match rate of {false_match_rate:g} takes {1 / false_match_rate:.0f} queries "
            f"of validation classes, and there are {len(matching.other)}"
        )
    else:
        yield no_match_words(matching, false_match_rate)
