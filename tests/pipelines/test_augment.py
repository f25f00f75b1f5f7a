import numpy as np
import pytest
from PIL import Image

from pipelines.augment import (
    AUGMENTATIONS,
    Looks,
    Move,
    augment,
    augment_one,
    check_augmentations,
    load,
)
from pipelines.build import plan_split, split_units
from pipelines.errors import AugmentationError, UnknownNameError
from pipelines.modalities import Feature
from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.image import ImageFeature, to_png
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.mask import MaskFeature
from pipelines.modalities.numbers import BOX, NumbersFeature
from pipelines.modalities.text import TextFeature
from pipelines.modalities.video import VideoFeature
from pipelines.plan import Plan, PlannedBatch, SequentialPlan
from pipelines.schedule import ScheduleConfig
from pipelines.seal import finish_split
from pipelines.shards import Example, Manifest, open_manifest
from pipelines.stream import read_batches
from pipelines.task import Augmentation, Source, Task
from pipelines.window import Window
from pipelines.writer import write_unit
from tests.pipelines.toy_corpus import toy_config

PICTURE = ImageFeature(height=8, width=8, channels=1)
COLOUR = ImageFeature(height=8, width=8, channels=3)
CLIP = VideoFeature(height=8, width=8, channels=1, num_frames=4)
SOUND = AudioFeature(representation="log_mel", num_bins=16)
LABEL = LabelFeature(classes=("a", "b"))
MASK = MaskFeature(height=8, width=8, classes=("no", "yes"))
SIDES = NumbersFeature(names=BOX, high=8)
LABEL_ARRAY = np.zeros(1, np.int32)


def task_of(
    *augment: Augmentation, inputs: Feature = PICTURE, targets: Feature = LABEL, name: str = "shade"
) -> Task:
    return Task(
        name=name,
        source=Source(uri="raw/shades", format="image_folder", splits=("train",)),
        inputs=inputs,
        targets=targets,
        metrics=("accuracy",),
        baseline="majority_class",
        batch_size=6,
        augment=augment,
    )


def named(name: str, **settings: float) -> Augmentation:
    return Augmentation(name=name, settings=settings)


def changed(name: str, array: np.ndarray, *, seed: int = 0, **settings: float) -> np.ndarray:
    change = load(named(name, **settings))
    example = Example(array, LABEL_ARRAY)
    rng = np.random.default_rng(seed)
    return augment_one(example, changes=[change], place="none", rng=rng).inputs


def picture(channels: int = 1, *, size: int = 8) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (size, size, channels), dtype=np.uint8)


def shifted(array: np.ndarray, *, right: int, down: int) -> np.ndarray:
    """Slow twin of a shift: the pixel that comes from (y + down, x + right), black beyond."""
    out = np.zeros_like(array)
    rows, columns = array.shape[-3:-1]
    for y in range(rows):
        for x in range(columns):
            if 0 <= y + down < rows and 0 <= x + right < columns:
                out[..., y, x, :] = array[..., y + down, x + right, :]
    return out


def every_input() -> list[tuple[str, np.ndarray]]:
    kinds = {
        "image": picture(3),
        "video": np.stack([picture(3), picture(3) // 2] * 2),
        "audio": sound(),
    }
    return [(name, kinds[kind]) for name, c in AUGMENTATIONS.items() for kind in c.inputs]


def sound() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(20, 16)).astype(np.float32)


@pytest.mark.parametrize(("name", "array"), every_input())
def test_shape_and_dtype_stay_and_the_array_given_is_not_written(name, array):
    before = array.copy()
    array.flags.writeable = False
    seen = [changed(name, array, seed=seed) for seed in range(12)]
    assert {(out.shape, out.dtype) for out in seen} == {(array.shape, array.dtype)}
    assert any((out != before).any() for out in seen)
    np.testing.assert_array_equal(array, before)


def test_shift_moves_whole_pixels_and_blackens_what_comes_in():
    array, seen = np.stack([picture(), picture()[::-1]]), set()
    twins = {
        shifted(array, right=right, down=down).tobytes()
        for right in range(-2, 3)
        for down in range(-2, 3)
    }
    for seed in range(200):
        seen.add(changed("shift", array, seed=seed, pixels=2).tobytes())
    assert seen == twins


def test_shift_beyond_the_picture_leaves_it_black():
    seen = [changed("shift", picture() | 1, seed=seed, pixels=40) for seed in range(40)]
    assert sum(not out.any() for out in seen) > 20


def test_flip_mirrors_left_to_right_as_often_as_asked():
    array = picture(3)
    np.testing.assert_array_equal(changed("flip", array, prob=1.0), array[:, ::-1])
    np.testing.assert_array_equal(changed("flip", array, prob=0.0), array)
    flips = sum((changed("flip", array, seed=s) != array).any() for s in range(400))
    assert 160 < flips < 240


def test_crop_of_the_whole_is_the_picture():
    array = picture(3)
    out = changed("random_crop_flip", array, min_area=1.0, aspect=1.0, flip_prob=0.0)
    np.testing.assert_array_equal(out, array)


def test_crop_is_a_window_of_the_drawn_area_and_shape():
    crop = load(named("random_crop_flip", min_area=0.25))
    assert isinstance(crop, Move)
    rng = np.random.default_rng(0)
    for _ in range(300):
        window = crop.window(height=40, width=20, rng=rng)
        assert 0.25 - 1e-9 <= window.width * window.height <= 1
        inside = (window.left, window.top, 1 - window.left - window.width)
        assert min(*inside, 1 - window.top - window.height) >= -1e-9
        if window.width * window.height < 1:
            assert 3 / 4 - 1e-9 <= window.width * 20 / (window.height * 40) <= 4 / 3 + 1e-9


def test_half_a_window_is_twice_as_large():
    left = np.zeros((4, 8), np.uint8)
    left[:, 1:3] = 200
    out = Window(left=0.0, width=0.5).of_planes(left[None], resample=Image.Resampling.NEAREST)
    assert out[0, 0].tolist() == [0, 0, 200, 200, 200, 200, 0, 0]


def test_zoom_keeps_the_shape_and_frames_of_a_clip_move_together():
    still = np.stack([picture()] * 4)
    for name in ("zoom", "shift", "random_crop_flip", "flip", "color_jitter"):
        out = changed(name, still, seed=3)
        assert (out == out[:1]).all(), name


def test_mask_moves_with_its_picture():
    array = np.where(picture() > 127, 255, 0).astype(np.uint8)
    example = Example(array, (array[..., 0] > 0).astype(np.uint8))
    for name in ("shift", "flip"):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            out = augment_one(example, changes=[load(named(name))], place="mask", rng=rng)
            np.testing.assert_array_equal(out.targets, out.inputs[..., 0] > 0)
            assert out.targets.dtype == np.uint8


@pytest.mark.parametrize("name", ["shift", "flip", "zoom", "random_crop_flip"])
def test_box_stays_on_what_it_holds(name):
    array = np.zeros((40, 40, 1), np.uint8)
    array[8:16, 20:32] = 255
    example = Example(array, np.array([20, 8, 32, 16], np.float32) / 40)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        out = augment_one(example, changes=[load(named(name))], place="box", rng=rng)
        rows = np.flatnonzero(out.inputs[..., 0].max(axis=1) > 127)
        columns = np.flatnonzero(out.inputs[..., 0].max(axis=0) > 127)
        held = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        np.testing.assert_allclose(out.targets * 40, held, atol=1.01)
        assert out.targets.dtype == np.float32


def test_box_whose_middle_is_outside_has_no_place_in_the_window():
    box = np.array([0.0, 0.0, 0.2, 0.2], np.float32)
    assert Window(left=0.5, width=0.5).of_box(box) is None
    moved = Window(left=0.05, width=0.5, top=0.0, height=0.5).of_box(box)
    assert moved is not None
    np.testing.assert_allclose(moved, [0.0, 0.0, 0.3, 0.4], atol=1e-6)
    mirrored = Window(mirrored=True).of_box(box)
    assert mirrored is not None
    np.testing.assert_allclose(mirrored, [0.8, 0.0, 1.0, 0.2], atol=1e-6)


def test_gray_has_equal_channels_of_the_luminance():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert changed("gray", red, prob=1.0).tolist() == [[[76] * 3] * 2] * 2
    np.testing.assert_array_equal(changed("gray", red, prob=0.0), red)


def test_color_jitter_without_range_changes_nothing_and_brightness_multiplies():
    array = picture(3) // 2
    none = {"prob": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    np.testing.assert_array_equal(changed("color_jitter", array, **none), array)
    out = changed("color_jitter", array, **(none | {"brightness": 0.5}))
    factor = out.astype(float).sum() / array.sum()
    np.testing.assert_allclose(out, array * factor, atol=1.0)
    assert 0.5 < factor < 1.5


def test_spec_augment_zeroes_bands_within_its_bounds():
    array = np.ones((30, 16), np.float32)
    settings = {"bin_masks": 1, "max_bins": 5, "frame_masks": 2, "max_frames": 4}
    widest = [0, 0]
    for seed in range(200):
        out = changed("spec_augment", array, seed=seed, **settings)
        bins, frames = (out == 0).all(axis=0), (out == 0).all(axis=1)
        np.testing.assert_array_equal(out == 0, bins[None] | frames[:, None])
        widest = [max(widest[0], int(bins.sum())), max(widest[1], int(frames.sum()))]
    assert widest == [5, 8]


def test_time_jitter_holds_the_edge_frame_of_a_clip_and_silences_the_gap_of_a_sound():
    clip = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1).repeat(3, axis=3)
    orders = {tuple(changed("time_jitter", clip, seed=s)[:, 0, 0, 0].tolist()) for s in range(40)}
    assert orders == {(0, 1, 2, 3), (1, 2, 3, 3), (0, 0, 1, 2)}
    array = np.ones((4, 2), np.float32)
    ends = {tuple(changed("time_jitter", array, seed=s)[:, 0].tolist()) for s in range(40)}
    assert ends == {(1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0), (0.0, 1.0, 1.0, 1.0)}


def test_sounds_shorter_than_a_mask_are_still_sounds():
    assert changed("spec_augment", np.ones((2, 16), np.float32)).shape == (2, 16)


@pytest.mark.parametrize(
    ("augmentation", "fields", "reason"),
    [
        (named("shift", pixel=2), {}, r"augmentation shift: pixel: Extra.*its settings are pixels"),
        (named("shift", pixels=0), {}, "augmentation shift: pixels: .*greater than or equal to 1"),
        (named("shift", pixels=1.5), {}, "augmentation shift: pixels: .*integer"),
        (named("flip"), {"inputs": SOUND}, "flip is for image and video, not for spectral"),
        (named("spec_augment"), {}, "spec_augment is for audio, not for image; leave it out, or"),
        (named("flip"), {"inputs": TextFeature()}, "flip is for image and video, not for text"),
        (
            named("time_jitter"),
            {"inputs": AudioFeature(representation="waveform")},
            "time_jitter is for video and audio, not for waveform",
        ),
        (named("gray"), {}, "gray: the pictures are grey already"),
        (
            named("flip"),
            {"targets": NumbersFeature(names=("age",))},
            "flip moves the picture, and its targets would not move along",
        ),
        (named("flip"), {"inputs": CLIP, "targets": MASK}, "would not move along"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(augmentation, fields, reason):
    with pytest.raises(AugmentationError, match=reason):
        check_augmentations(task_of(augmentation, **fields))


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="no augmentation 'flipp'; nearest: flip"):
        check_augmentations(task_of(named("flipp")))


def test_what_fits_is_taken():
    moves = [named(name) for name, kind in AUGMENTATIONS.items() if issubclass(kind, Move)]
    check_augmentations(task_of(*moves, named("color_jitter"), targets=MASK))
    check_augmentations(task_of(*moves, targets=SIDES))
    check_augmentations(task_of(*moves, named("gray"), inputs=COLOUR))
    check_augmentations(task_of(named("spec_augment"), named("time_jitter"), inputs=SOUND))
    looks = [name for name, kind in AUGMENTATIONS.items() if issubclass(kind, Looks)]
    assert len(looks) + len(moves) == len(AUGMENTATIONS)


def planned(rows: list[int], epochs: list[int] | None, *, task: str = "shade") -> PlannedBatch:
    read = None if epochs is None else np.array(epochs)
    return PlannedBatch(0, 0, task, 0, np.array(rows), read)


def test_draws_are_keyed_by_seed_task_example_and_epoch_alone():
    noise = np.random.default_rng(1).normal(size=(40, 16)).astype(np.float32)
    examples = [Example(noise, LABEL_ARRAY)] * 2
    task = task_of(named("spec_augment", max_bins=8, max_frames=8), inputs=SOUND)

    def inputs(*, rows=(3, 4), epochs=(0, 0), seed=7, name="shade") -> list[bytes]:
        batch = planned(list(rows), list(epochs))
        other = task.model_copy(update={"name": name})
        out = augment(examples, planned=batch, task=other, seed=seed)
        return [example.inputs.tobytes() for example in out]

    first = inputs()
    assert inputs() == first
    assert inputs(rows=(4, 3)) == first[::-1]  # the place in the batch does not matter
    for change in ({"epochs": (1, 1)}, {"seed": 8}, {"name": "tint"}, {"rows": (5, 6)}):
        assert set(inputs(**change)).isdisjoint(first), change


def test_plan_without_epochs_leaves_examples_as_built():
    example = Example(sound(), LABEL_ARRAY)
    task = task_of(named("spec_augment"), inputs=SOUND)
    assert augment([example], planned=planned([3], None), task=task, seed=0) == [example]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    """20 pictures of noise in two classes; the task shifts them."""
    data_dir, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    for number in range(20):
        folder = data_dir / "raw" / "shades" / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        (folder / f"{number:02d}.png").write_bytes(to_png(pixels))
    config, task = toy_config(), task_of(named("shift"), named("flip"))
    job = plan_split(task, "train", data_dir=data_dir, vocabulary=None, config=config)
    units = split_units(job, data_dir=data_dir, config=config)
    assert finish_split(job, [write_unit(unit) for unit in units], max_bad_share=0.0) == []
    return open_manifest(job.folder)


def plan_of(manifest: Manifest, **fields) -> Plan:
    settings = {"schedule": ScheduleConfig(name="alternating"), "num_steps": 20, "seed": 3}
    return Plan(manifests={"shade": manifest}, **({"examples": "augmented"} | settings | fields))


def test_another_epoch_shows_the_same_example_differently_as_planned(manifest):
    seen: dict[int, set[bytes]] = {}
    for batch in read_batches(plan_of(manifest)):
        for row, pixels in zip(batch.example_ids.tolist(), batch.inputs, strict=True):
            seen.setdefault(row, set()).add(pixels.tobytes())
    assert sorted(seen) == list(range(20))  # 20 steps of 6 are 6 epochs of 20
    assert min(len(views) for views in seen.values()) >= 4


def test_epochs_of_a_batch_count_the_readings_of_its_rows(manifest):
    times: dict[int, int] = dict.fromkeys(range(20), 0)
    for step in range(20):
        (batch,) = plan_of(manifest).batches(step)
        assert batch.epochs is not None
        for row, epoch in zip(batch.rows.tolist(), batch.epochs.tolist(), strict=True):
            assert epoch == times[row]
            times[row] += 1


def test_ranks_and_micro_batches_share_the_same_pictures(manifest):
    whole = list(read_batches(plan_of(manifest)))
    parts = [
        list(read_batches(plan_of(manifest, world_size=3, rank=rank, accumulation=2)))
        for rank in range(3)
    ]
    for step, batch in enumerate(whole):
        pieces = [parts[rank][2 * step + micro] for micro in range(2) for rank in range(3)]
        assert np.concatenate([p.inputs for p in pieces]).tobytes() == batch.inputs.tobytes()


def test_resumed_reading_equals_straight(manifest):
    straight = list(read_batches(plan_of(manifest)))
    cursors = plan_of(manifest).cursors(7)
    resumed = plan_of(manifest, start_step=7, start_cursors=cursors)
    rest = list(read_batches(resumed, start_step=7))
    assert [b.inputs.tobytes() for b in rest] == [b.inputs.tobytes() for b in straight[7:]]


def test_validation_and_evaluation_read_examples_as_built(manifest):
    plain = manifest.model_copy(update={"task": task_of()})
    for plans in (
        [SequentialPlan(m, batch_size=6) for m in (manifest, plain)],
        [plan_of(m, examples="built") for m in (manifest, plain)],
    ):
        left, right = (list(read_batches(plan)) for plan in plans)
        assert [b.inputs.tobytes() for b in left] == [b.inputs.tobytes() for b in right]
