"""The texts of a stage: a corpus, a file, or what a final policy writes on training problems, reviewed or not."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.assembly.build import STAND_INS, Assembly, evaluation_budget
from forkpoint.config.recipe import ForksStage, Recipe, RLStage, TextStage, data_source, text_file
from forkpoint.config.review import LessonSettings, ReviewSettings
from forkpoint.errors import RecipeError, StoreError
from forkpoint.records import Lesson, TextExample
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.demonstrations import kept_file, read_demonstrations
from forkpoint.tasks.protocol import Task, split_problems

if TYPE_CHECKING:
    from forkpoint.policies.protocol import Policy
    from forkpoint.policies.texts import Texts
    from forkpoint.store import RunWriter, StoredLesson, StoredPool
    from forkpoint.training.imitation import Draw
    from forkpoint.training.rollouts import SamplePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """What the texts of a stage are made from."""

    assembly: Assembly
    stage: TextStage
    task: Task
    texts: "Texts"
    writer: "RunWriter | None"
    """Keeps what a review found."""

    @property
    def key(self) -> Key:
        """Names the run and the stage."""
        return Key.root(self.assembly.recipe.seed).child(self.stage.name)


def text_draw(source: TextSource) -> "tuple[Draw, int]":
    """The texts of each update, and the tokens that were sampled to make them.

    Raises:
        RecipeError: nothing is left to imitate.
    """
    from forkpoint.training.imitation import joined_draw

    stage = source.stage
    if stage.mix is None:
        return _draw(source, stage.data, source.key, count=stage.batch_size)
    others = min(max(1, round(stage.mix.share * stage.batch_size)), stage.batch_size - 1)
    first, spent = _draw(source, stage.data, source.key, count=stage.batch_size - others)
    beside = replace(source, stage=stage.model_copy(update={"order": "shuffled"}))
    second, more = _draw(beside, stage.mix.data, source.key.child("mix"), count=others)
    return joined_draw(first, second), spent + more


def _draw(source: TextSource, data: str, key: Key, *, count: int) -> "tuple[Draw, int]":
    """`count` texts of one kind for each update, and the tokens sampled for them."""
    from forkpoint.training.imitation import corpus_draw, demonstration_example, joined_draw, pool_draw

    path = text_file(data)
    if path is not None:
        assembly = source.assembly
        place = kept_file(assembly.run, assembly.origin, path, keep=source.writer is not None)
        told = [demonstration_example(source.texts, each) for each in read_demonstrations(place, name=path)]
        return _pool_draw(source, told, key, count=count), 0
    if data_source(data)[1] is None:
        return corpus_draw(source.task, source.texts, data, key, count=count), 0
    pool, others, spent = _pool(source, data, key.child("teacher"))
    if not others or source.stage.review is None:
        return _pool_draw(source, pool, key, count=count), spent
    beside = min(max(1, round(source.stage.review.successes * count)), count - 1)
    first = _pool_draw(source, pool, key, count=count - beside)
    return joined_draw(first, pool_draw(others, key.child("successes"), count=beside)), spent


def _pool_draw(source: TextSource, pool: list[TextExample], key: Key, *, count: int) -> "Draw":
    """`count` texts of a pool for each update, in the stage's order."""
    from forkpoint.training.imitation import pool_draw
    from forkpoint.training.ordering import ordered_draw

    if source.stage.order == "shuffled":
        return pool_draw(pool, key, count=count)
    # Perplexity is that under the weights that the stage starts from, also after a resume.
    assembly = source.assembly
    start = assembly._policy(assembly._parent(source.stage))
    return ordered_draw(pool, assembly._probe(start, source.task)[0], source.stage, key, count=count)


def _pool(source: TextSource, data: str, key: Key) -> tuple[list[TextExample], list[TextExample], int]:
    """What the final policy of another stage writes, what a review lays beside it, and the tokens sampled for both."""
    from forkpoint.training.imitation import sampled_texts
    from forkpoint.training.rollouts import SamplePlan

    assembly, stage = source.assembly, source.stage
    kind, name = data_source(data)
    drawing = assembly.recipe.get_stage(str(name))
    usual = assembly.recipe.evaluation.temperature
    plan = SamplePlan(
        key=key, stage=stage.name, update=0, group_size=1, max_new_tokens=evaluation_budget(assembly.recipe, drawing),
        temperature=drawing.temperature if isinstance(drawing, RLStage | ForksStage) else usual,
    )  # fmt: skip
    reviewing = kind in ("edits", "lessons") and not assembly.unrun
    identity = content_hash(stage.model_dump_json(), key.hex, plan.max_new_tokens, repr(plan.temperature))
    if reviewing and (known := _stored(source, identity)) is not None:
        return list(known.examples), list(known.beside), known.tokens
    teacher = assembly._policy(None if assembly.unrun else assembly._final_checkpoint(drawing.name))
    if assembly.unrun:
        return _stand_ins(source, teacher, plan), [], 0
    if reviewing:
        made, lessons = (_edits(source, teacher, plan), ()) if kind == "edits" else _lessons(source, teacher, plan)
        made = replace(made, identity=identity)
        if source.writer is not None:
            source.writer.record_pool(stage.name, made, lessons)
        return list(made.examples), list(made.beside), made.tokens
    probe = assembly._probe(teacher, source.task)[0]
    pool = sampled_texts(source.task, teacher.texts, probe, plan, count=stage.examples, correct=kind == "rollouts")
    if not pool:
        raise RecipeError(f"stage '{stage.name}': none of {stage.examples} rollouts of '{drawing.name}' was correct.")
    return pool, [], probe.cost["sampled_tokens"]


def _stored(source: TextSource, identity: str) -> "StoredPool | None":
    """The texts that the stage's review made before it was interrupted; None where they are others, or none."""
    from forkpoint.store import DATABASE, RunReader

    if not (source.assembly.run / DATABASE).is_file():
        return None
    with RunReader(source.assembly.run) as reader:
        found = reader.pool(source.stage.name)
    return found if found is not None and found.identity == identity else None


def living_lessons(run: Path, recipe: Recipe, name: str) -> tuple[tuple[Lesson, ...], int]:
    """The lessons that lived through the audits of a finished stage, and most of them in one prompt.

    Raises:
        StoreError: the run does not hold them.
    """
    from forkpoint.store import RunReader

    stage = recipe.get_stage(name)
    settings = (stage.lessons if isinstance(stage, TextStage) else None) or LessonSettings()
    with RunReader(run) as reader:
        pool, known = reader.pool(name), {each.lesson.id: each.lesson for each in reader.lessons()}
    if pool is None or not set(pool.lessons) <= set(known):
        raise StoreError(f"{run}: the lessons of stage '{name}' are not there.")
    return tuple(known[each] for each in pool.lessons), settings.most


def _stand_ins(source: TextSource, teacher: "Policy", plan: "SamplePlan") -> list[TextExample]:
    """What the policy writes, right or wrong, where there is no teacher yet."""
    from forkpoint.training.imitation import rollout_example
    from forkpoint.training.rollouts import judged_groups

    problems = split_problems(source.task, plan.key.child("problems"), STAND_INS, evaluation=False)
    probe = source.assembly._probe(teacher, source.task)[0]
    groups = judged_groups(probe, source.task, teacher.texts, problems, plan)
    return [rollout_example(group.rollouts[0]) for group in groups]


def _edits(source: TextSource, teacher: "Policy", plan: "SamplePlan") -> "StoredPool":
    """What the review of the teacher's rollouts made of them; the store keeps rollouts, reviews and edits."""
    from forkpoint.store import StoredPool
    from forkpoint.training.reviewing import reviewed

    stage, writer = source.stage, source.writer
    probe = source.assembly.branching_probe(teacher, source.task, plan.key, plan.max_new_tokens)
    found = reviewed(probe, source.task, teacher.texts, stage.review or ReviewSettings(), plan)
    if writer is not None:
        writer.keep_review(found.groups, found.reviews, found.edits, found.verifications, stage=stage.name)
        writer.event("review", found.line, stage=stage.name)
    if not found.examples and not found.successes:
        raise RecipeError(f"stage '{stage.name}': {found.line}; nothing is left to imitate.")
    # A round that proves nothing still has its successes.
    examples, beside = (found.examples, found.successes) if found.examples else (found.successes, ())
    return StoredPool(identity="", examples=examples, beside=beside, tokens=found.tokens)


def _lessons(
    source: TextSource, teacher: "Policy", plan: "SamplePlan"
) -> "tuple[StoredPool, tuple[StoredLesson, ...]]":
    """What the teacher writes with audited lessons in its prompt, and the lessons: the run's own and new ones."""
    from forkpoint.store import DATABASE, RunReader, StoredPool
    from forkpoint.training.teaching import lives, taught

    stage, writer = source.stage, source.writer
    probe = source.assembly.branching_probe(teacher, source.task, plan.key, plan.max_new_tokens)
    known: list[StoredLesson] = []
    if (source.assembly.run / DATABASE).is_file():
        with RunReader(source.assembly.run) as reader:
            known = reader.lessons()
    settings = stage.lessons or LessonSettings()
    found = taught(probe, source.task, teacher.texts, settings, plan, stage.examples, known=known)
    if writer is not None:
        writer.event("lessons", found.line, stage=stage.name)
    if not found.examples:
        raise RecipeError(f"stage '{stage.name}': {found.line}; nothing is left to imitate.")
    alive = tuple(each.lesson.id for each in found.lessons if lives(each))
    return StoredPool(identity="", examples=found.examples, tokens=found.tokens, lessons=alive), found.lessons
