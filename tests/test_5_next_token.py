"""Lesson 5, next_token.py: thoughts that are forgotten once they have predicted one token.

After each token of a text a branch of thoughts begins, predicts the next token and is gone. All
branches at once, packed into one row, are the branches one by one: in what they sample, in their
scores and in their gradient. Then continuous thoughts, of both kinds. Such a thought is no word but
the last hidden state, fed back, and the gradient passes through every one.
"""
import math
from dataclasses import replace

import pytest
import torch

from conftest import AFTER, P, R, S, V, in_sight, luck, numbers, refuses, texts
from data import plain
from next_token import (gate_at, at_once, branch_layout, layout, one_by_one, read_prompt_once,
                        roll, shares_prompt, states)
from reward import Credit, Scale, action_logp, rollout_loss, score
from rollout import SAMPLED, Dials, Rules, choose, draw, positions_of, states_at, visible

L = P + S


def branching(think="free", K=3, window=0, after=None, **more):
    return Rules(think, K, K, window, after, persist=False, **more)


def alone(model, prefix, rules, u, heat=1.0, offset=0):
    """One branch by itself: the prefix and its thoughts are a sequence like any other, computed
    again at each step. -> thoughts, and the states from which they and the prediction were chosen,
    [thoughts + 1, C]."""
    ids, may, hs = prefix.tolist(), rules.table(V, "cpu")[prefix[-1]], []
    for k in range(rules.max_thoughts + 1):
        x, i = torch.tensor([ids]), torch.arange(len(ids))
        mask = i[:, None] >= i
        if rules.window:  # text that is so near, and all thoughts of one's own
            mask &= (i[:, None] - i < rules.window) | (x >= model.config.vocab_size)
        hs.append(model(x, i + offset, mask[None, None])[:, -1])
        if k == rules.max_thoughts or not may:
            break
        think_logits = model.think_logits(hs[-1])
        if rules.think == "free":
            speak = model.text_logits(hs[-1]).logsumexp(-1)
            gap = (think_logits.logsumexp(-1) - speak).item()
            if not (gap > 0 if heat == 0 else u[k, 0].item() < 1 / (1 + math.exp(-gap))):
                break
        ids.append(V + draw(think_logits, u[k, 1:], heat).item())
    return ids[len(prefix):], torch.cat(hs)


def all_alone(model, text, rules, u, **kind):
    return [[alone(model, row[:P + s], rules, u[:, r * S + s], **kind) for s in range(S)]
            for r, row in enumerate(text)]


def thoughts_of(ro, r, s):
    """One branch's thoughts and their places."""
    at = [i for i in range(L + s, ro.ids.shape[1], S) if ro.is_think[r, i]]
    return [ro.ids[r, i].item() for i in at], at


def test_a_branch_is_a_sequence_of_its_own(tiny):
    """Guards the first lesson: what the branch after a token says is what a row would say that ends
    there. No other branch is in sight."""
    model, ids, rules = tiny(), texts(), branching("forced", 2)
    ro = roll(model, plain(ids, P, S), rules, luck())
    for s in range(S):
        thoughts, _ = thoughts_of(ro, 0, s)
        row = torch.tensor([[*ids[0, :P + s].tolist(), *thoughts]])  # the prefix and its thoughts
        spoken = ro.h[0, ro.chosen_at[0, P + s]]  # whence the next token is predicted
        assert len(thoughts) == 2 and (model(row)[0, -1] - spoken).abs().max() < 1e-9


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("think, K, after, heat", [
    ("free", 3, None, 1.0), ("free", 3, AFTER, 0.0), ("forced", 3, None, 1.0),
    ("forced", 2, AFTER, 0.0), ("free", 1, None, 1.0), ("never", 0, None, 1.0)])
def test_branches_are_separate_rollouts(tiny, window, think, K, after, heat):
    """Guards that `next_token` is exact. Thoughts, states, logp and scores of the packed run are
    those of R * S separate rollouts. The one gradient forward sees what the sampler saw. All to
    1e-9."""
    model, ids, rules = tiny(), texts(), branching(think, K, window, after)
    text = plain(ids, P, S, offset=4)
    ro, u = roll(model, text, rules, luck(), Dials(1.0, heat)), numbers(K, R * S)
    h = states(model, ro, rules)
    assert ro.ids.shape == (R, L + K * S) and (h - ro.h).abs().max() < 1e-9
    logp = action_logp(model.logits(states_at(h, ro.chosen_at)), V, ro.ids, ro.gated, ro.given)
    r, lengths = score(model, ro, text.pays).r, set()
    for row, branches in enumerate(all_alone(model, ids, rules, u, heat=heat, offset=4)):
        for s, (thoughts, hs) in enumerate(branches):
            own, at = thoughts_of(ro, row, s)
            assert own == thoughts
            lengths.add(len(own))
            wanted = model.logits(hs).log_softmax(-1)
            p_text = wanted[-1, :V].log_softmax(-1)
            assert r[row, s].item() == pytest.approx(p_text[ids[row, P + s]].item(), abs=1e-9)
            may = think == "free" and bool(rules.table(V, "cpu")[ids[row, P + s - 1]])
            for j, (i, z) in enumerate([*zip(at, own), (P + s, None)]):
                think_mass, speak_mass = wanted[j, V:].logsumexp(-1), wanted[j, :V].logsumexp(-1)
                open_gate = may and len(own) < K + (z is not None)
                assert bool(ro.gated[row, i]) == open_gate
                action = (wanted[j, z] - think_mass if z is not None else torch.zeros(())) + (
                    open_gate * (think_mass if z is not None else speak_mass))
                assert logp[row, i].item() == pytest.approx(action.item(), abs=1e-9)
    assert len(lengths) > (think == "free") or K < 2


@pytest.mark.parametrize("think", ["free", "forced"])
def test_gradient_is_that_of_separate_rollouts(tiny, think):
    """Guards the packed gradient pass: loss and every gradient are those of the R * S sequences,
    each by itself."""
    model, ids, rules = tiny(), texts(), branching(think)
    K, free, u = 3, think == "free", numbers(3, R * S)
    ro = roll(model, plain(ids, P, S), rules, luck(u))
    adv, weight = numbers(2, R * S)[:, :, 0].view(2, R, S) - 0.3
    loss, _ = rollout_loss(model, states(model, ro, rules), ro, Credit(adv), weight,
                           Scale(0.7, 0.2, 1.4))
    wanted = 0.0
    for row, branches in enumerate(all_alone(model, ids, rules, u)):
        for s, (thoughts, hs) in enumerate(branches):
            logits, n = model.logits(hs), len(thoughts)
            done = torch.tensor([*thoughts, ids[row, P + s]])
            gated = torch.tensor([free] * n + [free and n < K])
            logp = action_logp(logits, V, done, gated, torch.arange(n + 1) == n)
            wanted = wanted - 0.7 * adv[row, s] * logp.sum()
            wanted = wanted - weight[row, s] * logits[-1, :V].log_softmax(-1)[done[-1]]
            for j in range(n):
                g = logits[j, V:].softmax(-1)
                H = -(g * g.log()).sum()
                wanted = wanted - 0.2 * max(0.0, 1 - H.item() / 1.4) * H
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-9)
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters))
    assert all((ours - theirs).abs().max() < 1e-9 for ours, theirs in pairs)


@pytest.mark.parametrize("P, S, K, window, counts", [
    (2, 3, 2, 0, "places"), (1, 4, 3, 2, "places"), (1, 4, 3, 2, "text"), (3, 1, 1, 0, "text"),
    (2, 2, 0, 0, "places")])
def test_layout_by_loops(P, S, K, window, counts):
    """Guards the drawing in `branch_layout` against loops over all pairs of places."""
    positions, mask = branch_layout(P, S, K, branching(K=K, window=window, counts=counts), "cpu")
    where = [("text", i, i) for i in range(P + S)] + [
        (s, P - 1 + s, P + s + k) for k in range(K) for s in range(S)]
    in_text = counts == "text" and window  # a thought takes no position
    assert positions.tolist() == [w[1] if in_text else w[2] for w in where]
    assert mask.shape == (1, 1, len(where), len(where))
    for q, (mine, end, position) in enumerate(where):
        for k, (other, _, there) in enumerate(where):
            if other == "text":
                back = {"places": position - k, "text": end - k}[counts]
                wanted = k <= end and (window == 0 or back < window)
            else:
                wanted = mine == other and there <= position
            assert mask[0, 0, q, k].item() == wanted, (q, k)


@pytest.mark.parametrize("counts", ["places", "text"])
@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("K, reread", [(3, 2), (2, 1), (4, 3)])
def test_rereading_is_a_thought_written_there(tiny, counts, window, K, reread):
    """Guards `reread`. Thought k of K sees what a thought would see that stands reread * (K - k)
    tokens before the prefix's end. A short sequence by itself gives the same state, to 1e-9. The
    last thought speaks. Where windows count text, a window of one shows it the token before it."""
    model, ids = tiny(), texts()
    rules = branching("forced", K, window, AFTER, reread=reread, counts=counts)
    u = numbers(K, R * S)
    text = plain(ids, P, S, offset=4)
    ro = roll(model, text, rules, luck(u))
    assert (states(model, ro, rules) - ro.h).abs().max() < 1e-9
    r = score(model, ro, text.pays).r
    for row in range(R):
        for s in range(S):
            thoughts, at = thoughts_of(ro, row, s)
            assert len(thoughts) == (K if ids[row, P + s - 1] in AFTER else 0)
            h = ro.h[row, P + s - 1]
            for k, (i, z) in enumerate(zip(at, thoughts), 1):
                own = u[k - 1, row * S + s, 1:]
                assert z == V + draw(model.think_logits(h[None]), own, float(k > 1)).item()
                reads = max(P + s - 1 - reread * (K - k), 0)
                x = torch.cat([ids[row, :reads + 1], torch.tensor([z])])[None]
                lone = Rules(window=window, counts=counts)
                h = model(x, positions_of(x >= V, lone) + 4, visible(x >= V, lone))[0, -1]
                assert (h - ro.h[row, i]).abs().max() < 1e-9
            logp = model.text_logits(h).log_softmax(-1)[ids[row, P + s]]
            assert r[row, s].item() == pytest.approx(logp.item(), abs=1e-9)


def test_a_branch_that_rereads_chooses_once(tiny):
    """Guards the gate of a branch that rereads. It opens by the first step's number against p_think
    at the prefix's end, and all K thoughts follow. A choice is weighed once, wherever it fell."""
    model, ids, K = tiny(), texts(), 3
    rules, u = branching("free", K, 1, reread=1, counts="text"), numbers(K, R * S)
    ro = roll(model, plain(ids, P, S), rules, luck(u))
    p = gate_at(model, ro)
    seen = set()
    for row in range(R):
        for s in range(S):
            thoughts, at = thoughts_of(ro, row, s)
            first = L + s  # step 1 of this branch
            opened = u[0, row * S + s, 0].item() < p[row, first].item()
            assert len(thoughts) == K * opened
            assert ro.gated[row, L:][torch.arange(K) * S + s].tolist() == [opened, False, False]
            assert ro.gated[row, P + s].item() != opened
            seen.add(opened)
    assert seen == {False, True}


def test_siblings_and_edits(tiny):
    """Guards the shared text: siblings that read it once are those that read it themselves; and
    --replace's edit reaches the thoughts, and nothing else."""
    model, ids, rules = tiny(), texts().repeat_interleave(2, 0), branching("forced", 2)
    once, each = (roll(model, plain(ids, P, S, siblings=n), rules, luck()) for n in (2, 1))
    assert torch.equal(once.ids, each.ids) and (once.h - each.h).abs().max() < 1e-9
    edited = roll(model, plain(ids, P, S), rules, luck(), SAMPLED,
                  lambda places, ids: torch.full_like(ids, V + 1))
    assert (edited.ids[edited.is_think] == V + 1).all() and torch.equal(edited.text, once.text)


@pytest.mark.parametrize("think", ["free", "forced"])
def test_own_text(tiny, think):
    """Guards sampling under these rules. Each token of own text comes from a branch of its own, and
    what is shown has the thoughts where they were. A token's thoughts leave no trace in what comes
    after it."""
    model, K = tiny(), 2
    rules, u, ids = branching(think, K), numbers(S * (K + 1), R), texts(length=P)
    ro = roll(model, plain(ids, P, S), rules, luck(u))
    assert ro.text.shape == (R, L) and torch.equal(ro.text[:, :P], ids)
    for r, row in enumerate(ro.kept()):
        assert [i for i in row if i < V] == ro.text[r].tolist()
        said = ids[r].tolist()  # what the model has said so far
        shown = list(said)
        for s in range(S):
            own = u[s * (K + 1):(s + 1) * (K + 1), r]
            thoughts, hs = alone(model, torch.tensor(said), rules, own)
            word = choose(model, hs[-1:], None, False, own[K:], SAMPLED)[0].item()
            said.append(word)
            shown += [*thoughts, word]
        assert row == shown
    refuses(lambda: roll(model, plain(ids, P, 99), rules, luck()))
    refuses(lambda: roll(model, plain(texts(length=P + 1), P, S), rules, luck()), "all given")


# At full size

def naive_states(model, ids, rules, offset=0, ends=()):
    """One row, place by place, without a cache: the whole prefix again for each place. A thought's
    input is the state that was computed one place earlier. ids [n]; ends: as in `in_sight`"""
    inputs, hs, is_think = [], [], [token >= V for token in ids]
    for i, token in enumerate(ids):
        x = hs[-1] if token >= V else model.wte.weight[token]
        takes_none = rules.counts == "text" and rules.window  # a thought takes no position
        position = is_think[:i + 1].count(False) - 1 if takes_none else i
        inputs.append(x + model.wpe.weight[position + offset])
        mask = torch.tensor([[k in in_sight(is_think, rules, q, ends) for k in range(i + 1)]
                             for q in range(i + 1)])
        x = torch.stack(inputs)[None]
        for block in model.h:
            x = block(x, mask[None, None], None, None)
        hs.append(model.ln_f(x)[0, -1])
    return torch.stack(hs)


# Continuous thoughts

@pytest.mark.parametrize("window, counts", [(0, "places"), (3, "places"), (2, "text"),
                                            (1, "steps")])
@pytest.mark.parametrize("think, K, given", [("forced", 1, L), ("forced", 2, L), ("free", 2, L),
                                             ("free", 1, P)])
def test_thoughts_are_the_last_states(tiny, window, counts, think, K, given):
    """Guards Coconut's definition in all three places. The sampler's states, those of the gradient
    pass, and its gradients are those of a loop without a cache, to 1e-9."""
    model = tiny(N=1, offset=2.0)
    rules = Rules(think, K, 5, window, AFTER, continuous=True, counts=counts)
    ro = roll(model, plain(texts(length=given), P, S, offset=2), rules, luck())
    h, real = states(model, ro, rules), ro.is_think | ro.is_text
    assert ro.is_think.any() and (h - ro.h)[:, :-1][real[:, :-1]].abs().max() < 1e-9
    wanted = [naive_states(model, ids, rules, 2, ends)
              for ids, ends in zip(ro.kept(), ro.ends.tolist())]
    assert all((h[r, :len(w)] - w).abs().max() < 1e-9 for r, w in enumerate(wanted))
    probe = torch.randn(h.shape, generator=torch.Generator().manual_seed(0), dtype=h.dtype)
    some = [p for name, p in model.named_parameters() if name not in ("think", "gate_bias")]
    ours = sum((h * probe)[r, :len(w)].sum() for r, w in enumerate(wanted))
    theirs = sum((w * probe[r, :len(w)]).sum() for r, w in enumerate(wanted))
    pairs = zip(torch.autograd.grad(ours, some), torch.autograd.grad(theirs, some))
    assert all((a - b).abs().max() < 1e-9 for a, b in pairs)


def test_gradient_passes_through_thoughts(tiny):
    """Guards against a cut tape. With one layer and a window of 1, the state at the end can reach
    the first token only through thoughts, and it does."""
    model, rules = tiny(N=1, L=1), Rules("forced", 1, 8, 1, None, continuous=True)
    ro = roll(model, plain(texts(), P, S), rules, luck())
    last = ro.chosen_at[0, ro.place[0, -1]]
    end = states(model, ro, rules)[0, last].sum()
    g = torch.autograd.grad(end, model.wpe.weight)[0]
    assert g[P - 1].abs().max() > 1e-12 and last > 2 * P


@pytest.mark.parametrize("think", ["forced", "free"])
def test_continuous_branches(tiny, think):
    """Guards continuous thoughts that are forgotten: every branch is the sequence that it would be
    by itself."""
    model, rules = tiny(N=1, offset=1.0), branching(think, continuous=True)
    ro = roll(model, plain(texts(), P, S), rules, luck())
    h = states(model, ro, rules)
    assert ro.is_think.any() and (h - ro.h)[ro.is_think].abs().max() < 1e-9
    for r in range(R):
        for s in range(S):
            ids = ro.text[r, :P + s].tolist() + [V] * len(thoughts_of(ro, r, s)[0])
            by_itself = naive_states(model, ids, Rules())
            assert (h[r, ro.chosen_at[r, P + s]] - by_itself[-1]).abs().max() < 1e-9


@pytest.mark.parametrize("rules", [
    Rules("free", 2, 6), Rules("forced", 1, 6, 2, counts="text"),
    Rules("forced", 1, 6, 1, AFTER, counts="steps"), branching("free", 2),
    branching("forced", 2, 2), branching("forced", 2, 1, reread=1)])
def test_a_prompt_is_read_once(tiny, rules):
    """Guards the one row of a prompt that siblings share: states and gradients are those of whole
    rows. Rows whose prompts differ have no part in it, nor have short prompts."""
    model, prompt = tiny(offset=1.0), 12
    ids = torch.randint(V, (2, prompt + S), generator=torch.Generator().manual_seed(3))
    text = replace(plain(ids, prompt, S), offset=4).repeat(3)
    ro = roll(model, text, rules, luck(1))
    assert shares_prompt(ro) and ro.is_think.any() and len(set(map(tuple, ro.ids.tolist()))) > 2
    positions, mask = layout(ro, rules)
    weight = torch.randn(ro.h.shape, dtype=torch.float64) * (ro.is_text | ro.is_think)[..., None]
    found = []
    for h in (model(ro.ids, positions, mask), read_prompt_once(model, ro, positions, mask)):
        model.zero_grad()
        (h * weight).sum().backward()
        found.append([h[weight != 0], *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(*found, strict=True))
    drawn_from = (states(model, ro, rules) - ro.h)[:, :-1]  # nothing follows the last place
    assert drawn_from[weight[:, :-1] != 0].abs().max() < 1e-9
    part = states(model, ro.rows(slice(3, 6)), rules) - states(model, ro, rules)[3:]
    assert part[weight[3:] != 0].abs().max() < 1e-9
    assert not shares_prompt(ro.rows(slice(1, 4)))  # two of one context, one of the other
    if ro.ends is not None:  # the same prompt, with steps that end elsewhere
        ends = ro.ends.clone()
        ends[1, 0] = ~ends[1, 0]
        assert not shares_prompt(replace(ro, ends=ends))
    assert not shares_prompt(roll(model, plain(ids, 2, 10 + S).repeat(3), rules, luck(1)))


@pytest.mark.parametrize("rules", [
    Rules("free", 2, 6, continuous=True), Rules("forced", 1, 6, 4, AFTER, continuous=True),
    Rules("forced", 2, 6, 2, AFTER, continuous=True, counts="text"),
    Rules("free", 2, 6, 1, continuous=True, counts="steps"),
    branching("free", 3, continuous=True), branching("forced", 2, 5, continuous=True)])
def test_at_once_is_one_by_one(tiny, rules):
    """Guards the gradient through chains of continuous thoughts on a GPU. One forward, and the
    gradient carried back thought by thought, give what a forward for each thought gives."""
    model, found = tiny(N=1, offset=3.0), []
    ro = roll(model, plain(texts(), P, S), rules, luck())
    weight = torch.randn(ro.h.shape, dtype=torch.float64) * (ro.is_text | ro.is_think)[..., None]
    for way in (one_by_one, at_once):
        model.zero_grad()
        h = way(model, ro, rules, *layout(ro, rules))
        (h * weight).sum().backward()
        found.append((h, [p.grad for p in model.parameters() if p is not model.think]))
    (h, gradients), (h_at_once, gradients_at_once) = found
    assert ro.is_think.sum() > R and (h - h_at_once)[weight != 0].abs().max() < 1e-9
    for a, b in zip(gradients, gradients_at_once):
        assert (a is None) == (b is None) and (a is None or (a - b).abs().max() < 1e-9)
