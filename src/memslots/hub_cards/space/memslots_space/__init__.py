"""A page that answers from full text, from memory and from nothing, side by side."""
