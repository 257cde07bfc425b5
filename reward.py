"""What a thought is worth, and the loss that follows: the whole formula.

    v_i        what text token y_i, which ends slot i, is worth, in nats:
                 given text   log p_text(y_i)
                 teacher      sum over y of p_text(y) (log q(y) - log p_text(y)), minus the KL to q
    r_i        = pays_i v_i                         its reward; on cups only answers pay
    returns_i  = r_i - cost_i + gamma returns_(i+1)             what is earned from slot i on
    adv_i      = (returns_i - mean of the other siblings' returns_i) / (std + 0.02)
    loss       = - mean of adv log pi(thought, gate)            REINFORCE: what was chosen
                 - weighted sum of v_i                          the text's own gradient
                 - price * H(g)                                 no choice may collapse,
                 - widen * mean of log g(z)                     nor stay where siblings all fail,
                 - 0.3 * sum over z of g(z) (-log mean g(z))    nor all of them together

`p_text` is always the softmax over text rows alone. In the joint softmax each token of the data
would lower the probability of every thought, and thinking would die out.

    python reward.py                             # REINFORCE in fifteen lines, and a bar that moves

Left out on purpose: what PPO has besides (train.py says why). Knows rollout.py, model.py, data.py,
fast.py.

Letters: B contexts, G siblings, R = B G rows, S new text tokens, T places, V text rows,
N thinking rows, C width, n chosen places.
"""
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import command
    command.begin()

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from data import Text
from fast import in_groups, rows_at_once
from model import GPT
from rollout import Rollout, states_at

FLOOR = 0.02  # q is 2 % uniform: one token that the teacher rules out must not outweigh the rest
FLOOR_STD = 0.02  # keeps noise from being scaled up once all siblings agree
LISTEN = 2.0  # 0: text learns from all siblings alike; more: from those that understood it
IN_USE = 0.25  # share of the thinking rows that all thoughts of a batch use together, at least
IN_USE_PRICE = 0.3  # weight of the pull towards rows that are seldom used
# Weight of paying text with a teacher: a KL's gradient can be log(V / 0.02) times a log-prob's
KL_TEXT = 0.2
OTHER_TEXT = 0.2  # weight, in all, of text that does not pay; on cups, all but the answers


def all_rows(x: Tensor) -> Tensor:  # [R / processes, ...] -> [R, ...]
    """The rows of all processes, in order. Without torchrun: x."""
    if not dist.is_initialized():
        return x
    # gloo gathers no bools
    x, bools = (x.to(torch.uint8), True) if x.dtype == torch.bool else (x, False)
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows).bool() if bools else torch.cat(rows)


# Step 3: score

class Score(NamedTuple):
    r: Tensor  # [R, S]: what each new text token earns
    hit: Tensor  # [R, S]: is its likeliest text token the data's, or the teacher's likeliest?
    teacher_h: Tensor | None  # [R, S, C of the teacher]: its states


def floored(teacher_logits: Tensor) -> Tensor:  # [..., V] -> [..., V]
    """log q with q = .98 p_teacher + .02 / V."""
    V = teacher_logits.shape[-1]
    return torch.log((1 - FLOOR) * teacher_logits.softmax(-1) + FLOOR / V)


@torch.no_grad()
def teacher_states(teacher: GPT, ro: Rollout) -> Tensor:  # -> [R, S, C of the teacher]
    """The teacher's states that predict the new text tokens."""
    # the text closed up, from position 0: thoughts leave no trace. Siblings are read once
    h = teacher(ro.text[::ro.siblings, :-1])[:, ro.P - 1:]
    return h.repeat_interleave(ro.siblings, 0)


def speaking_states(h: Tensor, ro: Rollout) -> Tensor:  # [R, T, C] -> [R, S, C]
    """The student's states from which the new text tokens were spoken."""
    return states_at(h, ro.chosen_at.gather(1, ro.place[:, ro.P:]))


def text_value(text_logits: Tensor, y: Tensor, log_q: Tensor | None, sampled: bool) -> Tensor:
    # [n, V], [n], [n, V] or None -> [n]
    """v of n text tokens. log_q None: by the data. sampled: log q of what was said, without the
    expectation over all that could have been said."""
    if log_q is not None and sampled:
        return log_q.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    logp = text_logits.log_softmax(-1)
    if log_q is None:
        return logp.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return (logp.exp() * (log_q - logp)).sum(-1)


@torch.no_grad()
def score(model: GPT, ro: Rollout, pays: Tensor, teacher: GPT | None = None,
          sampled: bool = False) -> Score:
    """r of each new text token, 0 where pays [R, S] is 0. Without a teacher the data judge."""
    teacher_h = teacher_states(teacher, ro) if teacher is not None else None
    h, y = speaking_states(ro.h, ro).flatten(0, 1), ro.text[:, ro.P:].flatten()
    values, hits, size = [], [], rows_at_once(model.config.vocab_size, h.device)
    for i in range(0, len(h), size):
        text_logits, log_q, best = model.text_logits(h[i:i + size]), None, y[i:i + size]
        if teacher is not None:
            log_q = floored(teacher.text_logits(teacher_h.flatten(0, 1)[i:i + size]))
            best = log_q.argmax(-1)
        values.append(text_value(text_logits, y[i:i + size], log_q, sampled))
        hits.append(text_logits.argmax(-1) == best)
    r, hit = torch.cat(values).view(pays.shape), torch.cat(hits).view(pays.shape)
    return Score(r * pays, hit, teacher_h)


# Step 4: compare

class Credit(NamedTuple):
    advantage: Tensor  # [R, S]
    widen: Tensor | None = None  # [R, S], 0 to 1: how far even the best sibling is behind the batch
    returns: Tensor | None = None  # [R, S]
    choices: int = 0  # in the whole batch
    thoughts: int = 0  # in the whole batch

    def rows(self, which) -> "Credit":
        return self._replace(advantage=self.advantage[which],
                             widen=None if self.widen is None else self.widen[which])


def returns_to_go(r: Tensor, gamma: float) -> Tensor:  # [R, S] -> [R, S]
    """R_i = r_i + gamma R_(i+1). gamma counts text tokens: a long thought discounts nothing."""
    out, running = torch.empty_like(r), torch.zeros_like(r[:, 0])
    for i in reversed(range(r.shape[1])):
        running = r[:, i] + gamma * running
        out[:, i] = running
    return out


def minus_baseline(returns: Tensor, G: int, baseline: str = "loo") -> Tensor:
    # [B * G, S] -> [B * G, S]
    """Returns minus what they are compared with.

    loo: the mean of the other siblings at the same slot (RLOO, arXiv 2402.14740). It is unbiased,
    as no sibling stands in its own baseline. Raises ValueError for loo with G < 2.
    """
    if baseline == "batch":  # right on average, but it mostly pays a thought for easy text after it
        return returns - all_rows(returns).mean()
    if baseline == "none":
        return returns
    if G < 2:
        raise ValueError("leave-one-out needs at least 2 siblings (--samples 2)")
    grouped = returns.view(-1, G, returns.shape[1])
    # minus the mean of all, times G / (G - 1), is minus the mean of the others
    return ((grouped - grouped.mean(1, keepdim=True)) * (G / (G - 1))).reshape(returns.shape)


def behind(returns: Tensor, G: int) -> Tensor:  # [B * G, S] -> [B * G, S]
    """How far even the best sibling is behind the batch at this slot, in standard deviations, cut
    to 0..1. Siblings that agree on something wrong differ in nothing: only others tell them so."""
    batch, best = all_rows(returns), returns.view(-1, G, returns.shape[1]).amax(1)
    far = (batch.mean(0) - best) / (batch.std(0, correction=0) + FLOOR_STD)
    return far.clamp(0, 1).repeat_interleave(G, 0)


def less_likely(r: Tensor, level: Tensor, G: int) -> Tensor:  # [R, S], [R] -> [R, S]
    """How much likelier right a task's hardest rows are, on average, than the best sibling here.
    Times that average: at first all fail."""
    here = level == all_rows(level).max()
    right = r.sum(1).exp() * here
    average = all_rows(right).sum() / all_rows(here).sum()
    far = (average - right.view(-1, G).amax(1)).clamp(min=0)
    return (average * far.repeat_interleave(G) * here)[:, None].expand_as(r)


def advantages(r: Tensor, ro: Rollout, text: Text, settings,
               extra: Tensor | None = None) -> Credit:
    """r [R, S] -> A [R, S], divided by its spread over all that was chosen.

    Each thought costs --think_cost. extra [R, T - P]: what new places cost besides.
    Compared and widened: on cups all rows, on a task its hardest, from stage 2 on.
    """
    slot, P = ro.new_slot(), ro.P
    # [R, S]: what the thoughts in each slot cost
    cost = torch.zeros_like(r).scatter_add(1, slot, ro.is_think[:, P:].to(r.dtype))
    cost = cost * settings.think_cost
    cost = cost if extra is None else cost.scatter_add(1, slot, extra)
    returns = returns_to_go(r - cost, settings.gamma)
    A = minus_baseline(returns, settings.samples, settings.baseline)
    # own text is a choice like any other where the reward is a sampled one
    spoken = ro.is_text & ~ro.given & (settings.reward == "sampled")
    chosen = all_rows((ro.is_think | ro.gated | spoken)[:, P:])
    of_choices = all_rows(A.gather(1, slot))[chosen]  # [n]
    if len(of_choices):
        A = A / (of_choices.std(correction=0) + FLOOR_STD)
    wide = None
    if text.stage and text.real is None:
        wide = behind(returns, settings.samples)
    elif text.stage > 1:  # the last thought alone: of many any may have been drawn wrong
        last = (slot * ro.is_think[:, P:]).amax(1, keepdim=True)
        wide = less_likely(r, text.level.amax(1), settings.samples)
        wide = wide * (torch.arange(r.shape[1], device=r.device) == last)
    return Credit(A, wide, returns, len(of_choices), int(all_rows(ro.is_think).sum()))


def sibling_spread(returns: Tensor, G: int, real: Tensor) -> float:  # [B * G, S], G, [B * G, S]
    """Mean standard deviation between siblings at a slot. 0: no thought made a difference."""
    spread = returns.view(-1, G, returns.shape[1]).std(1) if G > 1 else 0 * returns[::G]
    return spread[real[::G].bool()].mean().item()


# Step 5: the loss

class Scale(NamedTuple):
    """Constants of the batch, never of a row: else thinking longer would make thoughts cheaper."""
    policy: float  # what the sum over choices is multiplied by
    entropy: float  # what the sum over thoughts is multiplied by
    target: float  # entropy in nats, up to which each thought is pulled
    rarity: Tensor | None = None  # [N]: what the choice of each row is worth for being rare


def scale_of(settings, credit: Credit, done: float, rarity: Tensor | None = None) -> Scale:
    """done: the share of the run that is over."""
    # crisp thoughts at the end: in the last quarter of a run the bonus fades
    fade = (settings.thoughts == "tokens") * min(1.0, 4 * (1 - done))
    target = settings.entropy * math.log(max(settings.think_vocab, 2))
    return Scale(1 / max(credit.choices, 1), fade / max(credit.thoughts, 1), target, rarity)


@torch.no_grad()
def rarity_of(model: GPT, ro: Rollout) -> Tensor | None:  # -> [N]
    """-log of how often each row is thought; None while enough rows are in use. At birth one
    thought hurts least in every context. It would win everywhere."""
    N, thoughts = model.config.think_vocab, ro.is_think[:, ro.P:]
    if N < 2:
        return None
    h = states_at(ro.h, ro.chosen_at[:, ro.P:])[thoughts]  # [thoughts, C]
    # one row for each process
    total = all_rows(model.think_logits(h).softmax(-1).sum(0, keepdim=True))
    used = total.sum(0) / total.sum().clamp(min=1)  # [N], sums to 1
    if -(used * torch.log(used + 1e-9)).sum() > math.log(IN_USE * N):
        return None
    return -torch.log(used + 0.02 / N)


def text_weights(text: Text, settings, r: Tensor) -> Tensor:  # [R, S] -> [R, S]
    """w: what each token's own value v weighs in the loss."""
    # tokens that pay share 1, or KL_TEXT with a teacher; all others share OTHER_TEXT
    pays = all_rows(text.pays)
    other = text.pays == 0
    other = other if text.real is None else other & text.real  # padding counts for nothing
    paying, others = pays.sum().item(), all_rows(other).sum().item()
    paid = KL_TEXT if settings.approach == "teacher" else 1.0
    own = text.pays * (paid * (settings.answer_grad == "on") / max(paying, 1))
    weight = torch.where(text.pays > 0, own, other * (OTHER_TEXT / max(others, 1)))
    if text.unread and settings.thoughts == "tokens" and settings.approach != "next_token":
        weight = weight.masked_fill((text.pays > 0) & (text.level == text.unread), 0)
    # learned from random thoughts, an answer would teach the model to ignore them. (LISTEN 1: what
    # maximises the log of the siblings' mean probability, arXiv 1509.00519)
    siblings = r.view(-1, settings.samples, r.shape[1])
    share = settings.samples * (LISTEN * siblings).softmax(1).view_as(r)
    return torch.where(text.pays > 0, weight * share, weight)


def action_logp(logits: Tensor, V: int, ids: Tensor, gated: Tensor, given: Tensor) -> Tensor:
    # [..., V + N], V, [...] x 3 -> [...]
    """log pi of what was done, in six cases.

    free thought    log p_think + log g(z)            forced thought        log g(z)
    own text        log(1 - p_think) + log p_text(y)  ... no slot open      log p_text(y)
    given text      log(1 - p_think)                  ... no slot open      0
    """
    is_think = ids >= V
    # where no gate was open one group may be missing: the other's sum then serves both names
    groups = [x.logsumexp(-1) for x in (logits[..., :V], logits[..., V:]) if x.shape[-1]]
    speak, think = groups if len(groups) == 2 else groups * 2
    logp = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - torch.where(is_think, think, speak)
    logp = torch.where(given, 0.0, logp)
    if len(groups) == 2:
        gap = think - speak  # log(p_think / p_speak)
        gate = F.logsigmoid(torch.where(is_think, gap, -gap))
        logp = logp + torch.where(gated, gate, 0.0)
    return logp


def entropy_price(H: Tensor, target: float) -> Tensor:  # [n], nats -> [n]
    """What a nat of entropy is worth to one choice: the share of the target that it lacks. Above
    the target a bonus would outweigh what rows that are new change, and make them all alike."""
    # (each choice has its own: held at the mean alone, single choices could collapse)
    return (1 - H / max(target, 1e-9)).clamp(min=0)


class Judge(NamedTuple):
    teacher: GPT
    h: Tensor  # [R, S, C of the teacher]: its states that predict the new text tokens
    sampled: bool  # --reward sampled


class Places(NamedTuple):
    """What belongs to n chosen places: all [n]."""
    ids: Tensor  # what was chosen
    adv: Tensor  # of the slot
    gated: Tensor  # was thinking a free choice?
    given: Tensor  # text that was not chosen
    weight: Tensor  # of the text token's own value
    is_think: Tensor
    widen: Tensor  # of the slot: the weight of the pull towards all rows alike
    teacher_h: Tensor | None = None  # [n, C of the teacher]


def rollout_loss(model: GPT, h: Tensor, ro: Rollout, credit: Credit, weight: Tensor,
                 scale: Scale, judge: Judge | None = None) -> tuple[Tensor, float]:
    """The three-part loss, and the sum of H(g) over thoughts.

    h [R, T, C]: hidden states with gradient. credit: of what was chosen in a slot. weight [R, S]:
    of each text token's own value.
    """
    P, slot = ro.P, ro.new_slot()
    is_think, is_text, gated = ro.is_think[:, P:], ro.is_text[:, P:], ro.gated[:, P:]
    # the text's own term is exact: no sampled token has to stand for it. A sampled reward has none
    exact = judge is None or not judge.sampled
    adv = credit.advantage
    widen = torch.zeros_like(adv) if credit.widen is None else credit.widen
    places = Places(ids=ro.ids[:, P:], adv=adv.gather(1, slot), gated=gated,
                    given=ro.given[:, P:] | (exact & is_text),
                    weight=weight.gather(1, slot) * is_text, is_think=is_think,
                    widen=widen.gather(1, slot))  # [R, T - P] each
    if judge is not None and exact:
        at = slot.unsqueeze(-1).expand(-1, -1, judge.h.shape[-1])
        places = places._replace(teacher_h=judge.h.gather(1, at))

    def loss(logits: Tensor, V: int, *columns: Tensor) -> tuple[Tensor, Tensor]:
        return loss_of_places(logits, V, Places(*columns), scale, judge)
    chosen_from = states_at(h, ro.chosen_at[:, P:])  # [R, T - P, C]
    columns = [x for x in places if x is not None]
    total, entropy = in_groups(loss, model, chosen_from, columns, (is_think, is_text, gated))
    return total, entropy.item()


def loss_of_places(logits: Tensor, V: int, at: Places, scale: Scale,
                   judge: Judge | None) -> tuple[Tensor, Tensor]:
    """The loss of n places from their logits [n, V + N], and the sum of H(g).

    Text logits that play no part may be left out (V = 0), and thinking logits too (N = 0).
    """
    # part 1: REINFORCE
    policy = (at.adv * action_logp(logits, V, at.ids, at.gated, at.given)).sum()
    total, entropy = -scale.policy * policy, logits.new_zeros(())
    if V and (judge is None or not judge.sampled):  # part 2: the text's own value
        log_q = floored(judge.teacher.text_logits(at.teacher_h)) if judge else None
        v = text_value(logits[:, :V], at.ids.clamp(max=V - 1), log_q, False)
        total = total - (at.weight * v).sum()
    if logits.shape[1] > V:  # part 3: no choice, and not all choices together, may collapse
        log_g = logits[:, V:].log_softmax(-1)
        H = -(log_g.exp() * log_g).sum(-1) * at.is_think
        price = entropy_price(H.detach(), scale.target)
        # (minus a KL from the even choice, which reaches rows that are never drawn)
        wide = at.widen * log_g.mean(-1) * at.is_think
        total = total - scale.entropy * (price * H + wide).sum()
        entropy = H.detach().sum()
        if scale.rarity is not None:
            worth = (log_g.exp() @ scale.rarity) * at.is_think
            total = total - scale.entropy * IN_USE_PRICE * worth.sum()
    return total, entropy


if __name__ == "__main__":  # REINFORCE alone: three thoughts, of which the third helps most
    torch.manual_seed(4)
    table = torch.tensor([-1.1, -0.7, -0.1])  # log-prob of the answer after each of three thoughts
    logits, G = torch.zeros(3, requires_grad=True), 8  # the policy begins even; G siblings per text
    for step in range(101):
        logp = logits.log_softmax(-1)
        z = logp.exp().multinomial(G, replacement=True)  # [G]: each sibling draws one
        returns = table[z] - 20 * torch.rand(1)  # less how hard this text is, one number for all
        baseline = (returns.sum() - returns) / (G - 1)  # [G]: the mean of the *other* siblings
        loss = -((returns - baseline) * logp[z]).mean()
        logits.data -= 0.5 * torch.autograd.grad(loss, logits)[0]  # returns are plain numbers
        if step % 20 == 0:
            p = logp.exp().tolist()
            print(f"step {step:3}", *(f"think{i} {'#' * round(20 * p[i]):20}" for i in range(3)))
