"""The variants A to F of `keychain`: short and long, filler of its own alphabet or a look-up like the keys.

The look-up table is small (8 cells), so that a few hundred updates teach it; the demonstrator is right so often that a
policy which imitates it well solves 15 to 25 %.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from forkpoint.errors import ForkpointError, unknown_name

_TABLE = {"operations": 2, "values": 4, "entries": 4}
_SHORT = {**_TABLE, "positions": 32, "keys": 4, "demonstrator_accuracy": 0.7}
_LONG = {**_TABLE, "positions": 128, "keys": 6, "demonstrator_accuracy": 0.78}
_LOOKUP = {"filler": "lookup", "filler_entropy": "low"}
VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "A": {**_SHORT, "filler": "own"},
        "B": {**_LONG, "filler": "own"},
        "E": {**_SHORT, **_LOOKUP},
        "F": {**_LONG, **_LOOKUP},
    }
)
"""Settings of the task by variant.  A and B: filler has its own alphabet.  E and F: it is a look-up like the keys."""
BLIND = ("C", "D")
"""As E and F, but outputs attend to the prompt only: no policy here is masked so."""


def variant_settings(name: str) -> dict[str, Any]:
    """The settings of `keychain` for a variant.

    Raises:
        ForkpointError: an unknown variant, or one that needs another policy.
    """
    if name in BLIND:
        near = "E" if name == "C" else "F"
        raise ForkpointError(
            f"--variant {name} needs a policy whose outputs attend to the prompt only; the decoders here see their own "
            f"outputs. The same task with such a decoder is {near}."
        )
    if name not in VARIANTS:
        raise ForkpointError(unknown_name("--variant", name, [*VARIANTS, *BLIND]))
    return dict(VARIANTS[name])
