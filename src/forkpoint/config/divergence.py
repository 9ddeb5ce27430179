"""What a recipe may say of the distance to the policy that a stage started from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from forkpoint.config.strict import Strict


class Divergence(Strict):
    """A penalty on the distance to the policy that the stage started from."""

    coefficient: Annotated[float, Field(gt=0)]
    """Weight of the penalty, above 0."""
    kind: Literal["sequence_k2", "token_k2"] = "sequence_k2"
    """`sequence_k2` has the gradient of the sequence KL on-policy; `token_k2` holds the state distribution fixed."""
    where: Literal["all", "uncredited"] = "all"
    """`uncredited`: only tokens whose advantage is 0, so that what dense credit leaves alone cannot drift; with
    `token_k2`."""

    @model_validator(mode="after")
    def _by_token(self) -> "Divergence":
        if self.where == "uncredited" and self.kind != "token_k2":
            raise ValueError(f"where = 'uncredited' needs kind = 'token_k2', not '{self.kind}'")
        return self
