"""A device for tests that reports `cuda:0` and computes on the CPU.

It finds what fails on a GPU only: operations that mix tensors of both devices, and copies and synchronisations, each of
which makes the CPU wait. Inside `fake_cuda()`, tensors on the device are `FakeCudaTensor`s.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
# A GPU waits for the CPU in these, because the shape of the result depends on the values.
_VALUE_DEPENDENT = ("aten.nonzero", "aten.masked_select", "aten._unique2", "aten.equal")
_SCALARS = ("item", "__float__", "__int__", "__bool__", "__index__", "__complex__")


@dataclass
class Traffic:
    """What was counted: copies between CPU and device in either direction, and synchronisations."""

    to_device: int = 0
    to_cpu: int = 0
    synchronisations: int = 0
    where: list[str] = field(default_factory=list)

    def copy(self) -> "Traffic":
        """Return the counts so far."""
        return replace(self, where=list(self.where))


class DeviceMismatchError(RuntimeError):
    """An operation got tensors of both devices."""


class FakeCudaTensor(Tensor):
    """A CPU tensor that reports to be on `cuda:0`."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, **_: Any) -> str:
        return f"FakeCudaTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def fake_cuda() -> Iterator[Traffic]:
    """Provide the device in a block, and count its traffic."""
    traffic = Traffic()
    real_autocast = torch.autocast.__init__

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        real_autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    patches = (
        mock.patch.object(torch.cuda, "_lazy_init", return_value=None),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        mock.patch.object(torch.autocast, "__init__", autocast),
    )
    for patch in patches:
        patch.start()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a moved parameter is of another class
    try:
        with _Dispatch(traffic), _Functions(traffic):
            yield traffic
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
        for patch in patches:
            patch.stop()


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the CPU, and return tensors of the device its arguments are on."""
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, (args, kwargs))
    is_fake = any(isinstance(each, FakeCudaTensor) for each in found)
    device = kwargs.get("device")
    wants_fake = device is not None and torch.device(device).type == "cuda"
    name = str(func)
    if is_fake and not name.startswith(("aten.copy_", "aten.index.", "aten.index_put")):
        plain = [each for each in found if not isinstance(each, FakeCudaTensor) and each.dim() > 0]
        if plain:
            raise DeviceMismatchError(f"{name}: tensors on cuda:0 and on the CPU, of shape {tuple(plain[0].shape)}")
    if wants_fake:
        kwargs = {**kwargs, "device": CPU}
        generator = kwargs.get("generator")
        if generator is not None:
            raise DeviceMismatchError(f"{name}: a generator on the CPU for a tensor on cuda:0")
    with torch._C._DisableTorchDispatch():
        out = func(*tree_map_only(FakeCudaTensor, _unwrap, args), **tree_map_only(FakeCudaTensor, _unwrap, kwargs))
    if not (is_fake or wants_fake):
        return out
    if name.startswith("aten.copy_") and not isinstance(args[0], FakeCudaTensor):
        return args[0]
    if func._schema.is_mutable and not func._schema.name.endswith(".out") and isinstance(args[0], Tensor):
        return args[0] if isinstance(out, Tensor) else out
    return tree_map_only(Tensor, _wrap, out)


def _wrap(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, FakeCudaTensor) else Tensor._make_subclass(FakeCudaTensor, tensor)


def _unwrap(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def _plain(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU without counting it."""
    with torch._C._DisableTorchDispatch():
        return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


class _Move(torch.autograd.Function):
    """Copy a tensor to the device or back; the gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, to_fake: bool) -> Tensor:  # type: ignore[override]
        ctx.to_fake = to_fake
        copy = _plain(tensor)
        return _wrap(copy) if to_fake else copy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Move.apply(gradients[0], not ctx.to_fake), None


class _Dispatch(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, traffic = str(func), self.traffic
        if args and isinstance(args[0], FakeCudaTensor):
            if name.startswith(_VALUE_DEPENDENT):
                traffic.synchronisations += 1
                traffic.where.append(name)
            if name.startswith(("aten.index.", "aten.index_put")):
                for index in args[1]:
                    if isinstance(index, FakeCudaTensor) and index.dtype == torch.bool:
                        traffic.synchronisations += 1
                        traffic.where.append(f"{name} with a boolean mask")
                    elif index is not None and not isinstance(index, FakeCudaTensor) and index.dim() > 0:
                        traffic.to_device += 1
                        traffic.where.append(f"{name} with an index on the CPU")
        if name.startswith("aten.copy_") and isinstance(args[0], FakeCudaTensor) != isinstance(args[1], FakeCudaTensor):
            if isinstance(args[0], FakeCudaTensor):
                traffic.to_device += 1
            else:
                traffic.to_cpu += 1
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Handles the calls that move tensors or read values, which C++ would answer for a CPU tensor."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        if tensor is not None and name in ("to", "cpu", "cuda", "type_as"):
            return self._to(name, tensor, args[1:], dict(kwargs))
        if isinstance(tensor, FakeCudaTensor):
            if name in _SCALARS:
                self._count_sync(name)
                return func(_plain(tensor), *args[1:], **kwargs)
            if name == "numpy":
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
            if name == "tolist":
                self._count_sync(name)
                return _plain(tensor).tolist()
        if name in ("tensor", "as_tensor") and _is_cuda(kwargs.get("device")):
            self.traffic.to_device += 1
            self.traffic.where.append(f"torch.{name}")
            made = func(*args, **{**kwargs, "device": CPU})
            return _Move.apply(made, True)
        return func(*args, **kwargs)

    def _to(self, name: str, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        device: Any = {"cpu": CPU, "cuda": DEVICE}.get(name, kwargs.pop("device", None))
        rest = []
        for arg in args if name in ("to", "type_as") else ():
            if isinstance(arg, Tensor):
                device = arg.device if name == "to" else device
                kwargs["dtype"] = arg.dtype
            elif isinstance(arg, str | torch.device | int) and not isinstance(arg, bool):
                device = arg
            elif isinstance(arg, torch.dtype):
                kwargs["dtype"] = arg
            elif arg is not None:
                rest.append(arg)
        other = kwargs.pop("other", None)
        if other is not None:
            device, kwargs["dtype"] = other.device, other.dtype
        kwargs = {key: value for key, value in kwargs.items() if value is not None and key != "non_blocking"}
        if name == "to" and kwargs:
            tensor = tensor.to(**kwargs) if _without(self, tensor, kwargs) else tensor
        if device is None or _is_cuda(device) == isinstance(tensor, FakeCudaTensor):
            return tensor
        if _is_cuda(device):
            self.traffic.to_device += 1
        else:
            self.traffic.to_cpu += 1
            self._count_sync("copy to the CPU")
        return _Move.apply(tensor, _is_cuda(device))

    def _count_sync(self, what: str) -> None:
        self.traffic.synchronisations += 1
        self.traffic.where.append(what)


def _without(mode: _Functions, tensor: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a conversion changes the tensor; the mode is not active inside its own handler, so `to` is torch's."""
    dtype = kwargs.get("dtype", tensor.dtype)
    return dtype != tensor.dtype or kwargs.get("copy", False) or "memory_format" in kwargs


def _is_cuda(device: Any) -> bool:
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")
