"""lab/bench.py: every section runs at a tiny shape, and what it says about ratios, peers and bad
input is true."""
import importlib.util
import json

import pytest
import torch

from conftest import run as run_main
from lab import bench
from lab.bench import numbers
from rollout import GREEDY


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """bench.py with some arguments in an empty folder, without peers -> exit code, stdout,
    stderr."""
    def main(*argv):
        monkeypatch.chdir(tmp_path)
        found, peers = importlib.util.find_spec, ("transformers", "ctranslate2", "trl")
        monkeypatch.setattr(importlib.util, "find_spec",
                            lambda name, *rest: None if name in peers else found(name, *rest))
        return run_main(bench.main, argv, monkeypatch, capsys)
    yield main
    torch.set_num_threads(1)


def test_sections_without_peers(run, tmp_path):
    """Guards the command: tables, bench.json with what earlier runs measured, and the pip line for
    peers that are missing."""
    sections = ("rollout", "sampler", "next_token", "cups", "prompt")
    code, out, _ = run("--quick", "--threads", "1", "--rows", "1", "3", "--only", *sections)
    assert code == 0 and "B = 1," in out and "B = 3," in out
    assert "ctranslate2" not in out  # it is made from transformers' model
    assert ("transformers is not installed, its arm is skipped: pip install -r "
            "tests/requirements-bench.txt") in out
    assert run("--quick", "--threads", "1", "--only", "sampler")[0] == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found) == [f"{name}, threads 1, quick" for name in sections]
    for section in found.values():
        assert section["threads"] == 1 and section["quick"] and section["gflops"] > 0
        for table in section["tables"]:
            for name, arm in table["arms"].items():
                assert arm["seconds"] > 0 and len(arm["all"]) >= 1 and name in out
    for table in found["cups, threads 1, quick"]["tables"]:
        shares, teacher = table["shares"], "teacher" in table["arms"]
        assert abs(sum(shares.values()) - 1) < 1e-6 and shares["gradient_pass"] > 0.1
        # each part is found under its name, and the one that is missing is missing
        assert all(share > 0 for name, share in shares.items() if name != "teacher_states")
        assert (shares["teacher_states"] > 0) == teacher


def test_processes_of_their_own(run, tmp_path):
    """Guards arms that are measured in a fresh process, and that an update of train.py's loop runs
    on noise."""
    code, out, _ = run("--quick", "--threads", "1", "--only", "loss", "update")
    assert code == 0 and "trl is not installed" in out
    for section in json.loads((tmp_path / "bench.json").read_text()).values():
        for arm in (arm for table in section["tables"] for arm in table["arms"].values()):
            assert arm["seconds"] > 0 and arm["peak_mib"] >= 0


def test_same_tokens_from_hugging_face():
    """Guards the comparison: the peer has our very weights, and says the same when both are
    greedy."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, ids = bench.GPT(bench.QUICK.config), torch.randint(400, (3, 8))
    theirs = bench.hugging_face(model).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
        pad_token_id=0)
    ours = bench.rollout(model, bench.plain(ids, 8, 8), bench.Rules("never"),
                         numbers(torch.zeros(8, 3, 2)), GREEDY)
    assert torch.equal(ours.ids, theirs)


def test_packed_branches_and_the_loop_agree():
    """Guards the section `next_token`: both arms do the same work, with the same random numbers,
    so they think the same."""
    torch.manual_seed(0)
    (B, S, K), model = bench.QUICK.branches, bench.GPT(bench.QUICK.config)
    rules, u = bench.Rules("forced", K, K, persist=False), torch.rand(K, B, S, 2)
    ids = torch.randint(400, (B, S + 1))
    packed = bench.roll(model, bench.plain(ids, 1, S), rules, numbers(u.flatten(1, 2)))
    thoughts = packed.ids[:, S + 1:].view(B, K, S)
    for i in range(1, S + 1):
        one = bench.roll(model, bench.plain(ids[:, :i + 1], i, 1), rules, numbers(u[:, :, i - 1]))
        assert torch.equal(one.ids[:, i + 1:], thoughts[:, :, i - 1])


def test_growth(run, tmp_path):
    """Guards the section `scale`: each dial is measured, and said as a line; and the line
    itself."""
    code, out, _ = run("--quick", "--threads", "1", "--only", "scale")
    section = json.loads((tmp_path / "bench.json").read_text())["scale, threads 1, quick"]
    found = section["tables"]
    assert code == 0 and [t["title"] for t in found] == ["prompts", "parameters"]
    assert out.count("MiB each") == 2
    assert all(len(t["points"]) == 2 for t in found)
    assert all(t["line"]["s"][2] < 1e-6 for t in found)  # two points always lie on a line
    assert (tmp_path / "figures" / "bench_scale.png").exists()
    assert bench.straight((1, 2, 4), (5, 7, 11)) == pytest.approx((3, 2, 0))
    assert bench.straight((0, 1, 2), (4, 4, 1))[2] > 0.4


def test_ratio_pair_by_pair(capsys):
    """Guards `x ours`: pairs that ran next to each other are compared, then the median is taken."""
    times = {"ours": [1.0, 4.0, 2.0], "theirs": [2.0, 4.0, 6.0]}
    table = bench.show("two", times, limit=1.0)["arms"]
    assert table["theirs"]["x_ours"] == 2.0 and table["ours"]["x_ours"] == 1.0
    assert table["ours"]["limit"] == 0.5 and "50%" in capsys.readouterr().out


def test_rows_of_the_tables():
    """Guards docs/SPEED.md: what stands there is found under the names that are measured now."""
    found = json.loads((bench.ROOT / "figures" / "bench.json").read_text())
    for table in found["cups, threads 1"]["tables"]:
        assert list(table["shares"]) == [*bench.PARTS, "the rest (the optimizer)"]
    assert {key.split(",")[0] for key in found} <= set(bench.SECTIONS)


@pytest.mark.parametrize("argv, word", [(["--only", "speed"], "choose from"),
                                        (["--threads", "0"], "at least 1"),
                                        (["--rows", "4", "0"], "at least 1"),
                                        (["--thread", "1"], "--threads")])
def test_refuses(run, argv, word):
    """Guards against a traceback: one line, exit code 2."""
    code, _, err = run(*argv)
    assert code == 2 and word in err and err.count("\n") == 1
