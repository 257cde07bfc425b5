"""Continuous thoughts: what is fed back is exactly the last hidden state, and the gradient goes back through every one."""
import pytest
import torch

from reward import imitation
from rollout import Rules, rollout, states, states_at

R, P, S, V = 3, 3, 6, 11
AFTER = [1, 4, 6, 9]


def texts(length=P + S, seed=1):
    return torch.randint(V, (R, length), generator=torch.Generator().manual_seed(seed))


def naive_states(model, ids, seen, position, lent=None):
    """One row, place by place, without a cache: the whole prefix anew for each place, and a thought's input is the state
    that was computed one place earlier, or lent[i]. ids [n], seen(q, k) -> bool, position(i) -> [n, C]."""
    inputs, hs = [], []
    for i, token in enumerate(ids):
        x = (hs[-1] if lent is None else lent[i]) if token >= V else model.wte.weight[token]
        inputs.append(x + model.wpe.weight[position(i)])
        mask = torch.tensor([[seen(q, k) for k in range(i + 1)] for q in range(i + 1)])
        x = torch.stack(inputs)[None]
        for block in model.h:
            x = block(x, mask[None, None], None, None)
        hs.append(model.ln_f(x)[0, -1])
    return torch.stack(hs)


def see(rules, ids):
    last = [max([j for j in range(i + 1) if ids[j] >= V], default=-1) for i in range(len(ids))]
    return lambda q, k: k <= q and (not rules.window or q - k < rules.window or k == last[q])


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("think, K, given", [("forced", 1, P + S), ("forced", 2, P + S), ("free", 2, P + S), ("free", 1, P)])
def test_thoughts_are_the_last_states(tiny, uniforms, window, think, K, given):
    """Guards Coconut's definition in all three places: the sampler's states, the gradient pass' states, and its gradients
    are those of a loop without a cache, to 1e-9."""
    model = tiny(N=1, offset=2.0)
    rules = Rules(think, K, 5, window, AFTER, continuous=True)
    ro = rollout(model, texts(given), P, S, rules, uniforms(S + 5, R), offset=2)
    h = states(model, ro, rules, offset=2)
    real = ro.is_think | ro.is_text
    assert ro.is_think.any() and (h - ro.h)[:, :-1][real[:, :-1]].abs().max() < 1e-9
    wanted = []
    for r in range(R):
        ids = ro.ids[r][real[r]].tolist()
        wanted.append(naive_states(model, ids, see(rules, ids), lambda i: i + 2))
        assert (h[r, :len(ids)] - wanted[r]).abs().max() < 1e-9
    probe = torch.randn(h.shape, generator=torch.Generator().manual_seed(0), dtype=h.dtype)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("think")]
    ours = torch.autograd.grad(sum((h * probe)[r, :len(w)].sum() for r, w in enumerate(wanted)), parameters)
    theirs = torch.autograd.grad(sum((w * probe[r, :len(w)]).sum() for r, w in enumerate(wanted)), parameters)
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(ours, theirs))


def test_gradient_passes_through_thoughts(tiny, uniforms):
    """Guards against a cut tape: with one layer and a window of 1, the state at the end can reach the first token only
    through thoughts, and it does."""
    model = tiny(N=1, L=1)
    rules = Rules("forced", 1, 8, 1, None, continuous=True)
    ro = rollout(model, texts(), P, S, rules, uniforms(S + 8, R))
    h = states(model, ro, rules)
    last = ro.left[0, ro.place[0, -1]]
    before = model.wpe.weight
    g = torch.autograd.grad(h[0, last].sum(), before)[0]
    assert g[P - 1].abs().max() > 1e-12 and last > 2 * P


@pytest.mark.parametrize("think", ["forced", "free"])
def test_branches(tiny, think):
    """Guards continuous thoughts of next_token: every branch is the sequence that it would be by itself."""
    model, K = tiny(N=1, offset=1.0), 3
    rules = Rules(think, K, K, persist=False, continuous=True)
    u = torch.rand(K, R * S, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ro = rollout(model, texts(), P, S, rules, u)
    h = states(model, ro, rules)
    L = P + S
    assert ro.is_think.any() and (h - ro.h)[ro.is_think].abs().max() < 1e-9
    for r in range(R):
        for s in range(S):
            n = int(ro.is_think[r, L + s::S].sum())
            ids = ro.text[r, :P + s].tolist() + [V] * n
            alone = naive_states(model, ids, lambda q, k: k <= q, lambda i: i)
            assert (h[r, ro.left[r, P + s]] - alone[-1]).abs().max() < 1e-9


@pytest.mark.parametrize("K", [1, 2])
def test_lent_thoughts(tiny, uniforms, K):
    """Guards --thinker: another model reads the thinker's vectors, under a mask of its own, as a loop place by place would, and is
    drawn to them by the squared distance of its own; a model that lends to itself is where it should be."""
    thinker, model, rules = tiny(N=1), tiny(N=1, seed=5), Rules("forced", K, 5, 3, AFTER, continuous=True)
    ro = rollout(thinker, texts(), P, S, rules, uniforms(S + 5, R), offset=2)
    lent = states_at(ro.h, ro.left)
    itself = states(thinker, ro, rules, 2, lent)
    assert (itself - ro.h)[:, :-1][(ro.is_think | ro.is_text)[:, :-1]].abs().max() < 1e-9 and imitation(itself, ro, lent) < 1e-12
    wide = Rules("forced", K, 5, 0, AFTER, continuous=True)
    h, distance = states(model, ro, wide, 2, lent), 0.0
    for r, ids in enumerate(ro.kept()):
        naive = naive_states(model, ids, see(wide, ids), lambda i: i + 2, lent[r])
        assert (h[r, :len(ids)] - naive).abs().max() < 1e-9
        distance = distance + sum(((naive[i - 1] - ro.h[r, i - 1]) ** 2).mean() for i, token in enumerate(ids) if token >= V)
    assert ro.is_think.any() and (imitation(h, ro, lent) - distance).abs() < 1e-9
