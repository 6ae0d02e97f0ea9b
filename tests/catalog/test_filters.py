"""Conditions are read as written, and nothing else gets through to Milvus."""

from __future__ import annotations

import operator
import re
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.catalog.filters import Both, Comparison, Condition, Not, parse_condition, quote
from orthoproxy.core.errors import InputError

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
FIELD = st.sampled_from(["label", "group", "path"])
# plain tuples, from which the tests build: the types of what is built are checked with the help of `random`
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


def built(parts: Any) -> Condition:
    if parts[0] == "not":
        return Not(built(parts[1]))
    if parts[0] in ("and", "or"):
        return Both(parts[0], tuple(map(built, parts[1])))
    return Comparison(*parts)


def written(condition: Condition) -> str:
    """A condition as a user might write it, in single quotes and with little space."""
    if isinstance(condition, Not):
        return f"not({written(condition.condition)})"
    if isinstance(condition, Both):
        return f" {condition.word.upper()} ".join(f"( {written(part)} )" for part in condition.conditions)
    values = ",".join("'" + re.sub(r"(['\\])", r"\\\1", value) + "'" for value in condition.values)
    return f"{condition.field} {condition.operator} {f'[{values}]' if condition.operator.endswith('in') else values}"


def holds(condition: Condition, row: dict[str, str]) -> bool:
    if isinstance(condition, Not):
        return not holds(condition.condition, row)
    if isinstance(condition, Both):
        joined = operator.and_ if condition.word == "and" else operator.or_
        return reduce(joined, (holds(part, row) for part in condition.conditions))
    if condition.operator.startswith("not "):
        return not holds(Comparison(condition.field, condition.operator[4:], condition.values), row)
    value, first = row[condition.field], condition.values[0]
    if condition.operator == "like":
        return re.fullmatch(re.escape(first).replace("%", ".*"), value, re.DOTALL) is not None
    return {"==": value == first, "!=": value != first, "in": value in condition.values}[condition.operator]


@given(CONDITIONS)
def test_what_is_written_is_read(parts: Any) -> None:
    condition = built(parts)
    assert parse_condition(written(condition)) == condition


@given(CONDITIONS, st.fixed_dictionaries({"label": TEXT, "group": TEXT, "path": TEXT}))
def test_what_milvus_is_given_means_the_same(parts: Any, row: dict[str, str]) -> None:
    condition = built(parts)
    assert holds(parse_condition(str(condition)), row) == holds(condition, row)


@given(TEXT)
def test_text_cannot_end_its_own_quote(text: str) -> None:
    quoted = quote(text)
    assert re.fullmatch(r'"(?:[^"\\\n\r]|\\.)*"', quoted, re.DOTALL)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "label, group or path is missing at its end"),
        ("label", "==, !=, in, not in, like or not like is missing"),
        ("label = 'x'", "compare with == or !="),
        ("label > 'x'", "compare with == or !="),
        ("label == x", "text in quotes is missing before 'x'"),
        ("label == 'x", "the quote is not closed"),
        ("label == 'x' 'y'", "and, or, or the end is missing before"),
        ("label in 'x'", "[ is missing"),
        ("label in []", "text in quotes is missing"),
        ("label in ['x'", "] is missing at its end"),
        ("label not == 'x'", "in or like is missing"),
        ("(label == 'x'", ") is missing at its end"),
        ("id == 'x'", "no field 'id'"),
        ("embedding == 'x'", "no field 'embedding'"),
        ("label == 'x' or count(id)", "no field 'count'"),
        ("label == 'x'; drop", "cannot read"),
        ("label == 'x' or 1 == 1", "cannot read '1 == 1'"),
        ("not " * 50 + "label == 'x'", "more than 40"),
        ("(" * 5000 + "label == 'x'" + ")" * 5000, "more than 40"),
        ("label == '" + "x" * 30_000 + "'", "at most 20000"),
    ],
)
def test_bad_conditions_are_named(text: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as error:
        parse_condition(text)
    assert str(error.value).startswith("condition: ")
    assert "\n" not in str(error.value)


def test_and_binds_closer_than_or() -> None:
    read = parse_condition("label == 'a' or label == 'b' and group == 'c'")
    assert str(read) == '(label == "a") or ((label == "b") and (group == "c"))'
