"What must hold for every shape, scheme, mixture and value, tried on ones that hypothesis chooses."
import json
from dataclasses import asdict, fields

import papermill
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtx_nb.attention import SelfAttention, TiledAttention, dense_attention
from imgtx_nb.cached import CachedAttention
from imgtx_nb.config import RunConfig, config_from
from imgtx_nb.logistic_mixture import LIKELIHOODS, DiscretizedLogisticMixture, params_per_pixel
from imgtx_nb.masks import SCHEMES, local_1d, local_2d, non_local
from imgtx_nb.pixelcnnpp import PixelCNNpp
from imgtx_nb.transformer import ImageTransformer

settings.register_profile("project", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("project")
torch.set_num_threads(1)

sizes = st.tuples(st.integers(2, 9), st.integers(2, 9))
schemes = st.one_of(st.builds(non_local), st.builds(local_1d, st.integers(1, 40)), st.builds(local_2d, st.integers(1, 9)))
seeds = st.integers(0, 2**31)


def model_of(kind, size, seed):
    "A small model with every parameter shaken; with an odd seed, a Transformer has rotary positions."
    positions = "rotary" if seed % 2 else "sinusoidal"
    if kind == "pixelcnnpp": model = PixelCNNpp((3, *size), n_resnet=1, n_filters=4)
    else: model = ImageTransformer((3, *size), kind, n_layers=2, d_model=16, n_heads=2, d_ff=16, positions=positions)
    for p in model.parameters(): p.data.add_(.1 * torch.randn_like(p))
    return model.eval()


@given(st.one_of(schemes, st.just("pixelcnnpp")), sizes, seeds, st.data())
def test_no_parameter_depends_on_its_pixel_or_a_later_one(kind, size, seed, data):
    torch.manual_seed(seed)
    model, images = model_of(kind, size, seed), torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    t = data.draw(st.integers(0, size[0] * size[1] - 1))
    changed = images.clone()
    changed.flatten(2)[:, :, t:] = torch.randint(0, 256, changed.flatten(2)[:, :, t:].shape, dtype=torch.uint8)
    with torch.no_grad(): assert (model(images).flatten(1, 2)[:, :t + 1] == model(changed).flatten(1, 2)[:, :t + 1]).all()


@given(st.one_of(schemes, st.just("pixelcnnpp")), sizes, seeds)
def test_decoder_and_forward_agree(kind, size, seed):
    torch.manual_seed(seed)
    model, images = model_of(kind, size, seed), torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad(): expected = model(images).flatten(1, 2)
    decoder = model.decoder(2)
    for t, pixel in enumerate([None, *images.flatten(2).unbind(2)][:-1]): assert torch.allclose(decoder.step(pixel), expected[:, t], atol=1e-4)


@given(schemes, sizes, seeds, st.booleans())
def test_executions_of_attention_agree(scheme, size, seed, rotary):
    torch.manual_seed(seed)
    layer, x = SelfAttention(16, 2, scheme, rotary), torch.randn(2, size[0] * size[1], 16)
    q, k, v = layer.project(x, size)
    tiled = TiledAttention.apply(q, k, v, scheme, *size)
    assert torch.allclose(tiled, dense_attention(q, k, v, scheme, *size), atol=1e-5)
    with torch.no_grad():
        cached = CachedAttention(layer, 2, *size)
        steps = torch.stack([cached.step(x[:, t], t) for t in range(x.shape[1])], 1)
        assert torch.allclose(steps, layer(x, *size), atol=1e-5)


@given(st.integers(1, 12), st.floats(-3, 5), st.floats(-12, 8), st.tuples(*[st.integers(0, 255)] * 3), seeds)
def test_mixtures_sum_to_one(n_mixtures, mean, log_scale, pixel, seed):
    torch.manual_seed(seed)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        params = torch.randn(10 * n_mixtures, dtype=dtype)
        channels = params[n_mixtures:].view(3, 3, n_mixtures)
        channels[:, 0], channels[:, 1] = mean, log_scale
        mixture = DiscretizedLogisticMixture(params)
        for channel in range(3): assert abs(mixture.pmf(channel, torch.tensor(pixel)).sum() - 1) < tolerance
        assert mixture.log_prob(torch.tensor(pixel)) <= 1e-5


@given(st.sampled_from([*LIKELIHOODS]), st.integers(1, 5), st.floats(.1, 3), seeds)
def test_samples_are_bytes_that_the_likelihood_knows(likelihood, n_mixtures, temperature, seed):
    torch.manual_seed(seed)
    distribution = LIKELIHOODS[likelihood](torch.randn(6, params_per_pixel(likelihood, n_mixtures)))
    pixels = distribution.tempered(temperature).sample()
    assert pixels.shape == (6, 3) and 0 <= pixels.min() and pixels.max() <= 255 and distribution.log_prob(pixels).isfinite().all()


values = {"scale": st.sampled_from(["paper", "laptop", "tiny"]), "max_steps": st.integers(1, 10**6), "batch_size": st.integers(1, 512),
          "learning_rate": st.floats(1e-6, 1), "dropout": st.floats(0, .9), "seed": st.integers(0, 1000), "horizontal_flips": st.booleans(),
          "compile": st.none() | st.booleans(), "run_name": st.none() | st.from_regex(r"[a-z][a-z0-9_.-]{0,20}", fullmatch=True)}
kinds = st.one_of(st.fixed_dictionaries({"model": st.just("pixelcnnpp"), "n_filters": st.integers(1, 200)}),
                  st.fixed_dictionaries({"attention": st.sampled_from([*SCHEMES]), "n_layers": st.integers(1, 12)}),
                  st.fixed_dictionaries({"likelihood": st.just("softmax"), "kernel_size": st.integers(1, 20)}))


@given(st.fixed_dictionaries({}, optional=values), kinds)
def test_configs_survive_json_and_papermill(some, kind):
    config = RunConfig(**some, **kind)
    assert config_from(json.loads(json.dumps(asdict(config)))) == config
    code = papermill.translators.PythonTranslator.codify({k: v for k, v in asdict(config).items() if v is not None})
    scope = {}
    exec(code, scope)
    assert RunConfig(**{f.name: scope[f.name] for f in fields(RunConfig) if f.name in scope}) == config
