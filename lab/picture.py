"""The picture at the top of the README: one rollout in colours, beside how many answers are right after n moves.

    python -m lab.picture                                 # from out/ckpt.pt and figures/channel.json to figures/first.png
    python -m lab.picture --checkpoint my/ckpt.pt --out my/picture.png

Under each thought, in grey, stands the cup that the ball is under by then: what a reader would have to remember there.

Left out on purpose: anything that runs an experiment (experiments.py). Letters: P prompt tokens, S new text tokens.
"""
import json
from pathlib import Path

import numpy as np
import torch

from data import LETTERS, Cups
from evaluate import uniforms
from rollout import load_run, rollout
from settings import Parser
from tokenizer import CSS, Tokenizer

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 50  # characters of a line of the story
PROMPT, S = "The ball is under cup B. Moves:", 37
SHOWN = {"tokens, window": "own thoughts", "none, full, 4 layers": "no thoughts, four layers, full attention",
         "filler, full": "one id for all thoughts, full attention"}  # arms of figures/channel.json


def story(checkpoint: Path, seed: int) -> list[tuple[str, str, str]]:
    """A free rollout of a run on cups -> (kind, string, true cup or "") for each token. Raises ValueError for other runs."""
    model, rules, args = load_run(checkpoint)
    if args["data"] != "cups" or args.get("balls", "one") != "one" or not rules.persist:
        raise ValueError(f"{checkpoint} is no run on cups of one ball, with thoughts that stay in the text")
    tokenizer = Tokenizer(model.text_ids, model.config.think_vocab, rules.continuous)
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    rules, P = rules.with_room(S), ids.shape[1]
    ro = rollout(model, ids, P, S, rules, uniforms(seed, 0, "rollout", rules.draws(S), 1, "cpu"), 1.0, 0.0)
    game = Cups(args["cups"], idle=args.get("idle", 0.0), moves=args.get("moves", "mixed"))
    ball = [where for where, _ in game.follow(ro.text[0].tolist())]
    out = []
    for place, i in enumerate(ro.ids[0].tolist()):
        if ro.is_think[0, place]:
            out.append(("think", tokenizer.name(i), LETTERS[ball[ro.slot[0, place]]]))
        elif ro.is_text[0, place]:
            out.append(("prompt" if place < P else "text", tokenizer.decode([i]), ""))
    return out


def draw(pieces: list[tuple[str, str, str]], channel: dict, path: Path) -> None:
    """The two panels."""
    import matplotlib  # a second of start-up
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure = plt.figure(figsize=(13, 4.4))
    left, right = figure.add_axes([0.01, 0.02, 0.52, 0.9]), figure.add_axes([0.59, 0.14, 0.4, 0.76])
    points = 13 * 72 * 0.52 / WIDTH / 0.602  # a character of this font is 0.602 of its size wide
    x = y = 0
    for kind, string, cup in pieces:
        if x + len(string) > WIDTH:
            x, y, string = 0, y + 1, string.lstrip(" ")
        left.text(x, y, string, color=CSS[kind], family="DejaVu Sans Mono", size=points, va="center")
        left.text(x + len(string) / 2, y + 0.42, cup, color="grey", family="DejaVu Sans Mono", size=0.8 * points,
                  ha="center", va="center")
        x += len(string)
    left.set(xlim=(0, WIDTH), ylim=(max(y, 6) + 0.8, -0.8))
    left.axis("off")
    left.set_title("prompt, own text, and thoughts (grey: where the ball is)", size=11)
    for i, (arm, name) in enumerate(SHOWN.items()):
        seeds = channel["arms"][arm]["seeds"]
        lines = [(name, "accuracy_by_n", "-")]
        lines += [("another story's thoughts", "accuracy_shuffled_by_n", ":")] if i == 0 else []
        for label, key, style in lines:
            mean = 100 * np.array([s[key] for s in seeds]).mean(0)
            right.plot(range(1, len(mean) + 1), mean, style, color=f"C{i}", lw=2, label=label)
    right.axvspan(0.5, 10.5, color="grey", alpha=0.12, lw=0)
    right.text(5.5, 4, "lengths of training", ha="center", color="grey")
    right.set(xlabel="n, moves to follow until the answer", ylabel="answers right, %", ylim=(0, 103), xlim=(0.5, 30.5))
    right.set_title(f"held-out stories, mean of {len(seeds)} seeds (chance: 33 %)", size=11)
    right.legend(loc="center right", bbox_to_anchor=(1, 0.66), fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    p = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("--checkpoint", type=Path, default=Path("out/ckpt.pt"), help="made by train.py on cups (out/ckpt.pt)")
    p.add_argument("--out", type=Path, default=ROOT / "figures" / "first.png")
    p.add_argument("--seed", type=int, default=0, help="of the rollout (0)")
    args = p.parse_args()
    try:
        draw(story(args.checkpoint, args.seed), json.loads((ROOT / "figures" / "channel.json").read_text()), args.out)
    except (ValueError, OSError) as e:
        p.error(str(e))
    print(f"{args.out} is drawn")


if __name__ == "__main__":
    main()
