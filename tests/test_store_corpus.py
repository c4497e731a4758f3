"""`memslots store add` and what stands behind it: a corpus goes into a store, once."""

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from store_memories import make_memory

from memslots import MemslotsModel, compiling, embedded
from memslots.cli import main
from memslots.serving import compress_corpus
from memslots.serving.compress_corpus import add_corpus
from memslots.serving.corpus import Document, Unusable, read_documents
from memslots.serving.corpus_workers import CompressorSpec, CorpusCompressor
from memslots.serving.store import MemoryStore

CHECKPOINT = embedded("tiny")


@pytest.fixture(scope="module")
def model():
    return MemslotsModel.from_pretrained(CHECKPOINT, load_decoder=False, dtype=torch.float32)


@pytest.fixture
def spec():
    return CompressorSpec(CHECKPOINT, "bfloat16", rate=8)


def write_corpus(folder: Path) -> dict[str, str]:
    """Ten documents in four kinds of files, and things that are none. Returns the texts by id."""
    (folder / "sub").mkdir(parents=True)
    texts = {f"sub/{i}.txt": f"Anna owns {i} maps and lives in Lagos." for i in range(4)}
    texts["read me.MD"] = "# Notes\n\nBen is an engineer at Silver Bank.\n"
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    rows = [
        {"text": "Carla speaks Yoruba.", "id": "carla", "year": 1920},
        {"text": "Dora is 34 years old.", "lang": "en"},
        {"text": texts["sub/1.txt"]},
    ]
    lines = [json.dumps(row) for row in rows]
    lines[1:1] = [
        "{not json",
        '["no columns"]',
        '{"text": " "}',
        '{"other": 1}',
        '{"text": "\\ud800"}',
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n\n", "utf-8")
    texts |= {"rows.jsonl#carla": rows[0]["text"], "rows.jsonl#7": rows[1]["text"]}
    table = pa.table(
        {"text": ["Emil graduated from Kent.", None, "Finn owns cups."], "n": [1, 2, 3]}
    )
    pyarrow.parquet.write_table(table, folder / "z.parquet")
    texts |= {"z.parquet#1": "Emil graduated from Kent.", "z.parquet#3": "Finn owns cups."}
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "broken.parquet").write_bytes(b"PAR1 but nothing else")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.txt").write_text("not for us")
    return texts


UNUSABLE = {f"rows.jsonl#{i}" for i in range(2, 7)} | {"z.parquet#2", "latin.txt", "broken.parquet"}


def test_documents_are_read_and_what_is_none_is_named(tmp_path):
    texts = write_corpus(tmp_path)
    found = list(read_documents(tmp_path))
    documents = {one.id: one for one in found if isinstance(one, Document)}
    duplicate = documents.pop("rows.jsonl#8")
    assert {one: document.text for one, document in documents.items()} == texts
    assert duplicate.text == texts["sub/1.txt"]
    carla = json.loads(documents["rows.jsonl#carla"].metadata)
    assert carla == {"source": "rows.jsonl", "id": "carla", "year": 1920}
    unusable = {one.where: one.reason for one in found if isinstance(one, Unusable)}
    assert set(unusable) == UNUSABLE
    assert "not UTF-8 at byte 0" in unusable["latin.txt"]
    assert "no text in the column 'text'" in unusable["rows.jsonl#5"]
    empty = tmp_path / "nothing"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="no folder or file"):
        list(read_documents(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"holds no \.txt"):
        list(read_documents(empty))


def test_a_row_nested_too_deep_costs_no_other(tmp_path):
    deep = ["[" * depth + "]" * depth for depth in (900, 100_000)]
    rows = [f'{{"text": "Ann is a pilot.", "x": {each}}}' for each in deep]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, '{"text": "Ben is here."}']), "utf-8")
    *_, too_deep, last = read_documents(tmp_path)
    assert (too_deep.where, too_deep.reason[:9]) == ("rows.jsonl#2", "not JSON:")
    assert last.text == "Ben is here."


def test_folders_that_are_not_read_are_named(tmp_path, monkeypatch):
    inside, outside = tmp_path / "corpus", tmp_path / "elsewhere"
    for file in (inside / "sub" / "a.txt", inside / "locked" / "b.txt", outside / "c.txt"):
        file.parent.mkdir(parents=True)
        file.write_text("Ann is a pilot.", "utf-8")
    (inside / "link").symlink_to(outside)
    (inside / "again").symlink_to(inside / "sub")  # its files are read where they are
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    *passed_over, document = read_documents(inside)
    assert document.id == "sub/a.txt"
    reasons = {each.where: each.reason for each in passed_over}
    assert set(reasons) == {"link", "locked"}
    assert "not followed" in reasons["link"]
    assert "Permission denied" in reasons["locked"]
    (inside / "sub" / "a.txt").unlink()
    with pytest.raises(ValueError, match="link in it was passed over"):
        list(read_documents(inside))


def check_store(store: MemoryStore, texts: dict[str, str], model: MemslotsModel) -> None:
    """The store holds each text once, as the model compresses it alone."""
    stored = list(store.ids())
    assert Counter(store.get(one).text_sha256[0] for one in stored) == Counter(
        model.compress(text, rate=8).text_sha256[0] for text in texts.values()
    )
    for one in stored:
        back, fresh = store.get(one), model.compress(texts[one], rate=8)
        assert back.documents == fresh.documents
        assert torch.allclose(back.slots.float(), fresh.slots, atol=0.02, rtol=0.01)
    assert store.verify().ok


def test_a_corpus_is_compressed_once_and_again_only_where_it_changed(tmp_path, model, spec):
    folder = tmp_path / "corpus"
    texts = write_corpus(folder)
    store = MemoryStore(tmp_path / "store")

    def run(**options):
        return add_corpus(store, read_documents(folder), spec, model=model, **options)

    report = run(progress=False)
    assert (report.added, report.there, report.duplicates, report.changed) == (9, 0, 1, [])
    assert set(report.unusable) == UNUSABLE
    texts["rows.jsonl#8"] = texts.pop("sub/1.txt")  # the same text, and the earlier of the two
    check_store(store, texts, model)
    assert store.find({"year": 1920}) == ["rows.jsonl#carla"]
    assert store.info().files == 1

    again = run(progress=False)
    assert (again.added, again.there, again.duplicates) == (0, 9, 1)

    (folder / "sub" / "0.txt").write_text("Anna sold all of them.")
    changed = run(progress=False)
    assert (changed.added, changed.changed) == (0, ["sub/0.txt"])
    replaced = run(progress=False, replace=True)
    assert (replaced.added, replaced.there) == (1, 8)
    assert (
        store.get("sub/0.txt").text_sha256 == model.compress("Anna sold all of them.").text_sha256
    )
    other_rate = add_corpus(
        store, read_documents(folder), replace(spec, rate=16), model=model, progress=False
    )
    assert other_rate.added == 1  # the duplicate's text is not there at this rate
    assert store.get("sub/1.txt").rate == 16
    assert len(other_rate.changed) == 9


@pytest.mark.parametrize("at_once", [compress_corpus.LOOK_UP, 1])
@pytest.mark.parametrize("replace", [False, True])
def test_the_second_document_of_an_id_costs_no_other(
    tmp_path, model, spec, replace, at_once, monkeypatch
):
    """Nothing of it is taken: not its text for the first one's, and not for a third one's."""
    monkeypatch.setattr(compress_corpus, "LOOK_UP", at_once)  # 1: the first is stored by then
    monkeypatch.setattr(compress_corpus, "BATCH_DOCUMENTS", at_once)
    monkeypatch.setattr(compress_corpus, "KEEP_SECONDS", 0.0)
    bob, ann = "Bob is a hunter in Rome.", "Ann is a baker in Oslo."
    rows = [{"id": "1", "text": bob}, {"id": "1", "text": ann}, {"id": "2", "text": ann}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    store = MemoryStore(tmp_path / "store")
    for added, there in ((2, 0), (0, 2)):
        documents = read_documents(tmp_path / "rows.jsonl")
        report = add_corpus(store, documents, spec, model=model, replace=replace)
        assert (report.added, report.there, report.duplicates) == (added, there, 0)
        assert (report.unusable, report.changed) == (
            {"rows.jsonl#1": "its id comes twice in the corpus, and the first was taken"},
            [],
        )
    check_store(store, {"rows.jsonl#1": bob, "rows.jsonl#2": ann}, model)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, model, spec, monkeypatch):
    monkeypatch.setattr(compress_corpus, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(compress_corpus, "KEEP_SECONDS", 0.0)
    texts = {f"{i}": f"Document {i} is about maps." for i in range(10)}
    documents = [Document(one, text, "{}", 1) for one, text in texts.items()]
    store = MemoryStore(tmp_path / "store")
    compressed = []

    def compress(self, batch):
        if len(compressed) == 3:
            raise KeyboardInterrupt
        compressed.append(batch)
        return original(self, batch)

    original = CorpusCompressor.__call__
    with monkeypatch.context() as patch:
        patch.setattr(CorpusCompressor, "__call__", compress)
        with pytest.raises(KeyboardInterrupt):
            add_corpus(store, iter(documents), spec, model=model, progress=False)
    assert sorted(store.ids()) == [str(i) for i in range(6)]
    report = add_corpus(store, iter(documents), spec, model=model, progress=False)
    assert (report.added, report.there) == (4, 6)
    check_store(store, texts, model)


def test_one_text_that_cannot_be_compressed_costs_no_other(tmp_path, model, spec):
    documents = [
        Document("good", "Anna owns maps.", "{}", 1),
        Document("bad", "  ", "{}", 1),  # the reader would have left it out
        Document("better", "Ben owns cups.", "{}", 1),
    ]
    store = MemoryStore(tmp_path / "store")
    report = add_corpus(store, documents, spec, model=model, progress=False)
    assert report.added == 2
    assert "empty" in report.unusable["bad"]
    twice = [Document("x", "One text.", "{}", 1), Document("x", "Another text.", "{}", 1)]
    report = add_corpus(store, twice, spec, model=model, progress=False)
    assert report.added == 1
    assert "twice" in report.unusable["x"]


def test_two_runs_at_once_add_each_document_once(tmp_path, model, spec):
    """The other run stores a document between our look-up and our storing."""
    store = MemoryStore(tmp_path / "store")

    def documents():
        yield Document("a", "Anna owns maps.", "{}", 1)
        yield Document("b", "Ben owns cups.", "{}", 1)
        store.add("a", model.compress("Anna owns maps.", rate=8), {"by": "the other run"})

    report = add_corpus(store, documents(), spec, model=model, progress=False)
    assert (report.added, report.there) == (1, 1)
    assert store.find({"by": "the other run"}) == ["a"]


def test_the_command_line_keeps_a_corpus(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    assert main(["store", "add", "corpus", "--store", "kept", "--rate", "8"]) == 1
    printed = capsys.readouterr()
    assert "documents: 9 added, 0 stored before, 1 with a text" in printed.out
    assert "8 could not be used" in printed.err
    Path("kept[").mkdir()
    Path("kept").rename("kept[/b]")  # no markup
    assert main(["store", "info", "--store", "kept[/b]"]) == 0
    assert "kept[/b]" in capsys.readouterr().out
    Path("kept[/b]").rename("kept")
    assert main(["store", "info", "--store", "kept", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["documents"], facts["rates"], facts["slot_dtype"]) == (9, {"8": 9}, "bfloat16")
    assert main(["store", "list", "--store", "kept", "--where", "year=1920"]) == 0
    assert capsys.readouterr().out.split() == ["rows.jsonl#carla"]
    assert main(["store", "get", "sub/3.txt", "--store", "kept", "-o", "m.safetensors"]) == 0
    capsys.readouterr()
    assert main(["store", "delete", "sub/3.txt", "--store", "kept", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": ["sub/3.txt"]}
    assert main(["store", "compact", "--store", "kept", "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["before"]["bytes"] > sizes["after"]["bytes"] > 0
    for catalogue in (tmp_path / "kept").glob("catalogue*"):
        catalogue.unlink()
    assert main(["store", "rebuild", "--store", "kept", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 8
    assert main(["store", "verify", "--store", "kept"]) == 0
    assert "8 documents read, all sound" in capsys.readouterr().out
    (file,) = (tmp_path / "kept" / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["store", "verify", "--store", "kept"]) == 1
    assert "8 damaged" in capsys.readouterr().out


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    other = MemoryStore(tmp_path / "other")
    other.add("x", make_memory(["x"]))
    mistakes = {
        "no memory store at 'none'": ["info", "--store", "none"],
        "no folder or file 'none'": ["add", "none", "--store", "new"],
        "compressor aaaaaaaaaaaa, and": ["add", "corpus", "--store", "other"],
        "--rate 5 is not one that": ["add", "corpus", "--store", "new", "--rate", "5"],
        "slot_dtype='float64'": ["add", "corpus", "--store", "new", "--slot-dtype", "float64"],
        "bfloat16, not int8": ["add", "corpus", "--store", "other", "--slot-dtype", "int8"],
        "'nobody' not in the store": ["get", "nobody", "--store", "other", "-o", "n.safetensors"],
        "'no' not in the store": ["delete", "no", "--store", "other"],
        "is not KEY=VALUE": ["list", "--store", "other", "--where", "x"],
    }
    for message, arguments in mistakes.items():
        assert main(["store", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()
    assert list(other.ids()) == ["x"]


def corpus_of(folder: Path, count: int) -> dict[str, str]:
    folder.mkdir()
    texts = {f"{i}.txt": f"Anna owns {i} maps. She lives in Lagos. " * 3 for i in range(count)}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return texts


def test_several_processes_do_what_one_does(tmp_path, model, spec, monkeypatch):
    monkeypatch.setattr(compress_corpus, "BATCH_DOCUMENTS", 4)
    texts = corpus_of(tmp_path / "corpus", 12)
    store = MemoryStore(tmp_path / "store")
    documents = read_documents(tmp_path / "corpus")
    assert add_corpus(store, documents, spec, workers=2, progress=False).added == 12
    check_store(store, texts, model)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_encoder_is_compiled_where_that_is_asked(tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(compiling, "compile_encoder", compiled.append)
    (tmp_path / "one.txt").write_text("Anna owns 7 maps.", "utf-8")
    add = ["store", "add", str(tmp_path), "--model", CHECKPOINT, "--store"]
    assert main([*add, str(tmp_path / "plain")]) == 0
    assert not compiled
    assert main([*add, str(tmp_path / "compiled"), "--compile"]) == 0
    assert len(compiled) == 1
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main([*add, str(tmp_path / "none"), "--compile", "--workers", "2"]) == 2
    assert "there is no 'no-such-compiler' here" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()


def test_a_worker_outlives_ctrl_c_and_not_its_parent():
    """Else it shows a traceback of its own, and holds its model after `kill` for ever."""
    script = Path(__file__).with_name("worker_script.py")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, signal.SIGINT)
        assert not select.select([parent.stdout], [], [], 0.1)[0]  # it is there and holds it open
        parent.kill()
        assert select.select([parent.stdout], [], [], 10)[0]  # closed, by both
        assert parent.stdout.read() == ""


def test_a_worker_that_dies_is_one_error(tmp_path, spec):
    documents = [Document("a", "Anna owns maps.", "{}", 1)]
    broken = replace(spec, model=str(tmp_path / "no checkpoint"))
    with pytest.raises(ValueError, match="a worker died"):
        add_corpus(MemoryStore(tmp_path / "store"), documents, broken, workers=2, progress=False)


RAY = """
import sys, ray
from memslots.cli import main
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
options = ["--rate", "8", "--ray", "--workers", "2"]
sys.exit(main(["store", "add", sys.argv[1], "--store", sys.argv[2], *options]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install 'ray[data]'")
def test_a_local_ray_cluster_does_what_one_process_does(tmp_path, model):
    texts = corpus_of(tmp_path / "corpus", 150)  # three batches for two workers
    arguments = [sys.executable, "-c", RAY, str(tmp_path / "corpus"), str(tmp_path / "store")]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    run = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "documents: 150 added" in run.stdout
    check_store(MemoryStore(tmp_path / "store"), texts, model)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_error_says_what_to_install(tmp_path, spec):
    with pytest.raises(ImportError, match=r"pip install .*ray"):
        add_corpus(MemoryStore(tmp_path / "s"), [], spec, ray=True, progress=False)
