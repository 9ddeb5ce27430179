"""Texts that answer nothing: what no verifier may accept, whatever the problem."""

import re

from forkpoint.records import Problem

FIXED = {"empty": "", "42": "42", "punctuation": ". , ! ? ; : - ..."}


def no_answers(problem: Problem, solution: str = "") -> dict[str, str]:
    """Such texts by name; one that may be right by its nature is left out, as the answer or a known solution tells."""
    question, instructions = _prompt_parts(problem)
    texts = {**FIXED, "question": question, "instructions": instructions}
    answer = problem.answer.strip()
    if not answer or not re.search(r"\w", answer):
        texts.pop("empty")
        texts.pop("punctuation")
    if re.search(r"(?<!\d)42(?!\d)", f"{answer} {solution}"):
        texts.pop("42")
    if instructions in ("", question):
        texts.pop("instructions")
    return texts


def _prompt_parts(problem: Problem) -> tuple[str, str]:
    """The question, and the instructions beside it (the last line, or what the system says)."""
    if isinstance(problem.prompt, str):
        question, system = problem.prompt, ""
    else:
        question = next((message["content"] for message in problem.prompt if message["role"] == "user"), "")
        system = next((message["content"] for message in problem.prompt if message["role"] == "system"), "")
    lines = [part.strip() for part in question.splitlines() if part.strip()]
    return question, system or (lines[-1] if len(lines) > 1 else "")
