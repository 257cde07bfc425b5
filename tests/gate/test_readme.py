"""README.md, RESULTS.md and EXERCISES.md are kept true: commands are accepted, tables are those of the committed json, lines that
are to be changed stand where the page says, names and numbers are the code's."""
import argparse
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import evaluate
import reward
from conftest import run
from data import Cups
from journal import line_of_step
from lab import picture
from lab.experiments import EXPERIMENTS
from lab.report import interval, table
from model import GPT, PICO, SIZES, Config, as_checkpoint, load, save
from mutate import MUTANTS
from rollout import Rules
from settings import parse, resolve
from train import first_state

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "RESULTS.md", "EXERCISES.md")}
README, EVERYTHING = PAGES["README.md"], "\n".join(PAGES.values())
SCRIPTS = sorted(p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.py"), *ROOT.glob("lab/[!_]*.py")))
SOURCE = {name: (ROOT / name).read_text(encoding="utf-8") for name in SCRIPTS}
BLANKS = r"\b(SEED|N)\b"  # what a reader fills in


def fenced(text: str) -> tuple[list[tuple[str, str]], str]:
    """(language, code) of each block of a page, and the page without its blocks."""
    blocks = re.findall(r"^```([a-z]*)\n(.*?)^```$", text, re.M | re.S)
    return blocks, re.sub(r"^```[a-z]*\n.*?^```$", "", text, flags=re.M | re.S)


def commands(text: str, script: str) -> list[str]:
    """Arguments of each `python SCRIPT ...` of a page (`python -m lab.NAME ...` of those in lab): in code of a paragraph, which
    may go on in the next line, or of a block."""
    called = f"python -m {script.removesuffix('.py').replace('/', '.')}" if "/" in script else f"python {script}"
    blocks, prose = fenced(text)
    lines = [line for language, block in blocks if language in ("bash", "") for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    found = [line.split(called, 1)[1].split("#")[0].split("&&")[0] for line in lines if called in line]
    return [re.sub(BLANKS, "3", line).strip() for line in found]


def table_commands(text: str) -> list[str]:
    """Arguments of train.py that stand in the first column of a table whose head says what they come after."""
    found = []
    for head, body in re.findall(r"^\| (`[^|\n]*) with \|[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", text, re.M):
        start = head.strip("`").replace("python train.py", "").strip()
        found += [f"{start} {flags}" for flags in re.findall(r"^\| `(--[^`]+)`", body, re.M)]
    return found


def diffs(text: str) -> list[tuple[str, str, str]]:
    """(file, the line as it is, the lines that it becomes) of each block that says what to change: it comes after "In `file.py`"."""
    found = []
    for before, block in re.findall(r"In `([a-z/]+\.py)`(?:(?!```).)*?```diff\n(.*?)^```", text, re.M | re.S):
        minus = [line[1:] for line in block.splitlines() if line.startswith("-")]
        plus = [line[1:] for line in block.splitlines() if line.startswith("+")]
        assert len(minus) == 1 and plus and len(minus) + len(plus) == len(block.splitlines()), block
        found.append((before, minus[0], "\n".join(plus)))
    assert len(found) == text.count("```diff"), "a diff without a file"
    return found


def rows_of(text: str, first: str) -> list[list[str]]:
    """Cells of the table whose head begins with `first`, head first, without the ruler."""
    body = re.search(rf"^\| {re.escape(first)}[^\n]*\n(?:\|[^\n]*\n)+", text, re.M)
    assert body, f"no table begins with {first}"
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.group().splitlines()]
    return rows[:1] + rows[2:]


def test_flags_exist():
    """Every flag that is written somewhere belongs to one of the scripts, or to a tool of others."""
    others = {"--nproc_per_node", "--index-url", "--help"}
    known = {flag for text in SOURCE.values() for flag in re.findall(r'add_argument\("(--[a-z_]+)"', text)}
    named = set(re.findall(r"(?<![-\w])--[a-z][a-z_-]*", EVERYTHING)) - others
    assert len(named) > 20 and named <= known, sorted(named - known)


TRAIN = sorted({line for text in PAGES.values() for line in commands(text, "train.py") + table_commands(text) if "..." not in line})


@pytest.mark.parametrize("line", TRAIN, ids=lambda line: line or "no flags")
def test_train_commands_are_accepted(line, monkeypatch, tmp_path):
    """Every `python train.py ...`, whole, is accepted as it stands: its flags, and its settings together. (--resume has those of
    its run.)"""
    monkeypatch.setattr(argparse.ArgumentParser, "exit", lambda self, code=0, message="": pytest.fail(f"{line}: {message}"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("A text.")
    args = parse(shlex.split(line))
    if not args.resume:
        resolve(args)


def test_there_are_commands():
    """... and none got lost on the way: the pages have many, tables among them."""
    assert len(TRAIN) > 35 and "--think_vocab 2048" in TRAIN and "--approach stream --thoughts none --steps 10500" in TRAIN
    assert any("gpt2-xl" in line for line in TRAIN)


@pytest.mark.parametrize("script", ["sample.py", "lab/probe.py", "lab/experiments.py", "lab/picture.py", "lab/pretrain.py"])
def test_other_commands_have_their_flags(script):
    """Flags of the other scripts' commands are flags of that script."""
    known = set(re.findall(r'add_argument\("(--[a-z_]+)"', SOURCE[script]))
    lines = commands(EVERYTHING, script)
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert {w for w in words if w.startswith("--")} <= known, line
        if script == "lab/experiments.py" and words and words[0] not in ("siblings", "report"):
            # (the exercise's own; no experiment)
            assert words[0] in EXPERIMENTS, line


def test_the_two_commands():
    """The CI gate runs the second of them as it stands."""
    assert README.index("```bash\npip install -r requirements.txt && python train.py --think_vocab 2048\n"
                        "pip install -r tests/requirements.txt && python -m pytest -q tests\n```") < 5000


def test_every_file_is_named():
    """The table of files has every script, and no other one."""
    assert sorted(row[0].strip("`") for row in rows_of(README, "file |")[1:]) == SCRIPTS


RESULTS = sorted(path for path in (ROOT / "figures").glob("*.json") if path.stem != "bench")


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_tables_are_those_of_the_json(path):
    """Each line that the experiment printed stands in one of the pages, with its command; and its question is still the one asked,
    in the page's own words as well."""
    result, one_line = json.loads(path.read_text()), " ".join(EVERYTHING.split())
    for line in table(result).splitlines():
        assert line in EVERYTHING, line
    assert result["command"] in one_line and (ROOT / "figures" / f"{path.stem}.png").exists()
    experiment = EXPERIMENTS[path.stem]
    assert (result["question"], result["prediction"]) == (experiment.question, experiment.prediction)
    assert result["question"] in one_line and result["prediction"] in one_line
    assert [a["command"].split("train.py ")[1].split(" --thinker <")[0].split(" --model <")[0] for a in result["arms"].values()] == [
        arm.flags for arm in experiment.arms.values()]


def test_short_table_is_that_of_the_json():
    """The README's extract of `channel`: each cell is mean and interval of that arm and n."""
    arms = json.loads((ROOT / "figures" / "channel.json").read_text())["arms"]
    head, *rows = rows_of(README, "arm | n = 1")
    assert len(rows) == 7
    for arm, *cells in rows:
        for n, cell in zip(head[1:], cells):
            mean, half = interval([100 * s["accuracy_by_n"][int(n.split("=")[1]) - 1] for s in arms[arm]["seeds"]])
            assert cell == f"{mean:.0f} ± {half:.0f}", (arm, n)


@pytest.mark.parametrize("threads, first", [(1, "what | arm | seconds"), (2, "two threads: what | arm | seconds")])
def test_speeds_are_those_of_the_json(threads, first):
    """Each row of the tables of speeds is what lab/bench.py wrote, and each of its rows is there."""
    found = json.loads((ROOT / "figures" / "bench.json").read_text())
    found = {name: section for name, section in found.items() if name.endswith(f"threads {threads}")}
    head, *rows = rows_of(README, first)
    shown = {(what, arm, seconds, ratio) for what, arm, seconds, ratio, *_ in rows}
    measured = [(table["title"].split(" (MiB")[0], arm, f"{x['seconds']:.3g}", f"{x['x_ours']:.2f}")
                for section in found.values() for table in section["tables"] for arm, x in table.get("arms", {}).items()]
    assert shown == set(measured) and len(rows) == len(measured) > 12
    only = re.search(rf"python -m lab\.bench --threads {threads} --only ([a-z_ ]+)", " ".join(README.split()))[1].split()
    assert {f"{name}, threads {threads}" for name in only} == found.keys() and not any(x["quick"] for x in found.values())


def test_growth_is_that_of_the_json():
    """Each dial's line is the one that lab/bench.py drew through its points."""
    tables = json.loads((ROOT / "figures" / "bench.json").read_text())["scale, threads 1"]["tables"]
    head, *rows = rows_of(README, "growth: from, to | ")
    cells = [[f"{t['title']}, {t['points'][0][0]:.4g} to {t['points'][-1][0]:.4g}",
              *(f"{once:.4g} + {each:.3g} each" for once, each, _ in t["line"].values()),
              *(f"{off:.0%}" for *_, off in t["line"].values())] for t in tables]
    assert rows == cells


def test_short_results_are_those_of_the_long_page():
    """A row of the first table of results has the cells that RESULTS.md has for its seeds."""
    head, *long = rows_of(PAGES["RESULTS.md"], "seed | n = 1")
    _, *short = rows_of(README, "`python train.py --think_vocab 2048 --seed SEED` | n = 1")
    for name, *cells in short:
        for seed in map(int, re.findall(r"\d", name)):
            assert long[seed][1:7] == cells[:6]
            low, high = (cells[6].split(" to ") * 2)[:2]
            assert low <= long[seed][head.index("another's, n = 6")] <= high


def test_pictures_links_and_anchors_exist():
    anchors = {}
    for name, text in PAGES.items():
        heads = re.findall(r"^#+ (.*)$", fenced(text)[1], re.M)
        anchors[name] = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            target = "".join(target.split())
            file, _, anchor = target.partition("#")
            assert target.startswith("http") or (ROOT / file).exists(), target
            if anchor and not target.startswith("http"):
                assert anchor in anchors[file or name], target


CHANGES = [(page, *change) for page, text in PAGES.items() for change in diffs(text)]


@pytest.mark.parametrize("page, file, old, new", CHANGES, ids=[f"{page}, {file}, {i}" for i, (page, file, *_) in enumerate(CHANGES)])
def test_changes_fit(page, file, old, new):
    """The line that is to be changed stands in that file, once; what it becomes is another line, and still Python."""
    assert SOURCE[file].splitlines().count(old) == 1 and old != new
    compile(SOURCE[file].replace(f"\n{old}\n", f"\n{new}\n", 1), file, "exec")
    assert f"\n{old}\n" in SOURCE[file]


def test_there_are_changes():
    assert sum(page == "README.md" for page, *_ in CHANGES) >= 5 and sum(page == "EXERCISES.md" for page, *_ in CHANGES) >= 4


def test_functions_of_the_drawing_exist():
    """The drawing of a step: each name in it is a function of ours, and those of the loop are called there."""
    drawing = re.search(r"^train\.py: train.*?^```", README, re.M | re.S).group()
    names = re.findall(r"^  \|(?:  |    )([a-z_]+)  ", drawing, re.M)
    assert len(names) > 14
    for name in names:
        assert re.search(rf"^ *def {name}\(", "\n".join(SOURCE.values()), re.M), name
    for name in re.findall(r"`(?:rollout|reward|train)\.(?!py)([a-z_]+)`", README):
        assert re.search(rf"^def {name}\(", "\n".join(SOURCE.values()), re.M), name


def columns(first: str) -> set[str]:
    return {name for row in rows_of(README, first)[1:] for name in re.findall(r"`([a-z0-9_]+)`", row[0])}


def test_columns_of_a_step():
    """The table of columns has what a step writes, and nothing else."""
    r = torch.zeros(2, 3)
    line = line_of_step(first_state({"steps": 1}), r, None, r, 2, 0.0, 0.0, 0, 0.0)
    assert columns("column of a step") == {"step", "seconds", *line}


def test_columns_of_an_evaluation():
    """... and what evaluations write: with a teacher, with thoughts that are free, on cups."""
    cups, model = Cups(3), load("pico")
    model.grow(4, torch.from_numpy(cups.batch(2, 17, 0, 0, "birth").ids), 0.5, torch.Generator().manual_seed(0))
    result, _ = evaluate.evaluate(model, cups, Rules("free", 1, 8, 5, cups.think_after), load("pico-teacher"), 17, 12, 2, 2,
                                  base=load("pico"))
    forgotten, _ = evaluate.evaluate(model, cups, Rules("free", 1, 1, 5, None, False), None, 17, 12, 2, 2)
    assert columns("column of an evaluation") == set(result) | set(forgotten)


def test_sizes():
    """Numbers of parameters, of rows and of planted mistakes that the pages quote."""
    def size(model):
        return sum(p.numel() for p in model.parameters())
    V = len(Cups(3).text_ids)
    with torch.device("meta"):
        scratch = GPT(Config(1, 2, 64, 256, V, 2048))
    assert f"the student has {size(load('pico')):,} parameters" in README and f"the teacher {size(load('pico-teacher')):,}" in README
    assert f"on cups has {size(scratch) - scratch.think.numel():,} as well" in README
    assert f"thinking rows are {scratch.think.numel():,} more" in " ".join(README.split())
    assert f"a cups model knows {V} words" in README and f"A cups model knows {V} words" in README and set(PICO) == {"pico", "pico-teacher"}
    assert f"({len(MUTANTS)} planted" in README


def test_reckoning_for_a_gpu():
    """The table of memory is its own formula."""
    head, *rows = rows_of(README, "`python train.py --approach stream --data webtext` with")
    assert f"5 pieces of logits of {reward.FLOATS * 4 // 2 ** 20} MiB" in README
    assert [re.search(r"--model (\S+?)[` ]", row[0])[1] for row in rows] == list(SIZES) and len(head) == 7
    for row, (layers, heads, width) in zip(rows, SIZES.values()):
        with torch.device("meta"):
            count = sum(p.numel() for p in GPT(Config(layers, heads, width, think_vocab=2048)).parameters())
        micro = int((re.search(r"--micro_batch (\d+)", row[0]) or [0, 32])[1])
        parts = [18 * count, 2 * layers * 32 * 160 * width * 2, layers * micro * 160 * 36 * width,
                 5 * 4 * reward.FLOATS + 50257 * width * 4]
        assert row[1:] == [f"{count:,}", *(f"{x / 1e9:.1f}" for x in parts), f"{(sum(parts) + 1e9) / 1e9:.1f}"]


def test_picture(tmp_path):
    """lab/picture.py draws any run on cups, and says of another model that it can't."""
    cups, model = Cups(3), load("pico")
    model.grow(4, torch.from_numpy(cups.batch(2, 17, 0, 0, "birth").ids), 0.5, torch.Generator().manual_seed(0))
    run = {"rules": vars(Rules("forced", 1, 8, 5, cups.think_after)), "args": {"data": "cups", "balls": "one", "cups": 3, "idle": 0.0}}
    save(tmp_path / "ckpt.pt", as_checkpoint(model) | run)
    pieces = picture.story(tmp_path / "ckpt.pt", 0)
    text = "".join(string for kind, string, _ in pieces if kind != "think")
    assert text.startswith(picture.PROMPT) and "".join(s for kind, s, _ in pieces if kind == "prompt") == picture.PROMPT
    ids, thoughts = [], 0
    for kind, string, cup in pieces:
        if kind == "think":
            assert cup == "ABC"[cups.follow(ids)[-1][0]]
            thoughts += 1
        else:
            ids.append(cups.id[string])
            assert cup == ""
    assert thoughts > 2
    picture.draw(pieces, json.loads((ROOT / "figures" / "channel.json").read_text()), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000
    save(tmp_path / "ckpt.pt", as_checkpoint(model) | run | {"args": run["args"] | {"data": "webtext"}})
    with pytest.raises(ValueError, match="no run on cups"):
        picture.story(tmp_path / "ckpt.pt", 0)


def test_an_evening_with_the_readme(tmp_path, monkeypatch, capsys):
    """The README's commands run, one after the other in one folder, each on what the ones before it have left there: with two
    steps, few rows and small evaluations. Left out is what needs a download or is an experiment of hours."""
    import journal
    import sample
    import train
    from lab import probe
    monkeypatch.chdir(tmp_path)
    real = evaluate.evaluate
    monkeypatch.setattr(journal, "evaluate", lambda *a, **kind: real(*a[:6], 1, rows=4))
    (tmp_path / "notes.txt").write_text("The ball is under cup B. Moves: AB, left, BC. Where? B. Moves: right. Where? C.\n" * 9)
    ran = 0
    for line in commands(README, "train.py"):
        if "my.txt" in line or "webtext" in line:
            continue
        short = [] if "--resume" in line else ["--steps", "2", "--eval_every", "2", "--prompts", "2", "--samples", "2"]
        code, out, err = run(train.main, [*shlex.split(line), *short], monkeypatch, capsys)
        assert code == 0 and "what was learnt" in out, (line, err)
        ran += 1
    for script, line in [(sample, x) for x in commands(README, "sample.py")] + [
            (probe, f"{x} --stories 2") for x in commands(README, "lab/probe.py")] + [
            (picture, f"{x} --out picture.png") for x in commands(README, "lab/picture.py")]:
        code, out, err = run(script.main, shlex.split(line), monkeypatch, capsys)
        assert code == 0, (line, err)
        ran += 1
    assert ran > 16 and (tmp_path / "out_longer" / "ckpt.pt").exists() and (tmp_path / "picture.png").exists()
    assert (tmp_path / "out" / "old1" / "ckpt.pt").exists()  # nothing was written over


def test_each_question_stands_in_the_table():
    """RESULTS.md begins with a table of its questions, in their order."""
    asked = re.findall(r"^## (\d+\. .+)$", PAGES["RESULTS.md"], re.M)
    assert asked and asked == re.findall(r"^\| \[(\d+\. [^\]]+)\]\(#", PAGES["RESULTS.md"], re.M)
