"""What every page of ours must keep to, in a real browser."""

from __future__ import annotations

from typing import Any


def assert_fits_and_stays_at_home(browser: Any, address: str, width: int, scheme: str) -> None:
    """Nothing is missing or wider than the screen, no other host is asked for anything, nothing is complained of."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert complaints == []
    page.close()
