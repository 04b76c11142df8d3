//! Everything counted, as Prometheus reads it: all workers added up, series with equal labels merged.
//!
//! Called at each scrape, off the workers. Only metrics of [`metrics::ALL`] are written.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    sync::{Arc, atomic::Ordering},
    time::UNIX_EPOCH,
};

use super::{
    Telemetry,
    breakers::STATES,
    counters::{Counters, Family, Label},
    labels::write_label,
    metrics::{self, Metric},
    series::{BUCKETS, Histogram, HttpCell, Table, TcpCell},
};

pub(super) fn encode(telemetry: &Telemetry) -> String {
    let mut text = Text(String::with_capacity(16 * 1024));
    requests(telemetry, &mut text);
    connections(telemetry, &mut text);
    fixed(telemetry, &mut text);
    breakers(telemetry, &mut text);
    overload(telemetry, &mut text);
    process(telemetry, &mut text);
    text.0
}

/// The output.
struct Text(String);

impl Text {
    fn head(&mut self, metric: &Metric) {
        let (name, kind) = (metric.name, metric.kind.word());
        let _ = write!(self.0, "# HELP {name} {}\n# TYPE {name} {kind}\n", metric.help);
    }

    /// `labels` without braces; a comma at the end is dropped.
    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let labels = labels.strip_suffix(',').unwrap_or(labels);
        let _ = if labels.is_empty() {
            writeln!(self.0, "{name} {value}")
        } else {
            writeln!(self.0, "{name}{{{labels}}} {value}")
        };
    }

    fn single(&mut self, metric: &Metric, value: impl Display) {
        self.head(metric);
        self.sample(metric.name, "", value);
    }
}

/// A metric, and where its number stands in a cell.
type Column<'a, Cell> = (&'a Metric, fn(&Cell) -> u64);

fn requests(telemetry: &Telemetry, text: &mut Text) {
    let mut series = BTreeMap::<Arc<str>, HttpCell>::new();
    for worker in &telemetry.workers {
        for (key, cell) in Table::copy_http(&worker.table) {
            series.entry(telemetry.texts.get(key)).or_default().merge(&cell);
        }
    }
    text.head(&metrics::REQUESTS);
    for (labels, cell) in &series {
        text.sample(metrics::REQUESTS.name, labels, cell.duration.count());
    }
    histogram(&metrics::DURATION, &series, text, |cell| &cell.duration, |micros| micros as f64 / 1000.0);
    histogram(&metrics::REQUEST_BYTES, &series, text, |cell| &cell.request_bytes, |bytes| bytes as f64);
    histogram(&metrics::RESPONSE_BYTES, &series, text, |cell| &cell.response_bytes, |bytes| bytes as f64);
    let messages: [Column<'_, HttpCell>; 2] = [
        (&metrics::REQUEST_MESSAGES, |cell| cell.request_messages),
        (&metrics::RESPONSE_MESSAGES, |cell| cell.response_messages),
    ];
    for (metric, count) in messages {
        text.head(metric);
        for (labels, cell) in series.iter().filter(|(_, cell)| count(cell) > 0) {
            text.sample(metric.name, labels, count(cell));
        }
    }
}

fn histogram(
    metric: &Metric,
    series: &BTreeMap<Arc<str>, HttpCell>,
    text: &mut Text,
    of: impl Fn(&HttpCell) -> &Histogram,
    unit: impl Fn(u64) -> f64,
) {
    text.head(metric);
    for (labels, cell) in series {
        let histogram = of(cell);
        let mut below = 0;
        for (bound, count) in BUCKETS.iter().copied().chain(["+Inf"]).zip(histogram.counts) {
            below += count;
            let _ = writeln!(text.0, "{}_bucket{{{labels}le=\"{bound}\"}} {below}", metric.name);
        }
        text.sample(&format!("{}_sum", metric.name), labels, unit(histogram.sum));
        text.sample(&format!("{}_count", metric.name), labels, below);
    }
}

fn connections(telemetry: &Telemetry, text: &mut Text) {
    let mut series = BTreeMap::<Arc<str>, TcpCell>::new();
    for worker in &telemetry.workers {
        for (key, cell) in Table::copy_tcp(&worker.table) {
            series.entry(telemetry.texts.get(key)).or_default().merge(&cell);
        }
    }
    let numbers: [Column<'_, TcpCell>; 4] = [
        (&metrics::TCP_SENT, |cell| cell.sent_bytes),
        (&metrics::TCP_RECEIVED, |cell| cell.received_bytes),
        (&metrics::TCP_OPENED, |cell| cell.opened),
        (&metrics::TCP_CLOSED, |cell| cell.closed),
    ];
    for (metric, number) in numbers {
        text.head(metric);
        for (labels, cell) in &series {
            text.sample(metric.name, labels, number(cell));
        }
    }
}

fn fixed(telemetry: &Telemetry, text: &mut Text) {
    family(telemetry, text, &metrics::ACCEPTED, |counters| &counters.accepted);
    family(telemetry, text, &metrics::ACTIVE, |counters| &counters.active);
    family(telemetry, text, &metrics::SECURED, |counters| &counters.secured);
    family(telemetry, text, &metrics::HANDSHAKE_FAILURES, |counters| &counters.handshake_failures);
    family(telemetry, text, &metrics::UPSTREAM_OPENED, |counters| &counters.upstream_opened);
    family(telemetry, text, &metrics::UPSTREAM_ACTIVE, |counters| &counters.upstream_active);
    let retries = telemetry.workers.iter().map(|worker| worker.counters.retries.load(Ordering::Relaxed));
    text.single(&metrics::RETRIES, retries.sum::<u64>());
    family(telemetry, text, &metrics::RETRIES_REFUSED, |counters| &counters.retries_refused);
    family(telemetry, text, &metrics::FALLBACKS, |counters| &counters.fallbacks);
    family(telemetry, text, &metrics::EJECTIONS, |counters| &counters.ejections);
    family(telemetry, text, &metrics::OVERFLOWS, |counters| &counters.overflows);
    family(telemetry, text, &metrics::HTTP2_DEEDS, |counters| &counters.http2_deeds);
    family(telemetry, text, &metrics::HTTP2_ENDS, |counters| &counters.http2_ends);
    family(telemetry, text, &metrics::FAILURES, |counters| &counters.failures);
    family(telemetry, text, &metrics::DETECTIONS, |counters| &counters.detections);
    family(telemetry, text, &metrics::DEMANDS, |counters| &counters.demands);
}

fn family<L: Label>(telemetry: &Telemetry, text: &mut Text, metric: &Metric, of: impl Fn(&Counters) -> &Family<L>) {
    let mut sums = vec![0; L::ROWS];
    for worker in &telemetry.workers {
        of(&worker.counters).sum_into(&mut sums);
    }
    text.head(metric);
    for (labels, sum) in L::rows().iter().zip(sums) {
        text.sample(metric.name, labels, sum);
    }
}

fn breakers(telemetry: &Telemetry, text: &mut Text) {
    let breakers = telemetry.breakers.snapshot();
    let labels_of = |breaker: &str, backend: &str, further: &[(&str, &str)]| {
        let mut labels = String::new();
        write_label("breaker", breaker, &mut labels);
        write_label("backend", backend, &mut labels);
        for (name, value) in further {
            write_label(name, value, &mut labels);
        }
        labels
    };
    text.head(&metrics::BREAKER_STATE);
    for ((breaker, backend), numbers) in &breakers {
        for (state, standing) in STATES.iter().zip(numbers.standing) {
            text.sample(metrics::BREAKER_STATE.name, &labels_of(breaker, backend, &[("state", state)]), standing);
        }
    }
    text.head(&metrics::BREAKER_TRANSITIONS);
    for ((breaker, backend), numbers) in &breakers {
        for (from, row) in STATES.iter().zip(numbers.transitions) {
            for (to, count) in STATES.iter().zip(row).filter(|(_, count)| *count > 0) {
                let labels = labels_of(breaker, backend, &[("from", from), ("to", to)]);
                text.sample(metrics::BREAKER_TRANSITIONS.name, &labels, count);
            }
        }
    }
}

fn overload(telemetry: &Telemetry, text: &mut Text) {
    text.head(&metrics::OVERLOAD_USED);
    for (resource, of) in telemetry.overload.used() {
        text.sample(
            metrics::OVERLOAD_USED.name,
            &format!("resource=\"{resource}\""),
            format_args!("{:.4}", of.ratio()),
        );
    }
    let measures = telemetry.overload.measures();
    text.head(&metrics::OVERLOAD_MEASURES);
    for (measure, active, _) in &measures {
        text.sample(metrics::OVERLOAD_MEASURES.name, &format!("measure=\"{measure}\""), u8::from(*active));
    }
    text.head(&metrics::OVERLOAD_BEGUN);
    for (measure, _, begun) in &measures {
        text.sample(metrics::OVERLOAD_BEGUN.name, &format!("measure=\"{measure}\""), begun);
    }
}

fn process(telemetry: &Telemetry, text: &mut Text) {
    text.single(&metrics::GENERATION, telemetry.generation.load(Ordering::Relaxed));
    text.single(&metrics::SWAPS, telemetry.config_swaps.load(Ordering::Relaxed));
    text.single(&metrics::REFUSALS, telemetry.config_refusals.load(Ordering::Relaxed));
    let expiry = telemetry.certificate_expiry.load(Ordering::Relaxed);
    if expiry != 0 {
        text.single(&metrics::CERTIFICATE_EXPIRY, expiry);
    }
    text.single(&metrics::LOG_DROPPED, telemetry.access_log.as_ref().map_or(0, |sink| sink.dropped()));
    text.single(&metrics::SERIES_OVERFLOWS, telemetry.texts.overflows());
    let version = env!("CARGO_PKG_VERSION");
    text.head(&metrics::BUILD);
    text.sample(metrics::BUILD.name, &format!("version=\"{version}\""), 1);
    text.head(&metrics::ISTIO_BUILD);
    text.sample(metrics::ISTIO_BUILD.name, &format!("component=\"proxy\",tag=\"{version}\""), 1);
    let started = telemetry.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    text.single(&metrics::START, format_args!("{:.3}", started.as_secs_f64()));
    if let Some(usage) = Usage::read() {
        text.single(&metrics::CPU, format_args!("{:.2}", usage.cpu_seconds));
        text.single(&metrics::RESIDENT, usage.resident_bytes);
        text.single(&metrics::VIRTUAL, usage.virtual_bytes);
        text.single(&metrics::OPEN_FDS, usage.open_descriptors);
    }
}

/// What the kernel says of this process.
struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_descriptors: usize,
}

impl Usage {
    /// `None` where there is no `/proc`.
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // proc_pid_stat(5): fields after the command's closing parenthesis begin with the third, the state.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks as f64,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)?.saturating_mul(rustix::param::page_size() as u64),
            open_descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1)),
        })
    }
}
