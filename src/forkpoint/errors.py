"""The errors that a user can fix: one line that says where, what was written, what is allowed.

ForkpointError
├── RecipeError      a recipe, its keys and values
├── TaskError        a task, its problems and corpora
├── ModelError       a model folder, a tokenizer, a text that the model cannot read
│   └── ContextError a prompt and what follows it reach past the model's context
├── StoreError       a run folder or its database
├── CheckpointError  a checkpoint that is incomplete or altered
├── VerifierError    a verifier that could not be started, or fails too often
├── TrainingError    a training that cannot go on
├── DoctorError      a check of the doctor that failed (doctor.check)
└── BridgeError      another trainer's script that cannot be checked (integrations.trl)

Our own bugs raise plain exceptions and are never caught.
"""

import difflib
from collections.abc import Iterable

MAX_LISTED = 40
"""Known names that one message lists."""


class ForkpointError(Exception):
    """What the user can fix.  The message is one line; the command prints it and exits 2."""


class RecipeError(ForkpointError):
    """A recipe is wrong: an unknown key, a value out of bounds, a stage that does not exist."""


class TaskError(ForkpointError):
    """A task cannot make its problems or its corpus."""


class ModelError(ForkpointError):
    """A model folder or a tokenizer cannot be used, or a text does not fit it."""


class ContextError(ModelError):
    """A prompt and what is to follow it do not fit a model's context."""


class StoreError(ForkpointError):
    """A run folder cannot be read or written."""


class CheckpointError(StoreError):
    """A checkpoint is incomplete, altered, or of another run."""


class VerifierError(ForkpointError):
    """A verifier cannot be started on this machine, or fails too often."""


class TrainingError(ForkpointError):
    """Training cannot go on, such as when no gradient is finite any more."""


def check_context(what: str, prompt: int, follow: int, context: int) -> None:
    """Raises ContextError where a prompt and what follows it, in tokens, reach past a context.

    >>> check_context("scoring", 40, 24, 64)
    """
    if prompt + follow > context:
        raise ContextError(
            f"{what}: a prompt of {prompt} tokens and {follow} tokens after it do not fit the model's context of "
            f"{context}."
        )


def unknown_name(where: str, value: str, known: Iterable[str]) -> str:
    """One line: where, what was written, the nearest match, what is known.

    >>> unknown_name("[task] name", "path", ["paths", "keychain"])
    "[task] name = 'path' is not known. Did you mean 'paths'? Known: keychain, paths."
    """
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listing = ", ".join(names[:MAX_LISTED]) if names else "none"
    if len(names) > MAX_LISTED:
        listing += f" and {len(names) - MAX_LISTED} more"
    return f"{where} = '{value}' is not known.{hint} Known: {listing}."
