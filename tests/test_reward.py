"""reward.py: each reward, baseline and gradient against a version that is slow and hard to get wrong."""
import math
from itertools import product

import pytest
import torch

import reward
from conftest import one_line
from reward import (advantage, entropy_price, floored, returns_to_go, rollout_loss, sibling_spread, slot_rewards, speaking_states,
                    teacher_states)
from rollout import Rules, layout, rollout, visible

R, P, S, V, N = 4, 3, 6, 11, 5
AFTER = [1, 4, 6, 9]


def texts(rows=R, length=P, V=V, seed=1):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))


def noise(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(model, ro, window=0):
    return model(ro.ids, mask=visible(ro.is_think, window))


def places(ro, r):
    """(place, slot in 0..S-1, is it a thought?) of every token of row r after the prompt, counted one by one."""
    spoken = 0
    for i in range(ro.ids.shape[1]):
        is_think = bool(ro.is_think[r, i])
        if i >= ro.P and (is_think or ro.is_text[r, i]):
            yield i, spoken - ro.P, is_think
        spoken += bool(ro.is_text[r, i])


def naive_log_q(teacher, ro, r, s):
    """The teacher's floored log-probs of text token s of row r, from the text alone, cut off before that token."""
    text = ro.ids[r][ro.is_text[r]][:ro.P + s].unsqueeze(0)
    p = teacher.logits(teacher(text))[0, -1].softmax(-1)
    return torch.log(0.98 * p + 0.02 / len(p))


@pytest.fixture
def teacher(tiny):
    return tiny(N=0, L=1, C=8, seed=5).requires_grad_(False)


# the pull of probable text

@pytest.mark.parametrize("rules", [Rules("free", 2, 5), Rules("forced", 1, 4, 3, AFTER), Rules("free", 2, 2, 3, persist=False)],
                         ids=["free", "forced, window", "branches"])
def test_drift_one_thought_at_a_time(tiny, uniforms, rules):
    """Guards --pull: for each thought alone the thinker's log g(z), minus the base's log p of the word z after all that the
    thinker saw, thoughts read as words. A base that is the thinker itself, born a moment ago, is 0 away."""
    model, base = tiny(N=V), tiny(N=0, seed=3)
    luck = uniforms(S + rules.budget, R) if rules.persist else uniforms(2, R * S)
    ro = rollout(model, texts(length=P + S), P, S, rules, luck, offset=7)
    far, wanted = reward.drift(model, base, ro, rules, 7), torch.zeros(R, ro.ids.shape[1] - P)
    positions, mask = layout(ro, rules, 7)
    mask = torch.ones(len(positions), len(positions)).tril().bool().view(1, 1, *[len(positions)] * 2) if mask is None else mask
    for r in range(R):
        for i in range(P, ro.ids.shape[1]):
            if ro.is_think[r, i]:
                left = int(ro.left[r, i])
                seen = mask[r % len(mask), 0, left].nonzero().squeeze(1).tolist()
                assert all(j <= left for j in seen) and left in seen
                words = torch.tensor([[x - V if x >= V else x for x in ro.ids[r].tolist()]])
                row = mask[r % len(mask)].unsqueeze(0)
                own, its = model(ro.ids[r:r + 1], positions, row), base(words, positions, row)
                z = int(ro.ids[r, i]) - V
                wanted[r, i - P] = (model.think_logits(own[0, left]).softmax(-1)[z].log()
                                    - base.text_logits(its[0, left]).softmax(-1)[z].log())
    assert (far - wanted).abs().max() < 1e-6 and (wanted != 0).sum() > R
    with torch.no_grad():
        for name, p in base.named_parameters():
            if not name.startswith("think"):
                dict(model.named_parameters())[name].copy_(p)
        model.think.copy_(model.wte.weight)
    ro = rollout(model, texts(length=P + S), P, S, rules, luck, offset=7)
    assert reward.drift(model, base, ro, rules, 7).abs().max() < 1e-9 and ro.is_think.any()


def test_a_pull_is_the_gradient_of_the_kl(tiny):
    """Guards the claim in `drift`: the mean over thoughts of drift times grad log g is the gradient of KL(g || base)."""
    model, base, ids = tiny(N=V), tiny(N=0, seed=3), texts(1)
    logg, logp = (x[0, -1].log_softmax(-1) for x in (model.think_logits(model(ids)), base.text_logits(base(ids)).detach()))
    kl = (logg.exp() * (logg - logp)).sum()
    sampled = (logg.exp().detach() * (logg - logp).detach() * logg).sum()
    for a, b in zip(*(torch.autograd.grad(x, [model.think, model.wpe.weight], retain_graph=True) for x in (kl, sampled))):
        assert (a - b).abs().max() < 1e-9 < a.abs().max()


# what pays

def test_teacher_is_blind(tiny, teacher, uniforms):
    """Guards the rule that the teacher sees only the text: thoughts of any number, at any place, leave its
    states as they are (and the student's are not as they were)."""
    model, text = tiny(offset=1.0), texts(length=P + S)
    ros = [rollout(model, text, P, S, Rules("free", 3, M), uniforms(S + M, R, seed=M)) for M in (0, 4, 9)]
    assert len({tuple(ro.is_think.sum(1).tolist()) for ro in ros}) == 3
    plain = teacher(text)[:, P - 1:-1]
    for ro in ros:
        assert teacher_states(teacher, ro).shape == (R, S, 8)
        assert (teacher_states(teacher, ro) - plain).abs().max() < 1e-9
    said = [speaking_states(ro.h, ro) for ro in ros]
    assert (said[0] - said[1]).abs().max() > 0.01 < (said[1] - said[2]).abs().max()


@pytest.mark.parametrize("think", ["free", "forced", "never"])
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("piece", [7, 512])
def test_data_reward(tiny, uniforms, monkeypatch, think, window, piece):
    """Guards the reward of `stream`: log p_text of the data's token, read one place to its left, behind the thoughts;
    slots that do not pay are 0, and a hit is the likeliest text row."""
    monkeypatch.setattr(reward, "PIECE", piece)
    model, text = tiny(), texts(length=P + S)
    M = 5 * (think != "never")
    ro = rollout(model, text, P, S, Rules(think, 2, 5, window, AFTER), uniforms(S + M, R))
    pays = noise(R, S) > 0
    r, hit = slot_rewards(model, ro, None, None, pays)
    all_r, _ = slot_rewards(model, ro, None, None, None)
    h, seen = states(model, ro, window), 0
    for row in range(R):
        for i, s, is_think in places(ro, row):
            if not is_think:
                logits = model.logits(h[row, i - 1])[:V]
                wanted = logits.log_softmax(-1)[text[row, P + s]].item()
                assert all_r[row, s].item() == pytest.approx(wanted, abs=1e-9)
                assert r[row, s].item() == pytest.approx(wanted * bool(pays[row, s]), abs=1e-9)
                assert hit[row, s] == (logits.argmax() == text[row, P + s])
                seen += 1
    assert seen == R * S


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("sampled", [False, True])
def test_teacher_reward(tiny, teacher, uniforms, monkeypatch, beta, sampled):
    """Guards approach A's reward: the exact one-step KL over all V rows (or its value at the sampled token), against
    a floored teacher that is asked anew for each token with the text alone."""
    monkeypatch.setattr(reward, "PIECE", 7)
    model = tiny(offset=0.5)
    ro = rollout(model, texts(), P, S, Rules("free", 2, 5), uniforms(S + 5, R))
    assert ro.is_think.any()
    r, hit = slot_rewards(model, ro, teacher, teacher_states(teacher, ro), None, beta, sampled)
    h = states(model, ro)
    for row in range(R):
        for i, s, is_think in places(ro, row):
            if is_think:
                continue
            p, log_q, y = model.logits(h[row, i - 1])[:V].softmax(-1), naive_log_q(teacher, ro, row, s), ro.ids[row, i]
            value = [log_q[v].item() - beta * p[v].log().item() for v in range(V)]
            wanted = value[y] if sampled else sum(p[v].item() * value[v] for v in range(V))
            assert r[row, s].item() == pytest.approx(wanted, abs=1e-9)
            assert hit[row, s] == (p.argmax() == log_q.argmax())
    if beta == 1 and not sampled:
        assert (r <= 0).all() and (r < -0.01).any()  # minus a KL


def test_floor():
    """Guards the floor under the teacher: still a distribution, nothing below log(.02 / V), order kept."""
    logits = torch.tensor([0.0, 100.0, -100.0, 3.0], dtype=torch.float64)
    log_q = floored(logits)
    assert log_q.exp().sum().item() == pytest.approx(1)
    assert log_q.min().item() == pytest.approx(math.log(0.02 / 4)) and log_q.argmax() == 1
    assert log_q[1].exp().item() == pytest.approx(0.98 + 0.02 / 4)


@pytest.mark.parametrize("by_teacher", [False, True])
def test_answers_never_use_the_joint_softmax(tiny, teacher, uniforms, by_teacher):
    """Guards the rule that r is of p_text alone: however large the thinking logits are, rewards and the text's own
    gradient stay as they are. (With the joint softmax every data token would push p_think to 0.)"""
    model = tiny()
    ro = rollout(model, texts(length=P + S), P, S, Rules("free", 1, 5), uniforms(S + 5, R))
    judge = (teacher, teacher_states(teacher, ro)) if by_teacher else (None, None)
    scale = {"policy": 0.0, "entropy": 0.0, "target": 1.0}

    def measure():
        r, hit = slot_rewards(model, ro, *judge, None)
        model.zero_grad()
        loss, _ = rollout_loss(model, states(model, ro), ro, noise(R, S), torch.ones(R, S), scale, *judge)
        loss.backward()
        return r, hit, loss.detach(), model.wte.weight.grad.clone(), model.think_offset.grad.clone()

    before = measure()
    with torch.no_grad():
        model.think_offset += 60.0
    after = measure()
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2]))
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(before[2:], after[2:])) and after[4] == 0
    assert ro.gated.any() and before[3].abs().max() > 0.01


# returns and baselines

def test_returns_by_hand():
    """Guards the order of time: a return counts from its own slot on, later slots by gamma each."""
    r = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
    assert returns_to_go(r, 0.5).tolist() == [[3.0, 4.0, 4.0], [2.0, 4.0, 8.0]]
    assert returns_to_go(r, 0.0).tolist() == r.tolist()
    assert returns_to_go(r, 1.0).tolist() == [[7.0, 6.0, 4.0], [8.0, 8.0, 8.0]]


def test_leave_one_out_by_hand():
    """Guards the baseline: the mean of the others, of the same context, at the same slot, and never oneself."""
    returns = torch.tensor([[1.0, 10.0], [3.0, 10.0], [8.0, 40.0],  # context 0, G = 3
                            [0.0, 5.0], [0.0, 5.0], [6.0, 5.0]])  # context 1
    wanted = [[1 - 5.5, 10 - 25.0], [3 - 4.5, 10 - 25.0], [8 - 2.0, 40 - 10.0], [-3.0, 0.0], [-3.0, 0.0], [6.0, 0.0]]
    assert advantage(returns, 3).tolist() == [pytest.approx(w) for w in wanted]


@pytest.mark.parametrize("G", [2, 3, 8])
def test_leave_one_out_is_the_mean_of_the_others(G):
    """Guards the closed form G / (G - 1) and the grouping of rows against loops, on random returns."""
    returns = noise(4 * G, S)
    out = advantage(returns, G)
    for row in range(4 * G):
        first = row // G * G
        others = [returns[i] for i in range(first, first + G) if i != row]
        assert (out[row] - (returns[row] - sum(others) / len(others))).abs().max() < 1e-9
    changed = returns.clone()
    changed[0] += 5  # own luck moves one's own advantage by as much: oneself is not in one's baseline
    assert (advantage(changed, G)[0] - out[0] - 5).abs().max() < 1e-9
    assert torch.equal(advantage(changed, G)[G:], out[G:])


def test_one_sibling():
    """Guards G = 1: no other to compare with is a sentence, and not 0 / 0."""
    with pytest.raises(ValueError) as e:
        advantage(noise(3, S), 1)
    one_line(e)
    assert torch.isfinite(advantage(noise(3, S), 1, "batch")).all()


def test_baselines_on_an_easy_context():
    """Guards the choice of baseline: where all siblings fare the same, thoughts made no difference and must earn
    nothing. A mean over contexts pays them for standing before easy text; it is here to be broken."""
    easy, hard = torch.full((4, S), -0.1), torch.full((4, S), -5.0)
    returns = torch.cat([easy, hard])
    assert advantage(returns, 4, "loo").abs().max() < 1e-6 and sibling_spread(returns, 4) < 1e-6
    assert (advantage(returns, 4, "batch")[:4] > 2).all() and (advantage(returns, 4, "batch")[4:] < -2).all()
    assert torch.equal(advantage(returns, 4, "none"), returns)
    returns[0, 0] += 2
    spread = torch.tensor([1.9, -0.1, -0.1, -0.1]).std().item() / (2 * S)
    assert sibling_spread(returns, 4).item() == pytest.approx(spread)


# the loss

def naive_loss(model, h, ro, adv, weight, scale, teacher, beta, sampled):
    """The formulas of the docstrings, token by token, by probabilities, with plain autograd on all V + N logits."""
    loss, entropy = 0.0, 0.0
    for row in range(len(ro.ids)):
        for i, s, is_think in places(ro, row):
            token, gated, a = ro.ids[row, i], bool(ro.gated[row, i]), adv[row, s]
            p = model.logits(h[row, i - 1]).softmax(-1)
            p_speak = p[:V].sum()
            p_text = p[:V] / p_speak
            logpi = torch.zeros((), dtype=torch.float64)
            if is_think:
                g = p[V:] / p[V:].sum()
                logpi = g[token - V].log() + (p[V:].sum().log() if gated else 0)
                H = -(g * g.log()).sum()
                price = min(1.0, 0.05 * math.exp(0.7 * (scale["target"] - H.item())))
                loss, entropy = loss - scale["entropy"] * price * H, entropy + H.item()
            else:
                logpi = logpi + (p_speak.log() if gated else 0)
                if teacher is None:
                    loss = loss - weight[row, s] * p_text[token].log()
                elif not sampled:
                    loss = loss - weight[row, s] * (p_text * (naive_log_q(teacher, ro, row, s) - beta * p_text.log())).sum()
                elif not ro.given[row, i]:
                    logpi = logpi + p_text[token].log()
            loss = loss - scale["policy"] * a * logpi
    return loss, entropy


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()),
                    torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)))


SCALE = {"policy": 0.75, "entropy": 0.0625, "target": 1.5}  # the target: above the entropy of some thoughts, below others'


@pytest.mark.parametrize("mode, given", [("data", P + S), ("teacher", P), ("teacher", P + 2), ("teacher", P + S),
                                         ("sampled", P), ("sampled", P + 2)])
@pytest.mark.parametrize("think, K, after", [("free", 2, None), ("free", 1, AFTER), ("forced", 1, AFTER),
                                             ("never", 1, None)])
@pytest.mark.parametrize("window", [0, 4])
def test_rollout_loss(tiny, teacher, uniforms, monkeypatch, mode, given, think, K, after, window):
    """Guards the loss and every gradient of it against plain autograd, term by term: the hand-made backward pass,
    the pieces, the slots, and which of gate, thought and text each place pays for."""
    monkeypatch.setattr(reward, "PIECE", 5)
    monkeypatch.setattr(reward, "BLOCK", 2 * (V + N) + 1)  # gradients in blocks of two rows, the last of one
    model, M = tiny(offset=0.3), 5 * (think != "never")
    ro = rollout(model, texts(length=given), P, S, Rules(think, K, 5, window, after), uniforms(S + M, R))
    assert think == "never" or (ro.is_think.any() and ro.gated.any() == (think == "free"))
    adv, weight, sampled = noise(R, S), noise(R, S, seed=3).abs(), mode == "sampled"
    judge = teacher if mode != "data" else None
    t_states = teacher_states(teacher, ro) if judge is not None else None
    h = states(model, ro, window)
    loss, entropy = rollout_loss(model, h, ro, adv, weight, SCALE, judge, t_states, 0.6, sampled)
    wanted, wanted_entropy = naive_loss(model, h, ro, adv, weight, SCALE, judge, 0.6, sampled)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-9) and abs(loss.item()) > 0.01
    assert entropy == pytest.approx(wanted_entropy)
    ours, theirs = gradients(model, 3.0 * loss), gradients(model, 3.0 * wanted)
    for name in ours:
        a, b = (torch.zeros(()) if g[name] is None else g[name] for g in (ours, theirs))
        assert (a - b).abs().max() < 1e-9, name
    if think == "free":
        assert ours["think_offset"].abs() > 1e-4 < ours["think"].abs().max()


def test_entropy_price():
    """Guards the price of a nat: .05 at the target, 2.01 times as much a nat below, never over 1; and each choice is
    paid for its own distance."""
    H = torch.tensor([3.0, 2.0, 4.0, -9.0], dtype=torch.float64)
    assert entropy_price(H, 3.0).tolist() == pytest.approx([0.05, 0.05 * math.exp(0.7), 0.05 * math.exp(-0.7), 1.0])


def test_loss_in_micro_batches(tiny, teacher, uniforms):
    """Guards --micro_batch: the loss of all rows is the sum over pieces of rows, and so is its gradient."""
    model = tiny()
    ro = rollout(model, texts(), P, S, Rules("free", 2, 5), uniforms(S + 5, R))
    adv, weight, t_states = noise(R, S), noise(R, S, seed=3), teacher_states(teacher, ro)
    whole, entropy = rollout_loss(model, states(model, ro), ro, adv, weight, SCALE, teacher, t_states)
    parts = [rollout_loss(model, states(model, part), part, adv[a:b], weight[a:b], SCALE, teacher, t_states[a:b])
             for a, b, part in ((a, b, ro.rows(a, b)) for a, b in ((0, 1), (1, R)))]
    assert sum(x.item() for x, _ in parts) == pytest.approx(whole.item(), abs=1e-9)
    assert sum(x for _, x in parts) == pytest.approx(entropy)
    one, two = gradients(model, whole), gradients(model, parts[0][0] + parts[1][0])
    assert all((one[name] - two[name]).abs().max() < 1e-9 for name in one)


@pytest.mark.parametrize("think", ["free", "forced"])
def test_bfloat16(tiny, uniforms, think):
    """Guards --dtype bfloat16, the default of a GPU: sampling, scores and loss run under autocast, and the gradient is
    that of float32 but for rounding."""
    model, teacher = tiny(dtype=torch.float32), tiny(N=0, L=1, C=8, seed=5, dtype=torch.float32)
    scale, loss, grad = {"policy": 0.1, "entropy": 0.1, "target": 1.0}, {}, {}
    with torch.autocast("cpu", torch.bfloat16):
        ro = rollout(model, texts(), P, S, Rules(think, 2, 5, 4, AFTER), uniforms(S + 5, R).to(torch.float32))
        assert ro.is_think.any()
    for on in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            t_states = teacher_states(teacher, ro)
            r, _ = slot_rewards(model, ro, teacher, t_states, None)
            h = states(model, ro, 4)
            loss[on], _ = rollout_loss(model, h, ro, returns_to_go(r, 1.0), torch.ones(R, S), scale, teacher, t_states)
        model.zero_grad()
        loss[on].backward()
        grad[on] = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert r.dtype == grad[on].dtype == torch.float32
    assert (grad[True] - grad[False]).norm() < 0.1 * grad[False].norm()
    assert loss[True].item() == pytest.approx(loss[False].item(), rel=0.05)


def test_idle_places_cost_nothing(tiny, teacher, uniforms):
    """Guards static shapes: a row that is done idles, and whatever stands there adds nothing to the loss."""
    model = tiny(offset=-2.0)
    ro = rollout(model, texts(), P, S, Rules("free", 1, 6), uniforms(S + 6, R))
    idle = ~(ro.is_think | ro.is_text)
    assert idle.any()
    adv, t_states = noise(R, S), teacher_states(teacher, ro)
    losses = []
    for word in (0, 7):
        ro.ids[idle] = word
        losses.append(rollout_loss(model, states(model, ro), ro, adv, torch.ones(R, S), SCALE, teacher, t_states)[0].item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_plain_language_loss(tiny, uniforms):
    """Guards the control without thinking rows: on given text the loss is cross-entropy, by torch's own function."""
    model, text = tiny(N=0), texts(length=P + S)
    ro = rollout(model, text, P, S, Rules("never"), uniforms(S, R))
    scale = {"policy": 1.0, "entropy": 1.0, "target": 1.0}
    loss, entropy = rollout_loss(model, states(model, ro), ro, noise(R, S), torch.ones(R, S), scale)
    logits = model.logits(model(text))[:, P - 1:-1]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, P:].flatten(), reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-9) and entropy == 0


@pytest.mark.parametrize("think", ["free", "forced"])
@pytest.mark.parametrize("baseline", [0.0, 2.5])
def test_expected_gradient_on_given_text(tiny, uniforms, think, baseline):
    """Guards the whole idea on given text: the mean of the loss' gradient over all thoughts, each with its
    probability, is the gradient of E_z[log p_text(y | x, z)], to 1e-9 and with any baseline. Every thought is tried."""
    model, x = tiny(), torch.tensor([[2, 7, 4]])  # "2 7" is the prompt, and 4 must follow
    free = think == "free"
    rows = N + free  # one row a thought, and one that speaks at once
    u = uniforms(2, rows)
    u[0, :, 0] = 0.0
    u[0, N:, 0] = 1 - 1e-12
    ro = rollout(model, x.expand(rows, 3), 2, 1, Rules(think, 1, 1), u, edit=lambda place, ids: V + torch.arange(rows))
    assert ro.ids[:, 2].tolist() == [*range(V, V + N), *([4] if free else [])]
    p = model.logits(model(x[:, :2])[0, -1]).softmax(-1)
    p_text = [model.logits(model(ro.ids[r:r + 1, :3]))[0, -1, :V].softmax(-1)[4] for r in range(N)]
    pi = p[V:] if free else p[V:] / p[V:].sum()
    goal = sum(pi[z] * p_text[z].log() for z in range(N))
    if free:
        goal = goal + p[:V].sum() * (p[4] / p[:V].sum()).log()
        pi = torch.cat([pi, p[:V].sum().view(1)])
    assert pi.sum().item() == pytest.approx(1)
    r, _ = slot_rewards(model, ro, None, None, None)
    scale = {"policy": 1.0, "entropy": 0.0, "target": 1.0}
    mean = 0.0
    for z in range(rows):
        row = ro.rows(z, z + 1)
        loss, _ = rollout_loss(model, states(model, row), row, r[z:z + 1] - baseline, torch.ones(1, 1), scale)
        mean = mean + pi[z].detach() * loss
    wanted, ours = gradients(model, goal), gradients(model, -mean)
    assert all((wanted[name] - ours[name]).abs().max() < 1e-9 for name in wanted if wanted[name] is not None)
    assert wanted["think"].abs().max() > 1e-4


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_expected_gradient_of_sampled_text(tiny, teacher, uniforms, beta):
    """Guards REINFORCE on own text (--text_grad sampled): the mean of the loss' gradient over all texts of two tokens
    is that of E[log q - beta log p], to 1e-9. Every text is tried, with its probability."""
    model, every = tiny(N=0), torch.tensor([[3, a, b] for a, b in product(range(V), repeat=2)])
    ro = rollout(model, every, 1, 2, Rules("never"), uniforms(2, V * V))
    ro.given[:] = False  # as if the model had said all this by itself
    logp = model.logits(model(every)[:, :-1]).log_softmax(-1).gather(-1, every[:, 1:, None]).squeeze(-1)
    log_q = torch.stack([torch.stack([naive_log_q(teacher, ro, r, s)[every[r, 1 + s]] for s in (0, 1)])
                         for r in range(V * V)])
    p = logp.sum(1).exp()
    assert p.sum().item() == pytest.approx(1)
    goal = (p * (log_q - beta * logp).sum(1)).sum()
    t_states = teacher_states(teacher, ro)
    r, _ = slot_rewards(model, ro, teacher, t_states, None, beta, sampled=True)
    scale, none = {"policy": 1.0, "entropy": 0.0, "target": 1.0}, torch.zeros(V * V, 2)
    weighted = returns_to_go(r, 1.0) * p.detach().unsqueeze(1)  # each row's share of the mean
    loss, _ = rollout_loss(model, states(model, ro), ro, weighted, none, scale, teacher, t_states, beta, sampled=True)
    wanted, ours = gradients(model, goal), gradients(model, -loss)
    for name in wanted:
        if name not in ("think", "think_offset"):
            assert (wanted[name] - ours[name]).abs().max() < 1e-9, name
