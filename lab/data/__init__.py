"""Generators of people, small talk, strings and code, in the schema of memslots.data."""
