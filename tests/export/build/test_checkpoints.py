"""Checkpoints that the build command refuses, and the checksums beside them."""

import json

import pytest
from support import peers
from support.build_command import refused

from export.build.checksums import check_recorded, recorded
from export.demo_model import DEMO_CHECKPOINT
from model.checkpoint.tensor_files import CheckpointError
from runtime.bundle.integrity import sha256


@pytest.fixture
def demo(tmp_path):
    """A copy of the demo checkpoint to spoil."""
    return peers.copy(DEMO_CHECKPOINT, tmp_path / "demo")


def test_no_checkpoint(tmp_path, capsys):
    refused(capsys, tmp_path, "there is no checkpoint directory", "--checkpoint", tmp_path / "none")


def test_flipped_bit_in_the_weights(demo, tmp_path, capsys):
    """In the data, not in the header: only the recorded checksum can tell."""
    file = demo / "transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    refused(capsys, tmp_path, f"{file} is damaged: SHA-256", "--checkpoint", demo)


def test_checksums_of_a_hub_download(demo):
    """The records that ``hf download --local-dir`` keeps: a commit, the SHA-256 of a large file, a time."""
    (demo / "SHA256SUMS").unlink()
    records = demo / ".cache/huggingface/download/vae"
    records.mkdir(parents=True)
    (records / "diffusion_pytorch_model.safetensors.metadata").write_text(f"{'a' * 40}\n{'b' * 64}\n1.5\n")
    (records / "config.json.metadata").write_text(f"{'a' * 40}\n{'c' * 40}\n1.5\n")
    assert recorded(demo) == {demo / "vae/diffusion_pytorch_model.safetensors": "b" * 64}


def test_checksums_in_capitals(demo):
    """As PowerShell's Get-FileHash writes them; a wrong one is found all the same."""
    sums = demo / "SHA256SUMS"
    lines = [line.split() for line in sums.read_text().splitlines()]
    sums.write_text("".join(f"{digest.upper()}  {name}\n" for digest, name in lines))
    assert recorded(demo) == {demo / name: digest for digest, name in lines}
    check_recorded(demo, quiet=True)
    sums.write_text(f"{'A' * 64}  {lines[0][1]}\n")
    with pytest.raises(CheckpointError, match=r"is damaged: SHA-256 .*, wanted aaaaaaaaaaaa…"):
        check_recorded(demo, quiet=True)


def record(directory, content):
    """A record that ``hf download --local-dir`` keeps."""
    folder = directory / ".cache/huggingface/download/vae"
    folder.mkdir(parents=True)
    (folder / "config.json.metadata").write_bytes(content)


def spoil_tokenizer(directory, content):
    file = directory / "tokenizer/tokenizer.json"
    if callable(content):
        data = json.loads(file.read_text(encoding="utf-8"))
        content(data)
        content = json.dumps(data).encode()
    file.write_bytes(content)


def template(directory, before):
    """Have a chat template with much text in front of the prompt."""
    text = before + "{{ messages[0].content[0].text }}"
    (directory / "tokenizer" / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "tokenizer/tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda d: (d / "SHA256SUMS").write_text("nonsense\n"), "has the line 'nonsense'"),
        (lambda d: (d / "SHA256SUMS").write_text(f"{'0' * 64}  vae/gone\n"), "vae/gone is missing"),
        (lambda d: (d / "SHA256SUMS").write_bytes(b"\xff\n"), "SHA256SUMS is not UTF-8 text: "),
        (lambda d: record(d, b"\xff\n"), "config.json.metadata is not UTF-8 text: "),
        (lambda d: spoil_tokenizer(d, b"{"), "tokenizer.json is not a tokenizers file: "),
        (lambda d: spoil_tokenizer(d, b"\xff"), "tokenizer.json is not a tokenizers file: "),
        (lambda d: spoil_tokenizer(d, b"[" * 100_000), "tokenizer.json is not a tokenizers file: "),
        (lambda d: spoil_tokenizer(d, b'{"version": "1.0"}'), "tokenizer.json is not a tokenizers file: "),
        (
            lambda d: spoil_tokenizer(d, lambda t: t["model"].update(vocab={}, merges=[])),
            "has no tokens for 'a small green square' beside those of the chat template",
        ),
        (
            lambda d: spoil_tokenizer(d, lambda t: t["model"]["vocab"].update(x=1024)),
            "has the token 1024, wanted tokens below 1024, the text encoder's",
        ),
        (lambda d: template(d, "word " * 3000), "with the chat template, the prompt has "),
        (lambda d: (d / "model_index.json").write_text('{"sizes": {"default": 2.5}}'), "sizes is {'default': 2.5}"),
        (lambda d: (d / "model_index.json").write_text('{"sizes": {"minimum": 20}}'), "minimum is 20"),
        (lambda d: (d / "model_index.json").write_text('{"guidance": "3"}'), "guidance is '3', wanted a number"),
        (lambda d: (d / "model_index.json").write_text('{"guidance": NaN}'), "guidance is nan, wanted a number of at"),
        (lambda d: (d / "model_index.json").write_text('{"guidance": 1' + "0" * 5000 + "}"), "model_index.json"),
        (lambda d: (d / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'), "is a FluxPipeline"),
        (lambda d: (d / "text_encoder/config.json").write_text("[]"), "holds a list, wanted an object"),
    ],
)
def test_spoiled_checkpoint(demo, tmp_path, capsys, spoil, message):
    spoil(demo)
    refused(capsys, tmp_path, message, "--checkpoint", demo)


def test_checksum_file_of_the_demo():
    for line in (DEMO_CHECKPOINT / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert sha256(DEMO_CHECKPOINT / name) == digest
    assert json.loads((DEMO_CHECKPOINT / "model_index.json").read_text())["_class_name"] == "Ideogram4Pipeline"
