"""Written rollouts, and a probe that answers from a function, for the tests of credit from signals."""

import numpy as np

from forkpoint.records import Batch, Group, Outcome, Problem, Reward, Rollout, StopReason, Verdict, frozen_array

CODES = {
    character: place for place, character in enumerate("abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789#;=+-*?|\n>!.")
}


def codes(text):
    return frozen_array([CODES[character] for character in text], np.int32)


def text_of(tokens):
    names = list(CODES)
    return "".join(names[token] for token in tokens)


def written(text, *, logprobs=None, mask=None, prompt="a", temperature=1.0):
    count = len(text)
    return Rollout(
        id=f"r-{text}", group_id="g", stage="rl", update=0, index=0, problem_key="0", prompt_tokens=codes(prompt),
        tokens=codes(text), temperature=temperature, text=text, stop_reason=StopReason.STOP, seed="0",
        behavior_logprobs=frozen_array(np.zeros(count) if logprobs is None else logprobs, np.float32),
        loss_mask=frozen_array(np.ones(count) if mask is None else mask, np.bool_),
    )  # fmt: skip


def problem(answer="1", prompt="a", **metadata):
    return Problem(task="t", key="ab", prompt=prompt, answer=answer, metadata=metadata)


def rewarded_group(rollouts, rewards, *, of=None, reasons=None):
    reasons = reasons or [""] * len(rollouts)
    return Group(
        problem=of or problem(),
        rollouts=tuple(rollouts),
        verdicts=tuple(
            Verdict(outcome=Outcome.CORRECT if r > 0 else Outcome.WRONG, correct=r > 0, reason=reason)
            for r, reason in zip(rewards, reasons, strict=True)
        ),
        rewards=tuple(Reward(total=float(r)) for r in rewards),
    )


def batch_of(*groups, update=0):
    return Batch(groups=tuple(groups), update=update)


class SignalProbe:
    """Scores with `answer(prompt text, text) -> log-probabilities`, and remembers what it was asked."""

    def __init__(self, task, answer=None):
        self.task, self.answer, self.asked, self.calls = task, answer, [], 0

    def score(self, requests):
        self.calls += 1
        found = []
        for request in requests:
            prompt, text = text_of(request.prompt_tokens), text_of(request.tokens)
            self.asked.append((prompt, text))
            found.append(frozen_array(self.answer(prompt, text), np.float32))
        return found

    def encode(self, text):
        return codes(text)

    def encode_prompt(self, prompt):
        return codes(prompt)
