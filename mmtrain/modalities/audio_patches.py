"""The audio net of a vision transformer: a log-mel spectrogram cut into patches like a picture.

Gong et al., arXiv:2104.01778, Sec. 2.1, with patches that do not overlap. Clips have one number of
frames; a shorter sound's silence counts as sound.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.patches import PatchEmbedding, Tokens, check_size, grid_of, known

Output = None


class Config(BaseModel):
    """Settings of the audio net; sizes as the tasks' sounds have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    TAKEN: ClassVar = ("num_frames", "num_bins")
    AGREED: ClassVar = ("sample_rate_hz", "frame_ms", "hop_ms")

    num_frames: int | None = Field(default=None, ge=1, description="Frames of a clip.")
    num_bins: int | None = Field(default=None, ge=1, description="Mel bins of a frame.")
    patch: tuple[int, int] = Field(default=(16, 16), description="Frames and bins of a patch.")
    channels: int = Field(
        default=3, ge=1, description="Copies of the spectrogram; 3 take a picture net's kernel."
    )
    drop_prob: float = Field(default=0.0, ge=0, lt=1, description="Dropout of the tokens.")

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along time and along frequency.

        Raises:
            InputSizeError: patches do not divide the size.
        """
        size = known(self.num_frames, self.num_bins)
        return grid_of(size, patch=self.patch, axes=("frames", "bins"))

    @model_validator(mode="before")
    @classmethod
    def _older_files_changed_nothing(cls, data: Any) -> Any:
        """Bundles from before corpora were measured say that 0 is taken off and 1 divides."""
        if isinstance(data, Mapping) and (data.get("mean"), data.get("deviation")) == (0.0, 1.0):
            return {name: held for name, held in data.items() if name not in ("mean", "deviation")}
        return data


class Input(nn.Module):
    """Log-mel frames (B, frames, bins) to (B, 1 + frames' * bins', D).

    Raises:
        InputSizeError: patches do not divide the size; or, when called, clips of another size.
    """

    dims: ClassVar[Literal[1, 2]] = 2

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.size = known(config.num_frames, config.num_bins)
        rows, columns = config.grid
        self.grid = (rows, columns)
        self.embed = PatchEmbedding(config.channels, model_dim, patch=config.patch)
        self.tokens = Tokens(rows * columns, model_dim, drop_prob=config.drop_prob)

    def forward(self, frames_BYX: Tensor, lengths_B: Tensor) -> Encoded:
        check_size(frames_BYX, self.size, net="audio_patches")
        frames_BYXC = frames_BYX.float().unsqueeze(-1).expand(-1, -1, -1, self.config.channels)
        values_BSD = self.tokens(self.embed(frames_BYXC))
        mask_BS = values_BSD.new_ones(values_BSD.shape[:2]).bool()
        return Encoded(values_BSD, mask_BS, self.grid, padding="none", patch=self.config.patch)
