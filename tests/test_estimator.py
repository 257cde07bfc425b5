"""The gradient estimator, by enumeration: its mean over every pair of siblings is the exact gradient.

All rollouts over one text are made, of every length where thinking is free. Each pair of them is weighed by its probability,
and the loss's mean gradient compared with that of the goal, sum over z of pi(z) * (sum of r). Variances are printed side by
side (pytest -s tests/test_estimator.py). Left out: the division by the returns' spread, which only scales.
"""
from dataclasses import fields
from itertools import product

import pytest
import torch

from reward import advantage, returns_to_go, rollout_loss, slot_rewards, slot_value, speaking_states
from rollout import Rollout, Rules, action_logp, rollout, states

V, P = 11, 2
TEXT = torch.tensor([[2, 7, 4, 9, 1]])


def pick(ro: Rollout, rows) -> Rollout:
    return Rollout(*(getattr(ro, f.name)[rows] for f in fields(ro)[:-1]), ro.P)


def every_rollout(model, rules: Rules, S: int) -> Rollout:
    """Each rollout that can come about over S tokens, once: one a row."""
    N, free, K = model.config.think_vocab, rules.think == "free", rules.max_thoughts
    places = S + rules.budget if rules.persist else S * K
    plans = torch.tensor(list(product(range(N + free), repeat=places)))  # what is done at each place; N: speak
    R = len(plans)
    luck = torch.where(plans < N, 0.0, 1 - 1e-12).to(torch.float64)
    thought = V + plans.clamp(max=N - 1)
    if rules.persist:
        u = luck.T.unsqueeze(-1).repeat(1, 1, 2)  # [places, R, 2]
        ro = rollout(model, TEXT[:, :P + S].expand(R, -1), P, S, rules, u, edit=lambda t, _: thought[:, t - P])
    else:
        u = luck.view(R, K, S).transpose(0, 1).reshape(K, R * S, 1).repeat(1, 1, 2)
        ro = rollout(model, TEXT[:, :P + S].expand(R, -1), P, S, rules, u,
                     edit=lambda at, _: thought.view(R, K, S)[:, (at[0] - P - S) // S])
    return pick(ro, torch.tensor(list({tuple(row): i for i, row in enumerate(ro.ids.tolist())}.values())))


def log_pi(model, h, ro: Rollout) -> torch.Tensor:  # -> [rows]
    """log-prob of all that a row chose."""
    from_h = h.gather(1, ro.left.unsqueeze(-1).expand_as(h))
    logp = action_logp(model.logits(from_h), V, ro.ids, ro.gated, ro.given)
    return (logp * (ro.is_think | ro.is_text))[:, P:].sum(1)


def goal_of(model, ro: Rollout, rules: Rules):
    """-> pi [rows], and sum over z of pi(z) * sum of r(z): what is to grow, with gradient."""
    h = states(model, ro, rules)
    y = ro.text[:, P:]
    r = slot_value(model.text_logits(speaking_states(h, ro)).flatten(0, 1), y.flatten(), None, 1.0, False).view(y.shape)
    pi = log_pi(model, h, ro).exp()
    return pi.detach(), (pi * r.sum(1)).sum()


def estimate(model, ro: Rollout, rules: Rules, baseline: str, share) -> torch.Tensor:
    """The loss of pairs of siblings (rows 2i and 2i + 1), each pair weighed by its share: [rows / 2]."""
    r, _ = slot_rewards(model, ro, None, None, None)
    returns = returns_to_go(r, 1.0 if rules.persist else 0.0)
    S = r.shape[1]
    # one pair is one batch: the mean over a batch, too, is taken within it
    adv = torch.cat([advantage(pair, 2, baseline) for pair in returns.split(2)])
    share = share.repeat_interleave(2).unsqueeze(1).expand(-1, S)
    scale = {"policy": 0.5, "entropy": 0.0, "target": 1.0}
    return rollout_loss(model, states(model, ro, rules), ro, adv * share, 0.5 * share, scale)[0]


def flat(model, value) -> torch.Tensor:
    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return torch.cat([torch.zeros(p.numel(), dtype=p.dtype) if g is None else g.flatten() for g, p in zip(grads, model.parameters())])


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
    """Guards that the estimator is unbiased: leave-one-out and no baseline at all give the exact gradient in the mean, to 1e-10.
    The mean of the batch holds the row itself, and so the thoughts' part comes out as a half, 1 - 1/2, of what it should be."""
    N, S, rules = CASES[case]
    model = tiny(N=N, L=1, C=8)
    ro = every_rollout(model, rules, S)
    n = len(ro.ids)
    assert 2 < n <= 64
    pi, goal = goal_of(model, ro, rules)
    assert pi.sum().item() == pytest.approx(1, abs=1e-10)  # all of them, each once, with the right gate
    wanted = flat(model, goal)
    pairs = pick(ro, torch.cartesian_prod(torch.arange(n), torch.arange(n)).flatten())
    share = (pi[:, None] * pi).flatten()
    mean = {b: -flat(model, estimate(model, pairs, rules, b, share)) for b in ("loo", "none", "batch")}
    direct = -flat(model, rollout_loss(model, states(model, ro, rules), ro, torch.zeros(n, S, dtype=pi.dtype),
                                       pi.unsqueeze(1).expand(-1, S), {"policy": 0.0, "entropy": 0.0, "target": 1.0})[0])
    assert (wanted - direct).abs().max() > 1e-4  # thoughts have a part of their own to get wrong
    for baseline, part in (("loo", 1.0), ("none", 1.0), ("batch", 0.5)):
        if baseline != "batch" or S == 1:  # (with more slots that mean mixes their returns, and no simple share is left)
            assert (mean[baseline] - direct - part * (wanted - direct)).abs().max() < 1e-10, baseline


def test_variances_side_by_side(tiny, capsys):
    """The estimators' total variance over all pairs: siblings as a baseline have less than none. Printed."""
    N, S, rules = CASES["forced, two in a slot"]
    model = tiny(N=N, L=1, C=8)
    ro = every_rollout(model, rules, S)
    pi, goal = goal_of(model, ro, rules)
    wanted, variance = flat(model, goal), {}
    for baseline in ("loo", "none", "batch"):
        total = 0.0
        for i, j in product(range(len(pi)), repeat=2):
            g = -flat(model, estimate(model, pick(ro, torch.tensor([i, j])), rules, baseline, torch.ones(1, dtype=pi.dtype)))
            total += (pi[i] * pi[j] * (g - wanted).square().sum()).item()
        variance[baseline] = total
    with capsys.disabled():
        print("\n  mean squared error of one pair's gradient: " + ", ".join(f"{k} {v:.3f}" for k, v in variance.items()))
    assert variance["loo"] < variance["none"]


def test_4096_by_monte_carlo(tiny):
    """Guards a larger tree, N^k = 4,096, where pairs are too many: on 8 fixed directions the mean of 64 batches of 256 sampled
    pairs lies within 4.5 standard errors of the exact gradient."""
    model, S, rules = tiny(N=16, L=1, C=8), 3, Rules("forced", 1, 3)
    ro = every_rollout_flat(model, rules, S)
    pi, goal = goal_of(model, ro, rules)
    assert len(pi) == 4096 and pi.sum().item() == pytest.approx(1, abs=1e-10)
    luck = torch.Generator().manual_seed(0)
    size = sum(p.numel() for p in model.parameters())
    directions = torch.randn(8, size, generator=luck, dtype=torch.float64)
    wanted, found = directions @ flat(model, goal), []
    for _ in range(64):
        rows = torch.multinomial(pi, 512, replacement=True, generator=luck)
        share = torch.full((256,), 1 / 256, dtype=torch.float64)
        found.append(-directions @ flat(model, estimate(model, pick(ro, rows), rules, "loo", share)))
    found = torch.stack(found)
    assert ((found.mean(0) - wanted).abs() < 4.5 * found.std(0) / 8).all()
    assert ((found.mean(0) - 0.5 * wanted).abs() > 4.5 * found.std(0) / 8).any()  # it could have failed


def every_rollout_flat(model, rules: Rules, S: int) -> Rollout:
    """`every_rollout` where all slots hold one forced thought: only the places of thoughts are planned, not all."""
    plans = torch.cartesian_prod(*[torch.arange(model.config.think_vocab)] * S)
    u = torch.zeros(S + rules.budget, len(plans), 2, dtype=torch.float64)
    return rollout(model, TEXT[:, :P + S].expand(len(plans), -1), P, S, rules, u, edit=lambda t, _: V + plans[:, (t - P) // 2])
