"""A model in a file: its weights, its class and its settings, and no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fastvi.chunks.surroundings import uninitialised
from fastvi.files._strangers import one_line
from fastvi.files.weights import WeightsFile, save_weights
from fastvi.models.likelihoods.by_name import made_anew

FORMAT = 1


def save_model(model: nn.Module, path: str | Path, settings: dict[str, Any]) -> None:
    where = f"{type(model).__name__}.save"
    if lazy := uninitialised(model):
        raise ValueError(
            f"{where}: expected all layers to know their sizes, but {lazy} has not seen any input"
        )
    likelihood: Any = model.likelihood
    content = {
        "format": FORMAT,
        "class": type(model).__name__,
        "settings": settings,
        "likelihood": {"class": type(likelihood).__name__, "settings": likelihood.settings()},
    }
    save_weights(path, model.state_dict(), content)


class SavedModel:
    """A file that ``save`` has written, before its weights are read."""

    def __init__(self, kind: type[nn.Module], path: str | Path) -> None:
        self.where = f"{kind.__name__}.load"
        self.path = path
        self._what = f"a model that {kind.__name__}.save has written"
        self._file = WeightsFile(self.where, path, self._what)
        content = self._file.settings
        if not isinstance(content, dict) or "format" not in content:
            raise self.refused("weights without a model's settings")
        if content["format"] != FORMAT:
            raise self.refused(f"one of format {one_line(content['format'])}, not {FORMAT}")
        if content.get("class") != kind.__name__:
            raise self.refused(f"one of the class {one_line(content.get('class'))}")
        self.settings = content.get("settings")
        self._likelihood = content.get("likelihood")
        if not isinstance(self.settings, dict) or not isinstance(self._likelihood, dict):
            raise self.refused("one without settings")

    def likelihood(self) -> nn.Module:
        """Return the likelihood of the saved model, if it is one of fastvi's own."""
        assert self._likelihood is not None
        name, settings = self._likelihood.get("class"), self._likelihood.get("settings")
        if settings is None:
            raise ValueError(
                f"{self.where}: expected likelihood=... for {self.path}, whose likelihood of the "
                f"class {one_line(name)} is not one of fastvi's own, got none"
            )
        try:
            return made_anew(name, settings)
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise self.refused(one_line(error)) from error

    def setting(self, name: str, *kinds: type) -> Any:
        """Return a setting by its name, of one of these types."""
        assert self.settings is not None
        value = self.settings.get(name)
        if not isinstance(value, kinds):
            raise self.refused(f"the setting {name} of {one_line(value)}")
        return value

    def fill(self, model: nn.Module) -> None:
        """Put the weights into a model of the same shapes."""
        self._file.check(model.state_dict())
        try:
            model.load_state_dict(self._file.tensors())
        except RuntimeError as error:
            raise self.refused(one_line(error)) from error

    def refused(self, got: str) -> ValueError:
        return ValueError(f"{self.where}: expected {self.path} to be {self._what}, got {got}")


class Savable(nn.Module):
    """Save a model in a file, and describe it."""

    def save(self, path: str | Path) -> None:
        """Save parameters, buffers and settings in a safetensors file, which holds no code.

        ``load`` of the same class reads it, given networks of the same shapes. The file is there
        whole or not at all, also after a kill or on a full disk.

        Args:
            path: of the file, which is replaced if it exists.

        Raises:
            ImportError: safetensors is not installed.
            OSError: the file cannot be written.
            ValueError: a lazy layer has not seen any input.

        Example:
            >>> import pathlib, tempfile
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "vae.safetensors"
            >>> fastvi.VAE(torch.nn.Linear(5, 4), torch.nn.Linear(2, 5)).save(path)
            >>> vae = fastvi.VAE.load(path, torch.nn.Linear(5, 4), torch.nn.Linear(2, 5))
        """
        save_model(self, path, self._settings())

    def _settings(self) -> dict[str, Any]:
        """Return the settings for a file, as plain values."""
        return {"fuse_linear": self.fuse_linear}

    def _describe(self, **parts: object) -> str:
        """Return the settings by name, and networks that are functions."""
        shown = [f"{name}={value}" for name, value in parts.items() if value is not None]
        for name in ("encoder", "decoder"):
            network = getattr(self, name, None)
            if network is not None and not isinstance(network, nn.Module):
                shown.append(f"{name}={getattr(network, '__qualname__', repr(network))}")
        return ", ".join(shown)
