"""The papers' tables on a small world: a recipe and what each of its parts is worth."""
