"""A recipe: a tree of stages, each starting from the weights of another.

Defaults are the ones that have been run.  A field without a default must be given.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from forkpoint.config.critic import CriticSettings
from forkpoint.config.curriculum import Curriculum
from forkpoint.config.distillation import Distillation
from forkpoint.config.divergence import Divergence
from forkpoint.config.forks import ForkSettings
from forkpoint.config.policies import Policy
from forkpoint.config.reflect import Reflect
from forkpoint.config.review import LessonSettings, Mix, ReviewSettings
from forkpoint.config.strict import Strict
from forkpoint.config.watching import Audits, Doctor
from forkpoint.errors import unknown_name

MAX_ROLLOUTS = 1_000_000
"""Most rollouts of one batch: all of them are in memory at once."""
ROLLOUT_DATA = ("rollouts", "samples", "edits", "lessons")
"""What `data` may say before `:STAGE`."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Credit(Strict):
    """How rewards become one advantage per token."""

    rule: str = "leave_one_out"
    """A rule of docs/credit.md, such as `leave_one_out` or `max_rl`, or `package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword options of the rule."""
    wrap: tuple[str, ...] = ()
    """Wrappers of docs/credit/masks.md around the rule, such as `["fork_mask"]`, the first innermost."""
    wrap_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Keyword options of each wrapper, such as `{ fork_mask = { keep = 0.2 } }`."""

    @model_validator(mode="after")
    def _wrapped_once(self) -> "Credit":
        if len(set(self.wrap)) < len(self.wrap):
            raise ValueError(f"wrap = {list(self.wrap)} names a wrapper twice")
        for name in self.wrap_options:
            if name not in self.wrap:
                raise ValueError(unknown_name("wrap_options", name, self.wrap))
        return self


class PolicyLoss(Strict):
    """What the policy gradient minimizes."""

    name: str = "reinforce"
    """`reinforce`, `clipped_surrogate`, `dppo_tv`, or `package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword options of the loss, such as `clip_high`."""


class RewardRule(Strict):
    """How a verdict becomes a reward."""

    pays: Literal["correct", "score"] = "correct"
    """What is paid: `correct`, the binary truth, or the verdict's score, which a task must then give."""
    length_penalty: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Taken off for a rollout of full length, in proportion for shorter ones; 0 to 1."""


class Bugs(Strict):
    """Published bugs, emulated for teaching and as controls (docs/invariance.md); never for a model that matters."""

    accumulation: Literal["none", "first", "first_and_last"] = "none"
    """Which micro-batches of a rank reach the optimizer; `none`: no bug, all of them do."""
    averaging: Literal["none", "micro_batch", "rank"] = "none"
    """Whose mean loss is averaged; `none`: no bug, one global denominator."""
    micro_batches: Annotated[int, Field(ge=1, le=4096)] = 8
    """Micro-batches of each rank, 1 to 4096."""
    ranks: Annotated[int, Field(ge=1, le=4096)] = 1
    """Data-parallel ranks, emulated, 1 to 4096."""


class Shifted(Strict):
    """Another task that every finished stage is evaluated on, to see what carries over (docs/audits/transfer.md)."""

    name: Name
    """Names the evaluation."""
    task: dict[str, Any]
    """`name` and the settings of the task: longer problems, other names, another verifier."""
    problems: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Held-out problems."""
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Budget of a rollout in tokens; without it that of the stage's other evaluations."""


class Evaluation(Strict):
    """How stages are evaluated on held-out problems."""

    problems: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Held-out problems of the evaluations during a stage, 1 to 100000."""
    final_problems: Annotated[int, Field(ge=1, le=100_000)] = 512
    """Held-out problems of the evaluation that ends a stage."""
    samples: Annotated[int, Field(ge=1, le=1024)] = 1
    """Rollouts of each problem."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    """0 takes the most probable token."""
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Budget of a rollout in tokens; without it the stage's own, or the largest of the recipe's RL stages."""
    shifted: tuple[Shifted, ...] = ()
    """Other tasks of the evaluation that ends a stage."""

    @model_validator(mode="after")
    def _named_once(self) -> "Evaluation":
        names = [shift.name for shift in self.shifted]
        if len(set(names)) < len(names):
            raise ValueError(f"evaluation.shifted names a task twice: {', '.join(names)}")
        return self


class StageBase(Strict):
    """What every stage has."""

    name: Name
    """Letters, digits, `_`, `.`, `-`."""
    from_: Name = Field(default="policy", alias="from")
    """The stage whose weights this one starts with; `policy` is the policy as built or loaded."""
    task: dict[str, Any] | None = None
    """A task of this stage's own, instead of the recipe's."""
    updates: Annotated[int, Field(ge=0, le=10_000_000)]
    """Optimizer steps."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-4
    """Peak step size of AdamW."""
    warmup: Annotated[int, Field(ge=0)] = 20
    """Updates of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up; `linear` and `cosine` end at a tenth of the peak."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Moment decay rates of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    max_batch_tokens: Annotated[int, Field(ge=16)] = 8192
    """Most padded positions in one forward; changes memory and speed, never the gradient."""
    bugs: Bugs = Bugs()
    max_unusable: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the verdicts of a batch or evaluation that may be ERROR or ABSTAINED before the stage fails, 0 to 1."""
    max_bad_updates: Annotated[int, Field(ge=1)] = 10
    """Updates in a row without a finite gradient after which the stage fails."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Updates between evaluations; 0: only the one that ends the stage."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Updates between checkpoints; 0: only the one that ends the stage."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many checkpoints of the stage stay on disk."""


class TextStage(StageBase):
    """Pretraining or supervised fine-tuning: imitation of texts."""

    kind: Literal["pretrain", "sft"]
    data: str = ""
    """A corpus of the task; `file:PATH`, lines of JSON with `prompt` and `completion`; or fresh rollouts of a stage's
    final policy on training problems: `rollouts:STAGE` (the correct ones), `samples:STAGE` (all of them), `edits:STAGE`
    (what their review made of them), `lessons:STAGE` (written with audited lessons in the prompt, imitated without)."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Texts per update."""
    examples: Annotated[int, Field(ge=1, le=10_000_000)] = 4096
    """How many rollouts `rollouts:STAGE`, `samples:STAGE` and `lessons:STAGE` draw."""
    order: Literal["shuffled", "fixed", "descending_perplexity", "ascending_perplexity"] = "shuffled"
    """Of rollouts or a file, since a corpus has no end.  `fixed`: one random order in every pass;
    `descending_perplexity`: what surprises the starting policy most comes first, in every pass; `ascending_...`: last.
    What lies beside them, by `mix` or `review.successes`, comes shuffled."""
    review: ReviewSettings | None = None
    """How `edits:STAGE` reviews; without it the usual way."""
    lessons: LessonSettings | None = None
    """Which lessons `lessons:STAGE` tries; without it the usual way."""
    mix: Mix | None = None
    """Other texts in every update, so that the policy keeps what it can."""

    @model_validator(mode="after")
    def _data_given(self) -> "TextStage":
        if self.updates and not self.data:
            raise ValueError("data is missing: name a corpus of the task, `file:PATH` or `rollouts:STAGE`")
        kind, source = data_source(self.data)
        if self.order != "shuffled" and source is None and text_file(self.data) is None:
            raise ValueError(
                f"order = '{self.order}' needs 'rollouts:STAGE' or 'file:PATH': the corpus '{self.data}' has no end"
            )
        if self.review is not None and kind != "edits":
            raise ValueError(f"review goes with data = 'edits:STAGE', not '{self.data}'")
        if self.lessons is not None and kind != "lessons":
            raise ValueError(f"lessons goes with data = 'lessons:STAGE', not '{self.data}'")
        if self.mix is not None and data_source(self.mix.data)[0] in ("edits", "lessons"):
            raise ValueError("mix takes a corpus, a file, rollouts or samples")
        return self


class RLStage(StageBase):
    """Reinforcement learning on verifiable rewards."""

    kind: Literal["rl"]
    problems_per_update: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Problems of one rollout batch."""
    group_size: Annotated[int, Field(ge=2, le=65_536)] = 16
    """Rollouts of each problem, at least 2: credit compares them with each other."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    """Budget of a rollout in tokens."""
    updates_per_batch: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Optimizer steps that share one rollout batch; above 1 the loss must be one with a trust region."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Sampling temperature; training uses the same."""
    truncated: Literal["wrong", "drop"] = "wrong"
    """What a rollout that ran out of budget counts as."""
    aggregation: Literal["token_mean", "constant", "sequence_mean", "prompt_mean"] = "token_mean"
    """How token losses become one number; every denominator is global."""
    credit: Credit = Credit()
    loss: PolicyLoss = PolicyLoss()
    divergence: Divergence | None = None
    distillation: Distillation | None = None
    entropy_bonus: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Paid for a nat of next-token entropy, as the mean over all sampled tokens of an update; 0 to 10, 0: none."""
    reward: RewardRule = RewardRule()
    experts: Annotated[int, Field(ge=0, le=64)] = 0
    """Solutions of the task in each group, 0 to 64; for the loss `mixed_policy` with the credit `with_experts`."""
    critic: CriticSettings | None = None
    """The learned values that the rule `critic`, or one of somebody else's, asks for; without it the usual ones."""
    curriculum: Curriculum | None = None
    """Which problems come, and which groups are trained on; without it problems are drawn as the task gives them."""
    lessons: Name | None = None
    """The stage with `data = "lessons:STAGE"` whose living lessons `knowledge = "lessons"` tells, in the credit rule
    `privileged` and in distillation."""
    reflect: Reflect | None = None
    """Whether failed attempts are reflected on and tried again; the reflections are rewarded and learned from."""
    keep_rollouts: Annotated[str, Field(pattern=r"^(all|every:[1-9][0-9]{0,8}|sample:[1-9][0-9]{0,8})$")] = "every:10"
    """Which updates' rollouts the store keeps: `all`, `every:N`, or `sample:K` groups of each update."""

    @model_validator(mode="after")
    def _whole_batches(self) -> "RLStage":
        if self.updates % self.updates_per_batch:
            raise ValueError(
                f"updates = {self.updates} must be a multiple of updates_per_batch = {self.updates_per_batch}"
            )
        rollouts = self.problems_per_update * self.group_size
        if rollouts > MAX_ROLLOUTS:
            raise ValueError(
                f"problems_per_update x group_size = {rollouts} rollouts are more than {MAX_ROLLOUTS}, "
                "the most that one batch holds"
            )
        self._experts_fit()
        self._lessons_fit()
        if self.reflect is not None and (self.experts or self.distillation is not None or self.bugs != Bugs()):
            raise ValueError("reflect goes with none of experts, distillation and bugs")
        if self.problems_per_update < self.updates_per_batch:
            raise ValueError("problems_per_update must be at least updates_per_batch: every update takes whole groups")
        return self

    def _experts_fit(self) -> None:
        """Raises ValueError unless loss and credit both know of the experts that the stage has."""
        mixed, credited = self.loss.name == "mixed_policy", self.credit.rule == "with_experts"
        if mixed != bool(self.experts) or credited != bool(self.experts):
            raise ValueError(
                f"experts = {self.experts}, loss.name = '{self.loss.name}', credit.rule = '{self.credit.rule}': "
                "experts above 0, the loss mixed_policy and the credit with_experts go together"
            )
        if credited and self.credit.options.get("experts", 1) != self.experts:
            raise ValueError(f"credit.options.experts must be {self.experts}, like experts of the stage")

    def _lessons_fit(self) -> None:
        """Raises ValueError unless there are lessons to tell just where they are told."""
        credited = self.credit.rule == "privileged" and self.credit.options.get("knowledge") == "lessons"
        taught = self.distillation is not None and self.distillation.knowledge == "lessons"
        if (credited or taught) != (self.lessons is not None):
            raise ValueError(
                "knowledge = 'lessons' (of the credit rule privileged, or of distillation) and lessons = 'STAGE' go "
                "together"
            )


class ForksStage(ForkSettings, StageBase):
    """Contrastive fork tuning: the fork tokens of the parent's own right and wrong rollouts."""

    kind: Literal["forks"]
    updates: Annotated[int, Field(ge=0, le=10_000_000)] = 149
    """Optimizer steps: the cap that keeps the loss, which has no lower bound, from running away."""

    @model_validator(mode="after")
    def _fits(self) -> "ForksStage":
        if self.problems * self.group_size > MAX_ROLLOUTS:
            raise ValueError(
                f"problems x group_size = {self.problems * self.group_size} rollouts are more than {MAX_ROLLOUTS}"
            )
        if self.bugs != Bugs():
            raise ValueError("bugs are emulated in stages of the other kinds only")
        return self


AnyStage: TypeAlias = TextStage | RLStage | ForksStage
Stage = Annotated[AnyStage, Field(discriminator="kind")]


class Recipe(Strict):
    """A whole run."""

    name: Name
    """Names the run's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Root of every random number of the run."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of each process; part of the run's identity."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Independent stages that may run at the same time."""
    slots: Annotated[int, Field(ge=1, le=65536)] = 256
    """Rollouts decoded at once; changes memory and speed, never the rollouts."""
    policy: Policy
    task: dict[str, Any]
    """`name` and the settings of a task: see `forkpoint task show NAME`."""
    evaluation: Evaluation = Evaluation()
    doctor: Doctor = Doctor()
    audits: Audits = Audits()
    stage: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _a_tree(self) -> "Recipe":
        known = ["policy"]
        for stage in self.stage:
            if stage.name in known:
                raise ValueError(f"[[stage]] name = '{stage.name}' is given twice (`policy` is taken)")
            sources = [("from", stage.from_)]
            sources += [(key, name) for key, name in _drawn_from(stage)]
            for key, source in sources:
                if source not in known:
                    where = f"[[stage]] '{stage.name}': the earlier stage {key}"
                    raise ValueError(unknown_name(where, source, known))
            known.append(stage.name)
        for stage in self.stage:
            told = stage.lessons if isinstance(stage, RLStage) else None
            if told is not None and not getattr(self.get_stage(told), "data", "").startswith("lessons:"):
                raise ValueError(f"[[stage]] '{stage.name}': lessons = '{told}' has no data = 'lessons:STAGE'")
        return self

    def get_stage(self, name: str) -> AnyStage:
        """The stage of that name; KeyError when there is none."""
        for stage in self.stage:
            if stage.name == name:
                return stage
        raise KeyError(name)


def parent(stage: AnyStage) -> str | None:
    """The stage whose weights this one starts with; None for the policy as built."""
    return None if stage.from_ == "policy" else stage.from_


def sources(stage: AnyStage) -> tuple[str, ...]:
    """The stages that must be done before this one, `policy` left out."""
    names = [parent(stage), *(name for _, name in _drawn_from(stage))]
    return tuple(name for name in dict.fromkeys(names) if name is not None and name != "policy")


def data_source(data: str) -> tuple[str, str | None]:
    """How rollouts become texts and the stage that draws them; a corpus and None.

    >>> data_source("edits:search"), data_source("golden")
    (('edits', 'search'), ('golden', None))
    """
    kind, colon, stage = data.partition(":")
    return (kind, stage) if colon and kind in ROLLOUT_DATA else (data, None)


def text_file(data: str) -> str | None:
    """The path of `file:PATH`; None for other data."""
    return data.removeprefix("file:") if data.startswith("file:") else None


def _drawn_from(stage: AnyStage) -> list[tuple[str, str]]:
    """The keys of a stage that name stages whose policies or lessons it learns from, with these stages."""
    if isinstance(stage, RLStage):
        return [] if stage.lessons is None else [("lessons", stage.lessons)]
    if not isinstance(stage, TextStage):
        return []
    named = [("data", data_source(stage.data)[1])]
    if stage.mix is not None:
        named.append(("mix.data", data_source(stage.mix.data)[1]))
    return [(key, name) for key, name in named if name is not None]


def rollout_budget(recipe: Recipe, stage: AnyStage) -> int | None:
    """Tokens of a rollout in the evaluations of a stage; None when the recipe does not say."""
    if recipe.evaluation.max_new_tokens is not None:
        return recipe.evaluation.max_new_tokens
    if isinstance(stage, RLStage | ForksStage):
        return stage.max_new_tokens
    sampling = (other for other in recipe.stage if isinstance(other, RLStage | ForksStage))
    return max((other.max_new_tokens for other in sampling), default=None)
