"""experiments.py: runs are made once, an experiment that was cut off goes on, and its numbers are those of its runs."""
import json
import sys

import pytest

import experiments
from experiments import Arm, Experiment, folder, interval, mflop, table

SHORT = "--approach stream --steps 2 --eval_every 2 --new_tokens 8 --prompts 2 --width 8"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """One experiment of three arms, the last of which starts from the first, in a folder of its own."""
    arms = {"tokens": Arm(f"{SHORT} --think_vocab 4 --samples 2", 5), "none": Arm(f"{SHORT} --thoughts none", 5),
            "released": Arm(f"{SHORT.replace('--width 8', '')} --think_vocab 4 --samples 2 --think free", 5, "tokens")}
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"small": Experiment("Is it so?", "It is.", arms)})
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    return experiments.EXPERIMENTS["small"]


def test_runs_are_made_once(small, monkeypatch, capsys, tmp_path):
    """The files are there, their numbers are those of the runs, and a second call makes no run."""
    monkeypatch.setattr(sys, "argv", ["experiments.py", "small", "--seeds", "1"])
    experiments.main()
    said = capsys.readouterr().out
    assert "3 of 3 runs are to be made" in said and "It is." in said and (tmp_path / "figures/small.png").stat().st_size > 5000
    result = json.loads((tmp_path / "figures/small.json").read_text())
    assert list(result["arms"]) == ["tokens", "none", "released"]
    for arm, found in result["arms"].items():
        lines = (folder(small, arm, 0) / "metrics.jsonl").read_text().splitlines()
        assert found["seeds"][0]["accuracy_by_n"] == json.loads(lines[-1])["accuracy_by_n"]
        assert small.arms[arm].flags in found["command"]
    stamp = (folder(small, "none", 0) / "metrics.jsonl").stat().st_mtime_ns
    (folder(small, "tokens", 0) / "done").unlink()  # cut off in this run: it alone is made anew
    experiments.main()
    assert "1 of 3 runs" in capsys.readouterr().out
    assert (folder(small, "none", 0) / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_a_run_that_fails_is_one_line(small, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments.py", "small", "--seeds", "1"])
    small.arms = {"none": Arm("--gamma x", 1)}
    with pytest.raises(SystemExit) as e:
        experiments.main()
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert e.value.code == 2 and "--gamma" in err and "failed" in err


def test_intervals_and_table_by_hand():
    """Student's t for three seeds: 4.30 * 1 / sqrt(3); one seed has no interval."""
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.30 / 3 ** 0.5, rel=1e-3))
    mean, half = interval([5.0])
    assert mean == 5.0 and half != half
    seeds = [{"accuracy_by_n": [a] * 30, "seconds": 10, "thinks_after_moved": a, "thinks_elsewhere": a / 2,
              "thoughts_by_n": [1 + a * n for n in range(30)]} for a in (0.5, 0.7)]
    row = table({"arms": {"x": {"seeds": seeds, "mflop": (1.5, 0.25)}}})
    assert row.endswith("| x | 50.0, 70.0 | 25.0, 35.0 | 0.50, 0.70 |")
    row = row.splitlines()[2]
    assert row.startswith("| x | 60 ± 127 |") and row.endswith("| 1.50 | 0.25 | 10 |")


def test_mflop_by_hand(tmp_path):
    """One layer of width 8, 3 cups: 9 tokens of opening, 20 of 10 moves, 2 of the question and 10 thoughts are 41 places. A window
    of 1 lets each see itself and, from the first thought on, the last thought."""
    from data import OPENING, Cups
    from model import GPT, Config, as_checkpoint, save
    V = len(Cups(3).text_ids)
    for window, N, thoughts in ((0, 5, {}), (1, 5, {}), (0, 1, {}), (1, 5, {"thoughts_by_n": [3.0] * 30})):
        rules = {"think": "free" if thoughts else "forced", "window": window}
        save(tmp_path / "ckpt.pt", as_checkpoint(GPT(Config(1, 2, 8, 256, V, N), Cups(3).text_ids)) | {"rules": rules, "args": {}})
        blocks, heads = mflop(tmp_path / "ckpt.pt", thoughts)
        k = 3 if thoughts else 10
        T = OPENING + 22 + k
        seen = T * (T + 1) / 2 if not window else T + (T - OPENING - 1) - k  # (a thought is its own last one)
        assert blocks * 1e6 == pytest.approx(T * 24 * 64 + 4 * 8 * seen)
        assert heads * 1e6 == pytest.approx(2 * 8 * (V + (k * N if N > 1 else 0)))


def test_told_thoughts_are_learnt_as_lent_ones():
    """The flags of the oracle with full attention are what --thinker would set."""
    import settings
    said = vars(settings.parse(experiments.AS_TAUGHT.split()))
    assert {k: said[k] for k in settings.TAUGHT if k != "entropy"} == {k: v for k, v in settings.TAUGHT.items() if k != "entropy"}
