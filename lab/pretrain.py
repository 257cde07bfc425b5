"""Makes assets/pico: the two small models that stand in for GPT-2 where there is no GPU.

    python -m lab.pretrain teacher     # 4 layers, sees the whole story, must answer right at every n <= 10
    python -m lab.pretrain student     # 1 layer, sees 5 tokens back: knows the grammar, answers at chance

Both are plain language models of `cups` text; neither has ever seen a thinking token. The student is kept
short-sighted because a base that already answers learns to ignore its thoughts. In its text an answered question
is sometimes asked again: without that its answers depend on nothing that it sees, and no thought could change them.

The teacher needs help, since text alone teaches this very slowly: (1) throw-away heads, one a layer: after
layer k the hidden state of a move must tell the product of the last 2^k moves, or the cup if the anchor is
among them. So each layer doubles what it composes, and four layers reach 15 moves. (2) in half of the stories
rounds are up to 12 moves long (more than half of them 12), and where a round ends is then no target, so that its
idea of "." and "," stays that of the language; (3) in half of the stories some answers
are replaced by any cup, which is then no target: the latest answer is what counts, right or wrong, because
the texts that it will judge are written by a student that answers wrongly at first.

Left out on purpose: everything about thoughts.
"""
import argparse
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data import OPENING, Batch, Cups, seeded
from model import PICO, Config, GPT, as_checkpoint, save
from rollout import visible_text

S, CONTEXT = 64, 256
ROLES = {  # layers, window (0: the whole story), steps, peak learning rate
    "teacher": (4, 0, 3000, 2e-3),
    "student": (1, 5, 600, 3e-3),
}


def stories(cups: Cups, B: int, seed: int, step: int, aided: bool) -> tuple[Batch, np.ndarray]:
    """B stories, and [B, S]: is this token a fair target? aided: with the teacher's aids (2) and (3)."""
    if not aided:
        plain = cups.batch(B, S, seed, step, "pretrain", again=0.3)
        return plain, np.ones(plain.ids.shape, bool)
    # four quarters: plain or long rounds, true or partly false answers
    quarters = [cups.batch(B // 4, S, seed, 4 * step + i, "pretrain", n_max=12 if i % 2 else None, peak=0.5, lies=0.5 * (i // 2))
                for i in range(4)]
    batch = Batch(*(np.concatenate([getattr(q, name) for q in quarters]) for name in ("ids", "pays", "state", "n")))
    after_question = np.roll(batch.ids, 1, 1) == cups.id["?"]
    ends = np.isin(batch.ids, [cups.id["."], cups.id[","]]) & (batch.n > 0) & (np.arange(B) // (B // 4) % 2 == 1)[:, None]
    return batch, ~(after_question & ~batch.pays) & ~ends


def answers_by_n(model: GPT, cups: Cups, window: int, n_max: int = 12, stories_each: int = 500) -> list[float]:
    """Share of right answers (argmax over text rows) after exactly n moves, n = 1..n_max, on the model's own language."""
    out = []
    for n in range(1, n_max + 1):
        batch = cups.batch(stories_each, OPENING + 2 * n + 3, 1, n, "eval", exact=n)
        ids = torch.from_numpy(batch.ids)
        with torch.no_grad():
            h = model(ids[:, :-1], mask=visible_text(ids[:, :-1], window))[:, -1]
        out.append((model.logits(h).argmax(-1) == ids[:, -1]).float().mean().item())
    return out


def held_out_nats(model: GPT, cups: Cups, window: int) -> float:
    """Nats per text token on 512 plain stories that training never draws."""
    ids = torch.from_numpy(cups.batch(512, S, 1, 0, "eval").ids)
    with torch.no_grad():
        logits = model.logits(model(ids[:, :-1], mask=visible_text(ids[:, :-1], window)))
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def products(cups: Cups, batch: Batch, L: int) -> np.ndarray:
    """[L, B, S]: what the head of layer k = 1..L must say at a move or a "?": the product of the last 2^k items of
    the round, where item 0 is the anchor. Classes: m cups, then m! permutations; -1: nothing to say."""
    perms = list(permutations(range(cups.m)))
    goes = {int(i): tuple(map(int, g)) for i, g in zip(cups.move_ids, cups.goes)}
    labels = np.full((L, *batch.ids.shape), -1)
    for b, row in enumerate(batch.ids.tolist()):
        moves = []  # since the anchor
        for s, i in enumerate(row):
            if i in cups.cup_ids:
                moves = []
            if i in goes:
                moves.append(goes[i])
            if (i in goes or i == cups.id["?"]) and batch.state[b, s] >= 0:
                for k in range(1, L + 1):
                    if len(moves) < 2 ** k:
                        labels[k - 1, b, s] = batch.state[b, s]
                    else:
                        whole = tuple(range(cups.m))
                        for move in moves[-2 ** k:]:
                            whole = tuple(move[c] for c in whole)
                        labels[k - 1, b, s] = cups.m + perms.index(whole)
    return labels


def loss_of(model: GPT, heads: torch.nn.ModuleList, batch: Batch, target: np.ndarray, labels: np.ndarray | None,
            window: int, offset: int) -> Tensor:
    """Cross-entropy of the fair targets, and (teacher only) of every layer's head."""
    ids = torch.from_numpy(batch.ids)
    x, mask = model.embed(ids[:, :-1], torch.arange(S - 1) + offset), visible_text(ids[:, :-1], window)
    loss = 0.0
    for k, block in enumerate(model.h):
        x = block(x, mask, None, None)
        if labels is not None:
            said = torch.from_numpy(labels[k, :, :-1])
            loss = loss + F.cross_entropy(heads[k](x[said >= 0]), said[said >= 0])
    fair = torch.from_numpy(target)[:, 1:]
    return loss + F.cross_entropy(model.logits(model.ln_f(x)[fair]), ids[:, 1:][fair])


def main() -> None:
    parser = argparse.ArgumentParser(description="make assets/pico")
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--out", type=Path, help="default: assets/pico/ROLE.pt")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out is None and (args.steps, args.width, args.seed) != (None, 64, 0):
        parser.error("that would not be the model that ships with the repository: say with --out where it belongs")
    L, window, steps, lr = ROLES[args.role]
    steps = args.steps or steps
    torch.manual_seed(args.seed)
    cups = Cups(3)
    model = GPT(Config(L, 4, args.width, CONTEXT, len(cups.text_ids)), cups.text_ids)
    heads = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.LayerNorm(args.width), torch.nn.Linear(args.width, cups.m + math.factorial(cups.m)))
                                for _ in range(L))
    params = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW([p for p in params if p.numel()], lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    bar = tqdm(range(steps), desc=args.role)
    for step in bar:
        for group in optimizer.param_groups:  # warm up, then a cosine to nothing
            group["lr"] = lr * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        # the student gets random offsets, so that each position of the context is trained; the teacher, whose texts
        # always start at 0, learns to look a fixed way back much sooner without
        offset = int(seeded(args.seed, step, "offset").integers(CONTEXT - S)) if window else 0
        batch, target = stories(cups, 64, args.seed, step, aided=args.role == "teacher")
        labels = products(cups, batch, L) if args.role == "teacher" else None
        loss = loss_of(model, heads, batch, target, labels, window, offset)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        if step % 250 == 249 or step == steps - 1:
            by_n = answers_by_n(model, cups, window)
            tqdm.write(f"step {step + 1}: loss {loss.item():.4f}, held-out {held_out_nats(model, cups, window):.4f} nats a token, "
                       f"answers right % by n: {' '.join(f'{100 * a:.0f}' for a in by_n)}")
            out = args.out or PICO[{"teacher": "pico-teacher", "student": "pico"}[args.role]]
            out.parent.mkdir(parents=True, exist_ok=True)
            save(out, as_checkpoint(model))


if __name__ == "__main__":
    main()
