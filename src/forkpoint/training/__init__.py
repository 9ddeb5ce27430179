"""The stages: the one place where weights change."""
