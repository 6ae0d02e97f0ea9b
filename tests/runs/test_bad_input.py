"""Bad input on the command line: a line or two that name it and the remedy, exit code 2, and nothing lost."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from fault_injection import full_disk_for
from PIL import Image

from orthoproxy.cli.main import main
from orthoproxy.runs.run_folder import Run

RECIPE = """
data: {name: folder, test_fraction: 0.4, validation_fraction: 0.34, workers: 0, resize: 32}
encoder: {name: test_vit, weights: none, embedding_dim: 8, image_size: 32}
training: {epochs: 2, batch_size: 6, per_class: 2, log_every: 1, precision: 32-true}
evaluation: {recall_at: [1, 2], draws: 20}
"""
STEPS = [1, 2, 2, 3, 4, 4]  # of the records: two steps and a validation an epoch
TRAIN, TEST = "class 5", "class 1"  # where the hash of the name puts them


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of three images; nobody writes into them."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(10):
        (root / f"class {number}").mkdir()
        colour = generator.integers(60, 256, size=3)
        for copy in range(3):
            pixels = colour + generator.integers(-40, 40, size=(36, 40, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / f"class {number}" / f"{copy}.png")
    return root


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture(scope="module")
def finished(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, which no test changes."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(training(recipe, photos, out)) == 0
    assert TRAIN in Run(out).model.classes and TEST not in Run(out).model.classes
    return out


@pytest.fixture(scope="module")
def _killed(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("killed") / "run"
    log = Run.log

    def log_and_die(run: Run, record: dict) -> None:
        log(run, record)
        if record["step"] == 3:
            raise MemoryError("as if killed")

    with pytest.MonkeyPatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(Run, "log", log_and_die)
        main(training(recipe, photos, out))
    return out


@pytest.fixture
def killed(_killed: Path, tmp_path: Path) -> Path:
    """A run killed in its second epoch; a copy for each test."""
    return Path(shutil.copytree(_killed, tmp_path / "killed"))


def training(recipe: Path, root: Path, out: Path, *more: object) -> list[str]:
    return ["train", "--config", str(recipe), "--data.root", str(root), "--out", str(out), *map(str, more)]


class Refusal:
    """Run the command line and look at how it refuses."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, arguments: list[str], *words: object) -> None:
        self.capsys.readouterr()
        code = main(arguments)
        check_refusal(code, self.capsys.readouterr().err, *words)


def check_refusal(code: int, error: str, *words: object) -> None:
    assert code == 2, error
    assert "Traceback" not in error and "Warning" not in error
    message = error[error.index("orthoproxy: ") :].strip()
    assert len(message.splitlines()) <= 2, message
    for word in words:
        assert str(word) in message


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(capsys)


def run_process(arguments: list[str]) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "orthoproxy", *arguments], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


# the source


def write_list(folder: Path, *lines: str, encoding: str = "utf-8") -> list[str]:
    (folder / "list.csv").write_text("\n".join(lines), encoding=encoding)
    return ["--data.name", "csv", "--data.path", str(folder / "list.csv"), "--data.outside_root", "true"]


def listed(photos: Path, columns: str = "path,label", more: str = "") -> list[str]:
    return [columns, *(f"{path},{path.parent.name}{more}" for path in sorted(photos.rglob("*.png")))]


def missing_root(photos: Path, folder: Path) -> list[str]:
    return ["--data.root", str(folder / "nowhere")]


def file_as_root(photos: Path, folder: Path) -> list[str]:
    (folder / "nowhere").touch()
    return ["--data.root", str(folder / "nowhere")]


def empty_class(photos: Path, folder: Path) -> list[str]:
    shutil.copytree(photos, folder / "images")
    (folder / "images" / "gull").mkdir()
    (folder / "images" / "gull" / "notes.txt").touch()
    return ["--data.root", str(folder / "images")]


def classes_of_one_image(photos: Path, folder: Path) -> list[str]:
    shutil.copytree(photos, folder / "images", ignore=shutil.ignore_patterns("1.png", "2.png"))
    return ["--data.root", str(folder / "images")]


def missing_list(photos: Path, folder: Path) -> list[str]:
    return ["--data.name", "csv", "--data.path", str(folder / "list.csv")]


def list_without_a_column(photos: Path, folder: Path) -> list[str]:
    return write_list(folder, *listed(photos, columns="path,class"))


def list_without_a_label(photos: Path, folder: Path) -> list[str]:
    return write_list(folder, "path,label", "a.png,cat", "b.png,")


def list_with_a_missing_image(photos: Path, folder: Path) -> list[str]:
    return write_list(folder, *listed(photos), f"gone.png,{TRAIN}")


def list_in_another_encoding(photos: Path, folder: Path) -> list[str]:
    return write_list(folder, *listed(photos), "a.png,Möwe", encoding="latin-1")


def list_that_leads_outside(photos: Path, folder: Path) -> list[str]:
    return [*write_list(folder, *listed(photos)), "--data.outside_root", "false", "--data.root", str(folder)]


def class_in_train_and_test(photos: Path, folder: Path) -> list[str]:
    return write_list(folder, *listed(photos, "path,label,split", ",train"), f"a.png,{TRAIN},test")


SOURCES = {
    missing_root: ("data.root: ", "nowhere", "give one that has a sub-folder of images a class"),
    file_as_root: ("data.root: ", "nowhere", "give one that has a sub-folder of images a class"),
    empty_class: ("data.root: ", "images/gull", "add images or remove the folder, or let its name begin with a dot"),
    classes_of_one_image: ("no query has another image of its class", "give classes two images"),
    missing_list: ("data.path: ", "list.csv", "give the CSV file that lists the images"),
    list_without_a_column: ("data.path: ", "list.csv", "no column 'label'", "its first line must name path and label"),
    list_without_a_label: ("label: empty in row 2", "b.png", "fill it in"),
    list_in_another_encoding: ("data.path: ", "list.csv", "save it as UTF-8"),
    list_that_leads_outside: ("data.path: row 1 of ", "0.png", "data.outside_root true"),
    class_in_train_and_test: ("split: ", repr(TRAIN), "give each class to one split"),
}
TRAINED_ON = {list_with_a_missing_image: ("gone.png", "check data.root and data.path")}


@pytest.mark.parametrize("source", [*SOURCES, *TRAINED_ON], ids=lambda source: source.__name__)
def test_images_that_cannot_be_trained_on(source, photos: Path, recipe: Path, tmp_path: Path, refused: Refusal) -> None:
    out = tmp_path / "run"
    refused(training(recipe, photos, out, *source(photos, tmp_path)), *{**SOURCES, **TRAINED_ON}[source])
    assert not out.exists()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_images_that_cannot_be_judged_on(
    source, photos: Path, finished: Path, tmp_path: Path, refused: Refusal
) -> None:
    before = files(finished)
    arguments = ["--data.name", "folder", "--data.workers", "0", *source(photos, tmp_path)]
    refused(["evaluate", str(finished), *arguments, "--json", str(tmp_path / "scores.json")], *SOURCES[source])
    assert files(finished) == before and not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("label", [TRAIN, TEST])
def test_a_class_of_one_image_is_noted_and_costs_nothing_else(
    label: str, own_photos: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        (own_photos / label / f"{number}.png").unlink()
    assert main(training(recipe, own_photos, tmp_path / "run")) == 0
    printed, run = capsys.readouterr(), Run(tmp_path / "run")
    assert f"note: classes with one image only: 1, for example {label!r}" in printed.err
    assert run.scores is not None
    counts = [run.scores[name] for name in ("queries", "classes", "queries_without_positive")]
    if label == TRAIN:  # its one image is repeated in the batch
        assert label in run.model.classes and counts == [12, 4, 0]
    else:
        assert counts == [9, 3, 1]
        assert "have no other image of their class to find and are left out" in printed.out


# images


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><title>404</title></html>")


def of_100_megapixels(path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path, compress_level=1)


def decompression_bomb(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path, compress_level=1)


IMAGES = {
    cut_in_half: ("truncated", "replace the file, or leave it out"),
    empty: ("the file is empty", "replace the file, or leave it out"),
    web_page: ("not an image", "replace the file, or leave it out"),
    of_100_megapixels: ("100 megapixels, and the limit is 89", "make it smaller"),
    decompression_bomb: ("200 megapixels, and the limit is 89", "make it smaller"),
}


@pytest.mark.parametrize("spoil", IMAGES, ids=lambda spoil: spoil.__name__)
def test_an_image_to_train_on(spoil, own_photos: Path, recipe: Path, tmp_path: Path, refused: Refusal) -> None:
    broken = own_photos / TRAIN / "1.png"
    spoil(broken)
    refused(training(recipe, own_photos, tmp_path / "run"), f"{broken}: ", *IMAGES[spoil])


@pytest.mark.parametrize("spoil", IMAGES, ids=lambda spoil: spoil.__name__)
def test_an_image_to_judge_on_costs_no_training(
    spoil, own_photos: Path, photos: Path, recipe: Path, finished: Path, killed: Path, tmp_path: Path, refused: Refusal
) -> None:
    broken, out = own_photos / TEST / "1.png", tmp_path / "run"
    spoil(broken)
    refused(["evaluate", str(finished), "--data.root", str(own_photos)], f"{broken}: ", *IMAGES[spoil])
    if spoil is not empty:
        return
    refused(training(recipe, own_photos, out), f"{broken}: ", *IMAGES[spoil])
    trained = files(out / "checkpoints")
    shutil.copy(photos / TEST / "1.png", broken)
    assert main(training(recipe, own_photos, out, "--resume")) == 0
    assert files(out / "checkpoints") == trained
    assert Run(out).records()["step"].tolist() == STEPS
    assert weights(out) == weights(finished)


def test_a_large_image_is_refused_by_a_loaders_worker_without_a_warning(
    own_photos: Path, recipe: Path, tmp_path: Path
) -> None:
    broken = own_photos / TRAIN / "1.png"
    of_100_megapixels(broken)
    done = run_process(training(recipe, own_photos, tmp_path / "run", "--data.workers", 1))
    check_refusal(*done, f"{broken}: ", *IMAGES[of_100_megapixels])


# the recipe


RECIPES = {
    "training: {epoch: 3}": ("'epoch'", "did you mean training.epochs?"),
    "trainning: {epochs: 3}": ("'trainning.epochs'", "did you mean training.epochs?"),
    "loss: {orthogonality: {wieght: 0.3}}": ("wieght", "did you mean loss.orthogonality.weight?"),
    "training: {xxxxxxxxxxxxxxxxxxxx: 3}": ("'xxxxxxxxxxxxxxxxxxxx'", "--help lists the options"),
    "training: {epochs: 3": ("line 1, column 11", "a recipe is YAML such as 'training: {epochs: 3}'"),
    "training:\n\tepochs: 3": ("line 2, column 1", "a recipe is YAML such as 'training: {epochs: 3}'"),
    "- 1": ("Unexpected config", "a recipe is YAML such as 'training: {epochs: 3}'"),
    "": ("Unexpected config", "a recipe is YAML such as 'training: {epochs: 3}'"),
}


@pytest.mark.parametrize("given", ["--config {}", "--config={}"])
@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_with_a_mistake(text: str, given: str, tmp_path: Path, refused: Refusal) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text(text)
    words = given.format(path).split(" ")
    refused(["train", *words, "--out", str(tmp_path / "run")], f"{path}: ", *RECIPES[text])
    assert not (tmp_path / "run").exists()


def test_a_recipe_in_another_encoding(tmp_path: Path, refused: Refusal) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text("data: {root: Möwen}", encoding="latin-1")
    refused(["train", "--config", str(path), "--out", str(tmp_path / "run")], f"{path}: not UTF-8", "save it as UTF-8")


# the run folder


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--resume", "--training.epochs", "3"], ("training.epochs: ", "2, not 3", "resume with the same config")),
        (["--resume", "--loss.args.margin", "0.2"], ("loss.args: ", "give another folder with --out")),
        ([], ("holds a run already", "resume it with --resume, or give another folder with --out")),
    ],
)
@pytest.mark.parametrize("state", ["killed", "finished"])
def test_a_run_of_another_configuration_is_left_alone(
    state: str, more: list[str], words: tuple, recipe: Path, photos: Path, refused: Refusal, request
) -> None:
    out = request.getfixturevalue(state)
    before = files(out)
    refused(training(recipe, photos, out, *more), out, *words)
    assert files(out) == before


@pytest.mark.parametrize("name", ["checkpoints/mine.ckpt", "metrics.jsonl", "model/mine.pt", "report.html"])
def test_what_somebody_else_made_is_not_overwritten(
    name: str, recipe: Path, photos: Path, tmp_path: Path, refused: Refusal
) -> None:
    out = tmp_path / "project"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("of many days")
    (out / "notes.txt").write_text("mine")
    before = files(out)
    words = ("--out: ", out, f"holds {Path(name).parts[0]}, but no run", "give another folder")
    refused(training(recipe, photos, out), *words)
    assert files(out) == before


def test_a_configuration_of_something_else_is_not_overwritten(
    recipe: Path, photos: Path, tmp_path: Path, refused: Refusal
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch=3.ckpt").write_text("of many days")
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: 3}")
    before = files(tmp_path)
    refused(training(recipe, photos, tmp_path), tmp_path / "config.yaml", "--out: ", "give another folder")
    assert files(tmp_path) == before


@pytest.mark.parametrize(("below", "words"), [("", ("--out: ", "give a folder")), ("run", ("give another path",))])
def test_a_file_in_the_place_of_the_run_folder(
    below: str, words: tuple, recipe: Path, photos: Path, tmp_path: Path, refused: Refusal
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(training(recipe, photos, tmp_path / "notes.txt" / below), tmp_path / "notes.txt", *words)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_nobody_may_write_to(recipe: Path, photos: Path, tmp_path: Path, refused: Refusal) -> None:
    parent = tmp_path / "runs"
    parent.mkdir(mode=0o555)
    with suppress(OSError):
        (parent / "probe").mkdir()
        pytest.skip("this user may write to any folder")
    refused(training(recipe, photos, parent / "x"), parent / "x", "permission denied", "change its permissions")


def test_scores_in_the_place_of_a_folder(finished: Path, tmp_path: Path, refused: Refusal) -> None:
    refused(["evaluate", str(finished), "--json", str(tmp_path)], tmp_path, "is a directory; give another path")


def test_scores_cut_short_are_written_anew(
    recipe: Path, photos: Path, finished: Path, tmp_path: Path, refused: Refusal
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    cut_in_half(out / "evaluation.json")
    refused(training(recipe, photos, out, "--resume"), out / "evaluation.json", f"orthoproxy report {out}")
    assert main(["report", str(out)]) == 0
    assert main(training(recipe, photos, out, "--resume")) == 0


def test_a_run_goes_on_where_a_power_cut_tore_its_metrics(
    recipe: Path, photos: Path, finished: Path, killed: Path
) -> None:
    with (killed / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo\0\0\0\0\n{"step": 3, "ep')
    assert main(training(recipe, photos, killed, "--resume")) == 0
    assert Run(killed).records()["step"].tolist() == STEPS


# checkpoints


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.999])
def test_a_checkpoint_cut_short_is_left_alone(
    kept: float, recipe: Path, photos: Path, killed: Path, refused: Refusal
) -> None:
    last = killed / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[: int(kept * last.stat().st_size)])
    before = files(killed)
    remedy = "copy best.ckpt to last.ckpt to go on from the best epoch, or remove last.ckpt to train from the start"
    refused(training(recipe, photos, killed, "--resume"), last, "cut short or damaged", remedy)
    assert files(killed) == before


@pytest.mark.parametrize("remedy", ["copy", "remove"])
def test_after_the_remedy_the_run_goes_on(
    remedy: str, recipe: Path, photos: Path, finished: Path, killed: Path
) -> None:
    last, best = killed / "checkpoints" / "last.ckpt", killed / "checkpoints" / "best.ckpt"
    cut_in_half(last)
    if remedy == "copy":
        shutil.copy(best, last)
    else:
        last.unlink()
    assert main(training(recipe, photos, killed, "--resume")) == 0
    assert Run(killed).records()["step"].tolist() == STEPS
    assert weights(killed) == weights(finished)


def test_the_only_checkpoint_cut_short(recipe: Path, photos: Path, killed: Path, refused: Refusal) -> None:
    cut_in_half(killed / "checkpoints" / "last.ckpt")
    (killed / "checkpoints" / "best.ckpt").unlink()
    refused(training(recipe, photos, killed, "--resume"), "last.ckpt", "\nremove last.ckpt to train from the start")


def test_the_best_checkpoint_cut_short(
    recipe: Path, photos: Path, finished: Path, tmp_path: Path, refused: Refusal
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    (out / "report.html").unlink()
    shutil.rmtree(out / "model")  # as it is when the training has just ended
    cut_in_half(out / "checkpoints" / "best.ckpt")
    last = (out / "checkpoints" / "last.ckpt").read_bytes()
    remedy = "remove best.ckpt to keep the last epoch's model, and go on with --resume"
    refused(training(recipe, photos, out, "--resume"), "best.ckpt", remedy)
    assert (out / "checkpoints" / "last.ckpt").read_bytes() == last
    (out / "checkpoints" / "best.ckpt").unlink()
    assert main(training(recipe, photos, out, "--resume")) == 0


# the disk


NO_SPACE = "no space left on device; free some space and "


@pytest.mark.parametrize(
    "written",
    [
        "metrics.jsonl",
        "last.ckpt",
        "model.safetensors",
        "evaluation.json",
        "report.html",
    ],
)
def test_a_full_disk_costs_nothing_and_the_run_goes_on(
    written: str, recipe: Path, photos: Path, finished: Path, killed: Path, refused: Refusal
) -> None:
    before = files(killed / "checkpoints")
    with full_disk_for(written):
        refused(training(recipe, photos, killed, "--resume"), killed, NO_SPACE + "go on with --resume")
    after = files(killed / "checkpoints")
    assert {"last.ckpt", "best.ckpt"} <= set(after) <= {"last.ckpt", "previous.ckpt", "best.ckpt"}
    assert all(torch.load(killed / "checkpoints" / name, weights_only=True) for name in after)
    if written in ("metrics.jsonl", "last.ckpt"):
        assert after["last.ckpt"] == before["last.ckpt"]
    assert main(training(recipe, photos, killed, "--resume")) == 0
    assert Run(killed).records()["step"].tolist() == STEPS
    assert weights(killed) == weights(finished)
    assert not list(killed.rglob("*.tmp"))


@pytest.mark.parametrize("written", ["evaluation.json", "report.html"])
def test_a_report_on_a_full_disk_leaves_the_earlier_one(
    written: str, finished: Path, tmp_path: Path, refused: Refusal
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    before = files(out)
    with full_disk_for(written):
        refused(["report", str(out)], out, NO_SPACE + "run it again")
    after = files(out)
    assert Run(out).scores is not None
    assert {name: after[name] for name in before if name != "evaluation.json"} == {
        name: before[name] for name in before if name != "evaluation.json"
    }
    if written == "evaluation.json":
        assert after == before
    assert main(["report", str(out)]) == 0


def test_scores_on_a_full_disk_leave_the_earlier_ones(finished: Path, tmp_path: Path, refused: Refusal) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text("{}")
    with full_disk_for(tmp_path / "scores.json.tmp"):
        refused(["evaluate", str(finished), "--json", str(scores)], scores, NO_SPACE + "run it again")
    assert scores.read_text() == "{}"


def test_files_that_may_not_grow(recipe: Path, photos: Path, tmp_path: Path, refused: Refusal) -> None:
    """A quota or a file system of small files, from the first one on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        refused(training(recipe, photos, tmp_path / "run"), tmp_path / "run", "file too large; free some space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert main(training(recipe, photos, tmp_path / "run", "--resume")) == 0


def mount(*arguments: object) -> bool:
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that two checkpoints fit on, but no third."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=10m", "tmpfs", disk):
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # tensors may still be mapped into memory


@pytest.mark.slow
def test_a_real_disk_runs_full_in_a_process_of_its_own(
    recipe: Path, photos: Path, finished: Path, small_disk: Path
) -> None:
    out = small_disk / "run"
    done = run_process(training(recipe, photos, out))
    check_refusal(*done, out, NO_SPACE + "go on with --resume")
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["position"]["epoch"] == 1
    assert mount("-o", "remount,size=64m", small_disk)
    again, same = main(training(recipe, photos, out, "--resume")), weights(out) == weights(finished)
    assert again == 0 and same


# the device and the network


def test_no_gpu(
    recipe: Path, photos: Path, finished: Path, tmp_path: Path, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    remedy = "there is no cuda device here; use auto or cpu"
    arguments = training(recipe, photos, tmp_path / "run", "--training.accelerator", "cuda")
    refused(arguments, f"training.accelerator: {remedy}")
    assert not (tmp_path / "run").exists()
    refused(["evaluate", str(finished), "--accelerator", "cuda"], f"--accelerator: {remedy}")
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("accelerator: auto", "accelerator: cuda"))
    before = files(out)
    refused(["report", str(out)], f"{config}: training.accelerator: {remedy}")
    assert files(out) == before


def unknown_name(finished: Path, folder: Path) -> list[str]:
    return ["--encoder.name", "test_vti"]


def nothing_like_a_name(finished: Path, folder: Path) -> list[str]:
    return ["--encoder.name", "zzzzzzzzz"]


def run_of_another_width(finished: Path, folder: Path) -> list[str]:
    return ["--encoder.weights", f"run:{finished}", "--encoder.embedding_dim", "16"]


def run_of_another_backbone(finished: Path, folder: Path) -> list[str]:
    return ["--encoder.weights", f"run:{finished}", "--encoder.name", "test_vit2"]


def weights_of_another_backbone(finished: Path, folder: Path) -> list[str]:
    safetensors.torch.save_file({"stem.weight": torch.zeros(2)}, folder / "start.safetensors")
    return ["--encoder.weights", str(folder / "start.safetensors")]


def corrupt_safetensors(finished: Path, folder: Path) -> list[str]:
    shutil.copy(finished / "baseline" / "model.safetensors", folder / "start.safetensors")
    cut_in_half(folder / "start.safetensors")
    return ["--encoder.weights", str(folder / "start.safetensors")]


def corrupt_pth(finished: Path, folder: Path) -> list[str]:
    (folder / "start.pth").write_text("<!DOCTYPE html><html><title>404</title></html>")
    return ["--encoder.weights", str(folder / "start.pth")]


ENCODERS = {
    unknown_name: ("encoder.name: ", "'test_vti'", "did you mean test_vit"),
    nothing_like_a_name: ("encoder.name: ", "'zzzzzzzzz'", "timm.list_models() shows what there is"),
    run_of_another_width: (
        "encoder.weights: run:",
        "encoder.embedding_dim",
        "use the value that the weights were made",
    ),
    run_of_another_backbone: ("encoder.name: run:", "was trained with test_vit, not test_vit2", "use the same"),
    weights_of_another_backbone: ("encoder.weights: ", "start.safetensors", "use the value that the weights were made"),
    corrupt_safetensors: ("encoder.weights: cannot read ", "start.safetensors"),
    corrupt_pth: ("encoder.weights: cannot read ", "start.pth"),
}


@pytest.mark.parametrize("start", ENCODERS, ids=lambda start: start.__name__)
def test_an_encoder_that_cannot_start(
    start, recipe: Path, photos: Path, finished: Path, tmp_path: Path, refused: Refusal
) -> None:
    refused(training(recipe, photos, tmp_path / "run", *start(finished, tmp_path)), *ENCODERS[start])
    assert not (tmp_path / "run").exists()
