"""What came out of an experiment: tables, figures, which predictions held, and one page with all of it.

    python -m lab.experiments report        # figures/report.html: results, and stories whose thoughts answer to the mouse

A result is what figures/NAME.json holds (experiments.collect). Everything here is a function of it, so a table, a verdict or a
page can be made again without a run. The stories alone need a checkpoint: what a thought says is looked up in probe.py's
dictionary, and what the answer would have been had another cup been written there was tried out beforehand, by rewriting.

Left out on purpose: scripts in the page (pointing, the tab key and tapping are CSS), anything that trains.
"""
import base64
import html
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from data import LETTERS, Cups
from lab.probe import NAMES, THEN, make_dictionary, opened, stories, what_if
from tokenizer import Tokenizer, html_page

SHOWN = (1, 2, 3, 6, 10, 20, 30)  # n of the tables, where an experiment names no others
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t for 1, 2, ... degrees of freedom
OTHERS = ("another", "shuffled", "constant", "random")  # thoughts that are not the model's own
FOUR = ("early", "mistake", "paraphrase", "filler")  # interventions after arXiv 2307.13702
BELOW = dict(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)  # a legend
FOLLOWED = (1, 3, 10)  # moves of the rounds that are followed through the training
GROUPS, LAYERS = ("S3", "Z6"), (1, 2, 4)  # the panels of view depth, whose arms are called "S3, none, 1 layer"
KINDS = ("none", "filler", "continuous", "tokens", "oracle")
LENGTHS_TOLD = (2, 3, 4, 6, 10)  # moves of the stories on the page
Claim = tuple[str, Callable[[dict], bool]]  # a sentence of a prediction, and whether a result says so


def interval(values) -> tuple[float, float]:
    """Mean and half of its 95 % interval over seeds (Student's t); one seed has none."""
    x = np.array(values)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(T95[min(len(x) - 2, len(T95) - 1)] * x.std(ddof=1) / len(x) ** 0.5)


def cell(values, digits: int = 0) -> str:  # one number a seed
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half == half else "")


def said(command: str, flag: str, default: float) -> float:
    """The number that a command line gives for a flag, of the default's kind."""
    words = command.split()
    return type(default)(words[words.index(flag) + 1]) if flag in words else default


def right_by_n(result: dict, arm: str, key: str = "accuracy_by_n") -> np.ndarray:  # -> [seeds, 30]
    return np.array([s[key] for s in result["arms"][arm]["seeds"]])


def mean_at(result: dict, arm: str, n: int, key: str = "accuracy_by_n") -> float:
    return float(right_by_n(result, arm, key)[:, n - 1].mean())


def reach(result: dict, arm: str) -> np.ndarray:
    """Up to which n nine in ten first rounds are right, at each n up to it -> [seeds]."""
    return (right_by_n(result, arm, "accuracy_first_by_n") >= 0.9).cumprod(1).sum(1)


def in_layers(count: int) -> str:
    return f"{count} layer{'s' * (count > 1)}"


def probed(result: dict) -> dict[str, list[dict]]:
    """The arms that probe.py has looked at: {arm: what it found, a seed each}."""
    return {arm: [s["probe"] for s in found["seeds"]] for arm, found in result["arms"].items() if "probe" in found["seeds"][0]}


def parts(result: dict) -> dict[str, np.ndarray]:
    """What thoughts gain over none, split up, seed by seed [seeds, 30]: places to compute in, without content (filler); what
    the same way of training gives with thoughts that no reward ever chose; and what is left, which is what thoughts say."""
    none, filler, luck, own = (right_by_n(result, f"{arm}, full") for arm in ("none", "filler", "random policy", "tokens"))
    return {"compute": filler - none, "recipe": luck - filler, "content": own - luck, "all": own - none}


def followed(found: dict, what: str = "follows") -> float:
    """Of all wrong words that were written, the share whose answer follows them (what: "true", stays as it was)."""
    return sum(found["counterfactual"][what]) / max(sum(found["counterfactual"]["written"]), 1)


def by_distance(seeds: list[dict]) -> np.ndarray:
    """Share of wrong words that answers follow, all seeds together, by how many moves come after the word."""
    follows, written = (np.sum([x["counterfactual"][what] for x in seeds], 0) for what in ("follows", "written"))
    return follows / np.maximum(written, 1)


def cut(result: dict) -> list[int]:
    """The numbers of moves of the rounds whose chains were cut."""
    return [int(m) for m in next(iter(probed(result).values()))[0]["aoc"]["early"]]


def areas(result: dict, arm: str, name: str, m: int) -> list[float]:  # of one intervention, in rounds of m moves, by seed
    return [x["aoc"][name][str(m)] for x in probed(result)[arm]]


def mean_area(result: dict, arm: str, name: str, m: int) -> float:
    return float(np.mean(areas(result, arm, name, m)))


def courses(result: dict) -> dict[str, list[list[dict]]]:
    """The arms that kept checkpoints on the way: {arm: what was found at each of them (experiments.course), a seed each}."""
    arms = result["arms"].items()
    return {arm: [s["course"] for s in found["seeds"]] for arm, found in arms if "course" in found["seeds"][0]}


def right_and_area(result: dict, arm: str, n: int) -> list[list[tuple[float, float]]]:
    """Of each seed, for each checkpoint: the share of right answers at n, and the area of early answering in rounds of n."""
    return [[(x["accuracy_by_n"][n - 1], x["early"][str(n)]) for x in course] for course in courses(result)[arm]]


def updates_to(result: dict, arm: str, share: float = 0.9) -> np.ndarray:  # -> [seeds]
    """After how many updates an evaluation first found so many answers right, a mean over n = 1 to 10; infinite: none did."""
    return np.array([next((step for step, right in zip(s["curve"]["step"], s["curve"]["accuracy"]) if right >= share), np.inf)
                     for s in result["arms"][arm]["seeds"]])


def as_words(result: dict, arm: str, which: int = -1) -> np.ndarray:  # -> [seeds]
    """Mean log p of thoughts for the base, which reads them as words, at one of the evaluations (the last)."""
    return np.array([s["curve"]["thoughts_as_text"][which] for s in result["arms"][arm]["seeds"]])


def named(result: dict) -> list[str]:
    """The arms whose thoughts were read as words."""
    return [arm for arm, found in result["arms"].items() if "thoughts_as_text" in found["seeds"][0]["curve"]]


def verdicts(claims: list[Claim], result: dict) -> list[tuple[str, bool]]:
    return [(text, bool(holds(result))) for text, holds in claims]


def in_words(judged: list[tuple[str, bool]]) -> str:
    return " ".join(f"{text} [{'held' if held else 'did NOT hold'}]" for text, held in judged)


def table(result: dict) -> str:
    """Markdown: per cent right by n, mean and 95 % interval over seeds; MFLOP of a story of n = 10 (experiments.mflop) and
    seconds, means over seeds; for models that choose when to think, when they do (thoughts a move: the slope of thoughts
    against n); and what probe.py found."""
    shown = result.get("shown", SHOWN)
    lines = ["| arm | " + " | ".join(f"n = {n}" for n in shown) + " | blocks, MFLOP | heads, MFLOP | seconds |",
             "|---" * (len(shown) + 4) + "|"]
    for arm, found in result["arms"].items():
        cells = [cell(100 * right_by_n(result, arm)[:, n - 1]) for n in shown] + [f"{x:.2f}" for x in found["mflop"]]
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {np.mean([s['seconds'] for s in found['seeds']]):.0f} |")
    chosen = {arm: found["seeds"] for arm, found in result["arms"].items() if "thoughts_by_n" in found["seeds"][0]}
    if chosen:
        lines += ["", "| arm, by seed | thinks after moves that move the ball, % | elsewhere, % | thoughts a move |",
                  "|---" * 4 + "|"]
    for arm, seeds in chosen.items():
        after, elsewhere = (", ".join(f"{100 * s[k]:.1f}" for s in seeds) for k in ("thinks_after_moved", "thinks_elsewhere"))
        slope = ", ".join(f"{np.polyfit(range(1, 31), s['thoughts_by_n'], 1)[0]:.2f}" for s in seeds)
        lines.append(f"| {arm} | {after} | {elsewhere} | {slope} |")
    rows = {"content": content_rows, "faithful": faithful_rows, "training": training_rows, "depth": depth_rows,
            "alphabet": alphabet_rows, "when": when_rows}
    return "\n".join(lines + rows.get(result.get("view"), lambda _: [])(result))


def when_rows(result: dict) -> list[str]:
    """By seed, how often it thinks after moves that leave the ball where it is, by its cup; and what other thoughts do."""
    (arm, found), = probed(result).items()
    idle = [(cup, m) for cup, move in (("A", "BC"), ("B", "AC"), ("C", "AB")) for m in (move, "nothing")]
    lines = ["", "| thinks after, % | a story's first move | " + " | ".join(f"{cup}: {move}" for cup, move in idle) + " |",
             "|---" * (len(idle) + 2) + "|"]
    for seed, it in enumerate(x["after_which"] for x in found):
        shares = [it["first"]] + [it["share"][cup][it["moves"].index(move)] for cup, move in idle]
        lines.append(f"| {arm}, seed {seed} | " + " | ".join(f"{100 * x:.0f}" for x in shares) + " |")
    return lines + other_thoughts(result, arm)


def other_thoughts(result: dict, arm: str) -> list[str]:
    """What is left of an arm's answers with thoughts that are not its own."""
    shown = result["shown"]
    lines = ["", f"| `{arm}` with thoughts | " + " | ".join(f"n = {n}" for n in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for name in ("own", *OTHERS):
        right = 100 * np.array([x["accuracy_by_n"][name] for x in probed(result)[arm]])
        lines.append(f"| {NAMES[name]} | " + " | ".join(cell(right[:, n - 1]) for n in shown) + " |")
    return lines


def content_rows(result: dict) -> list[str]:
    """Other thoughts written into `tokens, full`, and what its gain is made of."""
    shown = result["shown"]
    lines = ["", "| points gained over `none, full` | " + " | ".join(f"n = {n}" for n in shown) + " |",
             "|---" * (len(shown) + 1) + "|"]
    return other_thoughts(result, "tokens, full") + lines + [
        f"| {name} | " + " | ".join(cell(100 * x[:, n - 1]) for n in shown) + " |" for name, x in parts(result).items()]


def depth_rows(result: dict) -> list[str]:
    """How far each kind of thoughts reaches, by layers; what was not run has a dash."""
    lines = ["", "| up to which n 90 % of first rounds are right | " + " | ".join(map(in_layers, LAYERS)) + " |",
             "|---" * (len(LAYERS) + 1) + "|"]
    for group, kind in ((g, k) for g in GROUPS for k in KINDS):
        arms = [f"{group}, {kind}, {in_layers(k)}" for k in LAYERS]
        lines.append(f"| {group}, {kind} | "
                     + " | ".join(cell(reach(result, arm), 1) if arm in result["arms"] else "-" for arm in arms) + " |")
    return lines


def faithful_rows(result: dict) -> list[str]:
    """Areas over the curve by moves, and what becomes of wrong words."""
    found, lengths = probed(result), cut(result)
    lines = ["", "| area over the curve (AOC) | " + " | ".join(f"n = {m}" for m in lengths) + " |",
             "|---" * (len(lengths) + 1) + "|"]
    for arm in found:
        lines += [f"| {arm}: {THEN[name]} | " + " | ".join(cell(areas(result, arm, name, m), 2) for m in lengths) + " |"
                  for name in FOUR]
    lines += ["", "| another cup's word written | answer follows it, % | stays true, % | thoughts with a synonym, % | "
              "own thoughts fed again |", "|---" * 5 + "|"]
    for arm, seeds in found.items():
        cells = [cell([100 * followed(x, what) for x in seeds], 1) for what in ("follows", "true")]
        cells.append(cell([100 * x["synonyms"] for x in seeds], 1))
        again = "no change" if all(x["spliced"] for x in seeds) else "CHANGED"
        lines.append(f"| {arm} | " + " | ".join([*cells, again]) + " |")
    return lines


def training_rows(result: dict) -> list[str]:
    """Right answers and areas by the step of training, of the seeds that went on so far; and where they ended."""
    lines = []
    for arm, seeds in courses(result).items():
        head = [f"right at n = {n}, %" for n in FOLLOWED] + [f"AOC of early answering, n = {n}" for n in FOLLOWED]
        lines += ["", f"| {arm}: step | seeds | {' | '.join(head)} |", "|---" * (2 + len(head)) + "|"]
        steps = sorted({x["step"] for course in seeds for x in course[:-1]})
        rows = {step: [x for course in seeds for x in course[:-1] if x["step"] == step] for step in steps}
        for step, found in (rows | {"the end": [course[-1] for course in seeds]}).items():
            cells = [cell([100 * x["accuracy_by_n"][n - 1] for x in found]) for n in FOLLOWED]
            cells += [cell([x["early"][str(n)] for x in found], 2) for n in FOLLOWED]
            lines.append(f"| {step} | {len(found)} | " + " | ".join(cells) + " |")
    return lines


def alphabet_rows(result: dict) -> list[str]:
    """How soon it is learnt, seed by seed, and how likely thoughts are as words, at birth and at the end."""
    lines = ["", "| arm | updates until 90 % right (mean of n = 1 to 10), by seed | log p of thoughts as words: at birth | "
             "at the end |",
             "|---" * 4 + "|"]
    for arm in result["arms"]:
        soon = ", ".join("never" if np.isinf(x) else str(int(x)) for x in updates_to(result, arm))
        likely = [cell(as_words(result, arm, which), 1) for which in (0, -1)] if arm in named(result) else ["", ""]
        lines.append(f"| {arm} | " + " | ".join([soon, *likely]) + " |")
    return lines


def draw(result: dict, path: Path, caption: str) -> None:
    """The experiment's figure, with its question above and its prediction, verdicts included, below."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    views = {"content": [draw_others, draw_parts], "faithful": [draw_aoc, draw_following],
             "when": [draw_accuracy, draw_lengths],
             "training": [partial(draw_course, arm=arm) for arm in courses(result)],
             "depth": [partial(draw_depth, group=g, layers=k) for g in GROUPS for k in LAYERS],
             "alphabet": [draw_learning, draw_likelihood], "waterfall": [draw_bars]}
    panels = views.get(result.get("view"), [draw_accuracy])
    rows = len(GROUPS) if result.get("view") == "depth" else 1
    wide = len(panels) // rows
    figure, axes = plt.subplots(rows, wide, figsize=(9 if wide == 1 else 15, 1 + 4.2 * rows), squeeze=False)
    for panel, axis in zip(panels, axes.flat):
        panel(axis, result)
    figure.suptitle(textwrap.fill(result["question"], 75 * min(wide, 2)), y=0.97, va="bottom")
    lines = textwrap.wrap(caption, 100 * min(wide, 2)) + [result["command"]]
    below = -0.02 if wide == 1 else -0.22 / rows  # two panels have their legends below them
    figure.text(0.08, below, "\n".join(lines), fontsize=9, va="top")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_accuracy(axis, result: dict) -> None:
    """Accuracy against n: a line for each arm's mean, and a thin one for each seed."""
    for i, arm in enumerate(result["arms"]):
        y, style = 100 * right_by_n(result, arm), ("-", "--", ":")[i // 10]
        x = np.arange(1, y.shape[1] + 1)
        axis.plot(x, y.T, color=f"C{i % 10}", lw=0.5, alpha=0.4)
        axis.plot(x, y.mean(0), color=f"C{i % 10}", ls=style, lw=max(1.5, 4 - i), label=arm)  # of equal ones both are seen
    cups, swaps = ({said(found["command"], flag, default) for found in result["arms"].values()}
                   for flag, default in (("--cups", 3), ("--swaps", 10)))
    for m in cups:
        axis.axhline(100 / m, color="grey", lw=0.8, ls=":")
    longest = " or ".join(map(str, sorted(swaps)))
    axis.set(xlabel=f"n, moves since the anchor (trained on n <= {longest}; dotted: chance; thin: seeds)",
             ylabel="answers right, %", ylim=(0, 103))
    alone = len(axis.figure.axes) == 1
    axis.legend(**dict(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)) if alone else BELOW)


def draw_bars(axis, result: dict) -> None:
    """What each arm has right, a mean over n = 1 to 10: a bar over seeds, a dot for each of them."""
    right = {arm: 100 * right_by_n(result, arm)[:, :10].mean(1) for arm in result["arms"]}
    axis.barh(list(right), [x.mean() for x in right.values()], color="C0", alpha=0.6)
    for i, x in enumerate(right.values()):
        axis.plot(x, [i] * len(x), "k.", ms=5)
    axis.axvline(100 / 3, color="grey", lw=0.8, ls=":")
    axis.set(xlabel="answers right, %, mean of n = 1 to 10 (dots: seeds; dotted: chance)", xlim=(0, 103))
    axis.invert_yaxis()


def draw_lengths(axis, result: dict) -> None:
    """How many thoughts a round of n moves gets where a model may choose: a thin line for each seed."""
    chosen = [arm for arm, found in result["arms"].items() if "thoughts_by_n" in found["seeds"][0]]
    for i, arm in enumerate(result["arms"]):  # the colours of `draw_accuracy`
        if arm not in chosen:
            continue
        y = right_by_n(result, arm, "thoughts_by_n")
        axis.plot(range(1, y.shape[1] + 1), y.T, color=f"C{i}", lw=0.7, alpha=0.6)
        axis.plot([], [], color=f"C{i}", label=f"{arm} (thin: seeds, some of them alike)")
    n = np.arange(1, 31)
    axis.plot(n, n, color="grey", ls=":", label="one after each move")
    idle = said(result["arms"][chosen[0]]["command"], "--idle", 0.0)
    moved = (1 - idle) * 0.8  # of the five moves of three cups four move the ball, wherever it is
    axis.plot(n, moved * n, color="black", ls="--", label=f"one after each move of the ball ({moved:.2f} n)")
    axis.set(xlabel="n, moves of the round", ylabel="thoughts in the round")
    axis.legend(**BELOW)


def draw_depth(axis, result: dict, group: str, layers: int) -> None:
    """First rounds of one group with so many layers: a line for each kind of thoughts, and chance."""
    chance, lowest = 0.0, group == GROUPS[-1]
    for i, kind in enumerate(KINDS):
        arm = f"{group}, {kind}, {in_layers(layers)}"
        if arm in result["arms"]:
            y = 100 * right_by_n(result, arm, "accuracy_first_by_n")
            axis.plot(range(1, y.shape[1] + 1), y.T, color=f"C{i}", lw=0.5, alpha=0.4)
            axis.plot(range(1, y.shape[1] + 1), y.mean(0), color=f"C{i}", lw=2, label=kind)
            chance = 100 / said(result["arms"][arm]["command"], "--cups", 3)
    axis.axhline(chance, color="grey", lw=0.8, ls=":")
    axis.set(title=f"{group}, {in_layers(layers)}", ylim=(0, 103),
             xlabel="n, moves (trained on n <= 10; dotted: chance)" * lowest,
             ylabel="first rounds right, %" * (layers == LAYERS[0]))
    if lowest and layers == LAYERS[0]:  # where every kind has its line
        axis.legend(**BELOW)


def draw_others(axis, result: dict) -> None:
    """`tokens, full` with its own thoughts and with others, beside the arms that have been trained without content."""
    lines = {f"thoughts: {NAMES[name]}": np.array([x["accuracy_by_n"][name] for x in probed(result)["tokens, full"]])
             for name in ("own", *OTHERS)}
    lines |= {f"trained: {arm}": right_by_n(result, arm) for arm in ("random policy, full", "filler, full", "none, full")}
    for i, (name, y) in enumerate(lines.items()):
        axis.plot(range(1, y.shape[1] + 1), 100 * y.mean(0), "-" if name[1] == "h" else "--", color=f"C{i}", label=name)
    axis.axhline(100 / 3, color="grey", lw=0.8, ls=":")
    axis.set(xlabel="n, moves since the anchor (trained on n <= 10; dotted: chance)", ylabel="answers right, %", ylim=(0, 103))
    axis.legend(**BELOW)


def draw_parts(axis, result: dict) -> None:
    """Stacked bars; a part that costs points hangs below zero."""
    shown, split, found = result["shown"], parts(result), probed(result)["tokens, full"]
    at, up, down = np.arange(len(shown)), np.zeros(len(shown)), np.zeros(len(shown))
    for name in ("compute", "recipe", "content"):
        y = 100 * split[name].mean(0)[np.array(shown) - 1]
        axis.bar(at, y, 0.6, bottom=np.where(y > 0, up, down), label=name)
        up, down = up + y.clip(min=0), down + y.clip(max=0)
    another = np.array([np.subtract(*(x["accuracy_by_n"][name] for name in ("own", "another"))) for x in found])
    for beside, mark, label, gain in ((0.1, "ko", "all", split["all"]), (-0.1, "kx", "own minus another's thoughts", another)):
        with_intervals(axis, at + beside, [100 * gain[:, n - 1] for n in shown], fmt=mark, label=f"{label} (95 % interval)")
    axis.axhline(0, color="grey", lw=0.8)
    axis.set_xticks(at, [f"n = {n}" for n in shown])
    axis.set(ylabel="points gained over none, full")
    axis.legend(**BELOW)


def with_intervals(axis, x, values, **style) -> None:
    """values: for each x one number a seed."""
    means, halves = zip(*map(interval, values))
    axis.errorbar(x, means, halves, capsize=3, **style)


def draw_aoc(axis, result: dict) -> None:
    """The four areas against n, and up to which n a model without thoughts gets first rounds right (the rounds that are cut
    here are first ones)."""
    for style, arm in zip(("-", "--"), probed(result)):
        for i, name in enumerate(FOUR):
            with_intervals(axis, cut(result), [areas(result, arm, name, m) for m in cut(result)], ls=style, color=f"C{i}",
                           label=THEN[name] if style == "-" else None)
        axis.plot([], [], style, color="black", label=arm)
    axis.axvline(unaided(result) + 0.5, color="grey", ls=":", label="left of it: 90 % right without thoughts")
    axis.set(xlabel="n, moves of the round", ylabel="AOC: 0, thoughts do not matter", ylim=(-0.05, 1.05))
    axis.legend(**BELOW)


def unaided(result: dict) -> int:
    """The largest n up to which `none, full` gets nine in ten first rounds right."""
    right = right_by_n(result, "none, full", "accuracy_first_by_n").mean(0) >= 0.9
    return len(right) if right.all() else int(right.argmin())


def draw_following(axis, result: dict) -> None:
    """Share of written words that the answer follows, by how many moves come after them."""
    for i, (arm, seeds) in enumerate(probed(result).items()):
        for what, style, label in (("follows", "-", "follows it"), ("true", ":", "stays true")):
            far = [x["counterfactual"] for x in seeds]
            share = np.array([np.array(x[what]) / np.maximum(x["written"], 1) for x in far])
            with_intervals(axis, range(share.shape[1]), 100 * share.T, ls=style, color=f"C{i}", label=f"{arm}: {label}")
    axis.set(xlabel="moves between the written word and the question", ylabel="answers to another cup's word, %",
             ylim=(-3, 103))
    axis.legend(**BELOW)


def draw_course(axis, result: dict, arm: str) -> None:
    """Right answers and areas of one arm against the step: a thin line for each seed up to its end, and the mean of those steps
    that all seeds have kept."""
    seeds = courses(result)[arm]
    shared = sorted(set.intersection(*({x["step"] for x in course} for course in seeds)))
    for i, n in enumerate(FOLLOWED):
        pairs = right_and_area(result, arm, n)
        for j, (style, label) in enumerate((("-", f"right, n = {n}"), ("--", f"area over the curve, n = {n}"))):
            lines = [{x["step"]: pair[j] for x, pair in zip(*run)} for run in zip(seeds, pairs)]
            for line in lines:
                axis.plot(list(line), list(line.values()), style, color=f"C{i}", lw=0.5, alpha=0.4)
            mean = [np.mean([line[step] for line in lines]) for step in shared]
            axis.plot(shared, mean, style, color=f"C{i}", lw=2, label=label)
    axis.axhline(1 / 3, color="grey", lw=0.8, ls=":")
    axis.set(title=arm, xlabel="step (thin: seeds, up to their end; dotted: chance)", ylabel="share of answers; AOC",
             ylim=(-0.03, 1.03))
    axis.legend(**BELOW)


def along(result: dict, arm: str, key: str) -> tuple[np.ndarray, np.ndarray]:  # -> [evaluations], [seeds, evaluations]
    """The steps of an arm's longest run, and what each seed had there (after its own end: what it ended with)."""
    runs = [s["curve"] for s in result["arms"][arm]["seeds"]]
    steps = np.array(max((run["step"] for run in runs), key=len))
    return steps, np.array([np.interp(steps, run["step"], run[key]) for run in runs])


def draw_learning(axis, result: dict) -> None:
    """Accuracy against updates: each arm's mean, and a thin line for each seed."""
    for i, arm in enumerate(result["arms"]):
        steps, right = along(result, arm, "accuracy")
        axis.plot(steps, 100 * right.T, color=f"C{i}", lw=0.5, alpha=0.4)
        axis.plot(steps, 100 * right.mean(0), color=f"C{i}", lw=2, label=arm)
    axis.axhline(100 / 3, color="grey", lw=0.8, ls=":")
    axis.set(xlabel="updates (dotted: chance; thin: seeds, which keep what they ended with)",
             ylabel="answers right, %, mean of n = 1 to 10", ylim=(0, 103))
    axis.legend(**BELOW)


def draw_likelihood(axis, result: dict) -> None:
    """Accuracy against how likely thoughts are as words, for the base: means over seeds, arrows through the evaluations."""
    for i, arm in enumerate(result["arms"]):
        if arm not in named(result):
            continue
        x, y = (along(result, arm, key)[1].mean(0) for key in ("thoughts_as_text", "accuracy"))
        axis.plot(x, 100 * y, ".", color=f"C{i}", label=arm)
        for k in range(len(x) - 1):
            axis.annotate("", (x[k + 1], 100 * y[k + 1]), (x[k], 100 * y[k]), arrowprops=dict(arrowstyle="->", color=f"C{i}"))
    axis.axhline(100 / 3, color="grey", lw=0.8, ls=":")
    axis.set(xlabel="mean log p of thoughts as words, for the base (an arrow: from evaluation to evaluation)",
             ylabel="answers right, %, mean of n = 1 to 10", ylim=(0, 103))
    axis.legend(**BELOW)


def told_stories(path: Path, seed: int = 0, each: int = 2) -> tuple[list[str], list[list[str]]]:
    """Held-out stories with a checkpoint's thoughts and its answer, for html_page: the stories, and a note for each thought:
    the cup that it stands for, and the answer had the word for another cup stood there. Raises ValueError where thoughts have
    no words."""
    model, rules, a = opened(path)
    if a["data"] != "cups" or a.get("balls", "one") != "one" or not rules.persist or len(model.think) < 2:
        raise ValueError(f"{path}: the page looks thoughts up, one ball's, as ids that stay in the text: "
                         "a run of --approach stream or teacher on cups")
    cups = Cups(a["cups"], idle=a.get("idle", 0.0), moves=a.get("moves", "mixed"))
    words, _ = make_dictionary(model, cups, rules, 512, seed)
    tokenizer = Tokenizer(model.text_ids, len(model.think))
    name = [w.strip() for w in tokenizer.words()]
    shown, notes = [], []
    for m in LENGTHS_TOLD:
        case, state, n = stories(model, cups, rules, each, 2 * m + 3, seed, 4200 + m, exact=m)
        stands, true, answer, instead = what_if(case, cups, words, state, n)
        for r, row in enumerate(case.own.kept()):
            row[-1] = int(answer[r])  # the story is given, but its last word is what the model says
            verdict = "correct" if answer[r] == case.text[r, -1] else "not correct"
            shown.append(f'{tokenizer.show(row, len(row) - 1, "html")}  ({verdict})')
            notes.append([note(tokenizer.name(int(case.own.ids[r, t])), int(stands[r, t]), int(true[r, t]),
                               [name[i] if i >= 0 else None for i in instead[r, t].tolist()])
                          for t in case.own.is_think[r].nonzero().squeeze(1).tolist()])
    return shown, notes


def note(word: str, cup: int, true: int, instead: list[str | None]) -> str:
    """What is shown of one thought. instead: the answer had the word for each cup stood there, None where there is no word."""
    says = f"says: the ball is under {LETTERS[cup]} now" if cup >= 0 else "is not in the dictionary beside this move"
    really = "true" if cup == true else f"it is under {LETTERS[true]}"
    lines = [f"{word} {says} ({really})"]
    for other, answer in enumerate(instead):
        had = "by the id most used for it" if other == cup else "written instead"
        lines.append(f"  {LETTERS[other]} {had}: " + (f"the answer is {answer}" if answer else "there is no word for it"))
    return "\n".join(lines)


def html_table(markdown: str) -> str:
    """Tables of Markdown, a blank line between two of them -> html."""
    out = []
    for block in markdown.split("\n\n"):
        rows = [[html.escape(c.strip().replace("`", "")) for c in line.strip("|").split("|")] for line in block.splitlines()]
        kinds = ["th"] + ["td"] * (len(rows) - 2)  # the second line is a rule
        body = "".join("<tr>" + "".join(f"<{kind}>{c}</{kind}>" for c in row) + "</tr>"
                       for kind, row in zip(kinds, [rows[0], *rows[2:]]))
        out.append(f"<table>{body}</table>")
    return "".join(out)


def section(name: str, result: dict, judged: list[tuple[str, bool]], picture: Path) -> str:
    """One experiment on the page. A picture is in the page itself, which so needs no other file."""
    image = base64.b64encode(picture.read_bytes()).decode() if picture.exists() else ""
    claims = "".join(f"<li>{html.escape(text)} <b>{'held' if held else 'did not hold'}</b></li>" for text, held in judged)
    return (f"<h2>{html.escape(name)}</h2><p>{html.escape(result['question'])}</p>Predicted:<ul>{claims}</ul>"
            + f'<img alt="{html.escape(name)}" src="data:image/png;base64,{image}">' * bool(image)
            + html_table(table(result)) + f"<p>{html.escape(result['command'])}</p>")


def write_page(out: Path, sections: list[str], checkpoint: Path | None) -> None:
    """The page. checkpoint: whose stories it tells; None: none."""
    shown, notes = told_stories(checkpoint) if checkpoint else ([], [])
    hint = ("Point at a thought, tab to it or tap it: what it says, and what the answer would be had it said something else. A ball "
            f"is under one of some cups, and moves move it: stories of {checkpoint}. README.md explains the game, RESULTS.md the "
            "tables below.")
    page = html_page(shown, "Thinking tokens: stories and results", True, notes, hint, "".join(sections))
    out.write_text(page, encoding="utf-8")
