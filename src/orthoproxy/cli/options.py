"""Options that mean the same in every command."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin

from orthoproxy.core.errors import InputError, did_you_mean, os_errors_as_input_errors
from orthoproxy.core.files import atomic_write

DATASETS = ("icons", "cub", "cars", "sop", "inshop")
# options of version 0.1
RENAMED = {
    "--accelerator": "--device",
    "--most-images": "--max-images",
    "--no-open": "--lists-only",
    "--on": "--split",
    "--part": "--shard",
    "--plan": "--dry-run",
}
DEVICES = ("auto", "cpu", "cuda", "mps")
READING = ("data.root", "data.csv", "data.allow_paths_outside_root")  # where images are, and which may be read
MODEL = "A run folder, a model folder, or a name on the Hugging Face Hub."
MODEL_OR_ONNX = "A run folder, a model folder, a name on the Hugging Face Hub, or an .onnx file."

AUGMENT = "Average embeddings over the image, its center enlarged, and both mirrored; takes four times as long."


class Parser(argparse.ArgumentParser):
    """An `argparse` parser that raises `InputError` and accepts keys below the dict fields of the configuration."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"orthoproxy {command}", description=description, exit_on_error=False, allow_abbrev=False)
        self.dict_fields: list[str] = []

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse arguments, options and positionals in any order."""
        keys = {word[2:].partition("=")[0] for word in arguments if word.startswith("--")}
        for key in sorted(keys):
            if any(key.startswith(f"{field}.") for field in self.dict_fields):
                self.add_argument(f"--{key}", dest=key, default=argparse.SUPPRESS)
        try:
            options, unknown = self.parse_known_intermixed_args(arguments)
        except argparse.ArgumentError as error:
            raise InputError(error.message, field=error.argument_name) from error
        if unknown:
            name = unknown[0].partition("=")[0]
            self._require_no_key(name)
            renamed = RENAMED.get(name)
            if action := self._option_string_actions.get(renamed or ""):
                expected = f"{renamed}, one of {', '.join(action.choices)}" if action.choices else renamed
                raise InputError("renamed in version 0.2", field=unknown[0], expected=expected)
            hint = did_you_mean(unknown[0], self._option_string_actions, f"{self.prog} --help lists the options")
            raise InputError("unknown argument", field=unknown[0], hint=hint)
        return options

    def _require_no_key(self, name: str) -> None:
        """Raise InputError for an option of `train`, under its present name or an old one."""
        from orthoproxy.runs.config import RENAMED, fields_by_key

        key = name.removeprefix("--")
        if any(f"{key}.".startswith(f"{known}.") for known in fields_by_key()):
            problem = f"not an option of {self.prog}: it is decided when a model is trained"
            raise InputError(problem, field=name, hint="give it to orthoproxy train")
        if key in RENAMED:
            raise InputError("renamed or removed in version 0.2", field=name, hint=RENAMED[key])

    def add_device(self) -> None:
        self.add_argument("--device", choices=DEVICES, default="auto", help="Device to compute on (default: auto).")

    def add_workers(self, default: int | None = 1) -> None:
        text = f"Data loading processes (default: {'as the run' if default is None else default})."
        self.add_argument("--workers", type=at_least(0), default=default, metavar="N", help=text)

    def add_json(self) -> None:
        self.add_argument("--json", metavar="FILE", help="Write the results as JSON; - for standard output.")

    def add_images(self, required: bool = False) -> None:
        """Add the positional IMAGES, which `config_overrides` reads."""
        text = "A folder (labels are the names of its subfolders), a CSV or Parquet file, a WebDataset tar, or a "
        text += f"dataset: {', '.join(DATASETS)}."
        self.add_argument("images", metavar="IMAGES", nargs=None if required else "?", help=text)
        text = "Leave out files and folders of the folder IMAGES, such as '*/drafts'; may be repeated."
        self.add_argument("--ignore", action="append", metavar="PATTERN", help=text)

    def add_moved_images(self) -> None:
        """Add the options that say where the images of a run are now."""
        self.add_config_options(READING, "images that were moved")

    def add_config_options(self, keys: Sequence[str] | None = None, title: str | None = None) -> None:
        """Add an option for each field of the configuration, or for some, under its dotted key."""
        from orthoproxy.runs.config import fields_by_key

        short = {"data.workers": "--workers", "training.device": "--device"} if keys is None else {}
        groups: dict[str, Any] = {}
        for key, field in fields_by_key().items():
            if keys is not None and key not in keys:
                continue
            section = title or key.rpartition(".")[0]
            if section not in groups:
                groups[section] = self.add_argument_group(section)
            text, default = " ".join((field.description or "").split()), field.default
            if keys is None and default is not None:  # else the default is the value of a run
                text += f" (default: {default if isinstance(default, str) else json.dumps(default)})"
            names = [name for name in (short.get(key), f"--{key}") if name]
            form = _metavar(field.annotation)
            groups[section].add_argument(*names, dest=key, metavar=form, default=argparse.SUPPRESS, help=text)
            if field.annotation == dict[str, Any]:
                self.dict_fields.append(key)

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise InputError(message, hint=f"{self.prog} --help lists the options")

    def option_names(self) -> dict[str, str]:
        """Return how each option is written, by its name in the code."""
        written = ((action.dest, [*action.option_strings, action.metavar]) for action in self._actions)
        return {dest: str(names[0] or dest) for dest, names in written if "." not in dest}


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a converter for integer options with a lower bound."""

    def convert(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} (expected an integer, at least {minimum})")
        return int(text)

    return convert


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, right: Collection[str] = ()
) -> None:
    """Print a table for people; the columns named in `right` are aligned there."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name in right, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@contextmanager
def json_output(options: argparse.Namespace) -> Iterator[None]:
    """Provide `options.write_json`, which writes the results of `--json`; with -, other output goes to stderr."""
    stdout, place = sys.stdout, options.json

    def write(results: Any) -> None:
        text = json.dumps(results, indent=2, ensure_ascii=place == "-") + "\n"  # a terminal may lack characters
        if place == "-":
            stdout.write(text)
        elif place is not None:
            with os_errors_as_input_errors(place, "run the command again"):
                Path(place).parent.mkdir(parents=True, exist_ok=True)
                atomic_write(Path(place), text)

    if place not in (None, "-"):  # before hours of work
        with os_errors_as_input_errors(place, "run the command again"):
            path = Path(place).absolute()
            there = next(above for above in (path, *path.parents) if above.exists())
            if path.is_dir() or not (there == path or there.is_dir()) or not os.access(there, os.W_OK):
                raise InputError("cannot be written", field="json", path=place, hint="choose another path")
    options.write_json = write
    with redirect_stdout(sys.stderr if place == "-" else stdout):
        yield


def config_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration that IMAGES and the options name, by dotted key."""
    values = {key: _value(key, text) for key, text in vars(options).items() if "." in key}
    if ignore := getattr(options, "ignore", None):
        values["data.ignore"] = ignore
    images = getattr(options, "images", None)
    if images is None:
        return values
    if images in DATASETS:
        return {"data.name": images} | values
    packed = {".parquet": "parquet", ".tar": "webdataset"}.get(Path(images).suffix)
    if packed and not Path(images).is_dir():
        return {"data.name": packed, "data.root": images} | values
    if images.endswith(".csv") or Path(images).is_file():
        return {"data.name": "csv", "data.csv": images} | values
    return {"data.name": "folder", "data.root": images} | values


def _metavar(annotation: Any) -> str:
    """Return the allowed values where these are few, else VALUE."""
    if annotation is bool:
        return "true|false"
    return "|".join(get_args(annotation)) if get_origin(annotation) is Literal else "VALUE"


def _value(key: str, text: str) -> Any:
    """Parse a value as YAML, except where a string is wanted: a folder may be named 2024 or on."""
    import yaml

    from orthoproxy.core.safe_parsing import parse_yaml
    from orthoproxy.runs.config import fields_by_key

    fields = fields_by_key()
    annotation: Any = fields[key].annotation if key in fields else Any  # below a dict
    if annotation is str or (get_origin(annotation) is UnionType and str in get_args(annotation)):
        return None if text == "null" and annotation is not str else text
    try:
        return parse_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(" ".join(str(error).split()), field=key, expected="a YAML value") from error
