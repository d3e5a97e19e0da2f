"""Layers against plain formulas, and what a network's owner relies on: names, state, modes."""

import numpy as np
import pytest

import minigan as mg
from minigan import nn, ops
from minigan.nn import init


def f32(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 3),
    )


# ------------------------------------------------------------------------------------------ module


def test_names_and_order_are_pytorchs():
    assert list(small_net().state_dict()) == [
        "0.weight", "0.bias",
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
        "4.weight", "4.bias",
    ]  # fmt: skip


def test_nested_modules_join_their_names_with_dots():
    class Net(nn.Module):
        def __init__(self):
            self.body = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1)))
            self.scale = nn.Parameter(np.ones(1, np.float32))

    assert [n for n, _ in Net().named_parameters()] == [
        "scale", "body.0.weight", "body.0.bias", "body.1.0.weight", "body.1.0.bias",
    ]  # fmt: skip


def test_state_dict_round_trip_is_exact_and_in_place():
    mg.manual_seed(0)
    a = small_net()
    mg.manual_seed(1)
    b = small_net()
    held = b[0].weight.data  # an optimizer's view, say
    b.load_state_dict(a.state_dict())
    x = f32(0, 5, 1, 6, 6)
    assert np.array_equal(a(mg.Tensor(x)).data, b(mg.Tensor(x)).data)
    assert b[0].weight.data is held
    assert np.array_equal(held, a[0].weight.data)


def test_state_dict_is_a_copy():
    net = nn.Linear(2, 2)
    state = net.state_dict()
    net.weight.data[...] = 7
    assert not (state["weight"] == 7).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), "0.bias is missing"),
        (lambda s: s.update(extra=np.zeros(1)), "has extra"),
        (lambda s: s.update({"0.bias": np.zeros(5)}), r"0.bias has shape \(5,\).*\(4,\)"),
    ],
)
def test_load_state_dict_names_what_does_not_fit_and_changes_nothing(change, message):
    net = small_net()
    before = net.state_dict()
    state = {k: v + 1 for k, v in before.items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        net.load_state_dict(state)
    assert all(np.array_equal(before[k], v) for k, v in net.state_dict().items())


def test_freezing_stops_gradients_and_unfreezing_brings_them_back():
    net = nn.Linear(3, 2)
    x = mg.Tensor(f32(0, 4, 3))
    net.requires_grad_(False)
    assert not net(x).requires_grad
    net.requires_grad_(True)
    net(x).sum().backward()
    assert net.weight.grad is not None


def test_printing_shows_layers_shapes_and_parameters():
    net = small_net()
    assert "-" in repr(net)  # no shapes known yet
    tracked = net[1].num_batches_tracked.item()
    text = repr(net.trace_shapes((1, 6, 6)))
    assert net[1].num_batches_tracked.item() == tracked
    assert net.training
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "output", "shape", "parameters"]
    assert "Conv2d(1 → 4, 3×3, stride 1, pad 1)" in text and "4 × 6 × 6" in text
    assert lines[2].endswith(" 40")  # 4·1·3·3 + 4
    assert lines[-1].endswith(" 483")
    assert net.parameter_count() == 40 + 8 + 144 * 3 + 3


class Tied(nn.Module):
    """One weight under two names, and one layer under two."""

    def __init__(self):
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight
        self.c = self.d = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.d(self.b(self.c(self.a(x))))


def test_tied_weights_are_one_parameter_with_two_names_in_the_state():
    net = Tied()
    assert [n for n, _ in net.named_parameters()] == ["a.weight", "c.weight", "c.bias"]
    assert [n for n, _ in net.named_buffers()] == [
        "c.running_mean", "c.running_var", "c.num_batches_tracked",
    ]  # fmt: skip
    assert len(net.modules()) == len(list(net.named_modules())) == 4
    assert len(net.parameters()) == len(net.buffers()) == 3
    assert net.parameter_count() == 9 + 6
    state = net.state_dict()
    assert {"a.weight", "b.weight", "c.bias", "d.bias", "d.running_mean"} <= state.keys()
    other = Tied()
    other.load_state_dict(state)
    assert other.a.weight is other.b.weight
    assert np.array_equal(other.a.weight.data, net.a.weight.data)
    assert repr(net).splitlines()[-1].endswith(" 15")
    x = mg.Tensor(f32(0, 5, 3))
    net(x).sum().backward()
    net.zero_grad()
    assert [p.grad for p in net.parameters()] == [None] * 3


def test_a_layer_may_stand_in_a_sequential_twice():
    relu, linear = nn.ReLU(), nn.Linear(2, 2)
    net = nn.Sequential(linear, relu, linear, relu)
    assert len(net) == 4 and len(net.parameters()) == 2
    x = f32(0, 4, 2)
    step = lambda x: np.maximum(x @ linear.weight.data.T + linear.bias.data, 0)  # noqa: E731
    np.testing.assert_allclose(net(mg.Tensor(x)).data, step(step(x)), rtol=1e-5, atol=1e-6)


def test_apply_visits_parts_before_what_they_are_in():
    seen = []
    net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU()))
    assert net.apply(lambda m: seen.append(type(m).__name__)) is net
    assert seen == ["Linear", "ReLU", "Sequential", "Sequential"]


def test_what_is_no_module_is_refused_where_it_would_hide_parameters():
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    with pytest.raises(TypeError, match="Sequential: part 0 is a list, not a Module"):
        nn.Sequential(layers)
    with pytest.raises(TypeError, match="ModuleList: part 1 is a function, not a Module"):
        nn.ModuleList([layers[0], lambda x: x])
    with pytest.raises(TypeError, match="ModuleList: takes an iterable"):
        nn.ModuleList(layers[0])
    several = nn.ModuleList(iter(layers))
    assert list(several) == layers and len(several.parameters()) == 4
    assert list(several.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert len(nn.ModuleList()) == 0
    with pytest.raises(NotImplementedError, match="call its parts"):
        several(mg.Tensor(f32(0, 1, 2)))


def test_slices_of_a_sequential_are_sequentials():
    net = small_net()
    body = net[:2]
    assert isinstance(body, nn.Sequential) and list(body) == [net[0], net[1]]
    assert body(mg.Tensor(f32(0, 2, 1, 6, 6))).shape == (2, 4, 6, 6)
    assert list(net[-1:].state_dict()) == ["0.weight", "0.bias"]
    parts = nn.ModuleList(net)
    assert isinstance(parts[1:], nn.ModuleList) and parts[1:][0] is net[1] is parts[1]


def test_forward_may_return_several_results():
    class Two(nn.Module):
        def forward(self, x):
            return x, x * 2

    two = Two()
    y, z = two(mg.Tensor(f32(0, 2, 3)))
    assert y.shape == z.shape and two.output_shape is None


def test_printing_shows_a_networks_own_parameters_beside_its_parts():
    class Scaled(nn.Module):
        def __init__(self):
            self.scale = nn.Parameter(np.ones(5, np.float32))
            self.body = nn.Linear(2, 3)

    lines = repr(nn.Sequential(Scaled())).splitlines()
    assert lines[2].split() == ["0", "Scaled", "-", "5"]
    assert lines[3].split() == ["0.body", "Linear(2", "→", "3)", "-", "9"]
    assert lines[-1].split() == ["Sequential", "14"]


def test_same_seed_same_weights():
    mg.manual_seed(3)
    a = small_net().state_dict()
    mg.manual_seed(3)
    b = small_net().state_dict()
    mg.manual_seed(4)
    c = small_net().state_dict()
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["0.weight"], c["0.weight"])


# ------------------------------------------------------------------------------------------ layers


def test_linear():
    layer = nn.Linear(3, 2)
    x = f32(0, 4, 5, 3)
    y = layer(mg.Tensor(x)).data
    expected = np.einsum("nmi,oi->nmo", x, layer.weight.data) + layer.bias.data
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_conv_and_its_transpose_are_adjoint():
    mg.manual_seed(0)
    conv = nn.Conv2d(3, 5, 4, stride=2, padding=1, bias=False)
    back = nn.ConvTranspose2d(5, 3, 4, stride=2, padding=1, bias=False)
    back.weight.data[...] = conv.weight.data
    x, g = f32(1, 2, 3, 8, 8), f32(2, 2, 5, 4, 4)
    left = (conv(mg.Tensor(x)).data * g).sum()
    right = (x * back(mg.Tensor(g)).data).sum()
    assert left == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_that_do_not_divide_are_refused(layer):
    with pytest.raises(ValueError, match="groups=2 must divide 3"):
        layer(3, 4, 3, groups=2)


def test_batch_norm_trains_on_the_batch_and_evaluates_on_the_averages():
    bn = nn.BatchNorm2d(2, momentum=0.3, eps=1e-3)
    x = 3 + 2 * f32(0, 6, 2, 5, 4)
    y = bn(mg.Tensor(x)).data
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    mean, var = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3), ddof=1)
    np.testing.assert_allclose(bn.running_mean.data, 0.3 * mean, rtol=1e-5)
    np.testing.assert_allclose(bn.running_var.data, 0.7 + 0.3 * var, rtol=1e-4)
    assert bn.num_batches_tracked.item() == 1

    bn.eval()
    one = bn(mg.Tensor(x[:1])).data
    expected = (x[:1] - bn.running_mean.data.reshape(1, 2, 1, 1)) / np.sqrt(
        bn.running_var.data.reshape(1, 2, 1, 1) + 1e-3
    )
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)
    assert bn.num_batches_tracked.item() == 1


def test_batch_norm_without_averages_uses_the_batch_in_evaluation_too():
    bn = nn.BatchNorm2d(2, affine=False, track_running_stats=False)
    x = mg.Tensor(f32(0, 6, 2, 5, 4))
    trained = bn(x).data
    assert np.array_equal(trained, bn.eval()(x).data)
    assert bn.state_dict() == {}


def test_batch_norm_eps_and_momentum_are_keyword_only():
    with pytest.raises(TypeError):
        nn.BatchNorm2d(4, 0.8)


def test_batch_norm_keeps_averages_through_double_backward():
    """The replay of the composite must not count the batch twice."""
    bn = nn.BatchNorm2d(2)
    x = mg.Tensor(f32(0, 6, 2, 3, 3), requires_grad=True)
    (g,) = mg.grad((bn(x) ** 2).sum(), [x], create_graph=True)
    mg.grad((g * g).sum(), bn.parameters())
    assert bn.num_batches_tracked.item() == 1


@pytest.mark.parametrize("shape", [(4,), (4, 3, 3, 3), (4, 3)])
def test_batch_norm_refuses_shapes_it_cannot_take(shape):
    with pytest.raises(ValueError, match="BatchNorm2d"):
        nn.BatchNorm2d(3)(mg.Tensor(f32(0, *shape)[..., None, None][..., 0]))


def test_instance_and_layer_and_pixel_norm():
    x = 2 + f32(0, 3, 4, 5, 6)
    y = nn.InstanceNorm2d(4)(mg.Tensor(x)).data
    np.testing.assert_allclose(y.mean(axis=(2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(axis=(2, 3)), 1, atol=1e-3)
    y = nn.LayerNorm((5, 6))(mg.Tensor(x)).data
    np.testing.assert_allclose(y.mean(axis=(2, 3)), 0, atol=1e-5)
    y = nn.PixelNorm()(mg.Tensor(x)).data
    np.testing.assert_allclose((y * y).mean(axis=1), 1, atol=1e-4)


def test_dropout_drops_in_training_alone_and_by_the_seed():
    layer, x = nn.Dropout(0.25), mg.Tensor(np.ones((100, 100), np.float32))
    mg.manual_seed(0, step=5)
    a = layer(x).data
    assert set(np.unique(a)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((a == 0).mean() - 0.25) < 0.02
    b = layer(x).data
    assert not np.array_equal(a, b)
    mg.manual_seed(0, step=5)
    assert np.array_equal(a, layer(x).data)
    assert np.array_equal(layer.eval()(x).data, x.data)


@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (nn.ReLU(), lambda x: np.maximum(x, 0)),
        (nn.LeakyReLU(), lambda x: np.where(x > 0, x, 0.01 * x)),
        (nn.LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
        (nn.ELU(0.7), lambda x: np.where(x > 0, x, 0.7 * (np.exp(x) - 1))),
        (nn.Tanh(), np.tanh),
        (nn.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
        (nn.Softplus(), lambda x: np.log(1 + np.exp(x))),
        (nn.Identity(), lambda x: x),
        (nn.Flatten(), lambda x: x.reshape(2, -1)),
        (nn.Reshape(6, 2), lambda x: x.reshape(2, 6, 2)),
        (nn.Reshape(), None),
    ],
)
def test_layers_without_weights(layer, formula):
    if formula is None:
        assert layer(mg.Tensor(f32(0, 4, 1, 1, 1))).shape == (4,)
        return
    x = f32(0, 2, 3, 2, 2)
    y = layer(mg.Tensor(x)).data
    np.testing.assert_allclose(y, formula(x.astype(np.float64)), rtol=1e-5, atol=1e-6)


def test_shape_layers():
    x = mg.Tensor(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4))
    assert nn.Upsample(2)(x).shape == (1, 1, 8, 8)
    assert nn.Upsample(2, "bilinear")(x).shape == (1, 1, 8, 8)
    np.testing.assert_array_equal(nn.AvgPool2d(2)(x).data[0, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(nn.MaxPool2d(2)(x).data[0, 0], [[5, 7], [13, 15]])
    assert nn.ReflectionPad2d(1)(x).data[0, 0, 0, 0] == 5


def test_embedding_looks_rows_up_and_sums_their_gradients():
    layer = nn.Embedding(4, 3)
    labels = np.array([1, 1, 3])
    y = layer(labels)
    np.testing.assert_array_equal(y.data, layer.weight.data[labels])
    y.sum().backward()
    np.testing.assert_array_equal(layer.weight.grad.data[:, 0], [0, 2, 0, 1])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, -1], "labels must be 0 to 3, not -1 to 0"),
        ([4], "labels must be 0 to 3, not 4 to 4"),
        ([1.0], "labels must be ints, not float64"),
        ([True], "labels must be ints, not bool"),
    ],
)
def test_embedding_refuses_labels_that_it_has_no_row_for(labels, words):
    for given in (labels, np.array(labels), mg.Tensor(np.array(labels))):
        with pytest.raises(ValueError, match=r"Embedding\(4 → 3\): " + words):
            nn.Embedding(4, 3)(given)


def test_embedding_of_no_labels():
    assert nn.Embedding(4, 3)(np.zeros(0, np.int64)).shape == (0, 3)


def test_upsample_by_a_pair():
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    y = nn.Upsample((3, 2))(mg.Tensor(x)).data
    np.testing.assert_array_equal(y[0, 0], np.kron(x[0, 0], np.ones((3, 2))))
    for factor in (1.5, 0, (2, 2, 2)):
        with pytest.raises(ValueError, match="Upsample: scale_factor must be one or two ints"):
            nn.Upsample(factor)


def test_kernel_size_is_one_or_two_ints():
    assert nn.Conv2d(1, 1, [2, 3]).weight.shape == (1, 1, 2, 3)
    for layer in (nn.Conv2d, nn.ConvTranspose2d):
        with pytest.raises(ValueError, match=f"{layer.__name__}: kernel_size must be"):
            layer(1, 1, (3, 3, 3))


def test_batch_norm_without_a_momentum_averages_all_batches_alike():
    bn = nn.BatchNorm1d(3, momentum=None)
    batches = [f32(seed, 8, 3) for seed in range(4)]
    for x in batches:
        bn(mg.Tensor(x))
    np.testing.assert_allclose(
        bn.running_mean.data, np.mean([x.mean(axis=0) for x in batches], axis=0), atol=1e-6
    )
    np.testing.assert_allclose(
        bn.running_var.data, np.mean([x.var(axis=0, ddof=1) for x in batches], axis=0), rtol=1e-4
    )
    assert bn.running_mean.dtype == np.float32


# ---------------------------------------------------------------------------------------- wrappers


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(3, 6, 3), (2, 3, 5, 5)),
        (lambda: nn.ConvTranspose2d(6, 3, 3), (2, 6, 5, 5)),
        (lambda: nn.Linear(7, 4), (2, 7)),
    ],
)
def test_spectral_norm_gives_the_largest_singular_value_one(layer, shape):
    mg.manual_seed(0)
    wrapped = nn.SpectralNorm(layer())
    x = mg.Tensor(f32(0, *shape))
    for _ in range(60):
        wrapped(x)
    w = wrapped.layer.weight.data
    matrix = w.swapaxes(0, 1) if isinstance(wrapped.layer, nn.ConvTranspose2d) else w
    largest = np.linalg.svd(matrix.reshape(matrix.shape[0], -1).astype(np.float64))[1][0]
    by_hand = wrapped.layer(x, wrapped.layer.weight / np.float32(largest)).data
    np.testing.assert_allclose(wrapped.eval()(x).data, by_hand, rtol=1e-3, atol=1e-4)


def test_spectral_norm_iterates_in_training_alone_and_its_vectors_are_state():
    wrapped = nn.SpectralNorm(nn.Linear(7, 4))
    assert {"u", "v"} <= wrapped.state_dict().keys()
    x = mg.Tensor(f32(0, 2, 7))
    wrapped.eval()
    u = wrapped.u.data.copy()
    wrapped.layer.weight.data += f32(5, 4, 7)
    wrapped(x)
    assert np.array_equal(u, wrapped.u.data)
    wrapped.train()(x)
    assert not np.array_equal(u, wrapped.u.data)


def test_spectral_norm_of_an_embedding():
    mg.manual_seed(0)
    wrapped = nn.SpectralNorm(nn.Embedding(5, 3)).eval()
    w = wrapped.layer.weight.data
    labels = np.array([4, 0, 4])
    largest = np.linalg.svd(w.astype(np.float64))[1][0]
    np.testing.assert_allclose(wrapped(labels).data, w[labels] / largest, rtol=1e-2)


@pytest.mark.parametrize("wrapper", [nn.SpectralNorm, nn.EqualizedLR])
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.BatchNorm2d(3), r"BatchNorm2d\(3\)"),
        (nn.ReLU(), "ReLU"),
        (nn.Sequential(nn.Linear(2, 2)), "Sequential"),
        (nn.LayerNorm((2, 2)), "LayerNorm"),
        (np.tanh, "ufunc"),
    ],
)
def test_wrappers_refuse_what_has_no_weight_matrix(wrapper, layer, name):
    with pytest.raises(TypeError, match=f"{wrapper.__name__}: {name}.* has no weight matrix"):
        wrapper(layer)


def test_equalized_lr_refuses_an_embedding():
    with pytest.raises(TypeError, match="EqualizedLR: an Embedding sums no inputs"):
        nn.EqualizedLR(nn.Embedding(3, 2))


def test_equalized_lr_scales_unit_weights():
    mg.manual_seed(0)
    wrapped = nn.EqualizedLR(nn.Conv2d(8, 64, 3), gain=2**0.5)
    w = wrapped.layer.weight.data
    assert abs(w.std() - 1) < 0.05
    x = f32(0, 2, 8, 5, 5)
    expected = ops.conv2d(x, w * np.float32((2 / (8 * 9)) ** 0.5))
    np.testing.assert_allclose(wrapped(mg.Tensor(x)).data, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------ initialisers


def draw(initialiser, shape, seed=0):
    from minigan.array import Stream

    return initialiser(shape, Stream(seed, "test"))


@pytest.mark.parametrize(
    ("initialiser", "bound", "std"),
    [
        (init.uniform(-0.3, 0.3), 0.3, 0.3 / 3**0.5),
        (init.kaiming_uniform(), 1 / 144**0.5, 1 / (3 * 144) ** 0.5),
        (init.kaiming_uniform(0), (6 / 144) ** 0.5, (2 / 144) ** 0.5),
        (init.xavier_uniform(), (6 / (144 + 288)) ** 0.5, (2 / (144 + 288)) ** 0.5),
        (init.kaiming_normal(0.2), None, (2 / 1.04 / 144) ** 0.5),
        (init.normal(0.02), None, 0.02),
    ],
)
def test_initialisers_have_their_bounds_and_spread(initialiser, bound, std):
    w = draw(initialiser, (32, 16, 3, 3))
    assert w.dtype == np.float32
    assert w.std() == pytest.approx(std, rel=0.05)
    if bound:
        assert 0.98 * bound < np.abs(w).max() <= bound


def test_orthogonal_rows():
    w = draw(init.orthogonal(2.0), (4, 3, 2, 2)).reshape(4, -1)
    np.testing.assert_allclose(w @ w.T, 4 * np.eye(4), atol=1e-5)


def test_schemes_are_the_libraries_defaults():
    mg.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, init="ocaml-torch")
    assert not conv.bias.data.any()
    assert np.abs(conv.weight.data).max() <= 1 / 12
    deconv = nn.ConvTranspose2d(16, 32, 3, init="ocaml-torch")
    assert deconv.weight.data.std() == pytest.approx(0.1, rel=0.05)
    bn = nn.BatchNorm2d(500, init="ocaml-torch")
    assert 0 <= bn.weight.data.min() and 0.9 < bn.weight.data.max() <= 1
    linear = nn.Linear(100, 50, init="ocaml-torch")
    assert 0.05 < np.abs(linear.bias.data).max() <= 0.1
    conv = nn.Conv2d(16, 32, 3)
    assert conv.bias.data.any() and np.abs(conv.bias.data).max() <= 1 / 12
    with pytest.raises(ValueError, match=r"unknown init scheme 'x': choose one of pytorch"):
        nn.Linear(1, 1, init="x")
