"""The Space as it is published: `app.py`, its package `memslots_space`, card and requirements.

The files travel as they are to a machine where memslots is not installed, so `memslots_space`
imports nothing of this package but its own siblings. See `hub_cards/push_space.py`.
"""
