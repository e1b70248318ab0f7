"""Files made hostile: safetensors files whose headers still are headers, and JSON whose parts are anything."""

import json
import random
import re
import struct

MODULE = "module_named_by_a_file"  # no file may have it imported
SPECIAL = [
    "null", "true", "false", "0", "-1", "1", "2", "1.5", "-0.0", "1e999", "-1e999", "NaN", "Infinity", "-Infinity",
    "1e308", "5e-324", "1e18", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + 5000 * "0",
    '""', '"0"', '"NaN"', '"vae"', '"ae"', '"vea"', '"squash"', '"F32"', '"I64"', '"F8_E4M3"', '"C64"', '"cuda:7"',
    f'"{MODULE}:Model"', f'"{MODULE}"', '"../../x"', '"/dev/zero"', '"torchvision:MNIST"', '"\\u0000"', '"\\ud800"',
    '"\\u001b[31mred\\u001b[0m\\nError: x"', '"[bold]x[/bold]"', f'"{2000 * "x"}"', "[]", "{}", "[[]]", "[0, 4]",
    "[1e9]", "[" + 5000 * "0," + "0]", 12 * "[" + 12 * "]", 99 * "[" + 99 * "]", 5000 * '{"a":' + "0" + 5000 * "}",
    "[1099511627776, 0]", "[0, 4294967296, 4294967296]", "[-1, -1]", "", "}", '{"a": 1, "a": 2}',
]  # fmt: skip


def split(content: bytes) -> tuple[str, bytes]:
    """The header and the tensors' bytes of a safetensors file."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return content[8:end].decode(), content[end:]


def joined(header: str, data: bytes) -> bytes:
    """A file of them, its length field right."""
    raw = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data


def _places(value, path=()):
    """Every place in a JSON value, as keys from its root."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*path, key))


def _at(value, path):
    for key in path:
        value = value[key]
    return value


def changed_json(text: str, dice: random.Random) -> str:
    """One to three parts replaced by something else, by one another, left out, or there twice; broken JSON at times."""
    value = json.loads(text)
    raw = {}
    for number in range(dice.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))[1:]
        if not places:
            break
        *above, key = dice.choice(places)
        parent = _at(value, above)
        way = dice.choice(["special"] * 4 + ["swapped", "left out", "twice", "renamed", "off by a little"])
        mark = f"@{number}@"
        if way == "special":
            raw[f'"{mark}"'] = dice.choice(SPECIAL)
            parent[key] = mark
        elif way == "swapped":
            parent[key] = json.loads(json.dumps(_at(value, dice.choice(places))))
        elif way == "left out":
            del parent[key]
        elif way == "off by a little" and type(parent[key]) in (int, float):
            parent[key] += dice.choice([-4, -1, 1, 4, 1e-9, 2**31, 2**62])
        elif isinstance(parent, dict):
            name = (
                key if way == "twice" else dice.choice(["__metadata__", "", "\x1b[2J", "a" * 3000, "\ud800", "schema"])
            )
            held = parent.pop(key) if way == "renamed" else dice.choice([0, "x", parent[key]])
            parent[mark] = held
            raw[f'"{mark}"'] = json.dumps(name)
    changed = json.dumps(value)
    for mark, instead in raw.items():
        changed = changed.replace(mark, instead)
    return changed


def changed_bytes(content: bytes, dice: random.Random) -> bytes:
    """Bytes flipped, cut off, put in, doubled or replaced, most of them where the header is."""
    held = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 8])):
        limit = len(held) if dice.random() < 0.3 else min(len(held), 4096)
        place = dice.randrange(max(1, limit))
        way = dice.choice(["flip", "flip", "cut", "insert", "double", "length"])
        if way == "flip" and held:
            held[place] ^= 1 << dice.randrange(8)
        elif way == "cut":
            del held[place if dice.random() < 0.5 else max(0, len(held) - dice.randrange(1, 64)) :]
        elif way == "insert":
            held[place:place] = dice.randbytes(dice.randrange(1, 32))
        elif way == "double":
            held[place:place] = held[place : place + 64]
        elif way == "length":
            held[:8] = struct.pack("<Q", dice.choice([0, 1, 2, 7, 2**16, 10**8, 10**8 + 1, 2**31, 2**60, 2**64 - 1]))
    return bytes(held)


def changed_header(content: bytes, dice: random.Random) -> bytes:
    """The header's JSON changed, its length field right."""
    header, data = split(content)
    return joined(changed_json(header, dice), data)


def changed_document(content: bytes, dice: random.Random) -> bytes:
    """The document in the header's metadata changed."""
    header, data = split(content)
    held = json.loads(header)
    held["__metadata__"]["aecli"] = changed_json(held["__metadata__"]["aecli"], dice)
    return joined(json.dumps(held), data)


def changed_tensors(content: bytes, dice: random.Random) -> bytes:
    """Some numbers of a tensor, or all, made special; or its type another of the same size."""
    header, data = split(content)
    held, changed = json.loads(header), bytearray(data)
    name = dice.choice([key for key in held if key != "__metadata__"])
    begin, end = held[name]["data_offsets"]
    width = {"F64": 8, "I64": 8, "F32": 4}[held[name]["dtype"]]
    if dice.random() < 0.2:
        same = {4: ["F32", "I32", "U32", "F8_E8M0"], 8: ["F64", "I64", "U64", "C64"]}[width]
        held[name]["dtype"] = dice.choice(same)
    values = [float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45, -1.0, 0.0, 1e20]
    pattern = struct.pack("<f" if width == 4 else "<d", dice.choice(values))
    first = dice.randrange((end - begin) // width) * width if end > begin else 0
    count = 1 if dice.random() < 0.5 else (end - begin - first) // width
    if end > begin:
        changed[begin + first : begin + first + count * width] = pattern * count
    return joined(json.dumps(held), bytes(changed))


def changed_file(content: bytes, dice: random.Random) -> bytes:
    """A safetensors file with a document, changed in one of these ways."""
    ways = [changed_bytes, changed_header, changed_document, changed_document, changed_tensors]
    return dice.choice(ways)(content, dice)


def printable_lines(message: str) -> bool:
    """Whether a message is one or two lines of printable characters, and no longer than one reads."""
    lines = message.split("\n")
    return (
        len(lines) <= 2
        and len(message) < 1200
        and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", message)
    )
