"""The history in a file of W&B's client: readWandb.py FILE.wandb prints a list of rows, each of its keys and values.

The file is a log of LevelDB behind seven bytes: blocks of 32 KiB of records, each with checksum, length and kind, which are whole (1) or the
first (2), a middle (3) or the last (4) part of one; their content is wandb's own message Record.
"""
import json
import struct
import sys

from wandb.proto.wandb_internal_pb2 import Record

data = open(sys.argv[1], "rb").read()
at, parts, rows = 7, b"", []
while at + 7 <= len(data):
    if at % 32768 > 32768 - 7:
        at += 32768 - at % 32768
        continue
    _, length, kind = struct.unpack_from("<IHB", data, at)
    parts += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):
        record, parts = Record.FromString(parts), b""
        if record.WhichOneof("record_type") == "history":
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
print(json.dumps(rows))
