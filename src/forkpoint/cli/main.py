"""The command `forkpoint`: every subcommand is imported only when it is used."""

import sys

from cyclopts import App

import forkpoint
from forkpoint.errors import ForkpointError

app = App(
    name="forkpoint",
    help="Train reasoning models, put the credit where the reasoning forked, audit what was learned.",
    version=forkpoint.__version__,
    result_action="return_value",
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
app.command("forkpoint.cli.run:run", name="run")
app.command("forkpoint.cli.evaluate:evaluate", name="evaluate")
app.command("forkpoint.cli.report:report", name="report")
app.command("forkpoint.cli.export:export", name="export")
app.command("forkpoint.cli.task:app", name="task")


def main() -> None:
    """Runs the command line; exits 0 done, 1 the check failed, 2 the user's mistake, 130 and 143 on signals."""
    from cyclopts import CycloptsError

    try:
        code = app(sys.argv[1:])
    except CycloptsError:
        sys.exit(2)
    except ForkpointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
