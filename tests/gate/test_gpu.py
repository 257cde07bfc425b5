"""What a GPU would mind, without a GPU.

Two stand-ins. Tensors on torch's device `meta` have a shape and no numbers, so each operation that
needs a number fails there. The tensors of far.py say that they are on `meta` and have their
numbers. With them all runs to its end and must give what the CPU gives.

Then what a CPU can show of compiled rollouts and of tests/gpu.py.

Left out on purpose: gradients, speed, and what only a GPU can show.
"""
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from conftest import AFTER, P, R, S, V, luck, settings, texts
from data import Cups, plain
from evaluate import evaluate
from far import Device, Far, far_model
from fast import sampler_of, unembed
from model import GPT, Config
from next_token import at_once, gate_at, layout, roll, states
from reward import advantages, less_likely, rarity_of, score, sibling_spread, text_weights
from rollout import GREEDY, SAMPLED, Rules, naive_rollout, rollout, stepwise, visible_text

ROOT = Path(__file__).resolve().parent.parent.parent
BRANCHES = [Rules("free", 2, 2, 3, persist=False), Rules("forced", 2, 2, 0, AFTER, persist=False),
            Rules("free", 3, 3, 3, persist=False, reread=1),
            Rules("free", 2, 2, 0, persist=False, continuous=True)]


@pytest.fixture
def no_autocast(monkeypatch):
    """torch knows no autocast for `meta`."""
    real = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled",
                        lambda kind="cpu": kind != "meta" and real(kind))


@pytest.fixture
def on_meta(no_autocast):
    """A model on a device without numbers."""
    return GPT(Config(2, 2, 16, 64, V, 8)).to("meta")


@pytest.fixture
def device(no_autocast):
    """A device with numbers, for the whole of a test."""
    with torch.no_grad(), Device() as device:
        yield device


def some_text(given=P + S):
    """Two texts, each for two siblings."""
    return plain(texts(R // 2)[:, :given], P, S).repeat(2)


def waits_of(device, task):
    """-> what the task gives, and which functions waited for the device how often."""
    device.waits.clear()
    out = task()
    return out, dict(device.waits)


def same(far, near, most=1e-9) -> bool:
    """Far numbers as those of the CPU; whole numbers and flags to the bit."""
    if not isinstance(near, Tensor):
        return far == near
    assert isinstance(far, Far) and far.dtype == near.dtype and far.shape == near.shape
    if not near.is_floating_point():
        return torch.equal(far.near, near)
    return torch.allclose(far.near, near, rtol=most, atol=most)


def same_rows(far, near) -> bool:
    return all(same(getattr(far, f.name), getattr(near, f.name)) for f in fields(near))


@pytest.mark.parametrize("think", ["free", "forced", "never"])
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("given", [P, P + S])
@pytest.mark.parametrize("continuous", [False, True])
def test_a_rollout_never_waits(on_meta, think, window, given, continuous):
    """Guards the speed of a GPU: no place of a rollout asks for a number that it has just made, and
    all tensors are where the model is."""
    rules = Rules(think, 1, 4, window, AFTER, continuous=continuous)
    text = some_text(given).to("meta")
    u = luck()(S + 4, R).to("meta")
    ro = stepwise(on_meta, text, rules, u, SAMPLED, None)
    assert ro.h.device.type == "meta" and ro.ids.shape == (R, P + S + 4)


def test_the_guard_sees_waits(on_meta):
    """Guards the guard: a number that is asked for, and two devices in one sum."""
    h = on_meta(torch.zeros(1, 2, dtype=torch.long, device="meta"))
    for wrong in (lambda: h.sum().item(), lambda: (h > 0).nonzero(), lambda: h + torch.zeros(16)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()


# With numbers

@pytest.mark.parametrize("wrong", [
    lambda x: x.sum().item(), lambda x: bool(x[0, 0] > 1), lambda x: x.tolist(), lambda x: x.cpu(),
    lambda x: torch.equal(x, x), lambda x: (x > 2).nonzero(), lambda x: x[x > 2],
    lambda x: x.masked_select(x > 2), lambda x: x.unique(), lambda x: x[[0, 1]],
    lambda x: x[torch.tensor([1])], lambda x: x[0].repeat_interleave(x[1].long()),
    lambda x: x.copy_(torch.zeros(2, 3)), lambda x: torch.tensor([1], device=x.device),
    lambda x: x.index_put_((x > 2,), x[x > 2])])
def test_the_device_sees_waits(device, wrong):
    """Guards the guard: each way to ask for a number, for a shape, or for a copy."""
    x = torch.arange(6.0).view(2, 3).to("meta")
    device.waits.clear()
    wrong(x)
    assert device.waits["a test"] > 0


@pytest.mark.parametrize("wrong", [
    lambda x, here: x + here, lambda x, here: here.add_(x),
    lambda x, here: here[0, 0].add_(x[0, 0]),
    lambda x, here: x @ here.T, lambda x, here: F.linear(x, here), lambda x, here: x * here[:1],
    lambda x, here: x.gather(1, here.long()), lambda x, here: F.embedding(here.long(), x),
    lambda x, here: torch.cat([x, here]), lambda x, here: torch.where(x > 0, x, here),
    lambda x, here: x.index_select(0, here[0].long()), lambda x, here: here[x.long()],
    lambda x, here: torch.matmul(x, x.T, out=here.new_empty(2, 2))])
def test_the_device_sees_a_mix(device, wrong):
    """Guards the guard: what is far and what is near in one operation, as an index, as a weight or
    as what is written into."""
    with pytest.raises(RuntimeError, match="two devices"):
        wrong(torch.arange(6.0).view(2, 3).to("meta"), torch.zeros(2, 3))


def test_the_device_lets_right_things_pass(device):
    """Guards the guard from the other side: single numbers of the CPU, writes in place and into
    views, flags as numbers. None of them waits, and all of them end in the same memory."""
    x = torch.zeros(2, 3, device="meta")
    out, row = torch.empty(2, 2, device="meta"), x[1]
    device.waits.clear()
    assert x.add_(1) is x and row.mul_(torch.tensor(3.0)) is row
    x[:, 0] = 5
    x[x == 1] = 7
    assert torch.matmul(x, x.T, out=out) is out
    assert not device.waits
    assert x.tolist() == [[5, 7, 7], [5, 3, 3]] and out.tolist() == [[123, 67], [67, 43]]


@pytest.mark.parametrize("think", ["free", "forced", "never"])
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("given", [P, P + 2, P + S])
@pytest.mark.parametrize("continuous", [False, True])
def test_a_far_rollout(device, tiny, think, window, given, continuous):
    """Guards a rollout on a GPU: the rows of the CPU, and few waits, however many places there are.
    They are the uniforms, the list of words after which it may think, and with a plan the
    places of thoughts."""
    rules, text = Rules(think, 1, 4, window, AFTER, continuous=continuous), some_text(given)
    near, far, there = tiny(), far_model(tiny()), text.to("meta")
    ro, waits = waits_of(device, lambda: rollout(far, there, rules, luck()))
    planned = think != "free" and text.given
    assert waits == ({"rollout": 1, "table": 1, "planned": 2} if planned else
                     {"rollout": 1, "table": 2})
    want = rollout(near, text, rules, luck())
    assert same_rows(ro, want)
    again, waits = waits_of(device, lambda: states(far, ro, rules))
    assert set(waits) <= {"one_by_one"} and same(again, states(near, want, rules))
    if not continuous:
        assert naive_rollout(far, there, rules, luck()(S + 4, R).to("meta")) == ro.kept()
    if continuous:  # as a GPU does it
        h, waits = waits_of(device, lambda: at_once(far, ro, rules, *layout(ro, rules)))
        assert waits == {"at_once": 1}
        assert same(h, at_once(near, want, rules, *layout(want, rules)))
    p, waits = waits_of(device, lambda: gate_at(far, ro))
    assert not waits and same(p, gate_at(near, want))


@pytest.mark.parametrize("rules", BRANCHES, ids=repr)
def test_far_branches(device, tiny, rules):
    """Guards thoughts that are forgotten on a GPU: the rows of the CPU, and as few waits for two
    thoughts as for three."""
    near, far, text = tiny(offset=2.0), far_model(tiny(offset=2.0)), some_text()
    there = text.to("meta")
    ro, waits = waits_of(device, lambda: roll(far, there, rules, luck()))
    listed = {"table": 1} if rules.think_after else {}
    assert waits == {"branches": 1, "branch_layout": 1, **listed}
    want = roll(near, text, rules, luck())
    assert same_rows(ro, want) and want.is_think.any()
    assert same(states(far, ro, rules), states(near, want, rules))


def test_far_own_text_in_branches(device, tiny):
    """Guards own text after thoughts that are forgotten: the rows of the CPU. It waits at each
    token, in `speak_by_branches` and in what that calls."""
    rules, text = BRANCHES[0], some_text(P)
    far, there = far_model(tiny()), text.to("meta")
    ro, waits = waits_of(device, lambda: roll(far, there, rules, luck()))
    assert set(waits) == {"speak_by_branches", "branch_layout"}
    assert same_rows(ro, roll(tiny(), text, rules, luck()))


@pytest.mark.parametrize("rules", [Rules("free", 2, 4), Rules("forced", 1, 4, 3, AFTER),
                                   BRANCHES[0]], ids=repr)
@pytest.mark.parametrize("teacher, sampled", [(False, False), (True, False), (True, True)])
def test_far_rewards(device, tiny, rules, teacher, sampled):
    """Guards reward.py on a GPU: the numbers of the CPU. Rewards wait for nothing. Advantages wait
    for which places were choices and for how many thoughts there are. The rarity waits for
    the thoughts' places, and for whether enough rows are in use."""
    s = settings(prompts=2, samples=2, curriculum="on")
    found = []
    for there in (True, False):
        move = far_model if there else lambda model: model
        text = some_text().to("meta" if there else "cpu")
        model, judge = move(tiny(offset=2.0)), move(tiny(9)) if teacher else None
        ro = roll(model, text, rules, luck())
        scores, a = waits_of(device, lambda: score(model, ro, text.pays, judge, sampled))
        credit, b = waits_of(device, lambda: advantages(
            scores.r, ro, replace(text, stage=1), s))
        rarity, c = waits_of(device, lambda: rarity_of(model, ro))
        weight, d = waits_of(device, lambda: text_weights(text, s, scores.r))
        spread, e = waits_of(device, lambda: sibling_spread(credit.returns, 2, text.pays))
        # any number that siblings share does as a level
        wide, f = waits_of(device, lambda: less_likely(scores.r, text.ids[:, 0], 2))
        assert [a, b, c, d, e, f] == ([{}, {"advantages": 2}, {"rarity_of": 2},
                                       {"text_weights": 2}, {"sibling_spread": 2}, {}]
                                      if there else [{}] * 6)
        found.append([*scores, *credit, rarity, weight, round(spread, 9), wide])
    assert all(map(same, *found)) and credit.thoughts and credit.widen is not None


@pytest.mark.parametrize("window", [0, 3])
def test_far_birth(device, tiny, window):
    """Guards thinking rows that are born on a GPU: the rows and the gate of the CPU. `grow` waits
    for its noise, which is drawn on the CPU. `fit_gate` waits for the gaps, then bisects there."""
    (far, near), ids = (tiny(N=0, dtype=torch.float32) for _ in "ab"), texts()
    far = far_model(far)
    there = ids.to("meta")
    masks = [visible_text(x, Rules(window=window)) for x in (there, ids)]
    p, waits = waits_of(device, lambda: far.grow(7, there, 0.3, generator(), masks[0]))
    assert waits == {"grow": 1, "fit_gate": 1}
    assert p == pytest.approx(near.grow(7, ids, 0.3, generator(), masks[1]), abs=1e-4)
    assert same(far.think, near.think, 1e-4) and same(far.gate_bias, near.gate_bias, 1e-4)
    p, waits = waits_of(device, lambda: far.fit_gate(there, 0.2, masks[0], there > 4))
    assert waits == {"fit_gate": 2}  # and for which places count
    assert p == pytest.approx(near.fit_gate(ids, 0.2, masks[1], ids > 4), abs=1e-4)


def generator():
    return torch.Generator().manual_seed(0)


def test_far_evaluation(device, tiny):
    """Guards evaluate.py on a GPU, with data.py's own questions: it comes to the same numbers. It
    may wait as often as it likes."""
    source, found = Cups(), []
    s = settings(prompt_tokens=17, new_tokens=12, curriculum="off")
    rules = Rules("free", 1, 4, 5, source.think_after("stream", "free"))
    for move in (far_model, lambda model: model):
        model, teacher = (move(tiny(seed, V=len(source.text_ids), n_ctx=256, L=1))
                          for seed in (0, 9))
        found.append(evaluate(model, source, rules, s, teacher, 1))
    (far, rows), (near, want) = found
    assert rows == want and far.keys() == near.keys()
    assert all(far[k] == pytest.approx(near[k], abs=1e-6, nan_ok=True) for k in near)


# What a CPU can show of the rest

def test_head_in_full_precision():
    """Guards log-probs under autocast. GPT-2's logits lie near -100, where neighbours in bfloat16
    are half a nat apart. Siblings differ by hundredths."""
    torch.manual_seed(0)
    h, rows = torch.randn(8, 32) - 2, torch.randn(50, 32) + 1.5
    exact = (h.double() @ rows.double().T).log_softmax(-1)
    assert (h @ rows.T).mean() < -80
    with torch.autocast("cpu", torch.bfloat16):
        ours, rounded = unembed(h, rows), h @ rows.T
    assert ours.dtype == torch.float32
    assert (ours.double().log_softmax(-1) - exact).abs().max() < 1e-3
    assert (rounded.double().log_softmax(-1) - exact).abs().max() > 0.1


@pytest.fixture(scope="module")
def compiles() -> bool:
    """Does torch.compile get through here? It wants a C++ compiler. (The settings ask as well.)"""
    return settings(compile="on").compile == "on"


def test_a_compiled_rollout(tiny, compiles):
    """Guards the compiled sampler: the greedy ids of the eager one. A place is one graph without a
    break, and neither a second rollout nor another offset compiles it again."""
    if not compiles:
        pytest.skip("torch.compile does not run here: is there a C++ compiler?")
    model, rules = tiny(dtype=torch.float32), Rules("free", 1, 4, 3, AFTER)
    sampler = sampler_of(model, torch.float32, True)
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for offset in (0, 0, 7):
        text = replace(some_text(P), offset=offset)
        ours, eager = (rollout(x, text, rules, luck(), GREEDY) for x in (sampler, model))
        assert torch.equal(ours.ids, eager.ids) and (ours.h - eager.h).abs().max() < 1e-4
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1, 1, 1] and not counters["graph_break"]
    torch._dynamo.reset()


def test_gpu_py_runs(tmp_path, compiles):
    """Guards tests/gpu.py, which else runs only where there is a GPU: all its sections but the
    command line's, tiny. `place` wants a compiler."""
    names = ["limits", "right", "precision", "step", *["place"] * compiles]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "gpu.py", "--quick", "--only", *names, "--out",
         tmp_path / "x.json"], capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["failed"] == [] and {*names, "machine"} < found.keys()
    assert len(found["checks"]) > 20 and all(x["ok"] for x in found["checks"].values())
