"""The main job as `make demo` runs it, on real input."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orthoproxy import read_table
from orthoproxy.cli.main import parse
from orthoproxy.data import select_split
from orthoproxy.runs.config import Data

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "icons.yaml"
# Runs a command and prints its peak memory in KiB. In a process of its own: what is started inherits the peak of what
# starts it, and this test's process may have trained large models before.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stderr=subprocess.STDOUT)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def demo_commands() -> list[list[str]]:
    """What `make demo` runs, and what it finally recommends."""
    commands = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [shlex.split(words) for words in re.findall(r"bin/orthoproxy ([^\"\n]+)", commands)]


def test_the_demo_trains_indexes_the_test_icons_and_ends_with_the_page() -> None:
    train, index, serve = (parse(command)[1] for command in demo_commands())
    assert train.config == ["recipes/icons.yaml"] and train.resume
    assert (index.catalog, index.images, index.split, index.model) == (
        f"{train.out}/catalog",
        "icons",
        "test",
        train.out,
    )
    assert serve.catalogs == [index.catalog]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_gains_on_unseen_icons_within_its_time_and_memory(tmp_path):
    out = tmp_path / "icons"
    command = [sys.executable, "-m", "orthoproxy", "train", "--config", str(RECIPE), "--out", str(out)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("OMP_NUM_THREADS", None)
    start = time.monotonic()
    job = subprocess.run([sys.executable, "-c", MEASURED, *command], env=environment, capture_output=True, text=True)
    printed, _, peak = job.stdout.rstrip().rpartition("\n")
    seconds, gibibytes = time.monotonic() - start, int(peak) / 2**20

    assert job.returncode == 0, printed + job.stderr
    gain = json.loads((out / "evaluation.json").read_text())["difference"]["recall@1"]
    assert gain["value"] >= 0.05 and gain["low"] > 0
    assert seconds < 600
    assert "left" in printed and "images/s" in printed  # progress and time left
    assert printed.rstrip().endswith(f"report: {out / 'report.html'}")
    assert gibibytes < 4
    print(f"{seconds:.0f} s, {gibibytes:.2f} GiB, gain {100 * gain['value']:.1f} points")

    index = [word.replace("runs/icons", str(out)) for word in demo_commands()[1]]
    command = [sys.executable, "-m", "orthoproxy", *index]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    info = subprocess.run([*command[:5], "--info"], env=environment, check=True, capture_output=True, text=True).stdout
    table = read_table(Data(name="icons", root=str(tmp_path / "cache" / "orthoproxy" / "icons")))
    assert f"images: {len(select_split(table, 'test'))}\n" in info
