"""lab/pretrain.py: what the two small models read, and that each learns from it; GPT-2's ranks."""
import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch

from conftest import one_line, run
from data import Cups, seeded
from lab import pretrain
from lab.pretrain import ROLES, Lesson, products, stories
from model import GPT, load


@pytest.fixture(scope="module")
def cups():
    return Cups(3)


@pytest.fixture(scope="module")
def lessons():
    return {name: [Lesson(**x) for x in role.lessons] for name, role in ROLES.items()}


def lengths(lesson, story) -> Counter:
    """How often a round has that many moves. A question that is asked again has none."""
    return Counter(n for row in story.ids.tolist() for _, n, _ in lesson.answers(row))


def test_plain_lessons_are_the_language(cups, lessons):
    """Guards the random numbers: a lesson without aids tells the very stories of the game."""
    plain, told = (c.stories(20, 64, seeded(0, 0, "pretrain"))
                   for c in (cups, lessons["teacher"][0]))
    assert all(np.array_equal(a, b) for a, b in zip(plain, told))
    assert lessons["teacher"][0].fair(told)[:, 1:].all()


def test_long_rounds(cups, lessons):
    """Guards the second aid: half of the rounds have n_max moves for certain, and where one of
    these rounds ends is no target."""
    lesson = Lesson(n_max=4)
    n = lengths(lesson, lesson.stories(300, 200, seeded(0, 0, "pretrain"), 4))
    share = n[4] / sum(n.values())
    assert set(n) == {1, 2, 3, 4} and share == pytest.approx(0.5 + 0.5 / 4, abs=0.06)
    lesson = lessons["teacher"][1]
    story = lesson.stories(20, 64, seeded(0, 1, "pretrain"), lesson.n_max)
    ends = np.isin(story.ids, [cups.id["."], cups.id[","]]) & (story.n > 0)
    assert ends.sum() > 200 and np.array_equal(lesson.fair(story)[:, 1:], ~ends[:, 1:])


def test_lies(cups):
    """Guards the third aid: a false answer pays nothing, is no target, and says where the ball is
    from then on, so that what follows is right by the answer that was given."""
    lesson = Lesson(lies=0.5)
    story = lesson.stories(60, 150, seeded(0, 0, "pretrain"))
    fair, right, wrong, paid = lesson.fair(story), 0, 0, 0
    for b, row in enumerate(story.ids.tolist()):
        follow = [-1 if where is None else cups.states[where] for where, _ in cups.follow(row)]
        assert story.state[b].tolist() == follow
        for place, _, ok in cups.answers(row):
            right, wrong, paid = right + ok, wrong + (not ok), paid + story.pays[b, place]
            assert fair[b, place] == story.pays[b, place] and (ok or not fair[b, place])
    assert paid / (wrong + right) == pytest.approx(0.5, abs=0.04)
    # a lie names any cup: two of three are wrong
    assert wrong / (wrong + right) == pytest.approx(1 / 3, abs=0.04)


def test_asked_again(cups, lessons):
    """Guards the student's text: three of ten answered questions are asked once more, at once, and
    get the same answer, which pays."""
    lesson = lessons["student"][0]
    story, again = lesson.stories(60, 150, seeded(0, 0, "pretrain")), 0
    n = lengths(lesson, story)
    for b, row in enumerate(story.ids.tolist()):
        for place, moves, ok in cups.answers(row):
            assert ok and story.pays[b, place] and story.n[b, place] == moves
            again += moves == 0
            assert moves or row[place] == row[place - 4]
    assert again == n[0] and again / sum(n.values()) == pytest.approx(0.3, abs=0.04)
    assert lesson.fair(story)[:, 1:].all()


def test_four_quarters(lessons):
    """Guards the teacher's text: a step is a function of its number, each quarter has its own
    random numbers, and only the two quarters with lies hold answers that do not pay."""
    (story, fair), (same, _), (other, _) = (stories(lessons["teacher"], 64, 0, step)
                                            for step in (3, 3, 4))
    assert np.array_equal(story.ids, same.ids) and not np.array_equal(story.ids, other.ids)
    assert story.ids.shape == fair.shape == (64, 64)
    assert len({row.tobytes() for row in story.ids}) == 64
    lesson = lessons["teacher"][0]
    lies = [sum(not story.pays[b, place] for b in range(i, i + 16)
                for place, n, _ in lesson.answers(story.ids[b].tolist())) for i in (0, 16, 32, 48)]
    assert lies[:2] == [0, 0] and min(lies[2:]) > 0


def test_products(cups):
    """Guards what the heads must say: of the last 2^k items of a round their product, and the cup
    where the round is shorter than that."""
    story = cups.stories(8, 64, seeded(0, 0, "pretrain"))
    labels, ends = products(cups, story, 3), 0
    assert labels.shape == (3, 8, 64)
    for b, row in enumerate(story.ids.tolist()):
        for s, i in enumerate(row):
            n, said = int(story.n[b, s]), labels[:, b, s]
            if i not in cups.move_ids and i != cups.id["?"]:
                assert (said == -1).all()
                continue
            # fewer moves than 2^k: the cup itself, classes 0..m-1; else one of the m! orders
            assert [x < 3 for x in said] == [n < 2, n < 4, n < 8]
            assert all(x == story.state[b, s] for x in said[said < 3])
            ends += 1
    assert ends > 100
    # two turns to the left are one to the right, which takes the ball from A to B
    row = np.array([[cups.id[w] for w in (" cup", " A", " left", ",", " left")]])
    state = np.array([[-1, 0, 2, 2, 1]])
    orders = products(cups, story._replace(ids=row, state=state), 1)[0, 0]
    left_twice = [(1, 2, 0).index(c) for c in range(3)]
    perms = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    assert orders[2] == 2 and perms[orders[4] - 3] == (1, 2, 0) and left_twice == [2, 0, 1]


@pytest.mark.parametrize("role", ROLES)
def test_a_few_steps(role, tmp_path, monkeypatch, capsys):
    """Guards the command: a model that `load` reads, which has begun to learn."""
    monkeypatch.setattr(pretrain, "answers_by_n", lambda *_: [0.5])
    argv = [role, "--steps", 12, "--width", 32, "--out", tmp_path / "new" / "x.pt"]
    code, out, _ = run(pretrain.main, argv, monkeypatch, capsys)
    model = load(tmp_path / "new" / "x.pt")
    torch.manual_seed(0)
    born, window = GPT(model.config, model.text_ids), ROLES[role].window
    assert code == 0 and "answers right % by n: 50" in out
    assert model.config.n_layer == ROLES[role].layers and model.config.n_embd == 32
    before, after = (pretrain.held_out_nats(m, Cups(3), window) for m in (born, model))
    assert after < before - 0.05


def test_shipped_models():
    """Guards assets/pico: the teacher answers right at every n up to 10, the student by chance."""
    for name, role in ROLES.items():
        model = load(role.name)
        assert (model.config.n_layer, model.config.think_vocab) == (role.layers, 0)
        right = pretrain.answers_by_n(model, Cups(3), role.window, 40)[:10]
        assert min(right) > 0.9 if name == "teacher" else max(right[2:]) < 0.5


def test_refuses(monkeypatch, capsys, tmp_path):
    """Guards assets/: other settings want to know where their model belongs, one line each."""
    for argv, word in ((["student", "--steps", 10], "--out"), (["ranks"], "folder"),
                       (["student", tmp_path], "folder"), (["ranks", tmp_path], "vocab.bpe"),
                       (["nobody"], "choose from")):
        code, _, err = run(pretrain.main, argv, monkeypatch, capsys)
        assert code == 2 and word in err and err.count("\n") == 1, err


# GPT-2's ranks

def test_damaged_sources(tmp_path):
    """Guards against files that only look like OpenAI's."""
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    with pytest.raises(ValueError) as e:
        pretrain.build_ranks(tmp_path, tmp_path / "out")
    one_line(e)
    assert not (tmp_path / "out").exists()


def test_ranks_of_a_tiny_vocabulary(tmp_path, monkeypatch):
    """Guards the format: 256 bytes in OpenAI's order, then what was merged, each with its rank."""
    from tiktoken.load import load_tiktoken_bpe
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    order = plain + [b for b in range(256) if b not in plain]
    names = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    merged = [("a", "b"), ("ab", "c")]
    (tmp_path / "vocab.bpe").write_text(
        "#version: 0.2\n" + "".join(f"{x} {y}\n" for x, y in merged), encoding="utf-8")
    words = [*names, *(x + y for x, y in merged), "<|endoftext|>"]
    (tmp_path / "encoder.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    monkeypatch.setattr(pretrain, "SOURCES", {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in pretrain.SOURCES})
    pretrain.build_ranks(tmp_path, tmp_path / "out")
    ranks = load_tiktoken_bpe(str(tmp_path / "out"))
    assert ranks == {bytes([b]): i for i, b in enumerate(order)} | {b"ab": 256, b"abc": 257}
