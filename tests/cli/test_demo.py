"""The main job as `make demo` runs it, on real input."""

import json
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


def demo_commands(out: Path) -> list[list[str]]:
    printed = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"bin/orthoproxy ([^\"\n]+)", printed.replace("runs/icons", str(out)))
    return [[sys.executable, "-m", "orthoproxy", *shlex.split(words)] for words in found]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_gains_on_unseen_icons_within_its_time_and_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    out = tmp_path / "icons"
    train, index, *_ = demo_commands(out)
    start = time.monotonic()
    ended = subprocess.run(train, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - start
    gibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    gain = json.loads((out / "evaluation.json").read_text())["difference"]["recall@1"]
    assert gain["value"] >= 0.05 and gain["low"] > 0
    assert seconds < 600 and gibibytes < 4
    assert "left" in ended.stderr and "images/s" in ended.stderr  # progress and time left
    assert ended.stdout.rstrip().endswith(f"report: {out / 'report.html'}")

    subprocess.run(index, check=True, capture_output=True)
    info = subprocess.run([*index[:5], "--info"], check=True, capture_output=True, text=True).stdout
    table = read_table(DataConfig(name="icons"))
    assert f"images: {len(select_split(table, 'test'))}\n" in info
