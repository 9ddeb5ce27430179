"""Rollouts with an environment: the policy writes until ".", the environment answers or ends the episode."""

import numpy as np
import pytest
import sampling_examples as examples

from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import UNREADABLE
from forkpoint.records import Problem, Rollout, SpanKind, StopReason
from forkpoint.tasks.protocol import Interactive, Reply


class Toy:
    """The letter before the end of the turn decides: a ends silently, b ends with a word, c is met with silence."""

    def __init__(self, ends: tuple[str, ...] = (".",)) -> None:
        self.ends = ends
        self.asked: list[str] = []

    def turn_ends(self) -> tuple[str, ...]:
        return self.ends

    def reply(self, problem: Problem, transcript: str) -> Reply:
        assert problem == examples.PROBLEM
        assert transcript.endswith(self.ends)
        self.asked.append(transcript)
        letter = transcript[-2:-1]
        return Reply(observation="" if letter in ("a", "c") else " ok;", done=letter in ("a", "b"))


def written_by(rollout: Rollout, kind: SpanKind) -> list[bool]:
    mask = np.zeros(len(rollout.tokens), np.bool_)
    for span in rollout.spans:
        if span.kind is kind:
            mask[span.start : span.end] = True
    return mask.tolist()


def check_record(policy: CausalPolicy, toy: Toy, rollout: Rollout, budget: int) -> None:
    """Spans tile the tokens, observations are unscored, replies stand where turns end, actions score as sampled."""
    edges = [edge for span in rollout.spans for edge in (span.start, span.end)]
    assert edges[0] == 0
    assert edges[-1] == len(rollout.tokens)
    assert edges[1:-1:2] == edges[2::2]
    observed = np.array(written_by(rollout, SpanKind.OBSERVATION))
    assert rollout.loss_mask.tolist() == [
        not seen and place >= rollout.prefix_length for place, seen in enumerate(observed.tolist())
    ]
    assert not rollout.behavior_logprobs[observed].any()
    oracle = examples.full_logprobs(policy, rollout).numpy()
    assert np.allclose(rollout.behavior_logprobs[~observed], oracle[~observed], atol=1e-4)
    assert len(rollout.tokens) <= budget
    # One piece of text a token; the padding token, which a random policy also draws, has none.
    pieces = [policy.texts.decode([token]) for token in rollout.tokens.tolist()]
    rebuilt, place, done = "", 0, False
    while not done and place < len(pieces):
        rebuilt, place = rebuilt + pieces[place], place + 1
        if pieces[place - 1] and rebuilt.endswith(toy.ends):
            reply = toy.reply(examples.PROBLEM, rebuilt)
            end = place + len(reply.observation)
            assert observed[place:end].all()
            assert "".join(pieces[place:end]) == reply.observation[: len(pieces) - place]
            rebuilt, place, done = rebuilt + reply.observation, end, reply.done
        else:
            assert not observed[place - 1]
    if rollout.stop_reason is StopReason.DONE:
        assert done
        assert place == len(pieces)
    elif rollout.stop_reason is StopReason.LENGTH:
        assert len(rollout.tokens) == budget
        assert not done or place > len(pieces)
    else:
        assert rollout.tokens[-1] == policy.texts.eos_id


def run(policy: CausalPolicy, toy: Interactive, *, count: int = 80, budget: int = 40, slots: int = 64) -> list[Rollout]:
    prompt = examples.prompts(policy, 1)[0]
    asked = [examples.request(prompt, place, budget=budget - place % 7) for place in range(count)]
    return examples.sample(policy, asked, slots=slots, environment=toy)


def test_observations_are_fed_masked_and_counted() -> None:
    policy, toy = examples.character_policy(), Toy()
    assert isinstance(toy, Interactive)
    rollouts = run(policy, toy)
    assert {rollout.stop_reason for rollout in rollouts} == {StopReason.DONE, StopReason.LENGTH, StopReason.EOS}
    assert any(not rollout.loss_mask[-1] for rollout in rollouts if rollout.stop_reason is StopReason.LENGTH)
    assert any(not rollout.loss_mask[-1] for rollout in rollouts if rollout.stop_reason is StopReason.DONE)
    assert any(rollout.loss_mask[-1] for rollout in rollouts if rollout.stop_reason is StopReason.DONE)
    for place, rollout in enumerate(rollouts):
        check_record(policy, toy, rollout, 40 - place % 7)


def test_environment_rollouts_do_not_depend_on_slots() -> None:
    policy = examples.character_policy()
    few, many = (run(policy, Toy(), slots=slots) for slots in (8, 96))
    for mine, theirs in zip(few, many, strict=True):
        assert mine.tokens.tobytes() == theirs.tokens.tobytes()
        assert mine.behavior_logprobs.tobytes() == theirs.behavior_logprobs.tobytes()
        assert mine.spans == theirs.spans


def test_turn_ends_of_several_characters() -> None:
    policy, toy = examples.character_policy(), Toy(("c.", "ab", "d;"))
    rollouts = run(policy, toy)
    assert sum(SpanKind.OBSERVATION in {span.kind for span in rollout.spans} for rollout in rollouts) > 5
    for place, rollout in enumerate(rollouts):
        check_record(policy, toy, rollout, 40 - place % 7)


@pytest.mark.parametrize("ends", [(".",), ("c.", "ab", "d;")])
def test_a_parent_can_be_continued_from_every_place(ends: tuple[str, ...]) -> None:
    """Within a turn, at its end, within an observation, after it: the same stream goes on as the parent did."""
    policy, toy = examples.character_policy(), Toy(ends)
    parents = [
        rollout for rollout in run(policy, toy) if sum(span.kind is SpanKind.OBSERVATION for span in rollout.spans) >= 2
    ][:2]
    assert parents
    for parent in parents:
        budget = 40 - parent.index % 7
        for cut in range(1, min(len(parent.tokens), 24)):
            again = examples.request(parent.prompt_tokens, parent.index, budget=budget, parent=parent, prefix=cut)
            child = examples.sample(policy, [again], environment=toy)[0]
            assert child.tokens.tolist() == parent.tokens.tolist()
            assert child.stop_reason == parent.stop_reason
            assert written_by(child, SpanKind.OBSERVATION) == written_by(parent, SpanKind.OBSERVATION)
            check_record(policy, toy, child, budget)


def test_other_draws_after_a_cut_also_keep_to_the_protocol() -> None:
    policy, toy = examples.character_policy(), Toy()
    parent = max(run(policy, toy), key=lambda rollout: len(rollout.spans))
    asked = [
        examples.request(parent.prompt_tokens, place, seed=9, budget=60, parent=parent, prefix=1 + place % 20)
        for place in range(60)
    ]
    for child in examples.sample(policy, asked, environment=toy):
        check_record(policy, toy, child, 60)
        assert child.tokens[: child.prefix_length].tolist() == parent.tokens[: child.prefix_length].tolist()
    over = next(rollout for rollout in run(policy, toy) if rollout.stop_reason is StopReason.DONE)
    with pytest.raises(ValueError, match="is over"):
        examples.sample(policy, [examples.request(over.prompt_tokens, parent=over, prefix=len(over.tokens), budget=60)])


def test_a_stop_string_may_begin_in_what_the_environment_wrote() -> None:
    policy, prompt = examples.character_policy(), examples.prompts(examples.character_policy(), 1)[0]
    stops = tuple(f";{letter}" for letter in (*examples.ALPHABET, UNREADABLE))
    asked = [examples.request(prompt, place, budget=40, stop=stops) for place in range(40)]
    rollouts = examples.sample(policy, asked, environment=Toy())
    crossed = [rollout for rollout in rollouts if " ok;" in rollout.text[:-1]]
    assert crossed
    for rollout in crossed:
        if rollout.stop_reason is StopReason.STOP:
            assert rollout.text.count(";") == 1 or rollout.text.endswith(";;")
    assert StopReason.STOP in {rollout.stop_reason for rollout in crossed}


def test_a_turn_does_not_end_with_what_the_environment_wrote() -> None:
    policy, toy = examples.character_policy(), Toy((".", *(f";{letter}" for letter in "abcdefgh")))
    crossed = [rollout for rollout in run(policy, toy) if " ok;" in rollout.text[:-6]]
    assert len(crossed) > 3
    for parent in crossed[:4]:
        first = next(span for span in parent.spans if span.kind is SpanKind.OBSERVATION)
        assert parent.loss_mask[first.end]
        assert not any(span.start == first.end + 1 for span in parent.spans if parent.text[first.end] != ".")
        again = examples.request(
            parent.prompt_tokens, parent.index, budget=40 - parent.index % 7, parent=parent, prefix=first.end
        )
        assert examples.sample(policy, [again], environment=toy)[0].tokens.tolist() == parent.tokens.tolist()
