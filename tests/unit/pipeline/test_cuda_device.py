import ctypes

import pytest

from streaming.pipeline.cuda_device import CudaDevice, find_cuda_device


class FakeDriver:
    """The functions of libcuda that are asked, each giving 0 or the error it was told to."""

    def __init__(self, *, devices=1, failing=""):
        self._devices, self._failing = devices, failing

    def __getattr__(self, name):
        def call(*arguments):
            if name == self._failing:
                return 999
            if name == "cuDeviceGetCount":
                arguments[0]._obj.value = self._devices
            elif name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA H100"
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 9, 76: 0}[arguments[1]]
            return 0

        return call


def found(monkeypatch, driver):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    return find_cuda_device()


def test_the_first_device_is_named(monkeypatch):
    assert found(monkeypatch, FakeDriver(devices=2)) == CudaDevice(name="NVIDIA H100", capability=(9, 0))


@pytest.mark.parametrize(
    "function",
    ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"],
)
def test_a_driver_that_does_not_answer_is_no_device(monkeypatch, function):
    assert found(monkeypatch, FakeDriver(failing=function)) is None


def test_no_device_left_to_this_process_is_none(monkeypatch):
    assert found(monkeypatch, FakeDriver(devices=0)) is None


def test_no_driver_is_no_device():
    assert find_cuda_device("libno-such-driver.so") is None
