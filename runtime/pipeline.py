"""A prompt in, a picture out: the stages of a bundle in order.

`Pipeline.generate` is the whole line. `text`, `noise`, `trajectory` and `decode` are its parts for a plan; `encode`,
`encode_image` and `denoise` take arrays, for callers that want early stops or their own noise.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from runtime.backend.limits import check_limits
from runtime.backend.opening import Opened
from runtime.bundle.graph_specs import EngineSet
from runtime.bundle.manifest import Manifest, read_manifest
from runtime.errors import ClosedError, NonFiniteError, RequestError
from runtime.generated import Generated
from runtime.graph import Graph
from runtime.image import vae
from runtime.image.init_image import Given
from runtime.image.inpaint import begin, paste
from runtime.loading import graphs_to_load, open_bundle
from runtime.plan import Plan, make_plan
from runtime.prompt.caption import Caption
from runtime.prompt.feature_cache import FeatureCache
from runtime.prompt.tokens import PromptEncoder
from runtime.request import Request
from runtime.sampling.denoise import Blend, denoise
from runtime.sampling.noise import randn
from runtime.sampling.schedule import Step
from runtime.sampling.velocity import bind, repeated, second_pass

OnStep = Callable[[int, int, np.ndarray], None]
"""Called after each step with the steps done, the number of steps, and the latents (B, N, C) float32."""


class Pipeline:
    """The loaded stages of a bundle. Threads may share it; calls of engines' graphs take turns, one a GPU at a time."""

    def __init__(
        self,
        manifest: Manifest,
        graphs: dict[str, Graph],
        prompt: PromptEncoder,
        backend: str,
        device: str,
        opened: Opened | None = None,
        concurrent: bool = False,
    ) -> None:
        """`concurrent`: the two transformers run at the same time, each in a thread."""
        self.manifest, self.graphs, self.prompt = manifest, graphs, prompt
        self.backend, self.device, self.concurrent = backend, device, concurrent
        self.features = FeatureCache()
        self.closed = False
        self.opened = opened
        """Where `load` got the graphs from: what was chosen and why, and how to free it."""

    @property
    def engines(self) -> EngineSet | None:
        """The engines that run; None for ONNX Runtime and others, which take any size."""
        return self.opened.choice.engines if self.opened else None

    @property
    def where(self) -> str:
        """Backend and device, and why them, for the user."""
        return f"{self.backend} ({self.device})" + (f": {self.opened.choice.reason}" if self.opened else "")

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        backend: str = "auto",
        device: str = "auto",
        memory: str = "auto",
        threads: int | None = None,
        verify: str = "auto",
        unconditional: bool = True,
        plans: Sequence[Plan] = (),
        vae_graphs: Sequence[str] | None = None,
        devices: tuple[str, str] | None = None,
        negative: bool = False,
        max_memory: int | None = None,
    ) -> "Pipeline":
        """Load a bundle.

        Args:
            directory: the bundle.
            backend: ``ort``, ``rtx``, ``tensorrt``, or ``auto``: engines that this machine can run, else ONNX Runtime;
                `opened.choice` says what was taken and why.
            device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: the first GPU for engines, the CPU for ONNX Runtime.
            memory: engines on the GPU: ``resident``, ``staged`` or ``auto``; see `runtime.tensorrt.memory_plan`.
            threads: CPU threads for a graph of ONNX Runtime; None for one per core.
            verify: ``auto`` compares the SHA-256 of files that are used with the manifest's, unless they were
                verified before and have not changed since; ``full`` that of every file; ``off`` only sizes.
            unconditional: load the unconditional transformer, if there is one; pictures without guidance need none.
            plans: what will be run, if it is known: engines get room for these sizes, or refuse them before loading.
            vae_graphs: names of the VAE's graphs to load, such as `Plan.vae_graphs`; None for all of them.
            devices: two devices instead of `device`, one for each transformer; see `runtime.backend.placement`.
            negative: with two devices, load the conditional transformer on both, to run a negative prompt beside it.
            max_memory: bytes that engines take at most of each GPU, or the weights of ONNX Runtime of a CPU's memory,
                where several pipelines load together and see the same; None for what is free.

        Raises:
            MissingFileError: there is no bundle in `directory`.
            BundleError: the bundle is damaged.
            RequestError: an argument is none of those above, engines do not take a plan's sizes, or two devices are
                given for one transformer.
            BackendError: the backend or device is not there, or cannot run this bundle.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        encoder = PromptEncoder(directory / manifest.prompt.tokenizer, manifest.prompt)
        wanted = graphs_to_load(directory, manifest, vae_graphs, unconditional, negative and devices is not None)
        choices = (backend, device, memory, threads, verify, plans, devices, max_memory)
        opened = open_bundle(directory, manifest, wanted, *choices)
        chosen, concurrent = opened.choice, devices is not None
        return cls(manifest, opened.graphs, encoder, chosen.backend, chosen.device, opened, concurrent)

    def close(self) -> None:
        """Free all graphs, and keep what the backend compiled. What is called afterwards raises ClosedError."""
        self.closed = True
        self.graphs = {}
        self.features.clear()
        if self.opened:
            opened, self.opened = self.opened, None
            opened.graphs.clear()
            opened.close()

    def __enter__(self) -> "Pipeline":
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the pipeline was closed; load the bundle again")

    def encode(self, token_ids: np.ndarray) -> np.ndarray:
        """Text features (1, T, E) float32 for token ids (1, T) int64; NonFiniteError if they hold NaN or infinity.

        Those of the last prompts are kept, so the array is read-only.
        """
        self._check_open()
        return self.features.get(token_ids, self._encode)

    def _encode(self, token_ids: np.ndarray) -> np.ndarray:
        text = self.graphs["text_encoder"](input_ids=token_ids)
        if not np.isfinite(text).all():
            raise NonFiniteError("the text encoder gave NaN or infinite values")
        return text

    def text(self, plan: Plan) -> np.ndarray:
        """Text features (1, T, E) float32 of a plan's prompt; see `encode`."""
        return self.encode(np.array([plan.token_ids], dtype=np.int64))

    def noise(self, plan: Plan) -> np.ndarray:
        """The start noise (B, N, C) float32 of a plan's seed."""
        rows, columns = plan.grid
        return randn((plan.num_images, rows * columns, self.manifest.latent_channels), plan.seed)

    def trajectory(
        self, plan: Plan, *, text: np.ndarray | None = None, noise: np.ndarray | None = None, given: Given | None = None
    ) -> Iterator[np.ndarray]:
        """Yield a plan's latents (B, N, C) float32 after each step.

        Args:
            plan: what to make.
            text: features of its prompt, if they are at hand.
            noise: (B, N, C) float32 to start from instead of the seed's.
            given: picture and mask that it starts from, if they are read already; see `Start.read`.

        Raises:
            RequestError: the plan needs a graph that is not loaded, or the noise is of another shape.
            NonFiniteError: a graph gave NaN or infinity.
        """
        self._check_open()
        if plan.needs_unconditional_graph and "dit_uncond" not in self.graphs:
            raise RequestError("the pipeline was loaded without the unconditional transformer, which guidance needs")
        noise = self.noise(plan) if noise is None else noise
        if len(noise) != plan.num_images:
            raise RequestError(f"the noise is for {len(noise)} pictures, wanted {plan.num_images}")
        text = self.text(plan) if text is None else text
        negative = None
        if plan.negative_token_ids:
            negative = self.encode(np.array([plan.negative_token_ids], dtype=np.int64))
        steps, blend = plan.steps, None
        if plan.start is not None:
            pixels, repaint = given or plan.start.read()
            picture = self.encode_image(pixels, plan.vae_tile)
            noise, blend = begin(picture, repaint, noise, steps[0].sigma, self.manifest.sizes.multiple)
        yield from self.denoise(text, noise, plan.grid, steps, plan.unconditional, blend, negative)

    def denoise(
        self,
        text: np.ndarray,
        noise: np.ndarray,
        grid: tuple[int, int],
        steps: Sequence[Step],
        unconditional: str = "graph",
        blend: Blend | None = None,
        negative: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the latents (B, N, C) float32 after each step.

        Args:
            text: (1, T, E) float32 from `encode`.
            noise: (B, N, C) float32, N image tokens in row-major order; noised latents to start from a picture.
            grid: rows and columns of image tokens.
            steps: from `runtime.sampling.schedule.schedule`, or a plan's.
            unconditional: as in `Plan.unconditional`.
            blend: see `runtime.sampling.denoise.denoise`.
            negative: (1, T', E) float32, features of the negative prompt.
        """
        self._check_open()
        rows, columns = grid
        if noise.shape[1:] != (rows * columns, self.manifest.latent_channels):
            raise RequestError(
                f"the noise has shape {noise.shape}, wanted (B, {rows * columns}, {self.manifest.latent_channels})"
            )
        name, free_text = second_pass(self.graphs, unconditional, text, negative)
        first = bind(self.graphs["dit_cond"], self.manifest, grid, repeated(text, len(noise)))
        free = None
        if name is not None:
            free = bind(self.graphs[name], self.manifest, grid, repeated(free_text, len(noise)))
        # A thread for the second pass, where it has a device of its own.
        apart = self.concurrent and name is not None and self.graphs[name] is not self.graphs["dit_cond"]
        with ThreadPoolExecutor(1) if apart else nullcontext() as executor:
            yield from denoise(first, free, noise, steps, blend=blend, executor=executor)

    def decode(self, latents: np.ndarray, grid: tuple[int, int], tile: int | None = None) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8 from latents (B, N, C) float32 on a grid of N = rows * columns tokens.

        `tile` is the side of tiles in pixels, None for the whole picture at once; see `runtime.image.tiling`.
        """
        self._check_open()
        # One at a time: the decoder's activations are the largest of the whole line.
        return np.concatenate([vae.decode(self.graphs, self.manifest, one.reshape(*grid, -1), tile) for one in latents])

    def encode_image(self, pixels: np.ndarray, tile: int | None = None) -> np.ndarray:
        """Latents (1, N, C) float32 of a picture (H, W, 3) uint8, the mean of the VAE's posterior; `tile` as above.

        Raises:
            RequestError: the VAE's encoder is not loaded.
            NonFiniteError: it gave NaN or infinity.
        """
        self._check_open()
        return vae.encode(self.graphs, self.manifest, pixels, tile)

    def generate(
        self,
        prompt: str | Caption | Request,
        *,
        noise: np.ndarray | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> Generated:
        """Make pictures: ``generate("a red circle", width=512)`` or ``generate(Request(…))``.

        Args:
            prompt: plain text, a JSON caption, a `Caption`, or a whole `Request`.
            noise: (num_images, N, C) float32 to start from instead of the seed's.
            on_step: called after each step.
            changes: other fields of `runtime.Request`, which win over the request's.

        Raises:
            MissingFileError: there is no such image or mask.
            RequestError: a field is out of range, or the bundle cannot do what is asked for.
            NonFiniteError: a graph gave NaN or infinity.
            BackendError: the backend failed.
            ClosedError: the pipeline was closed.
        """
        self._check_open()
        return self.run(make_plan(self.manifest, self.prompt, prompt, **changes), noise, on_step)

    def run(self, plan: Plan, noise: np.ndarray | None = None, on_step: OnStep | None = None) -> Generated:
        """Make the pictures of a plan; `generate` says what may be raised."""
        self._check_open()
        started = time.perf_counter()
        if self.engines:
            check_limits(self.engines, self.graphs, plan)
        given = None if plan.start is None else plan.start.read()
        total = len(plan.steps)
        for done, latents in enumerate(self.trajectory(plan, noise=noise, given=given), start=1):
            if on_step:
                on_step(done, total, latents)
        images = self.decode(latents, plan.grid, plan.vae_tile)
        if plan.start is not None and given is not None:
            images = paste(images, *given, plan.start.feather)
        used = plan.to_dict() | self.manifest.identity | {"backend": self.backend, "device": self.device}
        return Generated(images, used, time.perf_counter() - started)
