"""The Space's page without a browser: what it computes, what it refuses, and what it shows."""

import json
import re
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from memslots.hub_cards.space.memslots_space.conversation import converse, is_about, reply
from tiny_models import LONG, QUESTIONS, TEXTS

from memslots import verified
from memslots.chat import ChatMemory
from memslots.cli import main
from memslots.evaluation.answering import answer_from_text
from memslots.evaluation.metrics import tokens_aligned
from memslots.hub_cards.space.memslots_space import answers, documents, reading_back, views
from memslots.hub_cards.space.memslots_space.loading import Compressor
from memslots.hub_cards.space.memslots_space.settings import Settings, read_settings
from memslots.modeling.layout_memslots import Prompt

NEW = 5
HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> ${7*7} {{7*7}} & </b>"


@pytest.fixture(scope="module")
def document(model):
    return answers.compress(model, TEXTS[1], rate=2)


@pytest.fixture
def encodings(model, monkeypatch):
    """How many segments each encoder pass had."""
    counts, encode = [], model.encode

    def counted(segment_input_ids, *arguments, **named):
        counts.append(len(segment_input_ids))
        return encode(segment_input_ids, *arguments, **named)

    monkeypatch.setattr(model, "encode", counted)
    return counts


# -- answers ---------------------------------------------------------------------------------------


def test_answers_are_those_of_the_package(model, document):
    question = QUESTIONS[1]
    found = {a.source: a for a in answers.answer_all(model, document, question, NEW)}
    assert list(found) == ["Memory", "Full text", "No context"]
    memory = model.generate(memory=document.memory, question=question, max_new_tokens=NEW)
    assert found["Memory"].text == memory
    plain = answer_from_text(model, [document.text, None], [question, question], NEW)
    assert [found["Full text"].text, found["No context"].text] == plain
    assert len({a.text for a in found.values()}) > 1


def test_positions_and_bytes_are_counted_as_the_decoder_reads(model, document):
    question = QUESTIONS[0]
    memory, text, none = answers.answer_all(model, document, question, NEW)
    prompt = model.processor.prompt(question=question)
    (row,) = model.memory_rows(document.memory, [(0, Prompt(prompt.before, prompt.after))])
    inputs = model.generation_inputs([row], document.memory)
    assert memory.positions == inputs["inputs_embeds"].shape[1]
    assert none.positions == len(prompt.before + prompt.after)
    text_tokens = model.processor.decoder_text.encode(f"{document.text}\n\n")
    assert abs(text.positions - none.positions - len(text_tokens)) <= 1  # a merge at the border
    config = model.decoder.config
    each = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert [a.cache_bytes for a in (memory, text, none)] == [
        each * a.positions for a in (memory, text, none)
    ]
    assert memory.slot_bytes == document.memory.nbytes
    assert text.slot_bytes is None
    assert all(a.seconds > 0 for a in (memory, text, none))


def test_one_encoding_serves_every_rate(model, encodings):
    fine = answers.compress(model, TEXTS[1], rate=2)
    coarse = answers.compress(model, TEXTS[1], rate=8, earlier=fine)
    assert len(encodings) == 1
    assert coarse.encoded is fine.encoded
    assert (coarse.memory.rate, coarse.seconds) == (8, fine.seconds)
    back = answers.compress(model, TEXTS[1], rate=2, earlier=coarse)
    assert back.memory is fine.memory
    answers.compress(model, TEXTS[0], rate=2, earlier=back)
    assert len(encodings) == 2


def test_finer_than_what_is_there_is_encoded_again(model, encodings):
    coarse = answers.compress(model, TEXTS[1], rate=8)
    fine = answers.compress(model, TEXTS[1], rate=2, earlier=coarse)
    assert (len(encodings), fine.memory.rate) == (2, 2)


def test_what_the_decoder_cannot_hold_is_said_and_the_rest_is_answered(model):
    limit = model.decoder.config.max_position_embeddings
    text = " ".join([LONG] * (1 + 8 * limit // len(LONG)))
    document = answers.compress(model, text, rate=8)
    found = {a.source: a for a in answers.answer_all(model, document, "Where?", NEW)}
    assert "Too long for this decoder" in found["Full text"].problem
    assert f"{limit:,}" in found["Full text"].problem
    assert found["Full text"].seconds is None
    assert not found["No context"].problem


# -- reading back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "produced"),
    [
        (TEXTS[1], TEXTS[1]),
        (TEXTS[1], TEXTS[1].replace("Lagos", "Lima").replace("twenty seven ", "")),
        ("Café 👩‍🚀 in März", "Cafe 👩‍🚀 im  März, again"),
        (TEXTS[0], ""),
        (TEXTS[0], "</s> <tool_call> quite another"),
    ],
)
def test_pieces_give_both_texts_back(model, source, produced):
    plain = model.processor.decoder_text
    pieces, right, total = reading_back.compare(plain.backend, source, produced)

    def joined(*kinds):
        return "".join(piece.text for piece in pieces if piece.kind in kinds)

    assert joined("right", "wrong") == produced
    if source == produced:
        assert {piece.kind for piece in pieces} == {"right"}
    if "tool_call" not in produced:
        assert right == tokens_aligned(plain.encode(source), plain.encode(produced))
    assert total == len(plain.encode(source))
    assert len(joined("missing")) <= len(source)
    assert (joined("missing") == source) == (right == 0)


def test_read_back_is_the_reconstruction(model, document):
    segments = len(document.memory.segments)
    assert segments > 2
    found = reading_back.read_back(model, document, most=segments)
    text = "".join(p.text for pieces in found.segments for p in pieces if p.kind != "missing")
    assert text == model.reconstruct(document.memory)
    assert (len(found.segments), found.left_out) == (segments, 0)
    some = reading_back.read_back(model, document, most=2)
    assert (some.segments, some.left_out) == (found.segments[:2], segments - 2)
    assert some.total < found.total


# -- conversation ----------------------------------------------------------------------------------


def test_a_conversation_compresses_the_document_once(model, document, encodings):
    talk = converse(Compressor(model, ChatMemory), document)
    alone = ChatMemory(model, keep_last=8, rate=2)
    alone.memory = document.memory
    said = [reply(talk, question, NEW) for question in QUESTIONS]
    assert said == [alone.ask(question, max_new_tokens=NEW) for question in QUESTIONS]
    assert encodings == []
    assert talk.chat.positions > model.memory_positions(document.memory)[0]
    assert is_about(talk, document)
    assert not is_about(None, document)
    assert not is_about(talk, answers.compress(model, TEXTS[1], 8, document))
    assert not is_about(talk, answers.compress(model, TEXTS[0], 2))


# -- what visitors bring ---------------------------------------------------------------------------


def test_uploads_are_read_and_deleted(tmp_path):
    file = tmp_path / "Notes.MD"
    file.write_bytes("\ufeffOne.\r\nCafé.".encode())
    assert documents.read_upload(file, 100) == "One.\nCafé."
    assert not file.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"%PDF-1.7", r"Only \.txt and \.md files"),
        ("a", b"text", "no ending"),
        ("a.txt", b"x" * 401, "too large: 401 bytes, at most 400"),
        ("a.txt", b"x" * 101, "too long: 101 characters, at most 100"),
        ("a.txt", "café".encode("latin-1"), "not UTF-8"),
        ("a.txt", b"MZ\0\0", "NUL"),
        ("a.txt", b" \n", "empty"),
    ],
)
def test_uploads_that_are_refused_are_deleted_too(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        documents.read_upload(file, 100)
    assert not file.exists()


def test_questions_are_bounded():
    assert documents.check_question(" Who? ") == "Who?"
    for bad, message in ((None, "Type a question"), ("  ", "Type"), ("x" * 501, "at most 500")):
        with pytest.raises(ValueError, match=message):
            documents.check_question(bad)


# -- settings --------------------------------------------------------------------------------------


def test_settings_of_a_file_and_of_variables(tmp_path, caplog):
    file = tmp_path / "space.json"
    file.write_text(json.dumps({"model": "me/model", "revision": "abc", "queue": 3}))
    assert read_settings(file, {}) == Settings("me/model", "abc", queue=3)
    told = {"MEMSLOTS_QUEUE": "9", "MEMSLOTS_NOTE": "Hi.", "OTHER": "x", "MEMSLOTS_TITLE": ""}
    assert read_settings(file, told) == Settings("me/model", "abc", queue=9, note="Hi.")
    assert not caplog.text
    # A pin of one checkpoint is none of another.
    assert read_settings(file, {"MEMSLOTS_MODEL": "you/other"}).revision is None
    assert "you/other is not pinned" in caplog.text
    both = {"MEMSLOTS_MODEL": "you/other", "MEMSLOTS_REVISION": "def"}
    assert read_settings(file, both).revision == "def"
    assert read_settings(tmp_path / "none.json", both) == Settings("you/other", "def")


def test_settings_that_cannot_be(tmp_path):
    file = tmp_path / "space.json"
    with pytest.raises(ValueError, match="set its variable MEMSLOTS_MODEL"):
        read_settings(file, {})
    with pytest.raises(ValueError, match="whole number, got 'many'"):
        read_settings(file, {"MEMSLOTS_MODEL": "me/model", "MEMSLOTS_QUEUE": "many"})
    file.write_text('{"model": "me/model", "max_charakters": 5}')  # typos: ignore
    with pytest.raises(ValueError, match="does not know"):
        read_settings(file, {})
    with pytest.raises(ValueError, match="max_characters must be an integer of at least 1"):
        Settings("me/model", max_characters=0)


# -- what is shown ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:from the slots the decoder")
def test_all_text_is_escaped(model):
    document = answers.compress(model, HOSTILE, rate=2)
    answer = answers.Answer("Memory", HOSTILE, 9, 10, 11, 0.5)
    failed = answers.Answer("Full text", problem=HOSTILE)
    pieces = reading_back.Piece(HOSTILE, "wrong"), reading_back.Piece(HOSTILE, "missing")
    found = reading_back.ReadBack((pieces,), right=0, total=9, left_out=0, seconds=1.0)
    for shown in (
        views.segments(document),
        views.segments(answers.verify(model, document)),
        views.cards([answer, failed], 2),
        views.reconstruction(found, 2),
        views.notice(HOSTILE),
        views.hint(HOSTILE),
    ):
        assert "<script" not in shown
        assert "<img" not in shown
        assert "&lt;" in shown


def test_segments_tile_the_text(model, document):
    shown = views.segments(document)
    spans = re.findall(r'<span class="segment s\d"><sup>(\d+)</sup>(.*?)</span>', shown, re.DOTALL)
    assert [int(number) for number, _ in spans] == list(range(1, len(spans) + 1))
    text = "".join(part for _, part in spans)
    assert text.replace("&#39;", "'") == document.text
    assert len(spans) == len(document.memory.segments)


@pytest.mark.filterwarnings("ignore:from the slots the decoder")
def test_what_the_slots_lose_is_marked_when_it_is_asked_for(model, document, encodings):
    coarse = answers.compress(model, document.text, 8, document)
    found = answers.verify(model, coarse)
    checked = verified.compress(model, document.text, rate=8, exact=[])
    assert found.report == verified.report(checked, document.text)
    assert found.memory is coarse.memory
    shown = views.segments(found)
    assert not shown.startswith("<!doctype")
    assert verified.report(checked).summary in shown
    lost = sum(len(check.lost) for check in checked.checks)
    assert 0 < shown.count('<span class="lost">') - 1 <= lost  # one is the legend's
    before = len(encodings)
    assert answers.verify(model, found) is found
    assert answers.compress(model, document.text, 8, found) is found
    assert answers.compress(model, document.text, 2, found).report is None  # of another rate
    assert len(encodings) == before


def test_cards_stand_in_one_order_and_wait():
    memory = answers.Answer("Memory", "Lagos", 40, 12_000, 900, 0.25)
    waiting = views.cards([memory], rate=4, waiting=True)
    names = re.findall(r"<h3>(.*?)</h3>", waiting)
    assert names == ["Full text", "Memory, rate 4", "No context"]
    assert waiting.count("…") == 2
    assert "12 kB" in waiting
    assert "900 B" in waiting
    assert "0.25" in waiting
    assert "width:100.0%" in waiting


def test_numbers_for_people():
    shown = {0: "0 B", 999: "999 B", 1000: "1 kB", 18_432: "18.4 kB", 999_999: "1 MB"}
    assert {count: views.readable_bytes(count) for count in shown} == shown
    assert (views.plural(1, "slot"), views.plural(1200, "slot")) == ("1 slot", "1,200 slots")


# -- events and server -----------------------------------------------------------------------------

SETTINGS = Settings("me/model", max_characters=2000, max_new_tokens=NEW, note="Only a test.")


@pytest.fixture(scope="module")
def page_module():
    pytest.importorskip("gradio", reason="the page needs memslots[demo]")
    from memslots.hub_cards.space.memslots_space import page

    return page


@pytest.fixture
def actions(page_module, model):
    return page_module._Actions(Compressor(model, ChatMemory), SETTINGS)


@pytest.mark.filterwarnings("ignore:from the slots the decoder")
def test_events_of_a_visit(actions):
    document, status, coloured = actions.compress(TEXTS[1], 2, None)
    assert "slots" in status
    assert 'class="segment' in coloured
    steps = list(actions.ask(TEXTS[1], 2, document, QUESTIONS[0]))
    assert [step[3].count("…") for step in steps] == [3, 2, 1, 0, 0]
    assert all(step[0].encoded is document.encoded for step in steps)
    seen, _, marked = actions.verify(TEXTS[1], 2, document)
    assert "lost by the slots" in marked
    assert next(actions.ask(TEXTS[1], 2, seen, QUESTIONS[0]))[2] == marked
    *_, restored = actions.read_back(TEXTS[1], 4, document)
    assert "at rate 4" in restored
    talk, turns = None, []
    for number, question in enumerate(QUESTIONS, start=1):
        document, _, _, talk, turns, left, used = actions.talk(
            TEXTS[1], 2, document, talk, turns, question
        )
        assert (len(turns), left) == (2 * number, "")
        assert f"{number} question" in used
    first = talk
    *_, talk, turns, _, _ = actions.talk(TEXTS[0], 2, document, talk, turns, "Where?")
    assert talk is not first
    assert len(turns) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("x" * 2001, "at most 2,000"), ("a\ud800b", "surrogate")],
)
def test_a_visitors_mistake_is_one_line(actions, text, message):
    shown = [
        actions.compress(text, 2, None)[1],
        list(actions.ask(text, 2, None, "Who?"))[-1][-1],
        actions.verify(text, 2, None)[-1],
        actions.read_back(text, 2, None)[-1],
        actions.talk(text, 2, None, None, [], "Who?")[-1],
    ]
    for line in shown:
        assert 'role="alert"' in line
        assert message in line


def test_what_nobody_can_mend_is_logged_and_not_shown(actions, model, monkeypatch, caplog):
    def broken(*arguments, **named):
        raise RuntimeError("/home/secret/path")

    monkeypatch.setattr(model, "compress", broken)
    _, shown, _ = actions.compress(TEXTS[0], 2, None)
    assert "This did not work" in shown
    assert "secret" not in shown
    assert "/home/secret/path" in caplog.text


@pytest.fixture(scope="module")
def url(page_module, model):
    page = page_module.build_page(Compressor(model, ChatMemory), SETTINGS)
    _, url, _ = page_module.serve(page, SETTINGS, prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def upload(url, content):
    border = b"memslots-border"
    named = b'Content-Disposition: form-data; name="files"; filename="a.txt"'
    body = b"--%b\r\n%b\r\n\r\n%b\r\n--%b--\r\n" % (border, named, content, border)
    kind = {"Content-Type": f"multipart/form-data; boundary={border.decode()}"}
    return urllib.request.Request(f"{url}gradio_api/upload", body, kind)


def test_the_server_gives_nothing_away(url):
    status, html = get(url)
    assert status == 200
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+', html)
    config = json.loads(get(f"{url}config")[1])
    assert config["analytics_enabled"] is False
    assert {each["api_visibility"] for each in config["dependencies"]} == {"private"}
    assert json.loads(get(f"{url}gradio_api/info")[1])["named_endpoints"] == {}
    assert get(f"{url}gradio_api/file=/etc/passwd")[0] == 403
    assert get(f"{url}gradio_api/file={Path(__file__).resolve()}")[0] == 403
    assert get(f"{url}monitoring")[0] in (401, 403, 404)


def test_the_server_bounds_uploads(url):
    most = documents.max_upload_bytes(SETTINGS.max_characters)
    with urllib.request.urlopen(upload(url, b"x" * most), timeout=60) as answer:
        (path,) = json.load(answer)
    Path(path).unlink()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(upload(url, b"x" * (most + 1)), timeout=60)
    assert refused.value.code == 413


def send(url, place, data):
    """What the server answers to an event of the component `place`, as its browser reads it."""
    config = json.loads(get(f"{url}config")[1])
    (target,) = [c["id"] for c in config["components"] if c["props"].get("elem_id") == place]
    (event,) = [d["id"] for d in config["dependencies"] if d["targets"][0][0] == target]
    body = json.dumps({"data": data, "fn_index": event, "session_hash": place}).encode()
    kind = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{url}gradio_api/queue/join", body, kind))
    with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash={place}") as stream:
        for line in stream:
            if b'"process_completed"' in line:
                return json.loads(line.removeprefix(b"data: "))
    raise AssertionError("the event never ended")


def test_only_what_was_uploaded_is_read_and_deleted(url, tmp_path):
    kept = tmp_path / "secret.txt"
    kept.write_text("A secret of this machine.")
    answer = send(url, "upload", [{"path": str(kept), "meta": {"_type": "gradio.FileData"}}, 2])
    assert answer["success"] is False
    assert "secret of" not in json.dumps(answer)
    assert kept.read_text() == "A secret of this machine."
    with urllib.request.urlopen(upload(url, TEXTS[0].encode()), timeout=60) as made:
        (path,) = json.load(made)
    assert Path(path).is_file()
    answer = send(url, "upload", [{"path": path, "meta": {"_type": "gradio.FileData"}}, 2])
    assert answer["success"] is True
    assert answer["output"]["data"][0] == TEXTS[0]
    assert not Path(path).exists()


def test_every_example_fits(page_module):
    examples = json.loads((Path(page_module.__file__).parent / "examples.json").read_text("utf-8"))
    for example in examples:
        documents.check_document(example["text"], Settings("me/model").max_characters)
        documents.check_question(example["question"])
        assert len(example["label"]) <= 12  # a button on a phone


# -- command line ----------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


def test_demo_says_what_is_wrong(zoo, page_module, capsys, monkeypatch):
    assert "go with --web" in refused(capsys, "demo", "--port", 8000)
    assert "no such folder" in refused(capsys, "demo", "--web", "--model", "./nowhere")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(capsys, "demo", "--web", "--model", zoo.saved(), "--port", port)
    assert str(port) in line
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'memslots[demo]'" in refused(capsys, "demo", "--web")
