"""Reflect, retry, reward: what is asked, what it earns, what the store keeps, and an exact resume."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import After, differences, fingerprint, finished, make_run, resume, tiny_recipe

from forkpoint.assembly import Assembly
from forkpoint.assembly.checks import check_recipe
from forkpoint.cli.worker import work
from forkpoint.config.reflect import Reflect
from forkpoint.errors import ModelError, RecipeError
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.records import Group, Outcome, Rollout, StopReason, Verdict, frozen_array
from forkpoint.report.page import _environment, render_report
from forkpoint.report.reflections import reflections
from forkpoint.seeds import Key
from forkpoint.store import RunReader
from forkpoint.tasks.dialect import Dialect, Settings
from forkpoint.training.reflecting import beside, credited, failures, reflected, reflection_metrics
from forkpoint.training.rl import usable
from forkpoint.training.rollouts import SamplePlan

RIGHT = Verdict(outcome=Outcome.CORRECT, correct=True)
WRONG = Verdict(outcome=Outcome.WRONG, correct=False)
DUNNO = Verdict(outcome=Outcome.ABSTAINED, correct=None)
TASK = Dialect(Settings(world="*+-"))
TEXTS = Texts(alphabet_tokenizer(TASK.alphabet))
PROBLEM = next(p for i in range(99) if "@" in (p := TASK.problem(Key.root(3).child(i))).prompt)
PLAN = SamplePlan(
    key=Key.root(1).child("reflections"), stage="rl", update=7, group_size=3, max_new_tokens=12, temperature=1.0
)
HINT, OTHER = "@abd!c\n", "@bcd!a\n"


def rollout(text, name="made", stop=StopReason.STOP, index=0):
    count = len(text)
    return Rollout(
        id=name, group_id="g", stage="rl", update=7, index=index, problem_key=PROBLEM.key,
        prompt_tokens=TEXTS.encode_prompt(PROBLEM.prompt), tokens=frozen_array(np.arange(count) + 2, np.int32),
        behavior_logprobs=frozen_array(np.full(count, -1.0), np.float32),
        loss_mask=frozen_array(np.ones(count), np.bool_), temperature=1.0, text=text, stop_reason=stop, seed="",
    )  # fmt: skip


class Scripted:
    """Writes the texts that it is told to, in order; a retry is right where its prompt has the hint."""

    def __init__(self, reflections, stop=StopReason.STOP, judge=None):
        self.reflections, self.stop, self.calls, self.judge = list(reflections), stop, [], judge
        self.prompts = {}

    def sample(self, requests):
        self.calls.append(list(requests))
        made = []
        for request in requests:
            prompt = TEXTS.decode(request.prompt_tokens)
            self.prompts[request.key.hex] = prompt
            reflecting = prompt.endswith("!\n")
            text = self.reflections.pop(0) if reflecting else "c1#1\n"
            stop = self.stop if reflecting else StopReason.STOP
            one = rollout(text, request.key.hex, stop, request.index)
            made.append(replace(one, parent_id=request.parent.id, group_id=request.group_id))
        return made

    def verify(self, problem, rollouts):
        judge = self.judge or (lambda prompt: RIGHT if "@abd!c" in prompt else WRONG)
        return [judge(self.prompts[each.id]) for each in rollouts]


def attempts(*verdicts):
    members = tuple(rollout(f"a{place}#{place}\n", f"attempt{place}", index=place) for place in range(len(verdicts)))
    return Group(problem=PROBLEM, rollouts=members, verdicts=verdicts)


def tried(reflections, *, count=None, group=None, failed=1, **options):
    settings = Reflect(reflections=count or len(reflections), failures=failed)
    probe = Scripted(reflections, **options)
    groups = [attempts(RIGHT, WRONG, WRONG) if group is None else group]
    return reflected(groups, probe, TASK, TEXTS, settings=settings, plan=PLAN), probe


def test_a_failed_attempt_is_shown_once_and_the_retry_sees_the_hint_alone():
    (found,), probe = tried([HINT, OTHER, OTHER])
    chain = PROBLEM.metadata["chain"]
    asked, retries = probe.calls
    # The first failure, not the success before it, nor the failure after it.
    assert {TEXTS.decode(request.prompt_tokens) for request in asked} == {f"{chain}=?a1#1!\n"}
    assert [TEXTS.decode(request.prompt_tokens) for request in retries] == [
        f"@abd!c|{chain}=?\n", f"@bcd!a|{chain}=?\n", f"@bcd!a|{chain}=?\n",
    ]  # fmt: skip
    assert {request.max_new_tokens for request in asked} == {32}
    assert {request.max_new_tokens for request in retries} == {12}
    assert found.attempt_id == "attempt1"
    # The line of descent: attempt, reflection, retry.
    assert {each.parent_id for each in found.reflections.rollouts} == {"attempt1"}
    assert [each.parent_id for each in found.retries.rollouts] == [each.id for each in found.reflections.rollouts]


def test_a_reflection_earns_what_its_retry_earns_less_the_others():
    (found,), probe = tried([HINT, OTHER, OTHER])
    assert [verdict.correct for verdict in found.reflections.verdicts] == [True, False, False]
    assert [verdict.correct for verdict in found.retries.verdicts] == [True, False, False]
    (made,) = credited([found], probe, update=7, pays="correct")
    assert [reward.total for reward in made.reflections.rewards] == [1.0, 0.0, 0.0]
    # 1 - (0 + 0) / 2, and 0 - (1 + 0) / 2.
    assert [credit.advantages.tolist() for credit in made.credits] == [[1.0] * 7, [-0.5] * 7, [-0.5] * 7]


@pytest.mark.parametrize("text", [HINT, OTHER])
def test_retries_that_agree_teach_nothing(text):
    found, probe = tried([text] * 3)
    (made,) = credited(found, probe, update=7, pays="correct")
    assert not any(credit.advantages.any() for credit in made.credits)


def test_what_is_no_hint_is_wrong_and_not_retried():
    # An answer, steps, nothing, and a lesson that is cut short.
    (found,), probe = tried(["#4\n", "c4#4\n", "", HINT])
    assert [verdict.outcome for verdict in found.reflections.verdicts] == ["unparseable"] * 3 + ["correct"]
    assert "'#4' is no lesson" in found.reflections.verdicts[0].reason
    assert len(probe.calls[1]) == len(found.retries.rollouts) == 1
    assert found.retries.rollouts[0].index == 3
    # The empty one leaves the group: it has no token to credit.
    (made,) = credited(
        [replace(found, reflections=usable(found.reflections, drop_truncated=False))], probe, update=7, pays="correct"
    )
    assert [credit.advantages[0] for credit in made.credits] == [-0.5, -0.5, 1.0]


def test_a_reflection_that_ran_out_of_budget_is_truncated():
    (found,), _ = tried([HINT, HINT], stop=StopReason.LENGTH)
    assert [verdict.outcome for verdict in found.reflections.verdicts] == ["truncated"] * 2
    assert found.retries.rollouts == ()


def test_a_retry_that_nobody_could_judge_leaves_no_reward():
    judge = {"@abd!c": RIGHT, "@bcd!a": WRONG, "@acd!b": DUNNO}
    (found,), probe = tried([HINT, "@acd!b\n", OTHER], judge=lambda prompt: judge[prompt[:6]])
    left = replace(found, reflections=usable(found.reflections, drop_truncated=False))
    (made,) = credited([left], probe, update=7, pays="correct")
    assert [credit.advantages[0] for credit in made.credits] == [1.0, -1.0]
    # One alone has nothing to be compared with.
    (found,), probe = tried([HINT, "@acd!b\n"], judge=lambda prompt: judge[prompt[:6]])
    left = replace(found, reflections=usable(found.reflections, drop_truncated=False))
    assert credited([left], probe, update=7, pays="correct") == []


def test_successes_and_unjudged_attempts_are_not_reflected_on():
    group = attempts(RIGHT, DUNNO, RIGHT)
    assert failures(group) == []
    found, probe = tried([], count=2, group=group)
    assert found == []
    assert credited(found, probe, update=7, pays="correct") == []
    assert reflection_metrics(found)["retry_correct"] == 0.0


def test_an_attempt_that_no_prompt_can_show_is_left_out(monkeypatch):
    def refuse(problem, attempt):
        raise ModelError(attempt)

    monkeypatch.setattr(TASK, "reflection_prompt", refuse)
    assert tried([], count=2)[0] == []


def test_draws_are_functions_of_the_key():
    group = attempts(WRONG, RIGHT, WRONG)
    probes = [tried([HINT, OTHER] * 2, count=2, failed=2, group=group)[1] for _ in range(2)]
    names = [[request.key.hex for call in probe.calls for request in call] for probe in probes]
    assert names[0] == names[1]
    # Two failures, two reflections on each, a retry of each: all have random numbers of their own.
    assert len(set(names[0])) == 8
    assert [request.parent.id for request in probes[0].calls[0]] == ["attempt0"] * 2 + ["attempt2"] * 2


def test_metrics_count_reflections_and_retries():
    found, _ = tried([HINT, "#4\n", OTHER, OTHER])
    # Three of four were told, one of four succeeded; 7 + 3 + 7 + 7 tokens of reflections and 3 x 5 of retries.
    assert dict(reflection_metrics(found)) == {
        "reflections": 4.0, "reflection_told": 0.75, "retry_correct": 0.25, "reflect_sampled_tokens": 39.0,
    }  # fmt: skip
    assert beside(found, [attempts(RIGHT, WRONG)]) == found
    assert beside(found, [attempts(RIGHT)]) == []


@pytest.mark.parametrize("logit", [-0.7, 0.4])
def test_the_expected_gradient_is_that_of_the_chance_that_the_retry_succeeds(logit):
    # Two hints, chosen with p and 1 - p; a retry succeeds with q after the one and with s after the other.
    p, q, s = 1 / (1 + np.exp(-logit)), 0.8, 0.3
    total = 0.0
    for picks in itertools.product((True, False), repeat=3):
        for ends in itertools.product((True, False), repeat=3):
            chance = np.prod([p if pick else 1 - p for pick in picks])
            rates = [q if pick else s for pick in picks]
            chance *= np.prod([rate if end else 1 - rate for rate, end in zip(rates, ends, strict=True)])
            said = iter(ends)
            (found,), probe = tried(
                [HINT if pick else OTHER for pick in picks], judge=lambda _: RIGHT if next(said) else WRONG  # noqa: B023
            )  # fmt: skip
            (made,) = credited([found], probe, update=7, pays="correct")
            scores = [(1 - p) if pick else -p for pick in picks]
            credits = [credit.advantages[0] for credit in made.credits]
            total += chance * np.mean([score * credit for score, credit in zip(scores, credits, strict=True)])
    # d/dlogit (p q + (1 - p) s) = p (1 - p) (q - s)
    assert total == pytest.approx(p * (1 - p) * (q - s), abs=1e-7)


HEAD = """
name = "tiny"
[policy]
kind = "tiny"
layers = 1
width = 32
heads = 2
context = 64
[task]
name = "dialect"
world = "+"
steps = 1
[evaluation]
problems = 4
final_problems = 4
max_new_tokens = 8
[doctor]
before = false
every = 0
[audits]
every = 0
"""
BASE = """
[[stage]]
name = "base"
kind = "pretrain"
data = "reflections"
updates = 60
batch_size = 32
learning_rate = 1e-2
checkpoint_every = 60
[stage.mix]
data = "mixed"
"""
RL = """
[[stage]]
name = "rl"
kind = "rl"
from = "base"
updates = 4
problems_per_update = 6
group_size = 3
max_new_tokens = 8
checkpoint_every = 2
keep_rollouts = "every:2"
[stage.reflect]
reflections = 3
max_new_tokens = 12
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("reflect") / "whole", tiny_recipe(BASE, RL, head=HEAD))


def test_the_store_keeps_attempts_reflections_and_retries(whole):
    with RunReader(whole.run) as reader:
        # As `every:2` keeps attempts: the first update, and every second one.
        assert reader.kept_updates("rl") == reader.kept_updates("rl", "reflect") == [1, 2, 4]
        kept = {each.id: each for each in reader.rollouts("rl")}
        asked = list(reader.groups("rl", None, "reflect"))
        retries = {each.parent_id: each.id for each in reader.rollouts("rl", None, "retry")}
        metrics = {name: reader.metrics("rl", name)[1] for name in ("retry_correct", "reflection_told", "correct")}
        spent, tokens = reader.metrics("rl", "reflect_sampled_tokens")[1], reader.updates("rl")[2]
        assert asked
        assert retries
        for group in asked:
            attempt = kept[group.rollouts[0].parent_id]
            assert reader.verdict(attempt.id).correct is False
            assert attempt.problem_key == group.problem.key
            for one, verdict in zip(group.rollouts, group.verdicts, strict=True):
                again = retries.get(one.id)
                assert verdict == (reader.verdict(again) if again else verdict)
                assert again or verdict.correct is False
                credit = reader.credit(one.id)
                assert credit.rule == "leave_one_out"
                others = [other.correct for other in group.verdicts if other is not verdict]
                assert credit.advantages[0] == pytest.approx(verdict.correct - np.mean(others))
            # Nothing but reflections and attempts was credited.
        assert not any(reader.credit(name) for name in retries.values())
    assert metrics["reflection_told"].max() > 0
    assert (tokens == spent + reader_tokens(whole)).all()


def test_the_report_shows_attempts_reflections_and_retries(whole):
    with RunReader(whole.run) as reader:
        views = reflections(reader, ["base", "rl"])
        groups = list(reader.groups("rl", 4, "reflect"))
        page = render_report(reader)
    assert [view.update for view in views] == [4] * min(6, len(groups))
    assert [each.correct for each in views[0].reflections] == [verdict.correct for verdict in groups[0].verdicts]
    told = [each for view in views for each in view.reflections if each.retry]
    assert told
    assert f"<td><bdi>{told[0].text}</bdi></td>" in page
    assert 'href="#reflections"' in page
    # What the policy wrote is text, whatever it is.
    hostile = [replace(views[0], text="<script>alert(1)</script>")]
    box = _environment().from_string(
        "{% from 'reflection.html' import reflection_box %}{{ reflection_box(view) }}"
    ).render(view=hostile[0])  # fmt: skip
    assert "<script>" not in box
    assert "&lt;script&gt;" in box


def reader_tokens(assembly):
    with RunReader(assembly.run) as reader:
        return reader.metrics("rl", "sampled_tokens")[1]


def test_a_resume_changes_nothing(whole, tmp_path):
    broken = make_run(tmp_path / "broken", whole.recipe)
    # After the base's 60 units: two of the stage, and the unit after them is lost with its rollouts.
    work(broken, After(63))
    resume(Assembly(recipe=whole.recipe, origin=broken.run, run=broken.run))
    assert differences(fingerprint(whole), fingerprint(broken)) == []


def rl_loop(folder, *overrides):
    recipe = tiny_recipe(BASE, RL, head=HEAD, overrides=("stage.base.updates=0", *overrides))
    assembly = make_run(folder, recipe)
    return replace(assembly, unrun=True).loop("rl")


def test_attempts_may_be_left_out(tmp_path):
    group, (found,) = attempts(RIGHT, WRONG, WRONG), tried([HINT, OTHER])[0]
    (made,) = credited([found], None, update=7, pays="correct")
    both = rl_loop(tmp_path / "both").training._learned([group], ["a", "b", "c"], [made])
    alone = rl_loop(tmp_path / "alone", "stage.rl.reflect.attempts=false").training
    assert both == ([group, made.reflections], ["a", "b", "c", *made.credits])
    assert alone._learned([group], ["a", "b", "c"], [made]) == ([made.reflections], list(made.credits))
    # Reflections go with the update of their attempt.
    assert alone._learned([attempts(RIGHT)], ["a"], [made]) == ([], [])


def test_what_cannot_reflect_is_refused_in_one_line(tmp_path):
    paths = HEAD.replace('name = "dialect"\nworld = "+"\nsteps = 1', 'name = "paths"\nbranches = 2\ndepth = 1')
    base = BASE.replace('"reflections"', '"walks"').replace('"mixed"', '"golden"')
    with pytest.raises(RecipeError, match=r"'rl': reflect needs a task with `reflection_prompt`.*paths is none"):
        check_recipe(tiny_recipe(base, RL, head=paths), tmp_path, tmp_path)
    wide = tiny_recipe(BASE, RL, head=HEAD, overrides=("stage.rl.reflect.max_new_tokens=60",))
    with pytest.raises(ModelError, match=r"'rl': reflect: .* take up to 7\d tokens, above the model's context of 64"):
        check_recipe(wide, tmp_path, tmp_path)
    with pytest.raises(RecipeError, match="reflect goes with none of experts, distillation and bugs"):
        tiny_recipe(BASE, RL + "[stage.distillation]\nalone = true\n", head=HEAD)
    plan = check_recipe(tiny_recipe(BASE, RL, head=HEAD), tmp_path, tmp_path)["rl"]
    # One failure of three attempts, three reflections of 12 tokens and three retries of 8, for three times 8 tokens.
    assert plan.cost.sampled == pytest.approx(3 * (12 + 8) / (3 * 8))
    assert any("a retry succeeds too" in reason for reason in plan.bias.reasons)
