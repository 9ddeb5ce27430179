"""The ledger of the suite: how many splits were tried, and how far the worst was off.

    python -m pytest tests/invariance -s

prints it after each file.
"""

import sys
from collections import defaultdict

import pytest


class Ledger:
    """Tried combinations and relative differences, by the name of what was compared."""

    def __init__(self):
        self.tried, self.worst = defaultdict(set), defaultdict(float)
        self.smallest, self.harmless = {}, defaultdict(float)

    def add(self, name, combination, found):
        """A comparison that has to be equal."""
        self.tried[name].add(combination)
        self.worst[name] = max(self.worst[name], found)

    def control(self, bug, found, *, bites):
        """A comparison under a bug: the smallest difference where it bites, the largest where it cannot."""
        if bites:
            self.smallest[bug] = min(found, self.smallest.get(bug, found))
        else:
            self.harmless[bug] = max(found, self.harmless[bug])

    def lines(self):
        for name, tried in sorted(self.tried.items()):
            yield f"{name}: {len(tried)} combinations, worst relative difference {self.worst[name]:.1e}"
        for bug, smallest in sorted(self.smallest.items()):
            yield f"{bug}: at least {smallest:.1e} where it bites, at most {self.harmless[bug]:.1e} where it cannot"


@pytest.fixture(scope="module", name="ledger")
def module_ledger():
    found = Ledger()
    yield found
    sys.stdout.write("".join(f"\n  {line}" for line in found.lines()))
