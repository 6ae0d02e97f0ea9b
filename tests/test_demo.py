"""The main job as `make demo` runs it, on real input."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[1] / "recipes" / "icons.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_gains_on_unseen_icons_within_its_time_and_memory(tmp_path):
    out = tmp_path / "icons"
    command = [sys.executable, "-m", "orthoproxy", "train", "--config", str(RECIPE), "--out", str(out)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("OMP_NUM_THREADS", None)
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start

    assert process.returncode == 0, printed
    gain = json.loads((out / "evaluation.json").read_text())["difference"]["recall@1"]
    assert gain["value"] >= 0.05 and gain["low"] > 0
    assert seconds < 600
    assert "left" in printed and "images/s" in printed  # progress and time left
    assert printed.rstrip().endswith(f"report: {out / 'report.html'}")
    assert usage.ru_maxrss / 2**20 < 4  # GiB
    print(f"{seconds:.0f} s, {usage.ru_maxrss / 2**20:.2f} GiB, gain {100 * gain['value']:.1f} points")
