"""Dataset adapters to one schema, and the generator of short biographies."""
