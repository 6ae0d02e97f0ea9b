"""The embeddings of a collection as Parquet parts: made by any number of processes, kept where the work stops."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from orthoproxy.data import Collection, read_image
from orthoproxy.data.transforms import Transform
from orthoproxy.data.watch import watched, worker_options
from orthoproxy.embedder import Embedder
from orthoproxy.errors import InputError
from orthoproxy.files import write_whole
from orthoproxy.locks import locked
from orthoproxy.plain import plain_json
from orthoproxy.processes import agreed, from_main, is_main, process_count, process_index
from orthoproxy.progress import Progress
from orthoproxy.search.onnx import OnnxEmbedder

FORMAT_VERSION = 1
META = "embedding.json"
UNREADABLE = "unreadable.csv"
TEXTS = ("path", "label", "group", "content")


@dataclass(frozen=True)
class Embedded:
    """What `embed_collection` did.

    Parameters
    ----------
    images
        Embedded by now, in all parts.
    made
        Images read this time, by all processes together.
    seconds
        Spent on them.
    unreadable
        One row an image that cannot be read: `path`, `part`, `reason`.

    Examples
    --------
    >>> Embedded(images=20, made=10, seconds=2.0, unreadable=pd.DataFrame(columns=["path", "part", "reason"])).rate
    5.0
    """

    images: int
    made: int
    seconds: float
    unreadable: pd.DataFrame

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.made / max(self.seconds, 1e-9)


def embed_collection(
    embedder: Embedder | OnnxEmbedder,
    model_path: str,
    collection: Collection,
    out: str | Path,
    batch_size: int = 128,
    workers: int = 0,
    part_size: int = 10_000,
) -> Embedded:
    """Embed a collection into a folder of Parquet parts, or go on where that was stopped.

    Started by torchrun, the processes take the missing parts in turn; each calls this. A part is there whole or not at
    all. Its bits depend on its images and the batch size, not on the number of processes.

    Parameters
    ----------
    embedder
        From `load_model`.
    model_path
        Where it was loaded from; kept, to embed queries later.
    collection
        From `data.read_collection`.
    out
        The folder.
    batch_size
        Images that go through the encoder at once.
    workers
        Processes that read files, for each process that embeds.
    part_size
        Images of a part.

    Returns
    -------
    Embedded
        The same in every process, but for the seconds.

    Raises
    ------
    InputError
        If the folder holds embeddings of another model or of other images, or another job is writing to it, or no image
        can be read.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy.data import read_collection
    >>> from orthoproxy.models import Encoder
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "images").mkdir()
    >>> for colour in ("gold", "navy"):
    ...     Image.new("RGB", (40, 30), colour).save(folder / "images" / f"{colour}.png")
    >>> embedder = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32))
    >>> embed_collection(embedder, "runs/x", read_collection(folder / "images"), folder / "embeddings").images
    2
    >>> for rows, embeddings in read_parts(folder / "embeddings"):
    ...     print(rows["path"].tolist(), embeddings.shape)
    ['gold.png', 'navy.png'] (2, 16)
    """
    for name, value, least in (("batch-size", batch_size, 1), ("part-size", part_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"--{name}: {value}; give {least} or more")
    out, parts = Path(out), _divide(collection, part_size)
    plan = _plan(embedder, model_path, collection, part_size, parts)
    with ExitStack() as stack:
        with agreed():
            if is_main():
                if out.exists() and not out.is_dir():
                    raise InputError(f"--out: {out} is a file; give a folder")
                stack.enter_context(locked(out))
                _start(out, plan)
        planned = from_main(parts)
        with agreed():
            if parts != planned:
                raise InputError(f"{collection.root}: not the same images in all processes; give all the same ones")
        missing = from_main([n for n, part in enumerate(parts) if not _is_whole(out, part)] if is_main() else [])
        start = time.monotonic()
        with agreed():
            if is_main() and len(missing) < len(parts):
                print(f"{out}: {len(parts) - len(missing)} of {len(parts)} parts are there already", file=sys.stderr)
            own = missing[process_index() :: process_count()]
            for part, table in _tables(embedder, plan, collection, own, batch_size, workers):
                _write_part(out, part, table)
        seconds = time.monotonic() - start
        unreadable = _listed(out, parts, collection.root)
    if len(unreadable) == len(collection):
        first = unreadable.iloc[0]
        raise InputError(f"{collection.root}: no image can be read, beginning with {first['path']}: {first['reason']}")
    made = sum(parts[number]["images"] for number in missing)
    return Embedded(len(collection) - len(unreadable), made, seconds, unreadable)


def embed_files(
    embedder: Embedder | OnnxEmbedder,
    paths: Sequence[str | Path],
    batch_size: int = 128,
    workers: int = 0,
) -> tuple[Float[np.ndarray, "n D"], list[str], list[str]]:
    """Embed the files that can be read, and say of the others why not.

    Parameters
    ----------
    embedder
        From `load_model`.
    paths
        Image files, N of them.
    batch_size, workers
        As in `embed_collection`. A batch is of so many files, read or not.

    Returns
    -------
    embeddings
        Unit-length rows of the files that can be read, in their order.
    contents
        Of each of the N files the first 32 hexadecimal digits of its SHA-256; empty if it cannot be read.
    reasons
        Of each of the N files why it cannot be read; empty if it can.

    Examples
    --------
    >>> from orthoproxy.models import Encoder
    >>> embedder = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32))
    >>> embeddings, contents, reasons = embed_files(embedder, ["nowhere.png"])
    >>> embeddings.shape, contents, reasons
    ((0, 16), [''], ['No such file or directory'])
    """
    batches = [list(paths[first : first + batch_size]) for first in range(0, len(paths), batch_size)]
    rows = [np.empty((0, embedder.embedding_dim), dtype=np.float32)]
    contents, reasons = [], []
    for embeddings, batch_contents, batch_reasons in _embed_batches(embedder, batches, workers):
        rows.append(embeddings)
        contents += batch_contents
        reasons += batch_reasons
    return np.concatenate(rows), contents, reasons


def _embed_batches(
    embedder: Embedder | OnnxEmbedder, batches: Iterable[list[Any]], workers: int
) -> Iterator[tuple[Float[np.ndarray, "n D"], list[str], list[str]]]:
    """Embed batches of files, the next ones read meanwhile; see `embed_files` for what comes of each."""
    files, options = _Files(embedder.transform), worker_options(workers)
    loader = DataLoader(files, batch_sampler=batches, collate_fn=_collate, **options)
    for pixels, contents, reasons in watched(loader):
        if pixels is None:
            yield np.empty((0, embedder.embedding_dim), dtype=np.float32), contents, reasons
        else:
            yield embedder.embed(pixels, batch_size=len(pixels)), contents, reasons


File = tuple[UInt8[Tensor, "3 H W"] | None, str, str]


class _Files(Dataset):
    """From path to pixels, content and why the file cannot be read."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __getitem__(self, path: str | Path) -> File:
        try:
            str(path).encode()  # Parquet holds text
            pixels = self.transform(read_image(path))
            with Path(path).open("rb") as file:
                return pixels, hashlib.file_digest(file, "sha256").hexdigest()[:32], ""
        except UnicodeEncodeError:
            return None, "", "its name is not UTF-8; rename it"
        except InputError as error:
            return None, "", str(error).removeprefix(f"cannot read the image {path}: ")
        except Exception as error:  # of many types, whatever the damage makes Pillow trip over
            return None, "", f"{type(error).__name__}: {error}"


def _collate(files: list[File]) -> tuple[UInt8[Tensor, "b 3 H W"] | None, list[str], list[str]]:
    pixels = [pixels for pixels, _, _ in files if pixels is not None]
    contents, reasons = [content for _, content, _ in files], [reason for _, _, reason in files]
    return torch.stack(pixels) if pixels else None, contents, reasons


def embedding_meta(folder: str | Path) -> dict[str, Any]:
    """Read what a folder of embeddings says of itself.

    Parameters
    ----------
    folder
        From `embed_collection`.

    Returns
    -------
    dict
        `model`, the identity of the model; `model_path`, where it was; `dim`, numbers of an embedding; `root`, the
        folder that the paths start from; `images`, how many there are, with those that cannot be read; `part_size`;
        `parts`, of each its `file`, its number of `images` and a `digest` of their paths, labels and groups.

    Raises
    ------
    InputError
        If the folder holds no embeddings, or of an unknown format version.

    Examples
    --------
    >>> embedding_meta("nowhere")
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: no embeddings in nowhere: embedding.json is not there
    """
    path = Path(folder) / META
    if not path.is_file():
        raise InputError(f"no embeddings in {folder}: {META} is not there")
    try:
        meta = plain_json(path.read_text(encoding="utf-8"))
        version = meta["format_version"]
        sound = version != FORMAT_VERSION or _is_plan(meta)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged; delete {folder} and embed again") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {version!r} is unknown; this orthoproxy reads version {FORMAT_VERSION}. "
            "Update orthoproxy, or embed again"
        )
    if not sound:
        raise InputError(f"{path}: damaged; delete {folder} and embed again")
    return meta


def _plan(
    embedder: Embedder | OnnxEmbedder, model_path: str, collection: Collection, part_size: int, parts: list[dict]
) -> dict[str, Any]:
    """What is to be embedded, by which model and in which parts, as the folder's description holds it."""
    return {
        "format_version": FORMAT_VERSION,
        "model": embedder.identity,
        "model_path": str(Path(model_path).absolute()) if Path(model_path).exists() else model_path,
        "dim": embedder.embedding_dim,
        "root": str(collection.root),
        "images": len(collection),
        "part_size": part_size,
        "parts": parts,
    }


def _listed(out: Path, parts: list[dict], root: Path) -> pd.DataFrame:
    """The images that could not be read, in every process; the main one has written them down."""
    unreadable = None
    with agreed():
        if is_main():
            unreadable = _unreadable(out, parts, root)
            _list(unreadable, out / UNREADABLE)
    unreadable = from_main(unreadable)
    assert unreadable is not None
    return unreadable


def _is_plan(meta: dict[str, Any]) -> bool:
    """Whether it has what `embed_collection` writes, and parts that lie in the folder itself."""
    texts = [meta[name] for name in ("model", "model_path", "root")]
    numbers = [meta[name] for name in ("dim", "images", "part_size")]
    for part in meta["parts"]:
        texts += [part["file"], part["digest"]]
        numbers.append(part["images"])
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) and number >= 0 for number in numbers)
        and meta["dim"] >= 1
        and all(re.fullmatch(r"part-\d+\.parquet", part["file"]) for part in meta["parts"])
    )


def read_parts(folder: str | Path) -> Iterator[tuple[pd.DataFrame, Float[np.ndarray, "n D"]]]:
    """Read embeddings, a part at a time.

    Parameters
    ----------
    folder
        From `embed_collection`.

    Returns
    -------
    Iterator
        Of each part the rows, `path, label, group, content`, and their embeddings. Images that cannot be read are in
        neither.

    Raises
    ------
    InputError
        If the folder holds no embeddings, or not yet all.

    Examples
    --------
    See `embed_collection`.
    """
    meta, folder = embedding_meta(folder), Path(folder)
    missing = [part["file"] for part in meta["parts"] if not _is_whole(folder, part)]
    if missing:
        raise InputError(
            f"{folder}: unfinished, {missing[0]} is missing ({len(missing)} of {len(meta['parts'])} parts); "
            "finish it with the same orthoproxy embed command"
        )
    return (_read_part(folder / part["file"], meta["dim"]) for part in meta["parts"])


def _read_part(path: Path, dim: int) -> tuple[pd.DataFrame, Float[np.ndarray, "n D"]]:
    try:
        table = _parquet().read_table(path)
        numbers = table["embedding"].combine_chunks().flatten().to_numpy()
        return table.select(TEXTS).to_pandas(), numbers.reshape(-1, dim)
    except InputError:
        raise
    except Exception as error:  # of Arrow, of many types
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"{path}: damaged: {reason}; remove it and finish with the same embed command") from error


def _parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise InputError("pyarrow is not installed; run: pip install 'orthoproxy[search]'") from error


def _divide(collection: Collection, part_size: int) -> list[dict[str, Any]]:
    """Plan the parts: what they are called, how many images they have, and which."""
    parts = []
    for number, first in enumerate(range(0, len(collection), part_size)):
        rows = collection.images.iloc[first : first + part_size]
        digest = hashlib.sha256()
        for row in rows.itertuples(index=False):
            digest.update(json.dumps([row.path, row.label, row.group]).encode() + b"\n")
        parts.append({"file": f"part-{number:05}.parquet", "images": len(rows), "digest": digest.hexdigest()[:16]})
    return parts


REMEDY = "finish it as it was begun, or give another folder with --out"


def _start(out: Path, plan: dict[str, Any]) -> None:
    """Write down what the folder is to hold; or see that this is what it holds already."""
    for unfinished in out.glob(".*.tmp"):
        unfinished.unlink(missing_ok=True)
    if not (out / META).is_file():
        if any(out.glob("part-*.parquet")):
            raise InputError(f"--out: {out} holds parts, but no {META}; give another folder")
        _write_json(plan, out / META)
        return
    before = embedding_meta(out)
    if before["model"] != plan["model"]:
        raise InputError(f"--out: {out} holds embeddings of another model, {before['model_path']}; {REMEDY}")
    if before["root"] != plan["root"]:
        raise InputError(f"--out: {out} holds embeddings of the images in {before['root']}; {REMEDY}")
    if before["part_size"] != plan["part_size"]:
        raise InputError(f"--part-size: {out} was begun with {before['part_size']}; {REMEDY}")
    if before["parts"] != plan["parts"]:
        raise InputError(
            f"--out: {out} was begun with other images or labels ({before['images']} images, now {plan['images']}); "
            "give another folder, or delete this one"
        )


def _tables(
    embedder: Embedder | OnnxEmbedder,
    plan: dict[str, Any],
    collection: Collection,
    own: Sequence[int],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Embed the images of some parts; yield each part with its Arrow table, as soon as it is complete."""

    def rows_of(number: int) -> pd.DataFrame:
        first = number * plan["part_size"]
        return collection.images.iloc[first : first + plan["parts"][number]["images"]]

    def batches() -> Iterator[list[str]]:
        for number in own:
            paths = [f"{collection.root}/{path}" for path in rows_of(number)["path"]]
            yield from (paths[first : first + batch_size] for first in range(0, len(paths), batch_size))

    embedded = _embed_batches(embedder, batches(), workers)
    with Progress("embed", sum(plan["parts"][number]["images"] for number in own)) as progress:
        for number in own:
            part, done = plan["parts"][number], []
            for batch in itertools.islice(embedded, -(-part["images"] // batch_size)):
                done.append(batch)
                progress.advance(len(batch[1]), unit="images")
            embeddings, contents, reasons = zip(*done, strict=True)
            rows = rows_of(number).assign(content=[*itertools.chain(*contents)], reason=[*itertools.chain(*reasons)])
            yield part, _table(plan, part, rows, np.concatenate(embeddings))


def _table(plan: dict[str, Any], part: dict[str, Any], rows: pd.DataFrame, embeddings: Float[np.ndarray, "n D"]) -> Any:
    """Make the Arrow table of a part; its metadata name the images that cannot be read."""
    pa = importlib.import_module("pyarrow")
    readable = rows[rows["reason"] == ""]
    unreadable = rows[rows["reason"] != ""][["path", "reason"]].to_dict("records")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), plan["dim"])
    columns = {name: pa.array(readable[name].tolist(), pa.string()) for name in TEXTS}
    facts = json.dumps({"model": plan["model"], "digest": part["digest"], "unreadable": unreadable})
    table = pa.table({"path": columns.pop("path"), "embedding": vectors, **columns})
    return table.replace_schema_metadata({"orthoproxy": facts})


def _write_part(out: Path, part: dict[str, Any], table: Any) -> None:
    def write(file: BinaryIO) -> None:
        _parquet().write_table(table, file, use_dictionary=["label", "group"])  # embeddings do not repeat

    write_whole(out / part["file"], write, others=True)


def _facts(path: Path) -> tuple[int, dict[str, Any]]:
    """How many rows a part has, and what it says of itself."""
    found = _parquet().read_metadata(path)
    return found.num_rows, plain_json(found.metadata[b"orthoproxy"])


def _is_whole(out: Path, part: dict[str, Any]) -> bool:
    """Whether a part is there, of these images, and not cut short by what copied it."""
    path = out / part["file"]
    if not path.is_file():
        return False
    with suppress(Exception):  # of Arrow and of what the part says of itself
        rows, facts = _facts(path)
        return facts["digest"] == part["digest"] and rows + len(facts["unreadable"]) == part["images"]
    return False


def _unreadable(out: Path, parts: list[dict[str, Any]], root: Path) -> pd.DataFrame:
    found = [
        (str(root / image["path"]), part["file"], image["reason"])
        for part in parts
        for image in _facts(out / part["file"])[1]["unreadable"]
    ]
    return pd.DataFrame(found, columns=["path", "part", "reason"], dtype=object)


def _list(unreadable: pd.DataFrame, path: Path) -> None:
    if unreadable.empty:
        path.unlink(missing_ok=True)
        return
    text = unreadable.to_csv(index=False).encode("utf-8", errors="surrogateescape")
    write_whole(path, text, others=True)


def _write_json(value: Any, path: Path) -> None:
    text = (json.dumps(value, indent=1) + "\n").encode()
    write_whole(path, text, others=True)
