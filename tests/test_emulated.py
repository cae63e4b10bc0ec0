"What is done on a GPU, as far as a CPU can tell: CUDA graphs on an emulated machine, and the first stage of the compiler."
import logging
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
import torch.nn.attention.flex_attention as flex
from torch._dynamo.utils import counters

import imgtx_nb.attention as attention
import imgtx_nb.cached as cached
from emulation import ELSEWHERE, HERE, emulated_cuda
from imgtx_nb.attention import FlexAttention, dense_attention, prepare, tiles
from imgtx_nb.cached import cache_plan
from imgtx_nb.config import RunConfig
from imgtx_nb.masks import first_keys, local_1d, local_2d, non_local
from imgtx_nb.pixelcnnpp import PixelCNNpp
from imgtx_nb.training import Trainer, make_accelerator
from imgtx_nb.transformer import ImageTransformer

KINDS = ("transformer", "rotary", "pixelcnnpp")
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


def model_of(kind, size, **settings):
    "A small model with every parameter shaken."
    torch.manual_seed(0)
    if kind == "pixelcnnpp": model = PixelCNNpp((3, *size), **dict(n_resnet=1, n_filters=8, dropout=0.) | settings)
    else:
        positions = "rotary" if kind == "rotary" else "sinusoidal"
        small = dict(n_layers=2, d_model=32, n_heads=2, d_ff=32, dropout=0., positions=positions)
        model = ImageTransformer((3, *size), local_2d(2), **small | settings)
    for p in model.parameters(): p.data.add_(.1 * torch.randn_like(p))
    return model.eval()


def pictures_and_params(model, batch_size=2):
    "Random pixels [B, H * W, 3], and what `forward` says of each."
    images = torch.randint(0, 256, (batch_size, *model.image_shape), dtype=torch.uint8)
    with torch.no_grad(): return images.flatten(2).transpose(1, 2), model(images).flatten(1, 2)


def grown(decoder, pixels, start=None):
    "What a decoder says of every pixel after `start`, of all without it."
    given = [None, *pixels.unbind(1)[:-1]] if start is None else pixels[:, start:-1].unbind(1)
    return torch.stack([decoder.step(pixel) for pixel in given], 1)


# Decoders

@pytest.mark.parametrize("size", [(12, 9), (9, 16), (11, 18)])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_agree_with_forward(kind, size, monkeypatch):
    model = model_of(kind, size)
    pixels, expected = pictures_and_params(model)
    with emulated_cuda(monkeypatch) as machine:
        got = grown(model.decoder(2), pixels)
        n_graphs, n_replays = len(machine.graphs), sum(graph.n_replays for graph in machine.graphs)
        filled = model.decoder(2)
        filled.fill(pixels[:, :size[1] + 2])
        later = grown(filled, pixels, size[1] + 2)
    assert torch.allclose(got, expected, atol=1e-4) and torch.allclose(later, expected[:, size[1] + 3:], atol=1e-4)
    assert n_graphs == (20 if kind == "pixelcnnpp" else 1)
    assert n_replays == size[0] * size[1] - 1 - n_graphs # but the first step, and the first of every kind


@pytest.mark.parametrize("kind", KINDS)
def test_decoders_do_not_disturb_each_other(kind, monkeypatch):
    model = model_of(kind, (12, 6))
    (pixels, expected), (others, of_others) = pictures_and_params(model), pictures_and_params(model)
    with emulated_cuda(monkeypatch):
        one, two = model.decoder(2), model.decoder(2)
        steps = [(one.step(a), two.step(b)) for a, b in zip((None, *pixels.unbind(1)[:-1]), (None, *others.unbind(1)[:-1]))]
    for got, right in zip(map(torch.stack, zip(*steps)), (expected, of_others)): assert torch.allclose(got.transpose(0, 1), right, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_on_the_device_of_the_model(kind, monkeypatch):
    model = model_of(kind, (12, 6))
    pixels, _ = pictures_and_params(model)
    with emulated_cuda(monkeypatch) as machine:
        usual = machine.current_stream(HERE)
        grown(model.decoder(2), pixels)
        assert machine.recorded_on and {*machine.recorded_on} == {HERE}
        assert machine.device == ELSEWHERE and machine.current_stream(HERE) is usual
        assert all(usual in graph.stream.after and graph.stream in usual.after for graph in machine.graphs)


@pytest.mark.parametrize("fails_at", [0, 30, 120])
@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_can_be_recorded_steps_are_right(kind, fails_at, monkeypatch):
    model = model_of(kind, (12, 6))
    pixels, expected = pictures_and_params(model)
    if kind == "transformer": fails_at //= 2
    with emulated_cuda(monkeypatch) as machine, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usual, machine.fails_at = machine.current_stream(HERE), fails_at
        got = grown(model.decoder(2), pixels)
        assert machine.current_stream(HERE) is usual and machine.device == ELSEWHERE and not machine.graphs
    assert torch.allclose(got, expected, atol=1e-4)
    (warning,) = caught
    assert "not permitted when stream is capturing" in str(warning.message) and "sampling goes on without" in str(warning.message)


def test_after_some_graphs_a_recording_may_fail(monkeypatch):
    model = model_of("pixelcnnpp", (12, 6))
    pixels, expected = pictures_and_params(model)
    with emulated_cuda(monkeypatch) as machine, pytest.warns(UserWarning, match="could not be recorded"):
        decoder, got = model.decoder(2), []
        for t, pixel in enumerate((None, *pixels.unbind(1)[:-1])):
            if t == 31: machine.fails_at = 0
            got.append(decoder.step(pixel))
        assert 0 < sum(graph.n_replays for graph in machine.graphs) < 31
    assert torch.allclose(torch.stack(got, 1), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_in_double_precision(kind, monkeypatch):
    model = model_of(kind, (9, 6)).double()
    pixels, expected = pictures_and_params(model)
    with emulated_cuda(monkeypatch): got = grown(model.decoder(2), pixels)
    assert got.dtype == torch.float64 and torch.allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize("condition", ["label", "low_res"])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_know_the_condition_of_their_row(kind, condition, monkeypatch):
    model = model_of(kind, (12, 8), condition=condition)
    torch.manual_seed(1)
    images, labels = torch.randint(0, 256, (2, 3, 12, 8), dtype=torch.uint8), torch.tensor([7, 2])
    told, pixels = model.observed(images, labels), images.flatten(2).transpose(1, 2).long()
    with torch.no_grad(): expected = model(images, told).flatten(1, 2)
    with emulated_cuda(monkeypatch): got = grown(model.decoder(2, told), pixels)
    assert torch.allclose(got, expected, atol=1e-4)


# Steps of training

SMALL = dict(scale="tiny", n_layers=2, d_model=16, n_heads=2, d_ff=16, kernel_size=2, batch_size=4, precision="float32", dropout=0.)
NOISE = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def learned(monkeypatch=None, fails_at=None, **settings):
    "Losses and weights after eight steps, and on an emulated GPU its graphs, and the warnings."
    config = RunConfig(**SMALL | settings)
    with emulated_cuda(monkeypatch) if monkeypatch else nullcontext() as machine, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if machine: machine.fails_at = fails_at
        trainer = Trainer(config, NOISE, make_accelerator(config))
        losses = torch.stack([trainer.step(step) for step in range(8)])
    weights = [p.detach().clone() for p in trainer.scored.parameters()]
    return losses, weights, machine and machine.graphs, [str(w.message) for w in caught]


RECIPES = pytest.mark.parametrize("settings", [dict(optimizer="adam"), dict(optimizer="muon", ema_decay=.9), dict(recipe="today")])


@RECIPES
def test_recorded_steps_of_training_are_those_that_are_not(settings, monkeypatch):
    losses, weights, *_ = learned(**settings)
    got, got_weights, (graph,), _ = learned(monkeypatch, **settings)
    assert graph.n_replays == 5 # but the first three
    assert torch.allclose(got, losses, atol=1e-5)
    for a, b in zip(got_weights, weights): assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("fails_at", [0, 200])
def test_training_goes_on_where_no_step_can_be_recorded(fails_at, monkeypatch):
    losses, weights, *_ = learned(optimizer="muon")
    got, got_weights, graphs, said = learned(monkeypatch, fails_at, optimizer="muon")
    assert not graphs and [line for line in said if "training goes on without" in line] == said and len(said) == 1
    assert torch.allclose(got, losses, atol=1e-5)
    for a, b in zip(got_weights, weights): assert torch.allclose(a, b, atol=1e-5)


# The compiler

@contextmanager
def dynamo():
    "The first stage of the compiler alone, from a fresh start; yields a list of what it says of limits."
    said, logger, compile = [], logging.getLogger("torch._dynamo"), torch.compile
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage()) if "recompile_limit" in record.getMessage() else None
    logger.addHandler(handler)
    torch.compiler.reset(); attention._kernel.cache_clear(); attention._flex.cache_clear(); counters.clear()
    torch.compile = partial(compile, backend="eager")
    try: yield said
    finally:
        torch.compile = compile
        logger.removeHandler(handler)
        torch.compiler.reset(); attention._kernel.cache_clear(); attention._flex.cache_clear()


@pytest.fixture
def made(monkeypatch):
    "The calls of `create_block_mask`; the CPU is taken for a GPU."
    calls, create = [], flex.create_block_mask
    monkeypatch.setattr(flex, "create_block_mask", lambda *args, **kwargs: calls.append(args) or create(*args, **kwargs))
    monkeypatch.setattr(attention, "_is_flexible", lambda x: True)
    return calls


def test_many_schemes_stay_compiled():
    q, k, v = torch.randn(3, 3, 2, 12 * 9, 16)
    schemes = (local_2d(1), local_2d(2), local_2d(3), local_1d(8), non_local())
    with dynamo() as said, torch._dynamo.config.patch(recompile_limit=4):
        for n, scheme in enumerate(schemes, 1):
            execution = FlexAttention(scheme, 12, 9, "cpu")
            for batch_size in (1, 3):
                for training in (False, True):
                    with torch.set_grad_enabled(training): out = execution(q[:batch_size], k[:batch_size], v[:batch_size], scheme, 12, 9)
                    assert torch.allclose(out, dense_attention(q, k, v, scheme, 12, 9)[:batch_size], atol=1e-5)
            assert counters["stats"]["unique_graphs"] == 4 * n
    assert not said


def test_a_compiled_model_makes_its_block_mask_once(made):
    model = model_of("transformer", (12, 9), n_layers=3)
    pixels, expected = pictures_and_params(model)
    images = pixels.transpose(1, 2).unflatten(2, (12, 9))
    with dynamo() as said, torch.no_grad():
        compiled = torch.compile(prepare(model, 12, 9), fullgraph=True)
        for step in range(3): assert torch.allclose(compiled(images).flatten(1, 2), expected, atol=1e-4)
        assert len(made) == counters["stats"]["unique_graphs"] == 1 and not said
        assert torch.allclose(model(images).flatten(1, 2), expected, atol=1e-4) and len(made) == 1


def test_a_model_that_was_not_prepared_is_compiled_in_pieces(made):
    model = model_of("transformer", (12, 9), n_layers=3)
    pixels, expected = pictures_and_params(model)
    images = pixels.transpose(1, 2).unflatten(2, (12, 9))
    execution = lambda q, k, v, *case: attention._flex(*case, q.device)(q, k, v, *case)
    with dynamo() as said, torch.no_grad():
        compiled = torch.compile(attention.attend_with(model, execution))
        for step in range(3):
            assert torch.allclose(compiled(images).flatten(1, 2), expected, atol=1e-4)
            first = first if step else counters["stats"]["unique_graphs"]
        assert len(made) == 1 and counters["stats"]["unique_graphs"] == first and not said


def test_many_models_stay_compiled_after_a_reset():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    models = [model_of("transformer", (8, 8), n_layers=1, d_model=16 * n) for n in range(1, 6)]
    with dynamo() as said, torch.no_grad(), torch._dynamo.config.patch(recompile_limit=3):
        for model in models:
            torch.compiler.reset()
            compiled = torch.compile(attention.attend_with(model, dense_attention))
            assert torch.allclose(compiled(images), model(images), atol=1e-5)
        assert not said
        for model in models: torch.compile(model)(images)
        assert said # this is what the reset is for


# What is remembered for the life of the process

def test_what_is_first_made_in_inference_mode_can_be_trained_with(made):
    for remembered in (first_keys, tiles, cache_plan, attention._dense_mask, attention._flex): remembered.cache_clear()
    model, images = model_of("transformer", (6, 7)), torch.randint(0, 256, (2, 3, 6, 7), dtype=torch.uint8)
    with torch.inference_mode():
        model(images); model.decoder(2).step()
        q = torch.randn(1, 1, 42, 16)
        dense_attention(q, q, q, local_2d(2), 6, 7)
    plan, blocks = cache_plan(local_2d(2), 6, 7), attention._flex(local_2d(2), 6, 7, HERE).blocks
    kept = [first_keys(local_2d(2), 6, 7), plan.slot, plan.mask, attention._dense_mask(local_2d(2), 6, 7, HERE),
            *(tile.mask for tile in tiles(local_2d(2), 6, 7)), *(x for x in blocks.as_tuple() if isinstance(x, torch.Tensor))]
    assert len(kept) > 10 and not any(x.is_inference() for x in kept)
    weight = torch.ones(1, requires_grad=True)
    for x in kept: (weight * x.nan_to_num(neginf=0)).sum().backward() # a tensor of inference mode would be refused here
    model.train()(images).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
