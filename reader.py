"""A file of text, read as text, or refused with the byte at which it stops being text.

    with open("my.txt", "rb") as f:
        for text, size in documents(f, ".txt", Counter()): ...

UTF-8; also UTF-16 and UTF-32, where the first bytes say so. Text in another encoding would be
learned as rubbish, so it is refused, and so are archives. Of a .jsonl file the field `text` of each
line is read. Lines without one are skipped, and counted by what they are.

All cores encode a text at once. What they made is kept in a cache. It ends in its length and
checksum, so one that was cut off is made again.

Left out on purpose: guessing an encoding. Knows no other file.
"""
import codecs
import contextlib
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

BLOCK = 1 << 20
PIECE = 1 << 22  # characters encoded at once: the ids of a line of 100 MB are a list of 3 GB
SHARE = 1 << 16  # the fewest that a thread is woken for
MARKS = (  # the longer ones first, since UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"))
MAGIC = {  # first bytes of what people take for text
    b"\x1f\x8b": "gzip: unpack it with gunzip", b"\x1f\x9d": "compress: unpack it",
    b"PK\x03\x04": "zip: unpack it", b"BZh": "bzip2: unpack it with bunzip2",
    b"\xfd7zXZ": "xz: unpack it with unxz", b"\x28\xb5\x2f\xfd": "zstd: unpack it with unzstd",
    b"\x04\x22\x4d\x18": "lz4: unpack it", b"7z\xbc\xaf": "7z: unpack it",
    b"Rar!": "rar: unpack it",
    b"%PDF-": "PDF: save its text", b"{\\rtf": "RTF: save its text",
    b"\xd0\xcf\x11\xe0": "a document of Word: save its text",
    b"PAR1": "parquet: write it as .jsonl",
    b"SQLite format": "a database: write it as .jsonl", b"ARROW1": "arrow: write it as .jsonl",
    b"version https://git-lfs": "a pointer of git-lfs: `git lfs pull` fetches the file"}


def encoding_of(path: str | Path) -> str:
    """By its first bytes. Raises ValueError for what is no text."""
    with open(path, "rb") as f:
        start = f.read(64)
    for magic, what in MAGIC.items():
        if start.startswith(magic):
            raise ValueError(f"{path} is no text, but {what}")
    return next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")


def check_path(path: str | Path) -> None:
    """Raises ValueError for what is no text file, before anything is downloaded for it."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    if Path(path).suffix.lower() not in (".txt", ".jsonl"):
        raise ValueError(f"{path} is no .txt or .jsonl file: its name has to end so")
    encoding_of(path)


def documents(f: BinaryIO, kind: str, skipped: Counter) -> Iterator[tuple[str, int]]:
    """Pairs of a text and its size, roughly in bytes, for a bar. kind: .txt, blocks cut at a line's
    end; .jsonl, a document each. skipped: gets the number of other lines, by reason. Raises
    ValueError."""
    encoding = encoding_of(f.name)
    if kind == ".txt":
        yield from blocks(f, encoding)
        return
    # (json decodes UTF-8 line by line, so one bad line is skipped by itself)
    for line in f if encoding.startswith("utf-8") else lines(blocks(f, encoding)):
        text, why = field_text(line)
        if text is not None:
            yield text, len(line)
        elif line.strip():
            skipped[why] += 1


def lines(texts: Iterator[tuple[str, int]]) -> Iterator[str]:
    """The lines of blocks that are cut anywhere."""
    rest = ""
    for text, _ in texts:
        *whole, rest = (rest + text).split("\n")
        yield from whole
    yield rest


def blocks(f: BinaryIO, encoding: str) -> Iterator[tuple[str, int]]:
    """All of a file. Raises ValueError that says at which byte it is no text."""
    # a block may end within a character, which an incremental decoder keeps for the next
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    done = ends = 0  # bytes, and ends of lines in them
    while True:
        block = f.read(BLOCK) + f.readline(BLOCK)
        try:
            text = decoder.decode(block, final=not block)
            if "\0" in text:
                # (UTF-16 has zero bytes that are no zero)
                at = block.index(b"\0") if encoding.startswith("utf-8") else 0
                raise zero_byte(f.name, done + at)
            if "\x1b$" in text:  # its bytes are all ASCII
                raise ValueError(f"{f.name} is ISO-2022 after byte {done}: `iconv -f ISO-2022-JP "
                                 "-t UTF-8` (or -KR, or -CN) writes it as UTF-8")
        except UnicodeDecodeError as e:
            if encoding.startswith("utf-8") and b"\0" in block:
                raise zero_byte(f.name, done + block.index(b"\0")) from e
            at = done + len(block) - len(e.object) + e.start
            line = ends + e.object[:e.start].count(b"\n") + 1
            where = f", in line {line}" if encoding.startswith("utf-8") else ""
            kind = encoding.removesuffix("-sig").upper()
            raise ValueError(f"{f.name} is not {kind} at byte {at}{where}: if it is in "
                             "another encoding, `iconv -f NAME -t UTF-8` writes it as UTF-8"
                             ) from e
        if text or block:
            yield text, len(block)
        if not block:
            return
        done, ends = done + len(block), ends + block.count(b"\n")


def zero_byte(name: str, at: int) -> ValueError:
    return ValueError(f"{name} holds a zero byte at byte {at} or after it: it is no text, or "
                      "UTF-16 without its mark, which `iconv -f UTF-16LE -t UTF-8` writes as UTF-8")


def field_text(line: bytes | str) -> tuple[str | None, str]:
    """The field `text` of a line, or what it is instead."""
    try:
        # (by itself json would guess an encoding, line by line)
        found = json.loads(line if isinstance(line, str) else line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None, "are not UTF-8"
    except (ValueError, RecursionError):
        return None, "are no JSON"
    if not isinstance(found, dict):
        return None, "are no JSON object"
    if isinstance(found.get("text"), str):
        return found["text"], ""
    if "text" in found:
        return None, "have a `text` that is no string"
    names = ", ".join(sorted(str(k)[:30] for k in found)[:6])
    return None, f"have other fields ({names})" if names else "have no fields"


def told(skipped: Counter) -> str:
    """What was skipped, in words."""
    most = [f"{n} {why}" for why, n in skipped.most_common(3)]
    more = skipped.total() - sum(n for _, n in skipped.most_common(3))
    return ", ".join(most + ([f"{more} are others"] if more else []))


# Its ids

Share = tuple[list[tuple[str, list[int]]], int, int]


def encoded(texts: Iterable[tuple[str, int]], encode: Callable[[str], list[int]],
            end: list[int]) -> Iterator[tuple[bytes, int]]:
    """Pairs of ids as uint16 and of the size of their texts. All cores encode, and the ids are
    those of one text after another. end: ids that follow each text. Raises what encode raises."""
    def ids_of(share: list[tuple[str, list[int]]]) -> bytes:
        return b"".join(np.array(encode(text) + after, np.uint16).tobytes()
                        for text, after in share)

    # threads are enough, since tiktoken lets others run while it encodes
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting, held = deque(), 0  # held: characters that are on their way
        for share, characters, size in shares(texts, end):
            # four blocks of a .txt file, or one piece of a long line: more would be more memory
            while waiting and held + characters > PIECE + BLOCK:
                first, n, its_size = waiting.popleft()
                held -= n
                yield first.result(), its_size
            waiting.append((pool.submit(ids_of, share), characters, size))
            held += characters
        for first, _, its_size in waiting:
            yield first.result(), its_size


def shares(texts: Iterable[tuple[str, int]], end: list[int]) -> Iterator[Share]:
    """Short texts together, and long ones in pieces: (piece, ids after it), characters, size."""
    share, characters, size = [], 0, 0
    for text, its_size in texts:
        size += its_size
        starts = range(0, len(text) or 1, PIECE)
        for i in starts:
            piece = text[i:i + PIECE]
            share.append((piece, end if i == starts[-1] else []))
            characters += len(piece) + 1  # one more, so that empty texts are an end, too
            if characters >= SHARE:
                yield share, characters, size
                share, characters, size = [], 0, 0
    yield share, characters, size


# The cache

def cached_ids(path: Path, cached: Path, encode: Callable[[str], list[int]], end: list[int],
               joined: bool) -> tuple[np.ndarray, Counter]:  # -> uint16 [n], lines skipped
    """A file as ids on disk, made once: 1 GB of text needs a few MB of memory. end: ids that follow
    each document. joined: without line breaks. Raises ValueError, also for what is no text."""
    if (found := open_sealed(cached)) is None:
        make_cache(path, cached, encode, end, joined)
        found = open_sealed(cached)
    return found


def make_cache(path: Path, cached: Path, encode: Callable[[str], list[int]], end: list[int],
               joined: bool) -> None:
    """Whole or not at all. Raises ValueError."""
    kind, skipped = path.suffix.lower(), Counter()
    part = cached.with_suffix(f".{os.getpid()}.part")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "rb") as f, open(part, "w+b") as out, tqdm(
                total=path.stat().st_size, unit="B", unit_scale=True,
                desc=f"reading {path.name}", disable=None) as bar:
            texts = documents(f, kind, skipped)
            if joined:
                texts = (("".join(text.splitlines()), size) for text, size in texts)
            for ids, size in encoded(texts, encode, end):
                out.write(ids)
                bar.update(size)
            seal(out, skipped)
        os.replace(part, cached)
    except OSError as e:
        raise ValueError(f"{cached.parent} can't be written ({e.strerror}): name another folder "
                         "for text as ids, as in NANOTHINK_CACHE=~/cache") from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def seal(part: BinaryIO, skipped: Counter) -> None:
    """Ends a file of uint16 ids with what makes it whole: their number, their sha256, and what was
    skipped for them."""
    size = part.tell()
    part.seek(0)
    about = {"ids": size // 2, "sha256": hashlib.file_digest(part, "sha256").hexdigest(),
             "skipped": skipped}
    end = json.dumps(about).encode()
    part.seek(size)
    part.write(end + len(end).to_bytes(4, "little"))
    part.flush()
    os.fsync(part.fileno())  # on the disk before the name points at it


def open_sealed(path: Path) -> tuple[np.ndarray, Counter] | None:
    """The ids of a cache, and what was skipped; None: there is none, or it is not whole."""
    try:
        with open(path, "rb") as f:
            size = f.seek(-4, os.SEEK_END)
            length = int.from_bytes(f.read(4), "little")
            f.seek(size - length)
            about = json.loads(f.read(length))
            n, skipped = about["ids"], Counter(about["skipped"])
            f.seek(0)
            sha = hashlib.sha256()
            for at in range(0, 2 * n, BLOCK):
                sha.update(f.read(min(BLOCK, 2 * n - at)))
        if 2 * n != size - length or sha.hexdigest() != about["sha256"]:
            return None
        return np.memmap(path, np.uint16, "r", shape=(n,)) if n else np.empty(0, np.uint16), skipped
    except (OSError, ValueError, KeyError, TypeError):
        return None
