"""An engine's execution context for one optimization profile, and what is set in it."""

from typing import Any

from runtime.errors import BackendError
from runtime.tensorrt.buffers import Arena
from runtime.tensorrt.cuda import Device
from runtime.tensorrt.cuda_graphs import Captures
from runtime.tensorrt.package import TensorRT


class Context:
    """Shapes, addresses and scratch memory of the calls in one profile.

    Each profile has a context of its own, so that what was set and captured in one stays while another runs. They run
    in turns on one stream and share the scratch memory.
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
        largest: int,
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
            largest: bytes of scratch memory that suffice for every shape in the profile.
            captured: launch repeated calls as CUDA graphs.

        Raises:
            BackendError: the plan has no such profile.
        """
        self.package, self.device, self.arena, self.name = package, device, arena, name
        self.context, self.largest = context, largest
        self.captures = Captures(device) if captured else None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.arena_place: tuple[int, int] | None = None
        self.scratch = 0
        # The first context of an engine starts in profile 0, others in none. What a change copies goes over the same
        # stream as the runs, so they need not wait for each other.
        if context.active_optimization_profile != profile and not context.set_optimization_profile_async(
            profile, device.stream
        ):
            raise package.failure(f"choosing profile {profile} of {name}")

    def bind(self, shapes: dict[str, tuple[int, ...]], output: str) -> tuple[int, ...]:
        """Set the inputs' shapes; the shape of `output`.

        Raises:
            BackendError: TensorRT refuses the shapes.
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
            # 0 is an error or nothing needed; what suffices for every shape is known.
            self.scratch = context.update_device_memory_size_for_shapes() or self.largest
            self.arena_place = None
            self.shapes = dict(shapes)
        self.arena.reserve(self.scratch)
        if self.arena_place != (self.arena.address, self.arena.size):
            context.set_device_memory(self.arena.address, self.arena.size)
            self.arena_place = (self.arena.address, self.arena.size)
        return tuple(context.get_tensor_shape(output))

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
        if self.captures is None:
            done = self._enqueue()
        else:
            shapes = tuple(sorted(self.shapes.items()))
            places = (tuple(sorted(self.addresses.items())), self.arena_place)
            done = self.captures.run(shapes, places, self._enqueue)
        if not done:
            raise self.package.failure(f"running {self.name}")

    def drop(self) -> None:
        """Free the context and what was captured in it."""
        if self.captures is not None:
            self.captures.clear()
        self.context = None

    def _enqueue(self) -> bool:
        return bool(self.context.execute_async_v3(self.device.stream))
