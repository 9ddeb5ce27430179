"""The doctor's own numbers, against others worked by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from doctor_examples import healthy_loop, subject_of, tried
from doctor_faults import mean_of_means
from tiny_runs import BASE

from forkpoint.batching import pad_rows
from forkpoint.doctor import forecast, verdicts
from forkpoint.doctor.agreement import allowed_gap, sampled, token_places, uniform_chance
from forkpoint.doctor.canaries import Judgement, Trial, canaries, written
from forkpoint.doctor.credits import FORMULAS
from forkpoint.doctor.gradients import SINGLE_BOUND, doubt, gradient_invariance, gradient_rows, terms
from forkpoint.doctor.records import policy_tokens
from forkpoint.records import Outcome, Problem, Span, SpanKind, Verdict
from forkpoint.seeds import Key
from forkpoint.verifiers.no_answers import FIXED


def test_places_of_honest_draws_are_likely_and_others_are_not():
    uniforms = Key.root(0).child("places").uniforms(2000)
    assert uniform_chance(uniforms) > 0.01
    assert uniform_chance(np.zeros(0)) == 1.0
    # Nothing above 0.9 in 300 draws: 0.9 ** 300 = 2e-14.
    assert uniform_chance(uniforms[:300] * 0.9) < 1e-9
    assert uniform_chance(uniforms**1.5) < 1e-12
    # One draw proves nothing, wherever it lies.
    assert uniform_chance(np.array([0.999])) > 1e-3


def test_false_alarms_are_as_rare_as_is_said():
    chances = [uniform_chance(Key.root(1).child(place).uniforms(64)) for place in range(400)]
    assert min(chances) > 1e-6
    assert np.mean(np.array(chances) < 0.05) <= 0.07


def test_the_place_of_a_token_under_a_uniform_policy():
    loop = healthy_loop()
    subject = subject_of(loop)
    with torch.no_grad():
        for parameter in loop.policy.model.parameters():
            parameter.zero_()
    tokens = np.concatenate([rollout.tokens[rollout.loss_mask] for rollout in sampled(subject)])
    places = np.concatenate(token_places(subject)) * loop.policy.model.get_output_embeddings().weight.shape[0]
    # Among equals the order is that of the ids: token i fills the stretch from i to i + 1.
    assert np.floor(places).tolist() == tokens.tolist()


def test_free_memory_is_read_where_it_can_be(tmp_path, monkeypatch):
    policy = healthy_loop().policy
    monkeypatch.setattr(forecast, "MEMINFO", tmp_path / "meminfo")
    assert forecast.free_memory(policy) == 0
    (tmp_path / "meminfo").write_text("MemFree:   1 kB\nMemAvailable:    2048 kB\n")
    assert forecast.free_memory(policy) == 2048 * 1024


def test_formulas_by_hand():
    rewards = np.array([1.0, 0.0, 0.0, 0.0])
    assert FORMULAS["leave_one_out"](rewards, {}).tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert FORMULAS["max_rl"](rewards, {}).tolist() == pytest.approx([3.0, -1.0, -1.0, -1.0])
    assert FORMULAS["max_rl"](rewards * 0, {}).tolist() == [0.0] * 4
    assert FORMULAS["group_mean_std"](rewards, {"epsilon": 0.0})[0] == pytest.approx(0.75 / 0.5)
    assert FORMULAS["group_mean_std"](rewards, {"epsilon": 0.0, "ddof": 0})[0] == pytest.approx(0.75 / 0.1875**0.5)


def test_bytes_of_a_checkpoint_and_of_a_stage():
    loop = healthy_loop()
    weights = sum(parameter.numel() for parameter in loop.policy.model.parameters()) * 4
    assert forecast.checkpoint_bytes(loop.policy) == 3 * weights
    first = next(iter(loop.policy.model.parameters()))
    first.requires_grad_(False)
    assert forecast.checkpoint_bytes(loop.policy) == 3 * weights - 2 * 4 * first.numel()
    # 6 updates, a checkpoint every 2: two kept and one being written; 6 batches of 4 x 4 rollouts, all kept.
    rollouts = 6 * 16 * (forecast.ROW_BYTES + 10 * forecast.TOKEN_BYTES)
    assert forecast.stage_bytes(loop.stage, 1000, 10.0) == 3 * 1000 + rollouts
    every = loop.stage.model_copy(update={"keep_rollouts": "every:4", "checkpoint_every": 0})
    assert forecast.stage_bytes(every, 1000, 10.0) == 2 * 1000 + rollouts // 6 * 2
    sample = loop.stage.model_copy(update={"keep_rollouts": "sample:1", "checkpoint_every": 0})
    assert forecast.stage_bytes(sample, 1000, 10.0) == 2 * 1000 + rollouts // 4


def test_what_is_on_the_disk_already_is_not_needed_again(tmp_path):
    subject = subject_of(replace(healthy_loop(), run=tmp_path))
    needed = forecast.disk(subject).value
    (tmp_path / "x").write_bytes(b"0" * 1000)
    assert forecast.disk(subject).value == pytest.approx(needed - 1e-6)


def test_the_bound_follows_the_number_format():
    model = torch.nn.Linear(2, 2)
    assert allowed_gap(SimpleNamespace(model=model)) == 1e-4
    assert allowed_gap(SimpleNamespace(model=model.bfloat16())) == 0.5


def test_who_wrote_a_token():
    rollout = written(Problem(task="t", key="0", prompt="p", answer="a"), "abcdef")
    assert policy_tokens(rollout).tolist() == [True] * 6
    spans = (Span(start=2, end=4, kind=SpanKind.OBSERVATION, policy_version=0),)
    assert policy_tokens(replace(rollout, spans=spans, prefix_length=1)).tolist() == [False, True, False, False, True,
                                                                                     True]  # fmt: skip


def test_which_canaries_a_problem_has():
    task = SimpleNamespace(solve=lambda problem: f"so {problem.answer}")

    def names(prompt, answer):
        return [each.name for each in canaries(task, [Problem(task="t", key="0", prompt=prompt, answer=answer)])]

    assert names("2 + 2 =", "4") == ["reference", *FIXED, "question"]
    assert names("2 + 2 =\nWrite a number.", "4") == ["reference", *FIXED, "question", "instructions"]
    assert "42" not in names("6 * 7 =", "42")
    assert "42" in names("2 * 71 =", "142")
    assert "punctuation" not in names("Which sign?", "?")
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2 ="})
    problem = Problem(task="t", key="0", prompt=chat, answer="4")
    texts = {each.name: each.text for each in canaries(task, [problem])}
    assert (texts["question"], texts["instructions"]) == ("2 + 2 =", "Be brief.")


def judged(*names_and_outcomes):
    return Trial(
        judgements=tuple(
            Judgement(name=name, outcome=outcome, reason="", seconds=0.0) for name, outcome in names_and_outcomes
        )
    )


@pytest.mark.parametrize(
    ("name", "accepted", "status"),
    [("question", 1, "watch"), ("question", 2, "sick"), ("empty", 1, "sick"), ("42", 1, "watch"), ("42", 0, "ok")],
)
def test_a_coincidence_is_watched_and_a_habit_is_sick(name, accepted, status):
    said = [(name, Outcome.CORRECT if place < accepted else Outcome.WRONG) for place in range(4)]
    check = verdicts.canaries_refused(SimpleNamespace(trial=judged(*said)))
    assert check.status == status
    assert (name in check.did.rpartition("accepted were")[2]) == bool(accepted)


def test_one_late_verdict_is_watched():
    said = [("empty", Outcome.WRONG)] * 9 + [("empty", Outcome.ERROR)]
    assert verdicts.verifier_alive(SimpleNamespace(trial=judged(*said))).status == "watch"
    assert verdicts.verifier_alive(SimpleNamespace(trial=judged(*said[6:]))).status == "watch"
    assert verdicts.verifier_alive(SimpleNamespace(trial=judged(*said[7:]))).status == "sick"


def test_the_process_of_a_trial_ends_the_trial_alone():
    loop = healthy_loop()

    def third(problem, rollout):
        if rollout.text == FIXED["42"]:
            raise SystemExit
        return Verdict(outcome=Outcome.WRONG, correct=False)

    found = tried(loop, third)
    assert found.ended == "ended its process on '42' (exit code 1)"
    assert [judgement.name for judgement in found.judgements] == ["reference", "empty"]


def test_terms_and_rows_of_a_subject():
    subject = subject_of(healthy_loop())
    assert list(terms(subject)) == ["policy", "divergence"]
    rows, made_up = gradient_rows(subject)
    assert made_up == ""
    idle = replace(subject, rows=tuple(replace(row, advantages=row.advantages * 0) for row in subject.rows))
    rows, made_up = gradient_rows(idle)
    assert "alternating" in made_up
    assert all(row.advantages[row.loss_mask].all() for row in rows)
    assert [bool(row.advantages[0] > 0) for row in rows[:4]] == [True, False, True, False]
    texts = subject_of(healthy_loop(stage="base", kind=(BASE,)))
    assert list(terms(texts)) == ["imitation"]


def test_a_policy_that_knows_its_texts_by_heart_is_not_accused_of_rounding():
    loop = healthy_loop(kind=(BASE,), stage="base")
    subject = subject_of(loop)
    rows, _ = gradient_rows(subject)
    assert gradient_invariance(subject).bound == SINGLE_BOUND
    optimizer = torch.optim.Adam(loop.policy.model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        subject.accumulate(loop.policy, rows, subject.objective, max_tokens=1 << 40)
        optimizer.step()
    optimizer.zero_grad()
    batches = [pad_rows([row], [0]) for row in rows]
    with torch.no_grad():
        found = [loop.policy.logprobs(batch)[0][batch.loss_mask].exp() for batch in batches]
    by_hand = float((1 - torch.cat(found).double()).square().mean().sqrt())
    assert doubt(subject, rows) == pytest.approx(by_hand, rel=1e-3)
    sound = gradient_invariance(subject)
    assert sound.ok
    assert sound.bound == pytest.approx(2 * 2**-23 / by_hand, rel=1e-2)
    assert sound.bound > 2 * SINGLE_BOUND
    wrong = gradient_invariance(replace(subject, accumulate=mean_of_means(loop).accumulate))
    assert not wrong.ok
    assert wrong.value > 1e-2
