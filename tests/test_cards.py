"""The model card: golden files, metadata that the Hub's own code reads back, a snippet that runs.

After a change that is meant, write the golden files again: MEMSLOTS_WRITE_GOLDEN=1 pytest <this>.
"""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import (
    ModelCardData,
    eval_results_to_model_index,
    model_index_to_eval_results,
)
from transformers import GPT2Config, LlamaConfig

import memslots
from lab import sources  # noqa: F401, whose kinds are named below
from lab.recipes import lab_recipe
from memslots.checkpoints import ASSETS
from memslots.cli import main
from memslots.configuration import load_recipe
from memslots.evaluation.demo import demo_paragraphs
from memslots.hub_cards.checkpoint_facts import (
    count_parameters,
    gather_facts,
    hub_id,
    without_paths,
)
from memslots.hub_cards.model_card import PLACEHOLDER, build_card, write_card
from memslots.making import new_compressor
from memslots.modeling import MemslotsConfig
from memslots.modeling.memory_files_memslots import FORMAT_VERSION
from memslots.trainer.run import run_recipe

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]
FINGERPRINT = "ab" * 32
MACHINE = {"hardware": "2 CPU cores", "torch": "2", "transformers": "5", "dtype": "float32"}


def share(right, n):
    return {"right": right, "n": n, "share": right / n, "low": 0.9 * right / n, "high": 1.0}


def condition(right, **more):
    facts = {"name": share(right, 10)}
    part = {"all": share(right, 10), "words": share(right, 10), "numbers": share(right, 10)}
    return {**part, "facts": facts, "seconds": 0.5, **more}


def tiny_results():
    one = {
        "plain": condition(10),
        "memory": {"4": condition(9), "16": condition(5)},
        "another": condition(1, rate=4),
        "none": condition(0),
    }
    back = {"tokens": 40, "tokens_right": 0.75, "tokens_aligned": 0.8}
    counts = {"decoder_tokens": 40.0, "slots": 10.0, "positions": 12.0, "effective_rate": 3.33}
    return {
        "suite": "tiny",
        "seed": 1,
        "questions": 10,
        "checkpoint": {"fingerprint": FINGERPRINT},
        "one_person": one,
        "reconstruction": {r: {**back, "segments_exact": share(3, 4)} for r in ("4", "16")},
        "slots": {"4": counts, "16": counts},
        "machine": MACHINE,
        "seconds": 3.0,
    }


def record(task, data, metric, value, condition="memory", rate=4, **more):
    scored = {"metric": metric, "value": value, "low": value - 0.1, "high": value + 0.1, "n": 20}
    where = {"task": task, "data": data, "condition": condition, "rate": rate, "length": None}
    return {**where, **scored, "positions": 12.5, **more}


def task_results():
    return {
        "suite": "tasks",
        "records": [
            record("qa", "squad/paper_test", "f1", 0.75),
            record("qa", "squad/paper_test", "f1", 0.5, rate=16),
            record("qa", "squad/paper_test", "f1", 0.875, condition="full", rate=None),
            record("reconstruction", "fineweb/train", "bleu", 62.5),
            record("reconstruction", "fineweb/train", "exact", 0.25),
            record("completion", "text/train", "perplexity", 9.5, length=512),
            record("needle", "pg19/validation", "found", 1.0, length=512, kind="number", depth=0.5),
        ],
        "notes": ["squad/paper_test from /home/somebody/copies/squad.json: 20 of 20 kept"],
        "rates": [4, 16],
        "samples": 20,
        "seed": 0,
        "checkpoint": {"fingerprint": FINGERPRINT},
        "machine": MACHINE,
        "seconds": 3.0,
    }


def config(**settings):
    encoder = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=512, vocab_size=100)
    decoder = LlamaConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        vocab_size=90,
    )  # fmt: skip
    defaults = {"compression_rates": [4, 16], "segment_length": 256, "fingerprint": FINGERPRINT}
    return MemslotsConfig(
        encoder_config=encoder, decoder_config=decoder, **{**defaults, **settings}
    )


def write(folder, results=None, recipe=None, card=None):
    folder.mkdir(parents=True, exist_ok=True)
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


def bare(folder):
    return build_card(config(fingerprint=None), write(folder))


def embedded(folder):
    write(folder, tiny_results(), lab_recipe("tiny"), "---\nlicense: apache-2.0\n---\n")
    (folder / "handler.py").touch()
    return build_card(config(bundle_decoder=True), folder, "me/tiny")


def adapter(folder):
    write(folder / "finetune_qa", task_results(), load_recipe("pcc_large"))
    return build_card(
        config(
            encoder_name_or_path="meta-llama/Meta-Llama-3-8B-Instruct",
            decoder_name_or_path="Qwen/Qwen3-8B",
            encoder_lora={"r": 2, "target_modules": ["c_attn"]},
            encoder_is_causal=False,
            dtype="bfloat16",
        ),
        folder / "finetune_qa",
        "me/adapter",
        license="mit",
    )


CARDS = {"bare": bare, "embedded": embedded, "adapter": adapter}


@pytest.fixture(params=CARDS)
def card(request, tmp_path):
    return request.param, CARDS[request.param](tmp_path)


def test_golden(card):
    name, made = card
    text = str(made).replace(f"{{{memslots.__version__}}}", "{VERSION}")
    text = text.replace(f"memory, version {FORMAT_VERSION})", "memory, version FORMAT)")
    if os.environ.get("MEMSLOTS_WRITE_GOLDEN"):
        (GOLDEN / f"card_{name}.md").write_text(text, "utf-8")
    assert text == (GOLDEN / f"card_{name}.md").read_text("utf-8")


def test_metadata_is_what_the_hubs_code_reads(card, tmp_path):
    name, made = card
    made.save(tmp_path / "card.md")
    metadata = metadata_load(tmp_path / "card.md")
    assert ModelCardData(**metadata).to_dict() == metadata
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "question-answering"
    assert all(set(example) == {"text", "context"} for example in metadata["widget"])
    assert ("model-index" in metadata) == (name != "bare")
    if name != "bare":
        model_name, entries = model_index_to_eval_results(metadata["model-index"])
        assert eval_results_to_model_index(model_name, entries) == metadata["model-index"]
        assert {entry.metric_args["rate"] for entry in entries} <= {4, 16}
    again = ModelCard.load(tmp_path / "card.md")
    assert str(again) == str(made)


def test_a_card_tells_of_what_acts_on_the_decoder_and_stands_beside_the_slots(tmp_path):
    given = {"decoder_lora": {"r": 2}, "literals": ["numbers", "dates"]}
    card = str(build_card(config(pooling="mean", **given), tmp_path))
    assert "a LoRA adapter of this checkpoint (rank 2) acts on it" in card
    assert "Exact strings (numbers and dates) stay beside the slots" in card
    assert "the encoder, the converter, the markers and a LoRA adapter of the decoder" in card
    assert "memory tokens" not in card
    assert "`memory.at_rate` makes a coarser memory" in card


def test_what_is_not_known_is_not_there(tmp_path):
    card = bare(tmp_path)
    for key in ("license", "language", "datasets", "base_model", "metrics", "eval_results"):
        assert getattr(card.data, key) is None
    assert "base_model_relation" not in card.data
    for section in ("- Stage", "## Results", "fingerprint is", "recipe.yaml", "None"):
        assert section not in card.text
    assert "Nothing was measured" in card.text


def test_metadata_tells_of_data_and_models(tmp_path):
    data = adapter(tmp_path).data
    assert data.base_model == ["Qwen/Qwen3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"]
    assert data["base_model_relation"] == "adapter"
    # finetune_qa comes after warmup and pretrain; the recipe's other fine-tunings are not in it.
    assert data.datasets == ["HuggingFaceFW/fineweb", "rajpurkar/squad_v2"]
    assert (data.language, data.license) == ("en", "mit")
    measured = {(r.dataset_type, r.dataset_split, r.metric_value) for r in data.eval_results}
    assert ("rajpurkar/squad_v2", "paper_test", 0.75) in measured
    assert 0.875 not in {value for _, _, value in measured}  # the full text's


def test_local_paths_never_land_in_a_card(tmp_path):
    (tmp_path / "llms" / "decoder").mkdir(parents=True)
    local = str(tmp_path / "llms" / "decoder")
    recipe = load_recipe("pcc_lite")
    recipe["compressor"].update(encoder=local, decoder=local)
    results = task_results()
    results["checkpoint"]["decoder"] = {"name": local}
    results["notes"] += [f"personas ({local}): 20 kept", "see ~/copies or ../shared/x.json"]
    folder = write(tmp_path / "adapt_qa", results, recipe)
    made = build_card(config(decoder_name_or_path=local, encoder_name_or_path=local), folder)
    for private in (str(tmp_path), "llms", "/home/somebody", "~/copies", "../shared"):
        assert private not in str(made)
    assert made.data.base_model is None
    assert "20 of 20 kept" in made.text


def test_hub_ids_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "decoder").mkdir(parents=True)
    assert hub_id("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert hub_id("gpt2") == "gpt2"
    for local in (None, "runs/decoder", "./x", "/models/llama", "~/llama", "a/b/c", "C:\\llm"):
        assert hub_id(local) is None
    kept = "squad/test from rajpurkar/squad_v2 at https://huggingface.co/x: 1/2 kept"
    assert without_paths([kept, "from /data/my file"]) == [kept, "from a local copy file"]


def test_the_card_of_smol_says_how_long_it_was_trained_and_what_it_reaches(tmp_path):
    folder = ASSETS / "smol"
    made = str(build_card(MemslotsConfig.from_pretrained(folder), folder, "me/smol"))
    last = json.loads((folder / "curve.jsonl").read_text("utf-8").splitlines()[-1])
    assert "# Memory slots for SmolLM2-135M-Instruct" in made
    assert f"- Length: {last['step']:,} steps over {last['seen']:,} tokens" in made
    assert f"before each: {last['held out']['r2/64'][1]:.0%} at rate 2, " in made
    assert "Answers to questions were not measured" in made
    record = json.loads((folder / "training.json").read_text("utf-8"))
    assert f"- Data: {'; '.join(record['data'])}." in made
    assert f"- Runs: {', then '.join(record['runs'])}." in made
    tokens = sum(float(run.partition(" M tokens")[0]) for run in record["runs"])
    assert f"{tokens:.1f}" == f"{last['seen'] / 1e6:.1f}", "say in training.json how it was trained"
    if "WordNet" in made:  # whose licence stands beside what was made of it
        assert "Princeton University" in (folder / "NOTICE").read_text("utf-8")
    assert "person" not in made
    (tmp_path / "curve.jsonl").write_text("{")
    with pytest.raises(ValueError, match="not a curve of training"):
        build_card(config(), tmp_path)
    (tmp_path / "curve.jsonl").unlink()
    (tmp_path / "training.json").write_text('{"data": ["books"]}')
    with pytest.raises(ValueError, match=r"training\.json must hold the lists `data` and `runs`"):
        build_card(config(), tmp_path)


def test_no_card_shows_internal_targets(tmp_path):
    for name, make in CARDS.items():
        assert "required" not in str(make(tmp_path / name))


def test_results_of_another_compressor_are_left_out(tmp_path, caplog):
    folder = write(tmp_path, tiny_results())
    made = build_card(config(fingerprint="cd" * 32), folder)
    assert "## Results" not in made.text
    assert made.data.eval_results is None
    assert "results.json is of compressor abababababab" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [("results.json", "{"), ("results.json", "[]"), ("recipe.yaml", "a: ["), ("recipe.yaml", "1")],
)
def test_unreadable_files_are_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        build_card(config(), tmp_path)


def test_stage_is_not_guessed(tmp_path):
    recipe = load_recipe("pcc_lite")  # has several last stages
    folder = write(tmp_path / "renamed", recipe=recipe)
    assert gather_facts(config(), folder).stages == ()
    folder = write(tmp_path / "renamed", recipe={**recipe, "stage": "pretrain"})
    assert [stage.name for stage in gather_facts(config(), folder).stages] == ["warmup", "pretrain"]


def test_an_earlier_cards_licence_is_kept_and_can_be_changed(tmp_path):
    write(tmp_path, card="---\nlicense: mit\nlanguage: de\ntags: [mine]\n---\nold text")
    made = build_card(config(), tmp_path)
    assert (made.data.license, made.data.language) == ("mit", "de")
    assert "old text" not in str(made)
    assert build_card(config(), tmp_path, license="apache-2.0").data.license == "apache-2.0"


def python_blocks(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)


def test_snippets_run_as_they_stand(zoo, model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "copy")
    write_card(model, tmp_path / "copy", "me/model")
    card = (tmp_path / "copy" / "README.md").read_text("utf-8")
    blocks = python_blocks(card)
    assert len(blocks) == 2
    printed = []
    for block in blocks:
        assert block.count('"me/model"') == 1
        assert 'revision="main"' in block
        capsys.readouterr()
        exec(block.replace("me/model", str(tmp_path / "copy")), {})
        printed.append(capsys.readouterr().out.strip())
    assert printed[0].startswith("Memory(1 document, ")
    assert "'answer': " in printed[1]


def test_example_is_of_the_embedded_checkpoints_kind(tmp_path):
    (code, _) = python_blocks(str(embedded(tmp_path)))
    values = {}
    exec(code[code.index("context = (") : code.index("memory =")], values)
    assert values["context"] == demo_paragraphs()[0]


def test_citation_is_that_of_the_repository():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["references"][0]
    template = (ROOT / "src/memslots/hub_cards/model_card.md.jinja").read_text("utf-8")
    assert cited["title"] in template
    people = [f"{a['family-names']}, {a['given-names']}" for a in cited["authors"]]
    assert " and ".join(people) in template


def test_card_without_a_name_says_where_to_put_it(model, tmp_path):
    write_card(model, tmp_path / "new")
    card = (tmp_path / "new" / "README.md").read_text("utf-8")
    assert f'"{PLACEHOLDER}"' in card
    assert str(tmp_path) not in card


# -- command line ----------------------------------------------------------------------------------


def test_card_command(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "c")
    asked = ["card", "--model", str(tmp_path / "c"), "--repo", "me/model", "--license", "mit"]
    assert main([*asked, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "c" / "README.md").exists()
    assert main(asked) == 0
    capsys.readouterr()
    card = ModelCard.load(tmp_path / "c" / "README.md")
    assert str(card).strip() == printed.strip()
    assert card.data.license == "mit"
    assert main(["card", "--model", str(tmp_path)]) == 2
    assert "it has no config.json" in capsys.readouterr().err


def test_train_hands_the_card_writer_over(tmp_path, monkeypatch):
    handed = []
    monkeypatch.setattr(
        "memslots.trainer.run.run_recipe",
        lambda recipe, output, *rest, **more: handed.append((rest, more)) or output,
    )
    assert main(["train", "pcc_lite", "--output", str(tmp_path)]) == 0
    ((rest, more),) = handed
    assert write_card in rest or more.get("card_writer") is write_card


def test_every_stage_of_a_recipe_gets_its_card(zoo, tmp_path):
    stage = {"data": [{"kind": "personas", "rows": 4, "people": 1, "questions": 1}]}
    stage["training"] = {"max_steps": 1, "use_cpu": True, "report_to": "none"}
    recipe = {
        "compressor": {
            "seed": 0,
            "encoder": zoo.folder("gpt2", "encoder"),
            "decoder": zoo.folder("llama", "decoder"),
            "config": {"compression_rates": [4], "segment_length": 64},
            "training": {"per_device_train_batch_size": 2, "disable_tqdm": True},
            "stages": [{"name": "first", **stage}, {"name": "second", **stage}],
        }
    }
    last = run_recipe(recipe, tmp_path, card_writer=write_card)
    first = ModelCard.load(tmp_path / "compressor" / "first" / "README.md")
    second = ModelCard.load(last / "README.md")
    assert "- Stage first, 1 step: " in first.text
    assert "- Stage second" not in first.text
    assert "- Stage second, 1 step: " in second.text
    assert (second.data.language, second.data.base_model) == ("en", None)
    assert str(tmp_path) not in str(second)
    assert zoo.folder("llama", "decoder") not in str(second)


def test_the_layers_that_encoder_and_decoder_share_are_counted_once(zoo, tmp_path):
    shared = {"pooling": "groups", "converter_type": "residual", "encoder_layers": 1}
    model = new_compressor("decoder", zoo.folder("llama", "decoder"), **shared)
    counted = count_parameters(model.config)
    assert counted["frozen"] == sum(p.numel() for p in model.decoder.parameters())
    assert counted["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    card = str(build_card(model.config, tmp_path))
    assert f"Frozen: {counted['frozen']:,} parameters (the decoder, whose first layers" in card
