"""A task of one's own: what a file may look like, which lines are refused, that padding is nothing,
and that a run on it learns from answers alone, is evaluated by level, resumes and answers.

Left out on purpose: whether it learns; that takes minutes.
"""
import json
import shlex
from dataclasses import replace

import pytest
import torch

import sample
import train
from conftest import luck, numbers, refuses, run, settings
from data import TextFile, seeded
from evaluate import answers_right, examples, room, whole
from lab import experiments, probe
from lab.report import told_stories
from model import GPT, Config
from next_token import answer_prompt, roll, states
from reward import Credit, advantages, rollout_loss, scale_of, score, text_weights
from rollout import GREEDY, Rules, naive_rollout, visible
from run import open_run
from sample import generate, load_run
from task import OFFSETS, Task, cut, fitted, kind_of, open_source, read_rows
from tokenizer import END_OF_TEXT, Tokenizer

FORCED = Rules("forced", 1, 9, 1, [], counts="steps")


def story(level, n=3, name="Anna"):
    facts = [f"{name} has {n} apples.", *["She finds 2.", "She eats 1."] * 9][:level]
    total = n + sum(2 if "finds" in x else -1 for x in facts[1:])
    return {"prompt": " ".join([*facts, "How many?"]), "answer": str(total), "level": level}


ROWS = [story(1 + i % 4, i % 7, ("Anna", "Ben")[i % 2]) for i in range(80)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "task.jsonl", ROWS)


def small(file, out, **more):
    rows = {"think_vocab": 8} if "thoughts" not in more else {}
    return settings(data=file, model="scratch:1x16", steps=3, eval_every=3, out=str(out), **rows,
                    **more)


def task_of(file, think_after="steps", approach="stream", **more):
    s = settings(data=file, think_after=think_after, approach=approach, **more)
    return Task(file, None, s, own=True)


# What a file may look like

@pytest.mark.parametrize("row, pieces, after", [
    (story(2), ["Anna has 3 apples.", " She finds 2.", " How many?"], "steps"),
    ({"question": "One. Two", "completion": "x"}, ["One.", " Two"], "steps"),
    ({"input": "No sentence ", "target": 3.5}, ["No sentence", ""], "steps"),
    ({"prompt": "It costs 3.5 now. So?", "answer": 1}, ["It costs 3.5 now.", " So?"], "steps"),
    ({"prompt": "a\nb\nc", "answer": 1}, ["a", "\nb", "\nc"], "steps"),
    ({"steps": ["a", "b", " c"], "ground_truth": "d"}, ["a", " b", " c", ""], "steps"),
    ({"steps": ["A.", "B."], "prompt": "A. B. C?", "answer": "d"}, ["A.", " B.", " C?"], "steps"),
    ({"steps": ["A.", "B."], "prompt": "A.\nB.", "answer": "d"}, ["A.", " B.", ""], "steps"),
    (story(2), ["Anna has 3 apples. She finds 2. How many?", ""], "end"),
    ({"steps": ["A.", "B."], "answer": "d"}, ["A. B.", ""], "end"),
    ({"prompt": "a, b, c", "answer": "d"}, ["a,", " b,", " c"], ","),
    ({"prompt": "a b c", "answer": "d"}, ["a b c", ""], ","),
])
def test_pieces(row, pieces, after, tmp_path):
    """Guards where thoughts may stand: after each piece but the last. And the keys of a row."""
    found, = read_rows(tmp_path / write(tmp_path / "a.jsonl", [row]), after)
    assert found.pieces == pieces and found.answer and found.level == row.get("level", 0)


def test_ids_say_where(file):
    """Guards the ids of a row. Closed up they are the text; thoughts stand after whole pieces; the
    answer is one word later, and its end pays with it."""
    task = task_of(file)
    gpt2 = Tokenizer(task.text_ids)
    text = task.batch(task.train[:4])
    for r, x in enumerate(task.train[:4]):
        row = next(row for row in ROWS if row["prompt"] in gpt2.decode(x.ids))
        assert gpt2.decode(x.ids) == f"{row['prompt']} {row['answer']}<|endoftext|>"
        pieces = cut(row["prompt"], "steps")
        before = ["".join(pieces[:i]) for i in range(1, len(pieces))]
        assert [gpt2.decode(x.ids[:i + 1]) for i in x.slots] == before
        paid = text.ids[r, text.P:][text.pays[r] > 0]
        assert gpt2.decode(paid.tolist()) == f" {row['answer']}<|endoftext|>"
        assert (text.level[r][text.pays[r] > 0] == x.level).all()
        assert text.real[r].sum() == len(x.ids) - text.P
    assert len(task.text_ids) < 40 and END_OF_TEXT in task.text_ids


def test_held_out(tmp_path):
    """Guards what is held out: the last 5 % of each level, even of a file in order of its levels;
    or all of another file."""
    rows = sorted(ROWS, key=lambda row: row["level"])
    task = task_of(write(tmp_path / "sorted.jsonl", rows))
    assert [x.level for x in task.eval] == [1, 2, 3, 4]
    assert [x.line for x in task.eval] == [20, 40, 60, 80] and len(task.train) == 76
    other = write(tmp_path / "other.jsonl", [story(6, 5)])
    task = task_of(write(tmp_path / "a.jsonl", ROWS), eval_data=other)
    assert len(task.train) == 80 and [x.level for x in task.eval] == [6] and task.levels == 6


def test_settings_follow_from_the_rows(file, tmp_path):
    """Guards what nobody types: approach, window, budget, lengths and curriculum."""
    s = settings(data=file, approach="stream")
    longest = max(task_of(file).train, key=lambda x: len(x.ids))
    assert (s.window, s.budget) == (1, 4) and s.think == "forced" and s.curriculum == "on"
    assert s.prompt_tokens == longest.start and s.new_tokens == 2
    assert train.resolve({"data": file}).approach == "stream"
    assert settings(data=file, approach="stream", window=9).window == 9
    assert fitted(file, replace(s, think_after="end"))["window"] == 0
    no_levels = write(tmp_path / "b.jsonl", [{"prompt": "A. B?", "answer": "c"}] * 9)
    assert settings(data=no_levels, approach="stream").curriculum == "off"
    scratch, gpt2 = (settings(data=file, model=m, approach="stream") for m in ("scratch", "gpt2"))
    assert scratch.lr > 10 * gpt2.lr


def test_a_text_stays_a_text(tmp_path, monkeypatch):
    """Guards files with a field `text`, whatever else they hold."""
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    path = write(tmp_path / "text.jsonl", [{"text": "words " * 99, "answer": "x"}])
    assert kind_of(path) == "text" and kind_of(write(tmp_path / "t.jsonl", ROWS)) == "task"
    assert isinstance(open_source(path, settings=settings()), TextFile)


@pytest.mark.parametrize("line, words", [
    ('{"prompt": "a"', "no JSON"),
    ("[1]", "no JSON object"),
    ('{"answer": "b"}', "none of prompt, question"),
    ('{"prompt": "a"}', "none of answer"),
    ('{"prompt": "a", "answer": " "}', "answer is empty"),
    ('{"prompt": "a", "answer": ["b", "c"]}', "neither a text nor a number"),
    ('{"prompt": "a", "answer": NaN}', "neither a text nor a number"),
    ('{"prompt": "a", "answer": 1e999}', "neither a text nor a number"),
    ('{"prompt": " ", "answer": "b"}', "prompt is empty"),
    ('{"prompt": [{"role": "user"}], "answer": "b"}', "prompt is no text"),
    ('{"prompt": "a", "answer": "b", "level": 0}', "whole number from 1"),
    ('{"prompt": "a", "answer": "b", "level": "hard"}', "whole number from 1"),
    ('{"prompt": "a", "answer": "b"}', "no `level`"),
    ('{"prompt": "a", "answer": "b", "level": 1, "steps": ["c"]}', "begin with its steps"),
    ('{"prompt": "a", "answer": "b", "level": 1, "steps": "a"}', "no list of texts"),
    ('{"prompt": "' + "word " * 1200 + '", "answer": "b", "level": 1}', "context"),
], ids=lambda x: x[:40])
def test_lines_that_are_refused(line, words, tmp_path, monkeypatch, capsys):
    """Guards whoever writes a file: exit code 2, and one line that names the line."""
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + line + "\n")
    monkeypatch.setattr(train, "load", lambda name: GPT(Config(1, 2, 16, 1024)))
    code, _, err = run(train.main, ["--data", path, "--model", "gpt2", "--out", tmp_path / "out"],
                       monkeypatch, capsys)
    assert code == 2 and words in err and "line 81" in err and err.count("\n") == 1, err


@pytest.mark.parametrize("argv, words", [
    (["--approach", "teacher"], "--approach stream"),
    (["--eval_data", "{tmp}/none.jsonl"], "none.jsonl"),
])
def test_flags_that_are_refused(argv, words, file, tmp_path, monkeypatch, capsys):
    argv = ["--data", file, "--out", tmp_path / "out", *(x.format(tmp=tmp_path) for x in argv)]
    code, _, err = run(train.main, argv, monkeypatch, capsys)
    assert code == 2 and words in err and err.count("\n") == 1, err


def test_flags_of_tasks_belong_to_tasks():
    for flag in ("eval_data", "think_after"):
        refuses(lambda: settings(**{flag: "end"}), f"--{flag}", "a task")


# Padding is nothing

@pytest.fixture
def batch(file, tiny):
    """Four rows of four lengths, each twice, and a model that knows their words."""
    task = task_of(file)
    text = task.batch([next(x for x in task.train if x.level == n) for n in (1, 4, 2, 3)])
    model = tiny(V=len(task.text_ids), n_ctx=128)
    return model, text.repeat(2), settings(data=file, samples=2, think_vocab=5)


def learned(model, ro, text, weight, scale, adv, rules):
    """-> rewards and the gradient of all parameters, flat."""
    model.zero_grad()
    with torch.no_grad():
        r = score(model, ro, text.pays.double()).r
    loss, _ = rollout_loss(model, states(model, ro, rules), ro, Credit(adv), weight, scale)
    loss.backward()
    return r, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("think", ["forced", "free"])
def test_padded_rows_are_the_rows(batch, think):
    """Guards padding. Rows one by one, without any, have the same thoughts, rewards and advantages,
    and their gradients add up to that of the padded batch, to 1e-9."""
    model, text, s = batch
    model.gate_bias.data.fill_(3.0)
    rules, u = replace(FORCED, think=think), luck(numbers(99, 8))
    ro = roll(model, text, rules, u)
    with torch.no_grad():
        r = score(model, ro, text.pays.double()).r
        credit = advantages(r, ro, text, s)
    scale, weight = scale_of(s, credit, 0.0), text_weights(text, s, r).double()
    adv = credit.advantage
    r, g = learned(model, ro, text, weight, scale, adv, rules)
    total = torch.zeros_like(g)
    for i in range(8):
        n = int(text.real[i].sum())  # new tokens of this row
        one = text.each(lambda x: x[i:i + 1])
        one = replace(one, ids=one.ids[:, :text.P + n], open=one.open[:, :text.P + n], siblings=1,
                      **{k: getattr(one, k)[:, :n] for k in ("pays", "level", "real")})
        alone = roll(model, one, rules, luck(numbers(99, 8)[:, i:i + 1]))
        assert alone.kept()[0] == ro.kept()[i][:len(alone.kept()[0])]
        r_one, g_one = learned(model, alone, one, weight[i:i + 1, :n], scale, adv[i:i + 1, :n],
                               rules)
        assert torch.allclose(r_one[0], r[i, :n], atol=1e-9, rtol=0)
        total += g_one
    assert torch.allclose(total, g, atol=1e-9, rtol=0) and g.abs().max() > 1e-3
    assert ro.is_think.sum() > 8 and (text.real.sum(1) < text.S).sum() == 6


def test_padding_is_never_seen(batch):
    """Guards the same from the other side: whatever stands there, rewards and gradients stay. It
    earns nothing, has no weight, and holds no thought."""
    model, text, s = batch
    found = []
    for seed in (0, 1):
        ids = text.ids.clone()
        noise = torch.randint(len(model.wte.weight), ids.shape,
                              generator=torch.Generator().manual_seed(seed))
        ids[:, text.P:] = torch.where(text.real, ids[:, text.P:], noise[:, text.P:])
        other = replace(text, ids=ids)
        ro = roll(model, other, FORCED, luck(numbers(99, 8)))
        thoughts = torch.where(ro.is_think, ro.ids, -1)
        with torch.no_grad():
            r = score(model, ro, text.pays.double()).r
            credit = advantages(r, ro, text, s)
        weight = text_weights(other, s, r).double()
        assert (weight[~text.real] == 0).all() and (weight[text.real] > 0).all()
        found.append((thoughts, *learned(model, ro, other, weight, scale_of(s, credit, 0.0),
                                         credit.advantage, FORCED)))
    for a, b in zip(*found):
        assert torch.equal(a, b)
    assert (found[0][1][~text.real] == 0).all()
    last = ro.after[ro.is_think].max()
    assert last < text.P + text.real.sum(1).max()


def test_k_thoughts_before_the_answer(file, tiny):
    """Guards `--think_after end`: the naive loop writes the same rows, and each is its prompt, K
    thoughts, its answer, padding."""
    task, K = task_of(file, "end"), 3
    text, V = task.batch(task.train[:6]), len(task.text_ids)
    model, rules = tiny(V=V, n_ctx=128), Rules("forced", K, K, 0, [])
    ro = roll(model, text, rules, luck())
    assert ro.kept() == naive_rollout(model, text, rules, luck()(text.S + K, 6))
    for row, x in zip(ro.kept(), task.train):
        assert row[:x.start] == x.ids[:x.start]
        assert all(i >= V for i in row[x.start:x.start + K])
        assert row[x.start + K:][:len(x.ids) - x.start] == x.ids[x.start:]


# Evaluation

def test_whole_answers():
    """Guards exact match: a token counts only where all those of its answer before it are right."""
    asked = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 0, 1, 0, 0, 0, 1]]).bool()
    hit = torch.tensor([[0, 1, 1, 0, 1, 0, 1], [1, 1, 0, 0, 1, 1, 1]]).bool()
    right, last = whole(hit, asked)
    assert right.int().tolist() == [[0, 1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 1]]
    assert last.int().tolist() == [[0, 0, 1, 0, 0, 0, 1], [1, 0, 1, 0, 0, 0, 1]]


def test_exact_match_is_greedy_decoding(file, tiny):
    """Guards the number in the log. It is the share of rows whose answer the model itself writes,
    token by token; and log-probs are sums over the answer."""
    task = task_of(file)
    model = tiny(V=len(task.text_ids), n_ctx=128)
    text = task.batch(task.train)
    hit, last = whole(answers_right(model, text, FORCED), text.pays > 0)
    # a random model is never right: its own answers become the data's, in half of the rows
    for i, x in enumerate(task.train):
        ro = answer_prompt(model, FORCED, x.ids[:x.start], x.slots, len(x.ids) - x.start,
                           dials=GREEDY, luck=luck())
        own = ro.text[0, x.start:]
        if i % 2:
            text.ids[i, x.start:len(x.ids)] = own
            task.train[i] = x._replace(ids=x.ids[:x.start] + own.tolist())
    again, last = whole(answers_right(model, text, FORCED), text.pays > 0)
    assert again[last].tolist() == [bool(i % 2) or bool(hit[last][i])
                                    for i in range(len(task.train))]
    rows = sorted(task.train, key=lambda x: x.level)
    found = examples(model, task, FORCED, task.batch(rows))
    assert found["answers_by_level"] == [19] * 4
    assert found["accuracy"] == pytest.approx(again[last].float().mean().item())
    for arm in ("", "another_", "none_"):
        assert len(found[f"accuracy_{arm}by_level"]) == len(found[f"logp_{arm}by_level"]) == 4
    assert found["logp"] != pytest.approx(found["logp_none"])
    assert found["logp"] != pytest.approx(found["logp_another"])
    tokens = sum(len(x.ids) - x.start for x in rows) / len(rows)
    assert found["nats_without_thoughts"] == pytest.approx(-found["logp_none"] / tokens)
    never = examples(model, task, Rules("never"), task.batch(rows))
    assert never["nats_without_thoughts"] == pytest.approx(-never["logp"] / tokens)


# Runs

def test_what_is_compared(file, tmp_path, monkeypatch):
    """Guards long rows, which are always behind short ones: no choice is widened for that. From
    stage 2 on the stage's own rows are compared. On cups all rows are alike."""
    credits, compare = [], train.advantages
    monkeypatch.setattr(train, "advantages",
                        lambda *it: credits.append((it[2], compare(*it))) or credits[-1][1])
    for stage in (1, 3):
        run = train.setup(small(file, tmp_path / "task"))
        run.progress.stage = stage
        train.train(run)
    assert all(credit.widen is None for _, credit in credits[:3])
    text, later = credits[3]
    own = (text.level == 3).any(1)
    assert (~own).any() and later.widen[~own].max() == 0
    credits.clear()
    for curriculum in ("on", "off"):
        out = str(tmp_path / curriculum)
        train.train(train.setup(settings(
            steps=1, eval_every=9, curriculum=curriculum, think_vocab=8, out=out)))
    assert [x.widen is not None for _, x in credits] == [True, False]


@pytest.mark.parametrize("more", [
    {}, {"thoughts": "continuous"}, {"thoughts": "none"}, {"think": "free"},
    {"approach": "next_token"}, {"approach": "next_token", "thoughts": "continuous"},
    {"think_after": "end", "max_thoughts": 2}], ids=str)
def test_a_run(file, tmp_path, more, capsys):
    """Guards the whole way: a run learns, is evaluated by level, is resumed and answers. One that
    ends early in its curriculum says how to go on."""
    train.train(train.setup(small(file, tmp_path, **more)))
    out = capsys.readouterr().out
    assert "in stage 1 of" in out and f"--resume --steps 6 --out {tmp_path}" in out
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["kind"] for x in lines] == ["eval", "step", "step", "step", "eval"]
    last, thinks = lines[-1], more.get("thoughts") != "none"
    assert len(last["accuracy_by_level"]) == 4 and last["answers_by_level"] == [1] * 4
    assert (lines[2]["thoughts"] > 0) == thinks and ("accuracy_none" in last) == thinks
    assert "How many?" in (tmp_path / "samples.html").read_text()
    it = train.resume({"out": str(tmp_path), "steps": 4})
    train.train(it)
    assert open_run(tmp_path).progress.step == 4
    run = load_run(tmp_path)
    found, = generate(run, "Anna has 3 apples. She finds 2. How many?", 3, dials=GREEDY)
    assert found.text == "Anna has 3 apples. She finds 2. How many?" + found.output
    if run.rules.persist and more.get("think") != "free":
        K = run.rules.max_thoughts * thinks
        slots = 1 if "think_after" in more else 2
        assert len(found.thoughts) == K * slots and len(found.p_think) == len(found.ids)


def test_answers_to_a_file(file, tmp_path, monkeypatch, capsys):
    """Guards `sample.py --jsonl`: every line comes back, with what was said and thought."""
    train.train(train.setup(small(file, tmp_path / "out")))
    lines = [ROWS[5], {"id": 7, "question": "Ben has 1 apples. How many?"},
             {"steps": ["Ben has 1 apples.", "She eats 1."],
              "prompt": "Ben has 1 apples. She eats 1. How many?"}]
    into = tmp_path / "said.jsonl"
    argv = ["--checkpoint", tmp_path / "out", "--temperature", 0, "--jsonl"]
    code, _, err = run(sample.main, [*argv, write(tmp_path / "in.jsonl", lines), into], monkeypatch,
                       capsys)
    said = [json.loads(x) for x in into.read_text().splitlines()]
    assert code == 0 and [{k: x[k] for k in old} for x, old in zip(said, lines)] == lines, err
    assert [len(x["thoughts"]) for x in said] == [2, 1, 2]
    assert said[0]["right"] == (said[0]["output"] == ROWS[5]["answer"]) and "right" not in said[1]
    bad = write(tmp_path / "bad.jsonl", [ROWS[0], {"answer": 1}])
    code, _, err = run(sample.main, [*argv, bad, into], monkeypatch, capsys)
    assert code == 2 and "line 2" in err and err.count("\n") == 1
    # other line ends may stand in a line, and blank lines between two
    odd = tmp_path / "odd.jsonl"
    line = '\n{"id": "a\u2028b", "prompt": "Ben has 1 apples. How many?"}\n'
    odd.write_text(line, encoding="utf-8")
    assert run(sample.main, [*argv, odd, into], monkeypatch, capsys)[0] == 0
    assert json.loads(into.read_text())["id"] == "a\u2028b"
    for name in ("ckpt.pt", "metrics.jsonl"):  # nothing of a run is written over
        before = (tmp_path / "out" / name).read_bytes()
        code, _, err = run(sample.main, [*argv, odd, tmp_path / "out" / name], monkeypatch, capsys)
        assert code == 2 and name in err and (tmp_path / "out" / name).read_bytes() == before
    code, _, err = run(sample.main, [*argv, odd, odd], monkeypatch, capsys)
    assert code == 2 and "reads" in err and odd.read_text(encoding="utf-8") == line


def test_levels_with_gaps(tmp_path):
    """Guards files whose levels begin above 1, or leave some out: each stage has rows. (With three
    thoughts in the easiest ones, level n is stage n + 1.)"""
    rows = [story(level, i % 5) for i in range(30) for level in (3, 6)]
    task = task_of(write(tmp_path / "gaps.jsonl", rows))
    s = settings(data=str(tmp_path / "gaps.jsonl"), prompts=4)
    for stage, levels in ((1, {3}), (4, {3}), (5, {3}), (7, {3, 6})):
        for text in (task.text(s, 1, stage), task.quiz(stage, 16, seeded(0, 0, "quiz"))):
            found = set(text.level[text.level > 0].tolist())
            assert found <= levels and max(found) == max(levels)


def test_probe_and_page(file, tmp_path, monkeypatch, capsys):
    """Guards lab.probe and the page of lab.report on a task: by level, with exact match, and what
    each last thought stands for, which `load_run` then knows. A run ends with that command."""
    train.train(train.setup(small(file, tmp_path / "out")))
    typed = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert typed[:4] == ["python", "-m", "lab.experiments", "report"]
    code, said, err = run(experiments.main, typed[3:], monkeypatch, capsys)
    assert code == 0 and "stories of" in said, err
    assert 'role="tooltip"' in (tmp_path / "out" / "report.html").read_text()
    argv = ["--checkpoint", tmp_path / "out", "--stories", 4]
    code, said, err = run(probe.main, argv, monkeypatch, capsys)
    assert code == 0 and "n = 4" in said and "answers after a last thought" in said, err
    found = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert found["levels"] == 4 and found["conditions"]["own"]["answers_by_n"] == [1] * 4
    again = found["conditions"]
    assert again["refed"]["accuracy_by_n"] == again["own"]["accuracy_by_n"]
    it = load_run(tmp_path / "out")
    assert it.meaning == found["meaning"] and it.meaning
    s, = generate(it, ROWS[3]["prompt"], 2, dials=GREEDY)
    assert len(s.meanings) == len(s.thoughts) == 4
    told = told_stories(tmp_path / "out")
    assert len(told.stories) == len(told.notes) == 4
    assert [x.count('class="think"') for x in told.stories] == [len(x) for x in told.notes]


def test_first_stage_of_two_thoughts(file, tmp_path):
    """Where level 1 takes two thoughts it has two stages. In the first of them the answer sees both
    thoughts, in its questions as well, and nothing from before them."""
    two = write(tmp_path / "two.jsonl", [x | {"level": x["level"] - 1} for x in ROWS
                                         if x["level"] > 1])
    s = settings(data=two, model="scratch:1x16")
    task = Task(two, None, s, own=True)
    assert task.first_window > s.window and task.stages == max(x["level"] for x in ROWS)
    assert not task.text(s, 3, 0).window  # --curriculum off
    for stage in range(1, 5):
        for text in (task.text(s, 3, stage), task.quiz(stage, 8, seeded(0, 0, "quiz"))):
            assert text.window == (task.first_window if stage == 1 else 0)
            model = GPT(Config(1, 1, 16, 64, 9, 4))
            assert room(FORCED, text, model).window == (text.window or 1)
            assert text.level.max() == max(stage - 1, 1)

    text = task.text(s, 1, 1)
    V = task.tokenizer.V
    ro = roll(GPT(Config(1, 1, 16, 64, V, 4)), text, FORCED.fit(text, V), luck())
    query = (ro.ids == task.tokenizer.encode("?")[0]).int().argmax(1)  # it says the answer
    sees = visible(ro.is_think, FORCED.fit(text, V), ro.ends)[:, 0]  # [R, T, T]
    for r, q in enumerate(query.tolist()):
        first = ro.is_think[r].int().argmax().item()
        assert sees[r, q].nonzero()[:, 0].tolist() == list(range(first, q + 1))
    for other, more in ((file, {}), (two, {"window": 0}), (two, {"window": task.first_window}),
                        (two, {"thoughts": "none"}), (two, {"think": "free"}),
                        (two, {"approach": "next_token", "window": 1})):
        s = settings(data=other, model="scratch:1x16", **more)
        assert not Task(other, None, s, own=True).first_window, more


def test_no_position_is_new_to_a_model(file, tmp_path):
    """Guards held-out rows that are longer than all others, where everything is seen. Training rows
    begin so far back that one of them reaches each position of theirs."""
    long = write(tmp_path / "long.jsonl", [story(4) | {"prompt": "She finds 2. " * 60 + "How many?",
                                                       "level": 60}])
    seen = {"model": "scratch:1x16", "eval_data": long, "thoughts": "filler"}
    task = task_of(file, window=0, **seen)
    s = settings(data=file, window=0, **seen)
    most = [max(task.places(x, s) for x in xs) for xs in (task.eval, task.train)]
    assert most[0] - most[1] > OFFSETS and task.moves == most[0] - most[1] + 1
    offsets = [task.text(s, step, 1).offset for step in range(50)]
    assert OFFSETS < max(offsets) < task.moves
    assert task.longest(s, s.budget) == most[0]  # held-out rows begin at 0
    for other in (task_of(file, **seen), task_of(file, window=0, model="scratch:1x16")):
        assert other.moves == OFFSETS


def test_stages(file, tmp_path, monkeypatch, capsys):
    """Guards the curriculum of a file: rows up to the stage, half of them its own, as many tokens
    in each. A stage whose answers are never all right ends `patience` steps after its best look,
    and says so."""
    task, s = task_of(file), settings(data=file, prompts=8)
    for stage in (1, 2, 4):
        text = task.text(s, 3, stage)
        level = text.level.max(1).values
        assert level.max() == stage and (level == stage).sum() >= len(level) // 2
        assert torch.equal(text.ids, task.text(s, 3, stage).ids)
        assert (len(level) > 8) == (stage < 4) and text.stage == stage
        weight = text_weights(text, replace(s, samples=1), torch.zeros(text.pays.shape))
        assert (weight[text.pays > 0] > 0).all()
    it = train.setup(small(file, tmp_path, prompts=2))
    assert it.source.patience == 300 and task_of(file, steps=2000).patience == 400
    it.progress.step, last = 10, it.source.patience - 1
    for right, in_stage, stage, left in ((0.3, 3, 1, 0), (0.5, last, 1, 0), (0.5, 5, 1, 6),
                                         (0.4, last, 2, 0), (0.2, 3, 2, 4)):
        monkeypatch.setattr(train, "share_right", lambda run, right=right: right)
        it.progress.in_stage = in_stage
        train.climb(it)
        assert (it.progress.stage, it.progress.in_stage) == (stage, left)
    # all of its four levels are right at once: it goes on by twice the stage, to see drawn thoughts
    # be right as well, and no end is near before the last one
    it.progress = train.replace(it.progress, stage=1, end=900)
    monkeypatch.setattr(train, "share_right", lambda run: 1.0)
    seen = []
    for _ in range(3):
        train.climb(it)
        seen.append((it.progress.stage, it.progress.end))
    assert seen == [(2, 900), (4, 10 + train.AFTER), (4, 10 + train.AFTER)]
    said = "".join(capsys.readouterr())
    assert said.count("stage 1 ends: for 300 updates no more than 50% were right") == 1


# A text of one's own, from scratch

def test_settings_of_a_text_from_scratch(tmp_path):
    """`--model bytes --data my.txt` alone is the recipe of docs/RESULTS.md, question 16. Branches
    see all of a text, and a pretrained model has what it had."""
    (tmp_path / "my.txt").write_text("A text. " * 99)
    data = str(tmp_path / "my.txt")
    s = settings(data=data, model="bytes:1x128")
    assert (s.approach, s.think, s.window, s.think_vocab, s.budget) == ("stream", "forced", 1, 64,
                                                                        64)
    assert settings(data=data, model="bytes:1x128", new_tokens=100).budget == 100
    assert settings(data=data, model="bytes:1x128", approach="next_token").window == 0
    s = settings(data=data, approach="stream", model="gpt2")
    assert (s.think, s.window, s.think_vocab, s.budget) == ("free", 0, 2048, 32)


@pytest.mark.parametrize("name, text", [
    ("a.txt", "A line of words.\nAnd another one, with 7 words.\n" * 60),
    ("a.jsonl", json.dumps({"text": "First document.\nTwo lines. " * 9}) + "\n"
     + json.dumps({"text": "Second one. " * 99}) + "\n")])
def test_text_from_scratch(name, text, tmp_path, monkeypatch, capsys):
    """Guards `--model scratch --data my.txt`: its vocabulary is the file's, line breaks and ends of
    documents are in it, the rate suits a new model, and the run is resumed and sampled."""
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    (tmp_path / name).write_text(text)
    s = train.resolve({"data": str(tmp_path / name), "model": "scratch:1x16", "think_vocab": 4,
                       "steps": 2, "eval_every": 2, "prompts": 2, "prompt_tokens": 8,
                       "new_tokens": 8, "out": str(tmp_path / "out"), "device": "cpu"})
    assert s.approach == "stream" and s.lr >= 1e-3
    it = train.setup(s)
    words = set(it.tokenizer.words())
    assert len(words) < 40 and "\n" in words and (END_OF_TEXT in it.source.text_ids) == (
        name == "a.jsonl")
    assert it.a_prompt() in text.replace("\\n", "\n") and generate(it, it.a_prompt(), 4)[0].output
    plain_text = TextFile(tmp_path / name, Tokenizer())
    assert [it.source.text_ids[i] for i in it.source.train] == plain_text.train.tolist()
    train.train(it)
    train.train(train.resume({"out": s.out, "steps": 3}))
    prompt = "A line" if name == "a.txt" else "First document"
    assert generate(load_run(s.out), prompt, 4)[0].text.startswith(prompt)
    refuses(lambda: generate(load_run(s.out), "elsewhere", 4), "outside this model's language")
    # without a prompt it begins with the text's own, as long as that is there
    ask = ["--checkpoint", s.out, "--new_tokens", "4"]
    code, said, err = run(sample.main, ask, monkeypatch, capsys)
    assert code == 0 and it.a_prompt() in said, err
    (tmp_path / name).unlink()
    code, _, err = run(sample.main, ask, monkeypatch, capsys)
    assert code == 2 and err.count("\n") == 1 and "name one with --prompt" in err


def test_bytes_of_a_file(tmp_path, monkeypatch):
    """Guards --model bytes: documents keep their ends, a task is as long as its bytes are, and data
    that are no file of one's own are refused."""
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    lines = [json.dumps({"text": "abé"}), json.dumps({"text": "cd"})] * 200
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    s = settings(data=str(tmp_path / "a.jsonl"), model="bytes", approach="stream")
    assert s.model == "bytes:1x64" and s.lr == 3e-3
    source = open_source(s.data, settings=s, own=True)
    assert Tokenizer(source.text_ids).decode(source.train[:7].tolist()) == "abé<|endoftext|>cd"
    rows = write(tmp_path / "b.jsonl", [{"prompt": "What is 12344 and 1?", "answer": "12345"}] * 40)
    s = settings(data=rows, model="bytes:1x16", approach="stream")
    assert (s.prompt_tokens, s.new_tokens) == (20, 7)
    task = Task(rows, None, s, own=True)
    assert task.tokenizer.decode(task.train[0].ids) == "What is 12344 and 1? 12345<|endoftext|>"
    for data in ("cups", "webtext"):
        refuses(lambda data=data: settings(data=data, model="bytes:1x16", approach="stream"),
                "a file of your own")
    refuses(lambda: settings(model="scratchy:1x16"), "scratchy", "scratch:LAYERSxWIDTH")


@pytest.mark.parametrize("kind, think_after, more, said", [
    ("task", "word", {}, "nor is it one of steps, end"),
    ("text", "steps", {}, "a text takes anywhere"),
    ("task", "wrod", {}, "stands in no prompt of"),
    ("text", "wrod", {}, "nor is it one of anywhere"),
    ("task", "", {}, "--think_after is empty"), ("text", "", {}, "--think_after is empty"),
    ("text", "word", {"model": "scratch:1x16"}, "is for --model bytes"),
    ("text", "é", {"model": "bytes:1x16"}, "no single token ends so")])
def test_what_thinks_nowhere(kind, think_after, more, said, file, tmp_path, monkeypatch):
    """Guards flags of the other kind of data: each is one line, before anything is trained."""
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    (tmp_path / "a.txt").write_text("A line of words. Café.\n" * 90)
    data = file if kind == "task" else str(tmp_path / "a.txt")
    typed = {"data": data, "approach": "stream", "model": "bytes:1x16"} | more
    refuses(lambda: train.setup(settings(**typed, think_after=think_after)), said)


@pytest.mark.parametrize("think_after, ends, approach", [
    ("anywhere", "A\n ,lineofwrdsm.7", "stream"), ("word", "\n ", "teacher"),
    ("line", "\n", "stream"), ("sentence", ".", "next_token"), ("d", "d", "stream")])
def test_where_a_text_thinks(think_after, ends, approach, tmp_path, monkeypatch, capsys):
    """Guards --model bytes and --think_after on a text: a row for each byte of the file, and
    thoughts after the bytes that were asked for alone, in given text and in the model's own. The
    window counts text."""
    monkeypatch.setattr("data.CACHE", tmp_path / "cache")
    (tmp_path / "a.txt").write_text("A line of words.\nA line of 7 words, no more.\n" * 60)
    typed = {"data": str(tmp_path / "a.txt"), "model": "bytes:1x16", "think_vocab": 4, "steps": 1,
             "eval_every": 1, "prompts": 2, "samples": 2, "prompt_tokens": 8, "new_tokens": 24,
             "out": str(tmp_path / "out"), "device": "cpu", "think_after": think_after,
             "think": "forced", "window": 4, "approach": approach}
    teacher = {"teacher": str(tmp_path / "base"), "model": str(tmp_path / "base")}
    if approach == "teacher":
        base = typed | {"thoughts": "none", "approach": "stream", "out": teacher["model"]}
        base = {k: v for k, v in base.items() if k not in ("think", "think_vocab")}
        train.train(train.setup(train.resolve(base)))
    it = train.setup(train.resolve(typed | (teacher if approach == "teacher" else {})))
    words = it.tokenizer.words()
    assert all(len(word) == 1 for word in words) and it.rules.counts == "text"
    text, rules = train.take_text(it, it.model)
    ro, after = roll(it.model, text, rules, luck()), set()
    for row in ro.kept():
        said = [words[i] if i < len(words) else None for i in row]
        after |= {a for a, b in zip(said, said[1:]) if b is None and a is not None}
    if approach != "next_token":  # its thoughts stand behind the text
        assert after and after <= set(ends)
    train.train(it)
    bar = capsys.readouterr().err.splitlines()[-1]  # it has no curriculum, so no stage
    assert "reward=" in bar and "stage" not in bar and "right" not in bar
    with pytest.raises(ValueError, match="no single token ends so"):
        train.setup(train.resolve(typed | {"think_after": "#"}))
