"""next_token: all branches at once are the branches one by one, in what they sample, in their scores and in the gradient."""
import math

import pytest
import torch

from conftest import one_line
from model import Config, GPT
from reward import rollout_loss, slot_rewards
from rollout import Rules, action_logp, branch_layout, choose, draw, layout, rollout, states, visible

R, P, V, N = 3, 2, 11, 5
AFTER = [1, 4, 6, 9]


def texts(rows=R, length=8, V=V, seed=1):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))


def luck(K, rows, dtype=torch.float64, seed=0):
    return torch.rand(K, rows, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def alone(model, prefix, K, rules, u, temperature=1.0, offset=0):
    """One branch by itself: the prefix and its thoughts are a sequence like any other, run anew at each step.
    -> thoughts, and the states from which they and the prediction were chosen, [thoughts + 1, C]."""
    ids, table, states = prefix.tolist(), rules.table(model), []
    for k in range(K + 1):
        x = torch.tensor([ids])
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        if rules.window:  # text that is so near, and all thoughts of one's own
            i = torch.arange(len(ids))
            mask &= (i[:, None] - i < rules.window) | (x >= model.config.vocab_size)
        states.append(model(x, torch.arange(len(ids)) + offset, mask[None, None])[:, -1])
        if k == K or not table[prefix[-1]]:
            break
        think_logits = model.think_logits(states[-1])
        if rules.think == "free":
            gap = (think_logits.logsumexp(-1) - model.text_logits(states[-1]).logsumexp(-1)).item()
            if not (gap > 0 if temperature == 0 else u[k, 0].item() < 1 / (1 + math.exp(-gap))):
                break
        ids.append(model.config.vocab_size + draw(think_logits, u[k, 1:], temperature).item())
    return ids[len(prefix):], torch.cat(states)


def all_alone(model, text, K, rules, u, **kind):
    rows, L = text.shape
    S = L - P
    return [[alone(model, text[r, :P + s], K, rules, u[:, r * S + s], **kind) for s in range(S)] for r in range(rows)]


def thoughts_of(ro, r, s, L):
    """One branch's thoughts and their places."""
    at = [i for i in range(L + s, ro.ids.shape[1], L - P) if ro.is_think[r, i]]
    return [ro.ids[r, i].item() for i in at], at


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("think, K, after, temperature", [("free", 3, None, 1.0), ("free", 3, AFTER, 0.0), ("forced", 3, None, 1.0),
                                                          ("forced", 2, AFTER, 0.0), ("free", 1, None, 1.0), ("never", 0, None, 1.0)])
def test_branches_are_separate_rollouts(tiny, window, think, K, after, temperature):
    """Guards approach B's claim to be exact: thoughts, states, log-probs and scores of the packed run are those of R * S
    separate rollouts, and the one gradient forward sees what the sampler saw. All to 1e-9."""
    model, text = tiny(), texts()
    L, S = text.shape[1], text.shape[1] - P
    rules, u = Rules(think, K, 99, window, after, persist=False), luck(max(K, 1), R * S)
    rules.budget = K
    ro = rollout(model, text, P, S, rules, u, think_temperature=temperature, offset=4)
    h = model(ro.ids, *layout(ro, rules, offset=4))
    assert ro.ids.shape == (R, L + K * S) and (h - ro.h).abs().max() < 1e-9
    chosen_from = h.gather(1, ro.left.unsqueeze(-1).expand_as(h))
    logp = action_logp(model.logits(chosen_from), V, ro.ids, ro.gated, ro.given)
    r, _ = slot_rewards(model, ro, None, None, None)
    lengths = set()
    for row, branches in enumerate(all_alone(model, text, K, rules, u, temperature=temperature, offset=4)):
        for s, (thoughts, hs) in enumerate(branches):
            ids, at = thoughts_of(ro, row, s, L)
            assert ids == thoughts
            lengths.add(len(ids))
            wanted = model.logits(hs).log_softmax(-1)
            assert r[row, s].item() == pytest.approx((wanted[-1, text[row, P + s]] - wanted[-1, :V].logsumexp(-1)).item(), abs=1e-9)
            for j, (i, z) in enumerate([*zip(at, ids), (P + s, None)]):
                think_mass, speak_mass = wanted[j, V:].logsumexp(-1), wanted[j, :V].logsumexp(-1)
                open_gate = think == "free" and len(thoughts) < K + (z is not None) and bool(rules.table(model)[text[row, P + s - 1]])
                assert bool(ro.gated[row, i]) == open_gate
                action = (wanted[j, z] - think_mass if z is not None else 0.0) + (
                    (think_mass if z is not None else speak_mass) if open_gate else 0.0)
                assert logp[row, i].item() == pytest.approx(float(torch.as_tensor(action).detach()), abs=1e-9)
    assert len(lengths) > (think == "free") or K < 2


@pytest.mark.parametrize("think", ["free", "forced"])
def test_gradient_is_that_of_separate_rollouts(tiny, think):
    """Guards the packed gradient pass: loss and every gradient are those of the R * S sequences, each by itself."""
    model, text, K = tiny(), texts(), 3
    S = text.shape[1] - P
    rules, u = Rules(think, K, K, persist=False), luck(K, R * S)
    ro = rollout(model, text, P, S, rules, u)
    adv, weight = luck(2, R * S)[:, :, 0].view(2, R, S) - 0.3
    scale = {"policy": 0.7, "entropy": 0.2, "target": 1.4}
    loss, _ = rollout_loss(model, model(ro.ids, *layout(ro, rules)), ro, adv, weight, scale)
    wanted = 0.0
    for row, branches in enumerate(all_alone(model, text, K, rules, u)):
        for s, (thoughts, hs) in enumerate(branches):
            logits = model.logits(hs)
            ids = torch.tensor([*thoughts, text[row, P + s]])
            gated = torch.tensor([think == "free"] * len(thoughts) + [think == "free" and len(thoughts) < K])
            given = torch.arange(len(ids)) == len(ids) - 1
            wanted = wanted - 0.7 * adv[row, s] * action_logp(logits, V, ids, gated, given).sum()
            wanted = wanted - weight[row, s] * logits[-1, :V].log_softmax(-1)[ids[-1]]
            for j in range(len(thoughts)):
                g = logits[j, V:].softmax(-1)
                H = -(g * g.log()).sum()
                wanted = wanted - 0.2 * min(1.0, 0.05 * math.exp(0.7 * (1.4 - H.item()))) * H
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-9)
    parameters = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters)):
        assert (ours - theirs).abs().max() < 1e-9


@pytest.mark.parametrize("P, S, K, window", [(2, 3, 2, 0), (1, 4, 3, 2), (3, 1, 1, 0), (2, 2, 0, 0)])
def test_layout_by_loops(P, S, K, window):
    """Guards the drawing in the docstring against loops over all pairs of places."""
    positions, mask = branch_layout(P, S, K, Rules(window=window, persist=False), "cpu")
    L = P + S
    where = [("text", i, i) for i in range(L)] + [(s, P - 1 + s, P + s + k) for k in range(K) for s in range(S)]
    assert positions.tolist() == [w[2] for w in where] and mask.shape == (1, 1, len(where), len(where))
    for q, (mine, end, position) in enumerate(where):
        for k, (other, _, there) in enumerate(where):
            if other == "text":
                wanted = k <= end and (window == 0 or position - k < window)
            else:
                wanted = mine == other and there <= position
            assert mask[0, 0, q, k].item() == wanted, (q, k)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("K, reread", [(3, 2), (2, 1), (4, 3)])
def test_rereading_is_a_thought_written_there(tiny, window, K, reread):
    """Guards --reread: thought k of K is, in all it sees, a thought that stands after the token which lies reread * (K - k)
    before the prefix's end: a short sequence by itself gives the same state, to 1e-9. The last one speaks."""
    model, text = tiny(), texts()
    L, S = text.shape[1], text.shape[1] - P
    rules, u = Rules("forced", K, K, window, AFTER, persist=False, reread=reread), luck(K, R * S)
    ro = rollout(model, text, P, S, rules, u, offset=4)
    assert (model(ro.ids, *layout(ro, rules, offset=4)) - ro.h).abs().max() < 1e-9
    r, _ = slot_rewards(model, ro, None, None, None)
    for row in range(R):
        for s in range(S):
            ids, at = thoughts_of(ro, row, s, L)
            assert len(ids) == (K if text[row, P + s - 1] in AFTER else 0)
            state = ro.h[row, P + s - 1]
            for k, (i, z) in enumerate(zip(at, ids), 1):
                assert z == V + draw(model.think_logits(state[None]), u[k - 1, row * S + s, 1:], float(k > 1)).item()
                reads = max(P + s - 1 - reread * (K - k), 0)
                x = torch.cat([text[row, :reads + 1], torch.tensor([z])])[None]
                state = model(x, torch.arange(reads + 2) + 4, visible(x >= V, window))[0, -1]
                assert (state - ro.h[row, i]).abs().max() < 1e-9
            assert r[row, s].item() == pytest.approx(model.text_logits(state).log_softmax(-1)[text[row, P + s]].item(), abs=1e-9)


def test_siblings_and_edits(tiny):
    """Guards the shared text: siblings that read it once are those that read it themselves; and --replace's edit reaches
    the thoughts, and nothing else."""
    model, text = tiny(), texts().repeat_interleave(2, 0)
    S = text.shape[1] - P
    rules, u = Rules("forced", 2, 2, persist=False), luck(2, 2 * R * S)
    once, each = (rollout(model, text, P, S, rules, u, siblings=n) for n in (2, 1))
    assert torch.equal(once.ids, each.ids) and (once.h - each.h).abs().max() < 1e-9
    edited = rollout(model, text, P, S, rules, u, edit=lambda k, ids: torch.full_like(ids, V + 1))
    assert (edited.ids[edited.is_think] == V + 1).all() and torch.equal(edited.text, once.text)


@pytest.mark.parametrize("think", ["free", "forced"])
def test_own_text(tiny, think):
    """Guards sampling under these rules: each token of own text comes from a branch of its own, and what is shown has
    the thoughts where they were; a token's thoughts leave no trace in what comes after it."""
    model, S, K = tiny(), 4, 2
    rules, u = Rules(think, K, K, persist=False), luck(S * (K + 1), R)
    text = texts(length=P)
    ro = rollout(model, text, P, S, rules, u)
    assert (ro.is_text.sum(1) == P + S).all() and ro.text.shape == (R, P + S) and torch.equal(ro.text[:, :P], text)
    for r in range(R):
        ids = ro.ids[r][(ro.is_think | ro.is_text)[r]].tolist()
        assert [i for i in ids if i < V] == ro.text[r].tolist()
        want = text[r].tolist()  # what the model has said so far
        shown = list(want)
        for s in range(S):
            thoughts, states = alone(model, torch.tensor(want), K, rules, u[s * (K + 1):, r])
            said = choose(model.text_logits(states[-1:]), None, slice(None), torch.tensor([False]), False,
                          u[s * (K + 1) + K, r:r + 1], 1.0, 1.0)[0].item()
            want.append(said)
            shown += [*thoughts, said]
        assert ids == shown
    with pytest.raises(ValueError) as e:
        rollout(model, texts(length=P), P, 99, rules, u)
    one_line(e)


def test_124m():
    """Guards GPT-2's own size in float32, s = 12 here: the packed states are those of the gradient forward and of separate
    sequences to 1e-4."""
    torch.manual_seed(0)
    model, text, K, S = GPT(Config(think_vocab=64)), texts(1, 14, V=50257), 4, 12
    torch.nn.init.normal_(model.think, std=0.02)
    rules = Rules("forced", K, K, persist=False)
    with torch.no_grad():
        ro = rollout(model, text, P, S, rules, luck(K, S, torch.float32))
        assert (model(ro.ids, *layout(ro, rules)) - ro.h).abs().max() < 1e-4
        for s in (0, 5, 11):
            one = torch.cat([text[0, :P + s], ro.ids[0, 14 + s::S]])
            assert (model(one[None])[0, -1] - ro.h[0, 14 + (K - 1) * S + s]).abs().max() < 1e-4


def test_long_in_float32():
    """Guards what a step really uses, float32 with s = 64 and k = 8: greedy thoughts, the states that speak, and the gradient of
    a loss on all of them are those of 64 separate sequences, to 1e-4."""
    torch.manual_seed(0)
    model, text, K, S = GPT(Config(3, 4, 128, 128, 500, 64)), texts(1, P + 64, V=500), 8, 64
    torch.nn.init.normal_(model.think, std=0.1)
    rules, L = Rules("forced", K, K, persist=False), P + 64
    ro = rollout(model, text, P, S, rules, luck(K, S, torch.float32), think_temperature=0.0)
    weights = torch.randn(S, 128, generator=torch.Generator().manual_seed(1)) / S
    parameters = [p for name, p in model.named_parameters() if name != "think_offset"]
    speaks = states(model, ro, rules)[0, L + (K - 1) * S:]
    ours = torch.autograd.grad((speaks * weights).sum(), parameters)
    theirs = [torch.zeros_like(g) for g in ours]
    for s in range(S):
        thoughts = ro.ids[0, L + s::S]
        one = torch.cat([text[0, :P + s], thoughts])[None]
        h = model(one)[0]
        assert (h[-1] - speaks[s]).abs().max() < 1e-4
        assert torch.equal(model.think_logits(h[P + s - 1:-1]).argmax(-1) + 500, thoughts)
        for total, g in zip(theirs, torch.autograd.grad((h[-1] * weights[s]).sum(), parameters)):
            total += g
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(ours, theirs)) and max(a.abs().max() for a in ours) > 0.01
