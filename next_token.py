"""`next_token`: thoughts that are forgotten once they have predicted one token.

Where a slot is open, a branch of at most K thoughts begins. It predicts the next token and is gone.
On cups slots are open before answers, on text after each token. S separate rollouts would do the
same; here all branches of a text are one packed row.

`roll` and `states`, at the end, are what all other files call: by the rules they take either this
way or that of rollout.py.

Left out on purpose: a horizon of more than one token. `stream` pays a thought by later tokens.
Knows model.py, data.py, rollout.py, fast.py.

Letters: R rows, P prompt tokens, S new text tokens, L = P + S, K thoughts per branch,
T = L + K S places, V text rows, C width.
"""
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from data import Text, plain
from fast import packed
from model import GPT, gate_logit
from rollout import (SAMPLED, Dials, Edit, Luck, Rollout, Rules, choose, draw, explicit,
                     fitting_budget, one_before, opens, positions_of, read_prompt, rollout,
                     states_at, visible, who_may)


def branch_layout(P: int, S: int, K: int, rules: Rules,
                  device) -> tuple[Tensor, Tensor]:  # -> [T], [1, 1, T, T]
    """Positions in a packed row, and who sees whom. Text a b c d with P = 2, S = 2 and K = 2:

                        a  b  c  d | z1 z1' | z2 z2'     rows look at the columns marked x
        a               x          |        |
        b               x  x       |        |
        c               x  x  x    |        |
        d               x  x  x  x |        |
        z1  (after b)   x  x       | x      |            z1, z2: the branch after b, predicts c
        z1' (after c)   x  x  x    |    x   |            z1', z2': the one after c, predicts d
        z2              x  x       | x      | x          step k of all branches is one block
        z2'             x  x  x    |    x   |    x

    A branch counts positions from the end of its prefix, as if it stood there alone.

    With `reread` a branch reads its prefix once more while it thinks. Thought K sees the whole
    prefix, thought K - 1 sees it up to `reread` tokens earlier, and so on. So a branch walks along
    the moves as a `stream` would. Each thought has the position and the mask of one at that place:
    it sees no other thought. What was read so far reaches it through its own id, which was chosen
    from the state of the thought before it.
    """
    # places: first the text, then step 1 of all branches, then step 2, ...
    s = torch.arange(S, device=device).repeat(K)  # [K S]: which branch
    k = torch.arange(K, device=device).repeat_interleave(S)  # [K S]: which step of it
    text = torch.arange(P + S, device=device)
    step = torch.cat([text.new_zeros(P + S), k + 1])  # [T]: 0 for text
    ends = torch.cat([text, P - 1 + s])  # [T]: the last text token in sight
    branch = torch.cat([text.new_full((P + S,), -1), s])
    is_text, own = step == 0, (branch[:, None] == branch) & (step[:, None] >= step)
    positions = ends + step * rules.shifts
    if rules.reread:
        back = (ends - rules.reread * (K - step)).clamp(min=0)
        ends = torch.where(is_text, ends, back)
        positions, own = ends + ~is_text * rules.shifts, own & (step[:, None] == step)
    near = torch.tensor(rules.window == 0, device=device)  # everything is, or
    near = near | (positions[:, None] - text < rules.window)  # what lies in the window
    mask = own & ~is_text  # [T, T]: the own branch, up to oneself; and of the text:
    mask[:, :P + S] = (text <= ends[:, None]) & near
    return positions, mask.view(1, 1, *mask.shape)


def branches(model: GPT, text: Text, rules: Rules, luck, dials: Dials,
             edit: Edit | None) -> Rollout:
    """All text is given: K forwards of S places over one cache of the text. For 64 branches of 8
    thoughts at GPT-2's size this is 12 times faster than 64 rollouts.

    A free branch ends where it would rather speak. One that rereads is thought to its end: before
    that it has not read all of its prefix. So its gate chooses once. edit gets places [S] and ids
    [R, S].
    """
    (R, L), P, S, dev = text.ids.shape, text.P, text.S, text.ids.device
    V, K, free = model.config.vocab_size, rules.max_thoughts, rules.think == "free"
    places = torch.arange(L + K * S, device=dev)
    u = luck(K, R, S).to(dev)  # [K, R * S, 2]
    positions, mask = branch_layout(P, S, K, rules, dev)
    cache = model.new_cache(R, len(places))
    opened = rules.open_slots(text, V)
    h = read_prompt(model, text, cache, rules, L, opened)
    ids = F.pad(text.ids, (0, K * S))
    is_think, gated = (torch.zeros(R, len(places), dtype=torch.bool, device=dev) for _ in range(2))
    chosen_at = branch_parents(places, L, P, K).expand(R, -1).clone()
    going = opened[:, P - 1:-1]  # [R, S]: does this branch go on?
    hs, last = [h], h[:, P - 1:-1].flatten(0, 1)  # [R * S, C]: the state at each branch's end
    for k in range(K):
        at = places[L + k * S:L + (k + 1) * S]  # [S]: step k of all branches
        who = who_may(going.flatten(), free)
        think_logits, thinks = model.think_logits(last[who]), going
        if free and not (rules.reread and k):
            # 512 rows at once: at GPT-2's size their logits are 100 MB
            gap = torch.cat([gate_logit(model.logits(x), V) for x in last.split(512)])
            thinks = going & opens(gap, u[k, :, 0], dials.for_thoughts).view(R, S)
            gated[:, at] = thinks
            gated[:, P:L] |= going & ~thinks  # to speak is a choice as well
        # rereading, the first thought only goes back: random numbers in it would be noise to all
        # that follow, so it is the likeliest one
        heat = 0.0 if rules.reread and not k else dials.for_thoughts
        thought = torch.full_like(ids[:, at], V)
        thought.view(-1)[who] += draw(think_logits, u[k, who, 1], heat)
        thought = thought if edit is None else edit(at, thought)
        ids[:, at], is_think[:, at] = thought.masked_fill(~thinks, 0), thinks
        # so far, this thought is the last of its branch: the next token is chosen from it
        chosen_at[:, P:L] = torch.where(thinks, at, chosen_at[:, P:L])
        hs.append(model(ids[:, at], positions[at] + text.offset, mask[:, :, at], cache, at,
                        last.view(R, S, -1) if rules.continuous else None))
        going, last = thinks, hs[-1].flatten(0, 1)
    slot = torch.cat([places[:L] - 1, places[P - 1:L - 1].repeat(K)]).expand(R, -1)
    is_text = (places < L).expand(R, -1)
    return Rollout(
        ids=ids, is_think=is_think, is_text=is_text, after=slot, gated=gated, given=is_text.clone(),
        chosen_at=chosen_at, h=torch.cat(hs, 1), text=text.ids, place=places[:L].expand(R, -1),
        P=P, offset=text.offset, siblings=text.siblings)


def branch_parents(places: Tensor, L: int, P: int, K: int) -> Tensor:  # [T] -> [T]
    """From which place each thought is chosen: the first of a branch from its prefix, any other
    from the one before it, one block back. Text: from text, where its branch stays empty."""
    S, parents = L - P, places - (L - P)
    parents[:L] = (places[:L] - 1).clamp(min=0)
    if K:
        parents[L:L + S] = places[P - 1:L - 1]
    return parents


def speak_by_branches(model: GPT, text: Text, rules: Rules, luck, dials: Dials,
                      edit: Edit | None) -> Rollout:
    """Own text: a branch of thoughts, one token, the branch is dropped, and so on.

    Each token reads its whole prefix, so this is for samples and evaluation alone. Of the fields
    only ids, is_think, is_text, text and place are real. Thoughts stand where they were.
    """
    R, K, P, S = len(text.ids), rules.max_thoughts, text.P, text.S
    V, dev, ids = model.config.vocab_size, text.ids.device, text.ids
    rows = [row[:] for row in ids.tolist()]  # with thoughts, as a person reads them
    u = luck(S * (K + 1), R).to(dev)
    for s in range(S):
        now = u[s * (K + 1):(s + 1) * (K + 1)]  # [K + 1, R, 2]
        # the token to come stands for nothing yet
        prefix = Text(F.pad(ids, (0, 1)), P + s, text.pays[:, :1], text.level[:, :1])
        ro = branches(model, prefix, rules, lambda *_, now=now: now[:K], dials, edit)
        h = states_at(ro.h, ro.chosen_at[:, P + s, None])[:, 0]
        said, _ = choose(model, h, None, False, now[K], dials)
        for r, row in enumerate(rows):
            row += [*ro.ids[r][ro.is_think[r]].tolist(), said[r].item()]
        ids = torch.cat([ids, said.unsqueeze(1)], 1)
    T = P + S + K * S
    wide = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=dev)  # [R, T]
    length = torch.tensor([len(row) for row in rows], device=dev).unsqueeze(1)
    # what is not real is idle, at a row's end
    real = torch.arange(T, device=dev) < length
    is_think, is_text = real & (wide >= V), real & (wide < V)
    place = is_text.float().argsort(dim=1, descending=True, stable=True)[:, :P + S]
    return Rollout(
        ids=wide, is_think=is_think, is_text=is_text, after=is_text.cumsum(1) - 1,
        gated=torch.zeros_like(real), given=torch.zeros_like(real), chosen_at=one_before(R, T, dev),
        h=torch.zeros(R, T, 1, device=dev), text=ids, place=place, P=P)


# Either way, by the rules

@torch.no_grad()
def roll(model: GPT, text: Text, rules: Rules, luck: Luck, dials: Dials = SAMPLED,
         edit: Edit | None = None) -> Rollout:
    """Sample thoughts, and text where it is not given. See `rollout.rollout` for the arguments.
    Raises ValueError where the rows do not fit the context, or branches get half of their text."""
    if rules.persist:
        return rollout(model, text, rules, luck, dials, edit)
    rules = replace(rules, max_thoughts=min(fitting_budget(model, text, rules), rules.max_thoughts))
    if not text.given and text.ids.shape[1] > text.P:
        raise ValueError("thoughts that are forgotten: the text is all given, or its prompt alone")
    with packed(model, len(text.ids), text.S):
        way = branches if text.given else speak_by_branches
        return way(model, text, rules, luck, dials, edit)


def answer_prompt(model: GPT, rules: Rules, ids: list[int], slots: list[int], S: int,
                  samples: int = 1, **how) -> Rollout:
    """S tokens of own text after a prompt that says where thoughts may stand: after its places
    `slots`, as in task.encode. how: all else that `roll` takes."""
    P = slots[0] + 1 if rules.persist and slots else len(ids)
    prompt = torch.tensor([ids] * samples, device=model.device)
    is_open = torch.zeros_like(prompt, dtype=torch.bool)
    is_open[:, slots] = True
    if rules.persist:
        rules = replace(rules, budget=min(len(slots) * rules.max_thoughts,
                                          max(0, model.config.n_ctx - len(ids) - S)))
    else:  # a branch before each token of the answer
        rules, is_open = replace(rules, think_after=None), None
    text = plain(prompt, P, len(ids) - P + S, open=is_open, siblings=samples)
    return roll(model, text, rules, **how)


@torch.no_grad()
def gate_at(model: GPT, ro: Rollout) -> Tensor:  # -> [R, T]
    """p_think at each place, 0..1: how likely a thought was to be chosen there rather than text.
    0 without thinking rows, and for own text in branches, whose states are not kept."""
    if not len(model.think) or ro.h.shape[-1] != model.config.n_embd:
        return torch.zeros(ro.ids.shape)
    h, V = states_at(ro.h, ro.chosen_at), model.config.vocab_size
    p = [torch.sigmoid(gate_logit(model.logits(x), V)) for x in h.flatten(0, 1).split(512)]
    return torch.cat(p).view(ro.ids.shape)


def layout(ro: Rollout, rules: Rules) -> tuple[Tensor, Tensor | None]:  # [T], [R or 1, 1, T, T]
    """Positions and mask with which one forward gives the states that the sampler saw."""
    if rules.persist:
        return positions_of(ro.is_think, rules) + ro.offset, visible(ro.is_think, rules, ro.ends)
    S = ro.text.shape[1] - ro.P
    K = (ro.ids.shape[1] - ro.P) // S - 1
    positions, mask = branch_layout(ro.P, S, K, rules, ro.ids.device)
    return positions + ro.offset, mask


def states(model: GPT, ro: Rollout, rules: Rules) -> Tensor:  # -> [R, T, C]
    """The hidden states of a rollout, with gradient: one forward over its ids.

    Continuous thoughts are no ids: each is the state before it, and passes the gradient on to it.
    """
    positions, mask = layout(ro, rules)
    if not rules.continuous:  # all that is fed in is there
        if shares_prompt(ro):
            return read_prompt_once(model, ro, positions, mask)
        return model(ro.ids, positions, mask)
    way = at_once if ro.ids.device.type == "cuda" else one_by_one
    return way(model, ro, rules, positions, mask)


def shares_prompt(ro: Rollout) -> bool:
    """Are these rows whole groups of siblings, whose prompt is more than a third of all places?"""
    (R, T), G, P = ro.ids.shape, ro.siblings, ro.P
    # on a GPU plain causal attention has a kernel of its own, which a mask would lose
    if G == 1 or R % G or 3 * P <= T or ro.ids.device.type == "cuda":
        return False
    # a micro-batch may begin between two siblings. What is seen depends on where slots are open
    said = [ro.ids] if ro.ends is None else [ro.ids, ro.ends]
    groups = (x[:, :P].view(R // G, G, P) for x in said)
    return all(bool((x == x[:, :1]).all()) for x in groups)


def read_prompt_once(model: GPT, ro: Rollout, positions: Tensor, mask: Tensor | None) -> Tensor:
    """The prompt is one row for G siblings; the rest of each row reads its keys and values. With
    four siblings and two thirds of the places in the prompt, whole rows take half as long again,
    head and loss aside (docs/SPEED.md)."""
    (R, T), G, P = ro.ids.shape, ro.siblings, ro.P
    positions = positions.expand(R, T)
    mask = explicit(mask, T, ro.ids.device).expand(R, 1, T, T)
    cache = model.new_cache(R // G, 0)
    h = model(ro.ids[::G, :P], positions[::G, :P], mask[::G, :, :P, :P], cache)
    cache = [[x.repeat_interleave(G, 0) for x in layer] for layer in cache]
    rest = model(ro.ids[:, P:], positions[:, P:], mask[:, :, P:], cache)
    return torch.cat([h.repeat_interleave(G, 0), rest], 1)


def one_by_one(model: GPT, ro: Rollout, rules: Rules, positions: Tensor,
               mask: Tensor | None) -> Tensor:
    """Continuous thoughts: one forward for each place with thoughts, over a cache that autograd
    follows back through every thought."""
    (R, T), L = ro.ids.shape, ro.text.shape[1]
    mask = explicit(mask, T, ro.ids.device)
    # a part ends where thoughts begin that have to be fed with states of this part
    cuts = ro.is_think.any(0).nonzero().squeeze(1).tolist()
    cuts = cuts if rules.persist else list(range(L, T, L - ro.P))
    cache, hs = model.new_cache(R, 0), []
    for start, stop in zip([0, *cuts], [*cuts, T]):
        fed = None
        if start:
            # (what is not a thought takes nothing from here)
            parents = ro.chosen_at[:, start:stop].clamp(max=start - 1)
            fed = states_at(torch.cat(hs, 1), parents)
        hs.append(model(ro.ids[:, start:stop], positions[..., start:stop],
                        mask[:, :, start:stop, :stop], cache, None, fed))
    return torch.cat(hs, 1)


def at_once(model: GPT, ro: Rollout, rules: Rules, positions: Tensor,
            mask: Tensor | None) -> Tensor:
    """The same in one forward, fed with the states that the sampler saw. The gradient that arrives
    at a thought belongs to the state before it. So it goes back once more for each thought of a
    chain. (With J the forward's Jacobian from what is fed in to all states, the sum over k of
    (J^T)^k g; it ends, as a thought changes only what follows.)

    For CUDA: there the parts of `one_by_one` are thousands of small kernels, and what each of them
    read of the cache is kept: at GPT-2's size 2.9 s and 14.8 GB. On a CPU this is the slower way.
    """
    fed = states_at(ro.h, ro.chosen_at).requires_grad_()
    h = model(ro.ids, positions, mask, None, None, fed)
    longest = int(ro.is_think.sum(1).max()) if rules.persist else rules.max_thoughts
    parents = ro.chosen_at.unsqueeze(-1).expand_as(h)

    def through_thoughts(g: Tensor) -> Tensor:
        total = g
        for _ in range(longest):
            to_fed = torch.autograd.grad(h, fed, g.to(h.dtype), retain_graph=True)[0]
            g = torch.zeros_like(h).scatter_add(1, parents, to_fed)
            total = total + g
        return total
    out = h.view_as(h)  # a hook of h itself would be called by its own calls
    if out.requires_grad:
        out.register_hook(through_thoughts)
    return out
