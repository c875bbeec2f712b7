"""From a name to a network, and back from its checkpoint. Knows names, arguments and the checkpoint's form; `split`
knows the network's inside.

A specification is a mapping with the class under "_target_" and its arguments beside it. What the pipeline knows by
itself (channels, classes, size) is filled in where the constructor asks for it. Nothing is evaluated: a class path must
lie in a package of the allow-list, and no argument may make a constructor download or read a file.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from networks.bounded import bounded
from networks.split import NetworkError, Size, split

BODY_NET = "networks.body_net.BodyNet"
MONAI_NETS = "monai.networks.nets"
# Short names. Every other class of monai.networks.nets can be named, too; these are the ones that segment volumes as
# they come.
KNOWN = (
    *("BodyNet", "AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "HighResNet", "MedNeXt"),
    *("SegResNet", "SegResNetDS", "SwinUNETR", "UNet", "UNETR", "VNet"),
)
ALLOWED_PACKAGES = ("networks", "pasco", "monai.networks", "torch.nn")
# What the pipeline knows, and the names that constructors have for it
IN_CHANNELS = ("in_channels", "in_chans", "n_input_channels")
N_CLASSES = ("out_channels", "n_classes", "num_classes")
IMAGE_SIZE = ("img_size", "image_size", "input_image_size")
SPATIAL_DIMS = ("spatial_dims", "dimensions")
# Constructors' arguments that fetch weights, whatever they are but false; and those that name a place, if they are text
FETCHES = re.compile(r"^(pretrain|download|weights(_|$))", re.IGNORECASE)
PLACES = re.compile(
    r"(^|_)(ur[il]|path|file|dir|folder|repo|checkpoint|ckpt)s?(_|$)|(url|path|file|filename)$", re.IGNORECASE
)


def build_network(
    spec: Mapping[str, Any] | str | None = None,
    *,
    in_channels: int = 1,
    n_classes: int = 71,
    base_channels: int = 32,
    light: bool = False,
    target_size: Sequence[int] = (160, 160, 256),
    checkpointing: bool = False,
    trust: bool = False,
) -> nn.Module:
    """Build a network with `features(x)` -> (B, F, I, J, K) and `head`, a 1×1×1 convolution, or None where the features
    are the logits.

    Args:
        spec: None for BodyNet; else {"_target_": NAME, arguments…}, or NAME alone, where NAME is a short name such
            as "SegResNet" or a class path such as "monai.networks.nets.SegResNet".
        in_channels: Channels of the image.
        n_classes: Classes, background included.
        base_channels: Channels of BodyNet at full resolution; other networks have their own arguments for their width.
        light: BodyNet's light form.
        target_size: Voxels (I, J, K) of the volumes to come. Sizes that the network does not take are padded inside.
        checkpointing: BodyNet recomputes its inside in the backward pass; other networks have their own arguments
            for it, if at all.
        trust: Import class paths outside the allow-list, too, and take arguments that make a constructor download
            weights or read a file. Importing runs that package's code.

    Raises:
        NetworkError: An unknown name (the known ones are listed), a wrong, missing or contradictory argument, one that
            would fetch something where `trust` is not given, a network of another kind.
    """
    path, arguments = parse_description(BODY_NET if spec is None else spec)
    name, network_class = path.rpartition(".")[2], find_class(path, trust)
    if not trust:
        refuse_fetching(network_class, name, arguments)
    known = _fields(IN_CHANNELS, in_channels) | _fields(N_CLASSES, n_classes) | _fields(SPATIAL_DIMS, 3)
    if path == BODY_NET:
        known |= {"base_channels": base_channels, "light": light}
        arguments |= {"checkpointing": True} if checkpointing else {}
    elif light or checkpointing:
        option = "use_light_model" if light else "checkpointing"
        raise NetworkError(
            f"model.{option} is a form of BodyNet; switch it off, {name} has its own arguments in model.network"
        )
    arguments = fill_in(network_class, name, arguments, known)
    return assemble(network_class, path, arguments, target_size)


def check_network(spec: Mapping[str, Any] | str | None, *, trust: bool = False) -> None:
    """Judge a specification as far as that takes no data, before they are prepared for hours.

    Raises:
        NetworkError: As `build_network` for the class, the names of its arguments and what they would fetch.
    """
    if spec is not None:
        path, arguments = parse_description(spec)
        name, network_class = path.rpartition(".")[2], find_class(path, trust)
        _refuse_unknown(network_class, name, arguments)
        if not trust:
            refuse_fetching(network_class, name, arguments)


def network_settings(network: nn.Module) -> dict[str, Any]:
    """What a checkpoint says about its network: {"_target_": class path, arguments…}, plain JSON.

    Raises:
        NetworkError: If the network was not built here.
    """
    settings = getattr(network, "settings", None)
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise NetworkError(
            f"{type(network).__name__} does not know its settings; build it with networks.registry.build_network"
        )
    return dict(settings)


def parse_description(spec: Mapping[str, Any] | str) -> tuple[str, dict[str, Any]]:
    """Class path and arguments of a specification, the arguments as plain JSON values."""
    fields: dict[str, Any] = {"_target_": spec} if isinstance(spec, str) else dict(spec)
    name = fields.pop("_target_", None)
    if not isinstance(name, str) or not name:
        raise NetworkError(
            f"model.network: _target_ is {name!r}; expected a network's name or class path, as {MONAI_NETS}.SegResNet"
        )
    try:
        return _class_path(name), json.loads(json.dumps(fields, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise NetworkError(
            f"model.network: the arguments of {name} must be plain numbers, texts, lists and mappings ({error})"
        ) from None


def _class_path(name: str) -> str:
    """The class path of a short name; a class path as it is."""
    if "." in name:
        return name
    return BODY_NET if name == "BodyNet" else f"{MONAI_NETS}.{name}"


def find_class(path: str, trust: bool) -> type[nn.Module]:
    """The class of a class path that lies in an allowed package."""
    module_name, _, class_name = path.rpartition(".")
    if not trust and not any(module_name == p or module_name.startswith(p + ".") for p in ALLOWED_PACKAGES):
        raise NetworkError(
            f"network {path}: classes are taken from {', '.join(ALLOWED_PACKAGES)} only; if you trust the package "
            f"{module_name.split('.')[0]}, whose code then runs, give --trust_config (trust=True)"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except (ImportError, ValueError, TypeError):  # the last two for what is no module's name at all
        found = None
    if not inspect.isclass(found) or not issubclass(found, nn.Module):
        close = difflib.get_close_matches(class_name, KNOWN, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}? " if close else ""
        raise NetworkError(
            f"unknown network {path}; {hint}known are {', '.join(KNOWN)}, "
            f"and class paths such as {MONAI_NETS}.SegResNet"
        )
    return found


def _fields(names: Sequence[str], value: Any) -> dict[str, Any]:
    return dict.fromkeys(names, value)


def fill_in(
    network_class: type[nn.Module], name: str, arguments: dict[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments, completed by what the pipeline knows, checked against the constructor."""
    parameters = inspect.signature(network_class).parameters
    accepted = _refuse_unknown(network_class, name, arguments)
    for key, value in known.items():
        if key in arguments and arguments[key] != value:
            raise NetworkError(
                f"network {name}: {key} is {arguments[key]} in model.network, but {value} by the data and the config; "
                "remove it from model.network"
            )
    arguments = arguments | {key: value for key, value in known.items() if key in accepted}
    needed = [key for key in accepted if parameters[key].default is inspect.Parameter.empty]
    missing = [key for key in needed if key not in arguments and key not in IMAGE_SIZE]
    if missing:
        raise NetworkError(f"network {name} needs the argument {missing[0]}; it takes {', '.join(accepted)}")
    return arguments


def _refuse_unknown(network_class: type[nn.Module], name: str, arguments: Mapping[str, Any]) -> list[str]:
    """The names of the constructor's arguments. Raises NetworkError where one is given that it has not."""
    parameters = inspect.signature(network_class).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted = [key for key, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for key in arguments:
        if key not in accepted and not takes_any:
            raise NetworkError(f"network {name} has no argument {key}; it takes {', '.join(accepted)}")
    return accepted


def refuse_fetching(network_class: type[nn.Module], name: str, arguments: Mapping[str, Any]) -> None:
    """Raise NetworkError where an argument, given or by default, makes the constructor download weights or read a file.

    A checkpoint or a config from a stranger would otherwise send this machine to the stranger's address.
    """
    parameters = inspect.signature(network_class).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    for key, value in _leaves(defaults | dict(arguments)):
        is_text = isinstance(value, str) and value != ""
        if (FETCHES.search(key) and value) or (is_text and (PLACES.search(key) or "://" in value)):
            raise NetworkError(
                f"network {name}: its argument {key} ({str(value)[:80]!r}) would download weights or read a file; "
                "set it to false or null, or give --trust_config (trust=True) if you trust where it leads"
            )


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value inside, with the name of the mapping's entry that holds it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, str(name) if not FETCHES.search(key) else key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def assemble(
    network_class: type[nn.Module],
    path: str,
    arguments: dict[str, Any],
    target_size: Sequence[int],
    n_held: int | None = None,
) -> nn.Module:
    """The network built and split, knowing its settings."""
    name = path.rpartition(".")[2]
    size_key = next((key for key in IMAGE_SIZE if key in inspect.signature(network_class).parameters), None)
    if size_key is not None:
        arguments = {size_key: list(target_size)} | arguments
        target_size = [arguments[size_key]] * 3 if isinstance(arguments[size_key], int) else arguments[size_key]
    network = _constructed(network_class, name, arguments, n_held)
    if not (callable(getattr(network, "features", None)) and isinstance(getattr(network, "head", None), nn.Conv3d)):
        network = split(
            network,
            name=name,
            in_channels=_first(arguments, IN_CHANNELS),
            n_classes=_first(arguments, N_CLASSES),
            target_size=target_size,
            build_at=_builder(network_class, name, arguments, size_key) if size_key else None,
        )
    if not getattr(network, "settings", None):
        # torch types every attribute of a module as Tensor or Module
        network.settings = {"_target_": path, **arguments}  # type: ignore[assignment]
    return network


def _constructed(
    network_class: type[nn.Module], name: str, arguments: Mapping[str, Any], n_held: int | None = None
) -> nn.Module:
    """The network; with `n_held`, one of about as many numbers at most."""
    try:
        with contextlib.nullcontext() if n_held is None else bounded(n_held):
            return network_class(**arguments)
    except NetworkError:
        raise
    except Exception as error:  # whatever a constructor raises is about its arguments
        raise NetworkError(f"network {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _builder(network_class: type[nn.Module], name: str, arguments: Mapping[str, Any], size_key: str) -> Any:
    def build_at(size: Size) -> nn.Module:
        return _constructed(network_class, name, {**arguments, size_key: list(size)})

    return build_at


def _first(arguments: Mapping[str, Any], names: Sequence[str]) -> int:
    """The value of the argument that has one of these names; 1, the constructors' default, if there is none."""
    return next((arguments[name] for name in names if name in arguments), 1)
