"""Whether a plan can run here, as TensorRT-RTX tells from its header, and what to do if it cannot."""

from pathlib import Path

from runtime.errors import BackendError, BundleError
from runtime.tensorrt.package import TensorRT

_REBUILD = "build the bundle's engines again"
_REASONS: dict[str, tuple[str, str]] = {
    "MALFORMED_ENGINE": ("it is no plan of TensorRT-RTX, or it is damaged", _REBUILD),
    "VERSION_MISMATCH": ("it was built by another version", f"install that version, or {_REBUILD}"),
    "UNSUPPORTED_CC": ("it was built for other GPUs", f"{_REBUILD}, for this GPU"),
    "OLD_CUDA_DRIVER": ("the NVIDIA driver is too old for it", "update the driver"),
    "OLD_CUDA_RUNTIME": ("the CUDA runtime is too old for it", "install the extra 'rtx' again"),
    "CUDA_ERROR": ("the NVIDIA driver or the CUDA runtime is not installed properly", "install the driver again"),
}
"""Members of `EngineInvalidityDiagnostics` (docstrings of TensorRT-RTX 1.7.1), and what helps. Several may be set."""
_OF_THE_PLAN = ("MALFORMED_ENGINE", "VERSION_MISMATCH", "UNSUPPORTED_CC")
"""Those that another plan would mend; the others are the machine's."""


def check_plan(package: TensorRT, file: Path, driver_problem: str = "") -> None:
    """Look at the header of a plan; for TensorRT, which cannot tell, do nothing.

    Without a driver TensorRT-RTX 1.7.1 recognises what is no plan at all; of anything else it says that it is
    invalid, without a reason (0), and logs an error. So does a test with it.

    Args:
        package: what will load the plan.
        file: the plan.
        driver_problem: what is wrong with the driver, if that is known.

    Raises:
        BundleError: the plan is damaged, or for another version or GPU.
        BackendError: the machine lacks something; the message says what.
    """
    if not package.rtx:
        return
    trt, runtime = package.trt, package.runtime
    with file.open("rb") as stream:
        header = stream.read(runtime.engine_header_size)
    with package.calling():
        validity, found = runtime.get_engine_validity(header)
    if validity != trt.EngineValidity.INVALID:
        return
    members = trt.EngineInvalidityDiagnostics.__members__
    if found == members["INSUFFICIENT_GPU_MEMORY"].value:
        return  # how much there is was looked at before, with what streaming and staging save
    names = [name for name in _REASONS if found & members[name].value]
    what = f"{package.title} cannot run the plan {file}"
    if not names:
        raise BackendError(f"{what}: {driver_problem or package.log.last_error or 'it gave no reason'}")
    said = ", ".join(_REASONS[name][0] for name in names)
    # What the plan lacks comes first: without it the rest does not matter.
    error = BundleError if names[0] in _OF_THE_PLAN else BackendError
    raise error(f"{what}: {said}; {_REASONS[names[0]][1]}")
