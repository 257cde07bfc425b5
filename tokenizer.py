"""Text <-> ids, and how ids are shown to a person.

GPT-2's byte-pair encoding comes from tiktoken, with the ranks in assets/gpt2.tiktoken: no network.
Ids 0..V-1 are text, ids V..V+N-1 are thinking tokens. A thought has a name, `<think17>`, and no
text.

    python tokenizer.py "some text"           # the pieces and their ids

Left out on purpose: a way to type a thought. encode() never makes one, not even from the letters
"<think17>". A model of a small language keeps `text_ids`, the GPT-2 ids that occur in it. Knows
command.py.
"""
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import command
    command.begin()

import argparse
import functools
import hashlib
import html
import json
import re
from pathlib import Path

import tiktoken
from tiktoken.load import load_tiktoken_bpe

from command import environ

# 50,256 byte sequences, the most frequent merges first
RANKS = Path(__file__).resolve().parent / "assets" / "gpt2.tiktoken"
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
BYTES = 256  # GPT-2's first ids, one for each byte
END_OF_TEXT = 50256  # GPT-2's document separator, the one id that no text encodes to

# prompt red, own text dark blue, thoughts cyan
ANSI = {"prompt": "\033[31m", "text": "\033[34m", "think": "\033[36m"}
CSS = {"prompt": "#c0392b", "text": "#1b3a8a", "think": "#0aa5b5"}
RESET = "\033[0m"


@functools.cache  # to read the ranks takes a quarter of a second
def gpt2_encoding(file: Path) -> tiktoken.Encoding:
    """GPT-2's own encoding: 50,256 byte sequences and one separator. Raises ValueError on a
    damaged file."""
    from tiktoken_ext.openai_public import r50k_pat_str  # how GPT-2 splits text into words
    try:
        # tiktoken checks the hash only of what it caches: half a file is a smaller vocabulary
        if hashlib.sha256(file.read_bytes()).hexdigest() != RANKS_SHA256:
            raise ValueError("its sha256 differs")
        # it copies whatever it loads to a shared temporary folder; "" turns that off
        with environ("TIKTOKEN_CACHE_DIR", ""):
            ranks = load_tiktoken_bpe(str(file), expected_hash=RANKS_SHA256)
    except (OSError, ValueError) as e:
        raise ValueError(f"assets/{file.name} is missing or damaged ({type(e).__name__}): "
                         "restore it with `git checkout assets`") from e
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": END_OF_TEXT})


class Tokenizer:
    """Text <-> ids for V text rows and N thinking rows.

    text_ids: the GPT-2 ids that this model's language uses, renumbered 0..V-1 in that order; None:
    all 50,257. A language of single bytes is read byte by byte. think_vocab: N, so that decoding
    can tell a thought from a mistake. continuous: thoughts are hidden states and have no names.
    """

    def __init__(self, text_ids: list[int] | None = None, think_vocab: int = 0,
                 continuous: bool = False):
        self.gpt2 = gpt2_encoding(RANKS)  # all ids, whatever this model knows
        self.text_ids = list(text_ids) if text_ids is not None else None
        self.V = len(self.text_ids) if self.text_ids is not None else self.gpt2.n_vocab
        self.N, self.continuous = think_vocab, continuous
        # GPT-2's id -> row, for a small language
        self._row = {g: i for i, g in enumerate(self.text_ids or [])}
        # a language without longer pieces is read byte by byte
        self.by_byte = bool(self._row) and self._row.keys() <= {*range(BYTES), END_OF_TEXT}

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Lone surrogates, which are no characters, become U+FFFD. Raises ValueError
        that lists the pieces outside this model's language."""
        ids = self._ids_of_bytes(text) if self.by_byte else self._ids_of_pieces(text)
        if self.text_ids is None:  # all of GPT-2's
            return ids
        if any(g not in self._row for g in ids):  # said by the piece, as a person reads it
            text, starts = self.gpt2.decode_with_offsets(ids)
            # (an id may be a part of a character, which is then said whole)
            ends = [*starts[1:], len(text)]
            unknown = [text[a:max(b, a + 1)] for g, a, b in zip(ids, starts, ends)
                       if g not in self._row]
            unknown = list(dict.fromkeys(unknown))
            raise ValueError(f"{len(unknown)} piece(s) of the text are outside this model's "
                             f"language: {', '.join(map(repr, unknown[:12]))}; it knows: "
                             f"{', '.join(json.dumps(x) for x in self.words()[:60])}")
        return [self._row[g] for g in ids]

    def _ids_of_pieces(self, text: str) -> list[int]:
        # half a million spaces overflow tiktoken's stack, so a long run of them goes by itself
        parts = re.split(r"(?<!\s)(\s{100000,})", text)
        # "ordinary": a typed "<|endoftext|>" is six pieces of text
        return [i for part in parts for i in self.gpt2.encode_ordinary(part)]

    def _ids_of_bytes(self, text: str) -> list[int]:
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return [self.gpt2.encode_single_token(bytes([b])) for b in whole.encode()]

    def check(self, V: int) -> None:
        """Raises ValueError for a model whose text rows are not those of this tokenizer."""
        if V != self.V:
            raise ValueError(f"the model has {V:,} text rows and the tokenizer {self.V:,} ids: "
                             "rows of padding must be cut off, or the model's text_ids given")

    def words(self) -> list[str]:
        """The V text rows as strings, in order."""
        return [self.gpt2.decode([g]) for g in (self.text_ids or range(self.V))]

    def bytes_of(self, i: int) -> bytes:
        """Bytes of one text id. Raises ValueError for an id that is no text row."""
        if not 0 <= i < self.V:
            raise ValueError(f"id {i} is not one of the {self.V} text rows")
        g = self.text_ids[i] if self.text_ids else i  # GPT-2's id
        return self.gpt2.decode_single_token_bytes(g)

    def name(self, i: int) -> str:
        """`<think17>` for a thinking id; a block for a continuous thought, which has no row.
        Raises ValueError for an id outside V..V+N-1."""
        if not self.V <= i < self.V + self.N:
            raise ValueError(f"id {i} is not one of the {self.N} thinking rows "
                             f"{self.V}..{self.V + self.N - 1}")
        return "█" if self.continuous else f"<think{i - self.V}>"

    def pieces(self, ids: list[int]) -> list[tuple[bool, str]]:
        """ids -> (is it a thought?, string) pairs. Half a character shows as U+FFFD."""
        # one character can be spread over several ids, so neighbours are joined first
        out, run = [], bytearray()
        for i in map(int, ids):
            if i < self.V:
                run += self.bytes_of(i)
                continue
            # a thought ends the run of text before it
            out += [(False, run.decode("utf-8", "replace"))] if run else []
            out.append((True, self.name(i)))
            run = bytearray()
        return out + ([(False, run.decode("utf-8", "replace"))] if run else [])

    def decode(self, ids: list[int], thoughts: bool = True) -> str:
        """Any ids in range -> text, with thoughts by name, or without them."""
        keep = ids if thoughts else [i for i in ids if int(i) < self.V]
        return "".join(s for _, s in self.pieces(keep))

    def show(self, ids: list[int], n_prompt: int, style: str = "ansi",
             thoughts: bool = True) -> str:
        """One sample for a person: the first n_prompt ids are the prompt. style: "ansi", "html"
        or "plain"."""
        pieces = []  # (kind, string)
        for part, kind in ((ids[:n_prompt], "prompt"), (ids[n_prompt:], "text")):
            keep = [i for i in part if thoughts or int(i) < self.V]
            pieces += [("think" if is_think else kind, s) for is_think, s in self.pieces(keep)]
        if style == "ansi":
            return "".join(f"{ANSI[kind]}{s}{RESET}" for kind, s in pieces)
        if style == "html":  # escaped: a text may hold tags
            return "".join(f'<span class="{kind}">{html.escape(s)}</span>' for kind, s in pieces)
        return "".join(s for _, s in pieces)


def use_color(when: str, stream) -> bool:
    """--color auto|always|never: auto means a terminal, and NO_COLOR (no-color.org) unset."""
    # a pipe or a file gets plain text
    at_terminal = stream.isatty() and not os.environ.get("NO_COLOR")
    return when == "always" or (when == "auto" and at_terminal)


def main() -> None:
    parser = argparse.ArgumentParser(description="show the pieces of a text, as GPT-2 sees them")
    parser.add_argument("text", nargs="?", default="Thinking tokens stand for no text.")
    args = parser.parse_args()
    try:
        tok = Tokenizer(think_vocab=1)
    except ValueError as e:
        parser.exit(2, f"tokenizer.py: {e}\n")
    ids = tok.encode(args.text)
    for i in ids:  # bytes, since a piece may be half a character
        print(f"{i:6d}  {tok.bytes_of(i)!r}")
    print(f"{len(ids)} ids for {len(args.text)} characters; decoded again: {tok.decode(ids)!r}")


if __name__ == "__main__":
    command.run(main)
