"""The commands as a person types them: what they refuse, in one line, and what they leave behind."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import journal
import sample
import train
from conftest import run
from data import Cups
from evaluate import evaluate as real
from lab import picture, pretrain, probe, report
from model import GPT, Config, as_checkpoint, read_weights, save
from rollout import load_run

ROOT = Path(__file__).resolve().parent.parent.parent
SHORT = ["--approach", "stream", "--steps", "2", "--eval_every", "2", "--prompts", "2", "--samples", "2", "--think_vocab", "16"]


def files(tmp):
    """Bad inputs that have to exist as files."""
    (tmp / "empty.txt").write_text("")
    (tmp / "short.txt").write_text("one two three")
    (tmp / "foreign.txt").write_text("A word outside the language of cups. " * 99)
    (tmp / "plain").write_text("in the way")
    torch.save(as_checkpoint(GPT(Config(1, 2, 16, 64, 19))), tmp / "other_language.pt")
    cups = Cups(3)
    torch.save(as_checkpoint(GPT(Config(1, 2, 16, 40, 19), cups.text_ids)), tmp / "small.pt")
    damaged = as_checkpoint(GPT(Config(1, 2, 16, 64, 19), cups.text_ids))
    damaged["config"]["n_embd"] = 32
    torch.save(damaged, tmp / "shape.pt")
    (tmp / "truncated.pt").write_bytes((tmp / "small.pt").read_bytes()[:999])
    return tmp


BAD = [  # arguments of train.py, and words that the line must have
    (["--think_vocb", "64"], "--think_vocab"),
    (["--aproach=stream"], "--approach"),
    (["--think_vocab", "many"], "invalid int"),
    (["--approach", "streem"], "choose from"),
    (["--think_vocab", "0"], "at least 1"),
    (["--think_vocab", "-5"], "at least 1"),
    (["--samples", "1"], "sibling"),
    (["--thoughts", "none", "--think", "free"], "no thoughts"),
    (["--prompts", "0"], "at least 1"),
    (["--steps", "0"], "at least 1"),
    (["--think_prior", "1.5"], "between 0 and 1"),
    (["--window", "-1"], "at least 0"),
    (["--keep_every", "-1"], "at least 0"),
    (["--new_tokens", "5000"], "context"),
    (["--prompt_tokens", "11"], "Moves"),
    (["--model", "gpt3"], "no model 'gpt3'"),
    (["--model", "{tmp}/nothing.pt"], "no model"),
    (["--model", "{tmp}/truncated.pt"], "can't be read"),
    (["--model", "{tmp}/shape.pt"], "do not fit"),
    (["--model", "{tmp}/other_language.pt"], "language"),
    (["--teacher", "{tmp}/other_language.pt"], "vocabulary"),
    (["--model", "{tmp}/small.pt", "--teacher", "{tmp}/small.pt"], "context"),
    (["--approach", "stream", "--teacher", "pico"], "approach teacher"),
    (["--answer_grad", "off"], "a given text"),
    (["--approach", "next_token", "--gamma", "0.5"], "thoughts that stay"),
    (["--layers", "2"], "model scratch"),
    (["--cups", "9", "--model", "scratch"], "2 to 5 cups"),
    (["--cups", "5"], "language of 5 cups"),
    (["--cups", "6", "--model", "scratch"], "6: --moves turns"),
    (["--moves", "turns"], "that only turn"),
    (["--moves", "turns", "--balls", "all", "--approach", "stream"], "--balls one"),
    (["--moves", "turns", "--data", "{tmp}/short.txt"], "data cups"),
    (["--thoughts", "none", "--think_vocab", "8"], "--thoughts tokens"),
    (["--alphabet", "text", "--model", "pico", "--think_vocab", "18"], "each of 19 words"),
    (["--approach", "stream", "--alphabet", "redrawn"], "trained base"),
    (["--alphabet", "text", "--thoughts", "filler"], "--thoughts tokens"),
    (["--pull", "0.1", "--alphabet", "redrawn"], "alphabet text"),
    (["--pull", "-1", "--alphabet", "text"], "at least 0"),
    (["--text_grad", "sampled", "--siblings", "shared"], "--siblings free"),
    (["--data", "{tmp}/nothing.txt"], "no readable"),
    (["--data", "{tmp}/plain"], "no readable"),
    (["--data", "{tmp}/empty.txt", "--model", "pico", "--teacher", "pico"], "empty"),
    (["--data", "{tmp}/short.txt", "--approach", "stream", "--model", "scratch"], "too short"),
    (["--data", "{tmp}/foreign.txt", "--model", "pico", "--teacher", "pico"], "outside this model's language"),
    (["--out", "{tmp}/plain"], "plain"),
    (["--resume"], "nothing to resume"),
    (["--resume", "--lr", "1"], "nothing to resume"),
    (["--approach", "stream", "--max_thoughts", "6"], "lower"),
    (["--approach", "stream", "--width", "9"], "even"),
    (["--device", "cuda"], "CUDA"),
]


@pytest.mark.parametrize("argv, words", BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_train_refuses(argv, words, tmp_path, monkeypatch, capsys):
    """Each bad input ends in exit code 2 and one line that names what is wrong; no traceback."""
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    import data
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    files(tmp_path)
    argv = [x.format(tmp=tmp_path) for x in argv]
    if "--out" not in argv:
        argv += ["--out", tmp_path / "out"]
    code, _, err = run(train.main, argv, monkeypatch, capsys)
    assert code == 2 and words in err and err.count("\n") == 1, err


@pytest.mark.parametrize("argv, words", [
    (["--checkpoint", "{tmp}/none.pt"], "train.py"),
    (["--checkpoint", "{tmp}/truncated.pt"], "can't be read"),
    (["--prompt", "elephant"], "outside this model's language"),
    (["--prompt", ""], "empty"),
    (["--new_tokens", "9999"], "context"),
    (["--samples", "0"], "at least 1"),
    (["--replace", "1-2"], "--replace"),
    (["--replace", "1=99999"], "--replace"),
    (["--promt", "The"], "--prompt"),
    (["--html", "{tmp}/no/such/folder.html"], "folder.html"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_sample_refuses(argv, words, tmp_path, monkeypatch, capsys):
    """The same for sample.py, with a checkpoint of cups that knows 16 thoughts."""
    files(tmp_path)
    cups = Cups(3)
    torch.save(as_checkpoint(GPT(Config(1, 2, 16, 256, 19, 16), cups.text_ids)), tmp_path / "ckpt.pt")
    argv = [x.format(tmp=tmp_path) for x in argv]
    if "--checkpoint" not in argv:
        argv += ["--checkpoint", tmp_path / "ckpt.pt"]
    code, _, err = run(sample.main, argv, monkeypatch, capsys)
    assert code == 2 and words in err and err.count("\n") == 1, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps, as a real command, and what it printed."""
    out = tmp_path_factory.mktemp("run")
    done = subprocess.run([sys.executable, ROOT / "train.py", *SHORT, "--out", out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_run_leaves_its_files(finished):
    """Checkpoint, log, curves and samples are there; the log has one line a step and evaluations first and last."""
    out, printed = finished
    assert {"ckpt.pt", "metrics.jsonl", "curves.png", "samples.html"} <= {f.name for f in out.iterdir()}
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(x["kind"], x["step"]) for x in lines] == [("eval", 0), ("step", 0), ("step", 1), ("eval", 2)]
    assert len(lines[0]["accuracy_by_n"]) == 30 and "what was learnt" in printed


def test_sample_shows_thoughts(finished, monkeypatch, capsys):
    """Prompt, text and thoughts have their colours; hidden thoughts leave no name; --replace leaves no old one."""
    out, _ = finished
    base = ["--checkpoint", out / "ckpt.pt", "--prompt", "The ball is under cup B. Moves:", "--html", out / "page.html"]
    code, shown, _ = run(sample.main, [*base, "--color", "always"], monkeypatch, capsys)
    assert code == 0 and "\033[31mThe ball" in shown and "\033[36m<think" in shown and "\033[34m" in shown
    page = (out / "page.html").read_text()
    assert "&lt;think" in page and '<span class="prompt">The ball' in page
    code, hidden, _ = run(sample.main, [*base, "--hide_thoughts"], monkeypatch, capsys)
    assert code == 0 and "think" not in hidden and "\033" not in hidden
    assert "thought" in page and "thought" not in (out / "page.html").read_text()  # the legend
    moves = ["--checkpoint", out / "ckpt.pt", "--prompt", "The ball is under cup B. Moves: AB, left. Where?", "--new_tokens", "3"]
    code, inside, _ = run(sample.main, moves, monkeypatch, capsys)  # a prompt's moves are thought about as well
    assert re.match(r"The ball is under cup B. Moves: AB<think\d+>, left<think\d+>. Where\?", inside), inside
    moves[3] += "  "  # GPT-2's words bring their own spaces
    assert run(sample.main, moves, monkeypatch, capsys)[1] == inside
    every = [x for i in range(15) for x in ("--replace", f"{i}=15")]
    code, replaced, _ = run(sample.main, [*base, *every], monkeypatch, capsys)
    assert "<think15>" in replaced and not any(f"<think{i}>" in replaced for i in range(15))


def test_without_a_compiler(tmp_path):
    """Guards --compile on where there is no C++ compiler: one line says so, and the run goes on without."""
    line = [sys.executable, "train.py", *SHORT, "--width", "8", "--swaps", "2", "--new_tokens", "8", "--compile", "on", "--out", str(tmp_path / "out")]
    bare = {**os.environ, "CXX": "no-such-compiler", "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(line, cwd=ROOT, env=bare, capture_output=True, text=True)
    assert done.returncode == 0 and "torch.compile does not run here, so compile is off" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr and "compile off" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="no such lock")
def test_two_runs_in_one_folder(tmp_path, monkeypatch, capsys):
    """Guards a run that goes on against a second one in its folder, new or --resume: refused, and nothing of it touched. Once it
    has ended, the folder is free."""
    short = [*SHORT, "--width", "8", "--swaps", "1", "--new_tokens", "8", "--out", tmp_path / "out"]
    assert run(train.main, short, monkeypatch, capsys)[0] == 0
    before = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    with train.held(tmp_path / "out"):
        for argv in (short, ["--resume", "--steps", "4", "--out", tmp_path / "out"]):
            code, _, err = run(train.main, argv, monkeypatch, capsys)
            assert code == 2 and "in use by a run that goes on" in err and err.count("\n") == 1
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()} == before
    assert run(train.main, ["--resume", "--steps", "4", "--out", tmp_path / "out"], monkeypatch, capsys)[0] == 0


def test_a_folder_stands_for_its_checkpoint(finished, tmp_path, monkeypatch, capsys):
    """Wherever a checkpoint is asked for, its run's folder will do."""
    out, _ = finished
    assert isinstance(sample.load(out), GPT) and load_run(out)[2] == load_run(out / "ckpt.pt")[2]
    assert run(probe.main, ["--checkpoint", out, "--stories", "2", "--out", tmp_path], monkeypatch, capsys)[0] == 0
    for own in (out, out / "ckpt_000002.pt"):
        code, _, err = run(train.main, ["--approach", "stream", "--thinker", own, "--out", out], monkeypatch, capsys)
        assert code == 2 and f"{own} is judge or thinker" in err


def test_nearest_rows():
    """Guards what a page says of a vector: the words whose rows have the largest cosine, whatever their lengths."""
    words = sample.Tokenizer([100, 200, 300])
    model = sample.GPT(Config(1, 2, 2, 8, 3), words.text_ids)
    with torch.no_grad():
        model.wte.weight.copy_(torch.tensor([[9.0, 0.0], [0.0, 0.1], [-3.0, -3.0]]))
    a, b, _ = map(repr, words.words())
    vectors = torch.tensor([[0.6, 0.8], [5.0, 0.0]])
    assert sample.nearest_rows(model, words, vectors, 2) == [f"{b} 0.80, {a} 0.60", f"{a} 1.00, {b} 0.00"]


@pytest.mark.parametrize("argv", [
    ["--siblings", "free"], ["--text_grad", "sampled", "--beta", "0"], ["--thoughts", "filler"],
    ["--approach", "next_token"], ["--approach", "next_token", "--think", "free"],
    ["--approach", "stream", "--max_thoughts", "2", "--micro_batch", "3"],
    ["--approach", "stream", "--thoughts", "continuous"], ["--approach", "next_token", "--thoughts", "continuous"],
    ["--approach", "stream", "--thoughts", "oracle"], ["--approach", "stream", "--idle", "0.3", "--think", "free"],
], ids=" ".join)
def test_two_steps_of_every_kind(argv, tmp_path, monkeypatch, capsys):
    """Every approach and kind of thought trains, is evaluated, and can be sampled from its checkpoint; a run that is at
    its end and resumed says what it had learnt."""
    monkeypatch.setattr(journal, "evaluate", lambda *a, **kind: real(*a, **{**kind, "rows": 8}, each=1) if len(a) < 7
                        else real(*a[:6], 1, rows=8))
    short = ["--steps", "2", "--eval_every", "2", "--new_tokens", "12", "--out", tmp_path]
    short += ["--think_vocab", "16", "--prompts", "2", "--samples", "2"] if "--thoughts" not in argv else []
    code, said, err = run(train.main, [*argv, *short], monkeypatch, capsys)
    assert code == 0 and "what was learnt" in said, err
    resumed = run(train.main, ["--resume", "--out", tmp_path], monkeypatch, capsys)
    assert resumed[0] == 0 and resumed[1].split("what was learnt")[1].split(" s;")[0].rsplit("\n", 1)[0] in said
    assert "nothing is left to do" in resumed[1]
    code, shown, err = run(sample.main, ["--checkpoint", tmp_path / "ckpt.pt", "--new_tokens", "9", "--html", tmp_path / "page.html",
                                         "--prompt", "The ball is under cup B. Moves: AB. Where?"], monkeypatch, capsys)
    assert code == 0 and "Where?" in shown, err
    thoughts, notes = ((tmp_path / "page.html").read_text().count(x) for x in ('<span class="think" tabindex', "nearest rows: "))
    assert thoughts == notes and (notes > 0 or {"continuous", "next_token"} <= {*argv})
    assert ("█" in shown) == ("continuous" in argv) and ("<think" in shown) == ("continuous" not in argv)


def test_a_ring_of_six_cups(tmp_path, monkeypatch, capsys):
    """Guards --moves everywhere a run's world is built again: on --resume, to be probed, drawn, and told on the page, where there
    is a sixth letter."""
    monkeypatch.setattr(journal, "evaluate", lambda *a, **kind: real(*a[:6], 1, rows=8))
    short = ["--steps", "2", "--eval_every", "2", "--new_tokens", "12", "--prompts", "2", "--samples", "2", "--out", tmp_path]
    turns = ["--approach", "stream", "--moves", "turns", "--cups", "6", "--think_vocab", "16"]
    code, _, err = run(train.main, [*turns, *short], monkeypatch, capsys)
    assert code == 0, err
    code, said, err = run(train.main, ["--resume", "--steps", "3", "--out", tmp_path], monkeypatch, capsys)
    assert code == 0 and "what was learnt" in said, err
    code, _, err = run(probe.main, ["--checkpoint", tmp_path / "ckpt.pt", "--stories", "2"], monkeypatch, capsys)
    found = json.loads((tmp_path / "probe.json").read_text())
    assert code == 0 and found["cups"] == 6 and found["dictionary"]["columns"][-1] == "F five", err
    assert {cup for kind, _, cup in picture.story(tmp_path / "ckpt.pt", 0) if kind == "think"} <= set("ABCDEF")
    assert all(notes for notes in report.told_stories(tmp_path / "ckpt.pt")[1])


def test_resume_keeps_the_settings(finished, monkeypatch, capsys):
    """Guards against a run that goes on as another one: what is typed beside --resume has to be what the run had, also where it
    is the default of a new one."""
    resume = ["--resume", "--out", finished[0]]
    for said in (["--approach", "teacher"], ["--lr", "1"], ["--seed", "3"], ["--thoughts", "filler"]):
        code, _, err = run(train.main, [*resume, *said], monkeypatch, capsys)
        assert code == 2 and said[0] in err and said[1] in err, err
    code, said, err = run(train.main, [*resume, *SHORT, "--device", "auto"], monkeypatch, capsys)
    assert code == 0 and "nothing is left to do" in said, err


def test_sample_says_how_old_it_is(finished, tmp_path, monkeypatch, capsys):
    """Guards against a look at an unfinished run that passes for its result."""
    saved = read_weights(finished[0] / "ckpt.pt")
    assert "of 2" not in run(sample.main, ["--checkpoint", finished[0] / "ckpt.pt"], monkeypatch, capsys)[2]
    save(tmp_path / "half.pt", saved | {"state": saved["state"] | {"step": 1}})
    code, _, err = run(sample.main, ["--checkpoint", tmp_path / "half.pt"], monkeypatch, capsys)
    assert code == 0 and "from step 1 of 2" in err


def test_padded_rows_are_refused(tmp_path, monkeypatch, capsys):
    """Guards against names that are shifted: a GPT-2 padded to 50,304 rows has ids that the tokenizer doesn't know."""
    torch.save(as_checkpoint(GPT(Config(1, 2, 16, 300, 50304))), tmp_path / "padded.pt")
    (tmp_path / "text.txt").write_text("Some words of a text. " * 200)
    for main, argv in ((train.main, ["--approach", "stream", "--data", tmp_path / "text.txt", "--model", tmp_path / "padded.pt"]),
                       (sample.main, ["--checkpoint", tmp_path / "padded.pt"])):
        code, _, err = run(main, argv, monkeypatch, capsys)
        assert code == 2 and "50,304 text rows" in err and err.count("\n") == 1, err


def test_the_shipped_model_is_not_overwritten(monkeypatch, capsys):
    """Guards assets/pico: lab/pretrain.py with other settings wants to know where its model belongs."""
    code, _, err = run(pretrain.main, ["student", "--steps", "10"], monkeypatch, capsys)
    assert code == 2 and "--out" in err


def test_a_checkpoint_a_minute(tmp_path, monkeypatch, capsys):
    """Guards what kill -9 costs: between evaluations checkpoints are written by the clock."""
    steps, real = [], train.save
    monkeypatch.setattr(train, "save", lambda path, state: (steps.append(state["state"]["step"]), real(path, state)))
    argv = [*SHORT[2:], "--approach", "stream"]
    argv[argv.index("--steps") + 1] = argv[argv.index("--eval_every") + 1] = "4"
    for seconds, wanted in ((0, [0, 1, 2, 3, 4]), (1e9, [0, 4])):
        monkeypatch.setattr(train, "SAVE_SECONDS", seconds)
        steps.clear()
        assert run(train.main, [*argv, "--out", tmp_path / str(seconds)], monkeypatch, capsys)[0] == 0 and steps == wanted


def test_resume_equals_uninterrupted(tmp_path, monkeypatch, capsys):
    """Two steps, then two more with --resume: the weights and the log of four steps at once, to the bit."""
    long, cut = tmp_path / "long", tmp_path / "cut"
    argv = [*SHORT[2:], "--approach", "stream"]
    argv[argv.index("--steps") + 1] = "4"
    assert run(train.main, [*argv, "--out", long], monkeypatch, capsys)[0] == 0

    class Cut(Exception):
        pass

    real_save = train.save

    def save_then_die(path, state):
        real_save(path, state)
        raise Cut

    monkeypatch.setattr(train, "save", save_then_die)
    with pytest.raises(Cut):
        run(train.main, [*argv, "--out", cut], monkeypatch, capsys)
    monkeypatch.setattr(train, "save", real_save)
    assert run(train.main, ["--resume", "--out", cut], monkeypatch, capsys)[0] == 0
    a, b = (torch.load(x / "ckpt.pt", weights_only=True)["model"] for x in (long, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [[{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in (d / "metrics.jsonl").read_text().splitlines()]
            for d in (long, cut)]
    assert logs[0] == logs[1]


def test_a_thinker_teaches_its_thoughts(tmp_path, monkeypatch, capsys):
    """Guards --thinker: a new model that sees everything learns from a windowed one's thoughts; what does not fit is refused
    with one line: another vocabulary of thoughts, a folder that the run itself writes to, another approach."""
    short = ["--approach", "stream", "--steps", "2", "--eval_every", "2", "--width", "8", "--think_vocab", "16", "--prompts", "2"]
    assert run(train.main, [*short, "--samples", "2", "--out", tmp_path / "narrow"], monkeypatch, capsys)[0] == 0
    taught, thinks, learns = [*short, "--thinker", tmp_path / "narrow/ckpt.pt"], [], []
    rollout, states = train.rollout, train.states
    monkeypatch.setattr(train, "rollout", lambda model, text, P, S, rules, *a, **k: thinks.append((model.think, rules.window))
                        or rollout(model, text, P, S, rules, *a, **k))
    monkeypatch.setattr(train, "states", lambda model, ro, rules, *a: learns.append(rules.window) or states(model, ro, rules, *a))
    code, said, err = run(train.main, [*taught, "--out", tmp_path / "full"], monkeypatch, capsys)
    assert code == 0 and "what was learnt" in said, err
    assert torch.load(tmp_path / "full/ckpt.pt", weights_only=True)["rules"]["window"] == 0
    narrow = torch.load(tmp_path / "narrow/ckpt.pt", weights_only=True)["model"]["think"]
    assert len(thinks) == 2 and all(torch.equal(rows, narrow) and window == 5 for rows, window in thinks) and learns == [0, 0]
    kind, drawn, imitation = ["--thoughts", "continuous"], [], train.imitation
    monkeypatch.setattr(train, "imitation", lambda h, ro, lent: drawn.append(imitation(h, ro, lent).detach() / ro.is_think.sum())
                        or imitation(h, ro, lent))
    plain = [x for x in short if x not in ("--think_vocab", "16")]
    assert run(train.main, [*plain, *kind, "--out", tmp_path / "vectors"], monkeypatch, capsys)[0] == 0 and not drawn
    code, _, err = run(train.main, [*plain, *kind, "--lr", "0.01", "--warmup", "1", "--steps", "40", "--seed", "1", "--thinker", tmp_path / "vectors/ckpt.pt",
                                    "--out", tmp_path / "vectors2"], monkeypatch, capsys)
    assert code == 0 and len(drawn) == 40 and sum(drawn[-5:]) < 0.7 * sum(drawn[:5]), err
    for argv, word in (([*taught[:-2], "--think_vocab", "9", *taught[-2:]], "think_vocab"), (["--thinker", "x"], "stream"),
                       ([*plain, *kind, "--thinker", tmp_path / "narrow/ckpt.pt"], "kind of thoughts"),
                       ([*plain, *kind, "--width", "16", "--thinker", tmp_path / "vectors/ckpt.pt"], "vectors of width 8"),
                       ([*taught, "--out", tmp_path / "narrow"], "another --out"), ([*taught, "--think", "free"], "--think")):
        code, _, err = run(train.main, [*argv, *([] if "--out" in argv else ["--out", tmp_path / "no"])], monkeypatch, capsys)
        assert code == 2 and word in err and err.count("\n") == 1, err
