"""Stops, faults and bad input: what was saved stays whole, a run goes on as if nothing had been,
and a person reads one line.

The quick half. torture.py does the same in bulk, with what takes minutes: random moments, full
disks, fuzzing, memory. Runs that die are real processes, forks of this one (which saves each the
seconds of importing torch), so not on Windows.

Left out on purpose: what is learned.
"""
import json
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path

import pytest
import torch
import torch._dynamo  # an optimizer imports it, for three seconds: here once, not in every child
from tqdm import tqdm

import data
import run as running
import sample
import train
from conftest import one_line
from data import plain
from evaluate import free_text, held_out, plain_nats
from model import GPT, PICO, Config, as_checkpoint, load
from run import open_run
from task import open_source
from tokenizer import Tokenizer
from weights import FORMAT, read_weights, save

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
APPROACHES = ["teacher", "stream", "next_token"]
STEPS = 6


def tiny(approach: str, out: Path, *more: str) -> list[str]:
    """A run of seconds: three checkpoints besides the one at the start."""
    few = f"--steps {STEPS} --eval_every 2 --prompts 2 --samples 2 --new_tokens 10 --think_vocab 16"
    return ["--approach", approach, *few.split(), "--out", str(out), *more]


def small_world() -> None:
    """In a child: evaluations are a short look, and there are no curves (a second each)."""
    def look(model, source, rules, s, teacher, _):
        P = s.prompt_tokens
        prompts = plain(held_out(source, 2, P, 1000, P), P, 6)
        out, ro = free_text(model, source, rules, prompts, teacher)
        nats, p_think = plain_nats(model, held_out(source, 2, 40, 2000), rules)
        shown = [(row, ro.P) for row in ro.kept()]
        return {"nats_without_thoughts": nats, "p_think": p_think, **out}, shown
    running.evaluate, running.draw_curves = look, lambda out, of: None


def child(argv: list, said: int, before=small_world, main=train.main) -> int:
    """Start `main` in a fork of this process -> its id. What it prints goes to `said`."""
    Tokenizer()  # its file is read once, before the fork
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    # the lock of bars is shared with forks: one that is killed would hold it for ever
    tqdm.set_lock(threading.RLock())
    try:
        os.dup2(said, 1), os.dup2(said, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        before()
        sys.argv = ["train.py", *map(str, argv)]
        main()
        code = 0
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        code = 1 if isinstance(e.code, str) else e.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Exit code of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(argv: list, before=small_world) -> tuple[int, str]:
    """-> exit code, and all that was printed. (A pipe: no limit on files concerns it.)"""
    read, write = os.pipe()
    pid = child(argv, write, before)
    os.close(write)
    with open(read) as f:
        said = f.read()
    return ended(pid), said


def left(out: Path) -> tuple[dict, list[dict]]:
    """All that a run left: its checkpoint without the folder's name, its log without seconds."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    saved = read_weights(out / "ckpt.pt")
    saved = saved | {"settings": saved["settings"] | {"out": None}}
    return saved, [{k: v for k, v in x.items() if k != "seconds"} for x in lines]


def same(a, b) -> bool:
    """Bit for bit, whatever is nested in what."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def is_complete(lines: list[dict], steps: int = STEPS) -> bool:
    """Every step once, in order."""
    return [x["step"] for x in lines if x["kind"] == "step"] == list(range(steps))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of each approach that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    for approach in APPROACHES:
        code, said = run(tiny(approach, folder / approach))
        assert code == 0, said
    return {approach: left(folder / approach) for approach in APPROACHES}


# kill -9

def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in_save(at: int, share: float):
    """The at-th checkpoint (0: the one before the first step) is cut after a share of its bytes."""
    def before():
        small_world()
        write, calls = torch.save, iter(range(99))

        def cut(state, f):
            write(state, f)
            if next(calls) == at:
                f.truncate(int(f.tell() * share))
                die()
        torch.save = cut
    return before


def dies_in(module, name: str, at: int, after: bool):
    """Just before or after the at-th call of a function."""
    def before():
        small_world()
        real, calls = getattr(module, name), iter(range(999))

        def call(*a):
            i = next(calls)
            if i == at and not after:
                die()
            out = real(*a)
            if i == at:
                die()
            return out
        setattr(module, name, call)
    return before


def dies_in_line(at: int):
    """Half of the at-th line of the log is written."""
    def before():
        small_world()
        real, calls = running.Log.write, iter(range(999))

        def write(self, kind, step, values):
            real(self, kind, step, values)
            if next(calls) == at:
                size = self.path.stat().st_size
                with open(self.path, "r+b") as f:
                    f.truncate(size - len(f.read().splitlines()[-1]) // 2)
                die()
        running.Log.write = write
    return before


# os.replace is called for the first checkpoint, settings.json, the log and samples.html, and then
# for samples and checkpoints
RENAMES = ((1, False), (1, True), (2, False), (2, True), (3, False), (5, False))
PLACES = [dies_in_save(2, 0.9), dies_in_line(4), dies_in_save(0, 0.5),
          dies_in(os, "fsync", 1, False), *(dies_in(os, "replace", *x) for x in RENAMES)]


@pytest.mark.parametrize("approach, places", [
    ("stream", PLACES), ("teacher", PLACES[:2]), ("next_token", PLACES[:2])])
def test_killed_and_resumed(whole, tmp_path, approach, places):
    """Guards --resume: a run is killed in the middle of a write, again and again; its checkpoint is
    whole each time, and weights, moments, progress and log are those of a run that nobody killed,
    to the bit."""
    for i, place in enumerate(places):
        out = tmp_path / str(i)
        assert run(tiny(approach, out), place)[0] == -signal.SIGKILL
        if i % 3 == 0 and (out / "ckpt.pt").exists():  # a second time, while it picks up the log
            again = run(["--resume", "--out", str(out)], dies_in(os, "replace", 1, bool(i % 2)))
            assert again[0] == -signal.SIGKILL
        there = (out / "ckpt.pt").exists()
        code, said = run(["--resume", "--out", str(out)] if there else tiny(approach, out))
        assert code == 0, said
        assert same(left(out), whole[approach]) and is_complete(left(out)[1])


def test_another_run_in_the_same_folder(whole, tmp_path):
    """Guards against a checkpoint of one run with the log of another, and against a run that is
    lost to the next: a new run sets both aside and says where, wherever it is killed at its start;
    a run without a step is not worth it."""
    out = tmp_path / "out"
    assert run(tiny("stream", out, "--seed", "9"))[0] == 0
    old = left(out)
    code, text = run(tiny("stream", out), dies_in(os, "replace", 0, False))
    assert code == -signal.SIGKILL and not (out / "ckpt.pt").exists()
    assert run(tiny("stream", out), dies_in(os, "replace", 0, True))[0] == -signal.SIGKILL
    assert run(["--resume", "--out", out])[0] == 0
    assert same(left(out), whole["stream"]) and same(left(out / "old1"), old)
    code, text = run(tiny("stream", out))
    assert code == 0 and f"it is now in {out}/old2/" in text
    assert sorted(x.name for x in out.glob("old*")) == ["old1", "old2"]
    assert same(left(out / "old2"), whole["stream"])
    assert {"samples.html", "settings.json"} <= {x.name for x in (out / "old2").iterdir()}
    assert run(["--resume", "--out", out / "old1"])[0] == 0  # it is a run like any other


def test_checkpoints_that_are_kept(whole, tmp_path):
    """Guards --keep_every: what is kept is the run as it stood after that step, to the bit, also
    where it was killed while it wrote one or just after that; what is learned does not depend on
    it; a full disk breaks off as anywhere; and a new run in the folder leaves none behind."""
    # in step 4: while ckpt_000004.pt is written, and just after
    places = [dies_in_save(3, 0.9), dies_in(os, "replace", 8, True)]
    for i, place in enumerate(places):
        out = tmp_path / str(i)
        assert run(tiny("stream", out, "--keep_every", "2"), place)[0] == -signal.SIGKILL
        assert read_weights(out / "ckpt.pt")["progress"]["step"] == 2
        code, said = run(["--resume", "--out", out])
        assert code == 0, said
        kept = sorted(x.name for x in out.glob("ckpt_*.pt"))
        assert kept == [f"ckpt_{step:06}.pt" for step in (2, 4, 6)]
        saved, lines = left(out)
        saved = saved | {"settings": saved["settings"] | {"keep_every": 0}}
        assert same((saved, lines), whole["stream"])
    for step in (2, 4, 6):
        there = tmp_path / f"stopped{step}"
        code = run(tiny("stream", there), signalled(signal.SIGINT, at=step - 1))[0]
        assert code == (130 if step < STEPS else 0)
        kept, stopped = (read_weights(x) for x in (out / f"ckpt_{step:06}.pt", there / "ckpt.pt"))
        assert all(same(kept[k], stopped[k])
                   for k in stopped.keys() - {"settings", "optimizer", "written"})
        it = open_run(out / f"ckpt_{step:06}.pt")
        assert same(dict(it.model.state_dict()), stopped["model"]) and it.settings.keep_every == 2
    before, size = (out / "ckpt.pt").read_bytes(), (out / "ckpt_000002.pt").stat().st_size
    code, text = run(["--resume", "--steps", "8", "--out", out], limited(size // 2))
    assert code == 1 and "Traceback" not in text, text
    assert "ckpt_000008.pt.part can't be written" in text.splitlines()[-1]
    assert (out / "ckpt.pt").read_bytes() == before and not list(out.glob("*.part"))
    assert size < len(before) / 2 and run(tiny("stream", out))[0] == 0
    assert not list(out.glob("ckpt_*")) and len(list((out / "old1").glob("ckpt_*"))) == 3


# Ctrl-C and SIGTERM

def signalled(number: int, at: int, times: int = 1):
    """The signal comes in the middle of step `at`."""
    def before():
        small_world()
        real = train.backward
        calls = iter(range(999))

        def disturbed(*a):
            if next(calls) == at:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return real(*a)
        train.backward = disturbed
    return before


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_and_resumed(whole, tmp_path, number, code):
    """Guards Ctrl-C: the step ends, everything is saved, one line says how to go on, and going on
    is exact."""
    out = tmp_path / "out"
    stopped, text = run(tiny("stream", out), signalled(number, at=2))
    how = f"\nstopped after step 3; go on with: python train.py --resume --out {out}\n"
    assert stopped == code and how in text
    assert read_weights(out / "ckpt.pt")["progress"]["step"] == 3
    assert not list(out.glob("*.part"))
    assert run(["--resume", "--out", out])[0] == 0
    assert same(left(out), whole["stream"])


def test_resume_keeps_the_stage(tmp_path):
    """Guards all that changes besides weights: stage, running mean and counters are in the
    checkpoint, and go on from there."""
    out = tmp_path / "out"
    assert run(tiny("stream", out), signalled(signal.SIGINT, at=2))[0] == 130
    saved = read_weights(out / "ckpt.pt")
    later = saved["progress"] | {"stage": 2, "accuracy": 0.25, "in_stage": 7, "skipped": 1}
    save(out / "ckpt.pt", saved | {"progress": later})
    assert run(["--resume", "--out", out])[0] == 0
    progress, lines = left(out)[0]["progress"], left(out)[1]
    assert (progress["stage"], progress["in_stage"], progress["skipped"]) == (2, 10, 1)
    assert [x["stage"] for x in lines if x["kind"] == "step"] == [1, 1, 1, 2, 2, 2]


def test_resume_on_another_device(whole, tmp_path):
    """Guards a run that began on a GPU: where there is none it goes on with --device alone, and
    what was compiled there need not be here. To the bit, as this one began on a CPU in truth."""
    out = tmp_path / "out"
    assert run(tiny("stream", out), signalled(signal.SIGINT, at=2))[0] == 130
    saved = read_weights(out / "ckpt.pt")
    save(out / "ckpt.pt", saved | {"settings": saved["settings"] | {"device": "cuda",
                                                                   "compile": "on"}})
    code, said = run(["--resume", "--out", out])
    assert code == 2 and "--device auto" in said
    code, said = run(["--resume", "--device", "cpu", "--compile", "off", "--out", out])
    assert code == 0 and "this run was on cuda, and goes on on cpu" in said
    settings = left(out)[0]["settings"]
    assert (settings["device"], settings["compile"]) == ("cpu", "off")
    assert same(left(out), whole["stream"])


def test_a_second_signal_ends_at_once(tmp_path):
    """Guards impatience: with the second Ctrl-C the process is gone, in the middle of its step, and
    the checkpoint is the last one."""
    out = tmp_path / "out"
    assert run(tiny("stream", out), signalled(signal.SIGINT, at=3, times=2))[0] == -signal.SIGINT
    assert read_weights(out / "ckpt.pt")["progress"]["step"] == 2


# faults of the disk

def limited(size: int):
    """No file may grow over `size` bytes: what a full disk looks like from inside."""
    def before():
        import resource
        small_world()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return before


def gone():
    """The folder disappears in the third step."""
    small_world()
    real, calls = running.Log.write, iter(range(999))

    def write(self, *a):
        if next(calls) == 3:
            shutil.rmtree(self.path.parent)
        real(self, *a)
    running.Log.write = write


def test_faults_of_the_disk(tmp_path):
    """Guards the last good checkpoint: a file that can't grow and a folder that is gone end the run
    with exit code 1 and one line, and what was saved is as it was."""
    out = tmp_path / "out"
    assert run(tiny("stream", out), signalled(signal.SIGINT, at=2))[0] == 130
    before, small = (out / "ckpt.pt").read_bytes(), (out / "metrics.jsonl").stat().st_size // 2
    settings = (out / "settings.json").read_bytes()
    for size in (len(before) // 2, len(before) - 30, small, 0):  # 30: within the seal
        code, text = run(["--resume", "--out", out], limited(size))
        last = text.splitlines()[-1]
        assert code == 1 and last.startswith("train.py: ") and "--resume" in last, text
        assert "Traceback" not in text
        assert (out / "ckpt.pt").read_bytes() == before and not (out / "ckpt.pt.part").exists()
        assert (out / "settings.json").read_bytes() == settings
    code, text = run(tiny("stream", tmp_path / "other"), gone)
    assert code == 1 and "metrics.jsonl" in text.splitlines()[-1] and "Traceback" not in text
    assert not (tmp_path / "other").exists()


# checkpoints

@pytest.fixture
def sealed(tmp_path):
    torch.manual_seed(0)
    save(tmp_path / "good.pt", as_checkpoint(GPT(Config(1, 2, 16, 32, 19, 4))))
    load(tmp_path / "good.pt")
    return tmp_path / "good.pt"


def refuses(path: Path, *words: str) -> None:
    with pytest.raises(ValueError) as e:
        load(path)
    assert all(w in one_line(e) for w in words), e.value


def spoil_randomly(path: Path, kind: str, numbers: random.Random) -> Path:
    """A copy that is cut somewhere, or in which some bytes are others."""
    data = bytearray(path.read_bytes())
    if kind == "cut":
        ends = [numbers.randrange(len(data)), len(data) - numbers.randint(1, 80)]
        del data[numbers.choice(ends):]
    else:
        for place in numbers.sample(range(len(data)), numbers.choice([1, 1, 1, 2, 8])):
            data[place] ^= numbers.randint(1, 255)
    bad = path.with_name("bad.pt")
    bad.write_bytes(data)
    return bad


@pytest.mark.parametrize("kind", ["cut", "flipped"])
def test_damage_is_seen(sealed, kind):
    """Guards against weights that are loaded with a bit flipped: the seal sees every change."""
    numbers = random.Random(0)
    for _ in range(40):
        refuses(spoil_randomly(sealed, kind, numbers))
    data = sealed.read_bytes()
    (sealed.parent / "bad.pt").write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    refuses(sealed.parent / "bad.pt", "checksum")
    (sealed.parent / "bad.pt").write_bytes(data[:-72])
    refuses(sealed.parent / "bad.pt", "checksum")


def test_shipped_models_are_sealed():
    """Guards assets/ as a checkout may have changed them."""
    for path in PICO.values():
        assert 2 <= read_weights(path)["format"] <= FORMAT  # 1 had no seal


def test_older_and_newer(sealed, tmp_path):
    """Guards both directions of time: checkpoints of formats 1 and 2, with their other names, load;
    those of a later format are named."""
    state = torch.load(sealed, weights_only=True)
    weights = dict(state["model"])
    weights["think_offset"] = weights.pop("gate_bias")
    old = {**state, "model": weights}
    torch.save(old | {"format": 1}, tmp_path / "one.pt")
    save(tmp_path / "two.pt", old | {"format": 2})
    for name in ("one.pt", "two.pt"):
        assert same(load(tmp_path / name).state_dict(), load(sealed).state_dict())
    torch.save(old | {"format": 2}, tmp_path / "unsealed.pt")
    refuses(tmp_path / "unsealed.pt", "checksum")
    for newer in (FORMAT + 1, "x"):
        save(tmp_path / "new.pt", state | {"format": newer})
        refuses(tmp_path / "new.pt", "newer", repr(newer))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_sealed_code_is_not_run(tmp_path):
    """Guards against trust in a checksum: it says that nothing changed, not that it is harmless."""
    bomb = {"rules": Bomb(tmp_path / "ran")}
    save(tmp_path / "x.pt", as_checkpoint(GPT(Config(1, 1, 8, 8, 4))) | bomb)
    refuses(tmp_path / "x.pt", "weights_only")
    assert not (tmp_path / "ran").exists()
    with open(tmp_path / "y.pt", "wb") as f:
        pickle.dump({"config": Bomb(tmp_path / "ran")}, f, 2)
    refuses(tmp_path / "y.pt")
    assert not (tmp_path / "ran").exists()


def test_resume_refuses_what_does_not_fit(tmp_path):
    """Guards --resume against checkpoints that are sound and still not those of this run: parts
    missing, moments or weights of another model, settings of another version."""
    out, wide = tmp_path / "out", tmp_path / "wide"
    assert run(tiny("stream", out), signalled(signal.SIGINT, at=1))[0] == 130
    good = read_weights(out / "ckpt.pt")
    argv = tiny("stream", wide, "--model", "scratch:1x32")
    assert run(argv, signalled(signal.SIGINT, at=1))[0] == 130
    other, settings = read_weights(wide / "ckpt.pt"), good["settings"]
    bad = [*({k: v for k, v in good.items() if k != name}
             for name in ("settings", "rules", "progress", "optimizer")),
           good | {"optimizer": other["optimizer"]}, good | {"optimizer": {}},
           good | {"config": other["config"]}, good | {"model": other["model"]},
           good | {"config": good["config"] | {"n_head": 5}},
           good | {"settings": {k: v for k, v in settings.items() if k != "gamma"}},
           good | {"settings": settings | {"warmup": 50}},
           good | {"rules": good["rules"] | {"depth": 1}},
           good | {"progress": good["progress"] | {"depth": 1}},
           good | {"written": [{"rows": 3}]}]
    for state in bad:
        save(out / "ckpt.pt", state)
        code, text = run(["--resume", "--out", out])
        assert code == 2 and text.count("\n") == 1 and text.startswith("train.py: "), text


# what a run of format 2 had in its checkpoint instead of settings and progress
ARGS = {
    "approach": "stream", "thoughts": "tokens", "model": "scratch", "layers": 1, "width": 64,
    "teacher": None, "data": "cups", "cups": 4, "balls": "one", "moves": "mixed", "swaps": 3,
    "idle": 0.25, "think_vocab": 16, "alphabet": "new", "pull": 0.0, "think": "forced",
    "think_prior": 0.5, "max_thoughts": 1, "budget": 16, "think_cost": 0.0, "window": 5,
    "thinker": None, "reread": 0, "prompts": 2, "samples": 2, "prompt_tokens": 17, "new_tokens": 10,
    "temperature": 1.0, "micro_batch": 4, "steps": 12000, "lr": 1e-3, "think_lr": 2e-3,
    "warmup": 50, "entropy": 0.25, "gamma": 1.0, "siblings": "shared", "baseline": "loo",
    "beta": 1.0, "text_grad": "exact", "answer_grad": "on", "curriculum": "strict", "seed": 0,
    "eval_every": 800, "keep_every": 0, "device": "cpu", "dtype": "float32", "compile": "off",
    "out": "out"}
STATE = {"step": 7, "stage": 2, "accuracy": 0.0, "in_stage": 3, "dead": 0, "skipped": 0,
         "in_a_row": 0, "end": 12000, "wanted": False, "born": 0, "attempt": 0}


def test_a_run_of_format_2(tmp_path):
    """Guards older runs: they can be sampled, under their rules and in their world, and are not
    resumed."""
    world = open_source("cups m=4 idle=0.25")
    saved = as_checkpoint(GPT(Config(1, 2, 64, 256, len(world.text_ids), 16), world.text_ids))
    saved["model"]["think_offset"] = saved["model"].pop("gate_bias")
    rules = {"think": "forced", "max_thoughts": 1, "budget": 16, "window": 5,
             "think_after": world.move_ids.tolist(), "persist": True, "continuous": False,
             "reread": 0}
    save(tmp_path / "ckpt.pt", saved | {"format": 2, "args": ARGS, "rules": rules, "state": STATE,
                                        "optimizer": {"state": {}, "param_groups": []}})
    it = open_run(tmp_path)
    assert (it.settings.model, it.settings.reward) == ("scratch:1x64", "kl")
    assert it.source.m == 4 and it.source.idle == 0.25 and it.source.stages == 3
    assert it.progress.step == 7 and it.progress.end == 12000 and it.rules.window == 5
    found = sample.generate(it, "The ball is under cup D. Moves: AD, nothing. Where?", 3)
    assert len(found[0].thoughts) >= 2 and found[0].thoughts[0][1].endswith(" AD")
    before = (tmp_path / "ckpt.pt").read_bytes()
    code, text = run(["--resume", "--out", tmp_path])
    assert code == 2 and text.count("\n") == 1 and "not resumed" in text, text
    assert (tmp_path / "ckpt.pt").read_bytes() == before


# a loss that is no number

def spoiling(loss_at=(), grad_at=()):
    def before():
        small_world()
        real = train.backward
        calls = iter(range(999))

        def spoilt(it, *more):
            loss, H = real(it, *more)
            i = next(calls)
            if i in grad_at:
                it.model.wpe.weight.grad[3, 3] = float("inf")
            return (float("nan") if i in loss_at else loss), H
        train.backward = spoilt
    return before


def test_steps_are_skipped(whole, tmp_path):
    """Guards the weights against one bad batch: that step changes nothing, and is counted in the
    log and the checkpoint."""
    out = tmp_path / "out"
    code, text = run(tiny("stream", out), spoiling(loss_at=[1], grad_at=[3, 4]))
    assert code == 0
    saved, lines = left(out)
    assert saved["progress"]["skipped"] == 3 and saved["progress"]["in_a_row"] == 0
    assert [x["skipped"] for x in lines if x["kind"] == "step"] == [0, 1, 1, 2, 3, 3]
    assert is_complete(lines) and "skipped=3" in text
    assert all(v.isfinite().all() for v in saved["model"].values())
    steps = {int(m["step"]) for m in saved["optimizer"]["state"].values()}
    assert steps == {3}  # of six


def test_ten_in_a_row(tmp_path):
    """Guards the last good state: after ten such steps the run gives up with a hint, and its
    checkpoint is one from before."""
    out = tmp_path / "out"
    argv = tiny("stream", out, "--steps", "30")
    code, text = run(argv, spoiling(loss_at=range(5, 99)))
    assert code == 1 and "--lr" in text.splitlines()[-1] and "Traceback" not in text
    saved = read_weights(out / "ckpt.pt")
    assert "up to step 14" in text and saved["progress"]["step"] < 15
    assert all(v.isfinite().all() for v in saved["model"].values())
    code, text = run(tiny("stream", out, "--steps", "30", "--lr", "2e9"))  # spoilt for real
    assert code == 1 and "--lr" in text.splitlines()[-1] and "Traceback" not in text
    assert all(v.isfinite().all() for v in read_weights(out / "ckpt.pt")["model"].values())


# the same again

def test_seeds(whole, tmp_path):
    """Guards reproducibility: the same seed is the same run, another seed is another one."""
    for name, seed in (("same", "0"), ("other", "1")):
        assert run(tiny("stream", tmp_path / name, "--seed", seed))[0] == 0
    assert same(left(tmp_path / "same"), whole["stream"])
    mine, theirs = left(tmp_path / "other"), whole["stream"]
    assert not any(torch.equal(mine[0]["model"][k], v) for k, v in theirs[0]["model"].items()
                   if v.dim() == 2)
    assert all(a["loss"] != b["loss"] for a, b in zip(mine[1], theirs[1]) if a["kind"] == "step")


# input from outside

MADE = "os.rename os.link os.symlink os.remove os.mkdir os.rmdir".split()  # 3 of 2 paths


def watch_writes(log: Path):
    """In a child: note every file that Python opens for writing, makes, moves or removes."""
    def before():
        small_world()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def hook(event, a):
            paths = a[:2 if event in MADE[:3] else 1] if event in MADE else ()
            if event == "open" and isinstance(a[0], (str, bytes, os.PathLike)):
                flags, mode = a[2] or 0, set(a[1] or "")
                if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or mode & set("wax+"):
                    paths = a[:1]
            for path in paths:
                os.write(file, os.fsencode(os.path.abspath(path)) + b"\n")
        sys.addaudithook(hook)
    return before


def test_nothing_is_written_outside(tmp_path):
    """Guards against a path that comes with a file: a checkpoint that names another folder is
    resumed in its own, and all that a run writes lies in --out."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    assert run(tiny("stream", out), signalled(signal.SIGINT, at=1))[0] == 130
    saved = read_weights(out / "ckpt.pt")
    moved = saved["settings"] | {"out": str(elsewhere)}
    save(out / "ckpt.pt", saved | {"settings": moved})
    assert run(["--resume", "--out", out], watch_writes(tmp_path / "written"))[0] == 0
    lines = set((tmp_path / "written").read_text().splitlines()) - {os.devnull}
    assert not elsewhere.exists() and len(lines) > 4
    assert all(Path(x).is_relative_to(out) for x in lines), lines


def test_markup_is_shown_and_not_run(tmp_path):
    """Guards samples.html from end to end: markup in a text is text there."""
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("<script>alert(1)</script> " * 200)

    def before():
        small_world()
        data.CACHE = tmp_path / "cache"
    argv = tiny("stream", out, "--data", str(text), "--model", "scratch:1x8", "--prompt_tokens",
                "64", "--think", "free")
    code, said = run(argv, before)
    page = (out / "samples.html").read_text()
    assert code == 0 and "<script" not in page and page.count("&lt;script&gt;alert(1)") > 2, said
