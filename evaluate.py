"""The same questions for every approach and every control, on held-out data.

- given questions: greedy thoughts, and the answer is the likeliest text token; right by level;
- the same with the thoughts of another text of the same shape: what the recipe alone teaches;
- own text, its answers checked, and its reverse KL to the teacher where there is one;
- prompts with answers (task.py): exact match and log-prob, by level, with three kinds of thoughts;
- held-out text: what own thoughts add to its log-prob (`gain`), and its nats without thoughts,
  which say whether learning hurt the language.

Left out on purpose: anything that learns. Knows data.py, model.py, rollout.py, next_token.py,
reward.py.

Letters: R rows, P prompt tokens, S new text tokens, T places, V text rows.
"""
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from data import Source, Text, plain, seeded
from model import GPT, gate_logit
from next_token import answer_prompt, roll
from reward import score
from rollout import GREEDY, Dials, Luck, Rollout, Rules, visible_text


def by_level(level: Tensor, right: Tensor, levels: int) -> tuple[list[float], list[int]]:
    """Flat, of answers alone -> share right, and how many there were, for levels 1..levels."""
    level = level.clamp(max=levels + 1)
    counts = torch.bincount(level, minlength=levels + 2)[1:levels + 1]
    hits = torch.bincount(level, weights=right.float(), minlength=levels + 2)[1:levels + 1]
    return (hits / counts.clamp(min=1)).tolist(), counts.tolist()


def room(rules: Rules, text: Text, model: GPT) -> Rules:
    """The rules with this text's window, and a budget for every open slot of it."""
    rules = replace(rules, window=text.window or rules.window)
    slots = rules.slots_in(text, model.config.vocab_size)
    return rules.room_for(slots) if rules.think != "never" else rules


@torch.no_grad()
def answers_right(model: GPT, text: Text, rules: Rules) -> Tensor:  # -> [R, S] bool
    """Is the likeliest text token the data's, after greedy thoughts?"""
    ro = roll(model, text, room(rules, text, model), Luck(0, 0, "eval_rollout"), GREEDY)
    return score(model, ro, text.pays).hit


@torch.no_grad()
def given_questions(model: GPT, source: Source, rules: Rules, text: Text) -> dict:
    """Right by level, of all answers; of the first one in each row; of all with another row's
    thoughts. text: `Source.questions`, in blocks of one level each."""
    text, of, levels = text.to(model.device), source.of, source.levels
    # as many thoughts as these texts have slots, whatever the budget of training
    rules, luck = room(rules, text, model), Luck(0, 0, "eval_rollout")
    ro = roll(model, text, rules, luck, GREEDY)
    asked, out = text.pays > 0, {}  # [R, S]
    first = asked & (asked.cumsum(1) == 1)
    arms = [(f"accuracy_by_{of}", ro, asked), (f"accuracy_first_by_{of}", ro, first)]
    if ro.is_think.any() and len(model.think) > 1:  # one row alone holds nothing to exchange
        # thoughts of the neighbour in the block, wherever it had one at this place
        thoughts = torch.where(ro.is_think, ro.ids, -1)
        other = thoughts.view(levels, -1, thoughts.shape[1]).roll(1, 1).flatten(0, 1)
        swap = roll(model, text, rules, luck, GREEDY,
                    edit=lambda t, z: torch.where(other[:, t] >= 0, other[:, t], z))
        # a branch is as good as its last thought: where the neighbour left that place empty, it
        # kept its own
        last = other.gather(1, ro.chosen_at.gather(1, ro.place[:, ro.P:]))
        arms.append((f"accuracy_another_by_{of}", swap, asked & (rules.persist | (last >= 0))))
    for name, it, counted in arms:
        hit = score(model, it, text.pays).hit
        out[name], answers = by_level(text.level[counted], hit[counted], levels)
        out.setdefault(f"answers_by_{of}", answers)
    if rules.think == "free":
        may = rules.open_slots(text, model.config.vocab_size)
        out |= (when_it_thinks(source, may, ro, first) if rules.persist else
                what_it_thinks_about(ro, asked))
    return out


def whole(hit: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:  # [R, S] bool -> 2 x [R, S] bool
    """Is this token of an answer right, and all those of the same answer before it? And is it the
    last one? Answers are told apart by a token between them."""
    wrong = (~hit & asked).cumsum(1)
    # what was wrong up to the last token that is no answer
    before = torch.where(asked, 0, wrong).cummax(1).values
    return asked & (wrong == before), asked & ~F.pad(asked[:, 1:], (0, 1))


def anothers(ro: Rollout) -> Tensor:  # -> [R, T]
    """Thought by thought those of the row before; where that one has fewer, they start again."""
    thoughts = ro.is_think.long()
    order = thoughts.argsort(dim=1, descending=True, stable=True).roll(1, 0)  # theirs first
    count = thoughts.sum(1, keepdim=True).roll(1, 0)
    j = (thoughts.cumsum(1) - 1) % count.clamp(min=1)  # which of theirs stands here
    theirs = ro.ids.roll(1, 0).gather(1, order).gather(1, j)
    return torch.where(ro.is_think & (count > 0), theirs, -1)


@torch.no_grad()
def examples(model: GPT, source: Source, rules: Rules, text: Text) -> dict:
    """Prompts with their answers: exact match of greedy answers and their log-prob in nats, by
    level. With greedy thoughts, with those of the row before, which is of the same level, and
    without. text: `Source.questions`, in order of their levels."""
    text = text.to(model.device)
    rules, luck = room(rules, text, model), Luck(0, 0, "eval_rollout")
    ro, asked = roll(model, text, rules, luck, GREEDY), text.pays > 0
    # an answer that is right token by token, each after the right ones before it, is what greedy
    # decoding writes
    _, last = whole(asked, asked)
    level, out, arms = text.level[last], {}, {"": ro}
    if ro.is_think.any() and len(model.think) > 1:
        other = anothers(ro)
        arms["another_"] = roll(
            model, text, rules, luck, GREEDY,
            edit=lambda t, z: torch.where(other[:, t] >= 0, other[:, t], z))
    if rules.think != "never":
        arms["none_"] = roll(model, text, replace(rules, think="never", budget=0), luck, GREEDY)
    for name, it in arms.items():
        r, hit, _ = score(model, it, text.pays)
        right = whole(hit, asked)[0][last]
        out[f"accuracy_{name}by_level"], counts = by_level(level, right, source.levels)
        out[f"logp_{name}by_level"], _ = by_level(level, r.sum(1), source.levels)
        out[f"accuracy_{name}".rstrip("_")] = right.float().mean().item()
        out[f"logp_{name}".rstrip("_")] = r.sum(1).mean().item()
        if name == "none_" or rules.think == "never":
            out["nats_without_thoughts"] = -r.sum().item() / asked.sum().item()
    return out | {"answers_by_level": counts, "thoughts_per_token":
                  ro.is_think.sum().item() / text.real.sum().item()}


def thoughts_after(ro: Rollout) -> Tensor:  # -> [R, L]
    """How many thoughts stand after each text token."""
    return torch.zeros_like(ro.text).scatter_add(1, ro.after.clamp(min=0), ro.is_think.long())


def when_it_thinks(source: Source, may: Tensor, ro: Rollout, first: Tensor) -> dict:
    """Of the slots that may hold thoughts, after tokens [R, L], the share that does: where what has
    to be remembered changes, and elsewhere. Thoughts before the first answer [R, S], by level."""
    moved, P = source.changes(ro.text), ro.P
    if moved is None:
        return {}
    thoughts = thoughts_after(ro)
    may = may.clone()
    may[:, :P - 1], may[:, -1] = False, False  # none in the prompt, none after the end
    answer = P + first.long().argmax(1, keepdim=True)
    before = torch.arange(ro.text.shape[1], device=ro.ids.device) < answer
    in_round = (thoughts * before).sum(1).float()
    out = {name: share(thoughts > 0, where) for name, where in
           (("thinks_after_moved", may & moved), ("thinks_elsewhere", may & ~moved))}
    return out | {f"thoughts_by_{source.of}": in_round.view(source.levels, -1).mean(1).tolist()}


def share(what: Tensor, where: Tensor) -> float:
    return what[where].float().mean().item() if where.any() else 0.0


def what_it_thinks_about(ro: Rollout, asked: Tensor) -> dict:
    """Branches: of the tokens that are predicted, the share that is thought about: of answers,
    asked [R, S], and of all others."""
    thoughts = thoughts_after(ro)
    thinks = thoughts[:, ro.P - 1:-1] > 0
    return {"thinks_before_answers": share(thinks, asked),
            "thinks_elsewhere": share(thinks, ~asked)}


@torch.no_grad()
def plain_nats(model: GPT, ids: Tensor, rules: Rules) -> tuple[float, float]:
    """Held-out ids [R, T] without thoughts -> nats per text token, and mean p_think."""
    nats, p, V = [], [], model.config.vocab_size
    for row in ids.split(8):  # at GPT-2's size the logits of 8 rows are enough for memory
        h = model(row[:, :-1], mask=visible_text(row[:, :-1], rules))
        logits = model.logits(h).float()
        nats.append(F.cross_entropy(logits[..., :V].flatten(0, 1), row[:, 1:].flatten(),
                                    reduction="none"))
        if model.config.think_vocab:
            p.append(torch.sigmoid(gate_logit(logits, V)).flatten())
    return torch.cat(nats).mean().item(), torch.cat(p).mean().item() if p else 0.0


@torch.no_grad()
def gain(model: GPT, text: Text, rules: Rules) -> tuple[float, float | None]:
    """What own sampled thoughts add to log p_text of held-out text, in nats per token, and half
    of its 95 % interval over rows. One row has no interval."""
    without = replace(rules, think="never", budget=0)
    r = [score(model, roll(model, text, its, Luck(0, 2, "eval_rollout")), text.pays).r.mean(1)
         for its in (rules, without)]
    more = r[0] - r[1]  # [R]: with thoughts, minus without
    half = 1.96 * more.std().item() / len(more) ** 0.5 if len(more) > 1 else None
    return more.mean().item(), half


@torch.no_grad()
def free_text(model: GPT, source: Source, rules: Rules, prompts: Text,
              teacher: GPT | None) -> tuple[dict, Rollout]:
    """Own text at temperature 1, thoughts greedy, and sampled where thinking is free: a gate below
    one half would never open. Reverse KL, thoughts per text token, right answers by level."""
    dials = Dials(1.0, 0.0 if rules.think == "forced" else 1.0)
    ro = roll(model, prompts, rules, Luck(0, 1, "eval_rollout"), dials)
    out = {"thoughts_per_token": ro.is_think.sum().item() / prompts.pays.numel()}
    if teacher is not None:
        out["reverse_kl"] = -score(model, ro, prompts.pays, teacher).r.mean().item()
    if source.levels:
        # neither the prompt's answers, nor those to a question that is asked twice
        answers = [a for row in ro.text.tolist() for a in source.answers(row)
                   if a[0] >= prompts.P and a[1] > 0]
        level, right = (torch.tensor([a[i] for a in answers], dtype=torch.long) for i in (1, 2))
        shares, counts = by_level(level, right, source.levels)
        out |= {f"free_accuracy_by_{source.of}": shares, f"free_answers_by_{source.of}": counts,
                "free_accuracy": right.float().mean().item() if answers else 0.0,
                "free_answers": len(answers)}
    return out, ro


def evaluate(model: GPT, source: Source, rules: Rules, settings, teacher: GPT | None = None,
             each: int = 32) -> tuple[dict, list[tuple[list[int], int]]]:
    """All of the above, ready for an `eval` line of metrics.jsonl, and eight rows of own text, each
    with the length of its prompt. each: how many questions of every level."""
    P, S = settings.prompt_tokens, settings.new_tokens
    if source.by_row:
        return evaluate_task(model, source, rules, settings, each)
    rows = 128 if source.levels else settings.prompts * settings.samples  # a step's worth of text
    few = not rules.persist and not source.levels
    # without a cache for own text of branches, 8 rows of 64 tokens would take GPT-2 minutes
    some, short = (min(rows, 2), min(S, 8)) if few else (rows, S)
    # own text, after held-out prompts
    prompts = plain(held_out(source, some, P, 1000, P), P, short)
    free, ro = free_text(model, source, rules, prompts.to(model.device), teacher)
    # given text, without thoughts and with them
    ids = held_out(source, rows, P + S, 2000).to(model.device)
    nats, p_think = plain_nats(model, ids, rules)
    out = {"p_think": p_think, "nats_without_thoughts": nats, **free}
    if rules.think != "never":
        text = plain(held_out(source, rows, P + S, 3000, P), P, S)
        out["gain"], half = gain(model, text.to(model.device), rules)
        out |= {"gain_95": half} if half is not None else {}
    if source.levels:
        out |= given_questions(model, source, rules, source.questions(each, 0))
        first = out[f"accuracy_by_{source.of}"][:10]
        out["accuracy"] = sum(first) / len(first)
    return out, [(row, ro.P) for row in ro.rows(slice(8)).kept()]


def evaluate_task(model: GPT, source: Source, rules: Rules, settings,
                  each: int) -> tuple[dict, list[tuple[list[int], int]]]:
    """The same for prompts with answers, and eight of them answered by the model itself."""
    text = source.questions(each, 0)
    out, shown = examples(model, source, rules, text), []
    for i in torch.linspace(0, len(text.ids) - 1, 8).long().tolist():
        P = text.P + int(text.pays[i].argmax())  # where the answer begins
        prompt, slots = text.ids[i, :P].tolist(), text.open[i, :P].nonzero().flatten().tolist()
        ro = answer_prompt(model, rules, prompt, slots, settings.new_tokens, dials=GREEDY,
                           luck=Luck(0, 0, "eval_rollout"))
        shown.append((ro.kept()[0], P + int(ro.is_think[0, :int(ro.place[0, P])].sum())))
    return out, shown


def held_out(source: Source, rows: int, L: int, step: int, prompt: int = 0) -> Tensor:
    """The same rows at each evaluation. step: which of them."""
    return source.take(rows, L, seeded(0, step, "eval"), prompt, held_out=True)


REPORT = {  # columns of an evaluation, in words
    "reverse_kl": "reverse KL to the teacher, nats per text token",
    "p_think": "p_think on held-out text",
    "thoughts_per_token": "thoughts per text token in own text",
    "thinks_after_moved": "greedy: thinks after moves that move the ball",
    "thinks_before_answers": "greedy: thinks before answers",
    "thinks_elsewhere": "greedy: thinks elsewhere, where it may",
    "thoughts_as_text": "log p of thoughts, read as words by the base",
    "nats_without_thoughts": "nats per held-out token, without thoughts",
    "gain": "lost without its thoughts, nats per held-out token"}


def print_report(before: dict, after: dict, forced: bool, of: str) -> None:
    """What was learned, before -> after. forced: p_think was never asked for."""
    print("what was learned, before -> after:")
    for key, words in REPORT.items():
        if "accuracy_by_level" in after:
            words = words.replace("held-out token", "token of an answer")
        if key in after and not (forced and key == "p_think"):
            print(f"  {words:<50} {before.get(key, math.nan):.3f} -> {after[key]:.3f}")
    own, another, none = (after.get(f"accuracy_{x}by_{of}") for x in ("", "another_", "none_"))
    shown = range(1, 11) if of == "level" else (1, 2, 3, 6, 10, 20, 30)
    for n in shown if own else ():
        if n > len(own) or not after[f"answers_by_{of}"][n - 1]:
            continue
        first = before[f"accuracy_by_{of}"][n - 1]
        points = 100 * (own[n - 1] - another[n - 1]) if another else 0
        more = f"   own minus another's thoughts {points:+.0f} points" if another else ""
        more += f", without thoughts {none[n - 1]:.0%}" if none else ""
        print(f"  given texts, {of} = {n:<2}: answers right{'':<{10 - len(of)}} {first:6.1%} -> "
              f"{own[n - 1]:6.1%} of {after[f'answers_by_{of}'][n - 1]}{more}")
    if own and "free_accuracy" in after:
        print(f"  own texts: answers right {'':<19} {before['free_accuracy']:6.1%} -> "
              f"{after['free_accuracy']:6.1%}   "
              f"({before['free_answers']} -> {after['free_answers']} answers)")
