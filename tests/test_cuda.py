"What only a GPU can show: `pytest tests/test_cuda.py` on a machine that has one. A second GPU is used if there is one."
import copy
import json
import logging
import warnings

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention as flex

import imgtx_nb.attention as attention
from imgtx_nb.attention import attend, attend_with, dense_attention
from imgtx_nb.config import RunConfig, build_model
from imgtx_nb.masks import local_1d, local_2d, non_local
from imgtx_nb.runs import load_run
from imgtx_nb.sampling import complete, sample
from imgtx_nb.training import Trainer, evaluate, fit, make_accelerator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
kinds = pytest.mark.parametrize("kind", ("transformer", "rotary", "pixelcnnpp", "neighbourhood"))
recorded = pytest.mark.parametrize("kind", ("transformer", "rotary", "pixelcnnpp")) # whose steps are CUDA graphs

SCHEMES = {"local_2d": local_2d(3), "local_1d": local_1d(40), "non_local": non_local()}
ATTENTION = {"local_2d": dict(kernel_size=3), "local_1d": dict(block_length=40), "non_local": {}}
SMALL = dict(n_layers=2, d_model=48, n_heads=2, d_ff=64, kernel_size=3)
KINDS = {"transformer": SMALL, "rotary": SMALL | dict(recipe="today", positions="rotary"),
         "pixelcnnpp": dict(model="pixelcnnpp", n_resnet=1, n_filters=16), "neighbourhood": dict(model="neighbourhood", n_features=16)}
FAILED = "A step of sampling could not be recorded"
IMAGES = torch.randint(0, 256, (40, 3, 16, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def config(kind="transformer", **settings):
    return RunConfig(**dict(scale="tiny", batch_size=8, **KINDS[kind]) | settings)


def model_of(kind, device="cuda", **settings):
    "A small model with every parameter shaken."
    torch.manual_seed(0)
    model = build_model(config(kind, **settings), IMAGES.shape[1:])
    model.initialize(IMAGES)
    for p in model.parameters(): p.data.add_(.05 * torch.randn_like(p))
    return model.to(device).eval()


def trainer_of(config):
    return Trainer(config, IMAGES, make_accelerator(config))


def grown(decoder, device="cuda"):
    "What a decoder says of every pixel of two images."
    return torch.stack([decoder.step(pixel) for pixel in (None, *IMAGES[:2].flatten(2).to(device).unbind(2)[:-1])], 1)


@pytest.fixture
def said():
    "What the compiler says of its limit, which is lower here than usual."
    lines, logger, handler = [], logging.getLogger("torch._dynamo"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage()) if "recompile_limit" in record.getMessage() else None
    logger.addHandler(handler)
    with torch._dynamo.config.patch(recompile_limit=4): yield lines
    logger.removeHandler(handler)


# Attention

@pytest.mark.parametrize("d", [12, 24]) # 12 is too few for FlexAttention
@pytest.mark.parametrize("size", [(16, 12), (32, 32), (9, 40)])
@pytest.mark.parametrize("name", SCHEMES)
def test_executions_and_their_gradients_agree(name, size, d):
    torch.manual_seed(0)
    q, k, v, weights = torch.randn(4, 2, 3, size[0] * size[1], d, device="cuda").requires_grad_().unbind()
    results = []
    for execution in (attend, dense_attention):
        out = execution(q, k, v, SCHEMES[name], *size)
        results.append((out, *torch.autograd.grad((out * weights.detach()).sum(), (q, k, v))))
    for got, expected in zip(*results): assert torch.allclose(got, expected, atol=1e-3, rtol=1e-3)


def test_block_masks_are_made_once_and_no_limit_is_met(said, monkeypatch):
    made, create = [], flex.create_block_mask
    monkeypatch.setattr(flex, "create_block_mask", lambda *args, **kwargs: made.append(args) or create(*args, **kwargs))
    attention._flex.cache_clear()
    for n, (name, size) in enumerate(ATTENTION.items(), 1):
        trainer = trainer_of(config(**{"attention": name, "kernel_size": None} | size))
        losses = [trainer.step(step).item() for step in range(3)]
        evaluate(trainer.scored, IMAGES, batch_size=16) # the last batch is smaller
        assert len(made) == n and np.isfinite(losses).all()
    assert not said


def test_a_model_scored_in_inference_mode_can_be_trained():
    attention._flex.cache_clear()
    model, images = model_of("transformer"), IMAGES[:4].cuda()
    with torch.inference_mode(): model(images)
    model.train()(images).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# Training and scoring

@kinds
def test_a_training_step_in_bfloat16_is_finite(kind):
    trainer = trainer_of(config(kind, precision="bfloat16"))
    assert all(trainer.step(step).isfinite() for step in range(3))
    assert all(p.isfinite().all() for p in trainer.raw.parameters())


@kinds
def test_scores_are_those_of_the_cpu(kind):
    on_gpu, on_cpu = model_of(kind), model_of(kind, "cpu")
    assert abs(evaluate(on_gpu, IMAGES) - evaluate(on_cpu, IMAGES)) < 1e-4


@pytest.mark.parametrize("dropout", [0., .1])
def test_a_step_waits_for_nothing(dropout):
    trainer = trainer_of(config(ema_decay=.9, dropout=dropout))
    for step in range(5): trainer.step(step) # without dropout the fourth is recorded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try: losses = [trainer.step(step) for step in range(5, 8)]
    finally: torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


@kinds
def test_recorded_steps_of_training_are_those_that_are_not(kind):
    results = []
    for recorded in (True, False):
        trainer = trainer_of(config(kind, precision="float32", ema_decay=.9))
        if not recorded: trainer.recorded = None
        losses = torch.stack([trainer.step(step) for step in range(8)])
        if recorded: assert trainer.recorded.graph
        results.append((losses, *trainer.scored.parameters()))
    for got, expected in zip(*results): assert torch.allclose(got, expected, atol=1e-4)


def test_what_was_recorded_is_forgotten_when_a_state_is_loaded():
    trainer = trainer_of(config("rotary", ema_decay=.9, precision="float32"))
    for step in range(5): trainer.step(step)
    state = copy.deepcopy(trainer.state_dict())
    expected = [trainer.step(step) for step in range(5, 8)]
    trainer.load_state_dict(state)
    got = [trainer.step(step) for step in range(5, 8)]
    assert torch.allclose(torch.stack(got), torch.stack(expected), atol=1e-4)


def test_a_resumed_run_ends_close_to_one_that_was_not_interrupted(tmp_path, monkeypatch):
    pictures, labels = IMAGES.permute(0, 2, 3, 1).numpy(), np.zeros(len(IMAGES), int)
    np.savez(tmp_path/"noise.npz", train_images=pictures, test_images=255 - pictures[:9], train_labels=labels, test_labels=labels[:9])
    short = dict(dataset=str(tmp_path/"noise.npz"), results_dir=str(tmp_path), max_steps=8, eval_every=3, compile=False, ema_decay=.9)
    straight, stopped = (config(run_name=name, **short) for name in ("straight", "stopped"))
    expected, step = fit(straight), Trainer.step
    def crash(self, n):
        if n == 5: raise RuntimeError("crash")
        return step(self, n)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        patch.setattr(Trainer, "step", crash)
        fit(stopped)
    got = fit(stopped)
    for a, b in zip(load_run(expected)[0].parameters(), load_run(got)[0].parameters()): assert (a - b).abs().mean() < 1e-4
    bits = [json.loads((path/"summary.json").read_text())["test_bits_per_dim"] for path in (expected, got)]
    assert abs(bits[0] - bits[1]) < .01


# Sampling

@recorded
def test_recorded_steps_agree_with_forward(kind):
    model = model_of(kind)
    with torch.no_grad(): expected = model(IMAGES[:2].cuda()).flatten(1, 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=FAILED)
        decoder, filled = model.decoder(2), model.decoder(2)
        got = grown(decoder)
        pixels = IMAGES[:2].flatten(2).transpose(1, 2)
        filled.fill(pixels[:, :50].cuda())
        later = torch.stack([filled.step(pixel) for pixel in pixels[:, 50:-1].unbind(1)], 1) # pixels of the CPU are taken too
    assert len(decoder.graphs.graphs) == (20 if kind == "pixelcnnpp" else 1)
    assert torch.allclose(got, expected, atol=1e-3) and torch.allclose(later, expected[:, 51:], atol=1e-3)


@recorded
def test_a_failed_recording_falls_back(kind):
    model = model_of(kind)
    with torch.no_grad(): expected = model(IMAGES[:2].cuda()).flatten(1, 2)
    decoder = model.decoder(2)
    plain = decoder.params_at
    def waiting(*where): # a graph cannot hold a wait
        if where[-1] is not None: where[-1].sum().item()
        return plain(*where)
    decoder.params_at = waiting
    with pytest.warns(UserWarning, match=FAILED) as caught: got = grown(decoder)
    assert sum(str(w.message).startswith(FAILED) for w in caught) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.allclose(got, expected, atol=1e-3)
    assert torch.allclose(grown(model.decoder(2)), expected, atol=1e-3) # the next decoder is not affected


@two_gpus
@recorded
def test_recorded_on_a_device_that_is_not_the_current_one(kind):
    model = model_of(kind, "cuda:1")
    with torch.no_grad(): expected = model(IMAGES[:2].to("cuda:1")).flatten(1, 2)
    assert torch.cuda.current_device() == 0
    decoder = model.decoder(2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=FAILED)
        got = grown(decoder, "cuda:1")
    assert decoder.graphs.graphs and torch.allclose(got, expected, atol=1e-3) and torch.cuda.current_device() == 0


@kinds
def test_seeded_draws_leave_all_random_states_alone(kind):
    model = model_of(kind)
    states = lambda: [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    before = states()
    drawn, again = sample(model, 2, seed=0), sample(model, 2, seed=0)
    continued = complete(model, IMAGES[:2], 7, seed=0)
    assert all((a == b).all() for a, b in zip(before, states()))
    assert (drawn == again).all() and (continued[:, :, :7] == IMAGES[:2, :, :7]).all() and continued.shape == (2, 3, 16, 12)


def test_dense_attention_makes_its_mask_once():
    attention._dense_mask.cache_clear()
    model = attend_with(model_of("transformer"), dense_attention)
    with torch.no_grad(): model(IMAGES[:2].cuda()); model(IMAGES[:2].cuda())
    assert attention._dense_mask.cache_info().misses == 1
