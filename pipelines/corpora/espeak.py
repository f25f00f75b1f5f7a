"""Speech from text by espeak-ng, whose library and voices come with `espeakng-loader`.

The library keeps state from one clip to the next that no call resets, so that the same text sounds
a little different each time. `speak_all` therefore runs it in a process of its own: the same
sayings in the same order give the same bytes.
"""

import ctypes
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np

from pipelines.errors import BuildError
from pipelines.modalities.audio import to_wav

# Values of espeak-ng's speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
PARAMETER_RATE, PARAMETER_PITCH, PARAMETER_RANGE = 1, 3, 4
POSITION_CHARACTER = 1
CHARS_UTF8 = 1
RANDOM_SEED = 1

ON_SAMPLES = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True, slots=True)
class Saying:
    """One clip: its file, relative to the folder, and how it is said.

    Args:
        voice: language and variant as espeak-ng names them, e.g. "en-us+f3".
        words_per_minute: speed, 80 to 450.
        pitch: 0 to 100, 50 being the voice's own.
        pitch_range: 0 (monotone) to 100.
    """

    path: str
    text: str
    voice: str
    words_per_minute: int
    pitch: int
    pitch_range: int


class Espeak:
    """The library, opened once a process. Samples come as int16 at `rate_hz`."""

    def __init__(self) -> None:
        self.library: Any = ctypes.CDLL(espeakng_loader.get_library_path())  # Any: C has no types
        self.data = Path(espeakng_loader.get_data_path())
        self.chunks: list[np.ndarray] = []
        self.on_samples = ON_SAMPLES(self._keep_samples)  # kept: the library holds its address
        self.rate_hz: int = self.library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(self.data), 0
        )
        if self.rate_hz <= 0:
            raise BuildError(f"espeak-ng does not start with the voices in {self.data}")
        self.library.espeak_SetSynthCallback(self.on_samples)
        # breathing voices (f2, f3, f5) are noise; unseeded, the clock decides how it sounds
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(RANDOM_SEED))

    def _keep_samples(self, samples: Any, count: int, events: int | None) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, saying: Saying) -> np.ndarray:
        """Samples of a saying, int16 (L,).

        Raises:
            BuildError: espeak-ng knows no such voice, or refuses a parameter or the text.
        """
        variant = saying.voice.partition("+")[2]
        if variant and not (self.data / "voices" / "!v" / variant).is_file():
            raise BuildError(f"espeak-ng has no variant {variant!r} of voice {saying.voice!r}")
        self.chunks.clear()
        text = saying.text.encode()
        library = self.library
        self._check("voice", saying, library.espeak_SetVoiceByName(saying.voice.encode()))
        for parameter, value in (
            (PARAMETER_RATE, saying.words_per_minute),
            (PARAMETER_PITCH, saying.pitch),
            (PARAMETER_RANGE, saying.pitch_range),
        ):
            self._check("parameter", saying, library.espeak_SetParameter(parameter, value, 0))
        size = ctypes.c_size_t(len(text) + 1)
        result = library.espeak_Synth(text, size, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
        self._check("text", saying, result)
        self._check("end", saying, library.espeak_Synchronize())
        if not self.chunks:
            raise BuildError(f"espeak-ng gave no sound for {saying}")
        return np.concatenate(self.chunks)

    def _check(self, step: str, saying: Saying, code: int) -> None:
        """A refused voice would leave the last one speaking, so every code is looked at."""
        if code != 0:
            raise BuildError(f"espeak-ng refuses the {step} (code {code}) of {saying}")


@functools.cache
def open_espeak() -> Espeak:
    """The library of this process; it cannot be opened twice."""
    return Espeak()


def speak_all(sayings: Sequence[Saying], *, folder: Path) -> None:
    """Writes the WAV file of each saying, 16 bits at 22,050 Hz. The same input, the same bytes.

    Raises:
        BuildError: espeak-ng failed; the message holds its words.
    """
    lines = "".join(json.dumps(asdict(saying)) + "\n" for saying in sayings)
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode != 0:
        raise BuildError(f"no speech: {done.stderr.strip()[-500:]}")


def main() -> None:
    """Reads sayings as JSON lines from standard input, writes them under the folder named."""
    folder, espeak = Path(sys.argv[1]), open_espeak()
    for line in sys.stdin:
        saying = Saying(**json.loads(line))
        wav = to_wav(espeak.speak(saying), rate_hz=espeak.rate_hz)
        (folder / saying.path).write_bytes(wav)


if __name__ == "__main__":
    main()
