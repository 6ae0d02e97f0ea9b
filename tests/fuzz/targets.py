"""Parsers to fuzz, each with valid files to begin with, and small changes to these.

Small changes reach further into a parser than random bytes do.
"""

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from hypothesis import strategies as st
from PIL import Image
from stand_ins import write_cars_in_one_folder, write_cub
from torch import nn

from orthoproxy.data import cars_table, csv_table, cub_table, read_collection
from orthoproxy.data.images import read_image
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.parquet_store import read_parts
from orthoproxy.models import Encoder
from orthoproxy.models.weights import read_tensors
from orthoproxy.runs.recipes import read_config
from orthoproxy.training.checkpoint import Checkpoints, TrainingState

Read = Callable[[], object]
EVIL = "module_that_must_not_be_imported"
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "ICNS")


def below(root: Path, table: pd.DataFrame) -> None:
    """All paths of a table lie below the root."""
    outside = [path for path in table["path"] if not Path(path).resolve().is_relative_to(root.resolve())]
    assert not outside, f"led outside: {outside[:3]}"


def cub(root: Path) -> Read:
    write_cub(root, (16, 14))
    return lambda: below(root, cub_table(root))


def cars(root: Path) -> Read:
    write_cars_in_one_folder(root, (6, 6))
    return lambda: below(root, cars_table(root))


def csv(root: Path) -> Read:
    lines = ["path,label,split,role,group"]
    lines += [f'a{n}.png,"class, {n % 3}",{("train", "test", "")[n % 3]},both,cam{n % 2}' for n in range(12)]
    (root / "list.csv").write_text("\n".join(lines) + "\n")

    def read() -> None:
        below(root, csv_table(root / "list.csv"))
        read_collection(root / "list.csv")

    return read


RECIPE = """\
data: {name: folder, root: birds, resize: 32, augmentation: {horizontal_flip: 0.5, crop_scale: [0.2, 1.0]}}
sampler: {batch_size: 6, images_per_class: 2}
encoder: {name: test_vit, init_from: none, embedding_dim: 8, image_size: 32}
loss: {name: TripletMarginLoss}
optimizer: {lr: {backbone: 1.0e-4}}
training: {epochs: 2}
"""
YAML = (f"class_path: {EVIL}.X".encode(), f"!!python/name:{EVIL}.X".encode(), b"&a ", b"*a", b"<<: ", b"- ", b"? ")
YAML += (b"| ", b"%YAML 9\n", b"--- ", b"2020-99-99", b"0x", b"!!bool x", b"config: recipe.yaml\n")


def recipe(root: Path) -> Read:
    (root / "recipe.yaml").write_text(RECIPE)
    return lambda: read_config(root / "recipe.yaml")


def checkpoint(root: Path) -> Read:
    layer, proxies = nn.Linear(3, 2), nn.Linear(2, 2)
    checkpoints = Checkpoints(root, layer, proxies, torch.optim.AdamW(layer.parameters()))
    checkpoints.save("best", TrainingState(step=3))
    return lambda: checkpoints.load("best")


def weights(root: Path) -> Read:
    safetensors.torch.save_file({"a.weight": torch.ones(2, 3), "b": torch.zeros(4)}, root / "w.safetensors")
    torch.save({"model": {"a.weight": torch.ones(2, 3)}}, root / "w.pth")
    torch.save({"a": torch.ones(2)}, root / "old.pth", _use_new_zipfile_serialization=False)
    names = ("w.safetensors", "w.pth", "old.pth")
    return lambda: [read_tensors(root / name, "encoder.weights") for name in names]


@cache
def encoder() -> Encoder:
    return Encoder("test_vit", embedding_dim=8, image_size=32)


def model(root: Path) -> Read:
    Embedder(encoder(), classes=["a", "b"], proxies=torch.ones(2, 8)).save(root)
    return lambda: Embedder.load(root)


def images(root: Path) -> Read:
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 24, 3), dtype=np.uint8)
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    for name in FORMATS:
        options = {"exif": exif} if name in ("JPEG", "PNG") else {}
        size = (16, 16) if name in ("ICO", "ICNS") else (24, 20)
        Image.fromarray(pixels).resize(size).save(root / f"a.{name.lower()}", name, **options)
    return lambda: [read_image(root / f"a.{name.lower()}") for name in FORMATS]


def embeddings(root: Path) -> Read:
    for number in range(4):
        Image.new("RGB", (40, 32), (40 * number, 0, 0)).save(root / f"{number}.png")
    embed_collection(Embedder(encoder()), "nowhere", read_collection(root), root / "out", part_size=2)
    return lambda: [len(rows) for rows, _ in read_parts(root / "out")]


KINDS = ("flip", "truncate", "duplicate", "delete", "insert", "replace")
TOKENS = [b"0", b"-1", b"9" * 23, b"1e999", b"nan", b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xed\xa0\x80"]
TOKENS += [b"../../../x", b"/etc/passwd", b"\n", b"\r", b"\t", b'"', b",", b":", b"{", b"[" * 3000, b"null", b"%s%n"]
VALUES = [None, True, -1, 2**63, 10**30, 0.5, float("nan"), "", "x", "../../x", "\0", "9" * 5000, [], {}, [[]]]

Edit = tuple[str, int, int, bytes]  # kind, start and length in 65,536ths of the content, token


def edits(tokens: Sequence[bytes] = ()) -> st.SearchStrategy[list[Edit]]:
    """A few changes of bytes, some of them by tokens of the format."""
    length = st.one_of(st.integers(0, 40), st.integers(0, 65_535))
    edit = st.tuples(st.sampled_from(KINDS), st.integers(0, 65_535), length, st.sampled_from([*tokens, *TOKENS]))
    return st.lists(edit, min_size=1, max_size=5)


def mutate(content: bytes, changes: Sequence[Edit]) -> bytes:
    for kind, place, length, token in changes:
        start = place * len(content) // 65_536
        end = min(len(content), start + max(1, length * len(content) // 65_536))
        before, part, after = content[:start], content[start:end], content[end:]
        flipped = bytes([part[0] ^ (1 << length % 8)]) + part[1:] if part else part
        new = {"flip": flipped, "truncate": b"", "duplicate": part * 3, "delete": b"", "insert": token + part}
        content = (before + new.get(kind, token) + (b"" if kind == "truncate" else after))[:2_000_000]
    return content


def substitutions() -> st.SearchStrategy[tuple[int, Any, bool]]:
    """A place in a tree, what to put there, and whether to remove it instead."""
    return st.tuples(st.integers(0, 10_000), st.sampled_from(VALUES), st.booleans())


def substitute(tree: Any, number: int, value: Any, drop: bool) -> Any:
    """Replace or remove one part of a tree of dictionaries and lists, or the whole tree."""

    def places(part: Any) -> Iterator[tuple[Any, Any]]:
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        for key in keys:
            yield part, key
            yield from places(part[key])

    tree, value = copy.deepcopy(tree), copy.deepcopy(value)
    found = list(places(tree))
    if not found or number % (len(found) + 1) == len(found):
        return value
    part, key = found[number % (len(found) + 1)]
    if drop:
        del part[key]
    else:
        part[key] = value
    return tree


@dataclass(frozen=True)
class Target:
    """A parser: `prepare` writes valid files and returns what reads them; `share` is below 1 for a slow one.

    `files` are those to change; where a name ends with ``#``, parts of the content are substituted.
    """

    prepare: Callable[[Path], Read]
    files: tuple[str, ...]
    tokens: tuple[bytes, ...] = ()
    share: float = 1.0

    def changes(self) -> st.SearchStrategy[tuple[str, Any]]:
        return st.sampled_from(self.files).flatmap(
            lambda name: st.tuples(st.just(name), substitutions() if name.endswith("#") else edits(self.tokens))
        )


PICKLE = (b"cos\nsystem\n(S'ls'\ntR.", b"PK\x05\x06", b"\x80\x02")
TARGETS = {
    "cub": Target(cub, ("images.txt", "image_class_labels.txt")),
    "cars": Target(cars, ("cars_annos.mat",), (b"\x0e\0\0\0\xff\xff\xff\x7f", b"MI", b"IM"), 0.1),
    "csv": Target(csv, ("list.csv",), (b"path", b"label", b'""', b'"\n')),
    "recipe": Target(recipe, ("recipe.yaml",), YAML, 0.5),
    "checkpoint": Target(checkpoint, ("best.ckpt", "best.ckpt#"), PICKLE),
    "weights": Target(weights, ("w.safetensors", "w.pth", "old.pth"), (b'"F32"', b"data_offsets", *PICKLE)),
    "model": Target(model, ("config.json#", "config.json", "classes.json#", "model.safetensors"), (), 0.3),
    "images": Target(images, tuple(f"a.{name.lower()}" for name in FORMATS)),
    "embeddings": Target(
        embeddings, ("out/_embedding.json#", "out/_embedding.json", "out/part-00000.parquet"), (), 0.5
    ),
}


def changed(content: bytes, name: str, change: Any) -> bytes:
    """Change a file's bytes or, where its name ends with ``#``, its content."""
    if not name.endswith("#"):
        return mutate(content, change)
    if name.endswith(".json#"):
        return json.dumps(substitute(json.loads(content), *change)).encode("utf-8", "surrogatepass")
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.save(substitute(dict(torch.load(io.BytesIO(content), weights_only=True)), *change), out)
    return out.getvalue()
