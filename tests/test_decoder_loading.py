"""Decoders that are quantised on disk or on loading, and checkpoints cast to another precision."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from test_decoder_precision import QUANTIZED, kinds, wide_decoder  # noqa: F401 a fixture
from tiny_models import tell_apart, words
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    OPTConfig,
    T5Config,
)

from memslots import MemslotsModel
from memslots.hub_cards.push import _loaded
from memslots.making import new_compressor, usual_settings
from memslots.serving.decoder_embeddings import attach_decoder_embeddings
from memslots.trainer.adapt import adapt_to_decoder

SETTINGS = {"compression_rates": [4], "segment_length": 16}
TEXT = words(20)


@pytest.fixture(params=QUANTIZED)
def quantized(request, wide_decoder, tmp_path):  # noqa: F811
    """The name of a layer, and a decoder's folder that transformers saved with such layers."""
    pytest.importorskip("bitsandbytes")
    AutoModelForCausalLM.from_pretrained(
        wide_decoder, quantization_config=QUANTIZED[request.param]
    ).save_pretrained(tmp_path / "quantized")
    AutoTokenizer.from_pretrained(wide_decoder).save_pretrained(tmp_path / "quantized")
    return request.param, tmp_path / "quantized"


def test_a_decoder_that_was_saved_quantized_is_loaded_again(zoo, quantized, tmp_path):
    layer, decoder = quantized
    model = new_compressor(zoo.folder("qwen3", "encoder"), decoder, **SETTINGS)
    assert layer in kinds(model.decoder)
    answer = model.generate(context=TEXT, question="who?", max_new_tokens=4)
    model.save_pretrained(tmp_path / "saved")
    # What a checkpoint says that was made before its decoder's configuration was kept plain.
    older = type(model.config).from_pretrained(tmp_path / "saved")
    older.decoder_config.quantization_config = model.decoder.config.quantization_config
    older.save_pretrained(tmp_path / "saved")
    loaded = MemslotsModel.from_pretrained(tmp_path / "saved")
    assert layer in kinds(loaded.decoder)
    assert layer not in kinds(loaded.encoder)
    assert torch.equal(loaded.compress(TEXT).slots, model.compress(TEXT).slots)
    assert loaded.generate(context=TEXT, question="who?", max_new_tokens=4) == answer


def test_quantization_on_loading_is_the_decoders(zoo, wide_decoder, tmp_path):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    model = new_compressor(wide_decoder, wide_decoder, **SETTINGS)
    model.save_pretrained(tmp_path / "saved")
    for layer, how in QUANTIZED.items():
        loaded = MemslotsModel.from_pretrained(tmp_path / "saved", quantization_config=how)
        assert layer in kinds(loaded.decoder)
        assert layer not in kinds(loaded.encoder)
        assert torch.equal(loaded.compress(TEXT).slots, model.compress(TEXT).slots)
        assert isinstance(loaded.generate(context=TEXT, question="who?", max_new_tokens=2), str)


def test_a_bundled_decoder_is_not_quantized_on_loading(zoo, wide_decoder, tmp_path):  # noqa: F811
    model = new_compressor(
        zoo.folder("qwen3", "encoder"), wide_decoder, bundle_decoder=True, **SETTINGS
    )
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"quantization_config.*bundled"):
        MemslotsModel.from_pretrained(
            tmp_path / "saved", quantization_config=QUANTIZED["Linear4bit"]
        )


def test_a_quantized_decoder_is_not_bundled(zoo, quantized, tmp_path):
    _, decoder = quantized
    model = new_compressor(zoo.folder("qwen3", "encoder"), decoder, **SETTINGS)
    model.config.bundle_decoder = True
    with pytest.raises(ValueError, match=r"quantized decoder.*bundle_decoder = False"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_models_that_cannot_take_a_part_are_named_at_once(zoo, tmp_path):
    """The errors of transformers came from within: "exactly one of input_ids or inputs_embeds"."""
    encoder, decoder = zoo.folder("llama", "encoder"), zoo.folder("llama", "decoder")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "t5")
    T5Config(d_model=24, num_layers=2, num_heads=4).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"t5' is a t5 model, an encoder and a decoder in one"):
        new_compressor(tmp_path / "t5", decoder, **SETTINGS)
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.save_pretrained(tmp_path / "opt")
    shape = {"hidden_size": 32, "num_attention_heads": 4, "word_embed_proj_dim": 16, "ffn_dim": 32}
    config = OPTConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "opt")
    with pytest.raises(ValueError, match="token embeddings 16 wide and states 32 wide"):
        new_compressor(encoder, tmp_path / "opt", **SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_model_takes_its_memory_until_a_weight_changes(zoo, tmp_path, dtype):
    made = new_compressor(
        zoo.folder("qwen3", "encoder"), zoo.folder("llama", "decoder"), **SETTINGS
    )
    made.save_pretrained(tmp_path / "saved")
    model = MemslotsModel.from_pretrained(tmp_path / "saved", dtype=dtype)
    memory = model.compress(TEXT)
    for _ in range(2):
        model.train().eval()
        model.check_memory(memory)
    model.check_memory(made.compress(TEXT))
    weight = next(model.encoder.parameters())
    model.train()
    weight.data += 1  # as a fused optimizer: no version counts it
    model.eval()
    with pytest.raises(ValueError, match="this memory was written by compressor"):
        model.check_memory(memory)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_cast_model_takes_its_memory_until_a_weight_changes(zoo, copied):
    model = MemslotsModel.from_pretrained(zoo.saved(), dtype=torch.bfloat16)
    memory = model.compress(TEXT)
    copies = copied(model), copied(copied(model))
    for one in (model, *copies):
        one.check_memory(memory)
    with torch.no_grad():
        copies[0].memory_tokens += 1
    with pytest.raises(ValueError, match="this memory was written by compressor"):
        copies[0].check_memory(memory)


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_saved_cast_states_the_fingerprint_of_its_weights(zoo, tmp_path, loaded_before):
    model = new_compressor(
        zoo.folder("qwen3", "encoder"), zoo.folder("llama", "decoder"), **SETTINGS
    )
    if loaded_before:
        model.save_pretrained(tmp_path / "whole")
        model = MemslotsModel.from_pretrained(tmp_path / "whole")
    whole = model.fingerprint
    model.to(torch.float16).save_pretrained(tmp_path / "half")
    loaded = MemslotsModel.from_pretrained(tmp_path / "half", dtype=torch.float16)
    assert loaded.config.fingerprint == loaded.fingerprint_of(loaded.state_dict()) != whole
    assert loaded.fingerprint == model.fingerprint
    loaded.check_memory(model.compress(TEXT))


def test_a_model_that_loading_cast_saves_the_fingerprint_of_its_weights(zoo, tmp_path):
    made = new_compressor(
        zoo.folder("qwen3", "encoder"), zoo.folder("llama", "decoder"), **SETTINGS
    )
    made.save_pretrained(tmp_path / "whole")
    MemslotsModel.from_pretrained(tmp_path / "whole", dtype=torch.float16).save_pretrained(
        tmp_path / "half"
    )
    loaded = MemslotsModel.from_pretrained(tmp_path / "half", dtype=torch.float16)
    assert loaded.config.fingerprint == loaded.fingerprint_of(loaded.state_dict())


def test_a_shared_encoder_that_is_quantized_has_another_fingerprint(zoo, wide_decoder, tmp_path):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    model = new_compressor(
        "decoder", wide_decoder, encoder_layers=1, encoder_lora={"r": 2}, **SETTINGS
    )
    model.save_pretrained(tmp_path / "saved")
    how = QUANTIZED["Linear4bit"]
    loaded = MemslotsModel.from_pretrained(tmp_path / "saved", quantization_config=how)
    with pytest.raises(ValueError, match="this memory was written by compressor"):
        loaded.check_memory(model.compress(TEXT))
    loaded.check_memory(loaded.compress(TEXT))
    loaded.save_pretrained(tmp_path / "quantized")
    again = MemslotsModel.from_pretrained(tmp_path / "quantized", quantization_config=how)
    again.check_memory(loaded.compress(TEXT))


@pytest.mark.parametrize("config", [{}, {"encoder_lora": {"r": 2}}], ids=str)
@pytest.mark.parametrize("how", ["on loading", "on disk"])
def test_a_quantized_encoder_is_refused_before_it_is_trained(wide_decoder, quantized, config, how):  # noqa: F811
    layer, folder = quantized
    encoder = folder if how == "on disk" else wide_decoder
    loading = {"quantization_config": QUANTIZED[layer]} if how == "on loading" else None
    with pytest.raises(ValueError, match=r"is quantized.*name an unquantized one"):
        new_compressor(encoder, wide_decoder, encoder_kwargs=loading, **config, **SETTINGS)


def test_a_quantized_encoder_is_not_saved(wide_decoder, quantized, tmp_path):  # noqa: F811
    model = new_compressor(wide_decoder, wide_decoder, **SETTINGS)
    model.encoder = AutoModel.from_pretrained(quantized[1])
    with pytest.raises(ValueError, match="quantized encoder"):
        model.save_pretrained(tmp_path / "saved")


def test_new_compressors_quantization_is_the_decoders(zoo, wide_decoder):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    model = new_compressor(
        wide_decoder, wide_decoder, quantization_config=QUANTIZED["Linear4bit"], **SETTINGS
    )
    assert "Linear4bit" in kinds(model.decoder)
    assert "Linear4bit" not in kinds(model.encoder)
    assert not hasattr(model.config, "quantization_config")


def _write_gguf(folder, file):
    """The tiny llama of `folder` as llama.cpp's converter writes it."""
    gguf = pytest.importorskip("gguf")
    llm, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    config, model = llm.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    file.parent.mkdir()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([3] * 5 + [1] * (len(tokenizer) - 5))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in llm.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if (count := heads.get(name.split(".")[-2])) is not None:  # rotary halves side by side
            half = tensor.reshape(count, 2, tensor.shape[0] // count // 2, -1)
            tensor = half.swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight",)), tensor.float().contiguous().numpy()
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_decoder_is_loaded_again(zoo, tmp_path, monkeypatch):
    _write_gguf(zoo.folder("llama", "decoder"), tmp_path / "models" / "small.gguf")
    monkeypatch.chdir(tmp_path)
    model = new_compressor(
        zoo.folder("qwen3", "encoder"),
        "models",
        decoder_kwargs={"gguf_file": "small.gguf"},
        **SETTINGS,
    )
    ids = torch.arange(5, 20).unsqueeze(0)
    plain = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"), dtype="float32")
    torch.testing.assert_close(model.decoder(ids).logits, plain(ids).logits, atol=1e-3, rtol=1e-3)
    answer = model.generate(context=TEXT, question="who?", max_new_tokens=4)
    model.save_pretrained("made")
    monkeypatch.chdir("/")
    loaded = MemslotsModel.from_pretrained(tmp_path / "made")
    assert loaded.config.decoder_loading == {"gguf_file": "small.gguf"}
    assert loaded.generate(context=TEXT, question="who?", max_new_tokens=4) == answer


def test_an_encoder_of_a_gguf_file_is_saved_with_the_compressor(zoo, tmp_path):
    llama = zoo.folder("llama", "decoder")
    _write_gguf(llama, tmp_path / "gguf" / "small.gguf")
    place = {"gguf_file": "small.gguf"}
    model = new_compressor(tmp_path / "gguf", llama, encoder_kwargs=place, **SETTINGS)
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "gguf")
    loaded = MemslotsModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded.compress(TEXT).slots, model.compress(TEXT).slots)


@pytest.mark.parametrize("place", [{"gguf_file": "small.gguf"}, {"subfolder": "small"}], ids=str)
def test_an_encoder_under_lora_is_found_again_where_it_was(place, zoo, tmp_path, monkeypatch):
    if "gguf_file" in place:
        _write_gguf(zoo.folder("llama", "decoder"), tmp_path / "models" / "small.gguf")
    else:
        shutil.copytree(zoo.folder("llama", "decoder"), tmp_path / "models" / "small")
    monkeypatch.chdir(tmp_path)
    model = new_compressor(
        "models",
        zoo.folder("qwen3", "decoder"),
        encoder_kwargs=place,
        encoder_lora={"r": 2, "target_modules": ["q_proj"]},
        **SETTINGS,
    )
    tell_apart(model)
    slots = model.compress(TEXT).slots
    model.save_pretrained("made")
    assert (tmp_path / "made" / "model.safetensors").stat().st_size < 60_000  # no base in it
    monkeypatch.chdir("/")
    loaded = MemslotsModel.from_pretrained(tmp_path / "made")
    assert loaded.config.encoder_loading == place
    assert loaded.fingerprint == model.fingerprint
    torch.testing.assert_close(loaded.compress(TEXT).slots, slots)


def _write_adapter(base, folder):
    """A LoRA adapter of the decoder in `base`, that changes what it answers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    adapted = get_peft_model(llm, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(folder)
    ids = torch.arange(5, 20).unsqueeze(0)
    return ids, adapted.eval()(ids).logits.detach()


@pytest.mark.parametrize("shares", [True, False])
def test_an_adapter_of_a_decoder_is_read_as_that_decoder_tuned(shares, zoo, tmp_path):
    ids, logits = _write_adapter(zoo.folder("llama", "decoder"), tmp_path / "adapter")
    encoder = "decoder" if shares else zoo.folder("qwen3", "encoder")
    model = new_compressor(encoder, str(tmp_path / "adapter"), **SETTINGS)
    torch.testing.assert_close(model.decoder(ids).logits, logits)
    tell_apart(model)
    torch.testing.assert_close(model.decoder(ids).logits, logits)
    answer = model.generate(context=TEXT, question="who?", max_new_tokens=4)
    model.save_pretrained(tmp_path / "made")
    loaded = MemslotsModel.from_pretrained(tmp_path / "made")
    torch.testing.assert_close(loaded.decoder(ids).logits, logits)
    torch.testing.assert_close(loaded.compress(TEXT).slots, model.compress(TEXT).slots)
    assert loaded.generate(context=TEXT, question="who?", max_new_tokens=4) == answer


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("./nowhere", FileNotFoundError, "no folder '.*/nowhere'.* as the {}"),
        ("/nowhere/llm", FileNotFoundError, "no folder '/nowhere/llm'"),
        ("~nobody/llm", FileNotFoundError, "no folder"),
        (Path("llm"), FileNotFoundError, "no folder '.*/llm'"),
        ("runs/no-such-llm", OSError, "the {} 'runs/no-such-llm' is not a folder here"),
        ("model.gguf", ValueError, "is a file.*gguf_file"),
    ],
)
@pytest.mark.parametrize("place", ["encoder", "decoder"])
def test_what_is_missing_is_named(zoo, tmp_path, monkeypatch, name, error, said, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    names = {part: zoo.folder("llama", "decoder") for part in ("encoder", "decoder")}
    for function in (new_compressor, usual_settings):
        with pytest.raises(error, match=said.format(place)):
            function(**{**names, place: name})


def test_a_folder_of_its_name_is_not_the_decoders_own_layers(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(zoo.folder("gpt2", "encoder"), "decoder")
    model = new_compressor("decoder", zoo.folder("llama", "decoder"), encoder_layers=1, **SETTINGS)
    assert model.config.encoder_layers == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    away = new_compressor("~/decoder", zoo.folder("llama", "decoder"), **SETTINGS)
    assert away.config.encoder_name_or_path == str(tmp_path / "decoder")


def test_a_decoder_that_has_gone_is_named(zoo, tmp_path):
    shutil.copytree(zoo.folder("llama", "decoder"), tmp_path / "llm")
    new_compressor(zoo.folder("gpt2", "encoder"), tmp_path / "llm", **SETTINGS).save_pretrained(
        tmp_path / "saved"
    )
    shutil.move(tmp_path / "llm", tmp_path / "moved")
    with pytest.raises(OSError, match=r"the decoder '.*/llm' of this compressor.*config\.json"):
        MemslotsModel.from_pretrained(tmp_path / "saved")


def test_a_variant_is_found_again_and_two_revisions_are_refused(zoo, tmp_path):
    decoder = tmp_path / "llm"
    shutil.copytree(zoo.folder("llama", "decoder"), decoder)
    (decoder / "model.safetensors").rename(decoder / "model.fp16.safetensors")
    encoder, only = zoo.folder("gpt2", "encoder"), {"variant": "fp16"}
    model = new_compressor(encoder, decoder, decoder_kwargs=only, **SETTINGS)
    model.save_pretrained(tmp_path / "saved")
    assert MemslotsModel.from_pretrained(tmp_path / "saved").has_decoder
    with pytest.raises(ValueError, match=r"decoder_revision and .* differ: .'a', 'b'"):
        new_compressor(
            encoder, decoder, decoder_revision="a", decoder_kwargs={"revision": "b"}, **SETTINGS
        )


def test_pins_are_kept_and_used_again(zoo, tmp_path, monkeypatch):
    """Of encoder and decoder, by every loader; a folder has no revisions, so calls are watched."""
    asked = []

    def watched(loader):
        load = loader.from_pretrained

        def from_pretrained(name, *args, **kwargs):
            pin = kwargs.get("revision"), kwargs.get("code_revision")
            asked.append((loader.__name__, str(name), pin))
            return load(name, *args, **kwargs)

        monkeypatch.setattr(loader, "from_pretrained", from_pretrained)

    for loader in (AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM):
        watched(loader)
    encoder, decoder = zoo.folder("qwen3", "encoder"), zoo.folder("llama", "decoder")
    asked.clear()
    model = new_compressor(
        encoder,
        decoder,
        encoder_kwargs={"revision": "e1", "code_revision": "e2"},
        decoder_kwargs={"revision": "d1", "code_revision": "d2"},
        encoder_lora={"r": 2},
        **SETTINGS,
    )
    pins = {encoder: ("e1", "e2"), decoder: ("d1", "d2")}
    assert {a[:2] for a in asked} >= {
        (kind, name) for kind in ("AutoConfig", "AutoTokenizer") for name in pins
    }
    assert all(pin == pins[name] for _, name, pin in asked if name in pins)
    model.save_pretrained(tmp_path / "made")
    asked.clear()
    loaded = MemslotsModel.from_pretrained(tmp_path / "made")
    assert (loaded.config.encoder_revision, loaded.config.decoder_revision) == ("e1", "d1")
    assert ("AutoModel", encoder, pins[encoder]) in asked
    assert ("AutoModelForCausalLM", decoder, pins[decoder]) in asked


def test_another_decoder_is_found_again_where_it_was(zoo, tmp_path, monkeypatch):
    shutil.copytree(zoo.folder("llama", "decoder"), tmp_path / "models" / "small")
    monkeypatch.chdir(tmp_path)
    model = zoo.compressor()
    model.config.decoder_loading = {"gguf_file": "old.gguf"}  # of the decoder that it had
    adapt_to_decoder(model, "models", decoder_kwargs={"subfolder": "small"})
    model.save_pretrained("made")
    monkeypatch.chdir("/")
    loaded = MemslotsModel.from_pretrained(tmp_path / "made")
    assert loaded.config.decoder_loading == {"subfolder": "small"}
    ids = torch.arange(5, 20).unsqueeze(0)
    torch.testing.assert_close(loaded.decoder(ids).logits, model.decoder(ids).logits)


def test_the_gateway_reads_embeddings_in_a_subfolder(zoo, tmp_path):
    shutil.copytree(zoo.folder("llama", "decoder"), tmp_path / "models" / "small")
    model = new_compressor(
        zoo.folder("qwen3", "encoder"),
        tmp_path / "models",
        decoder_kwargs={"subfolder": "small"},
        **SETTINGS,
    )
    expected = model.decoder.get_input_embeddings()(torch.arange(9))
    model.save_pretrained(tmp_path / "made")
    bare = MemslotsModel.from_pretrained(tmp_path / "made", load_decoder=False)
    attach_decoder_embeddings(bare, tmp_path / "made")
    assert torch.equal(bare.decoder.get_input_embeddings()(torch.arange(9)), expected)


def test_half_a_checkpoint_may_be_pushed_from_a_cpu(zoo, tmp_path):
    zoo.compressor(bundle_decoder=True).to(torch.float16).save_pretrained(tmp_path / "half")
    assert _loaded(tmp_path / "half").dtype == torch.float16
