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
playwright.expect.set_options(timeout=PATIENCE)

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
            [sys.executable, "-m", "memslots", "demo", "--web", "--tiny"],
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
        self.wait_for("#headline", "prompt tokens")

    def wait_for(self, place, text):
        playwright.expect(self.page.locator(place)).to_contain_text(text)

    def write(self, text, place="#document"):
        self.page.locator(f"{place} textarea, {place} input").first.fill(text)

    def open(self, tab):
        self.page.get_by_role("tab", name=tab).click()

    def press(self, button):
        # Gradio drops a click on a button whose last event has not ended, answer shown or not.
        busy = self.page.locator("[data-testid=status-tracker]:not(.hide)")
        playwright.expect(busy).to_have_count(0)
        playwright.expect(self.page.locator(button)).to_be_enabled(timeout=PATIENCE)
        self.page.locator(button).click()

    def answers(self):
        """The texts of the three cards, when all are there."""
        playwright.expect(self.page.locator("#answers dl")).to_have_count(3)
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


def test_first_sight_says_what_a_memory_is_worth(wide):
    wide.wait_for("#headline", "32 prompt tokens instead of 77, same answer")
    full_text, memory, control = wide.answers()
    assert full_text == memory == "professor"  # the example is of the embedded checkpoint's kind
    assert control == "scientist"  # the other example's: no noise
    names = wide.page.locator("#answers h3").all_inner_texts()
    assert names == ["Full text", "Memory", "Control"]
    for cost in ("prompt tokens", "KV cache", "slots, kept", "seconds"):
        assert cost in wide.page.locator("#answers .memory").inner_text()
    assert "266 B" in wide.page.locator("#answers .full-text").inner_text()
    tops = {card.bounding_box()["y"] for card in wide.page.locator("#answers .card").all()}
    assert len(tops) == 1  # side by side
    assert wide.page.locator("#picture .slots i").count() == 16
    assert wide.page.locator("#picture span").count() == 61
    assert wide.page.locator("button.primary:visible").all_inner_texts() == ["Ask"]


def test_an_example_question_is_answered_when_it_is_clicked(wide):
    wide.page.get_by_role("button", name="Where does the person work?").click()
    wide.wait_for("#answers .memory", "Eagle Media")
    assert "Wendy Webb" in wide.page.locator("#document textarea").input_value()
    wide.wait_for("#headline", "same answer")
    assert wide.answers()[2] != "Eagle Media"
    assert wide.page.locator(".stale, .warning").count() == 0


def test_what_is_about_something_else_is_dimmed(wide):
    stale = wide.page.locator(".stale")
    playwright.expect(stale).to_have_count(0)
    wide.write("Where does she work?", "#question")
    playwright.expect(stale).to_have_count(2)  # headline and answers
    wide.write("Where does the person work?", "#question")
    playwright.expect(stale).to_have_count(0)
    before = wide.page.locator("#document textarea").input_value()
    wide.write(f"{before} She has hats.")
    playwright.expect(stale).to_have_count(4)  # status and picture too
    opacity = "(shown) => Number(getComputedStyle(shown).opacity)"
    assert stale.first.evaluate(opacity) < 0.5
    wide.press("#ask")
    playwright.expect(stale).to_have_count(0)
    wide.wait_for("#status", "This compressor was trained on generated short biographies")


def test_nothing_is_asked_of_other_hosts(wide, server):
    assert len(wide.requests) > 10
    assert [url for url in wide.requests if not url.startswith((server[0], "data:", "blob:"))] == []
    assert wide.errors == []


def test_another_rate(wide):
    wide.write("She is Wendy Webb. She turned 48 this year. She speaks French and Irish.")
    wide.page.get_by_label("16×").click()
    wide.wait_for("#picture", "→ 2 slots")
    wide.write("How old is the person?", "#question")
    wide.press("#ask")
    wide.wait_for("#answers .full-text", "48")
    wide.page.get_by_label("4×", exact=True).click()
    wide.wait_for("#picture", "→ 5 slots")
    playwright.expect(wide.page.locator("#answers .stale")).to_have_count(1)


def test_upload(wide, tmp_path):
    file = tmp_path / "notes.md"
    file.write_text(
        "# Wendy Webb\n\n<b>Wendy</b> lives in Danang. ${7*7} 👩‍🚀 " + "She has hats. " * 60
    )
    wide.page.locator("input[type=file]").first.set_input_files(file)
    playwright.expect(wide.page.locator("#picture .segment").first).to_contain_text("Danang")
    assert wide.page.locator("#picture b").all_inner_texts()[0].startswith("2")  # no <b> of it
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
    (tmp_path / "fine.txt").write_bytes("\ufeffAnn is fine.".encode())  # as Notepad saves it
    wide.page.locator("input[type=file]").first.set_input_files(tmp_path / "fine.txt")
    wide.wait_for("#status", "12 B of text became")
    assert wide.page.locator("#document textarea").input_value() == "Ann is fine."
    playwright.expect(wide.page.locator(".toast-body, .notice:visible")).to_have_count(0)


def test_nothing_is_cut_off_in_silence(wide):
    wide.write("word " * 5000)
    wide.wait_for("#status", "25,000 characters, at most 20,000 fit here")
    assert len(wide.page.locator("#document textarea").input_value()) == 25_000
    wide.press("#ask")
    wide.wait_for("#answers", "at most 20,000 fit")
    wide.write("word " * 400)
    playwright.expect(wide.page.locator(".notice:visible")).to_have_count(0)


def test_a_refusal_ends_with_its_cause_and_can_come_again(wide):
    notice = wide.page.locator(".notice:visible")
    for place, box, button in (
        ("#answers", "#question", "#ask"),
        ("#refused", "#message", "#send"),
    ):
        wide.open("Chat" if button == "#send" else "Ask")
        for _ in range(2):  # word for word the same
            wide.write("x", box)
            wide.write("", box)
            wide.press(button)
            wide.wait_for(place, "Type a question first.")
            playwright.expect(notice).to_have_count(1)
            wide.write("Who?", box)
            playwright.expect(notice).to_have_count(0)
    wide.open("Ask")
    wide.write("w" * 20_000)
    wide.page.get_by_label("4×", exact=True).click()
    wide.press("#ask")
    wide.wait_for("#answers", "rate=8 would fit")
    wide.page.get_by_label("16×").click()
    wide.wait_for("#status", "20 kB of text became")
    playwright.expect(notice).to_have_count(0)
    wide.page.get_by_label("4×", exact=True).click()


def test_turns_of_another_document_stay_dim_when_a_message_is_refused(wide):
    wide.page.locator("#example-0 button").first.click()
    wide.wait_for("#headline", "same answer")
    wide.open("Chat")
    wide.write("How old is the person?", "#message")
    wide.press("#send")
    wide.wait_for("#turns", "47")
    wide.write("Ann Lee is 31 years old.")
    wide.press("#send")  # an empty message
    wide.wait_for("#refused", "Type a question first.")
    dim = "(turns) => Number(getComputedStyle(turns).opacity) < 0.5"
    assert wide.page.locator("#turns").evaluate(dim)
    wide.press("#clear")
    playwright.expect(wide.page.locator(".notice:visible")).to_have_count(0)


def test_a_click_counts_while_the_one_before_it_is_answered(wide):
    for question in wide.page.locator("#example-0 button").all()[:2]:
        question.click()
        playwright.expect(wide.page.locator("#question textarea")).to_have_value(
            question.inner_text()
        )
    wide.wait_for("#answers .memory", "47")
    wide.wait_for("#headline", "same answer")
    wide.write("w" * 18_000)
    for rate in ("16×", "8×"):
        wide.page.get_by_label(rate).click()
    wide.wait_for("#picture", "→ 2,250 slots")
    wide.page.get_by_label("4×", exact=True).click()


def test_read_back(wide):
    wide.page.locator("#example-0 button").first.click()
    wide.wait_for("#headline", "same answer")
    wide.open("Read back")
    wide.press("#read-back")
    wide.wait_for("#restored", "of 61 tokens come back")
    assert wide.page.locator("#restored .text mark").count() > 0
    assert "Joseph Evans" in wide.page.locator("#restored .text").inner_text()


def test_what_is_lost_is_shown_on_request(wide):
    wide.page.get_by_label("16×").click()
    wide.wait_for("#picture", "→ 4 slots")
    wide.open("Verify")
    wide.press("#verify")
    wide.wait_for("#report", "lost by the slots")
    marked = wide.page.locator("#report .map .lost")
    assert marked.count() > 0
    background = marked.first.evaluate("(one) => getComputedStyle(one).backgroundColor")
    assert background == "rgba(220, 0, 0, 0.45)"
    assert "Joseph Evans" in wide.page.locator("#report .map").inner_text()
    cut = wide.page.locator("#report .lines").evaluate("(n) => n.scrollWidth - n.clientWidth")
    assert cut <= 0  # the whole table is there
    wide.page.get_by_label("4×", exact=True).click()
    playwright.expect(wide.page.locator("#report .stale")).to_have_count(1)


def test_narrow_screen(narrow, server):
    assert narrow.too_wide() <= 0
    assert narrow.answers()[1] == "professor"
    lefts = {card.bounding_box()["x"] for card in narrow.page.locator("#answers .card").all()}
    assert len(lefts) == 1  # one below the other
    narrow.write("A" * 3000)  # no space to break the line at
    narrow.press("#ask")
    narrow.wait_for("#status", "3 kB of text became")
    narrow.wait_for("#picture", "AAAA")
    for tab in ("Read back", "Chat", "Verify"):
        assert narrow.too_wide() <= 0
        narrow.open(tab)
    narrow.press("#verify")
    narrow.wait_for("#report", "lost by the slots")
    assert narrow.too_wide() <= 0


def test_chat_on_a_narrow_screen(narrow, server):
    narrow.page.locator("#example-0 button").first.click()
    narrow.wait_for("#headline", "same answer")
    narrow.open("Chat")
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
    playwright.expect(narrow.page.locator("#turns")).not_to_contain_text("Latin")


def test_empty_boxes_are_refused_in_a_line(narrow, server):
    narrow.open("Ask")
    narrow.write("", "#question")
    narrow.press("#ask")
    narrow.wait_for("#answers", "Type a question first.")
    narrow.write("  ")
    narrow.wait_for("#status", "Paste a text")
    assert narrow.errors == []


def test_nothing_went_wrong_behind_the_page(server, wide, narrow):
    assert "Traceback" not in server[1].read_text()
