"""`mismatch`: does the policy that is trained agree with the one that sampled?

With w = pi / mu of each trained token, from stored log-probabilities (nats):

    k3  = mean(w - 1 - log w)                  (>= 0, estimates KL(mu || pi))
    ess = (sum w)^2 / (N sum w^2)              (1 where they agree)
    max = max |log w|

From the metrics `kl_to_behavior` and `mismatch_max` of a run of ours otherwise.
"""

import numpy as np

from forkpoint.audits.part import Bounds, Part, Parts, judged, run_parts, with_evidence
from forkpoint.audits.windows import latest, sample
from forkpoint.probe import Probe
from forkpoint.records import Contents, Finding, Records, Severity
from forkpoint.theory.intervals import Interval

NAME = "mismatch"
K3 = Bounds(watch=0.001, sick=0.01, source="the range at which k3 filters reject sequences, verl's rollout correction")
LOSS = Bounds(watch=0.1, sick=0.5, source="1 - effective sample size: half of the tokens are wasted (ours)")
LARGEST = Bounds(
    watch=0.6931, sick=4.6052, source="a ratio of 2, where truncated importance sampling cuts, and of 100 (ours)"
)
ORDER = ("first", "second", "third", "last")
Tokens = np.ndarray[tuple[int], np.dtype[np.float64]]


def _ratios(contents: Contents) -> Tokens:
    """The log of pi / mu of the trained tokens; empty where the two cannot be compared."""
    one, two = contents.trainer_logprobs, contents.behavior_logprobs
    if one is None or two is None or len(one) != len(two):
        return np.zeros(0)
    there = np.isfinite(one) & np.isfinite(two)
    if contents.loss_mask is not None and len(contents.loss_mask) == len(one):
        there = there & contents.loss_mask
    return one[there].astype(np.float64) - two[there]


def _logprobs(records: Records) -> list[Finding]:
    rows = sample(records, latest(records))
    found = [_ratios(contents) for contents in records.contents(rows)]
    logs = np.concatenate([*found, np.zeros(0)])
    if not len(logs):
        return []
    weights = np.exp(np.clip(logs, -50, 50))
    k3 = np.array([float((np.exp(np.clip(part, -50, 50)) - 1 - part).sum()) for part in found])
    sizes = np.array([len(part) for part in found], dtype=np.float64)
    value = float(k3.sum() / sizes.sum())
    error = float(np.sqrt(((k3 - value * sizes) ** 2).sum()) / sizes.sum())
    lost = 1 - float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))
    largest = float(np.abs(logs).max())
    worst = rows[np.argsort(-k3, kind="stable")]
    told = f"over {len(logs)} tokens of {len(rows)} rollouts"
    made = [
        judged(NAME, K3.grade(value - 2 * error), f"KL of sampler and trainer (k3) is {value:.2g} nats {told}.",
               value, (value - 2 * error, value + 2 * error), K3),
        judged(NAME, LOSS.grade(lost), f"The effective sample size is {1 - lost:.1%} {told}.", lost, None, LOSS),
        judged(NAME, LARGEST.grade(largest), f"The largest difference is {largest:.3g} nats {told}.", largest, None,
               LARGEST),
    ]  # fmt: skip
    return [with_evidence(finding, records, worst) for finding in made]


def _metrics(records: Records) -> list[Finding]:
    """The same from the metrics; with several updates to a batch they hold the movement of the policy too."""
    made = []
    for name, bounds, what in (
        ("kl_to_behavior", K3, "The KL of sampler and trainer (k3)"),
        ("mismatch_max", LARGEST, "The largest difference of log-probabilities"),
    ):
        if name not in records.metrics:
            continue
        updates, values = records.metrics[name]
        if len(values) == 0:
            continue
        # Not the last quarter: a policy that a mismatch has killed is certain of every token, and differs no more.
        quarters = [part for part in np.array_split(values, 4) if len(part)]
        middles = [float(np.median(part)) if np.isfinite(part).all() else np.inf for part in quarters]
        place = int(np.argmax(middles))
        value, part = middles[place], quarters[place]
        worst = int(np.nanargmax(np.where(np.isfinite(values), values, np.inf)))
        severity = bounds.grade(value) if np.isfinite(value) else Severity.CRITICAL
        interval: Interval = (float(part.min()), float(part.max()))
        claim = (
            f"{what} is {value:.2g} nats in the middle of the worst quarter of the updates, the {ORDER[place]}; "
            f"the most is {values[worst]:.2g} at update {updates[worst]}."
        )
        finite = value if np.isfinite(value) else -1.0
        made.append(judged(NAME, severity, claim, finite, interval if np.isfinite(part).all() else None, bounds))
    return made


PARTS: Parts = {
    "log-probabilities": Part(_logprobs, ("behavior_logprobs", "trainer_logprobs")),
    "metrics": Part(_metrics, ("metrics",)),
}


def mismatch(records: Records, _probe: Probe | None = None) -> list[Finding]:
    """How far sampler and trainer are apart."""
    return run_parts(PARTS, records)
