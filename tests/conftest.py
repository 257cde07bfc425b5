"""What the tests share. Read them as a second tutorial, and start with test_1_tokenizer.py.

test_1 to test_9 go through the files in the order in which they build on each other. First text,
the model, and where text comes from. Then thoughts that stay, thoughts that are forgotten, what a
thought is worth, and whether the gradient is right. At last a run, and a sample. Each file opens
with what it teaches, and its first test is the simplest lesson. A test's docstring says what it
guards: what would go wrong unseen without it.

How they prove something. A fast function has a slow twin that is hard to get wrong: a loop, or a
sum over all that can happen. Both must agree to 1e-9. That is possible because models here are tiny
and random, in float64, where rounding is smaller than that. Random numbers are handed in (`luck`),
so both twins draw the same thoughts.

One SHAPE holds everywhere: R rows of P prompt tokens and S new ones, from a vocabulary of V words.
A thought may stand after the words AFTER.

All of it runs on the CPU, without a network, and repeats to the bit. tests/gate tries what people
and machines do to a run: wrong flags, full disks, kill -9. tests/lab tests lab/.
"""
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# with a GPU train.py would choose GPT-2 on WebText, and download both
os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest  # noqa: E402
import torch  # noqa: E402

from model import GPT, Config  # noqa: E402
from rollout import Rules  # noqa: E402
from run import Run  # noqa: E402
from settings import Settings, resolve  # noqa: E402

torch.set_num_threads(1)  # tiny products: a second thread costs more than it gives

SHAPE = R, P, S, V = 4, 3, 6, 11
AFTER = [1, 4, 6, 9]  # text ids whose slot may hold thoughts, of the 11


@pytest.fixture
def tiny():
    """A maker of small GPTs whose every weight is random, biases and layer norms too: a term that
    is left out shows. offset: of the gate."""
    def make(seed=0, offset=0.0, dtype=torch.float64, **shape) -> GPT:
        s = {"V": V, "N": 5, "L": 2, "H": 2, "C": 16, "n_ctx": 64} | shape
        generator = torch.Generator().manual_seed(seed)
        model = GPT(Config(s["L"], s["H"], s["C"], s["n_ctx"], s["V"], s["N"])).to(dtype)
        with torch.no_grad():
            for name, p in model.named_parameters():
                size = 0.6 if name in ("wte.weight", "wpe.weight", "think") else 0.25
                p.copy_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64))
                if ".ln_" in f".{name}" and name.endswith("weight"):
                    p.add_(1.0)
            model.gate_bias.fill_(offset)
        return model
    return make


@pytest.fixture(scope="session")
def full_size() -> GPT:
    """GPT-2's layers at their real shape, with random weights in float32, of which 64 are thinking
    rows. (Its vocabulary is cut, since that is no part of a layer.)"""
    with torch.device("meta"):
        model = GPT(Config(vocab_size=5000, think_vocab=64))
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(float("ln_" in name and name.endswith("weight")), 0.02, generator=generator)
    return model.requires_grad_(False)


@pytest.fixture
def uniforms():
    """A maker of [draws, R, 2] uniforms, in float64."""
    return numbers


def numbers(draws, R, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(draws, R, 2, generator=generator, dtype=torch.float64)


def luck(u=0):
    """A function like rollout.Luck. u: the uniforms [draws, R * each, 2] that it gives, or a seed
    for uniforms of the shape that is asked for."""
    def give(draws, R, each=1):
        if isinstance(u, int):
            return numbers(draws, R * each, u)
        assert len(u) >= draws and u.shape[1:] == (R * each, 2)
        return u[:draws]
    return give


def texts(rows=R, length=P + S, V=V, seed=1):
    """Random words, [rows, length]."""
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))


def in_sight(is_think: list[bool], rules: Rules, i: int, ends: list[bool]) -> set[int]:
    """What place i of a row looks at, by hand: the last thought, and what the window counts. ends:
    after which places a slot is open, so that a step ends there."""
    before, seen = range(i, -1, -1), set()
    if not rules.window:
        return set(before)
    if rules.counts == "places":
        seen = set(list(before)[:rules.window])
    elif rules.counts == "text":
        seen = set([j for j in before if not is_think[j]][:rules.window])
    else:  # back over the ends of steps; a thought stands behind the end of its own
        left = rules.window + is_think[i]
        for j in before:
            left -= ends[j] and j < i
            if not left:
                break
            seen.add(j)
    return seen | set([j for j in before if is_think[j]][:1])


def settings(**changes) -> Settings:
    """The settings of a small run of `stream` on cups, as train.py would resolve these flags."""
    return resolve({"approach": "stream", "prompts": 3, "samples": 4, **changes})


@pytest.fixture
def quick(monkeypatch):
    """Runs without questions and pictures, which take longer than the steps."""
    monkeypatch.setattr(Run, "measure", lambda self, whole: self.log.write(
        "eval", self.progress.step, {"nats_without_thoughts": 1.0}))
    monkeypatch.setattr(Run, "close", lambda self: None)


@pytest.fixture(autouse=True)
def keep_double(monkeypatch):
    """.float() stands in the code for the sake of bfloat16. Here it must not cut float64 down to
    float32."""
    cut = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float",
                        lambda x: x if x.dtype == torch.float64 else cut(x))


@pytest.fixture(autouse=True)
def keep_signals():
    """A run that is called as a function leaves its handlers behind; Ctrl-C must go on to end the
    tests."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


def one_line(error: pytest.ExceptionInfo) -> str:
    """An error for a person is one line, says something, and is no Python object's name."""
    text = str(error.value)
    assert text.strip() and "\n" not in text and len(text) < 600, text
    return text


def refuses(call, *words) -> str:
    """The call raises a ValueError of one line, with these words in it."""
    with pytest.raises(ValueError) as e:
        call()
    text = one_line(e)
    assert all(w in text for w in words), text
    return text


def run(main, argv, monkeypatch, capsys):
    """-> exit code (0 if main returned), stdout, stderr; in this process, which saves two seconds
    of imports each."""
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, argv)])
    code = 0
    try:
        main()
    except SystemExit as e:
        code = e.code
    out = capsys.readouterr()
    return code, out.out, out.err
