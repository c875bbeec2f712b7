"""Build a network from its name or class path and its arguments.

A specification is a mapping with the class under "_target_" and its arguments beside it. What the pipeline knows
(channels, classes, size) is filled in where the constructor asks for it. Nothing is evaluated: a class path must lie in
a package of the allow-list, and no argument may make a constructor download or read a file.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from networks import BODY_NET
from networks.deep_supervision import CoarseHeads, return_coarse_outputs
from networks.errors import NetworkError
from networks.features_and_head import Split, find_split, split_head
from networks.parameter_limit import limit_parameters
from networks.probe import Size, freeze_unused_parameters

logger = logging.getLogger(__name__)

MONAI_NETS = "monai.networks.nets"
KNOWN = (
    *("BodyNet", "AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "HighResNet", "MedNeXt"),
    *("SegResNet", "SegResNetDS", "SwinUNETR", "UNet", "UNETR", "VNet"),
)
"""Short names of networks that segment volumes as they come; every other class of monai.networks.nets can be named,
too."""
ALLOWED_PACKAGES = ("networks", "pasco", "monai.networks", "torch.nn")
# The names that constructors have for what the pipeline fills in
IN_CHANNELS = ("in_channels", "in_chans", "n_input_channels")
N_CLASSES = ("out_channels", "n_classes", "num_classes")
IMAGE_SIZE = ("img_size", "image_size", "input_image_size")
SPATIAL_DIMS = ("spatial_dims", "dimensions")
FETCHING = re.compile(r"^(pretrain|download|weights(_|$))", re.IGNORECASE)
"""Arguments that make a constructor fetch weights unless they are false."""
PATHS = re.compile(
    r"(^|_)(ur[il]|path|file|dir|folder|repo|checkpoint|ckpt)s?(_|$)|(url|path|file|filename)$", re.IGNORECASE
)
"""Arguments that name a file or an address if their value is text."""


_SPLITS: dict[tuple[type[nn.Module], str], Split] = {}
"""By class, arguments and size: found once a process, which takes some seconds of a SwinUNETR."""


class Specification(NamedTuple):
    """A network's class and the arguments of its constructor."""

    network_class: type[nn.Module]
    """Found in an allowed package, or trusted."""
    class_path: str
    """Such as "monai.networks.nets.SegResNet"."""
    arguments: dict[str, Any]
    """By name, plain JSON values."""

    @property
    def name(self) -> str:
        """The class's own name, for messages."""
        return self.class_path.rpartition(".")[2]


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

    >>> import torch
    >>> network = build_network({"_target_": "SegResNet", "init_filters": 8}, n_classes=3, target_size=(32, 32, 48))
    >>> features = network.features(torch.zeros(1, 1, 32, 32, 48))
    >>> features.shape, network.head
    (torch.Size([1, 8, 32, 32, 48]), Conv3d(8, 3, kernel_size=(1, 1, 1), stride=(1, 1, 1)))

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
            would fetch something where `trust` is not given, or a network that does not segment volumes.
    """
    specification = specify(
        spec,
        in_channels=in_channels,
        n_classes=n_classes,
        base_channels=base_channels,
        light=light,
        checkpointing=checkpointing,
        trust=trust,
    )
    specification = for_size(specification, target_size)
    network = take_apart(call_constructor(specification), specification, target_size)
    fixed_size = getattr(network, "fixed_size", None)
    if fixed_size and any(n > most for n, most in zip(target_size, fixed_size, strict=True)):
        most, found = ("×".join(map(str, size)) for size in (fixed_size, target_size))
        raise NetworkError(
            f"network {specification.name}: expected volumes of at most {most} voxels, for which it is built by "
            f"model.network, found data.target_size {found}; change one of the two"
        )
    return network


def specify(
    spec: Mapping[str, Any] | str | None,
    *,
    in_channels: int,
    n_classes: int,
    base_channels: int,
    light: bool,
    checkpointing: bool = False,
    trust: bool = False,
) -> Specification:
    """Return the class and the arguments of the network that `build_network` builds. Raises NetworkError as it does."""
    specification = read_specification(BODY_NET if spec is None else spec, trust=trust)
    known = (
        dict.fromkeys(IN_CHANNELS, in_channels) | dict.fromkeys(N_CLASSES, n_classes) | dict.fromkeys(SPATIAL_DIMS, 3)
    )
    if _is_body_net(specification):
        own: dict[str, Any] = {"base_channels": base_channels, "light": light}
        if specification.class_path != BODY_NET:
            # By another import path the arguments of model.network count, as they did when earlier runs were trained;
            # the light form, once it is asked for, must agree.
            own = {n: value for n, value in own.items() if n not in specification.arguments or value is True}
            specification = specification._replace(class_path=BODY_NET)
        known |= own
        if checkpointing:
            specification.arguments["checkpointing"] = True
    elif light or checkpointing:
        option = "use_light_model" if light else "checkpointing"
        raise NetworkError(
            f"model.{option} is BodyNet's; switch it off, {specification.name} has its own arguments in model.network"
        )
    return complete_arguments(specification, known)


def check_network(
    spec: Mapping[str, Any] | str | None,
    *,
    base_channels: int = 32,
    light: bool = False,
    deep_supervision: bool = False,
    trust: bool = False,
) -> None:
    """Check a specification as far as that takes no data, before they are prepared for hours.

    Args:
        spec: As for `build_network`, and so are `base_channels`, `light` and `trust`.
        deep_supervision: Whether coarser levels of a BodyNet get heads.

    Raises:
        NetworkError: As `build_network` for the class, the names of its arguments and what they would fetch, and, of
            BodyNet, for their values; or if it has no coarser levels for `deep_supervision`.
    """
    if spec is None:
        return
    specification = read_specification(spec, trust=trust)
    _accepted_arguments(specification)
    if _is_body_net(specification):
        n = {name: specification.arguments.get(name, 2) for name in ("in_channels", "n_classes")}
        with torch.device("meta"):  # shapes without memory; not every other network can be built like this
            network = call_constructor(specify(spec, **n, base_channels=base_channels, light=light, trust=trust))
            if deep_supervision:
                CoarseHeads(network, n_classes=2)


def _is_body_net(specification: Specification) -> bool:
    """Whether it is BodyNet, by whichever import path."""
    found = specification.network_class
    return f"{found.__module__}.{found.__name__}" == BODY_NET


def network_settings(network: nn.Module) -> dict[str, Any]:
    """Return what a checkpoint says about its network: {"_target_": class path, arguments…}, plain JSON.

    Raises:
        NetworkError: If the network was not built here.
    """
    settings = getattr(network, "settings", None)
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise NetworkError(
            f"{type(network).__name__} does not know its settings; build it with networks.registry.build_network"
        )
    return dict(settings)


def read_specification(spec: Mapping[str, Any] | str, *, trust: bool = False) -> Specification:
    """Find the class that a specification names.

    Raises:
        NetworkError: If it names no network of an allowed package (any package with `trust`), if an argument is not
            plain JSON, or, without `trust`, if an argument would download weights or read a file.
    """
    fields: dict[str, Any] = {"_target_": spec} if isinstance(spec, str) else dict(spec)
    name = fields.pop("_target_", None)
    if not isinstance(name, str) or not name:
        raise NetworkError(
            f"model.network: _target_ is {name!r}; expected a network's name or class path, as {MONAI_NETS}.SegResNet"
        )
    try:
        arguments = json.loads(json.dumps(fields, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise NetworkError(
            f"model.network: the arguments of {name} must be plain numbers, texts, lists and mappings ({error})"
        ) from None
    class_path = _class_path(name)
    specification = Specification(_find_class(class_path, trust), class_path, arguments)
    if not trust:
        _refuse_fetching(specification)
    return specification


def _class_path(name: str) -> str:
    """Return the class path of a short name; a class path as it is."""
    if "." in name:
        return name
    return BODY_NET if name == "BodyNet" else f"{MONAI_NETS}.{name}"


def _find_class(path: str, trust: bool) -> type[nn.Module]:
    module_name, _, class_name = path.rpartition(".")
    if not trust and not any(module_name == p or module_name.startswith(p + ".") for p in ALLOWED_PACKAGES):
        raise NetworkError(
            f"network {path}: classes are taken from {', '.join(ALLOWED_PACKAGES)} only; if you trust the package "
            f"{module_name.split('.')[0]}, whose code then runs, give --trust_config (trust=True)"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except (ImportError, ValueError, TypeError):  # the last two for what is not a module's name
        found = None
    if not inspect.isclass(found) or not issubclass(found, nn.Module):
        close = difflib.get_close_matches(class_name, KNOWN, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}? " if close else ""
        raise NetworkError(
            f"unknown network {path}; {hint}known are {', '.join(KNOWN)}, "
            f"and class paths such as {MONAI_NETS}.SegResNet"
        )
    return found


def _refuse_fetching(specification: Specification) -> None:
    """Raise NetworkError where an argument, given or by default, makes the constructor download weights or read a file.

    A checkpoint or a config from a stranger would otherwise send this machine to the stranger's address.
    """
    parameters = inspect.signature(specification.network_class).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    for key, value in leaves(defaults | specification.arguments):
        is_text = isinstance(value, str) and value != ""
        if (FETCHING.search(key) and value) or (is_text and (PATHS.search(key) or "://" in value)):
            raise NetworkError(
                f"network {specification.name}: its argument {key} ({str(value)[:80]!r}) would download weights or "
                "read a file; set it to false or null, or give --trust_config (trust=True) if you trust where it leads"
            )


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every plain value inside, with the name of the mapping's entry that holds it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, str(name) if not FETCHING.search(key) else key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield key, value


def complete_arguments(specification: Specification, known: Mapping[str, Any]) -> Specification:
    """Add those of the `known` arguments that the constructor takes.

    Raises:
        NetworkError: If an argument is unknown to the constructor, contradicts what is known, or is missing.
    """
    network_class, path, arguments = specification
    parameters, accepted = inspect.signature(network_class).parameters, _accepted_arguments(specification)
    for key, value in known.items():
        if key in arguments and arguments[key] != value:
            raise NetworkError(
                f"network {specification.name}: {key} is {arguments[key]} in model.network, but {value} by the data "
                "and the config; remove it from model.network"
            )
    arguments = arguments | {key: value for key, value in known.items() if key in accepted}
    needed = [key for key in accepted if parameters[key].default is inspect.Parameter.empty]
    missing = [key for key in needed if key not in arguments and key not in IMAGE_SIZE]
    if missing:
        raise NetworkError(
            f"network {specification.name} needs the argument {missing[0]}; it takes {', '.join(accepted)}"
        )
    return Specification(network_class, path, arguments)


def _accepted_arguments(specification: Specification) -> list[str]:
    """Return the names of the constructor's arguments. Raises NetworkError where another one is given."""
    parameters = inspect.signature(specification.network_class).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted = [key for key, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for key in specification.arguments:
        if key not in accepted and not takes_any:
            raise NetworkError(f"network {specification.name} has no argument {key}; it takes {', '.join(accepted)}")
    return accepted


def take_apart(
    network: nn.Module, specification: Specification, target_size: Sequence[int], *, is_trusted: bool = True
) -> nn.Module:
    """Split a network into features and head, and let it know its settings; parameters that take no part do not require
    gradients.

    Args:
        network: What `call_constructor` returned; it is changed in place and belongs to the result.
        specification: Its own, as `for_size` returns it.
        target_size: Voxels (I, J, K) of the volumes to come.
        is_trusted: As `Probe` has it.

    Raises:
        NetworkError: If the network does not segment volumes.
    """
    network_class, path, arguments = specification
    size_key = _size_key(network_class)
    if size_key is not None:
        target_size = [arguments[size_key]] * 3 if isinstance(arguments[size_key], int) else arguments[size_key]
    in_channels = _first(arguments, IN_CHANNELS)
    if not (callable(getattr(network, "features", None)) and isinstance(getattr(network, "head", None), nn.Conv3d)):
        return_coarse_outputs(network)
        key = network_class, json.dumps([arguments, list(target_size)], sort_keys=True)
        if key not in _SPLITS:
            _SPLITS[key] = find_split(
                network,
                name=specification.name,
                in_channels=in_channels,
                n_classes=_first(arguments, N_CLASSES),
                target_size=target_size,
                build_at=_builder(specification, size_key) if size_key else None,
                is_trusted=is_trusted,
            )
        network = split_head(network, _SPLITS[key])
    i, j, k = target_size
    unused = freeze_unused_parameters(network, in_channels, (i, j, k))
    if unused:
        logger.info(
            "network %s: %s of its parameters take no part and are not trained (%s, …)",
            specification.name,
            len(unused),
            unused[0],
        )
    if not getattr(network, "settings", None):
        # torch types every attribute of a module as Tensor or Module
        network.settings = {"_target_": path, **arguments}  # type: ignore[assignment]
    return network


def for_size(specification: Specification, target_size: Sequence[int]) -> Specification:
    """Tell the size of the volumes to a constructor that asks for it, unless its arguments say another."""
    key = _size_key(specification.network_class)
    if key is None:
        return specification
    return specification._replace(arguments={key: list(target_size)} | specification.arguments)


def _size_key(network_class: type[nn.Module]) -> str | None:
    return next((key for key in IMAGE_SIZE if key in inspect.signature(network_class).parameters), None)


def call_constructor(specification: Specification, most_parameters: int | None = None) -> nn.Module:
    """Call the constructor; whatever it raises is about its arguments and becomes a NetworkError.

    most_parameters: Numbers; a constructor that makes far more raises ParameterLimitError. None: no limit.
    """
    limit = contextlib.nullcontext() if most_parameters is None else limit_parameters(most_parameters)
    try:
        with limit:
            return specification.network_class(**specification.arguments)
    except NetworkError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise NetworkError(f"network {specification.name}: {type(error).__name__}: {text}") from error


def _builder(specification: Specification, size_key: str) -> Callable[[Size], nn.Module]:
    arguments = specification.arguments
    return lambda size: call_constructor(specification._replace(arguments=arguments | {size_key: list(size)}))


def _first(arguments: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return the argument that has one of these names; 1, the constructors' default, if there is none."""
    return next((arguments[name] for name in names if name in arguments), 1)
