"""torchrun: two processes that share out each step's contexts learn what one process learns."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import load

ROOT = Path(__file__).resolve().parent.parent.parent
SHORT = ["--steps", "20", "--eval_every", "20", "--prompts", "4", "--samples", "2", "--think_vocab", "16", "--new_tokens", "12"]


@pytest.mark.parametrize("argv", [["--approach", "stream", "--width", "16"], ["--curriculum", "off"]], ids=["stream", "teacher"])
def test_two_processes_are_one(argv, tmp_path):
    """Guards the shares: what is learnt and paid in 20 steps is that of one process, to 1e-4; siblings stay together."""
    env = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")} | {"OMP_NUM_THREADS": "1"}
    runs = {}
    for name, start in (("one", [sys.executable]), ("two", [sys.executable, "-m", "torch.distributed.run", "--standalone",
                                                            "--nproc_per_node=2"])):
        done = subprocess.run([*start, ROOT / "train.py", *argv, *SHORT, "--out", tmp_path / name], env=env, capture_output=True,
                              text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("what was learnt") == 1
        lines = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        model = load(tmp_path / name / "ckpt.pt")
        with torch.no_grad():
            h = model(torch.arange(18)[None])
            logits = torch.cat([model.text_logits(h), model.think_logits(h).log_softmax(-1)], -1)
        runs[name] = logits, [x for x in lines if x["kind"] == "step"]
    # not the parameters themselves: some (a key's bias, the offset of forced thoughts) change nothing, have a gradient of
    # rounding errors, and Adam blows that up
    assert (runs["one"][0] - runs["two"][0]).abs().max() < 1e-4
    assert len(runs["one"][1]) == len(runs["two"][1]) == 20
    for one, two in zip(runs["one"][1], runs["two"][1]):
        for key in ("reward", "spread", "entropy", "thoughts", "grad_norm", "loss"):
            assert one[key] == pytest.approx(two[key], abs=1e-3), (key, one["step"])
