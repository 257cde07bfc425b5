"""A model's text part as a folder that Hugging Face's `transformers` loads, with equal logits.

    python -m lab.export DIR --model out        # DIR/pytorch_model.bin and DIR/config.json
    GPT2LMHeadModel.from_pretrained("DIR")      # in Python, with transformers

Left out on purpose: the thinking rows, as that library has no place for what is no text; its
tokenizer, which is GPT-2's own. Knows model.py.
"""
import json
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


def export(model: GPT, folder: Path) -> None:
    """Raises ValueError where the folder is that of a run, OSError where it can't be written."""
    if (folder / "ckpt.pt").exists():  # `load` would no longer find the run in it
        raise ValueError(f"{folder} is the folder of a run: choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(their_weights(model), folder / "pytorch_model.bin")
    except RuntimeError as e:  # torch's word for a write that failed, without the reason
        raise OSError(f"{folder}/pytorch_model.bin can't be written whole") from e
    rows = list(model.text_ids or range(model.config.vocab_size))
    # a small language has no end of text
    end = rows.index(END_OF_TEXT) if END_OF_TEXT in rows else None
    config = their_config(model) | {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",  # the tanh form
        "bos_token_id": end, "eos_token_id": end, "tie_word_embeddings": True,
        "text_ids": model.text_ids}  # theirs ignores it, `load` reads it
    (folder / "config.json").write_text(json.dumps(config, indent=1))


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
