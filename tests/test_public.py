"""The public surface: what it holds, and that each name is explained with an example."""

import importlib
import inspect

import pytest

import orthoproxy

PACKAGES = ["orthoproxy"] + [
    f"orthoproxy.{name}"
    for name in ("data", "models", "losses", "evaluation", "training", "reports", "diagnosis", "studies", "search")
]
NAMES = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]


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
