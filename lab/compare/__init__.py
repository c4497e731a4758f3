"""Memory beside what a user would pick instead, on one decoder, one set of questions and positions.

    make compare

writes the samples once, runs the methods of this package in its own environment and those of
kvpress and LLMLingua in one of theirs, and draws the page. Only `samples`, `memory` and `page`
import memslots; the rest needs torch and transformers.
"""
