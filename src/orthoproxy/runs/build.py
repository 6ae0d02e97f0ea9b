"""From a configuration to the objects that the package's other parts take as plain arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from orthoproxy.core.distributed import process_count, process_index
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
    evaluation_size,
    folder_table,
    hold_out_validation,
    icons_table,
    inshop_table,
    sop_table,
    training_transform,
)
from orthoproxy.data.loading import loader_options
from orthoproxy.embedding.embedder import Embedder, Images
from orthoproxy.embedding.feature_cache import FrozenFeatures
from orthoproxy.evaluation import Scoring
from orthoproxy.losses import Objective, make_loss, make_miner, make_regulariser, simplex
from orthoproxy.models import Encoder
from orthoproxy.runs.config import Config, Data, Training
from orthoproxy.runs.config import Evaluation as EvaluationOptions
from orthoproxy.training import Plan, rate_factor

T = TypeVar("T")


@field_prefix("data")
def read_table(data: Data) -> pd.DataFrame:
    """Read the table of a source, with the splits that the source itself has.

    Parameters
    ----------
    data
        Its name, root and path.

    Returns
    -------
    pandas.DataFrame
        As `data.make_table`.

    Raises
    ------
    InputError
        If it cannot be read.

    Examples
    --------
    >>> read_table(Data(name="folder", root="nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.root: no folder nowhere; give one that has a sub-folder of images a class
    """
    root = Path(data.root) if data.root else None
    if data.name == "icons":
        return icons_table(root or _cache() / "icons")
    if data.name == "csv":
        return csv_table(Path(data.path or ""), root, data.outside_root)
    if data.name == "folder":
        return folder_table(root or Path(), allow_empty=False)
    readers = {"cub": cub_table, "cars": cars_table, "sop": sop_table, "inshop": inshop_table}
    return readers[data.name](root or Path())


def split_table(config: Config) -> pd.DataFrame:
    """Read the table of a source and give every class to train, validation or test.

    Parameters
    ----------
    config
        The source, the shares of classes, and whether validation classes choose the checkpoint.

    Raises
    ------
    InputError
        If it cannot be read, or leaves no image to train on.

    Examples
    --------
    See `read_table`.
    """
    data = config.data
    table = read_table(data)
    with field_prefix("data"):
        table = assign_split(table, data.test_fraction, data.test_classes)
    if config.training.select_on == "validation":
        table = hold_out_validation(table, data.validation_fraction)
    if not (table["split"] == "train").any():
        raise InputError("data: no class is left to train on; give more classes or a smaller data.test_fraction")
    return table


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthoproxy"


def make_encoder(config: Config) -> Encoder:
    """Build the encoder to train, without its starting weights (see `models.load_weights`).

    Parameters
    ----------
    config
        Its encoder part.

    Raises
    ------
    InputError
        If timm cannot build the backbone.

    Examples
    --------
    >>> from orthoproxy.runs import config as c
    >>> make_encoder(Config(encoder=c.Encoder(name="deit_tiny_patch16_224", embedding_dim=8))).embedding_dim
    8
    """
    options = config.encoder
    encoder = Encoder(
        options.name, options.embedding_dim, options.image_size, options.drop_path, options.freeze_batchnorm
    )
    if options.freeze:
        encoder.freeze()
    if options.freeze_patch_embedding:
        encoder.freeze_patch_embedding()
    return encoder


def make_untrained(encoder: Encoder) -> Encoder:
    """Copy an encoder's backbone as it is now, to compare the trained one with: pooled features at full width.

    Parameters
    ----------
    encoder
        With its starting weights.

    Examples
    --------
    >>> make_untrained(Encoder("deit_tiny_patch16_224", embedding_dim=8, image_size=32)).embedding_dim
    192
    """
    untrained = Encoder(encoder.name, None, encoder.image_size)
    untrained.backbone.load_state_dict(encoder.backbone.state_dict())
    return untrained


def make_objective(config: Config, num_classes: int, embedding_dim: int) -> Objective:
    """Build the loss, its miner and the regulariser.

    Parameters
    ----------
    config
        Its loss part.
    num_classes, embedding_dim
        C and D.

    Raises
    ------
    InputError
        As `losses.make_loss`, `losses.make_miner`, `losses.make_regulariser` and `losses.Objective`; or if a simplex
        has no room for the classes.

    Examples
    --------
    >>> make_objective(Config(), num_classes=3, embedding_dim=8).weight
    0.0
    """
    options, so = config.loss, config.loss.orthogonality
    sharded_classes = num_classes if options.shard_proxies else None
    objective = Objective(
        make_loss(options.name, num_classes, embedding_dim, options.args, options.shard_proxies),
        num_classes,
        make_regulariser(so.kind, so.normalize, so.scaling, so.form, sharded_classes),
        so.weight,
        make_miner(options.miner.name, options.miner.args) if options.miner.name else None,
    )
    if config.initialisation.proxies == "simplex":
        objective.fix_class_vectors(simplex(num_classes, embedding_dim))
    return objective


def keep_images(config: Config, paths: list[str], evaluation: bool = False) -> Sequence[str | CroppableImage]:
    """Return what to read: the files; or with data.cache their smaller copies, made now where there are none.

    Parameters
    ----------
    config
        Its data part, and the size of the encoder's images.
    paths
        Image files.
    evaluation
        Whether they are for the fixed view, which must not depend on the cache: copies of its size give it the same
        pixels, for others it reads the files.

    Raises
    ------
    InputError
        As `data.cached_images`.

    Examples
    --------
    >>> keep_images(Config(), ["a.png", "b.png"])
    ['a.png', 'b.png']
    """
    data = config.data
    natural = size = evaluation_size(config.encoder.image_size, data.resize)
    if data.cache_size:
        size = (data.cache_size, data.cache_size) if data.resize == "stretch" else data.cache_size
    if not data.cache or (evaluation and size != natural):
        return paths
    return cached_images(paths, data.cache, size, data.workers)


def fixed_views(config: Config, untrained: Embedder, paths: Sequence[str]) -> Callable[[list[str]], Images]:
    """Say what is embedded where images are seen in the fixed view: the images, or the features of a frozen backbone.

    Parameters
    ----------
    config
        Its encoder part; for images also what `keep_images` looks at.
    untrained
        From `make_untrained`.
    paths
        All images that will be asked for.

    Returns
    -------
    Callable
        From paths to what `Embedder.embed` takes.

    Raises
    ------
    InputError
        As `keep_images` or `FrozenFeatures.compute`.

    Examples
    --------
    >>> encoder = Encoder("deit_tiny_patch16_224", image_size=32)
    >>> fixed_views(Config(), Embedder(encoder), ["a.png"])(["a.png"])
    ['a.png']
    """
    if config.encoder.freeze:
        return FrozenFeatures.compute(untrained, paths, _cache() / "features", config.data.workers)
    return lambda some: keep_images(config, some, evaluation=True)


def make_loader(
    config: Config, paths: list[str], labels: list[int], features: Tensor | None = None
) -> tuple[DataLoader, BatchSampler]:
    """Build the loader of training batches and the sampler that it follows.

    Parameters
    ----------
    config
        Its data and training parts.
    paths, labels
        Image files and their class numbers.
    features
        Of the images, to train on instead of them.

    Raises
    ------
    InputError
        As `keep_images`.

    Examples
    --------
    >>> loader, sampler = make_loader(Config(), ["a.png", "b.png"], [0, 1])
    >>> len(loader), sampler.batch_size
    (1, 128)
    """
    training = config.training
    sampler = BatchSampler(
        labels, training.batch_size, training.per_class, training.seed, process_index(), process_count()
    )
    if features is not None:
        batches = TrainingFeatures(features, labels, paths)
        return DataLoader(batches, batch_sampler=sampler, generator=torch.Generator(), collate_fn=_as_it_is), sampler
    augmentation = config.data.augmentation
    transform = training_transform(
        config.encoder.image_size,
        augmentation.crop_scale,
        augmentation.crop_ratio,
        augmentation.flip,
        augmentation.jitter,
        augmentation.grayscale,
    )
    workers = config.data.workers
    loader = DataLoader(
        TrainingImages(keep_images(config, paths), labels, transform, paths),
        batch_sampler=sampler,
        generator=torch.Generator(),  # else each epoch's start would draw from the state that a resumed run must share
        **loader_options(workers, persistent_workers=True),
        pin_memory=torch.cuda.is_available(),  # so that the copy to a GPU does not make the step wait
    )
    return loader, sampler


def _as_it_is(batch: T) -> T:
    return batch


def make_plan(training: Training, freeze_epochs: float, batches_an_epoch: int) -> Plan:
    """Turn epochs into steps.

    Parameters
    ----------
    training
        Epochs, schedule, clipping, validation.
    freeze_epochs
        Epochs in which the backbone stands still.
    batches_an_epoch
        Length of an epoch.

    Examples
    --------
    >>> make_plan(Training(epochs=2), freeze_epochs=0.5, batches_an_epoch=10).freeze_steps
    5
    """
    steps_an_epoch = -(-batches_an_epoch // training.accumulate)

    def factor(step: int) -> float:
        return rate_factor(
            step,
            total_steps=training.epochs * steps_an_epoch,
            warmup_steps=round(training.warmup_epochs * steps_an_epoch),
            schedule=training.schedule,
            step_every=training.step_epochs * steps_an_epoch,
            step_factor=training.step_factor,
        )

    return Plan(
        epochs=training.epochs,
        accumulate=training.accumulate,
        rate_factor=factor,
        freeze_steps=round(freeze_epochs * steps_an_epoch),
        clip_norm=training.clip_norm,
        clip_value=training.clip_value,
        validate_every=training.validate_every,
        monitor=training.monitor,
        patience=training.patience,
        log_every=training.log_every,
        max_bad_batches=training.max_bad_batches,
    )


def make_scoring(options: EvaluationOptions) -> Scoring:
    """Take over how results are scored.

    Parameters
    ----------
    options
        The evaluation part of a configuration.

    Examples
    --------
    >>> make_scoring(Config().evaluation).recall_at
    (1, 2, 4, 8)
    """
    return Scoring(
        recall_at=tuple(options.recall_at),
        nmi=options.nmi,
        exclude_same_group=options.exclude_group,
        bootstrap_samples=options.draws,
        confidence=options.confidence,
        block_memory_mb=options.memory_mb,
    )
