"""Text <-> ids, and how ids are shown to a person.

GPT-2's byte-pair encoding comes from tiktoken with the ranks in assets/gpt2.tiktoken: no network, ever.
Ids 0..V-1 are text, ids V..V+N-1 are thinking tokens. A thought has a name, `<think17>`, and no text.

But:
- thinking tokens cannot be typed: encode() never makes one, not even from the letters "<think17>";
- nothing here knows a model. A model of a small language keeps `text_ids`, the GPT-2 ids that occur in it.

    python tokenizer.py "some text"           # the pieces and their ids
    python tokenizer.py --build FOLDER        # assets/ again, from OpenAI's vocab.bpe and encoder.json
"""
import argparse
import base64
import hashlib
import html
import os
import re
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe

RANKS = Path(__file__).resolve().parent / "assets" / "gpt2.tiktoken"
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
SOURCES = {  # what OpenAI published; the ranks file is these two, rewritten in tiktoken's own format
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
END_OF_TEXT = 50256  # GPT-2's document separator, the one id that no text encodes to

# prompt red, own text dark blue, thoughts cyan: the colours in which the idea was first explained
ANSI = {"prompt": "\033[31m", "text": "\033[34m", "think": "\033[36m"}
CSS = {"prompt": "#c0392b", "text": "#1b3a8a", "think": "#0aa5b5"}
RESET = "\033[0m"


def gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's own encoding: 50,256 byte sequences and one separator. Raises ValueError on a damaged file."""
    from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's pre-split pattern, as tiktoken ships it
    # tiktoken keeps a copy of whatever it loads in a shared temporary folder; "" turns that off
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")
    try:
        # tiktoken looks at the hash only of what it caches, and half a file would be a smaller vocabulary to it
        if hashlib.sha256(RANKS.read_bytes()).hexdigest() != RANKS_SHA256:
            raise ValueError("its sha256 differs")
        ranks = load_tiktoken_bpe(str(RANKS), expected_hash=RANKS_SHA256)
    except (OSError, ValueError) as e:
        raise ValueError(f"assets/{RANKS.name} is missing or damaged ({type(e).__name__}): restore it with "
                         "`git checkout assets`") from e
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": END_OF_TEXT})


class Tokenizer:
    """Text <-> ids for V text rows and N thinking rows.

    text_ids: the GPT-2 ids that this model's language uses, renumbered 0..V-1 in that order; None: all 50,257.
    think_vocab: N, so that decoding can tell a thought from a mistake. continuous: thoughts are hidden states
    and have no names.
    """

    def __init__(self, text_ids: list[int] | None = None, think_vocab: int = 0, continuous: bool = False):
        self.gpt2 = gpt2_encoding()
        self.text_ids = list(text_ids) if text_ids is not None else None
        self.V = len(self.text_ids) if self.text_ids is not None else self.gpt2.n_vocab
        self.N, self.continuous = think_vocab, continuous
        self._row = {g: i for i, g in enumerate(self.text_ids)} if self.text_ids is not None else None

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises ValueError that lists the pieces outside this model's language.

        Lone surrogates, which are no characters, become U+FFFD, as they do in Python's own "replace" codec.
        """
        # tiktoken's stack overflows (a panic, no exception) on half a million spaces before a word: such a run goes by itself
        parts = re.split(r"(?<!\s)(\s{100000,})", text)
        ids = [i for part in parts for i in self.gpt2.encode_ordinary(part)]  # a typed "<|endoftext|>" is six pieces of text
        if self._row is None:
            return ids
        unknown = list(dict.fromkeys(self.gpt2.decode([g]) for g in ids if g not in self._row))
        if unknown:
            raise ValueError(f"{len(unknown)} piece(s) of the text are outside this model's language: "
                             f"{', '.join(map(repr, unknown[:12]))}; it knows: {' '.join(self.words())}")
        return [self._row[g] for g in ids]

    def check(self, V: int) -> None:
        """Raises ValueError for a model whose text rows are not those of this tokenizer."""
        if V != self.V:
            raise ValueError(f"the model has {V:,} text rows and the tokenizer {self.V:,} ids: such rows (padding?) must be "
                             "cut off, or the model's own text_ids given")

    def words(self) -> list[str]:
        """The V text rows as strings, in order."""
        return [self.gpt2.decode([g]) for g in (self.text_ids or range(self.V))]

    def bytes_of(self, i: int) -> bytes:
        """Bytes of one text id. Raises ValueError for an id that is no text row."""
        if not 0 <= i < self.V:
            raise ValueError(f"id {i} is not one of the {self.V} text rows")
        return self.gpt2.decode_single_token_bytes(self.text_ids[i] if self.text_ids is not None else i)

    def name(self, i: int) -> str:
        """`<think17>` for a thinking id, a block for a continuous thought, which no row stands for. Raises ValueError for
        an id outside V..V+N-1."""
        if not self.V <= i < self.V + self.N:
            raise ValueError(f"id {i} is not one of the {self.N} thinking rows {self.V}..{self.V + self.N - 1}")
        return "█" if self.continuous else f"<think{i - self.V}>"

    def pieces(self, ids: list[int]) -> list[tuple[bool, str]]:
        """ids -> (is it a thought?, string) pairs; neighbouring text ids are joined before they become
        characters, because one character can be spread over several ids. Half a character shows as U+FFFD."""
        out, run = [], bytearray()  # bytes would be copied at every +=
        for i in map(int, ids):
            if i < self.V:
                run += self.bytes_of(i)
            else:
                out += [(False, run.decode("utf-8", "replace"))] if run else []
                out, run = out + [(True, self.name(i))], bytearray()
        return out + ([(False, run.decode("utf-8", "replace"))] if run else [])

    def decode(self, ids: list[int], thoughts: bool = True) -> str:
        """Any ids in range -> text, with thoughts by name or (thoughts=False) left out."""
        keep = ids if thoughts else [i for i in ids if int(i) < self.V]
        return "".join(s for _, s in self.pieces(keep))

    def show(self, ids: list[int], n_prompt: int, style: str = "ansi", thoughts: bool = True) -> str:
        """One sample for a person: the first n_prompt ids are the prompt. style: "ansi", "html" or "plain"."""
        keep = [[i for i in part if thoughts or int(i) < self.V] for part in (ids[:n_prompt], ids[n_prompt:])]
        pieces = [("think" if is_think else "prompt", s) for is_think, s in self.pieces(keep[0])]
        pieces += [("think" if is_think else "text", s) for is_think, s in self.pieces(keep[1])]
        if style == "ansi":
            return "".join(f"{ANSI[kind]}{s}{RESET}" for kind, s in pieces)
        if style == "html":
            return "".join(f'<span class="{kind}">{html.escape(s)}</span>' for kind, s in pieces)
        return "".join(s for _, s in pieces)


def html_page(samples: list[str], title: str, thoughts: bool = True, notes: list[list[str]] = (), hint: str = "",
              rest: str = "") -> str:
    """Samples made by show(style="html") -> one page that needs no other file. thoughts: are there any, that the legend has to
    explain? notes: for each sample a text for each of its thoughts, which is shown below it while one points at the thought, or
    reaches it by the tab key or by tapping. Title, notes and hint are escaped here; rest is html, for the page's end."""
    rules = "".join(f".{kind}{{color:{colour}}}" for kind, colour in CSS.items())

    def with_notes(sample: str, texts: list[str]) -> str:
        left = iter(texts)  # within a span of show() there is no other tag, as its text is escaped
        return re.sub('<span class="think">([^<]*)</span>', lambda span: f'<span class="think" tabindex="0">{span[1]}'
                      f'<span class="note" role="tooltip">{html.escape(next(left))}</span></span>', sample)
    body = "".join(f"<p>{with_notes(s, notes[i]) if notes else s}</p>" for i, s in enumerate(samples))
    legend = (f'<p><span class="prompt">prompt</span>  <span class="text">own text</span>'
              f'{"  <span class=think>&lt;thought&gt;</span>" * thoughts}{hint and "<br>" + html.escape(hint)}</p>')
    return ('<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(title)}</title><style>{rules}"
            "body{font:16px/1.7 monospace;max-width:60em;margin:2em auto;padding:0 1em;background:#fff;color:#222}"
            "p{white-space:pre-wrap;border-bottom:1px solid #ddd;padding-bottom:1em;position:relative}.think{font-size:80%}"
            ".note{display:none;position:absolute;left:1em;top:100%;z-index:1;padding:.3em 1em;background:#fffbe6;color:#222;"
            "border:1px solid #bbb}.think:hover .note,.think:focus .note{display:block}"
            ".think[tabindex]:hover,.think:focus{background:#fe9}"
            "table{display:block;overflow-x:auto;border-collapse:collapse;font-size:75%;margin:1em 0}"
            "td,th{border:1px solid #ddd;padding:0 .5em;white-space:nowrap}img{max-width:100%}"
            f"</style><h1>{html.escape(title)}</h1>{legend * bool(samples)}{body}{rest}\n")


def use_color(when: str, stream) -> bool:
    """--color auto|always|never: auto means a terminal, and NO_COLOR (no-color.org) unset."""
    return when == "always" or (when == "auto" and stream.isatty() and not os.environ.get("NO_COLOR"))


def build_ranks(folder: str, out: Path = RANKS) -> None:
    """Rewrite OpenAI's vocab.bpe and encoder.json as tiktoken ranks. Raises ValueError on a wrong file."""
    for name, sha in SOURCES.items():
        if hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest() != sha:
            raise ValueError(f"{name} in {folder} is not the file that OpenAI published (sha256 differs)")
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")
    ranks = data_gym_to_mergeable_bpe_ranks(*(str(Path(folder) / name) for name in SOURCES))
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    # tiktoken has a writer for this format, but it wants another package for one open()
    out.write_bytes(b"".join(base64.b64encode(piece) + b" %d\n" % rank for piece, rank in by_rank))


def main() -> None:
    parser = argparse.ArgumentParser(description="show the pieces of a text, as GPT-2 sees them")
    parser.add_argument("text", nargs="?", default="Thinking tokens stand for no text.", help="what to encode")
    parser.add_argument("--build", metavar="FOLDER", help="rewrite assets/gpt2.tiktoken from OpenAI's two files")
    args = parser.parse_args()
    try:
        if args.build:
            build_ranks(args.build)
        tok = Tokenizer(think_vocab=1)
    except (OSError, ValueError) as e:
        parser.exit(2, f"tokenizer.py: {e}\n")
    ids = tok.encode(args.text)
    for i in ids:
        print(f"{i:6d}  {tok.bytes_of(i)!r}")
    print(f"{len(ids)} ids for {len(args.text)} characters; {tok.V} text rows; decoded again: {tok.decode(ids)!r}")


if __name__ == "__main__":
    main()
