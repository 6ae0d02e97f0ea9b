"""The table's checks, and splits by hash: stable, disjoint, of the exact size."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest
from errors import error_of
from hypothesis import given
from hypothesis import strategies as st
from small_runs import make_config

from orthoproxy.data import assign_split, hold_out_validation, make_table
from orthoproxy.data.audit.describe import count_images, describe_images
from orthoproxy.data.table import evaluation_images, limit_training_images, rank_by_hash, select_split, split_images
from orthoproxy.runs.dataset import split_table

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=30, unique=True)


def table_of(names: list[str], split: list[str] | str = ""):
    """Two images a class, all first ones first."""
    labels = [*names, *names]
    splits = split if isinstance(split, str) else [*split, *split]
    return make_table([f"{number}.png" for number in range(len(labels))], labels, split=splits)


@pytest.mark.parametrize(("arguments", "field"), [
    ({"path": [], "label": []}, None), ({"label": ["a", ""]}, "label"),
    ({"label": ["a", ""], "role": "gallery", "split": "train"}, "label"),
    ({"path": ["1.png", ""]}, "path"), ({"path": ["1.png", "2\0.png"]}, "path"),
    ({"split": ["train", "trian"]}, "split"), ({"split": "Train"}, "split"), ({"role": ["query", ""]}, "role"),
    ({"label": ["x", "x"], "category": ["fruit", "milk"]}, "category"), ({"category": ["fruit", ""]}, "category"),
    ({"label": ["x", "x"], "category": ["fruit", ""]}, "category"),
])  # fmt: skip
def test_the_wrong_column_is_named(arguments: dict, field: str | None) -> None:
    assert error_of(make_table, **{"path": ["1.png", "2.png"], "label": ["a", "b"], **arguments}).field == field


@given(NAMES, st.text(max_size=5))
def test_ranks_depend_on_the_names_and_the_salt_alone(names: list[str], salt: str) -> None:
    ranked = rank_by_hash([*names, *reversed(names)], salt)
    assert ranked == sorted(names, key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).hexdigest())


@given(NAMES, st.floats(0, 1), st.floats(0, 1))
def test_the_share_of_test_classes_is_exact_and_a_larger_one_keeps_those_of_a_smaller(names, one, other) -> None:
    kept: set[str] = set()
    for share in sorted([one, other]):
        table = assign_split(table_of(names), share)
        test, train = (set(select_split(table, split).label) for split in ("test", "train"))
        rounded = round(share * len(names))
        assert len(test) == (2 if rounded == 1 and len(names) > 3 else rounded)
        assert not test & train and test | train == set(names)
        assert table.drop(columns="split").equals(table_of(names).drop(columns="split"))
        assert kept <= test
        kept = test


def test_given_splits_stay_and_take_the_other_rows_of_their_class_along() -> None:
    table = make_table(list("123456"), ["a", "a", "b", "b", "c", "d"], split=["test", "", "", "train", "", ""])
    before = table.copy()
    for share, rest in ((0.0, "train"), (1.0, "test")):
        assert assign_split(table, share).split.tolist() == ["test", "test", "train", "train", rest, rest]
    assert table.equals(before)


def test_distractors_keep_their_split_or_go_to_test_and_are_no_class() -> None:
    table = make_table(list("12345678"), ["a", "b", "c", "d", "e", *[""] * 3], role="gallery",
                       split=["test", *["train"] * 4, "", "validation", "test"])  # fmt: skip
    assigned = assign_split(table, 0.9)
    assert assigned.split.tolist() == ["test", *["train"] * 4, "test", "validation", "test"]
    assert (select_split(hold_out_validation(assigned, 0.5), "validation").label != "").sum() == 2
    assert count_images(assigned)["validation"] == {"images": 1, "classes": 0}
    assert describe_images(assigned)["images_per_class"]["validation"]["largest"] == 0
    assert describe_images(assigned)["images_per_class"]["test"]["single"] == 1


@given(NAMES, st.floats(0, 1))
def test_validation_takes_an_exact_share_of_the_training_classes_or_none(names: list[str], share: float) -> None:
    splits = ["test" if number % 3 == 0 else "train" for number in range(len(names))]
    table = table_of(names, splits)
    held = hold_out_validation(table, share)
    training = {name for name, split in zip(names, splits, strict=True) if split == "train"}
    count = round(share * len(training))
    validation = set(select_split(held, "validation").label)
    assert len(validation) == (count if count >= 2 else 0)
    assert validation <= training
    assert set(select_split(held, "train").label) == training - validation
    assert select_split(held, "test").equals(select_split(table, "test"))
    assert held.drop(columns="split").equals(table.drop(columns="split"))
    if validation:  # which stays as it is
        assert hold_out_validation(held, 0.5).equals(held)


def test_test_classes_are_named_instead_of_drawn():
    table = table_of(["a", "b", "c"])
    assert assign_split(table, 0.9, ["c", "a"]).split.tolist() == ["test", "train", "test"] * 2
    assert error_of(assign_split, table, 0.9, ["c", "d"]).field == "test_classes"


def test_an_image_has_one_row_however_many_name_it() -> None:
    paths = ["x/a.png", "b.png", "./x//a.png", "x/../b.png", "a.jpg#xywh=1,2,3,4", "a.jpg#xywh=5,6,7,8"]
    table = make_table(paths, [3] * 6, role=["query", "both", "gallery", "query", "query", "query"])
    assert table.path.tolist() == ["x/a.png", "b.png", *paths[4:]]
    assert table.role.tolist() == ["both", "both", "query", "query"] and table.index.tolist() == [0, 1, 2, 3]
    assert table.label.tolist() == ["3"] * 4


@pytest.mark.parametrize("column", ["label", "split", "group", "category"])
def test_an_image_with_two_labels_splits_or_groups_is_named(column: str) -> None:
    values = {"label": ["x", "x"], "split": ["train", "train"], "group": ["1", "1"], column: ["train", "test"]}
    error = error_of(make_table, ["a.png", "./a.png"], **values)
    assert (error.field, error.path) == (column, "a.png")


def test_a_class_in_two_splits_is_an_error_unless_images_are_split() -> None:
    table = make_table(["1.png", "2.png"], ["x", "x"], split=["train", "validation"])
    assert error_of(assign_split, table, 0.5).field == "split_by"
    assert split_images(table, Path(), 0.5, 0.5).equals(table)


def sized(sizes: dict[str, int], root: str = "/photos"):
    names = [f"{label}/{number}.png" for label, size in sizes.items() for number in range(size)]
    return make_table([f"{root}/{name}" for name in names], [name.split("/")[0] for name in names])


SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=1)


@given(SIZES, st.floats(0, 1), st.floats(0, 1))
def test_each_class_gives_an_exact_share_of_its_images_and_keeps_two(sizes: dict[str, int], test, validation) -> None:
    table = split_images(sized(sizes), Path("/photos"), test, validation)
    assert table.drop(columns="split").equals(sized(sizes).drop(columns="split"))
    assert table.split.equals(split_images(sized(sizes, "/moved"), Path("/moved"), test, validation).split)
    ranked = rank_by_hash([path.removeprefix("/photos/") for path in table.path], "image")
    for label, size in sizes.items():
        first = max(0, min(round(test * size), size - 2))
        second = max(0, min(round(validation * (size - first)), size - first - 2))
        expected = ["test"] * first + ["validation"] * second + ["train"] * (size - first - second)
        splits = dict(zip(table.path.str.removeprefix("/photos/"), table.split, strict=True))
        assert [splits[name] for name in ranked if name.startswith(label)] == expected


def test_images_of_the_source_stay_in_their_split() -> None:
    splits = ["test", "train", "validation", *[""] * 8]
    table = split_images(make_table([f"{x}.png" for x in range(11)], ["x"] * 10 + ["y"], splits), Path(), 0.5, 0.5)
    assert table.split[:3].tolist() == splits[:3] and table.split[10] == "train"
    assert (table.split == "test").sum() == 1 + round(0.5 * 7) and (table.split == "validation").sum() == 1


def test_known_classes_search_among_the_training_images() -> None:
    table = make_table(list("12345"), ["x", "y", "x", "z", "x"], ["train", "train", "test", "test", "validation"])
    found = evaluation_images(table, "test")
    assert found.path.tolist() == ["3", "4", "1", "2"]
    assert found.role.tolist() == ["query", "query", "gallery", "gallery"]
    junk = make_table(["6", "7"], ["", ""], ["test", "validation"], role="gallery")
    with_distractors = pd.concat([table, junk], ignore_index=True)
    assert evaluation_images(with_distractors, "test").equals(found) and evaluation_images(junk, "test").empty
    assert (split_images(junk.assign(split=""), Path(), 0.0, 0.0).split == "test").all()
    held_out = pd.concat([sized({"a": 9}), junk], ignore_index=True)
    assert (split_images(held_out, Path("/photos"), 0.0, 0.3).split == "validation").sum() == 4
    unseen = table[table.label != "x"].reset_index(drop=True)
    assert evaluation_images(unseen, "test").equals(select_split(unseen, "test"))


@given(SIZES, st.integers(1, 20), st.integers(0, 3))
def test_only_training_images_are_limited(sizes: dict[str, int], count: int, seed: int) -> None:
    table = split_images(sized(sizes), Path("/photos"), 0.3, 0.2)
    limited = limit_training_images(table, Path("/photos"), count, seed)
    others = table.split != "train"
    assert limited[limited.split != "train"].path.tolist() == table[others].path.tolist()
    found, available = (select_split(of, "train").label.value_counts() for of in (limited, table))
    assert found.to_dict() == available.clip(upper=count).to_dict()
    assert limited.index.equals(pd.RangeIndex(len(limited)))
    for other, more in ((table[::-1], 0), (table, 1)):  # neither the order of rows nor the count redraws
        found = limit_training_images(other, Path("/photos"), count + more, seed)
        assert {*limited.path} <= {*found.path} and (more or len(found) == len(limited))


def test_the_seed_of_a_run_draws_its_training_images(photos: Path) -> None:
    options = {"data.max_images_per_class": 2}
    tables = [split_table(make_config(photos, options | {"training.seed": seed})) for seed in (0, 1)]
    assert [select_split(table, "train").label.value_counts().unique().tolist() for table in tables] == [[2], [2]]
    assert not tables[0].equals(tables[1])
