"""A probe that answers from a function, with written rollouts, for the tests of audits that ask models."""

import numpy as np

from forkpoint.records import Group, Outcome, Problem, Rollout, StopReason, Verdict, frozen_array
from forkpoint.seeds import Key


def codes(text):
    return frozen_array([ord(character) for character in text], np.int32)


def text_of(tokens):
    return "".join(chr(token) for token in tokens)


def written(name, text, *, prompt="a", temperature=1.0, spans=(), mask=None):
    return Rollout(
        id=name, group_id="g", stage="rl", update=0, index=0, problem_key=prompt, prompt_tokens=codes(prompt),
        tokens=codes(text), behavior_logprobs=frozen_array(np.zeros(len(text)), np.float32), spans=spans,
        loss_mask=frozen_array(np.ones(len(text)) if mask is None else mask, np.bool_), temperature=temperature,
        text=text, stop_reason=StopReason.STOP, seed="0",
    )  # fmt: skip


def group(prompt, texts, *, correct=None, answer="1"):
    correct = [True] * len(texts) if correct is None else correct
    return Group(
        problem=Problem(task="t", key=prompt, prompt=prompt, answer=answer, metadata={"chain": prompt}),
        rollouts=tuple(written(f"{prompt}-{i}", text, prompt=prompt) for i, text in enumerate(texts)),
        verdicts=tuple(
            Verdict(outcome=Outcome.CORRECT if one else Outcome.WRONG, correct=one, answer="1") for one in correct
        ),
    )


class Asked:
    """A task with an answer that can be asked for."""

    answer_lead = "#"

    def early_answer(self, problem, transcript):
        return "" if "#" in transcript else f"#{problem.answer}\n"

    def cut_points(self, problem, rollout):
        return [0, *(i + 1 for i, character in enumerate(rollout.text[:-1]) if character == ";")]


class ScriptedSubject:
    """Scores with `answer(context text, text) -> log-probability of the text`, spread evenly over its tokens."""

    def __init__(self, groups, answer, *, task=None, base=None):
        self.groups, self.answer, self.task, self.base = groups, answer, task, base
        self.key, self.asked, self.cost = Key.root(3), [], {}

    def score(self, requests):
        assert len({request.temperature for request in requests}) <= 1
        found = []
        for request in requests:
            context, text = text_of(request.prompt_tokens), text_of(request.tokens)
            self.asked.append((context, text))
            found.append(frozen_array(np.full(len(text), self.answer(context, text) / max(1, len(text))), np.float32))
        return found

    def encode(self, text):
        return codes(text)

    def decode(self, tokens):
        return "".join(chr(int(token)) for token in tokens)

    def encode_prompt(self, prompt):
        return codes(prompt)

    def sample(self, requests):
        raise AssertionError("nothing is sampled")

    branch = values = sample

    def verify(self, problem, rollouts):
        raise AssertionError("nothing is verified")
