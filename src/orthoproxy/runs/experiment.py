"""From a configuration to a training job; nothing below `runs` sees a `Config`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from orthoproxy.core.distributed import (
    broadcast_,
    broadcast_object,
    is_main,
    process_count,
    process_index,
    raise_together,
)
from orthoproxy.core.errors import InputError, field_prefix
from orthoproxy.data import BatchSampler, TrainingImages, training_transform
from orthoproxy.data.datasets import TrainingFeatures
from orthoproxy.data.loading import loader_options
from orthoproxy.data.table import evaluation_images, select_split
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.feature_cache import pooled_features
from orthoproxy.evaluation.evaluate import mean_scores
from orthoproxy.losses import Objective, make_loss, make_miner, make_regularizer
from orthoproxy.models import Encoder, load_weights
from orthoproxy.runs.config import Config, EncoderConfig, LossConfig
from orthoproxy.runs.dataset import check_images, read_readable_images, user_cache, warn
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.run_folder import RunFolder
from orthoproxy.training import FitOptions, make_optimizer
from orthoproxy.training.checkpoint import Checkpoints, TrainingState
from orthoproxy.training.optimizer import lr_factor

Inputs = Callable[[Sequence[str]], Sequence[str] | Tensor]


class Experiment:
    """A training run, assembled from all that the configuration decides: data, model, objective, optimizer, options."""

    def __init__(self, config: Config, run: RunFolder, fabric: Fabric) -> None:
        self.fabric = fabric
        self.table, self.unreadable = read_readable_images(config, run)  # all images with their splits; those left out
        self.file_versions = check_images(self.table, self.unreadable, config)
        self.workers, self.seed = config.data.workers, config.training.seed
        seed_everything(self.seed, verbose=False)
        training = select_split(self.table, "train")
        self.classes = sorted(set(training["label"]))
        self.labels = pd.Categorical(training["label"], categories=self.classes).codes.astype(np.int64)

        with raise_together():
            self.encoder = make_encoder(config.encoder).to(fabric.device)
            objective = make_objective(config.loss, len(self.classes), self.encoder.embedding_dim)
            self.objective = objective.to(fabric.device)
        _load_initial_weights(self.encoder, config.encoder.init_from, run)
        _warn_about_batchnorm(self.encoder)
        self.baseline = Embedder(make_baseline(self.encoder), config.data.resize, device=fabric.device)
        with field_prefix("encoder"):
            if config.encoder.lora_rank:
                self.encoder.add_lora(config.encoder.lora_rank)
        self.average: AveragedModel | None = None
        if config.training.ema_decay is not None:
            self.average = AveragedModel(self.encoder, multi_avg_fn=get_ema_multi_avg_fn(config.training.ema_decay))
        self.inputs = make_inputs(config, self.baseline, self.table)
        self.initialization = config.initialization

        self.sampler = make_sampler(config, self.labels, training["category"])
        self.training_paths = training["path"].tolist()
        self.loader = make_loader(config, self.inputs, self.training_paths, self.labels, self.sampler, fabric.device)
        lr, decay = config.optimizer.lr, config.optimizer.weight_decay
        rates = lr.backbone, lr.projection, lr.proxies
        optimizer = make_optimizer(self.encoder, self.objective, *rates, decay, lr.layer_decay)
        self.optimizer: torch.optim.Optimizer = optimizer
        self.options = make_fit_options(config, len(self.sampler))
        trained = self.encoder.projection if config.encoder.freeze else self.encoder
        trained = trained if self.average is None else nn.ModuleList([trained, self.average])
        self.checkpoints = Checkpoints(run.checkpoints, trained, self.objective, self.optimizer, fabric.device)
        self.selection_split = config.checkpoint_selection.split  # whose classes select the best checkpoint
        self.scoring = make_scoring(config.evaluation, fabric.device)

    def embedder(self, encoder: Encoder) -> Embedder:
        return Embedder(encoder, self.baseline.resize, device=self.fabric.device)

    @property
    def final_encoder(self) -> Encoder:
        """The encoder that the run yields: the averaged one if there is one."""
        return self.encoder if self.average is None else cast(Encoder, self.average.module)

    def validate(self) -> dict[str, float] | None:
        """Score the model on the classes that select the checkpoint; None if there are none."""
        table = evaluation_images(self.table, self.selection_split)
        if table.empty:
            return None
        images = self.inputs(table["path"].tolist())

        def score(encoder: Encoder) -> dict[str, float]:
            model = self.embedder(encoder)
            embeddings = model.embed_distributed(images, workers=self.workers, precision=self.precision)
            return mean_scores(embeddings, table, self.scoring)

        scores = score(self.final_encoder)
        if self.average is not None:
            scores |= {f"not_averaged/{name}": value for name, value in score(self.encoder).items()}
        return broadcast_object(scores)  # rounding must not let processes decide differently

    @property
    def precision(self) -> str:
        """Precision of training, and so of initialization and validation."""
        return str(self.fabric._precision.precision)

    def resume(self, run: RunFolder) -> TrainingState:
        """Restore the last checkpoint."""
        state = self.checkpoints.load("last")
        if is_main():
            run.drop_records_after(state.step)
        return state


def make_inputs(config: Config, baseline: Embedder, table: pd.DataFrame) -> Inputs:
    """Return a function from paths to the encoder's input: the paths, or cached features if the backbone is frozen."""
    if not config.encoder.freeze:
        return list
    paths = table["path"].tolist()
    features = pooled_features(baseline, paths, user_cache() / "features", config.data.workers)
    rows = pd.Index(paths)
    return lambda images: features[torch.from_numpy(rows.get_indexer_for(pd.Index(images)))]


def make_sampler(config: Config, labels: np.ndarray, categories: pd.Series) -> BatchSampler:
    """Return the sampler of this process's part of each batch."""
    sampler, part = config.sampler, (config.training.seed, process_index(), process_count())
    by = categories.tolist() if sampler.by_category else None
    batch_size = sampler.batch_size * config.training.gradient_accumulation_steps
    return BatchSampler(labels, batch_size, sampler.images_per_class, *part, categories=by)


def make_loader(
    config: Config, inputs: Inputs, paths: list[str], labels: np.ndarray, sampler: BatchSampler, device: torch.device
) -> DataLoader:
    """Return the loader of training batches."""
    images = inputs(paths)
    if isinstance(images, Tensor):
        dataset = TrainingFeatures(images, labels, paths)
        reading = {"collate_fn": lambda batch: batch}  # rows are taken a batch at a time
    else:
        augment = config.data.augmentation
        crop, color = (augment.crop_scale, augment.crop_ratio), (augment.color_jitter, augment.grayscale)
        transform = training_transform(config.encoder.image_size, *crop, augment.horizontal_flip, *color)
        dataset = TrainingImages(paths, labels, transform, config.data.box_margin)
        reading = loader_options(config.data.workers, persistent_workers=True)
    generator = torch.Generator()  # else each epoch would draw from the random state that a resumed run restores
    on_gpu = device.type == "cuda"
    return DataLoader(dataset, batch_sampler=sampler, generator=generator, pin_memory=on_gpu, **reading)


def make_encoder(encoder: EncoderConfig) -> Encoder:
    """Build the encoder to train, with random weights."""
    with field_prefix("encoder"):
        shape = encoder.name, encoder.embedding_dim, encoder.image_size
        model = Encoder(*shape, encoder.drop_path, encoder.freeze_batchnorm, encoder.pooling)
        if encoder.freeze:
            model.freeze()
        if encoder.trainable_blocks is not None:
            model.train_last_blocks(encoder.trainable_blocks)
        if encoder.freeze_patch_embedding:
            model.freeze_patch_embedding()
    return model


def _load_initial_weights(encoder: Encoder, init_from: str, run: RunFolder) -> None:
    """Load initial weights on the main process and broadcast; a resumed run has its backbone's in its baseline."""
    started = broadcast_object(run.has_state)
    with raise_together():
        if is_main() and started:
            encoder.backbone.load_state_dict(Embedder.load(run.baseline).encoder.backbone.state_dict())
        elif is_main():
            with field_prefix("encoder"):
                load_weights(encoder, init_from)
    broadcast_(encoder.state_dict().values())


def _warn_about_batchnorm(encoder: Encoder) -> None:
    live = any(isinstance(module, _BatchNorm) and module.training for module in encoder.train().modules())
    if live and process_count() > 1 and any(p.requires_grad for p in encoder.backbone.parameters()):
        problem = "batch-norm statistics are computed per process, so results depend on the number of processes"
        warn(f"{problem}; encoder.freeze_batchnorm true avoids this")


def make_baseline(encoder: Encoder) -> Encoder:
    """Copy the backbone as it is now, without projection: the untrained encoder to compare with."""
    baseline = Encoder(encoder.name, None, encoder.image_size, pooling=encoder.pooling)
    baseline.backbone.load_state_dict(encoder.backbone.state_dict())
    return baseline


def make_objective(loss: LossConfig, num_classes: int, embedding_dim: int) -> Objective:
    """Build the loss with its miner and proxy regularizer."""
    regularizer = loss.proxy_regularizer
    with field_prefix("loss"):
        module = make_loss(loss.name, num_classes, embedding_dim, loss.args, loss.shard_proxies)
        with field_prefix("proxy_regularizer"):
            term = make_regularizer(regularizer.name, regularizer.normalize, regularizer.scaling)
        with field_prefix("miner"):
            miner = make_miner(loss.miner.name, loss.miner.args) if loss.miner.name else None
        if loss.memory_size is not None:
            from orthoproxy.losses.memory import EmbeddingMemory  # needs pytorch-metric-learning

            module, miner = EmbeddingMemory(module, embedding_dim, loss.memory_size, miner), None
        try:
            return Objective(module, num_classes, term, regularizer.weight, miner)
        except InputError as error:
            fields = {"weight": "proxy_regularizer.weight", "regularizer": "proxy_regularizer.name"}
            raise replace(error, field=fields.get(error.field or "", error.field)) from error


def make_fit_options(config: Config, steps_per_epoch: int) -> FitOptions:
    """Convert epochs to steps."""
    training, optimizer = config.training, config.optimizer
    factor = partial(
        lr_factor,
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
