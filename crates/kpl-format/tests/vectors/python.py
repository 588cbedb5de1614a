#!/usr/bin/env python3
"""Packs and unpacks with aws_kinesis_agg.

usage: python.py make <cases.json      {name: Base64 of the aggregate}
       python.py read <aggregates.json {name: [[partition key, explicit hash key, Base64], ...]}
       python.py cases                 the cases themselves
       python.py compare CASES READ
"""

import base64
import json
import sys


def make(cases):
    from aws_kinesis_agg.aggregator import AggRecord

    made = {}
    for name, records in cases.items():
        aggregate = AggRecord()
        for key, hash_key, data in records:
            assert aggregate.add_user_record(key, base64.b64decode(data), hash_key), name
        made[name] = base64.b64encode(aggregate.get_contents()[2]).decode()
    return made


def read(aggregates):
    from aws_kinesis_agg.deaggregator import deaggregate_records

    unpacked = {}
    for name, aggregate in aggregates.items():
        whole = {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": "outer",
            "sequenceNumber": "1",
            "approximateArrivalTimestamp": 0,
            "data": aggregate,
        }
        parts = [part["kinesis"] for part in deaggregate_records([{"kinesis": whole}])]
        assert [part["subSequenceNumber"] for part in parts] == list(range(len(parts)))
        unpacked[name] = [
            [part["partitionKey"], part["explicitHashKey"], part["data"].decode()] for part in parts
        ]
    return unpacked


def cases():
    def record(key, data, hash_key=None):
        return [key, hash_key and str(hash_key), base64.b64encode(data).decode()]

    high, low = 2**128 - 1, 2**64
    unicorn = b'{"Name":"Shadowfax","Distance":175,"MagicPoints":110,"HealthPoints":150}'
    nested = bytes.fromhex("f3899ac2") + b"not unpacked again" + bytes(16)
    return {
        "one": [record("Shadowfax", unicorn)],
        "one key": [record("Shadowfax", unicorn), record("Shadowfax", b"two"), record("Shadowfax", b"3")],
        "keys": [record(key, key.encode()) for key in ["a", "b", "a", "c", "b", "a"]],
        "hash keys": [record(k, b"x", h) for k, h in [("a", high), ("b", low), ("a", low), ("c", high)]],
        "mixed": [record("a", b"1", low), record("b", b"2"), record("a", b"3", high), record("c", b"4")],
        "empty data": [record("a", b""), record("b", b"between"), record("a", b"")],
        "every byte": [record("a", bytes(range(256))), record("a", nested)],
        "any script": [record("Éowyn", "œ".encode()), record("🦄", b"unicorn"), record("一角獣", b"too")],
        "many keys": [record(f"Unicorn-{number:04}", str(number).encode()) for number in range(150)],
        "large": [record("a", b"z" * 17_000), record("b", b"y" * 128), record("c", b"x" * 127)],
    }


def compare(expected, found):
    expected, found = (json.load(open(path)) for path in (expected, found))
    assert expected.keys() == found.keys(), (expected.keys(), found.keys())
    for name, records in expected.items():
        # The second of the surprises in README.md.
        width = [0, 2] if name == "mixed" else [0, 1, 2]
        for nth, (one, other) in enumerate(zip(records, found[name], strict=True)):
            assert all(one[it] == other[it] for it in width), (name, nth, one, other)
    print(f"{len(expected)} cases, {sum(map(len, expected.values()))} records")


def main():
    match sys.argv[1:]:
        case ["make"]:
            result = make(json.load(sys.stdin))
        case ["read"]:
            result = read(json.load(sys.stdin))
        case ["cases"]:
            result = cases()
        case ["compare", expected, found]:
            return compare(expected, found)
        case _:
            sys.exit(__doc__)
    print(json.dumps(result, indent=1))


main()
