"""Checks of the verifier by its judgements on the canaries."""

from collections import Counter

from forkpoint.doctor.canaries import REFERENCE, Trial
from forkpoint.doctor.check import Check
from forkpoint.doctor.subject import Subject
from forkpoint.records import Outcome, Severity

SLOW_SECONDS, TOO_SLOW = 1.0, 10.0
"""Median time of a verdict that makes training wait, in seconds, and that makes it pointless, as a multiple of it."""
FAILURES = 0.25
"""Share of canaries without a verdict above which the verifier is sick; below, one that was late is only named."""
COINCIDENCE = 0.25
"""Share of problems whose question, instructions, or `42` may be right by chance."""
NEVER_RIGHT = frozenset({"empty", "punctuation"})


def verifier_alive(subject: Subject) -> Check:
    """The verifier judges every canary: it neither hangs, raises, nor ends its process."""
    return trial_alive(subject.trial)


def trial_alive(trial: Trial) -> Check:
    """`verifier_alive` of a trial, before anything else is drawn."""
    failed = [judgement for judgement in trial.judgements if judgement.outcome is Outcome.ERROR]
    asked = len(trial.judgements) + bool(trial.ended)
    share = (len(failed) + bool(trial.ended)) / max(1, asked)
    why = trial.ended or (f"said '{failed[0].reason}'" if failed else "answered every time")
    return Check(
        name="verifier alive",
        did=f"share of failures; the verifier, asked {asked} times in a process of its own, {why}",
        value=share,
        bound=0.0,
        ok=share == 0,
        remedy="Make it return a verdict for every text; code that may hang or die belongs in verifiers.worker.",
        severity=Severity.CRITICAL if share > FAILURES or trial.ended else Severity.WARNING,
    )


def reference_accepted(subject: Subject) -> Check:
    """The verifier accepts the reference answers."""
    mine = [judgement for judgement in subject.trial.judgements if judgement.name == REFERENCE]
    # A verifier that fails is another check's affair.
    judged = [judgement for judgement in mine if judgement.outcome is not Outcome.ERROR]
    refused = [judgement for judgement in judged if judgement.outcome is not Outcome.CORRECT]
    how = f", such as '{refused[0].outcome}: {refused[0].reason}'" if refused else ""
    return Check(
        name="reference accepted",
        did=f"had {len(judged)} reference answers judged: {len(refused)} were refused{how}",
        value=len(refused),
        bound=0,
        ok=not refused,
        remedy="No rollout can be rewarded for what the task itself calls right: compare solve with verify.",
    )


def canaries_refused(subject: Subject) -> Check:
    """The verifier accepts none of the texts that answer nothing."""
    others = [judgement for judgement in subject.trial.judgements if judgement.name != REFERENCE]
    accepted = Counter(judgement.name for judgement in others if judgement.outcome is Outcome.CORRECT)
    asked = Counter(judgement.name for judgement in others)
    shares = {name: accepted[name] / asked[name] for name in accepted}
    sick = [name for name, share in shares.items() if name in NEVER_RIGHT or share > COINCIDENCE]
    names = ", ".join(f"'{name}' {accepted[name]} of {asked[name]}" for name in accepted)
    return Check(
        name="canaries refused",
        did=f"had {len(others)} texts judged that answer nothing (empty, 42, punctuation, question, instructions): "
        f"accepted were {names or 'none'}",
        value=max(shares.values(), default=0.0),
        bound=0.0,
        ok=not accepted,
        remedy="The policy will find what the verifier accepts: make it refuse these texts.",
        severity=Severity.CRITICAL if sick else Severity.WARNING,
    )


def verdict_time(subject: Subject) -> Check:
    """A verdict takes little time."""
    seconds = subject.trial.verdict_seconds
    return Check(
        name="verdict time",
        did=f"timed {len(subject.trial.judgements)} verdicts: their median, seconds",
        value=seconds,
        bound=SLOW_SECONDS,
        ok=seconds <= SLOW_SECONDS,
        remedy="Training waits for every verdict: make the verifier faster, or its deadline shorter.",
        severity=Severity.CRITICAL if seconds > TOO_SLOW * SLOW_SECONDS else Severity.WARNING,
    )


def verdicts_drawn(subject: Subject) -> Check:
    """The verifier could judge what the policy wrote."""
    verdicts = [verdict for judged in subject.judged for group in judged.groups for verdict in group.verdicts]
    failed = [verdict for verdict in verdicts if verdict.outcome is Outcome.ERROR]
    share = len(failed) / max(1, len(verdicts))
    how = f", such as '{failed[0].reason[:120]}'" if failed else ""
    return Check(
        name="verdicts",
        did=f"read {len(verdicts)} verdicts on rollouts: this share are failures of the verifier{how}",
        value=share,
        bound=0.1,
        ok=not failed,
        remedy="Rollouts without a verdict leave their group: mend the verifier.",
        severity=Severity.CRITICAL if share > 0.1 else Severity.WARNING,
    )
