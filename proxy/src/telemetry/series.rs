//! Istio's series: which key a finished request counts under, and the numbers kept there.
//!
//! A key is one number, so that finding a request's cells is one hash of 16 bytes. Each worker has a [`Table`]; the
//! text of a key's labels is rendered once for the process, when the first worker meets it, and the number of keys is
//! bounded there too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    Direction, RequestProtocol, Security,
    labels::{LabelId, Labels, write_label},
};
use crate::{config::view::Map, failure::Reason};

/// Upper bounds of Envoy's (hence Istio's) default histogram buckets, as text; the same for milliseconds and bytes.
pub(super) const BUCKETS: [&str; 19] = [
    "0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000", "10000", "30000", "60000",
    "300000", "600000", "1800000", "3600000",
];

/// The same in thousandths.
const BOUNDS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// Every flag [`Reason::flag`] knows, so that reasons which share a flag share a series.
const FLAGS: [&str; 13] = ["-", "DPE", "NC", "NR", "UH", "UO", "UF", "UR", "UC", "UPE", "UT", "DC", "OM"];

/// A histogram over [`BUCKETS`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Histogram {
    /// Not cumulative; the last is "+Inf".
    pub(super) counts: [u64; 20],
    /// Microseconds or bytes.
    pub(super) sum: u64,
}

impl Histogram {
    pub(super) fn record_duration(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.record(micros, micros);
    }

    pub(super) fn record_bytes(&mut self, bytes: u64) {
        self.record(bytes.saturating_mul(1000), bytes);
    }

    fn record(&mut self, thousandths: u64, raw: u64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < thousandths);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum = self.sum.wrapping_add(raw);
    }

    fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Numbers of one HTTP or gRPC series; how many requests there were is the histograms' count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HttpCell {
    pub(super) duration: Histogram,
    pub(super) request_bytes: Histogram,
    pub(super) response_bytes: Histogram,
    pub(super) request_messages: u64,
    pub(super) response_messages: u64,
}

impl HttpCell {
    pub(super) fn merge(&mut self, other: &Self) {
        self.duration.merge(&other.duration);
        self.request_bytes.merge(&other.request_bytes);
        self.response_bytes.merge(&other.response_bytes);
        self.request_messages += other.request_messages;
        self.response_messages += other.response_messages;
    }
}

/// Numbers of one TCP series.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TcpCell {
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    pub(super) opened: u64,
    pub(super) closed: u64,
}

impl TcpCell {
    pub(super) fn merge(&mut self, other: &Self) {
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.opened += other.opened;
        self.closed += other.closed;
    }
}

/// Everything that tells two series apart, packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SeriesKey(u128);

/// What a key is packed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeriesParts {
    pub(super) direction: Direction,
    pub(super) source: LabelId,
    pub(super) destination: LabelId,
    /// `None`: TCP.
    pub(super) protocol: Option<RequestProtocol>,
    /// `None`: not known; always so for the source's side, as with Istio.
    pub(super) security: Option<Security>,
    /// 0: there was no response.
    pub(super) status: u16,
    pub(super) failure: Option<Reason>,
    pub(super) grpc_status: Option<u8>,
}

impl SeriesParts {
    pub(super) fn key(self) -> SeriesKey {
        let flag = match self.failure {
            None => 0,
            Some(reason) => FLAGS.iter().position(|flag| *flag == reason.flag()).unwrap_or(0),
        };
        let protocol = match self.protocol {
            None => 0,
            Some(RequestProtocol::Http) => 1,
            Some(RequestProtocol::Grpc) => 2,
        };
        let security = match (self.direction, self.security) {
            (Direction::Outbound, _) | (_, None) => 0,
            (Direction::Inbound, Some(Security::MutualTls)) => 1,
            (Direction::Inbound, Some(Security::None)) => 2,
        };
        let direction = u128::from(self.direction == Direction::Inbound);
        let grpc = self.grpc_status.map_or(0, |status| u128::from(status) + 1);
        SeriesKey(
            u128::from(self.source.0)
                | u128::from(self.destination.0) << 32
                | u128::from(self.status) << 64
                | (flag as u128) << 80
                | grpc << 88
                | protocol << 100
                | security << 104
                | direction << 108,
        )
    }
}

impl SeriesKey {
    const fn field(self, shift: u32, mask: u128) -> u32 {
        (self.0 >> shift & mask) as u32
    }

    /// Where it counts when there are too many keys: nobody's, by class of status.
    fn overflow(self) -> Self {
        let status = self.field(64, 0xffff) / 100 * 100;
        let kept = self.0 & (0xff << 80 | 0xfff << 100);
        let other = u128::from(LabelId::OTHER.0);
        Self(kept | other | other << 32 | u128::from(status.min(900)) << 64)
    }

    /// The labels, without the braces and with a comma at the end.
    fn text(self, labels: &Labels) -> String {
        let mut text = String::with_capacity(1024);
        let reporter = if self.field(108, 1) == 1 { "destination" } else { "source" };
        write_label("reporter", reporter, &mut text);
        labels.get(LabelId(self.field(0, 0xffff_ffff))).write_source(&mut text);
        labels.get(LabelId(self.field(32, 0xffff_ffff))).write_destination(&mut text);
        let protocol = self.field(100, 0xf);
        write_label("request_protocol", ["tcp", "http", "grpc"].get(protocol as usize).unwrap_or(&""), &mut text);
        if protocol > 0 {
            write_label("response_code", &self.field(64, 0xffff).to_string(), &mut text);
        }
        if protocol == 2 {
            let grpc = self.field(88, 0xfff);
            let status = grpc.checked_sub(1).map_or_else(String::new, |status| status.to_string());
            write_label("grpc_response_status", &status, &mut text);
        }
        write_label("response_flags", FLAGS.get(self.field(80, 0xff) as usize).unwrap_or(&"-"), &mut text);
        let security = ["unknown", "mutual_tls", "none"];
        let security = security.get(self.field(104, 0xf) as usize).unwrap_or(&"unknown");
        write_label("connection_security_policy", security, &mut text);
        text
    }
}

/// Label text of every key in the process, and their bound.
pub(super) struct SeriesTexts {
    texts: Mutex<Map<SeriesKey, Arc<str>>>,
    limit: usize,
    overflows: AtomicU64,
}

impl SeriesTexts {
    pub(super) fn new(limit: usize) -> Self {
        Self { texts: Mutex::default(), limit, overflows: AtomicU64::new(0) }
    }

    /// The key to count under: the same, or, with too many, a coarse one.
    pub(super) fn admit(&self, key: SeriesKey, labels: &Labels) -> SeriesKey {
        let mut texts = self.texts.lock();
        if texts.contains_key(&key) {
            return key;
        }
        let key = if texts.len() < self.limit {
            key
        } else {
            self.overflows.fetch_add(1, Ordering::Relaxed);
            key.overflow()
        };
        texts.entry(key).or_insert_with(|| key.text(labels).into());
        key
    }

    pub(super) fn get(&self, key: SeriesKey) -> Arc<str> {
        self.texts.lock().get(&key).cloned().unwrap_or_default()
    }

    /// How often something was counted under a coarse key for the first time in a worker, or again past the bound.
    pub(super) fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }
}

/// One worker's numbers. Grows by boxes, so that growing never copies numbers while a request waits.
#[derive(Default)]
pub(super) struct Table {
    http: Numbers<HttpCell>,
    tcp: Numbers<TcpCell>,
}

struct Numbers<Cell> {
    index: Map<SeriesKey, u32>,
    cells: Vec<(SeriesKey, Box<Cell>)>,
}

impl<Cell> Default for Numbers<Cell> {
    fn default() -> Self {
        Self { index: Map::default(), cells: Vec::new() }
    }
}

impl<Cell: Default + Copy> Numbers<Cell> {
    fn find(&mut self, key: SeriesKey) -> Option<&mut Cell> {
        let index = *self.index.get(&key)?;
        self.cells.get_mut(index as usize).map(|(_, cell)| &mut **cell)
    }

    #[expect(clippy::indexing_slicing, reason = "the index was made for this cell, and cells never go")]
    fn find_or_new(&mut self, key: SeriesKey) -> &mut Cell {
        let index = match self.index.get(&key) {
            Some(index) => *index as usize,
            None => {
                self.index.insert(key, self.cells.len() as u32);
                self.cells.push((key, Box::default()));
                self.cells.len() - 1
            }
        };
        &mut self.cells[index].1
    }

    fn copy(&self, from: usize, into: &mut Vec<(SeriesKey, Cell)>) {
        into.extend(self.cells.iter().skip(from).take(COPY_AT_ONCE).map(|(key, cell)| (*key, **cell)));
    }
}

/// Cells read under one lock at a scrape: some 30 KiB, hence a few microseconds that a worker may have to wait.
const COPY_AT_ONCE: usize = 64;

impl Table {
    pub(super) fn http(&mut self, key: SeriesKey) -> Option<&mut HttpCell> {
        self.http.find(key)
    }

    pub(super) fn http_or_new(&mut self, key: SeriesKey) -> &mut HttpCell {
        self.http.find_or_new(key)
    }

    pub(super) fn tcp(&mut self, key: SeriesKey) -> Option<&mut TcpCell> {
        self.tcp.find(key)
    }

    pub(super) fn tcp_or_new(&mut self, key: SeriesKey) -> &mut TcpCell {
        self.tcp.find_or_new(key)
    }

    /// Reads a worker's HTTP numbers in small pieces.
    pub(super) fn copy_http(table: &Mutex<Self>) -> Vec<(SeriesKey, HttpCell)> {
        Self::copy_all(table, |table, from, into| table.http.copy(from, into))
    }

    /// Reads a worker's TCP numbers in small pieces.
    pub(super) fn copy_tcp(table: &Mutex<Self>) -> Vec<(SeriesKey, TcpCell)> {
        Self::copy_all(table, |table, from, into| table.tcp.copy(from, into))
    }

    fn copy_all<Cell>(
        table: &Mutex<Self>,
        copy: impl Fn(&Self, usize, &mut Vec<(SeriesKey, Cell)>),
    ) -> Vec<(SeriesKey, Cell)> {
        let mut cells = Vec::new();
        loop {
            let before = cells.len();
            copy(&table.lock(), before, &mut cells);
            if cells.len() == before {
                return cells;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::telemetry::LabelSet;

    fn parts() -> SeriesParts {
        SeriesParts {
            direction: Direction::Inbound,
            source: LabelId::UNKNOWN,
            destination: LabelId::OWN,
            protocol: Some(RequestProtocol::Http),
            security: Some(Security::MutualTls),
            status: 200,
            failure: None,
            grpc_status: None,
        }
    }

    #[test]
    fn every_flag_has_a_place() {
        // A reason whose flag is missing here would show up as success ("-") on every dashboard.
        for reason in Reason::ALL {
            assert!(FLAGS.contains(&reason.flag()), "{}", reason.flag());
        }
    }

    #[test]
    fn parts_that_differ_have_keys_that_differ() {
        // Two kinds of requests under one key would be counted as one.
        let labels = Labels::new(LabelSet::default(), 10);
        let variants = [
            parts(),
            SeriesParts { direction: Direction::Outbound, ..parts() },
            SeriesParts { source: LabelId::OTHER, ..parts() },
            SeriesParts { destination: LabelId::OTHER, ..parts() },
            SeriesParts { protocol: None, ..parts() },
            SeriesParts { protocol: Some(RequestProtocol::Grpc), ..parts() },
            SeriesParts { protocol: Some(RequestProtocol::Grpc), grpc_status: Some(0), ..parts() },
            SeriesParts { protocol: Some(RequestProtocol::Grpc), grpc_status: Some(255), ..parts() },
            SeriesParts { security: Some(Security::None), ..parts() },
            SeriesParts { security: None, ..parts() },
            SeriesParts { status: 999, ..parts() },
            SeriesParts { failure: Some(Reason::DownstreamClosed), ..parts() },
        ];
        for (index, one) in variants.iter().enumerate() {
            for other in variants.iter().skip(index + 1) {
                assert_ne!(one.key(), other.key(), "{one:?} {other:?}");
                assert_ne!(one.key().text(&labels), other.key().text(&labels), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn buckets_are_envoys() {
        // Dashboards compute percentiles from these bounds; text and numbers must not drift apart.
        for (text, bound) in BUCKETS.iter().zip(BOUNDS) {
            assert_eq!(text.parse::<f64>().unwrap() * 1000.0, bound as f64);
        }
        let mut histogram = Histogram::default();
        histogram.record_duration(Duration::from_micros(500));
        histogram.record_duration(Duration::from_micros(501));
        histogram.record_duration(Duration::from_secs(86_400));
        histogram.record_duration(Duration::MAX);
        assert_eq!((histogram.counts[0], histogram.counts[1], histogram.counts[19]), (1, 1, 2));
        let mut histogram = Histogram::default();
        histogram.record_bytes(0);
        histogram.record_bytes(1);
        histogram.record_bytes(u64::MAX);
        assert_eq!((histogram.counts[0], histogram.counts[1], histogram.counts[19]), (1, 1, 1));
    }

    #[test]
    fn series_past_the_bound_are_counted_coarsely() {
        // An upstream that invents status codes must not grow the process, and no request may go uncounted.
        let labels = Labels::new(LabelSet::default(), 10);
        let texts = SeriesTexts::new(1);
        let first = texts.admit(parts().key(), &labels);
        assert_eq!(first, parts().key());
        let mut keys = Vec::new();
        for status in 100..1000 {
            keys.push(texts.admit(SeriesParts { status, ..parts() }.key(), &labels));
        }
        keys.sort_by_key(|key| key.0);
        keys.dedup();
        assert_eq!(keys.len(), 10);
        let text = texts.get(texts.admit(SeriesParts { status: 418, ..parts() }.key(), &labels));
        assert!(text.contains("response_code=\"400\"") && text.contains("source_workload=\"other\""), "{text}");
        assert!(texts.overflows() >= 899);
    }
}
