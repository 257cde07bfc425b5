"""The commands as a person types them: what they refuse, in one line, and what they leave behind.

Left out on purpose: what is learned; there are two steps to each run here.
"""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import data
import evaluate
import run as running
import sample
import train
from conftest import run
from data import Cups
from lab import alphabet, distil
from model import GPT, Config, as_checkpoint, load
from run import open_run
from settings import FLAGS, PRESETS, Settings
from weights import read_weights, save

ROOT = Path(__file__).resolve().parent.parent.parent
FEW = "--steps 2 --eval_every 2 --prompts 2 --samples 2 --new_tokens 12".split()
SHORT = ["--approach", "stream", *FEW, "--think_vocab", "16"]
NARROW = [*SHORT, "--model", "scratch:1x8"]
MOVES = "The ball is under cup B. Moves: AB, left. Where?"


@pytest.fixture
def short_look(monkeypatch):
    """Evaluations look at 8 rows, and ask one question of each level."""
    look, take = evaluate.evaluate, evaluate.held_out
    monkeypatch.setattr(running, "evaluate", lambda *a: look(*a[:5], each=1))
    monkeypatch.setattr(evaluate, "held_out",
                        lambda source, rows, *a: take(source, min(rows, 8), *a))


def files(tmp):
    """Bad inputs that have to exist as files."""
    (tmp / "empty.txt").write_text("")
    (tmp / "short.txt").write_text("one two three")
    (tmp / "foreign.txt").write_text("A word outside the language of cups. " * 99)
    (tmp / "plain").write_text("in the way")
    cups = Cups(3)
    torch.save(as_checkpoint(GPT(Config(1, 2, 16, 64, 19))), tmp / "other_language.pt")
    torch.save(as_checkpoint(GPT(Config(1, 2, 16, 40, 19), cups.text_ids)), tmp / "small.pt")
    thinks = as_checkpoint(GPT(Config(1, 2, 16, 256, 19, 4), cups.text_ids))
    torch.save(thinks, tmp / "thinks.pt")
    torch.save(thinks | {"config": thinks["config"] | {"n_embd": 32}}, tmp / "shape.pt")
    (tmp / "truncated.pt").write_bytes((tmp / "small.pt").read_bytes()[:999])
    return tmp


def refused(main, argv, words, monkeypatch, capsys):
    """Exit code 2 and one line with these words, and nothing else."""
    code, _, err = run(main, argv, monkeypatch, capsys)
    assert code == 2 and words in err and err.count("\n") == 1, err


def line(argv):
    return " ".join(argv) if isinstance(argv, list) else None


S = ["--approach", "stream"]
BAD = [  # arguments of train.py, and words that the line must have
    (["--think_vocb", "64"], "did you mean --think_vocab?"),
    (["--aproach=stream"], "did you mean --approach?"),
    ([""], "unrecognized arguments"),
    (["--no_such"], "--help"),
    (["--think_vocab", "many"], "invalid int"),
    (["--approach", "streem"], "choose from"),
    (["--think_vocab", "0"], "at least 1"),
    (["--think_vocab", "-5"], "at least 1"),
    (["--think_vocab", "9999999999"], "at least 1"),
    (["--samples", "1"], "sibling"),
    (["--samples", "0"], "at least 1"),
    (["--thoughts", "none", "--think", "free"], "no thoughts"),
    (["--thoughts", "none", "--think_vocab", "8"], "--thoughts tokens"),
    (["--thoughts", "filler", "--entropy", "0.5"], "--thoughts tokens"),
    (["--prompts", "0"], "at least 1"),
    (["--steps", "0"], "at least 1"),
    (["--lr", "nan"], "at least 0"),
    (["--gamma", "1.5"], "at most 1"),
    (["--entropy", "2"], "at most 1"),
    (["--think_prior", "1.5"], "between 0 and 1"),
    (["--window", "-1"], "at least 0"),
    (["--keep_every", "-1"], "at least 0"),
    (["--micro_batch", "-1"], "at least 0"),
    (["--seed", "-1"], "at least 0"),
    (["--new_tokens", "5000"], "context"),
    (["--prompt_tokens", "11"], "Moves"),
    ([*S, "--max_thoughts", "6"], "lower"),
    # models
    (["--model", "gpt3"], "no model 'gpt3'"),
    (["--model", "{tmp}/nothing.pt"], "no model"),
    (["--model", "{tmp}/truncated.pt"], "can't be read"),
    (["--model", "{tmp}/shape.pt"], "do not fit"),
    (["--model", "{tmp}/other_language.pt"], "language"),
    (["--model", "{tmp}/thinks.pt", "--think_vocab", "16"], "4 thinking rows already"),
    (["--teacher", "{tmp}/other_language.pt"], "vocabulary"),
    (["--model", "{tmp}/small.pt", "--teacher", "{tmp}/small.pt"], "context"),
    ([*S, "--model", "scratch:1x9"], "two heads"),
    ([*S, "--model", "scratch:0x64"], "LAYERSxWIDTH"),
    ([*S, "--model", "scratch:wide"], "LAYERSxWIDTH"),
    ([*S, "--model", "byte:1x128"], "or bytes:LAYERSxWIDTH"),
    # flags that mean nothing here
    ([*S, "--teacher", "pico"], "approach teacher"),
    ([*S, "--reward", "sampled"], "approach teacher"),
    (["--answer_grad", "off"], "a given text"),
    (["--approach", "next_token", "--gamma", "0.5"], "thoughts that stay"),
    (["--approach", "next_token", "--budget", "9"], "thoughts that stay"),
    (["--curriculum", "on", "--data", "{tmp}/short.txt"], "--data cups"),
    (["--reward", "sampled", "--curriculum", "on"], "rounds of any length"),
    # the game
    ([*S, "--data", "cups m=9"], "2 to 5 cups"),
    ([*S, "--data", "cups m=6"], "6: moves=turns"),
    (["--data", "cups m=5"], "language"),
    (["--data", "cups moves=turns"], "language"),
    ([*S, "--data", "cups moves=turns balls=all"], "one says it all"),
    ([*S, "--data", "cups balls=two"], "balls=one or all"),
    ([*S, "--data", "cups idle=1"], "idle"),
    ([*S, "--data", "cups idle=nan"], "idle"),
    ([*S, "--data", "cups swaps=0"], "swaps from 1"),
    ([*S, "--data", "cups m=three"], "'m=three'"),
    ([*S, "--data", "cups sides=2"], "cups takes m="),
    ([*S, "--data", "cups m"], "cups takes m="),
    # text
    (["--data", "{tmp}/nothing.txt"], "no file"),
    (["--data", ""], "no file"),
    (["--data", "{tmp}/plain"], "no .txt or .jsonl"),
    (["--data", "{tmp}"], "no file"),
    (["--data", "webtext foo"], '"webtext train"'),
    (["--data", "webtext train test"], '"webtext train"'),
    (["--data", "{tmp}/empty.txt", "--model", "pico", "--teacher", "pico"], "empty"),
    ([*S, "--data", "{tmp}/short.txt", "--model", "scratch"], "too short"),
    (["--data", "{tmp}/foreign.txt", "--model", "pico", "--teacher", "pico"],
     "outside this model's language"),
    # the run
    (["--out", "{tmp}/plain"], "plain"),
    (["--resume"], "nothing to resume"),
    (["--resume", "--lr", "1"], "nothing to resume"),
    (["--device", "cuda"], "CUDA"),
    (["--thoughts", "oracle"], "choose from"),
]
OLD = [  # flags of an older train.py
    "--cups 5", "--balls all", "--moves turns", "--idle 0.4", "--swaps 4", "--layers 2",
    "--width 64", "--siblings free", "--text_grad sampled", "--beta 0", "--thinker x",
    "--alphabet text", "--pull 0.1", "--temperature 1", "--warmup 5", "--dtype float32",
    "--reread 2"]


@pytest.mark.parametrize("argv, words", BAD, ids=line)
def test_train_refuses(argv, words, tmp_path, monkeypatch, capsys):
    """Each bad input ends in exit code 2 and one line that names what is wrong; no traceback."""
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(train, "train", lambda run: pytest.fail("it began to learn"))
    files(tmp_path)
    argv = [x.format(tmp=tmp_path) for x in argv]
    if "--out" not in argv:
        argv += ["--out", tmp_path / "out"]
    refused(train.main, argv, words, monkeypatch, capsys)
    assert (tmp_path / "plain").read_text() == "in the way"


@pytest.mark.parametrize("flag", OLD)
def test_old_flags_say_where_to_look(flag, monkeypatch, capsys):
    """Guards whoever types a line of an older page: the nearest flag, or where all are listed."""
    code, _, err = run(train.main, flag.split(), monkeypatch, capsys)
    assert code == 2 and flag.split()[0] in err and err.count("\n") == 1, err
    assert "did you mean --" in err or "--help lists them" in err


@pytest.mark.parametrize("argv, words", [
    (["--checkpoint", "{tmp}/none.pt"], "train.py"),
    (["--checkpoint", "{tmp}/truncated.pt"], "can't be read"),
    (["--prompt", "elephant"], "outside this model's language"),
    (["--prompt", ""], "empty"),
    (["--prompt", "   "], "empty"),
    (["--new_tokens", "9999"], "context"),
    (["--new_tokens", "0"], "at least 1"),
    (["--samples", "0"], "at least 1"),
    (["--temperature", "-1"], "at least 0"),
    (["--temperature", "nan"], "at least 0"),
    (["--top_k", "-1"], "at least 0"),
    (["--seed", "-1"], "at least 0"),
    (["--replace", "1-2"], "--replace"),
    (["--replace", "1=99999"], "--replace"),
    (["--promt", "The"], "--prompt"),
    (["--html", "page.html"], "--help"),
], ids=line)
def test_sample_refuses(argv, words, tmp_path, monkeypatch, capsys):
    """The same for sample.py, with a checkpoint of cups that knows 4 thoughts."""
    files(tmp_path)
    argv = [x.format(tmp=tmp_path) for x in argv]
    if "--checkpoint" not in argv:
        argv += ["--checkpoint", tmp_path / "thinks.pt"]
    refused(sample.main, argv, words, monkeypatch, capsys)


@pytest.mark.parametrize("main, argv, words", [
    (distil.main, [], "--thinker PATH or --oracle"),
    (distil.main, ["--oracle", "--thinker", "x"], "--thinker PATH or --oracle"),
    (distil.main, ["--oracle", "--approach", "teacher"], "stream"),
    (distil.main, ["--oracle", "--resume"], "--resume"),
    (distil.main, ["--oracle", "--thoughts", "continuous"], "continuous"),
    (distil.main, ["--oracle", "--data", "x.txt"], "--data cups"),
    (distil.main, ["--oracle", "--data", "cups m=9"], "2 to 5 cups"),
    (distil.main, ["--thinker", "x", "--thoughts", "none"], "none"),
    (distil.main, ["--thinker", "{tmp}/none"], "no {tmp}/none"),
    (distil.main, ["--thinker", "{tmp}/thinks.pt"], "not the checkpoint of a run"),
    (alphabet.main, ["--model", "pico", "--think_vocab", "18"], "each of 19 words"),
    (alphabet.main, ["--alphabet", "redrawn", "--model", "scratch"], "trained base"),
    (alphabet.main, ["--thoughts", "filler"], "--thoughts tokens"),
    (alphabet.main, ["--pull", "-1"], "from 0 on"),
    (alphabet.main, ["--resume"], "--resume"),
    (alphabet.main, ["--pul", "1"], "--pull"),
], ids=lambda x: line(x) if isinstance(x, list) else None)
def test_variants_refuse(main, argv, words, tmp_path, monkeypatch, capsys):
    """The same for the two commands of lab/ that take the flags of train.py."""
    files(tmp_path)
    argv = [x.format(tmp=tmp_path) for x in argv] + ["--out", tmp_path / "out"]
    refused(main, argv, words.format(tmp=tmp_path), monkeypatch, capsys)


# What a command says

def test_help_shows_each_default(monkeypatch, capsys):
    """Guards the one list of flags: at most 36, each with its default in every preset."""
    monkeypatch.setenv("COLUMNS", "9999")
    code, said, _ = run(train.main, ["--help"], monkeypatch, capsys)
    shown = dict(x.split(maxsplit=1) for x in said.split("\n\nDefaults")[0].split("\n  --")[1:])
    assert code == 0 and len(shown) <= 36 and shown.keys() - {"resume"} == FLAGS.keys()
    for name, field in FLAGS.items():
        default = shown[name].rsplit("[", 1)[1]
        assert default.startswith(str(field.default)), name
        for preset, values in PRESETS.items():
            assert name not in values or f"{preset}: {values[name]}" in default, (name, preset)


def test_the_first_lines(tmp_path, monkeypatch, capsys):
    """Guards the reader of a log: the settings that matter, and where they come from."""
    monkeypatch.setattr(train, "setup", lambda s: (_ for _ in ()).throw(ValueError("so far")))
    for argv, words in (
            ([], ["pico on cups, judged by pico-teacher", "lr 0.001", "B 16", "G 8", "window 5",
                  "preset: cups; typed: nothing"]),
            ([*S, "--lr", "0.5"], ["scratch:1x64 on cups\n", "lr 0.5, think_lr 0.002, B 16, G 8, "
                                   "window 5, N 2048 (preset: cups and cups, stream; typed: "
                                   "approach, lr)"]),
            (["--approach", "next_token"], ["cups swaps=3", "window 7", "cups and cups, next"]),
            ([*S, "--data", str(ROOT / "tests/requirements.txt")], ["gpt2", "lr 1e-05", "G 4",
                                                                    "preset: text;"]),
            ([*S, "--data", "cups balls=all"], ["window 4"]),
            ([*S, "--new_tokens", "9"], ["has room for rounds of 3 moves"])):
        code, said, _ = run(train.main, [*argv, "--out", tmp_path], monkeypatch, capsys)
        assert code == 2 and all(w in said for w in words), said
        assert said.count("\n") == 2 + ("has room" in said)


# What a run leaves

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps, as a real command, and what it printed."""
    out = tmp_path_factory.mktemp("run")
    done = subprocess.run([sys.executable, ROOT / "train.py", *SHORT, "--out", out],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_run_leaves_its_files(finished):
    """Checkpoint, settings, log, curves and samples are there; the log has one line for each step,
    and evaluations first and last."""
    out, printed = finished
    assert {x.name for x in out.iterdir()} == {"ckpt.pt", "metrics.jsonl", "settings.json",
                                               "curves.png", "samples.html"}
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(x["kind"], x["step"]) for x in lines] == [
        ("eval", 0), ("step", 0), ("step", 1), ("eval", 2)]
    assert len(lines[0]["accuracy_by_n"]) == 30
    room, first, second, *_ = printed.splitlines()
    assert "has room for rounds of 4 moves" in room
    assert first.startswith("cpu, float32, compile off: scratch:1x64 on cups")
    assert "B 2, G 2, window 5, N 16 (preset: " in second and "what was learned" in printed
    kept = json.loads((out / "settings.json").read_text())
    assert Settings(**kept) == open_run(out).settings and kept["think_vocab"] == 16


def test_sample_shows_thoughts(finished, monkeypatch, capsys):
    """Prompt, text and thoughts have their colours; hidden thoughts leave no name; --replace leaves
    no old one."""
    out, _ = finished
    base = ["--checkpoint", out / "ckpt.pt", "--prompt", "The ball is under cup B. Moves:"]
    code, shown, _ = run(sample.main, [*base, "--color", "always"], monkeypatch, capsys)
    assert code == 0 and "\033[31mThe ball" in shown and shown.count("\n\n") == 4
    assert "\033[36m<think" in shown and "\033[34m" in shown
    code, hidden, _ = run(sample.main, [*base, "--hide_thoughts"], monkeypatch, capsys)
    assert code == 0 and "think" not in hidden and "\033" not in hidden
    # a prompt's moves are thought about as well
    moves = ["--checkpoint", out, "--prompt", MOVES, "--new_tokens", "3"]
    code, inside, _ = run(sample.main, moves, monkeypatch, capsys)
    where = r"The ball is under cup B. Moves: AB<think\d+>, left<think\d+>. Where\?"
    assert re.match(where, inside), inside
    moves[3] += "  "  # GPT-2's words bring their own spaces
    assert run(sample.main, moves, monkeypatch, capsys)[1] == inside
    every = [x for i in range(15) for x in ("--replace", f"{i}=15")]
    code, replaced, _ = run(sample.main, [*base, *every], monkeypatch, capsys)
    assert "<think15>" in replaced
    assert not any(f"<think{i}>" in replaced for i in range(15))


def test_generate_from_python(finished):
    """Guards the two lines that another program needs: a run, and samples of it."""
    found = sample.generate(open_run(finished[0]), MOVES, new_tokens=3, samples=2)
    for one in found:
        assert one.text.startswith(MOVES) and len(one.thoughts) >= 2
        assert one.thoughts[0][1].endswith(" AB") and re.match(r"<think\d+>", one.thoughts[0][0])


def test_sample_says_how_old_it_is(finished, tmp_path, monkeypatch, capsys):
    """Guards against a look at an unfinished run that passes for its result."""
    saved = read_weights(finished[0] / "ckpt.pt")
    argv = ["--new_tokens", "3", "--checkpoint"]
    assert "of 2" not in run(sample.main, [*argv, finished[0]], monkeypatch, capsys)[2]
    save(tmp_path / "half.pt", saved | {"progress": saved["progress"] | {"step": 1}})
    code, _, err = run(sample.main, [*argv, tmp_path / "half.pt"], monkeypatch, capsys)
    assert code == 0 and "from step 1 of 2" in err


def test_a_folder_stands_for_its_checkpoint(finished, monkeypatch, capsys):
    """Wherever a checkpoint is asked for, its run's folder will do; and a run never writes over its
    own judge or thinker."""
    out, _ = finished
    assert isinstance(load(out), GPT)
    assert open_run(out).settings == open_run(out / "ckpt.pt").settings
    before = (out / "ckpt.pt").read_bytes()
    for own in (out, out / "ckpt_000002.pt"):
        refused(distil.main, ["--thinker", own, "--out", out], f"{own} is the thinker",
                monkeypatch, capsys)
        refused(train.main, ["--teacher", own, "--out", out], f"{own} is the judge", monkeypatch,
                capsys)
    assert (out / "ckpt.pt").read_bytes() == before


def test_resume_keeps_the_settings(finished, monkeypatch, capsys):
    """Guards against a run that goes on as another one: what is typed next to --resume has to be
    what the run had, also where it is the default of a new one."""
    resume = ["--resume", "--out", finished[0]]
    for said in (["--approach", "teacher"], ["--lr", "1"], ["--seed", "3"],
                 ["--thoughts", "filler"], ["--data", "cups m=4"], ["--model", "pico"]):
        code, _, err = run(train.main, [*resume, *said], monkeypatch, capsys)
        assert code == 2 and said[0] in err and said[1] in err and err.count("\n") == 1, err
    refused(train.main, [*resume, "--steps", "1"], "2 steps already", monkeypatch, capsys)
    code, said, err = run(train.main, [*resume, *SHORT, "--device", "auto"], monkeypatch, capsys)
    assert code == 0 and "nothing is left to do" in said, err


def test_without_a_compiler(tmp_path):
    """Guards --compile on where there is no C++ compiler: one line says so, and the run goes on."""
    argv = [sys.executable, "train.py", *NARROW, "--data", "cups swaps=2", "--compile", "on",
            "--out", tmp_path / "out"]
    bare = {**os.environ, "CXX": "no-such-compiler", "PATH": str(tmp_path),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(argv, cwd=ROOT, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch.compile does not run here, so compile is off" in done.stdout
    assert "Traceback" not in done.stderr and "compile off" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="no such lock")
def test_two_runs_in_one_folder(tmp_path, short_look, monkeypatch, capsys):
    """Guards a run that goes on against a second one in its folder, new or --resume: refused, and
    nothing of it touched. Once it has ended, the folder is free."""
    out = tmp_path / "out"
    assert run(train.main, [*NARROW, "--out", out], monkeypatch, capsys)[0] == 0
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    with running.lock_folder(out):
        for argv in (NARROW, ["--resume", "--steps", "4"]):
            refused(train.main, [*argv, "--out", out], "in use by a run", monkeypatch, capsys)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    resume = ["--resume", "--steps", "4", "--out", out]
    assert run(train.main, resume, monkeypatch, capsys)[0] == 0


@pytest.mark.parametrize("argv", [
    "", "--reward sampled", "--thoughts filler", "--thoughts none", "--approach next_token",
    "--approach next_token --think free",
    "--approach stream --max_thoughts 2 --micro_batch 3",
    "--approach stream --thoughts continuous",
    "--approach next_token --thoughts continuous",
    "--approach stream --data TEXT --model scratch:1x8 --prompt_tokens 8",
    "--approach next_token --data TEXT --model scratch:1x8 --prompt_tokens 8"])
def test_two_steps_of_every_kind(argv, tmp_path, short_look, monkeypatch, capsys):
    """Every approach and kind of thought trains, is evaluated, and can be sampled from its
    checkpoint; a run that is at its end and resumed says what it had learned."""
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("Some words of a text, and some more. " * 200)
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    argv = [text if x == "TEXT" else x for x in argv.split()]
    few = FEW if "--thoughts" in argv else [*FEW, "--think_vocab", "16"]
    code, said, err = run(train.main, [*few, *argv, "--out", out], monkeypatch, capsys)
    assert code == 0 and "what was learned" in said, err
    code, again, err = run(train.main, ["--resume", "--out", out], monkeypatch, capsys)
    assert code == 0 and "nothing is left to do" in again, err
    report = again.split("what was learned")[1].split(" s;")[0].rsplit("\n", 1)[0]
    assert report in said
    prompt = "Some words" if text in argv else MOVES
    code, shown, err = run(sample.main, ["--checkpoint", out, "--new_tokens", "9", "--prompt",
                                         prompt], monkeypatch, capsys)
    assert code == 0 and prompt.split()[-1] in shown, err
    assert ("█" in shown) == ("continuous" in argv)
    if text not in argv:  # where the gate is at 0.1, a short sample may have none
        assert ("<think" in shown) == (not {"continuous", "none"} & {*argv})


@pytest.mark.parametrize("spec", ["m=6 moves=turns", "m=3 idle=0.3 balls=all"])
def test_other_worlds(spec, tmp_path, short_look, monkeypatch, capsys):
    """Guards the game's variants wherever a run's world is built again: on --resume, in samples."""
    argv = [*SHORT, "--data", f"cups {spec}", "--out", tmp_path]
    code, said, err = run(train.main, argv, monkeypatch, capsys)
    assert code == 0 and "what was learned" in said, err
    resume = ["--resume", "--steps", "3", "--out", tmp_path]
    assert run(train.main, resume, monkeypatch, capsys)[0] == 0
    prompt = ("The ball is under cup F. Moves: five." if "turns" in spec else
              "The balls are under the cups. Moves: AB, nothing. Red?")
    code, said, err = run(sample.main, ["--checkpoint", tmp_path, "--prompt", prompt,
                                        "--new_tokens", "5"], monkeypatch, capsys)
    assert code == 0 and "<think" in said, err


def test_padded_rows_are_refused(tmp_path, monkeypatch, capsys):
    """Guards against names that are shifted: a GPT-2 padded to 50,304 rows has ids that the
    tokenizer does not know."""
    padded, text = tmp_path / "padded.pt", tmp_path / "text.txt"
    torch.save(as_checkpoint(GPT(Config(1, 2, 16, 300, 50304))), padded)
    text.write_text("Some words of a text. " * 200)
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    argv = [*S, "--data", text, "--model", padded, "--out", tmp_path / "out"]
    refused(train.main, argv, "50,304 text rows", monkeypatch, capsys)
    refused(sample.main, ["--checkpoint", padded], "50,304 text rows", monkeypatch, capsys)


def test_the_shipped_model_is_not_overwritten(monkeypatch, capsys):
    """Guards assets/pico: lab/pretrain.py with other settings wants to know where its model
    belongs."""
    from lab import pretrain
    code, _, err = run(pretrain.main, ["student", "--steps", "10"], monkeypatch, capsys)
    assert code == 2 and "--out" in err


def test_a_checkpoint_each_minute(tmp_path, short_look, monkeypatch, capsys):
    """Guards what kill -9 costs: between evaluations checkpoints are written by the clock. The
    larger they are, the longer it waits."""
    steps, real = [], running.save
    monkeypatch.setattr(running, "save", lambda path, state: (
        steps.append(state["progress"]["step"]), real(path, state)))
    argv = [*NARROW, "--steps", "4", "--eval_every", "4"]
    for seconds, times, wanted in ((0, 0, [0, 1, 2, 3, 4]), (1e9, 0, [0, 4]),
                                   (0, 1e9, [0, 1, 4])):
        monkeypatch.setattr(running, "SAVE_SECONDS", seconds)
        monkeypatch.setattr(running, "SAVE_TIMES", times)
        steps.clear()
        out = tmp_path / f"{seconds} {times}"
        assert run(train.main, [*argv, "--out", out], monkeypatch, capsys)[0] == 0
        assert steps == wanted


# The two variants in lab/

@pytest.mark.parametrize("main, argv", [
    (distil.main, ["--oracle", "--model", "scratch:1x8"]),
    (alphabet.main, ["--pull", "0.1"]), (alphabet.main, ["--alphabet", "redrawn"])],
    ids=["oracle", "pull", "redrawn"])
def test_variants_run(main, argv, tmp_path, short_look, monkeypatch, capsys):
    """Guards the other variants: they train, can be sampled, and are not resumed as what they are
    not, a plain run of train.py."""
    argv = [*FEW, *argv, "--out", tmp_path]
    code, said, err = run(main, argv, monkeypatch, capsys)
    assert code == 0 and "what was learned" in said, err
    code, said, err = run(sample.main, ["--checkpoint", tmp_path, "--new_tokens", "3", "--prompt",
                                        MOVES], monkeypatch, capsys)
    assert code == 0 and "<think" in said, err
    resume = ["--resume", "--steps", "4", "--out", tmp_path]
    refused(train.main, resume, "not resumed", monkeypatch, capsys)
