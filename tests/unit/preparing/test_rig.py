"""A rig's morphs and neutral face, found again in landmarks that they made."""

import numpy as np

from preparation.synthetic.rig import Rig, fit_rig

FRAMES, MORPHS = 60, 6


def test_a_linear_rig_is_found_again_in_its_landmarks(tmp_path):
    rng = np.random.default_rng(0)
    names = np.array([f"morph-{n}" for n in range(MORPHS)])
    morphs = rng.normal(0, 0.1, (MORPHS, 68, 3))
    may, others, mean_face = (rng.normal(0, 1, shape) for shape in ((68, 3), (3, 68, 3), (68, 3)))
    weights = rng.uniform(0, 1, (FRAMES, MORPHS))
    weights[:, 2], weights[:, 4] = 0.0, 0.5  # that do not move: nothing can be told of them
    landmarks = may + np.tensordot(weights, morphs, axes=1)
    truth, corpus = tmp_path / "truth.npz", tmp_path / "landmarks.npz"
    np.savez(truth, landmarks=landmarks, morph_weights=weights, morph_names=names)
    np.savez(corpus, neutral=others, mean_face=mean_face)

    found = fit_rig(truth, corpus)
    moving = [0, 1, 3, 5]
    assert found["names"].tolist() == names[moving].tolist()
    np.testing.assert_allclose(found["morphs"], morphs[moving], atol=1e-6)
    np.testing.assert_allclose(found["neutral"][:3], others)
    np.testing.assert_allclose(found["neutral"][3], may + 0.5 * morphs[4], atol=1e-6)
    np.testing.assert_array_equal(found["mean_face"], mean_face)

    rig = Rig(**found)
    np.testing.assert_allclose(rig.landmarks(weights[:, moving], identity=-1), landmarks, atol=1e-5)
