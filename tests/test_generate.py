"""generate: every documented argument works, or is refused by name."""

import threading

import numpy as np
import pytest
import torch
from tiny_models import QUESTIONS, TEXTS
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

from memslots.chat import ChatMemory
from memslots.modeling.decoders_memslots import REFUSED, generation_defaults
from memslots.modeling.layout_memslots import Prompt, Row, max_positions, pair


@pytest.fixture(scope="module")
def memory(model):
    return model.compress(TEXTS[0])


@pytest.fixture(scope="module")
def ask(model, memory):
    """Generates for one memory and one question."""

    def ask(**kwargs):
        return model.generate(
            memory=memory, question=QUESTIONS[0], **{"max_new_tokens": 8, **kwargs}
        )

    return ask


def argmax_loop(model, memory, question, steps) -> list[int]:
    """Greedy ids by one whole forward of the decoder a token, without cache or generate."""
    row = Row(list(range(len(memory.segments))), model.processor.prompt(question=question))
    inputs = model.row_inputs([row], memory)
    embeds, ids = inputs["inputs_embeds"], []
    embedding = model.decoder.get_input_embeddings()
    for _ in range(steps):
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        with torch.no_grad():
            logits = model.decoder(inputs_embeds=embeds, attention_mask=mask).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == model.processor.tokenizer.eos_token_id:
            break
        embeds = torch.cat([embeds, embedding(torch.tensor([[ids[-1]]]))], dim=1)
    return ids


@pytest.mark.parametrize("decoder", ["llama", "gpt2", "gemma3"])
def test_greedy_equals_an_argmax_loop(zoo, decoder):
    model = zoo.shared("gpt2", decoder)
    for text, question in zip(TEXTS, QUESTIONS, strict=True):
        memory = model.compress(text)
        answer = model.generate(memory=memory, question=question, max_new_tokens=8)
        ids = argmax_loop(model, memory, question, 8)
        assert answer == model.processor.decode(ids).strip()


def test_forward_logits_are_those_that_generate_follows(model, memory):
    inputs = model.processor(TEXTS[0], QUESTIONS[0])
    del inputs["labels"], inputs["task_ids"]
    with torch.no_grad():
        logits = model(**inputs).logits
    assert int(logits[0, -1].argmax()) == argmax_loop(model, memory, QUESTIONS[0], 1)[0]


class Banned(LogitsProcessor):
    def __init__(self, ids):
        self.ids = ids

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, self.ids] = float("-inf")
        return scores


class AfterThree(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 3)


def ids_of(model, memory, **kwargs) -> list[int]:
    output = model.generate(
        memory=memory,
        question=QUESTIONS[0],
        return_dict_in_generate=True,
        **{"max_new_tokens": 8, **kwargs},
    )
    return output.sequences[0].tolist()


def test_arguments_that_choose_tokens(model, memory, ask):
    greedy = ids_of(model, memory)
    assert len(greedy) == 8
    banned = greedy[:1]
    assert banned[0] not in ids_of(model, memory, bad_words_ids=[banned])
    processors = LogitsProcessorList([Banned(banned)])
    assert banned[0] not in ids_of(model, memory, logits_processor=processors)
    assert banned[0] not in ids_of(model, memory, suppress_tokens=banned)
    repeated = ids_of(model, memory, no_repeat_ngram_size=1)
    assert len(set(repeated)) == len(repeated)
    assert ids_of(model, memory, repetition_penalty=1e6)[1] != greedy[0]
    assert ids_of(model, memory, use_cache=False) == greedy
    assert ids_of(model, memory, cache_implementation="static") == greedy
    assert isinstance(ask(num_beams=3), str)
    assert isinstance(ask(num_beams=2, length_penalty=0.5, early_stopping=True), str)


def test_a_question_is_answered_up_to_the_end_that_the_checkpoint_states(
    model, memory, ask, monkeypatch
):
    whole = ask()
    end = next(c for c in whole[1:-1] if c.isascii() and c.isalnum())
    monkeypatch.setattr(model.processor, "answer_end", end)
    answer = ask()
    assert answer.startswith(whole[: whole.index(end)])
    assert (end in answer, len(answer) < len(whole)) == (True, True)
    assert ask(stop_strings=None) == whole
    chat = {"memory": memory, "messages": [{"role": "user", "content": QUESTIONS[0]}]}
    said = model.generate(**chat, max_new_tokens=8)
    monkeypatch.setattr(model.processor, "answer_end", None)
    assert model.generate(**chat, max_new_tokens=8) == said  # a chat's answer has many lines


def test_arguments_that_end_answers(model, memory):
    greedy = ids_of(model, memory)
    assert len(ids_of(model, memory, eos_token_id=greedy[2])) <= 3
    assert len(ids_of(model, memory, eos_token_id=greedy[2], min_new_tokens=6)) >= 6
    stop = StoppingCriteriaList([AfterThree()])
    assert len(ids_of(model, memory, stopping_criteria=stop)) == 3
    decode = model.processor.decode
    letter = next(c for c in decode(greedy) if c.isascii() and c.isalnum())
    stopped = ids_of(model, memory, stop_strings=[letter])
    assert len(stopped) < len(greedy)
    assert letter in decode(stopped)
    assert letter not in decode(stopped[:-1])
    # max_length counts the prompt's positions, as for any generate from embeddings.
    row = Row(list(range(len(memory.segments))), model.processor.prompt(question=QUESTIONS[0]))
    used = model.row_inputs([row], memory)["inputs_embeds"].shape[1]
    longer = ids_of(model, memory, max_new_tokens=None, max_length=used + 5)
    assert len(longer) == 5
    assert ids_of(model, memory, max_time=60.0) == greedy


def test_time_alone_leaves_our_limit_of_new_tokens(model, memory):
    for settings in (
        {"max_time": 60.0},
        {"generation_config": GenerationConfig(max_time=60.0, do_sample=False)},
    ):
        ids = ids_of(model, memory, max_new_tokens=None, **settings)
        assert ids == ids_of(model, memory, max_new_tokens=None)
        assert len(ids) > 20  # which transformers takes by itself


def test_generation_config(model, memory, ask):
    config = GenerationConfig(max_new_tokens=4, do_sample=False)
    given = model.generate(memory=memory, question=QUESTIONS[0], generation_config=config)
    assert given == ask(max_new_tokens=4)
    assert ask(generation_config=config, max_new_tokens=6) == ask(max_new_tokens=6)
    # One that says nothing of length leaves ours, not the twenty of transformers.
    config = GenerationConfig(do_sample=False)
    given = model.generate(memory=memory, question=QUESTIONS[0], generation_config=config)
    assert given == model.generate(memory=memory, question=QUESTIONS[0])


def test_end_tokens_of_the_decoders_own_configuration(zoo):
    model = zoo.compressor()
    memory = model.compress(TEXTS[0])
    third = ids_of(model, memory)[2]
    model.decoder.generation_config.eos_token_id = [2, third]
    assert len(ids_of(model, memory)) <= 3
    config = GenerationConfig(do_sample=False)  # names no end
    assert len(ids_of(model, memory, generation_config=config)) <= 3


def test_sampling_is_seeded(ask):
    def sample(seed):
        torch.manual_seed(seed)
        return ask(do_sample=True, temperature=3.0, top_k=0, top_p=0.99)

    assert sample(0) == sample(0)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_return_sequences(model, memory, ask):
    beams = ask(num_beams=4, num_return_sequences=3)
    assert len(beams) == 3
    assert beams[0] == ask(num_beams=4)
    sampled = model.generate(
        memory=memory,
        question=QUESTIONS,
        do_sample=True,
        num_return_sequences=2,
        max_new_tokens=3,
        batch_size=2,
    )
    assert len(sampled) == 6


def test_scores(model, memory):
    output = model.generate(
        memory=memory,
        question=QUESTIONS,
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert output.sequences.shape[0] == 3
    assert len(output.scores) == output.sequences.shape[1]
    assert output.scores[0].shape == (3, model.decoder.config.vocab_size)
    with pytest.raises(ValueError, match="3 answers need batch_size=3, got 2"):
        model.generate(
            memory=memory, question=QUESTIONS, batch_size=2, return_dict_in_generate=True
        )


def test_streamers(model, ask, capsys):
    tokenizer = model.processor.tokenizer
    answer = ask()
    capsys.readouterr()
    assert ask(streamer=TextStreamer(tokenizer, skip_special_tokens=True)) == answer
    assert capsys.readouterr().out.strip() == answer
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True, timeout=120)
    thread = threading.Thread(target=ask, kwargs={"streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces).strip() == answer


REFUSED_VALUES = {
    "guidance_scale": 2.0,
    "prompt_lookup_num_tokens": 3,
    "encoder_repetition_penalty": 1.5,
    "encoder_no_repeat_ngram_size": 2,
    "assistant_early_exit": 1,
    "use_mtp": True,
    "custom_generate": "dola",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(model, memory, name):
    value = REFUSED_VALUES.get(name, torch.ones(1, 4))
    with pytest.raises(ValueError, match=f"generate does not take {name} here: .+"):
        model.generate(memory=memory, question="Why?", **{name: value})
    if name in ("guidance_scale", "prompt_lookup_num_tokens", "encoder_repetition_penalty"):
        config = GenerationConfig(**{name: value})
        with pytest.raises(ValueError, match=name):
            model.generate(memory=memory, question="Why?", generation_config=config)
        with pytest.raises(ValueError, match=name):
            model.reconstruct(memory, **{name: value})


def test_models_as_refused_arguments_and_neutral_values(model, memory, ask):
    with pytest.raises(ValueError, match="does not take assistant_model"):
        ask(assistant_model=model.decoder)
    assert ask(guidance_scale=1.0, assistant_model=None, negative_prompt_ids=None) == ask()


def test_unknown_arguments_are_refused(ask):
    with pytest.raises(ValueError, match=r"does not take .'temperatur'.; .* temperature"):
        ask(temperatur=3.0)


@pytest.fixture
def encoder_calls(model):
    calls = []
    hook = model.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def test_encoder_runs_once_per_context_and_never_per_token(model, encoder_calls):
    memory = model.compress(TEXTS)
    assert len(encoder_calls) == 1
    model.generate(memory=memory, question=QUESTIONS, max_new_tokens=5)
    model.reconstruct(memory, max_new_tokens=3)
    assert len(encoder_calls) == 1
    model.generate(context=TEXTS, question=QUESTIONS, max_new_tokens=5, batch_size=1)
    assert len(encoder_calls) == 2
    model.generate(context=TEXTS[0], question=QUESTIONS, max_new_tokens=5, num_beams=2)
    assert len(encoder_calls) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_new_token": 5}, r"does not take \['max_new_token'\]"),
        ({"seed": 1, "temperature": 1.0}, r"does not take \['seed'\]"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"cache_implementation": "fast"}, "cache_implementation"),
        ({"early_stopping": "now"}, "early_stopping"),
        ({"max_length": 5}, "max_length=5 counts the"),
        ({"batch_size": 1, "return_dict_in_generate": True}, "answers need batch_size=3"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_encoded(model, encoder_calls, wrong, said):
    with pytest.raises(ValueError, match=said):
        model.generate(context=TEXTS, question=QUESTIONS, **wrong)
    assert not encoder_calls


def test_arguments_without_a_value_ask_for_nothing(model, memory, ask):
    nothing = dict.fromkeys((*REFUSED, "stop_strings", "max_length"))
    assert ask(**nothing) == ask(stop_strings=[]) == ask(stop_strings="") == ask()
    for stops in (5, ["a", 5]):
        with pytest.raises(TypeError, match=r"stop_strings must be a string or a list of strings"):
            ask(stop_strings=stops)
    with pytest.raises(TypeError, match=r"batch_size must be a whole number .*, got None"):
        ask(batch_size=None)
    with pytest.raises(TypeError, match=r"batch_size must be a whole number .*, got None"):
        model.reconstruct(memory, batch_size=None)


def test_pairing():
    assert pair(2, 2) == [(0, 0), (1, 1)]
    assert pair(1, 3) == [(0, 0), (0, 1), (0, 2)]
    assert pair(3, 1) == [(0, 0), (1, 0), (2, 0)]
    with pytest.raises(ValueError, match="2 contexts and 3 questions do not go together"):
        pair(2, 3)


def test_strings_give_strings_and_lists_lists_in_order(model):
    def ask(context, question):
        return model.generate(context=context, question=question, max_new_tokens=4)

    single = ask(TEXTS[0], QUESTIONS[0])
    assert isinstance(single, str)
    assert ask([TEXTS[0]], QUESTIONS[0]) == [single]
    assert ask(TEXTS[0], [QUESTIONS[0]]) == [single]
    assert ask(tuple(TEXTS[:1]), (QUESTIONS[0],)) == [single]
    one_context = [ask(TEXTS[1], question) for question in QUESTIONS]
    assert ask(TEXTS[1], QUESTIONS) == one_context
    one_question = [ask(text, QUESTIONS[1]) for text in TEXTS]
    assert ask(TEXTS, QUESTIONS[1]) == one_question
    memory = model.compress(TEXTS)
    assert model.generate(memory=memory, question=QUESTIONS[1], max_new_tokens=4) == one_question
    assert model.generate(memory=memory[1], question=QUESTIONS, max_new_tokens=4) == one_context
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    assert isinstance(model.generate(context=TEXTS[0], messages=chat, max_new_tokens=4), str)
    assert len(model.generate(context=TEXTS[0], messages=[chat], max_new_tokens=4)) == 1


def test_small_batches_equal_one_batch(model):
    memory = model.compress(TEXTS[1])
    questions = [*QUESTIONS, "Who?", "When did the treaty end, and where did Carmen go?"]
    arguments = {"memory": memory, "question": questions, "max_new_tokens": 6}
    assert model.generate(**arguments, batch_size=2) == model.generate(**arguments)


def test_rate_of_a_context_and_of_a_memory(model):
    arguments = {"question": QUESTIONS, "max_new_tokens": 6}
    fine, coarse = model.compress(TEXTS[1]), model.compress(TEXTS[1], rate=8)
    expected = model.generate(memory=coarse, **arguments)
    assert model.generate(context=TEXTS[1], rate=8, **arguments) == expected
    assert model.generate(memory=fine, rate=8, **arguments) == expected
    assert model.generate(memory=fine, **arguments) != expected


def test_reconstruct(model):
    memory = model.compress(TEXTS)
    texts = model.reconstruct(memory, max_new_tokens=6)
    assert len(texts) == 3
    assert texts == [model.reconstruct(memory[i], max_new_tokens=6) for i in range(3)]
    assert texts == model.reconstruct(memory, max_new_tokens=6, batch_size=2)
    assert isinstance(model.reconstruct(memory.join(), max_new_tokens=6), str)
    with pytest.raises(ValueError, match="return_dict_in_generate is for generate"):
        model.reconstruct(memory, return_dict_in_generate=True)


def test_no_more_is_written_than_the_decoder_has_positions(model, memory):
    """Reading back asks for twice a segment's tokens, which ended a GPT-2 with an IndexError."""
    rows = model.memory_rows(memory, [(0, Prompt())])
    told = generation_defaults(model, rows, memory, {"max_new_tokens": 1000})
    room = max_positions(model.decoder.config) - model.memory_positions(memory)[0]
    assert told["max_new_tokens"] == room


def test_reconstruct_follows_a_generation_config(model, monkeypatch):
    memory, told = model.compress(TEXTS[:1]), []
    generate_rows = model.generate_rows

    def noting(rows, memory, kwargs, prefix=None):
        told.append(generation_defaults(model, rows, memory, kwargs))
        return generate_rows(rows, memory, kwargs, prefix)

    monkeypatch.setattr(model, "generate_rows", noting)
    short = model.reconstruct(memory, max_new_tokens=3)
    assert model.reconstruct(memory, generation_config=GenerationConfig(max_new_tokens=3)) == short
    config = GenerationConfig(do_sample=True, temperature=2.0)
    model.reconstruct(memory, generation_config=config)
    assert vars(told.pop()["generation_config"])["do_sample"] is True
    config = GenerationConfig(temperature=2.0)  # says nothing of sampling: greedy, as without it
    assert model.reconstruct(memory, generation_config=config) == model.reconstruct(memory)
    beside = 4  # BOS, the markers and <AE>
    length = memory.segments[0].slots + beside + 3
    assert model.reconstruct(memory, max_length=length) == short


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 2, "num_beams": 2},
        {"generation_config": GenerationConfig(num_return_sequences=2, num_beams=2)},
    ],
)
def test_reconstruct_gives_one_text(model, settings):
    with pytest.raises(ValueError, match=r"num_return_sequences.* for generate"):
        model.reconstruct(model.compress(TEXTS[0]), max_new_tokens=2, **settings)


def test_the_decoders_own_limit_of_new_tokens(zoo):
    model = zoo.compressor()
    memory = model.compress(TEXTS[0])
    model.decoder.generation_config.max_new_tokens = 3
    assert len(ids_of(model, memory, max_new_tokens=None)) == 3
    config = GenerationConfig(do_sample=False)
    assert len(ids_of(model, memory, max_new_tokens=None, generation_config=config)) == 3
    row = Row(list(range(len(memory.segments))), model.processor.prompt(question=QUESTIONS[0]))
    used = model.row_inputs([row], memory)["inputs_embeds"].shape[1]
    assert len(ids_of(model, memory, max_new_tokens=None, max_length=used + 5)) == 5
    # More than the decoder's positions leave is cut, since nobody asked for it.
    model.decoder.generation_config.max_new_tokens = 10**6
    settings = generation_defaults(model, [row], memory, {})
    assert settings["max_new_tokens"] == max_positions(model.decoder.config) - used < 10**6


def test_how_long_an_answer_may_be_hangs_on_its_own_batch(zoo, monkeypatch):
    """A long document beside a short one cut both answers to what the long one left."""
    model, told = zoo.compressor(), []
    model.decoder.generation_config.max_new_tokens = 10**6

    def noting(**kwargs):
        told.append(kwargs["max_new_tokens"])
        return torch.zeros(1, 1, dtype=torch.long)

    monkeypatch.setattr(model.decoder, "generate", noting)
    memory = model.compress([TEXTS[0], TEXTS[0] * 3])
    model.generate(memory=memory, question=QUESTIONS[0], batch_size=1)
    for document in (memory[0], memory[1]):
        model.generate(memory=document, question=QUESTIONS[0])
    assert told[:2] == told[2:]
    assert told[0] > told[1]


def test_a_length_beyond_the_decoders_positions_is_cut(model, memory):
    row = Row(list(range(len(memory.segments))), model.processor.prompt(question=QUESTIONS[0]))
    used = model.processor.row_length(row, [segment.slots for segment in memory.segments])
    for kwargs in (
        {"max_length": 10**9},
        {"generation_config": GenerationConfig(max_length=10**9)},
    ):
        settings = generation_defaults(model, [row], memory, kwargs)
        settings = (
            vars(settings["generation_config"]) if "generation_config" in settings else settings
        )
        assert settings["max_new_tokens"] == model.decoder.config.max_position_embeddings - used


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance_scale", 1.5),
        ("encoder_repetition_penalty", 1.5),
        ("return_dict_in_generate", True),
    ],
)
@pytest.mark.parametrize("config", [None, GenerationConfig(do_sample=False)])
def test_settings_of_the_decoders_own_that_cannot_work_are_left_out(zoo, name, value, config):
    model = zoo.compressor()
    asked = {"context": TEXTS[0], "question": QUESTIONS[0], "max_new_tokens": 6}
    expected = model.generate(**asked, do_sample=False)
    setattr(model.decoder.generation_config, name, value)
    assert model.generate(**asked, generation_config=config) == expected


def test_a_length_that_the_prompt_exceeds(model, memory):
    config = GenerationConfig(max_length=5)
    for kwargs in ({"max_length": 5}, {"generation_config": config}):
        with pytest.raises(
            ValueError, match=r"max_length=5 counts the 20 prompt tokens too.*max_new_tokens"
        ):
            model.generate(memory=memory, question="Why?", **kwargs)
    assert config.max_length == 5


def test_a_generation_config_sets_off_no_deprecation(model, memory, monkeypatch):
    warned = []
    monkeypatch.setattr(
        "transformers.generation.utils.logger.warning_once", lambda *a, **_: warned.append(a[0])
    )
    config = GenerationConfig()
    before = config.to_dict()
    model.generate(memory=memory, question="Why?", generation_config=config)
    model.generate(memory=memory, question="Why?", generation_config=config, max_new_tokens=2)
    assert not [text for text in warned if "deprecated" in text]
    assert config.to_dict() == before


def test_template_arguments_need_a_template(model, memory):
    with pytest.raises(ValueError, match=r"chat_template_kwargs .*plain"):
        model.generate(memory=memory, question="Why?", chat_template_kwargs={"think": True})


@pytest.mark.parametrize("wrong", ["think", 5, [("think", True)], b"x"])
def test_template_arguments_are_a_dict(model, memory, wrong):
    for asked in ({"question": "Why?"}, {"messages": [{"role": "user", "content": "Why?"}]}):
        with pytest.raises(TypeError, match=r"chat_template_kwargs must be a dict, got "):
            model.generate(memory=memory, chat_template_kwargs=wrong, **asked)


NONE_OF = {
    int: ["5", True, 2.5, float("nan"), float("inf"), [5], {}, -1],
    float: ["0.5", True, False, float("nan"), [0.5], -1, 1e-45, float("inf")],
    bool: ["no", 1, [], 0.0],
}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (int, "max_new_tokens max_length min_new_tokens min_length num_beams batch_size".split()),
        (int, ["num_return_sequences", "top_k", "no_repeat_ngram_size"]),
        (float, ["temperature", "repetition_penalty"]),
        (bool, ["do_sample", "use_cache", "return_dict_in_generate"]),
    ],
)
def test_values_of_a_wrong_type_or_size_are_named(model, memory, kind, names):
    for name in names:
        for value in NONE_OF[kind]:
            with pytest.raises((TypeError, ValueError), match=rf"^{name} must be .*, got "):
                model.generate(memory=memory, question="Why?", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", "1"),
        ("top_p", 2),
        ("top_p", float("nan")),
        ("max_time", "1"),
        ("generation_config", {}),
        ("generation_config", "greedy"),
        ("generation_config", GenerationConfig(max_new_tokens=2.5)),
    ],
)
@pytest.mark.parametrize("method", ["generate", "reconstruct", "chat"])
def test_other_values_of_a_wrong_type_are_named(model, memory, name, value, method):
    asked = {
        "generate": lambda **kwargs: model.generate(memory=memory, question="Why?", **kwargs),
        "reconstruct": lambda **kwargs: model.reconstruct(memory, **kwargs),
        "chat": lambda **kwargs: ChatMemory(model).ask("Why?", **kwargs),
    }[method]
    named = "max_new_tokens" if isinstance(value, GenerationConfig) else name
    with pytest.raises((TypeError, ValueError), match=rf"^{named} must be .*, got "):
        asked(**{name: value})


def test_numbers_of_other_libraries_are_numbers(model, memory):
    greedy = {"temperature": 0, "do_sample": False}
    assert model.generate(memory=memory, question="Why?", max_new_tokens=np.int64(3), **greedy)
    drawn = {"top_p": 1, "eos_token_id": [0, 1], "do_sample": True, "max_new_tokens": 3}
    for number in (np.float64(0.5), np.float32(0.5), 2):
        drawn |= {"temperature": number, "repetition_penalty": number}
        assert isinstance(model.generate(memory=memory, question="Why?", **drawn), str)


def test_temperature_0_is_greedy_whatever_the_decoders_own_settings(zoo):
    model = zoo.compressor("gpt2", "llama").eval()
    memory = model.compress(TEXTS[0])
    greedy = model.generate(memory=memory, question="Why?", max_new_tokens=8)
    model.decoder.generation_config.do_sample = True
    for kwargs in (
        {"temperature": 0, "max_new_tokens": 8},
        {"generation_config": GenerationConfig(temperature=0.0, max_new_tokens=8)},
    ):
        assert model.generate(memory=memory, question="Why?", **kwargs) == greedy


def test_the_decoders_own_stop_strings_end_an_answer(zoo):
    model = zoo.compressor("gpt2", "llama").eval()
    memory = model.compress(TEXTS[0])
    whole = model.generate(memory=memory, question="Why?", max_new_tokens=8)
    stop = whole[len(whole) // 2]
    expected = model.generate(memory=memory, question="Why?", max_new_tokens=8, stop_strings=[stop])
    assert len(expected) < len(whole)
    model.decoder.generation_config.stop_strings = [stop]
    assert model.generate(memory=memory, question="Why?", max_new_tokens=8) == expected
    for nothing in (None, [], ""):
        answer = model.generate(
            memory=memory, question="Why?", max_new_tokens=8, stop_strings=nothing
        )
        assert answer == whole


def test_return_dict_in_a_generation_config(model, memory):
    config = GenerationConfig(max_new_tokens=3, return_dict_in_generate=True)
    argument = model.generate(
        memory=memory, question="Why?", max_new_tokens=3, return_dict_in_generate=True
    )
    configured = model.generate(memory=memory, question="Why?", generation_config=config)
    assert type(configured) is type(argument)
    assert torch.equal(configured.sequences, argument.sequences)
    with pytest.raises(ValueError, match="return_dict_in_generate"):
        model.generate(
            memory=memory, question=["Why?", "Who?"], batch_size=1, generation_config=config
        )


@pytest.mark.parametrize(
    "setting",
    [
        {"penalty_alpha": 0.5, "top_k": 4},
        {"force_words_ids": [[5]]},
        {"dola_layers": "low"},
        {"do_sample": True, "typical_p": 0.0},
    ],
)
def test_what_transformers_would_refuse_later_is_refused_before_encoding(
    model, monkeypatch, setting
):
    monkeypatch.setattr(model, "encode", lambda *args, **kwargs: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=next(iter(setting.keys() - {"do_sample", "top_k"}))):
        model.generate(context=TEXTS[0], question="Why?", **setting)
