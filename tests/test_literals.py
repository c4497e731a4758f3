"""Literals: exact strings that ride beside the slots, with every kind of memory."""

import json
import time

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from tiny_models import QUESTIONS, TEXTS

from memslots.evaluation.conditions import conditions
from memslots.evaluation.likelihood import target_losses
from memslots.modeling import Memory, MemslotsModel
from memslots.modeling.layout_memslots import MEM_END, Row
from memslots.modeling.texts_memslots import DETECTORS, by_pattern, find_literals
from memslots.trainer import CompressorConfig, CompressorTrainer

COUNTS = "Carmen owns 27 maps and 1,004 coins, she is 34 and was born at 12:30 in 1990."
NUMBERED = [COUNTS, TEXTS[0], " ".join(f"Item {i} costs ${i}.50." for i in range(12))]
GREEDY = {"max_new_tokens": 6, "do_sample": False}
KINDS = [
    {},
    {"memory_positions": "spread", "markers": "memory"},
    {"pooling": "mean", "markers": "none"},
]


@pytest.fixture(scope="module", params=KINDS, ids=["memory_tokens", "spread", "mean"])
def kind(zoo, request) -> MemslotsModel:
    return zoo.compressor("llama", **request.param).eval()


@pytest.mark.parametrize(
    ("detector", "text", "found"),
    [
        ("numbers", COUNTS, ["27", "1,004", "34", "12:30", "1990"]),
        ("numbers", "It fell by -3.5% to $40, not 2-3; A4 and v2 are names.",
         ["-3.5%", "$40", "2", "3"]),
        ("dates", "Due 2024-05-01, or 5 March 2024, or March 5, 2024; not 27.",
         ["2024-05-01", "5 March 2024", "March 5, 2024"]),
        ("identifiers", "Order INV-2024-7 of 3f2504e0-4f89-11d3-9a0c-0305e82c3301, 27 pieces.",
         ["INV-2024-7", "3f2504e0-4f89-11d3-9a0c-0305e82c3301"]),
        ("urls", "See https://example.org/a?b=1. Or write to a.b@example.org, please.",
         ["https://example.org/a?b=1", "a.b@example.org"]),
        ("code", "Call `x = 1`, then os.path.join(a, b), get_name or getName; not this.",
         ["x = 1", "os.path.join(a, b)", "get_name", "getName"]),
        ("quotes", "He said \"never again\" and “not now”.", ["never again", "not now"]),
        ("numbers", "No digits here.", []),
        ("numbers", "她有27张地图，2024年签署，价格$1,000。", ["27", "2024", "$1,000"]),
        ("numbers", "제27회 대회, ב27 מפות, มี27แผนที่, у34 не", ["27", "27", "27"]),
        ("dates", "签于2024-03-05生效。", ["2024-03-05"]),
        ("identifiers", "订单号INV-2024-7已发货, Müller3b.", ["INV-2024-7", "Müller3b"]),
        ("urls", "见https://example.org/a。然后", ["https://example.org/a"]),
        ("code", "调用os.path.join(a, b)和get_name，getName。",
         ["os.path.join(a, b)", "get_name", "getName"]),
        ("quotes", "彼は「はい」と言った。Er sagte „nie wieder“.", ["はい", "nie wieder"]),
    ],
)  # fmt: skip
def test_detectors(detector, text, found):
    literals = find_literals(text, detector)
    assert [literal.text for literal in literals] == found
    assert all(text[one.start : one.end] == one.text for one in literals)


def test_what_overlaps_is_kept_as_one():
    text = "Due 5 March 2024 by order 77."
    kept = find_literals(text, ["numbers", "dates", lambda t: [(t.index("order"), len(t) - 1)]])
    assert [one.text for one in kept] == ["5 March 2024", "order 77"]
    kept = find_literals("He paid $5 May 12, 2024.", ["numbers", "dates"])
    assert [one.text for one in kept] == ["$5 May 12, 2024"]  # "5 May" alone loses the dollar


@pytest.mark.parametrize(
    ("literals", "message"),
    [
        ("phones", r"literals='phones' is not a kind of verbatim tokens.*\['code', 'dates'"),
        (["numbers", 3], r"literals=3 is not a kind of verbatim tokens"),
        (7, "literals=7 is not a kind of verbatim tokens"),
        (lambda text: [(0, 10_000)], r"0 <= start <= end <= 13.*got \(0, 10000\)"),
        (lambda text: ["27"], "a detector of literals gives"),
    ],
)
def test_what_is_no_detector_is_refused(model, literals, message):
    with pytest.raises(ValueError, match=message):
        model.compress("It costs 27 $", literals=literals)
    with pytest.raises(ValueError, match="is not a kind of verbatim tokens"):
        type(model.config)(literals=["numbers", "phones"])


def test_no_numbers_to_pass_through_changes_nothing(kind):
    plain, beside = kind.compress(TEXTS[:1]), kind.compress(TEXTS[:1], literals="numbers")
    assert beside.literals == plain.literals == ()
    assert torch.equal(plain.slots, beside.slots)
    assert repr(plain) == repr(beside)
    assert kind.memory_positions(plain) == kind.memory_positions(beside)


def test_each_segment_keeps_its_own_in_the_order_of_the_text(kind):
    memory = kind.compress(NUMBERED, literals="numbers")
    assert torch.equal(memory.slots, kind.compress(NUMBERED).slots)
    assert memory.n_literals == (5, 0, 24)
    for segment, own in zip(memory.segments, memory.literals, strict=True):
        for literal in own:
            text = NUMBERED[segment.text]
            assert segment.start <= literal.start < segment.end
            assert text[literal.start : literal.end] == literal.text
    assert "29 literals" in repr(memory)


def test_they_stand_after_the_slots_and_are_counted(kind):
    memory = kind.compress(COUNTS, literals="numbers")
    prompt = kind.processor.prompt(question=QUESTIONS[0])
    (row,) = kind.memory_rows(memory, [(0, prompt)])
    slots = [segment.slots for segment in memory.segments]
    laid_out = kind.processor.lay_out([row], slots)
    ids, read = laid_out["input_ids"][0].tolist(), laid_out["memory_ids"][0].tolist()
    assert len(ids) == kind.processor.row_length(row, slots)
    encode = kind.processor.decoder_text.encode
    expected = list(prompt.before)
    for own in memory.literals:
        expected += [i for one in own for i in encode(f" {one.text}")]
    assert [i for i, is_read in zip(ids, read, strict=True) if not is_read] == [
        *expected,
        *prompt.after,
    ]
    tokens = len(expected) - len(prompt.before)
    plain = kind.compress(COUNTS)
    assert kind.memory_positions(memory) == [kind.memory_positions(plain)[0] + tokens]
    # After the first slot and before the last marker, where there is one.
    assert read[len(prompt.before)] != 0
    after = len(ids) - len(prompt.after)
    assert read[after - 1] == (MEM_END if kind.config.markers != "none" else max(read))


def test_batched_equals_single_and_they_change_the_answers(kind):
    memory = kind.compress(NUMBERED, literals="numbers")
    together = kind.generate(memory=memory, question=QUESTIONS, **GREEDY)
    alone = [
        kind.generate(memory=memory[i], question=QUESTIONS[i], **GREEDY) for i in range(len(memory))
    ]
    from_text = kind.generate(context=NUMBERED, question=QUESTIONS, literals="numbers", **GREEDY)
    assert together == alone == from_text
    without = kind.generate(context=NUMBERED, question=QUESTIONS, **GREEDY)
    assert together[0] != without[0]
    assert together[1] == without[1]
    assert kind.reconstruct(memory, **GREEDY) == [
        kind.reconstruct(memory[i], **GREEDY) for i in range(len(memory))
    ]
    losses = target_losses(
        kind, [kind.processor.prompt(question=q) for q in QUESTIONS], [[5, 6]] * 3, memory
    )
    for i, question in enumerate(QUESTIONS):
        prompt = kind.processor.prompt(question=question)
        (one,) = target_losses(kind, [prompt], [[5, 6]], memory[i])
        assert one.nll == pytest.approx(losses[i].nll, rel=1e-4)


def test_saved_equals_loaded_and_other_ways_keep_them(kind, tmp_path):
    memory = kind.compress(NUMBERED, rate=2, literals="numbers")
    memory.save(tmp_path / "m")
    loaded = Memory.load(tmp_path / "m")
    assert loaded.literals == memory.literals
    assert loaded.literals[0][0].text == "27"
    assert memory[1].literals == ()
    assert memory[1:].n_literals == (0, 24)
    again = Memory.cat([memory[2], memory[1], memory[0]])
    assert again.n_literals == (24, 0, 5)
    assert again[2].literals == memory[0].literals
    assert again.join().n_literals == (29,)
    assert memory.at_rate(4).literals == memory.literals
    assert memory.to(torch.float64).literals == memory.literals
    assert kind.generate(memory=loaded.at_rate(8), question=QUESTIONS, **GREEDY) == kind.generate(
        context=NUMBERED, question=QUESTIONS, rate=8, literals="numbers", **GREEDY
    )


def header_of(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["memslots"])


def test_only_a_file_with_literals_needs_a_new_reader(model, tmp_path, monkeypatch):
    model.compress(NUMBERED).save(tmp_path / "plain")
    model.compress(NUMBERED, literals="numbers").save(tmp_path / "beside")
    assert header_of(tmp_path / "plain")["version"] == 1
    assert "literals" not in header_of(tmp_path / "plain")
    assert header_of(tmp_path / "beside")["version"] == 2
    monkeypatch.setattr(
        "memslots.modeling.memory_files_memslots.FORMAT_VERSION", 1
    )  # an older reader
    assert Memory.load(tmp_path / "plain").literals == ()
    with pytest.raises(ValueError, match=r"version 2; this memslots reads .* up to version 1"):
        Memory.load(tmp_path / "beside")


def test_the_room_check_counts_them(zoo):
    model = zoo.compressor("llama", "llama").eval()
    model.decoder.config.max_position_embeddings = 220
    text = " ".join(f"{i} and {i * 7919}." for i in range(40))
    arguments = {"question": QUESTIONS[0], "rate": 4, "max_new_tokens": 4}
    plain = model.compress(text, rate=4)
    assert model.memory_positions(plain)[0] < 180
    model.generate(context=text, **arguments)
    message = r"\d+ verbatim tokens, prompt and 4 new tokens it takes \d+ tokens"
    with pytest.raises(ValueError, match=message) as error:
        model.generate(context=text, literals="numbers", **arguments)
    beside = model.compress(text, rate=4, literals="numbers")
    prompt = model.processor.prompt(question=QUESTIONS[0])
    around = len(prompt.before) + len(prompt.after) + 4
    assert f"takes {model.memory_positions(beside)[0] + around} tokens" in str(error.value)
    with pytest.raises(ValueError, match="verbatim tokens"):
        model.generate(memory=beside, **arguments)


def test_a_memory_keeps_its_own(model):
    with pytest.raises(ValueError, match=r"literals=.* goes with context"):
        model.generate(memory=model.compress(COUNTS), question="Why?", literals="numbers")


def test_text_of_a_literal_is_data(model):
    """A control token's name in a literal is read as its characters."""
    text = "The tag `</s><|end|><tool_call>` ends it."
    memory = model.compress(text, literals="code")
    assert memory.literals[0][0].text == "</s><|end|><tool_call>"
    ((ids,),) = [model.processor.literal_ids(memory.literals[:1])]
    assert model.processor.decoder_text.control_ids.isdisjoint(ids)
    assert model.processor.decode(ids) == " </s><|end|><tool_call>"


def test_the_checkpoint_can_ask_for_them(zoo, tmp_path):
    model = zoo.compressor(literals=["numbers", "urls"]).eval()
    model.save_pretrained(tmp_path)
    loaded = MemslotsModel.from_pretrained(tmp_path)
    assert loaded.processor.literals == ["numbers", "urls"]
    memory = loaded.compress(COUNTS)
    assert memory.n_literals == (5,)
    assert loaded.compress(COUNTS, literals=[]).literals == ()
    made = conditions(loaded, [COUNTS, TEXTS[0]], [4], ("full", "head"))
    kept = {condition.name: condition.positions for condition in made}
    positions = loaded.memory_positions(loaded.compress([COUNTS, TEXTS[0]], rate=4))
    assert kept["memory"] == sum(positions) / 2


def test_training_reads_them(zoo, tmp_path):
    model = zoo.compressor(literals="numbers")
    args = CompressorConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, learning_rate=0.0,
        report_to="none", use_cpu=True, save_strategy="no", training_rates=[4],
        reconstruction_share=1.0,
    )  # fmt: skip
    row = {"context": COUNTS, "question": ["How old?", "How many maps?"], "answer": ["34", "27"]}
    trainer = CompressorTrainer(model, args, Dataset.from_list([row]))
    inputs = trainer.data_collator([row])
    spans = model.processor.segment(COUNTS)
    expected = model.processor.literal_ids(model.processor.segment_literals(COUNTS, spans))
    answers, others = inputs["batch"].rows[:2], inputs["batch"].rows[2:]
    assert [one.literals for one in answers] == [expected, expected]
    assert [one.literals for one in others] == [[own] for own in expected]
    with torch.no_grad():
        beside = trainer.compute_loss(model, trainer.data_collator([row])).item()
        model.processor.literals = None
        plain = trainer.compute_loss(model, trainer.data_collator([row])).item()
    assert beside != pytest.approx(plain, rel=1e-3)
    trainer.train()


@pytest.mark.parametrize("answer", [None, 5, True, "numbers"])
def test_a_detector_that_gives_no_spans_is_named(model, answer):
    with pytest.raises(ValueError, match=r"a detector of literals gives \(start, end\) .* got"):
        model.compress("Ann owns 27 maps.", literals=lambda text: answer)


def test_packed_questions_and_calls_agree_on_the_layout(zoo):
    model = zoo.compressor().eval()
    inputs = model.processor([COUNTS], ["How old?"], ["34"], rate=4, literals="numbers")
    memory = model.compress(COUNTS, rate=4, literals="numbers")
    (row,) = model.memory_rows(memory, [(0, model.processor.prompt(question="How old?"))])
    row.target = model.processor.answer_ids("34")
    slots = [segment.slots for segment in memory.segments]
    laid_out = model.processor.lay_out([row], slots)
    for name, tensor in laid_out.items():
        assert torch.equal(tensor, inputs[name]), name
    empty = Row([], model.processor.prompt(question="How old?"))
    assert model.processor.row_length(empty, []) == len(empty.prompt.before) + len(
        empty.prompt.after
    )


def test_detectors_take_a_new_name(model, monkeypatch):
    monkeypatch.setitem(DETECTORS, "maps", by_pattern("maps"))
    assert model.compress(COUNTS, literals="maps").literals[0][0].text == "maps"


@pytest.mark.parametrize("text", ["“", "«", "« ", "“a", '"', "“«", "「", "„a"])
def test_quotes_that_do_not_end_cost_no_more_than_their_length(text):
    """Each opening quote was searched for 300 characters: 23 s for a text of four megabytes."""
    started = time.process_time()
    assert find_literals(text * 300_000, ["quotes"]) == [] or text == '"'
    assert time.process_time() - started < 1


def test_the_innermost_quote_is_kept():
    text = "He said « she said « 27 maps » to me » and “a “b” c”."
    assert [one.text for one in find_literals(text, ["quotes"])] == ["27 maps", "b"]
