"""A recipe to objects: the policy, and everything that a stage needs."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.assembly.critics import build_critic
from forkpoint.assembly.lab import build_tabular
from forkpoint.assembly.tables import CREDIT_RULES, LOSSES, build_task, kept_task, model_folder, resolve
from forkpoint.config.policies import FolderPolicy, TabularPolicy
from forkpoint.config.recipe import AnyStage, ForksStage, Recipe, RLStage, Shifted, parent, rollout_budget
from forkpoint.errors import CheckpointError, RecipeError
from forkpoint.records import Problem
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import Interactive, Task, split_problems

if TYPE_CHECKING:
    from forkpoint.doctor.canaries import Trial
    from forkpoint.policies.protocol import Policy
    from forkpoint.probe import Probe, Sampler
    from forkpoint.probing.local import BranchPlan, LocalProbe
    from forkpoint.store import RunWriter
    from forkpoint.training.critic import Critic
    from forkpoint.training.forks import ForksTraining
    from forkpoint.training.hooks import Hook, Loop
    from forkpoint.training.optimization import Optimization
    from forkpoint.training.stage import Shift, StageContext
    from forkpoint.training.unit import Training

STAND_INS = 16
"""Rollouts that stand in for those of a stage that was not run."""


def build_policy(recipe: Recipe, folder: Path) -> "Policy":
    """The policy that a recipe describes, before any stage."""
    from forkpoint.policies.causal import CausalPolicy
    from forkpoint.policies.folder import DTYPES, load_folder
    from forkpoint.policies.texts import Texts, alphabet_tokenizer
    from forkpoint.policies.tiny import build_decoder

    spec = recipe.policy
    if isinstance(spec, TabularPolicy):
        return build_tabular(recipe, spec, folder)
    if isinstance(spec, FolderPolicy):
        return load_folder(model_folder(spec, folder), dtype=spec.dtype, device=spec.device)
    alphabet = shared_alphabet(recipe, folder)
    tokenizer = alphabet_tokenizer(alphabet)
    model: Any = build_decoder(
        shape=spec.shape, vocabulary=len(tokenizer), layers=spec.layers, width=spec.width, heads=spec.heads,
        context=spec.context, key=Key.root(recipe.seed).child("policy"),
    )  # fmt: skip
    return CausalPolicy(model.to(dtype=DTYPES[spec.dtype]), Texts(tokenizer), device=spec.device)


def task_tables(recipe: Recipe) -> list[dict[str, Any]]:
    """The `[task]` table of the recipe, and those of its stages and shifted evaluations."""
    tables = [recipe.task, *(stage.task for stage in recipe.stage if stage.task is not None)]
    return [*tables, *(shift.task for shift in recipe.evaluation.shifted)]


def shared_alphabet(recipe: Recipe, folder: Path) -> str:
    """Every character of the recipe's tasks, in order of appearance."""
    characters: dict[str, None] = {}
    for table in task_tables(recipe):
        task = build_task(table, folder=folder)
        if task.alphabet is None:
            raise RecipeError(
                f"[policy] kind = 'tiny' needs a task with an alphabet; {task.name} is free text: use kind = 'hf'."
            )
        characters.update(dict.fromkeys(task.alphabet))
    return "".join(characters)


def run_identity(recipe: Recipe) -> dict[str, Any]:
    """What an exact resume depends on beside the recipe."""
    versions = {name: metadata.version(name) for name in ("forkpoint", "torch", "transformers", "numpy")}
    return {**versions, "python": platform.python_version(), "machine": platform.machine(), "threads": recipe.threads}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """A recipe with the folder that its paths are seen from and the folder that the run writes."""

    recipe: Recipe
    origin: Path
    run: Path
    tasks: dict[str, Task] = field(default_factory=dict, repr=False, compare=False)
    """Built once: some tasks start a process or read a file."""
    trials: "dict[str, Trial]" = field(default_factory=dict, repr=False, compare=False)
    """What each task's verifier said to the doctor: asked once in a process."""
    unrun: bool = False
    """Whether no stage was run: then each starts from the policy as built, for checks alone."""

    def stage_context(self, name: str, writer: "RunWriter", stop: Callable[[], bool]) -> "StageContext":
        """Everything that the stage of this name needs."""
        from forkpoint.training.evaluation import EvaluationPlan
        from forkpoint.training.stage import StageContext

        recipe, stage = self.recipe, self.recipe.get_stage(name)
        task = self.task(stage)
        key = Key.root(recipe.seed).child(name)

        plans = [
            EvaluationPlan(
                task=task,
                problems=tuple(split_problems(task, Key.root(recipe.seed).child("evaluation"), count, evaluation=True)),
                key=Key.root(recipe.seed).child("evaluation"),
                samples=recipe.evaluation.samples,
                temperature=recipe.evaluation.temperature,
                max_new_tokens=evaluation_budget(recipe, stage),
                max_unusable=stage.max_unusable,
            )
            for count in (recipe.evaluation.problems, recipe.evaluation.final_problems)
        ]
        return StageContext(
            run=self.run, stage=stage, key=key, writer=writer, parent=self._parent(stage),
            load_policy=partial(self._stage_policy, name),
            make_probe=lambda made, critic=None: self._probe(made, task, critic=critic, stage=stage),
            make_training=partial(self._training, stage, writer=writer),
            make_critic=partial(build_critic, recipe, stage),
            plan=plans[0], final_plan=plans[1], identity=run_identity(recipe), stop=stop,
            hooks=self._hooks(stage, writer), shifted=self._shifted(stage),
        )  # fmt: skip

    def _shifted(self, stage: AnyStage) -> "tuple[Shift, ...]":
        """The other tasks that every stage is evaluated on."""
        from forkpoint.training.evaluation import EvaluationPlan
        from forkpoint.training.stage import Shift

        recipe, key = self.recipe, Key.root(self.recipe.seed).child("evaluation")
        made = []
        for shift in recipe.evaluation.shifted:
            task = self.shifted_task(shift)
            plan = EvaluationPlan(
                task=task, key=key, samples=recipe.evaluation.samples, temperature=recipe.evaluation.temperature,
                problems=tuple(split_problems(task, key.child(shift.name), shift.problems, evaluation=True)),
                max_new_tokens=shift.max_new_tokens or evaluation_budget(recipe, stage),
                max_unusable=stage.max_unusable,
            )  # fmt: skip
            made.append(Shift(name=shift.name, plan=plan, make_probe=partial(self._plain_probe, task)))
        return tuple(made)

    def _plain_probe(self, task: Task, policy: "Policy") -> "LocalProbe":
        return self._probe(policy, task)[0]

    def shifted_task(self, shift: Shifted) -> Task:
        """The task of a shifted evaluation."""
        where = f"[[evaluation.shifted]] '{shift.name}'"
        if where not in self.tasks:
            self.tasks[where] = self._built_task(where, shift.task)
        return self.tasks[where]

    def loop(self, name: str, checkpoint: Path | None = None) -> "Loop":
        """A stage's loop with weights of its own, which nothing saves: from a checkpoint, or as the stage begins."""
        from forkpoint.store import checkpoint_update
        from forkpoint.training.hooks import Loop
        from forkpoint.training.optimization import Optimization
        from forkpoint.training.stage import restored_curriculum

        stage = self.recipe.get_stage(name)
        task, key = self.task(stage), Key.root(self.recipe.seed).child(name)
        policy = self._stage_policy(name, self._parent(stage), checkpoint)
        critic = build_critic(self.recipe, stage, policy)
        optimization = Optimization(policy.model, stage)
        if checkpoint is not None:
            optimization.load(checkpoint, weights=policy.has_adapters)
            if critic is not None:
                critic.load(checkpoint)
        done = 0 if checkpoint is None else checkpoint_update(checkpoint)
        probe, changed = self._probe(policy, task, critic=critic, stage=stage)
        changed(done)
        training = self._training(stage, policy, optimization, probe, changed, critic)
        restored_curriculum(training, checkpoint)
        return Loop(
            run=self.run, stage=stage, key=key, task=task, policy=policy, probe=probe, training=training, done=done
        )

    def _stage_policy(self, name: str, parent: Path | None, checkpoint: Path | None) -> "Policy":
        """The policy of a stage: its own checkpoint, or its parent's weights; adapters go on top of the parent's."""
        lora = self.recipe.policy.lora if isinstance(self.recipe.policy, FolderPolicy) else None
        loaded = self._policy(parent if lora is not None or checkpoint is None else checkpoint)
        return loaded if lora is None else self.with_adapters(loaded, name)

    def _hooks(self, stage: AnyStage, writer: "RunWriter") -> "tuple[Hook, ...]":
        from forkpoint.doctor import DoctorHook
        from forkpoint.doctor.drift import DriftHook
        from forkpoint.training.health import HealthHook

        settings = self.recipe.doctor
        hooks: list[Hook] = []
        if settings.before or settings.every:
            doctor = DoctorHook(
                before=settings.before, every=settings.every, stages=self.recipe.stage,
                task_name=self.task_place(stage), trials=self.trials,
            )  # fmt: skip
            hooks.append(doctor)
        if isinstance(stage, RLStage) and settings.drift != "off":
            hooks.append(
                DriftHook(
                    tell=lambda line: writer.event("drift", line, stage=stage.name), stop=settings.drift == "stop"
                )
            )
        if isinstance(stage, RLStage) and self.recipe.audits.every:
            health = HealthHook(
                tell=lambda line: writer.event("audit", line, stage=stage.name), settings=self.recipe.audits,
                # A table knows no reasoning but the moves that are legal after its own prompt.
                crossing=not isinstance(self.recipe.policy, TabularPolicy),
            )  # fmt: skip
            hooks.append(health)
        return tuple(hooks)

    def _policy(self, folder: Path | None) -> "Policy":
        """The policy in a checkpoint, or as built where there is none."""
        from forkpoint.policies.folder import load_folder
        from forkpoint.policies.tabular import load_tabular

        if folder is None:
            return build_policy(self.recipe, self.origin)
        if isinstance(self.recipe.policy, TabularPolicy):
            return load_tabular(folder, device=self.recipe.policy.device)
        return load_folder(folder, dtype=self.recipe.policy.dtype, device=self.recipe.policy.device)

    def _parent(self, stage: AnyStage) -> Path | None:
        name = parent(stage)
        return None if name is None or self.unrun else self._final_checkpoint(name)

    def _final_checkpoint(self, name: str) -> Path:
        """Where the last weights of a finished stage lie; none of an earlier update or another run stands in."""
        from forkpoint.store import checkpoint_path, load_state, stage_folder

        path = checkpoint_path(stage_folder(self.run, name), self.recipe.get_stage(name).updates)
        state = load_state(path)
        recipe = content_hash((self.run / "recipe.toml").read_text("utf-8"))
        if state.get("stage") != name or state.get("recipe") != recipe:
            raise CheckpointError(f"{path} is a checkpoint of another stage or run.")
        return path

    def task(self, stage: AnyStage) -> Task:
        """The task of a stage."""
        where = self.task_place(stage)
        if where not in self.tasks:
            self.tasks[where] = self._built_task(where, stage.task or self.recipe.task)
        return self.tasks[where]

    def _built_task(self, where: str, table: Mapping[str, Any]) -> Task:
        # Before a run the file is the user's, whatever an earlier run of the same name keeps.
        chosen = table if self.unrun else kept_task(table, self.run, self.origin)
        return build_task(chosen, where=where, folder=self.origin)

    def keep_files(self) -> None:
        """Copies the files of the recipe's tasks into the run, so that whoever reads the run later reads the same."""
        for table in task_tables(self.recipe):
            kept_task(table, self.run, self.origin, keep=True)

    def task_place(self, stage: AnyStage) -> str:
        """Where in the recipe the task of a stage stands."""
        return f"[stage.{stage.name}.task]" if stage.task else "[task]"

    def with_adapters(self, policy: "Policy", stage: str) -> "Policy":
        """The policy with the recipe's adapters, or itself where it has none."""
        from forkpoint.policies.causal import CausalPolicy
        from forkpoint.policies.folder import add_adapters

        spec = self.recipe.policy
        if not isinstance(spec, FolderPolicy) or spec.lora is None or not isinstance(policy, CausalPolicy):
            return policy
        key = Key.root(self.recipe.seed).child(stage, "adapters")
        return add_adapters(policy, rank=spec.lora.rank, alpha=spec.lora.alpha, modules=spec.lora.modules, key=key)

    def _probe(
        self, policy: "Policy", task: Task, *, critic: "Critic | None" = None, stage: AnyStage | None = None
    ) -> tuple["LocalProbe", Callable[[int], None]]:
        from forkpoint.probing.local import BranchPlan

        plan = None
        if isinstance(stage, RLStage):
            key = Key.root(self.recipe.seed).child(stage.name)
            plan = BranchPlan(task=task, key=key, max_new_tokens=stage.max_new_tokens)
        return self._planned_probe(policy, task, plan, critic)

    def branching_probe(self, policy: "Policy", task: Task, key: Key, max_new_tokens: int) -> "LocalProbe":
        """A probe that can also continue rollouts, with random numbers of its own."""
        from forkpoint.probing.local import BranchPlan

        return self._planned_probe(policy, task, BranchPlan(task=task, key=key, max_new_tokens=max_new_tokens))[0]

    def _planned_probe(
        self, policy: "Policy", task: Task, plan: "BranchPlan | None", critic: "Critic | None" = None
    ) -> tuple["LocalProbe", Callable[[int], None]]:
        from forkpoint.probing.local import LocalProbe
        from forkpoint.verifiers.guard import guarded

        sampler = self._sampler(policy, task)
        verifier = guarded(task.verify, fixed_length=getattr(task, "budget", None))
        values = None if critic is None else critic.values
        return LocalProbe(policy, sampler, verifier, critic=values, plan=plan), sampler.update_weights

    def _sampler(self, policy: "Policy", task: Task) -> "Sampler":
        from forkpoint.policies.causal import CausalPolicy
        from forkpoint.policies.tabular import TabularPolicy as EdgePolicy
        from forkpoint.sampling.engine import LocalSampler
        from forkpoint.sampling.tabular import TabularSampler

        if isinstance(policy, EdgePolicy):
            return TabularSampler(policy, slots=self.recipe.slots)
        if not isinstance(policy, CausalPolicy):
            raise TypeError(f"no engine samples from a {type(policy).__name__}")
        environment = task if isinstance(task, Interactive) else None
        return LocalSampler(policy, slots=self.recipe.slots, environment=environment)

    def _training(
        self, stage: AnyStage, policy: "Policy", optimization: "Optimization", probe: "Probe",
        changed: Callable[[int], None], critic: "Critic | None" = None, /, *, writer: "RunWriter | None" = None,
    ) -> "Training":  # fmt: skip
        from forkpoint.training.components import Reference
        from forkpoint.training.curriculum import Curriculum
        from forkpoint.training.imitation import TextTraining
        from forkpoint.training.rl import RLTraining

        task, key = self.task(stage), Key.root(self.recipe.seed).child(stage.name)
        if isinstance(stage, RLStage):
            reference = None
            if stage.divergence is not None:
                charge = stage.divergence
                reference = Reference(policy=self._policy(self._parent(stage)), kind=charge.kind, where=charge.where)
            return RLTraining(
                stage=stage, task=task, policy=policy, optimization=optimization, probe=probe, weights_changed=changed,
                key=key, credit_rule=resolve("credit.rule", stage.credit.rule, CREDIT_RULES),
                policy_loss=resolve("loss.name", stage.loss.name, LOSSES), reference=reference, critic=critic,
                curriculum=Curriculum(stage.curriculum, task, key.child("curriculum")) if stage.curriculum else None,
                lessons=None if stage.lessons is None else self._lessons(stage.lessons, task),
            )  # fmt: skip
        if isinstance(stage, ForksStage):
            return self._forks_training(stage, task, policy, optimization)
        from forkpoint.assembly.pools import TextSource, text_draw

        draw, sampled = text_draw(TextSource(assembly=self, stage=stage, task=task, texts=policy.texts, writer=writer))
        return TextTraining(stage=stage, policy=policy, optimization=optimization, draw=draw, sampled=sampled)

    def _lessons(self, name: str, task: Task) -> "Callable[[Sequence[Problem]], Mapping[str, str]]":
        """What the lessons that lived in a finished stage say of problems; nothing where no stage was run."""
        from forkpoint.assembly.pools import living_lessons
        from forkpoint.training.teaching import lesson_texts

        lessons, most = ((), 1) if self.unrun else living_lessons(self.run, self.recipe, name)
        return partial(lesson_texts, lessons=lessons, task=task, most=most)

    def _forks_training(
        self, stage: ForksStage, task: Task, policy: "Policy", optimization: "Optimization"
    ) -> "ForksTraining":
        """The stage with its pool, sampled from the weights that it starts from, also after a resume."""
        from forkpoint.policies.causal import CausalPolicy
        from forkpoint.training.forks import ForksTraining, fork_pool, sampled_groups, stand_in_groups

        base = self._policy(self._parent(stage))
        if not isinstance(base, CausalPolicy) or not isinstance(policy, CausalPolicy):
            raise TypeError(f"a stage of kind forks needs causal language models, not a {type(base).__name__}")
        key = Key.root(self.recipe.seed).child(stage.name)
        began = time.perf_counter()
        probe = self._probe(base, task)[0]
        drawn = stage.model_copy(update={"problems": STAND_INS // 4, "group_size": 4}) if self.unrun else stage
        groups = sampled_groups(probe, task, base.texts, drawn, key.child("pool"))
        pool = fork_pool(
            stand_in_groups(groups) if self.unrun else groups, probe, stage, seconds=time.perf_counter() - began
        )
        if not pool.rows:
            raise RecipeError(
                f"stage '{stage.name}': none of {stage.problems} problems had right and wrong rollouts of the policy "
                f"that it starts from ({pool.metrics['correct']:.0%} of all rollouts were right)."
            )
        return ForksTraining(
            stage=stage, policy=policy, base=base, optimization=optimization, pool=pool, key=key.child("batches")
        )


def evaluation_budget(recipe: Recipe, stage: AnyStage) -> int:
    """Tokens of a rollout in the evaluations of a stage."""
    budget = rollout_budget(recipe, stage)
    if budget is None:
        raise RecipeError("[evaluation] max_new_tokens is missing: the recipe has no RL stage to take it from.")
    return budget
