"""lab/figures.py: each experiment has a figure whose sentence is checked, and whose words can be
read.

Left out on purpose: how it looks, which is for eyes.
"""
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from conftest import run
from data import Cups
from lab import figures
from lab.experiments import EXPERIMENTS
from lab.figures import FIGURES, draw, name_ends
from test_experiments import made_up


@pytest.fixture
def drawn(monkeypatch):
    """draw(...) -> the figure, as it was saved."""
    found, close = [], plt.close
    monkeypatch.setattr(plt, "close", found.append)

    def one(*args):
        draw(*args)
        return found[-1]
    yield one
    close("all")


def words(figure) -> list[str]:
    """All that stands at the ends of lines."""
    return [text.get_text() for axis in figure.axes for text in axis.texts]


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_sentence_is_checked(name, drawn, tmp_path):
    """A result in which all is chance does not bear the sentence out: its question stands there
    instead. The result that the project has bears it out."""
    result = made_up(name, 1 / 3)
    figure = drawn(name, result, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 9999
    assert " ".join(figure.get_suptitle().split()) == " ".join(result["question"].split())
    ours = json.loads((figures.ROOT / "figures" / f"{name}.json").read_text())
    (sentence, holds), _ = FIGURES[name]
    assert holds(ours) and len(sentence.split(". ")) <= 2
    figure = drawn(name, ours, tmp_path / "x.png")
    assert " ".join(figure.get_suptitle().split()) == sentence
    # at the width of a page: 880 dots, where letters of 9 points can be read
    assert figure.get_size_inches()[0] * figures.DOTS == 880
    assert all(text.get_size() >= 8 for axis in figure.axes for text in axis.texts)


def test_names_do_not_cover_each_other():
    """Guards lines that end at one height: their names keep their order, stay beside the panel, and
    stand a line apart."""
    axis = plt.figure().add_subplot()
    axis.set_ylim(0, 100)
    name_ends(axis, {"a": (100, "C0"), "b": (99.9, "C1"), "c": (99.8, "C2"), "d": (20, "C3"),
                     "e": (20, "C4")})
    at = {text.get_text(): text.xy[1] for text in axis.texts}
    assert sorted(at, key=at.get)[2:] == ["c", "b", "a"] and at["a"] == 100
    assert min(np.diff(sorted(at.values()))) >= 7.5 - 1e-9 and at["d"] == 20


def test_an_experiment_without_a_figure(drawn, tmp_path):
    """All its arms against n, under its question; chance and the lengths of training are those of
    their worlds."""
    result = made_up("worlds", 0.5)
    figure = drawn("mine", result, tmp_path / "x.png")
    assert figure.get_suptitle().startswith("Harder worlds") and set(words(figure)) == {
        *result["arms"]}
    dotted = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert {round(y) for y in dotted} == {20, 33}
    result["arms"] = {"5 cups, tokens": result["arms"]["5 cups, tokens"]}
    figure = drawn("mine", result, tmp_path / "x.png")
    assert words(figure) == ["5 cups, tokens", "trained"]
    shaded = figure.axes[0].patches[0]
    assert shaded.get_x() == 0.5 and shaded.get_x() + shaded.get_width() == 12.5


def test_lengths_have_their_line():
    """The dashed line is a thought after each move that moves the ball: two of three swaps and
    both turns, if it isn't idle."""
    axis, result = plt.figure().add_subplot(), made_up("when", 0.5)
    figures.draw_lengths(axis, result, "released")
    moves = Cups(3).goes.tolist()
    moved = np.mean([where != goes[where] for goes in moves for where in range(3)])
    line = next(x for x in axis.lines if x.get_linestyle() == "--")
    assert np.allclose(line.get_ydata(), 0.6 * moved * np.arange(1, 31))


def test_never_has_a_place():
    """Guards runs that learnt nothing: they stand right of all others, above `never`."""
    axis, result = plt.figure().add_subplot(), made_up("alphabet", 1.0)
    lost = made_up("alphabet", 0.5)["arms"]["words"]["seeds"]
    result["arms"]["words"]["seeds"] = lost
    figures.draw_soon(axis, result)
    row = list(result["arms"]).index("words")
    never = next(x.get_xdata() for x in axis.lines if x.get_ydata()[0] == row)
    assert set(never) == {120.0} and axis.get_xticks()[-1] == 120.0
    assert axis.get_xticklabels()[-1].get_text() == "never"


def test_gains_are_stacked():
    """What costs points hangs below zero, and what gains stands on what gains already."""
    result = made_up("content", 0.0)
    for arm, right in (("none, full", 0.3), ("filler, full", 0.4), ("random policy, full", 0.35),
                       ("tokens, full", 1.0)):
        seeds = result["arms"][arm]["seeds"]
        result["arms"][arm]["seeds"] = [s | {"accuracy_by_n": [right] * 30} for s in seeds]
    axis = plt.figure().add_subplot()
    figures.draw_gain(axis, result)
    compute, recipe, content = (bars[0] for bars in axis.containers)
    assert [round(x.get_height(), 6) for x in (compute, recipe, content)] == [10, -5, 65]
    assert [round(x.get_y(), 6) for x in (compute, recipe, content)] == [0, 0, 10]


def test_command(monkeypatch, tmp_path, capsys):
    """All figures again without a run; a name that is none is one line."""
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "worlds.json").write_text(json.dumps(made_up("worlds", 0.5)))
    code, said, err = run(figures.main, [], monkeypatch, capsys)
    assert code == 0 and said.count("\n") == 1 and "worlds.png is drawn" in said, err
    assert (tmp_path / "figures" / "worlds.png").exists()
    code, _, err = run(figures.main, ["wolrds"], monkeypatch, capsys)
    assert code == 2 and "no figure 'wolrds'" in err and err.count("\n") == 1
