"""A small decoder trained from scratch, and compressors that start from its embeddings."""
