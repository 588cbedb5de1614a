//! Vectors of other implementations are unpacked, and packed to the same bytes.

use std::collections::BTreeMap;

use base64_simd::STANDARD;
use bytes::Bytes;
use kpl_format::{Aggregate, Packer};

/// Partition key, explicit hash key, data.
type Record = (String, Option<String>, String);

fn file<T: serde::de::DeserializeOwned>(name: &str) -> BTreeMap<String, T> {
    let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(&path).expect(&path)).expect("the file is JSON")
}

fn bytes(base64: &str) -> Bytes {
    STANDARD.decode_to_vec(base64).expect("the file has Base64").into()
}

fn check(vectors: &str) {
    let cases: BTreeMap<String, Vec<Record>> = file("cases");
    let aggregates: BTreeMap<String, String> = file(vectors);
    assert!(cases.keys().eq(aggregates.keys()) && cases.len() == 10);
    for (name, records) in cases {
        let theirs = bytes(&aggregates[&name]);
        let aggregate = Aggregate::read(theirs.clone()).expect(&name);
        assert_eq!(aggregate.len(), records.len(), "{name}");
        let mut packer = Packer::new(usize::MAX);
        for (found, (key, hash_key, data)) in aggregate.records().zip(records) {
            let hash_key = hash_key.map(|key| key.parse::<u128>().expect("a hash key"));
            assert_eq!(found.partition_key, key, "{name}");
            assert_eq!(found.explicit_hash_key, hash_key, "{name}");
            assert_eq!(found.data, bytes(&data), "{name}");
            assert!(packer.push(&key, hash_key, &bytes(&data)));
        }
        assert_eq!(packer.finish().expect("there are records"), theirs, "{name}");
    }
}

#[test]
fn what_the_python_implementation_packs_is_unpacked_and_packed_to_the_same_bytes() {
    check("python");
}

#[test]
fn what_the_javascript_implementation_packs_is_unpacked_and_packed_to_the_same_bytes() {
    check("javascript");
}
