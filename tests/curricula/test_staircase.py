"""The difficulty moves when it should, and stays in between."""

from forkpoint.curricula.staircase import Bounds, Stairs, climbed, open_levels

BOUNDS = Bounds(levels=3, up=0.7, down=0.3, window=10)


def test_it_moves_after_a_whole_window_only():
    waiting = climbed(Stairs(), 9, 9, BOUNDS)
    assert waiting == Stairs(level=0, correct=9, judged=9)
    assert climbed(waiting, 1, 1, BOUNDS) == Stairs(level=1)
    assert climbed(Stairs(level=1), 0, 10, BOUNDS) == Stairs(level=0)


def test_it_stays_within_the_band_and_the_bounds_belong_to_it():
    for correct in (3, 5, 7):
        assert climbed(Stairs(level=1), correct, 10, BOUNDS) == Stairs(level=1)
    assert climbed(Stairs(level=1), 8, 10, BOUNDS).level == 2
    assert climbed(Stairs(level=1), 2, 10, BOUNDS).level == 0


def test_it_ends_at_both_ends():
    assert climbed(Stairs(level=2), 10, 10, BOUNDS) == Stairs(level=2)
    assert climbed(Stairs(level=0), 0, 10, BOUNDS) == Stairs(level=0)


def test_a_window_is_forgotten_once_it_was_looked_at():
    # 7 of 10 stays; the next look needs ten more rollouts of its own.
    after = climbed(Stairs(level=1), 7, 10, BOUNDS)
    assert climbed(after, 9, 9, BOUNDS).level == 1
    assert climbed(climbed(after, 9, 9, BOUNDS), 0, 1, BOUNDS).level == 2


def test_open_levels_hold_the_easier_ones_where_asked():
    assert open_levels(Stairs(level=1), (0.0, 0.5, 1.0), inclusive=True) == (0.0, 0.5)
    assert open_levels(Stairs(level=1), (0.0, 0.5, 1.0), inclusive=False) == (0.5,)
