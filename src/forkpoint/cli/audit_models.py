"""The models that audits ask: those of a run of ours, or model folders beside the rollouts of another trainer."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from forkpoint.audits import elicitation, premature_confidence, reward_hacking, sabotage, template_collapse, token_edits
from forkpoint.cli.output import visible
from forkpoint.errors import ForkpointError, RecipeError
from forkpoint.probe import Probe
from forkpoint.records import Group, Records
from forkpoint.store import DATABASE

COSTS = {module.NAME: module.planned_cost for module in (token_edits, premature_confidence, template_collapse)}
"""Of audits that ask models: the most tokens that they score and sample."""
ASKING = (*COSTS, sabotage.NAME, reward_hacking.NAME)


def check_options(path: Path, request: Mapping[str, Any], *, is_run: bool) -> None:
    """Raises RecipeError where the options about models do not go together, or not with what is audited."""
    if request["models"] and not is_run:
        raise RecipeError(f"--models goes with a run of ours, {path} holds rollouts: name their --model.")
    if request["elicit"] and not request["models"]:
        raise RecipeError("--elicit goes with --models: the text is put before the prompts of a model.")
    if "" in request["elicit"]:
        raise RecipeError("--elicit = '': the text is empty.")
    for option in ("base_model", "answer_lead", "raw_prompts", "dtype"):
        if request[option] and not request["model"]:
            raise RecipeError(f"--{option.replace('_', '-')} goes with --model.")


def probe_of(path: Path, records: Records, request: Mapping[str, Any], only: Sequence[str]) -> Probe | None:
    """The models that the audits of a stage ask; None without any."""
    if request["models"] and set(only) & set(ASKING):
        return _of_run(path, records.stage, request, only)
    if request["model"] and set(only) & set(COSTS):
        return _of_folder(records, request, only)
    if request["model"] or request["models"]:
        _say(f"{records.stage}: no model is asked: --only names no audit that asks one")
    return None


def _of_run(run: Path, stage: str, request: Mapping[str, Any], only: Sequence[str]) -> Probe | None:
    """The models of a stage of a run; says on standard error what asking them costs."""
    from forkpoint.assembly.subject import PROBLEMS, SAMPLES, stage_subject

    _say(f"{stage}: {SAMPLES} rollouts for each of {PROBLEMS} problems")
    base, _, name = request["base"].rpartition(":")
    other = (Path(base), name) if base and (Path(base) / DATABASE).is_file() else None
    try:
        subject = stage_subject(run, stage, base=other, leads=request["elicit"])
    except ForkpointError as error:
        # A prompt beyond the context, or a stage that has no checkpoint yet: the records can be read all the same.
        _say(f"{error} The models are not asked.")
        return None
    for lead in subject.leads:
        try:
            subject.encode_prompt(lead)
        except ForkpointError as error:
            raise RecipeError(f"--elicit: {error}") from None
    _say_costs(stage, subject.groups, only, {sabotage.NAME: partial(elicitation.planned_cost, leads=subject.leads)})
    return subject


def _of_folder(records: Records, request: Mapping[str, Any], only: Sequence[str]) -> Probe | None:
    """The model folders that the user names; says on standard error what asking them costs, and what was left out."""
    from forkpoint.integrations.models import Folders, model_probe
    from forkpoint.integrations.rollout_fields import RolloutsError

    base = Path(request["base_model"]) if request["base_model"] else None
    folders = Folders(
        model=Path(request["model"]), base=base,
        answer_lead=request["answer_lead"], raw_prompts=request["raw_prompts"], dtype=request["dtype"] or "float32",
    )  # fmt: skip
    try:
        probe, left_out = model_probe(records, folders)
    except RolloutsError as error:
        _say(f"{records.stage}: {error} The model is not asked.")
        return None
    try:
        probe.encode(folders.answer_lead)
    except ForkpointError as error:
        raise RecipeError(f"--answer-lead: {error}") from None
    if left_out:
        _say(
            f"{records.stage}: {left_out} rollouts are empty, beyond the context, not of this tokenizer or have tool "
            f"rounds: left out"
        )
    # Without a base there is nothing to compare, without a lead no answer to ask for.
    idle = {token_edits.NAME} if base is None else set()
    idle |= set() if folders.answer_lead else {premature_confidence.NAME}
    read_alone = partial(token_edits.planned_cost, causal=False)
    named = [name for name in only if name not in idle]
    _say_costs(records.stage, probe.groups, named, {token_edits.NAME: read_alone})
    return probe


def _say_costs(
    stage: str, groups: Sequence[Group], only: Sequence[str], changed: Mapping[str, Callable[..., dict[str, int]]]
) -> None:
    costs = {**COSTS, **changed}
    for audit in [name for name in only if name in costs]:
        planned = costs[audit](groups)
        _say(f"{stage}: {audit} scores up to {planned['scored_tokens']} tokens, samples {planned['sampled_tokens']}")


def _say(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)
