"""Filters on catalog rows, such as ``label != "x" and path like "2024/%"``."""

from __future__ import annotations

import ast
import re
import textwrap

from orthoproxy.core.errors import InputError

FIELDS = ("label", "group", "path")
MAX_LENGTH = 20_000  # characters
MAX_NESTING = 100  # Python's parser stops at 200
TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*') | (?P<word>\w+) | (?P<invalid>[^\s()\[\],=!])""", re.X | re.S
)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
EXPECTED = 'for example label != "x" and path like "2024/%"'
# `like` has no operator in Python's grammar, which reads the filter: it becomes `<`, and `not like` becomes `>`
COMPARISONS = {ast.Eq: "==", ast.NotEq: "!=", ast.In: "in", ast.NotIn: "in", ast.Lt: "like", ast.Gt: "like"}


def parse_filter(text: str) -> str:
    """Validate a filter and return it in Milvus's syntax, rebuilt from its parts.

    A filter compares ``label``, ``group`` and ``path`` (relative to the catalog's root) with quoted text by ``==``,
    ``!=``, ``in ["a", "b"]``, ``not in``, ``like`` (``%`` matches any characters) or ``not like``, combined with
    ``and``, ``or``, ``not`` and parentheses. A backslash escapes a quote. Raises InputError if it is invalid.

    Examples
    --------
    >>> print(parse_filter("label != 'x' and group not in ['a', 'b']"))
    (label != "x" and not (group in ["a", "b"]))
    """
    if len(text) > MAX_LENGTH:
        raise _error(f"{len(text)} characters", f"at most {MAX_LENGTH}")
    values: list[str] = []

    def encode(token: re.Match[str]) -> str:
        word = token[0].lower()
        if token["text"]:
            values.append(re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), token[0][1:-1], flags=re.S))
            return f" _{len(values) - 1} "
        if word == "like":
            return "<"
        if token[0] not in FIELDS and word not in ("and", "or", "not", "in"):
            raise _error(f"unexpected {token[0]!r} at character {token.start() + 1}")
        return f" {token[0] if token[0] in FIELDS else word} "

    code = re.sub(r"\bnot\s*<", ">", " ".join(TOKEN.sub(encode, text).split()))
    if len(re.findall(r"\(|\[|\bnot\b", code)) > MAX_NESTING:
        raise _error("too many parentheses", f"at most {MAX_NESTING}")
    try:
        return _render(ast.parse(code, mode="eval").body, values)
    except SyntaxError as error:
        raise _error(f"cannot read {textwrap.shorten(text, 80)!r}") from error


def quote(text: str) -> str:
    """Quote any text for a filter."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def _render(node: ast.expr, values: list[str]) -> str:
    match node:
        case ast.BoolOp(op=op, values=parts):
            return f"({(' and ' if isinstance(op, ast.And) else ' or ').join(_render(part, values) for part in parts)})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"not ({_render(operand, values)})"
        case ast.Compare(left=ast.Name(id=field), ops=[op], comparators=[right]) if field in FIELDS:
            several = isinstance(op, ast.In | ast.NotIn)
            if isinstance(right, ast.List) == several and type(op) in COMPARISONS:
                items = right.elts if isinstance(right, ast.List) else [right]
                names = [item.id for item in items if isinstance(item, ast.Name) and item.id not in FIELDS]
                texts = ", ".join(quote(values[int(name[1:])]) for name in names)
                if names and len(names) == len(items):
                    comparison = f"{field} {COMPARISONS[type(op)]} {f'[{texts}]' if several else texts}"
                    return f"not ({comparison})" if isinstance(op, ast.NotIn | ast.Gt) else comparison
    raise SyntaxError


def _error(problem: str, expected: str = EXPECTED) -> InputError:
    return InputError(problem, field="where", expected=expected)
