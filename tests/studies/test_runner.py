"""Running a study: what is trained, chosen and evaluated, in which order, and how it continues."""

import itertools
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from errors import error_of
from synthetic_study import GIVEN, WEIGHT, die, evaluate, train, wait_for, write_study

from orthoproxy.core.errors import WorkerLost
from orthoproxy.runs.study_runner import StudyRunner
from orthoproxy.runs.study_trials import StudyPaths
from orthoproxy.studies.plan import Study, Trial, read_study
from orthoproxy.studies.results import TrialResult, read_results
from orthoproxy.training.signals import Interrupted

TUNING = [f"on_weight-{weight}_seed{seed}" for weight in ("0.1", "1", "9") for seed in (0, 1)]
FINAL = [f"off_seed{seed}" for seed in range(3)] + [f"on_weight-1_seed{seed}" for seed in range(3)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("encoder: {name: deit_tiny_patch16_224}\n")
    write_study(tmp_path)
    return tmp_path


class Recorder:
    """Stands in for training and evaluation: records the order, and stops where it is told to."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.stops_before = ("", "")

    def note(self, task: str, trial: Trial) -> None:
        if (task, trial.name) == self.stops_before:
            raise Interrupted(3)
        self.done.append((task, trial.name))

    def train(self, study: Study, trial: Trial, paths: StudyPaths) -> TrialResult:
        self.note("train", trial)
        return train(study, trial, paths)

    def evaluate(self, study: Study, trial: Trial, paths: StudyPaths, result: TrialResult | None = None) -> TrialResult:
        result = result or self.train(study, trial, paths)
        self.note("evaluate", trial)
        return evaluate(study, trial, paths, result)


@pytest.fixture
def work() -> Recorder:
    return Recorder()


def make_runner(work: Recorder, out: str = "runs/studies/s", shard: tuple[int, int] = (1, 1)) -> StudyRunner:
    paths = StudyPaths(Path(out), Path("results/s.parquet"))
    return StudyRunner(read_study("s.yaml"), paths, shard=shard, train=work.train, evaluate=work.evaluate)


def test_all_settings_are_tuned_then_the_chosen_one_runs_with_all_seeds_and_is_evaluated(folder, work):
    make_runner(work).run()
    expected = [("train", name) for name in TUNING]
    for name in FINAL:
        expected += [("train", name)] * (name not in TUNING) + [("evaluate", name)]
    assert work.done == expected
    results = {result.trial: result for result in read_results(folder / "results/s.parquet")}
    assert results.keys() == {*TUNING, *FINAL}
    assert {name for name, result in results.items() if result.test} == {*FINAL}
    assert {"index.html", "table.md", "table.csv"} <= {path.name for path in (folder / "runs/studies/s").iterdir()}


def test_a_larger_study_continues_from_the_finished_one(folder, work):
    make_runner(work).run()
    work.done.clear()
    make_runner(work).run()
    assert work.done == []  # nothing is left to do
    write_study(folder, seeds=4)
    make_runner(work, out="elsewhere").run()
    assert work.done == [(what, name) for name in ("off_seed3", "on_weight-1_seed3") for what in ("train", "evaluate")]


@pytest.mark.parametrize("stops_before", [("train", TUNING[4]), ("evaluate", "off_seed1")])
def test_an_interrupted_study_continues_where_it_stopped(folder, work, stops_before):
    work.stops_before = stops_before
    with pytest.raises(Interrupted):
        make_runner(work).run()
    before, work.stops_before = len(work.done), ("", "")
    make_runner(work).run()
    assert work.done[before] == stops_before
    assert sorted(name for task, name in work.done if task == "train") == sorted({*TUNING, *FINAL})


def test_machines_share_the_trials_and_write_the_results_once_they_have_all(folder, work):
    machines = [make_runner(work, out=f"machine{number}", shard=(number, 3)) for number in (1, 2, 3)]
    folders = [machine.paths.folder / "trials" for machine in machines]
    for complete in (False, False, True):  # tuning, final trials, results
        assert [machine.run() for machine in machines] == [complete] * 3
        for source, target in itertools.permutations(folders, 2):
            subprocess.run(["cp", "--update", "--preserve=timestamps", "-r", f"{source}/.", target], check=True)
    expected = [*(("train", name) for name in {*TUNING, *FINAL}), *(("evaluate", name) for name in FINAL)]
    assert sorted(work.done) == sorted(expected)
    assert {result.trial for result in read_results(folder / "results/s.parquet")} == {*TUNING, *FINAL}


def test_a_result_with_other_options_is_rejected(folder, work):
    make_runner(work).run()
    write_study(folder, set={"encoder.embedding_dim": 64})
    assert error_of(make_runner(work).run).field == "encoder.embedding_dim"
    write_study(folder, set={"data.workers": 1})  # depends on the machine
    make_runner(work).run()


def test_results_of_other_trials_are_kept_and_named(folder, work, capsys):
    make_runner(work).run()
    write_study(folder, methods={**GIVEN["methods"], "on": {"choose": {WEIGHT: [0.1, 1]}}})
    make_runner(work).run()
    assert "on_weight-9_seed0" in capsys.readouterr().err
    assert "on_weight-9_seed0" in {result.trial for result in read_results(folder / "results/s.parquet")}


@pytest.mark.slow
def test_a_killed_process_is_reported(folder):
    paths = StudyPaths(folder / "out", folder / "s.parquet")
    with pytest.raises(WorkerLost):
        StudyRunner(read_study("s.yaml"), paths, processes=2, train=die).run()


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {helpers!r})
import synthetic_study
from orthoproxy.cli.main import _sigterm_raises
from orthoproxy.runs.study_runner import StudyRunner
from orthoproxy.runs.study_trials import StudyPaths
from orthoproxy.studies.plan import read_study
if __name__ == "__main__":
    paths = StudyPaths(Path("out"), Path("s.parquet"))
    with _sigterm_raises():
        StudyRunner(read_study("s.yaml"), paths, processes=2, evaluate=synthetic_study.{task}).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("task", "number", "left"), [
    ("train_until_stopped", signal.SIGINT, ["begun", "saved", "trials"]),
    ("train_until_stopped", signal.SIGTERM, ["begun", "saved", "trials"]),
    ("write_until_stopped", signal.SIGTERM, ["begun"]),
])  # fmt: skip
def test_a_signal_stops_all_processes_and_loses_nothing(folder, task, number, left):
    """Ctrl-C in a terminal reaches every process at once; SIGTERM only the first."""
    write_study(folder, seeds=[0, 1], compare=[], methods={"off": GIVEN["methods"]["off"]})
    helpers = str(Path(__file__).parents[1] / "helpers")
    (folder / "script.py").write_text(SCRIPT.format(helpers=helpers, task=task))
    study = subprocess.Popen([sys.executable, "script.py"], start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(
            lambda: (folder / "out/begun").exists() and (task.startswith("write") or [*folder.glob("out/trials/*")])
        )
        (os.killpg if number == signal.SIGINT else os.kill)(study.pid, number)
        study.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(study.pid, signal.SIGKILL)
    assert study.returncode != 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == left
