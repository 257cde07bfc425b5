"""The picture at the top of the README: one rollout in colours, right answers after n moves, and
which thought comes after which move.

    python -m lab.probe --checkpoint out/ckpt.pt  # what thoughts say: out/probe.json
    python -m lab.picture            # from out/ and figures/channel.json to out/first.png
    python -m lab.picture --checkpoint my/ckpt.pt --out my/picture.png

Under each thought, in grey, stands the cup that the ball is under by then. That is what a reader
would have to remember there.

Left out on purpose: anything that runs an experiment, which is lab/experiments.py's.
"""
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import command
from data import LETTERS, plain
from lab.figures import digest
from lab.probe import draw_ids
from next_token import roll
from rollout import Dials, Luck
from run import folder_of, open_run, probe_of
from settings import Parser, at_least
from task import read_spec
from tokenizer import CSS

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 50  # characters of a line of the story
PROMPT, NEW = "The ball is under cup B. Moves:", 37  # and how many text tokens follow it
SHOWN = {  # arms of figures/channel.json
    "tokens, window": "own thoughts",
    "none, full, 4 layers": "no thoughts, four layers, full attention",
    "filler, full": "one id for all thoughts, full attention"}


class Piece(NamedTuple):
    """A token of the picture. kind: as in tokenizer.CSS. cup: the ball's, under a thought."""
    kind: str
    string: str
    cup: str = ""


def story(checkpoint: Path, seed: int) -> list[Piece]:
    """A free rollout of a run on cups. Raises ValueError for other runs."""
    run = open_run(checkpoint)
    # (asked of the settings first: to open webtext would be to download it)
    if read_spec(run.settings.data) is None or run.source.all or not run.rules.persist:
        raise ValueError(f"{checkpoint} is no run on cups of one ball, with thoughts that stay in "
                         "the text")
    cups, tokenizer = run.source, run.tokenizer
    prompt = tokenizer.encode(PROMPT)
    rules = run.rules.room_for(cups.slots(NEW))
    # own text is sampled, and each thought is the likeliest one
    ro = roll(run.model, plain(torch.tensor([prompt]), len(prompt), NEW), rules,
              Luck(seed, 0, "rollout"), Dials(1.0, 0.0))
    ball, out = cups.follow(ro.text[0].tolist()), []
    for place, i in enumerate(ro.ids[0].tolist()):
        if ro.is_think[0, place]:  # where is the ball after the text before this thought?
            where, _ = ball[ro.after[0, place]]
            out.append(Piece("think", tokenizer.name(i), LETTERS[where[0]]))
        elif ro.is_text[0, place]:
            out.append(Piece("prompt" if place < len(prompt) else "text", tokenizer.decode([i])))
    return out


def draw(pieces: list[Piece], channel: dict, said: dict, path: Path) -> None:
    """The three panels. said: of probe.json."""
    plt = command.pyplot()
    figure = plt.figure(figsize=(13, 8.4))
    draw_story(figure.add_axes([0.01, 0.49, 0.52, 0.47]), pieces)
    draw_accuracy(figure.add_axes([0.59, 0.55, 0.4, 0.4]), channel)
    draw_ids(figure.add_axes([0.08, 0.08, 0.91, 0.36]), said)
    figure.savefig(path, dpi=110, metadata={"Source": digest(channel)})
    plt.close(figure)


def draw_story(axis, pieces: list[Piece]) -> None:
    # the panel is 0.52 of 13 inches wide, and a character of this font 0.602 of its size
    points = 13 * 72 * 0.52 / WIDTH / 0.602
    font = dict(family="DejaVu Sans Mono", va="center")
    x = y = 0
    for kind, string, cup in pieces:
        if x + len(string) > WIDTH:  # a new line, which begins without a space
            x, y, string = 0, y + 1, string.lstrip(" ")
        axis.text(x, y, string, color=CSS[kind], size=points, **font)
        axis.text(x + len(string) / 2, y + 0.42, cup, color="grey", size=0.8 * points, ha="center",
                  **font)
        x += len(string)
    axis.set(xlim=(0, WIDTH), ylim=(max(y, 6) + 0.8, -0.8))
    axis.axis("off")
    axis.set_title("prompt, own text, and thoughts (grey: where the ball is)", size=11)


def draw_accuracy(axis, channel: dict) -> None:
    for i, (arm, name) in enumerate(SHOWN.items()):
        seeds = channel["arms"][arm]["seeds"]
        lines = [(name, "accuracy_by_n", "-")]
        if i == 0:  # of own thoughts alone it is of interest whose they are
            lines.append(("another's thoughts", "accuracy_another_by_n", ":"))
        for label, key, style in lines:
            mean = 100 * np.array([s[key] for s in seeds]).mean(0)
            axis.plot(range(1, len(mean) + 1), mean, style, color=f"C{i}", lw=2, label=label)
    axis.axvspan(0.5, 10.5, color="grey", alpha=0.12, lw=0)
    axis.text(5.5, 4, "lengths of training", ha="center", color="grey")
    axis.set(xlabel="n, moves to follow until the answer", ylabel="answers right, %",
             ylim=(0, 103), xlim=(0.5, 30.5))
    axis.set_title(f"held-out stories, mean of {len(seeds)} seeds (chance: 33 %)", size=11)
    axis.legend(loc="center right", bbox_to_anchor=(1, 0.66), fontsize=9)


def what_is_said(checkpoint: Path) -> dict:
    """What lab.probe found of a run. Raises ValueError where it has not looked."""
    found = probe_of(checkpoint)
    if not found:
        raise ValueError(f"there is no {folder_of(checkpoint) / 'probe.json'} yet: python -m "
                         f"lab.probe --checkpoint {checkpoint} makes it")
    return found


def main() -> None:
    p = Parser(prog="lab.picture", description=command.first_line(__doc__), allow_abbrev=False)
    p.add_argument("--checkpoint", type=command.path, default=Path("out"),
                   help="made by train.py on cups, or its folder (out)")
    p.add_argument("--out", type=command.path, help="the picture (first.png, in that folder)")
    p.add_argument("--seed", type=int, default=0, help="of the rollout (0)")
    args = p.parse_args()
    try:
        at_least("seed", args.seed, 0)
        channel = json.loads((ROOT / "figures" / "channel.json").read_text())
        pieces, out = story(args.checkpoint, args.seed), args.out
        out = out or folder_of(args.checkpoint) / "first.png"
        draw(pieces, channel, what_is_said(args.checkpoint), out)
    except (ValueError, OSError) as e:
        p.error(str(e))
    print(f"{out} is drawn: on the right the runs of figures/channel.json, else this one")


if __name__ == "__main__":
    command.run(main)
