"""Questions that are typed: `ask` and `demo` in a pseudo-terminal, as a user runs them."""

import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest

pty = pytest.importorskip("pty")

TEXT = "Carmen Moss is an engineer at Silver Bank. She lives in Lagos and owns 27 maps. " * 20
PROGRAM = """
import sys
from memslots import cli, verified
compress, calls = verified.compress, []
def counted(*arguments, **named):
    calls.append(1)
    return compress(*arguments, **named)
verified.compress = counted
code = cli.main(sys.argv[1:])
print("compressed", len(calls), "code", code)
"""


@pytest.fixture(scope="module")
def checkpoint(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    zoo.compressor(
        segment_length=96, compression_rates=[4, 16], bundle_decoder=True
    ).save_pretrained(folder / "model")
    (folder / "notes.txt").write_text(TEXT, "utf-8")
    return folder


class Terminal:
    """A process whose standard streams are a terminal."""

    def __init__(self, *arguments: object):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb", "COLUMNS": "100", "NO_COLOR": "1"},
            start_new_session=True,
            # A shell that starts the tests with & has Ctrl-C ignored by all that comes of them.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        self.said = ""

    def until(self, words: str, count: int = 1) -> str:
        """What was said, when `words` have been said `count` times."""
        end = time.monotonic() + 120
        while self.said.count(words) < count:
            ready, _, _ = select.select([self.master], [], [], end - time.monotonic())
            assert ready, f"nothing more for long: {self.said}"
            try:
                part = os.read(self.master, 4096)
            except OSError:  # all ends of the terminal are closed
                part = b""
            assert part, f"ended without {words!r}: {self.said}"
            self.said += part.decode("utf-8", "replace")
        return self.said

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def ends(self) -> int:
        self.until("code ")
        while not re.search(r"code \d+\s", self.said):  # the number may come by itself
            self.said += os.read(self.master, 4096).decode("utf-8", "replace")
        code = self.process.wait(timeout=60)
        os.close(self.master)
        return code


@pytest.mark.parametrize("end", ["\n", "\x04"], ids=["empty line", "Ctrl-D"])
def test_ask_answers_until_the_user_ends_it(checkpoint, end):
    terminal = Terminal(
        *("ask", "--text", checkpoint / "notes.txt", "--model", checkpoint / "model"),
        *("--max-new-tokens", 4),
    )
    terminal.until("Question: ")
    compressed = terminal.said
    assert re.search(r"\d+ tokens -> \d+ slots \(rate 4\), compressed in", compressed)
    terminal.type("Who?\n")
    terminal.until("Question: ", 2)
    terminal.type("x " * 900 + "\n")  # more than the decoder's positions: said, and open still
    terminal.until("Question: ", 3)
    assert "error: " in terminal.said
    terminal.type("How many maps?\n")
    terminal.until("Question: ", 4)
    terminal.type(end)
    assert terminal.ends() == 0
    assert "compressed 1 code 0" in terminal.said  # once, however many questions
    assert "Traceback" not in terminal.said


def test_ask_from_a_memory_and_ctrl_c(checkpoint, tmp_path):
    from memslots.cli import main

    memory = tmp_path / "m.safetensors"
    model = ["--model", str(checkpoint / "model")]
    text = str(checkpoint / "notes.txt")
    assert main(["compress", text, "-o", str(memory), *model]) == 0
    terminal = Terminal("ask", "--memory", memory, *model)
    terminal.until("Question: ")
    assert "read from disk" in terminal.said
    # One that comes between the prompt and the wait for a key is seen by Python at the next signal.
    while not select.select([terminal.master], [], [], 2)[0]:
        os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.ends()
    assert "interrupted" in terminal.said
    assert "compressed 0 code 130" in terminal.said
    assert "Traceback" not in terminal.said


def test_a_question_as_an_option_is_answered_and_no_more_is_asked(checkpoint):
    terminal = Terminal(
        *("ask", "--text", checkpoint / "notes.txt", "--model", checkpoint / "model"),
        *("--max-new-tokens", 4, "--question", "Who?"),
    )
    assert terminal.ends() == 0
    assert "Question: " not in terminal.said
    assert "Leave out --question" in terminal.said


def test_demo_takes_typed_questions(checkpoint):
    terminal = Terminal(
        *("demo", "--text", checkpoint / "notes.txt", "--model", checkpoint / "model"),
        *("--rates", "16"),
    )
    terminal.until("Question: ")
    terminal.type("Who lives there?\n")
    terminal.until("Question: ", 2)
    terminal.type("\n")
    assert terminal.ends() == 0
    shown = " ".join(terminal.said.split())
    assert "Answers" in shown
    assert "memory, rate 16" in shown
