import math
from xml.etree import ElementTree

import numpy as np
import pytest

from forkpoint.report.charts import Dot, Frame, dot_chart, element, length_chart, line_chart, nice_ticks
from forkpoint.report.curves import Curve, Lengths, Line, thin

HOSTILE = '<script>alert(1)</script>" onload="x\ud800\u202e'


def parsed(drawing):
    return ElementTree.fromstring(drawing)


def line(stage="rlvr", slot=3, updates=(0.0, 50.0, 100.0), values=(0.2, 0.5, 0.9), intervals=(), **others):
    return Line(stage=stage, slot=slot, updates=updates, values=values, intervals=intervals, **others)


def curve(*lines, metric="evaluation_correct"):
    return Curve(metric=metric, title="Solve rate", unit="share", lines=lines)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 24, [0, 5, 10, 15, 20]),
        (0, 0.013, [0, 0.005, 0.01]),
        (-3, 3, [-2, 0, 2]),
        (5, 5, [5]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round_and_inside(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_ticks_of_updates_are_whole():
    assert nice_ticks(0, 2, whole=True) == [0, 1, 2]


def test_numbers_are_placed_linearly_and_stay_inside():
    frame = Frame(left=10, right=110, top=0, bottom=50, x=(0, 10), y=(0, 1))
    assert (frame.at_x(5), frame.at_y(0), frame.at_y(1)) == (60, 50, 0)
    assert (frame.at_x(-5), frame.at_x(99)) == (10, 110)
    assert math.isfinite(Frame(left=0, right=1, top=0, bottom=1, x=(3, 3), y=(0, 1)).at_x(3))


def test_a_line_goes_through_its_points():
    drawing = parsed(line_chart(curve(line()), last=100.0))
    [path] = drawing.findall("path")
    assert path.get("d") == "M40.0 140.8 L193.0 97.0 L346.0 38.6"
    assert path.get("class") == "curve s3"


def test_intervals_are_bands_or_whiskers_with_their_numbers():
    band = parsed(line_chart(curve(line(intervals=((0.1, 0.3), (0.4, 0.6), (0.8, 1.0)))), last=100.0))
    assert [path.get("class") for path in band.findall("path")] == ["band s3", "curve s3"]
    assert len(band.findall("circle")) == 3
    one = parsed(line_chart(curve(line(updates=(0.0,), values=(0.2,), intervals=((0.1, 0.3),))), last=100.0))
    assert not one.findall("path")
    assert one.find("circle/title").text == "rlvr, update 0: 0.2 [0.1, 0.3]"


def test_the_ninth_stage_is_dashed():
    assert 'class="curve s0 dashed"' in line_chart(curve(line(slot=8)), last=1.0)


def test_dots_lie_at_their_values_and_lead_to_rollouts():
    rows = [
        Dot(label="base", slot=0, value=0.0, interval=(0.0, 0.5), shown="0 %"),
        Dot(label="rlvr", slot=1, value=1.0, interval=None, shown="100 %", anchor="final-0-1"),
    ]
    drawing = parsed(dot_chart(rows, title="share", limits=(0.0, 1.0)))
    first, second = (float(dot.get("cx")) for dot in drawing.findall("circle"))
    whisker = next(item for item in drawing.findall("line") if item.get("class").startswith("whisker"))
    assert float(whisker.get("x1")) == first
    assert float(whisker.get("x2")) == pytest.approx((first + second) / 2, abs=0.02)
    assert drawing.find("a").get("href") == "#final-0-1"


def test_bars_stack_to_the_whole():
    lengths = Lengths(
        arm="rlvr", slot=0, unit="moves", edges=(-0.5, 0.5, 1.5), solved=(0.5, 0.0), unsolved=(0.25, 0.25)
    )
    bars = parsed(length_chart(lengths, top=1.0)).findall("rect")
    assert [bar.get("class") for bar in bars] == ["solved", "unsolved", "unsolved"]
    solved, unsolved, other = ([float(bar.get(name)) for name in ("y", "height")] for bar in bars)
    assert unsolved[0] + unsolved[1] == pytest.approx(solved[0], abs=0.02)
    assert solved[1] == pytest.approx(2 * unsolved[1], abs=0.02)
    assert sum(other) == pytest.approx(140)


def test_texts_in_charts_are_escaped():
    drawings = [
        line_chart(curve(line(stage=HOSTILE, updates=(1.0,), values=(1.0,))), last=1.0),
        dot_chart([Dot(label=HOSTILE, slot=0, value=0.5, interval=None, shown="x")], title="t", limits=(0.0, 1.0)),
        length_chart(Lengths(arm=HOSTILE, slot=0, unit=HOSTILE, edges=(0, 1), solved=(1.0,), unsolved=(0.0,)), top=1.0),
    ]
    for drawing in drawings:
        drawing.encode("utf-8")
        tree = parsed(drawing)
        assert not tree.findall(".//script")
        assert not [item for item in tree.iter() if item.get("onload")]
    assert element("text", "<b>") == "<text>&lt;b&gt;</text>"


def test_thinning_keeps_the_mean():
    x, y = np.arange(1.0, 101.0), np.arange(1.0, 101.0) ** 2
    stretch, fewer, means = thin(x, y, 40)
    assert (stretch, len(fewer)) == (3, 34)
    assert means[0] == pytest.approx((1 + 4 + 9) / 3)
    assert (fewer[-1], means[-1]) == (100.0, 10_000.0)
    assert thin(x, y, 100)[0] == 1


def test_notes_say_what_was_done_to_the_line():
    assert curve(line()).note == ""
    assert curve(line(), line(stretch=3, dropped=2)).note == (
        "each point is the mean of up to 3 updates; values left out because they are not finite: 2"
    )
