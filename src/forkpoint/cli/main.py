"""The command `forkpoint`: every subcommand is imported only when it is used."""

import sys
from pathlib import Path

from cyclopts import App

import forkpoint
from forkpoint.errors import ForkpointError

app = App(
    name="forkpoint",
    help="Train reasoning models, put the credit where the reasoning forked, audit what was learned.",
    version=forkpoint.__version__,
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
COMMANDS = {
    "run": ("run:run", "Run a recipe with live progress."),
    "evaluate": ("evaluate:evaluate", "Measure a model on held-out problems."),
    "meter": ("meter:meter", "Hold credit rules against the true advantage."),
    "doctor": ("doctor:doctor", "Check the learning loop before a GPU-hour is spent."),
    "report": ("report:report", "Write the report of a run again and print its arms."),
    "export": ("export:export", "Leave with a model or with the rollouts."),
    "task": ("task:app", "Look at problems, check a verifier, play by hand."),
    "audit": ("audit:app", "Audit a run or rollouts of any trainer; attack a scorer before a model does."),
    "review": ("review:app", "Postmortems: find the hinge of a rollout, fix it, prove the fix by re-rollout."),
    "lab": ("lab:app", "The exact theory of backtracking."),
}
"""Where each command is, in this package, and what it does: said here too, so that --help imports nothing."""

for place, (name, (target, about)) in enumerate(COMMANDS.items()):
    app.command(f"forkpoint.cli.{target}", name=name, help=about, sort_key=place)


def main() -> None:
    """Runs the command line; exits 0 done, 1 the check failed, 2 the user's mistake, 130 and 143 on signals."""
    from cyclopts import CycloptsError

    from forkpoint.cli.output import print_error

    # Plug-ins lie beside the recipe; last, so that they never stand before an installed module.
    sys.path.append(str(Path.cwd()))
    try:
        code = app(sys.argv[1:])
    except CycloptsError as error:
        error.verbose = False
        print_error(str(error))
        sys.exit(2)
    except ForkpointError as error:
        print_error(str(error))
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
