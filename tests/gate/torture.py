"""What test_nothing_lost.py does a few times, in bulk: minutes, not seconds. Prints its figures;
any failure ends it.

    python tests/gate/torture.py                            # everything, 8 minutes on two cores
    python tests/gate/torture.py --only kills --count 50    # that many kills of each approach
    python tests/gate/torture.py --only files --count 100   # the longest line in MB

Linux alone (forks, /proc, resource limits).

Left out on purpose: GPUs, power cuts, files changed by others while a run goes on.
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
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import data  # noqa: E402
import run as running  # noqa: E402
import sample  # noqa: E402
import test_nothing_lost as quick  # noqa: E402
import tokenizer  # noqa: E402
import train  # noqa: E402
from model import GPT, Config, as_checkpoint, load  # noqa: E402
from settings import FLAGS, parser, resolve  # noqa: E402
from task import open_source  # noqa: E402
from test_nothing_lost import (APPROACHES, child, ended, is_complete, left, limited,  # noqa: E402
                               run, same, small_world, tiny)
from weights import save  # noqa: E402


def undisturbed(approach: str, folder: Path) -> tuple[tuple, float]:
    """-> what a run leaves that nothing disturbs, and its seconds."""
    t0 = time.time()
    code, said = run(tiny(approach, folder / "whole"))
    assert code == 0, said
    return left(folder / "whole"), time.time() - t0


def random_place(numbers: random.Random):
    """A moment to die that a clock would hardly ever find: in a checkpoint, a rename, a line."""
    at = numbers.randrange(4)
    after = numbers.random() < 0.5
    in_save, rename = quick.dies_in_save(at, numbers.random()), numbers.randrange(6)
    return numbers.choice([in_save, in_save, quick.dies_in_line(at * 2),
                           quick.dies_in(os, "replace", rename, after),
                           quick.dies_in(os, "fsync", at, after)])


def kills(folder: Path, count: int, numbers: random.Random) -> str:
    """`kill -9`, half of them at a random time and half in the middle of a write; then --resume,
    which may be killed too."""
    figures = []
    for approach in APPROACHES:
        wanted, seconds = undisturbed(approach, folder)
        killed, in_write, resumed, compared, fresh = 0, 0, 0, 0, True
        bar = tqdm(total=count, desc=f"kills, {approach}")
        while killed < count or not fresh:
            out = folder / f"{approach}{compared}"
            there = (out / "ckpt.pt").exists()
            argv = ["--resume", "--out", out] if there else tiny(approach, out)
            resumed += there
            by_clock, spare = numbers.random() < 0.5, killed >= count
            said = open(folder / "said", "w+")
            before = small_world if by_clock or spare else random_place(numbers)
            pid = child(argv, said.fileno(), before)
            if by_clock and not spare:
                time.sleep(numbers.uniform(0, 1.2 * seconds))
                # (a child that has ended waits for `ended`: the id is still its own)
                os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            assert code in (0, -signal.SIGKILL), (folder / "said").read_text()
            said.close()
            if fresh := code == 0:
                got = left(out)
                assert same(got, wanted) and is_complete(got[1]), f"{out} differs"
                compared += 1
            else:
                killed += 1
                bar.update()
                in_write += (out / "ckpt.pt.part").exists()
                if (out / "ckpt.pt").exists():
                    load(out / "ckpt.pt")  # whole, whatever happened
        bar.close()
        figures.append(f"{approach}: {killed} kills, {in_write} of them inside a checkpoint, "
                       f"{resumed} resumes, {compared} finished runs equal to the undisturbed one")
    return "; ".join(figures)


def signals(folder: Path, count: int, numbers: random.Random) -> str:
    """Ctrl-C and SIGTERM at random moments once there is a checkpoint, then --resume to the end."""
    codes, equal = {}, 0
    whole = [(approach, *undisturbed(approach, folder / approach)) for approach in APPROACHES]
    for i in tqdm(range(count), desc="signals"):
        approach, wanted, seconds = whole[i % 3]
        out, number = folder / str(i), numbers.choice([signal.SIGINT, signal.SIGTERM])
        said = open(folder / "said", "w+")
        pid = child(tiny(approach, out), said.fileno())
        while not (out / "metrics.jsonl").exists():
            time.sleep(0.001)
        time.sleep(numbers.uniform(0, 0.4 * seconds))
        os.kill(pid, number)
        code = ended(pid)
        codes[code] = codes.get(code, 0) + 1
        assert code in (0, 128 + number), (folder / "said").read_text()
        said.close()
        if code:
            assert "stopped after step" in (folder / "said").read_text()
            assert run(["--resume", "--out", out])[0] == 0
        equal += same(left(out), wanted)
    assert equal == count
    return f"exit codes {codes}; {equal} of {count} equal to the undisturbed run once resumed"


def as_nobody(folder: Path):
    """A folder that may be read and not written to. Root may write anywhere, so root becomes
    nobody."""
    def before():
        small_world()
        if os.getuid() == 0:
            os.setgid(65534), os.setuid(65534)
    for path in [folder, *folder.glob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return before


def disk(folder: Path, count: int, numbers: random.Random) -> str:
    """Files that may not grow, a small file system that is full, a folder that is read-only or
    gone."""
    out = folder / "out"
    folder.chmod(0o755)
    assert run(tiny("stream", out), quick.signalled(signal.SIGINT, at=2))[0] == 130
    before, figures = (out / "ckpt.pt").read_bytes(), []

    def breaks(argv: list, fault, ckpt: Path) -> None:
        code, text = run(argv, fault)
        assert code == 1 and "Traceback" not in text and ckpt.read_bytes() == before, text
        assert text.splitlines()[-1].startswith("train.py: "), text
    for _ in tqdm(range(count), desc="disk"):
        size = numbers.randint(600, len(before) + 70)
        breaks(["--resume", "--out", out], limited(size), out / "ckpt.pt")
    figures.append(f"{count} sizes at which files may not grow on")
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={2 * len(before)}", "tmpfs", small]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            shutil.copytree(out, small / "out")
            with contextlib.suppress(OSError):
                (small / "fill").write_bytes(b"x" * len(before))
            breaks(["--resume", "--out", small / "out"], small_world, small / "out" / "ckpt.pt")
            figures.append("a full tmpfs")
        finally:
            subprocess.run(["umount", small], check=True)
    else:
        figures.append("no tmpfs (mount needs root)")
    breaks(["--resume", "--out", out], as_nobody(out), out / "ckpt.pt")
    code, text = run(tiny("stream", folder / "other"), quick.gone)
    assert code == 1 and "Traceback" not in text, text
    assert text.splitlines()[-1].startswith("train.py: "), text
    return (f"exit code 1, one line and the old checkpoint whole: {', '.join(figures)}, read-only; "
            "gone: exit code 1, one line")


def checkpoints(folder: Path, count: int, numbers: random.Random) -> str:
    """A real checkpoint, cut and flipped at random, for sample.py (`load`) and for --resume."""
    out, reasons = folder / "out", {}
    words = ("its checksum differs", "lost its end, with the checksum", "can't be read")
    assert run(tiny("stream", out), quick.signalled(signal.SIGINT, at=2))[0] == 130
    good = (out / "ckpt.pt").rename(out / "good.pt")
    for kind in ("cut", "flipped"):
        for _ in tqdm(range(count), desc=kind):
            quick.spoil_randomly(good, kind, numbers).rename(out / "ckpt.pt")
            for read in (lambda: load(out / "ckpt.pt"),
                         lambda: train.resume({"resume": True, "out": str(out)})):
                try:
                    read()
                except ValueError as e:
                    assert "\n" not in str(e)
                    reason = next(r for r in words if r in str(e))
                    reasons[kind, reason] = reasons.get((kind, reason), 0) + 1
                else:
                    raise AssertionError(f"{out / 'ckpt.pt'} was loaded, {kind}")
    return ", ".join(f"{kind}: {n} x '{reason}'" for (kind, reason), n in sorted(reasons.items()))


def skipped(folder: Path, count: int, numbers: random.Random) -> str:
    """Losses and gradients that are no numbers at random steps, never 10 in a row."""
    bad = [i for i in range(count) if numbers.random() < 0.3 and i % 9]
    argv = tiny("stream", folder / "out", "--steps", str(count), "--eval_every", str(count))
    code, said = run(argv, quick.spoiling(loss_at=bad[::2], grad_at=bad[1::2]))
    saved, lines = left(folder / "out")
    found = saved["progress"]["skipped"]
    assert code == 0 and is_complete(lines, count) and found == len(bad)
    assert all(v.isfinite().all() for v in saved["model"].values())
    return f"{len(bad)} of {count} steps spoilt: {found} skipped and counted, all weights finite"


def words_of(numbers: random.Random, n: int) -> str:
    """Random unicode: any code points, surrogates and NUL among them, or pieces that a tokenizer
    may stumble over."""
    odd = ["\0", "\ud800", "\udfff", "\ufeff", "👩‍👩‍👧", "e\u0301", " " * 99, "\n\r\t", "<think3>",
           "<|endoftext|>", "'ll", "1234", "naïve"]
    any_of = [lambda: chr(numbers.randrange(0x110000)), lambda: chr(numbers.randrange(128)),
              lambda: numbers.choice(odd)]
    return "".join(numbers.choice(any_of)() for _ in range(numbers.randrange(n)))


def as_characters(text: str) -> str:
    """Lone surrogates are no characters, and become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def strings(folder: Path, count: int, numbers: random.Random) -> str:
    """Random strings and random ids through the tokenizer."""
    tok, cups = tokenizer.Tokenizer(think_vocab=7), data.Cups(3)
    small, refused = tokenizer.Tokenizer(cups.text_ids, 7), 0
    for _ in tqdm(range(count), desc="strings"):
        text = words_of(numbers, 60)
        assert tok.decode(tok.encode(text)) == as_characters(text), repr(text)
        try:
            small.encode(text)
        except ValueError as e:
            refused += 1
            assert "\n" not in str(e)
        for t in (tok, small):
            ids = [numbers.randrange(t.V + t.N) for _ in range(numbers.randrange(40))]
            shown = t.show(ids, numbers.randrange(9), "html")
            assert isinstance(t.decode(ids), str) and "<script" not in shown
            assert shown.count("<") == 2 * shown.count("<span")
            with contextlib.suppress(ValueError):
                t.decode([numbers.choice([-1, t.V + t.N, 10 ** 12])])
                raise AssertionError("an id outside was decoded")
    return (f"{count} strings came back exactly, {2 * count} lists of ids were shown; the small "
            f"language refused {refused}")


SAMPLE = ("prompt new_tokens temperature top_k samples seed color hide_thoughts replace").split()
VALUES = ("0 1 2 3 16 -1 17 0.5 1e-3 -0.1 nan inf 1e400 on off cups teacher stream next_token "
          "tokens none filler continuous free forced kl sampled loo scratch scratch:1x8 scratch:9 "
          "pico cpu cuda mps auto /dev/null / no/such.txt 3=5 99=1").split()
VALUES += ["9" * 30, "9" * 5000, "", " ", "The ball", "\0", "\ud800", "cups m=4", "cups m=9",
           "cups idle=nan", "cups =", "cups swaps=1e3"]


def command(numbers: random.Random, program: str) -> list[str]:
    """A random command line: flags that exist and some that do not, values that fit and some that
    do not."""
    flags = [*FLAGS, "resume", "no_such"] if program == "train" else [*SAMPLE, "no_such"]
    flags = [f for f in flags if f != "out"]
    line = []
    if program == "train":
        line = numbers.choice([[], ["--approach", numbers.choice(APPROACHES)]])
    for _ in range(numbers.choice([0, 1, 1, 2, 2, 3, 4])):
        flag, value = "--" + numbers.choice(flags), numbers.choice(VALUES)
        line += numbers.choice([[flag, value], [f"{flag}={value}"], [flag], [flag[:-1], "1"]])
    return line


def attempt(program: str, argv: list[str], ckpt: Path) -> int:
    """A command line in process: train.py as far as its settings, sample.py to its end -> exit
    code."""
    with contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            if program == "train":
                typed = vars(parser().parse_args(argv))
                train.resume(typed) if typed.get("resume") else resolve(typed)
            else:
                sys.argv = ["sample.py", "--checkpoint", str(ckpt), *argv]
                sample.main()
            return 0
        except SystemExit as e:
            assert e.code in (0, 2), (argv, e.code)
            assert err.getvalue().count("\n") == (e.code == 2), (argv, err.getvalue())
            return e.code
        except (ValueError, OSError) as e:  # what train.main shows as one line
            assert program == "train" and "\n" not in str(e)
            return 2


def commands(folder: Path, count: int, numbers: random.Random) -> str:
    """Random command lines, in process, on a tiny checkpoint."""
    cups, codes = data.Cups(3), {}
    thinks = GPT(Config(1, 2, 16, 128, 19, 16), cups.text_ids)
    save(folder / "x.pt", as_checkpoint(thinks))
    os.chdir(folder)  # some of them name a page or a folder
    for i in tqdm(range(count), desc="commands"):
        program = ("train", "sample")[i % 2]
        argv = command(numbers, program)
        try:
            code = attempt(program, argv, folder / "x.pt")
        except BaseException:
            print(program, argv)
            raise
        codes[program, code] = codes.get((program, code), 0) + 1
    figures = ", ".join(f"{p} {c}: {n}" for (p, c), n in sorted(codes.items()))
    return f"{count} in process: {figures}"


def real_commands(folder: Path, count: int, numbers: random.Random) -> str:
    """The same as a person types them. (What runs is cut short: a test of arguments needs no
    learning.)"""
    codes = {}
    assert run(tiny("stream", folder / "out"))[0] == 0
    for i in tqdm(range(count), desc="real commands"):
        program = ("train", "sample")[i % 2]
        argv = [x for x in command(numbers, program) if "\0" not in x]
        if program == "sample":
            argv += ["--checkpoint", folder / "out" / "ckpt.pt"]
        elif "--resume" not in argv:
            argv += ["--out", folder / "new", "--steps=1", "--prompts=1", "--new_tokens=8"]
        argv = [os.fsencode(x) if isinstance(x, Path) else x.encode("utf-8", "surrogateescape")
                for x in argv if isinstance(x, Path) or x != "\ud800"]
        done = subprocess.run([sys.executable, ROOT / f"{program}.py", *argv], capture_output=True,
                              cwd=folder, timeout=300)
        said = done.stderr.decode()
        assert done.returncode in (0, 1, 2) and "Traceback" not in said, (argv, said)
        assert done.returncode != 2 or said.strip().count("\n") == 0, (argv, said)
        codes[program, done.returncode] = codes.get((program, done.returncode), 0) + 1
    figures = ", ".join(f"{p} {c}: {n}" for (p, c), n in sorted(codes.items()))
    return f"{count} as real commands: {figures}"


def comes_back(folder: Path, name: str, content: bytes, text: bytes) -> str:
    """A file, read as training reads it, is that text, to the byte. -> what was said about it."""
    (folder / name).write_bytes(content)
    tok = tokenizer.Tokenizer()
    pieces = [tok.bytes_of(i) for i in range(tok.V)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        source = data.TextFile(folder / name, tok)
    at = 0
    for part in (source.train, source.eval):
        for i in range(0, len(part), 1 << 20):
            block = b"".join(pieces[j] for j in part[i:i + (1 << 20)].tolist())
            assert block == text[at:at + len(block)], f"{name} differs near byte {at}"
            at += len(block)
    assert at == len(text), f"{name}: {len(text) - at} bytes are missing"
    (folder / name).unlink()
    return said.getvalue()


def files(folder: Path, count: int, numbers: random.Random) -> str:
    """Files that are no clean text: noise, invalid UTF-8, broken lines, one of `count` MB."""
    data.CACHE = folder / "cache"
    for _ in range(20):  # noise is refused; one bad byte in good text is, and where it is
        noise = numbers.randbytes(numbers.randrange(100, 3 << 20))
        good = ("some words 日本語\n" * numbers.randrange(9, 99_999)).encode()
        at = good.index(b"\n", numbers.randrange(len(good))) + 1
        for text, words in ((noise, "noise"), (good[:at] + b"\xff" + good[at:], f"byte {at},")):
            (folder / "noise.txt").write_bytes(text)
            try:
                open_source(str(folder / "noise.txt"))
            except ValueError as e:
                assert words in str(e) and "\n" not in str(e), e
            else:
                raise AssertionError("noise was read as text")
    broken = [b"{", b"[" * 99999, b'{"text": ', b"\xff\xfe", b'{"title": "x"}', b"null", b"7",
              b'"text"', b'{"text": null}', b'{"text": [1]}', b'{"text": 1e', b"\0\0"]
    lines, text, n = [], b"", 0
    for _ in range(2000):
        if numbers.random() < 0.3:
            lines, n = lines + [numbers.choice(broken)], n + 1
        else:
            good = words_of(numbers, 30)
            lines.append(json.dumps({"text": good}).encode())
            text += as_characters(good).encode() + b"<|endoftext|>"
    said = comes_back(folder, "docs.jsonl", b"\n".join(lines), text)
    assert f"skipped {n} broken line" in said and said.count("\n") == 1
    size, t0 = count << 20, time.time()
    kinds = [kind.encode() for kind in ("a", "日本語", " ", "some words, and more ")]
    long = b"".join(kind * (size // 4 // len(kind)) for kind in kinds)
    comes_back(folder, "long.txt", long, long)
    words = ("All in one line, " * (size // 17)).encode()
    comes_back(folder, "long.jsonl", b'{"text": "' + words + b'"}', words + b"<|endoftext|>")
    status = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(x for x in status if x.startswith("VmHWM")).split()[1]) >> 10
    return (f"20 files of noise refused, 20 bad bytes found, {n} of 2000 jsonl lines broken "
            f"(skipped, counted), one line of {len(long) >> 20} MB as .txt and of "
            f"{len(words) >> 20} MB as .jsonl: all came back to the byte; "
            f"the long lines took {time.time() - t0:.0f} s, peak memory {peak} MB")


def seeds(folder: Path, count: int, numbers: random.Random) -> str:
    """The same seed twice, and other ones."""
    for approach in tqdm(APPROACHES, desc="seeds"):
        seen = []
        for seed in [0, *range(count)]:
            out = folder / f"{approach}{len(seen)}"
            assert run(tiny(approach, out, "--seed", str(seed)))[0] == 0
            saved, lines = left(out)
            seen.append((saved["model"], lines))
        assert same(seen[0], seen[1])
        pairs = [(a, b) for i, a in enumerate(seen[1:]) for b in seen[i + 2:]]
        assert not any(torch.equal(a[0]["wte.weight"], b[0]["wte.weight"]) or a[1] == b[1]
                       for a, b in pairs)
    return (f"seed 0 twice: equal weights and metrics, in each approach; {count} seeds: all "
            "different, pair by pair")


def memory(folder: Path, count: int, numbers: random.Random) -> str:
    """Resident memory over `count` steps of each approach: the least of the second, the sixth and
    the last tenth of them. (One step more or less depends on what the allocator keeps.)"""
    figures = []
    for approach in APPROACHES:
        marks = folder / f"{approach}.rss"

        def before():
            small_world()
            real = running.Log.write

            def write(self, kind, step, values):
                real(self, kind, step, values)
                if kind == "step":
                    pages = int(Path("/proc/self/statm").read_text().split()[1])
                    with open(marks, "a") as f:
                        f.write(f"{pages * os.sysconf('SC_PAGESIZE') / 2 ** 20}\n")
            running.Log.write = write
        argv = ["--steps", str(count), "--eval_every", str(count // 4)]
        code, said = run(tiny(approach, folder / approach, *argv), before)
        assert code == 0, said
        used, tenth = [float(x) for x in marks.read_text().split()], count // 10
        early, middle, late = (min(used[i * tenth:(i + 1) * tenth]) for i in (1, 5, 9))
        more = 100 * (late / early - 1)
        figures.append(f"{approach} {early:.1f}, {middle:.1f}, {late:.1f} MB ({more:+.2f} %)")
        assert late < 1.02 * early, figures[-1]
    return f"least of the second, sixth and last tenth of {count} steps: " + "; ".join(figures)


def outside(folder: Path, count: int, numbers: random.Random) -> str:
    """All that a real command writes, by the system's own account (strace)."""
    if not shutil.which("strace"):
        return "not run: there is no strace"
    home, out, log = folder / "home", folder / "out", folder / "strace"
    home.mkdir()
    calls = ("trace=openat,open,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,"
             "symlink,symlinkat,link,linkat,truncate")
    lines = [[ROOT / "train.py", *tiny("stream", out)],
             [ROOT / "train.py", "--resume", "--steps", "8", "--out", out],
             [ROOT / "sample.py", "--checkpoint", out / "ckpt.pt"]]
    env = os.environ | {"HOME": str(home), "TMPDIR": str(home)}
    for argv in tqdm(lines, desc="outside"):
        subprocess.run(["strace", "-f", "-A", "-y", "-e", calls, "-o", log, sys.executable, "-B",
                        *argv], check=True, capture_output=True, cwd=folder, env=env)
    written = set()
    for line in log.read_text(errors="replace").splitlines():
        changes = "open" not in line or "O_WRONLY" in line or "O_RDWR" in line or "O_CREAT" in line
        if changes and '"' in line and not line.rstrip().endswith(")") and " = -1 " not in line:
            written |= {Path(folder, name) for name in line.split('"')[1::2]}
    foreign = [str(p) for p in written
               if not any(p.is_relative_to(x) for x in (out, home, "/dev"))]
    assert not foreign, foreign
    inside = [sum(p.is_relative_to(where) for p in written) for where in (out, home)]
    return f"{inside[0]} paths in --out, {inside[1]} in HOME (matplotlib's cache), none elsewhere"


TESTS = {kills: 50, signals: 30, disk: 30, checkpoints: 200, skipped: 100, strings: 10_000,
         commands: 500, real_commands: 30, files: 100, seeds: 3, memory: 2000, outside: 1}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--only", choices=[f.__name__ for f in TESTS], help="one of them")
    defaults = ", ".join(f"{f.__name__} {n}" for f, n in TESTS.items())
    p.add_argument("--count", type=int,
                   help=f"how often (files: MB of the longest line); default: {defaults}")
    p.add_argument("--seed", type=int, default=0, help="of the random moments and inputs")
    args = p.parse_args()
    torch.set_num_threads(1)
    for test, count in TESTS.items():
        if args.only in (None, test.__name__):
            with tempfile.TemporaryDirectory() as folder:
                t0 = time.time()
                figures = test(Path(folder), args.count or count, random.Random(args.seed))
                os.chdir(ROOT)
                print(f"{test.__name__} ({time.time() - t0:.0f} s): {figures}", flush=True)


if __name__ == "__main__":
    main()
