"""Train a run: from a configuration to a run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from lightning_fabric import seed_everything
from lightning_fabric.loggers.logger import Logger
from torch import Tensor, nn
from torch.nn import functional as F

from orthoproxy.core.distributed import (
    all_reduce_sum,
    broadcast_,
    broadcast_object,
    broadcast_rows,
    gather_to_main,
    is_main,
    local_slice,
    process_index,
    raise_together,
    split_sizes,
)
from orthoproxy.core.environment import DATA, environment, file_versions, fingerprint
from orthoproxy.core.errors import field_prefix
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.runs.config import Config
from orthoproxy.runs.dataset import require_outside, warn
from orthoproxy.runs.device import launch_fabric
from orthoproxy.runs.evaluate import evaluate_run, write_report
from orthoproxy.runs.experiment import Experiment
from orthoproxy.runs.model_card import baseline_card
from orthoproxy.runs.run_folder import RunFolder
from orthoproxy.training import fit, pca_projection, second_moment
from orthoproxy.training.checkpoint import TrainingState
from orthoproxy.training.initialization import class_sums

EMBED_BATCH_SIZE = 128  # images embedded at a time


def train(config: Config, out: str | Path | None = None, resume: bool = False, evaluate: bool = True) -> RunFolder:
    """Train, evaluate the model and the untrained encoder on the test images, and write the run folder.

    Under torchrun, each process calls this; the main process writes and prints.

    Parameters
    ----------
    config
        From `read_config` or `Config`.
    out
        The run folder; None for ``runs/`` and the name of the dataset.
    resume
        Continue from the folder's last checkpoint, if there is one; a finished run is returned as it is.
    evaluate
        False stops after training: test classes are not evaluated and there is no report.

    Raises
    ------
    InputError
        If the configuration or the data cannot be used, or `out` holds a run already or lies among the images.
    DivergedError
        If training diverged; the last checkpoint is finite.
    Interrupted
        After Ctrl-C or SIGTERM, with the run saved.
    WorkerLost
        If a data loading process was killed, with the run saved.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for color in ["red", "green", "blue", "gold", "pink"]:
    ...     (root / "images" / color).mkdir(parents=True)
    ...     for shade in range(3):
    ...         Image.new("RGB", (32 + shade, 32), color).save(root / "images" / color / f"{shade}.png")
    >>> config = Config().with_overrides({
    ...     "data": {"name": "folder", "root": str(root / "images"), "test_fraction": 0.4, "workers": 0},
    ...     "encoder": {"name": "deit_tiny_patch16_224", "init_from": "none", "embedding_dim": 8, "image_size": 32},
    ...     "training": {"epochs": 1, "precision": "32-true"},
    ... })
    >>> run = train(config, root / "run")
    >>> sorted(path.name for path in run.folder.iterdir() if path.is_file())
    ['config.yaml', 'evaluation.json', 'metrics.jsonl', 'report.html']
    """
    config = config.with_absolute_paths()
    run = RunFolder(out or Path("runs") / config.data.name)
    require_outside(config.data, out=run.folder)
    fabric = launch_fabric(config.training, run.folder)
    kernels = _deterministic_kernels() if config.training.deterministic else nullcontext()
    table = None
    with run.open(config, resume), kernels:
        if not broadcast_object(run.has_model):
            job = Experiment(config, run, fabric)
            state = job.resume(run) if broadcast_object(run.has_state) else initialize(job, run, config)
            with _finalized(fabric.loggers):
                state = fit(job, state, run)
            _warn_about_changed_images(job)
            save_model(job, run)
            table = job.table
        if evaluate and not broadcast_object(run.has_report):
            write_report(run, evaluate_run(run, fabric.device, table))
    return run


def initialize(job: Experiment, run: RunFolder, config: Config) -> TrainingState:
    """Start the run folder, save the baseline, and initialize projection and proxies from the training images."""
    with raise_together():
        if is_main():
            assert job.file_versions is not None
            data = fingerprint(job.table, job.file_versions)
            run.start(config, {**environment(job.fabric.device), DATA: data}, job.unreadable)
            job.baseline.save(run.baseline, baseline_card(config))
    run.require_shared()
    _initialize_from_data(job, config.encoder.init_from)
    if job.objective.sharded_loss is None:
        broadcast_(job.objective.state_dict().values())
    if process_index():  # dropout and the like must differ between processes
        seed_everything(job.seed + process_index(), verbose=False)
    return TrainingState()


def _initialize_from_data(job: Experiment, init_from: str) -> None:
    """Set the projection from principal components and the proxies from class means, in one pass over the images."""
    initialization, projection = job.initialization, None
    from_run = init_from.startswith("run:")  # keeps its projection, and the proxies of the classes that it knew
    if initialization.projection == "pca" and not from_run and isinstance(job.encoder.projection, nn.Linear):
        projection = job.encoder.projection
    averages = initialization.proxies == "class_means" and job.objective.class_vectors() is not None
    if projection is None and not averages:
        return
    images = job.inputs(job.training_paths)
    sizes = split_sizes(len(images), unit=EMBED_BATCH_SIZE)
    own = images[local_slice(sizes)]  # each process embeds its part; features of others are never gathered
    model = job.embedder(job.encoder) if from_run else job.baseline
    with raise_together():
        embedded = model.embed(own, EMBED_BATCH_SIZE, job.workers, "initialize from data", precision=job.precision)
    features = torch.from_numpy(embedded)
    if projection is not None:
        moment = all_reduce_sum(second_moment(features))
        with raise_together(), field_prefix("encoder"):
            weight = pca_projection(moment, job.encoder.embedding_dim, initialization.whitening)
        projection.weight.data.copy_(weight)
        broadcast_([projection.weight])
    if averages:
        model = job.embedder(job.encoder)
        embeddings = features if from_run else torch.from_numpy(model.embed(features, EMBED_BATCH_SIZE))
        means = _class_means(job, embeddings, sizes)
        if from_run:
            _restore_known_proxies(job, means, Embedder.load(init_from.removeprefix("run:")))
        job.objective.set_class_vectors(means)


def _class_means(job: Experiment, embeddings: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean embedding of each class, of unit length; of this process's classes only if the proxies are sharded."""
    labels, sharded = torch.from_numpy(job.labels), job.objective.sharded_loss
    if sharded is None:
        sums = all_reduce_sum(class_sums(embeddings, labels[local_slice(sizes)], len(job.classes)))
    else:
        sums = torch.zeros(len(sharded.classes), embeddings.shape[1])
        for first, rows in broadcast_rows(embeddings, sizes):
            sums += class_sums(rows, labels[first : first + len(rows)] - sharded.classes.start, len(sums))
    return F.normalize(sums, dim=1)


def _restore_known_proxies(job: Experiment, means: Tensor, earlier: Embedder) -> None:
    """For classes that an earlier run was trained on, replace the mean by that run's proxy."""
    if earlier.proxies is not None:
        sharded = job.objective.sharded_loss
        own = job.classes if sharded is None else job.classes[sharded.classes.start : sharded.classes.stop]
        rows = {label: row for row, label in enumerate(earlier.classes)}
        known = [row for row, label in enumerate(own) if label in rows]
        means[known] = earlier.proxies[[rows[own[row]] for row in known]].to(means.dtype)


def save_model(job: Experiment, run: RunFolder) -> None:
    """Write the model folder: the best checkpoint if one was selected, else the last."""
    if broadcast_object(job.checkpoints.path("best").is_file()):
        state = job.checkpoints.load("best", model_only=True)
        if is_main():
            print(f"selected epoch {state.best_epoch}, best on {job.selection_split} classes", file=sys.stderr)
    vectors = job.objective.class_vectors()
    if vectors is not None:
        vectors = vectors.detach()
        if job.objective.sharded_loss is not None:
            vectors = gather_to_main(vectors, job.objective.sharded_loss.sizes)
    with raise_together():
        if is_main():
            job.final_encoder.merge_lora()
            Embedder(job.final_encoder, job.baseline.resize, job.classes, vectors).save(run.folder / "model")


def _warn_about_changed_images(job: Experiment) -> None:
    """Warn on the main process if images were modified or deleted during training."""
    if job.file_versions is not None:
        paths = job.table["path"].tolist()
        changed = (file_versions(paths) != job.file_versions).any(axis=1).nonzero()[0]
        if len(changed):
            warn(f"{len(changed)} images were modified or deleted during training, for example {paths[changed[0]]}")


@contextmanager
def _deterministic_kernels() -> Iterator[None]:
    """Use kernels that give the same bits each time, or raise where there is none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _finalized(trackers: Sequence[Logger]) -> Iterator[None]:
    """Tell experiment trackers how training ended."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for tracker in trackers:
            tracker.finalize(status)
