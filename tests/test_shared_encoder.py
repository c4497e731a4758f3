"""The decoder's own first layers as the encoder, groups of tokens as slots, and their start."""

import pytest
import torch
from tiny_models import RATES, SEGMENT, TEXTS, tell_apart
from transformers import AutoModelForCausalLM

from memslots import MemslotsModel
from memslots.making import merge_encoder, new_compressor
from memslots.modeling.encoders_memslots import LORA_MARK, GroupPool
from memslots.modeling.layout_memslots import Prompt, Row
from memslots.start_weights import draw_group_pool

LORA = {"r": 2, "alpha": 4, "dropout": 0.0}
TARGETS = {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"], "phi3": ["qkv_proj"]}
DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox", "phi3"]


def shared(zoo, family="llama", **config):
    lora = {**LORA, "target_modules": TARGETS.get(family, ["q_proj", "v_proj", "down_proj"])}
    return new_compressor(
        "decoder",
        zoo.folder(family, "decoder"),
        **{
            "encoder_layers": 1,
            "encoder_lora": lora,
            "pooling": "groups",
            "converter_type": "residual",
            "compression_rates": RATES,
            "segment_length": SEGMENT,
            **config,
        },
    )


def storages(module):
    return {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}


@pytest.mark.parametrize("family", DECODERS)
def test_the_encoder_is_the_decoders_own_layers_without_a_copy(zoo, family, tmp_path):
    model = tell_apart(shared(zoo, family))
    own = [p for n, p in model.encoder.named_parameters() if LORA_MARK not in n]
    assert own
    assert {p.untyped_storage().data_ptr() for p in own} <= storages(model.decoder)

    plain = AutoModelForCausalLM.from_pretrained(
        zoo.folder(family, "decoder"), dtype=torch.float32
    ).eval()
    ids = torch.arange(5, 25).unsqueeze(0)
    torch.testing.assert_close(model.decoder(ids).logits, plain(ids).logits)

    memory = model.compress(TEXTS, rate=2)
    model.save_pretrained(tmp_path)
    loaded = MemslotsModel.from_pretrained(tmp_path)
    assert {
        p.untyped_storage().data_ptr()
        for n, p in loaded.encoder.named_parameters()
        if LORA_MARK not in n
    } <= storages(loaded.decoder)
    assert loaded.fingerprint == model.fingerprint
    torch.testing.assert_close(loaded.compress(TEXTS, rate=2).slots, memory.slots)


def test_another_precision_has_the_same_fingerprint(zoo, tmp_path):
    """Whatever it is loaded in, and after the mode was changed: no weight has."""
    model = tell_apart(shared(zoo)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    stated = model.fingerprint
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        loaded = MemslotsModel.from_pretrained(tmp_path, dtype=dtype)
        assert loaded.fingerprint == stated
        assert loaded.train().eval().fingerprint == stated
    loaded = MemslotsModel.from_pretrained(tmp_path)
    loaded.compress(TEXTS[0], rate=2).save(tmp_path / "memory.safetensors")
    model.eval().load_memory(tmp_path / "memory.safetensors")
    with torch.no_grad():
        loaded.group_pool.bias += 1
    assert loaded.fingerprint != stated


def test_a_checkpoint_holds_no_weight_of_the_decoder(zoo, tmp_path):
    from safetensors import safe_open

    shared(zoo).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert names
    assert all(
        LORA_MARK in n or n.startswith(("group_pool.", "converter.", "markers")) for n in names
    )


def test_attaching_another_copy_of_the_decoder_serves_it(zoo, tmp_path):
    model = tell_apart(shared(zoo))
    memory = model.compress(TEXTS, rate=4)
    model.save_pretrained(tmp_path)
    light = MemslotsModel.from_pretrained(tmp_path, load_decoder=False)
    assert not light.has_decoder
    torch.testing.assert_close(light.compress(TEXTS, rate=4).slots, memory.slots)
    llm = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"), dtype=torch.float32)
    light.attach_decoder(llm)
    assert storages(light.decoder) == storages(llm)
    assert light.encoder.get_input_embeddings().weight is llm.get_input_embeddings().weight
    torch.testing.assert_close(light.compress(TEXTS, rate=4).slots, memory.slots)
    assert light.generate(memory=memory, question="Why?") == model.generate(
        memory=memory, question="Why?"
    )


def test_a_bundled_decoder_lends_its_layers_without_being_kept(zoo, tmp_path):
    model = tell_apart(shared(zoo, bundle_decoder=True))
    model.save_pretrained(tmp_path)
    light = MemslotsModel.from_pretrained(tmp_path, load_decoder=False)
    assert not light.has_decoder
    torch.testing.assert_close(
        light.compress(TEXTS, rate=4).slots, model.compress(TEXTS, rate=4).slots
    )


def test_merging_leaves_the_decoder_as_it_is_and_saves_what_it_has(zoo, tmp_path):
    model = tell_apart(shared(zoo))
    ids = torch.arange(5, 25).unsqueeze(0)
    before, slots = model.decoder(ids).logits, model.compress(TEXTS, rate=2).slots
    merge_encoder(model)
    assert torch.equal(model.decoder(ids).logits, before)
    torch.testing.assert_close(model.compress(TEXTS, rate=2).slots, slots)
    model.save_pretrained(tmp_path)
    loaded = MemslotsModel.from_pretrained(tmp_path)
    assert loaded.config.encoder_config.num_hidden_layers == 1
    torch.testing.assert_close(loaded.compress(TEXTS, rate=2).slots, slots)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_truncated_encoder_saves_what_it_is(zoo, tmp_path, lora):
    extra = {} if lora is None else {"encoder_lora": {**LORA, "target_modules": ["q_proj"]}}
    model = new_compressor(
        zoo.folder("llama", "decoder"),
        zoo.folder("llama", "decoder"),
        encoder_kwargs={"num_hidden_layers": 1},
        compression_rates=RATES,
        segment_length=SEGMENT,
        **extra,
    )
    assert len(model.encoder.layers) == 1
    model.save_pretrained(tmp_path)
    loaded = MemslotsModel.from_pretrained(tmp_path)
    assert len(loaded.encoder.layers) == loaded.config.encoder_config.num_hidden_layers == 1
    torch.testing.assert_close(
        loaded.compress(TEXTS, rate=2).slots, model.compress(TEXTS, rate=2).slots
    )


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_that_the_decoder_lacks_are_refused(zoo, layers):
    with pytest.raises(ValueError, match=f"encoder_layers={layers}.* has 2 layers; use 1 to 2"):
        shared(zoo, encoder_layers=layers)


def test_encoder_layers_of_another_encoder_are_refused(zoo):
    with pytest.raises(ValueError, match="give encoder='decoder', or for that encoder"):
        new_compressor(
            zoo.folder("qwen2", "encoder"), zoo.folder("llama", "decoder"), encoder_layers=1
        )


def test_names_of_layers_that_the_decoder_lacks_are_refused(zoo):
    with pytest.raises(ValueError, match="c_attn"):
        shared(zoo, encoder_lora={**LORA, "target_modules": ["c_attn"]})


def test_an_untrained_slot_is_a_sum_of_embeddings_that_the_decoder_reads(zoo):
    model = shared(zoo)
    embed = model.decoder.get_input_embeddings()
    ids = model.processor.segment(TEXTS[0])[0].ids
    slots = model.converter(model.compress(TEXTS[0], rate=2).slots)
    tokens = embed(torch.tensor(ids))
    torch.testing.assert_close(slots[0], tokens[1] + tokens[0] / 1.9)
    words = model.processor.decoder_text.encode("\n\n")
    torch.testing.assert_close(model.markers[0], embed(torch.tensor(words)).mean(dim=0))


def test_groups_are_pooled_alike_whatever_shares_their_batch(zoo):
    model = tell_apart(shared(zoo))
    alone = [model.compress(text, rate=4).slots for text in TEXTS]
    torch.testing.assert_close(model.compress(TEXTS, rate=4).slots, torch.cat(alone))


def test_a_groups_places_count_from_its_end_and_coarser_ones_share_them():
    torch.manual_seed(0)
    pool = GroupPool(6, 8, places=4)
    draw_group_pool(pool)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    embeds, states = torch.randn(5, 6), torch.randn(5, 6)
    groups = torch.tensor([0, 0, 1, 1, 1])
    slots = pool(embeds, states, groups, 2)
    torch.testing.assert_close(slots[:1], pool(embeds[:2], states[:2], groups[:2], 1, places=2))
    expected = sum(pool.skip[j] @ embeds[4 - j] for j in range(3))
    inner = sum(pool.up[j] @ pool.norm(states[4 - j]) for j in range(3)) + pool.bias
    torch.testing.assert_close(slots[1], expected + pool.down(torch.nn.functional.gelu(inner)))


def test_gradients_reach_the_compressor_and_nothing_of_the_decoder(zoo):
    model = tell_apart(shared(zoo)).train()
    spans = model.processor.segment(TEXTS[0])
    target = model.processor.decoder_text.encode(TEXTS[0])
    rows = [Row([0], Prompt(model.processor.bos_ids), target)]
    inputs = model.processor.collate_segments(spans[:1])
    laid_out = model.processor.lay_out(rows, [-(-len(spans[0].ids) // 2)])
    model(**inputs, segment_rates=torch.tensor([2]), **laid_out).loss.backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert {n.split(".")[0] for n in trained} == {"encoder", "group_pool", "converter", "markers"}
    silent = [n for n in trained if model.get_parameter(n).grad is None]
    assert not silent, silent


def test_a_decoder_in_a_subfolder_and_a_relative_path_are_found_again(zoo, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(zoo.folder("llama", "decoder"), tmp_path / "models" / "small")
    monkeypatch.chdir(tmp_path)
    model = new_compressor(
        "decoder",
        "models",
        decoder_kwargs={"subfolder": "small"},
        encoder_layers=1,
        encoder_lora={**LORA, "target_modules": ["q_proj"]},
        compression_rates=RATES,
        segment_length=SEGMENT,
    )
    model.save_pretrained("made")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = MemslotsModel.from_pretrained(tmp_path / "made")
    assert loaded.config.decoder_loading == {"subfolder": "small"}
    torch.testing.assert_close(
        loaded.compress(TEXTS, rate=2).slots, model.compress(TEXTS, rate=2).slots
    )


def test_an_adapter_folder_is_a_decoder(zoo, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"), dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    model = new_compressor(
        zoo.folder("qwen2", "encoder"),
        tmp_path / "adapter",
        compression_rates=RATES,
        segment_length=SEGMENT,
    )
    ids = torch.arange(5, 20).unsqueeze(0)
    torch.testing.assert_close(model.decoder(ids).logits, adapted(input_ids=ids).logits)
    model.save_pretrained(tmp_path / "made")
    loaded = MemslotsModel.from_pretrained(tmp_path / "made")
    torch.testing.assert_close(loaded.decoder(ids).logits, adapted(input_ids=ids).logits)
    with pytest.raises(TypeError, match="merge_and_unload"):
        model.attach_decoder(adapted)


@pytest.mark.parametrize("family", DECODERS)
def test_without_names_the_adapter_is_on_all_linear_layers(zoo, family):
    model = shared(zoo, family, encoder_lora=LORA)
    adapted = {n.rpartition(".lora_A")[0] for n, _ in model.encoder.named_parameters()} - {""}
    matrices = {
        n.removesuffix(".base_layer.weight")
        for n, p in model.encoder.named_parameters()
        if n.endswith(".weight") and p.dim() == 2 and "lora_" not in n and "emb" not in n
    } - {"wte.weight", "wpe.weight"}
    assert adapted == matrices
