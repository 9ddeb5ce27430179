"""The command: each file parses, calls the library, prints."""
