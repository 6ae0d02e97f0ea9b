"""Compare two runs: configuration, data, environment, weights, and scores on the first run's test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from orthoproxy.core.environment import DATA
from orthoproxy.core.errors import InputError
from orthoproxy.data.table import evaluation_images
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Estimate, score
from orthoproxy.models.weights import read_tensors
from orthoproxy.runs.device import evaluation_precision, make_scoring
from orthoproxy.runs.evaluate import load_table
from orthoproxy.runs.run_folder import WITHOUT_EFFECT, RunFolder

IRRELEVANT = {"data.root", "data.csv", *WITHOUT_EFFECT}  # options that do not change results
TENSOR_FILES = ("baseline/model.safetensors", "model/model.safetensors", "model/proxies.safetensors")


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs, as pairs of the first and the second."""

    # of identical weights: equal; if the interval of each difference of scores contains 0: within interval
    verdict: Literal["equal", "within interval", "different"]
    configuration: dict[str, tuple[Any, Any]]
    data: dict[str, tuple[str, str]]
    environment: dict[str, tuple[str, str]]
    weights: dict[str, tuple[int, float | None]]  # by file: tensors that differ, and by how much; None: other shapes
    scores: dict[str, Estimate] | None  # second minus first run
    note: str | None = None  # why there are no scores


def compare_runs(first: RunFolder, second: RunFolder, device: str, workers: int) -> Comparison:
    """Compare two trained runs."""
    for run in (first, second):
        if not run.has_model:
            raise InputError("no trained model", path=run.folder, hint="finish the run with --resume")
    configuration = _differing(first.config.flatten(), second.config.flatten())
    configuration = {key: pair for key, pair in configuration.items() if key not in IRRELEVANT}
    environment = _differing(first.config.environment, second.config.environment)
    data = {DATA: environment.pop(DATA)} if DATA in environment else {}
    weights = {name: change for name in TENSOR_FILES if (change := _tensor_difference(first, second, name))}
    scores, note = None, None
    if any(name.startswith("model/") for name in weights):
        scores, note = _score_difference(first, second, device, workers)
        within = scores is not None and all(x.low <= 0 <= x.high for x in scores.values())
        verdict = "within interval" if within else "different"
    else:
        verdict, note = "equal", "the weights are identical, so the scores are too"
    return Comparison(verdict, configuration, data, environment, weights, scores, note)


def _differing(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (first.get(key), second.get(key)) for key in sorted({*first, *second})}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _tensor_difference(first: RunFolder, second: RunFolder, name: str) -> tuple[int, float | None] | None:
    """Return how many tensors of a file differ, and by at most how much; None if none does."""
    paths = [run.folder / name for run in (first, second)]
    tensors = [read_tensors(path, "run") if path.is_file() else {} for path in paths]
    shapes = [{key: x.shape for key, x in values.items()} for values in tensors]
    if reshaped := _differing(*shapes):
        return len(reshaped), None
    changes = [(x.double() - tensors[1][key].double()).abs().max().item() for key, x in tensors[0].items()]
    changed = [change for change in changes if change != 0]  # NaN differs
    return (len(changed), max(changed)) if changed else None


def _score_difference(
    first: RunFolder, second: RunFolder, device: str, workers: int
) -> tuple[dict[str, Estimate] | None, str | None]:
    """Embed the first run's test images with both models; return the paired differences, or why there are none."""
    table = evaluation_images(load_table(first), "test")
    if table.empty:
        return None, "no scores, since the first run has no test images"
    models = [Embedder.load(run.folder, device, with_proxies=False) for run in (first, second)]
    trained_on = set(models[1].classes) - set(models[0].classes)
    if leaked := trained_on & set(table["label"]):
        return None, f"no scores, since the second run was trained on {len(leaked)} test classes of the first"
    embeddings = []
    for model, run in zip(models, (first, second), strict=True):
        words, precision = f"embed, {run.folder}", evaluation_precision(device, run.config.training.precision)
        embeddings.append(model.embed(table["path"].tolist(), workers=workers, progress=words, precision=precision))
    evaluation = score(embeddings[1], embeddings[0], table, make_scoring(first.config.evaluation))
    return evaluation.difference, None
