"""Exchangeable parts of models: embedding, interaction, gates, attention: each idea once."""
