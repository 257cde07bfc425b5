"""A GPU that is none: tensors that say they are far away, and hold their numbers on the CPU.

`Far` says that it is on torch's device `meta`. While a `Device` lasts, each operation runs on the
numbers within. It fails where far meets near, as CUDA would. What makes the host wait is written
down, with the function of ours that asked.

Left out on purpose: gradients, speed, streams, and kernels that round otherwise. A copy counts as
a wait either way, as it is one on CUDA for memory that is not pinned.
"""
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT, aten = Path(__file__).resolve().parent.parent.parent, torch.ops.aten
OURS = {str(ROOT), str(ROOT / "lab")}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
           aten._index_put_impl_.default}
COPIES = {aten.copy_.default, aten._to_copy.default}
# torch's own marks of an operation whose result, or its shape, the host has to know
ASKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Far(Tensor):
    """The view of a tensor from far away. A result that shares memory within shares it here."""
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        far = Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(),
            dtype=near.dtype, device="meta")
        far.near = near.detach()
        return far

    def __repr__(self) -> str:
        return f"Far({self.near})"

    def tolist(self) -> list:  # (torch refuses it for classes of our own)
        return self.cpu().tolist()

    def __getitem__(self, at):
        return super().__getitem__(without_lists(at))

    def __setitem__(self, at, value) -> None:
        super().__setitem__(without_lists(at), value)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: what is far is worked on within a Device")


class Device(TorchDispatchMode):
    """While it lasts, tensors on `meta` are `Far`. waits: the function that waited -> how often."""

    def __enter__(self) -> "Device":
        self.waits, self.patches = Counter(), ExitStack()
        for name in ("tensor", "as_tensor"):
            self.patches.enter_context(patch.object(torch, name, by_cpu(getattr(torch, name))))
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.patches.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [x for x in given if not isinstance(x, Far)]
        if any(x.is_meta for x in here):
            raise RuntimeError(f"{func}: a tensor whose numbers are lost")
        far_in = len(here) < len(given)
        where = kwargs.get("device")  # of the result; None: where its inputs are
        far_out = far_in if where is None else torch.device(where).type == "meta"
        if where is not None and far_out:
            kwargs["device"] = torch.device("cpu")
        if given and self.asks(func, args, here, far_in, far_out):
            self.waits[asker()] += 1
        known = {id(x.near): x for x in given if isinstance(x, Far)}
        args, kwargs = tree_map_only(Far, lambda x: x.near, (args, kwargs))
        out = func(*args, **kwargs)
        if not far_out:
            return out
        # what was written in place comes back as the object that it was
        return tree_map_only(
            Tensor, lambda x: known[id(x)] if id(x) in known else Far(x), out)

    @staticmethod
    def asks(func, args, here: list[Tensor], far_in: bool, far_out: bool) -> bool:
        """Does the host wait for this? Raises RuntimeError for what CUDA refuses."""
        if func in COPIES:
            return (far_in != far_out) or bool(far_in and here)
        if not far_in:
            return False
        # CUDA takes single numbers from the CPU. It takes indices as well, and copies them first
        mixed = [x for x in here if x.dim()]
        if func in INDEXED and isinstance(args[0], Far):
            # (for one number under a mask CUDA has a kernel that asks for nothing)
            number = len(args) > 2 and args[2].numel() == 1
            masks = any(x is not None and x.dtype == torch.bool for x in args[1])
            mixed = [x for x in mixed if all(x is not i for i in args[1])]
            asks = masks and not number or len(here) > len(mixed)
        else:
            asks = bool(ASKS & set(func.tags))
        writes = func._schema.is_mutable and args and isinstance(args[0], Tensor)
        if mixed or (writes and not isinstance(args[0], Far)):
            raise RuntimeError(f"{func}: tensors on two devices")
        return asks


# On their way to `meta` numbers of Python's get lost. So they take the way over the CPU

def without_lists(at):
    """Indices as x[at] takes them, lists as tensors on the CPU."""
    at = tuple(map(without_lists, at)) if isinstance(at, tuple) else at
    return torch.tensor(at) if isinstance(at, list) else at


def by_cpu(make: Callable) -> Callable:
    """torch.tensor, made on the CPU first."""
    def tensor(data, device=None, **how) -> Tensor:
        made = make(data, **how)
        return made if device is None else made.to(device)
    return tensor


def asker() -> str:
    """The innermost function of the repository's own files, tests aside."""
    frame = sys._getframe()
    while frame.f_back is not None:
        if os.path.dirname(frame.f_code.co_filename) in OURS:
            return frame.f_code.co_name
        frame = frame.f_back
    return "a test"


def far_model(model: nn.Module) -> nn.Module:
    """The model, with all that it has moved far away."""
    for module in model.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = nn.Parameter(Far(p.detach()), p.requires_grad)
    return model
