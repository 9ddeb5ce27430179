"""A reading as plain numbers: what `--json` prints and the page is made of."""

import math
from collections.abc import Mapping
from typing import Any

from forkpoint.meter.examples import Example, planned_examples
from forkpoint.meter.gradients import GradientScore
from forkpoint.meter.measures import Measured
from forkpoint.meter.reading import Extent, Reading, RuleReading
from forkpoint.meter.subject import CRITIC_BATCHES, Subject
from forkpoint.meter.truth import Tier

TIERS: Mapping[Tier, str] = {
    Tier.EXACT: "exact: the policy sees only the task's state",
    Tier.ENUMERATION: "exact: every sequence that can be written was enumerated",
    Tier.MONTE_CARLO: "nested Monte Carlo, correlations corrected for attenuation",
}


def reading_document(reading: Reading) -> dict[str, Any]:
    """A reading as JSON holds it; numbers that the tokens do not tell are null."""
    extent = reading.extent
    return {
        "tier": str(extent.tier),
        "tier_text": TIERS[extent.tier],
        "seeds": extent.seeds,
        "rollouts": reading.rollouts,
        "tokens": reading.tokens,
        "solved": reading.solved,
        "places": reading.places,
        "continuations": extent.continuations if extent.tier is Tier.MONTE_CARLO else 0,
        "reliability": _number(reading.reliability),
        "labels": reading.labels,
        "threshold": extent.threshold if reading.labels == "threshold" else None,
        "truth_cost": dict(reading.truth_cost),
        "gradient": {
            "batches": extent.batches,
            "rollouts": reading.gradient_rollouts,
            "oracle_noise": None if reading.oracle_noise is None else _measured(reading.oracle_noise),
        },
        "rules": [_rule(rule) for rule in reading.rules],
        "examples": [_example(example) for example in reading.examples],
    }


def _rule(rule: RuleReading) -> dict[str, Any]:
    return {
        "rule": rule.name,
        **{name: _measured(value) for name, value in rule.measures.items()},
        "cost": dict(rule.cost),
        "gradient": None if rule.gradient is None else _gradient(rule.gradient),
    }


def _example(example: Example) -> dict[str, Any]:
    """One rollout; lists run over its tokens, and hold null where a number is not known."""
    prompt = example.prompt if isinstance(example.prompt, str) else [dict(part) for part in example.prompt]
    return {
        "prompt": prompt,
        "answer": example.answer,
        "rollout": example.rollout,
        "outcome": example.outcome,
        "correct": example.correct,
        "group": {"solved": example.solved, "size": example.size},
        "tokens": list(example.tokens),
        "trained": list(example.trained),
        "keys": None if example.keys is None else list(example.keys),
        "truth": list(example.truth),
        "errors": list(example.errors),
        "rules": [{"rule": name, "advantages": list(found)} for name, found in example.advantages.items()],
    }


def _gradient(score: GradientScore) -> dict[str, Any]:
    return {
        "bias": _measured(score.bias),
        "cosine": _measured(score.cosine),
        "noise": _measured(score.noise),
        "over_oracle": _measured(score.over_oracle),
    }


def _measured(value: Measured) -> dict[str, Any]:
    return {"value": _number(value.value), "interval": [_number(end) for end in value.interval]}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def planned_tokens(subject: Subject, extent: Extent, *, critic: bool = False) -> dict[str, int]:
    """Tokens that a reading samples at most, by what for; what rules sample themselves is not known beforehand."""
    budget = subject.max_new_tokens
    rollouts, small = subject.problems * subject.group_size, extent.gradient_problems * subject.group_size
    drawn = extent.tier is Tier.MONTE_CARLO
    # A prefix leaves half of the budget on average; one shorter or longer evens out between the two values.
    truth = extent.seeds * min(extent.positions, rollouts * budget) * 2 * extent.continuations * (budget + 1) // 2
    oracle = extent.batches * small * 2 * extent.oracle_continuations * budget * (budget + 1) // 2
    return {
        "rollouts": extent.seeds * rollouts * budget,
        "critic": CRITIC_BATCHES * rollouts * budget if critic else 0,
        "truth": truth if drawn else 0,
        "gradient batches": extent.batches * small * budget,
        "oracle gradients": oracle if drawn else 0,
        "examples": planned_examples(subject, extent.examples) if drawn else 0,
    }
