"""Prints the notes of a release: the section of CHANGELOG.md that belongs to the version.

    python tools/release_notes.py > dist/NOTES.md

Before the section has its number, what stands under Unreleased is printed as a draft, and a line on
standard error says so.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version(root: Path = ROOT) -> str:
    """The one place that says the version."""
    text = (root / "src" / "memslots" / "__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError("src/memslots/__init__.py has no line __version__ = ...")
    return found[1]


def section(changelog: str, name: str) -> str | None:
    """What stands under `## [name]`, without the heading; None where there is no such heading."""
    found = re.search(
        rf"^## \[{re.escape(name)}\][^\n]*\n(.*?)(?=^## \[|^\[[^\]\n]+\]: |\Z)",
        changelog,
        re.MULTILINE | re.DOTALL,
    )
    return found and found[1].strip()


def main() -> int:
    """Prints the notes; 1 where there is nothing to say."""
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    notes, draft = section(changelog, version()), ""
    if notes is None:
        notes, draft = section(changelog, "Unreleased"), " (draft)"
        print(f"CHANGELOG.md has no [{version()}] yet: a draft from Unreleased", file=sys.stderr)
    if not notes:
        print("CHANGELOG.md says nothing about this release", file=sys.stderr)
        return 1
    print(f"# memslots {version()}{draft}\n\n{notes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
