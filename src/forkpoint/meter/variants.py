"""The variants A to H of `keychain`: short and long, filler of its own alphabet or a look-up like the keys.

The look-up tables are small (32 cells in short chains, 8 in long ones and in G and H), so that a few hundred updates
teach them; the demonstrator is right so often that a policy which imitates it well solves 13 to 15 % (B: 9, H: 4 to 7).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from forkpoint.errors import ForkpointError, unknown_name

_SMALL = {"operations": 2, "values": 4, "entries": 4, "lead": 1}
_LARGE = {"operations": 4, "values": 8, "entries": 8, "lead": 1}
_SHORT = {**_LARGE, "positions": 32, "keys": 4, "demonstrator_accuracy": 0.62}
_LONG = {**_SMALL, "positions": 128, "keys": 6, "demonstrator_accuracy": 0.72}
_OWN = {"filler": "own"}
_LOOKUP = {"filler": "lookup", "filler_entropy": "low"}
_MOODS = {**_SHORT, **_SMALL, "demonstrator_accuracy": 0.72, "careless": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A kind of key chain, and the decoder that is measured on it."""

    settings: Mapping[str, Any]
    """Of the task."""
    outputs_attend: str = "all"
    """What the tokens of a rollout see: `all` before them, or the `prompt`."""
    updates: int = 400
    """Of pretraining."""
    prompt_updates: int = 0
    """The first of these, in which tokens see the prompt alone: look-ups are found soon where nothing else is seen."""
    prompt_corpus: str = ""
    """What these imitate; without it `demonstrator`."""
    batch_size: int = 32


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "A": Variant(settings={**_SHORT, **_OWN}, updates=1000),
        "B": Variant(
            settings={**_LONG, **_OWN}, updates=400, prompt_updates=200, prompt_corpus="many_keys", batch_size=16
        ),
        "C": Variant(settings={**_SHORT, **_LOOKUP}, outputs_attend="prompt", updates=250),
        "D": Variant(settings={**_LONG, **_LOOKUP}, outputs_attend="prompt", updates=500, batch_size=16),
        "E": Variant(settings={**_SHORT, **_LOOKUP}, updates=300),
        "F": Variant(settings={**_LONG, **_LOOKUP}, updates=400, prompt_updates=200, batch_size=16),
        "G": Variant(settings={**_MOODS, **_OWN}, updates=600, prompt_updates=200, prompt_corpus="many_keys"),
        "H": Variant(settings={**_MOODS, **_LOOKUP}, updates=800, prompt_updates=150),
    }
)
"""A, B and G: filler has its own alphabet.  The others: it is a look-up like the keys.  In C and D tokens see the
prompt alone.  In G and H half of the demonstrators guess and show it, so that filler foretells the keys."""


def variant(name: str) -> Variant:
    """The variant of a name; raises ForkpointError for an unknown one."""
    if name not in VARIANTS:
        raise ForkpointError(unknown_name("--variant", name, VARIANTS))
    return VARIANTS[name]
