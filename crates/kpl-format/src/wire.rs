//! The part of protobuf's wire format that aggregates need: numbers and byte strings, in both
//! directions.
//!
//! Reading allocates nothing: a field that claims a length is a range of the input or an error, so
//! that no claim costs memory. Unknown fields are skipped; groups, which are deprecated in proto2
//! and which no producer writes, are an error.

use std::ops::Range;

use crate::error::Corrupt;

/// A field of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Number(u64),
    /// The range of the bytes, counted from the start of the whole input.
    Bytes(Range<usize>),
    /// Four or eight bytes, a type that no field of an aggregate has.
    Fixed,
}

/// The fields of the message in a range of `input`.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    input: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Fields<'a> {
    /// Expects `range` to lie within `input`.
    pub(crate) fn new(input: &'a [u8], range: Range<usize>) -> Self {
        Self { input, at: range.start, end: range.end }
    }

    /// Returns the next field and its number; `None` at the end of the message.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Value)>, Corrupt> {
        if self.at == self.end {
            return Ok(None);
        }
        let at = self.at;
        let malformed = Corrupt::Malformed { at };
        let tag = self.varint()?;
        let number = tag >> 3;
        // A tag has 32 bits, and no field has number 0.
        if number == 0 || tag > u64::from(u32::MAX) {
            return Err(malformed);
        }
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.skip(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.skip(usize::try_from(length).map_err(|_| malformed)?)?)
            }
            5 => self.skip(4).map(|_| Value::Fixed)?,
            _ => return Err(malformed),
        };
        Ok(Some((number, value)))
    }

    /// Returns where the last field ended.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    fn skip(&mut self, length: usize) -> Result<Range<usize>, Corrupt> {
        let start = self.at;
        if length > self.end - start {
            return Err(Corrupt::Malformed { at: start });
        }
        self.at += length;
        Ok(start..self.at)
    }

    fn varint(&mut self) -> Result<u64, Corrupt> {
        let start = self.at;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.input[self.skip(1)?.start];
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Corrupt::Malformed { at: start })
    }
}

/// Appends a number.
pub(crate) fn put_number(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    put_varint(out, value);
}

/// Appends the head of a byte string; the caller appends the bytes.
pub(crate) fn put_head(out: &mut Vec<u8>, field: u8, length: usize) {
    out.push(field << 3 | 2);
    put_varint(out, length as u64);
}

/// Returns the length of what [`put_number`] appends, and [`put_head`] for a length.
pub(crate) fn field_len(value: u64) -> usize {
    1 + (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u64, Value)>, Corrupt> {
        let mut fields = Fields::new(bytes, 0..bytes.len());
        let mut all = Vec::new();
        while let Some(field) = fields.next()? {
            all.push(field);
        }
        Ok(all)
    }

    #[test]
    fn a_number_of_any_size_reads_back_and_takes_what_was_announced() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), 1 << 63, u64::MAX] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, 3, value);
            assert_eq!(bytes.len(), field_len(value), "{value}");
            assert_eq!(read(&bytes), Ok(vec![(3, Value::Number(value))]));
        }
    }

    #[test]
    fn unknown_fields_are_passed_over_and_a_claim_beyond_the_end_is_an_error() {
        let fixed = [9 << 3 | 1, 0, 0, 0, 0, 0, 0, 0, 0, 9 << 3 | 5, 0, 0, 0, 0];
        assert_eq!(read(&fixed), Ok(vec![(9, Value::Fixed), (9, Value::Fixed)]));
        let long = [1 << 3 | 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        for bytes in [
            &[0x80][..],                                                   // cut
            &[1 << 3 | 2, 2, 0],                                           // a byte is missing
            &[3],                                                          // field 0
            &[1 << 3 | 3],                                                 // a group
            &long,                                                         // 2^64 - 1 bytes
            &[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], // 65 bits
            &[0xff, 0xff, 0xff, 0xff, 0xff, 1, 0],                         // a tag of 35 bits
        ] {
            assert!(matches!(read(bytes), Err(Corrupt::Malformed { .. })), "{bytes:?}");
        }
    }
}
