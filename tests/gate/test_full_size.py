"""The lessons at GPT-2's own size, or near it: what is too slow for a first reading.

Models are random; the layers, the widths and float32 are those of a real run.
"""
import torch

from conftest import P, luck, numbers, texts
from data import plain
from model import GPT, Config
from next_token import roll, states
from rollout import GREEDY, Rules, rollout


def branching(think, K):
    """The rules of `next_token`, K thoughts for each token."""
    return Rules(think, K, K, persist=False)


def test_rollout_of_124m(full_size):
    """Guards layers of GPT-2's own size in float32: twelve of them, with a cache, add up to no more
    than 1e-4."""
    text, rules = plain(texts(2, 12, V=5000), 8, 8), Rules("forced", 1, 5, 6)
    ro = rollout(full_size, text, rules, luck(numbers(13, 2).float()))
    assert ro.is_think.any() and (ro.is_text.sum(1) == 16).all()
    assert torch.equal(ro.text[:, :12], text.ids) and ro.h[:, :-1].std() > 0.5
    h = states(full_size, ro, rules)
    assert (h - ro.h)[:, :-1][(ro.is_think | ro.is_text)[:, :-1]].abs().max() < 1e-4


def test_branches_of_124m(full_size):
    """Guards layers of GPT-2's own size in float32: the packed states are those of the gradient
    forward and of separate sequences to 1e-4."""
    K, n, ids = 4, 12, texts(1, P + 12, V=5000)
    rules = branching("forced", K)
    ro = roll(full_size, plain(ids, P, n), rules, luck(numbers(K, n).float()))
    assert (states(full_size, ro, rules) - ro.h).abs().max() < 1e-4
    for s in (0, 11):
        one = torch.cat([ids[0, :P + s], ro.ids[0, P + n + s::n]])
        spoken = ro.h[0, P + n + (K - 1) * n + s]
        assert (full_size(one[None])[0, -1] - spoken).abs().max() < 1e-4


def test_long_branches_in_float32():
    """Guards what a step really uses, float32 with 64 branches of 8. Greedy thoughts, the states
    that speak, and the gradient of a loss on all of them are those of 64 separate sequences, to
    1e-4."""
    torch.manual_seed(0)
    model, K, n = GPT(Config(3, 4, 128, 128, 500, 64)), 8, 64
    torch.nn.init.normal_(model.think, std=0.1)
    ids, rules = texts(1, P + n, V=500), branching("forced", K)
    ro = roll(model, plain(ids, P, n), rules, luck(numbers(K, n).float()), GREEDY)
    weights = torch.randn(n, 128, generator=torch.Generator().manual_seed(1)) / n
    parameters = [p for name, p in model.named_parameters() if name != "gate_bias"]
    speaks = states(model, ro, rules)[0, P + n + (K - 1) * n:]
    ours = torch.autograd.grad((speaks * weights).sum(), parameters)
    loss = 0.0
    for s in range(n):
        thoughts = ro.ids[0, P + n + s::n]
        h = model(torch.cat([ids[0, :P + s], thoughts])[None])[0]
        assert (h[-1] - speaks[s]).abs().max() < 1e-4
        assert torch.equal(model.think_logits(h[P + s - 1:-1]).argmax(-1) + 500, thoughts)
        loss = loss + (h[-1] * weights[s]).sum()
    theirs = torch.autograd.grad(loss, parameters)
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(ours, theirs))
    assert max(a.abs().max() for a in ours) > 0.01
