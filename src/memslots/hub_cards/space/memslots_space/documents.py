"""What visitors bring: documents and questions of bounded size, and files that are text."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = (".txt", ".md")
MAX_QUESTION = 500
"""Characters of a question or a chat message."""


def max_upload_bytes(max_characters: int) -> int:
    """Bytes of a file that could hold a document of so many characters (UTF-8 takes up to 4)."""
    return 4 * max_characters


def read_upload(path: str | os.PathLike, max_characters: int) -> str:
    """The text of an uploaded file, which is deleted: nothing of a visitor's stays on the disk.

    Raises:
        ValueError: another kind of file, one that is too large, or no text.
    """
    file = Path(path)
    try:
        if file.suffix.lower() not in SUFFIXES:
            kind = file.suffix or "no ending"
            raise ValueError(f"Only {' and '.join(SUFFIXES)} files can be read (this is {kind}).")
        size, most = file.stat().st_size, max_upload_bytes(max_characters)
        if size > most:
            raise ValueError(f"The file is too large: {size:,} bytes, at most {most:,} are read.")
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(
                "The file is not UTF-8 text. Save it as UTF-8 and upload it again."
            ) from None
        return check_document(text.replace("\r\n", "\n"), max_characters)
    finally:
        file.unlink(missing_ok=True)


def check_document(text: str | None, max_characters: int) -> str:
    """`text`, where it can be compressed.

    Raises:
        ValueError: empty, too long, or with NUL characters, which no text has.
    """
    if not text or not text.strip():
        raise ValueError("The document is empty. Paste some text or upload a file.")
    if len(text) > max_characters:
        raise ValueError(
            f"The document is too long: {len(text):,} characters, at most {max_characters:,} fit "
            "here. Shorten it."
        )
    if "\0" in text:
        raise ValueError("This is not text: it has NUL characters.")
    return text


def check_question(question: str | None) -> str:
    """`question` without white space around it.

    Raises:
        ValueError: empty or too long.
    """
    question = (question or "").strip()
    if not question:
        raise ValueError("Type a question first.")
    if len(question) > MAX_QUESTION:
        raise ValueError(
            f"The question is too long: {len(question):,} characters, at most {MAX_QUESTION}."
        )
    return question
