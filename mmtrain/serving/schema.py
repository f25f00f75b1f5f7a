"""What goes over the wire: requests and answers of the server, as OpenAPI shows them."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmtrain.bundle import BundleTask
from mmtrain.predict.answers import Prediction
from mmtrain.serving.config import Limits
from mmtrain.serving.networks import Network, Networks
from pipelines.modalities.numbers import NumbersFeature

_TAKES = ("max_tokens", "max_s", "sample_rate_hz", "height", "width", "channels", "num_frames")
_MAX_NAME, _MAX_SUBTASKS, _MAX_BEAM = 200, 64, 8


class PredictRequest(BaseModel):
    """What to answer; of multipart/form-data, the fields beside the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str = Field(
        description="Text, or the name of a class; base64 of the file's bytes for others."
    )
    task: str | None = Field(
        None, max_length=_MAX_NAME, description="Task that answers; none: all of the modality."
    )
    modality: str | None = Field(
        None, max_length=_MAX_NAME, description="Of the input, where no task is named."
    )
    subtasks: tuple[str, ...] = Field(
        (),
        max_length=_MAX_SUBTASKS,
        description="Basis subtasks; the smallest registered network that covers them answers.",
    )
    beam_size: int = Field(1, ge=1, le=_MAX_BEAM, description="Beams of text; 1 is greedy.")

    @field_validator("task", "modality", mode="after")
    @classmethod
    def _nothing_is_none(cls, value: str | None) -> str | None:
        return value or None  # a form sends an empty field for none


class Box(BaseModel):
    """A rectangle in shares of the picture's width and height, from its left and upper edge."""

    left: float
    top: float
    right: float
    bottom: float


class Answer(BaseModel):
    """One task's answer."""

    task: str
    text: str = Field(description="The answer on a line.")
    log_prob: float | None = Field(description="Natural logarithm of its probability.")
    scores: dict[str, float] = Field(description="Probabilities of the likeliest classes.")
    labels: list[str] = Field(description="Classes that are there, where there may be several.")
    values: dict[str, float] = Field(description="Predicted numbers in their own units.")
    tree: str | None = Field(description="The bracketed tree with its words.")
    mask: str | None = Field(description="Base64 of a PNG file whose pixels are class ids.")
    box: Box | None = Field(description="Where the values are a box.")
    network: int = Field(description="Which of `networks` said so.")


class NetworkAnswer(BaseModel):
    """A network, and how large it is."""

    uri: str = Field(description="Where it was loaded from.")
    tasks: list[str]
    subtasks: list[str] = Field(description="Basis subtasks that it covers.")
    parameters: int
    whole_parameters: int = Field(description="Of the model that it is, or is a part of.")
    recipe: str


class PredictAnswer(BaseModel):
    """Answers of a request."""

    answers: list[Answer]
    networks: list[NetworkAnswer] = Field(description="Networks that answered.")
    seconds: float = Field(description="From the first byte of the request to the answer.")


class TaskAnswer(BaseModel):
    """What a task takes and gives."""

    name: str
    modality: str = Field(description="Of its input.")
    choices: list[str] = Field(description="Class names of which its input is one; none: any.")
    answers: str = Field(description="Kind of its answer.")
    classes: list[str] = Field(description="Classes that it chooses from.")
    values: list[str] = Field(description="Numbers that it predicts.")
    takes: dict[str, float] = Field(description="Its input's size and bounds, as it was trained.")
    subtasks: list[str] = Field(
        description="Basis subtasks that may be named with it; none: the whole model answers."
    )
    network: NetworkAnswer = Field(description="Answers when no subtasks are named.")


class TasksAnswer(BaseModel):
    """All tasks of a server."""

    tasks: list[TaskAnswer]
    networks: list[NetworkAnswer]
    limits: Limits


class ProblemAnswer(BaseModel):
    """Why there is no answer, and what to do."""

    cause: str
    value: str
    remedy: str


class HealthAnswer(BaseModel):
    """The models are loaded."""

    status: str


def to_answer(name: str, prediction: Prediction, *, task: BundleTask, network: int) -> Answer:
    """One task's prediction as it is sent."""
    box, targets = None, task.targets
    if isinstance(targets, NumbersFeature) and targets.place == "box":
        size = targets.high - targets.low
        shares = {side: (value - targets.low) / size for side, value in prediction.values.items()}
        box = Box(**{side: min(1.0, max(0.0, share)) for side, share in shares.items()})
    answer = {"task": name, "network": network, "box": box, **prediction.to_dict()}
    return Answer.model_validate(answer)


def to_network(network: Network, *, whole: Network) -> NetworkAnswer:
    """A network as it is sent, beside the whole model that it is a part of."""
    return NetworkAnswer(
        uri=network.uri,
        tasks=list(network.tasks),
        subtasks=list(network.subtasks),
        parameters=network.num_parameters,
        whole_parameters=whole.num_parameters,
        recipe=network.predictor.bundle.card.lineage.recipe,
    )


def to_task(name: str, networks: Networks) -> TaskAnswer:
    """A task as it is sent."""
    task, whole = networks.tasks[name], networks.whole(name)
    parts: Mapping[str, tuple[str, ...]] = getattr(task.targets, "parts", {})
    classes = [f"{part} {name}" for part, names in parts.items() for name in names]
    takes = task.inputs.model_dump(include=set(_TAKES), exclude_none=True)
    return TaskAnswer(
        name=name,
        modality=task.inputs.modality,
        choices=list(getattr(task.inputs, "classes", ())),
        answers=task.targets.modality,
        classes=classes or list(getattr(task.targets, "classes", ())),
        values=list(getattr(task.targets, "names", ())),
        takes=takes,
        subtasks=networks.subtasks_of(name) if networks.has_smaller(whole) else [],
        network=to_network(whole, whole=whole),
    )
