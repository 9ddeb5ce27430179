"""Rarely solved problems come back after the cool-down, and not for ever."""

from forkpoint.curricula.replay import Cooling, Waiting, cooled, due_problems

COOLING = Cooling(cooldown=5, max_reuse=2, below=0.25, size=3)


def fresh(key, uses=0):
    return Waiting(key=key, source=(key,), level=None, due=0, uses=uses)


def test_only_the_rarely_solved_wait():
    seen = [(fresh("never"), 0.0), (fresh("rare"), 0.25), (fresh("often"), 0.26), (fresh("always"), 1.0)]
    (entry,) = cooled((), seen, update=10, cooling=COOLING)
    assert (entry.key, entry.due, entry.uses) == ("rare", 15, 0)


def test_nothing_comes_back_before_its_cool_down_is_over():
    waiting = cooled((), [(fresh("a"), 0.1)], update=10, cooling=COOLING)
    assert due_problems(waiting, 14, 9) == []
    assert [entry.key for entry in due_problems(waiting, 15, 9)] == ["a"]
    assert due_problems(waiting, 15, 0) == []


def test_the_longest_waiting_come_first():
    waiting = cooled((), [(fresh("b"), 0.1)], update=2, cooling=COOLING)
    waiting = cooled(waiting, [(fresh("a"), 0.1)], update=1, cooling=COOLING)
    assert [entry.key for entry in due_problems(waiting, 99, 1)] == ["a"]


def test_a_problem_comes_back_at_most_so_often():
    waiting = cooled((), [(fresh("a"), 0.1)], update=0, cooling=COOLING)
    # It is unsolved when it comes back, and waits on: it was solved before.
    waiting = cooled(waiting, [(fresh("a", uses=1), 0.0)], update=5, cooling=COOLING)
    assert [(entry.due, entry.uses) for entry in waiting] == [(10, 1)]
    assert cooled(waiting, [(fresh("a", uses=2), 0.1)], update=10, cooling=COOLING) == ()


def test_a_problem_that_is_solved_often_leaves():
    waiting = cooled((), [(fresh("a"), 0.1)], update=0, cooling=COOLING)
    assert cooled(waiting, [(fresh("a", uses=1), 0.9)], update=5, cooling=COOLING) == ()


def test_a_fresh_draw_of_a_waiting_problem_does_not_reset_its_uses():
    waiting = cooled((), [(fresh("a"), 0.1)], update=0, cooling=COOLING)
    waiting = cooled(waiting, [(fresh("a", uses=1), 0.1)], update=5, cooling=COOLING)
    assert cooled(waiting, [(fresh("a"), 0.1)], update=6, cooling=COOLING)[0].uses == 1


def test_the_newest_stay_where_there_is_no_room():
    waiting = cooled((), [(fresh(key), 0.1) for key in "abcde"], update=0, cooling=COOLING)
    assert [entry.key for entry in waiting] == ["c", "d", "e"]
