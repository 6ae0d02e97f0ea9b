"""Re-identification: the rule and scores of Market-1501, distractors, and near copies out of the gallery."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_runs import training

from orthoproxy.cli.main import main
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.data import make_table
from orthoproxy.data.audit.duplicates import find_copies
from orthoproxy.diagnosis import EmbeddedSplit
from orthoproxy.diagnosis.confusions import find_confusions
from orthoproxy.diagnosis.overfitting import recall_gap
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Scoring, evaluate, score
from orthoproxy.evaluation.evaluate import build_retrieval
from orthoproxy.runs.run_folder import RunFolder


def market1501(x: np.ndarray, pid: np.ndarray, camid: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """CMC and mAP as torchreid defines them; person -1 is a distractor."""
    gallery = np.flatnonzero(~queries)
    hits, precisions = [], []
    for query in np.flatnonzero(queries):
        kept = gallery[(pid[gallery] != pid[query]) | (camid[gallery] != camid[query])]
        order = kept[np.argsort(((x[kept] - x[query]) ** 2).sum(axis=1))]
        correct = pid[order] == pid[query]
        if not correct.any():
            continue
        hits.append(correct.cumsum() > 0)
        precisions.append((correct.cumsum() / np.arange(1, len(correct) + 1))[correct].mean())
    return {"map": np.mean(precisions), **{f"recall@{k}": np.mean([hit[k - 1] for hit in hits]) for k in (1, 5, 10)}}


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_without_ties_scores_are_those_of_market1501(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pid, camid = generator.integers(8, size=90), generator.integers(3, size=90)
    queries = generator.random(90) < 0.3
    x = generator.standard_normal((8, 6))[pid] + generator.standard_normal((90, 6))
    pid[np.flatnonzero(~queries)[:15]] = -1
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    table = make_table(
        [str(row) for row in range(90)], ["" if person < 0 else str(person) for person in pid],
        split="test", role=np.where(queries, "query", "gallery").tolist(), group=camid.astype(str).tolist(),
    )  # fmt: skip
    scoring = Scoring((1, 5, 10), map=True, exclude="own_class_in_group", bootstrap_samples=2)
    result = score(x, None, table, scoring)
    expected = market1501(x, pid, camid, queries)
    assert {name: result.model[name].value for name in expected} == pytest.approx(expected)
    assert result.classes <= 8


def test_a_distractor_is_of_no_class() -> None:
    """In a diagnosis; scores with distractors are those of Market-1501."""
    labels = ["a", "a", "b", "b", "", ""]
    roles = ["both"] * 4 + ["gallery"] * 2
    table = make_table(list("123456"), labels, split="test", role=roles)
    east, north, between = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]
    x = np.array([east, between, north, north, between, between])
    unseen = EmbeddedSplit(table, x, x)
    assert unseen.names == ["a", "b"] and unseen.labels.tolist() == [0, 0, 1, 1, -1, -1]
    found = find_confusions(build_retrieval(x, table), unseen.names)
    assert found is not None and found.wrong.value == 0.25 and not found.pairs
    gap = recall_gap(unseen, unseen)
    assert gap is not None and gap.classes == 2 and gap.unseen.value == 0.75


@pytest.fixture
def copies(tmp_path: Path) -> list[str]:
    """Of class a an image, a smaller copy and another image; of class b an image and a copy of another format."""
    seeds = {"a/1.png": 1, "a/1-small.jpg": 1, "a/2.png": 2, "b/1.png": 3, "b/1.jpg": 3}
    for name, seed in seeds.items():
        blocks = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = Image.fromarray(blocks).resize((160, 120), 3)
        image.resize((80, 60) if "small" in name else image.size).save(tmp_path / name)
    return [str(tmp_path / name) for name in seeds]


def test_near_copies_leave_the_gallery_and_are_counted(copies: list[str], tiny_encoder) -> None:
    table = make_table(copies, [Path(path).parent.name for path in copies], role=["both"] * 4 + ["gallery"])
    found = find_copies(table)
    assert found[0] == found[1] != found[3] == found[4] and found[2] == -1
    model, scoring = Embedder(tiny_encoder), Scoring(recall_at=(1,), exclude_duplicates=True, bootstrap_samples=2)
    kept, without = (evaluate(model, table, scoring=s) for s in (Scoring(bootstrap_samples=2), scoring))
    assert (kept.queries, kept.duplicate_pairs) == (4, None)
    assert (without.queries, without.queries_without_positive, without.duplicate_pairs) == (3, 1, 3)
    assert score(model.embed(copies), None, table, scoring).model == without.model


def test_a_run_with_cameras_distractors_and_copies(photos: Path, recipe: Path, copies: list[str], tmp_path) -> None:
    """Two of the test classes' images are copies; distractors are in no count, and the report calls them so."""
    listed = sorted(photos.glob("*/*.png"))
    rows = [f"{path},{path.parent.name},{'test' if number < 20 else 'train'},both,camera {number % 2}"
            for number, path in enumerate(listed)]  # fmt: skip
    rows += [f"{path},{listed[0].parent.name},test,both,camera {number}" for number, path in enumerate(copies[:2])]
    rows += [f"{copies[2]},,,gallery,", f"{copies[3]},,test,gallery,camera 1"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split,role,group", *rows]))
    data = ["--data.name", "csv", "--data.csv", tmp_path / "list.csv", "--data.allow_paths_outside_root", "true"]
    options = ["--evaluation.exclude", "own_class_in_group", "--evaluation.exclude_duplicates", "true"]
    options += ["--evaluation.map", "true", "--checkpoint_selection.metric", "map", "--workers", "0"]
    out = tmp_path / "run"
    assert main(training(recipe, photos, out, *data, *options, "--training.epochs", 1)) == 0
    scores = RunFolder(out).scores
    assert scores is not None and {"map", "minp"} < set(scores["model"])
    assert (scores["exclude"], scores["classes"], scores["queries"], scores["duplicate_pairs"]) == (
        "own_class_in_group", 4, 22, 2,
    )  # fmt: skip
    assert scores["exclude_none"]["exclude"] == "none" and "" not in RunFolder(out).load_model().classes
    assert main(["evaluate", str(out), "--json", str(tmp_path / "scores.json")]) == 0
    again = parse_json((tmp_path / "scores.json").read_text())
    assert again["model"] == scores["model"] and again["duplicate_pairs"] == 2
