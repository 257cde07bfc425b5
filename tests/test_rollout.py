"""rollout.py: the fast path is the slow one, and what was sampled has the probability that the loss will use."""
import math

import pytest
import torch

from conftest import one_line
from model import Config, GPT
from rollout import Rules, action_logp, draw, inverse_cdf, naive_rollout, rollout, visible

R, P, S = 4, 3, 7
AFTER = [1, 4, 6, 9]  # text ids whose slot may hold thoughts, of the 11


def texts(rows=R, length=P, V=11, seed=1):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))


def real(ro):
    """Places with a token; the others idle."""
    return ro.is_think | ro.is_text


def one_forward(model, ro, window, offset=0):
    """The hidden states of the gradient pass: no cache, one forward, the mask made from what happened."""
    return model(ro.ids, torch.arange(ro.ids.shape[1]) + offset, visible(ro.is_think, window))


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("given", [P, P + 3, P + S])
@pytest.mark.parametrize("think, K, after", [
    ("free", 1, None), ("free", 2, None), ("free", 2, AFTER),
    ("forced", 1, None), ("forced", 1, AFTER), ("forced", 2, AFTER), ("never", 1, None),
])
def test_cached_is_naive(tiny, uniforms, window, think, K, after, given):
    """Guards the engine: cache, masks, static shapes and bookkeeping give the ids that a loop over one row gives,
    which runs everything anew at each step. And the states that the cache saw are those of the gradient pass."""
    model, rules = tiny(), Rules(think, K, 6, window, after)
    M = 0 if think == "never" else 6
    text, u = texts(length=given), uniforms(S + M, R)
    ro = rollout(model, text, P, S, rules, u)
    naive = naive_rollout(model, text, P, S, rules, u)
    assert ro.ids.shape == (R, P + S + M)
    for r in range(R):
        assert ro.ids[r][real(ro)[r]].tolist() == naive[r]
        assert real(ro)[r].tolist() == [True] * len(naive[r]) + [False] * (P + S + M - len(naive[r]))
    if think != "never":
        assert ro.is_think.any()
    else:
        assert not ro.is_think.any() and not ro.gated.any()
    assert torch.equal(ro.text[:, :given], text)
    h = one_forward(model, ro, window)
    assert (h - ro.h)[:, :-1][real(ro)[:, :-1]].abs().max() < 1e-9


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("window", [0, 4])
def test_temperature(tiny, uniforms, temperature, window):
    """Guards temperatures other than 1, and the greedy choice, level by level: first whether to think, then which."""
    model, rules, u = tiny(seed=3), Rules("free", 2, 5, window), uniforms(S + 5, R)
    ro = rollout(model, texts(), P, S, rules, u, temperature)
    for r, row in enumerate(naive_rollout(model, texts(), P, S, rules, u, temperature)):
        assert ro.ids[r][real(ro)[r]].tolist() == row
    if temperature == 0:
        logits = model.logits(one_forward(model, ro, window))[:, P - 1:-1]
        now = real(ro)[:, P:]
        p_think = logits.softmax(-1)[..., 11:].sum(-1)
        free = ro.gated[:, P:] & now
        assert torch.equal(ro.is_think[:, P:][free], (p_think > 0.5)[free]) and free.any()
        best = torch.where(ro.is_think[:, P:], 11 + logits[..., 11:].argmax(-1), logits[..., :11].argmax(-1))
        assert torch.equal(ro.ids[:, P:][now], best[now])


def test_without_thinking_rows(tiny, uniforms):
    """Guards plain GPT-2: a model that has not grown can be sampled, and its rows are those of a grown one that never
    thinks."""
    grown, plain = tiny(N=5), tiny(N=0)
    plain.load_state_dict({k: v if k != "think" else v[:0] for k, v in grown.state_dict().items()})
    a, b = (rollout(m, texts(), P, S, Rules("never", 1, 4), uniforms(S, R)) for m in (grown, plain))
    assert torch.equal(a.ids, b.ids) and torch.equal(a.h, b.h)


def test_top_k(tiny, uniforms):
    """Guards --top_k: text comes from the k likeliest text rows, thoughts are not cut."""
    model = tiny()
    ro = rollout(model, texts(64), P, S, Rules("free", 1, 4), uniforms(S + 4, 64), top_k=2)
    logits = model.logits(one_forward(model, ro, 0))[:, P - 1:-1]
    rank = (logits[..., :11] > logits.gather(-1, ro.ids[:, P:, None])).sum(-1)
    assert rank[ro.is_text[:, P:]].max() == 1
    thought = (logits[..., 11:] > logits.gather(-1, ro.ids[:, P:, None])).sum(-1)
    assert thought[ro.is_think[:, P:]].max() > 1


def test_position_offset(tiny, uniforms):
    """Guards random positions in training: the offset is in prefill, decode and gradient pass alike, and it matters."""
    model, rules, u = tiny(), Rules("free", 1, 4, 5), uniforms(S + 4, R)
    ro, plain = (rollout(model, texts(length=P + S), P, S, rules, u, offset=o) for o in (9, 0))
    h = one_forward(model, ro, 5, offset=9)
    assert (h - ro.h)[:, :-1][real(ro)[:, :-1]].abs().max() < 1e-9
    assert (ro.h[:, 0] - plain.h[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("think", ["free", "forced"])
@pytest.mark.parametrize("window", [0, 5])
def test_behaviour_is_what_is_learnt(tiny, uniforms, think, window):
    """Guards REINFORCE itself: the log-prob of the sampled actions under the sampler is that of the gradient pass."""
    model = tiny()
    ro = rollout(model, texts(length=P + 3), P, S, Rules(think, 2, 6, window, AFTER), uniforms(S + 6, R))
    h = one_forward(model, ro, window)
    there, here = (action_logp(model.logits(x[:, P - 1:-1]), 11, ro.ids[:, P:], ro.gated[:, P:], ro.given[:, P:])
                   for x in (ro.h, h))
    now = real(ro)[:, P:]
    assert (there - here)[now].abs().max() < 1e-9 and h.requires_grad and not ro.h.requires_grad
    assert (here[now] <= 0).all() and (here[now] < 0).any()


def test_log_prob_is_the_frequency(tiny):
    """Guards the gate and the draw at once: over a fine grid of luck each of the V + N actions comes as often as
    action_logp says, for free thinking, forced thinking and speech without a choice."""
    model, n = tiny(V=5, N=3, L=1), 120
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    u = torch.cartesian_prod(grid, grid).unsqueeze(0)  # [1, n * n, 2]
    prompt = torch.tensor([[2, 0]]).expand(n * n, 2)
    for think, M in (("free", 1), ("forced", 1), ("never", 0)):
        luck = torch.cat([u] * (1 + M))
        ro = rollout(model, prompt, 2, 1, Rules(think, 1, M), luck)
        every = torch.arange(8)
        logits = model.logits(model(prompt[:1]))[0, -1].expand(8, 8)
        p = action_logp(logits, 5, every, torch.full((8,), think == "free"), torch.zeros(8, dtype=torch.bool)).exp()
        p[:5] *= think != "forced"
        p[5:] *= think != "never"
        assert p.sum().item() == pytest.approx(1)
        share = torch.bincount(ro.ids[:, 2], minlength=8) / n**2
        assert (share - p).abs().max() < 2 / n


def test_frequency_in_bfloat16(tiny):
    """Guards sampling on a GPU, where logits come in bfloat16: sums and the gate must be taken in float32, or what is
    sampled is not what is learnt (a running sum in bfloat16 moves a tenth of the probability to other rows)."""
    model, n = tiny(V=300, N=40, L=1, dtype=torch.float32), 20_000
    i = torch.arange(n)
    u = torch.stack([(i * 0.6180339887498949) % 1, (i + 0.5) / n], 1).unsqueeze(0).to(torch.float32)  # even, both ways
    with torch.autocast("cpu", torch.bfloat16):
        ro = rollout(model, torch.full((n, 1), 7), 1, 1, Rules("free", 1, 1), torch.cat([u, u]))
        logits = model.logits(model(torch.tensor([[7]]))[:, -1])
    every = torch.arange(340)
    p = action_logp(logits.float().expand(340, -1), 300, every, every >= 0, every < 0).exp()
    share = torch.bincount(ro.ids[:, 1], minlength=340) / n
    assert p.sum().item() == pytest.approx(1, abs=1e-4) and 0.1 < p[300:].sum() < 0.9
    assert (share[300:].sum() - p[300:].sum()).abs() < 2e-3 and 0.5 * (share - p).abs().sum() < 0.01


def test_action_logp_by_hand():
    """Guards the four cases of an action's log-prob against numbers made by hand: speech has mass .6 in all (.1, .2,
    .3) and thoughts .4 (.25, .15). A constant added to all logits changes nothing."""
    logits = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64).log() + 7.0
    cases = [  # id, gated, given -> probability
        (3, True, False, 0.25), (4, True, False, 0.15),  # free thought
        (3, False, False, 0.25 / 0.4), (4, False, False, 0.15 / 0.4),  # forced thought
        (1, True, False, 0.2), (2, True, False, 0.3),  # own text where it could have thought
        (1, False, False, 0.2 / 0.6),  # own text at the cap, or out of budget
        (0, True, True, 0.6), (2, True, True, 0.6),  # the data's text: the only choice was to speak
        (0, False, True, 1.0),  # nothing was chosen
    ]
    ids, gated, given, p = zip(*cases)
    out = action_logp(logits.expand(len(cases), 5), 3, torch.tensor(ids), torch.tensor(gated), torch.tensor(given))
    assert out.exp().tolist() == pytest.approx(p)
    text_only = action_logp(logits[:3].expand(2, 3), 3, torch.tensor([1, 1]), torch.tensor([True, False]),
                            torch.tensor([False, False]))
    assert text_only.exp().tolist() == pytest.approx([0.2 / 0.6] * 2)  # no thinking rows: no gate


def test_siblings_draw_for_themselves(tiny, uniforms):
    """Guards against siblings that share their luck (a baseline of copies is 0 everywhere): rows with the same prompt
    and the same luck are the same, and with their own luck they differ, from their first choice on."""
    model, rules, rows = tiny(), Rules("free", 2, 5), 32
    prompt, u = texts(1).expand(rows, P), uniforms(S + 5, rows)
    ro = rollout(model, prompt, P, S, rules, u)
    assert len(set(map(tuple, ro.ids.tolist()))) > 0.9 * rows and len(set(ro.ids[:, P].tolist())) > 3
    same = rollout(model, prompt, P, S, rules, u[:, :1].expand(-1, rows, 2))
    assert len(set(map(tuple, same.ids.tolist()))) == 1
    again = rollout(model, prompt, P, S, rules, u)
    assert torch.equal(again.ids, ro.ids) and torch.equal(again.h, ro.h)


@pytest.mark.parametrize("window", [0, 5])
def test_prompts_are_read_once(tiny, uniforms, window):
    """Guards the shared prompt: siblings that get the keys and values of one forward over it are the rows that read it
    themselves."""
    model, rules = tiny(), Rules("free", 2, 5, window)
    text, u = texts(3, P + 2).repeat_interleave(4, 0), uniforms(S + 5, 12)
    once, each = (rollout(model, text, P, S, rules, u, siblings=n) for n in (4, 1))
    assert torch.equal(once.ids, each.ids) and (once.h - each.h).abs().max() < 1e-9
    assert len(set(map(tuple, once.ids[:4].tolist()))) > 1


@pytest.mark.parametrize("think", ["free", "forced"])
@pytest.mark.parametrize("window", [0, 5])
def test_neighbours_do_not_matter(tiny, uniforms, think, window):
    """Guards against a leak between rows: one row's sample stays, to the bit, whatever the others say."""
    model, rules, u = tiny(), Rules(think, 2, 5, window, AFTER), uniforms(S + 5, R)
    text, other_u = texts(), uniforms(S + 5, R, seed=8)
    other = texts(seed=9)
    other[2], other_u[:, 2] = text[2], u[:, 2]
    a, b = rollout(model, text, P, S, rules, u), rollout(model, other, P, S, rules, other_u)
    assert torch.equal(a.ids[2], b.ids[2]) and torch.equal(a.h[2], b.h[2]) and torch.equal(a.text[2], b.text[2])
    assert not torch.equal(a.ids, b.ids)


@pytest.mark.parametrize("offset", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("K, M", [(1, 4), (2, 4), (3, 30), (1, 0)])
def test_budgets(tiny, uniforms, offset, K, M):
    """Guards the two budgets: a row that wants to think for ever gets K thoughts a slot and M in all, and says its S
    text tokens all the same. (If thoughts ate the text's budget, thinking for ever would be the best reward.)"""
    rows = 6
    model = tiny(offset=offset, n_ctx=256)
    ro = rollout(model, texts(rows), P, S, Rules("free", K, M), uniforms(S + M, rows))
    assert (ro.is_text.sum(1) == P + S).all() and ro.text.shape == (rows, P + S)
    n = ro.is_think.sum(1)
    assert (n <= M).all() and not (ro.is_think & ro.is_text).any()
    if offset:
        assert (n == (min(M, K * S) if offset > 0 else 0)).all()
    elif M:
        assert n.any()
    for ids, is_think in zip(ro.ids.tolist(), ro.is_think.tolist()):
        assert all((i >= 11) == thinks for i, thinks in zip(ids, is_think))
        runs = "".join("x" if thinks else " " for thinks in is_think).split()
        assert max(map(len, runs), default=0) <= K


def test_fields(tiny, uniforms):
    """Guards what a rollout says of itself: slots, places, given and gated are recounted here from the ids."""
    given, K, M = P + 3, 2, 4
    ro = rollout(tiny(), texts(length=given), P, S, Rules("free", K, M, 0, AFTER), uniforms(S + M, R))
    gates = 0
    for r in range(R):
        spoken, used, k, places = 0, 0, 0, []
        for i, token in enumerate(ro.ids[r].tolist()):
            if not real(ro)[r, i]:
                assert spoken == P + S and not ro.gated[r, i] and not ro.given[r, i]
                continue
            assert ro.slot[r, i] == spoken - 1
            may = i >= P and ro.ids[r, places[-1]].item() in AFTER and k < K and used < M
            assert ro.gated[r, i] == may
            gates += may
            if token >= 11:
                used, k = used + 1, k + 1
            else:
                assert ro.given[r, i] == (spoken < given)
                places.append(i)
                spoken, k = spoken + 1, 0
        assert ro.place[r].tolist() == places and ro.text[r].tolist() == ro.ids[r, places].tolist()
    assert gates > 5


def test_rows(tiny, uniforms):
    """Guards the gradient pass in pieces: rows(a, b) takes the same rows of every field."""
    ro = rollout(tiny(), texts(), P, S, Rules("free", 1, 4), uniforms(S + 4, R))
    part = ro.rows(1, 3)
    for name in ("ids", "is_think", "is_text", "slot", "gated", "given", "h", "text", "place", "left"):
        assert torch.equal(getattr(part, name), getattr(ro, name)[1:3])
    assert part.P == P


@pytest.mark.parametrize("K, M", [(1, 30), (2, 30), (2, 5), (1, 2)])
@pytest.mark.parametrize("given", [P, P + S])
def test_forced(tiny, uniforms, K, M, given):
    """Guards forced thinking: exactly K thoughts after each id of think_after and none elsewhere, until the budget is
    out; none in the prompt, and none after the last text token. The gate has no say, so it is never gated."""
    text = texts(length=given)
    text[:, P - 1] = torch.tensor([AFTER[0], 0, AFTER[1], 2])  # two prompts end in a slot for thoughts
    model = tiny(n_ctx=256, offset=-50.0)  # a gate that would never think
    ro = rollout(model, text, P, S, Rules("forced", K, M, 0, AFTER), uniforms(S + M, R))
    assert not ro.gated.any()
    for r in range(R):
        wanted, left = [False] * (P - 1), M
        for i, token in enumerate(ro.text[r].tolist()[P - 1:]):
            n = min(K, left) if token in AFTER and i < S else 0
            wanted, left = wanted + [False] + [True] * n, left - n
        assert ro.is_think[r].tolist() == wanted + [False] * (P + S + M - len(wanted))


def test_edit(tiny, uniforms):
    """Guards interventions: thoughts, and nothing but thoughts, are overwritten; what follows sees the new ones."""
    model, rules, u = tiny(), Rules("forced", 1, 4, 0, AFTER), uniforms(S + 4, R)
    text, asked = texts(length=P + S), []

    def edit(place, ids):
        asked.append(place)
        return torch.full_like(ids, 12)

    ro = rollout(model, text, P, S, rules, u)
    other = rollout(model, text, P, S, rules, u, edit=edit)
    assert asked == ro.is_think.any(0).nonzero().flatten().tolist()  # only where some row thinks
    assert torch.equal(ro.is_think, other.is_think) and torch.equal(ro.text, other.text)
    assert (other.ids[other.is_think] == 12).all() and (ro.ids[ro.is_think] != 12).any()
    h = one_forward(model, other, 0)
    assert (h - other.h)[:, :-1][real(other)[:, :-1]].abs().max() < 1e-9
    keep = rollout(model, text, P, S, rules, u, edit=lambda place, ids: ids)
    assert torch.equal(keep.ids, ro.ids)


def test_context(tiny, uniforms):
    """Guards the end of the positions: T = P + S + M fits to the last place, and one more is a sentence."""
    model = tiny(n_ctx=16)
    rollout(model, texts(1), 3, 8, Rules("free", 1, 5), uniforms(13, 1))
    rollout(model, texts(1), 3, 13, Rules("never", 1, 5), uniforms(13, 1))  # who never thinks needs no room for it
    for S_, M, offset in ((9, 5, 0), (8, 6, 0), (8, 5, 1)):
        with pytest.raises(ValueError) as e:
            rollout(model, texts(1), 3, S_, Rules("free", 1, M), uniforms(S_ + M, 1), offset=offset)
        assert "16" in one_line(e)


# the sampler

def test_inverse_cdf_chi_square():
    """Guards the draw against any bias: 400,000 draws over 1,000 rows of very different weights, chi-square."""
    luck = torch.Generator().manual_seed(0)
    weights = torch.rand(1000, generator=luck) ** 3 + 1e-3
    n = 400_000
    counts = torch.zeros(1000, dtype=torch.long)
    for _ in range(0, n, 2_000):
        drawn = inverse_cdf(weights.expand(2_000, -1), torch.rand(2_000, generator=luck))
        counts += torch.bincount(drawn, minlength=1000)
    expected = n * weights.double() / weights.double().sum()
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert expected.min() > 1 and abs(chi2 - 999) < 5 * math.sqrt(2 * 999)  # 5 standard deviations


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 700])
def test_inverse_cdf_grid(n):
    """Guards the seams of the two levels, exactly: over a grid of luck every row comes as often as its weight says,
    give or take one."""
    weights = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    weights[::3] *= 20
    if n > 300:
        weights[256:300] = 0
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = inverse_cdf(weights.expand(20_000, n), grid)
    assert (drawn.diff() >= 0).all()  # it is the inverse of a rising function
    counts = torch.bincount(drawn, minlength=n)
    assert len(counts) == n and (counts - 20_000 * weights / weights.sum()).abs().max() < 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_weights_never_come(dtype):
    """Guards rows of probability 0 (top_k) at both ends of the luck: u = 0, and u so near 1 that rounding ends past
    the last row."""
    luck = torch.Generator().manual_seed(0)
    ends = [0.0, 1e-45, 1e-30, 1e-7, 0.5, 1 - 1e-3, 1 - 2**-24, math.nextafter(1.0, 0.0)]
    for n, keep in ((700, 0.02), (700, 0.5), (256, 0.01), (1000, 0.002), (3, 0.4)):
        weights = torch.rand(400, n, generator=luck, dtype=dtype) * (torch.rand(400, n, generator=luck) < keep)
        weights[torch.arange(400), torch.randint(n, (400,), generator=luck)] = 1.0  # at least one
        for u in ends:
            drawn = inverse_cdf(weights, torch.full((400,), u, dtype=dtype))
            assert (drawn < n).all() and (weights.gather(1, drawn[:, None]) > 0).all()


def test_zero_weights_between_blocks():
    """Guards the seam of the two levels: luck that falls on it must not land on the first row of the next block where
    that has weight 0. (A block's start is its end minus its sum; rounding can lift it over the luck.)"""
    luck = torch.Generator().manual_seed(0)
    weights = torch.rand(20_000, 512, generator=luck)
    weights[:, 256:300] = 0
    first = weights[:, :256].sum(-1)
    u = first / weights.view(-1, 2, 256).sum(-1).cumsum(-1)[:, -1]
    drawn = inverse_cdf(weights, u)
    assert (weights.gather(1, drawn[:, None]) > 0).all()


def test_draw():
    """Guards temperature: it divides the logits, 0 is the argmax, and rows that are far apart do not overflow."""
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64).expand(9_999, 3)
    grid = (torch.arange(9_999, dtype=torch.float64) + 0.5) / 9_999
    for temperature in (0.25, 1.0, 3.0):
        share = torch.bincount(draw(logits, grid, temperature), minlength=3) / 9_999
        assert (share - (logits[0] / temperature).softmax(-1)).abs().max() < 2e-3
    assert (draw(logits, grid, 0.0) == 2).all()
    assert (draw(1e4 * logits, grid, 1.0) == 2).all() and (draw(-1e4 * logits, grid, 0.1) == 0).all()


@pytest.mark.parametrize("window", [1, 3, 5, 99])
def test_visible(window):
    """Guards the one mask of all passes against two loops: the last `window` tokens and the last thought, never the
    future."""
    is_think = torch.rand(6, 13, generator=torch.Generator().manual_seed(0)) < 0.3
    is_think[0], is_think[1, :] = False, True
    mask = visible(is_think, window)
    assert mask.shape == (6, 1, 13, 13) and visible(is_think, 0) is None
    for r in range(6):
        for i in range(13):
            thoughts = [j for j in range(i + 1) if is_think[r, j]]
            for j in range(13):
                wanted = i - window < j <= i or (len(thoughts) > 0 and j == thoughts[-1])
                assert mask[r, 0, i, j].item() == wanted


def test_window_is_felt(tiny, uniforms):
    """Guards against a window that hides nothing: with one layer, text further back than the window has no effect, and
    the last thought has one from any distance."""
    model = tiny(L=1)
    is_think = torch.zeros(1, 12, dtype=torch.bool)
    is_think[0, 2] = True
    ids = texts(1, 12)
    ids[0, 2] = 12
    far, thought = ids.clone(), ids.clone()
    far[0, 1], thought[0, 2] = (far[0, 1] + 1) % 11, 14
    h, h_far, h_thought = (model(x, mask=visible(is_think, 3))[0, -1] for x in (ids, far, thought))
    assert torch.equal(h, h_far) and (h - h_thought).abs().max() > 1e-4


def test_124m():
    """Guards GPT-2's own size in float32: twelve layers of cache add up to no more than 1e-4."""
    torch.manual_seed(0)
    model = GPT(Config(think_vocab=64))
    torch.nn.init.normal_(model.think, std=0.02)
    text = texts(2, 12, V=50257)
    u = torch.rand(8 + 5, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.think_offset += 6.0
        for window in (0, 6):
            ro = rollout(model, text, 8, 8, Rules("free", 1, 5, window), u)
            assert ro.is_think.any() and (ro.is_text.sum(1) == 16).all() and torch.equal(ro.text[:, :12], text)
            h = one_forward(model, ro, window)
            assert (h - ro.h)[:, :-1][real(ro)[:, :-1]].abs().max() < 1e-4 and ro.h[:, :-1].std() > 0.5


@pytest.mark.parametrize("persist", [True, False])
def test_packed_weights(monkeypatch, persist):
    """Guards the packed products: they are the plain ones up to rounding, touch no narrow model, and leave nothing behind."""
    ops, calls = torch.ops.mkldnn, []
    pack = ops._reorder_linear_weight

    def missing(*args):
        raise RuntimeError

    rules, u = Rules("free", 2, 4, persist=persist), torch.rand(12 if persist else 2, 8 if persist else 64, 2)
    for width, products in ((256, 0), (512, 5)):  # four in the layer, and the unembedding
        model, text = GPT(Config(1, 8, width, 32, 300, 20)), torch.randint(300, (8, 4 if persist else 12))
        monkeypatch.setattr(ops, "_reorder_linear_weight", lambda *args: calls.append(args) or pack(*args))
        fast = rollout(model, text, 4, 8, rules, u, 0.0)
        assert len(calls) == products and not any({"forward", "text_logits"} & m.__dict__.keys() for m in model.modules())
        monkeypatch.setattr(ops, "_reorder_linear_weight", missing)
        slow = rollout(model, text, 4, 8, rules, u, 0.0)
        assert torch.equal(fast.ids, slow.ids) and (fast.h - slow.h).abs().max() <= (1e-4 if products else 0)
