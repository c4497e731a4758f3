"""Adapters of the question-answering sets: SQuAD, AdversarialQA, HotpotQA, Natural Questions."""

from __future__ import annotations

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
    records,
)


def _squad_row(raw: Mapping[str, Any]) -> QuestionRow:
    answers = [answer.get("text") for answer in records(raw["answers"], "answers")]
    if not answers:
        raise LeftOut("unanswerable")
    return question_row(raw["context"], raw["question"], answers, raw["id"])


def squad_articles(document: Any) -> Iterator[Mapping[str, Any]]:
    """Yields flat rows of the nested release files, as the Hub has them."""
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                yield {
                    "title": article.get("title"),
                    "context": paragraph.get("context"),
                    **asked,
                }


_SQUAD_LAYOUT = Layout(("id", "context", "question", "answers"), _squad_row)

SQUAD = Adapter(
    name="squad",
    title="SQuAD 2.0",
    licence="CC BY-SA 4.0",
    # The paper cites 2.0, and 86,821 and 5,928 are the answerable questions of its two parts.
    hub_id="rajpurkar/squad_v2",
    hub_config="squad_v2",
    splits={"train": "train", "validation": "validation"},
    files={
        "train": ("train-v2.0.json", "train-v1.1.json"),
        # XQuAD's English part is a selection of SQuAD's development set.
        "validation": ("dev-v2.0.json", "dev-v1.1.json", "xquad[-.]en*.json"),
    },
    unnest=squad_articles,
    layouts=(_SQUAD_LAYOUT,),
    paper={
        "paper_train": PaperSplit("train", 86_821, 86_821),
        "paper_test": PaperSplit("validation", 5_928, 5_928),
    },
)

ADVERSARIAL_QA = Adapter(
    name="adversarialqa",
    title="AdversarialQA",
    licence="CC BY-SA 3.0",
    hub_id="UCLNLP/adversarial_qa",
    hub_config="adversarialQA",
    splits={"train": "train", "validation": "validation"},  # the test answers are not published
    files={
        # The release keeps the questions against all three models together in this folder.
        "train": ("combined/train.json",),
        "validation": ("combined/dev.json",),
    },
    unnest=squad_articles,
    layouts=(_SQUAD_LAYOUT,),
)


def _hotpot_row(raw: Mapping[str, Any]) -> QuestionRow:
    paragraphs = [
        (each.get("title"), each.get("sentences")) for each in records(raw["context"], "context")
    ]
    return _hotpot_question(raw, paragraphs, raw["id"])


def _hotpot_release_row(raw: Mapping[str, Any]) -> QuestionRow:
    paragraphs = raw["context"]
    if not isinstance(paragraphs, list) or not all(
        isinstance(each, list) and len(each) == 2 for each in paragraphs
    ):
        raise BadRow("'context' is not a list of titles with sentences")
    return _hotpot_question(
        raw, [(title, sentences) for title, sentences in paragraphs], raw["_id"]
    )


def _hotpot_question(
    raw: Mapping[str, Any], paragraphs: list[tuple[Any, Any]], row_id: Any
) -> QuestionRow:
    """The context is all ten paragraphs, each under its title (the distractor setting)."""
    texts = []
    for title, sentences in paragraphs:
        if not isinstance(sentences, list) or not all(isinstance(each, str) for each in sentences):
            raise BadRow("'sentences' is not a list of texts")
        # The sentences bring their own spaces.
        texts.append(f"{filled(title, 'title')}\n{''.join(sentences).strip()}")
    if not texts:
        raise BadRow("empty 'context'")
    return question_row("\n\n".join(texts), raw["question"], [raw["answer"]], row_id)


HOTPOT_QA = Adapter(
    name="hotpotqa",
    title="HotpotQA (distractor)",
    licence="CC BY-SA 4.0",
    hub_id="hotpotqa/hotpot_qa",
    hub_config="distractor",
    splits={"train": "train", "validation": "validation"},
    files={
        "train": ("hotpot_train_v1.1.json",),
        "validation": ("hotpot_dev_distractor_v1.json",),
    },
    layouts=(
        Layout(("id", "question", "answer", "context"), _hotpot_row),
        Layout(("_id", "question", "answer", "context"), _hotpot_release_row),
    ),
)

Token = tuple[str, bool]
"""A token of a page, and whether it is a tag."""


def _hub_natural_question(raw: Mapping[str, Any]) -> QuestionRow:
    document, asked = raw["document"], raw["question"]
    if not isinstance(document, Mapping) or not isinstance(asked, Mapping):
        raise BadRow("'document' or 'question' is not a record")
    tokens = _tokens(document.get("tokens"), "document.tokens", "is_html")
    return _natural_question(tokens, asked.get("text"), raw["annotations"], raw["id"])


def _simplified_natural_question(raw: Mapping[str, Any]) -> QuestionRow:
    words = filled(raw["document_text"], "document_text").split(" ")
    tokens = [(word, word.startswith("<") and word.endswith(">")) for word in words]
    return _natural_question(tokens, raw["question_text"], raw["annotations"], raw["example_id"])


def _release_natural_question(raw: Mapping[str, Any]) -> QuestionRow:
    tokens = _tokens(raw["document_tokens"], "document_tokens", "html_token")
    return _natural_question(tokens, raw["question_text"], raw["annotations"], raw["example_id"])


def _tokens(value: Any, column: str, mark: str) -> list[Token]:
    tokens = []
    for each in records(value, column):
        word, is_tag = each.get("token"), each.get(mark)
        if not isinstance(word, str) or not isinstance(is_tag, bool):
            raise BadRow(f"'{column}' lacks 'token' or {mark!r}")
        tokens.append((word, is_tag))
    return tokens


def _natural_question(
    tokens: list[Token], question: Any, annotated: Any, row_id: Any
) -> QuestionRow:
    """The context is the long answer, the paragraph or table that an annotator found the short
    answer in: pages are too long for it, and the paper's contexts are passages.

    Questions with a yes or no, with a long answer alone or with none are left out. Accepted are
    all short answers that lie in that same long answer, whoever marked them.
    """
    long_answer: tuple[int, int] | None = None
    answers: list[str] = []
    for annotation in records(annotated, "annotations"):
        short_answers = records(annotation.get("short_answers") or [], "short_answers")
        span = _span(annotation.get("long_answer"), len(tokens)) if short_answers else None
        if span is None or span != (long_answer or span):
            continue
        long_answer = span
        for short in short_answers:
            inside = _span(short, len(tokens))
            if inside is None or not span[0] <= inside[0] < inside[1] <= span[1]:
                raise BadRow("a short answer outside its long answer")
            answers.append(_words(tokens, inside))
    if long_answer is None:
        raise LeftOut("no short answer")
    return question_row(_words(tokens, long_answer), question, answers, row_id)


def _span(marked: Any, length: int) -> tuple[int, int] | None:
    """(first token, token after the last), or None if nothing was marked (-1)."""
    if not isinstance(marked, Mapping):
        raise BadRow("a marked answer is not a record")
    start, end = marked.get("start_token"), marked.get("end_token")
    if not isinstance(start, int) or not isinstance(end, int) or end > length:
        raise BadRow("a marked answer outside the document")
    return (start, end) if 0 <= start < end else None


def _words(tokens: list[Token], span: tuple[int, int]) -> str:
    return " ".join(token for token, is_html in tokens[slice(*span)] if not is_html)


def _passage_question(raw: Mapping[str, Any]) -> QuestionRow:
    """DPR's selection of Natural Questions (Karpukhin et al., 2020), which the paper cites."""
    passages = records(raw["positive_ctxs"], "positive_ctxs")
    if not passages:
        raise LeftOut("no passage with the answer")
    if not isinstance(raw["answers"], list):
        raise BadRow("'answers' is not a list")
    return question_row(passages[0].get("text"), raw["question"], raw["answers"])


NATURAL_QUESTIONS = Adapter(
    name="natural_questions",
    title="Natural Questions",
    licence="CC BY-SA 3.0",
    hub_id="google-research-datasets/natural_questions",
    hub_config="default",
    streaming=True,
    splits={"train": "train", "validation": "validation"},
    files={
        "train": (
            "biencoder-nq-train.json",
            "v1.0-simplified*train*.jsonl",
            "nq-train-*.jsonl",
            "train/nq-train-*.jsonl",
        ),
        "validation": (
            "biencoder-nq-dev.json",
            "v1.0-simplified*dev*.jsonl",
            "nq-dev-*.jsonl",
            "dev/nq-dev-*.jsonl",
        ),
    },
    layouts=(
        Layout(("id", "document", "question", "annotations"), _hub_natural_question),
        Layout(
            ("example_id", "document_text", "question_text", "annotations"),
            _simplified_natural_question,
        ),
        Layout(
            ("example_id", "document_tokens", "question_text", "annotations"),
            _release_natural_question,
        ),
        Layout(("question", "answers", "positive_ctxs"), _passage_question),
    ),
)
