"""lab/probe.py: what it counts, on thoughts whose meaning is known because they were made by hand."""
import json
import math
from types import SimpleNamespace

import pytest
import torch

import journal
import train
from conftest import run
from data import OPENING, Cups
from evaluate import evaluate, luck_on_text, story_set
from lab import probe
from lab.probe import Case, Dictionary, anothers, aoc, chains, conditions, make_dictionary, shuffled, usage
from model import GPT, Config, as_checkpoint
from rollout import Rules
from tokenizer import Tokenizer

CUPS = Cups(3)


class Oracle(GPT):
    """No network: it remembers a cup, and thinks it after each move, in turn by two ids that mean the same. names: an id
    stands for the cup "after" the move or "before" it. What it believes is what it last read, anchor or thought."""

    def __init__(self, names: str):
        super().__init__(Config(1, 1, 32, 256, 19, 6), CUPS.text_ids)
        self.names = names
        self.wte.weight.data = torch.eye(25, 32)[:19]  # so that a hidden state is its own logits
        self.think = torch.nn.Parameter(torch.eye(25, 32)[19:])

    def forward(self, ids, positions, mask, cache, at, fed=None):
        goes, cup_ids = torch.from_numpy(CUPS.goes), torch.from_numpy(CUPS.cup_ids)
        memory, h = cache[0][0, :, 0], torch.zeros(*ids.shape, 32)  # [R, T_max, D]: cup, move and id of each place
        for i, place in enumerate(at.tolist()):
            z = ids[:, i]
            cup, move, before = memory[:, place - 1, :3].long().unbind(1) if place else (z * 0,) * 3
            anchors = ((before == CUPS.id["?"]) | (before == CUPS.id[" cup"])) & (z >= cup_ids[0]) & (z <= cup_ids[-1])
            cup = torch.where(anchors, z - cup_ids[0], cup)
            is_move = (z >= CUPS.move_ids[0]) & (z <= CUPS.move_ids[-1])
            move = torch.where(is_move, z - CUPS.move_ids[0], move)
            read = (z - 19).clamp(min=0) // 2
            cup = torch.where(z >= 19, read if self.names == "after" else goes[move, read], cup)
            memory[:, place, :3] = torch.stack([cup, move, z], 1).float()
            thought = (goes[move, cup] if self.names == "after" else cup) * 2 + place // 3 % 2
            says = torch.where(z == CUPS.id["?"], cup_ids[cup], CUPS.id[","])
            h[:, i] = 99 * torch.nn.functional.one_hot(torch.where(is_move, 19 + thought, says), 32)
        return h


RULES = Rules("forced", 1, 16, 0, CUPS.think_after)


@pytest.mark.parametrize("names", ["after", "before"])
def test_oracle_is_read(names):
    """The dictionary finds which cup is named, all of its information given the move, and decodes every thought."""
    words, told = make_dictionary(Oracle(names), CUPS, RULES, 32, 0)
    assert told["reading"] == names and told["decoded"] == 1
    assert told[f"I_{names}"] == pytest.approx(math.log(3), abs=0.01)
    assert told["I_given_move"] == pytest.approx(math.log(3), abs=0.02)
    assert told["I_after" if names == "before" else "I_before"] < 0.2
    for z in range(6):
        for move in range(5):
            cup = z // 2 if names == "after" else CUPS.goes[move, z // 2]
            assert words.meaning[z, move] == cup and words.synonym(torch.tensor(z), torch.tensor(move)) == z ^ 1


@pytest.mark.parametrize("names", ["after", "before"])
def test_oracle_is_rewritten(names):
    """It believes its last thought: a written cup is followed always; thoughts that are cut leave the cup where they
    end; synonyms change nothing; and of a chain the last thought alone matters."""
    m, each, model = 4, 30, Oracle(names)
    words, _ = make_dictionary(model, CUPS, RULES, 32, 0)
    same, wrote = chains(model, CUPS, RULES, m, each, words, seed=1)
    assert wrote["written"] == wrote["follows"] == [each] * m and wrote["true"] == [0] * m and wrote["synonyms"] == 1
    assert same["mistake"] == [0] * m + [1] and aoc(same["mistake"]) == pytest.approx(1 - 0.5 / m)
    assert same["paraphrase"] == [1] * (m + 1) and aoc(same["paraphrase"]) == pytest.approx(0)
    assert same["last"][1:] == [1] * m and 0.1 < same["last"][0] < 0.6
    state = CUPS.batch(m * each, OPENING + 2 * m + 3, 1, 4100 + m, "eval", exact=m).state
    stays = [(state[i::m, OPENING - 1 + 2 * i - (i > 0)] == state[i::m, -1]).mean() for i in range(m)]
    assert same["early"] == pytest.approx(stays + [1])


@pytest.mark.parametrize("names", ["after", "before"])
def test_what_if(names):
    """What would be answered had another cup been written: that cup, after the moves that are left."""
    m, model = 4, Oracle(names)
    words, _ = make_dictionary(model, CUPS, RULES, 32, 0)
    case, state, n = probe.stories(model, CUPS, RULES, 3, 2 * m + 3, 0, 0, exact=m)
    stands, true, answer, instead = probe.what_if(case, CUPS, words, state, n)
    assert torch.equal(stands[case.own.is_think], true[case.own.is_think]) and stands[~case.own.is_think].eq(-1).all()
    assert torch.equal(answer, case.text[:, -1]) and instead[~case.own.is_think].eq(-1).all()
    move = probe.move_at(CUPS, case.text[:, OPENING:OPENING + 2 * m:2])[1]
    for r in range(3):
        for i, t in enumerate(case.own.is_think[r].nonzero().squeeze(1)):
            for cup in range(3):
                told = cup
                for later in move[r, i + 1:]:
                    told = CUPS.goes[later, told]
                assert instead[r, t, cup] == CUPS.cup_ids[told]


def test_oracle_conditions():
    """Answers right for every n with own thoughts, in any wording; at chance with others'."""
    ids, n, pays, rules, u = story_set(CUPS, RULES, 4, 0, "cpu")
    out = conditions(Case(Oracle("after"), rules, ids, OPENING, u), pays, n, 4, 0)
    assert min(out[name]["accuracy_by_n"][i] for name in ("own", "sampled", "refed") for i in range(30)) == 1
    assert out["own"]["nats_paying"] < 1e-6
    for name in ("none", "random", "another", "constant"):
        assert sum(out[name]["accuracy_by_n"][5:]) / 25 < 0.6 and out[name]["worse"] > 10, name


@pytest.mark.parametrize("rules", [
    RULES, Rules("forced", 2, 16, 5, CUPS.think_after), Rules("free", 2, 16, 5, CUPS.think_after), Rules("free", 1, 9),
    Rules("forced", 2, 2, 0, [CUPS.id["?"]], False), Rules("free", 2, 2, 0, None, False),
], ids=["forced", "forced, 2", "free, 2", "free everywhere", "next_token", "next_token, free"])
def test_self_splice_is_exactly_nothing(rules, tiny):
    """Own thoughts written over themselves: same answers, same nats, to the bit, in every kind of rollout."""
    model, batch = tiny(V=19, N=7, n_ctx=256, offset=1.0, dtype=torch.float32), CUPS.batch(12, 33, 0, 0, "eval", n_max=3)
    ids, n, pays = (torch.from_numpy(x) for x in (batch.ids, batch.n, batch.pays))
    case = Case(model, rules, ids, OPENING, luck_on_text(0, 0, "eval_rollout", rules, 12, 33 - OPENING, "cpu"))
    out = conditions(case, pays, n, 12, 0)
    assert case.own.is_think.any() and out["refed"] == out["own"]
    for table in (case.own.ids, torch.full_like(case.own.ids, -1)):  # and so does thinking them anew
        assert all(torch.equal(getattr(case.write(table), k), getattr(case.own, k)) for k in ("ids", "h", "is_think"))
    assert out["random"]["nats"] != out["own"]["nats"] and out["random"]["thoughts"] == out["own"]["thoughts"]
    assert out["none"]["thoughts"] == 0 < out["own"]["thoughts"]


def test_cut_chain_equals_smaller_budget(tiny):
    """The first j thoughts and none after them is what a budget of j does; all of them is no change."""
    model, rules = tiny(V=19, N=7, n_ctx=256), Rules("forced", 1, 16, 5, CUPS.think_after)
    case, *_ = probe.stories(model, CUPS, rules, 6, 13, 0, 0, exact=5)
    rank = case.own.is_think.cumsum(1)
    for j in (0, 2, 5):
        cut = case.write(case.own.ids, case.own.is_think & (rank <= j))
        small = case.roll(Rules("forced", 1, j, 5, CUPS.think_after), 0.0, case.u)
        T = small.ids.shape[1]
        assert torch.equal(cut.ids[:, :T], small.ids) and torch.allclose(cut.h[:, :T - 1], small.h[:, :T - 1], atol=1e-9)


def test_free_thoughts_are_rewritten_in_their_places(tiny):
    """A model that chooses when to think thinks there and nowhere else, whatever is written."""
    model, rules, m = tiny(V=19, N=7, n_ctx=256, offset=1.0), Rules("free", 2, 16, 5, CUPS.think_after), 3
    words, told = make_dictionary(model, CUPS, rules, 8, 0)
    same, wrote = chains(model, CUPS, rules, m, 8, words, 0)
    assert 0 < told["decoded"] < 0.8 and all(len(x) == m + 1 and x[m] == 1 and 0 <= min(x) for x in same.values())
    assert all(f + t <= w <= 8 for f, t, w in zip(wrote["follows"], wrote["true"], wrote["written"])) and sum(wrote["written"])
    case, *_ = probe.stories(model, CUPS, rules, 8, 13, 0, 0, exact=5)
    other = case.write(probe.random_ids(model, case.own.ids.shape, torch.Generator().manual_seed(0)))
    assert torch.equal(other.is_think, case.own.is_think) and not torch.equal(other.ids, case.own.ids)


def test_gate_is_free_again_after_a_written_word(tiny):
    """One id a row: its own changes nothing, to the bit; up to another one all stays as it was, and later the gate may open
    elsewhere, which a pinned one does not."""
    model, rules = tiny(V=19, N=7, n_ctx=256, offset=1.0), Rules("free", 1, 16, 5, CUPS.think_after)
    case, *_ = probe.stories(model, CUPS, rules, 32, 33, 0, 0, exact=15)
    own = case.own
    at = (own.is_think & (own.is_think.cumsum(1) == 2)).float().argmax(1, keepdim=True)  # the second thought of each row
    one = torch.full_like(own.ids, -1)
    same = case.write(one.scatter(1, at, own.ids.gather(1, at)), pin=False)
    assert all(torch.equal(getattr(same, k), getattr(own, k)) for k in ("ids", "h", "is_think", "slot"))
    wrong = one.scatter(1, at, 19 + (own.ids.gather(1, at) - 18) % 7)
    free, pinned = (case.write(wrong, pin=pin) for pin in (False, True))
    T = min(free.ids.shape[1], own.ids.shape[1])
    before = torch.arange(T) < at
    assert torch.equal(free.ids[:, :T][before], own.ids[:, :T][before])
    assert torch.equal(free.ids.gather(1, at), wrong.gather(1, at)) and torch.equal(pinned.is_think, own.is_think)
    assert not torch.equal(free.slot[:, :T], own.slot[:, :T])


def test_after_which_counted_one_by_one(tiny):
    """After which moves a gate opens, by the cup of the ball before them; a story's first ones are another matter."""
    model, rules = tiny(V=19, N=7, n_ctx=256, offset=0.0), Rules("free", 2, 99, 5, CUPS.think_after)
    out = probe.after_which(model, CUPS, rules, 40, 3)
    case, *_ = probe.stories(model, CUPS, rules, 40, 2 * probe.N_MAX + 3, 3, 4002, n_max=10)
    found = {"first": []} | {(cup, move.strip()): [] for cup in "ABC" for move in CUPS.moves}
    for row, slots in zip(case.text.tolist(), case.own.slot.where(case.own.is_think, -1).tolist()):
        cups, first = [cup for cup, _ in CUPS.follow(row)], True
        for at in range(OPENING, len(row) - 1):
            for move in (w for w in CUPS.moves if row[at] == CUPS.id[w]):
                found["first" if first else ("ABC"[cups[at - 1]], move.strip())].append(at in slots)
                first = False
    assert out["first"] == pytest.approx(sum(found["first"]) / 40) and len(found.pop("first")) == 40
    for (cup, move), thought in found.items():
        assert out["share"][cup][out["moves"].index(move)] == pytest.approx(sum(thought) / len(thought))
    assert 0 < min(map(min, out["share"].values())) and max(map(max, out["share"].values())) < 1


def test_continuous_thoughts_can_be_cut(tiny):
    """There are no ids to write, but all thoughts kept still is no change."""
    model, rules = tiny(V=19, N=1, n_ctx=256), Rules("forced", 2, 16, 5, CUPS.think_after, continuous=True)
    case, *_ = probe.stories(model, CUPS, rules, 4, 13, 0, 0, exact=5)
    kept = case.write(case.own.ids, case.own.is_think)
    assert torch.allclose(kept.h[:, :-1], case.own.h[:, :-1], atol=1e-9)
    same, wrote = chains(model, CUPS, rules, 2, 4, None, 0)
    assert list(same) == ["early"] and not wrote


def test_branches_that_reread_are_read_move_by_move(tiny):
    """next_token: before the answer the eye goes back, and then each thought has seen one move more."""
    model, rules, m = tiny(V=19, N=7, n_ctx=256), Rules("forced", 4, 4, 7, [CUPS.id["?"]], False, reread=2), 3
    case, state, n = probe.stories(model, CUPS, rules, 5, 2 * m + 3, 0, 0, exact=m)
    read, move, cup = probe.seen_beside(case, CUPS, state, n)
    assert read.sum(1).tolist() == [m] * 5 and case.own.is_think.sum(1).tolist() == [m + 1] * 5
    places = OPENING + 2 * torch.arange(m)  # of the moves
    assert torch.equal(torch.from_numpy(CUPS.move_ids)[move[read]].view(5, m), case.text[:, places])
    assert torch.equal(cup[read].view(5, m), state[:, places])
    words, _ = make_dictionary(model, CUPS, rules, 8, 0)
    same, wrote = chains(model, CUPS, rules, m, 4, words, 0)
    assert set(same) == set(probe.THEN) and sum(wrote["written"]) and all(x[m] == 1 for x in same.values())
    cut = case.write(case.own.ids, case.own.is_think)
    assert torch.equal(cut.ids, case.own.ids) and torch.equal(cut.h, case.own.h)


def test_others_and_shuffled():
    """The neighbour's thoughts in their order, from the start again where they end; a shuffle that stays in its chain."""
    ids = torch.tensor([[1, 20, 2, 21, 22, 3], [1, 23, 2, 24, 3, 4], [1, 2, 3, 4, 5, 6], [25, 1, 26, 2, 3, 4]])
    own = SimpleNamespace(ids=ids, is_think=ids >= 20)
    other = anothers(own, 2)
    assert other[0][own.is_think[0]].tolist() == [23, 24, 23] and other[1][own.is_think[1]].tolist() == [20, 21]
    assert other[3][own.is_think[3]].tolist() == [25, 26]  # a neighbour who thought nothing: they stay
    long = torch.arange(40).repeat(3, 1)
    own, chain = SimpleNamespace(ids=long, is_think=long % 2 == 0), long // 20
    mixed = shuffled(own, chain, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[:, 1::2], long[:, 1::2]) and not torch.equal(mixed, long)
    assert torch.equal(mixed[:, :20].sort(1).values, long[:, :20]) and torch.equal(mixed.sort(1).values, long)


def test_area_over_the_curve():
    assert aoc([1, 1, 1]) == 0 and aoc([0, 0, 1]) == 0.75 and aoc([0, 1]) == 0.5 and aoc([0, 0.5, 1]) == 0.5


def test_information_of_hand_made_counts():
    """A code for the cup before the move: all of it given the move, and what a cup tells about the next one without."""
    counts = torch.zeros(4, 5, 3, dtype=torch.long)
    for cup in range(3):
        for move in range(5):
            counts[cup, move, CUPS.goes[move, cup]] = 7
    words = Dictionary(counts, torch.from_numpy(CUPS.goes))
    told = words.report(counts)
    from_one = -(0.2 * math.log(0.2) + 2 * 0.4 * math.log(0.4))  # one of five moves leaves a cup, two lead to each other one
    assert told["I_before"] == pytest.approx(math.log(3)) and told["I_given_move"] == pytest.approx(math.log(3))
    assert told["I_after"] == pytest.approx(math.log(3) - from_one) and told["reading"] == "before" and told["decoded"] == 1
    assert words.words[1].eq(-1).all() and words.meaning[3].eq(-1).all()  # no synonyms; an id that never came
    used = usage(torch.tensor([0, 0, 1, 1, 5]), 8)
    assert used["ids_used"] == 3 and used["perplexity"] == pytest.approx(math.exp(-0.8 * math.log(0.4) - 0.2 * math.log(0.2)))
    assert usage(torch.tensor([], dtype=torch.long), 8)["perplexity"] == 1


def command(tmp, argv, monkeypatch, capsys) -> tuple[dict, str]:
    """lab/probe.py as a command -> probe.json, and what it printed."""
    monkeypatch.setattr(probe, "LENGTHS", (2, 3))
    argv = ["--checkpoint", tmp / "ckpt.pt", "--stories", "2", "--out", tmp / "probe", *argv]
    code, said, err = run(probe.main, argv, monkeypatch, capsys)
    assert code == 0 and (tmp / "probe" / "probe.png").stat().st_size > 9999, err
    return json.loads((tmp / "probe" / "probe.json").read_text()), said


def test_command_after_a_run(tmp_path, monkeypatch, capsys):
    """From a run of two steps: probe.json, probe.png and a table, with everything in them."""
    monkeypatch.setattr(journal, "evaluate", lambda *a, **_: evaluate(*a[:6], 1, rows=4))
    monkeypatch.setattr(journal, "draw_curves", lambda out: None)
    argv = ["--approach", "stream", "--think_vocab", "16", "--steps", "2", "--prompts", "2", "--new_tokens", "12"]
    assert run(train.main, [*argv, "--out", tmp_path], monkeypatch, capsys)[0] == 0
    out, said = command(tmp_path, [], monkeypatch, capsys)
    assert out.keys() == {"cups", "conditions", "usage", "dictionary", "synonyms", "same_answer", "aoc", "counterfactual"}
    assert "n = 30" in said and "AOC" in said and len(out["conditions"]["own"]["accuracy_by_n"]) == 30


SETTINGS = {"data": "cups", "cups": 3, "prompt_tokens": 17, "new_tokens": 12}


@pytest.mark.parametrize("rules, N, keys", [
    (Rules("forced", 1, 16, 5, CUPS.think_after, continuous=True), 1,
     {"cups", "conditions", "same_answer", "aoc", "not_probed"}),
    (Rules("forced", 2, 2, 7, [CUPS.id["?"]], persist=False), 16, {"cups", "conditions", "usage", "not_probed"}),
    (Rules("free", 2, 9), 16, {"conditions", "usage"}),
    (Rules("free", 1, 16, 5, CUPS.think_after), 16, {"cups", "conditions", "usage", "dictionary", "after_which", "synonyms",
                                                     "same_answer", "aoc", "counterfactual"}),
    (Rules("forced", 1, 16, 4, Cups(3, balls="all").think_after), 16, {"cups", "conditions", "usage", "not_probed"}),
], ids=["continuous", "next_token", "free, on a file", "free", "all balls"])
def test_command_does_what_it_can(rules, N, keys, tmp_path, monkeypatch, capsys):
    """Where thoughts have no ids, or are forgotten, or the text is any text, what makes sense is probed; else it says why."""
    every = rules.think_after == Cups(3, balls="all").think_after
    cups = Cups(3, balls="all") if every else CUPS
    model = GPT(Config(1, 2, 16, 256, len(cups.text_ids), N), cups.text_ids)
    model.think.data.normal_()
    torch.save(as_checkpoint(model) | {"args": SETTINGS | {"balls": "all" if every else "one"}, "rules": vars(rules)}, tmp_path / "ckpt.pt")
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    (tmp_path / "story.txt").write_text(Tokenizer(CUPS.text_ids).decode(CUPS.batch(1, 3000, 0, 0, "train").ids[0]))
    out, said = command(tmp_path, ["--data", tmp_path / "story.txt"] * ("cups" not in keys), monkeypatch, capsys)
    assert out.keys() == keys and out["conditions"]["own"]["thoughts"] > 0 and out.get("not_probed", "nats") in said


@pytest.mark.parametrize("argv, words", [
    (["--checkpoint", "{tmp}/none.pt"], "train.py"),
    (["--checkpoint", "{tmp}/truncated.pt"], "can't be read"),
    (["--checkpoint", "{tmp}/model.pt"], "not the checkpoint of a run"),
    (["--checkpoint", "{tmp}/silent.pt"], "nothing to probe"),
    (["--checkpoint", "{tmp}/foreign.pt"], "language of cups"),
    (["--checkpoint", "{tmp}/other.pt"], "another version"),
    (["--stories", "1"], "at least 2"),
    (["--seed", "-1"], "at least 0"),
    (["--stries", "8"], "--stories"),
    (["--data", "{tmp}/none.txt"], "no readable"),
    (["--data", "{tmp}/foreign.txt"], "outside this model's language"),
    (["--out", "{tmp}/model.pt"], "model.pt"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_refuses(argv, words, tmp_path, monkeypatch, capsys):
    """One clear line and exit code 2."""
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    good = as_checkpoint(GPT(Config(1, 2, 16, 256, 19, 16), CUPS.text_ids))
    settings = {"args": SETTINGS, "rules": vars(RULES)}
    torch.save(good, tmp_path / "model.pt")
    torch.save(good | settings, tmp_path / "ckpt.pt")
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "ckpt.pt").read_bytes()[:999])
    torch.save(good | settings | {"rules": {"think": "never"}}, tmp_path / "silent.pt")
    torch.save(good | settings | {"rules": {"think": "free", "aloud": True}}, tmp_path / "other.pt")
    torch.save(as_checkpoint(GPT(Config(1, 2, 16, 256, 50257, 16))) | settings, tmp_path / "foreign.pt")
    (tmp_path / "foreign.txt").write_text("A word outside the language of cups. " * 99)
    argv = [x.format(tmp=tmp_path) for x in argv]
    argv += ["--checkpoint", tmp_path / "ckpt.pt"] if "--checkpoint" not in argv else []
    code, _, err = run(probe.main, argv, monkeypatch, capsys)
    assert code == 2 and words in err and err.count("\n") == 1, err
