"""Lesson 4, rollout.py: text with thoughts between its tokens, sampled.

At each place a row thinks or speaks. `naive_rollout` does just that, one row and one place at a
time, with a forward over everything so far. `rollout` gives the same rows all at once, by a cache.
Then its parts: who sees whom, how one word is drawn, where a thought may stand, and how many.
"""
import math

import pytest
import torch

from conftest import AFTER, P, R, S, V, in_sight, luck, numbers, refuses, texts
from data import plain
from fast import Recorder, sampler_of
from model import GPT, Config
from next_token import roll, states
from reward import action_logp
from rollout import (GREEDY, SAMPLED, Dials, Luck, Rules, draw, inverse_cdf, naive_rollout,
                     positions_of, rollout, visible, visible_text)


def given(n=P + S, rows=R, **more):
    """Random text of which the first n tokens are there."""
    return plain(texts(rows, n), P, S, **more)


def real(ro):
    """Places with a token; the others are idle."""
    return ro.is_think | ro.is_text


def check_against_naive(model, text, rules, u, dials=SAMPLED):
    """The rollout, after a look at its ids and at its states."""
    ro = rollout(model, text, rules, luck(u), dials)
    naive = naive_rollout(model, text, rules, u, dials)
    idle = [ro.ids.shape[1] - len(row) for row in naive]
    assert ro.kept() == naive
    assert [row.tolist() for row in real(ro)] == [
        [True] * len(row) + [False] * n for row, n in zip(naive, idle)]
    # the gradient pass: one forward without a cache, its mask made from what happened
    h = states(model, ro, rules)
    assert (h - ro.h)[:, :-1][real(ro)[:, :-1]].abs().max() < 1e-9
    assert h.requires_grad and not ro.h.requires_grad
    return ro, h


def test_rollout_is_naive_rollout(tiny):
    """Guards the first lesson: the sampler that is fast gives the rows of the one that is plain."""
    model, text, rules, u = tiny(), given(P), Rules("free", 1, 4), numbers(S + 4, R)
    assert rollout(model, text, rules, luck(u)).kept() == naive_rollout(model, text, rules, u)


@pytest.mark.parametrize("window, counts", [(0, "places"), (5, "places"), (3, "text"),
                                            (1, "steps"), (2, "steps")])
@pytest.mark.parametrize("n", [P, P + 3, P + S])
@pytest.mark.parametrize("think, K, after", [
    ("free", 1, None), ("free", 2, None), ("free", 2, AFTER),
    ("forced", 1, None), ("forced", 1, AFTER), ("forced", 2, AFTER), ("never", 1, None),
])
def test_cached_is_naive(tiny, window, counts, n, think, K, after):
    """Guards the engine. Cache, masks, static shapes and bookkeeping give the ids that a loop over
    one row gives, which computes everything again at each step. And the states that the cache saw
    are those of the gradient pass."""
    M = 0 if think == "never" else 6
    rules = Rules(think, K, 6, window, after, counts=counts)
    ro, _ = check_against_naive(tiny(), given(n), rules, numbers(S + M, R))
    assert ro.ids.shape == (R, P + S + M) and torch.equal(ro.text[:, :n], texts(length=n))
    assert ro.is_think.any() == (think != "never") and (M or not ro.gated.any())


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("window", [0, 4])
def test_temperature(tiny, temperature, window):
    """Guards temperatures other than 1, and the greedy choice, level by level: first whether to
    think, then which."""
    model, rules = tiny(seed=3), Rules("free", 2, 5, window)
    ro, h = check_against_naive(model, given(P), rules, numbers(S + 5, R), Dials(temperature))
    if temperature == 0:
        logits = model.logits(h)[:, P - 1:-1]
        now, p_think = real(ro)[:, P:], logits.softmax(-1)[..., V:].sum(-1)
        free = ro.gated[:, P:] & now
        assert torch.equal(ro.is_think[:, P:][free], (p_think > 0.5)[free]) and free.any()
        best = torch.where(ro.is_think[:, P:], V + logits[..., V:].argmax(-1),
                           logits[..., :V].argmax(-1))
        assert torch.equal(ro.ids[:, P:][now], best[now])


def test_temperatures_of_thoughts_and_text(tiny):
    """Guards `think_temperature`: greedy thoughts in sampled text, and the other way round."""
    model, rules, u = tiny(), Rules("forced", 1, 5, 0, AFTER), numbers(S + 5, 12)
    for dials in (Dials(1.0, 0.0), Dials(0.0, 1.0)):
        ro, h = check_against_naive(model, given(P, 12), rules, u, dials)
        logits = model.logits(h)[:, P - 1:-1]
        best = torch.where(ro.is_think[:, P:], V + logits[..., V:].argmax(-1),
                           logits[..., :V].argmax(-1))
        for kind, heat in ((ro.is_think, dials.for_thoughts), (ro.is_text, dials.temperature)):
            now = kind[:, P:]
            assert torch.equal(ro.ids[:, P:][now], best[now]) == (heat == 0)


def test_without_thinking_rows(tiny):
    """Guards plain GPT-2: a model that has not grown can be sampled, and its rows are those of a
    grown one that never thinks."""
    grown, small = tiny(N=5), tiny(N=0)
    small.load_state_dict({k: v if k != "think" else v[:0] for k, v in grown.state_dict().items()})
    a, b = (rollout(m, given(P), Rules("never", 1, 4), luck()) for m in (grown, small))
    assert torch.equal(a.ids, b.ids) and torch.equal(a.h, b.h)


def test_top_k(tiny):
    """Guards --top_k: text comes from the k likeliest text rows, thoughts are not cut."""
    model, rules = tiny(), Rules("free", 1, 4)
    ro = rollout(model, given(P, 64), rules, luck(), Dials(top_k=2))
    logits = model.logits(states(model, ro, rules))[:, P - 1:-1]
    chosen = logits.gather(-1, ro.ids[:, P:, None])
    assert (logits[..., :V] > chosen).sum(-1)[ro.is_text[:, P:]].max() == 1
    assert (logits[..., V:] > chosen).sum(-1)[ro.is_think[:, P:]].max() > 1


def test_position_offset(tiny):
    """Guards random positions in training: the offset is in prefill, decode and gradient pass
    alike, and it matters."""
    model, rules = tiny(), Rules("free", 1, 4, 5)
    ro, other = (rollout(model, given(offset=o), rules, luck()) for o in (9, 0))
    h = states(model, ro, rules)
    assert (h - ro.h)[:, :-1][real(ro)[:, :-1]].abs().max() < 1e-9
    assert (ro.h[:, 0] - other.h[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("think", ["free", "forced"])
@pytest.mark.parametrize("window", [0, 5])
def test_behaviour_is_what_is_learned(tiny, think, window):
    """Guards REINFORCE itself: the logp of the sampled actions under the sampler is that of the
    gradient pass."""
    model, rules = tiny(), Rules(think, 2, 6, window, AFTER)
    ro = rollout(model, given(P + 3), rules, luck())
    there, here = (action_logp(model.logits(x[:, P - 1:-1]), V, ro.ids[:, P:], ro.gated[:, P:],
                               ro.given[:, P:]) for x in (ro.h, states(model, ro, rules)))
    now = real(ro)[:, P:]
    assert (there - here)[now].abs().max() < 1e-9
    assert (here[now] <= 0).all() and (here[now] < 0).any()


# Rows, one by one

def test_siblings_draw_for_themselves(tiny):
    """Guards against siblings that share their random numbers (a baseline of copies is 0
    everywhere). With the same numbers rows are the same, and with their own they differ, from their
    first choice on."""
    model, rules, rows = tiny(), Rules("free", 2, 5), 32
    text, u = plain(texts(1, P).expand(rows, P), P, S), numbers(S + 5, rows)
    ro = rollout(model, text, rules, luck(u))
    assert len(set(map(tuple, ro.ids.tolist()))) > 0.9 * rows
    assert len(set(ro.ids[:, P].tolist())) > 3
    same = rollout(model, text, rules, luck(u[:, :1].expand(-1, rows, 2)))
    assert len(set(map(tuple, same.ids.tolist()))) == 1
    again = rollout(model, text, rules, luck(u))
    assert torch.equal(again.ids, ro.ids) and torch.equal(again.h, ro.h)


def test_random_numbers_per_row():
    """Guards `Luck`: a function of seed, step and purpose; each row has numbers of its own, and
    processes share them out without drawing others."""
    whole = Luck(1, 2, "rollout")(5, 6)
    assert torch.equal(whole, Luck(1, 2, "rollout")(5, 6)) and whole.shape == (5, 6, 2)
    assert len(set(whole.flatten().tolist())) == whole.numel()
    assert ((0 <= whole) & (whole < 1)).all()
    others = [Luck(2, 2, "rollout"), Luck(1, 3, "rollout"), Luck(1, 2, "own_text")]
    assert not any(torch.equal(whole, other(5, 6)) for other in others)
    for each in (1, 4):  # branches: `each` of a row
        all_rows = Luck(1, 2, "rollout")(5, 6, each)
        parts = [Luck(1, 2, "rollout", i, 3)(5, 2, each) for i in range(3)]
        assert torch.equal(torch.cat(parts, 1), all_rows)


@pytest.mark.parametrize("window", [0, 5])
def test_prompts_are_read_once(tiny, window):
    """Guards the shared prompt: siblings that get the keys and values of one forward over it are
    the rows that read it themselves."""
    model, rules = tiny(), Rules("free", 2, 5, window)
    ids = texts(3, P + 2).repeat_interleave(4, 0)
    once, each = (rollout(model, plain(ids, P, S, siblings=n), rules, luck()) for n in (4, 1))
    assert torch.equal(once.ids, each.ids) and (once.h - each.h).abs().max() < 1e-9
    assert len(set(map(tuple, once.ids[:4].tolist()))) > 1


@pytest.mark.parametrize("think", ["free", "forced"])
@pytest.mark.parametrize("window", [0, 5])
def test_neighbours_do_not_matter(tiny, think, window):
    """Guards against a leak between rows: one row's sample stays, to the bit, whatever the others
    say."""
    model, rules, u = tiny(), Rules(think, 2, 5, window, AFTER), numbers(S + 5, R)
    ids, other_u = texts(length=P), numbers(S + 5, R, seed=8)
    other = texts(length=P, seed=9)
    other[2], other_u[:, 2] = ids[2], u[:, 2]
    a = rollout(model, plain(ids, P, S), rules, luck(u))
    b = rollout(model, plain(other, P, S), rules, luck(other_u))
    assert torch.equal(a.ids[2], b.ids[2]) and torch.equal(a.h[2], b.h[2])
    assert torch.equal(a.text[2], b.text[2]) and not torch.equal(a.ids, b.ids)


@pytest.mark.parametrize("offset", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("K, M", [(1, 4), (2, 4), (3, 30), (1, 0)])
def test_budgets(tiny, offset, K, M):
    """Guards the two budgets. A row that always wants to think gets K thoughts per slot and M in
    all, and says its S text tokens all the same. (If thoughts took the text's places, to think
    without end would be the best reward.)"""
    model = tiny(offset=offset, n_ctx=256)
    ro = rollout(model, given(P, 6), Rules("free", K, M), luck())
    assert (ro.is_text.sum(1) == P + S).all() and ro.text.shape == (6, P + S)
    n = ro.is_think.sum(1)
    assert (n <= M).all() and not (ro.is_think & ro.is_text).any()
    if offset:
        assert (n == (min(M, K * S) if offset > 0 else 0)).all()
    elif M:
        assert n.any()
    for ids, is_think in zip(ro.ids.tolist(), ro.is_think.tolist()):
        assert all((i >= V) == thinks for i, thinks in zip(ids, is_think))
        runs = "".join("x" if thinks else " " for thinks in is_think).split()
        assert max(map(len, runs), default=0) <= K


def test_fields(tiny):
    """Guards what a rollout says of itself: slots, places, given and gated are counted once more
    here, from the ids."""
    n_given, K, M, gates = P + 3, 2, 4, 0
    ro = rollout(tiny(), given(n_given), Rules("free", K, M, 0, AFTER), luck())
    for r in range(R):
        spoken, used, k, places = 0, 0, 0, []
        for i, token in enumerate(ro.ids[r].tolist()):
            if not real(ro)[r, i]:
                assert spoken == P + S and not ro.gated[r, i] and not ro.given[r, i]
                continue
            assert ro.after[r, i] == spoken - 1 and ro.chosen_at[r, i] == max(i - 1, 0)
            may = i >= P and ro.ids[r, places[-1]].item() in AFTER and k < K and used < M
            assert ro.gated[r, i] == may
            gates += may
            if token >= V:
                used, k = used + 1, k + 1
            else:
                assert ro.given[r, i] == (spoken < n_given)
                places.append(i)
                spoken, k = spoken + 1, 0
        assert ro.place[r].tolist() == places and ro.text[r].tolist() == ro.ids[r, places].tolist()
    assert gates > 5
    part = ro.rows(slice(1, 3))  # the gradient pass in pieces: the same rows of every field
    for name in ("ids", "is_think", "is_text", "after", "gated", "given", "h", "text", "place",
                 "chosen_at"):
        assert torch.equal(getattr(part, name), getattr(ro, name)[1:3])
    assert part.P == P


@pytest.mark.parametrize("K, M", [(1, 30), (2, 30), (2, 5), (1, 2)])
@pytest.mark.parametrize("n", [P, P + S])
def test_forced(tiny, K, M, n):
    """Guards forced thinking. There are exactly K thoughts after each id of think_after and none
    elsewhere, until the budget is out. None stands in the prompt, and none after the last text
    token. The gate has no say, so it is never gated."""
    ids = texts(length=n)
    ids[:, P - 1] = torch.tensor([AFTER[0], 0, AFTER[1], 2])  # two prompts end in an open slot
    model = tiny(n_ctx=256, offset=-50.0)  # a gate that would never think
    ro = rollout(model, plain(ids, P, S), Rules("forced", K, M, 0, AFTER), luck())
    assert not ro.gated.any()
    for r in range(R):
        wanted, left = [False] * (P - 1), M
        for i, token in enumerate(ro.text[r].tolist()[P - 1:]):
            n = min(K, left) if token in AFTER and i < S else 0
            wanted, left = wanted + [False] + [True] * n, left - n
        assert ro.is_think[r].tolist() == wanted + [False] * (P + S + M - len(wanted))


@pytest.mark.parametrize("n", [P + 2, P + S])
def test_edit(tiny, n):
    """Guards interventions: thoughts, and nothing but thoughts, are overwritten; what follows sees
    the new ones."""
    model, rules, asked = tiny(), Rules("forced", 1, 4, 0, AFTER), []

    def edit(place, ids):
        asked.append(place)
        return torch.full_like(ids, V + 1)

    text = given(n)
    ro, other = (rollout(model, text, rules, luck(), edit=e) for e in (None, edit))
    if text.given:  # only where some row thinks
        assert asked == ro.is_think.any(0).nonzero().flatten().tolist()
        assert torch.equal(ro.is_think, other.is_think) and torch.equal(ro.text, other.text)
    assert (other.ids[other.is_think] == V + 1).all() and (ro.ids[ro.is_think] != V + 1).any()
    h = states(model, other, rules)
    assert (h - other.h)[:, :-1][real(other)[:, :-1]].abs().max() < 1e-9
    keep = rollout(model, text, rules, luck(), edit=lambda place, ids: ids)
    assert torch.equal(keep.ids, ro.ids)


def test_context(tiny):
    """Guards the end of the positions: P + S + M fit to the last place, one more is a sentence."""
    def make(n_text, M, think="free", offset=0):
        text = plain(texts(1, 3), 3, n_text, offset=offset)
        return rollout(tiny(n_ctx=16), text, Rules(think, 1, M), luck())

    make(8, 5)
    make(13, 5, "never")  # who never thinks needs no room for it
    for n_text, M, offset in ((9, 5, 0), (8, 6, 0), (8, 5, 1)):
        refuses(lambda: make(n_text, M, offset=offset), "16")


# The sampler

def test_inverse_cdf_chi_square():
    """Guards the draw against any bias: 400,000 draws over 1,000 rows of very different weights,
    chi-square."""
    generator, n = torch.Generator().manual_seed(0), 400_000
    weights = torch.rand(1000, generator=generator) ** 3 + 1e-3
    counts = torch.zeros(1000, dtype=torch.long)
    for _ in range(0, n, 2_000):
        drawn = inverse_cdf(weights.expand(2_000, -1), torch.rand(2_000, generator=generator))
        counts += torch.bincount(drawn, minlength=1000)
    expected = n * weights.double() / weights.double().sum()
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert expected.min() > 1 and abs(chi2 - 999) < 5 * math.sqrt(2 * 999)  # 5 standard deviations


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 700])
def test_inverse_cdf_grid(n):
    """Guards the seams of the two levels, exactly. Over a grid of uniforms every row comes as often
    as its weight says, give or take one."""
    weights = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    weights[::3] *= 20
    if n > 300:
        weights[256:300] = 0
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = inverse_cdf(weights.expand(20_000, n), grid)
    assert (drawn.diff() >= 0).all()  # it is the inverse of a rising function
    counts = torch.bincount(drawn, minlength=n)
    assert len(counts) == n
    assert (counts - 20_000 * weights / weights.sum()).abs().max() < 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_weights_never_come(dtype):
    """Guards rows of probability 0 (top_k) at both ends of [0, 1). One end is u = 0, the other a u
    so near 1 that rounding ends past the last row."""
    g = torch.Generator().manual_seed(0)
    ends = [0.0, 1e-45, 1e-30, 1e-7, 0.5, 1 - 1e-3, 1 - 2**-24, math.nextafter(1.0, 0.0)]
    for n, keep in ((700, 0.02), (700, 0.5), (256, 0.01), (1000, 0.002), (3, 0.4)):
        stays = torch.rand(400, n, generator=g) < keep
        weights = torch.rand(400, n, generator=g, dtype=dtype) * stays
        weights[torch.arange(400), torch.randint(n, (400,), generator=g)] = 1.0  # at least one
        for u in ends:
            drawn = inverse_cdf(weights, torch.full((400,), u, dtype=dtype))
            assert (drawn < n).all() and (weights.gather(1, drawn[:, None]) > 0).all()


def test_zero_weights_between_blocks():
    """Guards the seam of the two levels. A u that falls on it must not land on the first row of the
    next block where that has weight 0. (A block's start is its end minus its sum; rounding can lift
    it over u.)"""
    weights = torch.rand(20_000, 512, generator=torch.Generator().manual_seed(0))
    weights[:, 256:300] = 0
    first = weights[:, :256].sum(-1)
    u = first / weights.view(-1, 2, 256).sum(-1).cumsum(-1)[:, -1]
    drawn = inverse_cdf(weights, u)
    assert (weights.gather(1, drawn[:, None]) > 0).all()


def test_draw():
    """Guards temperature: it divides the logits, 0 is the argmax, and rows that are far apart do
    not overflow."""
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64).expand(9_999, 3)
    grid = (torch.arange(9_999, dtype=torch.float64) + 0.5) / 9_999
    for temperature in (0.25, 1.0, 3.0):
        share = torch.bincount(draw(logits, grid, temperature), minlength=3) / 9_999
        assert (share - (logits[0] / temperature).softmax(-1)).abs().max() < 2e-3
    assert (draw(logits, grid, 0.0) == 2).all()
    assert (draw(1e4 * logits, grid, 1.0) == 2).all()
    assert (draw(-1e4 * logits, grid, 0.1) == 0).all()


# Who sees whom

@pytest.mark.parametrize("counts", ["places", "text", "steps"])
@pytest.mark.parametrize("window", [1, 2, 3, 5, 99])
def test_visible(window, counts):
    """Guards the one mask of all passes against loops, whatever the window counts. A cache asks it
    for one place at a time, of a row whose later places are not known."""
    is_think = torch.rand(8, 13, generator=torch.Generator().manual_seed(0)) < 0.4
    is_think[0], is_think[1, :], rules = False, True, Rules(window=window, counts=counts)
    ends = ~is_think & (torch.rand(8, 13, generator=torch.Generator().manual_seed(1)) < 0.4)
    mask = visible(is_think, rules, ends)
    assert mask.shape == (8, 1, 13, 13) and visible(is_think, Rules(counts=counts)) is None
    for r, row in enumerate(is_think.tolist()):
        for i in range(13):
            seen = set(mask[r, 0, i].nonzero()[:, 0].tolist())
            assert seen == in_sight(row, rules, i, ends[r].tolist())
    for i in range(13):
        known, at = torch.arange(13) <= i, torch.tensor([i])
        one = visible(is_think & known, rules, ends & known, at)
        assert torch.equal(one[:, :, 0], mask[:, :, i])


@pytest.mark.parametrize("window", [1, 3, 5])
def test_a_thought_takes_no_place_from_text(window):
    """Guards the window of a text: each token sees the text, and at the positions, that it would
    see if nobody thought. Without a window, and elsewhere, a thought is a place like any other."""
    is_think = torch.rand(8, 13, generator=torch.Generator().manual_seed(0)) < 0.4
    is_think[:, 0] = False
    rules = Rules(window=window, counts="text")
    mask, positions = visible(is_think, rules), positions_of(is_think, rules)
    for r in range(8):
        text = (~is_think[r]).nonzero()[:, 0]
        alone = visible_text(text[None], rules)[0, 0]
        assert torch.equal(mask[r, 0][text][:, text], alone)
        assert torch.equal(positions[r, text], torch.arange(len(text)))
        # a thought stands where the text before it does
        assert (positions[r, is_think[r]] == positions[r, is_think[r].nonzero()[:, 0] - 1]).all()
    for other in (Rules(counts="text"), Rules(window=3), Rules(window=1, counts="steps")):
        assert torch.equal(positions_of(is_think, other), torch.arange(13))


def test_window_is_felt(tiny):
    """Guards against a window that hides nothing. With one layer, text further back than the window
    has no effect, and the last thought has one from any distance."""
    model, ids = tiny(L=1), texts(1, 12)
    ids[0, 2] = V + 1
    far, thought = ids.clone(), ids.clone()
    far[0, 1], thought[0, 2] = (far[0, 1] + 1) % V, V + 3
    mask = visible(ids >= V, Rules(window=3))
    h, h_far, h_thought = (model(x, mask=mask)[0, -1] for x in (ids, far, thought))
    assert torch.equal(h, h_far) and (h - h_thought).abs().max() > 1e-4


# At full size, and fast

def test_packed_is_plain(monkeypatch):
    """Guards the packed products: they are the plain ones up to rounding, touch no narrow model,
    and leave nothing behind. Both for thoughts that stay and for branches."""
    calls, pack = [], torch.ops.mkldnn._reorder_linear_weight

    def without(*args):
        raise RuntimeError("a torch without oneDNN")

    def roll_with(model, text, rules, how):
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", how)
        return roll(model, text, rules, Luck(0, 0, "rollout"), GREEDY)

    for width, products in ((256, 0), (512, 5)):  # four in the layer, and the unembedding
        model = GPT(Config(1, 8, width, 32, 300, 20))
        for persist, n in ((True, 4), (False, 12)):
            text, rules = plain(texts(8, n, V=300), 4, 8), Rules("free", 2, 4, persist=persist)
            calls.clear()
            fast = roll_with(model, text, rules, lambda *args: calls.append(args) or pack(*args))
            assert len(calls) == products and not any(
                {"forward", "text_logits"} & m.__dict__.keys() for m in model.modules())
            slow = roll_with(model, text, rules, without)
            assert torch.equal(fast.ids, slow.ids)
            assert (fast.h - slow.h).abs().max() <= (1e-4 if products else 0)


@pytest.mark.parametrize("rules", [Rules("free", 2, 6), Rules("forced", 1, 6, 4, AFTER)])
def test_a_recorder_keeps_its_tensors(tiny, rules):
    """Guards what a GPU replays. A second rollout runs in the tensors of the first one, and nothing
    of that one is left: not its text, not its thoughts, not its offset."""
    model, plainly = tiny(), tiny()
    model.recorder = recorder = Recorder(False, [])
    for seed, offset in ((1, 0), (2, 5), (3, 0)):
        text, u = plain(texts(seed=seed, length=P), P, S), numbers(S + 6, R, seed=seed)
        text.offset = offset
        ro, expected = (rollout(m, text, rules, luck(u)) for m in (model, plainly))
        assert torch.equal(ro.ids, expected.ids) and torch.equal(ro.h, expected.h)
        assert ro.offset == expected.offset and len(recorder.kept) == 1


def test_copies_of_weights(monkeypatch):
    """Guards bfloat16 in a rollout. Copies of the weights change no bit of what autocast computes,
    and follow the weights from one rollout to the next."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    torch.manual_seed(0)
    model, text = GPT(Config(2, 2, 16, 64, V, 5)), plain(texts(), P, S)
    sampler = sampler_of(model, torch.bfloat16, True)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            ro, expected = (rollout(m, text, Rules("free", 1, 6), luck()) for m in (sampler, model))
        own, weight = (m.h[0].mlp.c_fc.weight for m in (sampler, model))
        assert torch.equal(ro.h, expected.h) and own.dtype == torch.bfloat16
        with torch.no_grad():
            weight += 0.3
