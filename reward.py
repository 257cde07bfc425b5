"""What a rollout is worth, and the loss that follows from it.

    text slot i:   r_i = log p_text(y_i)                                  (the data's next token: stream)
                   r_i = sum_y p_text(y) (log p_teacher(y) - beta log p_text(y))   (-KL: teacher)
    thought in i:  R_i = r_i + gamma r_(i+1) + ...          A_i = R_i - mean over the other siblings, slot by slot
                                                            (train.py divides it by its std + 0.1)
    loss        = - sum A log pi(thought, gate)  - sum r_i  - entropy bonus

`p_text` is always the softmax over text rows alone. With the joint softmax every data token would push
p_think to 0, and thinking mass would be paid or fined by accident.

Left out on purpose: PPO's ratio and clip (one step per rollout, so the ratio is 1), a value network
(siblings are a better baseline). Knows model.py and rollout.py.

Letters: B contexts, G siblings, R = B * G rows, S text slots, T places, V text rows, N thinking rows, C width.
"""
from collections.abc import Callable

import torch
from torch import Tensor

from model import GPT, unembed
from rollout import Rollout, Rules, action_logp, layout, states_at

FLOOR = 0.02  # share of the uniform in the teacher: else one token that it rules out makes every advantage an outlier
ENTROPY_WEIGHT, ENTROPY_GAIN = 0.05, 0.7  # price of a nat at the target, and how steeply it rises below
PIECE = 512  # rows of logits that exist at once ...
FLOATS = 11 * 2 ** 20  # ... and at most 44 MiB of them: 220 rows of GPT-2's 50,257 + 2,048, enough for fast products
BLOCK = 5 * 2 ** 18  # on a CPU their gradient is formed 5 MiB at a time, which its caches hold


def floored(teacher_logits: Tensor) -> Tensor:  # [..., V] -> [..., V]
    """log(.98 p + .02 / V): the teacher's log-probs, none of them below log(.02 / V)."""
    return torch.log((1 - FLOOR) * teacher_logits.softmax(-1) + FLOOR / teacher_logits.shape[-1])


@torch.no_grad()
def teacher_states(teacher: GPT, ro: Rollout, siblings: int = 1) -> Tensor:  # -> [R, S, C of the teacher]
    """The teacher's hidden states that predict the S new text tokens. It sees the text closed up from position 0:
    where thoughts stood, and how many, leaves no trace. siblings: so many neighbours have one text, which is read once."""
    return teacher(ro.text[::siblings, :-1])[:, ro.P - 1:].repeat_interleave(siblings, 0)


def speaking_states(h: Tensor, ro: Rollout) -> Tensor:  # [R, T, C] -> [R, S, C]
    """The student's hidden states from which the S new text tokens were spoken."""
    return states_at(h, ro.left.gather(1, ro.place[:, ro.P:]))


def slot_value(text_logits: Tensor, y: Tensor, log_q: Tensor | None, beta: float, sampled: bool) -> Tensor:
    # [n, V], [n], [n, V] or None -> [n]
    """r of one text slot, by the data (log_q None) or by the teacher; sampled: at y, instead of the expectation."""
    logp = text_logits.log_softmax(-1)
    if log_q is None:
        return logp.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    value = log_q - beta * logp
    return value.gather(-1, y.unsqueeze(-1)).squeeze(-1) if sampled else (logp.exp() * value).sum(-1)


def piece(columns: int) -> int:
    """Rows of so many logits that exist at once."""
    return max(1, min(PIECE, FLOATS // max(columns, 1)))


@torch.no_grad()
def slot_rewards(model: GPT, ro: Rollout, teacher: GPT | None, t_states: Tensor | None, pays: Tensor | None,
                 beta: float = 1.0, sampled: bool = False) -> tuple[Tensor, Tensor]:
    """-> r [R, S] and whether the student's likeliest text token is the teacher's or the data's [R, S].

    pays [R, S]: the slots that pay at all (cups: the answers); None: all.
    """
    h, y = speaking_states(ro.h, ro).flatten(0, 1), ro.text[:, ro.P:].flatten()
    values, hits, size = [], [], piece(model.config.vocab_size)
    for i in range(0, len(h), size):
        text_logits = model.text_logits(h[i:i + size])
        log_q, best = None, y[i:i + size]
        if teacher is not None:
            log_q = floored(teacher.text_logits(t_states.flatten(0, 1)[i:i + size]))
            best = log_q.argmax(-1)
        values.append(slot_value(text_logits, y[i:i + size], log_q, beta, sampled))
        hits.append(text_logits.argmax(-1) == best)
    r, hit = torch.cat(values).view(ro.text.shape[0], -1), torch.cat(hits).view(ro.text.shape[0], -1)
    return (r if pays is None else r * pays), hit


def logp_of_thoughts(logits: Callable[[Tensor], Tensor], h: Tensor, ids: Tensor, ro: Rollout, V: int) -> Tensor:
    # [n, C] -> [n, V], [R, T, C], [R, T] -> [R, T - P]
    """log-prob of ids where thoughts stand, by the states from which those were chosen; 0 where none stands."""
    where = ro.is_think[:, ro.P:]
    h, ids = states_at(h, ro.left[:, ro.P:])[where], ids[:, ro.P:][where].unsqueeze(-1)
    logp = torch.cat([logits(x).log_softmax(-1).gather(-1, y) for x, y in zip(h.split(piece(V)), ids.split(piece(V)))])
    return logp.new_zeros(where.shape).masked_scatter(where, logp)


@torch.no_grad()
def as_text(base: GPT, ro: Rollout, rules: Rules, offset: int = 0) -> Tensor:  # -> [R, T - P]
    """log p_text of each thought, by a base without thinking rows that reads thought i as word i, and predicts it as that. It
    sees what the thinker saw: the same places, the same window."""
    V = base.config.vocab_size
    words = ro.ids % V  # (no more thinking rows than words)
    return logp_of_thoughts(base.text_logits, base(words, *layout(ro, rules, offset)), words, ro, V)


@torch.no_grad()
def drift(model: GPT, base: GPT, ro: Rollout, rules: Rules, offset: int = 0) -> Tensor:  # -> [R, T - P]
    """log g(z) - log p_base(z) of each thought z: in the mean over z, the KL of thoughts from what the base would say there.
    As a price in the return (arXiv 1909.08593) it has that KL's gradient, through later thoughts as well: the term that is
    missing, the mean of grad log g, is 0. Of g alone: a base that can't think has no opinion on when to."""
    V = model.config.vocab_size
    return logp_of_thoughts(model.think_logits, ro.h, ro.ids - V, ro, V) - as_text(base, ro, rules, offset)


def returns_to_go(r: Tensor, gamma: float) -> Tensor:  # [R, S] -> [R, S]
    """R_i = r_i + gamma R_(i+1). gamma counts text tokens: thinking longer does not discount what follows."""
    out, running = torch.empty_like(r), torch.zeros_like(r[:, 0])
    for i in reversed(range(r.shape[1])):
        running = r[:, i] + gamma * running
        out[:, i] = running
    return out


def advantage(returns: Tensor, G: int, baseline: str = "loo") -> Tensor:  # [B * G, S] -> [B * G, S]
    """Return minus baseline. loo: the mean of the other siblings at the same slot, which is unbiased as no
    sibling stands in its own baseline (RLOO, arXiv 2402.14740). batch: one mean over all contexts, which pays a
    thought for standing before easy text; none: the return itself. Both are here for comparison. Raises ValueError for loo
    with G < 2."""
    grouped = returns.view(-1, G, returns.shape[1])
    if baseline == "loo":
        if G < 2:
            raise ValueError("leave-one-out needs at least 2 siblings (--samples 2)")
        grouped = (grouped - grouped.mean(1, keepdim=True)) * (G / (G - 1))
    elif baseline == "batch":
        grouped = grouped - grouped.mean()
    return grouped.reshape(returns.shape)


def sibling_spread(returns: Tensor, G: int) -> Tensor:  # [B * G, S] -> []
    """Mean standard deviation between siblings at a slot. 0 means that no thought made a difference: dead."""
    return returns.view(-1, G, returns.shape[1]).std(1).mean()


class _Pieces(torch.autograd.Function):
    """sum of loss(logits) over rows of h, with the [n, V + N] logits made and forgotten piece by piece.

    Gradients are formed in the forward (checkpointing would do the unembedding twice): each piece's logits are written into
    one buffer, their gradient over them, and matrix products in place take it on to h and to the two weights. The gradient
    is formed in blocks that stay in the cache. At [1024, 52305], one thread of a Xeon: 1.71 s and 261 MiB above the inputs,
    156 of them the gradient of wte; with new tensors for each step of each piece 2.34 and 372; by F.cross_entropy 1.74 and
    637 (README: Speed)."""

    @staticmethod
    def forward(ctx, h, wte, think, offset, loss, columns):  # [n, C], [V, C], [N, C], [], callable, tensors [n, ...]
        V, total, stats = wte.shape[0], 0.0, 0.0
        g_h, g_wte, g_think, g_offset = ctx.gradients = [torch.zeros_like(x) for x in (h, wte, think, offset)]
        size = min(piece(V + len(think)), len(h))
        # a GPU would wait for many small launches: there a block is a piece
        block = max(1, BLOCK // (V + len(think))) if h.device.type == "cpu" else size
        buffer = h.new_empty(size, V + len(think), dtype=torch.promote_types(h.dtype, torch.float32))
        for i in range(0, len(h), size):
            x = h[i:i + size]
            rows = buffer[:len(x)]  # logits first; then, block by block, their gradient
            unembed(x, wte, rows[:, :V])
            rows[:, V:] = (x @ think.T).float() + offset
            for j in range(0, len(x), block):
                logits = rows[j:j + block].detach().requires_grad_()
                with torch.enable_grad():
                    value, stat = loss(logits, V, *(c[i + j:i + j + len(logits)] for c in columns))
                rows[j:j + block] = torch.autograd.grad(value, logits)[0]
                total, stats = total + value.detach(), stats + stat
            g = rows.to(h.dtype)
            g_h[i:i + size] = g[:, :V] @ wte + g[:, V:] @ think
            g_wte.addmm_(g[:, :V].T, x)
            g_think.addmm_(g[:, V:].T, x)
            g_offset += g[:, V:].sum()
        return total, stats

    @staticmethod
    def backward(ctx, g, _):
        # scaled in place and handed over, since 154 MB for a copy of g_wte would be most of this loss's memory
        gradients, ctx.gradients = ctx.gradients, None
        return *(x.mul_(g) for x in gradients), None, None


def rollout_loss(model: GPT, h: Tensor, ro: Rollout, adv: Tensor, weight: Tensor, scale: dict[str, float],
                 teacher: GPT | None = None, t_states: Tensor | None = None, beta: float = 1.0,
                 sampled: bool = False) -> tuple[Tensor, float]:
    """The loss of rows whose hidden states h [R, T, C] were computed with gradient, and the sum of H(g) over thoughts.

    adv [R, S]: advantage of what was chosen in a slot. weight [R, S]: of each text slot's own r, whose gradient needs
    no sampling. scale: "policy" and "entropy", what those sums are multiplied by, constants of the batch (never a
    row's own number of thoughts); "target": the entropy, in nats, that `entropy_price` pulls each choice up to.
    """
    V, P = model.config.vocab_size, ro.P
    chosen = ro.ids[:, P:]  # [R, T - P]: what was chosen, from these states:
    left = states_at(h, ro.left[:, P:])
    is_think, is_text, gated = ro.is_think[:, P:], ro.is_text[:, P:], ro.gated[:, P:]
    slot = ro.new_slot()
    exact = not (sampled and teacher is not None)  # the text's own term; else text is a choice like any other
    given = ro.given[:, P:] | (exact & is_text)

    def loss(logits, V, ids, a, gated, given, weight, is_think, *teacher_h):
        value, entropy = -scale["policy"] * (a * action_logp(logits, V, ids, gated, given)).sum(), logits.new_zeros(())
        if V and exact:
            log_q = floored(teacher.text_logits(teacher_h[0])) if teacher is not None else None
            value = value - (weight * slot_value(logits[:, :V], ids.clamp(max=V - 1), log_q, beta, False)).sum()
        if logits.shape[1] > V:
            log_g = logits[:, V:].log_softmax(-1)
            H = -(log_g.exp() * log_g).sum(-1) * is_think
            value = value - scale["entropy"] * (entropy_price(H.detach(), scale["target"]) * H).sum()
            entropy = H.detach().sum()
        return value, entropy

    columns = [chosen, adv.gather(1, slot), gated, given, weight.gather(1, slot) * is_text, is_think]
    if teacher is not None and exact:
        columns.append(t_states.gather(1, slot.unsqueeze(-1).expand(-1, -1, t_states.shape[-1])))
    # each place gets the logits that play a part in it: V at text, N at thoughts that were forced, both where the gate
    # was open. On cups that is 2 of 3 places without the N
    text, think = model.wte.weight, model.think
    total, entropy = h.new_zeros(()), h.new_zeros(())
    groups = ((is_think & ~gated, text[:0].detach(), think), (gated, text, think), (is_text & ~gated, text, think[:0]))
    for where, wte, rows in groups:  # (a slice of `text` with a gradient would cost another 154 MB of zeros)
        if where.any():
            ids, *others = (c[where] for c in columns)
            value, stat = _Pieces.apply(left[where], wte, rows, model.think_offset, loss, [ids - (V - len(wte)), *others])
            total, entropy = total + value, entropy + stat
    return total, entropy.item()


def imitation(h: Tensor, ro: Rollout, lent: Tensor) -> Tensor:  # [R, T, C] x 2 -> []
    """Continuous thoughts learnt as another model's: h, this model's states; lent, what that one fed back (its states at
    ro.left). Squared distance of what would be fed back, a mean over C, summed over thoughts."""
    return (states_at(h, ro.left) - lent)[ro.is_think].square().mean(-1).sum()


def entropy_price(H: Tensor, target: float) -> Tensor:  # [n], nats -> [n]
    """What a nat of entropy is worth to one choice: ENTROPY_WEIGHT at the target, exp(ENTROPY_GAIN) times that for
    each nat below it. Each choice has its own price: were only the mean kept at the target, a few choices could
    collapse, which no sample ever leads out of, while others stay broad to make up for it."""
    return (ENTROPY_WEIGHT * torch.exp(ENTROPY_GAIN * (target - H))).clamp(max=1.0)


if __name__ == "__main__":  # a demonstration: what each of four siblings' thoughts would be paid
    r = torch.tensor([[0, -1.1, 0, -0.1], [0, -1.1, 0, -1.2], [0, -0.2, 0, -0.3], [0, -1.1, 0, -1.3]])
    returns = returns_to_go(r, 0.9)
    print("r: two of four text slots are answers, in nats", r, "returns from each slot on, gamma 0.9", returns,
          "minus the mean of the other three: the third sibling's first thought was the one that helped",
          advantage(returns, 4), "an easy text, where all fare alike, pays nothing:",
          advantage(torch.full((4, 1), -0.1), 4).T, sep="\n")
