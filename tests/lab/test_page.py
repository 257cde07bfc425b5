"""lab/page.py: each thought has its own note, and nothing in a sample is run by the browser."""
import html
import re
import shutil
import subprocess

import pytest
import torch

from conftest import run
from data import Cups, plain
from lab import page
from lab.page import html_page, nearest_rows, notes_on
from model import GPT, Config, as_checkpoint
from rollout import Luck, Rules, rollout
from run import Run
from tokenizer import Tokenizer
from weights import save

CUPS = Cups(3)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")
# asks a page in a frame as wide as a phone: by how much is it too wide, which note is seen before
# the second thought has the focus and then, and does the page need anything that it has not?
ASK = """
const page = document.querySelector("iframe").contentDocument, seen = () =>
  [...page.querySelectorAll(".note")].map(x => getComputedStyle(x).display == "block");
const over = () => page.documentElement.scrollWidth - page.documentElement.clientWidth;
const said = [over(), seen()];
const thought = page.querySelectorAll(".think[tabindex]")[1];
thought.focus();
said.push(seen(), over(), thought.tabIndex,
          [...page.images].every(x => x.naturalWidth > 0));
document.title = JSON.stringify(said);
"""
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="


def test_notes_stand_at_their_thoughts():
    """Each thought has its own note, escaped, and no other span has one."""
    tok = Tokenizer(think_vocab=8)
    shown = tok.show([464, tok.V, 2613, tok.V + 1], 1, "html")
    notes = [["<b>first</b>\nline", "second"], []]
    whole = html_page([shown, tok.show([464], 1, "html")], "t", notes=notes, hint="<i>",
                      rest="<h2>end</h2>")
    body = whole.split("</style>")[1]
    assert body.count('tabindex="0"') == body.count('class="note"') == 2
    assert "&lt;i&gt;" in body and body.endswith("<h2>end</h2>\n")
    in_order = ("&lt;think0&gt;", "&lt;b&gt;first&lt;/b&gt;\nline", "&lt;think1&gt;", "second")
    places = [body.index(x) for x in in_order]
    assert places == sorted(places)
    assert ".think:hover .note" in whole and ".think:focus .note" in whole
    assert "<script" not in whole and "http" not in whole  # and it needs no other file


def test_without_notes_nothing_can_be_pointed_at():
    """A title that is markup is text, and a page without thoughts explains none."""
    tok = Tokenizer(think_vocab=8)
    whole = html_page([tok.show([464, 2613], 1, "html")], "<script>", thoughts=False)
    body = whole.split("</style>")[1]
    assert "tabindex" not in body and "thought" not in body and "<script" not in whole
    assert "own text" not in html_page([], "t").split("</style>")[1]  # no samples, no legend


def test_nearest_rows_are_found_by_direction():
    """A vector's length plays no part, and neither does a word that points elsewhere."""
    model = GPT(Config(1, 1, 32, 16, len(CUPS.text_ids), 2), CUPS.text_ids)
    model.wte.weight.data = torch.eye(len(CUPS.text_ids), 32)
    vectors = torch.zeros(2, 32)
    vectors[0, 3], vectors[1, 5], vectors[1, 2] = 0.1, 30, 40
    words = [repr(w) for w in Tokenizer(CUPS.text_ids).words()]
    lines = nearest_rows(model, Tokenizer(CUPS.text_ids), vectors, 2)
    assert lines[0].startswith(f"{words[3]} 1.00, ")
    assert lines[1] == f"{words[2]} 0.80, {words[5]} 0.60"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_in_a_browser(tmp_path):
    """On a phone, without a network: no line and no table makes the page wider than the screen. A
    note is hidden until its thought has the focus, which the tab key gives it."""
    tok = Tokenizer(think_vocab=8)
    shown = tok.show([464, tok.V, 2613, tok.V + 1, *[2613] * 90], 1, "html")
    wide = "<table><tr>" + "<td>a wide cell</td>" * 40 + f"</tr></table><img src={DOT} width=900>"
    notes, path = [["first " * 30, "second"]], "a/path" * 30
    whole = html_page([shown], "t", notes=notes, hint=path, rest=wide)
    asks = (f'<iframe width=360 height=700 srcdoc="{html.escape(whole)}"></iframe>'
            f"<script>onload = () => {{{ASK}}}</script>")
    (tmp_path / "ask.html").write_text(asks)
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'ask.html'}"],
        capture_output=True, text=True, timeout=120)
    said = re.search("<title>(.*?)</title>", done.stdout)
    assert said and said[1] == "[0,[false,false],[false,true],0,0,true]", done.stderr[-500:]


@pytest.mark.parametrize("continuous", [False, True])
def test_notes_are_about_what_was_fed_in(continuous, tiny):
    """An id's row; of a continuous thought the state that it is, which stands one place before."""
    model = tiny(V=19, N=1 if continuous else 7, dtype=torch.float32)
    model.text_ids = CUPS.text_ids
    rules = Rules("forced", 2, 6, 0, continuous=continuous)
    ro = rollout(model, plain(torch.tensor([[0, 1, 2]] * 2), 3, 5), rules,
                 Luck(0, 0, "rollout"))
    one = Run(model, rules, None)
    notes = notes_on(one, ro)
    assert [len(x) for x in notes] == [6, 6]
    for r, t in ro.is_think.nonzero().tolist():
        fed = ro.h[r, t - 1] if continuous else model.think[ro.ids[r, t] - 19]
        line = notes[r][int(ro.is_think[r, :t].sum())]
        assert line == "nearest rows: " + nearest_rows(model, one.tokenizer, fed[None])[0]


MOVES = CUPS.think_after("stream", "forced")


@pytest.mark.parametrize("rules, N", [
    (Rules("forced", 1, 16, 5, MOVES), 16), (Rules("forced", 2, 16, 5, MOVES, continuous=True), 1),
    (Rules("forced", 2, 2, 5, [CUPS.id["?"]], False), 16),
    (Rules("forced", 2, 2, 5, [CUPS.id["?"]], False, True), 1), (Rules("never"), 0),
], ids=["tokens", "continuous", "next_token", "next_token, continuous", "none"])
def test_command(rules, N, tmp_path, monkeypatch, capsys):
    """A page for each kind of thoughts: as many notes as thoughts, where their vectors are kept."""
    model = GPT(Config(1, 2, 16, 128, len(CUPS.text_ids), N), CUPS.text_ids)
    model.think.data.normal_()
    save(tmp_path / "ckpt.pt", as_checkpoint(model) | {"settings": {}, "rules": vars(rules)})
    argv = ["--checkpoint", tmp_path, "--out", tmp_path / "page.html", "--new_tokens", "9",
            "--prompt", "The ball is under cup B. Moves: AB, left. Where?"]
    code, said, err = run(page.main, argv, monkeypatch, capsys)
    assert code == 0, err
    whole = (tmp_path / "page.html").read_text()
    thoughts = int(re.search(r"4 samples with (\d+) thoughts", said)[1])
    assert (thoughts > 0) == (N > 0) and '<span class="prompt">The ball' in whole
    kept = rules.persist or not rules.continuous
    assert whole.count("nearest rows: ") == whole.count('class="think" tabindex')
    assert whole.count("nearest rows: ") == (thoughts if kept else 0)
    assert ("lab.probe" in whole) == (thoughts > 0 and kept)


def test_markup_in_a_prompt_is_shown_and_not_run(tmp_path, monkeypatch, capsys):
    """From end to end: a plain GPT-2, whose prompt is a script."""
    save(tmp_path / "x.pt", as_checkpoint(GPT(Config(1, 1, 8, 64, 50257))))
    argv = ["--checkpoint", tmp_path / "x.pt", "--prompt", "<script>alert(1)</script>",
            "--new_tokens", "3", "--out", tmp_path / "page.html"]
    assert run(page.main, argv, monkeypatch, capsys)[0] == 0
    whole = (tmp_path / "page.html").read_text()
    # four samples, and twice the title
    assert "<script" not in whole and whole.count("&lt;script&gt;alert(1)") == 6


@pytest.mark.parametrize("argv, words", [
    (["--checkpoint", "{tmp}/none.pt"], "train.py"), (["--samples", "0"], "at least 1"),
    (["--out", "{tmp}/no/such/page.html"], "there is no folder"), (["--out", "{tmp}"], "{tmp}"),
    (["--prompt", " "], "empty"), (["--prompt", "hello"], "outside this model's language"),
    (["--promt", "x"], "--prompt"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_refuses(argv, words, tmp_path, monkeypatch, capsys):
    """One clear line and exit code 2, before anything is written."""
    model = GPT(Config(1, 2, 16, 128, 19, 4), CUPS.text_ids)
    save(tmp_path / "ckpt.pt", as_checkpoint(model) | {
        "settings": {}, "rules": vars(Rules("forced", 1, 16, 5, MOVES))})
    argv = ["--out", "{tmp}/page.html", *argv]
    argv += ["--checkpoint", "{tmp}/ckpt.pt"] if "--checkpoint" not in argv else []
    argv = [x.format(tmp=tmp_path) for x in argv]
    code, _, err = run(page.main, argv, monkeypatch, capsys)
    assert code == 2 and words.format(tmp=tmp_path) in err and err.count("\n") == 1, err
    assert err.startswith("lab.page: ") and not (tmp_path / "page.html").exists()
