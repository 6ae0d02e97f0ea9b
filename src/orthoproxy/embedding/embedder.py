"""A trained model in use: images in, embeddings out; saved to and loaded from a folder or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.torch
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from jaxtyping import Float
from pydantic import BaseModel, Field, RootModel
from torch import Tensor

from orthoproxy.core.distributed import all_gather_rows, local_slice, raise_together, split_sizes
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.data import evaluation_transform
from orthoproxy.data.transforms import Resize
from orthoproxy.embedding.augmentation import AUGMENTED, mean_over_views
from orthoproxy.embedding.batches import Images, as_batch, iterate_image_batches
from orthoproxy.embedding.file_formats import Dim, Finite, ImageSize, ResizeField, read_json
from orthoproxy.models import Encoder
from orthoproxy.models.merged import MergedEncoder
from orthoproxy.models.weights import cache_alone_without_network, read_tensors

FILES = ("config.json", "model.safetensors", "classes.json", "README.md", "proxies.safetensors")
HUB_ID = re.compile(r"(?P<owner>[A-Za-z0-9][\w.-]*)/[A-Za-z0-9][\w.-]*")
EXPORT_AGAIN = "update orthoproxy, or train or export the model again"
AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
BATCH_SIZE = 128


class MergedPart(BaseModel, frozen=True):
    """One encoder of a merged model."""

    encoder: str
    embedding_dim: Dim | None
    pooling: str | None


class ModelConfig(BaseModel, frozen=True):
    """The config.json of a model folder."""

    format_version: Literal[2]
    encoder: str
    embedding_dim: Dim | None
    image_size: ImageSize
    pooling: str | None = None
    merged: Annotated[list[MergedPart], Field(max_length=64)] | None = None  # the file may be untrusted
    resize: ResizeField = None
    threshold: Finite | None = None
    false_match_rate: Finite | None = None


class Embedder(
    ModelHubMixin,
    library_name="orthoproxy",
    pipeline_tag="image-feature-extraction",
    tags=["metric-learning", "image-retrieval"],
):
    """An encoder with the image transform that it expects.

    It also has `save_pretrained`, `from_pretrained` and `push_to_hub` of huggingface_hub.

    Parameters
    ----------
    encoder
        Put into evaluation mode.
    resize
        Shorter side in pixels before the center crop, or ``"stretch"``; see `data.evaluation_transform`.
    classes, proxies
        Names of the training classes, and one row per class or None.
    device
        Where to compute.

    Attributes
    ----------
    threshold, false_match_rate
        Similarity below which a search result counts as no match, and the rate it was calibrated for; None without.
    card
        Text of the model card.
    augment
        Whether an embedding is the mean over views of the image; see `augmented`.
    baseline_folder
        Model folder of the untrained encoder of the same run, if there is one.

    Examples
    --------
    >>> from PIL import Image
    >>> embedder = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32), resize=32)
    >>> embedder.embed([Image.new("RGB", (50, 40)), Image.new("L", (40, 50))]).shape
    (2, 16)
    """

    def __init__(
        self,
        encoder: Encoder | MergedEncoder,
        resize: Resize = None,
        classes: Sequence[str] = (),
        proxies: Float[Tensor, "C D"] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.encoder = encoder.eval().to(device)
        self.embedding_dim, self.image_size = encoder.embedding_dim, encoder.image_size
        self.resize: Resize = resize
        self.device = torch.device(device)
        self.classes, self.proxies = list(classes), proxies
        self.transform = evaluation_transform(encoder.image_size, resize)
        self.threshold: float | None = None
        self.false_match_rate: float | None = None
        self.card = ""
        self.augment = False
        self.baseline_folder: Path | None = None
        self._identity: tuple[Any, str] = (None, "")

    @property
    def identity(self) -> str:
        """Hash of weights, backbone and transform; embeddings are comparable if their models have the same identity."""
        weights = self.encoder.state_dict()
        versions = [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in weights.values()]
        if self._identity[0] != versions:
            self._identity = versions, self._hash(weights)
        return self._identity[1] + (AUGMENTED if self.augment else "")

    def _hash(self, weights: dict[str, Tensor]) -> str:
        encoder = self.encoder
        normalization = [x.flatten().tolist() for x in (encoder.mean, encoder.std)]
        pooling = [encoder.pooling] if encoder.pooling else []
        described = [encoder.name, encoder.image_size, self.transform.resize, *normalization, *pooling]
        digest = hashlib.sha256(json.dumps(described).encode())
        for name, x in sorted(weights.items()):
            digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def embed(
        self,
        images: Images,
        batch_size: int = BATCH_SIZE,
        workers: int = 0,
        progress: str | None = None,
        precision: str = "32-true",
    ) -> Float[np.ndarray, "N D"]:
        """Embed images; returns unit-length float32 rows, in the order of the images.

        Raises InputError if an image cannot be read, or an argument is invalid.

        Parameters
        ----------
        images
            Paths, PIL images of any mode, uint8 arrays H x W x 3, or one of these; resized RGB pixels as a tensor
            B x 3 x H x W or 3 x H x W, uint8 or floating point from 0 to 1; or an N x F tensor of pooled features.
        batch_size
            Images per forward pass.
        workers
            Data loading processes; 0 loads in this process.
        progress
            Label of the progress bar; None shows none.
        precision
            ``"32-true"``, or ``"bf16-mixed"`` or ``"16-mixed"`` for autocast, as in Lightning Fabric.
        """
        model = partial(mean_over_views, self.encoder) if self.augment else self.encoder
        batches = self._iterate(model, images, batch_size, workers, progress, precision)
        rows = (batch.cpu().numpy() for batch in batches)
        return np.concatenate([np.empty((0, self.embedding_dim), dtype=np.float32), *rows])

    def embed_distributed(self, images: Images, **options: Any) -> Float[np.ndarray, "N D"]:
        """Embed images as `embed` does, with its options, with all processes of a distributed job.

        Every process must call it and gets all rows. Batches, and so results, do not depend on the number of processes.
        """
        given = as_batch(images)
        sizes = split_sizes(len(given), unit=options.get("batch_size", BATCH_SIZE))
        with raise_together():
            rows = self.embed(given[local_slice(sizes)], **options)
        return all_gather_rows(torch.from_numpy(rows), sizes).numpy()

    def iterate_features(self, images: Images, **options: Any) -> Iterator[Float[Tensor, "b F"]]:
        """Yield the backbone's pooled features, before projection and normalization, batch by batch.

        They are float32, on the model's device. Rows of an N x F tensor are yielded as they are. Options and errors are
        those of `embed`.
        """
        return self._iterate(lambda x: x if x.ndim == 2 else self.encoder.features(x), images, **options)

    def _iterate(
        self,
        model: Callable[[Tensor], Tensor],
        images: Images,
        batch_size: int = BATCH_SIZE,
        workers: int = 0,
        progress: str | None = None,
        precision: str = "32-true",
    ) -> Iterator[Float[Tensor, "b _"]]:
        on_gpu, features = self.device.type == "cuda", self.encoder.feature_dim
        if precision not in AUTOCAST:
            raise InputError(repr(precision), field="precision", expected=f"one of {', '.join(AUTOCAST)}")
        dtype = AUTOCAST[precision]
        autocast = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
        for batch in iterate_image_batches(images, self.transform, batch_size, workers, progress, on_gpu, features):
            with torch.no_grad(), _evaluating(self.encoder), autocast:
                rows = model(torch.as_tensor(batch).to(self.device, non_blocking=on_gpu))
            yield rows.float()

    def save(self, folder: Path, card: str | None = None) -> None:
        """Write a model folder: `FILES`, with `card` or else the model's own as README.md."""
        folder.mkdir(parents=True, exist_ok=True)
        encoder, merged = self.encoder, isinstance(self.encoder, MergedEncoder)
        config = ModelConfig(
            format_version=2,
            **_describe(encoder),
            image_size=encoder.image_size,
            merged=[MergedPart(**_describe(x)) for x in encoder.backbone] if merged else None,
            resize=self.resize,
            threshold=self.threshold,
            false_match_rate=self.false_match_rate,
        )
        (folder / "config.json").unlink(missing_ok=True)  # written last: with it, the folder is complete
        (folder / "proxies.safetensors").unlink(missing_ok=True)
        atomic_write(folder / "classes.json", json.dumps(self.classes, indent=0, ensure_ascii=False) + "\n")
        atomic_write(folder / "README.md", self.card if card is None else card)
        _write_tensors({name: x.contiguous() for name, x in encoder.state_dict().items()}, folder / "model.safetensors")
        if self.proxies is not None:
            _write_tensors({"proxies": self.proxies.detach().cpu().contiguous()}, folder / "proxies.safetensors")
        _write_config(config, folder)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", with_proxies: bool = True) -> Embedder:
        """Load a model from a run folder, a model folder or the Hugging Face hub.

        Raises InputError if there is none, it is damaged, or its format version is unknown.

        Parameters
        ----------
        path
            ``runs/NAME``, ``runs/NAME/model``, any other folder that `save` wrote, or ``OWNER/NAME`` on the hub if
            there is no local folder ``OWNER``.
        device
            Where to compute.
        with_proxies
            Load the proxies too; embedding does not need them.

        Examples
        --------
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32), classes=["cat"]).save(folder)
        >>> Embedder.load(folder).classes
        ['cat']
        """
        match = HUB_ID.fullmatch(str(path))
        is_on_hub = match is not None and not Path(match["owner"]).exists()
        folder = (_download(str(path)) if is_on_hub else Path(path)).resolve()
        folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
        if not (folder / "config.json").is_file():
            raise InputError("no model: neither config.json nor model/config.json exists", path=path)
        config = read_json(ModelConfig, folder / "config.json", EXPORT_AGAIN)
        try:
            parts = config.merged or [config]
            encoders = [Encoder(x.encoder, x.embedding_dim, config.image_size, pooling=x.pooling) for x in parts]
            encoder = MergedEncoder(encoders, config.embedding_dim) if config.merged else encoders[0]
            encoder.load_state_dict(read_tensors(folder / "model.safetensors", "model"))
        except RuntimeError as error:
            reason = textwrap.shorten(str(error), 200)
            raise InputError(f"model.safetensors does not match config.json: {reason}", path=folder) from error
        proxies = folder / "proxies.safetensors"
        proxies = _read_proxies(proxies) if with_proxies and proxies.is_file() else None
        classes = read_json(RootModel[list[str]], folder / "classes.json", EXPORT_AGAIN).root
        embedder = cls(encoder, config.resize, classes, proxies, device)
        embedder.threshold, embedder.false_match_rate = config.threshold, config.false_match_rate
        card, baseline = folder / "README.md", folder.parent / "baseline"
        embedder.card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        if (baseline / "config.json").is_file() and baseline != folder:
            embedder.baseline_folder = baseline
        return embedder

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)
        if not self.card:  # huggingface_hub then writes one
            (save_directory / "README.md").unlink()

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: str | torch.device = "cpu", **options: Any) -> Embedder:
        if Path(model_id).is_dir():
            return cls.load(model_id, device)
        # the mixin passes config.json too, which `load` reads itself
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        return cls.load(_download(model_id, **{name: options[name] for name in names}), device)


def _describe(encoder: Encoder | MergedEncoder) -> dict[str, Any]:
    dim = encoder.embedding_dim if isinstance(encoder.projection, torch.nn.Linear) else None
    return {"encoder": encoder.name, "embedding_dim": dim, "pooling": encoder.pooling}


def write_threshold(folder: Path, threshold: float | None, false_match_rate: float | None) -> None:
    """Set or, with None, remove the no-match threshold of a model folder."""
    rate = None if threshold is None else false_match_rate
    changes = {"threshold": threshold, "false_match_rate": rate}
    _write_config(read_json(ModelConfig, folder / "config.json", EXPORT_AGAIN).model_copy(update=changes), folder)


@contextmanager
def _evaluating(encoder: Encoder | MergedEncoder) -> Iterator[None]:
    """Put an encoder into evaluation mode, and each module back into its own."""
    training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _download(name: str, **options: Any) -> Path:
    """Download a model folder from the hub, or find it in the hub client's cache."""
    try:
        with cache_alone_without_network():
            return Path(snapshot_download(name, allow_patterns=list(FILES), **options))
    except (OSError, ValueError) as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...")
        raise InputError(
            f"no model {name}: there is no such folder, and the Hugging Face hub cannot provide it: {reason}",
            hint="connect to the internet, or give a run folder or a model folder",
        ) from error


def _read_proxies(path: Path) -> Tensor:
    proxies = read_tensors(path, "model").get("proxies")
    if proxies is None or proxies.ndim != 2 or not proxies.is_floating_point():
        raise InputError("no C x D tensor named proxies", path=path, hint=EXPORT_AGAIN)
    return proxies


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    atomic_write(path, safetensors.torch.save(tensors))  # save_file does not raise OSError on a full disk


def _write_config(config: ModelConfig, folder: Path) -> None:
    values = config.model_dump(exclude=None if config.merged else {"merged"})
    atomic_write(folder / "config.json", json.dumps(values, indent=2) + "\n")
