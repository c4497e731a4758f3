"""`compile_encoder`: the same slots, from few graphs."""

import pytest
import torch
from tiny_models import TEXTS, words

from memslots import MemslotsModel
from memslots.compiling import compile_encoder


@pytest.fixture(autouse=True)
def forget_graphs():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("encoder", ["gpt2", "qwen3", "bert"])
def test_slots_stay_and_graphs_are_few(zoo, encoder):
    model = zoo.compressor(encoder, "llama")
    texts = [words(n, seed=n) for n in (1, 4, 7, 20, 33, 50, 90)]
    expected = [model.compress(text, rate=4).slots for text in texts]
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    compile_encoder(model, backend=backend)
    model.compress(TEXTS[0], rate=8)  # one segment
    model.compress(words(30), rate=8)  # several
    first = len(graphs)
    assert first > 0
    for text, slots in zip(texts, expected, strict=True):
        torch.testing.assert_close(model.compress(text, rate=4).slots, slots)
    torch.testing.assert_close(
        model.compress(texts, rate=4, batch_tokens=200).slots, torch.cat(expected)
    )
    assert len(graphs) == first


def test_a_compiled_encoder_is_saved_as_it_was(zoo, tmp_path):
    model = zoo.compressor()
    fingerprint = model.fingerprint
    compile_encoder(model, backend="eager")
    slots = model.compress(TEXTS[1], rate=4).slots
    model.save_pretrained(tmp_path)
    again = MemslotsModel.from_pretrained(tmp_path)
    assert again.fingerprint == fingerprint == model.fingerprint
    torch.testing.assert_close(again.compress(TEXTS[1], rate=4).slots, slots)


def test_without_a_compiler_the_error_says_so(zoo, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"no 'no-such-compiler' here; install one"):
        compile_encoder(zoo.compressor())
