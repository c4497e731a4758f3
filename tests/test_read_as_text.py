"""Segments that the decoder reads as text: the prompt around them is that of a full text."""

import warnings

import pytest
import torch
from tiny_models import QUESTIONS, TEXTS

from memslots import MemslotsModel, embedded, prefill, verified
from memslots.evaluation.answering import answer_from_text

pytestmark = pytest.mark.filterwarnings("ignore:from the slots the decoder")

PERSON = "Tom Hale is a nurse. He is 51 years old."


def as_text(model, texts):
    """A memory of the texts, all of whose segments are read as text."""
    memory = model.compress(texts, rate=8)
    whole = [texts] if isinstance(texts, str) else texts
    return memory.as_text(
        {i: whole[s.text][s.start : s.end] for i, s in enumerate(memory.segments)}
    )


def read(model, row):
    """What the decoder reads of a row without slots, as text."""
    ids = [*row.prompt.before, *(i for own in row.literals for i in own), *row.prompt.after]
    return model.processor.tokenizer.decode(ids)


@pytest.mark.parametrize(
    "asked", [{"question": QUESTIONS[0]}, {"messages": [{"role": "user", "content": "Why?"}]}]
)
def test_prompts_are_those_of_the_full_text(model, asked):
    memory = as_text(model, TEXTS[0])
    (row,) = model.memory_rows(memory, [(0, model.processor.prompt(**asked))])
    full = model.processor.prompt(**asked, context=TEXTS[0])
    assert read(model, row) == model.processor.tokenizer.decode([*full.before, *full.after])
    assert TEXTS[0] + "\n\n" in read(model, row)


def test_slots_at_the_end_are_followed_by_the_prompt_itself(model):
    memory = model.compress(TEXTS[1], rate=8)
    assert len(memory.segments) > 1
    prompt = model.processor.prompt(question=QUESTIONS[0])
    first = memory.as_text({0: TEXTS[1][: memory.segments[0].end]})
    for one in (memory, first):
        assert model.memory_rows(one, [(0, prompt)])[0].prompt == prompt


def test_texts_in_a_row_are_parted(model):
    memory = as_text(model, [TEXTS[1], TEXTS[2]])
    prompt = model.processor.prompt(question="Why?")
    (row,) = model.memory_rows(memory.join(), [(0, prompt)])
    assert f"{TEXTS[1]}\n\n{TEXTS[2]}\n\n" in read(model, row)
    apart = model.memory_rows(memory, [(0, prompt), (1, prompt)])
    assert [read(model, row).count("\n\n" + TEXTS[2]) for row in apart] == [0, 0]


def test_positions_are_checked_with_what_parts_them(model):
    memory = as_text(model, TEXTS[0])
    (row,) = model.memory_rows(memory, [(0, model.processor.prompt(question=QUESTIONS[0]))])
    inputs = model.row_inputs([row], memory)["inputs_embeds"]
    limit = model.decoder.config.max_position_embeddings
    room = limit - inputs.shape[1]
    with pytest.raises(ValueError, match=f"takes {limit + 1} tokens"):
        model.generate(memory=memory, question=QUESTIONS[0], max_new_tokens=room + 1)


def test_a_prefix_is_continued_alike(model):
    memory = as_text(model, TEXTS[0])
    asked = {"question": QUESTIONS, "max_new_tokens": 6, "do_sample": False}
    plain = model.generate(memory=memory, **asked)
    assert model.generate(memory=prefill(model, memory), **asked) == plain


def test_an_expanded_text_is_answered_as_the_full_text():
    model = MemslotsModel.from_pretrained(embedded("tiny"))
    model.to(torch.float32)
    memory = model.compress(PERSON, rate=4, keep_text=True)
    question = "How old is the person?"
    opened = verified.expanded(model, memory, [0])
    answer = model.generate(memory=opened, question=question, max_new_tokens=8)
    assert [answer] == answer_from_text(model, [PERSON], [question], 8) == ["51"]


def test_reading_back_what_was_not_kept_is_said(model):
    unkept = model.compress(TEXTS[1], rate=8)
    with pytest.warns(UserWarning, match="exact text of segments 0 was not kept"):
        verified.expanded(model, unkept, [0])
    kept = model.compress(TEXTS[1], rate=8, keep_text=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            verified.expanded(model, kept, [0]).segment_texts[0] == TEXTS[1][: kept.segments[0].end]
        )
