"""The main job as `make demo` runs it, on real input."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orthoproxy import read_table
from orthoproxy.data.table import select_split
from orthoproxy.runs.config import DataConfig

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "icons.yaml"


def demo_commands() -> list[list[str]]:
    commands = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [shlex.split(words) for words in re.findall(r"bin/orthoproxy ([^\"\n]+)", commands)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_gains_on_unseen_icons_within_its_time_and_memory(tmp_path):
    out = tmp_path / "icons"
    command = [sys.executable, "-m", "orthoproxy", "train", "--config", str(RECIPE), "--out", str(out)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("OMP_NUM_THREADS", None)
    start = time.monotonic()
    ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - start
    gibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    gain = json.loads((out / "evaluation.json").read_text())["difference"]["recall@1"]
    assert gain["value"] >= 0.05 and gain["low"] > 0
    assert seconds < 600
    assert "left" in ended.stderr and "images/s" in ended.stderr  # progress and time left
    assert ended.stdout.rstrip().endswith(f"report: {out / 'report.html'}")
    assert gibibytes < 4
    print(f"{seconds:.0f} s, {gibibytes:.2f} GiB, gain {100 * gain['value']:.1f} points")

    index = [word.replace("runs/icons", str(out)) for word in demo_commands()[1]]
    command = [sys.executable, "-m", "orthoproxy", *index]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    info = subprocess.run([*command[:5], "--info"], env=environment, check=True, capture_output=True, text=True).stdout
    table = read_table(DataConfig(name="icons", root=str(tmp_path / "cache" / "orthoproxy" / "icons")))
    assert f"images: {len(select_split(table, 'test'))}\n" in info
