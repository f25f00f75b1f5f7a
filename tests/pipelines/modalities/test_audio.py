import contextlib

import numpy as np
import pytest

from pipelines.errors import BadExampleError
from pipelines.modalities import audio
from pipelines.modalities.audio import AudioFeature, log_mel, read_samples, to_wav
from pipelines.vocabulary import Vocabulary

WAVEFORM = AudioFeature(representation="waveform", sample_rate_hz=8_000)
LOG_MEL = AudioFeature(representation="log_mel", sample_rate_hz=8_000, num_bins=16)
VOCABULARY = Vocabulary.train([], size=258, commands=())


def tone(frequency_hz: float, *, rate_hz: int = 8_000, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(int(rate_hz * seconds)) / rate_hz)


def encode(data: object, feature: AudioFeature) -> np.ndarray:
    return audio.encode(data, feature=feature, vocabulary=VOCABULARY)


def test_waveform_comes_back():
    samples = tone(440)
    array = encode(to_wav(samples, rate_hz=8_000), WAVEFORM)
    assert (array.dtype, array.ndim, WAVEFORM.rank) == (np.float32, 1, 1)
    np.testing.assert_allclose(array, samples, atol=1e-4)
    again = audio.decode(array, feature=WAVEFORM, vocabulary=VOCABULARY)
    np.testing.assert_allclose(read_samples(again, max_s=1)[0], array, atol=1e-4)


def test_other_rates_are_resampled():
    array = encode(to_wav(tone(440, rate_hz=22_050), rate_hz=22_050), WAVEFORM)
    assert len(array) == 4_000
    np.testing.assert_allclose(array[500:-500], tone(440)[500:-500], atol=0.01)


def test_channels_are_averaged():
    left, right = tone(440), np.zeros(4_000)
    array = encode(to_wav(np.stack([left, right], axis=1), rate_hz=8_000), WAVEFORM)
    np.testing.assert_allclose(array, left / 2, atol=1e-4)


def test_log_mel_is_standard_frames_by_bins():
    array = encode(to_wav(tone(440), rate_hz=8_000), LOG_MEL)
    assert array.shape == (1 + 4_000 // 128, 16)  # 16 ms of 8 kHz are 128 samples
    assert (array.dtype, LOG_MEL.rank) == (np.float32, 2)
    assert abs(array.mean()) < 1e-5
    assert abs(array.std() - 1) < 1e-2


def test_log_mel_hears_loudness_little_and_pitch_well():
    low, high = (log_mel(tone(hz).astype(np.float32), feature=LOG_MEL) for hz in (300, 3_000))
    quiet = log_mel((tone(300) / 4).astype(np.float32), feature=LOG_MEL)
    assert low.mean(axis=0).argmax() < 5 < 11 < high.mean(axis=0).argmax()
    assert np.abs(low - quiet).mean() < 0.3


def test_silence_is_finite():
    assert np.isfinite(encode(to_wav(np.zeros(4_000), rate_hz=8_000), LOG_MEL)).all()


def test_one_sample_is_filled_up_to_a_frame():
    assert encode(to_wav(np.ones(1), rate_hz=8_000), LOG_MEL).shape == (3, 16)  # 1 + 256 // 128


def test_log_mel_decodes_to_a_picture():
    array = encode(to_wav(tone(440), rate_hz=8_000), LOG_MEL)
    png = audio.decode(array, feature=LOG_MEL, vocabulary=VOCABULARY)
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unreadable sound"),
        (b"RIFF and more", "unreadable sound"),
        (to_wav(np.zeros(0), rate_hz=8_000), "empty sound"),
        (to_wav(np.zeros(8_000 * 21), rate_hz=8_000), "sound too long: 21.0 s, at most 20.0 s"),
        ("clip.wav", "wrong type: str"),
    ],
)
def test_bad_sound_is_refused_with_the_reason(data: object, reason: str):
    with pytest.raises(BadExampleError, match=reason):
        encode(data, WAVEFORM)


def test_every_cut_of_a_wav_is_refused():
    data = to_wav(tone(440, seconds=0.02), rate_hz=8_000)
    for length in range(len(data)):
        with pytest.raises(BadExampleError):
            encode(data[:length], WAVEFORM)


def test_truncated_wav_says_what_is_missing():
    data = to_wav(tone(440), rate_hz=8_000)
    with pytest.raises(BadExampleError, match="truncated WAV: 7000 of 8000 bytes"):
        encode(data[:-1_000], WAVEFORM)


def test_representation_names_the_net():
    assert (LOG_MEL.net, WAVEFORM.net) == ("spectral", "waveform")


def test_random_damage_to_a_header_is_refused_or_read_and_never_anything_else():
    rng = np.random.default_rng(0)
    data = to_wav(tone(440, seconds=0.1), rate_hz=8_000)
    for _ in range(300):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(48, size=2)] = rng.integers(256, size=2)
        with contextlib.suppress(BadExampleError):
            assert np.isfinite(encode(damaged.tobytes(), LOG_MEL)).all()


def test_clips_of_a_fixed_length_are_cut_or_filled_up_with_the_mean():
    fixed = LOG_MEL.model_copy(update={"num_frames": 40})
    short, long = to_wav(tone(440), rate_hz=8_000), to_wav(tone(440, seconds=1), rate_hz=8_000)
    free = encode(short, LOG_MEL)
    array = encode(short, fixed)
    assert (array.shape, fixed.net) == ((40, 16), "spectral")
    np.testing.assert_array_equal(array[: len(free)], free)
    assert (array[len(free) :] == 0).all()
    np.testing.assert_array_equal(encode(long, fixed), encode(long, LOG_MEL)[:40])


def test_fixed_standardisation_keeps_loudness():
    fixed = LOG_MEL.model_copy(update={"standard": (-3.0, 2.0)})
    loud, quiet = (log_mel((tone(300) / k).astype(np.float32), feature=fixed) for k in (1, 4))
    assert loud.mean() > quiet.mean() + 0.1
    silence = log_mel(np.zeros(4_000, np.float32), feature=fixed)
    np.testing.assert_allclose(silence, (np.log(1e-5) + 3.0) / 2.0, rtol=1e-5)


@pytest.mark.parametrize("field", [{"num_frames": 9}, {"standard": (0.0, 1.0)}])
def test_waveforms_refuse_what_is_of_log_mel(field):
    with pytest.raises(ValueError, match="are of log_mel"):
        AudioFeature(representation="waveform", **field)


def test_standard_deviation_is_above_zero():
    with pytest.raises(ValueError, match="the deviation is not above 0"):
        AudioFeature(representation="log_mel", standard=(0.0, 0.0))
