"""Tokenizers: item vectors to semantic ids."""
