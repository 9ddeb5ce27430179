"""All checks in one table, and how they are made."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from forkpoint.doctor import agreement, credits, dense, forecast, gradients, records, verdicts
from forkpoint.doctor.check import Check
from forkpoint.doctor.subject import Subject
from forkpoint.errors import ForkpointError

CheckFunction: TypeAlias = Callable[[Subject], Check]


@dataclass(frozen=True, slots=True)
class Entry:
    """A check, and when it is made."""

    function: CheckFunction
    texts: bool = False
    """Whether stages of texts have it too."""
    alone: bool = False
    """Whether it changes weights: only on a policy that is thrown away."""


CHECKS: tuple[Entry, ...] = (
    Entry(verdicts.verifier_alive, texts=True),
    Entry(verdicts.reference_accepted, texts=True),
    Entry(verdicts.canaries_refused, texts=True),
    Entry(verdicts.verdict_time, texts=True),
    Entry(verdicts.verdicts_drawn),
    Entry(records.parse_failures),
    Entry(records.groups_complete),
    Entry(records.groups_unmixed),
    Entry(records.no_duplicates),
    Entry(records.masks_cover, texts=True),
    Entry(records.sampled_ids),
    Entry(records.round_trip),
    Entry(records.logprobs_recorded),
    Entry(credits.reward_sign),
    Entry(credits.advantages_finite),
    Entry(credits.advantage_mean),
    Entry(credits.credit_formula),
    Entry(credits.zero_variance),
    Entry(credits.token_weights_global, texts=True),
    Entry(agreement.sampler_equals_trainer),
    Entry(agreement.prefixes),
    Entry(agreement.sampler_distribution),
    Entry(agreement.versions),
    Entry(gradients.gradient_finite, texts=True),
    Entry(gradients.gradient_invariance, texts=True),
    Entry(gradients.terms_alive, texts=True),
    Entry(dense.dense_credit),
    Entry(forecast.disk, texts=True),
    Entry(forecast.memory, texts=True),
    Entry(forecast.duration, texts=True),
    Entry(agreement.weights_reach_sampler, alone=True),
)
"""In the order in which a cause comes before its effects; the last one changes weights."""


def examine(subject: Subject, *, alone: bool = False) -> list[Check]:
    """The checks of a subject, in the order of the table; `alone` allows those that change weights."""
    is_text = not subject.judged
    made = []
    for entry in CHECKS:
        if (is_text and not entry.texts) or (entry.alone and not alone):
            continue
        began = time.perf_counter()
        check = attempt(entry.function, subject)
        subject.timings[check.name] = time.perf_counter() - began
        made.append(check)
    return made


def attempt(function: CheckFunction, subject: Subject) -> Check:
    """The check; one that the loop refuses, such as a step that is no legal move, is sick."""
    try:
        return function(subject)
    except ForkpointError as error:
        return Check(
            name=function.__name__.replace("_", " "), did=f"could not be made: {str(error).rstrip('.')}",
            value=float("nan"), bound=None, ok=False, remedy="Look at what the message names.",
        )  # fmt: skip
