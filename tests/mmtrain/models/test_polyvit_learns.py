"""Every kind of input and head of PolyViT learns a toy task within seconds."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmtrain.modalities import text_tokens
from mmtrain.models.model import MultiTaskModel, build_model
from pipelines.corpora.name_languages import split_names
from tests.mmtrain.models.tiny_polyvit import TASKS, tiny_config

torch.set_num_threads(1)


def motions(batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A bright row that grows brighter or darker, at any place: (B, 4, 8, 8, 1)."""
    classes = torch.randint(0, 2, (batch,), generator=generator)
    levels = torch.linspace(60, 240, 4).expand(batch, 4)
    levels = torch.where(classes[:, None] == 0, levels, levels.flip(1))
    rows = F.one_hot(torch.randint(0, 8, (batch,), generator=generator), 8)
    clip = levels[:, :, None, None] * rows[:, None, :, None]
    return clip.expand(batch, 4, 8, 8).unsqueeze(-1), classes


def brightness(batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A clip of noise around one of four levels: (B, 4, 8, 8, 1)."""
    classes = torch.randint(0, 4, (batch,), generator=generator)
    noise = 40 * torch.randn((batch, 4, 8, 8, 1), generator=generator)
    return 50 + 50 * classes[:, None, None, None, None] + noise, classes


def bands(batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A tone in one of eight bins of 12 frames, in noise."""
    classes = torch.randint(0, 8, (batch,), generator=generator)
    tone = 2.0 * F.one_hot(classes, 8)[:, None]
    return tone + 0.3 * torch.randn((batch, 12, 8), generator=generator), classes


def train(model: MultiTaskModel, task: str, draw, *, steps: int) -> float:
    """Share of 200 fresh examples that are right after some steps of 32 examples."""
    generator = torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    for _ in range(steps):
        inputs, classes = draw(32, generator=generator)
        logits = logits_of(model, task, inputs)
        F.cross_entropy(logits.flatten(0, -2), classes.flatten()).backward()
        adam.step()
        adam.zero_grad()
    return share_right(model, task, *draw(200, generator=generator))


def share_right(model: MultiTaskModel, task: str, inputs: Tensor, classes: Tensor) -> float:
    with torch.no_grad():
        hits = logits_of(model.eval(), task, inputs).argmax(-1) == classes
    return hits.float().mean().item()


def logits_of(model: MultiTaskModel, task: str, inputs: Tensor) -> Tensor:
    lengths = torch.full((len(inputs),), inputs.shape[1])
    if inputs.ndim == 2:
        lengths = (inputs != 0).sum(1)
    return model(task=task, inputs=inputs, input_lengths=lengths, targets=None).logits


@pytest.mark.parametrize(
    ("task", "draw", "sequence"),
    [
        ("motion", motions, "clip"),
        ("motion", brightness, "frame"),
        ("word", bands, "clip"),
    ],
)
def test_a_modality_learns(task, draw, sequence):
    tasks = [spec.model_copy(update={"drop_layer": 0.0}) for spec in TASKS]
    model = build_model(tiny_config(sequence=sequence, num_adapter_blocks=2), tasks, seed=0)
    accuracy = train(model, task, draw, steps=140)
    assert accuracy > 0.9, accuracy  # chance: 0.5, 0.25, 0.125


def test_scores_of_pixels_learn():
    def squares(batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which third of grey each block of 2 x 2 pixels has: (B, 8, 12, 1) and (B, 8, 12)."""
        levels = torch.randint(0, 3, (batch, 4, 6), generator=generator)
        levels = levels.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return (levels * 100).unsqueeze(-1), levels

    model = build_model(tiny_config(), TASKS, seed=0)
    accuracy = train(model, "mask", squares, steps=150)
    assert accuracy > 0.9, accuracy  # chance: 0.33


def test_the_language_of_a_name_is_learned_by_the_text_net():
    """Letters are the tokens; the names tested stand in no language among those trained on."""
    splits = split_names(seed=0)
    letters = sorted({letter for name, _ in splits["train"] for letter in name.lower()})
    ids = {letter: 2 + place for place, letter in enumerate(letters)}

    def read(split: str) -> tuple[Tensor, Tensor]:
        tokens_NS = torch.zeros((len(splits[split]), 24), dtype=torch.long)
        for row, (name, _) in zip(tokens_NS, splits[split], strict=True):
            found = [ids.get(letter, 1) for letter in name.lower()[:24]]
            row[: len(found)] = torch.tensor(found)
        return tokens_NS, torch.tensor([("en", "de", "fr").index(x) for _, x in splits[split]])

    tokens_NS, languages_N = read("train")

    def draw(batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(tokens_NS), (batch,), generator=generator)
        return tokens_NS[rows], languages_N[rows]

    tiny = tiny_config(model_dim=32)
    nets = {**tiny.nets, "text_tokens": text_tokens.Config(max_tokens=24)}
    config = tiny.model_copy(update={"vocab_size": 2 + len(letters), "nets": nets})
    model = build_model(config, [task for task in TASKS if task.name == "language"], seed=0)
    train(model, "language", draw, steps=200)
    accuracy = share_right(model, "language", *read("test"))
    assert accuracy > 0.6, accuracy  # the commonest language: 0.38
