"""model.py: it is GPT-2, it stays GPT-2 when it grows, and a bad file of weights is one clear line."""
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import model as model_py
from conftest import one_line
from model import Config, GPT, as_checkpoint, export, from_openai, gate_logit, load, unembed

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(torch.hub.get_dir()) / "checkpoints" / "gpt2-pytorch_model.bin"


def hugging_face(seed=0, std=0.1, **shape):
    """transformers' GPT-2 with every weight random: its own init has biases of 0, which would hide a lost bias."""
    transformers = pytest.importorskip("transformers")
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    luck = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in hf.named_parameters():
            p.normal_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0, std, generator=luck)
    return hf


def agree(ours: GPT, hf, rows=2, length=None):
    c = ours.config
    ids = torch.randint(c.vocab_size, (rows, length or c.n_ctx), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs, mine = hf(ids).logits, ours.logits(ours(ids))
    assert mine.shape == theirs.shape == (*ids.shape, c.vocab_size)
    assert theirs.std() > 0.1  # else anything would agree
    assert (mine - theirs).abs().max() < 1e-4


SHAPES = [  # vocab, context, width, layers, heads: without a config.json the heads are width / 64
    (83, 24, 64, 1, 1), (301, 17, 128, 3, 2), (50, 32, 96, 2, 3), (120, 40, 40, 2, 5),
]


@pytest.mark.parametrize("V, n_ctx, C, L, H", SHAPES)
def test_parity_folder(V, n_ctx, C, L, H, tmp_path):
    """Guards every formula of GPT-2 (tanh GELU, the order of q, k, v, transposed weights, heads, eps) against the
    other implementation of it, through a folder as it is downloaded: model.safetensors and config.json."""
    hf = hugging_face(V, vocab_size=V, n_positions=n_ctx, n_embd=C, n_layer=L, n_head=H)
    hf.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    ours = load(tmp_path)
    assert ours.config == Config(L, H, C, n_ctx, V, 0)
    agree(ours, hf)


@pytest.mark.parametrize("V, n_ctx, C, L, H", [s for s in SHAPES if s[2] == 64 * s[4]])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_parity_bin(V, n_ctx, C, L, H, prefix, tmp_path):
    """Guards the older layout: one .bin, keys with and without `transformer.`, causal masks saved among the weights.
    (The masks are called attn.bias, and so ends attn.c_attn.bias, which must not go with them.)"""
    hf = hugging_face(V, vocab_size=V, n_positions=n_ctx, n_embd=C, n_layer=L, n_head=H)
    state = hf.state_dict() if prefix else hf.transformer.state_dict()
    assert all(k.startswith(("transformer.", "lm_head.") if prefix else ("wte", "wpe", "h.", "ln_f")) for k in state)
    for i in range(L):
        state[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, n_ctx, n_ctx).tril()
        state[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, tmp_path / "pytorch_model.bin")
    agree(load(tmp_path / "pytorch_model.bin"), hf)


def test_folder_with_bin(tmp_path):
    """Guards the folder that has pytorch_model.bin and no safetensors, and heads that are not width / 64."""
    hf = hugging_face(vocab_size=30, n_positions=12, n_embd=32, n_layer=2, n_head=4)
    torch.save(hf.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"n_head": 4}))
    agree(load(tmp_path), hf)


def test_parity_124m(tmp_path):
    """Guards GPT-2's real shape, at which a wrong axis or a wrong number of heads would still run."""
    hf = hugging_face(std=0.02, n_layer=12, n_head=12, n_embd=768)
    path = tmp_path / "pytorch_model.bin"
    torch.save(hf.state_dict(), path)
    ours = load(path)
    path.unlink()  # half a gigabyte
    assert ours.config == Config()
    assert sum(p.numel() for p in ours.parameters()) == 124_439_808 + 1  # GPT-2's own count, and the offset
    agree(ours, hf, rows=1, length=48)


@pytest.mark.skipif(not REAL.exists(), reason="GPT-2's weights are not in torch.hub's cache")
def test_real_gpt2():
    """Guards the whole chain on the real weights: this is what GPT-2 says after "The dog"."""
    gpt2, ids = load("gpt2"), [464, 3290]
    with torch.no_grad():
        for _ in range(18):
            ids.append(gpt2.logits(gpt2(torch.tensor([ids]))[:, -1]).argmax().item())
    assert ids[2:] == [373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 262, 2688, 290, 2688, 27262, 13, 198, 198, 32]


def test_causal_and_context(tiny):
    """Guards the direction of time, and the end of the positions: one token too many is a sentence, no IndexError."""
    m = tiny(n_ctx=8)
    a = torch.arange(8).unsqueeze(0)
    b = a.clone()
    b[0, 5] = 9
    same = (m(a) == m(b)).all(-1)[0]
    assert same[:5].all() and not same[5:].any()
    with pytest.raises(ValueError) as e:
        m(torch.zeros(1, 9, dtype=torch.long))
    assert "8" in one_line(e)


def test_cache_is_a_plain_forward(tiny):
    """Guards the cache by itself: written in three bites, at any positions, it gives the states of one forward."""
    m = tiny(n_ctx=32)
    ids = torch.randint(16, (3, 9), generator=torch.Generator().manual_seed(0))
    whole = m(ids, torch.arange(9) + 4)
    cache, places, out = m.new_cache(3, 12), torch.arange(12), []
    for a, b in ((0, 4), (4, 5), (5, 9)):
        mask = (places <= places[a:b, None]).view(1, 1, b - a, 12)
        out.append(m(ids[:, a:b], places[a:b] + 4, mask, cache, places[a:b]))
    assert (torch.cat(out, 1) - whole).abs().max() < 1e-9


# growing

def p_think_of(m: GPT, ids):
    """p_think by its definition: the share of the thinking rows in the softmax over all rows."""
    V = m.config.vocab_size
    return m.logits(m(ids)).double().softmax(-1)[..., V:].sum(-1).flatten()


def plant_common_part(m: GPT, seed=100):
    """GPT-2's logits share a large part that depends on the context. Here it is made: all rows of wte get one vector
    in common, and the positions push the hidden state along it, up and down."""
    luck = torch.Generator().manual_seed(seed)
    n_ctx, C = m.wpe.weight.shape
    with torch.no_grad():
        u = torch.nn.functional.normalize(torch.randn(C, generator=luck), dim=0)
        m.wte.weight += 15 * u
        m.wpe.weight += 0.7 * torch.randn(n_ctx, 1, generator=luck) * u - 15 * u


def is_well_born(p, prior, factor=8):
    """The mean is the prior, and thinking is possible everywhere and certain nowhere."""
    low, high = p.quantile(torch.tensor([0.05, 0.95]).double()).tolist()
    return abs(p.mean().item() / prior - 1) < 0.02 and low > prior / factor and high < min(factor * prior, 0.97)


def newborn(V, planted, N=64, C=64, seed=0):
    torch.manual_seed(seed)
    m = GPT(Config(2, 2, C, 64, V, 0))
    if planted:
        plant_common_part(m)
    luck = torch.Generator().manual_seed(seed)
    return m, torch.randint(V, (16, 64), generator=luck), luck


@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize("V, prior", [(27, 0.1), (400, 0.1), (400, 0.5), (400, 0.003)])
def test_grow(V, prior, planted):
    """Guards the birth of thinking rows: text logits do not change by a bit, p_think is the prior in the mean and near
    it in every context (also where all logits rise and fall together), and no two rows are alike."""
    m, ids, luck = newborn(V, planted)
    with torch.no_grad():
        h = m(ids)
        before = m.logits(h)
        assert before.shape[-1] == V
        if planted:
            assert before.mean(-1).std() > 15  # nats: the common part is large, and varies with the context
        said = m.grow(64, ids, prior, luck)
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
        spread = after[..., V:].std(-1).mean().item()
        assert spread == pytest.approx(2.4, rel=0.05)


@pytest.mark.parametrize("V", [27, 400])
def test_rows_without_the_mean_fail(V):
    """Guards the check of the test above: rows without mean(wte), their offset fitted just as well, do not pass it."""
    m, ids, luck = newborn(V, planted=True)
    with torch.no_grad():
        m.grow(64, ids, 0.1, luck)
        assert is_well_born(p_think_of(m, ids), 0.1)
        m.think -= m.wte.weight.mean(0)
        gap = gate_logit(m.logits(m(ids)), V).double().flatten() - m.think_offset
        low, high = -1e4, 1e4
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if torch.sigmoid(gap + middle).mean() < 0.1 else (low, middle)
        m.think_offset.fill_(low)
        p = p_think_of(m, ids)
        assert p.mean().item() == pytest.approx(0.1, rel=0.02)  # in the mean, all is well
        assert not is_well_born(p, 0.1) and p.quantile(0.05) < 1e-4 and p.quantile(0.95) > 0.9


def test_grow_one_row():
    """Guards N = 1 (filler), where a spread between rows is 0 / 0."""
    m, ids, luck = newborn(27, planted=True)
    m.grow(1, ids, 0.2, luck)
    p = p_think_of(m, ids)
    assert m.think.isfinite().all() and is_well_born(p, 0.2)


def test_a_text_alphabet():
    """Guards rows that are words: copies to the bit, which say what the words say and are read as they are; the text is as
    likely as it was."""
    m, ids, luck = newborn(27, planted=True)
    before = m.text_logits(m(ids))
    m.grow(27, ids, 0.2, luck, alphabet="text")
    h = m(ids)
    assert torch.equal(m.think, m.wte.weight) and m.think is not m.wte.weight and torch.equal(m.text_logits(h), before)
    assert (m.think_logits(h) - m.think_offset - before).abs().max() < 1e-5 and torch.equal(m(ids + 27), h)
    assert p_think_of(m, ids).mean().item() == pytest.approx(0.2, rel=0.02)
    with pytest.raises(ValueError, match="27 words"):
        m.grow(26, ids, 0.2, luck, alphabet="text")


def test_a_redrawn_alphabet():
    """Guards rows drawn anew: the text rows' mean and covariance, and none of their directions left out."""
    m, ids, luck = newborn(27, planted=True)
    m.grow(20_000, ids, 0.2, luck, alphabet="redrawn")
    w = m.wte.weight
    assert (m.think.mean(0) - w.mean(0)).abs().max() < 0.05 * w.std()
    assert (torch.cov(m.think.T) - torch.cov(w.T)).norm() < 0.1 * torch.cov(w.T).norm()


@pytest.mark.parametrize("N, prior", [(0, 0.1), (4, 0.0), (4, 1.0), (-1, 0.5)])
def test_grow_refuses(N, prior):
    """Guards against a prior that no offset can reach, which would end the search at its border."""
    m, ids, luck = newborn(27, planted=False)
    with pytest.raises(ValueError) as e:
        m.grow(N, ids, prior, luck)
    one_line(e)


def test_thinking_rows_are_inputs_too(tiny):
    """Guards the embedding of thoughts: id V + i reads row i of `think`, id i reads row i of wte, none the other's."""
    m = tiny(V=7, N=3)
    x = m.embed(torch.arange(10).unsqueeze(0), torch.zeros(10, dtype=torch.long))[0] - m.wpe.weight[0]
    assert (x - torch.cat([m.wte.weight, m.think])).abs().max() < 1e-12


# loading

def test_checkpoint_round_trip(tiny, tmp_path):
    """Guards our own checkpoint: what is saved comes back, the language of the model included."""
    m = tiny(V=7, N=3, dtype=torch.float32, offset=0.3)
    m.text_ids = [464, 2613, 318, 739, 6508, 347, 13]
    torch.save(as_checkpoint(m) | {"step": 3}, tmp_path / "ckpt.pt")
    back = load(tmp_path / "ckpt.pt")
    assert back.config == m.config and back.text_ids == m.text_ids
    assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(), back.state_dict().values(), strict=True))


@pytest.fixture
def good(tmp_path):
    """A folder with a good model in all three formats, to be spoilt."""
    m = GPT(Config(1, 1, 64, 8, 20, 0))
    state = {k: v.T.contiguous() if k.endswith(model_py.TRANSPOSED) else v.contiguous()
             for k, v in m.state_dict().items() if not k.startswith("think")}
    torch.save(state, tmp_path / "a.bin")
    torch.save(as_checkpoint(m), tmp_path / "ckpt.pt")
    for name in ("a.bin", "ckpt.pt"):
        load(tmp_path / name)
    return tmp_path


def refuses(path):
    with pytest.raises(ValueError) as e:
        load(path)
    return one_line(e)


def test_missing(tmp_path):
    """Guards a mistyped name: the message has it, and the names that exist."""
    assert "gpt3" in refuses("gpt3") and "gpt2-xl" in refuses("gpt3")
    refuses(tmp_path / "none.bin")


def test_folders(good):
    """Guards a folder that lacks a part: no config.json, one without heads or cut, or no weights. (A run's folder is its
    checkpoint.)"""
    assert load(good).config.vocab_size == 20
    (good / "ckpt.pt").unlink()
    assert "config.json" in refuses(good)
    for text in ("", "{", "{}", "[1]", "null"):
        (good / "config.json").write_text(text)
        assert "config.json" in refuses(good)
    (good / "config.json").write_text('{"n_head": 1}')
    assert "model.safetensors" in refuses(good)
    (good / "a.bin").rename(good / "pytorch_model.bin")
    load(good)
    (good / "config.json").write_text('{"n_head": 5}')
    assert "5 heads" in refuses(good)


@pytest.mark.parametrize("name", ["a.bin", "ckpt.pt", "model.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 8, 100, 0.5, -1])
def test_truncated(good, name, keep):
    """Guards a download or a save that was cut anywhere: a sentence with the path, not the stack of a zip reader."""
    if name == "model.safetensors":
        pytest.importorskip("safetensors.torch").save_file(torch.load(good / "a.bin"), good / name)
        load(good / name)
    data = (good / name).read_bytes()
    (good / name).write_bytes(data[:int(keep * len(data)) if isinstance(keep, float) else keep])
    assert name in refuses(good / name)


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.safetensors"])
@pytest.mark.parametrize("data", [
    b"hello, I am no model\n" * 50, b"<!doctype html>", bytes(range(256)) * 9, b"\x80\x02.", b"\x80", b"\0" * 1000,
    b"PK\x03\x04" + b"\0" * 99, b"version https://git-lfs",
])
def test_other_files(tmp_path, name, data):
    """Guards a file that is something else: a page of HTML, a pointer of git-lfs, noise."""
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / name).write_bytes(data)
    refuses(tmp_path / name)


@pytest.mark.parametrize("what", [
    [1, 2], torch.zeros(3), {}, {"a": 1}, {1: torch.zeros(1)}, {"wte.weight": torch.zeros(4, 4)},
    {"wte.weight": torch.zeros(4), "wpe.weight": torch.zeros(4)}, {"config": {"n_layer": 1}},
    {"config": None, "model": {}, "text_ids": None}, {"config": {"depth": 3}, "model": {}, "text_ids": None},
    {"config": {"n_layer": 1, "n_embd": 12, "vocab_size": 3}, "model": {}, "text_ids": None},
    {"config": {"n_layer": 1, "n_embd": 12, "vocab_size": 3}, "model": [], "text_ids": None},
])
def test_other_contents(tmp_path, what):
    """Guards a sound file of torch that holds something else: some other model, a list, a half-made checkpoint."""
    torch.save(what, tmp_path / "x.pt")
    refuses(tmp_path / "x.pt")


@pytest.mark.parametrize("key, change", [
    ("h.0.attn.c_attn.weight", lambda w: w.T.contiguous()), ("h.0.mlp.c_fc.bias", lambda b: b[:-1]),
    ("wpe.weight", lambda w: w[:, :-1]), ("ln_f.weight", lambda w: None), ("wte.weight", lambda w: w.flatten()),
])
def test_wrong_shape(good, key, change):
    """Guards weights that do not fit: they are named, and never broadcast or left at their random start."""
    state = torch.load(good / "a.bin")
    state[key] = change(state[key])
    state = {k: v for k, v in state.items() if v is not None}
    with pytest.raises(ValueError) as e:
        from_openai(state)
    text = one_line(e)
    assert key in text or "layout" in text
    torch.save(state, good / "b.bin")
    refuses(good / "b.bin")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [True, False])
def test_weights_run_no_code(tmp_path, plain):
    """Guards against a pickle that runs code when it is loaded: it is refused, and the code has not run."""
    bomb = {"wte.weight": Bomb(tmp_path / "ran")}
    if plain:
        (tmp_path / "x.bin").write_bytes(pickle.dumps(bomb, 2))
    else:
        torch.save(bomb, tmp_path / "x.bin")
    refuses(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "x.bin").read_bytes()) if plain else torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # the bomb was live


@pytest.mark.parametrize("N", [0, 8])
def test_export_is_what_transformers_loads(tmp_path, N):
    """Guards the way back: the exported folder gives equal logits in transformers, without the thinking rows, and ours loads
    it as well."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    m, ids = GPT(Config(2, 4, 32, 40, 57, N), list(range(100, 157)) if N else None), torch.randint(57, (3, 40))
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.3)
    export(m, tmp_path / "hf")
    hf = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert (hf(ids).logits - m.text_logits(m(ids))).abs().max() < 1e-5
        again = load(tmp_path / "hf")
        assert again.text_ids == m.text_ids  # what its rows stand for comes along
        assert torch.equal(again.text_logits(again(ids)), m.text_logits(m(ids)))


@pytest.mark.parametrize("room", ["model", "rollout", "reward", "tokenizer"])
def test_demonstrations(room):
    """Each of these files shows what it does when it is run."""
    argv = ["The ball"] if room == "tokenizer" else []
    done = subprocess.run([sys.executable, ROOT / f"{room}.py", *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 1, done.stderr


def test_unembed(monkeypatch):
    """Guards the fast unembedding: it is h @ rows.T up to rounding, never where a gradient is asked for, nor for few rows."""
    torch.manual_seed(0)
    calls, ops = [], torch.ops.mkldnn
    real = ops._linear_pointwise
    monkeypatch.setattr(ops, "_linear_pointwise", lambda *args: calls.append(args) or real(*args))
    monkeypatch.setattr("model.is_intel", lambda: False)
    h, rows = torch.randn(2, 3, 64), torch.randn(2 ** 15 + 7, 64)
    assert (unembed(h, rows) - h @ rows.T).abs().max() < 1e-4 and len(calls) == 5  # parts of 2 ** 13
    wide = torch.zeros(2, 3, len(rows) + 5)
    assert torch.equal(unembed(h, rows, wide[..., :-5]), unembed(h, rows)) and not wide[..., -5:].any()
    assert torch.equal(wide[..., :-5], unembed(h, rows)) and len(calls) == 20
    monkeypatch.setattr("model.is_intel", lambda: True)  # torch's own product writes into `out` itself
    wide.zero_()
    assert (unembed(h, rows, wide[..., :-5]) - h @ rows.T).abs().max() < 1e-4 and not wide[..., -5:].any()
    assert wide[..., :-5].abs().sum() > 0 and len(calls) == 20
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
