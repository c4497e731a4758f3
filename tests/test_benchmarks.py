"""The benchmarks' accounting at tiny shapes: what is counted and compared, not how fast it is."""

import importlib
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from memslots import MemslotsModel, embedded

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import against_published  # noqa: E402
import alternatives  # noqa: E402
import measuring  # noqa: E402
import page  # noqa: E402
import published_way  # noqa: E402
import real_weights  # noqa: E402
import scaling  # noqa: E402
import shapes  # noqa: E402
import summary  # noqa: E402
import table_a7  # noqa: E402
import training_throughput  # noqa: E402

SETUP = {"device": "cpu", "preset": "tiny", "dtype": "float32", "repeats": 1}


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Collecting before every turn is for times and peaks that count; here it takes most of all."""
    monkeypatch.setattr(measuring, "gc", types.SimpleNamespace(collect=lambda: 0))


@pytest.fixture(scope="module")
def model():
    return shapes.build("tiny", "cpu", torch.float32)


def test_what_does_not_train_is_imported_without_the_training_extra(monkeypatch):
    for name in ("trl", "memslots.trainer", "memslots.trainer.collator"):
        monkeypatch.setitem(sys.modules, name, None)
    names = ("against_published", "alternatives", "published_way", "scaling", "table_a7")
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    for name in names:
        assert importlib.import_module(name).__file__.startswith(str(BENCHMARKS))


def test_a_context_has_exactly_its_tokens_for_encoder_and_decoder(model):
    text = shapes.context(100)
    spans = model.segment([text])[0]
    assert [len(span.ids) for span in spans] == [32, 32, 32, 4]
    assert len(model.processor.decoder_text.encode(text)) == 100
    assert text == shapes.context(100) != shapes.context(100, seed=1)


def test_presets_keep_the_proportions_of_the_papers_models():
    small, paper = (shapes.described(name) for name in ("small", "gpt2-large-llama3"))
    assert paper["encoder"]["parameters"] == 708_390_400  # 774M less both embedding tables
    assert paper["decoder"]["parameters"] == 6_979_588_096  # 8.03B less two vocabularies

    def share(sizes, role):
        one = sizes[role]
        return one["vocabulary"] * one["width"] / one["parameters"]

    def ratio(sizes):
        return sizes["decoder"]["parameters"] / sizes["encoder"]["parameters"]

    assert ratio(small) == pytest.approx(ratio(paper), rel=0.15)
    for role in ("encoder", "decoder"):
        assert share(small, role) == pytest.approx(share(paper, role), rel=0.05)


def test_runs_are_taken_in_turn_and_the_warm_up_is_not_counted():
    order = []

    def run(name):
        def one():
            order.append(name)
            return {"part": float(len(order))}

        return one

    found = measuring.measure({"a": run("a"), "b": run("b")}, repeats=3, device="cpu")
    assert order == ["a", "b"] * 4
    assert found["a"]["part"] == 5  # the median of 3, 5, 7
    assert len(found["b"]["all"]) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident peaks are Linux's")
def test_a_peak_is_of_the_run_and_not_of_what_was_before():
    held = torch.ones(4 << 20)
    found = measuring.peak_bytes(lambda: torch.ones(16 << 20).sum(), "cpu")
    assert 60 << 20 <= found < 80 << 20  # the kernel counts pages in batches
    assert measuring.peak_bytes(lambda: held.sum(), "cpu") < 8 << 20


def test_table_rows_count_every_position_and_compare_with_full_text(model):
    rows = table_a7.measure_row(model, batch=2, length=128, repeats=1, new_tokens=2)
    full, *compressed = rows
    assert [row["reads"] for row in rows] == ["full text", "rate 4", "rate 16"]
    assert full["positions"] == 128 + _prompt(model)
    # Four segments, each with two markers.
    assert [row["positions"] for row in compressed] == [
        _prompt(model) + 4 * (8 + 2),
        _prompt(model) + 4 * (2 + 2),
    ]
    for row in compressed:
        assert row["position_ratio"] == full["positions"] / row["positions"]
        answered = row["prefill"] + row["decode"]
        whole = full["prefill"] + full["decode"]
        assert row["total_ratio"] == pytest.approx(whole / (row["compress"] + answered))
        assert row["cached_ratio"] > row["total_ratio"]
        assert row["prefix_prefill"] > 0
        read = 2 * (row["positions"] - _prompt(model) + 1)  # two texts, BOS too
        assert row["prefix_bytes"] == read * 2 * 2 * 16 * 4  # layers, keys and values, width


def _prompt(model):
    prompt = model.processor.prompt(question=shapes.QUESTION)
    return len(prompt.before) + len(prompt.after)


def test_the_papers_ratios_are_those_that_it_states():
    assert table_a7.paper_row(16, 1024, "rate 16")["total_ratio"] == pytest.approx(1.66, abs=0.01)
    assert table_a7.paper_row(32, 1024, "rate 16")["total_ratio"] == pytest.approx(2.30, abs=0.01)
    assert table_a7.paper_row(4, 8192, "rate 16")["total_ratio"] == pytest.approx(2.21, abs=0.01)
    cached = [table_a7.paper_row(*row, "rate 16")["cached_ratio"] for row in table_a7.PAPER_ROWS]
    assert (min(cached), max(cached)) == pytest.approx((2.36, 4.29), abs=0.02)
    assert table_a7.paper_row(1, 1024, "rate 16") is None


def test_the_published_way_gives_the_same_slots(model):
    text = shapes.context(100)
    language_model = published_way.with_head(model)
    for rate in (4, 16):
        theirs = published_way.compress(language_model, model, text, rate)
        torch.testing.assert_close(theirs, model.compress(text, rate=rate).slots)
    row = against_published.measure_segments(model, segments=3, rate=4, repeats=1)
    assert row["ratio"] == row["published"] / row["memslots"]
    assert row["tokens"] == 96
    assert row["slots_differ_by"] < 1e-5


def compile_quickly(model):
    model.encoder.compile(dynamic=True, backend="eager")


def test_a_compiled_encoder_is_measured_beside_the_plain_one(model, monkeypatch):
    monkeypatch.setattr(against_published, "compile_encoder", compile_quickly)
    twin = against_published.compiled_twin(model)
    assert twin.decoder is model.decoder
    row = against_published.measure_segments(model, 2, rate=4, repeats=1, compiled=twin)
    monkeypatch.setattr(against_published, "SEGMENTS", 2)
    results = {"setup": {"device": "cpu"}, "rows": [{**row, "floor_share": 0.5}]}
    found = [bar["found"] for bar in against_published.bars(results)]
    assert found == pytest.approx(
        [
            row["ratio"],
            0.5,
            row["published"] / row["compiled"],
            0.5 * row["memslots"] / row["compiled"],
        ]
    )

    def fails(model):
        raise ValueError("no compiler")

    monkeypatch.setattr(against_published, "compile_encoder", fails)
    assert against_published.compiled_twin(model) is None
    row = against_published.measure_segments(model, 1, rate=4, repeats=1)
    assert row["compiled"] is None


def test_encoder_operations_are_those_that_torch_counts(model):
    text = shapes.context(64)
    # Of the faster kernels for a CPU, the counter knows nothing.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.compress(text, rate=4)
    found = against_published.encoder_operations(model, [32, 32], rate=4)
    config = model.config.encoder_config
    # torch counts attention as if all positions saw each other.
    unseen = 4 * config.n_embd * config.n_layer * 2 * (40 * 40 - 40 * 41 / 2)
    assert counter.get_total_flops() == pytest.approx(found + unseen, rel=0.001)


def test_both_ways_to_train_have_the_same_losses(tmp_path):
    model = shapes.build("tiny", "cpu", torch.float32)
    steps = training_throughput.Steps(model, texts=2, rate=4, folder=str(tmp_path))
    ours = steps.trainer.compute_loss(
        model, steps.inputs, return_outputs=True, num_items_in_batch=steps.items
    )[1]
    for name, task in training_throughput.TASKS.items():
        theirs = published_way.task_loss(steps.language_model, model, steps.inputs, task, rate=4)
        assert theirs.item() == pytest.approx(ours.task_losses[task].item(), rel=1e-4), name
    assert steps.targets.tolist() == [2 * 33, 2 * 31, 0]  # EOS is a target, a first token is not


def test_training_counts_the_targets_of_both_tasks():
    model = shapes.build("tiny", "cpu", torch.float32)
    row = training_throughput.measure_training(model, texts=2, rate=16, repeats=1)
    assert row["targets"] == {"reconstruction": 66, "completion": 62}
    both = row["tokens_a_second"]["memslots"] * row["seconds"]["memslots"]
    assert both == pytest.approx(128)
    assert row["ratio"] == row["seconds"]["published"] / row["seconds"]["memslots"]


def test_training_cannot_save_what_the_frozen_decoder_takes():
    sizes = {"segment_length": 32, "encoder": {"parameters": 2}, "decoder": {"parameters": 3}}
    # A position costs 12 for the encoder, twice as much by the published way, and 24 for both rows.
    assert training_throughput.most_possible(sizes, 4) == pytest.approx(48 / 36)
    for name in ("small", "gpt2-large-llama3"):
        bound = training_throughput.most_possible(shapes.described(name), 4)
        assert 1.05 < bound < training_throughput.WANTED


def test_peaks_are_taken_until_full_text_is_too_much(model, monkeypatch):
    tried = []

    def peak(run, device):
        run()
        tried.append(1)
        if len(tried) == 4:  # full text, at the second batch
            raise torch.OutOfMemoryError("too much")
        return 1000 * len(tried)

    monkeypatch.setattr(measuring, "peak_bytes", peak)
    rows = table_a7.measure_peaks(model, length=32, batches=(1, 2, 4), new_tokens=1)
    assert [(row["batch"], row["reads"], row["out_of_memory"]) for row in rows] == [
        (1, "full text", False),
        (1, "rate 4", False),
        (1, "rate 16", False),
        (2, "full text", True),
        (2, "rate 4", False),
        (2, "rate 16", False),
    ]


def test_an_exponent_is_the_slope_on_logarithmic_axes():
    assert scaling.exponent([(n, 3 * n**1.5) for n in (10, 100, 1000)]) == pytest.approx(1.5)
    assert scaling.lengths_up_to(20_000) == [1024, 4096, 16384, 20_000]


def test_questions_are_counted_as_the_decoder_reads_them(model):
    one, *_, most = scaling.measure_questions(model, tokens=64, repeats=1)
    memory = _prompt(model) + 2 * (2 + 2)
    asked = len(model.processor.prompt(question=shapes.QUESTION).after)
    assert one["anew_positions"] == one["shared_positions"] == one["positions_if_read_once"]
    assert one["anew_positions"] == memory
    assert most["questions"] == 100
    assert most["anew_encoder_calls"] == most["shared_encoder_calls"] == 0
    assert most["anew_positions"] == 100 * memory
    assert most["shared_positions"] == memory + 99 * asked == most["positions_if_read_once"]


def test_lengths_are_told_apart_into_ids_slots_and_the_rest(model):
    row = scaling.measure_length(model, tokens=256, repeats=1)
    assert row["slots_bytes"] == 8 * 2 * 32 * 4  # segments, slots, width, bytes
    assert row["ids_bytes"] > 256 * 8
    if row["peak_bytes"] is not None:
        assert row["beyond_bytes"] == row["peak_bytes"] - row["ids_bytes"] - row["slots_bytes"]


def test_alternatives_read_the_same_text_and_the_cut_as_many_positions_as_the_memory(model):
    found = alternatives.measure_alternatives(
        model, tokens=64, repeats=1, preset="tiny", new_tokens=2
    )
    rows = {row["way"]: row for row in found["rows"]}
    memory = rows["memory, kept"]
    assert rows["text cut to the memory's length"]["positions"] == memory["positions"]
    assert rows["as many words, by LLMLingua-2's way"]["positions"] == memory["positions"]
    assert rows["full text"]["positions"] == rows["full text, KV cache kept"]["positions"]
    assert memory["kept_bytes"] == 2 * 2 * 32 * 4
    ids = table_a7.full_text_ids(model, [shapes.context(64)])
    cache = alternatives.read_context(model.decoder, ids[:, : 1 + 64])
    held = sum(t.numel() * t.element_size() for one in cache.layers for t in (one.keys, one.values))
    assert rows["full text, KV cache kept"]["kept_bytes"] == held
    assert rows["full text"]["first_token_ratio"] == 1
    assert {"kvpress", "llmlingua", "quanto"} >= set(found["left_out"])


def test_a_classifier_keeps_so_many_words_in_the_texts_order():
    classifier = shapes.token_classifier("tiny", "cpu", torch.float32)
    ids = torch.arange(4, 800).unsqueeze(0)
    kept = alternatives.chosen_by(classifier, ids, 90)
    assert kept.shape == (1, 90)
    assert torch.equal(kept, kept.sort().values)
    # What it says of a word is the same in a text that ends there: padding is not attended.
    whole = classifier(input_ids=ids[:, :512]).logits.softmax(-1)[0, :, 1]
    first = kept[kept < 4 + 512]
    assert whole[first - 4].min() > whole.sort().values[-len(first) - 1]


def test_a_kept_cache_answers_like_the_full_text(model):
    ids = table_a7.full_text_ids(model, [shapes.context(64)])
    prefix = alternatives.read_context(model.decoder, ids[:, :-8])
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    fresh = model.decoder.generate(input_ids=ids, **settings)
    kept = model.decoder.generate(input_ids=ids, past_key_values=prefix, **settings)
    assert fresh.tolist() == kept.tolist()


def test_a_bar_is_met_from_either_side():
    assert page.met({"wanted": 2, "found": 2})
    assert not page.met({"wanted": 2, "found": 1.9})
    assert page.met({"wanted": 0, "found": 0, "at_most": True})
    assert not page.met({"wanted": 1.05, "found": 1.1, "at_most": True})


def test_the_page_holds_every_benchmark_and_says_which_bars_are_missed(tmp_path, model):
    setup = {**SETUP, **measuring.machine_facts("cpu")}
    sizes = shapes.described("tiny")
    rows = table_a7.with_ratios(
        [
            {
                "batch": 1,
                "length": 4096,
                "reads": reads,
                "positions": positions,
                "compress": 0.1,
                "peak_bytes": 1 << 20,
                "out_of_memory": False,
                "prefill": prefill,
                "decode": 1.0,
                "prefix_prefill": 0.5,
                "prefix_bytes": 3 << 20,
            }
            for reads, positions, prefill in (("full text", 4100, 8.0), ("rate 16", 410, 2.0))
        ]
    )
    found = {
        "table_a7": {"rows": rows, "setup": setup, "shapes": sizes},
        "scaling": {
            "rows": [
                {"tokens": n, "seconds": n / 1e5, "slots": n // 16, "text_bytes": n * 4,
                 "ids_bytes": n * 36, "slots_bytes": n * 8, "peak_bytes": n,
                 "beyond_bytes": 1 << 20}
                for n in (1024, 16384, 65536)
            ],
            "exponent": 1.0,
            "grows_by": 1.0,
            "questions": [
                {"questions": n, "anew_seconds": 0.1 * n, "shared_seconds": 0.2 + 0.01 * n,
                 "anew_encoder_calls": 0, "shared_encoder_calls": 0, "anew_positions": 50 * n,
                 "shared_positions": 2000, "positions_if_read_once": 35 + 15 * n}
                for n in (1, 100)
            ],
            "asked_tokens": 2048,
            "setup": setup,
            "shapes": sizes,
        },
    }  # fmt: skip
    (tmp_path / "found.json").write_text(json.dumps(found))
    page.write_page(json.loads((tmp_path / "found.json").read_text()), tmp_path / "speed.md")
    text = (tmp_path / "speed.md").read_text()
    # 4 times sooner for 10 times fewer positions, which is 0.4 where 0.8 is wanted.
    assert "rate 16 | 0.8 | 0.4 | **missed**" in text
    assert "encoder passes for 100 questions on one memory (at most) | 0 | 0 | met" in text
    assert "over those of a memory read once (at most) | 1 | 1.3 | **missed**" in text
    assert "500.0, 3.0 MiB" in text
    assert "3 of 5 met" in text
    assert "`benchmarks/alternatives.py` was not run." in text
    assert "Nothing on this page was measured on a GPU" in text
    for name in ("table-a7", "scaling"):
        assert (tmp_path / "speed" / f"{name}.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="make bench"):
        page.write_page({}, tmp_path / "none.md")


def test_pages_of_stored_results_are_as_they_were(tmp_path):
    golden = Path(__file__).parent / "golden"
    pages = []
    for case, found in json.loads((golden / "benchmarks.json").read_text("utf-8")).items():
        page.write_page(found, tmp_path / "speed.md")
        pages.append(f"<!-- {case} -->\n" + (tmp_path / "speed.md").read_text("utf-8"))
    assert "\n".join(pages) == (golden / "benchmarks.md").read_text("utf-8")


def test_compressing_pays_from_the_question_whose_savings_make_it_up():
    assert summary.pays_from(compress=1.0, full=3.0, answered=2.5) == 2
    assert summary.pays_from(compress=1.1, full=3.0, answered=2.5) == 3
    assert summary.pays_from(compress=0.1, full=3.0, answered=2.5) == 1
    assert summary.pays_from(compress=0.1, full=3.0, answered=3.0) is None


def test_answers_from_memory_are_as_long_whatever_ends_them_otherwise(monkeypatch):
    model = MemslotsModel.from_pretrained(embedded("tiny")).eval()
    memory = model.compress(real_weights.chapter_of(model, 64))
    answered = []
    monkeypatch.setattr(
        table_a7.TokenClock,
        "__call__",
        lambda self, ids, scores, **_: answered.append(0) or stop(ids),
    )
    monkeypatch.setattr(table_a7.TokenClock, "parts", lambda self: {})
    for letter in "aeio ":
        model.processor.answer_end = letter
        table_a7.answer_from_memory(model, memory, 8)
    assert len(answered) == 5 * 8


def stop(ids):
    return torch.zeros(len(ids), dtype=torch.bool)


def test_real_weights_are_measured_on_a_real_text_with_what_is_kept(tmp_path):
    model = MemslotsModel.from_pretrained(embedded("tiny")).eval()
    assert len(model.processor.decoder_text.encode(real_weights.chapter_of(model, 64))) == 64
    rows = real_weights.measure_lengths(model, (48, 64), repeats=1, new_tokens=2)
    assert [row["reads"] for row in rows] == 2 * ["full text", "rate 4", "rate 8", "rate 16"]
    text, fine, coarse = rows[4], rows[5], rows[7]
    chapter = real_weights.chapter_of(model, 64)
    assert text["kept_bytes"] == len(chapter.encode())
    assert fine["kept_bytes"] == model.compress(chapter, rate=4).slots.nbytes
    assert coarse["kept_bytes"] < fine["kept_bytes"]
    cache = model.decoder(**model.processor.tokenizer("One.", return_tensors="pt")).past_key_values
    read = cache.get_seq_length()
    a_position = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / read
    assert text["cache_bytes"] == text["positions"] * a_position
    written = tmp_path / "performance" / "page.md"
    setup = {**SETUP, **measuring.machine_facts("cpu")}
    real_weights.write_page({"rows": rows, "fingerprint": "abc", "setup": setup}, written)
    said = written.read_text()
    assert f"| 64 | rate 4 | {fine['positions']} | " in said
    assert "an answer from memories at rate 16 comes" in said
    assert said.count("\n| ") == len(rows) + 1


def test_every_script_runs_and_the_page_holds_them_all(tmp_path, monkeypatch):
    """`make bench` in small; the gateway's part, which needs a process, from made-up figures."""
    from test_gateway_load import LOAD

    monkeypatch.setattr(against_published, "SEGMENTS", 2)
    monkeypatch.setattr(against_published, "BATCH_TOKENS", (64,))
    monkeypatch.setattr(against_published, "compile_encoder", compile_quickly)
    monkeypatch.setattr(scaling, "QUESTIONS", (1, 3))
    shared = ["--preset", "tiny", "--repeats", "1", "--output", str(tmp_path)]
    own = {
        table_a7: ["--rows", "1x48", "1x64"],
        against_published: ["--segments", "2"],
        training_throughput: ["--texts", "1", "--rates", "4"],
        scaling: ["--most", "2048", "--asked-tokens", "64"],
        alternatives: ["--tokens", "64"],
    }
    for module, options in own.items():
        monkeypatch.setattr(sys, "argv", ["script", *shared, *options])
        module.main()
    load = {"load": LOAD, "setup": {**SETUP, **measuring.machine_facts("cpu"), "took_seconds": 1}}
    (tmp_path / "gateway_load.json").write_text(json.dumps(load))
    speed = tmp_path / "docs" / "speed.md"
    monkeypatch.setattr(sys, "argv", ["page", "--results", str(tmp_path), "--page", str(speed)])
    page.main()
    text = speed.read_text()
    for name, heading in {
        "table_a7": "## Table A7",
        "against_published": "## Compression against",
        "training_throughput": "## Training against",
        "scaling": "## Scaling",
        "alternatives": "## Alternatives",
        "gateway_load": "## The gateway under load",
    }.items():
        assert heading in text
        assert f"`benchmarks/{name}.py` was not run" not in text
    told = text.partition("## In short")[2].partition("## How it")[0]
    assert told.count("\n- **") == 6
    assert "minutes of `make bench` (at most) | 20 |" in text
    trained = json.loads((tmp_path / "training_throughput.json").read_text())
    (target,) = training_throughput.bars(trained)
    # Shapes as small as these are sometimes fast enough; only what was missed has its reason.
    assert (target["why"] in text) == (target["found"] < target["wanted"])
    for picture in ("table-a7", "table-a7-memory", "against-published", "scaling", "alternatives"):
        assert f"(speed/{picture}.png)" in text
        assert (speed.with_suffix("") / f"{picture}.png").stat().st_size > 1000
