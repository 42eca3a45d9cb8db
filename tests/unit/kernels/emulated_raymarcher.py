"""The CUDA kernel compiled as plain C++ and run on the CPU, for tests without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from cuda_kernels.cuda_records import (
    CHUNK_BYTES,
    FRAME,
    LAUNCH,
    WORK,
    PlacedPlate,
    as_bytes,
    background_words,
    block_words,
    fill_frames,
    frame_template,
    pack_scene,
)
from cuda_kernels.folding import resize_by_area

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "cuda_kernels"
COMPILER = shutil.which("g++")


def compile_kernel(folder, width, *, in_shared=1):
    """The library of the kernel of one width, built in a folder."""
    library = folder / f"raymarcher_{width}_{in_shared}.so"
    subprocess.run(
        [
            COMPILER,
            *("-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wno-unknown-pragmas"),
            *("-I", str(KERNELS), "-I", str(HERE)),
            *(f"-DWIDTH={width}", "-DWARPS=1", f"-DWEIGHTS_IN_SHARED={in_shared}"),
            *(str(HERE / "emulated_raymarcher.cpp"), "-o", str(library)),
        ],
        check=True,
        capture_output=True,
    )
    return ctypes.CDLL(str(library))


class HostScene:
    """A scene whose record names arrays of this process."""

    def __init__(self, scene):
        self.scene = scene
        self.packed = pack_scene(scene)
        self.arrays = {name: np.ascontiguousarray(array) for name, array in self.packed.arrays.items()}
        addresses = {name: array.ctypes.data for name, array in self.arrays.items()}
        self.record = as_bytes(self.packed.with_addresses(addresses)).copy()


def aligned(size):
    """(size,) bytes from a multiple of 16 on, with room up to the next."""
    room = np.full(size + 32, 77, np.uint8)
    return room[-room.ctypes.data % 16 :][:size]


def draw(library, frames, *, blocks=2):
    """([picture, ...], (samples, passed)) of frames [(HostScene, {c2w, condition, size_px, ...}), ...].

    A frame with a `plate`, (picture, mask), is drawn over it.
    """
    records, works, kept, pictures = np.zeros(len(frames), FRAME), [], [], [None] * len(frames)
    scenes = list({id(scene): scene for scene, _ in frames}.values())
    order = sorted(range(len(frames)), key=lambda number: scenes.index(frames[number][0]))
    for place, number in enumerate(order):
        scene, wanted = frames[number]
        size = wanted["size_px"]
        region = wanted.get("region_px", (0, 0, size, size))
        width, height = region[2] - region[0], region[3] - region[1]
        i420 = wanted.get("i420", False)
        shape = (height * 3 // 2, width) if i420 else (height, width, 3)
        pictures[number] = aligned(np.prod(shape)).reshape(shape)
        background, plate = background_words(resize_by_area(scene.scene.background, size)), None
        if "plate" in wanted:
            picture, words = aligned(np.prod(shape)), block_words(wanted["plate"][1])
            picture[:] = wanted["plate"][0].reshape(-1)
            plate = PlacedPlate(picture=picture.ctypes.data, blocks=words.ctypes.data, block_count=len(words))
            kept += [picture, words]
        frame = records[place : place + 1]
        frame[0] = frame_template(
            scene.packed,
            size_px=size,
            region_px=region,
            i420=i420,
            background=background.ctypes.data,
            plate=plate,
        )
        fill_frames(
            frame,
            scene.packed,
            c2w=np.asarray(wanted["c2w"], np.float64)[None],
            conditions=wanted["condition"][None],
        )
        chunks = int(frame[0]["chunks"])
        pixels, done = np.full(chunks * CHUNK_BYTES, 199, np.uint8), np.zeros(chunks + 1, np.uint32)
        kept += [background, pixels, done]
        if not works or works[-1]["scene"] != scene.record.ctypes.data:
            works.append(np.zeros((), WORK))
            works[-1]["scene"], works[-1]["first_frame"] = scene.record.ctypes.data, place
        works[-1]["frames"] += 1
        frame["first_chunk"] = works[-1]["chunks"]
        works[-1]["chunks"] += chunks
        frame["pixels"], frame["done"] = pixels.ctypes.data, done.ctypes.data
        frame["out"] = pictures[number].ctypes.data
    works, launch = np.stack(works), np.zeros((), LAUNCH)
    counters = np.zeros(2 + len(frames) + len(works), np.uint32)
    launch["works"], launch["frames"] = works.ctypes.data, records.ctypes.data
    launch["counts"] = counters.ctypes.data
    launch["taken_chunks"] = counters[2:].ctypes.data
    launch["finished_chunks"] = counters[2 + len(frames) :].ctypes.data
    launch["work_count"] = len(works)
    assert library.shared_bytes() <= library.room_bytes()
    library.draw(ctypes.c_void_p(launch.ctypes.data), ctypes.c_uint(blocks))
    return pictures, (int(counters[0]), int(counters[1]))
