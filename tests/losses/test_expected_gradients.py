"""The enumeration oracle: exact expected gradients of whole configurations (credit x loss x aggregation).

The policy is a table of logits in float64: one row for the first token, one for each first token for the second.
All sequences and all groups of three are enumerated, each weighed by its probability.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from forkpoint.credit.group import group_mean_std_advantages, leave_one_out_advantages, max_rl_advantages
from forkpoint.losses import LOSSES, token_weights
from forkpoint.losses.divergence import k3_metric, sequence_k2, token_k2

V, G, LENGTH = 3, 3, 4
PAIRS = list(itertools.product(range(V), repeat=2))
CORRECT = {(0, 1), (2, 2), (2, 0)}
BINARY = np.array([float(pair in CORRECT) for pair in PAIRS])
GRADED = np.array([0.3, 1.0, 0.0, 0.7, 0.7, 0.1, 2.0, 0.2, 0.9])
FULL = np.ones((9, 2), bool)


@dataclass
class Table:
    logits: torch.Tensor

    def token_logprobs(self):
        """log pi of both tokens of the nine sequences, [9, 2]."""
        logprobs = torch.log_softmax(self.logits, dim=-1)
        return torch.stack([torch.stack([logprobs[0, a], logprobs[1 + a, b]]) for a, b in PAIRS])

    def sequence_probabilities(self):
        return self.token_logprobs().sum(-1).exp()

    def gradient(self, scalar):
        return torch.autograd.grad(scalar, self.logits)[0]


def table(seed):
    logits = torch.randn(1 + V, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Table(logits.requires_grad_())


def gradient_of_expected_reward(policy, rewards):
    return policy.gradient((policy.sequence_probabilities() * torch.tensor(rewards)).sum())


def expected_loss_gradient(policy, rewards, advantages, loss, mode="constant", masks=FULL):
    """The exact expectation of the loss gradient over all groups of three independent rollouts."""
    probabilities = policy.sequence_probabilities().detach()
    tuples = list(itertools.product(range(9), repeat=G))
    rows = torch.tensor(tuples).flatten()
    token_advantages, weights = [], []
    for group in tuples:
        members = list(group)
        made = token_weights(list(masks[members]), [0] * G, aggregation=mode, constant_length=LENGTH)
        chance = probabilities[members].prod().item()
        # The loss is linear in the weights: one call holds every group, each weighed by its chance.
        weights.append(np.stack(made).astype(np.float64) * chance)
        token_advantages.append(np.repeat(advantages(rewards[members])[:, None], 2, axis=1))
    logprobs = policy.token_logprobs()[rows]
    output = LOSSES[loss](
        logprobs,
        logprobs.detach(),
        torch.tensor(np.concatenate(token_advantages)),
        torch.tensor(np.concatenate(weights)),
    )
    return policy.gradient(output.loss)


def difference(gradient, reference):
    return ((gradient - reference).norm() / reference.norm()).item()


def group_mean_advantages(rewards):
    """The control: a baseline that includes the rollout itself."""
    return rewards - rewards.mean()


def success_rate(policy):
    return float(policy.sequence_probabilities().detach() @ torch.tensor(BINARY))


def max_rl_factor(policy):
    return sum((1 - success_rate(policy)) ** (k - 1) for k in range(1, G))


def mean_std_factor(policy):
    """By hand for three: with one success the advantages are 2/sqrt 3 and -1/sqrt 3, with two the reverse.

    E[grad log pi | success] = grad p / p and E[grad log pi | failure] = -grad p / (1 - p).
    """
    p, q = success_rate(policy), 1 - success_rate(policy)
    root = 3**0.5
    one = (1 * (2 / root) / p + 2 * (1 / root) / q) / 3
    two = (2 * (1 / root) / p + 1 * (2 / root) / q) / 3
    return 3 * p * q**2 * one + 3 * p**2 * q * two


FACTORS = {
    "leave_one_out": (leave_one_out_advantages, lambda policy: 1.0),
    "group_mean": (group_mean_advantages, lambda policy: (G - 1) / G),
    "max_rl": (max_rl_advantages, max_rl_factor),
    "group_mean_std": (lambda rewards: group_mean_std_advantages(rewards, epsilon=0.0), mean_std_factor),
}


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("rule", sorted(FACTORS))
@pytest.mark.parametrize("seed", [0, 1])
def test_each_rule_has_its_own_factor(rule, loss, seed):
    policy = table(seed)
    advantages, factor = FACTORS[rule]
    true_gradient = gradient_of_expected_reward(policy, BINARY)
    gradient = expected_loss_gradient(policy, BINARY, advantages, loss)
    # The weights are float32, hence 1e-7 and not 1e-14.
    assert difference(-LENGTH * gradient, factor(policy) * true_gradient) < 1e-7


def test_the_factors_differ():
    factors = [factor(table(0)) for _, factor in FACTORS.values()]
    assert min(abs(a - b) for a, b in itertools.combinations(factors, 2)) > 0.05


def test_mean_std_factor_approaches_its_limit_only_for_large_groups():
    policy = table(0)
    p = success_rate(policy)
    assert mean_std_factor(policy) < 0.95 / (p * (1 - p)) ** 0.5


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_leave_one_out_is_exact_for_graded_rewards(loss):
    policy = table(2)
    gradient = expected_loss_gradient(policy, GRADED, leave_one_out_advantages, loss)
    assert difference(-LENGTH * gradient, gradient_of_expected_reward(policy, GRADED)) < 1e-7


@pytest.mark.parametrize(("mode", "exact"), [("constant", True), ("token_mean", False), ("sequence_mean", False)])
def test_with_ragged_lengths_only_constant_is_exact(mode, exact):
    """Token 0 ends a sequence: its second token is neither trained nor rewarded."""
    policy = table(3)
    masks = np.array([[True, first != 0] for first, _ in PAIRS])
    rewards = np.where(masks[:, 1], GRADED, 0.5)
    gradient = -expected_loss_gradient(policy, rewards, leave_one_out_advantages, "reinforce", mode, masks)
    true_gradient = gradient_of_expected_reward(policy, rewards)
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), true_gradient.flatten(), dim=0).item()
    assert (abs(cosine - 1) < 1e-12) == exact
    assert cosine > 0.5
    if exact:
        assert difference(LENGTH * gradient, true_gradient) < 1e-7


def test_off_policy_dppo_is_exact_for_one_token_inside_its_region():
    """E_mu[r A grad log pi] = grad E_pi[reward]; without the ratio it is not."""
    policy = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    behavior = torch.log_softmax(torch.tensor([0.0, 0.1, -0.2], dtype=torch.float64), -1)
    logprobs = torch.log_softmax(policy, -1)
    rewards = torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64)
    (exact,) = torch.autograd.grad((logprobs.exp() * rewards).sum(), policy, retain_graph=True)
    rows = (logprobs[:, None], behavior[:, None], (rewards - 0.3)[:, None], behavior.exp()[:, None])
    for name, agrees in [("dppo_tv", True), ("reinforce", False)]:
        output = LOSSES[name](*rows)
        (gradient,) = torch.autograd.grad(-output.loss, policy, retain_graph=True)
        assert (difference(gradient, exact) < 1e-12) == agrees
    mismatch = (behavior.exp() * (behavior - logprobs.detach())).sum().item()
    weighted = [
        LOSSES["dppo_tv"](*(tensor[i : i + 1] for tensor in rows)).diagnostics["kl_k3_sum"] * behavior[i].exp().item()
        for i in range(3)
    ]
    assert sum(weighted) == pytest.approx(mismatch, rel=1e-12)


def reverse_kl(policy, reference):
    """KL(pi || ref) over whole sequences."""
    logprobs = policy.token_logprobs().sum(-1)
    return (logprobs.exp() * (logprobs - reference.token_logprobs().sum(-1).detach())).sum()


def fixed_state_kl(policy, reference):
    """KL of each token, summed over states whose distribution is held fixed."""
    rows, others = torch.log_softmax(policy.logits, -1), torch.log_softmax(reference.logits, -1).detach()
    per_state = (rows.exp() * (rows - others)).sum(-1)
    return per_state[0] + (rows[0].exp().detach() * per_state[1:]).sum()


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_expected_gradient_of_the_kl_losses(seed):
    policy, reference = table(seed), table(seed + 1)
    probabilities = policy.sequence_probabilities().detach()
    exact = policy.gradient(reverse_kl(policy, reference))
    whole = sequence_k2(policy.token_logprobs(), reference.token_logprobs(), torch.ones(9, 2).bool(), probabilities)
    assert difference(policy.gradient(whole.loss), exact) < 1e-13
    single = token_k2(policy.token_logprobs(), reference.token_logprobs(), probabilities[:, None].expand(9, 2))
    token_gradient = policy.gradient(single.loss)
    assert difference(token_gradient, exact) > 0.01
    assert difference(token_gradient, policy.gradient(fixed_state_kl(policy, reference))) < 1e-13


def test_k3_metric_estimates_the_kl_of_its_first_argument():
    policy, reference = table(0), table(1)
    logprobs, others = policy.token_logprobs(), reference.token_logprobs()
    one = torch.ones(1, 2).bool()
    values = [k3_metric(logprobs[i : i + 1], others[i : i + 1], one) for i in range(9)]
    expected = float(policy.sequence_probabilities().detach() @ torch.tensor(values, dtype=torch.float64))
    assert expected == pytest.approx(reverse_kl(policy, reference).item(), rel=1e-12)
    assert expected != pytest.approx(reverse_kl(reference, policy).item(), rel=0.01)
