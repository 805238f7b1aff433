"""Cases as torch tensors: the binary form, written and read, and the text form, read."""

import json
import struct
import tomllib

import torch

import case_text

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def encode(op, params, inputs, outputs, origin, note) -> bytes:
    """A safetensors file whose bytes depend on nothing but the case."""
    tensors = {f"in.{name}": t for name, t in inputs.items()}
    tensors |= {f"out.{name}": t for name, t in outputs.items()}
    metadata = {"format": case_text.FORMAT, "op": op, "params": json.dumps(params)}
    header, payload = {"__metadata__": metadata | {"origin": origin, "note": note}}, b""
    # Widest elements first keeps every tensor aligned.
    for name, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        data = t.detach().contiguous().numpy().tobytes()
        offsets = [len(payload), len(payload) + len(data)]
        header[name] = {"dtype": TYPES[t.dtype], "shape": list(t.shape), "data_offsets": offsets}
        payload += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + payload


def decode(data: bytes):
    """(op, params, inputs, outputs) of such a file."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata, body = header.pop("__metadata__"), bytearray(data[8 + length :])
    types = {name: dtype for dtype, name in TYPES.items()}
    groups = {"in": {}, "out": {}}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        group, _, rest = name.partition(".")
        flat = torch.frombuffer(body[start:end], dtype=types[entry["dtype"]])
        groups[group][rest] = flat.reshape(entry["shape"])
    return metadata["op"], json.loads(metadata["params"]), groups["in"], groups["out"]


def decode_text(text: str):
    """(id, op, params, inputs, outputs) of every case of a text file that has an answer."""
    file = tomllib.loads(text)
    for case in file["case"]:
        if "expect_error" not in case:
            inputs, outputs = (
                {name: text_tensor(name, value) for name, value in case[group].items()}
                for group in ("in", "out")
            )
            yield case["id"], file["op"], case["params"], inputs, outputs


def text_tensor(name, value):
    integer = name in case_text.INTEGER_TENSORS
    return torch.tensor(value, dtype=torch.int32 if integer else torch.float64)
