"""The same questions for every approach and every control, on held-out data.

- given stories: thoughts greedy, the answer is the argmax over text rows; right by n = moves since the anchor;
- the same with the thoughts of another story of the same shape: what is left is what the recipe alone teaches;
- own free stories, checked by the rule, with counts (a story that stops asking gives no wrong answers, but few);
- on given text, what own thoughts add to the log-prob of the data (`gain`), and, where thinking rows are words, how likely the
  base finds them as such;
- reverse KL to the teacher on own text, where there is a teacher; p_think; and, on any data, nats a token on
  held-out text without thoughts: did RL hurt the language?

Left out on purpose: anything that learns. Knows data.py, model.py, rollout.py and reward.py.
"""
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from data import OPENING, Cups, TextFile, seeded
from model import GPT, gate_logit
from reward import as_text, slot_rewards, teacher_states
from rollout import Rollout, Rules, rollout, visible_text

N_MAX = 30  # the longest round that is asked for; training sees --swaps at the most


def uniforms(seed: int, step: int, purpose: str, steps: int, R: int, device) -> Tensor:  # -> [steps, R, 2]
    """The luck of one rollout, drawn on the CPU so that every device has the same."""
    return torch.from_numpy(seeded(seed, step, purpose).random((steps, R, 2), dtype="float32")).to(device)


def luck_on_text(seed: int, step: int, purpose: str, rules: Rules, R: int, S: int, device) -> Tensor:
    """The luck of a rollout over given text: a row's, or each branch's own."""
    if rules.persist:
        return uniforms(seed, step, purpose, rules.draws(S), R, device)
    return uniforms(seed, step, purpose, rules.max_thoughts, R * S, device)


def by_n(n: Tensor, right: Tensor, n_max: int = N_MAX) -> tuple[list[float], list[int]]:
    """Flat n and right (both of the answers alone) -> share right and count for n = 1..n_max."""
    counts = torch.bincount(n.clamp(max=n_max + 1), minlength=n_max + 2)[1:n_max + 1]
    hits = torch.bincount(n.clamp(max=n_max + 1), weights=right.float(), minlength=n_max + 2)[1:n_max + 1]
    return (hits / counts.clamp(min=1)).tolist(), counts.tolist()


def story_set(cups: Cups, rules: Rules, each: int, seed: int, device) -> tuple[Tensor, Tensor, Tensor, Rules, Tensor]:
    """`each` stories whose first round has n moves, one block for every n = 1..30: ids, n and pays, each [30 * each, 72]
    (see data.Batch), the rules with room for all their thoughts, and luck for a rollout over them."""
    S, rules = 2 * N_MAX + 3, rules.with_room(2 * N_MAX + 3)
    story = [cups.batch(each, OPENING + S, seed, n, "eval", n_max=10, exact=n) for n in range(1, N_MAX + 1)]
    ids, n, pays = (torch.cat([torch.from_numpy(getattr(b, k)) for b in story]).to(device) for k in ("ids", "n", "pays"))
    return ids, n, pays, rules, luck_on_text(seed, 0, "eval_rollout", rules, len(ids), S, device)


@torch.no_grad()
def given_stories(model: GPT, cups: Cups, rules: Rules, each: int, seed: int = 0) -> dict:
    """accuracy_by_n and accuracy_shuffled_by_n (index 0 is n = 1, up to 30) over `each` stories whose first round
    has n moves; the rounds after it count for their own n. accuracy_first_by_n: first rounds alone, `each` for every n, which
    is kinder to full attention (late in a story there is much before the anchor to look past, and training's stories are
    short)."""
    ids, n, pays, rules, u = story_set(cups, rules, each, seed, model.device)
    P, S = OPENING, ids.shape[1] - OPENING
    ro = rollout(model, ids, P, S, rules, u, temperature=0.0)
    out = {}
    asked = pays[:, P:]
    pairs = [("accuracy_by_n", ro, asked), ("accuracy_first_by_n", ro, asked & (asked.cumsum(1) == 1))]
    if ro.is_think.any() and model.config.think_vocab > 1:  # one row alone says nothing that could be shuffled
        # thoughts of the neighbour with the same n, wherever it had one at this place, all along the story
        other = torch.where(ro.is_think, ro.ids, -1).view(N_MAX, each, -1).roll(1, 1).flatten(0, 1)
        swap = rollout(model, ids, P, S, rules, u, temperature=0.0,
                       edit=lambda t, z: torch.where(other[:, t] >= 0, other[:, t], z))
        # a branch is as good as its last thought: one whose place the neighbour left empty was not shuffled
        heard = rules.persist | (other.gather(1, ro.left.gather(1, ro.place[:, P:])) >= 0)
        pairs.append(("accuracy_shuffled_by_n", swap, asked & heard))
    for name, r, counts in pairs:
        _, hit = slot_rewards(model, r, None, None, None)
        out[name], answers = by_n(n[:, P:][counts], hit[counts])
        out.setdefault("answers_by_n", answers)
    if rules.think == "free":
        out |= when_it_thinks(model, cups, rules, ro, pays) if rules.persist else what_it_thinks_about(ro, asked)
    return out


def when_it_thinks(model: GPT, cups: Cups, rules: Rules, ro: Rollout, pays: Tensor) -> dict:
    """Of the slots that may hold thoughts, the share that does after moves that move the ball, and elsewhere; and thoughts in
    the first round, by its n. ro: rollouts over `story_set`."""
    follow = [cups.follow(row) for row in ro.text.tolist()]
    ball = torch.tensor([[-1 if b is None else b for b, _ in row] for row in follow], device=ro.ids.device)  # [R, L]
    move = torch.isin(ro.text, torch.as_tensor(cups.move_ids, device=ro.ids.device))
    moved = move & (ball != ball.roll(1, 1))
    thoughts = torch.zeros_like(ball).scatter_add(1, ro.slot.clamp(min=0), ro.is_think.long())  # in each slot
    may = rules.table(model)[ro.text]
    may[:, :OPENING - 1], may[:, -1] = False, False  # none in the prompt, none after the end
    first = pays.long().argmax(1, keepdim=True)  # the first answer's place
    in_round = (thoughts * (torch.arange(ball.shape[1], device=ball.device) < first)).sum(1).float()
    share = {name: (thoughts[where] > 0).float().mean().item() if where.any() else 0.0
             for name, where in (("thinks_after_moved", may & moved), ("thinks_elsewhere", may & ~moved))}
    return share | {"thoughts_by_n": in_round.view(N_MAX, -1).mean(1).tolist()}


def what_it_thinks_about(ro: Rollout, asked: Tensor) -> dict:
    """Branches: of the tokens that are predicted, the share that is thought about: of answers, asked [R, S], and of all others."""
    thoughts = torch.zeros_like(ro.text).scatter_add(1, ro.slot.clamp(min=0), ro.is_think.long())[:, ro.P - 1:-1]
    return {name: (thoughts[where] > 0).float().mean().item()
            for name, where in (("thinks_before_answers", asked), ("thinks_elsewhere", ~asked))}


def plain_nats(model: GPT, ids: Tensor, window: int) -> tuple[float, float]:
    """Held-out ids [R, T] without thoughts -> nats a text token, and mean p_think over their slots."""
    nats, p = [], []
    with torch.no_grad():
        for row in ids.split(8):
            h = model(row[:, :-1], mask=visible_text(row[:, :-1], window))
            logits = model.logits(h).float()
            V = model.config.vocab_size
            nats.append(F.cross_entropy(logits[..., :V].flatten(0, 1), row[:, 1:].flatten(), reduction="none"))
            p.append(torch.sigmoid(gate_logit(logits, V)).flatten() if model.config.think_vocab else torch.zeros(1))
    return torch.cat(nats).mean().item(), torch.cat(p).mean().item()


@torch.no_grad()
def gain(model: GPT, ids: Tensor, P: int, rules: Rules, seed: int = 0) -> tuple[float, float]:
    """Held-out ids [R, L] -> nats a token that own sampled thoughts add to log p_text of the data, over the same model
    without them, and the half width of its 95 % interval over rows."""
    R, S = len(ids), ids.shape[1] - P
    r = [slot_rewards(model, rollout(model, ids, P, S, rule, luck_on_text(seed, 2, "eval_rollout", rule, R, S, ids.device)),
                      None, None, None)[0].mean(1) for rule in (rules, replace(rules, think="never", budget=0))]
    return (r[0] - r[1]).mean().item(), 1.96 * (r[0] - r[1]).std().item() / R ** 0.5


@torch.no_grad()
def free_text(model: GPT, data: Cups | TextFile, rules: Rules, teacher: GPT | None, rows: int, P: int, S: int,
              seed: int = 0) -> tuple[dict, Rollout]:
    """Own text at temperature 1 with greedy thoughts (where thinking is free: sampled ones, since a gate below one half
    would never open): reverse_kl (nats a text token), thoughts a text token, and on cups own answers by their own n."""
    kind = {"prompt": P} if isinstance(data, Cups) else {}
    prompts = torch.from_numpy(data.batch(rows, P, seed, 1000, "eval", **kind).ids).to(model.device)
    u = uniforms(seed, 1, "eval_rollout", rules.draws(S), rows, model.device)
    ro = rollout(model, prompts, P, S, rules, u, think_temperature=0.0 if rules.think == "forced" else 1.0)
    out = {"thoughts_per_token": ro.is_think.sum().item() / (rows * S)}
    if teacher is not None:
        r, _ = slot_rewards(model, ro, teacher, teacher_states(teacher, ro), None)
        out["reverse_kl"] = -r.mean().item()
    if isinstance(data, Cups):
        # neither the prompt's, nor those to a question that is asked twice without a move in between (n = 0)
        answers = [a for row in ro.text.tolist() for a in data.check(row) if a[0] >= P and a[1] > 0]
        n, right = (torch.tensor([a[i] for a in answers], dtype=torch.long) for i in (1, 2))
        out["free_accuracy_by_n"], out["free_answers_by_n"] = by_n(n, right)
        out["free_accuracy"], out["free_answers"] = right.float().mean().item() if len(n) else 0.0, len(n)
    return out, ro


@torch.no_grad()
def thoughts_as_text(model: GPT, base: GPT, ids: Tensor, P: int, rules: Rules, seed: int = 0) -> float:
    """Held-out ids [R, L] -> mean log p of greedy thoughts (free ones: sampled, as in `free_text`) for the base, which reads
    them as words."""
    R, S = len(ids), ids.shape[1] - P
    ro = rollout(model, ids, P, S, rules, luck_on_text(seed, 3, "eval_rollout", rules, R, S, ids.device),
                 think_temperature=0.0 if rules.think == "forced" else 1.0)
    return as_text(base, ro, rules).sum().item() / max(ro.is_think.sum().item(), 1)


def evaluate(model: GPT, data: Cups | TextFile, rules: Rules, teacher: GPT | None, P: int, S: int, each: int = 32,
             rows: int = 128, base: GPT | None = None) -> tuple[dict, Rollout]:
    """Everything above in one dictionary, ready for an `eval` line of metrics.jsonl, and the free rollouts."""
    # without a cache for own text of branches, 8 rows of 64 tokens would take GPT-2 minutes: a look at it is enough there
    few = not rules.persist and not isinstance(data, Cups)
    free, ro = free_text(model, data, rules, teacher, min(rows, 2) if few else rows, P, min(S, 8) if few else S)
    ids = torch.from_numpy(data.batch(rows, P + S, 0, 2000, "eval").ids).to(model.device)
    nats, p_think = plain_nats(model, ids, rules.window)
    out = {"p_think": p_think, "nats_without_thoughts": nats, **free}
    if rules.think != "never":
        kind = {"prompt": P} if isinstance(data, Cups) else {}  # no round that began before there could be thoughts
        ids = torch.from_numpy(data.batch(rows, P + S, 0, 3000, "eval", **kind).ids).to(model.device)
        out["gain"], out["gain_95"] = gain(model, ids, P, rules)
        out |= {"thoughts_as_text": thoughts_as_text(model, base, ids, P, rules)} if base is not None else {}
    if isinstance(data, Cups):
        out |= given_stories(model, data, rules, each)
        out["accuracy"] = sum(out["accuracy_by_n"][:10]) / 10
    return out, ro
