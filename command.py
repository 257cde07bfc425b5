"""How every command begins, speaks and ends: no traceback, nothing lost, one line that helps.

    if __name__ == "__main__":
        import command
        command.begin()        # before torch is loaded, which takes seconds
    ...
    if __name__ == "__main__":
        command.run(main)

Exit codes: 0 done; 1 it broke off, what was saved is whole; 2 refused before it began; 130, 143
stopped by Ctrl-C or SIGTERM; 141 its reader had gone.

Left out on purpose: logs, colours (tokenizer.py). Knows no other file, and loads no library.
"""
import os
import signal
import sys

# at once where this is one of our commands, as even what follows takes a tenth of a second: Ctrl-C
# is quiet while libraries are loaded. There is nothing to save yet. For a script's `&` the shell
# has it ignored, and that stays. (argv is "-m" alone while Python looks for a module of lab)
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN and (
        sys.argv[:1] == ["-m"] or os.path.abspath(
            getattr(sys.modules["__main__"], "__file__", None) or os.devnull) in [
        os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
        for name in ("train", "sample", "tokenizer", "reward")]):
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import atexit
import contextlib
import difflib
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent
SHORT = ("allocate", "out of memory", "bad_alloc", "not enough memory", "start new thread")


class Parser(argparse.ArgumentParser):
    """One clear line and exit code 2, with the nearest flag's name."""

    def error(self, message: str):
        if message.startswith("unrecognized arguments"):
            flags = [f for action in self._actions for f in action.option_strings]
            word = (message.partition(":")[2].split() or [""])[0]  # it may be empty
            near = difflib.get_close_matches(word.split("=")[0], flags, 1)
            hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists them"
            message += f" ({hint})"
        self.exit(2, f"{self.prog}: {one_line(message)}\n")


def one_line(message: str) -> str:
    """The same on one line. Control characters are spelt out: they could move the cursor."""
    # (spaces within a line stay, as they may belong to a path)
    lines = " ".join(x.strip() for x in message.split("\n") if x.strip())
    return "".join(c if c.isprintable() or 0xd800 <= ord(c) < 0xe000 else repr(c)[1:-1]
                   for c in lines)


def first_line(doc: str | None) -> str:
    """Of a docstring, which python -OO leaves out."""
    return (doc or "").partition("\n")[0]


def place(text: str) -> str:
    """A path that was typed, for argparse. `--out=~/x` reaches us as it is, and `~` is home."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path (is a variable unset?)")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise argparse.ArgumentTypeError(f"{text}: that home is not known (./{text} is a name)")
    return path


def path(text: str) -> Path:
    return Path(place(text))


def make_folder(folder: Path) -> None:
    """Raises ValueError where there can't be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"{folder} can't be made a folder ({e.strerror}): choose another name"
                         ) from e


def check_page(out: Path) -> None:
    """Raises ValueError for a page that would be written over something else, as a checkpoint."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out}: a page's name ends in .html")


def check_rows(out: Path, read: Path | None = None) -> None:
    """Raises ValueError for a .jsonl file that would be written over something else. The first line
    of one that is there has to hold an answer, as ours do. read: what this command reads."""
    if out.suffix.lower() != ".jsonl":
        raise ValueError(f"OUT {out}: the name of a file of rows ends in .jsonl")
    if out.is_dir():
        raise ValueError(f"OUT {out} is a folder: a file is wanted")
    if read is not None and os.path.realpath(read) == os.path.realpath(out):
        raise ValueError(f"OUT {out} is what this command reads: choose another name")
    if out.exists() and out.stat().st_size:
        with open(out, "rb") as f, contextlib.suppress(ValueError, RecursionError):
            row = json.loads(f.readline())
            if isinstance(row, dict) and row.keys() & {"answer", "output"}:
                return
        raise ValueError(f"OUT {out} holds something else: choose another name")


def as_json(value, **form) -> str:
    """JSON that every reader takes: it has no NaN and no infinity, so these become null."""
    def plain(x):
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x
    return json.dumps(plain(value), allow_nan=False, **form)


def write_whole(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file in one step: until then the old one stays as it was. content: its bytes, or what
    writes them. Raises OSError.

    Of a link the target is written, as somebody chose that disk for it.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(target.name + ".part")
    try:
        with open(part, "w+b") as f:
            f.write(content) if isinstance(content, bytes) else content(f)
            f.flush()
            os.fsync(f.fileno())  # on the disk before the name points at it
        os.replace(part, target)  # in one step: there is never half a file at `path`
    except OSError as e:  # (of a limit on a file's size the system does not say which)
        if e.errno is None or e.filename:
            raise
        raise OSError(e.errno, e.strerror, str(part)) from e
    except RuntimeError as e:  # torch's word for a write that failed, without the reason
        if is_short_of_memory(e):
            raise
        raise OSError(f"{part} can't be written whole: the disk is full, or files may not grow "
                      "so large") from e
    finally:
        part.unlink(missing_ok=True)


def typed(path: str | Path) -> str:
    """A path as a shell takes it, in a command that is printed for people to copy."""
    text = str(path)
    text = f"./{text}" if text.startswith(("-", "~")) else text  # no flag, and no home
    try:
        text.encode(sys.stdout.encoding or "utf-8")
        if text.isprintable():
            return shlex.quote(text)
    except UnicodeEncodeError:
        pass
    plain = "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}"
                    for b in os.fsencode(text))
    return f"$'{plain}'"


def script(name: str) -> str:
    """One of our files, as it is called from here."""
    return name if Path.cwd() == ROOT else typed(ROOT / name)


def pyplot():
    """matplotlib without a screen."""
    # it dies of an MPLBACKEND that it can't load, as notebooks set for their commands
    with environ("MPLBACKEND", "Agg"):
        import matplotlib  # a second of start-up
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    return plt


@contextlib.contextmanager
def environ(name: str, value: str):
    """A variable has this value for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def is_short_of_memory(e: BaseException) -> bool:
    return isinstance(e, MemoryError) or (
        isinstance(e, RuntimeError) and any(x in str(e) for x in SHORT))


class Steady:
    """stdout or stderr, whose reader may go away or whose disk may be full.

    Where `goes_on`, what can't be written is dropped, as the work is in files. Else the command
    ends, since what it says is its work.
    """

    def __init__(self, stream, goes_on: bool):
        self.stream, self.goes_on = stream, goes_on

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except OSError as e:
            self.lose(e)
        return len(text)

    def flush(self) -> None:
        if self.stream.closed:
            return
        try:
            self.stream.flush()
        except OSError as e:
            self.lose(e)

    def lose(self, e: OSError) -> None:
        # Python writes what is left in the stream once more at exit
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)
        if isinstance(e, BrokenPipeError):
            if not self.goes_on:
                sys.exit(141)
        elif self.stream.fileno() != 2:
            what = "it goes on" if self.goes_on else "some of it is lost"
            print(f"{name()}: what it says can't be written ({e.strerror}): {what}",
                  file=sys.stderr)
            if not self.goes_on:
                sys.exit(1)


def name() -> str:
    """As a person calls it: train.py, or lab.probe."""
    file = Path(sys.argv[0])
    return f"lab.{file.stem}" if file.parent.name == "lab" else file.name


def begin() -> None:
    """Before anything else, so that a terminal of any kind will do."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for stream in ("stdout", "stderr"):
        it = getattr(sys, stream) or open(os.devnull, "w")
        if hasattr(it, "reconfigure"):  # "\xe9" on a terminal that has no such character
            it.reconfigure(errors="backslashreplace")
        setattr(sys, stream, Steady(it, goes_on=stream == "stderr"))
    atexit.register(sys.stdout.flush)


def run(main: Callable[[], None], goes_on: bool = False) -> None:
    """main(), and a quiet end whatever happens. goes_on: it works on after its reader has gone."""
    if isinstance(sys.stdout, Steady):
        sys.stdout.goes_on = goes_on
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
        sys.stdout.flush()
    except SystemExit:
        sys.stdout.flush()
        raise
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
        sys.exit(130)
    except (MemoryError, RuntimeError) as e:
        if not is_short_of_memory(e):
            raise
        sys.exit(f"{name()}: there is not enough memory for this: ask for less at once")
