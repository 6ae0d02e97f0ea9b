"""Filters mean what was written, and no other text reaches Milvus."""

from __future__ import annotations

import re
from typing import Any

import pytest
from errors import error_of
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.catalog.filters import parse_filter, quote

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
FIELD = st.sampled_from(["label", "group", "path"])
COMPARISONS = st.one_of(
    st.tuples(FIELD, st.sampled_from(["==", "!=", "like", "not like"]), st.tuples(TEXT)),
    st.tuples(FIELD, st.sampled_from(["in", "not in"]), st.lists(TEXT, min_size=1, max_size=3).map(tuple)),
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=6,
)
STRING = r'"(?:[^"\\]|\\.)*"'


def write(condition: Any) -> str:
    """A filter as a user might write it: single quotes, little space, capitals."""
    if condition[0] == "not":
        return f"not({write(condition[1])})"
    if condition[0] in ("and", "or"):
        return f" {condition[0].upper()} ".join(f"( {write(part)} )" for part in condition[1])
    field, operator, values = condition
    quoted = ",".join("'" + re.sub(r"(['\\])", r"\\\1", value) + "'" for value in values)
    return f"{field} {operator.upper()} {f'[{quoted}]' if operator.endswith('in') else quoted}"


def holds(condition: Any, row: dict[str, str]) -> bool:
    """What a filter means, computed without a parser."""
    if condition[0] == "not":
        return not holds(condition[1], row)
    if condition[0] in ("and", "or"):
        return (all if condition[0] == "and" else any)(holds(part, row) for part in condition[1])
    field, operator, values = condition
    value = row[field]
    if operator.endswith("like"):
        return (operator == "like") == Field(value).matches(values[0])
    return (value in values) == (operator in ("==", "in"))


class Field(str):
    """A column's value in a rendered filter, where `like` is written as `@`."""

    def matches(self, pattern: str) -> bool:
        return re.fullmatch(re.escape(pattern).replace("%", ".*"), self, re.DOTALL) is not None

    __matmul__ = matches


def evaluate(rendered: str, row: dict[str, str]) -> bool:
    """Evaluate Milvus's syntax, which but for `like` is Python's."""
    code = re.sub(rf"{STRING}|\blike\b", lambda m: "@" if m[0] == "like" else m[0], rendered, flags=re.DOTALL)
    return eval(code, {"__builtins__": {}}, {name: Field(value) for name, value in row.items()})


@given(CONDITIONS, st.fixed_dictionaries({"label": TEXT, "group": TEXT, "path": TEXT}))
def test_the_rendered_filter_means_what_was_written(condition: Any, row: dict[str, str]) -> None:
    rendered = parse_filter(write(condition))
    assert evaluate(rendered, row) == holds(condition, row)
    assert evaluate(parse_filter(rendered), row) == holds(condition, row)


@given(TEXT)
def test_text_cannot_leave_its_quotes(text: str) -> None:
    assert re.fullmatch(r'"(?:[^"\\\n\r]|\\.)*"', quote(text), re.DOTALL)
    assert parse_filter(f"label == {quote(text)}") == f"label == {quote(text)}"


@pytest.mark.parametrize(
    "text",
    [
        "", "label", "label = 'x'", "label > 'x'", "label < 'x'", "label == x", "label == label", "label == _0",
        "label == 'x", "label == 'x' 'y'", "label == 'x' == 'y'", "label == ['x']", "label in 'x'", "label in []",
        "label in [label]", "label in ['x'", "label not == 'x'", "label is 'x'", "(label == 'x'", "id == 'x'",
        "embedding == 'x'", "label == 'x' or count(id)", "label == 'x'; drop", "label == 'x' or 1 == 1",
        "label == 'x' if label == 'y' else label == 'z'", "not " * 150 + "label == 'x'",
        "(" * 5000 + "label == 'x'" + ")" * 5000, "label == '" + "x" * 30_000 + "'",
    ],
)  # fmt: skip
def test_invalid_filters(text: str) -> None:
    error = error_of(parse_filter, text)
    assert error.field == "where" and error.expected


def test_and_binds_closer_than_or() -> None:
    rendered = parse_filter("label == 'a' or label == 'b' and group == 'c'")
    assert rendered == '(label == "a" or (label == "b" and group == "c"))'
