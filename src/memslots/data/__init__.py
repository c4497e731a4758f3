"""Dataset adapters to one schema."""

from memslots.data.adapters import ADAPTERS, LoadedRows, load_rows, named_source, source_rows
from memslots.data.schema import DataNotFound, LoadReport, QuestionRow, Row, TextRow

__all__ = [
    "ADAPTERS",
    "DataNotFound",
    "LoadReport",
    "LoadedRows",
    "QuestionRow",
    "Row",
    "TextRow",
    "load_rows",
    "named_source",
    "source_rows",
]
