"""lab/alphabet.py: thoughts that are born as words, and what it costs to drift from those."""
import json

import pytest
import torch

from conftest import AFTER, P, R, S, V, luck, refuses, run, texts
from data import plain, seeded
from lab import alphabet
from lab.alphabet import as_text, born_as_words, drift, like_words
from model import load
from next_token import layout, roll
from rollout import Luck, Rules
from settings import resolve
from train import setup, text_at_birth

RULES = [Rules("free", 2, 5), Rules("forced", 1, 4, 3, AFTER),
         Rules("free", 2, 2, 3, persist=False)]
PICO = {"approach": "stream", "model": "pico", "think_vocab": 19}


@pytest.mark.parametrize("rules", RULES, ids=["free", "forced, window", "branches"])
def test_drift_one_thought_at_a_time(tiny, rules):
    """Guards --pull. For each thought alone it is the thinker's log g(z), minus the base's log p of
    the word z. The base reads thoughts as words, and sees what the thinker saw. A base that is the
    thinker itself, just born, is 0 away."""
    model, base = tiny(N=V), tiny(N=0, seed=3)
    text = plain(texts(), P, S, offset=7)
    ro = roll(model, text, rules, luck())
    T = ro.ids.shape[1]
    far, read = drift(model, base, ro, rules), as_text(base, ro, rules)
    wanted, likely = torch.zeros(2, R, T - P, dtype=torch.float64)
    positions, mask = layout(ro, rules)
    mask = torch.ones(T, T).tril().bool().view(1, 1, T, T) if mask is None else mask
    for r, i in ro.is_think.nonzero().tolist():
        left, row = int(ro.chosen_at[r, i]), mask[r % len(mask)].unsqueeze(0)
        seen = row[0, 0, left].nonzero().squeeze(1).tolist()
        assert max(seen) == left  # nothing of what comes later
        words = torch.tensor([[x % V for x in ro.ids[r].tolist()]])
        own, its = model(ro.ids[r:r + 1], positions, row), base(words, positions, row)
        z = int(ro.ids[r, i]) - V
        likely[r, i - P] = base.text_logits(its[0, left]).softmax(-1)[z].log().item()
        wanted[r, i - P] = model.think_logits(own[0, left]).softmax(-1)[z].log().item()
    assert (read - likely).abs().max() < 1e-9
    assert (far - (wanted - likely)).abs().max() < 1e-6 and (wanted != 0).sum() > R
    with torch.no_grad():
        own = dict(model.named_parameters())
        for name, p in base.named_parameters():
            if name not in ("think", "gate_bias"):
                own[name].copy_(p)
        model.think.copy_(model.wte.weight)
    ro = roll(model, text, rules, luck())
    assert drift(model, base, ro, rules).abs().max() < 1e-9 and ro.is_think.any()


def test_a_pull_is_the_gradient_of_the_kl(tiny):
    """Guards the claim in `drift`: the mean over thoughts of drift times grad log g is the gradient
    of KL(g || base)."""
    model, base, ids = tiny(N=V), tiny(N=0, seed=3), texts(1, P)
    logg = model.think_logits(model(ids))[0, -1].log_softmax(-1)
    logp = base.text_logits(base(ids))[0, -1].log_softmax(-1).detach()
    kl = (logg.exp() * (logg - logp)).sum()
    sampled = (logg.exp().detach() * (logg - logp).detach() * logg).sum()
    a, b = (torch.autograd.grad(x, [model.think, model.wpe.weight], retain_graph=True)
            for x in (kl, sampled))
    assert all((x - y).abs().max() < 1e-9 < x.abs().max() for x, y in zip(a, b))


def test_rows_that_are_words():
    """Guards `text`. Rows are copies to the bit, which say what the words say and are read as they
    are. The text is as likely as before, and the gate is at its prior."""
    run, base = setup(resolve(PICO)), load("pico")
    born_as_words(run, redrawn=False)
    m, (ids, mask) = run.model, text_at_birth(run)
    h = m(ids, mask=mask)
    assert torch.equal(m.think, m.wte.weight) and m.think is not m.wte.weight
    assert torch.equal(m.wte.weight, base.wte.weight) and m.config.think_vocab == len(m.think) == 19
    before = base.text_logits(base(ids, mask=mask))
    assert torch.equal(m.text_logits(h), before) and torch.equal(m(ids + 19, mask=mask), h)
    assert (m.think_logits(h) - m.gate_bias - before).abs().max() < 1e-4
    p = m.logits(h).softmax(-1)[..., 19:].sum(-1)
    assert p.mean().item() == pytest.approx(run.settings.think_prior, rel=0.02)


def test_rows_that_are_redrawn():
    """Guards `redrawn`: a function of the seed, none of the words, and of their mean and
    covariance, with none of their directions left out."""
    rows = []
    for seed in (0, 0, 1):
        run = setup(resolve(PICO | {"seed": seed}))
        born_as_words(run, redrawn=True)
        rows.append(run.model.think)
    w = run.model.wte.weight
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert torch.cdist(rows[0], w).min() > 0.1 * w.std()
    many = w.mean(0) + like_words(w, 20_000, torch.Generator().manual_seed(0))
    assert (many.mean(0) - w.mean(0)).abs().max() < 0.05 * w.std()
    assert (torch.cov(many.T) - torch.cov(w.T)).norm() < 0.1 * torch.cov(w.T).norm()


def few(model, source, rules, s, *more):
    """An evaluation of one row."""
    text = plain(source.take(1, 17, seeded(0, 0, "eval"), 17), 17, 4)
    ro = roll(model, text, rules, Luck(0, 0, "eval_rollout"))
    shown = [(ro.kept()[0], ro.P)]
    return {"nats_without_thoughts": 1.0, "free_accuracy": 0.0, "free_answers": 0}, shown


def test_the_command(tmp_path, monkeypatch, capsys):
    """Guards the whole: a run with a price for drift trains, its rows move, each evaluation has its
    column, and another price means another run."""
    monkeypatch.setattr("run.draw_curves", lambda *args: None)
    monkeypatch.setattr("run.evaluate", few)
    rows = []
    for flags in (["--pull", "0"], ["--pull", "0.5"], ["--alphabet", "redrawn"]):
        out = tmp_path / str(len(rows))
        argv = [*flags, "--steps", "2", "--prompts", "2", "--samples", "2", "--out", out]
        code, _, err = run(alphabet.main, argv, monkeypatch, capsys)
        assert code == 0, err
        lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
        assert [x["kind"] for x in lines] == ["eval", "step", "step", "eval"]
        assert all(x["skipped"] == 0 for x in lines[1:3])
        assert all(x["thoughts_as_text"] < 0 for x in (lines[0], lines[3]))
        rows.append(load(out).think)
    assert not torch.equal(rows[0], load("pico").wte.weight) and rows[0].isfinite().all()
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_refusals(tmp_path):
    """Guards flags that do not go with an alphabet."""
    for typed in ({"resume": True}, {"thoughts": "filler"}, {"pull": -1.0}, {"think_vocab": 7},
                  {"model": "scratch:1x64"}):
        refuses(lambda: alphabet.prepare({"out": str(tmp_path)} | typed, None))
