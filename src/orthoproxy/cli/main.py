"""The command `orthoproxy`: dispatch, exit codes, signals and error messages."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from orthoproxy.cli.options import Parser, json_output
from orthoproxy.core.errors import DivergedError, InputError, WorkerLost, did_you_mean, escape

# Each is a module in this package with `add_options(parser)` and `run(options) -> int | None`, which passes results to
# `options.write_json` if there is --json. Libraries are imported in `run`, so that --help answers at once.
COMMANDS = {
    "train": "Train an encoder, evaluate it on test images and write a report.",
    "evaluate": "Evaluate a run or a model on labeled images.",
    "report": "Evaluate a run again and rewrite its report.",
    "compare": "Compare two runs: configuration, environment, weights and scores.",
    "diagnose": "Find out what limits a model and what to try.",
    "merge": "Merge runs into one model.",
    "study": "Train and compare methods over several seeds.",
    "data": "Describe, verify or download images.",
    "export": "Export a run's model to ONNX and check it against the original.",
    "embed": "Embed images into Parquet files.",
    "index": "Create or update a catalog of images.",
    "search": "Find similar images in a catalog.",
    "serve": "Serve catalogs over HTTP, with a search page.",
}
RENAMED = {"reproduce": "train again with the run's config.yaml, and use compare"}
MULTI_PROCESS = ("train", "embed")  # commands that torchrun may start


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0 (done), 1 (failed or different), 2 (invalid input), 130 (Ctrl-C) or 143 (SIGTERM)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that the terminal's encoding lacks
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        return 1
    return code


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"orthoproxy {version('orthoproxy')}")
        return 0
    written: dict[str, str] = {}
    try:
        _require_utf8(arguments)
        parser, options = parse(arguments)
        written = parser.option_names()
        return _run(arguments[0], options)
    except InputError as error:
        _print_error(replace(error, field=written.get(error.field or "", error.field)))
        return 2
    except (DivergedError, WorkerLost) as error:
        _print_error(error)
        return 1
    except RuntimeError as error:
        if not _started_by_torchrun():
            raise
        from orthoproxy.core.distributed import RemoteProcessError

        if isinstance(error, RemoteProcessError):  # the process that failed prints the error
            return 2 if isinstance(error.error, InputError) else 1
        traceback.print_exc()
        _print_error(f"rank {os.environ.get('RANK')}: see the output of the other processes, too, for the cause")
        return 1
    except KeyboardInterrupt as interrupt:
        _print_error("interrupted")
        return 143 if isinstance(interrupt, _Terminated) else 130


def _require_utf8(arguments: list[str]) -> None:
    """Raise InputError for a name of other bytes: catalogs, Parquet files and configurations cannot hold it."""
    with suppress(FileNotFoundError):  # a working directory that was deleted
        for name in (*arguments, str(Path.cwd())):
            if name != escape(name):
                raise InputError("the name is not UTF-8", path=escape(name), hint="rename it, for example with convmv")


def usage() -> str:
    """Return the help that lists the commands."""
    lines = (f"  {name:<10}{description}\n" for name, description in COMMANDS.items())
    usage = "usage: orthoproxy COMMAND ...\n       orthoproxy --version\n\n"
    return f"{usage}{''.join(lines)}\northoproxy COMMAND --help lists its options.\n"


def parse(arguments: list[str]) -> tuple[Parser, Any]:
    """Parse a command line; `InputError.field` is the option at fault."""
    command, *rest = arguments
    if command not in COMMANDS:
        hint = RENAMED.get(command) or did_you_mean(command, COMMANDS)
        raise InputError(f"unknown command {command!r}", expected=f"one of {', '.join(COMMANDS)}", hint=hint)
    parser = Parser(command, COMMANDS[command])
    importlib.import_module(f"orthoproxy.cli.{command}").add_options(parser)
    return parser, parser.parse(rest)


def _run(command: str, options: Any) -> int:
    if command not in MULTI_PROCESS and _started_by_torchrun():
        raise InputError(f"{command} runs in one process", hint="start it without torchrun")
    from PIL import Image

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its tips are for its own users
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # data.images rejects such images
    with _sigterm_raises(), json_output(options) if "json" in options else nullcontext():
        return importlib.import_module(f"orthoproxy.cli.{command}").run(options) or 0


def _started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def _print_error(error: object) -> None:
    print(f"orthoproxy: {error}", file=sys.stderr)


def _stdout_is_closed() -> bool:
    """Whether the reader of standard output has gone, as after `| head`; if so, discard what is buffered."""
    try:
        print(flush=True)  # flushing alone does nothing if the buffer is empty
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C so that temporary files are removed."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise, except in a multi-process job, which may be blocked."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or _started_by_torchrun():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
