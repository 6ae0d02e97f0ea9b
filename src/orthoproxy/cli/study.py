"""What `orthoproxy study` does: train what is missing, choose, judge, and write the page."""

from __future__ import annotations

import logging
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.table import Table

from orthoproxy.core.errors import InputError, WorkerLost, os_errors_as_input_errors
from orthoproxy.core.progress import duration
from orthoproxy.data import select_split
from orthoproxy.runs import build as builders
from orthoproxy.runs.recipes import parse
from orthoproxy.runs.study_configs import check_classes, config_of_cell, images_an_epoch
from orthoproxy.runs.study_trials import Place, judge_cell, read_result, train_cell
from orthoproxy.studies.page import write_page
from orthoproxy.studies.plan import Cell, Options, Study, chosen_setting, score_of
from orthoproxy.studies.study_file import read_study
from orthoproxy.studies.table import setting_words
from orthoproxy.training import Interrupted

Result = dict[str, Any]
Work = Callable[[Study, Cell, Place], Result]
WIDTH = 140  # of the plan where there is no terminal


def run_study(arguments: list[str]) -> None:
    """Run a study, or what is left of it; or print its plan, or write its page."""
    options = parse(_parser(), arguments)
    study = read_study(options.study)
    here = {f"data.{name}": str(Path(place).absolute()) for name, place in vars(options.data).items() if place}
    study = replace(study, set={**study.set, **here})
    place = Place(
        Path(options.runs or Path("runs") / study.name), Path(options.results or Path("docs/studies") / study.name)
    )
    job = Job(study, place, *_part(options.part), processes=options.processes)
    for cell in job.study.first_cells:  # an option that does not exist is found before hours of work
        config_of_cell(study, cell)
    if options.processes < 1:
        raise InputError(f"--processes: {options.processes}; give 1 or more")
    with os_errors_as_input_errors(place.results, "run it again"):
        if options.plan:
            check_classes(study)
            print_plan(job)
        elif options.page:
            _write_page(job)
        else:
            check_classes(study)
            _run(job)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="orthoproxy study",
        description="Train and compare the methods that a study names. What is done is not done again.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("study", help="The study's YAML file.")
    parser.add_argument("--runs", type=str | None, help="Folder of the run folders (default: runs/NAME).")
    parser.add_argument(
        "--results", type=str | None, help="Folder of the result files and the page (default: docs/studies/NAME)."
    )
    for name, what in (("root", "Folder of the images"), ("path", "The CSV file")):
        parser.add_argument(f"--data.{name}", type=str | None, help=f"{what} on this machine, instead of the recipe's.")
    parser.add_argument("--part", default="1/1", help="Of several machines, which this is: 2/8 is the second of eight.")
    parser.add_argument("--processes", type=int, default=1, help="Cells trained at the same time on this machine.")
    parser.add_argument("--plan", action="store_true", help="Print every cell and its cost, and train nothing.")
    parser.add_argument("--page", action="store_true", help="Write the page from the results there are.")
    return parser


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise InputError(f"--part: {text!r}; give for example 2/8, the second of eight parts")
    return part, parts


@dataclass
class Job:
    """A study as far as it is done, and the part of it that is this machine's.

    Parameters
    ----------
    study, place
        What is to be run, and where it lies.
    part, parts
        Which of how many parts is this machine's; cells go round by their position. What a part trained it judges too,
        since the run folder is there.
    processes
        Cells trained at once.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> study = Study("so", {"off": Method()}, "off", seeds=[0, 1, 2, 3])
    >>> job = Job(study, Place(Path("runs/so"), Path("nowhere")), part=2, parts=2)
    >>> [cell.name for cell in job.own(study.first_cells)]
    ['off_seed1', 'off_seed3']
    """

    study: Study
    place: Place
    part: int = 1
    parts: int = 1
    processes: int = 1
    results: dict[str, Result] = field(default_factory=dict)

    def own(self, cells: Sequence[Cell]) -> list[Cell]:
        """Pick those of this part."""
        order = [cell.name for cell in [*self.study.first_cells, *self.expected_later_cells]]
        own = set(order[self.part - 1 :: self.parts])
        return [cell for cell in cells if cell.name in own]

    def read(self) -> None:
        """Read the results of all cells, those of other parts too."""
        self.results = {}
        for cell in [*self.study.first_cells, *self.cells_that_may_follow]:
            result = read_result(self.study, cell, self.place)
            if result is not None:
                self.results[cell.name] = result

    @property
    def cells_that_may_follow(self) -> list[Cell]:
        """The other seeds of all settings, of which one of each method is chosen."""
        study = self.study
        return [
            cell
            for name, method in study.methods.items()
            for setting in method.settings
            for cell in study.later_cells(name, setting)
        ]

    @property
    def chosen(self) -> dict[str, Options | None]:
        """Each method's setting, if it is known already."""
        results = list(self.results.values())
        return {name: chosen_setting(self.study, results, name) for name in self.study.methods}

    @property
    def expected(self) -> dict[str, Options]:
        """Each method's chosen setting; its first, which costs the same, until one is chosen."""
        methods = self.study.methods
        return {name: methods[name].settings[0] if x is None else x for name, x in self.chosen.items()}

    @property
    def expected_later_cells(self) -> list[Cell]:
        """The other seeds of the expected settings."""
        return [cell for name, setting in self.expected.items() for cell in self.study.later_cells(name, setting)]

    @property
    def later_cells(self) -> list[Cell]:
        """The other seeds of the chosen settings."""
        known = [(name, setting) for name, setting in self.chosen.items() if setting is not None]
        return [cell for name, setting in known for cell in self.study.later_cells(name, setting)]

    @property
    def judged_cells(self) -> list[Cell]:
        """All cells of the chosen settings that could be trained, in an order that does not depend on parts."""
        known = [(name, setting) for name, setting in self.chosen.items() if setting is not None]
        cells = [cell for name, setting in known for cell in self.study.judged_cells(name, setting)]
        return [cell for cell in cells if not self.results.get(cell.name, {}).get("failed")]

    def lacking(self, cells: Sequence[Cell]) -> list[Cell]:
        """Pick the cells without a result; one of a setting that is not chosen does not count, though it be there."""
        known = {cell.name for cell in [*self.study.first_cells, *self.later_cells]} & self.results.keys()
        return [cell for cell in cells if cell.name not in known]

    @property
    def trainings_left(self) -> list[Cell]:
        """The cells that this part has yet to train, and once more those that it has to train again to judge them."""
        first_time = self.lacking(self.own([*self.study.first_cells, *self.expected_later_cells]))
        judged = self.own([cell for name, x in self.expected.items() for cell in self.study.judged_cells(name, x)])
        frozen = [cell for cell in first_time if config_of_cell(self.study, cell).encoder.freeze]  # no run folder stays
        return first_time + [cell for cell in judged if cell in frozen or self._lost(cell)]

    def _lost(self, cell: Cell) -> bool:
        """Tell whether a trained cell is still to be judged, and its run folder is gone."""
        result = self.results.get(cell.name)
        return bool(result and not result.get("failed") and not result["test"]) and not self.place.run(cell).trained

    def seconds_of(self, cells: Sequence[Cell]) -> float | None:
        """Guess what training some cells takes, one after the other; None: unknown."""
        expected = [self.expected_seconds(cell.method) for cell in cells]
        return None if None in expected else sum(seconds or 0 for seconds in expected)

    def expected_seconds(self, method: str) -> float | None:
        """Guess what a cell takes: as the method's other cells, as other methods' cells, or as the study says."""
        took = [r["elapsed"] for r in self.results.values() if r["method"] == method] or [
            r["elapsed"] for r in self.results.values()
        ]
        return statistics.median(took) if took else self.study.expected_seconds


def _run(job: Job) -> None:
    study = job.study
    job.read()
    _warn_of_strangers(job)
    teller = _Teller(job)
    _work(job, teller, train_cell, job.lacking(job.own(study.first_cells)), "to train")
    job.read()
    if missing := job.lacking(study.first_cells):  # of other parts
        teller.say(_waiting("a setting can be chosen", missing, job))
        return
    for name, setting in job.chosen.items():
        if setting is None:
            teller.say(f"{name}: no setting could be trained with all tuning seeds, so none is chosen")
        elif study.methods[name].choose:
            teller.say(f"{name}: chosen on validation classes: {setting_words(setting)}")
    _work(job, teller, train_cell, job.lacking(job.own(job.later_cells)), "to train with the other seeds")
    job.read()
    if missing := job.lacking(job.later_cells):
        teller.say(_waiting("the test classes are judged", missing, job))
        return
    to_judge = [cell for cell in job.own(job.judged_cells) if not job.results[cell.name]["test"]]
    _work(job, teller, judge_cell, to_judge, "to judge on the test classes")
    job.read()
    if not_judged := [cell for cell in job.judged_cells if not job.results[cell.name]["test"]]:
        teller.say(_waiting("the page is written", not_judged, job))
        return
    _write_page(job)


def _waiting(what: str, missing: Sequence[Cell], job: Job) -> str:
    names = ", ".join(cell.name for cell in missing[:5]) + (" ..." if len(missing) > 5 else "")
    return (
        f"before {what}, {len(missing)} cells of other parts are to be done: {names}\n"
        f"when their files are in {job.place.results / 'cells'}, run this again"
    )


def _warn_of_strangers(job: Job) -> None:
    """Say which files are of no cell of the study, so that no result gets lost unseen."""
    known = {cell.name for cell in [*job.study.first_cells, *job.cells_that_may_follow]}
    strangers = sorted(x.name for x in (job.place.results / "cells").glob("*.json") if x.stem not in known)
    if strangers:
        print(
            f"note: {len(strangers)} result files are of no cell that the study names now, and are left out: "
            f"{', '.join(strangers[:5])}",
            file=sys.stderr,
        )


def _write_page(job: Job) -> None:
    if not job.results:
        job.read()
    write_page(job.study, list(job.results.values()), job.place.results)
    print(f"page: {job.place.results / 'index.html'}")


class _Teller:
    """Says on standard error how far a study is, and how long it will take."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.out: TextIO = sys.stderr  # while a cell trains, it leads elsewhere

    def begin(self, cells: Sequence[Cell], what: str) -> None:
        self.cells, self.done, self.start = len(cells), 0, time.monotonic()
        self.to_do = max(len(cells), len(self.job.trainings_left))  # those of later steps too
        to_train = [cell for cell in cells if not self.job.place.run(cell).trained]  # others are judged in no time
        seconds = self.job.seconds_of(to_train)
        about = "" if seconds is None else f", about {duration(seconds / self.job.processes)}"
        self.say(f"{self.job.study.name}: {len(cells)} cells {what}{about}")

    def tell(self, cell: Cell, result: Result) -> None:
        self.done += 1
        gone = time.monotonic() - self.start
        left = gone / self.done * (self.to_do - self.done)
        part = "test" if result.get("test") else "validation"
        score = "failed" if result.get("failed") else f"{100 * score_of(result, part, self.job.study.metric):.2f}"
        what = "" if result.get("failed") else f" {self.job.study.metric} on {part} classes"
        times = f"{duration(gone)} gone, {duration(left)} left"
        self.say(f"{self.done}/{self.cells} {cell.name}: {score}{what}; {times}")

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def _work(job: Job, teller: _Teller, work: Work, cells: Sequence[Cell], what: str) -> None:
    """Do something with each cell, here or in processes of their own, and tell of each."""
    if not cells:
        return
    teller.begin(cells, what)
    try:
        for cell, result in _in_turn(job, work, cells) if job.processes == 1 else _at_once(job, work, cells):
            teller.tell(cell, result)
    except (Interrupted, KeyboardInterrupt):
        teller.say("what was done is saved; run the same command to go on")
        raise
    except BrokenProcessPool as error:
        raise WorkerLost("a process that trained cells was killed; run the same command to go on") from error
    except InputError as error:
        raise InputError(str(error).replace("--out", "--runs")) from error


def _in_turn(job: Job, work: Work, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
    for cell in cells:
        yield cell, work(job.study, cell, job.place)


def _at_once(job: Job, work: Work, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // job.processes)
    left, running = iter(cells), dict[Future[Result], Cell]()
    with (
        _environment(OMP_NUM_THREADS=str(threads)),
        ProcessPoolExecutor(job.processes, get_context("spawn"), _begin_process, (threads,)) as pool,
    ):
        try:
            while True:
                for cell in islice(left, job.processes - len(running)):  # no more, or one would begin after a signal
                    running[pool.submit(work, job.study, cell, job.place)] = cell
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        except BaseException:
            for process in active_children():
                process.terminate()  # a cell in training is saved where it is
            raise


def _begin_process(threads: int) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # what is half written is removed; training itself saves first

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process tells the others
    torch.set_num_threads(threads)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # as the command line does


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables for processes started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def print_plan(job: Job) -> None:
    """Print a study's cells as a Markdown table: what is done, what is to be done, and what it costs.

    Parameters
    ----------
    job
        Of this machine's part, or of all.

    Raises
    ------
    InputError
        If the images cannot be read, of which the costs are counted.

    Examples
    --------
    Printed by ``orthoproxy study STUDY.yaml --plan``, see docs/guide/studies.md.
    """
    job.read()
    first, study = job.study.first_cells, job.study
    rows = [(cell, setting_words(cell.setting) or "-") for cell in job.own(first)]
    for name, setting in job.expected.items():
        words = "the one chosen" if job.chosen[name] is None else setting_words(setting) or "-"
        rows += [(cell, words) for cell in job.own(study.later_cells(name, setting))]
    table = Table(box=box.MARKDOWN)
    for column in ("method", "setting", "seed", "state", "images", "seconds"):
        table.add_column(column, justify="right" if column in ("seed", "images", "seconds") else "left")
    images, to_do, trainings = _Images(study), job.lacking([cell for cell, _ in rows]), job.trainings_left
    for cell, words in rows:
        result = None if cell in to_do else job.results[cell.name]
        cost = result["elapsed"] if result else job.expected_seconds(cell.method)
        table.add_row(
            cell.method,
            words,
            str(cell.seed),
            _state(result),
            str(images.of(cell)),
            "?" if cost is None else f"{cost:.0f}",
        )
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    console.print(table)
    again, seconds = len(trainings) - len(to_do), job.seconds_of(trainings)
    twice = f" and {again} to be trained again for their judgement" if again else ""
    cost = "unknown until one is done, or the study gives expected_seconds"
    if seconds is not None:
        cost = f"about {duration(seconds)}"
    print(f"{len(rows)} cells, {len(to_do)} to do{twice}; cost one after the other: {cost}")
    print(f"Judged on the test classes at the end: {len(study.methods)} methods x {len(study.seeds)} seeds")


class _Images:
    """Counts the images that cells are trained on; settings that do not change it are counted once."""

    def __init__(self, study: Study) -> None:
        self.study, self.known = study, {}

    def of(self, cell: Cell) -> int:
        config = config_of_cell(self.study, cell)
        training = config.training
        key = repr((config.data, training.batch_size, training.per_class))
        if key not in self.known:
            self.known[key] = images_an_epoch(config, select_split(builders.split_table(config), "train"))
        return training.epochs * self.known[key]


def _state(result: Result | None) -> str:
    if result is None:
        return "to do"
    return "failed" if result.get("failed") else "judged" if result["test"] else "trained"
