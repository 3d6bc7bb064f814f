"""The options object of a build, and that the command line has exactly its fields."""

import ast
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from pathlib import Path

import pytest

from export.build import options as module
from export.build.arguments import build_parser, read_options
from export.build.options import BuildOptions

ACTIONS = {
    action.dest: action for action in build_parser("export.build")._actions if action.dest not in ("help", "version")
}


def test_every_field_is_an_option_and_every_option_a_field():
    assert set(ACTIONS) == {field.name for field in fields(BuildOptions)}


def test_options_are_called_as_the_fields():
    for name, action in ACTIONS.items():
        plain = name.replace("_", "-")
        assert action.option_strings in ([f"--{plain}"], [f"--no-{plain}"]), name


def test_no_option_is_the_default():
    assert read_options(build_parser("export.build").parse_args([])) == BuildOptions()


def test_given_options_arrive():
    """One of each kind."""
    line = "--checkpoint a/b --lora x.st y.st:2 --backend ort rtx ort --precision fp8 --activations static"
    line += (
        " --keep-base *.w1 --output c --max-batch 4 --weight-streaming --no-verify --calibration r.json --revision v1"
    )
    options = read_options(build_parser("export.build").parse_args(line.split()))
    assert options == BuildOptions(
        checkpoint="a/b",
        revision="v1",
        lora=("x.st", "y.st:2"),
        backend=("ort", "rtx", "ort"),
        precision="fp8",
        activations="static",
        keep_base=("*.w1",),
        output=Path("c"),
        max_batch=4,
        weight_streaming=True,
        verify=False,
        calibration=Path("r.json"),
    )
    assert options.backends == ("ort", "rtx")


def test_options_do_not_change():
    with pytest.raises(FrozenInstanceError):
        BuildOptions().precision = "fp8"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"default_preset": "V5"}, "--default-preset is 'V5', wanted one of V4_QUALITY_48"),
        ({"default_guidance": float("nan")}, "--default-guidance is nan, wanted a number of at most 10000"),
        ({"precision": "int4"}, "--precision is 'int4', wanted one of fp32, fp16, bf16, fp8, int8, fp8-weight-only"),
        ({"backend": "rtx"}, "backend is 'rtx', wanted a tuple of strings"),
        ({"backend": ("rtx", "metal")}, "--backend is 'metal', wanted one of ort, rtx, tensorrt"),
        ({"backend": ()}, "--backend is empty, wanted some of ort, rtx, tensorrt"),
        ({"lora": ["a.safetensors"]}, "lora is ['a.safetensors'], wanted a tuple of strings"),
        ({"lora_target": "all"}, "--lora-target is 'all', wanted one of cond, uncond, both"),
        ({"lora_target": "both"}, "--lora-target both goes with --lora"),
        ({"base": "fp8"}, "--base is 'fp8', wanted one of fp32, fp16, bf16"),
        ({"base": "bf16"}, "--base bf16 goes with the precisions fp8 and int8 only, and --precision is fp32"),
        ({"attention": "half"}, "--attention is 'half', wanted one of base, fp8, decomposed"),
        ({"attention": "fp8"}, "--attention fp8 goes with --precision fp8, and --precision is fp32"),
        ({"calibration": Path("r.json")}, "--calibration goes with --precision fp8 or int8, and --precision is fp32"),
        ({"keep_base": ("*",)}, "--keep-base goes with --precision fp8 or int8, and --precision is fp32"),
        ({"weights": "move"}, "--weights is 'move', wanted one of copy, link"),
        ({"weights": "link", "backend": ("rtx",), "precision": "bf16"}, "--weights link goes with --backend ort"),
        ({"timestep_dtype": "float16"}, "--timestep-dtype is 'float16', wanted one of float32, bfloat16"),
        ({"max_batch": 0}, "--max-batch is 0, wanted 1 to 64 pictures"),
        ({"backend": ("ort", "rtx")}, "--precision fp32 is for ort"),
        ({"backend": ("rtx",), "precision": "bf16", "target": ("sm90",)}, "--target 'sm90' is not known"),
        ({"backend": ("rtx",), "precision": "fp8", "target": ("sm86",)}, "cannot compute in float8"),
    ],
)
def test_values_that_are_refused(values, message):
    with pytest.raises(ValueError) as caught:
        BuildOptions(**values)
    assert message in str(caught.value)


def test_every_field_is_documented():
    """By a line below it; its end is a full stop."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    for field, line in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(line, ast.Expr) and str(ast.literal_eval(line.value)).endswith("."), ast.unparse(field)
