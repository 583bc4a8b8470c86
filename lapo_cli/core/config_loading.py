"""Configurations from presets, files and the command line, and what is wrong with them.

Precedence: preset < configuration file < ``--set``. The preset ``paper`` is the defaults; the others are YAML files in
``presets/`` that name only what differs.
"""

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lapo_cli.core import files
from lapo_cli.core.config import Config
from lapo_cli.core.errors import ConfigError, one_line, shortened


def presets() -> list[str]:
    """Names of the presets."""
    found = (entry.name for entry in resources.files("lapo_cli.core").joinpath("presets").iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def load_config(preset: str = "paper", file: Path | None = None, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """Resolve a configuration.

    Args:
        preset: a name of :func:`presets`.
        file: YAML file with any part of the configuration.
        overrides: words such as ``stage1.lr=3e-4``.

    Raises:
        ConfigError: an unknown preset or key (with the nearest one), a wrong type or an impossible value.
    """
    if preset not in presets():
        raise ConfigError(f"There is no preset '{shortened(preset)}': choose one of {', '.join(presets())}.")
    text = resources.files("lapo_cli.core").joinpath("presets", f"{preset}.yaml").read_text()
    values = _merge(Config().model_dump(), _mapping(files.parse_yaml(text), f"preset {preset}"))
    return override(values, overrides, file)


def override(
    base: Config | dict[str, Any], overrides: tuple[str, ...] | list[str] = (), file: Path | None = None
) -> Config:
    """``base`` with a configuration file and then dotted ``key=value`` words applied, validated as a whole.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    content = {} if file is None else _read(file)
    try:
        values = _merge(base.model_dump() if isinstance(base, Config) else base, content)
        for word in overrides:
            values = _merge(values, _assignment(word))
        return parse_config(values)
    except ConfigError as error:
        raise error if file is None else ConfigError(f"With {file}: {error}") from error


def _read(file: Path) -> dict[str, Any]:
    """The content of a configuration file, of which only the outermost type is checked."""
    try:
        return _mapping(files.read_yaml(file), str(file))
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(f"The configuration file {file} cannot be read ({why}): check the path.") from error
    except ValueError as error:
        raise ConfigError(f"{file} cannot be read as YAML ({error}): correct it.") from error


def _assignment(word: str, option: str = "--set") -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``."""
    key, separator, text = word.partition("=")
    if not separator:
        example = ", for example stage1.lr=3e-4" if option == "--set" else ""
        raise ConfigError(f"'{option} {shortened(word)}' has no '=': write it as KEY=VALUE{example}.")
    try:
        is_list = "," in text and text[:1] not in ("[", "{", '"', "'")
        value = _numbers(files.parse_yaml(f"[{text}]" if is_list else text))
    except ValueError as error:
        raise ConfigError(
            f"'{option} {shortened(word)}' cannot be read as YAML ({error}): check its quotes and brackets."
        ) from error
    nested: dict[str, Any] = value
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


_S = TypeVar("_S", bound=BaseModel)


def parse_settings(section: type[_S], words: Sequence[str]) -> _S:
    """A section that is no part of the configuration, from ``key=value`` words.

    Raises:
        ConfigError: an unknown key (the message lists the known ones), or a value that does not fit.
    """
    values: dict[str, Any] = {}
    for word in words:
        values |= _assignment(word, "--launcher-set")
    unknown = [key for key in values if key not in section.model_fields]
    if unknown:
        known = ", ".join(section.model_fields) or "none"
        raise ConfigError(f"There is no setting '{shortened(unknown[0])}' of this launcher: there are {known}.")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, "The setting")) from error


def parse_config(values: dict[str, Any]) -> Config:
    """Validate a nested mapping.

    Raises:
        ConfigError: with the dotted key, what was found and, for an unknown key, the nearest known one.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def _explain(error: ValidationError, what_it_is: str = "Configuration key") -> str:
    first = error.errors(include_url=False)[0]
    key = shortened(".".join(str(part) for part in first["loc"]))
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return f"There is no configuration key '{key}': {_hint(key)}"
    found = "is invalid" if first["type"] == "missing" else f"has the invalid value {reprlib.repr(first['input'])}"
    what = one_line(first["msg"].removeprefix("Value error, "), 200)
    return f"{what_it_is} '{key}' {shortened(found)}: {what[0].lower()}{what[1:]}."


def _hint(wrong: str) -> str:
    """Which keys may have been meant."""
    known = list(describe(Config()))
    names = [*known, *{key.partition(".")[0]: None for key in known}]
    near = [key for key in known if key.endswith(f".{wrong}")] or difflib.get_close_matches(wrong, names, 1, 0.8)
    if near:
        return f"did you mean {' or '.join(map(repr, near[:4]))}?"
    section = wrong.rpartition(".")[0]
    inside = [key.removeprefix(f"{section}.") for key in known if key.startswith(f"{section}.")]
    return f"'{section}' has the keys {', '.join(inside)}." if inside else "'lapo info --config' lists all of them."


def flat(config: Config) -> dict[str, Any]:
    """Dotted keys, each with its JSON-like value."""
    return _flat(config.model_dump(mode="json"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def describe(section: BaseModel, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Dotted key -> its ``value`` and its ``description``, for every key, depth first."""
    keys: dict[str, dict[str, Any]] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            keys |= describe(value, f"{prefix}{name}.")
        elif name == "plugins":
            for stage, of_stage in value.items():
                keys |= describe(of_stage, f"{prefix}{name}.{stage}.")
        else:
            keys[prefix + name] = {"value": value, "description": field.description or ""}
    return keys


def _mapping(content: Any, name: str) -> dict[str, Any]:
    """The mapping that a YAML text holds, with its numbers; an empty text holds an empty one."""
    values = {} if content is None else _numbers(content)
    if not isinstance(values, dict):
        raise ConfigError(f"{name} must be a mapping of configuration keys, not a {type(values).__name__}.")
    return values


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 and 1e5 as strings; make such words numbers, whole ones integers where 64 bits hold them."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str | float):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() and abs(number) < 2**63 else number
    return value


def _merge(base: dict[str, Any], over: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``base`` with the values of ``over``, section by section; another ``kind`` starts from that kind's own defaults.

    Raises:
        ConfigError: ``over`` has something else where ``base`` has a section.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and not isinstance(value, dict):
            example = f", for example '{prefix}{key}.{next(iter(old))}'" if old else ""
            raise ConfigError(
                f"Configuration key '{prefix}{key}' has the invalid value {shortened(reprlib.repr(value))}: it is a "
                f"section, so set keys in it{example}."
            )
        if isinstance(old, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            value = _merge(old, value, f"{prefix}{key}.")
        merged[key] = value
    return merged
