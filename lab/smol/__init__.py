"""Trains the `smol` checkpoint: memory slots for the frozen SmolLM2-135M-Instruct."""
