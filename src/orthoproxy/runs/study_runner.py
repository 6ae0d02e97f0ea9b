"""Run a study: train what is missing, choose settings, evaluate them, write the results."""

from __future__ import annotations

import logging
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice, starmap
from multiprocessing import active_children, get_context
from types import FrameType

import torch

from orthoproxy.core.device import available_cores
from orthoproxy.core.errors import WorkerLost
from orthoproxy.core.progress import duration
from orthoproxy.runs.study_trials import StudyPaths, check_options, evaluate_trial, train_trial
from orthoproxy.studies.page import write_page
from orthoproxy.studies.plan import Options, Study, Trial, choose_setting, final_trials
from orthoproxy.studies.results import TrialResult, read_results, read_trial, write_results
from orthoproxy.studies.table import format_setting, list_names
from orthoproxy.training.signals import Interrupted

Task = Callable[..., TrialResult]


@dataclass
class StudyRunner:
    """A study, its results so far, and the work that is left."""

    study: Study
    paths: StudyPaths
    processes: int = 1  # trials that run at the same time
    shard: tuple[int, int] = (1, 1)  # which part of the trials is this machine's, and of how many
    train: Task = train_trial
    evaluate: Task = evaluate_trial
    results: dict[str, TrialResult] = field(default_factory=dict)

    def run(self) -> bool:
        """Do this machine's work that is left; return whether the study is complete."""
        self.load()
        for name, trial in self.study.possible_trials.items():
            if name in self.results:
                check_options(self.study, trial, self.results[name])
        tuning = [trial for trial in self.study.planned_trials if self.study.methods[trial.method].choose]
        tuned = self._work(self.train, tuning, "tuning trials to train")
        for name, setting in self.chosen.items():
            if setting is None and tuned:
                _print(f"{name}: no setting is chosen, as each diverged with a tuning seed")
            elif setting:
                _print(f"{name}: chosen on validation classes: {format_setting(setting)}")
        finals = final_trials(self.study, list(self.results.values()))
        what = "final trials to train, where needed, and to evaluate on the test classes"
        if not (self._work(self.evaluate, finals, what) and tuned):
            return False
        self.save()
        return True

    def load(self) -> None:
        """Read the results, finished ones from the Parquet file; warn about those that belong to no trial."""
        found = read_results(self.paths.parquet) if self.paths.parquet.is_file() else []
        found += [read_trial(path) for path in sorted((self.paths.folder / "trials").glob("*.json"))]
        found.sort(key=lambda result: result.test is not None)  # of two results of a trial, the evaluated one stays
        self.results = {result.trial: result for result in found}
        trials = self.study.possible_trials
        if unknown := sorted(self.results.keys() - trials.keys()):
            what = "results of trials that the study does not have"
            _print(f"warning: ignored {len(unknown)} {what}: {list_names(unknown)}")

    def save(self) -> None:
        """Write the results as Parquet, and tables and page, from the trials that are done."""
        results = list(self.results.values())
        write_results(results, self.paths.parquet)
        write_page(self.study, results, self.paths.folder)

    @property
    def chosen(self) -> dict[str, Options | None]:
        """The chosen setting of each method, None while it is unknown."""
        results = list(self.results.values())
        return {name: choose_setting(self.study, results, name) for name in self.study.methods}

    def expected_seconds(self, method: str) -> float | None:
        """Estimate the duration of a trial from the method's trials, from all trials, or from the study."""
        elapsed = [r.elapsed for r in self.results.values() if r.method == method]
        elapsed = elapsed or [r.elapsed for r in self.results.values()]
        return statistics.median(elapsed) if elapsed else self.study.expected_seconds

    def _work(self, task: Task, trials: Sequence[Trial], what: str) -> bool:
        """Do a task for this machine's trials, and report progress; False if trials of other machines are missing."""
        number, parts = self.shard
        own = set(list(self.study.possible_trials)[number - 1 :: parts])
        self._work_on(task, [trial for trial in self._missing(task, trials) if trial.name in own], what)
        if parts > 1:
            self.load()  # other machines may write to the same disk
        if missing := self._missing(task, trials):
            place = self.paths.folder / "trials"
            _print(f"{len(missing)} trials of other machines are missing: copy their files into {place}, and run again")
        return not missing

    def _missing(self, task: Task, trials: Sequence[Trial]) -> list[Trial]:
        done = {name for name, x in self.results.items() if task is self.train or x.test or x.failed}
        return [trial for trial in trials if trial.name not in done]

    def _work_on(self, task: Task, trials: Sequence[Trial], what: str) -> None:
        if not trials:
            return
        start = time.monotonic()
        _print(f"{self.study.name}: {len(trials)} {what}")
        known = {name: (result,) for name, result in self.results.items()}
        arguments = [(self.study, trial, self.paths, *known.get(trial.name, ())) for trial in trials]
        serial = self.processes == 1
        results = starmap(task, arguments) if serial else _run_in_processes(task, arguments, self.processes)
        try:
            for done, result in enumerate(results, start=1):
                self.results[result.trial] = result
                elapsed = time.monotonic() - start
                times = f"{duration(elapsed)} elapsed, {duration(elapsed / done * (len(trials) - done))} left"
                _print(f"{done}/{len(trials)} {result.trial}: {self._describe(result)}; {times}")
        except (Interrupted, KeyboardInterrupt):
            _print("interrupted; finished trials are saved, run the same command to continue")
            raise
        except BrokenProcessPool as error:
            raise WorkerLost("a process that trained trials was killed; run the same command to continue") from error

    def _describe(self, result: TrialResult) -> str:
        if result.failed:
            return f"failed: {result.failed}"
        split = "test" if result.test else "validation"
        return f"{100 * result.score(split, self.study.metric):.2f} {self.study.metric} on {split} classes"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run_in_processes(task: Task, arguments: Sequence[tuple], processes: int) -> Iterator[TrialResult]:
    """Yield results as they are done; after an error or a signal the running trials are stopped and saved."""
    threads = max(1, available_cores() // processes)
    waiting, running = iter(arguments), set[Future[TrialResult]]()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # read when a child process starts
    with ProcessPoolExecutor(processes, get_context("spawn"), _initialize_process, (threads,)) as pool:
        try:
            while True:
                for of_trial in islice(waiting, processes - len(running)):  # queued ones would start after a signal
                    running.add(pool.submit(task, *of_trial))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            for process in active_children():
                process.terminate()
            raise


def _initialize_process(threads: int) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # removes unfinished files; training replaces this handler and saves first

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent stops the others
    torch.set_num_threads(threads)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # as in the command line
