"""A trained model as a thing to use: images in, embeddings out; saved as a folder, loaded from one or from the hub."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from orthoproxy.core.distributed import all_gather_rows, local_slice, raise_together, split_sizes
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.core.progress import Progress
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.data import CroppableImage, EvaluationImages, evaluation_size, evaluation_transform
from orthoproxy.data.read_timeout import watched, worker_options
from orthoproxy.data.transforms import Resize, Transform
from orthoproxy.models import Encoder, read_tensors
from orthoproxy.models.weights import cache_alone_without_network

FORMAT_VERSION = 1
LARGEST = 16_384  # embedding_dim, and pixels of resize; what a description says is believed before tensors can prove it
LARGEST_IMAGE = 4096  # pixels of image_size; a backbone is tried out at it
FILES = ("config.json", "model.safetensors", "classes.json", "README.md", "proxies.safetensors")
HUB_ID = re.compile(r"(?P<owner>[A-Za-z0-9][\w.-]*)/[A-Za-z0-9][\w.-]*")
Images = Sequence[str | Path | Image.Image | CroppableImage] | Tensor


class Embedder(
    ModelHubMixin,
    library_name="orthoproxy",
    pipeline_tag="image-feature-extraction",
    tags=["metric-learning", "image-retrieval"],
):
    """An encoder together with the view of an image that it expects.

    As the models of other libraries, it also has `save_pretrained`, `from_pretrained` and `push_to_hub` of
    huggingface_hub.

    Parameters
    ----------
    encoder
        Put into evaluation mode.
    resize
        Shorter side in pixels before the centre crop, or ``"squash"``; see `data.evaluation_transform`.
    classes
        Names of the training classes, in the order of `proxies`.
    proxies
        One row a class, or None.
    device
        Where to compute.

    Attributes
    ----------
    threshold
        Similarity below which a search has found nothing, or None: not known. See `evaluation.Matching`.
    false_match_rate
        The rate that the threshold was chosen for, as a fraction; None without one.
    card
        Text of the model card.
    baseline_folder
        Model folder of the untrained encoder, where there is one.

    Examples
    --------
    >>> embedder = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32), resize=32)
    >>> embedder.embed([Image.new("RGB", (50, 40)), Image.new("L", (40, 50))]).shape
    (2, 16)
    """

    def __init__(
        self,
        encoder: Encoder,
        resize: Resize = None,
        classes: Sequence[str] = (),
        proxies: Float[Tensor, "C D"] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.encoder = encoder.eval().to(device)
        self.resize: Resize = resize
        self.device = torch.device(device)
        self.classes, self.proxies = list(classes), proxies
        self.transform = evaluation_transform(encoder.image_size, resize)
        self.threshold: float | None = None
        self.false_match_rate: float | None = None
        self.card = ""
        self.baseline_folder: Path | None = None

    @property
    def embedding_dim(self) -> int:
        """D, numbers in an embedding."""
        return self.encoder.embedding_dim

    @property
    def image_size(self) -> int:
        """Side of the square that the encoder sees, in pixels."""
        return self.encoder.image_size

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that say which model this is; embeddings of two models cannot be compared.

        They are of the SHA-256 of the weights, the backbone's name and the view, computed anew each time: some 50 ms
        for 20 million weights.
        """
        encoder = self.encoder
        view = [encoder.name, encoder.image_size, evaluation_size(encoder.image_size, self.resize)]
        colours = [x.flatten().tolist() for x in (encoder.mean, encoder.std)]
        digest = hashlib.sha256(json.dumps([*view, *colours]).encode())
        for name, x in sorted(encoder.state_dict().items()):
            digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def embed(
        self,
        images: Images,
        batch_size: int = 128,
        workers: int = 0,
        what: str | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """Embed images.

        Parameters
        ----------
        images
            Files, PIL images of any mode, pictures such as `data.cached_images` returns, or a batch of pixels that is
            already resized: RGB, uint8 or 0 to 1; or their pooled features, N x F.
        batch_size
            Images that go through the encoder at once.
        workers
            Processes that read files, besides this one.
        what
            What to call the work in the progress shown; None to show none.

        Returns
        -------
        numpy.ndarray
            Unit-length float32 rows, in the order of the images.

        Raises
        ------
        InputError
            For a file that cannot be read, or for what are no images.
        """
        rows = [np.empty((0, self.embedding_dim), dtype=np.float32)]
        with torch.inference_mode(), Progress(what or "embed", len(images), shown=what is not None) as progress:
            for batch in batches_of(images, self.transform, batch_size, workers):
                rows.append(self.encoder(batch.to(self.device)).float().cpu().numpy())
                progress.advance(len(batch), unit="images")
        return np.concatenate(rows)

    def embed_together(
        self,
        images: Images,
        batch_size: int = 128,
        workers: int = 0,
        what: str | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """Embed images with all processes of a job: each embeds some of the batches, and gets all embeddings.

        Every process must call it. The batches are those of `embed`, and so are the embeddings.

        Parameters
        ----------
        images, batch_size, workers, what
            As in `embed`; the workers are of each process, and the progress shown is that of the main one.

        Returns
        -------
        numpy.ndarray
            As from `embed`, the same in every process.

        Raises
        ------
        InputError
            As from `embed`, in all processes.
        """
        sizes = split_sizes(len(images), unit=batch_size)
        with raise_together():
            own = self.embed(images[local_slice(sizes)], batch_size, workers, what)
        return all_gather_rows(torch.from_numpy(own), sizes).numpy()

    def save(self, folder: Path, card: str | None = None) -> None:
        """Write the model folder: all that is needed to embed.

        Parameters
        ----------
        folder
            Created; holds config.json, model.safetensors, classes.json, README.md and, with proxies,
            proxies.safetensors.
        card
            The model card's text; None for the one that the model has.
        """
        folder.mkdir(parents=True, exist_ok=True)
        encoder = self.encoder
        description = {
            "format_version": FORMAT_VERSION,
            "encoder": encoder.name,
            "embedding_dim": encoder.embedding_dim if isinstance(encoder.projection, torch.nn.Linear) else None,
            "image_size": encoder.image_size,
            "resize": self.resize,
        }
        if self.threshold is not None:
            description |= {"threshold": self.threshold, "false_match_rate": self.false_match_rate}
        (folder / "config.json").unlink(missing_ok=True)  # written last, it says that the rest is whole
        classes = json.dumps(self.classes, indent=0, ensure_ascii=False)
        atomic_write(folder / "classes.json", classes + "\n")
        atomic_write(folder / "README.md", self.card if card is None else card)
        tensors = {name: x.contiguous() for name, x in encoder.state_dict().items()}
        _write_tensors(tensors, folder / "model.safetensors")
        (folder / "proxies.safetensors").unlink(missing_ok=True)
        if self.proxies is not None:
            proxies = self.proxies.detach().cpu().contiguous()
            _write_tensors({"proxies": proxies}, folder / "proxies.safetensors")
        atomic_write(folder / "config.json", json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", with_proxies: bool = True) -> Embedder:
        """Load a model from a run folder, a model folder or the hub.

        Parameters
        ----------
        path
            ``runs/NAME``, ``runs/NAME/model``, any other folder that `save` wrote, or ``OWNER/NAME`` on the Hugging
            Face hub where the working folder has no ``OWNER``.
        device
            Where to compute.
        with_proxies
            Read the proxies too; embedding needs none.

        Returns
        -------
        Embedder
            With `baseline_folder` set where the run's untrained encoder lies beside the model.

        Raises
        ------
        InputError
            If there is no model, or one of an unknown format version, or the hub does not give it.

        Examples
        --------
        >>> Embedder.load("nowhere")
        Traceback (most recent call last):
        ...
        orthoproxy.core.errors.InputError: no model in nowhere: neither config.json nor model/config.json is there
        """
        folder = (_from_hub(str(path)) if _is_of_the_hub(path) else Path(path)).resolve()
        folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
        if not (folder / "config.json").is_file():
            raise InputError(f"no model in {path}: neither config.json nor model/config.json is there")
        description = _read_json(folder / "config.json")
        version = description.get("format_version") if isinstance(description, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{folder / 'config.json'}: format_version {version!r} is unknown; this orthoproxy reads version "
                f"{FORMAT_VERSION}. Update orthoproxy, or export the model again"
            )
        _check_description(description, folder / "config.json")
        try:
            encoder = Encoder(description["encoder"], description["embedding_dim"], description["image_size"])
            encoder.load_state_dict(read_tensors(folder / "model.safetensors", "model"))
        except (KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: config.json and model.safetensors do not fit together: {reason}") from error
        has_proxies = with_proxies and (folder / "proxies.safetensors").is_file()
        proxies = _read_proxies(folder / "proxies.safetensors") if has_proxies else None
        embedder = cls(encoder, description.get("resize"), _read_classes(folder / "classes.json"), proxies, device)
        embedder.threshold, embedder.false_match_rate = _threshold_of(description, folder)
        card = folder / "README.md"
        embedder.card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        beside = folder.parent / "untrained"
        embedder.baseline_folder = beside if (beside / "config.json").is_file() and beside != folder else None
        return embedder

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)
        if not self.card:  # then huggingface_hub writes one
            (save_directory / "README.md").unlink()

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str | torch.device = "cpu",
        **options: Any,  # what the mixin finds in config.json, which `load` reads itself
    ) -> Embedder:
        if Path(model_id).is_dir():
            return cls.load(model_id, device)
        how = {"revision": revision, "cache_dir": cache_dir, "force_download": force_download}
        return cls.load(_from_hub(model_id, **how, local_files_only=local_files_only, token=token), device)


def batches_of(images: Images, transform: Transform, batch_size: int, workers: int) -> Iterable[Tensor]:
    """Read images batch by batch.

    Parameters
    ----------
    images, batch_size, workers
        As in `Embedder.embed`.
    transform
        From image to pixels; a tensor of images is taken as it is.

    Returns
    -------
    Iterable
        Of pixels, b x 3 x H x W, or rows of features, as many at once as `batch_size` says and at last what is left.

    Raises
    ------
    InputError
        For what are no images.

    Examples
    --------
    >>> [len(batch) for batch in batches_of(torch.zeros(5, 3, 8, 8), evaluation_transform(8), 2, workers=0)]
    [2, 2, 1]
    """
    if isinstance(images, Tensor):
        is_float = images.is_floating_point()
        if not (images.ndim == 4 and (is_float or images.dtype == torch.uint8)) and not (images.ndim == 2 and is_float):
            given = f"{images.dtype} of shape {tuple(images.shape)}"
            raise InputError(f"images: {given}; a tensor must be B x 3 x H x W, uint8 or from 0 to 1")
        return images.split(batch_size) if len(images) else []
    if isinstance(images, Sequence) and not isinstance(images, str):
        return watched(DataLoader(EvaluationImages(images, transform), batch_size, **worker_options(workers)))
    raise InputError(f"images: a {type(images).__name__}; give a list of paths or PIL images, or a tensor")


def write_threshold(folder: Path, threshold: float | None, false_match_rate: float | None) -> None:
    """Put the similarity below which a search has found nothing into a model folder, or take it out.

    Parameters
    ----------
    folder
        Of a model that was saved.
    threshold, false_match_rate
        As `Embedder` has them; None to take them out.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32)).save(folder)
    >>> write_threshold(folder, 0.7, 0.01)
    >>> Embedder.load(folder).threshold
    0.7
    """
    path = folder / "config.json"
    description = _read_json(path)
    given = {"threshold": threshold, "false_match_rate": false_match_rate}
    kept = {name: value for name, value in description.items() if name not in given}
    text = json.dumps(kept if threshold is None else {**kept, **given}, indent=2) + "\n"
    atomic_write(path, text)


def _is_of_the_hub(path: str | Path) -> bool:
    """Whether it has the form of a name on the hub, and is nothing here; ``runs/x`` is not, where there is ``runs``."""
    form = HUB_ID.fullmatch(str(path))
    return form is not None and not Path(form["owner"]).exists()


def _from_hub(name: str, **options: Any) -> Path:
    """Download a model folder, or find it in the hub client's cache; what goes wrong is the network's or the name's."""
    try:
        with cache_alone_without_network():
            return Path(snapshot_download(name, allow_patterns=list(FILES), **options))
    except Exception as error:  # of types that changed from version to version
        reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...")
        raise InputError(
            f"no model {name}: there is no such folder, and the hub does not give it: {reason}\n"
            "connect to the internet, or give a run folder or a model folder"
        ) from error


def _check_description(description: dict[str, Any], path: Path) -> None:
    """Refuse what no model has, before an encoder of that size is built."""

    def whole(name: str, most: int) -> bool:
        value = description.get(name)
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most

    resize = description.get("resize")
    sound = {
        "encoder": isinstance(description.get("encoder"), str),
        "embedding_dim": description.get("embedding_dim", 0) is None or whole("embedding_dim", LARGEST),
        "image_size": whole("image_size", LARGEST_IMAGE),
        "resize": resize in (None, "squash") or whole("resize", LARGEST),
    }
    for name, holds in sound.items():
        if not holds:
            raise InputError(f"{path}: {name} is {description.get(name)!r}, which no model has; export the model again")


def _read_classes(path: Path) -> list[str]:
    classes = _read_json(path)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path}: not a list of names; export the model again")
    return classes


def _read_proxies(path: Path) -> Tensor:
    proxies = read_tensors(path, "model").get("proxies")
    if proxies is None or proxies.ndim != 2 or not proxies.is_floating_point():
        raise InputError(f"{path}: holds no proxies, one row a class; export the model again")
    return proxies


def _threshold_of(description: dict[str, Any], folder: Path) -> tuple[float | None, float | None]:
    values = [description.get(name) for name in ("threshold", "false_match_rate")]
    for name, value in zip(("threshold", "false_match_rate"), values, strict=True):
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise InputError(f"{folder / 'config.json'}: {name} is {value!r}, no number; export the model again")
    threshold, rate = (None if value is None else float(value) for value in values)
    return threshold, rate


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    atomic_write(path, safetensors.torch.save(tensors))  # save_file tells a full disk in an exception of its own


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
