"""The page in a browser without a screen: keys alone, a small screen, an upload, an error."""

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from mmtrain.serving.networks import Networks
from tests.mmtrain.example_kinds import picture
from tests.mmtrain.example_server import example_app, example_networks
from tests.waiting import BUSY_S, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is here")
WAIT_MS = 1000 * BUSY_S


@contextlib.contextmanager
def listening(networks: Networks, **settings: object) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(example_app(networks, **settings), port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(BUSY_S)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return example_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def url(networks: Networks) -> Iterator[str]:
    with listening(networks) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"], timeout=WAIT_MS
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "playwright.Browser", url: str) -> Iterator["playwright.Page"]:
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.complaints = []
    page.on("console", lambda message: page.complaints.append((message.type, message.text)))
    page.on("pageerror", lambda error: page.complaints.append(("error", str(error))))
    page.goto(url)
    page.wait_for_selector("#send:enabled")
    yield page
    refused = [
        text for kind, text in page.complaints if kind == "error" and "status of" not in text
    ]
    assert refused == []  # no script failed, and nothing was loaded from elsewhere
    context.close()


def is_within_the_screen(page: "playwright.Page") -> bool:
    width: int = page.evaluate("document.documentElement.scrollWidth")
    return width <= page.viewport_size["width"]


def focused(page: "playwright.Page") -> str:
    found: str = page.evaluate("document.activeElement.id")
    return found


def test_a_question_is_asked_and_answered_with_keys_alone(page: "playwright.Page"):
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(focused(page))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"focus cannot be seen on {reached[-1]}"
        if reached[-1] == "task":
            page.keyboard.type("names")
            page.wait_for_selector("#text-field:not([hidden])")
        if reached[-1] == "text":
            page.keyboard.type("Peru")
        if reached[-1] == "send":
            page.keyboard.press("Enter")
            break
    assert [name for name in reached if name in ("task", "text", "send")] == [
        "task",
        "text",
        "send",
    ]
    page.wait_for_selector("#answer-list article")
    assert page.text_content("#answer-list h2") == "names"
    assert "log-probability" in page.text_content("#answer-list article")
    assert "42.55 k parameters" in page.text_content("#network-list")
    assert page.text_content("#status") == "Answered."


def test_an_uploaded_picture_is_answered_with_bars_box_and_mask_on_a_small_screen(
    page: "playwright.Page", tmp_path: Path
):
    (tmp_path / "a.png").write_bytes(picture(1))
    page.select_option("#task", "modality:image")
    page.set_input_files("#file", tmp_path / "a.png")
    page.click("#send")
    page.wait_for_selector("#network-list article")
    assert page.locator("#answer-list h2").all_text_contents() == [
        "shades", "shade", "things", "action", "place", "ground"
    ]  # fmt: skip
    assert page.locator("#answer-list .bar").count() == 2 + 2 + 3 + 2
    assert page.locator("#answer-list canvas").count() == 2
    assert page.locator(".legend li").all_text_contents() == ["sky", "sea", "sand"]
    assert is_within_the_screen(page)


def test_a_mistake_is_shown_with_its_remedy(page: "playwright.Page", tmp_path: Path):
    (tmp_path / "a.png").write_bytes(picture(1)[:40])
    page.select_option("#task", "task:shade")
    page.click("#send")
    assert "there is no file" in page.text_content("#problem")
    page.set_input_files("#file", tmp_path / "a.png")
    page.click("#send")
    page.wait_for_selector("#problem:has-text('cannot be read as image')")
    assert "send a whole PNG" in page.text_content("#problem")
    assert page.get_attribute("#problem", "role") == "alert"
    assert is_within_the_screen(page)


def test_a_tree_is_read_as_a_list(page: "playwright.Page"):
    shown = page.evaluate(
        """async () => {
          const { readTree } = await import('/page/show.js');
          return readTree('(S (NP (DT the) (NN dog)) (VP (VBD slept)))');
        }"""
    )
    assert [child["label"] for child in shown["children"]] == ["NP", "VP"]
    assert shown["children"][0]["children"][1] == {"label": "NN", "word": "dog", "children": []}


def test_a_recording_becomes_a_wav_file_that_the_server_reads(page: "playwright.Page"):
    head = page.evaluate(
        """async () => {
          const { toWav } = await import('/page/record.js');
          const file = toWav(new Float32Array([0, 1, -1]));
          return Array.from(new Uint8Array(await file.arrayBuffer()));
        }"""
    )
    assert bytes(head[:4]) == b"RIFF"
    assert len(head) == 44 + 6
    assert head[44:] == [0, 0, 0xFF, 0x7F, 0x01, 0x80]


def test_a_page_without_the_token_asks_for_it(browser: "playwright.Browser", networks: Networks):
    with listening(networks, token="secret") as url:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        page.wait_for_selector("#problem:has-text('token')")
        page.fill("#token", "secret")
        page.click("#use-token")
        page.wait_for_selector("#send:enabled", timeout=WAIT_MS)
        assert page.is_hidden("#problem")
        page.close()


def test_the_api_is_described_without_assets_from_elsewhere(
    browser: "playwright.Browser", url: str
):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_default_timeout(WAIT_MS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/docs")
    page.wait_for_selector("h2:has-text('POST /v1/predict')", timeout=WAIT_MS)
    assert all(one.startswith(url) for one in asked)
    assert is_within_the_screen(page)
    page.close()
