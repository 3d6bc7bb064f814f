"""Ask a Triton server for pictures and save them as PNG files, as ``trt-generate`` does on this machine.

    python -m scripts.triton.client --prompt "a red circle" --seed 7 --output circle.png
    python -m scripts.triton.client --prompt "a red circle" --protocol grpc --url 127.0.0.1:8001 --stream

Needs numpy, tqdm and, except for streams over HTTP, tritonclient (in the extra ``triton``). The files are made by the
server, with the settings inside: they equal those of ``trt-generate``, byte for byte.
"""

import argparse
import base64
import http.client
import importlib
import json
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.atomic_files import check_outputs, write_files
from runtime.cli.request_options import add_request_options, given_fields
from runtime.console import guard
from runtime.errors import RequestError
from runtime.image.output_files import numbered
from runtime.progress import Progress
from runtime.request import Request
from serving.tensors import INPUTS, NUMPY_TYPES, PNG, PNG_BASE64, PNG_PARAMETER, STEP, STEPS

PROGRAM = "scripts.triton.client"
PORTS = {"http": 8000, "grpc": 8001}
STREAM_SUFFIX = "_stream"

OnSteps = Callable[[int, int], object]
"""Called with the steps done and their number."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.triton.client",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--url", metavar="HOST:PORT", help="default: 127.0.0.1:8000 for HTTP, 127.0.0.1:8001 for gRPC")
    add("--protocol", choices=tuple(PORTS), default="http", help="default: %(default)s")
    add("--model", default="ideogram4", metavar="NAME", help="default: %(default)s")
    add("--stream", action="store_true", help=f"use the model NAME{STREAM_SUFFIX} and show its progress")
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds to wait for the answer (default: 600)")
    add(
        "--output",
        type=Path,
        default=Path("ideogram4.png"),
        metavar="FILE",
        help="PNG to write (default: %(default)s); several get -0, -1, … before the suffix",
    )
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--prompt", required=True, metavar="TEXT", help="plain text or an Ideogram 4 JSON caption")
    add_request_options(parser)
    return parser


def generate(args: argparse.Namespace) -> None:
    """Do what the options say."""
    given = given_fields(args)
    request = Request(args.prompt, **given)
    inputs = {name: _sent(getattr(request, name)) for name in ("prompt", *given)}
    url = args.url or f"127.0.0.1:{PORTS[args.protocol]}"
    files = numbered(args.output, request.num_images)
    if args.output.suffix.lower() != ".png":
        raise RequestError(f"the output {args.output} is no .png, and PNG is what the server sends")
    check_outputs(files, args.overwrite)
    if args.stream:
        ask = {"http": stream_http, "grpc": stream_grpc}[args.protocol]
        with Progress("denoising", unit="step", leave=False) as bar:
            pngs = ask(url, args.model + STREAM_SUFFIX, inputs, args.timeout, lambda *steps: advance(bar, *steps))
    else:
        pngs = infer(args.protocol, url, args.model, inputs, args.timeout)
    write_files(files, pngs, args.overwrite)
    print(f"wrote {', '.join(map(str, files))}", file=sys.stderr)


def _sent(value: Any) -> Any:
    """A field's value as a request holds it: pictures are sent as the files that they are."""
    return value.read_bytes() if isinstance(value, Path) else value


def advance(bar: Progress, done: int, total: int) -> None:
    """Move the bar to the steps done."""
    bar.total = total
    bar.update(done - bar.n)


def infer(protocol: str, url: str, model: str, inputs: dict[str, Any], timeout: float) -> list[bytes]:
    """The PNG files for one request. RuntimeError is the server's answer, or that there is none."""
    client, refusal = triton(protocol)
    wait = {"network_timeout": timeout, "connection_timeout": timeout} if protocol == "http" else {}
    patience = {} if protocol == "http" else {"client_timeout": timeout}
    connection = client.InferenceServerClient(url, **wait)
    try:
        outputs = [client.InferRequestedOutput(PNG)]
        result = connection.infer(model, infer_inputs(client, inputs), outputs=outputs, **patience)
        return list(result.as_numpy(PNG)[:, 0])
    except refusal as error:
        raise RuntimeError(f"{url}: {error.message()}") from error
    finally:
        connection.close()


def stream_grpc(url: str, model: str, inputs: dict[str, Any], timeout: float, progress: OnSteps) -> list[bytes]:
    """The PNG files for one request over a gRPC stream."""
    client, refusal = triton("grpc")
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with client.InferenceServerClient(url) as connection:
        connection.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=timeout)
        is_answered = False
        try:
            outputs = [client.InferRequestedOutput(name) for name in (STEP, STEPS, PNG)]
            connection.async_stream_infer(model, infer_inputs(client, inputs), outputs=outputs)
            while True:
                result, failed = answers.get(timeout=timeout)
                if failed:
                    raise RuntimeError(f"{url}: {failed.message()}")
                if (pngs := result.as_numpy(PNG)) is not None:
                    is_answered = True
                    return list(pngs[:, 0])
                progress(int(result.as_numpy(STEP)[0, 0]), int(result.as_numpy(STEPS)[0, 0]))
        except queue.Empty:
            raise RuntimeError(f"{url}: no answer within {timeout:g} s") from None
        except refusal as error:
            # What is raised for a lost connection only points to the callback, which is told the reason.
            reasons = [failed for _, failed in list(answers.queue) if failed]
            raise RuntimeError(f"{url}: {(reasons or [error])[0].message()}") from error
        finally:
            # Triton 2.51 never unloads a model of which a request was cancelled just when it had been answered.
            connection.stop_stream(cancel_requests=not is_answered)


def stream_http(url: str, model: str, inputs: dict[str, Any], timeout: float, progress: OnSteps) -> list[bytes]:
    """The PNG files for one request over server-sent events; needs nothing but Python."""
    for event in events(url, f"/v2/models/{model}/generate_stream", inputs | {PNG_PARAMETER: True}, timeout):
        if "error" in event:
            raise RuntimeError(f"{url}: {event['error']}")
        if PNG_BASE64 in event:
            files = event[PNG_BASE64]
            return [base64.b64decode(file) for file in ([files] if isinstance(files, str) else files)]
        progress(event[STEP], event[STEPS])
    raise RuntimeError(f"{url}: the stream ended without a picture")


def events(url: str, path: str, question: dict[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
    """The JSON objects that the server sends in answer to `question`; RuntimeError is its refusal."""
    connection = http.client.HTTPConnection(url, timeout=timeout)
    try:
        connection.request("POST", path, json.dumps(question), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            body = response.read().strip().removeprefix(b"data:")
            raise RuntimeError(f"{url}: {json.loads(body)['error'] if body else response.reason}")
        for line in response:
            if line.startswith(b"data:"):
                yield json.loads(line.removeprefix(b"data:"))
    finally:
        connection.close()


def infer_inputs(client: Any, inputs: dict[str, Any]) -> list[Any]:
    """Inputs by name as tensors for `client`: a value, a tuple of values (guidance), or a list of rows of either.

    ValueError: a number is too large for its type.
    """
    made = []
    for name, value in inputs.items():
        spec = next(spec for spec in INPUTS if spec.name == name)
        rows = [row if isinstance(row, tuple) else (row,) for row in (value if isinstance(value, list) else [value])]
        if spec.type == "TYPE_STRING":
            rows = [tuple(map(_bytes, row)) for row in rows]
        try:
            with np.errstate(over="ignore"):  # becomes infinity, which the server refuses
                array = np.array(rows, NUMPY_TYPES[spec.type])
        except OverflowError:
            raise ValueError(f"{name} is {value}, wanted a number of type {spec.type.removeprefix('TYPE_')}") from None
        kind = "BYTES" if spec.type == "TYPE_STRING" else spec.type.removeprefix("TYPE_")
        made.append(client.InferInput(name, array.shape, kind))
        made[-1].set_data_from_numpy(array)
    return made


def _bytes(value: str | bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def triton(protocol: str) -> tuple[Any, type[Exception]]:
    """tritonclient's module for the protocol, and the exception that it raises."""
    try:
        client = importlib.import_module(f"tritonclient.{protocol}")
        return client, importlib.import_module("tritonclient.utils").InferenceServerException
    except ImportError as error:
        raise RuntimeError(f"tritonclient is not installed ({error}); install the extra 'triton'") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: generate(args))


if __name__ == "__main__":
    sys.exit(main())
