"""A prefix answers as a fresh run does, reads the memory once, and stays as it was."""

import pytest
import torch
from tiny_models import DECODERS, QUESTIONS, TEXTS
from transformers import AutoModelForCausalLM, MambaConfig, Qwen3NextConfig

from memslots import prefill
from memslots.prefix import check_keeps_states

NEW = 10


def kept_states(prefix):
    return [t.clone() for states in prefix.states for pair in states.values() for t in pair]


@pytest.mark.parametrize("decoder", DECODERS)
def test_answers_are_those_of_a_fresh_run(zoo, decoder):
    """Ragged memories and questions; mistral's, gemma3's and gemma4's windows are 32 positions."""
    model = zoo.shared("gpt2", decoder)
    memory = model.compress(TEXTS)
    prefix = prefill(model, memory, batch_size=2)
    before = kept_states(prefix)
    assert len(set(prefix.positions)) == len(TEXTS)
    assert max(prefix.positions) > 3 * 32
    expected = model.generate(memory=memory, question=QUESTIONS, max_new_tokens=NEW)
    for _ in range(2):
        assert model.generate(memory=prefix, question=QUESTIONS, max_new_tokens=NEW) == expected
    one = memory[1]
    alone = prefill(model, one)
    expected = model.generate(memory=one, question=QUESTIONS, max_new_tokens=NEW)
    for size in (2, 32):
        found = model.generate(
            memory=alone, question=QUESTIONS, max_new_tokens=NEW, batch_size=size
        )
        assert found == expected
    single = model.generate(memory=alone, question=QUESTIONS[0], max_new_tokens=NEW)
    assert single == expected[0]
    assert all(torch.equal(*pair) for pair in zip(before, kept_states(prefix), strict=True))


@pytest.mark.parametrize("decoder", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "temperature": 1.5, "top_k": 20},
        {"do_sample": True, "temperature": 1.5, "num_return_sequences": 3},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    ],
)
@pytest.mark.filterwarnings("ignore:Passing `")
def test_beams_and_draws_are_those_of_a_fresh_run(zoo, decoder, given):
    model = zoo.shared("gpt2", decoder)
    memory = model.compress(TEXTS)
    prefix = prefill(model, memory)
    found = []
    for read in (memory, prefix, prefix):
        torch.manual_seed(7)
        found.append(model.generate(memory=read, question=QUESTIONS, max_new_tokens=NEW, **given))
    assert found[0] == found[1] == found[2]


def test_tokens_scores_and_streams_are_those_of_a_fresh_run(model):
    memory = model.compress(TEXTS[1])
    prefix = prefill(model, memory)
    fresh, kept = (
        model.generate(
            memory=read,
            question=QUESTIONS,
            max_new_tokens=NEW,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for read in (memory, prefix)
    )
    assert torch.equal(fresh.sequences, kept.sequences)
    torch.testing.assert_close(torch.stack(fresh.scores), torch.stack(kept.scores))


def test_questions_read_the_memory_no_second_time(model):
    memory = model.compress(TEXTS[1])
    prefix = prefill(model, memory)
    read = []
    hook = model.decoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[:2]),
        with_kwargs=True,
    )
    try:
        model.generate(memory=prefix, question=QUESTIONS * 4, max_new_tokens=1, batch_size=5)
    finally:
        hook.remove()
    asked = [len(model.processor.prompt(question=q).after) for q in QUESTIONS]
    assert read == [(5, max(asked)), (5, max(asked)), (2, max(asked[1:]))]


def test_a_lora_on_the_decoder_reads_the_prefix_too(zoo):
    model = zoo.compressor(decoder_lora={"r": 2})
    memory = model.compress(TEXTS)
    plain = prefill(model, memory)
    with torch.no_grad():
        for pair in model.decoder_lora.pairs.values():
            torch.nn.init.normal_(pair.up.weight, std=0.5)
    with pytest.raises(ValueError, match="have changed since"):
        model.generate(memory=plain, question=QUESTIONS, max_new_tokens=NEW)
    prefix = prefill(model, memory)
    assert not torch.equal(kept_states(prefix)[-1], kept_states(plain)[-1])
    expected = model.generate(memory=memory, question=QUESTIONS, max_new_tokens=NEW)
    assert model.generate(memory=prefix, question=QUESTIONS, max_new_tokens=NEW) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"markers": "memory", "literals": "numbers"},
        {"markers": "none"},
        {"pooling": "mean"},
        {"memory_positions": "spread"},
    ],
)
def test_every_layout_has_its_prefix(zoo, settings):
    model = zoo.compressor("llama", "mistral", **settings)
    memory = model.compress(["She owns 27 maps, 1,934 books and 3 cats.", *TEXTS[1:]])
    for read in (memory, memory.at_rate(4)):
        prefix = prefill(model, read)
        bos = len(model.processor.bos_ids)
        assert prefix.positions == [bos + n for n in model.memory_positions(read)]
        expected = model.generate(memory=read, question=QUESTIONS, max_new_tokens=NEW)
        assert model.generate(memory=prefix, question=QUESTIONS, max_new_tokens=NEW) == expected


def test_chats_share_what_stands_before_the_memory(zoo):
    model = zoo.compressor(prompt_format="chat")
    memory = model.compress(TEXTS[1])
    prefix = prefill(model, memory)
    bos = len(model.processor.bos_ids)
    assert prefix.positions[0] > bos + model.memory_positions(memory)[0]  # the template's head
    expected = model.generate(memory=memory, question=QUESTIONS, max_new_tokens=NEW)
    assert model.generate(memory=prefix, question=QUESTIONS, max_new_tokens=NEW) == expected

    def chat(question):
        return [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "memory"}, {"type": "text", "text": question}]},
        ]

    chats = [chat(question) for question in QUESTIONS]
    with pytest.raises(ValueError, match="before the memory"):
        model.generate(memory=prefix, messages=chats)
    expected = model.generate(memory=memory, messages=chats, max_new_tokens=NEW)
    for given in (chats[0], chats[0][:1]):
        prefix = prefill(model, memory, messages=given)
        assert model.generate(memory=prefix, messages=chats, max_new_tokens=NEW) == expected
    with pytest.raises(ValueError, match="before the memory"):
        model.generate(memory=prefix, question=QUESTIONS[0])


def test_a_prefix_of_other_weights_or_another_place_is_refused(zoo):
    model = zoo.compressor()
    memory = model.compress(TEXTS[0])
    prefix = prefill(model, memory)

    def refused(match, **given):
        with pytest.raises(ValueError, match=match):
            model.generate(**{"memory": prefix, "question": "Why?", "max_new_tokens": 2, **given})

    refused("read at rate 2", rate=4)
    refused("cache_implementation", cache_implementation="static")
    with pytest.raises(TypeError, match="got Prefix"):
        model.reconstruct(prefix)
    with pytest.raises(ValueError, match="written by compressor"):
        prefill(zoo.compressor(seed=5), memory)
    decoder = model.decoder
    model.attach_decoder(AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder")))
    refused("another decoder")
    model.attach_decoder(decoder)
    model.generate(memory=prefix, question="Why?", max_new_tokens=2)
    decoder.double()
    refused("float32, which is now on cpu in torch.float64")
    decoder.float()
    with torch.no_grad():
        model.markers.data += 1  # as fused optimizers do it: uncounted
    refused("have changed since")
    prefix = prefill(model, memory)
    with torch.no_grad():
        decoder.get_input_embeddings().weight.mul_(1.1)
    refused("have changed since")


def test_decoders_that_keep_more_than_keys_and_values_are_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40}
    mamba = MambaConfig(**sizes, state_size=4)
    recurrent = Qwen3NextConfig(
        **sizes,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )
    for config in (mamba, recurrent):
        with pytest.raises(ValueError, match="no prefix can be shared"):
            check_keeps_states(AutoModelForCausalLM.from_config(config))


def test_a_decoder_whose_own_cache_is_static_is_told(zoo):
    model = zoo.compressor("gpt2", "llama").eval()
    memory = model.compress(TEXTS[0])
    prefix = prefill(model, memory)
    model.decoder.generation_config.cache_implementation = "static"
    with pytest.raises(ValueError, match=r"cache_implementation='static'.*generation_config"):
        model.generate(memory=prefix, question=QUESTIONS[0], max_new_tokens=2)
