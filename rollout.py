"""Sampling: text with thoughts in its slots, by a cache, for `stream` and `teacher`.

At each place a row thinks or speaks. What it speaks is the next token of its given text while
there is one, and its own choice afterwards.

    ids      The   ball   <think7>  is   <think3>  cup       P = 2 prompt tokens: The ball
    slot                  0         0    1         1         S = 2 new ones: y_0 = is, y_1 = cup

Slot i holds 0 to K thoughts and is ended by the new text token y_i.

`naive_rollout` is the whole idea in twenty lines, one row and one place at a time. `rollout` gives
the same rows, all at once: `stepwise` place by place, or `planned` where only the ids of thoughts
are left to sample. Thoughts that are forgotten are next_token.py's; `roll` there picks the way.

A place is a column of a row, thoughts counted. A token's number counts text alone. A position is
what is looked up in wpe: place + offset, and in a branch the distance from the text's start. In a
window that counts text it is the token's number + offset.

Left out on purpose: rewards and the loss, which are reward.py's; stopping early. A loop that asks
whether all rows are done waits for the GPU at each place. Knows model.py, data.py, fast.py.

Letters: R rows, P prompt tokens, S new text tokens, L = P + S, K thoughts per slot,
T = L + budget places, V text rows, N thinking rows, C width.
"""
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data import Text, seeded
from fast import inverse_cdf, packed
from model import GPT


@dataclass(frozen=True)
class Rules:
    """Who may think, and who sees what. A model only makes sense under its rules, so they are in
    its checkpoint.

    think: "free" (the gate decides), "forced" (always K thoughts in an open slot, while the budget
    lasts) or "never". continuous: the last hidden state is fed back as a thought; one thinking row
    is left then, for the gate. counts: what a window counts. "places": with thoughts. "text": text
    tokens alone; there a thought takes neither place nor position. "steps": what lies between open
    slots. With one step in sight a place sees back to the last slot.
    """
    think: str = "free"
    max_thoughts: int = 1  # K, in a slot
    budget: int = 0  # thoughts in a row of text
    window: int = 0  # how far a query sees, itself the first, besides the last thought; 0: all
    think_after: list[int] | None = None  # text ids after which a slot is open; None: all
    persist: bool = True  # thoughts stay; if not, each prediction has its own (next_token.py)
    continuous: bool = False
    reread: int = 0  # see next_token.branch_layout
    counts: str = "places"

    @property
    def shifts(self) -> bool:
        """Does a thought move the text after it on by a position?"""
        # a base finds what is near by its distance
        return self.counts != "text" or not self.window

    def room_for(self, slots: int) -> "Rules":
        """These rules with a budget that fills that many slots."""
        return replace(self, budget=slots * self.max_thoughts) if self.persist else self

    def table(self, V: int, device) -> Tensor:  # -> [V] bool
        """After which text ids may a thought stand?"""
        table = torch.full((V,), self.think_after is None, device=device)
        if self.think_after is not None:
            table[self.think_after] = True
        return table

    def slots_in(self, text: Text, V: int) -> int:
        """The open slots of new text, in the row that has most of them."""
        return int(self.open_slots(text, V)[:, text.P - 1:-1].sum(1).max())

    def fit(self, text: Text, V: int) -> "Rules":
        """These rules for this text: its window, no room for thoughts it cannot hold."""
        rules = replace(self, window=text.window or self.window)
        if self.think == "forced" and self.persist and text.given:
            room = self.room_for(self.slots_in(text, V)).budget
            return replace(rules, budget=min(self.budget, room))
        if self.reread and text.stage:  # one thought to go back, one for each move
            return replace(rules, max_thoughts=min(self.max_thoughts, text.stage + 1))
        return rules

    def open_slots(self, text: Text, V: int) -> Tensor:  # -> [R, given tokens] bool
        """After which tokens of this text may a thought stand?"""
        return self.table(V, text.ids.device)[text.ids] if text.open is None else text.open


class Luck(NamedTuple):
    """The random numbers of a rollout: uniforms, a function of (seed, step, purpose).

    Each row has its own, so siblings differ and a run repeats to the bit. They are drawn on the
    CPU, so every device has the same.
    """
    seed: int
    step: int
    purpose: str
    part: int = 0  # which share of the rows is this process's,
    parts: int = 1  # of how many

    def __call__(self, draws: int, R: int, each: int = 1) -> Tensor:  # -> [draws, R * each, 2]
        """The first number of a pair decides whether to think, the second which id."""
        shape = draws, R * self.parts * each, 2  # everybody draws all, and takes a part
        u = torch.from_numpy(
            seeded(self.seed, self.step, self.purpose).random(shape, dtype="float32"))
        return u.unflatten(1, (self.parts, -1))[:, self.part]


class Dials(NamedTuple):
    """How a person turns the sampling. Temperature 0: the likeliest, gate first, then id."""
    temperature: float = 1.0  # of text
    think_temperature: float | None = None  # None: as for text
    top_k: int = 0  # only the k likeliest text tokens; 0: all

    @property
    def for_thoughts(self) -> float:
        return self.temperature if self.think_temperature is None else self.think_temperature


SAMPLED, GREEDY = Dials(), Dials(0.0)
# (place, sampled ids [R]) -> the thoughts to stand there; of branches places [S] and ids [R, S]
Edit = Callable[[int | Tensor, Tensor], Tensor]


@dataclass
class Rollout:
    """What happened. What concerns the choice of the token at place t stands at place t.

    One row of 8 places, with P = 2, S = 3, K = 1 and a budget of 3. It chose to think <a> after
    "ball", and to speak after "is" and "cup". Two places are left and stay idle:

        place        0     1     2     3     4     5     6     7
                     The   ball  <a>   is    cup   .
        ids          0     1     19    2     4     5     0     0     thinking ids from V = 19 on
        is_think                 x
        is_text      x     x           x     x     x                 idle: neither
        after        -1    0     1     1     2     3     4     4     the text token before it
        gated                    x           x     x                 thinking was a free choice
        given        x     x           x     x     x                 this text was there before
        chosen_at    0     0     1     2     3     4     5     6     whose state predicted it

    """
    ids: Tensor  # these seven: [R, T]
    is_think: Tensor
    is_text: Tensor
    after: Tensor
    gated: Tensor
    given: Tensor
    chosen_at: Tensor
    h: Tensor  # [R, T, C]: the hidden state at each place
    text: Tensor  # [R, L]: the text closed up
    place: Tensor  # [R, L]: where each text token stands
    P: int  # prompt tokens
    offset: int = 0  # position of the first token
    siblings: int = 1  # how many neighbouring rows have one text
    ends: Tensor | None = None  # [R, T]: is a slot open after it? For steps

    def rows(self, which) -> "Rollout":
        """Some of the rows: a slice, or indices."""
        rows = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: x[which] for k, x in rows.items() if isinstance(x, Tensor)})

    def new_slot(self) -> Tensor:  # -> [R, T - P]
        """The slot of each new place, counted from 0: it is ended by new text token 0..S-1."""
        return (self.after[:, self.P:] - (self.P - 1)).clamp(0, self.text.shape[1] - self.P - 1)

    def kept(self) -> list[list[int]]:
        """Each row's ids as a person reads them, without idle places."""
        real = self.is_text | self.is_think
        return [row[where].tolist() for row, where in zip(self.ids, real)]


# The rules, as masks and as choices

def visible(is_think: Tensor, rules: Rules, ends: Tensor | None = None,
            at: Tensor | None = None) -> Tensor | None:
    # [R, T] bool twice, [n] -> [R, 1, T or n, T] bool
    """Who sees whom: what lies in the window, and the last thought. None: plain causal.

    One rule for prefill, gradient and cache. ends: where steps end; None: nowhere.
    at: which places look; None: all.
    """
    if not rules.window:
        return None
    # with a window, what happened long ago is known through the last thought alone. So thoughts
    # are needed while they are noise: siblings' rewards differ, and there is something to learn
    place = torch.arange(is_think.shape[1], device=is_think.device)
    at = place if at is None else at
    last = torch.where(is_think, place, -1).cummax(1).values  # [R, T]: the last thought up to here
    here, there = window_counts(is_think, rules.counts, place, ends)
    back = here.index_select(1, at).unsqueeze(2) - there.unsqueeze(1)  # [R or 1, n, T]
    near = (back < rules.window) & (place <= at.unsqueeze(1))
    return (near | (place == last.index_select(1, at).unsqueeze(2))).unsqueeze(1)


def window_counts(is_think: Tensor, counts: str, place: Tensor, ends: Tensor | None):
    # [R, T] bool, "places", "text" or "steps", [T], [R, T] bool -> [R or 1, T] twice
    """The number of each place as it looks back, and as it is looked at. The window counts their
    difference."""
    if counts == "places":
        return place[None], place[None]
    if counts == "text":  # a thought is in no window
        number = (~is_think).cumsum(1)
        return number, number.masked_fill(is_think, -(1 << 30))
    # thoughts begin the next step, and look at their own
    ends = torch.zeros_like(is_think) if ends is None else ends
    begun = F.pad(ends, (1, -1)).cumsum(1)
    return begun - is_think.long(), begun


def positions_of(is_think: Tensor, rules: Rules) -> Tensor:  # [R, T] bool -> [T] or [R, T]
    """What is looked up in wpe, less the offset."""
    if rules.shifts:
        return torch.arange(is_think.shape[1], device=is_think.device)
    return (~is_think).cumsum(1) - 1


def visible_text(ids: Tensor, rules: Rules, ends: Tensor | None = None) -> Tensor | None:
    """`visible` without thoughts."""
    return visible(torch.zeros_like(ids, dtype=torch.bool), rules, ends)


def explicit(mask: Tensor | None, T: int, device) -> Tensor:  # -> [R or 1, 1, T, T]
    """`visible`'s mask with causal written out, so that rows of it can meet keys of a cache."""
    causal = torch.ones(1, 1, T, T, dtype=torch.bool, device=device).tril()
    return causal if mask is None else mask


def draw(logits: Tensor, u: Tensor, temperature: float) -> Tensor:  # [R, n], [R] -> [R]
    """One id per row from softmax(logits / temperature); temperature 0: the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits if temperature == 1 else logits / temperature
    return inverse_cdf((logits - logits.amax(-1, keepdim=True)).exp_(), u)


def opens(gap: Tensor, u: Tensor, temperature: float) -> Tensor:  # [R], [R] -> [R] bool
    """The gate: think with probability sigmoid(gap) = p_think; temperature 0: if over 1/2."""
    return gap > 0 if temperature == 0 else u < torch.sigmoid(gap)


def who_may(may: Tensor, free: bool) -> Tensor | slice:  # [R] bool
    """The rows that get the N thinking logits. Forced thinking on a CPU: only rows about to think,
    on cups one in five. Elsewhere all of them, so shapes stay and nothing waits for the GPU."""
    few = not free and may.device.type == "cpu" and not torch.compiler.is_compiling()
    return may.nonzero().squeeze(1) if few else slice(None)


def choose(model: GPT, h: Tensor, may: Tensor | None, free: bool, u: Tensor,
           dials: Dials) -> tuple[Tensor, Tensor]:
    # [R, C], [R] bool, [R, 2] -> [R] ids, [R] is_think
    """One choice per row: think or speak, and then which id.

    may: rows whose slot is open; None: nobody may think. free: their gate decides, else they must.
    """
    # first the gate, then the id: in the joint softmax p_think is spread over N rows, so its
    # argmax would hardly ever be a thought
    V, text_logits = model.config.vocab_size, model.text_logits(h)
    allowed = text_logits
    if dials.top_k:  # an aid for people, for text alone: how readily it thinks stays as it is
        least = text_logits.topk(min(dials.top_k, V)).values[:, -1:]
        allowed = text_logits.masked_fill(text_logits < least, -torch.inf)
    spoken = draw(allowed, u[:, 1], dials.temperature)
    if may is None:
        return spoken, torch.zeros_like(spoken, dtype=torch.bool)
    who = who_may(may, free)
    think_logits = model.think_logits(h[who])
    thinks = may
    if free:  # the gate: all thoughts together against all of text
        gap = think_logits.logsumexp(-1) - text_logits.logsumexp(-1)
        thinks = may & opens(gap, u[:, 0], dials.for_thoughts)
    # both are drawn and one is taken, so one uniform serves both. That is cheaper than one softmax
    # over V + N with masks
    thought = spoken.clone()
    thought[who] = V + draw(think_logits, u[who, 1], dials.for_thoughts)
    return torch.where(thinks, thought, spoken), thinks


# The sampler, first as plain as it can be

@torch.no_grad()
def naive_rollout(model: GPT, text: Text, rules: Rules, u: Tensor,
                  dials: Dials = SAMPLED) -> list[list[int]]:
    """Rows one by one, each place a forward over everything so far: `rollout` must equal this."""
    V, out = model.config.vocab_size, []
    table = rules.table(V, text.ids.device)
    opened = rules.open_slots(text, V)  # after which given tokens a thought may stand
    for r, given in enumerate(text.ids.tolist()):
        # the row, its open slots; text tokens; thoughts in this slot, in the row
        ids, ends, spoken, in_slot, used = given[:text.P], opened[r, :text.P].tolist(), text.P, 0, 0
        is_open = ends[-1]
        while spoken < text.P + text.S:
            so_far = torch.tensor([ids], device=text.ids.device)
            positions = positions_of(so_far >= V, rules) + text.offset
            mask = visible(so_far >= V, rules, torch.tensor([ends], device=so_far.device))
            h = model(so_far, positions, mask)[:, -1]
            may = torch.tensor([is_open and rules.think != "never" and used < rules.budget
                                and in_slot < rules.max_thoughts], device=so_far.device)
            luck = u[len(ids) - text.P, r:r + 1]
            choice, thinks = choose(model, h, may, rules.think == "free", luck, dials)
            thinks = thinks.item()
            # a row that speaks says the next token of its given text, while there is one
            ids.append(choice.item() if thinks or spoken >= len(given) else given[spoken])
            if not thinks:
                is_open = bool(opened[r, spoken] if spoken < len(given) else table[ids[-1]])
            ends.append(is_open and not thinks)
            spoken, used = spoken + (not thinks), used + thinks
            in_slot = in_slot + 1 if thinks else 0
        out.append(ids)
    return out


@torch.no_grad()
def rollout(model: GPT, text: Text, rules: Rules, luck: Luck, dials: Dials = SAMPLED,
            edit: Edit | None = None) -> Rollout:
    """R rows of P + S text tokens with at most `rules.budget` thoughts each.

    luck: `Luck`, or any function like it. edit: what thoughts are overwritten by once they are
    sampled. Raises ValueError where the rows do not fit the model's context.
    """
    budget = fitting_budget(model, text, rules)
    rules = replace(rules, budget=budget)
    u = luck(text.S + budget, len(text.ids)).to(text.ids.device)
    with packed(model, len(text.ids), text.S):
        if rules.think != "free" and text.given:
            return planned(model, text, rules, u, dials, edit)
        return stepwise(model, text, rules, u, dials, edit)


def fitting_budget(model: GPT, text: Text, rules: Rules) -> int:
    """The thoughts that a row can hold. Raises ValueError where they do not fit the context."""
    budget = rules.budget if rules.think != "never" and len(model.think) else 0
    if text.offset + text.P + text.S + budget > model.config.n_ctx:
        raise ValueError(f"{text.P} prompt + {text.S} new text tokens + {budget} thoughts do not "
                         f"fit the context of {model.config.n_ctx}")
    return budget


def read_prompt(model: GPT, text: Text, cache: list, rules: Rules, P: int,
                opened: Tensor) -> Tensor:  # opened: [R, L] -> [R, P, C]
    """One forward over the first P tokens, without thoughts, into a cache of all rows. Siblings
    share it."""
    R, G = len(text.ids), text.siblings
    prompt, places = text.ids[::G, :P], torch.arange(P, device=text.ids.device)
    first = model.new_cache(R // G, P)  # of one sibling of G
    mask = explicit(visible_text(prompt, rules, opened[::G, :P]), P, prompt.device)
    h = model(prompt, places + text.offset, mask, first, places)
    for own, shared in zip(sum(cache, []), sum(first, [])):
        own[:, :, :P] = shared.repeat_interleave(G, 0)
    return h.repeat_interleave(G, 0)


@dataclass
class Decoder:
    """How far R rows have come. Its tensors keep their shapes and are written in place, so the work
    of a place can be recorded once on a GPU and replayed for each (fast.Recorder)."""
    P: int
    L: int
    text: Tensor  # [R, given]: the text that is given
    opened: Tensor  # [R, given] bool: may a thought stand after it?
    table: Tensor  # [V] bool: and after a text token that is not given?
    u: Tensor  # [T - P, R, 2]
    ids: Tensor  # these five: [R, T], as in Rollout
    is_think: Tensor
    is_text: Tensor
    gated: Tensor
    ends: Tensor
    n_text: Tensor  # these four: [R]. Text tokens so far,
    in_slot: Tensor  # thoughts in this slot,
    used: Tensor  # thoughts in all,
    slot_open: Tensor  # may a thought stand now?
    at: Tensor  # [1]: the place that is next
    offset: Tensor  # [1]
    h: Tensor  # [R, T, C]
    cache: list[list[Tensor]]

    @classmethod
    def begin(cls, model: GPT, text: Text, rules: Rules, u: Tensor) -> "Decoder":
        """The prompt is read, and the first choice is next."""
        R, P, V, dev = len(text.ids), text.P, model.config.vocab_size, text.ids.device
        rest = text.S + rules.budget  # places after the prompt
        cache, opened = model.new_cache(R, P + rest), rules.open_slots(text, V)
        h = read_prompt(model, text, cache, rules, P, opened)
        prompt = torch.arange(P + rest, device=dev).expand(R, -1) < P
        none, ends = torch.zeros_like(prompt), F.pad(opened[:, :P], (0, rest))
        n_text, in_slot, used = (torch.full((R,), n, device=dev) for n in (P, 0, 0))
        at, offset = (torch.full((1,), n, device=dev) for n in (P, text.offset))
        return cls(P, P + text.S, text.ids, opened, rules.table(V, dev), u,
                   F.pad(text.ids[:, :P], (0, rest)), none, prompt, none.clone(), ends, n_text,
                   in_slot, used, opened[:, P - 1].clone(), at, offset,
                   F.pad(h, (0, 0, 0, rest)), cache)

    def decide(self, model: GPT, rules: Rules, dials: Dials, edit: Edit | None = None,
               t: int = 0) -> None:
        """Think or speak, at the place that is next. t: that place, for `edit`."""
        V, given, at = model.config.vocab_size, self.text.shape[1], self.at
        free = rules.think == "free"
        done = self.n_text >= self.L  # finished rows idle, so that shapes stay
        may = self.slot_open & (self.in_slot < rules.max_thoughts) & (self.used < rules.budget)
        may = may & ~done
        chosen, thinks = choose(model, self.before()[:, 0], may if rules.budget else None, free,
                                self.u.index_select(0, at - self.P)[0], dials)
        # while its text is given, a row that speaks says the next token of that
        follows = ~thinks & (self.n_text < given)
        number = self.n_text.clamp(max=given - 1).unsqueeze(1)
        token = torch.where(follows, self.text.gather(1, number).squeeze(1), chosen)
        if edit is not None:  # an intervention
            token = torch.where(thinks, edit(t, token), token)
        speaks = ~thinks & ~done
        # may a thought stand after this token? given text may say so by place
        opens_next = torch.where(follows, self.opened.gather(1, number).squeeze(1),
                                 self.table[token.clamp(max=V - 1)])
        for x, new in ((self.ids, token.masked_fill(done, 0)), (self.is_text, speaks),
                       (self.is_think, thinks), (self.gated, may & free)):
            x.index_copy_(1, at, new.unsqueeze(1))
        if rules.counts == "steps":
            self.ends.index_copy_(1, at, (speaks & opens_next).unsqueeze(1))
        self.slot_open.copy_(torch.where(speaks, opens_next, self.slot_open))
        self.n_text.add_(speaks)
        self.used.add_(thinks)
        self.in_slot.add_(1).mul_(thinks)

    def read(self, model: GPT, rules: Rules) -> None:
        """Take in what was chosen, and go on to the next place."""
        T, at = self.ids.shape[1], self.at
        see = visible(self.is_think, rules, self.ends, at)
        if see is None:
            see = (torch.arange(T, device=at.device) <= at).view(1, 1, 1, T)
        position = self.offset + (at if rules.shifts else self.n_text.unsqueeze(1) - 1)
        h = model(self.ids.index_select(1, at), position, see, self.cache, at,
                  self.before() if rules.continuous else None)
        self.h.index_copy_(1, at, h)
        self.at.add_(1)

    def before(self) -> Tensor:  # -> [R, 1, C]
        """The state that the next place is chosen from."""
        return self.h.index_select(1, self.at - 1)

    def ended(self, text: Text) -> Rollout:
        # copies: the next rollout writes over these tensors
        ids, is_think, is_text, gated, ends, h = (x.clone() for x in (
            self.ids, self.is_think, self.is_text, self.gated, self.ends, self.h))
        # text tokens first, in order: where each of them stands
        place = is_text.float().argsort(dim=1, descending=True, stable=True)[:, :self.L]
        slot = is_text.cumsum(1) - is_text.long() - 1
        return Rollout(
            ids=ids, is_think=is_think, is_text=is_text, after=slot, gated=gated,
            given=is_text & (slot + 1 < self.text.shape[1]),
            chosen_at=one_before(*ids.shape, ids.device), h=h, text=ids.gather(1, place),
            place=place, P=self.P, offset=text.offset,
            siblings=text.siblings if text.given else 1, ends=ends)


def stepwise(model: GPT, text: Text, rules: Rules, u: Tensor, dials: Dials,
             edit: Edit | None) -> Rollout:
    """One place at a time. It can sample everything: own text, thoughts, when to think."""
    def place(now: Decoder, t: int = 0) -> None:
        now.decide(model, rules, dials, edit, t)
        now.read(model, rules)
    now, recorder = Decoder.begin(model, text, rules, u), model.recorder
    if recorder is not None and edit is None:
        now, place = recorder(
            str((text.P, u.shape, text.ids.shape, rules, dials, now.cache[0][0].dtype)), now, place)
    last = text.P + text.S + rules.budget - 1
    for t in range(text.P, last):
        place(now, t)
    # nothing follows the last place: its state is never needed
    now.decide(model, rules, dials, edit, last)
    return now.ended(text)


def planned(model: GPT, text: Text, rules: Rules, u: Tensor, dials: Dials,
            edit: Edit | None) -> Rollout:
    """The same where only the thoughts' ids are open: given text, and thinking forced or never.

    Where each token stands is known from the start, so what lies between two places with thoughts
    is one forward. On cups a rollout of 128 rows takes 10 ms instead of 20.
    """
    (R, L), P, dev, V = text.ids.shape, text.P, text.ids.device, model.config.vocab_size
    T, place = L + rules.budget, torch.arange(L, device=dev)
    # no thought stands in the prompt, and none after the end
    whole = rules.open_slots(text, V)
    opened = whole & (place >= P - 1) & (place < L - 1)
    # [R, L]: how many thoughts there are up to the end of the slot after each token
    n = (opened * rules.max_thoughts).cumsum(1).clamp(max=rules.budget)
    place = place + F.pad(n[:, :-1], (1, 0))  # each token moves on by the thoughts before it
    ids = torch.zeros(R, T, dtype=torch.long, device=dev).scatter(1, place, text.ids)
    is_text = torch.zeros(R, T, dtype=torch.bool, device=dev).scatter(1, place, True)
    places = torch.arange(T, device=dev)
    is_think = ~is_text & (places < L + n[:, -1:])
    ends = torch.zeros_like(is_text).scatter(1, place, whole)
    mask = explicit(visible(is_think, rules, ends), T, dev)
    positions = positions_of(is_think, rules) + text.offset
    cache = model.new_cache(R, T)
    h = read_prompt(model, text, cache, rules, P, whole)
    hs, start = [h], P
    for t in [*is_think.any(0).nonzero().squeeze(1).tolist(), T - 1]:
        if t > start:  # all that stands between the last thought and this one
            fed = h[:, -1:].expand(-1, t - start, -1) if rules.continuous else None
            h = model(ids[:, start:t], positions[..., start:t], mask[:, :, start:t], cache,
                      places[start:t], fed)
            hs.append(h)
        if t < T - 1:  # no thought stands at the last place
            logits = model.think_logits(h[:, -1])  # [R, N]
            thought = V + draw(logits, u[t - P, :, 1], dials.for_thoughts)
            if edit is not None:
                thought = edit(t, torch.where(is_think[:, t], thought, ids[:, t]))
            ids[:, t] = torch.where(is_think[:, t], thought, ids[:, t])
        start = t
    hs.append(torch.zeros_like(h[:, -1:]))
    return Rollout(
        ids=ids, is_think=is_think, is_text=is_text, gated=torch.zeros_like(is_text),
        after=is_text.cumsum(1) - is_text.long() - 1, given=is_text.clone(),
        chosen_at=one_before(R, T, dev), h=torch.cat(hs, 1), text=text.ids, place=place, P=P,
        offset=text.offset, siblings=text.siblings, ends=ends)


def one_before(R: int, T: int, device) -> Tensor:  # -> [R, T]
    """Each place is chosen from the state of its left neighbour."""
    return (torch.arange(T, device=device) - 1).clamp(min=0).expand(R, T)


def states_at(h: Tensor, places: Tensor) -> Tensor:  # [R, T, C], [R, n] -> [R, n, C]
    """The states at some places of each row, as at `Rollout.chosen_at`."""
    return h.gather(1, places.unsqueeze(-1).expand(-1, -1, h.shape[-1]))
