"""Order in the house: short functions, and pages for contributors that say what is there."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "orthoproxy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINES = 40
# what is longer, and why it stays so
LONG = {
    "jobs._train": "the way of a run from the first check to the scores, to be read in one go",
    "training.loop.fit": "the training loop reads from top to bottom; in pieces, the order of its steps would be lost",
}


# what others say, and our word for it; in names of the libraries that we use it stays
WORDS = {
    r"data-?sets?": "data set",
    r"catalogues?": "catalog",
    r"hyper-?parameters?": "setting",
    r"fine-?tun\w+": "train",
    r"(model )?trunk|feature extractor": "backbone",
    r"(run|output|model) director(y|ies)": "run folder, model folder",
    r"optimizers?": "optimiser",
    r"initiali[z]\w+": "start, initialise",
    r"cent(er)s?": "centre",
    r"colors?": "colour",
    r"neighbors?": "neighbour",
    r"artifacts?|artefacts?": "file",
}


def lengths(tree: ast.AST) -> dict[str, int]:
    """Lines of each function, from `def` to its end, without the docstring."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = ast.get_docstring(node) is not None
            found[node.name] = node.end_lineno - node.lineno + 1 - docstring * (first.end_lineno - first.lineno + 1)
    return found


def test_length_is_counted_without_the_docstring() -> None:
    tree = ast.parse('@cache\ndef f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    # why\n    return x\n')
    assert lengths(tree) == {"f": 5}


def test_a_function_above_forty_lines_has_its_reason_here() -> None:
    long = set()
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        long |= {f"{module}.{name}" for name, lines in lengths(tree).items() if lines > LINES}
    assert long == set(LONG)


def test_the_architecture_page_shows_the_direction_that_is_checked() -> None:
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    checked = [re.findall(r"\w+", layer) for layer in contract["layers"] if layer != "__main__"]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"## What may import what\n.*?```text\n(.*?)```", page, re.DOTALL)
    shown = [line.partition("#")[0].split() for line in block[1].splitlines()]
    assert shown == checked


def test_the_architecture_page_names_every_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    way = page.split("## The run folder")[0]
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert folders == set(re.findall(r" (\w+)/  ", way))


def prose(path: Path) -> str:
    """A page without code and addresses; of a module, its docstrings and comments without names and examples."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        docstrings = [
            ast.get_docstring(node) or ""
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        comments = re.findall(r"(?:^|\s)# (.*)", text)
        text = "\n".join([*docstrings, *comments])
        text = re.sub(r"^ *(>>>|\.\.\. ).*|^\w+(, \w+)*$|\"[^\"\n]*\"", "", text, flags=re.MULTILINE)
    return re.sub(r"```.*?```|``.*?``|`[^`]*`|https?://\S+|\(\S*\.md\S*\)", " ", text, flags=re.DOTALL)


def test_one_word_for_one_thing() -> None:
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCE.rglob("*.py")]
    others = {
        f"{path.relative_to(ROOT)}: {found[0]}; here it is called {ours}"
        for path, text in zip(paths, map(prose, paths), strict=True)
        for other, ours in WORDS.items()
        for found in re.finditer(rf"\b({other})\b", text)  # with a capital it is a name
    }
    assert others == set()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_targets_that_a_page_names_are_there(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
    assert named and named <= targets


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert (citation["abstract"], citation["license"]) == (project["description"], project["license"])
    assert citation["preferred-citation"]["title"] == "Deep Metric Learning with Soft Orthogonal Proxies"
    assert citation["preferred-citation"]["url"].endswith("2306.13055")
