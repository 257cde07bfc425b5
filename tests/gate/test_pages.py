"""README.md, EXERCISES.md and docs/*.md are kept true.

Commands are accepted, tables are those of the committed json, lines that are to be changed stand
where the page says, and names, numbers and links are real.

Left out on purpose: whether sentences are plain (test_prose.py), and whether they are true.
"""
import argparse
import importlib
import json
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import torch

import evaluate
import fast
import sample
import train
from conftest import run as call
from data import Cups
from lab import alphabet, distil
from lab.tasks import stories, write
from model import GPT, SIZES, Config, load
from run import Run, Update
from settings import parser, resolve

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", ROOT / "EXERCISES.md", *ROOT.glob("docs/*.md"))}
README, EVERYTHING = PAGES["README.md"], "\n".join(PAGES.values())
RESULTS, SPEED, GPU = (PAGES[f"docs/{name}.md"] for name in ("RESULTS", "SPEED", "GPU"))
SOURCE = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
          for path in (*ROOT.glob("*.py"), *ROOT.glob("lab/*.py"))}
BLANKS = r"\b(SEED|N)\b"  # what a reader fills in


def fenced(text: str) -> tuple[list[tuple[str, str]], str]:
    """(language, code) of each block of a page, and the page without its blocks."""
    blocks = re.findall(r"^```([a-z]*)\n(.*?)^```$", text, re.M | re.S)
    return blocks, re.sub(r"^```[a-z]*\n.*?^```$", "", text, flags=re.M | re.S)


def commands(text: str, script: str) -> list[str]:
    """Arguments of each `python SCRIPT ...` of a page, in a block or in the code of a paragraph."""
    name = script.removesuffix(".py").replace("/", ".")
    called = f"python -m {name} " if "/" in script else f"python {script} "
    blocks, prose = fenced(text)
    lines = [line for language, block in blocks if language in ("bash", "")
             for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    # a line may go on with a second command or a remark
    found = [f"{line} ".split(called, 1)[1].split("#")[0].split("&&")[0].split(" | ")[0]
             for line in lines if called in f"{line} "]
    found = [re.sub(BLANKS, "3", line).strip() for line in found
             if "..." not in line and "--help" not in line]
    return list(dict.fromkeys(found))  # each once, in the page's order


def table_commands(text: str) -> list[str]:
    """Arguments of train.py in the first column of a table whose head says what they come after."""
    found, table = [], r"^\| (`[^|\n]*) with \|[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)"
    for head, body in re.findall(table, text, re.M):
        start = head.strip("`").replace("python train.py", "").strip()
        found += [f"{start} {flags}" for flags in re.findall(r"^\| `(--[^`]+)`", body, re.M)]
    return found


def rows_of(text: str, first: str) -> list[list[str]]:
    """Cells of the table whose head begins with `first`, head first, without the ruler."""
    body = re.search(rf"^\| {re.escape(first)}[^\n]*\n(?:\|[^\n]*\n)+", text, re.M)
    assert body, f"no table begins with {first}"
    rows = [line.strip("|").split(" | ") for line in body.group().splitlines()]
    return [[cell.strip() for cell in row] for row in rows[:1] + rows[2:]]


def diffs(text: str) -> list[tuple[str, str, str]]:
    """(file, the line as it is, the lines that it becomes) of each block that says what to change:
    it comes after "In `file.py`"."""
    found, block_of = [], r"In `([a-z/]+\.py)`(?:(?!```).)*?```diff\n(.*?)^```"
    for file, block in re.findall(block_of, text, re.M | re.S):
        lines = block.splitlines()
        minus, plus = ([x[1:] for x in lines if x[0] == sign] for sign in "-+")
        assert len(minus) == 1 and plus and len(plus) + 1 == len(lines), block
        found.append((file, minus[0], "\n".join(plus)))
    assert len(found) == text.count("```diff"), "a diff without a file"
    return found


# Commands

def flags_of(script: str) -> set[str]:
    """The flags of train.py are fields of Settings; the trainers of lab/ have them and more."""
    own = set(re.findall(r'add_argument\("(--[a-z_]+)"', SOURCE[script]))
    trains = "from settings import" in SOURCE[script] and "parser" in SOURCE[script]
    return own | ({x for a in parser()._actions for x in a.option_strings} if trains else set())


def test_flags_exist():
    """Every flag that is written somewhere belongs to one of the scripts, or to another tool."""
    others = {"--nproc_per_node", "--dist", "--index-url", "--help"}
    known = set().union(*(flags_of(script) for script in SOURCE))
    named = set(re.findall(r"(?<![-\w])--[a-z][a-z_-]*", EVERYTHING)) - others
    assert named <= known and "--think_vocab" in named, sorted(named - known)


TRAIN = sorted({line for text in PAGES.values()
                for line in commands(text, "train.py") + table_commands(text)})


@pytest.fixture
def reader(monkeypatch, tmp_path):
    """A reader's machine: no GPU, an empty folder with one text in it, and a parser that fails the
    test instead of ending the process."""
    def refuse(self, code=0, message=""):
        pytest.fail(message)
    monkeypatch.setattr(argparse.ArgumentParser, "exit", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("A text.")
    for name in ("task", "stories", "three", "three_test"):
        write(tmp_path / f"{name}.jsonl", stories(60, 0))
    return tmp_path


@pytest.mark.parametrize("line", TRAIN, ids=lambda line: line or "no flags")
def test_train_commands_are_accepted(line, reader):
    """Each `python train.py ...` is accepted as it stands: its flags, and its settings together.
    (--resume has those of its run, and webtext is the default where there is a GPU.)"""
    typed = vars(parser().parse_args(shlex.split(line)))
    if not typed.pop("resume", False):
        resolve(typed)


def test_there_are_commands():
    """None got lost on the way: from blocks, paragraphs and tables."""
    for line in ("--think_vocab 2048", "--resume --out out",
                 "--model bytes:1x128 --data my.txt --out mytext",
                 "--approach stream"):  # (this one from a table)
        assert line in TRAIN, line
    assert any("gpt2-xl" in line for line in TRAIN)


class Settled(Exception):
    """A command got as far as its folder."""


LAB = [(module, line) for module in (distil, alphabet)
       for line in commands(EVERYTHING, module.__name__.replace(".", "/") + ".py")]


@pytest.mark.parametrize("module, line", LAB, ids=[line for _, line in LAB])
def test_commands_of_other_trainers_are_accepted(module, line, reader, monkeypatch):
    def settled(*_):
        raise Settled
    monkeypatch.setattr(module, "take_folder", settled)
    monkeypatch.setattr(module, "guarded", lambda p, begin, go: begin(None))
    monkeypatch.setattr("sys.argv", ["prog", *shlex.split(line)])
    with pytest.raises(Settled):
        module.main()


def test_distilling_is_on_the_pages():
    assert any(module is distil and "--thinker" in line for module, line in LAB)


@pytest.mark.parametrize("script", ["sample.py", *sorted(set(SOURCE) - {"lab/__init__.py"} - {
    "lab/distil.py", "lab/alphabet.py"} - {x for x in SOURCE if "/" not in x})])
def test_other_commands_have_their_flags(script):
    """Flags of the other scripts' commands are flags of that script."""
    for line in commands(EVERYTHING, script):
        words = shlex.split(line)
        assert {w for w in words if w.startswith("--")} <= flags_of(script), line


def test_scripts_that_are_named_exist():
    """`python x.py` and `python -m lab.x` call a file that is there and can be called."""
    named = {f"{x}.py" for x in re.findall(r"python ([a-z_]+)\.py", EVERYTHING)}
    named |= {f"lab/{x}.py" for x in re.findall(r"python -m lab\.([a-z_]+)", EVERYTHING)}
    assert {"train.py", "sample.py", "reward.py", "lab/probe.py"} <= named <= set(SOURCE)
    for script in named:
        assert '__name__ == "__main__"' in SOURCE[script], script


def test_experiments_that_are_named_exist():
    from lab.experiments import EXPERIMENTS
    for line in commands(EVERYTHING, "lab/experiments.py"):
        # (NAME is filled in)
        assert (shlex.split(line) or ["report"])[0] in {*EXPERIMENTS, "report", "NAME"}


def test_the_commands_at_the_top():
    """.ci/run looks for the last of them, and runs it as it stands. CI's own file has it too."""
    assert README.index(
        "```bash\npip install -r requirements.txt && python train.py --think_vocab 2048\n"
        'python sample.py --prompt "The ball is under cup B. Moves:"\n'
        "pip install -r tests/requirements.txt && "
        "python -m pytest -q -n auto --dist worksteal tests\n```") < 5000
    looked_for = re.search(r"grep -m 1 -E '(.*?)'", (ROOT / ".ci" / "run").read_text())[1]
    found = re.search(looked_for + ".*", README, re.M)[0]
    assert found.endswith("python -m pytest -q -n auto --dist worksteal tests")
    assert found in (ROOT / ".github" / "workflows" / "tests.yml").read_text()


# Names and lines

def test_every_file_is_named():
    """The table of files has every script of the top folder in it, and no other one."""
    named = re.findall(r"`([a-z_]+\.py)`", "\n".join(row[0] for row in rows_of(README, "file |")))
    assert sorted(named) == sorted(x for x in SOURCE if "/" not in x)


def test_the_lesson_is_the_file():
    """The README's fifteen lines are what `python reward.py` runs."""
    main = SOURCE["reward.py"].rsplit('\nif __name__ == "__main__":', 1)[1].split("\n", 1)[1]
    block = next(code for language, code in fenced(README)[0] if "multinomial" in code)
    assert block == "import torch\n\n" + textwrap.dedent(main)
    assert len([line for line in block.splitlines() if line]) <= 15


CHANGES = [(page, *change) for page, text in PAGES.items() for change in diffs(text)]


@pytest.mark.parametrize("page, file, old, new", CHANGES,
                         ids=[f"{file}, {old.strip()[:30]}" for _, file, old, _ in CHANGES])
def test_changes_fit(page, file, old, new):
    """The line that is to be changed stands in that file, once. What it becomes is another line,
    and still Python."""
    assert SOURCE[file].splitlines().count(old) == 1 and old != new
    compile(SOURCE[file].replace(f"\n{old}\n", f"\n{new}\n", 1), file, "exec")


def test_there_are_changes():
    assert {"data.py", "reward.py", "evaluate.py"} <= {file for _, file, *_ in CHANGES}


def test_functions_that_are_named_exist():
    """Those in the drawing of a step, and those that a page names with their file."""
    drawing = re.search(r"^train\.py: train.*?^```", README, re.M | re.S).group()
    names = re.findall(r"^  \|(?:  |    )([a-z_]+)  ", drawing, re.M)
    assert {"take_text", "roll", "score", "advantages", "backward"} <= set(names)
    for name in names:
        assert any(re.search(rf"^ *def {name}\(", x, re.M) for x in SOURCE.values()), name
    files = "|".join(x.removesuffix(".py") for x in SOURCE if "/" not in x)
    for file, name in re.findall(rf"`({files})\.([A-Za-z_]+)[`(]", EVERYTHING):
        # (`settings.json` is a file of a run, and `run` what a reader calls a Run)
        there = name in ("py", "json") or file == "run"
        assert there or hasattr(importlib.import_module(file), name), f"{file}.{name}"


def test_links_pictures_and_anchors_exist():
    anchors = {name: {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
                      for head in re.findall(r"^#+ (.*)$", fenced(text)[1], re.M)}
               for name, text in PAGES.items()}
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            file, _, anchor = "".join(target.split()).partition("#")
            if file.startswith("http"):
                continue
            path = ((ROOT / name).parent / file).resolve() if file else ROOT / name
            assert path.exists(), f"{name}: {target}"
            assert not anchor or anchor in anchors[path.relative_to(ROOT).as_posix()], target


def test_each_question_stands_in_the_table():
    """RESULTS.md begins with a table of its questions, in their order."""
    asked = re.findall(r"^## (\d+\. .+)$", RESULTS, re.M)
    assert asked and asked == re.findall(r"^\| \[(\d+\. [^\]]+)\]\(#", RESULTS, re.M)


# Numbers

FIGURES = sorted(path for path in (ROOT / "figures").glob("*.json")
                 if "question" in json.loads(path.read_text()))


@pytest.mark.parametrize("path", FIGURES, ids=lambda p: p.stem)
def test_tables_are_those_of_the_json(path):
    """Each line that the experiment printed stands on a page, with its command. Its question is
    still the one that is asked, on the page as well, and so is its prediction. Of each sentence it
    says whether it held."""
    from lab.experiments import EXPERIMENTS
    from lab.report import table, verdicts
    result, one_line = json.loads(path.read_text()), " ".join(RESULTS.split())
    for line in table(result).splitlines():
        assert line in RESULTS, line
    assert result["command"] in one_line and path.with_suffix(".png").exists()
    experiment = EXPERIMENTS[path.stem]
    assert (result["question"], result["prediction"]) == (experiment.question,
                                                          experiment.prediction)
    assert experiment.question in one_line
    for claim, held in verdicts(experiment.claims, result):
        assert f"- {claim} **{'held' if held else 'did not hold'}**" in one_line


def test_the_board_is_that_of_its_json():
    """What tests/board.py printed stands in question 18, with its command and its picture."""
    pytest.importorskip("chess")
    import board
    result = json.loads((ROOT / "figures" / "board.json").read_text())
    for line in board.table(result).splitlines():
        assert line in RESULTS, line
    assert result["command"] in RESULTS and "figures/board.png" in RESULTS


def bench() -> dict:
    return json.loads((ROOT / "figures" / "bench.json").read_text())


@pytest.mark.parametrize("threads, column", [(1, 0), (2, 4)])
def test_speeds_are_those_of_the_json(threads, column):
    """Each row of the table of speeds is what lab/bench.py wrote, and all its rows are there. A
    title stands in the first of its rows. Two threads, where they were measured, are at the end."""
    found = {k: x for k, x in bench().items() if k.endswith(f"threads {threads}")}
    shown, title = [], ""
    for what, arm, *cells in rows_of(SPEED, "what | arm | seconds")[1:]:
        title, measured_here = what or title, cells[column:column + 2]
        shown += [(title, arm, *measured_here)] if any(measured_here) else []
    measured = [(t["title"].split(" (MiB")[0], arm, f"{x['seconds']:.3g}", f"{x['x_ours']:.2f}")
                for section in found.values() for t in section["tables"]
                for arm, x in t.get("arms", {}).items()]
    assert measured and sorted(shown) == sorted(measured)
    line = next(x for x in commands(SPEED, "lab/bench.py") if f"--threads {threads} " in x)
    only = line.split("--only ")[1].split()
    assert {f"{name}, threads {threads}" for name in only} == found.keys()
    assert not any(x["quick"] for x in found.values())


def test_growth_is_that_of_the_json():
    """Each dial's line is the one that lab/bench.py drew through its points."""
    cells = [[f"{t['title']}, {t['points'][0][0]:.4g} to {t['points'][-1][0]:.4g}",
              *(f"{once:.4g} + {each:.3g} each" for once, each, _ in t["line"].values()),
              *(f"{off:.0%}" for *_, off in t["line"].values())]
             for t in bench()["scale, threads 1"]["tables"]]
    assert rows_of(SPEED, "growth: from, to | ")[1:] == cells


def test_a_gpu_is_as_in_the_json():
    """The tables of docs/GPU.md are what tests/gpu.py wrote, and all that it checked held."""
    found = json.loads((ROOT / "figures" / "bench_gpu.json").read_text())
    assert not found["failed"] and all(check["ok"] for check in found["checks"].values())
    places = [[name, f"{x['ms']:.2f}", f"{32e3 / x['ms']:,.0f}", f"{x['of_limit']:.0%}",
               f"{x['first']:.1f}"]
              for name, x in found["place"].items() if name != "section_seconds"]
    assert rows_of(GPU, "of a rollout of 32 rows")[1:] == places
    steps = [[name, f"{x['ms']:.0f}", f"{x['shares']['rollout']:.0%}",
              f"{x['shares']['gradient_pass']:.0%}", f"{x['peak_gb']:.2f}", f"{x['table_gb']:.2f}"]
             for name, x in found["step"].items() if name != "section_seconds"]
    assert rows_of(GPU, "6 updates on noise")[1:] == steps
    assert found["machine"]["device"] in GPU


def test_reckoning_for_a_gpu():
    """The table of memory is its own formula."""
    head, *rows = rows_of(GPU, "`python train.py --approach stream --data webtext` with")
    piece = 4 * fast.ROWS * (50257 + 2048)
    assert f"5 pieces of logits of {piece // 2 ** 20} MiB" in GPU and len(head) == 7
    assert [re.search(r"--model (\S+?)[` ]", row[0])[1] for row in rows] == list(SIZES)
    for row, (layers, heads, width) in zip(rows, SIZES.values()):
        with torch.device("meta"):
            model = GPT(Config(layers, heads, width, think_vocab=2048))
        count = sum(p.numel() for p in model.parameters())
        micro = int((re.search(r"--micro_batch (\d+)", row[0]) or [0, 32])[1])
        parts = [18 * count, 2 * layers * 32 * 160 * width * 2, layers * micro * 160 * 36 * width,
                 5 * piece + 50257 * width * 4]
        total = f"{(sum(parts) + 1e9) / 1e9:.1f}"
        assert row[1:] == [f"{count:,}", *(f"{x / 1e9:.1f}" for x in parts), total]


def test_sizes():
    """The shipped models, and how many words they know."""
    student, teacher = load("pico"), load("pico-teacher")
    assert (student.config.n_layer, teacher.config.n_layer) == (1, 4)
    assert student.config.n_embd == teacher.config.n_embd == 64
    assert "a student of one layer, a teacher of four, both of width 64" in README
    V = len(Cups(3).text_ids)
    exercises, results = (" ".join(x.split()) for x in (PAGES["EXERCISES.md"], RESULTS))
    assert f"know {V} words" in exercises and f"student of {V} words" in results


def test_short_results_are_those_of_the_long_page():
    """The README's rows for a teacher and for a stream say what RESULTS.md's tables say of their
    seeds: the least that is right, and the range of updates."""
    tables = re.findall(r"^\| seeds (\d+) to (\d+).*\n((?:\|.*\n)+)", RESULTS, re.M)
    assert len(tables) == 2
    for first, last, rows in tables:
        of = int(last) - int(first) + 1
        by_name = dict(re.findall(r"^\| (.+?) \| (.*) \|$", rows, re.M))
        counts = {int(right): int(n) for n, right in
                  re.findall(r"(\d+) seeds?: (\d+)", by_name["right at n = 10, %"])}
        assert sum(counts.values()) == of
        assert (f"{of} seeds of {of}: at least {min(counts)} % at n = 10, in "
                f"{by_name['updates']} updates") in README


# Columns of the log

def columns(first: str) -> set[str]:
    rows = rows_of(PAGES["docs/METRICS.md"], first)[1:]
    return {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row[0])}


def small_run(approach: str) -> Run:
    """A run on cups whose thoughts are free."""
    return train.setup(resolve({"approach": approach, "model": "pico", "think": "free",
                                "think_vocab": 4, "prompts": 2, "samples": 2, "new_tokens": 12}))


def evaluated(run: Run) -> set[str]:
    found, _ = evaluate.evaluate(run.model, run.source, run.rules, run.settings, run.teacher, 1)
    return set(found)


def test_columns_of_a_step():
    """The table of columns has what a step writes, and nothing else."""
    run = small_run("teacher")
    text, rules = train.take_text(run, run.model)
    ro = train.roll(run.model, text, rules, run.luck("rollout"))
    scores = train.score(run.model, ro, text.pays)
    credit = train.advantages(scores.r, ro, text, run.settings)
    run.note(text, scores, credit, Update(0.0, 0.0, 0.0))
    assert columns("column of a step") == {"step", "seconds", *run.line}


def test_columns_of_an_evaluation():
    """... and what evaluations write: with a teacher, with thoughts that are forgotten, and where
    thoughts begin as words (lab.alphabet)."""
    found = evaluated(small_run("teacher")) | evaluated(small_run("next_token"))
    assert columns("column of an evaluation") == found | {"thoughts_as_text"}
    assert '"thoughts_as_text"' in SOURCE["lab/alphabet.py"]


# A reader's evening

def python_of(page: str) -> list[str]:
    return [code for language, code in fenced(PAGES[page])[0] if language == "python"]


def test_python_of_the_exercises(capsys):
    """The mask of an exercise, and its solution."""
    code, = python_of("EXERCISES.md")
    exec(code, {})
    assert " x x" not in capsys.readouterr().out  # no gap yet
    exec(code.replace("window=4", "window=2"), {})
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(shown[-8:]) + "\n" in [code for _, code in fenced(PAGES["EXERCISES.md"])[0]]


def test_an_evening_with_the_readme(tmp_path, monkeypatch, capsys):
    """The README's commands and its lines of Python run, one after the other in one folder, each
    on what the ones before it left there: two steps, few rows, small evaluations. Left out is what
    needs a download or takes hours."""
    from lab import probe
    real, rows_of_text = evaluate.evaluate, evaluate.held_out
    monkeypatch.setattr("run.evaluate", lambda *a: real(*a[:5], each=1))
    monkeypatch.setattr(evaluate, "held_out", lambda x, rows, *a: rows_of_text(x, 4, *a))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "task.jsonl", stories(60, 0))
    short = "--steps 2 --eval_every 2 --prompts 2 --samples 2".split()

    def run(module, line, *more):
        code, out, err = call(module.main, [*shlex.split(line), *more], monkeypatch, capsys)
        assert code == 0, (line, err)
        return out

    for line in commands(README, "train.py"):
        if "my.txt" not in line:
            out = run(train, line, *([] if "--resume" in line else short))
            assert "what was learned" in out, line
    assert (tmp_path / "out" / "old1" / "ckpt.pt").exists()  # nothing was written over
    run(train, "--approach stream --out narrow", *short)
    for line in commands(README, "lab/distil.py"):
        run(distil, line, *short[:-2])
    for line in commands(README, "sample.py"):
        assert "The ball is under cup B" in run(sample, line)
    for line in commands(README, "lab/probe.py"):
        run(probe, line, "--stories", "2")
    code = next(x for x in python_of("README.md") if "load_run" in x)
    exec(code, {})
    assert "torch.Size([2048, 64])" in capsys.readouterr().out
