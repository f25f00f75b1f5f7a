"""Amounts as people write them: "80GB", "CPU=64,GPU=8"."""

import re

from pipelines.errors import MMTrainError

UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


class AmountError(MMTrainError):
    """An amount cannot be read."""


def parse_bytes(text: str) -> float:
    """Bytes: a number and a unit.

    Raises:
        AmountError: it is not that, or not above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise AmountError(f"{text!r} is no size of memory; write it like 80GB or 40GiB")
    return float(match[1]) * UNITS[match[2].upper()]


def parse_resources(text: str) -> dict[str, float]:
    """Resources by Ray's names.

    Raises:
        AmountError: not NAME=NUMBER, parted by commas.
    """
    resources: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z]\w*)\s*=\s*(\d+(?:\.\d+)?)\s*", part)
        if match is None:
            raise AmountError(f"{part!r} of {text!r}: write resources like CPU=64,GPU=8")
        resources[match[1]] = float(match[2])
    return resources
