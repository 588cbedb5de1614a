//! Packs the cases of `tests/vectors` from stdin, so that `.ci/aggregates` can unpack them with
//! other implementations.

#![expect(clippy::print_stdout, reason = "the result of a command")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io;

use base64_simd::STANDARD;
use kpl_format::Packer;

type Record = (String, Option<String>, String);

fn main() -> Result<(), Box<dyn Error>> {
    let cases: BTreeMap<String, Vec<Record>> = serde_json::from_reader(io::stdin())?;
    let mut packed = BTreeMap::new();
    for (name, records) in cases {
        let mut packer = Packer::new(usize::MAX);
        for (key, hash_key, data) in records {
            let hash_key = hash_key.map(|key| key.parse()).transpose()?;
            if !packer.push(&key, hash_key, &STANDARD.decode_to_vec(data)?) {
                return Err("no limit was set".into());
            }
        }
        let data = packer.finish().ok_or("a case has records")?;
        packed.insert(name, STANDARD.encode_to_string(&data));
    }
    println!("{}", serde_json::to_string_pretty(&packed)?);
    Ok(())
}
