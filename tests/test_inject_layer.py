"""Slots that enter the decoder at a middle layer."""

import pytest
import torch
from datasets import Dataset
from tiny_models import LONG, QUESTIONS, TEXTS
from torch import nn
from transformers import AutoModel

from memslots import MemslotsModel
from memslots.evaluation.answering import answer_from_text
from memslots.evaluation.likelihood import target_losses
from memslots.modeling.inject_memslots import decoder_layers
from memslots.modeling.layout_memslots import FIRST_SLOT
from memslots.serving.prompt_embeds import prompt_embeds
from memslots.trainer import CompressorConfig, CompressorTrainer

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3", "gemma4", "gpt_neox"])
def model(zoo, request) -> MemslotsModel:
    return zoo.compressor("llama", request.param, inject_layer=1).eval()


@pytest.fixture(scope="module")
def llama(zoo) -> MemslotsModel:
    return zoo.compressor("llama", inject_layer=1).eval()


def plain_logits(model: MemslotsModel, ids: list[int], memory: list[int], slots) -> torch.Tensor:
    """A Llama, layer by layer and without hooks, on one row without padding."""
    decoder = model.decoder.model
    marked = torch.tensor([min(i, FIRST_SLOT) for i in memory])
    vectors = torch.cat([model.markers, model.markers[:1]])  # a slot's place holds <MEM> at first
    states = decoder.embed_tokens(torch.tensor(ids))
    states = torch.where((marked > 0)[:, None], vectors[(marked - 1).clamp(min=0)], states)[None]
    length = len(ids)
    positions = torch.arange(length)[None]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    turned = decoder.rotary_emb(states, positions)
    converted = model.converter(slots)
    for i, layer in enumerate(decoder.layers):
        if i == model.config.inject_layer:
            states = states.clone()
            for place, index in enumerate(memory):
                if index >= FIRST_SLOT:
                    states[0, place] = converted[index - FIRST_SLOT]
        states = layer(
            states, attention_mask=mask, position_ids=positions, position_embeddings=turned
        )
    return model.decoder.lm_head(decoder.norm(states))[0]


@torch.no_grad()
def plain_answer(model: MemslotsModel, text: str, question: str) -> str:
    memory = model.compress(text)
    (row,) = model.memory_rows(memory, [(0, model.processor.prompt(question=question))])
    laid = model.processor.lay_out([row], [segment.slots for segment in memory.segments])
    ids, places = laid["input_ids"][0].tolist(), laid["memory_ids"][0].tolist()
    new: list[int] = []
    for _ in range(GREEDY["max_new_tokens"]):
        logits = plain_logits(model, ids + new, places + [0] * len(new), memory.slots)
        new.append(int(logits[-1].argmax()))
        if new[-1] == model.processor.tokenizer.eos_token_id:
            break
    return model.processor.decode(new).strip()


def test_it_is_the_plain_implementation(llama):
    """Generation with a cache, in batches of left-padded rows, and the forward that trains."""
    answers = llama.generate(context=TEXTS, question=QUESTIONS, **GREEDY)
    pairs = list(zip(TEXTS, QUESTIONS, strict=True))
    assert answers == [plain_answer(llama, *pair) for pair in pairs]
    memory = llama.compress(TEXTS[0])
    inputs = llama.processor(TEXTS[0], QUESTIONS[0], "maps")
    with torch.no_grad():
        outputs = llama(**inputs)
        ids, places = inputs["input_ids"][0].tolist(), inputs["memory_ids"][0].tolist()
        logits = plain_logits(llama, ids, places, memory.slots)[:-1]
    wanted = inputs["labels"][0][1:]
    loss = nn.functional.cross_entropy(logits, wanted)
    torch.testing.assert_close(outputs.loss, loss, rtol=1e-4, atol=1e-5)
    prompt = llama.processor.prompt(question=QUESTIONS[0])
    target = llama.processor.answer_ids("maps")
    (scored,) = target_losses(llama, [prompt], [target], memory)
    assert scored.nll / scored.tokens == pytest.approx(loss.item(), rel=1e-3)


def test_every_way_of_generating_agrees(model):
    batch = model.generate(context=TEXTS, question=QUESTIONS, **GREEDY)
    pairs = zip(TEXTS, QUESTIONS, strict=True)
    assert batch == [model.generate(context=t, question=q, **GREEDY) for t, q in pairs]
    memory = model.compress(TEXTS)
    prefix = memory.prefill(model)
    assert model.generate(memory=prefix, question=QUESTIONS, **GREEDY) == batch
    beams = {**GREEDY, "num_beams": 3}
    together = model.generate(memory=memory, question=QUESTIONS, **beams)
    assert model.generate(memory=prefix, question=QUESTIONS, **beams) == together
    alone = [
        model.generate(memory=m, question=q, **beams)
        for m, q in zip(memory, QUESTIONS, strict=True)
    ]
    assert together == alone
    if model.config.decoder_config.model_type != "gemma4_text":  # per-layer embeddings need a cache
        assert model.generate(memory=memory, question=QUESTIONS, use_cache=False, **GREEDY) == batch
    read = model.reconstruct(memory, **GREEDY)
    assert read == [model.reconstruct(one, **GREEDY) for one in memory]
    others = model.compress(list(reversed(TEXTS)))
    assert model.generate(memory=others, question=QUESTIONS[0], **GREEDY) != model.generate(
        memory=memory, question=QUESTIONS[0], **GREEDY
    )


def test_the_decoder_stays_as_it_was(model):
    weights = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    ids = torch.tensor([model.processor.decoder_text.encode(TEXTS[1])])
    with torch.no_grad():
        before = model.decoder(input_ids=ids).logits
    text = answer_from_text(model, TEXTS, QUESTIONS, 6)
    model.generate(context=TEXTS, question=QUESTIONS, **GREEDY)
    model(**model.processor(TEXTS, QUESTIONS, ["a", "b", "c"])).loss.backward()
    assert any(weight.grad is not None for weight in model.converter.parameters())
    assert all(weight.grad is None for weight in model.decoder.parameters())
    model.zero_grad()
    with torch.no_grad():
        assert torch.equal(model.decoder(input_ids=ids).logits, before)
    assert answer_from_text(model, TEXTS, QUESTIONS, 6) == text
    for name, value in model.decoder.state_dict().items():
        assert torch.equal(value, weights[name]), name
    hooks = [module._forward_pre_hooks for module in model.decoder.modules()]
    assert not any(hooks)


def test_layer_0_is_todays_way_bit_for_bit(zoo):
    plain, first = (zoo.compressor("llama", inject_layer=layer).eval() for layer in (None, 0))
    later = zoo.compressor("llama", inject_layer=1).eval()
    inputs = plain.processor(TEXTS, QUESTIONS, ["a", "b", "c"])
    with torch.no_grad():
        losses = [each(**inputs).loss for each in (plain, first, later)]
    assert torch.equal(losses[0], losses[1])
    assert losses[0] != losses[2]
    asked = {"context": TEXTS, "question": QUESTIONS, **GREEDY}
    assert plain.generate(**asked) == first.generate(**asked)


def test_saved_equals_loaded_and_remote_code(zoo, tmp_path):
    model = zoo.compressor("llama", inject_layer=1, bundle_decoder=True).eval()
    asked = {"context": TEXTS, "question": QUESTIONS, **GREEDY}
    answers = model.generate(**asked)
    model.save_pretrained(tmp_path)
    assert MemslotsModel.from_pretrained(tmp_path).generate(**asked) == answers
    remote = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(remote) is not MemslotsModel
    assert remote.generate(**asked) == answers


def test_accumulation_checkpointing_and_lora_go_with_it(zoo, tmp_path):
    """The recomputation of a checkpointed layer sees the states that were injected."""
    texts = Dataset.from_list([{"text": text} for text in [*TEXTS, LONG]])
    logged = []
    for checkpointing in (False, True):
        model = zoo.compressor("llama", inject_layer=1, decoder_lora={"r": 2, "dropout": 0.0},
                               compression_rates=[4])  # fmt: skip
        before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
        args = CompressorConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, logging_steps=1,
            learning_rate=0.01, report_to="none", use_cpu=True, save_strategy="no",
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        trainer = CompressorTrainer(model, args, texts)
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        logged.append([entry[name] for entry in history for name in ("loss", "grad_norm")])
        for name, value in model.decoder.state_dict().items():
            assert torch.equal(value, before[name]), name
    assert logged[0] == pytest.approx(logged[1], rel=1e-3)


def test_new_slots_have_the_scale_of_the_states_they_join(llama):
    seen = []
    hook = decoder_layers(llama.decoder)[1].register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.no_grad():
        llama.decoder(input_ids=torch.arange(5, 60)[None])
    hook.remove()
    nn.init.zeros_(llama.converter.down.bias)
    made = llama.converter(torch.randn(2000, llama.config.slot_size)).std()
    assert 0.5 < made / seen[0].std(dim=-1).median() < 2


def test_what_cannot_be_injected(zoo, llama):
    for layer in (2, -1):
        with pytest.raises(ValueError, match=f"layers, 0 to 1, got {layer}"):
            zoo.compressor("llama", inject_layer=layer)
    with pytest.raises(ValueError, match=r"enter its decoder at layer 1 \(inject_layer\)"):
        prompt_embeds(llama, llama.compress(TEXTS[0]), question="Why?")
    memory = llama.compress(TEXTS[0])
    (row,) = llama.memory_rows(memory, [(0, llama.processor.prompt(question="Why?"))])
    inputs = llama.generation_inputs([row], memory)
    injected, embeds = inputs["injected"], inputs["inputs_embeds"]
    with llama.reading(injected), pytest.raises(ValueError, match="leave out prefill_chunk_size"):
        llama.decoder(inputs_embeds=embeds[:, :4])
    decoder = zoo.compressor("llama").decoder
    decoder.model.layers = nn.ModuleDict(
        {str(i): one for i, one in enumerate(decoder.model.layers)}
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM has 0 such lists"):
        llama.attach_decoder(decoder)
