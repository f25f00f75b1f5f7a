"""What a model is made of, as data: a family with its settings, nets with theirs, tasks.

A family is a module of this package, or a user's own (`my_family.py`, `my_package.my_family`), with
a `Body` and its `Config`:

    Body(config)                      .encode(Encoded) -> Encoded
                                      .decode(shifted, Encoded) -> Encoded; without it, no sequences
                                      .parts(reads): its children that a head depends on
    Config                            frozen, with `model_dim`
    Body.prunable_units(), .scale_sites()
                                      optional: what can be cut out of it, see layers/units.py; it
                                      is built with the counts in `Config.units`. Stems and adapters
                                      may have both too
    Body.output_group                 optional: the group whose units are the width that heads read
    NETS                              optional: all nets that it has, by a modality net's name, e.g.
                                      {"image": "image_patches"}; without it, all by their own
    build_adapter(config)             optional: a module (Encoded, body) -> Encoded, owned by the
                                      modality, that calls the body's encode; None: there is none
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from mmtrain import modalities, models
from pipelines.errors import UnknownNameError
from pipelines.modalities import Feature
from pipelines.names import Name, load_module, module_names

Scores = Literal["softmax", "sigmoid", "values"]

_NO_FAMILIES = ("config", "fitting", "model")  # other modules of the package


class TaskSpec(BaseModel):
    """What the model must know of a task; derived from the pipelines' `Task`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    input_net: str = Field(description="Stem: module of mmtrain/modalities, e.g. 'spectral'.")
    output_net: str = Field(description="Head: module of mmtrain/modalities, e.g. 'text', 'label'.")
    num_outputs: int | None = Field(
        default=None, description="Scores of a net with a fixed set; None: tokens are decoded."
    )
    output_groups: tuple[int, ...] = Field(
        default=(), description="Of several labels at once: scores of each; they sum to all."
    )
    loss: Name = Field(default="cross_entropy", description="A `Loss` by its name.")
    scores: Scores | None = Field(
        default=None,
        description="What the head's scores are, so that prediction needs no loss; None: as the "
        "loss says.",
    )
    drop_layer: float = Field(
        default=0.0, ge=0, lt=1, description="Stochastic depth: share dropped of the last layer."
    )
    command_id: int | None = Field(
        default=None, description="Token that starts decoding; None: no decoder."
    )
    head_init: Literal["zeros", "lecun_normal"] | None = Field(
        default=None, description="Of its head's last layer at the start; None: the net's `init`."
    )

    @property
    def stem(self) -> str:
        """Key of its stem and adapter."""
        return modalities.child_name(self.input_net)


class ModelConfig(BaseModel):
    """A family with its body's settings, and the settings of modality nets.

    From JSON, the family's module says how `body` is read, and each net's module its entry.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Name = Field(
        default="multimodel", description="Module with Body and Config, or a user's FILE.py."
    )
    body: SerializeAsAny[BaseModel] = Field(description="The family's Config.")
    nets: dict[str, SerializeAsAny[BaseModel]] = Field(
        default={}, description="Config of each modality net; one not named has its defaults."
    )
    vocab_size: int | None = Field(
        default=None, ge=2, description="Tokens of the nets of text; null: as the corpora have."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_by_modules(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        family = load_family(data.get("family", "multimodel"))
        nets = {
            name: _read(config, modalities.load(name).Config)
            for name, config in data.get("nets", {}).items()
        }
        return {**data, "body": _read(data.get("body", {}), family.Config), "nets": nets}


def _read(value: Any, config_class: type[BaseModel]) -> Any:
    return config_class.model_validate(value) if isinstance(value, Mapping) else value


def families() -> tuple[str, ...]:
    """Names of the shipped model families."""
    return tuple(name for name in module_names(models) if name not in _NO_FAMILIES)


def load_family(name: str) -> ModuleType:
    """The module of a family.

    Raises:
        UnknownNameError: there is no such family; tells the nearest.
        OwnCodeError: the user's file is gone or fails, or has no Body or Config.
    """
    if name in _NO_FAMILIES:
        raise UnknownNameError("model family", name, families())
    return load_module(name, kind="model family", package=models, needs=("Body", "Config"))


def net_of(family: str, feature: Feature) -> str:
    """The modality net that a family takes a feature's arrays with."""
    nets: Mapping[str, str] = getattr(load_family(family), "NETS", {})
    return nets.get(feature.net, feature.net)
