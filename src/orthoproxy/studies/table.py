"""The result of a study as a table: one row a method, as numbers, Markdown or LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from orthoproxy.evaluation import Estimate
from orthoproxy.reports.text import interval, mean, metric_name, number
from orthoproxy.studies.comparison import Row
from orthoproxy.studies.plan import Options

SEEDS_LISTED = 12  # scores of more seeds stand in table.csv only
RULE = (
    "Settings were chosen on validation classes; in this study the test classes were judged once, "
    "with the chosen settings."
)
DASH = "\N{EN DASH}"


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Lay out rows as numbers, for a file that programs read: scores in percent, differences in points.

    Parameters
    ----------
    rows
        From `rows_of`, of one metric or several.

    Returns
    -------
    pandas.DataFrame
        One row a method and metric. ``scores`` and ``seeds`` are lists with spaces between.

    Examples
    --------
    >>> row = Row("plain", "recall@1", True, {}, [0, 1], [0.5, 0.6], Estimate(0.55, 0.5, 0.6))
    >>> frame_of([row])[["method", "n", "scores", "mean", "low", "high"]].to_dict("records")
    [{'method': 'plain', 'n': 2, 'scores': '50.0 60.0', 'mean': 55.0, 'low': 50.0, 'high': 60.0}]
    """
    return pd.DataFrame([_numbers(row) for row in rows])


def as_csv(rows: Sequence[Row]) -> str:
    """Write rows as CSV.

    Parameters
    ----------
    rows
        As in `frame_of`.

    Examples
    --------
    >>> as_csv([Row("plain", "recall@1", True, {})]).splitlines()[0][:36]
    'method,metric,baseline,against,setti'
    """
    return frame_of(rows).to_csv(index=False)


def as_markdown(rows: Sequence[Row]) -> str:
    """Write rows of one metric as a table in Markdown.

    Parameters
    ----------
    rows
        From `rows_of`.

    Examples
    --------
    >>> print(as_markdown([Row("plain", "recall@1", True, {})]).splitlines()[2][:35])
    | plain (baseline) |  | 0 | – | – |
    """
    shown = [{name: text.replace("|", "\\|") for name, text in displayed(row).items()} for row in rows]
    lines = ["| " + " | ".join(shown[0]) + " |", "|" + "---|" * len(shown[0])]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in shown)]) + "\n"


def as_latex(rows: Sequence[Row], caption: str) -> str:
    """Write rows of one metric as a table in LaTeX, for the package booktabs.

    Parameters
    ----------
    rows
        From `rows_of`.
    caption
        Of the table, plain text.

    Examples
    --------
    >>> print(as_latex([Row("a_b", "recall@1", True, {})], "100 % tested").splitlines()[2])
    \\caption{100 \\% tested}
    """
    below = ("setting", "each seed")
    head = [name for name in displayed(rows[0]) if name not in below]
    lines = []
    for row in rows:
        shown = displayed(row)
        more = "; ".join(f"{name}: {shown[name]}" for name in below if shown[name])
        lines += [[shown[name] for name in head], *([[more]] if more else [])]
    body = [_tex_line(line, len(head)) for line in lines]
    parts = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}", r"\footnotesize"]
    parts += [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", _tex_line(head, len(head)), r"\midrule"]
    return "\n".join([*parts, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def displayed(row: Row) -> dict[str, str]:
    """Write a row for people: column titles to text.

    Parameters
    ----------
    row
        From `rows_of`.

    Returns
    -------
    dict
        Scores in percent with one digit after the point, two where one would hide a sign; a dash where nothing is.

    Examples
    --------
    >>> displayed(Row("plain", "recall@1", True, {}, [0], [0.5], Estimate(0.5, 0.4, 0.6)))["Recall@1"]
    '50.0 [40.0, 60.0]'
    """
    gain = row.difference
    role = " (baseline)" if row.baseline else f" (against {row.against})" if row.against else ""
    listed = " ".join(number(100 * score) for score in row.scores)
    return {
        "method": row.method + role,
        "setting": setting_words(row.options),
        "seeds": str(len(row.seeds)),
        metric_name(row.metric): _percent(row.mean),
        "sd": _or_dash(100 * row.deviation),
        "each seed": listed if len(row.scores) <= SEEDS_LISTED else "in table.csv",
        "difference": _percent(gain.estimate, sign=True) if gain else DASH,
        "seeds ahead": f"{gain.ahead} of {len(gain.by_seed)}" if gain else DASH,
        "p": p_words(row.p),
        "p (Holm)": p_words(row.holm_p),
        "untrained": _or_dash(100 * row.untrained),
        "validation": _or_dash(100 * row.validation),
        "seconds": _or_dash(row.seconds, digits=0),
        "images": _or_dash(row.images, digits=0),
    }


def setting_words(setting: Options | None) -> str:
    """Write a setting in the way of the command line.

    Parameters
    ----------
    setting
        Fields and values.

    Examples
    --------
    >>> setting_words({"loss.orthogonality.weight": 0.3})
    'loss.orthogonality.weight 0.3'
    """
    return ", ".join(f"{name} {value}" for name, value in (setting or {}).items())


def p_words(p: float) -> str:
    """Write p with two significant digits.

    Parameters
    ----------
    p
        NaN where there is none.

    Examples
    --------
    >>> p_words(0.01234), p_words(0.0001), p_words(float("nan"))
    ('0.012', '0.0001', '–')
    """
    return DASH if math.isnan(p) else f"{p:.4f}" if p < 0.001 else f"{p:.2g}"


def _numbers(row: Row) -> dict[str, Any]:
    gain = row.difference
    nothing = Estimate(math.nan, math.nan, math.nan)
    score = row.mean or nothing
    change, training = gain.estimate if gain else nothing, row.gain or nothing
    return {
        "method": row.method,
        "metric": row.metric,
        "baseline": row.baseline,
        "against": row.against,
        "setting": setting_words(row.options),
        "chosen_on": "validation classes" if row.setting else "",
        "judged_on": "test classes" if row.seeds else "",
        "n": len(row.seeds),
        "seeds": " ".join(map(str, row.seeds)),
        "scores": " ".join(str(_hundredfold(score)) for score in row.scores),
        "mean": _hundredfold(score.value),
        "sd": _hundredfold(row.deviation),
        "low": _hundredfold(score.low),
        "high": _hundredfold(score.high),
        "difference": _hundredfold(change.value),
        "difference_low": _hundredfold(change.low),
        "difference_high": _hundredfold(change.high),
        "seeds_compared": len(gain.by_seed) if gain else 0,
        "seeds_ahead": gain.ahead if gain else 0,
        "p": round(row.p, 6),
        "p_holm": round(row.holm_p, 6),
        "untrained": _hundredfold(row.untrained),
        "gain": _hundredfold(training.value),
        "gain_low": _hundredfold(training.low),
        "gain_high": _hundredfold(training.high),
        "validation": _hundredfold(row.validation),
        "seconds": round(row.seconds, 1),
        "images": row.images,
    }


def _hundredfold(value: float) -> float:
    return round(100 * value, 4)


def _percent(estimate: Estimate | None, sign: bool = False) -> str:
    return f"{mean(estimate, sign)} {interval(estimate)}" if estimate else DASH


def _or_dash(value: float, digits: int = 1) -> str:
    return DASH if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _tex_line(cells: Iterable[str], columns: int) -> str:
    """Write a line of a table; a single cell runs over all columns."""
    texts = [_tex(cell) for cell in cells]
    if len(texts) == 1:
        texts = [rf"\multicolumn{{{columns}}}{{l}}{{\quad {texts[0]}}}"]
    return " & ".join(texts) + r" \\"


def _tex(text: str) -> str:
    """Escape what LaTeX would take for commands."""
    for plain, escaped in (("\\", r"\textbackslash "), *((sign, "\\" + sign) for sign in "&%$#_{}")):
        text = text.replace(plain, escaped)
    return (
        text.replace("\N{MINUS SIGN}", "$-$")
        .replace(DASH, "--")
        .replace("~", r"\textasciitilde ")
        .replace("^", r"\textasciicircum ")
    )
