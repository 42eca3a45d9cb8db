"""What stands in for a GPU in tests: `import stand_in_gpu`."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
from patience import PATIENCE_S


class StandInScene:
    def __init__(self, mark=0, condition_size=2):
        self.mark, self.condition_size = mark, condition_size
        self.plates = None


class StandInRenderer:
    """Draws the scene's mark plus the condition's first number, once it may."""

    kernel_ms = 1.5
    may_keep = False

    def __init__(self, *, condition_size=2):
        self._condition_size = condition_size
        self.batches: list[list[int]] = []
        self.collected: list[list[int]] = []
        self.threads: set[str] = set()
        self.may_draw = threading.Event()
        self.may_draw.set()
        self.drawing = threading.Semaphore(0)
        self.refusal: Exception | None = None
        self.plates_refusal: Exception | None = None
        self.over_plates: list[int] = []
        self.submit_failure: Exception | None = None
        self.failure: Exception | None = None
        self.unloaded: list[StandInScene] = []
        self.closed = 0

    def load(self, scene):
        if self.refusal is not None:
            raise self.refusal
        is_one = isinstance(scene, StandInScene)
        return scene if is_one else StandInScene(condition_size=self._condition_size)

    def load_plates(self, scene, pictures, masks):
        if self.plates_refusal is not None:
            raise self.plates_refusal
        assert len(pictures) == len(masks)
        scene.plates = SimpleNamespace(placed=list(range(len(masks))), size_px=pictures.shape[2])

    def unload(self, scene):
        if self.failure is not None:
            raise self.failure
        self.unloaded.append(scene)

    def submit(self, requests):
        """What was wrong by then is found here, and what goes wrong later in `collect`."""
        self.threads.add(threading.current_thread().name)
        self.batches.append([self._mark(request) for request in requests])
        self.over_plates += [request.plate for request in requests if request.plate is not None]
        self.drawing.release()
        if self.submit_failure is not None:
            raise self.submit_failure
        return list(requests)

    def collect(self, launch):
        assert self.may_draw.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        self.collected.append([self._mark(request) for request in launch])
        return [np.full(request.shape, self._mark(request), np.uint8) for request in launch]

    @staticmethod
    def _mark(request):
        return request.scene.mark + int(request.condition[0]) % 256

    def close(self):
        self.closed += 1
