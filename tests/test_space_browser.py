"""The page of `memslots demo --web` in headless Chromium: what a visitor sees and can do."""

import os
import re
import select
import shutil
import subprocess
import sys
import time

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="drives the browser; pip install -e '.[dev]' brings playwright"
)
pytest.importorskip("gradio", reason="the page needs memslots[demo]")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PATIENCE = 60_000  # milliseconds; a machine that runs other tests is slow

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt install chromium)"),
]

NARROW = {"width": 390, "height": 844}
WIDE = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """URL of `memslots demo --web`, which runs while the tests do, and its process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "memslots.cli", "demo", "--web"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    lines, until = [], time.monotonic() + 300
    while time.monotonic() < until and not (lines and lines[-1].startswith("Open http")):
        if select.select([process.stdout], [], [], 1)[0]:
            line = process.stdout.readline()
            lines.append(line)
            if not line:
                break
    found = re.match(r"Open (http://127\.0\.0\.1:\d+/)", lines[-1] if lines else "")
    if found is None:
        process.kill()
        process.wait()
        pytest.fail(f"no page: {lines}\n{log.read_text()[-2000:]}")
    yield found[1], log
    process.terminate()  # a shell that starts tests in the background has them ignore SIGINT
    process.wait(60)


@pytest.fixture(scope="module")
def browser(server):  # which ends after it: a page that is still open delays its end
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


class Visit:
    """A page in a window of its own, and all that it asked the network for."""

    def __init__(self, browser, url, size):
        self.context = browser.new_context(viewport=size)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.wait_for("#status", "slots")

    def wait_for(self, place, text):
        playwright.expect(self.page.locator(place)).to_contain_text(text, timeout=PATIENCE)

    def write(self, text, place="#document"):
        self.page.locator(f"{place} textarea, {place} input").first.fill(text)

    def open(self, tab):
        self.page.get_by_role("tab", name=tab).click()

    def press(self, button):
        playwright.expect(self.page.locator(button)).to_be_enabled(timeout=PATIENCE)
        self.page.locator(button).click()

    def answers(self):
        """The texts of the three cards, when all are there."""
        playwright.expect(self.page.locator("#answers dl")).to_have_count(3, timeout=PATIENCE)
        return self.page.locator("#answers .answer").all_inner_texts()

    def too_wide(self):
        width = "document.documentElement.scrollWidth - window.innerWidth"
        return self.page.evaluate(width)


@pytest.fixture(scope="module")
def wide(browser, server):
    visit = Visit(browser, server[0], WIDE)
    yield visit
    visit.context.close()


@pytest.fixture(scope="module")
def narrow(browser, server):
    visit = Visit(browser, server[0], NARROW)
    yield visit
    visit.context.close()


def test_load_and_ask(wide):
    wide.press("#ask")
    full_text, memory, nothing = wide.answers()
    assert full_text == memory == "professor"  # the example is of the embedded checkpoint's kind
    assert nothing != memory
    names = wide.page.locator("#answers h3").all_inner_texts()
    assert names == ["Full text", "Memory, rate 4", "No context"]
    for cost in ("positions", "KV cache", "slots, kept", "seconds"):
        assert cost in wide.page.locator("#answers .memory").inner_text()
    tops = {card.bounding_box()["y"] for card in wide.page.locator("#answers .card").all()}
    assert len(tops) == 1  # side by side


def test_nothing_is_asked_of_other_hosts(wide, server):
    assert len(wide.requests) > 10
    assert [url for url in wide.requests if not url.startswith((server[0], "data:", "blob:"))] == []
    assert wide.errors == []


def test_another_rate(wide):
    wide.write("She is Wendy Webb. She turned 48 this year. She speaks French and Irish.")
    wide.wait_for("#status", "Changed")
    wide.page.get_by_label("16×").click()
    wide.wait_for("#status", "→ 2 slots")
    wide.write("How old is the person?", "#question")
    wide.press("#ask")
    wide.wait_for("#answers .memory", "rate 16")
    assert wide.answers()[0] == "48"
    wide.page.get_by_label("4×", exact=True).click()
    wide.wait_for("#status", "→ 5 slots")


def test_upload(wide, tmp_path):
    file = tmp_path / "notes.md"
    file.write_text(
        "# Wendy Webb\n\n<b>Wendy</b> lives in Danang. ${7*7} 👩‍🚀 " + "She has hats. " * 60
    )
    wide.page.locator("input[type=file]").first.set_input_files(file)
    wide.open("Segments")
    wide.wait_for("#segments", "<b>Wendy</b> lives in Danang. ${7*7} 👩‍🚀 She has hats.")
    wide.wait_for("#status", "encoded once")
    assert wide.page.locator("#segments .segment").count() > 1
    assert wide.page.locator("#document textarea").input_value() == file.read_text()


def test_errors_are_shown(wide, tmp_path):
    before = wide.page.locator("#document textarea").input_value()
    for name, content, place, message in (
        ("latin.txt", "café".encode("latin-1"), "#status", "not UTF-8"),
        ("long.txt", b"word " * 5000, "#status", "at most 20,000"),
        ("paper.pdf", b"%PDF", "body", "Only .txt, .md allowed"),
        ("huge.txt", b"word " * 20_000, "body", "exceed the maximum allowed size"),
    ):
        (tmp_path / name).write_bytes(content)
        wide.page.locator("input[type=file]").first.set_input_files(tmp_path / name)
        wide.wait_for(place, message)
    assert wide.page.locator("#document textarea").input_value() == before
    assert "Traceback" not in wide.page.locator("body").inner_text()


def test_read_back(wide):
    wide.press("#example-0")
    wide.wait_for("#status", "61 tokens")
    wide.open("Read back")
    wide.press("#read-back")
    wide.wait_for("#restored", "of 61 tokens come back")
    assert wide.page.locator("#restored .text mark").count() > 0
    assert "Joseph Evans" in wide.page.locator("#restored .text").inner_text()


def test_what_is_lost_is_shown_on_request(wide):
    wide.press("#example-0")
    wide.wait_for("#status", "61 tokens")
    wide.page.get_by_label("16×").click()
    wide.wait_for("#status", "→ 4 slots")
    wide.open("Segments")
    assert wide.page.locator("#segments .lost").count() == 0
    wide.press("#verify")
    wide.wait_for("#segments", "lost by the slots")
    marked = wide.page.locator("#segments .map .lost")
    assert marked.count() > 0
    background = marked.first.evaluate("(one) => getComputedStyle(one).backgroundColor")
    assert background == "rgba(220, 0, 0, 0.45)"
    assert "Joseph Evans" in wide.page.locator("#segments .map").inner_text()
    wide.open("Ask")
    wide.press("#ask")
    wide.answers()
    wide.open("Segments")
    wide.wait_for("#segments", "lost by the slots")  # an answer does not take it away
    wide.page.get_by_label("4×", exact=True).click()
    wide.wait_for("#segments", "One segment")  # another rate does
    assert marked.count() == 0


def test_narrow_screen(narrow, server):
    assert narrow.too_wide() <= 0
    narrow.press("#ask")
    assert narrow.answers()[1] == "professor"
    lefts = {card.bounding_box()["x"] for card in narrow.page.locator("#answers .card").all()}
    assert len(lefts) == 1  # one below the other
    for tab in ("Segments", "Read back", "Chat", "Ask"):
        narrow.open(tab)
        assert narrow.too_wide() <= 0
    narrow.write("A" * 3000)  # no space to break the line at
    narrow.press("#compress")
    narrow.wait_for("#status", "segments")
    narrow.open("Segments")
    narrow.wait_for("#segments", "AAAA")
    assert narrow.too_wide() <= 0
    narrow.press("#verify")
    narrow.wait_for("#segments", "lost by the slots")
    assert narrow.too_wide() <= 0


def test_chat_on_a_narrow_screen(narrow, server):
    narrow.press("#example-0")
    narrow.wait_for("#status", "61 tokens")
    narrow.open("Chat")
    playwright.expect(narrow.page.locator("#send")).to_be_disabled(timeout=PATIENCE)
    for question, answer in (
        ("How old is the person?", "47"),
        ("Which languages does the person speak?", "Latin and Thai"),
    ):
        narrow.write(question, "#message")
        narrow.press("#send")
        narrow.wait_for("#turns", answer)
    narrow.wait_for("#used", "2 questions, the document compressed once")
    assert narrow.too_wide() <= 0
    narrow.press("#clear")
    playwright.expect(narrow.page.locator("#turns")).not_to_contain_text("Latin", timeout=PATIENCE)


def test_buttons_wait_for_text(narrow, server):
    narrow.open("Ask")
    narrow.write("  ")
    for button in ("#compress", "#ask"):
        playwright.expect(narrow.page.locator(button)).to_be_disabled(timeout=PATIENCE)
    narrow.write("Here is Joe.")
    playwright.expect(narrow.page.locator("#compress")).to_be_enabled(timeout=PATIENCE)
    narrow.write("", "#question")
    playwright.expect(narrow.page.locator("#ask")).to_be_disabled(timeout=PATIENCE)
    assert narrow.errors == []


def test_nothing_went_wrong_behind_the_page(server, wide, narrow):
    assert "Traceback" not in server[1].read_text()
