"""The capacity tables: texts, cells that run once, error patterns, structure, and the page."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import words

from lab import sources  # noqa: F401, whose kinds are named below
from lab.__main__ import lab
from lab.capacity import runs
from lab.capacity.chunk_runs import run_chunks
from lab.capacity.chunks import (
    draw_chunks,
    read_chunks,
    reconstruction_accuracy,
    write_split,
)
from lab.capacity.error_patterns import error_patterns, frequency_band, place, token_kind
from lab.capacity.plots import mean_gain
from lab.capacity.report import load_records, write_capacity_page, write_compressors_page
from lab.capacity.texts import CapacityTexts
from lab.capacity.vector_structure import interpolate, nearest_embeddings, reach_of_ends
from memslots.configuration import load_recipe
from memslots.cramming import (
    CrammingSettings,
    Reading,
    cram,
    load_frozen_decoder,
)
from memslots.data import load_rows
from memslots.modeling.layout_memslots import RECONSTRUCTION, Prompt, Row

CAPACITY = Path(runs.__file__).with_name("capacity.yaml")
SETTINGS = {
    "decoders": ["tiny"],
    "optimiser": {"max_steps": 6, "patience": 6},
    "lengths": [1, 2, 3],
    "texts": 2,
    "searches": [
        {"methods": ["mem", "dense"], "source": "books", "seeds": 2},
        {
            "methods": ["mem"],
            "source": "books",
            "seeds": 1,
            "first_token": False,
        },
        {"methods": ["mem"], "source": "books", "seeds": 1, "start_token": True},
        {
            "methods": ["lora"],
            "source": "random",
            "seeds": 1,
            "targets": ["qk", "vo"],
            "ranks": [1, 2],
        },
    ],
    "structure": {"method": "dense", "texts": 2, "seeds": 2, "length": 1},
}


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("books") / "books-validation.jsonl"
    sentences = [words(12, seed).capitalize() + "." for seed in range(200)]
    rows = [" ".join(sentences[:100]), " ".join(sentences[100:])]
    file.write_text("\n".join(json.dumps({"text": text}) for text in rows))
    return str(file)


@pytest.fixture(scope="module")
def folder(zoo) -> str:
    return zoo.folder("llama", "decoder")


@pytest.fixture(scope="module")
def decoder(folder):
    return load_frozen_decoder(folder)


@pytest.mark.parametrize("source", ["books", "random", "personas"])
def test_a_shorter_text_is_a_longer_ones_head(books, decoder, source):
    texts = CapacityTexts(books)
    long, short = (texts.ids(source, decoder, 3, length) for length in (20, 7))
    assert [ids[:7] for ids in long] == short
    assert all(len(ids) == 20 for ids in long)
    assert len({tuple(ids) for ids in long}) == 3
    assert texts.ids(source, decoder, 3, 20) == long
    assert CapacityTexts(books, seed=1).ids(source, decoder, 3, 20) != long


def test_books_begin_with_a_sentence_and_sources_are_named(books, decoder):
    texts = CapacityTexts(books)
    for ids in texts.ids("books", decoder, 4, 20):
        assert decoder.tokenizer.decode(ids)[0].isupper()
    with pytest.raises(ValueError, match="must be one of books, random, personas"):
        texts.ids("poems", decoder, 1, 5)
    with pytest.raises(ValueError, match="fewer than 100000"):
        texts.ids("personas", decoder, 1, 100_000)


@pytest.fixture(scope="module")
def cells(folder, books):
    return runs.plan_cells(SETTINGS, {"tiny": folder}, books)


@pytest.fixture(scope="module")
def results(cells, books, tmp_path_factory):
    output = tmp_path_factory.mktemp("cells")
    runs.run_cells(cells, output, books, workers=1)
    return output


def test_every_cell_has_a_file_and_none_runs_twice(cells, results, books, monkeypatch):
    files = [runs.cell_file(cell, results) for cell in cells]
    assert not any(
        cell["decoder_folder"] in file.read_text("utf-8") for file in files for cell in cells
    ), "a cell that is committed tells no path"
    assert len(set(files)) == len(cells) == 4 + 1 + 1 + 4 + 1
    assert sorted(results.glob("s*")) == sorted(files)
    monkeypatch.setattr(runs, "run_cell", lambda *_: pytest.fail("ran again"))
    runs.run_cells(cells, results, books, workers=1)


def test_what_a_result_depends_on_names_its_file(cells, folder, books, results, zoo):
    names = {runs.cell_file(cell, results).name for cell in cells}
    for change in ({"optimiser": {"max_steps": 7}}, {"lengths": [1, 2, 4]}):
        other = runs.plan_cells({**SETTINGS, **change}, {"tiny": folder}, books)
        changed = {runs.cell_file(cell, results).name for cell in other}
        assert names - changed
    weights = runs.plan_cells(SETTINGS, {"tiny": zoo.folder("gpt2", "decoder")}, books)
    assert not names & {runs.cell_file(cell, results).name for cell in weights}


def test_a_method_may_have_a_learning_rate_of_its_own(cells, folder, books):
    settings = {**SETTINGS, "learning_rates": {"dense": 0.03}}
    for cell, before in zip(runs.plan_cells(settings, {"tiny": folder}, books), cells, strict=True):
        rate = runs.settings_of(cell).learning_rate
        assert rate == (0.03 if cell["method"] == "dense" else 0.01)
        same = runs.cell_file(cell, Path()) == runs.cell_file(before, Path())
        assert same == (cell["method"] != "dense")


def test_a_cell_that_was_broken_off_leaves_nothing(cells, books, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_search", broken)
    with pytest.raises(KeyboardInterrupt):
        runs.run_cells(cells[:1], tmp_path, books, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_search_goes_on_from_the_lengths_that_it_had(cells, books, tmp_path, monkeypatch):
    cram_texts, lengths = runs.cram, []

    def broken(decoder, texts, *rest):
        lengths.append(len(texts[0]))
        if lengths == [1, 2]:
            raise KeyboardInterrupt
        return cram_texts(decoder, texts, *rest)

    monkeypatch.setattr(runs, "THRESHOLD", 0.0)
    monkeypatch.setattr(runs, "cram", broken)
    with pytest.raises(KeyboardInterrupt):
        runs.run_cells(cells[:1], tmp_path, books, workers=1)
    runs.run_cells(cells[:1], tmp_path, books, workers=1)
    assert lengths == [1, 2, 2, 3]
    result = json.loads(runs.cell_file(cells[0], tmp_path).read_text())["result"]
    assert list(result["lengths"]) == ["1", "2", "3"]


def test_a_search_says_what_it_measured(cells, results):
    record = json.loads(runs.cell_file(cells[0], results).read_text())
    result = record["result"]
    assert record["decoder"]["width"] == 32
    means = {
        int(length): {
            key: sum(text[key] for text in texts) / len(texts)
            for key in texts[0]
            if key != "stopped"
        }
        for length, texts in result["lengths"].items()
    }
    assert result["token_gain"] == max(values["token_gain"] for values in means.values())
    assert result["utilisation"] == result["token_gain"] / record["decoder"]["capacity"]
    longest = result["longest_length"]
    for length, values in means.items():
        assert (values["accuracy"] >= 0.99) == (length <= longest)
        assert values["token_gain"] == pytest.approx(
            length * (values["accuracy"] - values["without"]), abs=1e-3
        )
    too_long = [length for length in means if length > longest]
    assert len(result["errors"]) == len(too_long)
    for length, errors in zip(too_long, result["errors"], strict=True):
        for table in ("kind", "position"):
            assert sum(c["tokens"] for c in errors[table].values()) == 2 * length


def test_the_page_has_every_table_and_picture(cells, results, tmp_path):
    records = load_records(runs.cell_file(cell, results) for cell in cells)
    page = tmp_path / "capacity.md"
    write_capacity_page(records, page)
    text = page.read_text()
    assert "| tiny | books | mem |" in text
    assert "| 80 / 96 |" in text
    assert "lora vo r=2" in text
    assert "| tiny | books | mem | 1 to N, behind BOS |" in text
    assert "that is a slip, it is 787" in text
    for heading in (
        "Table 1",
        "Accuracy by length",
        "Errors",
        "Figure 2",
        "Figure 3",
        "What the vectors",
    ):
        assert f"## {heading}" in text
    for picture in ("capacity-utilisation.png", "capacity-cross-entropy.png"):
        assert picture in text
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    write_capacity_page(records[:3], page, missing=9)
    assert "**9 of the planned measurements have not been run yet**" in page.read_text()


def test_the_command_goes_on_where_it_was(books, folder, tmp_path, capsys, monkeypatch):
    section = {**SETTINGS, "decoders": ["tiny"]}
    section["searches"] = [{**SETTINGS["searches"][0], "seeds": 1}]
    file = tmp_path / "capacity.yaml"
    file.write_text(yaml.safe_dump({"capacity": section}))
    monkeypatch.setattr("lab.capacity.command.resolve_model", lambda name: folder)
    command = ["capacity", "--books", books, "--output", str(tmp_path / "run")]
    command += ["--settings", str(file), "--workers", "1"]
    assert lab([*command, "--only", "search", "--at-most", "1"]) == 0
    assert "1 of 3 cells" in capsys.readouterr().out
    assert lab([*command, "--dry-run"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed].count("done") == 1
    assert lab([*command, "--only", "search"]) == 0
    assert "2 of 3 cells" in capsys.readouterr().out
    assert lab([*command, "--only", "nonsense"]) == 2
    assert "no cell's name holds that" in capsys.readouterr().err


def test_the_packaged_settings_plan_every_table(books, folder):
    recipe = load_recipe(CAPACITY)
    cells = runs.plan_cells(recipe["capacity"], {"smollm2": folder}, books)
    for cell in cells:
        runs.settings_of(cell)
    searches = [cell for cell in cells if cell["kind"] == "search"]
    for method, source, start_token, n_seeds in (
        ("mem", "books", True, 5),
        ("dense", "books", True, 5),
        ("mem", "random", True, 5),
        ("dense", "random", True, 5),
        ("lora", "books", True, 1),
        ("mem", "books", False, 1),
        ("dense", "books", False, 1),
    ):
        asked = {"method": method, "source": source}
        seeds = {
            cell["seed"]
            for cell in searches
            if asked.items() <= cell.items() and cell.get("start_token", False) == start_token
        }
        assert seeds == set(range(n_seeds)), asked


def test_kinds_places_and_bands_of_tokens(decoder):
    tokenizer = decoder.tokenizer
    kinds = {
        text: token_kind(tokenizer, tokenizer.encode(text)[0]) for text in (" t", "t", ",", "3")
    }
    assert kinds == {" t": "word start", "t": "word part", ",": "punctuation", "3": "number"}
    assert token_kind(tokenizer, tokenizer.encode("\n")[0]) == "white space"
    assert [place(i, 9) for i in (0, 1, 4, 8)] == ["token 1", "quarter 1", "quarter 2", "quarter 4"]
    ranks = {5: 1, 6: 11, 7: 5000}
    bands = [frequency_band(index, ranks) for index in (5, 6, 7, 8)]
    assert bands == ["rank 1 to 10", "rank 11 to 100", "rank over 1000", "not seen"]


def test_errors_are_counted_three_ways(decoder):
    ids = tuple(decoder.encode("The treaty, signed"))
    wrong = ids[1]
    reading = Reading(
        ids=ids,
        predicted=(*ids[:-1], wrong),
        losses=(0.1,) * len(ids),
        produced=(ids[0], *[ids[0]] * (len(ids) - 1)),
        bare_losses=(1.0,) * len(ids),
        bare_right=(False,) * len(ids),
        right_at_16_bit=len(ids),
    )
    found = error_patterns([reading, reading], decoder.tokenizer, [*ids, ids[0]])
    for table in ("position", "frequency", "kind"):
        cells = found[table].values()
        assert sum(c["tokens"] for c in cells) == 2 * len(ids)
        assert sum(c["wrong"] for c in cells) == found["wrong"] == 2
        assert sum(c["free_wrong"] for c in cells) == 2 * (len(ids) - ids.count(ids[0]))
    assert found["position"]["quarter 4"]["wrong"] == 2
    assert found["wrong_from_text"] == 2


def test_neighbours_of_an_embedding_are_itself_first(decoder):
    ids = torch.tensor([20, 33])
    vectors = decoder.embed(ids).unsqueeze(1) * 3
    found = nearest_embeddings(decoder, vectors, [[20, 21], [40]], nearest=1)
    for entry, index in zip(found, ids.tolist(), strict=True):
        assert entry["tokens"][0][0] == [decoder.tokenizer.decode([index]), 1.0]
    assert [entry["in_text"] for entry in found] == [1.0, 0.0]
    assert found[0]["in_text_by_chance"] == pytest.approx(2 / decoder.vocabulary, abs=1e-4)
    whole = decoder.embed(torch.arange(decoder.vocabulary)).norm(dim=-1).mean()
    assert found[0]["norm"] == pytest.approx((vectors[0].norm() / whole).item(), abs=1e-3)


def test_interpolation_gives_the_texts_at_its_ends(decoder):
    texts = [decoder.encode("The treaty was")[:2], decoder.encode("Rivers rise in")[:2]]
    settings = CrammingSettings(max_steps=400, patience=400, learning_rate=0.05)
    one, other = cram(decoder, texts, settings)
    assert one.stopped == other.stopped == "exact"
    points = interpolate(decoder, one.kept["vectors"], other.kept["vectors"], *texts, steps=5)
    assert (points[0]["first"], points[-1]["second"]) == (1.0, 1.0)
    assert points[0]["text"] == decoder.tokenizer.decode(texts[0])
    assert [point["weight"] for point in points] == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(ValueError, match="steps=1"):
        interpolate(decoder, one.kept["vectors"], other.kept["vectors"], *texts, steps=1)
    with pytest.raises(ValueError, match="as many vectors"):
        interpolate(decoder, torch.zeros(1, 32), torch.zeros(2, 32), *texts)


def test_reach_stops_at_the_first_break():
    points = [
        {"weight": w, "first": f, "second": s}
        for w, f, s in ((0, 1, 0), (0.25, 1, 0), (0.5, 0, 0), (0.75, 1, 1), (1, 0, 1))
    ]
    assert reach_of_ends(points) == {"first": 0.25, "second": 0.25}


def test_the_line_of_figure_3_is_fitted_where_information_is_lost():
    points = [
        {"bare": 5.0, "with_memory": 0.01, "accuracy": 1.0},
        {"bare": 50.0, "with_memory": 20.0, "accuracy": 0.7},
        {"bare": 60.0, "with_memory": 40.0, "accuracy": 0.5},
    ]
    assert mean_gain(points) == 25
    assert mean_gain(points[:1]) is None


@pytest.fixture(scope="module")
def chunk_books(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("chunk_books") / "books-train.jsonl"
    file.write_text(json.dumps({"text": words(3000)}) + "\n" + json.dumps({"text": words(3000, 1)}))
    return str(file)


def test_chunks_are_distinct_of_one_length_and_split_once(model, chunk_books, tmp_path):
    encoder = model.processor.encoder_text
    chunks = draw_chunks(chunk_books, encoder, 6, 100)
    assert len(set(chunks)) == 100
    assert draw_chunks(chunk_books, encoder, 6, 100) == chunks
    assert {len(encoder.encode(chunk)) for chunk in chunks} == {6}
    write_split(chunks, 20, tmp_path)
    train, test = read_chunks(tmp_path, "train"), read_chunks(tmp_path, "test")
    assert (train, test) == (chunks[:80], chunks[80:])
    assert [row["text"] for row in load_rows("jsonl", "train", data_dir=str(tmp_path))] == train
    with pytest.raises(ValueError, match="fewer than 100000"):
        draw_chunks(chunk_books, encoder, 6, 100_000)
    with pytest.raises(ValueError, match="test=100"):
        write_split(chunks, 100, tmp_path)


def test_reconstruction_accuracy_is_the_training_loss_hits(model):
    """Against the model's own forward pass on reconstruction rows, text by text."""
    texts = ["The treaty was signed", "Carmen owns maps: one, two", "Rivers"]
    found = reconstruction_accuracy(model, texts, batch_size=2)
    right = total = exact = 0
    processor = model.processor
    for text in texts:
        memory = model.compress(text)
        target = processor.decoder_text.encode(text)
        row = Row([0], Prompt(processor.bos_ids), target, task=RECONSTRUCTION)
        inputs = model.row_inputs([row], memory)
        labels = inputs.pop("labels")
        guesses = model.decoder(**inputs).logits[0, -len(target) - 1 : -1].argmax(-1).tolist()
        assert labels[0, -len(target) :].tolist() == target
        hits = [a == b for a, b in zip(guesses, target, strict=True)]
        right, total, exact = right + sum(hits), total + len(hits), exact + all(hits)
    assert (found["tokens"]["right"], found["tokens"]["n"]) == (right, total)
    assert (found["chunks"]["right"], found["chunks"]["n"]) == (exact, 3)


def test_table_2_trains_once_and_stands_on_the_page(chunk_books, tmp_path):

    recipe = load_recipe(
        CAPACITY,
        ["chunks.recipe.compressor.training.per_device_train_batch_size=2"],
    )
    section = recipe["chunks"]
    section["columns"] = [column for column in section["columns"] if "PCC" in column["name"]]
    section["sizes"] = [{"chunks": 40, "test": 8, "max_steps": 2}]
    told = []
    (record,) = run_chunks(section, tmp_path, chunk_books, told.append)
    assert len(told) == 1
    assert record["test"]["slots"] == record["test"]["chunks"]["n"] == 8
    (again,) = run_chunks(section, tmp_path, chunk_books, told.append)
    assert again == record
    assert len(told) == 1
    page = tmp_path / "capacity_compressors.md"
    write_compressors_page([record], page)
    assert "| PCC converter | 40 | 8 |" in page.read_text()


def test_table_2_has_the_reports_columns_at_its_sizes(chunk_books, tmp_path):

    recipe = load_recipe(
        CAPACITY,
        ["chunks.recipe.compressor.training.per_device_train_batch_size=2"],
    )
    section = recipe["chunks"]
    columns = section["columns"]
    small, large = (size["chunks"] for size in section["sizes"])
    trained = [(c["name"], n) for n in (small, large) for c in columns if n in c.get("only", [n])]
    seed = [f"{kind} (layers = {n})" for n in (1, 4) for kind in ("AE", "VAE")]
    regularised = [f"{kind} (layers = 4, reg)" for kind in ("AE", "VAE")]
    assert [name for name, n in trained if n == small][:6] == [*seed, *regularised]
    assert [name for name, n in trained if n == large] == [*regularised, "PCC converter"]
    for column in columns:
        config = column["config"]
        if column["name"] in (*seed, *regularised):
            assert config["converter_type"] == ("vae" if "VAE" in column["name"] else "autoencoder")
            assert config.get("converter_layers", 1) == (1 if "1" in column["name"] else 4)
            assert config.get("converter_regularization", False) == ("reg" in column["name"])
    section["columns"] = [{**columns[5], "only": [48]}]
    section["sizes"] = [{"chunks": n, "test": 8, "max_steps": 1} for n in (40, 48)]
    (record,) = run_chunks(section, tmp_path, chunk_books, lambda line: None)
    assert (record["column"], record["size"]["chunks"]) == (regularised[1], 48)
    assert record["test"]["slots"] == 8
