"""A model as a folder that Hugging Face's `transformers` loads, with equal logits in float32.

    python -m lab.export DIR --model out                # the text part alone
    python -m lab.export DIR --model out --thoughts     # thinking rows too, as <think0>, <think1>
    AutoModelForCausalLM.from_pretrained("DIR")         # in Python, with transformers
    AutoTokenizer.from_pretrained("DIR")

With --thoughts row V + i of its vocabulary is our thinking row i. Where a thought may stand is a
rule of the run, so `generate` has to be given it (docs/TASKS.md). Where the gate decides, its
softmax over all rows is ours: p_think times g for a thought, 1 - p_think times p_text for a token.
What that library cannot do is refused: a window, thoughts that are states, or are forgotten.

Left out on purpose: our rules, which their files have no place for; the package `safetensors`,
whose format is a line of JSON and the bytes. Knows run.py and what is below it.
"""
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

import command
from model import GPT, load
from rollout import Rules
from run import Run, open_run
from settings import Parser
from tokenizer import END_OF_TEXT, Tokenizer
from weights import TRANSPOSED

FILES = "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"
END = "<|endoftext|>"
# GPT-2's own table of bytes
PRINTABLE = {*range(33, 127), *range(161, 173), *range(174, 256)}
HIDDEN = [b for b in range(256) if b not in PRINTABLE]
SPELT = [chr(b if b in PRINTABLE else 256 + HIDDEN.index(b)) for b in range(256)]
LARGEST = 100  # of the numbers that fold a gate's bias: rounding errors grow with them


# Weights

def their_weights(model: GPT, thoughts: bool = False, bias: bool = False) -> dict[str, Tensor]:
    """All under their names; their Linear weights are [in, out], ours [out, in]. thoughts: with the
    thinking rows below those of text. bias: with the gate's. Raises ValueError where it can't be.
    """
    weights = {f"transformer.{k}": v.T.contiguous() if k.endswith(TRANSPOSED) else v
               for k, v in model.state_dict().items() if k not in ("think", "gate_bias")}
    rows = torch.cat([model.wte.weight, model.think]) if thoughts else model.wte.weight
    # (tied: where there is no other head, theirs is wte)
    return weights | {"transformer.wte.weight": rows.detach()} | (folded(model) if bias else {})


def folded(model: GPT) -> dict[str, Tensor]:
    """The last layer norm and a head, untied, that add the gate's bias to the thinking logits.

    Their head has no bias. But a state is x * weight + bias of ln_f, and the numbers in x sum to 0.
    So 1 / weight has one product with all states, and any number can be had as a multiple of it.
    First the norm's bias moves by 1 / weight or minus that, whichever makes the product larger.
    Raises ValueError where a weight of the norm is near 0.
    """
    w, b = model.ln_f.weight.double(), model.ln_f.bias.double()
    one, rows = 1 / w, torch.cat([model.wte.weight, model.think]).double()  # [C], [V + N, C]
    if not one.abs().max() < LARGEST:
        raise ValueError("this gate's bias can't be folded into the rows, as a weight of the last "
                         "layer norm is near 0: export without --thoughts")
    move = one if (b * one).sum() >= 0 else -one
    wanted = -rows @ move  # [V + N]: what takes the move of the norm's bias back,
    wanted[model.config.vocab_size:] += model.gate_bias.double()  # and what the gate adds
    head = rows + torch.outer(wanted / ((b + move) * one).sum(), one)
    return {"transformer.ln_f.bias": b + move, "lm_head.weight": head}


def as_safetensors(weights: dict[str, Tensor]) -> Callable[[BinaryIO], None]:
    """What writes them to a file: 8 bytes with the length of a line of JSON, that line, and the
    numbers in float32."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, v in weights.items():
        header[name] = {"dtype": "F32", "shape": list(v.shape),
                        "data_offsets": [end, end := end + 4 * v.numel()]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8

    def write(f: BinaryIO) -> None:
        f.write(len(text).to_bytes(8, "little") + text)
        for v in weights.values():
            f.write(v.detach().to(torch.float32).contiguous().numpy().tobytes())
    return write


# Config and tokenizer

def their_config(model: GPT) -> dict:
    """The shape, under their names."""
    c = model.config
    return {"vocab_size": c.vocab_size, "n_positions": c.n_ctx, "n_embd": c.n_embd,
            "n_layer": c.n_layer, "n_head": c.n_head}


def end_row(model: GPT) -> int | None:
    """The row of the end of text, which a small language may lack."""
    rows = model.text_ids if model.text_ids is not None else range(model.config.vocab_size)
    return rows.index(END_OF_TEXT) if END_OF_TEXT in rows else None


@functools.cache
def merges() -> list[list[str]]:
    """GPT-2's 50,000 merges of two pieces, in order."""
    gpt2 = Tokenizer()
    pieces = [gpt2.bytes_of(i) for i in range(END_OF_TEXT)]
    rank = {piece: i for i, piece in enumerate(pieces)}
    return [[spell(half) for half in halves(x, rank)] for x in pieces if len(x) > 1]


def their_tokenizer(model: GPT, N: int) -> dict:
    """tokenizer.json: GPT-2's pieces at the model's own rows, and N thoughts.

    A small language has its words at rows 0 to V - 1. All other pieces of GPT-2 come after the
    thoughts, at ids that the model does not have.
    """
    gpt2 = Tokenizer()
    own = list(model.text_ids if model.text_ids is not None else range(gpt2.V))
    others = sorted(set(range(gpt2.V)) - set(own))
    spelt = [spell(gpt2.bytes_of(i)) for i in range(END_OF_TEXT)] + [END]
    vocab = {spelt[g]: i for i, g in enumerate(own)}
    vocab |= {f"<think{i}>": len(own) + i for i in range(N)}
    vocab |= {spelt[g]: len(own) + N + i for i, g in enumerate(others)}
    special = [END, *(f"<think{i}>" for i in range(N))]
    by_byte = Tokenizer(model.text_ids).by_byte  # its text is never merged
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": vocab[x], "content": x, **flags}
                         for x in sorted(special, key=vocab.get)],
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [] if by_byte else merges()}}


def spell(piece: bytes) -> str:
    """As their files spell bytes: printable ones as they are, the others from 256 on."""
    return "".join(map(SPELT.__getitem__, piece))


def halves(piece: bytes, rank: dict[bytes, int]) -> list[bytes]:
    """The two pieces that this one is merged from: all earlier merges are made first."""
    parts = [piece[i:i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        i = min(range(len(parts) - 1),
                key=lambda i: rank.get(parts[i] + parts[i + 1], END_OF_TEXT))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


# The folder

def check_folder(folder: Path) -> None:
    """Raises ValueError for a folder that this would spoil: that of a run, somebody else's model,
    or one in which another file would be read as well."""
    names = sorted(x.name for x in folder.glob("*"))
    if [x for x in names if (x.startswith("ckpt") and ".pt" in x) or x == "metrics.jsonl"]:
        raise ValueError(f"{folder} is the folder of a run: choose another one")
    # (transformers reads some twenty other names as well. A page of words may be there)
    # (.new and .part: of an export that was killed)
    others = [x for x in names if not x.startswith(".") and not x.endswith((".md", ".new", ".part"))
              and (x not in FILES or (folder / x).is_dir())]
    try:
        own = "text_ids" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        own = False
    others += [] if own else [x for x in FILES if x in names]
    if others:
        raise ValueError(f"{folder} holds {others[0]}, which may be read as a part of this model: "
                         "choose another folder")


def check_rules(model: GPT, rules: Rules) -> None:
    """Raises ValueError where a model thinks as transformers can't."""
    if not len(model.think):
        raise ValueError("this model has no thinking rows: export it without --thoughts")
    why = None
    if rules.window:
        why = ("with a window it sees its last thought and what is near, and there each place "
               "sees all: `python -m lab.distil` makes a model that does")
    elif rules.think == "never":
        why = "it never thinks"
    elif rules.continuous:
        why = "its thoughts are states, and not rows"
    elif not rules.persist:
        why = "its thoughts are forgotten after one token, and there they would stay"
    if why:
        raise ValueError(f"this model can't be exported with --thoughts: {why}")


def export(model: GPT, folder: Path, rules: Rules | None = None) -> None:
    """All files, or none where the disk is full. rules: of a run whose thinking rows go along.
    Raises ValueError where the folder holds something else, OSError where it can't be written."""
    if rules is not None:
        check_rules(model, rules)
    check_folder(folder)
    N = len(model.think) if rules is not None else 0
    if N:  # the tokenizer counts thoughts from there
        Tokenizer(model.text_ids).check(model.config.vocab_size)
    # where thinking is forced the gate is never asked
    bias = bool(N and rules.think == "free" and model.gate_bias != 0)
    weights, end = their_weights(model, N > 0, bias), end_row(model)
    config = their_config(model) | {
        "vocab_size": model.config.vocab_size + N,
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",  # the tanh form
        "bos_token_id": end, "eos_token_id": end, "tie_word_embeddings": not bias,
        # theirs ignores these. `load` reads the first, and refuses the second
        "text_ids": model.text_ids, "think_vocab": N}
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.n_ctx,
             "clean_up_tokenization_spaces": False,
             **({"bos_token": END, "eos_token": END} if end is not None else {})}
    parts = as_safetensors(weights), config, their_tokenizer(model, N), words
    command.make_folder(folder)
    try:
        for name, part in zip(FILES, parts):  # all are on the disk before one is seen
            text = part if callable(part) else command.as_json(part, indent=1).encode()
            command.write_whole(folder / f"{name}.new", text)
        for name in FILES:
            os.replace(folder / f"{name}.new", folder / name)
    finally:
        for name in FILES:
            (folder / f"{name}.new").unlink(missing_ok=True)


def main() -> None:
    p = Parser(prog="lab.export", description=command.first_line(__doc__), allow_abbrev=False)
    p.add_argument("folder", type=command.path, metavar="DIR", help="folder to write")
    p.add_argument("--model", default="pico", help="a name or a path [pico]")
    p.add_argument("--thoughts", action="store_true",
                   help="with the thinking rows of a run, as tokens <think0>, <think1>, ...")
    args = p.parse_args()
    try:
        # (a name, as pico, is no run)
        there = args.thoughts and Path(args.model).exists()
        run = open_run(args.model, plain=True) if there else None
        model = run.model if run else load(args.model)
        export(model, args.folder, run.rules if run else Rules() if args.thoughts else None)
    except (ValueError, OSError) as e:
        p.error(str(e))
    V = model.config.vocab_size
    print(f"{args.folder}/ holds {', '.join(FILES)}; "
          f"AutoModelForCausalLM.from_pretrained({str(args.folder)!r}) loads it")
    if run:
        print(f"<think0> to <think{len(model.think) - 1}> are ids {V} to "
              f"{V + len(model.think) - 1}. {when(run)}")
    if model.text_ids is not None:
        print("row i of text is GPT-2's id text_ids[i], in config.json")


def when(run: Run) -> str:
    """The rule of a run that `generate` has to be given, in words."""
    rules, after = run.rules, run.rules.think_after
    where = "any token" if after is None else f"one of the ids {after}" if after else (
        "each of a row's steps")
    return (f"After {where} it {'thinks' if rules.think == 'forced' else 'may think'}, at most "
            f"{rules.max_thoughts} time(s), and {rules.budget} in a row of its training")


if __name__ == "__main__":
    command.run(main)
