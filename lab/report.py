"""What came out of an experiment: tables, which predictions held, and a page with all of it.

    python -m lab.experiments report        # figures/report.html

A result is what figures/NAME.json holds (experiments.collect). Everything here is a function of it,
so a table, a verdict or a page needs no run. The stories alone need a checkpoint. What a thought
says is looked up in lab.probe's dictionary, and on a text it is counted. What the answer would have
been, had another cup been written there, is found by writing it.

Left out on purpose: figures, which are figures.py's; anything that trains; scripts in the page.
Pointing, the tab key and tapping are CSS.
"""
import base64
import html
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from command import write_whole
from data import LETTERS
from lab.page import html_page
from lab.probe import (
    LONG, NAMES, THEN, WhatIf, answers_after, first_case, make_dictionary, opened, stories, what_if,
    windows)
from next_token import answer_prompt
from rollout import GREEDY, Luck, Rollout
from run import Run
from task import read_spec
from tokenizer import Tokenizer

SHOWN = (1, 3, 6, 10, 30)  # n of the tables, where an experiment names no others
# Student's t for 1, 2, ... degrees of freedom
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
OTHERS = ("another", "shuffled", "constant", "random")  # thoughts that are not the model's own
FOUR = ("early", "mistake", "paraphrase", "filler")  # interventions after arXiv 2307.13702
# columns of the table of chains that were cut: whose, and moves of the rounds
CUT_SHOWN = (("tokens, full", 1), ("tokens, full", 2), ("tokens, full", 10), ("tokens, window", 10))
GAINED_AT = (3, 6, 10)  # n of the table of what thoughts gain
FOLLOWED = (3, 10)  # moves of the rounds that are followed through the training
STEPS_SHOWN = 3  # most checkpoints of an arm in the table
# the panels of view depth, whose arms are called "S3, none, 1 layer"
GROUPS = ("S3", "Z6")
APPROACHES, NUMBERS = ("stream", "teacher"), (8, 16, 64, 256, 2048, 16384)  # arms of view rows
LENGTHS_TOLD = (2, 3, 4, 6, 10)  # moves of the stories on the page
FEW = 20  # thoughts on a text of which too little is known
Claim = tuple[str, Callable[[dict], bool]]  # a sentence, and whether a result says so


LENGTHS = ((41, 100), (101, 200), (201, 500))  # symbols of the rows of view regular


# Numbers of a result

def interval(values) -> tuple[float, float]:
    """Mean and half of its 95 % interval over seeds (Student's t); one seed has none."""
    x = np.array(values)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    t = T95[min(len(x) - 2, len(T95) - 1)]  # from eleven seeds on a little too wide
    return float(x.mean()), float(t * x.std(ddof=1) / len(x) ** 0.5)


def said(command: str, key: str, default: float) -> float:
    """What a command says of its game: `m` of --data "cups m=5"."""
    words = shlex.split(command)
    data = words[words.index("--data") + 1] if "--data" in words else "cups"  # as on a CPU
    return (read_spec(data) or {}).get(key, default)


def right_by_n(result: dict, arm: str, key: str = "accuracy_by_n") -> np.ndarray:  # -> [seeds, 30]
    return np.array([s[key] for s in result["arms"][arm]["seeds"]])


def mean_at(result: dict, arm: str, n: int, key: str = "accuracy_by_n") -> float:
    return float(right_by_n(result, arm, key)[:, n - 1].mean())


def scores(result: dict, arm: str, key: str = "accuracy") -> np.ndarray:  # -> [seeds]
    """regular: the share right of all rows."""
    return np.array([s[key] for s in result["arms"][arm]["seeds"]])


def nats(result: dict, arm: str, thoughts: str = "own") -> np.ndarray:  # -> [seeds]
    """text: per held-out character, with these thoughts."""
    return np.array([s["nats"][thoughts] for s in result["arms"][arm]["seeds"]])


def taken_off(result: dict, arm: str) -> np.ndarray:  # -> [seeds]
    """text: nats that a model with thoughts needs less than those that never had any and see as
    much. arm: "ids, 2"."""
    return nats(result, f"none, {arm.split(', ')[1]}").mean() - nats(result, arm)


def kls(result: dict, arm: str, thoughts: str = "own") -> np.ndarray:  # -> [seeds]
    """judged: reverse KL to the judge, in nats per character of own text, with these thoughts."""
    return np.array([s["kl"][thoughts] for s in result["arms"][arm]["seeds"]])


def reach(result: dict, arm: str) -> np.ndarray:  # -> [seeds]
    """Up to which n nine in ten first rounds are right, at each n up to it."""
    right = right_by_n(result, arm, "accuracy_first_by_n") >= 0.9
    return right.cumprod(1).sum(1)  # the product is 0 from the first gap on


def unaided(result: dict) -> int:
    """The largest n up to which `none, full` gets nine in ten first rounds right."""
    right = right_by_n(result, "none, full", "accuracy_first_by_n").mean(0) >= 0.9
    return len(right) if right.all() else int(right.argmin())  # argmin: the first False


def in_layers(count: int) -> str:
    return f"{count} layer{'s' * (count > 1)}"


def slope(by_n: list[float]) -> float:
    """Of thoughts in a round against its moves: thoughts per move."""
    return float(np.polyfit(range(1, len(by_n) + 1), by_n, 1)[0])


def arms_with(result: dict, key: str) -> dict[str, list[dict]]:
    """The arms of whose runs this was noted: {arm: its seeds}."""
    arms = result["arms"].items()
    return {arm: found["seeds"] for arm, found in arms if key in found["seeds"][0]}


def probed(result: dict) -> dict[str, list[dict]]:
    """The arms that lab.probe has looked at: {arm: what it found, one per seed}."""
    return {arm: [s["probe"] for s in seeds] for arm, seeds in arms_with(result, "probe").items()}


def courses(result: dict) -> dict[str, list[list[dict]]]:
    """The arms that kept checkpoints on the way: {arm: what was found at each of them
    (experiments.course), one list per seed}."""
    return {arm: [s["course"] for s in seeds] for arm, seeds in arms_with(result, "course").items()}


def parts(result: dict) -> dict[str, np.ndarray]:  # -> [seeds, 30] each
    """What thoughts gain over none, split up, seed by seed.

    compute: places to compute in, without content (filler). recipe: what the same way of training
    gives with thoughts that no reward ever chose. content: what is left, so what thoughts say.
    """
    none, filler, random, own = (right_by_n(result, f"{arm}, full")
                                 for arm in ("none", "filler", "random policy", "tokens"))
    return {"compute": filler - none, "recipe": random - filler, "content": own - random,
            "all": own - none}


def followed(found: dict) -> float:
    """Of all wrong words that were written, the share whose answer follows them."""
    return sum(found["counterfactual"]["follows"]) / max(sum(found["counterfactual"]["written"]), 1)


def by_distance(seeds: list[dict]) -> np.ndarray:
    """Share of wrong words that answers follow, all seeds together, by how many moves come after
    the word."""
    follows, written = (np.sum([x["counterfactual"][what] for x in seeds], 0)
                        for what in ("follows", "written"))
    return follows / np.maximum(written, 1)


def cut(result: dict) -> list[int]:
    """How many moves the rounds had whose chains were cut."""
    return [int(m) for m in next(iter(probed(result).values()))[0]["aoc"]["early"]]


def areas(result: dict, arm: str, name: str, m: int) -> list[float]:
    """Over the curve of one intervention, in rounds of m moves, by seed."""
    return [x["aoc"][name][str(m)] for x in probed(result)[arm]]


def mean_area(result: dict, arm: str, name: str, m: int) -> float:
    return float(np.mean(areas(result, arm, name, m)))


def right_and_area(result: dict, arm: str, n: int) -> list[list[tuple[float, float]]]:
    """Of each seed, for each checkpoint: the share of right answers at n, and the area of early
    answering in rounds of n."""
    return [[(x["accuracy_by_n"][n - 1], x["early"][str(n)]) for x in course]
            for course in courses(result)[arm]]


def updates_to(result: dict, arm: str, share: float = 0.9) -> np.ndarray:  # -> [seeds]
    """After how many updates an evaluation first found this share of answers right, a mean over
    n = 1 to 10. Infinite: none did."""
    curves = [s["curve"] for s in result["arms"][arm]["seeds"]]
    return np.array([next((step for step, right in zip(x["step"], x["accuracy"])
                           if right >= share), np.inf) for x in curves])


def as_words(result: dict, arm: str, which: int = -1) -> np.ndarray:  # -> [seeds]
    """Mean log p of thoughts for the base, which reads them as words. which: evaluation."""
    return np.array([s["curve"]["thoughts_as_text"][which] for s in result["arms"][arm]["seeds"]])


def named(result: dict) -> list[str]:
    """The arms whose thoughts were read as words."""
    return [arm for arm, found in result["arms"].items()
            if "thoughts_as_text" in found["seeds"][0]["curve"]]


def verdicts(claims: list[Claim], result: dict) -> list[tuple[str, bool]]:
    return [(text, bool(holds(result))) for text, holds in claims]


def in_words(judged: list[tuple[str, bool]]) -> str:
    return " ".join(f"{text} [{'held' if held else 'did NOT hold'}]" for text, held in judged)


# Tables, in Markdown

def cell(values, digits: int = 0) -> str:
    """values: one number per seed."""
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half == half else "")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> list[str]:
    """The first two lines of a table."""
    return [row(*cells), "|---" * len(cells) + "|"]


def seconds(seeds: list[dict]) -> float:
    """Of a run: a median, as a few were made while other work went on."""
    return float(np.median([s["seconds"] for s in seeds]))


def at_each(ns: Iterable[int]) -> list[str]:
    return [f"n = {n}" for n in ns]


def right_at(result: dict, arm: str, *ns: int) -> list[str]:
    """Per cent right at each of these n, as cells."""
    return [cell(100 * right_by_n(result, arm)[:, n - 1]) for n in ns]


def table(result: dict) -> str:
    """Per cent right by n, mean and 95 % interval over seeds, and seconds, a median. Then what the
    view adds. Some views have tables of their own."""
    if result.get("view") in TABLES:
        return "\n".join(TABLES[result["view"]](result))
    shown = [n for n in result.get("shown", SHOWN) if n != 6]  # which is like 3 or 10
    lines = head("arm", *at_each(shown), "seconds")
    for arm, found in result["arms"].items():
        right = 100 * right_by_n(result, arm)
        lines.append(row(arm, *(cell(right[:, n - 1]) for n in shown),
                         f"{seconds(found['seeds']):.0f}"))
    more = MORE_ROWS.get(result.get("view"))
    return "\n".join(lines + (more(result) if more else []))


def regular_table(result: dict) -> list[str]:
    """Per cent right by the number of symbols, and with another's thoughts."""
    lines = head("right, %", *(f"{a} to {b} symbols" for a, b in LENGTHS), "another's thoughts")
    for arm, found in result["arms"].items():
        seeds = found["seeds"]
        cells = [cell(column) for column in 100 * np.array([s["by_length"] for s in seeds]).T]
        other = [100 * s["accuracy_another"] for s in seeds if "accuracy_another" in s]
        lines.append(row(arm, *cells, cell(other) if other else "-"))
    return lines


def text_table(result: dict) -> list[str]:
    """Nats per held-out character by own thoughts and by others; and what thoughts say, for those
    that lab.probe has read."""
    lines = head("arm", "nats", "taken off", "with another's", "updates", "seconds")
    says = {}
    for arm, found in result["arms"].items():
        seeds, own = found["seeds"], nats(result, arm)
        thinks = "another" in seeds[0]["nats"]
        if "probe" in seeds[0]:
            says[arm] = [s["probe"].get("says", {}) for s in seeds]
        lines.append(row(
            arm, cell(own, 3),
            "" if "--thoughts none" in found["command"] else cell(taken_off(result, arm), 3),
            cell(nats(result, arm, "another"), 3) if thinks else "",
            str(seeds[0]["step"]), f"{seconds(seeds):.0f}"))
    back = sorted({int(k) for seeds in says.values() for k in seeds[0] if k.isdigit()})
    keys = {"next": "the next"} | {str(k): f"{k} back" for k in back}
    lines += ["", *head("a thought says, in nats, of", *keys.values(), "thoughts asked, %")] if (
        says) else []
    for arm, seeds in says.items():
        cells = [cell([s[k] for s in seeds], 2) if all(k in s for s in seeds) else ""
                 for k in keys]
        lines.append(row(arm, *cells, cell([100 * s.get("asked", 0) for s in seeds])))
    return lines


def by_token(result: dict, arm: str, kind: str, key: str) -> np.ndarray:  # -> [seeds, kinds]
    """forgotten: of each kind of token what probe.nats_by_token counts, `off` or `thinks`."""
    return np.array([s["by_token"][kind][key] for s in result["arms"][arm]["seeds"]])


def after_none(result: dict, arm: str, key: str) -> np.ndarray:  # -> [seeds]
    """forgotten: the same of characters after one that is no letter."""
    return by_token(result, arm, "letters", key)[:, 0]


def after_letters(result: dict, arm: str, key: str) -> np.ndarray:  # -> [seeds]
    """forgotten: and of those after two, three and four letters, equally weighed."""
    return by_token(result, arm, "letters", key)[:, 2:LONG].mean(1)


def forgotten_table(result: dict) -> list[str]:
    """As of a text, without the arms that stand there. Then, by the letters before a character,
    what is taken off; of a model that is set free it is which characters are thought about."""
    arms = arms_with(result, "by_token")
    lines = [line for line in text_table(result) if not line.startswith("| none, ")]
    lines += ["", *head("letters before it", *map(str, range(LONG)), f"{LONG} and more")]
    shares = by_token(result, next(iter(arms)), "letters", "share")
    lines.append(row("of all characters, %", *(f"{100 * x:.0f}" for x in shares.mean(0))))
    for arm in arms:
        if "--think free" in result["arms"][arm]["command"]:
            lines.append(row(f"{arm}: thought about, %", *(
                cell(100 * x) for x in by_token(result, arm, "letters", "thinks").T)))
        else:
            lines.append(row(f"{arm}: nats taken off", *(
                cell(x, 2) for x in by_token(result, arm, "letters", "off").T)))
    return lines


def judged_table(result: dict) -> list[str]:
    """Reverse KL to the judge, with other thoughts, and without them."""
    others = {"another": "with another's", "none": "without thoughts"}
    lines = head("arm", "reverse KL, nats", *others.values(), "updates")
    for arm, found in result["arms"].items():
        one, own = found["seeds"][0], kls(result, arm)
        cells = [cell(kls(result, arm, k), 3) if k in one["kl"] else "-" for k in others]
        lines.append(row(arm, cell(own, 3), *cells, str(one["step"])))
    return lines


def when_rows(result: dict) -> list[str]:
    """By seed, how often it thinks after which moves; and what other thoughts do."""
    arm, = probed(result)
    seeds = result["arms"][arm]["seeds"]
    columns = {
        "thinks after moves that move the ball, %": [
            f"{100 * s['thinks_after_moved']:.1f}" for s in seeds],
        "elsewhere, %": [f"{100 * s['thinks_elsewhere']:.1f}" for s in seeds],
        "thoughts a move": [f"{slope(s['thoughts_by_n']):.2f}" for s in seeds],
        "drawn: after a story's first move, %": [
            f"{100 * s['probe']['after_which']['first']:.0f}" for s in seeds]}
    lines = ["", *head("arm, by seed", *columns), row(arm, *map(", ".join, columns.values()))]
    return lines + other_thoughts(result, arm)


def other_thoughts(result: dict, arm: str) -> list[str]:
    """What is left of an arm's answers with thoughts that are not its own."""
    kinds = ("own", *OTHERS)
    right = {name: [100 * x["accuracy_by_n"][name][9] for x in probed(result)[arm]]
             for name in kinds}
    return ["", *head(f"`{arm}` with thoughts", *(NAMES[name] for name in kinds)),
            row("right at n = 10, %", *(cell(right[name]) for name in kinds))]


def content_table(result: dict) -> list[str]:
    """What the gain of `tokens, full` is made of, and other thoughts written into it."""
    lines = head("points gained over `none, full`", *at_each(GAINED_AT))
    lines += [row(name, *(cell(100 * x[:, n - 1]) for n in GAINED_AT))
              for name, x in parts(result).items()]
    return lines + other_thoughts(result, "tokens, full")


def depth_table(result: dict) -> list[str]:
    """How far each arm reaches, in both groups."""
    lines = head("90 % of first rounds right up to n", *GROUPS)
    for arm in (arm[4:] for arm in result["arms"] if arm.startswith(GROUPS[0])):
        lines.append(row(arm, *(cell(reach(result, f"{g}, {arm}"), 1) for g in GROUPS)))
    return lines


def faithful_table(result: dict) -> list[str]:
    """Areas over the curve by moves, and what becomes of wrong words."""
    found, kept = probed(result), "first ones kept, "
    lines = head(f"AOC, {kept[:-2]}", *(f"{arm}, n = {m}" for arm, m in CUT_SHOWN))
    for name in FOUR:
        cells = [cell(areas(result, arm, name, m), 2) for arm, m in CUT_SHOWN]
        lines.append(row(THEN[name].removeprefix(kept), *cells))
    lines += ["", *head("another cup's word written", "answer follows it, %",
                        "thoughts with a synonym, %", "own thoughts fed again")]
    for arm, seeds in found.items():
        cells = [cell([100 * x for x in column], 1) for column in (
            map(followed, seeds), (x["synonyms"] for x in seeds))]
        again = "no change" if all(x["spliced"] for x in seeds) else "CHANGED"
        lines.append(row(arm, *cells, again))
    return lines


def training_table(result: dict) -> list[str]:
    """Right answers and areas at some steps of training, among those that all seeds came to."""
    lines = head("arm", "step", *(f"right at n = {n}, %" for n in FOLLOWED),
                 *(f"AOC, n = {n}" for n in FOLLOWED))
    for arm, seeds in courses(result).items():
        by_step = [{x["step"]: x for x in course[:-1]} for course in seeds]
        steps = sorted(set.intersection(*map(set, by_step)))
        every = max(1, -(-len(steps) // STEPS_SHOWN))  # rounded up
        for step in steps[(len(steps) - 1) % every::every]:
            found = [x[step] for x in by_step]
            cells = [cell([100 * x["accuracy_by_n"][n - 1] for x in found]) for n in FOLLOWED]
            cells += [cell([x["early"][str(n)] for x in found], 2) for n in FOLLOWED]
            lines.append(row(arm, str(step), *cells))
    return lines


def waterfall_table(result: dict) -> list[str]:
    """Per cent right, where one part is taken away."""
    shown, arms = (1, 10), (arm for arm in result["arms"] if not arm.startswith("repaired"))
    return head("arm", *at_each(shown)) + [row(arm, *right_at(result, arm, *shown))
                                           for arm in arms]


def alphabet_table(result: dict) -> list[str]:
    """How soon it is learnt, and how likely thoughts are as words, at birth and at the end."""
    lines = head("arm", "n = 10", "updates until 90 % right, a median",
                 "log p of thoughts as words: at birth", "at the end")
    for arm in result["arms"]:
        soon, likely = np.median(updates_to(result, arm)), ["", ""]
        if arm in named(result):
            likely = [cell(as_words(result, arm, which), 1) for which in (0, -1)]
        lines.append(row(arm, *right_at(result, arm, 10),
                         "never" if np.isinf(soon) else f"{soon:.0f}", *likely))
    return lines


def rows_table(result: dict) -> list[str]:
    """Updates to the end of the curriculum, and how many rows speak."""
    columns = ("n = 10", "updates")  # (a median)
    lines = head("rows", *(f"{x}: {column}" for x in APPROACHES for column in columns),
                 f"{APPROACHES[0]}: rows in use (perplexity)")
    for N in NUMBERS:
        arms, cells = [f"{x}, N = {N}" for x in APPROACHES], []
        for arm in arms:
            updates = np.median([s["step"] for s in result["arms"][arm]["seeds"]])
            cells += [*right_at(result, arm, 10), f"{updates:.0f}"]
        used = [x["usage"]["perplexity"] for x in probed(result)[arms[0]]]
        lines.append(row(str(N), *cells, cell(used)))
    return lines


# Views with a table of their own
TABLES = {"regular": regular_table, "text": text_table, "judged": judged_table,
          "forgotten": forgotten_table, "content": content_table, "faithful": faithful_table,
          "training": training_table, "depth": depth_table, "waterfall": waterfall_table,
          "alphabet": alphabet_table, "rows": rows_table}
# What the table of an experiment has at its end, by its view
MORE_ROWS = {"when": when_rows}


# The page

class Told(NamedTuple):
    """For html_page: stories, and one note for each of a story's thoughts."""
    stories: list[str]
    notes: list[list[str]]
    blue: str = "own text"  # what is shown in that colour


def told_stories(path: Path, seed: int = 0, each: int = 2) -> Told:
    """Held-out stories with a checkpoint's thoughts and its answer, rows of a task, or windows of a
    text. Raises ValueError where thoughts have no words."""
    run = opened(path)
    if run.is_task:
        return told_rows(run, 5 * each)
    spec = read_spec(run.settings.data)
    if spec is None and run.rules.persist and len(run.model.think) > 1:
        return told_text(run, 2 * each)
    one_ball = spec is not None and spec.get("balls", "one") == "one"
    if not one_ball or not run.rules.persist or len(run.model.think) < 2:
        raise ValueError(f"{path}: the page looks thoughts up, as ids that stay in the text: it "
                         "takes a run of --approach stream or teacher on a text, a task, or cups "
                         "with one ball")
    words, _ = make_dictionary(run, 512, seed)  # counted in 512 stories
    told = Told([], [])
    for m in LENGTHS_TOLD:
        # m moves with a comma or a dot each, " Where", "?" and the answer. 4200: no other table's
        case = stories(run, each, 2 * m + 3, seed, 4200 + m, exact=m)
        found = what_if(case, words)
        for r, ids in enumerate(case.own.kept()):
            ids[-1] = int(found.answer[r])  # all is given, but the last word is the model's
            verdict = "correct" if ids[-1] == case.text.ids[r, -1] else "not correct"
            shown = run.tokenizer.show(ids, len(ids) - 1, "html")
            told.stories.append(f"{shown}  ({verdict})")
            told.notes.append(notes_of(case.own, r, found, run.tokenizer))
    return told


def told_rows(run: Run, count: int) -> Told:
    """Held-out rows of a task, answered greedily. Of each thought: which answers come after it,
    where it is a prompt's last one."""
    case, told, V = first_case(run, 64, 0), Told([], [], "own answer"), run.model.config.vocab_size
    says = answers_after(case, run)
    rows = sorted(run.source.eval, key=lambda x: x.level)
    for x in rows[::max(1, len(rows) // count)][:count]:
        answer_ids = x.ids[x.start:]
        ro = answer_prompt(run.model, run.rules, x.ids[:x.start], x.slots, len(answer_ids),
                           dials=GREEDY, luck=Luck(0, 0, "eval_rollout"))
        ids = ro.kept()[0]
        right = ro.text[0, x.start:].tolist() == answer_ids
        prompt = len(ids) - len(answer_ids)
        shown = run.tokenizer.show(ids[:-1], prompt, "html")  # without the answer's end
        told.stories.append(f"{shown}  ({'correct' if right else 'not correct'})")
        told.notes.append([f"{run.tokenizer.name(i)}: "
                           + says.get(str(i - V), "it was no prompt's last thought")
                           for i in ids if i >= V])
    return told


def told_text(run: Run, count: int) -> Told:
    """Held-out windows of a text. Of each thought: what stood out of sight where the same one was
    thought after the same token, and what came next; and the same whatever was thought."""
    case, tokenizer = first_case(run, windows(run), 0), run.tokenizer
    told = Told([], [], "held-out text")
    own, w = case.own, run.rules.window
    text, behind, coming = own.text.tolist(), {}, {}  # by thought and token, and by the token alone
    places = [(r, int(own.ids[r, t]), int(own.after[r, t]))
              for r, t in own.is_think.nonzero().tolist()]
    for r, z, at in places:
        for key in ((z, text[r][at]), (None, text[r][at])):
            if 0 < w <= at:
                behind.setdefault(key, Counter())[text[r][at - w]] += 1
            if at + 1 < len(text[r]):
                coming.setdefault(key, Counter())[text[r][at + 1]] += 1

    def likeliest(found: dict, z: int | None, seen: int) -> str:
        counts = found.get((z, seen), Counter())
        if counts.total() < FEW:
            return "too few to say"
        said = ", ".join(f"{tokenizer.decode([i])!r} {n / counts.total():.0%}"
                         for i, n in counts.most_common(3))
        return said if z is None else (
            f"{said}; with any thought {likeliest(found, None, seen)}")
    told.notes.extend([] for _ in range(count))
    for r, z, at in places:
        if r < count:
            seen = text[r][at]
            times = coming.get((z, seen), Counter()).total()
            note = [f"{tokenizer.name(z)} after {tokenizer.decode([seen])!r}, {times} times"]
            note += [f"  before that, out of sight: {likeliest(behind, z, seen)}"] * (w > 0)
            note.append(f"  what comes next: {likeliest(coming, z, seen)}")
            told.notes[r].append("\n".join(note))
    kept = own.rows(slice(count)).kept()
    told.stories.extend(tokenizer.show(ids, own.P, "html") for ids in kept)
    return told


def notes_of(own: Rollout, r: int, found: WhatIf, tokenizer: Tokenizer) -> list[str]:
    """Of the thoughts in row r: the cup that each stands for, and the answers had another cup's
    word stood there."""
    words, notes = [w.strip() for w in tokenizer.words()], []
    for t in own.is_think[r].nonzero().squeeze(1).tolist():
        # one answer for each cup that could have been written
        instead = [words[i] if i >= 0 else None for i in found.instead[r, t].tolist()]
        notes.append(note(tokenizer.name(int(own.ids[r, t])), int(found.stands[r, t]),
                          int(found.true[r, t]), instead))
    return notes


def note(word: str, cup: int, true: int, instead: list[str | None]) -> str:
    """What is shown of one thought. instead: the answer had the word for each cup stood there,
    None where there is no word."""
    if cup >= 0:
        says = f"says: the ball is under {LETTERS[cup]} now"
    else:
        says = "is not in the dictionary beside this move"
    really = "true" if cup == true else f"it is under {LETTERS[true]}"
    lines = [f"{word} {says} ({really})"]
    for other, answer in enumerate(instead):
        had = "by the id most used for it" if other == cup else "written instead"
        then = f"the answer is {answer}" if answer else "there is no word for it"
        lines.append(f"  {LETTERS[other]} {had}: {then}")
    return "\n".join(lines)


def html_table(markdown: str) -> str:
    """Tables of Markdown, a blank line between two of them -> html."""
    out = []
    for block in markdown.split("\n\n"):
        rows = [[html.escape(c.strip().replace("`", "")) for c in line.strip("|").split("|")]
                for line in block.splitlines()]
        kinds = ["th"] + ["td"] * (len(rows) - 2)  # the second line is a rule
        body = "".join(
            "<tr>" + "".join(f"<{kind}>{c}</{kind}>" for c in cells) + "</tr>"
            for kind, cells in zip(kinds, [rows[0], *rows[2:]]))
        out.append(f"<table>{body}</table>")
    return "".join(out)


def section(name: str, result: dict, judged: list[tuple[str, bool]], picture: Path) -> str:
    """One experiment on the page. The picture is in the page itself, which needs no other file."""
    claims = "".join(
        f"<li>{html.escape(text)} <b>{'held' if held else 'did not hold'}</b></li>"
        for text, held in judged)
    image = ""
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()
        image = f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
    return (f"<h2>{html.escape(name)}</h2><p>{html.escape(result['question'])}</p>Predicted:"
            f"<ul>{claims}</ul>{image}{html_table(table(result))}"
            f"<p>{html.escape(result['command'])}</p>")


def write_page(out: Path, sections: list[str], checkpoint: Path | None) -> None:
    """checkpoint: whose stories it tells; None: none."""
    told = told_stories(checkpoint) if checkpoint else Told([], [])
    hint = ("Point at a thought, tab to it or tap it: what it says, and on cups what the answer "
            "would be had it said something else. On a text: what stood out of sight, and what "
            "comes next. On cups a ball is under one of them, and moves move it. "
            f"Rows of {checkpoint}. README.md explains the game, docs/RESULTS.md the "
            "tables below.")
    page = html_page(told.stories, "Thinking tokens: stories and results", True, told.notes, hint,
                     "".join(sections), told.blue)
    write_whole(out, page.encode("utf-8", "replace"))
