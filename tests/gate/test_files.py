"""Files that people bring: text as it is found on a disk, and weights that are cut, damaged or
something else. Any text is read, and anything that can't be is one clear line."""
import bz2
import gzip
import json
import lzma
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import reader
import task
from conftest import refuses
from data import Cups, TextFile, seeded
from model import GPT, Config, as_checkpoint, from_openai, load
from settings import means, resolve
from task import kind_of, open_source
from tokenizer import END_OF_TEXT, Tokenizer
from weights import TRANSPOSED, of_state


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n".join(f"Line {i} of a book about {i * i} things." for i in range(2000)))
    return TextFile(path, Tokenizer())


def take(source, rows, L, seed=0, step=0, held_out=False):
    purpose = "eval" if held_out else "train"
    return source.take(rows, L, seeded(seed, step, purpose), held_out=held_out)


def all_of(source):
    return [*source.train.tolist(), *source.eval.tolist()]


# Text

def test_txt(book, tmp_path):
    """Guards plain text. All of it is there, in order; training and evaluation share no token; a
    batch is a function of its seed and step."""
    ids = all_of(book)
    assert Tokenizer().decode(ids) == (tmp_path / "book.txt").read_text()
    assert len(book.eval) == pytest.approx(0.05 * len(ids), rel=0.01)
    rows = take(book, 50, 40)
    assert rows.shape == (50, 40) and rows.dtype == torch.int64 and book.text_ids is None
    assert torch.equal(rows, take(book, 50, 40)) and not torch.equal(rows, take(book, 50, 40, 1))
    for held_out, part in ((False, book.train), (True, book.eval)):
        whole = " ".join(map(str, part.tolist()))
        for row in take(book, 20, 40, 3, 1, held_out).tolist():
            assert " ".join(map(str, row)) in whole


def test_windows_reach_both_ends(tmp_path):
    """Guards the borders of random windows: the first and the last token of a part can come, and
    none past them."""
    path = tmp_path / "a.txt"
    path.write_text(" a b c d e f g h" * 50)
    source = TextFile(path, Tokenizer())
    source.train = np.arange(10, dtype=np.uint16)
    rows = take(source, 400, 4).tolist()
    assert {tuple(r) for r in rows} == {tuple(range(s, s + 4)) for s in range(7)}
    assert take(source, 3, 10).tolist() == [list(range(10))] * 3


def test_jsonl(tmp_path, capsys):
    """Guards the format of WebText: one document per line, a separator between them, and broken
    lines are skipped and counted, not fatal."""
    good = ["First document.", "Zwei Äpfel\nund mehr", "", "third \ud83d\ude42"]
    lines = [json.dumps({"text": t}).encode() for t in good]
    lines[1:1] = [b"{broken", b'{"title": "no text"}', b"", b"[1, 2]", b'"text"', b"\xff\xfe",
                  b"   ", b"null", b"7"]
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    ids = all_of(TextFile(path, Tokenizer()))
    wanted = ["First document.", "Zwei Äpfel\nund mehr", "", "third 🙂"]
    assert Tokenizer().decode(ids) == "".join(t + "<|endoftext|>" for t in wanted)
    assert ids.count(END_OF_TEXT) == 4
    said = capsys.readouterr().out.strip()
    assert "7 broken line" in said and "\n" not in said


def test_long_text_is_cut_at_lines(tmp_path):
    """Guards reading in blocks: text over the block's size comes back whole, characters of many
    bytes too."""
    text = "".join(f"{i} Äpfel, 日本語 und 🙂\n" for i in range(35_000))
    assert len(text.encode()) > 1 << 20
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    assert Tokenizer().decode(all_of(TextFile(path, Tokenizer()))) == text


SAID = "Grüße, 日本語 und 🙂\r\nZeile zwei\n"


@pytest.mark.parametrize("encoding", [
    "utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le mark", "utf-16-be mark", "utf-32-be mark"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".TXT", ".JSONL"])
def test_encodings(tmp_path, encoding, kind):
    """Guards text of every Unicode encoding that says which it is, and names in capitals."""
    encoding, *mark = encoding.split()
    text = SAID * 9 if kind.lower() == ".txt" else "".join(
        json.dumps({"text": SAID}, ensure_ascii=False) + "\n" for _ in range(9))
    (tmp_path / f"x{kind}").write_bytes((("\ufeff" if mark else "") + text).encode(encoding))
    found = Tokenizer().decode(all_of(TextFile(tmp_path / f"x{kind}", Tokenizer())))
    assert found.replace("<|endoftext|>", "") == SAID * 9


def test_long_text_in_utf_16(tmp_path):
    """Guards blocks that end within a character, and within a line's end of two bytes."""
    text = "".join(f"{i} Äpfel, ऊ Ċ 日本語 🙂\n" for i in range(50_000))
    (tmp_path / "x.txt").write_text(text, encoding="utf-16")
    assert (tmp_path / "x.txt").stat().st_size > 2 << 20
    assert Tokenizer().decode(all_of(TextFile(tmp_path / "x.txt", Tokenizer()))) == text


@pytest.mark.parametrize("content, words", [
    ("Ein Gruß\nund Grüße\n".encode("latin-1"), "is not UTF-8 at byte 7, in line 1"),
    (b"good\n" * 300_000 + b"a\x80b\n", "at byte 1500001, in line 300001"),
    ("naive".encode("utf-16-le"), "zero byte"), (b"a\0b\0\0c", "zero byte"),
    (bytes(range(256)), "zero byte"),
    ("café".encode("utf-16-le"), "zero byte"), (b"\xed\xa0\x80 surrogate", "byte 0"),
    (b"half \xc3", "byte 5"), (b"\xff\xfe\x00\xd8A\x00", "is not UTF-16"),
    (b"\xff\xfeodd", "is not UTF-16"), ("語".encode("shift-jis"), "is not UTF-8"),
    (gzip.compress(b"text"), "gunzip"), (bz2.compress(b"text"), "bunzip2"),
    (lzma.compress(b"text"), "unxz"), (b"PK\x03\x04rest", "zip"), (b"%PDF-1.7", "PDF"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ("some 日本語".encode("iso-2022-jp"), "ISO-2022"),
], ids=range(18))
def test_what_is_no_text(tmp_path, content, words):
    """Guards against rubbish that is learned without a word: what can't be read is refused, with
    the place, and leaves nothing in the cache."""
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    refuses(lambda: open_source(str(path)), "x.txt", words)
    assert not list(tmp_path.glob("cache/*"))


def test_a_bad_line_of_utf_16(tmp_path):
    """Guards the place in a .jsonl file of that kind."""
    good = json.dumps({"text": "good"}) + "\n"
    (tmp_path / "x.jsonl").write_bytes((good * 3).encode("utf-16") + b"\x00\xd8\n\x00" * 2)
    refuses(lambda: open_source(str(tmp_path / "x.jsonl")), "not UTF-16 at byte 104")


@pytest.mark.parametrize("encoding, words", [
    ("utf-16-le", "30 are no"), ("latin-1", "30 are not UTF-8"), ("shift-jis", "30 are not UTF-8")])
def test_lines_in_another_encoding(tmp_path, encoding, words):
    """Guards .jsonl files without a mark: no line is read in an encoding that was guessed."""
    said = "Grüße" if encoding == "latin-1" else "日本語"
    line = json.dumps({"text": said}, ensure_ascii=False) + "\n"
    (tmp_path / "x.jsonl").write_bytes((line * 30).encode(encoding))
    refuses(lambda: open_source(str(tmp_path / "x.jsonl")), "x.jsonl", words)


@pytest.mark.parametrize("line, words", [
    ({"prompt": "a", "answer": "b"}, "30 have other fields (answer, prompt)"),
    ({"text": None}, "30 have a `text` that is no string"), ([1], "30 are no JSON object"),
    ({}, "30 have no fields")], ids=range(4))
def test_other_fields_are_named_each_time(tmp_path, line, words, capsys):
    """Guards a .jsonl file of another kind: its fields are named, from the cache as well; and so
    they are where only some lines are so."""
    (tmp_path / "all.jsonl").write_text((json.dumps(line) + "\n") * 30)
    (tmp_path / "some.jsonl").write_text(
        (json.dumps(line) + "\n") * 30 + '{"text": "A good line."}\n' * 99)
    for _ in range(3):
        refuses(lambda: open_source(str(tmp_path / "all.jsonl")), "empty", words)
        capsys.readouterr()
        open_source(str(tmp_path / "some.jsonl"))
        said = capsys.readouterr().out
        assert "skipped 30 broken line(s)" in said and words in said and said.count("\n") == 1


@pytest.mark.parametrize("spoil", [
    lambda data: b"", lambda data: data[:len(data) // 2], lambda data: data[:-1],
    lambda data: data + b"\0", lambda data: bytes([data[0] ^ 1]) + data[1:],
    lambda data: b"\0" * len(data), lambda data: data[:99]], ids=range(7))
def test_a_spoilt_cache_is_made_again(tmp_path, cached, spoil):
    """Guards the cache against a machine that stopped while it was written."""
    (tmp_path / "x.txt").write_text("Some words of a text. " * 90)
    wanted = all_of(TextFile(tmp_path / "x.txt", Tokenizer()))
    file, = cached.iterdir()
    good = file.read_bytes()
    file.write_bytes(spoil(good))
    assert all_of(TextFile(tmp_path / "x.txt", Tokenizer())) == wanted
    assert file.read_bytes() == good and len(list(cached.iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    """Guards a checkout that is read-only: one line, which names the variable for another place."""
    (tmp_path / "x.txt").write_text("Some words of a text. " * 90)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(data, "CACHE", tmp_path / "file" / "cache")
    refuses(lambda: open_source(str(tmp_path / "x.txt")), "NANOTHINK_CACHE")


def test_no_file(tmp_path):
    """Guards a mistyped path, a folder and an unknown kind of file."""
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "a.csv").write_text("a,b")
    for name in ("none.txt", "none.jsonl", "folder.txt", "a.csv", "", "nonsense"):
        refuses(lambda: open_source(str(tmp_path / name)), str(tmp_path / name))


def test_empty_and_too_short(tmp_path):
    """Guards against a crash deep in numpy: an empty file, one of broken lines only, and one
    shorter than a window."""
    (tmp_path / "e.txt").write_text("")
    (tmp_path / "b.jsonl").write_text("{broken\n{}\n")
    for name in ("e.txt", "b.jsonl"):
        for _ in range(2):  # the second time it is in the cache
            refuses(lambda: TextFile(tmp_path / name, Tokenizer()), name, "empty")
    (tmp_path / "s.txt").write_text("Only a few words.")
    source = TextFile(tmp_path / "s.txt", Tokenizer())
    for held_out in (False, True):
        refuses(lambda: take(source, 2, 64, held_out=held_out), "s.txt", "64")
    (tmp_path / "one.txt").write_text("a")
    refuses(lambda: take(TextFile(tmp_path / "one.txt", Tokenizer()), 1, 2), "too short")


def test_a_file_of_a_small_language(tmp_path, cached):
    """Guards a file for a model of a small language. It is renumbered, a line is a story, however
    it ends, and a word outside is an error that leaves nothing half-made in the cache."""
    cups, path = Cups(3), tmp_path / "x.txt"
    game = Tokenizer(cups.text_ids)
    path.write_text("The ball is under cup A. Moves: AB, BC. Where? C." * 3)
    assert all_of(TextFile(path, game)) == game.encode(path.read_text())
    path.write_text("The dog is under cup A.")
    refuses(lambda: TextFile(path, game), "' dog'")
    assert len(list(cached.iterdir())) == 1
    story = "The ball is under cup B. Moves: AB. Where? A."
    path.write_bytes(f"{story}\n{story}\r\n".encode())
    assert game.decode(all_of(TextFile(path, game))) == story + story


def test_cache_goes_by_content(tmp_path, cached, monkeypatch):
    """Guards the cache. The same bytes are encoded once, under any name. Other bytes under the same
    name, or the same bytes for another language, are encoded for themselves."""
    calls, encode = [], Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode",
                        lambda self, text: calls.append(text) or encode(self, text))
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("The ball is under cup. " * 40)
    b.write_text(a.read_text())
    first = TextFile(a, Tokenizer()).train.tolist()
    assert len(calls) == 1
    for path in (a, b):
        assert TextFile(path, Tokenizer()).train.tolist() == first
    assert len(calls) == 1 and len(list(cached.iterdir())) == 1
    a.write_text("The cup is under ball. " * 40)
    assert TextFile(a, Tokenizer()).train.tolist() != first and len(calls) == 2
    small = Tokenizer(sorted(set(Tokenizer().encode(b.read_text()))))
    calls.clear()
    assert max(TextFile(b, small).train.tolist()) == small.V - 1 and len(calls) == 1
    assert not list(cached.glob("*.part"))


def test_all_cores_give_the_ids_of_one(monkeypatch):
    """Guards what is encoded at once. Short, long and empty texts come back in order, each with its
    end, cut where one core would cut them, and as many bytes are counted."""
    monkeypatch.setattr(reader, "PIECE", 40)
    monkeypatch.setattr(reader, "SHARE", 16)
    monkeypatch.setattr(reader, "BLOCK", 30)
    luck, encode = np.random.default_rng(0), Tokenizer().encode
    texts = ["".join(luck.choice(["a", " word", "\n\n", "日本", " "], n))
             for n in [*luck.integers(0, 60, 200), 0, 0, 0, 300]]
    for end in ([], [END_OF_TEXT]):
        wanted = [i for text in texts
                  for i in [*sum((encode(text[a:a + 40]) for a in range(0, len(text), 40)), []),
                            *end]]
        found = list(reader.encoded(((x, len(x)) for x in texts), encode, end))
        assert np.frombuffer(b"".join(x for x, _ in found), np.uint16).tolist() == wanted
        assert sum(size for _, size in found) == sum(map(len, texts))
    assert list(reader.encoded([], encode, [])) == [(b"", 0)]


def test_few_texts_wait(monkeypatch):
    """Guards memory. Threads get work of some size, so that many tiny texts do not wake them one by
    one. What is on its way is at most a piece and a block, however long the file is."""
    ahead = [0]

    def texts():
        for _ in range(100):
            ahead[0] += 1 << 20
            yield "a" * (1 << 20), 1 << 20
    for _, size in reader.encoded(texts(), lambda text: [0], []):
        ahead[0] -= size
        assert ahead[0] <= 6 << 20
    tiny = list(reader.shares((("ab", 2) for _ in range(100_000)), []))
    assert len(tiny) == 5 and sum(size for *_, size in tiny) == 200_000


def test_an_error_of_a_thread_is_said(tmp_path, cached):
    """Guards a text that a small language lacks, far behind others: the first such piece is named,
    and no half-made cache stays."""
    path, game = tmp_path / "x.jsonl", Tokenizer(Cups(3).text_ids)
    lines = ["The ball is under cup A." * 20] * 2000 + ["The dog", "The cat"]
    path.write_text("".join(json.dumps({"text": x}) + "\n" for x in lines))
    refuses(lambda: TextFile(path, game), "' dog'")
    assert not list(cached.iterdir())


def test_parts_of_webtext(cached, monkeypatch):
    """Guards which file is learned. `webtext` is the small part, the large one is asked for, and
    neither holds out what it trains on."""
    cached.mkdir()
    monkeypatch.setattr(task, "CACHE", cached)
    for name in ("train", "valid", "test"):
        (cached / f"webtext.{name}.jsonl").write_text(json.dumps({"text": f" {name}" * 40}) + "\n")
    for spec, name in (("webtext", "valid"), ("webtext train", "train")):
        source = open_source(spec, own=True)
        assert Tokenizer().decode(source.train) == f" {name}" * 40 + "<|endoftext|>"
        assert Tokenizer().decode(source.eval) == " test" * 40 + "<|endoftext|>"
        assert source.text_ids is None and kind_of(spec) == "text"
        assert resolve({"data": spec, "approach": "stream"}).data == spec
    (cached / "webtext.train.jsonl").unlink()  # the small part needs no other
    monkeypatch.setattr(task, "download", lambda url, path: path)
    open_source("webtext")
    assert not means("data", "webtext train", "webtext") and means("data", "webtext", "webtext")
    for word in ("valid", "test", "foo", "train train"):
        for call in (open_source, kind_of):
            refuses(lambda: call(f"webtext {word}"), word, "webtext, which", '"webtext train"')


def test_held_out_file(tmp_path):
    """Guards WebText's own split: with a second file, the first is for training as a whole. And
    --data: a file by its path."""
    (tmp_path / "a.txt").write_text("a " * 100)
    (tmp_path / "b.txt").write_text("b " * 50)
    source = TextFile(tmp_path / "a.txt", Tokenizer(), held_out=tmp_path / "b.txt")
    assert Tokenizer().decode(source.train) == "a " * 100
    assert Tokenizer().decode(source.eval) == "b " * 50
    assert isinstance(open_source(str(tmp_path / "a.txt")), TextFile)


# Weights

@pytest.fixture
def good(tmp_path):
    """A folder with a good model in two formats, to be spoilt."""
    m = GPT(Config(1, 1, 64, 8, 20, 0))
    state = {k: v.T.contiguous() if k.endswith(TRANSPOSED) else v.contiguous()
             for k, v in m.state_dict().items() if k not in ("think", "gate_bias")}
    torch.save(state, tmp_path / "a.bin")
    torch.save(as_checkpoint(m), tmp_path / "ckpt.pt")
    (tmp_path / "config.json").write_text('{"n_head": 1}')
    for name in ("a.bin", "ckpt.pt"):
        load(tmp_path / name)
    return tmp_path


def no_model(path):
    return refuses(lambda: load(path))


def test_missing(tmp_path):
    """Guards a mistyped name: the message has it, and the names that exist."""
    assert "gpt3" in no_model("gpt3") and "gpt2-xl" in no_model("gpt3")
    no_model(tmp_path / "none.bin")


def test_folders(good):
    """Guards a folder that lacks a part: no config.json, one without heads or cut, or no weights.
    (A run's folder is its checkpoint.)"""
    (good / "config.json").unlink()
    assert load(good).config.vocab_size == 20
    (good / "ckpt.pt").unlink()
    assert "config.json" in no_model(good)
    assert "how many heads" in no_model(good / "a.bin")
    for text in ("", "{", "{}", "[1]", "null"):
        (good / "config.json").write_text(text)
        assert "config.json" in no_model(good)
    (good / "config.json").write_text('{"n_head": 1}')
    assert "model.safetensors" in no_model(good)
    (good / "a.bin").rename(good / "pytorch_model.bin")
    load(good)
    (good / "config.json").write_text('{"n_head": 5}')
    assert "n_head: 5, and it has to be" in no_model(good)


@pytest.mark.parametrize("name", ["a.bin", "ckpt.pt", "model.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 8, 100, 0.5, -1])
def test_truncated(good, name, keep):
    """Guards a download or a save that was cut anywhere: a sentence with the path, not the stack of
    a zip reader."""
    if name == "model.safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(torch.load(good / "a.bin"), good / name)
        load(good / name)
    data = (good / name).read_bytes()
    (good / name).write_bytes(data[:int(keep * len(data)) if isinstance(keep, float) else keep])
    assert name in no_model(good / name)


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.safetensors"])
@pytest.mark.parametrize("data", [
    b"hello, I am no model\n" * 50, b"<!doctype html>", bytes(range(256)) * 9, b"\x80\x02.",
    b"\x80", b"\0" * 1000, b"PK\x03\x04" + b"\0" * 99, b"version https://git-lfs",
], ids=range(8))
def test_other_files(tmp_path, name, data):
    """Guards a file that is something else: a page of HTML, a pointer of git-lfs, noise."""
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / name).write_bytes(data)
    no_model(tmp_path / name)


NARROW = {"n_layer": 1, "n_embd": 12, "vocab_size": 3}


@pytest.mark.parametrize("what", [
    [1, 2], torch.zeros(3), {}, {"a": 1}, {1: torch.zeros(1)}, {"wte.weight": torch.zeros(4, 4)},
    {"wte.weight": torch.zeros(4), "wpe.weight": torch.zeros(4)}, {"config": {"n_layer": 1}},
    {"config": None, "model": {}, "text_ids": None},
    {"config": {"depth": 3}, "model": {}, "text_ids": None},
    {"config": NARROW, "model": {}, "text_ids": None},
    {"config": NARROW, "model": [], "text_ids": None},
], ids=range(12))
def test_other_contents(tmp_path, what):
    """Guards a sound file of torch that holds something else: some other model, a list, a half-made
    checkpoint."""
    torch.save(what, tmp_path / "x.pt")
    no_model(tmp_path / "x.pt")


@pytest.mark.parametrize("key, change", [
    ("h.0.attn.c_attn.weight", lambda w: w.T.contiguous()), ("h.0.mlp.c_fc.bias", lambda b: b[:-1]),
    ("wpe.weight", lambda w: w[:, :-1]), ("ln_f.weight", lambda w: None),
    ("wte.weight", lambda w: w.flatten()),
])
def test_wrong_shape(good, key, change):
    """Guards weights that do not fit: they are named, and never broadcast or left at their random
    start."""
    state = torch.load(good / "a.bin")
    state[key] = change(state[key])
    state = {k: v for k, v in state.items() if v is not None}
    text = refuses(lambda: from_openai(of_state(state, good / "b.bin", n_head=1)))
    assert key in text or "layout" in text
    torch.save(state, good / "b.bin")
    no_model(good / "b.bin")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [True, False])
def test_weights_run_no_code(tmp_path, plain):
    """Guards against a pickle that runs code when it is loaded: it is refused, and the code has not
    run."""
    bomb, path = {"wte.weight": Bomb(tmp_path / "ran")}, tmp_path / "x.bin"
    if plain:
        path.write_bytes(pickle.dumps(bomb, 2))
    else:
        torch.save(bomb, path)
    no_model(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes()) if plain else torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # the bomb was live
