"""The Space's page without a browser: what it computes, what it refuses, and what it shows."""

import json
import re
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from tiny_models import LONG, QUESTIONS, TEXTS

from memslots import embedded, verified
from memslots.chat import ChatMemory
from memslots.cli import main
from memslots.evaluation.answering import answer_from_text
from memslots.evaluation.metrics import tokens_aligned
from memslots.hub_cards.checkpoint_facts import trained_on
from memslots.hub_cards.space.memslots_space import answers, documents, reading_back, views
from memslots.hub_cards.space.memslots_space.examples import examples
from memslots.hub_cards.space.memslots_space.settings import Settings, read_settings
from memslots.modeling.layout_memslots import Prompt

NEW = 5
HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> ${7*7} {{7*7}} & </b>"


def compress(*arguments, **named):
    *_, document = answers.compress(*arguments, **named)
    return document


@pytest.fixture(scope="module")
def document(model):
    return compress(model, TEXTS[1], rate=2)


@pytest.fixture(scope="module")
def control(model):
    return compress(model, TEXTS[0], rate=2)


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


def test_answers_are_those_of_the_package(model, document, control):
    question = QUESTIONS[1]
    found = {a.source: a for a in answers.answer_all(model, document, control, question, NEW)}
    assert list(found) == ["Memory", "Full text", "Control"]
    for source, memory in (("Memory", document.memory), ("Control", control.memory)):
        expected = model.generate(memory=memory, question=question, max_new_tokens=NEW)
        assert found[source].text == expected
    assert [found["Full text"].text] == answer_from_text(model, [document.text], [question], NEW)
    assert len({a.text for a in found.values()}) > 1


def test_the_full_text_is_answered_up_to_the_same_end(model, document, monkeypatch):
    whole = answers.from_text(model, document.text, QUESTIONS[1], NEW).text
    end = next(c for c in whole[1:-1] if c.isascii() and c.isalnum())
    monkeypatch.setattr(model.processor, "answer_end", end)
    answer = answers.from_text(model, document.text, QUESTIONS[1], NEW).text
    assert answer.startswith(whole[: whole.index(end)])
    assert len(answer) < len(whole)


def test_costs_are_counted_as_the_decoder_reads(model, document, control):
    question = QUESTIONS[0]
    memory, text, other = answers.answer_all(model, document, control, question, NEW)
    prompt = model.processor.prompt(question=question)
    (row,) = model.memory_rows(document.memory, [(0, Prompt(prompt.before, prompt.after))])
    inputs = model.row_inputs([row], document.memory)
    assert memory.prompt_tokens == inputs["inputs_embeds"].shape[1]
    text_tokens = model.processor.decoder_text.encode(f"{document.text}\n\n")
    around = len(prompt.before + prompt.after)
    assert abs(text.prompt_tokens - around - len(text_tokens)) <= 1  # a merge at the border
    config = model.decoder.config
    each = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert [a.cache_bytes for a in (memory, text, other)] == [
        each * a.prompt_tokens for a in (memory, text, other)
    ]
    assert [memory.kept_bytes, other.kept_bytes] == [document.memory.nbytes, control.memory.nbytes]
    assert text.kept_bytes == len(document.text.encode())
    assert all(a.seconds > 0 for a in (memory, text, other))


def test_one_encoding_serves_every_rate(model, encodings):
    fine = compress(model, TEXTS[1], rate=2)
    coarse = compress(model, TEXTS[1], rate=8, earlier=fine)
    assert len(encodings) == 1
    assert coarse.encoded is fine.encoded
    assert (coarse.memory.rate, coarse.seconds) == (8, fine.seconds)
    back = compress(model, TEXTS[1], rate=2, earlier=coarse)
    assert back.memory.rate == 2
    assert torch.equal(back.memory.slots, fine.memory.slots)
    compress(model, TEXTS[0], rate=2, earlier=back)
    assert len(encodings) == 2


def test_finer_than_what_is_there_is_encoded_again(model, encodings):
    coarse = compress(model, TEXTS[1], rate=8)
    fine = compress(model, TEXTS[1], rate=2, earlier=coarse)
    assert (len(encodings), fine.memory.rate) == (2, 2)


def test_segments_are_counted_as_they_are_compressed(model, monkeypatch):
    monkeypatch.setattr(answers, "TOKENS_A_STEP", 2 * model.config.segment_length)
    *steps, document = answers.compress(model, TEXTS[1], rate=2)
    total = len(document.memory.segments)
    assert total > 2
    assert steps == [(done, total) for done in range(0, total, 2)]
    whole = model.compress(TEXTS[1], rate=2)
    assert document.memory.documents == whole.documents
    torch.testing.assert_close(document.memory.slots, whole.slots)
    assert f"Compressing 2 of {total} segments" in views.progress(*steps[1])


def long_text(model, share):
    """A text whose tokens take about this share of the decoder's positions."""
    limit = model.decoder.config.max_position_embeddings
    text = " ".join([LONG] * (1 + 8 * limit // len(LONG)))
    each = len(model.processor.encoder_text.encode(text)) / len(text)
    return text[: int(share * limit / each)]


def test_what_the_decoder_cannot_hold_as_text_is_answered_from_memory(model, control):
    limit = model.decoder.config.max_position_embeddings
    document = compress(model, long_text(model, share=2), rate=8)
    found = {a.source: a for a in answers.answer_all(model, document, control, "Where?", NEW)}
    assert "Too long for this decoder" in found["Full text"].problem
    assert f"{limit:,}" in found["Full text"].problem
    assert found["Full text"].seconds is None
    assert not found["Memory"].problem
    said = views.headline(list(found.values()), document, "Where?")
    assert "which this decoder cannot read" in said


def test_what_does_not_fit_is_refused_before_it_is_compressed(model, encodings):
    text = long_text(model, share=2.3)
    with pytest.raises(ValueError, match="rate=4 would fit"):
        next(answers.compress(model, text, rate=2, question="Where?", max_new_tokens=NEW))
    assert encodings == []
    kept = compress(model, text, rate=4)
    with pytest.raises(ValueError, match="slots fit"):  # a question may be what is too long
        compress(model, text, 4, "Where? " * 400, NEW, earlier=kept)
    assert len(encodings) > 0


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
    with pytest.raises(ValueError, match="queue must be an integer of at least 1, got 'many'"):
        read_settings(file, {"MEMSLOTS_MODEL": "me/model", "MEMSLOTS_QUEUE": "many"})
    file.write_text('{"model": "me/model", "max_charakters": 5}')  # typos: ignore
    with pytest.raises(ValueError, match="does not know"):
        read_settings(file, {})
    with pytest.raises(ValueError, match="max_characters must be an integer of at least 1"):
        Settings("me/model", max_characters=0)


# -- what is shown ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:from the slots the decoder")
def test_all_text_is_escaped(model):
    document = compress(model, HOSTILE, rate=2)
    answer = answers.Answer("Memory", HOSTILE, 9, 10, 11, 0.5)
    failed = answers.Answer("Full text", prompt_tokens=99, problem=HOSTILE)
    control = answers.Answer("Control", HOSTILE, 9, 10, 11, 0.5)
    pieces = reading_back.Piece(HOSTILE, "wrong"), reading_back.Piece(HOSTILE, "missing")
    found = reading_back.ReadBack((pieces,), right=0, total=9, left_out=0, seconds=1.0)
    for shown in (
        views.compressed(document, HOSTILE),
        views.headline([answer, failed, control], document, f'">{HOSTILE}'),
        views.picture(document, model.processor.encoder_text.backend),
        views.report(answers.verify(model, document)),
        views.cards([answer, failed], document, f'">{HOSTILE}'),
        views.reconstruction(found, document),
        views.notice(HOSTILE),
        views.hint(HOSTILE),
    ):
        assert "<script" not in shown
        assert "<img" not in shown
        assert "&lt;" in shown


def test_the_picture_has_every_token_and_slot(model, document, monkeypatch):
    monkeypatch.setattr(views, "MOST_TOKENS", 1000)
    shown = views.picture(document, model.processor.encoder_text.backend)
    memory = document.memory
    assert shown.count('<div class="segment') == len(memory.segments)
    tokens = re.findall(r"<span [^>]+>(.*?)</span>", shown, re.DOTALL)
    assert "".join(tokens).replace("&#39;", "'") == document.text
    assert len(tokens) == sum(memory.n_tokens)
    assert shown.count("<i ") == sum(memory.n_slots)
    assert f"<b>{len(tokens)} tokens → {sum(memory.n_slots)} slots</b>" in shown


def test_a_picture_of_a_long_text_counts_the_rest(model):
    document = compress(model, LONG, rate=8)
    shown = views.picture(document, model.processor.encoder_text.backend)
    drawn, total = shown.count('<div class="segment'), len(document.memory.segments)
    assert 1 < drawn < total
    assert f"{total - drawn} not drawn" in shown
    assert shown.count("<span") <= views.MOST_TOKENS


@pytest.mark.parametrize(
    ("memory", "text", "control", "said"),
    [
        ("Lagos", "Lagos", "Lima", "instead of 77, same answer<"),
        ("Lagos", "Lima", "Lima", "instead of 77, a different answer<"),
        ("Lagos", "Lagos", "Lagos", "instead of 77, same answer, but the control gives it too<"),
    ],
)
def test_the_headline_is_true(document, memory, text, control, said):
    found = [
        answers.Answer("Memory", memory, 32),
        answers.Answer("Full text", text, 77),
        answers.Answer("Control", control, 33),
    ]
    shown = views.headline(found, document, "Where?")
    assert f"<b>32 prompt tokens</b> {said}" in shown


@pytest.mark.filterwarnings("ignore:from the slots the decoder")
def test_what_the_slots_lose_is_marked_when_it_is_asked_for(model, document, encodings):
    coarse = compress(model, document.text, 8, earlier=document)
    found = answers.verify(model, coarse)
    checked = verified.compress(model, document.text, rate=8, exact=[])
    assert found.report == verified.report(checked, document.text)
    assert found.memory is coarse.memory
    shown = views.report(found)
    assert "<!doctype" not in shown
    assert verified.report(checked).summary in shown
    lost = sum(len(check.lost) for check in checked.checks)
    assert 0 < shown.count('<span class="lost">') - 1 <= lost  # one is the legend's
    before = len(encodings)
    assert answers.verify(model, found) is found
    assert compress(model, document.text, 8, earlier=found) is found
    assert compress(model, document.text, 2, earlier=found).report is None  # of another rate
    assert len(encodings) == before


def test_cards_stand_in_one_order_and_wait(document):
    memory = answers.Answer("Memory", "Lagos", 40, 900, 12_000, 0.25)
    waiting = views.cards([memory], document, "Where?")
    assert re.findall(r"<h3>(.*?)</h3>", waiting) == ["Full text", "Memory", "Control"]
    assert waiting.count("…") == 2
    for cost in ("12 kB", "900 B", "0.25", "width:100.0%"):
        assert cost in waiting


def test_numbers_for_people():
    shown = {0: "0 B", 999: "999 B", 1000: "1 kB", 18_432: "18.4 kB", 999_999: "1 MB"}
    assert {count: views.readable_bytes(count) for count in shown} == shown
    assert (views.plural(1, "slot"), views.plural(1200, "slot")) == ("1 slot", "1,200 slots")


# -- events and server -----------------------------------------------------------------------------

KIND = "generated short biographies"
SETTINGS = Settings("me/model", max_characters=2000, max_new_tokens=NEW, trained_on=KIND)


@pytest.fixture(scope="module")
def page_module():
    pytest.importorskip("gradio", reason="the page needs memslots[demo]")
    from memslots.hub_cards.space.memslots_space import page

    return page


@pytest.fixture(scope="module")
def page(page_module, model):
    return page_module.Page(model, SETTINGS)


def steps(page, component, text, rate, document, *also):
    """What an event of a component shows, step by step, by the names that the page has for it."""
    (run,) = [
        each.fn
        for each in page.blocks.fns.values()
        if each.fn is not None and component._id in [target for target, _ in each.targets]
    ]
    names = {value._id: name for name, value in vars(page).items() if hasattr(value, "_id")}
    for step in run(text, rate, document, *also):
        yield {names[key._id]: value for key, value in step.items()}


def after(*arguments):
    """All that an event leaves on the page."""
    left = {}
    for step in steps(*arguments):
        left |= step
    return left


def test_the_first_example_is_answered_before_anybody_asks(page):
    first = page.examples[0]
    for shown, expected in (
        (page.headline, "prompt tokens</b> instead of"),
        (page.answers, '<p class="answer'),
        (page.status, f"{len(first.text)} B of text became"),
    ):
        assert expected in shown.value
        assert f'data-text="{views.mark(first.text)}"' in shown.value
    assert (page.text.value, page.question.value) == (first.text, first.questions[0])


@pytest.mark.filterwarnings("ignore:from the slots the decoder")
def test_events_of_a_visit(page, model):
    found = after(page, page.rate, TEXTS[1], 2, None)
    document = found["document"]
    assert "of slots, encoded once" in found["status"]
    assert 'class="segment' in found["picture"]
    asked = list(steps(page, page.ask_button, TEXTS[1], 2, document, QUESTIONS[0]))
    assert [s["answers"].count("…") for s in asked if "answers" in s] == [3, 2, 1, 0]
    assert asked[0]["document"] is document
    assert "prompt tokens" in asked[-1]["headline"]
    assert "lost by the slots" in after(page, page.verify_button, TEXTS[1], 2, document)["report"]
    restored = after(page, page.read_back_button, TEXTS[1], 4, document)["restored"]
    assert 'data-rate="4"' in restored
    assert "tokens come back" in restored


def test_a_chat_compresses_the_document_once(page, model, document, encodings):
    alone = ChatMemory(model, keep_last=page_keep_last(page), rate=2)
    alone.memory = document.memory
    chat, turns = None, []
    for number, question in enumerate(QUESTIONS, start=1):
        shown = list(steps(page, page.send, TEXTS[1], 2, document, chat, turns, question))
        sent = next(step for step in shown if "turns" in step)
        assert (sent["turns"][-1]["content"], sent["message"]) == (question, "")
        assert "message" not in shown[-1]  # what is typed while the answer is written stays
        chat, turns = shown[-1]["chat"], shown[-1]["turns"]
        assert turns[-1]["content"] == alone.ask(question, max_new_tokens=NEW)
        assert len(turns) == 2 * number
        assert f"{number} question" in shown[-1]["used"]
    assert encodings == []
    for text, rate in ((TEXTS[1], 8), (TEXTS[0], 2)):
        found = after(page, page.send, text, rate, document, chat, turns, "Where?")
        assert found["chat"] is not chat
        assert len(found["turns"]) == 2


def page_keep_last(page):
    return sys.modules[type(page).__module__].KEEP_LAST


def test_the_control_is_another_document(page, encodings):
    first, second = page.examples[:2]
    for text, other in ((first.text, second.text), (TEXTS[1], first.text)):
        control = page._control(text, 4)
        assert (control.text, control.memory.rate) == (other, 4)
    assert encodings == []  # compressed when the page was made


def test_texts_unlike_the_training_are_warned_of(page, page_module, model):
    known, unknown = page.examples[0], page.examples[-1]
    assert known.kind == KIND
    assert unknown.kind != KIND
    assert "warning" not in page.status.value
    for text in (unknown.text, TEXTS[1]):
        shown = after(page, page.rate, text, 2, None)["status"]
        assert f"This compressor was trained on {KIND}." in shown
    assert "warning" not in after(page, page.rate, known.text, 2, None)["status"]
    silent = page_module.Page(model, Settings("me/model", max_new_tokens=1))
    assert "warning" not in after(silent, silent.rate, TEXTS[1], 2, None)["status"]


def test_a_checkpoint_says_what_it_was_trained_on(zoo):
    said = trained_on(embedded())
    assert said.startswith(KIND)
    assert "rows" not in said
    assert [e.is_like(said) for e in examples(said)] == [True, True, False]
    assert trained_on(str(zoo.saved())) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("x" * 2001, "at most 2,000"), ("a\ud800b", "surrogate")],
)
def test_a_visitors_mistake_is_one_line(page, text, message):
    shown = [
        after(page, page.rate, text, 2, None)["status"],
        after(page, page.ask_button, text, 2, None, "Who?")["answers"],
        after(page, page.verify_button, text, 2, None)["report"],
        after(page, page.read_back_button, text, 2, None)["restored"],
        after(page, page.send, text, 2, None, None, [], "Who?")["refused"],
    ]
    for line in shown:
        assert 'role="alert"' in line
        assert message in line


def test_what_nobody_can_mend_is_logged_and_not_shown(page, model, monkeypatch, caplog):
    def broken(*arguments, **named):
        raise RuntimeError("/home/secret/path")

    monkeypatch.setattr(model, "encode", broken)
    shown = after(page, page.rate, TEXTS[0], 2, None)["status"]
    assert "This did not work" in shown
    assert "secret" not in shown
    assert "/home/secret/path" in caplog.text


@pytest.fixture(scope="module")
def url(page):
    _, url, _ = page.serve(prevent_thread_lock=True, quiet=True)
    yield url
    page.blocks.close()


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
    """The server's messages about an event of the component `place`, as its browser reads them."""
    config = json.loads(get(f"{url}config")[1])
    (target,) = [c["id"] for c in config["components"] if c["props"].get("elem_id") == place]
    (event,) = [d["id"] for d in config["dependencies"] if d["targets"][0][0] == target]
    body = json.dumps({"data": data, "fn_index": event, "session_hash": place}).encode()
    kind = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{url}gradio_api/queue/join", body, kind))
    messages = []
    with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash={place}") as stream:
        for line in stream:
            if line.startswith(b"data: "):
                messages.append(json.loads(line.removeprefix(b"data: ")))
            if b'"process_completed"' in line:
                return messages
    raise AssertionError("the event never ended")


def test_only_what_was_uploaded_is_read_and_deleted(url, tmp_path):
    kept = tmp_path / "secret.txt"
    kept.write_text("A secret of this machine.")
    now = ["", 2, None]
    file = {"path": str(kept), "meta": {"_type": "gradio.FileData"}}
    messages = send(url, "upload", [*now, file])
    assert messages[-1]["success"] is False
    assert "secret of" not in json.dumps(messages)
    assert kept.read_text() == "A secret of this machine."
    with urllib.request.urlopen(upload(url, TEXTS[0].encode()), timeout=60) as made:
        (path,) = json.load(made)
    assert Path(path).is_file()
    messages = send(url, "upload", [*now, {**file, "path": path}])
    assert messages[-1]["success"] is True
    first = next(m for m in messages if m["msg"] == "process_generating")
    assert first["output"]["data"][-1] == TEXTS[0]
    assert not Path(path).exists()


def test_every_example_fits():
    for example in examples():
        documents.check_document(example.text, Settings("me/model").max_characters)
        for question in example.questions:
            documents.check_question(question)
        assert len(example.label) <= 30  # a line on a phone


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
    assert "pip install 'gradio>=" in refused(capsys, "demo", "--web")
