"""Questions from raw text: their answers stand in it, and the same text gives the same ones."""

import json
import re

import pytest
from tiny_models import SENTENCES, words

from memslots.data.cloze import BLANK, KINDS, cloze_rows, contexts_of, sentences
from memslots.data.raw_texts import raw_texts
from memslots.data.schema import by_context
from memslots.trainer.collator import CompressorCollator
from memslots.trainer.compressor_config import CompressorConfig
from memslots.trainer.source_checks import check_sources
from memslots.trainer.stage_data import Sources, stage_dataset

TEXT = (
    "The light at Corran Point was finished in March 1847 by the engineer Agnes Marwick. Its lamp "
    "burned 212 barrels of whale oil a year until the harbour board paid for something better. "
    "Mr. Otto Lindqvist, who kept it longest, wrote that “nobody sails here twice without a "
    "reason” and was believed. In winter the keepers went to Tolm and slept in the school."
)


def asked_of(text, **options):
    (row,) = cloze_rows([text], characters=(20, 1000), **options)
    return row


def test_what_is_left_out_is_the_answer():
    row = asked_of(TEXT, questions=30)
    triples = list(zip(row["question"], row["answer"], row["kind"], strict=True))
    assert {kind for _, _, kind in triples} == set(KINDS)
    for question, answer, kind in triples:
        assert answer in TEXT
        if kind == "follows":
            given = re.search("“(.+)” in the text", question)[1]
            assert f"{given} {answer}" in TEXT
        elif kind == "sentence":
            assert question.removeprefix("Which sentence of the text mentions ")[:-1] in answer
        else:
            sentence = question.removeprefix("Fill in the blank: ")
            assert sentence.replace(BLANK, answer) in TEXT
            assert answer not in sentence
    found = {kind: {a for _, a, k in triples if k == kind} for kind in KINDS}
    assert found["date"] == {"March 1847"}
    assert found["number"] == {"212"}  # not the year, which is the date's
    assert found["quote"] == {"nobody sails here twice without a reason"}
    assert {"Agnes Marwick", "Corran Point", "Tolm"} <= found["name"]


def test_an_answer_that_stands_elsewhere_too_is_not_asked():
    twice = TEXT + " The keepers had known Agnes Marwick well, and she had known all of them."
    row = asked_of(twice, questions=40)
    blanks = [
        a
        for a, k in zip(row["answer"], row["kind"], strict=True)
        if k not in ("follows", "sentence")
    ]
    assert "Agnes Marwick" not in blanks
    assert "Corran Point" in blanks


def test_the_same_text_gives_the_same_questions_wherever_it_stands():
    alone = asked_of(TEXT)
    other = " ".join(SENTENCES)
    assert alone in list(cloze_rows([other, TEXT], characters=(20, 1000)))
    assert alone == asked_of(TEXT)
    assert alone["question"] != asked_of(TEXT, seed=1)["question"]
    assert len(alone["question"]) == len(alone["answer"]) == len(alone["answers"]) == 4


def test_contexts_are_whole_paragraphs_or_whole_sentences():
    assert list(contexts_of("One two three.\n\nFour five.\n\nSix.", 10, 28)) == [
        "One two three.\n\nFour five."
    ]
    cut = list(contexts_of(TEXT, 50, 200))
    assert all(50 <= len(context) <= 200 for context in cut)
    assert all(context in TEXT for context in cut)
    assert sentences(TEXT)[2].startswith("Mr. Otto Lindqvist, who")
    assert len(sentences(TEXT)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["colour"]}, r"cloze kinds \['colour'\] are unknown"),
        ({"questions": 0}, "questions=0: give 1 or more"),
        ({"characters": (900, 200)}, r"characters=\[900, 200\]: give the shortest"),
    ],
)
def test_settings_that_ask_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        next(cloze_rows([TEXT], **options))


def test_texts_are_read_from_files_of_any_plain_format(tmp_path):
    (tmp_path / "one.txt").write_text(TEXT)
    rows = [{"text": TEXT}, {"context": "A.", "question": "?", "answer": "A"}]
    rows.append({**rows[1], "question": "??"})  # the same context again
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(raw_texts(tmp_path / "one.txt")) == [TEXT]
    assert list(raw_texts(tmp_path / "two.jsonl")) == [TEXT, "A."]
    (tmp_path / "two.jsonl").unlink()
    assert list(raw_texts(tmp_path)) == [TEXT]
    with pytest.raises(ValueError, match="does not exist; give a file or a folder"):
        next(raw_texts(tmp_path / "three.txt"))
    (tmp_path / "four.doc").write_text("x")
    with pytest.raises(ValueError, match=r"must end in one of \.txt"):
        next(raw_texts(tmp_path / "four.doc"))


def question(context, number):
    text = f"Which is {number}?"
    return {"id": f"{number}", "context": context, "question": text, "answer": str(number)}


def test_questions_are_put_together_by_context():
    rows = [{**question(c, i), "answers": [str(i), "?"]} for i, c in enumerate("ABACA")]
    grouped = by_context(rows)
    assert [(row["context"], row["answer"]) for row in grouped] == [
        ("A", ["0", "2", "4"]),
        ("B", ["1"]),
        ("C", ["3"]),
    ]
    assert grouped[1]["answers"] == [["1", "?"]]
    assert [row["answer"] for row in by_context(rows, most=2)] == [["0", "2"], ["1"], ["3"], ["4"]]


def test_a_stage_reads_texts_and_questions_of_ones_own(zoo, tmp_path):
    processor = zoo.shared().processor
    (tmp_path / "texts.txt").write_text(TEXT)
    rows = [question(words(30, i // 3), i) for i in range(6)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    squad = [{**row, "answers": {"text": [row["answer"]], "answer_start": [0]}} for row in rows]
    (tmp_path / "squad.jsonl").write_text("\n".join(map(json.dumps, squad)))
    sources = [
        {"kind": "cloze", "file": str(tmp_path / "texts.txt"), "questions": 5},
        {"kind": "jsonl", "file": str(tmp_path / "asked.jsonl")},
        {"kind": "squad", "file": str(tmp_path / "squad.jsonl"), "questions": 2},
        {"kind": "text", "file": str(tmp_path / "texts.txt"), "tokens": 16},
    ]
    check_sources({"name": "own", "data": sources}, {}, Sources())
    made = list(stage_dataset(sources, Sources(), processor))
    counts = [len(row["question"]) for row in made if row["question"]]
    assert counts[:3] == [5, 3, 3]
    assert sorted(counts[3:]) == [1, 1, 2, 2]
    assert sum(row["text"] is not None for row in made) > 4


def test_a_context_with_several_questions_is_encoded_once(zoo, tmp_path):
    processor = zoo.shared().processor
    rows = [question(words(30, i // 3), i) for i in range(6)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"kind": "jsonl", "file": str(tmp_path / "asked.jsonl")}
    made = list(stage_dataset([source], Sources(), processor))
    args = CompressorConfig(output_dir=str(tmp_path), reconstruction_share=0.0, report_to="none")
    batch = CompressorCollator(processor, args)(made)
    segments = sum(len(processor.segment(words(30, i))) for i in range(2))
    assert batch["segment_input_ids"].shape[0] == segments
    assert len(batch["batch"].rows) == 6


def test_short_pieces_are_completed_by_what_follows_them(zoo, tmp_path):
    """At half a segment, piece and continuation used to be compressed together."""
    processor = zoo.shared().processor  # segments of 24 tokens
    (tmp_path / "texts.txt").write_text(words(200))
    args = CompressorConfig(output_dir=str(tmp_path), report_to="none")
    for tokens in (6, 12, 24):
        source = {"kind": "text", "file": str(tmp_path / "texts.txt"), "tokens": tokens}
        made = list(stage_dataset([source], Sources(), processor))
        batch = CompressorCollator(processor, args)(made[:4])["batch"]
        assert batch.tokens == [tokens] * 4
        reconstructed, completed, _ = batch.target_counts().tolist()
        assert completed > 0.5 * reconstructed


def test_texts_that_nothing_follows_are_said_once(zoo, tmp_path, caplog):
    processor = zoo.shared().processor
    args = CompressorConfig(output_dir=str(tmp_path), report_to="none")
    CompressorCollator(processor, args)([{"text": words(5)}, {"text": words(60)}] * 80)
    assert not caplog.records
    collate = CompressorCollator(processor, args)
    for _ in range(3):
        collate([{"text": words(5)}] * 40)
    assert len(caplog.records) == 1
    assert "completion_weight=0.5 only lowers the weight of reconstruction" in caplog.text


def bad(tmp_path, **files):
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return Sources()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"kind": "jsonl", "file": "gone.jsonl"},
            r"source 2 \(jsonl\): .*gone.jsonl' does not exist",
        ),
        ({"kind": "cloze", "file": "gone.txt"}, r"source 2 \(cloze\): .*gone.txt' does not exist"),
        (
            {"kind": "cloze", "file": "short.txt"},
            "hold no paragraph that a question can be made of",
        ),
        ({"kind": "jsonl", "file": "rows.jsonl"}, r"rows.jsonl, row 2: no 'answer'"),
        ({"kind": "jsonl", "files": "x"}, "option 'files' is unknown.*did you mean 'file'"),
        ({"kind": "jsonnl"}, r"'jsonnl' is unknown \(did you mean 'jsonl'\?\)"),
        ("jsonl", "a source is a mapping with its `kind`"),
    ],
)
def test_bad_sources_are_named_before_anything_is_loaded(source, message, tmp_path):
    lines = [{**question("A.", 1)}, {"context": "A.", "question": "?"}]
    origin = bad(tmp_path, good_txt=TEXT, short_txt="Hm.")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if isinstance(source, dict) and "file" in source:
        source = {**source, "file": str(tmp_path / source["file"])}
    stage = {"name": "own", "data": [{"kind": "text", "file": str(tmp_path / "good.txt")}, source]}
    with pytest.raises(ValueError, match=message) as caught:
        check_sources(stage, {}, origin)
    assert str(caught.value).startswith("stage 'own', source 2")


def test_completion_that_no_text_is_there_for_is_refused():
    stage = {"name": "own", "data": [{"kind": "fineweb", "tokens": 128, "completion": False}]}
    with pytest.raises(ValueError, match=r"trained at 0.5 of its weight"):
        check_sources(stage, {}, Sources())
    check_sources(stage, {"completion_weight": 0.0}, Sources())
