import pytest

from streaming.pipeline.render_size import FrameCost, choose_render_size


class Machine:
    """Takes `ns_per_pixel` on its threads and `other_ms` beside; notes what it was asked to draw."""

    def __init__(self, ns_per_pixel, other_ms=0.0):
        self.ns_per_pixel = ns_per_pixel
        self.other_ms = other_ms
        self.timed = []

    def __call__(self, size_px):
        self.timed.append(size_px)
        return FrameCost(render_ms=size_px**2 * self.ns_per_pixel / 1e6, other_ms=self.other_ms)


def choose(machine, largest_px=512, threads=2, cores=2):
    return choose_render_size(machine, largest_px=largest_px, threads=threads, cores=cores)


@pytest.mark.parametrize(
    ("ns_per_pixel", "size_px"), [(50, 512), (200, 384), (450, 256), (600, 224), (800, 192), (1900, 128)]
)
def test_the_largest_size_that_fits_is_taken(ns_per_pixel, size_px):
    machine = Machine(ns_per_pixel)
    chosen = choose(machine)
    assert chosen.size_px == size_px
    assert chosen.keeps_up
    assert chosen.frame_ms <= 34


def test_sizes_far_too_slow_are_never_drawn():
    machine = Machine(5000)
    chosen = choose(machine)
    assert (chosen.size_px, chosen.keeps_up) == (128, False)
    assert set(machine.timed) <= {192, 128}


def test_the_other_stages_take_their_share_of_the_cores():
    assert choose(Machine(450, other_ms=0)).size_px == 256
    assert choose(Machine(450, other_ms=16)).size_px == 224
    assert choose(Machine(450, other_ms=16), cores=4, threads=2).size_px == 256


def test_a_size_is_believed_only_once_it_was_timed():
    def worse_than_foretold(size_px):
        return FrameCost(render_ms=10.0 if size_px <= 192 else 100.0, other_ms=0.0)

    assert choose(worse_than_foretold).size_px == 192


def test_one_busy_moment_does_not_cost_a_size():
    quiet = Machine(450)
    busy_once = [True]

    def busy_at_256(size_px):
        cost = quiet(size_px)
        if size_px == 256 and busy_once.pop():
            busy_once.append(False)
            return FrameCost(render_ms=3 * cost.render_ms, other_ms=cost.other_ms)
        return cost

    chosen = choose(busy_at_256)
    assert (chosen.size_px, chosen.keeps_up) == (256, True)
    assert quiet.timed.count(256) == 2


def test_a_busy_moment_at_the_first_look_does_not_cost_a_size():
    quiet = Machine(450)

    def busy_at_first(size_px):
        cost = quiet(size_px)
        return cost if len(quiet.timed) > 1 else FrameCost(render_ms=1.9 * cost.render_ms, other_ms=0.0)

    assert choose(busy_at_first).size_px == 256


def test_nothing_larger_than_the_bundle_is_drawn():
    assert choose(Machine(1), largest_px=256).size_px == 256
    assert choose(Machine(1), largest_px=96).size_px == 96


def drawn_over_plates(size_px):
    """Returns the pixels of a mask that reaches beyond what changes, the more the smaller the picture."""
    return {512: 15000, 384: 13000, 256: 6000, 224: 5000, 192: 4000, 160: 3000, 128: 2400}[size_px]


def test_a_size_of_which_a_part_is_drawn_is_predicted_by_the_pixels_of_that_part():
    def cost(size_px):
        return FrameCost(render_ms=drawn_over_plates(size_px) / 600, other_ms=9.0)

    chosen = choose_render_size(cost, largest_px=512, threads=2, cores=2, pixels=drawn_over_plates)
    assert chosen.size_px == 512
    assert chosen.frame_ms <= 34
    by_the_square = choose_render_size(cost, largest_px=512, threads=2, cores=2)
    assert by_the_square.size_px < 512
