import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("stated", "expected"), [(None, "1"), ("0", "0")])
def test_onnx_runtime_is_told_not_to_report_before_it_is_imported(stated, expected):
    program = (
        "import os, sys\n"
        "import models.onnx_runtime, streaming.pipeline.onnx_engine\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "class Watch:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'onnxruntime':\n"
        "            print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "assert models.onnx_runtime.load_onnxruntime() is sys.modules['onnxruntime']\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"ORT_DISABLE_TELEMETRY": stated} if stated else {}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()) == (0, [expected]), run.stderr
