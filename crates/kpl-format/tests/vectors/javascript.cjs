// Packs and unpacks with aws-kinesis-agg; the same commands as python.py's `make` and `read`.
"use strict";
const { readFileSync } = require("node:fs");
const { RecordAggregator, deaggregateSync } = require("aws-kinesis-agg");

function make(records) {
  const aggregator = new RecordAggregator();
  for (const [partitionKey, explicitHashKey, data] of records) {
    const record = { partitionKey, data: Buffer.from(data, "base64") };
    aggregator.addUserRecord(explicitHashKey ? { ...record, explicitHashKey } : record);
  }
  return aggregator.build().data.toString("base64");
}

function read(data) {
  let unpacked;
  deaggregateSync({ data, partitionKey: "outer", sequenceNumber: "1" }, true, (error, parts) => {
    if (error) throw error;
    unpacked = parts.map((part) => [part.partitionKey, part.explicitPartitionKey ?? null, part.data]);
  });
  return unpacked;
}

const work = { make, read }[process.argv[2]];
const input = Object.entries(JSON.parse(readFileSync(0, "utf8")));
const result = Object.fromEntries(input.map(([name, value]) => [name, work(value)]));
console.log(JSON.stringify(result, null, 1));
