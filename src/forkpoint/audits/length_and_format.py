"""`length_and_format`: truncation, length by outcome, unfinished thinking, language and repetition.

Windows are the first and the last quarter of the updates (`windows`).  Lengths in tokens, or in characters.
"""

import numpy as np

from forkpoint.audits.part import RANKS, Bounds, Part, Parts, graded, judged, run_parts, with_evidence
from forkpoint.audits.texts import repetition, script, strangers, words
from forkpoint.audits.windows import Change, change, estimate, latest, sample, windows
from forkpoint.probe import Probe
from forkpoint.records import OUTCOMES, STOPS, Bools, Finding, Outcome, Records, Severity, StopReason
from forkpoint.verifiers.answers import THINK_OPEN, after_thinking, thinking

NAME = "length_and_format"
TRUNCATED = Bounds(watch=0.1, sick=0.5, source="half of the rollouts never reach an answer (ours)")
UNPARSEABLE = Bounds(watch=0.1, sick=0.5, source="half of the rollouts are judged without an answer (ours)")
UNFINISHED = Bounds(watch=0.1, sick=0.5, source="half of the thoughts have no end (ours)")
SHRUNK = Bounds(watch=2.0, sick=10.0, source="a run against a judge that fell below 30 tokens, arXiv 2507.08794 (ours)")
LANGUAGE = Bounds(watch=0.05, sick=0.3, source="share of texts that left the main script (ours)")
REPEATED = Bounds(watch=0.1, sick=0.3, source="share of 4-grams that stood in the text before (ours)")


def truncated(records: Records) -> Bools:
    """Which rollouts were cut off."""
    cut = records.stop == STOPS.index(StopReason.LENGTH)
    return cut | (records.outcome == OUTCOMES.index(Outcome.TRUNCATED))


def _truncation(records: Records) -> list[Finding]:
    last = latest(records)
    now = estimate(truncated(records)[last], records.problem[last])
    if now is None:
        return []
    claim = f"{now.value:.1%} of the rollouts were cut off before they ended."
    found = graded(NAME, claim, now.value, now.interval, TRUNCATED)
    return [with_evidence(found, records, last & truncated(records))]


def _unparseable(records: Records) -> list[Finding]:
    last = latest(records) & (records.outcome >= 0)
    bad = records.outcome == OUTCOMES.index(Outcome.UNPARSEABLE)
    now = estimate(bad[last], records.problem[last])
    if now is None:
        return []
    claim = f"{now.value:.1%} of the rollouts hold no answer in the declared form."
    found = graded(NAME, claim, now.value, now.interval, UNPARSEABLE)
    return [with_evidence(found, records, last & bad)]


def _by_outcome(records: Records) -> list[Finding]:
    last = latest(records) & (records.length > 0)
    right, wrong = last & (records.correct == 1), last & (records.correct == 0)
    if not right.any() or not wrong.any():
        return []
    ratio = float(records.length[wrong].mean() / records.length[right].mean())
    claim = (
        f"Wrong rollouts are {ratio:.2f} times as long as correct ones ({records.length[wrong].mean():.0f} against "
        f"{records.length[right].mean():.0f} {records.unit})."
    )
    return [Finding(audit=NAME, severity=Severity.INFO, claim=claim, value=ratio)]


def _trend(records: Records) -> list[Finding]:
    """Length over time; a change is watched only where the solve rate does not rise with it."""
    found = windows(records)
    if found is None:
        return []
    moved = change(np.where(records.length > 0, records.length, np.nan), records, found)
    if moved is None or moved.before.value <= 0:
        return []
    ratio = moved.now.value / moved.before.value
    solved = change(np.where(records.correct < 0, np.nan, records.correct), records, found)
    earned = solved is not None and solved.rises
    far = max(ratio, 1 / max(ratio, 1e-9)) if moved.rises or moved.falls else 1.0
    severity = Severity.INFO if earned else SHRUNK.grade(far if ratio < 1 else min(far, SHRUNK.sick * 0.99))
    why = "while the share of correct rollouts rose" if earned else "and the share of correct rollouts did not rise"
    claim = (
        f"The mean length went from {moved.before.value:.0f} to {moved.now.value:.0f} {records.unit} ({found.text}), "
        f"{why if solved is not None else 'outcomes unknown'}."
    )
    low, high = (end / moved.before.value for end in moved.interval)
    made = judged(NAME, severity, claim, ratio, (1 + low, 1 + high), SHRUNK)
    return [with_evidence(made, records, found.last)]


def _thinking(records: Records) -> list[Finding]:
    rows = sample(records, latest(records))
    said = [contents.text or "" for contents in records.contents(rows)]
    thinks = np.array([THINK_OPEN in text for text in said], dtype=np.bool_)
    if not thinks.any():
        return []
    open_ended = np.array([after_thinking(text) is None for text in said], dtype=np.bool_)
    now = estimate(open_ended, records.problem[rows])
    if now is None:
        return []
    claim = f"{now.value:.1%} of the texts open a think tag that they never close."
    found = graded(NAME, claim, now.value, now.interval, UNFINISHED)
    return [with_evidence(found, records, rows[open_ended])]


def _drift(records: Records) -> list[Finding]:
    """Language and repetition at the end against the beginning."""
    found = windows(records)
    if found is None:
        return []
    rows = np.unique(np.concatenate([sample(records, found.first), sample(records, found.last)]))
    foreign, repeated = np.full(len(records), np.nan), np.full(len(records), np.nan)
    scripts = {}
    for row, contents in zip(rows.tolist(), records.contents(rows), strict=True):
        text = contents.text or ""
        scripts[row] = script(text)
        repeated[row] = repetition(words(text))
    main = _main([name for row, name in scripts.items() if found.first[row]])
    for row, name in scripts.items():
        foreign[row] = float(name != main) if name else np.nan
    made = []
    for values, bounds, what in (
        (foreign, LANGUAGE, f"Texts mainly in another script than {main.lower() or 'at first'}"),
        (repeated, REPEATED, "The share of 4-grams that repeat within a text"),
    ):
        moved = change(values, records, found)
        if moved is None:
            continue
        claim = f"{what}: {moved.before.value:.1%}, then {moved.now.value:.1%} ({found.text})."
        finding = graded(NAME, claim, moved.value, moved.interval, bounds)
        worst = rows[np.argsort(-np.nan_to_num(values[rows] * found.last[rows]), kind="stable")]
        made.append(with_evidence(finding, records, worst) if RANKS[finding.severity] else finding)
    return made


def _thoughts(records: Records) -> list[Finding]:
    """Letters of the thinking that are not of the script in which the base thinks, or the stage thought at first."""
    found, base = windows(records), records.base
    if base is not None and "text" in base.has:
        now_rows, source, about = sample(records, latest(records)), base, f"{base.stage}, then {records.stage}"
        before_rows = sample(base, latest(base))
    elif found is not None:
        now_rows, source, about = sample(records, found.last), records, found.text
        before_rows = sample(records, found.first)
    else:
        return []
    before, now = (
        [thinking(said.text or "") for said in kept.contents(rows)]
        for kept, rows in ((source, before_rows), (records, now_rows))
    )
    main = _main([script(text) for text in before])
    if not main or not any(now):
        return []
    one, two = (
        estimate(np.array([strangers(text, main) for text in texts]), kept.problem[rows])
        for texts, kept, rows in ((before, source, before_rows), (now, records, now_rows))
    )
    if one is None or two is None:
        return []
    moved = Change(before=one, now=two)
    shares = f"{one.value:.1%}, then {two.value:.1%}"
    claim = f"Letters of the thinking in another script than {main.lower()}: {shares} ({about})."
    worst = now_rows[np.argsort([-np.nan_to_num(strangers(text, main)) for text in now], kind="stable")]
    finding = graded(NAME, claim, moved.value, moved.interval, LANGUAGE)
    return [with_evidence(finding, records, worst) if RANKS[finding.severity] else finding]


def _main(names: list[str]) -> str:
    known = sorted(name for name in names if name)
    return max(set(known), key=known.count) if known else ""


PARTS: Parts = {
    "truncation": Part(_truncation, ("stops",)),
    "unparseable answers": Part(_unparseable, ("outcomes",)),
    "length by outcome": Part(_by_outcome, ("length", "correct")),
    "length over time": Part(_trend, ("length", "updates")),
    "unfinished thinking": Part(_thinking, ("text",)),
    "language of thinking": Part(_thoughts, ("text",)),
    "language and repetition": Part(_drift, ("text", "updates")),
}


def length_and_format(records: Records, _probe: Probe | None = None) -> list[Finding]:
    """What length and form of the rollouts say."""
    return run_parts(PARTS, records)
