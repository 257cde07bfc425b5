"""lab/export.py: transformers loads what it writes, and says the same."""
import os
from pathlib import Path

import pytest
import torch

import train
from conftest import one_line, refuses, run, settings
from data import plain
from lab import export
from lab.export import export as write
from model import GPT, Config, gate_logit, load
from next_token import roll
from rollout import GREEDY, Luck, Rules
from sample import generate, load_run
from tokenizer import Tokenizer


@pytest.mark.parametrize("N", [0, 8])
def test_export_is_what_transformers_loads(tmp_path, N):
    """Guards the way back: the exported folder gives equal logits in transformers, without the
    thinking rows, and ours loads it as well."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    text_ids = list(range(100, 157)) if N else None
    m, ids = GPT(Config(2, 4, 32, 40, 57, N), text_ids), torch.randint(57, (3, 40))
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.3)
    write(m, tmp_path / "hf")
    hf = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        ours = m.text_logits(m(ids))
        assert ours.std() > 0.1  # else anything would agree
        assert (hf(ids).logits - ours).abs().max() < 1e-5
        again = load(tmp_path / "hf")
        assert again.text_ids == m.text_ids  # what its rows stand for comes along
        assert torch.equal(again.text_logits(again(ids)), ours)


SMALL = [*range(100, 156), 50256]  # GPT-2's ids of a small language


def grown(N: int = 8, text_ids: list[int] | None = SMALL) -> GPT:
    """A model with thinking rows, of numbers large enough to tell rows apart."""
    torch.manual_seed(1)
    m = GPT(Config(2, 4, 32, 64, len(text_ids), N), text_ids)
    for name, p in m.named_parameters():
        torch.nn.init.normal_(p, std=1.0 if name in ("wte.weight", "wpe.weight", "think") else 0.3)
        if ".ln_" in f".{name}" and name.endswith("weight"):
            torch.nn.init.ones_(p)
    return m


def test_greedy_thoughts_are_ours(tmp_path):
    """Guards --thoughts: `generate` of transformers, restricted to the rows that the rules name,
    writes the same text and the same thoughts."""
    transformers = pytest.importorskip("transformers")
    m, V, after = grown(), len(SMALL), list(range(0, len(SMALL), 3))
    rules = Rules("forced", 2, 40, think_after=after)
    write(m, tmp_path / "hf", rules)
    hf = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    written = []
    for seed in range(8):
        prompt = torch.randint(V, (1, 5), generator=torch.Generator().manual_seed(seed))
        ours = roll(m, plain(prompt, 5, 12), rules, Luck(0, 0, "rollout"), GREEDY).kept()[0]

        def allowed(_, ids):
            ids = ids.tolist()
            thoughts = next(i for i in range(len(ids)) if ids[-1 - i] < V)  # in this slot
            thinks = ids[-1 - thoughts] in after and thoughts < 2
            return list(range(V, V + 8)) if thinks else list(range(V))
        theirs = hf.generate(
            prompt, attention_mask=torch.ones_like(prompt), prefix_allowed_tokens_fn=allowed,
            do_sample=False, max_length=len(ours), pad_token_id=0, eos_token_id=None)
        assert theirs[0].tolist() == ours
        written += ours[5:]
    # not the same word again and again
    assert len({i for i in written if i < V}) > 2 and len({i for i in written if i >= V}) > 1


def test_the_snippet(tmp_path, monkeypatch, capsys):
    """Guards the page, and the way of a user: a run on cups without a window, the command, the code
    of docs/TASKS.md. It says and thinks what `generate` of ours does, in the prompt as well."""
    pytest.importorskip("transformers")
    s = settings(window=0, think_vocab=8, steps=1, eval_every=9, new_tokens=8, prompts=2, samples=2,
                 out=str(tmp_path / "run"))
    run_of = train.setup(s)
    torch.nn.init.normal_(run_of.model.think)
    train.train(run_of)
    code, out, err = run(export.main, [tmp_path / "hf", "--model", tmp_path / "run", "--thoughts"],
                         monkeypatch, capsys)
    assert code == 0 and "<think7>" in out and "it thinks, at most 1 time(s)" in out, err
    page = (Path(export.__file__).parent.parent / "docs" / "TASKS.md").read_text()
    lines = page[page.index("from transformers"):]
    lines = lines[:lines.index("```")].replace('"DIR"', repr(str(tmp_path / "hf")))
    exec(lines, {})
    theirs = capsys.readouterr().out.strip()
    ours = generate(load_run(tmp_path / "run"), "The ball is under cup B. Moves: AB, left, BC. "
                    "Where?", new_tokens=8, dials=GREEDY)[0]
    ours = Tokenizer(run_of.model.text_ids, 8).decode(ours.ids)
    assert theirs.count("<think") >= 3 and len(theirs) > 60
    assert theirs.startswith(ours) or ours.startswith(theirs)


def test_a_gate_is_folded(tmp_path):
    """Guards free thinking: their softmax over all rows is our gate and our two choices, the gate's
    bias included, whatever bias the last layer norm has. Without its weights it is refused."""
    transformers = pytest.importorskip("transformers")
    m, ids, V = grown(), torch.randint(65, (3, 20)), len(SMALL)
    m.gate_bias.data.fill_(-2.5)
    m.ln_f.weight.data.copy_((0.5 + torch.rand(32)) * torch.randn(32).sign())
    for i, size in enumerate((1.0, 0.0, -3.0)):
        m.ln_f.bias.data.copy_(size * (1 + torch.rand(32)))
        write(m, tmp_path / str(i), Rules("free", 1, 20))
        hf = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / str(i)).eval()
        with torch.no_grad():
            ours, theirs = m.logits(m(ids)), hf(ids).logits
        assert (ours - theirs).abs().max() < 1e-4 < ours.std()
        p = theirs.softmax(-1)
        assert (p[..., V:].sum(-1) - torch.sigmoid(gate_logit(ours, V))).abs().max() < 1e-5
    m.ln_f.weight.data[3] = 0
    refuses(lambda: write(m, tmp_path / "no", Rules("free", 1, 20)), "without --thoughts")
    assert not (tmp_path / "no").exists()
    write(m, tmp_path / "yes", Rules("forced", 1, 20))  # it never asks


def test_their_tokenizer(tmp_path):
    """Guards the words: their tokenizer has our ids, for GPT-2's language and for a small one, and
    a thought is one token with a name."""
    transformers = pytest.importorskip("transformers")
    text = "It's naïve: 12,345 cups — and   thoughts?\n\nYes, 日本語."
    for name, text_ids in (("all", None), ("small", sorted({*Tokenizer().encode(text), 50256}))):
        V = 50257 if text_ids is None else len(text_ids)
        m = GPT(Config(1, 1, 8, 8, V, 3), text_ids)
        write(m, tmp_path / name, Rules("free", 1, 20))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        ours = Tokenizer(text_ids, 3)
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
        assert theirs.eos_token_id == (50256 if text_ids is None else V - 1)
        ids.insert(2, V + 2)
        assert theirs.decode(ids) == ours.decode(ids) and "<think2>" in ours.decode(ids)
        assert theirs.decode(ids, skip_special_tokens=True) == text
        assert theirs("<think2>")["input_ids"] == [V + 2]
        if text_ids:  # what the language lacks has an id that the model lacks
            assert min(set(theirs(" zebra")["input_ids"]) - set(ids)) >= V + 3


def test_thoughts_that_cannot_go_along(tmp_path):
    """Guards against an export that would think otherwise there: one line each, nothing written."""
    for rules, word in ((Rules("forced", 1, 8, window=5), "a window"),
                        (Rules("forced", 1, 8, continuous=True), "states"),
                        (Rules("free", 1, 8, persist=False), "forgotten"),
                        (Rules("never"), "never thinks")):
        refuses(lambda rules=rules: write(grown(), tmp_path / "hf", rules), word)
    refuses(lambda: write(grown(0), tmp_path / "hf", Rules()), "no thinking rows")
    assert not (tmp_path / "hf").exists()
    write(grown(), tmp_path / "hf", Rules("forced", 1, 8))
    refuses(lambda: load(tmp_path / "hf"), "exported with its thoughts")


def test_end_of_text(tmp_path):
    """Guards generation in transformers: GPT-2 has an end of text, a small language has none."""
    for text_ids, end in ((None, "50256"), ([5, 50256, 7], "1"), ([5, 6, 7], "null")):
        V = 50257 if text_ids is None else 3
        write(GPT(Config(1, 1, 8, 8, V), text_ids), tmp_path / end)
        assert f'"eos_token_id": {end},' in (tmp_path / end / "config.json").read_text()


def test_command(tmp_path, monkeypatch, capsys):
    """Guards the command: a folder that `load` reads, and one line about what is in it."""
    code, out, _ = run(export.main, [tmp_path / "hf", "--model", "pico"], monkeypatch, capsys)
    assert code == 0 and "from_pretrained" in out and "text_ids" in out
    assert load(tmp_path / "hf").config == load("pico").config


def test_refuses(tmp_path, monkeypatch, capsys):
    """Guards against a traceback, and against an export that hides the run in its folder."""
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ckpt.pt").write_text("")
    for argv, word in (([tmp_path / "a", "--model", "nothing"], "no model 'nothing'"),
                       ([tmp_path / "file" / "a"], "file"), ([tmp_path / "run"], "of a run"),
                       ([tmp_path / "a", "--modle", "pico"], "did you mean --model?"), ([], "DIR")):
        code, _, err = run(export.main, argv, monkeypatch, capsys)
        assert code == 2 and word in err and err.count("\n") == 1, err
    assert not (tmp_path / "a").exists() and len(list((tmp_path / "run").iterdir())) == 1


def test_full_disk(tmp_path, monkeypatch):
    """Guards against half an export, and against a traceback."""
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as e:
        write(GPT(Config(1, 1, 8, 8, 3)), tmp_path / "hf")
    assert "No space" in one_line(e)
    assert not list((tmp_path / "hf").iterdir())


def test_all_or_nothing(tmp_path, monkeypatch):
    """Guards an export that is there: where the disk fills up, at any file, all stay whole."""
    def contents():
        return {x.name: x.read_bytes() for x in (tmp_path / "hf").iterdir()}
    write(GPT(Config(1, 2, 8, 8, 3)), tmp_path / "hf")
    before = contents()
    write(GPT(Config(1, 1, 8, 8, 3)), tmp_path / "hf")  # again: an export may replace one
    assert before.keys() == contents().keys() and before != contents()
    before = contents()
    sync = os.fsync
    for at in range(4):
        calls = iter(range(9))

        def full(file, at=at, calls=calls):
            if next(calls) == at:
                raise OSError(28, "No space left on device")
            sync(file)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            write(GPT(Config(2, 1, 8, 8, 3)), tmp_path / "hf")
        assert contents() == before


@pytest.mark.parametrize("name", [
    "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
    "pytorch_model.bin.index.json", "adapter_config.json", "ckpt.pt", "ckpt_000100.pt",
    "metrics.jsonl", "pytorch_model.bin", "config.json", "tokenizer.json", "vocab.json",
    "generation_config.json", "chat_template.jinja"])
def test_nothing_is_read_instead(tmp_path, name):
    """Guards what lies in the folder: a file that readers prefer, a run, somebody else's model."""
    (tmp_path / name).write_text("{}")
    run_of = name.startswith("ckpt") or name == "metrics.jsonl"
    refuses(lambda: write(GPT(Config(1, 1, 8, 8, 3)), tmp_path), "of a run" if run_of else name)
    assert [x.name for x in tmp_path.iterdir()] == [name]
