"""The version, and the name of a wheel for a torch. It imports nothing, as a build reads it."""

__version__ = "0.1.0"
# The place of wheels: an index of packages takes none whose version has a local part.
REPOSITORY = "https://github.com/fastvi/fastvi"
WHEELS = f"{REPOSITORY}/releases/expanded_assets/v{__version__}"


def wheel_tag(torch_version: str, cuda_version: str) -> str:
    """Return the local part of a wheel's version: pt213cpu, or pt213cu130 with CUDA 13.0."""
    torch_minor = "".join(torch_version.split("+")[0].split(".")[:2])
    cuda = "".join(cuda_version.split(".")[:2])
    return f"pt{torch_minor}{f'cu{cuda}' if cuda else 'cpu'}"
