"""Export a run's model to ONNX, with the model folder and its card beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from orthoproxy.core.errors import InputError
from orthoproxy.core.folder_lock import folder_lock
from orthoproxy.data.table import evaluation_images, rank_by_hash, select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Evaluation, calibrate_no_match
from orthoproxy.export.onnx_export import Exported, export_onnx
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.evaluate import FALSE_MATCH_RATE, load_table, write_card
from orthoproxy.runs.model_card import license_of
from orthoproxy.runs.run_folder import RunFolder

CALIBRATION_IMAGES = 256  # for int8


def export_run(
    place: str | Path,
    out: Path,
    int8: bool = False,
    false_match_rate: float = FALSE_MATCH_RATE,
    license: str | None = None,
    overrides: Mapping[str, Any] = {},
    workers: int = 0,
) -> Exported:
    """Export a run's model to the file `out`, checked on the run's images, and write `model/` beside it."""
    run = RunFolder.find(place, overrides)
    if run is None:
        raise InputError("not a run folder", path=place, hint="give a run, whose images check the exported model")
    model = Embedder.load(run.folder)
    folder = out.parent / "model"
    own = folder.resolve() == (run.folder / "model").resolve()
    if not own:
        _require_same_model(folder, model)
    table = load_table(run)
    test, validation = (evaluation_images(table, split) for split in ("test", "validation"))
    training = select_split(table, "train")["path"].tolist()
    scoring, license = make_scoring(run.config.evaluation), license or license_of(model.card)
    with folder_lock(run.folder) if own else nullcontext():
        exported = export_onnx(
            model,
            out,
            test=test,
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
        if int8 and len(validation):  # the threshold of the original, which is what the model folder holds
            embeddings = model.embed(validation["path"].tolist(), workers=workers)
            matching = calibrate_no_match(embeddings, validation, scoring)
        if not own:
            model.save(folder)
        evaluation = Evaluation.from_dict(run.scores) if run.scores else None
        write_card(run.config, folder, evaluation, matching, false_match_rate, license)
    return exported


def _require_same_model(folder: Path, model: Embedder) -> None:
    """Raise InputError if the folder holds a different model or other files."""
    if not folder.exists():
        return
    try:
        identity = Embedder.load(folder, with_proxies=False).identity
    except InputError:
        identity = None if any(folder.iterdir()) else model.identity
    if identity != model.identity:
        raise InputError("holds another model or other files", path=folder, hint="choose a file in another folder")
