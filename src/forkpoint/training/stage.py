"""One stage from its first update to its last: resume, update, evaluate, record, checkpoint, stop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from forkpoint.config.recipe import AnyStage, RLStage, parent
from forkpoint.errors import CheckpointError
from forkpoint.policies.protocol import Policy
from forkpoint.probe import Probe
from forkpoint.records import SHIFTED, Credit, Group, UpdateRecord
from forkpoint.seeds import Key, content_hash
from forkpoint.store import (
    RunWriter,
    StageStatus,
    checkpoint_path,
    checkpoint_update,
    clean_checkpoints,
    latest_checkpoint,
    load_state,
    prune_checkpoints,
    save_checkpoint,
    stage_folder,
)
from forkpoint.store.encoding import JSON
from forkpoint.training.critic import Critic
from forkpoint.training.curriculum import Curriculum
from forkpoint.training.evaluation import EvaluationPlan, evaluate
from forkpoint.training.hooks import Hook, Loop
from forkpoint.training.optimization import Optimization
from forkpoint.training.reflecting import beside
from forkpoint.training.rl import RLTraining
from forkpoint.training.unit import Step, Training

KEPT_GROUPS = 64
"""Groups of a stage's last evaluation that stay in the store as evidence."""
REFLECT, RETRY = "reflect", "retry"
"""The purposes of reflections on failed attempts, and of the retries with them."""
EVIDENCE = "evidence"
"""The purpose of rollouts that are kept only because a finding names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Another task to evaluate on, with what answers there."""

    name: str
    plan: EvaluationPlan
    make_probe: Callable[[Policy], Probe]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """What a stage needs from outside; made by the assembly."""

    run: Path
    stage: AnyStage
    key: Key
    """Names the run and the stage."""
    writer: RunWriter
    parent: Path | None
    """Checkpoint of the stage that this one starts from; None: the policy as built."""
    load_policy: Callable[[Path | None, Path | None], Policy]
    """The policy from (parent, own checkpoint)."""
    make_probe: "MakeProbe"
    make_training: "MakeTraining"
    plan: EvaluationPlan
    final_plan: EvaluationPlan
    identity: Mapping[str, JSON]
    stop: Callable[[], bool]
    """Asked between units; True ends the stage early with a checkpoint."""
    make_critic: Callable[[Policy], Critic | None] | None = None
    """What the stage trains and saves beside its policy, as it begins; None: nothing."""
    shifted: "tuple[Shift, ...]" = ()
    """Other tasks that the finished policy is evaluated on."""
    hooks: tuple[Hook, ...] = ()
    """Called before the first update and after every unit."""


class MakeProbe(Protocol):
    """A probe of a policy, and what to call with the version when its weights have changed."""

    def __call__(self, policy: Policy, critic: Critic | None = None, /) -> tuple[Probe, Callable[[int], None]]:
        """The probe answers with the values of the critic."""
        ...


class MakeTraining(Protocol):
    """What makes the updates of a stage."""

    def __call__(
        self, policy: Policy, optimization: Optimization, probe: Probe, changed: Callable[[int], None],
        critic: Critic | None = None, /,
    ) -> Training:  # fmt: skip
        """The training learns with the probe and tells `changed` each new version."""
        ...


def run_stage(context: StageContext) -> StageStatus:
    """DONE or STOPPED, as the store was told; every failure is raised."""
    return _Running(context).run()


class _Running:
    """The mutable part: policy, optimizer, and how far they are."""

    def __init__(self, context: StageContext) -> None:
        self.context, self.stage, self.writer = context, context.stage, context.writer
        self.folder = stage_folder(context.run, self.stage.name)
        clean_checkpoints(self.folder)
        checkpoint = latest_checkpoint(self.folder, damaged=self._damaged)
        self.done = self.previous = checkpoint_update(checkpoint) if checkpoint else 0
        self.saved = self.done if checkpoint else -1
        if checkpoint:
            self._check_state(checkpoint)
        self.writer.begin_stage(
            self.stage.name, kind=self.stage.kind, parent=parent(self.stage), updates_total=self.stage.updates
        )
        self.writer.rewind(self.stage.name, self.done if checkpoint else -1)
        self.policy = context.load_policy(context.parent, checkpoint)
        self.optimization = Optimization(self.policy.model, self.stage)
        self.critic = None if context.make_critic is None else context.make_critic(self.policy)
        if checkpoint:
            self.optimization.load(checkpoint, weights=self.policy.has_adapters)
            if self.critic is not None:
                self.critic.load(checkpoint)
        self.checkpoint = checkpoint
        self.curriculum: Curriculum | None = None
        self.probe, self.weights_changed = context.make_probe(self.policy, self.critic)
        self.weights_changed(self.done)

    def _damaged(self, error: Exception) -> None:
        self.writer.event("damaged", str(error), stage=self.stage.name)

    def _check_state(self, checkpoint: Path) -> None:
        """Raises CheckpointError for a checkpoint of another stage, update or recipe."""
        state, wanted = load_state(checkpoint), self._state()
        for key, value in wanted.items():
            if key not in state:
                raise CheckpointError(f"{checkpoint}: state.json lacks '{key}'.")
            if key != "identity" and state[key] != value:
                raise CheckpointError(f"{checkpoint} is of {key} {state[key]}, not {value}.")

    def _state(self) -> dict[str, JSON]:
        recipe = content_hash((self.context.run / "recipe.toml").read_text("utf-8"))
        return {"stage": self.stage.name, "update": self.done, "recipe": recipe, "identity": self.context.identity}

    def run(self) -> StageStatus:
        """Runs the units that are left."""
        stage, context = self.stage, self.context
        if self.done < stage.updates:
            training = context.make_training(
                self.policy, self.optimization, self.probe, self.weights_changed, self.critic
            )
            self.curriculum = restored_curriculum(training, self.checkpoint)
            self._inspect(training, [])
            if self.done == 0 and stage.evaluate_every:
                self._evaluate(0)
            while self.done < stage.updates:
                if context.stop():
                    self._checkpoint()
                    self.writer.finish_stage(stage.name, status=StageStatus.STOPPED, message="stopped on request")
                    return StageStatus.STOPPED
                steps = training.unit(self.done + 1)
                self._record(steps)
                self._inspect(training, steps)
                if self._due(stage.checkpoint_every):
                    self._checkpoint()
        self._checkpoint()
        self._evaluate(self.done, final=True)
        for shift in context.shifted:
            self._evaluate_shifted(shift)
        self.writer.finish_stage(stage.name)
        return StageStatus.DONE

    def _record(self, steps: list[Step]) -> None:
        stage = self.stage
        for step in steps:
            groups, credits = kept_rollouts(stage, step, self.context.key)
            record = UpdateRecord(
                stage=stage.name, update=step.update, metrics=step.metrics, seconds=step.seconds, tokens=step.tokens
            )
            self.writer.record(record, groups, credits)
            self._keep_reflected(step, groups)
        self.previous, self.done = self.done, steps[-1].update
        # Spans say which weights wrote them, also in the evaluations of stages that sample nothing else.
        self.weights_changed(self.done)
        if self._due(stage.evaluate_every) and self.done < stage.updates:
            self._evaluate(self.done)

    def _keep_reflected(self, step: Step, kept: list[Group]) -> None:
        """Keeps what was reflected on the attempts that the store keeps; a resume forgets it with its update."""
        found = beside(step.reflected, kept)
        if not found:
            return
        name, update = self.stage.name, step.groups[0].rollouts[0].update
        self.writer.record_rollouts(
            [each.reflections for each in found], [credit for each in found for credit in each.credits],
            stage=name, update=update, purpose=REFLECT,
        )  # fmt: skip
        retries = [each.retries for each in found if each.retries.rollouts]
        self.writer.record_rollouts(retries, stage=name, update=update, purpose=RETRY)

    def _inspect(self, training: Training, steps: list[Step]) -> None:
        """Lets every hook look, stores what it found, and raises what it stops the stage for."""
        context = self.context
        for hook in context.hooks:
            found = hook(
                Loop(
                    run=context.run, stage=self.stage, key=context.key, task=context.plan.task, policy=self.policy,
                    probe=self.probe, training=training, done=self.done, previous=self.previous, steps=tuple(steps),
                )
            )  # fmt: skip
            if found is None:
                continue
            if found.metrics:
                self.writer.record_metrics(self.stage.name, self.done, found.metrics)
            if found.evidence:
                update = found.evidence[0].rollouts[0].update
                self.writer.record_rollouts(found.evidence, stage=self.stage.name, update=update, purpose=EVIDENCE)
            if found.findings:
                self.writer.record_findings(
                    found.findings, audits=(found.audit,), stage=self.stage.name, update=self.done
                )
            if found.stop is not None:
                raise found.stop

    def _due(self, every: int) -> bool:
        """Whether a multiple of `every` lies in the unit that was just done."""
        return bool(every) and self.done // every > self.previous // every

    def _evaluate(self, update: int, *, final: bool = False) -> None:
        plan = self.context.final_plan if final else self.context.plan
        evaluation, metrics = evaluate(
            self.probe, self.policy.texts, plan, stage=self.stage.name, update=update,
            name="final" if final else "evaluate", keep=KEPT_GROUPS if final else 0,
        )  # fmt: skip
        self.writer.record_evaluation(self.stage.name, update, evaluation, metrics=metrics)

    def _evaluate_shifted(self, shift: Shift) -> None:
        name = f"{SHIFTED}{shift.name}"
        evaluation, metrics = evaluate(
            shift.make_probe(self.policy), self.policy.texts, shift.plan, stage=self.stage.name, update=self.done,
            name=name, keep=KEPT_GROUPS,
        )  # fmt: skip
        told = {f"{name} {metric.removeprefix('evaluation_')}": value for metric, value in metrics.items()}
        self.writer.record_evaluation(self.stage.name, self.done, evaluation, metrics=told)

    def _checkpoint(self) -> None:
        path = checkpoint_path(self.folder, self.done)

        def write(folder: Path) -> None:
            self.policy.save(folder)
            self.optimization.save(folder, weights=self.policy.has_adapters)
            if self.critic is not None:
                self.critic.save(folder)
            if self.curriculum is not None:
                self.curriculum.save(folder, update=self.done)

        if self.saved != self.done:
            save_checkpoint(path, write, state=self._state())
            self.saved = self.done
        # Also after a kill between the two.
        prune_checkpoints(self.folder, self.stage.keep_checkpoints, newest=path)


def restored_curriculum(training: Training, checkpoint: Path | None) -> Curriculum | None:
    """The training's curriculum in the state that a checkpoint holds; None where it has none.

    Raises:
        CheckpointError: the checkpoint holds no such state.
    """
    curriculum = training.curriculum if isinstance(training, RLTraining) else None
    if curriculum is not None and checkpoint is not None:
        curriculum.load(checkpoint, update=checkpoint_update(checkpoint))
    return curriculum


def kept_rollouts(stage: AnyStage, step: Step, key: Key) -> tuple[list[Group], list[Credit]]:
    """The groups of a step that the store keeps, with their credits, in their order."""
    if not isinstance(stage, RLStage) or not step.groups:
        return [], []
    rule, _, number = stage.keep_rollouts.partition(":")
    if rule == "every" and step.update % int(number) and step.update != 1:
        return [], []
    chosen = list(range(len(step.groups)))
    if rule == "sample":
        order = key.child("keep", step.update).generator().permutation(len(step.groups))
        chosen = sorted(order[: int(number)].tolist())
    starts = [0]
    for group in step.groups:
        starts.append(starts[-1] + len(group.rollouts))
    credits = [credit for place in chosen for credit in step.credits[starts[place] : starts[place + 1]]]
    return [step.groups[place] for place in chosen], credits
