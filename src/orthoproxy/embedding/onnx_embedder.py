"""A model as ONNX: what `orthoproxy export` wrote, run by onnxruntime."""

from __future__ import annotations

import gc
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.data import evaluation_transform
from orthoproxy.data.transforms import Resize
from orthoproxy.embedding.embedder import Embedder, Images, iterate_batches
from orthoproxy.embedding.file_formats import MAX_DIM as LARGEST

FORMAT_VERSION = 1
INPUT, OUTPUT = "images", "embeddings"

# What a parent left over stays with it: freed in a forked worker, a session would wait for threads that are not there.
os.register_at_fork(after_in_child=gc.freeze)


@dataclass(frozen=True)
class Description:
    """What an ONNX file says of itself, in its metadata; values are JSON there.

    Parameters
    ----------
    identity
        Of the model; see `Embedder.identity`. An int8 model has one of its own.
    encoder
        The backbone's name.
    precision
        ``float32`` or ``int8``.
    image_size
        Side of the square that the model takes, in pixels.
    resize
        Shorter side in pixels before the centre square is cut out, or ``stretch``: the whole image becomes the square.
        Bicubic either way.
    mean, std
        Of each colour, from 0 to 1; the model applies them itself.
    embedding_dim
        D.
    threshold, false_match_rate
        As `Embedder` has them.
    license
        Of the model.
    source
        Identity of the model that it was exported from.
    checked
        How it compares with that.

    Examples
    --------
    >>> mean, std = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
    >>> about = Description("0123456789abcdef", "deit_small_patch16_224", "float32", 224, 256, mean, std, 128)
    >>> Description.of(about.metadata(), "model.onnx") == about
    True
    """

    identity: str
    encoder: str
    precision: str
    image_size: int
    resize: Resize
    mean: list[float]
    std: list[float]
    embedding_dim: int
    threshold: float | None = None
    false_match_rate: float | None = None
    license: str = "unknown"
    source: str = ""
    checked: str = ""

    def metadata(self) -> dict[str, str]:
        """Return it as text, name by name, with a word on what goes in and comes out."""
        said = {
            "format_version": FORMAT_VERSION,
            "library": "orthoproxy",
            "input": f"uint8 RGB pixels from 0 to 255, batch x 3 x {self.image_size} x {self.image_size}",
            "interpolation": "bicubic",
            "crop": "center",
            "normalisation": "inside the model",
            "output": f"float32, batch x {self.embedding_dim}, unit length",
        }
        return {name: json.dumps(value) for name, value in {**vars(self), **said}.items() if value is not None}

    @classmethod
    def of(cls, metadata: dict[str, str], file: str) -> Description:
        """Read it back.

        Parameters
        ----------
        metadata
            Of the file.
        file
            Its name, for the error.

        Raises
        ------
        InputError
            If the file is not one that `orthoproxy export` wrote, or of a newer version.
        """
        try:
            values = {name: parse_json(text) for name, text in metadata.items()}
            version = values["format_version"]
            if version == FORMAT_VERSION:
                about = cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})
                about.check()
                return about
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{file}: its metadata are not those of orthoproxy export; export the run again"
            ) from error
        raise InputError(
            f"{file}: format_version {version!r} is unknown; this orthoproxy reads version {FORMAT_VERSION}. "
            "Update orthoproxy, or export the run again"
        )

    def check(self) -> None:
        """Make sure that sizes are sizes.

        Raises
        ------
        ValueError
            Naming the one that is not.
        """
        sizes = {"image_size": self.image_size, "embedding_dim": self.embedding_dim}
        if self.resize not in (None, "stretch"):
            sizes["resize"] = self.resize
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
                raise ValueError(f"{name}: {value!r}")
        for name in ("threshold", "false_match_rate"):
            if not isinstance(getattr(self, name), float | int | None):
                raise ValueError(f"{name}: {getattr(self, name)!r}")


class OnnxEmbedder:
    """A model in an ONNX file, used like an `Embedder`; of PyTorch, only what reads and resizes images is needed.

    Parameters
    ----------
    path
        Written by ``orthoproxy export``.
    device
        ``cpu``, or ``cuda`` where onnxruntime can use it.

    Raises
    ------
    InputError
        If onnxruntime is not installed or cannot use the device, or the file is not of ``orthoproxy export``.

    Examples
    --------
    >>> OnnxEmbedder("nowhere.onnx")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no file nowhere.onnx
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        if not Path(path).is_file():
            raise InputError(f"no file {path}")
        self.path = Path(path)
        self.session = make_session(self.path, str(device))
        self.about = Description.of(self.session.get_modelmeta().custom_metadata_map, str(path))
        self.transform = evaluation_transform(self.about.image_size, self.about.resize)

    @property
    def embedding_dim(self) -> int:
        """D, numbers in an embedding."""
        return self.about.embedding_dim

    @property
    def image_size(self) -> int:
        """Side of the square that the model takes, in pixels."""
        return self.about.image_size

    @property
    def resize(self) -> Resize:
        """Shorter side before the centre square is cut out, or ``stretch``."""
        return self.about.resize

    @property
    def identity(self) -> str:
        """Which model this is: that of the `Embedder` it was exported from, or one of its own where it is int8."""
        return self.about.identity

    @property
    def threshold(self) -> float | None:
        """Similarity below which a search has found nothing, or None."""
        return self.about.threshold

    def embed(
        self, images: Images, batch_size: int = 128, workers: int = 0, progress: str | None = None
    ) -> Float[np.ndarray, "N D"]:
        """Embed images.

        Parameters
        ----------
        images, batch_size, workers, progress
            As in `Embedder.embed`.

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
        with Progress(progress or "embed", len(images), shown=progress is not None) as bar:
            for batch in iterate_batches(images, self.transform, batch_size, workers):
                rows.append(self._run(batch))
                bar.advance(len(batch), unit="images")
        return np.concatenate(rows)

    def _run(self, pixels: torch.Tensor) -> Float[np.ndarray, "b D"]:
        if pixels.is_floating_point():
            pixels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
        return np.asarray(self.session.run([OUTPUT], {INPUT: pixels.contiguous().cpu().numpy()})[0])


def read_description(path: Path) -> Description:
    """Read what an ONNX file says of itself, without getting it ready to run.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InputError
        If it is not of ``orthoproxy export``.

    Examples
    --------
    >>> read_description(Path("nowhere.onnx"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: nowhere.onnx: cannot be read as ONNX: No such file or directory
    """
    onnx = imported("onnx")
    try:
        content = onnx.load(path, load_external_data=False)
    except Exception as error:  # of many types
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be read as ONNX: {reason}") from error
    return Description.of({entry.key: entry.value for entry in content.metadata_props}, str(path))


def make_session(path: Path, device: str = "cpu") -> Any:
    """Open an ONNX file, with as many threads as PyTorch would use.

    Parameters
    ----------
    path
        The file.
    device
        As for `OnnxEmbedder`.

    Returns
    -------
    onnxruntime.InferenceSession
        Ready to run.

    Raises
    ------
    InputError
        If onnxruntime is not installed or cannot use the device, or the file is not ONNX.

    Examples
    --------
    >>> make_session(Path("nowhere.onnx"), "toaster")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: device: onnxruntime has no toaster here; use cpu
    """
    onnxruntime = imported("onnxruntime")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.partition(":")[0], "")
    if provider not in onnxruntime.get_available_providers():
        raise InputError(f"device: onnxruntime has no {device} here; use cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; what it warns of is nothing a user could change
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # of many types
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be read as ONNX: {reason}; export the run again") from error


def imported(name: str) -> Any:
    """Import what only exported models need.

    Parameters
    ----------
    name
        Of the module.

    Returns
    -------
    module
        The module.

    Raises
    ------
    InputError
        If it is not installed.

    Examples
    --------
    >>> imported("json").loads("1")
    1
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise InputError(f"{package} is not installed; run: pip install 'orthoproxy[onnx]'") from error


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Embedder | OnnxEmbedder:
    """Load what embeds images.

    Parameters
    ----------
    path
        A run folder, a model folder, ``OWNER/NAME`` on the hub, or an .onnx file.
    device
        Where to compute.

    Returns
    -------
    Embedder or OnnxEmbedder
        Without the training classes' proxies, which embedding does not need.

    Raises
    ------
    InputError
        If there is no model.

    Examples
    --------
    >>> load_model("nowhere.onnx")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no file nowhere.onnx
    """
    if str(path).endswith(".onnx"):
        return OnnxEmbedder(path, device)
    return Embedder.load(path, device, with_proxies=False)
