"""A server in this process: the app over small untrained networks, without Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.predict.predictor import Predictor
from mmtrain.serving.api import build_app
from mmtrain.serving.config import ServingConfig
from mmtrain.serving.networks import Network, Networks
from pipelines.modalities.audio import to_wav
from tests.mmtrain import example_kinds
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_masked import save_senses


def example_networks(folder: Path) -> Networks:
    """Texts, trees and shades of one model; a task of each kind of another."""
    words = Predictor.load(example_bundle(folder / "words"))
    kinds = Predictor.load(example_kinds.bundle(folder / "kinds"))
    return Networks([Network(words, uri="words"), Network(kinds, uri="kinds")])


def senses_network(folder: Path) -> Network:
    """A model with masks of three subtasks, that hears, too."""
    save_senses(folder)
    return Network(Predictor.load(folder), uri="senses")


def example_app(networks: Networks, **settings: Any) -> Any:
    return build_app(networks, ServingConfig.model_validate(settings))


def wav(seconds: float, *, rate_hz: int = 16_000) -> bytes:
    samples = 0.1 * np.sin(np.arange(int(seconds * rate_hz)))
    return to_wav(samples.astype(np.float32), rate_hz=rate_hz)


def names_of(answers: Sequence[dict[str, Any]]) -> list[str]:
    return [answer["task"] for answer in answers]
