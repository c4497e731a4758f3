"""The documentation's code runs, its commands exist, and its pages, pictures and names are there.

`make docs` builds the site and finds broken links between pages; what it does not look at is here.
"""

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest

import pytest
import typer
import yaml
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from tiny_models import DECODERS, ENCODERS, FAMILIES

from lab.smol.shown import readme_block
from memslots.cli import app, main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = {"reference/cli.md"}
"""By `make docs`, and not in the repository."""

# The README's block, which the front page shows too, is run by test_smollm2.py.
FIRST = (ROOT / "README.md", DOCS / "index.md")
PYTHON = [page for page in PAGES if page not in FIRST and "```python" in page.read_text("utf-8")]


def read(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(text: str) -> list[list[str]]:
    """The arguments of each `memslots` command that lines of shell begin with."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.match(r"(?:[A-Z_]+=\S+ )*memslots (.*)", line) for line in lines]
    return [shlex.split(one[1], comments=True) for one in found if one]


def check_command(arguments: list[str]) -> None:
    """Parses a command with all of its options, and does not run it."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context("memslots", list(arguments)).close()


def sybil_of(page: Path) -> Sybil:
    def run_shell(example):
        for arguments in commands(example.parsed):
            assert main(arguments) == 0, f"memslots {shlex.join(arguments)}"

    parsers = [PythonCodeBlockParser(), SkipParser()]
    if page.name == "tutorial.md":
        parsers.append(CodeBlockParser(language="bash", evaluator=run_shell))
    return Sybil(parsers=parsers)


@pytest.mark.parametrize("page", PYTHON, ids=named)
def test_python_blocks_run_as_they_stand(page, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for example in sybil_of(page).parse(page).examples():
        with suppress(SkipTest):  # a block that says why it is skipped
            example.evaluate()
            ran += 1
        said = iter(capsys.readouterr().out.splitlines())
        for shown in re.findall(r"# prints: (.*)$", str(example.parsed), re.MULTILINE):
            assert shown in said, f"{page.name} shows {shown!r}, which is not printed there"
    assert ran


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_exist_with_their_options(page):
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`(memslots [a-z-]+ [^`|\n]*)`", page.read_text("utf-8"))
    for arguments in [one for block in blocks for one in commands(block)]:
        if "|" not in arguments:
            check_command(arguments)
    groups = typer.main.get_command(app).commands
    for line in inline:
        _, name, *rest = line.split()
        assert name in groups, line
        command = groups[name]
        if rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, line


def test_results_go_where_the_card_reads_them():
    """Else the card of whoever follows the page says that nothing was measured."""
    text = (ROOT / "docs/how-to/hub.md").read_text("utf-8")
    (folder,) = re.findall(r"memslots card --model (\S+)", text)
    assert re.search(rf"memslots eval --model {folder} .*--output {folder}/results.json", text)


def test_a_wrong_option_is_noticed():
    with pytest.raises(Exception, match="--questoin"):  # typos: ignore
        check_command(["ask", "--text", "a.txt", "--questoin", "Who?"])  # typos: ignore


def test_every_module_that_is_started_by_name_can_be(tracked):
    """`python -m` starts a module, or a package that has a `__main__`."""
    started = re.compile(r"-m[\"']?,?\s+[\"']?((?:memslots|lab)\b[\w.]*)")
    names = {
        name.rstrip(".")
        for file in map(Path, tracked)
        if file.suffix in (".py", ".md", ".yml") or file.name in ("Makefile", "Dockerfile")
        if file.name != "log.md" and (ROOT / file).exists()
        for name in started.findall((ROOT / file).read_text("utf-8"))
    }
    assert {"memslots", "lab"} <= names

    def starts(name: str) -> bool:
        with suppress(ModuleNotFoundError):
            spec = importlib.util.find_spec(name)
            return bool(spec) and (
                spec.submodule_search_locations is None or starts(f"{name}.__main__")
            )
        return False

    assert [name for name in sorted(names) if not starts(name)] == []


def test_navigation_has_every_page_and_no_other():
    def pages(entries):
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    settings = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    listed = list(pages(settings["nav"]))
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == there | GENERATED


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_files_and_pictures_hold(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:|#", target):
            continue
        file = (page.parent / target.partition("#")[0]).resolve()
        assert file.exists(), target
        # The site holds docs/ and nothing else.
        assert page.name == "README.md" or file.is_relative_to(DOCS), target


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files that git has, which are those that GitHub shows."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no repository of git")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split("\0")) - {""}


def test_links_lead_to_what_git_has(tracked):
    folders = {str(folder) for name in tracked for folder in Path(name).parents}
    missing = []
    # What is written into other repositories links to files there.
    elsewhere = ("tests/golden/", "src/memslots/hub_cards/space/")
    for name in sorted(tracked):
        if not name.endswith(".md") or name.startswith(elsewhere) or not (ROOT / name).exists():
            continue
        text = (ROOT / name).read_text("utf-8")
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        links = re.findall(r"\]\(<?([^)\s>]+)", text)
        links += re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
        links += re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, re.MULTILINE)
        for target in links:
            path = target.partition("#")[0]
            if not path or re.match(r"[a-z]+:", target):
                continue
            file = os.path.normpath(Path(name).parent / path)
            if file not in tracked and file not in folders:
                missing.append(f"{name}: {target}")
    assert not missing


def shown_examples(page: Path) -> dict[str, str]:
    """The scripts of `examples/` that a page shows whole, by the usage in their first lines."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    named = [
        (re.search(r"^    python examples/(\w+\.py)", one, re.MULTILINE), one) for one in blocks
    ]
    return {found[1]: block for found, block in named if found}


def test_pages_show_the_examples_as_they_are():
    """Written out, since GitHub includes no file."""
    shown = {name: code for page in PAGES for name, code in shown_examples(page).items()}
    assert len(shown) >= 6
    for name, code in shown.items():
        message = f"copy examples/{name} into the page that shows it"
        assert code == (ROOT / "examples" / name).read_text("utf-8"), message
    for page in PAGES:
        assert "--8<--" not in page.read_text("utf-8").replace("`--8<--", ""), page


def test_nothing_is_installed_by_a_name_that_no_index_has(tracked):
    """`pip install memslots[...]` needs an index that has memslots; a checkout or wheel has not."""
    places = [*PAGES, *(ROOT / name for name in tracked if name.endswith((".py", ".jinja")))]
    wrong = re.compile(r"pip install (?:-q )?[\"']?memslots(?:\[|[\"'`\s]|$)", re.MULTILINE)
    found = [
        f"{named(place)}: {line.strip()}"
        for place in places
        if place.exists() and named(place) not in ("docs/log.md", "src/memslots/extras.py")
        for line in place.read_text("utf-8").splitlines()
        if wrong.search(line) and place != Path(__file__)
    ]
    assert not found


@pytest.mark.parametrize("page", sorted((DOCS / "reference").glob("*.md")), ids=named)
def test_reference_names_what_there_is(page):
    blocks = re.findall(
        r"^::: (\S+)\n((?:    .*\n|\n)*)", page.read_text("utf-8"), flags=re.MULTILINE
    )
    assert blocks or page.name in {Path(name).name for name in GENERATED}
    for name, indented in blocks:
        options = (yaml.safe_load(indented) or {}).get("options", {})
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            found = getattr(importlib.import_module(module), attribute)
        for member in options.get("members", []):
            assert hasattr(found, member), f"{name} has no {member}"


def decimals(text: str) -> list[str]:
    """Figures with a decimal point or a percent sign, as they stand in a text."""
    return re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+%?|%)", text)


@pytest.mark.parametrize(
    "section", read("findings.md").split("\n## ")[1:], ids=lambda text: text.partition("\n")[0]
)
def test_each_finding_is_on_the_pages_that_it_links(section):
    pages = re.findall(r"\]\(([a-z0-9_]+\.md)", section.partition("[All figures: ")[2])
    text = "\n".join(map(read, pages))
    measured = [float(x.replace(",", "")) for x in re.findall(r"\d[\d,]*\.?\d*", text)]
    for figure in decimals(section):
        number = figure.rstrip("%").replace(",", "")
        digits = len(number.partition(".")[2])
        scales = (1, 100) if figure.endswith("%") else (1,)
        assert any(round(m * s, digits) == float(number) for m in measured for s in scales), figure


def test_the_gpu_page_states_what_was_measured_on_the_gpu():
    measured = json.loads(read("performance/against-published-h200.json"))
    assert measured["setup"]["gpu"] in read("gpu.md")
    table = read("gpu.md").partition("## Compression, measured")[2].partition("\n## ")[0]
    for row in measured["rows"]:
        ours, theirs = (f"{1000 * row[way]:.1f} ms" for way in ("memslots", "published"))
        cells = [f"{row['tokens']:,}", str(row["rate"]), ours, theirs, f"{row['ratio']:.1f}"]
        assert f"| {' | '.join(cells)} | {row['floor_share']:.0%} |" in table
    assert table.count("\n| ") == len(measured["rows"]) + 1


def test_the_front_page_shows_the_readmes_first_block():
    block = "```python\n" + readme_block() + "```"
    assert read("index.md").count(block) == 1


def test_every_family_of_the_matrix_is_among_the_supported_models():
    table = read("models.md").partition("## Expected")[0]
    rows = re.findall(r"\| [^|]*\(`(\w+)`\) \| (\w+).*?\| (\w+) \|", table)
    said = {name: (decoder, encoder) for name, decoder, encoder in rows}
    assert said == {
        name: ("yes" if name in DECODERS else "no", "yes" if name in ENCODERS else "no")
        for name in FAMILIES
    }


def test_the_readme_number_is_the_measured_one():
    results = json.loads((ROOT / "src/memslots/assets/tiny/results.json").read_text("utf-8"))
    said = re.search(
        r"\*\*([\d.]+)% of questions right from (\d+) prompt tokens\*\*"
        r".* takes (\d+): .* at rate (\d+)",
        (ROOT / "README.md").read_text("utf-8"),
    )
    share, positions, full, rate = said.groups()
    measured = results["one_person"]
    assert float(share) == round(100 * measured["memory"][rate]["all"]["share"], 1)
    table = read("developers.md").partition("<!-- results:begin -->")[2]
    assert re.search(rf"\| memory, rate {rate} \| {positions}(\.\d)? \| {share}% ", table)
    assert round(float(re.search(r"\| plain text \| ([\d.]+) \|", table)[1])) == int(full)
