"""Self-contained HTML: templates, thumbnails and figures embedded in the page."""

from __future__ import annotations

import base64
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from orthoproxy.core.errors import InputError
from orthoproxy.data import read_image
from orthoproxy.reports.figures import COLORS, report_style
from orthoproxy.reports.text import interval, mean, metric_name, number


@dataclass(frozen=True)
class Plot:
    """A figure with its title and caption."""

    title: str
    caption: str
    svg: Markup


def load_template(name: str) -> jinja2.Template:
    """Load a template of ``reports/templates``: autoescaped, and strict about missing variables."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orthoproxy.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        interval=interval, mean=mean, number=number, metric_name=metric_name, unbroken=_keep_scores_on_one_line
    )
    environment.globals["colors"] = COLORS
    return environment.get_template(name)


def _keep_scores_on_one_line(text: str) -> str:
    return re.sub(r"(?<=\d) (?=%)|(?<=\d,) (?=\S+\])", "\N{NO-BREAK SPACE}", text)


def thumbnail_uri(path: str) -> str | None:
    """Return the thumbnail of an image as a data URI, JPEG or PNG; None if the file is missing or unreadable."""
    image = load_thumbnail(path)
    if image is None:
        return None
    # drawings have few colors: a palette keeps edges sharp where JPEG would blur them
    kinds = {"png": image.quantize(32) if image.getcolors(256) else image, "jpeg": image}
    encoded = []
    for kind, converted in kinds.items():
        buffer = io.BytesIO()
        converted.save(buffer, kind, quality=78, optimize=True)
        encoded.append(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return min(encoded, key=len)


def load_thumbnail(path: str | Path, side: int = 128) -> Image.Image | None:
    """Read an image, crop its center square, and shrink it; None if the file is missing or unreadable."""
    try:
        image = read_image(path)
    except InputError:
        return None
    side = min(side, *image.size)
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


@report_style
def figure_to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Convert a figure to inline SVG; `name` is unique on the page, `description` is for screen readers."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's font draws the text
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)  # ids must be unique on the page
    text = re.sub(r'\b(font-family|font): [^;"]*;?', _keep_font_size, text)  # text takes the page's font
    for variable, color in COLORS.items():
        text = text.replace(color, f"var(--{variable}, {color})")  # follows the page's dark mode
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}" class="plot"', 1))


def _keep_font_size(style: re.Match[str]) -> str:
    size = re.search(r"[\d.]+px", style[0])
    return f"font-size: {size[0]};" if size else ""
