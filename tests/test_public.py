"""The public surface: what it holds, that each name is explained with an example, and who imports whom."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import orthoproxy

SOURCE = Path(orthoproxy.__file__).parent
PACKAGES = ["orthoproxy"] + [
    f"orthoproxy.{name}" for name in ("data", "models", "losses", "evaluation", "training", "reports", "search")
]
NAMES = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]
# each may import those before it, and what stands alone
ORDER = ["data", "models", "losses", "embedder", "evaluation", "training", "reports", "search"]
ALONE = {"errors", "progress", "processes"}


def test_the_surface_is_what_the_documentation_shows():
    assert set(orthoproxy.__all__) >= {"train", "load", "evaluate", "read_config", "read_table", "make_table", "Config"}


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_is_explained_with_an_example(package, name):
    thing = getattr(importlib.import_module(package), name)
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()[0]) > 10
    if name not in ("Interrupted", "fit"):  # an exception; and what the example of orthoproxy.train runs
        assert ">>>" in text
    if inspect.isfunction(thing) and inspect.signature(thing).parameters:
        assert "Parameters\n---" in text


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room not in ORDER:
        return  # cli, run and builders stand above
    knows_nothing_of = {"data", "models", "losses"} - {room}
    allowed = set(ORDER[: ORDER.index(room) + 1]) | ALONE
    if room in ("data", "models", "losses"):
        allowed -= knows_nothing_of
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orthoproxy"):
            parts = (node.module or "").split(".")
            assert len(parts) > 1 and parts[1] in allowed, f"{path.name} imports {node.module}"
