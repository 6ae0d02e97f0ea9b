"""Train a run: from a configuration to a run folder."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric, seed_everything
from lightning_fabric.loggers.logger import Logger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from orthoproxy.core.distributed import (
    broadcast_,
    broadcast_object,
    broadcast_rows,
    gather_objects,
    gather_to_main,
    init_process_group,
    is_main,
    local_slice,
    process_count,
    process_index,
    raise_together,
    split_sizes,
)
from orthoproxy.core.environment import file_versions
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import exclusive
from orthoproxy.data import drop_rows, find_unreadable, select_split
from orthoproxy.data.loading import UnreadableImageError
from orthoproxy.embedding.embedder import Embedder, Images
from orthoproxy.evaluation import mean_scores, require_scorable
from orthoproxy.losses import Objective, simplex_near
from orthoproxy.models import Encoder, load_weights
from orthoproxy.runs import build as builders
from orthoproxy.runs.config import Config, with_absolute_paths
from orthoproxy.runs.evaluate import judge, split_together
from orthoproxy.runs.fabric import make_fabric
from orthoproxy.runs.model_card import untrained_card
from orthoproxy.runs.run_folder import Run
from orthoproxy.training import Checkpoints, class_means, fit, make_optimizer, principal_weight


@contextmanager
def suggesting_to_skip() -> Iterator[None]:
    """Add to the error of an unreadable image that a run can skip it."""
    try:
        yield
    except UnreadableImageError as error:
        raise replace(error, hint=f"{error.hint}, or set data.on_error to skip") from error


@suggesting_to_skip()
def train(config: Config, out: str | Path | None = None, resume: bool = False, judged: bool = True) -> Run:
    """Train, judge on unseen classes beside the untrained encoder, and write the run folder.

    Started by torchrun, its processes train together; each calls this, and the main one writes and prints.

    Parameters
    ----------
    config
        See `config.Config`; `read_config` makes one from a recipe.
    out
        The run folder; None for ``runs/`` and the name of the data.
    resume
        Go on from the folder's last checkpoint, if it has one; a finished run is returned as it is.
    judged
        False stops at the model: no test class is judged, and there are no scores and no report until `judging.judge`
        writes them, or a call with `resume`.

    Returns
    -------
    Run
        The folder, with model and, if judged, scores and report.

    Raises
    ------
    InputError
        If something in the configuration or the data cannot be used, or `out` holds a run already.
    Interrupted
        After Ctrl-C or SIGTERM, with the run saved.
    WorkerLost
        If a process that reads images was killed, with the run saved.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy.runs import config as c
    >>> root = Path(tempfile.mkdtemp())
    >>> for colour in ["red", "green", "blue", "gold", "pink"]:
    ...     (root / "images" / colour).mkdir(parents=True)
    ...     for shade in range(3):
    ...         Image.new("RGB", (32 + shade, 32), colour).save(root / "images" / colour / f"{shade}.png")
    >>> run = train(
    ...     Config(
    ...         data=c.Data(name="folder", root=str(root / "images"), test_fraction=0.4, workers=0),
    ...         encoder=c.Encoder(name="deit_tiny_patch16_224", weights="none", embedding_dim=8, image_size=32),
    ...         training=c.Training(epochs=1, batch_size=4, precision="32-true"),
    ...     ),
    ...     root / "run",
    ... )
    >>> sorted(path.name for path in run.folder.iterdir() if path.is_file())
    ['config.yaml', 'evaluation.json', 'metrics.jsonl', 'report.html']
    """
    config = with_absolute_paths(config.check())
    run = Run(out or Path("runs") / config.data.name)
    run.check(config, resume)
    if run.finished or (run.trained and not judged):
        return run
    fabric = make_fabric(config.training, run.folder)
    init_process_group(fabric.device)
    fabric.launch()
    with exclusive(run.folder, "out"), _deterministic(config.training.deterministic):
        with raise_together():
            if is_main():
                run.check(config, resume)  # again, as another job may have been here since
        return _train(fabric, config, run, judged)


def _train(fabric: Fabric, config: Config, run: Run, judged: bool) -> Run:
    """Train where nobody else writes."""
    if broadcast_object(run.finished or (run.trained and not judged)):
        return run
    if broadcast_object(run.trained):
        judge(run, fabric.device)
        return run
    table = split_together(config)
    unreadable = _unreadable(run, config, table)
    with raise_together():
        if unreadable is not None:
            table = drop_rows(table, unreadable)
        _check_images(config, table)
    seed_everything(config.training.seed, verbose=False)

    # what is trained
    images = select_split(table, "train")
    classes = sorted(set(images["label"]))
    number = {label: position for position, label in enumerate(classes)}
    paths, labels = images["path"].tolist(), [number[label] for label in images["label"]]
    with raise_together():
        encoder = builders.make_encoder(config).to(fabric.device)
        objective = builders.make_objective(config, len(classes), encoder.embedding_dim).to(fabric.device)
    rates = config.training.rates
    optimizer = make_optimizer(
        encoder, objective, rates.backbone, rates.projection, rates.proxies, config.training.weight_decay
    )

    # where it starts: where it was left, or from the data
    frozen, position = config.encoder.freeze, None
    checkpoints = Checkpoints(run.checkpoints, encoder.projection if frozen else encoder, objective, optimizer)
    resumed = broadcast_object(run.has_state)
    if resumed:
        if frozen:
            _take_backbone(encoder, run)
        position = checkpoints.load("last")
        if is_main():
            run.drop_records_after(position.step)
    else:
        with raise_together():
            if is_main():
                load_weights(encoder, config.encoder.weights)
                run.start(config, table, unreadable)
        _require_common(run)
        broadcast_(encoder.state_dict().values())
    untrained = Embedder(builders.make_untrained(encoder), config.data.resize, device=fabric.device)
    with raise_together():
        views = builders.fixed_views(config, untrained, table["path"].tolist())
        kept = views(paths)
    if not resumed:
        _start(run, encoder, objective, untrained, kept, labels, classes)
        if objective.sharded is None:
            broadcast_(objective.state_dict().values())
        if process_index():  # drop-out and the like draw differently in each process
            seed_everything(config.training.seed + process_index(), verbose=False)
    if not frozen:
        _warn_about_batchnorm(encoder)

    # the loop, and the choice of the checkpoint
    loader, sampler = builders.make_loader(config, paths, labels, kept if isinstance(kept, Tensor) else None)
    chosen_on, before = select_split(table, config.training.select_on), file_versions(paths)
    with _finalized(fabric.loggers):
        fit(
            fabric,
            encoder,
            objective,
            optimizer,
            loader,
            sampler,
            builders.make_plan(config.training, config.encoder.freeze_epochs, len(sampler)),
            checkpoints,
            log=lambda record: _log(run, fabric, record),
            validate=(lambda: _validate(config, encoder, chosen_on, views)) if len(chosen_on) else None,
            position=position,
        )
    _note_changes(paths, before)
    if broadcast_object(checkpoints.path("best").is_file()):
        position = checkpoints.load("best", model_only=True)
        _say(f"kept epoch {position.best_epoch}, the best on {config.training.select_on} classes")

    # the result
    proxies = _all_class_vectors(objective)
    with raise_together():
        if is_main():
            Embedder(encoder, config.data.resize, classes, proxies).save(run.folder / "model")
    if judged:
        judge(run, fabric.device)
    return run


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Have PyTorch take kernels that give the same bits each time, or refuse where there is none."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for then
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


def _note_changes(paths: list[str], before: list[tuple[int, int]]) -> None:
    """Say which images are not those any more that the training began with; it has perhaps seen both."""
    changed = [path for path, same in zip(paths, (before == file_versions(paths)).all(axis=1), strict=True) if not same]
    if changed:
        _say(f"note: images that changed or went away during the training: {len(changed)}, for example {changed[0]}")


def _unreadable(run: Run, config: Config, table: pd.DataFrame) -> pd.DataFrame | None:
    """The images to leave out, where that is wanted: as the run began, or looked for now."""
    if config.data.on_error == "raise":
        return None
    unreadable = run.unreadable if broadcast_object(run.has_state) else _find_unreadable(config, table)
    if unreadable is not None and len(unreadable):
        first = f"for example {unreadable['path'][0]}: {unreadable['reason'][0]}"
        _say(f"{config.data.name}: unreadable images left out: {len(unreadable)}, {first}")
    return unreadable


def _find_unreadable(config: Config, table: pd.DataFrame) -> pd.DataFrame:
    """Look for them with all processes."""
    with raise_together():
        found = find_unreadable(table.iloc[local_slice(split_sizes(len(table)))], config.data.workers)
    return pd.concat(gather_objects(found), ignore_index=True)


def _say(line: str) -> None:
    if is_main():
        print(line, file=sys.stderr)


def _check_images(config: Config, table: pd.DataFrame) -> None:
    """Find out before the training what would spoil the judgement after it."""
    counts = {name: select_split(table, name) for name in ("train", "validation", "test")}
    described = [f"{name} {len(set(x['label']))} classes, {len(x)} images" for name, x in counts.items() if len(x)]
    _say(f"{config.data.name}: {'; '.join(described)}")
    sizes = table["label"].value_counts()
    if single := sorted(sizes.index[sizes == 1]):
        _say(f"note: classes with one image only: {len(single)}, for example {single[0]!r}")
    missing = [path for path in table["path"] if not Path(path).is_file()]
    if missing:
        raise InputError(
            f"data: no file {missing[0]} ({len(missing)} such); check data.root and data.path, "
            "or set data.on_error to skip"
        )
    judged = {config.training.select_on, "test"} - {"none"}
    for name in judged:
        if len(counts[name]):
            require_scorable(counts[name], builders.make_scoring(config.evaluation), f"{name} classes")
    if config.encoder.weights.startswith("run:"):
        earlier = set(Embedder.load(config.encoder.weights.removeprefix("run:"), with_proxies=False).classes)
        known = sorted(earlier & set().union(*(counts[name]["label"] for name in judged)))
        if known:
            raise InputError(
                f"encoder.weights: that run was trained on {known[0]!r} ({len(known)} such classes), which are to be "
                "judged as unseen here;\ngive them to train (column split of a CSV file), or start from other weights"
            )


def _start(
    run: Run,
    encoder: Encoder,
    objective: Objective,
    untrained: Embedder,
    images: Images,
    labels: list[int],
    classes: list[str],
) -> None:
    """Keep the untrained encoder, and set projection and proxies from the training images.

    What another run brought along (``run:`` weights) stays, unless a simplex is wanted.
    """
    config, device = run.config, encoder.mean.device
    options, workers, weights = config.initialisation, config.data.workers, config.encoder.weights
    with raise_together():
        if is_main():
            untrained.save(run.folder / "baseline", untrained_card(config))
    continued = weights.startswith("run:")
    if options.projection == "principal" and isinstance(encoder.projection, nn.Linear) and not continued:
        features = untrained.embed_distributed(images, workers=workers, progress="principal directions")
        with raise_together():
            weight = principal_weight(torch.from_numpy(features), encoder.embedding_dim, options.whitening)
        encoder.projection.weight.data.copy_(weight)
        broadcast_([encoder.projection.weight])
    if options.proxies != "random" and objective.class_vectors() is not None:
        embedder = Embedder(encoder, config.data.resize, device=device)
        if objective.sharded is not None:
            classes = classes[objective.sharded.classes.start : objective.sharded.classes.stop]
            means = _own_class_means(embedder, images, labels, objective.sharded.classes, workers)
        else:
            embeddings = embedder.embed_distributed(images, workers=workers, progress="class means")
            means = class_means(torch.from_numpy(embeddings), torch.tensor(labels), len(classes))
        if options.proxies == "simplex":
            means = simplex_near(means)
        elif continued:
            means = _with_known_proxies(weights, means, classes)
        objective.set_class_vectors(means)


def _own_class_means(embedder: Embedder, images: Images, labels: list[int], classes: range, workers: int) -> Tensor:
    """The means of the classes that this process keeps; no process holds all embeddings."""
    sizes = split_sizes(len(images), unit=128)
    with raise_together():
        own = embedder.embed(images[local_slice(sizes)], 128, workers, "class means")
    sums = torch.zeros(len(classes), own.shape[1])
    for first, rows in broadcast_rows(torch.from_numpy(own), sizes):
        numbers = torch.tensor(labels[first : first + len(rows)]) - classes.start
        here = (numbers >= 0) & (numbers < len(classes))
        sums.index_add_(0, numbers[here], rows[here])
    return F.normalize(sums, dim=1)


def _all_class_vectors(objective: Objective) -> Tensor | None:
    """The class vectors to be saved, in the main process."""
    vectors = objective.class_vectors()
    if vectors is None or objective.sharded is None:
        return None if vectors is None else vectors.detach()
    return gather_to_main(vectors.detach(), objective.sharded.sizes)


def _require_common(run: Run) -> None:
    """Make sure that all processes see the folder which the main one has just made."""
    with raise_together():
        if not run.exists:
            raise InputError(
                f"--out: {socket.gethostname()} does not see {run.folder.resolve()}, which the main process has made; "
                "give a folder that all machines share"
            )


def _warn_about_batchnorm(encoder: Encoder) -> None:
    live = any(isinstance(module, _BatchNorm) and module.training for module in encoder.train().modules())
    if live and process_count() > 1:
        _say(
            f"note: batch-norm layers take their statistics from each of the {process_count()} processes' own images, "
            "so the result depends on the number of processes; encoder.freeze_batchnorm true avoids it"
        )


def _with_known_proxies(weights: str, means: Tensor, classes: list[str]) -> Tensor:
    """Replace the means of classes that the earlier run knew by its proxies."""
    earlier = Embedder.load(weights.removeprefix("run:"))
    if earlier.proxies is not None:
        rows = {label: row for row, label in enumerate(earlier.classes)}
        known = [number for number, label in enumerate(classes) if label in rows]
        means[known] = earlier.proxies[[rows[classes[number]] for number in known]].to(means.dtype)
    return means


def _take_backbone(encoder: Encoder, run: Run) -> None:
    """Take the backbone from the run's untrained encoder; checkpoints do not hold what is not trained."""
    with raise_together():
        untrained = Embedder.load(run.folder / "baseline")
        encoder.backbone.load_state_dict(untrained.encoder.backbone.state_dict())


def _validate(
    config: Config, encoder: Encoder, table: pd.DataFrame, views: Callable[[list[str]], Images]
) -> dict[str, float]:
    embedder = Embedder(encoder, config.data.resize, device=encoder.mean.device)
    embeddings = embedder.embed_distributed(views(table["path"].tolist()), workers=config.data.workers)
    device = str(encoder.mean.device)
    scoring = replace(builders.make_scoring(config.evaluation), nmi=False, device=device, shared=True)
    return broadcast_object(mean_scores(embeddings, table, scoring))  # to the last bit, or the processes would part ways


def _log(run: Run, fabric: Fabric, record: dict[str, Any]) -> None:
    run.log(record)
    fabric.log_dict({name: value for name, value in record.items() if name != "step"}, step=record["step"])


@contextmanager
def _finalized(trackers: Sequence[Logger]) -> Iterator[None]:
    """Tell trackers how it ended."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for tracker in trackers:
            tracker.finalize(status)
