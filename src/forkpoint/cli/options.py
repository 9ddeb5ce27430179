"""Types of options that several commands take."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
Settings = Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)]
"""Any number of `--set key=value`."""
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
