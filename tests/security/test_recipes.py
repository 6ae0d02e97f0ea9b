"""A recipe holds values: nothing that it names is imported, nothing in it is run."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from errors import error_of

from orthoproxy.runs.experiment import make_objective
from orthoproxy.runs.recipes import read_config
from orthoproxy.studies import read_study

MODULE = "evil_for_the_tests"
CLASS_PATH = f"{{class_path: {MODULE}.X, init_args: {{a: 1}}}}"
VALUES = [
    CLASS_PATH,
    "{class_path: os.system, init_args: {command: touch MARKER}}",
    f"[{CLASS_PATH}]",
    "!!python/object/apply:os.system [touch MARKER]",
    f"!!python/name:{MODULE}.X",
    f"!!python/module:{MODULE}",
    "!evil x",
]


@pytest.fixture(autouse=True)
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a module would write that must not be imported, and a command that must not be run."""
    marker, modules = tmp_path / "marker", tmp_path / "modules"
    modules.mkdir()
    (modules / f"{MODULE}.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass X: pass\n")
    monkeypatch.syspath_prepend(str(modules))
    yield marker
    run = marker.exists() or MODULE in sys.modules
    sys.modules.pop(MODULE, None)
    assert not run


def read_recipe(path: Path) -> None:
    make_objective(read_config(path).loss, num_classes=4, embedding_dim=8)  # the only free-form values


RECIPES = [
    "VALUE", "data: VALUE", "data: {name: VALUE}", "encoder: {init_from: VALUE}", "training: {epochs: VALUE}",
    "loss: {name: VALUE}", "loss: {args: VALUE}", "class_path: VALUE", "unknown: VALUE",
]  # fmt: skip
STUDIES = ["VALUE", "methods: {a: VALUE}", "name: VALUE"]


@pytest.mark.parametrize(
    ("read", "place"), [(read_recipe, place) for place in RECIPES] + [(read_study, place) for place in STUDIES]
)
def test_in_a_recipe_or_a_study(read: Callable[[Path], object], place: str, tmp_path: Path, marker: Path) -> None:
    for value in VALUES:
        (tmp_path / "file.yaml").write_text(place.replace("VALUE", value.replace("MARKER", str(marker))) + "\n")
        error_of(read, tmp_path / "file.yaml")
