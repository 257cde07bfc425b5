"""What a GPU would mind, without a GPU.

Tensors on torch's device `meta` have a shape and no numbers. So each operation that needs a number
fails there: these are the places where a GPU is waited for. Most operations that mix devices fail
as well.

Left out on purpose: speed, and what only a GPU can show.
"""
from dataclasses import replace

import pytest
import torch

from conftest import AFTER, P, R, S, V, luck, texts
from data import plain
from fast import unembed
from model import GPT, Config
from rollout import SAMPLED, Rules, stepwise


@pytest.fixture
def on_meta(monkeypatch):
    """A model on a device without numbers. torch knows no autocast for it."""
    real = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled",
                        lambda kind="cpu": kind != "meta" and real(kind))
    return GPT(Config(2, 2, 16, 64, V, 8)).to("meta")


@pytest.mark.parametrize("think", ["free", "forced", "never"])
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("given", [P, P + S])
@pytest.mark.parametrize("continuous", [False, True])
def test_a_rollout_never_waits(on_meta, think, window, given, continuous):
    """Guards the speed of a GPU: no place of a rollout asks for a number that it has just made, and
    all tensors are where the model is."""
    rules = Rules(think, 1, 4, window, AFTER, continuous=continuous)
    text = replace(plain(texts()[:, :given], P, S), siblings=2).to("meta")
    u = luck()(S + 4, R).to("meta")
    ro = stepwise(on_meta, text, rules, u, SAMPLED, None)
    assert ro.h.device.type == "meta" and ro.ids.shape == (R, P + S + 4)


def test_the_guard_sees_waits(on_meta):
    """Guards the guard: a number that is asked for, and two devices in one sum."""
    h = on_meta(torch.zeros(1, 2, dtype=torch.long, device="meta"))
    for wrong in (lambda: h.sum().item(), lambda: (h > 0).nonzero(), lambda: h + torch.zeros(16)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()


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
