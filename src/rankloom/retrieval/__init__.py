"""Generative and sequential retrieval: tokenizers, generators, decoding."""
