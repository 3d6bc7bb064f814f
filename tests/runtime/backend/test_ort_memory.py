"""What ONNX Runtime keeps of a large picture's memory: nearly nothing."""

import json
import subprocess
import sys

import pytest
from support.processes import ROOT

SCRIPT = """
import json, re, sys
from runtime import Pipeline

def megabytes(what):
    with open("/proc/self/status", encoding="ascii") as status:
        return int(re.search(what + r":\\s+(\\d+)", status.read())[1]) // 1024

pipeline = Pipeline.load(sys.argv[1], threads=1)
pipeline.generate("x", steps=1, guidance=3.0, seed=0)
before = megabytes("VmRSS")
pipeline.generate("x", width=768, height=768, steps=1, guidance=3.0, seed=0)
print(json.dumps([before, megabytes("VmHWM"), megabytes("VmRSS")]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_pictures_memory_is_given_back(demo_bundle):
    """Without that 530 MB stay: the attention of the VAE alone has 340 MB of scores."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(demo_bundle)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, most, after = json.loads(done.stdout)
    assert most - before > 300, "the picture is too small to tell"
    assert after - before < 60
