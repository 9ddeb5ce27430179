"""What audits cost a run while it trains: seconds of the RL stages of a run folder, with and without them.

forkpoint run RECIPE --runs DIR; python benchmarks/audit_cost.py DIR/NAME
"""

import argparse
from pathlib import Path

from forkpoint.store import RunReader
from forkpoint.training.health import SCORED, SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    with RunReader(parser.parse_args().run) as reader:
        for stage in reader.stages():
            updates, seconds, sampled = reader.updates(stage.name)
            audits, spent = reader.metrics(stage.name, SECONDS)
            scored = reader.metrics(stage.name, SCORED)[1]
            if not len(audits):
                continue
            print(
                f"{stage.name}: {len(audits)} audits in {len(updates)} updates: {spent.sum():.1f} s beside "
                f"{seconds.sum():.1f} s, {spent.sum() / (spent.sum() + seconds.sum()):.2%} of the stage; "
                f"each {spent.mean():.2f} s and {scored.mean():.0f} scored tokens, "
                f"an update {seconds.mean():.2f} s and {sampled.mean():.0f} sampled ones"
            )


if __name__ == "__main__":
    main()
