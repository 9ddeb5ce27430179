"""`forkpoint evaluate`: a model on held-out problems of a task."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from forkpoint.cli.options import Json, Positive, Settings
from forkpoint.cli.output import print_json, print_table
from forkpoint.errors import ForkpointError

if TYPE_CHECKING:
    from forkpoint.policies.causal import CausalPolicy
    from forkpoint.probe import Sampler, SampleRequest
    from forkpoint.records import Rollout
    from forkpoint.store import EvaluationResult
    from forkpoint.tasks.protocol import Task

MOST_NEW_TOKENS = 1024
"""Budget of a rollout where neither the task nor the user sets one and the context has room."""
LINE_SECONDS = 10.0


def evaluate(
    model: str,
    /,
    *,
    task: str,
    set_: Settings = (),
    problems: Positive = 512,
    samples: Positive = 1,
    k: str = "1",
    temperature: Annotated[float, Parameter(validator=Number(gte=0, lte=10))] = 1.0,
    max_new_tokens: Positive | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: Positive = 1,
    json_: Json = False,
) -> int:
    """Measure a model on held-out problems: pass@1, pass@k, lengths, outcomes, with 95 % intervals.

    Parameters
    ----------
    model
        A model or checkpoint folder, `RUN:STAGE` for the last checkpoint of a stage, or `package:NAME`.
    task
        A task, see `forkpoint task list`.
    set_
        key=value: a setting of the task; may be repeated.
    problems
        How many held-out problems.
    samples
        Rollouts of each problem; pass@k needs at least k.
    k
        Which pass@k to print, such as `1,4`.
    temperature
        0 takes the most probable token.
    max_new_tokens
        Budget of a rollout; without it the task's own, or what the model's context has room for, at most 1024.
    seed
        Which problems, and which random numbers.
    device
        `cpu`, `cuda` or `cuda:1`.
    threads
        Threads of torch; results may differ in the last digit between numbers of threads.
    json_
        Print as JSON.
    """
    table, budget = _trained_on(model, task)
    wanted, built, policy = _ks(k, samples), _task(table, set_), _policy(model, device, threads)
    max_new_tokens = max_new_tokens or budget
    plan = _plan(policy, built, problems=problems, samples=samples, temperature=temperature,
                 max_new_tokens=max_new_tokens, seed=seed)  # fmt: skip
    told = {"model": model, "task": task, "temperature": temperature, "max_new_tokens": plan.max_new_tokens}
    summary = {**told, "seed": seed, **summarize(_results(policy, built, plan), wanted, seed)}
    (print_json if json_ else _print)(summary)
    return 0


def _ks(text: str, samples: int) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ForkpointError(f"--k = '{text}': write numbers with commas, such as 1,4.") from None
    for value in found:
        if not 1 <= value <= samples:
            raise ForkpointError(f"--k = '{text}': pass@{value} needs 1 <= k <= --samples = {samples}.")
    return found


def _trained_on(model: str, task: str) -> tuple[dict[str, Any], int | None]:
    """For `RUN:STAGE` on the run's own task, its settings and its budget in tokens; else the task's name alone."""
    from forkpoint.assembly import evaluation_budget
    from forkpoint.assembly.tables import kept_task
    from forkpoint.config import load_recipe

    run, colon, name = model.rpartition(":")
    path = Path(run) / "recipe.toml"
    if not colon or Path(model).exists() or not path.is_file():
        return {"name": task}, None
    recipe = load_recipe(path)
    stage = next((stage for stage in recipe.stage if stage.name == name), None)
    table = (stage.task if stage else None) or recipe.task
    if stage is None or table["name"] != task:
        return {"name": task}, None
    kept = dict(kept_task(table, path.parent, path.parent))
    if kept == table:
        # A relative path is seen from the recipe's own folder, which a run without a copy does not know.
        kept.pop("path", None)
    return kept, evaluation_budget(recipe, stage)


def _task(table: dict[str, Any], settings: Sequence[str]) -> "Task":
    from forkpoint.assembly import build_task
    from forkpoint.config.load import override_table

    return build_task(override_table(table, settings), where="--task", folder=Path())


def _policy(model: str, device: str, threads: int) -> "CausalPolicy":
    import torch

    from forkpoint.assembly.checks import check_device
    from forkpoint.policies.folder import load_folder

    check_device(device)
    torch.set_num_threads(threads)
    return load_folder(find_model(model), device=device)


def find_model(model: str) -> Path:
    """The folder of a model: `package:NAME`, `RUN:STAGE`, a checkpoint (verified), or any model folder."""
    from forkpoint.assembly import package_model
    from forkpoint.store import DATABASE, RunReader, verify_checkpoint
    from forkpoint.store.checkpoints import MANIFEST

    path = Path(model)
    run, colon, stage = model.rpartition(":")
    if run == "package":
        return package_model(stage)
    if (path / DATABASE).is_file():
        with RunReader(path) as reader:
            names = ", ".join(record.name for record in reader.stages())
        raise ForkpointError(f"{model} is a run: name a stage of it, {model}:STAGE. It has: {names}.")
    if colon and not path.exists():
        return stage_checkpoint(Path(run), stage)
    if (path / MANIFEST).is_file():
        verify_checkpoint(path)
    return path


def stage_checkpoint(run: Path, stage: str) -> Path:
    """The last checkpoint of a stage of a run that is whole.  Raises ForkpointError when there is none."""
    from forkpoint.assembly.subject import last_checkpoint
    from forkpoint.store import RunReader

    with RunReader(run) as reader:
        reader.stage(stage)
    return last_checkpoint(run, stage)


def _plan(
    policy: "CausalPolicy", task: "Task", *, problems: int, samples: int, temperature: float,
    max_new_tokens: int | None, seed: int,
) -> Any:  # noqa: ANN401  # fmt: skip
    """The problems and the budget; raises ForkpointError for one that does not fit the model."""
    from forkpoint.assembly.checks import check_length
    from forkpoint.seeds import Key
    from forkpoint.tasks.protocol import split_problems
    from forkpoint.training.evaluation import EvaluationPlan

    key = Key.root(seed).child("evaluation")
    drawn = tuple(split_problems(task, key, problems, evaluation=True))
    if not drawn:
        raise ForkpointError(f"the task {task.name} has no held-out problem.")
    budget = max_new_tokens or _room(policy, task, drawn)
    for problem in drawn:
        check_length("--max-new-tokens", task, policy, problem, budget)
    return EvaluationPlan(
        task=task, problems=drawn, key=key, samples=samples, temperature=temperature, max_new_tokens=budget
    )


def _room(policy: "CausalPolicy", task: "Task", problems: Sequence[Any]) -> int:
    fixed = getattr(task, "budget", None)
    if fixed is not None:
        return int(fixed(problems[0]))
    longest = max(len(policy.texts.encode_prompt(problem.prompt)) for problem in problems)
    return max(1, min(MOST_NEW_TOKENS, policy.context_length - longest))


class Counting:
    """A sampler that says on standard error how far it is."""

    def __init__(self, sampler: "Sampler", total: int) -> None:
        self._sampler, self._total = sampler, total
        self._next = time.monotonic()

    def stream(self, requests: "Iterable[SampleRequest]") -> "Iterator[Rollout]":
        """The rollouts of the sampler, counted."""
        for done, rollout in enumerate(self._sampler.stream(requests), start=1):
            self._say(done)
            yield rollout
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _say(self, done: int) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if now < self._next:
            return
        self._next = now + (0.2 if terminal else LINE_SECONDS)
        start, end = ("\r", "") if terminal else ("", "\n")
        print(f"{start}{done} of {self._total} rollouts", end=end, file=sys.stderr, flush=True)

    def update_weights(self, version: int) -> None:
        """Passes the version on."""
        self._sampler.update_weights(version)


def _results(policy: "CausalPolicy", task: "Task", plan: Any) -> "Sequence[EvaluationResult]":  # noqa: ANN401
    from forkpoint.probing.local import LocalProbe
    from forkpoint.sampling.engine import LocalSampler
    from forkpoint.tasks.protocol import Interactive
    from forkpoint.training.evaluation import evaluate as measure
    from forkpoint.verifiers.guard import guarded

    environment = task if isinstance(task, Interactive) else None
    sampler = Counting(LocalSampler(policy, environment=environment), len(plan.problems) * plan.samples)
    probe = LocalProbe(policy, sampler, guarded(task.verify, fixed_length=getattr(task, "budget", None)))
    return measure(probe, policy.texts, plan, stage="evaluate", update=0, name="evaluate")[0].results


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """The chance that one of k samples without replacement is correct: 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374).

    >>> pass_at_k(1, 4, 1), pass_at_k(1, 4, 2), pass_at_k(3, 4, 2)
    (0.25, 0.5, 1.0)
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def summarize(results: "Sequence[EvaluationResult]", ks: Sequence[int], seed: int) -> dict[str, Any]:
    """Numbers with 95 % intervals over problems; samples that the verifier could not judge are counted apart."""
    by_problem: dict[str, list[Any]] = {}
    for result in results:
        by_problem.setdefault(result.problem_key, []).append(result)
    judged = [[each for each in group if each.correct is not None] for group in by_problem.values()]
    counts = [(sum(each.correct for each in group), len(group)) for group in judged]
    outcomes = {
        str(name): [sum(each.outcome == name for each in group) / len(group) for group in by_problem.values()]
        for name in sorted({result.outcome for result in results})
    }
    parts = sorted({name for result in results for name in result.parts})
    tokens = [[each.length for each in group] for group in by_problem.values()]
    named = {name: [[each.parts[name] for each in group if name in each.parts] for group in judged] for name in parts}
    return {
        "problems": len(by_problem),
        "rollouts": len(results),
        "unjudged": sum(result.correct is None for result in results),
        "pass": {str(k): _share([pass_at_k(c, n, k) for c, n in counts if n >= k], seed) for k in ks},
        "tokens": _mean(tokens, seed),
        "outcomes": {name: _share(shares, seed) for name, shares in outcomes.items()},
        "parts": {name: _mean(values, seed) for name, values in named.items()},
    }


def _share(values: Sequence[float], seed: int) -> dict[str, Any]:
    from forkpoint.report.statistics import share_interval
    from forkpoint.seeds import Key

    if not values:
        return {"value": None, "interval": None, "problems": 0}
    interval = share_interval(values, Key.root(seed).child("interval"))
    return {"value": sum(values) / len(values), "interval": list(interval), "problems": len(values)}


def _mean(groups: Sequence[Sequence[float]], seed: int) -> dict[str, Any]:
    from forkpoint.report.statistics import mean_interval
    from forkpoint.seeds import Key

    means = [sum(group) / len(group) for group in groups if group]
    if not means:
        return {"value": None, "interval": None, "problems": 0}
    interval = mean_interval(means, Key.root(seed).child("interval"))
    return {"value": sum(means) / len(means), "interval": list(interval), "problems": len(means)}


def _print(summary: dict[str, Any]) -> None:
    lines = [(f"pass@{k}", entry, 3) for k, entry in summary["pass"].items()]
    lines += [("tokens", summary["tokens"], 1)]
    lines += [(f"outcome {name}", entry, 3) for name, entry in summary["outcomes"].items()]
    lines += [(name, entry, 2) for name, entry in summary["parts"].items()]
    rows = []
    for name, entry, digits in lines:
        if entry["value"] is None:
            rows.append([name, "none", ""])
            continue
        low, high = entry["interval"]
        rows.append([name, f"{entry['value']:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"])
    title = (
        f"{summary['model']} on {summary['task']}: {summary['problems']} problems, {summary['rollouts']} rollouts "
        f"of at most {summary['max_new_tokens']} tokens, temperature {summary['temperature']}"
    )
    print_table(["", "mean", "95 % interval"], rows, title=title)
    if summary["unjudged"]:
        print(f"{summary['unjudged']} rollouts could not be judged; they are in no share of correct ones")
