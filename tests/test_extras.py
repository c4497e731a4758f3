"""What messages tell to install is what pyproject.toml says, by names that an index has."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from memslots import extras
from memslots.extras import install_extra

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))[
    "project"
]
EXTRAS = PROJECT["optional-dependencies"]


def packages_of(extra: str) -> set[str]:
    names = set()
    for line in EXTRAS[extra]:
        requirement = Requirement(line)
        if requirement.name == "memslots":
            names |= set().union(*map(packages_of, requirement.extras))
        else:
            names.add(requirement.name)
    return names


@pytest.mark.parametrize("extra", sorted({*EXTRAS} - {"dev"}))
def test_every_package_of_an_extra_is_named(extra, monkeypatch):
    # As hatchling writes them: extras of our own resolved.
    stated = ["torch>=2.6"]
    stated += [f"{one}>=1.0; extra == '{name}'" for name in EXTRAS for one in packages_of(name)]
    monkeypatch.setattr(extras, "requires", lambda name: stated)
    command = install_extra(extra)
    assert command.startswith("pip install '")
    named = {Requirement(one).name for one in re.findall(r"'([^']+)'", command)}
    assert named == packages_of(extra)


def test_the_installed_metadata_are_read():
    assert re.fullmatch(r"pip install 'pyarrow>=[\d.]+'", install_extra("store"))


def test_without_an_installation_the_checkout_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", missing)
    assert install_extra("serve") == "pip install -e '.[serve]' in the checkout"
