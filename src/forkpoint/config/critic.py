"""What a recipe may say of a learned critic: which values it can have, and how they are fitted."""

from typing import Annotated, Literal

from pydantic import Field

from forkpoint.config.strict import Strict


class CriticSettings(Strict):
    """The critic of a stage whose credit rule asks for values (docs/credit/critic.md)."""

    kind: Literal["auto", "table", "head", "network"] = "auto"
    """`table`: a value for each move of a tabular policy; `head`: a small network on the hidden states of the policy;
    `network`: a decoder of its own, which begins as the policy does; `auto`: `table` or `head`, as the policy is."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of a `table`: share of the way that its values go toward a batch's mean reward to go."""
    hidden: Annotated[int, Field(ge=0, le=65_536)] = 64
    """Units between the hidden states and the value, 0 to 65536; 0: a linear head."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    """Step size of the critic's own AdamW, constant, without weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """The critic's gradients are scaled down to this norm."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 4
    """Passes over each batch, after the batch's credit was taken."""
    minibatches: Annotated[int, Field(ge=1, le=4096)] = 4
    """Steps of a pass, each on its share of the rollouts."""
    loss: Literal["auto", "cross_entropy", "squared"] = "auto"
    """`cross_entropy`: for rewards within 0 and 1, values are chances; `squared`: for any; `auto`: `cross_entropy`
    unless `[stage.reward]` shapes the reward."""
    warmup_batches: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Batches that the policy samples, and only the critic learns from, before the first update."""
