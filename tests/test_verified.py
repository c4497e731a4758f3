"""Verified memory: fidelity, budgets, exact spans, kept texts, reports, and bad input."""

import hashlib
import json
import random
import re
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_models import LONG, QUESTIONS, TEXTS

from memslots import Memory, MemslotsModel, checkpoints, verified
from memslots.chat import without_oldest
from memslots.modeling.memory_files_memslots import write_file
from memslots.sent_memories import load_sent_memory
from memslots.verified.expanding import marked
from memslots.verified.fidelity import aligned, read, teacher_forced
from memslots.verified.outline import least_memory
from memslots.verified.rate_choice import Option, spend

pytestmark = pytest.mark.filterwarnings(
    "ignore:from the slots the decoder", "ignore:this encoder's"
)

PERSON = (
    "Here is Joseph Evans, a professor from Cedar Motors. Joseph has a house in Mumbai in India. "
    "He turned 47 this year. In Joseph's house there are 670 cups. Joseph speaks Latin and Thai."
)
STRANGE = (
    "\x00\x1f\u200b\ufeff \u00a0\r\n\t\u2028é e\u0301 ß漢字 \U0001f600\U0010ffff <s></s><MEM> x  y "
)


@pytest.fixture(scope="module")
def embedded() -> MemslotsModel:
    return MemslotsModel.from_pretrained(checkpoints.embedded("tiny")).eval()


@pytest.fixture(scope="module")
def kept(embedded) -> Memory:
    return verified.compress(embedded, PERSON, rate=4, exact=True)


# -- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [0, -1, "x", 1.5])
def test_batch_tokens_are_checked_as_in_a_plain_compress(zoo, batch_tokens):
    for asked in ({}, {"exact": "numbers"}, {"fidelity": 0.5}):
        with pytest.raises(ValueError, match="batch_tokens must be at least 1, got"):
            verified.compress(zoo.shared(), "Ann owns 27.", batch_tokens=batch_tokens, **asked)


def test_budget_goes_where_it_recovers_most():
    poor = [Option(8, 1, 2), Option(4, 2, 3), Option(2, 4, 4)]
    rich = [Option(8, 1, 1), Option(4, 2, 8), Option(2, 4, 9)]
    assert [one.rate for one in spend([poor, rich], 3, [9, 9], "it")] == [8, 4]
    assert [one.rate for one in spend([poor, rich], 6, [9, 8], "it")] == [2, 4]
    assert [one.rate for one in spend([poor, rich], 100, [2, 1], "it")] == [8, 8]
    with pytest.raises(ValueError, match=r"max_slots=1 is too little.*2 slots at rate 8"):
        spend([poor, rich], 1, [9, 9], "it")


# -- fidelity -------------------------------------------------------------------------------------


def test_reading_back_shows_how_long_it_takes(embedded, capsys):
    verified.compress(embedded, PERSON, rate=4, exact="numbers", progress=True)
    shown = capsys.readouterr().err
    assert all(label in shown for label in ("compressing: 100%", "checking: 100%", "writing back"))
    verified.compress(embedded, PERSON, max_slots=40, progress=False)
    assert capsys.readouterr().err == ""


def test_fidelity_is_the_same_in_a_batch_and_alone_and_by_the_forward(embedded):
    texts = [PERSON, PERSON[30:90], "Zq 77 !?"]
    memory = embedded.compress(texts, rate=8)
    processor = embedded.processor
    readings = [read(processor, text) for text in texts]
    together = teacher_forced(embedded, memory, readings, [[]] * 3)
    for i in range(3):
        assert teacher_forced(embedded, memory[i], readings[i : i + 1], [[]]) == [together[i]]
    assert [len(one) for one in together] == [len(one.ids) for one in readings]
    assert sum(together[0]) > 0.6 * len(together[0])
    # Its own slots tell the decoder more than another text's.
    other = teacher_forced(embedded, memory[2], readings[:1], [[]])[0]
    assert sum(together[0]) > sum(other)
    checked = verified.compress(embedded, texts, rate=8, exact=[])
    for right, check in zip(together, checked.checks, strict=True):
        assert check.fidelity == pytest.approx(sum(right) / len(right))
    assert torch.equal(checked.slots, memory.slots)


def test_each_segment_gets_the_coarsest_rate_that_serves(embedded):
    by_rate = {
        rate: verified.compress(embedded, [PERSON, STRANGE], rate=rate, exact=[])
        for rate in (4, 8, 16)
    }
    share = by_rate[8].checks[0].fidelity
    memory = verified.compress(embedded, [PERSON, STRANGE], fidelity=share)
    expected = next(r for r in (16, 8) if by_rate[r].checks[0].fidelity >= share)
    assert memory.segment_rates[0] == expected
    assert memory.segment_rates[-1] == 0
    assert memory.segment_texts[-1] == STRANGE
    assert memory.documents[1][0].slots == 0
    assert "as text" in repr(memory)
    assert verified.report(memory).totals["as_text"] == memory.segment_rates.count(0)
    only = verified.compress(embedded, PERSON, fidelity=share, rates=[4])
    assert set(only.segment_rates) <= {4, 0}


def test_positions_are_counted_as_the_decoder_reads_them(embedded):
    texts = [PERSON + STRANGE * 8 + PERSON, STRANGE, PERSON]
    memory = verified.compress(embedded, texts, fidelity=0.6, exact=["numbers"])
    counted = embedded.memory_positions(memory)
    checks = iter(memory.checks)
    assert counted == [sum(next(checks).positions for _ in d) for d in memory.documents]
    assert counted[1] == len(embedded.processor.decoder_text.encode(STRANGE))
    rows = embedded.memory_rows(memory, [(0, embedded.processor.prompt(question="Why?"))])
    around = sum(map(len, vars(rows[0].prompt).values()))
    read_ = embedded.row_inputs(rows, memory)["inputs_embeds"].shape[1]
    assert read_ == counted[0] + around


def test_text_in_place_reads_as_plain_text(model):
    memory = verified.compress(model, TEXTS[0], fidelity=1.0)
    assert memory.segment_rates == (0,) * len(memory.segments)
    row = model.memory_rows(memory, [(0, model.processor.prompt(question=QUESTIONS[0]))])[0]
    embeds = model.row_inputs([row], memory)["inputs_embeds"][0]
    ids = [*row.prompt.before, *(i for own in row.literals for i in own), *row.prompt.after]
    plain = model.decoder.get_input_embeddings()(torch.tensor(ids))
    assert torch.equal(embeds, plain)


@pytest.mark.parametrize("encoder", ["gpt2", "bert"])
def test_budget(zoo, encoder):
    model = zoo.shared(encoder)
    text = TEXTS[1]
    least = sum(model.compress(text, rate=8).n_slots)
    for budget in (least, least + 5, 10_000):
        memory = verified.compress(model, text, max_slots=budget)
        assert sum(memory.n_slots) <= budget
        assert 0 not in memory.segment_rates
    with pytest.raises(ValueError, match=f"max_slots={least - 1} is too little.*Give .*={least}"):
        verified.compress(model, text, max_slots=least - 1)
    both = verified.compress(model, text, max_slots=least + 30, fidelity=0.9)
    taken = sum(segment.check.tokens for segment in both.segments if segment.rate == 0)
    assert sum(both.n_slots) + taken <= least + 30


def test_rates_of_an_encoder_that_is_not_causal_are_encoded_apart(zoo):
    model = zoo.compressor("bert")
    with pytest.warns(UserWarning, match="encoded separately"):
        memory = verified.compress(model, TEXTS[1], max_slots=200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="from the slots")
        verified.compress(model, TEXTS[1], max_slots=200)  # said once
    for rate in set(memory.segment_rates):
        plain = model.compress(TEXTS[1], rate=rate)
        starts = [sum(s.slots for s in plain.segments[:i]) for i in range(len(plain.segments))]
        ours = [sum(s.slots for s in memory.segments[:i]) for i in range(len(memory.segments))]
        for i, own in enumerate(memory.segment_rates):
            if own == rate:
                n = memory.segments[i].slots
                a, b = memory.slots[ours[i] : ours[i] + n], plain.slots[starts[i] : starts[i] + n]
                assert torch.allclose(a, b, atol=1e-5)


# -- exact spans ----------------------------------------------------------------------------------


def test_lost_spans_become_literals_and_others_cost_nothing(embedded):
    text = PERSON + " Ticket QX-77412-ZZ, see https://a.example/x?y=1."
    memory = verified.compress(embedded, text, rate=16, exact=True)
    held = {one.text for own in memory.literals for one in own}
    assert "https://a.example/x?y=1" in held
    assert "QX-77412-ZZ" in held
    back = embedded.reconstruct(replace(memory, documents=memory.documents))
    for number in ("47", "670"):
        assert number in held or number in back
    assert (
        verified.compress(embedded, PERSON, rate=16, exact=re.compile("not there")).literals == ()
    )
    named = verified.compress(embedded, text, rate=16, exact=lambda word: word.startswith("QX"))
    assert {one.text for own in named.literals for one in own} == {"QX-77412-ZZ"}
    spans = verified.compress(
        embedded, text, rate=16, exact=[lambda t: [(t.index("QX"), t.index("QX") + 5)]]
    )
    assert {one.text for own in spans.literals for one in own} == {"QX-77"}


def test_no_exact_span_is_left_lost(model):
    """A random decoder loses everything, so all spans are kept; none twice, none cut in two."""
    memory = verified.compress(model, LONG, rate=8, exact="numbers")
    found = [one for own in memory.literals for one in own]
    assert [one.text for one in found] == re.findall(r"(?<!\w)\d+(?!\w)", LONG)
    assert all(LONG[one.start : one.end] == one.text for one in found)


def test_exact_spans_and_literals_that_overlap_are_one(model, tmp_path):
    """The decoder reads no character twice; memories that are sent are refused with such."""
    words = [match.span() for match in re.finditer(r"\w+", LONG)][:60]

    def two_words(text):
        return [(a, b) for (a, _), (_, b) in zip(words[::3], words[1::3], strict=True)]

    def next_two_words(text):
        return [(a, b) for (a, _), (_, b) in zip(words[1::3], words[2::3], strict=True)]

    memory = verified.compress(model, LONG, rate=8, literals=two_words, exact=next_two_words)
    literals = [one for literals in memory.literals for one in literals]
    assert all(a.end <= b.start for a, b in pairwise(literals))
    assert all(one.text == LONG[one.start : one.end] for one in literals)
    for start, end in [*two_words(LONG), *next_two_words(LONG)]:
        assert any(one.start <= start and end <= one.end for one in literals)
    memory.save(tmp_path / "m")
    assert load_sent_memory(model, tmp_path / "m", 10**6).literals == memory.literals


# -- kept texts ------------------------------------------------------------------------------------


def test_a_kept_text_is_exact_on_any_machine(embedded, kept, tmp_path):
    assert kept.texts == (PERSON,)
    kept.save(tmp_path / "kept")
    bare = MemslotsModel.from_pretrained(checkpoints.embedded("tiny"), load_decoder=False)
    for read_ in (bare.load_memory(tmp_path / "kept"), kept.to(torch.bfloat16)):
        assert bare.reconstruct(read_, exact=True) == PERSON
        assert read_.expand(0) == verified.expand(bare, read_, 0) == PERSON[: kept.segments[0].end]
    read_ = bare.load_memory(tmp_path / "kept")
    assert {**vars(read_), "slots": None} == {**vars(kept), "slots": None}
    plain = embedded.compress(PERSON, rate=4)
    plain.save(tmp_path / "plain")
    sizes = [(tmp_path / name).stat().st_size for name in ("kept", "plain")]
    assert sizes[0] - sizes[1] < len(PERSON.encode()) + 400  # and the checks


def test_a_wrong_hash_raises(embedded, kept, tmp_path):
    wrong = replace(kept, texts=(PERSON + "!",))
    for ask in (
        lambda: embedded.reconstruct(wrong, exact=True),
        lambda: wrong.expand(0),
        lambda: verified.expanded(embedded, wrong, [0]),
    ):
        with pytest.raises(ValueError, match="is not the one that was compressed"):
            ask()
    wrong.save(tmp_path / "wrong")
    with pytest.raises(ValueError, match="is not the one that was compressed"):
        Memory.load(tmp_path / "wrong")


def test_a_file_with_patches_gives_slots_and_names_who_reads_it_exactly(embedded, tmp_path):
    """As the code of November 2026 wrote it: 33 bytes of kind and hash, then what was packed."""
    memory = verified.compress(embedded, PERSON, rate=4, exact="numbers")
    memory.save(tmp_path / "old")
    with safe_open(tmp_path / "old", framework="pt") as file:
        header = json.loads(file.metadata()["memslots"])
    assert header["version"] == 3
    patches = bytes([2]) + hashlib.sha256(PERSON.encode()).digest() + b"\x05\x00"
    header["checks"][0][5] = len(patches)
    exact = torch.frombuffer(bytearray(patches), dtype=torch.uint8)
    write_file(tmp_path / "old", header, {"slots": memory.slots, "exact": exact})
    old = embedded.load_memory(tmp_path / "old")
    assert (old.checks, old.literals) == (memory.checks, memory.literals)
    question = "How old is Joseph?"
    assert embedded.generate(memory=old, question=question) == embedded.generate(
        memory=memory, question=question
    )
    with pytest.raises(ValueError, match=r"was not kept.*version 3.*memslots 0.1.0"):
        embedded.reconstruct(old, exact=True)


@pytest.mark.parametrize("encoder", ["gpt2", "bert"])
def test_any_unicode_comes_back(zoo, encoder, tmp_path):
    model = zoo.shared(encoder)
    chosen = random.Random(3)
    planes = [chr(c) for c in chosen.choices(range(0x110000), k=400) if not 0xD800 <= c < 0xE000]
    odd = ["\x00", "\x00\x01\x02" * 40, "\ufffd", "a", " a ", STRANGE, "</s>" * 9]
    binary = "".join(map(chr, chosen.choices(range(256), k=300)))
    texts = ["".join(planes), *odd, binary, LONG[:900], "\r\n".join(TEXTS)]
    memory = verified.compress(model, texts, rate=8, exact=[], keep_text=True)
    assert model.reconstruct(memory, exact=True) == texts
    memory.save(tmp_path / "m")
    assert model.reconstruct(model.load_memory(tmp_path / "m"), exact=True) == texts
    mixed = verified.compress(model, texts, fidelity=0.5, exact="numbers", keep_text=True)
    assert model.reconstruct(mixed, exact=True) == texts


def test_fuzzed_texts_come_back(model):
    @settings(
        max_examples=12,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.lists(st.text(max_size=120).filter(str.strip), min_size=2, max_size=6))
    def comes_back(texts):
        memory = verified.compress(model, texts, rate=8, exact=[], keep_text=True)
        assert model.reconstruct(memory, exact=True) == texts

    comes_back()


def test_a_hundred_thousand_characters(model):
    chosen = random.Random(5)
    text = "".join(chosen.choice([LONG[:997], "\U0001f600é\n", "\x00" * 7]) for _ in range(400))
    text = (text * 2)[:100_000]
    memory = model.compress(text, rate=8, keep_text=True)
    assert model.reconstruct(memory, exact=True) == text


# -- memories -------------------------------------------------------------------------------------


def test_selecting_joining_and_coarser_rates_keep_what_belongs_to_segments(embedded, tmp_path):
    texts = [PERSON, STRANGE, PERSON[:90] + STRANGE]
    mixed = verified.compress(embedded, texts, fidelity=0.55, exact="numbers", keep_text=True)
    plain = embedded.compress(texts[0], rate=8)
    assert [embedded.reconstruct(mixed[i], exact=True) for i in range(3)] == texts
    assert embedded.reconstruct(mixed.join(), exact=True) == "".join(texts)
    back = Memory.cat([mixed[2], mixed[:2]])
    assert embedded.reconstruct(back, exact=True) == [texts[2], *texts[:2]]
    with_plain = Memory.cat([mixed[0], plain])
    assert with_plain.rate == min(mixed.rate, 8)
    assert with_plain.segment_rates == mixed[0].segment_rates + (8,) * len(plain.segments)
    joined = without_oldest(mixed.join())
    assert joined.checks == mixed.checks[1:]
    coarse = mixed.at_rate(16)
    assert set(coarse.segment_rates) <= {16, 0}
    assert coarse.segment_texts == mixed.segment_texts
    coarse.save(tmp_path / "coarse")
    assert Memory.load(tmp_path / "coarse").checks == coarse.checks
    assert embedded.memory_positions(coarse) == [
        sum(coarse.checks[i].positions for i in own) for own in _places(coarse)
    ]


def _places(memory):
    start = 0
    for document in memory.documents:
        yield range(start, start + len(document))
        start += len(document)


def test_a_coarser_rate_says_what_no_longer_holds_and_keeps_the_rest(embedded):
    texts = [PERSON + " Order QX-77412-ZZ is his.", STRANGE]
    finer = verified.compress(
        embedded, texts, fidelity=0.6, rates=[4], exact="identifiers", keep_text=True
    )
    assert finer.segment_rates == (4, 0)
    with pytest.warns(
        UserWarning, match="at rate 16 1 of 2 segments.*not known. Verbatim tokens"
    ) as told:
        coarse = finer.at_rate(16)
    assert told[0].filename == __file__
    assert coarse.literals == finer.literals
    assert coarse.literals[0]
    assert coarse.checks[1] == finer.checks[1]  # text is as it was
    first = coarse.checks[0]
    assert coarse.segment_rates == (16, 0)
    assert (first.lost, first.fidelity) == (None, None)
    assert first.tokens == finer.checks[0].tokens
    assert embedded.reconstruct(coarse, exact=True) == texts
    with warnings.catch_warnings():  # nothing was known, or nothing changes
        warnings.simplefilter("error")
        embedded.compress(texts[0], rate=4).at_rate(16)
        coarse.at_rate(16)
        finer[1].at_rate(16)
        verified.compress(
            embedded, texts[0], fidelity=0.1
        )  # the library's own way through the rates


def test_who_does_not_ask_gets_what_was_before(embedded, tmp_path):
    memory = embedded.compress(PERSON)
    assert memory.checks == ()
    memory.save(tmp_path / "plain")
    raw = (tmp_path / "plain").read_bytes()
    assert b'\\"version\\": 1' in raw
    assert b"checks" not in raw
    beside = embedded.compress(PERSON, literals="numbers")
    beside.save(tmp_path / "beside")
    assert b'\\"version\\": 2' in (tmp_path / "beside").read_bytes()
    verified.compress(embedded, PERSON, exact=[]).save(tmp_path / "checked")
    assert b'\\"version\\": 3' in (tmp_path / "checked").read_bytes()
    embedded.compress(PERSON, keep_text=True).save(tmp_path / "kept")
    assert b'\\"version\\": 4' in (tmp_path / "kept").read_bytes()


# -- reports and expanding ------------------------------------------------------------------------


def test_report_as_text_json_and_html(embedded, kept):
    html_text = '<script>alert("x")</script> & ' + PERSON
    memory = verified.compress(
        embedded, [html_text, STRANGE], fidelity=0.6, exact="numbers", keep_text=True
    )
    report = verified.report(memory, [html_text, STRANGE])
    assert "fidelity" in str(report)
    assert "effective rate of" in str(report)
    found = json.loads(report.to_json())
    assert found["totals"]["positions"] == sum(embedded.memory_positions(memory))
    assert found["segments"][0]["exact"] in ("text", "kept")
    page = report.to_html()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert 'class="lost"' in page
    assert verified.report(memory).texts == report.texts
    with pytest.raises(ValueError, match="another SHA-256"):
        verified.report(memory, [html_text, STRANGE + "!"])
    plain = verified.report(embedded.compress(PERSON))
    assert plain.totals["fidelity"] is None
    assert "not checked" in str(plain)


def test_expand(embedded, kept):
    memory = verified.compress(embedded, [PERSON, STRANGE], fidelity=0.6)
    text = memory.segment_rates.index(0)
    assert memory.expand(text) == memory.segment_texts[text]
    unkept = embedded.compress(PERSON, rate=16)
    with pytest.raises(ValueError, match=r"verified.expand\(model, memory, 0\)"):
        unkept.expand(0)
    shown = verified.expand(embedded, unkept, 0)
    assert shown.replace("⟦", "").replace("⟧", "") == embedded.reconstruct(unkept[0], exact=False)
    assert shown.count("⟦") == shown.count("⟧") > 0
    assert marked(embedded.processor, embedded.processor.decoder_text.encode("é a"), [False] * 9)
    with pytest.raises(IndexError, match="no index 7"):
        kept.expand(7)


def test_answers_read_expanded_segments_as_text(embedded, kept):
    question = "How many cups are in Joseph's house?"
    opened = verified.expanded(embedded, kept, [0])
    assert opened.segment_texts[0] == PERSON[: kept.segments[0].end]
    answers = [
        embedded.generate(memory=memory, question=question, max_new_tokens=6)
        for memory in (opened, kept.as_text({0: opened.segment_texts[0]}))
    ]
    assert answers[0] == answers[1] != ""
    for bad in ([9], ["0"], [True]):
        with pytest.raises(ValueError, match="segments are integers from 0"):
            verified.expanded(embedded, kept, bad)


def test_alignment():
    assert aligned([1, 2, 3, 4], [1, 3, 4]) == [True, False, True, True]
    assert aligned([1, 2], []) == [False, False]


# -- bad input ------------------------------------------------------------------------------------


def _raising(word: str) -> bool:
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"fidelity": 0}, "above 0 and up to 1, got 0"),
        ({"fidelity": 1.01}, "above 0 and up to 1"),
        ({"fidelity": True}, "above 0 and up to 1"),
        ({"fidelity": float("nan")}, "above 0 and up to 1"),
        ({"max_slots": 0}, "max_slots must be an integer of at least 1"),
        ({"max_slots": 2.5}, "max_slots must be an integer"),
        ({"max_slots": 1}, "max_slots=1 is too little.*Give max_slots="),
        ({"fidelity": 0.9, "rate": 4}, "rate=4 fixes what fidelity"),
        ({"fidelity": 0.9, "rates": [3]}, "rate 3 is not one that"),
        ({"fidelity": 0.9, "rates": []}, "rates is a list"),
        ({"rates": [4]}, "goes with fidelity"),
        ({"exact": "phones"}, "exact='phones' is not a kind of verbatim tokens"),
        ({"exact": [3]}, "exact=3 is not a kind of verbatim tokens"),
        (
            {"exact": _raising},
            r"_raising raised RuntimeError \(broken\) on characters 0 to [0-9]+, 'The",
        ),
        ({"exact": lambda t: [(0, 9999)]}, "<lambda>: a detector of literals gives"),
        ({"exact": lambda t: [("a", 2)]}, r"<lambda>: .*got \('a', 2\)"),
        ({"exact": lambda t: None}, "<lambda> gave None for 'The.*True or False for a word"),
        ({"exact": lambda t: 5}, "<lambda> gave 5 for"),
        ({"exact": lambda t: t}, "<lambda> gave 'The"),
        ({"exact": lambda t: (1 / 0 for _ in t)}, "<lambda> raised ZeroDivisionError"),
        ({"keep_text": True, "slot_dtype": "int8"}, "slot_dtype is a floating"),
    ],
)
def test_what_cannot_be_asked(model, asked, message):
    with pytest.raises(ValueError, match=message):
        verified.compress(model, TEXTS[1], **asked)


def test_lone_surrogates_empty_texts_and_other_types(model):
    for options in ({"keep_text": True}, {"fidelity": 0.5}):
        with pytest.raises(ValueError, match="lone surrogate"):
            verified.compress(model, "a\ud800b", **options)
        with pytest.raises(ValueError, match="empty"):
            verified.compress(model, "", **options)
        with pytest.raises(TypeError, match="must be a string"):
            verified.compress(model, ["a", 3], **options)
    with pytest.raises(ValueError, match="leaves no choice"):
        model.reconstruct(model.compress("a b", keep_text=True), exact=True, num_beams=2)
    with pytest.raises(ValueError, match="the text of segment 0 was not kept"):
        model.reconstruct(model.compress(TEXTS[0]), exact=True)


def test_what_else_is_wrong_with_a_text_is_not_taken_for_one_without_tokens(model, monkeypatch):
    """Only a text that the encoder sees nothing of becomes text in place; errors stay errors."""
    for text in (" \n\t ", "\u3000", "\ufeff", "\ufeff\n"):  # as compress does
        with pytest.raises(ValueError, match="only white space"):
            verified.compress(model, text, exact=True)
    encoder_text = model.processor.encoder_text
    monkeypatch.setattr(encoder_text, "encode", lambda text: [])
    monkeypatch.setattr(encoder_text, "encode_with_places", lambda text: ([], []))
    unseen = verified.compress(model, TEXTS[0], fidelity=0.5)
    assert unseen.segment_texts == (TEXTS[0],)
    with pytest.raises(ValueError, match="no token in the encoder's vocabulary"):
        model.compress(TEXTS[0])

    def broken(text, length):
        raise ValueError("this tokenizer cannot")

    monkeypatch.setattr(encoder_text, "segment", broken)
    with pytest.raises(ValueError, match="this tokenizer cannot"):
        verified.compress(model, TEXTS[0], fidelity=0.5)


def test_no_decoder(zoo):
    bare = MemslotsModel.from_pretrained(zoo.saved(), load_decoder=False)
    assert verified.compress(bare, TEXTS[0], keep_text=True).texts == (TEXTS[0],)
    for options in ({"fidelity": 0.9}, {"exact": True}, {"max_slots": 99}):
        with pytest.raises(ValueError, match=r"loaded without its decoder \(.*\).*attach_decoder"):
            verified.compress(bare, TEXTS[0], **options)
    bare.config.bundle_decoder = True
    with pytest.raises(ValueError, match=r"without its decoder \(it is inside the checkpoint\)"):
        verified.compress(bare, TEXTS[0], exact=True)


def test_a_checkpoint_that_never_learned_to_reconstruct_says_so(model):
    with pytest.warns(UserWarning, match="never trained to reconstruct"):
        memory = verified.compress(model, TEXTS[1], fidelity=0.9)
    assert set(memory.segment_rates) == {0}


@pytest.mark.parametrize(
    "asked",
    [
        {"rate": 4, "exact": ["numbers"]},
        {"rate": 4, "literals": "numbers", "exact": True},
        {"fidelity": 0.5},
        {"fidelity": 1.0, "literals": "numbers"},
        {"fidelity": 0.5, "rates": [2, 4], "exact": "numbers"},
        {"max_slots": 400},
        {"max_slots": 400, "fidelity": 0.9},
        {"rate": 4},
    ],
    ids=str,
)
def test_what_a_memory_takes_at_least_is_known_before(model, asked):
    texts = [*TEXTS, "A. B. " * 40]
    least = least_memory(model, texts, **asked)
    made = verified.compress(model, texts, **asked)
    assert least.slots.is_meta
    for known, taken in zip(
        model.memory_positions(least), model.memory_positions(made), strict=True
    ):
        assert 0 < known <= taken
    if "exact" not in asked and "fidelity" not in asked and "max_slots" not in asked:
        assert model.memory_positions(least) == model.memory_positions(made)
