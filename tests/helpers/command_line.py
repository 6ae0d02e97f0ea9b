"""The results of a command, and what Ctrl-C does to it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orthoproxy.cli.main import main


def json_of(arguments: Sequence[object], code: int = 0) -> Any:
    """Run a command that must end with an exit code; return the results that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "new" / "results.json"
        assert main([*map(str, arguments), "--json", str(out)]) == code
        return json.loads(out.read_text(encoding="utf-8"))


INTERRUPTED = """
import os, runpy, signal, sys
module, *sys.argv = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupt = lambda event, args: os.killpg(0, signal.SIGINT) if event == "import" and args[0] == module else None
sys.addaudithook(interrupt)
runpy.run_module("orthoproxy", run_name="__main__")"""


LOADED = """
import contextlib, sys
from orthoproxy.cli.main import main
with contextlib.suppress(SystemExit):
    assert main(sys.argv[1:]) == 0
print(*sys.modules)"""


def loaded_by(arguments: Sequence[object]) -> tuple[str, set[str]]:
    """Run a command in a process of its own; return what it printed, and the modules that it had loaded."""
    command = [sys.executable, "-c", LOADED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *printed, modules = done.stdout.splitlines()
    return "\n".join(printed), {*modules.split()}


def interrupted_at(module: str, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Press Ctrl-C when a command imports a module; return its exit code and what it printed."""
    command = [sys.executable, "-c", INTERRUPTED, module, "orthoproxy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
    return done.returncode, done.stdout, done.stderr
