"""Which labels stand around a pixel."""

import torch

from training.ray_sampler import EDGE_RADIUS_PX, at_edge, labels_around, neighbours


def some_pixels():
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(4, (3, 9, 11), generator=random, dtype=torch.uint8)
    frames = torch.tensor([2, 0])
    rows = torch.randint(9, (2, 50), generator=random)
    columns = torch.randint(11, (2, 50), generator=random)
    return labels, frames, rows, columns


def test_neighbours_are_the_eight_around_at_each_radius():
    places = neighbours(2)
    assert len(set(places)) == len(places) == 16
    assert {(-1, 0), (1, 1), (-2, 2), (0, 2)} <= set(places)
    assert not {(0, 0), (1, 2)} & set(places)


def test_labels_around_pixels_and_beyond_the_border():
    labels, frames, rows, columns = some_pixels()
    places = ((-2, 0), (1, 3))
    found = labels_around(labels, frames, rows, columns, places)
    assert found.shape == (2, 50, 2)
    for f in range(2):
        for n in range(50):
            for k, (down, right) in enumerate(places):
                row = min(8, max(0, int(rows[f, n]) + down))
                column = min(10, max(0, int(columns[f, n]) + right))
                assert found[f, n, k] == labels[frames[f], row, column]


def test_an_edge_is_where_head_and_not_head_meet():
    labels = torch.zeros(1, 12, 12, dtype=torch.uint8)
    labels[0, :, 6:] = 1
    columns = torch.arange(12)[None]
    found = at_edge(labels, torch.tensor([0]), torch.full((1, 12), 5), columns)
    wanted = (columns >= 6 - EDGE_RADIUS_PX) & (columns < 6 + EDGE_RADIUS_PX)
    assert torch.equal(found, wanted)
    labels[0, :, 6:] = 3  # clothes against background are no edge of the head
    assert not at_edge(labels, torch.tensor([0]), torch.full((1, 12), 5), columns).any()
