"""The policy under test where none is named: a tiny decoder that imitated the task's demonstrator for a while."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from importlib import metadata
from pathlib import Path

from forkpoint.config.recipe import TextStage
from forkpoint.errors import ForkpointError
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.folder import load_folder
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import attend_prompt, build_decoder
from forkpoint.seeds import Key, content_hash
from forkpoint.store import checkpoint_path, load_state, save_checkpoint, verify_checkpoint
from forkpoint.tasks.protocol import Task
from forkpoint.training.imitation import TextTraining, corpus_draw
from forkpoint.training.optimization import Optimization

CONTEXT = 2048
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """How the decoder is made."""

    corpus: str
    shape: str = "qwen3"
    layers: int = 2
    width: int = 96
    heads: int = 4
    outputs_attend: str = "all"
    """`prompt`: its tokens see the prompt and themselves alone."""
    updates: int = 400
    prompt_updates: int = 0
    """How many of the first updates are made with tokens that see the prompt and themselves alone."""
    prompt_corpus: str = ""
    """What these imitate; without it `corpus`."""
    batch_size: int = 32
    """Texts of an update."""
    learning_rate: float = 3e-3
    seed: int = 0


def pretrained(
    task: Task, plan: Pretraining, *, identity: str, cache: Path | None = None, progress: Progress | None = None
) -> CausalPolicy:
    """The decoder after its updates; taken from the folder `cache`, or put there, where one is given.

    `identity` says which task it is, settings included: another one, another plan or other versions train anew.

    Raises:
        ForkpointError: the task has no alphabet, so a tiny decoder cannot read it.
        StoreError: what lies in the cache is incomplete or altered, or cannot be written.
    """
    if task.alphabet is None:
        raise ForkpointError(f"--task {task.name} is free text, which a tiny decoder cannot read: name one with --run.")
    digest = _digest(plan, identity)
    place = None if cache is None else checkpoint_path(cache / f"{task.name}-{digest}", plan.updates)
    if place is not None and place.is_dir():
        verify_checkpoint(place)
        if load_state(place).get("pretraining") == digest:
            return load_folder(place)
    policy = _trained(task, plan, progress)
    if place is not None:
        save_checkpoint(place, policy.save, state={"pretraining": digest})
    return policy


def _digest(plan: Pretraining, identity: str) -> str:
    versions = [metadata.version(name) for name in ("forkpoint", "torch", "transformers", "numpy")]
    return content_hash(identity, *(str(value) for value in astuple(plan)), *versions)


def _trained(task: Task, plan: Pretraining, progress: Progress | None) -> CausalPolicy:
    key = Key.root(plan.seed).child("meter", "pretraining")
    tokenizer = alphabet_tokenizer(task.alphabet or "")
    model = build_decoder(
        shape=plan.shape, vocabulary=len(tokenizer), layers=plan.layers, width=plan.width, heads=plan.heads,
        context=CONTEXT, key=key.child("policy"),
    )  # fmt: skip
    texts = Texts(tokenizer)
    stage = TextStage(
        name="pretraining", kind="pretrain", updates=plan.updates, data=plan.corpus, batch_size=plan.batch_size,
        learning_rate=plan.learning_rate, warmup=min(20, plan.updates), schedule="constant",
    )  # fmt: skip
    later = corpus_draw(task, texts, stage.data, key, count=stage.batch_size)
    first = corpus_draw(task, texts, plan.prompt_corpus or stage.data, key, count=stage.batch_size)
    optimization, blind = Optimization(model, stage), plan.outputs_attend == "prompt"
    policy = CausalPolicy(attend_prompt(model, alone=blind or plan.prompt_updates > 0), texts)
    for update in range(1, plan.updates + 1):
        if update == plan.prompt_updates + 1:
            policy = CausalPolicy(attend_prompt(model, alone=blind), texts)
        draw = first if update <= plan.prompt_updates else later
        TextTraining(stage=stage, policy=policy, optimization=optimization, draw=draw).unit(update)
        if progress is not None:
            progress(update, plan.updates)
    return CausalPolicy(attend_prompt(model, alone=blind), texts)
