"""A task of your own: a .jsonl file of prompts and answers. Thoughts stand in the prompt.

    {"prompt": "Anna has 3 apples. She eats 1. How many are left?", "answer": "2"}
    {"prompt": "...", "answer": 2, "level": 1, "steps": ["Anna has 3 apples.", "She eats 1."]}

Only the answer pays. `level`, from 1 on, says how hard a row is: the curriculum climbs it, and
evaluation is by it. `steps` is the prompt, or its beginning, in pieces. --think_after says where
thoughts may stand:

    steps   after each of `steps`; in a row without them after each sentence but the last
    end     before the answer
    TEXT    after each TEXT in the prompt

Rows are padded at the end. Padding is never seen by what is real, neither pays nor counts.
`open_source`, at the end, knows all kinds of text.

Left out on purpose: several right answers to a prompt; a judge other than the answer itself. Knows
data.py, tokenizer.py, reader.py, download.py and command.py.

Letters: R rows, P prompt tokens, S new text tokens, L = P + S, V text rows.
"""
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from command import as_json, write_whole
from data import CACHE, Cups, Source, Text, TextFile, seeded
from download import download
from reader import blocks, check_path, encoding_of, lines
from tokenizer import BYTES, END_OF_TEXT, Tokenizer

WEBTEXT = ("https://openaipublic.blob.core.windows.net/gpt-2/output-dataset/v1/"
           "webtext.{}.jsonl")  # its parts: train has 250,000 documents, valid and test 5,000 each
CUPS = dict(m=int, balls=str, moves=str, idle=float, swaps=int)  # what a spec may set
PROMPT = ("prompt", "question", "input")  # what the keys of a row may be called
ANSWER = ("answer", "completion", "ground_truth", "target")
# where a sentence ends: before the space after its mark, and before a line break
SENTENCE = re.compile(r"(?<=[.!?;])(?=\s)|(?<=\S)(?=\n)")
THINK_AFTER = ("steps", "end")  # what --think_after knows on a task, besides texts,
ENDS = {"word": r"\s\Z", "sentence": r"[.!?][\"')]*\Z", "line": r"\n\Z"}  # and on a text
OFFSETS = 65  # rows of a new model begin at any position below: no position may mean a step


class Row(NamedTuple):
    """A line of the file. pieces: of its prompt, with a thought after each but the last; that one
    may be empty, and then a thought stands before the answer."""
    pieces: list[str]
    answer: str
    level: int
    line: int


class Example(NamedTuple):
    """A row in ids: prompt, answer, end."""
    ids: list[int]
    start: int  # where the answer begins
    slots: list[int]  # after these places a thought may stand
    level: int
    line: int


# Reading

def read_rows(path: Path, think_after: str) -> list[Row]:
    """The lines of a file. Raises ValueError, one line, that names the line of the file."""
    rows = []
    for number, line in numbered_lines(path):
        try:
            rows.append(read_row(line, think_after, number))
        except ValueError as e:
            raise ValueError(f"{path}, line {number}: {e}") from e
    if not rows:
        raise ValueError(f"{path} is empty: there is no row in it")
    with_level = [row for row in rows if row.level]
    if 0 < len(with_level) < len(rows):
        line = next(row.line for row in rows if not row.level)
        raise ValueError(f"{path}, line {line}: it has no `level`, and other rows have one")
    return rows


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank. Raises ValueError for what is no text."""
    with open(path, "rb") as f:
        for number, line in enumerate(lines(blocks(f, encoding_of(path))), 1):
            if line.strip():
                yield number, line


def read_row(line: str, think_after: str, number: int) -> Row:
    """Raises ValueError for a line that is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ValueError("it is no JSON") from e
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object, as in {\"prompt\": ..., \"answer\": ...}")
    answer = first_of(row, ANSWER)
    if answer is None:
        raise ValueError(f"it has none of {', '.join(ANSWER)}")
    # (json reads NaN, which is no number)
    if type(answer) is int or type(answer) is float and math.isfinite(answer):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError("its answer is empty" if answer in ("", None) or isinstance(answer, str)
                         else "its answer is neither a text nor a number")
    level = row.get("level", 0)
    if type(level) is not int or (level < 1 and "level" in row) or level > 10_000:
        raise ValueError(f"its level is {level!r}, not a whole number from 1 on")
    return Row(pieces_of(row, think_after), answer.strip(), level, number)


def first_of(row: dict, names: tuple[str, ...]):
    return next((row[name] for name in names if row.get(name) is not None), None)


def pieces_of(row: dict, think_after: str) -> list[str]:
    """The prompt of a row in pieces. Raises ValueError where it has none, or other steps."""
    prompt, steps = first_of(row, PROMPT), row.get("steps")
    if steps is not None and not (isinstance(steps, list) and steps and all(
            isinstance(x, str) and x.strip() for x in steps)):
        raise ValueError("its steps are no list of texts")
    if prompt is None and steps is None:
        raise ValueError(f"it has none of {', '.join(PROMPT)}, and no steps")
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
        raise ValueError("its prompt is empty" if isinstance(prompt, str) else
                         "its prompt is no text")
    if steps is None:
        return cut(prompt, think_after)
    steps = [step if i == 0 or step[0].isspace() else f" {step}" for i, step in enumerate(steps)]
    whole = "".join(steps)
    prompt = whole if prompt is None else prompt.strip()
    if not squeezed(prompt).startswith(squeezed(whole)):
        raise ValueError("its prompt does not begin with its steps, which are the prompt in pieces "
                         "(a chain of reasoning would give the answer away)")
    rest = prompt[matched(prompt, whole):]
    return [*steps, rest] if think_after == "steps" else cut(whole + rest, think_after)


def squeezed(text: str) -> str:
    return "".join(text.split())


def matched(text: str, start: str) -> int:
    """How many characters of a text are this start, but for white space."""
    left, i = len(squeezed(start)), 0
    while left:
        left -= not text[i].isspace()
        i += 1
    return i


def cut(prompt: str, think_after: str) -> list[str]:
    """A prompt in pieces. After each but the last one a thought may stand."""
    prompt = prompt.rstrip()
    if think_after == "end":
        return [prompt, ""]
    if think_after != "steps":
        ends = [m.end() for m in re.finditer(re.escape(think_after), prompt)]
    else:
        ends = [m.start() for m in SENTENCE.finditer(prompt)]
    # without any place of that kind, before the answer
    ends = [end for end in ends if 0 < end] or [len(prompt)]
    return [prompt[a:b] for a, b in zip([0, *ends], [*ends, len(prompt)])]


def encode(tokenizer: Tokenizer, pieces: list[str]) -> tuple[list[int], list[int]]:
    """A prompt's ids, and after which of them a thought may stand."""
    ids, slots = [], []
    for i, piece in enumerate(pieces):
        ids += tokenizer.encode(piece)
        slots += [len(ids) - 1] if i < len(pieces) - 1 and ids else []
    return ids, slots


# As a source of text

class Task(Source):
    """A .jsonl file of prompts and answers. Of each level the last 5 % are held out, or all of
    another file is. own: its language is its own ids, not all of GPT-2's. Raises ValueError."""
    by_row = says = True
    # greedy thoughts may be right at 40 symbols while drawn ones, which teach, are not at 10
    enough, leap = 0.95, 2

    def __init__(self, path: str, text_ids: list[int] | None, settings, own: bool = False):
        self.name, self.branches = path, settings.approach == "next_token"
        self.counts = "text" if self.branches else "steps"
        self.moves = OFFSETS if settings.from_scratch else 1
        # answers may have mistakes in them, and harder rows go on to teach what easier ones did
        self.patience = max(300, settings.steps // 5)
        rows = read_rows(Path(path), settings.think_after)
        self.digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if settings.think_after not in THINK_AFTER and not any(
                settings.think_after in "".join(row.pieces) for row in rows):
            raise ValueError(f"--think_after {settings.think_after!r} stands in no prompt of {path}"
                             f", nor is it one of {', '.join(THINK_AFTER)}")
        other = settings.eval_data and read_rows(Path(settings.eval_data), settings.think_after)
        if own:
            text_ids = ids_used(rows + (other or []), of_new_model(settings))
        self.text_ids, self.tokenizer = text_ids, Tokenizer(text_ids)
        examples = self._encoded(rows, path)
        if other:
            self.train, self.eval = examples, self._encoded(other, settings.eval_data)
        else:
            self.train, self.eval = last_of_each_level(examples)
        if not self.train or not self.eval:
            raise ValueError(f"{path} has {len(rows)} rows: too few to hold out the last 5 %")
        self.by_level: dict[int, list[Example]] = {}
        for x in self.train:
            self.by_level.setdefault(x.level, []).append(x)
        self.stages = max(self.by_level) if len(self.by_level) > 1 else 0
        self.levels = max(1, *(x.level for x in self.eval))
        if settings.from_scratch and not settings.window:
            # held-out rows may be longer. Where all is seen, no position may be new to the model
            longest = (max(self.places(x, settings) for x in xs) for xs in (self.eval, self.train))
            self.moves = max(OFFSETS, 1 + next(longest) - next(longest))
        # With two thoughts in the easiest rows neither can be learnt first, as the second one reads
        # the first. So their level has two stages, in the first of which the answer sees both
        easiest = min(len(x.slots) for x in self.by_level[min(self.by_level)])
        thinks = settings.think == "forced" and settings.thoughts != "none" and not self.branches
        wide = self.stages and thinks and easiest > settings.window > 0
        self.first_window = easiest if wide else 0  # of the first stage; 0: as in the rules
        self.stages += self.first_window > 0

    def _encoded(self, rows: list[Row], path: str) -> list[Example]:
        end = end_of_answer(self.text_ids)
        out = []
        for row in rows:
            try:
                ids, slots = encode(self.tokenizer, row.pieces)
                answer = self.tokenizer.encode(f" {row.answer}") + end
            except ValueError as e:
                raise ValueError(f"{path}, line {row.line}: {e}") from e
            if self.branches:  # a branch before each token of the answer
                slots = [len(ids) - 1 + i for i in range(len(answer))]
            out.append(Example(ids + answer, len(ids), slots, row.level, row.line))
        return out

    def batch(self, rows: list[Example], **more) -> Text:
        """Rows side by side, padded at the end."""
        R, L = len(rows), max(len(x.ids) for x in rows)
        P = min((x.start if self.branches else x.slots[0] + 1) for x in rows)
        ids, is_open = np.zeros((R, L), np.int64), np.zeros((R, L), bool)
        answer, real = np.zeros((R, L), bool), np.zeros((R, L), bool)
        for r, x in enumerate(rows):
            ids[r, :len(x.ids)], real[r, :len(x.ids)] = x.ids, True
            answer[r, x.start:len(x.ids)], is_open[r, x.slots] = True, True
        level = np.array([max(x.level, 1) for x in rows])[:, None] * answer
        ids, is_open, pays, level, real = map(torch.from_numpy, (
            ids, is_open, answer[:, P:].astype(np.float32), level[:, P:], real[:, P:]))
        return Text(ids, P, pays, level, open=is_open, real=real, **more)

    def text(self, settings, step: int, stage: int) -> Text:
        """Half of the rows are of the stage's own level, the others of any level up to it."""
        (level, window), B = self.level_and_window(stage), settings.prompts
        rng = seeded(settings.seed, step, "train")
        if level:  # --prompts is meant for the longest rows: short ones take more contexts
            longest = [max(len(x.ids) for x in self.train if x.level <= n)
                       for n in (level, max(self.by_level))]
            B = B * longest[1] // longest[0]
            B = -(-B // settings.processes) * settings.processes
        rows = self.draw(rng, B, level) if level else [
            self.train[i] for i in rng.integers(len(self.train), size=B)]
        return self.batch(rows, offset=int(rng.integers(self.moves)), stage=stage, window=window)

    def level_and_window(self, stage: int) -> tuple[int, int]:
        """Of a stage; a window of 0: as in the rules."""
        if not stage:
            return 0, 0
        level = stage - (self.first_window > 0)
        # (levels may begin above 1)
        return max(level, min(self.by_level)), self.first_window if stage == 1 else 0

    def draw(self, rng: np.random.Generator, n: int, level: int) -> list[Example]:
        below = [x for number, rows in self.by_level.items() if number <= level for x in rows]
        top = self.by_level.get(level) or below
        pools = [top if i % 2 == 0 else below for i in range(n)]
        return [pool[rng.integers(len(pool))] for pool in pools]

    def take(self, rows, L, rng, prompt=0, held_out=False):
        """One row of the file after another."""
        pool, out = self.eval if held_out else self.train, []
        for _ in range(rows):
            ids: list[int] = []
            while len(ids) < L:
                ids += pool[rng.integers(len(pool))].ids
            out.append(ids[:L])
        return torch.tensor(out)

    def think_after(self, approach, think):
        return []  # each text says it place by place

    def a_prompt(self) -> str:
        """The shortest held-out one."""
        x = min(self.eval, key=lambda x: x.start)
        return self.tokenizer.decode(x.ids[:x.start])

    def longest(self, settings, budget):
        longest = self.places(self.longest_row(settings), settings)
        if settings.window:
            return longest + self.moves - 1
        return max(longest, max(self.places(x, settings) for x in self.train) + self.moves - 1)

    def longest_row(self, settings) -> Example:
        return max(self.train + self.eval, key=lambda x: self.places(x, settings))

    def places(self, x: Example, settings) -> int:
        """How many a row takes, with its thoughts; a branch holds those of one token."""
        K = settings.max_thoughts if settings.thoughts != "none" else 0
        return len(x.ids) + K * (1 if self.branches else len(x.slots))

    def whose_longest(self, settings):
        return f"{self.name}, line {self.longest_row(settings).line}: this row"

    def quiz(self, stage, rows, rng):
        level, window = self.level_and_window(stage)
        pool = self.by_level.get(level) or self.draw(rng, rows, level)
        return self.batch([pool[rng.integers(len(pool))] for _ in range(rows)], window=window)

    def questions(self, each, seed):
        rng, most = seeded(seed, 0, "eval"), each * max(self.levels, 4)
        which = rng.permutation(len(self.eval))[:most]
        return self.batch(sorted((self.eval[i] for i in which), key=lambda x: (x.level, x.line)))


def pieces_for(prompt: str | list[str] | dict, think_after: str) -> list[str]:
    """The pieces of a prompt, of steps, or of a whole row. Raises ValueError."""
    row = {str: {"prompt": prompt}, list: {"steps": prompt}}.get(type(prompt), prompt)
    return pieces_of(row, think_after)


def answer_lines(path: Path, out: Path, say: Callable) -> None:
    """Each line of a file, and what `say` makes of its prompt, or its steps: a sample.Sample.
    `right`: is `output` its answer, where it has one? Raises ValueError, OSError."""
    done = []
    for n, line in numbered_lines(path):
        try:
            row = json.loads(line)
            prompt = row if row.get("steps") else first_of(row, PROMPT)
            if not prompt:
                raise ValueError(f"it has none of {', '.join(PROMPT)}, and no steps")
            s = say(prompt)
        except (ValueError, AttributeError, TypeError) as e:
            raise ValueError(f"{path}, line {n}: {e}") from e
        row |= {"output": s.output.strip(), "thoughts": [name for name, _ in s.thoughts],
                "meanings": s.meanings, "p_think": s.p_think}
        if (wanted := first_of(row, ANSWER)) is not None:
            row["right"] = row["output"] == str(wanted).strip()
        done.append(as_json(row))
    write_whole(out, "".join(f"{x}\n" for x in done).encode())


def end_of_answer(text_ids: list[int] | None) -> list[int]:
    """The id that ends an answer; none in a language without it."""
    if text_ids is None:
        return [END_OF_TEXT]
    return [text_ids.index(END_OF_TEXT)] if END_OF_TEXT in text_ids else []


def ids_used(rows: list[Row], gpt2: Tokenizer) -> list[int]:
    """GPT-2's ids that occur in these rows."""
    used = {END_OF_TEXT}
    for row in rows:
        used.update(i for piece in [*row.pieces, f" {row.answer}"] for i in gpt2.encode(piece))
    return sorted(used)


def last_of_each_level(rows: list[Example]) -> tuple[list[Example], list[Example]]:
    """-> training, held out. A file that is sorted by level still holds out all of them."""
    count, train, held_out = Counter(x.level for x in rows), [], []
    seen: Counter = Counter()
    for x in rows:
        seen[x.level] += 1
        n = count[x.level]
        last = seen[x.level] > n - max(1, round(n / 20)) and n > 1
        (held_out if last else train).append(x)
    return train, held_out


# What --data may be

def read_spec(data: str) -> dict | None:
    """`cups m=5 idle=0.4` -> {"m": 5, "idle": 0.4}; None: these data are no game. Raises
    ValueError for what no game of cups has."""
    game, *pairs = data.split() or [""]  # a path may be "", which is no game either
    if game != "cups":
        return None
    spec = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            spec[key] = CUPS[key](value)
        except (KeyError, ValueError) as e:
            raise ValueError(f"--data cups takes {', '.join(f'{k}=' for k in CUPS)} and not "
                             f"{pair!r}, as in --data \"cups m=5 idle=0.4\"") from e
    return spec


def write_spec(spec: dict) -> str:
    return " ".join(["cups", *(f"{k}={v}" for k, v in spec.items())])


def kind_of(data: str) -> str:
    """"cups", "task" or "text": which presets hold. Raises ValueError for what is no file."""
    if read_spec(data) is not None:
        return "cups"
    if webtext_part(data) is not None:
        return "text"
    check_path(data)
    if Path(data).suffix.lower() != ".jsonl":
        return "text"
    for _, line in numbered_lines(data):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            is_text = "text" in row or not row.keys() & {*PROMPT, *ANSWER, "steps"}
            return "text" if is_text else "task"
    return "text"


def webtext_part(data: str) -> str | None:
    """The part of WebText to train on; None: these data are not WebText. Raises ValueError for
    another part. The small one is the default, since a default run reads few documents."""
    name, *words = data.split() or [""]  # a path may be ""
    if name != "webtext":
        return None
    if words not in ([], ["train"]):
        raise ValueError(f"--data {data!r}: there is webtext, which trains on 5,000 documents, and "
                         '"webtext train" with 250,000, a download of about 1 GB')
    return "train" if words else "valid"


def fitted(data: str, settings) -> dict:
    """The settings of a task that follow from its rows. Raises ValueError.

    window: one step. So a thought sees its own step and the thought before it, and the answer sees
    the question and the last thought. What lies further back has to be thought; with more in sight
    a new model would answer short prompts without its thoughts.
    """
    task = Task(data, None, settings, own=settings.from_scratch)
    rows = task.train + task.eval
    prompts = {tuple(x.ids[:x.start]) for x in task.train}
    if seen := sum(tuple(x.ids[:x.start]) in prompts for x in task.eval):
        print(f"{seen} of {len(task.eval)} held-out prompts stand among the training rows as well: "
              "--eval_data names a file of others")
    return {"window": 0 if settings.think_after == "end" or task.branches else 1,
            "budget": max(len(x.slots) for x in rows) * settings.max_thoughts,
            "prompt_tokens": max(x.start for x in rows),
            "new_tokens": max(len(x.ids) - x.start for x in rows),
            "curriculum": "on" if task.stages else "off"}


def open_source(data: str, text_ids: list[int] | None = None, settings=None,
                own: bool = False) -> Source:
    """`cups ...`, `webtext ...` or a path. text_ids: of the model that reads it. own: for a new
    model, whose rows are the ids of the file. Raises ValueError, one line, where it can't be had.
    """
    spec = read_spec(data)
    if spec is not None:
        return Cups(**spec)
    if settings is not None and kind_of(data) == "task":
        return Task(data, text_ids, settings, own)
    tokenizer, part = Tokenizer(text_ids), webtext_part(data)
    if part is not None:
        train, test = (download(WEBTEXT.format(name), CACHE / f"webtext.{name}.jsonl")
                       for name in (part, "test"))
        return TextFile(train, tokenizer, test, ids_after(tokenizer, settings))
    if own:
        tokenizer = of_new_model(settings)
        file = TextFile(data, tokenizer)
        used = np.unique(np.concatenate([file.train, file.eval])).tolist()
        ids = tokenizer.text_ids or range(tokenizer.V)
        tokenizer = Tokenizer([ids[row] for row in used])
    return TextFile(data, tokenizer, after=ids_after(tokenizer, settings))


def ids_after(tokenizer: Tokenizer, settings) -> list[int] | None:
    """After which tokens of a text may a thought stand? None: all. Raises ValueError."""
    # (the settings may be a task's, or from before texts had this flag)
    if settings is None or settings.think_after in ("anywhere", *THINK_AFTER):
        return None
    if settings.think_after == "word" and not tokenizer.by_byte:
        raise ValueError("--think_after word is for --model bytes: a word of GPT-2's begins with "
                         "its space, so only the next token shows where it ends")
    ends = re.compile(ENDS.get(settings.think_after, re.escape(settings.think_after) + r"\Z"))
    found = [i for i, word in enumerate(tokenizer.words()) if ends.search(word)]
    if not found:
        raise ValueError(f"--think_after {settings.think_after!r}: no single token ends so, nor "
                         f"is it one of anywhere, {', '.join(ENDS)}")
    return found


def of_new_model(settings) -> Tokenizer:
    """Its rows are found among these ids, which are GPT-2's own."""
    by_byte = settings.model.startswith("bytes:")
    return Tokenizer([*range(BYTES), END_OF_TEXT] if by_byte else None)
