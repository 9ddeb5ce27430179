"""Forkpoint: train reasoning models, put the credit where the reasoning forked, audit what was learned."""

__version__ = "0.1.0"
