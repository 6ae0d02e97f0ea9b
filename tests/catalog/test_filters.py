"""Filters mean what was written, in memory, in LanceDB's SQL and in Milvus's expressions."""

import re
from typing import Any

import lancedb
import pyarrow as pa
import pytest
from errors import error_of
from hypothesis import example, given
from hypothesis import strategies as st

from orthoproxy.catalog.filters import And, In, Like, Not, Or, parse_filter
from orthoproxy.catalog.lance import matches, to_sql
from orthoproxy.catalog.milvus import to_expression

SHORT = st.text("ab%_\\\\'\n", max_size=3)  # of which some match
TEXT = SHORT | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
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
    if operator.endswith("like"):
        pattern = ".*".join(map(re.escape, values[0].split("%")))
        return (operator == "like") == (re.fullmatch(pattern, row[field], re.DOTALL) is not None)
    return (row[field] in values) == (operator in ("==", "in"))


class Field(str):
    """A column's value in a Milvus expression, where `like` is written as `@`."""

    def __matmul__(self, pattern: str) -> bool:
        parts = re.findall(r"\\(?s:.)|(?s:.)", pattern)
        wildcards = {"%": ".*", "_": "."}
        return re.fullmatch("".join(wildcards.get(x, re.escape(x[-1])) for x in parts), self, re.DOTALL) is not None


def evaluate(expression: str, row: dict[str, str]) -> bool:
    """Evaluate Milvus's syntax, which but for `like` is Python's."""
    code = re.sub(rf"{STRING}|\blike\b", lambda m: "@" if m[0] == "like" else m[0], expression, flags=re.DOTALL)
    return eval(code, {"__builtins__": {}}, {name: Field(value) for name, value in row.items()})


ROWS = st.lists(st.fixed_dictionaries({"label": TEXT, "group": TEXT, "path": TEXT}), min_size=1, max_size=5)
BACKSLASHES = [{"label": text, "group": "", "path": ""} for text in ("a\\b.png", "a\\\\b")]


@given(CONDITIONS, ROWS)
@example(("label", "like", ("a\\b%",)), BACKSLASHES)
def test_a_filter_means_what_was_written(condition: Any, rows: list[dict[str, str]]) -> None:
    parsed, expected = parse_filter(write(condition)), [holds(condition, row) for row in rows]
    assert matches(parsed, pa.Table.from_pylist(rows)).tolist() == expected
    assert [evaluate(to_expression(parsed), row) for row in rows] == expected
    numbered = pa.Table.from_pylist([row | {"number": number} for number, row in enumerate(rows)])
    table = lancedb.connect("memory://").create_table("rows", numbered)
    found = table.search().where(to_sql(parsed)).select(["number"]).to_arrow()["number"].to_pylist()
    assert sorted(found) == [number for number, true in enumerate(expected) if true]


@pytest.mark.parametrize("text", [
    "", "label", "label = 'x'", "label > 'x'", "label == x", "label == 'x", "label == 'x' 'y'", "label == ['x']",
    "label in 'x'", "label in []", "label in [label]", "label in ['x'", "label not == 'x'", "(label == 'x'",
    "id == 'x'", "label == 'x' or count(id)", "label == 'x'; drop", "label == 'x' or 1 == 1",
    "label like = 'x'", "label like= 'x'", "label not like= 'x'", "label like like 'x'", "label like in ['x']",
    "not " * 150 + "label == 'x'", "(" * 5000 + "label == 'x'" + ")" * 5000, "label == '" + "x" * 1_000_000 + "'",
    " or ".join(["label == 'x'"] * 1001),
])  # fmt: skip
def test_invalid_filters(text: str) -> None:
    error = error_of(parse_filter, text)
    assert error.field == "where" and error.expected


def test_and_binds_closer_than_or_and_percent_signs_and_others_are_escaped() -> None:
    a, b, c = In("label", ("a",)), In("label", ("b",)), In("group", ("c",))
    assert parse_filter("label == 'a' or label == 'b' and group == 'c'") == Or((a, And((b, c))))
    assert parse_filter("(label == 'a' or label == 'b') and not group == 'c'") == And((Or((a, b)), Not(c)))
    assert parse_filter(r"path like '100\%_\'\\%'") == Like("path", ("100%_'\\", ""))
    assert parse_filter(r"label in ['a\nb', '50%']") == In("label", ("a\nb", "50%"))
