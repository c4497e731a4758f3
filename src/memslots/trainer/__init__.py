"""Trainers: the tiny decoder, and the compressors that a frozen decoder reads."""
