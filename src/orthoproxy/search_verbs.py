"""The verbs of searching, as the command line calls them: export, embed, index, search, serve."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from orthoproxy.errors import InputError
from orthoproxy.recipes import parse


def _parser(verb: str, description: str) -> ArgumentParser:
    return ArgumentParser(
        prog=f"orthoproxy {verb}", description=description, exit_on_error=False, allow_abbrev=False
    )


def run_export(arguments: list[str]) -> None:
    """Write a model as ONNX, checked against the original."""
    parser = _parser("export", "Write a trained model as ONNX, checked against the original on its test images.")
    parser.add_argument("model", help="A run folder.")
    parse(parser, arguments)
    raise InputError("export: not built yet")


def run_embed(arguments: list[str]) -> None:
    """Embed a collection of images into Parquet parts."""
    raise InputError("embed: not built yet")


def run_index(arguments: list[str]) -> None:
    """Make a catalog, or add to one, replace and delete."""
    raise InputError("index: not built yet")


def run_search(arguments: list[str]) -> None:
    """Search a catalog by picture."""
    raise InputError("search: not built yet")


def run_serve(arguments: list[str]) -> None:
    """Serve catalogs over HTTP, with a page to search on."""
    raise InputError("serve: not built yet")
