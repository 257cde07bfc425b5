"""Lesson 2, model.py: GPT-2, and thinking rows next to its vocabulary.

A GPT turns ids into hidden states, and a hidden state into a logit for each word. A thought is one
more row in that vocabulary: it is predicted as words are and read as words are. When the rows are
added, what the model says about text does not change by a bit. (Files
that are damaged or something else: tests/gate/test_files.py.)
"""
import json
import runpy
from pathlib import Path

import pytest
import torch

import fast
from conftest import refuses, settings
from fast import unembed
from model import GPT, Config, as_checkpoint, from_openai, gate_logit, load
from rollout import Rules
from run import Run, open_run
from weights import of_state, save

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(torch.hub.get_dir()) / "checkpoints" / "gpt2-pytorch_model.bin"


def test_a_thought_is_one_more_row(tiny):
    """Guards the first lesson. With N rows more there are N logits more, and text logits are what
    they were. Id V + i reads row i of `think`."""
    V, N = 7, 3
    m, plain = tiny(V=V, N=N), tiny(V=V, N=0)
    plain.load_state_dict({k: v if k != "think" else v[:0] for k, v in m.state_dict().items()})
    ids = torch.tensor([[2, 0, 5]])
    assert m.logits(m(ids)).shape == (1, 3, V + N) and plain.logits(plain(ids)).shape == (1, 3, V)
    assert torch.equal(m.logits(m(ids))[..., :V], plain.logits(plain(ids)))
    rows = m.embed(torch.arange(V + N).unsqueeze(0), torch.zeros(V + N, dtype=torch.long))[0]
    assert (rows - m.wpe.weight[0] - torch.cat([m.wte.weight, m.think])).abs().max() < 1e-12
    # the gate: one number that decides between thinking and speaking
    p = m.logits(m(ids)).softmax(-1)[..., V:].sum(-1)
    assert (gate_logit(m.logits(m(ids)), V).sigmoid() - p).abs().max() < 1e-12


# It is GPT-2

def hugging_face(seed=0, std=0.1, **shape):
    """transformers' GPT-2 with every weight random: its own init has biases of 0, which would hide
    a lost bias."""
    transformers = pytest.importorskip("transformers")
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in hf.named_parameters():
            mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            p.normal_(mean, std, generator=generator)
    return hf


def agree(ours: GPT, hf, rows=2, length=None):
    c = ours.config
    ids = torch.randint(c.vocab_size, (rows, length or c.n_ctx),
                        generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs, mine = hf(ids).logits, ours.logits(ours(ids))
    assert mine.shape == theirs.shape == (*ids.shape, c.vocab_size)
    assert theirs.std() > 0.1  # else anything would agree
    assert (mine - theirs).abs().max() < 1e-4


SHAPES = [  # vocab, context, width, layers, heads
    (83, 24, 64, 1, 1), (301, 17, 128, 3, 2), (50, 32, 96, 2, 3), (120, 40, 40, 2, 5),
]


def of_shape(V, n_ctx, C, L, H):
    return hugging_face(V, vocab_size=V, n_positions=n_ctx, n_embd=C, n_layer=L, n_head=H)


@pytest.mark.parametrize("shape", SHAPES)
def test_parity_folder(shape, tmp_path):
    """Guards every formula of GPT-2 against the other implementation of it: tanh GELU, the order of
    q, k, v, transposed weights, heads, eps. It comes as it is downloaded, in a folder with
    model.safetensors and config.json."""
    hf, (V, n_ctx, C, L, H) = of_shape(*shape), shape
    hf.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    ours = load(tmp_path)
    assert ours.config == Config(L, H, C, n_ctx, V, 0)
    agree(ours, hf)


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_parity_bin(shape, prefix, tmp_path):
    """Guards the older layout: one .bin, keys with and without `transformer.`, causal masks saved
    among the weights. (Those are called attn.bias, and so ends attn.c_attn.bias, which stays.)"""
    hf, (_, n_ctx, _, L, _) = of_shape(*shape), shape
    state = hf.state_dict() if prefix else hf.transformer.state_dict()
    starts = ("transformer.", "lm_head.") if prefix else ("wte", "wpe", "h.", "ln_f")
    assert all(k.startswith(starts) for k in state)
    for i in range(L):
        state[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, n_ctx, n_ctx).tril()
        state[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, tmp_path / "pytorch_model.bin")
    refuses(lambda: load(tmp_path / "pytorch_model.bin"), "heads")  # weights alone do not say it
    hf.config.save_pretrained(tmp_path)
    agree(load(tmp_path / "pytorch_model.bin"), hf)


def test_folder_with_bin(tmp_path):
    """Guards the folder that has pytorch_model.bin and no safetensors, and heads that are not
    width / 64."""
    hf = of_shape(30, 12, 32, 2, 4)
    torch.save(hf.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"n_head": 4}))
    agree(load(tmp_path), hf)


def test_parity_124m():
    """Guards GPT-2's real shape, at which a wrong axis or a wrong number of heads would still run.
    Two layers and 5,000 words of it are enough: the others have the same shape."""
    hf = hugging_face(std=0.02, n_layer=2, vocab_size=5000)
    ours = from_openai(of_state(hf.state_dict(), "gpt2", n_head=12))
    assert ours.config == Config(n_layer=2, vocab_size=5000)
    agree(ours, hf, rows=1, length=48)
    with torch.device("meta"):  # shapes without numbers
        whole = GPT(Config())
    # GPT-2's own count, and the gate's bias
    assert sum(p.numel() for p in whole.parameters()) == 124_439_808 + 1


@pytest.mark.skipif(not REAL.exists(), reason="GPT-2's weights are not in torch.hub's cache")
def test_real_gpt2():
    """Guards the whole chain on the real weights: this is what GPT-2 says after "The dog"."""
    gpt2, ids = load("gpt2"), [464, 3290]
    with torch.no_grad():
        for _ in range(18):
            ids.append(gpt2.logits(gpt2(torch.tensor([ids]))[:, -1]).argmax().item())
    assert ids[2:] == [373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 262, 2688, 290, 2688,
                       27262, 13, 198, 198, 32]


def test_causal_and_context(tiny):
    """Guards the direction of time, and the end of the positions: one token too many is a
    sentence, no IndexError."""
    m = tiny(n_ctx=8)
    a = torch.arange(8).unsqueeze(0)
    b = a.clone()
    b[0, 5] = 9
    same = (m(a) == m(b)).all(-1)[0]
    assert same[:5].all() and not same[5:].any()
    refuses(lambda: m(torch.zeros(1, 9, dtype=torch.long)), "8")


def test_cache_is_a_plain_forward(tiny):
    """Guards the cache by itself: written in three bites, at any positions, it gives the states of
    one forward. So does the one that grows, and gradients pass through that."""
    m = tiny(n_ctx=32)
    ids = torch.randint(16, (3, 9), generator=torch.Generator().manual_seed(0))
    whole = m(ids, torch.arange(9) + 4)
    cache, places, out = m.new_cache(3, 12), torch.arange(12), []
    grown, parts = m.new_cache(3, 0), []
    for a, b in ((0, 4), (4, 5), (5, 9)):
        mask = (places <= places[a:b, None]).view(1, 1, b - a, 12)
        out.append(m(ids[:, a:b], places[a:b] + 4, mask, cache, places[a:b]))
        parts.append(m(ids[:, a:b], places[a:b] + 4, mask[..., :b], grown))
    assert (torch.cat(out, 1) - whole).abs().max() < 1e-9
    grad = [torch.autograd.grad(h[:, -1].sum(), m.wte.weight)[0]
            for h in (whole, torch.cat(parts, 1))]
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-9
    assert (grad[0] - grad[1]).abs().max() < 1e-9


# Growing

def p_think_of(m: GPT, ids):
    """p_think by its definition: the share of the thinking rows in the softmax over all rows."""
    V = m.config.vocab_size
    return m.logits(m(ids)).double().softmax(-1)[..., V:].sum(-1).flatten()


def plant_common_part(m: GPT, seed=100):
    """GPT-2's logits share a large part that depends on the context. Here it is made: all rows of
    wte get one vector in common, and positions push the hidden state along it, up and down."""
    generator = torch.Generator().manual_seed(seed)
    n_ctx, C = m.wpe.weight.shape
    with torch.no_grad():
        u = torch.nn.functional.normalize(torch.randn(C, generator=generator), dim=0)
        m.wte.weight += 15 * u
        m.wpe.weight += 0.7 * torch.randn(n_ctx, 1, generator=generator) * u - 15 * u


def is_well_born(p, prior, factor=10):
    """The mean is the prior, and thinking is possible everywhere and certain nowhere."""
    low, high = p.quantile(torch.tensor([0.05, 0.95]).double()).tolist()
    near = abs(p.mean().item() / prior - 1) < 0.02
    return near and low > prior / factor and high < min(factor * prior, 0.97)


def newborn(V, planted, N=64, C=64, seed=0):
    torch.manual_seed(seed)
    m = GPT(Config(2, 2, C, 64, V, 0))
    if planted:
        plant_common_part(m)
    generator = torch.Generator().manual_seed(seed)
    return m, torch.randint(V, (16, 64), generator=generator), generator


@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize("V, prior", [(27, 0.1), (400, 0.1), (400, 0.5), (400, 0.003)])
def test_grow(V, prior, planted):
    """Guards the birth of thinking rows. Text logits do not change by a bit, and no two rows are
    alike. p_think is the prior in the mean, and near it in every context. That holds where all
    logits rise and fall together as well."""
    m, ids, generator = newborn(V, planted)
    with torch.no_grad():
        h = m(ids)
        before = m.logits(h)
        assert before.shape[-1] == V
        if planted:  # nats: the common part is large, and varies with the context
            assert before.mean(-1).std() > 15
        said = m.grow(64, ids, prior, generator)
        after = m.logits(m(ids))
        assert after.shape == (*ids.shape, V + 64) and m.config.think_vocab == 64
        assert torch.equal(after[..., :V], before) and torch.equal(m(ids), h)
        p = p_think_of(m, ids)
        assert is_well_born(p, prior)
        assert said["mean"] == pytest.approx(p.mean().item(), rel=1e-3)
        assert said["p05"] < said["mean"] < said["p95"]
        assert torch.equal(gate_logit(after, V).sigmoid() > 0.5, (p > 0.5).view(ids.shape))
        apart = torch.cdist(m.think, m.think) + 1e9 * torch.eye(64)
        assert apart.min() > 0.1 * m.think.std()
        assert after[..., V:].std(-1).mean().item() == pytest.approx(2.4, rel=0.05)


@pytest.mark.parametrize("V", [27, 400])
def test_rows_without_the_mean_fail(V):
    """Guards the check of the test above: rows without mean(wte), their gate's bias fitted just as
    well, do not pass it."""
    m, ids, generator = newborn(V, planted=True)
    with torch.no_grad():
        m.grow(64, ids, 0.1, generator)
        assert is_well_born(p_think_of(m, ids), 0.1)
        m.think -= m.wte.weight.mean(0)
        m.fit_gate(ids, 0.1)
        p = p_think_of(m, ids)
        assert p.mean().item() == pytest.approx(0.1, rel=0.02)  # in the mean, all is well
        assert not is_well_born(p, 0.1) and p.quantile(0.05) < 1e-4 and p.quantile(0.95) > 0.9


def test_grow_one_row():
    """Guards N = 1 (filler), where a spread between rows is 0 / 0."""
    m, ids, generator = newborn(27, planted=True)
    m.grow(1, ids, 0.2, generator)
    assert m.think.isfinite().all() and is_well_born(p_think_of(m, ids), 0.2)


def test_fit_gate_at_some_places():
    """Guards `where`: the mean over the places that are asked for is the prior."""
    m, ids, generator = newborn(27, planted=True)
    m.grow(8, ids, 0.2, generator)
    where = ids < 5
    m.fit_gate(ids, 0.4, where=where)
    p = p_think_of(m, ids)
    assert p[where.flatten()].mean().item() == pytest.approx(0.4, rel=0.01)
    assert abs(p.mean().item() - 0.4) > 1e-3


@pytest.mark.parametrize("N, prior", [(0, 0.1), (4, 0.0), (4, 1.0), (-1, 0.5)])
def test_grow_refuses(N, prior):
    """Guards against a prior that no bias can reach, which would end the search at its border."""
    m, ids, generator = newborn(27, planted=False)
    refuses(lambda: m.grow(N, ids, prior, generator))


# Loading

def test_checkpoint_round_trip(tiny, tmp_path):
    """Guards our own checkpoint: what is saved comes back, the language of the model included."""
    m = tiny(V=7, N=3, dtype=torch.float32, offset=0.3)
    m.text_ids = [464, 2613, 318, 739, 6508, 347, 13]
    save(tmp_path / "ckpt.pt", as_checkpoint(m) | {"step": 3})
    for path in (tmp_path / "ckpt.pt", tmp_path):  # load(path) takes a run's folder as well
        back = load(path)
        assert isinstance(back, GPT)
        assert back.config == m.config and back.text_ids == m.text_ids
        assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(),
                                                     back.state_dict().values(), strict=True))
    assert [x.name for x in tmp_path.iterdir()] == ["ckpt.pt"]  # nothing half-made is left


def test_load_of_a_run(tiny, tmp_path):
    """Guards model.load. Of a run's folder it returns the module alone. The rules are `open_run`'s,
    which takes a plain model only where it is asked to."""
    m, rules = tiny(dtype=torch.float32), Rules("free", window=5, think_after=[1, 4])
    save(tmp_path / "ckpt.pt", Run(m, rules, settings(seed=7)).as_saved())
    assert isinstance(load(tmp_path), GPT) and torch.equal(load(tmp_path).think, m.think)
    assert open_run(tmp_path).rules == rules and open_run(tmp_path).settings.seed == 7
    save(tmp_path / "ckpt.pt", as_checkpoint(m))
    refuses(lambda: open_run(tmp_path), "not the checkpoint of a run")
    assert open_run(tmp_path, plain=True).rules == Rules("never")


@pytest.mark.parametrize("room", ["reward", "tokenizer"])
def test_demonstrations(room, monkeypatch, capsys):
    """Guards the files that show what they do when they are run."""
    argv = ["The ball"] if room == "tokenizer" else []
    monkeypatch.setattr("sys.argv", [f"{room}.py", *argv])
    runpy.run_path(str(ROOT / f"{room}.py"), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 1


def test_unembed(monkeypatch):
    """Guards the fast unembedding: it is h @ rows.T up to rounding, never where a gradient is asked
    for, nor for few rows."""
    torch.manual_seed(0)
    calls, ops = [], torch.ops.mkldnn
    real = ops._linear_pointwise
    monkeypatch.setattr(ops, "_linear_pointwise", lambda *args: calls.append(args) or real(*args))
    monkeypatch.setattr(fast, "is_intel", lambda: False)
    h, rows = torch.randn(2, 3, 64), torch.randn(2 ** 15 + 7, 64)
    assert (unembed(h, rows) - h @ rows.T).abs().max() < 1e-4 and len(calls) == 5  # parts of 2^13
    wide = torch.zeros(2, 3, len(rows) + 5)
    assert torch.equal(unembed(h, rows, wide[..., :-5]), unembed(h, rows))
    assert not wide[..., -5:].any() and torch.equal(wide[..., :-5], unembed(h, rows))
    assert len(calls) == 20
    # torch's own product writes into `out` itself
    monkeypatch.setattr(fast, "is_intel", lambda: True)
    wide.zero_()
    assert (unembed(h, rows, wide[..., :-5]) - h @ rows.T).abs().max() < 1e-4
    assert wide[..., :-5].abs().sum() > 0 and not wide[..., -5:].any() and len(calls) == 20
    assert torch.equal(unembed(h, rows[:99]), h @ rows[:99].T)
    for x in (h, rows):
        x.requires_grad_()
        assert torch.autograd.grad(unembed(h, rows).sum(), x)[0].abs().sum() > 0
        x.requires_grad_(False)
    assert len(calls) == 20
    monkeypatch.setattr(ops, "_linear_pointwise", missing)
    assert torch.equal(unembed(h, rows), h @ rows.T)


def missing(*args):
    raise RuntimeError("a torch without oneDNN")
