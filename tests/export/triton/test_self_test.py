"""``python -m export.triton --self-test``."""

from support.tampering import Tampered

from export.triton.__main__ import main


def test_the_command_writes_the_parameter(demo_bundle, tmp_path, capsys):
    parameter = 'parameters { key: "self_test" value { string_value: "true" } }'
    options = [str(demo_bundle), "--bundle-path", "/bundle", "--no-verify", "--quiet", "--output"]
    assert main([*options, str(tmp_path / "with"), "--self-test"]) == 0
    assert main([*options, str(tmp_path / "without")]) == 0
    configs = {name: (tmp_path / name / "ideogram4" / "config.pbtxt").read_text() for name in ("with", "without")}
    assert parameter in configs["with"] and "self_test" not in configs["without"]


def test_the_command_wants_a_bundle_that_has_one(demo_bundle, tmp_path, capsys):
    bundle = Tampered(demo_bundle, tmp_path / "bundle")
    bundle.manifest(lambda data: data["files"].pop("selftest.npz"))
    arguments = [str(bundle.directory), "--self-test", "--no-verify", "--output", str(tmp_path / "models")]
    assert main(arguments) == 1
    assert "--self-test wants a bundle with a selftest.npz" in capsys.readouterr().err
