"""Policies over the moves of a lab graph, with the surface of a causal language model.

Tokens are the characters of the task `lab`, numbered by its tokenizer: edge state s is token s + 2.
They are saved in a format of their own: tensors in safetensors, the graph and the architecture in JSON.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from forkpoint.batching import PromptTable, TokenBatch
from forkpoint.errors import ModelError, TaskError
from forkpoint.policies.edges import EdgeTransformer
from forkpoint.policies.moves import EdgeModel, Moves, TableModel
from forkpoint.policies.protocol import Scorer
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.tasks.lab import edge_alphabet
from forkpoint.theory.graphs import PathStar
from forkpoint.theory.tables import TablePolicy, policy_text, softmax_policy

OFFSET = 2
"""Tokens before the first edge state: padding and end of sequence."""
CONTEXT = 1_000_000
"""Most tokens of a walk."""
WEIGHTS, DESCRIPTION, THEORY = "model.safetensors", "tabular.json", "policy.json"
_FORMAT = "forkpoint-tabular"
_FLOOR = -80.0
"""Logit of a move of probability 0, nats: e^-80 is still a normal float32."""
ARCHITECTURES = ("table", "transformer")


class TabularPolicy:
    """A table of logits over legal moves, or the one-layer transformer that begins as one."""

    def __init__(self, model: TableModel | EdgeTransformer, *, device: str = "cpu") -> None:
        self.model: Any = model.to(device).eval()
        self.edges: EdgeModel = model
        self.graph = model.moves.graph
        self.texts = Texts(alphabet_tokenizer(edge_alphabet(self.graph)))
        self.device = torch.device(device)
        self.context_length = CONTEXT

    @property
    def architecture(self) -> str:
        """`table` or `transformer`."""
        return "transformer" if isinstance(self.model, EdgeTransformer) else "table"

    @property
    def has_adapters(self) -> bool:
        """False: all weights are trained, frozen rows apart."""
        return False

    @property
    def num_parameters(self) -> int:
        """All parameters, frozen rows included."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def windows(self, batch: TokenBatch) -> Int[Tensor, "B T W"]:
        """The edge states that predict each token, the newest last, -1 before the beginning of the prompt."""
        width = self.edges.window
        back = batch.prompt_lengths[:, None] - torch.arange(width, 0, -1, device=self.device)
        lead = batch.prompts.gather(1, back.clamp(min=0)).masked_fill(back < 0, OFFSET - 1)[batch.prompt_index]
        return (torch.cat([lead, batch.tokens[:, :-1]], dim=1) - OFFSET).unfold(1, width, 1)

    def logprobs(
        self,
        batch: TokenBatch,
        *,
        temperature: float = 1.0,
        where: Bool[Tensor, "B T"] | None = None,
        entropy_gradient: bool = False,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Log-probability of each token and entropy of the distribution that it is drawn from, nats.

        Both are 0 where `where` (default: the loss mask) is False.  The entropy carries a gradient only with
        `entropy_gradient`.
        Raises ModelError for a step that is no legal move.
        """
        where = batch.loss_mask if where is None else where
        recent = self.windows(batch)[where]
        entries = self.edges.moves.entries(recent[:, -1], batch.tokens[where] - OFFSET)
        logprob, entropy = self.edges.score(recent, entries, temperature)
        entropy = entropy if entropy_gradient else entropy.detach()
        blank = torch.zeros(batch.tokens.shape, dtype=logprob.dtype, device=self.device)
        return blank.masked_scatter(where, logprob), blank.masked_scatter(where, entropy)

    @contextmanager
    def prompts_once(self, table: PromptTable) -> Iterator[Scorer]:
        """Scores batches; a prompt is one state, so there is nothing to share."""
        del table
        yield self.logprobs

    @torch.no_grad()
    def to_theory(self) -> TablePolicy:
        """The same policy for the exact solvers.

        Raises ModelError for a transformer whose head has learned: it depends on more than the last edge.
        """
        if isinstance(self.model, EdgeTransformer) and bool(self.model.values.any()):
            raise ModelError("the transformer depends on more than the last edge: it is no table.")
        return softmax_policy(self.graph, self.model.logits.detach().double().cpu().numpy())

    def save(self, folder: Path) -> None:
        """Writes the tensors and what they are tensors of; a table also as a policy file of the lab."""
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.model.named_parameters()}
        save_file(tensors, folder / WEIGHTS)
        description = {
            "format": _FORMAT,
            "architecture": self.architecture,
            "depths": self.graph.depths,
            "lanes": self.graph.lanes,
            "fork": self.edges.moves.fork,
            "window": self.edges.window,
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        if self.architecture == "table":
            (folder / THEORY).write_text(policy_text(self.to_theory()) + "\n", encoding="utf-8")


def from_theory(
    policy: TablePolicy,
    *,
    fork: str = "frozen",
    architecture: str = "table",
    window: int = 8,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> TabularPolicy:
    """The trainable policy with these probabilities; a move of probability 0 gets the logit -80.

    `window` is the number of edges that a transformer sees.
    """
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(policy.probabilities), _FLOOR)
    moves = Moves(policy.graph, fork=fork)
    model = _model(moves, logits, architecture=architecture, window=window, dtype=dtype)
    return TabularPolicy(model, device=device)


def _model(
    moves: Moves, logits: np.ndarray, *, architecture: str, window: int, dtype: torch.dtype
) -> TableModel | EdgeTransformer:
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture = {architecture!r} is not known; known: {', '.join(ARCHITECTURES)}")
    if architecture == "table":
        return TableModel(moves, logits, dtype=dtype)
    return EdgeTransformer(moves, logits, window=window, dtype=dtype)


def load_tabular(folder: Path, *, device: str = "cpu") -> TabularPolicy:
    """The policy that `TabularPolicy.save` wrote.

    Raises ModelError when the folder holds none, or one whose tensors do not fit its description.
    """
    try:
        record: Any = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        line = str(error).splitlines()[0]
        raise ModelError(f"there is no tabular policy at {folder}: {line}") from None
    if not isinstance(record, Mapping) or record.get("format") != _FORMAT or "logits" not in tensors:
        raise ModelError(f"there is no tabular policy at {folder}: its description is of another kind.")
    try:
        graph = PathStar(depths=tuple(record["depths"]), lanes=tuple(record["lanes"]))
        moves = Moves(graph, fork=str(record["fork"]))
        start, dtype = np.zeros(len(moves.successors)), tensors["logits"].dtype
        model = _model(moves, start, architecture=record["architecture"], window=int(record["window"]), dtype=dtype)
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError, TaskError, TypeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise ModelError(f"the tabular policy at {folder} does not fit its description: {line}") from None
    return TabularPolicy(model, device=device)
