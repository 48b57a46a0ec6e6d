"""Test the engine on a small task that implements only the task protocol."""

import copy
import math
import os
import re
import signal
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from timm.models import checkpoint
from torch import nn
from torch.nn import functional as F

from metamix.layers import ConvWeights
from metamix.training import optimization
from metamix.training.engine import Engine, NotFinite
from metamix.training.forward import autocast_dtype, micro_batches, score_batches
from metamix.training.optimization import Ema, freeze, make_optimizer, make_schedule, restore_optimizer, train_mode
from metamix.training.processes import ProcessGroup, Stopped
from metamix.training.recipe import EngineOptions, Recipe
from metamix.training.reports import draw_curves
from metamix.training.run_folder import PACKAGE, Run
from metamix.weights.files import load_checkpoint


@pytest.fixture(autouse=True)
def no_run_stays_open():
    """Close all runs after each test, because an open run would print the warnings of later tests."""
    yield
    for handler in list(PACKAGE.handlers):
        handler.run.close()


class Detect:
    """A task like detection: batches hold lists of tensors of any size, and a step has several named losses."""

    notes, title, same_image_shape = [], "boxes-net", True
    frozen_helpers, identity = (), {}

    def __init__(self):
        self.data = self.model = self.metric = self.pictures = self
        self.augmented = set()  # (epoch, step) of each batch

    def build(self, metadata=None):
        return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.GELU(), nn.Linear(8, 1))

    def train_loader(self, batch_size, rank, world_size, seed):
        return Steps(6, batch_size)

    def eval_loaders(self, batch_size, rank, world_size):
        return {"test": [make_batch(0, 5), make_batch(1, 2)], "holdout": [make_batch(2, 3)]}

    def augment(self, batch, epoch, step):
        self.augmented.add((epoch, step))
        return {"image": batch["image"], "target": [{"sum": image.sum() * 0.1} for image in batch["image"]]}

    def loss(self, model, batch):
        out = torch.stack([model(image).mean() for image in batch["image"]])
        near = F.mse_loss(out, torch.stack([target["sum"] for target in batch["target"]]))
        return near + 1e-3 * out.abs().mean(), {"near": near, "size": out.abs().mean()}

    def start(self):
        return {"answers": []}

    def predict(self, model, batch):
        return (model(image).mean().item() for image in batch["image"])

    def update(self, state, outputs, batch):
        state["answers"] += outputs

    def result(self, states):
        answers = [answer for state in states for answer in state["answers"]]
        return {"mean": sum(answers) / len(answers), "count": len(answers)}

    def describe(self, model):
        return {"model": "net"}


class Steps:
    def __init__(self, steps, batch_size):
        self.steps, self.batch_size = steps, batch_size

    def __len__(self):
        return self.steps

    def epoch(self, epoch, start=0):
        return (make_batch(100 * epoch + step, self.batch_size) for step in range(start, self.steps))


def make_batch(seed, count):
    random = torch.Generator().manual_seed(seed)
    return {"image": [torch.randn(2 + i % 3, 3, generator=random) for i in range(count)], "name": ["x"] * count}


def engine(folder=None, **options):
    options = {
        "epochs": 2, "batch_size": 12, "warmup_epochs": 0.0, "amp": "none", "device": "cpu", "lr": 0.01,
    } | options  # fmt: skip
    run = Run(folder)
    return Engine(Detect(), Recipe("boxes", EngineOptions(**options), NoOptions()), ProcessGroup.start("cpu"), run)


@dataclass
class NoOptions:
    """Task options without any fields."""


def weights(engine):
    return torch.cat([weight.detach().flatten() for weight in engine.model.parameters()])


def test_a_task_whose_batches_are_lists_and_dicts_trains(tmp_path):
    trained = engine(tmp_path, epochs=3, ema=True, eval_every=2)
    trained.fit()
    assert [row["epoch"] for row in trained.history] == [1, 2, 3] and trained.step == 18
    assert ["holdout_mean" in row for row in trained.history] == [False, True, True]  # the last epoch is always scored
    row = trained.history[-1]
    assert {"train_loss", "train_near", "train_size", "holdout_mean", "holdout_ema_mean"} <= row.keys()
    assert row["holdout_count"] == 3 and trained.evaluate("test")[0]["count"] == 7
    assert row["train_near"] < trained.history[0]["train_near"]
    assert row["img_per_s"] * (row["seconds"] - trained.history[-2]["seconds"]) == pytest.approx(6 * 12)
    assert trained.task.augmented == {(step // 6, step) for step in range(18)}


@pytest.mark.parametrize("lower_is_better, best", [(False, 2), (True, 1)])
def test_lower_is_better_decides_which_epoch_is_the_best(lower_is_better, best, tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(Detect, "lower_is_better", lower_is_better, raising=False)
    monkeypatch.setattr(Engine, "evaluate", lambda *_: ({"score": next(scores)}, []))
    one = engine(tmp_path, epochs=3, early_stopping=3)
    one.fit()
    assert one.best["epoch"] == best
    one.run.close()
    without = engine(tmp_path, epochs=4)
    assert without.resume() and not without.best  # without early stopping, the last weights are kept


@pytest.mark.parametrize("micro_batch", [1, 4, 10, 99])
def test_micro_batches_do_not_change_weights_and_losses(micro_batch):
    """10 samples are split into 10 parts of 1, into parts of 3, 3 and 4, or not at all."""
    whole, parts = (engine(optimizer="sgd", batch_size=10, micro_batch=size) for size in (0, micro_batch))
    for one in (whole, parts):
        one.model[1].p = 0.0
        for batch in one.train_loader.epoch(0):
            one.train_step(batch)
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)
    assert torch.allclose(torch.stack(whole.pending), torch.stack(parts.pending), atol=1e-6)


@pytest.mark.parametrize("count, size, parts", [(129, 64, [43, 43, 43]), (10, 4, [3, 3, 4]), (3, 4, [3]), (3, 0, [3])])
def test_micro_batches_have_nearly_equal_sizes(count, size, parts):
    batch = {"image": torch.arange(count), "name": [*range(count)]}
    split = list(micro_batches(batch, size))
    assert [len(part["name"]) for part in split] == parts
    assert torch.cat([part["image"] for part in split]).tolist() == batch["name"]


class Saving(nn.Module):
    """Use gradient checkpointing as timm's models do."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.saving = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)), nn.Linear(8, 1), False

    def set_grad_checkpointing(self, enable):
        self.saving = enable

    def forward(self, x):
        return self.head(checkpoint(self.body, x) if self.saving else self.body(x))


def test_gradient_checkpointing_updates_batch_norms_once(monkeypatch):
    monkeypatch.setattr(Detect, "build", lambda self, metadata=None: Saving())
    plain, saving = engine(), engine(grad_checkpointing=True)
    for one in (plain, saving):
        one.train_step(make_batch(0, 12))
    assert torch.equal(weights(plain), weights(saving))
    norms = plain.model.body[1], saving.model.body[1]
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)
    assert norms[0].num_batches_tracked == norms[1].num_batches_tracked == 12
    assert norms[1].momentum == 0.1


def test_the_error_of_a_batch_norm_that_gets_one_value_says_what_to_do():
    trained = engine(micro_batch=1)
    trained.model[0] = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))
    batch = {"image": [torch.ones(1, 3)], "name": ["x"]}
    with pytest.raises(ValueError, match="one sample whose feature map is a single pixel .*larger --batch-size"):
        trained.train_step(batch)


@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_gradients_are_clipped(amp):
    """The first step has no momentum yet, so its norm equals the limit. The loss scale of fp16 must not change it."""
    one = engine(optimizer="momentum", weight_decay=0.0, lr=1.0, clip_grad=1e-3, amp=amp)
    one.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=amp == "fp16")
    before = weights(one)
    one.train_step(make_batch(0, 12))
    assert (weights(one) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_note_warns_if_free_memory_is_below_110_percent_of_the_estimate(monkeypatch, capsys):
    one, batch = engine(), make_batch(0, 12)
    batch = one.stepper.prepare(batch)
    needed = one.stepper.memory(batch, math.inf)(12)
    for free, noted in ((1.05 * needed, True), (1.15 * needed, False)):
        monkeypatch.setattr("metamix.training.engine.free_memory", lambda device, free=free: free)
        one._fit_memory(batch)
        assert ("if the run is killed, lower --micro-batch" in capsys.readouterr().out) == noted
    one.group = SimpleNamespace(device=one.group.device, all_gather=lambda part: [part, 3])
    one._fit_memory(batch)
    assert "lower --micro-batch" in capsys.readouterr().out  # another process has less memory


def test_a_warning_is_logged_once(tmp_path, capsys):
    """A loader warns about broken images whenever it is made, and a smaller batch size needs a new loader."""
    Run(tmp_path)
    for _ in range(2):
        PACKAGE.warning("unreadable image 1 of 9")
    assert capsys.readouterr().out == (tmp_path / "log.txt").read_text() == "warning: unreadable image 1 of 9\n"


def test_the_memory_estimate_includes_moments_before_the_first_step():
    """Muon's state has an entry for some weights from the start, but it does not hold their moments yet."""
    one = engine()
    batch, moments = one.stepper.prepare(make_batch(0, 12)), 2 * weights(one).nbytes
    before = one.stepper.memory(batch, 0.0)(0)
    one.stepper.optimizer.state[next(one.model.parameters())]["use_muon"] = True
    assert one.stepper.memory(batch, 0.0)(0) == before == moments


def test_random_numbers_depend_only_on_seed_step_and_rank():
    first, second, other, other_rank = engine(), engine(), engine(seed=1), engine()
    other_rank.stepper.group = replace(other_rank.group, rank=1)
    for one in (second, other, other_rank):
        one.model.load_state_dict(first.model.state_dict())
    for one in (first, second, other, other_rank):
        torch.rand(1 + (one is second))  # the state of the generator must not matter
        one.train_step(make_batch(0, 12))
    assert torch.equal(weights(first), weights(second)) and not torch.equal(weights(first), weights(other))
    assert not torch.equal(weights(first), weights(other_rank))  # ranks drop different activations


def test_losses_are_averaged_over_the_ranks():
    sums = []
    for ranks in (1, 2):
        one = engine()
        one.train_step(make_batch(0, 12))
        group = {"world_size": ranks, "all_reduce": lambda values, ranks=ranks: ranks * values}
        group |= {"all_gather": lambda value: [value], "device": one.group.device}
        one.group = SimpleNamespace(**group, is_main=True, orphaned=False)
        one._synchronize()
        sums.append(one.sums)
    assert sums[0] == pytest.approx(sums[1]) and sums[0]["loss"] > 0


def rates(**options):
    options = EngineOptions(
        **{"epochs": 10, "lr": 1.0, "min_lr": 0.1, "warmup_lr": 0.0, "warmup_epochs": 2.0} | options
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=options.lr)
    schedule = make_schedule(optimizer, options, steps_per_epoch=5)

    def rate(step):
        schedule.step_update(step)
        return optimizer.param_groups[0]["lr"]

    return rate


def test_the_cosine_learning_rate_depends_only_on_the_step():
    rate = rates()
    forward = [rate(step) for step in range(50)]
    assert forward == [rate(step) for step in reversed(range(50))][::-1]  # the order of calls is irrelevant
    assert forward[:10] == pytest.approx([step / 10 for step in range(10)]) and forward[10] == pytest.approx(1.0)
    for step in range(10, 50):
        assert forward[step] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * (step - 10) / 40)))


def test_other_schedules_follow_their_formulas():
    line, constant = rates(schedule="linear"), rates(schedule="constant", warmup_epochs=0.0)
    assert [line(step) for step in (5, 10, 30, 49)] == pytest.approx([0.5, 1.0, 0.55, 0.1 + 0.9 / 40])
    assert {constant(step) for step in (0, 20, 49)} == {1.0}
    whole = rates(epochs=2)  # warm-up only
    assert [whole(step) for step in (0, 5, 9)] == pytest.approx([0.0, 0.5, 0.9])
    poly = rates(schedule="poly", power=0.9, warmup_epochs=0.0, min_lr=0.0)
    assert [poly(step) for step in (0, 10, 49)] == pytest.approx([(1 - step / 50) ** 0.9 for step in (0, 10, 49)])


@pytest.mark.parametrize("iterations, epochs", [(1, 1), (20, 3), (60, 10)])
def test_iterations_are_rounded_to_whole_epochs(iterations, epochs):
    made = engine(iterations=iterations, warmup_epochs=0.0)  # 6 steps per epoch
    assert made.options.epochs == epochs and "epochs" not in made.recipe.flat()
    with pytest.raises(ValueError, match="warmup_epochs is 4.0, above epochs, which is 3"):
        engine(iterations=20, warmup_epochs=4.0)


def test_lr_factors_scale_the_learning_rates_of_parts_of_the_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    options = EngineOptions(warmup_epochs=0.0, lr=1.0, lr_factors={"0": 0.1, "*.bias": 0.5})
    optimizer = make_optimizer(model, options)
    make_schedule(optimizer, options, 5).step_update(0)
    rate_of = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    rates = {name: rate_of[id(weight)] for name, weight in model.named_parameters()}
    assert rates == pytest.approx({"0.weight": 0.1, "0.bias": 0.05, "1.weight": 1.0, "1.bias": 0.5})
    with pytest.raises(ValueError, match="lr_factors names 'backbone'"):
        make_optimizer(model, EngineOptions(lr_factors={"backbone": 0.1}))
    one = engine(lr_factors={"0": 0.1})
    one.train_step(make_batch(0, 12))
    assert one.stepper.lr == 0.01  # the log shows the rate without a factor


def test_layer_decay_scales_the_learning_rates():
    import timm

    model = timm.create_model("test_vit", num_classes=3)
    optimizer = make_optimizer(model, EngineOptions(layer_decay=0.5, lr=1.0))
    make_schedule(optimizer, EngineOptions(warmup_epochs=0.0, lr=1.0), 5).step_update(0)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rates[id(model.head.weight)] == 1.0 and rates[id(model.patch_embed.proj.weight)] <= 0.5**5
    with pytest.raises(ValueError, match="layer_decay is 0.5, but timm cannot order the layers of Sequential"):
        make_optimizer(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), EngineOptions(layer_decay=0.5))


def test_muon_orthogonalizes_dense_convolutions_of_one_input_channel():
    model = nn.ModuleDict(
        {
            "token": ConvWeights(1, 4, (4, 4)),
            "grey": nn.Conv2d(1, 8, (4, 4)),
            "frozen": nn.Conv2d(1, 8, (4, 4)).requires_grad_(False),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "narrow": nn.Conv2d(1, 2, (4, 4)),  # a matrix of two rows, too small to orthogonalize
            "head": nn.Conv2d(1, 8, (4, 4)),
        }
    )
    optimizer = make_optimizer(model, EngineOptions(optimizer="muon", opt_args={"fallback_list": ["head.*"]}))
    optimizer.state_dict()  # fails if a weight that is not trained has a state
    sum(weight.sum() for weight in model.parameters()).backward()
    optimizer.step()
    takes = {name: bool(optimizer.state[model[name].weight]["use_muon"]) for name in model.keys() - {"frozen"}}
    assert takes == {"token": True, "grey": True, "depthwise": False, "narrow": False, "head": False}
    assert "momentum_buffer" in optimizer.state[model["token"].weight]


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_uses_float32_if_the_cpu_lacks_bf16(has_bf16, dtype, monkeypatch):
    used = []

    def orthogonalize(matrix, *others, dtype=torch.bfloat16, **named):  # with the arguments of timm's function
        used.append(dtype)
        return matrix

    monkeypatch.setattr(optimization, "cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(optimization, "NEWTON_SCHULZ", orthogonalize)
    monkeypatch.setattr("timm.optim.muon.zeropower_via_newtonschulz", None)  # so that pytest restores it
    model = nn.Sequential(nn.Linear(8, 6))
    optimizer = make_optimizer(model, EngineOptions(optimizer="muon"))
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    assert used == [dtype]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon", "lamb"])
def test_optimizers_resume_bit_for_bit(name, tmp_path):
    options = {"optimizer": name, "epochs": 2, "lr": 3e-3, "ema": True, "clip_grad": 0.1}
    straight = engine(tmp_path / "a", **options)
    straight.fit()
    before = engine(tmp_path / "b", **options)
    for batch in before.train_loader.epoch(0):
        if before.step == 4:
            break
        before.train_step(batch)
    before._synchronize()
    before.save()
    before.run.close()
    after = engine(tmp_path / "b", **options)
    assert after.resume() and after.step == 4
    after.fit()
    assert torch.equal(weights(straight), weights(after))
    assert [row["train_loss"] for row in straight.history] == [row["train_loss"] for row in after.history]
    averages = [
        torch.cat([weight.flatten() for weight in one.stepper.ema.module.parameters()]) for one in (straight, after)
    ]
    assert torch.equal(*averages) and not torch.equal(averages[0], weights(straight))


@pytest.mark.parametrize("split, steps", [("holdout", 6), ("test", 12)])
def test_a_signal_ends_an_evaluation_at_its_next_batch(split, steps, tmp_path, capsys):
    """The resumed run scores the split again, and equals an uninterrupted run bit for bit."""
    straight, before = engine(tmp_path / "a", ema=True), engine(tmp_path / "b", ema=True)
    straight.fit()
    scored = []

    def batches():
        for seed in range(3):
            scored.append(seed)
            if seed == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield make_batch(seed, 3)

    before.eval_loaders[split] = batches()
    with pytest.raises(Stopped), before.stop_signal:
        before.fit()
        before.evaluate("test")
    assert scored == [0, 1] and f"stopped at step {steps} of 12; the state is saved in" in capsys.readouterr().out
    before.run.close()
    after = engine(tmp_path / "b", ema=True)
    assert after.resume() and after.step == steps
    after.fit()
    assert torch.equal(weights(straight), weights(after))
    same = ("step", "lr", "train_loss", "holdout_mean", "holdout_ema_mean")
    assert [[row[name] for name in same] for row in straight.history] == [
        [row[name] for name in same] for row in after.history
    ]
    assert straight.evaluate("test") == after.evaluate("test")


def test_scores_are_computed_in_the_precision_of_training(monkeypatch):
    seen = []
    monkeypatch.setattr(Detect, "predict", lambda *_: seen.append(torch.is_autocast_enabled("cpu")) or [0.0])
    for amp in ("none", "bf16"):
        engine(amp=amp).evaluate("holdout")
    assert seen == [False, True]


def test_samples_that_could_not_be_read_are_counted_but_not_scored():
    """The loader puts the next readable sample in their place and sets the index to -1."""
    task, indices = Detect(), ([0, -1, 2], [-1, -1], [5, 6])
    batches = [make_batch(0, len(index)) | {"index": torch.tensor(index)} for index in indices]
    model, group = task.build(), ProcessGroup.start("cpu")
    scores, [state] = score_batches(task, model, batches, group, None, torch.contiguous_format)
    kept = [batches[0]["image"][0], batches[0]["image"][2], *batches[2]["image"]]
    assert state == {"answers": list(task.predict(model, {"image": kept})), "unreadable": 3}
    assert scores == task.result([state])


def test_all_ranks_score_with_the_batch_norm_statistics_of_rank_0():
    one, sent = engine(), []
    one.model.append(nn.BatchNorm1d(1))
    group = {"device": one.group.device, "world_size": 2, "all_gather": lambda value: [value]}
    one.group = SimpleNamespace(**group, broadcast=sent.extend, orphaned=False)
    one.evaluate("test")
    assert list(map(id, sent)) == list(map(id, one.model.buffers())) and len(sent) == 3


def test_the_last_good_checkpoint_may_belong_to_another_run(tmp_path):
    first = engine(tmp_path / "a", epochs=1)
    first.fit()
    first.run.close()
    second = engine(tmp_path / "b", epochs=2, resume=str(tmp_path / "a" / "checkpoint.pt"))
    assert second.checkpoints.good == "there is no checkpoint yet"
    second.resume()
    assert second.checkpoints.good == f"the last good checkpoint is {tmp_path}/a/checkpoint.pt, step 6"
    second.save()
    assert second.checkpoints.good == f"the last good checkpoint is {tmp_path}/b/checkpoint.pt, step 6"


def test_the_loss_scale_of_fp16_is_saved_and_restored(tmp_path):
    first = engine(tmp_path, amp="fp16", epochs=1)
    first.fit()
    first.run.close()
    assert first.stepper.scaler.is_enabled() and all(torch.isfinite(weights(first)))
    saved = load_checkpoint(tmp_path / "checkpoint.pt")["scaler"]
    second = engine(tmp_path, amp="fp16", epochs=2)
    assert second.stepper.scaler.state_dict() != saved
    second.resume()
    assert second.stepper.scaler.state_dict() == first.stepper.scaler.state_dict() == saved


def test_weight_decay_skips_biases_and_may_change_on_resume(tmp_path):
    first = engine(tmp_path, epochs=1, weight_decay=0.5)
    assert sorted((group["weight_decay"], len(group["params"])) for group in first.stepper.optimizer.param_groups) == [
        (0, 2),
        (0.5, 2),
    ]
    first.fit()
    first.run.close()
    second = engine(tmp_path, epochs=2, weight_decay=0.25)
    second.resume()
    assert {group["weight_decay"] for group in second.stepper.optimizer.param_groups} == {0, 0.25}
    assert all(state["step"] == 6 for state in second.stepper.optimizer.state.values())
    second.run.close()
    with pytest.raises(ValueError, match="divides the weights into other groups than before: weight_decay cannot"):
        engine(tmp_path, epochs=2, weight_decay=0.0).resume()
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    swapped = (EngineOptions(weight_decay=decay, lr_factors={"*.bias": 2.0}) for decay in (0.5, 0.0))
    old, new = (make_optimizer(model, options) for options in swapped)  # the groups have the same number of weights
    with pytest.raises(ValueError, match="divides the weights into other groups than before"):
        restore_optimizer(new, old.state_dict())
    old, new = (make_optimizer(nn.Linear(1, 1), EngineOptions(optimizer="sgd", momentum=m)) for m in (0.9, 0.5))
    restore_optimizer(new, old.state_dict())
    assert {group["momentum"] for group in new.param_groups} == {0.5}


def test_the_ema_warms_up_and_averages_shared_weights_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    model["b"] = model["a"]
    ema = Ema(model, decay=0.9)
    with torch.no_grad():
        expected = model["a"].weight.clone()
        for step in range(1, 200):
            model["a"].weight.add_(1.0)
            model["norm"].num_batches_tracked += 1
            ema.update(step)
            decay = min(0.9, 1 - max(step, 1) ** (-2 / 3))
            expected = decay * expected + (1 - decay) * model["a"].weight
    assert torch.allclose(ema.module["a"].weight, expected, rtol=1e-5)
    assert ema.module["a"] is ema.module["b"] and ema.module["norm"].num_batches_tracked == 199
    assert engine(ema=True, ema_decay=0.5).stepper.ema.decay == 0.5
    one, steps = engine(ema=True), []
    for seed in range(2):
        one.train_step(make_batch(seed, 12))
        steps.append(one.model[0].weight.detach().clone())
    decay = 1 - 2 ** (-2 / 3)
    assert torch.allclose(one.stepper.ema.module[0].weight, decay * steps[0] + (1 - decay) * steps[1])


def test_frozen_parts_do_not_change(monkeypatch):
    helper = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    monkeypatch.setattr(Detect, "frozen_helpers", (helper,))
    one = engine(freeze=("0",))
    assert not helper[1].training and not helper[0].weight.requires_grad
    before = one.model[0].weight.clone()
    one.train_step(make_batch(0, 12))
    assert torch.equal(one.model[0].weight, before) and one.model[0].weight.grad is None
    assert any("parameters are frozen (--freeze); new ones, if any, stay random" in note for note in one.notes)
    norm = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Dropout())
    freeze(norm, ("0",))
    train_mode(norm)
    assert not norm[0].training and norm[1].training and norm[2].training


@pytest.mark.parametrize(
    "parts, said",
    [
        (("stage",), "freeze names 'stage', .*; did you mean 'stages'.* The parts of the model: stem, stages"),
        (("stem", "stages.*"), "nothing is left to train: freeze is stem,stages"),
    ],
)
def test_freezing_unknown_parts_or_everything_is_refused(parts, said):
    model = nn.ModuleDict({"stem": nn.Linear(1, 1), "stages": nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))})
    with pytest.raises(ValueError, match=said):
        freeze(model, parts)


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", ["kron", "kronw", "kronc"])
def test_kron_resumes_exactly(name, monkeypatch):
    """By default, timm's kron draws random numbers from torch's global generator, which no checkpoint restores."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # compiling takes eight seconds
    options = EngineOptions(optimizer=name, lr=1e-2)
    torch.manual_seed(0)
    x, start = torch.randn(8, 5), nn.Linear(5, 3)

    def make():
        model = copy.deepcopy(start)
        return model, make_optimizer(model, options)

    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    (whole, optimizer), (first, half) = make(), make()
    steps(whole, optimizer, 6)
    steps(first, half, 3)
    torch.rand(7)  # change the state of the global generator
    second, rest = make()
    second.load_state_dict(first.state_dict())
    restore_optimizer(rest, copy.deepcopy(half.state_dict()))
    steps(second, rest, 3)
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"optimizer": "adamv"}, "optimizer is 'adamv'; did you mean 'adam"),
        ({"optimizer": "adahessian"}, "optimizer is 'adahessian'"),
        ({"opt_args": {"betta": 1}}, "optimizer adamw cannot be made with opt_args {'betta': 1}: "),
        ({"opt_args": {"betas": [2, 0.9]}}, "optimizer adamw cannot be made with opt_args {'betas': [2, 0.9]}: "),
        ({"optimizer": "sgd", "opt_args": {"eps": 1e-6}}, "opt_args is {'eps': 1e-06}, but sgd has no eps"),
        ({"momentum": 0.8}, "momentum is 0.8, but adamw has no momentum: leave it out"),
        ({"grad_checkpointing": True}, "Sequential has no gradient checkpointing; leave --grad-checkpointing out"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        engine(**options)


@pytest.mark.parametrize(
    "device, said",
    [
        ("gpu", "it must be auto, cpu, cuda, cuda:<number> or mps"),
        ("meta", "it must be auto, cpu, cuda, cuda:<number> or mps"),
        ("mps", "this PyTorch sees no Apple GPU; use --device cpu or auto"),
        ("cuda", "this PyTorch sees no CUDA GPU; use --device cpu or auto"),
    ],
)
def test_unknown_and_missing_devices_are_refused(device, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError) as error:
        ProcessGroup.start(device)
    assert str(error.value) == f"device is {device!r}, but {said}"


def test_ranks_that_do_not_see_the_same_files_are_refused(monkeypatch):
    group = ProcessGroup(1, 2, torch.device("cpu"))
    for answers in ([True, True], [False, False], [True, False]):
        monkeypatch.setattr(ProcessGroup, "all_gather", lambda self, value, answers=answers: answers)
        if answers[0] == answers[1]:
            assert group.exists_for_all(answers[1], "run") is answers[1]
    with pytest.raises(ValueError, match="rank 1 does not see run; all nodes must share the run folder"):
        group.exists_for_all(False, "run")


def test_a_gpu_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device is 'cuda:5', but the last GPU of this machine is cuda:1"):
        ProcessGroup.start("cuda:5")
    with monkeypatch.context() as torchrun:
        torchrun.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="device is 'cuda:1', which 2 processes cannot share"):
            ProcessGroup.start("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="process 0 needs its own GPU, but there are only 0: lower"):
        ProcessGroup.start("cuda")


def test_losses_and_scores_are_printed_and_drawn_in_groups(tmp_path, capsys, monkeypatch):
    """`train_box_reg_loss` is printed as "box reg loss" of "train". Losses share one plot, and scores another."""
    row = {"epoch": 1, "lr": 0.1, "train_loss": 3.0, "train_box_reg_loss": 2.0, "holdout_AP": 4.0}
    row |= {"holdout_AP_small": 5.0, "holdout_ema_AP_small": 6.0, "img_per_s": 7.0, "seconds": 8.0}
    Run(None).say_row(row, 2)
    assert capsys.readouterr().out == (
        "epoch 1/2  train loss 3 box reg loss 2  holdout AP 4 AP small 5  holdout ema AP small 6  lr 1.00e-01  7 img/s"
        "  0:00:08\n"
    )
    drawn = []
    monkeypatch.setattr("metamix.training.reports.save_figure", lambda path, figure: drawn.extend(figure.axes))
    draw_curves(tmp_path / "c.png", [row])
    assert [[line.get_label() for line in axes.lines] for axes in drawn] == [
        ["train loss", "train box reg loss"],
        ["holdout AP", "holdout AP small", "holdout ema AP small"],
        ["lr"],
    ]


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path):
    """An infinite gradient can spoil a weight although the loss was finite."""
    one = engine(tmp_path, epochs=1)
    one.fit()
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        one.model[0].weight[0, 0] = math.inf
    with pytest.raises(NotFinite, match="a weight is not finite after step 6, .*, step 6. Repeat the command"):
        one.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == whole


def test_the_error_names_the_first_step_whose_loss_is_not_finite(tmp_path):
    one = engine(tmp_path, epochs=1, log_every=6)
    loss = one.task.loss

    def spoilt(model, batch):
        value, seen = loss(model, batch)
        return value * (math.nan if one.step == 3 else 1), seen

    one.task.loss = spoilt
    with pytest.raises(NotFinite, match="the loss is nan at step 4, learning rate .*; there is no checkpoint yet. Rep"):
        one.fit()
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(("seconds", "expected"), [(1e-3, [1, 6]), (4, [1, 2, 4, 6]), (60, [1, 2, 3, 4, 5, 6])])
def test_ranks_synchronize_more_often_if_steps_are_slow(seconds, expected, monkeypatch):
    """torchrun kills ranks 30 s after its signal, and 20 steps of 4 s take longer than that."""
    one, now, reported = engine(log_every=20), 0.0, []
    loss = one.task.loss

    def slow(model, batch):
        nonlocal now
        now += seconds
        return loss(model, batch)

    one.task.loss = slow
    monkeypatch.setattr("metamix.training.engine.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(one.run, "progress", lambda step, *others: reported.append(step))
    assert list(one.steps(0)) == [1, 2, 3, 4, 5, 6]
    assert reported == expected


def test_an_orphaned_process_saves_and_stops_after_a_step(tmp_path):
    one = engine(tmp_path)
    one.group = replace(one.group, agent=-1)
    with pytest.raises(Stopped):
        one.fit()
    assert one.step == load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1


def test_the_memory_of_the_rank_that_used_most_is_reported(tmp_path, monkeypatch):
    one = engine(tmp_path, log_every=2)
    gather = lambda group, value: [value, 1e6] if type(value) is float else [value]  # noqa: E731
    monkeypatch.setattr(ProcessGroup, "all_gather", gather)
    monkeypatch.setattr("metamix.training.run_folder.PLAIN_SECONDS", 0)
    one.fit()
    assert one.history[0]["memory_gib"] == one.time_step()[1] == 1e6
    assert "1000000.0 GiB" in (tmp_path / "log.txt").read_text()


def test_raise_if_stopped_raises_after_a_signal(tmp_path):
    one = engine(tmp_path)
    one.raise_if_stopped()
    one.stop_signal.received = True
    with pytest.raises(Stopped):
        one.raise_if_stopped()


@pytest.mark.parametrize("arguments", [{"foreach": True}, {"differentiable": True}, {}])
def test_the_optimizer_is_fused_unless_its_arguments_say_otherwise(arguments):
    optimizer = make_optimizer(nn.Linear(2, 2), EngineOptions(optimizer="adamw", opt_args=arguments))
    assert bool(optimizer.defaults["fused"]) is not bool(arguments)


class Filters(nn.Module):
    """A module with a complex weight, such as a global filter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))


@pytest.mark.parametrize("name", ["adamw", "momentum", "adamax"])
def test_complex_weights_are_trained_and_averaged(name):
    model = Filters()
    ema = Ema(model, decay=0.9)
    optimizer = make_optimizer(model, EngineOptions(optimizer=name, lr=0.1, weight_decay=0.0))
    (model.weight.real + model.weight.imag).sum().backward()
    optimizer.step()
    assert torch.allclose(model.weight.detach(), torch.full((4, 4), 0.9 - 0.1j))
    ema.update(100)
    assert torch.allclose(ema.module.weight.detach(), torch.full((4, 4), 0.99 - 0.01j))


def test_frozen_complex_weights_fit_every_optimizer():
    model = nn.Sequential(nn.Linear(4, 4), Filters().requires_grad_(False))
    assert make_optimizer(model, EngineOptions(optimizer="muon"))


@pytest.mark.parametrize("name, arguments", [("muon", {}), ("lamb", {}), ("adamw", {"fused": True})])
def test_optimizers_that_do_not_support_complex_weights_are_refused(name, arguments):
    """Fused kernels raise an error, and muon and lamb drop the imaginary parts."""
    model, options = Filters(), EngineOptions(optimizer=name, opt_args=arguments)
    with pytest.raises(ValueError, match=f"optimizer is {name}, but weight is complex: use adamw or another"):
        make_optimizer(model, options)


@pytest.mark.parametrize("name", ["sgd", "sgdw"])
def test_sgd_without_momentum_is_plain_gradient_descent(name):
    weight = nn.Parameter(torch.ones(2, 2))
    options = EngineOptions(optimizer=name, momentum=0.0, lr=0.1, weight_decay=0.0)
    optimizer = make_optimizer(nn.ParameterList([weight]), options)
    weight.grad = torch.full((2, 2), 3.0)
    optimizer.step()
    assert torch.allclose(weight, torch.full((2, 2), 1 - 0.1 * 3.0))


@pytest.mark.parametrize("formats", [(torch.contiguous_format, torch.channels_last), (torch.channels_last,) * 2])
def test_moments_follow_the_memory_format_of_their_weights(formats):
    """With another format, a fused kernel would update values with the moments of other values."""
    weights, steps = torch.randn(8, 4, 3, 3), torch.randn(2, 8, 4, 3, 3)
    ends = []
    for layouts in (formats, formats[:1] * 2):
        saved = None
        model = nn.Conv2d(4, 8, 3)
        model.weight.data = weights.clone()
        for gradient, layout in zip(steps, layouts):
            model.to(memory_format=layout)
            optimizer = make_optimizer(model, EngineOptions(optimizer="adamw"))
            if saved:
                restore_optimizer(optimizer, saved)
            model.weight.grad = gradient.clone(memory_format=layout)
            optimizer.step()
            saved = optimizer.state_dict()
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends)


def test_fp16_on_a_cpu_warns(caplog):
    autocast_dtype("bf16", torch.device("cpu"))
    assert not caplog.messages
    autocast_dtype("fp16", torch.device("cpu"))
    assert caplog.messages == ["fp16 on a CPU is about ten times slower than float32; use --amp none or --amp bf16"]


def test_amp_auto_is_bf16_only_if_the_cpu_has_it(monkeypatch):
    cpu = torch.device("cpu")
    assert autocast_dtype("none", cpu) is None and autocast_dtype("fp16", cpu) is torch.float16
    for has, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr("metamix.training.forward.cpu_has_bf16", lambda has=has: has)
        assert autocast_dtype("auto", cpu) is expected
