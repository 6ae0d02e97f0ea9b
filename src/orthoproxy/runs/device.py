"""Where a run computes: device, precision, processes and experiment trackers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger

from orthoproxy.core.device import choose_device
from orthoproxy.core.distributed import init_process_group, process_count
from orthoproxy.core.errors import InputError, field_prefix
from orthoproxy.evaluation import Scoring
from orthoproxy.runs.config import EvaluationConfig, TrainingConfig

Precision = Literal["32-true", "bf16-mixed"]


def launch_fabric(training: TrainingConfig, folder: Path) -> Fabric:
    """Choose device, precision and experiment trackers; under torchrun, connect the processes."""
    with field_prefix("training"):
        device = choose_device(training.device)
        loggers = [_make_logger(name, folder) for name in training.loggers]
    devices, machines = _launched_processes(device)
    # Plain DDP rebuilds its gradient buckets after the first step, which changes the order of summation with three or
    # more processes: a resumed run, which rebuilds later, would differ in the last bit. This variant never rebuilds.
    distributed = "ddp_find_unused_parameters_true" if training.deterministic else "ddp"
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=machines,
        strategy=distributed if devices * machines > 1 else "auto",
        precision=choose_precision(training),
        loggers=loggers if os.environ.get("RANK", "0") == "0" else [],
    )
    init_process_group(fabric.device)
    fabric.launch()
    return fabric


def own_device(name: str) -> str:
    """Return the device of this process: under torchrun, each has a GPU of its own."""
    device = choose_device(name)
    several = _launched_processes(device)[0] > 1
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and several else device


def choose_precision(training: TrainingConfig) -> Precision:
    """Return the precision of training; ``auto`` is bf16-mixed where the hardware computes it natively."""
    return _native_precision(choose_device(training.device)) if training.precision == "auto" else training.precision


def _native_precision(device: str) -> Precision:
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = device == "cpu" and (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def evaluation_precision(device: torch.device | str, training: Precision | Literal["auto"]) -> Precision:
    """Return the precision of evaluation: that of training on a GPU; float32 on a CPU, for comparable scores."""
    if torch.device(device).type != "cuda":
        return "32-true"
    return _native_precision("cuda") if training == "auto" else training


def _launched_processes(device: str) -> tuple[int, int]:
    """Number of processes that torchrun started per machine, and of machines."""
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return 1, 1
    total, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if total % local:
        raise InputError(f"torchrun started {total} processes, {local} of them here", expected="as many per machine")
    devices = {"cuda": torch.cuda.device_count, "mps": lambda: 1}
    if device in devices and local > devices[device]():
        problem = f"torchrun started {local} processes for {devices[device]()} {device} devices"
        raise InputError(problem, hint="lower --nproc-per-node, or use the device cpu")
    return local, total // local


def _make_logger(name: str, folder: Path) -> Logger:
    try:
        if name == "tensorboard":
            from lightning_fabric.loggers.tensorboard import TensorBoardLogger

            return TensorBoardLogger(folder, name="tensorboard", version="")
        import pytorch_lightning.loggers as trackers  # pyright: ignore[reportMissingImports]

        if name == "wandb":
            return trackers.WandbLogger(name=folder.name, save_dir=folder)
        return trackers.MLFlowLogger(run_name=folder.name, save_dir=str(folder / "mlflow"))
    except ModuleNotFoundError as error:
        hint = "pip install 'orthoproxy[trackers]'"
        raise InputError(f"{name} is not installed", field="loggers", hint=hint) from error


def make_scoring(evaluation: EvaluationConfig, device: torch.device | str = "cpu") -> Scoring:
    """Return the evaluation protocol; queries are divided among the processes."""
    # section `evaluation` has the names of Scoring
    return Scoring(**dict(evaluation), device=str(device), shared=process_count() > 1)
