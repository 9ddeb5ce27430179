"""Leaks: rises by hand, which prompts stand in for the problem, words, and what the policy's own steps excuse."""

import math

import numpy as np
import pytest
from coin_examples import CoinProbe, Steps, codes, fix, group, problem, text_of, written
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.records import Problem, frozen_array
from forkpoint.review.leak import Leak, LeakSettings, Question, holds_word, leaks
from forkpoint.review.verify import Trials, verify
from forkpoint.seeds import Key

KEY = Key.root(3)
RULES = LeakSettings(contexts=2, pool=6)


class Asking(Steps):
    """Draws problems whose prompts are as long as they are told, and asks for answers with a `#`."""

    answer_lead = "#"

    def __init__(self, lengths=(3,), answers=("4",), **changes):
        super().__init__(**changes)
        self.lengths, self.answers = lengths, answers

    def problem(self, key):
        place = key.path[-1]
        length = self.lengths[place % len(self.lengths)]
        return Problem(
            task="coins",
            key=key.hex[:16],
            prompt="abcdefghij"[place % 10] * length,
            answer=self.answers[place % len(self.answers)],
        )

    def early_answer(self, problem, transcript):
        return "" if "#" in transcript else f"#{problem.answer}\n"


class ScoringProbe(CoinProbe):
    """Scores by `chance(context text) -> probability of each token`."""

    def __init__(self, chance, task, **changes):
        super().__init__(lambda before, purpose: 1.0 if before.endswith(("k=7;", "xy;")) else 0.0, task=task, **changes)
        self.chance, self.scored, self.calls = chance, [], 0

    def score(self, requests):
        self.calls += 1
        found = []
        for request in requests:
            context = text_of(request.prompt_tokens)
            self.scored.append((context, text_of(request.tokens)))
            found.append(frozen_array(np.log(self.chance(context)) * np.ones(len(request.tokens)), np.float32))
        return found


def asked(text="k=7;", *, others=("cd;",), before="ab;", of=None):
    return Question(problem=of or problem(), before=before, text=text, others=others)


def test_the_rise_by_hand():
    def chance(context):
        return {"k=7;": 0.9, "cd;": 0.3}.get(context[3:], 0.1)

    probe = ScoringProbe(chance, Asking())
    found = leaks([asked()], probe, key=KEY, settings=RULES)[0]
    # The two tokens after the lead, `7` and the end of the line, have the chance each.
    assert found.rise == pytest.approx(2 * math.log(0.9 / 0.3), abs=1e-6)
    assert found.readable == pytest.approx(0.9)
    # Of six problems in the pool the two first ones of equal length; nothing of the problem or the prefix is left.
    assert {context for context, _ in probe.scored} == {
        *("aaa", "bbb", "aaak=7;", "bbbk=7;", "aaacd;", "bbbcd;"),
    }
    assert {text for _, text in probe.scored} == {"#7\n"}
    # Without a better one among the others, the bare prompt is what the fix is held against.
    alone = leaks([asked(others=())], probe, key=KEY, settings=RULES)[0]
    assert alone.rise == pytest.approx(2 * math.log(0.9 / 0.1), abs=1e-6)


def test_probabilities_are_averaged_and_not_their_logarithms():
    def chance(context):
        return 0.5 if not context.endswith("k=7;") else 0.9 if context[0] == "a" else 1e-6

    found = leaks([asked(others=())], ScoringProbe(chance, Asking()), key=KEY, settings=RULES)[0]
    assert found.rise == pytest.approx(math.log((0.9**2 + 1e-12) / 2) - math.log(0.25), abs=1e-5)


def test_other_problems_are_near_in_length_and_have_another_answer():
    # Prompts of the pool: a x 9, b x 3, c x 2 with the same answer, d x 9, e x 3, f x 2 with the same answer.
    task = Asking(lengths=(9, 3, 2), answers=("4", "5", "7"))
    probe = ScoringProbe(lambda context: 0.5, task)
    leaks([asked(others=())], probe, key=KEY, settings=RULES)
    assert {context for context, _ in probe.scored} == {"bbb", "eee", "bbbk=7;", "eeek=7;"}
    # None is left where all have the answer.
    same = ScoringProbe(lambda context: 0.5, Asking(answers=("7",)))
    assert leaks([asked("xy;")], same, key=KEY, settings=RULES) == [Leak(literal=False, rise=None, readable=0.0)]


def test_questions_share_one_pass_and_are_judged_alike_in_any_company():
    def chance(context):
        return 0.1 + 0.8 * (hash_of(context) % 97) / 97

    questions = [asked(f"{letter}=7;", of=problem(letter)) for letter in "klmnkl"]
    probe = ScoringProbe(chance, Asking())
    together = leaks(questions, probe, key=KEY, settings=RULES)
    assert probe.calls == 1
    assert len(set(probe.scored)) == len(probe.scored)
    assert together == [leaks([each], probe, key=KEY, settings=RULES)[0] for each in questions]
    assert together[:2] == together[4:]
    assert leaks([], probe, key=KEY, settings=RULES) == []


def hash_of(text):
    return sum((place + 1) * code for place, code in enumerate(codes(text).tolist()))


def test_tasks_that_cannot_be_asked():
    for task in (Steps(), object()):
        probe = ScoringProbe(lambda context: 0.5, task)
        assert leaks([asked("xy;")], probe, key=KEY, settings=RULES) == [Leak(literal=False, rise=None, readable=0.0)]
        assert probe.scored == []


def test_what_cannot_be_read_is_not_compared_with():
    probe = ScoringProbe(lambda context: 0.9 if context.endswith("k=7;") else 0.1, Asking())
    plain = leaks([asked(others=())], probe, key=KEY, settings=RULES)
    assert leaks([asked(others=("\ufffd8",))], probe, key=KEY, settings=RULES) == plain
    strange = asked(of=problem(answer="\u00e4"))
    assert leaks([strange], probe, key=KEY, settings=RULES) == [Leak(literal=False, rise=None, readable=0.0)]


def test_after_an_answer_the_answer_before_it_is_asked_for():
    probe = ScoringProbe(lambda context: 0.9 if "#" in context else 0.1, Asking())
    found = leaks([asked("#7\n", others=())], probe, key=KEY, settings=RULES)[0]
    assert found.literal
    assert {text for _, text in probe.scored} == {"#7\n"}
    assert found.rise > RULES.threshold


def test_what_counts_as_a_leak():
    rules = LeakSettings(threshold=1.0, readable=0.1)
    assert Leak(literal=False, rise=1.0, readable=0.1).reason(rules) == (
        "leak: log p(answer) rises by 1.00 nats by it alone"
    )
    assert Leak(literal=False, rise=0.99, readable=0.9).reason(rules) == ""
    assert Leak(literal=False, rise=9.0, readable=0.09).reason(rules) == ""
    assert Leak(literal=True, rise=None, readable=0.0).reason(rules) == "leak: it holds the answer"


@pytest.mark.parametrize(
    ("text", "word", "held"),
    [
        ("14-5=9;", "9", True), ("14-5=19;", "9", False), ("14-5=09;", "9", True), ("9.5", "5", False),
        ("#9\n", "9", True), ("14-5=90;", "9", False), ("x = 2/3", "2/3", True), ("the cat", "cat", True),
        ("concatenate", "cat", False),
        ("any", "", False), ("5-14=-9;", "-9", True), ("a+b", "a+b", True),
    ],
)  # fmt: skip
def test_words(text, word, held):
    assert holds_word(text, word) is held


@given(number=st.integers(0, 999), left=st.text("+-*=; ", min_size=1), right=st.text("+-*=; ", min_size=1))
def test_a_number_between_signs_is_always_found(number, left, right):
    assert holds_word(f"12{left}{number}{right}34", str(number))


def literal(text, *others):
    probe = ScoringProbe(lambda context: 0.5, Asking())
    return leaks([asked(text, others=others)], probe, key=KEY, settings=RULES)[0].literal


def test_a_word_that_comes_without_knowledge_is_no_leak():
    assert literal("k=7;", "cd;")
    assert not literal("k=7;", "cd;", "m=7;")
    assert not literal("k8;", "cd;")


def verified(text, probe, **changes):
    rollout = written("ab;cd;ef;#0\n")
    settings = Trials(max_new_tokens=40, **changes)
    return verify([fix(rollout, 3, 6, text)], [group(rollout)], probe, settings=settings, key=KEY)[0]


def test_a_leak_is_refused_before_a_rollout_is_drawn_for_it():
    probe = ScoringProbe(lambda context: 0.5, Asking())
    found = verified("k=7;", probe)
    assert found.reason == "leak: it holds the answer"
    assert found.leak == pytest.approx(0.0)
    # Its controls were drawn, to see whether the policy writes such steps by itself.
    assert {request.prefix for request in probe.asked} == {None}
    assert found.cost["verifier_calls"] == 16


def test_leaks_at_one_cut_share_their_controls():
    rollout = written("ab;cd;ef;#0\n")
    edits = [fix(rollout, 3, 6, text) for text in ("k=7;", "m=7;")]
    probe = ScoringProbe(lambda context: 0.5, Asking())
    found = verify(edits, [group(rollout)], probe, settings=Trials(max_new_tokens=40), key=KEY)
    assert [each.reason for each in found] == ["leak: it holds the answer"] * 2
    assert len(probe.asked) == 16


class Echoing(Asking):
    def early_answer(self, problem, transcript):
        return f"#{len(transcript)}\n"


def test_the_answer_is_the_right_one_after_the_prefix_and_the_fix():
    probe = ScoringProbe(lambda context: 0.5, Echoing())
    leaks([asked("xyz;", before="ab;")], probe, key=KEY, settings=RULES)
    assert {text for _, text in probe.scored} == {"#7\n"}


def test_a_smuggled_answer_is_refused_by_its_score():
    def chance(context):
        return 0.9 if context.endswith("xy;") else 0.05

    found = verified("xy;", ScoringProbe(chance, Asking()))
    assert found.leak == pytest.approx(2 * math.log(0.9 / 0.05), abs=1e-6)
    assert found.reason == "leak: log p(answer) rises by 5.78 nats by it alone"
    assert verified("xy;", ScoringProbe(chance, Asking()), leak=None).accepted


def test_what_the_policy_writes_by_itself_is_no_leak():
    probe = ScoringProbe(lambda context: 0.5, Asking(), own_steps=("own;", "k=7;"))
    assert verified("k=7;", probe).accepted

    def chance(context):
        return 0.9 if context.endswith(("xy;", "own;")) else 0.05

    smuggled = verified("xy;", ScoringProbe(chance, Asking(), own_steps=("own;", "xy;")))
    assert smuggled.accepted
    # What it says of the answer is told all the same.
    assert smuggled.leak == pytest.approx(2 * math.log(0.9 / 0.05), abs=1e-6)


def test_an_answer_that_the_old_step_held_is_none_of_the_fixs():
    rollout = written("ab;c=7;ef;#0\n")
    probe = ScoringProbe(lambda context: 0.9 if "7" in context else 0.1, Asking())
    edits = [fix(rollout, 3, 7, "k=7;")]
    found = verify(edits, [group(rollout)], probe, settings=Trials(max_new_tokens=40), key=KEY)[0]
    assert found.accepted
    assert found.leak == pytest.approx(0.0, abs=1e-6)


def test_the_answer_in_another_form_than_the_policys_own_is_a_leak():
    probe = ScoringProbe(lambda context: 0.5, Asking(), own_steps=("own;", "m=7;"))
    assert verified("k=7;", probe).reason == "leak: it holds the answer"
    assert verified("#7\n", probe).reason == "leak: it holds the answer"
    loud = ScoringProbe(lambda context: 0.9 if context.endswith(("xy;", "own;")) else 0.05, Asking())
    assert verified("xy;", loud).reason.startswith("leak: log p(answer) rises")


def test_without_any_answer_a_leak_cannot_be_seen_and_nothing_is_let_through():
    """No reference answer and a task that cannot be asked for one: a check that sees nothing must not pass all."""
    probe = ScoringProbe(lambda context: 0.5, Steps())
    (found,) = leaks([asked("xy;", of=problem(answer=" "))], probe, key=KEY, settings=RULES)
    assert found.reason(RULES) == "leak: there is no reference answer, so none could be seen"
    (found,) = leaks([asked("xy;")], probe, key=KEY, settings=RULES)
    assert found.reason(RULES) == ""
