"""What the tests share: the path, the threads, and one small model.

The models of these tests are tiny and random, in float64: there, two ways to compute the same thing agree to 1e-9,
and what is off by more is a bug and no rounding. All of it runs offline, on the CPU, and repeats to the bit.
"""
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # with a GPU train.py would choose GPT-2 on WebText, and download both
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest  # noqa: E402
import torch  # noqa: E402

from model import Config, GPT  # noqa: E402

torch.set_num_threads(1)  # tiny products: a second thread costs more than it gives


@pytest.fixture
def tiny():
    """A maker of small GPTs whose every weight is random, biases and layer norms too: a term that is left out shows."""
    def make(V=11, N=5, L=2, H=2, C=16, n_ctx=64, seed=0, offset=0.0, dtype=torch.float64) -> GPT:
        luck = torch.Generator().manual_seed(seed)
        model = GPT(Config(L, H, C, n_ctx, V, N)).to(dtype)
        with torch.no_grad():
            for name, p in model.named_parameters():
                size = 0.6 if name in ("wte.weight", "wpe.weight", "think") else 0.25
                p.copy_(size * torch.randn(p.shape, generator=luck, dtype=torch.float64))
                if ".ln_" in f".{name}" and name.endswith("weight"):
                    p.add_(1.0)
            model.think_offset.fill_(offset)
        return model
    return make


@pytest.fixture
def uniforms():
    """A maker of [steps, R, 2] uniforms, in float64."""
    def make(steps, R, seed=0):
        return torch.rand(steps, R, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return make


@pytest.fixture(autouse=True)
def keep_double(monkeypatch):
    """.float() stands in the code for the sake of bfloat16. Here it must not cut float64 down to float32."""
    cut = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else cut(x))


@pytest.fixture(autouse=True)
def keep_signals():
    """A run that is called as a function leaves its handlers behind; Ctrl-C must go on to end the tests."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


def one_line(error: pytest.ExceptionInfo) -> str:
    """An error for a person is one line, says something, and is no Python object's name."""
    text = str(error.value)
    assert text.strip() and "\n" not in text and len(text) < 600, text
    return text


def run(main, argv, monkeypatch, capsys):
    """-> exit code (0 if main returned), stdout, stderr; in this process, which saves two seconds of imports each."""
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, argv)])
    code = 0
    try:
        main()
    except SystemExit as e:
        code = e.code
    out = capsys.readouterr()
    return code, out.out, out.err
