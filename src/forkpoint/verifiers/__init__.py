"""Verdicts: where the answer of a text lies, and whether it is right.  No torch, no `eval`, no unbounded parsing."""
