"""torchrun: two processes that share each step's contexts learn what one process learns.

Left out on purpose: more than one machine.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import load

ROOT = Path(__file__).resolve().parent.parent.parent
SHORT = ("--eval_every 20 --prompts 4 --samples 2 --think_vocab 16 --new_tokens 12").split()
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
COLUMNS = ("reward", "spread", "entropy", "thoughts", "grad_norm", "loss")


def start(how: list, argv: list, out: Path) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")}
    script = ROOT / "tests" / "gate" / "quick_train.py"
    return subprocess.run([sys.executable, *how, script, *argv, "--out", out],
                          env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=400)


def left(out: Path) -> tuple[torch.Tensor, list[dict]]:
    """What a run has learned, as its answers to any text, and its lines of metrics.jsonl.

    Not its parameters: some, as a key's bias, change nothing. They have a gradient of rounding
    errors, and Adam blows that up.
    """
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    model = load(out / "ckpt.pt")
    with torch.no_grad():
        h = model(torch.arange(18)[None])
        logits = torch.cat([model.text_logits(h), model.think_logits(h).log_softmax(-1)], -1)
    return logits, [x for x in lines if x["kind"] == "step"]


def equal(one: Path, two: Path) -> None:
    (a, steps), (b, others) = left(one), left(two)
    assert (a - b).abs().max() < 1e-4
    assert [x["step"] for x in steps] == [x["step"] for x in others] == list(range(20))
    for x, y in zip(steps, others):
        for key in COLUMNS:
            assert x[key] == pytest.approx(y[key], abs=1e-3), (key, x["step"])


@pytest.mark.parametrize("argv", [["--approach", "stream", "--model", "scratch:1x16"],
                                  ["--curriculum", "off"]], ids=["stream", "teacher"])
def test_two_processes_are_one(argv, tmp_path):
    """Guards the shares: what is learned and paid in 20 steps is that of one process, to 1e-4;
    siblings stay together; one of the processes alone speaks; no thread outlives their group."""
    for name, how in (("one", []), ("two", TWO)):
        done = start(how, [*argv, *SHORT, "--steps", "20"], tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("what was learned") == 1
        assert done.stderr.count("left over: 0\n") == (2 if how else 1)
    equal(tmp_path / "one", tmp_path / "two")


def test_processes_come_and_go(tmp_path):
    """Guards --resume under torchrun, and the shares that can't be: contexts of a step are divided
    among the processes that there are, or refused in one line."""
    argv = ["--approach", "stream", "--model", "scratch:1x8", "--data", "cups swaps=1",
            "--curriculum", "off", *SHORT]
    argv[argv.index("--prompts") + 1] = "3"
    done = start([], [*argv, "--steps", "2"], tmp_path)
    assert done.returncode == 0, done.stderr
    before = (tmp_path / "ckpt.pt").read_bytes()
    for more in (["--resume", "--steps", "4"], [*argv, "--steps", "2"]):
        done = start(TWO, more, tmp_path)
        assert done.returncode != 0 and "can't be shared by 2 processes" in done.stderr
        assert (tmp_path / "ckpt.pt").read_bytes() == before
