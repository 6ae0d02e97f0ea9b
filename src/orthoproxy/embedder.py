"""A trained model as a thing to use: images in, embeddings out; saved as a folder, loaded from one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from orthoproxy.data import EvaluationImages, Picture, evaluation_transform
from orthoproxy.data.transforms import Resize
from orthoproxy.errors import InputError
from orthoproxy.models import Encoder, read_tensors
from orthoproxy.processes import agreed, gather_rows, own_share, shares
from orthoproxy.progress import Progress

FORMAT_VERSION = 1


class Embedder:
    """An encoder together with the view of an image that it expects.

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
        self.resize, self.device = resize, torch.device(device)
        self.classes, self.proxies = list(classes), proxies
        self.transform = evaluation_transform(encoder.image_size, resize)
        self.baseline_folder: Path | None = None  # the untrained encoder's model folder, where there is one

    def embed(
        self,
        images: Sequence[str | Path | Image.Image | Picture] | Tensor,
        batch_size: int = 128,
        workers: int = 0,
        what: str | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """Embed images.

        Parameters
        ----------
        images
            Files, PIL images of any mode, pictures such as `data.cached_images` returns, or a batch of pixels that is
            already resized: RGB, uint8 or 0 to 1.
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
        if isinstance(images, Tensor):
            if images.ndim != 4 or not (images.is_floating_point() or images.dtype == torch.uint8):
                given = f"{images.dtype} of shape {tuple(images.shape)}"
                raise InputError(f"images: {given}; a tensor must be B x 3 x H x W, uint8 or from 0 to 1")
            batches = images.split(batch_size) if len(images) else []
        elif isinstance(images, Sequence) and not isinstance(images, str):
            batches = DataLoader(EvaluationImages(images, self.transform), batch_size, num_workers=workers)
        else:
            raise InputError(f"images: a {type(images).__name__}; give a list of paths or PIL images, or a tensor")
        rows = [torch.empty(0, self.encoder.embedding_dim)]
        with torch.inference_mode(), Progress(what or "embed", len(images), shown=what is not None) as progress:
            for batch in batches:
                rows.append(self.encoder(batch.to(self.device)).float().cpu())
                progress.advance(len(batch), unit="images")
        return torch.cat(rows).numpy()

    def embed_together(
        self,
        images: Sequence[str | Path | Image.Image | Picture],
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
        sizes = shares(len(images), unit=batch_size)
        with agreed():
            own = self.embed(images[own_share(sizes)], batch_size, workers, what)
        return gather_rows(torch.from_numpy(own), sizes).numpy()

    def save(self, folder: Path, card: str = "") -> None:
        """Write the model folder: all that is needed to embed.

        Parameters
        ----------
        folder
            Created; holds config.json, model.safetensors, classes.json, README.md and, with proxies,
            proxies.safetensors.
        card
            The model card's text.
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
        (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        classes = json.dumps(self.classes, indent=0, ensure_ascii=False)
        (folder / "classes.json").write_text(classes + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        tensors = {name: x.contiguous() for name, x in encoder.state_dict().items()}
        _write_tensors(tensors, folder / "model.safetensors")
        (folder / "proxies.safetensors").unlink(missing_ok=True)
        if self.proxies is not None:
            proxies = self.proxies.detach().cpu().contiguous()
            _write_tensors({"proxies": proxies}, folder / "proxies.safetensors")

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", with_proxies: bool = True) -> Embedder:
        """Load a model from a run folder or a model folder.

        Parameters
        ----------
        path
            ``runs/NAME``, ``runs/NAME/model``, or any other folder that `save` wrote.
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
            If there is no model, or one of an unknown format version.

        Examples
        --------
        >>> Embedder.load("runs/nowhere")
        Traceback (most recent call last):
        ...
        orthoproxy.errors.InputError: no model in runs/nowhere: neither config.json nor model/config.json is there
        """
        folder = Path(path).resolve()
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
        try:
            encoder = Encoder(description["encoder"], description["embedding_dim"], description["image_size"])
            encoder.load_state_dict(read_tensors(folder / "model.safetensors", "model"))
        except (KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: config.json and model.safetensors do not fit together: {reason}") from error
        has_proxies = with_proxies and (folder / "proxies.safetensors").is_file()
        proxies = read_tensors(folder / "proxies.safetensors", "model")["proxies"] if has_proxies else None
        embedder = cls(encoder, description.get("resize"), _read_json(folder / "classes.json"), proxies, device)
        beside = folder.parent / "untrained"
        embedder.baseline_folder = beside if (beside / "config.json").is_file() and beside != folder else None
        return embedder


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(safetensors.torch.save(tensors))  # save_file tells a full disk in an exception of its own


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
