"""Validation of the JSON files that describe models, embeddings and catalogs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from orthoproxy.core.errors import InputError

T = TypeVar("T", bound=BaseModel)

MAX_DIM = 16_384  # bounds what an untrusted file can make us allocate
MAX_IMAGE_SIZE = 4096
UNIT_TOLERANCE = 1e-3  # of an embedding's length
Dim = Annotated[int, Field(ge=1, le=MAX_DIM)]
ImageSize = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
ResizeField = Annotated[int, Field(ge=1, le=MAX_DIM)] | Literal["stretch"] | None


def validate_json(schema: type[T], text: str | bytes, path: str | Path, hint: str) -> T:
    """Parse and validate JSON; raises InputError with the first invalid field."""
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as invalid:
        error: Any = invalid.errors(include_url=False)[0]
        field, problem, expected = ".".join(map(str, error["loc"])) or None, f"damaged: {error['msg']}", None
        if field == "format_version":
            problem = f"unknown format version {None if error['type'] == 'missing' else error['input']!r}"
            expected = error.get("ctx", {}).get("expected")
        raise InputError(problem, field=field, path=path, expected=expected, hint=hint) from invalid


def read_json(schema: type[T], path: Path, hint: str) -> T:
    return validate_json(schema, path.read_bytes(), path, hint)


def import_optional(name: str, extra: str) -> Any:
    """Import a module of an optional dependency; raises InputError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        hint = f"pip install 'orthoproxy[{extra}]'"
        raise InputError(f"{name.partition('.')[0]} is not installed", hint=hint) from error
