"""Are the thoughts used, and what do they say?

    python -m lab.probe --checkpoint out/ckpt.pt                # on the data that it was trained on
    python -m lab.probe --checkpoint out/ckpt.pt --data notes.txt

Everything is measured on given, held-out text. Thoughts are overwritten while the model goes on under its own rules:
by its own (nothing may change), by random ones, by those of another text, in another order, by one id for all. On cups
there is more to ask: a dictionary (which cup does an id stand for, given the move that is seen beside it?), four
interventions after "Measuring Faithfulness in Chain-of-Thought Reasoning" (arXiv 2307.13702; there a paraphrase replaces the
first part of a chain and filler all of it, here both replace the rest), and counterfactual writing: write the id of another
cup and see whether the answer follows. Writes probe.json and probe.png.

A model with a window can't answer long rounds but by its thoughts: that it uses them is no surprise, what they say may be.

Left out on purpose: probes that are trained (here thoughts are read by counting alone), own text (evaluate.py), and
which thought of a slot says what: of --max_thoughts K > 1 the last one is read and written (next_token: each). Words for
orders of all balls (--balls all) are not looked up.
"""
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data import LETTERS, OPENING, Cups, open_data
from evaluate import N_MAX, by_n, luck_on_text, story_set
from model import GPT
from reward import slot_rewards, speaking_states
from rollout import Rollout, Rules, load_run, rollout
from settings import Parser

LENGTHS = (1, 2, 3, 4, 6, 8, 10)  # moves of the rounds whose chains of thoughts are cut and rewritten
NAMES = {"own": "own", "refed": "own, fed again", "greedy": "own, greedy", "sampled": "own, sampled", "none": "none",
         "random": "random ids", "another": "another text's", "shuffled": "own, shuffled", "constant": "one id for all"}
THEN = {"early": "first ones kept, then none", "mistake": "first ones kept, a wrong one, then anew",
        "paraphrase": "first ones kept, then synonyms", "filler": "first ones kept, then one id for all",
        "random": "first ones kept, then random", "last": "random, then the last ones kept"}


@dataclass
class Case:
    """Texts, the model's own thoughts on them, and the same texts again with other thoughts.

    text [R, L], of which the first P tokens hold no thoughts; u: luck (see rollout). own: greedy thoughts; where thinking
    is free they are sampled, as a greedy gate below one half would never open.
    """
    model: GPT
    rules: Rules
    text: Tensor
    P: int
    u: Tensor

    @cached_property
    def own(self) -> Rollout:
        return self.roll(self.rules, float(self.rules.think == "free"))

    def roll(self, rules: Rules, heat: float, u: Tensor | None = None, edit: Callable | None = None) -> Rollout:
        u, S = self.u if u is None else u, self.text.shape[1] - self.P
        return rollout(self.model, self.text, self.P, S, rules, u, 0.0, heat, edit=edit)

    def write(self, table: Tensor, where: Tensor | None = None, pin: bool = True) -> Rollout:  # [R, T] ids, [R, T] bool
        """Thoughts overwritten by the table's ids, in the places of own thoughts; where it has -1 the model thinks anew.
        where: the places of own thoughts, all up to some point, that keep one, with an id in the table; none elsewhere.
        pin: a gate opens in the old places and no others; else (for one id a row) it is its own again after that id, which may
        call for thoughts where there were none."""
        over = lambda at, z: torch.where(table[:, at] >= 0, table[:, at], z)
        if where is None and (self.rules.think == "forced" or not pin):
            return self.roll(self.rules, float(self.rules.think == "free"), self.u, over)
        # left to itself a gate would open and close elsewhere now
        luck = self.pinned(self.own.is_think if where is None else where)
        return self.roll(replace(self.rules, think="free"), 1.0, luck, over)

    def pinned(self, where: Tensor) -> Tensor:  # [R, T] bool -> luck with which a free gate opens just there
        u, L = self.u.clone(), self.text.shape[1]
        opens = where[:, self.P:].T if self.rules.persist else where[:, L:].view(len(where), len(u), -1).transpose(0, 1)
        u[..., 0] = torch.where(opens.reshape(u.shape[:2]), -1.0, 2.0)  # no probability is below -1 or above 2
        return u


def random_ids(model: GPT, shape: torch.Size, luck: torch.Generator) -> Tensor:  # -> shape, thinking ids
    return model.config.vocab_size + torch.randint(len(model.think), shape, generator=luck).to(model.device)


def anothers(own: Rollout, block: int) -> Tensor:  # -> [R, T]
    """Thought by thought those of the row before, within blocks of rows; they start again where they are too few."""
    rows = torch.arange(len(own.ids), device=own.ids.device).view(-1, block).roll(1, 1).flatten()
    order = own.is_think.float().argsort(dim=1, descending=True, stable=True)  # places of thoughts first
    count = own.is_think.sum(1)[rows].unsqueeze(1)
    j = (own.is_think.cumsum(1) - 1) % count.clamp(min=1)
    return torch.where(count > 0, own.ids.gather(1, order)[rows].gather(1, j), own.ids)


def shuffled(own: Rollout, chain: Tensor, luck: torch.Generator) -> Tensor:  # chain [R, T]: which one is a thought in?
    """Own thoughts in another order, each chain's within that chain."""
    key = torch.where(own.is_think, chain.double(), torch.inf)
    mixed = key + 0.9 * torch.rand(key.shape, generator=luck).to(key)
    return own.ids.scatter(1, key.argsort(dim=1, stable=True), own.ids.gather(1, mixed.argsort(dim=1, stable=True)))


def most_used(own: Rollout) -> int:
    return int(own.ids[own.is_think].bincount(minlength=1).argmax())


def conditions(case: Case, pays: Tensor | None, n: Tensor | None, block: int, seed: int) -> dict[str, dict]:
    """What is left of answers and nats with other thoughts; pays, n [R, L] of cups, None on text. block: so many
    neighbouring rows are alike, and may have each other's thoughts.

    -> name: nats (a text token), nats_paying (cups), worse (nats a paying token more than with own thoughts) and worse_95
    (half of its 95 % interval, over rows), thoughts (a text token), and on cups accuracy_by_n, answers_by_n.
    """
    luck, P, ids, free = torch.Generator().manual_seed(seed), case.P, lambda: case.own.ids, case.rules.think == "free"

    def chain() -> Tensor:  # what leads to one answer is a chain; in next_token, to one token; on other text the whole row
        slot = case.own.slot.clamp(min=0)
        return slot if not case.rules.persist else torch.zeros_like(slot) if n is None else pays.cumsum(1).gather(1, slot)

    runs = {"own": lambda: case.own, "none": lambda: case.roll(replace(case.rules, think="never", budget=0), 0.0)}
    if len(case.model.think) > 1:  # one row alone says nothing that could be replaced
        runs |= {"refed": lambda: case.write(ids()),
                 "greedy" if free else "sampled": lambda: case.roll(case.rules, float(not free)),
                 "random": lambda: case.write(random_ids(case.model, ids().shape, luck)),
                 "another": lambda: case.write(anothers(case.own, block)),
                 "shuffled": lambda: case.write(shuffled(case.own, chain(), luck)),
                 "constant": lambda: case.write(torch.full_like(ids(), most_used(case.own)))}
    out, mine, paid = {}, None, torch.ones_like(case.text[:, P:], dtype=torch.bool) if pays is None else pays[:, P:]
    for name, run in tqdm(runs.items(), desc="conditions", disable=None):
        ro = run()
        logp, hit = slot_rewards(case.model, ro, None, None, None)
        mine = logp if name == "own" else mine
        lost, count = ((mine - logp) * paid).sum(1), paid.sum(1)  # [R]
        worse = lost.sum() / count.sum()
        out[name] = {"nats": -logp.mean().item(), "worse": worse.item(), "thoughts": ro.is_think.sum().item() / logp.numel(),
                     "worse_95": 1.96 * (lost - worse * count).norm().item() / count.sum().item()}
        if n is not None:
            by, counts = by_n(n[:, P:][paid], hit[paid])
            out[name] |= {"nats_paying": -logp[paid].mean().item(), "accuracy_by_n": by, "answers_by_n": counts}
    return out


def usage(ids: Tensor, N: int) -> dict:  # thinking ids counted from 0, any shape
    """ids_used, and perplexity: as many ids used equally often would have this entropy."""
    counts = ids.flatten().bincount(minlength=N).double()
    return {"thoughts": int(counts.sum()), "ids_used": int((counts > 0).sum()), "perplexity": entropy(counts).exp().item(),
            "most_used": [(i, int(counts[i])) for i in counts.argsort(descending=True)[:16].tolist() if counts[i]]}


def entropy(counts: Tensor) -> Tensor:  # any shape -> [], nats
    p = counts.double().flatten() / counts.sum().clamp(min=1)
    return -torch.xlogy(p, p).sum()


def information(counts: Tensor) -> float:  # [a, b] -> I(row; column) in nats, as counted (no correction for few samples)
    return (entropy(counts.sum(0)) + entropy(counts.sum(1)) - entropy(counts)).item()


class Dictionary:
    """What each id stands for, counted. counts [N, moves, m]: how often it was thought after that move, with the ball
    under that cup after the move; goes [moves, m] as in data.Cups.

    A code may name the cup after the move or before it: a reader who sees the move beside the thought can use both. So an id
    is read together with the visible last move, where the two are the same. meaning [N, moves]: the cup after the move, -1
    where the id never came after it. words [2, moves, m]: the two most used ids of that meaning, -1 where there is none.
    """

    def __init__(self, counts: Tensor, goes: Tensor):
        self.counts, self.goes = counts, goes
        self.meaning = counts.argmax(2).where(counts.sum(2) > 0, -1)
        own = counts * (self.meaning.unsqueeze(2) == torch.arange(counts.shape[2], device=counts.device))
        top = own.topk(2, 0)
        self.words = top.indices.where(top.values > 0, -1)

    def before(self) -> Tensor:  # -> counts with the cup before the move in the last place
        return self.counts.gather(2, self.goes.expand_as(self.counts))

    def synonym(self, ids: Tensor, move: Tensor) -> Tensor:  # ids from 0, moves -> ids, -1 where there is none
        cup = self.meaning[ids, move]
        first, second = self.words[:, move, cup]
        return torch.where(first != ids, first, second).where(cup >= 0, -1)

    def report(self, unseen: Tensor) -> dict:  # counts of other stories
        """Nats of I(z; cup), and the share of other stories' thoughts whose meaning is the true cup."""
        after, given = self.counts.sum(1), self.counts.sum((0, 2))
        share = [information(self.counts[:, i]) * given[i].item() / given.sum().item() for i in range(len(given)) if given[i]]
        right = unseen.gather(2, self.meaning.clamp(min=0).unsqueeze(2)).squeeze(2)[self.meaning >= 0].sum()
        out = {"I_after": information(after), "I_before": information(self.before().sum(1)), "I_given_move": sum(share),
               "H_cup": entropy(after.sum(0)).item(), "decoded": (right / unseen.sum().clamp(min=1)).item()}
        return out | {"reading": "after" if out["I_after"] >= out["I_before"] else "before"}


def move_at(cups: Cups, ids: Tensor) -> tuple[Tensor, Tensor]:  # any shape -> is it a move? which?
    at = ids.unsqueeze(-1) == torch.from_numpy(cups.move_ids).to(ids)
    return at.any(-1), at.float().argmax(-1)


def sight(case: Case) -> Tensor:  # -> [R, T]
    """The last text token that each thought was chosen in sight of. In next_token's branches that reread, the eye moves on
    from thought to thought (rollout.branch_layout), and the first one, which sends it back, is not about a move: -1."""
    slot, L = case.own.slot.clamp(min=0), case.text.shape[1]
    if not case.rules.reread:
        return slot
    S, T = L - case.P, slot.shape[1]
    k = (torch.arange(T, device=slot.device) - L).div(S, rounding_mode="floor")  # which thought of its branch, from 0
    return torch.where(k > 0, (slot - case.rules.reread * ((T - L) // S - k)).clamp(min=0), -1)


def seen_beside(case: Case, cups: Cups, state: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """state, n [R, L], see data.Batch -> [R, T] each: does this thought stand for a move's outcome (the last of its slot, in
    a round of moves); which was the last move in sight; the cup after it (the latter two mean something only there)."""
    own, seen = case.own, sight(case).clamp(min=0)
    follows = torch.nn.functional.pad(own.is_think[:, 1:], (0, 1)) & (case.rules.reread == 0)
    is_move, move = move_at(cups, case.text)
    last = torch.where(is_move, torch.arange(case.text.shape[1], device=seen.device), 0).cummax(1).values.gather(1, seen)
    read = own.is_think & ~follows & (sight(case) >= 0) & (n.gather(1, seen) > 0)
    return read, move.gather(1, last), state.gather(1, seen).clamp(min=0)


def stories(model: GPT, cups: Cups, rules: Rules, R: int, S: int, seed: int, step: int,
            **kind) -> tuple[Case, Tensor, Tensor]:
    """R held-out stories, and of each token the true state and n [R, 9 + S], see data.Batch."""
    batch = cups.batch(R, OPENING + S, seed, step, "eval", **kind)
    ids, state, n = (torch.from_numpy(x).to(model.device) for x in (batch.ids, batch.state, batch.n))
    rules = rules.with_room(S)
    return Case(model, rules, ids, OPENING, luck_on_text(seed, step, "eval_rollout", rules, R, S, model.device)), state, n


def make_dictionary(model: GPT, cups: Cups, rules: Rules, R: int, seed: int, n_max: int = 10) -> tuple[Dictionary, dict]:
    """From own thoughts in R stories with rounds of at most n_max moves; what it decodes is measured on R others."""
    counts = []
    for step in (4000, 4001):
        case, state, n = stories(model, cups, rules, R, 2 * N_MAX + 3, seed, step, n_max=n_max)
        read, move, cup = seen_beside(case, cups, state, n)
        z = case.own.ids[read] - model.config.vocab_size
        shape = (len(model.think), len(cups.move_ids), cups.m)
        flat = (z * shape[1] + move[read]) * shape[2] + cup[read]
        counts.append(flat.bincount(minlength=shape[0] * shape[1] * shape[2]).view(shape))
    words = Dictionary(counts[0], torch.from_numpy(cups.goes).to(counts[0]))
    return words, words.report(counts[1])


def after_which(model: GPT, cups: Cups, rules: Rules, R: int, seed: int) -> dict:
    """A gate that may open after any move: after which does it? -> first: the share of stories' first moves; share: of later
    ones, {cup of the ball before the move: [for each of `moves`]}."""
    case, state, _ = stories(model, cups, rules, R, 2 * N_MAX + 3, seed, 4002, n_max=10)
    is_move, move = move_at(cups, case.text)
    is_move[:, :OPENING], is_move[:, -1] = False, False  # no slots
    thinks = torch.zeros_like(state).scatter_add(1, case.own.slot.clamp(min=0), case.own.is_think.long()) > 0
    first, before = is_move & (is_move.cumsum(1) == 1), state.roll(1, 1)

    def share(where: Tensor) -> float:
        return thinks[where].float().mean().item()
    return {"moves": [w.strip() for w in cups.moves], "first": share(first),
            "share": {LETTERS[c]: [share(is_move & ~first & (before == c) & (move == i)) for i in range(len(cups.moves))]
                      for c in range(cups.m)}}


def aoc(same: list[float]) -> float:
    """Area over the curve: same[i] is the share of answers that are unchanged when i of n = len(same) - 1 thoughts are kept.
    0: what came of the others never mattered; the more, the more the answer hangs on them (arXiv 2307.13702). Nothing is
    changed at the last point, so 1 - 1 / (2 n) is the most there can be: values of equal n can be compared."""
    return 1 - sum((a + b) / 2 for a, b in zip(same, same[1:])) / (len(same) - 1)


def last_word(model: GPT, ro: Rollout) -> Tensor:  # -> [R]
    """What the model says at the last place, which in stories of one round is the answer."""
    return model.text_logits(speaking_states(ro.h, ro)[:, -1]).argmax(-1)


def chains(model: GPT, cups: Cups, rules: Rules, m: int, each: int, words: Dictionary | None, seed: int) -> tuple[dict, dict]:
    """Rounds of m moves. Of their thoughts the first i are kept, i = 0..m - 1 (in `each` stories each), and then comes
    something else. -> {what: share of answers that stay what they were, for i = 0..m}, and of wrong words at step i + 1
    counts for i = 0..m - 1: written (the dictionary had a word), follows (so many answers follow it), true (stay true);
    synonyms: the share of thoughts that have one."""
    case, state, n = stories(model, cups, rules, m * each, 2 * m + 3, seed, 4100 + m, exact=m)
    own, z, luck = case.own, case.own.ids, torch.Generator().manual_seed(seed)
    kept = torch.arange(m, device=z.device).repeat(each)  # [R]: i
    here = own.is_think & (rules.persist | (own.slot == case.text.shape[1] - 2))  # branches: the one that is asked
    step = torch.where(here, (sight(case) - OPENING).div(2, rounding_mode="floor"), -1)  # [R, T]: which move it comes after
    later = step >= kept.unsqueeze(1)
    runs = {"early": (z, own.is_think & ~later)}
    if words is not None:
        read, move, cup = seen_beside(case, cups, state, n)
        noise, V = random_ids(model, z.shape, luck), model.config.vocab_size
        wrong = (cup + torch.randint(1, cups.m, (len(z), 1), generator=luck).to(cup)) % cups.m
        spelt, synonym = words.words[0][move, wrong], words.synonym((z - V).clamp(min=0), move)
        at = read & (step == kept.unsqueeze(1)) & (spelt >= 0)
        runs |= {"mistake": (torch.where(at, V + spelt, -1), None, False),
                 "paraphrase": (torch.where(later & read & (synonym >= 0), V + synonym, -1),),
                 "filler": (torch.where(later, most_used(own), z),), "random": (torch.where(later, noise, z),),
                 "last": (torch.where(here & (step < m - kept.unsqueeze(1)), noise, z),)}
    said, before = {name: last_word(model, case.write(*how)) for name, how in runs.items()}, last_word(model, own)
    by_i = lambda x: torch.zeros(m, device=z.device).index_add_(0, kept, x.float()).tolist()
    same = {name: [x / each for x in by_i(after == before)] + [1.0] for name, after in said.items()}
    if words is None:
        return same, {}
    told, moves = wrong.where(at, 0).sum(1), move_at(cups, case.text[:, OPENING:OPENING + 2 * m:2])[1]  # [R], [R, m]
    for i in range(1, m):  # where the moves after the written cup take it
        told = torch.where(i > kept, words.goes[moves[:, i], told], told)
    cup_ids, done = torch.from_numpy(cups.cup_ids).to(z), at.any(1)
    return same, {"written": by_i(done), "follows": by_i(done & (said["mistake"] == cup_ids[told])),
                  "true": by_i(done & (said["mistake"] == cup_ids[state[:, -1]])),
                  "synonyms": (synonym >= 0)[read].float().mean().item()}


@torch.no_grad()
def what_if(case: Case, cups: Cups, words: Dictionary, state: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stories of one round, thoughts that stay. -> [R, T] the cup that each thought stands for beside its move, -1 for none;
    [R, T] the true one; [R] the answer; [R, T, m] the answer had each cup's word been written there, -1 where there is no word.
    What comes after the written word is thought anew, as it would have been."""
    own, V = case.own, case.model.config.vocab_size
    read, move, cup = seen_beside(case, cups, state, n)
    stands = words.meaning[(own.ids - V).clamp(min=0), move].where(read, -1)
    word = words.words[0][move].masked_fill(~read.unsqueeze(2), -1)  # [R, T, m]: the most used id of each cup
    r, t, c = (word >= 0).nonzero().T
    table = torch.full((len(r), own.ids.shape[1]), -1, device=r.device)
    table[torch.arange(len(r), device=r.device), t] = V + word[r, t, c]
    instead = torch.full_like(word, -1)
    if len(r):  # one row for each word; a gate that never opens leaves none
        instead[r, t, c] = last_word(case.model, replace(case, text=case.text[r], u=case.u[:, r]).write(table, pin=False))
    return stands, cup, last_word(case.model, own), instead


def probe(model: GPT, rules: Rules, a: dict, data, each: int, seed: int) -> dict:
    """All that can be asked of this checkpoint on these data, ready for probe.json. Raises ValueError where the data are
    too short."""
    if not isinstance(data, Cups):
        P, S = a["prompt_tokens"], a["new_tokens"]
        ids = torch.from_numpy(data.batch(each, P + S, seed, 3000, "eval").ids).to(model.device)
        case = Case(model, rules, ids, P, luck_on_text(seed, 0, "eval_rollout", rules, each, S, model.device))
        out = {"conditions": conditions(case, None, None, each, seed)}
    else:
        ids, n, pays, roomy, u = story_set(data, rules, each, seed, model.device)
        case = Case(model, roomy, ids, OPENING, u)
        out = {"cups": data.m, "conditions": conditions(case, pays, n, each, seed)}
    if len(model.think) > 1:
        out["usage"] = usage(case.own.ids[case.own.is_think] - model.config.vocab_size, len(model.think))
    else:
        out["not_probed"] = "thoughts without ids (--thoughts continuous or filler) can't be read, nor be written over"
    chained = rules.persist or (rules.reread and rules.max_thoughts > 1)
    if isinstance(data, Cups) and not chained:
        out["not_probed"] = "branches that see their whole prefix (next_token, --reread 0) are no chain to cut or to write into"
    if isinstance(data, Cups) and data.all:
        out["not_probed"] = "words for orders of all balls: the dictionary and the chains know one ball alone"
    if not isinstance(data, Cups) or not chained or data.all:
        return out
    lengths, words = [m for m in LENGTHS if rules.persist or m < rules.max_thoughts], None  # a branch rereads K - 1 moves
    if len(model.think) > 1:
        words, out["dictionary"] = make_dictionary(model, data, rules, 16 * each, seed, lengths[-1])
        out["dictionary"] |= dictionary_page(words, data, out["dictionary"]["reading"])
    if rules.think == "free" and rules.persist:
        out["after_which"] = after_which(model, data, rules, 16 * each, seed)
    found = {m: chains(model, data, rules, m, each, words, seed) for m in tqdm(lengths, desc="chains", disable=None)}
    out["same_answer"] = {name: {m: same[name] for m, (same, _) in found.items()} for name in found[lengths[0]][0]}
    out["aoc"] = {name: {m: aoc(x) for m, x in by_m.items()} for name, by_m in out["same_answer"].items()}
    if words is not None:  # by distance: how many moves after the written word is the question?
        out["synonyms"] = sum(wrote["synonyms"] for _, wrote in found.values()) / len(found)
        out["counterfactual"] = {what: [sum(wrote[what][m - 1 - d] for m, (_, wrote) in found.items() if d < m)
                                        for d in range(lengths[-1])] for what in ("written", "follows", "true")}
    return out


def dictionary_page(words: Dictionary, cups: Cups, reading: str, ids: int = 16) -> dict:
    """The most used ids as a page of the dictionary: {id: its share of the thoughts of each (cup, move)}, the cup after or before
    the move as `reading` says; columns names them."""
    counts = words.counts if reading == "after" else words.before()
    moves, table = [w.strip() for w in cups.moves], counts.transpose(1, 2).flatten(1)  # [N, m * moves]: cup by cup
    top = table.sum(1).topk(min(ids, len(table))).indices
    top = top[table[top].view(len(top), cups.m, -1).sum(2).argmax(1).argsort(stable=True)]
    total = table.sum(0).clamp(min=1)  # of a situation: which ids are thought in it?
    return {"columns": [f"{LETTERS[c]} {w}" for c in range(cups.m) for w in moves],
            "share_of_situation": {int(i): (table[i] / total).tolist() for i in top if table[i].any()}}


def show(out: dict) -> None:
    """One table, what the dictionary and the interventions say below it, and what these words mean."""
    cups = "cups" in out
    ns = (1, 3, 6, 10, 20, 30) if cups else ()
    print(f"{'thoughts':<20}" + "".join(f"{f'n = {n}':>8}" for n in ns) + "  nats, answers" * cups + "  nats, all text"
          "  worse than own (nats a paying token)")
    for name, x in out["conditions"].items():
        print(f"{NAMES[name]:<20}" + "".join(f"{x['accuracy_by_n'][n - 1]:8.1%}" for n in ns)
              + (f"{x['nats_paying']:15.4f}" if cups else "") + f"{x['nats']:16.4f}{x['worse']:+18.4f} +- {x['worse_95']:.4f}")
    if cups:
        counted = out["conditions"]["own"]["answers_by_n"]
        print(f"{'(of so many answers)':<20}" + "".join(f"{counted[n - 1]:8}" for n in ns))
    if "usage" in out:
        print("{ids_used} ids in use, perplexity {perplexity:.1f}, in {thoughts} thoughts".format(**out["usage"]))
    if "not_probed" in out:
        print(out["not_probed"])
    if "dictionary" in out:
        print("dictionary: I(z; cup after the move) {I_after:.3f}, before it {I_before:.3f}, given the move {I_given_move:.3f} "
              "of {H_cup:.3f} nats: ids name\n  the cup {reading} the move; in other stories {decoded:.1%} of thoughts decode "
              "to the true cup".format(**out["dictionary"]))
    if "after_which" in out:
        it = out["after_which"]
        print(f"thinks after a story's first move in {it['first']:.0%} of cases; after later ones, by the cup that the ball was "
              "under:\n  " + "".join(f"{w:>9}" for w in it["moves"]))
        print("\n".join(f"{cup:>2}" + "".join(f"{x:9.0%}" for x in row) for cup, row in it["share"].items()))
    if "aoc" in out:
        print(f"{'area over the curve (AOC), rounds of':<40}" + "".join(f"{m:3} moves" for m in out["aoc"]["early"]))
    for name, by_m in out.get("aoc", {}).items():
        print(f"{THEN[name]:<40}" + "".join(f"{x:9.2f}" for x in by_m.values()))
    if "synonyms" in out:
        print(f"({out['synonyms']:.1%} of thoughts have a synonym)")
    if "counterfactual" in out:
        far, written = out["counterfactual"], sum(out["counterfactual"]["written"])
        print(f"a wrong word written, {written:.0f} times: the answer follows it {sum(far['follows']) / max(written, 1):.1%}, "
              f"stays true {sum(far['true']) / max(written, 1):.1%}\n  follows it, by moves until the question: "
              + ", ".join(f"{d}: {x / max(w, 1):.0%}" for d, (x, w) in enumerate(zip(far["follows"], far["written"]))))
    print("worse than own: + where these thoughts cost log-prob, +- half of the 95 % interval over texts" + (
        "\nfed again: own thoughts through the same machinery, which must change nothing; another text's: those of a story of the "
        "same shape; perplexity: as many ids, equally often used, would be as varied" if cups else "") + (
        "\nAOC: 1 minus the mean share of answers that stay as they were, over how many first thoughts are kept: 0, these thoughts "
        "do not matter;\n  the more, the more of them are needed\nsynonym: another id that stands for the same cup beside the same "
        "move" if "aoc" in out else ""))


def curves(axis, x, lines: dict[str, list], columns: int, chance: float | None, **labels) -> None:
    for i, (name, y) in enumerate(lines.items()):
        axis.plot(x, y, ".-", lw=max(1, 4 - i / 2), ms=8, label=name)  # thinner and thinner: one on top of another shows
    if chance is not None:
        axis.axhline(chance, color="grey", ls=":", label="chance")
    axis.set(ylim=(-0.03, 1.03), ylabel="share of answers", **labels)
    axis.legend(ncols=columns, fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)


def draw_conditions(axis, out: dict) -> None:
    told = {NAMES[name]: x for name, x in out["conditions"].items() if name != "refed"}
    if "cups" in out:
        curves(axis, range(1, N_MAX + 1), {name: x["accuracy_by_n"] for name, x in told.items()}, 4, 1 / out["cups"],
               title="Answers right, with these thoughts", xlabel="moves since the anchor")
    else:
        axis.barh(list(told), [x["worse"] for x in told.values()], xerr=[x["worse_95"] for x in told.values()], capsize=3)
        axis.set(title="What other thoughts cost", xlabel="nats a token more than with own thoughts (95 % interval)")
        axis.invert_yaxis()


def draw_ids(axis, out: dict) -> None:
    if "dictionary" not in out:
        axis.bar([str(i) for i, _ in out["usage"]["most_used"]], [times for _, times in out["usage"]["most_used"]])
        axis.set(title=f"How often each id is thought ({out['usage']['ids_used']} in use)", xlabel="id")
        return
    d, columns = out["dictionary"], out["dictionary"]["columns"]
    axis.imshow(list(d["share_of_situation"].values()), aspect="auto", cmap="Blues", vmin=0, vmax=1)
    axis.set(title=f"What is thought where (0 white, 1 dark): cup {d['reading']} the move, and move")
    axis.set_yticks(range(len(d["share_of_situation"])), [f"think{i}" for i in d["share_of_situation"]], fontsize=9)
    axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=9)
    for i in range(1, len(columns)):
        if columns[i][0] != columns[i - 1][0]:
            axis.axvline(i - 0.5, color="tab:orange")


def draw_writing(axis, out: dict) -> None:
    far, names = out["counterfactual"], {"follows": "follows the written cup", "true": "stays true"}
    lines = {name: [x / w if w else float("nan") for x, w in zip(far[what], far["written"])] for what, name in names.items()}
    curves(axis, range(len(far["written"])), lines, 3, 1 / out["cups"], title="Another cup's word is written: the answer ...",
           xlabel="moves between the written thought and the question")


def draw_cutting(axis, out: dict) -> None:
    m = max(out["same_answer"]["early"])
    lines = {f"{THEN[name]}: {out['aoc'][name][m]:.2f}": by_m[m] for name, by_m in out["same_answer"].items()}
    curves(axis, [i / m for i in range(m + 1)], lines, 2, None, xlabel="share of thoughts kept",
           title=f"Answers that stay as they were, {m} moves (and the area over the curve)")


def draw_after_which(axis, out: dict) -> None:
    it = out["after_which"]
    axis.imshow(list(it["share"].values()), cmap="Blues", vmin=0, vmax=1)
    axis.set(title=f"After which moves it thinks (0 white, 1 dark; a story's first ones: {it['first']:.2f})", xlabel="move",
             ylabel="cup of the ball before it")
    axis.set_xticks(range(len(it["moves"])), it["moves"])
    axis.set_yticks(range(len(it["share"])), it["share"])


def draw(out: dict, path: Path, caption: str) -> None:
    """probe.png: what other thoughts cost; what ids say; when it thinks; what writing does; what cutting does."""
    import matplotlib  # a second of start-up
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    panels = {"conditions": draw_conditions, "usage": draw_ids, "after_which": draw_after_which, "counterfactual": draw_writing,
              "same_answer": draw_cutting}
    panels = [panel for needs, panel in panels.items() if needs in out]
    rows = (len(panels) + 1) // 2
    figure, axes = plt.subplots(rows, min(2, len(panels)), figsize=(15, 6 * rows), squeeze=False)
    for panel, axis in zip(panels, axes.flat):
        panel(axis, out)
    for axis in axes.flat[len(panels):]:
        axis.remove()
    figure.text(0.01, 0.01, caption, fontsize=10)
    figure.tight_layout(rect=(0, 0.03, 1, 1), h_pad=2)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    p = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("--checkpoint", type=Path, default=Path("out/ckpt.pt"), help="made by train.py (out/ckpt.pt)")
    p.add_argument("--data", help="cups, webtext, or a .txt or .jsonl file; default: what it was trained on")
    p.add_argument("--out", type=Path, help="folder for probe.json and probe.png; default: the checkpoint's")
    p.add_argument("--seed", type=int, default=0, help="of stories, windows and random thoughts")
    p.add_argument("--stories", type=int, default=32, help="cups: stories for each number of moves; text: windows (32)")
    args = p.parse_args()
    try:
        for flag, least in (("stories", 2), ("seed", 0)):
            if getattr(args, flag) < least:
                raise ValueError(f"--{flag} must be at least {least}, not {getattr(args, flag)}")
        model, rules, a = opened(args.checkpoint)
        data = open_data(args.data or a["data"], model.text_ids, a["cups"], a.get("idle", 0.0), a.get("balls", "one"),
                         a.get("moves", "mixed"))
        if isinstance(data, Cups) and model.text_ids != data.text_ids:
            raise ValueError(f"{args.checkpoint} does not speak the language of cups: give it a text with --data")
        out_dir = args.out or (args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent)
        if out_dir.exists() and not out_dir.is_dir():
            raise ValueError(f"--out {out_dir} is a file: a folder is wanted")
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "probe.json").touch()  # better now than after minutes
        out = probe(model, rules, a, data, args.stories, args.seed)
        (out_dir / "probe.json").write_text(json.dumps(out))
        draw(out, out_dir / "probe.png",
             f"{args.checkpoint} on {args.data or a['data']}, --seed {args.seed} --stories {args.stories}")
    except (ValueError, OSError) as e:
        p.error(str(e))
    show(out)
    print(f"{out_dir / 'probe.json'} and {out_dir / 'probe.png'} hold all of it")


def opened(path: Path) -> tuple[GPT, Rules, dict]:
    """A run's model, its rules and its settings. Raises ValueError, one line, where there is nothing to probe."""
    model, rules, settings = load_run(path)
    if rules.think == "never" or not len(model.think):
        raise ValueError(f"{path} has no thoughts (--thoughts none): there is nothing to probe")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), rules, settings


if __name__ == "__main__":
    main()
