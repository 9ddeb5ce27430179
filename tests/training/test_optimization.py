"""AdamW and its schedule by hand; its state on disk, whole or refused."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import BASE, tiny_recipe

from forkpoint.errors import CheckpointError, TrainingError
from forkpoint.training.optimization import FILE, Optimization, learning_rate


def stage(**changes):
    return tiny_recipe(BASE).stage[0].model_copy(update=changes)


class Model(torch.nn.Module):
    """A matrix, a vector, and a parameter that is not trained."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        self.vector = torch.nn.Parameter(torch.tensor([0.25, -0.75]))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)


def give(model, matrix, vector):
    model.matrix.grad = torch.tensor(matrix)
    model.vector.grad = torch.tensor(vector)


@pytest.mark.parametrize(
    ("schedule", "update", "share"),
    [
        ("constant", 1, 1 / 5),
        ("constant", 4, 4 / 5),
        ("constant", 5, 1.0),
        ("constant", 14, 1.0),
        ("linear", 4, 4 / 5),
        ("linear", 9, 0.1 + 0.9 * 0.5),
        ("linear", 14, 0.1),
        ("cosine", 9, 0.1 + 0.9 * 0.5),
        ("cosine", 14, 0.1),
        ("cosine", 6, 0.1 + 0.45 * (1 + math.cos(math.pi * 0.2))),
    ],
)
def test_the_schedule(schedule, update, share):
    chosen = stage(schedule=schedule, warmup=4, updates=14, learning_rate=0.01)
    assert learning_rate(chosen, update) == pytest.approx(0.01 * share)


def test_a_warmup_longer_than_the_stage_never_peaks():
    assert learning_rate(stage(warmup=20, updates=3), 3) < stage().learning_rate


def test_two_steps_by_hand():
    model = Model()
    settings = stage(warmup=0, learning_rate=0.1, weight_decay=0.5, betas=(0.8, 0.9), max_grad_norm=1e9)
    optimization = Optimization(model, settings)
    value, first, second = 1.0, 0.0, 0.0
    vector, vfirst, vsecond = 0.25, 0.0, 0.0
    for update, (gradient, vgradient) in enumerate([(2.0, -1.0), (-3.0, 0.5)], start=1):
        give(model, [[gradient, 0.0], [0.0, 0.0]], [vgradient, 0.0])
        changes = optimization.step(update)
        assert changes["grad_norm"] == pytest.approx(math.hypot(gradient, vgradient))
        assert changes["learning_rate"] == 0.1
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        # Weight decay is for matrices alone.
        value *= 1 - 0.1 * 0.5
        value -= 0.1 * (first / (1 - 0.8**update)) / (math.sqrt(second / (1 - 0.9**update)) + 1e-8)
        vfirst, vsecond = 0.8 * vfirst + 0.2 * vgradient, 0.9 * vsecond + 0.1 * vgradient**2
        vector -= 0.1 * (vfirst / (1 - 0.8**update)) / (math.sqrt(vsecond / (1 - 0.9**update)) + 1e-8)
    assert float(model.matrix.detach()[0, 0]) == pytest.approx(value, rel=1e-5)
    assert float(model.vector.detach()[0]) == pytest.approx(vector, rel=1e-5)
    assert model.frozen.tolist() == [1.0, 1.0]


def test_a_long_gradient_is_scaled_down_and_its_length_told():
    one, two = Model(), Model()
    clipped = Optimization(one, stage(max_grad_norm=1.0))
    scaled = Optimization(two, stage(max_grad_norm=1e9))
    give(one, [[30.0, 0.0], [0.0, 40.0]], [0.0, 0.0])
    give(two, [[0.6, 0.0], [0.0, 0.8]], [0.0, 0.0])
    assert clipped.step(1)["grad_norm"] == pytest.approx(50.0)
    scaled.step(1)
    assert torch.allclose(one.matrix, two.matrix, rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_dropped(bad):
    model = Model()
    optimization = Optimization(model, stage())
    before = model.matrix.clone()
    give(model, [[bad, 1.0], [1.0, 1.0]], [1.0, 1.0])
    changes = optimization.step(1)
    assert (changes["skipped"], changes["grad_norm"]) == (1.0, 0.0)
    assert torch.equal(model.matrix, before)
    assert model.matrix.grad is None
    give(model, [[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0])
    assert optimization.step(2)["skipped"] == 0.0
    assert not torch.equal(model.matrix, before)


def test_too_many_bad_gradients_in_a_row_end_the_stage():
    model = Model()
    optimization = Optimization(model, stage(max_bad_updates=2))
    for update, value in enumerate((math.nan, 1.0, math.nan), start=1):
        give(model, [[value, 1.0], [1.0, 1.0]], [1.0, 1.0])
        optimization.step(update)
    give(model, [[math.inf, 1.0], [1.0, 1.0]], [1.0, 1.0])
    with pytest.raises(TrainingError, match="update 4: 2 updates in a row without a finite gradient"):
        optimization.step(4)


def test_no_backward_pass_is_a_gradient_of_zero():
    one, two = Model(), Model()
    skipping, passing = Optimization(one, stage()), Optimization(two, stage())
    for model, optimization in ((one, skipping), (two, passing)):
        give(model, [[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0])
        optimization.step(1)
    give(two, [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
    skipping.step(2)
    passing.step(2)
    # The momentum of the update before moves both alike.
    assert torch.equal(one.matrix, two.matrix)
    assert torch.equal(one.vector, two.vector)


def trained(tmp_path, *, weights):
    model = Model()
    optimization = Optimization(model, stage())
    give(model, [[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0])
    optimization.step(1)
    optimization.save(tmp_path, weights=weights)
    return model, optimization


@pytest.mark.parametrize("weights", [True, False])
def test_a_restored_optimizer_goes_on_as_the_old_one(weights, tmp_path):
    model, optimization = trained(tmp_path, weights=weights)
    other = Model()
    restored = Optimization(other, stage())
    restored.load(tmp_path, weights=weights)
    if not weights:
        other.load_state_dict(model.state_dict())
    for each, mine in ((model, optimization), (other, restored)):
        give(each, [[-1.0, 0.5], [0.0, 1.0]], [0.0, 1.0])
        mine.step(2)
    assert torch.equal(model.matrix, other.matrix)
    assert torch.equal(model.vector, other.vector)


def test_an_optimizer_that_took_no_step_comes_back(tmp_path):
    Optimization(Model(), stage()).save(tmp_path, weights=False)
    Optimization(Model(), stage()).load(tmp_path, weights=False)


NAMES = [f"{kind}:{name}" for kind in ("step", "exp_avg", "exp_avg_sq", "weight") for name in ("matrix", "vector")]


@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_lacks_anything_is_refused(name, tmp_path):
    trained(tmp_path, weights=True)
    tensors = load_file(tmp_path / FILE)
    assert sorted(tensors) == sorted(NAMES)
    del tensors[name]
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(CheckpointError, match=r"trainer\.safetensors: \w+ of (matrix|vector) is missing"):
        Optimization(Model(), stage()).load(tmp_path, weights=True)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("step")])
def test_a_state_of_another_shape_is_refused(name, tmp_path):
    trained(tmp_path, weights=True)
    tensors = load_file(tmp_path / FILE)
    tensors[name] = torch.zeros(7)
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Optimization(Model(), stage()).load(tmp_path, weights=True)


def test_a_state_that_holds_more_is_refused(tmp_path):
    trained(tmp_path, weights=True)
    tensors = load_file(tmp_path / FILE)
    save_file({**tensors, "exp_avg:other": torch.zeros(2)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="exp_avg:other, which the model does not have"):
        Optimization(Model(), stage()).load(tmp_path, weights=True)
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="weight:"):
        Optimization(Model(), stage()).load(tmp_path, weights=False)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        Optimization(Model(), stage()).load(tmp_path, weights=False)
    (tmp_path / FILE).write_bytes(b"x" * 99)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Optimization(Model(), stage()).load(tmp_path, weights=False)
