"""Inputs of a task that a model is measured or recalibrated on."""

from dataclasses import dataclass

from torch import Tensor

from mmtrain.models.model import MultiTaskModel, Outputs


@dataclass(frozen=True, slots=True)
class TaskInputs:
    """A batch without its labels, as `MultiTaskModel.forward` takes it.

    Args:
        task: name of the task.
        inputs: (B, S, ...) as the task's input net takes them.
        input_lengths: (B,) real positions of axis 1.
        targets: (B, T) token ids that a decoder is fed; None: it decodes one position.
    """

    task: str
    inputs: Tensor
    input_lengths: Tensor
    targets: Tensor | None = None

    def forward(self, model: MultiTaskModel) -> Outputs:
        """What the model makes of the batch."""
        return model(
            task=self.task,
            inputs=self.inputs,
            input_lengths=self.input_lengths,
            targets=self.targets,
        )
