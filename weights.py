"""Every file and folder that holds a GPT-2, read as one dict of float tensors and a shape, or
refused by one line.

    found = read_gpt2("folder")        # or one file of it
    found.weights["h.0.mlp.c_fc.weight"], found.n_head

What is read: what transformers and safetensors write for a GPT-2, whole or in shards, with any of
their prefixes. What is refused: whatever would be another function here, above all. A setting of
config.json that changes the function is refused by its name and value, a tensor by its name.

Checkpoints of our own are sealed by a checksum; `save` writes them and `read_weights` reads them.

Left out on purpose: weights of other models, and a way to convert them; the package `safetensors`,
whose format is a line of JSON and the bytes. Knows command.py.

Letters: C width, V text rows.
"""
import hashlib
import json
import math
import mmap
import os
import pickle
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from command import write_whole

FORMAT = 3  # of checkpoints; 2 had other names in it, 1 had no seal
SEAL = b"\nsha256:"  # a checkpoint ends in this and the digest of all bytes before it
# OpenAI stored these as [in, out]; torch's Linear has [out, in]
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
PREFIX = re.compile(r"^((_orig_mod|module|model|transformer|_forward_module|"
                    r"_fsdp_wrapped_module)\.)+")  # of torch.compile, of processes, of wrappers
MASKS = re.compile(r"^h\.\d+\.attn\.(bias|masked_bias)$")  # causal masks are no weights
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
SAFE = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
        "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32,
        "I64": torch.int64, "BOOL": torch.bool}
HEADS = {(12, 768): 12, (24, 1024): 16, (36, 1280): 20, (48, 1600): 25, (6, 768): 12}  # published
# the best first; transformers looks for them in this order as well
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
         "pytorch_model.bin.index.json")
OTHERS = {  # files of a folder that say what it is, and what to do with that
    "adapter_config.json": "adapters of peft: call merge_and_unload() there, and save the result",
    "tf_model.h5": "weights of TensorFlow: load them with from_tf=True, and save_pretrained",
    "flax_model.msgpack": "weights of Flax: load them with from_flax=True, and save_pretrained",
    "hparams.json": "OpenAI's files for TensorFlow: --model gpt2 downloads the same weights"}
MAGIC = {  # first bytes of what people take for weights
    b"version https://git-lfs": "a pointer of git-lfs, not the file itself: `git lfs pull` fetches "
    "it",
    b"GGUF": "a GGUF file, of llama.cpp: save the model with transformers",
    b"\x93NUMPY": "an array of NumPy: save a dictionary of tensors with torch.save",
    b"\x89HDF": "an HDF5 file: save the model with transformers"}
GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")  # names of the tanh form
# of GPT-2's pieces as its files spell them, one a line; and of the 50,000 that are merged from two
VOCAB_SHA256 = "3a1f1c010d179f036be1992bc14b861e326341438633869c694dc4dccfe153d3"
MERGES_SHA256 = "b438fe70963700f4eb977eb6040e91611dea9995984b74e2f90ae2a23727a22f"
HF_NAMES = ("model.", "model-", "pytorch_model")  # how Hugging Face's files of weights begin
NANOGPT = ("as nanoGPT writes it: its GELU is the exact one and GPT-2's is not, so it would be "
           "another function here; train on with transformers, and give the folder that "
           "save_pretrained writes")


class Found(NamedTuple):
    """A GPT-2 as it was found."""
    weights: dict[str, Tensor]  # in float32, under OpenAI's names; Linear weights are [out, in]
    n_layer: int
    n_head: int
    n_embd: int
    n_ctx: int
    vocab_size: int
    text_ids: list[int] | None  # lab/export.py writes them


def read_gpt2(path: str | Path, state: dict | None = None) -> Found:
    """A folder, one of its files or its index, or a file alone. state: what was read of that file
    already. Raises ValueError."""
    path = Path(path)
    # (what lies next to a file of another name may be about something else)
    folder = path if path.is_dir() else path.parent
    of_folder = path.is_dir() or path.name.startswith(HF_NAMES)
    config = read_config(folder, strict=of_folder)
    if of_folder:
        check_folder(folder, config)
    if path.is_dir() and config is None:
        raise ValueError(f"{path} has no config.json of a GPT-2 (with n_head){hint(path)}")
    file = main_file(path) if path.is_dir() else path
    if (of := re.search(r"-of-(\d+)\.", file.name)) and int(of[1]) > 1:
        raise ValueError(f"{file} is one of several parts: give their folder")
    if state is None:
        state = read_shards(file) if file.name.endswith(".json") else read_weights(file)
    return of_state(state, file, config)


def of_state(state: dict, path: Path | str, config: dict | None = None,
             n_head: int | None = None) -> Found:
    """Weights as they were read -> what they are. config: of config.json. Raises ValueError."""
    state = plain_names(inner(state, path), path)
    for name, v in state.items():
        check_tensor(name, v, path)
    state = {k: v.detach().float() for k, v in state.items()}
    head = state.pop("lm_head.weight", None)
    if head is not None:  # safetensors' save_model keeps one of two names that share their memory
        state.setdefault("wte.weight", head)
    for name in ("wte.weight", "wpe.weight"):
        if name not in state or state[name].dim() != 2:
            raise ValueError(f"{path} holds no GPT-2 in Hugging Face's layout: it has no {name} "
                             "with two axes")
    if head is not None and not torch.equal(head, state["wte.weight"]):
        raise ValueError(f"{path}: its lm_head.weight is not its wte.weight; here text rows are "
                         "tied, so this would be another model")
    (V, C), n_ctx = state["wte.weight"].shape, len(state["wpe.weight"])
    n_layer = len({k.split(".")[1] for k in state if k.startswith("h.")})
    first = state.get("h.0.attn.c_attn.weight")
    if first is not None and first.shape == (3 * C, C):
        raise ValueError(f"{path}: h.0.attn.c_attn.weight is stored as [out, in], {NANOGPT}")
    text_ids = None
    if config is not None:
        if config.get("think_vocab"):
            raise ValueError(f"{path} was exported with its thoughts, which are rows of text "
                             "there: give the run that it was made of")
        shape = {"n_layer": n_layer, "n_embd": C, "n_positions": n_ctx, "vocab_size": V}
        # (an untied head that is equal is the same function)
        check_config(config | ({"tie_word_embeddings": True} if head is not None else {}), shape,
                     path)
        n_head, text_ids = config["n_head"], config.get("text_ids")
        check_text_ids(text_ids, V, path)
    n_head = n_head or HEADS.get((n_layer, C))
    if n_head is None:
        raise ValueError(f"{path} does not say how many heads it has, and no config.json lies next "
                         "to it: give a folder with both")
    weights = {k: v.T.contiguous() if k.endswith(TRANSPOSED) else v for k, v in state.items()}
    return Found(weights, n_layer, n_head, C, n_ctx, V, text_ids)


# One folder

def read_config(folder: Path, strict: bool) -> dict | None:
    """config.json of a GPT-2; None where there is no such file. What is no GPT-2's raises
    ValueError if strict, and else is None."""
    path, why = folder / "config.json", ""
    try:
        config = json.loads(path.read_bytes())  # UTF-8, with or without its mark
        if isinstance(config, dict) and "n_head" in config:
            return config
        if isinstance(config, dict) and "model_type" in config:
            why = f", but one of model_type {config['model_type']!r:.40}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as e:
        why = f", or it can't be read ({type(e).__name__})"
    if strict:
        raise ValueError(f"{folder} has no config.json of a GPT-2 (with n_head){why}")
    return None


def main_file(folder: Path) -> Path:
    """The file with the weights. Raises ValueError, which says what lies there instead."""
    for name in NAMES:
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"{folder} holds neither model.safetensors nor pytorch_model.bin"
                     f"{hint(folder)}")


def check_folder(folder: Path, config: dict | None) -> None:
    """Raises ValueError for what lies next to the weights and changes what they are."""
    if (folder / "adapter_config.json").exists():  # transformers adds them to what is there
        raise ValueError(f"{folder} holds {OTHERS['adapter_config.json']}")
    # (lab/export.py writes text_ids: such rows are words of a small language)
    if (config or {}).get("text_ids") is None and not (config or {}).get("think_vocab"):
        check_words(folder)


def hint(folder: Path) -> str:
    """What a folder holds instead of a model."""
    for name, what in OTHERS.items():
        if (folder / name).exists():
            return f", but it holds {what}"
    steps = sorted(x.name for x in folder.glob("checkpoint-*") if x.is_dir())
    if steps:
        return f"; did you mean {folder / steps[-1]}?"
    found = sorted(x.name for kind in ("safetensors", "bin", "pt", "pth", "gguf", "onnx")
                   for x in folder.glob(f"*.{kind}"))
    return f"; it holds {', '.join(found[:4])}" if found else ""


def check_config(config: dict, shape: dict[str, int], path: Path | str) -> None:
    """Raises ValueError for a setting that makes another function of the same weights."""
    def refuse(key: str, why: str):
        raise ValueError(f"config.json of {path} has {key}: {json.dumps(config[key])}, and {why}")
    C, heads = shape["n_embd"], config["n_head"]
    if type(heads) is not int or heads < 1 or C % heads:
        refuse("n_head", f"it has to be a whole number that divides the width of {C}")
    for key, found in shape.items():
        if config.get(key, found) != found:
            refuse(key, f"its weights have {found}")
    wanted = {"model_type": ("gpt2",), "activation_function": GELU, "scale_attn_weights": (True,),
              "scale_attn_by_inverse_layer_idx": (False,), "n_inner": (4 * C, None),
              "tie_word_embeddings": (True,), "add_cross_attention": (False,),
              "layer_norm_epsilon": (1e-5,), "quantization_config": (None,)}
    for key, allowed in wanted.items():
        if config.get(key, allowed[0]) not in allowed:
            refuse(key, f"this code computes a GPT-2 with {json.dumps(allowed[0])} alone")


def check_text_ids(text_ids, V: int, path: Path | str) -> None:
    """Raises ValueError for what can't say which GPT-2 ids V rows stand for."""
    if text_ids is not None and not (
            isinstance(text_ids, list) and len(set(map(str, text_ids))) == len(text_ids) == V
            and all(type(i) is int and 0 <= i < 50257 for i in text_ids)):
        raise ValueError(f"config.json of {path} has text_ids that are no list of {V} ids of GPT-2")


def check_words(folder: Path) -> None:
    """Raises ValueError where a tokenizer in the folder is not GPT-2's: the same rows would stand
    for other words. Tokens that were added later are not looked at: they make more rows."""
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        try:
            text = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            text = ""
        try:
            if name == "merges.txt":
                vocab, merges = None, [x for x in text.splitlines() if not x.startswith("#version")]
            else:
                found = json.loads(text)
                found = found["model"] if name == "tokenizer.json" else {"vocab": found}
                vocab, merges = sorted(found["vocab"], key=found["vocab"].get), found.get("merges")
            # (of a merge the two halves may be one string or a pair)
            merges = merges and ["".join(x.split() if isinstance(x, str) else x) for x in merges]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            vocab, merges = [], []
        # (the end of text may be among the added tokens instead)
        vocab = vocab and [x for x in vocab if x != "<|endoftext|>"]
        for pieces, sha256 in ((vocab, VOCAB_SHA256), (merges, MERGES_SHA256)):
            if pieces is not None and sha_of_lines(pieces) != sha256:
                raise ValueError(f"{folder / name} is not GPT-2's: its words would be read as "
                                 "others; only models with OpenAI's own tokenizer can be used")


def sha_of_lines(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()


# One state

def inner(state: dict, path: Path | str) -> dict:
    """The weights in what a trainer saved around them. Raises ValueError."""
    if {"model", "model_args"} <= state.keys():
        raise ValueError(f"{path} is a checkpoint {NANOGPT}")
    if any(isinstance(v, Tensor) for v in state.values()):
        return state
    nested = [k for k, v in state.items() if isinstance(v, dict)
              and any(str(x).endswith(("wte.weight", "lm_head.weight")) for x in v)]
    if len(nested) > 1:
        raise ValueError(f"{path} holds several models, {' and '.join(map(str, nested))}: save one "
                         "of them by itself")
    if not nested:
        shown = ", ".join(map(str, [*state][:4]))
        raise ValueError(f"{path} holds no GPT-2 weights in Hugging Face's layout, only "
                         f"{shown or 'nothing'}")
    return state[nested[0]]


def plain_names(state: dict, path: Path | str) -> dict:
    """Without prefixes and causal masks. Raises ValueError for a tensor that no GPT-2 has."""
    out, named = {}, {}
    for key, v in state.items():
        name = PREFIX.sub("", str(key))
        if MASKS.match(name):
            continue
        if not re.match(r"^(wte|wpe|ln_f|lm_head|h\.\d+\.(ln_[12]|attn\.c_(attn|proj)|"
                        r"mlp\.c_(fc|proj)))\.(weight|bias)$", name):
            raise ValueError(f"{path} is no plain GPT-2 language model in Hugging Face's layout: "
                             f"it holds {str(key)[:80]}")
        if name in out:
            raise ValueError(f"{path} holds {name} twice, as {named[name]} and as {str(key)[:80]}: "
                             "leave one of them out")
        out[name], named[name] = v, str(key)[:80]
    return out


def check_tensor(name: str, v, path: Path | str) -> None:
    """Raises ValueError for what is no plain array of finite floats."""
    if not isinstance(v, Tensor):
        raise ValueError(f"{path}: {name} is no tensor, but a {type(v).__name__}")
    if v.device.type != "cpu" or v.layout != torch.strided:
        what = "on meta" if v.is_meta else str(v.layout).removeprefix("torch.")
        raise ValueError(f"{path}: {name} is {what}, which is no plain array of numbers: save "
                         "the model again, once it is loaded as a whole and dense")
    if v.dtype not in FLOATS or v.is_quantized:
        raise ValueError(f"{path}: {name} is of {str(v.dtype).removeprefix('torch.')}, and weights "
                         "are float16, bfloat16, float32 or float64: save the model before it is "
                         "quantised")
    if not is_finite(v.float()):  # (float64 may not fit)
        raise ValueError(f"{path}: {name} is not finite: it holds NaN or infinity, as after a "
                         "training that went wrong")


def is_finite(v: Tensor) -> bool:
    # smallest and largest carry a NaN along, and need no copy of the whole
    return not v.numel() or all(bool(x.isfinite()) for x in v.aminmax())


# One file

def read_weights(path: Path) -> dict:
    """A file of weights, never one that runs code. Raises ValueError, one line, for any other."""
    try:
        with open(path, "rb") as f:
            start = f.read(64)
    except OSError as e:
        raise ValueError(f"{path} can't be read ({e.strerror})") from e
    for magic, what in MAGIC.items():
        if start.startswith(magic):
            raise ValueError(f"{path} is {what}")
    # (by its first bytes: a file may have any name)
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        return read_safetensors(path)
    sealed = is_sealed(path)
    try:
        # weights_only: a pickle could otherwise run any code
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # damage shows as IndexError, RuntimeError, OSError, ...
        code = isinstance(e, pickle.UnpicklingError)
        what = "something else" + code * (
            ", as what would run code (weights_only): save model.state_dict() alone")
        raise ValueError(f"{path} can't be read as weights, it is damaged or holds {what} "
                         f"({type(e).__name__})") from e
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of weights")
    version = state.get("format", 1)
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise ValueError(f"{path} is of another version: format {version!r:.20}, and this code "
                         f"reads 1 to {FORMAT}")
    if version > 1 and not sealed:
        raise ValueError(f"{path} has lost its end, with the checksum: it is damaged")
    return state


def once(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object. Raises KeyError with a key that it has twice."""
    found = {}
    for key, value in pairs:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """8 bytes with the length of a line of JSON, that line, and the numbers. Raises ValueError."""
    try:
        with open(path, "rb") as f:
            # a private map: numbers are read from the disk when they are used
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start], object_pairs_hook=once)
        header.pop("__metadata__", None)
        state, end = {}, 0
        # one tensor after another, without a gap
        for name, x in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            a, b = x["data_offsets"]
            dtype, count = SAFE.get(x["dtype"]), (b - a)
            if dtype is None:
                raise ValueError(f"{path}: {name} is of {x['dtype']}, and weights are F16, BF16, "
                                 "F32 or F64")
            if a != end or b > len(data) - start or min(x["shape"], default=0) < 0 or (
                    b - a != dtype.itemsize * math.prod(x["shape"])):
                raise IndexError
            end = b
            flat = (torch.frombuffer(data, dtype=dtype, count=count // dtype.itemsize,
                                     offset=start + a) if count else torch.empty(0, dtype=dtype))
            state[name] = flat.reshape(x["shape"])
        if start + end != len(data):
            raise IndexError
        return state
    except (OSError, IndexError, KeyError, TypeError, AttributeError, RuntimeError,
            RecursionError, json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} can't be read as weights, it is damaged or something else "
                         f"({type(e).__name__})") from e
    except ValueError as e:
        said = str(e) if str(e).startswith(str(path)) else (
            f"{path} can't be read as weights, it is empty or damaged")
        raise ValueError(said) from e


def read_shards(index: Path) -> dict[str, Tensor]:
    """An index and the files that it names, all in its own folder. Raises ValueError."""
    try:
        names = dict(json.loads(index.read_bytes())["weight_map"])
        files = sorted(set(names.values()))
        outside = [x for x in files if Path(x).name != x]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise ValueError(f"{index} can't be read as an index of weights "
                         f"({type(e).__name__})") from e
    if outside or not files:
        raise ValueError(f"{index} names files outside its folder, or none")
    state = {}
    for file in files:
        if not (index.parent / file).exists():
            raise ValueError(f"{index} names {file}, which is not there: {len(files)} parts are "
                             "needed")
        part = read_weights(index.parent / file)
        if twice := part.keys() & state.keys():
            raise ValueError(f"{index.parent / file} holds {min(twice)} a second time")
        state |= part
    if missing := names.keys() - state.keys():
        raise ValueError(f"{index} names {min(missing)}, which is in none of its files")
    return state


# Checkpoints of our own

def digest(f: BinaryIO, size: int) -> bytes:
    """The seal of a file's next `size` bytes."""
    sha = hashlib.sha256()
    while block := f.read(min(1 << 22, size)):
        sha.update(block)
        size -= len(block)
    return SEAL + sha.hexdigest().encode()


def is_sealed(path: Path) -> bool:
    """Does the file end in a checksum? OpenAI's do not. Raises ValueError where it differs: a
    flipped bit in a weight would be loaded in silence."""
    with open(path, "rb") as f:
        size = max(0, f.seek(0, os.SEEK_END) - len(SEAL) - 64)  # 64: of a sha256 in hex
        f.seek(size)
        end = f.read()
        f.seek(0)
        if end.startswith(SEAL) and digest(f, size) != end:
            raise ValueError(f"{path} is damaged: its checksum differs")
    return end.startswith(SEAL)


def save(path: Path, state: dict) -> None:
    """A checkpoint, sealed. Raises OSError."""
    def write(f: BinaryIO) -> None:
        torch.save({"format": FORMAT, **state}, f)
        size = f.tell()
        f.seek(0)
        f.write(digest(f, size))
    write_whole(path, write)
