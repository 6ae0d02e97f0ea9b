"""The page to search on: Gradio's controls, and results that are plain HTML."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment

from orthoproxy.catalog.filters import in_quotes, parse_condition
from orthoproxy.core.errors import InputError
from orthoproxy.server.limits import Refused
from orthoproxy.server.security import SMALL_BODY
from orthoproxy.server.service import MOST_RESULTS, Found, Service, Shelf

# Read when Gradio is imported, and when a page is made: nothing goes to Gradio's makers, and statistics of all events,
# which nobody sees here, are not made anew at each
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"
try:
    import gradio as gr
    from fastapi import FastAPI, Request
    from gradio import themes
except ImportError as error:
    raise InputError("gradio is not installed; run: pip install 'orthoproxy[search]'") from error

# All that the page needs of Gradio's routes: neither files, uploads nor proxies are among them
NAME = r"[\w-]+(?:\.[\w-]+)*"
PAGE_ROUTES = [
    "/?",
    "/config/?",
    r"/theme\.css",
    f"/(assets|static)(/{NAME})+",
    f"/(svelte|_app)(/{NAME})+",
    "/gradio_api/queue/(join|data)",
    f"/gradio_api/heartbeat/{NAME}",
    "/gradio_api/(startup-events|app_id|info|reset|cancel)/?",
]
LABELS_OFFERED = 2000
ID = re.compile(r"[0-9a-f]{32}")
PLACEHOLDER = 'label != "x" and path like "new/%"'
NONE = "none"
NOTHING = "Choose a picture, or start from one of these."


def mount_page(app: FastAPI, service: Service, path: str, may_enter: Callable[[Request], bool]) -> None:
    """Mount the page.

    Parameters
    ----------
    app
        Where to.
    service
        What it searches.
    path
        Where it is.
    may_enter
        Whether a request has the token; asked by the guard already, and by Gradio's own routes again.
    """

    async def mount() -> None:
        gr.mount_gradio_app(
            app,
            make_page(service),
            path,
            auth_dependency=lambda request: "user" if may_enter(request) else None,
            allowed_paths=[],
            blocked_paths=["/"],
            max_file_size=SMALL_BODY,  # nothing is uploaded to Gradio
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            pwa=False,
            mcp_server=False,
            footer_links=[],
            **_looks(),
        )

    # where no event loop runs, Gradio makes some that it does not close
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, mount()).result()


def make_page(service: Service) -> gr.Blocks:
    """Make the page.

    Parameters
    ----------
    service
        What it searches.
    """
    names = list(service.shelves)
    first = service.shelf(None)
    with gr.Blocks(title="Search by picture", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_top(first, names), elem_id="top", apply_default_css=False)
        with gr.Row(elem_id="columns", equal_height=False):
            query, settings = _ask(first, names)
            with gr.Column(scale=1, min_width=320):
                found = gr.HTML(_start(first), js_on_load=_text("results.js"), apply_default_css=False, elem_id="found")
        gr.HTML(
            'The same by HTTP: <a href="/openapi.json">description of the routes</a>. '
            "Pictures that you choose stay on this server, and only their embeddings are kept, for a while.",
            elem_id="bottom",
            apply_default_css=False,
        )

        def look(query: str, *settings: Any) -> str:
            return _look(service, query, *settings)

        def search_on(event: gr.EventData, *settings: Any) -> tuple[str, str]:
            query = _chosen(event)
            return query, _look(service, query, *settings)

        k, labels, diverse, where, left, right = settings
        how: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 8}
        changes = [query.submit, k.release, labels.change, diverse.change, where.submit, left.change, right.change]
        gr.on(changes, look, [query, *settings], found, trigger_mode="always_last", **how)
        found.click(search_on, settings, [query, found], **how)
    page.queue(max_size=service.limits.waiting, default_concurrency_limit=8, api_open=False)
    return page


def _ask(first: Shelf, names: list[str]) -> tuple[Any, list[Any]]:
    """The column that asks: the query, and what `_look` takes besides."""
    with gr.Column(scale=0, min_width=320, elem_id="ask"):
        query = gr.HTML(
            "",
            html_template=_text("query.html"),
            js_on_load=_text("query.js"),
            apply_default_css=False,
            elem_id="query",
        )
        k = gr.Slider(1, MOST_RESULTS, value=12, step=1, label="How many results")
        labels = gr.Dropdown(
            list(first.labels[:LABELS_OFFERED]),
            multiselect=True,
            allow_custom_value=len(first.labels) > LABELS_OFFERED,
            label="Only these labels",
            info="All of them if none is chosen",
            visible=bool(first.labels),
        )
        several = len(names) > 1
        left = gr.Dropdown(names, value=names[0], label="Catalog", visible=several)
        right = gr.Dropdown([NONE, *names], value=NONE, label="Compare with", visible=several)
        with gr.Accordion("More conditions", open=False):
            diverse = gr.Checkbox(label="One result a group or label")
            where = gr.Textbox(label="Condition", placeholder=PLACEHOLDER, max_lines=1)
    return query, [k, labels, diverse, where, left, right]


def _chosen(event: gr.EventData) -> str:
    """What was clicked on, as a query."""
    said = event._data if isinstance(event._data, dict) else {}
    return json.dumps({name: said.get(name, "") for name in ("id", "catalog", "label")})


def _look(
    service: Service,
    query: str | None,
    k: float,
    labels: Sequence[str] | None,
    diverse: bool,
    where: str | None,
    left: str,
    right: str,
) -> str:
    """Search in one catalog or in two, and write down what was found or what is wrong."""
    names = [left] if right in (NONE, left, None) else [left, right]
    try:
        if not query:
            return _start(service.shelf(left))
        asked = _read(query)
        how = {"k": int(k), "diverse": bool(diverse), "where": _where(labels or [], where or "")}
        lists = [_search(service, asked, name, how) for name in names]
    except Refused as refusal:
        return _html("", [], refusal.reason[:1].upper() + refusal.reason[1:] + ".")
    return _html(_status(lists, asked.get("label", "")), [_list(found, asked.get("label", "")) for found in lists])


def _read(query: str) -> dict[str, str]:
    """A query as the page keeps it; it comes from the browser, so nothing is taken for granted."""
    wrong = Refused(422, "this cannot be searched for; choose a picture again")
    try:
        asked = json.loads(query)
    except (ValueError, RecursionError) as error:
        raise wrong from error
    if not isinstance(asked, dict) or not all(isinstance(value, str) for value in asked.values()):
        raise wrong
    if "upload" not in asked and (not ID.fullmatch(asked.get("id", "")) or "catalog" not in asked):
        raise wrong
    return asked


def _search(service: Service, asked: dict[str, str], name: str, how: dict[str, Any]) -> Found:
    if "upload" in asked:
        return service.search_upload(asked["upload"], name, **how)
    return service.search_id(asked["id"], name, own=asked["catalog"], **how)


def _where(labels: Sequence[str], where: str) -> str | None:
    """One condition of the labels chosen and the condition typed, which is read by itself first, to name its places."""
    parts = [f"label in [{', '.join(in_quotes(str(label)) for label in labels)}]"] if labels else []
    if where.strip():
        try:
            parse_condition(where)
        except InputError as error:
            raise Refused(422, str(error)) from error
        parts.append(f"({where})")
    return " and ".join(parts) or None


def _status(lists: Sequence[Found], label: str) -> str:
    found = lists[0]
    if not found.results:
        return "Nothing meets these conditions."
    matches = sum(found.threshold is None or result.similarity >= found.threshold for result in found.results)
    time = " and ".join(f"{1000 * one.seconds:.0f} ms" for one in lists)
    if matches == 0:
        return (
            f"No match: the most similar one has {found.results[0].similarity:.2f}, below {found.threshold:.2f}. {time}"
        )
    what = f"the {len(found.results)} most similar" if len(found.results) > 1 else "the most similar"
    of = f" to an image of {label}" if label else ""
    return f"{what[:1].upper() + what[1:]}{of}, in {time}."


def _list(found: Found, label: str) -> dict[str, Any]:
    cards = []
    for rank, result in enumerate(found.results, 1):
        below = found.threshold is not None and result.similarity < found.threshold
        same = bool(label) and result.label == label
        spoken = f"Result {rank}: {result.label or result.path}, similarity {result.similarity:.2f}"
        cards.append(
            {
                "id": result.id,
                "label": result.label,
                "path": result.path,
                "similarity": result.similarity,
                "percent": round(100 * min(max(result.similarity, 0.0), 1.0)),
                "below": below,
                "opens_no_match": below and not any(card["below"] for card in cards),
                "same": same,
                "spoken": spoken + (", same label" if same else "") + (", no match" if below else "") + ". Search on.",
            }
        )
    note = f"{sum(card['same'] for card in cards)} of {len(cards)} have its label" if label and cards else ""
    return {
        "title": found.catalog,
        "catalog": found.catalog,
        "note": note,
        "threshold": found.threshold,
        "cards": cards,
    }


def _start(shelf: Shelf) -> str:
    rows = shelf.catalog.get(shelf.some)
    cards = [
        {
            "id": row["id"],
            "label": row["label"],
            "path": row["path"],
            "similarity": None,
            "spoken": f"Search for images like this one: {row['label'] or row['path']}",
        }
        for row in rows.to_dict("records")
    ]
    return _html(NOTHING, [{"title": shelf.name, "catalog": shelf.name, "note": "", "threshold": None, "cards": cards}])


def _html(status: str, lists: Sequence[dict[str, Any]], problem: str = "") -> str:
    return _template().render(status=status, lists=lists, problem=problem)


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("results.html.j2"))


def _text(name: str) -> str:
    return (resources.files("orthoproxy.server") / "templates" / name).read_text(encoding="utf-8")


def _top(first: Shelf, names: Sequence[str]) -> str:
    environment = Environment(autoescape=True)
    about = environment.from_string(
        "<h1>Search by picture</h1><p>{{ images }} images{{ labels }} in {{ name }}{{ more }}</p>"
    )
    return about.render(
        images=f"{first.images:,}",
        labels=f" of {len(first.labels):,} labels" if first.labels else "",
        name=first.name,
        more=f", and {len(names) - 1} more to compare with" if len(names) > 1 else "",
    )


def _looks() -> dict[str, Any]:
    """Colours and fonts, of which none is fetched from elsewhere."""
    theme = themes.Base(
        primary_hue=themes.colors.sky,
        neutral_hue=themes.colors.slate,
        radius_size=themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": _text("page.css")}
