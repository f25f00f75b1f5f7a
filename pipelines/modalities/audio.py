"""Audio: the bytes of a sound file to log-mel frames, or to samples.

Sounds of any rate and number of channels become one channel at the feature's rate. Log-mel
energies are standardised over the clip, so that loudness and microphone matter little; or by the
mean and deviation of the corpus, so that loudness is kept. The padding value 0 is the mean.
"""

import functools
import io
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import librosa
import numpy as np
import soundfile
import soxr
from pydantic import Field, model_validator

from pipelines.errors import BadExampleError
from pipelines.file_formats import AIFF, FLAC, MP3, OGG, WAV, FileFormat
from pipelines.modalities import Feature
from pipelines.modalities.image import to_png
from pipelines.vocabulary import Vocabulary


class AudioFeature(Feature):
    """float32: (frames, bins) for log-mel, (samples,) for a waveform."""

    dtype: ClassVar[str] = "float32"
    formats: ClassVar[tuple[FileFormat, ...]] = (WAV, FLAC, OGG, MP3, AIFF)
    bounds: ClassVar[Mapping[str, str]] = {"max_s": "max_sound_s"}
    shows_raw: ClassVar[bool] = True  # who reads log-mel frames would rather hear the sound

    modality: str = "audio"
    representation: Literal["log_mel", "waveform"]
    sample_rate_hz: int = Field(
        default=16_000, ge=1_000, description="Sounds are resampled to this rate."
    )
    max_s: float = Field(default=20.0, gt=0, description="Longest clip kept, in seconds.")
    num_bins: int = Field(default=32, ge=1, description="Mel bins of a frame; log-mel only.")
    frame_ms: float = Field(default=32.0, gt=0, description="Length of a frame; log-mel only.")
    hop_ms: float = Field(
        default=16.0, gt=0, description="From one frame to the next; log-mel only."
    )
    num_frames: int | None = Field(
        default=None,
        ge=1,
        description="Frames of every clip: cut at the end or filled up with 0; log-mel only.",
    )
    standard: tuple[float, float] | Literal["corpus"] | None = Field(
        default=None,
        description="Mean and deviation that log-mel energies are standardised by; 'corpus': "
        "those that `build` measures of the training split; None: those of the clip.",
    )
    measured: tuple[float, float] | None = Field(
        default=None, description="What `build` measured for 'corpus'; not to be given."
    )

    @model_validator(mode="after")
    def _frames_are_of_log_mel(self) -> Self:
        if self.representation == "waveform" and (self.num_frames or self.standard):
            raise ValueError("num_frames and standard are of log_mel; a waveform has neither")
        if self.measured and self.standard != "corpus":
            raise ValueError("measured is of standard='corpus'; give standard the two numbers")
        for fixed in (self.standard, self.measured):
            if isinstance(fixed, tuple) and fixed[1] <= 0:
                raise ValueError(f"standard {fixed}: the deviation is not above 0")
        return self

    @property
    def is_measured(self) -> bool:
        """Log-mel energies by the moments of the corpus."""
        return self.standard == "corpus"

    def as_asked(self) -> Self:
        """Without the moments of the corpus."""
        return self.model_copy(update={"measured": None})

    def as_measured(self, standard: tuple[float, float]) -> Self:
        """With the moments of the corpus."""
        return self.model_copy(update={"measured": standard})

    def finish(self, array: np.ndarray) -> np.ndarray:
        """Standardised by the moments of the corpus, if these are its, and filled up with 0."""
        if self.is_measured and self.measured is None:
            return array  # energies, which wait for them
        if self.measured is not None:
            mean, deviation = self.measured
            array = (array - np.float32(mean)) / np.float32(deviation)
        missing = (self.num_frames or 0) - len(array)
        return np.pad(array, ((0, missing), (0, 0))) if missing > 0 else array

    def finished_length(self, stored: float) -> float:
        """A clip has at least `num_frames`."""
        return max(stored, self.num_frames or 0)

    @property
    def net(self) -> str:
        """Log-mel frames are a picture of the sound, samples a long sequence."""
        return "spectral" if self.representation == "log_mel" else "waveform"

    @property
    def array_kind(self) -> str:
        """Augmentations of sounds are of log-mel frames."""
        return "audio" if self.representation == "log_mel" else "waveform"

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """A sound of `max_s`, or of `num_frames` where they are set."""
        num_samples = int(self.max_s * self.sample_rate_hz)
        if self.representation == "waveform":
            return (num_samples,)
        return (self.num_frames or 1 + num_samples // self.hop_length, self.num_bins)

    def example(self) -> bytes:
        """Half a second of silence."""
        silence = np.zeros(self.sample_rate_hz // 2, dtype=np.float32)
        return to_wav(silence, rate_hz=self.sample_rate_hz)

    @property
    def rank(self) -> int:
        """Frames and bins, or samples alone."""
        return 2 if self.representation == "log_mel" else 1

    @property
    def frame_length(self) -> int:
        """Samples of a frame."""
        return round(self.sample_rate_hz * self.frame_ms / 1000)

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        return round(self.sample_rate_hz * self.hop_ms / 1000)


FEATURE = AudioFeature


def encode(value: object, *, feature: AudioFeature, vocabulary: Vocabulary | None) -> np.ndarray:
    """The bytes of a sound file to float32 (frames, bins) or (samples,).

    Raises:
        BadExampleError: not a sound file, cut short, empty, not finite, or longer than `max_s`.
    """
    if not isinstance(value, bytes):
        raise BadExampleError(f"wrong type: {type(value).__name__}, not the bytes of a sound")
    samples_L, rate_hz = read_samples(value, max_s=feature.max_s)
    if rate_hz != feature.sample_rate_hz:
        samples_L = soxr.resample(samples_L, rate_hz, feature.sample_rate_hz)
    if not len(samples_L):
        raise BadExampleError("empty sound: it has no samples")
    if feature.representation == "waveform":
        return samples_L.astype(np.float32)
    return feature.finish(log_mel(samples_L, feature=feature)[: feature.num_frames])


def read_samples(data: bytes, *, max_s: float) -> tuple[np.ndarray, int]:
    """Samples in -1..1, float32 (L,), the mean of the channels, and their rate in Hz.

    A WAV file that was cut short still opens; the length in its header gives it away.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames > max_s * file.samplerate:
                length_s = file.frames / file.samplerate
                raise BadExampleError(f"sound too long: {length_s:.1f} s, at most {max_s} s")
            samples = file.read(dtype="float32", always_2d=True)
            rate_hz = file.samplerate
    except soundfile.LibsndfileError as error:
        raise BadExampleError(f"unreadable sound: {error} ({len(data)} bytes)") from error
    refuse_truncated_wav(data)
    if not np.isfinite(samples).all():
        raise BadExampleError("samples not finite: NaN or infinity in the sound")
    return samples.mean(axis=1), rate_hz


def refuse_truncated_wav(data: bytes) -> None:
    """Refuses a RIFF file whose data chunk promises more bytes than follow.

    libsndfile reads what is there and says nothing, so the chunks are walked here: an id of four
    letters, a little-endian uint32 size, the bytes, padded to an even number.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        left = len(data) - place - 8
        if data[place : place + 4] == b"data":
            if size > left and size < 0xFFFFFF00:  # streams write the largest size: length unknown
                raise BadExampleError(f"truncated WAV: {left} of {size} bytes of sound")
            return
        place += 8 + size + size % 2
    raise BadExampleError(f"truncated WAV: no data chunk in {len(data)} bytes")


@functools.lru_cache(maxsize=8)
def mel_filters(rate_hz: int, frame_length: int, num_bins: int) -> np.ndarray:
    """Triangular filters with equal areas on the mel scale: float32 (bins, frame // 2 + 1)."""
    return librosa.filters.mel(sr=rate_hz, n_fft=frame_length, n_mels=num_bins)


def log_mel(samples_L: np.ndarray, *, feature: AudioFeature) -> np.ndarray:
    """Log-mel energies, float32 (frames, bins): 1 + samples // hop frames.

    A clip shorter than a frame is filled up with silence.

    x = log(1e-5 + M |STFT(s)|^2),   (x - mean(x)) / (std(x) + 1e-3)     over the clip,
    or (x - m) / d with the feature's `standard` (m, d); 'corpus': x
    """
    missing = max(0, feature.frame_length - len(samples_L))
    spectrum = librosa.stft(
        np.pad(samples_L, (0, missing)),
        n_fft=feature.frame_length,
        hop_length=feature.hop_length,
        pad_mode="constant",
    )
    filters = mel_filters(feature.sample_rate_hz, feature.frame_length, feature.num_bins)
    energies = np.log(1e-5 + filters @ (np.abs(spectrum) ** 2)).T
    if feature.standard == "corpus":
        return np.ascontiguousarray(energies, dtype=np.float32)
    mean, deviation = feature.standard or (energies.mean(), energies.std() + 1e-3)
    return np.ascontiguousarray((energies - mean) / deviation, dtype=np.float32)


def decode(array: np.ndarray, *, feature: AudioFeature, vocabulary: Vocabulary | None) -> bytes:
    """Samples to the bytes of a WAV file; log-mel to a PNG picture, low bins at the bottom.

    Phases and loudness are gone from log-mel, so that a picture is the honest inverse.
    """
    if feature.representation == "waveform":
        return to_wav(np.clip(array, -1.0, 1.0), rate_hz=feature.sample_rate_hz)
    levels = np.clip((np.asarray(array).T[::-1] + 2.5) * 51.0, 0.0, 255.0)
    return to_png(levels.round().astype(np.uint8))


def to_wav(samples_L: np.ndarray, *, rate_hz: int) -> bytes:
    """Samples, floats in -1..1 or int16, to the bytes of a 16-bit WAV file."""
    file = io.BytesIO()
    soundfile.write(file, samples_L, rate_hz, format="WAV", subtype="PCM_16")
    return file.getvalue()
