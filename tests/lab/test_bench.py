"""lab/bench.py: every section runs at a tiny shape, and what it says about ratios, peers and bad input is true."""
import importlib.util
import json
import sys

import pytest
import torch

from lab import bench


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """bench.py with some arguments in an empty folder, without peers -> exit code, stdout, stderr."""
    def main(*argv):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["bench.py", *argv])
        found = importlib.util.find_spec
        peers = ("transformers", "ctranslate2", "trl")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in peers else found(name, *rest))
        code = 0
        try:
            bench.main()
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()
    yield main
    torch.set_num_threads(1)


def test_sections_without_peers(run, tmp_path):
    """Guards the command: tables, bench.json with what earlier runs measured, and the pip line for peers that are missing."""
    code, out, _ = run("--quick", "--threads", "1", "--only", "rollout", "sampler", "next_token", "cups")
    assert code == 0 and "ctranslate2" not in out  # it is made from transformers' model
    assert "transformers is not installed, its arm is skipped: pip install -r tests/requirements-bench.txt" in out
    assert run("--quick", "--threads", "1", "--only", "sampler")[0] == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found) == [f"{name}, threads 1, quick" for name in ("rollout", "sampler", "next_token", "cups")]
    for section in found.values():
        assert section["threads"] == 1 and section["quick"] and section["gflops"] > 0
        for table in section["tables"]:
            for name, arm in table["arms"].items():
                assert arm["seconds"] > 0 and len(arm["all"]) >= 1 and name in out
    for table in found["cups, threads 1, quick"]["tables"]:
        assert abs(sum(table["shares"].values()) - 1) < 1e-6 and table["shares"]["gradient_pass"] > 0.1


def test_processes_of_their_own(run, tmp_path):
    """Guards arms that are measured in a fresh process, and that an update of train.py's loop runs on noise."""
    code, out, _ = run("--quick", "--threads", "1", "--only", "loss", "update", "continuous")
    assert code == 0 and "trl is not installed" in out
    for section in json.loads((tmp_path / "bench.json").read_text()).values():
        for arm in (arm for table in section["tables"] for arm in table["arms"].values()):
            assert arm["seconds"] > 0 and arm["peak_mib"] >= 0


def test_same_tokens_from_hugging_face():
    """Guards the comparison: the peer has our very weights, and says the same when both are greedy."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = bench.GPT(bench.QUICK["config"])
    text = torch.randint(400, (3, 8))
    theirs = bench.hugging_face(model).generate(text, attention_mask=torch.ones_like(text), max_new_tokens=8, do_sample=False,
                                                pad_token_id=0)
    assert torch.equal(bench.rollout(model, text, 8, 8, bench.Rules("never"), torch.zeros(8, 3, 2), 0.0).ids, theirs)


def test_growth(run, tmp_path):
    """Guards the section `scale`: each dial is measured, and told as a line; and the line itself."""
    code, out = run("--quick", "--threads", "1", "--only", "scale")[:2]
    found = json.loads((tmp_path / "bench.json").read_text())["scale, threads 1, quick"]["tables"]
    assert code == 0 and [t["title"] for t in found] == ["prompts", "parameters"] and out.count("MiB each") == 2
    assert all(len(t["points"]) == 2 and t["line"]["s"][2] < 1e-6 for t in found)  # two points always lie on a line
    assert (tmp_path / "figures" / "bench_scale.png").exists()
    assert bench.straight((1, 2, 4), (5, 7, 11)) == pytest.approx((3, 2, 0)) and bench.straight((0, 1, 2), (4, 4, 1))[2] > 0.4


def test_ratio_pair_by_pair(capsys):
    """Guards `x ours`: pairs that ran side by side are compared, then the median is taken."""
    table = bench.show("two", {"ours": [1.0, 4.0, 2.0], "theirs": [2.0, 4.0, 6.0]}, limit=1.0)["arms"]
    assert table["theirs"]["x_ours"] == 2.0 and table["ours"]["x_ours"] == 1.0 and table["ours"]["limit"] == 0.5
    assert "50%" in capsys.readouterr().out


@pytest.mark.parametrize("argv, word", [(["--only", "speed"], "choose from"), (["--threads", "0"], "at least 1"),
                                        (["--thread", "1"], "--threads")])
def test_refuses(run, argv, word):
    """Guards against a traceback: one line, exit code 2."""
    code, _, err = run(*argv)
    assert code == 2 and word in err and err.count("\n") == 1
