"""A folder of embeddings as Parquet parts, each of which exists completely or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.data.sources.collection import Collection
from orthoproxy.embedding.file_formats import UNIT_TOLERANCE, Dim, read_json
from orthoproxy.embedding.onnx_embedder import AnyEmbedder

META = "_embedding.json"  # Parquet readers skip what starts with _
UNREADABLE = "_unreadable.csv"
TEXT_COLUMNS = ("path", "label", "group", "content")
EMBED_AGAIN = "delete the folder and embed again"
FINISH = "finish it with the same orthoproxy embed command"
READ_SIZE = 16_384  # rows


class Part(BaseModel, frozen=True):
    """A Parquet file: the number of its images and a hash of their paths, labels and groups."""

    file: Annotated[str, Field(pattern=r"^part-\d+\.parquet$")]
    images: NonNegativeInt
    digest: str


class EmbeddingMeta(BaseModel, frozen=True):
    """The _embedding.json of a folder: which model embeds which images, in which parts."""

    format_version: Literal[1]
    model: str
    model_path: str
    dim: Dim
    root: str
    images: NonNegativeInt
    part_size: PositiveInt
    parts: tuple[Part, ...]

    @classmethod
    def plan(cls, embedder: AnyEmbedder, model_path: str, collection: Collection, part_size: int) -> EmbeddingMeta:
        return cls(
            format_version=1,
            model=embedder.identity,
            model_path=str(Path(model_path).absolute()) if Path(model_path).exists() else model_path,
            dim=embedder.embedding_dim,
            root=str(collection.root),
            images=len(collection),
            part_size=part_size,
            parts=tuple(_split(collection.images, part_size)),
        )


def embedding_meta(folder: str | Path) -> EmbeddingMeta:
    """Read the description of a folder that `embed_collection` wrote."""
    if not (Path(folder) / META).is_file():
        raise InputError(f"no embeddings: {META} does not exist", path=folder)
    return read_json(EmbeddingMeta, Path(folder) / META, EMBED_AGAIN)


def read_parts(folder: str | Path) -> Iterator[tuple[pd.DataFrame, Float[np.ndarray, "n D"]]]:
    """Read a folder that `embed_collection` wrote, at most 16,384 images at a time.

    Yields the rows (`path, label, group, content`) of the readable images and their embeddings. Raises InputError if
    the folder holds no embeddings, is unfinished, or a part is damaged; all parts are checked first. Parts may have
    been edited with other tools.
    """
    meta, folder = embedding_meta(folder), Path(folder)
    missing = [part.file for part in meta.parts if not is_complete(folder, part, edited=True)]
    if missing:
        problem = f"unfinished: {missing[0]} is missing ({len(missing)} of {len(meta.parts)} parts)"
        raise InputError(problem, path=folder, hint=FINISH)
    for part in meta.parts:
        for _ in _read_part(folder / part.file, meta.dim):
            pass
    return (batch for part in meta.parts for batch in _read_part(folder / part.file, meta.dim))


def _read_part(path: Path, dim: int) -> Iterator[tuple[pd.DataFrame, Float[np.ndarray, "n D"]]]:
    with _damage_as_input_error(path), path.open("rb") as file:
        parquet, first = pq.ParquetFile(file), 0
        for batch in parquet.iter_batches(READ_SIZE, columns=[*TEXT_COLUMNS, "embedding"]):
            # other tools write numbers, categories, and null for unknown
            texts = pd.DataFrame({name: batch[name].cast(pa.string()).to_pandas() for name in TEXT_COLUMNS})
            lengths = pc.list_value_length(batch["embedding"]).fill_null(0).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
            _check_rows(lengths == dim, f"embedding is not a list of {dim} numbers", first)
            embeddings = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
            embeddings = embeddings.astype(np.float32, copy=False)
            unit_length = np.abs(np.linalg.norm(embeddings, axis=1) - 1) < UNIT_TOLERANCE  # nor NaN
            _check_rows(unit_length, "embedding does not have unit length", first)
            known = (texts[["path", "content"]].fillna("") != "").all(axis=1)
            _check_rows(known.to_numpy(), "no path or content", first)
            yield texts.fillna(""), embeddings
            first += len(batch)


def _check_rows(valid: Bool[np.ndarray, " n"], problem: str, first: int) -> None:
    if not valid.all():
        raise ValueError(f"row {first + valid.argmin()}: {problem}")


def begin(out: Path, plan: EmbeddingMeta) -> None:
    """Write the description of a new folder, or check that an existing one matches the plan."""
    if not (out / META).is_file():
        if any(out.glob("part-*.parquet")):
            raise InputError(f"holds parts but no {META}", field="out", path=out, hint="give another folder")
        atomic_write(out / META, plan.model_dump_json(indent=1) + "\n")
        return
    existing = embedding_meta(out)
    differences = {
        "model": f"holds embeddings of another model, {existing.model_path}",
        "root": f"holds embeddings of the images in {existing.root}",
        "part_size": f"was begun with a part size of {existing.part_size}",
        "parts": f"was begun with other images or labels ({existing.images} images, now {plan.images})",
    }
    for name, problem in differences.items():
        if getattr(existing, name) != getattr(plan, name):
            field = "part_size" if name == "part_size" else "out"
            raise InputError(problem, field=field, path=out, hint="repeat the first command, or give another folder")


def is_complete(out: Path, part: Part, edited: bool = False) -> bool:
    """Whether a part exists, is of these images, and was not truncated, or was `edited` if that is allowed."""
    with suppress(InputError):
        rows, digest, unreadable = _read_metadata(out / part.file)
        if edited:
            return digest in (part.digest, "")
        return digest == part.digest and rows + len(unreadable) == part.images
    return False


def _read_metadata(path: Path) -> tuple[int, str, list[dict[str, str]]]:
    """Return the number of rows of a part, its digest, and path and reason of each unreadable image."""
    if not path.is_file():
        raise InputError("missing", path=path, hint=FINISH)
    with _damage_as_input_error(path), path.open("rb") as file:
        parquet = pq.read_metadata(file)
        # parts written by other tools have no such entry
        metadata = json.loads((parquet.metadata or {}).get(b"orthoproxy", '{"digest": "", "unreadable": []}'))
        unreadable = [{"path": image["path"], "reason": image["reason"]} for image in metadata["unreadable"]]
        return parquet.num_rows, metadata["digest"], unreadable


@contextmanager
def _damage_as_input_error(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into InputError; an OSError with errno is a failure of the disk."""
    try:
        yield
    except (pa.ArrowNotImplementedError, KeyError, TypeError, ValueError, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"damaged: {error}", path=path, hint=f"remove the file and {FINISH}") from error


def write_part(
    out: Path, plan: EmbeddingMeta, part: Part, rows: pd.DataFrame, embeddings: Float[np.ndarray, "n D"]
) -> None:
    """Write a part: rows with an empty `reason` get an embedding each, the others are listed in the metadata."""
    readable = rows[rows["reason"] == ""]
    unreadable = rows[rows["reason"] != ""][["path", "reason"]].to_dict("records")
    columns: dict[str, Any] = {name: pa.array(readable[name].tolist(), pa.string()) for name in TEXT_COLUMNS}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), plan.dim)
    metadata = json.dumps({"model": plan.model, "digest": part.digest, "unreadable": unreadable})
    table = pa.table(columns).replace_schema_metadata({"orthoproxy": metadata})
    options: dict[str, Any] = {"use_dictionary": ["label", "group"]}  # embeddings do not repeat
    atomic_write(out / part.file, lambda file: pq.write_table(table, file, **options))


def write_unreadable(out: Path, plan: EmbeddingMeta) -> pd.DataFrame:
    """Collect the unreadable images of all parts and write _unreadable.csv if there are any."""
    unreadable = unreadable_images(out, plan)
    if unreadable.empty:
        (out / UNREADABLE).unlink(missing_ok=True)
    else:
        atomic_write(out / UNREADABLE, unreadable.to_csv(index=False).encode("utf-8", errors="surrogateescape"))
    return unreadable


def unreadable_images(folder: Path, meta: EmbeddingMeta) -> pd.DataFrame:
    """Return the absolute path, part and reason of each image that could not be read."""
    images = ((part.file, image) for part in meta.parts for image in _read_metadata(folder / part.file)[2])
    found = [(str(Path(meta.root) / image["path"]), file, image["reason"]) for file, image in images]
    return pd.DataFrame(found, columns=["path", "part", "reason"], dtype=object)


def _split(images: pd.DataFrame, part_size: int) -> Iterator[Part]:
    for number, first in enumerate(range(0, len(images), part_size)):
        rows = images.iloc[first : first + part_size]
        digest = hashlib.sha256()
        for row in rows.itertuples(index=False):
            digest.update(json.dumps([row.path, row.label, row.group]).encode() + b"\n")
        yield Part(file=f"part-{number:05}.parquet", images=len(rows), digest=digest.hexdigest()[:16])
