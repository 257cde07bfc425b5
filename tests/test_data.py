"""data.py: the game keeps its rules, a batch is a function of its numbers, any file is text or one clear line."""
import json
from collections import Counter
from functools import cache

import numpy as np
import pytest

import data
from conftest import one_line
from data import Batch, Cups, TextFile, open_data, seeded
from tokenizer import END_OF_TEXT, Tokenizer


@cache
def gpt2(text_ids=None):
    """One tokenizer for all of these tests, or one for each small language: reading the ranks takes a while."""
    return Tokenizer(text_ids)


@pytest.fixture(scope="module")
def games():
    return {m: Cups(m) for m in (2, 3, 4, 5)}


@pytest.fixture(scope="module")
def cups(games):
    return games[3]


def play(cups, story):
    """A story by its words, with a ball that is moved by hand: yields (word, cup of the ball or None, moves since the
    anchor). An answer anchors anew. This is the game, written down a second time."""
    ball, n, before = None, 0, ""
    for word in (cups_words(cups)[i] for i in story):
        w = word.strip()
        if before in ("cup", "?"):
            ball = w
        elif len(w) == 2 and w.isupper():  # a swap
            ball = {w[0]: w[1], w[1]: w[0]}.get(ball, ball)
            n += 1
        elif w in ("left", "right"):
            letters = "ABCDE"[:cups.m]
            ball = letters[(letters.index(ball) + (1 if w == "right" else -1)) % cups.m]
            n += 1
        yield word, ball, n
        n = 0 if before in ("cup", "?") else n
        before = w


def cups_words(cups):
    return {i: w for w, i in cups.id.items()}


def ids_of(cups, text):
    return gpt2(tuple(cups.text_ids)).encode(text)


def judged(cups, ids):
    """(moves, is it right?) of each answer."""
    return [(n, right) for _, n, right in cups.check(ids)]


# the game

@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_answers_are_right(games, m):
    """Guards the game itself: every answer of many stories is right, by check() and by a second hand-written game, and
    the labels beside the text (pays, state, n) say the same."""
    game = games[m]
    batch, answers = game.batch(40, 120, 0, 0, "train"), 0
    assert batch.ids.shape == (40, 120) and batch.ids.dtype == np.int64
    assert batch.ids.min() >= 0 and batch.ids.max() < len(game.text_ids)
    for ids, pays, state, n in zip(batch.ids.tolist(), batch.pays, batch.state, batch.n):
        asked = [(i, int(n[i]), True) for i in np.flatnonzero(pays)]
        assert game.check(ids) == asked
        answers += len(asked)
        for i, (word, ball, moves) in enumerate(play(game, ids)):
            assert state[i] == (-1 if ball is None else "ABCDE".index(ball))
            assert n[i] == moves
            assert pays[i] == (i > 5 and word.strip() in "ABCDE"[:m] and ids[i - 1] == game.id["?"])
    assert answers > 200


def test_it_is_english(cups):
    """Guards the words: the story that is stored as ids 0..V-1 reads as in the README, and GPT-2's tokenizer splits it
    the same way, so that a model of any size can play."""
    tok, ids = gpt2(tuple(cups.text_ids)), cups.batch(1, 60, 0, 0, "train").ids[0].tolist()
    text = tok.decode(ids)
    assert text.startswith("The ball is under cup ") and " Moves: " in text and " Where? " in text
    assert tok.encode(text) == ids
    assert gpt2().encode(text) == [cups.text_ids[i] for i in ids]


@pytest.mark.parametrize("m, moves", [(2, 1), (3, 5), (4, 8), (5, 12)])
def test_moves(games, m, moves):
    """Guards the moves: all swaps and both turns, each a permutation, left undoes right. 2 cups have no turns."""
    game = games[m]
    assert len(game.moves) == len(game.move_ids) == len(game.goes) == moves
    assert all(sorted(g) == list(range(m)) for g in game.goes.tolist())
    if m > 2:
        left, right = game.moves[" left"], game.moves[" right"]
        assert [left[right[i]] for i in range(m)] == list(range(m)) and left[1] == 0  # the ball goes from B to A
        assert game.moves[" AC"] == [2, 1, 0, *range(3, m)]
    assert game.think_after == game.move_ids.tolist()


@pytest.mark.parametrize("m", [0, 1, 6, 30])
def test_number_of_cups(m):
    """Guards the letters: there are five."""
    with pytest.raises(ValueError) as e:
        Cups(m)
    assert "2 to 5" in one_line(e)


def test_rounds_are_memoryless(cups):
    """Guards the hazard: after each move the round ends with probability 1/3, whatever came before. A round that knows
    its length would have a second hidden state."""
    long = cups.batch(300, 400, 0, 0, "train")
    lengths = Counter()
    for ids in long.ids.tolist():
        lengths.update(n for n, _ in judged(cups, ids))
    total = sum(lengths.values())
    mean = sum(n * c for n, c in lengths.items()) / total
    assert total > 8_000 and mean == pytest.approx(3, abs=0.1)
    for n in (1, 2, 3, 4, 5):
        alive = sum(c for k, c in lengths.items() if k >= n)
        assert lengths[n] / alive == pytest.approx(1 / 3, abs=0.03)
    assert min(lengths) == 1 and max(lengths) > 12


def test_curriculum_lengths(cups):
    """Guards a curriculum's stage: 1..n_max moves, all of them, equally likely, and none longer."""
    stories = cups.batch(300, 200, 0, 0, "train", n_max=4).ids.tolist()
    lengths = Counter(n for ids in stories for n, _ in judged(cups, ids))
    total = sum(lengths.values())
    assert set(lengths) == {1, 2, 3, 4} and all(c / total == pytest.approx(0.25, abs=0.04) for c in lengths.values())
    # peak: that share of the rounds has n_max moves for certain
    stories = cups.batch(300, 200, 0, 0, "train", n_max=4, peak=0.5).ids.tolist()
    lengths = Counter(n for ids in stories for n, _ in judged(cups, ids))
    assert set(lengths) == {1, 2, 3, 4} and lengths[4] / sum(lengths.values()) == pytest.approx(0.625, abs=0.06)


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_exact(cups, n):
    """Guards the questions of an evaluation: the first round has exactly n moves, at a place that depends on n alone,
    and the rounds after it are drawn as ever."""
    batch, later = cups.batch(20, 9 + 2 * n + 3 + 60, 0, 0, "eval", n_max=10, exact=n), Counter()
    for ids, pays in zip(batch.ids.tolist(), batch.pays):
        assert np.flatnonzero(pays)[0] == 9 + 2 * n + 2 and judged(cups, ids)[0] == (n, True)
        later.update(k for k, _ in judged(cups, ids)[1:])
    assert len(later) > 3


@pytest.mark.parametrize("S", [9, 17, 19, 21, 23, 33, 48 + 1])
def test_prompts_end_open(cups, S):
    """Guards the prompts of approach A: exactly S tokens, and the last one is the ":" of a new round, so that the
    student makes its own moves."""
    batch = cups.batch(200, S, 0, 0, "train", prompt=S)
    assert batch.ids.shape == (200, S)
    for ids in batch.ids.tolist():
        words = [cups_words(cups)[i] for i in ids]
        assert words[-2:] == [" Moves", ":"] and words[:5] == ["The", " ball", " is", " under", " cup"]
        assert all(right for _, right in judged(cups, ids)) and words.count("?") == len(judged(cups, ids))


@pytest.mark.parametrize("S", [8, 10, 11, 13, 15, 18, 1])
def test_prompts_of_no_length(cups, S):
    """Guards against a prompt that is quietly cut: a length that no story has is refused."""
    with pytest.raises(ValueError) as e:
        cups.batch(1, S, 0, 0, "train", prompt=S)
    assert str(S) in one_line(e)


def test_lies(cups):
    """Guards the teacher's aid: a false answer pays nothing and anchors the story all the same, so that what follows is
    right by the answer that was given."""
    batch = cups.batch(60, 150, 0, 0, "pretrain", lies=0.5)
    paid, wrong, right = 0, 0, 0
    for ids, pays, state in zip(batch.ids.tolist(), batch.pays, batch.state):
        for i, (_, ball, _) in enumerate(play(cups, ids)):
            assert state[i] == (-1 if ball is None else "ABC".index(ball))
        fine = [ok for _, ok in judged(cups, ids)]
        wrong, right, paid = wrong + len(fine) - sum(fine), right + sum(fine), paid + pays.sum()
    assert paid / (wrong + right) == pytest.approx(0.5, abs=0.04)
    assert wrong / (wrong + right) == pytest.approx(1 / 3, abs=0.04)  # a lie names any cup: two of three are wrong


@pytest.mark.parametrize("story, wanted", [
    ("The ball is under cup B. Moves: AB, left, BC. Where? B. Moves: right, AC. Where? A.", [(3, True), (2, True)]),
    ("The ball is under cup B. Moves: AB, left, BC. Where? A.", [(3, False)]),
    # a wrong answer anchors anew: from A (and not from B), right leads to B
    ("The ball is under cup B. Moves: AB, left, BC. Where? A. Moves: right. Where? B. Moves: AB. Where? A.",
     [(3, False), (1, True), (1, True)]),
    ("The ball is under cup A. Moves: BC, BC, AC. Where? C.", [(3, True)]),
    ("The ball is under cup C. Where? C. Where? A.", [(0, True), (0, False)]),
    ("The ball is under cup C. Moves: left. Where? Where? B", [(1, False), (1, True)]),  # a question without a cup
    ("The ball is under cup C. Moves: left. Where?", []),  # not yet answered
    (" Moves: left. Where? B. Moves: AB. Where? A.", [(1, True)]),  # nobody knew, then an answer told
    ("The ball is under cup A. A B C. Moves: AB. Where? B", [(1, True)]),  # cups that are named in passing
    ("The ball is under cup A. Moves: AB.The ball is under cup C. Moves: BC. Where? B", [(1, True)]),
    ("", []),
])
def test_check(cups, story, wanted):
    """Guards the judge of free stories on stories told by hand: right, wrong, anchored anew, broken off, no grammar."""
    ids = ids_of(cups, story)
    assert judged(cups, ids) == judged(cups, np.array(ids, int)) == wanted
    assert all(ids[place - 1] == cups.id["?"] for place, _, _ in cups.check(ids))


# batches

def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()) if x is not None)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def book(tmp_path, cached):
    path = tmp_path / "book.txt"
    path.write_text("\n".join(f"Line {i} of a book about {i * i} things." for i in range(2000)), encoding="utf-8")
    return TextFile(path, gpt2())


def test_a_batch_is_a_function(cups, book):
    """Guards --resume and every comparison: a batch depends on seed, step and purpose, on each of them, and on nothing
    else (neither on what was drawn before, nor on numpy's global state)."""
    for source in (cups, book):
        first = source.batch(4, 30, 1, 2, "train")
        np.random.seed(7)
        source.batch(4, 30, 9, 9, "train")
        assert same(first, source.batch(4, 30, 1, 2, "train"))
        for key in ((2, 2, "train"), (1, 3, "train"), (2, 1, "train"), (1, 2, "eval"), (1, 2, "pretrain")):
            assert not same(first, source.batch(4, 30, *key))
        assert len({row.tobytes() for row in first.ids}) == 4


def test_streams_of_randomness():
    """Guards against two purposes that share their luck, and against a misspelt purpose."""
    draws = [seeded(s, t, p).random(4).tolist() for s in (0, 1) for t in (0, 1) for p in data.PURPOSES]
    assert len({tuple(d) for d in draws}) == len(draws) == 4 * len(data.PURPOSES)
    with pytest.raises(ValueError):
        seeded(0, 0, "trian")


# files

def test_txt(book, tmp_path):
    """Guards plain text: all of it is there, in order; training and evaluation share no token."""
    text = (tmp_path / "book.txt").read_text()
    ids = [*book.train, *book.eval]
    assert gpt2().decode(ids) == text
    assert len(book.eval) == pytest.approx(0.05 * len(ids), rel=0.01)
    batch = book.batch(50, 40, 0, 0, "train")
    assert batch.ids.shape == (50, 40) and batch.ids.dtype == np.int64 and batch.pays is None
    for purpose, part in (("train", book.train), ("eval", book.eval)):
        whole = " ".join(map(str, part.tolist()))
        for row in book.batch(20, 40, 3, 1, purpose).ids.tolist():
            assert " ".join(map(str, row)) in whole


def test_windows_reach_both_ends(tmp_path, cached):
    """Guards the borders of random windows: the first and the last token of a part can come, and none past them."""
    path = tmp_path / "a.txt"
    path.write_text(" a b c d e f g h" * 50)
    source = TextFile(path, gpt2())
    source.train = np.arange(10, dtype=np.uint16)
    rows = source.batch(400, 4, 0, 0, "train").ids
    assert {tuple(r) for r in rows.tolist()} == {tuple(range(s, s + 4)) for s in range(7)}
    assert source.batch(3, 10, 0, 0, "train").ids.tolist() == [list(range(10))] * 3


def test_jsonl(tmp_path, cached, capsys):
    """Guards the format of WebText: one document a line, a separator between them, and broken lines are skipped and
    counted, not fatal."""
    good = ["First document.", "Zwei Äpfel\nund mehr", "", "third \ud83d\ude42"]
    lines = [json.dumps({"text": t}).encode() for t in good]
    lines[1:1] = [b"{broken", b'{"title": "no text"}', b"", b"[1, 2]", b'"text"', b"\xff\xfe", b"   ", b"null", b"7"]
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    source = TextFile(path, gpt2())
    ids = [*source.train.tolist(), *source.eval.tolist()]
    text = gpt2().decode(ids)
    assert text == "".join(t + "<|endoftext|>" for t in ["First document.", "Zwei Äpfel\nund mehr", "", "third 🙂"])
    assert ids.count(END_OF_TEXT) == 4
    said = capsys.readouterr().out.strip()
    assert "7 broken line" in said and "\n" not in said


def test_long_text_is_cut_at_lines(tmp_path, cached):
    """Guards reading in blocks: text over the block's size comes back whole, characters of many bytes too."""
    text = "".join(f"{i} Äpfel, 日本語 und 🙂\n" for i in range(70_000))
    assert len(text.encode()) > 2 << 20
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    source = TextFile(path, gpt2())
    assert gpt2().decode([*source.train, *source.eval]) == text


@pytest.mark.parametrize("content", [
    b"\xff\xfe\x80 half \xc3", b"a\0b\0\0c", bytes(range(256)), b"\xed\xa0\x80 surrogate", b"\xef\xbb\xbfBOM",
    b"one line without an end", b"\r\nwindows\r\n",
])
def test_any_bytes(tmp_path, cached, content):
    """Guards files that are no clean UTF-8: they are read, wrong bytes become U+FFFD."""
    path = tmp_path / "x.txt"
    path.write_bytes(content * 20)
    source = TextFile(path, gpt2())
    text = gpt2().decode([*source.train, *source.eval])
    assert text == (content * 20).decode("utf-8", "replace")


def refuses(call, *words):
    with pytest.raises(ValueError) as e:
        call()
    assert all(w in one_line(e) for w in words)


def test_no_file(tmp_path, cached):
    """Guards a mistyped path, a folder and an unknown kind of file."""
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "a.csv").write_text("a,b")
    for name in ("none.txt", "none.jsonl", "folder.txt", "a.csv", "", "nonsense"):
        refuses(lambda: open_data(str(tmp_path / name), None), ".txt")


def test_empty_and_too_short(tmp_path, cached):
    """Guards against a crash deep in numpy: an empty file, one of broken lines only, and one shorter than a window."""
    (tmp_path / "e.txt").write_text("")
    (tmp_path / "b.jsonl").write_text("{broken\n{}\n")
    for name in ("e.txt", "b.jsonl"):
        for _ in range(2):  # the second time it is in the cache
            refuses(lambda: TextFile(tmp_path / name, gpt2()), name, "empty")
    (tmp_path / "s.txt").write_text("Only a few words.")
    source = TextFile(tmp_path / "s.txt", gpt2())
    for purpose in ("train", "eval"):
        refuses(lambda: source.batch(2, 64, 0, 0, purpose), "s.txt", "64")
    (tmp_path / "one.txt").write_text("a")
    refuses(lambda: TextFile(tmp_path / "one.txt", gpt2()).batch(1, 2, 0, 0, "train"), "too short")
    # the game knows no line breaks: a line is a story, however it ends
    story, game = "The ball is under cup B. Moves: AB. Where? A.", Cups(3).text_ids
    (tmp_path / "stories.txt").write_bytes(f"{story}\n{story}\r\n".encode())
    told = TextFile(tmp_path / "stories.txt", Tokenizer(game))
    assert Tokenizer(game).decode([*told.train, *told.eval]) == story + story


def test_words_outside_a_small_language(tmp_path, cached, cups):
    """Guards a file for a model of a small language: it is renumbered, and a word outside is an error that leaves
    nothing half-made in the cache."""
    path = tmp_path / "x.txt"
    path.write_text("The ball is under cup A. Moves: AB, BC. Where? C." * 3)
    source = TextFile(path, gpt2(tuple(cups.text_ids)))
    assert [*source.train, *source.eval] == ids_of(cups, path.read_text())
    path.write_text("The dog is under cup A.")
    refuses(lambda: TextFile(path, gpt2(tuple(cups.text_ids))), "' dog'")
    assert len(list(cached.iterdir())) == 1


def test_cache_goes_by_content(tmp_path, cached, monkeypatch):
    """Guards the cache: the same bytes are encoded once, under any name; other bytes under the same name, or the same
    bytes for another language, are encoded anew."""
    calls = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: calls.append(text) or encode(self, text))
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("The ball is under cup. " * 40)
    b.write_text(a.read_text())
    first = TextFile(a, gpt2()).train.tolist()
    assert len(calls) == 1
    assert TextFile(a, gpt2()).train.tolist() == first == TextFile(b, gpt2()).train.tolist()
    assert len(calls) == 1 and len(list(cached.iterdir())) == 1
    a.write_text("The cup is under ball. " * 40)
    assert TextFile(a, gpt2()).train.tolist() != first and len(calls) == 2
    small = Tokenizer(sorted(set(gpt2().encode(b.read_text()))))
    calls.clear()
    assert max(TextFile(b, small).train.tolist()) == small.V - 1 and len(calls) == 1
    assert not list(cached.glob("*.part"))


def test_held_out_file(tmp_path, cached):
    """Guards WebText's own split: with a second file, the first is for training as a whole."""
    (tmp_path / "a.txt").write_text("a " * 100)
    (tmp_path / "b.txt").write_text("b " * 50)
    source = TextFile(tmp_path / "a.txt", gpt2(), held_out=tmp_path / "b.txt")
    assert gpt2().decode(source.train) == "a " * 100 and gpt2().decode(source.eval) == "b " * 50


def test_open_data(tmp_path, cached, games):
    """Guards --data: the game by name, a file by path."""
    assert isinstance(open_data("cups", None, 4), Cups) and open_data("cups", None, 4).m == 4
    (tmp_path / "a.txt").write_text("a " * 100)
    assert isinstance(open_data(str(tmp_path / "a.txt"), None), TextFile)


def test_idle_moves():
    """Guards --idle: the share of moves that do nothing is what was asked for, the ball stays where it is, each is one of
    the n moves of its round, and without --idle the stories are what they were."""
    cups = Cups(3, idle=0.4)
    nothing = cups.id[" nothing"]
    b = cups.batch(200, 60, 0, 0, "train", n_max=10)
    moves = np.isin(b.ids, cups.move_ids)
    assert nothing in cups.think_after and 0.37 < (b.ids == nothing).sum() / moves.sum() < 0.43
    rows, at = np.nonzero(b.ids == nothing)
    assert (b.state[rows, at] == b.state[rows, at - 1]).all() and (b.n[rows, at] == b.n[rows, at - 1] + 1).all()
    assert all(right for row in b.ids for _, _, right in cups.check(row))
    assert len(Cups(3).text_ids) == len(cups.text_ids) - 1
    with pytest.raises(ValueError, match="idle"):
        Cups(3, idle=1.0)


def test_follow_by_hand():
    """Guards the rule itself: a swap, a turn, an idle move, a wrong answer that anchors the story all the same."""
    cups = Cups(3, idle=0.4)
    words = ["The", " ball", " is", " under", " cup", " B", ".", " Moves", ":", " AB", ",", " left", ",", " nothing", ".", " Where", "?", " A"]
    told = cups.follow([cups.id[w] for w in words])
    assert told == [(None, 0)] * 5 + [(1, 0)] * 4 + [(0, 1)] * 2 + [(2, 2)] * 2 + [(2, 3)] * 4 + [(0, 0)]
    assert cups.check([cups.id[w] for w in words]) == [(17, 3, False)]


@pytest.mark.parametrize("m", [3, 5])
def test_all_balls(m):
    """Guards the word problem of S_m: every round starts in order, the state is that of a dictionary from balls to cups moved by
    hand, the answer is the named ball's cup, and the rule finds every answer right and any other one wrong."""
    cups = Cups(m, balls="all")
    words, b = {i: w for w, i in cups.id.items()}, cups.batch(8, 120, 3, 4, "train", n_max=6)
    assert len(cups.states) == {3: 6, 5: 120}[m] and b.pays.sum() > 20
    letters, balls, named = "ABCDE"[:m], ["Red", "Blue", "Green", "White", "Black"][:m], set()
    for ids, state, n, pays in zip(b.ids.tolist(), b.state.tolist(), b.n.tolist(), b.pays.tolist()):
        for i, token in enumerate(ids):
            word = words[token].strip()
            if word == "Moves":
                at, moves = dict(zip(balls, letters)), 0
            elif word in ("left", "right"):
                at = {x: letters[(letters.index(c) + (1 if word == "right" else -1)) % m] for x, c in at.items()}
                moves += 1
            elif len(word) == 2 and word.isupper():
                at = {x: word.replace(c, "") if c in word else c for x, c in at.items()}
                moves += 1
            if word in balls:
                asked = word
                named.add(word)
            assert pays[i] == (i > 0 and words[ids[i - 1]] == "?")
            if pays[i]:
                assert word == at[asked] and n[i] == moves
            if i >= 8:
                assert list(cups.states)[state[i]] == tuple(letters.index(at[x]) for x in balls)
        assert [s for s, _ in cups.follow(ids)][6:] == state[6:]
        answers = cups.check(ids)
        assert all(right for *_, right in answers) and [(p, k) for p, k, _ in answers] == [(i, n[i]) for i, x in enumerate(pays) if x]
        wrong = [cups.cup_ids[(letters.index(words[t].strip()) + 1) % m] if p else t for t, p in zip(ids, pays)]
        assert not any(right for *_, right in cups.check(wrong)) and len(cups.check(wrong)) == len(answers)
    assert named == set(balls)
    nameless = [cups.id[" Moves"], cups.id[":"], cups.id["."], cups.id["?"], cups.id[" A"]]
    assert cups.check(nameless) == [(4, 0, False)]


@pytest.mark.parametrize("m", [2, 3, 6])
def test_turns(m):
    """Guards the group Z_m: m - 1 turns that commute, each another number of places; the ball of every story is where a sum of
    number words says, by the labels and by the rule; and no other answer is right."""
    cups = Cups(m, moves="turns")
    many = {f" {word}": k for k, word in enumerate(["one", "two", "three", "four", "five"][:m - 1], 1)}
    assert list(cups.moves) == list(many) and [goes[0] for goes in cups.moves.values()] == list(many.values())
    assert all((one[two] == two[one]).all() for one in cups.goes for two in cups.goes) and len(cups.states) == m
    swap, turn = Cups(3, balls="all").goes[[0, -1]]
    assert (swap[turn] != turn[swap]).any()  # with which it is compared
    words, b = cups_words(cups), cups.batch(8, 120, 3, 4, "train", n_max=6)
    for ids, state, n, pays in zip(b.ids.tolist(), b.state.tolist(), b.n.tolist(), b.pays.tolist()):
        ball, moves = "ABCDEF".index(words[ids[5]].strip()), 0
        for i in range(5, len(ids)):
            turned = many.get(words[ids[i]], 0)
            ball, moves = (ball + turned) % m, moves + (turned > 0)
            assert state[i] == ball and (not pays[i] or (ids[i], n[i]) == (cups.cup_ids[ball], moves))
            moves = 0 if pays[i] else moves
        assert [s for s, _ in cups.follow(ids)][5:] == state[5:]
        assert cups.check(ids) == [(i, n[i], True) for i, x in enumerate(pays) if x]
        at = pays.index(True)
        assert all(cups.check(ids[:at] + [c])[0][2] == (c == ids[at]) for c in cups.cup_ids.tolist())
    text = gpt2(tuple(cups.text_ids)).decode(b.ids[0])
    assert ids_of(cups, text) == b.ids[0].tolist() and gpt2().encode(text) == [cups.text_ids[i] for i in b.ids[0]]


def test_turns_that_are_refused():
    """Guards the letters and the flags: seven cups, swaps of six, a second ball that would say nothing new."""
    refuses(lambda: Cups(7, moves="turns"), "2 to 6")
    refuses(lambda: Cups(6), "2 to 5", "--moves turns")
    refuses(lambda: Cups(3, moves="turns", balls="all"), "--balls one")


@pytest.mark.parametrize("game, story", [
    ({}, "The ball is under cup C. Moves: left. Where? B. Moves: AB. Where? A."),
    ({"m": 5, "balls": "all"}, "The balls are under the cups. Moves: BE, AE, AE. Red? A. Moves: AD."),
    ({"idle": 0.4}, "The ball is under cup C. Moves: nothing. Where? C. Moves: left."),
], ids=str)
def test_stories_are_what_they_were(game, story):
    """Guards runs that are to be made again: a new world must not draw the numbers of an old one."""
    cups = Cups(**game)
    assert gpt2(tuple(cups.text_ids)).decode(cups.batch(1, 40, 0, 0, "train").ids[0]).startswith(story)
