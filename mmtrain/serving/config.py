"""How a server answers, and the bounds of what it takes: plain data, without Ray or FastAPI."""

from pydantic import BaseModel, ConfigDict, Field, SecretStr

_MEGABYTE = 2**20


class Limits(BaseModel):
    """The largest input that is read. A bound of the model's own that is tighter holds too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_upload_bytes: int = Field(
        default=32 * _MEGABYTE, ge=1, description="A file, or a text in UTF-8."
    )
    max_held_bytes: int = Field(
        default=256 * _MEGABYTE, ge=1, description="Bodies of all requests that are being answered."
    )
    max_text_chars: int = Field(default=20_000, ge=1, description="A text.")
    max_pixels: int = Field(default=16_000_000, ge=1, description="A picture, decoded.")
    max_frames: int = Field(default=600, ge=1, description="A video, decoded.")
    max_frame_pixels: int = Field(default=1920 * 1080, ge=1, description="A frame of a video.")
    max_sound_s: float = Field(default=60.0, gt=0, description="A sound, in seconds.")
    max_samples: int = Field(
        default=24_000_000,
        ge=1,
        description="Samples of all channels of a sound: 60 s of 8 at 48 kHz.",
    )


class ServingConfig(BaseModel):
    """How requests are answered, in one replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: int = Field(
        default=32, ge=1, description="Requests answered by one pass of the model."
    )
    batch_wait_ms: float = Field(
        default=5.0,
        ge=0,
        description="Longest wait for others to join a batch; a lone client never waits.",
    )
    max_queue: int = Field(
        default=128, ge=1, description="Requests in the house; one more is answered with 429."
    )
    timeout_s: float = Field(
        default=30.0, gt=0, description="Longest time for a request, its upload too."
    )
    stall_s: float = Field(
        default=5.0, gt=0, description="Seconds in which a body must come on at the least rate."
    )
    min_upload_bytes_per_s: int = Field(
        default=4096, ge=1, description="Least rate of a body, bytes/s; a slower one is 408."
    )
    max_client_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the queue and of held bytes that the uploads of one address may "
        "take; 1 behind a proxy, where all clients have its address.",
    )
    token: SecretStr | None = Field(
        default=None, min_length=1, description="Bearer token that requests must bring; None: none."
    )
    limits: Limits = Limits()
