"""Memories kept and served: the store, and the engines that answer from it."""
