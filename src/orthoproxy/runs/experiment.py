"""From a configuration to everything that it decides; nothing below `runs` sees a `Config`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric, seed_everything
from lightning_fabric.loggers.logger import Logger
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from orthoproxy.core.distributed import (
    broadcast_,
    broadcast_object,
    gather_objects,
    init_process_group,
    is_first_of_machine,
    is_main,
    local_slice,
    process_count,
    process_index,
    raise_together,
    split_sizes,
)
from orthoproxy.core.environment import file_versions
from orthoproxy.core.errors import InputError, field_prefix
from orthoproxy.data import (
    BatchSampler,
    CroppableImage,
    TrainingFeatures,
    TrainingImages,
    assign_split,
    cached_images,
    cars_table,
    csv_table,
    cub_table,
    drop_rows,
    evaluation_size,
    find_unreadable,
    folder_table,
    hold_out_validation,
    icons_table,
    inshop_table,
    select_split,
    sop_table,
    training_transform,
)
from orthoproxy.data.loading import loader_options
from orthoproxy.embedding.embedder import Embedder, Images
from orthoproxy.embedding.feature_cache import FrozenFeatures
from orthoproxy.evaluation import Scoring, mean_scores, require_scorable
from orthoproxy.losses import Objective, make_loss, make_miner, make_regularizer
from orthoproxy.models import Encoder, load_weights
from orthoproxy.runs import config as options
from orthoproxy.runs.config import Config, Initialization
from orthoproxy.runs.run_folder import RunFolder
from orthoproxy.training import Checkpoints, FitOptions, TrainingState, lr_factor, make_optimizer

Precision = Literal["32-true", "bf16-mixed"]


@dataclass
class Experiment:
    """A training run, assembled: data, model, objective, optimizer and options."""

    fabric: Fabric
    table: pd.DataFrame  # all images, with their splits
    unreadable: pd.DataFrame | None  # images left out
    file_versions: np.ndarray | None  # sizes and times of change, on the main process
    classes: list[str]
    labels: np.ndarray  # class index of each training image
    inputs: Inputs
    encoder: Encoder
    baseline: Embedder  # the untrained encoder
    objective: Objective
    optimizer: torch.optim.Optimizer
    sampler: BatchSampler
    loader: DataLoader
    checkpoints: Checkpoints
    options: FitOptions
    scoring: Scoring
    initialization: Initialization
    selection_split: str  # whose classes select the best checkpoint
    workers: int
    seed: int

    @classmethod
    def assemble(cls, config: Config, run: RunFolder, fabric: Fabric) -> Experiment:
        """Build everything that the configuration decides, with the initial weights of the encoder."""
        table, unreadable = read_readable_images(config, run)
        versions = check_images(table, unreadable, config)
        seed_everything(config.training.seed, verbose=False)
        training = select_split(table, "train")
        classes = sorted(set(training["label"]))
        labels = pd.Categorical(training["label"], categories=classes).codes.astype(np.int64)

        with raise_together():
            encoder = make_encoder(config.encoder).to(fabric.device)
            objective = make_objective(config.loss, len(classes), encoder.embedding_dim).to(fabric.device)
        _load_initial_weights(encoder, config.encoder, run)
        _warn_about_batchnorm(encoder)
        baseline = Embedder(make_baseline(encoder), config.data.resize, device=fabric.device)
        inputs = make_inputs(config, baseline, table)

        sampler = make_sampler(config, labels)
        loader = make_loader(config, inputs, training["path"].tolist(), labels, sampler, fabric.device)
        lr = config.optimizer.lr
        optimizer = make_optimizer(
            encoder, objective, lr.backbone, lr.projection, lr.proxies, config.optimizer.weight_decay
        )
        trained = encoder.projection if config.encoder.freeze else encoder
        return cls(
            fabric=fabric,
            table=table,
            unreadable=unreadable,
            file_versions=versions,
            classes=classes,
            labels=labels,
            inputs=inputs,
            encoder=encoder,
            baseline=baseline,
            objective=objective,
            optimizer=optimizer,
            sampler=sampler,
            loader=loader,
            checkpoints=Checkpoints(run.checkpoints, trained, objective, optimizer, fabric.device),
            options=make_fit_options(config, len(sampler)),
            scoring=make_scoring(config.evaluation, fabric.device),
            initialization=config.initialization,
            selection_split=config.checkpoint_selection.split,
            workers=config.data.workers,
            seed=config.training.seed,
        )

    def select(self, split: str) -> pd.DataFrame:
        """Return the images of a split."""
        return select_split(self.table, split)

    def embedder(self) -> Embedder:
        """Return the encoder, as it is now, as an embedder."""
        return Embedder(self.encoder, self.baseline.resize, device=self.fabric.device)

    def validate(self) -> dict[str, float] | None:
        """Score the encoder on the classes that select the checkpoint; None if there are none."""
        table = self.select(self.selection_split)
        if table.empty:
            return None
        images = self.inputs.for_evaluation(table["path"].tolist())
        embeddings = self.embedder().embed_distributed(images, workers=self.workers, precision=self.precision)
        scores = mean_scores(embeddings, table, replace(self.scoring, nmi=False))
        return broadcast_object(scores)  # rounding must not let processes decide differently

    @property
    def precision(self) -> Precision:
        """Precision of evaluation: that of training on a GPU, float32 on a CPU."""
        return evaluation_precision(self.fabric.device, str(self.fabric._precision.precision))

    def resume(self, run: RunFolder) -> TrainingState:
        """Restore the last checkpoint."""
        state = self.checkpoints.load("last")
        if is_main():
            run.drop_records_after(state.step)
        return state


# data


def read_table(data: options.Data) -> pd.DataFrame:
    """Read the table of a dataset, with the splits that the dataset itself defines.

    Parameters
    ----------
    data
        Section `data` of a configuration.

    Returns
    -------
    pandas.DataFrame
        As from `make_table`.

    Raises
    ------
    InputError
        If the dataset cannot be read.

    Examples
    --------
    >>> from orthoproxy.runs.config import Data
    >>> try:
    ...     read_table(Data(name="folder", root="nowhere"))
    ... except InputError as error:
    ...     error.field
    'data.root'
    """
    root = Path(data.root) if data.root else None
    readers = {"cub": cub_table, "cars": cars_table, "sop": sop_table, "inshop": inshop_table}
    with field_prefix("data"):
        if data.name == "icons":
            return icons_table(root or _user_cache() / "icons")
        if data.name == "csv":
            return csv_table(Path(data.csv or ""), root, data.allow_paths_outside_root)
        if data.name == "folder":
            return folder_table(root or Path(), allow_empty=False)
        return readers[data.name](root or Path())


def split_table(config: Config) -> pd.DataFrame:
    """Read the table of a dataset and assign every class to train, validation or test."""
    data = config.data
    table = read_table(data)
    with field_prefix("data"):
        table = assign_split(table, data.test_fraction, data.test_classes)
    if config.checkpoint_selection.split == "validation":
        table = hold_out_validation(table, data.validation_fraction)
    if not (table["split"] == "train").any():
        raise InputError("no class is left for training", field="data.test_fraction", hint="lower it or add classes")
    return table


def read_splits(config: Config) -> pd.DataFrame:
    """Read the table of a dataset with its splits once per machine; the same in every process."""
    table = None
    with raise_together():
        if is_first_of_machine():  # on every machine, as icons are rendered on the way
            table = split_table(config)
    table = broadcast_object(table)
    assert table is not None
    return table


def read_readable_images(config: Config, run: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Read the table; leave out unreadable images if wanted, as found when the run started."""
    table = read_splits(config)
    if config.data.on_unreadable_image == "raise":
        return table, None
    unreadable = run.unreadable if broadcast_object(run.has_state) else _find_unreadable(table, config.data.workers)
    return (table, None) if unreadable is None else (drop_rows(table, unreadable), unreadable)


def _find_unreadable(table: pd.DataFrame, workers: int) -> pd.DataFrame:
    """Read all images, divided among the processes."""
    with raise_together():
        part = find_unreadable(table.iloc[local_slice(split_sizes(len(table)))], workers)
    return pd.concat(gather_objects(part), ignore_index=True)


def check_images(table: pd.DataFrame, unreadable: pd.DataFrame | None, config: Config) -> np.ndarray | None:
    """On the main process, print the splits and raise `InputError` for what would prevent training or evaluation.

    Returns
    -------
    numpy.ndarray or None
        The file versions of the images, from the only pass over the file system; None in other processes.
    """
    splits = {name: select_split(table, name) for name in ("train", "validation", "test")}
    evaluated = {name: splits[name] for name in {config.checkpoint_selection.split, "test"} - {"none"}}
    with raise_together():
        if not is_main():
            return None
        sizes = [f"{name} {x['label'].nunique()} classes, {len(x)} images" for name, x in splits.items() if len(x)]
        print(f"{config.data.name}: {'; '.join(sizes)}", file=sys.stderr)
        if unreadable is not None and len(unreadable):
            first = unreadable.iloc[0]
            warn(f"{len(unreadable)} unreadable images left out, for example {first['path']}: {first['reason']}")
        counts = table["label"].value_counts()
        if single := sorted(counts.index[counts == 1]):
            warn(f"{len(single)} classes have a single image, for example {single[0]!r}")
        versions = file_versions(table["path"].tolist())
        missing = (versions[:, 0] < 0).nonzero()[0]
        if len(missing):
            raise InputError(
                f"{len(missing)} image files are missing",
                field="data.csv" if config.data.csv else "data.root",
                path=table["path"].iloc[missing[0]],
                hint="set data.on_unreadable_image to skip to leave them out",
            )
        for name, split in evaluated.items():
            if len(split):
                require_scorable(split, make_scoring(config.evaluation), f"{name} classes")
        if config.encoder.init_from.startswith("run:"):
            _require_unseen(config.encoder.init_from, evaluated)
        return versions


def _require_unseen(init_from: str, splits: dict[str, pd.DataFrame]) -> None:
    """Classes that the initial weights were trained on must not be evaluated as unseen."""
    try:
        seen = set(Embedder.load(init_from.removeprefix("run:"), with_proxies=False).classes)
    except InputError as error:
        raise replace(error, field="encoder.init_from") from error
    known = sorted(seen & set().union(*(split["label"] for split in splits.values())))
    if known:
        raise InputError(
            f"that run was trained on {known[0]!r} ({len(known)} such classes), which would be evaluated as unseen",
            field="encoder.init_from",
            hint="assign them to train (column split of a CSV file), or start from other weights",
        )


def warn(message: str) -> None:
    """Print a warning on the main process."""
    if is_main():
        print(f"warning: {message}", file=sys.stderr)


@runtime_checkable
class Inputs(Protocol):
    """What the encoder gets for image files."""

    def for_training(self, paths: Sequence[str]) -> Sequence[str | CroppableImage] | Tensor:
        """Return what the training transform is applied to, or features."""
        ...

    def for_evaluation(self, paths: Sequence[str]) -> Images:
        """Return what `Embedder.embed` takes."""
        ...


@dataclass(frozen=True)
class ImageInputs:
    """Image files, or resized copies of them in a cache."""

    cache_dir: str | None
    cache_size: int | tuple[int, int]
    evaluation_size: int | tuple[int, int]
    workers: int

    def for_training(self, paths: Sequence[str]) -> Sequence[str | CroppableImage]:
        """Return the copies if there is a cache, created now where missing."""
        return cached_images(paths, self.cache_dir, self.cache_size, self.workers) if self.cache_dir else list(paths)

    def for_evaluation(self, paths: Sequence[str]) -> Images:
        """Return the copies only if their size gives the same pixels: scores do not depend on the cache."""
        return self.for_training(paths) if self.cache_size == self.evaluation_size else list(paths)


@dataclass(frozen=True)
class FeatureInputs:
    """Pooled features of a frozen backbone."""

    features: FrozenFeatures

    def for_training(self, paths: Sequence[str]) -> Tensor:
        """Return one row per image."""
        return self.features(paths)

    def for_evaluation(self, paths: Sequence[str]) -> Images:
        """Return one row per image."""
        return self.features(paths)


def make_inputs(config: Config, baseline: Embedder, table: pd.DataFrame) -> Inputs:
    """Choose between files, resized copies and features; computes the features of a frozen backbone."""
    if config.encoder.freeze:
        folder = _user_cache() / "features"
        paths = table["path"].tolist()
        return FeatureInputs(FrozenFeatures.compute(baseline, paths, folder, config.data.workers))
    data = config.data
    natural = size = evaluation_size(config.encoder.image_size, data.resize)
    if data.resized_cache_size:
        side = data.resized_cache_size
        size = (side, side) if data.resize == "stretch" else side
    return ImageInputs(data.resized_cache_dir, size, natural, data.workers)


def make_sampler(config: Config, labels: np.ndarray) -> BatchSampler:
    """Return the sampler of this process's part of each batch."""
    sampler = config.sampler
    return BatchSampler(
        labels, sampler.batch_size, sampler.images_per_class, config.training.seed, process_index(), process_count()
    )


def make_loader(
    config: Config, inputs: Inputs, paths: list[str], labels: np.ndarray, sampler: BatchSampler, device: torch.device
) -> DataLoader:
    """Return the loader of training batches."""
    generator = torch.Generator()  # else each epoch would draw from the random state that a resumed run restores
    images = inputs.for_training(paths)
    if isinstance(images, Tensor):
        dataset = TrainingFeatures(images, labels, paths)
        return DataLoader(dataset, batch_sampler=sampler, generator=generator, collate_fn=_identity)
    augmentation = config.data.augmentation
    transform = training_transform(
        config.encoder.image_size,
        augmentation.crop_scale,
        augmentation.crop_ratio,
        augmentation.horizontal_flip,
        augmentation.color_jitter,
        augmentation.grayscale,
    )
    return DataLoader(
        TrainingImages(images, labels, transform, paths),
        batch_sampler=sampler,
        generator=generator,
        pin_memory=device.type == "cuda",
        **loader_options(config.data.workers, persistent_workers=True),
    )


def _identity(batch: Any) -> Any:
    return batch


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthoproxy"


# model and objective


def make_encoder(encoder: options.Encoder) -> Encoder:
    """Build the encoder to train, with random weights."""
    with field_prefix("encoder"):
        model = Encoder(
            encoder.name, encoder.embedding_dim, encoder.image_size, encoder.drop_path, encoder.freeze_batchnorm
        )
        if encoder.freeze:
            model.freeze()
        if encoder.freeze_patch_embedding:
            model.freeze_patch_embedding()
    return model


def _load_initial_weights(encoder: Encoder, options: options.Encoder, run: RunFolder) -> None:
    """Load them on the main process and broadcast; a run that continues takes its backbone from its own baseline."""
    started = broadcast_object(run.has_state)
    with raise_together():
        if is_main() and started:
            encoder.backbone.load_state_dict(Embedder.load(run.baseline).encoder.backbone.state_dict())
        elif is_main():
            with field_prefix("encoder"):
                load_weights(encoder, options.init_from)
    broadcast_(encoder.state_dict().values())


def _warn_about_batchnorm(encoder: Encoder) -> None:
    live = any(isinstance(module, _BatchNorm) and module.training for module in encoder.train().modules())
    if live and process_count() > 1 and any(p.requires_grad for p in encoder.backbone.parameters()):
        warn(
            "batch-norm statistics are computed per process, so results depend on the number of processes; "
            "encoder.freeze_batchnorm true avoids this"
        )


def make_baseline(encoder: Encoder) -> Encoder:
    """Copy the backbone as it is now, without projection: the untrained encoder to compare with."""
    baseline = Encoder(encoder.name, None, encoder.image_size)
    baseline.backbone.load_state_dict(encoder.backbone.state_dict())
    return baseline


def make_objective(loss: options.Loss, num_classes: int, embedding_dim: int) -> Objective:
    """Build the loss with its miner and proxy regularizer."""
    regularizer = loss.proxy_regularizer
    with field_prefix("loss"):
        module = make_loss(loss.name, num_classes, embedding_dim, loss.args, loss.shard_proxies)
        with field_prefix("proxy_regularizer"):
            term = make_regularizer(
                regularizer.name,
                regularizer.normalize,
                regularizer.scaling,
                sharded_classes=num_classes if loss.shard_proxies else None,
            )
        with field_prefix("miner"):
            miner = make_miner(loss.miner.name, loss.miner.args) if loss.miner.name else None
        return Objective(module, num_classes, term, regularizer.weight, miner)


def make_fit_options(config: Config, batches_per_epoch: int) -> FitOptions:
    """Convert epochs to steps."""
    training, optimizer = config.training, config.optimizer
    steps_per_epoch = -(-batches_per_epoch // training.gradient_accumulation_steps)

    def factor(step: int) -> float:
        return lr_factor(
            step,
            total_steps=training.epochs * steps_per_epoch,
            warmup_steps=round(optimizer.warmup_epochs * steps_per_epoch),
            schedule=optimizer.schedule,
            decay_every=optimizer.step_epochs * steps_per_epoch,
            decay_factor=optimizer.step_factor,
        )

    return FitOptions(
        epochs=training.epochs,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        lr_factor=factor,
        freeze_backbone_steps=round(config.encoder.freeze_backbone_epochs * steps_per_epoch),
        grad_clip_norm=optimizer.grad_clip_norm,
        grad_clip_value=optimizer.grad_clip_value,
        validate_every_n_epochs=training.validate_every_n_epochs,
        metric=config.checkpoint_selection.metric,
        early_stopping_patience=training.early_stopping_patience,
        log_every_n_steps=training.log_every_n_steps,
        max_nonfinite_steps=training.max_nonfinite_steps,
    )


def make_scoring(evaluation: options.Evaluation, device: torch.device | str = "cpu") -> Scoring:
    """Return the evaluation protocol; queries are divided among the processes."""
    return Scoring(
        recall_at=evaluation.recall_at,
        nmi=evaluation.nmi,
        exclude_same_group=evaluation.exclude_same_group,
        bootstrap_samples=evaluation.bootstrap_samples,
        confidence=evaluation.confidence,
        block_memory_mb=evaluation.block_memory_mb,
        device=str(device),
        shared=process_count() > 1,
    )


# device


def launch_fabric(training: options.Training, folder: Path) -> Fabric:
    """Choose device, precision and experiment trackers; under torchrun, connect the processes."""
    with field_prefix("training"):
        device = choose_device(training.device)
        loggers = [_make_logger(name, folder) for name in training.loggers]
    devices, machines = _launched_processes(device)
    # Plain DDP rebuilds its gradient buckets after the first step, which changes the order of summation with three or
    # more processes: a resumed run, which rebuilds later, would differ in the last bit. This variant never rebuilds.
    distributed = "ddp_find_unused_parameters_true" if training.deterministic else "ddp"
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=machines,
        strategy=distributed if devices * machines > 1 else "auto",
        precision=choose_precision(training),
        loggers=loggers if os.environ.get("RANK", "0") == "0" else [],
    )
    init_process_group(fabric.device)
    fabric.launch()
    return fabric


def choose_device(name: str) -> str:
    """Return an available device: for ``auto``, a GPU if there is one."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, found in available.items() if found)
    if not available[name]:
        raise InputError(f"no {name} device available", field="device", hint="use auto or cpu")
    return name


def choose_precision(training: options.Training) -> Precision:
    """Return the precision of training; ``auto`` is bf16-mixed where the hardware computes it natively."""
    if training.precision != "auto":
        return training.precision
    device = choose_device(training.device)
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = device == "cpu" and (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def evaluation_precision(device: torch.device | str, training: str) -> Precision:
    """Return the precision of evaluation: that of training on a GPU; float32 on a CPU, for comparable scores."""
    return "bf16-mixed" if torch.device(device).type == "cuda" and training == "bf16-mixed" else "32-true"


def _launched_processes(device: str) -> tuple[int, int]:
    """Number of processes that torchrun started per machine, and of machines."""
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return 1, 1
    total, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if total % local:
        raise InputError(f"torchrun started {total} processes, {local} of them here", expected="as many per machine")
    devices = {"cuda": torch.cuda.device_count, "mps": lambda: 1}
    if device in devices and local > devices[device]():
        raise InputError(
            f"torchrun started {local} processes for {devices[device]()} {device} devices",
            hint="lower --nproc-per-node, or set training.device to cpu",
        )
    return local, total // local


def _make_logger(name: str, folder: Path) -> Logger:
    try:
        if name == "tensorboard":
            from lightning_fabric.loggers.tensorboard import TensorBoardLogger

            return TensorBoardLogger(folder, name="tensorboard", version="")
        import pytorch_lightning.loggers as trackers

        if name == "wandb":
            return trackers.WandbLogger(name=folder.name, save_dir=folder)
        return trackers.MLFlowLogger(run_name=folder.name, save_dir=str(folder / "mlflow"))
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name} is not installed", field="loggers", hint="pip install 'orthoproxy[trackers]'"
        ) from error
