"""lab/distil.py: thoughts that are given, by another model or by the truth, and learned."""
import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import train
from conftest import AFTER, P, S, V, luck, refuses, run, settings, texts
from data import Cups, plain
from lab import distil
from lab.distil import distance, oracle_rows, student_states, truth
from next_token import roll, states
from rollout import Rules, states_at, visible
from run import open_run


def by_hand(model, ro, r, rules, fed):
    """Row r, place by place: the whole prefix again for each place, and a thought's input is the
    vector that stands there. -> [n, C]"""
    ids, hs = ro.kept()[r], []
    inputs = [fed[r, i] if token >= V else model.wte.weight[token] for i, token in enumerate(ids)]
    for i in range(len(ids)):
        x = (torch.stack(inputs[:i + 1]) + model.wpe.weight[ro.offset:ro.offset + i + 1])[None]
        mask = visible(torch.tensor([ids[:i + 1]]) >= V, rules)
        mask = torch.ones(1, 1, i + 1, i + 1).tril().bool() if mask is None else mask
        for block in model.h:
            x = block(x, mask, None, None)
        hs.append(model.ln_f(x)[0, -1])
    return torch.stack(hs)


@pytest.mark.parametrize("K", [1, 2])
def test_vectors_that_are_given(tiny, K):
    """Guards continuous thoughts of a thinker. Another model reads its vectors, under a mask of its
    own, as a loop place by place would. It is drawn to them by the squared distance of its own. A
    model that is its own thinker is where it should be."""
    thinker, model = tiny(N=1), tiny(N=1, seed=5)
    rules = Rules("forced", K, 5, 3, AFTER, continuous=True)
    ro = roll(thinker, plain(texts(), P, S, offset=2), rules, luck())
    fed, real = states_at(ro.h, ro.chosen_at), ro.is_think | ro.is_text
    itself = student_states(thinker, ro, rules, fed)
    assert (itself - ro.h)[:, :-1][real[:, :-1]].abs().max() < 1e-9
    assert distance(itself, ro, fed) < 1e-12
    wide, wanted = Rules("forced", K, 5, 0, AFTER, continuous=True), 0.0
    h = student_states(model, ro, wide, fed)
    for r, ids in enumerate(ro.kept()):
        naive = by_hand(model, ro, r, wide, fed)
        assert (h[r, :len(ids)] - naive).abs().max() < 1e-9
        at = [i for i, token in enumerate(ids) if token >= V]
        wanted = wanted + sum(((naive[i - 1] - ro.h[r, i - 1]) ** 2).mean() for i in at)
    assert ro.is_think.any() and (distance(h, ro, fed) - wanted).abs() < 1e-9


def test_ids_that_are_given(tiny):
    """Guards tokens of a thinker: the student reads them under its own mask, as `states` does."""
    thinker, model = tiny(), tiny(seed=5)
    rules, wide = Rules("forced", 1, 5, 3, AFTER), Rules("forced", 1, 5, 0, AFTER)
    ro = roll(thinker, plain(texts(), P, S), rules, luck())
    assert torch.equal(student_states(model, ro, wide, None), states(model, ro, wide))
    assert not torch.equal(states(model, ro, wide), states(model, ro, rules))


@pytest.mark.parametrize("game", [Cups(3), Cups(4, balls="all"), Cups(3, idle=0.4)])
def test_the_truth(tiny, game):
    """Guards the oracle: the thought after each move is the number of the state that a game moved
    by hand is in, thought by thought."""
    text = game.questions(1, 0).each(lambda x: x[::5])
    words, N = len(game.text_ids), len(game.states)
    model = tiny(V=words, N=N, n_ctx=256, dtype=torch.float32)
    rules = Rules("forced", 1, 36, 5, game.move_ids.tolist())
    ro = roll(model, text, rules, lambda *shape: luck()(*shape).float(),
              edit=truth(game, text, words))
    for row in ro.kept():
        spoken = []
        for i in row:
            if i >= words:
                where, _ = game.follow(spoken)[-1]
                assert list(game.states)[i - words] == where
            else:
                spoken.append(i)
    assert ro.is_think.sum() > 6 * 10
    assert N == oracle_rows({24: "cups m=4 balls=all"}.get(N, "cups idle=0.4"))
    refuses(lambda: oracle_rows("book.txt"), "cups")


def test_settings_of_a_pupil(tmp_path):
    """Guards GIVEN. Nothing is explored, so there are no siblings, no bonus, no stages and no
    window. Vectors take more steps; what was typed stands; and the oracle has a row per state."""
    for kind, given, steps in (("tokens", distil.GIVEN, 1500),
                               ("continuous", distil.VECTORS, 3000)):
        s = settings(**given, thoughts=kind)
        assert (s.window, s.curriculum, s.samples, s.baseline, s.steps) == (
            0, "off", 1, "none", steps)
        assert (s.prompts, s.new_tokens, s.lr) == (32, 40, 4e-3)
    typed = {"oracle": True, "out": str(tmp_path), "steps": 7, "data": "cups balls=all"}
    with ExitStack() as folder:
        student, thinker = distil.prepare(typed, folder)
    assert thinker is None and student.settings.steps == 7
    assert student.model.config.think_vocab == 6 and student.rules.think == "forced"
    for typed in ({}, {"oracle": True, "thinker": Path("x")}, {"oracle": True, "resume": True},
                  {"oracle": True, "thoughts": "continuous"},
                  {"oracle": True, "approach": "teacher"}, {"thinker": tmp_path / "none"}):
        refuses(lambda: distil.prepare({"out": str(tmp_path)} | typed, ExitStack()))


def test_from_thinker_to_pupil(quick, tmp_path, monkeypatch, capsys):
    """Guards the whole. A thinker is trained, its thoughts become likelier to a pupil that sees all
    text, and one that thinks by other rules is refused."""
    small = {"prompts": 2, "samples": 2, "think_vocab": 4, "steps": 2}
    train.train(train.setup(settings(**small, out=str(tmp_path / "thinker"))))
    argv = ["--thinker", tmp_path / "thinker", "--think_vocab", "4", "--prompts", "4"]
    pupil = [*argv, "--steps", "12", "--out", tmp_path / "pupil"]
    code, _, err = run(distil.main, pupil, monkeypatch, capsys)
    assert code == 0, err
    lines = (tmp_path / "pupil" / "metrics.jsonl").read_text().splitlines()
    steps = [x for x in map(json.loads, lines) if x["kind"] == "step"]
    assert len(steps) == 12 and all(x["skipped"] == 0 and x["thoughts"] > 0 for x in steps)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.1
    assert open_run(tmp_path / "pupil").rules.window == 0
    for wrong in (["--think", "free"], ["--think_vocab", "5"], ["--max_thoughts", "2"],
                  ["--out", tmp_path / "thinker"], ["--thoughts", "continuous"]):
        flags = [*argv, *wrong] if "--thoughts" not in wrong else [*argv[:2], *wrong]
        code, _, err = run(distil.main, ["--out", tmp_path / "other", *flags], monkeypatch, capsys)
        assert code == 2 and len(err.splitlines()) == 1, err
