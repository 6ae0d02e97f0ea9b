"""Conditions on a catalog's rows, such as ``label != "x" and path like "2024/%"``: read, checked, written for Milvus.

Nothing of what a user typed reaches Milvus as it is: a condition is taken apart here, and put together again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orthoproxy.core.errors import InputError

FIELDS = ("label", "group", "path")
MAX_LENGTH = 20_000  # characters
MAX_DEPTH = 40  # brackets and nots within each other

TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<sign>==|!=|[()\[\],])
      | (?P<word>[A-Za-z_]\w*)
    )""",
    re.VERBOSE,
)
EXAMPLE = """for example label != "x" and path like "2024/%" """.rstrip()


@dataclass(frozen=True)
class Comparison:
    """A field beside one text or several: ``==``, ``!=``, ``in``, ``not in``, ``like`` or ``not like``."""

    field: str
    operator: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        if self.operator.startswith("not "):
            return f"not ({Comparison(self.field, self.operator.removeprefix('not '), self.values)})"
        values = ", ".join(map(quote, self.values))
        return f"{self.field} {self.operator} {f'[{values}]' if self.operator == 'in' else values}"


@dataclass(frozen=True)
class Not:
    """What a condition leaves out."""

    condition: Condition

    def __str__(self) -> str:
        return f"not ({self.condition})"


@dataclass(frozen=True)
class Both:
    """Conditions joined by ``and``, or by ``or``."""

    word: str
    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        return f" {self.word} ".join(f"({condition})" for condition in self.conditions)


Condition = Comparison | Not | Both


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Parameters
    ----------
    text
        Comparisons of ``label``, ``group`` and ``path`` (relative to the catalog's root) with text in quotes:
        ``==``, ``!=``, ``in ["a", "b"]``, ``not in``, ``like``, ``not like``; joined by ``and``, ``or``, ``not`` and
        brackets. In ``like``, ``%`` stands for any characters. A backslash puts a quote into text.

    Returns
    -------
    Condition
        Whose `str` is the condition in Milvus's own language.

    Raises
    ------
    InputError
        Naming what is wrong and where.

    Examples
    --------
    >>> print(parse_condition("label != 'x' and group not in ['a', 'b']"))
    (label != "x") and (not (group in ["a", "b"]))
    >>> parse_condition("size == 'x'")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: condition: no field 'size' (character 1); there are label, group, path
    """
    if len(text) > MAX_LENGTH:
        raise InputError(f"condition: {len(text)} characters; at most {MAX_LENGTH}")
    return _Reader(text).whole()


def quote(text: str) -> str:
    """Write text as Milvus reads it, whatever it holds.

    Parameters
    ----------
    text
        Any.

    Examples
    --------
    >>> print(quote('5" disk'))
    "5\\" disk"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def in_quotes(text: str) -> str:
    """Write text as `parse_condition` reads it, whatever it holds.

    Parameters
    ----------
    text
        Any.

    Examples
    --------
    >>> print(in_quotes('5" disk'))
    "5\\" disk"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class _Reader:
    """Goes through the words and signs of a condition, one function a rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        self.tokens: list[tuple[str, str, int]] = []
        end = len(text.rstrip())
        while self.place < end:
            found = TOKEN.match(text, self.place)
            if found is None or found.lastgroup is None:
                start = self.place + len(text[self.place :]) - len(text[self.place :].lstrip())
                raise InputError(
                    f"condition: cannot read {text[start : start + 10]!r} {_at(start)}; {_hint(text[start])}"
                )
            kind = found.lastgroup
            self.tokens.append((kind, found[kind], found.start(kind)))
            self.place = found.end()
        self.next = 0

    def whole(self) -> Condition:
        condition = self.any(0)
        if self.next < len(self.tokens):
            raise self.error("and, or, or the end")
        return condition

    def any(self, depth: int) -> Condition:
        return self.joined("or", depth)

    def joined(self, word: str, depth: int) -> Condition:
        parts = [self.joined("and", depth) if word == "or" else self.one(depth)]
        while self.takes(word):
            parts.append(self.joined("and", depth) if word == "or" else self.one(depth))
        return parts[0] if len(parts) == 1 else Both(word, tuple(parts))

    def one(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise InputError(f"condition: more than {MAX_DEPTH} brackets within each other; write it flatter")
        if self.takes("not"):
            return Not(self.one(depth + 1))
        if self.takes("("):
            inner = self.any(depth + 1)
            self.expects(")")
            return inner
        return self.comparison()

    def comparison(self) -> Comparison:
        kind, field, place = self.peek()
        if kind != "word":
            raise self.error("label, group or path")
        if field not in FIELDS:
            raise InputError(f"condition: no field {field!r} {_at(place)}; there are {', '.join(FIELDS)}")
        self.next += 1
        negated = "not " if self.takes("not") else ""
        if self.takes("in"):
            return Comparison(field, f"{negated}in", self.several())
        if self.takes("like"):
            return Comparison(field, f"{negated}like", (self.value(),))
        for sign in () if negated else ("==", "!="):
            if self.takes(sign):
                return Comparison(field, sign, (self.value(),))
        raise self.error("in or like" if negated else "==, !=, in, not in, like or not like")

    def several(self) -> tuple[str, ...]:
        self.expects("[")
        values = [self.value()]
        while self.takes(","):
            values.append(self.value())
        self.expects("]")
        return tuple(values)

    def value(self) -> str:
        kind, token, _ = self.peek()
        if kind != "text":
            raise self.error("text in quotes")
        self.next += 1
        return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)

    def peek(self) -> tuple[str, str, int]:
        return self.tokens[self.next] if self.next < len(self.tokens) else ("end", "", len(self.text))

    def takes(self, token: str) -> bool:
        kind, found, _ = self.peek()
        taken = kind in ("word", "sign") and (found.lower() if kind == "word" else found) == token
        self.next += taken
        return taken

    def expects(self, token: str) -> None:
        if not self.takes(token):
            raise self.error(token)

    def error(self, wanted: str) -> InputError:
        kind, found, place = self.peek()
        where = "at its end" if kind == "end" else f"before {found!r} {_at(place)}"
        return InputError(f"condition: {wanted} is missing {where}; {EXAMPLE}")


def _at(place: int) -> str:
    return f"(character {place + 1})"


def _hint(character: str) -> str:
    if character in "\"'":
        return "the quote is not closed"
    return "compare with == or !=" if character in "=!<>" else EXAMPLE
