"""HTTP search in a catalog of 100,000 images: latency and throughput of 1 and 32 clients.

python benchmarks/serve.py --seconds 60
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from measure import arguments, memory, report

from catalog import D, K, collection
from orthoproxy.catalog.catalog import Catalog
from orthoproxy.catalog.index import fit_index
from orthoproxy.embedding.parquet_store import READ_SIZE

WARM = 20  # requests that do not count


def bodies(embeddings: np.ndarray, count: int, seed: int) -> list[bytes]:
    chosen = np.random.default_rng(seed).choice(len(embeddings), count, replace=False)
    return [json.dumps({"embedding": embeddings[i].tolist(), "k": K}).encode() for i in chosen]


def ask(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", "/search", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def client(port: int, bodies: list[bytes], until: float, seconds: list[float], statuses: Counter[int]) -> None:
    """Ask until the time is over; an error counts as status 0."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    turn = 0
    while time.monotonic() < until:
        start = time.perf_counter()
        try:
            status, _ = ask(connection, bodies[turn % len(bodies)])
        except (OSError, http.client.HTTPException):
            status = 0
            connection.close()
        seconds.append(time.perf_counter() - start)
        statuses[status] += 1
        turn += 1


def crowd(port: int, clients: int, seconds: float) -> None:
    """Be some clients, in threads of this process; print what they waited."""
    _, embeddings = collection(2000)
    until = time.monotonic() + seconds
    waits: list[list[float]] = [[] for _ in range(clients)]
    statuses: Counter[int] = Counter()
    threads = [
        threading.Thread(target=client, args=(port, bodies(embeddings, 20, number), until, waits[number], statuses))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"waits": waits, "statuses": statuses}))


def main() -> None:
    options = arguments(__doc__ or "", images=100_000, queries=200, clients=32, seconds=60)
    if options.case:
        port, clients, seconds = options.case
        crowd(int(port), int(clients), float(seconds))
        return
    rows, embeddings = collection(options.images)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "catalog"
        with Catalog.create(str(folder), D, "0" * 16, "none", temporary) as catalog:
            for first in range(0, len(rows), READ_SIZE):
                part = slice(first, first + READ_SIZE)
                catalog.upsert(rows.iloc[part], embeddings[part])
            fit_index(catalog)
        command = [sys.executable, "-m", "orthoproxy", "serve", str(folder), "--port", "0"]
        environment = {name: value for name, value in os.environ.items() if name != "ORTHOPROXY_TOKEN"}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            measure(server, rows["id"].to_numpy(), embeddings, options)
        finally:
            server.terminate()
            server.wait(30)


def measure(
    server: subprocess.Popen[str], ids: np.ndarray, embeddings: np.ndarray, options: argparse.Namespace
) -> None:
    assert server.stdout is not None
    port = int(server.stdout.readline().split("/")[2].rsplit(":")[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    questions = bodies(embeddings, options.queries, seed=1)
    for body in questions[:WARM]:
        assert ask(connection, body)[0] == 200
    alone, recall = [], []
    for body in questions:
        start = time.perf_counter()
        status, answer = ask(connection, body)
        alone.append(time.perf_counter() - start)
        assert status == 200, answer
        query = np.array(json.loads(body)["embedding"], dtype=np.float32)
        near = set(ids[np.argsort(-(embeddings @ query))[:K]])
        recall.append(len(near & {result["id"] for result in json.loads(answer)["results"]}) / K)
    before = memory(server.pid)
    command = [sys.executable, __file__, "--case", str(port), str(options.clients), str(options.seconds)]
    crowding = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    held = []
    while crowding.poll() is None and crowding.stdout is not None:
        held.append(memory(server.pid))
        try:
            printed, _ = crowding.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            continue
    result = json.loads(printed)
    medians = sorted(statistics.median(waits) for waits in result["waits"])
    everyone = [wait for waits in result["waits"] for wait in waits]
    errors = sum(count for status, count in result["statuses"].items() if status != "200")
    early, late = held[min(2, len(held) - 1)], held[-1]
    table = [
        {"what": "one client, median ms", "value": 1000 * statistics.median(alone)},
        {"what": "one client, 95th percentile ms", "value": 1000 * float(np.quantile(alone, 0.95))},
        {"what": f"recall@{K}", "value": statistics.mean(recall)},
        {"what": f"{len(medians)} clients, median ms", "value": 1000 * statistics.median(everyone)},
        {"what": "longest response, ms", "value": 1000 * max(everyone)},
        {"what": "slowest client / median client", "value": medians[-1] / statistics.median(medians)},
        {"what": "responses per second", "value": len(everyone) / options.seconds},
        {"what": "errors (including 429 and 503)", "value": errors},
        {"what": "MiB before the load", "value": before},
        {"what": "MiB after 10 seconds", "value": early},
        {"what": "MiB at the end", "value": late},
    ]
    report(
        "serve" if len(ids) == 100_000 else f"serve-{len(ids)}",
        f"HTTP search in {len(ids):,} images, D = {D}, for {options.seconds} seconds",
        ["what", "value"],
        table,
        "k = 10, embeddings known, default limits. MiB: of the server and its decoding processes.",
    )


if __name__ == "__main__":
    main()
