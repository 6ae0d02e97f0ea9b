"""Use an installed orthoproxy as a stranger would: are its files there, does it train and judge?"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

TINY = """\
data: {name: folder, root: stripes, test_fraction: 0.4, validation_fraction: 0.34, workers: 0, resize: 32}
encoder: {name: test_vit, weights: none, embedding_dim: 8, image_size: 32}
training: {epochs: 1, batch_size: 6, accelerator: cpu}
evaluation: {recall_at: [1, 2], draws: 50}
"""


def main() -> None:
    made, sources = sys.argv[1:]
    require_files(Path(sources))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        draw_stripes(Path("stripes"))
        Path("tiny.yaml").write_text(TINY, encoding="utf-8")
        assert "usage: orthoproxy VERB" in orthoproxy("--help")
        assert "--training.epochs" in orthoproxy("train", "--help")
        orthoproxy("train", "--config", "tiny.yaml", "--out", "run")
        assert "<html" in Path("run/report.html").read_text(encoding="utf-8")
        orthoproxy("evaluate", "run", "--json", "scores.json")
        scores = json.loads(Path("scores.json").read_text(encoding="utf-8"))
        assert 0 <= scores["trained"]["recall@1"]["value"] <= 1
        refusal = orthoproxy("index", "catalog", "stripes", "--model", "run", exit_code=2)
        assert "pip install" in refusal, refusal  # an extra that is not installed is named
    print(f"{made}: installed, complete, trains and judges")


def require_files(sources: Path) -> None:
    """What lies in the sources is installed, and nothing else."""
    distribution = metadata.distribution("orthoproxy")
    paths = [Path(str(path)) for path in distribution.files or []]
    installed = {path.relative_to("orthoproxy") for path in paths if path.parts[0] == "orthoproxy"}
    there = {path.relative_to(sources) for path in sources.rglob("*") if path.is_file()}
    installed, there = ({p for p in some if "__pycache__" not in p.parts} for some in (installed, there))
    assert installed == there, f"missing {there - installed}, too many {installed - there}"
    assert any(path.name == "LICENSE" for path in paths)
    assert str(Path(str(distribution.locate_file("orthoproxy"))).resolve()).startswith(sys.prefix)


def draw_stripes(root: Path) -> None:
    """Ten classes of five images; a class has its colour and width of stripes."""
    generator = np.random.default_rng(0)
    for number in range(10):
        (root / f"class {number}").mkdir(parents=True)
        colour = generator.integers(60, 256, size=3)
        for copy in range(5):
            stripes = (np.arange(40) // (1 + number % 5) + copy) % 2
            pixels = stripes[None, :, None] * colour + generator.integers(0, 40, size=(40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"class {number}" / f"{copy}.png")


def orthoproxy(*arguments: str, exit_code: int = 0) -> str:
    """What the installed command says."""
    command = Path(sys.executable).parent / "orthoproxy"
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([command, *arguments], capture_output=True, text=True, env=outside, check=False)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
