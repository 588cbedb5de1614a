//! The result table: the cost of the worker and of the bare loop for each load.

use crate::measure::{Cost, Load};

pub(crate) fn head(rounds: usize) -> String {
    format!(
        "the median of {rounds} rounds; a ratio is worker / bare loop\n\n\
         | replies | shards | record | records | bare: CPU per record | CPU per record | records/s | peak memory |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|"
    )
}

pub(crate) fn row(part: &str, load: &Load, pairs: &[(Cost, Cost)]) -> String {
    let ratio = |of: fn(&Cost) -> f64| {
        let ratios = pairs.iter().map(|(bare, worker)| of(worker) / of(bare));
        median(ratios.collect())
    };
    let cpu = |cost: &Cost| cost.cpu.as_secs_f64() * 1e6 / count(cost.records);
    let bare = median(pairs.iter().map(|(bare, _)| cpu(bare)).collect());
    let per_second = |cost: &Cost| count(cost.records) / cost.wall.as_secs_f64();
    // On paused time, and with the replies in its own memory, these are meaningless.
    let of_processes = if part == "canned" {
        ["–".to_owned(), "–".to_owned()]
    } else {
        let memory = |cost: &Cost| cost.peak_kib.map_or(f64::NAN, count);
        [format!("{:.2}", ratio(per_second)), format!("{:.2}", ratio(memory))]
    };
    let [per_second, memory] = of_processes;
    format!(
        "| {part} | {} | {} | {} | {bare:.2} µs | {:.2} | {per_second} | {memory} |",
        load.shards,
        size(load.size),
        load.shards * load.records,
        ratio(cpu),
    )
}

fn size(bytes: usize) -> String {
    if bytes.is_multiple_of(1024) { format!("{} KiB", bytes / 1024) } else { format!("{bytes} B") }
}

#[expect(clippy::cast_precision_loss, reason = "a number for people to read")]
fn count(count: u64) -> f64 {
    count as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
