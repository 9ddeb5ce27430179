"""Contrastive fork tuning beside RL: solve rates, what they cost, and how far each stays from the base.

    python benchmarks/forks.py RUN [RUN ...] [--base base] [--against rl] [--json OUT.json]

Reads finished runs of recipes/forks.toml, changes nothing.  The agreement is that of a stage's last weights with the
base's, teacher-forced along the rollouts that the run kept of the stage's last evaluation (at most 64 groups).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from forkpoint.files import write_text_atomic
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.distributions import Agreement, agreement, top_tokens
from forkpoint.policies.folder import load_folder
from forkpoint.report.arms import FINAL, Arm, arms, compare_with_parents, final_evaluation, problem_means
from forkpoint.report.statistics import Difference, Interval, paired_difference, wilson_interval
from forkpoint.seeds import Key
from forkpoint.store import RunReader, latest_checkpoint, stage_folder

HEADINGS = (
    "arm", "solve rate (95 %)", "minus base (95 %)", "minus {against} (95 %)", "generated tokens", "trained tokens",
    "of {against}'s generated", "of {against}'s trained", "same top token as base (95 %)",
    "base entropy: all / where not",
    "seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One arm of the comparison; rates from 0 to 1, intervals 95 %, tokens, nats, seconds."""

    run: str
    arm: str
    solve_rate: float
    interval: Interval
    problems: int
    against_base: Difference | None
    against_other: Difference | None
    generated_tokens: int
    trained_tokens: int
    generated_ratio: float | None
    """Of the arm that is compared with."""
    trained_ratio: float | None
    agreement: Agreement | None
    seconds: float

    @property
    def agreement_interval(self) -> Interval | None:
        """Wilson interval of the agreement, positions taken as independent: too narrow, tokens of a text are not."""
        return wilson_interval(self.agreement.same, self.agreement.positions) if self.agreement else None


def read_run(folder: Path, *, base: str, against: str) -> list[Line]:
    """The lines of one run, in the order of its recipe."""
    with RunReader(folder) as reader:
        found = {arm.name: arm for arm in arms(reader)}
        differences = compare_with_parents(reader, list(found.values()))
        anchor = load(folder, base)
        costs = {name: (arm.sampled_tokens, trained_tokens(reader, name)) for name, arm in found.items()}
        return [
            Line(
                run=folder.name, arm=name, solve_rate=arm.solve_rate, interval=arm.interval, problems=arm.problems,
                against_base=differences.get(name) if arm.parent == base else None,
                against_other=difference(reader, name, against) if against in found and name != against else None,
                generated_tokens=costs[name][0], trained_tokens=costs[name][1],
                generated_ratio=ratio(costs[name][0], costs.get(against, (0, 0))[0]),
                trained_ratio=ratio(costs[name][1], costs.get(against, (0, 0))[1]),
                agreement=None if name == base else agree(reader, arm, load(folder, name), anchor),
                seconds=arm.seconds,
            )
            for name, arm in found.items()
        ]  # fmt: skip


def load(folder: Path, stage: str) -> CausalPolicy:
    checkpoint = latest_checkpoint(stage_folder(folder, stage))
    if checkpoint is None:
        raise SystemExit(f"{folder}: the stage '{stage}' has no checkpoint.")
    return load_folder(checkpoint)


def trained_tokens(reader: RunReader, stage: str) -> int:
    return int(reader.metrics(stage, "trained_tokens")[1].sum())


def ratio(one: float, other: float) -> float | None:
    return one / other if other else None


def difference(reader: RunReader, name: str, against: str) -> Difference | None:
    """Solve rate of one arm minus that of another, on the problems that both had."""
    means = []
    for stage in (name, against):
        final = final_evaluation(reader, stage)
        if final is None:
            return None
        means.append(dict(zip(*problem_means(final[1], final[1].correct), strict=True)))
    shared = sorted(means[0].keys() & means[1].keys())
    key = Key.root(0).child("forks", name, against)
    return paired_difference([means[0][each] for each in shared], [means[1][each] for each in shared], key)


def agree(reader: RunReader, arm: Arm, policy: CausalPolicy, base: CausalPolicy) -> Agreement:
    rollouts = [rollout for group in reader.groups(arm.name, arm.updates, FINAL) for rollout in group.rollouts]
    return agreement(top_tokens(policy, base, rollouts))


def cells(line: Line) -> list[str]:
    found = line.agreement
    return [
        line.arm,
        f"{line.solve_rate:.3f} ({line.interval[0]:.3f} to {line.interval[1]:.3f})",
        shown(line.against_base),
        shown(line.against_other),
        str(line.generated_tokens),
        str(line.trained_tokens),
        f"{line.generated_ratio:.2f}" if line.generated_ratio is not None else "-",
        f"{line.trained_ratio:.2f}" if line.trained_ratio is not None else "-",
        "-" if found is None else "{:.4f} ({:.4f} to {:.4f})".format(found.share, *line.agreement_interval or (0, 1)),
        "-" if found is None else f"{found.entropy:.2f} / {found.entropy_different or 0.0:.2f}",
        f"{line.seconds:.0f}",
    ]


def shown(found: Difference | None) -> str:
    return "-" if found is None else f"{found.value:+.3f} ({found.interval[0]:+.3f} to {found.interval[1]:+.3f})"


def print_table(lines: Sequence[Line], *, against: str) -> None:
    """A table in Markdown for each run."""
    for run in dict.fromkeys(line.run for line in lines):
        print(f"\n{run}: {max(line.problems for line in lines if line.run == run)} held-out problems\n")
        print("| " + " | ".join(heading.format(against=against) for heading in HEADINGS) + " |")
        print("|" + "---|" * len(HEADINGS))
        for line in lines:
            if line.run == run:
                print("| " + " | ".join(cells(line)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--base", default="base", help="the stage that the arms start from")
    parser.add_argument("--against", default="rl", help="the arm that costs are compared with")
    parser.add_argument("--json", type=Path, help="where to write every number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [line for run in options.runs for line in read_run(run, base=options.base, against=options.against)]
    print_table(lines, against=options.against)
    if options.json is not None:
        write_text_atomic(options.json, json.dumps([asdict(line) for line in lines], indent=1) + "\n")


if __name__ == "__main__":
    main()
