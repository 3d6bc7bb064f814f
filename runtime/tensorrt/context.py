"""An engine's execution context for one optimization profile, and what is set in it."""

from typing import Any

from runtime.errors import BackendError
from runtime.tensorrt.buffers import Arena
from runtime.tensorrt.cuda import Device
from runtime.tensorrt.cuda_graphs import Capture
from runtime.tensorrt.package import TensorRT


class Context:
    """Shapes, addresses and scratch memory of the calls in one profile.

    Each profile has a context of its own, so that what was set and captured in one stays while another runs. They run
    in turns on one stream and share the scratch memory.

    How much of that a context gets (docstrings of TensorRT-RTX 1.7.1): `set_device_memory` wants what the engine needs
    for all its profiles, and returns nothing; it logs a refusal and keeps what it had. `device_memory` calls the size
    for a profile an upper bound, and the memory plan counts that one. So the profile's size is given, and where it is
    refused, the engine's. Both contain the memory for the copies of streamed weights.
    `update_device_memory_size_for_shapes` may report less; that is not used, so nothing moves when shapes change.
    """

    def __init__(
        self,
        package: TensorRT,
        device: Device,
        arena: Arena,
        name: str,
        context: Any,
        *,
        profile: int,
        needed: int,
        most: int,
        captured: bool,
    ) -> None:
        """Choose the profile in a new context of TensorRT's.

        Args:
            package: what the context is of.
            device: where it runs.
            arena: memory for its activations.
            name: of the stage.
            context: TensorRT's, with memory that the caller gives it.
            profile: index of the profile.
            needed: bytes of scratch memory that suffice for every shape in the profile.
            most: the same for all profiles of the engine.
            captured: launch repeated calls as a CUDA graph.

        Raises:
            BackendError: the plan has no such profile.
        """
        self.package, self.device, self.arena, self.name = package, device, arena, name
        self.context, self.needed, self.most = context, needed, most
        self.capture = Capture(device) if captured else None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.arena_place: tuple[int, int] | None = None
        # The first context of an engine starts in profile 0, others in none. What a change copies goes over the same
        # stream as the runs, so they need not wait for each other.
        if context.active_optimization_profile != profile and not context.set_optimization_profile_async(
            profile, device.stream
        ):
            raise package.failure(f"choosing profile {profile} of {name}")

    def bind(self, shapes: dict[str, tuple[int, ...]], output: str) -> tuple[int, ...]:
        """Set the inputs' shapes; the shape of `output`.

        Raises:
            BackendError: TensorRT refuses the shapes or the scratch memory.
            CudaError: there is no memory for the activations.
        """
        context = self.context
        if shapes != self.shapes:
            self.shapes = {}
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise self.package.failure(f"taking {name} of the shape {list(shape)} for {self.name}")
            if missing := context.infer_shapes():
                raise BackendError(f"{self.name} lacks the shapes of {', '.join(missing)}")
            self.shapes = dict(shapes)
        self._give_scratch()
        made = tuple(context.get_tensor_shape(output))
        if any(size < 0 for size in made):  # unknown to TensorRT, which promises it for none of our graphs
            raise self.package.failure(f"finding the shape of {output} of {self.name}")
        return made

    def _give_scratch(self) -> None:
        """Tell the context where its scratch memory is, if that has changed. One that needs none is told nothing."""
        arena, log = self.arena, self.package.log
        while self.needed:
            arena.reserve(self.needed)
            if self.arena_place == (arena.address, arena.size):
                return
            self.arena_place = None
            log.last_error = ""
            self.context.set_device_memory(arena.address, arena.size)
            if not log.last_error:
                self.arena_place = (arena.address, arena.size)
            elif self.needed < self.most:
                self.needed = self.most
            else:
                raise self.package.failure(f"giving {self.name} {arena.size} bytes of scratch memory")

    def place(self, addresses: dict[str, int]) -> None:
        """Set where inputs and output lie on the device."""
        context = self.context
        for name, address in addresses.items():
            if self.addresses.get(name) != address:
                if not context.set_tensor_address(name, address):
                    raise self.package.failure(f"taking the address of {name} for {self.name}")
                self.addresses[name] = address

    def run(self) -> None:
        """Start the engine on the stream."""
        if self.capture is None:
            done = self._enqueue()
        else:
            shapes, addresses = tuple(sorted(self.shapes.items())), tuple(sorted(self.addresses.items()))
            done = self.capture.run((shapes, addresses, self.arena_place), self._enqueue)
        if not done:
            raise self.package.failure(f"running {self.name}")

    def drop(self) -> None:
        """Free the context and what was captured in it."""
        try:
            if self.capture is not None:
                self.capture.clear()
        finally:
            self.context = None

    def _enqueue(self) -> bool:
        return bool(self.context.execute_async_v3(self.device.stream))
