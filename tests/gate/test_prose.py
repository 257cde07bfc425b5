"""Are the pages, the docstrings and the comments in plain words?

Sentences have at most 25 words, a paragraph of a page has at most one bracket, the README fits on
320 lines, and some phrases are not used at all. `python tests/gate/test_prose.py` lists all that
breaks these rules.

Left out on purpose: grammar. Code, formulas, tables of numbers, and the questions and predictions
that are quoted from lab/experiments.py are no prose and are not looked at.
"""
import ast
import io
import re
import textwrap
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "EXERCISES.md", *sorted(ROOT.glob("docs/*.md"))]
CODE = sorted([*ROOT.glob("*.py"), *ROOT.glob("lab/*.py")])
WORDS, SHARE = 25, 0.03  # of a sentence; and the share of sentences that may have more
# (`luck:` in a docstring is an argument; things are told apart)
BANNED = re.compile(r"\b(hang(s|ing)? on|hung on|so many|anew|beside|a thought a move|luck(?!:)|"
                    r"nobody asks|no one who would|at the most|com(e|es|ing) by|came by|as ever|"
                    r"told(?! apart))\b")


def without_code(text: str) -> str:
    """Spans of code become one word; formulas and the addresses of links go."""
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"\$[^$]*\$", "FORMULA", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def paragraphs(page: str) -> list[str]:
    """Of a page: its paragraphs and the items of its lists, each as one line."""
    page = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    page = re.sub(r"^(\||#|!\[|</?\w|<!--).*$", "", page, flags=re.M)  # tables, heads, pictures
    page = re.sub(r"^ *(- |\d+\. )", "\n", page, flags=re.M)
    found = [" ".join(x.split()) for x in re.split(r"\n\s*\n", page) if x.strip()]
    return [without_code(x) for x in found if not x.startswith(("**Question.", "**Prediction."))
            and not x.endswith(("**held**", "**did not hold**"))]  # a sentence of a prediction


def cells(page: str) -> list[str]:
    """What stands in the cells of a page's tables."""
    rows = re.findall(r"^\|.*\|$", page, re.M)
    return [cell.strip() for row in rows for cell in without_code(row).strip("|").split(" | ")]


def docstrings(source: str) -> list[str]:
    """Paragraphs of all docstrings. Examples and drawings are indented, so they do not count."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [x for x in ast.walk(ast.parse(source)) if isinstance(x, kinds)]
    texts = [ast.get_docstring(x) or "" for x in nodes]
    found = [x for text in texts for x in re.split(r"\n\s*\n", text)]
    return [without_code(" ".join(x.split())) for x in found if x.strip() and x[0] != " "]


def comments(source: str) -> list[str]:
    """Comments; lines of their own that stand below each other are one. A shape is no sentence."""
    found, last, own = [], -1, False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, alone = token.start[0], token.line.lstrip().startswith("#")
        text = token.string.lstrip("#").strip()
        if alone and own and line == last + 1 and not text.startswith("["):
            found[-1] += f" {text}"
        else:
            found.append(text)
        last, own = line, alone
    return [without_code(x) for x in found if not x.startswith(("[", "->", "!", "noqa"))]


def sentences(paragraph: str) -> list[str]:
    """A sentence ends at a dot, or at another mark of that kind, with a space after it."""
    # (a list of letters is no sentence)
    ends = r"(?<=[.!?])[\"')*]*\s+"
    return [x for x in re.split(ends, paragraph) if not x.startswith("Letters: ")]


def too_long(texts: list[str]) -> tuple[list[str], int]:
    """The sentences with too many words, and how many sentences there are."""
    every = [s for text in texts for s in sentences(text)]
    counts = [sum(bool(re.search(r"\w", word)) for word in s.split()) for s in every]
    return [f"{n} words: {s}" for s, n in zip(every, counts) if n > WORDS], len(every)


def banned(texts: list[str]) -> list[str]:
    return [f"'{hit[0]}' in: {textwrap.shorten(text[max(0, hit.start() - 40):], 100)}"
            for text in texts for hit in BANNED.finditer(text)]


def listed(found: dict[Path, list[str]]) -> str:
    return "".join(f"\n{path.relative_to(ROOT)}: {x}" for path, all_ in found.items() for x in all_)


def prose(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return paragraphs(text) if path.suffix == ".md" else docstrings(text) + comments(text)


def check_sentences(paths: list[Path]) -> None:
    long, count = {}, 0
    for path in paths:
        long[path], n = too_long(prose(path))
        count += n
    over = sum(map(len, long.values()))
    assert over <= SHARE * count, f"{over} of {count} sentences are too long:{listed(long)}"


def test_sentences_of_pages():
    check_sentences(PAGES)


def test_sentences_of_code():
    check_sentences(CODE)


def test_phrases():
    """RESULTS.md has questions and names of arms in its tables; those are left as they are."""
    found = {}
    for path in PAGES + CODE:
        texts = prose(path)
        if path.suffix == ".md" and path.name != "RESULTS.md":
            texts = texts + cells(path.read_text(encoding="utf-8"))
        found[path] = banned(texts)
    assert not listed(found), listed(found)


def test_brackets():
    found = {path: [textwrap.shorten(x, 100) for x in prose(path) if x.count("(") > 1]
             for path in PAGES}
    assert not listed(found), listed(found)


def test_length():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").count("\n")
    assert lines <= 320, f"README.md has {lines} lines"


def test_the_check_sees():
    """What it is meant to find, it finds; what it is meant to leave, it leaves."""
    page = "# So many\n\nOne (two) three.\nFour `so many` (five).\n\n```\nso many\n```\n- anew\n"
    assert paragraphs(page) == ["One (two) three. Four CODE (five).", "anew"]
    assert [len(banned([x])) for x in ("anew", "told apart", "luck", "luck: which")] == [1, 0, 1, 0]
    assert too_long(["word " * 26 + "end. Short.", "word " * 25]) == (
        [f"27 words: {'word ' * 26}end."], 3)
    code = '"""Doc.\n\n    drawing\n\nMore."""\nx = 1  # of x\n# one\n# two\n# [R, T]\n'
    assert docstrings(code) == ["Doc.", "More."] and comments(code) == ["of x", "one two"]


if __name__ == "__main__":
    for path in PAGES + CODE:
        texts = prose(path)
        more = [x for x in texts if x.count("(") > 1] if path.suffix == ".md" else []
        long, n = too_long(texts)
        print(f"{path.relative_to(ROOT)}: {n} sentences, {len(long)} too long", end="")
        print(listed({path: long + banned(texts) + [f"brackets: {x[:100]}" for x in more]}))
