"""A command in any surroundings: terminals, pipes, variables, links, folders that hold something.

Each prints no traceback, loses nothing, and ends with the code that command.py lists. Most run in
forks of this process, which saves each the seconds of importing torch, so not on Windows.

Left out on purpose: what a command refuses (test_cli.py), kills and disks (test_nothing_lost.py).
"""
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import command
import data
import run as running
import sample
import settings
import task
import tokenizer
import train
from conftest import refuses
from data import plain
from evaluate import gain
from lab import export, page, probe
from model import GPT, Config, as_checkpoint
from rollout import Rules
from test_nothing_lost import STEPS, child, ended, left, run, small_world, tiny
from weights import read_weights, save

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
ROOT = Path(__file__).resolve().parent.parent.parent
STORY = "The ball is under cup B. Moves:"


def whole(main, goes_on=False):
    """A command from its first line to its last, as `python NAME.py` runs it."""
    def go():
        command.begin()
        command.run(main, goes_on)
    return go


def says(argv, main=train.main, before=small_world, goes_on=None) -> tuple[int, str]:
    """-> exit code, and what it printed, with no traceback in it."""
    read, write = os.pipe()
    on = main is train.main if goes_on is None else goes_on
    pid = child(argv, write, before, whole(main, on))
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as f:
        said = f.read()
    assert "Traceback" not in said and "Exception ignored" not in said, said
    return ended(pid), said


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    words = "".join(f"Line {i}: café and {i * i} things.\n" for i in range(600))
    words += "café 日本 \ufffd\ncaf\ufffd\n" * 9  # a new model knows the pieces of its text alone
    (folder / "t.txt").write_text(words, encoding="utf-8")
    return folder / "t.txt"


def on_text(text, out, *more):
    few = "--prompt_tokens 8 --budget 4 --model scratch:1x8".split()
    return tiny("stream", out, "--data", str(text), "--steps", "1", *few, *more)


@pytest.fixture(scope="module")
def done(text, tmp_path_factory):
    """A run of one step on a text, and one on the game."""
    folder = tmp_path_factory.mktemp("done")
    data.CACHE = folder / "cache"
    for argv in (on_text(text, folder / "text"),
                 tiny("stream", folder / "cups", "--steps", "1")):
        code, said = run(argv)
        assert code == 0, said
    return folder


# Text for people

def stream_as(encoding, errors="strict"):
    """A terminal of that encoding."""
    def before():
        small_world()
        for name, number in (("stdout", 1), ("stderr", 2)):
            setattr(sys, name, open(number, "w", encoding=encoding, errors=errors, closefd=False))
    return before


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin1", "utf-8", "cp437", "shift-jis"])
def test_any_terminal(encoding, done, tmp_path):
    """Guards text that a terminal can't show: it gets escapes, and all commands end well."""
    before = stream_as(encoding)
    argv = ["--checkpoint", done / "text", "--prompt", "café 日本 \udce9", "--samples", "1",
            "--new_tokens", "6"]
    code, said = says(argv, sample.main, before)
    assert code == 0 and "caf" in said
    assert says(["naïve 🙂 \udce9"], tokenizer.main, before)[0] == 0
    code, said = says(["--checkpoint", done / "cups", "--prompt", "é"], sample.main, before)
    assert code == 2 and said.count("\n") == 1


@pytest.mark.parametrize("encoding, name", [("ascii", "é"), ("utf-8", "caf\udce9")])
def test_any_folder_on_any_terminal(encoding, name, tmp_path):
    """Guards a folder whose name can't be shown, also when a run there is set aside."""
    for _ in range(2):
        code, said = says(tiny("stream", tmp_path / name, "--steps", "1"),
                          before=stream_as(encoding))
        assert code == 0, said
    assert (tmp_path / name / "old1" / "ckpt.pt").exists()


def test_vectors_on_any_terminal(tmp_path):
    """Guards the block that stands for a continuous thought."""
    argv = tiny("stream", tmp_path / "out", "--steps", "1", "--thoughts", "continuous")
    argv.remove("--think_vocab"), argv.remove("16")
    assert says(argv, before=stream_as("ascii"))[0] == 0
    code, said = says(["--checkpoint", tmp_path / "out", "--prompt", STORY], sample.main,
                      stream_as("ascii"))
    assert code == 0 and "\\u2588" in said


def onto(path, *numbers):
    """These streams lead there; None: they are closed."""
    def before():
        small_world()
        for number in numbers:
            os.close(number)
            if path:
                assert os.open(path, os.O_WRONLY) == number
        for name, number in (("stdout", 1), ("stderr", 2)):
            gone = number in numbers and not path
            setattr(sys, name, None if gone else open(number, "w", closefd=False))
    return before


@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("path", [None, "/dev/full"])
def test_closed_or_full(path, numbers, done, tmp_path):
    """Guards streams that are closed, or lead to a full disk. A run goes on, as its work is in
    files. sample.py says that its text is lost, where it can."""
    if path and not os.path.exists(path):
        pytest.skip("there is no /dev/full")
    out = tmp_path / "out"
    code, said = says(tiny("stream", out, "--eval_every", "1"), before=onto(path, *numbers))
    assert code == 0 and len(left(out)[1]) > STEPS
    assert ("it goes on" in said) == (path is not None and numbers == (1,))
    argv = ["--checkpoint", done / "cups", "--prompt", STORY, "--samples", "99"]
    code, said = says(argv, sample.main, onto(path, *numbers))
    lost = path is not None and 1 in numbers
    assert code == lost and ("some of it is lost" in said) == (lost and 2 not in numbers)


def test_a_reader_that_goes(done, tmp_path):
    """Guards `| head -1`: quiet, and a run goes on."""
    read, write = os.pipe()
    os.close(read)

    def before():
        small_world()
        os.dup2(write, 1)
    assert says(tiny("stream", tmp_path / "out"), before=before)[0] == 0
    assert len(left(tmp_path / "out")[1]) > STEPS
    argv = ["--checkpoint", done / "cups", "--prompt", STORY, "--samples", "9"]
    assert says(argv, sample.main, before) == (141, "")
    assert says(["some words " * 9999], tokenizer.main, before) == (141, "")
    os.close(write)


def test_markup_of_a_page(done, tmp_path):
    """Guards an older page: a prompt that is no text does not empty it, and nothing but a page is
    ever written over."""
    argv = ["--checkpoint", done / "text", "--samples", "1", "--new_tokens", "4", "--out"]
    code, said = says([*argv, tmp_path / "p.html", "--prompt", "caf\udce9"], page.main)
    assert code == 0 and "caf" in (tmp_path / "p.html").read_text(encoding="utf-8")
    before = (done / "text" / "ckpt.pt").read_bytes()
    code, said = says([*argv, done / "text" / "ckpt.pt"], page.main)
    assert code == 2 and "ends in .html" in said
    assert (done / "text" / "ckpt.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["my run", "it's", "-x", "~x", "a\tb", "caf\udce9", "é$HOME;ls"])
def test_printed_paths_can_be_pasted(name, tmp_path):
    """Guards the command that is printed for the next step: a shell reads the path that was meant,
    and argparse takes it."""
    (tmp_path / name).mkdir()
    found = subprocess.run(["bash", "-c", f"cd {command.typed(name)} && pwd -P"], cwd=tmp_path,
                           capture_output=True, check=True).stdout
    assert found.rstrip(b"\n") == os.fsencode(os.path.realpath(tmp_path / name))
    shown = subprocess.run(["bash", "-c", f"printf %s {command.typed(name)}"], capture_output=True)
    it = settings.parser().parse_args(["--out", os.fsdecode(shown.stdout)])
    assert (tmp_path / it.out).resolve() == (tmp_path / name).resolve()


def test_printed_commands(done, tmp_path, monkeypatch):
    """Guards them from anywhere: a run from another folder prints where train.py is."""
    monkeypatch.chdir(tmp_path)
    code, said = says(tiny("stream", "my run", "--steps", "1"))
    script = command.typed(ROOT / "sample.py")
    assert code == 0 and f"python {script} --checkpoint 'my run'" in said
    monkeypatch.chdir(ROOT)
    assert command.script("train.py") == "train.py"


def test_one_line():
    """Guards messages: one line, in which the spaces of a path stay and nothing moves a cursor."""
    assert command.one_line(" a  b\n\n  c\td\x1b[2J é") == "a  b c\\td\\x1b[2J é"


# Ctrl-C

def heeds() -> None:
    """Ctrl-C is for this process. (One that a shell starts in the background ignores it.)"""
    small_world()
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("argv", [["sample.py"], ["train.py", "--out", "/dev/null"],
                                  ["tokenizer.py"], ["-m", "lab.probe"]], ids=str)
def test_interrupted_while_it_imports(argv, tmp_path):
    """Guards Ctrl-C in the seconds before a command does anything."""
    for seconds in (0, 0.5):
        job = subprocess.Popen([sys.executable, *argv], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, preexec_fn=heeds,
                               env=os.environ | {"TMPDIR": str(tmp_path)})
        maps = Path(f"/proc/{job.pid}/maps")
        while job.poll() is None and maps.exists() and not re.search("torch|tiktoken|numpy",
                                                                     maps.read_text()):
            time.sleep(0.01)  # (before that, Python itself may not have begun)
        time.sleep(seconds)
        job.send_signal(signal.SIGINT)
        _, err = job.communicate(timeout=120)
        # (in its last milliseconds Python has no handler any more)
        quiet = 130, 0, 2, -signal.SIGINT
        assert job.returncode in quiet and b"Traceback" not in err, err


@pytest.mark.parametrize("main", [sample.main, page.main, export.main, probe.main, tokenizer.main])
def test_interrupted_at_work(main, monkeypatch):
    """Guards it later: quiet as well."""
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    for where, name in ((sample, "load_run"), (page, "open_run"), (export, "load"),
                        (probe, "opened"), (tokenizer, "Tokenizer")):
        monkeypatch.setattr(where, name, interrupted)
    argv = ["x"] if main in (export.main, tokenizer.main) else []
    assert says(argv, main, heeds) == (130, "")


# Surroundings

@pytest.mark.parametrize("variables, code, words", [
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}, 2,
     "LOCAL_RANK is 'not set'"),
    ({"WORLD_SIZE": "2"}, 2, "RANK is 'not set'"), ({"WORLD_SIZE": "two"}, 2, "WORLD_SIZE"),
    ({"WORLD_SIZE": "2", "RANK": "5", "LOCAL_RANK": "0", "MASTER_PORT": "1",
      "MASTER_ADDR": "x"}, 2, "RANK 5"), ({"WORLD_SIZE": "0", "RANK": "0"}, 2, "WORLD_SIZE"),
    ({"WORLD_SIZE": ""}, 1, None), ({"RANK": "1"}, 1, None), ({"RANK": "x"}, 1, None),
    ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, 1, None)], ids=str)
def test_variables_of_clusters(variables, code, words, monkeypatch):
    """Guards a part of torchrun's variables, as clusters set for every command: one process goes
    on, and several that could not find each other are refused by the variable's name."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if code == 2:
        refuses(settings.processes, words, "unset WORLD_SIZE")
        refuses(running.join_processes, words)
    else:
        assert settings.processes() == (1, 0) and running.join_processes() is None


def test_pictures_under_any_backend(monkeypatch):
    """Guards MPLBACKEND as a notebook sets it for its commands; what was set stays set."""
    monkeypatch.setenv("MPLBACKEND", "module://no_such.backend")
    for name in [x for x in sys.modules if x.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    plt = command.pyplot()
    assert plt.get_backend().lower() == "agg"
    assert os.environ["MPLBACKEND"] == "module://no_such.backend"


def test_no_cache_of_tiktoken(monkeypatch):
    """Guards the ranks that lie in assets/: no other folder is needed for them."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/proc/x")
    assert tokenizer.gpt2_encoding.__wrapped__(tokenizer.RANKS).n_vocab == 50257
    assert os.environ["TIKTOKEN_CACHE_DIR"] == "/proc/x"


@pytest.mark.parametrize("options", [["-O"], ["-OO"], ["-P"], ["-OO", "-P"]], ids=str)
def test_options_of_python(options, tmp_path):
    """Guards python -OO, which drops docstrings, and -P, which does not look into our folder; from
    another folder, with a home that can't be written."""
    homeless = os.environ | {"HOME": "/proc/none"}
    found = subprocess.run([sys.executable, *options, ROOT / "sample.py", "--help"], cwd=tmp_path,
                           capture_output=True, text=True, env=homeless)
    assert found.returncode == 0 and "--checkpoint" in found.stdout, found.stderr


def test_home(monkeypatch, tmp_path, capsys):
    """Guards `--out=~/x`, which the shell leaves as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    it = settings.parser().parse_args(["--out=~/x", "--data=~/t.txt", "--model=~/m"])
    assert (it.out, it.data, it.model) == tuple(f"{tmp_path}/{x}" for x in ("x", "t.txt", "m"))
    assert command.path("~/x") == tmp_path / "x"
    for wrong, words in (("", "an empty path"), ("~no_such_person/x", "that home is not known")):
        with pytest.raises(SystemExit) as e:
            settings.parser().parse_args([f"--out={wrong}"])
        assert e.value.code == 2 and words in capsys.readouterr().err


def test_short_of_memory(tmp_path, done, monkeypatch):
    """Guards a step that does not fit: one line with what to lower, and what was saved is there."""
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate\nx")

    def in_a_step():
        small_world()
        train.backward = full

    def in_a_sample():
        sample.continue_prompt = full
    code, said = says(tiny("stream", tmp_path / "out"), before=in_a_step)
    last = said.splitlines()[-1]
    assert code == 1 and "--micro_batch" in last and "--resume goes on" in last
    assert read_weights(tmp_path / "out" / "ckpt.pt")["progress"]["step"] == 0
    code, said = says(["--checkpoint", done / "cups"], sample.main, in_a_sample)
    assert code == 1 and "not enough memory" in said and said.count("\n") == 1


# Folders that hold something

def folder_at_random(out: Path, good: Path, numbers: random.Random) -> None:
    """Files of a run that are missing, empty, cut, foreign, links or whole, in any mixture."""
    checkpoint, out_of = (good / "ckpt.pt").read_bytes(), numbers.choice
    contents = [b"", b"mine", checkpoint, checkpoint[:999], b"{}\n", b'{"loss": 1}\n',
                (good / "metrics.jsonl").read_bytes().replace(b": ", b":")]
    names = [*running.FILES, "ckpt_000001.pt", "ckpt_000900.pt", "ckpt.pt.part", "notes.txt",
             "model.safetensors", "old1", "old2"]
    for name in numbers.sample(names, numbers.randrange(1, 9)):
        if name.startswith("old") and out_of([True, False]):
            (out / name).mkdir()
            (out / name / "ckpt.pt").write_bytes(out_of(contents))
        elif out_of([True] * 5 + [False]):
            (out / name).write_bytes(out_of(contents))
        else:
            (out / "elsewhere").mkdir(exist_ok=True)
            (out / "elsewhere" / name).write_bytes(out_of(contents))
            (out / name).symlink_to(Path("elsewhere") / name)


def all_bytes(out: Path) -> list[bytes]:
    """What can be read under a folder, each file once."""
    files = {x.resolve() for x in out.rglob("*") if x.is_file()}
    return sorted(x.read_bytes() for x in files)


def test_fifty_folders(done, tmp_path):
    """Guards whatever a folder holds: before a new run writes, all that it would write over has
    moved to a place of its own. No byte of a checkpoint is lost, and no link leads nowhere."""
    new = as_checkpoint(GPT(Config(1, 1, 8, 8, 3)))
    for seed in range(50):
        out = tmp_path / str(seed)
        out.mkdir()
        folder_at_random(out, done / "cups", random.Random(seed))
        before = all_bytes(out)
        running.set_aside(out)
        save(out / "ckpt.pt", new)
        save(out / "ckpt_000001.pt", new)
        for name in ("metrics.jsonl", "settings.json", "samples.html", "curves.png"):
            (out / name).write_text("new")
        after = all_bytes(out)
        # (half a checkpoint that a killed run left is its scratch)
        lost = [x for x in before if x not in after and x not in (b"", b"mine", b"{}\n")]
        assert not [x for x in lost if b"PK" in x[:9]] or (
            lost == [x for x in lost if len(x) == 999]), seed
        assert not [x for x in out.rglob("*") if x.is_symlink() and not x.exists()]


@pytest.mark.parametrize("spoil", [
    lambda out: (out / "metrics.jsonl").write_text(""),
    lambda out: (out / "metrics.jsonl").unlink(),
    lambda out: (out / "metrics.jsonl").write_text('{"loss":1}\n'),
    lambda out: (out / "ckpt.pt").rename(out / "ckpt_000001.pt"),
    lambda out: (out / "ckpt.pt").write_text("mine"),
    lambda out: (out / "ckpt.pt").rename(out / "ckpt.pt.part")], ids=range(6))
def test_a_trained_checkpoint_is_set_aside(spoil, done, tmp_path):
    """Guards it by a real run: what was in the folder is in old1, byte by byte."""
    out = tmp_path / "out"
    shutil.copytree(done / "cups", out)
    spoil(out)
    before = {x.name: x.read_bytes() for x in out.iterdir()}
    code, said = says(tiny("stream", out, "--steps", "1", "--keep_every", "1"))
    assert code == 0 and "it is now in" in said.replace("all of it", "it"), said
    assert {x.name: x.read_bytes() for x in (out / "old1").iterdir()} == before


def test_links_are_written_through(tmp_path):
    """Guards a checkpoint on another disk: the file that is linked is the one that is written, and
    a new run leaves it where it is."""
    out, big = tmp_path / "out", tmp_path / "big"
    out.mkdir(), big.mkdir()
    (out / "ckpt.pt").symlink_to(Path("..") / "big" / "ckpt.pt")
    assert says(tiny("stream", out, "--steps", "1"))[0] == 0
    assert (out / "ckpt.pt").is_symlink() and [x.name for x in big.iterdir()] == ["ckpt.pt"]
    assert says(["--resume", "--steps", "2", "--out", out])[0] == 0
    assert read_weights(big / "ckpt.pt")["progress"]["step"] == 2
    trained = (big / "ckpt.pt").read_bytes()
    assert says(tiny("stream", out, "--steps", "1"))[0] == 0
    assert (big / "ckpt.pt").read_bytes() == (out / "old1" / "ckpt.pt").read_bytes() == trained


# Resume

@pytest.mark.parametrize("line", [
    "{}", "[]", "null", "1", '{"kind":"x","step":1}', '{"kind": "step", "step": 0}', '"', "\udcff",
    '{"kind": "eval", "step": "1"}', '{"kind": ["step"], "step": 1}', '{"kind": "step", "step": 1',
    '{"kind": "step", "step": 0, "reward": "x", "spread": 1, "entropy": 1}'])
def test_foreign_lines_in_the_log(line, done, tmp_path):
    """Guards a log that another tool wrote to: the run's lines stay, the others are set aside."""
    out = tmp_path / "out"
    shutil.copytree(done / "cups", out)
    there = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    there.insert(1, line.encode("utf-8", "surrogateescape") + b"\n")
    (out / "metrics.jsonl").write_bytes(b"".join(there))
    code, said = says(["--resume", "--steps", "2", "--out", out])
    assert code == 0, said
    kinds = [(x["kind"], x["step"]) for x in map(json.loads, open(out / "metrics.jsonl"))]
    assert kinds == [("eval", 0), ("step", 0), ("eval", 1), ("step", 1), ("eval", 2)]
    assert "1 line(s) that no run writes" in said
    assert (out / "metrics.old").read_bytes() == b"".join(there)


def test_changed_data_are_noticed(text, tmp_path):
    """Guards --resume after its text was edited: it says so. (The same text elsewhere is none.)"""
    (tmp_path / "t.txt").write_bytes(text.read_bytes())
    assert says(on_text(tmp_path / "t.txt", tmp_path / "out"))[0] == 0
    resume = ["--resume", "--out", tmp_path / "out", "--steps"]
    assert "has changed" not in says([*resume, "2"])[1]
    other = "".join(reversed(text.read_text(encoding="utf-8").splitlines(keepends=True)))
    (tmp_path / "t.txt").write_text(other, encoding="utf-8")
    code, said = says([*resume, "3"])
    assert code == 0 and "t.txt has changed" in said
    (tmp_path / "t.txt").write_text(f"{other} zebra", encoding="utf-8")
    code, said = says([*resume, "4"])
    assert code == 2 and "this run began with" in said and "as it was then" in said, said
    (tmp_path / "out" / "metrics.jsonl").rename(tmp_path / "log")
    (tmp_path / "out" / "metrics.jsonl").mkdir()
    assert "metrics.jsonl is a folder" in says([*resume, "4"])[1]


def test_another_part_of_webtext_is_noticed(tmp_path, monkeypatch):
    """Guards a run that began on another part of WebText under the same name: --resume says so and
    goes on. To type the other part is refused."""
    monkeypatch.setattr(data, "CACHE", tmp_path)
    monkeypatch.setattr(task, "CACHE", tmp_path)
    for name in ("train", "valid", "test"):
        line = json.dumps({"text": f" {name} part" * 400})
        (tmp_path / f"webtext.{name}.jsonl").write_text(f"{line}\n")

    def other_part():
        small_world()
        task.webtext_part = lambda spec: "train"
    assert says(on_text("webtext", tmp_path / "out"), before=other_part)[0] == 0
    resume = ["--resume", "--out", tmp_path / "out", "--steps", "2"]
    code, said = says([*resume, "--data", "webtext train"])
    assert code == 2 and "it had --data webtext, not webtext train" in said
    code, said = says(resume)
    assert code == 0 and said.count("webtext has changed since this run began") == 1


# JSON

def test_json_is_json(tmp_path):
    """Guards every reader of our files: no NaN and no infinity, at any depth, and a log with such
    a loss is read back."""
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.nan, 2)}]}
    assert command.as_json(value) == '{"a": null, "b": [1.5, null, {"c": [null, 2]}]}'
    log = running.Log(tmp_path, 0)
    log.write("step", 0, {"reward": math.nan, "spread": 0.0, "entropy": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    json.loads(text, parse_constant=lambda x: pytest.fail(x))
    assert math.isnan(running.read_log(tmp_path / "metrics.jsonl")[0]["reward"])
    assert len(running.Log(tmp_path, 1).path.read_text()) == len(text)


def test_one_row_has_no_interval():
    """Guards --prompts 1 --samples 1: no warning, and no number that is none."""
    model = GPT(Config(1, 1, 8, 32, 11, 3))
    rows = plain(torch.randint(11, (1, 12)), 4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        more, half = gain(model, rows, Rules("free", budget=4))
    assert math.isfinite(more) and half is None


def test_a_stream_that_is_not_ours():
    """Guards notebooks, whose stdout is no file: nothing of it is changed."""
    mine, before = io.StringIO(), sys.stdout
    sys.stdout = mine
    try:
        command.run(lambda: print("said"))
    finally:
        sys.stdout = before
    assert mine.getvalue() == "said\n"
