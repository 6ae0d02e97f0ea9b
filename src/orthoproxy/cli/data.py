"""What `orthoproxy data` does: describe images, verify a copy or download one; as tables for a person and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from orthoproxy.core.errors import InputError, os_errors_as_input_errors
from orthoproxy.core.files import atomic_write
from orthoproxy.data import CopyCheck, describe_images, scan_images, verify_images
from orthoproxy.data.sources.download import download
from orthoproxy.runs.build import read_table
from orthoproxy.runs.config import Config, Data, with_absolute_paths
from orthoproxy.runs.recipes import OUTSIDE, parse

SHOWN = 10  # examples printed; the JSON has all
CAPTION = "least to most: images of a class; one only: classes with a single image"
PER_CLASS = {"smallest": "least", "median": "median", "mean": "mean", "largest": "most", "single": "one only"}


def run_data(arguments: list[str]) -> None:
    """Describe a source of images, verify a copy of a data set, or download one."""
    options = parse(_parser(), arguments)
    source = options.data
    if options.action == "download":
        if source.root is None:
            raise InputError(f"data.root: missing; say where to put {source.name}, for example data/{source.name}")
        with os_errors_as_input_errors(source.root, "run it again"):
            download(source.name, Path(source.root))
        return
    data = Data(source.name, source.root, source.path, source.outside_root, workers=source.workers)
    data = with_absolute_paths(Config(data=data).check()).data
    out = Path(options.json) if options.json else None
    with os_errors_as_input_errors(options.json or ".", "run it again"):
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        {"describe": describe, "verify": verify}[options.action](data, not options.no_open, out)


def describe(data: Data, opened: bool = True, out: Path | None = None) -> dict[str, Any]:
    """Count images and classes of a source, measure its images, and print what was found.

    Parameters
    ----------
    data
        Name, root, path and workers.
    opened
        Look into the images; else they need not be there.
    out
        A JSON file to write as well.

    Returns
    -------
    dict
        As from `data.describe_images`.

    Raises
    ------
    InputError
        If the source cannot be read. An image that cannot is counted.

    Examples
    --------
    >>> describe(Data(name="csv", path="nowhere.csv"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.path: no file nowhere.csv; give the CSV file that lists the images
    """
    table = read_table(data)
    scan = scan_images(table["path"].tolist(), data.workers) if opened else None
    description = describe_images(table, scan)
    _print_counts(data, description)
    if opened:
        _print_sizes(description, data)
    _write(description, out)
    return description


def verify(data: Data, opened: bool = True, out: Path | None = None) -> dict[str, Any]:
    """Compare a copy of a data set with what was published, look for damage and duplicates, and print the checks.

    Parameters
    ----------
    data, opened, out
        As in `describe`.

    Returns
    -------
    dict
        ``name``, ``root``, ``opened``, ``passed`` and ``checks``, each as `data.CopyCheck` has it.

    Raises
    ------
    InputError
        After printing and writing, if the copy is not whole.

    Examples
    --------
    >>> verify(Data(name="folder", root="nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.root: no folder nowhere; give one that has a sub-folder of images a class
    """
    table = read_table(data)
    scan = scan_images(table["path"].tolist(), data.workers, hashes=True) if opened else None
    checks = verify_images(data.name, table, scan, Path(data.root) if data.root else None)
    failed = [check.name for check in checks if check.status == "failed"]
    verdict = {"name": data.name, "root": data.root, "opened": opened, "passed": not failed}
    result = {**verdict, "checks": [check.to_dict() for check in checks]}
    _print_checks(data, checks)
    _write(result, out)
    if failed:
        raise InputError(f"data: {_title(data)} is not whole: {'; '.join(failed)}\nget again what is missing or broken")
    return result


def _title(data: Data) -> str:
    return f"{data.name} in {data.path or data.root}" if data.path or data.root else data.name


def _write(result: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        atomic_write(out, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _print_counts(data: Data, description: dict[str, Any]) -> None:
    parts = description["images_per_class"]
    table = Table(title=_title(data), title_justify="left", caption=CAPTION, caption_justify="left")
    table.add_column("")
    for name in ("images", "classes", *PER_CLASS.values()):
        table.add_column(name, justify="right", no_wrap=True)
    for name, sizes in parts.items():
        counts = (description[name]["images"], description[name]["classes"], *(sizes[key] for key in PER_CLASS))
        table.add_row(name, *map(_number, counts))
    Console().print(table)


def _print_sizes(description: dict[str, Any], data: Data) -> None:
    sizes, unreadable = description["sizes"], description["unreadable"]
    if sizes:
        caption = f"largest: {sizes['megapixels']['max']} megapixels"
        table = Table(caption=caption, caption_justify="left")
        table.add_column("pixels")
        for name in ("min", "median", "max"):
            table.add_column(name, justify="right")
        for side in ("width", "height"):
            table.add_row(side, *(_number(sizes[side][name]) for name in ("min", "median", "max")))
        Console().print(table)
    print(f"unreadable images: {unreadable['count']:,}")
    _print_examples(unreadable["images"], data)


def _number(value: float) -> str:
    return f"{value:,}".removesuffix(".0")


def _print_checks(data: Data, checks: list[CopyCheck]) -> None:
    table = Table(title=_title(data), title_justify="left")
    for name in ("", "check", "found"):
        table.add_column(name)
    for check in checks:
        table.add_row("FAILED" if check.status == "failed" else check.status, check.name, check.summary)
    Console().print(table)
    if any(check.items and check.name.endswith("across splits") for check in checks):
        print("note: splits share pictures: what is judged was trained on, scores are too good")
        print("note: this is no failure, since published data have some of these too")
    for check in checks:
        # that a class has an image twice changes little, and counts say all in the table
        if check.items and not check.name.endswith("within a class") and not check.name.startswith("counts"):
            print(f"{check.name}:")
            _print_examples(check.items, data)


def _print_examples(items: list[Any], data: Data) -> None:
    for item in items[:SHOWN]:
        for line in _lines(item, data):
            print(f"  {line}")
    if len(items) > SHOWN:
        print(f"  ... and {len(items) - SHOWN:,} more; --json FILE lists all")


def _lines(item: Any, data: Data) -> Iterator[str]:
    """Write an item of a check: a path, a path with a reason, or images that show the same."""
    if isinstance(item, str):
        yield _short(item, data)
    elif isinstance(item, dict):
        yield f"{_short(item['path'], data)}: {item['reason']}"
    else:
        for place, image in enumerate(item[:SHOWN]):
            origin = " ".join(part for part in (image["split"], image["label"]) if part)
            yield f"{'= ' if place else ''}{_short(image['path'], data)} ({origin})"
        if len(item) > SHOWN:
            yield f"= ... and {len(item) - SHOWN:,} more"


def _short(path: str, data: Data) -> str:
    """Leave out the folder that was given."""
    root = Path(data.root) if data.root else Path(data.path or "").parent
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="orthoproxy data",
        description="Describe images, compare a copy of a data set with what was published, or download one.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=("describe", "verify", "download"), help="What to do.")
    parser.add_argument("--data.name", type=get_type_hints(Data)["name"], required=True, help="The source of images.")
    parser.add_argument("--data.root", type=str | None, help="Its folder; for download, where to put it.")
    parser.add_argument("--data.path", type=str | None, help="Its CSV file, for data.name csv.")
    parser.add_argument("--data.outside_root", type=bool, default=False, help=OUTSIDE)
    parser.add_argument("--data.workers", type=int, default=Data.workers, help="Processes that read images.")
    parser.add_argument("--json", help="Also write what is found to this file.")
    parser.add_argument("--no-open", action="store_true", help="Go by lists and names of files; open no image.")
    return parser
