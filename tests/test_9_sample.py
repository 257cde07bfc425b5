"""Lesson 9, sample.py: a prompt, continued, with its thoughts.

A model thinks under the rules that it was trained with. `generate` is a rollout under these rules,
and says of each thought what text came before it. On the game a prompt may hold moves already, and
then there are thoughts after those as well.
"""
from dataclasses import replace

import pytest
import torch

from conftest import refuses
from data import Cups, plain
from next_token import roll
from rollout import GREEDY, SAMPLED, Dials, Luck, Rules, naive_rollout
from run import Run
from sample import generate, overwritten
from tokenizer import Tokenizer

CUPS = Cups()
V, MOVES = len(CUPS.text_ids), CUPS.move_ids.tolist()
PROMPT = "The ball is under cup B. Moves:"
STORY = PROMPT + " AB, left. Where? A. Moves: BC"
FREE = Rules("free", 2, 16, 5, MOVES)
FORCED = Rules("forced", 1, 16, 5, MOVES)
BRANCHES = Rules("forced", 2, 2, 7, [CUPS.id["?"]], persist=False)


@pytest.fixture
def a_run(tiny):
    """A maker of runs with a model that is not trained."""
    def make(rules, N=5, **more):
        model = tiny(V=V, N=N, dtype=torch.float32, **more)
        model.text_ids = CUPS.text_ids
        return Run(model, rules, None)
    return make


def test_a_prompt_goes_on(a_run):
    """Guards the first lesson. A sample begins with its prompt, has that many words more, and
    repeats with its seed. The likeliest continuation needs no seed."""
    run = a_run(FREE)
    first, other = generate(run, PROMPT, 12, samples=2)
    assert first.text.startswith(PROMPT) and first.text != other.text
    words = [i for i in first.ids if i < V]
    assert len(words) == 9 + 12 and Tokenizer(CUPS.text_ids).decode(words) == first.text
    assert generate(run, PROMPT, 12, samples=2) == [first, other]
    assert generate(run, PROMPT, 12, seed=1)[0] != first
    assert generate(run, PROMPT, 12, 1, GREEDY, 0) == generate(run, PROMPT, 12, 1, GREEDY, 1)


@pytest.mark.parametrize("rules", [
    FREE, FORCED, replace(BRANCHES, think_after=None), Rules("never", window=5)],
    ids=["free", "forced", "branches", "never"])
@pytest.mark.parametrize("dials", [SAMPLED, Dials(0.7, 1.5, 4)], ids=["sampled", "turned"])
def test_generate_is_a_rollout(a_run, rules, dials):
    """Guards that a person sees what was learned. `generate` gives what `roll` gives by hand, under
    the run's own rules. Where thoughts stay it is what the naive loop gives."""
    run, S = a_run(rules, offset=1.0), 10
    ids = Tokenizer(CUPS.text_ids).encode(PROMPT)
    text = plain(torch.tensor([ids] * 3), len(ids), S, siblings=3)
    its = rules.room_for(S) if rules.think != "never" else rules
    found = [s.ids for s in generate(run, PROMPT, S, 3, dials, seed=4)]
    assert found == roll(run.model, text, its, Luck(4, 0, "rollout"), dials).kept()
    if rules.persist:
        u = Luck(4, 0, "rollout")(S + its.budget, 3)
        assert found == naive_rollout(run.model, text, its, u, dials)
    assert any(i >= V for row in found for i in row) == (rules.think != "never")


def test_thoughts_and_the_text_before_them(a_run):
    """Guards the list of thoughts: in order, by name, each with all the text before it, and none in
    the text itself."""
    for sample in generate(a_run(FREE, offset=2.0), PROMPT, 20, samples=4):
        wanted, text = [], ""
        for i in sample.ids:
            if i < V:
                text += list(CUPS.id)[i]
            else:
                wanted.append((f"<think{i - V}>", text))
        assert sample.thoughts == wanted and sample.text == text and "<think" not in text
        assert all(before.startswith(PROMPT) for _, before in wanted)
        assert all(before.split()[-1] in "AB AC BC left right" for _, before in wanted)


def test_a_prompt_with_moves(a_run):
    """Guards a prompt that holds moves already. There are thoughts after each of them, in the
    prompt, as if the model had met them while it read. The prompt's own words stay."""
    run = a_run(FORCED)
    sample = generate(run, STORY, 6)[0]
    assert sample.text.startswith(STORY)
    moves = (PROMPT + " AB", PROMPT + " AB, left", STORY)
    assert [before for _, before in sample.thoughts[:3]] == list(moves)
    shown = run.tokenizer.decode(sample.ids[:sample.prompt])  # up to the prompt's last word
    assert shown.count("<think") == 2 and shown.endswith(" BC")
    assert sample.ids[sample.prompt] >= V  # BC is a move as well
    # by hand: from the first move on it is given text
    ids = run.tokenizer.encode(STORY)
    P, S = 10, len(ids) - 10 + 6
    rules = replace(FORCED, budget=S)
    by_hand = naive_rollout(run.model, plain(torch.tensor([ids]), P, S), rules,
                            Luck(0, 0, "rollout")(S + S, 1))
    assert by_hand == [sample.ids]
    # thoughts that are forgotten are made before each new word, and not within the prompt
    branches = generate(a_run(BRANCHES), STORY + ". Where?", 1)[0]
    assert [before for _, before in branches.thoughts] == [STORY + ". Where?"] * 2
    assert branches.prompt == len(branches.ids) - 3


def test_edit(a_run):
    """Guards --replace: thoughts become others, what follows sees the new ones, and a table names
    which."""
    run = a_run(FORCED)
    table = overwritten(["0=3", "1=3", "2=3", "4=3"], V, 5)
    sample = generate(run, STORY, 8, edit=lambda _, ids: table[ids])[0]
    assert sample.thoughts and {name for name, _ in sample.thoughts} == {"<think3>"}
    assert table[:V].tolist() == list(range(V))
    for wrong in ("5=1", "1=5", "1", "a=b", "-1=2", "1=2=3"):
        refuses(lambda: overwritten([wrong], V, 5), wrong)


def test_what_thoughts_look_like(a_run):
    """Guards continuous thoughts, which are no rows and have no number, and a model that never
    thinks."""
    found = generate(a_run(replace(FORCED, continuous=True), N=1), STORY, 4)[0]
    assert {name for name, _ in found.thoughts} == {"█"}
    assert generate(a_run(Rules("never")), STORY, 4)[0].thoughts == []


def test_room_and_refusals(a_run):
    """Guards the end of the context. Thoughts take what room is left, and a prompt that is empty,
    too long, or of another language is one clear line."""
    # it would always think, after any word
    run = a_run(replace(FREE, think_after=None), n_ctx=24, offset=50.0)
    sample = generate(run, PROMPT, 12)[0]
    assert len(sample.ids) == 24 and len(sample.thoughts) == 3
    full = generate(run, PROMPT, 15)[0]
    assert len(full.ids) == 24 and not full.thoughts
    refuses(lambda: generate(run, PROMPT, 16), "24")
    refuses(lambda: generate(run, "", 4), "empty")
    refuses(lambda: generate(run, "The dog", 4), "' dog'")
