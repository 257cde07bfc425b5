"""Questions that take several seeds of several arms, each answered by one command.

    python -m lab.experiments channel --seeds 5      # figures/channel.png and figures/channel.json, and a table
    python -m lab.experiments                        # lists them, with how long they take
    python -m lab.experiments report                 # figures/report.html: all results, and stories that can be asked

An experiment is a question, a prediction that was written down before its runs (where trials had come before, it says so), and
arms; an arm is a line of flags for train.py. Each (arm, seed) is one run of train.py in runs/, found again by its flags:
finished runs are kept when an experiment is cut off, and arms that two experiments share are run once. Where an experiment asks
what thoughts do, probe.py is run once for each checkpoint, those that were kept on the way (train.py --keep_every) included,
and its findings lie beside it. Two runs go at a time, on one thread each. A prediction is a list of sentences, each with a
function of the result that says whether it held. Tables, figures and the page are in report.py.

Left out on purpose: a sweep over hyperparameters, anything that a run's own folder does not say.
"""
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import OPENING
from lab.report import (GROUPS, LAYERS, OTHERS, SHOWN, Claim, as_words, by_distance, courses, cut, draw, in_layers, in_words,
                        mean_area, mean_at, parts, probed, reach, right_and_area, right_by_n, section, table, unaided,
                        updates_to, verdicts, write_page)
from rollout import load_run, visible
from settings import Parser

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT  # where runs/ and figures/ are
LOOK = ("--stories", "32")  # flags of probe.py
LOOK_SECONDS = 15  # of one call of it, roughly


@dataclass
class Arm:
    """flags: of train.py. seconds: of one run on one thread, roughly. after: the arm whose checkpoint this one needs, and `by`
    the flag that hands it over. kept: how many checkpoints it keeps on the way, roughly."""
    flags: str
    seconds: int
    after: str | None = None
    by: str = "--model"
    kept: int = 0


@dataclass
class Experiment:
    """claims: the prediction, sentence by sentence. probed: the arms that probe.py looks at. view: what is made of that,
    "content", "faithful", "training", "waterfall", "when", "depth" or "alphabet" (see report.py). shown: n of the tables."""
    question: str
    claims: list[Claim]
    arms: dict[str, Arm]
    probed: tuple[str, ...] = ()
    view: str | None = None
    shown: tuple[int, ...] = SHOWN

    @property
    def prediction(self) -> str:
        return " ".join(text for text, _ in self.claims)


STREAM = "--approach stream"
TOKENS = f"{STREAM} --think_vocab 2048"
# what --thinker sets (settings.TAUGHT), for thoughts that are told and need no thinker
AS_TAUGHT = "--window 0 --curriculum off --new_tokens 40 --samples 1 --prompts 32 --baseline none --lr 4e-3 --steps 1500"
# the gate begins where a third of the thoughts is skipped. Begun at 0.9 it hardly tries to skip, and to skip one pays only for a
# model that can go on from an older thought; begun at 0.5, one seed of three gave up thinking altogether (RESULTS.md, 8)
RELEASED = f"{STREAM} --think free --think_prior 0.7 --think_cost 0.2 --idle 0.4 --curriculum off --steps 800"
CHANNEL = {
    "tokens, window": Arm(TOKENS, 100),
    "continuous, window": Arm(f"{STREAM} --thoughts continuous --steps 600", 60),
    "oracle, window": Arm(f"{STREAM} --thoughts oracle --steps 600", 60),
    "filler, window": Arm(f"{STREAM} --thoughts filler --steps 1100", 90),
    "none, window": Arm(f"{STREAM} --thoughts none --steps 1450", 90),
    "tokens, full": Arm(TOKENS, 90, "tokens, window", "--thinker"),
    "continuous, full": Arm(f"{STREAM} --thoughts continuous --steps 3000", 135, "continuous, window", "--thinker"),
    "oracle, full": Arm(f"{STREAM} --thoughts oracle {AS_TAUGHT}", 80),
    # the controls have steps for the time of tokens with full attention on a quiet machine, the thinker's included
    "filler, full": Arm(f"{STREAM} --thoughts filler --window 0 --steps 2200", 180),
    "none, full": Arm(f"{STREAM} --thoughts none --window 0 --steps 3000", 180),
    "none, full, 4 layers": Arm(f"{STREAM} --thoughts none --window 0 --layers 4 --steps 1150", 180)}
# depth: both worlds have five moves. One ball under three cups: they are of the group S3, and do not commute. One ball under six
# cups that turn: Z6, a sum. Controls see everything, and have about as many seconds each; those that think have a window, and so
# see less
WORLDS = {"S3": "", "Z6": " --cups 6 --moves turns"}
EACH = {
    "none, 1 layer": Arm("--thoughts none --window 0 --steps 3000", 110),
    "none, 2 layers": Arm("--thoughts none --window 0 --layers 2 --steps 1900", 110),
    "none, 4 layers": Arm("--thoughts none --window 0 --layers 4 --steps 1150", 110),
    "filler, 1 layer": Arm("--thoughts filler --window 0 --steps 2200", 110),
    "filler, 4 layers": Arm("--thoughts filler --window 0 --layers 4 --steps 850", 110),
    "continuous, 1 layer": Arm("--thoughts continuous --steps 600", 45),
    "continuous, 2 layers": Arm("--thoughts continuous --layers 2 --steps 600", 60),
    "oracle, 1 layer": Arm("--thoughts oracle --steps 600", 45)}
DEPTH = {f"{group}, {arm}": Arm(f"{STREAM} {it.flags}{world}", it.seconds)
         for group, world in WORLDS.items() for arm, it in EACH.items()}
DEPTH |= {"S3, tokens, 1 layer": Arm(TOKENS, 100),
          "Z6, tokens, 1 layer": Arm(f"{TOKENS} --curriculum on --steps 3000{WORLDS['Z6']}", 130)}


# with as few rows as pico has words, 19, each of 15 pairs of cup and move has to find one of its cup's before the reader makes up
# its mind: a broader code in the first stages, and more contexts. At birth words think "," and "."; any other costs some 10 nats
# of KL, a round of ten some 100: at a pull of 0.003 that is less than what knowing the cup is worth, log 3, and at 0.03 more
ALPHABET = f"{STREAM} --model pico --entropy 0.4 --prompts 32 --steps 1600 --eval_every 100"


def reaches(share: float, n: int, *arms: str) -> Callable[[dict], bool]:
    """A claim's check: the mean over seeds of all these arms is at least this share at n."""
    return lambda result: all(mean_at(result, arm, n) >= share for arm in arms)


def near_chance(ns: tuple[int, ...], *arms: str) -> Callable[[dict], bool]:  # of three cups; "near": within 10 points
    return lambda result: all(abs(mean_at(result, arm, n) - 1 / 3) <= 0.1 for arm in arms for n in ns)


def right_at_ten(result: dict, kind: str, *layers: int) -> bool:
    """depth: are 95 % right at n = 10, in both groups?"""
    return reaches(0.95, 10, *(f"{g}, {kind}, {in_layers(k)}" for g in GROUPS for k in layers))(result)


def far(result: dict, group: str, kind: str, layers: int) -> float:
    """depth: how far an arm reaches, a mean over seeds."""
    return float(reach(result, f"{group}, {kind}, {in_layers(layers)}").mean())


def median_updates(result: dict, arm: str) -> float:
    return float(np.median(updates_to(result, arm)))


def seeds_of(result: dict, key: str) -> list:
    """What all seeds of all arms that may choose when to think have under this key."""
    return [s[key] for found in result["arms"].values() for s in found["seeds"] if key in s]


EXPERIMENTS = {
    "channel": Experiment(
        "What does a channel of one thought a move carry, as an id, as a vector, as the truth, as nothing?",
        [("With a window, ids, vectors and the truth reach 100 % at n = 10 and hold at n = 30;",
          lambda r: all(reaches(share, n, *(f"{x}, window" for x in ("tokens", "continuous", "oracle")))(r)
                        for share, n in ((0.995, 10), (0.95, 30)))),
         ("filler and none stay near chance.", near_chance((3, 6, 10), "filler, window", "none, window")),
         ("With full attention vectors reach 99 % at n = 10 and fall at n = 30 (said of an arm without a thinker);",
          lambda r: mean_at(r, "continuous, full", 10) >= 0.99 > 0.9 > mean_at(r, "continuous, full", 30)),
         ("filler and none creep up to n = 4.",  # answers at n = 2, 3 and 4 are over chance, by more than 10 points
          lambda r: all(reaches(1 / 3 + 0.1, n, "filler, full", "none, full")(r) for n in (2, 3, 4)))],
        CHANNEL),
    "content": Experiment(
        "Where does the gain come from: from the recipe, from more places to compute in, or from what thoughts say?",
        [("At n = 6 and n = 10 at least 50 points of the gain over no thoughts are content;",
          lambda r: all(parts(r)["content"][:, n - 1].mean() >= 0.5 for n in (6, 10))),
         ("compute and recipe are at most 10 points each at n = 3, 6 and 10.",
          lambda r: all(parts(r)[x][:, n - 1].mean() <= 0.1 for x in ("compute", "recipe") for n in (3, 6, 10))),
         ("(Known in part, from probes of earlier models.) With another story's thoughts, its own in another order, random ids or "
          "one id for all the same model is within 10 points of chance at n = 10.",
          lambda r: all(abs(np.mean([x["accuracy_by_n"][name][9] for x in probed(r)["tokens, full"]]) - 1 / 3) <= 0.1
                        for name in OTHERS))],
        {arm: CHANNEL[arm] for arm in ("tokens, window", "tokens, full", "filler, full", "none, full")} | {
            # weights that never move: its thoughts hang on the moves by accident alone, and a fresh model learns them, and to
            # read them, in the very way of `tokens, full`
            "random policy": Arm(f"{TOKENS} --lr 0 --think_lr 0 --curriculum off --steps 1", 10),
            "random policy, full": Arm(TOKENS, 90, "random policy", "--thinker")},
        ("tokens, full",), "content"),
    "faithful": Experiment(
        "Does the answer hang on each thought, where a net could do without, and where it could not?",
        [("With full attention the area over the curve of early answering is under 0.1 where a net without thoughts gets first "
          "rounds right,",
          lambda r: 0 < unaided(r) and all(mean_area(r, "tokens, full", "early", m) < 0.1 for m in cut(r) if m <= unaided(r))),
         ("and over 0.4 at n = 10, as it is with a window.",
          lambda r: all(mean_area(r, arm, "early", 10) > 0.4 for arm in probed(r))),
         ("One id for all does as little as no thought (0.1 apart at most),",
          lambda r: all(abs(mean_area(r, arm, "early", m) - mean_area(r, arm, "filler", m)) <= 0.1
                        for arm in probed(r) for m in cut(r))),
         ("synonyms do as well as own thoughts (under 0.1),",
          lambda r: all(mean_area(r, arm, "paraphrase", m) < 0.1 for arm in probed(r) for m in cut(r))),
         ("(what follows was known in part, from probes of earlier models) a wrong word is followed by 95 % of answers, wherever "
          "it stands,",
          lambda r: all(min(by_distance(seeds)) >= 0.95 for seeds in probed(r).values())),
         ("and own thoughts fed again change nothing, to the bit.",
          lambda r: all(x["spliced"] for seeds in probed(r).values() for x in seeds))],
        {arm: CHANNEL[arm] for arm in ("tokens, window", "tokens, full", "none, full")},
        ("tokens, window", "tokens, full"), "faithful"),
    "training": Experiment(
        "While a model learns to think: do answers hang on its thoughts before they get right, from then on, or later?",
        [("No later: each checkpoint with over 90 % right at n = 3 has an area over the curve of early answering over 0.4 "
          "there, with a window and with full attention.",
          lambda r: all(any(right > 0.9 for right, _ in run) and all(area > 0.4 for right, area in run if right > 0.9)
                        for arm in courses(r) for run in right_and_area(r, arm, 3))),
         ("In longer rounds before: with a window each run has a checkpoint with under 60 % right at n = 10 and an area over "
          "0.4 there.",
          lambda r: all(any(right < 0.6 and area > 0.4 for right, area in run)
                        for run in right_and_area(r, "tokens, window", 10)))],
        {"tokens, window": Arm(f"{TOKENS} --keep_every 100", 100, kept=8),
         "tokens, full": Arm(f"{TOKENS} --keep_every 200", 90, "tokens, window", "--thinker", kept=7)},
        ("tokens, window", "tokens, full"), "training"),
    "waterfall": Experiment(
        "Which parts of the recipe does it need? One is taken away at a time; and a setting that fails is repaired step by step.",
        [("Without the window, without the curriculum, or without siblings as a baseline nothing is learnt beyond n = 3.",
          lambda r: all(mean_at(r, arm, n) <= 1 / 3 + 0.1 for n in (4, 6, 10) for arm in (
              "full attention", "no curriculum", "baseline: mean of the batch", "no baseline"))),
         ("Without the entropy bonus codes collapse: fewer than 80 % are right at n = 2.",
          lambda r: mean_at(r, "no entropy bonus", 2) < 0.8),
         ("Where answers have no gradient of their own nothing is learnt, since nobody learns to read the thoughts.",
          lambda r: right_by_n(r, "answers by reward alone")[:, :10].mean() <= 1 / 3 + 0.1),
         ("Credit for the next few tokens alone (gamma 0.5) works, but takes more updates.",
          lambda r: mean_at(r, "gamma 0.5", 10) >= 0.95 and np.subtract(*(
              sum(s["step"] for s in r["arms"][arm]["seeds"]) for arm in ("gamma 0.5", "the recipe"))) > 0),
         ("(Written when all that had been run.) Where all four are missing nothing is learnt, and siblings and the bonus alone "
          "do not help: it needs the window.",
          lambda r: all(right_by_n(r, arm)[:, :10].mean() <= 1 / 3 + 0.1 for arm in r["arms"] if arm.startswith("repaired")))],
        {"the recipe": Arm(TOKENS, 90),
         "full attention": Arm(f"{TOKENS} --window 0", 115),
         "no curriculum": Arm(f"{TOKENS} --curriculum off", 220),
         "no entropy bonus": Arm(f"{TOKENS} --entropy 0", 90),
         "baseline: mean of the batch": Arm(f"{TOKENS} --baseline batch", 65),
         "no baseline": Arm(f"{TOKENS} --baseline none", 50),
         "gamma 0.5": Arm(f"{TOKENS} --gamma 0.5", 90),
         "answers by reward alone": Arm(f"{TOKENS} --answer_grad off", 50),
         # from the other side. The next step, the window, makes "no curriculum" of the last, and then comes the recipe
         "repaired: nothing yet": Arm(f"{TOKENS} --curriculum off --window 0 --entropy 0 --baseline batch --steps 800", 110),
         "repaired: siblings": Arm(f"{TOKENS} --curriculum off --window 0 --entropy 0 --steps 800", 110),
         "repaired: siblings, bonus": Arm(f"{TOKENS} --curriculum off --window 0 --steps 800", 110)},
        view="waterfall"),
    "when": Experiment(
        "Released from forced thinking, at a price for each thought: when does it still think?",
        [("(The second prediction. The first, under 30 % elsewhere and a slope of 0.4, at 0.05 and 0.2 nats, failed in part. This "
          "one was written after trials with seeds 0 to 2, two of them at these settings; seeds 3 and 4 came last.) Released, it "
          "thinks after 95 % of moves of the ball and more,",
          lambda r: min(seeds_of(r, "thinks_after_moved")) >= 0.95),
         ("and after 10 % at most of the moves that leave it where it is, whatever the seed.",
          lambda r: max(seeds_of(r, "thinks_elsewhere")) <= 0.1),
         ("The answers stay right (99 % at n = 10).", reaches(0.99, 10, "forced", "released")),
         ("Thoughts against n is a line whose slope is the share of moves that move the ball (0.48 here).",
          lambda r: all(abs(np.polyfit(range(1, 31), x, 1)[0] - 0.48) < 0.05 for x in seeds_of(r, "thoughts_by_n"))),
         ("A filler after every move, which is more of them, leaves the answers near chance.", near_chance((3, 6, 10), "filler")),
         ("So does one id for all at the very places that were learnt.",
          lambda r: all(abs(np.mean([x["accuracy_by_n"]["constant"][9] for x in seeds]) - 1 / 3) <= 0.1
                        for seeds in probed(r).values()))],
        {"forced": Arm(f"{TOKENS} --idle 0.4", 220),
         "filler": Arm(f"{STREAM} --thoughts filler --idle 0.4 --steps 1450", 90),
         "released": Arm(RELEASED, 170, "forced")},
        ("released",), "when"),
    "worlds": Experiment(
        "Harder worlds: five cups, and all five balls at once (120 orders). How far does one thought a move reach?",
        [("(Written after trials with seeds 0 to 2.) Five cups: vectors have 98 % right at n = 12, the longest rounds of their "
          "training, and 95 % at n = 30.",
          lambda r: all(reaches(share, n, "5 cups, continuous")(r) for share, n in ((0.98, 12), (0.95, 30)))),
         ("All orders of five balls: 95 % at n = 8, the longest of their training;",
          reaches(0.95, 8, "5 balls, continuous")),
         ("beyond that it falls, to between 80 and 95 % at n = 20 and between 60 and 80 % at n = 30.",
          lambda r: all(low <= mean_at(r, "5 balls, continuous", n) <= high
                        for low, high, n in ((0.8, 0.95, 20), (0.6, 0.8, 30)))),
         ("(After a trial with seed 0.) Ids by reward alone, with a strict curriculum: five cups have 95 % at n = 12 in four "
          "of five seeds.",
          lambda r: (right_by_n(r, "5 cups, tokens")[:, 11] >= 0.95).mean() >= 0.8)],
        {"5 cups, tokens": Arm(f"{TOKENS} --cups 5 --swaps 12", 400),
         "5 cups, continuous": Arm(f"{STREAM} --thoughts continuous --cups 5 --swaps 12 --steps 2000", 70),
         "5 balls, continuous": Arm(
             f"{STREAM} --thoughts continuous --cups 5 --balls all --swaps 8 --window 4 --steps 10000", 280)},
        shown=(1, 3, 6, 8, 12, 20, 30)),
    "direct": Experiment(
        "A model that has learnt to answer directly, with everything in sight: can reward alone teach it to think?",
        [("(After a trial with seed 0.) Directly it answers first rounds of one move, and of two in at least 90 % of cases; at n "
          "= 10 it is near chance.",
          lambda r: all(mean_at(r, "direct", n, "accuracy_first_by_n") >= share for n, share in ((1, 0.99), (2, 0.9)))
          and abs(mean_at(r, "direct", 10) - 1 / 3) <= 0.1),
         ("From there, with a window and a strict curriculum, thoughts reach 99 % at n = 10 in four of five seeds,",
          lambda r: (right_by_n(r, "thoughts from there")[:, 9] >= 0.99).mean() >= 0.8),
         ("and hold at n = 30 (95 %, a mean of all seeds).", reaches(0.95, 30, "thoughts from there"))],
        {"direct": Arm(f"{STREAM} --thoughts none --window 0 --steps 5000", 160),
         "thoughts from there": Arm(f"{TOKENS} --curriculum strict --steps 5000", 280, "direct")}),
    "depth": Experiment(
        "How many moves can be answered at once, by layers, and how many with a thought a move: where moves do not commute (S3 "
        "acting on one ball of three cups), and where as many moves are a sum (Z6, one ball of six cups that turn)? (Chance is 1/3 "
        "and 1/6: what is compared is up to which n 90 % of first rounds are right.)",
        [("(S3 with one layer, and with four and no thoughts, are runs of channel and so were known; in Z6 vectors, ids and "
          "no thoughts had been tried with seed 0.) Vectors have 95 % right at n = 10 in both groups, with one layer and with two,",
          lambda r: right_at_ten(r, "continuous", 1, 2)),
         ("and so has the truth with one.", lambda r: right_at_ten(r, "oracle", 1)),
         ("Without thoughts S3 is reached to n = 3 at most with one layer,", lambda r: far(r, "S3", "none", 1) <= 3),
         ("further with four,", lambda r: far(r, "S3", "none", 4) > far(r, "S3", "none", 1)),
         ("but not to n = 10;", lambda r: all(far(r, "S3", "none", k) < 10 for k in LAYERS)),
         ("Z6 is reached further, with every number of layers.",
          lambda r: all(far(r, "Z6", "none", k) > far(r, "S3", "none", k) for k in LAYERS)),
         ("Filler reaches as far as none, to within one move.",
          lambda r: all(abs(far(r, g, "filler", k) - far(r, g, "none", k)) <= 1 for g in GROUPS for k in (1, 4))),
         ("Ids by reward alone reach further than none with one layer, in both groups.",
          lambda r: all(far(r, g, "tokens", 1) > far(r, g, "none", 1) for g in GROUPS))],
        DEPTH, view="depth"),
    "alphabet": Experiment(
        "Thoughts from new rows, from existing words, from words drawn anew (rows with the words' mean and covariance, which stand "
        "for none of them), from words with a pull to the base: does probable text get in the way?",
        [("New rows learn it: four of five seeds have 90 % right, a mean over n = 1 to 10.",
          lambda r: np.isfinite(updates_to(r, "new rows")).mean() >= 0.8),
         ("Words drawn anew take about as many updates (between half and twice as many).",
          lambda r: 0.5 <= median_updates(r, "words drawn anew") / median_updates(r, "new rows") <= 2),
         ("Words take more, by half at least;",
          lambda r: median_updates(r, "words") >= 1.5 * median_updates(r, "new rows")),
         ("the stronger the pull, the more, and with the strong one most seeds never learn it (as in a trial with seed 0).",
          lambda r: median_updates(r, "words") < median_updates(r, "words, weak pull") < np.inf
          == median_updates(r, "words, strong pull")),
         ("Words stay likely text: at the end they are 2 nats likelier than words drawn anew, whose names mean nothing,",
          lambda r: as_words(r, "words").mean() >= as_words(r, "words drawn anew").mean() + 2),
         ("and the likelier the stronger the pull;",
          lambda r: as_words(r, "words").mean() < as_words(r, "words, weak pull").mean()
          < as_words(r, "words, strong pull").mean()),
         ("but even without a pull they drift, by 1 nat at least from where they were born.",
          lambda r: as_words(r, "words").mean() <= as_words(r, "words", 0).mean() - 1)],
        {"new rows": Arm(f"{ALPHABET} --think_vocab 19", 110),
         "words": Arm(f"{ALPHABET} --alphabet text", 110),
         "words drawn anew": Arm(f"{ALPHABET} --alphabet redrawn", 150),
         "words, weak pull": Arm(f"{ALPHABET} --alphabet text --pull 0.003", 130),
         "words, strong pull": Arm(f"{ALPHABET} --alphabet text --pull 0.03", 110)},
        view="alphabet"),
}


def folder(experiment: Experiment, arm: str, seed: int) -> Path:
    """Where a run lives: a name made of its flags, its base's included. (Not of what train.py makes of them: runs that are
    older than a change of its code have to be deleted by hand.)"""
    it = experiment.arms[arm]
    base = f"{it.by} {experiment.arms[it.after].flags}" if it.after else ""
    return OUT / "runs" / f"{hashlib.sha256(f'{base}|{it.flags}'.encode()).hexdigest()[:12]}_{seed}"


def last_line(out: Path) -> dict | None:
    """The evaluation that ended a run, or None where it has not ended."""
    if not (out / "done").exists():
        return None
    return evaluations(out)[-1]


def evaluations(out: Path) -> list[dict]:
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return [x for x in lines if x["kind"] == "eval"]


def run(experiment: Experiment, arm: str, seed: int) -> None:
    """One run of train.py, unless it is there already. Raises ValueError with its last line where it fails."""
    out, after = folder(experiment, arm, seed), experiment.arms[arm].after
    if last_line(out):
        return
    out.mkdir(parents=True, exist_ok=True)
    for mark in out.rglob("probed"):  # of weights that will be gone
        mark.unlink()
    base = [experiment.arms[arm].by, str(folder(experiment, after, seed) / "ckpt.pt")] if after else []
    call(["train.py", *experiment.arms[arm].flags.split(), *base, "--seed", str(seed), "--out", str(out)], out / "log.txt")
    (out / "done").touch()


def checkpoints(out: Path) -> dict[Path, Path]:
    """{a run's checkpoint: the folder of what probe.py finds there}: those that it kept on the way, then its last one."""
    kept = sorted(out.glob("ckpt_*.pt"))
    return {path: out / path.stem.replace("ckpt", "probe") for path in kept} | {out / "ckpt.pt": out}


def look(experiment: Experiment, arm: str, seed: int) -> None:
    """probe.py on a run's checkpoints, each unless that has been done."""
    for path, found in checkpoints(folder(experiment, arm, seed)).items():
        if not (found / "probed").exists():
            found.mkdir(exist_ok=True)
            call(["-m", "lab.probe", "--checkpoint", str(path), "--out", str(found), *LOOK], found / "probe.txt")
            (found / "probed").touch()


def look_seconds(arm: Arm) -> int:
    return LOOK_SECONDS * (1 + arm.kept)


def call(command: list[str], log: Path) -> None:
    """One of the scripts, on one thread. Raises ValueError with its last line where it fails."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as f:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=f, stderr=f, env=env)
    if done.returncode:
        text = log.read_text().strip()
        raise ValueError(f"{' '.join(command)} failed: {text.splitlines()[-1] if text else done.returncode}")


def run_all(experiment: Experiment, seeds: int) -> None:
    """All runs and what probe.py says of them, two at a time, those that others start from first."""
    jobs = [(arm, s) for s in range(seeds) for arm in experiment.arms]
    left = [j for j in jobs if not last_line(folder(experiment, *j))]
    first, then = ([(run, *j) for j in left if bool(experiment.arms[j[0]].after) == late] for late in (False, True))
    looks = [(look, *j) for j in jobs if j[0] in experiment.probed and not (folder(experiment, *j) / "probed").exists()]
    seconds = sum(experiment.arms[arm].seconds for arm, _ in left)
    seconds += sum(look_seconds(experiment.arms[arm]) for _, arm, _ in looks)
    print(f"{len(left)} of {len(jobs)} runs are to be made" + f", {len(looks)} to be probed" * bool(experiment.probed)
          + f", about {seconds / 60:.0f} minutes of one core")
    bar = tqdm(total=len(left) + len(looks), unit="run")
    pool = ThreadPoolExecutor(2)
    try:
        for now in (first, then, looks):
            running = {pool.submit(work, experiment, arm, seed): arm for work, arm, seed in now}
            for done in as_completed(running):
                done.result()
                bar.update()
                bar.set_postfix_str(running[done])
    finally:  # a run that failed, or Ctrl-C: those that wait in the queue are not begun
        pool.shutdown(cancel_futures=True)
        bar.close()


def mflop(checkpoint: Path, end: dict, n: int = 10) -> tuple[float, float]:
    """Millions of multiplications and additions for one story of one round of n moves, up to its answer: in the blocks (matrix
    products of each place, and each pair of places where one sees the other), and in the heads: V for the answer; forced, N
    logits a thought that is chosen among several; free, all V + N at each of the n slots, as the gate weighs thinking against
    speaking whether it opens or not. end: an evaluation, which says how often a model thinks that may choose. (One thought a
    slot at the most.)"""
    model, rules, _ = load_run(checkpoint)
    c, thoughts = model.config, 0 if rules.think == "never" else round(end.get("thoughts_by_n", [n] * n)[n - 1])
    moves = [x for i in range(n) for x in ([False, True, False] if i < thoughts else [False, False])]
    story = [False] * OPENING + moves + [False] * 2
    is_think = torch.tensor([story])  # after each move a thought, then a comma or the dot; " Where" and "?"
    T = len(story)
    pairs = T * (T + 1) // 2 if not rules.window else int(visible(is_think, rules.window).sum())
    blocks = c.n_layer * (24 * c.n_embd ** 2 * T + 4 * c.n_embd * pairs)
    asked = n * (c.vocab_size + c.think_vocab) if rules.think == "free" else thoughts * c.think_vocab * (c.think_vocab > 1)
    return blocks / 1e6, 2 * c.n_embd * (c.vocab_size + asked) / 1e6


def findings(out: Path) -> dict:
    """What an experiment keeps of probe.json."""
    found = json.loads((out / "probe.json").read_text())
    return {"accuracy_by_n": {name: x["accuracy_by_n"] for name, x in found["conditions"].items()},
            "spliced": found["conditions"]["refed"] == found["conditions"]["own"],  # the same answers and nats, to the bit
            **{k: found[k] for k in ("aoc", "counterfactual", "synonyms", "after_which") if k in found}}


def course(out: Path, end: int) -> list[dict]:
    """Of each checkpoint, in order: its step, how many are right by n, and the area of early answering. end: the last step."""
    found = {int(path.stem[5:] or end): findings(where) for path, where in checkpoints(out).items()}
    return [{"step": step, "accuracy_by_n": x["accuracy_by_n"]["own"], "early": x["aoc"]["early"]} for step, x in found.items()]


def curve(out: Path) -> dict[str, list[float]]:
    """What an experiment keeps of the course of a run, from evaluation to evaluation (accuracy: a mean over n = 1 to 10)."""
    found = evaluations(out)
    return {k: [x[k] for x in found] for k in ("step", "accuracy", "thoughts_as_text") if k in found[0]}


def collect(name: str, seeds: int) -> dict:
    """What figures/NAME.json holds: question, prediction, and for each arm its command and what each seed ended with."""
    experiment = EXPERIMENTS[name]
    keep = ("step", "seconds", "accuracy_by_n", "accuracy_first_by_n", "accuracy_shuffled_by_n", "nats_without_thoughts",
            "thoughts_per_token", "free_accuracy", "thinks_after_moved", "thinks_elsewhere", "thoughts_by_n")
    arms = {}
    for arm, spec in experiment.arms.items():
        outs = [folder(experiment, arm, s) for s in range(seeds)]
        ends = [last_line(out) for out in outs]
        arms[arm] = {"command": f"python train.py {spec.flags}" + (f" {spec.by} <{spec.after}>/ckpt.pt" if spec.after else ""),
                     "mflop": np.mean([mflop(out / "ckpt.pt", end) for out, end in zip(outs, ends)], 0).tolist(),
                     "seeds": [{k: end[k] for k in keep if k in end} for end in ends]}
        for one, out, end in zip(arms[arm]["seeds"], outs, ends):
            one |= {"probe": findings(out)} if arm in experiment.probed else {}
            one |= {"course": course(out, end["step"])} if spec.kept else {}
            one |= {"curve": curve(out)} if experiment.view == "alphabet" else {}
    return {"question": experiment.question, "prediction": experiment.prediction, "view": experiment.view,
            "shown": experiment.shown, "command": f"python -m lab.experiments {name} --seeds {seeds}", "arms": arms}


def write_report(checkpoint: Path | None, out: Path | None) -> None:
    """The page of all experiments that have a result. Raises ValueError."""
    known = folder(EXPERIMENTS["channel"], "tokens, full", 0) / "ckpt.pt" if "channel" in EXPERIMENTS else None
    if checkpoint is None and known and known.exists():
        checkpoint = known
    sections, figures = [], OUT / "figures"
    for name, experiment in EXPERIMENTS.items():
        if (figures / f"{name}.json").exists():
            result = json.loads((figures / f"{name}.json").read_text())
            if result["arms"].keys() != experiment.arms.keys():
                raise ValueError(f"figures/{name}.json has other arms than today's: python -m lab.experiments {name} makes it "
                                 "anew")
            sections.append(section(name, result, verdicts(experiment.claims, result), figures / f"{name}.png"))
    if not sections and checkpoint is None:
        raise ValueError("there is nothing to report yet: python -m lab.experiments channel makes results, --checkpoint PATH "
                         "tells stories")
    out = out or figures / "report.html"
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: a file is wanted, as {out / 'report.html'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(out, sections, checkpoint)
    print(f"{out}: {len(sections)} experiments, " + (f"stories of {checkpoint}" if checkpoint else
          "no stories, as there is no run of channel here (--checkpoint PATH)"))


def main() -> None:
    p = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("name", nargs="?", choices=[*EXPERIMENTS, "report"],
                   help="which one, or a page of all results; none: list them")
    p.add_argument("--seeds", type=int, default=5, help="runs of each arm (5)")
    p.add_argument("--checkpoint", type=Path, help="report: whose stories are told (a run of channel)")
    p.add_argument("--out", type=Path, help="report: the page (figures/report.html)")
    args = p.parse_args()
    if args.name is None:
        for name, e in EXPERIMENTS.items():
            seconds = sum(a.seconds for a in e.arms.values()) + sum(look_seconds(e.arms[arm]) for arm in e.probed)
            print(f"{name}: {e.question}\n    {len(e.arms)} arms, about {seconds / 60:.0f} minutes of one core a seed\n"
                  f"    prediction: {e.prediction}")
        print("python -m lab.experiments channel --seeds 5 runs the first: runs/ keeps what is done, figures/ gets the "
              "results;\npython -m lab.experiments report makes one page of them")
        return
    if args.seeds < 1:
        p.error(f"--seeds must be at least 1, not {args.seeds}")
    if args.name != "report" and (args.checkpoint or args.out):
        p.error("--checkpoint and --out belong to report")
    start = time.time()
    try:
        if args.name == "report":
            return write_report(args.checkpoint, args.out)
        experiment = EXPERIMENTS[args.name]
        run_all(experiment, args.seeds)
        result = collect(args.name, args.seeds)
        (OUT / "figures").mkdir(exist_ok=True)
        (OUT / "figures" / f"{args.name}.json").write_text(json.dumps(result, indent=1))
        judged = in_words(verdicts(experiment.claims, result))
        draw(result, OUT / "figures" / f"{args.name}.png", f"Predicted: {judged}")
    except (ValueError, OSError) as e:
        p.error(str(e))
    print(f"{result['question']}\npredicted: {judged}\n\n{table(result)}\n\n"
          f"{time.time() - start:.0f} s; figures/{args.name}.png and figures/{args.name}.json")


if __name__ == "__main__":
    main()
