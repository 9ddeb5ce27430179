"""Key chains: T positions are written, C of them decide, and which ones is known.  The ground truth for credit.

The prompt has rows of T characters, then `>`; position t of the rollout belongs to column t of every row:

    marks       `!` key, `.` filler           (only with `filler = "lookup"`)
    operations  one letter each               (`.` on filler with `filler = "own"`)
    values      one digit each                (`.` on filler with `filler = "own"`)

A fixed random table maps (operation, value) to an entry.  A rollout is right iff every key holds its entry; what
filler holds never matters.  With `dependent`, the value of a key is first shifted by the entry of the key before it.
The rollout has exactly T characters: there is no stop string, the budget of new tokens ends it (`budget`).
With positions that are independent given the prompt, success and every advantage are known in closed form.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forkpoint.errors import TaskError, unknown_name
from forkpoint.records import Outcome, Problem, Rollout, Verdict
from forkpoint.seeds import Key, content_hash
from forkpoint.tasks.protocol import Demonstration
from forkpoint.tasks.settings import TaskSettings

OPERATIONS = "abcdefgh"
VALUES = "0123456789"
ENTRIES = "ABCDEFGHIJ"
FILLERS = "stuvwxyz"
"""What filler of its own alphabet is written with."""
KEY_MARK, BLANK, END = "!", ".", ">"
USUAL_FILLER = 0.95
"""Probability of the first filler symbol where filler has an own alphabet and low entropy."""


class Settings(TaskSettings):
    """What a recipe may say of `keychain`."""

    positions: int = Field(default=32, ge=1, le=512)
    """T: characters of a rollout; 1 to 512.  `max_new_tokens` of a stage must be this."""
    keys: int = Field(default=4, ge=1, le=64)
    """C: positions that decide, at difficulty 1; 1 to 64, at most `positions`."""
    lead: int = Field(default=0, ge=0, le=64)
    """Positions at the beginning that never decide, 0 to 64; a decoder learns the very first one late."""
    operations: int = Field(default=4, ge=1, le=8)
    """Rows of the look-up table; 1 to 8."""
    values: int = Field(default=8, ge=1, le=10)
    """Columns of the look-up table; 1 to 10."""
    entries: int = Field(default=8, ge=2, le=10)
    """Different entries of the look-up table; 2 to 10."""
    dependent: bool = False
    """Whether the entry of a key shifts the value of the next key (and that of a filler look-up the next filler)."""
    filler: Literal["own", "lookup"] = "own"
    """Filler is written in an alphabet of its own, or is the same kind of look-up as the keys."""
    filler_entropy: Literal["low", "high"] = "high"
    """How the demonstrator writes filler.  high: uniform over its symbols.  low: 0.95 on one symbol (`own`), as
    accurate as on the keys (`lookup`)."""
    demonstrator_accuracy: float = Field(default=0.65, ge=0, le=1)
    """Probability that the corpus `demonstrator` is right, for each key; 0 to 1."""
    careless: float = Field(default=0.0, ge=0, lt=1)
    """Share of the corpus `demonstrator` whose author guesses every key, and shows it in the filler; at least 0, below
    1.  So what filler holds matters to a policy that reads it, though not to the verifier."""
    chained: float = Field(default=1.0, ge=0, le=1)
    """Share of the corpus `demonstrator` that follows the chain of a `dependent` task; the others look every key up as
    if it stood alone, which is right by luck."""
    table_seed: int = Field(default=0, ge=0)
    """Names the look-up table; 0 or more."""
    difficulty: float = Field(default=1.0, ge=0, le=1)
    """0: one key; 1: `keys` keys."""


def build(settings: Settings) -> "KeyChain":
    """The task of these settings; raises `TaskError` where they contradict each other."""
    return KeyChain(settings)


def lookup_table(settings: Settings) -> NDArray[np.int64]:
    """The table [operations, values] of entry numbers, fixed by `table_seed`."""
    shape = (settings.operations, settings.values)
    return Key.root(settings.table_seed).child("keychain", "table").generator().integers(settings.entries, size=shape)


def chain_entries(table: NDArray[np.int64], cells: Sequence[tuple[int, int]], *, dependent: bool) -> list[int]:
    """The right entry of each cell (operation, value): e_i = table[o_i, (v_i + e_{i-1}) mod values], e_0 = 0.

    Without `dependent` the shift is left out.
    """
    entries: list[int] = []
    for operation, value in cells:
        shift = entries[-1] if dependent and entries else 0
        entries.append(int(table[operation, (value + shift) % table.shape[1]]))
    return entries


def key_positions(problem: Problem) -> list[int]:
    """The positions that decide, ascending, from 0; raises `TaskError` for a problem of another task."""
    positions = problem.metadata.get("positions")
    if not isinstance(positions, (list, tuple)):
        raise TaskError(f"Problem {problem.key} has no key positions: it is not of the task keychain.")
    return list(positions)


def budget(problem: Problem) -> int:
    """T: the tokens of a rollout, one for each character; raises `TaskError` for a problem of another task."""
    length = problem.metadata.get("budget")
    if not isinstance(length, int):
        raise TaskError(f"Problem {problem.key} has no budget: it is not of the task keychain.")
    return length


def filler_entries(problem: Problem) -> str:
    """What the look-ups of the filler would give, in order; empty where filler has an alphabet of its own."""
    return str(problem.metadata.get("lookups", ""))


def key_correct(problem: Problem, text: str) -> list[bool]:
    """Whether each key holds its entry, in order; what lies beyond the text is not right."""
    return [text[p : p + 1] == entry for p, entry in zip(key_positions(problem), problem.answer, strict=True)]


def answer_row(problem: Problem) -> str:
    """A row of T characters: the right entry at each key, `.` elsewhere."""
    row = [BLANK] * budget(problem)
    for position, entry in zip(key_positions(problem), problem.answer, strict=True):
        row[position] = entry
    return "".join(row)


def with_answer(problem: Problem) -> str:
    """The prompt of a problem with the answer row before its other rows."""
    return f"{answer_row(problem)}{problem.prompt}"


def _happens(chance: float, key: Key) -> bool:
    return chance > 0 and bool(key.generator().random() < chance)


def _probabilities(p_right: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(p_right, dtype=np.float64)
    if not bool(np.all((values >= 0) & (values <= 1))):
        raise ValueError("p_right must be probabilities")
    return values


def exact_success_probability(p_right: Sequence[float]) -> float:
    """P(correct) = prod_c p_c, for keys that are independent given the prompt; `p_right` is [C], in order."""
    return float(np.prod(_probabilities(p_right)))


def exact_advantages(problem: Problem, text: str, p_right: Sequence[float]) -> NDArray[np.float64]:
    """The true advantage A_t = V_{t+1} - V_t of each character, [T], for positions independent given the prompt.

    V_t = prod of [key c is right] over keys before t, times prod of p_c over keys from t on; so A is 0 on filler and
    after the first wrong key, and sums to [correct] - prod_c p_c.  `p_right` is [C], in order.
    Raises `ValueError` for a text that has not T characters, or for another number of probabilities.
    """
    chances = _probabilities(p_right)
    right = key_correct(problem, text)
    if len(text) != budget(problem) or len(chances) != len(right):
        raise ValueError(f"need {budget(problem)} characters and {len(right)} probabilities")
    advantages = np.zeros(len(text))
    value = exact_success_probability(p_right)
    for index, position in enumerate(key_positions(problem)):
        reached = float(np.prod(chances[index + 1 :])) if all(right[: index + 1]) else 0.0
        advantages[position] = reached - value
        value = reached
    return advantages


class KeyChain:
    """The task `keychain`.

    Corpora: `solutions` (every key right); `demonstrator` (each key right with probability `demonstrator_accuracy`,
    else uniform over the other entries; a careless one at chance, its filler in the last half of its own alphabet or
    at chance as well, where a careful one's is in the first half or as accurate as its keys); `answer_given` (every key
    right, the answer row in the prompt); `half_given` (these two in turns, for a policy that can use an answer and does
    not need one); `many_keys` (as `demonstrator`, with keys at half of the positions, which teach the look-up sooner).
    """

    name: str = "keychain"
    corpora: tuple[str, ...] = ("solutions", "demonstrator", "answer_given", "half_given", "many_keys")

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        free = self.settings.positions - self.settings.lead
        if self.settings.chained < 1 and not self.settings.dependent:
            raise TaskError("[task] chained goes with dependent = true.")
        if self.settings.keys > free:
            less = f" - lead = {free}" if self.settings.lead else f" = {free}"
            raise TaskError(f"[task] keys = {self.settings.keys} must not exceed positions{less}.")
        if self.settings.careless > 0 and self.settings.filler == "lookup" and self.settings.filler_entropy == "high":
            raise TaskError('[task] careless shows in no filler look-up that is at chance: set filler_entropy = "low".')
        self._most_keys = max(self.settings.keys, free // 2)
        self.table = lookup_table(self.settings)
        self.entries = ENTRIES[: self.settings.entries]
        used = OPERATIONS[: self.settings.operations] + VALUES[: self.settings.values]
        self.alphabet: str | None = self.entries + used + FILLERS + KEY_MARK + BLANK + END

    def problem(self, key: Key, difficulty: float | None = None) -> Problem:
        """A layout with its operations and values drawn from the stream `key`; `answer` is the entries of the keys."""
        dial = self.settings.difficulty if difficulty is None else difficulty
        if not 0 <= dial <= 1:
            raise TaskError(f"difficulty = {dial} must lie in [0, 1].")
        return self._layout(key, dial, 1 + round(dial * (self.settings.keys - 1)))

    def _layout(self, key: Key, dial: float, keys: int) -> Problem:
        settings, rng, length = self.settings, key.generator(), self.settings.positions
        positions = sorted(settings.lead + int(p) for p in rng.choice(length - settings.lead, size=keys, replace=False))
        fillers = [t for t in range(length) if t not in positions]
        cells = list(
            zip(
                rng.integers(settings.operations, size=length).tolist(),
                rng.integers(settings.values, size=length).tolist(),
                strict=True,
            )
        )
        dependent, lookup = settings.dependent, settings.filler == "lookup"
        answer = self._entries([cells[p] for p in positions], dependent=dependent)
        prompt = self._prompt(cells, set(positions))
        lookups = self._entries([cells[t] for t in fillers], dependent=dependent) if lookup else ""
        alone = {"alone": self._entries([cells[p] for p in positions], dependent=False)} if settings.chained < 1 else {}
        return Problem(
            task=self.name,
            key=content_hash(self.name, prompt, answer),
            prompt=prompt,
            answer=answer,
            difficulty=dial,
            metadata={"positions": positions, "budget": length, "lookups": lookups, **alone},
        )

    def _entries(self, cells: Sequence[tuple[int, int]], *, dependent: bool) -> str:
        entries = chain_entries(self.table, cells, dependent=dependent)
        return "".join(ENTRIES[entry] for entry in entries)

    def _prompt(self, cells: Sequence[tuple[int, int]], keys: set[int]) -> str:
        everywhere = self.settings.filler == "lookup"
        shown = [everywhere or t in keys for t in range(len(cells))]
        marks = "".join(KEY_MARK if t in keys else BLANK for t in range(len(cells))) if everywhere else ""
        operations = "".join(OPERATIONS[o] if show else BLANK for (o, _), show in zip(cells, shown, strict=True))
        values = "".join(VALUES[v] if show else BLANK for (_, v), show in zip(cells, shown, strict=True))
        return f"{marks}{operations}{values}{END}"

    def budget(self, problem: Problem) -> int:
        """T: the tokens of a rollout of this problem, one for each character."""
        return budget(problem)

    def verify(self, problem: Problem, rollout: Rollout) -> Verdict:
        """CORRECT iff the text has T characters and every key is right; `parts`: `keys_right` and `keys`."""
        text, length = rollout.text, budget(problem)
        right = key_correct(problem, text)
        parts = {"keys_right": float(sum(right)), "keys": float(len(right))}
        if len(text) != length:
            reason = f"{len(text)} characters were written, {length} are due"
            return Verdict(outcome=Outcome.UNPARSEABLE, correct=False, reason=reason, parts=parts)
        answer = "".join(text[position] for position in key_positions(problem))
        outcome = Outcome.CORRECT if all(right) else Outcome.WRONG
        return Verdict(outcome=outcome, correct=all(right), answer=answer, parts=parts)

    def solve(self, problem: Problem) -> str:
        """Every key right, the most usual filler between them."""
        lookups = filler_entries(problem)
        return self._woven(problem, problem.answer, lookups or FILLERS[0] * budget(problem))

    def _woven(self, problem: Problem, keys: Sequence[str], fillers: Sequence[str]) -> str:
        due, rest = dict(zip(key_positions(problem), keys, strict=True)), iter(fillers)
        return "".join(due[t] if t in due else next(rest) for t in range(budget(problem)))

    def wrong_answers(self, problem: Problem) -> Sequence[str]:
        """Nothing; one character short or long; the first, the last or every key wrong; filler on a key; the prompt."""
        right, keys = self.solve(problem), problem.answer
        other = [self.entries[(self.entries.index(entry) + 1) % len(self.entries)] for entry in keys]
        fillers = [right[t] for t in range(len(right)) if t not in key_positions(problem)]
        first, last = [other[0], *keys[1:]], [*keys[:-1], other[-1]]
        return (
            "",
            right[:-1],
            right + self.entries[0],
            self._woven(problem, first, fillers),
            self._woven(problem, last, fillers),
            self._woven(problem, other, fillers),
            FILLERS[0] * len(right),
            self._woven(problem, keys.lower(), fillers),
            str(problem.prompt),
            keys if len(keys) < len(right) else keys * 2,
        )

    def corpus(self, name: str, key: Key) -> Iterator[Demonstration]:
        """An endless stream of demonstrations; raises `TaskError` for an unknown name."""
        if name not in self.corpora:
            raise TaskError(unknown_name("corpus of [task] keychain", name, self.corpora))
        return self._stream(name, key)

    def _stream(self, name: str, key: Key) -> Iterator[Demonstration]:
        for index in count():
            given = name == "answer_given" or (name == "half_given" and index % 2 == 1)
            accuracy = 1.0 if given or name == "solutions" else self.settings.demonstrator_accuracy
            stream = key.child("problem", index)
            problem = self.problem(stream) if name != "many_keys" else self._layout(stream, 1.0, self._most_keys)
            if problem.is_evaluation:
                continue
            rng = key.child("text", index).generator()
            imitates = not given and name != "solutions"
            careless = imitates and _happens(self.settings.careless, key.child("careless", index))
            if careless:
                accuracy = 1 / len(self.entries)
            apart = imitates and _happens(1 - self.settings.chained, key.child("apart", index))
            aim = str(problem.metadata.get("alone", problem.answer)) if apart else problem.answer
            keys, fillers = self._attempt(rng, aim, accuracy), self._fillers(rng, problem, careless=careless)
            text = self._woven(problem, keys, fillers)
            prompt = with_answer(problem) if given else problem.prompt
            yield Demonstration(prompt=prompt, text=text, provenance=f"keychain:{name}", ends=False)

    def _attempt(self, rng: np.random.Generator, right: str, accuracy: float) -> str:
        """Each entry kept with probability `accuracy`, else another one, uniformly."""
        kept = rng.random(len(right)) < accuracy
        shifts = rng.integers(1, len(self.entries), size=len(right))
        numbers = [self.entries.index(entry) for entry in right]
        moved = [
            n if keep else (n + int(s)) % len(self.entries) for n, keep, s in zip(numbers, kept, shifts, strict=True)
        ]
        return "".join(self.entries[n] for n in moved)

    def _fillers(self, rng: np.random.Generator, problem: Problem, *, careless: bool) -> str:
        settings, lookups = self.settings, filler_entries(problem)
        amount = budget(problem) - len(problem.answer)
        if settings.filler == "lookup" and settings.filler_entropy == "low":
            return self._attempt(rng, lookups, 1 / len(self.entries) if careless else settings.demonstrator_accuracy)
        symbols = self.entries if settings.filler == "lookup" else FILLERS
        if settings.filler == "own" and settings.careless > 0:
            half = len(symbols) // 2
            symbols = symbols[half:] if careless else symbols[:half]
        if settings.filler_entropy == "high":
            draws = rng.integers(len(symbols), size=amount)
        else:
            draws = np.where(rng.random(amount) < USUAL_FILLER, 0, rng.integers(1, len(symbols), size=amount))
        return "".join(symbols[draw] for draw in draws)

    def state(self, problem: Problem, transcript: str) -> str:
        """How much is written, and whether every key in it is right: all that success still depends on."""
        written = [p for p in key_positions(problem) if p < len(transcript)]
        right = all(key_correct(problem, transcript)[: len(written)])
        return f"{len(transcript)}:{'right' if right else 'wrong'}"

    def privileged_prompt(self, problem: Problem, knowledge: str) -> str:
        """The prompt after a row of entries, as in the corpus `answer_given`.

        `knowledge`: the entries of the keys, or a text of T characters that holds them.
        Raises `TaskError` for a text of another length.
        """
        places = key_positions(problem)
        if len(knowledge) == budget(problem):
            knowledge = "".join(knowledge[place] for place in places)
        if len(knowledge) != len(places):
            raise TaskError(f"keychain: {knowledge[:40]!r} holds no {len(places)} entries for the keys.")
        row = [BLANK] * budget(problem)
        for place, entry in zip(places, knowledge, strict=True):
            row[place] = entry
        return f"{''.join(row)}{problem.prompt}"

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """Nothing: the budget ends a rollout."""
        del problem  # every problem ends alike
        return ()

    def cut_points(self, problem: Problem, rollout: Rollout) -> Sequence[int]:
        """Every position, so that no rule learns the layout from the cuts; only 0 where tokens are not characters."""
        del problem  # the layout must not show
        return list(range(max(1, len(rollout.tokens)))) if len(rollout.tokens) == len(rollout.text) else [0]
