"""The page in a real browser: upload, click, filter, compare, by keyboard, on a phone, and asking this server alone."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import COLOURS, QUICK, TOKEN, make_catalog, make_images, make_model, running

from orthoproxy.server.service import Service

WAIT = 30_000  # ms; the machine may be busy

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served") / "images"
    make_images(root)
    (root / "<b>odd ${1+1} {{name}}").mkdir()
    Image.new("RGB", (40, 40), "purple").save(root / "<b>odd ${1+1} {{name}}" / "0.png")
    return root


@pytest.fixture(scope="module")
def service(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder, models = tmp_path_factory.mktemp("catalogs"), [make_model(0), make_model(1)]
    paths = [f"{name}/{number}.png" for name in COLOURS for number in range(5)] + ["<b>odd ${1+1} {{name}}/0.png"]
    catalogs = {
        name: make_catalog(folder / name, model, root, paths)
        for name, model in zip(("trained", "untrained"), models, strict=True)
    }
    yield Service(catalogs, models, QUICK)


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with running(service) as address:
        yield address


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with opened(browser, address) as page:
        yield page


class opened:  # noqa: N801 - a context manager
    """A page that remembers what it asked for and complained about; at the end, none of it may be of another host."""

    def __init__(self, browser: Any, address: str, wanted: str = ".card", **options: Any) -> None:
        self.address, self.wanted = address, wanted
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def __enter__(self) -> Any:
        self.page.set_default_timeout(WAIT)
        self.page.goto(self.address)
        self.page.wait_for_selector(self.wanted)
        return self.page

    def __exit__(self, *error: object) -> None:
        self.page.close()
        if error[0] is None:
            elsewhere = [url for url in self.asked if not url.startswith((self.address + "/", "blob:", "data:"))]
            assert elsewhere == []
            expected = re.compile("responded with a status of (415|401)")  # a test uploads words, one has a wrong token
            assert [text for text in self.complaints if not expected.search(text)] == []


def labels(page: Any, column: int = 0) -> list[str]:
    return page.locator("#found section").nth(column).locator(".card .label").all_inner_texts()


def searched(page: Any, column: int = 0) -> list[str]:
    """Wait for results; their labels."""
    page.wait_for_selector("#found .number")
    return labels(page, column)


def settled(page: Any, expected: Any) -> None:
    """Wait until the labels shown are as expected."""
    for _ in range(300):
        if expected(labels(page)):
            return
        page.wait_for_timeout(100)
    raise AssertionError(labels(page))


def similarities(page: Any) -> list[float]:
    return [float(text) for text in page.locator("#found .number").all_inner_texts()]


def test_it_starts_with_something_to_click(page: Any) -> None:
    assert page.title() == "Search by picture"
    assert page.locator("h1").inner_text() == "Search by picture"
    assert len(labels(page)) == 12
    assert page.evaluate("document.documentElement.lang") == "en"
    assert "21 images of 5 labels" in page.locator("#top").inner_text()


def test_an_upload_finds_its_like(page: Any, root: Path) -> None:
    page.set_input_files("#picture", str(root / "red" / "3.png"))
    assert len(searched(page)) == 12
    assert set(labels(page)[:5]) == {"red"}
    values = similarities(page)
    assert values[0] == pytest.approx(1, abs=1e-3) and values == sorted(values, reverse=True)
    assert "3.png" in page.locator(".drop .caption").inner_text()
    assert page.locator(".drop .shown img").evaluate("image => image.naturalWidth") == 56
    pictures = page.locator("#found .card img")
    pictures.first.evaluate("image => image.decode()")
    assert pictures.first.evaluate("image => image.naturalWidth") > 0
    assert re.search(r"12 most similar, in \d+ ms", page.get_by_role("status").first.inner_text())


def test_a_dropped_and_a_pasted_picture_are_searched_for(page: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (20, 20, 230)).save(file, "BMP")
    give = """(bytes, [name, way]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/bmp"}));
        const event = way === "drop" ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
        document.querySelector(way === "drop" ? ".drop label" : "body").dispatchEvent(event);
    }"""
    for way in ("drop", "paste"):
        page.evaluate(f"given => ({give})(given[0], given[1])", [list(file.getvalue()), [f"{way}.bmp", way]])
        page.wait_for_function(f"document.querySelector('.drop .caption').textContent === '{way}.bmp'")
        assert searched(page)[0] == "blue"


def test_a_click_searches_on_and_tells_who_has_the_label(page: Any) -> None:
    card = page.locator(".card button", has_text="green").first
    card.click()
    assert set(searched(page)[:4]) == {"green"}
    assert page.locator(".drop .caption").inner_text() == "green"
    assert page.locator(".card.same").count() == 4  # itself left out
    assert "4 of 12 have its label" in page.locator("#found header").inner_text()
    name = page.locator(".card button").first.get_attribute("aria-label")
    assert re.fullmatch(r"Result 1: green, similarity \d\.\d\d, same label\. Search on\.", name)
    page.locator(".card:not(.same) button").first.click()
    settled(page, lambda shown: "green" not in shown[:1])


def test_the_keyboard_is_enough(page: Any) -> None:
    page.locator("#picture").focus()
    outline = page.locator(".drop label").evaluate("label => getComputedStyle(label).outlineStyle")
    page.keyboard.press("Tab")
    assert outline == "solid"
    for _ in range(40):
        if page.evaluate("document.activeElement.matches('.card button')"):
            break
        page.keyboard.press("Tab")
    focused = "document.activeElement.querySelector('.label').textContent"
    label = page.evaluate(focused)
    page.keyboard.press("Enter")
    searched(page)
    assert page.locator(".drop .caption").inner_text() == label
    assert page.evaluate("document.activeElement.matches('.card button')")  # one is still where one was


def test_every_control_has_a_name_and_every_picture_a_description(page: Any) -> None:
    page.get_by_role("button", name="More conditions").click()
    page.get_by_label("Condition", exact=True).wait_for()
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, [role=slider], [role=listbox]")]
        .filter(one => one.checkVisibility() && !(one.labels && one.labels.length) && !one.getAttribute("aria-label")
            && !one.getAttribute("aria-labelledby") && !one.title && !one.textContent.trim() && !one.closest("label"))
        .map(one => one.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    assert page.evaluate("[...document.images].every(image => image.hasAttribute('alt'))")
    assert page.locator("#found [role=status][aria-live=polite]").count() == 1
    assert page.locator("#found ol > li").count() == 12


def test_how_many_are_shown_can_be_chosen(page: Any) -> None:
    page.locator(".card button").first.click()
    assert len(searched(page)) == 12
    number = page.get_by_label("number input for How many results")
    number.fill("5")
    number.press("Enter")
    number.press("Tab")
    settled(page, lambda shown: len(shown) == 5)


def test_labels_filter(page: Any) -> None:
    page.locator(".card button", has_text="green").first.click()
    searched(page)
    page.get_by_label("Only these labels").click()
    page.get_by_role("option", name="red").click()
    settled(page, lambda shown: set(shown) == {"red"})
    assert len(labels(page)) == 5


def test_a_condition_filters_and_says_what_is_wrong_with_it(page: Any) -> None:
    page.locator(".card button", has_text="green").first.click()
    searched(page)
    page.get_by_role("button", name="More conditions").click()
    where = page.get_by_label("Condition", exact=True)
    where.fill('label != "green" and path like "%/1.png"')
    where.press("Enter")
    settled(page, lambda shown: sorted(shown) == ["blue", "grey", "red"])
    where.fill('label = "green"')
    where.press("Enter")
    alert = page.locator("#found [role=alert]")
    alert.wait_for()
    assert "Condition: cannot read '= \"green\"' (character 7); compare with == or !=" in alert.inner_text()
    where.fill("")
    where.press("Enter")
    settled(page, lambda shown: len(shown) == 12)
    assert alert.count() == 0


def test_two_catalogs_side_by_side(page: Any) -> None:
    page.locator(".card button", has_text="blue").first.click()
    searched(page)
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="untrained").click()
    page.wait_for_selector(".lists-2")
    assert [heading.inner_text() for heading in page.locator("#found h2").all()] == ["trained", "untrained"]
    assert len(labels(page, 0)) == len(labels(page, 1)) == 12
    left, right = (page.locator("#found section").nth(column).bounding_box() for column in (0, 1))
    assert left["x"] + left["width"] <= right["x"] and abs(left["y"] - right["y"]) < 2
    page.locator("#found section").nth(1).locator(".card button").first.click()
    page.wait_for_function("document.querySelectorAll('.lists-2 .card .number').length === 24")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notes.txt", b"words", "no picture of a format"),
        ("picture.png", b"<svg onload='alert(1)'>", "no picture of a format"),
        ("<b>x.png", b"words", "<b>x.png: no picture of a format"),
    ],
)
def test_a_file_that_is_no_picture_is_told_and_nothing_is_lost(page: Any, name: str, content: bytes, says: str) -> None:
    page.locator(".card button").first.click()
    before = searched(page)
    page.set_input_files("#picture", {"name": name, "mimeType": "image/png", "buffer": content})
    problem = page.locator(".drop [role=alert]", has_text="picture")
    problem.wait_for()
    assert says in problem.inner_text()
    assert labels(page) == before


def test_text_from_the_catalog_is_text(page: Any) -> None:
    page.locator(".card button", has_text="green").first.click()
    searched(page)
    page.get_by_label("Only these labels").click()
    page.get_by_role("option", name="<b>odd").click()
    settled(page, lambda shown: shown == ["<b>odd ${1+1} {{name}}"])
    page.locator(".card button").first.click()
    page.wait_for_function("document.querySelector('.drop .caption').textContent.includes('odd')")
    assert page.locator(".drop .caption").inner_text() == "<b>odd ${1+1} {{name}}"


def test_below_the_threshold_the_page_says_no_match(
    page: Any, service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = service.shelf("trained").model
    assert model is not None
    rows = service.shelf("trained").catalog.search(model.embed([str(root / "red" / "3.png")]), 12)[0]
    middle = float(np.mean([rows[4].similarity, rows[5].similarity]))
    monkeypatch.setattr(model, "threshold", middle)
    page.set_input_files("#picture", str(root / "red" / "3.png"))
    searched(page)
    assert page.locator(".line").count() == 1
    assert page.locator(".card.below").count() == 7
    assert "the model says: no match" in page.locator(".line").inner_text()
    monkeypatch.setattr(model, "threshold", 1.5)
    page.set_input_files("#picture", str(root / "red" / "2.png"))
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('No match')")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (320, "dark"), (1280, "dark")])
def test_it_fits_narrow_screens_and_dark_rooms(browser: Any, address: str, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    with opened(browser, address, **options) as page:
        page.locator(".card button", has_text="red").first.click()
        searched(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        widths = page.locator(".card").evaluate_all("cards => cards.map(card => card.getBoundingClientRect().width)")
        assert min(widths) >= 95
        if width < 800:  # what was found is on the screen, not a long way down
            page.wait_for_timeout(500)
            top = page.locator(".status").evaluate("status => status.getBoundingClientRect().top")
            assert 0 <= top < 844 / 2
        page.get_by_label("Compare with").click()
        page.get_by_role("option", name="untrained").click()
        page.wait_for_selector(".lists-2")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in (".card .label", ".status", ".drop .ask", "h1"):
            assert contrast(page, selector) >= 4.5, selector


def contrast(page: Any, selector: str) -> float:
    """Of text with what is behind it, as WCAG 2 defines it."""
    colours = page.locator(selector).first.evaluate(
        """one => {
            const text = getComputedStyle(one).color;
            let behind = one;
            const colour = () => getComputedStyle(behind ?? document.body).backgroundColor;
            while (behind && /, 0\\)$|transparent/.test(colour())) behind = behind.parentElement;
            return [text, colour()];
        }"""
    )
    lights = []
    for colour in colours:
        levels = np.array([float(value) for value in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_a_browser_logs_in_once(browser: Any, service: Service) -> None:
    with running(service, TOKEN) as address, opened(browser, address, "#token") as page:
        page.fill("#token", "not the token at all")
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=alert]")
        page.fill("#token", TOKEN)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_selector(".card")
        page.locator(".card button").first.click()
        searched(page)
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict") and TOKEN not in str(cookie)
        page.reload()
        page.wait_for_selector(".card")  # without asking again
        assert page.evaluate("document.cookie") == ""


def test_another_page_cannot_ask(browser: Any, address: str, tmp_path: Path) -> None:
    """A page of another port of this machine, which the browser calls the same site."""
    picture = f"{address}/images/{'0' * 32}"
    (tmp_path / "evil.html").write_text(f"<img src='{picture}'><iframe src='{address}/'></iframe>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        page, answers, failed = browser.new_page(), {}, set()
        page.on("response", lambda response: answers.update({response.url: response.status}))
        page.on("requestfailed", lambda request: failed.add(request.url))
        page.goto(f"http://127.0.0.1:{other.server_port}/evil.html")
        post = "address => fetch(address, {method: 'POST', mode: 'no-cors', body: '{}'}).catch(String)"
        assert "Failed to fetch" in page.evaluate(post, f"{address}/search")
        for _ in range(200):
            if {picture, f"{address}/search"} <= failed and f"{address}/" in answers:
                break
            page.wait_for_timeout(50)
        page.close()
        other.shutdown()
    assert answers[f"{address}/"] == 403
    assert {picture, f"{address}/search"} <= failed  # the browser keeps even the refusals from the page
