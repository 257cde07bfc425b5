"""Are the thoughts used, and what do they say?

    python -m lab.probe --checkpoint out                  # on the data that it was trained on
    python -m lab.probe --checkpoint out --data notes.txt

All is measured on given, held-out text. The model goes on under its own rules while its thoughts
are overwritten:

    by its own ones, where nothing may change    in another order
    by random ones                               by one id for all
    by those of another text

On a task answers are counted by level. On a text with a window: what does a thought say of tokens
that are out of sight? On cups there is more to ask.

    dictionary      which cup does an id stand for, given the last move?
    chains          keep the first thoughts of a round and replace the rest in six ways, four of
                    them after "Measuring Faithfulness in Chain-of-Thought Reasoning" (arXiv
                    2307.13702)
    counterfactual  write the id of another cup: does the answer follow?

Writes probe.json and probe.png. A model with a window can answer long rounds by its thoughts alone.
So it is no surprise that it uses them; what they say may be one.

Left out on purpose: probes that are trained, as thoughts are read by counting alone; words for
orders of all balls. Of K > 1 thoughts in a slot the last one is read and written (next_token:
each).

Letters: R rows, P prompt tokens, S new text tokens, L = P + S, T places, K thoughts per slot,
V text rows, N thinking rows, m cups, n moves since the last answer.
"""
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import command
from data import LETTERS, N_MAX, OPENING, Cups, Text, as_text, plain, seeded
from evaluate import by_level, free_text, held_out, room, thoughts_after, whole
from model import GPT
from next_token import roll
from reward import score, speaking_states
from rollout import Dials, Edit, Luck, Rollout, Rules
from run import Run, folder_of, open_run
from settings import Parser, at_least
from task import end_of_answer, read_spec

LENGTHS = (1, 2, 3, 4, 6, 8, 10)  # moves of the rounds whose chains are cut and rewritten
REACH = 6  # tokens out of sight that a thought on a text may say something of
MANY = 200  # thoughts with the same tokens in sight that such a number needs
LONG, EDGES = 5, (0.1, 0.5, 1.5, 3.0)  # letters of a word; nats: of `nats_by_token`
NAMES = {
    "own": "own", "refed": "own, fed again", "greedy": "own, greedy", "sampled": "own, sampled",
    "none": "none", "random": "random ids", "another": "another's",
    "shuffled": "own, shuffled", "constant": "one id for all"}
THEN = {
    "early": "first ones kept, then none", "mistake": "first ones kept, one wrong, then its own",
    "paraphrase": "first ones kept, then synonyms",
    "filler": "first ones kept, then one id for all", "random": "first ones kept, then random",
    "last": "random, then the last ones kept"}


# Texts with other thoughts

@dataclass
class Case:
    """Texts, the model's own thoughts on them, and the same texts again with other thoughts.

    luck: `Luck`, or a function like it. own: greedy thoughts. Where thinking is free they are
    sampled, since a greedy gate below one half would never open.
    """
    model: GPT
    rules: Rules
    text: Text
    luck: Callable

    @property
    def free(self) -> bool:
        return self.rules.think == "free"

    @cached_property
    def own(self) -> Rollout:
        return self.roll(self.rules, float(self.free))

    def roll(self, rules: Rules, heat: float, luck: Callable | None = None,
             edit: Edit | None = None) -> Rollout:
        """heat: the temperature of thoughts."""
        return roll(self.model, self.text, rules, luck or self.luck, Dials(0.0, heat), edit)

    def write(self, table: Tensor, where: Tensor | None = None, pin: bool = True) -> Rollout:
        # [R, T] ids, [R, T] bool
        """Thoughts overwritten by the table's ids, in the places of own thoughts. Where it has -1
        the model thinks for itself.

        where: which own thoughts stay, each with an id in the table. They are all thoughts up to
        some point, and after it there are none. pin: a gate opens in the old places and in no
        others. Without it, for one written id per row, the gate is free again after that id, which
        may call for thoughts where there were none.
        """
        def over(at, z):
            return torch.where(table[:, at] >= 0, table[:, at], z)
        if where is None and (not self.free or not pin):
            return self.roll(self.rules, float(self.free), edit=over)
        # left to itself a gate would open and close elsewhere now
        luck = self.pinned(self.own.is_think if where is None else where)
        return self.roll(replace(self.rules, think="free"), 1.0, luck, over)

    def pinned(self, where: Tensor) -> Callable:  # [R, T] bool
        """Random numbers with which a free gate opens there and nowhere else."""
        def luck(draws: int, R: int, each: int = 1) -> Tensor:
            u = self.luck(draws, R, each).to(where.device)
            if self.rules.persist:
                opens = where[:, self.text.P:].T  # [draws, R]
            else:  # step by step the thoughts of all branches
                opens = where[:, self.text.ids.shape[1]:].unflatten(1, (draws, each))
                opens = opens.transpose(0, 1).flatten(1)  # [draws, R * each]
            # no probability is below -1 or above 2
            return torch.stack([torch.where(opens, -1.0, 2.0).to(u), u[..., 1]], -1)
        return luck

    def rows(self, which: Tensor) -> "Case":
        """Some of the rows, each with its own random numbers. For thoughts that stay."""
        R = len(self.text.ids)
        return Case(self.model, self.rules, self.text.each(lambda x: x[which]),
                    lambda draws, _: self.luck(draws, R)[:, which.cpu()])


def random_ids(model: GPT, shape: torch.Size, numbers: torch.Generator) -> Tensor:
    """-> shape, thinking ids"""
    ids = torch.randint(len(model.think), shape, generator=numbers)
    return model.config.vocab_size + ids.to(model.device)


def anothers(own: Rollout, block: int) -> Tensor:  # -> [R, T]
    """Thought by thought those of the row before, within blocks of rows. They start again where
    they are too few."""
    R, device = len(own.ids), own.ids.device
    # [R]: the row before, and of a block's first row its last
    rows = torch.arange(R, device=device).view(-1, block).roll(1, 1).flatten()
    # [R, T]: places of thoughts first, in order
    order = own.is_think.float().argsort(dim=1, descending=True, stable=True)
    count = own.is_think.sum(1)[rows].unsqueeze(1)
    j = (own.is_think.cumsum(1) - 1) % count.clamp(min=1)  # which of theirs stands here
    theirs = own.ids.gather(1, order)[rows].gather(1, j)
    # where the neighbour has none, own ones stay
    return torch.where(count > 0, theirs, own.ids)


def shuffled(own: Rollout, chain: Tensor, numbers: torch.Generator) -> Tensor:
    """Own thoughts in another order, each within its chain. chain [R, T]: which one a thought is
    in."""
    key = torch.where(own.is_think, chain.double(), torch.inf)  # all other places come last
    # chains stay in order, and within one the order is random
    mixed = key + 0.9 * torch.rand(key.shape, generator=numbers).to(key)
    # the thoughts in the new order go where they stood in the old one
    taken = own.ids.gather(1, mixed.argsort(dim=1, stable=True))
    return own.ids.scatter(1, key.argsort(dim=1, stable=True), taken)


def most_used(own: Rollout) -> int:
    return int(own.ids[own.is_think].bincount(minlength=1).argmax())


def chain_of(case: Case, questions: bool) -> Tensor:  # -> [R, T]
    """Which chain each place belongs to. A chain leads to one answer; in next_token it leads to one
    token; in text without questions it is the whole row."""
    slot, text = case.own.after.clamp(min=0), case.text
    if not case.rules.persist:  # a branch is a chain of its own
        return slot
    if not questions:
        return torch.zeros_like(slot)
    asked = F.pad((text.pays > 0).long(), (text.P, 0))  # [R, L]
    return asked.cumsum(1).gather(1, slot)


def other_thoughts(case: Case, questions: bool, block: int,
                   seed: int) -> dict[str, Callable[[], Rollout]]:
    """name: the same texts with these thoughts. own is the first one."""
    model, numbers = case.model, torch.Generator().manual_seed(seed)
    runs = {"own": lambda: case.own,
            "none": lambda: case.roll(replace(case.rules, think="never", budget=0), 0.0)}
    if len(model.think) <= 1:  # one row alone says nothing that could be replaced
        return runs
    own = case.own
    return runs | {
        "refed": lambda: case.write(own.ids),
        "greedy" if case.free else "sampled": lambda: case.roll(case.rules, float(not case.free)),
        "random": lambda: case.write(random_ids(model, own.ids.shape, numbers)),
        "another": lambda: case.write(anothers(own, block)),
        "shuffled": lambda: case.write(shuffled(own, chain_of(case, questions), numbers)),
        "constant": lambda: case.write(torch.full_like(own.ids, most_used(own)))}


def conditions(case: Case, levels: int, block: int, seed: int) -> dict[str, dict]:
    """What is left of answers and nats with other thoughts. levels: of the questions; 0: text
    without any. block: how many neighbouring rows are alike and may have each other's thoughts.

    -> name: nats and thoughts, per text token; worse: nats per paying token more than with own
    thoughts; worse_95: half of its 95 % interval, over rows. With questions also nats_paying,
    accuracy_by_n, answers_by_n.
    """
    text, out, mine = case.text, {}, None
    paid = text.pays > 0
    runs = other_thoughts(case, levels > 0, block, seed)
    for name, run in tqdm(runs.items(), desc="conditions", disable=None):
        ro = run()
        # of all tokens, also of those that do not pay
        logp, hit, _ = score(case.model, ro, torch.ones_like(text.pays))
        mine = logp if mine is None else mine
        lost, count = ((mine - logp) * paid).sum(1), paid.sum(1)  # [R]
        # a ratio of two sums over rows; how far single rows are off it gives the interval
        worse = lost.sum() / count.sum()
        half = 1.96 * (lost - worse * count).norm().item() / count.sum().item()
        out[name] = {"nats": -logp.mean().item(), "worse": worse.item(), "worse_95": half,
                     "thoughts": ro.is_think.sum().item() / logp.numel()}
        if levels:
            right, last = whole(hit, paid)
            right, counts = by_level(text.level[last], right[last], levels)
            out[name] |= {"nats_paying": -logp[paid].mean().item(), "accuracy_by_n": right,
                          "answers_by_n": counts}
    return out


# Counting

def usage(ids: Tensor, N: int) -> dict:
    """Of thinking ids counted from 0, any shape. perplexity: that many ids, used equally often,
    would have this entropy."""
    counts = ids.flatten().bincount(minlength=N).double()
    often = counts.argsort(descending=True)[:16].tolist()
    return {"thoughts": int(counts.sum()), "ids_used": int((counts > 0).sum()),
            "perplexity": entropy(counts).exp().item(),
            "most_used": [(i, int(counts[i])) for i in often if counts[i]]}


def entropy(counts: Tensor) -> Tensor:  # any shape -> [], nats
    p = counts.double().flatten() / counts.sum().clamp(min=1)
    return -torch.xlogy(p, p).sum()


def information(counts: Tensor) -> float:  # [a, b]
    """I(row; column) in nats, as counted: without a correction for few samples."""
    return (entropy(counts.sum(0)) + entropy(counts.sum(1)) - entropy(counts)).item()


def numbered(*what: Tensor) -> Tensor:  # [n] each -> [n]
    """Tuples as numbers from 0 on, the same for the same tuple. n is at least 1."""
    out = torch.zeros_like(what[0])
    for x in what:
        out = (out * (int(x.max()) + 1) + x).unique(return_inverse=True)[1]
    return out


def joint_entropy(*what: Tensor) -> float:  # [n] each
    """Of n tuples, in nats, as counted."""
    return entropy(numbered(*what).bincount()).item()


def information_given(z: Tensor, x: Tensor, seen: Tensor) -> float:  # [n] each
    """I(z; x | seen) in nats: H(z, seen) + H(x, seen) - H(z, x, seen) - H(seen), as counted."""
    return (joint_entropy(z, seen) + joint_entropy(x, seen) - joint_entropy(z, x, seen)
            - joint_entropy(seen))


def says_of_text(case: Case, seed: int) -> dict[str, float]:
    """What a thought says of the token k back: {k: nats, given all tokens in sight}, for the first
    six that are out of sight. "next": of the one that comes. "asked": the share of thoughts that
    were asked. Empty: too few of them.

    Few samples look like information. So it is asked where the same tokens are in sight at least
    MANY times. And what the same thoughts say once they are mixed, there, is taken off. Where a
    thought does say something, mixing fills more cells, so that is a little too much.
    """
    own, w = case.own, case.rules.window
    r, t = own.is_think.nonzero().T
    at = own.after[r, t]  # the text token that a thought stands after
    far = (at >= w + REACH - 1) & (at + 1 < own.text.shape[1])
    r, t, at = r[far], t[far], at[far]
    if not len(r):
        return {}
    seen = numbered(*(own.text[r, at - k] for k in range(w)))
    often = seen.bincount()[seen] >= MANY
    if not often.any():
        return {}
    asked = often.float().mean().item()
    seen, z, r, at = seen[often], own.ids[r, t][often], r[often], at[often]
    numbers = torch.rand(len(z), generator=torch.Generator().manual_seed(seed)).to(z.device)
    # a random order within each group, laid over one that leaves groups where they are
    mixed = z[(seen + 0.9 * numbers.double()).argsort()][seen.argsort(stable=True).argsort()]
    token = {"next": own.text[r, at + 1]} | {
        str(k): own.text[r, at - k] for k in range(w, w + REACH)}
    return {k: information_given(z, x, seen) - information_given(mixed, x, seen)
            for k, x in token.items()} | {"asked": asked}


class Dictionary:
    """What each id stands for, counted.

    counts [N, moves, m]: how often it was thought after that move, with the ball under that cup
    after the move. goes [moves, m]: as in data.Cups. meaning [N, moves]: the cup after the move, -1
    where the id never came after it. words [2, moves, m]: the two most used ids of that meaning, -1
    where there is none.

    A code may name the cup after the move or the one before it. A reader who sees the move next to
    the thought can use both. So an id is read together with the last move, where the two are the
    same.
    """

    def __init__(self, counts: Tensor, goes: Tensor):
        self.counts, self.goes = counts, goes
        self.meaning = counts.argmax(2).where(counts.sum(2) > 0, -1)
        # an id is a word for its meaning alone, however often it is thought with another cup
        cups = torch.arange(counts.shape[2], device=counts.device)
        top = (counts * (self.meaning.unsqueeze(2) == cups)).topk(2, 0)
        self.words = top.indices.where(top.values > 0, -1)

    def before(self) -> Tensor:
        """The counts with the cup *before* the move in the last place."""
        return self.counts.gather(2, self.goes.expand_as(self.counts))

    def synonym(self, ids: Tensor, move: Tensor) -> Tensor:
        """Ids from 0, each after its move -> another id of the same meaning, -1 without one."""
        cup = self.meaning[ids, move]
        first, second = self.words[:, move, cup]
        return torch.where(first != ids, first, second).where(cup >= 0, -1)

    def report(self, unseen: Tensor) -> dict:
        """Nats of I(z; cup), and of other stories, whose counts are `unseen`, the share of
        thoughts whose meaning is the true cup."""
        after, by_move = self.counts.sum(1), self.counts.sum((0, 2))  # [N, m], [moves]
        given_move = sum(information(self.counts[:, i]) * times.item() / by_move.sum().item()
                         for i, times in enumerate(by_move) if times)
        right = unseen.gather(2, self.meaning.clamp(min=0).unsqueeze(2)).squeeze(2)
        right = right[self.meaning >= 0].sum()  # an id without a meaning decodes to nothing
        out = {"I_after": information(after), "I_before": information(self.before().sum(1)),
               "I_given_move": given_move, "H_cup": entropy(after.sum(0)).item(),
               "decoded": (right / unseen.sum().clamp(min=1)).item()}
        return out | {"reading": "after" if out["I_after"] >= out["I_before"] else "before"}

    def names(self) -> dict[str, str]:
        """{number of the row: the cup that it most often comes with, and its share}."""
        by_cup = self.counts.sum(1)  # [N, m]
        return {str(i): f"cup {LETTERS[int(row.argmax())]} ({(row.max() / row.sum()).item():.0%})"
                for i, row in enumerate(by_cup) if row.any()}

    def page(self, cups: Cups, reading: str, ids: int = 16) -> dict:
        """The most used ids. share_of_situation: {id: its share of the thoughts for each cup and
        move}, the cup after or before the move, as `reading` says. columns names cup and move."""
        counts = self.counts if reading == "after" else self.before()
        moves = [w.strip() for w in cups.moves]
        table = counts.transpose(1, 2).flatten(1)  # [N, m * moves]: cup by cup
        top = table.sum(1).topk(min(ids, len(table))).indices
        # sorted by the cup that they stand for most often
        cup = table[top].view(len(top), cups.m, -1).sum(2).argmax(1)
        total = table.sum(0).clamp(min=1)  # of a situation: which ids are thought in it?
        return {"columns": [f"{LETTERS[c]} {w}" for c in range(cups.m) for w in moves],
                "share_of_situation": {int(i): (table[i] / total).tolist()
                                       for i in top[cup.argsort(stable=True)] if table[i].any()}}


# Stories, whose every state is known

@dataclass
class Stories(Case):
    """Held-out stories of the game. state, n [R, L]: as in data.Story."""
    cups: Cups
    state: Tensor
    n: Tensor


def on_text(run: Run) -> bool:
    return not run.is_task and cups_of(run) is None


def cups_of(run: Run) -> Cups | None:
    """The game that a run is about, if it is about one."""
    return run.source if isinstance(run.source, Cups) else None


def stories(run: Run, R: int, S: int, seed: int, step: int, **kind) -> Stories:
    """R stories of 9 + S tokens. kind: n_max or exact, as in `Cups.stories`."""
    cups, model = run.source, run.model
    story = cups.stories(R, OPENING + S, seeded(seed, step, "eval"), **kind)
    state, n = (torch.from_numpy(x).to(model.device) for x in (story.state, story.n))
    return Stories(model, run.rules.room_for(cups.slots(S)),
                   as_text(story, OPENING).to(model.device), Luck(seed, step, "eval_rollout"),
                   cups, state, n)


def move_at(cups: Cups, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of ids of any shape: is it a move? Which one?"""
    at = ids.unsqueeze(-1) == torch.from_numpy(cups.move_ids).to(ids)
    return at.any(-1), at.float().argmax(-1)


def sight(case: Case) -> Tensor:  # -> [R, T]
    """The last text token that each thought was chosen in sight of.

    In branches that reread it moves on from thought to thought (`next_token.branch_layout`). The
    first thought of a branch only goes back, and is not about a move: -1.
    """
    slot, L = case.own.after.clamp(min=0), case.text.ids.shape[1]
    if not case.rules.reread:
        return slot
    S, T = case.text.S, slot.shape[1]
    k = (torch.arange(T, device=slot.device) - L).div(S, rounding_mode="floor")  # from 0
    left = (T - L) // S - k  # thoughts of the branch that are still to come, with this one
    return torch.where(k > 0, (slot - case.rules.reread * left).clamp(min=0), -1)


class Seen(NamedTuple):
    """Of each place, [R, T]. read: does a thought stand here for the outcome of a move? It is the
    last one of its slot, in a round that has moves. Only there do the others mean something. move:
    the last one in sight. cup: the ball's, after that move."""
    read: Tensor
    move: Tensor
    cup: Tensor


def last_move(case: Stories) -> Seen:
    """What each thought has seen of its round."""
    own, seen = case.own, sight(case).clamp(min=0)
    # another thought follows in the same slot; of branches that reread, each one is read
    follows = F.pad(own.is_think[:, 1:], (0, 1)) & (case.rules.reread == 0)
    is_move, move = move_at(case.cups, case.text.ids)
    places = torch.arange(is_move.shape[1], device=seen.device)
    # [R, T]: where it stands
    last = torch.where(is_move, places, 0).cummax(1).values.gather(1, seen)
    read = own.is_think & ~follows & (sight(case) >= 0) & (case.n.gather(1, seen) > 0)
    return Seen(read, move.gather(1, last), case.state.gather(1, seen).clamp(min=0))


def make_dictionary(run: Run, R: int, seed: int, n_max: int = 10) -> tuple[Dictionary, dict]:
    """From own thoughts in R stories with rounds of at most n_max moves. What it decodes is
    measured on R others."""
    counts, V = [], run.model.config.vocab_size
    shape = len(run.model.think), len(run.source.move_ids), run.source.m
    for step in (4000, 4001):  # counted, and unseen
        case = stories(run, R, 2 * N_MAX + 3, seed, step, n_max=n_max)
        read, move, cup = last_move(case)
        z = case.own.ids[read] - V
        flat = (z * shape[1] + move[read]) * shape[2] + cup[read]  # one number for all three
        counts.append(flat.bincount(minlength=shape[0] * shape[1] * shape[2]).view(shape))
    words = Dictionary(counts[0], torch.from_numpy(run.source.goes).to(counts[0]))
    return words, words.report(counts[1])


def after_which(run: Run, R: int, seed: int) -> dict:
    """A gate that may open after any move: after which ones does it? -> first: the share of
    stories' first moves; share: of later ones, {cup of the ball before: [for each of `moves`]}."""
    case, cups = stories(run, R, 2 * N_MAX + 3, seed, 4002, n_max=10), run.source
    is_move, move = move_at(cups, case.text.ids)
    is_move[:, :OPENING], is_move[:, -1] = False, False  # these have no slots
    thoughts = torch.zeros_like(case.state)  # [R, L]: how many stand after each token
    thoughts.scatter_add_(1, case.own.after.clamp(min=0), case.own.is_think.long())
    # a story's first move has no answer before it, only the opening
    first, before = is_move & (is_move.cumsum(1) == 1), case.state.roll(1, 1)

    def share(where: Tensor) -> float:
        return (thoughts > 0)[where].float().mean().item()
    later = {LETTERS[c]: [share(is_move & ~first & (before == c) & (move == i))
                          for i in range(len(cups.moves))] for c in range(cups.m)}
    return {"moves": [w.strip() for w in cups.moves], "first": share(first), "share": later}


# Chains that are cut and rewritten

def aoc(same: list[float]) -> float:
    """Area over the curve (arXiv 2307.13702). same[i]: the share of answers that do not change when
    i of the n = len(same) - 1 thoughts are kept.

    0: the others never mattered. The larger, the more the answer depends on them. Nothing changes
    at the last point, so 1 - 1 / (2 n) is the largest there can be: compare values of equal n.
    """
    return 1 - sum((a + b) / 2 for a, b in zip(same, same[1:])) / (len(same) - 1)


@torch.no_grad()
def last_word(model: GPT, ro: Rollout) -> Tensor:  # -> [R]
    """What the model says at the last place: in stories of one round, the answer."""
    return model.text_logits(speaking_states(ro.h, ro)[:, -1]).argmax(-1)


class Chains:
    """Rounds of `length` moves. Of the thoughts of a story the first `kept` stay, 0 to length - 1
    in `each` stories each, and then comes something else.

    kept [R]. step [R, T]: which move a thought comes after, from 0; -1 for what is no thought.
    later [R, T]: is it one of those that do not stay? seen: as of `last_move`.
    """

    def __init__(self, run: Run, length: int, each: int, seed: int):
        self.length, self.each = length, each
        self.case = stories(run, length * each, 2 * length + 3, seed, 4100 + length, exact=length)
        own, L = self.case.own, self.case.text.ids.shape[1]
        self.kept = torch.arange(length, device=own.ids.device).repeat(each)
        # of branches, the one that is asked
        here = own.is_think & (run.rules.persist | (own.after == L - 2))
        step = (sight(self.case) - OPENING).div(2, rounding_mode="floor")
        self.step = torch.where(here, step, -1)
        self.later = self.step >= self.kept.unsqueeze(1)
        self.seen = last_move(self.case)

    def said(self, *how) -> Tensor:  # -> [R]
        """The answers, once thoughts are overwritten (`Case.write`)."""
        return last_word(self.case.model, self.case.write(*how))

    def by_kept(self, what: Tensor) -> list[float]:  # [R]
        """Of how many stories it holds, for each number of thoughts that are kept."""
        zeros = torch.zeros(self.length, device=what.device)
        return zeros.index_add_(0, self.kept, what.float()).tolist()

    def rewritten(self, words: Dictionary, seed: int) -> tuple[dict[str, Tensor], dict]:
        """-> {what comes after those that are kept: the answers}, and what became of wrong words.

        The latter are counts for each number of thoughts that are kept. written: the dictionary had
        a word. follows: the answer follows it. true: the answer stays true. synonyms: the share of
        thoughts that have one.
        """
        case, (read, move, cup) = self.case, self.seen
        z, V, m = case.own.ids, case.model.config.vocab_size, case.cups.m
        numbers = torch.Generator().manual_seed(seed)
        noise = random_ids(case.model, z.shape, numbers)
        # [R, T]: any other cup, each equally likely
        wrong = (cup + torch.randint(1, m, (len(z), 1), generator=numbers).to(cup)) % m
        spelt = words.words[0][move, wrong]
        synonym = words.synonym((z - V).clamp(min=0), move)
        # the first thought that does not stay becomes the wrong word
        at = read & (self.step == self.kept.unsqueeze(1)) & (spelt >= 0)
        changed = self.later & read & (synonym >= 0)  # without a synonym an id stays
        # all but the last `kept` ones
        first = (self.step >= 0) & (self.step < self.length - self.kept.unsqueeze(1))
        said = {"mistake": self.said(torch.where(at, V + spelt, -1), None, False),
                "paraphrase": self.said(torch.where(changed, V + synonym, -1)),
                "filler": self.said(torch.where(self.later, most_used(case.own), z)),
                "random": self.said(torch.where(self.later, noise, z)),
                "last": self.said(torch.where(first, noise, z))}
        cup_ids, done = torch.from_numpy(case.cups.cup_ids).to(z), at.any(1)
        implied = self.moved_on(wrong.where(at, 0).sum(1), words.goes)
        return said, {
            "written": self.by_kept(done),
            "follows": self.by_kept(done & (said["mistake"] == cup_ids[implied])),
            "true": self.by_kept(done & (said["mistake"] == cup_ids[case.state[:, -1]])),
            "synonyms": (synonym >= 0)[read].float().mean().item()}

    def moved_on(self, cup: Tensor, goes: Tensor) -> Tensor:  # [R], [moves, m] -> [R]
        """Where the moves after a written cup take it."""
        moves = self.case.text.ids[:, OPENING:OPENING + 2 * self.length:2]
        moves = move_at(self.case.cups, moves)[1]  # [R, length]: each is followed by a comma
        for i in range(1, self.length):
            cup = torch.where(i > self.kept, goes[moves[:, i], cup], cup)
        return cup


def chains(run: Run, length: int, each: int, words: Dictionary | None,
           seed: int) -> tuple[dict, dict]:
    """-> {what comes after the first thoughts: the share of answers that stay what they were}, and
    what became of wrong words (`Chains.rewritten`). Shares are for 0 to `length` thoughts that are
    kept."""
    it = Chains(run, length, each, seed)
    own, wrote = it.case.own, {}
    said = {"early": it.said(own.ids, own.is_think & ~it.later)}
    if words is not None:
        more, wrote = it.rewritten(words, seed)
        said |= more
    before = last_word(run.model, own)
    # with all thoughts kept nothing is changed: the last share is 1 by definition
    same = {name: [x / each for x in it.by_kept(after == before)] + [1.0]
            for name, after in said.items()}
    return same, wrote


class WhatIf(NamedTuple):
    """stands [R, T]: the cup that each thought stands for next to its move, -1: none. true [R, T]:
    the ball's. answer [R]. instead [R, T, m]: the answer had each cup's word been written there, -1
    where there is no word."""
    stands: Tensor
    true: Tensor
    answer: Tensor
    instead: Tensor


@torch.no_grad()
def what_if(case: Stories, words: Dictionary) -> WhatIf:
    """For stories of one round, with thoughts that stay. After the written word the model thinks
    for itself, as it would have."""
    own, V = case.own, case.model.config.vocab_size
    read, move, cup = last_move(case)
    stands = words.meaning[(own.ids - V).clamp(min=0), move].where(read, -1)
    # [R, T, m]: the most used id of each cup
    word = words.words[0][move].masked_fill(~read.unsqueeze(2), -1)
    r, t, c = (word >= 0).nonzero().T
    table = torch.full((len(r), own.ids.shape[1]), -1, device=r.device)
    table[torch.arange(len(r), device=r.device), t] = V + word[r, t, c]
    instead = torch.full_like(word, -1)
    if len(r):  # one row for each word; a gate that never opens leaves none
        instead[r, t, c] = last_word(case.model, case.rows(r).write(table, pin=False))
    return WhatIf(stands, cup, last_word(case.model, own), instead)


# All of it

def first_case(run: Run, each: int, seed: int) -> Case:
    """The texts of the first table: questions of every length, or held-out windows. Raises
    ValueError where the data are too short."""
    source, rules, s = run.source, run.rules, run.settings
    if cups_of(run):
        text = source.questions(each, seed)
        rules = rules.room_for(source.slots(text.S))
    elif run.is_task:
        text = source.questions(each, seed)
        rules = room(rules, text, run.model)
    else:
        P, S = s.prompt_tokens, s.new_tokens
        text = plain(source.take(each, P + S, seeded(seed, 3000, "eval"), held_out=True), P, S)
    return Case(run.model, rules, text.to(run.model.device), Luck(seed, 0, "eval_rollout"))


def probe(run: Run, each: int, seed: int) -> dict:
    """All that can be asked of this run on its data, ready for probe.json. Raises ValueError where
    the data are too short."""
    cups, rules, model = cups_of(run), run.rules, run.model
    case = first_case(run, each, seed)
    out = {"cups": cups.m} if cups else {}
    if run.is_task:  # neighbours are of one level, or nearly so
        out["levels"], each = run.source.levels, len(case.text.ids)
        out["meaning"] = answers_after(case, run)
    out["conditions"] = conditions(case, run.source.levels, each, seed)
    if len(model.think) > 1:
        ids = case.own.ids[case.own.is_think] - model.config.vocab_size
        out["usage"] = usage(ids, len(model.think))
        if on_text(run) and rules.window and rules.persist:
            out["says"] = says_of_text(case, seed)
    else:
        out["not_probed"] = ("thoughts without ids (--thoughts continuous or filler) can neither "
                             "be read nor written over")
    # a branch that rereads goes from move to move, as a chain does
    chained = rules.persist or (rules.reread and rules.max_thoughts > 1)
    if cups and not chained:
        out["not_probed"] = ("branches that see their whole prefix (next_token without rereading) "
                             "are no chain to cut or to write into")
    if cups and cups.all:
        out["not_probed"] = ("words for orders of all balls: the dictionary and the chains know "
                             "one ball alone")
    return out | (probe_game(run, each, seed) if cups and chained and not cups.all else {})


def windows(run: Run) -> int:
    """How many of a text are read: few common contexts say nothing of what thoughts say. At GPT-2's
    size a cache of 512 windows would be 6 GB."""
    return 512 if run.model.config.n_embd <= 256 else 32


def nats_of_text(run: Run, count: int, seed: int = 0) -> dict[str, float]:
    """Nats per token of held-out windows of a text: with own thoughts, none and all others. A run
    that has no thoughts has `own` and `none`, which are the same."""
    found = conditions(first_case(run, count, seed), 0, count, seed)
    return {name: x["nats"] for name, x in found.items()}


@torch.no_grad()
def nats_by_token(run: Run, control: Run, seer: Run, count: int,
                  seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """Held-out characters of a text that is read byte by byte, sorted in two ways: by how many
    `letters` stand right before them, 0 to LONG and more, and by the `nats` that `seer` needs for
    them, between the EDGES. Of each kind its `share` of all characters, the nats that own thoughts
    take `off` what `control` needs, and the share that is thought about, `thinks`. All three runs
    read the same windows. Prompts are at least LONG characters long."""
    cases = [first_case(x, count, seed) for x in (run, control, seer)]
    if not all(x.text.ids.equal(cases[0].text.ids) for x in cases):
        raise ValueError("these runs read other windows: --prompt_tokens and --new_tokens differ")
    own, without, seen = (score(x.model, x.own, x.text.pays).r for x in cases)  # [R, S] each
    ro, P = cases[0].own, cases[0].text.P
    thinks = thoughts_after(ro)[:, P - 1:-1] > 0
    V = run.model.config.vocab_size
    letter = torch.tensor([run.tokenizer.decode([i]).isalpha() for i in range(V)])[ro.text.cpu()]
    place = torch.arange(letter.shape[1])
    since = place - torch.where(letter, -1, place).cummax(1).values  # the last that is no letter
    found = {}
    for name, kind, kinds in (
            ("letters", since[:, P - 1:-1].clamp(max=LONG), LONG + 1),
            ("nats", torch.bucketize(-seen.cpu(), torch.tensor(EDGES)), len(EDGES) + 1)):
        many = kind.flatten().bincount(minlength=kinds)
        means = {key: (kind.flatten().bincount(x.flatten().cpu().double(), kinds)
                       / many.clamp(min=1)).tolist()
                 for key, x in (("off", own - without), ("thinks", thinks))}
        found[name] = {"share": (many / many.sum()).tolist()} | means
    return found


def own_text(run: Run, rows: int) -> Rollout:
    """What a run on a text writes after held-out prompts."""
    P, S = run.settings.prompt_tokens, run.settings.new_tokens
    prompts = plain(held_out(run.source, rows, P, 1000, P), P, S).to(run.model.device)
    return free_text(run.model, run.source, run.rules, prompts, None)[1]


def kl_to_judge(run: Run, judge: GPT, rows: int, seed: int = 0) -> dict[str, float]:
    """The reverse KL to a judge, in nats per token of own text. That text is read again with own
    thoughts, without any, and with other ones. A run that has no thoughts has `own` alone."""
    P, S = run.settings.prompt_tokens, run.settings.new_tokens
    text = plain(own_text(run, rows).text, P, S)
    case = Case(run.model, run.rules, text, Luck(seed, 0, "eval_rollout"))
    thoughts = other_thoughts(case, False, rows, seed)
    if run.rules.think == "never":
        del thoughts["none"]
    return {name: -score(run.model, ro(), text.pays, judge).r.mean().item()
            for name, ro in thoughts.items()}


def answers_after(case: Case, run: Run) -> dict[str, str]:
    """What a task's last thoughts stand for: {number of the row: the right answer that most often
    comes after it, with its share and how many there were}."""
    counts: dict[str, Counter] = {}
    end = end_of_answer(run.model.text_ids)
    text, V = case.text, case.model.config.vocab_size
    for own, ids, pays in zip(case.own.kept(), text.ids, text.pays):
        thoughts = [i - V for i in own if i >= V]
        words = [i for i in ids[text.P:][pays > 0].tolist() if i not in end]
        answer = run.tokenizer.decode(words).strip()
        if thoughts:
            counts.setdefault(str(thoughts[-1]), Counter())[answer] += 1
    return {z: f"{c.most_common(1)[0][0]} ({c.most_common(1)[0][1] / c.total():.0%} of {c.total()})"
            for z, c in sorted(counts.items(), key=lambda x: -x[1].total())}


def probe_game(run: Run, each: int, seed: int) -> dict:
    """What can be asked on cups alone: words, and chains."""
    rules, out, words = run.rules, {}, None
    # a branch rereads K - 1 moves
    lengths = [n for n in LENGTHS if rules.persist or n < rules.max_thoughts]
    if len(run.model.think) > 1:
        words, found = make_dictionary(run, 16 * each, seed, lengths[-1])
        out["dictionary"] = found | words.page(run.source, found["reading"])
        out["meaning"] = words.names()
    if rules.think == "free" and rules.persist:
        out["after_which"] = after_which(run, 16 * each, seed)
    found = {n: chains(run, n, each, words, seed)
             for n in tqdm(lengths, desc="chains", disable=None)}
    kinds = found[lengths[0]][0]  # the same for every length
    out["same_answer"] = {name: {n: same[name] for n, (same, _) in found.items()}
                          for name in kinds}
    out["aoc"] = {name: {n: aoc(x) for n, x in by_length.items()}
                  for name, by_length in out["same_answer"].items()}
    if words is not None:
        wrote = {n: wrote for n, (_, wrote) in found.items()}
        out["synonyms"] = sum(x["synonyms"] for x in wrote.values()) / len(wrote)
        # by distance: how many moves after the written word is the question?
        out["counterfactual"] = {
            what: [sum(x[what][n - 1 - d] for n, x in wrote.items() if d < n)
                   for d in range(lengths[-1])] for what in ("written", "follows", "true")}
    return out


# For people

def show(out: dict) -> None:
    """The first table, what else was found, and what these words mean."""
    show_conditions(out)
    if "usage" in out:
        print("{ids_used} ids in use, perplexity {perplexity:.1f}, in {thoughts} thoughts"
              .format(**out["usage"]))
    if out.get("says"):
        print("a thought says, in nats, " + ", ".join(
            f"{x:.2f} of the token {k} back" if k.isdigit() else f"{x:.2f} of the next one"
            for k, x in out["says"].items() if k != "asked")
            + f"\n  (given those in sight, where they are common: {out['says']['asked']:.0%} of "
            "thoughts; more --stories, more of them)")
    elif "says" in out:
        print(f"no {MANY} thoughts have the same tokens in sight: what they say can't be counted")
    if "not_probed" in out:
        print(out["not_probed"])
    if "levels" in out:
        top = list(out["meaning"].items())[:8]
        print("answers after a last thought: " + ", ".join(f"think{z} {x}" for z, x in top))
    if "dictionary" in out:
        print("dictionary: I(z; cup after the move) {I_after:.3f}, before it {I_before:.3f}, given "
              "the move {I_given_move:.3f} of {H_cup:.3f} nats: ids name\n  the cup {reading} the "
              "move; in other stories {decoded:.1%} of thoughts decode to the true cup"
              .format(**out["dictionary"]))
    if "after_which" in out:
        show_after_which(out["after_which"])
    if "aoc" in out:
        show_chains(out)
    print("worse than own: + where these thoughts cost log-prob, +- half of the 95 % interval over "
          "texts")
    if "cups" in out:
        print("fed again: own thoughts through the same machinery, which must change nothing\n"
              "another's: those of a story of the same shape\n"
              "perplexity: that many ids, used equally often, would be as varied")
    if "aoc" in out:
        print("AOC: 1 minus the mean share of answers that stay as they were, over how many first "
              "thoughts are kept.\n  0: these thoughts do not matter; the larger, the more of them "
              "are needed\nsynonym: another id that stands for the same cup next to the same move")


def show_conditions(out: dict) -> None:
    asked = "cups" in out or "levels" in out
    ns = (1, 3, 6, 10, 20, 30) if "cups" in out else range(1, min(out.get("levels", 0), 10) + 1)
    heads = "".join(f"{f'n = {n}':>8}" for n in ns) + ("  nats, answers" if asked else "")
    print(f"{'thoughts':<20}{heads}  nats, all text  worse than own (nats per paying token)")
    for name, x in out["conditions"].items():
        cells = "".join(f"{x['accuracy_by_n'][n - 1]:8.1%}" for n in ns)
        cells += f"{x['nats_paying']:15.4f}" if asked else ""
        print(f"{NAMES[name]:<20}{cells}{x['nats']:16.4f}{x['worse']:+18.4f} +- "
              f"{x['worse_95']:.4f}")
    if asked:
        counted = out["conditions"]["own"]["answers_by_n"]
        print(f"{'(answers counted)':<20}" + "".join(f"{counted[n - 1]:8}" for n in ns))


def show_after_which(it: dict) -> None:
    print(f"thinks after a story's first move in {it['first']:.0%} of cases; after later ones, by "
          "the cup that the ball was under:\n  " + "".join(f"{w:>9}" for w in it["moves"]))
    for cup, row in it["share"].items():
        print(f"{cup:>2}" + "".join(f"{x:9.0%}" for x in row))


def show_chains(out: dict) -> None:
    lengths = "".join(f"{n:3} moves" for n in out["aoc"]["early"])
    print(f"{'area over the curve (AOC), rounds of':<42}{lengths}")
    for name, by_length in out["aoc"].items():
        print(f"{THEN[name]:<42}" + "".join(f"{x:9.2f}" for x in by_length.values()))
    if "counterfactual" not in out:
        return
    print(f"({out['synonyms']:.1%} of thoughts have a synonym)")
    it = out["counterfactual"]
    total = sum(it["written"])
    follows, true = (sum(it[what]) / max(total, 1) for what in ("follows", "true"))
    print(f"a wrong word written, {total:.0f} times: the answer follows it {follows:.1%}, stays "
          f"true {true:.1%}\n  follows it, by moves until the question: "
          + ", ".join(f"{d}: {x / max(w, 1):.0%}"
                      for d, (x, w) in enumerate(zip(it["follows"], it["written"]))))


def curves(axis, x, lines: dict[str, list], columns: int, **labels) -> None:
    """One line for each name, in shares of answers."""
    for i, (name, y) in enumerate(lines.items()):
        # thinner and thinner: one on top of another shows
        axis.plot(x, y, ".-", lw=max(1, 4 - i / 2), ms=8, label=name)
    axis.set(ylim=(-0.03, 1.03), ylabel="share of answers", **labels)
    axis.legend(ncols=columns, fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.13),
                frameon=False)


def draw_conditions(axis, out: dict) -> None:
    shown = {NAMES[name]: x for name, x in out["conditions"].items() if name != "refed"}
    if "cups" in out or "levels" in out:
        if "cups" in out:
            draw_chance(axis, out)
        lines = {name: x["accuracy_by_n"] for name, x in shown.items()}
        curves(axis, range(1, 1 + out.get("levels", N_MAX)), lines, 4,
               title="Answers right, with these thoughts",
               xlabel="level" if "levels" in out else "n, moves since the last answer")
    else:
        axis.barh(list(shown), [x["worse"] for x in shown.values()],
                  xerr=[x["worse_95"] for x in shown.values()], capsize=3)
        axis.set(title="What other thoughts cost",
                 xlabel="nats per token more than with own thoughts (95 % interval)")
        axis.invert_yaxis()


def draw_chance(axis, out: dict) -> None:
    axis.axhline(1 / out["cups"], color="grey", ls=":", label="chance")


def draw_ids(axis, out: dict) -> None:
    if "dictionary" not in out:
        ids, times = zip(*out["usage"]["most_used"]) if out["usage"]["most_used"] else ((), ())
        axis.bar([str(i) for i in ids], times)
        axis.set(title=f"How often each id is thought ({out['usage']['ids_used']} in use)",
                 xlabel="id")
        return
    d, columns = out["dictionary"], out["dictionary"]["columns"]
    shares = d["share_of_situation"]
    axis.imshow(list(shares.values()), aspect="auto", cmap="Blues", vmin=0, vmax=1)
    axis.set(title="What is thought where (0 white, 1 dark): "
                   f"cup {d['reading']} the move, and move")
    axis.set_yticks(range(len(shares)), [f"think{i}" for i in shares], fontsize=9)
    axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=9)
    for i in range(1, len(columns)):
        if columns[i][0] != columns[i - 1][0]:  # another cup begins
            axis.axvline(i - 0.5, color="tab:orange")


def draw_writing(axis, out: dict) -> None:
    far, names = out["counterfactual"], {"follows": "follows the written cup", "true": "stays true"}
    lines = {name: [x / w if w else float("nan") for x, w in zip(far[what], far["written"])]
             for what, name in names.items()}
    draw_chance(axis, out)
    curves(axis, range(len(far["written"])), lines, 3,
           title="Another cup's word is written: the answer ...",
           xlabel="moves between the written thought and the question")


def draw_cutting(axis, out: dict) -> None:
    n = max(out["same_answer"]["early"])
    lines = {f"{THEN[name]}: {out['aoc'][name][n]:.2f}": by_length[n]
             for name, by_length in out["same_answer"].items()}
    curves(axis, [i / n for i in range(n + 1)], lines, 2, xlabel="share of thoughts kept",
           title=f"Answers that stay as they were, {n} moves (and the area over the curve)")


def draw_after_which(axis, out: dict) -> None:
    it = out["after_which"]
    axis.imshow(list(it["share"].values()), cmap="Blues", vmin=0, vmax=1)
    axis.set(title="After which moves it thinks (0 white, 1 dark; a story's first ones: "
                   f"{it['first']:.2f})", xlabel="move", ylabel="cup of the ball before it")
    axis.set_xticks(range(len(it["moves"])), it["moves"])
    axis.set_yticks(range(len(it["share"])), it["share"])


PANELS = {"conditions": draw_conditions, "usage": draw_ids, "after_which": draw_after_which,
          "counterfactual": draw_writing, "same_answer": draw_cutting}


def draw(out: dict, path: Path, caption: str) -> None:
    """probe.png: what other thoughts cost, what ids say, when it thinks, what writing does, what
    cutting does."""
    plt = command.pyplot()
    panels = [panel for needs, panel in PANELS.items() if needs in out]
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


def opened(path: Path, data: str | None = None) -> Run:
    """A run that can be probed, on its own data or on others. Raises ValueError, one line, where
    there is nothing to probe."""
    run = open_run(path)
    if run.rules.think == "never" or not len(run.model.think):
        raise ValueError(f"{path} has no thoughts (--thoughts none): there is nothing to probe")
    settings = replace(run.settings, data=data or run.settings.data)
    model = run.model.to("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(model, run.rules, settings, run.progress)
    # (asked of the settings first: to open webtext would be to download it)
    if read_spec(settings.data) is not None and model.text_ids != run.source.text_ids:
        raise ValueError(f"{path} does not speak the language of cups: give it a text with --data")
    return run


def main() -> None:
    p = Parser(prog="lab.probe", description=command.first_line(__doc__), allow_abbrev=False)
    p.add_argument("--checkpoint", type=command.path, default=Path("out"),
                   help="made by train.py, or its folder (out)")
    p.add_argument("--data", type=os.path.expanduser,
                   help='"cups m=5", webtext, "webtext train", or a .txt or .jsonl file; default: '
                   "what it was trained on")
    p.add_argument("--out", type=command.path,
                   help="folder for probe.json and probe.png; default: the checkpoint's")
    p.add_argument("--seed", type=int, default=0, help="of stories, windows, random thoughts (0)")
    p.add_argument("--stories", type=int, help="cups: stories for each number of moves (32); text: "
                   "windows (512, with a model wider than 256 32)")
    args = p.parse_args()
    try:
        at_least("stories", 2 if args.stories is None else args.stories, 2)
        at_least("seed", args.seed, 0)
        run = opened(args.checkpoint, args.data)
        each = args.stories or (windows(run) if on_text(run) else 32)
        cups_of(run)  # raises what is wrong with the data before a folder is made
        out = args.out or folder_of(args.checkpoint)
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out} is a file: a folder is wanted")
        command.make_folder(out)
        (out / "probe.json").touch()  # better now than after minutes
        found = probe(run, each, args.seed)
        command.write_whole(out / "probe.json", command.as_json(found).encode())
        draw(found, out / "probe.png", f"{args.checkpoint} on {run.settings.data}, "
             f"--seed {args.seed} --stories {each}")
    except (ValueError, OSError) as e:
        p.error(str(e))
    show(found)
    print(f"{out / 'probe.json'} and {out / 'probe.png'} hold all of it")


if __name__ == "__main__":
    command.run(main)
