"""The documentation is executed: its Python runs and prints what it says, its commands parse, its links resolve."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from orthoproxy.runs.build import make_objective
from PIL import Image

from orthoproxy import Embedder, cli, data_verbs, diagnose_verb, evaluate_verb, reproduce_verb, search_verbs, study_verb
from orthoproxy.models import Encoder
from orthoproxy.runs.recipes import config_of, parse, read_config
from orthoproxy.runs.study_trials import configure_trial
from orthoproxy.studies import read_study

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md")) + [page for page in [ROOT / "README.md"] if page.exists()]
EXECUTED = [page for page in PAGES if page.parent == DOCS / "guide" or page == DOCS / "method.md"]
EXECUTED = [page for page in EXECUTED if "```python" in page.read_text(encoding="utf-8")]
WITH_RECIPES = [page for page in PAGES if "```yaml" in page.read_text(encoding="utf-8")]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, text, and the line of the page that the text starts on."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    fenced = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], text[: match.start(2)].count("\n")) for match in fenced]


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `orthoproxy ...` line in a block for the terminal."""
    for block in blocks(page):
        if block.language in ("console", "bash", "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] == ["orthoproxy"]:
                    yield words[1:]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def write_recipes(page: Path, folder: Path) -> list[Path]:
    """Write the page's recipes under the names that their first lines give."""
    return [path for path in write_yaml(page, folder) if path.parent.name != "studies"]


def write_yaml(page: Path, folder: Path) -> list[Path]:
    """Write the page's recipes and studies; the latter are those with a name in studies/."""
    written = []
    for block in blocks(page):
        if block.language == "yaml":
            title = re.match(r"# (\S+\.yaml)\n", block.text)
            written.append(folder / (title[1] if title else f"line-{block.line}.yaml"))
            written[-1].parent.mkdir(exist_ok=True)
            written[-1].write_text(block.text, encoding="utf-8")
    return written


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder that the pages speak of: bird images, a run trained on them, the recipes."""
    generator = np.random.default_rng(0)
    for bird in ("robin", "wren"):
        (tmp_path / "birds" / bird).mkdir(parents=True)
        for number in (1, 2):
            pixels = generator.integers(256, size=(40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "birds" / bird / f"{number}.jpg")
    encoder = Encoder("test_vit", embedding_dim=128, image_size=32)
    Embedder(encoder, classes=["robin", "wren"], proxies=torch.randn(2, 128)).save(tmp_path / "runs/birds/model")
    Embedder(Encoder("test_vit", image_size=32)).save(tmp_path / "runs/birds/baseline")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Lightning warns of its own call to PyTorch, and of loaders without workers on machines with many cores
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
@pytest.mark.parametrize("page", EXECUTED, ids=name)
def test_python_runs_and_prints_what_the_page_shows(page: Path, work_folder: Path) -> None:
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "docs"}
    shown = blocks(page)
    for block, following in zip(shown, [*shown[1:], Block("", "", 0)], strict=True):
        if block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")  # errors name the page's own line
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, namespace)
            if following.language == "text":
                assert printed.getvalue() == following.text, f"{page}:{following.line}"


@pytest.mark.parametrize("page", WITH_RECIPES, ids=name)
def test_recipes_are_accepted_and_name_losses_that_exist(page: Path, work_folder: Path) -> None:
    for recipe in write_recipes(page, work_folder):
        config = read_config(recipe)
        make_objective(config, num_classes=4, embedding_dim=8)


@pytest.mark.parametrize("page", WITH_RECIPES, ids=name)
def test_studies_are_accepted(page: Path, work_folder: Path) -> None:
    for path in write_yaml(page, work_folder):
        if path.parent.name == "studies":
            study = read_study(path)
            for trial in study.tuning_trials:
                configure_trial(study, trial)


class Parsed(Exception):  # noqa: N818 -- stops a verb where its work would begin
    """The options were accepted."""


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=name)
def test_commands_are_accepted(page: Path, work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_and_stop(*given: Any) -> None:
        options = parse(*given)
        if hasattr(options, "training"):
            config_of(options)
        raise Parsed

    for module in (cli, data_verbs, diagnose_verb, evaluate_verb, reproduce_verb, search_verbs, study_verb):
        monkeypatch.setattr(module, "parse", parse_and_stop)
    write_recipes(page, work_folder)
    for verb, *arguments in commands(page):
        if verb != "--help":
            assert verb in cli.VERBS, f"orthoproxy {verb}"
            with pytest.raises(SystemExit if "--help" in arguments else Parsed):
                cli.VERBS[verb](arguments)


def test_verbs_named_in_the_text_exist() -> None:
    for page in PAGES:
        for verb in re.findall(r"`orthoproxy ([a-z]\w*)", prose(page)):
            assert verb in cli.VERBS, f"{name(page)}: orthoproxy {verb}"


def test_every_verb_is_documented() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert [verb for verb in cli.VERBS if f"| `{verb} " not in page] == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_internal_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)", prose(page)):
        if not link.startswith(("http:", "https:", "mailto:")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{name(page)}: {link}"
            if anchor and not target.is_relative_to(DOCS / "reference"):  # anchors there are made from the docstrings
                assert anchor in anchors(target), f"{name(page)}: {link}"


def test_every_page_is_in_the_navigation_once() -> None:
    def pages(item: Any) -> list[str]:
        if isinstance(item, str):
            return [item]
        return [page for part in (item.values() if isinstance(item, dict) else item) for page in pages(part)]

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(pages(settings["nav"])) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
