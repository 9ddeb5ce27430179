"""Rational arithmetic on the class-reduced chain: the oracle of the float code.

Plain Gaussian elimination on (I - P) h = 1 and (I - P)^T d = e_start with exact fractions: another algorithm than
the recurrences of `solving`, so an error in either shows.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from forkpoint.errors import TaskError
from forkpoint.theory.chains import reduced_chain
from forkpoint.theory.classes import ClassPolicy

Row = dict[int, Fraction]


def rational_steps(policy: ClassPolicy[Fraction], *, profile: int = 0) -> Fraction:
    """The exact mean hitting time (steps) of a target in a branch of this profile.

    >>> from forkpoint.theory.classes import golden_policy
    >>> from forkpoint.theory.graphs import PathStar
    >>> float(rational_steps(golden_policy(PathStar.regular(branches=5, depth=9, lanes=2), Fraction)))
    12971679.015625
    """
    return 1 + rational_values(policy, profile=profile)[0]


def rational_values(policy: ClassPolicy[Fraction], *, profile: int = 0) -> tuple[Fraction, ...]:
    """Exact mean steps to go of every state of the reduced chain, in its order; 0 at the hit."""
    chain = reduced_chain(policy, profile=profile)
    system = [{j: -p for j, p in row.items() if j != chain.hit} for row in chain.rows]
    return _solve(system, [Fraction(i != chain.hit) for i in range(len(system))])


def rational_visits(policy: ClassPolicy[Fraction], *, profile: int = 0) -> tuple[Fraction, ...]:
    """Exact mean visits before the hit of every state of the reduced chain, in its order; 1 at the hit itself."""
    chain = reduced_chain(policy, profile=profile)
    system: list[Row] = [{} for _ in chain.rows]
    for i, row in enumerate(chain.rows):
        for j, p in row.items():
            system[j][i] = system[j].get(i, Fraction(0)) - p
    return _solve(system, [Fraction(i == 0) for i in range(len(system))])


def _solve(off_diagonal: Sequence[Mapping[int, Fraction]], right: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """The solution x of (I + off_diagonal) x = right, by elimination from the last state to the first."""
    matrix: list[Row] = [{**{j: p for j, p in row.items() if p}, i: 1 + row.get(i, Fraction(0))}
                         for i, row in enumerate(off_diagonal)]  # fmt: skip
    constants = list(right)
    users: list[set[int]] = [set() for _ in matrix]
    for i, row in enumerate(matrix):
        for j in row:
            users[j].add(i)
    for k in range(len(matrix) - 1, 0, -1):
        _eliminate(matrix, constants, users, k)
    solution: list[Fraction] = []
    for k, row in enumerate(matrix):
        if not row[k]:
            raise TaskError("the policy misses its target forever: its mean hitting time is not finite.")
        solution.append((constants[k] - sum((p * solution[j] for j, p in row.items() if j < k), Fraction(0))) / row[k])
    return tuple(solution)


def _eliminate(matrix: list[Row], constants: list[Fraction], users: list[set[int]], k: int) -> None:
    """Remove unknown k from all rows above row k."""
    pivot = matrix[k].get(k, Fraction(0))
    if not pivot:
        raise TaskError("the policy misses its target forever: its mean hitting time is not finite.")
    for i in [i for i in users[k] if i < k]:
        factor = matrix[i].pop(k) / pivot
        for j, p in matrix[k].items():
            if j != k:
                matrix[i][j] = matrix[i].get(j, Fraction(0)) - factor * p
                users[j].add(i)
        constants[i] -= factor * constants[k]
