import json
from dataclasses import replace
from itertools import islice, product

import numpy as np
import pytest
from pydantic import ValidationError

from forkpoint.errors import TaskError
from forkpoint.records import Outcome, Problem, Rollout, StopReason
from forkpoint.seeds import Key
from forkpoint.tasks.keychain import (
    ENTRIES,
    FILLERS,
    KeyChain,
    Settings,
    answer_row,
    budget,
    build,
    chain_entries,
    exact_advantages,
    exact_success_probability,
    key_correct,
    key_positions,
    lookup_table,
    with_answer,
)
from forkpoint.tasks.protocol import Task, split_problems

TASK = KeyChain()
KEY = Key.root(2)
VARIANTS = [
    Settings(),
    Settings(filler="lookup", filler_entropy="low"),
    Settings(positions=128, keys=6, filler="lookup"),
    Settings(dependent=True, entries=10, values=7),
    Settings(dependent=True, filler="lookup", filler_entropy="low", keys=1),
    Settings(positions=4, keys=4, filler="lookup"),
    Settings(positions=1, keys=1, operations=1, values=10, entries=2),
]


def rollout(text, tokens=None):
    count = len(text) if tokens is None else tokens
    return Rollout(
        id="r", group_id="g", stage="s", update=0, index=0, problem_key="p", prompt_tokens=np.zeros(1, np.int32),
        tokens=np.zeros(count, np.int32), behavior_logprobs=np.zeros(count, np.float32),
        loss_mask=np.ones(count, np.bool_), temperature=1.0, text=text, stop_reason=StopReason.LENGTH, seed="0",
    )  # fmt: skip


def read_prompt(prompt, settings):
    """The keys as (position, operation, value), read off the prompt: an oracle of its own."""
    length = settings.positions
    assert prompt[-1] == ">"
    rows = [prompt[i : i + length] for i in range(0, len(prompt) - 1, length)]
    assert len(rows) == (3 if settings.filler == "lookup" else 2)
    is_key = [c == "!" for c in rows[0]] if settings.filler == "lookup" else [c != "." for c in rows[0]]
    return [(t, "abcdefgh".index(rows[-2][t]), int(rows[-1][t])) for t in range(length) if is_key[t]]


@pytest.mark.parametrize("settings", VARIANTS)
def test_the_reference_solution_verifies_and_wrong_answers_fail(settings):
    task = build(settings)
    for i in range(500):
        problem = task.problem(KEY.child(i))
        text = task.solve(problem)
        verdict = task.verify(problem, rollout(text))
        assert verdict.outcome is Outcome.CORRECT
        assert verdict.answer == problem.answer
        assert verdict.parts == {"keys_right": settings.keys, "keys": settings.keys}
        assert len(text) == budget(problem) == task.budget(problem) == settings.positions
        assert set(problem.prompt + text) <= set(task.alphabet)
        wrong = [task.verify(problem, rollout(answer)) for answer in task.wrong_answers(problem)]
        assert len(wrong) >= 4
        assert not any(verdict.correct for verdict in wrong)
        assert {verdict.outcome for verdict in wrong} == {Outcome.WRONG, Outcome.UNPARSEABLE}


@pytest.mark.parametrize("settings", VARIANTS)
def test_the_answer_follows_from_the_prompt_and_the_table(settings):
    task, table = build(settings), lookup_table(settings)
    for i in range(50):
        problem = task.problem(KEY.child(i))
        keys = read_prompt(problem.prompt, settings)
        assert [position for position, _, _ in keys] == key_positions(problem)
        previous, answer = 0, ""
        for _, operation, value in keys:
            shifted = (value + (previous if settings.dependent else 0)) % settings.values
            previous = int(table[operation, shifted])
            answer += ENTRIES[previous]
        assert answer == problem.answer


def test_chain_entries_by_hand():
    table = np.array([[1, 2, 0], [2, 0, 1]])
    cells = [(0, 1), (1, 1), (0, 2)]
    assert chain_entries(table, cells, dependent=False) == [2, 0, 0]
    # 2; then value (1 + 2) mod 3 = 0 of row 1: 2; then (2 + 2) mod 3 = 1 of row 0: 2.
    assert chain_entries(table, cells, dependent=True) == [2, 2, 2]


def test_filler_never_matters_and_every_key_does():
    task = KeyChain(Settings(filler="lookup"))
    problem = task.problem(KEY)
    right, positions = task.solve(problem), key_positions(problem)
    for t in range(len(right)):
        other = "A" if right[t] != "A" else "B"
        verdict = task.verify(problem, rollout(right[:t] + other + right[t + 1 :]))
        assert verdict.correct is (t not in positions)
        assert verdict.parts["keys_right"] == 4 - (t in positions)
    junk = "".join(right[t] if t in positions else "\x00" for t in range(len(right)))
    assert task.verify(problem, rollout(junk)).correct is True


def test_the_rollout_must_fill_its_budget_exactly():
    problem = TASK.problem(KEY)
    right = TASK.solve(problem)
    assert TASK.verify(problem, rollout(right[:-1])).outcome is Outcome.UNPARSEABLE
    assert TASK.verify(problem, rollout(right + "A")).outcome is Outcome.UNPARSEABLE
    assert TASK.stop(problem) == ()


def test_key_correct_in_order():
    problem = TASK.problem(KEY)
    right, positions = TASK.solve(problem), key_positions(problem)
    assert key_correct(problem, right) == [True] * 4
    broken = list(right)
    broken[positions[2]] = "?"
    assert key_correct(problem, "".join(broken)) == [True, True, False, True]
    assert key_correct(problem, right[: positions[1]]) == [True, False, False, False]


def test_the_table_is_fixed_by_its_seed_and_spreads_over_the_entries():
    settings = Settings(operations=8, values=10, entries=8)
    assert np.array_equal(lookup_table(settings), lookup_table(settings))
    assert not np.array_equal(lookup_table(settings), lookup_table(settings.model_copy(update={"table_seed": 1})))
    assert set(lookup_table(settings).ravel().tolist()) == set(range(8))
    assert lookup_table(settings).shape == (8, 10)


def test_exact_advantages_against_enumeration():
    task = KeyChain(Settings(positions=5, keys=3))
    problem = task.problem(KEY)
    positions, p_right = key_positions(problem), [0.9, 0.5, 0.2]
    right = task.solve(problem)

    def value(prefix):
        """E[correct] given the prefix, by summing over right or wrong at every key that is still to come."""
        total = 0.0
        for hits in product((True, False), repeat=3):
            weight, success = 1.0, True
            for position, entry, hit, p in zip(positions, problem.answer, hits, p_right, strict=True):
                if position < len(prefix):
                    success &= prefix[position] == entry
                    weight *= 0.5  # the draw is over: both branches are the same
                else:
                    success &= hit
                    weight *= p if hit else 1 - p
            total += weight * success
        return total

    for hits in product((True, False), repeat=3):
        text = list(right)
        for position, hit in zip(positions, hits, strict=True):
            text[position] = text[position] if hit else "z"
        advantages = exact_advantages(problem, "".join(text), p_right)
        expected = [value(text[: t + 1]) - value(text[:t]) for t in range(5)]
        assert np.allclose(advantages, expected, atol=1e-12)
        assert np.isclose(advantages.sum(), all(hits) - exact_success_probability(p_right))
        assert all(advantages[t] == 0 for t in range(5) if t not in positions)


def test_exact_success_probability():
    assert exact_success_probability([0.5, 0.5, 0.8]) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="probabilities"):
        exact_success_probability([1.5])
    with pytest.raises(ValueError, match="probabilities"):
        exact_advantages(TASK.problem(KEY), TASK.solve(TASK.problem(KEY)), [0.5])
    with pytest.raises(ValueError, match="characters"):
        exact_advantages(TASK.problem(KEY), "A", [0.5] * 4)


def shared_rows(demonstration, settings):
    """The text of a demonstration split into keys and filler, with the right entries of both."""
    table, length = lookup_table(settings), settings.positions
    keys = read_prompt(demonstration.prompt[-(len(demonstration.prompt) // length) * length - 1 :], settings)
    right = chain_entries(table, [(o, v) for _, o, v in keys], dependent=settings.dependent)
    written = [demonstration.text[t] for t, _, _ in keys]
    filler = [c for t, c in enumerate(demonstration.text) if t not in {p for p, _, _ in keys}]
    return written, [ENTRIES[e] for e in right], filler


@pytest.mark.parametrize("accuracy", [0.6, 0.75])
def test_the_demonstrator_is_as_accurate_as_stated(accuracy):
    settings = Settings(demonstrator_accuracy=accuracy, dependent=True)
    hits, mistakes = [], []
    for demonstration in islice(KeyChain(settings).corpus("demonstrator", KEY), 1500):
        written, right, filler = shared_rows(demonstration, settings)
        hits += [w == r for w, r in zip(written, right, strict=True)]
        mistakes += [(ENTRIES.index(w) - ENTRIES.index(r)) % 8 for w, r in zip(written, right, strict=True) if w != r]
        assert set(filler) <= set(FILLERS)
        assert len(demonstration.text) == settings.positions
        assert demonstration.ends is False
    assert abs(np.mean(hits) - accuracy) < 4 * (accuracy * (1 - accuracy) / len(hits)) ** 0.5
    counts = np.bincount(mistakes, minlength=8)
    assert counts[0] == 0
    assert counts[1:].min() > 0.75 * counts[1:].mean()


@pytest.mark.parametrize("name", ["demonstrator", "half_given"])
def test_a_careless_demonstrator_guesses_its_keys_and_shows_it_in_filler_of_its_own(name):
    settings = Settings(careless=0.25, demonstrator_accuracy=1.0)
    hits = {True: [], False: []}
    for demonstration in islice(KeyChain(settings).corpus(name, KEY), 1500):
        if len(demonstration.prompt) > 2 * settings.positions + 1:
            continue
        written, right, filler = shared_rows(demonstration, settings)
        careless = set(filler) <= set(FILLERS[4:])
        assert careless or set(filler) <= set(FILLERS[:4])
        hits[careless] += [w == r for w, r in zip(written, right, strict=True)]
    total, guessed = len(hits[True]) + len(hits[False]), np.mean(hits[True])
    assert all(hits[False])
    assert abs(guessed - 1 / 8) < 4 * (7 / 64 / len(hits[True])) ** 0.5
    assert abs(len(hits[True]) / total - 0.25) < 4 * (0.1875 / (total / settings.keys)) ** 0.5


def test_a_careless_demonstrator_guesses_filler_look_ups_as_well():
    settings = Settings(careless=0.5, demonstrator_accuracy=0.9, filler="lookup", filler_entropy="low")
    task = KeyChain(settings)
    both = []
    for demonstration in islice(task.corpus("demonstrator", KEY), 600):
        prompt, text = demonstration.prompt, demonstration.text
        length = settings.positions
        operations, values = prompt[length : 2 * length], prompt[2 * length : 3 * length]
        cells = [("abcdefgh".index(o), int(v)) for o, v in zip(operations, values, strict=True)]
        right = [text[t] == ENTRIES[task.table[cell]] for t, cell in enumerate(cells)]
        keys = [t for t in range(length) if prompt[t] == "!"]
        both.append((np.mean([right[t] for t in keys]), np.mean([right[t] for t in range(length) if t not in keys])))
    careless = np.array([filler < 0.5 for _, filler in both])
    keys = np.array([share for share, _ in both])
    assert 0.4 < careless.mean() < 0.6
    assert abs(keys[careless].mean() - 1 / 8) < 0.05
    assert abs(keys[~careless].mean() - 0.9) < 0.05


def test_many_keys_are_half_of_the_positions_and_as_often_right():
    settings = Settings(demonstrator_accuracy=0.7)
    hits = []
    for demonstration in islice(KeyChain(settings).corpus("many_keys", KEY), 200):
        written, right, filler = shared_rows(demonstration, settings)
        assert len(written) == 16
        assert set(filler) <= set(FILLERS)
        hits += [w == r for w, r in zip(written, right, strict=True)]
    assert abs(np.mean(hits) - 0.7) < 4 * (0.21 / len(hits)) ** 0.5


def test_nobody_is_careless_where_every_key_is_right():
    task = KeyChain(Settings(careless=0.9))
    for demonstration in islice(task.corpus("solutions", KEY), 100):
        written, right, filler = shared_rows(demonstration, task.settings)
        assert written == right
        assert set(filler) <= set(FILLERS[:4])


@pytest.mark.parametrize("settings", VARIANTS[:5])
def test_solutions_are_right_and_the_answer_row_shows_them(settings):
    task = KeyChain(settings)
    for demonstration in islice(task.corpus("solutions", KEY), 100):
        written, right, _ = shared_rows(demonstration, settings)
        assert written == right
    for demonstration in islice(task.corpus("answer_given", KEY), 100):
        row, rest = demonstration.prompt[: settings.positions], demonstration.prompt[settings.positions :]
        written, right, _ = shared_rows(replace(demonstration, prompt=rest), settings)
        assert written == right == [c for c in row if c != "."]
        assert all(c in (".", demonstration.text[t]) for t, c in enumerate(row))
        assert set(demonstration.prompt + demonstration.text) <= set(task.alphabet)


def test_half_given_takes_the_demonstrator_and_the_given_answer_in_turns():
    task = KeyChain(Settings(demonstrator_accuracy=0.0))
    found = list(islice(task.corpus("half_given", KEY), 200))
    apart = {name: {d.prompt: d.text for d in islice(task.corpus(name, KEY), 250)} for name in task.corpora[1:3]}
    told = [demonstration.prompt in apart["answer_given"] for demonstration in found]
    assert 80 <= sum(told) <= 120
    for demonstration, given in zip(found, told, strict=True):
        assert apart["answer_given" if given else "demonstrator"][demonstration.prompt] == demonstration.text


def entropy(settings):
    """Nats per filler character of the corpus `solutions`."""
    filler = "".join(
        "".join(shared_rows(d, settings)[2]) for d in islice(KeyChain(settings).corpus("solutions", KEY), 300)
    )
    _, counts = np.unique(list(filler), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def test_filler_entropy_of_its_own_alphabet():
    assert entropy(Settings(filler_entropy="high")) == pytest.approx(np.log(len(FILLERS)), abs=0.01)
    expected = -(0.95 * np.log(0.95) + 0.05 * np.log(0.05 / 7))
    assert entropy(Settings(filler_entropy="low")) == pytest.approx(expected, abs=0.05)


def test_filler_look_ups_are_as_accurate_as_keys_or_random():
    for level, rate in [("low", 0.65), ("high", 1 / 8)]:
        task = KeyChain(Settings(filler="lookup", filler_entropy=level))
        hits = []
        stream = task.corpus("solutions", KEY)
        problems = (task.problem(KEY.child("problem", i)) for i in range(1000))
        for problem in (p for p in problems if not p.is_evaluation):
            demonstration = next(stream)
            assert demonstration.prompt == problem.prompt
            filler = [c for t, c in enumerate(demonstration.text) if t not in key_positions(problem)]
            hits += [c == right for c, right in zip(filler, problem.metadata["lookups"], strict=True)]
        assert abs(np.mean(hits) - rate) < 4 * (rate * (1 - rate) / len(hits)) ** 0.5


def test_problems_are_pure_functions_of_the_key_and_splits_never_meet():
    assert TASK.problem(KEY.child(1)) == KeyChain().problem(KEY.child(1))
    train = split_problems(TASK, KEY.child("a"), 300, evaluation=False)
    held = split_problems(TASK, KEY.child("b"), 100, evaluation=True)
    assert len({p.prompt for p in held}) == 100
    assert not {p.prompt for p in train} & {p.prompt for p in held}
    assert not {d.prompt for d in islice(TASK.corpus("solutions", KEY), 300)} & {p.prompt for p in held}
    assert list(islice(TASK.corpus("demonstrator", KEY), 20)) == list(islice(TASK.corpus("demonstrator", KEY), 20))


def test_a_problem_survives_json():
    problem = TASK.problem(KEY)
    again = replace(problem, metadata=json.loads(json.dumps(problem.metadata)))
    assert TASK.verify(again, rollout(TASK.solve(again))).correct is True


def test_difficulty_sets_the_number_of_keys():
    assert [len(TASK.problem(KEY, d).answer) for d in (0.0, 0.34, 0.66, 1.0, None)] == [1, 2, 3, 4, 4]


def test_cut_points_do_not_betray_the_layout():
    problem = TASK.problem(KEY)
    right = TASK.solve(problem)
    assert TASK.cut_points(problem, rollout(right)) == list(range(32))
    assert TASK.cut_points(problem, rollout(right, tokens=7)) == [0]
    assert TASK.cut_points(problem, rollout("")) == [0]


def test_the_answer_row():
    problem = TASK.problem(KEY)
    row = answer_row(problem)
    assert "".join(c for c in row if c != ".") == problem.answer
    assert with_answer(problem) == row + problem.prompt
    assert len(row) == 32


def test_the_task_keeps_its_protocol_and_its_alphabet():
    for settings in VARIANTS:
        task = KeyChain(settings)
        assert isinstance(task, Task)
        assert len(set(task.alphabet)) == len(task.alphabet)


def test_mistakes_are_one_clear_line():
    with pytest.raises(TaskError, match="keys = 9 must not exceed positions = 8"):
        build(Settings(positions=8, keys=9))
    with pytest.raises(TaskError, match="careless shows in no filler"):
        build(Settings(careless=0.5, filler="lookup", filler_entropy="high"))
    with pytest.raises(TaskError, match="chained goes with dependent"):
        build(Settings(chained=0.5))
    with pytest.raises(TaskError, match="Did you mean 'demonstrator'"):
        TASK.corpus("demonstrations", KEY)
    with pytest.raises(TaskError, match=r"\[0, 1\]"):
        TASK.problem(KEY, -0.1)
    with pytest.raises(TaskError, match="not of the task"):
        TASK.solve(Problem(task="x", key="1", prompt="", answer=""))
    for bad in ({"keys": 0}, {"filler": "none"}, {"demonstrator_accuracy": 2.0}, {"wat": 1}):
        with pytest.raises(ValidationError):
            Settings(**bad)


def test_those_who_do_not_chain_look_every_key_up_alone():
    settings = Settings(dependent=True, chained=0.3, demonstrator_accuracy=1.0)
    table, chained, alone = lookup_table(settings), 0, 0
    for demonstration in islice(KeyChain(settings).corpus("demonstrator", KEY), 800):
        written, right, _ = shared_rows(demonstration, settings)
        cells = [(o, v) for _, o, v in read_prompt(demonstration.prompt, settings)]
        apart = [ENTRIES[e] for e in chain_entries(table, cells, dependent=False)]
        assert written in (right, apart)
        if right != apart:
            chained, alone = chained + (written == right), alone + (written == apart)
    share = chained / (chained + alone)
    assert abs(share - 0.3) < 4 * (0.21 / (chained + alone)) ** 0.5
    for demonstration in islice(KeyChain(settings).corpus("solutions", KEY), 50):
        written, right, _ = shared_rows(demonstration, settings)
        assert written == right
