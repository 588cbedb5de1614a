//! For every input: no panic, memory bounded by the size of the input, and unpacked records stay
//! the same after packing and unpacking.
//!
//! cargo +nightly fuzz run unpack          (in crates/kpl-format)
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use kpl_format::{Aggregate, MAGIC, Packer};
use libfuzzer_sys::fuzz_target;
use md5::{Digest as _, Md5};

/// An allocator that counts what is allocated, freed or not.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|input: &[u8]| {
    // Unchanged, and with a valid checksum, which random data almost never have.
    check(Bytes::copy_from_slice(input));
    check(framed(input));
});

fn framed(message: &[u8]) -> Bytes {
    let mut data = MAGIC.to_vec();
    data.extend_from_slice(message);
    data.extend_from_slice(&Md5::digest(message));
    data.into()
}

fn check(data: Bytes) {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let read = Aggregate::read(data.clone());
    let allocated = ALLOCATED.load(Ordering::Relaxed) - before;
    assert!(allocated <= 8 * data.len() + 64, "{allocated} bytes for {} of input", data.len());

    let Ok(aggregate) = read else { return };
    let mut packer = Packer::new(usize::MAX);
    let mut unpacked = 0;
    for record in aggregate.records() {
        unpacked += record.data.len() + record.partition_key.len();
        assert!(packer.push(record.partition_key, record.explicit_hash_key, &record.data));
    }
    assert_eq!(aggregate.unpacked_bytes(), unpacked as u64);
    assert_eq!(packer.len(), aggregate.len());
    let size = packer.size();
    let packed = packer.finish().expect("an aggregate is never empty");
    assert_eq!(packed.len(), size);
    let again = Aggregate::read(packed).expect("what was packed can be unpacked");
    // The tables may be in another order, so that the index of a key may differ.
    let same = aggregate.records().zip(again.records()).all(|(one, other)| {
        one.partition_key == other.partition_key
            && one.explicit_hash_key == other.explicit_hash_key
            && one.data == other.data
    });
    assert!(same && again.len() == aggregate.len());
}
