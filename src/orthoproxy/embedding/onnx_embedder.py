"""A model exported to ONNX, run by onnxruntime."""

from __future__ import annotations

import gc
import json
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel

from orthoproxy.core.device import available_cores, choose_device
from orthoproxy.core.errors import InputError
from orthoproxy.data import evaluation_transform
from orthoproxy.data.transforms import Resize
from orthoproxy.embedding.augmentation import AUGMENTED, augmented, mean_over_views
from orthoproxy.embedding.batches import Images, iterate_image_batches
from orthoproxy.embedding.file_formats import Dim, Finite, ImageSize, ResizeField, import_optional, validate_json

if TYPE_CHECKING:
    from orthoproxy.embedding.embedder import Embedder

INPUT, OUTPUT = "images", "embeddings"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": [CPU], "cuda": [CUDA], "auto": [CUDA, CPU]}
EXPORT_AGAIN = "export the run again with orthoproxy export"

# A forked worker inherits a session but not its threads: if the session were freed there, it would wait for them.
os.register_at_fork(after_in_child=gc.freeze)


class OnnxMetadata(BaseModel, frozen=True):
    """The metadata of an exported ONNX file, stored as JSON values."""

    format_version: Literal[2]
    identity: str
    encoder: str
    precision: Literal["float32", "int8"]
    image_size: ImageSize
    resize: ResizeField
    mean: list[Finite]  # the model itself normalizes the pixels
    std: list[Finite]
    embedding_dim: Dim
    threshold: Finite | None = None
    false_match_rate: Finite | None = None
    license: str = "unknown"
    source: str = ""  # identity of the exported model
    checked: str = ""  # result of comparing with it

    def to_properties(self) -> dict[str, str]:
        """Return the metadata as ONNX stores them, with a description of input and output for other programs."""
        description = {
            "library": "orthoproxy",
            "input": f"uint8 RGB pixels from 0 to 255, batch x 3 x {self.image_size} x {self.image_size}",
            "decoding": "upright by EXIF orientation, transparent parts white, 16-bit gray divided by 257",
            "interpolation": "bicubic",
            "crop": "center",
            "normalization": "inside the model",
            "output": f"float32, batch x {self.embedding_dim}, unit length",
        }
        return {name: json.dumps(value) for name, value in (self.model_dump(exclude_none=True) | description).items()}

    @classmethod
    def from_properties(cls, properties: dict[str, str], path: str | Path) -> OnnxMetadata:
        """Parse and validate the metadata of a file."""
        fields = (f"{json.dumps(name)}: {value}" for name, value in properties.items() if name in cls.model_fields)
        return validate_json(cls, "{" + ", ".join(fields) + "}", path, EXPORT_AGAIN)


class OnnxEmbedder:
    """A model in an ONNX file that ``orthoproxy export`` wrote, used like an `Embedder`.

    Parameters
    ----------
    path
        The file; its `metadata` become an attribute.
    device
        ``cpu``, ``cuda``, or ``auto`` for a GPU if onnxruntime can use one.
    """

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        if not Path(path).is_file():
            raise InputError("no such file", path=path)
        self.session = make_session(Path(path), device)
        self.metadata = metadata = OnnxMetadata.from_properties(self.session.get_modelmeta().custom_metadata_map, path)
        self.embedding_dim, self.image_size = metadata.embedding_dim, metadata.image_size
        self.resize: Resize = metadata.resize
        self.augment, self.threshold = False, metadata.threshold
        self.transform = evaluation_transform(self.image_size, self.resize)

    @property
    def identity(self) -> str:
        """Identity of the file's model, and whether embeddings are augmented."""
        return self.metadata.identity + (AUGMENTED if self.augment else "")

    def embed(
        self, images: Images, batch_size: int = 128, workers: int = 0, progress: str | None = None
    ) -> Float[np.ndarray, "N D"]:
        """Embed images as `Embedder.embed` does, but no features; floating point pixels are rounded to 8 bits."""
        model = self._embed_views if self.augment else self._run
        batches = iterate_image_batches(images, self.transform, batch_size, workers, progress)
        return np.concatenate([np.empty((0, self.embedding_dim), dtype=np.float32), *map(model, batches)])

    def _embed_views(self, batch: Any) -> Float[np.ndarray, "b D"]:
        import torch

        return mean_over_views(lambda pixels: torch.from_numpy(self._run(pixels)), torch.as_tensor(batch)).numpy()

    def _run(self, batch: Any) -> Float[np.ndarray, "b D"]:
        if not isinstance(batch, np.ndarray):
            batch = (batch.detach().float() if batch.is_floating_point() else batch).cpu().numpy()
        if batch.dtype != np.uint8:
            batch = (batch * 255).round().clip(0, 255).astype(np.uint8)
        return self.session.run([OUTPUT], {INPUT: np.ascontiguousarray(batch)})[0]


AnyEmbedder: TypeAlias = "Embedder | OnnxEmbedder"


def make_session(path: Path, device: str = "cpu") -> Any:
    """Open an ONNX file; it computes with ``OMP_NUM_THREADS`` threads, as PyTorch does, or else one per core."""
    onnxruntime = import_optional("onnxruntime", "onnx")
    kind, _, number = device.partition(":")
    providers = [name for name in PROVIDERS.get(kind, []) if name in onnxruntime.get_available_providers()]
    unsupported = InputError(f"onnxruntime does not support {device} here", field="device", hint="use auto or cpu")
    if not providers:
        raise unsupported
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or available_cores())
    options.log_severity_level = 3  # errors only
    try:
        options_of = [{"device_id": int(number or 0)} if name == CUDA else {} for name in providers]
        session = onnxruntime.InferenceSession(path, options, providers=providers, provider_options=options_of)
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base class
        reason = textwrap.shorten(getattr(error, "strerror", None) or str(error), 160)
        raise InputError(f"cannot be read as ONNX: {reason}", path=path, hint=EXPORT_AGAIN) from error
    if kind == "cuda" and CUDA not in session.get_providers():  # its libraries did not load
        raise unsupported
    return session


def load_model(path: str | Path, device: str = "cpu", identity: str = "") -> AnyEmbedder:
    """Load a trained or an exported model, without proxies; raises InputError if there is none, or it is damaged.

    Parameters
    ----------
    path
        A run folder, a model folder, an ``.onnx`` file, or ``OWNER/NAME`` on the Hugging Face hub.
    device
        Where to compute; ``auto`` for a GPU if there is one.
    identity
        Of stored embeddings to compare with: if they are augmented, the model embeds alike.

    Examples
    --------
    >>> import tempfile
    >>> from orthoproxy.embedding.embedder import Embedder
    >>> from orthoproxy.models import Encoder
    >>> folder = Path(tempfile.mkdtemp())
    >>> Embedder(Encoder("test_vit", embedding_dim=8, image_size=32)).save(folder)
    >>> load_model(folder).embedding_dim
    8
    """
    if identity.endswith(AUGMENTED):
        return augmented(load_model(path, device))
    if str(path).endswith(".onnx"):
        return OnnxEmbedder(path, device)
    from orthoproxy.embedding.embedder import Embedder  # loads timm, which an exported model does without

    return Embedder.load(path, choose_device(device), with_proxies=False)
