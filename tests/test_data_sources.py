"""Where rows come from: the Hub, local copies under their names, plain files; and bad input."""

import gzip
import json
from pathlib import Path

import pytest
from dataset_rows import ROWS, FakeHub, assert_counted
from datasets import Dataset

from lab import sources  # noqa: F401, which names stand-ins
from memslots.data import DataNotFound, load_rows, raw_rows, source_rows


@pytest.mark.parametrize(
    ("name", "split", "file", "asked", "streaming"),
    [
        ("hotpotqa", "validation", "hotpotqa.jsonl", ("hotpotqa/hotpot_qa", "distractor"), False),
        (
            "natural_questions",
            "validation",
            "natural_questions.jsonl",
            ("google-research-datasets/natural_questions", "default"),
            True,
        ),
    ],
)
def test_hub_rows_equal_local_rows(monkeypatch, name, split, file, asked, streaming):
    hub = FakeHub(ROWS / file)
    monkeypatch.setattr(raw_rows, "_load_dataset", lambda: hub)
    from_hub = load_rows(name, split)
    rows = list(from_hub)
    monkeypatch.undo()
    assert hub.calls == [(asked, {"split": split, "streaming": streaming})]
    local = load_rows(name, split, ROWS / file)
    assert rows == list(local)
    assert from_hub.report.bad == local.report.bad
    assert from_hub.report.source == f"{' '.join(asked)} {split}"


def test_the_caller_decides_about_streaming(monkeypatch):
    for name, streaming in (("fineweb", False), ("squad", True)):
        hub = FakeHub(ROWS / "pg19.jsonl")
        monkeypatch.setattr(raw_rows, "_load_dataset", lambda hub=hub: hub)
        load_rows(name, "train", streaming=streaming)
        assert hub.calls[0][1]["streaming"] is streaming


def test_a_set_with_a_loading_script_is_read_from_its_parquet_copy(monkeypatch):
    script = RuntimeError("Dataset scripts are no longer supported, but found super_glue.py")
    hub = FakeHub(ROWS / "wsc.jsonl", [script])
    monkeypatch.setattr(raw_rows, "_load_dataset", lambda: hub)
    assert len(list(load_rows("wsc", "validation"))) == 2
    assert hub.calls[1][0] == ("parquet",)
    assert hub.calls[1][1]["data_files"] == {
        "train": "hf://datasets/aps/super_glue@refs/convert/parquet/wsc.fixed/validation/*.parquet"
    }


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    hub = FakeHub(ROWS / "wsc.jsonl", [ConnectionError("no route")])
    monkeypatch.setattr(raw_rows, "_load_dataset", lambda: hub)
    with pytest.raises(DataNotFound, match=r"no route.*data_dir=.*stand-in 'pronoun_pairs'"):
        load_rows("wsc", "validation")


@pytest.mark.parametrize(
    ("name", "split", "released_as", "row_file"),
    [
        ("squad", "train", "train-v2.0.json", "squad-release.json"),
        ("squad", "validation", "xquad-en-public.json", "squad-release.json"),
        ("adversarialqa", "validation", "combined/dev.json", "squad-release.json"),
        ("hotpotqa", "validation", "hotpot_dev_distractor_v1.json", "hotpotqa-release.json"),
        (
            "natural_questions",
            "train",
            "v1.0-simplified_simplified-nq-train.jsonl",
            "natural_questions-simplified.jsonl",
        ),
        (
            "natural_questions",
            "validation",
            "biencoder-nq-dev.json",
            "natural_questions-dpr.json",
        ),
        ("gsm8k", "test", "gsm8k-test.jsonl", "gsm8k.jsonl"),
        ("gsm8k", "train", "train.jsonl", "gsm8k.jsonl"),
        ("sst2", "validation", "sst2-dev.tsv", "sst2.tsv"),
        ("sst2", "train", "SST-2/train.tsv", "sst2-glue.tsv"),
        ("wsc", "validation", "WSC/val.jsonl", "wsc-release.jsonl"),
        ("hpd", "train", "en_train_set.json", "hpd-train.json"),
        ("pg19", "validation", "books-validation.jsonl", "pg19.jsonl"),
    ],
)
@pytest.mark.parametrize("inside", ["", "its own folder"])
def test_local_copies_are_found_by_their_names(
    tmp_path, name, split, released_as, row_file, inside
):
    text = (ROWS / row_file).read_text(encoding="utf-8")
    plain = tmp_path / "plain" / (name if inside else "") / released_as
    packed = tmp_path / "packed" / (name if inside else "") / f"{released_as}.gz"
    for file, opener in ((plain, open), (packed, gzip.open)):
        file.parent.mkdir(parents=True)
        (file.parent / "unrelated.jsonl").write_text("{}")
        with opener(file, "wt", encoding="utf-8") as out:
            out.write(text)
    direct = list(load_rows(name, split, ROWS / row_file))
    assert direct
    assert list(load_rows(name, split, tmp_path / "plain")) == direct
    loaded = load_rows(name, split, tmp_path / "packed")
    assert list(loaded) == direct
    assert loaded.report.source == packed.name


def test_all_shards_are_read_in_order(tmp_path):
    for number in (1, 0):
        Dataset.from_list([{"text": f"page {number}", "id": f"p{number}"}]).to_parquet(
            tmp_path / f"fineweb-train-{number}.parquet"
        )
    assert [row["id"] for row in load_rows("fineweb", "train", tmp_path)] == ["p0", "p1"]


def test_a_folder_of_books_gives_one_text_a_file(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "12.txt").write_text("I\n\nOne book.", encoding="utf-8")
    (folder / "7[a].txt").write_text("Another.", encoding="utf-8")
    assert list(load_rows("pg19", "train", tmp_path)) == [
        {"id": "12", "text": "I\n\nOne book."},
        {"id": "7[a]", "text": "Another."},
    ]


def test_plain_files_hold_texts_or_questions(tmp_path):
    rows = [
        {"text": "Only text.", "id": 7},
        {"context": "The door is red.", "question": "Which colour?", "answer": ["red", "scarlet"]},
        {
            "context": "It opens.",
            "question": "Does it?",
            "answer": "yes",
            "answers": ["yes", "Yes"],
        },
        {"context": "It opens.", "question": "Does it?"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    loaded = load_rows("jsonl", "train", tmp_path)
    first, second, third = loaded
    assert first == {"id": "7", "text": "Only text."}
    assert second["answers"] == ["red", "scarlet"]
    assert third["answers"] == ["yes", "Yes"]
    assert_counted(loaded, 3, {"no 'answer'": 1}, {})
    listed = tmp_path / "listed.json"
    listed.write_text(json.dumps(rows), encoding="utf-8")
    assert list(load_rows("jsonl", "train", listed)) == [first, second, third]
    lines = tmp_path / "lines.json"  # JSON lines under this name are common
    lines.write_text(file.read_text(), encoding="utf-8")
    assert list(load_rows("jsonl", "train", lines)) == [first, second, third]


def test_plain_parquet_and_text(tmp_path):
    Dataset.from_list([{"text": "One.", "id": "a"}, {"text": None, "id": "b"}]).to_parquet(
        tmp_path / "mine.parquet"
    )
    loaded = load_rows("parquet", "train", tmp_path)
    assert list(loaded) == [{"id": "a", "text": "One."}]
    assert_counted(loaded, 1, {"no 'text'": 1}, {})
    (tmp_path / "note.txt").write_text("Un mot.\n\nEt un autre.\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"note\.txt is read, and not mine\.parquet"):
        loaded = load_rows("text", "train", tmp_path)
    assert list(loaded) == [{"id": "note", "text": "Un mot.\n\nEt un autre.\n"}]


def test_plain_files_are_split_by_their_names_and_never_mixed(tmp_path):
    for name in ("train", "dev", "constraints"):
        (tmp_path / f"my-{name}.txt").write_text(name, encoding="utf-8")
    for split, text in (("train", "train"), ("validation", "dev")):
        with pytest.warns(UserWarning, match=rf"named {split!r}.* and not my-constraints\.txt"):
            assert [row["text"] for row in load_rows("text", split, tmp_path)] == [text]
    with pytest.raises(DataNotFound, match=r"no file for split 'test'.*my-dev\.txt"):
        load_rows("text", "test", tmp_path)


def test_ids_follow_the_content_and_not_the_position(tmp_path):
    lines = (ROWS / "gsm8k.jsonl").read_text().splitlines()
    (tmp_path / "gsm8k-train.jsonl").write_text("\n".join(reversed(lines)))
    there = {row["id"]: row for row in load_rows("gsm8k", "train", ROWS / "gsm8k.jsonl")}
    assert {row["id"]: row for row in load_rows("gsm8k", "train", tmp_path)} == there
    assert len(there) == 2


def test_a_seed_reorders_and_keeps_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr("memslots.data.adapters._SHUFFLE_BUFFER", 8)
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"t{n}"}) for n in range(30)))
    in_order = [f"t{n}" for n in range(30)]

    def texts(**options):
        return [row["text"] for row in load_rows("jsonl", "train", file, **options)]

    assert texts() == in_order
    assert texts(seed=1) == texts(seed=1) != in_order
    assert texts(seed=1) != texts(seed=2)
    assert sorted(texts(seed=1)) == sorted(in_order)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sqad", "train"), r"'sqad' is unknown \(did you mean 'squad'\?\).*hotpotqa"),
        (("squad", "dev"), r"split='dev' is not a split of squad; .*validation, paper_train"),
        (("sst2", "paper_train"), r"'paper_train' is not a split of sst2"),
        ((None, "train"), r"dataset None is unknown.*choose one of"),
        (("text", "train", ""), r"data_dir='' names nothing"),
        (("squad", "train", "nowhere"), r"data_dir='nowhere' does not exist"),
        (("squad", "train", ROWS), r"no file of SQuAD 2\.0, split 'train'; looked for train-v2"),
        (("squad", "train", ROWS / "squad.jsonl", 0), r"limit=0 is not possible; give 1"),
        (("text", "train"), r"no data_dir is given; give data_dir="),
        (("text", "train", ROWS), r"holds no \.txt file"),
        (("hpd", "train"), r"not on the Hub; get en_train_set\.json.*'character_dialogue'"),
        (("jsonl", "train", Path(__file__)), r"ends in '\.py'; allowed are \.jsonl"),
    ],
)
def test_wrong_arguments_are_named_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_rows(*arguments)


@pytest.mark.parametrize(
    ("name", "split", "file", "message"),
    [
        ("squad", "train", "gsm8k.jsonl", r"lacks a column.*question, answer; .*id \+ context"),
        ("fineweb", "train", "gsm8k.jsonl", r"gsm8k\.jsonl has question, answer; .*needs text"),
        ("gsm8k", "train", "hotpotqa-release.json", r"None of the rows can be used"),
        ("squad", "train", "hotpotqa-release.json", r"does not have the layout of SQuAD"),
    ],
)
def test_another_sets_rows_are_refused(name, split, file, message):
    with pytest.raises(ValueError, match=message):
        list(load_rows(name, split, ROWS / file))


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "tsv", "parquet"])
def test_an_empty_split_is_an_error(tmp_path, ending):
    file = tmp_path / f"empty.{ending}"
    if ending == "parquet":
        Dataset.from_dict({"sentence": [], "label": []}).to_parquet(file)
    else:
        (gzip.open if ending.endswith("gz") else open)(file, "wt").close()
    with pytest.raises(ValueError, match=r"sst2/train is empty: empty\."):
        list(load_rows("sst2", "train", file))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "\xff"}\n', "UnicodeDecodeError"),
        ("x.jsonl.gz", b"not packed", "BadGzipFile"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9999)[:-20], "could not be read"),
        ("x.parquet", b"no columns", "ArrowInvalid"),
        ("x.json", b'{"text": ', "is not JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        list(load_rows("parquet" if name.endswith("parquet") else "jsonl", "train", file))
    assert str(file) in str(raised.value)


def test_a_missing_library_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install .*trl"):
        list(load_rows("squad", "train", ROWS / "squad.jsonl"))


def test_a_file_is_named_in_place_of_a_set(tmp_path):
    """By its path; the ending says how it is read, and a SQuAD release is known by its layout."""
    row = {"context": "Ida has a red kite.", "question": "What has Ida?", "answer": "a kite"}
    lines = tmp_path / "asked.jsonl"
    lines.write_text(json.dumps(row))
    assert [r["answers"] for r in source_rows(str(lines))] == [["a kite"]]
    release = source_rows(str(ROWS / "squad-release.json"))
    assert [row["answers"] for row in release] == [["288 km", "288"], ["Thun"]]
    assert (release.report.left_out, release.report.bad) == (
        {"unanswerable": 1},
        {"no 'answer'": 1},
    )
    flat = source_rows(str(ROWS / "squad.jsonl"))
    assert [row["id"] for row in flat] == ["s1", "s4"]
    assert flat.report.left_out == {"unanswerable": 1}
    assert len(list(source_rows("squad/train", ROWS / "squad.jsonl"))) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}/asked.json", r"there is no file .*asked\.json"),
        ("nowhere.parquet", r"there is no file nowhere\.parquet"),
        ("{}", r"is a folder; name one file in it, or give the folder as data_dir"),
        ("{}/asked.doc", r"ends in '\.doc'; allowed are .*\.jsonl.*\.parquet"),
        ("squat/train", r"dataset 'squat' is unknown \(did you mean 'squad'\?\).* path of a file"),
        ("squad/tested", r"'tested' is not a split of squad; choose one of train"),
        ("squad", r"'squad' must be a set and its split, such as squad/validation, or the path"),
    ],
)
def test_what_is_neither_set_nor_file_is_refused(tmp_path, source, message):
    (tmp_path / "asked.doc").touch()
    with pytest.raises(ValueError, match=message):
        source_rows(source.format(tmp_path))


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": "x", "id": ' + "9" * 5000 + "}"])
def test_a_line_beyond_the_parser_costs_no_other(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n' + line + '\n{"text": "two"}\n')
    rows = load_rows("jsonl", "train", data_dir=tmp_path / "rows.jsonl")
    assert [row["text"] for row in rows] == ["one", "two"]
    assert rows.report.bad == {"not JSON": 1}
    (tmp_path / "rows.json").write_text(line)
    with pytest.raises(ValueError, match="is not JSON"):
        list(load_rows("jsonl", "train", data_dir=tmp_path / "rows.json"))


def test_what_of_a_folder_is_not_read_is_said(tmp_path):
    for name in ("pump.txt", "safety-training.txt", "oil-test.txt", "valve.md", "README.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "older").mkdir()
    with pytest.warns(UserWarning, match="only files of one format are") as said:
        rows = load_rows("text", "train", tmp_path)
    assert [row["id"] for row in rows] == ["safety-training"]
    told = "safety-training.txt (named 'train') is read, and not older, pump.txt, valve.md: only"
    assert told in str(said[0].message)
