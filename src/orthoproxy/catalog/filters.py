"""Filters on catalog rows, such as ``label != "x" and path like "2024/%"``."""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass

from orthoproxy.core.errors import InputError

FIELDS = ("label", "group", "path")
MAX_LENGTH = 1_000_000  # characters; 10,000 values of 100
MAX_COMPARISONS = 1000
MAX_PARENTHESES = 100  # and `not`; Python's parser nests up to 200
TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*') | (?P<word>\w+) | (?P<invalid>[^\s()\[\],=!])""", re.X | re.S
)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
EXPECTED = 'for example label != "x" and path like "2024/%"'


@dataclass(frozen=True)
class In:
    """The field has one of these values."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Like:
    """The field matches a pattern: these texts in their order, with any text between them."""

    field: str
    parts: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """The pattern as databases write it: ``%`` between the parts, and a backslash before their wildcards."""
        return "%".join(re.sub(r"[\\%_]", r"\\\g<0>", part) for part in self.parts)


@dataclass(frozen=True)
class Not:
    condition: Condition


@dataclass(frozen=True)
class And:
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Or:
    conditions: tuple[Condition, ...]


Condition = In | Like | Not | And | Or


def both(first: Condition | None, second: Condition | None) -> Condition | None:
    """Combine two conditions, either of which may be missing."""
    return And((first, second)) if first and second else first or second


def parse_filter(text: str) -> Condition:
    """Parse a filter.

    A filter compares ``label``, ``group`` and ``path`` (relative to the catalog's root) with quoted text by ``==``,
    ``!=``, ``in ["a", "b"]``, ``not in``, ``like`` (``%`` matches any text) or ``not like``, combined with ``and``,
    ``or``, ``not`` and parentheses. A backslash escapes a quote, a ``%`` or itself; ``\\n``, ``\\r`` and ``\\t``
    are control characters. Raises InputError if it is invalid, or has more than 1,000,000 characters, 1000 comparisons,
    or 100 parentheses and ``not``.

    Examples
    --------
    >>> parse_filter("label != 'x' and path like '2024/%'")
    And(conditions=(Not(condition=In(field='label', values=('x',))), Like(field='path', parts=('2024/', ''))))
    """
    if len(text) > MAX_LENGTH:
        raise _error(f"{len(text)} characters", f"at most {MAX_LENGTH}")
    values: list[str] = []

    def encode(token: re.Match[str]) -> str:
        word = token[0].lower()
        if token["text"]:
            values.append(token[0][1:-1])
            return f" _{len(values) - 1} "
        if word == "like":  # not in Python's grammar, which reads the filter: `like` becomes `<`, and `not like` `>`
            return " < "
        if token[0] not in FIELDS and word not in ("and", "or", "not", "in"):
            raise _error(f"unexpected {token[0]!r} at character {token.start() + 1}")
        return f" {token[0] if token[0] in FIELDS else word} "

    code = re.sub(r"\bnot\s*<", ">", " ".join(TOKEN.sub(encode, text).split()))
    if len(re.findall(r"<|>|==|!=|\bin\b", code)) > MAX_COMPARISONS:
        raise _error("too many comparisons", f"at most {MAX_COMPARISONS}")
    if len(re.findall(r"\(|\bnot\b(?! in\b)", code)) > MAX_PARENTHESES:
        raise _error("too many parentheses and `not`", f"at most {MAX_PARENTHESES}")
    try:
        return _convert(ast.parse(code, mode="eval").body, values)
    except SyntaxError as error:
        raise _error(f"cannot read {textwrap.shorten(text, 80)!r}") from error


def _convert(node: ast.expr, values: list[str]) -> Condition:
    match node:
        case ast.BoolOp(op=operator, values=nodes):
            conditions = tuple(_convert(part, values) for part in nodes)
            return And(conditions) if isinstance(operator, ast.And) else Or(conditions)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return Not(_convert(operand, values))
        case ast.Compare(left=ast.Name(id=field), ops=[operator], comparators=[right]) if field in FIELDS:
            several = isinstance(operator, ast.In | ast.NotIn)
            items = right.elts if isinstance(right, ast.List) and several else [right]
            names = [item.id for item in items if isinstance(item, ast.Name) and item.id not in FIELDS]
            if not names or len(names) < len(items) or isinstance(right, ast.List) != several:
                raise SyntaxError
            quoted = [values[int(name[1:])] for name in names]
            if isinstance(operator, ast.Lt | ast.Gt):
                condition: Condition = Like(field, tuple(_unescape(quoted[0], "\0").split("\0")))
            else:
                condition = In(field, tuple(map(_unescape, quoted)))
            return Not(condition) if isinstance(operator, ast.NotEq | ast.NotIn | ast.Gt) else condition
    raise SyntaxError


def _unescape(quoted: str, percent: str = "%") -> str:
    """Resolve backslash escapes; replace a ``%`` that is not escaped."""
    return re.sub(r"\\(.)|%", lambda m: percent if m[1] is None else ESCAPES.get(m[1], m[1]), quoted, flags=re.S)


def _error(problem: str, expected: str = EXPECTED) -> InputError:
    return InputError(problem, field="where", expected=expected)
