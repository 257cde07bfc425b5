"""Where text comes from: the built-in game `cups`, a .txt or .jsonl file, or WebText.

A batch is a function of its shape and of (seed, step, purpose), and of nothing that was drawn before, so a resumed run sees
what an uninterrupted one would have seen, and an evaluation sees the same stories every time.

The game. `The ball is under cup B. Moves: AB, left, BC. Where? B. Moves: right, AC. Where? A. ...`
A move swaps two cups (` AB`) or turns them all (` left`: the ball goes from B to A). Every question is
answered, and the answer anchors the story anew, so the cup of the ball is the only hidden state. With `idle`, some
moves are ` nothing`: is a thought needed after those? With balls "all" there is one under each cup, every round begins with
them in order, and a question names one: `The balls are under the cups. Moves: AB, left, BC. Blue? C. Moves: ...` The hidden
state is one of m! orders then, and moves do not commute: the word problem of the group S_m. With moves "turns" all cups turn by
one to m - 1 places (` two`: the ball goes from B to D, from the last cup on to A again), and nothing else: a sum modulo m, the
group Z_m, whose moves commute.

Left out on purpose: shuffled epochs (windows are drawn at random), padding (windows have equal length).
Knows tokenizer.py and download.py. Letters: B contexts, S text tokens, m cups, n moves since the last anchor.
"""
import codecs
import hashlib
import json
import os
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from download import download
from tokenizer import END_OF_TEXT, Tokenizer

CACHE = Path(__file__).resolve().parent / "cache"
WEBTEXT = "https://openaipublic.blob.core.windows.net/gpt-2/output-dataset/v1/webtext.{}.jsonl"
PIECE = 1 << 22  # characters that are encoded at once: the ids of a line of 100 MB would be a list of 3 GB
LETTERS = "ABCDEF"  # of the cups
OPENING = 9  # tokens of a story of cups before its first move: The ball is under cup B. Moves:
PURPOSES = ("train", "eval", "rollout", "eval_rollout", "pretrain", "offset", "birth", "own_text")


def seeded(seed: int, step: int, purpose: str) -> np.random.Generator:
    """The one source of randomness for (seed, step, purpose): streams of two purposes never overlap."""
    return np.random.default_rng([seed, step, PURPOSES.index(purpose)])


@dataclass
class Batch:
    """ids [B, S] int64. For cups also, each [B, S]: pays (is this token an answer?), state (cup of the ball, of
    all balls the number of their order, after this token; -1 before it is told), n (moves since the last anchor, after
    this token; at an answer: before it)."""
    ids: np.ndarray
    pays: np.ndarray | None = None
    state: np.ndarray | None = None
    n: np.ndarray | None = None


def mixed(m: int) -> dict[str, list[int]]:
    """word -> where each cup's content goes: all swaps of two, and of three cups or more a turn by one to either side."""
    moves = {}
    for a, b in combinations(range(m), 2):
        goes = list(range(m))
        goes[a], goes[b] = b, a
        moves[f" {LETTERS[a]}{LETTERS[b]}"] = goes
    if m > 2:
        moves[" left"] = [(i - 1) % m for i in range(m)]
        moves[" right"] = [(i + 1) % m for i in range(m)]
    return moves


def turns(m: int) -> dict[str, list[int]]:
    """The same of the ring of cups that is turned by so many places, and not all the way round."""
    words = (" one", " two", " three", " four", " five")[:m - 1]
    return {word: [(i + k) % m for i in range(m)] for k, word in enumerate(words, 1)}


class Cups:
    """m cups; a round ends after each move with probability `hazard`, or has 1..n_max moves, equally likely. idle: the
    share of moves that do nothing. balls: "one", or "all" for one under each cup. moves: "mixed" (swaps, and turns by one to
    either side) or "turns" (by any number of places). Raises ValueError for a game that there is not."""

    def __init__(self, m: int = 3, hazard: float = 1 / 3, idle: float = 0.0, balls: str = "one", moves: str = "mixed"):
        most = 6 if moves == "turns" else 5  # six that turn are Z6: as many states and moves as all balls of three cups, S3
        if not 2 <= m <= most:
            raise ValueError(f"cups can be played with 2 to {most} cups, not {m}" + " (6: --moves turns)" * (m == 6))
        if moves == "turns" and balls == "all":
            raise ValueError("--moves turns keeps all balls in their order, so one says it all: --balls one")
        if not 0 <= idle < 1:
            raise ValueError(f"the share of idle moves lies from 0 to below 1, not {idle}")
        self.m, self.hazard, self.idle, self.all = m, hazard, idle, balls == "all"
        letters = LETTERS[:m]
        self.moves = turns(m) if moves == "turns" else mixed(m)
        if idle:
            self.moves[" nothing"] = list(range(m))  # the last of them
        cups = [f" {c}" for c in letters]
        opening, asked = ["The", " ball", " is", " under", " cup"], [" Where"]
        if self.all:
            opening = ["The", " balls", " are", " under", " the", " cups"]
            asked = [" Red", " Blue", " Green", " White", " Black"][:m]
        words = [*opening, ".", " Moves", ":", ",", *asked, "?", *cups, *self.moves]
        gpt2 = Tokenizer()
        pieces = [gpt2.encode(w) for w in words]
        assert all(len(p) == 1 for p in pieces), "every word of the game is one GPT-2 token"
        self.text_ids = [p[0] for p in pieces]
        self.id = {w: i for i, w in enumerate(words)}
        self.cup_ids = np.array([self.id[c] for c in cups])
        self.move_ids = np.array([self.id[w] for w in self.moves])
        self.goes = np.array(list(self.moves.values()))  # [moves, m]
        self.prefix, self.asked = [self.id[w] for w in opening], [self.id[w] for w in asked]  # ball b is asked for by asked[b]
        # where each ball is; the number of that state is what `Batch.state` holds
        self.states = {w: i for i, w in enumerate(permutations(range(m)) if self.all else [(b,) for b in range(m)])}
        # A thought helps after each move: forced thinking means these slots.
        self.think_after = self.move_ids.tolist()

    def start(self) -> tuple[int, ...]:
        """All balls in order, as every round begins."""
        return tuple(range(self.m))

    def _length(self, rng: np.random.Generator, n_max: int | None, peak: float) -> int:
        """Moves of one round: geometric (the language), or n_max with probability `peak`, else uniform in 1..n_max."""
        if n_max is None:
            return int(rng.geometric(self.hazard))
        return n_max if peak > 0 and rng.random() < peak else int(rng.integers(1, n_max + 1))

    def story(self, rng: np.random.Generator, S: int, n_max: int | None = None, exact: int | None = None,
              prompt: int = 0, lies: float = 0.0, peak: float = 0.0,
              again: float = 0.0) -> tuple[list[int], list[int], list[int], list[bool]]:
        """S tokens of one story: ids, state, n, pays, each of length S.

        prompt: so many tokens, at the start, are whole rounds of the plain language, the last one the ":" of a new
        round (9, or 9 + a sum of 2n + 6). exact: the first round after them has just that many moves. lies: the share
        of answers that name any cup, pay nothing, and (of one ball) anchor the story all the same. peak: see _length. again:
        how often an answered question is asked once more.
        """
        where = self.start() if self.all else (int(rng.integers(self.m)),)
        told = [] if self.all else [self.cup_ids[where[0]]]
        ids, state, n = [*self.prefix, *told, self.id["."]], [-1] * 5 + [self.states[where]] * 2, [0] * 7
        pays = [False] * 7

        def say(word: int, moves: int, answer: bool = False) -> None:
            ids.append(word), state.append(self.states[where]), n.append(moves), pays.append(answer)

        while True:
            where = self.start() if self.all else where
            say(self.id[" Moves"], 0), say(self.id[":"], 0)
            if len(ids) >= S:
                break
            left = prompt - len(ids)
            if left > 0:
                k = self._length(rng, None, 0)
                k = k if left >= 2 * k + 6 + 8 else (left - 6) // 2  # no further round would fit: fill exactly
            else:
                k, exact = exact or self._length(rng, n_max, peak), None
            for i in range(1, k + 1):
                # `idle` is asked first: without idle moves a story's numbers are drawn as ever
                nothing = self.idle > 0 and rng.random() < self.idle
                move = len(self.move_ids) - 1 if nothing else int(rng.integers(len(self.move_ids) - (self.idle > 0)))
                where = tuple(self.goes[move, list(where)].tolist())
                say(self.move_ids[move], i), say(self.id["," if i < k else "."], i)
            ball = int(rng.integers(self.m)) if self.all else 0
            say(self.asked[ball], k), say(self.id["?"], k)
            lie = lies > 0 and rng.random() < lies
            answer = int(rng.integers(self.m)) if lie else where[ball]
            where = where if self.all else (answer,)
            say(self.cup_ids[answer], k, not lie), say(self.id["."], 0)
            while again > 0 and rng.random() < again:
                say(self.asked[ball], 0), say(self.id["?"], 0), say(self.cup_ids[answer], 0, True), say(self.id["."], 0)
        return ids[:S], state[:S], n[:S], pays[:S]

    def batch(self, B: int, S: int, seed: int, step: int, purpose: str, n_max: int | None = None,
              exact: int | None = None, prompt: int = 0, lies: float = 0.0, peak: float = 0.0, again: float = 0.0) -> Batch:
        """B stories of S tokens each. Raises ValueError for a prompt length that no story has."""
        if prompt and (prompt < OPENING or prompt % 2 == 0 or OPENING < prompt < OPENING + 8):
            raise ValueError(f"a prompt of cups ends with 'Moves:': 9, 17, 19, 21, ... tokens, not {prompt}")
        rng = seeded(seed, step, purpose)
        ids, state, n, pays = zip(*(self.story(rng, S, n_max, exact, prompt, lies, peak, again) for _ in range(B)))
        return Batch(np.array(ids), np.array(pays), np.array(state), np.array(n))

    def follow(self, ids: list[int]) -> list[tuple[int | None, int]]:
        """Any text, by the rule: (the state's number, of one ball its cup, or None before it is told; moves since then) after
        each token."""
        return [(None if where is None else self.states[where], n) for where, n in self._follow(ids)]

    def _follow(self, ids: list[int]) -> list[tuple[tuple[int, ...] | None, int]]:
        cup = {int(c): i for i, c in enumerate(self.cup_ids)}
        move = {int(c): i for i, c in enumerate(self.move_ids)}
        where, n, out = None, 0, []
        for before, i in zip([-1] + ids, ids):
            if self.all and i in (self.prefix[-1], self.id[" Moves"]):
                where, n = self.start(), 0
            elif not self.all and i in cup and before in (self.id["?"], self.id[" cup"]):
                where, n = (cup[i],), 0
            elif i in move and where is not None:
                where, n = tuple(self.goes[move[i], list(where)].tolist()), n + 1
            out.append((where, n))
        return out

    def check(self, ids: list[int]) -> list[tuple[int, int, bool]]:
        """(place of the answer, n, is it right?) for each question of any text. Of one ball the answer anchors anew, right or
        wrong. A question that is followed by no cup, or names no ball, counts as answered wrongly."""
        ids = [int(i) for i in ids]
        told, answers = [(None, 0)] + self._follow(ids), []  # what was known before each token
        ball_of = {word: b for b, word in enumerate(self.asked)}
        for place in range(1, len(ids)):
            where, n = told[place]
            if ids[place - 1] == self.id["?"] and where is not None:
                ball = ball_of.get(ids[place - 2]) if self.all else 0
                answers.append((place, n, ball is not None and bool(ids[place] == self.cup_ids[where[ball]])))
        return answers


class TextFile:
    """A .txt file, or a .jsonl file with a field `text`, as random windows; the last 5 % are held out."""

    def __init__(self, path: str | Path, tokenizer: Tokenizer, held_out: str | Path | None = None):
        check_path(path)
        self.train = self._ids(Path(path), tokenizer)
        if held_out is None:
            cut = len(self.train) - max(len(self.train) // 20, min(256, len(self.train) // 2))
            self.train, self.eval = self.train[:cut], self.train[cut:]
        else:
            self.eval = self._ids(Path(held_out), tokenizer)
        self.name, self.tokenizer = str(path), tokenizer

    def _ids(self, path: Path, tokenizer: Tokenizer) -> np.ndarray:
        """The file as uint16 ids on disk, made once per content: 1 GB of text needs a few MB of memory."""
        digest = hashlib.sha256(repr(tokenizer.text_ids).encode())
        with open(path, "rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
        cached = CACHE / f"{digest.hexdigest()[:32]}{path.suffix}.bin"
        if not cached.exists():
            CACHE.mkdir(exist_ok=True)
            part = cached.with_suffix(f".{os.getpid()}.part")
            try:
                with open(path, "rb") as f, open(part, "wb") as out:
                    bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"reading {path.name}", disable=None)
                    for text, size in _documents(f, path.suffix):
                        if tokenizer.text_ids is not None:  # the game knows no line breaks: a line is a story
                            text = "".join(text.splitlines())
                        for i in range(0, len(text), PIECE):
                            np.array(tokenizer.encode(text[i:i + PIECE]), np.uint16).tofile(out)
                        if tokenizer.text_ids is None and path.suffix == ".jsonl":
                            np.array([END_OF_TEXT], np.uint16).tofile(out)
                        bar.update(size)
                    bar.close()
                part.rename(cached)
            finally:
                part.unlink(missing_ok=True)
        if cached.stat().st_size == 0:
            raise ValueError(f"{path} is empty: there is no text in it")
        return np.memmap(cached, np.uint16, "r")

    def batch(self, B: int, S: int, seed: int, step: int, purpose: str) -> Batch:
        """B random windows of S tokens. Raises ValueError where the text is too short."""
        ids = self.eval if purpose == "eval" else self.train
        if len(ids) < S:
            part = "held-out" if purpose == "eval" else "training"
            raise ValueError(f"{self.name} is too short: its {part} part has {len(ids)} tokens, and a window needs {S}: a text "
                             "of some thousand words is long enough")
        starts = seeded(seed, step, purpose).integers(0, len(ids) - S + 1, B)
        return Batch(np.stack([ids[s:s + S] for s in starts]).astype(np.int64))


def check_path(path: str | Path) -> None:
    """Raises ValueError for what is no text file; cheap, so that it can come before any download."""
    if Path(path).suffix not in (".txt", ".jsonl") or not Path(path).is_file():
        raise ValueError(f"{path} is no readable .txt or .jsonl file")


def _documents(f, suffix: str):
    """(text, bytes read) pairs. Text: blocks cut at a line's end. jsonl: one document a line; broken lines are
    skipped and counted in one closing line."""
    broken = 0
    if suffix == ".txt":
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a long line may be cut within a character
        while block := f.read(1 << 20) + f.readline(1 << 20):
            yield decoder.decode(block), len(block)
        yield decoder.decode(b"", True), 0
        return
    for line in f:
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if isinstance(text, str):
            yield text, len(line)
        else:
            broken += bool(line.strip())
    if broken:
        print(f"{f.name}: skipped {broken} broken line(s), which are no JSON with a field `text`")


def open_data(name: str, text_ids: list[int] | None, m: int = 3, idle: float = 0.0, balls: str = "one",
              moves: str = "mixed") -> Cups | TextFile:
    """`cups`, `webtext` or a path. Raises ValueError (one line) where the data can't be had or don't fit."""
    if name == "cups":
        return Cups(m, idle=idle, balls=balls, moves=moves)
    tokenizer = Tokenizer(text_ids)
    if name == "webtext":
        paths = [download(WEBTEXT.format(part), CACHE / f"webtext.{part}.jsonl") for part in ("train", "valid")]
        return TextFile(paths[0], tokenizer, held_out=paths[1])
    return TextFile(name, tokenizer)
