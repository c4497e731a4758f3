"""A small LoRA on the decoder, which acts only while a memory is read."""

import pytest
import torch
from safetensors import safe_open
from tiny_models import QUESTIONS, TEXTS

from memslots import MemslotsModel
from memslots.evaluation.answering import answer_from_text
from memslots.evaluation.likelihood import target_losses

GREEDY = {"max_new_tokens": 6, "do_sample": False}


def with_lora(zoo, decoder: str = "llama", **settings) -> MemslotsModel:
    if decoder == "gpt2":
        settings = {"target_modules": ["c_attn"], **settings}
    model = zoo.compressor("llama", decoder, decoder_lora={"r": 4, **settings}).eval()
    torch.manual_seed(1)
    for pair in model.decoder_lora.pairs.values():
        torch.nn.init.normal_(pair.up.weight, std=0.5)
    return model


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma4"])
def model(zoo, request) -> MemslotsModel:
    return with_lora(zoo, request.param)


def test_a_new_one_changes_nothing(zoo):
    fresh = zoo.compressor("llama", decoder_lora={}).eval()
    assert len(fresh.decoder_lora.pairs) == 4  # q and v of two layers
    memory = fresh.compress(TEXTS)
    before = fresh.generate(memory=memory, question=QUESTIONS, **GREEDY)
    fresh.decoder_lora = None
    assert fresh.generate(memory=memory, question=QUESTIONS, **GREEDY) == before


def test_it_acts_while_a_memory_is_read_and_at_no_other_time(model):
    weights = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    ids = torch.tensor([model.processor.decoder_text.encode(TEXTS[1])])
    with torch.no_grad():
        before = model.decoder(input_ids=ids).logits
    text = answer_from_text(model, TEXTS, QUESTIONS, 6)
    read = model.generate(context=TEXTS, question=QUESTIONS, **GREEDY)
    memory = model.compress(TEXTS)
    prompts = [model.processor.prompt(question=question) for question in QUESTIONS]
    targets = [[5, 6, 7]] * 3
    losses = target_losses(model, prompts, targets, memory)
    plain_losses = target_losses(model, prompts, targets)
    scale, model.decoder_lora.scale = model.decoder_lora.scale, 0.0
    assert model.generate(context=TEXTS, question=QUESTIONS, **GREEDY) != read
    assert answer_from_text(model, TEXTS, QUESTIONS, 6) == text
    assert target_losses(model, prompts, targets) == plain_losses
    assert target_losses(model, prompts, targets, memory) != losses
    model.decoder_lora.scale = scale
    with torch.no_grad():
        assert torch.equal(model.decoder(input_ids=ids).logits, before)
    after = model.decoder.state_dict()
    assert list(after) == list(weights)
    for name, value in weights.items():
        assert torch.equal(value, after[name]), name


def test_it_is_what_adding_to_the_weights_would_give(zoo):
    model = with_lora(zoo)
    read = model.generate(context=TEXTS, question=QUESTIONS, **GREEDY)
    lora, model.decoder_lora = model.decoder_lora, None
    for name, module in model.decoder.named_modules():
        pair = lora.pairs[name.replace(".", "-")] if name.endswith(("q_proj", "v_proj")) else None
        if pair is not None:
            module.weight.data += lora.scale * pair.up.weight.data @ pair.down.weight.data
    assert model.generate(context=TEXTS, question=QUESTIONS, **GREEDY) == read


def test_batched_equals_single_and_saved_equals_loaded(model, tmp_path):
    batch = model.generate(context=TEXTS, question=QUESTIONS, **GREEDY)
    pairs = zip(TEXTS, QUESTIONS, strict=True)
    assert batch == [model.generate(context=t, question=q, **GREEDY) for t, q in pairs]
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        kinds = {key.split(".")[0] for key in file.keys()}  # noqa: SIM118, it is not a mapping
    assert kinds == {"encoder", "memory_tokens", "converter", "markers", "decoder_lora"}
    loaded = MemslotsModel.from_pretrained(tmp_path)
    assert loaded.generate(context=TEXTS, question=QUESTIONS, **GREEDY) == batch
    bare = MemslotsModel.from_pretrained(tmp_path, load_decoder=False)
    bare.attach_decoder(model.decoder)
    assert bare.generate(context=TEXTS, question=QUESTIONS, **GREEDY) == batch


def test_an_error_while_reading_leaves_the_decoder_plain(model):
    def broken(*args, **kwargs):
        raise RuntimeError("stopped")

    hook = model.decoder.get_output_embeddings().register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="stopped"):
        model.generate(context=TEXTS[0], question="Why?", **GREEDY)
    hook.remove()
    assert not any(module._forward_hooks for module in model.decoder.modules())
    with model.reading(), model.reading():
        assert any(module._forward_hooks for module in model.decoder.modules())
    assert not any(module._forward_hooks for module in model.decoder.modules())


def test_gradients_reach_it_and_not_the_decoder(model):
    model.train()
    model(**model.processor(TEXTS, QUESTIONS, ["a", "b", "c"])).loss.backward()
    for name, parameter in model.decoder_lora.named_parameters():
        assert parameter.grad is not None, name
    assert all(parameter.grad is None for parameter in model.decoder.parameters())
    model.zero_grad()
    model.eval()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["qkv"]}, r"no linear layers named \['qkv'\]; it has .*'q_proj'"),
        ({"rank": 4}, r"decoder_lora has unknown keys \['rank'\]; allowed are"),
    ],
)
def test_what_cannot_be_adapted(zoo, settings, message):
    with pytest.raises(ValueError, match=message):
        zoo.compressor(decoder_lora=settings)
    with pytest.raises(ValueError, match=r"no linear layers named \['q_proj', 'v_proj'\]"):
        zoo.compressor("gpt2", "gpt2", decoder_lora={})


def test_another_decoder_is_refused(zoo):
    model = with_lora(zoo)
    model.decoder = zoo.compressor("llama", "gpt2").decoder
    with pytest.raises(ValueError, match="attach the decoder that it was trained on"):
        model.generate(context=TEXTS[0], question="Why?")
