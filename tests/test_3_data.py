"""Lesson 3, data.py: where text comes from, and which of its tokens pay.

The game: a ball lies under a cup, moves swap and turn the cups, and a question asks where it is.
Only the answers pay, and whoever wants to answer has to remember one cup. All text is a function of
(seed, step, purpose), so a run can be made again. A source of your own is a class with `take`.
(Files as sources: tests/gate/test_files.py.)
"""
import json
from collections import Counter

import numpy as np
import pytest
import torch

import train
from conftest import AFTER, P, R, S, V, luck, refuses, settings, texts
from data import PURPOSES, TRIED, Cups, Source, Text, plain, seeded
from next_token import roll
from rollout import Rules, naive_rollout
from task import open_source
from tokenizer import Tokenizer


GAMES = {m: Cups(m) for m in (2, 3, 4, 5)}
CUPS = GAMES[3]


def stories(game, B, L, seed=0, step=0, purpose="train", **more):
    return game.stories(B, L, seeded(seed, step, purpose), **more)


def words_of(cups):
    return {i: w for w, i in cups.id.items()}


def ids_of(cups, text):
    return Tokenizer(cups.text_ids).encode(text)


def judged(cups, ids):
    """(moves, is it right?) of each answer."""
    return [(n, right) for _, n, right in cups.answers(ids)]


def cup_of(cups, followed):
    """`follow` with a cup's number, or -1, where it has a tuple or None."""
    return [(cups.states.get(where, -1), n) for where, n in followed]


# The game

def test_follow_by_hand():
    """Guards the rule itself: a swap, a turn, an idle move, a wrong answer that anchors the story
    all the same."""
    cups = Cups(3, idle=0.4)
    ids = ids_of(cups, "The ball is under cup B. Moves: AB, left, nothing. Where? A")
    at_a, at_b, at_c = (0,), (1,), (2,)
    assert cups.follow(ids) == [
        (None, 0)] * 5 + [(at_b, 0)] * 4 + [(at_a, 1)] * 2 + [(at_c, 2)] * 2 + [(at_c, 3)] * 4 + [
        (at_a, 0)]
    assert cups.answers(ids) == [(17, 3, False)]


def play(cups, story):
    """A story by its words, with a ball that is moved by hand: yields (word, cup of the ball or
    None, moves since the anchor). This is the game, written down a second time."""
    ball, n, before = None, 0, ""
    for word in (words_of(cups)[i] for i in story):
        w = word.strip()
        if before in ("cup", "?"):  # an answer is an anchor as well
            ball = w
        elif len(w) == 2 and w.isupper():  # a swap
            ball = {w[0]: w[1], w[1]: w[0]}.get(ball, ball)
            n += 1
        elif w in ("left", "right"):
            letters = "ABCDE"[:cups.m]
            ball = letters[(letters.index(ball) + (1 if w == "right" else -1)) % cups.m]
            n += 1
        yield w, ball, n
        n = 0 if before in ("cup", "?") else n
        before = w


@pytest.mark.parametrize("m", GAMES)
def test_answers_are_right(m):
    """Guards the game itself. Every answer of many stories is right, by answers() and by a second,
    hand-written game. The labels next to the text (pays, state, n) say the same."""
    game, answers = GAMES[m], 0
    story = stories(game, 40, 120)
    assert story.ids.shape == (40, 120) and story.ids.max() < len(game.text_ids)
    for ids, pays, state, n in zip(story.ids.tolist(), *story[1:]):
        asked = [(i, int(n[i]), True) for i in np.flatnonzero(pays)]
        assert game.answers(ids) == asked
        answers += len(asked)
        for i, (word, ball, moves) in enumerate(play(game, ids)):
            assert state[i] == (-1 if ball is None else "ABCDE".index(ball)) and n[i] == moves
            assert pays[i] == (i > 5 and word in "ABCDE"[:m] and ids[i - 1] == game.id["?"])
    assert answers > 200


def test_it_is_english():
    """Guards the words. The story that is stored as ids 0..V-1 reads as in the README. GPT-2's
    tokenizer splits it the same way, so that a model of any size can play."""
    tok, ids = Tokenizer(CUPS.text_ids), stories(CUPS, 1, 60).ids[0].tolist()
    text = tok.decode(ids)
    assert text.startswith("The ball is under cup ")
    assert " Moves: " in text and " Where? " in text and tok.encode(text) == ids
    assert Tokenizer().encode(text) == [CUPS.text_ids[i] for i in ids]


@pytest.mark.parametrize("m, moves", [(2, 1), (3, 5), (4, 8), (5, 12)])
def test_moves(m, moves):
    """Guards the moves: all swaps and both turns, each a permutation, left undoes right. 2 cups
    have no turns."""
    game = GAMES[m]
    assert len(game.moves) == len(game.move_ids) == len(game.goes) == moves
    assert all(sorted(g) == list(range(m)) for g in game.goes.tolist())
    if m > 2:
        left, right = game.moves[" left"], game.moves[" right"]
        assert [left[right[i]] for i in range(m)] == list(range(m))
        assert left[1] == 0  # the ball goes from B to A
        assert game.moves[" AC"] == [2, 1, 0, *range(3, m)]


def test_where_thoughts_may_stand():
    """Guards the slots of each approach: after moves, before answers, or everywhere."""
    assert CUPS.think_after("stream", "free") == CUPS.move_ids.tolist()
    assert CUPS.think_after("next_token", "forced") == [CUPS.id["?"]]
    assert CUPS.think_after("next_token", "free") is None
    row = torch.tensor([ids_of(CUPS, "The ball is under cup C. Moves: AB, left, left. Where? A")])
    assert CUPS.changes(row)[0].nonzero().flatten().tolist() == [11, 13]  # AB moves another ball


def test_games_that_are_refused():
    """Guards the letters and the flags: too many cups, swaps of six, a second ball that would say
    nothing new, an idle share of 1."""
    for m in (0, 1, 30):
        refuses(lambda: Cups(m), "2 to 5")
    refuses(lambda: Cups(6), "2 to 5", "moves=turns")
    refuses(lambda: Cups(7, moves="turns"), "2 to 6")
    refuses(lambda: Cups(3, moves="turns", balls="all"), "moves=turns")
    refuses(lambda: Cups(3, idle=1.0), "idle")
    for pair in ("m=x", "q=3", "m", "m=9", "balls=two", "swaps=0"):
        refuses(lambda: open_source(f"cups {pair}"), "cups")
    assert open_source("cups m=4 idle=0.2").m == 4


def test_rounds_are_memoryless():
    """Guards the hazard: after each move the round ends with probability 1/3, whatever came before.
    A round that knows its length would have a second hidden state."""
    rows = stories(CUPS, 300, 400).ids.tolist()
    lengths = Counter(n for ids in rows for n, _ in judged(CUPS, ids))
    total = lengths.total()
    mean = sum(n * c for n, c in lengths.items()) / total
    assert total > 8_000 and mean == pytest.approx(3, abs=0.1)
    for n in (1, 2, 3, 4, 5):
        alive = sum(c for k, c in lengths.items() if k >= n)
        assert lengths[n] / alive == pytest.approx(1 / 3, abs=0.03)
    assert min(lengths) == 1 and max(lengths) > 12


def test_curriculum_lengths():
    """Guards a curriculum's stage: 1..n_max moves, all of them, equally likely, and none longer."""
    rows = stories(CUPS, 300, 200, n_max=4).ids.tolist()
    lengths = Counter(n for ids in rows for n, _ in judged(CUPS, ids))
    assert set(lengths) == {1, 2, 3, 4}
    assert all(c / lengths.total() == pytest.approx(0.25, abs=0.04) for c in lengths.values())


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_exact(n):
    """Guards the questions of an evaluation. The first round has exactly n moves, at a place that
    depends on n alone, and the rounds after it have any number."""
    story, later = stories(CUPS, 20, 9 + 2 * n + 3 + 60, n_max=10, exact=n), Counter()
    for ids, pays in zip(story.ids.tolist(), story.pays):
        assert np.flatnonzero(pays)[0] == 9 + 2 * n + 2 and judged(CUPS, ids)[0] == (n, True)
        later.update(k for k, _ in judged(CUPS, ids)[1:])
    assert len(later) > 3


def test_questions():
    """Guards `questions`. There are `each` rows for every level from 1 to 30, and their first
    answer is of that level. They are the same at each evaluation."""
    text = CUPS.questions(2, 0)
    first = [next(int(k) for k in row if k) for row in text.level]
    assert first == [n for n in range(1, 31) for _ in range(2)]
    assert torch.equal(CUPS.questions(2, 0).ids, text.ids)


@pytest.mark.parametrize("L", [9, 17, 19, 21, 23, 33, 48 + 1])
def test_prompts_end_open(L):
    """Guards the prompts of `teacher`. They have exactly L tokens, and the last one is the ":" of a
    new round, so that the student makes its own moves."""
    for ids in stories(CUPS, 200, L, prompt=L).ids.tolist():
        words = [words_of(CUPS)[i] for i in ids]
        assert len(ids) == L and words[-2:] == [" Moves", ":"] and words[1:3] == [" ball", " is"]
        assert all(right for _, right in judged(CUPS, ids))
        assert words.count("?") == len(judged(CUPS, ids))


@pytest.mark.parametrize("L", [8, 10, 11, 13, 15, 18, 1])
def test_prompts_of_no_length(L):
    """Guards against a prompt that is quietly cut: a length that no story has is refused."""
    refuses(lambda: stories(CUPS, 1, L, prompt=L), str(L))


@pytest.mark.parametrize("story, wanted", [
    ("The ball is under cup B. Moves: AB, left, BC. Where? B. Moves: right, AC. Where? A.",
     [(3, True), (2, True)]),
    ("The ball is under cup B. Moves: AB, left, BC. Where? A.", [(3, False)]),
    # a wrong answer is the new anchor: from A (and not from B), right leads to B
    ("The ball is under cup B. Moves: AB, left, BC. Where? A. Moves: right. Where? B. Moves: AB."
     " Where? A.", [(3, False), (1, True), (1, True)]),
    ("The ball is under cup A. Moves: BC, BC, AC. Where? C.", [(3, True)]),
    ("The ball is under cup C. Where? C. Where? A.", [(0, True), (0, False)]),
    # a question without a cup; one that is not yet answered
    ("The ball is under cup C. Moves: left. Where? Where? B", [(1, False), (1, True)]),
    ("The ball is under cup C. Moves: left. Where?", []),
    # not known until an answer says it; cups that are named in passing; two stories
    (" Moves: left. Where? B. Moves: AB. Where? A.", [(1, True)]),
    ("The ball is under cup A. A B C. Moves: AB. Where? B", [(1, True)]),
    ("The ball is under cup A. Moves: AB.The ball is under cup C. Moves: BC. Where? B",
     [(1, True)]),
    ("", []),
])
def test_answers(story, wanted):
    """Guards the judge of free stories on stories written by hand: right, wrong, with a new anchor,
    broken off, no grammar."""
    ids = ids_of(CUPS, story)
    assert judged(CUPS, ids) == wanted
    assert all(ids[place - 1] == CUPS.id["?"] for place, _, _ in CUPS.answers(ids))


def test_idle_moves():
    """Guards idle=. The share of moves that do nothing is what was asked for. The ball stays where
    it is, and each is one of the n moves of its round."""
    cups = Cups(3, idle=0.4)
    nothing, b = cups.id[" nothing"], stories(cups, 200, 60, n_max=10)
    moves = np.isin(b.ids, cups.move_ids)
    assert 0.37 < (b.ids == nothing).sum() / moves.sum() < 0.43
    rows, at = np.nonzero(b.ids == nothing)
    assert (b.state[rows, at] == b.state[rows, at - 1]).all()
    assert (b.n[rows, at] == b.n[rows, at - 1] + 1).all()
    assert all(right for row in b.ids.tolist() for _, _, right in cups.answers(row))
    assert len(CUPS.text_ids) == len(cups.text_ids) - 1


@pytest.mark.parametrize("m", [3, 5])
def test_all_balls(m):
    """Guards the word problem of S_m. Every round starts in order, and the state is that of a
    dictionary from balls to cups, moved by hand. The answer is the named ball's cup. The rule finds
    every answer right, and any other one wrong."""
    cups = Cups(m, balls="all")
    words, b, named, asked = words_of(cups), stories(cups, 8, 120, 3, 4, n_max=6), set(), None
    assert len(cups.states) == {3: 6, 5: 120}[m] and b.pays.sum() > 20
    letters, balls = "ABCDE"[:m], ["Red", "Blue", "Green", "White", "Black"][:m]
    for ids, pays, state, n in zip(*(x.tolist() for x in b)):
        for i, token in enumerate(ids):
            word = words[token].strip()
            if word == "Moves":
                at, moves = dict(zip(balls, letters)), 0
            elif word in ("left", "right"):
                by = 1 if word == "right" else -1
                at = {x: letters[(letters.index(c) + by) % m] for x, c in at.items()}
                moves += 1
            elif len(word) == 2 and word.isupper():
                at = {x: word.replace(c, "") if c in word else c for x, c in at.items()}
                moves += 1
            asked = word if word in balls else asked
            assert pays[i] == (i > 0 and words[ids[i - 1]] == "?")
            if pays[i]:
                assert word == at[asked] and n[i] == moves
                named.add(asked)
            if i >= 8:
                assert list(cups.states)[state[i]] == tuple(letters.index(at[x]) for x in balls)
        assert [s for s, _ in cup_of(cups, cups.follow(ids))][6:] == state[6:]
        paid = [i for i, x in enumerate(pays) if x]
        assert cups.answers(ids) == [(i, n[i], True) for i in paid]
        wrong = [cups.cup_ids[(letters.index(words[t].strip()) + 1) % m] if p else t
                 for t, p in zip(ids, pays)]
        assert [right for *_, right in cups.answers(wrong)] == [False] * len(paid)
    assert named == set(balls)
    nameless = [cups.id[" Moves"], cups.id[":"], cups.id["."], cups.id["?"], cups.id[" A"]]
    assert cups.answers(nameless) == [(4, 0, False)]


@pytest.mark.parametrize("m", [2, 3, 6])
def test_turns(m):
    """Guards the group Z_m: m - 1 turns that commute, each another number of places. The ball of
    every story is where a sum of number words says, by the labels and by the rule. No other answer
    is right."""
    cups = Cups(m, moves="turns")
    names = ["one", "two", "three", "four", "five"][:m - 1]
    many = {f" {word}": k for k, word in enumerate(names, 1)}
    assert list(cups.moves) == list(many) and len(cups.states) == m
    assert [goes[0] for goes in cups.moves.values()] == list(many.values())
    assert all((one[two] == two[one]).all() for one in cups.goes for two in cups.goes)
    swap, turn = CUPS.goes[[0, -1]]
    assert (swap[turn] != turn[swap]).any()  # those of the other game do not commute
    words, b = words_of(cups), stories(cups, 8, 120, 3, 4, n_max=6)
    for ids, pays, state, n in zip(*(x.tolist() for x in b)):
        ball, moves = "ABCDEF".index(words[ids[5]].strip()), 0
        for i in range(5, len(ids)):
            turned = many.get(words[ids[i]], 0)
            ball, moves = (ball + turned) % m, moves + (turned > 0)
            assert state[i] == ball
            assert not pays[i] or (ids[i], n[i]) == (cups.cup_ids[ball], moves)
            moves = 0 if pays[i] else moves
        assert [s for s, _ in cup_of(cups, cups.follow(ids))][5:] == state[5:]
        assert cups.answers(ids) == [(i, n[i], True) for i, x in enumerate(pays) if x]
        at = pays.index(True)
        assert all(cups.answers(ids[:at] + [c])[0][2] == (c == ids[at])
                   for c in cups.cup_ids.tolist())
    assert ids_of(cups, Tokenizer(cups.text_ids).decode(b.ids[0])) == b.ids[0].tolist()


@pytest.mark.parametrize("game, story", [
    ({}, "The ball is under cup C. Moves: left. Where? B. Moves: AB. Where? A."),
    ({"m": 5, "balls": "all"},
     "The balls are under the cups. Moves: BE, AE, AE. Red? A. Moves: AD."),
    ({"idle": 0.4}, "The ball is under cup C. Moves: nothing. Where? C. Moves: left."),
], ids=str)
def test_stories_stay(game, story):
    """Guards runs that are to be made again: a seed means this story, whatever else changes."""
    cups = Cups(**game)
    text = Tokenizer(cups.text_ids).decode(stories(cups, 1, 40).ids[0])
    assert text.startswith(story)


# What a step takes

def test_what_is_not_read_yet():
    """Guards which answers teach no reading: those of a stage's own rounds, from the second on.
    With all balls there are orders that no single move makes, so there all of them do."""
    for cups, shown in ((CUPS, [0, 0, 2, 3]), (Cups(balls="all"), [0] * 4)):
        s = settings(new_tokens=48)
        assert [cups.text(s, 1, stage).unread for stage in range(4)] == shown


def test_text_of_a_stage():
    """Guards the lengths. A rollout is just long enough for two rounds of the stage, the first of
    them as long as they get. A step has as many tokens in every stage, so it has fewer contexts
    later. Every answer pays, with its number of moves as its level."""
    s = settings(prompts=32, samples=8, new_tokens=48)
    for step, stage, shape in ((1, 1, (16, 9, 32)), (1, 4, (28, 17, 23)), (2, 4, (28, 9, 23)),
                               (1, 30, (48, 17, 16)), (1, 10, (48, 17, 16)), (1, 0, (48, 17, 32)),
                               (2, 0, (48, 9, 32))):
        text = CUPS.text(s, step, stage)
        assert (text.S, text.P, len(text.ids)) == shape and text.stage == stage and text.given
        assert torch.equal(text.pays > 0, text.level > 0) and 0 <= text.offset < 65
        assert (text.level <= (stage or 99)).all()
        first = (text.level > 0) & ((text.level > 0).cumsum(1) == 1)
        assert stage in (0, 30) or (text.level[first] == stage).all()
    judged = settings(approach="teacher", prompts=32, samples=8)
    text = CUPS.text(judged, 1, 30)
    assert text.ids.shape == (TRIED * 16, 17) and text.S == 48 and not text.given


def test_own_text():
    """Guards what a curriculum keeps of own text: one of TRIED, with the longest first rounds, but
    not longer than the stage. Answers to longer rounds do not pay yet."""
    ids = torch.tensor([ids_of(CUPS, "The ball is under cup B. Moves:" + rest)[:21] for rest in (
        " AB. Where? A. Moves: AB, AB, AB", " AB, AB. Where? B. Moves: AB, AB",
        " AB, AB, AB. Where? A. AB, AB", " Where? A Where? A Where? A Where? A",
        " AB. Where? C. Moves: BC, AB, AB", *[" AB" * 12] * (2 * TRIED - 5))])
    prompts = plain(ids[:, :9], 9, 12, stage=2)
    kept = CUPS.grade(ids, prompts)
    assert kept.ids.tolist() == ids[[1, 0]].tolist()
    assert kept.level.sum(1).tolist() == kept.level.max(1).values.tolist() == [2, 1]
    assert kept.pays.sum(1).tolist() == [1, 1] and kept.given
    every = CUPS.grade(ids, plain(ids[:, :9], 9, 12))
    assert sorted(every.ids.tolist()) == sorted(ids.tolist()) and every.pays.sum() == 4


def test_a_text_is_a_function():
    """Guards --resume and every comparison. A text depends on seed, step and purpose, on each of
    them, and on nothing else. What was drawn before does not matter, nor does numpy's global
    state."""
    first = stories(CUPS, 4, 30, 1, 2).ids
    np.random.seed(7)
    stories(CUPS, 4, 30, 9, 9)
    assert np.array_equal(first, stories(CUPS, 4, 30, 1, 2).ids)
    for key in ((2, 2, "train"), (1, 3, "train"), (2, 1, "train"), (1, 2, "eval")):
        assert not np.array_equal(first, stories(CUPS, 4, 30, *key).ids)
    assert len({row.tobytes() for row in first}) == 4
    draws = {tuple(seeded(s, t, p).random(4)) for s in (0, 1) for t in (0, 1) for p in PURPOSES}
    assert len(draws) == 4 * len(PURPOSES)
    refuses(lambda: seeded(0, 0, "trian"))  # a misspelt purpose


# A source of your own

class Recall(Source):
    """a x x ? a: what came before the x? Only the word after the question mark pays. Thoughts may
    stand after each x. A level is a number of x."""
    text_ids, levels, of = list(range(6)), 3, "gap"  # rows 0 to 3 are words, 4 is x, 5 is ?

    def rounds(self, rows, L, rng, gap=0):
        out = []
        for _ in range(rows):
            row = []
            while len(row) < L:
                n, word = gap or int(rng.integers(1, 4)), int(rng.integers(4))
                row += [(word, 0), *[(4, 0)] * n, (5, 0), (word, n)]
            out.append(row[:L])
        return torch.tensor(out).unbind(-1)

    def take(self, rows, L, rng, prompt=0, held_out=False):
        return self.rounds(rows, L, rng)[0]

    def as_text(self, ids, level, P=1):
        return Text(ids, P, (level[:, P:] > 0).float(), level[:, P:], open=ids == 4)

    def text(self, s, step, stage):
        rng = seeded(s.seed, step, "train")
        return self.as_text(*self.rounds(s.prompts, 12, rng))

    def questions(self, each, seed):
        rounds = [self.rounds(each, 12, seeded(seed, gap, "eval"), gap) for gap in (1, 2, 3)]
        return self.as_text(*map(torch.cat, zip(*rounds)))


class Chain(Source):
    """0 1 2 3 4 5 0 1 ... from anywhere: a source needs no more than `take`."""
    text_ids = list(range(6))

    def take(self, rows, L, rng, prompt=0, held_out=False):
        return torch.from_numpy(rng.integers(6, size=(rows, 1)) + np.arange(L)) % 6


@pytest.mark.parametrize("source", [Recall(), Chain()], ids=["Recall", "Chain"])
def test_a_source_of_your_own(tmp_path, source):
    """Guards the seam between text and algorithm: a source that is written here trains, without a
    change anywhere else, and is asked its own questions."""
    s = settings(steps=3, eval_every=3, prompt_tokens=1, new_tokens=11, think_vocab=4, budget=6,
                 out=str(tmp_path))
    train.train(train.setup(s, source))
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["kind"] for x in lines] == ["eval", "step", "step", "step", "eval"]
    assert all(x["thoughts"] > 0 and x["reward"] < 0 and x["skipped"] == 0 for x in lines[1:4])
    assert len(lines[-1].get("accuracy_by_gap", [])) == source.levels


@pytest.mark.parametrize("think", ["free", "forced"])
@pytest.mark.parametrize("persist", [True, False])
def test_open_says_where(tiny, think, persist):
    """Guards `Text.open` in all samplers (place by place, planned, naive, branches). A thought
    stands after a token where this text says so, whatever the rules say of its id."""
    model, is_open = tiny(offset=2.0), luck(3)(P + S, R)[..., 0].T < 0.5
    text, rules = plain(texts(), P, S, open=is_open), Rules(think, 2, 9, 0, AFTER, persist)
    ro, wanted, seen = roll(model, text, rules, luck()), is_open.clone(), 0
    wanted[:, :P - 1], wanted[:, -1] = False, False  # none in the prompt, none after the end
    for r in range(R):
        slots = set(ro.after[r][ro.is_think[r]].tolist())
        assert slots <= set(wanted[r].nonzero().flatten().tolist())
        assert think == "free" or not persist or len(slots) == min(wanted[r].sum(), 5)
        seen += len(slots)
    assert seen > R and (text.ids[wanted] < V).all()
    if persist:
        naive = naive_rollout(model, text, rules, luck()(S + 9, R))
        assert [len(row) for row in naive] == (ro.is_think | ro.is_text).sum(1).tolist()
