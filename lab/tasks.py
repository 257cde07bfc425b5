"""Files for --data: tasks that are generated, and the files of others, one row a line.

    python -m lab.tasks stories stories.jsonl              # sums in one to eight sentences
    python -m lab.tasks parity parity.jsonl                # and parity_test.jsonl, for --eval_data
    python -m lab.tasks gsm8k math.jsonl --source train.jsonl
    python -m lab.tasks bbh swaps.jsonl --source tracking_shuffled_objects_three_objects.json

The regular tasks are those of "Neural Networks and the Chomsky Hierarchy" (arXiv 2207.02098). Each
symbol is a step, and the level is their number: 1 to 40 to train on, 41 to 500 to test.

    parity               is the number of b odd or even?
    even_pairs           the same of changes from a to b and back, so: are first and last alike?
    cycle_navigation     five places in a ring, moves stay, next and back: where does it end?
    modular_arithmetic   digits with + - and *, products first: the value modulo 5

Others are downloaded by you, and read from --source in their own format: tangrams, of SCONE, or
plain_tangrams, its instructions that by their words need no earlier one; babi; gsm8k; icot; and
bbh, the tracking_shuffled_objects of BIG-Bench Hard. Its stories are for evaluation only, in
OUT_test. OUT has new ones, with their people, frames and things. chess reads games in PGN. It makes
a text, not a task: one line of moves for each game. A zip is read as the one file in it.

Left out on purpose: downloads; chains of reasoning, which are dropped. Knows settings.py,
command.py.
"""
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import command
from settings import Parser, at_least

TRAINED, TESTED = (1, 40), (41, 500)  # lengths of the regular tasks
RING = "red green blue white black".split()  # the five places
# In PGN. Between two games there is a tag or a result
TAG = re.compile(r'^\[\w+ ".*"\]\s*$', re.MULTILINE)
COMMENT = re.compile(r"^%.*$|\{[^}]*\}|;.*$|\$\d+|[!?]+", re.MULTILINE)
RESULT = re.compile(r"(?<!\S)(?:1-0|0-1|1/2-1/2|\*)(?!\S)")
NUMBER = re.compile(r"(?<!\S)\d+(?:\.+|(?=\s))")  # of a move
Symbols = tuple[list[str], str]  # symbols, and what their whole is
LETTERS = "ABCDEFG"  # of options
LAST = "Then", "Finally"  # what a last move begins with, if it isn't the first
SWAP = re.compile(r"(\w+), (\w+) and (\w+) (.*)")
ASKED = re.compile(r"(At the end of [^,]*, )(\w+)(.*)")
BACK = re.compile(r"\b(it|back|again|step|undo|repeat|same|previous)\b", re.IGNORECASE)


# Generated

def parity(rng: np.random.Generator, n: int) -> Symbols:
    symbols = rng.choice(["a", "b"], n).tolist()
    return symbols, "odd" if symbols.count("b") % 2 else "even"


def even_pairs(rng: np.random.Generator, n: int) -> Symbols:
    symbols = rng.choice(["a", "b"], n).tolist()
    changes = sum(a != b for a, b in zip(symbols, symbols[1:]))
    return symbols, "odd" if changes % 2 else "even"


def cycle_navigation(rng: np.random.Generator, n: int) -> Symbols:
    moves = rng.integers(-1, 2, n)
    return [("stay", "next", "back")[m] for m in moves], RING[int(moves.sum()) % 5]


def modular_arithmetic(rng: np.random.Generator, n: int) -> Symbols:
    """Of n symbols; an even number takes one less, as digits and signs take turns."""
    digits = rng.integers(5, size=(n + 1) // 2).tolist()
    signs = rng.choice(["+", "-", "*"], len(digits) - 1).tolist()
    terms, plus = [digits[0]], [1]  # sums of products
    for sign, digit in zip(signs, digits[1:]):
        if sign == "*":
            terms[-1] *= digit
        else:
            terms, plus = [*terms, digit], [*plus, 1 if sign == "+" else -1]
    symbols = [str(digits[0])]
    for sign, digit in zip(signs, digits[1:]):
        symbols += [sign, str(digit)]
    return symbols, str(sum(a * b for a, b in zip(plus, terms)) % 5)


REGULAR = {f.__name__: f for f in (parity, even_pairs, cycle_navigation, modular_arithmetic)}


def regular(name: str, rows: int, seed: int, lengths: tuple[int, int]) -> Iterator[dict]:
    """Rows of a regular task, of all lengths alike."""
    rng = np.random.default_rng([seed, lengths[0]])
    for _ in range(rows):
        symbols, answer = REGULAR[name](rng, int(rng.integers(lengths[0], lengths[1] + 1)))
        yield {"steps": symbols, "answer": answer, "level": len(symbols)}


def stories(rows: int, seed: int, most: int = 5, levels: int = 8) -> Iterator[dict]:
    """Somebody has 0 to `most` of something, and one or two come or go in each sentence. The level
    is the number of sentences before the question."""
    rng = np.random.default_rng(seed)
    people = {"Anna": "She", "Ben": "He", "Clara": "She", "David": "He"}
    for _ in range(rows):
        name = str(rng.choice(list(people)))
        thing = str(rng.choice(["apples", "coins", "books", "cards"]))
        level, has = int(rng.integers(1, levels + 1)), int(rng.integers(most + 1))
        facts = [f"{name} has {has} {thing[:-1] if has == 1 else thing}."]
        while len(facts) < level:
            k = int(rng.choice([-2, -1, 1, 2]))
            if 0 <= has + k <= most:
                has += k
                facts.append(f"{people[name]} {'finds' if k > 0 else 'loses'} {abs(k)}.")
        yield {"prompt": " ".join([*facts, "How many?"]), "answer": str(has),
               "level": len(facts)}


# Read

class Swaps(NamedTuple):
    """A story in which people swap things. Where all of them are known, thing i is that of person i
    at first, and option i."""
    intro: str  # says who has what
    moves: list[str]
    question: str  # asks what somebody has in the end, or each, by name
    people: list[str]  # who swap or are asked for, in the order of the intro
    things: list[str]
    answer: str  # "B": the second option; of all, in the order of names, "B A C"

    @property
    def row(self) -> dict:
        """One thought after the intro and after each move. Level: their number."""
        steps = [self.intro, *self.moves]
        options = "".join(f"\n({a}) {x}" for a, x in zip(LETTERS, self.things))
        prompt = " ".join([*steps, f"{self.question}\nOptions:{options}"])
        return {"prompt": prompt, "steps": steps, "answer": self.answer, "level": len(steps)}

    @property
    def frame(self) -> str:
        """The intro without people and things: stories of one frame can lend each other things."""
        return re.sub("|".join(map(re.escape, [*self.people, *self.things])), "_", self.intro)

    @property
    def known(self) -> bool:
        """Does the intro say of each person which thing is theirs?"""
        return len(self.people) == len(self.things) and all(
            owner(*x).search(self.intro) for x in zip(self.people, self.things))


def owner(person: str, thing: str) -> re.Pattern:
    """Finds in an intro that this person has this thing: both in one clause."""
    return re.compile(rf"(\b{re.escape(person)}\b[^.,:]*?\b){re.escape(thing)}\b")


def swaps_of(item: dict) -> Swaps:
    """{"input": story and options, "target": "(B)"}. Raises ValueError for any other story."""
    story, _, options = item["input"].partition("\nOptions:")
    intro, *swaps = re.split(r"\s+(?=First, |Then, |Finally, |At the end )", story.strip())
    things = re.findall(r"\(\w\) (.+?)\.?\s*$", options, re.MULTILINE)
    asked = ASKED.fullmatch(swaps[-1]) if swaps else None
    moves = [SWAP.fullmatch(x) for x in swaps[:-1]]
    if not (asked and moves and all(moves) and 0 < len(things) <= len(LETTERS)):
        raise ValueError("it is no story of people who swap things, with options")
    found = {name: re.search(rf"\b{name}\b", intro)
             for name in [asked[2], *(m[i] for m in moves for i in (2, 3))]}
    if None in found.values():
        raise ValueError("somebody in it has not been introduced")
    out = Swaps(intro, swaps[:-1], swaps[-1], sorted(found, key=lambda x: found[x].start()), things,
                item["target"].strip("()"))
    if any(m[2] == m[3] for m in moves):
        raise ValueError("somebody in it swaps with themselves")
    has = list(range(len(things)))
    for a, b in [(out.people.index(m[2]), out.people.index(m[3])) for m in moves if out.known]:
        has[a], has[b] = has[b], has[a]
    if out.known and LETTERS[has[out.people.index(asked[2])]] != out.answer:
        raise ValueError("its options are not in the order of its people")
    return out


def retold(old: Swaps, lent: list[str], n: int, rng: np.random.Generator) -> Swaps:
    """The same frame, with things that are lent. n moves and a question are drawn.

    People are introduced in any order, so the intro may say any order that moves lead to. Then
    even the first move's thought has an order to read, as all later ones have.

    Half of the moves are swaps; else all pass theirs on by the alphabet, or nothing happens. By
    swaps alone, thoughts after one move would mean orders that none after two can mean. And two
    questions of three ask for all: then all that a thought says pays.
    """
    intro, names = old.intro, old.people
    things, swap = rng.permutation(lent)[:len(names)].tolist(), SWAP.match(old.moves[0])[4]
    for person, was, now in zip(names, old.things, things):
        intro = owner(person, was).sub(lambda found: found[1] + now, intro, count=1)
    order = rng.permutation(names).tolist()
    intro = re.sub(rf"\b({'|'.join(names)})\b", lambda x: order[names.index(x[0])], intro)
    people, moves = sorted(names), []
    has = [order.index(x) for x in people]  # whose thing, as introduced, each of them has
    for lead in ["First", *["Then"] * (n - 2), LAST[rng.integers(2)]][:n]:
        a, b = rng.permutation(len(names))[:2].tolist()
        match rng.integers(6):
            case 0:
                moves.append(f"{lead}, nothing happens.")
            case 1:
                has = has[1:] + has[:1]
                moves.append(f"{lead}, all pass theirs back by name.")
            case 2:
                has = has[-1:] + has[:-1]
                moves.append(f"{lead}, all pass theirs on by name.")
            case _:
                has[a], has[b] = has[b], has[a]
                moves.append(f"{lead}, {people[a]} and {people[b]} {swap}")
    who = [int(rng.integers(len(names)))] if rng.integers(3) == 0 else range(len(names))
    asked = people[who[0]] if len(who) == 1 else "each by name"
    question = ASKED.sub(lambda found: found[1] + asked + found[3], old.question)
    return Swaps(intro, moves, question, order, things, " ".join(LETTERS[has[i]] for i in who))


def bbh(text: str) -> Iterator[dict]:
    """{"examples": [stories]}: the published ones, as rows. Raises ValueError for others."""
    yield from (x.row for x in published(text))


def published(text: str) -> Iterator[Swaps]:
    for number, item in enumerate(json.loads(text)["examples"], 1):
        try:
            yield swaps_of(item)
        except ValueError as e:
            raise ValueError(f"example {number} of --source: {e}") from e


def more_bbh(text: str, rows: int, seed: int) -> Iterator[dict]:
    """New stories, of no move up to the most in the file, none of which is in it. People and frame
    are those of a published one, things come from all stories of that frame. Raises ValueError
    where no other ones can be found."""
    rng, given = np.random.default_rng(seed), list(published(text))
    old = [x for x in given if x.known]
    if not old:
        raise ValueError("in none of its stories it is known what each person has")
    lent: dict[str, set[str]] = {}
    for x in old:
        lent.setdefault(x.frame, set()).update(x.things)
    there, most = {x.row["prompt"] for x in given}, max(len(x.moves) for x in old)
    for i in range(rows):
        for _ in range(1000):
            x = old[rng.integers(len(old))]
            row = retold(x, sorted(lent[x.frame]), i % (most + 1), rng).row
            if row["prompt"] not in there:
                break
        else:
            raise ValueError(f"no story of {i % (most + 1)} moves is left that is not in it")
        yield row


def tangrams(text: str) -> Iterator[dict]:
    """[{"initial_env": "1:C 2:B ...", "utterances": [{"instruction", "after_env"}]}]: a row for the
    figures after each instruction. The last one takes the place of a question: no thought follows
    it."""
    for said, figures in spoken(text):
        for n in range(1, len(said) + 1):
            yield told(figures[0], said[:n], figures[n])


def plain_tangrams(text: str) -> Iterator[dict]:
    """The same of each stretch in which no instruction has a word of BACK, as in "put it back". It
    begins with the figures before it. Level: its length."""
    for said, figures in spoken(text):
        for a in range(len(said)):
            for b in range(a, len(said)):
                if BACK.search(said[b]):
                    break
                yield told(figures[a], said[a:b + 1], figures[b + 1])


def spoken(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Of each sequence its instructions, and the figures before and after each of them."""
    def state(env: str) -> str:
        figures = [x.split(":")[-1] for x in env.split()]
        return " ".join(x for x in figures if x != "_") or "nothing"
    for x in json.loads(text):
        said = [u["instruction"].strip() + "." for u in x["utterances"]]
        yield said, [state(env) for env in (x["initial_env"],
                                            *(u["after_env"] for u in x["utterances"]))]


def told(before: str, said: list[str], after: str) -> dict:
    steps = [f"{before}.", *said]
    return {"prompt": " ".join(steps), "steps": steps[:-1], "answer": after, "level": len(said)}


def babi(text: str) -> Iterator[dict]:
    """Numbered lines; a question has tabs before its answer. Level: sentences before it."""
    facts: list[str] = []
    for line in text.splitlines():
        number, _, rest = line.partition(" ")
        facts = [] if number == "1" else facts
        question, *answer = rest.split("\t")
        if answer:
            yield {"prompt": " ".join([*facts, question.strip()]), "steps": list(facts),
                   "answer": answer[0].strip(), "level": len(facts)}
        elif rest.strip():
            facts.append(rest.strip())


def gsm8k(text: str) -> Iterator[dict]:
    """{"question", "answer": "chain #### 72"} a line. Level: lines of the chain."""
    for line in text.splitlines():
        x = json.loads(line)
        chain, _, answer = x["answer"].rpartition("####")
        yield {"prompt": x["question"].strip(), "answer": answer.strip().replace(",", ""),
               "level": max(1, len(chain.strip().splitlines()))}


def icot(text: str) -> Iterator[dict]:
    """question||chain #### answer, a line."""
    for line in text.splitlines():
        prompt, _, rest = line.partition("||")
        yield {"prompt": prompt.strip(), "answer": rest.rpartition("####")[2].strip()}


def chess(text: str) -> Iterator[dict]:
    """Games in PGN: of each its moves, as {"text": "e4 e5 Nf3\\n"}. They are shuffled, as the last
    rows of a text are held out. Raises ValueError where there are none."""
    bare = COMMENT.sub(" ", TAG.sub(" * ", text))
    while (fewer := re.sub(r"\([^()]*\)", " ", bare)) != bare:  # variations, the innermost first
        bare = fewer
    played = [NUMBER.sub(" ", game).split() for game in RESULT.split(bare)]
    games = [" ".join(moves) for moves in played if moves]
    if not games or RESULT.search(bare) is None:
        raise ValueError("--source has no games in PGN: no moves, or no tag and no result")
    for i in np.random.default_rng(0).permutation(len(games)):
        yield {"text": f"{games[i]}\n"}


READ: dict[str, Callable[[str], Iterator[dict]]] = {
    f.__name__: f for f in (bbh, tangrams, plain_tangrams, babi, gsm8k, icot, chess)}


def write(path: Path, rows: Iterable[dict]) -> int:
    """-> how many. Raises OSError."""
    lines = [json.dumps(row) + "\n" for row in rows]
    command.write_whole(path, "".join(lines).encode())
    return len(lines)


def rows_to_test(out: Path) -> Path:
    """The file that is tested on, next to the one that is trained on."""
    return out.with_name(f"{out.stem}_test{out.suffix}")


def text_of(path: Path, errors: str = "strict") -> str:
    """Of a file, or of the one file in a zip. Raises OSError, ValueError."""
    if not zipfile.is_zipfile(path):
        return path.read_text(encoding="utf-8-sig", errors=errors)
    try:
        with zipfile.ZipFile(path) as z:
            files = [x for x in z.infolist() if not x.is_dir()]
            if len(files) == 1:
                return z.read(files[0]).decode("utf-8-sig", errors)
    except (zipfile.BadZipFile, RuntimeError) as e:  # damaged, or locked by a password
        raise ValueError(f"--source {path} cannot be unzipped: {e}") from e
    raise ValueError(f"--source {path} holds {len(files)} files: unzip it and name one")


def make(name: str, out: Path, rows: int = 2000, seed: int = 0,
         source: Path | None = None) -> dict[Path, int]:
    """Write the files of a task -> how many rows each has. source: the file that one of READ needs.
    Raises OSError, and ValueError or what comes of an unknown key where it is of another kind."""
    if name in READ:
        # people's names may be in Latin-1; they stand in tags, which are dropped
        text = text_of(source, "replace" if name == "chess" else "strict")
        of_file = [*READ[name](text)]  # before anything is written
        if name != "bbh":
            return {out: write(out, of_file)}
        return {out: write(out, more_bbh(text, rows, seed)),
                rows_to_test(out): write(rows_to_test(out), of_file)}
    if name == "stories":
        return {out: write(out, stories(rows, seed))}
    return {path: write(path, regular(name, count, seed, lengths)) for path, count, lengths in (
        (out, rows, TRAINED), (rows_to_test(out), max(1, rows // 10), TESTED))}


def main() -> None:
    p = Parser(prog="lab.tasks", description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("name", metavar="NAME", choices=["stories", *REGULAR, *READ],
                   help=", ".join(["stories", *REGULAR, *READ]))
    p.add_argument("out", type=Path, metavar="OUT", help="the .jsonl file to write")
    p.add_argument("--source", type=Path, help="the file that is read, or a zip of it")
    p.add_argument("--rows", type=int, default=2000, help="of what is made (2000)")
    p.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    args = p.parse_args()
    try:
        at_least("rows", args.rows, 1), at_least("seed", args.seed, 0)
        if (args.name in READ) != (args.source is not None):
            raise ValueError(f"{args.name} is read from --source FILE" if args.name in READ else
                             f"{args.name} is generated: it has no --source")
        command.check_rows(args.out, args.source)
        if args.name in REGULAR or args.name == "bbh":
            command.check_rows(rows_to_test(args.out), args.source)
        made = make(args.name, args.out, args.rows, args.seed, args.source)
    except (LookupError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as e:
        if args.source is None:
            raise
        p.error(f"{args.source} is no file of {args.name} ({type(e).__name__}: {e})")
    except (ValueError, OSError) as e:
        p.error(str(e))
    files = [*made]
    more = f" --eval_data {files[1]}" if len(files) > 1 else ""
    more += " --model bytes:1x128" if args.name == "chess" else ""
    print(f"{' and '.join(map(str, files))} hold{'s' * (len(files) == 1)} "
          f"{' and '.join(map(str, made.values()))} rows; "
          f"now try\n  python train.py --data {files[0]}{more}")


if __name__ == "__main__":
    command.run(main)
