"""Untrusted JSON, YAML and arrays come out as plain values or as a ValueError, in bounded time."""

import pytest
import yaml

from orthoproxy.core.safe_parsing import MAX_CHARACTERS, _Loader, dump_yaml, parse_json, parse_yaml


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


def test_text_that_looks_like_a_number_stays_text() -> None:
    values = {"a": "1e5", "b": "1e-3", "c": 1e-3, "d": "2024", "e": [2e10, "on"], "f": "3.e2"}
    assert parse_yaml(dump_yaml(values)) == values
    assert parse_yaml("[1e-3, 1.e4, .5e1, -2E+3]") == [1e-3, 1e4, 5.0, -2e3]
