import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import memslots
from lab.__main__ import lab
from memslots import Memory, embedded
from memslots.__main__ import main as from_shell
from memslots.cli import app, main
from memslots.cli.options import print_json

TEXT = "Carmen Moss is an engineer at Silver Bank. She lives in Lagos and owns 27 maps. Café."


@pytest.fixture(scope="module")
def checkpoints(zoo, tmp_path_factory):
    """Folders of two compressors that differ in their weights."""
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("one", "other")):
        zoo.compressor(
            seed=seed, segment_length=96, compression_rates=[4, 16], bundle_decoder=True
        ).save_pretrained(root / name)
    return root


@pytest.fixture(autouse=True)
def _no_debug(monkeypatch):
    monkeypatch.delenv("MEMSLOTS_DEBUG", raising=False)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.mark.parametrize(
    "options",
    [[], ["--fidelity", "0.9"], ["--exact", "numbers", "--rate", "16"], ["--max-slots", "9000"]],
    ids=str,
)
def test_ask_refuses_what_does_not_fit_before_it_compresses(
    run, checkpoints, tmp_path, monkeypatch, options
):
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 400, "utf-8")

    def encode(*_, **__):
        raise AssertionError("encoded a text that does not fit")

    monkeypatch.setattr(memslots.MemslotsModel, "encode", encode)
    code, _, said = run(
        "ask", "--model", checkpoints / "one", "-t", path, "-q", "Who?", "-q", "Why?", *options
    )
    assert code
    assert "slots fit" in " ".join(said.split())


@pytest.fixture
def run(capsys):
    """Runs the command line: (exit code, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(run):
    """Runs a user's mistake: one line on stderr, which is returned, and exit code 2."""

    def call(*arguments):
        code, out, err = run(*arguments)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(lines)) == (2, 1), (out, err)
        assert "Traceback" not in err
        return lines[0]

    return call


def feed(monkeypatch, data: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def every_command(command=None, path=()):
    """Each command with its parameters: (words, click command)."""
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", {})
    if not inner:
        yield " ".join(path), command
    for name in inner:
        yield from every_command(inner[name], (*path, name))


ALL = dict(every_command())


@pytest.mark.parametrize("words", ["", *ALL])
def test_help_ends_with_an_example(run, words):
    code, out, _ = run(*words.split(), "--help")
    assert code == 0
    last = out.strip().rpartition("Example:")[2].split()
    assert last[0] == "memslots"
    if words:
        assert " ".join(last[1:]).startswith(words)
        # What the example says can be parsed.
        example = shlex.split(re.sub(r"\s+", " ", " ".join(last[1:])))
        rest = example[len(words.split()) :]
        ALL[words].make_context(words, rest).close()


def test_help_is_grouped(run):
    _, out, _ = run("--help")
    groups = re.findall(r"─ (\w+) ─", out)
    assert groups == ["Options", "Use", "Train", "Publish", "Serve"]


@pytest.mark.parametrize("words", list(ALL))
def test_help_texts_are_sentences(words):
    command = ALL[words]
    texts = [command.help, *(getattr(p, "help", None) for p in command.params)]
    for text in texts:
        assert text, words
        assert re.match(r"[A-Z].* .*[.]$", text, re.DOTALL), (words, text)


def test_one_name_for_one_thing():
    """No option has two names, and a letter means the same option in every command."""
    letters: dict[str, set[str]] = {}
    for words, command in ALL.items():
        for parameter in command.params:
            names = [option for option in parameter.opts if option.startswith("--")]
            assert len(names) <= 1, words
            for letter in set(parameter.opts) - set(names):
                letters.setdefault(letter, set()).update(names)
            for name in names:
                letters.setdefault(name, set()).update(set(parameter.opts) - set(names))
    assert all(len(found) <= 1 for found in letters.values()), letters
    with_json = {words for words, command in ALL.items() if has(command, "--json")}
    assert with_json >= {
        *("ask", "compress", "reconstruct", "report", "info", "eval", "plan", "cram"),
        *("store add", "store info", "store list", "store get", "store verify"),
    }
    about_a_checkpoint = {
        *("demo", "ask", "compress", "reconstruct", "info", "eval", "card", "push", "push-space"),
        *("serve", "store add"),
    }
    assert {words for words, command in ALL.items() if has(command, "--model")} == (
        about_a_checkpoint
    )


def has(command, option: str) -> bool:
    return any(option in parameter.opts for parameter in command.params)


HEAVY = ("torch", "transformers", "huggingface_hub", "numpy", "yaml", "pyarrow", "datasets")
QUICK = """
import os, sys, time
from memslots.cli import app, main
from memslots.cli.options import print_json
started = time.perf_counter()
sys.stdout = open(os.devnull, "w")
for arguments in {calls!r}:
    try:
        main(arguments)
    except SystemExit:
        pass
    loaded = [name for name in {heavy!r} if name in sys.modules]
    if loaded:
        sys.exit(f"{{arguments}} loads {{loaded}}")
print(time.perf_counter() - started, file=sys.stderr)
"""


def test_help_and_mistakes_load_nothing_heavy(run, tmp_path):
    code, out, _ = run("--version")
    assert (code, out.strip()) == (0, f"memslots {memslots.__version__}")
    assert run()[0] == 0
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    calls = [
        *([], ["--help"], ["--version"]),
        *([*words.split(), "--help"] for words in ALL),
        *([*words.split(), "--no-such-option"] for words in ALL),
        ["aks"],  # typos: ignore
        ["ask"],
        ["ask", "--text", "a.txt", "--rate", "four"],
        ["ask", "--text", "nowhere.txt", "--question", "Who?"],
        ["ask", "--text", "a.txt", "--memory", "b", "--question", "Who?"],
        ["ask", "--text", "a.txt"],
        ["ask", "--text", "a.txt", "--question", "Who?", "--fidelity", "2"],
        ["compress", "nowhere.txt", "--output", "x.safetensors"],
        ["compress", "nowhere.txt", "--output", str(tmp_path)],
        ["reconstruct"],
        ["reconstruct", "--original", "--text", "a.txt"],
        ["demo", "--tiny", "--model", "me/x"],
        ["demo", "--question", "Who?"],
        ["eval", "--output", "results.txt"],
        ["init", "--decoder", "me/llm", "--output", str(full)],
        ["cram", "--text", "nowhere.txt"],
        ["plan", "--decoder", "me/llm", "--tokens", "9", "--gpu-memory", "much"],
        ["card", "--model", "nowhere"],
        ["push", "--model", "nowhere", "--repo", "me/x"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", QUICK.format(calls=calls, heavy=HEAVY)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    # 60 calls; alone on a machine one takes a few hundredths of a second beside Python's own start.
    assert float(done.stderr.split()[-1]) < 60


def test_ask_json_from_context_memory_and_standard_input(
    run, checkpoints, text, tmp_path, monkeypatch
):
    model = ["--model", checkpoints / "one"]
    question = ["--question", "Who?", "--question", "How many?", "--max-new-tokens", 4, "--json"]
    code, out, err = run("ask", "--text", text, *question, *model)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert [a["question"] for a in found["answers"]] == ["Who?", "How many?"]
    assert (found["rate"], found["slots"]) == (4, -(-found["tokens"] // 4))
    assert found["seconds"]["compress"] > 0

    memory = tmp_path / "notes.safetensors"
    assert run("compress", text, "-o", memory, *model)[0] == 0
    again = json.loads(run("ask", "--memory", memory, *question, *model)[1])
    assert again["answers"] == found["answers"]
    assert again["seconds"]["compress"] is None

    feed(monkeypatch, TEXT.encode())
    piped = json.loads(run("ask", "--text", "-", *question, *model)[1])
    assert piped["answers"] == found["answers"]
    coarse = json.loads(run("ask", "--memory", memory, *question, *model, "--rate", 16)[1])
    assert coarse["rate"] == 16


def test_ask_prints_answers_and_slots(run, checkpoints, text):
    code, out, _ = run(
        "ask", "-t", text, "-q", "Who?", "--max-new-tokens", 4, "--model", checkpoints / "one"
    )
    assert code == 0
    assert re.search(r"\d+ tokens -> \d+ slots \(rate 4\), compressed in", out)


def test_compress_several_files(run, refused, checkpoints, text, tmp_path, monkeypatch):
    output = tmp_path / "both.safetensors"
    feed(monkeypatch, b"Another text about maps.")
    compress = ["compress", "-o", output, "--rate", 16, "--model", checkpoints / "one"]
    code, out, _ = run(*compress, text, "-")
    assert code == 0
    assert "Memory(2 documents" in out
    assert f"{len(TEXT.encode()) + 24} bytes of text" in out
    before = output.read_bytes()
    assert "--force" in refused(*compress, text)
    assert output.read_bytes() == before
    assert run(*compress, text, "--force")[0] == 0
    assert len(Memory.load(output)) == 1


def test_reconstruct(run, checkpoints, text, tmp_path):
    model = ["--model", checkpoints / "one"]
    code, out, err = run("reconstruct", "--text", text, *model)
    assert code == 0
    assert re.search(r"\d+ of \d+ decoder tokens right", err)
    memory = tmp_path / "m.safetensors"
    run("compress", text, "-o", memory, *model)
    assert run("reconstruct", "--memory", memory, *model)[:2] == (0, out)


def test_info_counts_parameters_without_weights(run, checkpoints, zoo):
    code, out, _ = run("info", "--model", checkpoints / "one")
    model = zoo.compressor(segment_length=96, compression_rates=[4, 16], bundle_decoder=True)
    frozen = sum(p.numel() for p in model.decoder.parameters())
    trained = sum(p.numel() for p in model.parameters()) - frozen
    assert code == 0
    assert f"{trained:,}" in out
    assert f"{frozen:,}" in out
    assert "4, 16 encoder tokens per slot" in out
    fingerprint = memslots.MemslotsConfig.from_pretrained(checkpoints / "one").fingerprint
    shown = "".join(
        line.rpartition("\u2502")[0].rpartition("\u2502")[2].strip() for line in out.split("\n")
    )
    assert fingerprint in shown  # whole, also where the terminal is narrow


def test_info_says_at_which_commit_a_decoder_is_pinned(run, checkpoints, tmp_path):
    folder = tmp_path / "pinned"
    shutil.copytree(checkpoints / "other", folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(decoder_name_or_path="you/llm", decoder_revision="0123abc")
    (folder / "config.json").write_text(json.dumps(config))
    code, out, _ = run("info", "--model", folder)
    assert code == 0
    assert "you/llm at 0123abc" in " ".join(out.replace("│", " ").split())


def test_init_makes_a_checkpoint(run, refused, zoo, tmp_path):
    encoder, decoder = zoo.folder("gpt2", "encoder"), zoo.folder("llama", "decoder")
    new = tmp_path / "new"
    make = ["init", "--encoder", encoder, "--decoder", decoder, "-o", new, "--set"]
    assert "did you mean 'segment_length'" in refused(*make, "segment_lenght=3")
    assert "segment_length" in refused(*make, "segment_length=many")
    assert not new.exists()
    assert run(*make, "compression_rates=[4, 8]", "--set", "segment_length=64")[0] == 0
    config = memslots.MemslotsConfig.from_pretrained(new)
    assert (config.compression_rates, config.segment_length) == ([4, 8], 64)
    assert "not an empty folder" in refused(*make, "segment_length=64")


def test_init_shows_what_it_chooses_on_one_line(run, zoo, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(zoo.folder("llama", "decoder"), folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    new = tmp_path / "new"
    code, out, _ = run("init", "--decoder", folder, "-o", new, "--set", "segment_length=16")
    (said,) = [line for line in out.splitlines() if line.startswith("Chosen:")]
    assert code == 0
    assert said.startswith('Chosen: answer_end="\\n", encoder_layers=1, ')
    assert said.endswith("--set KEY=VALUE changes a value.")
    again = ["--set", "segment_length=16", "--set", 'answer_end="\\n"']
    assert run("init", "--decoder", folder, "-o", tmp_path / "again", *again)[0] == 0
    ends = [
        memslots.MemslotsConfig.from_pretrained(tmp_path / n).answer_end for n in ("new", "again")
    ]
    assert ends == ["\n", "\n"]


def test_init_chooses_what_it_is_not_told_and_says_so(run, refused, zoo, tmp_path):
    import shutil

    from transformers import AutoTokenizer

    shutil.copytree(zoo.folder("llama", "decoder"), tmp_path / "models" / "small")
    make = ["init", "--decoder", tmp_path / "models", "-o"]
    extra = ["--decoder-arg", "subfolder=small", "--set", "segment_length=16"]
    code, out, _ = run(*make, tmp_path / "new", *extra)
    assert code == 0
    said = " ".join(out.split())
    assert "Chosen: prompt_format=chat, encoder_layers=1, pooling=groups" in said
    config = memslots.MemslotsConfig.from_pretrained(tmp_path / "new")
    assert (config.prompt_format, config.pooling, config.encoder_layers) == ("chat", "groups", 1)
    assert config.answer_end is None
    assert config.decoder_loading == {"subfolder": "small"}

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "small")
    tokenizer.chat_template = None
    for file in (tmp_path / "models" / "small").glob("chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(tmp_path / "models" / "small")
    code, out, _ = run(*make, tmp_path / "plain", *extra, "--set", "pooling=mean")
    assert code == 0
    assert "prompt_format" not in out
    config = memslots.MemslotsConfig.from_pretrained(tmp_path / "plain")
    assert (config.prompt_format, config.pooling) == ("plain", "mean")
    assert config.answer_end == "\n"
    assert "is not KEY=VALUE" in refused(*make, tmp_path / "bad", "--decoder-arg", "small")


def test_suite_writes_results_and_card(run, checkpoints, tmp_path, capsys):
    asked = ["suite", str(checkpoints / "other"), "--questions", "1", "--card", "--check"]
    code = lab([*asked, "--output", str(tmp_path / "r.json")])
    assert code == 1  # an untrained checkpoint misses targets
    assert "Targets" in capsys.readouterr().out
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["rates_missing"] == [8]
    assert (checkpoints / "other" / "README.md").is_file()
    code, out, _ = run("info", "--model", checkpoints / "other")
    assert code == 0
    assert "Exact match" in out


def test_demo_on_any_checkpoint(run, checkpoints):
    code, out, _ = run("demo", "--model", checkpoints / "one", "--rates", "16")
    assert code == 0
    assert "memory, rate 16" in out
    assert "First token" in out


def test_demo_without_embedded_checkpoint(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("memslots.checkpoints.ASSETS", tmp_path)
    assert "no embedded checkpoint" in refused("demo")


def test_bad_texts(refused, tmp_path, monkeypatch):
    ask = ["ask", "--question", "Who?", "--text"]
    missing = refused(*ask, tmp_path / "none.txt")
    assert "No such file" in missing
    assert "give a text file, or - for standard input" in missing
    assert "error: " in refused(*ask, tmp_path)
    assert "is a folder; name the text files" in refused(*ask, tmp_path)
    bad = tmp_path / "bad.bin"
    bad.write_bytes(b"text \xff\xfe")
    assert "byte 0xff at position 5" in refused(*ask, bad)
    bad.write_bytes(b" \n")
    assert "empty or only white space" in refused(*ask, bad)
    feed(monkeypatch, b"")
    assert "standard input is empty" in refused(*ask, "-")


def test_no_command_writes_over_what_it_reads(refused, run, checkpoints, text, tmp_path):
    memory, page = tmp_path / "notes.safetensors", tmp_path / "map.html"
    model = ["--model", checkpoints / "one"]
    assert run("compress", text, "-o", memory, *model)[0] == 0
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps([{"context": TEXT, "question": "Who?", "answer": "Carmen"}]))
    report = ["report", "--memory", memory, "--text", text, "--html"]
    begun = asked.rename(tmp_path / "asked.partial.jsonl")
    asked.write_bytes(begun.read_bytes())
    before = [path.read_bytes() for path in (text, memory, asked, begun)]
    for command, option in (
        ([*report, memory, "--force"], "--html"),
        ([*report, text, "--force"], "--html"),
        (["compress", text, "-o", text, "--force", *model], "--output"),
        (["eval", "--data", f"qa={asked}", "-o", asked, *model], "--output"),
        (["eval", "--data", f"qa={begun}", "-o", asked, *model], "--output"),
    ):
        said = refused(*command)
        assert f"error: {option} " in said
        assert "is a file that is read here; name another one" in said
    assert [path.read_bytes() for path in (text, memory, asked, begun)] == before
    assert run(*report, page)[0] == 0
    assert "map.html exists; --force replaces it" in refused(*report, page)
    assert run(*report, page, "--force")[0] == 0
    assert "there is no folder" in refused(*report, tmp_path / "none" / "map.html")


def test_standard_input_that_is_closed(refused, run, checkpoints, text, tmp_path, monkeypatch):
    """As in a service, or by `<&-` in a shell."""
    monkeypatch.setattr(sys, "stdin", None)
    for command in (["ask", "-q", "Who?", "-t", "-"], ["compress", "-", "-o", tmp_path / "m"]):
        assert "standard input is closed" in refused(*command)
    assert "give --question" in refused("ask", "-t", text)
    asked = ["-q", "Who?", "--max-new-tokens", 2, "--model", checkpoints / "one"]
    assert run("ask", "-t", text, *asked)[0] == 0


def test_bad_arguments(refused, checkpoints, text):
    one = ["--model", checkpoints / "one"]
    ask = ["ask", "--question", "Who?", "--text", text]
    assert "--question" in refused("ask", "--text", text)
    assert "give either --text or --memory" in refused("ask", "--question", "Who?")
    assert "give either --text or --memory" in refused("reconstruct")
    assert "No such command" in refused("aks")
    assert "[4, 16]" in refused(*ask, *one, "--rate", 5)
    assert "'--rate'" in refused(*ask, *one, "--rate", "four")
    assert "question is empty" in refused("ask", "--text", text, "--question", " ", *one)
    assert "choose one of auto" in refused(*ask, *one, "--dtype", "float33")
    assert "cannot be used" in refused(*ask, *one, "--device", "abacus")
    assert "--device meta cannot be used" in refused(*ask, *one, "--device", "meta")
    assert "no such folder" in refused(*ask, "--model", "./nowhere")
    assert "me/none is not in the Hub's cache" in refused(*ask, "--model", "me/none")
    assert "Did you mean 'ask'? See" in refused("asks")
    assert "--suite" in refused("eval", "--suite", "tiny")  # the lab's


def test_bad_memories(refused, run, checkpoints, text, tmp_path):
    memory = tmp_path / "m.safetensors"
    run("compress", text, "-o", memory, "--model", checkpoints / "one")
    ask = ["ask", "--question", "Who?", "--memory", memory, "--model"]
    assert "written by compressor" in refused(*ask, checkpoints / "other")
    memory.write_bytes(memory.read_bytes()[:-9])
    assert "cannot be read as a memory" in refused(*ask, checkpoints / "one")
    memory.unlink()
    assert "no memory file" in refused(*ask, checkpoints / "one")


def test_another_kind_of_checkpoint(refused, zoo, text):
    folder = zoo.folder("llama", "decoder")
    message = refused("ask", "--question", "Who?", "--text", text, "--model", folder)
    assert "is not a memslots checkpoint but a 'llama' model" in message


def test_a_folder_that_holds_no_checkpoint_itself(refused, text, tmp_path):
    """As that of a training, which is named in place of its last stage."""
    ask = ["ask", "--question", "Who?", "--text", text, "--model", tmp_path]
    assert f"{tmp_path} has no config.json, so it is not a checkpoint" in refused(*ask)
    stage = tmp_path / "compressor" / "questions"
    stage.mkdir(parents=True)
    (stage / "config.json").write_text("{}")
    assert f"is the folder of a training; its newest checkpoint is {stage}." in refused(*ask)


def test_bad_recipes(refused):
    assert "did you mean 'pcc_lite'" in refused("train", "pcc_light")
    assert "did you mean 'seed'" in refused("train", "pcc_lite", "--set", "compressor.sed=1")
    assert "key=value" in refused("train", "pcc_lite", "--set", "seed")


def test_debug_shows_the_traceback_of_one_call(capsys):
    with pytest.raises(ValueError, match="did you mean"):
        main(["--debug", "train", "pcc_light"])
    assert main(["train", "pcc_light"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP of torch's wheels for Linux")
@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({}, "GOMP_SPINCOUNT = '10000'"),
        ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "GOMP_SPINCOUNT = '0'"),
    ],
)
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(chosen, told):
    """Spinning beside another busy process, a command takes ten times as long."""
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", "from memslots.cli import main; main(['--version']); import torch"],
        env={**kept, **chosen, "OMP_DISPLAY_ENV": "VERBOSE", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told in done.stderr


class _Interrupted:
    """Finds no module, and meets Ctrl-C at the command line's."""

    @staticmethod
    def find_spec(name, *_):
        if name == "memslots.cli":
            raise KeyboardInterrupt


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(monkeypatch, capsys):
    scripts = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert scripts == {"memslots": "memslots.__main__:main"}
    monkeypatch.delitem(sys.modules, "memslots.cli")
    monkeypatch.setattr(sys, "meta_path", [_Interrupted, *sys.meta_path])
    assert from_shell() == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_ctrl_c_that_a_library_takes_for_a_missing_part_is_still_one(monkeypatch, capsys):
    """As transformers does while it loads: it says that a module cannot be imported."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    commands = typer.Typer()

    @commands.command()
    def load(name: str) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError(f"could not import {name}") from None

    try:
        assert main(["torch"], commands) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_an_answer_that_the_terminal_cannot_show_is_escaped():
    """With PYTHONIOENCODING=cp1252, as on Windows: characters beyond it never lose the answer."""
    code = (
        "import sys, typer\n"
        "from memslots.cli import main\n"
        "from memslots.cli.options import out\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def say() -> None:\n"
        "    typer.echo('typed \\u4f60\\u597d')\n"
        "    out.print('drawn \\u4f60\\u597d \\u20ac')\n"
        "@app.command()\n"
        "def other() -> None: ...\n"
        "sys.exit(main(['say'], app))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=True,
    )
    said = done.stdout.decode("cp1252")
    assert "typed \\u4f60\\u597d" in said
    assert "drawn \\u4f60\\u597d \u20ac" in said
    assert not done.stderr


def test_a_warning_is_a_sentence_and_no_line_of_code(tmp_path):
    (tmp_path / "notes.txt").write_text(TEXT, "utf-8")
    ask = ["ask", "--model", "tiny", "-t", "notes.txt", "-q", "Who?", "--expand", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "memslots", *ask], cwd=tmp_path, capture_output=True, text=True
    )
    (said,) = [line for line in done.stderr.splitlines() if "warning" in line.lower()]
    assert done.returncode == 0
    assert said.startswith("warning: the exact text of segments 0 was not kept")
    assert said.endswith("memory.as_text({i: text})")
    assert ".py" not in done.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["pcc_lit"], "pcc_lite"),  # told before any library is imported, and the other one after
        (["pcc_lite", "--set", "compressor.training.learning_rat=1"], "learning_rate"),
    ],
)
def test_no_library_warns_on_a_typo(tmp_path, typed, meant):
    done = subprocess.run(
        [sys.executable, "-m", "memslots", "train", *typed, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert meant in done.stderr


def test_cram_and_store_get_write_over_nothing_that_they_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("Ann owns 27 maps.")
    command = ["cram", "--text", "text.txt", "--decoder", "tiny", "--length", "4"]
    assert main([*command, "-o", "text.txt", "--force"]) == 2
    (tmp_path / "kept").write_text("kept")
    assert main([*command, "-o", "kept"]) == 2
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert text.read_text() == "Ann owns 27 maps."
    assert (tmp_path / "kept").read_text() == "kept"
    assert main(["store", "add", "text.txt", "--store", "st", "--model", "tiny"]) == 0
    get = ["store", "get", "text.txt", "--store", "st", "--force", "-o"]
    assert main([*get, "st/catalogue.sqlite"]) == 2
    assert "is in the store st" in capsys.readouterr().err
    assert main(["store", "info", "--store", "st"]) == 0


def test_results_of_eval_need_a_file_that_can_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asked.jsonl").write_text('{"context":"A.","question":"Q?","answer":"A"}\n')
    (tmp_path / "results.md").mkdir()
    command = ["eval", "--model", "nosuch", "--tasks", "qa", "--data", "qa=asked.jsonl"]
    assert main([*command, "--output", "results.json"]) == 2
    assert "results.md is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["plan", "--tokens", "1000"], ["init", "--encoder", "decoder", "-o", "new"]]
)
def test_no_command_runs_or_offers_to_run_code_of_a_repository(
    tmp_path, capsys, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Strange"}}
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    (tmp_path / "other/strange.py").write_text("raise SystemExit('code ran')")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{embedded('tiny')}/{name}", tmp_path / "other")
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked"))
    assert main([*command, "--decoder", "other"]) == 2
    assert "trust_remote_code" in capsys.readouterr().err


def test_a_memslots_checkpoint_is_no_llm(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--decoder", str(embedded("tiny")), "-o", "new"]) == 2
    assert "is a memslots checkpoint; name the LLM" in capsys.readouterr().err


def test_json_with_standard_output_closed(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    print_json({"answer": "ü"})
