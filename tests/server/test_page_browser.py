"""The page in a real browser: upload, click, filter, compare; by keyboard, on a phone, and asking this server alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import COLORS, QUICK, TOKEN, make_catalog, make_halves, make_images, make_model, running

from orthoproxy.server.service import Service

WAIT = 60_000  # ms; the machine may be busy
ODD = "<b>odd ${1+1} {{name}}"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served") / "images"
    make_images(root)
    (root / ODD).mkdir()
    Image.new("RGB", (40, 40), "purple").save(root / ODD / "0.png")
    return root


@pytest.fixture(scope="module")
def service(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder, models = tmp_path_factory.mktemp("catalogs"), {"trained": make_model(0), "untrained": make_model(1)}
    paths = [f"{name}/{number}.png" for name in COLORS for number in range(5)] + [f"{ODD}/0.png"]
    catalogs = {name: make_catalog(folder / name, model, root, paths) for name, model in models.items()}
    return Service(catalogs, list(models.values()), QUICK)  # closed by the server of `address`


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with running(service) as address:
        yield address


@contextmanager
def opened(browser: Any, address: str, path: str = "", **options: Any) -> Iterator[Any]:
    """A page with nothing to complain about, which loads nothing from other hosts."""
    page, requests, problems = browser.new_page(**options), [], []
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address + path)
    page.wait_for_selector(".card")
    yield page
    page.close()
    assert [url for url in requests if not url.startswith((address + "/", "blob:", "data:"))] == []
    expected = ("status of 415", "status of 404 (Not Found)")  # a test uploads text, and a test deletes an image
    assert [problem for problem in problems if not any(text in problem for text in expected)] == []


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with opened(browser, address) as page:
        yield page


def labels(page: Any, column: int = 0) -> list[str]:
    return page.locator("#found section").nth(column).locator(".card .label").all_inner_texts()


def searched(page: Any) -> list[str]:
    """Wait for results; return their labels."""
    page.wait_for_selector("#found .number")
    return labels(page)


def wait_for_labels(page: Any, condition: str) -> None:
    """Wait until the labels shown meet a condition in JavaScript."""
    shown = "[...document.querySelectorAll('#found section:first-of-type .card .label')].map(one => one.innerText)"
    page.wait_for_function(f"() => {{ const labels = {shown}; return {condition}; }}")


def test_a_dropped_and_a_pasted_image_are_searched_for(page: Any, root: Path) -> None:
    content = list((root / "blue" / "0.png").read_bytes())
    give = """([bytes, way]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], way, {type: "image/png"}));
        const event = way === "drop" ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
        document.querySelector(way === "drop" ? ".drop label" : "body").dispatchEvent(event);
    }"""
    for way in ("drop", "paste"):
        page.evaluate(give, [content, way])
        page.wait_for_function(f"document.querySelector('.drop .caption').textContent === '{way}'")
        assert searched(page)[0] == "blue"


def caption(page: Any, text: str) -> None:
    """Wait for the results of a query."""
    page.wait_for_function(f"document.querySelector('.drop .caption')?.textContent === '{text}'")
    page.wait_for_selector("#found .number")


def test_each_search_has_its_entry_in_the_history_and_results_a_link(page: Any, browser: Any, root: Path) -> None:
    start = page.url
    assert len(labels(page)) == 12  # samples
    page.locator(".card button", has_text="green").first.click()
    caption(page, "green")
    wait_for_labels(page, "labels[0] === 'green'")
    link, found = page.url, labels(page)
    page.set_input_files("#image", str(root / "red" / "3.png"))
    wait_for_labels(page, "labels[0] === 'red'")
    assert labels(page)[:5] == ["red"] * 5
    similarities = [float(text) for text in page.locator("#found .number").all_inner_texts()]
    assert similarities[0] == pytest.approx(1, abs=1e-3) and similarities == sorted(similarities, reverse=True)
    page.locator(".card button", has_text="blue").first.click()
    wait_for_labels(page, "labels[0] === 'blue'")
    page.go_back()
    caption(page, "3.png")
    wait_for_labels(page, "labels[0] === 'red'")
    assert page.locator(".drop .shown img").evaluate("image => image.naturalWidth") == 40
    page.reload()  # the server still keeps the upload
    caption(page, "3.png")
    wait_for_labels(page, "labels[0] === 'red'")
    page.go_back()
    caption(page, "green")
    wait_for_labels(page, "labels[0] === 'green'")
    assert (page.url, labels(page)) == (link, found)
    page.go_back()
    page.wait_for_function("document.querySelector('.drop .caption').hidden")
    page.wait_for_function("!document.querySelector('#found .number')")
    assert page.url == start
    with opened(browser, link.partition("/page/")[0], path="/page/" + link.partition("/page/")[2]) as other:
        caption(other, "green")
        assert labels(other) == found


def test_it_works_under_a_prefix_with_the_token_as_a_password(browser: Any, root: Path, tmp_path: Path) -> None:
    model = make_model()
    catalog = make_catalog(tmp_path / "catalog", model, root, ["red/0.png", "blue/0.png"])
    service, password = Service({"squares": catalog}, [model], QUICK), {"username": "", "password": TOKEN}
    with (
        running(service, TOKEN, prefix="/shop/images") as address,
        opened(browser, address, path="/", http_credentials=password) as page,
    ):
        page.set_input_files("#image", str(root / "red" / "3.png"))
        assert searched(page)[0] == "red"
        page.locator(".card img").first.evaluate("image => image.decode()")
        assert page.url.startswith(f"{address}/page/")
        assert page.request.get(page.locator("#bottom a").evaluate("link => link.href")).ok


def test_an_image_that_is_gone_leaves_words(browser: Any, tmp_path: Path) -> None:
    model = make_model()
    paths = make_images(tmp_path / "images", each=1)
    catalog = make_catalog(tmp_path / "catalog", model, tmp_path / "images", paths)
    (tmp_path / "images" / "red" / "0.png").unlink()
    with running(Service({"squares": catalog}, [model], QUICK)) as address, opened(browser, address) as page:
        red = page.locator(".card", has_text="red")
        red.locator(".frame", has_text="not available").wait_for()
        red.locator("button").click()  # the embedding is still there
        assert sorted(searched(page)) == ["blue", "green", "grey"]
        assert not page.locator(".drop .shown").is_visible()


def test_the_keyboard_searches_by_a_result(page: Any) -> None:
    page.locator("#image").focus()
    page.keyboard.press("Tab")
    for _ in range(40):
        if page.evaluate("document.activeElement.matches('.card button')"):
            break
        page.keyboard.press("Tab")
    label = page.evaluate("document.activeElement.querySelector('.label').textContent")
    page.keyboard.press("Enter")
    searched(page)
    assert page.locator(".drop .caption").inner_text() == label
    assert page.locator(".card.same .label").all_inner_texts() == [label] * (0 if label == ODD else 4)


def test_options_change_the_results(page: Any) -> None:
    page.locator(".card button", has_text="green").first.click()
    assert len(searched(page)) == 12
    page.get_by_role("button", name="More filters").click()
    condition = page.get_by_label("Filter", exact=True)
    condition.fill('label != "green" and path like "%/1.png"')
    condition.press("Enter")
    wait_for_labels(page, "[...labels].sort().join() === 'blue,grey,red'")
    condition.fill('label = "green"')
    condition.press("Enter")
    page.locator("#found [role=alert]", has_text="filter").wait_for()
    condition.fill("")
    condition.press("Enter")
    wait_for_labels(page, "labels.length === 12")
    page.get_by_label("Labels").click()
    page.get_by_role("option", name="<b>odd").click()
    wait_for_labels(page, "labels.length === 1")
    assert labels(page) == [ODD]  # text from the catalog is text


def test_two_catalogs_side_by_side(page: Any) -> None:
    page.locator(".card button", has_text="blue").first.click()
    searched(page)
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="untrained").click()
    page.wait_for_selector(".lists-2")
    assert len(labels(page, 0)) == len(labels(page, 1)) == 12
    left, right = (page.locator("#found section").nth(column).bounding_box() for column in (0, 1))
    assert left["x"] + left["width"] <= right["x"] and abs(left["y"] - right["y"]) < 2
    page.set_viewport_size({"width": 390, "height": 844})  # of a phone
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_file_that_is_not_an_image_keeps_the_results_and_the_page(page: Any) -> None:
    page.locator(".card button").first.click()
    before = searched(page)
    page.set_input_files("#image", {"name": "<b>x.png", "mimeType": "image/png", "buffer": b"<svg onload='alert(1)'>"})
    page.locator(".drop [role=alert]", has_text="<b>x.png").wait_for()
    drop = """type => {
        const data = new DataTransfer();
        if (type === "Files") data.items.add(new File(["words"], "words.txt"));
        else data.items.add("words", "text/plain");
        const options = {dataTransfer: data, bubbles: true, cancelable: true};
        const events = ["dragover", "drop"].map(name => new DragEvent(name, options));
        return events.map(event => !document.querySelector("#top").dispatchEvent(event));
    }"""
    assert page.evaluate(drop, "Files") == [True, True]  # prevented, also beside the box
    page.locator(".drop [role=alert]", has_text="words.txt").wait_for()
    assert page.evaluate(drop, "text") == [False, False]  # for a text field
    assert labels(page) == before


def test_images_below_the_threshold_are_no_match(page: Any, service: Service, root: Path, monkeypatch) -> None:
    served = service.served("trained")
    model = served.model
    assert model is not None
    hits = served.catalog.search(model.embed([str(root / "red" / "3.png")]), 12)[0]
    monkeypatch.setattr(model, "threshold", float(np.mean([hits[4].similarity, hits[5].similarity])))
    page.set_input_files("#image", str(root / "red" / "3.png"))
    searched(page)
    assert (page.locator(".line").count(), page.locator(".card.below").count()) == (1, 7)
    monkeypatch.setattr(model, "threshold", 1.5)
    page.set_input_files("#image", str(root / "red" / "2.png"))
    page.wait_for_function("document.querySelectorAll('.card.below').length === 12")


def drag(page: Any, box: tuple[float, float, float, float]) -> None:
    """Mark a part of the query's picture, given by shares of its sides."""
    page.wait_for_function("document.querySelector('.drop .shown img').naturalWidth === 80")
    frame = page.locator(".drop .shown img").bounding_box()
    (x, y), (width, height) = (frame["x"], frame["y"]), (frame["width"], frame["height"])
    page.mouse.move(x + box[0] * width, y + box[1] * height)
    page.mouse.down()
    page.mouse.move(x + box[2] * width, y + box[3] * height, steps=4)
    page.mouse.up()


def outlined(page: Any) -> tuple[float, float]:
    """Return left and width of the part outlined in the query's picture, as shares of its width."""
    page.locator(".drop .part").wait_for()
    part, picture = (page.locator(f".drop .shown {name}").bounding_box() for name in (".part", "img"))
    return (part["x"] - picture["x"]) / picture["width"], part["width"] / picture["width"]


def test_a_part_of_the_query_is_searched_for(browser: Any, root: Path, tmp_path: Path) -> None:
    model = make_model()
    catalog = make_halves(root, tmp_path / "catalog", model)
    with running(Service({"halves": catalog}, [model], QUICK)) as address, opened(browser, address) as page:
        page.set_input_files("#image", str(root / "left" / "halves.png"))
        searched(page)
        drag(page, (0.55, 0.1, 0.95, 0.9))
        wait_for_labels(page, "labels[0] === 'green'")
        assert outlined(page) == pytest.approx((0.55, 0.4), abs=0.02)
        drag(page, (0.4, 0.9, 0.05, 0.1))  # from the other corner
        wait_for_labels(page, "labels[0] === 'left'")
        card = page.locator(".card button", has_text="left")
        assert card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 40
        card.click()
        caption(page, "left")
        assert outlined(page) == pytest.approx((0, 0.5), abs=0.02)  # its own box in the picture
        drag(page, (0.55, 0.1, 0.95, 0.9))
        wait_for_labels(page, "labels[0] === 'green'")
        page.reload()
        wait_for_labels(page, "labels[0] === 'green'")
