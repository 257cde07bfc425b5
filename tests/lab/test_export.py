"""lab/export.py: transformers loads what it writes, and says the same."""
import os

import pytest
import torch

from conftest import one_line, refuses, run
from lab import export
from lab.export import export as write
from model import GPT, Config, load


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
    """Guards against torch's own word for it, which is a page."""
    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file\nand so on")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError) as e:
        write(GPT(Config(1, 1, 8, 8, 3)), tmp_path / "hf")
    assert "pytorch_model.bin" in one_line(e)
    assert not list((tmp_path / "hf").iterdir())


def test_all_or_nothing(tmp_path, monkeypatch):
    """Guards an export that is there: where the disk fills up, at either file, both stay whole."""
    write(GPT(Config(1, 1, 8, 8, 3)), tmp_path / "hf")
    before = {x.name: x.read_bytes() for x in (tmp_path / "hf").iterdir()}
    write(GPT(Config(1, 1, 8, 8, 3)), tmp_path / "hf")  # again: an export may replace one
    assert before.keys() == {x.name for x in (tmp_path / "hf").iterdir()}
    before = {x.name: x.read_bytes() for x in (tmp_path / "hf").iterdir()}
    sync = os.fsync
    for at in range(2):
        calls = iter(range(9))

        def full(file, at=at, calls=calls):
            if next(calls) == at:
                raise OSError(28, "No space left on device")
            sync(file)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            write(GPT(Config(2, 1, 8, 8, 3)), tmp_path / "hf")
        assert {x.name: x.read_bytes() for x in (tmp_path / "hf").iterdir()} == before


@pytest.mark.parametrize("name", [
    "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
    "pytorch_model.bin.index.json", "adapter_config.json", "ckpt.pt", "ckpt_000100.pt",
    "metrics.jsonl", "pytorch_model.bin", "config.json"])
def test_nothing_is_read_instead(tmp_path, name):
    """Guards what lies in the folder: a file that readers prefer, a run, somebody else's model."""
    (tmp_path / name).write_text("{}")
    refuses(lambda: write(GPT(Config(1, 1, 8, 8, 3)), tmp_path))
    assert [x.name for x in tmp_path.iterdir()] == [name]
