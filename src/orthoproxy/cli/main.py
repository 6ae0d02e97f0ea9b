"""The command line: one verb, one function. Options are the fields of `config.Config`."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from jsonargparse import ArgumentParser
from PIL import Image

from orthoproxy.cli.data import run_data
from orthoproxy.cli.evaluate import print_scores, run_evaluate
from orthoproxy.core.distributed import RemoteProcessError, is_connection_loss, is_main
from orthoproxy.core.errors import InputError, WorkerLost, os_errors_as_input_errors
from orthoproxy.core.files import exclusive
from orthoproxy.runs.evaluate import judge
from orthoproxy.runs.fabric import choose_accelerator
from orthoproxy.runs.recipes import config_of, options_parser, parse
from orthoproxy.runs.run_folder import Run
from orthoproxy.runs.train import train
from orthoproxy.training import Interrupted

USAGE = """\
usage: orthoproxy VERB ...

  train     --config RECIPE --out RUN [--resume] [--FIELD VALUE ...]   train, judge on unseen classes, write a report
  evaluate  MODEL [--data.name ... ] [--json FILE]                     judge a run or model on any images
  report    RUN                                                        judge a run again and rewrite its report
  reproduce RUN [--out RUN]                                            repeat a run, and compare weights and scores
  diagnose  RUN ... [--out FOLDER] [--on validation] [--json FILE]     what limits a model, and what to try
  study     STUDY [--plan] [--part 2/8] [--processes N] [--page]       train and compare methods over seeds
  data      describe|verify|download --data.name NAME [--data.root DIR] [--no-open] [--json FILE]
                                                                       count a source's images, check a copy, get one
  export    RUN --out model.onnx [--int8]                              the model as ONNX, checked against the original
  embed     MODEL IMAGES --out FOLDER                                  a collection's embeddings as Parquet
  index     CATALOG IMAGES|EMBEDDINGS --model MODEL                    a catalog to search in
  search    CATALOG IMAGE ... [-k 10] [--where CONDITION] [--json]     what looks like these
  serve     CATALOG ... [--host 127.0.0.1] [--port 7860]               the same by HTTP, and a page to search on

orthoproxy VERB --help lists the options of a verb.
"""


def run_train(arguments: list[str]) -> None:
    """Train a run, or go on with one, and print its scores."""
    parser = options_parser("train", "Train an encoder, judge it on unseen classes, and write a run folder.")
    parser.add_argument("--out", required=True, help="The run folder.")
    parser.add_argument("--resume", action="store_true", help="Go on from the last checkpoint, if there is one.")
    options = parse(parser, arguments)
    with os_errors_as_input_errors(options.out, "go on with --resume"):
        run = train(config_of(options), options.out, options.resume)
    if is_main():
        _show(run)


def run_report(arguments: list[str]) -> None:
    """Write a run's scores and report anew."""
    parser = ArgumentParser(
        prog="orthoproxy report", description="Judge a run again and rewrite its report.", exit_on_error=False
    )
    parser.add_argument("run", help="A run folder.")
    run = Run(parse(parser, arguments).run)
    field = f"{run.folder / 'config.yaml'}: training.accelerator"
    device = choose_accelerator(run.config.training.accelerator, field)
    with os_errors_as_input_errors(run.folder, "run it again"), exclusive(run.folder):
        judge(run, device)
    _show(run)


def _of_search(verb: str) -> Callable[[list[str]], None]:
    """A verb whose libraries are imported when it is used."""

    def run(arguments: list[str]) -> None:
        verbs = importlib.import_module("orthoproxy.cli.search")
        getattr(verbs, f"run_{verb}")(arguments)

    return run


def run_diagnose(arguments: list[str]) -> None:
    """Say what limits a model; its libraries are imported when it is used."""
    importlib.import_module("orthoproxy.cli.diagnose").run_diagnose(arguments)


def run_reproduce(arguments: list[str]) -> int:
    """Repeat a run and compare; its module is imported when it is used."""
    return importlib.import_module("orthoproxy.cli.reproduce").run_reproduce(arguments)


def run_study(arguments: list[str]) -> None:
    """Compare methods; its libraries are imported when it is used."""
    importlib.import_module("orthoproxy.cli.study").run_study(arguments)


VERBS: dict[str, Callable[[list[str]], int | None]] = {
    "train": run_train,
    "evaluate": run_evaluate,
    "report": run_report,
    "reproduce": run_reproduce,
    "diagnose": run_diagnose,
    "study": run_study,
    "data": run_data,
    **{verb: _of_search(verb) for verb in ("export", "embed", "index", "search", "serve")},
}


def main(arguments: list[str] | None = None) -> int:
    """Run a verb.

    Parameters
    ----------
    arguments
        As on the command line; None for the process's own.

    Returns
    -------
    int
        0: done; 1: `reproduce` found a difference, another process that was needed was killed, or nobody reads the
        output any more, as after `| head`; 2: bad input, with the reason in a line or two; 130: stopped by Ctrl-C;
        143: by SIGTERM. A fault of ours raises, which Python turns into exit code 1.

    Examples
    --------
    >>> main(["report", "runs/nowhere"])
    2
    """
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return 1  # as rich has it, which prints the tables
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its hints are not about the user's work
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such an image is refused, see data.images
    try:
        if arguments[0] not in VERBS:
            raise InputError(f"unknown verb {arguments[0]!r}; there are {', '.join(VERBS)}")
        if arguments[0] not in ("train", "reproduce", "embed") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(f"{arguments[0]}: works in one process; start it without torchrun")
        with nullcontext() if arguments[0] == "serve" else _ended_by_sigterm():  # a server sees to it itself
            return VERBS[arguments[0]](arguments[1:]) or 0
    except RemoteProcessError as remote:  # the process that failed prints its error
        return 2 if isinstance(remote.error, InputError) else 1
    except InputError as error:
        # raised in a loader's worker, the message comes back inside the text of a traceback
        print(f"orthoproxy: {str(error).rpartition('InputError: ')[2].strip()}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        if is_main():
            remedy = "go on with --resume" if arguments[0] == "train" else "run it again to go on"
            print(f"orthoproxy: {stop}; {remedy}", file=sys.stderr)
        return stop.code
    except WorkerLost as error:
        print(f"orthoproxy: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not is_connection_loss(error):
            raise
        remedy = "Go on from the last checkpoint with --resume" if arguments[0] == "train" else "Run it again to go on"
        print(_LOST.format(rank=os.environ.get("RANK"), error=error, remedy=remedy), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("orthoproxy: stopped", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more; if so, what is left of it goes nowhere."""
    try:
        print(flush=True)  # flushing alone tells nothing where nothing is left
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


class _Terminated(KeyboardInterrupt):
    """SIGTERM: to end as after Ctrl-C, so that nothing unfinished is left behind."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise where training does not note it; the processes of a job, which may be waiting, it kills."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


_LOST = (
    "orthoproxy: process {rank} lost the connection to another process of the job: {error}\n"
    "torchrun names the process that ended. {remedy}"
)


def _show(run: Run) -> None:
    scores = run.scores
    if scores:
        print_scores(scores)
        for note in scores["notes"]:
            print(f"note: {note}")
    print(f"report: {run.report}")
