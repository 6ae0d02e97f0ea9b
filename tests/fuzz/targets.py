"""What is fuzzed: readers of files and requests, each with files that are right to begin with."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from hypothesis import strategies as st
from mutations import edits, mutated, substituted, values
from PIL import Image
from scipy.io import savemat
from torch import nn

from orthoproxy.core.errors import InputError
from orthoproxy.data import cached_images, cars_table, csv_table, cub_table, inshop_table, read_collection, sop_table
from orthoproxy.data.images import read_croppable_image, read_image
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.feature_cache import pooled_features
from orthoproxy.embedding.parquet_store import read_parts
from orthoproxy.models import Encoder
from orthoproxy.models.weights import read_tensors
from orthoproxy.runs.recipes import config_of, options_parser, parse
from orthoproxy.runs.study_configs import config_of_cell
from orthoproxy.studies.study_file import read_study
from orthoproxy.training.checkpoint import Checkpoints, Position

Folder = Mapping[str, bytes]  # files by name, a change of which is the input


@dataclass
class Target:
    """A reader and what it is given.

    Parameters
    ----------
    prepare
        Makes, in an empty folder, files that are right; returns what reads them there.
    files
        Names of those that are changed, one at a time; of a JSON file a part may be replaced instead.
    tokens
        Of the format.
    share
        Of the examples; below 1 for what is slow.
    """

    prepare: Callable[[Path], Callable[[], object]]
    files: tuple[str, ...]
    tokens: tuple[bytes, ...] = ()
    share: float = 1.0
    refused: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)


def cub(root: Path) -> Callable[[], object]:
    rows = [(number, 1 + number * 7 % 200) for number in range(1, 30)]
    (root / "images.txt").write_text("".join(f"{n} {c:03d}.Bird_{c}/B_{n}.jpg\n" for n, c in rows))
    (root / "image_class_labels.txt").write_text("".join(f"{n} {c}\n" for n, c in rows))
    return lambda: inside(cub_table(root), root)


def sop(root: Path) -> Callable[[], object]:
    for name, first in (("train", 1), ("test", 40)):
        rows = [f"{n} {n} 1 bicycle_final/{n}_0.JPG\n" for n in range(first, first + 20)]
        (root / f"Ebay_{name}.txt").write_text("image_id class_id super_class_id path\n" + "".join(rows))
    return lambda: inside(sop_table(root), root)


def inshop(root: Path) -> Callable[[], object]:
    (root / "img").mkdir()
    kinds = ["train"] * 8 + ["query", "gallery"] * 6
    rows = [f"img/WOMEN/id_{n // 2:08d}/{n}.jpg     id_{n // 2:08d} {kind}\n" for n, kind in enumerate(kinds)]
    text = f"{len(rows)}\nimage_name item_id evaluation_status\n" + "".join(rows)
    (root / "list_eval_partition.txt").write_text(text)
    return lambda: inside(inshop_table(root), root)


def cars(root: Path) -> Callable[[], object]:
    (root / "car_ims").mkdir()
    rows = np.empty(12, dtype=[("relative_im_path", object), ("class", object), ("test", object)])
    rows[:] = [(f"car_ims/{n}.jpg", np.uint8(1 + n * 16), np.uint8(n % 2)) for n in range(12)]
    names = np.array([f"Car {number}" for number in range(196)], dtype=object)
    savemat(root / "cars_annos.mat", {"annotations": rows, "class_names": names})
    return lambda: inside(cars_table(root), root)


def csv(root: Path) -> Callable[[], object]:
    lines = ["path,label,split,role,group"]
    lines += [f'a{n}.png,"class, {n % 3}",{("train", "test", "")[n % 3]},both,cam{n % 2}' for n in range(12)]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return lambda: inside(csv_table(root / "list.csv"), root)


def collection(root: Path) -> Callable[[], object]:
    (root / "list.csv").write_text("path,label,group\na.png,cat,1\nb/c.png,dog,2\n")
    return lambda: read_collection(root / "list.csv")


def inside(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """All paths lie below the root."""
    outside = [path for path in table["path"] if not Path(path).resolve().is_relative_to(root.resolve())]
    assert not outside, f"led outside: {outside[:3]}"
    return table


RECIPE = """\
data: {name: folder, root: birds, test_fraction: 0.4, resize: 32, augmentation: {flip: 0.5, crop_scale: [0.2, 1.0]}}
encoder: {name: test_vit, weights: none, embedding_dim: 8, image_size: 32}
loss: {name: TripletMarginLoss, args: {margin: 0.1, distance: {name: LpDistance, power: 2}}, orthogonality: {weight: 1}}
training: {epochs: 2, batch_size: 6, per_class: 2, rates: {backbone: 1e-4}, patience: null, loggers: [tensorboard]}
evaluation: {recall_at: [1, 2], draws: 20, exclude_group: null}
"""
EVIL = "evil_for_the_tests"
YAML = (b"class_path: " + EVIL.encode() + b".X", b"!!python/name:" + EVIL.encode() + b".X", b"&a ", b"*a", b"<<: ")
YAML += (
    b"- ",
    b"? ",
    b"| ",
    b"%YAML 9\n",
    b"--- ",
    b"2020-99-99",
    b"0x",
    b"1_0",
    b"!!bool x",
    b"config: recipe.yaml\n",
)
_parser: list[Any] = []


def recipe(root: Path) -> Callable[[], object]:
    (root / "recipe.yaml").write_text(RECIPE)
    _parser[:] = _parser or [options_parser()]
    return lambda: config_of(parse(_parser[0], ["--config", str(root / "recipe.yaml")]))


STUDY = """\
title: Does it help?
base: base.yaml
seeds: 3
tuning_seeds: [0, 1]
metric: recall@1
baseline: off
compare: ["on"]
set: {training.epochs: 2, data.workers: 0}
methods:
  "off": {}
  "on": {set: {loss.name: proxy_anchor}, choose: {loss.orthogonality.weight: [0.1, 1e-1, 1]}}
expected_seconds: 60
"""


def study(root: Path) -> Callable[[], object]:
    (root / "base.yaml").write_text("data: {name: icons}\n")
    (root / "study.yaml").write_text(STUDY.replace("baseline: off", 'baseline: "off"').replace("1e-1, ", ""))

    def read() -> object:
        given = read_study(root / "study.yaml")
        return [config_of_cell(given, cell) for cell in given.first_cells[:2]]

    return read


def checkpoint(root: Path) -> Callable[[], object]:
    layer, proxies = nn.Linear(3, 2), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*layer.parameters(), *proxies.parameters()])
    proxies(layer(torch.ones(1, 3))).sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(root, layer, proxies, optimizer)
    checkpoints.save("best", Position(step=3))
    return lambda: checkpoints.load("best")


def safetensors_file(root: Path) -> Callable[[], object]:
    safetensors.torch.save_file({"a.weight": torch.ones(2, 3), "b": torch.zeros(4)}, root / "w.safetensors")
    return lambda: read_tensors(root / "w.safetensors", "encoder.weights")


def torch_file(root: Path) -> Callable[[], object]:
    torch.save({"model": {"a.weight": torch.ones(2, 3)}}, root / "w.pth")
    torch.save({"a": torch.ones(2)}, root / "old.pth", _use_new_zipfile_serialization=False)

    def read() -> None:
        for name in ("w.pth", "old.pth"):
            read_tensors(root / name, "encoder.weights")

    return read


_encoder: list[Encoder] = []


def model(root: Path) -> Callable[[], object]:
    _encoder[:] = _encoder or [Encoder("test_vit", embedding_dim=8, image_size=32)]
    Embedder(_encoder[0], classes=["a", "b"], proxies=torch.ones(2, 8)).save(root)
    return lambda: Embedder.load(root)


FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "ICNS")


def images(root: Path) -> Callable[[], object]:
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 24, 3), dtype=np.uint8)
    for name in FORMATS:
        exif = (
            {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"}
            if name in ("JPEG", "PNG")
            else {}
        )
        size = (16, 16) if name in ("ICO", "ICNS") else (24, 20)
        Image.fromarray(pixels).resize(size).save(root / f"a.{name.lower()}", name, **exif)

    def read() -> None:
        for name in FORMATS:
            path = root / f"a.{name.lower()}"
            picture, image = read_croppable_image(path), read_image(path)
            assert picture.pixels.shape == (image.height, image.width, 3)

    return read


def caches(root: Path) -> Callable[[], object]:
    """Both kinds are made anew where they are damaged, and no input error may come of it either."""
    Image.new("RGB", (40, 32), "teal").save(root / "a.png")
    _encoder[:] = _encoder or [Encoder("test_vit", embedding_dim=8, image_size=32)]
    embedder, paths = Embedder(_encoder[0]), [str(root / "a.png")]

    def read() -> None:
        picture = cached_images(paths, root / "cache", 20)[0]
        assert picture.pixels.ndim == 3 and picture.pixels.nbytes <= 3 * 40 * 32
        assert pooled_features(embedder, paths, root / "features").shape == (1, embedder.encoder.feature_dim)

    read()
    return read


def embeddings(root: Path) -> Callable[[], object]:
    for number in range(4):
        Image.new("RGB", (40, 32), (40 * number, 0, 0)).save(root / f"{number}.png")
    _encoder[:] = _encoder or [Encoder("test_vit", embedding_dim=8, image_size=32)]
    embed_collection(Embedder(_encoder[0]), "nowhere", read_collection(root), root / "out", part_size=2)
    return lambda: [len(rows) for rows, _ in read_parts(root / "out")]


TARGETS = {
    "cub": Target(cub, ("images.txt", "image_class_labels.txt")),
    "cars": Target(
        cars, ("cars_annos.mat",), (b"\x0e\0\0\0\xff\xff\xff\x7f", b"MI", b"IM"), share=0.2
    ),  # each in a process of its own
    "sop": Target(sop, ("Ebay_train.txt", "Ebay_test.txt")),
    "inshop": Target(inshop, ("list_eval_partition.txt",)),
    "csv": Target(csv, ("list.csv",), (b"path", b"label", b'""', b'"\n')),
    "collection": Target(collection, ("list.csv",), (b"path", b"label")),
    "recipe": Target(recipe, ("recipe.yaml",), YAML),
    "study": Target(study, ("study.yaml",), YAML, 0.5),
    "checkpoint": Target(checkpoint, ("best.ckpt",), (b"cos\nsystem\n(S'ls'\ntR.", b"PK\x05\x06"), 0.5),
    "checkpoint-content": Target(checkpoint, ("best.ckpt#",), (), 0.5),
    "safetensors": Target(safetensors_file, ("w.safetensors",), (b'"F32"', b"data_offsets", b"\xff" * 8)),
    "torch": Target(torch_file, ("w.pth", "old.pth"), (b"cos\nsystem\n(S'ls'\ntR.", b"\x80\x02")),
    "model": Target(model, ("config.json#", "config.json", "classes.json#", "model.safetensors"), (), 0.3),
    "images": Target(images, tuple(f"a.{name.lower()}" for name in FORMATS)),
    "embeddings": Target(embeddings, ("out/embedding.json#", "out/embedding.json", "out/part-00000.parquet"), (), 0.5),
    "caches": Target(
        caches, ("features/*.npy", "cache/*/index.npy"), (b"'descr': '|O'", b"(999999999999,)", b"PK\x03\x04"), 0.3
    ),
}


def inputs(target: Target) -> st.SearchStrategy[tuple[str, Any]]:
    """A file and what is changed in it; a name that ends with # stands for parts of its content being replaced."""

    def change(name: str) -> st.SearchStrategy[tuple[str, Any]]:
        parts = st.tuples(st.integers(0, 10_000), values(), st.booleans())
        return st.tuples(st.just(name), parts if name.endswith("#") else edits(target.tokens))

    return st.sampled_from(target.files).flatmap(change)


@contextmanager
def changed(path: Path, change: Any, in_content: bool) -> Iterator[None]:
    """Change a file, and put back what was there."""
    before = path.read_bytes()
    try:
        path.write_bytes(_content(before, change, path.suffix) if in_content else mutated(before, change))
        yield
    finally:
        path.write_bytes(before)


def _content(before: bytes, change: Any, suffix: str) -> bytes:
    number, value, drop = change
    if suffix == ".json":
        return json.dumps(substituted(json.loads(before), number, value, drop)).encode("utf-8", "surrogatepass")
    state = torch.load(io.BytesIO(before), weights_only=True)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(substituted(dict(state), number, value, drop), out)
    return out.getvalue()


def run(target: Target, root: Path, read: Callable[[], object], given: tuple[str, Any]) -> None:
    """Let a reader read a changed file: it may refuse it as bad input, and nothing else may happen."""
    name, change = given
    (path,) = root.glob(name.removesuffix("#"))
    with changed(path, change, name.endswith("#")):
        try:
            read()
        except InputError as error:
            assert str(error).strip(), "refused without a reason"
            target.refused += 1
        else:
            target.accepted += 1


# the HTTP API


def requests() -> st.SearchStrategy[dict[str, Any]]:
    """Requests that are near right ones."""
    pixels = io.BytesIO()
    Image.new("RGB", (24, 20), "green").save(pixels, "PNG")
    picture = pixels.getvalue()
    ask = {
        "image": base64.b64encode(picture).decode(),
        "k": 3,
        "filter": 'label != "x"',
        "diverse": True,
        "catalog": None,
    }
    by_id = {"id": "0" * 32, "k": 3}
    boundary = b"--B\r\nContent-Disposition: form-data; name="
    form = boundary + b'"image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + picture + b"\r\n"
    form += boundary + b'"k"\r\n\r\n3\r\n--B--\r\n'
    kinds = ["application/json", "multipart/form-data; boundary=B", "multipart/form-data", "text/plain", "", "é"]
    tokens = [b"--B", b"\r\n\r\n", b'"k":', b"1e400", b"\\ud800", b"NaN", b"boundary"]
    bodies = st.one_of(
        st.tuples(st.sampled_from([ask, by_id]), st.integers(0, 50), values(), st.booleans()).map(
            lambda x: json.dumps(substituted(*x)).encode("utf-8", "surrogatepass")
        ),
        edits(tokens).map(lambda x: mutated(json.dumps(ask).encode(), x)),
        edits(tokens).map(lambda x: mutated(form, x)),
    )
    paths = ["/search", "/uploads", "/images/" + "0" * 32, "/catalogs", "/login", "/health", "/page/", "/openapi.json"]
    queries = ["", "?size=160", "?catalog=%00", "?size=1e9", "?catalog=" + "x" * 300, "?size=%ff", "?q=é"]
    path_edits = edits([b"/..", b"%2e%2e/", b"%00", b"//", b"\\"]).map(lambda x: mutated(b"/images/" + b"0" * 32, x))
    return st.fixed_dictionaries(
        {
            "method": st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS"]),
            "path": st.one_of(st.sampled_from(paths), st.just("/search"), st.just("/uploads"), path_edits),
            "query": st.sampled_from(queries),
            "kind": st.sampled_from(kinds),
            "body": bodies,
        }
    )
