"""`--fidelity`, `--max-slots`, `--rates`, `--exact` and `--keep-text` on commands that compress."""

import json

import pytest

from memslots import Memory, MemslotsModel, verified
from memslots.cli import main
from memslots.cli.options import verification
from memslots.serving.store import MemoryStore

pytestmark = [
    pytest.mark.filterwarnings("ignore:from the slots the decoder"),
    pytest.mark.filterwarnings("ignore:the exact text of segments"),
]

TEXT = "She lives in Lagos and owns 27 maps. He left on 2024-05-01 with 3 keys. " * 3


@pytest.fixture(scope="module")
def checkpoint(zoo, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("verified") / "model"
    zoo.compressor(seed=0, segment_length=24, bundle_decoder=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text(tmp_path) -> str:
    file = tmp_path / "notes.txt"
    file.write_text(TEXT, "utf-8")
    return str(file)


ASKED = [
    (["--fidelity", "0.02", "--rates", "4,8"], {"fidelity": 0.02, "rates": [4, 8]}),
    (["--max-slots", "40"], {"max_slots": 40}),
    (["--rate", "8", "--exact", "numbers, dates"], {"rate": 8, "exact": ["numbers", "dates"]}),
    (["--rate", "8", "--exact", "none"], {"rate": 8, "exact": []}),
    (["--rate", "8", "--exact", "all"], {"rate": 8, "exact": True}),
]


@pytest.mark.parametrize(("options", "wanted"), ASKED)
def test_compress_asks_what_its_options_say(checkpoint, text, tmp_path, capsys, options, wanted):
    output = tmp_path / "memory"
    assert main(["compress", text, "-o", str(output), "--model", checkpoint, *options]) == 0
    found = Memory.load(output)
    model = MemslotsModel.from_pretrained(checkpoint).eval()
    expected = verified.compress(model, TEXT, **wanted)
    assert (found.checks, found.literals) == (expected.checks, expected.literals)
    assert verified.report(found).summary in " ".join(capsys.readouterr().out.split())


def test_ask_and_reconstruct_from_a_verified_text(checkpoint, text, tmp_path, capsys):
    model = MemslotsModel.from_pretrained(checkpoint).eval()
    memory = verified.compress(model, TEXT, max_slots=40, rates=[4, 8], exact=["numbers"])
    options = ["--model", checkpoint, "--max-slots", "40", "--rates", "4,8"]
    ask = ["ask", "-t", text, "-q", "Who?", "--max-new-tokens", "4", "--json"]
    assert main([*ask, *options, "--exact", "numbers", "--expand", "0", "--expand", "2"]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = model.generate(
        memory=verified.expanded(model, memory, [0, 2]), question="Who?", max_new_tokens=4
    )
    assert shown["answers"][0]["answer"] == expected
    assert (shown["slots"], shown["literals"]) == (len(memory.slots), sum(memory.n_literals))
    assert main(["reconstruct", "-t", text, *options]) == 0
    plain = verified.compress(model, TEXT, max_slots=40, rates=[4, 8])
    assert capsys.readouterr().out.startswith(model.reconstruct(plain)[:40])
    assert main(["ask", "-t", text, "-q", "?", "--model", checkpoint, "--expand", "99"]) == 2
    assert "segments are integers from 0" in " ".join(capsys.readouterr().err.split())


def test_a_store_of_verified_memories(checkpoint, tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    bodies = {f"{i}.txt": f"Anna owns {i}7 maps and left on 2024-05-0{i}. " * 3 for i in (1, 2)}
    for name, body in bodies.items():
        (texts / name).write_text(body, "utf-8")
    add = ["store", "add", str(texts), "--model", checkpoint, "--store"]
    model = MemslotsModel.from_pretrained(checkpoint).eval()
    for name, options in (
        ("fixed", ["--rate", "8", "--exact", "all"]),
        ("chosen", ["--fidelity", "0.02", "--exact", "numbers", "--keep-text"]),
    ):
        path = str(tmp_path / name)
        assert main([*add, path, *options]) == 0
        assert "documents: 2 added" in capsys.readouterr().out
        store = MemoryStore(path)
        for one, body in bodies.items():
            assert model.reconstruct(store.get(one), exact=True) == body
            assert store.get(one).checks
        assert main([*add, path, *options]) == 0  # also where each segment has its own rate
        assert "documents: 0 added, 2 stored before" in " ".join(capsys.readouterr().out.split())
    path = str(tmp_path / "beside")
    assert main([*add, path, "--literals", "numbers"]) == 0
    memory = MemoryStore(path).get("1.txt")
    assert {one.text for own in memory.literals for one in own} >= {"17", "2024"}
    assert not memory.checks
    (texts / "3.txt").write_text(bodies["1.txt"] + "More.", "utf-8")
    (texts / "4.txt").write_text(bodies["1.txt"], "utf-8")  # by another id
    chosen = [*add, str(tmp_path / "chosen"), *options]
    assert main(chosen) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "documents: 1 added, 2 stored before, 1 with a text that is stored" in told


def test_a_store_knows_what_its_documents_were_made_with(checkpoint, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "1.txt").write_text(TEXT, "utf-8")
    path = str(tmp_path / "store")
    add = ["store", "add", str(tmp_path / "texts"), "--model", checkpoint, "--store", path]

    def run(*options: str) -> tuple[int, str]:
        code = main([*add, *options])
        shown = capsys.readouterr()
        return code, " ".join((shown.out + shown.err).split())

    assert run("--rate", "8")[0] == 0
    assert "documents: 0 added, 1 stored before" in run("--rate", "8")[1]
    made = ["--fidelity", "0.02", "--rates", "8,4", "--exact", "numbers"]
    for other in (made, ["--rate", "8", "--exact", "numbers"], ["--rate", "8", "--keep-text"]):
        code, told = run(*other)  # was asked for, and is not what is there: not passed over
        assert code == 1
        assert "documents: 0 added, 0 stored before" in told
        assert "1 changed and left alone (--replace takes the new ones): 1.txt" in told
    assert "documents: 1 added" in run(*made, "--replace")[1]
    again = ["--fidelity", "0.02", "--rates", "4,8", "--exact", "numbers"]
    assert "documents: 0 added, 1 stored before" in run(*again, "--replace")[1]
    wanted = {"fidelity": 0.02, "rates": [4, 8], "exact": ["numbers"]}
    store = MemoryStore(path)
    assert store.find({"memslots_made_with": wanted}) == ["1.txt"]
    store.compact()
    assert store.places(["1.txt"])["1.txt"].made_with == wanted
    (tmp_path / "texts" / "2.txt").write_text(TEXT, "utf-8")  # the same text by another id
    assert "1 with a text that is stored" in run(*made)[1]
    assert "documents: 1 added" in run("--fidelity", "0.03")[1]


def test_what_is_measured_is_read_with_these_literals(checkpoint, monkeypatch, tmp_path):
    seen = []

    def evaluate(model, names, **options):
        seen.append(model.compress(TEXT).n_literals[0])
        return {"records": [], "notes": []}

    monkeypatch.setattr("memslots.evaluation.suite.evaluate_tasks", evaluate)
    monkeypatch.setattr("memslots.evaluation.tables.plot", lambda *given: None)
    monkeypatch.setattr("memslots.evaluation.tables.markdown", lambda results: "")
    output = tmp_path / "found.json"
    command = ["eval", "--model", checkpoint, "--tasks", "qa", "--output", str(output)]
    assert main(command) == 0
    assert main([*command, "--literals", "dates", "--force"]) == 0
    assert seen == [0, 3]
    assert json.loads(output.read_text())["literals"] == ["dates"]


def test_serve_is_told_its_literals(checkpoint, monkeypatch):
    pytest.importorskip("uvicorn", reason="the gateway needs memslots[serve]")
    settings = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self: None)
    monkeypatch.setattr(
        "memslots.serving.gateway.Gateway.app", lambda self: settings.append(self._settings)
    )
    assert main(["serve", "--model", checkpoint, "--literals", "numbers,dates"]) == 0
    assert main(["serve", "--model", checkpoint, "--literals", "none"]) == 0
    assert main(["serve", "--model", checkpoint]) == 0
    assert [one.literals for one in settings] == [("numbers", "dates"), (), None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fidelity", "0"], "--fidelity 0.0: must be above 0 and up to 1"),
        (["--fidelity", "nan"], "--fidelity nan: must be above 0"),
        (["--max-slots", "0"], "--max-slots 0: must be 1 or more"),
        (["--max-slots", "1"], "max_slots=1 is too little"),
        (["--rates", "4"], "--rates 4 needs --fidelity or --max-slots"),
        (
            ["--rates", "4,x", "--fidelity", "0.5"],
            "--rates 4,x: must be numbers separated by commas",
        ),
        (["--rates", ",", "--fidelity", "0.5"], "must be numbers separated by commas"),
        (["--rates", "3", "--fidelity", "0.5"], "rate 3 is not one"),
        (["--rate", "4", "--fidelity", "0.5"], "give --rates instead"),
        (
            ["--exact", "phones"],
            "--exact phones: phones is not a kind of verbatim tokens; choose from numbers",
        ),
        (["--exact", "phones"], "quotes, all, separated by commas, or none"),
    ],
)
def test_mistakes_of_compress(checkpoint, text, tmp_path, capsys, options, message):
    command = ["compress", text, "-o", str(tmp_path / "out"), "--model", checkpoint, *options]
    assert main(command) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["ask", "--memory", "x", "-q", "?", "--fidelity", "0.5"],
            "--fidelity goes with --text",
        ),
        (
            ["reconstruct", "--memory", "x", "--max-slots", "5", "--literals", "none"],
            "--max-slots, --literals go with --text",
        ),
        (["store", "add", ".", "--store", "s", "--fidelity", "3"], "must be above 0 and up to 1"),
        (["eval", "--literals", "names"], "names is not a kind of verbatim tokens"),
        (["serve", "--literals", "names"], "names is not a kind of verbatim tokens"),
    ],
)
def test_mistakes_of_the_others(capsys, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text(TEXT)
    assert main(command) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_mistakes_of_a_store(checkpoint, text, tmp_path, capsys):
    add = ["store", "add", text, "--model", checkpoint, "--store", str(tmp_path / "int8")]
    int8 = [*add, "--slot-dtype", "int8"]
    for options, message in ((["--fidelity", "0.5", "--rates", "3"], "--rates 3: 3 is not one"),):
        assert main([*int8, *options]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert main([*int8, "--exact", "all"]) == 0


def test_nothing_is_asked_where_nothing_is_given():
    assert verification() == verification(rate=4) == {}
