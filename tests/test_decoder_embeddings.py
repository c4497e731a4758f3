"""A gateway before an engine holds no decoder, and its prompts are those of the whole model."""

import gc
import json

import httpx
import pytest
import torch
from loopback import StandIn, served
from safetensors.torch import load_file, save_file
from tiny_models import DECODERS, QUESTIONS, RATES, SEGMENT, TEXTS, tell_apart
from transformers import AutoModelForCausalLM

from memslots import MemslotsModel
from memslots.cli.serve import _compressor
from memslots.making import new_compressor
from memslots.serving.decoder_embeddings import attach_decoder_embeddings
from memslots.serving.engines import VllmEngine
from memslots.serving.gateway import Gateway
from memslots.serving.prompt_embeds import prompt_embeds
from memslots.serving.sampling import default_sampling, end_tokens
from memslots.serving.shelf import ProcessShelf
from memslots.serving.vllm_client import VllmClient


def lean(folder, **kwargs):
    """A checkpoint's compressor with its decoder's embeddings alone."""
    model = MemslotsModel.from_pretrained(folder, load_decoder=False)
    return attach_decoder_embeddings(model, folder, **kwargs)


def same_prompts(small, whole):
    memory = whole.compress(TEXTS)
    for options in ({"question": QUESTIONS}, {"question": QUESTIONS, "rate": 8}):
        expected = prompt_embeds(whole, memory, **options)
        given = prompt_embeds(small, small.compress(TEXTS), **options)
        assert [one.dtype for one in given] == [one.dtype for one in expected]
        assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))


def parameters_alive():
    """Every parameter that this process holds, by identity."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) is torch.nn.Parameter]
    return {id(one): one for one in found if one.device.type != "meta"}


@pytest.mark.parametrize("decoder", [one for one in DECODERS if one != "gemma4"])
def test_prompts_are_those_of_the_whole_model(zoo, decoder):
    whole = zoo.shared("gpt2", decoder)
    small = lean(zoo.saved("gpt2", decoder))
    same_prompts(small, whole)
    assert default_sampling(small) == default_sampling(whole)
    assert end_tokens(small) == end_tokens(whole)


def test_a_shared_encoder_keeps_the_first_layers_and_no_other(zoo, tmp_path):
    """The kind of `smol`, the default checkpoint."""
    lora = {"r": 2, "alpha": 4, "target_modules": ["q_proj"]}
    sizes = {"segment_length": SEGMENT, "compression_rates": RATES}
    parts = ("decoder", zoo.folder("llama", "decoder"))
    whole = tell_apart(new_compressor(*parts, encoder_layers=1, encoder_lora=lora, **sizes))
    whole.save_pretrained(tmp_path)
    small = lean(tmp_path)
    same_prompts(small, MemslotsModel.from_pretrained(tmp_path))
    assert small.fingerprint == whole.fingerprint
    assert whole.config.decoder_config.num_hidden_layers == 2
    layers = {
        name.split("layers.")[1][0] for name, _ in small.named_parameters() if "layers." in name
    }
    assert layers == {"0"}


def test_no_parameter_of_the_decoder_is_in_the_process(zoo):
    folder = zoo.saved("gpt2", "llama")
    before = parameters_alive()
    small = lean(folder)
    prompt_embeds(small, small.compress(TEXTS[0]), question=QUESTIONS[0])
    new = [one for key, one in parameters_alive().items() if key not in before]
    assert sum(one.numel() for one in new) == sum(one.numel() for one in small.parameters())
    assert not list(small.decoder.parameters())
    assert not list(small.decoder.buffers())
    whole = MemslotsModel.from_pretrained(folder)
    assert sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in small.parameters())


def test_shards_and_other_names_are_found(zoo, tmp_path):
    whole = zoo.shared("gpt2", "llama")
    ids = torch.tensor([[5, 300, 6, 5], [0, 1, 2, 379]])
    expected = whole.decoder.get_input_embeddings()(ids)
    tables = {
        "shards": "model.embed_tokens.weight",
        "bare": "embed_tokens.weight",
        "tied": "lm_head.weight",
        "renamed": "language_model.backbone.embed_tokens.weight",
    }
    for how, table in tables.items():
        folder = tmp_path / how
        decoder = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"))
        decoder.save_pretrained(folder, max_shard_size="20KB" if how == "shards" else "5GB")
        if how == "shards":
            weights = json.loads((folder / "model.safetensors.index.json").read_text())
            assert len(set(weights["weight_map"].values())) > 2
        else:
            tensors = load_file(folder / "model.safetensors")
            tensors[table] = tensors.pop("model.embed_tokens.weight")
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        small = MemslotsModel.from_pretrained(zoo.saved("gpt2", "llama"), load_decoder=False)
        small.config.decoder_name_or_path = str(folder)
        small.config.decoder_config.tie_word_embeddings = how == "tied"
        attach_decoder_embeddings(small, "not used")
        assert torch.equal(small.decoder.get_input_embeddings()(ids), expected)


def test_a_bundled_decoder_is_read_out_of_the_checkpoint(zoo, tmp_path):
    whole = zoo.compressor("gpt2", "gemma3", bundle_decoder=True)
    whole.decoder.generation_config.update(do_sample=True, temperature=0.6)
    whole.save_pretrained(tmp_path)
    small = lean(tmp_path)
    same_prompts(small, whole)
    assert not list(small.decoder.parameters())
    assert default_sampling(small) == default_sampling(whole)


def test_the_dtype_is_the_decoders_own_or_the_one_given(zoo):
    folder = zoo.saved("gpt2", "gemma3")
    whole = MemslotsModel.from_pretrained(folder, dtype=torch.bfloat16)
    small = MemslotsModel.from_pretrained(folder, dtype=torch.bfloat16, load_decoder=False)
    same_prompts(attach_decoder_embeddings(small, folder, dtype=torch.bfloat16), whole)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "auto"])
def test_the_command_holds_a_decoder_only_where_it_is_asked_to(zoo, dtype):
    folder = zoo.saved("gpt2", "gemma3")
    small = _compressor(folder, None, "cpu", dtype, with_decoder=False)
    whole = _compressor(folder, None, "cpu", dtype, with_decoder=True)
    assert not list(small.decoder.parameters())
    assert sum(one.numel() for one in whole.decoder.parameters())
    same_prompts(small, whole)


def test_what_cannot_be_served_so_is_refused_by_name(zoo, tmp_path):
    with pytest.raises(ValueError, match="per-layer embeddings"):
        lean(zoo.saved("gpt2", "gemma4"))
    for config, match in (({"decoder_lora": {"r": 2}}, "decoder_lora"),):
        folder = tmp_path / match
        zoo.compressor(**config).save_pretrained(folder)
        with pytest.raises(ValueError, match="transformers backend"):
            lean(folder)
    small = MemslotsModel.from_pretrained(zoo.saved("gpt2", "llama"), load_decoder=False)

    def refusal(path, kind=ValueError):
        small.config.decoder_name_or_path = path
        with pytest.raises(kind) as raised:
            attach_decoder_embeddings(small, "not used")
        return str(raised.value)

    (tmp_path / "empty").mkdir()
    assert "no model.safetensors" in refusal(str(tmp_path / "empty"))
    assert "nor names it" in refusal("")
    table = torch.zeros(small.config.decoder_config.vocab_size, 32)
    for key, tensor, match in (
        ("model.norm.weight", table, "no table of embeddings"),
        ("model.embed_tokens.weight", table[:, :8], "name that decoder"),
        ("model.embed_tokens.weight", table.to(torch.int8), "quantized"),
    ):
        save_file({key: tensor.contiguous()}, tmp_path / "empty" / "model.safetensors")
        assert match in refusal(str(tmp_path / "empty"))
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"no tensors")
    assert "cannot be read as safetensors" in refusal(str(tmp_path / "empty"))


def test_the_gateway_answers_through_it_and_says_what_it_cannot(zoo):
    whole, small = zoo.shared("gpt2", "gemma3"), lean(zoo.saved("gpt2", "gemma3"))
    expected = whole.generate(context=TEXTS[1], question=QUESTIONS[0], max_new_tokens=8)
    with served(StandIn(whole).app()) as engine_url:
        engine = VllmEngine(small, VllmClient(engine_url))
        with (
            served(Gateway(small, engine, ProcessShelf()).app()) as url,
            httpx.Client(base_url=url, timeout=60) as client,
        ):
            assert client.get("/health").json()["engine"] == "vllm"
            body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 8}
            body["documents"] = TEXTS[1:2]
            answer = client.post("/v1/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"] == expected
            for wish in ({"fidelity": 0.9}, {"exact": True}):
                made = client.post("/v1/memories", json={"text": TEXTS[1], **wish})
                assert made.status_code == 400, made.text
                assert "--with-decoder" in made.json()["error"]["message"]
