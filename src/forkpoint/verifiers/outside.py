"""Verifiers that are not ours: `package.module:function`, called in a killable child only.

The function is asked by the names of its parameters, so a verifier of ours and the usual reward functions both fit:

    (problem, rollout)                      our `Verifier`
    (prompt, completion, answer)            `answer` is the reference
    (completion, answer)                    the same without the prompt
    (answer, entry)                         reasoning-gym: `answer` is the model's, `entry` holds question and answer
    (data_source, solution_str, ground_truth, extra_info=None)    verl

It returns a `Verdict`, or a number in [0, 1] (1 is correct), or a bool.  Anything else is ERROR, never a reward.
"""

import functools
import importlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any

import numpy as np

from forkpoint.errors import VerifierError
from forkpoint.records import Outcome, Problem, Rollout, Span, SpanKind, StopReason, Verdict, frozen_array
from forkpoint.verifiers.exact import MAX_SHOWN
from forkpoint.verifiers.worker import Answer, Worker

REFERENCE = ("answer", "reference", "ground_truth", "gold", "target")
COMPLETION = ("completion", "response", "solution_str", "text", "output", "prediction")
PROMPT = ("prompt", "question")
OTHERS = ("problem", "rollout", "entry", "metadata", "extra_info", "data_source")
_ARRAYS: Mapping[str, type[np.generic]] = MappingProxyType(
    {"prompt_tokens": np.int32, "tokens": np.int32, "behavior_logprobs": np.float32, "loss_mask": np.bool_}
)


def written_rollout(problem: Problem, text: str) -> Rollout:
    """A rollout that holds a given text, one token a character, as if a policy had written it."""
    count = len(text)
    return Rollout(
        id="written", group_id="written", stage="check", update=0, index=0, problem_key=problem.key,
        prompt_tokens=frozen_array([0], np.int32), tokens=frozen_array(np.zeros(count), np.int32),
        behavior_logprobs=frozen_array(np.zeros(count), np.float32), loss_mask=frozen_array(np.ones(count), np.bool_),
        temperature=1.0, text=text, stop_reason=StopReason.EOS, seed="",
    )  # fmt: skip


def encode_problem(problem: Problem) -> dict[str, Any]:
    """A problem as JSON; its metadata must be JSON."""
    found = {field.name: getattr(problem, field.name) for field in fields(problem)}
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
    return found | {"metadata": dict(problem.metadata), "prompt": prompt}


def decode_problem(table: Mapping[str, Any]) -> Problem:
    """The problem of `encode_problem`."""
    prompt = table["prompt"]
    return Problem(**dict(table) | {"prompt": prompt if isinstance(prompt, str) else tuple(prompt)})


def encode_rollout(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON."""
    found = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
    found |= {name: getattr(rollout, name).tolist() for name in _ARRAYS}
    return found | {"spans": [asdict(span) for span in rollout.spans]}


def decode_rollout(table: Mapping[str, Any]) -> Rollout:
    """The rollout of `encode_rollout`."""
    found = dict(table) | {name: frozen_array(table[name], dtype) for name, dtype in _ARRAYS.items()}
    found["spans"] = tuple(Span(**span | {"kind": SpanKind(span["kind"])}) for span in table["spans"])
    return Rollout(**found | {"stop_reason": StopReason(table["stop_reason"])})


@functools.cache
def load(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A function by its name `package.module:function`, and which of its parameters are filled.

    Raises ImportError or AttributeError where there is none, TypeError for a parameter that must be filled and is none
    of those that are known.
    """
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    known = (*PROMPT, *COMPLETION, *REFERENCE, *OTHERS)
    filled = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in known and parameter.kind is not parameter.POSITIONAL_ONLY:
            filled.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise TypeError(f"its parameter '{parameter.name}' is none of {', '.join(sorted(known))}")
    if not {"rollout", *COMPLETION} & set(filled) and not {"answer", "entry"} <= set(filled):
        raise TypeError(f"none of its parameters takes the model's text: {', '.join(COMPLETION)}, rollout")
    return function, tuple(filled)


def is_verifier(name: str) -> bool:
    """Whether a function takes `(problem, rollout)`.  Raises as `load` does; imports the function."""
    return "rollout" in load(name)[1]


def ask(name: str, problem: Problem, text: str | None, rollout: Rollout | None = None) -> object:
    """What a function returns for a text; imports it, so for a child.  Raises what it raises.

    A function of `(problem, rollout)` gets `rollout`, or one that holds the text.
    """
    function, filled = load(name)
    prompt = problem.prompt if isinstance(problem.prompt, str) else list(problem.prompt)
    entry = {"question": prompt, "answer": problem.answer, "metadata": dict(problem.metadata)}
    values: dict[str, object] = dict.fromkeys(PROMPT, prompt) | dict.fromkeys(COMPLETION, text)
    values |= dict.fromkeys(REFERENCE, problem.answer)
    values |= dict.fromkeys(("metadata", "extra_info"), entry["metadata"])
    values |= {"problem": problem, "entry": entry, "data_source": problem.task}
    if "entry" in filled:
        values["answer"] = text
    if "rollout" in filled:
        values["rollout"] = rollout or written_rollout(problem, text or "")
    return function(**{name: values[name] for name in filled})


def encode_result(result: object) -> dict[str, Any]:
    """What a function returned, as JSON: `verdict`, `score` (a float that may be nan), or `other`, its type's name."""
    if isinstance(result, Verdict):
        return {"verdict": asdict(result) | {"parts": dict(result.parts)}}
    if isinstance(result, np.generic):
        result = result.item()
    return {"score": float(result)} if isinstance(result, int | float) else {"other": type(result).__name__}


def child(job: str, name: str, *arguments: Mapping[str, Any]) -> object:
    """What the worker does: `load` a function, or `ask` it about a problem and a rollout."""
    if job == "load":
        return list(load(name)[1])
    if job == "verify":
        task = _task(name, json.dumps(arguments[0]))
        return encode_result(task.verify(decode_problem(arguments[1]), decode_rollout(arguments[2])))
    problem, rollout = decode_problem(arguments[0]), decode_rollout(arguments[1])
    return encode_result(ask(name, problem, rollout.text, rollout))


@functools.cache
def _task(name: str, settings: str) -> Any:  # noqa: ANN401
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)(**json.loads(settings))


def result_verdict(found: Mapping[str, Any], *, answer: str) -> Verdict:
    """The verdict of an encoded result: a verdict as it is; 1 is CORRECT, less is WRONG and kept as `score`.

    A number that is not finite or lies outside [0, 1], and what is neither number nor verdict, is ERROR.
    """
    if "verdict" in found:
        table = found["verdict"]
        return Verdict(**table | {"outcome": Outcome(table["outcome"])})
    score = found.get("score")
    shown = answer[:MAX_SHOWN]
    if score is None or not math.isfinite(score) or not 0 <= score <= 1:
        reason = f"the function returned {score if score is not None else found.get('other')}"
        return Verdict(outcome=Outcome.ERROR, correct=None, answer=shown, reason=reason)
    correct = score == 1
    return Verdict(
        outcome=Outcome.CORRECT if correct else Outcome.WRONG, correct=correct, score=float(score), answer=shown
    )


class OutsideVerifier:
    """The verifier of a name `package.module:function`; owns a worker, which starts with the first rollout.

    `timeout_seconds` bounds a call, `memory_bytes` the address space of the child.  Raises VerifierError for a name of
    another form.
    """

    def __init__(self, name: str, *, timeout_seconds: float = 5.0, memory_bytes: int = 4 << 30) -> None:
        self.name = name
        module, colon, attribute = name.partition(":")
        if not (module and colon and attribute):
            raise VerifierError(f"verifier = '{name}' must be written package.module:function.")
        self._worker = Worker(
            f"{__name__}:child", timeout_seconds=timeout_seconds, memory_bytes=memory_bytes, imports=(module,)
        )

    def check(self) -> None:
        """Nothing; raises VerifierError where the function cannot be imported or has parameters that nobody fills."""
        try:
            found = self._worker.call("load", self.name)
        except VerifierError as error:
            found = Answer(kind="error", reason=str(error).rpartition("cannot start: ")[2].removesuffix("."))
        if found.kind != "ok":
            raise VerifierError(f"verifier = '{self.name}' cannot be used: {_line(found)}.")

    def close(self) -> None:
        """Ends the worker; it starts again where it is needed."""
        self._worker.close()

    def __call__(self, problem: Problem, rollout: Rollout) -> Verdict:
        """The function's verdict; ERROR where it hung, died, raised or returned no verdict and no score.

        Raises VerifierError where the worker cannot be started.
        """
        return _called(self._worker, "ask", self.name, (), problem, rollout)


class OutsideTaskVerifier:
    """The verifier of a task that `package.module:build` makes from `settings`: both are called in a child only.

    `settings` and the metadata of problems must be JSON; limits as for `OutsideVerifier`.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], *, timeout_seconds: float = 5.0, memory_bytes: int = 4 << 30
    ) -> None:
        self.name, self.settings = name, dict(settings)
        self._worker = Worker(
            f"{__name__}:child",
            timeout_seconds=timeout_seconds,
            memory_bytes=memory_bytes,
            imports=(name.partition(":")[0],),
        )

    def __call__(self, problem: Problem, rollout: Rollout) -> Verdict:
        """The task's verdict; ERROR where it hung, died, raised or returned no verdict.

        Raises VerifierError where the worker cannot be started.
        """
        return _called(self._worker, "verify", self.name, (self.settings,), problem, rollout)


def _called(
    worker: Worker, job: str, name: str, first: tuple[object, ...], problem: Problem, rollout: Rollout
) -> Verdict:
    found = worker.call(job, name, *first, encode_problem(problem), encode_rollout(rollout))
    if found.kind != "ok":
        shown = rollout.text[:MAX_SHOWN]
        return Verdict(outcome=Outcome.ERROR, correct=None, answer=shown, reason=f"{name}: {_line(found)}")
    return result_verdict(found.value, answer=rollout.text)


def _line(found: Answer) -> str:
    return " ".join(f"{found.kind}: {found.reason}".split())[:300]
