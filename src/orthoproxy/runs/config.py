"""The configuration of a run: typed, checked, and the source of the command line's options and of the recipes' keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from orthoproxy.core.errors import InputError


@dataclass
class Augmentation:
    """How a training image is varied."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and greatest share of the image's area in a random crop."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Least and greatest width / height of a random crop."""
    flip: float = 0.5
    """Chance of a horizontal flip; 0 where left and right mean different things."""
    jitter: float = 0.0
    """Greatest relative change of brightness, contrast and saturation."""
    grayscale: float = 0.0
    """Chance that all colour is taken away; above 0 where things of a class differ in colour."""


@dataclass
class Data:
    """Which images, and how they are split and read."""

    name: Literal["icons", "folder", "csv", "cub", "cars", "sop", "inshop"] = "icons"
    """icons (rendered from fonts), folder (one sub-folder a class), csv (path,label and more), or a benchmark."""
    root: str | None = None
    """Folder of the images; for icons, where they are rendered to (default: the user's cache)."""
    path: str | None = None
    """The CSV file, for data.name csv."""
    outside_root: bool = False
    """Let a CSV file list images outside data.root (or outside its own folder); for lists that you trust."""
    test_fraction: float = 0.2
    """Share of the classes kept for the final judgement, by hash of the name, where the source has no split."""
    test_classes: list[str] | None = None
    """The classes kept for the final judgement by name, instead of a share."""
    validation_fraction: float = 0.1
    """Share of the training classes that choose the checkpoint instead of being trained on, by hash of the name."""
    resize: int | Literal["stretch"] | None = None
    """Shorter side in pixels before the centre crop of evaluation; null for encoder.image_size * 256 / 224; stretch
    makes the whole image a square instead, for images far from square."""
    workers: int = 1
    """Processes that read and augment images, for each process that trains."""
    cache: str | None = None
    """Folder for smaller copies of the images, made once, so that training need not decode the files; null for none. It
    may serve many runs. A copy of 341 x 256 pixels takes 262 KB, 120,000 of them 31 GB. Crops of it are softer than
    crops of the file."""
    cache_size: int | None = None
    """Shorter side of the copies in pixels, or both sides with data.resize stretch; null for the size that evaluation
    resizes to, which then reads the copies too, to the same scores. Larger copies keep small crops sharp; evaluation
    then reads the files."""
    on_error: Literal["raise", "skip"] = "raise"
    """An image that cannot be read ends the run, or is left out: with skip all are read before the training, and those
    left out are listed in skipped.csv."""
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass
class Encoder:
    """The network that turns an image into an embedding."""

    name: str = "deit_small_patch16_224"
    """Any timm backbone."""
    weights: str = "hub"
    """Start: hub (timm's), none, a local file, package:efficientnet-lite0, or run:FOLDER."""
    embedding_dim: int | None = 128
    """Size of the embedding; null for the backbone's own features without a projection."""
    image_size: int = 224
    """Side of the square input in pixels."""
    drop_path: float = 0.0
    """Stochastic depth: chance that a residual branch is left out in training."""
    freeze: bool = False
    """Train the projection and the proxies alone: the backbone's features are computed once, in the view of evaluation,
    without augmentation, and kept in the user's cache; a run then takes seconds."""
    freeze_batchnorm: bool = True
    """Keep batch-norm layers on their stored statistics."""
    freeze_patch_embedding: bool = False
    """Keep a vision transformer's patch embedding as it is."""
    freeze_epochs: float = 0.0
    """Train only projection and proxies for so many epochs first."""


@dataclass
class Initialisation:
    """The data-driven start; set both to random for the papers' start."""

    projection: Literal["principal", "random"] = "principal"
    """From the principal components of the training features, or random."""
    whitening: float = 1.0
    """0 keeps the variances of the principal components, 1 makes them equal."""
    proxies: Literal["class_means", "random", "simplex"] = "class_means"
    """From the mean embedding of each class, or random; simplex: each as far from every other, turned towards the class
    means, and not trained, for at most embedding_dim + 1 classes."""


@dataclass
class Miner:
    """Chooses pairs or triplets for a loss of pytorch-metric-learning."""

    name: str | None = None
    """A class of pytorch_metric_learning.miners; null for none."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its settings."""


@dataclass
class Orthogonality:
    """What keeps the proxies apart: Soft Orthogonality, or a rival."""

    kind: Literal["soft", "off_diagonal", "spectral", "coherence", "coding_rate", "koleo"] = "soft"
    """soft: Soft Orthogonality; off_diagonal: without the lengths; spectral: of the worst direction (SRIP); coherence:
    of the closest pair; coding_rate: by the volume spanned; koleo: by the nearest of each."""
    weight: float = 0.0
    """lambda; 0 leaves it out."""
    scaling: Literal["sum", "mean", "excess"] = "excess"
    """Of soft and off_diagonal: sum as published, mean over pairs, or the excess over the Welch bound a proxy."""
    normalize: bool = True
    """Scale proxies to unit length first; off_diagonal takes false only, coherence, coding_rate and koleo true only."""
    form: Literal["auto", "classes", "dims"] = "auto"
    """Of soft: compute through the C x C matrix, the D x D matrix, or the smaller."""


@dataclass
class Loss:
    """What training minimises."""

    name: str = "proxy_anchor"
    """proxy_anchor, or a class of pytorch_metric_learning.losses (extra compare)."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its settings, for example scale and margin."""
    miner: Miner = field(default_factory=Miner)
    orthogonality: Orthogonality = field(default_factory=Orthogonality)
    shard_proxies: bool = False
    """Divide the proxies and their optimiser state among the processes started by torchrun; for proxy_anchor."""


@dataclass
class Rates:
    """Learning rates at their highest."""

    backbone: float = 1e-4
    """Of the pretrained backbone."""
    projection: float = 1e-4
    """Of the layer from the backbone's features to the embedding."""
    proxies: float = 1e-2
    """Of the loss's proxies or class weights."""


@dataclass
class Training:
    """The loop."""

    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step and accumulation, of all processes together."""
    per_class: int | None = None
    """Images of each class in a batch; null for shuffled batches."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    rates: Rates = field(default_factory=Rates)
    weight_decay: float = 1e-4
    """AdamW's, on all but proxies, biases and normalisation layers."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How rates fall after the warm-up."""
    warmup_epochs: float = 1.0
    """Rates rise linearly from 0 for so long."""
    step_epochs: int = 10
    """For the step schedule: rates fall every so many epochs ..."""
    step_factor: float = 0.5
    """... by this factor."""
    clip_norm: float | None = None
    """Greatest norm of the gradient."""
    clip_value: float | None = None
    """Greatest absolute value of a gradient's element."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bf16-mixed where the hardware computes it natively, else 32-true."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    seed: int = 0
    """Of everything random."""
    deterministic: bool = False
    """The same bits each time on a GPU, and from three processes or more when resumed; slower. Others need it not."""
    select_on: Literal["validation", "test", "none"] = "validation"
    """Classes that choose the best checkpoint; none keeps the last. Results chosen on test are labelled so."""
    monitor: str = "map@r"
    """The score that the choice looks at."""
    validate_every: int = 1
    """Epochs between two validations."""
    patience: int | None = None
    """Stop after so many validations without improvement."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    max_bad_batches: int = 10
    """Steps that may be left out because their loss or a gradient is not finite, since the start or the last --resume;
    with one more the training stops."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=list)
    """Trackers that get the metrics too, besides metrics.jsonl."""


@dataclass
class Evaluation:
    """How results are scored."""

    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """Values of K for Recall@K."""
    nmi: bool = False
    """Also report NMI of a k-means clustering."""
    exclude_group: bool | None = None
    """Leave a query's own group out of its gallery; null: where the data have groups."""
    draws: int = 1000
    """Bootstrap samples of classes."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    memory_mb: float = 512
    """Bound on the memory of a block of similarities, in MiB; of each process."""


@dataclass
class Config:
    """All that decides a run; as YAML a recipe, on the command line one option a field.

    Examples
    --------
    >>> config = Config(data=Data(name="folder", root="images"), loss=Loss(orthogonality=Orthogonality(weight=0.3)))
    >>> config.loss.orthogonality.scaling
    'excess'
    """

    data: Data = field(default_factory=Data)
    """Which images."""
    encoder: Encoder = field(default_factory=Encoder)
    """The network."""
    initialisation: Initialisation = field(default_factory=Initialisation)
    """Where it starts."""
    loss: Loss = field(default_factory=Loss)
    """What is minimised."""
    training: Training = field(default_factory=Training)
    """How."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How results are scored."""
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and machine, written by a run; not an option."""

    def check(self) -> Config:
        """Check what the types leave open.

        Returns
        -------
        Config
            Itself.

        Raises
        ------
        InputError
            Naming the field and what it may be.

        Examples
        --------
        >>> Config(training=Training(batch_size=0)).check()
        Traceback (most recent call last):
        ...
        orthoproxy.core.errors.InputError: training.batch_size: must be 1 or more, not 0
        """
        for name in _FRACTIONS:
            _require(self, name, lambda x: 0 <= x <= 1, "from 0 to 1")
        for name in _POSITIVE_COUNTS:
            _require(self, name, lambda x: x >= 1, "1 or more")
        for name in _NOT_NEGATIVE:
            _require(self, name, lambda x: x >= 0, "0 or more")
        for name in ("data.augmentation.crop_scale", "data.augmentation.crop_ratio"):
            _require(self, name, lambda x: 0 < x[0] <= x[1], "two positive numbers in order")
        _require(self, "data.augmentation.crop_scale", lambda x: x[1] <= 1, "at most 1, the whole image")
        _require(self, "data.resize", lambda x: x == "stretch" or x >= 1, "1 or more, or stretch")
        _require(self, "evaluation.recall_at", lambda x: x and min(x) >= 1, "at least one K, each 1 or more")
        _require(self, "evaluation.confidence", lambda x: 0 < x < 1, "between 0 and 1")
        scores = [*(f"recall@{k}" for k in self.evaluation.recall_at), "map@r", "r_precision", "mrr"]
        if self.training.monitor not in scores:
            raise InputError(f"training.monitor: unknown {self.training.monitor!r}; one of {', '.join(scores)}")
        if self.data.name == "csv" and not self.data.path:
            raise InputError("data.path: missing; data.name csv needs the CSV file")
        if self.data.name not in ("icons", "csv") and not self.data.root:
            raise InputError(f"data.root: missing; data.name {self.data.name} needs the folder of the images")
        if self.training.per_class and self.training.batch_size % self.training.per_class:
            raise InputError(
                f"training.per_class: {self.training.per_class} does not divide "
                f"training.batch_size {self.training.batch_size}"
            )
        if self.loss.shard_proxies and self.loss.orthogonality.form == "classes":
            raise InputError(
                "loss.orthogonality.form: classes compares all proxies with each other, and loss.shard_proxies divides "
                "them among processes; use auto or dims"
            )
        if self.encoder.freeze:
            _check_frozen(self.encoder)
        if self.initialisation.proxies == "simplex":
            _check_simplex(self.loss)
        return self


def _check_frozen(encoder: Encoder) -> None:
    """With a frozen backbone, the projection must be there to be trained."""
    if encoder.embedding_dim is None:
        raise InputError(
            "encoder.embedding_dim: null leaves out the projection, and with encoder.freeze there is nothing else to "
            "train; give a number"
        )
    if encoder.freeze_epochs:
        raise InputError(
            f"encoder.freeze_epochs: {encoder.freeze_epochs:g}, but encoder.freeze keeps the backbone as it is in all "
            "epochs; set one of them to 0 or false"
        )


def _check_simplex(loss: Loss) -> None:
    """Proxies that stand still can neither be kept apart nor be divided."""
    if loss.orthogonality.weight:
        raise InputError(
            "loss.orthogonality.weight: initialisation.proxies simplex keeps the proxies as they are, so there is "
            "nothing to regularise; set it to 0"
        )
    if loss.shard_proxies:
        raise InputError(
            "loss.shard_proxies: initialisation.proxies simplex has at most encoder.embedding_dim + 1 proxies, all in "
            "one place; set it to false"
        )


_FRACTIONS = (
    "data.test_fraction",
    "data.validation_fraction",
    "data.augmentation.flip",
    "data.augmentation.grayscale",
    "encoder.drop_path",
    "initialisation.whitening",
    "training.step_factor",
)
_POSITIVE_COUNTS = (
    "data.cache_size",
    "encoder.embedding_dim",
    "encoder.image_size",
    "training.epochs",
    "training.batch_size",
    "training.per_class",
    "training.accumulate",
    "training.step_epochs",
    "training.validate_every",
    "training.patience",
    "training.log_every",
    "evaluation.draws",
    "evaluation.memory_mb",
)
_NOT_NEGATIVE = (
    "data.augmentation.jitter",
    "data.workers",
    "encoder.freeze_epochs",
    "loss.orthogonality.weight",
    "training.rates.backbone",
    "training.rates.projection",
    "training.rates.proxies",
    "training.weight_decay",
    "training.warmup_epochs",
    "training.clip_norm",
    "training.clip_value",
    "training.max_bad_batches",
    "training.seed",
)


def _require(config: Config, name: str, holds: Any, what: str) -> None:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    if value is not None and not holds(value):
        raise InputError(f"{name}: must be {what}, not {value}")


def with_absolute_paths(config: Config) -> Config:
    """Return a copy whose paths hold wherever it is read.

    Parameters
    ----------
    config
        Paths in it start at the current folder.

    Examples
    --------
    >>> with_absolute_paths(Config(data=Data(name="folder", root="/images/../birds"))).data.root
    '/birds'
    """

    def absolute(path: str | None) -> str | None:
        return str(Path(path).resolve()) if path else path

    weights = config.encoder.weights
    if weights.startswith("run:"):
        weights = f"run:{absolute(weights.removeprefix('run:'))}"
    elif weights not in ("hub", "none") and not weights.startswith("package:"):
        weights = absolute(weights) or weights
    return replace(
        config,
        data=replace(
            config.data,
            root=absolute(config.data.root),
            path=absolute(config.data.path),
            cache=absolute(config.data.cache),
        ),
        encoder=replace(config.encoder, weights=weights),
    )


def flat(config: Config) -> dict[str, Any]:
    """Return the options of a configuration by their dotted names, without the environment.

    Parameters
    ----------
    config
        Of a run.

    Examples
    --------
    >>> flat(Config())["loss.orthogonality.scaling"]
    'excess'
    """
    return {name: value for name, value in _walk(config, "") if not name.startswith("environment")}


def _walk(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in fields(part):
        value = getattr(part, item.name)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", list(value) if isinstance(value, tuple) else value


def to_dict(config: Config) -> dict[str, Any]:
    """Return a configuration as nested dictionaries and lists, as YAML has it.

    Parameters
    ----------
    config
        Of a run.

    Examples
    --------
    >>> to_dict(Config())["data"]["augmentation"]["crop_scale"]
    [0.2, 1.0]
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(asdict(config))
