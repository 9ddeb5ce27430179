"""The gradient of an update token by token, in float64: no batch, no padding, no shared prompt, no loss of ours.

Every loss is written as its derivative with respect to the log-probability of a token, every weight as its definition.
"""

import math

import numpy as np
import torch
from invariance_cases import (
    BUDGET,
    CAP,
    CLIP_HIGH,
    CLIP_LOW,
    COEFFICIENT,
    DELTA_HIGH,
    DELTA_LOW,
    DUAL,
    SHAPING,
    gradient,
    is_expert,
    plain_logprobs,
    prompt_ids,
)


def oracle_gradient(policy, reference, rows, loss, aggregation):
    """The gradient that the definitions give for rows without weights."""
    weights = exact_weights(rows, aggregation)
    for row, weight in zip(rows, weights, strict=True):
        if not len(row.tokens):
            continue
        logprobs = plain_logprobs(policy, row)
        with torch.no_grad():
            anchors = plain_logprobs(reference, row).tolist()
        slopes = row_slopes(row, logprobs.tolist(), anchors, loss=loss, weight=weight, count=len(rows))
        total = logprobs.sum() * 0.0
        for logprob, slope in zip(logprobs, slopes, strict=True):
            total = total + slope * logprob
        total.backward()
    return gradient(policy)


def exact_weights(rows, aggregation):
    """The weight of a trained token of each row, rounded as records are."""
    counts = [int(sum(row.loss_mask.tolist())) for row in rows]
    ids = prompt_ids(rows)
    weights = []
    for count, mine in zip(counts, ids, strict=True):
        siblings = sum(other for other, prompt in zip(counts, ids, strict=True) if prompt == mine)
        denominator = {
            "token_mean": sum(counts),
            "constant": len(rows) * BUDGET,
            "sequence_mean": count * sum(other > 0 for other in counts),
            "prompt_mean": siblings * len({i for i, other in zip(ids, counts, strict=True) if other}),
        }[aggregation]
        weights.append(float(np.float32(1.0 / denominator)) if count else 0.0)
    return weights


def row_slopes(row, logprobs, anchors, *, loss, weight, count):
    """d loss / d log pi of each token of a row."""
    mask = row.loss_mask.tolist()
    gaps = [mine - other for mine, other in zip(logprobs, anchors, strict=True)]
    sequence_gap = sum(gap for gap, trained in zip(gaps, mask, strict=True) if trained)
    charge = float(np.float32(COEFFICIENT / count))
    slopes = []
    for place, trained in enumerate(mask):
        slope = 0.0
        if trained:
            advantage, behavior = float(row.advantages[place]), float(row.behavior_logprobs[place])
            for part in loss.split("+"):
                if part == "cross_entropy":
                    slope -= weight
                elif part == "token_k2":
                    slope += float(np.float32(COEFFICIENT) * np.float32(weight)) * gaps[place]
                elif part == "sequence_k2":
                    slope += charge * sequence_gap
                elif part == "mixed_policy" and is_expert(row):
                    chance = math.exp(logprobs[place])
                    slope -= weight * advantage * SHAPING * chance / (chance + SHAPING) ** 2
                else:
                    slope += weight * policy_slope(part, advantage, logprobs[place], behavior)
        slopes.append(slope)
    return slopes


def policy_slope(loss, advantage, logp, behavior):
    """d / d log pi of the policy-gradient losses, case by case."""
    ratio, change = math.exp(logp - behavior), math.exp(logp) - math.exp(behavior)
    if loss in ("reinforce", "mixed_policy"):
        return -advantage
    if loss == "dppo_tv":
        outside = change > DELTA_HIGH if advantage > 0 else change < -DELTA_LOW
        return 0.0 if outside else -min(ratio, CAP) * advantage
    flat = ratio > 1 + CLIP_HIGH if advantage > 0 else ratio < 1 - CLIP_LOW
    if loss == "dual_clip":
        flat = flat or (advantage < 0 and ratio > DUAL)
    return 0.0 if flat else -ratio * advantage
