"""Questions that take several seeds of several arms. Each is answered by one command.

    python -m lab.experiments                        # lists them, with how long they take
    python -m lab.experiments channel --seeds 5      # figures/channel.png, channel.json, a table
    python -m lab.experiments report                 # figures/report.html: all results, and stories

An experiment is a question, a prediction and arms. The prediction was written before its runs;
where trials had come first, it says so. It is a list of sentences, and a function of the result
says of each whether it held. An arm is a command: a script and its flags. Each (arm, seed) is one
run in runs/, found again by its command. So an experiment that was cut off goes on, and arms that
two experiments share are run once. Where the question is what thoughts do, lab.probe looks at each
checkpoint once, and its findings lie in the run's folder. Two runs go at a time, one thread each.
`--arms` makes the runs of some arms alone; the others stay as figures/NAME.json has them. Tables
and the page are in report.py, figures in figures.py.

Left out on purpose: a sweep over hyperparameters; anything that a run's own folder does not say.
"""
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import command
from download import download
from lab.figures import draw
from lab.probe import EDGES, kl_to_judge, nats_by_token, nats_of_text, own_text
from lab.report import (
    APPROACHES, GROUPS, LENGTHS, NUMBERS, OTHERS, SHOWN, Claim, after_letters, after_none,
    as_words, by_distance, by_token, courses, cut, in_layers, in_words, kls, mean_area, mean_at,
    nats, parts, probed, reach, right_and_area, right_by_n, scores, section, slope, table,
    taken_off, unaided, updates_to, verdicts, write_page)
from lab.tasks import make
from model import GPT, load
from run import Run, open_run, probe_of
from settings import Parser

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT  # where runs/ and figures/ are
JUDGE = ROOT / "runs" / "judge"
TASKS = ("parity", "even_pairs", "cycle_navigation")  # of `regular`
GUESS = {"parity": 1 / 2, "even_pairs": 1 / 2, "cycle_navigation": 1 / 5}
SCORES = ("accuracy", "accuracy_another", "accuracy_none")  # of a run on a task, over all rows
LOOK = {"cups": 32, "text": 512}  # --stories of lab.probe; on a text windows that are read
LOOK_SECONDS = 15  # of one call of it, roughly
KEPT = ("step", "seconds", "accuracy_by_n", "accuracy_first_by_n", "accuracy_another_by_n",
        "nats_without_thoughts", "thoughts_per_token", "free_accuracy", "thinks_after_moved",
        "thinks_elsewhere", "thoughts_by_n")  # of a run's last evaluation


@dataclass
class Arm:
    """One way to train, run with several seeds.

    command: a script and its flags, as they follow `python`. seconds: of one run on one thread,
    roughly. after: the arm whose checkpoint this one needs. kept: how many checkpoints stay on the
    way, roughly.
    """
    command: str
    seconds: int
    after: str | None = None
    kept: int = 0

    @property
    def by(self) -> str:
        """The flag that takes the other arm's checkpoint."""
        return "--thinker" if self.command.startswith("-m lab.distil") else "--model"


class TaskFile(NamedTuple):
    """runs/NAME.jsonl, which lab.tasks makes. source: the download in runs/ that it is made of."""
    name: str
    source: str | None = None


@dataclass
class Experiment:
    """claims: the prediction, sentence by sentence. probed: the arms that lab.probe looks at. view:
    which tables are made of the findings (report.py). shown: n of the tables. What the arms need in
    runs/ is made first. files: made by lab.tasks. texts: downloads, {name in runs/: address}.
    judge: a model, in runs/judge. against: two arms. What all others take off the nats of the
    first one is sorted by what the second one needs (probe.nats_by_token)."""
    question: str
    claims: list[Claim]
    arms: dict[str, Arm]
    probed: tuple[str, ...] = ()
    view: str | None = None
    shown: tuple[int, ...] = SHOWN
    files: tuple[TaskFile, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    judge: Arm | None = None
    against: tuple[str, str] | None = None

    @property
    def prediction(self) -> str:
        return " ".join(text for text, _ in self.claims)


# Commands that several arms share

STREAM = "train.py --approach stream"
TOKENS = f"{STREAM} --think_vocab 2048"
VECTORS = f"{STREAM} --thoughts continuous"
NONE = f"{STREAM} --thoughts none --window 0"
FILLER = f"{STREAM} --thoughts filler --window 0"
LEARNER = "-m lab.distil --think_vocab 2048"  # of another model's thoughts
ORACLE = "-m lab.distil --oracle"
# What lab.distil sets where a model is the thinker. With the truth it keeps the presets of the
# game, so all of it is typed here.
GIVEN = ("--window 0 --curriculum off --new_tokens 40 --samples 1 --prompts 32 --baseline none "
         "--lr 4e-3 --steps 1500")
BARE = f"{TOKENS} --curriculum off --window 0 --steps 800"
FIVE = '--data "cups m=5 swaps=12"'
BALLS = '--data "cups m=5 balls=all swaps=8"'
IDLE = '--data "cups idle=0.4"'
# The gate begins where a third of the thoughts is skipped. From 0.9 on it hardly tries to skip, and
# to skip one pays only for a model that can go on from an older thought. From 0.5 on, one seed of
# three gives up thinking (docs/RESULTS.md, `when`).
RELEASED = (f"{STREAM} {IDLE} --think free --think_prior 0.7 --think_cost 0.2 --curriculum off "
            "--steps 800")
# Of alphabet. There are 19 rows, as pico has words. Each of 15 pairs of cup and move has to find
# one of its cup's before the reader makes up its mind. So codes stay broader in the first stages,
# and there are more contexts. At birth words think "," and "."; any other costs some 10 nats of KL,
# and a round of ten some 100. At a pull of 0.003 that is less than what knowing the cup is worth,
# log 3; at 0.03 it is more.
WORDS = "-m lab.alphabet --alphabet"
PICO = "--model pico --entropy 0.4 --prompts 32 --steps 1600 --eval_every 100"

CHANNEL = {
    "tokens, window": Arm(TOKENS, 100),
    "continuous, window": Arm(f"{VECTORS} --steps 600", 60),
    "oracle, window": Arm(f"{ORACLE} --steps 600", 60),
    "filler, window": Arm(f"{STREAM} --thoughts filler --steps 1100", 90),
    "none, window": Arm(f"{STREAM} --thoughts none --steps 1450", 90),
    "tokens, full": Arm(LEARNER, 90, "tokens, window"),
    "continuous, full": Arm("-m lab.distil --thoughts continuous", 135, "continuous, window"),
    "oracle, full": Arm(f"{ORACLE} {GIVEN}", 80),
    # The controls have steps for as much time as `tokens, full` takes on a quiet machine, its
    # thinker's time included.
    "filler, full": Arm(f"{FILLER} --steps 2200", 180),
    "none, full": Arm(f"{NONE} --steps 3000", 180),
    "none, full, 4 layers": Arm(f"{NONE} --steps 1150 --model scratch:4x64", 180)}


def taken(*arms: str) -> dict[str, Arm]:
    """Arms of channel, which another experiment shares."""
    return {arm: CHANNEL[arm] for arm in arms}


# Of depth. Both worlds have five moves. One ball under three cups: they are of the group S3, and do
# not commute. One ball under six cups that turn: Z6, a sum. Controls see everything, and have about
# the same seconds each. Arms that think have a window, so they see less.
LAYERS = (1, 2, 4)
WORLDS = {"S3": "", "Z6": ' --data "cups m=6 moves=turns"'}
EACH = {
    "none, 1 layer": Arm(f"{NONE} --steps 3000", 110),
    "none, 2 layers": Arm(f"{NONE} --steps 1900 --model scratch:2x64", 110),
    "none, 4 layers": Arm(f"{NONE} --steps 1150 --model scratch:4x64", 110),
    "filler, 1 layer": Arm(f"{FILLER} --steps 2200", 110),
    "filler, 4 layers": Arm(f"{FILLER} --steps 850 --model scratch:4x64", 110),
    "continuous, 1 layer": Arm(f"{VECTORS} --steps 600", 45),
    "continuous, 2 layers": Arm(f"{VECTORS} --steps 600 --model scratch:2x64", 60),
    "oracle, 1 layer": Arm(f"{ORACLE} --steps 600", 45)}
DEPTH = {f"{group}, {arm}": Arm(it.command + world, it.seconds)
         for group, world in WORLDS.items() for arm, it in EACH.items()}
DEPTH |= {"S3, tokens, 1 layer": Arm(TOKENS, 100),
          "Z6, tokens, 1 layer": Arm(f"{TOKENS} --curriculum on --steps 3000{WORLDS['Z6']}", 130)}

# Of rows: the first command, and `stream`, with any number of thinking rows
ROWS = {f"{approach}, N = {N}": Arm(f"train.py --approach {approach} --think_vocab {N}", seconds)
        for approach, seconds in (("stream", 50), ("teacher", 140)) for N in NUMBERS}

# Of regular: what a finite automaton reads, symbol by symbol
REGULAR = {f"{task}, ids": Arm(
    f"train.py --data runs/{task}.jsonl --eval_data runs/{task}_test.jsonl", 150)
    for task in TASKS}

# Of text: Tiny Shakespeare byte by byte, from scratch, with 1, 2 or 3 characters in sight. Two
# siblings are enough where each of 64 thoughts is paid for by the text behind it, and text is what
# the reader needs. With the default's entropy thoughts are too noisy to be worth reading.
SHAKESPEARE = {"shakespeare.txt": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
               "tinyshakespeare/input.txt"}
SMALL = ("--data runs/shakespeare.txt --model bytes:1x128 --prompt_tokens 8 --new_tokens 64 "
         "--lr 3e-3 --prompts 32")
LINES = f"train.py --approach stream {SMALL}"
ALONE = "--samples 1 --baseline none"  # where nothing is drawn, siblings would be alike
EVERY = "--think forced --budget 64"  # a thought after each character
CODE = "--think_vocab 64 --think_lr 6e-3 --samples 2 --entropy 0.1 --gamma 0.9"
SIGHTS = (1, 2, 3)


def reading(w: int) -> dict[str, Arm]:
    """Arms that see w characters, and those with thoughts the last one of these as well."""
    seen = f"{LINES} --window {w}"
    return {f"none, {w}": Arm(f"{seen} --thoughts none {ALONE} --steps 2000", 200),
            f"ids, {w}": Arm(f"{seen} {EVERY} {CODE} --steps 1000", 400),
            f"vectors, {w}": Arm(f"{seen} {EVERY} --thoughts continuous {ALONE} --steps 300", 130)}


READING = {arm: it for w in SIGHTS for arm, it in reading(w).items()}
READING |= {"filler, 1": Arm(f"{LINES} --window 1 {EVERY} --thoughts filler {ALONE} --steps 600",
                             200),
            "none, all in sight": Arm(f"{LINES} --window 0 --thoughts none {ALONE} --steps 2000",
                                      300)}

# Of chess: openings of sixteen moves, eight a side, byte by byte, and a thought after each move.
# Five characters are about the last move: of a short one also the end of the one before. Thoughts
# come to a base that has read enough. In a trial from scratch ids were as good as no thoughts, as
# text and code had to be learnt at once.
GAMES = {"8moves_v3.pgn.zip": "https://raw.githubusercontent.com/official-stockfish/books/"
         "33185e117fc26e4f6d01610236bcdf71e6edae5b/8moves_v3.pgn.zip"}
OPENINGS = "train.py --approach stream --data runs/chess.jsonl --prompt_tokens 8 --new_tokens 120"
ALL_READ = (f"{OPENINGS} --model bytes:1x128 --prompts 32 --thoughts none {ALONE} --lr 3e-3 "
            "--steps 2000")
AFTER = f"{OPENINGS} --window 5 --lr 1e-3"  # the arms that start from the base
MOVES = "--think forced --think_after word --budget 40"  # a move has three characters or more
PLAYED = {
    "base, 5": Arm(f"{ALL_READ} --window 5", 320),
    "none, 5": Arm(f"{AFTER} --prompts 32 --thoughts none {ALONE} --steps 2000", 320, "base, 5"),
    "filler, 5": Arm(f"{AFTER} --prompts 32 {MOVES} --thoughts filler {ALONE} --steps 600", 200,
                     "base, 5"),
    "ids, 5": Arm(f"{AFTER} --prompts 16 {MOVES} --think_vocab 64 --think_lr 6e-3 --samples 4 "
                  "--entropy 0.1 --gamma 0.97 --steps 1800", 1100, "base, 5"),
    "vectors, 5": Arm(f"{AFTER} --prompts 16 {MOVES} --thoughts continuous {ALONE} --steps 300",
                      150, "base, 5"),
    "none, all in sight": Arm(f"{ALL_READ} --window 0", 350)}

# Of forgotten: the same model and text as in `text`, but thoughts that serve one character and are
# gone. Three of them read it and the two before, each in a window of one.
BRANCH = f"train.py --approach next_token {SMALL} --window 1 --max_thoughts 3"
FORGOTTEN = {
    "none, 1": READING["none, 1"],
    "filler, 1": Arm(f"{BRANCH} --think forced --thoughts filler {ALONE} --steps 400", 200),
    "ids, 1": Arm(f"{BRANCH} --think forced --think_vocab 64 --think_lr 6e-3 --samples 2 "
                  "--entropy 0.1 --steps 700", 550),
    "vectors, 1": Arm(f"{BRANCH} --think forced --thoughts continuous {ALONE} --steps 300", 200),
    "ids set free, 1": Arm(  # with a third of the rate: it has learnt to read
        "train.py --approach next_token --data runs/shakespeare.txt --prompt_tokens 8 "
        "--new_tokens 64 --lr 1e-3 --prompts 32 --window 1 --max_thoughts 3 --think free "
        "--think_prior 0.5 --think_cost 0.1 --think_vocab 64 --think_lr 6e-3 --samples 2 "
        "--entropy 0.1 --steps 300", 250, "ids, 1"),
    "none, 3": READING["none, 3"], "none, all in sight": READING["none, all in sight"]}

# Of judged: the same model, but what it reads it writes itself. Filler has as many updates and
# contexts as ids, and less time, since it has one rollout of each.
OWN = f"train.py --approach teacher --teacher runs/judge/ckpt.pt {SMALL}"
WRITING = {"none": Arm(f"{OWN} --window 1 --thoughts none {ALONE} --steps 1200", 350),
           "filler": Arm(f"{OWN} --window 1 {EVERY} --thoughts filler {ALONE} --steps 600", 300),
           "ids": Arm(f"{OWN} --window 1 {EVERY} {CODE} --steps 600", 450),
           "none, all in sight": Arm(f"{OWN} --window 0 --thoughts none {ALONE} --steps 1200", 350)}


# What claims say of a result. Shares are means over seeds

CHANCE, NEAR = 1 / 3, 0.1  # of three cups; near: within 10 points
WINDOWS = ("tokens, window", "continuous, window", "oracle, window")
Check = Callable[[dict], bool]


def both(*checks: Check) -> Check:
    return lambda result: all(check(result) for check in checks)


def reaches(share: float, n: int, *arms: str) -> Check:
    """At least this share of answers is right at n, in each of these arms."""
    return lambda result: all(mean_at(result, arm, n) >= share for arm in arms)


def near_chance(ns: tuple[int, ...], *arms: str) -> Check:
    return lambda result: all(abs(mean_at(result, arm, n) - CHANCE) <= NEAR
                              for arm in arms for n in ns)


def learned_nothing(result: dict, arm: str) -> bool:
    """Over n = 1 to 10."""
    return bool(right_by_n(result, arm)[:, :10].mean() <= CHANCE + NEAR)


def lost_with(seeds: list[dict], name: str) -> bool:
    """Is a model near chance at n = 10 with these thoughts instead of its own?"""
    return bool(abs(np.mean([x["accuracy_by_n"][name][9] for x in seeds]) - CHANCE) <= NEAR)


def used_once_right(run: list[tuple[float, float]]) -> bool:
    """training: is there a checkpoint with 90 % right, and does each such one need its thoughts?"""
    areas = [area for right, area in run if right > 0.9]
    return bool(areas) and min(areas) > 0.4  # the area of early answering: 0, it needs none


def right_at_ten(result: dict, kind: str, *layers: int) -> bool:
    """depth: are 95 % right at n = 10, in both groups?"""
    arms = (f"{g}, {kind}, {in_layers(k)}" for g in GROUPS for k in layers)
    return reaches(0.95, 10, *arms)(result)


def far(result: dict, group: str, kind: str, layers: int) -> float:
    """depth: how far an arm reaches."""
    return float(reach(result, f"{group}, {kind}, {in_layers(layers)}").mean())


def updates(result: dict, arm: str) -> int:
    """Of all seeds together, until the curriculum was done."""
    return sum(s["step"] for s in result["arms"][arm]["seeds"])


def ended_at(result: dict, arm: str) -> float:
    """rows: updates until the curriculum was done, a median over seeds."""
    return float(np.median([s["step"] for s in result["arms"][arm]["seeds"]]))


def median_updates(result: dict, arm: str) -> float:
    return float(np.median(updates_to(result, arm)))


def every_run_right(result: dict, *arms: str) -> bool:
    """rows: has each run of these arms 95 % right at n = 10?"""
    return all(right_by_n(result, arm)[:, 9].min() >= 0.95 for arm in arms)


def gap_closed(result: dict) -> float:
    """judged: the share of the gap between one character in sight and all that ids close."""
    none, ids, all_ = (kls(result, arm).mean() for arm in ("none", "ids", "none, all in sight"))
    return float((none - ids) / max(none - all_, 1e-9))


def seeds_of(result: dict, key: str) -> list:
    """One value for each seed, of all arms that may choose when to think."""
    return [s[key] for found in result["arms"].values() for s in found["seeds"] if key in s]


EXPERIMENTS = {
    "channel": Experiment(
        "What does a channel of one thought a move carry, as an id, as a vector, as the truth, as "
        "nothing?",
        [("With a window, ids, vectors and the truth reach 100 % at n = 10 and hold at n = 30;",
          both(reaches(0.995, 10, *WINDOWS), reaches(0.95, 30, *WINDOWS))),
         ("filler and none stay near chance.",
          near_chance((3, 6, 10), "filler, window", "none, window")),
         ("With full attention vectors reach 99 % at n = 10 and fall at n = 30 (said of an arm "
          "without a thinker);",
          lambda r: mean_at(r, "continuous, full", 10) >= 0.99
          and mean_at(r, "continuous, full", 30) < 0.9),
         # over chance, by more than 10 points
         ("filler and none creep up to n = 4.",
          both(*(reaches(CHANCE + NEAR, n, "filler, full", "none, full") for n in (2, 3, 4))))],
        CHANNEL),
    "content": Experiment(
        "Where does the gain come from: from the recipe, from more places to compute in, or from "
        "what thoughts say?",
        [("At n = 6 and n = 10 at least 50 points of the gain over no thoughts are content;",
          lambda r: all(parts(r)["content"][:, n - 1].mean() >= 0.5 for n in (6, 10))),
         ("compute and recipe are at most 10 points each at n = 3, 6 and 10.",
          lambda r: all(parts(r)[x][:, n - 1].mean() <= 0.1
                        for x in ("compute", "recipe") for n in (3, 6, 10))),
         ("(Known in part, from probes of earlier models.) With another story's thoughts, its own "
          "in another order, random ids or one id for all the same model is within 10 points of "
          "chance at n = 10.",
          lambda r: all(lost_with(probed(r)["tokens, full"], name) for name in OTHERS))],
        taken("tokens, window", "tokens, full", "filler, full", "none, full") | {
            # Weights that never move: its thoughts depend on the moves by accident alone. A new
            # model learns them, and to read them, in the very way of `tokens, full`.
            "random policy": Arm(f"{TOKENS} --lr 0 --think_lr 0 --curriculum off --steps 1", 10),
            "random policy, full": Arm(LEARNER, 90, "random policy")},
        ("tokens, full",), "content", shown=(1, 2, 3, 6, 10, 30)),
    "faithful": Experiment(
        "Does the answer hang on each thought, where a net could do without, and where it could "
        "not?",
        [("With full attention the area over the curve of early answering is under 0.1 where a net "
          "without thoughts gets first rounds right,",
          lambda r: 0 < unaided(r) and all(mean_area(r, "tokens, full", "early", m) < 0.1
                                           for m in cut(r) if m <= unaided(r))),
         ("and over 0.4 at n = 10, as it is with a window.",
          lambda r: all(mean_area(r, arm, "early", 10) > 0.4 for arm in probed(r))),
         ("One id for all does as little as no thought (0.1 apart at most),",
          lambda r: all(
              abs(mean_area(r, arm, "early", m) - mean_area(r, arm, "filler", m)) <= 0.1
              for arm in probed(r) for m in cut(r))),
         ("synonyms do as well as own thoughts (under 0.1),",
          lambda r: all(mean_area(r, arm, "paraphrase", m) < 0.1
                        for arm in probed(r) for m in cut(r))),
         ("(what follows was known in part, from probes of earlier models) a wrong word is "
          "followed by 95 % of answers, wherever it stands,",
          lambda r: all(min(by_distance(seeds)) >= 0.95 for seeds in probed(r).values())),
         ("and own thoughts fed again change nothing, to the bit.",
          lambda r: all(x["spliced"] for seeds in probed(r).values() for x in seeds))],
        taken("tokens, window", "tokens, full", "none, full"),
        ("tokens, window", "tokens, full"), "faithful"),
    "training": Experiment(
        "While a model learns to think: do answers hang on its thoughts before they get right, "
        "from then on, or later?",
        [("No later: each checkpoint with over 90 % right at n = 3 has an area over the curve of "
          "early answering over 0.4 there, with a window and with full attention.",
          lambda r: all(used_once_right(run) for arm in courses(r)
                        for run in right_and_area(r, arm, 3))),
         ("In longer rounds before: with a window each run has a checkpoint with under 60 % right "
          "at n = 10 and an area over 0.4 there.",
          lambda r: all(any(right < 0.6 and area > 0.4 for right, area in run)
                        for run in right_and_area(r, "tokens, window", 10)))],
        {"tokens, window": Arm(f"{TOKENS} --keep_every 25", 50, kept=12),
         "tokens, full": Arm(f"{LEARNER} --keep_every 200", 90, "tokens, window", kept=7)},
        ("tokens, window", "tokens, full"), "training"),
    "waterfall": Experiment(
        "Which parts of the recipe does it need? One is taken away at a time; and a setting that "
        "fails is repaired step by step.",
        [("Without the window, without the curriculum, or without siblings as a baseline nothing "
          "is learnt beyond n = 3.",
          lambda r: all(mean_at(r, arm, n) <= CHANCE + NEAR for n in (4, 6, 10) for arm in (
              "full attention", "no curriculum", "baseline: mean of the batch", "no baseline"))),
         ("Without the entropy bonus codes collapse: fewer than 80 % are right at n = 2.",
          lambda r: mean_at(r, "no entropy bonus", 2) < 0.8),
         ("Where answers have no gradient of their own nothing is learnt, since nobody learns to "
          "read the thoughts.",
          lambda r: learned_nothing(r, "answers by reward alone")),
         ("Credit for the next few tokens alone (gamma 0.5) works, but takes more updates.",
          lambda r: mean_at(r, "gamma 0.5", 10) >= 0.95
          and updates(r, "gamma 0.5") > updates(r, "the recipe")),
         ("(Written when all that had been run.) Where all four are missing nothing is learnt, and "
          "siblings and the bonus alone do not help: it needs the window.",
          lambda r: all(learned_nothing(r, arm) for arm in r["arms"]
                        if arm.startswith("repaired")))],
        {"the recipe": Arm(TOKENS, 90),
         "full attention": Arm(f"{TOKENS} --window 0", 115),
         "no curriculum": Arm(f"{TOKENS} --curriculum off", 220),
         "no entropy bonus": Arm(f"{TOKENS} --entropy 0", 90),
         "baseline: mean of the batch": Arm(f"{TOKENS} --baseline batch", 65),
         "no baseline": Arm(f"{TOKENS} --baseline none", 50),
         "gamma 0.5": Arm(f"{TOKENS} --gamma 0.5", 90),
         "answers by reward alone": Arm(f"{TOKENS} --answer_grad off", 50),
         # From the other side. The window is the next step: with it the last of these is "no
         # curriculum". Then comes the recipe.
         "repaired: nothing yet": Arm(f"{BARE} --entropy 0 --baseline batch", 110),
         "repaired: siblings": Arm(f"{BARE} --entropy 0", 110),
         "repaired: siblings, bonus": Arm(BARE, 110)},
        view="waterfall"),
    "when": Experiment(
        "Released from forced thinking, at a price for each thought: when does it still think?",
        [("(The second prediction. The first, under 30 % elsewhere and a slope of 0.4, at 0.05 and "
          "0.2 nats, failed in part. This one was written after trials with seeds 0 to 2, two of "
          "them at these settings; seeds 3 and 4 came last.) Released, it thinks after 95 % of "
          "moves of the ball and more,",
          lambda r: min(seeds_of(r, "thinks_after_moved")) >= 0.95),
         ("and after 10 % at most of the moves that leave it where it is, whatever the seed.",
          lambda r: max(seeds_of(r, "thinks_elsewhere")) <= 0.1),
         ("The answers stay right (99 % at n = 10).", reaches(0.99, 10, "forced", "released")),
         ("Thoughts against n is a line whose slope is the share of moves that move the ball (0.48 "
          "here).",
          lambda r: all(abs(slope(x) - 0.48) < 0.05 for x in seeds_of(r, "thoughts_by_n"))),
         ("A filler after every move, which is more of them, leaves the answers near chance.",
          near_chance((3, 6, 10), "filler")),
         ("So does one id for all at the very places that were learnt.",
          lambda r: all(lost_with(seeds, "constant") for seeds in probed(r).values()))],
        {"forced": Arm(f"{TOKENS} {IDLE}", 220),
         "filler": Arm(f"{STREAM} --thoughts filler {IDLE} --steps 1450", 90),
         "released": Arm(RELEASED, 170, "forced")},
        ("released",), "when"),
    "worlds": Experiment(
        "Harder worlds: five cups, and all balls at once, of three cups (6 orders) and of five "
        "(120). How far does one thought a move reach?",
        [("(Written after trials with seeds 0 to 2.) Five cups: vectors have 98 % right at n = 12, "
          "the longest rounds of their training, and 95 % at n = 30.",
          both(reaches(0.98, 12, "5 cups, continuous"), reaches(0.95, 30, "5 cups, continuous"))),
         ("All orders of five balls: 95 % at n = 8, the longest of their training;",
          reaches(0.95, 8, "5 balls, continuous")),
         ("beyond that it falls, to between 80 and 95 % at n = 20 and between 60 and 80 % at n = "
          "30.",
          lambda r: all(low <= mean_at(r, "5 balls, continuous", n) <= high
                        for low, high, n in ((0.8, 0.95, 20), (0.6, 0.8, 30)))),
         ("(After a trial with seed 0.) Ids by reward alone, with a strict curriculum: five cups "
          "have 95 % at n = 12 in four of five seeds.",
          lambda r: (right_by_n(r, "5 cups, tokens")[:, 11] >= 0.95).mean() >= 0.8),
         ("(After a trial with seed 1.) All orders of three balls by ids: 90 % at n = 10 in four "
          "of five seeds.",
          lambda r: (right_by_n(r, "3 balls, tokens")[:, 9] >= 0.9).mean() >= 0.8)],
        {"5 cups, tokens": Arm(f"{TOKENS} {FIVE}", 250),
         "3 balls, tokens": Arm(f'{TOKENS} --data "cups balls=all"', 350),
         "5 cups, continuous": Arm(f"{VECTORS} {FIVE} --steps 2000", 70),
         "5 balls, continuous": Arm(f"{VECTORS} {BALLS} --window 4 --steps 10000", 280)},
        shown=(1, 3, 8, 12, 30)),
    "direct": Experiment(
        "A model that has learnt to answer directly, with everything in sight: can reward alone "
        "teach it to think?",
        [("(After a trial with seed 0.) Directly it answers first rounds of one move, and of two "
          "in at least 90 % of cases; at n = 10 it is near chance.",
          lambda r: mean_at(r, "direct", 1, "accuracy_first_by_n") >= 0.99
          and mean_at(r, "direct", 2, "accuracy_first_by_n") >= 0.9
          and near_chance((10,), "direct")(r)),
         ("From there, with a window and a strict curriculum, thoughts reach 99 % at n = 10 in "
          "four of five seeds,",
          lambda r: (right_by_n(r, "thoughts from there")[:, 9] >= 0.99).mean() >= 0.8),
         ("and hold at n = 30 (95 %, a mean of all seeds).",
          reaches(0.95, 30, "thoughts from there"))],
        {"direct": Arm(f"{NONE} --steps 5000", 160),
         "thoughts from there": Arm(f"{TOKENS} --steps 5000", 280, "direct")}),
    "depth": Experiment(
        "How many moves can be answered at once, by layers, and how many with a thought a move: "
        "where moves do not commute (S3 acting on one ball of three cups), and where as many moves "
        "are a sum (Z6, one ball of six cups that turn)? (Chance is 1/3 and 1/6: what is compared "
        "is up to which n 90 % of first rounds are right.)",
        [("(S3 with one layer, and with four and no thoughts, are runs of channel and so were "
          "known; in Z6 vectors, ids and no thoughts had been tried with seed 0.) Vectors have 95 "
          "% right at n = 10 in both groups, with one layer and with two,",
          lambda r: right_at_ten(r, "continuous", 1, 2)),
         ("and so has the truth with one.", lambda r: right_at_ten(r, "oracle", 1)),
         ("Without thoughts S3 is reached to n = 3 at most with one layer,",
          lambda r: far(r, "S3", "none", 1) <= 3),
         ("further with four,", lambda r: far(r, "S3", "none", 4) > far(r, "S3", "none", 1)),
         ("but not to n = 10;", lambda r: all(far(r, "S3", "none", k) < 10 for k in LAYERS)),
         ("Z6 is reached further, with every number of layers.",
          lambda r: all(far(r, "Z6", "none", k) > far(r, "S3", "none", k) for k in LAYERS)),
         ("Filler reaches as far as none, to within one move.",
          lambda r: all(abs(far(r, g, "filler", k) - far(r, g, "none", k)) <= 1
                        for g in GROUPS for k in (1, 4))),
         ("Ids by reward alone reach further than none with one layer, in both groups.",
          lambda r: all(far(r, g, "tokens", 1) > far(r, g, "none", 1) for g in GROUPS))],
        DEPTH, view="depth"),
    "rows": Experiment(
        "How many thinking rows does a language of three cups want?",
        [("(After trials with one seed of N = 8, 16 and 16,384.) From 16 rows on every run has 95 "
          "% right at n = 10, with both approaches;",
          lambda r: every_run_right(r, *(arm for arm in r["arms"] if not arm.endswith("N = 8")))),
         ("8 rows are enough as well, for most runs.",
          lambda r: all((right_by_n(r, f"{x}, N = 8")[:, 9] >= 0.95).mean() > 0.5
                        for x in APPROACHES)),
         ("More rows need fewer updates: 2,048 at most two thirds of those of 16.",
          lambda r: all(ended_at(r, f"{x}, N = 2048") <= ended_at(r, f"{x}, N = 16") * 2 / 3
                        for x in APPROACHES)),
         ("Of 2,048 rows a hundred at least are in use, as synonyms of a few words.",
          lambda r: min(x["usage"]["perplexity"] for x in probed(r)["stream, N = 2048"]) >= 100)],
        ROWS, tuple(arm for arm in ROWS if arm.startswith("stream")), "rows"),
    "alphabet": Experiment(
        "Thoughts from new rows, from existing words, from words drawn anew (rows with the words' "
        "mean and covariance, which stand for none of them), from words with a pull to the base: "
        "does probable text get in the way?",
        [("New rows learn it: four of five seeds have 90 % right, a mean over n = 1 to 10.",
          lambda r: np.isfinite(updates_to(r, "new rows")).mean() >= 0.8),
         ("Words drawn anew take about as many updates (between half and twice as many).",
          lambda r: 0.5 <= median_updates(r, "words drawn anew")
          / median_updates(r, "new rows") <= 2),
         ("Words take more, by half at least;",
          lambda r: median_updates(r, "words") >= 1.5 * median_updates(r, "new rows")),
         ("the stronger the pull, the more, and with the strong one most seeds never learn it (as "
          "in a trial with seed 0).",
          lambda r: median_updates(r, "words") < median_updates(r, "words, weak pull") < np.inf
          == median_updates(r, "words, strong pull")),
         ("Words stay likely text: at the end they are 2 nats likelier than words drawn anew, "
          "whose names mean nothing,",
          lambda r: as_words(r, "words").mean() >= as_words(r, "words drawn anew").mean() + 2),
         ("and the likelier the stronger the pull;",
          lambda r: as_words(r, "words").mean() < as_words(r, "words, weak pull").mean()
          < as_words(r, "words, strong pull").mean()),
         ("but even without a pull they drift, by 1 nat at least from where they were born.",
          lambda r: as_words(r, "words").mean() <= as_words(r, "words", 0).mean() - 1)],
        {"new rows": Arm(f"{STREAM} {PICO} --think_vocab 19", 110),
         "words": Arm(f"{WORDS} text {PICO}", 110),
         "words drawn anew": Arm(f"{WORDS} redrawn {PICO}", 150),
         "words, weak pull": Arm(f"{WORDS} text --pull 0.003 {PICO}", 130),
         "words, strong pull": Arm(f"{WORDS} text --pull 0.03 {PICO}", 110)},
        view="alphabet"),
    "regular": Experiment(
        "Regular languages (arXiv 2207.02098), one thought per symbol: trained on 1 to 40 symbols, "
        "how many answers are right at 41 to 500?",
        [("(With 2,048 rows, or with twice the learning rates, cycle navigation had been right in "
          "three seeds of five. Seeds 1 and 2 had been tried with 64 rows and today's rates.) Ids "
          "by reward alone have 99 % in each task, in four of five seeds.",
          lambda r: all((scores(r, f"{task}, ids") >= 0.99).mean() >= 0.8 for task in TASKS)),
         ("With another's thoughts the same models guess (within 10 points).",
          lambda r: all(abs(scores(r, f"{task}, ids", "accuracy_another").mean() - GUESS[task])
                        <= 0.1 for task in TASKS))],
        REGULAR, view="regular", files=tuple(map(TaskFile, TASKS))),
    "text": Experiment(
        "Tiny Shakespeare with one, two or three characters in sight, and a thought after each: "
        "what do thoughts take off the nats of the next character?",
        [("(Seeds 0 and 1 had been tried with one character in sight, all else was not known.) "
          "With one in sight, ids by reward alone take off at least 0.2 nats, in every seed;",
          lambda r: taken_off(r, "ids, 1").min() >= 0.2),
         ("one id for all takes off nothing (within 0.02).",
          lambda r: abs(taken_off(r, "filler, 1").mean()) <= 0.02),
         ("With two in sight, ids take off 0.03 in four of five seeds;",
          lambda r: (taken_off(r, "ids, 2") >= 0.03).mean() >= 0.8),
         ("with three, less than that.", lambda r: taken_off(r, "ids, 3").mean() < 0.03),
         ("Another text's thoughts cost 0.05 nats more than own ones, with each window.",
          lambda r: all(np.mean(nats(r, f"ids, {w}", "another") - nats(r, f"ids, {w}")) >= 0.05
                        for w in SIGHTS)),
         ("Vectors take off more than ids, with each window.",
          lambda r: all(taken_off(r, f"vectors, {w}").mean() > taken_off(r, f"ids, {w}").mean()
                        for w in SIGHTS)),
         ("With one in sight, ids close 30 % of the gap to a model that sees all.",
          lambda r: taken_off(r, "ids, 1").mean()
          >= 0.3 * (nats(r, "none, 1").mean() - nats(r, "none, all in sight").mean()))],
        READING, tuple(arm for arm in READING if arm.startswith("ids")), view="text",
        texts=SHAKESPEARE),
    "chess": Experiment(
        "Chess openings, with five characters in sight and a thought after each move: what do "
        "thoughts take off the nats of the next character?",
        [("(After 600 updates instead of 1,800, ids had been seen on few windows, a little better "
          "than no thoughts in one seed and worse in one. Seed 0 had then been seen to its end, at "
          "0.81 nats, and 0.88 without thoughts.) Ids by reward alone are at least 0.03 nats under "
          "the better control, in all seeds.",
          lambda r: (nats(r, "ids, 5") <= min(nats(r, arm).mean() for arm in (
              "none, 5", "filler, 5")) - 0.03).all()),
         ("One id for all is within 0.02 of no thoughts.",
          lambda r: abs(taken_off(r, "filler, 5").mean()) <= 0.02),
         ("Another text's thoughts cost at least 0.05 nats more than own ones.",
          lambda r: np.mean(nats(r, "ids, 5", "another") - nats(r, "ids, 5")) >= 0.05),
         ("Vectors take off more than ids.",
          lambda r: taken_off(r, "vectors, 5").mean() > taken_off(r, "ids, 5").mean()),
         ("Ids close at least 20 % of the gap to a model that sees all, which has read half as "
          "much.", lambda r: taken_off(r, "ids, 5").mean()
          >= 0.2 * (nats(r, "none, 5").mean() - nats(r, "none, all in sight").mean()))],
        PLAYED, ("ids, 5",), view="text", files=(TaskFile("chess", "8moves_v3.pgn.zip"),),
        texts=GAMES),
    "judged": Experiment(
        "Tiny Shakespeare, written by a model with one character in sight and judged by one of "
        "four layers that sees all: does a thought after each character bring it nearer to the "
        "judge?",
        [("(One run of `ids` had been seen, with another judge of this kind: 1.13 nats of reverse "
          "KL. Of models that had only read, one without thoughts had 1.69, and one with ids "
          "1.23.) Ids by reward alone have at least 0.2 nats less than no thoughts, in every seed,",
          lambda r: kls(r, "ids").max() <= kls(r, "none").mean() - 0.2),
         ("and 0.2 less than one id for all.",
          lambda r: kls(r, "ids").max() <= kls(r, "filler").mean() - 0.2),
         ("One id for all is within 0.02 of no thoughts.",
          lambda r: abs(kls(r, "filler").mean() - kls(r, "none").mean()) <= 0.02),
         ("With another text's thoughts in the same text they are worse than a model that never "
          "had any.", lambda r: kls(r, "ids", "another").mean() > kls(r, "none").mean()),
         ("Ids close 30 % of the gap to a model that sees all.",
          lambda r: gap_closed(r) >= 0.3)],
        WRITING, view="judged", texts=SHAKESPEARE,
        judge=Arm("train.py --approach stream --data runs/shakespeare.txt --model bytes:4x128 "
                  f"--thoughts none --window 0 {ALONE} --prompts 16 --prompt_tokens 8 "
                  "--new_tokens 120 --lr 2e-3 --steps 3000", 900)),
    "forgotten": Experiment(
        "Tiny Shakespeare: three thoughts, with one character in sight each, read the last three "
        "and are forgotten once the next one is predicted. Which characters do they help with, and "
        "when does it think once it is free?",
        [("(One run of `ids` had been seen for 700 updates of 1,000, at 1.97 nats in training.) "
          "Ids by reward alone take off at least 0.3 nats, in every seed;",
          lambda r: taken_off(r, "ids, 1").min() >= 0.3),
         ("one id for all takes off nothing (within 0.02).",
          lambda r: abs(taken_off(r, "filler, 1").mean()) <= 0.02),
         ("Vectors take off more than ids.",
          lambda r: taken_off(r, "vectors, 1").mean() > taken_off(r, "ids, 1").mean()),
         ("Ids do not take off more than two more characters in sight do.",
          lambda r: nats(r, "ids, 1").mean() >= nats(r, "none, 3").mean()),
         ("After two to four letters of a word they take off at least 0.1 nats more than after no "
          "letter, in every seed.",
          lambda r: (after_letters(r, "ids, 1", "off")
                     >= after_none(r, "ids, 1", "off") + 0.1).all()),
         ("They take off least where a model that sees all needs over 3 nats.",
          lambda r: by_token(r, "ids, 1", "nats", "off").mean(0).argmin() == len(EDGES)),
         ("(One run that was set free had kept 80 % of its thoughts after 116 updates; where was "
          "not known.) At 0.3 nats for three thoughts it thinks at least 20 points more often "
          "after two to four letters than after none, in every seed;",
          lambda r: (after_letters(r, "ids set free, 1", "thinks")
                     >= after_none(r, "ids set free, 1", "thinks") + 0.2).all()),
         ("and needs at most 0.05 nats more than with all thoughts.",
          lambda r: nats(r, "ids set free, 1").mean() <= nats(r, "ids, 1").mean() + 0.05)],
        FORGOTTEN, view="forgotten", texts=SHAKESPEARE, against=("none, 1", "none, all in sight")),
}



# Runs, and what is found in them

def folder(experiment: Experiment, arm: str, seed: int) -> Path:
    """Where a run lives. Its name is made of its command and its base's.

    It does not know the code: runs from before a change of train.py have to be deleted by hand.
    """
    it = experiment.arms[arm]
    # a base belongs to the name: the same flags from elsewhere are another run
    base = f"{it.by} {experiment.arms[it.after].command}" if it.after else ""
    name = hashlib.sha256(f"{base}|{it.command}".encode()).hexdigest()[:12]
    return OUT / "runs" / f"{name}_{seed}"


def logged(out: Path, kind: str) -> list[dict]:
    """A run's lines of this kind: "step" or "eval"."""
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return [x for x in lines if x["kind"] == kind]


def seconds_spent(out: Path) -> float:
    """By a run, all the times that it was resumed together. `seconds` counts from 0 each time."""
    at = [json.loads(x)["seconds"] for x in (out / "metrics.jsonl").read_text().splitlines()]
    return sum(now for now, then in zip(at, [*at[1:], 0.0]) if then < now)


def last_line(out: Path) -> dict | None:
    """The evaluation that ended a run; None: it has not ended."""
    return logged(out, "eval")[-1] if (out / "done").exists() else None


def run(experiment: Experiment, arm: str, seed: int) -> None:
    """One run, unless it is there already. Raises ValueError where it fails."""
    it, out = experiment.arms[arm], folder(experiment, arm, seed)
    if last_line(out):
        return
    out.mkdir(parents=True, exist_ok=True)
    for mark in out.rglob("probed"):  # of weights that will be gone
        mark.unlink()
    base = [it.by, str(folder(experiment, it.after, seed) / "ckpt.pt")] if it.after else []
    words = [*shlex.split(it.command), *base, "--seed", str(seed), "--out", str(out)]
    call(words, out / "log.txt")
    (out / "done").touch()  # only now: a run that was cut off has none, and is made again


def checkpoints(out: Path) -> dict[Path, Path]:
    """A run's checkpoints, the last one at the end -> the folder of what lab.probe finds there."""
    kept = {x: out / x.stem.replace("ckpt", "probe") for x in sorted(out.glob("ckpt_*.pt"))}
    return kept | {out / "ckpt.pt": out}


def look(experiment: Experiment, arm: str, seed: int) -> None:
    """lab.probe on a run's checkpoints, each unless that has been done."""
    for path, found in checkpoints(folder(experiment, arm, seed)).items():
        if not (found / "probed").exists():
            found.mkdir(exist_ok=True)
            stories = LOOK["text" if experiment.texts else "cups"]
            words = ["-m", "lab.probe", "--checkpoint", str(path), "--out", str(found),
                     "--stories", str(stories)]
            call(words, found / "probe.txt")
            (found / "probed").touch()


def look_seconds(arm: Arm) -> int:
    return LOOK_SECONDS * (1 + arm.kept)


def call(command: list[str], log: Path) -> None:
    """One of the scripts, on one thread of the CPU. Raises ValueError with its last line where it
    fails."""
    # Sums of several threads differ in the last bit. And with a GPU in sight, text and not the game
    # is what train.py learns by default.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "w") as f:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=f, stderr=f, env=env)
    if done.returncode:
        lines = log.read_text().strip().splitlines() or [str(done.returncode)]
        raise ValueError(f"{' '.join(command)} failed: {lines[-1]}")


def make_judge(judge: Arm) -> None:
    """Unless it is there. Raises ValueError where another one is: arms may be judged by it."""
    done = JUDGE / "done"
    if done.exists():
        if done.read_text() != judge.command:
            raise ValueError(f"{JUDGE} is another judge: delete it, and the runs that it judged")
        return
    JUDGE.mkdir(parents=True, exist_ok=True)
    print(f"the judge comes first, about {judge.seconds / 60:.0f} minutes")
    call([*shlex.split(judge.command), "--out", str(JUDGE)], JUDGE / "log.txt")
    done.write_text(judge.command)


def run_all(experiment: Experiment, seeds: int) -> None:
    """All runs, then all looks at them, two at a time. Runs that others start from come first."""
    arms = experiment.arms
    # seed by seed: what was cut off has all arms of the first seeds
    jobs = [(arm, s) for s in range(seeds) for arm in arms]
    left = [j for j in jobs if not last_line(folder(experiment, *j))]
    for name, address in experiment.texts.items():
        download(address, ROOT / "runs" / name)
    if experiment.judge:
        make_judge(experiment.judge)
    at = ROOT / "runs"
    for file, source in experiment.files:
        if not (at / f"{file}.jsonl").exists():
            at.mkdir(exist_ok=True)
            make(file, at / f"{file}.jsonl", source=at / source if source else None)
    first, then = ([(run, *j) for j in left if bool(arms[j[0]].after) == late]
                   for late in (False, True))
    looks = [(look, *j) for j in jobs if j[0] in experiment.probed
             and not (folder(experiment, *j) / "probed").exists()]
    seconds = sum(arms[arm].seconds for arm, _ in left)
    seconds += sum(look_seconds(arms[arm]) for _, arm, _ in looks)
    print(f"{len(left)} of {len(jobs)} runs are to be made"
          + f", {len(looks)} to be probed" * bool(experiment.probed)
          + f", about {seconds / 60:.0f} minutes of one core")
    bar = tqdm(total=len(left) + len(looks), unit="run")
    pool = ThreadPoolExecutor(2)  # threads that only wait for their processes
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


def findings(out: Path) -> dict:
    """What an experiment keeps of probe.json."""
    found = json.loads((out / "probe.json").read_text())
    by_thoughts = found["conditions"]
    # the same answers and nats, to the bit
    out = {"spliced": by_thoughts["refed"] == by_thoughts["own"]}
    if "accuracy_by_n" in by_thoughts["own"]:  # a text has none
        out |= {"accuracy_by_n": {name: x["accuracy_by_n"] for name, x in by_thoughts.items()}}
    more = ("aoc", "counterfactual", "synonyms", "after_which", "usage", "says")
    return out | {k: found[k] for k in more if k in found}


def course(out: Path, end: int) -> list[dict]:
    """Of each checkpoint, in order: its step, how many are right by n, and the area of early
    answering. end: the last step."""
    # ckpt_000100 -> 100; ckpt, the last one, has no number
    found = {int(path.stem[5:] or end): findings(at) for path, at in checkpoints(out).items()}
    return [{"step": step, "accuracy_by_n": x["accuracy_by_n"]["own"], "early": x["aoc"]["early"]}
            for step, x in found.items()]


def curve(out: Path) -> dict[str, list[float]]:
    """What an experiment keeps of the course of a run, from evaluation to evaluation (accuracy: a
    mean over n = 1 to 10)."""
    found = logged(out, "eval")
    keys = ("step", "accuracy", "thoughts_as_text")
    return {k: [x[k] for x in found] for k in keys if k in found[0]}


def whole_command(arm: Arm) -> str:
    """As it would be typed, with the name of the arm that it starts from."""
    return f"python {arm.command}" + (f" {arm.by} <{arm.after}>/ckpt.pt" if arm.after else "")


def by_length(end: dict) -> list[float]:
    """Of a run's last evaluation on a task: the share right in each of LENGTHS."""
    right, count = (np.array(end[f"{k}_by_level"]) for k in ("accuracy", "answers"))
    return [float((right * count)[a - 1:b].sum() / max(count[a - 1:b].sum(), 1))
            for a, b in LENGTHS]


def written(run: Run) -> list[str]:
    """A prompt, and what the run writes after it, thoughts by their names."""
    ids, P = own_text(run, 1).kept()[0], run.settings.prompt_tokens
    return [run.tokenizer.decode(part) for part in (ids[:P], ids[P:])]


def found_in(experiment: Experiment, arm: str, seed: int, judge: GPT | None) -> dict:
    """What an experiment keeps of one run: what its tables and figures need."""
    out = folder(experiment, arm, seed)
    end = last_line(out)
    one = {k: end[k] for k in KEPT if k in end} | {"seconds": seconds_spent(out)}
    one |= {"probe": findings(out)} if arm in experiment.probed else {}
    one |= {"course": course(out, end["step"])} if experiment.arms[arm].kept else {}
    one |= {"curve": curve(out)} if experiment.view == "alphabet" else {}
    if experiment.view == "regular":
        one |= {"by_length": by_length(end), "stage": logged(out, "step")[-1]["stage"]}
        one |= {k: end[k] for k in SCORES if k in end}
    if judge:
        one["kl"] = kl_to_judge(open_run(out / "ckpt.pt"), judge, LOOK["text"])
    elif experiment.texts:  # (lab.probe has read as many windows)
        seen = probe_of(out).get("conditions", {})
        one["nats"] = {k: x["nats"] for k, x in seen.items()} or nats_of_text(
            open_run(out / "ckpt.pt"), LOOK["text"])
    if experiment.against and arm not in experiment.against:
        three = (open_run(folder(experiment, x, seed) / "ckpt.pt")
                 for x in (arm, *experiment.against))
        one["by_token"] = nats_by_token(*three, LOOK["text"])
    return one


def collect(name: str, seeds: int, kept: dict) -> dict:
    """What figures/NAME.json holds: question, prediction, and for each arm its command and what
    each seed ended with. Where there is a judge also what seed 0 writes. kept: arms that stay as
    they are."""
    experiment, arms = EXPERIMENTS[name], {}
    judge = load(str(JUDGE)) if experiment.judge else None
    for arm, it in experiment.arms.items():
        if arm in kept:
            arms[arm] = kept[arm]
            continue
        arms[arm] = {"command": whole_command(it),
                     "seeds": [found_in(experiment, arm, s, judge) for s in range(seeds)]}
        if judge:
            arms[arm]["written"] = written(open_run(folder(experiment, arm, 0) / "ckpt.pt"))
    made = {"judge": f"python {experiment.judge.command}"} if experiment.judge else {}
    return {"question": experiment.question, "prediction": experiment.prediction, **made,
            "view": experiment.view, "shown": experiment.shown,
            "command": f"python -m lab.experiments {name} --seeds {seeds}", "arms": arms}


# The commands

def sections() -> list[str]:
    """Of all experiments that have a result. Raises ValueError where it has other arms."""
    found, figures = [], OUT / "figures"
    for name, experiment in EXPERIMENTS.items():
        if not (figures / f"{name}.json").exists():
            continue
        result = json.loads((figures / f"{name}.json").read_text())
        if result["arms"].keys() != experiment.arms.keys():
            raise ValueError(f"figures/{name}.json has other arms than today's: python -m "
                             f"lab.experiments {name} makes a new one")
        judged = verdicts(experiment.claims, result)
        found.append(section(name, result, judged, figures / f"{name}.png"))
    return found


def write_report(checkpoint: Path | None, out: Path | None) -> None:
    """The page of all experiments that have a result. Raises ValueError."""
    if checkpoint is None and "channel" in EXPERIMENTS:
        # its window shows all, so its thoughts are the model's choice and not a need
        known = folder(EXPERIMENTS["channel"], "tokens, full", 0) / "ckpt.pt"
        checkpoint = known if known.exists() else None
    found, out = sections(), out or OUT / "figures" / "report.html"
    if not found and checkpoint is None:
        raise ValueError("there is nothing to report yet: python -m lab.experiments channel makes "
                         "results, --checkpoint PATH tells stories")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: a file is wanted, as {out / 'report.html'}")
    command.check_page(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(out, found, checkpoint)
    print(f"{out}: {len(found)} experiments, " + (
        f"stories of {checkpoint}" if checkpoint else
        "no stories, as there is no run of channel here (--checkpoint PATH)"))


def show_all() -> None:
    """The list of experiments."""
    for name, e in EXPERIMENTS.items():
        seconds = sum(a.seconds for a in e.arms.values())
        seconds += sum(look_seconds(e.arms[arm]) for arm in e.probed)
        judge = f", and {e.judge.seconds / 60:.0f} once for its judge" if e.judge else ""
        print(f"{name}: {e.question}\n    {len(e.arms)} arms, about {seconds / 60:.0f} minutes of "
              f"one core per seed{judge}\n    prediction: {e.prediction}")
    print("python -m lab.experiments channel --seeds 5 runs the first: runs/ keeps what is done, "
          "figures/ gets the\nresults; python -m lab.experiments report makes one page of them")


def kept_arms(name: str, seeds: int, chosen: list[str]) -> dict:
    """The arms that were not chosen, as figures/NAME.json has them. Raises ValueError where it has
    not, or where one is chosen without the arm that it starts from."""
    arms, path = EXPERIMENTS[name].arms, OUT / "figures" / f"{name}.json"
    if unknown := [arm for arm in chosen if arm not in arms]:
        raise ValueError(f"{name} has no arm {unknown[0]!r}, only "
                         f"{', '.join(map(repr, arms))}")
    for arm in {*(EXPERIMENTS[name].against or ())} - {*chosen}:
        if missing := [s for s in range(seeds) if not last_line(folder(EXPERIMENTS[name], arm, s))]:
            raise ValueError(f"all others are compared with the runs of {arm!r}, and that of seed "
                             f"{missing[0]} is not there: --arms needs it as well")
    there = json.loads(path.read_text())["arms"] if path.exists() else {}
    for arm, it in arms.items():
        if arm in chosen:
            if it.after and it.after not in chosen:
                raise ValueError(f"{arm!r} starts from {it.after!r}: --arms needs both")
        elif arm not in there or (there[arm]["command"], len(there[arm]["seeds"])) != (
                whole_command(it), seeds):
            raise ValueError(f"{path} has no {seeds} runs of {arm!r} by today's command: they have "
                             "to be made as well")
    return {arm: there[arm] for arm in arms if arm not in chosen}


def answer(name: str, seeds: int, chosen: list[str] | None = None) -> None:
    """All of one experiment: runs, json, figure, table. chosen: arms; None: all."""
    start, experiment, figures = time.time(), EXPERIMENTS[name], OUT / "figures"
    kept = kept_arms(name, seeds, chosen) if chosen else {}
    run_all(replace(experiment, arms={arm: it for arm, it in experiment.arms.items()
                                      if arm not in kept}), seeds)
    result = collect(name, seeds, kept)
    figures.mkdir(exist_ok=True)
    command.write_whole(figures / f"{name}.json", command.as_json(result, indent=1).encode())
    # the prediction as it stands, and of each sentence whether it held
    judged = in_words(verdicts(experiment.claims, result))
    draw(name, result, figures / f"{name}.png")
    print(f"{result['question']}\npredicted: {judged}\n\n{table(result)}\n\n"
          f"{time.time() - start:.0f} s; figures/{name}.png and figures/{name}.json")


def main() -> None:
    p = Parser(description=command.first_line(__doc__), allow_abbrev=False)
    p.prog = "lab.experiments"
    p.add_argument("name", nargs="?", choices=[*EXPERIMENTS, "report"],
                   help="which one, or a page of all results; none: list them")
    p.add_argument("--seeds", type=int, default=5, help="runs of each arm (5)")
    p.add_argument("--checkpoint", type=command.path,
                   help="report: whose stories are told (a run of channel)")
    p.add_argument("--out", type=command.path, help="report: the page (figures/report.html)")
    p.add_argument("--arms", nargs="+", metavar="ARM", help="only these; the others stay as "
                   "figures/NAME.json has them (all)")
    args = p.parse_args()
    if args.seeds < 1:
        p.error(f"--seeds must be at least 1, not {args.seeds}")
    if args.arms and args.name in (None, "report"):
        p.error("--arms belongs to an experiment")
    if args.name != "report" and (args.checkpoint or args.out):
        p.error("--checkpoint and --out belong to report")
    if args.name is None:
        return show_all()
    try:
        if args.name == "report":
            return write_report(args.checkpoint, args.out)
        answer(args.name, args.seeds, args.arms)
    except (ValueError, OSError) as e:
        p.error(str(e))


if __name__ == "__main__":
    command.run(main, goes_on=True)
