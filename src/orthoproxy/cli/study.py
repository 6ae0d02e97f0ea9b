"""`orthoproxy study`: run a study, print its plan, or write its tables."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthoproxy.cli.options import Parser, at_least, config_overrides, print_table
from orthoproxy.core.errors import os_errors_as_input_errors

if TYPE_CHECKING:
    from orthoproxy.runs.study_runner import StudyRunner


def add_options(parser: Parser) -> None:
    parser.add_argument("study", help="YAML file of the study. Results are written to results/NAME.parquet beside it.")
    parser.add_argument("--out", metavar="DIR", help="Runs and unfinished results (default: runs/studies/NAME).")
    parser.add_argument("--processes", type=at_least(1), default=1, metavar="N", help="Trials to run at the same time.")
    text = "Run part I of N only, to share a study between machines, such as 2/8."
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help=text)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--dry-run", action="store_true", help="Print all trials and their cost without running them.")
    either.add_argument("--page", action="store_true", help="Write results, tables and page of the trials so far.")
    parser.add_moved_images()


def run(options: Any) -> int:
    from orthoproxy.runs.study_runner import StudyRunner
    from orthoproxy.runs.study_trials import StudyPaths, check_splits
    from orthoproxy.studies.plan import read_study
    from orthoproxy.training.signals import Interrupted

    study = read_study(options.study)
    study = study.model_copy(update={"set": {**study.set, **config_overrides(options)}})
    folder = Path(options.out or Path("runs/studies") / study.name)
    paths = StudyPaths(folder, study.path.parent / "results" / f"{study.name}.parquet")
    runner = StudyRunner(study, paths, options.processes, options.shard)
    with os_errors_as_input_errors(folder, "run the command again"):
        if options.page:
            runner.load()
            runner.save()
        else:
            check_splits(study, paths)  # finds an invalid option before hours of work
            if options.dry_run:
                _print_plan(runner)
                return 0
            try:
                if not runner.run():
                    return 0
            except Interrupted as stop:  # the runner has said how to continue
                return stop.code
        print(f"results: {paths.parquet}\npage: {folder / 'index.html'}")
    return 0


def _shard(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ArgumentTypeError(f"{text} (expected a number and a total, such as 2/8)")
    return int(number), int(parts)


def _print_plan(runner: StudyRunner) -> None:
    """Print all trials and their cost."""
    from orthoproxy.core.progress import duration
    from orthoproxy.studies.table import format_setting

    runner.load()
    study, chosen = runner.study, runner.chosen
    rows = {trial.name: (trial, format_setting(trial.setting)) for trial in study.planned_trials}
    for name, setting in chosen.items():
        words = "the chosen one" if setting is None else format_setting(setting)
        finals = study.final_trials(name, study.methods[name].settings[0] if setting is None else setting)
        rows |= {trial.name: (trial, words) for trial in finals if trial.name not in rows}
    table = []
    for trial, words in rows.values():
        result = runner.results.get(trial.name)
        state = "to do" if result is None else "failed" if result.failed else "evaluated" if result.test else "trained"
        seconds = result.elapsed if result else runner.expected_seconds(trial.method)
        table.append([trial.method, words or "-", str(trial.seed), state, "?" if seconds is None else f"{seconds:.0f}"])
    print_table(["method", "hyperparameters", "seed", "state", "seconds"], table, right=["seed", "seconds"])
    left = [runner.expected_seconds(trial.method) for trial, _ in rows.values() if trial.name not in runner.results]
    cost = "unknown until one has finished" if None in left else f"about {duration(sum(x or 0 for x in left))}"
    print(f"{len(rows)} trials, {len(left)} to train; time if run one at a time: {cost}")
