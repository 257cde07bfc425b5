"""Lesson 8, settings.py, train.py, run.py, evaluate.py: a run.

`resolve` makes the settings, `setup` the run, and `train` goes through the five steps again and
again. What it leaves is a folder: log, settings, checkpoint, pictures. `open_run` reads it back,
also one of an older version. Then the parts that a run is made of: presets, the curriculum, which
rows stand next to each other, and what an evaluation counts.
"""
import json
from contextlib import ExitStack
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest
import torch

import train
from conftest import AFTER, P, S, luck, refuses, settings, texts
from data import TRIED, Cups, Source, plain, seeded
from download import Unreached
from evaluate import room, what_it_thinks_about, when_it_thinks
from model import as_checkpoint, gate_logit, load
from next_token import roll
from rollout import GREEDY, Rules
from run import Progress, Run, open_run
from settings import Settings, from_dict, means, parser, resolve
from train import AHEAD, climb, setup, take_text
from weights import save

SMALL = dict(prompts=2, samples=2, think_vocab=16, steps=8, eval_every=8)
CUPS = Cups()


def test_a_run_leaves_a_folder(quick, tmp_path):
    """Guards the first lesson. Three calls make a run; its log has a line per step, settings.json
    has all settings, and `open_run` gives back model, rules and settings."""
    out = tmp_path / "runs" / "one"
    s = settings(**SMALL, out=str(out))
    run = setup(s)
    train.train(run)
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert [x["kind"] for x in lines] == ["eval", *["step"] * 8, "eval"]
    written = json.loads((out / "settings.json").read_text())
    assert written.keys() == {f.name for f in fields(Settings)} and written["prompts"] == 2
    assert from_dict(written, out) == s
    again = open_run(out)
    assert again.settings == s and again.rules == run.rules and again.progress == run.progress
    assert again.progress.step == 8 and again.source.text_ids == CUPS.text_ids
    pairs = zip(again.model.parameters(), run.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(load(out).think, run.model.think)  # the module alone


def test_each_gradient_is_of_its_own_step(quick, tmp_path, monkeypatch):
    """Guards zero_grad, the warm-up and the clip. No step sees an older gradient. Rates rise from
    the first step on and fall at the end, and no step is longer than a norm of 1 allows."""
    run, rates, real = setup(settings(**SMALL, out=str(tmp_path))), [], train.backward
    step, parameters = run.optimizer.step, list(run.model.parameters())

    def backward(*args):
        assert all(p.grad is None for p in parameters)
        return real(*args)

    def stepping():
        norm = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
        assert 0 < norm < 1 + 1e-4
        rates.append([group["lr"] / group["peak"] for group in run.optimizer.param_groups])
        step()

    monkeypatch.setattr(train, "backward", backward)
    run.optimizer.step = stepping
    train.train(run)
    wanted = [i / 50 for i in range(1, 8)] + [8 / 50 * (5 / 8 + 0.05)]
    assert rates == [[pytest.approx(x)] * 2 for x in wanted]


def test_a_step_that_is_not_finite(quick, tmp_path, monkeypatch):
    """Guards weights against a NaN: such a step is left out and counted, and the tenth in a row
    ends the run."""
    run = setup(settings(**SMALL | dict(steps=12), out=str(tmp_path)))
    before = [p.clone() for p in run.model.parameters()]
    monkeypatch.setattr(train, "backward", lambda *args: (float("nan"), 0.0))
    with pytest.raises(FloatingPointError):
        train.train(run)
    assert run.progress.skipped == 10
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters()))


# Settings

def test_a_typo_is_an_error():
    """Guards every line that reads a setting. A name that is none is an AttributeError, not None;
    and no setting changes in the middle of a run."""
    s = settings()
    with pytest.raises(AttributeError):
        s.think_vocabulary  # noqa: B018
    with pytest.raises(FrozenInstanceError):
        s.lr = 1.0
    with pytest.raises(TypeError):
        Settings(leraning_rate=1.0)
    refuses(lambda: from_dict(asdict(s) | {"leraning_rate": 1.0}, "x.pt"), "x.pt")


COLUMNS = ("lr", "think_lr", "prompts", "samples", "window", "budget", "new_tokens", "steps",
           "entropy", "gamma", "think", "think_prior", "max_thoughts", "curriculum", "eval_every",
           "prompt_tokens", "reread", "model", "teacher")
TABLE = {
    ("cups", "teacher"): (1e-3, 1e-3, 16, 8, 5, 24, 48, 1500, 0.5, 0.9, "forced", 0.5, 1, "on",
                          750, 17, 0, "pico", "pico-teacher"),
    ("cups", "stream"): (1e-3, 2e-3, 16, 8, 5, 16, 32, 1600, 0.5, 0.9, "forced", 0.5, 1, "on",
                         800, 17, 0, "scratch:1x64", None),
    ("cups", "next_token"): (1e-3, 2e-3, 16, 8, 7, 4, 32, 1500, 0.5, 0.0, "forced", 0.5, 4, "on",
                             750, 17, 2, "scratch:1x64", None),
    ("text", "teacher"): (1e-5, 1e-3, 8, 4, 0, 32, 64, 1000, 0.5, 0.95, "free", 0.1, 1, "off", 100,
                          64, 0, "gpt2", "gpt2"),
    ("text", "stream"): (1e-5, 1e-3, 8, 4, 0, 32, 64, 1000, 0.5, 0.95, "free", 0.1, 1, "off", 100,
                         64, 0, "gpt2", None),
    ("text", "next_token"): (1e-5, 1e-3, 8, 4, 0, 4, 64, 1000, 0.5, 0.0, "free", 0.1, 4, "off",
                             100, 64, 0, "gpt2", None)}


@pytest.mark.parametrize("kind, approach", TABLE)
def test_presets(kind, approach, tmp_path):
    """Guards what a run is that was given no flags: figures and tables in docs/ are made so."""
    (tmp_path / "a.txt").write_text("some text")
    data = "cups" if kind == "cups" else str(tmp_path / "a.txt")
    s = resolve({"approach": approach, "data": data})
    assert tuple(getattr(s, name) for name in COLUMNS) == TABLE[kind, approach]
    swaps = " swaps=3" if (kind, approach) == ("cups", "next_token") else ""
    assert s.data == data + swaps and s.micro_batch == s.prompts * s.samples
    assert s.think_vocab == 2048 and (s.device, s.compile, s.think_cost) == ("cpu", "off", 0)


def test_what_was_typed_stands():
    """Guards flags against presets: each flag of train.py arrives as it was typed."""
    typed = vars(parser().parse_args(["--approach", "stream", "--lr", "0.5", "--window", "7",
                                      "--data", "cups m=4", "--steps", "3", "--gamma", "0.5"]))
    assert typed == {"approach": "stream", "lr": 0.5, "window": 7, "data": "cups m=4", "steps": 3,
                     "gamma": 0.5}
    s = resolve(typed)
    assert (s.lr, s.window, s.data, s.steps, s.gamma) == (0.5, 7, "cups m=4", 3, 0.5)
    assert settings(max_thoughts=2).budget == 32 and settings(max_thoughts=2, budget=5).budget == 5
    filler = resolve({"approach": "stream", "thoughts": "filler"})  # siblings would be copies
    assert (filler.prompts, filler.samples, filler.baseline) == (128, 1, "none")
    assert (filler.think_vocab, settings(thoughts="none").think_vocab) == (1, 0)
    filler = resolve({"approach": "stream", "thoughts": "filler", "prompts": 7})
    assert (filler.prompts, filler.samples, filler.baseline) == (7, 1, "none")
    for typed in ({"samples": 1}, {"baseline": "none"}):
        alone = resolve({"approach": "stream", "thoughts": "none", **typed})
        assert (alone.samples, alone.baseline) == (1, "none")


def test_harder_worlds():
    """Guards the defaults of worlds with more to tell apart: ids have more steps, and what was
    typed stands. With all balls a thought is needed after one move already, so the
    window is narrower."""
    for data in ("cups m=5", "cups balls=all", "cups idle=0.4", "cups m=6 moves=turns"):
        assert settings(data=data).steps == 12000 and settings(data=data, steps=7).steps == 7
        assert settings(data=data, thoughts="continuous").steps == 1600
    assert settings(data="cups balls=all").window == 4 and settings().window == 5
    assert settings(data="cups balls=all", window=5).window == 5
    assert settings(new_tokens=9).data == "cups swaps=3"  # no longer rounds fit


# Checkpoints of an older version

OLD = {  # the flags of that version
    "approach": "stream", "thoughts": "tokens", "model": "scratch", "teacher": None, "layers": 2,
    "width": 16, "data": "cups", "cups": 4, "swaps": 7, "think_vocab": 5, "alphabet": "new",
    "pull": 0.0, "think": "free", "think_prior": 0.5, "max_thoughts": 2, "budget": 32,
    "think_cost": 0.01, "window": 6, "thinker": None, "reread": 0, "prompts": 16, "samples": 8,
    "prompt_tokens": 17, "new_tokens": 32, "temperature": 1.0, "micro_batch": 128, "steps": 1600,
    "lr": 1e-3, "think_lr": 2e-3, "warmup": 50, "entropy": 0.25, "gamma": 1.0, "siblings": "shared",
    "baseline": "loo", "beta": 1.0, "text_grad": "exact", "answer_grad": "on", "curriculum": "on",
    "seed": 3, "eval_every": 800, "keep_every": 0, "device": "cpu", "dtype": "float32",
    "compile": "off", "out": "out"}


@pytest.mark.parametrize("more, wanted", [
    ({}, {"data": "cups m=4 balls=one idle=0.0 moves=mixed swaps=7", "model": "scratch:2x16"}),
    ({"balls": "all", "idle": 0.2, "cups": 3, "moves": "mixed", "text_grad": "sampled"},
     {"data": "cups m=3 balls=all idle=0.2 moves=mixed swaps=7", "reward": "sampled"}),
    ({"data": "book.txt", "model": "gpt2", "thoughts": "oracle"},
     {"data": "book.txt", "model": "gpt2", "thoughts": "tokens"}),
])
def test_format_2(tiny, tmp_path, more, wanted):
    """Guards runs of people who update. A checkpoint of format 2 opens, with its rules, its game as
    a --data spec, and the gate's bias under its new name. It can be sampled, and not resumed."""
    model = tiny(offset=0.7, dtype=torch.float32)
    weights = as_checkpoint(model)
    weights["model"]["think_offset"] = weights["model"].pop("gate_bias")
    rules = {"think": "free", "max_thoughts": 2, "budget": 32, "window": 6, "think_after": AFTER,
             "persist": True, "continuous": False, "reread": 0}
    state = {"step": 9, "stage": 3, "accuracy": 0.5, "in_stage": 2, "dead": 0, "skipped": 0,
             "in_a_row": 0, "end": 1600, "wanted": False, "born": 0, "attempt": 0}
    save(tmp_path / "ckpt.pt", weights | {"format": 2, "args": OLD | more, "rules": rules,
                                          "state": state, "optimizer": {"state": {}}})
    assert torch.load(tmp_path / "ckpt.pt")["format"] == 2
    run = open_run(tmp_path)
    assert run.rules == Rules("free", 2, 32, 6, AFTER)
    assert run.model.gate_bias.item() == pytest.approx(0.7)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), model.parameters()))
    s = run.settings
    assert {name: getattr(s, name) for name in wanted} == wanted
    assert (s.seed, s.think_cost, s.window, run.progress.step) == (3, 0.01, 6, 9)
    if s.data.startswith("cups"):
        assert run.source.m == (OLD | more)["cups"] and run.source.stages == 7
    assert roll(run.model, plain(texts(), P, S), run.rules, luck()).is_think.any()
    refuses(lambda: train.resume({"out": str(tmp_path)}), "older version")


# Before the first step, and step 1

def test_siblings_stand_side_by_side():
    """Guards step 1 against step 4: leave-one-out takes rows in groups of G neighbours, so these
    must share their text."""
    text, _ = take_text(setup(settings(model="scratch:1x8", think_vocab=4)), None)
    assert text.ids.shape == (12, 9 + 16) and text.siblings == 4
    for x in (text.ids, text.pays, text.level):
        grouped = x.view(3, 4, -1)
        assert (grouped == grouped[:, :1]).all()
    assert len({tuple(row) for row in text.ids.tolist()}) == 3


def test_branches_under_a_window_reread(tmp_path):
    """Guards text that branches under a window read: what is out of sight could not reach them. One
    thought alone would only go back, and be the likeliest one."""
    (tmp_path / "a.txt").write_text("some text")
    typed = {"approach": "next_token", "data": str(tmp_path / "a.txt"), "model": "bytes"}
    for window, K, reread in ((0, 3, 0), (1, 1, 0), (1, 3, 1)):
        s = resolve(typed | {"window": window, "max_thoughts": K})
        assert (s.reread, s.budget) == (reread, K)


def test_text_is_written_ahead():
    """Guards `teacher`'s own text, written for AHEAD steps at once. Each of these steps has as many
    contexts as it would have alone, long first rounds among them in all, and none stands in two. A
    new stage has new text."""
    s = settings(model="pico", teacher="pico", approach="teacher", think_vocab=4, prompts=4,
                 samples=2, curriculum="on", think="forced", seed=1)
    run = setup(s)
    run.progress.stage = 1
    first = [take_text(run, run.model)[0] for _ in range(AHEAD)]
    assert run.written == [] and all(text.siblings == 2 and text.stage == 1 for text in first)
    assert {len(x.ids) for x in first} == {2 * len(run.source.text(s, 0, 1).ids) // TRIED}
    asked = [(x.level == 1).any(1).float().mean().item() for x in first]
    assert max(asked) - min(asked) < 0.5 and min(asked) > 0
    rows = [tuple(row) for x in first for row in x.ids[::2].tolist()]
    assert len(set(rows)) > 0.9 * len(rows)
    take_text(run, run.model)
    assert len(run.written) == AHEAD - 1
    run.progress.stage = 2
    assert take_text(run, run.model)[0].stage == 2 and len(run.written) == AHEAD - 1


def test_few_contexts_and_prompts():
    """Guards the ends of writing ahead: one context a step, whose rows are longer in later stages;
    and prompts that end in the middle of a story, every other time from stage 3 on."""
    run = setup(settings(model="pico", teacher="pico", approach="teacher", think_vocab=4, prompts=1,
                         samples=2, curriculum="on", think="forced", seed=1))
    for stage in (1, 3, 10):
        run.progress.stage, seen = stage, set()
        for run.progress.step in range(4 * AHEAD):
            text, _ = take_text(run, run.model)
            assert len(text.ids) >= 2
            seen.add(text.P)
        assert seen == ({9} if stage == 1 else {9, 17})


class Fixed(Source):
    """The same two rows at each step."""
    def text(self, settings, step, stage):
        ids = torch.tensor([[0, 1, 2, 1, 3, 1], [0, 1, 2, 2, 3, 1]])
        return plain(ids, 2, 4, stage=settings.seed)


def test_no_idle_thoughts(tiny):
    """Guards what a step leaves out: places for thoughts that no slot will hold. Rereading, these
    are thoughts that would look back beyond the longest round of the stage."""
    def rules_of(rules, stage=0):
        return take_text(Run(tiny(), rules, settings(seed=stage), source=Fixed()), None)[1]
    assert rules_of(Rules("forced", 1, 5, think_after=[1])).budget == 2
    assert rules_of(Rules("free", 1, 5, think_after=[1])).budget == 5
    branch = Rules("forced", 4, 4, persist=False, reread=2)
    wanted = {1: 2, 2: 3, 3: 4, 9: 4, 0: 4}
    assert {stage: rules_of(branch, stage).max_thoughts for stage in wanted} == wanted


def test_rows_that_are_there_are_kept(tmp_path):
    """Guards a start from a grown model. Its thinking rows stay as they are, and their gate starts
    at the prior where thinking is asked for; another number of rows is refused."""
    model = setup(settings(model="scratch:1x16", think_vocab=8)).model
    save(tmp_path / "base.pt", as_checkpoint(model))
    free = dict(model=str(tmp_path / "base.pt"), think_vocab=8, think="free", think_prior=0.9)
    run = setup(settings(**free))
    assert torch.equal(run.model.think, model.think) and run.rules.think == "free"
    ids, mask = train.text_at_birth(run)
    p = gate_logit(run.model.logits(run.model(ids, mask=mask)), len(CUPS.text_ids)).sigmoid()
    after_moves = run.rules.table(len(CUPS.text_ids), "cpu")[ids]
    assert p[after_moves].mean().item() == pytest.approx(0.9, rel=0.01)
    refuses(lambda: setup(settings(**free | {"think_vocab": 9})), "8 thinking rows")


def test_without_a_network(monkeypatch, tmp_path):
    """Guards the first minute on a machine with a GPU and no network, where the command means
    GPT-2 on WebText: the line that says what is missing says what can be had."""
    def load(name):
        raise Unreached("no connection")
    monkeypatch.setattr(train, "load", load)
    with ExitStack() as folder:
        refuses(lambda: train.start({"data": "webtext", "out": str(tmp_path)}, folder),
                "no connection", "--data cups")


# The curriculum

@pytest.fixture
def climber(monkeypatch):
    """All of a run that `climb` looks at. known: the last stage whose questions it answers."""
    def make(known=0, stages=3, curriculum="on", **progress):
        run = setup(settings(model="scratch:1x8", think_vocab=4, data=f"cups swaps={stages}",
                             curriculum=curriculum))
        run.progress = Progress(**{"end": 1600} | progress)
        run.known = known
        monkeypatch.setattr(train, "answers_right", lambda model, text, rules: torch.full(
            text.pays.shape, run.progress.stage <= run.known))
        return run
    return make


def go(run, steps):
    for _ in range(steps):
        run.progress.step += 1
        climb(run)
    return run.progress


def test_stages(climber):
    """Guards the curriculum. Every ten steps it goes to the first stage whose questions are not
    answered, never back, and never past the last one."""
    run = climber()
    assert go(run, 9).accuracy == 0 and go(run, 30).stage == 1
    run.known = 1
    assert go(run, 1).stage == 2 and run.progress.in_stage == 0 and run.progress.accuracy == 0
    run.known = 0
    assert go(run, 20).stage == 2 and run.progress.in_stage == 20
    run.known = 9
    assert go(run, 10).stage == 3 and run.progress.accuracy == 1 and go(run, 10).stage == 3
    off = climber(9, curriculum="off")
    assert (go(off, 20).stage, off.progress.end) == (1, 1600)


@pytest.mark.parametrize("wrong, passed", [(1, True), (2, False)])
def test_enough(climber, monkeypatch, wrong, passed):
    """Guards strictness: of some hundred questions one may be wrong, two may not."""
    def answered(model, text, rules):
        hit = torch.ones(text.pays.shape, dtype=torch.bool)
        row, place = (text.pays > 0).nonzero()[:wrong].unbind(1)
        hit[row, place] = False
        return hit
    run = climber(step=9, stages=1)
    monkeypatch.setattr(train, "answers_right", answered)
    assert (go(run, 1).end < 1600) == passed


def test_the_questions_of_a_stage():
    """Guards what a stage asks for: rounds of exactly so many moves first, and a second round, in
    which an old thought is in sight. New ones at each look, the same ones for a seed and step."""
    text = CUPS.quiz(3, 20, seeded(0, 1, "quiz"))
    asked = text.pays > 0
    first = asked & (asked.cumsum(1) == 1)
    assert (text.level[first] == 3).all() and asked.sum() > 20 and text.given
    assert text.level.max() == 3 and text.S == 24
    assert torch.equal(text.ids, CUPS.quiz(3, 20, seeded(0, 1, "quiz")).ids)
    assert not torch.equal(text.ids, CUPS.quiz(3, 20, seeded(0, 2, "quiz")).ids)


@pytest.mark.parametrize("wanted, end", [(False, 160), (True, 1600)])
def test_the_end_of_a_curriculum(climber, wanted, end):
    """Guards the end. A run makes 60 more steps once its last stage is learned, unless --resume
    --steps N says where to end. Later looks do not move that end."""
    run = climber(9, step=99, wanted=wanted)
    assert go(run, 1).end == end and go(run, 50).end == end


def test_what_is_lost_again_is_no_end(climber):
    """Guards the last steps. A run whose code breaks after its last stage was learned goes on, and
    ends once it is learned anew."""
    run = climber(9, step=99)
    run.settings = replace(run.settings, steps=400)
    assert go(run, 1).end == 160
    run.known = 0
    assert go(run, 9).end == 160 and go(run, 1).end == 400
    run.known = 9
    assert go(run, 10).end == 180


# What an evaluation counts

def test_when_it_thinks(tiny):
    """Guards the shares of a model that thinks on its own: every thought is counted once, after its
    own move."""
    text = CUPS.questions(2, 0)
    model = tiny(V=len(CUPS.text_ids), n_ctx=256)
    rules = room(Rules("free", 1, 40, 5, CUPS.move_ids.tolist()), text, model)
    ro = roll(model, text, replace(rules, think="forced"), luck(), GREEDY)
    asked = text.pays > 0
    first = asked & (asked.cumsum(1) == 1)
    may = rules.open_slots(text, model.config.vocab_size)
    out = when_it_thinks(CUPS, may, ro, first)
    assert out["thinks_after_moved"] == out["thinks_elsewhere"] == 1.0
    assert out["thoughts_by_n"] == [float(n) for n in range(1, 31)]
    # as if thoughts after moves of other cups had not been
    ball = [[where for where, _ in CUPS.follow(row)] for row in text.ids.tolist()]
    still = [[ball[r][i] == ball[r][i - 1] for i in row] for r, row in enumerate(ro.after.tolist())]
    ro.is_think &= ~torch.tensor(still)
    out = when_it_thinks(CUPS, may, ro, first)
    assert (out["thinks_after_moved"], out["thinks_elsewhere"]) == (1.0, 0.0)


def test_what_it_thinks_about(tiny):
    """Guards the same for branches: forced after " Where ?" alone, thoughts stand before answers
    alone; everywhere, before all."""
    text, model = CUPS.questions(1, 0), tiny(V=len(CUPS.text_ids), n_ctx=256)
    for after, elsewhere in (([CUPS.id["?"]], 0.0), (None, 1.0)):
        rules = Rules("forced", 2, 2, 5, after, persist=False)
        ro = roll(model, text, rules, luck(), GREEDY)
        assert what_it_thinks_about(ro, text.pays > 0) == {
            "thinks_before_answers": 1.0, "thinks_elsewhere": elsewhere}


def test_settings_said_again():
    """Guards --resume: a flag that is typed again may be what it was, in the short form as well."""
    for name, typed, settled, same in (
            ("data", "cups", "cups swaps=3", True), ("data", "cups m=5", "cups swaps=3", False),
            ("data", "my.txt", "my.txt", True), ("data", "cups", "my.txt", False),
            ("model", "scratch", "scratch:1x64", True), ("model", "scratch", "gpt2", False),
            ("micro_batch", 0, 64, True), ("micro_batch", 8, 64, False),
            ("lr", 1e-3, 1e-3, True), ("lr", 1e-3, 2e-3, False), ("device", "auto", "cpu", True)):
        assert means(name, typed, settled) == same, (name, typed, settled)
