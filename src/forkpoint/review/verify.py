"""Whether a fix is one: rollouts from prefix and fix, against rollouts in which the policy draws the step anew.

Three phases, each a function of the one before.  `tried` draws both arms of every proposal; `discoveries` keeps the
share of false acceptances over all of them below a level; `confirmed` draws both arms anew for what was accepted, since
the numbers that won the test are too good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from forkpoint.probe import Probe
from forkpoint.records import Edit, EditKind, Group
from forkpoint.review.arms import Arm, draw
from forkpoint.review.contrasts import discoveries
from forkpoint.review.leak import LeakSettings, Question, leaks
from forkpoint.review.postmortem import Verification
from forkpoint.review.steps import Blamed, Fixed, fixed_prefix, is_wrong_step
from forkpoint.review.testing_values import Counts, difference_interval, higher_p_value, sequential_p_value
from forkpoint.seeds import Key

TEST, FRESH = "verify.test", "verify.fresh"
"""Purposes of the two draws, which share no random number."""
USUAL_LEAK = LeakSettings()
SHORT = "the budget ended"
"""What the reason of a verification begins with that a larger budget may turn."""
TEST_SHARE = 2 / 3
"""Of a budget; the rest is kept for the fresh rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """How fixes are verified."""

    max_new_tokens: int
    """Budget of a rollout after the prompt, as the probe's plan has it."""
    looks: tuple[int, ...] = (16, 32, 64)
    """Trials of each arm at each look; a proposal stops at the first that decides, and each may spend an equal part of
    the error."""
    enough: float = 0.001
    """A p-value that ends a proposal's test early; so does a share no larger than the resampled one."""
    level: float = 0.05
    """Expected share of false acceptances among the accepted."""
    fresh: int = 64
    """Trials of each arm behind the lift of an accepted fix."""
    budget: int | None = None
    """Sampled tokens of the whole call, never exceeded; None: as many as it takes."""
    leak: LeakSettings | None = USUAL_LEAK
    """None: fixes may say what they like."""
    check_steps: bool = True
    """Whether a fix that the task itself finds wrong is refused; for tasks with `wrong_steps`."""

    def __post_init__(self) -> None:
        if not self.looks or list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 1:
            raise ValueError(f"verify: looks = {self.looks} must ascend from at least 1.")


@dataclass(slots=True, kw_only=True, eq=False)
class Tried:
    """A proposal on its way: refused with a reason, or with two arms and their p-value."""

    edit: Edit
    step: Blamed | None = None
    fixed: Fixed | None = None
    arm: Arm | None = None
    control: Arm | None = None
    """Shared by the proposals for one cut of one rollout."""
    trials: int = 0
    """Of each arm that the proposal itself has looked at; a shared arm may hold more."""
    looks: list[float] = field(default_factory=list)
    """Boschloo's p-value at each look."""
    p_value: float = 1.0
    leak: float | None = None
    reason: str = ""
    """Why it was refused before the test."""
    stopped: bool = False
    short: bool = False
    """Whether the budget ended the test."""

    def counts(self) -> tuple[Counts, Counts]:
        """Successes and usable trials after the fix, and after a resampled step."""
        if self.arm is None or self.control is None:
            return (0, 0), (0, 0)
        return self.arm.counts(self.trials), self.control.counts(self.trials)


def verify(
    edits: Sequence[Edit], groups: Sequence[Group], probe: Probe, *, settings: Trials, key: Key
) -> list[Verification]:
    """What re-rollouts say of each edit of kind `fix`, in order.

    The share of false acceptances is controlled over all edits of the call that came to a test.  Everything else of a
    verification, its draws and its p-value, is the same whichever other edits are verified with it, unless the budget
    runs out.  `key` names the prompts of the leak check.

    Raises:
        ValueError: an edit of another kind, or one twice.
    """
    tested = tried(edits, groups, probe, settings=settings, key=key)
    return confirmed(tested, accepted(tested, level=settings.level), probe, settings=settings)


def tried(edits: Sequence[Edit], groups: Sequence[Group], probe: Probe, *, settings: Trials, key: Key) -> list[Tried]:
    """Each edit with its two arms and its p-value, or with the reason why it was refused before them."""
    if any(edit.kind is not EditKind.FIX for edit in edits) or len({edit.id for edit in edits}) < len(edits):
        raise ValueError("verify: the edits must be of kind fix, each of them once.")
    homes = {rollout.id: (group, rollout) for group in groups for rollout in group.rollouts}
    found = [Tried(edit=edit) for edit in edits]
    controls: dict[tuple[str, int], Arm] = {}
    arms: dict[tuple[str, bytes], Arm] = {}
    for each in found:
        edit = each.edit
        if edit.rollout_id not in homes:
            each.reason = "its rollout is not here"
            continue
        group, rollout = homes[edit.rollout_id]
        each.step = Blamed(group=group, rollout=rollout, start=edit.start, end=edit.end)
        _prepare(each, each.step, probe, settings)
        if each.fixed is not None:
            each.control = controls.setdefault((rollout.id, edit.start), Arm(step=each.step, fixed=None, purpose=TEST))
            # Two edits can come to the same prefix, and would then draw the same rollouts.
            name = (rollout.id, each.fixed.tokens.tobytes())
            each.arm = arms.setdefault(name, Arm(step=each.step, fixed=each.fixed, purpose=TEST))
    limit = None if settings.budget is None else int(settings.budget * TEST_SHARE)
    if settings.leak is not None:
        _find_leaks(found, probe, settings.leak, key.child("leak"), settings=settings, limit=limit)
    for trials in settings.looks:
        running = [each for each in found if not each.reason and not each.stopped]
        _afford(running, trials, spent_tokens(found), settings, limit)
        running = [each for each in running if not each.stopped]
        draw(_arms(running), trials, probe)
        for each in running:
            _look(each, trials, settings)
    return found


def _prepare(each: Tried, step: Blamed, probe: Probe, settings: Trials) -> None:
    """Sets the prefix with the fix, or the reason why there is none."""
    made = fixed_prefix(step, each.edit.text, probe, max_new_tokens=settings.max_new_tokens)
    if isinstance(made, str):
        each.reason = made
    elif settings.check_steps and is_wrong_step(probe.task, step, made):
        each.reason = "the task finds the step wrong"
    else:
        each.fixed = made


def _pair(each: Tried) -> tuple[Arm, Arm]:
    if each.arm is None or each.control is None:
        raise AssertionError("a refused proposal has no arms")
    return each.arm, each.control


def _arms(running: Sequence[Tried]) -> list[Arm]:
    return [arm for each in running for arm in _pair(each)]


def spent_tokens(tested: Sequence[Tried]) -> int:
    """Sampled tokens of all arms, shared ones once."""
    arms = dict.fromkeys(arm for each in tested for arm in (each.arm, each.control) if arm is not None)
    return sum(arm.sampled_tokens for arm in arms)


def _afford(running: Sequence[Tried], trials: int, used: int, settings: Trials, limit: int | None) -> None:
    """Stops those, from the last on, whose next round might go beyond the budget."""
    growing: set[Arm] = set()
    for each in running:
        more = [arm for arm in _pair(each) if arm not in growing]
        worst = sum(arm.most_tokens(trials, settings.max_new_tokens) for arm in more)
        if limit is not None and used + worst > limit:
            each.stopped = each.short = True
        else:
            used += worst
            growing.update(more)


def _look(each: Tried, trials: int, settings: Trials) -> None:
    """One more p-value, and whether it decides; a fix that does no better than a resampled step is given up."""
    each.trials = trials
    fixed, resampled = each.counts()
    each.looks.append(higher_p_value(fixed, resampled))
    each.p_value = sequential_p_value(each.looks, len(settings.looks))
    behind = fixed[0] * resampled[1] <= resampled[0] * fixed[1]
    each.stopped = behind or each.p_value <= settings.enough


def _find_leaks(
    found: Sequence[Tried], probe: Probe, rules: LeakSettings, key: Key, *, settings: Trials, limit: int | None
) -> None:
    """Refuses fixes that give the answer away, held against the step as it was.

    What the policy wrote there itself, knowing no answer, is no leak: a last step may well hold the answer.
    """
    alive = [each for each in found if not each.reason]
    questions = []
    for each in alive:
        step = _pair(each)[1].step
        before, old = (probe.decode(step.rollout.tokens[a:b]) for a, b in ((0, step.start), (step.start, step.end)))
        questions.append(Question(problem=step.problem, before=before, text=each.edit.text, others=(old,)))
    suspects = []
    for each, leak in zip(alive, leaks(questions, probe, key=key, settings=rules), strict=True):
        each.leak, each.reason = leak.rise, leak.reason(rules)
        suspects += [each] if each.reason else []
    _afford(suspects, settings.looks[0], 0, settings, limit)
    draw([_pair(each)[1] for each in suspects if not each.stopped], settings.looks[0], probe)
    for each in suspects:
        if each.edit.text in _pair(each)[1].steps[: settings.looks[0]]:
            each.reason = ""


def accepted(tested: Sequence[Tried], *, level: float) -> list[bool]:
    """Which proposals pass, with an expected share of false ones of at most `level` (Benjamini and Hochberg 1995).

    What was refused before its test is not of the family: it cannot be accepted, and no outcome was looked at.
    """
    places = [place for place, each in enumerate(tested) if not each.reason]
    passed = discoveries([tested[place].p_value for place in places], level)
    kept = {place for place, passes in zip(places, passed, strict=True) if passes}
    return [place in kept for place in range(len(tested))]


def confirmed(tested: Sequence[Tried], chosen: Sequence[bool], probe: Probe, *, settings: Trials) -> list[Verification]:
    """The verifications, with the lift of what was chosen on rollouts that nobody has looked at yet.

    Acceptance is withdrawn where the interval of the lift lies below 0.  Not earlier: to keep only what does well on
    the fresh rollouts too would make their numbers too good again.
    """
    again: dict[int, Tried] = {}
    anew: dict[Arm, Arm] = {}
    for place, (each, passes) in enumerate(zip(tested, chosen, strict=True)):
        if passes:
            arm, control = (
                anew.setdefault(old, Arm(step=old.step, fixed=old.fixed, purpose=FRESH)) for old in _pair(each)
            )
            again[place] = Tried(edit=each.edit, arm=arm, control=control, trials=settings.fresh)
    _afford(list(again.values()), settings.fresh, spent_tokens(tested), settings, settings.budget)
    draw(_arms([each for each in again.values() if not each.short]), settings.fresh, probe)
    paid: set[Arm] = set()
    return [_verification(each, again.get(place), paid) for place, each in enumerate(tested)]


def _verification(each: Tried, again: Tried | None, paid: set[Arm]) -> Verification:
    fixed, resampled = each.counts()
    lift, interval, reason = None, None, each.reason
    if again is None and not reason:
        reason = f"no better than a resampled step (p = {each.p_value:.2g})"
        if each.short:
            reason = f"{SHORT} before it was decided (p = {each.p_value:.2g})"
        elif not (fixed[1] and resampled[1]):
            reason = "no usable verdict"
    if again is not None:
        one, other = again.counts()
        if again.short:
            reason = f"{SHORT} before its fresh rollouts"
        elif not (one[1] and other[1]):
            reason = "no usable verdict on its fresh rollouts"
        else:
            lift, interval = one[0] / one[1] - other[0] / other[1], difference_interval(one, other)
            reason = "worse than a resampled step on its fresh rollouts" if interval[1] < 0 else ""
    return Verification(
        edit_id=each.edit.id, fixed=fixed, resampled=resampled, p_value=each.p_value, leak=each.leak,
        accepted=again is not None and not reason, reason=reason, lift=lift, interval=interval,
        cost=_cost((each, again), paid),
    )  # fmt: skip


def _cost(trials: Sequence[Tried | None], paid: set[Arm]) -> Mapping[str, float]:
    """Of both draws; a shared control is charged to the first proposal that used it."""
    arms = [arm for each in trials if each is not None for arm in (each.arm, each.control) if arm is not None]
    mine = [arm for arm in arms if arm not in paid]
    paid.update(mine)
    return {
        "sampled_tokens": float(sum(arm.sampled_tokens for arm in mine)),
        "verifier_calls": float(sum(arm.verifier_calls for arm in mine)),
    }
