"""Several runs as one model: a projection of their embeddings, or the mean of their weights."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch.optim.swa_utils import AveragedModel

from orthoproxy.core.environment import DATA
from orthoproxy.core.errors import InputError
from orthoproxy.data.table import evaluation_images, select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation.evaluate import mean_scores
from orthoproxy.export.onnx_export import TOLERANCE
from orthoproxy.models.encoder import Encoder
from orthoproxy.models.merged import MergedEncoder
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.evaluate import evaluate_run, load_table, write_report
from orthoproxy.runs.model_card import license_of
from orthoproxy.runs.run_folder import RunFolder
from orthoproxy.training.initialization import pca_projection, second_moment


def merge_runs(runs: Sequence[RunFolder], out: Path, dim: int | None, device: str, workers: int) -> dict[str, Any]:
    """Merge runs into `out`, a run like the first: embeddings projected to `dim`, or, if that is None, mean weights."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("exists", field="out", path=out, expected="a new or empty folder")
    average = dim is None
    models = [run.load_model(device) for run in runs]
    _require_alike(runs, models, average)
    table = load_table(runs[0])
    images, training = evaluation_images(table, "validation"), select_split(table, "train")["path"].tolist()
    if average and images.empty:
        raise InputError("needs validation classes, and the first run has none", field="soup")
    model = average_weights(models) if dim is None else project_embeddings(models, training, dim, workers)
    changes = {} if average else {"encoder.embedding_dim": dim, "encoder.freeze": False}
    kind = "1 backbone, the mean of the weights of" if average else f"{len(runs)} backbones, projected embeddings of"
    names = ", ".join(f"{run.folder.name} ({x.encoder.name})" for run, x in zip(runs, models, strict=True))
    merged = f"{kind} {names}; {sum(x.numel() for x in model.encoder.parameters()) / 1e6:.1f} million parameters"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        written, config = RunFolder(Path(folder) / out.name, runs[0].overrides), runs[0].config.with_overrides(changes)
        written.start(config, {**config.environment, "merged": merged}, runs[0].unreadable)
        shutil.copytree(runs[0].baseline, written.baseline)
        same_license = len({license_of(x.card) for x in models}) == 1
        model.save(written.folder / "model", models[0].card if same_license else "")
        images = evaluation_images(table, "test") if images.empty else images
        scores = _check([str(run.folder) for run in runs], models, model, written, images, workers)
        write_report(written, evaluate_run(written, device))
        written.folder.replace(out)
    return {"merged": merged, "validation": scores}


def _require_alike(runs: Sequence[RunFolder], models: Sequence[Embedder], average: bool) -> None:
    """Raise InputError for a run that cannot be merged with the first."""
    of_first: dict[str, Any] = {}
    for run, model in zip(runs, models, strict=True):
        encoder, config, start = model.encoder, run.config, run.config.initialization.model_dump()
        if isinstance(encoder, MergedEncoder):
            raise InputError("merged already", field="others", path=run.folder, hint="merge its runs with the others")
        # test classes or images of one run could be training classes or images of another
        values = {"classes": ", ".join(model.classes), "data": config.environment.get(DATA)}
        values |= {"encoder.image_size": encoder.image_size, "data.resize": model.resize}
        if average:
            values |= {"encoder": (encoder.name, encoder.pooling, encoder.embedding_dim, config.encoder.init_from)}
            values |= {"baseline": Embedder.load(run.baseline).identity, "initialization": start}
            values |= {"training.seed": config.training.seed if "random" in start.values() else None}
        of_first = of_first or values
        for field, value in values.items():
            if value != of_first[field]:
                given, wanted = (textwrap.shorten(str(x), 80) for x in (value, of_first[field]))
                raise InputError(given, field=field, path=run.folder, expected=f"{wanted}, as in {runs[0].folder}")


def project_embeddings(models: Sequence[Embedder], training: Sequence[str], dim: int, workers: int = 0) -> Embedder:
    """Project concatenated embeddings onto their principal components, without whitening."""
    encoder = MergedEncoder([cast(Encoder, x.encoder) for x in models], dim)
    if dim > encoder.feature_dim:
        raise InputError(str(dim), field="dim", expected=f"at most {encoder.feature_dim}, the sum of the runs'")
    model = Embedder(encoder, models[0].resize, models[0].classes, device=models[0].device)
    batches = model.iterate_features(training, workers=workers, progress="embed training images")
    moment = sum((second_moment(rows.cpu()) for rows in batches), torch.zeros(()))
    encoder.projection.weight.data.copy_(pca_projection(moment, dim, whitening=0.0))
    return model


def average_weights(models: Sequence[Embedder]) -> Embedder:
    """Return the mean of models of one architecture, and of their proxies if all have some."""
    average = AveragedModel(models[0].encoder, use_buffers=True)
    for model in models:
        average.update_parameters(model.encoder)
    proxies = [x.proxies for x in models if x.proxies is not None]
    proxies = torch.stack(proxies).mean(dim=0) if len(proxies) == len(models) else None
    return Embedder(cast(Encoder, average.module), models[0].resize, models[0].classes, proxies, models[0].device)


def _check(
    places: list[str], models: list[Embedder], model: Embedder, written: RunFolder, images: pd.DataFrame, workers: int
) -> dict[str, float] | None:
    """Compare the written model with the runs: its embeddings, and its MAP@R on validation images, if there are any."""
    paths, scoring = images["path"].tolist(), make_scoring(written.config.evaluation)
    parts = [x.embed(paths, workers=workers, progress=f"embed, {y}") for x, y in zip(models, places, strict=True)]
    merged = written.load_model(model.device).embed(paths, workers=workers, progress="embed, merged")
    concatenated = isinstance(model.encoder, MergedEncoder)
    if concatenated:
        expected = model.embed(torch.from_numpy(np.concatenate(parts, axis=1)))
        if not (difference := np.abs(merged - expected).max(initial=0.0)) <= TOLERANCE:
            problem = f"the merged embeddings differ from those of the runs by up to {difference:.2g}"
            raise InputError(problem, expected=f"at most {TOLERANCE:g}")
    if not (images["split"] == "validation").any():  # nothing is chosen by test classes
        return None
    *of_runs, score = (mean_scores(x, images, scoring)["map@r"] for x in (*parts, merged))
    best, place = max(zip(of_runs, places, strict=True))
    if not concatenated and not score > best:
        problem, expected = f"MAP@R {100 * score:.2f} on validation images", f"above {100 * best:.2f}, as {place}"
        raise InputError(problem, field="soup", expected=expected, hint="keep that run, or merge with --dim")
    return dict(zip([*places, "merged"], [*of_runs, score], strict=True))
