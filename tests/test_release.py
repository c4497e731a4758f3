"""What a release is made of: one version, a small wheel with all of its data, and notes."""

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from trove_classifiers import classifiers

import memslots

ROOT = Path(__file__).parents[1]
MOST_BYTES = 45_000_000
"""Of the wheel."""


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source archive, the wheel built from the archive, as users' tools do."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    run = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


def test_the_version_is_said_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/memslots/__init__.py"
    assert load_tool("release_notes").version() == memslots.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == memslots.__version__


def test_wheel_and_archive_have_everything(built):
    wheel, archive = built
    assert wheel.stat().st_size < MOST_BYTES
    assert wheel.name == f"memslots-{memslots.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as zipped:
        names = set(zipped.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = zipped.read(metadata).decode()
    there = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "memslots").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there - names == set()
    # Built from the archive, which as git has no copy of the code beside the weights.
    code = {path.name for path in (ROOT / "src/memslots/modeling").glob("*_memslots.py")}
    beside = {name.rpartition("/")[2] for name in names if name.startswith("memslots/assets/tiny/")}
    assert {name for name in beside if name.endswith(".py")} == code != set()
    kinds = {Path(name).suffix for name in names}
    assert {".py", ".yaml", ".jinja", ".safetensors", ".json", ".txt", ".typed"} <= kinds
    assert {name for name in names if not name.startswith("memslots")} == set()
    assert f"Version: {memslots.__version__}\n" in described
    assert "Requires-Dist: torch" in described
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py", "zensical.toml"} <= packed
    assert {"tools/release_notes.py", "examples/rag.py", "docs/index.md"} <= packed
    assert "lab/sources.py" in packed
    assert not {name for name in packed if re.search(r"assets/tiny/.*\.py$", name)}


def test_the_checker_of_the_package_index_is_content(built):
    run = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout


def test_notes_are_cut_from_the_changelog(capsys):
    tool = load_tool("release_notes")
    text = (
        "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-02\n\n### Added\n- A [link].\n\n"
        "## [1.1.0] - 2025-01-02\n- Old.\n\n[link]: https://example.org\n"
    )
    assert tool.section(text, "1.2.0") == "### Added\n- A [link]."
    assert tool.section(text, "1.1.0") == "- Old."
    assert tool.section(text, "Unreleased") == ""
    assert tool.section(text, "1.2") is None
    assert tool.main() == 0
    printed = capsys.readouterr()
    assert re.match(rf"# memslots {re.escape(memslots.__version__)}( \(draft\))?\n", printed.out)
    assert "- `MemslotsConfig`" in printed.out


def test_nothing_is_uploaded_by_itself():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (recipe,) = re.findall(r"^release:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "-m build" in recipe
    assert "twine check" in recipe
    assert "release_notes.py" in recipe
    assert "upload" not in recipe.replace("by hand: twine upload", "")


def test_a_tag_is_published_without_a_token_once_it_is_the_version():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    workflow = yaml.safe_load(text)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert (jobs["publish"]["needs"], jobs["publish"]["environment"]) == ("build", "pypi")
    assert "password" not in text
    assert "secrets." not in text
    for command in ("build --no-isolation", "twine check --strict dist/*", "release_notes.py"):
        assert command in text
        assert command.removesuffix(" dist/*") in (ROOT / "Makefile").read_text("utf-8")
    (check,) = (step["run"] for step in jobs["build"]["steps"] if "grep -Fx" in step.get("run", ""))
    for tag, status in ((f"v{memslots.__version__}", 0), ("v9.9.9", 1)):
        heading = f"# memslots {memslots.__version__}\n"
        run = subprocess.run(
            ["bash", "-c", check.replace("NOTES.md", "-")],
            input=heading,
            env={**os.environ, "GITHUB_REF_NAME": tag},
            text=True,
            capture_output=True,
            timeout=30,
        )
        assert run.returncode == status


def test_the_changelog_has_the_version_and_the_index_its_facts():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(
        rf"^## \[{re.escape(memslots.__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE
    )
    assert (ROOT / "src" / "memslots" / "py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(project["classifiers"]) <= classifiers
    assert "Typing :: Typed" in project["classifiers"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "archive"])
def test_installed_in_a_fresh_environment_it_runs_the_demo_offline(built, kind, tmp_path):
    """The package is installed alone; its dependencies are found where they are already."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    installed = next(environment.glob("lib/python*/site-packages"))
    # A path in a .pth file adds a folder and reads no .pth files in it, the editable install's too.
    (installed / "dependencies.pth").write_text(os.path.dirname(os.path.dirname(pytest.__file__)))
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_HOME")}
    clean |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PIP_NO_INDEX": "1"}

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [str(one) for one in arguments],
            cwd=tmp_path,
            env=clean,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    file = built[0] if kind == "wheel" else built[1]
    run(python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", file)
    where = run(python, "-c", "import memslots; print(memslots.__file__)")
    assert Path(where.strip()).is_relative_to(environment)
    printed = run(environment / "bin" / "memslots", "demo")
    assert "rate 4" in printed
    readme = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    assert run(python, "-c", block[1]).startswith("Memory(1 document, ")
    assert run(environment / "bin" / "memslots", "--version").strip() == (
        f"memslots {memslots.__version__}"
    )
