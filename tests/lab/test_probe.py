"""lab/probe.py: what it counts, on thoughts that were made by hand and whose meaning is known."""
import json
import math
from types import SimpleNamespace

import pytest
import torch

import train
from conftest import run
from data import N_MAX, OPENING, Cups, as_text, seeded
from lab import probe
from lab.probe import (Case, Dictionary, anothers, aoc, chains, conditions, first_case, last_move,
                       make_dictionary, shuffled, stories, usage)
from model import GPT, Config, as_checkpoint
from rollout import Luck, Rules
from run import Run
from tokenizer import Tokenizer

CUPS, ALL = Cups(3), Cups(3, balls="all")
MOVES = CUPS.think_after("stream", "forced")
RULES = Rules("forced", 1, 16, 0, MOVES)
FREE = Rules("free", 2, 16, 5, MOVES)


def on_cups(model: GPT, rules: Rules = RULES) -> Run:
    return Run(model, rules, None, source=CUPS)


class Oracle(GPT):
    """No network. It remembers a cup and thinks it after each move, in turn by two ids that mean
    the same. names: an id stands for the cup "after" the move or "before" it. It believes what it
    last read, be it an answer or a thought."""

    def __init__(self, names: str):
        super().__init__(Config(1, 1, 32, 256, 19, 6), CUPS.text_ids)
        self.names = names
        self.wte.weight.data = torch.eye(25, 32)[:19]  # so that a hidden state is its own logits
        self.think = torch.nn.Parameter(torch.eye(25, 32)[19:])

    def forward(self, ids, positions, mask, cache, at, fed=None):
        # [R, T_max, D]: cup, move and id of each place
        memory, h = cache[0][0][:, 0], torch.zeros(*ids.shape, 32)
        for i, place in enumerate(at.tolist()):
            z = ids[:, i]
            before = memory[:, place - 1, :3].long().unbind(1) if place else (z * 0,) * 3
            cup, move = self.believe(z, *before)
            memory[:, place, :3] = torch.stack([cup, move, z], 1).float()
            says = torch.where(z == CUPS.id["?"], torch.tensor(CUPS.cup_ids)[cup], CUPS.id[","])
            goes = torch.tensor(CUPS.goes)
            thought = (goes[move, cup] if self.names == "after" else cup) * 2 + place // 3 % 2
            says = torch.where(self.is_move(z), 19 + thought, says)
            h[:, i] = 99 * torch.nn.functional.one_hot(says, 32)
        return h

    def is_move(self, z):
        return (z >= CUPS.move_ids[0]) & (z <= CUPS.move_ids[-1])

    def believe(self, z, cup, move, before):
        """The cup and the last move, once z is read."""
        A, C = CUPS.cup_ids[[0, -1]]
        anchors = ((before == CUPS.id["?"]) | (before == CUPS.id[" cup"])) & (z >= A) & (z <= C)
        cup = torch.where(anchors, z - A, cup)
        move = torch.where(self.is_move(z), z - CUPS.move_ids[0], move)
        says = (z - 19).clamp(min=0) // 2
        says = says if self.names == "after" else torch.tensor(CUPS.goes)[move, says]
        return torch.where(z >= 19, says, cup), move


@pytest.mark.parametrize("names", ["after", "before"])
def test_oracle_is_read(names):
    """The dictionary finds which cup is named, all of its information given the move, and decodes
    every thought."""
    words, found = make_dictionary(on_cups(Oracle(names)), 32, 0)
    assert found["reading"] == names and found["decoded"] == 1
    assert found[f"I_{names}"] == pytest.approx(math.log(3), abs=0.01)
    assert found["I_given_move"] == pytest.approx(math.log(3), abs=0.02)
    assert found["I_after" if names == "before" else "I_before"] < 0.2
    for z in range(6):
        for move in range(5):
            cup = z // 2 if names == "after" else CUPS.goes[move, z // 2]
            assert words.meaning[z, move] == cup
            assert words.synonym(torch.tensor(z), torch.tensor(move)) == z ^ 1


@pytest.mark.parametrize("names", ["after", "before"])
def test_oracle_is_rewritten(names):
    """It believes its last thought. So a written cup is followed always; thoughts that are cut
    leave the cup where they end; synonyms change nothing; the last thought alone matters."""
    n, each, one = 4, 30, on_cups(Oracle(names))
    words, _ = make_dictionary(one, 32, 0)
    same, wrote = chains(one, n, each, words, seed=1)
    assert wrote["written"] == wrote["follows"] == [each] * n
    assert wrote["true"] == [0] * n and wrote["synonyms"] == 1
    assert same["mistake"] == [0] * n + [1]
    assert aoc(same["mistake"]) == pytest.approx(1 - 0.5 / n)
    assert same["paraphrase"] == [1] * (n + 1) and aoc(same["paraphrase"]) == pytest.approx(0)
    assert same["last"][1:] == [1] * n and 0.1 < same["last"][0] < 0.6
    state = CUPS.stories(n * each, OPENING + 2 * n + 3, seeded(1, 4100 + n, "eval"), exact=n).state
    ends = [OPENING - 1 + 2 * i - (i > 0) for i in range(n)]
    stays = [(state[i::n, at] == state[i::n, -1]).mean() for i, at in enumerate(ends)]
    assert same["early"] == pytest.approx(stays + [1])


@pytest.mark.parametrize("names", ["after", "before"])
def test_what_if(names):
    """Had another cup been written, the answer would be that cup after the moves that are left."""
    n, one = 4, on_cups(Oracle(names))
    words, _ = make_dictionary(one, 32, 0)
    case = stories(one, 3, 2 * n + 3, 0, 0, exact=n)
    stands, true, answer, instead = probe.what_if(case, words)
    thinks = case.own.is_think
    assert torch.equal(stands[thinks], true[thinks]) and stands[~thinks].eq(-1).all()
    assert torch.equal(answer, case.text.ids[:, -1]) and instead[~thinks].eq(-1).all()
    move = probe.move_at(CUPS, case.text.ids[:, OPENING:OPENING + 2 * n:2])[1]
    for r in range(3):
        for i, t in enumerate(thinks[r].nonzero().squeeze(1)):
            for cup in range(3):
                ends = cup
                for later in move[r, i + 1:]:
                    ends = CUPS.goes[later, ends]
                assert instead[r, t, cup] == CUPS.cup_ids[ends]


def test_oracle_conditions():
    """Answers right for every n with own thoughts, in any wording; at chance with others'."""
    out = conditions(first_case(on_cups(Oracle("after")), 4, 0), N_MAX, 4, 0)
    for name in ("own", "sampled", "refed"):
        assert min(out[name]["accuracy_by_n"]) == 1
    assert out["own"]["nats_paying"] < 1e-6
    for name in ("none", "random", "another", "constant"):
        right = sum(out[name]["accuracy_by_n"][5:]) / 25
        assert right < 0.6 and out[name]["worse"] > 10, name


@pytest.mark.parametrize("rules", [
    RULES, Rules("forced", 2, 16, 5, MOVES), FREE, Rules("free", 1, 9),
    Rules("forced", 2, 2, 0, [CUPS.id["?"]], False), Rules("free", 2, 2, 0, None, False),
], ids=["forced", "forced, 2", "free, 2", "free everywhere", "next_token", "next_token, free"])
def test_self_splice_is_exactly_nothing(rules, tiny):
    """Own thoughts written over themselves: same answers and nats, to the bit, in every kind of
    rollout."""
    model = tiny(V=19, N=7, n_ctx=256, offset=1.0, dtype=torch.float32)
    text = as_text(CUPS.stories(12, 33, seeded(0, 0, "eval"), n_max=3), OPENING)
    case = Case(model, rules, text, Luck(0, 0, "eval_rollout"))
    out = conditions(case, N_MAX, 12, 0)
    assert case.own.is_think.any() and out["refed"] == out["own"]
    # and so does thinking them once more
    for table in (case.own.ids, torch.full_like(case.own.ids, -1)):
        written = case.write(table)
        assert all(torch.equal(getattr(written, k), getattr(case.own, k))
                   for k in ("ids", "h", "is_think"))
    assert out["random"]["nats"] != out["own"]["nats"]
    assert out["none"]["thoughts"] == 0 < out["own"]["thoughts"] == out["random"]["thoughts"]


def test_cut_chain_equals_smaller_budget(tiny):
    """The first j thoughts and none after them is what a budget of j does; all is no change."""
    one = on_cups(tiny(V=19, N=7, n_ctx=256), Rules("forced", 1, 16, 5, MOVES))
    case = stories(one, 6, 13, 0, 0, exact=5)
    rank = case.own.is_think.cumsum(1)
    for j in (0, 2, 5):
        cut = case.write(case.own.ids, case.own.is_think & (rank <= j))
        small = case.roll(Rules("forced", 1, j, 5, MOVES), 0.0)
        T = small.ids.shape[1]
        assert torch.equal(cut.ids[:, :T], small.ids)
        assert torch.allclose(cut.h[:, :T - 1], small.h[:, :T - 1], atol=1e-9)


def test_free_thoughts_are_rewritten_in_their_places(tiny):
    """A model that chooses when to think thinks there and nowhere else, whatever is written."""
    one, n = on_cups(tiny(V=19, N=7, n_ctx=256, offset=1.0), FREE), 3
    words, found = make_dictionary(one, 8, 0)
    same, wrote = chains(one, n, 8, words, 0)
    assert 0 < found["decoded"] < 0.8
    assert all(len(x) == n + 1 and x[n] == 1 and 0 <= min(x) for x in same.values())
    assert all(f + t <= w <= 8
               for f, t, w in zip(wrote["follows"], wrote["true"], wrote["written"]))
    assert sum(wrote["written"])
    case = stories(one, 8, 13, 0, 0, exact=5)
    numbers = torch.Generator().manual_seed(0)
    other = case.write(probe.random_ids(one.model, case.own.ids.shape, numbers))
    assert torch.equal(other.is_think, case.own.is_think)
    assert not torch.equal(other.ids, case.own.ids)


def test_gate_is_free_again_after_a_written_word(tiny):
    """One id per row: its own changes nothing, to the bit. Up to another one all stays as it was,
    and later the gate may open elsewhere, which a pinned one does not."""
    model, rules = tiny(V=19, N=7, n_ctx=256, offset=1.0), Rules("free", 1, 16, 5, MOVES)
    case = stories(on_cups(model, rules), 32, 33, 0, 0, exact=15)
    own = case.own
    second = own.is_think & (own.is_think.cumsum(1) == 2)
    at = second.float().argmax(1, keepdim=True)  # of each row's thoughts
    one = torch.full_like(own.ids, -1)
    same = case.write(one.scatter(1, at, own.ids.gather(1, at)), pin=False)
    assert all(torch.equal(getattr(same, k), getattr(own, k))
               for k in ("ids", "h", "is_think", "after"))
    wrong = one.scatter(1, at, 19 + (own.ids.gather(1, at) - 18) % 7)
    free, pinned = (case.write(wrong, pin=pin) for pin in (False, True))
    T = min(free.ids.shape[1], own.ids.shape[1])
    before = torch.arange(T) < at
    assert torch.equal(free.ids[:, :T][before], own.ids[:, :T][before])
    assert torch.equal(free.ids.gather(1, at), wrong.gather(1, at))
    assert torch.equal(pinned.is_think, own.is_think)
    assert not torch.equal(free.after[:, :T], own.after[:, :T])


def test_some_rows_of_a_case_keep_their_numbers(tiny):
    """The same row, taken twice and next to others, thinks the same thoughts."""
    model = tiny(V=19, N=7, n_ctx=256, offset=1.0, dtype=torch.float32)
    case = stories(on_cups(model, FREE), 8, 13, 0, 0, exact=5)
    which = torch.tensor([5, 2, 5])
    assert torch.equal(case.rows(which).own.ids, case.own.ids[which])


def test_after_which_counted_one_by_one(tiny):
    """After which moves a gate opens, by the cup of the ball before them; a story's first ones are
    another matter."""
    one = on_cups(tiny(V=19, N=7, n_ctx=256), Rules("free", 2, 99, 5, MOVES))
    out = probe.after_which(one, 40, 3)
    case = stories(one, 40, 2 * N_MAX + 3, 3, 4002, n_max=10)
    found = {"first": []} | {(cup, move.strip()): [] for cup in "ABC" for move in CUPS.moves}
    thoughts = case.own.after.where(case.own.is_think, -1).tolist()
    for row, slots in zip(case.text.ids.tolist(), thoughts):
        cups, first = [where and where[0] for where, _ in CUPS.follow(row)], True
        for at in range(OPENING, len(row) - 1):
            for move in (w for w in CUPS.moves if row[at] == CUPS.id[w]):
                key = "first" if first else ("ABC"[cups[at - 1]], move.strip())
                found[key].append(at in slots)
                first = False
    assert out["first"] == pytest.approx(sum(found["first"]) / 40)
    assert len(found.pop("first")) == 40
    for (cup, move), thought in found.items():
        share = out["share"][cup][out["moves"].index(move)]
        assert share == pytest.approx(sum(thought) / len(thought))
    shares = sum(out["share"].values(), [])
    assert 0 < min(shares) and max(shares) < 1


def test_continuous_thoughts_can_be_cut(tiny):
    """There are no ids to write, but all thoughts kept still is no change."""
    rules = Rules("forced", 2, 16, 5, MOVES, continuous=True)
    one = on_cups(tiny(V=19, N=1, n_ctx=256), rules)
    case = stories(one, 4, 13, 0, 0, exact=5)
    kept = case.write(case.own.ids, case.own.is_think)
    assert torch.allclose(kept.h[:, :-1], case.own.h[:, :-1], atol=1e-9)
    same, wrote = chains(one, 2, 4, None, 0)
    assert list(same) == ["early"] and not wrote


def test_branches_that_reread_are_read_move_by_move(tiny):
    """next_token: before the answer a branch goes back, and each thought has seen one move more."""
    n, rules = 3, Rules("forced", 4, 4, 7, [CUPS.id["?"]], False, reread=2)
    one = on_cups(tiny(V=19, N=7, n_ctx=256), rules)
    case = stories(one, 5, 2 * n + 3, 0, 0, exact=n)
    read, move, cup = last_move(case)
    assert read.sum(1).tolist() == [n] * 5 and case.own.is_think.sum(1).tolist() == [n + 1] * 5
    places = OPENING + 2 * torch.arange(n)  # of the moves
    seen = torch.from_numpy(CUPS.move_ids)[move[read]].view(5, n)
    assert torch.equal(seen, case.text.ids[:, places])
    assert torch.equal(cup[read].view(5, n), case.state[:, places])
    words, _ = make_dictionary(one, 8, 0)
    same, wrote = chains(one, n, 4, words, 0)
    assert set(same) == set(probe.THEN) and sum(wrote["written"])
    assert all(x[n] == 1 for x in same.values())
    cut = case.write(case.own.ids, case.own.is_think)
    assert torch.equal(cut.ids, case.own.ids) and torch.equal(cut.h, case.own.h)


def test_others_and_shuffled():
    """The neighbour's thoughts in their order, from the start again where they end; a shuffle that
    stays in its chain."""
    ids = torch.tensor([[1, 20, 2, 21, 22, 3], [1, 23, 2, 24, 3, 4], [1, 2, 3, 4, 5, 6],
                        [25, 1, 26, 2, 3, 4]])
    own = SimpleNamespace(ids=ids, is_think=ids >= 20)
    other = anothers(own, 2)
    assert other[0][own.is_think[0]].tolist() == [23, 24, 23]
    assert other[1][own.is_think[1]].tolist() == [20, 21]
    # a neighbour without thoughts: they stay
    assert other[3][own.is_think[3]].tolist() == [25, 26]
    long = torch.arange(40).repeat(3, 1)
    own, chain = SimpleNamespace(ids=long, is_think=long % 2 == 0), long // 20
    mixed = shuffled(own, chain, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[:, 1::2], long[:, 1::2]) and not torch.equal(mixed, long)
    assert torch.equal(mixed[:, :20].sort(1).values, long[:, :20])
    assert torch.equal(mixed.sort(1).values, long)


def test_area_over_the_curve():
    assert aoc([1, 1, 1]) == 0 and aoc([0, 0, 1]) == 0.75
    assert aoc([0, 1]) == 0.5 and aoc([0, 0.5, 1]) == 0.5


def test_information_of_hand_made_counts():
    """A code for the cup before the move: all of it given the move, and what a cup says of the next
    one without."""
    counts = torch.zeros(4, 5, 3, dtype=torch.long)
    for cup in range(3):
        for move in range(5):
            counts[cup, move, CUPS.goes[move, cup]] = 7
    words = Dictionary(counts, torch.from_numpy(CUPS.goes))
    found = words.report(counts)
    # one of five moves leaves a cup where it is, two lead to each of the other cups
    from_one = -(0.2 * math.log(0.2) + 2 * 0.4 * math.log(0.4))
    assert found["I_before"] == found["I_given_move"] == pytest.approx(math.log(3))
    assert found["I_after"] == pytest.approx(math.log(3) - from_one)
    assert found["reading"] == "before" and found["decoded"] == 1
    # no synonyms, and an id that never came
    assert words.words[1].eq(-1).all() and words.meaning[3].eq(-1).all()
    used, H = usage(torch.tensor([0, 0, 1, 1, 5]), 8), -0.8 * math.log(0.4) - 0.2 * math.log(0.2)
    assert used["ids_used"] == 3 and used["perplexity"] == pytest.approx(math.exp(H))
    assert usage(torch.tensor([], dtype=torch.long), 8)["perplexity"] == 1


def command(tmp, argv, monkeypatch, capsys) -> tuple[dict, str]:
    """lab/probe.py as a command -> probe.json, and what it printed."""
    monkeypatch.setattr(probe, "LENGTHS", (2, 3))
    argv = ["--checkpoint", tmp / "ckpt.pt", "--stories", "2", "--out", tmp / "probe", *argv]
    code, said, err = run(probe.main, argv, monkeypatch, capsys)
    assert code == 0 and (tmp / "probe" / "probe.png").stat().st_size > 9999, err
    return json.loads((tmp / "probe" / "probe.json").read_text()), said


WORDS = {"dictionary", "meaning", "synonyms", "same_answer", "aoc", "counterfactual"}


def test_command_after_a_run(tmp_path, monkeypatch, capsys):
    """From a run of two steps: probe.json, probe.png and a table, with all that belongs there."""
    monkeypatch.setattr(Run, "measure", lambda it, whole: it.log.write(
        "eval", it.progress.step, {"nats_without_thoughts": 1.0}))
    monkeypatch.setattr(Run, "close", lambda it: None)
    argv = ["--approach", "stream", "--think_vocab", "16", "--steps", "2", "--prompts", "2",
            "--new_tokens", "12", "--out", tmp_path]
    assert run(train.main, argv, monkeypatch, capsys)[0] == 0
    out, said = command(tmp_path, [], monkeypatch, capsys)
    assert out.keys() == {"cups", "conditions", "usage"} | WORDS
    assert "n = 30" in said and "AOC" in said
    assert len(out["conditions"]["own"]["accuracy_by_n"]) == 30


SETTINGS = {"data": "cups", "prompt_tokens": 17, "new_tokens": 12}


@pytest.mark.parametrize("w, k", [(1, 1), (1, 3), (2, 2), (2, 7)])
def test_what_thoughts_say_of_a_text(w, k):
    """A thought that is the token k back says ln 4 nats of it, and of no other; one that is drawn
    says nothing, nor does one that is the last token."""
    R, L, V = 400, 24, 4
    text = torch.randint(V, (R, L), generator=torch.Generator().manual_seed(w))
    is_think = torch.zeros(R, 2 * L, dtype=torch.bool)
    is_think[:, 1::2] = True  # after each token
    after = torch.arange(L).repeat_interleave(2).expand(R, -1)

    def says(z):
        own = SimpleNamespace(is_think=is_think, after=after, text=text,
                              ids=V + z.repeat_interleave(2, 1))
        case = SimpleNamespace(own=own, rules=SimpleNamespace(window=w))
        return probe.says_of_text(case, 0)
    found = says(text.roll(k, 1))
    assert list(found) == ["next", *(str(i) for i in range(w, w + 6)), "asked"]
    assert found.pop("asked") == 1
    assert found.pop(str(k)) == pytest.approx(math.log(4), abs=0.02)
    drawn = torch.randint(V, (R, L), generator=torch.Generator().manual_seed(9))
    for nothing in (found, says(drawn), says(text)):
        assert all(abs(x) < 0.02 for k, x in nothing.items() if k != "asked")
    assert says(text.roll(-1, 1))["next"] == pytest.approx(math.log(4), abs=0.02)
    for rows in (30, 0):  # too few of each group; a gate that never opens
        is_think[rows:] = False
        assert says(text) == {}


@pytest.mark.parametrize("rules, N, cups, keys", [
    (Rules("forced", 1, 16, 5, MOVES, continuous=True), 1, CUPS,
     {"cups", "conditions", "same_answer", "aoc", "not_probed"}),
    (Rules("forced", 2, 2, 7, [CUPS.id["?"]], False), 16, CUPS,
     {"cups", "conditions", "usage", "not_probed"}),
    (Rules("free", 2, 9), 16, CUPS, {"conditions", "usage"}),
    (FREE, 16, CUPS, {"cups", "conditions", "usage", "after_which"} | WORDS),
    (Rules("forced", 1, 16, 4, ALL.think_after("stream", "forced")), 16, ALL,
     {"cups", "conditions", "usage", "not_probed"}),
], ids=["continuous", "next_token", "free, on a file", "free", "all balls"])
def test_command_does_what_it_can(rules, N, cups, keys, tmp_path, monkeypatch, capsys):
    """Where thoughts have no ids, or are forgotten, or the text is any text, what makes sense is
    probed. For the rest it says why not."""
    model = GPT(Config(1, 2, 16, 256, len(cups.text_ids), N), cups.text_ids)
    model.think.data.normal_()
    settings = SETTINGS | {"data": "cups balls=all" if cups.all else "cups"}
    torch.save(as_checkpoint(model) | {"settings": settings, "rules": vars(rules)},
               tmp_path / "ckpt.pt")
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    ids = CUPS.stories(1, 3000, seeded(0, 0, "train")).ids[0]
    (tmp_path / "story.txt").write_text(Tokenizer(CUPS.text_ids).decode(ids))
    argv = [] if "cups" in keys else ["--data", tmp_path / "story.txt"]
    out, said = command(tmp_path, argv, monkeypatch, capsys)
    assert out.keys() == keys and out["conditions"]["own"]["thoughts"] > 0
    assert out.get("not_probed", "nats") in said


@pytest.mark.parametrize("argv, words", [
    (["--checkpoint", "{tmp}/none.pt"], "train.py"),
    (["--checkpoint", "{tmp}/truncated.pt"], "can't be read"),
    (["--checkpoint", "{tmp}/model.pt"], "not the checkpoint of a run"),
    (["--checkpoint", "{tmp}/silent.pt"], "nothing to probe"),
    (["--checkpoint", "{tmp}/foreign.pt"], "language of cups"),
    (["--checkpoint", "{tmp}/other.pt"], "another version"),
    (["--stories", "1"], "at least 2"),
    (["--stories", "0"], "at least 2"),
    (["--seed", "-1"], "at least 0"),
    (["--stries", "8"], "--stories"),
    (["--data", "{tmp}/none.txt"], "there is no file"),
    (["--data", "{tmp}/foreign.txt"], "outside this model's language"),
    (["--data", "cups m=5"], "language of cups"),
    (["--data", "cups m=9"], "2 to 5 cups"),
    (["--out", "{tmp}/model.pt"], "model.pt"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_refuses(argv, words, tmp_path, monkeypatch, capsys):
    """One clear line and exit code 2, and no folder is made."""
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    good = as_checkpoint(GPT(Config(1, 2, 16, 256, 19, 16), CUPS.text_ids))
    more = {"settings": SETTINGS, "rules": vars(RULES)}
    foreign = as_checkpoint(GPT(Config(1, 2, 16, 256, 50257, 16)))
    for name, saved in {
            "model": good, "ckpt": good | more, "foreign": foreign | more,
            "silent": good | more | {"rules": {"think": "never"}},
            "other": good | more | {"rules": {"think": "free", "aloud": True}}}.items():
        torch.save(saved, tmp_path / f"{name}.pt")
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "ckpt.pt").read_bytes()[:999])
    (tmp_path / "foreign.txt").write_text("A word outside the language of cups. " * 99)
    argv = ["--out", "{tmp}/probe", *argv]
    argv += ["--checkpoint", "{tmp}/ckpt.pt"] if "--checkpoint" not in argv else []
    argv = [x.format(tmp=tmp_path) for x in argv]
    code, _, err = run(probe.main, argv, monkeypatch, capsys)
    assert code == 2 and words in err and err.count("\n") == 1, err
    assert err.startswith("lab.probe: ") and not (tmp_path / "probe").exists()
