"""The tabular policies: log-probabilities against the theory, frozen rows, the transformer as a table, files."""

import json

import numpy as np
import pytest
import torch

from forkpoint.batching import Row, pad_rows
from forkpoint.errors import ModelError
from forkpoint.policies.tabular import OFFSET, TabularPolicy, from_theory, load_tabular
from forkpoint.records import frozen_array
from forkpoint.theory.classes import golden_policy, uniform_policy
from forkpoint.theory.graphs import PathStar, edge_states
from forkpoint.theory.tables import cyclic_policy, policy_from_text, softmax_policy, solve_table, spread_policy

GRAPH = PathStar(depths=(2, 1, 2), lanes=(2, 3, 2))


def random_table(graph=GRAPH, seed=0, scale=1.0):
    draw = np.random.Generator(np.random.Philox(key=seed))
    return softmax_policy(graph, scale * draw.standard_normal(len(edge_states(graph).successors)))


def legal_walk(graph, length, seed=0):
    states, walk = edge_states(graph), [0]
    for uniform in np.random.Generator(np.random.Philox(key=seed)).random(length):
        moves = states.moves(walk[-1])
        walk.append(moves[int(uniform * len(moves))])
    return walk


def row(walk, prompt=1):
    tokens = np.array(walk) + OFFSET
    return Row(
        prompt=frozen_array(tokens[:prompt], np.int32),
        tokens=frozen_array(tokens[prompt:], np.int32),
        loss_mask=np.ones(len(walk) - prompt, np.bool_),
    )


def expected_logprobs(policy, walk, prompt=1):
    matrix = policy.matrix()
    return [np.log(matrix[here, there]) for here, there in zip(walk[prompt - 1 :], walk[prompt:], strict=False)]


@pytest.mark.parametrize("architecture", ["table", "transformer"])
def test_logprobs_and_entropies_are_those_of_the_theory(architecture):
    table = random_table()
    policy = from_theory(table, architecture=architecture, window=3, dtype=torch.float64)
    walks = [legal_walk(GRAPH, length, seed) for seed, length in enumerate([1, 4, 9, 30])]
    batch = pad_rows([row(walk) for walk in walks] + [row(walks[3], prompt=5)], range(5))
    logprobs, entropies = policy.logprobs(batch)
    for place, (walk, prompt) in enumerate([*((walk, 1) for walk in walks), (walks[3], 5)]):
        count = len(walk) - prompt
        np.testing.assert_allclose(
            logprobs[place, :count].detach(), expected_logprobs(table, walk, prompt), rtol=1e-12, atol=1e-12
        )
        dense = table.matrix()[walk[prompt - 1 : -1]].toarray()
        expected = -np.where(dense > 0, dense * np.log(np.where(dense > 0, dense, 1)), 0).sum(1)
        np.testing.assert_allclose(entropies[place, :count], expected, rtol=1e-12, atol=1e-12)
        assert not logprobs[place, count:].any()


def test_temperature_divides_the_logits():
    table = random_table()
    cooled = softmax_policy(GRAPH, np.log(table.probabilities) / 0.5)
    walk = legal_walk(GRAPH, 20)
    logprobs, _ = from_theory(table, dtype=torch.float64).logprobs(pad_rows([row(walk)], [0]), temperature=0.5)
    np.testing.assert_allclose(logprobs[0].detach(), expected_logprobs(cooled, walk), rtol=1e-12)


def test_where_chooses_positions():
    policy = from_theory(random_table())
    batch = pad_rows([row(legal_walk(GRAPH, 6))], [0])
    where = torch.tensor([[False, True, False, False, True, False]])
    some, _ = policy.logprobs(batch, where=where)
    every, _ = policy.logprobs(batch)
    assert torch.equal(some, every * where)


@pytest.mark.parametrize("token", [0, 1, OFFSET, 10_000])
def test_an_illegal_move_is_refused(token):
    policy = from_theory(random_table())
    bad = Row(
        prompt=frozen_array([OFFSET], np.int32), tokens=frozen_array([token], np.int32), loss_mask=np.ones(1, np.bool_)
    )
    with pytest.raises(ModelError, match="no legal move"):
        policy.logprobs(pad_rows([bad], [0]))


def test_theory_and_back():
    table = random_table()
    again = from_theory(table, dtype=torch.float64).to_theory()
    np.testing.assert_allclose(again.probabilities, table.probabilities, rtol=1e-12)


def test_moves_of_probability_zero_stay_impossible():
    golden = spread_policy(golden_policy(PathStar.regular(branches=3, depth=3, lanes=5)))
    again = from_theory(golden).to_theory()
    assert solve_table(again).steps.mean() == pytest.approx(solve_table(golden).steps.mean(), rel=1e-5)
    assert again.probabilities[golden.probabilities == 0].max() < 1e-30


def gradients(policy, walk):
    policy.logprobs(pad_rows([row(walk)], [0]))[0].sum().backward()
    return {name: parameter.grad for name, parameter in policy.model.named_parameters()}


@pytest.mark.parametrize("architecture", ["table", "transformer"])
def test_frozen_rows_have_no_gradient(architecture):
    states, walk = edge_states(GRAPH), legal_walk(GRAPH, 200)
    fork = states.frozen_rows
    grad = gradients(from_theory(random_table(), architecture=architecture), walk)["logits"]
    assert not grad[torch.from_numpy(fork)].any()
    assert grad[torch.from_numpy(~fork)].abs().sum() > 1
    trained = gradients(from_theory(random_table(), fork="trained", architecture=architecture), walk)["logits"]
    assert trained[torch.from_numpy(fork)].abs().sum() > 0.1
    assert torch.equal(trained[torch.from_numpy(~fork)], grad[torch.from_numpy(~fork)])


def transformer(window=3, fork="frozen", seed=1):
    """A transformer whose head has learned something."""
    policy = from_theory(random_table(), architecture="transformer", window=window, fork=fork, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in ("attention", "positions", "values"):
            parameter = getattr(policy.model, name)
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return policy


def test_the_transformer_begins_as_the_table_to_the_last_bit():
    walks = [row(legal_walk(GRAPH, 40, seed)) for seed in range(5)]
    batch = pad_rows(walks, range(5))
    for kind in (torch.float32, torch.float64):
        table, other = (from_theory(random_table(), architecture=name, dtype=kind) for name in ("table", "transformer"))
        assert torch.equal(table.logprobs(batch)[0], other.logprobs(batch)[0])
    recent = torch.tensor([[-1, -1, 0], [0, 2, 3]])
    table, other = (from_theory(random_table(), architecture=name, window=3) for name in ("table", "transformer"))
    assert torch.equal(table.edges.rows(recent[:, -1:]), other.edges.rows(recent))
    assert np.array_equal(table.to_theory().probabilities, other.to_theory().probabilities)


def test_the_transformer_learns_its_values_first():
    found = gradients(from_theory(random_table(), architecture="transformer"), legal_walk(GRAPH, 100))
    assert found["values"].abs().sum() > 1
    assert not found["attention"].any()  # nothing that it could read differs yet
    assert gradients(transformer(), legal_walk(GRAPH, 100))["attention"].abs().sum() > 0.1


def test_the_transformer_by_hand():
    policy = transformer(window=2)
    model, walk = policy.model, [0, 2, 3, 5]
    logprobs, _ = policy.logprobs(pad_rows([row(walk)], [0]))
    moves = list(edge_states(GRAPH).moves(3))
    scores = [model.attention[3, seen] + model.positions[place] for place, seen in enumerate([2, 3])]
    shares = torch.softmax(torch.stack(scores), 0)
    first = edge_states(GRAPH).offsets[3]
    logits = model.logits[first : first + len(moves)] + sum(
        share * model.values[seen, moves] for share, seen in zip(shares, [2, 3], strict=True)
    )
    expected = torch.log_softmax(logits, 0)[moves.index(5)]
    assert logprobs[0, 2].item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_transformer_reads_nothing_before_the_beginning():
    policy = transformer(window=3)
    logprobs, _ = policy.logprobs(pad_rows([row([0, 2])], [0]))
    moves = list(edge_states(GRAPH).moves(0))
    model = from_theory(random_table(), fork="trained", architecture="transformer", window=3, dtype=torch.float64).model
    model.values.data.copy_(policy.model.values)
    expected = torch.log_softmax(model.logits[: len(moves)] + model.values[0, moves], 0)[moves.index(2)]
    free = transformer(window=3, fork="trained").logprobs(pad_rows([row([0, 2])], [0]))[0]
    assert free[0, 0].item() == pytest.approx(expected.item(), rel=1e-12)
    assert logprobs[0, 0].item() != pytest.approx(expected.item(), rel=1e-3)  # the fork's row sees the table alone


def test_the_transformer_sees_its_window_and_no_more():
    policy, walk = transformer(window=3), legal_walk(GRAPH, 30)
    whole, _ = policy.logprobs(pad_rows([row(walk)], [0]))
    for cut in (5, 12):
        part, _ = policy.logprobs(pad_rows([row(walk[cut - 2 :], prompt=3)], [0]))
        torch.testing.assert_close(part[0], whole[0, cut:], rtol=1e-12, atol=1e-12)
        short, _ = policy.logprobs(pad_rows([row(walk[cut:], prompt=1)], [0]))
        assert not torch.allclose(short[0, :2], whole[0, cut : cut + 2])


def test_the_transformers_frozen_rows_see_the_table_alone():
    for fork, same in (("frozen", True), ("trained", False)):
        policy = transformer(fork=fork)
        rows = policy.edges.rows(torch.tensor([[3, 5, 1], [4, 6, 1]]))
        assert torch.equal(rows[0], rows[1]) == same


def test_a_learned_transformer_is_no_table():
    with pytest.raises(ModelError, match="no table"):
        transformer().to_theory()


@pytest.mark.parametrize("make", [lambda: from_theory(random_table(), fork="trained"), transformer])
def test_saving_and_loading(make, tmp_path):
    policy = make()
    policy.save(tmp_path)
    again = load_tabular(tmp_path)
    batch = pad_rows([row(legal_walk(GRAPH, 40))], [0])
    assert isinstance(again, TabularPolicy)
    assert torch.equal(policy.logprobs(batch)[0], again.logprobs(batch)[0])
    assert (again.architecture, again.edges.moves.fork, again.num_parameters) == (
        policy.architecture,
        policy.edges.moves.fork,
        policy.num_parameters,
    )


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(ModelError, match="no tabular policy"):
        load_tabular(tmp_path)
    from_theory(random_table()).save(tmp_path)
    path = tmp_path / "tabular.json"
    good = json.loads(path.read_text())
    for change, message in [
        ({"format": "x"}, "another kind"),
        ({"depths": [1]}, "does not fit"),
        ({"fork": 3}, "fork"),
        ({"architecture": "tree"}, "tree"),
    ]:
        path.write_text(json.dumps(good | change))
        with pytest.raises(ModelError, match=message):
            load_tabular(tmp_path)
    path.write_text("{")
    with pytest.raises(ModelError, match="no tabular policy"):
        load_tabular(tmp_path)
    path.write_text(json.dumps(good))
    (tmp_path / "model.safetensors").write_bytes(b"xx")
    with pytest.raises(ModelError, match="no tabular policy"):
        load_tabular(tmp_path)


def test_a_saved_table_is_a_policy_file_of_the_lab(tmp_path):
    policy = from_theory(random_table())
    policy.save(tmp_path)
    again = policy_from_text(GRAPH, (tmp_path / "policy.json").read_text())
    np.testing.assert_array_equal(again.probabilities, policy.to_theory().probabilities)
    (tmp_path / "other").mkdir()
    transformer().save(tmp_path / "other")
    assert not (tmp_path / "other" / "policy.json").exists()


def test_the_cyclic_optimum_is_a_policy_too():
    graph = PathStar.regular(branches=3, depth=2, lanes=2)
    policy = from_theory(cyclic_policy(graph), fork="trained")
    assert solve_table(policy.to_theory()).steps.mean() == pytest.approx(2 * 5 + 6, rel=1e-6)
    assert solve_table(from_theory(spread_policy(uniform_policy(graph))).to_theory()).steps.mean() > 30
