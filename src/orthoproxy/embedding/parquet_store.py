"""The folder of embeddings: what it says of itself, and its Parquet parts, each there whole or not at all."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from jaxtyping import Float

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.data import Collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.onnx_embedder import OnnxEmbedder

FORMAT_VERSION = 1
META = "embedding.json"
UNREADABLE = "unreadable.csv"
TEXTS = ("path", "label", "group", "content")
REMEDY = "finish it as it was begun, or give another folder with --out"


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
    orthoproxy.core.errors.InputError: no embeddings in nowhere: embedding.json is not there
    """
    path = Path(folder) / META
    if not path.is_file():
        raise InputError(f"no embeddings in {folder}: {META} is not there")
    try:
        meta = parse_json(path.read_text(encoding="utf-8"))
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
    missing = [part["file"] for part in meta["parts"] if not is_whole(folder, part)]
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


def make_plan(
    embedder: Embedder | OnnxEmbedder, model_path: str, collection: Collection, part_size: int
) -> dict[str, Any]:
    """Plan what a folder is to hold: which model's embeddings, of which images, in which parts."""
    return {
        "format_version": FORMAT_VERSION,
        "model": embedder.identity,
        "model_path": str(Path(model_path).absolute()) if Path(model_path).exists() else model_path,
        "dim": embedder.embedding_dim,
        "root": str(collection.root),
        "images": len(collection),
        "part_size": part_size,
        "parts": _divide(collection, part_size),
    }


def _divide(collection: Collection, part_size: int) -> list[dict[str, Any]]:
    """What the parts are called, how many images they have, and which."""
    parts = []
    for number, first in enumerate(range(0, len(collection), part_size)):
        rows = collection.images.iloc[first : first + part_size]
        digest = hashlib.sha256()
        for row in rows.itertuples(index=False):
            digest.update(json.dumps([row.path, row.label, row.group]).encode() + b"\n")
        parts.append({"file": f"part-{number:05}.parquet", "images": len(rows), "digest": digest.hexdigest()[:16]})
    return parts


def begin(out: Path, plan: dict[str, Any]) -> None:
    """Write down what the folder is to hold; or see that this is what it holds already."""
    for unfinished in out.glob(".*.tmp"):
        unfinished.unlink(missing_ok=True)
    if not (out / META).is_file():
        if any(out.glob("part-*.parquet")):
            raise InputError(f"--out: {out} holds parts, but no {META}; give another folder")
        atomic_write(out / META, (json.dumps(plan, indent=1) + "\n").encode())
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


def is_whole(out: Path, part: dict[str, Any]) -> bool:
    """Whether a part is there, of these images, and not cut short by what copied it."""
    path = out / part["file"]
    if not path.is_file():
        return False
    with suppress(Exception):  # of Arrow and of what the part says of itself
        rows, facts = _facts(path)
        return facts["digest"] == part["digest"] and rows + len(facts["unreadable"]) == part["images"]
    return False


def _facts(path: Path) -> tuple[int, dict[str, Any]]:
    """How many rows a part has, and what it says of itself."""
    found = _parquet().read_metadata(path)
    return found.num_rows, parse_json(found.metadata[b"orthoproxy"])


def write_part(
    out: Path, plan: dict[str, Any], part: dict[str, Any], rows: pd.DataFrame, embeddings: Float[np.ndarray, "n D"]
) -> None:
    """Write a part, of rows that can be read, have the `reason` "", and an embedding each; it names the others."""
    pa = importlib.import_module("pyarrow")
    readable = rows[rows["reason"] == ""]
    unreadable = rows[rows["reason"] != ""][["path", "reason"]].to_dict("records")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), plan["dim"])
    columns = {name: pa.array(readable[name].tolist(), pa.string()) for name in TEXTS}
    facts = json.dumps({"model": plan["model"], "digest": part["digest"], "unreadable": unreadable})
    table = pa.table({"path": columns.pop("path"), "embedding": vectors, **columns})
    table = table.replace_schema_metadata({"orthoproxy": facts})

    def write(file: BinaryIO) -> None:
        _parquet().write_table(table, file, use_dictionary=["label", "group"])  # embeddings do not repeat

    atomic_write(out / part["file"], write)


def list_unreadable(out: Path, plan: dict[str, Any]) -> pd.DataFrame:
    """Collect from all parts the images that cannot be read, and write them down if there are any."""
    found = [
        (str(Path(plan["root"]) / image["path"]), part["file"], image["reason"])
        for part in plan["parts"]
        for image in _facts(out / part["file"])[1]["unreadable"]
    ]
    unreadable = pd.DataFrame(found, columns=["path", "part", "reason"], dtype=object)
    if unreadable.empty:
        (out / UNREADABLE).unlink(missing_ok=True)
    else:
        text = unreadable.to_csv(index=False).encode("utf-8", errors="surrogateescape")
        atomic_write(out / UNREADABLE, text)
    return unreadable


def _parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise InputError("pyarrow is not installed; run: pip install 'orthoproxy[search]'") from error
