"""Recipes: configurations in YAML, read by the same parser as the command line's options."""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.core.safe_parsing import parse_yaml
from orthoproxy.runs.config import Config, flat, to_dict

# the parser imports whatever class a value names, before it finds that none belongs there; here none ever does
set_parsing_settings(
    docstring_parse_attribute_docstrings=True, import_path_denylist=["*"], instantiate_subclass_spec_in_any=False
)

NAMES_CODE = ("class_path", "init_args", "dict_kwargs")  # keys by which the parser would be told of a class
GROUPS = frozenset(  # data, data.augmentation, encoder ...
    name[: dot.start()] for name in flat(Config()) for dot in re.finditer(r"\.", name)
)
OUTSIDE = "Let the CSV file list images outside its root; for lists that you trust."


def options_parser(verb: str = "", description: str = "") -> ArgumentParser:
    """Make a parser with one option a field of `Config`, and ``--config`` for a recipe.

    Parameters
    ----------
    verb
        Of the command line, for the help.
    description
        What the help begins with.

    Returns
    -------
    jsonargparse.ArgumentParser
        Raises instead of exiting.

    Examples
    --------
    >>> parse(options_parser(), ["--training.epochs", "3"]).training.epochs
    3
    """
    parser = ArgumentParser(prog=f"orthoproxy {verb}", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A recipe (YAML); options given after it override it.")
    parser.add_class_arguments(Config, as_group=False, skip={"environment"})
    parser.add_argument("--environment", type=dict[str, str], default={}, help=argparse.SUPPRESS)
    return parser


def parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    """Parse arguments into a namespace whose parts are those of `Config`.

    Parameters
    ----------
    parser
        From `options_parser`.
    arguments
        As on the command line.

    Raises
    ------
    InputError
        Naming the option or the recipe's key.

    Examples
    --------
    >>> parse(options_parser(), ["--training.epoch", "3"])
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: unrecognized arguments: --training.epoch 3; did you mean training.epochs?
    """
    _require_plain(arguments)
    try:
        return parser.instantiate(parser.parse_args(arguments))
    except UnicodeDecodeError as error:
        raise InputError(f"{_recipes(arguments)}: not UTF-8 text: {error}; save it as UTF-8") from error
    except argparse.ArgumentError as error:
        message = " ".join(str(error).split())
        message = re.sub(r"Expected an? typing\.Literal\[(.*?)\]", r"Expected one of \1", message)
        message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("a tuple", "a list such as '[1, 10]'")
        message = message.replace("arguments are required: out", "arguments are required: --out")
        message = message.replace('in "<unicode string>", ', "")
        if re.match(r"(Group|Option) '|Problems parsing config|Unexpected config", message):  # not of an option
            message = f"{_recipes(arguments)}: {message}"
        raise InputError(message + _remedy(message)) from error


def _recipes(arguments: list[str]) -> str:
    """Return the recipes among the arguments, which a parser's message does not name."""
    return ", ".join(value for name, value in _options(arguments) if name == "config")


def _options(arguments: list[str]) -> list[tuple[str, str]]:
    """Return name and value of each option, whether with ``=`` or a blank between them."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return [(word[2:], value) for word, value in itertools.pairwise(words) if word.startswith("--")]


def _require_plain(arguments: list[str]) -> None:
    """Look at recipes, and at values given as mappings or lists, before the parser does: no value may name code."""
    for name, value in _options(arguments):
        try:
            if name == "config" and Path(value).is_file():
                _require_values("", parse_yaml(Path(value).read_text(encoding="utf-8")), f"{value}: ")
            elif name in GROUPS or (name.partition(".")[0] in GROUPS and re.match(r"\s*[\[{]", value)):
                _require_values(name, parse_yaml(value), "")
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue  # which the parser tells
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{value if name == 'config' else name}: {error}; a recipe holds values only") from error


def _require_values(name: str, value: Any, where: str) -> None:
    if name in GROUPS and value is not None and not isinstance(value, dict):
        raise InputError(f"{where}{name}: {value!r}; give keys and values, as in 'training: {{epochs: 3}}'")
    if name == "config":
        raise InputError(f"{where}config: a recipe cannot name another; give both, as in --config A --config B")
    if name.rpartition(".")[2] in NAMES_CODE:
        raise InputError(f"{where}{name}: a recipe holds values only and cannot name code; leave it out")
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        _require_values(f"{name}.{key}" if name else str(key), part, where)


def _remedy(message: str) -> str:
    if re.search("Problems parsing config|Unexpected config", message):
        return "; a recipe is YAML such as 'training: {epochs: 3}'"
    unknown = re.search(r"unrecognized arguments: --(?P<name>[\w.]+)", message)
    unknown = unknown or re.search(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.]+)'", message)
    unknown = unknown or re.search(r"Option '(?P<name>[\w.]+)' is not accepted", message)
    if unknown is None:
        return ""
    name = ".".join(part for part in (unknown.groupdict().get("group"), unknown["name"]) if part)
    close = difflib.get_close_matches(name, flat(Config()), n=1)
    return f"; did you mean {close[0]}?" if close else "; --help lists the options"


def config_of(namespace: Namespace) -> Config:
    """Turn what `parse` returned into a checked configuration.

    Parameters
    ----------
    namespace
        May hold more than the configuration.

    Examples
    --------
    >>> config_of(parse(options_parser(), ["--loss.name", "proxy_anchor"])).loss.name
    'proxy_anchor'
    """
    return Config(**{name: getattr(namespace, name) for name in Config.__dataclass_fields__}).check()


def read_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a recipe.

    Parameters
    ----------
    path
        YAML; see the recipes folder.
    overrides
        Options as on the command line, for example ``["--training.epochs", "3"]``.

    Returns
    -------
    Config
        Checked.

    Raises
    ------
    InputError
        If the file is missing, is not YAML, or has a key or value that does not exist.

    Examples
    --------
    >>> read_config("nowhere.yaml")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: no recipe nowhere.yaml
    """
    if not Path(path).is_file():
        raise InputError(f"no recipe {path}")
    return config_of(parse(options_parser(), ["--config", str(path), *(overrides or [])]))


def write_config(config: Config, path: Path) -> None:
    """Write a configuration as YAML that `read_config` takes back.

    Parameters
    ----------
    config
        Of a run.
    path
        The file.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "config.yaml"
    >>> write_config(Config(), path)
    >>> read_config(path) == Config()
    True
    """
    atomic_write(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
