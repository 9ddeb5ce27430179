"""Counter-based randomness: every random number is a pure function of a key and a position.

A `Key` names a stream by the path that leads to it: run seed, stage, purpose, update, problem, rollout, branch.
Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is keyed by a hash of that path,
so there is no state to save and no order of drawing to keep.
"""

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Part: TypeAlias = str | int


def content_hash(*parts: Part, size: int = 8) -> str:
    """Hex BLAKE2b of the parts, `2 * size` digits; parts are length-prefixed, so no two paths collide.

    >>> content_hash("a", 1) == content_hash("a", 1), content_hash("ab") == content_hash("a", "b")
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        data = f"{type(part).__name__}:{part}".encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """A named stream of random numbers.

    >>> Key.root(0).child("rollout", 3).hex == Key.root(0).child("rollout").child(3).hex
    True
    """

    path: tuple[Part, ...]

    @staticmethod
    def root(seed: int) -> "Key":
        """The key of a whole run."""
        return Key((seed,))

    def child(self, *parts: Part) -> "Key":
        """The key below this one; different parts give independent streams."""
        return Key(self.path + parts)

    @property
    def hex(self) -> str:
        """The 128-bit hash of the path, 32 hex digits."""
        return content_hash(*self.path, size=16)

    def generator(self) -> np.random.Generator:
        """A fresh generator at position 0 of this stream."""
        return np.random.Generator(np.random.Philox(key=int(self.hex, 16)))

    def uniforms(self, count: int, start: int = 0) -> NDArray[np.float64]:
        """Numbers `start` to `start + count` of this stream, uniform in [0, 1)."""
        return self.generator().random(start + count)[start:]
