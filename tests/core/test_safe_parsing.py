"""Untrusted JSON, YAML and arrays come out as plain values or as a ValueError, in bounded time."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from orthoproxy.core.safe_parsing import MAX_CHARACTERS, _Loader, open_npy, parse_json, parse_yaml


def test_plain_values() -> None:
    assert parse_yaml("a: {x: 1}\nb: {x: 2}\n1: c\n'1': d") == {"a": {"x": 1}, "b": {"x": 2}, 1: "c", "1": "d"}
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]\nc: &c {x: 1}\nd: {<<: *c, x: 2}") == {
        "a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"x": 1}, "d": {"x": 2},
    }  # fmt: skip
    assert parse_json('{"dim": 8}') == {"dim": 8}


LAUGHS = "a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))


@pytest.mark.parametrize("text", [
    "loss: !!python/object/apply:os.system [ls]", "loss: !!python/name:os.system", "day: !!binary aGVsbG8=",
    "a: 1\na: 2", "a:\n- x: 1\n  x: 1", "[" * 100_000, "- " * 100_000, "a: " + "{a: " * 50 + "1" + "}" * 50,
    "x" * (MAX_CHARACTERS + 1), LAUGHS, MERGES, "a: &a [*a]",
], ids=lambda text: text[:20])  # fmt: skip
def test_yaml_that_is_more_than_plain_values(text: str) -> None:
    with pytest.raises(ValueError, match=r"line|characters"):
        parse_yaml(text)


class Counted(str):
    """A key that counts how often it is compared."""

    __slots__ = ()
    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return str.__eq__(self, other)


@pytest.mark.parametrize("size", [1000, 2000])
def test_duplicate_keys_are_found_with_linear_work(size: int) -> None:
    tag = "tag:yaml.org,2002:str"
    keys = [(yaml.ScalarNode(tag, Counted(f"key {i}")), yaml.ScalarNode(tag, "1")) for i in range(size)]
    Counted.comparisons = 0
    assert len(_Loader("").construct_mapping(yaml.MappingNode("tag:yaml.org,2002:map", keys))) == size
    assert Counted.comparisons <= 2 * size


@pytest.mark.parametrize("text", ["[" * 100_000, "{", ""])
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_an_array_is_mapped_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(1000))
    whole, found = path.read_bytes(), open_npy(path)
    assert isinstance(found, np.memmap) and found[-1] == 999
    np.savez(tmp_path / "archive.npz", a=np.arange(3))
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    archives = [(tmp_path / name).read_bytes() for name in ("archive.npz", "objects.npy")]
    for content in (b"", b"words", whole[:100], whole[:-1], *archives):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="array"):
            open_npy(path)
    with pytest.raises(FileNotFoundError):
        open_npy(tmp_path / "nowhere.npy")


def test_too_little_memory_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "load", no_memory)
    with pytest.raises(MemoryError):
        open_npy(tmp_path / "a.npy")
