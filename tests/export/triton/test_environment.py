"""What operators are told of a server's environment, and what the shipped Kubernetes manifest gives it."""

import re
from importlib import resources
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]


def test_operators_are_told_which_variables_are_read():
    """Only one file of what runs on a server looks at them; the command's own options aside."""
    files = [file for package in ("runtime", "serving") for file in (ROOT / package).rglob("*.py")]
    readers = {file.relative_to(ROOT).as_posix() for file in files if "environ" in file.read_text(encoding="utf-8")}
    assert readers == {"runtime/user_cache.py", "runtime/cli/main.py"}
    text = resources.files("export.triton").joinpath("operators.md").read_text(encoding="utf-8")
    variables = re.findall(r'"([A-Z_]+)", "', (ROOT / "runtime/user_cache.py").read_text(encoding="utf-8"))
    assert sorted(variables) == ["LOCALAPPDATA", "XDG_CACHE_HOME"]
    assert "`XDG_CACHE_HOME`" in text and "`HOME`" in text  # Triton's images are Linux


def test_the_kubernetes_manifest_gives_each_server_a_cache_that_can_be_written():
    documents = yaml.safe_load_all((ROOT / "deploy/triton/kubernetes.yaml").read_text(encoding="utf-8"))
    pod = next(one for one in documents if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (cache,) = (entry["value"] for entry in container["env"] if entry["name"] == "XDG_CACHE_HOME")
    (mount,) = (one for one in container["volumeMounts"] if one["mountPath"] == cache)
    assert not mount.get("readOnly") and container["securityContext"]["readOnlyRootFilesystem"]
    (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
    assert "emptyDir" in volume
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"], "its user may write there"
