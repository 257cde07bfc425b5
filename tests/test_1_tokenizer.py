"""Lesson 1, tokenizer.py: a text is a list of numbers, and a thought is a number without a text.

GPT-2 cuts text into some 50,000 pieces and gives each a number. Whatever goes in comes out
unchanged. The numbers after those of text are thoughts: they have a name, and nothing that a person
types can become one. Whatever a model says can be shown.
"""
import hashlib
import io

import pytest

import tokenizer
from conftest import refuses
from run import html_page
from tokenizer import ANSI, RESET, Tokenizer, use_color

GAME = "The ball is under cup B."
GAME_IDS = [464, 2613, 318, 739, 6508, 347, 13]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer(think_vocab=3)


@pytest.fixture(scope="module")
def small():
    return Tokenizer(GAME_IDS, think_vocab=2)


def test_text_is_numbers_and_comes_back(tok):
    """Guards the first lesson. A text is a list of ids, a thought is an id after all of them, and
    it is shown by its name."""
    ids = tok.encode(GAME)
    assert ids == GAME_IDS and tok.decode(ids) == GAME
    thought = tok.V + 2  # V = 50,257 text ids, and then think0, think1, think2
    assert tok.decode([*ids[:2], thought, *ids[2:]]) == "The ball<think2> is under cup B."


@pytest.mark.parametrize("text", [
    "", " ", "a", "Hello, world!", "  two  spaces\n\n\tand a tab\r\n",
    "naïve Ärger 日本語 العربية", "🙂👩‍👩‍👧🏳️‍🌈", "\0", "a\0b\0",
    "\ufeffBOM", "e\u0301 combining", "<|endoftext|>", "<think17>", "\x1b[31mred",
    "1234567890 don't I'll",
])
def test_round_trip(tok, text):
    """Guards the one promise of a byte-level code: every text comes back exactly."""
    assert tok.decode(tok.encode(text)) == text


def test_byte_by_byte():
    """Guards a language of single bytes: a row for each byte of a text, also where a character has
    several, and every text comes back. Bytes that it lacks are named."""
    text = "naïve 日本語 don't <think17>\n\t" + "é" * 9
    whole = Tokenizer([*range(256)])
    rows = whole.encode(text)
    assert len(rows) == len(text.encode()) and whole.decode(rows) == text
    assert b"".join(map(whole.bytes_of, rows)) == text.encode()
    some = Tokenizer(sorted(set(rows)))
    assert some.V == len(set(text.encode())) and some.decode(some.encode("evian\n")) == "evian\n"
    with pytest.raises(ValueError, match="'Z'"):
        some.encode("naZve")
    assert whole.decode(whole.encode("a\ud800b\ud83d\ude42")) == "a\ufffdb🙂"
    # one longer piece, and text is cut as GPT-2 cuts it
    assert not Tokenizer([*range(256), 262]).by_byte


def test_round_trip_long(tok):
    """Guards against a limit on length: 300,000 characters, among them long runs of one kind."""
    text = ("The quick brown fox. " * 10_000 + "é" * 1_000 + "\n" * 1_000 + "🙂" * 500
            + " ball" * 15_000)
    assert len(text) > 287_000 and tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("text", [" " * 10**6 + "a", "a" + "\n" * 10**6 + "b", " " * 99_999 + "a",
                                  (" " * 10**5 + "a") * 3], ids=range(4))
def test_long_run_of_spaces(tok, text):
    """Guards against a panic of tiktoken, which no `except` would see, on a million spaces before
    a word."""
    assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("text, ids", [
    (GAME, GAME_IDS), ("Hello world", [15496, 995]), ("The dog", [464, 3290]), ("", []),
    ("\n", [198]), (" was found in a", [373, 1043, 287, 257]),
])
def test_known_ids(tok, text, ids):
    """Guards against ranks that are shifted by one: a round trip would not see it, GPT-2's weights
    would."""
    assert tok.encode(text) == ids


def test_thoughts_and_separator_can_not_be_typed(tok):
    """Guards against a prompt that smuggles in a thought or a document's end."""
    ids = tok.encode("<think0> <think2><|endoftext|>")
    assert max(ids) < tokenizer.END_OF_TEXT and len(ids) > 3


def test_lone_surrogate(tok):
    """Guards against a crash on text that is no Unicode (a bad file name, a cut JSON escape):
    U+FFFD instead."""
    assert tok.decode(tok.encode("a\ud800b")) == "a\ufffdb"
    assert tok.decode(tok.encode("\udfff")) == "\ufffd"


def test_half_a_character(tok):
    """Guards characters that are spread over several ids: whole when together, U+FFFD and no crash
    when cut."""
    ids = tok.encode("🙂")
    assert len(ids) > 1 and tok.decode(ids) == "🙂"
    assert "\ufffd" in tok.decode(ids[:1]) and "\ufffd" in tok.decode(ids[1:])
    inside = [*ids[:1], tok.V, *ids[1:]]  # a thought inside a character
    assert tok.decode(inside).count("<think0>") == 1


def test_decode_is_total(tok, small):
    """Guards against a crash on something that a model can say: every id in range has a string,
    alone and in a row."""
    for t in (tok, small):
        for i in range(t.V + t.N):
            assert isinstance(t.decode([i]), str)
        assert isinstance(t.decode(list(range(t.V + t.N))[::-1]), str)
    assert tok.decode([tokenizer.END_OF_TEXT]) == "<|endoftext|>"


@pytest.mark.parametrize("wrong", [-1, -50257, 50257 + 3, 10**9])
def test_id_outside(tok, wrong):
    """Guards against a wrong id that silently shows as some text (Python's -1 is the last row)."""
    for call in (lambda: tok.decode([464, wrong]), lambda: tok.show([464, wrong], 1)):
        refuses(lambda: call(), str(wrong))


def test_names(tok, small):
    """Guards the names of thoughts: counted from 0, after this model's own V, and none for text.
    A continuous thought is no row and has no name."""
    assert [tok.name(tok.V + i) for i in range(3)] == ["<think0>", "<think1>", "<think2>"]
    assert small.V == 7 and small.name(8) == "<think1>"
    assert Tokenizer(GAME_IDS, 1, continuous=True).decode([0, 7, 1]) == "The█ ball"
    for t, wrong in ((tok, tok.V - 1), (tok, tok.V + 3), (small, 6), (small, 9)):
        refuses(lambda: t.name(wrong))
    refuses(lambda: tok.bytes_of(tok.V))  # a thought has no bytes


def test_text_ids_renumber(small):
    """Guards a small language: rows are numbered 0..V-1 in the order of text_ids, both ways."""
    assert small.encode(GAME) == list(range(7))
    assert small.encode(" cup is under.") == [4, 2, 3, 6]
    assert small.decode([6, 0, 8, 1]) == ".The<think1> ball"
    assert small.words() == ["The", " ball", " is", " under", " cup", " B", "."]
    assert Tokenizer(GAME_IDS[::-1]).encode(GAME) == [6, 5, 4, 3, 2, 1, 0]
    refuses(lambda: small.check(8))  # of a model with another number of rows


def test_words_outside(small):
    """Guards the message for a word outside the language: it names the word, once, and lists those
    that there are."""
    text = refuses(lambda: small.encode("The dog is under dog cup."))
    assert text.count("' dog'") == 1 and "1 piece" in text
    assert " ball" in text and "' is'" not in text


def test_thoughts_left_out(tok):
    """Guards --hide_thoughts: the text around a thought closes up, also in the middle of a
    character."""
    a, b = tok.encode("🙂")[:1], tok.encode("🙂")[1:]
    assert tok.decode([464, tok.V, 2613], thoughts=False) == "The ball"
    assert tok.decode([*a, tok.V + 1, *b], thoughts=False) == "🙂"
    assert tok.show([464, tok.V, 2613], 1, "plain", thoughts=False) == "The ball"
    assert tok.show([464, tok.V, 2613], 1, "plain") == "The<think0> ball"


def test_show_ansi(tok):
    """Guards the colours: prompt, own text and thought each in their own, every piece closed
    again."""
    shown = tok.show([464, 2613, tok.V + 2, 318], 1)
    assert shown == (f"{ANSI['prompt']}The{RESET}{ANSI['text']} ball{RESET}"
                     f"{ANSI['think']}<think2>{RESET}{ANSI['text']} is{RESET}")
    assert len(set(ANSI.values())) == 3


def test_show_html(tok):
    """Guards a page of samples against text that is markup: a model may write <script>, the
    browser must not run it."""
    prompt, own = tok.encode("<script>alert(1)</script>"), tok.encode(" & \"x\" <b>")
    shown = tok.show([*prompt, tok.V, *own], len(prompt), "html")
    assert shown == ('<span class="prompt">&lt;script&gt;alert(1)&lt;/script&gt;</span>'
                     '<span class="think">&lt;think0&gt;</span>'
                     '<span class="text"> &amp; &quot;x&quot; &lt;b&gt;</span>')
    page = html_page([shown], "<script>title</script>")
    assert "<script" not in page and page.count("&lt;script&gt;") == 3 and shown in page
    assert "http" not in page  # needs no other file


def test_use_color(monkeypatch):
    """Guards pipes and people who ask for no colour: escape codes go to terminals only, unless
    they are asked for."""
    terminal, pipe = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert use_color("auto", terminal) and not use_color("auto", pipe)
    assert use_color("always", pipe) and not use_color("never", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color("auto", terminal) and use_color("always", terminal)
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: set and not empty
    assert use_color("auto", terminal)


def test_ranks_file():
    """Guards assets/ itself: the file in the repository is the one that the code was tested
    with."""
    found = hashlib.sha256(tokenizer.RANKS.read_bytes()).hexdigest()
    assert found == tokenizer.RANKS_SHA256


def swapped(data):
    """Two lines trade their pieces: a valid file of the right length, and wrong."""
    lines = data.split(b"\n")
    (a, i), (b, j) = lines[1000].split(), lines[1001].split()
    lines[1000:1002] = [b + b" " + i, a + b" " + j]
    return b"\n".join(lines)


@pytest.mark.parametrize("damage", [
    lambda data: b"\n".join(data.split(b"\n")[:40_000]) + b"\n", swapped, lambda data: data[:-1000],
    lambda data: b"", lambda data: b"<html>not found</html>", None], ids=range(6))
def test_damaged_ranks(damage, tmp_path, monkeypatch):
    """Guards against ranks that are missing, cut or altered. Half a file is a smaller vocabulary to
    tiktoken, which checks no hash of a local file, and every id would be quietly wrong."""
    copy = tmp_path / "gpt2.tiktoken"
    if damage is not None:
        copy.write_bytes(damage(tokenizer.RANKS.read_bytes()))
    monkeypatch.setattr(tokenizer, "RANKS", copy)
    refuses(lambda: Tokenizer(), "git checkout")
