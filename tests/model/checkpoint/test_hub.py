"""Checkpoints by Hub id: what is a path and what an id, the offline cache, and errors in one line. No network."""

import hashlib
import os
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants, errors, utils
from support.hub_cache import COMMIT, cached
from support.processes import ROOT

from model.checkpoint.hub import EXAMPLE, FILES, blob_digests, checkpoint_directory, hub_id, model_name

ID = "someone/small-model"


@pytest.fixture
def downloads(monkeypatch):
    """downloads(error): the Hub answers so from now on; returns the list of calls."""

    def answer(error):
        calls = []

        def snapshot_download(*arguments, **keywords):
            calls.append((arguments, keywords))
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return answer


def http_error(kind, status):
    """An error as huggingface_hub raises it: its text has several lines, and it holds the response."""
    http = sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]
    response = http.Response(status, request=http.Request("GET", "https://hub.invalid/x"))
    return kind(
        f"{status} Client Error. (Request ID: x)\n\nfor url: https://hub.invalid/x.\nLook there.", response=response
    )


def test_a_path_that_exists_wins(tmp_path, monkeypatch, downloads):
    """Even one that looks like an id."""
    (tmp_path / "someone" / "small-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    calls = downloads(OSError("asked"))
    assert str(checkpoint_directory(ID)) == ID
    with pytest.raises(ValueError, match=f"--revision v1 goes with a Hub id, and {ID} is a path"):
        checkpoint_directory(ID, "v1")
    assert calls == []


@pytest.mark.parametrize("given", ["none", "/no/such/place", "./someone/model", "../a/b", "a/b/c", "a//b", "~/m"])
def test_neither_a_directory_nor_an_id(given, downloads):
    """Both forms are named."""
    calls = downloads(OSError("asked"))
    with pytest.raises(FileNotFoundError) as caught:
        checkpoint_directory(given)
    assert f"there is no checkpoint directory {given}; wanted a directory, or the id of" in str(caught.value)
    assert EXAMPLE in str(caught.value) and calls == []


def test_only_what_is_read_is_asked_for(downloads):
    calls = downloads(OSError("asked"))
    with pytest.raises(OSError):
        checkpoint_directory(ID, "v1")
    assert calls == [((ID,), {"revision": "v1", "allow_patterns": list(FILES)})]
    wanted = ("model_index.json", "transformer/config.json", "vae/diffusion_pytorch_model.safetensors")
    wanted += ("text_encoder/model-00001-of-00004.safetensors", "text_encoder/model.safetensors.index.json")
    wanted += ("tokenizer/tokenizer.json", "tokenizer/chat_template.jinja")
    others = ("README.md", "transformer/diffusion_pytorch_model.fp16.safetensors", "transformer/model.bin")
    others += ("images/grid.png", "text_encoder/model.onnx", "tokenizer/vocab.json", "ideogram4.safetensors")
    assert list(utils.filter_repo_objects([*wanted, *others], allow_patterns=list(FILES))) == list(wanted)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            http_error(errors.GatedRepoError, 403),
            PermissionError,
            f"{ID} is gated: accept its terms on {constants.ENDPOINT}/{ID}, then log in with 'hf auth login' or set "
            "HF_TOKEN",
        ),
        (
            http_error(errors.RepositoryNotFoundError, 404),
            FileNotFoundError,
            f"there is neither a directory {ID} nor a model {constants.ENDPOINT}/{ID}; to see a private one, log in",
        ),
        (
            http_error(errors.RevisionNotFoundError, 404),
            FileNotFoundError,
            f"{ID} has no revision v1, wanted a branch, tag or commit of {constants.ENDPOINT}/{ID}",
        ),
        (
            errors.LocalEntryNotFoundError("Got: ConnectError\nAn error happened"),
            FileNotFoundError,
            f"there is no directory {ID}, nor all of that model in the cache {constants.HF_HUB_CACHE}, and "
            f"{constants.ENDPOINT}/{ID} cannot be reached",
        ),
        (
            http_error(errors.HfHubHTTPError, 500),
            OSError,
            f"cannot download {constants.ENDPOINT}/{ID}: 500 Client Error. (Request ID: x)",
        ),
        (
            errors.HfHubHTTPError.__bases__[0]("connection dropped\nin the middle"),
            OSError,
            f"cannot download {constants.ENDPOINT}/{ID}: connection dropped",
        ),
        (OSError(28, "No space left"), OSError, f"cannot download {constants.ENDPOINT}/{ID}: [Errno 28] No space left"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_one_line(downloads, error, kind, message):
    downloads(error)
    with pytest.raises(kind) as caught:
        checkpoint_directory(ID, "v1")
    text = str(caught.value)
    assert message in text
    assert "\n" not in text and caught.value.__cause__ is error


def resolve(home, *arguments):
    """What a fresh process without a network makes of the arguments."""
    code = "import sys; from model.checkpoint.hub import checkpoint_directory as find; print(find(*sys.argv[1:]))"
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_offline_cache(tmp_path):
    """By branch and by commit; the process loads no torch."""
    snapshot = cached(tmp_path / "hub", ID, {"model_index.json": b"{}", "vae/config.json": b"{}"})
    for revision in ([], ["main"], [COMMIT]):
        done = resolve(tmp_path, ID, *revision)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{snapshot}\n"
        assert done.stderr.startswith(f"fetching {ID} ") and done.stderr.count("\n") == 1
    for arguments in (["someone/other"], [ID, "v1"]):
        done = resolve(tmp_path, *arguments)
        assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
            f"FileNotFoundError: there is no directory {arguments[0]}, nor all of that model in the cache "
            f"{tmp_path / 'hub'}, and HF_HUB_OFFLINE forbids a download"
        )


def test_a_snapshot_is_called_by_its_id(tmp_path):
    snapshot = cached(tmp_path / "hub", ID, {"model_index.json": b"{}"})
    assert hub_id(snapshot) == model_name(snapshot) == ID
    (tmp_path / "link").symlink_to(snapshot)
    assert model_name(tmp_path / "link") == ID
    (tmp_path / "plain").mkdir()
    assert hub_id(tmp_path / "plain") is None and model_name(tmp_path / "plain") == "plain"
    assert hub_id(snapshot.parent) is None and hub_id(snapshot / "vae") is None


def test_a_name_that_is_not_utf8_becomes_text(tmp_path):
    """Else the manifest could not be written when all the work is done."""
    directory = tmp_path / os.fsdecode(b"caf\xe9")
    directory.mkdir()
    assert model_name(directory) == "caf\\xe9"
    assert model_name(directory).encode("utf-8")


def test_names_of_large_files_are_their_checksums(tmp_path):
    large, small = b"w" * 5000, b"{}"
    snapshot = cached(
        tmp_path / "hub", ID, {"vae/diffusion_pytorch_model.safetensors": large, "vae/config.json": small}
    )
    file = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    assert file.is_symlink() and blob_digests(snapshot) == {file: hashlib.sha256(large).hexdigest()}
