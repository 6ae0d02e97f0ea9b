"""`orthoproxy study`: what it trains, chooses and judges, in which order, and how it goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from orthoproxy.cli import study as study_verb
from orthoproxy.cli.main import main
from orthoproxy.cli.study import Job
from orthoproxy.core.errors import InputError
from orthoproxy.runs.study_configs import changed_options, config_of_cell
from orthoproxy.runs.study_trials import Place
from orthoproxy.studies.plan import Cell
from orthoproxy.studies.study_file import read_study
from orthoproxy.training import Interrupted
from orthoproxy.training.signals import stop_on_signal

WEIGHT = "loss.orthogonality.weight"
METHODS = {"off": {"set": {WEIGHT: 0}}, "on": {"choose": {WEIGHT: [0.1, 1, 9]}}}
GIVEN = {
    "title": "Does it help?",
    "base": "base.yaml",
    "seeds": [0, 1, 2],
    "tuning_seeds": [0, 1],
    "metric": "recall@1",
    "baseline": "off",
    "compare": ["on"],
    "methods": METHODS,
}
FIRST = [f"off_seed{seed}" for seed in range(3)] + [f"on_weight-{w}_seed{s}" for w in ("0.1", "1", "9") for s in (0, 1)]
LATER = ["on_weight-1_seed2"]
JUDGED = [f"off_seed{seed}" for seed in range(3)] + [f"on_weight-1_seed{seed}" for seed in range(3)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A study to be run here, with nothing done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("encoder: {name: deit_tiny_patch16_224, freeze: true}\n")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(GIVEN))
    return tmp_path


def score(cell: Cell) -> float:
    """The middle weight is best on validation classes."""
    return {0.1: 0.5, 1: 0.6}.get(cell.setting.get(WEIGHT), 0.4) + 0.01 * cell.seed


class Recorder:
    """Takes the place of the work on a cell: notes it, and leaves results at once."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.fails: set[str] = set()
        self.stops_before = ""
        self.signal = signal.SIGINT

    def scores(self, cell):
        values = {"recall@1": [score(cell)] * 2, "map@r": [score(cell) / 2] * 2}
        return {"classes": ["a", "b"], "queries": [3, 1], "trained": values, "untrained": values}

    def train(self, study, cell, place):
        if cell.name == self.stops_before:
            raise Interrupted("stopped after step 3", self.signal)
        self.done.append(("train", cell.name))
        failed = cell.name in self.fails
        options = config_of_cell(study, cell)
        result = {
            "format_version": 1,
            "cell": cell.name,
            "method": cell.method,
            "setting": cell.setting,
            "seed": cell.seed,
            "options": changed_options(options),
            "validation": None if failed else self.scores(cell),
            "test": None,
            "curve": [],
            "geometry": None,
            "seconds": None if failed else 7.0,
            "images": None if failed else 100,
            "elapsed": 10.0,
            "date": "2026-01-01",
            "environment": {},
        } | ({"failed": "the loss is nan"} if failed else {})
        return self.write(result, cell, place)

    def judge(self, study, cell, place):
        self.done.append(("judge", cell.name))
        result = json.loads(place.file(cell).read_text())
        return self.write(result | {"test": self.scores(cell)}, cell, place)

    def write(self, result, cell, place):
        place.file(cell).parent.mkdir(parents=True, exist_ok=True)
        place.file(cell).write_text(json.dumps(result))
        return result

    def names(self, what):
        return [name for did, name in self.done if did == what]


@pytest.fixture
def work(monkeypatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(study_verb, "train_cell", recorder.train)
    monkeypatch.setattr(study_verb, "judge_cell", recorder.judge)
    monkeypatch.setattr(study_verb, "check_classes", lambda study: None)  # there are no images
    return recorder


def test_all_settings_are_tuned_then_one_runs_with_all_seeds_and_only_that_is_judged(folder, work, capsys):
    assert main(["study", "s.yaml"]) == 0
    assert work.done == [("train", name) for name in FIRST + LATER] + [("judge", name) for name in JUDGED]
    said = capsys.readouterr()
    assert "on: chosen on validation classes: loss.orthogonality.weight 1\n" in said.err
    assert "page: docs/studies/s/index.html" in said.out
    assert "Does it help?" in (folder / "docs/studies/s/index.html").read_text()
    assert sorted(path.stem for path in (folder / "docs/studies/s/cells").iterdir()) == sorted(FIRST + LATER)


def test_what_is_done_is_not_done_again(folder, work):
    assert main(["study", "s.yaml"]) == 0
    work.done.clear()
    assert main(["study", "s.yaml"]) == 0
    assert work.done == []
    (folder / "docs/studies/s/cells/on_weight-9_seed1.json").unlink()
    assert main(["study", "s.yaml"]) == 0
    assert work.done == [("train", "on_weight-9_seed1")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_study_goes_on(folder, work, capsys, number, code):
    work.stops_before, work.signal = FIRST[4], number
    assert main(["study", "s.yaml"]) == code
    assert work.names("train") == FIRST[:4]
    assert "run the same command to go on" in capsys.readouterr().err
    work.stops_before = ""
    assert main(["study", "s.yaml"]) == 0
    assert work.names("train") == FIRST + LATER


def killed(study, cell, place):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told_in_a_line(folder, work, monkeypatch, capsys):
    monkeypatch.setattr(study_verb, "train_cell", killed)
    assert main(["study", "s.yaml", "--processes", "2"]) == 1
    assert "a process that trained cells was killed; run the same command to go on" in capsys.readouterr().err


def until_stopped(study, cell, place):
    """A cell that trains until it is told to stop, and is saved then."""
    place.runs.mkdir(parents=True, exist_ok=True)
    with stop_on_signal() as stop:
        (place.runs / f"{cell.name}.begun").touch()
        wait_for(lambda: stop.asked)
    (place.runs / f"{cell.name}.saved").touch()
    raise Interrupted("stopped", stop.number)


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_sigterm_stops_the_cells_in_training_too_and_no_other_begins(folder, work, monkeypatch, capsys):
    monkeypatch.setattr(study_verb, "train_cell", until_stopped)

    def end():
        wait_for(lambda: len(list(folder.glob("runs/s/*.begun"))) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    assert main(["study", "s.yaml", "--processes", "2"]) == 143
    assert sorted(path.name for path in (folder / "runs/s").iterdir()) == [
        f"{name}.{what}" for name in FIRST[:2] for what in ("begun", "saved")
    ]
    assert "run the same command to go on" in capsys.readouterr().err


def until_ended(study, cell, place):
    """A cell that is not in training, but embeds its images, say."""
    place.runs.mkdir(parents=True, exist_ok=True)
    half = place.runs / f"{cell.name}.tmp"
    half.touch()
    try:
        wait_for(lambda: False)
    finally:
        half.unlink()


def test_sigterm_leaves_nothing_half_written_by_cells_that_are_not_in_training(folder, work, monkeypatch, capfd):
    monkeypatch.setattr(study_verb, "train_cell", until_ended)

    def end():
        wait_for(lambda: len(list(folder.glob("runs/s/*.tmp"))) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    assert main(["study", "s.yaml", "--processes", "2"]) == 143
    assert list((folder / "runs/s").iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err


def one_until_stopped(study, cell, place):
    """The first cell is done at once, so that its process idles while the second cell trains."""
    if cell.seed:
        until_stopped(study, cell, place)
    return Recorder().train(study, cell, place)


APART = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_runner
from orthoproxy.cli import study as study_verb
study_verb.train_cell, study_verb.check_classes = test_runner.one_until_stopped, lambda study: None
sys.exit(test_runner.main(["study", "s.yaml", "--processes", "2"]))
"""


def test_ctrl_c_ends_a_study_of_which_a_process_is_idle(folder):
    one = {"seeds": [0, 1], "compare": [], "methods": {"off": METHODS["off"]}}
    (folder / "s.yaml").write_text(yaml.safe_dump(GIVEN | one))
    study = subprocess.Popen([sys.executable, "-c", APART], start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: [*folder.glob("runs/s/*.begun")] and [*folder.glob("docs/studies/s/cells/*.json")])
        os.killpg(study.pid, signal.SIGINT)  # as a terminal does, to all processes at once
        _, said = study.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(study.pid, signal.SIGKILL)
    assert study.returncode == 130
    assert "run the same command to go on" in said
    assert [path.name for path in (folder / "runs/s").glob("*.saved")] == ["off_seed1.saved"]


@pytest.mark.parametrize("parts", [2, 3, pytest.param(20, marks=pytest.mark.slow)])
def test_parts_share_the_work_and_wait_for_each_other(folder, work, capsys, parts):
    part_of = {}
    for part in [*range(1, parts + 1)] * 3:
        before = len(work.done)
        assert main(["study", "s.yaml", "--part", f"{part}/{parts}"]) == 0
        part_of |= dict.fromkeys(work.done[before:], part)
    assert "1 cells of other parts are to be done: on_weight-1_seed2" in capsys.readouterr().err or parts == 2
    assert Counter(work.done[: len(FIRST + LATER)]) == Counter(("train", x) for x in FIRST + LATER)
    assert Counter(work.done[len(FIRST + LATER) :]) == Counter(("judge", x) for x in JUDGED)
    # where it was trained, the run folder is
    assert all(part_of["judge", name] == part_of["train", name] for name in JUDGED)
    assert (folder / "docs/studies/s/index.html").is_file()


def test_a_part_says_whose_results_are_missing(folder, work, capsys):
    assert main(["study", "s.yaml", "--part", "1/2"]) == 0
    assert work.names("train") == FIRST[::2]
    said = capsys.readouterr().err
    assert (
        "before a setting can be chosen, 4 cells of other parts are to be done: off_seed1, on_weight-0.1_seed0" in said
    )
    assert "when their files are in docs/studies/s/cells, run this again" in said
    assert not (folder / "docs/studies/s/index.html").exists()


def test_a_setting_that_failed_is_not_chosen_and_others_go_on(folder, work, capsys):
    work.fails = {"on_weight-1_seed0"}
    assert main(["study", "s.yaml"]) == 0
    assert "on_weight-0.1_seed2" in work.names("train")
    assert work.names("judge")[3:] == [f"on_weight-0.1_seed{seed}" for seed in range(3)]
    assert "on_weight-1_seed0: failed" in capsys.readouterr().err


def test_a_method_of_which_all_failed_is_left_out_with_a_word(folder, work, capsys):
    work.fails = {name for name in FIRST if name.startswith("on")}
    assert main(["study", "s.yaml"]) == 0
    assert work.names("judge") == JUDGED[:3]
    assert "on: no setting could be trained with all tuning seeds, so none is chosen" in capsys.readouterr().err
    assert "the loss is nan" in (folder / "docs/studies/s/index.html").read_text()


def test_a_judged_seed_that_failed_is_not_judged(folder, work):
    work.fails = {"off_seed1"}
    assert main(["study", "s.yaml"]) == 0
    assert "off_seed1" not in work.names("judge")


def test_the_plan_lists_every_cell_and_trains_nothing(folder, work, capsys, monkeypatch):
    monkeypatch.setattr(study_verb._Images, "of", lambda self, cell: 321)
    (folder / "s.yaml").write_text(yaml.safe_dump(GIVEN | {"expected_seconds": 60}))
    assert main(["study", "s.yaml", "--plan"]) == 0
    plan = capsys.readouterr().out
    rows = [[x.strip() for x in line.strip("|").split("|")] for line in plan.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(FIRST) + len(LATER)
    assert rows[0] == ["off", "-", "0", "to do", "321", "60"]
    assert rows[-1] == ["on", "the one chosen", "2", "to do", "321", "60"]
    # a frozen cell's run folder is not kept, so the six that are judged are trained twice
    assert "10 cells, 10 to do and 6 to be trained again for their judgement" in plan
    assert "cost one after the other: about 16:00" in plan
    assert work.done == []
    assert main(["study", "s.yaml"]) == 0
    capsys.readouterr()
    assert main(["study", "s.yaml", "--plan"]) == 0
    plan = capsys.readouterr().out
    assert plan.count("judged") == 6
    assert "| on     | loss.orthogonality.weight 1   |    2 | judged  |    321 |      10 |" in plan
    assert "10 cells, 0 to do; cost one after the other: about 0:00" in plan


def test_a_plan_does_not_count_what_was_left_of_an_earlier_choice(folder, work, capsys, monkeypatch):
    monkeypatch.setattr(study_verb._Images, "of", lambda self, cell: 321)
    assert main(["study", "s.yaml"]) == 0
    capsys.readouterr()
    more = {"on": {"choose": {WEIGHT: [1, 0.1, 9, 20]}}}  # a weight was added, so nothing is chosen any more
    (folder / "s.yaml").write_text(yaml.safe_dump(GIVEN | {"methods": METHODS | more}))
    assert main(["study", "s.yaml", "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "| on     | the one chosen                |    2 | to do" in plan
    assert "12 cells, 3 to do and 1 to be trained again" in plan


def test_the_plan_of_a_study_of_whole_networks_trains_each_cell_once(folder, work, capsys, monkeypatch):
    monkeypatch.setattr(study_verb._Images, "of", lambda self, cell: 321)
    (folder / "base.yaml").write_text("encoder: {name: deit_tiny_patch16_224}\n")
    (folder / "s.yaml").write_text(yaml.safe_dump(GIVEN | {"expected_seconds": 60}))
    assert main(["study", "s.yaml", "--plan"]) == 0
    assert "10 cells, 10 to do; cost one after the other: about 10:00" in capsys.readouterr().out


def test_the_time_left_is_that_of_the_whole_study(folder, work, capsys, monkeypatch):
    monkeypatch.setattr(study_verb, "time", SimpleNamespace(monotonic=lambda: 60 * len(work.done)))
    assert main(["study", "s.yaml"]) == 0
    said = re.findall(r"(\d+/\d+) .*; (\S+) gone, (\S+) left", capsys.readouterr().err)
    assert said[0] == ("1/9", "1:00", "15:00")  # eight others, one of another seed, six judged by a second training
    assert said[9:11] == [("1/1", "1:00", "6:00"), ("1/6", "1:00", "5:00")]
    assert said[-1] == ("6/6", "6:00", "0:00")


def test_the_page_is_written_from_what_there_is(folder, work):
    assert main(["study", "s.yaml", "--part", "1/2"]) == 0
    assert main(["study", "s.yaml", "--page", "--results", "docs/studies/s"]) == 0
    assert "off_seed1" in (folder / "docs/studies/s/index.html").read_text()
    assert work.names("train") == FIRST[::2]


def test_files_of_no_cell_are_named(folder, work, capsys):
    assert main(["study", "s.yaml"]) == 0
    methods = METHODS | {"on": {"choose": {WEIGHT: [0.1, 1]}}}
    (folder / "s.yaml").write_text(yaml.safe_dump(GIVEN | {"methods": methods}))
    assert main(["study", "s.yaml"]) == 0
    assert "2 result files are of no cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "no study nowhere.yaml"),
        (["s.yaml", "--part", "3/2"], "--part: '3/2'; give for example 2/8"),
        (["s.yaml", "--part", "0/2"], "--part: '0/2'"),
        (["s.yaml", "--part", "two"], "--part: 'two'"),
        (["s.yaml", "--processes", "0"], "--processes: 0; give 1 or more"),
    ],
)
def test_bad_options_are_named(folder, capsys, arguments, message):
    assert main(["study", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_field_is_found_before_anything_is_trained(folder, work, capsys):
    methods = METHODS | {"on": {"set": {"loss.orthogonality.wait": 1}}}
    (folder / "s.yaml").write_text(yaml.safe_dump(GIVEN | {"methods": methods}))
    assert main(["study", "s.yaml"]) == 2
    assert re.search(r"s\.yaml: on_seed0: .*did you mean loss\.orthogonality\.weight", capsys.readouterr().err)
    assert work.done == []


def test_an_error_in_a_cell_ends_the_study_and_names_the_option_that_there_is(folder, work, monkeypatch, capsys):
    def refuse(study, cell, place):
        raise InputError("runs/s/x was started with 1, not 2; give another folder with --out")

    monkeypatch.setattr(study_verb, "train_cell", refuse)
    assert main(["study", "s.yaml"]) == 2
    assert "another folder with --runs" in capsys.readouterr().err


def test_variables_for_other_processes_do_not_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("ORTHOPROXY_NEW", raising=False)
    with study_verb._environment(OMP_NUM_THREADS="1", ORTHOPROXY_NEW="x"):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["ORTHOPROXY_NEW"]) == ("1", "x")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "ORTHOPROXY_NEW" not in os.environ


@pytest.mark.slow
def test_a_small_study_from_images_to_the_page_with_two_processes(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for number in range(12):
        (tmp_path / "photos" / f"class {number}").mkdir(parents=True)
        for copy in range(4):
            pixels = 10 * number + generator.integers(0, 120, size=(32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / f"class {number}" / f"{copy}.png")
    base = {
        "data": {"name": "folder", "root": "photos", "test_fraction": 0.4, "validation_fraction": 0.5, "workers": 0},
        "encoder": {"name": "deit_tiny_patch16_224", "weights": "none", "embedding_dim": 8, "image_size": 32},
        "training": {"epochs": 1, "batch_size": 5, "precision": "32-true"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    methods = METHODS | {"on": {"choose": {WEIGHT: [0.1, 1]}}}
    study = GIVEN | {"methods": methods, "seeds": 2, "tuning_seeds": [0], "set": {"encoder.freeze": True}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    assert main(["study", "s.yaml", "--processes", "2"]) == 0
    job = Job(read_study("s.yaml"), Place(tmp_path / "runs/s", tmp_path / "docs/studies/s"))
    job.read()
    chosen = job.chosen["on"]
    judged = {name for name, result in job.results.items() if result["test"]}
    assert judged == {f"off_seed{seed}" for seed in (0, 1)} | {Cell("on", chosen, seed).name for seed in (0, 1)}
    assert len(job.results) == 5
    assert "frozen" in (tmp_path / "docs/studies/s/index.html").read_text()
    assert "4/4" in capfd.readouterr().err
    assert list((tmp_path / "runs/s").iterdir()) == []


def test_the_images_may_lie_elsewhere_on_each_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(study_verb, "_run", jobs.append)
    assert main(["study", "s.yaml", "--data.root", "moved"]) == 0
    config = config_of_cell(jobs[0].study, Cell("off", {}, 0))
    assert config.data.root == str(folder / "moved")
    assert "data.root" not in changed_options(config)  # so results from different machines go together
