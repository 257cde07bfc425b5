"""The house rules that a program can check: how many files, who imports whom, how long things are.

Left out on purpose: taste. What is here is counted, never judged.
"""
import ast
import importlib
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# a file may import those that stand before it
ORDER = ("command fast download weights reader tokenizer model data task rollout next_token reward "
         "settings evaluate run train sample").split()
CORE = "tokenizer model data rollout reward train sample".split()  # what a reader reads first
TOP, LAB = sorted(ROOT.glob("*.py")), sorted((ROOT / "lab").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOREIGN = "cups process device rank world oracle thinker alphabet".split()  # to the loop


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """All modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def functions(path: Path) -> list[ast.FunctionDef]:
    return [x for x in ast.walk(parsed(path)) if isinstance(x, ast.FunctionDef)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def comment_lines(text: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0] for t in tokens if t.type == tokenize.COMMENT}


def code_lines(function: ast.FunctionDef, text: str) -> list[str]:
    """Lines of a function that are neither blank nor comment nor docstring."""
    lines = dict(enumerate(text.splitlines(), 1))
    numbers = set(range(function.lineno, function.end_lineno + 1))
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        numbers -= set(range(first.lineno, first.end_lineno + 1))
    return [lines[i] for i in sorted(numbers)
            if lines[i].strip() and not lines[i].strip().startswith("#")]


def test_seventeen_files():
    """Guards the size of the first look: 17 files at the top, and a place for each in the order."""
    names = [path.stem for path in TOP]
    assert len(names) <= 17 and sorted(names) == sorted(ORDER)


def test_imports_run_downward():
    """Guards the way of reading: each file imports those before it, never one after it or lab."""
    lab = {path.stem for path in LAB}
    for path in TOP:
        modules = {name.split(".")[0] for name in imported(path)}
        allowed = ORDER[:ORDER.index(path.stem)]
        assert not (modules & set(ORDER)) - set(allowed), path.name
        assert not modules & {"lab", "tests"}, path.name
        assert not modules & (lab - set(ORDER)), path.name


def test_lab_has_no_circle():
    """Guards lab/: its files import the core and each other, and never in a circle."""
    waits = {p.stem: {m.split(".")[1] for m in imported(p) if m.startswith("lab.")} & {
        q.stem for q in LAB} for p in LAB}
    while waits:
        free = [name for name, others in waits.items() if not others & waits.keys()]
        assert free, f"a circle among {sorted(waits)}"
        waits = {name: others for name, others in waits.items() if name not in free}


def test_the_core_is_short():
    """Guards the reader's evening: 120,000 characters in seven files, 380 lines of train.py."""
    texts = {name: (ROOT / f"{name}.py").read_text(encoding="utf-8") for name in CORE}
    assert sum(map(len, texts.values())) <= 120_000
    assert texts["train"].count("\n") <= 380
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 320


def test_the_loop_is_the_algorithm():
    """Guards `train`: 35 lines, and no word in them of a game, a machine or an experiment."""
    path = ROOT / "train.py"
    loop = next(f for f in functions(path) if f.name == "train")
    lines = code_lines(loop, path.read_text(encoding="utf-8"))
    assert len(lines) <= 35
    assert not [x for x in lines if any(word in x.lower() for word in FOREIGN)]


@pytest.mark.parametrize("path", TOP + LAB, ids=name_of)
def test_functions_are_short(path):
    """Guards against functions that no screen holds: 60 lines and 7 parameters, self included."""
    for f in functions(path):
        a = f.args
        parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        assert f.end_lineno - f.lineno + 1 <= 60, f"{f.name} is too long"
        assert len(parameters) <= 7, f"{f.name} has too many parameters"


@pytest.mark.parametrize("path", TOP + LAB + TESTS, ids=name_of)
def test_lines_are_short(path):
    """Guards a page of two columns: no line over 100 characters."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert not [i for i, line in lines if len(line) > 100]


def test_comments():
    """Guards the share of comments: on 15 % of the core's lines there is one."""
    texts = [(ROOT / f"{name}.py").read_text(encoding="utf-8") for name in CORE]
    commented = sum(len(comment_lines(text)) for text in texts)
    assert commented >= 0.15 * sum(text.count("\n") for text in texts)


def test_only_data_knows_the_game():
    """Guards the interface of a source. Only data.py, which has the game, and task.py, which opens
    all sources, name the class Cups."""
    for name in ORDER:
        nodes = [] if name in ("data", "task") else ast.walk(parsed(ROOT / f"{name}.py"))
        names = {getattr(n, "id", getattr(n, "attr", getattr(n, "name", ""))) for n in nodes}
        assert "Cups" not in names, f"{name}.py"


def borrowed(path: Path) -> set[tuple[str, str]]:
    """(module, name) of all that a file takes from files of ours, as in `data.Cups`."""
    def walk(node, known):
        inside = list(ast.walk(node))
        if isinstance(node, ast.FunctionDef):  # a variable of that name hides the module
            known = {k: v for k, v in known.items() if k not in {
                *(x.arg for x in inside if isinstance(x, ast.arg)),
                *(x.id for x in inside if isinstance(x, ast.Name) and type(x.ctx) is ast.Store)}}
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in known:
            found.add((known[node.value.id], node.attr))
        for x in ast.iter_child_nodes(node):
            walk(x, known)
    found, aliases = set(), [a for x in ast.walk(parsed(path)) if isinstance(x, ast.Import)
                             for a in x.names]
    walk(parsed(path), {a.asname or a.name: a.name for a in aliases if a.name in ORDER})
    return found


@pytest.mark.parametrize("path", LAB + TESTS, ids=name_of)
def test_what_is_borrowed_exists(path):
    """Guards files that no test runs, as torture.py: a function that moved is missed here."""
    missing = [f"{module}.{name}" for module, name in borrowed(path)
               if not hasattr(importlib.import_module(module), name)]
    assert not missing, missing
