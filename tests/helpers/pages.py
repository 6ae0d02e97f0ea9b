"""Checks of generated pages: what they hold, and how they behave in a browser."""

from html.parser import HTMLParser
from typing import Any


def assert_fits_and_loads_nothing(browser: Any, address: str, width: int, scheme: str) -> None:
    """The page fits the screen, all images are there, nothing is loaded from elsewhere, the console is empty."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests, messages = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert messages == []
    page.close()


class ParsedPage(HTMLParser):
    """Text, tables, elements and addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self._text: list[str] = []
        self._in_cell = False
        self.feed(page)

    @property
    def text(self) -> str:
        return " ".join("".join(self._text).replace("\N{NO-BREAK SPACE}", " ").split())

    def attributes(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        """Attributes of each element with this tag and these attributes."""
        return [a for name, a in self.elements if name == tag and wanted.items() <= a.items()]

    @property
    def loads(self) -> list[str]:
        """What a browser would fetch from elsewhere."""
        names = ("src", "srcset", "poster", "data", "action", "href", "xlink:href")
        addresses = [a[name] for _, a in self.elements for name in names if name in a]
        return [address for address in addresses if not address.startswith(("#", "data:"))]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True
        self._text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False
        self._text.append(" ")

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("style", "title"):
            return
        self._text.append(data)
        if self._in_cell:
            cells = self.tables[-1][-1]
            cells[-1] = " ".join(f"{cells[-1]} {data}".split())
