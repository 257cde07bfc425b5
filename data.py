"""Where text comes from: the game `cups`, or text from a file. (Tasks: task.py.)

All of them are a `Source`, and the loop knows no more than that. What a source gives is a `Text`:
rows of ids, which tokens pay, and where thoughts may stand. Text is a function of (seed, step,
purpose) alone, so a resumed run sees what an uninterrupted one would have seen.

The game. `The ball is under cup B. Moves: AB, left, BC. Where? B. Moves: right, AC. Where? A. ...`
A move swaps two cups or turns them all: ` left` takes the ball from B to A. Each answer also says
where the ball is, so its cup is the only hidden state. Variants, as in --data "cups m=5 idle=0.4":

    m=5          five cups
    balls=all    a ball under each cup. A round begins with all in order, and the question names
                 one. The state is one of m! orders: the word problem of the group S_m.
    moves=turns  all cups turn by 1 to m - 1 places, and nothing else: the group Z_m, a sum
    idle=0.4     the share of moves that are ` nothing`. Is a thought needed after those?
    swaps=12     the longest round of the curriculum

Left out on purpose: shuffled epochs, since windows are drawn at random. Knows tokenizer.py and
reader.py.

Letters: B contexts, G siblings, R = B G rows, P prompt tokens, S new text tokens, L = P + S,
V text rows, m cups, n moves since the last answer.
"""
import hashlib
import os
from dataclasses import dataclass, fields, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reader import cached_ids, check_path, told
from tokenizer import END_OF_TEXT, Tokenizer

CACHE = Path(os.path.expanduser(os.environ.get("NANOTHINK_CACHE") or
                                Path(__file__).resolve().parent / "cache"))
PURPOSES = ("train", "eval", "rollout", "eval_rollout", "pretrain", "offset", "birth", "own_text",
            "quiz")

LETTERS = "ABCDEF"  # of the cups
OPENING = 9  # tokens of a story before its first move: The ball is under cup B. Moves:
OFFSETS = 65  # a story begins at any position below: no position may mean a place in a round
N_MAX = 30  # the longest round that the evaluation asks for
TRIED = 6  # stories that `teacher` writes for each one that is kept, under a curriculum


def seeded(seed: int, step: int, purpose: str) -> np.random.Generator:
    """The one source of random numbers. Streams of two purposes never overlap."""
    return np.random.default_rng([seed, step, PURPOSES.index(purpose)])


@dataclass
class Text:
    """R rows of text for one step. Rows of one context stand next to each other."""
    ids: Tensor  # [R, L], or [R, P] where the model writes its own continuation
    P: int  # prompt tokens: thoughts begin after them
    pays: Tensor  # [R, S]: what each new token's own r weighs; 0: it is not rewarded
    level: Tensor  # [R, S]: of the question that a token answers; 0 for all other tokens
    open: Tensor | None = None  # [R, L]: may a thought stand after this token? None: by its id
    offset: int = 0  # position of the first token
    siblings: int = 1  # how many neighbours share their text
    stage: int = 0  # of the curriculum; 0 without one
    unread: int = 0  # answers of this level teach no reading yet; 0: all do
    window: int = 0  # as in the rules; 0: theirs
    real: Tensor | None = None  # [R, S]: is it no padding? None: all is text

    @property
    def S(self) -> int:
        return self.pays.shape[1]

    @property
    def given(self) -> bool:
        """Is all of the text there, so that only thoughts are left to sample?"""
        return self.ids.shape[1] == self.P + self.S

    def each(self, change) -> "Text":
        """The same with `change` applied to all that has rows."""
        rows = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: change(x) for k, x in rows.items() if isinstance(x, Tensor)}
        return replace(self, **tensors)

    def to(self, device) -> "Text":  # all that has rows
        return self.each(lambda x: x.to(device))

    def repeat(self, G: int) -> "Text":
        """Each row G times, side by side."""
        return replace(self.each(lambda x: x.repeat_interleave(G, 0)), siblings=G)


def plain(ids: Tensor, P: int, S: int, **more) -> Text:
    """Text without questions: every new token pays the same."""
    R = len(ids)
    return Text(ids, P, torch.ones(R, S), torch.zeros(R, S, dtype=torch.long), **more)


class Source:
    """Where text comes from. A source of your own needs `take`, and overrides what it knows."""
    text_ids: list[int] | None = None  # the GPT-2 ids of its language, row by row; None: all
    stages = 0  # of a curriculum; 0: it has none
    enough = 0.99  # share of right answers that ends a stage
    leap = 10  # a look goes up to this many times its stage
    patience = 0  # steps without progress after which a stage ends, unlearned; 0: never
    levels = 0  # that `questions` asks for; 0: there are no questions
    of = "level"  # what a level is called
    counts = "text"  # what a window counts (rollout.Rules)
    digest = ""  # of a file's content: --resume notices another one
    says = True  # can lab.report say what a thought means?
    by_row = False  # each row is a prompt with its answer, all of it given (task.py)

    def take(self, rows: int, L: int, rng: np.random.Generator, prompt: int = 0,
             held_out: bool = False) -> Tensor:  # -> [rows, L] ids
        """Rows of L tokens. prompt: how many of them must end where a rollout may begin."""
        raise NotImplementedError

    def text(self, settings, step: int, stage: int) -> Text:
        """B contexts for a step: text that is all given, or prompts where the model writes."""
        P, S = settings.prompt_tokens, settings.new_tokens
        L = P if settings.approach == "teacher" else P + S  # for a teacher the model writes
        rng = seeded(settings.seed, step, "train")
        return plain(self.take(settings.prompts, L, rng, P), P, S)

    def grade(self, ids: Tensor, prompts: Text) -> Text:
        """What the model wrote after these prompts, [R, L]: what pays in it, which rows stay."""
        return plain(ids, prompts.P, prompts.S, offset=prompts.offset)

    def think_after(self, approach: str, think: str) -> list[int] | None:
        """The text ids after which a thought may stand; None: all."""
        return None

    def slots(self, S: int) -> int:
        """The most slots that can hold thoughts in S tokens of its own kind."""
        return S

    def longest(self, settings, budget: int) -> int:
        """Places of the longest row of training and evaluation, with that many thoughts."""
        return settings.prompt_tokens + settings.new_tokens + budget

    def whose_longest(self, settings) -> str:
        """What the longest row is made of, for a person."""
        return "prompt, new tokens"

    def quiz(self, stage: int, rows: int, rng: np.random.Generator) -> Text:  # [rows, ...]
        """Fresh questions of one stage: a curriculum goes on when they are answered."""
        raise NotImplementedError

    def questions(self, each: int, seed: int) -> Text:  # [levels * each, ...]
        """Held-out questions, in blocks of `each` for every level from 1 on."""
        raise NotImplementedError

    def answers(self, row: list[int]) -> list[tuple[int, int, bool]]:
        """(place, level, is it right?) of each answer in a text that the model wrote."""
        return []

    def changes(self, ids: Tensor) -> Tensor | None:  # [R, L] -> [R, L] bool
        """After which tokens is there something new to remember? None: not known."""
        return None


class Story(NamedTuple):
    """Stories of the game, all [B, L]."""
    ids: np.ndarray
    pays: np.ndarray  # is this token an answer that counts?
    state: np.ndarray  # after it: the ball's cup, or the number of all balls' order; -1: unknown
    n: np.ndarray  # moves since the last answer; at an answer, those before it


def swaps_and_turns(m: int) -> dict[str, list[int]]:
    """word -> where each cup's content goes: swaps of two, and of three or more a turn by one."""
    moves = {}
    for a, b in combinations(range(m), 2):  # " AB": what is in A goes to B, and back
        goes = list(range(m))
        goes[a], goes[b] = b, a
        moves[f" {LETTERS[a]}{LETTERS[b]}"] = goes
    if m > 2:  # of two cups a turn is the swap
        moves[" left"] = [(i - 1) % m for i in range(m)]
        moves[" right"] = [(i + 1) % m for i in range(m)]
    return moves


def turns(m: int) -> dict[str, list[int]]:
    """The same for a ring that turns by 1 to m - 1 places."""
    words = (" one", " two", " three", " four", " five")[:m - 1]
    return {word: [(i + k) % m for i in range(m)] for k, word in enumerate(words, 1)}


class Cups(Source):
    """The game. Raises ValueError for one that can't be played."""
    HAZARD = 1 / 3  # a round of any number ends after each move with this probability
    levels = N_MAX
    of, counts = "n", "places"

    def __init__(self, m: int = 3, balls: str = "one", moves: str = "mixed", idle: float = 0.0,
                 swaps: int = 10):
        most = 6 if moves == "turns" else 5  # Z6 has as many states and moves as S3
        if not 2 <= m <= most:
            raise ValueError(f"cups can be played with 2 to {most} cups, not {m}"
                             + (" (6: moves=turns)" if m == 6 else ""))
        if balls not in ("one", "all") or moves not in ("mixed", "turns") or swaps < 1:
            raise ValueError("cups has balls=one or all, moves=mixed or turns, swaps from 1 on")
        if moves == "turns" and balls == "all":
            raise ValueError("moves=turns keeps all balls in their order, so one says it all")
        if not 0 <= idle < 1:
            raise ValueError(f"the share of idle moves lies from 0 to below 1, not at {idle}")
        self.m, self.idle, self.all, self.stages = m, idle, balls == "all", swaps
        self.says = not self.all
        self.moves = turns(m) if moves == "turns" else swaps_and_turns(m)
        if idle:
            self.moves[" nothing"] = list(range(m))  # the last one
        self._name_words([f" {c}" for c in LETTERS[:m]])
        self.goes = np.array(list(self.moves.values()))  # [moves, m]: cup -> cup
        # where each ball is -> the number of that state
        orders = permutations(range(m)) if self.all else [(b,) for b in range(m)]
        self.states = {where: i for i, where in enumerate(orders)}

    def _name_words(self, cups: list[str]) -> None:
        """The rows of the language: row i is word i."""
        opening, asked = ["The", " ball", " is", " under", " cup"], [" Where"]
        if self.all:
            opening = ["The", " balls", " are", " under", " the", " cups"]
            asked = [" Red", " Blue", " Green", " White", " Black"][:self.m]
        # this order is the language: checkpoints have their rows in it
        words = [*opening, ".", " Moves", ":", ",", *asked, "?", *cups, *self.moves]
        gpt2 = Tokenizer()
        ids = [gpt2.encode(w) for w in words]
        assert all(len(i) == 1 for i in ids), "every word of the game is one GPT-2 token"
        self.text_ids = [i[0] for i in ids]  # row -> GPT-2's id
        self.id = {w: i for i, w in enumerate(words)}  # word -> row
        self.cup_ids = np.array([self.id[c] for c in cups])
        self.move_ids = np.array([self.id[w] for w in self.moves])
        self.prefix = [self.id[w] for w in opening]
        self.asked = [self.id[w] for w in asked]  # ball b is asked for by asked[b]

    # What happens in a round; in the stories for pretraining, other things (lab/pretrain.py)

    def round_length(self, rng: np.random.Generator, n_max: int | None) -> int:
        """Moves of one round: any number, or 1 to n_max."""
        return int(rng.geometric(self.HAZARD) if n_max is None else rng.integers(1, n_max + 1))

    def answer(self, rng: np.random.Generator, cup: int) -> tuple[int, bool]:
        """The cup that is named, and whether this answer pays."""
        return cup, True

    def asks_again(self, rng: np.random.Generator) -> bool:
        """Is an answered question asked once more?"""
        return False

    def tell(self, rng: np.random.Generator, L: int, n_max: int | None = None,
             exact: int | None = None, prompt: int = 0) -> Story:
        """L tokens of one story. Rounds have 1 to n_max moves, None: any number. prompt: that many
        tokens, at the start, are rounds of any number. exact: moves of the first round after."""
        # the cup of each ball; numbers are drawn in a fixed order, which makes stories repeat
        where = tuple(range(self.m)) if self.all else (int(rng.integers(self.m)),)
        rows: list[tuple] = []  # (id, pays, state, n) of each token

        def say(word: int, moves: int, pays: bool = False, state: int | None = None) -> None:
            rows.append((word, pays, self.states[where] if state is None else state, moves))

        opening = [*self.prefix, *([] if self.all else [self.cup_ids[where[0]]]), self.id["."]]
        for i, word in enumerate(opening):
            say(word, 0, state=-1 if i < 5 else None)  # the sixth word says where the balls are
        while True:  # a round: Moves: AB, left. Where? C.
            where = tuple(range(self.m)) if self.all else where
            say(self.id[" Moves"], 0), say(self.id[":"], 0)
            if len(rows) >= L:
                return Story(*map(np.array, zip(*rows[:L])))
            room = prompt - len(rows)  # until new text begins
            if room > 0:
                n = self.round_length(rng, None)
                # where no further round would fit, fill the prompt exactly
                n = n if room >= 2 * n + 6 + 8 else (room - 6) // 2
            else:
                n, exact = exact or self.round_length(rng, n_max), None
            for i in range(1, n + 1):
                move = self.draw_move(rng)
                where = tuple(self.goes[move, list(where)].tolist())
                say(self.move_ids[move], i), say(self.id["," if i < n else "."], i)
            ball = int(rng.integers(self.m)) if self.all else 0
            say(self.asked[ball], n), say(self.id["?"], n)
            cup, pays = self.answer(rng, where[ball])
            where = where if self.all else (cup,)  # right or wrong, the answer is what counts
            say(self.cup_ids[cup], n, pays), say(self.id["."], 0)
            while self.asks_again(rng):
                say(self.asked[ball], 0), say(self.id["?"], 0)
                say(self.cup_ids[cup], 0, True), say(self.id["."], 0)

    def draw_move(self, rng: np.random.Generator) -> int:
        """Which of the moves comes next."""
        if self.idle and rng.random() < self.idle:
            return len(self.move_ids) - 1
        return int(rng.integers(len(self.move_ids) - bool(self.idle)))

    def stories(self, B: int, L: int, rng: np.random.Generator, n_max: int | None = None,
                exact: int | None = None, prompt: int = 0) -> Story:
        """B stories of L tokens. Raises ValueError for a prompt length that no story has."""
        if prompt and (prompt < OPENING or prompt % 2 == 0 or OPENING < prompt < OPENING + 8):
            raise ValueError("a prompt of cups ends with 'Moves:': 9, 17, 19, 21, ... tokens, "
                             f"not {prompt}")
        told = [self.tell(rng, L, n_max, exact, prompt) for _ in range(B)]
        return Story(*(np.stack(x) for x in zip(*told)))

    # The interface of a source

    def take(self, rows, L, rng, prompt=0, held_out=False):
        return torch.from_numpy(self.stories(rows, L, rng, prompt=prompt).ids)

    def text(self, settings, step: int, stage: int) -> Text:
        """Rounds have at most `stage` moves, and the first new one has exactly `stage`."""
        s, S, B = settings, settings.new_tokens, settings.prompts
        if stage:
            # a first round of all its moves: shorter ones were learned in the stages before
            S = min(S, two_rounds(stage))
            # --prompts is meant for the first stage: longer rows take fewer contexts
            B = max(1, B * (two_rounds(1) + s.prompt_tokens) // (S + s.prompt_tokens))
            B = -(-B // s.processes) * s.processes  # each process has whole contexts
        # the first two stages, and half of the texts later, begin with a story
        P = OPENING if step % 2 == 0 or (stage or 3) < 3 else s.prompt_tokens
        offset = int(seeded(s.seed, step, "offset").integers(OFFSETS))
        rng = seeded(s.seed, step, "train")
        # the longest rounds end in thoughts that say nothing yet. (With all balls some orders are
        # first met there)
        unread = 0 if self.all or stage < 2 else stage
        if s.approach == "teacher":  # prompts; `grade` chooses among what is written
            B = TRIED * B if stage and s.reward == "kl" else B
            return plain(self.take(B, P, rng, P), P, S, offset=offset, stage=stage, unread=unread)
        story = self.stories(B, P + S, rng, stage or None, stage or None, P)
        return replace(as_text(story, P), offset=offset, stage=stage, unread=unread)

    def grade(self, ids: Tensor, prompts: Text) -> Text:
        """Answers pay, up to rounds of `stage` moves."""
        P, most, text = prompts.P, prompts.stage or 99, ids.tolist()
        n = np.zeros(ids.shape, int)  # moves before each answer
        for row, moves in zip(text, n):
            for place, k, _ in self.answers(row):
                moves[place] = k
        # one text of TRIED is kept: those with the longest first round that still pays
        first = np.array([next((k for k in row[P:] if k), 99) for row in n])  # 99: never asked
        best = np.argsort(np.where(first <= most, -first, first), kind="stable")
        best = best[:len(ids) // TRIED if prompts.stage else len(ids)]
        level = torch.from_numpy(n[best, P:])
        pays = ((level > 0) & (level <= most)).float()
        return replace(prompts, ids=ids[torch.from_numpy(best)], pays=pays, level=level)

    def think_after(self, approach, think):
        """After moves, and for thoughts that are forgotten again before the answer."""
        if approach != "next_token":
            return self.move_ids.tolist()
        # what is thought after a move would not be there at the question
        return [self.id["?"]] if think == "forced" else None

    def slots(self, S):
        return (S + 1) // 2  # at most every other token is a move

    def longest(self, settings, budget):
        longest = settings.prompt_tokens + settings.new_tokens + budget + OFFSETS - 1
        thoughts = settings.max_thoughts if settings.thoughts != "none" else 0
        if settings.approach != "next_token":  # and the longest stories of the evaluation
            longest = max(longest, OPENING + 2 * N_MAX + 3 + (N_MAX + 2) * thoughts)
        return longest

    def quiz(self, stage, rows, rng):
        story = self.stories(rows, OPENING + two_rounds(stage), rng, stage, stage)
        return as_text(story, OPENING)

    def questions(self, each, seed):
        # one block for each n: its first round has n moves, those after it 1 to 10
        L = OPENING + 2 * N_MAX + 3
        rounds = [self.stories(each, L, seeded(seed, n, "eval"), 10, n)
                  for n in range(1, N_MAX + 1)]
        return as_text(Story(*(np.concatenate(x) for x in zip(*rounds))), OPENING)

    def answers(self, row):
        """A question that is followed by no cup, or names no ball, is answered wrongly."""
        before, found = [(None, 0), *self.follow(row)], []  # what was known before each token
        ball_of = {word: b for b, word in enumerate(self.asked)}
        for place in range(1, len(row)):
            where, n = before[place]
            if row[place - 1] == self.id["?"] and where is not None:
                ball = ball_of.get(row[place - 2]) if self.all else 0
                right = ball is not None and bool(row[place] == self.cup_ids[where[ball]])
                found.append((place, n, right))
        return found

    def changes(self, ids):
        state = torch.tensor([[-1 if where is None else self.states[where]
                               for where, _ in self.follow(row)] for row in ids.tolist()])
        state = state.to(ids.device)
        return self.is_move(ids) & (state != state.roll(1, 1))

    def is_move(self, ids: Tensor) -> Tensor:  # any shape -> bool
        return torch.isin(ids, torch.as_tensor(self.move_ids, device=ids.device))

    def follow(self, row: list[int]) -> list[tuple[tuple[int, ...] | None, int]]:
        """Any text by the rule: (where each ball is, None before it is known; moves since then)
        after each token."""
        cup = {int(c): i for i, c in enumerate(self.cup_ids)}
        move = {int(c): i for i, c in enumerate(self.move_ids)}
        where, n, out = None, 0, []
        for before, i in zip([-1, *row], row):
            if self.all and i in (self.prefix[-1], self.id[" Moves"]):  # all in order
                where, n = tuple(range(self.m)), 0
            elif not self.all and i in cup and before in (self.id["?"], self.id[" cup"]):
                # an answer, right or wrong, says where the ball is from now on
                where, n = (cup[i],), 0
            elif i in move and where is not None:
                where, n = tuple(self.goes[move[i], list(where)].tolist()), n + 1
            out.append((where, n))
        return out


def two_rounds(n: int) -> int:
    """Tokens of two rounds of n moves. In the second one a thought of the first is still in sight:
    a row of one round would not teach what to do with it."""
    return 2 * (2 * n + 6)


def as_text(story: Story, P: int) -> Text:
    """Stories as a step takes them."""
    pays, n = (torch.from_numpy(x[:, P:]) for x in (story.pays, story.n))
    return Text(torch.from_numpy(story.ids), P, pays.float(), n * pays)


class TextFile(Source):
    """A .txt file, or a .jsonl file with a field `text`, as random windows. The last 5 % are held
    out, or all of another file is. after: `think_after`. Raises ValueError."""

    def __init__(self, path: str | Path, tokenizer: Tokenizer, held_out: str | Path | None = None,
                 after: list[int] | None = None):
        check_path(path)
        self.after = after
        self.name, self.tokenizer, self.text_ids = str(path), tokenizer, tokenizer.text_ids
        # ids [n] on disk, of which only what is used is read
        self.train = self._ids(Path(path))
        if held_out is None:
            n = len(self.train)  # at least a window of held-out text, if there are two
            cut = n - max(n // 20, min(256, n // 2))
            self.train, self.eval = self.train[:cut], self.train[cut:]
        else:
            self.eval = self._ids(Path(held_out))

    def think_after(self, approach, think):
        return self.after

    def take(self, rows, L, rng, prompt=0, held_out=False):
        ids = self.eval if held_out else self.train
        if len(ids) < L:
            part = "held-out" if held_out else "training"
            raise ValueError(f"{self.name} is too short: its {part} part has {len(ids)} tokens, "
                             f"and a window needs {L}: some thousand words are long enough")
        starts = rng.integers(0, len(ids) - L + 1, rows)  # of windows, anywhere
        return torch.from_numpy(np.stack([ids[s:s + L] for s in starts]).astype(np.int64))

    def _ids(self, path: Path) -> np.ndarray:  # -> uint16
        # made once per content and language, so the name of the cache is their hash
        digest = hashlib.sha256(repr(self.text_ids).encode())
        with open(path, "rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
        self.digest += digest.hexdigest()
        cached = CACHE / f"{digest.hexdigest()[:32]}{path.suffix.lower()}.bin"
        rows = self.text_ids
        # a small language may know no line breaks: there a line is a story
        joined = rows is not None and not any("\n" in word for word in self.tokenizer.words())
        end = END_OF_TEXT if rows is None else rows.index(END_OF_TEXT) if END_OF_TEXT in rows else 0
        end = [end] if path.suffix.lower() == ".jsonl" and end else []  # a document ends here
        ids, skipped = cached_ids(path, cached, self.tokenizer.encode, end, joined)
        if not len(ids):
            lines = f": its lines {told(skipped)}, none has a field `text`" if skipped else (
                ": there is no text in it")
            raise ValueError(f"{path} is empty{lines}")
        if skipped:
            print(f"{path}: skipped {skipped.total()} broken line(s), which are no JSON with a "
                  f"field `text`: {told(skipped)}")
        return ids
