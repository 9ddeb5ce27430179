"""Proposals: what each source offers, what is merged and what dropped, and hostile chat models."""

from dataclasses import replace

import numpy as np
import pytest
from coin_examples import CoinProbe, Steps, codes, group, problem, text_of, written

from forkpoint.errors import TaskError
from forkpoint.records import StopReason
from forkpoint.review.postmortem import Claim, Review
from forkpoint.review.repair import ProposalError, Repair, propose, shows_any_text, sibling_steps
from forkpoint.review.steps import Blamed, blamed_step
from forkpoint.seeds import Key
from forkpoint.tasks import arithmetic

KEY = Key.root(4)
FAILED = written("ab;cd;ef;#0\n", name="failed")


class Knowing(Steps):
    """Has a solver, prompts with knowledge, and states: the letters of a text in order."""

    def right_step(self, problem, transcript):
        return "" if "zz" in transcript else f"r{len(transcript)};"

    def privileged_prompt(self, problem, knowledge):
        if knowledge == "bad":
            raise TaskError("bad knowledge")
        return f"{problem.prompt}|{knowledge.strip()}"

    def state(self, problem, transcript):
        return "".join(sorted(transcript))


class DrawingProbe(CoinProbe):
    """Samples `texts` after the prefix in turn, within the request's budget."""

    def __init__(self, texts=("xy;#1\n",), task=None):
        super().__init__(None, task=task or Knowing())
        self.texts = texts

    def sample(self, requests):
        self.asked += requests
        return [self._drawn(request, self.texts[place % len(self.texts)]) for place, request in enumerate(requests)]

    def _drawn(self, request, text):
        tokens = np.concatenate([request.parent.tokens[: request.prefix_length], codes(text)])
        tokens = tokens[: request.max_new_tokens]
        made = written(text_of(tokens), name=f"drawn{request.index}")
        ended = made.text.endswith("\n")
        return replace(made, stop_reason=StopReason.STOP if ended else StopReason.LENGTH)


def blamed(*siblings, rollout=FAILED, start=3, end=6, of=None):
    home = group(rollout, *siblings, of=of)
    return Blamed(group=home, rollout=rollout, start=start, end=end, feedback="It fails.", reason="no#1")


def proposed(step=None, probe=None, ask=None, sources=(), **changes):
    settings = Repair(**({"max_new_tokens": 40, "sources": sources} | changes))
    return propose([step or blamed()], probe or DrawingProbe(), settings=settings, key=KEY, ask=ask)[0]


def texts(found):
    return [edit.text for edit in found.edits]


def reasons(found):
    return [(dropped.source, dropped.text, dropped.reason) for dropped in found.dropped]


def review(first_error=None, hinge=None, correct=False, name="failed"):
    return Review(rollout_id=name, correct=correct, cuts=(0,), values=(), hinge=hinge, first_error=first_error)


def claim(start, change=-0.5):
    return Claim(start=start, end=start + 3, change=change, interval=(-0.9, -0.1), p_value=0.01)


def test_what_a_review_blames():
    mine = group(written("xy;", name="other"), FAILED)
    found = blamed_step(review(first_error=claim(3), hinge=claim(6)), mine)
    assert (found.start, found.end, found.rollout) == (3, 6, FAILED)
    assert found.feedback == ("This step changes the share of right outcomes by -0.50. The verifier said: it says so.")
    assert found.reason == "it says so"
    assert blamed_step(review(hinge=claim(6)), mine).start == 6
    assert blamed_step(review(hinge=claim(6, change=0.5)), mine) is None
    assert blamed_step(review(hinge=claim(6), correct=True), mine) is None
    assert blamed_step(review(), mine) is None
    assert blamed_step(review(first_error=claim(3), name="elsewhere"), mine) is None


def test_the_policy_with_the_answer_in_its_prompt():
    probe = DrawingProbe(texts=("xy;#1\n", "uv;ww;#1\n", "xy;ab;#1\n"))
    found = proposed(probe=probe, sources=("policy",), draws=3)
    assert texts(found) == ["xy;", "uv;"]
    assert reasons(found) == [("policy", "xy;", "it is what policy proposed")]
    assert {edit.source for edit in found.edits} == {"policy"}
    assert {(edit.rollout_id, edit.kind, edit.start, edit.end) for edit in found.edits} == {("failed", "fix", 3, 6)}
    assert {text_of(request.prompt_tokens) for request in probe.asked} == {"p>|7"}
    # A step of 3 tokens: at most twice that and 8 more, after the 3 of the prefix.
    assert {(request.prefix_length, request.max_new_tokens) for request in probe.asked} == {(3, 17)}
    assert {request.parent for request in probe.asked} == {FAILED}
    assert {request.stop for request in probe.asked} == {("\n",)}
    assert len({request.key for request in probe.asked}) == 3
    assert found.sampled_tokens == 6 + 9 + 9


def test_steps_that_the_policy_does_not_end():
    found = proposed(probe=DrawingProbe(texts=("x" * 50,)), sources=("policy",), draws=1)
    assert reasons(found) == [("policy", "x" * 14, "it did not end its step")]
    short = proposed(probe=DrawingProbe(), sources=("policy",), draws=1, max_step_tokens=2)
    assert reasons(short) == [("policy", "xy", "it did not end its step")]
    # A step that ends the rollout has no cut behind it.
    last = proposed(blamed(start=9, end=12), DrawingProbe(texts=("#1\n",)), sources=("policy",), draws=1)
    assert texts(last) == ["#1\n"]
    assert proposed(probe=DrawingProbe(), sources=("policy",), max_new_tokens=3).edits == ()
    tight = DrawingProbe()
    proposed(probe=tight, sources=("policy",), max_new_tokens=10)
    assert {request.max_new_tokens for request in tight.asked} == {10}


def test_a_siblings_solution_in_the_prompt():
    probe = DrawingProbe()
    found = proposed(blamed(written("gh;#1\n", name="s")), probe, sources=("policy",), draws=1, knowledge=("sibling",))
    assert texts(found) == ["xy;"]
    assert text_of(probe.asked[0].prompt_tokens) == "p>|gh;#1"
    alone = proposed(sources=("policy",), knowledge=("sibling",))
    assert reasons(alone) == [("policy", "", "there is no sibling to tell it, or no way")]
    refused = proposed(blamed(of=problem(answer="bad")), sources=("policy",))
    assert reasons(refused) == [("policy", "", "it cannot be told the answer: bad knowledge")]
    untold = proposed(probe=DrawingProbe(task=Steps()), sources=("policy",))
    assert reasons(untold) == [("policy", "", "there is no answer to tell it, or no way")]
    told = DrawingProbe()
    assert texts(proposed(probe=told, sources=("policy",), draws=1, knowledge=("feedback", "answer"))) == ["xy;"]
    assert [text_of(request.prompt_tokens) for request in told.asked] == ["p>|no#1", "p>|7"]
    strange = proposed(replace(blamed(), reason="Ω"), sources=("policy",), knowledge=("feedback",))
    assert reasons(strange)[0][2].startswith("it cannot be told the feedback: outside the alphabet")
    assert shows_any_text(Knowing(), problem())
    assert not shows_any_text(Steps(), problem())
    assert not shows_any_text(arithmetic.Arithmetic(), problem())
    silent = proposed(replace(blamed(), reason=""), sources=("policy",), knowledge=("feedback",))
    assert reasons(silent) == [("policy", "", "there is no feedback to tell it, or no way")]
    narrow = DrawingProbe()
    narrow.context_length = len("p>|7") + 6
    assert texts(proposed(probe=narrow, sources=("policy",), draws=1)) == ["xy;"]
    narrow.context_length -= 1
    full = proposed(probe=narrow, sources=("policy",))
    assert reasons(full) == [("policy", "", "its prompt with the answer leaves no room in the model's context")]
    with pytest.raises(ValueError, match="must be one of answer, sibling, feedback"):
        proposed(sources=("policy",), knowledge=("weather",))


def test_siblings_that_come_through_the_same_state():
    step = blamed(
        written("ab;gh;#1\n", name="prefix"), written("ba;ij;#1\n", name="state"), written("ab;no;#0\n", name="wrong"),
        written("cd;kl;#1\n", name="elsewhere"),
    )  # fmt: skip
    assert sibling_steps(step, DrawingProbe()) == ["gh;", "ij;"]
    # Without states only the tokens count.
    assert sibling_steps(step, DrawingProbe(task=Steps())) == ["gh;"]
    assert texts(proposed(step, sources=("sibling",))) == ["gh;", "ij;"]
    # Without steps too: as many tokens as the blamed step has.
    assert sibling_steps(step, DrawingProbe(task=object())) == ["gh;"]


def test_a_rollout_is_no_sibling_of_its_own_and_an_ended_one_has_no_next_step():
    right = written("ab;cd;#1\n", name="right")
    assert sibling_steps(blamed(rollout=right), DrawingProbe()) == []
    ended, failed = written("#1;", name="ended"), written("#1;cd;#0\n", name="failed")
    assert sibling_steps(blamed(ended, rollout=failed), DrawingProbe(task=object())) == []


def test_the_solver():
    assert texts(proposed(sources=("solver",))) == ["r3;"]
    lost = proposed(blamed(rollout=written("zz;cd;#0\n")), sources=("solver",))
    assert reasons(lost) == [("solver", "", "the task knows no right step from here")]
    assert proposed(probe=DrawingProbe(task=Steps()), sources=("solver",)).edits == ()


def test_equal_texts_are_merged_and_the_first_source_counts():
    sibling = written("ab;r3;#1\n", name="s")
    found = proposed(
        blamed(sibling), DrawingProbe(texts=("r3;#1\n",)), sources=("policy", "sibling", "solver"), draws=1,
        ask={"model": lambda *told: "r3;"},
    )  # fmt: skip
    assert [(edit.text, edit.source) for edit in found.edits] == [("r3;", "policy")]
    assert reasons(found) == [(name, "r3;", "it is what policy proposed") for name in ("sibling", "solver", "model")]


def test_many_rollouts_are_drawn_in_one_call():
    other = written("ab;cd;ef;#0\n", name="second")
    probe = DrawingProbe(texts=("xy;#1\n", "uv;#1\n"))
    steps = [blamed(), blamed(rollout=other)]
    settings = Repair(max_new_tokens=40, sources=("policy",), draws=2)
    first, second = propose(steps, probe, settings=settings, key=KEY)
    assert texts(first) == texts(second) == ["xy;", "uv;"]
    assert [edit.rollout_id for edit in second.edits] == ["second", "second"]
    assert len({request.key for request in probe.asked}) == 4
    alone = DrawingProbe()
    propose(steps[1:], alone, settings=settings, key=KEY)
    assert [request.key for request in alone.asked] == [request.key for request in probe.asked[2:]]
    assert propose([], probe, settings=settings, key=KEY) == []


def test_what_a_chat_model_is_told():
    told = []
    proposed(ask={"model": lambda *words: told.append(words) or "gh;"})
    assert told == [(problem(), "ab;", "The step was 'cd;'. It fails.")]


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        ("  gh; \n", "gh;", ""),
        ("cd;", "cd;", "it is the step as it was"),
        ("gh;ij;", "gh;ij;", "it is more than one step"),
        ("It should be: GH", "It should be: GH", "the policy cannot read it"),
        ("\ud800", "\ud800", "the policy cannot read it"),
        (" \n ", "", "it is empty"),
        ("g" * 101, "g" * 101, "it answered with more than 100 characters"),
        ("g" * 90, "g" * 90, "it leaves no room in a budget of 40 tokens"),
        (None, "", "it answered with a NoneType"),
        (["gh;"], "", "it answered with a list"),
    ],
)
def test_replies_of_a_chat_model(reply, text, reason):
    found = proposed(ask={"model": lambda *told: reply}, max_characters=100)
    if reason:
        assert reasons(found) == [("model", text, reason)]
    else:
        assert [(edit.text, edit.source) for edit in found.edits] == [(text, "model")]


def test_a_reply_takes_over_the_white_space_of_the_step():
    assert texts(proposed(blamed(start=9, end=12), ask={"model": lambda *told: "#1"})) == ["#1\n"]


@pytest.mark.parametrize(
    "error", [ProposalError("timed\nout"), TimeoutError("timed out"), ValueError("timed out"), KeyError("timed out")]
)
def test_a_model_that_fails_is_dropped_with_the_reason(error):
    def fails(*told):
        raise error

    found = proposed(ask={"model": fails, "other": lambda *told: "gh;"})
    assert texts(found) == ["gh;"]
    assert found.dropped[0].reason.strip("'") == "timed out"


def test_a_model_that_keeps_failing_is_left_alone():
    calls = []

    def fails(*told):
        calls.append(told)
        if len(calls) != 2:
            raise ProposalError("down")
        return "gh;"

    settings = Repair(max_new_tokens=40, sources=(), patience=2)
    found = propose([blamed()] * 6, DrawingProbe(), settings=settings, key=KEY, ask={"model": fails})
    assert len(calls) == 4
    assert [[each.reason for each in one.dropped] for one in found] == [
        ["down"], [], ["down"], ["down"],
        ["it was not asked: it failed 2 times in a row"], ["it was not asked: it failed 2 times in a row"],
    ]  # fmt: skip


def test_long_words_are_not_kept():
    found = proposed(ask={"model": lambda *told: "g" * 5000})
    assert len(found.dropped[0].text) == 200
