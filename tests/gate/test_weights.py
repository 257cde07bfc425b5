"""Every file that another library writes for a GPT-2: its logits are equal here, or one line says
what is in the way. Never is it loaded as another function.

FORMS is the table. Each row is made by the library itself, and is judged against it.

Left out on purpose: damage (test_files.py), and our own checkpoints (test_nothing_lost.py).
"""
import json
import shutil

import pytest
import torch

import weights
from conftest import refuses
from model import load
from tokenizer import Tokenizer
from weights import Found, check_words, sha_of_lines

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
SHAPE = dict(vocab_size=96, n_positions=24, n_embd=32, n_layer=2, n_head=4)


def make(kind="GPT2LMHeadModel", **config):
    """A model of transformers with every weight random, so that a wrong function shows."""
    torch.manual_seed(3)
    m = getattr(transformers, kind)(transformers.GPT2Config(**(SHAPE | config))).eval()
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return m


def saved(folder, m=None, **how):
    """As save_pretrained leaves it."""
    (m or make()).save_pretrained(folder, **how)
    return folder


def with_config(**changes):
    """A folder whose config.json says something else; None: says nothing."""
    def form(folder):
        saved(folder)
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {k: v for k, v in config.items() if v != "left out"}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder
    return form


def as_bin(wrap=lambda state: state, config=True, name="pytorch_model.bin"):
    """torch.save of a state dict, in whatever a trainer wraps around it."""
    def form(folder):
        m = make()
        torch.save(wrap(m.state_dict()), folder / name)
        if config:
            m.config.save_pretrained(folder)
        return folder / name if name != "pytorch_model.bin" else folder
    return form


def prefixed(prefix):
    return lambda state: {prefix + k: v for k, v in state.items()}


def changed(key, change):
    return lambda state: {k: change(v.clone()) if k == key else v for k, v in state.items()}


def spoilt(v, value):
    v.view(-1)[3] = value
    return v


def masks(state):
    """Older versions saved their causal masks."""
    mask = torch.ones(1, 1, 24, 24).tril()
    return state | {f"transformer.h.{i}.attn.bias": mask for i in range(2)} | {
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}


def shards(folder):
    saved(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-0*.safetensors"))) > 2
    return folder


def bin_shards(folder):
    m = make()
    m.config.save_pretrained(folder)
    state, names = m.state_dict(), {}
    for i, keys in enumerate(([*state][:9], [*state][9:])):
        torch.save({k: state[k] for k in keys}, folder / f"pytorch_model-{i}.bin")
        names |= dict.fromkeys(keys, f"pytorch_model-{i}.bin")
    index = {"metadata": {}, "weight_map": names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def lacks_a_shard(folder):
    sorted(shards(folder).glob("model-0*"))[1].unlink()
    return folder


def one_shard(folder):
    return sorted(shards(folder).glob("model-0*"))[0]


def save_model(folder):
    """safetensors keeps one of two names that share memory."""
    m = make()
    safetensors.save_model(m, folder / "model.safetensors")
    m.config.save_pretrained(folder)
    return folder


def lone(form):
    """The file of a form, in a folder of its own."""
    def alone(folder):
        path = form(folder)
        (folder / "config.json").unlink()
        return path / "pytorch_model.bin"
    return alone


def typed(dtype):
    return lambda folder: saved(folder, make().to(dtype))


def nanogpt(folder):
    """nanoGPT's ckpt.pt: its own keys, Linear weights as torch has them."""
    torch.save({"model": prefixed("_orig_mod.")(transposed(make().state_dict())), "optimizer": {},
                "model_args": SHAPE, "iter_num": 9, "config": {"out_dir": "x"}}, folder / "ckpt.pt")
    return folder


def transposed(state):
    return {k: v.T if k.endswith(weights.TRANSPOSED) else v for k, v in state.items()}


def untied(folder):
    return saved(folder, make(tie_word_embeddings=False))


def untied_but_equal(folder):
    m = make(tie_word_embeddings=False)
    m.lm_head.weight.data.copy_(m.transformer.wte.weight)
    return saved(folder, m)


def whole_module(folder):
    torch.save(make(), folder / "model.pt")
    return folder / "model.pt"


def no_safetensors_here(folder):
    """A pointer of git-lfs, as a clone without it leaves."""
    saved(folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    return folder


def own_words(folder):
    saved(folder)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate("abcdef")}))
    return folder


def with_bom(folder):
    saved(folder)
    text = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + text)
    return folder


def beside_adapters(folder):
    """transformers would add them, where peft is installed."""
    saved(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return folder


FORMS = {  # what was made, how, and the words of its refusal; None: equal logits
    "save_pretrained": (saved, None),
    "a body without a head": (lambda f: saved(f, make("GPT2Model")), None),
    "one file of the folder": (lambda f: saved(f) / "model.safetensors", None),
    "shards": (shards, None),
    "shards, by their index": (lambda f: shards(f) / "model.safetensors.index.json", None),
    "shards of .bin": (bin_shards, None),
    "a shard is missing": (lacks_a_shard, "which is not there"),
    "one shard alone": (one_shard, "one of several parts"),
    "save_model": (save_model, None),
    "half precision": (typed(torch.float16), None),
    "bfloat16": (typed(torch.bfloat16), None),
    "float64": (typed(torch.float64), None),
    "config.json with a mark": (with_bom, None),
    ".bin": (as_bin(), None),
    ".bin with causal masks": (as_bin(masks), None),
    ".bin, compiled": (as_bin(prefixed("_orig_mod.")), None),
    ".bin, of processes": (as_bin(prefixed("module.")), None),
    ".bin, compiled in processes": (as_bin(prefixed("module._orig_mod.model.")), None),
    ".bin in {state_dict}": (as_bin(lambda s: {"state_dict": s, "epoch": 3}), None),
    ".bin in {model}": (as_bin(lambda s: {"model": s, "optimizer": {"state": {}}}), None),
    "two models": (as_bin(lambda s: {"model": s, "ema": s}), "several models, model and ema"),
    "under another name": (as_bin(name="best.pt"), None),
    "a file alone": (lone(as_bin()), "how many heads"),
    "nanoGPT": (nanogpt, "nanoGPT"),
    "nanoGPT's weights": (as_bin(transposed), "nanoGPT"),
    "an untied head": (untied, "lm_head.weight is not"),
    "an untied head, not said": (as_bin(changed("lm_head.weight", lambda v: v + 1)), "lm_head"),
    "an untied head in float": (as_bin(changed("lm_head.weight", lambda v: v * 2), False), "head"),
    "an untied head that is equal": (untied_but_equal, None),
    "an untied head that is lost": (with_config(tie_word_embeddings=False), "embeddings: false"),
    "a classifier": (lambda f: saved(f, make("GPT2ForSequenceClassification")), "score.weight"),
    "two heads": (lambda f: saved(f, make("GPT2DoubleHeadsModel")), "multiple_choice_head"),
    "cross attention": (lambda f: saved(f, make(add_cross_attention=True)), "cross"),
    "exact GELU": (lambda f: saved(f, make(activation_function="gelu")), 'activation_function: "'),
    "relu": (lambda f: saved(f, make(activation_function="relu")), "activation_function"),
    "the same GELU": (lambda f: saved(f, make(activation_function="gelu_pytorch_tanh")), None),
    "epsilon": (lambda f: saved(f, make(layer_norm_epsilon=0.01)), "layer_norm_epsilon: 0.01"),
    "not scaled": (lambda f: saved(f, make(scale_attn_weights=False)), "scale_attn_weights"),
    "by layer": (lambda f: saved(f, make(scale_attn_by_inverse_layer_idx=True)), "inverse_layer"),
    "upcast": (lambda f: saved(f, make(reorder_and_upcast_attn=True)), None),
    "narrow": (lambda f: saved(f, make(n_inner=64)), "n_inner"),
    "n_inner, said": (lambda f: saved(f, make(n_inner=128)), None),
    "heads as a word": (with_config(n_head="4"), 'n_head: "4"'),
    "no heads": (with_config(n_head=0), "n_head: 0"),
    "heads that do not fit": (with_config(n_head=5), "n_head: 5"),
    "heads, true": (with_config(n_head=True), "n_head: true"),
    "another family": (with_config(model_type="gpt_neo"), 'model_type: "gpt_neo"'),
    "fewer layers": (with_config(n_layer=1), "n_layer: 1"),
    "fewer places": (with_config(n_positions=8), "n_positions: 8"),
    "no heads said": (with_config(n_head="left out"), "with n_head"),
    "quantised": (with_config(quantization_config={"bits": 8}), "quantization_config"),
    "NaN": (as_bin(changed("transformer.h.0.mlp.c_fc.bias", lambda v: spoilt(v, float("nan")))),
            "h.0.mlp.c_fc.bias is not finite"),
    "infinity": (as_bin(changed("transformer.wpe.weight", lambda v: spoilt(v, float("-inf")))),
                 "wpe.weight is not finite"),
    "bytes": (as_bin(changed("transformer.h.1.mlp.c_fc.weight", lambda v: (v * 99).char())),
              "h.1.mlp.c_fc.weight is of int8"),
    "8-bit floats": (as_bin(changed("transformer.h.1.mlp.c_fc.weight",
                                    lambda v: v.to(torch.float8_e4m3fn))), "float8"),
    "complex": (as_bin(changed("transformer.wpe.weight", lambda v: v + 0j)), "complex"),
    "adapters": (as_bin(prefixed("base_model.model.")), "base_model"),
    "adapters beside a model": (beside_adapters, "merge_and_unload"),
    "adapters beside a file": (lambda f: beside_adapters(f) / "model.safetensors", "merge_and_unl"),
    "without numbers": (as_bin(changed("transformer.wpe.weight", lambda v: v.to("meta"))),
                        "wpe.weight is on meta"),
    "sparse": (as_bin(changed("transformer.wpe.weight", lambda v: v.to_sparse())), "sparse_coo"),
    "a layer is missing": (as_bin(lambda s: {k.replace(".h.1.", ".h.2."): v for k, v in s.items()}),
                           "Missing key(s) in state_dict: h.1.ln_1.weight"),
    "a whole module": (whole_module, "model.state_dict()"),
    "a pointer": (no_safetensors_here, "git lfs pull"),
    "other words": (own_words, "vocab.json is not GPT-2's"),
    "other words, by a file": (lambda f: own_words(f) / "model.safetensors", "is not GPT-2's"),
}


def their_logits(path, ids):
    """transformers' own reading, where it finds all it wants; else of the model it was made of."""
    folder, theirs = path if path.is_dir() else path.parent, make()
    config = (folder / "config.json").read_bytes()
    # (they refuse a config.json with a mark)
    if config[:1] == b"{" and any((folder / name).exists() for name in weights.NAMES):
        read, info = transformers.GPT2LMHeadModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True)
        theirs = theirs if info["missing_keys"] else read.eval()
    with torch.no_grad():
        return theirs(ids).logits


@pytest.mark.parametrize("name", FORMS)
def test_equal_or_refused(name, tmp_path):
    """Guards the one rule: equal logits, or one line that names the key or the layout."""
    form, words = FORMS[name]
    path = form(tmp_path)
    if words is not None:
        refuses(lambda: load(path), words)
        return
    ours, ids = load(path), torch.randint(96, (2, 24))
    with torch.no_grad():
        mine, theirs = ours.logits(ours(ids)), their_logits(path, ids)
    assert theirs.std() > 0.5 and (mine - theirs).abs().max() < 1e-4


def test_without_the_package(tmp_path, monkeypatch):
    """Guards requirements.txt: a .safetensors file is read by us, tensor for tensor as by its own
    library, and that one is not needed."""
    state = {"a": torch.randn(3, 4), "b": torch.randn(2).half(), "c": torch.zeros(0, 5),
             "d": torch.tensor(7), "e": torch.randn(2, 3, 5).bfloat16(), "f": torch.ones(3) > 0}
    safetensors.save_file(state, tmp_path / "x.safetensors", {"format": "pt"})
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    mine = weights.read_weights(tmp_path / "x.safetensors")
    assert mine.keys() == state.keys()
    assert all(torch.equal(mine[k], v) and mine[k].dtype == v.dtype for k, v in state.items())


def test_heads_of_published_models(tmp_path):
    """Guards the one guess: a file alone has the heads of a published model of that shape."""
    m = make(n_embd=768, n_layer=6, n_head=12, vocab_size=9)
    torch.save(m.state_dict(), tmp_path / "distil.bin")
    found = weights.read_gpt2(tmp_path / "distil.bin")
    assert isinstance(found, Found) and (found.n_head, found.n_layer) == (12, 6)


def test_folder_with_the_name_of_a_model(tmp_path, monkeypatch):
    """Guards a clone of a model in the working directory: it is read, and nothing is downloaded."""
    saved(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert load("gpt2").config.n_embd == 32


def test_two_meanings_of_a_folder(tmp_path):
    """Guards a run and another's model in one folder: which is meant is asked, not guessed."""
    saved(tmp_path)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "ckpt.pt")
    refuses(lambda: load(tmp_path), "name the file")
    assert load(tmp_path / "model.safetensors").config.n_head == 4


def test_what_else_a_folder_may_be(tmp_path):
    """Guards the person who gives the wrong folder: what lies in it is named, and what to do."""
    for name, words in (("adapter_config.json", "merge_and_unload"), ("tf_model.h5", "TensorFlow"),
                        ("flax_model.msgpack", "Flax"), ("model.gguf", "it holds model.gguf")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("{}")
        refuses(lambda: load(folder), words)
    (tmp_path / "trainer" / "checkpoint-500").mkdir(parents=True)
    refuses(lambda: load(tmp_path / "trainer"), "checkpoint-500?")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "bert" / "model.safetensors").write_text("")
    refuses(lambda: load(tmp_path / "bert"), "'bert'")


def test_an_index_stays_in_its_folder(tmp_path):
    """Guards against an index that names a file somewhere else, and against one that is none."""
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for text in ('{"weight_map": {"wte.weight": "../x.safetensors"}}', "[]", "{", "{}",
                 '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        refuses(lambda: load(tmp_path), "index")
    index.write_text('{"weight_map": {"more.weight": "x.safetensors"}}')
    refuses(lambda: load(tmp_path), "more.weight")


def with_header(folder, change):
    """A safetensors file whose line of JSON says something else."""
    saved(folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = change(data[8:8 + size].decode())
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data[8 + size:])


def one_place_for_two(text):
    found = json.loads(text)
    found["transformer.h.0.ln_1.bias"] = found["transformer.h.0.ln_1.weight"]
    return json.dumps(found)


def shaped(shape):
    def change(text):
        found = json.loads(text)
        found["transformer.h.0.ln_1.bias"]["shape"] = shape
        return json.dumps(found)
    return change


@pytest.mark.parametrize("change", [
    one_place_for_two, shaped([-1]), shaped(32),
    lambda text: text.replace("transformer.h.0.ln_1.bias", "transformer.h.0.ln_1.weight")],
    ids=["two tensors in one place", "a negative shape", "no shape", "a name twice"])
def test_no_header_is_guessed(tmp_path, change):
    """Guards against weights that are not those of the file: its spans are whole and apart."""
    saved(tmp_path)
    load(tmp_path)
    with_header(tmp_path, change)
    refuses(lambda: load(tmp_path), "model.safetensors")


@pytest.mark.parametrize("start, word", [(b"GGUF" + bytes(99), "llama.cpp"),
                                         (b"\x93NUMPY" + bytes(99), "NumPy")])
def test_what_the_file_is(tmp_path, start, word):
    """Guards the line for other people's formats, which hold no code."""
    (tmp_path / "a.bin").write_bytes(start)
    refuses(lambda: load(tmp_path / "a.bin"), word)


def test_a_tensor_called_format(tmp_path):
    """Guards against a traceback of a comparison."""
    torch.save(make().state_dict() | {"format": torch.ones(3)}, tmp_path / "a.bin")
    refuses(lambda: load(tmp_path / "a.bin"), "format")


def test_words(tmp_path):
    """Guards the two sums that stand for GPT-2's words: its own files pass, in each of their
    spellings; others do not, also where only the order of merges differs."""
    # how GPT-2's files spell a byte: printable ones as they are, the others from 256 on
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelt = {b: chr(b) for b in shown}
    spelt |= {b: chr(256 + i) for i, b in enumerate(x for x in range(256) if x not in spelt)}
    tok = Tokenizer()
    words = ["".join(spelt[b] for b in tok.bytes_of(i)) for i in range(50256)]
    assert sha_of_lines(words) == weights.VOCAB_SHA256
    assert sha_of_lines(words[256:]) == weights.MERGES_SHA256
    (tmp_path / "config.json").write_text('{"n_head": 1}')
    vocab = {w: i for i, w in enumerate([*words, "<|endoftext|>"])}
    pairs = [(w[:1], w[1:]) for w in words[256:]]  # (where a merge is cut plays no part)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")
    for merges in (pairs, [f"{a} {b}" for a, b in pairs]):
        model = {"type": "BPE", "vocab": vocab, "merges": merges}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
        check_words(tmp_path)
    for name, text in (("merges.txt", "a b\nb c\n"), ("tokenizer.json", "{}"), ("vocab.json", "[")):
        (tmp_path / name).write_text(text)
        refuses(lambda: check_words(tmp_path), name)
        (tmp_path / name).unlink()
    check_words(tmp_path)
