"""lab.tasks: are the generated answers right, and are the files of others read as they are?"""
import json
import re
import zipfile

import pytest

from conftest import run, settings
from lab import tasks
from lab.tasks import READ, REGULAR, RING, regular, stories
from task import Task, open_source


def words(row):
    return [step.strip() for step in row["steps"]]


def by_hand(name, symbols):
    """The answer, worked out symbol by symbol."""
    if name == "parity":
        return ["even", "odd"][symbols.count("b") % 2]
    if name == "even_pairs":
        return ["odd", "even"][symbols[0] == symbols[-1]]
    if name == "cycle_navigation":
        at = 0
        for move in symbols:
            at = (at + {"stay": 0, "next": 1, "back": 4}[move]) % 5
        return RING[at]
    return str(eval("".join(symbols)) % 5)


@pytest.mark.parametrize("name", REGULAR)
def test_regular_tasks(name):
    """Guards the four tasks: every answer by a second way, all lengths, all answers."""
    rows = list(regular(name, 400, 0, (1, 40)))
    for row in rows:
        assert row["answer"] == by_hand(name, words(row)) and row["level"] == len(row["steps"])
    odd = name == "modular_arithmetic"  # digits and signs take turns
    assert {row["level"] for row in rows} == set(range(1, 41, 2 if odd else 1))
    answers = 5 if odd or name == "cycle_navigation" else 2
    assert len({row["answer"] for row in rows}) == answers
    assert all(row["level"] > 40 for row in regular(name, 9, 0, (41, 500)))


def test_stories():
    """Guards the sums: the answer is the sum, which never leaves 0 to 5."""
    for row in stories(200, 0):
        has, facts = 0, row["prompt"].split(". ")[:-1]
        for i, fact in enumerate(facts):
            n = next(int(w) for w in fact.split() if w.isdigit())
            has += -n if "loses" in fact else n
            assert 0 <= has <= 5 and i < 8
        assert row["answer"] == str(has) and row["level"] == len(facts)
        assert facts[0].endswith("s") != (facts[0].split()[2] == "1")  # "1 coin"


FOREIGN = {
    "bbh": (json.dumps({"examples": [{"input": "A has a hat, and B has a cap. First, A and B swap. "
                                      "Then, B and A swap. At the end of it, A has\nOptions:\n"
                                      "(A) hat.\n(B) cap.", "target": "(A)"}]}),
            [{"prompt": "A has a hat, and B has a cap. First, A and B swap. Then, B and A swap. At "
              "the end of it, A has\nOptions:\n(A) hat\n(B) cap", "answer": "A", "level": 3,
              "steps": ["A has a hat, and B has a cap.", "First, A and B swap.",
                        "Then, B and A swap."]}]),
    "tangrams": (json.dumps([{"initial_env": "1:C 2:B 3:_", "utterances": [
        {"instruction": "remove the first", "after_env": "1:B"},
        {"instruction": "and the other", "after_env": "1:_"}]}]),
        [{"prompt": "C B. remove the first.", "steps": ["C B."], "answer": "B", "level": 1},
         {"prompt": "C B. remove the first. and the other.", "steps": ["C B.", "remove the first."],
          "answer": "nothing", "level": 2}]),
    "plain_tangrams": (json.dumps([{"initial_env": "1:C 2:B", "utterances": [
        {"instruction": "switch positions", "after_env": "1:B 2:C"},
        {"instruction": "do It again", "after_env": "1:C 2:B"},
        {"instruction": "remove B", "after_env": "1:C"}]}]),
        [{"prompt": "C B. switch positions.", "steps": ["C B."], "answer": "B C", "level": 1},
         {"prompt": "C B. remove B.", "steps": ["C B."], "answer": "C", "level": 1}]),
    "babi": ("1 Mary went home.\n2 Where is Mary? \thome\t1\n3 She left.\n4 Where? \tout\t1 3\n"
             "1 Bob sat.\n2 Who? \tBob\t1\n",
             [{"prompt": "Mary went home. Where is Mary?", "steps": ["Mary went home."],
               "answer": "home", "level": 1},
              {"prompt": "Mary went home. She left. Where?", "answer": "out", "level": 2,
               "steps": ["Mary went home.", "She left."]},
              {"prompt": "Bob sat. Who?", "steps": ["Bob sat."], "answer": "Bob", "level": 1}]),
    "gsm8k": ('{"question": "How much?", "answer": "One <<1=1>>.\\nTwo.\\n#### 1,200"}\n',
              [{"prompt": "How much?", "answer": "1200", "level": 2}]),
    "icot": ("1 2 * 3||4 + 5 #### 6 3\n", [{"prompt": "1 2 * 3", "answer": "6 3"}]),
    "chess": ('[Event "a 1-0 b"]\n[Result "1-0"]\n\n1. e4 {a (b} e5 $1 2. Nf3 (2. f4 (2. d4 exd4) '
              'exf4)\n2... Nc6!? 3. O-O-O ; rest\n1-0\n\n[Event "no result"]\n\n1 a3 {two\n'
              '[%clk 1] lines} a6\n\n[Event "?"]\n\n1.d4 d5 *\n\n[Event "no moves"]\n\n*\n',
              [{"text": f"{x}\n"} for x in ("a3 a6", "d4 d5", "e4 e5 Nf3 Nc6 O-O-O")])}


@pytest.mark.parametrize("name", READ)
def test_files_of_others(name):
    """Guards the formats, on lines that were made here. Chains of reasoning are dropped."""
    text, wanted = FOREIGN[name]
    found = list(READ[name](text))
    assert (sorted(found, key=str) if name == "chess" else found) == wanted


def test_games_in_a_zip(tmp_path, monkeypatch, capsys):
    """A zip is read as the one file in it. All games are there, in an order of chance, and train.py
    takes them as a text that ends each line."""
    out, source = tmp_path / "out.jsonl", tmp_path / "games.zip"
    games = [f"a{i} b{i}" for i in range(1, 99)]
    with zipfile.ZipFile(source, "w") as z:
        text = "".join(f'[White "José"]\n\n1. {x} *\n\n' for x in games)
        z.writestr("games.pgn", text.encode("latin-1"))
    argv = ["chess", out, "--source", source]
    code, said, err = run(tasks.main, argv, monkeypatch, capsys)
    assert code == 0 and "holds 98 rows" in said and "--model bytes:1x128" in said, err
    rows = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert rows != sorted(rows) and sorted(rows) == sorted(f"{x}\n" for x in games)
    text = open_source(str(out), None, settings(data=str(out), model="bytes:1x8"), own=True)
    assert text.tokenizer.decode(text.train[:20].tolist()).startswith(rows[0])
    with zipfile.ZipFile(source, "a") as z:
        z.writestr("more.pgn", "1. e4 *")
    code, _, err = run(tasks.main, ["chess", tmp_path / "b.jsonl", *argv[2:]], monkeypatch, capsys)
    assert code == 2 and "holds 2 files" in err and err.count("\n") == 1


def test_more_stories_of_swaps():
    """Guards the answers of new stories, played with a dictionary; and none of them is in the file.

    Things are lent within a frame alone, and stand in the same order in intro and options. People
    come in any order there, and after the moves things are in any order too.
    """
    def item(ball, cap):
        return {"input": f"Ann, Bo, and Cy play. Ann has {ball}, Bo has a red hat, and Cy has "
                         f"{cap}.\nIt begins. First, Cy and Ann trade hats. Then, Bo and Cy trade "
                         f"hats. At the end of it, Bo has\nOptions:\n(A) {ball}\n(B) a red hat\n"
                         f"(C) {cap}", "target": "(A)"}
    other = {"input": "Di and Ed dance. Di has an A, and Ed has an B. First, Di and Ed turn. At "
                      "the end of all, Ed has\nOptions:\n(A) A\n(B) B", "target": "(A)"}
    text = json.dumps({"examples": [item("a ball", "a cap"), item("a bow", "a pin"), other]})
    there, new = list(READ["bbh"](text)), list(tasks.more_bbh(text, 200, 0))
    assert len(new) == 200 and not {x["prompt"] for x in there} & {x["prompt"] for x in new}
    seen, asked, kinds, back = set(), set(), set(), {" back by name": 1, " on by name": -1}
    leads = {(row["level"], re.search(r"(\w+), [^,]*$", row["steps"][-1])[1]) for row in new
             if row["level"] > 1}
    assert leads == {(2, "First"), (3, "Then"), (3, "Finally")}
    orders = set()
    for row in there + new:
        names = re.findall(r"(\w+) has an? ([\w ]+)[,.]", row["prompt"])
        options = dict(map(reversed, re.findall(r"\((\w)\) (?:an? )?(.*)", row["prompt"])))
        assert [x for _, x in names] == list(options)
        assert re.match(r"\w+", row["prompt"])[0] == names[0][0]
        things, people = dict(names), sorted(x for x, _ in names)
        for move in [x.split(", ", 1)[1] for x in row["steps"][1:]]:
            if swap := re.match(r"(\w+) and (\w+) (?:trade|turn)", move):
                a, b = swap.groups()
                things[a], things[b] = things[b], things[a]
            kinds.add(move if move.startswith(("all", "nothing")) else "a swap")
            if not swap and move != "nothing happens.":
                k = back[re.fullmatch("all pass theirs(.*)[.]", move)[1]]
                things = {x: things[people[(i + k) % len(people)]] for i, x in enumerate(people)}
        who = re.search(r", ([\w ]+) has\nOptions", row["prompt"])[1]
        wanted = people if who == "each by name" else [who]
        assert " ".join(options[things[x]] for x in wanted) == row["answer"]
        assert row["level"] == len(row["steps"])
        seen |= {(names[0][0], x) for x in options}
        asked.add((who, len(row["steps"])))
        orders.add((row["level"], row["answer"]))
    assert len(kinds) == 4  # a swap, back, on, nothing
    assert {("each by name", 1), ("Ann", 1), ("each by name", 3), ("Cy", 3)} <= asked
    assert all(len([x for n, x in orders if n == level and len(x) == 5]) == 6
               for level in (1, 2, 3))
    assert ("Ann", "pin") in seen and ("Di", "pin") not in seen


@pytest.mark.parametrize("story, said", [
    ("not ( True ) and True", "no story of people"),
    ("Al has a hat. First, Al and Jo-Ann swap. At the end of it, Al has\nOptions:\n(A) hat",
     "no story of people"),
    ("Al has a hat. First, Al and Eve swap. At the end of it, Al has\nOptions:\n(A) hat",
     "introduced"),
    ("Al has a hat, and Ed has a cap. First, Al and Ed swap. At the end of it, Al has\nOptions:\n"
     "(A) cap\n(B) hat", "known"),
    ("Al has a hat. First, Al and Al swap. At the end of it, Al has\nOptions:\n(A) hat",
     "with themselves"),
    ("Also Al has a hat, and Ed has a cap. First, Al and Ed swap. At the end of it, Al has\n"
     "Options:\n(A) hat\n(B) cap", "in the order of")], ids=str)
def test_other_stories(story, said, tmp_path, monkeypatch, capsys):
    """Guards that new stories are made of what was understood alone; else one line, and no file."""
    (tmp_path / "b").write_text(json.dumps({"examples": [{"input": story, "target": "(A)"}]}))
    argv = ["bbh", tmp_path / "a.jsonl", "--source", tmp_path / "b"]
    code, _, err = run(tasks.main, argv, monkeypatch, capsys)
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize("name", ["stories", *REGULAR, *(x for x in READ if x != "chess")])
def test_the_command(name, tmp_path, monkeypatch, capsys):
    """Guards that what is written is a task: train.py takes each file as it stands."""
    out, source = tmp_path / "out.jsonl", tmp_path / "source"
    text = FOREIGN.get(name, ("",))[0]
    source.write_text(text if name != "icot" else text * 30)
    argv = [name, out] + (["--source", source] if name in READ else ["--rows", "60"])
    code, said, err = run(tasks.main, argv, monkeypatch, capsys)
    assert code == 0 and "python train.py --data" in said, err
    test = tmp_path / "out_test.jsonl"
    more = {"eval_data": str(test if test.exists() else out)}
    task = Task(str(out), None, settings(data=str(out), **more), own=True)
    assert task.train and task.eval and test.exists() == (name in REGULAR or name == "bbh")
    assert (task.levels > 40) == (name in REGULAR)


@pytest.mark.parametrize("argv, said", [
    (["poker", "a.jsonl"], "choose from"), (["parity"], "OUT"),
    (["parity", "{tmp}/a.jsonl", "--rows", "0"], "at least 1"),
    (["gsm8k", "{tmp}/a.jsonl"], "--source"),
    (["parity", "{tmp}/a.jsonl", "--source", "{tmp}/b"], "generated"),
    (["gsm8k", "{tmp}/a.jsonl", "--source", "{tmp}/none"], "none"),
    (["gsm8k", "{tmp}/a.jsonl", "--source", "{tmp}/b"], "no file of gsm8k"),
    (["bbh", "{tmp}/a.jsonl", "--source", "{tmp}/b"], "no file of bbh"),
    (["chess", "{tmp}/a.jsonl", "--source", "{tmp}/b"], "no games"),
    (["chess", "{tmp}/a.jsonl", "--source", "{tmp}/c.pgn"], "no games"),
    (["chess", "{tmp}/a.jsonl", "--source", "{tmp}/bad.zip"], "cannot be unzipped")], ids=str)
def test_refuses(argv, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "b").write_text('{"text": "something else"}')
    (tmp_path / "c.pgn").write_text('[Event "?"]\n\n*\n')
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as z:
        z.writestr("games.pgn", "1. e4 *")
    whole = (tmp_path / "bad.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(whole.replace(b"1. e4 *", b"1. d4 *"))  # a wrong checksum
    argv = [x.format(tmp=tmp_path) for x in argv]
    code, _, err = run(tasks.main, argv, monkeypatch, capsys)
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "a.jsonl").exists()


def test_nothing_is_written_over(tmp_path, monkeypatch, capsys):
    """Guards a checkpoint, a log and a text: only a file of rows is written over."""
    for name, text in (("ckpt.pt", "x"), ("a.txt", "x"), ("metrics.jsonl", '{"kind": "step"}\n'),
                       ("b.jsonl", "")):
        (tmp_path / name).write_text(text)
        code, _, err = run(tasks.main, ["stories", tmp_path / name], monkeypatch, capsys)
        kept = (tmp_path / name).read_text() == text
        assert (code, kept) == ((0, False) if name == "b.jsonl" else (2, True)), err
    assert run(tasks.main, ["stories", tmp_path / "b.jsonl"], monkeypatch, capsys)[0] == 0
    (tmp_path / "c_test.jsonl").write_text('{"kind": "step"}\n')
    assert run(tasks.main, ["parity", tmp_path / "c.jsonl"], monkeypatch, capsys)[0] == 2
    assert not (tmp_path / "c.jsonl").exists()
