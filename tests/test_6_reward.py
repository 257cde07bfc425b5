"""Lesson 6, reward.py: what a thought is worth, and the loss that follows.

Siblings think differently in the same text. What each earns from a slot on is its return; minus the
mean of the others, it says how much better than them it did. The loss makes what was better
likelier. Each formula here has a twin that goes token by token, by probabilities.
"""
import math
from dataclasses import replace

import pytest
import torch

import fast
import reward
from conftest import AFTER, P, R, S, V, luck, refuses, settings, texts
from data import Text, plain
from fast import in_one, in_pieces
from next_token import roll, states
from reward import (IN_USE_PRICE, OTHER_TEXT, Credit, Judge, Scale, advantages, behind,
                    entropy_price, floored, less_likely, minus_baseline, rarity_of, returns_to_go,
                    rollout_loss, scale_of, score, sibling_spread, speaking_states,
                    teacher_states, text_weights)
from rollout import Rules

N = 5


def noise(*shape, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def given(n=P + S):
    return plain(texts(length=n), P, S)


def places(ro, r):
    """(place, slot in 0..S-1, is it a thought?) of every token of row r after the prompt, counted
    one by one."""
    spoken = 0
    for i in range(ro.ids.shape[1]):
        is_think = bool(ro.is_think[r, i])
        if i >= ro.P and (is_think or ro.is_text[r, i]):
            yield i, spoken - ro.P, is_think
        spoken += bool(ro.is_text[r, i])


def naive_log_q(teacher, ro, r, s):
    """The teacher's floored logp of text token s of row r, from the text alone, cut off before that
    token."""
    text = ro.ids[r][ro.is_text[r]][:ro.P + s].unsqueeze(0)
    p = teacher.logits(teacher(text))[0, -1].softmax(-1)
    return torch.log(0.98 * p + 0.02 / len(p))


def judge_of(teacher, ro, sampled=False):
    return Judge(teacher, teacher_states(teacher, ro), sampled)


@pytest.fixture
def teacher(tiny):
    return tiny(N=0, L=1, C=8, seed=5).requires_grad_(False)


# Step 4: compare

def test_leave_one_out_by_hand():
    """Guards the first lesson, the baseline: the mean of the others, of the same context, at the
    same slot, and never oneself."""
    returns = torch.tensor([[1.0, 10.0], [3.0, 10.0], [8.0, 40.0],  # context 0, three siblings
                            [0.0, 5.0], [0.0, 5.0], [6.0, 5.0]])  # context 1
    wanted = [[1 - 5.5, 10 - 25.0],  # the others earned (3 + 8) / 2 and (10 + 40) / 2
              [3 - 4.5, 10 - 25.0], [8 - 2.0, 40 - 10.0], [-3.0, 0.0], [-3.0, 0.0], [6.0, 0.0]]
    assert minus_baseline(returns, 3).tolist() == [pytest.approx(w) for w in wanted]


def test_returns_by_hand():
    """Guards the order of time: a return counts from its own slot on, later slots by gamma each."""
    r = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
    assert returns_to_go(r, 0.5).tolist() == [[3.0, 4.0, 4.0], [2.0, 4.0, 8.0]]
    assert returns_to_go(r, 0.0).tolist() == r.tolist()
    assert returns_to_go(r, 1.0).tolist() == [[7.0, 6.0, 4.0], [8.0, 8.0, 8.0]]


@pytest.mark.parametrize("G", [2, 3, 8])
def test_leave_one_out_is_the_mean_of_the_others(G):
    """Guards the closed form G / (G - 1) and the grouping of rows against loops, on random
    returns."""
    returns = noise(4 * G, S)
    out = minus_baseline(returns, G)
    for row in range(4 * G):
        first = row // G * G
        others = [returns[i] for i in range(first, first + G) if i != row]
        assert (out[row] - (returns[row] - sum(others) / len(others))).abs().max() < 1e-9
    changed = returns.clone()
    changed[0] += 5  # moves one's own advantage by as much: oneself is not in one's baseline
    assert (minus_baseline(changed, G)[0] - out[0] - 5).abs().max() < 1e-9
    assert torch.equal(minus_baseline(changed, G)[G:], out[G:])


def test_one_sibling():
    """Guards G = 1: no other to compare with is a sentence, and not 0 / 0."""
    refuses(lambda: minus_baseline(noise(3, S), 1))
    assert torch.isfinite(minus_baseline(noise(3, S), 1, "batch")).all()


def test_baselines_on_an_easy_context():
    """Guards the choice of baseline: where all siblings fare the same, thoughts made no difference
    and must earn nothing. A mean over contexts pays them for standing before easy text; it is here
    to be broken."""
    easy, hard = torch.full((4, S), -0.1), torch.full((4, S), -5.0)
    returns = torch.cat([easy, hard])
    assert minus_baseline(returns, 4, "loo").abs().max() < 1e-6
    assert sibling_spread(returns, 4, torch.ones_like(returns)) < 1e-6
    batch = minus_baseline(returns, 4, "batch")
    assert (batch[:4] > 2).all() and (batch[4:] < -2).all()
    assert torch.equal(minus_baseline(returns, 4, "none"), returns)
    returns[0, 0] += 2
    spread = torch.tensor([1.9, -0.1, -0.1, -0.1]).std().item() / (2 * S)
    assert sibling_spread(returns, 4, torch.ones_like(returns)) == pytest.approx(spread)


def test_a_thought_costs(tiny):
    """Guards --think_cost, and a cost that a lab adds to each place: each thought takes its cost
    off its own slot, and off nothing else. What is left is divided by its spread over choices."""
    ro = roll(tiny(), given(), Rules("free", 2, 5), luck())
    s = replace(settings(baseline="none", think_cost=0.5), samples=R, gamma=0.0)
    extra = noise(R, ro.ids.shape[1] - P).abs() * ro.is_think[:, P:]
    nothing, plain_cost, more = torch.zeros(3, R, S, dtype=torch.float64)
    chosen = []
    for row in range(R):
        for i, slot, is_think in places(ro, row):
            plain_cost[row, slot] += 0.5 * is_think
            more[row, slot] += extra[row, i - P]
            chosen += [(row, slot)] * bool(is_think or ro.gated[row, i])
    credit = advantages(nothing, ro, given(), s)
    assert (credit.returns + plain_cost).abs().max() < 1e-9 and (plain_cost > 0).any()
    assert (credit.choices, credit.thoughts) == (len(chosen), ro.is_think.sum())
    spread = torch.stack([credit.returns[at] for at in chosen]).std(correction=0)
    assert (credit.advantage * (spread + 0.02) - credit.returns).abs().max() < 1e-9
    priced = advantages(nothing, ro, given(), s, extra)
    assert (priced.returns + plain_cost + more).abs().max() < 1e-9 and (more > 0).any()


def test_own_text_as_a_choice(tiny):
    """Guards --reward sampled: own text is chosen as thoughts are, and counts where what was chosen
    is counted."""
    ro = roll(tiny(), given(P), Rules("free", 2, 5), luck())
    s = replace(settings(approach="teacher"), samples=R, baseline="none")
    chosen = [advantages(torch.zeros(R, S), ro, given(P), replace(s, reward=how)).choices
              for how in ("kl", "sampled")]
    assert chosen[0] == (ro.is_think | ro.gated).sum()
    assert chosen[1] == (ro.is_think | ro.is_text)[:, P:].sum() > chosen[0]


# Step 3: score

def test_teacher_is_blind(tiny, teacher):
    """Guards the rule that the teacher sees only the text. Thoughts of any number, at any place,
    leave its states as they are (and the student's are not as they were)."""
    model, text = tiny(offset=1.0), given()
    ros = [roll(model, text, Rules("free", 3, M), luck(M)) for M in (0, 4, 9)]
    assert len({tuple(ro.is_think.sum(1).tolist()) for ro in ros}) == 3
    wanted = teacher(text.ids)[:, P - 1:-1]
    for ro in ros:
        assert teacher_states(teacher, ro).shape == (R, S, 8)
        assert (teacher_states(teacher, ro) - wanted).abs().max() < 1e-9
    said = [speaking_states(ro.h, ro) for ro in ros]
    assert (said[0] - said[1]).abs().max() > 0.01 < (said[1] - said[2]).abs().max()


@pytest.mark.parametrize("think", ["free", "forced", "never"])
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("piece", [7, 512])
def test_data_reward(tiny, monkeypatch, think, window, piece):
    """Guards the reward of `stream`: log p_text of the data's token, read one place to its left,
    behind the thoughts. Slots that do not pay are 0, and a hit is the likeliest text row."""
    monkeypatch.setattr(fast, "ROWS", piece)
    model, text, rules = tiny(), given(), Rules(think, 2, 5, window, AFTER)
    ro, pays, seen = roll(model, text, rules, luck()), (noise(R, S) > 0).float(), 0
    r, hit, _ = score(model, ro, pays)
    all_r, h = score(model, ro, text.pays).r, states(model, ro, rules)
    for row in range(R):
        for i, s, is_think in places(ro, row):
            if not is_think:
                logits = model.logits(h[row, i - 1])[:V]
                wanted = logits.log_softmax(-1)[text.ids[row, P + s]].item()
                assert all_r[row, s].item() == pytest.approx(wanted, abs=1e-9)
                assert r[row, s].item() == pytest.approx(wanted * bool(pays[row, s]), abs=1e-9)
                assert hit[row, s] == (logits.argmax() == text.ids[row, P + s])
                seen += 1
    assert seen == R * S


@pytest.mark.parametrize("sampled", [False, True])
def test_teacher_reward(tiny, teacher, monkeypatch, sampled):
    """Guards the reward of `teacher`: the exact one-step KL over all V rows, or log q of the
    sampled token. Here a floored teacher reads the text again for each token."""
    monkeypatch.setattr(fast, "ROWS", 7)
    model, rules = tiny(offset=0.5), Rules("free", 2, 5)
    ro = roll(model, given(P), rules, luck())
    r, hit, _ = score(model, ro, torch.ones(R, S), teacher, sampled)
    h = states(model, ro, rules)
    for row in range(R):
        for i, s, is_think in places(ro, row):
            if is_think:
                continue
            p, y = model.logits(h[row, i - 1])[:V].softmax(-1), ro.ids[row, i]
            log_q = naive_log_q(teacher, ro, row, s)
            kl = sum(p[v].item() * (p[v].log() - log_q[v]).item() for v in range(V))
            assert r[row, s].item() == pytest.approx(log_q[y].item() if sampled else -kl, abs=1e-9)
            assert hit[row, s] == (p.argmax() == log_q.argmax())
    assert ro.is_think.any() and (r <= 0).all() and (r < -0.01).any()


def test_floor():
    """Guards the floor under the teacher: still a distribution, nothing below log(.02 / V), order
    kept."""
    log_q = floored(torch.tensor([0.0, 100.0, -100.0, 3.0], dtype=torch.float64))
    assert log_q.exp().sum().item() == pytest.approx(1) and log_q.argmax() == 1
    assert log_q.min().item() == pytest.approx(math.log(0.02 / 4))
    assert log_q[1].exp().item() == pytest.approx(0.98 + 0.02 / 4)


@pytest.mark.parametrize("by_teacher", [False, True])
def test_answers_never_use_the_joint_softmax(tiny, teacher, by_teacher):
    """Guards the rule that r is of p_text alone: however large the thinking logits are, rewards and
    the text's own gradient stay as they are. (With the joint softmax every data token would push
    p_think to 0.)"""
    model, rules = tiny(), Rules("free", 1, 5)
    ro = roll(model, given(), rules, luck())
    judge, everything = judge_of(teacher, ro) if by_teacher else None, torch.ones(R, S)

    def measure():
        r, hit, _ = score(model, ro, everything, teacher if by_teacher else None)
        model.zero_grad()
        loss, _ = rollout_loss(model, states(model, ro, rules), ro, Credit(noise(R, S)), everything,
                               Scale(0.0, 0.0, 1.0), judge)
        loss.backward()
        return r, hit, loss.detach(), model.wte.weight.grad.clone(), model.gate_bias.grad.clone()

    before = measure()
    with torch.no_grad():
        model.gate_bias += 60.0
    after = measure()
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2]))
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(before[2:], after[2:])) and after[4] == 0
    assert ro.gated.any() and before[3].abs().max() > 0.01


# Step 5: the loss

def naive_loss(model, h, ro, adv, widen, weight, scale, judge):
    """The formulas of reward.py, token by token, by probabilities, with plain autograd on all V + N
    logits."""
    loss, entropy = 0.0, 0.0
    for row in range(len(ro.ids)):
        for i, s, is_think in places(ro, row):
            token, gated = ro.ids[row, i], bool(ro.gated[row, i])
            p = model.logits(h[row, i - 1]).softmax(-1)
            p_speak, p_text = p[:V].sum(), p[:V] / p[:V].sum()
            logp = torch.zeros((), dtype=torch.float64)
            if is_think:
                g = p[V:] / p[V:].sum()
                logp = g[token - V].log() + (p[V:].sum().log() if gated else 0)
                H = -(g * g.log()).sum()
                price = max(0.0, 1 - H.item() / scale.target)
                loss, entropy = loss - scale.entropy * price * H, entropy + H.item()
                loss = loss - scale.entropy * widen[row, s] * g.log().sum() / len(g)
                if scale.rarity is not None:
                    loss = loss - scale.entropy * IN_USE_PRICE * (g * scale.rarity).sum()
            else:
                logp = logp + (p_speak.log() if gated else 0)
                if judge is None:
                    loss = loss - weight[row, s] * p_text[token].log()
                elif not judge.sampled:
                    log_q = naive_log_q(judge.teacher, ro, row, s)
                    loss = loss - weight[row, s] * (p_text * (log_q - p_text.log())).sum()
                elif not ro.given[row, i]:
                    logp = logp + p_text[token].log()
            loss = loss - scale.policy * adv[row, s] * logp
    return loss, entropy


def gradients(model, loss):
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True,
                                retain_graph=True)
    zero = torch.zeros(())
    return {name: zero if g is None else g for (name, _), g in zip(model.named_parameters(), grads)}


# the target: above the entropy of some thoughts, below others'. And some rows are rare
SCALE = Scale(0.75, 0.0625, 1.5, noise(N, seed=8).abs())


@pytest.mark.parametrize("source", [("data", P + S), ("teacher", P), ("teacher", P + 2),
                                    ("teacher", P + S), ("sampled", P), ("sampled", P + 2)])
@pytest.mark.parametrize("kind", [("free", 2, None), ("free", 1, AFTER), ("forced", 1, AFTER),
                                  ("never", 1, None)])
@pytest.mark.parametrize("window", [0, 4])
def test_rollout_loss(tiny, teacher, monkeypatch, source, kind, window):
    """Guards the loss and every gradient of it against plain autograd, term by term. That covers
    the hand-made backward pass, the pieces, the slots, and which of gate, thought and text each
    place pays for."""
    monkeypatch.setattr(fast, "ROWS", 5)
    # gradients in blocks of two rows, the last of one
    monkeypatch.setattr(fast, "BLOCK", 2 * (V + N) + 1)
    (mode, n), (think, K, after) = source, kind
    model, rules = tiny(offset=0.3), Rules(think, K, 5, window, after)
    ro = roll(model, given(n), rules, luck())
    assert think == "never" or (ro.is_think.any() and ro.gated.any() == (think == "free"))
    adv, weight = noise(R, S), noise(R, S, seed=3).abs()
    judge = None if mode == "data" else judge_of(teacher, ro, mode == "sampled")
    h = states(model, ro, rules)
    widen = torch.rand(R, S, generator=torch.Generator().manual_seed(8), dtype=adv.dtype)
    loss, entropy = rollout_loss(model, h, ro, Credit(adv, widen), weight, SCALE, judge)
    wanted, wanted_entropy = naive_loss(model, h, ro, adv, widen, weight, SCALE, judge)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-9) and abs(loss.item()) > 0.01
    assert entropy == pytest.approx(wanted_entropy)
    ours, theirs = gradients(model, 3.0 * loss), gradients(model, 3.0 * wanted)
    for name in ours:
        assert (ours[name] - theirs[name]).abs().max() < 1e-9, name
    if think == "free":
        assert ours["gate_bias"].abs() > 1e-4 < ours["think"].abs().max()


@pytest.mark.parametrize("rows, block", [(1, 1), (5, 40), (512, 10**6)])
def test_in_pieces_is_in_one(tiny, monkeypatch, rows, block):
    """Guards the trick itself: a loss over logits that never all exist, and its hand-made
    gradients, are those of all logits at once."""
    monkeypatch.setattr(fast, "ROWS", rows)
    monkeypatch.setattr(fast, "BLOCK", block)
    model, h, y = tiny(offset=0.4), noise(13, 16).requires_grad_(), torch.arange(13) % (V + N)

    def loss(logits, V, y, a):  # any function of one row's logits at a time
        logp = logits.log_softmax(-1)
        return (a * logp.gather(-1, y[:, None])[:, 0].square()).sum(), logp[:, :V].detach().sum()

    out = []
    for how in (in_pieces, in_one):
        value, number = how(loss, h, model.wte.weight, model.think, model.gate_bias,
                            [y, noise(13)])
        grads = torch.autograd.grad(
            3 * value, [h, model.wte.weight, model.think, model.gate_bias])
        out.append([value, number, *grads])
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(*out)) and out[0][0].abs() > 0.1


def test_entropy_price():
    """Guards the price of a nat: the share of the target that a choice lacks, and nothing above.
    Each choice is paid for its own distance."""
    H = torch.tensor([3.0, 2.0, 4.0, 0.0])
    assert entropy_price(H, 3.0).tolist() == pytest.approx([0, 1 / 3, 0, 1])
    assert entropy_price(H, 0.0).tolist()[:3] == [0, 0, 0]  # --entropy 0


def test_rarity(tiny, monkeypatch):
    """Guards the rows in use. One thought for every context: -log of how often each row is chosen,
    in the mean over all thoughts. Enough rows in use, or a single row: nothing."""
    model, rules = tiny(), Rules("forced", 1, 5, 0, AFTER)
    ro = roll(model, given(P + S), rules, luck())
    assert rarity_of(model, ro) is None
    monkeypatch.setattr(reward, "IN_USE", 0.8)  # four rows of five
    with torch.no_grad():
        model.think *= 30
    ro = roll(model, given(P + S), rules, luck())
    g = [(model.think @ ro.h[row, i - 1]).softmax(0) for row in range(R)
         for i, _, is_think in places(ro, row) if is_think]
    used = torch.stack(g).mean(0)
    assert len(g) > 3 and -(used * used.log()).sum() < math.log(0.8 * N)
    wanted = -torch.log(used + 0.02 / N)
    assert rarity_of(model, ro).tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    assert rarity_of(tiny(N=1), ro) is None
    never = roll(model, given(P + S), Rules("never", 1, 5), luck())
    assert rarity_of(model, never).isfinite().all()  # where no thought was chosen, none is rare


def test_entropy_fades():
    """Guards crisp thoughts. The bonus is whole for three quarters of a run and gone at its end;
    its target is half of what 16 rows can have."""
    s, credit = settings(think_vocab=16), Credit(None, choices=10, thoughts=5)
    log16 = math.log(16)
    assert scale_of(s, credit, 0.1)[:3] == pytest.approx((0.1, 0.2, 0.5 * log16))
    assert scale_of(s, credit, 0.9)[:3] == pytest.approx((0.1, 0.08, 0.5 * log16))
    assert scale_of(settings(thoughts="filler"), credit, 0.1).entropy == 0


def test_text_weights():
    """Guards the weights of text: 1 over what pays, OTHER_TEXT over the rest. Of two siblings the
    one that expects an answer more learns more from it, by the softmax of twice its reward. The
    longest rounds of a stage, from the second on, teach nothing."""
    pays = torch.tensor([[1.0, 0, 1.0], [1.0, 0, 1.0]])
    text, other, s = Text(texts(2, 4), 1, pays, pays), OTHER_TEXT / 2, settings(samples=2)
    alike, apart = torch.zeros(2, 3), torch.tensor([[-1.0, 0, 0], [-0.5, 0, 0]])
    both = text_weights(text, s, alike)
    assert both.tolist() == [pytest.approx([0.25, other, 0.25])] * 2
    first, second = text_weights(text, s, apart).tolist()
    assert first == pytest.approx([0.5 / (1 + math.e), other, 0.25])
    assert second == pytest.approx([0.5 * math.e / (1 + math.e), other, 0.25])
    level = torch.tensor([[1, 0, 2], [1, 0, 2]])
    later = replace(text, level=level, unread=2)
    assert text_weights(later, s, alike).tolist() == [pytest.approx([0.25, other, 0])] * 2
    for more in (dict(thoughts="filler"), dict(approach="next_token")):
        assert torch.equal(text_weights(later, replace(s, **more), alike), both)
    off = text_weights(text, replace(s, answer_grad="off"), apart)
    assert off[pays > 0].sum() == 0 and off.sum().item() == pytest.approx(OTHER_TEXT)
    plain = text_weights(replace(text, pays=torch.ones(2, 3)), s, alike)
    assert plain.flatten().tolist() == pytest.approx([1 / 6] * 6)


def test_behind(tiny):
    """Guards what widens a choice. Siblings that are all wrong are behind the batch, by its
    standard deviations and at most by 1. One sibling that found it ends that, and so does a batch
    that is wrong as a whole. On a task nothing widens in stage 1, later its last thoughts may."""
    right, wrong = [[0.0]] * 2, [[-7.0]] * 2
    one = torch.tensor([*right * 3, *wrong])
    assert behind(one, 2).flatten().tolist() == [0.0] * 6 + [1.0] * 2
    assert behind(torch.tensor([*right * 3, wrong[0], [0.0]]), 2).max() == 0
    assert behind(torch.tensor(wrong * 4), 2).max() == 0
    most = torch.tensor([*right, *[[-2.0]] * 6])  # mean -1.5, standard deviation 0.866
    assert behind(most, 2).flatten().tolist() == pytest.approx([0.0] * 2 + [0.5 / 0.886] * 6, 1e-3)
    r, ro = noise(R, S), roll(tiny(), given(), Rules("forced", 1, 5), luck())
    text, level = given(), torch.ones(R, S).long()
    task, last = {"real": torch.ones(R, S).bool()}, torch.arange(S) == 4  # five thoughts
    for more, wide in (({}, None), ({"stage": 1}, behind(returns_to_go(r, 1.0), 2)),
                       (task, None), (task | {"stage": 1}, None),
                       (task | {"stage": 2}, less_likely(r, level[:, 0], 2) * last)):
        credit = advantages(r, ro, replace(text, level=level, **more),
                            settings(samples=2, gamma=1.0))
        assert (credit.widen is None) == (wide is None) and (
            wide is None or torch.equal(credit.widen, wide) and wide.max() > 0)


def test_less_likely():
    """Guards what widens a choice on a task: how much likelier a right answer is, on average over
    the hardest rows, than with the best of two siblings; and less while few are right. Other rows
    are widened for nothing, and have no part in the average."""
    r = torch.tensor([[0.9, 1], [0.5, 0.5], [0.1, 0.5], [0.2, 0.5], [0.01, 1], [0, 1]]).log()
    level = torch.tensor([3] * 4 + [2] * 2)
    average = (0.9 + 0.25 + 0.05 + 0.1) / 4
    assert less_likely(r, level, 2)[:, 1].tolist() == pytest.approx(
        [0.0] * 2 + [average * (average - 0.1)] * 2 + [0.0] * 2)
    assert less_likely(r[2:], level[2:], 2).max() == 0  # one context alone


def test_less_likely_of_processes(monkeypatch):
    """Guards torchrun: two rows of another process count in the average, and may be the only ones
    that are as hard."""
    r, level = torch.tensor([[0.5], [0.1], [0.2], [0.1]]).log(), torch.tensor([3] * 4)
    for hardest, wide in ((3, [0.0] * 2 + [0.3 * (0.3 - 0.2)] * 2), (9, [0.0] * 4)):
        there = {torch.int64: torch.tensor([hardest] * 2), torch.bool: torch.tensor([True] * 2),
                 torch.float32: torch.tensor([0.2, 0.7])}
        monkeypatch.setattr(reward, "all_rows", lambda x, more=there: torch.cat([x, more[x.dtype]]))
        assert less_likely(r, level, 2).flatten().tolist() == pytest.approx(wide)


def test_loss_in_micro_batches(tiny, teacher):
    """Guards --micro_batch: the loss of all rows is the sum over pieces of rows, and so is its
    gradient."""
    model, rules = tiny(), Rules("free", 2, 5)
    ro = roll(model, given(P), rules, luck())
    credit, weight = Credit(noise(R, S), noise(R, S, seed=4).abs()), noise(R, S, seed=3)

    def loss_of(rows):
        part = ro.rows(rows)
        return rollout_loss(model, states(model, part, rules), part, credit.rows(rows),
                            weight[rows], SCALE, judge_of(teacher, part))
    whole, entropy = loss_of(slice(0, R))
    parts = [loss_of(rows) for rows in (slice(0, 1), slice(1, R))]
    assert sum(x.item() for x, _ in parts) == pytest.approx(whole.item(), abs=1e-9)
    assert sum(x for _, x in parts) == pytest.approx(entropy)
    one, two = gradients(model, whole), gradients(model, parts[0][0] + parts[1][0])
    assert all((one[name] - two[name]).abs().max() < 1e-9 for name in one)


@pytest.mark.parametrize("think", ["free", "forced"])
def test_bfloat16(tiny, think):
    """Guards bfloat16, the default of a GPU: sampling, scores and loss run under autocast, and the
    gradient is that of float32, up to rounding."""
    model = tiny(dtype=torch.float32)
    teacher = tiny(N=0, L=1, C=8, seed=5, dtype=torch.float32)
    rules, loss, grad = Rules(think, 2, 5, 4, AFTER), {}, {}
    with torch.autocast("cpu", torch.bfloat16):
        ro = roll(model, given(P), rules, lambda *shape: luck()(*shape).to(torch.float32))
        assert ro.is_think.any()
    for on in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            r, _, teacher_h = score(model, ro, torch.ones(R, S), teacher)
            loss[on], _ = rollout_loss(model, states(model, ro, rules), ro,
                                       Credit(returns_to_go(r, 1.0)),
                                       torch.ones(R, S), Scale(0.1, 0.1, 1.0),
                                       Judge(teacher, teacher_h, False))
        model.zero_grad()
        loss[on].backward()
        grad[on] = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert r.dtype == grad[on].dtype == torch.float32
    assert (grad[True] - grad[False]).norm() < 0.1 * grad[False].norm()
    assert loss[True].item() == pytest.approx(loss[False].item(), rel=0.05)


def test_idle_places_cost_nothing(tiny, teacher):
    """Guards static shapes: a row that is done is idle, and whatever stands there adds nothing to
    the loss."""
    model, rules = tiny(offset=-2.0), Rules("free", 1, 6)
    ro, losses = roll(model, given(P), rules, luck()), []
    idle = ~(ro.is_think | ro.is_text)
    assert idle.any()
    for word in (0, 7):
        ro.ids[idle] = word
        losses.append(rollout_loss(model, states(model, ro, rules), ro, Credit(noise(R, S)),
                                   torch.ones(R, S), SCALE, judge_of(teacher, ro))[0].item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_plain_language_loss(tiny):
    """Guards the control without thinking rows: on given text the loss is cross-entropy, by torch's
    own function."""
    model, text, rules = tiny(N=0), given(), Rules("never")
    ro = roll(model, text, rules, luck())
    loss, entropy = rollout_loss(model, states(model, ro, rules), ro, Credit(noise(R, S)),
                                 torch.ones(R, S), Scale(1.0, 1.0, 1.0))
    logits = model.logits(model(text.ids))[:, P - 1:-1].flatten(0, 1)
    y = text.ids[:, P:].flatten()
    wanted = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-9) and entropy == 0
