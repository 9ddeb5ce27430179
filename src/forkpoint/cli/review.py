"""`forkpoint review`: postmortems of a run's rollouts: hinge, fix, re-rollout, lesson."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from forkpoint.cli.options import Flag, Json, Positive

app = App(name="review", help="Postmortems: what a rollout turned on, a fix, and what a re-rollout says of it.")

Text = Annotated[str, Parameter(show_default=False)]
Tokens = Annotated[int, Parameter(validator=Number(gte=1))]
Share = Annotated[float, Parameter(validator=Number(gt=0, lt=1))]


@app.command
def propose(
    run: Path,
    /,
    *,
    stage: Text = "",
    rollouts: Positive = 32,
    fresh: Flag = False,
    successes: Flag = False,
    sources: str = "policy,sibling",
    knowledge: str = "answer",
    chat: Text = "",
    budget: Tokens = 200_000,
    min_drop: Share = 0.3,
    json_: Json = False,
) -> int:
    """Find the hinges of rollouts, and propose a fix for each blamed step.

    Interrupted, it goes on where it was: no rollout is reviewed twice.

    Parameters
    ----------
    run
        A run folder.
    stage
        The stage whose rollouts and last weights are reviewed; without it the last RL stage, else the last one.
    rollouts
        Most rollouts to review in this call, failures of problems that were solved at least once.
    fresh
        Draw new rollouts on training problems instead of those that the run kept.
    successes
        Review the correct rollouts instead: their decisive step, and what came to nothing.
    sources
        Who proposes, with commas between: policy, sibling, solver.
    knowledge
        What the policy is told in its prompt, with commas between: answer, sibling (a correct rollout of the problem),
        feedback (what the verifier said of the rollout).
    chat
        URL#MODEL of an OpenAI-compatible server that proposes too, such as http://localhost:8000/v1#qwen; a key is
        read from FORKPOINT_CHAT_KEY.
    budget
        Most tokens that continuations may cost.
    min_drop
        The loss of the chance of success that is looked for; a claim needs an estimate of half of it.
    json_
        Print as JSON.
    """
    from forkpoint.cli.review_run import Asked, propose_run

    asked = Asked(
        stage=stage, rollouts=rollouts, fresh=fresh, successes=successes, sources=sources, knowledge=knowledge,
        chat=chat, budget=budget, min_drop=min_drop,
    )  # fmt: skip
    return propose_run(run, asked, as_json=json_)


@app.command
def verify(
    run: Path,
    /,
    *,
    continuations: Annotated[int, Parameter(validator=Number(gte=4, lte=4096))] = 64,
    false_discovery: Share = 0.05,
    budget: Tokens = 400_000,
    json_: Json = False,
) -> int:
    """Try every proposal that was not tried yet: rollouts after the fix, against rollouts after a resampled step.

    Parameters
    ----------
    run
        A run folder.
    continuations
        Most rollouts of each arm in the test of a fix, and those of its fresh re-estimate.
    false_discovery
        Expected share of useless fixes among the accepted ones.
    budget
        Most tokens that all of it may cost.
    json_
        Print as JSON.
    """
    from forkpoint.cli.review_run import verify_run

    return verify_run(run, continuations=continuations, level=false_discovery, budget=budget, as_json=json_)


@app.command(name="list")
def list_(run: Path, /, *, accepted: Flag = False, json_: Json = False) -> int:
    """What was proposed and what became of it.

    Parameters
    ----------
    run
        A run folder.
    accepted
        Only what may be trained on.
    json_
        Print as JSON.
    """
    from forkpoint.cli.review_show import list_edits

    return list_edits(run, accepted=accepted, as_json=json_)


@app.command
def show(run: Path, name: str, /, *, json_: Json = False) -> int:
    """One postmortem: the rollout, its values, its hinge, its fixes.

    Parameters
    ----------
    run
        A run folder.
    name
        The id of an edit or a rollout, or its first characters.
    json_
        Print as JSON.
    """
    from forkpoint.cli.review_show import show_review

    return show_review(run, name, as_json=json_)


@app.command
def accept(run: Path, edit: str, /) -> int:
    """Say that an edit may be trained on, whatever the re-rollouts said.

    Parameters
    ----------
    run
        A run folder.
    edit
        Its id, or its first characters.
    """
    from forkpoint.cli.review_show import decide

    return decide(run, edit, "accepted")


@app.command
def reject(run: Path, edit: str, /) -> int:
    """Say that an edit must not be trained on, whatever the re-rollouts said.

    Parameters
    ----------
    run
        A run folder.
    edit
        Its id, or its first characters.
    """
    from forkpoint.cli.review_show import decide

    return decide(run, edit, "rejected")


@app.command
def export(
    run: Path, out: Path, /, *, prefix: Annotated[bool, Parameter(negative="--no-prefix")] = True, json_: Json = False
) -> int:
    """Write the accepted fixes as JSONL to train on elsewhere: prompt, completion, provenance.

    Parameters
    ----------
    run
        A run folder.
    out
        The file to write.
    prefix
        The completion begins with what the rollout wrote before the fix; without it that is part of the prompt.
    json_
        Print as JSON.
    """
    from forkpoint.cli.review_show import export_edits

    return export_edits(run, out, prefix=prefix, as_json=json_)


@app.command
def lessons(
    run: Path,
    /,
    *,
    stage: Text = "",
    add: tuple[str, ...] = (),
    about: Text = "",
    propose: Flag = False,
    audit: Flag = False,
    trials: Positive = 128,
    json_: Json = False,
) -> int:
    """The lessons of a run, living and deleted; propose some, add some, try them.

    Parameters
    ----------
    run
        A run folder.
    stage
        The stage whose rollouts speak and whose last weights are asked; without it the last RL stage, else the last.
    add
        A lesson in the task's own language; may be repeated.
    about
        What a problem must share for the added lessons to be told; empty: every problem.
    propose
        Draw lessons from the rollouts that the run kept.
    audit
        Try every living lesson once: against none, a shuffled, an irrelevant and a corrupted one. Two failed audits
        delete it.
    trials
        Most problems of an audit, five rollouts each.
    json_
        Print as JSON.
    """
    from forkpoint.cli.review_lessons import LessonRequest, lessons_run

    asked = LessonRequest(stage=stage, add=add, about=about, propose=propose, audit=audit, trials=trials)
    return lessons_run(run, asked, as_json=json_)
