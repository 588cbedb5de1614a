//! The removal of processed records from a batch, since reading starts *at* the checkpoint. Pure.

use crate::position::Position;
use crate::record::Record;

/// Drops the records at or before `done`, where reading restarts.
pub(super) fn drop_done(records: &mut Vec<Record>, done: &Position) {
    let place = |record: &Record| {
        let of_number = record.sequence_number.cmp(&done.sequence_number);
        of_number.then(record.sub_sequence_number.cmp(&done.sub_sequence_number))
    };
    // Records are in order: if the first one is new, all are.
    if records.first().is_none_or(|first| place(first).is_gt()) {
        return;
    }
    let is_same = |record: &Record| record.sequence_number == done.sequence_number;
    // Another library stopped inside an aggregate that was not unpacked here: repeat its beginning
    // rather than lose its end.
    let is_packed = done.sub_sequence_number > 0
        && !records.iter().any(|record| is_same(record) && record.sub_sequence_number > 0);
    records.retain(|record| (is_packed && is_same(record)) || place(record).is_gt());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(records: &[(u64, u64)], done: (u64, u64)) -> Vec<(String, u64)> {
        let mut records: Vec<_> =
            records.iter().map(|(number, sub)| Record::numbered(*number, *sub)).collect();
        drop_done(&mut records, &Position::of(&Record::numbered(done.0, done.1)));
        let place = |it: Record| (it.sequence_number.to_string(), it.sub_sequence_number);
        records.into_iter().map(place).collect()
    }

    #[test]
    fn reading_again_drops_what_is_done_also_inside_an_aggregate() {
        assert_eq!(left(&[(1, 0), (2, 0), (3, 0)], (2, 0)), [("3".to_owned(), 0)]);
        let inside = left(&[(2, 0), (2, 1), (2, 2), (3, 0)], (2, 1));
        assert_eq!(inside, [("2".to_owned(), 2), ("3".to_owned(), 0)]);
        assert_eq!(left(&[(2, 0), (2, 1), (2, 2)], (2, 0)).len(), 2);
        assert_eq!(left(&[(2, 0), (2, 1)], (2, 1)), []);
    }

    #[test]
    fn an_aggregate_that_cannot_be_unpacked_is_repeated_rather_than_lost() {
        let whole = left(&[(2, 0), (3, 0)], (2, 5));
        assert_eq!(whole, [("2".to_owned(), 0), ("3".to_owned(), 0)]);
    }
}
