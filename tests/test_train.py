"""train.py's own pieces, each against numbers made by hand: who stands beside whom, what a token weighs, what a stage is."""
import json
import math
from dataclasses import replace

import pytest
import torch

import journal
import train
from data import OPENING, Cups
from evaluate import free_text, story_set, what_it_thinks_about, when_it_thinks
from model import gate_logit
from rollout import Rules, rollout, states, visible_text
from settings import parse, resolve
from train import advance, advantages, contexts, entropy_scale, rules_of_step, shape_of_step, text_weights

R, P, S, V = 4, 3, 6, 11


def texts(rows=R, length=P + S):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(1))


def settings(*argv) -> dict:
    return resolve(parse(["--approach", "stream", "--prompts", "3", "--samples", "4", *argv]))


@pytest.mark.parametrize("window", [0, 4])
def test_the_gradient_sees_what_the_sampler_saw(tiny, uniforms, window):
    """Guards step 5: positions and mask of the gradient pass are those of the rollout, with a window and an offset."""
    model, rules = tiny(), Rules("free", 2, 5, window)
    ro = rollout(model, texts(), P, S, rules, uniforms(S + 5, R), offset=7)
    h, real = states(model, ro, rules, offset=7), ro.is_think | ro.is_text
    assert (h - ro.h)[:, :-1][real[:, :-1]].abs().max() < 1e-9 and h.requires_grad


def test_siblings_stand_side_by_side(tiny):
    """Guards step 1 against step 4: leave-one-out takes rows in groups of G neighbours, so these must share their text."""
    a, cups = settings(), Cups(3)
    text, pays, n, cup = contexts(a, tiny(), cups, None, 3, 17, 8, 0, None, 0)
    assert text.shape == cup.shape == (12, 25) and pays.shape == n.shape == (12, 8)
    for x in (text, pays, n, cup):
        grouped = x.view(3, 4, -1)
        assert (grouped == grouped[:, :1]).all()
    assert len({tuple(row) for row in text.tolist()}) == 3


def test_a_thought_costs(tiny, uniforms):
    """Guards --think_cost: each thought takes its cost off its own slot, and off nothing else."""
    ro = rollout(tiny(), texts(), P, S, Rules("free", 2, 5), uniforms(S + 5, R))
    a = settings("--baseline", "none", "--think_cost", "0.5") | {"samples": R, "gamma": 0.0}
    _, felt, returns = advantages(a, ro, torch.zeros(R, S))
    wanted, chosen = torch.zeros(R, S), 0
    for row in range(R):
        spoken = 0
        for i in range(P, ro.ids.shape[1]):
            if ro.is_think[row, i]:
                wanted[row, spoken] -= 0.5
            chosen += bool(ro.is_think[row, i] or ro.gated[row, i])
            spoken += bool(ro.is_text[row, i])
    assert (returns - wanted).abs().max() < 1e-6 and (wanted < 0).any() and felt == chosen


def test_a_pull_is_a_cost(tiny, uniforms):
    """Guards --pull: each thought takes its own drift, times the pull, off its own slot."""
    a = settings("--model", "pico", "--alphabet", "text", "--pull", "0.5") | {"gamma": 0.0}
    ro = rollout(tiny(), texts(), P, S, Rules("free", 2, 5), uniforms(S + 5, R))
    far = torch.rand(R, ro.ids.shape[1] - P) * ro.is_think[:, P:]
    wanted = torch.zeros(R, S)
    for row in range(R):
        for i in range(P, ro.ids.shape[1]):
            wanted[row, int(ro.slot[row, i].clamp(P - 1, P + S - 2)) - P + 1] -= 0.5 * far[row, i - P]
    assert (advantages(a, ro, torch.zeros(R, S), far)[2] - wanted).abs().max() < 1e-6 and (wanted < 0).any()


def test_alphabets_of_a_run(tmp_path):
    """Guards what --alphabet gives a run: as many rows as words, whatever is drawn, and a base that is what it started from,
    after a restart as well."""
    a = settings("--model", "pico", "--alphabet", "text", "--pull", "0.5") | {"out": ""}
    model = train.setup(a, None)[0]
    base = train.load_base(a)
    assert a["think_vocab"] == len(model.think) == base.config.vocab_size == 19 and not len(base.think)
    assert torch.equal(model.think, base.wte.weight) and torch.equal(model.wte.weight, base.wte.weight)
    redrawn = settings("--model", "pico", "--alphabet", "redrawn") | {"out": ""}
    rows = [train.setup(redrawn | {"seed": seed}, None)[0].think for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2]) and train.load_base(settings()) is None


def test_text_weights():
    """Guards the weights of text: 1 over what pays, OTHER_TEXT over the rest, 0 for the frontier."""
    pays = torch.tensor([[True, False, False], [True, False, True]])
    a, r = {"answer_grad": "on"}, torch.zeros(2, 3)
    third, other = 1 / 3, train.OTHER_TEXT / 3
    assert text_weights(a, r, pays, None).flatten().tolist() == pytest.approx([third, other, other, third, other, third])
    frontier = torch.tensor([[False, False, False], [False, False, True]])
    assert text_weights(a, r, pays, frontier).flatten().tolist() == pytest.approx([third, other, other, third, other, 0])
    assert text_weights({"answer_grad": "off"}, r, pays, None)[pays].sum() == 0
    assert text_weights(a, r, None, None).flatten().tolist() == pytest.approx([1 / 6] * 6)


def test_stages():
    """Guards the curriculum: on after five steps that are good enough, 95 % in the first stage and 85 % later, never back, and
    never past the last."""
    state, right = {"stage": 1, "accuracy": 0.0, "in_stage": 0}, torch.ones(8, dtype=torch.bool)
    seen = []
    for _ in range(60):
        advance(state, right, 3)
        seen.append(state["stage"])
    # 1 - 0.8^n > 0.95 after 14 steps; 1 - 0.5 * 0.8^n > 0.85 after 6
    assert seen.index(2) == 13 and seen.index(3) == 19 and max(seen) == 3
    state = {"stage": 1, "accuracy": 0.9, "in_stage": 9}
    advance(state, right[:0], 3)  # no answer says nothing
    assert state == {"stage": 1, "accuracy": 0.9, "in_stage": 10}
    advance(state, ~right, 3)
    assert state["accuracy"] == pytest.approx(0.72) and state["stage"] == 1


def test_all_balls_have_a_narrower_window():
    """Guards that a thought is needed after one move already; what is said stands, and a --thinker's pupil sees everything."""
    assert settings("--balls", "all")["window"] == 4 and settings()["window"] == 5
    assert settings("--balls", "all", "--window", "5")["window"] == 5
    assert settings("--balls", "all", "--thinker", "x")["window"] == 0
    assert [settings("--thinker", "x", "--thoughts", kind)["steps"] for kind in ("tokens", "continuous")] == [1500, 3000]


def test_harder_worlds_climb_strictly():
    """Guards the default: ids in worlds with more to tell apart have a strict curriculum and the steps for it; nobody is overruled."""
    for flags in (["--cups", "5"], ["--balls", "all"], ["--idle", "0.4"], ["--cups", "6", "--moves", "turns"]):
        a = settings(*flags)
        assert (a["curriculum"], a["steps"]) == ("strict", 12000)
        assert settings(*flags, "--curriculum", "on")["curriculum"] == "on"
        assert settings(*flags, "--curriculum", "on")["steps"] == 1600 and settings(*flags, "--steps", "7")["steps"] == 7
        assert settings(*flags, "--thinker", "x")["curriculum"] == "off"
    for flags in ([], ["--cups", "5", "--thoughts", "continuous"]):
        assert settings(*flags)["curriculum"] == "on"


def test_strict_stages_are_longer_and_surer():
    """Guards CLIMB: the share that is enough, over how many steps, in the first stage and in later ones."""
    for stage, share, passed in ((1, 0.97, {"on"}), (1, 1.0, {"on", "strict"}), (2, 0.9, {"on"}), (2, 0.96, {"on", "strict"})):
        right = torch.arange(100) < 100 * share
        for how in ("on", "strict"):
            state = {"stage": stage, "accuracy": 0.0, "in_stage": 0}
            steps = next((i for i in range(1, 200) if advance(state, right, 3, how) or state["stage"] > stage), None)
            assert (steps is not None) == (how in passed)
            assert steps is None or steps >= train.CLIMB[how].steps


def test_a_strict_stage_does_not_begin_again(monkeypatch):
    a, right = settings("--idle", "0.4"), torch.zeros(8, dtype=torch.bool)
    begun = []
    monkeypatch.setattr(train, "begin_again", lambda *args: begun.append(args))
    for how in ("strict", "on"):
        state = {"step": 900, "stage": 2, "accuracy": 0.1, "in_stage": 700, "end": 1600, "wanted": False}
        train.climb(a | {"curriculum": how}, None, None, Rules("forced"), state, 2, right)
        assert len(begun) == (how == "on")


def test_the_end_of_a_curriculum():
    """Guards the end: over given stories a run goes on for some steps once its last stage is learnt, but for one that was told
    with --resume --steps N where to end."""
    a, right = settings("--swaps", "2"), torch.ones(8, dtype=torch.bool)
    for wanted, end, how in ((False, 500, "on"), (True, 1600, "on"), (False, 1700, "strict")):
        state = {"step": 100, "stage": 2, "accuracy": 0.9, "in_stage": 9, "end": 1600 + 100 * (how == "strict"), "wanted": wanted}
        train.climb(a | {"curriculum": how}, None, None, Rules("forced"), state, 2, right)
        assert state["end"] == end


def test_own_text_as_a_choice(tiny, uniforms):
    """Guards --text_grad sampled: own text is chosen as thoughts are, and counts where what was chosen is counted."""
    ro = rollout(tiny(), texts()[:, :P], P, S, Rules("free", 2, 5), uniforms(S + 5, R))
    a = {"thinker": None, "thoughts": "tokens", "think_cost": 0.0, "gamma": 0.0, "samples": R, "baseline": "none"}
    felt = [advantages(a | {"text_grad": how}, ro, torch.zeros(R, S))[1] for how in ("exact", "sampled")]
    assert felt[0] == (ro.is_think | ro.gated).sum() and felt[1] == (ro.is_think | ro.is_text)[:, P:].sum() > felt[0]


def test_shape_of_a_step():
    """Guards the lengths: a rollout is just long enough for a round of the stage; a batch holds no fewer than 128 rows, and no
    fewer than 64 once the curriculum is at its end, or where a teacher judges."""
    a = settings("--prompts", "32", "--samples", "8", "--new_tokens", "48")
    assert shape_of_step(a, True, {"stage": 1, "step": 1}) == (1, 8, 9, 32)
    assert shape_of_step(a, True, {"stage": 4, "step": 1}) == (4, 14, 17, 18)
    assert shape_of_step(a, True, {"stage": 4, "step": 2}) == (4, 14, 9, 18)
    assert shape_of_step(a, True, {"stage": 30, "step": 1}) == (30, 48, 17, 16)
    assert shape_of_step(a, True, {"stage": a["swaps"], "step": 1}) == (a["swaps"], 26, 17, 9)
    assert shape_of_step(a | {"teacher": "pico"}, True, {"stage": 30, "step": 1}) == (30, 48, 17, 8)
    assert shape_of_step(a | {"curriculum": "off"}, True, {"stage": 1, "step": 1}) == (None, 48, 17, 32)
    assert shape_of_step(a, False, {"stage": 1, "step": 2}) == (None, 48, 17, 32)


def test_entropy_fades():
    """Guards crisp thoughts: the bonus is whole for three quarters of a run and gone at its end; its target is twice as broad
    in the first stage."""
    a = {"entropy": 0.25, "think_vocab": 16, "thoughts": "tokens"}
    assert entropy_scale(a, 10, 100, 2) == (1.0, pytest.approx(0.25 * math.log(16)))
    assert entropy_scale(a, 90, 100, 1) == (pytest.approx(0.4), pytest.approx(0.5 * math.log(16)))


def test_each_gradient_is_of_its_own_step(tmp_path, monkeypatch):
    """Guards zero_grad, the warm-up and the clip: no step sees an older gradient, and rates rise from the first step on."""
    rates, real = [], train.gradient_pass
    monkeypatch.setattr(journal, "draw_curves", lambda out: None)
    monkeypatch.setattr(journal, "evaluate", lambda *a, **kind: (lambda out, ro: ({"nats_without_thoughts": 1.0, **out}, ro))(
        *free_text(*a[:4], 2, a[4], 6)))
    optimizers, make = [], train.make_optimizer
    monkeypatch.setattr(train, "make_optimizer", lambda *a: optimizers.append(make(*a)) or optimizers[-1])

    def looked_at(a, model, *more):
        assert all(p.grad is None for p in model.parameters())
        rates.append([group["lr"] / group["peak"] for group in optimizers[-1].param_groups])
        return real(a, model, *more)
    monkeypatch.setattr(train, "gradient_pass", looked_at)
    monkeypatch.setattr("sys.argv", ["train.py", "--approach", "stream", "--steps", "4", "--warmup", "2", "--prompts", "2",
                                     "--samples", "2", "--think_vocab", "16", "--out", str(tmp_path), "--eval_every", "4"])
    train.main()
    assert rates == [[pytest.approx(x)] * 2 for x in (0.5, 1.0, 1.0, 1.0)]
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["kind"] for x in lines] == ["eval", "step", "step", "step", "step", "eval"]


def test_no_idle_thoughts(tiny):
    """Guards what a step leaves out: places for thoughts that no slot will hold; rereading, thoughts that would look back
    beyond the longest round of the stage."""
    text = torch.tensor([[0, 1, 2, 1, 3, 1], [0, 1, 2, 2, 3, 1]])
    rules = Rules("forced", 1, 5, think_after=[1])
    assert rules_of_step(tiny(), rules, text, 2, 4, None).budget == 2
    assert rules_of_step(tiny(), Rules("free", 1, 5, think_after=[1]), text, 2, 4, None).budget == 5
    branch = Rules("forced", 4, 4, persist=False, reread=2)
    assert [rules_of_step(tiny(), branch, text, 2, 4, stage).max_thoughts for stage in (1, 2, 3, 9, None)] == [2, 3, 4, 4, 4]


def test_rows_that_are_there_are_kept(tmp_path):
    """Guards a start from a grown model: its thinking rows stay as they are, and their gate starts at the prior where thinking
    is asked for; another number of rows is refused."""
    a = settings("--width", "16", "--think_vocab", "8") | {"out": ""}
    model = train.setup(a, None)[0]
    train.save(tmp_path / "base.pt", train.as_checkpoint(model))
    free = a | {"model": str(tmp_path / "base.pt"), "think": "free", "think_prior": 0.9}
    again, _, data, rules = train.setup(free, None)
    assert torch.equal(again.think, model.think) and rules.think == "free"
    ids = torch.from_numpy(data.batch(16, a["prompt_tokens"] + a["new_tokens"], a["seed"], 0, "birth").ids)
    mask = visible_text(ids, rules.window)
    p = torch.sigmoid(gate_logit(again.logits(again(ids, mask=mask)), again.config.vocab_size))
    assert p[rules.table(again)[ids]].mean().item() == pytest.approx(0.9, rel=0.01)
    with pytest.raises(ValueError, match="8 thinking rows"):
        train.setup(free | {"think_vocab": 9}, None)


def test_when_it_thinks(tiny):
    """Guards the shares of a model that thinks on its own: every thought is counted once, after its own move."""
    cups, rules = Cups(3), Rules("free", 1, 40, 5, Cups(3).think_after)
    ids, n, pays, roomy, u = story_set(cups, rules, 2, 0, "cpu")
    model = tiny(V=len(cups.text_ids), n_ctx=256)
    sharp = u.clone()
    for moved_only in (False, True):
        follow = [cups.follow(row) for row in ids.tolist()]
        ro = rollout(model, ids, OPENING, ids.shape[1] - OPENING, replace(roomy, think="forced"), sharp, 0.0)
        if moved_only:  # as if thoughts after moves of other cups had not been
            ball = [[b for b, _ in row] for row in follow]
            still = torch.tensor([[ball[r][s] == ball[r][s - 1] for s in row] for r, row in enumerate(ro.slot.tolist())])
            ro.is_think &= ~still
        out = when_it_thinks(model, cups, roomy, ro, pays)
        assert out["thinks_after_moved"] == 1.0 and out["thinks_elsewhere"] == (0.0 if moved_only else 1.0)
        if not moved_only:
            assert out["thoughts_by_n"] == [float(k) for k in range(1, 31)]


def test_what_it_thinks_about(tiny):
    """Guards the same for branches: forced after " Where ?" alone, thoughts stand before answers alone; everywhere, before all."""
    cups = Cups(3)
    ids, _, pays, roomy, u = story_set(cups, Rules("forced", 2, 2, 5, [cups.id["?"]], persist=False), 1, 0, "cpu")
    for after, elsewhere in (([cups.id["?"]], 0.0), (None, 1.0)):
        ro = rollout(tiny(V=len(cups.text_ids), n_ctx=256), ids, OPENING, ids.shape[1] - OPENING, replace(roomy, think_after=after),
                     u, 0.0)
        assert what_it_thinks_about(ro, pays[:, OPENING:]) == {"thinks_before_answers": 1.0, "thinks_elsewhere": elsewhere}


def test_a_stage_that_does_not_end_begins_again(tmp_path, monkeypatch):
    """Guards the second chance of `stream`: after PATIENCE steps in a stage the weights are other ones, as new ones would be, and
    the stage is the first; and a curriculum that is at its end brings the end of the run nearer."""
    a = settings("--steps", "9", "--width", "8", "--think_vocab", "4", "--swaps", "2", "--eval_every", "9") | {"out": ""}
    monkeypatch.setattr(train, "PATIENCE", 3)
    monkeypatch.setattr(train, "CLIMB", {"on": train.Climb(0.95, 0.85, 5, 1)})
    monkeypatch.setattr(journal.Journal, "measure", lambda self, *rest: self.evals.append({"nats_without_thoughts": 0.0}))
    monkeypatch.setattr(journal, "draw_curves", lambda out: None)
    monkeypatch.setattr(journal, "report", lambda *ends: None)
    begun, real = [], train.begin_again

    def spy(a, model, optimizer, state):
        real(a, model, optimizer, state)
        fresh = train.setup(a | {"seed": a["seed"] + 10_000 * state["attempt"]}, None)[0]
        begun.append((state["step"], state["end"], all(torch.equal(p, q) for p, q in zip(model.parameters(), fresh.parameters()))))

    def three_stages(state, right, last, curriculum):  # four steps in stage 2, again stage 1, then the last one and all right
        state["in_stage"] += 1
        state |= {"stage": last, "accuracy": 1.0} if begun else {}
    monkeypatch.setattr(train, "begin_again", spy)
    monkeypatch.setattr(train, "advance", three_stages)
    model, teacher, data, rules = train.setup(a | {"swaps": 3}, None)
    saved = train.whole_run(a, model, rules, {"step": 0, "stage": 2, "accuracy": 0.0, "in_stage": 0, "dead": 0, "skipped": 0, "in_a_row": 0,
                                              "end": 9, "born": 0, "attempt": 0}, train.make_optimizer(a, model, None))
    train.train(a | {"swaps": 3}, saved, tmp_path, model, teacher, data, rules)
    assert begun == [(4, 4 + 9, True)]  # with steps of its own
    steps = [json.loads(x)["stage"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 2, 2, 1, 3, 3, 3]  # in the sixth step it is in the last stage, and one more is left
