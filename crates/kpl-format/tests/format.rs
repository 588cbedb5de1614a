//! Tests of the format against another protobuf implementation, and against damaged data.

use bytes::Bytes;
use kpl_format::{Aggregate, Corrupt, MAGIC, Packer, UserRecord, hash_key, is_aggregate};
use md5::{Digest as _, Md5};
use proptest::prelude::*;
use prost::Message as _;

#[derive(Clone, PartialEq, prost::Message)]
struct Packed {
    #[prost(string, repeated, tag = "1")]
    partition_keys: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    hash_keys: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<PackedRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PackedRecord {
    #[prost(uint64, optional, tag = "1")]
    partition_key: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    hash_key: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    data: Option<Bytes>,
    #[prost(message, repeated, tag = "4")]
    tags: Vec<Tag>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Tag {
    #[prost(string, required, tag = "1")]
    key: String,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

fn framed(message: &[u8]) -> Bytes {
    let mut data = MAGIC.to_vec();
    data.extend_from_slice(message);
    data.extend_from_slice(&Md5::digest(message));
    data.into()
}

fn read(packed: &Packed) -> Result<Aggregate, Corrupt> {
    Aggregate::read(framed(&packed.encode_to_vec()))
}

fn record(key: u64, hash_key: Option<u64>, data: &'static [u8]) -> PackedRecord {
    let data = Some(Bytes::from_static(data));
    PackedRecord { partition_key: Some(key), hash_key, data, tags: Vec::new() }
}

fn packed(keys: &[&str], hash_keys: &[&str], records: Vec<PackedRecord>) -> Packed {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Packed { partition_keys: owned(keys), hash_keys: owned(hash_keys), records }
}

type Plain = (String, Option<u128>, Vec<u8>);

fn plain(record: &UserRecord<'_>) -> Plain {
    (record.partition_key.to_owned(), record.explicit_hash_key, record.data.to_vec())
}

#[test]
fn what_is_wrong_with_an_aggregate_is_named() {
    let one = || vec![record(0, None, b"x")];
    let incomplete = PackedRecord { data: None, ..record(0, None, b"") };
    let keyless = PackedRecord { partition_key: None, ..record(0, None, b"") };
    for (case, expected) in [
        (packed(&["a"], &[], vec![]), Corrupt::Empty),
        (packed(&[], &[], vec![]), Corrupt::Empty),
        (packed(&[], &[], one()), Corrupt::NoSuchKey { record: 0 }),
        (
            packed(&["a"], &[], vec![record(0, None, b""), record(1, None, b"")]),
            Corrupt::NoSuchKey { record: 1 },
        ),
        (packed(&["a"], &[], vec![record(u64::MAX, None, b"")]), Corrupt::NoSuchKey { record: 0 }),
        (packed(&["a"], &["1"], vec![record(0, Some(1), b"")]), Corrupt::NoSuchKey { record: 0 }),
        (
            packed(&["a"], &["1"], vec![record(0, Some(u64::from(u32::MAX)), b"")]),
            Corrupt::NoSuchKey { record: 0 },
        ),
        (packed(&["a"], &[], vec![incomplete]), Corrupt::Incomplete { record: 0 }),
        (packed(&["a"], &[], vec![keyless]), Corrupt::Incomplete { record: 0 }),
    ] {
        assert_eq!(read(&case).err(), Some(expected), "{case:?}");
    }
    for hash_key in ["", "+1", "-1", "ten", "0x1", "340282366920938463463374607431768211456"] {
        let error = read(&packed(&["a"], &[hash_key], one())).unwrap_err();
        assert!(matches!(error, Corrupt::InvalidKey { .. }), "{hash_key}: {error}");
    }
    let not_utf8 = [0x0a, 1, 0xff, 0x1a, 4, 8, 0, 0x1a, 0];
    assert_eq!(Aggregate::read(framed(&not_utf8)).err(), Some(Corrupt::InvalidKey { at: 6 }));
}

#[test]
fn a_frame_that_is_none_is_told_from_a_damaged_one() {
    let data = framed(&packed(&["a"], &[], vec![record(0, None, b"x")]).encode_to_vec());
    assert!(Aggregate::read(data.clone()).is_ok());
    for length in 4..20 {
        assert_eq!(Aggregate::read(data.slice(..length)).err(), Some(Corrupt::Short));
    }
    assert!(!is_aggregate(&data[..3]) && !is_aggregate(b"") && !is_aggregate(b"{\"Name\":1}"));
    for bit in 0..8 * (data.len() - 4) {
        let mut damaged = data.to_vec();
        damaged[4 + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Aggregate::read(damaged.into()).err(), Some(Corrupt::Checksum), "bit {bit}");
    }
}

#[test]
fn data_are_a_slice_and_an_aggregate_inside_is_left_as_it_is() {
    let mut inner = Packer::new(1000);
    assert!(inner.push("inner", None, b"x"));
    let inner = inner.finish().unwrap();
    let mut outer = Packer::new(1000);
    assert!(outer.push("outer", None, &inner));
    let outer = outer.finish().unwrap();
    let aggregate = Aggregate::read(outer.clone()).unwrap();
    let record = aggregate.records().next().unwrap();
    assert_eq!((record.partition_key, &record.data), ("outer", &inner));
    assert!(outer.as_ptr_range().contains(&record.data.as_ptr()));
}

#[test]
fn one_long_key_of_many_records_is_counted_before_it_is_copied() {
    let key = "k".repeat(100_000);
    let packed = packed(&[&key], &[], vec![record(0, None, b""); 100_000]);
    let aggregate = read(&packed).unwrap();
    assert_eq!((aggregate.len(), aggregate.unpacked_bytes()), (100_000, 10_000_000_000));
}

#[test]
fn a_packer_never_grows_beyond_its_limit_and_refuses_without_a_trace() {
    for limit in 20..400 {
        let mut packer = Packer::new(limit);
        let mut pushed = 0;
        while packer.push(&format!("key-{}", pushed % 3), Some(pushed % 2), b"0123456789") {
            pushed += 1;
            assert!(pushed < 100);
        }
        let (len, size) = (packer.len(), packer.size());
        assert!(size <= limit && u128::try_from(len).unwrap() == pushed);
        assert!(!packer.push("another key", None, &vec![0; limit]));
        assert_eq!((packer.len(), packer.size()), (len, size));
        match packer.finish() {
            Some(data) => {
                assert_eq!(data.len(), size);
                assert_eq!(Aggregate::read(data).unwrap().len(), len);
            }
            None => assert_eq!(len, 0),
        }
    }
}

#[test]
fn a_record_stands_where_its_explicit_hash_key_says() {
    let records = vec![record(0, None, b""), record(0, Some(0), b"")];
    let aggregate = read(&packed(&["Bucephalus"], &["7"], records)).unwrap();
    let keys: Vec<_> = aggregate.records().map(|record| record.hash_key()).collect();
    assert_eq!(keys, [hash_key("Bucephalus"), 7]);
}

fn records() -> impl Strategy<Value = Vec<Plain>> {
    let data = prop::collection::vec(any::<u8>(), 0..300);
    // Few keys, so that they repeat.
    let key = prop_oneof!["[a-c]", "\\PC{0,8}"];
    let hash_key = prop::option::of(prop_oneof![0..3_u128, any::<u128>()]);
    prop::collection::vec((key, hash_key, data), 1..40)
}

fn pack(records: &[Plain]) -> Bytes {
    let mut packer = Packer::new(usize::MAX);
    for (key, hash_key, data) in records {
        assert!(packer.push(key, *hash_key, data));
    }
    packer.finish().expect("there are records")
}

/// Encodes `records` as prost does, with fields that a reader has to skip.
fn message(records: &[Plain], tags: usize) -> Packed {
    let mut packed = Packed::default();
    let mut place = |key: &str, keys: fn(&mut Packed) -> &mut Vec<String>| {
        let keys = keys(&mut packed);
        let known = keys.iter().position(|known| known == key);
        let index = known.unwrap_or_else(|| {
            keys.push(key.to_owned());
            keys.len() - 1
        });
        Some(index as u64)
    };
    let mut made = Vec::new();
    for (key, hash_key, data) in records {
        let tag = Tag { key: "tag".to_owned(), value: Some("value".to_owned()) };
        made.push(PackedRecord {
            partition_key: place(key, |packed| &mut packed.partition_keys),
            hash_key: hash_key
                .and_then(|key| place(&key.to_string(), |packed| &mut packed.hash_keys)),
            data: Some(data.clone().into()),
            tags: vec![tag; tags],
        });
    }
    Packed { records: made, ..packed }
}

proptest! {
    #[test]
    fn what_is_packed_is_what_prost_writes_and_unpacks_to_the_same(records in records()) {
        let data = pack(&records);
        prop_assert_eq!(&data, &framed(&message(&records, 0).encode_to_vec()));
        let aggregate = Aggregate::read(data).unwrap();
        prop_assert_eq!(aggregate.records().map(|record| plain(&record)).collect::<Vec<_>>(), records);
    }

    #[test]
    fn tags_and_tables_behind_the_records_are_no_obstacle(records in records(), tags in 0..3_usize) {
        let packed = message(&records, tags);
        let tables = Packed { records: Vec::new(), ..packed.clone() };
        let mut message = Packed { records: packed.records, ..Packed::default() }.encode_to_vec();
        message.extend(tables.encode_to_vec());
        let aggregate = Aggregate::read(framed(&message)).unwrap();
        prop_assert_eq!(aggregate.records().map(|record| plain(&record)).collect::<Vec<_>>(), records);
    }

    /// Damages the message and keeps the checksum valid: nothing panics, and every message that
    /// this crate accepts prost reads in the same way.
    #[test]
    fn damage_never_panics_and_is_never_read_otherwise_than_by_prost(
        records in records(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        length in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let data = pack(&records);
        let mut message = data[4..data.len() - 16].to_vec();
        for (place, byte) in damage {
            *place.get_mut(&mut message) = byte;
        }
        if is_cut {
            message.truncate(length.index(message.len()));
        }
        if let Ok(aggregate) = Aggregate::read(framed(&message)) {
            let packed = Packed::decode(&message[..]).unwrap();
            prop_assert_eq!(aggregate.len(), packed.records.len());
            for (record, theirs) in aggregate.records().zip(packed.records) {
                let key = usize::try_from(theirs.partition_key.unwrap()).unwrap();
                prop_assert_eq!(record.partition_key, packed.partition_keys[key].as_str());
                prop_assert_eq!(record.data, theirs.data.unwrap());
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        Aggregate::read(framed(&bytes)).ok();
        Aggregate::read(bytes.into()).ok();
    }
}
