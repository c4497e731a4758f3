"""Tasks, metrics and reports: what a memory keeps, beside the full text and beside nothing."""

from .report import bars, markdown_report
from .tiny_suite import evaluate_tiny

__all__ = ["bars", "evaluate_tiny", "markdown_report"]
