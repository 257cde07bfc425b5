"""lab/figures.py: each experiment has a figure whose sentence is checked, and whose words can be
read.

Left out on purpose: how it looks, which is for eyes.
"""
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from conftest import run
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
    assert all(text.get_size() >= 8 for axis in figure.axes for text in (
        *axis.texts, *axis.get_xticklabels(), *axis.get_yticklabels(), axis.xaxis.label))


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
    assert figure.get_suptitle().startswith("Harder worlds")
    assert {*words(figure)} - {"chance"} == {*result["arms"]}
    dotted = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert {round(y) for y in dotted} == {20, 33} and words(figure).count("chance") == 2
    result["arms"] = {"5 cups, tokens": result["arms"]["5 cups, tokens"]}
    figure = drawn("mine", result, tmp_path / "x.png")
    assert words(figure) == ["5 cups, tokens", "chance", "trained"]
    shaded = figure.axes[0].patches[0]
    assert shaded.get_x() == 0.5 and shaded.get_x() + shaded.get_width() == 12.5


# of each sentence, a change of the result that makes it just false
MISSES = {
    "channel": lambda s: s["tokens, window"].update(accuracy_by_n=[1.0] * 29 + [0.94]),
    "content": lambda s: s["random policy, full"].update(accuracy_by_n=[0.5] * 30),
    "faithful": lambda s: s["tokens, full"]["probe"]["aoc"]["paraphrase"].update({"10": 0.11}),
    "training": lambda s: [x.update(accuracy_by_n=[0.7] * 30)
                           for x in s["tokens, window"]["course"]],
    "waterfall": lambda s: s["no baseline"].update(accuracy_by_n=[0.94] * 30),
    "when": lambda s: s["released"].update(thinks_elsewhere=0.11),
    "worlds": lambda s: s["3 balls, tokens"].update(accuracy_by_n=[1.0] * 29 + [0.94]),
    "direct": lambda s: s["thoughts from there"].update(accuracy_by_n=[1.0] * 29 + [0.94]),
    "depth": lambda s: s["Z6, none, 4 layers"].update(accuracy_first_by_n=[1.0] * 7 + [0.0] * 23),
    "rows": lambda s: s["stream, N = 16384"]["probe"]["usage"].update(perplexity=41),
    "alphabet": lambda s: s["words"]["curve"].update(thoughts_as_text=[-0.4, -2.3]),
    "regular": lambda s: s["parity, ids"].update(accuracy=0.94),
    "text": lambda s: s["ids, 2"]["nats"].update(own=s["none, 2"]["nats"]["own"] - 0.04),
    "chess": lambda s: s["ids, 5"]["nats"].update(own=s["none, 5"]["nats"]["own"] - 0.01),
    "judged": lambda s: s["filler"]["kl"].update(own=s["none"]["kl"]["own"] - 0.06),
    "forgotten": lambda s: s["ids set free, 1"]["by_token"]["letters"].update(
        thinks=[0.45] + [1.0] * 5)}


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_near_miss_is_told_apart(name):
    """Guards checks that anything passes: where one arm's runs are a little worse, the sentence is
    no longer true."""
    result = json.loads((figures.ROOT / "figures" / f"{name}.json").read_text())
    (_, holds), _ = FIGURES[name]
    assert holds(result)
    for i in range(len(next(iter(result["arms"].values()))["seeds"])):
        MISSES[name]({arm: found["seeds"][i] for arm, found in result["arms"].items()})
    assert not holds(result)


@pytest.mark.parametrize("name", list(FIGURES))
def test_pictures_are_of_their_json(name):
    """Guards a picture that is older than its numbers."""
    path = figures.ROOT / "figures" / f"{name}.json"
    drawn_from = Image.open(path.with_suffix(".png")).text["Source"]
    assert drawn_from == figures.digest(json.loads(path.read_text())), "python -m lab.figures"


def test_when_it_thinks():
    """Two bars, and a dot for each seed."""
    axis, result = plt.figure().add_subplot(), made_up("when", 0.5)
    figures.draw_choice(axis, result, "released")
    assert [bar.get_width() for bar in axis.patches] == [50, 50]
    assert [len(line.get_xdata()) for line in axis.lines] == [2, 2]


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
    assert code == 2 and "no " in err and "wolrds.json, only worlds" in err and err.count("\n") == 1
