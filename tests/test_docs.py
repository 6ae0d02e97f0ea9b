"""The documentation is true: its Python prints what it shows, its recipes, commands, links and figures are valid."""

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from orthoproxy import Embedder, read_config
from orthoproxy.cli.main import COMMANDS, parse
from orthoproxy.cli.options import config_overrides
from orthoproxy.models import Encoder
from orthoproxy.runs.experiment import make_objective
from orthoproxy.runs.study_trials import configure_trial
from orthoproxy.studies import read_study

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = [*sorted((DOCS / "guide").glob("*.md")), DOCS / "method.md"]  # pages whose Python needs no dataset


def pages(language: str, among: list[Path] = PAGES) -> Any:
    found = [page for page in among if f"```{language}\n" in page.read_text(encoding="utf-8")]
    return pytest.mark.parametrize("page", found, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return [match[2] for match in BLOCK.finditer(page.read_text(encoding="utf-8")) if match[1] == language]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of birds, a run trained on them, the recipes and studies of the repository."""
    torch.manual_seed(0)
    for bird in ("robin", "wren"):
        (tmp_path / "birds" / bird).mkdir(parents=True)
        for number in (1, 2):
            pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "birds" / bird / f"{number}.jpg")
    encoder = Encoder("test_vit", embedding_dim=128, image_size=32)
    Embedder(encoder, classes=["robin", "wren"], proxies=torch.randn(2, 128)).save(tmp_path / "runs/birds/model")
    (tmp_path / "runs/birds/config.yaml").write_text("data: {name: folder, root: birds}\n")
    for folder in ("recipes", "studies"):
        (tmp_path / folder).mkdir()
        for path in (ROOT / folder).iterdir():
            (tmp_path / folder / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipes(page: Path) -> list[Path]:
    """Write the page's YAML under the names in its first lines."""
    paths = [Path(re.match(r"# (\S+\.yaml)\n", text)[1]) for text in blocks(page, "yaml")]
    for path, text in zip(paths, blocks(page, "yaml"), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


@pages("python", RUN)
def test_python_prints_what_the_page_shows(page: Path, work_folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    found = [match.groups() for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]
    for (language, code), (following, output) in zip(found, [*found[1:], ("", "")], strict=True):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, page, "exec"), namespace)
            assert following != "text" or printed.getvalue() == output


@pages("yaml")
def test_recipes_and_studies_are_valid(page: Path, work_folder: Path) -> None:
    for path in write_recipes(page):
        if path.parent.name == "studies":
            study = read_study(path)
            assert all(configure_trial(study, trial) for trial in study.planned_trials)
        else:
            make_objective(read_config(path).loss, num_classes=4, embedding_dim=8)


@pages("console")
def test_commands_are_valid(page: Path, work_folder: Path) -> None:
    write_recipes(page)
    for line in "".join(blocks(page, "console")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "orthoproxy" in words and words[0] in ("orthoproxy", "torchrun") and "--help" not in words:
            _, options = parse(words[words.index("orthoproxy") + 1 :])
            if "search" not in words:  # whose images are queries, not data
                read_config(*getattr(options, "config", ()), overrides=config_overrides(options))


def test_the_performance_page_shows_the_figures_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from page import PAGE, page  # from benchmarks/results

    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_command_is_documented() -> None:
    table = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"| `{command} " not in table] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s:]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", prose(target), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w\s-]", "", x).lower().replace(" ", "-") for x in headings}, link
