"""Tasks, metrics and reports: what a memory keeps, beside the full text and beside nothing."""
