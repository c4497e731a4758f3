"""The sentence-pools article's tables on the embedded checkpoint's decoder."""
