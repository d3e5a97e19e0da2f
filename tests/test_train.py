"""Training: what it computes, that it resumes bit for bit, and what it leaves on the disk."""

import copy
import dataclasses
import json
import zlib

import numpy as np
import pytest

import minigan as mg
from minigan import data, gan, loop, nn, ops, recipes, train
from minigan.recipes import RECIPES, Recipe, RecipeError
from minigan.runs import RunError, RunFolder


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist-10k")


def recipe(name="mnist-gan", **changes):
    settings = {"steps": 6, "batch": 8, "log_every": 2, "sample_every": 3, "checkpoint_every": 2}
    return dataclasses.replace(recipes.find(name), **{**settings, **changes})


def bits(trainer):
    return {k: v.tobytes() for k, v in trainer.checkpoint().tensors.items()}


def new_run(path, r):
    return RunFolder.create(path, "test", {"name": "test", "recipe": r.to_dict()})


# ------------------------------------------------------------------------------------------ recipes


def test_recipes_have_both_presets_and_the_sources_numbers():
    for presets in RECIPES.values():
        assert presets.keys() == {"default", "ocaml-torch"}
        source = presets["ocaml-torch"]
        assert (source.lr_g, source.lr_d, source.beta1, source.beta2) == (1e-4, 1e-4, 0.9, 0.999)
        assert (source.loss, source.real_target, source.latent) == ("bce-eps", 0.9, "uniform")
        assert source.ema == 0
    batches = {name: presets["ocaml-torch"].batch for name, presets in RECIPES.items()}
    assert batches == {"mnist-gan": 128, "mnist-dcgan": 128, "mnist-cgan": 256}
    assert RECIPES["mnist-cgan"]["ocaml-torch"].fake_labels == "constant"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": "3"}, "no field 'stepz'.*did you mean 'steps'"),
        ({"steps": "many"}, "steps must be a whole number, not 'many'"),
        ({"steps": "2.5"}, "steps must be a whole number"),
        ({"steps": "-1"}, "steps must be at least 1, not -1"),
        ({"batch": "0"}, "batch must be at least 2, not 0"),
        ({"lr_g": "nan"}, "lr_g must be a (finite )?number"),
        ({"lr_g": "fast"}, "lr_g must be a number, not 'fast'"),
        ({"beta1": "1"}, "beta1 must be at most"),
        ({"loss": "wassertein"}, "loss must be one of .*did you mean 'wasserstein'"),
        ({"real_target": "0.9", "loss": "hinge"}, "real_target must be 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(RecipeError, match=message):
        Recipe().with_settings(settings)


def test_settings_keep_their_types():
    r = Recipe().with_settings({"steps": "7", "lr_g": "1e-3", "loss": "hinge"})
    assert (r.steps, r.lr_g, r.loss) == (7, 1e-3, "hinge")
    assert Recipe.from_dict(json.loads(json.dumps(r.to_dict()))) == r


# --------------------------------------------------------------------------------------- one update


def linear_game(penalty="none", **kwargs):
    """G(z) = z·a + c and D(x) = x·w + b on vectors: closed forms are easy."""
    mg.manual_seed(0)
    return gan.Game(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 1), nn.Reshape()),
                    penalty=penalty, **kwargs)  # fmt: skip


def test_discriminator_turn_has_the_loss_and_gradients_of_the_formula():
    game = linear_game(real_target=0.9)
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(6, 2)), rng.normal(size=(6, 3))
    w, b = game.discriminator[0].weight.data[0], game.discriminator[0].bias.data[0]
    fake = z @ game.generator.weight.data.T + game.generator.bias.data
    turn = game.discriminator_turn(x.astype(np.float32), z.astype(np.float32))
    s_real, s_fake = (1 / (1 + np.exp(-(v @ w + b))) for v in (x, fake))
    loss = -np.mean(0.9 * np.log(s_real) + 0.1 * np.log(1 - s_real)) - np.mean(np.log(1 - s_fake))
    assert float(turn.loss) == pytest.approx(loss, rel=1e-5)
    # d/dlogit of the cross-entropy is σ - target
    gw = ((s_real - 0.9)[:, None] * x).mean(0) + (s_fake[:, None] * fake).mean(0)
    np.testing.assert_allclose(turn.grads[0].ravel(), gw, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(turn.grads[1], [(s_real - 0.9).mean() + s_fake.mean()], rtol=1e-4)
    assert float(turn.metrics["d_real"]) == pytest.approx(s_real.mean(), rel=1e-5)
    assert float(turn.metrics["accuracy_fake"]) == pytest.approx((s_fake < 0.5).mean())


def test_generator_turn_goes_through_a_frozen_discriminator():
    game = linear_game()
    z = np.random.default_rng(0).normal(size=(6, 3))
    w, b = game.discriminator[0].weight.data[0], game.discriminator[0].bias.data[0]
    fake = z @ game.generator.weight.data.T + game.generator.bias.data
    turn = game.generator_turn(z.astype(np.float32))
    s = 1 / (1 + np.exp(-(fake @ w + b)))
    assert float(turn.loss) == pytest.approx(-np.log(s).mean(), rel=1e-5)
    gfake = ((s - 1)[:, None] * w) / 6
    np.testing.assert_allclose(turn.grads[0], gfake.T @ z, rtol=1e-4, atol=1e-6)
    assert all(p.requires_grad for p in game.discriminator.parameters())
    assert all(p.grad is None for p in game.discriminator.parameters())


def test_warming_up_moves_no_random_numbers(digits):
    def drawn(warm):
        trainer = train.Trainer(recipe(), digits)
        mg.manual_seed(7, 3)
        first = nn.Linear(3, 2).weight.data
        if warm:
            trainer.warm_up()
        return np.concatenate([first, nn.Linear(3, 2).weight.data])

    np.testing.assert_array_equal(drawn(warm=True), drawn(warm=False))


@pytest.mark.parametrize("when", range(4))
def test_an_interrupt_leaves_no_discriminator_frozen(when, monkeypatch):
    """In the midst of freezing two parameters: at once. Of thawing them: until the next turn."""
    game, whole = linear_game(), mg.Tensor.requires_grad
    x, z = np.ones((6, 2), np.float32), np.ones((6, 3), np.float32)
    countdown = iter(range(when, -9, -1))

    def interrupted(p, value):
        if next(countdown) == 0:
            raise KeyboardInterrupt
        whole.fset(p, value)

    monkeypatch.setattr(mg.Tensor, "requires_grad", property(whole.fget, interrupted))
    with pytest.raises(KeyboardInterrupt):
        game.generator_turn(z)
    monkeypatch.undo()
    assert when >= 2 or all(p.requires_grad for p in game.discriminator.parameters())
    if when % 2:
        game.generator_turn(z)
    else:
        assert all(g is not None for g in game.discriminator_turn(x, z).grads)
    assert all(p.requires_grad for p in game.discriminator.parameters())


def test_the_penalty_is_added_to_the_loss_times_its_factor():
    game = linear_game("r1", penalty_weight=4.0)
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(6, 2)).astype("f"), rng.normal(size=(6, 3)).astype("f")
    w = game.discriminator[0].weight.data
    without = float(game.discriminator_turn(x, z, penalty_factor=0).loss)
    with_it = float(game.discriminator_turn(x, z, penalty_factor=3).loss)
    assert with_it - without == pytest.approx(3 * 0.5 * 4.0 * float((w * w).sum()), rel=1e-4)


def test_what_the_user_froze_stays_frozen_and_as_it_was():
    game = linear_game()
    game.discriminator[0].bias.requires_grad = False
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(6, 2)).astype("f"), rng.normal(size=(6, 3)).astype("f")
    turn = game.discriminator_turn(x, z)
    assert turn.grads[0].shape == (1, 2) and turn.grads[1] is None
    game.generator_turn(z)
    assert [p.requires_grad for p in game.discriminator.parameters()] == [True, False]


def test_a_penalty_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"penalty must be one of none, wgan-gp.*'typo'"):
        linear_game("typo")


def test_sampling_leaves_running_averages_alone():
    from minigan.sample import Sampler

    mg.manual_seed(0)
    net = nn.Sequential(nn.Linear(100, 784), nn.BatchNorm1d(784), nn.Tanh(), nn.Reshape(1, 28, 28))
    before = net.state_dict()
    sampler = Sampler(recipe(), net, "cpu")
    sampler.samples(3, seed=0)
    assert all(np.array_equal(before[k], v) for k, v in net.state_dict().items())
    assert net.training


def test_average_follows_the_weights():
    net = nn.Linear(1, 1)
    average = gan.Average(net, decay=0.5)
    net.weight.data[...] = 1.0
    average.net.weight.data[...] = 0.0
    average.update(net, 1000)
    assert average.net.weight.data.item() == pytest.approx(0.5)
    average.update(net, 1000)
    assert average.net.weight.data.item() == pytest.approx(0.75)
    average.net.weight.data[...] = 0.0
    average.update(net, 0)  # early on, most of the new weight is taken: 1 - 1/10
    assert average.net.weight.data.item() == pytest.approx(0.9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(bad):
    fine = [np.ones((3, 3), np.float32), np.full(4, 3e38, np.float32)]  # the sum overflows
    with np.errstate(over="ignore"):
        assert gan.all_finite(fine)
        fine[0][1, 1] = bad
        assert not gan.all_finite(fine)


# ---------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.0, "optimizer": "rmsprop", "loss": "wasserstein", "clip_weights": 0.01},
        {"loss": "hinge", "n_critic": 2, "decay": "cosine", "clip_grad_norm": 1.0},
        {"loss": "relativistic-average", "penalty": "r1", "penalty_every": 2, "decay": "linear"},
        {"loss": "wasserstein", "penalty": "wgan-gp", "optimizer": "adamw"},
        {"penalty": "dragan", "optimizer": "sgd"},
        {"penalty": "r2", "latent": "uniform"},
        {"loss": "bce-eps", "real_target": 0.9},
    ],
)
@pytest.mark.parametrize("name", ["mnist-gan", "mnist-cgan"])
def test_resume_is_bit_equal(digits, name, changes):
    r = recipe(name, **changes)
    whole = train.Trainer(r, digits)
    for _ in range(6):
        whole.advance()
    first = train.Trainer(r, digits)
    for _ in range(3):
        first.advance()
    resumed = train.Trainer(r, digits)
    resumed.restore(copy.deepcopy(first.checkpoint()))
    for _ in range(3):
        resumed.advance()
    assert bits(whole) == bits(resumed)
    assert whole.averages() == resumed.averages()
    assert bits(first) != bits(resumed)


def test_dcgan_trains_and_resumes(digits):
    r = recipe("mnist-dcgan", batch=4)
    whole = train.Trainer(r, digits)
    for _ in range(3):
        whole.advance()
        if whole.step == 2:
            saved = copy.deepcopy(whole.checkpoint())
    resumed = train.Trainer(r, digits)
    resumed.restore(saved)
    resumed.advance()
    assert bits(whole) == bits(resumed)


def test_seeds_differ_and_repeat(digits):
    trainers = [train.Trainer(recipe(seed=s), digits) for s in (0, 0, 1)]
    for t in trainers:
        t.advance()
    assert bits(trainers[0]) == bits(trainers[1])
    assert bits(trainers[0]) != bits(trainers[2])


def test_the_discriminator_learns_to_tell(digits):
    t = train.Trainer(recipe(batch=64), digits)
    for _ in range(60):
        t.advance()
    metrics = t.averages()
    assert metrics["accuracy_real"] > 0.9
    assert metrics["d_real"] > metrics["d_fake"]


def test_restore_refuses_what_does_not_fit(digits):
    t = train.Trainer(recipe(), digits)
    other = train.Trainer(recipe("mnist-cgan"), digits)
    with pytest.raises(RunError, match="of mnist-cgan, not of mnist-gan"):
        t.restore(other.checkpoint())
    smaller = train.Trainer(recipe(latent_dim=7), digits)
    with pytest.raises(RunError, match="does not fit the recipe: generator"):
        t.restore(smaller.checkpoint())
    changed = dataclasses.replace(digits, images=255 - digits.images)
    with pytest.raises(RunError, match="not the data"):
        train.Trainer(recipe(), changed).restore(t.checkpoint())


def test_data_that_does_not_fit_is_refused(digits):
    wide = dataclasses.replace(digits, images=np.zeros((10_000, 3, 28, 28), np.uint8))
    with pytest.raises(data.DataError, match="28×28 RGB, but mnist-gan takes 28×28 grey"):
        train.Trainer(recipe(), wide)
    unlabelled = dataclasses.replace(digits, labels=None, classes=None)
    with pytest.raises(data.DataError, match="needs labels of 10 classes"):
        train.Trainer(recipe("mnist-cgan"), unlabelled)


def test_samples_depend_on_seed_and_index_alone(digits):
    r = recipe("mnist-dcgan", batch=4)
    s = train.Trainer(r, digits).sampler()
    many = s.images(s.latents(130, seed=5))
    few = s.images(s.latents(3, seed=5))
    assert many.dtype == np.uint8 and many.shape == (130, 1, 28, 28)
    # batch norm uses the batch's statistics, and the batch of 128 is the same
    assert np.array_equal(s.latents(130, 5)[:3], s.latents(3, 5))
    assert few.shape == (3, 1, 28, 28)
    assert not np.array_equal(many[:3], s.images(s.latents(3, seed=6)))


# ------------------------------------------------------------------------------- the run's folder


def test_fit_leaves_what_it_says(digits, tmp_path):
    r = recipe(keep_checkpoints=2)
    run = new_run(tmp_path / "run", r)
    assert loop.fit(train.Trainer(r, digits), run)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [
        "step-00000004.safetensors", "step-00000006.safetensors",
    ]  # fmt: skip
    assert sorted(p.name for p in run.samples.iterdir()) == [
        "00000000.png", "00000003.png", "00000006.png",
    ]  # fmt: skip
    assert [record["step"] for record in run.log()] == [2, 4, 6]
    assert {"d_loss", "g_loss", "d_real", "d_fake", "images_per_second"} <= run.log()[0].keys()
    assert (run.path / "reals.png").exists() and (run.path / "progress.gif").exists()
    assert {"numpy", "blas", "cpu", "threads"} <= json.loads(
        (run.path / "environment.json").read_text()
    ).keys()
    assert run.recipe() == r


def files(run):
    """CRC-32 of everything but what tells the time."""
    kept = {
        p.relative_to(run.path).as_posix(): zlib.crc32(p.read_bytes())
        for p in run.path.rglob("*")
        if p.is_file() and p.name != "log.jsonl"
    }
    log = [{k: v for k, v in r.items() if k != "images_per_second"} for r in run.log()]
    return kept, log


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(digits, tmp_path, stop_at):
    r = recipe()
    whole = new_run(tmp_path / "whole", r)
    loop.fit(train.Trainer(r, digits), whole)

    run = new_run(tmp_path / "run", r)
    t = train.Trainer(r, digits)
    assert not loop.fit(t, run, should_stop=lambda: t.step == stop_at)
    resumed = train.Trainer(run.recipe(), digits)
    path, content, passed_over = RunFolder.open(run.path).newest_checkpoint()
    assert not passed_over and path.name == f"step-{stop_at:08d}.safetensors"
    resumed.restore(content)
    run.rewind(resumed.step)
    assert loop.fit(resumed, run)
    (kept, log), (whole_kept, whole_log) = files(run), files(whole)
    assert log == whole_log
    last = "checkpoints/step-00000006.safetensors"
    assert kept[last] == whole_kept[last]
    assert {k: v for k, v in kept.items() if "samples" in k} == {
        k: v for k, v in whole_kept.items() if "samples" in k
    }


def test_a_damaged_checkpoint_is_passed_over(digits, tmp_path):
    r = recipe()
    run = new_run(tmp_path / "run", r)
    loop.fit(train.Trainer(r, digits), run)
    newest = run.checkpoints / "step-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    path, content, reasons = run.newest_checkpoint()
    assert path.name == "step-00000004.safetensors" and content.state["step"] == 4
    assert len(reasons) == 1 and "step-00000006" in reasons[0]


def test_reals_and_samples_are_written_by_the_sets_range(digits, tmp_path):
    from PIL import Image

    r = recipe()
    run = new_run(tmp_path / "run", r)
    t = train.Trainer(r, digits)
    loop.fit(t, run)
    with Image.open(run.path / "reals.png") as image:
        drawn = np.asarray(image)
    assert np.array_equal(drawn[2:30, 2:30], digits.images[t.batches.indices_at(0)[0], 0])
    with pytest.raises(data.DataError, match=r"lie in \(0.0, 1.0\)"):
        train.Trainer(r, dataclasses.replace(digits, value_range=(0.0, 1.0)))


def test_a_run_is_never_overwritten(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    r = recipe()
    paths = [new_run(None, r).path for _ in range(3)]
    assert [str(p) for p in paths] == ["runs/0001-test", "runs/0002-test", "runs/0003-test"]
    with pytest.raises(RunError, match="not empty"):
        new_run(paths[0], r)
    assert RunFolder.latest("test").path == paths[2]
    with pytest.raises(RunError, match="no run of mnist-gan"):
        RunFolder.latest("mnist-gan")


def test_rewind_forgets_what_came_after(digits, tmp_path):
    r = recipe()
    run = new_run(tmp_path / "run", r)
    loop.fit(train.Trainer(r, digits), run)
    with run.log_path.open("a") as file:
        file.write('{"step": 8, "d_lo')  # a line that a kill cut short
    run.rewind(4)
    assert [record["step"] for record in run.log()] == [2, 4]
    assert sorted(p.stem for p in run.samples.iterdir()) == ["00000000", "00000003"]


# ------------------------------------------------------------------------------------ NaN, infinity


class Breaking(nn.Module):
    """A discriminator that takes log(-1) from step `since` on, once for each entry of `times`."""

    def __init__(self, net, trainer, steps):
        self.net, self.trainer, self.steps = net, [trainer], steps

    def forward(self, x):
        y = self.net(x)
        t = self.trainer[0]
        return y + ops.log(y * 0 - 1) if (t.step, t.rollbacks) in self.steps else y


def breaking_trainer(digits, steps, **changes):
    r = recipe(**changes)
    t = train.Trainer(r, digits)
    t.game.discriminator = Breaking(t.discriminator, t, steps)
    return t


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_stops_before_it_spreads_and_names_the_first_op(digits):
    t = breaking_trainer(digits, {(2, 0)})
    t.advance()
    t.advance()
    before = bits(t)
    with pytest.raises(train.NonFinite) as caught:
        t.advance()
    assert (caught.value.step, caught.value.net, caught.value.op) == (2, "discriminator", "log")
    assert bits(t) == before


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_skip_leaves_the_update_out_and_goes_on(digits):
    t = breaking_trainer(digits, {(2, 0)})
    t.advance()
    t.advance()
    before = t.discriminator.state_dict()["1.weight"]
    t.advance("skip")
    assert np.array_equal(before, t.discriminator.state_dict()["1.weight"]) and t.step == 3
    t.advance("skip")
    assert not np.array_equal(before, t.discriminator.state_dict()["1.weight"])
    assert all(np.isfinite(p.data).all() for p in t.discriminator.parameters())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_means_are_over_the_turns_that_were_played(digits):
    t = breaking_trainer(digits, {(s, 0) for s in range(1, 9)}, penalty="r1", penalty_every=3)
    t.advance("skip")
    first = {k: total / n for k, (total, n) in t.sums.items()}
    for _ in range(5):
        t.advance("skip")
    means = t.averages()
    assert means["d_loss"] == pytest.approx(first["d_loss"])
    assert means["penalty"] == pytest.approx(first["penalty"])
    assert t.averages() == {}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_weights_that_diverge_are_never_saved(digits, tmp_path):
    r = recipe(lr_g=1e38)
    run = new_run(tmp_path / "run", r)
    with pytest.raises(train.NonFinite):
        loop.fit(train.Trainer(r, digits), run)
    _, content, _ = run.newest_checkpoint()
    assert all(np.isfinite(a).all() for a in content.tensors.values())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_rollback_goes_back_and_draws_other_numbers(digits, tmp_path):
    t = breaking_trainer(digits, {(5, 0)})
    run = new_run(tmp_path / "run", t.recipe)
    assert loop.fit(t, run, on_nan="rollback")
    assert t.rollbacks == 1 and t.step == 6
    assert [record["step"] for record in run.log()] == [2, 4, 6]
    plain = train.Trainer(t.recipe, digits)
    for _ in range(6):
        plain.advance()
    assert bits(plain) != bits(t)  # another latent after the rollback


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_rollback_gives_up(digits, tmp_path):
    t = breaking_trainer(digits, {(3, k) for k in range(10)})
    with pytest.raises(train.NonFinite):
        loop.fit(t, new_run(tmp_path / "run", t.recipe), on_nan="rollback")
