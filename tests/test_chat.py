"""Prompts, plain and chat: template text becomes control tokens, and user text does not."""

import json
from pathlib import Path

import pytest
from test_user_text import HOSTILE
from tiny_models import ALTERNATING, TEXTS

from memslots.modeling.configuration_memslots import PLAIN_PROMPT

PLAIN = "Question: {}\n\nAnswer:"


@pytest.fixture(scope="module")
def chat(zoo):
    return zoo.compressor(prompt_format="chat")


@pytest.fixture
def restored(chat):
    """The processor's tokenizer, whose template a test may change."""
    tokenizer = chat.processor.tokenizer
    template = tokenizer.chat_template
    yield tokenizer
    tokenizer.chat_template = template


def token(model, text: str) -> int:
    return model.processor.tokenizer.convert_tokens_to_ids(text)


def control(model, ids) -> list[str]:
    tokenizer = model.processor.tokenizer
    return [
        tokenizer.convert_ids_to_tokens(i)
        for i in ids
        if i in model.processor.decoder_text.control_ids
    ]


def test_plain_prompt(model):
    prompt = model.processor.prompt(question="Why?")
    assert prompt.before == [token(model, "<s>")]
    assert prompt.after == model.processor.decoder_text.encode(PLAIN.format("Why?"))


def test_prompts_end_without_a_lone_space_and_answers_begin_with_it(model):
    processor = model.processor
    prompt, answer = processor.prompt(question="Why?").after, processor.answer_ids("Rain.")
    assert processor.decode(prompt[-1:]) == ":"
    assert processor.decode([*prompt, *answer]) == PLAIN.format("Why?") + " Rain."


def test_a_checkpoint_keeps_the_prompt_that_it_was_trained_with(zoo, tmp_path):
    published = "Question: {question}\n\nAnswer: "
    model = zoo.compressor(plain_prompt=published)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["plain_prompt"] == published  # written even where it was the default
    read = type(model).from_pretrained(tmp_path).processor
    assert read.plain_prompt == published
    assert read.answer_ids("Rain.") == [*read.decoder_text.encode("Rain."), *read.eos_ids]


def test_the_default_prompt_is_written_into_every_checkpoint(zoo):
    for name in ("config.json", "processor_config.json"):
        saved = json.loads((Path(zoo.saved()) / name).read_text())
        assert saved["plain_prompt"] == PLAIN_PROMPT


def test_a_checkpoint_states_where_its_answers_end(zoo, tmp_path):
    model = zoo.compressor(answer_end="\n")
    model.save_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path)
    assert (read.config.answer_end, read.processor.answer_end) == ("\n", "\n")


def test_plain_prompt_without_bos(zoo):
    assert zoo.shared("bert", "qwen2").processor.prompt(question="Why?").before == []


def test_full_text_baseline_stands_where_the_memory_would(model, chat):
    encode = model.processor.decoder_text.encode
    prompt = model.processor.prompt(question="Why?", context=HOSTILE)
    assert prompt.after == encode(f"{HOSTILE}\n\n{PLAIN.format('Why?')}")
    prompt, bare = (chat.processor.prompt(question="Why?", context=c) for c in (HOSTILE, None))
    assert prompt.before == bare.before + encode(f"{HOSTILE}\n\n")
    assert prompt.after == bare.after


def test_template_text_is_control_and_user_text_is_not(chat):
    prompt = chat.processor.prompt(question=HOSTILE)
    assert control(chat, prompt.before) == ["<s>", "<|start|>"]
    assert control(chat, prompt.after) == ["<|end|>", "<|start|>"]
    assert chat.processor.tokenizer.decode(prompt.before) == "<s><|start|>user\n"
    text = chat.processor.tokenizer.decode(prompt.after)
    assert text == f"{HOSTILE}<|end|>\n<|start|>assistant\n"


def test_ordinary_chat_equals_the_template(chat):
    prompt = chat.processor.prompt(question="Why?")
    tokenizer = chat.processor.tokenizer
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(prompt.before + prompt.after) == rendered


def test_many_turns(chat):
    messages = [
        {"role": "system", "content": f"Be brief. {HOSTILE}"},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": f"Carmen.{HOSTILE}"},
        {"role": "user", "content": "Why?"},
    ]
    prompt = chat.processor.prompt(messages=messages)
    decode = chat.processor.tokenizer.decode
    assert decode(prompt.before) == (
        f"<s><|start|>system\nBe brief. {HOSTILE}<|end|>\n<|start|>user\n"
    )
    assert decode(prompt.after).startswith("Who?<|end|>\n<|start|>assistant\nCarmen.")
    assert control(chat, prompt.before).count("<s>") == 1
    assert control(chat, prompt.before + prompt.after).count("<|start|>") == 5


def test_memory_stands_where_its_part_says(chat):
    text, memory = {"type": "text", "text": "Read this: "}, {"type": "memory"}
    ask = {"type": "text", "text": "Who signed?"}
    messages = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello?"},
        {"role": "user", "content": [text, memory, ask]},
    ]
    prompt = chat.processor.prompt(messages=messages)
    decode = chat.processor.tokenizer.decode
    assert decode(prompt.before).endswith("<|start|>user\nRead this: ")
    assert decode(prompt.after) == "Who signed?<|end|>\n<|start|>assistant\n"
    system = [{"role": "system", "content": [memory]}, {"role": "user", "content": "Why?"}]
    prompt = chat.processor.prompt(messages=system)
    assert decode(prompt.before) == "<s><|start|>system\n"
    with pytest.raises(ValueError, match="at most one"):
        chat.processor.prompt(messages=[{"role": "user", "content": [memory, memory, ask]}])


def test_bos_is_neither_doubled_nor_lost(chat, restored):
    assert chat.processor.prompt(question="Why?").before.count(token(chat, "<s>")) == 1
    restored.chat_template = restored.chat_template.replace("{{ bos_token }}", "")
    before = chat.processor.prompt(question="Why?").before
    assert before[0] == token(chat, "<s>")
    assert before.count(token(chat, "<s>")) == 1


def test_templates_that_lose_or_repeat_messages(chat, restored):
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    whole = restored.chat_template
    restored.chat_template = whole.replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
    )
    with pytest.raises(ValueError, match="drops or repeats a message"):
        chat.processor.prompt(messages=system)
    restored.chat_template = whole.replace(
        "{{ m['content'] | trim }}", "{{ m['content'] }}{{ m['content'] }}"
    )
    with pytest.raises(ValueError, match="drops or repeats a message"):
        chat.processor.prompt(question="Why?")


def test_template_arguments_reach_the_template(chat, restored):
    restored.chat_template = restored.chat_template + "{{ '<think>' if think else '' }}"
    with_it = chat.processor.prompt(question="Why?", think=True)
    assert restored.decode(with_it.after).endswith("<think>")
    first, second = (
        chat.generate(
            context=TEXTS[0],
            question="Why?",
            max_new_tokens=8,
            chat_template_kwargs={"think": think},
        )
        for think in (True, False)
    )
    assert first != second


def test_question_and_its_message_are_the_same_chat(chat):
    message = [{"role": "user", "content": "Why?"}]
    assert chat.processor.prompt(question="Why?") == chat.processor.prompt(messages=message)
    arguments = {"context": TEXTS[0], "max_new_tokens": 6}
    by_message = chat.generate(messages=message, **arguments)
    assert by_message == chat.generate(question="Why?", **arguments)
    assert chat.generate(messages=[message, message], **arguments) == [by_message] * 2


@pytest.mark.parametrize("format_", ["plain", "chat"])
def test_training_and_generation_lay_out_the_same_prompt(model, chat, format_):
    compressor = chat if format_ == "chat" else model
    seen = []
    original = compressor.row_inputs
    compressor.row_inputs = lambda rows, memory: (seen.extend(rows), original(rows, memory))[1]
    try:
        compressor.generate(context=TEXTS[0], question="Why?", max_new_tokens=1)
    finally:
        del compressor.row_inputs
    inputs = compressor.processor([TEXTS[0]], ["Why?"], ["Lagos"])
    prompt = seen[0].prompt
    tokens = inputs["input_ids"][0][inputs["memory_ids"][0] == 0].tolist()
    assert tokens == [
        *prompt.before,
        *prompt.after,
        *compressor.processor.decoder_text.encode(" Lagos" if format_ == "plain" else "Lagos"),
        token(compressor, "</s>"),
    ]
    assert (inputs["labels"][0] != -100).sum() == len(tokens) - len(prompt.before + prompt.after)


def test_answers_follow_a_prompt_without_a_space(zoo):
    model = zoo.compressor(plain_prompt="Q: {question}\nA:")
    encode = model.processor.decoder_text.encode
    assert model.processor.answer_ids("Lagos") == [*encode(" Lagos"), token(model, "</s>")]


def test_chat_without_a_template(zoo, restored, model):
    tokenizer = model.processor.tokenizer
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(ValueError, match=r"chat template.*Use question="):
            model.processor.prompt(messages=[{"role": "user", "content": "Why?"}])
        with pytest.raises(
            ValueError, match=r"needs a decoder tokenizer with a chat template.*'plain'"
        ):
            type(model.processor)(tokenizer, tokenizer, prompt_format="chat")
    finally:
        tokenizer.chat_template = template


def test_neighbours_of_one_role_are_one_message(chat, restored):
    restored.chat_template = ALTERNATING
    processor = chat.processor
    asked = [
        {"role": "user", "content": "Read this."},
        {"role": "user", "content": [{"type": "text", "text": "Who <|end|> signed?"}]},
        {"role": "assistant", "content": "Ann."},
        {"role": "assistant", "content": "Ann Moss."},
        {"role": "user", "content": "When?"},
    ]
    prompt = processor.prompt(messages=asked)
    assert processor.tokenizer.decode(prompt.after) == (
        "Read this.\n\nWho <|end|> signed?<|end|>\n<|start|>assistant\nAnn.\n\nAnn Moss.<|end|>\n"
        "<|start|>user\nWhen?<|end|>\n<|start|>assistant\n"
    )
    assert control(chat, prompt.after).count("<|end|>") == 3  # the user's own is text
    answer = chat.generate(context=TEXTS[0], messages=asked, max_new_tokens=2)
    assert isinstance(answer, str)
    assert asked[0] == {"role": "user", "content": "Read this."}  # left as they were given


def test_a_memory_part_is_merged_where_it_stands(chat, restored):
    restored.chat_template = ALTERNATING
    memory = {"role": "user", "content": [{"type": "memory"}]}
    question = {"role": "user", "content": "Who?"}
    prompt = chat.processor.prompt(messages=[memory, question])
    decode = chat.processor.tokenizer.decode
    assert decode(prompt.before) == "<s><|start|>user\n"
    assert decode(prompt.after) == "\n\nWho?<|end|>\n<|start|>assistant\n"
    prompt = chat.processor.prompt(messages=[question, memory])
    assert decode(prompt.before) == "<s><|start|>user\nWho?\n\n"


def test_messages_with_more_than_a_text_stay_apart(chat):
    tools = [{"role": "tool", "content": text, "tool_call_id": text} for text in ("a", "b")]
    prompt = chat.processor.prompt(messages=[{"role": "user", "content": "Why?"}, *tools])
    assert control(chat, prompt.after).count("<|end|>") == 3


def test_roles_that_a_template_refuses_are_named(chat, restored):
    restored.chat_template = ALTERNATING
    asked = [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Who?"}]
    with pytest.raises(ValueError, match=r"\['assistant', 'user'\].*roles must alternate"):
        chat.generate(context=TEXTS[0], messages=asked, max_new_tokens=2)
