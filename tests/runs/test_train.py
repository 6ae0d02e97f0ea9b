"""A whole run on a few images: what it writes, how it goes on, what it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import orthoproxy
from orthoproxy.runs import config as c
from orthoproxy.runs.build import split_table
from orthoproxy.data import select_split
from orthoproxy.core.errors import InputError
from orthoproxy.models import read_tensors
from orthoproxy.runs.recipes import read_config
from orthoproxy.runs.run_folder import Run

FILES = {
    "config.yaml",
    "metrics.jsonl",
    "evaluation.json",
    "report.html",
    "checkpoints/last.ckpt",
    "checkpoints/previous.ckpt",
    "checkpoints/best.ckpt",
    *(f"{folder}/{name}" for folder in ("model", "baseline") for name in ("config.json", "model.safetensors")),
    *(f"{folder}/{name}" for folder in ("model", "baseline") for name in ("classes.json", "README.md")),
    "model/proxies.safetensors",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Ten classes of five images: stripes of a width and colour of the class's own."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(10):
        folder = root / f"class {number}"
        folder.mkdir()
        colour = generator.integers(60, 256, size=3)
        for copy in range(5):
            stripes = (np.arange(40) // (1 + number % 5) + copy) % 2
            pixels = stripes[None, :, None] * colour + generator.integers(0, 40, size=(40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{copy}.png")
    return root


@pytest.fixture
def config(photos) -> c.Config:
    return make_config(photos)


def make_config(photos: Path) -> c.Config:
    return c.Config(
        data=c.Data(name="folder", root=str(photos), test_fraction=0.4, validation_fraction=0.34, workers=0, resize=32),
        encoder=c.Encoder(name="deit_tiny_patch16_224", weights="none", embedding_dim=8, image_size=32),
        loss=c.Loss(orthogonality=c.Orthogonality(weight=0.1)),
        training=c.Training(epochs=2, batch_size=6, log_every=1, precision="32-true"),
        evaluation=c.Evaluation(recall_at=(1, 2), draws=50),
    )


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Run:
    """One run that several tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return orthoproxy.train(make_config(photos), folder)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return read_tensors(run.folder / "model" / "model.safetensors", "")


def test_the_folder_holds_what_the_design_names(finished):
    assert {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*") if path.is_file()} == FILES


def test_the_configuration_repeats_the_run(finished, config, tmp_path):
    assert c.flat(read_config(finished.folder / "config.yaml")) == c.flat(config)
    assert finished.config.environment["torch"] == torch.__version__.partition("+")[0]
    again = orthoproxy.train(read_config(finished.folder / "config.yaml"), tmp_path / "again")
    ours, theirs = weights(again), weights(finished)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.scores | {"seconds": 0} == finished.scores | {"seconds": 0}


def test_test_and_validation_classes_get_no_proxy(finished, config):
    table = split_table(config)
    assert {split: select_split(table, split)["label"].nunique() for split in ("train", "validation", "test")} == {
        "train": 4,
        "validation": 2,
        "test": 4,
    }
    assert finished.model.classes == sorted(set(select_split(table, "train")["label"]))
    assert finished.model.proxies.shape == (4, 8)


def test_scores_stand_beside_the_untrained_encoder(finished):
    scores = finished.scores
    assert (scores["queries"], scores["classes"], scores["queries_without_positive"]) == (20, 4, 0)
    for metric in ("recall@1", "recall@2", "map@r", "r_precision", "mrr"):
        trained, untrained, difference = (scores[name][metric] for name in ("model", "baseline", "difference"))
        assert difference["value"] == pytest.approx(trained["value"] - untrained["value"])
        assert all(e["low"] <= e["value"] <= e["high"] for e in (trained, untrained, difference))
    assert scores["chosen_on"] == "validation"
    assert scores["notes"] == ["Only 2 classes chose the checkpoint: the choice is unreliable."]


def test_the_untrained_encoder_has_the_starting_weights(finished, config):
    table = select_split(split_table(config), "test")
    untrained = orthoproxy.load(finished.folder / "baseline")
    scores = orthoproxy.evaluate(untrained, table, scoring=orthoproxy.runs.build.make_scoring(config.evaluation))
    assert scores.model["map@r"].value == finished.scores["baseline"]["map@r"]["value"]
    trained, start = weights(finished), read_tensors(finished.folder / "baseline" / "model.safetensors", "")
    assert not torch.equal(trained["backbone.cls_token"], start["backbone.cls_token"])


def test_the_model_kept_is_the_best_on_validation(finished):
    records = finished.records()
    validations = records["validation/map@r"].dropna()
    best = torch.load(finished.checkpoints / "best.ckpt", weights_only=True)
    assert best["position"]["best"] == validations.max()
    assert torch.equal(best["encoder"]["projection.weight"], weights(finished)["projection.weight"])
    torch.testing.assert_close(best["objective"]["loss.proxies"], finished.model.proxies)


def test_the_card_and_the_report_show_the_score(finished):
    value = f"{100 * finished.scores['trained']['recall@1']['value']:.1f}"
    assert value in (finished.folder / "model" / "README.md").read_text()
    assert value in finished.report.read_text()


def test_a_run_can_be_judged_later(finished, config, tmp_path, monkeypatch):
    embedded, embed_distributed = set(), orthoproxy.Embedder.embed_distributed

    def noting(self, images, *args, **options):
        embedded.update(images)
        return embed_distributed(self, images, *args, **options)

    monkeypatch.setattr(orthoproxy.Embedder, "embed_distributed", noting)
    run = orthoproxy.train(config, tmp_path / "run", judged=False)
    table = split_table(config)
    assert embedded == set(table["path"]) - set(select_split(table, "test")["path"])
    assert run.trained
    assert not run.finished
    assert run.scores is None
    with pytest.raises(InputError, match="holds a run already"):
        orthoproxy.train(config, run.folder, judged=False)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    assert not orthoproxy.train(config, run.folder, resume=True, judged=False).finished
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    assert orthoproxy.train(config, run.folder, resume=True).finished
    assert run.scores | {"seconds": 0} == finished.scores | {"seconds": 0}
    assert all(torch.equal(tensor, weights(finished)[name]) for name, tensor in weights(run).items())


def test_a_finished_run_is_returned_as_it_is(finished, config):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    orthoproxy.train(config, finished.folder, resume=True)
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before


def test_a_run_is_not_overwritten(finished, config):
    with pytest.raises(InputError, match="holds a run already; resume it with --resume"):
        orthoproxy.train(config, finished.folder)


def test_a_run_is_not_resumed_with_another_configuration(finished, config):
    config.training.rates.proxies = 0.5
    with pytest.raises(InputError, match=r"training\.rates\.proxies: .* was started with 0\.01, not 0\.5"):
        orthoproxy.train(config, finished.folder, resume=True)


def test_a_run_killed_in_the_second_epoch_goes_on_to_the_same_bits(finished, config, tmp_path, monkeypatch):
    killed = Run(tmp_path / "killed")
    log = Run.log

    def log_and_die(run, record):
        log(run, record)
        if record["step"] == 5:
            raise MemoryError("as if killed")

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(Run, "log", log_and_die)
        orthoproxy.train(config, killed.folder)
    orthoproxy.train(config, killed.folder, resume=True)
    assert all(torch.equal(x, weights(finished)[name]) for name, x in weights(killed).items())
    timed = ["seconds", "images_per_second"]
    assert killed.records().drop(columns=timed).equals(finished.records().drop(columns=timed))


def test_without_test_classes_the_run_says_that_it_was_not_judged(config, tmp_path):
    config.data.test_fraction = 0.0
    config.training.epochs = 1
    run = orthoproxy.train(config, tmp_path / "run")
    assert run.scores is None
    assert "no test classes" in run.report.read_text()


def test_choosing_on_the_test_classes_is_labelled(config, tmp_path):
    config.training.select_on, config.training.epochs = "test", 1
    run = orthoproxy.train(config, tmp_path / "run")
    assert run.scores["chosen_on"] == "test"
    assert "chosen on the test classes" in run.scores["notes"][0]
    assert "chosen on the test classes" in run.report.read_text()


def test_a_loss_without_proxies_trains(config, tmp_path):
    config.loss = c.Loss(name="MultiSimilarityLoss", miner=c.Miner(name="MultiSimilarityMiner"))
    config.training.epochs, config.training.per_class = 1, 2
    run = orthoproxy.train(config, tmp_path / "run")
    assert run.model.proxies is None
    assert not (run.folder / "model" / "proxies.safetensors").exists()


def test_another_proxy_loss_starts_from_the_class_means_and_keeps_them_apart(config, tmp_path):
    config.loss = c.Loss(name="SoftTripleLoss", args={"centers_per_class": 2}, orthogonality=config.loss.orthogonality)
    config.training.epochs = 1
    run = orthoproxy.train(config, tmp_path / "run")
    assert run.model.proxies.shape == (4, 8)
    assert run.records()["orthogonality"].notna().any()


def test_continuing_from_a_run_keeps_known_proxies_and_the_projection(finished, config, tmp_path, monkeypatch):
    config.encoder.weights = f"run:{finished.folder}"
    config.data.test_fraction, config.data.validation_fraction = 0.2, 0.0
    rates = config.training.rates
    rates.backbone = rates.projection = rates.proxies = 0.0
    config.training.epochs = 1
    run = orthoproxy.train(config, tmp_path / "run")
    known = dict(zip(finished.model.classes, finished.model.proxies, strict=True))
    assert set(known) < set(run.model.classes)
    for label, proxy in zip(run.model.classes, run.model.proxies, strict=True):
        if label in known:
            assert torch.equal(proxy, known[label])
        else:
            assert proxy.norm().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(weights(run)["projection.weight"], weights(finished)["projection.weight"])


def test_the_random_start_of_the_papers(config, tmp_path):
    config.initialisation = c.Initialisation(projection="random", proxies="random")
    rates = config.training.rates
    rates.backbone = rates.projection = rates.proxies = 0.0
    config.training.epochs = 1
    run = orthoproxy.train(config, tmp_path / "run")
    limit = 1 / 192**0.5  # torch's start of a linear layer
    assert 0.9 * limit < weights(run)["projection.weight"].abs().max() <= limit
    lengths = run.model.proxies.norm(dim=1)
    assert lengths.min() > 1.2  # Kaiming, fan out of 4 classes: 8 numbers of variance 1/2 each


def test_trackers_get_the_metrics(config, tmp_path):
    config.training.loggers, config.training.epochs = ["tensorboard"], 1
    run = orthoproxy.train(config, tmp_path / "run")
    assert list((run.folder / "tensorboard").rglob("events.out.tfevents.*"))


@pytest.fixture
def own_photos(config, photos, tmp_path) -> dict[str, list[Path]]:
    """A copy of the photos to damage, which the configuration then names; its files by split."""
    shutil.copytree(photos, tmp_path / "photos")
    config.data.root = str(tmp_path / "photos")
    table = split_table(config)
    return {split: [Path(path) for path in select_split(table, split)["path"]] for split in ("train", "validation", "test")}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_with_the_remedy(config, own_photos, tmp_path, workers):
    own_photos["train"][0].write_bytes(b"not an image")
    config.data.workers = workers
    named = re.escape(str(own_photos["train"][0]))
    with pytest.raises(InputError, match=rf"(?s)^{named}: .*, or set data\.on_error to skip$"):
        orthoproxy.train(config, tmp_path / "run")


def test_unreadable_images_are_left_out_of_every_split_and_listed(config, own_photos, tmp_path, capsys):
    broken, empty, short = own_photos["train"][7], own_photos["test"][0], own_photos["validation"][3]
    broken.write_bytes(b"not an image")
    empty.write_bytes(b"")
    short.write_bytes(short.read_bytes()[:500])
    config.data.on_error, config.training.epochs = "skip", 1
    run = orthoproxy.train(config, tmp_path / "run")
    listed = pd.read_csv(run.folder / "skipped.csv", index_col="path")
    assert list(listed) == ["split", "label", "reason"]
    assert listed["split"].to_dict() == {str(broken): "train", str(empty): "test", str(short): "validation"}
    assert listed.loc[str(empty)].tolist() == ["test", empty.parent.name, "the file is empty"]
    assert "unreadable images left out: 3, for example " in capsys.readouterr().err
    note = "3 unreadable images were left out; skipped.csv lists them."
    assert run.scores["queries"] == 19 and note in run.scores["notes"] and note in run.report.read_text()


def test_without_an_unreadable_image_skipping_changes_nothing(finished, config, tmp_path):
    config.data.on_error = "skip"
    run = orthoproxy.train(config, tmp_path / "run")
    assert (run.folder / "skipped.csv").read_text() == "path,split,label,reason\n"
    assert all(torch.equal(x, weights(finished)[name]) for name, x in weights(run).items())
    assert run.scores["notes"] == finished.scores["notes"]


def test_a_resumed_or_judged_run_leaves_out_what_it_left_out_at_first(config, own_photos, tmp_path, monkeypatch):
    broken = [own_photos[split][2] for split in ("train", "test")]
    kept = {path: path.read_bytes() for path in broken}
    for path in broken:
        path.write_bytes(b"not an image")
    config.data.on_error = "skip"
    whole = orthoproxy.train(config, tmp_path / "whole")
    killed, log = Run(tmp_path / "killed"), Run.log

    def log_and_die(run, record):
        log(run, record)
        if record["epoch"] > 1 and record["step"] % 3 == 2:
            raise MemoryError("as if killed")

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(Run, "log", log_and_die)
        orthoproxy.train(config, killed.folder)
    for path in broken:
        path.write_bytes(kept[path])  # can be read again, but the run goes on as it began
    with monkeypatch.context() as patched:
        patched.setattr(orthoproxy.runs.train, "find_unreadable", None)
        orthoproxy.train(config, killed.folder, resume=True)
    assert all(torch.equal(x, weights(whole)[name]) for name, x in weights(killed).items())
    assert killed.scores | {"seconds": 0} == whole.scores | {"seconds": 0}
    assert killed.scores["queries"] == 19
    whole.report.unlink()
    orthoproxy.runs.evaluate.judge(whole)
    assert "2 unreadable images were left out" in whole.report.read_text()


def test_what_skipping_leaves_too_little_of_is_an_error(config, own_photos, tmp_path):
    config.data.on_error = "skip"
    of_class = {}
    for path in own_photos["test"]:
        of_class.setdefault(path.parent, []).append(path)
    for path in (path for paths in of_class.values() for path in paths[1:]):
        path.write_bytes(b"not an image")
    with pytest.raises(InputError, match="test classes: no query has another image of its class in the gallery"):
        orthoproxy.train(config, tmp_path / "run")
    for path in own_photos["test"]:
        path.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"data: no image of test can be read, .*; check data\.root and data\.path"):
        orthoproxy.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_training_class_of_which_nothing_can_be_read_gets_no_proxy(config, own_photos, tmp_path):
    gone = own_photos["train"][0].parent
    for path in gone.iterdir():
        path.write_bytes(b"")
    config.data.on_error, config.training.epochs = "skip", 1
    run = orthoproxy.train(config, tmp_path / "run")
    assert len(run.model.classes) == 3 and gone.name not in run.model.classes
    assert "5 unreadable images were left out" in run.scores["notes"][0]


def test_a_later_start_forgets_the_list_of_one_that_failed(config, own_photos, tmp_path):
    own_photos["train"][0].write_bytes(b"not an image")
    config.data.on_error, config.encoder.embedding_dim = "skip", 4096
    with pytest.raises(InputError, match="4096 is more than"):
        orthoproxy.train(config, tmp_path / "run")
    own_photos["train"][0].write_bytes(own_photos["train"][1].read_bytes())
    config.data.on_error, config.encoder.embedding_dim, config.training.epochs = "raise", 8, 1
    run = orthoproxy.train(config, tmp_path / "run")
    assert run.unreadable is None and not (run.folder / "skipped.csv").exists()


def test_metrics_are_lines_of_json(finished):
    lines = [json.loads(line) for line in finished.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_what_would_spoil_the_judgement_is_found_before_the_training(config, tmp_path):
    listed = ["path,label,split,group"]
    for split, label in (("train", "a"), ("train", "b"), ("test", "c"), ("test", "d")):
        for number in range(3):
            path = tmp_path / f"{label}{number}.png"
            Image.new("RGB", (32, 32)).save(path)
            listed.append(f"{path.name},{label},{split},one camera")
    (tmp_path / "list.csv").write_text("\n".join(listed))
    config.data = c.Data(name="csv", path=str(tmp_path / "list.csv"), workers=0)
    with pytest.raises(InputError, match="test classes: no query has an image of its class in another group"):
        orthoproxy.train(config, tmp_path / "run")
    config.evaluation.exclude_group = False
    (tmp_path / "c0.png").unlink()
    with pytest.raises(InputError, match=r"no file .*c0\.png \(1 such\).*, or set data\.on_error to skip"):
        orthoproxy.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_failed_can_be_started_over(config, tmp_path):
    config.encoder.embedding_dim = 4096
    with pytest.raises(InputError, match="4096 is more than"):
        orthoproxy.train(config, tmp_path / "run")
    config.encoder.embedding_dim, config.training.epochs = 8, 1
    assert orthoproxy.train(config, tmp_path / "run").config.encoder.embedding_dim == 8


def test_classes_of_an_earlier_run_are_not_judged_as_unseen(finished, config, tmp_path):
    config.encoder.weights = f"run:{finished.folder}"
    config.data.test_fraction = 0.8
    with pytest.raises(InputError, match=r"was trained on 'class \d' \(\d such classes\), which are to be judged"):
        orthoproxy.train(config, tmp_path / "run")


def test_a_run_started_with_relative_paths_can_be_judged_from_anywhere(config, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    config.data.root, config.training.epochs = photos.name, 1
    run = orthoproxy.train(config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert run.config.data.root == str(photos)
    orthoproxy.runs.evaluate.judge(Run(tmp_path / "run"))


def test_without_a_folder_a_run_is_named_for_its_data(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.training.epochs = 1
    assert orthoproxy.train(config).folder.resolve() == tmp_path / "runs" / "folder"


@pytest.mark.parametrize(("capabilities", "native"), [({"avx512_bf16": True}, True), ({"avx512_bf16": False}, False)])
def test_bfloat16_is_chosen_where_the_processor_computes_it(monkeypatch, tmp_path, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    training = c.Training(accelerator="cpu")
    precision = orthoproxy.runs.fabric.make_fabric(training, tmp_path)._precision.precision
    assert precision == ("bf16-mixed" if native else "32-true")


def test_a_simplex_is_turned_towards_the_classes_and_stays_as_it_is(config, tmp_path):
    config.loss.orthogonality.weight, config.initialisation.proxies = 0.0, "simplex"
    config.training.rates = c.Rates(backbone=0.0, projection=0.0)  # so that the class means are those of the start
    run = orthoproxy.train(config, tmp_path / "run")
    embedder = orthoproxy.load(run.folder)
    proxies, count = embedder.proxies, len(embedder.classes)
    expected = torch.full((count, count), -1 / (count - 1)).fill_diagonal_(1)
    torch.testing.assert_close(proxies @ proxies.T, expected, rtol=0, atol=1e-5)
    table = select_split(split_table(config), "train")
    embeddings = torch.from_numpy(embedder.embed(table["path"].tolist()))
    own = torch.tensor([embedder.classes.index(label) for label in table["label"]])
    similarity = embeddings @ proxies.T
    assert similarity.gather(1, own[:, None]).mean() > similarity.mean() + 0.1
    assert "rate/proxies" not in run.records().columns
