"""A task, lessons about it and policies that are scripts, for the tests of lessons."""

from dataclasses import replace

import numpy as np

from forkpoint.errors import ModelError
from forkpoint.records import Group, Outcome, Problem, Verdict, frozen_array
from forkpoint.review.lessons import TrialPlan, make_lesson
from forkpoint.seeds import Key
from forkpoint.tasks.dialect import OPERATIONS, SIGNS, Dialect, Settings, lesson_text
from forkpoint.tasks.protocol import split_problems
from forkpoint.verifiers.outside import written_rollout

TASK = Dialect(Settings(world="*+-", modulus=10))
HELD_OUT = split_problems(TASK, Key.root(8), 300, evaluation=True)
PLAN = TrialPlan(key=Key.root(0).child("review"), stage="review", max_new_tokens=40)
TRUE = make_lesson("dialect", lesson_text("@", "*"), "@")
FALSE = make_lesson("dialect", lesson_text("@", "+"), "@")
UNJUDGED = "nobody can tell"
ABSTAINED = Verdict(outcome=Outcome.ABSTAINED, correct=None)
IDLE = make_lesson("dialect", lesson_text("$", "+"))


def meanings(prompt):
    """What the well-formed lessons of a prompt say."""
    pieces = prompt.rpartition("|")[0].split(";")
    known = {lesson_text(sign, operation): (sign, operation) for sign in SIGNS for operation in OPERATIONS}
    return dict(known[piece] for piece in pieces if piece in known)


def reader(prompt, problem, key):
    """A policy that follows lessons and guesses the rest."""
    guesses = key.child("guess").generator().integers(len(OPERATIONS), size=len(SIGNS))
    world = {sign: OPERATIONS[i] for sign, i in zip(SIGNS, guesses, strict=True)} | meanings(prompt)
    return TASK._text(problem.metadata["chain"], world)


def deaf(prompt, problem, key):
    """A policy that reads the chain alone."""
    return reader(problem.prompt, problem, key)


def flattered(prompt, problem, key):
    """A policy that any lesson about a sign of the chain helps, whatever it says."""
    touched = set(meanings(prompt)) & set(problem.metadata["chain"])
    return TASK.solve(problem) if touched else reader(problem.prompt, problem, key)


class ScriptedProbe:
    """Writes what a script says; counts."""

    def __init__(self, script, abstains=()):
        self.script, self.abstains, self.calls, self.requests = script, set(abstains), 0, []

    def sample(self, requests):
        self.calls += 1
        assert len({request.key for request in requests}) == len(requests)
        self.requests += requests
        return [self.rollout(request) for request in requests]

    def rollout(self, request):
        prompt = "".join(map(chr, request.prompt_tokens))
        made = written_rollout(request.problem, self.script(prompt, request.problem, request.key))
        tokens = self.encode_prompt(made.text)
        return replace(made, id=request.key.hex, prompt_tokens=request.prompt_tokens, tokens=tokens)

    def verify(self, problem, rollouts):
        if problem.key in self.abstains:
            return [ABSTAINED] * len(rollouts)
        return [ABSTAINED if rollout.text == UNJUDGED else TASK.verify(problem, rollout) for rollout in rollouts]

    def encode_prompt(self, prompt):
        if "~" in prompt:
            raise ModelError("the character '~' is outside the model's alphabet")
        return frozen_array([ord(character) for character in prompt], np.int32)


def group(problem, *texts, verdicts=None):
    rollouts = [replace(written_rollout(problem, text), id=f"{problem.key}-{i}") for i, text in enumerate(texts)]
    found = verdicts or [TASK.verify(problem, rollout) for rollout in rollouts]
    return Group(problem=problem, rollouts=tuple(rollouts), verdicts=tuple(found))


def chain(text, answer, key):
    metadata = {"chain": text, "world": "*+-"}
    return Problem(task="dialect", key=key, prompt=f"{text}=?\n", answer=answer, metadata=metadata)
