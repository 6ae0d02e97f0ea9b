"""A model exported to ONNX, run by onnxruntime."""

from __future__ import annotations

import gc
import json
import os
import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel

from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.data import evaluation_transform
from orthoproxy.data.transforms import Resize
from orthoproxy.embedding.embedder import Embedder, Images, iterate_image_batches
from orthoproxy.embedding.file_formats import Dim, Finite, ImageSize, ResizeField, import_optional, validate_json

INPUT, OUTPUT = "images", "embeddings"
EXPORT_AGAIN = "export the run again with orthoproxy export"

# A session inherited by a forked worker must not be freed there: it would wait for threads that do not exist in it.
os.register_at_fork(after_in_child=gc.freeze)


class OnnxMetadata(BaseModel, frozen=True):
    """The metadata of an exported ONNX file, stored as JSON values.

    `resize`, `mean` and `std` describe the preprocessing; the model itself normalizes the pixels. `source` is the
    identity of the model that was exported, `checked` the result of comparing with it.
    """

    format_version: Literal[2]
    identity: str
    encoder: str
    precision: Literal["float32", "int8"]
    image_size: ImageSize
    resize: ResizeField
    mean: list[Finite]
    std: list[Finite]
    embedding_dim: Dim
    threshold: Finite | None = None
    false_match_rate: Finite | None = None
    license: str = "unknown"
    source: str = ""
    checked: str = ""

    def to_properties(self) -> dict[str, str]:
        """Return the metadata as ONNX stores them, with a description of input and output for other programs."""
        description = {
            "library": "orthoproxy",
            "input": f"uint8 RGB pixels from 0 to 255, batch x 3 x {self.image_size} x {self.image_size}",
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
    """A model in an ONNX file, used like an `Embedder`.

    Parameters
    ----------
    path
        Written by ``orthoproxy export``.
    device
        ``cpu``, or ``cuda`` if onnxruntime supports it.

    Attributes
    ----------
    metadata
        Metadata of the file.

    Raises
    ------
    InputError
        If onnxruntime is not installed or does not support the device, or the file was not written by
        ``orthoproxy export``.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        if not Path(path).is_file():
            raise InputError("no such file", path=path)
        self.path = Path(path)
        self.session = make_session(self.path, str(device))
        self.metadata = OnnxMetadata.from_properties(self.session.get_modelmeta().custom_metadata_map, path)
        self.transform = evaluation_transform(self.image_size, self.resize)

    @property
    def embedding_dim(self) -> int:
        """Embedding dimension D."""
        return self.metadata.embedding_dim

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.metadata.image_size

    @property
    def resize(self) -> Resize:
        """Shorter side in pixels before the center crop, or ``stretch``."""
        return self.metadata.resize

    @property
    def identity(self) -> str:
        """Identity of the exported `Embedder`; an int8 model has its own."""
        return self.metadata.identity

    @property
    def threshold(self) -> float | None:
        """Similarity below which a search result counts as no match, or None."""
        return self.metadata.threshold

    def embed(
        self, images: Images, batch_size: int = 128, workers: int = 0, progress: str | None = None
    ) -> Float[np.ndarray, "N D"]:
        """Embed images; parameters, result and errors are those of `Embedder.embed`."""
        rows = [np.empty((0, self.embedding_dim), dtype=np.float32)]
        with Progress(progress or "embed", len(images), shown=progress is not None) as bar:
            for batch in iterate_image_batches(images, self.transform, batch_size, workers):
                rows.append(self._run(batch))
                bar.advance(len(batch), unit="images")
        return np.concatenate(rows)

    def _run(self, pixels: torch.Tensor) -> Float[np.ndarray, "b D"]:
        if pixels.is_floating_point():
            pixels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
        return np.asarray(self.session.run([OUTPUT], {INPUT: pixels.contiguous().cpu().numpy()})[0])


def read_metadata(path: Path) -> OnnxMetadata:
    """Read the metadata of an ONNX file without preparing it to run."""
    onnx, protobuf = import_optional("onnx", "onnx"), import_optional("google.protobuf.message", "onnx")
    try:
        content = onnx.load(path, load_external_data=False)
    except (OSError, protobuf.DecodeError) as error:
        reason = getattr(error, "strerror", None) or textwrap.shorten(str(error), 160)
        raise InputError(f"cannot be read as ONNX: {reason}", path=path, hint=EXPORT_AGAIN) from error
    return OnnxMetadata.from_properties({entry.key: entry.value for entry in content.metadata_props}, path)


def make_session(path: Path, device: str = "cpu") -> Any:
    """Open an ONNX file with as many threads as PyTorch uses."""
    onnxruntime = import_optional("onnxruntime", "onnx")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.partition(":")[0], "")
    if provider not in onnxruntime.get_available_providers():
        raise InputError(f"onnxruntime does not support {device} here", field="device", hint="use cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base class
        reason = textwrap.shorten(str(error), 160)
        raise InputError(f"cannot be read as ONNX: {reason}", path=path, hint=EXPORT_AGAIN) from error


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Embedder | OnnxEmbedder:
    """Load a model to embed images with.

    Parameters
    ----------
    path
        Run folder, model folder, ``OWNER/NAME`` on the Hugging Face hub, or .onnx file.
    device
        Where to compute.

    Returns
    -------
    Embedder or OnnxEmbedder
        Without the proxies, which embedding does not need.

    Raises
    ------
    InputError
        If there is no model.

    Examples
    --------
    >>> load_model("nowhere.onnx")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: nowhere.onnx: no such file
    """
    if str(path).endswith(".onnx"):
        return OnnxEmbedder(path, device)
    return Embedder.load(path, device, with_proxies=False)
