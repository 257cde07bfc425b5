"""Makes what is in assets/: the two small models that stand in for GPT-2, and GPT-2's ranks.

    python -m lab.pretrain teacher       # 4 layers, sees the whole story, is right up to n = 10
    python -m lab.pretrain student       # 1 layer, sees 5 tokens back, answers at chance
    python -m lab.pretrain ranks FOLDER  # gpt2.tiktoken from OpenAI's vocab.bpe and encoder.json

Both models learn the language of `cups` alone, and neither has ever seen a thinking token. The
student is short-sighted, because a base that already answers learns to ignore its thoughts.

Text alone teaches the teacher very slowly, so it gets three aids:

1. Heads that are thrown away, one per layer. After layer k, the state of a move must say the
   product of the last 2^k moves. Where the last known cup is among them, it must say the cup.
   So each layer doubles what it composes, and four layers reach 15 moves.
2. In half of its stories rounds have up to 12 moves, and more than half of the rounds have 12.
   There the end of a round is no target, so that its idea of "." and "," stays the language's.
3. In half of its stories some answers are false. These are no targets, but what follows goes by
   them. The reason: the student whose texts it will judge answers wrongly at first.

Left out on purpose: everything about thoughts. Knows data.py, model.py, rollout.py, settings.py,
tokenizer.py.

Letters: B stories, S tokens of a story, C width, m cups, n moves since the last answer.
"""
import base64
import hashlib
import math
import os
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from torch import Tensor, nn
from tqdm import tqdm

import command
from data import OPENING, Cups, Story, seeded
from model import GPT, PICO, Config, as_checkpoint
from rollout import Rules, visible_text
from settings import Parser
from tokenizer import RANKS, Tokenizer
from weights import save

B, S, CONTEXT = 64, 64, 256
SOURCES = {  # what OpenAI published; the file of ranks is these two in tiktoken's own format
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


class Lesson(Cups):
    """The game as a model learns it.

    n_max: the longest round, and half of the rounds are that long for certain; None: the plain
    language. lies: the share of answers that name any cup. They pay nothing. again: how often an
    answered question is asked once more.
    """
    PEAK = 0.5

    def __init__(self, n_max: int | None = None, lies: float = 0.0, again: float = 0.0):
        super().__init__(3)
        self.n_max, self.lies, self.again = n_max, lies, again

    # each of these draws a number only where it needs one, so plain stories stay the language's

    def round_length(self, rng, n_max):
        if n_max is not None and rng.random() < self.PEAK:
            return n_max
        return super().round_length(rng, n_max)

    def answer(self, rng, cup):
        lie = self.lies > 0 and rng.random() < self.lies
        return (int(rng.integers(self.m)), False) if lie else (cup, True)

    def asks_again(self, rng):
        return self.again > 0 and rng.random() < self.again

    def fair(self, story: Story) -> np.ndarray:  # -> [B, S] bool
        """Is this token a fair target? Lies are none, nor is where a long round ends."""
        after_question = np.roll(story.ids, 1, 1) == self.id["?"]
        may_end = np.isin(story.ids, [self.id["."], self.id[","]]) & (story.n > 0)
        return ~(after_question & ~story.pays) & ~(may_end & (self.n_max is not None))


class Role(NamedTuple):
    """Who is made. window: tokens back that are seen; 0: the whole story. lr: the peak. lessons:
    arguments of `Lesson`, each for its share of the stories. heads: does it have aid 1?"""
    name: str
    layers: int
    window: int
    steps: int
    lr: float
    lessons: list[dict]
    heads: bool


ROLES = {
    "teacher": Role("pico-teacher", 4, 0, 3000, 2e-3,
                    [dict(), dict(n_max=12), dict(lies=0.5), dict(n_max=12, lies=0.5)], True),
    # without questions that are asked again its answers depend on nothing that it sees, and no
    # thought could change them
    "student": Role("pico", 1, 5, 600, 3e-3, [dict(again=0.3)], False),
}


def stories(lessons: list[Lesson], B: int, seed: int, step: int) -> tuple[Story, np.ndarray]:
    """B stories, each lesson's share in turn, and [B, S]: is this token a fair target?"""
    n = len(lessons)
    told = [lesson.stories(B // n, S, seeded(seed, n * step + i, "pretrain"), lesson.n_max)
            for i, lesson in enumerate(lessons)]
    fair = np.concatenate([lesson.fair(story) for lesson, story in zip(lessons, told)])
    return Story(*map(np.concatenate, zip(*told))), fair


def products(cups: Cups, story: Story, layers: int) -> np.ndarray:  # -> [layers, B, S]
    """What the head of layer k = 1.. must say at a move or a "?": the product of the last 2^k
    items of the round, where item 0 is the last cup that was named. Classes: m cups, then m!
    permutations; -1: nothing to say."""
    perms = list(permutations(range(cups.m)))
    goes = {int(i): tuple(map(int, g)) for i, g in zip(cups.move_ids, cups.goes)}
    labels = np.full((layers, *story.ids.shape), -1)
    for b, row in enumerate(story.ids.tolist()):
        moves = []  # since that cup
        for s, i in enumerate(row):
            if i in cups.cup_ids:
                moves = []
            if i in goes:
                moves.append(goes[i])
            if not (i in goes or i == cups.id["?"]) or story.state[b, s] < 0:
                continue
            for k in range(1, layers + 1):
                labels[k - 1, b, s] = story.state[b, s]
                if len(moves) >= 2 ** k:
                    whole = tuple(range(cups.m))
                    for move in moves[-2 ** k:]:
                        whole = tuple(move[c] for c in whole)
                    labels[k - 1, b, s] = cups.m + perms.index(whole)
    return labels


def new_heads(layers: int, C: int, m: int) -> nn.ModuleList:
    """One head per layer, for the classes of `products`."""
    return nn.ModuleList(nn.Sequential(nn.LayerNorm(C), nn.Linear(C, m + math.factorial(m)))
                         for _ in range(layers))


def loss_of(model: GPT, story: Story, fair: np.ndarray, window: int, offset: int,
            heads: nn.ModuleList, labels: np.ndarray | None) -> Tensor:
    """Cross-entropy of the fair targets, and that of each layer's head where there are labels."""
    ids = torch.from_numpy(story.ids)
    x = model.embed(ids[:, :-1], torch.arange(S - 1) + offset)
    mask, loss = visible_text(ids[:, :-1], Rules(window=window)), 0.0
    for k, block in enumerate(model.h):
        x = block(x, mask, None, None)
        if labels is not None:
            said = torch.from_numpy(labels[k, :, :-1])
            loss = loss + F.cross_entropy(heads[k](x[said >= 0]), said[said >= 0])
    fair = torch.from_numpy(fair)[:, 1:]
    return loss + F.cross_entropy(model.logits(model.ln_f(x)[fair]), ids[:, 1:][fair])


# How good is it? On the plain language, with seeds that training never draws

@torch.no_grad()
def answers_by_n(model: GPT, cups: Cups, window: int, each: int = 500) -> list[float]:
    """Share of right answers (argmax over text rows) after exactly n moves, n = 1..12."""
    out = []
    for n in range(1, 13):
        told = cups.stories(each, OPENING + 2 * n + 3, seeded(1, n, "eval"), exact=n)
        ids = torch.from_numpy(told.ids)
        h = model(ids[:, :-1], mask=visible_text(ids[:, :-1], Rules(window=window)))[:, -1]
        out.append((model.logits(h).argmax(-1) == ids[:, -1]).float().mean().item())
    return out


@torch.no_grad()
def held_out_nats(model: GPT, cups: Cups, window: int) -> float:
    """Nats per text token."""
    ids = torch.from_numpy(cups.stories(512, S, seeded(1, 0, "eval")).ids)
    logits = model.logits(model(ids[:, :-1], mask=visible_text(ids[:, :-1], Rules(window=window))))
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def pretrain(role: Role, out: Path, steps: int, width: int, seed: int) -> None:
    """Writes the model to `out`, every 250 steps and at the end."""
    torch.manual_seed(seed)
    lessons, cups = [Lesson(**lesson) for lesson in role.lessons], Cups(3)
    config = Config(role.layers, 4, width, CONTEXT, len(cups.text_ids))
    model, heads = GPT(config, cups.text_ids), new_heads(role.layers, width, cups.m)
    params = [p for p in (*model.parameters(), *heads.parameters()) if p.numel()]
    optimizer = torch.optim.AdamW(params, lr=role.lr, betas=(0.9, 0.98), weight_decay=0.0)
    for step in tqdm(range(steps), desc=role.name):
        # warm up, then a cosine to nothing
        heat = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = role.lr * heat
        # the student's texts begin anywhere, so that each position is trained. The teacher's
        # begin at 0, and to look a fixed way back is learned much sooner without offsets
        offset = int(seeded(seed, step, "offset").integers(CONTEXT - S)) if role.window else 0
        story, fair = stories(lessons, B, seed, step)
        labels = products(cups, story, role.layers) if role.heads else None
        loss = loss_of(model, story, fair, role.window, offset, heads, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        if step % 250 == 249 or step == steps - 1:
            by_n = " ".join(f"{100 * a:.0f}" for a in answers_by_n(model, cups, role.window))
            nats = held_out_nats(model, cups, role.window)
            tqdm.write(f"step {step + 1}: loss {loss.item():.4f}, held-out {nats:.4f} nats per "
                       f"token, answers right % by n: {by_n}")
            out.parent.mkdir(parents=True, exist_ok=True)
            save(out, as_checkpoint(model))


def build_ranks(folder: str | Path, out: Path = RANKS) -> None:
    """Write OpenAI's vocab.bpe and encoder.json as tiktoken's ranks. Raises ValueError for a wrong
    file, OSError for a missing one."""
    files = [Path(folder) / name for name in SOURCES]
    for file in files:
        if hashlib.sha256(file.read_bytes()).hexdigest() != SOURCES[file.name]:
            raise ValueError(f"{file} is not the file that OpenAI published (sha256 differs)")
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")  # else tiktoken copies both to a shared folder
    ranks = data_gym_to_mergeable_bpe_ranks(*map(str, files))
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    # tiktoken's own writer of this format wants another package for one open()
    out.write_bytes(b"".join(base64.b64encode(piece) + b" %d\n" % i for piece, i in by_rank))


def main() -> None:
    p = Parser(prog="lab.pretrain", description="make what is in assets/", allow_abbrev=False)
    p.add_argument("what", choices=[*ROLES, "ranks"])
    p.add_argument("folder", nargs="?", help="for ranks: where OpenAI's two files are")
    p.add_argument("--out", type=command.path, help="a model's file [assets/pico/...]")
    p.add_argument("--steps", type=int)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    if (args.what == "ranks") != (args.folder is not None):
        p.error("ranks, and nothing else, takes the folder with OpenAI's two files")
    if args.out is None and (args.steps, args.width, args.seed) != (None, 64, 0):
        p.error("that would not be the model that ships with the repository: say with --out where "
                "it belongs")
    if args.out and args.out.exists():
        p.error(f"--out {args.out} is there already, and may be a trained model: choose another "
                "name")
    try:
        if args.what == "ranks":
            build_ranks(args.folder)
            print(f"{RANKS} holds the ranks of {Tokenizer().V - 1:,} pieces")
        else:
            role = ROLES[args.what]
            pretrain(role, args.out or PICO[role.name], args.steps or role.steps, args.width,
                     args.seed)
    except (OSError, ValueError) as e:
        p.error(str(e))


if __name__ == "__main__":
    command.run(main, goes_on=True)
