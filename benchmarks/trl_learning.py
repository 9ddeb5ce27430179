"""The learning curve of TRL's `GRPOTrainer`, point for point as `forkpoint.meter.learning` makes ours.

Same start weights, problems of every update, verifier behind its guard, evaluations and rule for the end; TRL keeps its
default loss, advantages, optimizer and clipping.  Evaluations are made by our engine, and their time is left out.
TRL cannot end a rollout at a text of its problem, nor hide outputs from each other: both are given to it here, and
`check_same_policy` compares log-probabilities before a run begins.
Letters: B rows, L tokens of a prompt, T tokens after it.
"""

import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import vs_trl

from forkpoint.batching import Row, pad_rows
from forkpoint.errors import ForkpointError
from forkpoint.meter.learning import Curve, Point, Progress, Race, ended, evaluated_share, evaluation_plan
from forkpoint.meter.subject import Subject
from forkpoint.policies.causal import CausalPolicy
from forkpoint.records import Problem, Rollout, StopReason, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import split_problems

ALLOWED = 1e-4
"""Most nats between a log-probability of ours and TRL's."""
SHORTEST = 4
"""A rollout is assumed to take at least this part of its budget, so that the problems last."""
NOT_DEFAULT = ("loss_type", "scale_rewards", "beta", "num_iterations", "adam_beta1", "adam_beta2", "max_grad_norm")
"""What `vs_trl` sets to compare gradients; here TRL's own defaults hold."""
QUIET = {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@dataclass(slots=True, kw_only=True)
class Recorder:
    """Makes the points of a curve out of completions, updates and a clock that stands still while it evaluates."""

    name: str
    race: Race
    every: int
    """Updates between points."""
    evaluate: Callable[[int], float]
    """The share of held-out problems solved, given the update."""
    clock: Callable[[], float] = time.perf_counter
    progress: Progress | None = None
    points: list[Point] = field(default_factory=list)
    tokens: int = 0
    right: list[bool] = field(default_factory=list)
    began: float = 0.0

    @property
    def end(self) -> str | None:
        """Why the curve is over, or None."""
        return ended(self.points, self.race) if self.points else None

    def start(self) -> None:
        """The point before the first update."""
        share = self.evaluate(0)
        self.points.append(
            Point(update=0, solved=share, generated_tokens=0, equivalents=0.0, seconds=0.0, trained_solved=share)
        )
        self.began = self.clock()

    def completed(self, lengths: Sequence[int], correct: Sequence[bool]) -> None:
        """Counts the rollouts of an update."""
        self.tokens += sum(lengths)
        self.right += correct

    def updated(self, update: int) -> None:
        """A point, where one is due."""
        if update % self.every:
            return
        last, race = self.points[-1], self.race
        made = Point(
            update=update, solved=None, generated_tokens=self.tokens, equivalents=float(self.tokens),
            seconds=last.seconds + self.clock() - self.began, trained_solved=float(np.mean(self.right)),
        )  # fmt: skip
        self.points.append(made)
        near = np.mean([point.trained_solved for point in self.points[-3:]]) >= race.target - race.evaluate_within
        if near or len(self.points) % race.evaluate_every == 0:
            self.points[-1] = replace(made, solved=self.evaluate(update))
        if self.progress is not None:
            self.progress(f"{self.name}: {made.generated_tokens:,} tokens, {made.trained_solved:.1%} of rollouts")
        self.right = []
        self.began = self.clock()


def trl_curve(
    subject: Subject, race: Race, *, rate: float, seed: int, accumulation: int = 1, progress: Progress | None = None
) -> Curve:
    """The curve of TRL from the subject's policy on, whose weights it changes; same problems as `learning_curve`.

    Raises:
        ForkpointError: prompts of different lengths, or TRL's model does not give our log-probabilities.
    """
    os.environ.update(QUIET)
    # TRL and transformers warn of settings that they rename.
    warnings.simplefilter("ignore", FutureWarning)
    key = Key.root(seed).child("meter", "learning")
    plan, rollouts = evaluation_plan(subject, race, key), race.problems_per_update * race.group_size
    recorder = Recorder(
        name=f"trl, seed {seed}", race=race, every=max(1, -(-race.point_tokens // (rollouts * subject.max_new_tokens))),
        evaluate=lambda update: evaluated_share(subject, plan, update), progress=progress,
    )  # fmt: skip
    problems = training_problems(subject, race, key.child("stage"))
    load = vs_trl.Load(
        problems=race.problems_per_update, group_size=race.group_size, budget=subject.max_new_tokens, warm_up=0
    )
    job = vs_trl.Job(side="trl", load=load, threads=1, accumulation=accumulation, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = trl_settings(job, folder, len(problems) // race.problems_per_update, rate)
        trainer = make_trainer(subject, problems, settings, recorder)
        check_same_policy(trainer, subject, problems[: race.problems_per_update])
        trainer.train()
    return Curve(points=tuple(recorder.points), end=recorder.end or "budget")


def training_problems(subject: Subject, race: Race, key: Key) -> list[Problem]:
    """The problems that a stage named by `key` takes, update after update, as many as the tokens can last for."""
    shortest = race.problems_per_update * race.group_size * max(1, subject.max_new_tokens // SHORTEST)
    return [
        problem
        for update in range(1, -(-race.max_tokens // shortest) + 1)
        for problem in split_problems(
            subject.task, key.child("problems", update), race.problems_per_update, evaluation=False
        )
    ]


def trl_settings(job: vs_trl.Job, folder: str, steps: int, rate: float) -> dict[str, Any]:
    """The settings of `vs_trl`, which make TRL fast on a CPU, with TRL's own loss, advantages and optimizer."""
    given = vs_trl.trl_settings(job, folder, steps)
    return {name: value for name, value in given.items() if name not in NOT_DEFAULT} | {"learning_rate": rate}


def make_trainer(subject: Subject, problems: Sequence[Problem], settings: Mapping[str, Any], recorder: Recorder) -> Any:
    """A `GRPOTrainer` on the subject's own model; the recorder hears of rollouts and updates."""
    from datasets import Dataset  # noqa: PLC0415  (optional: our arms run without TRL)
    from transformers import PrinterCallback, TrainerCallback  # noqa: PLC0415
    from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415

    policy, by_prompt = _policy(subject), {str(problem.prompt): problem for problem in problems}
    length = prompt_length(policy, list(by_prompt))
    if not policy.sees_outputs:
        hide_outputs(policy, length)

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            recorder.start()

        def on_step_end(self, args: object, state: Any, control: Any, **kwargs: object) -> None:  # noqa: ARG002
            recorder.updated(state.global_step)
            control.should_training_stop = control.should_training_stop or recorder.end is not None

    trainer = GRPOTrainer(
        model=policy.model, reward_funcs=make_reward(subject, by_prompt, recorder), args=GRPOConfig(**settings),
        processing_class=policy.texts.tokenizer, callbacks=[Watch()],
        train_dataset=Dataset.from_dict({"prompt": [str(problem.prompt) for problem in problems]}),
        rollout_func=stopping_rollouts(subject, by_prompt) if subject.task.stop(problems[0]) else None,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def _policy(subject: Subject) -> CausalPolicy:
    if not isinstance(subject.policy, CausalPolicy):
        raise ForkpointError("TRL trains language models alone.")
    return subject.policy


def prompt_length(policy: CausalPolicy, prompts: Sequence[str]) -> int:
    """L; raises ForkpointError where prompts differ in it."""
    lengths = {len(policy.texts.encode_prompt(prompt)) for prompt in prompts}
    if len(lengths) != 1:
        raise ForkpointError(f"prompts must have one length, not {sorted(lengths)}: a mask and a batch count on it.")
    return lengths.pop()


def hide_outputs(policy: CausalPolicy, length: int) -> None:
    """Lets the plain Hugging Face model see what the policy sees: each token after the prompt the prompt and itself.

    Every forward of the model gets the mask [1, 1, T, L + T] of its queries, which stand behind what the cache holds.
    """
    head = torch.tensor([length])

    def masked(_model: object, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        tokens, shown, cache = given["input_ids"], given.get("attention_mask"), given.get("past_key_values")
        assert shown is None or bool(shown[:, :length].all()), "prompts are padded"
        seen = 0 if cache is None else int(cache.get_seq_length())
        places = torch.arange(seen + tokens.shape[1])
        return args, {**given, "attention_mask": policy.visible(places[None, seen:], places, head)}

    policy.model.register_forward_pre_hook(masked, with_kwargs=True)


def completed(subject: Subject, problem: Problem, tokens: Sequence[int]) -> Rollout:
    """A completion of TRL as a record, so that the task's own verifier can judge it."""
    texts = _policy(subject).texts
    text = texts.decode(tokens)
    stopped = text.endswith(subject.task.stop(problem))
    reason = StopReason.EOS if tokens[-1] == texts.eos_id else StopReason.STOP if stopped else StopReason.LENGTH
    return Rollout(
        id="", group_id="", stage="trl", update=0, index=0, problem_key=problem.key,
        prompt_tokens=texts.encode_prompt(problem.prompt), tokens=frozen_array(tokens, np.int32),
        behavior_logprobs=frozen_array(np.zeros(len(tokens)), np.float32),
        loss_mask=frozen_array(np.ones(len(tokens)), np.bool_),
        temperature=subject.temperature, text=text, stop_reason=reason, seed="",
    )  # fmt: skip


def make_reward(subject: Subject, by_prompt: Mapping[str, Problem], recorder: Recorder) -> Callable[..., list[float]]:
    """The guarded verdict of the task, 1 or 0, in TRL's terms."""
    probe = subject.probe("trl")

    def correct(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
        found = []
        for prompt, tokens in zip(prompts, completion_ids, strict=True):
            problem = by_prompt[prompt]
            (verdict,) = probe.verify(problem, [completed(subject, problem, tokens)])
            found.append(verdict.correct is True)
        recorder.completed([len(tokens) for tokens in completion_ids], found)
        return [float(right) for right in found]

    return correct


def stopping_rollouts(subject: Subject, by_prompt: Mapping[str, Problem]) -> Callable[..., dict[str, Any]]:
    """TRL's own sampling, `generate` on a batch, in which a row also ends at the stop text of its problem."""
    from transformers import StoppingCriteria, StoppingCriteriaList  # noqa: PLC0415

    texts = _policy(subject).texts

    class Reached(StoppingCriteria):
        def __init__(self, ends: torch.Tensor) -> None:
            self.ends = ends

        def __call__(self, input_ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
            return input_ids[:, -1] == self.ends

    @torch.no_grad()
    def sample(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        ids = torch.tensor(np.stack([texts.encode_prompt(prompt) for prompt in prompts])).long()
        stops = [texts.encode(subject.task.stop(by_prompt[prompt])[0]).tolist() for prompt in prompts]
        assert all(len(stop) == 1 for stop in stops), "a stop text is one token"
        ends = torch.tensor(stops)[:, 0]
        written = trainer.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=trainer.generation_config,
            stopping_criteria=StoppingCriteriaList([Reached(ends)]),
        )[:, ids.shape[1] :]  # fmt: skip
        rows = [cut(row, {stop, texts.eos_id}) for row, stop in zip(written.tolist(), ends.tolist(), strict=True)]
        return {"prompt_ids": ids.tolist(), "completion_ids": rows, "logprobs": None}

    return sample


def cut(tokens: Sequence[int], ends: set[int | None]) -> list[int]:
    """The tokens up to the first that ends them, that one included; all where none does."""
    places = [place for place, token in enumerate(tokens) if token in ends]
    return list(tokens[: places[0] + 1] if places else tokens)


@torch.no_grad()
def check_same_policy(trainer: Any, subject: Subject, problems: Sequence[Problem]) -> float:
    """The largest gap, nats, between our log-probabilities and TRL's, over rollouts that TRL's model generates.

    Its log-probabilities are taken twice: as cached decoding sees them, and as its loss does.
    Raises ForkpointError for more than `ALLOWED`.
    """
    policy = _policy(subject)
    prompts = np.stack([policy.texts.encode_prompt(problem.prompt) for problem in problems])
    ids = torch.tensor(prompts).long()
    config = copy.deepcopy(trainer.generation_config)
    config.update(output_logits=True, return_dict_in_generate=True)
    made = trainer.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    tokens = made.sequences[:, ids.shape[1] :]
    decoded = torch.log_softmax(torch.stack(made.logits, 1).float(), -1).gather(-1, tokens[..., None])[..., 0]
    scored = trainer._get_per_token_logps_and_entropies(
        trainer.model, made.sequences, torch.ones_like(made.sequences), tokens.shape[1]
    )[0]
    rows = [
        Row(prompt=prompt, tokens=frozen_array(row, np.int32), loss_mask=np.ones(len(row), np.bool_))
        for prompt, row in zip(prompts, tokens.numpy(), strict=True)
    ]
    ours = policy.logprobs(pad_rows(rows, range(len(rows))))[0]
    gap = max(float((ours - theirs).abs().max()) for theirs in (decoded, scored))
    if not gap < ALLOWED:
        raise ForkpointError(f"TRL's model differs from our policy by {gap:.2g} nats; at most {ALLOWED:g} is allowed.")
    return gap
