"""What docs/security.md promises of the code."""

import ast
import re
import typing
from pathlib import Path

import pytest
import typer

from memslots import sent_memories
from memslots.cli import app
from memslots.hub_cards import handler
from memslots.serving.gateway_settings import GatewaySettings

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "memslots"
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")

UNPICKLING_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING_CALLS = {"torch.load", "np.load", "numpy.load", "yaml.load", "pd.read_pickle"}
RUNNING_CALLS = {"eval", "exec", "compile", "__import__"}


def package_files():
    return [path for path in SOURCE.rglob("*.py") if "assets" not in path.parts]


def risky(code: str) -> list[str]:
    """What in a file could read a pickle or run a text."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in UNPICKLING_CALLS | RUNNING_CALLS:
                found.append(f"{called}()")
    return [one for one in found if one.endswith("()") or one.split(".")[0] in UNPICKLING_MODULES]


def test_nothing_is_unpickled_and_no_text_is_run():
    assert {path.name: risky(path.read_text("utf-8")) for path in package_files()} == {
        path.name: [] for path in package_files()
    }
    code = "import pickle\nfrom joblib import load\ntorch.load(f)\nmodel.eval()\neval('1')"
    assert risky(code) == ["pickle", "joblib", "torch.load()", "eval()"]


def calls_with_remote_code(text: str) -> list[str]:
    """The arguments of each call that has `trust_remote_code=True`."""
    found = []
    for match in re.finditer(r"trust_remote_code=True", text):
        start = text.rfind("from_pretrained(", 0, match.start())
        start = max(start, text.rfind("pipeline(", 0, match.start()))
        if start < 0 or text.find("\n\n", start, match.start()) >= 0:
            continue  # prose
        depth = 0
        for end in range(text.index("(", start), len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                found.append(text[start : end + 1])
                break
    return found


@pytest.mark.parametrize(
    "place", ["README.md", "docs", "examples", "src/memslots/hub_cards/model_card.md.jinja"]
)
def test_remote_code_is_shown_with_its_revision(place):
    path = ROOT / place
    files = [path] if path.is_file() else [*path.rglob("*.md"), *path.rglob("*.py")]
    calls = [call for file in files for call in calls_with_remote_code(file.read_text("utf-8"))]
    assert calls
    for call in calls:
        local = "embedded(" in call  # the embedded checkpoint has no commits
        assert local or "revision=" in call, call


def test_the_card_says_what_remote_code_is():
    card = (SOURCE / "hub_cards" / "model_card.md.jinja").read_text("utf-8")
    assert "runs the Python files beside this card" in card
    assert "pin the commit" in card
    assert "as confidential as its text" in card


def options_of(command, path=()):
    if hasattr(command, "commands"):
        for name, one in command.commands.items():
            yield from options_of(one, (*path, name))
        return
    for parameter in command.params:
        yield " ".join(path), parameter.name


def test_no_command_takes_a_secret_as_an_argument():
    names = {(command, name) for command, name in options_of(typer.main.get_command(app))}
    assert ("push", "private") in names
    secret = re.compile(r"(^|_)(token|secret|password|api_key|key)$")
    assert [one for one in names if secret.search(one[1])] == []


def test_the_limits_are_those_of_the_code():
    settings = GatewaySettings()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]]
        for line in PAGE.splitlines()
        if line.startswith("| ")
    }
    _, _, longest = handler.PARAMETERS["max_new_tokens"]
    assert rows["a request"][0] == f"{settings.max_body_bytes // 2**20} MiB"
    assert rows["all texts of a request"] == [
        f"{settings.max_characters:,} characters",
        f"{handler.MAX_CHARACTERS:,} characters",
    ]
    assert rows["memories of a request"] == [
        str(settings.max_memories),
        f"{handler.MAX_MEMORY_BYTES // 2**20} MiB",
    ]
    header = f"{sent_memories.MOST_HEADER // 2**20} MiB"
    assert rows["the header of a memory's file"] == [header, header]
    lists = f"{sent_memories.MOST_LISTS:,}"
    assert rows["its segments, verbatim strings and lost tokens"] == [lists, lists]
    assert rows["characters of a memory's texts"] == [
        f"{settings.max_characters:,}",
        f"{handler.MAX_CHARACTERS:,}",
    ]
    assert rows["segments read as text"][0] == str(settings.max_expand)
    assert rows["questions"][1] == str(handler.MAX_QUESTIONS)
    assert rows["an answer"] == [f"{settings.max_tokens:,} tokens", f"{longest:,} tokens"]
    assert f"(32 with vLLM) and {settings.waiting} waiting" in rows["at once"][0]


def test_installed_code_needs_no_remote_code():
    """The command line loads through the installed class, whatever code a repository has."""
    for path in (SOURCE / "cli").glob("*.py"):
        assert "trust_remote_code" not in path.read_text("utf-8"), path.name


def test_the_key_is_read_from_the_environment():
    from memslots.cli import serve

    hints = typing.get_type_hints(serve.serve, include_extras=True)
    assert not [name for name in hints if "key" in name]
    assert "MEMSLOTS_API_KEY" in PAGE
    assert serve.KEY == "MEMSLOTS_API_KEY"
    assert serve.VLLM_KEY in PAGE
