"""lab/experiments.py and lab/report.py: a run is made once, an experiment that was cut off goes on,
and its numbers are those of its runs.

Left out on purpose: what experiments find. That takes hours, and stands in docs/RESULTS.md.
"""
import importlib
import json
import re
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from conftest import run
from data import Cups
from lab import distil, experiments, report
from lab.experiments import EXPERIMENTS, Arm, Experiment, folder, whole_command
from lab.probe import EDGES, first_case, nats_of_text
from lab.report import interval, parts, table, verdicts
from lab.tasks import make
from model import GPT, Config, as_checkpoint
from reward import score
from rollout import Rules
from run import open_run
from settings import Settings, parser, scratch_shape
from task import open_source
from weights import read_weights, save

SHORT = "--steps 2 --eval_every 2 --new_tokens 8 --prompts 2"
TINY = f"train.py --approach stream --model scratch:1x8 {SHORT}"


class Stop(Exception):
    """Raised where a run would begin."""


def settings_of(arm: Arm, monkeypatch) -> Settings:
    """What its script makes of an arm's flags, before anything is written."""
    words = shlex.split(arm.command)
    name, *flags = words[1:] if words[0] == "-m" else ["train", *words[1:]]
    script = importlib.import_module(name)

    def stop(settings, folder):
        raise Stop(settings)
    monkeypatch.setattr(script, "take_folder", stop)
    base = [arm.by, "base.pt"] if arm.after else []
    monkeypatch.setattr(sys, "argv", [name, *flags, *base])
    with pytest.raises(Stop) as e:
        script.main()
    return e.value.args[0]


def checkpoint(path: Path, N: int, **rules) -> None:
    """A tiny random model of the game, as a run leaves it."""
    torch.manual_seed(0)
    cups = Cups(3)
    s = Settings(approach="stream", data="cups", prompt_tokens=17, new_tokens=12, think_vocab=N)
    rules = {"think": "forced" if N else "never", "think_after": cups.think_after("stream", ""),
             "budget": 16 * (N > 0), "continuous": N == 1} | rules
    model = GPT(Config(1, 2, 16, 256, len(cups.text_ids), N), cups.text_ids)
    torch.nn.init.normal_(model.think)
    saved = {"rules": asdict(Rules(**rules)), "settings": asdict(s)}
    save(path, as_checkpoint(model) | saved)


def ended(experiment: Experiment, arm: str, **line) -> Path:
    """A run's folder with its last evaluation, and the mark that it is done."""
    out = folder(experiment, arm, 0)
    out.mkdir(parents=True)
    end = {"kind": "eval", "step": 2, "seconds": 5.0, "accuracy_by_n": [0.3] * 30} | line
    (out / "metrics.jsonl").write_text(json.dumps(end) + "\n")
    (out / "done").touch()
    return out


def made_up(name: str, right: float) -> dict:
    """A result of an experiment of this name: two seeds, with this share right everywhere."""
    e, area = EXPERIMENTS[name], {str(m): right for m in (1, 2, 3, 10)}
    by_n = {k: [right] * 30 for k in ("accuracy_by_n", "accuracy_first_by_n", "thoughts_by_n")}
    one = {"step": 9, "seconds": 5, **by_n, "thinks_after_moved": right, "thinks_elsewhere": right}
    if e.view == "alphabet":
        one["curve"] = {"step": [0, 100, 200], "accuracy": [1 / 3, right, right],
                        "thoughts_as_text": [-1.0, -4 * right, -6 * right]}
    if e.view == "regular":
        one |= {"accuracy": right, "accuracy_another": 0.2, "by_length": [right] * 3, "stage": 9}
    looked = {"accuracy_by_n": {x: [right] * 30 for x in ("own", *report.OTHERS)},
              "spliced": True, "synonyms": 1.0, "usage": {"perplexity": 400 * right},
              "says": {x: right for x in ("next", "1", "2")},
              "aoc": {x: area for x in report.FOUR},
              "counterfactual": {"written": [4] * 3, "follows": [4 * right] * 3, "true": [0] * 3},
              "after_which": {"first": 1.0,
                              "moves": ["AB", "AC", "BC", "left", "right", "nothing"],
                              "share": {cup: [1.0, 0.9, 0.8, 1.0, 1.0, right] for cup in "ABC"}}}
    kept = [{"step": step, "accuracy_by_n": [right] * 30, "early": area}
            for step in (100, 200, 250)]
    arms = {}
    for arm, it in e.arms.items():
        more = {"probe": looked} if arm in e.probed else {}
        more |= {"course": kept} if it.kept else {}
        if e.texts:  # thoughts take right ** 3 nats off
            more["nats"] = {"own": 2 - right ** 3 * (arm[:4] != "none"), "another": 2.0}
        if e.view == "forgotten":
            off, thinks = right - 1 / 3, [0.2] + [right] * 5
            more["by_token"] = {
                "letters": {"share": [1 / 6] * 6, "off": [0.0] + [off] * 5, "thinks": thinks},
                "nats": {"share": [0.2] * 5, "off": [off] * 4 + [0.0], "thinks": thinks[1:]}}
        if e.judge:
            more["kl"] = {"own": {"ids": 2 - right ** 3, "none, all in sight": 1.0}.get(arm, 2.0)}
            more["kl"] |= {"another": 1.9 + right / 2, "none": 2.0} if arm == "ids" else {}
        arms[arm] = {"command": whole_command(it), "seeds": [one | more] * 2,
                     "written": ["ab", "<think3>c<think14>d" if arm == "ids" else "cd"]}
    return {"question": e.question, "prediction": e.prediction, "command": "c", "view": e.view,
            "shown": e.shown, "arms": arms}


# Runs

@pytest.fixture
def small(monkeypatch, tmp_path):
    """One experiment in a folder of its own. Two of its arms start from the first one."""
    arms = {"tokens": Arm(f"{TINY} --think_vocab 4 --samples 2", 5),
            "none": Arm(f"{TINY} --thoughts none", 5),
            "released": Arm(f"train.py --approach stream {SHORT} --think_vocab 4 --samples 2 "
                            "--think free", 5, "tokens"),
            "learner": Arm(f"-m lab.distil {SHORT} --think_vocab 4", 5, "tokens")}
    claims = [("It is.", lambda result: True), ("It isn't.", lambda result: False)]
    only = {"small": Experiment("Is it so?", claims, arms)}
    monkeypatch.setattr(experiments, "EXPERIMENTS", only)
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    return only["small"]


def test_runs_are_made_once(small, monkeypatch, capsys, tmp_path):
    """The files are there, their numbers are those of the runs, and a second call makes no run."""
    code, said, err = run(experiments.main, ["small", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0 and "4 of 4 runs are to be made" in said, err
    assert "It is. [held] It isn't. [did NOT hold]" in said
    assert (tmp_path / "figures/small.png").stat().st_size > 5000
    result = json.loads((tmp_path / "figures/small.json").read_text())
    assert list(result["arms"]) == list(small.arms)
    for arm, found in result["arms"].items():
        lines = (folder(small, arm, 0) / "metrics.jsonl").read_text().splitlines()
        assert found["seeds"][0]["accuracy_by_n"] == json.loads(lines[-1])["accuracy_by_n"]
        assert small.arms[arm].command in found["command"]
    base = folder(small, "tokens", 0) / "ckpt.pt"
    assert open_run(folder(small, "released", 0)).settings.model == str(base)
    assert result["arms"]["learner"]["command"].endswith(" --thinker <tokens>/ckpt.pt")
    stamp = (folder(small, "none", 0) / "metrics.jsonl").stat().st_mtime_ns
    (folder(small, "tokens", 0) / "done").unlink()  # it was cut off: this run alone is made again
    code, said, err = run(experiments.main, ["small", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0 and "1 of 4 runs" in said, err
    assert (folder(small, "none", 0) / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_some_arms(small, monkeypatch, capsys, tmp_path):
    """--arms: the others stay as the json has them, though their runs are gone; and each reason why
    they can't is one line."""
    argv = ["small", "--seeds", "1", "--arms"]
    code, _, err = run(experiments.main, [*argv, "none"], monkeypatch, capsys)
    assert code == 2 and "has no 1 runs of 'tokens' by today's command" in err
    assert run(experiments.main, argv[:-1], monkeypatch, capsys)[0] == 0
    path = tmp_path / "figures/small.json"
    before = json.loads(path.read_text())
    shutil.rmtree(tmp_path / "runs")
    small.arms["none"] = Arm(f"{TINY} --thoughts none --steps 1", 5)
    code, said, err = run(experiments.main, [*argv, "none"], monkeypatch, capsys)
    assert code == 0 and "1 of 1 runs are to be made" in said, err
    after = json.loads(path.read_text())
    assert list(after["arms"]) == list(before["arms"])
    assert after["arms"].pop("none")["command"].endswith("--steps 1")
    del before["arms"]["none"]
    assert after == before
    for wrong, why in ((["nobody"], "no arm 'nobody', only 'tokens'"), (["released"], "needs both"),
                       (["none", "--seeds", "2"], "no 2 runs of 'tokens'")):
        code, _, err = run(experiments.main, [*argv, *wrong], monkeypatch, capsys)
        assert code == 2 and why in err and err.count("\n") == 1
    code, _, err = run(experiments.main, ["report", "--arms", "none"], monkeypatch, capsys)
    assert code == 2 and "--arms belongs to an experiment" in err


def test_an_experiment_on_tasks(monkeypatch, capsys, tmp_path):
    """Its files are made once, and its numbers are those of the last evaluation, by length."""
    flags = f"{SHORT} --data runs/parity.jsonl --eval_data runs/parity_test.jsonl"
    arms = {"parity, ids": Arm(f"train.py {flags} --think_vocab 4 --model scratch:1x8", 5),
            "parity, none": Arm(f"train.py {flags} --thoughts none --model scratch:1x8", 5)}
    only = {"small": Experiment("Is it so?", [("It is.", lambda r: True)], arms, view="regular",
                                files=(experiments.TaskFile("parity"),))}
    monkeypatch.setattr(experiments, "EXPERIMENTS", only)
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    made, call = [], experiments.call

    def few(task, path, source=None):
        made.append(path)
        make(task, tmp_path / path.name, rows=80)

    def there(words, log):  # with the files of this folder
        call([f"{tmp_path}/{Path(x).name}" if x.startswith("runs/") else x for x in words], log)
    monkeypatch.setattr(experiments, "make", few)
    monkeypatch.setattr(experiments, "call", there)
    code, said, err = run(experiments.main, ["small", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0 and [x.name for x in made] == ["parity.jsonl"], err
    result = json.loads((tmp_path / "figures/small.json").read_text())
    for arm, found in result["arms"].items():
        end, (seed,) = experiments.last_line(folder(only["small"], arm, 0)), found["seeds"]
        counts, right = (np.array(end[f"{x}_by_level"]) for x in ("answers", "accuracy"))
        assert counts.sum() == 8
        for share, (a, b) in zip(seed["by_length"], report.LENGTHS):
            n = np.arange(1, len(counts) + 1)
            inside = (n >= a) & (n <= b)  # (of eight rows none may have so many symbols)
            asked = max(counts[inside].sum(), 1)
            assert share == pytest.approx((right * counts)[inside].sum() / asked)
        assert seed["stage"] == 1
        assert ("accuracy_another" in seed) == (arm == "parity, ids")
        assert report.scores(result, arm) == [end["accuracy"]] == [seed["accuracy"]]
    assert table(result) in said and table(result).count("\n") == 3


def test_seconds_of_a_run_that_was_resumed(tmp_path):
    """Guards a table that shows the seconds since it went on alone."""
    for seconds, spent in (([0, 3, 9], 9), ([0, 3, 9, 0.5, 4], 13), ([5, 2, 2, 1], 8)):
        (tmp_path / "metrics.jsonl").write_text(
            "".join(json.dumps({"kind": "step", "seconds": x}) + "\n" for x in seconds))
        assert experiments.seconds_spent(tmp_path) == spent


def test_an_experiment_on_a_text(monkeypatch, capsys, tmp_path):
    """Its text is downloaded. Nats are those of the last weights on held-out text, with each
    kind of thoughts that a run has, and the probed arms say what thoughts are about."""
    flags = f"{SHORT} --approach stream --data runs/x.txt --model bytes:1x8 --prompt_tokens 4"
    arms = {"none, 1": Arm(f"train.py {flags} --window 1 --thoughts none", 5),
            "ids, 1": Arm(f"train.py {flags} --window 1 --think forced --think_vocab 4", 5)}
    only = {"small": Experiment("Is it so?", [("It is.", lambda r: True)], arms, ("ids, 1",),
                                view="text", texts={"x.txt": "http://nowhere.example/x"})}
    monkeypatch.setattr(experiments, "EXPERIMENTS", only)
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    call, asked = experiments.call, []
    monkeypatch.setattr(experiments, "download", lambda *x: asked.append(x))
    monkeypatch.setattr(experiments, "call", lambda words, log: call(
        [f"{tmp_path}/x.txt" if x == "runs/x.txt" else x for x in words], log))
    (tmp_path / "x.txt").write_text("abcd efgh. " * 300)
    code, said, err = run(experiments.main, ["small", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0, err
    assert asked == [("http://nowhere.example/x", experiments.ROOT / "runs/x.txt")]
    result = json.loads((tmp_path / "figures/small.json").read_text())
    found = {arm: x["seeds"][0] for arm, x in result["arms"].items()}
    assert {*found["none, 1"]["nats"]} == {"own", "none"} and "probe" not in found["none, 1"]
    nats = found["ids, 1"]["nats"]
    assert {"own", "none", "another", "random", "constant"} < {*nats}
    assert {*found["ids, 1"]["probe"]["says"]} == {"next", "asked", *"123456"}
    again = nats_of_text(open_run(folder(only["small"], "ids, 1", 0)), 512)
    assert again == pytest.approx(nats)
    assert report.taken_off(result, "ids, 1") == pytest.approx(
        found["none, 1"]["nats"]["own"] - nats["own"])
    assert table(result) in said and "1 back" in table(result)


def test_an_experiment_on_forgotten_thoughts(monkeypatch, capsys, tmp_path):
    """Guards `by_token`: its numbers, once more character by character. Weighed by their shares
    they are the difference of the arms' nats; a table and a figure come of them."""
    flags = f"{SHORT} --data {tmp_path}/x.txt --prompt_tokens 4 --model bytes:1x8"
    plain, K = f"train.py {flags} --approach stream --thoughts none", "--max_thoughts 2"
    arms = {"none, 1": Arm(f"{plain} --window 1", 5),
            "ids, 1": Arm(f"train.py {flags} --approach next_token {K} --window 1 --samples 2 "
                          "--think free --think_prior 0.5 --think_vocab 4", 5),
            "none, all in sight": Arm(f"{plain} --window 0", 5)}
    only = {"small": Experiment("Is it so?", [("It is.", lambda r: True)], arms, view="forgotten",
                                texts={"x.txt": "http://nowhere.example/x"},
                                against=("none, 1", "none, all in sight"))}
    monkeypatch.setattr(experiments, "EXPERIMENTS", only)
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    monkeypatch.setattr(experiments, "LOOK", {"text": 16})
    monkeypatch.setattr(experiments, "download", lambda *x: None)
    (tmp_path / "x.txt").write_text("ab, cdefghi j. " * 300)
    code, said, err = run(experiments.main, ["small", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0, err
    result = json.loads((tmp_path / "figures/small.json").read_text())
    assert table(result) in said and "thought about, %" in said and "5 and more" in said
    found = {arm: x["seeds"][0] for arm, x in result["arms"].items()}
    assert "by_token" not in found["none, 1"]
    cases = [first_case(open_run(folder(only["small"], arm, 0)), 16, 0) for arm in (
        "ids, 1", "none, 1", "none, all in sight")]
    own, without, seen = (score(x.model, x.own, x.text.pays).r.tolist() for x in cases)
    ro, tokenizer = cases[0].own, open_run(folder(only["small"], "ids, 1", 0)).tokenizer
    kinds = {"letters": [[] for _ in range(6)], "nats": [[] for _ in range(5)]}
    for r, row in enumerate(ro.text.tolist()):
        text = [tokenizer.decode([i]) for i in row]
        for s in range(len(own[r])):
            before = "".join(text[:ro.P + s])
            letters = len(before) - len(before.rstrip("abcdefghij"))
            thinks = bool((ro.is_think[r] & (ro.after[r] == ro.P + s - 1)).any())
            it = own[r][s] - without[r][s], thinks
            kinds["letters"][min(letters, 5)].append(it)
            kinds["nats"][sum(-seen[r][s] > x for x in EDGES)].append(it)
    count = sum(map(len, kinds["letters"]))
    for kind, its in kinds.items():
        by = found["ids, 1"]["by_token"][kind]
        assert by["share"] == pytest.approx([len(x) / count for x in its])
        for i, key in enumerate(("off", "thinks")):
            assert by[key] == pytest.approx(
                [sum(x[i] for x in it) / max(len(it), 1) for it in its], abs=1e-5)
        off = found["none, 1"]["nats"]["own"] - found["ids, 1"]["nats"]["own"]
        assert np.dot(by["share"], by["off"]) == pytest.approx(off, abs=1e-5)
    assert 0 < np.dot(by["share"], by["thinks"]) < 1
    shutil.rmtree(folder(only["small"], "none, 1", 0))
    code, _, err = run(experiments.main, ["small", "--seeds", "1", "--arms", "ids, 1"],
                       monkeypatch, capsys)
    assert code == 2 and "the runs of 'none, 1'" in err


def test_an_experiment_with_a_judge(monkeypatch, capsys, tmp_path):
    """The judge is made first, and once. KLs are those of the last weights on their own text:
    with own thoughts that is what train.py measures."""
    flags = f"{SHORT} --data {tmp_path}/x.txt --prompt_tokens 4"
    own = f"train.py {flags} --samples 2 --approach teacher --model bytes:1x8 --window 1"
    arms = {"none": Arm(f"{own} --thoughts none", 5),
            "ids": Arm(f"{own} --think forced --think_vocab 4", 5)}
    arms = {arm: Arm(f"{it.command} --teacher {tmp_path}/judge/ckpt.pt", 5)
            for arm, it in arms.items()}
    judge = f"train.py {flags} --approach stream --model bytes:2x8 --thoughts none --window 0"
    only = {"small": Experiment("Is it so?", [("It is.", lambda r: True)], arms, view="judged",
                                texts={"x.txt": "http://nowhere.example/x"},
                                judge=Arm(judge, 120))}
    monkeypatch.setattr(experiments, "EXPERIMENTS", only)
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    monkeypatch.setattr(experiments, "JUDGE", tmp_path / "judge")
    monkeypatch.setattr(experiments, "LOOK", {"text": 4})  # as many rows as an update has
    monkeypatch.setattr(experiments, "download", lambda *x: None)
    (tmp_path / "x.txt").write_text("abcd efgh. " * 300)
    code, said, err = run(experiments.main, ["small", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0 and said.count("the judge comes first, about 2 minutes") == 1, err
    result = json.loads((tmp_path / "figures/small.json").read_text())
    kl = {arm: x["seeds"][0]["kl"] for arm, x in result["arms"].items()}
    assert {*kl["none"]} == {"own"} and {"own", "none", "another", "random"} < {*kl["ids"]}
    for arm, found in kl.items():
        end = experiments.last_line(folder(only["small"], arm, 0))
        assert found["own"] == pytest.approx(end["reverse_kl"], abs=1e-5)
    prompt, new = result["arms"]["ids"]["written"]
    assert len(prompt) == 4 and re.fullmatch("(<think[0-3]>[a-h. ]){8}", new)
    assert kl["ids"]["refed"] == pytest.approx(kl["ids"]["own"]) != kl["ids"]["none"]
    assert table(result) in said and "| ids |" in table(result)
    assert result["judge"] == f"python {judge}"
    code, said, _ = run(experiments.main, ["small", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0 and "the judge" not in said
    only["small"].judge = Arm(f"{judge} --seed 1", 120)
    code, _, err = run(experiments.main, ["small", "--seeds", "1"], monkeypatch, capsys)
    assert code == 2 and "is another judge: delete it" in err and err.count("\n") == 1


def test_a_run_that_fails_is_one_line(small, monkeypatch, capsys):
    small.arms = {"none": Arm("train.py --gamma x", 1)}
    code, _, err = run(experiments.main, ["small", "--seeds", "1"], monkeypatch, capsys)
    last = err.strip().splitlines()[-1]
    assert code == 2 and "--gamma" in last and "failed" in last


def test_runs_see_no_gpu(monkeypatch, tmp_path):
    """Guards against runs of another experiment: with a GPU in sight the default is WebText."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    experiments.call(["-c", f"import os; print([os.environ[x] for x in {names}])"],
                     tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text() == "['', '1']\n"


def test_list(monkeypatch, capsys):
    """Without a name it says what there is."""
    code, said, _ = run(experiments.main, [], monkeypatch, capsys)
    assert code == 0 and all(e.question in said for e in EXPERIMENTS.values())


def test_kept_checkpoints_are_asked_once(monkeypatch, tmp_path, capsys):
    """Guards the course of a training. Each kept checkpoint is asked once, and what was found
    stands with its step. New weights are asked again. (What lab.probe finds is made up here.)"""
    experiment, asked = EXPERIMENTS["training"], []
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    for arm in experiment.arms:
        out = ended(experiment, arm, step=250, accuracy_by_n=[0.5] * 30)
        for name in ("ckpt", "ckpt_000100", "ckpt_000200"):
            checkpoint(out / f"{name}.pt", 4)

    def call(command, log):
        script, path, found = command[:2], Path(command[3]), Path(command[5])
        assert script == ["-m", "lab.probe"] and open_run(path) and log.parent == found
        asked.append(path.name)
        right = {"ckpt": 1.0, "ckpt_000100": 0.2, "ckpt_000200": 0.6}[path.stem]
        own = {"accuracy_by_n": [right] * 30}
        (found / "probe.json").write_text(json.dumps({
            "conditions": {"own": own, "refed": own}, "synonyms": 1.0, "counterfactual": {},
            "aoc": {"early": dict.fromkeys(("1", "3", "10"), 0.5)}}))
    monkeypatch.setattr(experiments, "call", call)
    code, said, err = run(experiments.main, ["training", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0 and "2 to be probed" in said and said.count("[held]") == 2, err
    names = ["ckpt.pt"] * 2 + ["ckpt_000100.pt"] * 2 + ["ckpt_000200.pt"] * 2
    assert sorted(asked) == names
    for rows in (said, table(json.loads((tmp_path / "figures/training.json").read_text()))):
        for arm in experiment.arms:
            assert f"| {arm} | 100 | 20 | 20 | 0.50 | 0.50 |" in rows
            assert f"| {arm} | 200 | 60 | 60 | 0.50 | 0.50 |" in rows
    out = folder(experiment, "tokens, window", 0)
    (out / "probed").unlink()  # cut off before the last one
    code, _, _ = run(experiments.main, ["training", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0 and asked[6:] == ["ckpt.pt"]
    (out / "done").unlink()
    with pytest.raises(AssertionError):  # of `call`, which knows no train.py
        experiments.run(experiment, "tokens, window", 0)
    assert not list(out.rglob("probed"))


def test_training_is_thinned():
    """Of nine checkpoints three stand in the table. A step that one seed alone came to does not,
    nor does the end."""
    result = made_up("training", 0.5)
    course = [{"step": step, "accuracy_by_n": [step / 1000] * 30, "early": dict.fromkeys(
        ("1", "3", "10"), 0.5)} for step in range(100, 1001, 100)]
    for found in result["arms"].values():
        later = course[:-1] + [course[-1] | {"step": step} for step in (950, 1000)]
        found["seeds"] = [{"course": course}, {"course": later}]
    shown = [line.split(" | ")[1:3] for line in table(result).splitlines()[2:]]
    assert shown == [["300", "30 ± 0"], ["600", "60 ± 0"], ["900", "90 ± 0"]] * 2


def test_course_of_a_run(tmp_path):
    """Evaluations alone, each with what it has."""
    lines = [{"kind": "eval", "step": 0, "accuracy": 0.3}, {"kind": "step", "step": 0},
             {"kind": "eval", "step": 1, "accuracy": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert experiments.curve(tmp_path) == {"step": [0, 1], "accuracy": [0.3, 0.5]}


# Arms

def test_predictions_of_kinds_of_characters():
    """Guards those that speak of letters and of nats: of a result where all is alike they are
    false, and true where thoughts help after letters, and not with what nobody could know."""
    for right, held in ((1 / 3, False), (0.5, True)):
        judged = verdicts(EXPERIMENTS["forgotten"].claims, made_up("forgotten", right))
        assert [it for _, it in judged[4:7]] == [held] * 3


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_flags_are_accepted(name, monkeypatch, tmp_path):
    """No run of an experiment is refused after hours of others."""
    arms = EXPERIMENTS[name].arms
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for text in EXPERIMENTS[name].texts:
        more = "".join(f"1. {a}{i} * " for a in "abcdefgh" for i in range(1, 9)) * 9
        (Path("runs") / text).write_text("abcd efgh. " * 300 + more)
    for file, source in EXPERIMENTS[name].files:
        make(file, Path("runs") / f"{file}.jsonl", rows=80, source=source and Path("runs") / source)
    for arm in arms.values():
        assert arm.after is None or arm.after in arms
        s = settings_of(arm, monkeypatch)
        assert f"--approach {s.approach}" in arm.command or s.approach == "stream"


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_results_have_the_commands_of_today(name):
    """What figures/NAME.json says of its arms can be typed."""
    result = json.loads((experiments.ROOT / "figures" / f"{name}.json").read_text())
    assert {arm: found["command"] for arm, found in result["arms"].items()} == {
        arm: whole_command(it) for arm, it in EXPERIMENTS[name].arms.items()}
    assert result["prediction"] == EXPERIMENTS[name].prediction


def test_the_truth_is_learned_as_a_thinkers_thoughts():
    """The flags of the oracle with full attention are what lab.distil sets for a thinker."""
    typed = vars(parser().parse_args(experiments.GIVEN.split()))
    assert typed == {k: v for k, v in distil.GIVEN.items() if k != "entropy"}


def test_weights_of_the_random_policy_never_move(monkeypatch):
    """Its flags leave them where they were born. And runs of channel are shared."""
    arms = EXPERIMENTS["content"].arms
    s = settings_of(arms["random policy"], monkeypatch)
    assert s.lr == s.think_lr == 0 and arms["random policy, full"].after == "random policy"
    shared = ("tokens, window", "tokens, full", "filler, full", "none, full")
    assert all(folder(EXPERIMENTS[x], arm, 1) == folder(EXPERIMENTS["channel"], arm, 1)
               for x in ("content", "faithful") for arm in shared if arm in EXPERIMENTS[x].arms)


def test_groups_of_depth_are_alike(monkeypatch):
    """Equally many moves in both, and the same arms: only the controls see everything. The moves
    of one group alone commute."""
    arms, channel = EXPERIMENTS["depth"].arms, EXPERIMENTS["channel"]
    for arm, it in arms.items():
        s, (group, kind, layers) = settings_of(it, monkeypatch), arm.split(", ")
        cups = open_source(s.data)
        assert len(cups.moves) == 5 and len({tuple(goes) for goes in cups.goes.tolist()}) == 5
        commute = all((x[y] == y[x]).all() for x in cups.goes for y in cups.goes)
        assert commute == (group == "Z6") and cups.m == (6 if commute else 3)
        assert kind == s.thoughts
        assert kind != "oracle" or s.think_vocab == cups.m
        assert (s.window == 0) == (kind in ("none", "filler"))
        assert layers == report.in_layers(scratch_shape(s.model)[0])
    s3, z6 = ({arm[2:] for arm in arms if arm[:2] == group} for group in report.GROUPS)
    assert s3 == z6 and len(arms) == 18
    for ours, theirs in (("tokens, 1 layer", "tokens, window"), ("none, 1 layer", "none, full"),
                         ("none, 4 layers", "none, full, 4 layers"),
                         ("filler, 1 layer", "filler, full")):
        assert folder(EXPERIMENTS["depth"], f"S3, {ours}", 0) == folder(channel, theirs, 0)


# Numbers, tables and figures of a result

def test_intervals_and_table_by_hand():
    """Student's t for three seeds: 4.30 * 1 / sqrt(3); one seed has no interval."""
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.30 / 3 ** 0.5, rel=1e-3))
    mean, half = interval([5.0])
    assert mean == 5.0 and half != half
    seeds = [{"accuracy_by_n": [a] * 30, "step": 1000, "seconds": 10} for a in (0.5, 0.7)]
    row = table({"arms": {"x": {"seeds": seeds}}}).splitlines()[2]
    assert row.startswith("| x | 60 ± 127 |") and row.endswith("| 10 |")


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_prediction_is_judged(name):
    """Each sentence has a check, and these tell results apart; and each experiment has its
    table."""
    claims = EXPERIMENTS[name].claims
    judged = [verdicts(claims, made_up(name, right)) for right in (1 / 3, 1.0)]
    assert all(isinstance(held, bool) for verdict in judged for _, held in verdict)
    assert judged[0] != judged[1]
    assert EXPERIMENTS[name].prediction == " ".join(text for text, _ in judged[0])
    result = made_up(name, 0.5)
    cells = {**dict.fromkeys(("text", "chess", "forgotten"), "2.000 ± 0.000 |"),
             "content": "| 0 ± 0 |", "faithful": "| 0.50 ± 0.00 |", "depth": " 0.0 ± 0.0 |",
             "judged": "| - | - |"}
    rows = {"content": 4, "faithful": 4, "judged": 3, "waterfall": 8, "forgotten": 4}.get(
        name, len(result["arms"]))
    assert table(result).count(cells.get(name, "| 50 ± 0 |")) >= rows


def test_alphabet_by_hand():
    """Updates until 90 % right, and which arms are read as words. A median in the table."""
    result = made_up("alphabet", 0.5)
    arms = result["arms"]
    curves = [{"step": [0, 100, 200], "accuracy": [0.3, 0.9, 0.8],
               "thoughts_as_text": [-1.0, -2.0, -4.0]},
              {"step": [0, 100], "accuracy": [0.3, 0.7], "thoughts_as_text": [-1.0, -3.0]}]
    seeds = arms["words"]["seeds"]
    arms["words"]["seeds"] = [s | {"curve": c} for s, c in zip(seeds, curves)]
    for one in arms["new rows"]["seeds"]:
        one["curve"] = {k: v for k, v in one["curve"].items() if k != "thoughts_as_text"}
    assert report.updates_to(result, "words").tolist() == [100, np.inf]
    assert "new rows" not in report.named(result)
    assert report.as_words(result, "words").tolist() == [-4, -3]
    rows = table(result)
    assert "| words | 50 ± 0 | never | -1.0 ± 0.0 | -3.5 ± 6.4 |" in rows
    assert "| new rows | 50 ± 0 | never |  |  |" in rows
    arms["words"]["seeds"].append(arms["words"]["seeds"][0])
    assert "| words | 50 ± 0 | 100 | " in table(result)


def test_parts_add_up():
    """Compute is what filler has over none, recipe what a random policy has over filler, content
    the rest."""
    result = made_up("content", 0.0)
    for arm, right in (("none, full", 0.3), ("filler, full", 0.4), ("random policy, full", 0.35),
                       ("tokens, full", 1.0)):
        seeds = result["arms"][arm]["seeds"]
        result["arms"][arm]["seeds"] = [s | {"accuracy_by_n": [right] * 30} for s in seeds]
    split = parts(result)
    means = {k: round(float(x.mean()), 6) for k, x in split.items()}
    assert means == {"compute": 0.1, "recipe": -0.05, "content": 0.65, "all": 0.7}
    assert np.allclose(split["compute"] + split["recipe"] + split["content"], split["all"])
    assert "| content | 65 ± 0 |" in table(result)


def test_unaided():
    result = made_up("faithful", 0.5)
    for first, n in (([1.0, 0.95, 0.5, 1.0] + [0.0] * 26, 2), ([0.5] * 30, 0), ([1.0] * 30, 30)):
        result["arms"]["none, full"]["seeds"] = [{"accuracy_first_by_n": first}] * 2
        assert report.unaided(result) == n


def test_reach():
    """Up to which n nine in ten are right, by seed, without a gap."""
    result = made_up("depth", 0.5)
    firsts = [1.0, 0.95, 0.5, 0.9] + [0.0] * 26, [0.5] * 30, [1.0] * 30
    result["arms"]["Z6, none, 2 layers"]["seeds"] = [
        {"accuracy_by_n": [0.0] * 30, "seconds": 1, "accuracy_first_by_n": x} for x in firsts]
    assert report.reach(result, "Z6, none, 2 layers").tolist() == [2, 0, 30]
    rows = table(result).splitlines()
    far = report.cell([2, 0, 30], 1)
    assert f"| none, 2 layers | 0.0 ± 0.0 | {far} |" in rows


def test_rows_by_hand():
    """Both approaches in one line, each with the median of its updates."""
    result = made_up("rows", 0.5)
    for approach, steps in (("stream", (3, 5, 90)), ("teacher", (7, 8, 9))):
        one, _ = result["arms"][f"{approach}, N = 16"]["seeds"]
        result["arms"][f"{approach}, N = 16"]["seeds"] = [one | {"step": x} for x in steps]
    assert "| 16 | 50 ± 0 | 5 | 50 ± 0 | 8 | 200 ± 0 |" in table(result).splitlines()


def test_tables_follow_the_commands():
    """The n of a table, and what is asked of a command's game."""
    assert "n = 12" in table(made_up("worlds", 0.5))
    said = 'x.py --data "cups m=5 idle=0.4" --y', "x.py", "x.py --data my.txt"
    assert [report.said(x, "m", 3) for x in said] == [5, 3, 3]
    assert [report.said(x, "idle", 0.0) for x in said] == [0.4, 0.0, 0.0]


def test_when_it_thinks():
    """By seed, after which moves."""
    result = made_up("when", 0.5)
    one, other = result["arms"]["released"]["seeds"]
    looked = one["probe"] | {"after_which": {"first": 0.75}}
    more = {"thinks_after_moved": 0.7, "thinks_elsewhere": 0.25, "probe": looked,
            "thoughts_by_n": [1 + 0.7 * n for n in range(30)]}
    still = {"thoughts_by_n": [1 + 0.5 * n for n in range(30)]}
    result["arms"]["released"]["seeds"] = [one | still, other | more]
    assert ("| released | 50.0, 70.0 | 50.0, 25.0 | 0.50, 0.70 | 100, 75 |"
            in table(result).splitlines())


# The page

@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The runs of `content` and `faithful` are there: tiny models that have learned nothing. Two
    stories per question."""
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    monkeypatch.setattr(experiments, "LOOK", {"cups": 2})
    for arm in EXPERIMENTS["content"].arms:
        out = ended(EXPERIMENTS["content"], arm, accuracy_first_by_n=[0.3] * 30)
        N = 0 if "none" in arm else 1 if "filler" in arm else 4
        checkpoint(out / "ckpt.pt", N, continuous=False)


def test_probed_experiments_and_the_page(asked, monkeypatch, capsys, tmp_path):
    """Both ask the same checkpoints, each once; their numbers are lab.probe's. All of it is on the
    page, which needs nothing else and whose thoughts each have a note."""
    code, said, err = run(experiments.main, ["content", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0 and "0 of 6 runs are to be made, 1 to be probed" in said, err
    full = folder(EXPERIMENTS["content"], "tokens, full", 0)
    found = json.loads((full / "probe.json").read_text())
    right = found["conditions"]["another"]["accuracy_by_n"][9]
    result = json.loads((tmp_path / "figures/content.json").read_text())
    assert re.search(rf"^\| right at n = 10, % \| \d+ \| {100 * right:.0f} \|", table(result), re.M)
    assert said.count("[held]") + said.count("[did NOT hold]") == 3
    code, said, err = run(experiments.main, ["faithful", "--seeds", "1"], monkeypatch, capsys)
    assert code == 0 and "0 of 3 runs are to be made, 1 to be probed" in said, err
    assert "| no change |" in said
    argv = ["report", "--checkpoint", full / "ckpt.pt"]
    code, said, err = run(experiments.main, argv, monkeypatch, capsys)
    assert code == 0 and "2 experiments, stories of" in said, err
    page = (tmp_path / "figures/report.html").read_text()
    assert page.count("data:image/png") == 2
    page = re.sub("base64,[^\"]+", "", page)  # in whose letters any word may stand by chance
    assert "http" not in page and "<script" not in page
    thoughts = sum(2 * m for m in report.LENGTHS_TOLD)
    assert page.count('tabindex="0"') == page.count('class="note"') == thoughts
    for name in ("content", "faithful"):
        assert EXPERIMENTS[name].claims[0][0][:30] in page and f"<h2>{name}</h2>" in page


def test_results_of_other_arms_are_not_reported(monkeypatch, tmp_path, capsys):
    """Guards against a verdict on what was never run: a result that is older than its experiment
    is refused with one line."""
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    result = made_up("worlds", 0.5)
    del result["arms"]["5 cups, tokens"]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/worlds.json").write_text(json.dumps(result))
    code, _, err = run(experiments.main, ["report"], monkeypatch, capsys)
    assert code == 2 and "other arms" in err and err.count("\n") == 1


def test_page_escapes(tmp_path):
    """No words of a result become markup."""
    bad = "<script>alert(1)</script>"
    result = made_up("channel", 0.5) | {"question": bad, "command": bad}
    result["arms"] = {bad: result["arms"]["tokens, window"]}
    there = report.section(bad, result, [(bad, True)], tmp_path / "none.png")
    report.write_page(tmp_path / "x.html", [there], None)
    page = (tmp_path / "x.html").read_text()
    assert "<script" not in page and len(re.findall("&lt;script", page)) >= 5
    assert "<img" not in page and "own text" not in page


@pytest.mark.parametrize("rules", [{"think": "free", "max_thoughts": 2}, {"max_thoughts": 2},
                                   {"window": 5}], ids=["free, 2", "forced, 2", "window"])
def test_stories_of_any_kind(rules, tmp_path):
    """Each thought has its note, whoever chose when to think, and however many may stand in a
    slot."""
    checkpoint(tmp_path / "x.pt", 4, **rules)
    shown, notes, _ = report.told_stories(tmp_path / "x.pt")
    assert len(shown) == len(notes) == 2 * len(report.LENGTHS_TOLD)
    assert [x.count('class="think"') for x in shown] == list(map(len, notes))
    assert sum(map(len, notes)) > 10
    assert all(len(text.splitlines()) == 4 and text.startswith("<think")
               for story in notes for text in story)


@pytest.mark.parametrize("window", [0, 1, 2])
def test_what_thoughts_on_a_text_stand_for(window, tmp_path, monkeypatch, capsys):
    """A text is read with thoughts that can be pointed at: what stood out of sight where the same
    one was thought after the same token, and what came next. Counted once more, row by row."""
    text, out = tmp_path / "a.txt", tmp_path / "run"
    letters = np.random.default_rng(0).choice(list("aab"), 2000)
    text.write_text("".join(f"{x}{x.upper()}-" for x in letters))
    code, _, err = run(train.main, [
        "--data", text, "--model", "bytes:1x8", "--approach", "stream", "--steps", "1",
        "--window", str(window), "--think_vocab", "4", "--out", out], monkeypatch, capsys)
    assert code == 0, err
    shown, notes, _ = report.told_stories(out / "ckpt.pt")
    assert [x.count('class="think"') for x in shown] == list(map(len, notes)) == [64] * 4
    read = open_run(out / "ckpt.pt")
    V, spell = read.model.config.vocab_size, read.tokenizer.decode
    counts = {}
    for row in first_case(read, 512, 0).own.kept():
        so_far = ""
        for i, z in enumerate(row):
            if z < V:
                so_far += spell([z])
                continue
            for name in (read.tokenizer.name(z), None):
                behind, coming = counts.setdefault((name, so_far[-1]), ([], []))
                behind += so_far[-1 - window]
                coming += spell(row[i + 1:i + 2])
    checked = 0
    for said in sum(notes, []):
        first, *lines = said.splitlines()
        name, _, seen = first.split(",")[0].split(" ", 2)
        its, any_of_them = (counts[key, seen.strip("'")] for key in (name, None))
        assert first.endswith(f", {len(its[1])} times")
        for line, found, of_all in zip(lines[::-1], its[::-1], any_of_them[::-1]):
            if len(found) < report.FEW:
                assert line.endswith("too few to say")
                continue
            for part, letters in zip(line.split("; with any thought "), (found, of_all)):
                best = max(sorted(set(letters)), key=letters.count)
                assert f"{best!r} {letters.count(best) / len(letters):.0%}" in part
            checked += 1
        assert len(lines) == 1 + (window > 0)
        assert window == 0 or lines[0].startswith("  before that, out of sight: ")
    assert checked > 100


def test_stories_without_thoughts(tmp_path):
    """A gate that never opens leaves stories with nothing to point at."""
    checkpoint(tmp_path / "x.pt", 4, think="free")
    saved = read_weights(tmp_path / "x.pt")
    saved["model"]["gate_bias"].fill_(-1e4)
    save(tmp_path / "x.pt", saved)
    shown, notes, _ = report.told_stories(tmp_path / "x.pt")
    assert not any(notes) and not any("think" in x for x in shown)


@pytest.mark.parametrize("argv, words", [
    (["report"], "nothing to report yet"),
    (["report", "--checkpoint", "{tmp}/none.pt"], "there is no"),
    (["report", "--checkpoint", "{tmp}/vector.pt"], "as ids that stay"),
    (["report", "--checkpoint", "{tmp}/good.pt", "--out", "{tmp}/good.pt/x.html"], "good.pt"),
    (["channel", "--out", "x"], "belong to report"),
    (["channel", "--seeds", "0"], "at least 1"),
    (["chanel"], "invalid choice"),
], ids=" ".join)
def test_refuses(argv, words, tmp_path, monkeypatch, capsys):
    """One clear line and exit code 2."""
    checkpoint(tmp_path / "vector.pt", 1)
    checkpoint(tmp_path / "good.pt", 4)
    monkeypatch.setattr(experiments, "OUT", tmp_path)
    argv = [x.format(tmp=tmp_path) for x in argv]
    code, _, err = run(experiments.main, argv, monkeypatch, capsys)
    assert code == 2 and words in err and err.count("\n") == 1, err
