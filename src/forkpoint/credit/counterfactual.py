"""What the reward would have been had a step been another: swap it, keep or resample the rest, verify again."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from forkpoint.credit.continuations import (
    NOTHING,
    checked_rewards,
    judged_reward,
    mean,
    others,
    segment_credit,
    token_price,
    trained_tokens,
)
from forkpoint.credit.cuts import causal_cuts, read_cuts
from forkpoint.errors import RecipeError, unknown_name
from forkpoint.probe import Continuation, Probe
from forkpoint.records import Batch, Credit, Group, Ints, Rollout, frozen_array

Rest: TypeAlias = Literal["keep", "resample"]
RESTS = ("keep", "resample")
RULE = "counterfactual"
ALL_CUTS = 1_000_000
"""No limit: every step is asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    rest: str
    alphabet: Mapping[str, Ints]
    alternatives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Step `number` of the rollout at `place` of its group: its tokens `start` to `end`."""

    place: int
    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Swap:
    """A step with other tokens in its place; `weight` alternatives that are alike are judged once."""

    step: _Step
    tokens: Ints
    text: str
    index: int
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Attempt:
    """A rollout with a swapped step, to be judged."""

    rollout: Rollout
    written: int
    """Its trained tokens, those of the prefix included."""
    cost: Mapping[str, float]


def counterfactual(
    batch: Batch, probe: Probe, *, cuts: str = "steps", alternatives: int = 4, alphabet: str = "", rest: Rest = "keep"
) -> list[Credit]:
    """The credit of each rollout of `batch.rollouts`: for each step its reward less the mean over other steps there.

    A = r - mean over alternatives a of r(y with step k replaced by a)    (the baseline of COMA, arXiv 1705.08926)

    The alternatives are the k-th steps of the next `alternatives` rollouts of the group, its own step among them where
    they agree; or, where every step is one token, each character of `alphabet` (a single one, such as a blank, masks
    the step).  `keep` judges the edited text without generation; but what follows was written in view of the old step,
    so it is biased unless the policy's tokens are independent of each other.  `resample` continues once after each
    swapped step, without bias; a sibling's last step is no alternative then.  A step without a usable alternative is
    compared with the mean of the group's other rewards.  Rewards are those of `branch`.

    Raises:
        RecipeError: an option out of bounds; `alphabet` with steps of several tokens; `keep` where tokens are not
            characters or an environment replies.
        ValueError: as `branch`.
    """
    if rest not in RESTS:
        raise RecipeError(unknown_name("credit.options.rest", rest, RESTS))
    if alternatives < 1:
        raise RecipeError(f"credit.options.alternatives = {alternatives} must be at least 1.")
    options = _Options(rest=rest, alphabet=_characters(probe, alphabet), alternatives=alternatives)
    how, task = read_cuts(cuts), probe.task
    steps, swaps = [], []
    for group in batch.groups:
        found = [causal_cuts(group.problem, each, task, rule=how, max_cuts=ALL_CUTS) for each in group.rollouts]
        steps.append([_steps(place, cuts, len(group.rollouts[place].tokens)) for place, cuts in enumerate(found)])
        swaps.append(_swaps(group, steps[-1], options))
    attempts = iter(_attempts(batch, probe, swaps, rest))
    made: list[Credit] = []
    for group, mine, theirs in zip(batch.groups, steps, swaps, strict=True):
        made += _credits(group, probe, mine, theirs, [next(attempts) for _ in theirs])
    return made


def _characters(probe: Probe, alphabet: str) -> dict[str, Ints]:
    """The token of each character."""
    found = {character: probe.encode(character) for character in dict.fromkeys(alphabet)}
    for character, tokens in found.items():
        if len(tokens) != 1:
            raise RecipeError(f"credit.options.alphabet: {character!r} is {len(tokens)} tokens; each must be one.")
    return found


def _steps(place: int, cuts: Sequence[int], length: int) -> list[_Step]:
    return [
        _Step(place=place, number=number, start=start, end=end)
        for number, (start, end) in enumerate(itertools.pairwise([*cuts, length]))
    ]


def _swaps(group: Group, steps: Sequence[Sequence[_Step]], options: _Options) -> list[_Swap]:
    """Every step of every rollout with each of its alternatives."""
    swaps: list[_Swap] = []
    for rollout, mine in zip(group.rollouts, steps, strict=True):
        if options.rest == "keep":
            _check_editable(rollout)
        for step in mine:
            found = [
                _Swap(step=step, tokens=tokens, text=text, index=index)
                for index, (tokens, text) in enumerate(_alternatives(group, steps, step, options))
            ]
            swaps += _alike_once(found) if options.rest == "keep" else found
    return swaps


def _check_editable(rollout: Rollout) -> None:
    """Raises RecipeError unless the text of an edited rollout is known without a model and an environment."""
    # The end-of-sequence token has no text.
    if len(rollout.tokens) - len(rollout.text) not in (0, 1):
        raise RecipeError("credit.options.rest = 'keep' needs one token for each character; else write 'resample'.")
    if not rollout.loss_mask.all():
        raise RecipeError("credit.options.rest = 'keep' cannot keep an environment's replies; else write 'resample'.")


def _alternatives(
    group: Group, steps: Sequence[Sequence[_Step]], step: _Step, options: _Options
) -> list[tuple[Ints, str]]:
    """Tokens and text to put in the place of a step, its own perhaps among them.

    Which they are does not depend on what the rollout wrote from the step on, so that they make a baseline.
    """
    rollouts, resample = group.rollouts, options.rest == "resample"
    if options.alphabet and step.end - step.start != 1:
        raise RecipeError("credit.options.alphabet needs steps of one token, such as cuts = 'every:1'.")
    found = [(tokens, character) for character, tokens in options.alphabet.items()]
    if not options.alphabet:
        for offset in range(1, min(options.alternatives, len(rollouts) - 1) + 1):
            place = (step.place + offset) % len(rollouts)
            its, sibling = steps[place][step.number : step.number + 1], rollouts[place]
            if its and not (resample and its[0].end == len(sibling.tokens)):
                where = slice(its[0].start, its[0].end)
                found.append((sibling.tokens[where], sibling.text[where]))
    # The others show how long a rollout may surely be.
    room = max((len(rollout.tokens) for rollout in others(rollouts, step.place)), default=0)
    return [(tokens, text) for tokens, text in found if not resample or step.start + len(tokens) < room]


def _alike_once(swaps: Sequence[_Swap]) -> list[_Swap]:
    found: dict[bytes, _Swap] = {}
    for swap in swaps:
        key = swap.tokens.tobytes()
        found[key] = replace(found[key], weight=found[key].weight + 1) if key in found else swap
    return list(found.values())


def _attempts(batch: Batch, probe: Probe, swaps: Sequence[Sequence[_Swap]], rest: str) -> list[_Attempt | None]:
    """The edited rollout of each swap; None where the rest is kept and nothing was changed."""
    pairs = [(group, swap) for group, theirs in zip(batch.groups, swaps, strict=True) for swap in theirs]
    if rest == "keep":
        return [_with_kept_rest(group.rollouts[swap.step.place], swap) for group, swap in pairs]
    requests = []
    for group, swap in pairs:
        rollout = group.rollouts[swap.step.place]
        prefix = frozen_array(np.concatenate([rollout.tokens[: swap.step.start], swap.tokens]), np.int32)
        request = Continuation(
            problem=group.problem, rollout=rollout, prefix_length=len(prefix), index=swap.index, purpose=RULE,
            prefix=prefix,
        )  # fmt: skip
        requests.append(request)
    made = probe.branch(requests) if requests else []
    return [
        _resampled(swap, request, rollout) for (_, swap), request, rollout in zip(pairs, requests, made, strict=True)
    ]


def _with_kept_rest(rollout: Rollout, swap: _Swap) -> _Attempt | None:
    start, end = swap.step.start, swap.step.end
    if swap.tokens.tobytes() == rollout.tokens[start:end].tobytes():
        return None
    tokens = np.concatenate([rollout.tokens[:start], swap.tokens, rollout.tokens[end:]])
    edited = replace(
        rollout,
        id=f"{rollout.id}~{start}~{swap.index}",
        tokens=frozen_array(tokens, np.int32),
        behavior_logprobs=frozen_array(np.zeros(len(tokens)), np.float32),
        loss_mask=frozen_array(np.ones(len(tokens)), np.bool_),
        spans=(),
        text=rollout.text[:start] + swap.text + rollout.text[end:],
    )
    return _Attempt(rollout=edited, written=len(tokens), cost={"verifier_calls": 1.0})


def _resampled(swap: _Swap, request: Continuation, rollout: Rollout) -> _Attempt:
    drawn = trained_tokens(rollout)
    written = trained_tokens(request.rollout, swap.step.start) + len(swap.tokens) + drawn
    read = len(request.rollout.prompt_tokens) + request.prefix_length
    cost = {"sampled_tokens": float(drawn), "verifier_calls": 1.0, "shared_prefix_tokens": float(read)}
    return _Attempt(rollout=rollout, written=written, cost=cost)


def _credits(
    group: Group,
    probe: Probe,
    steps: Sequence[Sequence[_Step]],
    swaps: Sequence[_Swap],
    attempts: Sequence[_Attempt | None],
) -> list[Credit]:
    rewards, price = checked_rewards(group, RULE), token_price(group, RULE)
    asked = [attempt.rollout for attempt in attempts if attempt is not None]
    verdicts = iter(probe.verify(group.problem, asked) if asked else [])
    found: dict[_Step, list[float]] = {}
    costs = [dict(NOTHING) for _ in group.rollouts]
    for swap, attempt in zip(swaps, attempts, strict=True):
        place = swap.step.place
        # What changes nothing is already judged.
        reward: float | None = rewards[place]
        if attempt is not None:
            reward = judged_reward(next(verdicts), attempt.written, price=price)
            for name, amount in attempt.cost.items():
                costs[place][name] += amount
        if reward is not None:
            found.setdefault(swap.step, []).extend([reward] * swap.weight)
    made = []
    for place, (rollout, mine) in enumerate(zip(group.rollouts, steps, strict=True)):
        baselines = [mean(found.get(step) or others(rewards, place)) for step in mine]
        advantages = [rewards[place] - baseline for baseline in baselines]
        starts = [step.start for step in mine]
        made.append(segment_credit(rollout, starts, advantages, rule=RULE, cost=costs[place], values=baselines))
    return made
