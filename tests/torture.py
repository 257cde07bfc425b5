"""What test_nothing_lost.py does a few times, in bulk: minutes, not seconds. Prints its figures; any failure ends it.

    python tests/torture.py                              # everything, about 25 minutes on one core
    python tests/torture.py --only kills --count 50      # so many kills of each approach
    python tests/torture.py --only data --megabytes 100

Linux alone (forks, /proc, resource limits). Left out on purpose: GPUs, power cuts, files changed by others while a run goes on.
"""
import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import data  # noqa: E402
import sample  # noqa: E402
import test_nothing_lost as quick  # noqa: E402
import tokenizer  # noqa: E402
import train  # noqa: E402
from model import GPT, Config, as_checkpoint, load, read_weights, save  # noqa: E402
from test_nothing_lost import APPROACHES, child, ended, is_complete, left, limited, run, same, small_world, tiny  # noqa: E402


def undisturbed(approach: str, folder: Path) -> tuple[tuple, float]:
    """-> what a run leaves that nothing disturbs, and its seconds."""
    t0 = time.time()
    code, said = run(tiny(approach, folder / "whole"), folder / "said")
    assert code == 0, said
    return left(folder / "whole"), time.time() - t0


def random_place(luck: random.Random):
    """A moment to die that a clock would hardly ever find: in a checkpoint, a rename, a line."""
    at = luck.randrange(4)
    return luck.choice([quick.dies_in_save(at, luck.random()), quick.dies_in_save(at, luck.random()), quick.dies_in_line(at * 2),
                        quick.dies_in(os, "replace", at, luck.random() < 0.5), quick.dies_in(os, "fsync", at, luck.random() < 0.5)])


def kills(folder: Path, count: int, luck: random.Random) -> str:
    """`kill -9`, half of them at a random time and half in the middle of a write; then --resume, which may be killed too."""
    figures = []
    for approach in APPROACHES:
        wanted, seconds = undisturbed(approach, folder)
        killed, in_write, resumed, compared, fresh = 0, 0, 0, 0, True
        bar = tqdm(total=count, desc=f"kills, {approach}")
        while killed < count or not fresh:
            out = folder / f"{approach}{compared}"
            argv = ["--resume", "--out", out] if (out / "ckpt.pt").exists() else tiny(approach, out)
            resumed += "--resume" in argv
            by_clock, spare = luck.random() < 0.5, killed >= count
            pid = child(argv, folder / "said", small_world if by_clock or spare else random_place(luck))
            if by_clock and not spare:
                time.sleep(luck.uniform(0, 1.2 * seconds))
                os.kill(pid, signal.SIGKILL)  # (a child that has ended waits for `ended`: the id is still its own)
            code = ended(pid)
            assert code in (0, -signal.SIGKILL), (folder / "said").read_text()
            if fresh := code == 0:
                got = left(out)
                assert same(got, wanted) and is_complete(got[1]), f"{out} is not the undisturbed run"
                compared += 1
            else:
                killed += 1
                bar.update()
                in_write += (out / "ckpt.pt.part").exists()
                if (out / "ckpt.pt").exists():
                    load(out / "ckpt.pt")  # whole, whatever happened
        bar.close()
        figures.append(f"{approach}: {killed} kills, {in_write} of them inside a checkpoint, {resumed} resumes, "
                       f"{compared} finished runs equal to the undisturbed one")
    return "; ".join(figures)


def signals(folder: Path, count: int, luck: random.Random) -> str:
    """Ctrl-C and SIGTERM at random moments once there is a checkpoint, then --resume to the end."""
    codes, equal = {}, 0
    whole = [(approach, *undisturbed(approach, folder / approach)) for approach in APPROACHES]
    for i in tqdm(range(count), desc="signals"):
        approach, wanted, seconds = whole[i % 3]
        out, number = folder / str(i), luck.choice([signal.SIGINT, signal.SIGTERM])
        pid = child(tiny(approach, out), folder / "said")
        while not (out / "metrics.jsonl").exists():
            time.sleep(0.001)
        time.sleep(luck.uniform(0, 0.7 * seconds))
        os.kill(pid, number)
        code = ended(pid)
        codes[code] = codes.get(code, 0) + 1
        assert code in (0, 128 + number), (folder / "said").read_text()
        if code:
            assert (folder / "said").read_text().splitlines()[-1].startswith("stopped after step")
            assert run(["--resume", "--out", out], folder / "said")[0] == 0
        equal += same(left(out), wanted)
    assert equal == count
    return f"exit codes {codes}; {equal} of {count} equal to the undisturbed run once resumed"


def as_nobody(folder: Path):
    """A folder that may be read and not written to; root may write anywhere, so root becomes nobody."""
    def before():
        small_world()
        if os.getuid() == 0:
            os.setgid(65534), os.setuid(65534)
    for path in [folder, *folder.glob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return before


def disk(folder: Path, count: int, luck: random.Random) -> str:
    """Files that may not grow, a small file system that is full, a folder that is read-only or gone."""
    out, said = folder / "out", folder / "said"
    folder.chmod(0o755)
    assert run(tiny("stream", out), said, quick.signalled(signal.SIGINT, at=2))[0] == 130
    before, figures = (out / "ckpt.pt").read_bytes(), []

    def breaks(argv: list, fault, ckpt: Path) -> None:
        code, text = run(argv, said, fault)
        assert code == 1 and "Traceback" not in text and ckpt.read_bytes() == before, text
        assert text.splitlines()[-1].startswith("train.py: "), text
    for _ in tqdm(range(count), desc="disk"):
        breaks(["--resume", "--out", out], limited(luck.randint(600, len(before) + 70)), out / "ckpt.pt")
    figures.append(f"{count} sizes at which files may not grow on")
    small = folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", small], capture_output=True).returncode == 0:
        try:
            shutil.copytree(out, small / "out")
            with contextlib.suppress(OSError):
                (small / "fill").write_bytes(b"x" * (320 << 10))
            breaks(["--resume", "--out", small / "out"], small_world, small / "out" / "ckpt.pt")
            figures.append("a full tmpfs")
        finally:
            subprocess.run(["umount", small], check=True)
    else:
        figures.append("no tmpfs (mount needs root)")
    breaks(["--resume", "--out", out], as_nobody(out), out / "ckpt.pt")
    code, text = run(tiny("stream", folder / "other"), said, quick.gone)
    assert code == 1 and "Traceback" not in text and text.splitlines()[-1].startswith("train.py: "), text
    return "exit code 1, one line and the old checkpoint whole: " + ", ".join(figures) + ", read-only; gone: exit code 1, one line"


def checkpoints(folder: Path, count: int, luck: random.Random) -> str:
    """A real checkpoint, cut and flipped at random, for sample.py (`load`) and for --resume."""
    out, reasons = folder / "out", {}
    assert run(tiny("stream", out), folder / "said", quick.signalled(signal.SIGINT, at=2))[0] == 130
    good = (out / "ckpt.pt").rename(out / "good.pt")
    resume = train.parse(["--resume", "--out", str(out)])
    for kind in ("cut", "flipped"):
        for _ in tqdm(range(count), desc=kind):
            quick.spoil_randomly(good, kind, luck).rename(out / "ckpt.pt")
            for read in (lambda: load(out / "ckpt.pt"), lambda: train.pick_up(resume)):
                try:
                    read()
                except ValueError as e:
                    assert "\n" not in str(e)
                    reason = next(r for r in ("its checksum differs", "lost its end, with the checksum", "can't be read") if r in str(e))
                    reasons[kind, reason] = reasons.get((kind, reason), 0) + 1
                else:
                    raise AssertionError(f"{out / 'ckpt.pt'} was loaded, {kind}")
    return ", ".join(f"{kind}: {n} x '{reason}'" for (kind, reason), n in sorted(reasons.items()))


def skipped(folder: Path, count: int, luck: random.Random) -> str:
    """Losses and gradients that are no numbers at random steps, never 10 in a row."""
    bad = [i for i in range(count) if luck.random() < 0.3 and i % 9]
    code, said = run(tiny("stream", folder / "out", "--steps", str(count), "--eval_every", str(count)), folder / "said",
                     quick.spoiling(loss_at=bad[::2], grad_at=bad[1::2]))
    saved, lines = left(folder / "out")
    assert code == 0 and is_complete(lines, count) and saved["state"]["skipped"] == len(bad)
    assert all(v.isfinite().all() for v in saved["model"].values())
    return f"{len(bad)} of {count} steps spoilt: {saved['state']['skipped']} skipped and counted, all weights finite"


def words_of(luck: random.Random, n: int) -> str:
    """Random unicode: any code points, surrogates and NUL among them, or pieces that a tokenizer may stumble over."""
    odd = ["\0", "\ud800", "\udfff", "\ufeff", "👩‍👩‍👧", "e\u0301", " " * 99, "\n\r\t", "<think3>", "<|endoftext|>", "'ll", "1234", "naïve"]
    return "".join(luck.choice([chr(luck.randrange(0x110000)), chr(luck.randrange(128)), luck.choice(odd)])
                   for _ in range(luck.randrange(n)))


def strings(folder: Path, count: int, luck: random.Random) -> str:
    """Random strings and random ids through the tokenizer."""
    tok, cups = tokenizer.Tokenizer(think_vocab=7), data.Cups(3)
    small, refused = tokenizer.Tokenizer(cups.text_ids, 7), 0
    for _ in tqdm(range(count), desc="strings"):
        text = words_of(luck, 60)
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # lone surrogates are no characters
        assert tok.decode(tok.encode(text)) == clean, repr(text)
        try:
            small.encode(text)
        except ValueError as e:
            refused += 1
            assert "\n" not in str(e)
        for t in (tok, small):
            ids = [luck.randrange(t.V + t.N) for _ in range(luck.randrange(40))]
            shown = t.show(ids, luck.randrange(9), "html")
            assert isinstance(t.decode(ids), str) and shown.count("<") == 2 * shown.count("<span") and "<script" not in shown
            with contextlib.suppress(ValueError):
                t.decode([luck.choice([-1, t.V + t.N, 10 ** 12])])
                raise AssertionError("an id outside was decoded")
    return f"{count} strings came back exactly, {2 * count} lists of ids were shown; the small language refused {refused}"


def command(luck: random.Random, program: str) -> list[str]:
    """A random command line: flags that exist and some that do not, values that fit and some that do not."""
    flags = {"train": [*vars(train.parse([])), "no_such"], "sample": ["prompt", "new_tokens", "temperature", "top_k", "samples", "seed",
             "color", "hide_thoughts", "replace", "no_such"]}[program]
    flags = [f for f in flags if f not in ("error", "out")]
    values = ["0", "1", "2", "3", "16", "-1", "17", "0.5", "1e-3", "-0.1", "nan", "inf", "1e400", "9" * 30, "9" * 5000, "", " ", "on", "off",
              "cups", "teacher", "stream", "next_token", "tokens", "none", "filler", "continuous", "free", "forced", "shared", "loo",
              "scratch", "pico", "cpu", "cuda", "mps", "auto", "/dev/null", "/", "no/such.txt", "3=5", "99=1", "The ball", "\0", "\ud800"]
    line = [] if program == "sample" else luck.choice([[], ["--approach", luck.choice(APPROACHES)]])
    for _ in range(luck.choice([0, 1, 1, 2, 2, 3, 4])):
        flag = "--" + luck.choice(flags)
        line += luck.choice([[flag, luck.choice(values)], [f"{flag}={luck.choice(values)}"], [flag], [flag[:-1], "1"]])
    return line


def commands(folder: Path, count: int, luck: random.Random) -> str:
    """Random command lines, in process: train.py as far as its settings, sample.py to its end on a tiny checkpoint."""
    cups, codes = data.Cups(3), {}
    save(folder / "x.pt", as_checkpoint(GPT(Config(1, 2, 16, 128, 19, 16), cups.text_ids)))
    os.chdir(folder)  # some of them name a page or a folder

    def attempt(program: str, argv: list[str]) -> int:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                if program == "train":
                    args = train.parse(argv)
                    train.pick_up(args) if args.resume else train.resolve(args)
                else:
                    sys.argv = ["sample.py", "--checkpoint", str(folder / "x.pt"), *argv]
                    sample.main()
                return 0
            except SystemExit as e:
                assert e.code in (0, 2) and ("--help" in argv or err.getvalue().count("\n") == (e.code == 2)), (argv, err.getvalue())
                return e.code
            except (ValueError, OSError) as e:  # what train.main shows as one line
                assert program == "train" and "\n" not in str(e)
                return 2
    for i in tqdm(range(count), desc="commands"):
        program = ("train", "sample")[i % 2]
        argv = command(luck, program)
        try:
            code = attempt(program, argv)
        except BaseException:
            print(program, argv)
            raise
        codes[program, code] = codes.get((program, code), 0) + 1
    return f"{count} in process: " + ", ".join(f"{p} {c}: {n}" for (p, c), n in sorted(codes.items()))


def real_commands(folder: Path, count: int, luck: random.Random) -> str:
    """The same as a person types them. (What runs is cut short: a test of arguments needs no learning.)"""
    codes = {}
    assert run(tiny("stream", folder / "out"), folder / "said")[0] == 0
    for i in tqdm(range(count), desc="real commands"):
        program = ("train", "sample")[i % 2]
        argv = [x for x in command(luck, program) if "\0" not in x]
        argv += ["--out", folder / "new", "--steps=1", "--prompts=1", "--new_tokens=8"] if program == "train" and "--resume" not in argv else []
        argv += ["--checkpoint", folder / "out" / "ckpt.pt"] if program == "sample" else []
        argv = [os.fsencode(x) if isinstance(x, Path) else x.encode("utf-8", "surrogateescape") for x in argv
                if isinstance(x, Path) or x != "\ud800"]
        done = subprocess.run([sys.executable, ROOT / f"{program}.py", *argv], capture_output=True, cwd=folder, timeout=300)
        assert done.returncode in (0, 1, 2) and b"Traceback" not in done.stderr, (argv, done.stderr.decode())
        assert done.returncode != 2 or done.stderr.strip().count(b"\n") == 0, (argv, done.stderr.decode())
        codes[program, done.returncode] = codes.get((program, done.returncode), 0) + 1
    return f"{count} as real commands: " + ", ".join(f"{p} {c}: {n}" for (p, c), n in sorted(codes.items()))
