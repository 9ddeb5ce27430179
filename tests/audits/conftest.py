"""The audits try the functions that the tests of outside verifiers name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "verifiers"))
