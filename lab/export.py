"""A model's text part as a folder that Hugging Face's `transformers` loads, with equal logits.

    python -m lab.export DIR --model out        # DIR/pytorch_model.bin and DIR/config.json
    GPT2LMHeadModel.from_pretrained("DIR")      # in Python, with transformers

Left out on purpose: the thinking rows, as that library has no place for what is no text; its
tokenizer, which is GPT-2's own. Knows model.py.
"""
import json
import os
from pathlib import Path

import torch
from torch import Tensor

import command
from model import GPT, load
from settings import Parser
from tokenizer import END_OF_TEXT
from weights import TRANSPOSED


def their_weights(model: GPT) -> dict[str, Tensor]:
    """The text part under their names. Their Linear weights are [in, out], ours [out, in]."""
    weights = {f"transformer.{k}": v.T.contiguous() if k.endswith(TRANSPOSED) else v
               for k, v in model.state_dict().items() if k not in ("think", "gate_bias")}
    return weights | {"lm_head.weight": model.wte.weight.detach()}  # tied to wte


def their_config(model: GPT) -> dict:
    """The shape, under their names."""
    c = model.config
    return {"vocab_size": c.vocab_size, "n_positions": c.n_ctx, "n_embd": c.n_embd,
            "n_layer": c.n_layer, "n_head": c.n_head}


def check_folder(folder: Path) -> None:
    """Raises ValueError for a folder that this would spoil: that of a run, somebody else's model,
    or one in which another file would be read instead."""
    names = sorted(x.name for x in folder.glob("*"))
    if [x for x in names if (x.startswith("ckpt") and ".pt" in x) or x == "metrics.jsonl"]:
        raise ValueError(f"{folder} is the folder of a run: choose another one")
    # transformers and `load` look for these first
    before = [x for x in names if x.startswith(("model.", "model-")) or x == "adapter_config.json"
              or x.endswith(".index.json")]
    if before:
        raise ValueError(f"{folder} holds {before[0]}, which would be read instead of what is "
                         "written here: choose another folder")
    try:
        config = json.loads((folder / "config.json").read_bytes())
        own = "text_ids" in config
    except (OSError, ValueError, TypeError):
        own = False
    there = [x for x in ("pytorch_model.bin", "config.json") if x in names]
    if there and not own:
        raise ValueError(f"{folder} holds {there[0]} of another model: choose another folder")


def export(model: GPT, folder: Path) -> None:
    """Both files or none. Raises ValueError where the folder holds something else, OSError where
    it can't be written."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(model.text_ids or range(model.config.vocab_size))
    # a small language has no end of text
    end = rows.index(END_OF_TEXT) if END_OF_TEXT in rows else None
    config = their_config(model) | {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",  # the tanh form
        "bos_token_id": end, "eos_token_id": end, "tie_word_embeddings": True,
        "text_ids": model.text_ids}  # theirs ignores it, `load` reads it
    text = command.as_json(config, indent=1).encode()
    new = {"pytorch_model.bin": lambda f: torch.save(their_weights(model), f),
           "config.json": lambda f: f.write(text)}
    try:
        for name, write in new.items():  # both are on the disk before one is seen
            command.write_whole(folder / f"{name}.new", write)
        for name in new:
            os.replace(folder / f"{name}.new", folder / name)
    finally:
        for name in new:
            (folder / f"{name}.new").unlink(missing_ok=True)


def main() -> None:
    p = Parser(prog="lab.export", description=command.first_line(__doc__), allow_abbrev=False)
    p.add_argument("folder", type=command.path, metavar="DIR", help="folder to write")
    p.add_argument("--model", default="pico", help="a name or a path [pico]")
    args = p.parse_args()
    try:
        model = load(args.model)
        export(model, args.folder)
    except (ValueError, OSError) as e:
        p.error(str(e))
    print(f"{args.folder}/ holds pytorch_model.bin and config.json; "
          f"GPT2LMHeadModel.from_pretrained({str(args.folder)!r}) loads it")
    if model.text_ids is not None:
        print("row i of the model is GPT-2's id text_ids[i], in config.json")


if __name__ == "__main__":
    command.run(main)
