"""Seeded damage to files: what disks, crashes, editors and mischief do to bytes and to structured values."""

import json
import random
from collections.abc import Callable
from typing import Any

import yaml

Mutation = Callable[[random.Random, bytes], bytes]

_HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 10**30, 1e300, float("nan"), float("inf"), "", "x", "x" * 5000, "\ud800", "1e5"),
    *([], {}, [[]], {"": None}, [1] * 500),
)


def damage(rng: random.Random, content: bytes) -> bytes:
    """``content`` with some of its bytes altered, lost, zeroed, doubled or replaced; now and then another file."""
    data = bytearray(content)
    start = rng.randrange(len(data) + 1)
    length = rng.choice([1, 4, 64, 512, len(data)])
    block = slice(start, start + length)
    match rng.randrange(8):
        case 0 | 1:
            for _ in range(rng.choice([1, 1, 8])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            del data[start:]
        case 3:
            data[block] = bytes(len(data[block]))
        case 4:
            data[block] = rng.randbytes(len(data[block]))
        case 5:
            data[start:start] = data[block]
        case 6:
            del data[block]
        case 7:
            return rng.choice([b"", b"\n", b"null", b"[]", b"{", b"\x80\x04.", b"[" * 50_000, b"1" * 5000, bytes(1000)])
    return bytes(data)


def restructure(rng: random.Random, value: Any) -> Any:
    """``value`` with one part of it, at any depth, replaced, dropped or doubled."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return rng.choice(_HOSTILE)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], restructure(rng, value[at]), *value[at + rng.randrange(2) :]]
    key = rng.choice(list(value))
    rest = {name: item for name, item in value.items() if name != key}
    match rng.randrange(4):
        case 0:
            return rest
        case 1:
            return {**rest, rng.choice(["", "x", "x" * 5000, "\u2028"]): value[key]}
        case _:
            return {**value, key: restructure(rng, value[key])}


def damage_json(rng: random.Random, content: bytes) -> bytes:
    """Damage to the bytes of a JSON text or to the value that it stands for."""
    if rng.random() < 0.5:
        return damage(rng, content)
    return json.dumps(restructure(rng, json.loads(content))).encode()


def damage_yaml(rng: random.Random, content: bytes) -> bytes:
    """The same to YAML."""
    if rng.random() < 0.5:
        return damage(rng, content)
    return yaml.safe_dump(restructure(rng, yaml.safe_load(content)), sort_keys=False).encode()


def damage_lines(rng: random.Random, content: bytes) -> bytes:
    """The same to one line of JSON lines."""
    if rng.random() < 0.5:
        return damage(rng, content)
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(restructure(rng, json.loads(lines[at]))).encode()
    return b"\n".join(lines) + b"\n"
