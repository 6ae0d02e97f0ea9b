"""The search page: Gradio's controls, and results as plain HTML."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from typing import Any

import jinja2
from fastapi import FastAPI
from pydantic import BaseModel, Field, ValidationError

from orthoproxy.core.boxes import split_box
from orthoproxy.core.errors import InputError
from orthoproxy.server.limits import RequestError
from orthoproxy.server.schemas import ID_PATTERN, MAX_RESULTS, BoxText, SearchOptions, SearchResults
from orthoproxy.server.security import SMALL_BODY
from orthoproxy.server.service import ServedCatalog, Service

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import
import gradio as gr
from gradio import themes

# the routes of Gradio that the page uses; those that read files, take uploads or forward requests are not among them
NAME = r"[\w-]+(?:\.[\w-]+)*"
PAGE_PATHS = [
    "/?",
    "/config/?",
    r"/theme\.css",
    f"/(assets|static)(/{NAME})+",
    f"/(svelte|_app)(/{NAME})+",
    "/gradio_api/queue/(join|data)",
    f"/gradio_api/heartbeat/{NAME}",
    "/gradio_api/(startup-events|app_id|info|reset|cancel)/?",
]
MAX_LABELS = 2000  # offered in the list
NONE = "none"
OFF = ("show_error", "ssr_mode", "enable_monitoring", "run_history", "pwa", "mcp_server")
FONT = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]  # none is loaded from elsewhere
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("orthoproxy.server"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
THEME = themes.Base(primary_hue="sky", neutral_hue="slate", radius_size="lg", font=FONT, font_mono=["monospace"])


class Query(BaseModel):
    """What the page searches by: an upload, or an image of a catalog or a part of it."""

    upload: str | None = None
    id: str = Field("", pattern=f"{ID_PATTERN}|^$")
    catalog: str = ""
    label: str = ""
    box: BoxText | None = None


def template(name: str) -> str:
    """Return the text of a file in ``templates/``."""
    return (resources.files("orthoproxy.server") / "templates" / name).read_text(encoding="utf-8")


def mount_page(app: FastAPI, service: Service, path: str) -> None:
    """Mount the page on an application, without any route of Gradio that reads files."""

    async def mount() -> None:
        gr.mount_gradio_app(
            app,
            make_page(service),
            path,
            allowed_paths=[],
            blocked_paths=["/"],
            max_file_size=SMALL_BODY,  # images go to /uploads
            footer_links=[],
            theme=THEME,
            css=template("page.css"),
            **dict.fromkeys(OFF, False),
        )

    # where no event loop runs, Gradio makes some that it does not close
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, mount()).result()


def make_page(service: Service) -> gr.Blocks:
    """Build the page: a column with the query and the options, and the results."""
    first = service.served(None)
    with gr.Blocks(title="Search by image", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_render("top.html.j2", catalog=first, count=len(service.catalogs)), elem_id="top", padding=False)
        with gr.Row(elem_id="columns", equal_height=False):
            query, controls = _make_controls(first, list(service.catalogs))
            with gr.Column(scale=1, min_width=320):
                script = template("results.js")
                results = gr.HTML(_render_samples(first), js_on_load=script, apply_default_css=False, elem_id="found")
        gr.HTML(template("bottom.html"), elem_id="bottom", apply_default_css=False)

        k, labels, diverse, condition, catalog, other = controls
        options = [control.change for control in (labels, diverse, catalog, other)]
        changes = [query.submit, k.release, condition.submit, *options]
        how: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 8}
        gr.on(changes, partial(render_search, service), [query, *controls], results, trigger_mode="always_last", **how)
    page.queue(max_size=service.limits.searches, default_concurrency_limit=8, api_open=False)
    return page


def _make_controls(first: ServedCatalog, names: list[str]) -> tuple[Any, list[Any]]:
    with gr.Column(scale=0, min_width=320, elem_id="ask"):
        html, script = template("query.html"), template("query.js")
        query = gr.HTML("", html_template=html, js_on_load=script, apply_default_css=False, elem_id="query")
        k = gr.Slider(1, MAX_RESULTS, value=12, step=1, label="Number of results")
        labels = gr.Dropdown(
            list(first.labels[:MAX_LABELS]),
            multiselect=True,
            allow_custom_value=len(first.labels) > MAX_LABELS,
            label="Labels",
            info="Leave empty for all labels",
            visible=bool(first.labels),
        )
        several = len(names) > 1
        catalog = gr.Dropdown(names, value=names[0], label="Catalog", visible=several)
        other = gr.Dropdown([NONE, *names], value=NONE, label="Compare with", visible=several)
        with gr.Accordion("More filters", open=False):
            diverse = gr.Checkbox(label="One result per group or label")
            condition = gr.Textbox(label="Filter", placeholder='label != "x" and path like "new/%"', max_lines=1)
    return query, [k, labels, diverse, condition, catalog, other]


def render_search(
    service: Service,
    query: str | None,
    k: float,
    labels: Sequence[str] | None,
    diverse: bool,
    condition: str | None,
    catalog: str,
    other: str,
) -> str:
    """Search in one catalog or two, and render the results or what is wrong; all values come from a browser."""
    try:
        if not query:
            return _render_samples(service.served(catalog))
        asked = Query.model_validate_json(query)
        names = [catalog] if other in (NONE, catalog, None) else [catalog, other]
        options = SearchOptions(k=int(k), filter=condition or None, labels=list(labels or ()), diverse=diverse)
        lists = [_search(service, asked, options.model_copy(update={"catalog": name})) for name in names]
    except (InputError, ValidationError) as error:
        problem = str(error) if isinstance(error, RequestError) else "This search is not possible."
        return _render("results.html.j2", lists=[], problem=problem)
    shown = [found.model_dump() | {"places": decimal_places(found)} for found in lists]
    return _render("results.html.j2", lists=shown, label="" if asked.box else asked.label)


def decimal_places(found: SearchResults) -> int:
    """Return how many places show that each similarity below the threshold is below it; at least three."""
    below = found.results[found.matches :]
    if found.threshold is None or not below:
        return 3
    nearest, threshold = below[0].similarity, found.threshold
    return next((places for places in range(3, 17) if round(nearest, places) < round(threshold, places)), 17)


def _search(service: Service, asked: Query, options: SearchOptions) -> SearchResults:
    if asked.upload is not None:
        return service.search_upload(asked.upload, options)
    return service.search_id(asked.id, options.model_copy(update={"box": asked.box}), source=asked.catalog)


def _render_samples(served: ServedCatalog) -> str:
    rows = served.catalog.get(list(served.samples)).to_dict("records")
    for row in rows:
        row["path"], box = split_box(row["path"])
        row["box"] = box and box.text
    return _render("results.html.j2", lists=[{"catalog": served.info.name, "results": rows}], samples=True)


def _render(name: str, **values: Any) -> str:
    return TEMPLATES.get_template(name).render(**values)
