"""Sampling: text and thoughts interspersed, with a cache.

At each step a row thinks, or it speaks; what it speaks is the next token of its given text while there is one (in `stream`
all text is the data's; in `teacher` the prompt is, and later the text that a sibling wrote), and its own after.

    slot     0        1              2                 text token s, then slot s with 0..K thoughts
    text     The      ball           is
    ids      The      ball  <think7> is  <think3>      place 0 1 2 3 4

`rollout` picks one of four: `rollout_stepwise`, one place at a time, can do all that persists; `rollout_planned` the same
sooner where only the thoughts' ids are open; `branches` is `next_token`, whose thoughts are forgotten once one token was
predicted, and `speak_by_branches` its own text. `states` is the forward with gradient over what was sampled.

Left out on purpose: scores and the loss (reward.py), stopping early
(a finished row idles in shapes that never change: a loop that looks whether all are done waits for the GPU at each step).
Knows model.py (its demonstration also tokenizer.py).

Letters: R rows, P prompt tokens, S new text tokens, K thoughts a slot, M thoughts a row, T = P + S + M places (branches:
P + S + K * S), V text rows, N thinking rows, C width.
"""
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from model import GPT, gate_logit, load, packed, read_weights


@dataclass
class Rules:
    """Who may think, and who sees what. Stored in the checkpoint: a model only makes sense under its rules.

    think: "free" (the gate decides), "forced" (always K thoughts where `think_after` says so, until the budget is out,
    and none elsewhere), or "never". think_after: the text ids whose slot may hold thoughts; None: every slot.
    window: how many tokens back a query sees, beside the last thought; 0: everything.
    continuous: is the last hidden state fed back as a thought? (One thinking row is left then, for the gate.)
    persist: do thoughts stay in the context (`stream`, `teacher`), or does each prediction have its own (`next_token`)?
    reread: branches: how many tokens the eye moves on from thought to thought; 0: each thought sees the whole prefix.
    """
    think: str = "free"
    max_thoughts: int = 1  # K
    budget: int = 0  # M
    window: int = 0
    think_after: list[int] | None = None
    persist: bool = True
    continuous: bool = False
    reread: int = 0

    def draws(self, S: int) -> int:
        """How many uniforms a row needs for S tokens of its own."""
        return S + self.budget if self.persist else S * (self.max_thoughts + 1)

    def with_room(self, S: int) -> "Rules":
        """These rules with a thought for every move in S tokens of cups, where at the most every other token is one."""
        return replace(self, budget=(S + 1) // 2 * self.max_thoughts) if self.persist else self

    def table(self, model: GPT) -> Tensor:  # -> [V] bool
        V = model.config.vocab_size
        table = torch.full((V,), self.think_after is None, device=model.device)
        if self.think_after is not None:
            table[self.think_after] = True
        return table


def load_run(path: Path) -> tuple[GPT, Rules, dict]:
    """A checkpoint of train.py, or its folder -> its model, its rules and its settings. Raises ValueError, one line, for
    anything else."""
    path = path / "ckpt.pt" if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"there is no {path} yet: `python train.py --think_vocab 2048` makes out/ckpt.pt")
    saved = read_weights(path)
    if not {"rules", "args"} <= saved.keys():
        raise ValueError(f"{path} is a model, but not the checkpoint of a run of train.py, with its rules")
    try:
        return load(path), Rules(**saved["rules"]), saved["args"]
    except TypeError as e:
        raise ValueError(f"{path} was made by another version of train.py ({e})") from e


@dataclass
class Rollout:
    """What happened. All [R, T]; what concerns the choice of the token at place t stands at place t.

    left: the place from whose hidden state this place's token was chosen (its left neighbour, but for branches).
    ids, is_think, is_text (neither: idle), slot (text tokens before this place, minus 1), gated (was thinking a free
    choice here?), given (was this text there before the rollout?).
    h [R, T, C]: the hidden state *at* the place (see `left` for what is chosen from it).
    text [R, P + S]: the text closed up; place [R, P + S]: where each text token stands.
    """
    ids: Tensor
    is_think: Tensor
    is_text: Tensor
    slot: Tensor
    gated: Tensor
    given: Tensor
    h: Tensor
    text: Tensor
    place: Tensor
    left: Tensor
    P: int  # the last field: `rows` and train.gather_rollout leave it as it is

    def rows(self, start: int, stop: int) -> "Rollout":
        """Some of the rows, for a gradient pass in pieces."""
        return Rollout(*(getattr(self, f.name)[start:stop] for f in fields(self)[:-1]), self.P)

    def new_slot(self) -> Tensor:  # -> [R, T - P]
        """Which of the S new text tokens' slots each new place belongs to, from 0."""
        return (self.slot[:, self.P:] - (self.P - 1)).clamp(0, self.text.shape[1] - self.P - 1)

    def kept(self) -> list[list[int]]:
        """Each row's ids as a person reads them, without idle places."""
        return [row[real].tolist() for row, real in zip(self.ids, self.is_text | self.is_think)]


def visible(is_think: Tensor, window: int) -> Tensor | None:  # [R, T] bool -> [R, 1, T, T] bool, or None for causal
    """Who sees whom: the last `window` tokens and the last thought. The one rule of prefill, decode and gradient.

    With a window the state of a long story fits through the last thought only: while thoughts are learnt they
    have to be needed, or no two samples differ in reward and there is nothing to learn from.
    """
    if not window:
        return None
    i = torch.arange(is_think.shape[1], device=is_think.device)
    last = torch.where(is_think, i, -1).cummax(1).values  # [R, T]: the last thought up to here, -1 for none
    back = i[:, None] - i[None, :]  # [T, T]: how far query i looks back to key j
    return (((back >= 0) & (back < window)) | (i == last.unsqueeze(-1))).unsqueeze(1)


def visible_text(ids: Tensor, window: int) -> Tensor | None:
    """`visible` where nobody has thought yet."""
    return visible(torch.zeros_like(ids, dtype=torch.bool), window)


def explicit(mask: Tensor | None, T: int, device) -> Tensor:  # -> [R or 1, 1, T, T]
    """`visible`'s mask, causal written out: a slice of it meets keys from a cache, where torch's is_causal can't know."""
    return torch.ones(1, 1, T, T, dtype=torch.bool, device=device).tril() if mask is None else mask


def inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:  # [R, n] >= 0, [R] in [0, 1) -> [R]
    """One exact draw a row from unnormalised weights with one uniform a row.

    Two levels: first a block of 256, then a place in it, so that the second cumulative sum runs over one block.
    On CPU torch.multinomial takes 28 ms for [16, 52305] and this takes under 3.
    """
    R, n = weights.shape
    blocks = torch.nn.functional.pad(weights, (0, -n % 256)).view(R, (n + 255) // 256, 256)
    sums = blocks.sum(-1)  # [R, blocks]
    ends = sums.cumsum(-1)
    target = u.unsqueeze(-1) * ends[:, -1:]  # [R, 1]
    # argmax of a cumulative sum is the first place that reaches the end: rounding never lands on a weight of 0
    b = torch.minimum((ends <= target).sum(-1), ends.argmax(-1)).unsqueeze(-1)  # [R, 1]
    inner = blocks.gather(1, b.unsqueeze(-1).expand(-1, 1, 256)).squeeze(1).cumsum(-1)  # [R, 256]
    # rounding can put it a hair below 0, and then row 0 of the block would come even with weight 0
    rest = (target - (ends.gather(1, b) - sums.gather(1, b))).clamp(min=0)
    j = torch.minimum((inner <= rest).sum(-1), inner.argmax(-1))
    return b.squeeze(-1) * 256 + j


def action_logp(logits: Tensor, V: int, ids: Tensor, gated: Tensor, given: Tensor) -> Tensor:
    # [..., V + N], V, [...] x 3 -> [...]
    """log-prob of what was done, in four cases.

    free thought:  log p_think + log g(z)          forced thought: log g(z)
    own text:      log(1 - p_think) + log p_text   ... without the first term where it could not have thought
    given text:    log(1 - p_think)                ... and 0 where it could not have thought: nothing was chosen
    """
    is_think = ids >= V  # `rollout_loss` hands over one group alone where no gate was open
    groups = [group.logsumexp(-1) for group in (logits[..., :V], logits[..., V:]) if group.shape[-1]]
    speak, think = groups if len(groups) == 2 else groups * 2
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - torch.where(is_think, think, speak)
    logp = torch.where(given, 0.0, chosen)
    if len(groups) == 2:
        gap = think - speak
        logp = logp + torch.where(gated, torch.nn.functional.logsigmoid(torch.where(is_think, gap, -gap)), 0.0)
    return logp


def choose(text_logits: Tensor, think_logits: Tensor | None, who: Tensor | slice, may: Tensor, free: bool, u: Tensor,
           temperature: float, think_temperature: float, top_k: int = 0) -> tuple[Tensor, Tensor]:
    # [R, V], [len(who), N] or None, rows that think_logits belongs to, [R], bool, [R, 2] -> [R] ids, [R] is_think
    """Think or speak, then which. `may`: the rows whose slot is open; free: their gate decides, else they must.

    Temperature 0 is the likeliest choice level by level: the joint argmax would hardly ever think, since p_think
    is spread over N rows. Both groups are drawn from and one is taken, which costs less than masking with -inf.
    """
    V = text_logits.shape[1]
    speak = text_logits.logsumexp(-1) if free and think_logits is not None else None
    if top_k:  # a sampling aid for people, of text alone: how readily it thinks stays as it is
        text_logits = text_logits.masked_fill(text_logits < text_logits.topk(min(top_k, V)).values[:, -1:], -torch.inf)
    ids = draw(text_logits, u[:, 1], temperature)
    if think_logits is None:
        return ids, torch.zeros_like(may)
    is_think = may
    if free:
        gap = think_logits.logsumexp(-1) - speak
        is_think = may & opens(gap, u[:, 0], think_temperature)
    thought = ids.clone()
    thought[who] = V + draw(think_logits, u[who, 1], think_temperature)
    return torch.where(is_think, thought, ids), is_think


def opens(gap: Tensor, u: Tensor, temperature: float) -> Tensor:  # [R] log(p_think / p_speak), [R] -> [R] bool
    """The gate: think with probability p_think; temperature 0: where that is over one half."""
    return gap > 0 if temperature == 0 else u < torch.sigmoid(gap)


def draw(logits: Tensor, u: Tensor, temperature: float) -> Tensor:  # [R, n], [R] -> [R]
    """One id a row from softmax(logits / temperature); temperature 0: the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits if temperature == 1 else logits / temperature
    return inverse_cdf((logits - logits.amax(-1, keepdim=True)).exp_(), u)


def read_prompt(model: GPT, prompt: Tensor, T: int, window: int, offset: int,
                siblings: int) -> tuple[Tensor, list[Tensor]]:
    # [R, P] -> [R, P, C], cache of T places
    """One forward over the prompts, which hold no thoughts yet; siblings share theirs."""
    R, P = prompt.shape
    prompt, places = prompt[::siblings], torch.arange(P, device=prompt.device)
    cache, first = model.new_cache(R, T), model.new_cache(R // siblings, P)
    mask = explicit(visible_text(prompt, window), P, prompt.device)
    h = model(prompt, places + offset, mask, first, places)
    for own, shared in zip(cache, first):
        own[:, :, :, :P] = shared.repeat_interleave(siblings, 1)
    return h.repeat_interleave(siblings, 0), cache


@torch.no_grad()
def rollout(model: GPT, text: Tensor, P: int, S: int, rules: Rules, u: Tensor, temperature: float = 1.0,
            think_temperature: float | None = None, top_k: int = 0, offset: int = 0, siblings: int = 1,
            edit: Callable[[int, Tensor], Tensor] | None = None) -> Rollout:
    """Sample R rows of P + S text tokens and at most M thoughts each.

    text [R, given]: the given text, P <= given <= P + S; the prompt, text[:, :P], holds no thoughts.
    u [T - P, R, 2]: uniforms, drawn by the caller, so that a row's luck is its own and a run repeats to the bit; the first
    of each pair decides whether to think, the second which id. (Thoughts that do not persist: [K, R * S, 2] over a given
    text, [S * (K + 1), R, 2] over an own one.)
    offset: the position of the first token. siblings: so many neighbouring rows share their prompt, and its forward.
    edit(place, ids [R]) -> ids [R]: what thoughts are overwritten by once they were sampled, for interventions (branches:
    places [S], ids [R, S]). Raises ValueError past the model's context.
    """
    given = text.shape[1]
    M = rules.budget if rules.think != "never" and len(model.think) else 0
    if offset + P + S + M > model.config.n_ctx:
        raise ValueError(f"{P} prompt + {S} new text tokens + {M} thoughts do not fit the context of {model.config.n_ctx}")
    think_temperature = temperature if think_temperature is None else think_temperature
    if not rules.persist and P < given < P + S:
        raise ValueError("thoughts that do not persist: the text is all given, or the prompt alone")
    with packed(model, len(text), S):
        if not rules.persist and given == P + S:
            return branches(model, text, P, min(M, rules.max_thoughts), rules, u, think_temperature, offset, siblings, edit)
        if not rules.persist:
            return speak_by_branches(model, text, P, S, M, rules, u, temperature, think_temperature, top_k, edit)
        if rules.think != "free" and given == P + S:
            return rollout_planned(model, text, P, M, rules, u, think_temperature, offset, siblings, edit)
        return rollout_stepwise(model, text, P, S, M, rules, u, temperature, think_temperature, top_k, offset, siblings, edit)


def rollout_stepwise(model: GPT, text: Tensor, P: int, S: int, M: int, rules: Rules, u: Tensor, temperature: float,
                     think_temperature: float, top_k: int, offset: int, siblings: int,
                     edit: Callable[[int, Tensor], Tensor] | None) -> Rollout:
    """One place at a time, whatever is open: text of its own, or when to think."""
    (R, given), dev, T, free = text.shape, text.device, P + S + M, rules.think == "free"
    table, places = rules.table(model), torch.arange(T, device=dev)
    ids = torch.zeros(R, T, dtype=torch.long, device=dev)
    ids[:, :P] = text[:, :P]
    is_think, is_text, gated = (torch.zeros(R, T, dtype=torch.bool, device=dev) for _ in range(3))
    is_text[:, :P] = True
    n_text, k, used = (torch.full((R,), v, device=dev) for v in (P, 0, 0))
    last_text, last_thought = text[:, P - 1], torch.full((R, 1), -1, device=dev)
    h, cache = read_prompt(model, text[:, :P], T, rules.window, offset, siblings)
    hs = [h]
    for t in range(P, T):
        done = n_text >= P + S
        may = table[last_text] & (k < rules.max_thoughts) & (used < M) & ~done
        # forced thinking on a CPU, where looking costs nothing: only rows that are about to think get the N logits
        # (on cups one in five); elsewhere all rows get them, so that shapes stay and nobody waits for the GPU
        who = may.nonzero().squeeze(1) if not free and dev.type == "cpu" else slice(None)
        chosen, thinks = choose(model.text_logits(h[:, -1]), model.think_logits(h[who, -1]) if M else None, who, may, free,
                                u[t - P], temperature, think_temperature, top_k)
        gated[:, t] = may & free
        speaks_data = ~thinks & (n_text < given)
        token = torch.where(speaks_data, text.gather(1, n_text.clamp(max=given - 1).unsqueeze(1)).squeeze(1), chosen)
        if edit is not None:
            token = torch.where(thinks, edit(t, token), token)
        speaks = ~thinks & ~done
        ids[:, t], is_think[:, t], is_text[:, t] = token.masked_fill(done, 0), thinks & ~done, speaks
        n_text, used, k = n_text + speaks, used + thinks, torch.where(thinks, k + 1, 0)
        last_text = torch.where(speaks, token, last_text)
        last_thought = torch.where(thinks.unsqueeze(1), t, last_thought)
        if t + 1 < T:
            see = places <= t
            if rules.window:
                see = (see & (t - places < rules.window)) | (places == last_thought)  # [R, T]
            h = model(ids[:, t:t + 1], places[t:t + 1] + offset, see.view(-1, 1, 1, T), cache, places[t:t + 1],
                      h[:, -1:] if rules.continuous else None)
            hs.append(h)
    hs.append(torch.zeros_like(h[:, -1:]))  # nothing follows the last place, so nobody asked for its state
    place = is_text.float().argsort(dim=1, descending=True, stable=True)[:, :P + S]  # text first, in order
    slot = is_text.cumsum(1) - is_text.long() - 1
    return Rollout(ids, is_think, is_text, slot, gated, is_text & (slot + 1 < given),
                   torch.cat(hs, 1), ids.gather(1, place), place, (places - 1).clamp(min=0).expand(R, T), P)


def rollout_planned(model: GPT, text: Tensor, P: int, M: int, rules: Rules, u: Tensor, think_temperature: float, offset: int,
                    siblings: int, edit: Callable[[int, Tensor], Tensor] | None) -> Rollout:
    """`rollout` where nothing but the ids of thoughts is open: the text is all given, and thinking is forced (or never).

    Where each token stands is known before the first one is sampled, so what lies between two places with thoughts
    is one forward instead of one a token. On cups a rollout of 128 rows takes 10 ms instead of 20, of ten moves 31, not 54.
    """
    (R, L), dev = text.shape, text.device
    T, V, place = L + M, model.config.vocab_size, torch.arange(L, device=dev)
    open_slot = rules.table(model)[text] & (place >= P - 1) & (place < L - 1)  # none in the prompt, none after the end
    n = (open_slot * rules.max_thoughts).cumsum(1).clamp(max=M)  # [R, L]: thoughts up to the end of this token's slot
    place = place + torch.nn.functional.pad(n[:, :-1], (1, 0))
    ids = torch.zeros(R, T, dtype=torch.long, device=dev).scatter(1, place, text)
    is_text = torch.zeros(R, T, dtype=torch.bool, device=dev).scatter(1, place, True)
    places = torch.arange(T, device=dev)
    is_think = ~is_text & (places < L + n[:, -1:])
    mask = explicit(visible(is_think, rules.window), T, dev)
    h, cache = read_prompt(model, text[:, :P], T, rules.window, offset, siblings)
    hs, start = [h], P
    for t in [*is_think.any(0).nonzero().squeeze(1).tolist(), T - 1]:
        if t > start:
            fed = h[:, -1:].expand(-1, t - start, -1) if rules.continuous else None  # a thought stands at `start` alone
            h = model(ids[:, start:t], places[start:t] + offset, mask[:, :, start:t], cache, places[start:t], fed)
            hs.append(h)
        if t < T - 1:  # no thought stands at the last place, and nobody asks for its state
            thought = V + draw(model.think_logits(h[:, -1]), u[t - P, :, 1], think_temperature)
            thought = thought if edit is None else edit(t, torch.where(is_think[:, t], thought, ids[:, t]))
            ids[:, t] = torch.where(is_think[:, t], thought, ids[:, t])
        start = t
    hs.append(torch.zeros_like(h[:, -1:]))
    return Rollout(ids, is_think, is_text, is_text.cumsum(1) - is_text.long() - 1, torch.zeros_like(is_text),
                   is_text.clone(), torch.cat(hs, 1), text, place, (places - 1).clamp(min=0).expand(R, T), P)


@torch.no_grad()
def naive_rollout(model: GPT, text: Tensor, P: int, S: int, rules: Rules, u: Tensor,
                  temperature: float = 1.0) -> list[list[int]]:
    """The same rows one by one, each step a forward over everything so far: what `rollout` must be equal to."""
    V, table, out = model.config.vocab_size, rules.table(model), []
    for r, given in enumerate(text.tolist()):
        ids, spoken, k, used = given[:P], P, 0, 0
        while spoken < P + S:
            now = torch.tensor([ids], device=text.device)
            h = model(now, mask=visible(now >= V, rules.window))[:, -1]
            last_text = [i for i in ids if i < V][-1]
            may = table[last_text].view(1) & (rules.think != "never" and k < rules.max_thoughts and used < rules.budget)
            i = choose(model.text_logits(h), model.think_logits(h), slice(None), may, rules.think == "free",
                       u[len(ids) - P, r:r + 1], temperature, temperature)[0].item()
            thinks = i >= V
            ids.append(i if thinks or spoken >= len(given) else given[spoken])
            spoken, used, k = spoken + (not thinks), used + thinks, k + 1 if thinks else 0
        out.append(ids)
    return out


def branch_layout(P: int, S: int, K: int, rules: Rules, device) -> tuple[Tensor, Tensor]:  # -> [T] positions, [1, 1, T, T]
    """Where everything stands in a packed row of `next_token`, T = P + S + K * S, and who sees whom. P = 2, S = 2, K = 2:

    (rows look at columns; rows a and d left out)
                     a  b  c  d | z1 z1' | z2 z2'        z1 z2: the branch after b, which predicts c
        text   b     x  x       |        |               z1' z2': the branch after c, which predicts d
        text   c     x  x  x    |        |
        z1  (after b) x x       | x      |               thoughts stand step by step, so that step k writes one block
        z1' (after c) x x  x    |    x   |
        z2            x x       | x      | x
        z2'           x x  x    |    x   |    x

    A branch goes on counting positions where its prefix ends, as if nothing else had been there.

    With `reread` a branch reads its prefix once more while it thinks. The last thought stands at the prefix's end, the one
    before it so many tokens earlier, and so on: each has the position and the view of a thought that were written there in
    a `stream`. With a window, too, what it reads reaches the next place through one thought.
    """
    s, k = torch.arange(S, device=device).repeat(K), torch.arange(K, device=device).repeat_interleave(S)  # [K * S]
    text = torch.arange(P + S, device=device)
    step, ends = torch.cat([text.new_zeros(P + S), k + 1]), torch.cat([text, P - 1 + s])  # [T]: 0 for text; prefix's end
    branch = torch.cat([text.new_full((P + S,), -1), s])
    is_text, own = step == 0, (branch[:, None] == branch) & (step[:, None] >= step)
    positions = ends + step
    if rules.reread:
        ends = torch.where(is_text, ends, (ends - rules.reread * (K - step)).clamp(min=0))
        positions, own = ends + ~is_text, own & (step[:, None] == step)
    back = positions[:, None] - text  # how far each query looks back to each text token
    mask = own & ~is_text  # [T, T]: the own branch up to oneself (rereading: oneself alone); and of the text:
    mask[:, :P + S] = (text <= ends[:, None]) & ((back < rules.window) | torch.tensor(rules.window == 0, device=device))
    return positions, mask.view(1, 1, *mask.shape)


def layout(ro: Rollout, rules: Rules, offset: int = 0) -> tuple[Tensor, Tensor | None]:  # -> [T], [R or 1, 1, T, T]
    """Positions and mask with which one forward over a rollout's ids gives the states that the sampler saw."""
    if rules.persist:
        return torch.arange(ro.ids.shape[1], device=ro.ids.device) + offset, visible(ro.is_think, rules.window)
    S = ro.text.shape[1] - ro.P
    positions, mask = branch_layout(ro.P, S, (ro.ids.shape[1] - ro.P) // S - 1, rules, ro.ids.device)
    return positions + offset, mask


def states_at(h: Tensor, places: Tensor) -> Tensor:  # [R, T, C], [R, n] -> [R, n, C]
    """The states at some places of each row. At `Rollout.left`: those from which the tokens of all places were chosen, and what
    is fed back where they are continuous thoughts."""
    return h.gather(1, places.unsqueeze(-1).expand(-1, -1, h.shape[-1]))


def states(model: GPT, ro: Rollout, rules: Rules, offset: int = 0, told: Tensor | None = None) -> Tensor:  # -> [R, T, C]
    """The hidden states of a rollout, with gradient: one forward over its ids.

    Continuous thoughts are no ids, and each needs the state before it: one forward for each place with thoughts (for each
    step of all branches), over a cache that autograd follows back through every thought. told [R, T, C]: what is fed back
    where thoughts stand, instead of own states; as it is all there, one forward is enough again.
    """
    positions, mask = layout(ro, rules, offset)
    if not rules.continuous or told is not None:
        return model(ro.ids, positions, mask, fed=told)
    R, T = ro.ids.shape
    mask = explicit(mask, T, ro.ids.device)
    L, S = ro.text.shape[1], ro.text.shape[1] - ro.P
    cuts = ro.is_think.any(0).nonzero().squeeze(1).tolist() if rules.persist else list(range(L, T, S))
    cache, hs = [list(layer) for layer in model.new_cache(R, 0)], []
    for start, stop in zip([0, *cuts], [*cuts, T]):
        fed = None
        if start:
            left = ro.left[:, start:stop].clamp(max=start - 1)  # (what is not a thought takes nothing from here)
            fed = states_at(torch.cat(hs, 1), left)
        hs.append(model(ro.ids[:, start:stop], positions[start:stop], mask[:, :, start:stop, :stop], cache, None, fed))
    return torch.cat(hs, 1)


@torch.no_grad()
def branches(model: GPT, text: Tensor, P: int, K: int, rules: Rules, u: Tensor, think_temperature: float, offset: int,
             siblings: int, edit: Callable[[int, Tensor], Tensor] | None) -> Rollout:
    """`next_token`: after each of S text tokens a branch of at most K thoughts, which predicts the next token and is gone.

    Exactly what S separate rollouts would do, in K forwards of S tokens over one cache of the text instead of S times K
    of one: text [R, P + S] all given, u [K, R * S, 2]. A free branch ends when it would rather speak.
    """
    (R, L), dev, V = text.shape, text.device, model.config.vocab_size
    S, free, places = L - P, rules.think == "free", torch.arange(L + K * (L - P), device=text.device)
    positions, mask = branch_layout(P, S, K, rules, dev)
    h, cache = read_prompt(model, text, len(places), rules.window, offset, siblings)
    ids = torch.nn.functional.pad(text, (0, K * S))
    is_think, gated = (torch.zeros(R, len(places), dtype=torch.bool, device=dev) for _ in range(2))
    left = (places - S).expand(R, -1).clone()  # a later thought is chosen from the thought before it, one block back
    left[:, :L] = places[:L].sub(1).clamp(min=0)  # text, so far: from the text
    if K:
        left[:, L:L + S] = places[P - 1:L - 1]
    going, hs, now = rules.table(model)[text[:, P - 1:-1]], [h], h[:, P - 1:-1].flatten(0, 1)
    for k in range(K):
        at = places[L + k * S:L + (k + 1) * S]
        # as in `rollout`: on a CPU only the branches that must think get the N logits (on cups one in eight)
        who = going.flatten().nonzero().squeeze(1) if not free and dev.type == "cpu" else slice(None)
        think_logits = model.think_logits(now[who])
        thinks = going
        if free:
            gap = torch.cat([gate_logit(model.logits(piece), V) for piece in now.split(512)])  # at GPT-2's size 100 MB each
            thinks = going & opens(gap, u[k, :, 0], think_temperature).view(R, S)
            gated[:, at], gated[:, P:L] = thinks, gated[:, P:L] | (going & ~thinks)  # to speak is a choice as well
        thought = torch.full_like(ids[:, at], V)
        # rereading, the first thought only goes back: it is the likeliest one, as luck in it would be noise to all that follow
        thought.view(-1)[who] += draw(think_logits, u[k, who, 1], 0.0 if rules.reread and not k else think_temperature)
        thought = thought if edit is None else edit(at, thought)
        ids[:, at], is_think[:, at] = thought.masked_fill(~thinks, 0), thinks
        left[:, P:L] = torch.where(thinks, at, left[:, P:L])
        hs.append(model(ids[:, at], positions[at] + offset, mask[:, :, at], cache, at,
                        now.view(R, S, -1) if rules.continuous else None))
        going, now = thinks, hs[-1].flatten(0, 1)
    is_text, slot = (places < L).expand(R, -1), torch.cat([places[:L] - 1, places[P - 1:L - 1].repeat(K)])
    return Rollout(ids, is_think, is_text, slot.expand(R, -1), gated, is_text.clone(), torch.cat(hs, 1), text,
                   places[:L].expand(R, -1), left, P)


@torch.no_grad()
def speak_by_branches(model: GPT, text: Tensor, P: int, S: int, M: int, rules: Rules, u: Tensor, temperature: float,
                      think_temperature: float, top_k: int, edit: Callable[[int, Tensor], Tensor] | None) -> Rollout:
    """Own text under `next_token`'s rules: a branch of thoughts, one token, the branch is dropped, and so on. Each token
    reads its prefix anew: this is for samples and evaluation. Of the fields only ids, is_think, is_text, text and place
    are real; thoughts stand where they were."""
    R, K, V = len(text), min(rules.max_thoughts, M), model.config.vocab_size
    T = P + S + K * S
    rows = [[(i, False) for i in row] for row in text[:, :P].tolist()]
    text = text[:, :P]
    for s in range(S):
        luck = u[s * (K + 1):(s + 1) * (K + 1)]  # [K + 1, R, 2]
        prefix = torch.nn.functional.pad(text, (0, 1))  # the token to come stands for nothing yet
        ro = branches(model, prefix, P + s, K, rules, luck, think_temperature, 0, 1, edit)
        h = states_at(ro.h, ro.left[:, P + s, None])[:, 0]
        logits = model.text_logits(h)
        said, _ = choose(logits, None, slice(None), text[:, 0] < 0, False, luck[K], temperature, think_temperature, top_k)
        for r, row in enumerate(rows):
            row += [(i, True) for i in ro.ids[r][ro.is_think[r]].tolist()]
            row.append((said[r].item(), False))
        text = torch.cat([text, said.unsqueeze(1)], 1)
    ids = torch.tensor([[i for i, _ in row] + [0] * (T - len(row)) for row in rows], device=text.device)
    places = torch.arange(T, device=text.device)
    real = places < torch.tensor([len(row) for row in rows], device=text.device).unsqueeze(1)
    is_think = real & (ids >= V)
    is_text = real & ~is_think
    return Rollout(ids, is_think, is_text, is_text.cumsum(1) - 1, is_think & False, is_text & False,
                   text.new_zeros(R, T, 1).float(), text,
                   is_text.float().argsort(dim=1, descending=True, stable=True)[:, :P + S],
                   (places - 1).clamp(min=0).expand(R, T), P)


if __name__ == "__main__":  # a demonstration: two siblings over one text, and who sees whom
    from tokenizer import Tokenizer
    pico = load("pico")
    story = torch.tensor([Tokenizer(pico.text_ids).encode("The ball is under cup B. Moves: AB, left. Where? C.")] * 2)
    pico.grow(64, story, 0.3, torch.Generator().manual_seed(0))
    n, rules = story.shape[1] - 9, Rules("free", max_thoughts=1, budget=4, window=4)
    luck = torch.rand(n + 4, 2, 2, generator=torch.Generator().manual_seed(1))
    both = rollout(pico, story, 9, n, rules, luck, siblings=2)
    for row in both.kept():
        print(Tokenizer(pico.text_ids, 64).show(row, 9, "plain"))
    seen = visible(both.is_think, rules.window)[0, 0]
    print("the first one's mask; a row looks at columns, z: a thought, seen from anywhere until the next one comes")
    for i in range(8, len(both.kept()[0])):
        print(("z" if both.is_think[0, i] else ".") + " " + "".join("x" if x else " " for x in seen[i]))
