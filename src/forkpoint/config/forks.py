"""What a recipe may say of contrastive fork tuning: which rollouts, which tokens, and how hard."""

from typing import Annotated

from pydantic import Field, model_validator

from forkpoint.config.strict import Strict


class ForkSettings(Strict):
    """The rollouts of one sampling, the tokens that are tuned, and what holds the others (docs/credit/forks.md)."""

    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    """Budget of a rollout in tokens."""
    problems: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Training problems that are sampled, once, before the first update."""
    group_size: Annotated[int, Field(ge=2, le=4096)] = 16
    """Rollouts of each problem, at least 2."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Sampling temperature; entropies, loss and anchor use the same."""
    keep_problems: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Problems that stay at most: those with right and wrong rollouts whose pass rates are nearest to one half."""
    drop_longest: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the kept problems' rollouts that is left out, the longest first; 0 to below 1."""
    clip: Annotated[float, Field(gt=0)] = 2.5
    """Advantages are clipped to plus and minus this."""
    gate: bool = True
    """Tune tokens of high entropy only; `false`: every sampled token, and then nothing is left to anchor."""
    entropy: Annotated[float, Field(ge=0)] | None = None
    """Tokens above this entropy (nats) are tuned; without it the most open `share` of all tokens."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of all sampled tokens that is tuned when `entropy` is not given, above 0 to 1; ties are tuned too."""
    positive_only: bool = False
    """Learn from right rollouts only; wrong ones then leave the update, anchor included."""
    anchor: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the mean KL(base || policy), in nats, over the tokens that are not tuned."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Rollouts per update; with the other defaults they come one and a half times each."""

    @model_validator(mode="after")
    def _keeps_no_more_than_it_samples(self) -> "ForkSettings":
        if self.keep_problems > self.problems:
            raise ValueError(f"keep_problems = {self.keep_problems} must be at most problems = {self.problems}")
        return self
