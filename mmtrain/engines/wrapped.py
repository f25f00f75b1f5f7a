"""The model as DeepSpeed is handed it: under autocast if it is to be, and with a mark beside it."""

from typing import Any

import torch
from torch import nn


class Wrapped(nn.Module):
    """The model, and the mark that tells DeepSpeed of sharded experts where some are trained."""

    def __init__(
        self, model: nn.Module, *, device: torch.device, low_precision: bool, mark: nn.Module | None
    ) -> None:
        super().__init__()
        self.model = model
        self._device_type, self._low_precision = device.type, low_precision
        if mark is not None:
            self.mark = mark

    def forward(self, **inputs: Any) -> Any:
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._low_precision):
            return self.model(**inputs)
