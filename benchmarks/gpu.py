"""What only a GPU can tell, as one Markdown table: tests, speed, memory, resuming, and the same scores as on the CPU.

    make gpu                                                        # eight minutes at most
    PYTHONPATH=src python benchmarks/gpu.py --quick --device cpu    # the script itself, in about a minute

It installs and downloads nothing: the Python that runs it has PyTorch, the package's dependencies, and pytest, beartype
and hypothesis for the tests. Each part is a process of its own with a time limit. A part that fails, by an error or by
a result out of its bounds, is a row of the table; the others still run, and the exit code is 1.

- training: `fit` in bfloat16 beside a bare loop with the same model, batches, loss and optimizer; then from JPEG files.
- resume: a run is stopped with all GPUs visible and resumed with one, and with none. With deterministic kernels, the
  resumed run must have the weights of one that was never stopped.
- evaluation: embeddings and scores on the GPU beside those on the CPU.
- million: a step of Proxy Anchor + Soft Orthogonality + AdamW. Beyond proxies, moments and the gradients
  of both terms (20 C D bytes) it may take 5 % and 128 MiB.

TF32 is not enabled: under bf16-mixed the only float32 products are those of the losses, whose similarities are
multiplied by 32 inside an exponential, and `32-true` should mean float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 480  # seconds, of all parts
GIB = 2**30
Row = tuple[str, str, bool]  # what, result, whether it is as it should be


def machine(options: argparse.Namespace) -> Iterator[Row]:
    import torch

    yield "PyTorch", f"{torch.__version__}, CUDA {torch.version.cuda}", True
    if options.device == "cuda":
        count, memory = torch.cuda.device_count(), torch.cuda.mem_get_info()[1] / GIB
        yield "GPU", f"{torch.cuda.get_device_name()}, {memory:.0f} GiB; {count} visible", True
    yield "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads", True


def million(options: argparse.Namespace) -> Iterator[Row]:
    import torch
    from torch.nn import functional as F

    from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality

    batch, classes = 180, 20_000 if options.quick else 1_000_000
    for dim in (128, 384):
        state = 20 * classes * dim  # bytes of proxies, two moments, and the gradients of loss and regularizer
        what = f"objective, C = {classes:,}, D = {dim}, B = {batch}"
        if options.device == "cuda" and torch.cuda.mem_get_info()[0] < 1.2 * state + GIB:
            yield what, f"left out: {torch.cuda.mem_get_info()[0] / GIB:.1f} GiB free", True
            continue
        torch.manual_seed(0)
        objective = Objective(ProxyAnchorLoss(classes, dim), classes, SoftOrthogonality(scaling="excess"), weight=0.3)
        objective = objective.to(options.device)
        optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, weight_decay=0, fused=True)
        x = F.normalize(torch.randn(batch, dim, device=options.device), dim=1).requires_grad_()
        labels = torch.randint(classes, (batch,), device=options.device)

        def step(objective=objective, optimizer=optimizer, x=x, labels=labels) -> None:
            objective(x, labels)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

        reset_peak(options.device)
        seconds = block_seconds(step, options.device, blocks=6)[1:]  # the first one allocates the moments
        result, bounded = f"{1000 * statistics.median(seconds):.1f} ms a step", True
        if options.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
            bounded = peak < 1.05 * state + 2**27
            result += f", peak {peak / GIB:.2f} GiB ({state / GIB:.2f} of it proxies, moments and gradients)"
        yield what, result, bounded
        del objective, optimizer, step


def training(options: argparse.Namespace) -> Iterator[Row]:
    import numpy as np
    import torch

    from orthoproxy.data import BatchSampler
    from orthoproxy.runs.device import launch_fabric
    from orthoproxy.runs.experiment import Experiment
    from orthoproxy.runs.run_folder import RunFolder
    from orthoproxy.training import fit
    from orthoproxy.training.checkpoint import TrainingState

    batch, steps, every, size = (4, 4, 2, 32) if options.quick else (128, 32, 8, 224)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_config(folder, options, per_class=batch, encoder=options.encoder, batch=batch, size=size)
        fabric = launch_fabric(config.training, folder)
        job = Experiment(config, RunFolder(folder / "run"), fabric)
        encoder, objective = copy.deepcopy(job.encoder), copy.deepcopy(job.objective)
        from_files, sampler = job.loader, job.sampler

        log = Records()
        job.options = replace(job.options, epochs=3, log_every_n_steps=every)
        job.sampler = BatchSampler(np.tile(job.labels, -(-steps * batch // len(job.labels))), batch)
        batches = PinnedBatches(batch, config.encoder.image_size, len(job.sampler), options.device)
        job.loader = batches
        before = reset_peak(options.device)
        state = fit(job, TrainingState(), log)
        speed, peak = log.speed(after_epoch=1), peak_gib(options.device, before)
        shape = f"{config.encoder.name}, B = {batch}, bf16"
        yield f"fit, {shape}", f"{speed:,.0f} images/s, peak {peak}", state.step == 3 * len(job.sampler)

        optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=1e-4, fused=True)
        encoder.train()
        turns = iter(list(batches) * 4)

        def step() -> None:
            images, labels = (x.to(options.device, non_blocking=True) for x in next(turns))
            with torch.autocast(options.device, torch.bfloat16):
                embeddings = encoder(images)
            objective(embeddings, labels)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

        before = reset_peak(options.device)
        seconds = block_seconds(step, options.device, blocks=3 * steps // every, size=every)[steps // every :]
        bare, peak = batch * every / statistics.median(seconds), peak_gib(options.device, before)
        yield f"bare loop, {shape}", f"{bare:,.0f} images/s, peak {peak}", True
        yield "fit beside the bare loop (goal 0.97)", f"{speed / bare:.3f}", options.quick or speed / bare > 0.9

        del encoder, objective, optimizer
        job.loader, job.sampler, log.records = from_files, sampler, []
        fit(job, TrainingState(), log)
        workers = config.data.workers
        yield f"fit from JPEG files, {workers} workers", f"{log.speed(after_epoch=1):,.0f} images/s", True


def resume(options: argparse.Namespace) -> Iterator[Row]:
    import shutil

    from orthoproxy.runs.recipes import write_config

    first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if options.device == "cuda" else ""
    with tempfile.TemporaryDirectory() as name:
        folder, recipe = Path(name), Path(name) / "recipe.yaml"
        config = make_config(folder, options, per_class=40, encoder="deit_tiny_patch16_224", batch=16, size=64)
        config = config.with_overrides({"training.deterministic": True, "training.epochs": 3})
        write_config(config.with_overrides({"training.device": "auto"}), recipe)

        def start(out: str, visible: str | None) -> subprocess.Popen[bytes]:
            environ = dict(os.environ) | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
            command = [sys.executable, __file__, "--train", str(recipe), str(folder / out)]
            return subprocess.Popen(command, env=environ, stdout=sys.stderr)

        everything = None if options.device == "cuda" else ""
        whole = start("whole", everything)
        stopped, metrics = start("stopped", everything), folder / "stopped" / "metrics.jsonl"
        while stopped.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
            time.sleep(0.01)
        stopped.send_signal(signal.SIGINT)
        code, step = stopped.wait(), metrics.read_text().count("\n")
        yield "run stopped by Ctrl-C", f"after step {step}, exit code {code}", code == 130
        shutil.copytree(folder / "stopped", folder / "without")
        code = start("stopped", first_gpu).wait() or whole.wait()
        models = [folder / out / "model" / "model.safetensors" for out in ("whole", "stopped")]
        same = code == 0 and models[0].read_bytes() == models[1].read_bytes()
        yield "resumed with one GPU, deterministic", "the same weights" if same else "other weights or failed", same
        code = start("without", "").wait()
        yield "resumed without a GPU", f"exit code {code}", code == 0


def evaluation(options: argparse.Namespace) -> Iterator[Row]:
    import numpy as np
    import torch

    from orthoproxy.embedding.embedder import Embedder
    from orthoproxy.evaluation import Retrieval, query_metrics
    from orthoproxy.models import Encoder

    count, points = (8, 300) if options.quick else (512, 20_000)
    torch.manual_seed(0)
    images = torch.randint(256, (count, 3, 224, 224), dtype=torch.uint8)
    encoder = Encoder(options.encoder, embedding_dim=128)
    on_cpu = Embedder(copy.deepcopy(encoder)).embed(images)
    model = Embedder(encoder, device=options.device)
    for precision, bound in (("32-true", 0.9999), ("bf16-mixed", 0.99)):
        model.embed(images[:1], precision=precision)
        start = time.perf_counter()
        rows = model.embed(images, precision=precision)
        speed = count / (time.perf_counter() - start)
        cosine = float((rows * on_cpu).sum(axis=1).min())
        what = f"embeddings, {options.encoder}, {precision}"
        yield what, f"cosine with the CPU's {cosine:.6f} or more, {speed:,.0f} images/s", cosine > bound

    generator = np.random.default_rng(0)
    labels = np.arange(points) // 5
    embeddings = generator.normal(size=(points // 5 + 1, 128))[labels] + 2 * generator.normal(size=(points, 128))
    everyone = np.arange(points)
    retrieval = Retrieval(embeddings.astype(np.float32), labels, everyone, everyone)
    scores, seconds = [], []
    for device in ("cpu", options.device):
        start = time.perf_counter()
        found = query_metrics(retrieval, device=device)
        seconds.append(time.perf_counter() - start)
        scores.append({name: float(np.nanmean(np.asarray(values, dtype=float))) for name, values in found.items()})
    difference = max(abs(scores[0][name] - scores[1][name]) for name in scores[0])
    what = f"scores of {points:,} images, D = 128"
    yield what, f"differ by {difference:.1e}; {seconds[1]:.2f} s, CPU {seconds[0]:.2f} s", difference < 1e-6


def tests(options: argparse.Namespace) -> Iterator[Row]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--import-mode=importlib"]
    # other versions warn of other things, and a plugin may be missing
    command += ["-o", "addopts=", "-o", "filterwarnings=", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout[-6000:], file=sys.stderr)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    yield "tests marked gpu", last, done.returncode == 0 and ("passed" in last or options.device == "cpu")


class Records:
    """A log for `fit` that stays in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def speed(self, after_epoch: int) -> float:
        return statistics.median(x["images_per_second"] for x in self.records if x["epoch"] > after_epoch)


class PinnedBatches:
    """A loader of batches that lie in memory already."""

    def __init__(self, batch: int, size: int, count: int, device: str) -> None:
        import torch

        self.count, self.dataset, labels = count, None, torch.arange(batch) % 8
        images = [torch.randint(256, (batch, 3, size, size), dtype=torch.uint8) for _ in range(4)]
        self.batches = [(x.pin_memory(), labels.pin_memory()) if device == "cuda" else (x, labels) for x in images]

    def __iter__(self) -> Iterator[Any]:
        return (self.batches[number % len(self.batches)] for number in range(self.count))


def make_config(
    folder: Path, options: argparse.Namespace, per_class: int, encoder: str, batch: int, size: int = 224
) -> Any:
    """Write JPEGs of eight classes and two of test; return a configuration that trains on them from random weights."""
    import numpy as np
    from PIL import Image

    from orthoproxy import Config

    generator = np.random.default_rng(0)
    for label in range(10):
        (folder / "images" / f"{label}").mkdir(parents=True)
        for number in range(per_class if label < 8 else 2):
            pixels = Image.fromarray(generator.integers(256, size=(12, 16, 3), dtype=np.uint8)).resize((400, 300))
            pixels.save(folder / "images" / f"{label}" / f"{number}.jpg", quality=90)
    return Config().with_overrides(
        {
            "data": {"name": "folder", "root": str(folder / "images"), "test_classes": ["8", "9"]},
            "data.workers": min(8, os.cpu_count() or 1) if options.device == "cuda" else 1,
            "sampler.batch_size": batch,
            "encoder": {"name": encoder, "init_from": "none", "image_size": size},
            "loss.proxy_regularizer.weight": 0.3,
            "training": {"device": options.device, "precision": "bf16-mixed", "epochs": 2, "log_every_n_steps": 1},
            "checkpoint_selection.split": "none",
        }
    )


def block_seconds(step: Callable[[], None], device: str, blocks: int, size: int = 1) -> list[float]:
    """Seconds of blocks of steps, with the device synchronized at the end of each."""
    import torch

    seconds = []
    for _ in range(blocks):
        start = time.perf_counter()
        for _ in range(size):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def reset_peak(device: str) -> int:
    """Forget the peak memory so far; return the bytes in use."""
    import torch

    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_gib(device: str, before: int) -> str:
    import torch

    return f"{(torch.cuda.max_memory_allocated() - before) / GIB:.2f} GiB" if device == "cuda" else "not measured"


PARTS = {machine: 60, million: 60, training: 150, evaluation: 90, resume: 150, tests: 180}  # seconds at most


def run_part(name: str, arguments: list[str], seconds: float) -> list[Row]:
    """Run a part in a process of its own; an error or too much time is a row too."""
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, *arguments, "--part", name]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, cwd=ROOT
        )
        reason = ""
        try:
            output, _ = process.communicate(timeout=max(1, seconds))
        except subprocess.TimeoutExpired:
            reason = f"not finished within {seconds:.0f} seconds"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # those that it started, too
        output = process.communicate()[0] if reason else output
        errors.seek(0)
        text = errors.read()
    rows: list[Row] = [tuple(json.loads(line[4:])) for line in output.splitlines() if line.startswith("row ")]
    if process.returncode:
        print(f"--- {name}\n{text[-6000:]}", file=sys.stderr)
        reason = reason or (text.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return [*rows, ("", reason, False)] if reason else rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.encoder = "deit_tiny_patch16_224" if options.quick else "deit_small_patch16_224"
    if options.train:
        return train_without_evaluation(*options.train)
    if options.part:
        for row in next(part for part in PARTS if part.__name__ == options.part)(options):
            print("row", json.dumps(row), flush=True)
        return 0
    slower = 1 if options.device == "cuda" else 10
    start, failed, lines = time.monotonic(), False, ["| part | what | result | |", "|:--|:--|:--|:--|"]
    for part, limit in PARTS.items():
        began, name = time.monotonic(), part.__name__
        for what, result, good in run_part(name, sys.argv[1:], slower * min(limit, LIMIT - (began - start) / slower)):
            failed |= not good
            lines.append(f"| {name} | {what} | {result.replace('|', ' ')} | {'' if good else 'FAILED'} |")
        print(f"{name}: {time.monotonic() - began:.0f} seconds", file=sys.stderr, flush=True)
    print("\n".join(lines))
    return int(failed)


def train_without_evaluation(recipe: str, out: str) -> int:
    from orthoproxy.runs.recipes import read_config
    from orthoproxy.runs.train import train
    from orthoproxy.training.signals import Interrupted

    try:
        train(read_config(recipe), out, resume=True, evaluate=False)
    except Interrupted as stop:
        return stop.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
