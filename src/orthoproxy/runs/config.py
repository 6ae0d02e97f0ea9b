"""The configuration of a run: typed, validated, and the source of recipe keys and command line options."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from orthoproxy.core.errors import InputError, did_you_mean

Fraction = Annotated[float, Field(ge=0, le=1)]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the minimum is above the maximum")
    return bounds


def _relative(pattern: str) -> str:
    if not pattern or pattern.startswith("/"):
        raise ValueError("expected a pattern for paths relative to the folder, such as '*/drafts/*'")
    return pattern


def _require(met: Any, field: str, found: Any, expected: str) -> None:
    if not met:
        raise InputError(str(found), field=field, expected=expected)


class Section(BaseModel):
    """A group of fields: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class AugmentationConfig(Section):
    """Random transforms of training images."""

    crop_scale: Annotated[tuple[PositiveFloat, Fraction], AfterValidator(_ordered)] = (0.2, 1.0)
    """Minimum and maximum area of a random crop, as a fraction of the image."""
    crop_ratio: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ordered)] = (0.75, 1.3333)
    """Minimum and maximum aspect ratio (width / height) of a random crop."""
    horizontal_flip: Fraction = 0.5
    """Probability of a horizontal flip; 0 where left and right differ in meaning."""
    color_jitter: NonNegativeFloat = 0.0
    """Maximum relative change of brightness, contrast and saturation."""
    grayscale: Fraction = 0.0
    """Probability of converting to grayscale."""


class DataConfig(Section):
    """Dataset, splits and image loading."""

    name: Literal["icons", "folder", "csv", "parquet", "webdataset", "cub", "cars", "sop", "inshop"] = "icons"
    """icons (rendered from fonts), folder (one subfolder per class), csv (columns path,label,...), parquet or
    webdataset (images packed into larger files), or a benchmark."""
    root: str | None = None
    """Image folder; for parquet and webdataset, a file or a folder of such files, unpacked into the user cache; for
    icons, where to render them (default: the user cache)."""
    csv: str | None = None
    """The CSV file, if data.name is csv."""
    allow_paths_outside_root: bool = False
    """Allow a CSV file to list images outside data.root (or its own folder). Only for files you trust."""
    boxes: bool = False
    """Cut the images of CUB or Cars to the bounding boxes that these datasets contain; published results do not."""
    box_margin: NonNegativeFloat = 0.1
    """Share of the size of an image's box that is added on each side in training, where it has one."""
    ignore: list[Annotated[str, AfterValidator(_relative)]] = []
    """Files and folders of an image folder to leave out: patterns such as drafts or '*/old_*', where * matches
    slashes, too."""
    split_by: Literal["class", "image"] = "class"
    """class: test and validation classes are not trained on; image: all splits share the classes (a closed set)."""
    test_fraction: Fraction = 0.2
    """Fraction of classes, or of the images of each class, held out for testing, if the dataset has no split; chosen by
    a hash of the class name or of the path relative to the data."""
    test_classes: list[str] | None = None
    """Names of the test classes, instead of a fraction."""
    validation_fraction: Fraction = 0.1
    """Fraction of the training classes, or images of each, held out for validation, chosen in the same way."""
    max_images_per_class: PositiveInt | None = None
    """Train on at most this many images of each class, drawn with training.seed; null for all. If images are split,
    they are the gallery, too."""
    resize: PositiveInt | Literal["stretch"] | None = None
    """Shorter side in pixels before the center crop of evaluation; null for encoder.image_size * 256 / 224; stretch
    resizes the whole image to a square, for images far from square."""
    workers: NonNegativeInt = 1
    """Data loading processes per training process."""
    on_unreadable_image: Literal["raise", "skip"] = "raise"
    """skip reads all images first and leaves out unreadable ones; a run lists them in unreadable_images.csv."""
    augmentation: AugmentationConfig = AugmentationConfig()


class SamplerConfig(Section):
    """Composition of training batches."""

    batch_size: PositiveInt = 128
    """Images per batch, over all processes; see training.gradient_accumulation_steps."""
    images_per_class: PositiveInt | None = None
    """Images of each class in a batch; null for shuffled batches."""
    by_category: bool = False
    """Draw the classes of a batch from one category, as hard negatives; requires images_per_class and images with
    categories."""


class EncoderConfig(Section):
    """Backbone and projection."""

    name: str = "deit_small_patch16_224"
    """Any timm backbone."""
    init_from: str = "hub"
    """Initial weights: hub (timm's), none, a local file, package:efficientnet-lite0, or run:FOLDER."""
    embedding_dim: PositiveInt | None = 128
    """Embedding dimension D; null for the backbone's features without a projection."""
    image_size: PositiveInt = 224
    """Side of the square input in pixels."""
    pooling: str | None = None
    """How features become one vector: a global_pool of timm, for vision transformers token (the class token), avg or
    max (of the patch tokens); null for the backbone's own."""
    drop_path: Fraction = 0.0
    """Stochastic depth: probability of dropping a residual branch."""
    freeze: bool = False
    """Train only projection and proxies, on backbone features computed once from unaugmented images; takes seconds."""
    trainable_blocks: PositiveInt | None = None
    """Number of last backbone blocks to train, besides projection and proxies; null for all."""
    lora_rank: PositiveInt | None = None
    """Train low-rank additions to the linear layers of the backbone (LoRA) instead of its weights, with
    optimizer.lr.backbone; the saved model has plain weights."""
    freeze_batchnorm: bool = True
    """Keep batch-norm layers on their stored statistics."""
    freeze_patch_embedding: bool = False
    """Keep the patch embedding of a vision transformer fixed."""
    freeze_backbone_epochs: NonNegativeFloat = 0.0
    """Epochs at the beginning in which only projection and proxies are trained."""


class InitializationConfig(Section):
    """Data-driven initialization; set both to random for that of the papers."""

    projection: Literal["pca", "random"] = "pca"
    """pca: principal components of the training features."""
    whitening: Fraction = 1.0
    """0 keeps the variances of the principal components, 1 equalizes them."""
    proxies: Literal["class_means", "random"] = "class_means"
    """class_means: mean embedding of each class."""


class MinerConfig(Section):
    """Pair or triplet miner of pytorch-metric-learning."""

    name: str | None = None
    """A class in pytorch_metric_learning.miners; null for none."""
    args: dict[str, Any] = {}
    """Its arguments."""


class ProxyRegularizerConfig(Section):
    """Regularizer that spreads the proxies."""

    name: Literal["soft_orthogonality", "off_diagonal", "spectral", "coherence", "coding_rate", "koleo"] = (
        "soft_orthogonality"
    )
    """soft_orthogonality; off_diagonal: without the lengths; spectral: norm of the Gram residual (SRIP); coherence:
    the closest pair; coding_rate: spanned volume; koleo: nearest-neighbor distances."""
    weight: NonNegativeFloat = 0.0
    """Weight lambda in the loss; with 0 the value is only logged."""
    scaling: Literal["sum", "mean", "excess"] = "excess"
    """For soft_orthogonality and off_diagonal: sum (as published), mean over pairs, or excess over the Welch bound
    per proxy."""
    normalize: bool = True
    """Normalize the proxies first; off_diagonal requires false; coherence, coding_rate and koleo require true."""


class LossConfig(Section):
    """Training loss."""

    name: str = "proxy_anchor"
    """proxy_anchor, or a class in pytorch_metric_learning.losses (extra compare)."""
    args: dict[str, Any] = {}
    """Its arguments, for example scale and margin."""
    miner: MinerConfig = MinerConfig()
    memory_size: PositiveInt | None = None
    """Number of most recent embeddings, including the batch's own, that a pair loss compares a batch with (cross-batch
    memory); null for the batch alone."""
    proxy_regularizer: ProxyRegularizerConfig = ProxyRegularizerConfig()
    shard_proxies: bool = False
    """Shard the proxies and their optimizer state over the processes (proxy_anchor only)."""


class LearningRatesConfig(Section):
    """Peak learning rates."""

    backbone: NonNegativeFloat = 1e-4
    """Pretrained backbone."""
    projection: NonNegativeFloat = 1e-4
    """Linear layer from backbone features to the embedding."""
    proxies: NonNegativeFloat = 1e-2
    """Proxies or class weights of the loss."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor from each backbone layer to the one before it; 1 gives all layers the same rate."""


class OptimizerConfig(Section):
    """AdamW, learning rate schedule and gradient clipping."""

    lr: LearningRatesConfig = LearningRatesConfig()
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of AdamW; not applied to proxies, biases, normalization layers and position embeddings."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup_epochs: NonNegativeFloat = 1.0
    """Linear learning rate warm-up, in epochs."""
    step_epochs: PositiveInt = 10
    """Step schedule: epochs between decays."""
    step_factor: NonNegativeFloat = 0.5
    """Step schedule: decay factor."""
    grad_clip_norm: NonNegativeFloat | None = None
    """Maximum gradient norm."""
    grad_clip_value: NonNegativeFloat | None = None
    """Maximum absolute value of a gradient element."""


class TrainingConfig(Section):
    """Training loop."""

    epochs: PositiveInt = 10
    """Passes over the training images."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches of sampler.batch_size in an optimizer step. The loss is that of all their images together, so only memory
    differs from a larger batch_size; a third more computation."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Average the encoder's weights over the steps, old ones weighted by this factor per step, such as 0.99; the
    averaged encoder is the model, and both are validated; with LoRA, its factors are averaged. null for no average."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bf16-mixed where the hardware supports it natively, else 32-true."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train and evaluate on."""
    seed: NonNegativeInt = 0
    """Random seed."""
    deterministic: bool = False
    """Use deterministic kernels: bit-identical results on GPU, and after resuming with three or more processes.
    Slower; not needed otherwise."""
    validate_every_n_epochs: PositiveInt = 1
    """Epochs between validations."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many validations without improvement."""
    log_every_n_steps: PositiveInt = 10
    """Steps between records in metrics.jsonl."""
    max_nonfinite_steps: NonNegativeInt = 10
    """Steps with non-finite loss or gradients to skip before training fails; counted from the start or the last
    resume."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Experiment trackers, in addition to metrics.jsonl."""


class CheckpointSelectionConfig(Section):
    """Choice of the final checkpoint."""

    split: Literal["validation", "test", "none"] = "validation"
    """Classes that select the best checkpoint; none keeps the last. Results selected on test are labeled so."""
    metric: str = "map@r"
    """Metric to maximize."""


class EvaluationConfig(Section):
    """Evaluation protocol."""

    recall_at: Annotated[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], Field(min_length=1)] = (1, 2, 4, 8)
    """Values of K for Recall@K."""
    map: bool = False
    """Also report mAP and mINP, for which all images of a query's class are ranked; takes longer."""
    exclude: Literal["none", "group", "own_class_in_group"] = "group"
    """What leaves a query's gallery: its own group, only its own class in its group (re-identification: same person,
    same camera), or none. Without effect where the dataset has no groups."""
    exclude_duplicates: bool = False
    """Exclude near copies of a query from its gallery; reads the evaluated images once more."""
    bootstrap_samples: PositiveInt = 1000
    """Bootstrap samples of classes."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    block_memory_mb: PositiveFloat = 512
    """Memory limit of a block of similarities in MiB, per process."""


class Config(Section):
    """Everything that decides a run: a recipe in YAML, one option per field on the command line.

    Raises
    ------
    pydantic.ValidationError
        A `ValueError`, if a value is not allowed; `parse_config` and `read_config` raise `InputError` instead.

    Examples
    --------
    >>> config = Config(data=DataConfig(name="folder", root="images"))
    >>> config.with_overrides({"loss.proxy_regularizer.weight": 0.3}).loss.proxy_regularizer.scaling
    'excess'
    """

    data: DataConfig = DataConfig()
    sampler: SamplerConfig = SamplerConfig()
    encoder: EncoderConfig = EncoderConfig()
    initialization: InitializationConfig = InitializationConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint_selection: CheckpointSelectionConfig = CheckpointSelectionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    environment: dict[str, str] = {}
    """Versions and machine, written by a run; not an option."""

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        data, sampler, encoder = self.data, self.sampler, self.encoder
        named = f"as data.name is {data.name}"
        _require(data.csv or data.name != "csv", "data.csv", "missing", f"the CSV file, {named}")
        _require(data.root or data.name in ("icons", "csv"), "data.root", "missing", f"the image folder, {named}")
        _require(not data.boxes or data.name in ("cub", "cars"), "data.boxes", "true", f"false, {named}")
        _require(not data.ignore or data.name == "folder", "data.ignore", data.ignore, f"nothing, {named}, not folder")
        if data.split_by == "image":
            _require(data.test_classes is None, "data.test_classes", "given", "null, as data.split_by is image")
            benchmark = data.name in ("cub", "cars", "sop", "inshop")
            _require(not benchmark, "data.split_by", "image", f"class, as {data.name} has test classes")
        if per_class := sampler.images_per_class:
            expected = f"a divisor of sampler.batch_size {sampler.batch_size}"
            _require(sampler.batch_size % per_class == 0, "sampler.images_per_class", per_class, expected)
        expected = "a number, as sampler.by_category is true"
        _require(per_class or not sampler.by_category, "sampler.images_per_class", "null", expected)
        if memory := self.loss.memory_size:
            images = sampler.batch_size * self.training.gradient_accumulation_steps
            _require(memory >= images, "loss.memory_size", memory, f"null, or at least the {images} images of a step")
        if encoder.lora_rank:
            expected = "null, as encoder.freeze or encoder.trainable_blocks is given"
            _require(not (encoder.freeze or encoder.trainable_blocks), "encoder.lora_rank", encoder.lora_rank, expected)
        if encoder.freeze:
            expected = "a dimension, as encoder.freeze trains the projection"
            _require(encoder.embedding_dim, "encoder.embedding_dim", "null", expected)
            for name, expected in (("trainable_blocks", "null"), ("freeze_backbone_epochs", "0")):
                value = getattr(encoder, name)
                _require(not value, f"encoder.{name}", value, f"{expected}, as encoder.freeze is true")
        metrics = [*(f"recall@{k}" for k in self.evaluation.recall_at), "map@r", "r_precision", "mrr"]
        metrics += ["map", "minp"] if self.evaluation.map else []
        if (metric := self.checkpoint_selection.metric) not in metrics:
            expected, field = f"one of {', '.join(metrics)}", "checkpoint_selection.metric"
            hint = "set evaluation.map to true" if metric in ("map", "minp") else None
            raise InputError(f"unknown metric {metric!r}", field=field, expected=expected, hint=hint)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts and lists, as in a recipe."""
        return self.model_dump(mode="json")

    def flatten(self) -> dict[str, Any]:
        """Return the values by dotted key, without `environment`."""
        values = self.to_dict()
        return {key: reduce(getitem, key.split("."), values) for key in fields_by_key()}

    def with_overrides(self, overrides: Mapping[str, Any]) -> Config:
        """Return a validated copy with other values for some dotted keys."""
        return parse_config(self.to_dict(), overrides)

    def with_absolute_paths(self) -> Config:
        """Return a copy whose paths hold in any working directory."""
        paths = {"data.root": self.data.root, "data.csv": self.data.csv}
        overrides = {key: str(Path(path).resolve()) for key, path in paths.items() if path}
        kind, separator, place = self.encoder.init_from.rpartition(":")
        if kind == "run" or (not separator and place not in ("hub", "none")):
            overrides["encoder.init_from"] = f"{kind}{separator}{Path(place).resolve()}"
        return self.with_overrides(overrides)


def fields_by_key(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Return all fields but `environment` by dotted key."""
    fields: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            fields |= fields_by_key(type(field.default), f"{prefix}{name}.")
        elif name != "environment":
            fields[f"{prefix}{name}"] = field
    return fields


def parse_config(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """Validate nested values, after setting `overrides` by dotted key; raise `InputError` for the first problem."""
    merged = copy.deepcopy(dict(values))
    for key, value in (overrides or {}).items():
        *path, name = key.split(".")
        section = merged
        for part in path:
            inner = section.get(part)
            section[part] = section = inner if isinstance(inner, dict) else {}
        section[name] = value
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise _input_error(error) from error


def _input_error(error: ValidationError) -> InputError:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    keys = list(fields_by_key())
    parts = [str(part) for part in first["loc"]]
    *sections, field = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    if first["type"] == "extra_forbidden":
        renamed = next((new for old, new in RENAMED.items() if f"{old}.".startswith(f"{field}.")), None)
        if renamed is not None:
            return InputError("renamed or removed in version 0.2", field=field, hint=renamed)
        return InputError("unknown key", field=field, hint=did_you_mean(field, keys))
    known = [name for name in (*sections, field) if any(f"{key}.".startswith(f"{name}.") for key in keys)]
    field = known[-1] if known else field  # without the place within a list or a choice of types
    if first["type"] == "string_type" and not isinstance(first["input"], dict | list | None):
        problem = f"{type(first['input']).__name__} {first['input']}, as YAML reads it"
        return InputError(problem, field=field, expected="text", hint="put it in quotes, such as '001'")
    return InputError(f"{first['msg']} (got {first['input']!r})", field=field)


# keys of version 0.1 that resemble no present key, and what to write instead
RENAMED = {
    "initialisation": "use initialization (pca instead of principal; simplex was removed)",
    "data.path": "use data.csv",
    "data.cache": "remove the key; train on smaller copies of large images",
    "data.cache_size": "remove the key; train on smaller copies of large images",
    "data.on_error": "use data.on_unreadable_image",
    "encoder.weights": "use encoder.init_from",
    "loss.orthogonality": "use loss.proxy_regularizer (kind is now name, and soft is soft_orthogonality)",
    "training.batch_size": "use sampler.batch_size",
    "training.per_class": "use sampler.images_per_class",
    "training.rates": "use optimizer.lr",
    "training.weight_decay": "use optimizer.weight_decay",
    "training.schedule": "use optimizer.schedule",
    "training.warmup_epochs": "use optimizer.warmup_epochs",
    "training.step_epochs": "use optimizer.step_epochs",
    "training.clip_norm": "use optimizer.grad_clip_norm",
    "training.clip_value": "use optimizer.grad_clip_value",
    "training.accelerator": "use training.device",
    "training.select_on": "use checkpoint_selection.split",
    "training.monitor": "use checkpoint_selection.metric",
    "training.patience": "use training.early_stopping_patience",
    "training.log_every": "use training.log_every_n_steps",
    "training.max_bad_batches": "use training.max_nonfinite_steps",
    "evaluation.draws": "use evaluation.bootstrap_samples",
    "evaluation.nmi": "remove the key; MAP@R, always reported, also considers all images of a class",
}
