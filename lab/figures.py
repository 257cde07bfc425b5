"""Figures of experiments: each says one thing, in the sentence above it.

    python -m lab.figures              # all of them again, from figures/NAME.json: no run is made

A figure is a function of a result (experiments.collect). Its sentence has a check. Where the result
does not bear it out, the experiment's question stands there instead. Lines have their names at
their ends. A thin line or a dot is a seed. The picture holds the hash of its json.

Left out on purpose: predictions, which stand with their verdicts in docs/RESULTS.md; numbers, which
stand in its tables. Knows report.py and, of probe.py, how long words get.
"""
import hashlib
import json
import re
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import command
from lab.probe import LONG
from lab.report import (
    APPROACHES, GROUPS, NUMBERS, Claim, areas, arms_with, as_words, by_token, courses, cut,
    in_layers, kls, mean_area, mean_at, named, nats, parts, probed, reach,
    right_and_area, right_by_n, said, scores, taken_off, updates_to)
from settings import Parser
from tokenizer import CSS

ROOT = Path(__file__).resolve().parent.parent
WIDE, HIGH, DOTS = 8, 4, 110  # inches, and dots of each: as wide as a page shows it
TRAINED = 10  # moves of the longest rounds in training, where a world sets no others
THIN = dict(lw=0.6, alpha=0.35)  # a seed
# view depth: arms of each group, and what they are called
DEPTHS = {f"{kind}, {in_layers(k)}": f"{name}, {in_layers(k)}" for kind, name, layers in (
    ("none", "no thoughts", (1, 2, 4)), ("filler", "one id for all", (1, 4)),
    ("tokens", "ids", (1,)), ("continuous", "vectors", (1, 2)), ("oracle", "the truth", (1,)))
    for k in layers}
NO_THOUGHTS = "no thoughts"
TAKEN = {"the recipe": "the recipe", "full attention": "without a window",
         "no curriculum": "without a curriculum", "no entropy bonus": "without entropy bonus",
         "baseline: mean of the batch": "compared with the batch",
         "no baseline": "compared with nothing", "gamma 0.5": "credit for a few tokens",
         "answers by reward alone": "answers by reward alone"}
PUT_BACK = {"repaired: nothing yet": "nothing yet", "repaired: siblings": "+ siblings",
            "repaired: siblings, bonus": "+ entropy bonus", "no curriculum": "+ window",
            "the recipe": "+ curriculum: the recipe"}
CUT = {"mistake": "one wrong,\nthen its own", "early": "none", "filler": "one id for all",
       "paraphrase": "synonyms"}
ARMS = {"tokens, window": "ids", "continuous, window": "vectors",  # of channel
        "filler, full": "one id for all", "none, full, 4 layers": "none, 4 layers"}
WORLDS = {"5 cups, tokens": "five cups, ids", "3 balls, tokens": "all of three balls, ids",
          "5 cups, continuous": "five cups, vectors",
          "5 balls, continuous": "all of five balls, vectors"}
Panel = Callable[..., None]  # draws (axis, result)


class Figure(NamedTuple):
    """says: the sentence above it, and whether a result bears it out."""
    says: Claim
    panels: tuple[Panel, ...]


def draw(name: str, result: dict, path: Path) -> None:
    """The figure of an experiment. One that is not in FIGURES has all its arms in one panel."""
    plt, panel = command.pyplot(), PLAIN.get(result["view"], against_n)
    plain = Figure((result["question"], lambda r: True), (panel,))
    (sentence, holds), panels = FIGURES.get(name, plain)
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDE, HIGH), squeeze=False,
                                layout="constrained")
    for panel, axis in zip(panels, axes.flat):
        panel(axis, result)
        axis.spines[["top", "right"]].set_visible(False)
    title = sentence if holds(result) else result["question"]
    figure.suptitle(textwrap.fill(title, 88), x=0.01, ha="left")
    figure.savefig(path, dpi=DOTS, metadata={"Source": digest(result)})
    plt.close(figure)


def digest(result: dict) -> str:
    """Of what a figure is drawn from."""
    return hashlib.sha256(command.as_json(result).encode()).hexdigest()


# Parts of a panel

def name_ends(axis, ends: dict[str, tuple[float, str]]) -> None:
    """Right of the panel, at their heights and in their colours, but not over each other. ends: of
    each name its height and colour."""
    low, high = axis.get_ylim()
    order, gap = sorted(ends, key=lambda x: ends[x][0]), 0.075 * (high - low)
    at = [ends[name][0] for name in order]
    for i in range(1, len(at)):  # up, where the one below is too near
        at[i] = max(at[i], at[i - 1] + gap)
    at[-1] = min(at[-1], high)
    for i in reversed(range(len(at) - 1)):  # and down from the top
        at[i] = min(at[i], at[i + 1] - gap)
    for name, y in zip(order, at):
        axis.annotate(name, (1.02, y), xycoords=("axes fraction", "data"), va="center", size=9,
                      color=ends[name][1], annotation_clip=False)


def lines(axis, x, of: dict[str, np.ndarray], middle: Callable = np.mean) -> None:
    """A thin line for each seed, a thick one for their middle, and its name at the end. of: each
    [seeds, len(x)]."""
    ends = {}
    for i, (name, y) in enumerate(of.items()):
        axis.plot(x, y.T, color=f"C{i}", **THIN)
        axis.plot(x, middle(y, axis=0), color=f"C{i}", lw=2)
        ends[name] = (middle(y, axis=0)[-1], f"C{i}")
    name_ends(axis, ends)


def bars(axis, values: dict[str, np.ndarray]) -> None:
    """The first one on top; a dot for each seed."""
    axis.barh(list(values), [x.mean() for x in values.values()], color="C0", alpha=0.5)
    for i, x in enumerate(values.values()):
        axis.plot(x, [i] * len(x), "k.", ms=5, alpha=0.7)
    axis.invert_yaxis()


def chance(axis, value: float, of_bars: bool = False) -> None:
    """A dotted line, through bars an upright one, with its name."""
    draw_line = axis.axvline if of_bars else axis.axhline
    draw_line(value, color="grey", lw=0.8, ls=":")
    at = dict(xy=(value, 0.01), xycoords=("data", "axes fraction"), rotation=90, ha="right")
    if not of_bars:
        at = dict(xy=(0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axis.annotate("chance", color="grey", size=8, **at)


def shade(axis, n: int) -> None:
    """The lengths of training."""
    axis.axvspan(0.5, n + 0.5, color="grey", alpha=0.12, lw=0)
    axis.text((n + 1) / 2, 3, "trained", ha="center", color="grey", size=9)


# Panels

def against_n(axis, result: dict, arms: dict[str, str] | None = None, title: str = "",
              key: str = "accuracy_by_n") -> None:
    """Right answers against n. arms: their names in the figure; None: all, as they are."""
    arms = arms or {arm: arm for arm in result["arms"]}
    commands = [result["arms"][arm]["command"] for arm in arms]
    y = {name: 100 * right_by_n(result, arm, key) for arm, name in arms.items()}
    axis.set(xlabel="n, moves to follow until the answer", ylabel="answers right, %", title=title,
             ylim=(0, 103))
    lines(axis, range(1, len(next(iter(y.values()))[0]) + 1), y)
    for m in {said(x, "m", 3) for x in commands}:  # arms may live in different worlds
        chance(axis, 100 / m)
    lengths = {said(x, "swaps", TRAINED) for x in commands}
    if len(lengths) == 1:
        shade(axis, *lengths)


def draw_gain(axis, result: dict) -> None:
    """Stacked bars; a part that costs points stands below zero. Dots: the whole gain of a seed."""
    shown, split = result["shown"], parts(result)
    at, up, down = np.arange(len(shown)), np.zeros(len(shown)), np.zeros(len(shown))
    names = {"compute": "more places to compute in", "recipe": "training with random thoughts",
             "content": "what thoughts say"}
    for name, words in names.items():
        y = 100 * split[name].mean(0)[np.array(shown) - 1]  # [n shown]
        # up, down: how high and how low the bars reach so far
        axis.bar(at, y, 0.6, bottom=np.where(y > 0, up, down), label=words)
        up, down = up + y.clip(min=0), down + y.clip(max=0)
    seeds = 100 * split["all"][:, np.array(shown) - 1]  # [seeds, n shown]
    axis.plot(np.tile(at, len(seeds)), seeds.flatten(), "k.", ms=4, alpha=0.7)
    axis.axhline(0, color="grey", lw=0.8)
    axis.set_xticks(at, [str(n) for n in shown])
    axis.set(xlabel="n, moves to follow until the answer", ylabel="points gained by thoughts")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def draw_cut(axis, result: dict, arm: str) -> None:
    """Chains that go on in another way. From 0, where the answer stays, to the most there can be:
    what is kept is its own, so even if all else changed the answer the area would be smaller than
    1."""
    lengths = np.array(cut(result))
    axis.plot(lengths, 1 - 1 / (2 * lengths), color="grey", lw=0.8, ls=":")
    axis.set(xlabel="moves of the round", ylim=(-0.03, 1.03),
             ylabel="how often answers change (AOC)",
             title="its own thoughts up to a place, and then: (dotted: the most there can be)")
    lines(axis, lengths, {words: np.array([areas(result, arm, name, m) for m in lengths]).T
                          for name, words in CUT.items()})


def draw_course(axis, result: dict, arm: str, title: str, n: int = 10) -> None:
    """How many answers are right, and how much they depend on thoughts, against the step."""
    seeds = courses(result)[arm]
    shared = sorted(set.intersection(*({x["step"] for x in course} for course in seeds)))
    kept = [[pair for x, pair in zip(course, run) if x["step"] in shared]
            for course, run in zip(seeds, right_and_area(result, arm, n))]
    right, area = np.array(kept).transpose(2, 0, 1)  # [seeds, steps shared] each
    axis.set(title=title, xlabel="updates", ylabel="share of answers; AOC", ylim=(0, 1.03))
    chance(axis, 1 / 3)
    lines(axis, shared, {"right": right, "change with\nthe thoughts\n(AOC)": area})


def draw_recipe(axis, result: dict, arms: dict[str, str], title: str) -> None:
    """Right answers of these arms, a mean over n = 1 to 10."""
    bars(axis, {name: 100 * right_by_n(result, arm)[:, :10].mean(1) for arm, name in arms.items()})
    axis.set(title=title, xlim=(0, 103), xlabel="right, %, mean of n = 1 to 10")
    chance(axis, 100 / 3, of_bars=True)


def draw_worlds(axis, result: dict) -> None:
    """Right answers at three times the length of the first command's training."""
    arms = {f"{name} (trained to {said(result['arms'][arm]['command'], 'swaps', TRAINED)})": arm
            for arm, name in WORLDS.items()}
    bars(axis, {name: 100 * right_by_n(result, arm)[:, 29] for name, arm in arms.items()})
    axis.set(xlim=(0, 103), xlabel="answers right after thirty moves, %")


def draw_choice(axis, result: dict, arm: str) -> None:
    """After which moves a model thinks that may choose."""
    names = {"thinks_after_moved": "after moves that move the ball",
             "thinks_elsewhere": "after other moves"}
    bars(axis, {name: 100 * np.array([s[key] for s in result["arms"][arm]["seeds"]])
                for key, name in names.items()})
    axis.set(xlim=(0, 103), xlabel="moves with a thought after them, %")


def draw_reach(axis, result: dict, group: str, title: str) -> None:
    """Up to which n nine in ten first rounds are right."""
    arms = {f"{group}, {arm}": name for arm, name in DEPTHS.items()}
    bars(axis, {name: reach(result, arm) for arm, name in arms.items()})
    axis.set(title=title, xlim=(0, 31), xlabel="moves followed (90 % right)")
    if group != GROUPS[0]:
        axis.set_yticks([])


def draw_scores(axis, result: dict) -> None:
    """regular: right of all rows, with own thoughts and with another's."""
    found = {}
    for arm, it in result["arms"].items():
        name = arm.replace("_", " ")
        found[name] = 100 * scores(result, arm)
        if "accuracy_another" in it["seeds"][0]:
            found[f"{name}, another's"] = 100 * np.array([s["accuracy_another"]
                                                          for s in it["seeds"]])
    bars(axis, found)
    axis.set(xlim=(0, 103), xlabel="answers right at 41 to 500 symbols, %")


def draw_others(axis, result: dict, key: str, label: str) -> None:
    """judged, chess: a bar for what each arm has under this key with its own thoughts, and one for
    another's where it has that."""
    found = {}
    for arm, it in result["arms"].items():
        name = re.sub(", [0-9]+$", "", arm)  # all that have a window have the same
        name = name.replace("none", NO_THOUGHTS).replace("filler", "one id for all").replace(
            "base", f"{NO_THOUGHTS}, half the updates")
        for thoughts, bar in {"own": name, "another": f"{name}, another's"}.items():
            if thoughts in it["seeds"][0][key]:
                found[bar] = np.array([s[key][thoughts] for s in it["seeds"]])
    bars(axis, found)
    axis.set(xlabel=label)


draw_kls = partial(draw_others, key="kl",
                   label="reverse KL to the judge, nats per character of own text")


def draw_written(axis, result: dict) -> None:
    """judged: what seed 0 of two arms writes. Below, the second one's first letters, and after each
    the number of its thought."""
    font, width, y = dict(family="DejaVu Sans Mono", size=9, va="top"), 38, 0
    for arm in ("none", "ids"):
        prompt, new = result["arms"][arm]["written"]
        axis.text(0, y, NO_THOUGHTS if arm == "none" else arm, size=9, va="top", color="grey")
        text = re.sub("<think[0-9]+>", "", new)
        letters = [(x, "prompt") for x in prompt] + [(x, "text") for x in text]
        for i, (x, kind) in enumerate(letters):
            axis.text(i % width, y + 1 + i // width, x.replace("\n", "↵"), color=CSS[kind],
                      **font)
        y += 2.5 + len(letters) // width
    at = 0
    for x in [prompt[-1], *re.findall("<think[0-9]+>|.", new, re.S)]:
        thought = re.fullmatch("<think([0-9]+)>", x)
        shown = thought[1] if thought else x.replace("\n", "↵")
        if at + len(shown) > width:
            break
        axis.text(at, y - 0.5, shown, color=CSS["think" if thought else "text"], **font)
        at += len(shown) + bool(thought)
    axis.set(xlim=(0, width), ylim=(y + 0.8, -0.3), title="prompt, own text, and thoughts")
    axis.axis("off")


def draw_sight(axis, result: dict) -> None:
    """text: nats against the number of characters in sight, a line for each kind of thought that
    has an arm for all of them."""
    pairs = [arm.split(", ") for arm in result["arms"]]
    sights = sorted({int(w) for _, w in pairs if w.isdigit()})
    kinds = [kind for kind in dict.fromkeys(kind for kind, _ in pairs)
             if all([kind, str(w)] in pairs for w in sights)]
    lines(axis, sights, {NO_THOUGHTS if kind == "none" else kind: np.stack(
        [nats(result, f"{kind}, {w}") for w in sights], 1) for kind in kinds})
    for kind, w in pairs:
        if not w.isdigit():
            y = nats(result, f"{kind}, {w}").mean()
            axis.axhline(y, color="grey", lw=0.8, ls=":")
            axis.annotate(f"{NO_THOUGHTS}, {w}", (0.01, y), xycoords=("axes fraction", "data"),
                          color="grey", size=8, va="bottom")
    axis.set_xticks(sights)
    axis.set(xlabel="characters in sight", ylabel="nats per held-out character")


def draw_by_letters(axis, result: dict, arms: dict[str, str] | None = None,
                    key: str = "off") -> None:
    """forgotten: nats taken off, or the share that is thought about, by the letters of a word that
    stand right before a character. arms: of each its name; None: all that were counted."""
    arms = arms or {arm: arm for arm in arms_with(result, "by_token")}
    found = {name: by_token(result, arm, "letters", key) for arm, name in arms.items()}
    places = range(LONG + 1)
    lines(axis, places, found if key == "off" else {k: 100 * x for k, x in found.items()})
    axis.set_xticks(places, [*map(str, range(LONG)), f"{LONG}+"])
    axis.set(xlabel="letters right before the character",
             ylabel="nats taken off" if key == "off" else "thought about, %")
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))


def draw_soon(axis, result: dict) -> None:
    """After how many updates each run has 90 % right."""
    arms = list(result["arms"])
    soon = [updates_to(result, arm) for arm in arms]
    most = max((x for one in soon for x in one[np.isfinite(one)]), default=1.0)
    never = 1.2 * most
    for i, one in enumerate(soon):
        axis.plot(np.where(np.isfinite(one), one, never), [i] * len(one), "o", alpha=0.6,
                  color="C0")
    axis.set_yticks(range(len(arms)), arms)
    axis.axvline((most + never) / 2, color="grey", lw=0.8, ls="--")  # no number beyond it
    ticks = [x for x in range(0, int(most) + 1, 200)]
    axis.set_xticks([*ticks, never], [*map(str, ticks), "never"])
    axis.set(title="how soon it is learnt", xlabel="updates until 90 % right",
             xlim=(0, 1.05 * never), ylim=(len(arms) - 0.5, -0.5))


def draw_drift(axis, result: dict) -> None:
    """How likely thoughts are as words for the base, from birth to the end: means over seeds."""
    for i, arm in enumerate(result["arms"]):
        if arm in named(result):
            birth, end = (as_words(result, arm, which).mean() for which in (0, -1))
            axis.annotate("", (end, i), (birth, i), arrowprops=dict(arrowstyle="->", color="C0"))
            axis.plot([birth, end], [i, i], "o", color="C0", ms=4)
        else:
            axis.text(0, i, "no words", ha="right", va="center", color="grey", size=9)
    axis.set(title="thoughts as text: from birth to the end", xlim=(None, 0.3), yticks=[],
             xlabel="log p of a thought, read as a word", ylim=(len(result["arms"]) - 0.5, -0.5))


def by_number(result: dict, approach: str, of: Callable[[dict], float]) -> np.ndarray:
    """rows: `of` each run of an approach -> [seeds, numbers of rows]."""
    arms = [result["arms"][f"{approach}, N = {N}"] for N in NUMBERS]
    return np.array([[of(seed) for seed in arm["seeds"]] for arm in arms]).T


def in_rows(axis, **words) -> None:
    """An axis of N."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(NUMBERS, [f"{N:,}" for N in NUMBERS], size=8)
    axis.set(xlabel="N, thinking rows", **words)


def draw_updates(axis, result: dict) -> None:
    """Until the curriculum is climbed; the thick line is a median."""
    updates = {approach: by_number(result, approach, lambda s: s["step"])
               for approach in APPROACHES}
    in_rows(axis, title="updates until it is learnt",
            ylim=(0, 1.05 * max(x.max() for x in updates.values())))
    lines(axis, NUMBERS, updates, np.median)


def draw_in_use(axis, result: dict) -> None:
    """How many rows a code uses, against how many there are."""
    used = by_number(result, APPROACHES[0], lambda s: s["probe"]["usage"]["perplexity"])
    in_rows(axis, title="rows in use (perplexity)", ylim=(0, 1.05 * used.max()))
    lines(axis, NUMBERS, {APPROACHES[0]: used})


# of views whose arms have no n
PLAIN = {"regular": draw_scores, "text": draw_sight, "judged": draw_kls,
         "forgotten": draw_by_letters}

# What each figure says

def far_beyond(result: dict, *arms: str) -> bool:
    """Are 95 % right after thirty moves?"""
    return all(mean_at(result, arm, 30) >= 0.95 for arm in arms)


def lost(result: dict, *arms: str) -> bool:
    """Are answers a guess after a few moves?"""
    return all(mean_at(result, arm, 10) < 0.45 for arm in arms)


def some_fail(result: dict, *arms: str) -> bool:
    """Are there seeds in each of these arms that end right, and others that guess?"""
    right = [right_by_n(result, arm)[:, 9] for arm in arms]
    return all(x.min() < 0.45 and x.max() >= 0.95 for x in right)


def content_is_all(result: dict) -> bool:
    split = {name: x.mean(0) for name, x in parts(result).items()}
    return all(split["content"][n - 1] >= max(0.5, 0.9 * split["all"][n - 1])
               for n in (6, 10))


def answers_depend(result: dict) -> bool:
    """On own words, but not on which synonym stands there?"""
    arm, m = "tokens, full", 10
    cost = {name: mean_area(result, arm, name, m) for name in CUT}
    return cost.pop("paraphrase") < 0.1 < 0.4 < min(cost.values())


def depend_before_right(result: dict) -> bool:
    return all(any(right < 0.6 and area > 0.4 for right, area in run)
               for run in right_and_area(result, "tokens, window", 10))


def needs_thoughts_not_layers(result: dict) -> bool:
    short = (f"{g}, none, {in_layers(k)}" for g in GROUPS for k in (1, 2, 4))
    long = (f"{g}, {kind}, 1 layer" for g in GROUPS for kind in ("tokens", "continuous"))
    return (max(reach(result, arm).mean() for arm in short) < 7
            and min(reach(result, arm).mean() for arm in long) > 25)


def words_are_no_hindrance(result: dict) -> bool:
    soon = {arm: np.median(updates_to(result, arm)) for arm in ("new rows", "words")}
    birth, end = (as_words(result, "words", which).mean() for which in (0, -1))
    return bool(soon["words"] <= 1.2 * soon["new rows"] and end < birth - 2)


def longer_with_thoughts(result: dict) -> bool:
    return min(scores(result, arm).min() for arm in result["arms"]) >= 0.99


def say_where_little_is_seen(result: dict) -> bool:
    one, *more = (taken_off(result, f"ids, {w}") for w in (1, 2, 3))
    said = [s["probe"]["says"]["1"] for s in result["arms"]["ids, 1"]["seeds"]]
    return bool(one.min() >= 0.2 and min(said) > 0.3 and max(x.mean() for x in more) < 0.03)


def say_what_moves_were(result: dict) -> bool:
    none, filler, ids = (nats(result, f"{arm}, 5") for arm in ("none", "filler", "ids"))
    return bool(ids.max() < min(none.min(), filler.min()) - 0.03
                and abs(filler.mean() - none.mean()) < 0.03)


def nearer_with_ids(result: dict) -> bool:
    none, filler, ids = (kls(result, arm) for arm in ("none", "filler", "ids"))
    return bool(ids.max() < min(none.min(), filler.min()) - 0.1
                and abs(filler.mean() - none.mean()) < 0.05)


def thinks_after_letters(result: dict) -> bool:
    """forgotten: do ids take most off after one or two letters, and does it think after letters
    alone once it is free?"""
    off = by_token(result, "ids, 1", "letters", "off").mean(0)
    thinks = by_token(result, "ids set free, 1", "letters", "thinks")
    return bool(off[1:3].min() > max(off[0], *off[3:]) + 0.05
                and thinks[:, 1:].min() > 0.9 and thinks[:, 0].max() < 0.4)


def sixteen_are_enough(result: dict) -> bool:
    right = [right_by_n(result, f"{x}, N = 16")[:, 9].min() for x in APPROACHES]
    used = [x["usage"]["perplexity"] for x in probed(result)[f"{APPROACHES[0]}, N = 16384"]]
    return min(right) >= 0.95 and 25 <= np.mean(used) <= 40


def thinks_where_needed(result: dict) -> bool:
    return all(s["thinks_after_moved"] >= 0.95 and s["thinks_elsewhere"] <= 0.1
               for s in result["arms"]["released"]["seeds"])


FIGURES = {
    "channel": Figure(
        ("One thought per move carries the ball's place three times as far as training went. "
         "Places without content do not, though they see everything.",
         lambda r: far_beyond(r, "tokens, window", "continuous, window")
         and lost(r, "filler, full", "none, full, 4 layers")),
        (partial(against_n, arms=ARMS, title="all answers"),
         partial(against_n, arms=ARMS, title="first rounds alone", key="accuracy_first_by_n"))),
    "content": Figure(
        ("In rounds of six and ten moves, all that thoughts gain is what they say.",
         content_is_all),
        (draw_gain,)),
    "faithful": Figure(
        ("With everything in sight, answers depend on each thought, but not on which synonym "
         "stands there.", answers_depend), (partial(draw_cut, arm="tokens, full"),)),
    "training": Figure(
        ("With a window, other thoughts change the answer before it is right, in rounds of ten "
         "moves.", depend_before_right),
        (partial(draw_course, arm="tokens, window", title="with a window"),
         partial(draw_course, arm="tokens, full", title="with everything in sight"))),
    "waterfall": Figure(
        ("The recipe needs a window and a gradient for the answers. Without siblings, or credit "
         "beyond a few tokens, some seeds fail.",
         lambda r: far_beyond(r, "the recipe") and lost(
             r, "full attention", "answers by reward alone") and some_fail(
             r, "baseline: mean of the batch", "no baseline", "gamma 0.5")),
        (partial(draw_recipe, arms=TAKEN, title="one part taken away"),
         partial(draw_recipe, arms=PUT_BACK, title="put back, one by one"))),
    "when": Figure(
        ("Set free, at a price for each thought, it thinks after the moves that move the ball.",
         thinks_where_needed), (partial(draw_choice, arm="released"),)),
    "worlds": Figure(
        ("By reward alone ids follow a ball under five cups, and three balls at once, for thirty "
         "moves.", lambda r: far_beyond(r, "5 cups, tokens", "3 balls, tokens")),
        (draw_worlds,)),
    "direct": Figure(
        ("A model that answers at once learns by reward alone to think first. Then nearly all "
         "answers are right at thirty moves.",
         lambda r: far_beyond(r, "thoughts from there") and lost(r, "direct")),
        (partial(against_n, arms={"direct": "answers at once",
                                  "thoughts from there": "thinks first"},
                 title="first rounds alone", key="accuracy_first_by_n"),)),
    "depth": Figure(
        ("Without thoughts one layer or four follow a few moves. With one per move one layer "
         "follows thirty.", needs_thoughts_not_layers),
        (partial(draw_reach, group="S3", title="moves that do not commute"),
         partial(draw_reach, group="Z6", title="moves that are a sum"))),
    "rows": Figure(
        ("Sixteen thinking rows are enough for three cups. Of 16,384 some thirty are in use.",
         sixteen_are_enough), (draw_updates, draw_in_use)),
    "alphabet": Figure(
        ("Thoughts made of words are learnt as soon as new rows, and stop being probable text.",
         words_are_no_hindrance), (draw_soon, draw_drift)),
    "regular": Figure(
        ("Trained on up to 40 symbols, models that think are right at 41 to 500, in each of three "
         "tasks and five seeds.", longer_with_thoughts), (draw_scores,)),
    "text": Figure(
        ("With one character in sight ids say what came before. With two or three they take "
         "nothing off.", say_where_little_is_seen), (draw_sight,)),
    "chess": Figure(
        ("With about one move in sight, ids take nats off the next character. As many places with "
         "one id do not.", say_what_moves_were),
        (partial(draw_others, key="nats", label="nats per held-out character"),)),
    "judged": Figure(
        ("With one character in sight, thoughts in ids bring a model's own text nearer to its "
         "judge. As many places with one id do not.", nearer_with_ids),
        (draw_kls, draw_written)),
    "forgotten": Figure(
        ("Three thoughts that are forgotten take most off after one or two letters of a word. Set "
         "free at a price, it thinks after letters, and seldom elsewhere.", thinks_after_letters),
        (partial(draw_by_letters, arms={
            "none, 3": f"{NO_THOUGHTS}, three in sight", "ids, 1": "ids",
            "filler, 1": "one id for all"}),
         partial(draw_by_letters, arms={"ids set free, 1": "ids, set free"}, key="thinks"))),
}


# The command

def main() -> None:
    p = Parser(prog="lab.figures", description=command.first_line(__doc__), allow_abbrev=False)
    p.add_argument("names", nargs="*", metavar="NAME", help="of an experiment with a result (all)")
    names, folder = p.parse_args().names, ROOT / "figures"
    there = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    there = {name: found for name, found in there.items() if "question" in found}
    if missing := [name for name in names if name not in there]:
        p.error(f"there is no {folder / missing[0]}.json, only {', '.join(there)}: "
                "python -m lab.experiments lists what makes others")
    for name in names or there:
        draw(name, there[name], folder / f"{name}.png")
        print(f"{folder / name}.png is drawn")


if __name__ == "__main__":
    command.run(main)
