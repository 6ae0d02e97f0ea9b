"""Where a run computes: device, precision, processes; and to which trackers it logs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger

from orthoproxy.core.errors import InputError
from orthoproxy.runs.config import Training


def choose_accelerator(wanted: str, field: str = "training.accelerator") -> str:
    """Say where to compute.

    Parameters
    ----------
    wanted
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    field
        Where it can be changed, for the error.

    Returns
    -------
    str
        The accelerator wanted; for ``auto``, a GPU where there is one.

    Raises
    ------
    InputError
        If it is not there.

    Examples
    --------
    >>> choose_accelerator("cpu")
    'cpu'
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, there in available.items() if there)
    if not available[wanted]:
        raise InputError(f"{field}: there is no {wanted} device here; use auto or cpu")
    return wanted


def make_fabric(training: Training, folder: Path) -> Fabric:
    """Choose device, precision and trackers; under torchrun, also what the processes talk through.

    With several processes, let them `init_process_group`, and `launch` what is returned, before anything is exchanged.

    Parameters
    ----------
    training
        Its accelerator, precision and loggers.
    folder
        Of the run, where file loggers write.

    Raises
    ------
    InputError
        If the accelerator is not there, or not once for each process, or a tracker is not installed.

    Examples
    --------
    >>> make_fabric(Training(accelerator="cpu", precision="32-true"), Path()).device
    device(type='cpu')
    """
    accelerator = choose_accelerator(training.accelerator)
    loggers = [_make_logger(name, folder) for name in training.loggers]
    here, machines = _launched(accelerator)
    # Plain DDP packs the gradients anew after its first step. Three processes or more then add them in another order: a
    # run that is resumed, and packs anew later, comes to other bits. When it looks for unused parameters it does not.
    several = "ddp_find_unused_parameters_true" if training.deterministic else "ddp"
    return Fabric(
        accelerator=accelerator,
        devices=here,
        num_nodes=machines,
        strategy=several if here * machines > 1 else "auto",
        precision=choose_precision(training),
        loggers=loggers if os.environ.get("RANK", "0") == "0" else [],
    )


def choose_precision(training: Training) -> Literal["32-true", "bf16-mixed"]:
    """Say in which precision a training computes, which ``auto`` leaves to the hardware.

    Parameters
    ----------
    training
        Its accelerator and precision.

    Raises
    ------
    InputError
        As from `choose_accelerator`.

    Examples
    --------
    >>> choose_precision(Training(precision="32-true"))
    '32-true'
    """
    if training.precision != "auto":
        return training.precision
    return "bf16-mixed" if _computes_bfloat16(choose_accelerator(training.accelerator)) else "32-true"


def _launched(accelerator: str) -> tuple[int, int]:
    """How many processes torchrun started on this machine, and on how many machines."""
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return 1, 1
    everywhere, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if everywhere % here:
        raise InputError(f"torchrun: {everywhere} processes, {here} here; start as many on each machine")
    there = {"cuda": torch.cuda.device_count, "mps": lambda: 1}
    if accelerator in there and here > there[accelerator]():
        raise InputError(
            f"torchrun: {here} processes here, but {there[accelerator]()} {accelerator} devices; "
            "lower --nproc-per-node, or set training.accelerator to cpu"
        )
    return here, everywhere // here


def _computes_bfloat16(accelerator: str) -> bool:
    """Whether the hardware multiplies bfloat16 natively; elsewhere it would be slower than float32."""
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return accelerator == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _make_logger(name: str, folder: Path) -> Logger:
    try:
        if name == "tensorboard":
            from lightning_fabric.loggers.tensorboard import TensorBoardLogger

            return TensorBoardLogger(folder, name="tensorboard", version="")
        import pytorch_lightning.loggers as trackers

        if name == "wandb":
            return trackers.WandbLogger(name=folder.name, save_dir=folder)
        return trackers.MLFlowLogger(run_name=folder.name, save_dir=str(folder / "mlflow"))
    except ModuleNotFoundError as error:
        raise InputError(
            f"training.loggers: {name} is not installed; run: pip install 'orthoproxy[trackers]'"
        ) from error
