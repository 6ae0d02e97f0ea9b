"""Images packed into Parquet files or WebDataset tars: unpacked once into a folder with CSV files."""

from __future__ import annotations

import csv
import hashlib
import lzma
import tarfile
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from io import TextIOWrapper
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from orthoproxy.core.errors import InputError, os_errors_as_input_errors
from orthoproxy.core.files import atomic_write
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.data.images import MAX_FILE_SIZE, readable_suffixes

FIELDS = ("label", "split", "role", "group", "category", "left", "top", "right", "bottom")
SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}
DAMAGED = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error)


def unpack(source: Path, kind: str, cache: Path) -> Path:
    """Write the images of a file, or of all files of its kind in a folder, below `cache`; return their CSV file.

    Images are named by their content: when the source grows, they keep their names. If nothing has changed, nothing is
    read again.
    """
    files = [source] if source.is_file() else sorted(source.glob(f"*{SUFFIXES[kind]}"))
    if not files:
        problem = f"no {SUFFIXES[kind]} files" if source.is_dir() else "no such file or folder"
        raise InputError(problem, field="root", path=source)
    versions = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    folder = cache / _digest(str(source.resolve()).encode())
    images = folder / f"{_digest(repr(versions).encode())}.csv"
    if not images.is_file():
        with os_errors_as_input_errors(cache, "run the command again"):
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(images, partial(_write, files, kind, folder))
    return images


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _write(files: list[Path], kind: str, folder: Path, file_of_list: BinaryIO) -> None:
    read, copies = {"parquet": _read_parquet, "webdataset": _read_tar}[kind], Counter[str]()
    out = TextIOWrapper(file_of_list, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(out, ["path", *FIELDS])
    writer.writeheader()
    for file in files:
        number = 1  # of the image that is read next
        try:
            for content, values in read(file):
                name = _digest(content)
                copies[name] += 1
                name += f"-{copies[name]}" if copies[name] > 1 else ""
                _write_image(folder / name, content)
                writer.writerow({"path": name, **values})
                number += 1
        except (ValueError, TypeError, *DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # Arrow's errors for damaged pages have none
                raise
            raise InputError(f"image {number}: {error}", field="root", path=file) from error
    out.detach()  # or it would close the file


def _write_image(path: Path, content: bytes) -> None:
    if not path.is_file():
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _read_parquet(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        if "image" not in parquet.schema_arrow.names:
            raise ValueError(f"no column 'image' but {', '.join(parquet.schema_arrow.names)}")
        present = [name for name in FIELDS if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=64, columns=["image", *present]):
            for row in batch.to_pylist():
                image = row["image"]
                content = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(content, bytes):
                    raise ValueError("no image bytes")
                yield content, {name: row[name] for name in present if row[name] is not None}


def _read_tar(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the samples of a tar, whose files lie beside each other and have the same name up to the first dot."""
    kinds = {".cls", ".json", *readable_suffixes()}
    with tarfile.open(file) as tar:
        for (_, stem), members in groupby((x for x in tar if x.isfile()), _sample):
            content, values = None, dict[str, Any]()
            for member in members:
                kind = PurePosixPath(member.name).suffix.lower()
                if kind not in kinds or not stem:
                    continue
                if member.size > MAX_FILE_SIZE:
                    raise ValueError(f"{member.name} has {member.size} bytes")
                data = tar.extractfile(member)
                assert data is not None  # a file
                if kind == ".cls":
                    values["label"] = data.read().decode().strip()
                elif kind == ".json":
                    fields = parse_json(data.read())
                    if not isinstance(fields, dict):
                        raise TypeError(f"{member.name} is no JSON object")
                    values |= {name: x for name, x in fields.items() if name in FIELDS and x is not None}
                elif content is not None:
                    raise ValueError(f"{member.name}: a second image of {stem}, as names end at the first dot")
                else:
                    content = data.read()
            if content is not None:
                yield content, values


def _sample(member: tarfile.TarInfo) -> tuple[str, str]:
    folder, _, name = member.name.rpartition("/")
    return folder, name.partition(".")[0]
