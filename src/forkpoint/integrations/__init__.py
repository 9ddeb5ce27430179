"""Bridges to other libraries: none of them is a dependency."""
