"""Shapes are checked while the tests run, examples are the same every time, and small inputs that many tests share."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import jaxtyping
import pytest

# before PyTorch is imported, and for the processes that tests start: on busy cores, threads that wait for each other
# make small models ten times slower
os.environ.setdefault("OMP_NUM_THREADS", "1")

# before the package is imported; an int where a float is asked for is fine (PEP 484)
jaxtyping.install_import_hook(
    "orthoproxy", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, is_color=False))"
)

if TYPE_CHECKING:
    from orthoproxy.models import Encoder

# The package and PyTorch are imported in functions: the main process of pytest-xdist, which runs no test, needs none.

hypothesis.settings.register_profile(
    "orthoproxy", max_examples=40, derandomize=True, database=None, deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)  # fmt: skip
hypothesis.settings.load_profile("orthoproxy")

TINY = "test_vit"  # 64 features; at 32 pixels an image is 4 patches


CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU or a browser where there is none."""
    import torch

    # The first backward pass starts a thread for each device but the CPU, and then PyTorch cannot train in forks. An
    # export to ONNX makes such a device known. So the first pass is here, whatever the order of the tests.
    torch.ones(1, requires_grad=True).backward()
    missing = {
        "gpu": None if torch.cuda.is_available() else "there is no CUDA device here",
        "browser": None if CHROMIUM.exists() else f"no Chromium in {CHROMIUM}; apt-get install chromium",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call functions as users do: with nobody before them who looks at shapes and types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def _no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures empty where no test looks at them: drawing them is half of a small run."""
    if request.path.parent.name not in ("reports", "studies"):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, file, **__: file.write("<svg></svg>"))


@pytest.fixture(scope="module")  # for a whole session it would leave its event loop running for all other tests
def browser() -> Iterator[Any]:
    """Chromium without a window, for tests that carry the marker ``browser``."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield started
        started.close()


@pytest.fixture(scope="session")
def _tiny_encoder() -> Encoder:
    from orthoproxy.models import Encoder

    return Encoder(TINY, embedding_dim=8, image_size=32)


@pytest.fixture
def tiny_encoder(_tiny_encoder: Encoder) -> Encoder:
    """A vision transformer for 32 pixels with a projection to 8, random weights; a copy for each test."""
    return copy.deepcopy(_tiny_encoder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of five images, each class in shades of a color of its own; to be read only."""
    import numpy as np
    from small_runs import write_shades

    root, generator = tmp_path_factory.mktemp("photos") / "photos", np.random.default_rng(0)
    for number in range(10):
        write_shades(root / f"class {number}", generator.integers(60, 256, size=3), 5, generator, spread=40)
    return root


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for these images that trains in seconds."""
    from small_runs import RECIPE

    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def whole(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe on the photos, from start to end; to be read only."""
    from small_runs import training

    from orthoproxy.cli.main import main

    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(training(recipe, photos, out)) == 0
    return out


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of four images, each class in shades of a color of its own, and a list; to be read only."""
    import numpy as np
    from small_runs import write_shades

    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, color in {"blue": (20, 20, 230), "green": (20, 230, 20), "red": (230, 20, 20)}.items():
        write_shades(root / name, color, 4, generator)
    rows = [f"{name}/{number}.png,{name},{number}\n" for name in ("blue", "green", "red") for number in range(4)]
    (root / "list.csv").write_text("path,label,group\n" + "".join(rows))
    return root


@pytest.fixture(scope="session")
def paths(image_folder: Path) -> list[Path]:
    return sorted(image_folder.rglob("*.png"))
