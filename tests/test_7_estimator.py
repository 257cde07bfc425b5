"""Lesson 7: is the gradient of the loss the gradient of what we want? By trying everything.

REINFORCE follows samples. Its mean over all that can be sampled must be the exact gradient of the
goal, sum over z of pi(z) times what z earns. With a handful of thoughts all rollouts can be made,
of every length where thinking is free, and weighed by their probability. So nothing here is a
statistic, and the sampler's frequencies are first compared with the probabilities that the loss
uses. Variances are printed (pytest -s).

Left out: the division by the returns' spread, which only scales.
"""
from dataclasses import replace
from itertools import combinations_with_replacement, product

import pytest
import torch

from conftest import V, luck, numbers
from data import plain
from next_token import roll, states
from reward import (Credit, Judge, Scale, action_logp, floored, minus_baseline, returns_to_go,
                    rollout_loss, score, speaking_states, teacher_states, text_value)
from rollout import SAMPLED, Rollout, Rules, rollout, states_at

P, TEXT = 2, torch.tensor([[2, 7, 4, 9, 1]])


def given(S, rows):
    return plain(TEXT[:, :P + S].expand(rows, -1), P, S)


def test_action_logp_by_hand():
    """Guards the six cases of a choice's logp against numbers made by hand. Speech has mass .6 in
    all (.1, .2, .3) and thoughts .4 (.25, .15). A constant added to all logits changes nothing."""
    logits = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64).log() + 7.0
    cases = [  # id, gated, given -> probability
        (3, True, False, 0.25), (4, True, False, 0.15),  # free thought
        (3, False, False, 0.25 / 0.4), (4, False, False, 0.15 / 0.4),  # forced thought
        (1, True, False, 0.2), (2, True, False, 0.3),  # own text where it could have thought
        (1, False, False, 0.2 / 0.6),  # own text where no slot is open
        (0, True, True, 0.6), (2, True, True, 0.6),  # given text: the only choice was to speak
        (0, False, True, 1.0),  # nothing was chosen
    ]
    ids, gated, given, p = zip(*cases)
    out = action_logp(logits.expand(len(cases), 5), 3, torch.tensor(ids), torch.tensor(gated),
                      torch.tensor(given))
    assert out.exp().tolist() == pytest.approx(p)
    text_only = action_logp(logits[:3].expand(2, 3), 3, torch.tensor([1, 1]),
                            torch.tensor([True, False]), torch.tensor([False, False]))
    assert text_only.exp().tolist() == pytest.approx([0.2 / 0.6] * 2)  # no thinking rows: no gate


@pytest.mark.parametrize("think, M", [("free", 1), ("forced", 1), ("never", 0)])
def test_logp_is_the_frequency(tiny, think, M):
    """Guards the gate and the draw at once. Over a fine grid of uniforms each of the V + N actions
    comes as often as action_logp says. Thinking is free, forced, or never."""
    model, n, every = tiny(V=5, N=3, L=1), 120, torch.arange(8)
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    u = torch.cartesian_prod(grid, grid).expand(1 + M, -1, -1)  # [1 + M, n * n, 2]
    prompt = torch.tensor([[2, 0]]).expand(n * n, 2)
    ro = rollout(model, plain(prompt, 2, 1), Rules(think, 1, M), luck(u))
    logits = model.logits(model(prompt[:1]))[0, -1].expand(8, 8)
    p = action_logp(logits, 5, every, every.ge(0) & (think == "free"), every < 0).exp()
    p[:5] *= think != "forced"
    p[5:] *= think != "never"
    assert p.sum().item() == pytest.approx(1)
    share = torch.bincount(ro.ids[:, 2], minlength=8) / n**2
    assert (share - p).abs().max() < 2 / n


def test_frequency_in_bfloat16(tiny):
    """Guards sampling on a GPU, where logits come in bfloat16. Sums and the gate must be taken in
    float32, or what is sampled is not what is learned. (A running sum in bfloat16 moves a tenth of
    the probability to other rows.)"""
    model, n = tiny(V=300, N=40, L=1, dtype=torch.float32), 20_000
    i = torch.arange(n)
    u = torch.stack([(i * 0.6180339887498949) % 1, (i + 0.5) / n], 1).to(torch.float32)
    text = plain(torch.full((n, 1), 7), 1, 1)
    with torch.autocast("cpu", torch.bfloat16):  # u is even, both ways
        ro = rollout(model, text, Rules("free", 1, 1), luck(u.expand(2, -1, -1)))
        logits = model.logits(model(torch.tensor([[7]]))[:, -1])
    every = torch.arange(340)
    p = action_logp(logits.float().expand(340, -1), 300, every, every >= 0, every < 0).exp()
    share = torch.bincount(ro.ids[:, 1], minlength=340) / n
    assert p.sum().item() == pytest.approx(1, abs=1e-4) and 0.1 < p[300:].sum() < 0.9
    assert (share[300:].sum() - p[300:].sum()).abs() < 2e-3
    assert 0.5 * (share - p).abs().sum() < 0.01


# Every pair of siblings

def every_rollout(model, rules: Rules, S: int) -> Rollout:
    """Each rollout that can come about over S tokens, once: one per row."""
    N, free, K = model.config.think_vocab, rules.think == "free", rules.max_thoughts
    # what is done at each place; N: speak
    n = S + rules.budget if rules.persist else S * K
    plans = torch.tensor(list(product(range(N + free), repeat=n)))
    R, thought = len(plans), V + plans.clamp(max=N - 1)
    u = torch.where(plans < N, 0.0, 1 - 1e-12).to(torch.float64)  # [R, n]

    def edit(at, _):  # (branches: at is the places of all branches' k-th thoughts)
        if rules.persist:
            return thought[:, at - P]
        return thought.view(R, K, S)[:, (at[0] - P - S) // S]
    if rules.persist:
        u = u.T.unsqueeze(-1).repeat(1, 1, 2)
    else:
        u = u.view(R, K, S).transpose(0, 1).reshape(K, R * S, 1).repeat(1, 1, 2)
    ro = roll(model, given(S, R), rules, luck(u), SAMPLED, edit)
    once = {tuple(row): i for i, row in enumerate(ro.ids.tolist())}
    return ro.rows(torch.tensor(list(once.values())))


def goal_of(model, ro: Rollout, rules: Rules):
    """-> pi [rows], and sum over z of pi(z) * sum of r(z): what is to grow, with gradient."""
    h, y = states(model, ro, rules), ro.text[:, P:]
    logits = model.text_logits(speaking_states(h, ro)).flatten(0, 1)
    r = text_value(logits, y.flatten(), None, False).view(y.shape)
    chosen_from = model.logits(states_at(h, ro.chosen_at))
    logp = action_logp(chosen_from, V, ro.ids, ro.gated, ro.given)
    pi = (logp * (ro.is_think | ro.is_text))[:, P:].sum(1).exp()
    return pi.detach(), (pi * r.sum(1)).sum()


def estimate(model, ro: Rollout, rules: Rules, baseline: str, share) -> torch.Tensor:
    """The loss of pairs of siblings (rows 2i and 2i + 1), each pair weighed by its share:
    [rows / 2]."""
    r = score(model, ro, torch.ones(len(ro.ids), ro.text.shape[1] - P)).r
    returns = returns_to_go(r, 1.0 if rules.persist else 0.0)
    # one pair is one batch: the mean over a batch, too, is taken within it
    adv = torch.cat([minus_baseline(pair, 2, baseline) for pair in returns.split(2)])
    share = share.repeat_interleave(2).unsqueeze(1).expand_as(r)
    h = states(model, ro, rules)
    return rollout_loss(model, h, ro, Credit(adv * share), 0.5 * share, Scale(0.5, 0.0, 1.0))[0]


def flat(model, value) -> torch.Tensor:
    """The gradient of a value, all parameters in one row."""
    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return torch.cat([torch.zeros(p.numel(), dtype=p.dtype) if g is None else g.flatten()
                      for g, p in zip(grads, model.parameters())])


CASES = {  # N, S, rules; at most 64 rollouts each
    "forced, two slots": (5, 2, Rules("forced", 1, 2)),
    "forced, two in a slot": (4, 1, Rules("forced", 2, 2)),
    "forced, out of budget": (6, 3, Rules("forced", 1, 2, window=2)),
    "free, two slots": (4, 2, Rules("free", 1, 2)),
    "free, up to three in a slot": (3, 1, Rules("free", 3, 3)),
    "free, out of budget": (2, 3, Rules("free", 2, 2)),
    "branches, forced": (3, 2, Rules("forced", 1, 1, persist=False)),
    "branches, three deep": (2, 1, Rules("forced", 3, 3, persist=False)),
    "branches, free": (2, 2, Rules("free", 2, 2, persist=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_pair(tiny, case):
    """Guards that the estimator is unbiased: leave-one-out and no baseline at all give the exact
    gradient in the mean, to 1e-10. The mean of the batch holds the row itself, so of the thoughts'
    part it gives a half: 1 - 1/2."""
    N, S, rules = CASES[case]
    model = tiny(N=N, L=1, C=8)
    ro = every_rollout(model, rules, S)
    n = len(ro.ids)
    assert 2 < n <= 64
    pi, goal = goal_of(model, ro, rules)
    assert pi.sum().item() == pytest.approx(1, abs=1e-10)  # all of them, once, with the right gate
    wanted = flat(model, goal)
    pairs = ro.rows(torch.cartesian_prod(torch.arange(n), torch.arange(n)).flatten())
    share = (pi[:, None] * pi).flatten()
    mean = {b: -flat(model, estimate(model, pairs, rules, b, share))
            for b in ("loo", "none", "batch")}
    text_alone, _ = rollout_loss(
        model, states(model, ro, rules), ro, Credit(torch.zeros(n, S, dtype=pi.dtype)),
        pi.unsqueeze(1).expand(-1, S), Scale(0.0, 0.0, 1.0))
    direct = -flat(model, text_alone)
    assert (wanted - direct).abs().max() > 1e-4  # thoughts have a part of their own to get wrong
    for baseline, part in (("loo", 1.0), ("none", 1.0), ("batch", 0.5)):
        if baseline != "batch" or S == 1:  # (with more slots its mean mixes their returns)
            off = mean[baseline] - direct - part * (wanted - direct)
            assert off.abs().max() < 1e-10, baseline


def test_variances_side_by_side(tiny, capsys):
    """Guards that siblings as a baseline are worth their price: the gradient's variance over all
    pairs is less than with none. Printed."""
    S, rules = 1, Rules("forced", 2, 2)
    model = tiny(N=3, L=1, C=8)
    ro = every_rollout(model, rules, S)
    pi, goal = goal_of(model, ro, rules)
    wanted, variance, one = flat(model, goal), {}, torch.ones(1, dtype=pi.dtype)
    for baseline in ("loo", "none", "batch"):
        total = 0.0
        for i, j in combinations_with_replacement(range(len(pi)), 2):
            pair = ro.rows(torch.tensor([i, j]))
            g = -flat(model, estimate(model, pair, rules, baseline, one))
            share = pi[i] * pi[j] * (1 if i == j else 2)  # (j, i) is the same pair
            total += (share * (g - wanted).square().sum()).item()
        variance[baseline] = total
    with capsys.disabled():
        print("\n  mean squared error of one pair's gradient: "
              + ", ".join(f"{k} {v:.3f}" for k, v in variance.items()))
    assert variance["loo"] < variance["none"]


def test_4096_by_monte_carlo(tiny):
    """Guards a larger tree, N^k = 4,096, where pairs are too many. On 8 fixed directions the mean
    of 64 batches of 256 sampled pairs lies within 4.5 standard errors of the exact gradient."""
    model, S, rules, N = tiny(N=16, L=1, C=8), 3, Rules("forced", 1, 3), 16
    plans = torch.cartesian_prod(*[torch.arange(N)] * S)
    ro = rollout(model, given(S, len(plans)), rules, luck(), SAMPLED,
                 lambda t, _: V + plans[:, (t - P) // 2])
    pi, goal = goal_of(model, ro, rules)
    assert len(pi) == 4096 and pi.sum().item() == pytest.approx(1, abs=1e-10)
    generator = torch.Generator().manual_seed(0)
    size = sum(p.numel() for p in model.parameters())
    directions = torch.randn(8, size, generator=generator, dtype=torch.float64)
    wanted, found = directions @ flat(model, goal), []
    share = torch.full((256,), 1 / 256, dtype=torch.float64)
    for _ in range(64):
        rows = torch.multinomial(pi, 512, replacement=True, generator=generator)
        found.append(-directions @ flat(model, estimate(model, ro.rows(rows), rules, "loo", share)))
    found = torch.stack(found)
    assert ((found.mean(0) - wanted).abs() < 4.5 * found.std(0) / 8).all()
    half_off = (found.mean(0) - 0.5 * wanted).abs()
    assert (half_off > 4.5 * found.std(0) / 8).any()  # it could have failed


# One token, one text

def same_gradient(model, wanted, found):
    """-> the names of all parameters that have one."""
    names, felt = dict(model.named_parameters()), set()
    grads = [torch.autograd.grad(x, list(names.values()), allow_unused=True)
             for x in (wanted, found)]
    for name, a, b in zip(names, *grads):
        if a is not None and a.numel():
            assert (a - b).abs().max() < 1e-9, name
            felt |= {name} if a.abs().max() > 1e-4 else set()
    return felt


@pytest.mark.parametrize("think", ["free", "forced"])
@pytest.mark.parametrize("baseline", [0.0, 2.5])
def test_expected_gradient_on_given_text(tiny, think, baseline):
    """Guards the whole idea on given text. The loss's mean gradient over all thoughts, by their
    probability, is the gradient of E_z[log p_text(y | x, z)]. It is so to 1e-9 and with any
    baseline. Every thought is tried."""
    N, y, free = 5, 4, think == "free"
    model, x = tiny(), torch.tensor([[2, 7, y]])  # "2 7" is the prompt, and y must follow
    rows, rules = N + free, Rules(think, 1, 1)  # one row per thought, and one that speaks at once
    u = numbers(2, rows)
    u[0, :, 0] = 0.0
    u[0, N:, 0] = 1 - 1e-12
    ro = rollout(model, plain(x.expand(rows, 3), 2, 1), rules, luck(u), SAMPLED,
                 lambda place, ids: V + torch.arange(rows))
    assert ro.ids[:, 2].tolist() == [*range(V, V + N), *([y] if free else [])]
    p = model.logits(model(x[:, :2])[0, -1]).softmax(-1)
    p_text = [model.text_logits(model(ro.ids[r:r + 1, :3]))[0, -1].softmax(-1)[y] for r in range(N)]
    pi = p[V:] if free else p[V:] / p[V:].sum()
    goal = sum(pi[z] * p_text[z].log() for z in range(N))
    if free:
        goal = goal + p[:V].sum() * (p[y] / p[:V].sum()).log()
        pi = torch.cat([pi, p[:V].sum().view(1)])
    assert pi.sum().item() == pytest.approx(1)
    r, mean = score(model, ro, torch.ones(rows, 1)).r, 0.0
    for z in range(rows):
        row = ro.rows(slice(z, z + 1))
        loss, _ = rollout_loss(model, states(model, row, rules), row, Credit(r[z:z + 1] - baseline),
                               torch.ones(1, 1), Scale(1.0, 0.0, 1.0))
        mean = mean + pi[z].detach() * loss
    assert {"think", "wte.weight"} <= same_gradient(model, goal, -mean)


def test_expected_gradient_of_sampled_text(tiny):
    """Guards REINFORCE on own text (--reward sampled). The mean of the loss's gradient over all
    texts of two tokens is that of E[log q], to 1e-9. Every text is tried, with its probability."""
    model, rules = tiny(N=0), Rules("never")
    teacher = tiny(N=0, L=1, C=8, seed=5).requires_grad_(False)
    every = torch.tensor([[3, a, b] for a, b in product(range(V), repeat=2)])
    ro = rollout(model, plain(every, 1, 2), rules, luck())
    ro = replace(ro, given=ro.given & False)  # as if the model had said all this by itself
    pick = every[:, 1:, None]
    logp = model.logits(model(every)[:, :-1]).log_softmax(-1).gather(-1, pick).squeeze(-1)
    log_q = floored(teacher.logits(teacher(every)[:, :-1])).gather(-1, pick).squeeze(-1)
    p = logp.sum(1).exp()
    assert p.sum().item() == pytest.approx(1)
    r = score(model, ro, torch.ones(V * V, 2), teacher, sampled=True).r
    assert (r - log_q).abs().max() < 1e-9
    weighted = returns_to_go(r, 1.0) * p.detach().unsqueeze(1)  # each row's share of the mean
    loss, _ = rollout_loss(model, states(model, ro, rules), ro, Credit(weighted),
                           torch.zeros(V * V, 2), Scale(1.0, 0.0, 1.0),
                           Judge(teacher, teacher_states(teacher, ro), True))
    assert "wte.weight" in same_gradient(model, (p * log_q.sum(1)).sum(), -loss)
