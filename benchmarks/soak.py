"""Half an hour of training beside a server with 16 clients: does anything grow, is anything lost?

    python benchmarks/soak.py --minutes 30

The icons recipe trains on and on, with validation and a checkpoint after each epoch. Beside it `orthoproxy serve`
answers clients that send pictures of its catalog, each with a pause after an answer, and look whether the picture
itself is found first. Every few seconds memory, open files and threads are counted, and a checkpoint that is new is
read whole. In the end the training is told to stop, as a cluster does, and what it saved is compared with what it
logged.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import scipy.stats
import torch
from measure import RESULTS, arguments, children, memory, report
from orthoproxy.runs.build import split_table
from serve import ask

from orthoproxy.data import select_split
from orthoproxy.runs.config import Config

EVERY = 5  # seconds between two looks
WARM = 0.5  # share of the run that does not count
RECIPE = Path(__file__).parents[1] / "recipes" / "icons.yaml"
SAME = 0.999  # cosine of a picture and itself, after another decoding


def orthoproxy(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orthoproxy", *arguments]


def client(port: int, pictures: list[str], until: float, pause: float, outcomes: Counter[str]) -> None:
    """Send pictures until the time is over."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while time.monotonic() < until:
        picture = Path(random.choice(pictures)).read_bytes()
        body = json.dumps({"image": base64.b64encode(picture).decode()}).encode()
        try:
            status, answer = ask(connection, body)
            if status == 200:
                results = json.loads(answer)["results"]
                outcomes["found" if results and results[0]["similarity"] > SAME else "found another"] += 1
            else:
                outcomes[f"status {status}"] += 1
        except (OSError, http.client.HTTPException) as error:
            outcomes[type(error).__name__] += 1
            connection.close()
        time.sleep(pause)


def crowd(port: int, clients: int, seconds: float, pause: float) -> None:
    """Be some clients, in threads of this process; print what came of their requests."""
    pictures = test_images()
    until = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    threads = [threading.Thread(target=client, args=(port, pictures, until, pause, outcomes)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(outcomes))


def test_images() -> list[str]:
    return select_split(split_table(Config()), "test")["path"].tolist()


def with_children(pid: int, count: Callable[[int], int]) -> int:
    """Add up a number over a process and those that it started."""
    try:
        own = count(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    return own + sum(with_children(child, count) for child in children(pid))


def entries(pid: int, folder: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{folder}").iterdir())


COUNTED: dict[str, Callable[[int], float]] = {
    "MiB": memory,
    "open files": lambda pid: with_children(pid, lambda pid: entries(pid, "fd")),
    "threads": lambda pid: with_children(pid, lambda pid: entries(pid, "task")),
}


class Checkpoints:
    """The checkpoints of a run, each read whole when it is new."""

    def __init__(self, run: Path) -> None:
        self.path = run / "checkpoints" / "last.ckpt"
        self.seen: dict[int, int] = {}  # from when it was written to its step

    def look(self) -> None:
        if not self.path.is_file():
            return
        written = self.path.stat().st_mtime_ns
        if written not in self.seen:
            with self.path.open("rb") as file, zipfile.ZipFile(file) as parts:
                assert parts.testzip() is None, "a checkpoint is damaged"
                file.seek(0)
                state = torch.load(file, map_location="cpu", weights_only=True)
            self.seen[written] = state["position"]["step"]
            assert list(self.seen.values()) == sorted(self.seen.values()), "a checkpoint went back"


def steps_validated(run: Path) -> list[int]:
    """The steps after which an epoch was validated, and a checkpoint written."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["step"] for line in map(json.loads, lines) if any(key.startswith("validation/") for key in line)]


def watch(processes: dict[str, int], checkpoints: Checkpoints, goes_on: Callable[[], bool]) -> pd.DataFrame:
    """Count every few seconds, until it is over."""
    start, looks = time.monotonic(), []
    while goes_on():
        look = {"second": time.monotonic() - start}
        for name, pid in processes.items():
            look |= {f"{name}: {what}": count(pid) for what, count in COUNTED.items()}
        looks.append(look)
        checkpoints.look()
        time.sleep(max(0, start + EVERY * len(looks) - time.monotonic()))
    return pd.DataFrame(looks)


def growth(looks: pd.DataFrame, name: str) -> dict[str, Any]:
    """What a line fitted over the second half rises by in the whole run, in % of its middle; and the most of each half.

    The line is Theil and Sen's, whose slope is the median over all pairs: validation, for which workers start and end,
    moves it little.
    """
    whole = looks["second"].iloc[-1]
    late = looks["second"] >= WARM * whole
    first, second = looks.loc[~late, name], looks.loc[late, name]
    slope = scipy.stats.theilslopes(second, looks.loc[late, "second"]).slope
    return {
        "what": name,
        "number": float(second.median()),
        "most, first half": float(first.max()),
        "most, second half": float(second.max()),
        "rise, %": float(100 * slope * whole / second.median()),
        "goal": "< 1",
    }


def main() -> None:
    options = arguments(__doc__ or "", minutes=30.0, clients=16, pause=0.5)
    if options.case:
        port, clients, seconds, pause = options.case
        crowd(int(port), int(clients), float(seconds), float(pause))
        return
    environment = {name: value for name, value in os.environ.items() if name != "ORTHOPROXY_TOKEN"}
    with tempfile.TemporaryDirectory() as temporary:
        first, run, catalog = (str(Path(temporary) / name) for name in ("first", "run", "catalog"))
        train = orthoproxy("train", "--config", str(RECIPE), "--data.validation_fraction", "0.2")
        subprocess.run([*train, "--out", first, "--training.epochs", "1"], check=True)
        index = orthoproxy("index", catalog, "--data.name", "icons", "--split", "test", "--model", first)
        subprocess.run(index, check=True)
        serve = orthoproxy("serve", catalog, "--port", "0")
        server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=environment)
        assert server.stdout is not None
        port = server.stdout.readline().split("/")[2].rsplit(":")[1]
        training = subprocess.Popen([*train, "--out", run, "--training.epochs", "100000"], stdout=subprocess.DEVNULL)
        seconds = str(60 * options.minutes)
        case = [sys.executable, __file__, "--case", port, str(options.clients), seconds, str(options.pause)]
        crowding = subprocess.Popen(case, stdout=subprocess.PIPE, text=True)
        checkpoints = Checkpoints(Path(run))
        try:
            looks = watch(
                {"training": training.pid, "server": server.pid}, checkpoints, lambda: crowding.poll() is None
            )
            assert (training.poll(), server.poll()) == (None, None), "a process did not last"
            outcomes = json.loads(crowding.communicate()[0])
            training.send_signal(signal.SIGTERM)
            code = training.wait(120)
            checkpoints.look()
            validated = steps_validated(Path(run))
        finally:
            for process in (crowding, training, server):
                process.terminate()
                process.wait(60)
    tell(options, looks, outcomes, checkpoints, validated, code)


def tell(
    options: Any,
    looks: pd.DataFrame,
    outcomes: dict[str, int],
    checkpoints: Checkpoints,
    validated: list[int],
    code: int,
) -> None:
    looks.to_csv(RESULTS / "soak.csv", index=False, float_format="%.1f")
    steps = list(checkpoints.seen.values())
    requests = sum(outcomes.values())
    lost = requests - outcomes.get("found", 0)
    rows = [growth(looks, name) for name in looks if name != "second"]
    rows += [
        {"what": "requests", "number": requests},
        {"what": "requests without the right answer", "number": lost, "goal": "0"},
        {"what": "epochs validated", "number": len(validated)},
        {
            "what": "their checkpoints not seen whole",
            "number": len(set(validated) - set(steps)),
            "goal": "0",
        },
        {"what": "steps trained, all in the last checkpoint", "number": steps[-1]},
        {"what": "exit code of the training after SIGTERM", "number": code, "goal": "143"},
    ]
    others = {outcome: count for outcome, count in outcomes.items() if outcome != "found"}
    report(
        "soak",
        f"{options.minutes:g} minutes of training and serving {options.clients} clients",
        ["what", "number", "most, first half", "most, second half", "rise, %", "goal"],
        rows,
        "Of MiB, files and threads the number is the median of the second half; the line is fitted to that half, and\n"
        "its rise is over the whole run. They are those of a process and all that it started. Each look is in\n"
        "benchmarks/results/soak.csv." + (f" Of the requests: {others}." if others else ""),
    )


if __name__ == "__main__":
    main()
