"""Devices that torch can compute on, and the type to compute in. Importing this module does not import torch."""

import os
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


def usable_device(device: "str | torch.device | None" = None) -> str:
    """A device that torch can compute on; None: a GPU if there is one, each process of a launch its own.

    Raises:
        ValueError: torch does not know it, or it is not there.
    """
    import torch

    if device is None and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    if device is None:
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the device {device} cannot be used: {reason}. Choose cpu, cuda, cuda:N or mps.") from error
    return str(device)


def resolve_dtype(dtype: str, device: "str | torch.device") -> "torch.dtype":
    """The torch type that a name stands for on a device.

    Raises:
        ValueError: unknown name.
    """
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype != "auto":
        if dtype not in names:
            raise ValueError(f"dtype {dtype!r} is unknown. Choose one of auto, {', '.join(names)}.")
        return names[dtype]
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Elsewhere bfloat16 on a CPU is emulated, and slower than float32.
    abilities = getattr(torch.cpu, "get_capabilities", dict)() if kind == "cpu" else {}
    return torch.bfloat16 if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else torch.float32
