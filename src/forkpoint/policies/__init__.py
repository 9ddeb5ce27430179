"""Policies: what gives tokens their probabilities."""
