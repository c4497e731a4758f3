"""Where an adapted compressor's converter starts: drawn anew, or mapped from the old decoder."""

import copy

import pytest
import torch
from tiny_models import byte_bpe, unigram, words
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.capacity import latent_converters  # noqa: F401, which adds the autoencoder
from memslots import MemslotsModel
from memslots.embedding_map import embedding_scale, fit_embedding_map, shared_tokens
from memslots.making import merge_encoder, new_compressor
from memslots.trainer.adapt import adapt_to_decoder

KINDS = [
    {},
    {"converter_type": "linear"},
    {"converter_type": "autoencoder", "converter_layers": 2},
    {"converter_type": "residual"},
]


@pytest.fixture(scope="module")
def turned(zoo, tmp_path_factory):
    """A decoder whose embeddings are the old one's, their dimensions in another order."""
    folder = tmp_path_factory.mktemp("turned")
    decoder = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    embeddings = decoder.get_input_embeddings().weight
    embeddings.data.copy_(embeddings[:, order].clone() * 3)
    decoder.save_pretrained(folder)
    AutoTokenizer.from_pretrained(zoo.folder("llama", "decoder")).save_pretrained(folder)
    return str(folder), order


def converted(model, memory):
    with torch.no_grad():
        return model.converter(memory.slots)


def assert_alike(rows, wanted):
    """The same directions and lengths, but for what the regression's penalty bends."""
    assert torch.cosine_similarity(rows, wanted).min() > 0.99
    torch.testing.assert_close(rows.norm(dim=1), wanted.norm(dim=1), atol=0, rtol=0.1)


def with_trained_converter(zoo, config):
    """A compressor whose last layer has weights and a bias of some size, as trained ones have."""
    torch.manual_seed(0)
    folders = zoo.folder("gpt2", "encoder"), zoo.folder("llama", "decoder")
    model = new_compressor(*folders, segment_length=24, compression_rates=[4], **config).eval()
    last = getattr(model.converter, "map", None) or model.converter.down
    torch.nn.init.normal_(last.bias, std=embedding_scale(model.decoder))
    return model


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_slots_follow_the_embeddings(config, zoo, turned):
    folder, order = turned
    model = with_trained_converter(zoo, config)
    memory = model.compress(words(60))
    before, markers = converted(model, memory), model.markers.detach().clone()
    adapt_to_decoder(model, folder, "converter", start="embeddings")
    assert_alike(converted(model.eval(), memory), before[:, order] * 3)
    assert_alike(model.markers.detach(), markers[:, order] * 3)
    assert torch.equal(model.compress(words(60)).slots, memory.slots)


def test_a_drawn_start_knows_nothing_of_the_old_decoder(zoo, turned):
    folder, order = turned
    model = with_trained_converter(zoo, {})
    memory = model.compress(words(60))
    before = converted(model, memory)
    adapt_to_decoder(model, folder, "converter")
    alike = torch.corrcoef(
        torch.stack([converted(model, memory).flatten(), before[:, order].flatten()])
    )
    assert abs(alike[0, 1]) < 0.5


def test_another_width_and_family(zoo, tmp_path):
    model = with_trained_converter(zoo, {})
    hidden = model.converter.up.out_features
    adapt_to_decoder(model, zoo.folder("gemma3", "decoder"), "all", start="embeddings")
    model.save_pretrained(tmp_path)
    again = MemslotsModel.from_pretrained(tmp_path).eval()
    assert again.converter.up.out_features == hidden
    texts = {"context": words(40), "question": "who?", "max_new_tokens": 3}
    assert again.generate(**texts) == model.eval().generate(**texts)


def test_the_map_explains_what_is_a_map_and_not_what_is_drawn(zoo, turned):
    old = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"))
    tokenizer = AutoTokenizer.from_pretrained(turned[0])
    mapped = AutoModelForCausalLM.from_pretrained(turned[0])
    drawn = copy.deepcopy(mapped)
    torch.nn.init.normal_(drawn.get_input_embeddings().weight)
    assert fit_embedding_map(old, tokenizer, mapped, tokenizer)[1] > 0.95
    assert fit_embedding_map(old, tokenizer, drawn, tokenizer)[1] < 0.1


def test_tokens_are_the_same_text_however_written():
    old, new = byte_bpe(380), unigram()
    ids = shared_tokens(old, new)
    assert len(ids[0]) == len(ids[1]) > 20
    starts = 0
    texts = old.convert_ids_to_tokens(ids[0]), new.convert_ids_to_tokens(ids[1])
    for a, b in zip(*texts, strict=True):
        assert a.replace("\u0120", " ") == b.replace("\u2581", " ")
        starts += a.startswith("\u0120")
    assert starts > 3
    assert not set(ids[0].tolist()) & set(old.all_special_ids)


def test_mistakes_are_named(zoo, turned):
    model = with_trained_converter(zoo, {})
    with pytest.raises(
        ValueError, match=r"start must be one of \('random', 'embeddings'\), got 'o"
    ):
        adapt_to_decoder(model, turned[0], start="old")
    without = MemslotsModel.from_pretrained(zoo.saved(), load_decoder=False)
    with pytest.raises(ValueError, match="load it with load_decoder=True"):
        adapt_to_decoder(without, turned[0], start="embeddings")
    old = AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder"))
    few = byte_bpe(380)
    with pytest.raises(ValueError, match=r"at least 64\. Use start 'random'"):
        fit_embedding_map(old, few, old, _few_tokens())


def _few_tokens():
    """A tokenizer that shares less than 64 tokens with the zoo's."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: index for index, letter in enumerate("abcdefgh")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary)))


def test_an_encoder_that_is_the_old_decoders_is_not_adapted(zoo, turned):
    model = new_compressor(
        "decoder", zoo.folder("llama", "decoder"), encoder_layers=1, segment_length=24
    )
    with pytest.raises(ValueError, match=r"own layers.*merge_encoder"):
        adapt_to_decoder(model, turned[0])
    merge_encoder(model)
    adapt_to_decoder(model, turned[0])
    assert model.config.decoder_name_or_path == turned[0]


def test_a_new_pair_of_other_widths_and_tokenizers_starts_where_its_decoder_reads(tmp_path):
    """Encoder and decoder of the embedded checkpoint: 192 and 288 wide, each with its tokens."""
    from datasets import Dataset

    from memslots import embedded
    from memslots.trainer.compressor_config import CompressorConfig
    from memslots.trainer.compressor_trainer import CompressorTrainer

    tiny = MemslotsModel.from_pretrained(embedded("tiny"))
    folders = {"encoder": tiny.encoder, "decoder": tiny.decoder}
    tiny.processor.encoder_tokenizer.save_pretrained(tmp_path / "encoder")
    tiny.processor.tokenizer.save_pretrained(tmp_path / "decoder")
    for name, part in folders.items():
        part.save_pretrained(tmp_path / name)
        folders[name] = str(tmp_path / name)
    model = new_compressor(
        **folders, pooling="groups", converter_type="residual", compression_rates=[2],
        segment_length=16,
    )  # fmt: skip
    texts = Dataset.from_list([{"text": words(14, seed)} for seed in range(8)])
    args = CompressorConfig(
        str(tmp_path / "run"), completion_weight=0.0, use_cpu=True, report_to="none"
    )

    def loss() -> float:
        return CompressorTrainer(model, args, texts, texts).evaluate()["eval_loss"]

    mapped = loss()
    torch.manual_seed(0)
    skip = model.converter.skip.weight
    torch.nn.init.normal_(skip, std=skip.std().item())
    assert mapped < loss() - 0.2


def test_a_new_pair_that_shares_few_tokens_is_told(zoo, monkeypatch, caplog):
    monkeypatch.setattr(
        "memslots.start_weights.shared_tokens", lambda old, new: (torch.arange(3),) * 2
    )
    encoder, decoder = zoo.folder("gpt2", "encoder"), zoo.folder("llama", "decoder")
    new_compressor(encoder, decoder, pooling="groups", converter_type="residual")
    assert "share 3 tokens" in caplog.text
    assert "needs at least 48" in caplog.text


def test_a_decoder_that_is_refused_changes_nothing(zoo, tmp_path):
    AutoModelForCausalLM.from_pretrained(zoo.folder("llama", "decoder")).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("llama", "decoder"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    model = zoo.compressor("gpt2", "llama", prompt_format="chat").eval()
    config, answer = model.config.to_dict(), model.generate(context="Ann.", question="Who?")
    with pytest.raises(ValueError, match="chat template"):
        adapt_to_decoder(model, str(tmp_path))
    assert model.config.to_dict() == config
    assert model.generate(context="Ann.", question="Who?") == answer
