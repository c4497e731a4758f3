"""Adapters of the sets for in-context learning (GSM8K, SST-2, WSC) and of role play (HPD)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from memslots.data.schema import (
    Adapter,
    BadRow,
    Layout,
    LeftOut,
    PaperSplit,
    QuestionRow,
    filled,
    question_row,
)


def _gsm8k_row(raw: Mapping[str, Any]) -> QuestionRow:
    """The answer is the whole solution; the label is the number after its last ####."""
    answer = filled(raw["answer"], "answer")
    _, mark, number = answer.rpartition("####")
    if not mark or not re.fullmatch(r"-?[\d,]*\.?\d+", number.strip()):
        raise BadRow("no final number after ####")
    return question_row(None, raw["question"], [answer], label=number.strip().replace(",", ""))


GSM8K = Adapter(
    name="gsm8k",
    title="GSM8K",
    licence="MIT",
    hub_id="openai/gsm8k",
    hub_config="main",
    splits={"train": "train", "test": "test"},
    files={"train": ("train.jsonl",), "test": ("test.jsonl",)},
    layouts=(Layout(("question", "answer"), _gsm8k_row),),
    # 6,725 + 748 are the 7,473 rows of its train split.
    paper={
        "paper_train": PaperSplit("train", 6_725, 7_473),
        "paper_test": PaperSplit("train", 748, 7_473, held_out=True),
    },
)

_SENTIMENTS = {"0": "negative", "1": "positive"}


def _sst2_row(raw: Mapping[str, Any]) -> QuestionRow:
    word = _label_word(raw["label"], _SENTIMENTS)
    sentence = filled(raw["sentence"], "sentence").strip()
    return question_row(None, sentence, [word], label=word)


def _label_word(label: Any, words: Mapping[str, str]) -> str:
    """The word of a label; benchmarks write -1 in the test splits that they keep to themselves."""
    text = str(int(label)) if isinstance(label, bool) else str(label)
    if text == "-1":
        raise LeftOut("unlabelled")
    if text not in words:
        raise BadRow(f"'label' is not {' or '.join(words)}")
    return words[text]


SST2 = Adapter(
    name="sst2",
    title="SST-2",
    licence="none stated by its authors; for research",
    hub_id="stanfordnlp/sst2",
    splits={"train": "train", "validation": "validation", "test": "test"},
    files={
        "train": ("sst2-train.tsv", "SST-2/train.tsv"),
        "validation": ("sst2-dev.tsv", "SST-2/dev.tsv"),
        "test": ("sst2-test.tsv",),  # the benchmark's own test.tsv has no labels
    },
    tsv_columns=("sentence", "label"),
    layouts=(Layout(("sentence", "label"), _sst2_row),),
)

_YES_NO = {"0": "no", "1": "yes"}


def wsc_row(raw: Mapping[str, Any]) -> QuestionRow:
    """Asks whether the pronoun, marked *so* in the text, refers to the other span."""
    word = _label_word(raw["label"], _YES_NO)
    candidate = filled(raw["span1_text"], "span1_text").strip()
    pronoun = filled(raw["span2_text"], "span2_text").strip()
    words = filled(raw["text"], "text").split()
    at = raw["span2_index"]
    if not isinstance(at, int) or not 0 <= at < len(words):
        raise BadRow("'span2_index' is outside the text")
    parts = re.fullmatch(rf"(\W*)({re.escape(pronoun)})(\W.*)?", words[at], re.IGNORECASE)
    if parts is None:
        raise BadRow("'span2_index' does not point at 'span2_text'")
    before, marked, after = parts.groups(default="")
    words[at] = f"{before}*{marked}*{after}"
    question = f'{" ".join(words)}\nDoes the pronoun *{marked}* refer to "{candidate}"?'
    return question_row(None, question, [word], label=word)


def _wsc_release_row(raw: Mapping[str, Any]) -> QuestionRow:
    if not isinstance(raw["target"], Mapping):
        raise BadRow("'target' is not a record")
    spans = {
        column: raw["target"].get(column) for column in WSC_COLUMNS if column.startswith("span")
    }
    return wsc_row({"text": raw["text"], "label": raw["label"], **spans})


WSC_COLUMNS = ("text", "span1_text", "span2_text", "span2_index", "label")

WSC = Adapter(
    name="wsc",
    title="Winograd Schema Challenge (SuperGLUE)",
    licence="CC BY 4.0 (the schemas); SuperGLUE is for research",
    hub_id="aps/super_glue",
    hub_config="wsc.fixed",  # WSC with the spans that did not match their text put right
    splits={"train": "train", "validation": "validation"},  # the test labels are not published
    files={"train": ("WSC/train.jsonl",), "validation": ("WSC/val.jsonl",)},
    layouts=(
        Layout(WSC_COLUMNS, wsc_row),
        Layout(("text", "target", "label"), _wsc_release_row),
    ),
)


def dialogue_row(raw: Mapping[str, Any]) -> QuestionRow:
    """Asks for the character's last reply to somebody else.

    The context is what HPD knows of the character at this time, the scene and the dialogue up to
    the line replied to; that line is the question, with its speaker; what follows the reply is
    dropped. A test session is the history of a reply that stands apart, in `positive_response`.
    """
    character = filled(raw.get("character") or "Harry", "character")
    lines = [_utterance(line) for line in _texts(raw["dialogue"], "dialogue")]
    if not lines:
        raise BadRow("empty 'dialogue'")
    positive = raw.get("positive_response")
    if positive:
        replies = [
            _without_speaker(each, character) for each in _texts(positive, "positive_response")
        ]
        asked = len(lines) - 1
    else:
        asked = _last_exchange(lines, character)
        replies = [lines[asked + 1][1]]
    history = "\n".join(f"{speaker}: {text}" for speaker, text in lines[:asked])
    parts = [
        _description(raw.get("attributes"), character),
        "\n".join(_texts(raw.get("scene") or [], "scene")),
        history,
    ]
    context = "\n\n".join(part for part in parts if part)
    question = ": ".join(lines[asked])
    # A session may begin with the line replied to and have no scene: then its context is empty.
    return question_row(context or None, question, replies, raw.get("session"), character=character)


def _last_exchange(lines: list[tuple[str, str]], character: str) -> int:
    """Position of the last line by somebody else that the character replies to."""
    for asked in range(len(lines) - 2, -1, -1):
        if lines[asked][0] != character and lines[asked + 1][0] == character:
            return asked
    raise LeftOut("no reply of the character")


def _texts(value: Any, column: str) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadRow(f"'{column}' is not a list of texts")
    return [each.strip() for each in value if each.strip()]


def _utterance(line: str) -> tuple[str, str]:
    speaker, colon, text = line.partition(":")
    if not colon or not speaker.strip() or not text.strip():
        raise BadRow("a line of 'dialogue' without speaker or text")
    return speaker.strip(), text.strip()


def _without_speaker(text: str, character: str) -> str:
    return text.removeprefix(f"{character}:").strip()


def _description(attributes: Any, character: str) -> str:
    """The character's attributes (gender, age, talents, ...), those that are filled in."""
    known = attributes.get(character) if isinstance(attributes, Mapping) else None
    if not isinstance(known, Mapping):
        return ""
    said = []
    for name, value in known.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")
        if text.strip():
            said.append(f"{name}: {text.strip()}")
    return f"{character}. {'; '.join(said)}" if said else ""


def _sessions(document: Any) -> Iterator[Any]:
    for session, content in document.items():
        yield {"session": session, **content} if isinstance(content, Mapping) else content


HPD = Adapter(
    name="hpd",
    title="Harry Potter Dialogue (HPD), English",
    licence="for research, from its authors; the dialogues are the novels'",
    splits={"train": "train", "test": "test"},
    files={"train": ("en_train_set.json",), "test": ("en_test_set.json",)},
    unnest=_sessions,
    layouts=(Layout(("dialogue",), dialogue_row),),
    where=(
        "get en_train_set.json and en_test_set.json from its authors "
        "(https://nuochenpku.github.io/HPD.github.io/download) and give their folder as data_dir="
    ),
    # 987 + 110 are 90% and 10% of 1,097 sessions, as 6,725 + 748 are of GSM8K's train split.
    paper={
        "paper_train": PaperSplit("train", 987, 1_097),
        "paper_test": PaperSplit("train", 110, 1_097, held_out=True),
    },
)
