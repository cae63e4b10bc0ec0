"What several files of tests are given."
import numpy as np
import pytest


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    "An .npz of small pictures."
    path, draw = tmp_path_factory.mktemp("data")/"noise.npz", np.random.default_rng(0).integers
    np.savez(path, train_images=draw(0, 256, (64, 8, 8, 3), dtype=np.uint8), train_labels=np.zeros(64, int),
             test_images=draw(0, 256, (9, 8, 8, 3), dtype=np.uint8), test_labels=np.zeros(9, int))
    return path
