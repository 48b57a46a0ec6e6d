import multiprocessing
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from metamix.data import Augment, CorruptImage, DataOptions, eval_loader, open_data, train_loader
from metamix.data.loader import RUNNING, stop_workers, train_transform
from metamix.utils.system import usable_workers
from tests.helpers.advice import follow_verify
from tests.helpers.batches import share_a_sample
from tests.helpers.running import in_a_process

STREAMED = dict(memory="no", img_size=24, auto_augment="rand-m9-n2-mstd0.5")


@pytest.fixture
def source(folder):
    """Open the 12 training images of a folder."""
    return open_data("folder", root=folder()).train


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def all_equal(one, other):
    return all(equal(*pair) for pair in zip(one, other, strict=True))


def joined(batches):
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


@pytest.mark.parametrize("memory", ["yes", "no"])
def test_balanced_sampling_augments_each_repeat_anew(folder, memory):
    root = folder(train=4)
    for i in range(1, 4):
        (root / "train" / "eel" / f"{i}.png").unlink()
    source = open_data("folder", root=root).train
    options = DataOptions(sampling="balanced", memory=memory, workers=0, img_size=16, padding=8)
    (batch,) = train_loader(source, options, batch_size=9).epoch(0)
    assert batch["label"].bincount().tolist() == [3, 3, 3]
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    augment = Augment(options, seed=0, **statistics, size=16, num_classes=3, cropped=memory == "no")
    rare = augment(batch, 0, 0)["image"][batch["label"] == 2]
    assert all(not torch.equal(rare[i], rare[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("memory", ["yes", "no"])
def test_more_processes_than_samples_score_each_sample_once(folder, memory):
    source = open_data("folder", root=folder(val=1)).test
    options = DataOptions(memory=memory, workers=0, img_size=32)
    batches = [batch for r in range(5) for batch in eval_loader(source, options, batch_size=5, rank=r, world_size=5)]
    assert joined(batches)["index"].tolist() == [0, 1, 2]


def test_the_batch_size_must_be_a_multiple_of_the_number_of_processes():
    source = open_data("digits").train
    with pytest.raises(ValueError, match="is 64: give a multiple of 3, the number of processes"):
        train_loader(source, DataOptions(), batch_size=64, rank=0, world_size=3)


def test_batches_from_memory_hold_the_unchanged_pixels(source):
    loader = train_loader(source, DataOptions(), batch_size=4)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 3
    image, label, index = batches[0]["image"], batches[0]["label"], batches[0]["index"]
    assert (image.shape, image.dtype) == ((4, 3, 32, 32), torch.uint8)
    assert image.is_contiguous(memory_format=torch.channels_last)
    for n, i in enumerate(index.tolist()):
        picture, number = source.read(i)
        assert label[n] == number and np.array_equal(image[n].permute(1, 2, 0), np.asarray(picture))


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_equal_if_an_epoch_is_repeated_and_differ_between_epochs(source, workers):
    options = DataOptions(workers=workers, **STREAMED)
    loader = train_loader(source, options, batch_size=4, seed=1)
    first, again, second = list(loader.epoch(0)), list(loader.epoch(0)), list(loader.epoch(1))
    image = first[0]["image"]
    assert (len(loader), len(first), image.shape, image.dtype) == (3, 3, (4, 3, 24, 24), torch.uint8)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert all_equal(first, again)
    assert not share_a_sample(first, second), "each epoch augments images anew"
    assert not share_a_sample(first, train_loader(source, options, batch_size=4, seed=2).epoch(0))


@pytest.mark.parametrize("interpolation", ["bicubic", "nearest"])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_streamed_images_are_cropped_and_flipped_as_the_options_say(source, interpolation, flip):
    options = dict(memory="no", img_size=24, crop_scale=1.0, flip=flip, interpolation=interpolation)
    picture = source.read(3)[0]
    made, _ = train_transform(source, DataOptions(**options))((picture, 0))
    whole = picture.resize((24, 24), Image.Resampling[interpolation.upper()])
    assert np.array_equal(made.permute(1, 2, 0), np.asarray(whole)[:, :: -1 if flip else 1])


@pytest.mark.parametrize("memory", ["yes", "no"])
def test_an_epoch_can_start_at_any_step(source, memory):
    """This also works after the same epoch was left early."""
    loader = train_loader(source, DataOptions(workers=2, **{**STREAMED, "memory": memory}), batch_size=4, seed=1)
    whole = list(loader.epoch(3))
    next(loader.epoch(3))
    assert len(whole) == 3 and all_equal(whole[1:], loader.epoch(3, start=1))
    assert list(loader.epoch(3, start=3)) == []


def test_skipped_images_are_not_decoded(source, monkeypatch):
    read, opened = source.read, []
    monkeypatch.setattr(source, "read", lambda index: opened.append(index) or read(index))
    loader = train_loader(source, DataOptions(workers=0, **STREAMED), batch_size=4)
    (batch,) = loader.epoch(0, start=2)
    assert opened == batch["index"].tolist()


def test_workers_and_processes_do_not_change_a_sample(source):
    def run(workers, world):
        options = DataOptions(workers=workers, **STREAMED)
        ranks = [
            list(train_loader(source, options, batch_size=4, rank=r, world_size=world).epoch(2)) for r in range(world)
        ]
        return [joined(parts) for parts in zip(*ranks, strict=True)]

    alone = run(0, 1)
    assert all_equal(alone, run(2, 1)) and all_equal(alone, run(1, 2))


def test_a_machine_of_one_core_has_one_worker_and_no_warning(source, monkeypatch, recwarn):
    def batches(workers):
        loader = train_loader(source, DataOptions(workers=workers, **STREAMED), batch_size=4)
        return loader.loader.num_workers, list(loader.epoch(0))

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    (count, capped), (none, alone) = batches(2), batches(0)
    assert (count, none) == (1, 0) and all_equal(capped, alone)
    assert not [str(warning.message) for warning in recwarn if "worker" in str(warning.message)]


@pytest.mark.parametrize("gpu, cores, bound, processes, workers", [
    (False, 32, 32, 1, 2), (True, 32, 32, 1, 16), (True, 32, 32, 4, 8), (True, 4, 4, 4, 2), (True, 1, 1, 1, 1),
    (True, 32, 8, 4, 8), (True, 32, 16, 4, 8), (True, 32, 4, 1, 4),
])  # fmt: skip
def test_a_process_with_a_gpu_has_more_workers(gpu, cores, bound, processes, workers, monkeypatch):
    """The launcher runs on `cores` cores, and may bind each process to some of them."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: gpu)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores if process == os.getppid() else bound))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert usable_workers(None) == workers and usable_workers(1) == 1


def test_workers_of_an_unfinished_evaluation_are_stopped_at_exit(source):
    """An uncaught exception keeps the iterator alive until the interpreter ends, which would wait for the workers."""
    loader = eval_loader(source, DataOptions(workers=1, **STREAMED), batch_size=4)
    batches = iter(loader)
    next(batches)
    (worker,) = next(b for b in RUNNING if getattr(b, "_dataset", None) is loader.loader.dataset)._workers
    stop_workers()
    assert not worker.is_alive()


def read_and_fail(source):
    """Raise an exception while a worker runs; its traceback keeps the iterator alive."""
    batches = iter(eval_loader(source, DataOptions(workers=1, **STREAMED), batch_size=4))
    next(batches)
    raise SystemExit(3)


def test_workers_of_a_process_of_multiprocessing_are_stopped_at_its_exit(source):
    assert in_a_process(read_and_fail, source) == 3


def test_loading_leaves_the_global_random_state_unchanged(source):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for workers in 0, 1:
        for memory in "yes", "no":
            options = DataOptions(workers=workers, **{**STREAMED, "memory": memory})
            list(train_loader(source, options, batch_size=4).epoch(0))
            list(eval_loader(source, options, batch_size=4))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_streamed_evaluation_crops_the_middle_as_timm_does(source):
    options = DataOptions(memory="no", workers=0, img_size=24, crop_pct=0.75)
    batch = next(iter(eval_loader(source, options, batch_size=12)))
    assert batch["index"].tolist() == list(range(12))
    middle = np.asarray(source.read(3)[0])[4:28, 4:28]  # 24 / 0.75 is 32, the image size, so nothing is resized
    assert np.array_equal(batch["image"][3].permute(1, 2, 0), middle)
    options = DataOptions(memory="no", workers=0, img_size=24, crop_pct=1.0, interpolation="nearest")
    resized = source.read(3)[0].resize((24, 24), Image.Resampling.NEAREST)
    assert np.array_equal(next(iter(eval_loader(source, options, batch_size=4)))["image"][3].permute(1, 2, 0), resized)


@pytest.mark.parametrize("memory, workers", [("yes", 0), ("no", 0), ("no", 2)])
def test_broken_images_are_replaced_counted_and_named(folder, break_image, caplog, memory, workers):
    """The next readable image and its label are used. In evaluation the index is -1. Each file is named once."""
    root = folder(kind="jpg", size=(64, 64))
    for name in "cat/2.jpg", "cat/3.jpg":
        break_image(root / "train" / name)
    (root / "train" / "eel" / "3.jpg").write_bytes(b"no image at all")
    source = open_data("folder", root=root).train
    options = DataOptions(memory=memory, workers=workers, corrupt_limit=0.25, img_size=64, crop_pct=1.0)
    loader = train_loader(source, options, batch_size=12)
    for epoch in 0, 1:
        (batch,) = loader.epoch(epoch)
    assert sorted(path[-9:] for path in loader.corrupt) == ["cat/2.jpg", "cat/3.jpg", "eel/3.jpg"]
    assert len(caplog.messages) == 3 and "cat/2.jpg: OSError: image file is truncated" in caplog.text
    assert batch["index"].sort().values.tolist() == list(range(12)), "replaced images keep their index"
    label = batch["label"][batch["index"].argsort()]
    assert label.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0]

    (scored,) = eval_loader(source, options, batch_size=12)
    image = scored["image"]
    assert scored["index"].tolist() == [0, 1, -1, -1, 4, 5, 6, 7, 8, 9, 10, -1]
    assert torch.equal(image[2], image[4]) and torch.equal(image[3], image[4]) and torch.equal(image[11], image[0])
    assert not torch.equal(image[4], image[5])


@pytest.mark.parametrize("memory, workers", [("yes", 0), ("no", 2)])
def test_too_many_broken_images_end_the_run(folder, break_image, memory, workers, capsys):
    root = folder(kind="jpg", size=(64, 64), name="my set")
    for name in "cat/2.jpg", "cat/3.jpg":
        break_image(root / "train" / name)
    options = DataOptions(data="folder", data_dir=str(root), memory=memory, workers=workers, corrupt_limit=0.1)
    source = open_data("folder", root=root).train
    words = r"2 of 12 images cannot be read, more than corrupt_limit allows \(a share of 0.1\); the last was .*cat/.*"
    words += f"raise --corrupt-limit .*: metamix verify folder --data-dir '{root}'"
    with pytest.raises(CorruptImage, match=words) as error:
        list(train_loader(source, options, batch_size=12).epoch(0))
    assert follow_verify(error.value) == 1
    assert "2 of 18 images of" in capsys.readouterr().out


@pytest.mark.parametrize("memory, workers", [("yes", 0), ("no", 0), ("no", 1)])
def test_data_without_a_readable_image_are_refused(folder, break_image, memory, workers):
    root = folder(kind="jpg", size=(64, 64), train=1)
    for path in (root / "train").glob("*/*.jpg"):
        break_image(path)
    source = open_data("folder", root=root).train
    with pytest.raises(CorruptImage, match="^none of 3 images can be read; the first error is: .*cat/0.jpg"):
        list(train_loader(source, DataOptions(workers=workers, memory=memory), batch_size=2).epoch(0))


def test_a_replacement_comes_from_the_same_split(folder, break_image):
    """A replacement never comes from the holdout, which is not trained on."""
    root = folder(kind="jpg", train=8)
    splits = open_data("folder", root=root, holdout=0.5)
    break_image(root / "train" / "cat" / splits.train.path(0).rsplit("/", 1)[1])
    loader = train_loader(splits.train, DataOptions(corrupt_limit=1.0), batch_size=12)
    assert loader.rows[0] == loader.rows[1] == splits.train.indices[1]
    assert loader.rows[1:].tolist() == splits.train.indices[1:].tolist()


def test_a_worker_that_dies_is_reported(source, monkeypatch):
    monkeypatch.setattr(type(source), "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    loader = train_loader(source, DataOptions(workers=1, **STREAMED), batch_size=4, seed=1)
    with pytest.raises(OSError, match=r"a process that reads images died \(DataLoader worker .*lower --workers"):
        next(loader.epoch(0))


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("No space left on device")


def test_a_worker_that_cannot_send_a_batch_is_reported(source, monkeypatch, capfd):
    """If /dev/shm is full, a thread of the worker raises this error, and the main process would wait forever."""
    monkeypatch.setattr("metamix.data.loader.collate_images", lambda samples: {"image": Unsendable()})
    loader = train_loader(source, DataOptions(workers=1, **STREAMED), batch_size=4, seed=1)
    loader.loader.timeout = 20  # seconds; otherwise the test would hang instead of failing
    with pytest.raises(OSError, match="a process that reads images died .* shared memory, and repeat the command"):
        next(loader.epoch(0))
    assert "No space left on device" in capfd.readouterr().err


@pytest.mark.slow
def test_a_program_ends_even_if_its_workers_survive_a_sigterm(folder):
    """At its end, Python sends SIGTERM to its children and waits for them, so the loader must end them before that."""
    program = f"""
from metamix.data import DataOptions, open_data, train_loader
options = DataOptions(data="folder", data_dir={str(folder())!r}, memory="no", workers=2)
loader = train_loader(open_data("folder", root=options.data_dir).train, options, batch_size=6)
print(sum(len(batch["label"]) for batch in loader.epoch(0)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "12", done.stderr


def test_workers_end_with_the_evaluation(source):
    options = DataOptions(memory="no", workers=1)
    before = set(multiprocessing.active_children())
    batches = iter(eval_loader(source, options, batch_size=6))
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 1
    assert len(list(batches)) == 1
    assert set(multiprocessing.active_children()) <= before  # workers of other tests may have ended since


@pytest.fixture
def spawn():
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
@pytest.mark.usefixtures("spawn")
def test_spawned_workers_survive_ctrl_c(folder):
    """A terminal sends Ctrl-C to workers too, but training needs them until it has stopped."""
    before = set(multiprocessing.active_children())
    source = open_data("folder", root=folder()).test
    batches = iter(eval_loader(source, DataOptions(memory="no", workers=1), batch_size=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGINT)
    assert 1 + len(list(batches)) == 6
