"""Recipes: configurations in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.core.safe_parsing import dump_yaml, read_yaml
from orthoproxy.runs.config import Config, parse_config


def read_config(*paths: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read recipes into a validated configuration.

    Parameters
    ----------
    *paths
        YAML files; later ones override earlier ones, key by key.
    overrides
        Values by dotted key, for example ``{"training.epochs": 3}``.

    Raises
    ------
    InputError
        If a file is missing or is not YAML, or a key or value is not allowed.

    Examples
    --------
    >>> read_config("nowhere.yaml")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: nowhere.yaml: no such recipe
    """
    values: dict[str, Any] = {}
    for path in paths:
        values = _merge(values, read_yaml(Path(path), "recipe"))
        try:
            parse_config(values, overrides)
        except InputError as error:
            overridden = any(f"{error.field}.".startswith(f"{key}.") for key in overrides or {})
            raise error if overridden else replace(error, path=error.path or Path(path)) from error
    return parse_config(values, overrides)


def _merge(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = base | other
    for key in base.keys() & other.keys() - {"args"}:  # arguments of one loss are not those of another
        if isinstance(base[key], dict) and isinstance(other[key], dict):
            merged[key] = _merge(base[key], other[key])
    return merged


def write_config(config: Config, path: Path) -> None:
    """Write a configuration as YAML that `read_config` accepts."""
    atomic_write(path, dump_yaml(config.to_dict()))
